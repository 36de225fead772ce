//! The link over which nodes send each other what is on encrypted networks: WireGuard, in the kernel where it has it
//! ([`kernel`]), else in a process of our own, which is told in the words that all WireGuard programs understand
//! ([`protocol`], spoken by [`user`]).
//!
//! Here is what both have in common, as plain data.

pub(crate) mod device;
mod kernel;
mod protocol;
mod user;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

pub use device::obstacle;
pub use protocol::{Request, Words};

/// The link's name in the helper namespace.
pub(crate) const WIREGUARD: &str = "rswg";
/// Seconds after which a node that has nothing to say makes itself heard, so that what translates its address on the way
/// remembers it.
pub(crate) const KEEPALIVE: u16 = 25;
/// Bytes of an IPv4 packet with a VXLAN frame in it, beyond what the task sent.
pub(crate) const VXLAN: u32 = 50;

/// X25519, the half that is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// X25519, the half that never leaves the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrivateKey(pub [u8; 32]);

impl PrivateKey {
    /// Makes a key of random bytes, in the one form of several equal ones that the kernel shows again. Source: RFC 7748,
    /// section 5, `decodeScalar25519`.
    pub fn of(mut random: [u8; 32]) -> Self {
        random[0] &= 248;
        random[31] = random[31] & 127 | 64;
        Self(random)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// This node's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelEnd {
    /// UDP port, of every node.
    pub port: u16,
    pub key: PrivateKey,
    /// Which of its two addresses inside the tunnel goes with `key`, 0 or 1.
    pub place: u8,
}

/// The keys of another node, each at its place, and the place in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerKeys {
    pub keys: [Option<PublicKey>; 2],
    pub place: u8,
}

/// A node's address inside the tunnel that goes with its key at `place`. Both ranges are clear of what else the helper
/// has (next hops, the veth to the host), and of 169.254.169.254 and its neighbours, where clouds answer.
pub(crate) fn inner_address(number: u16, place: u8) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    let third = if place == 0 { 144 } else { 176 };
    Ipv4Addr::new(169, 254, third + (high & 0x0f), low)
}

/// One of those who may send to us, as one of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub key: PublicKey,
    /// Where to send to until it is heard from.
    pub endpoint: Option<SocketAddrV4>,
    /// The one address it has inside.
    pub address: Ipv4Addr,
    /// Seconds.
    pub keepalive: u16,
}

/// One setting of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    Key(PrivateKey),
    /// The UDP port to receive and send by.
    Port(u16),
    Peer(Peer),
    Remove(PublicKey),
}

/// The link as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub key: Option<PrivateKey>,
    pub port: u16,
    pub peers: BTreeMap<PublicKey, PeerState>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerState {
    pub address: Option<Ipv4Addr>,
    /// Where it was heard from last.
    pub endpoint: Option<SocketAddrV4>,
    pub keepalive: u16,
    /// When a handshake was completed last, in seconds since 1970; 0 if none was.
    pub handshake: u64,
    pub received: u64,
    pub sent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Cidr, overlay::fabric::Uplink};

    #[test]
    fn inner_addresses_are_nobody_elses() {
        let range = |third, prefix_len| Cidr { address: Ipv4Addr::new(169, 254, third, 0), prefix_len };
        let others = [range(128, 20), range(168, 22)];
        for number in [1, 255, 256, 4094, 4095] {
            for place in [0, 1] {
                let address = inner_address(number, place);
                assert!(range(144, 20).contains(address) == (place == 0), "{address}");
                assert!(range(176, 20).contains(address) == (place == 1), "{address}");
                assert!(!others.iter().any(|other| other.contains(address)), "{address}");
                assert!(Uplink::candidates().all(|uplink| uplink.host.octets()[2] != address.octets()[2]));
            }
        }
        assert_eq!(inner_address(0x0102, 1), Ipv4Addr::new(169, 254, 177, 2));
    }

    #[test]
    fn a_private_key_is_not_shown() {
        let end = TunnelEnd { port: 4790, key: PrivateKey([7; 32]), place: 0 };
        assert!(!format!("{end:?}").contains('7'.to_string().repeat(2).as_str()), "{end:?}");
        assert!(format!("{end:?}").contains("PrivateKey(…)"));
    }
}
