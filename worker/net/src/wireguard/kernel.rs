//! A WireGuard link of the kernel's, by generic netlink.
//!
//! Source: Linux `include/uapi/linux/{genetlink,wireguard}.h`.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Peer, PeerState, PrivateKey, PublicKey, Setting, State};
use crate::{
    error::KernelError,
    netlink::{Attributes, Message, Socket, attributes, find, text},
};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const VERSION: u8 = 1;
const DEVICE_IFNAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_HANDSHAKE: u16 = 6;
const PEER_RECEIVED: u16 = 7;
const PEER_SENT: u16 = 8;
const PEER_ALLOWED_IPS: u16 = 9;
const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED_IPS: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_MASK: u16 = 3;

/// `struct genlmsghdr`.
fn header(command: u8, version: u8) -> [u8; 4] {
    [command, version, 0, 0]
}

/// The number of the kernel's WireGuard, `None` if it has none.
pub(super) fn family(socket: &mut Socket) -> Result<Option<u16>, KernelError> {
    let name = Attributes::new().text(CTRL_ATTR_FAMILY_NAME, "wireguard");
    let request = Message::new(GENL_ID_CTRL, &header(CTRL_CMD_GETFAMILY, 1), name);
    match socket.get(&request) {
        Ok(payload) => {
            let id = payload.get(4..).and_then(|rest| find(rest, CTRL_ATTR_FAMILY_ID));
            Ok(id.and_then(|value| Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))))
        }
        Err(error) if error.errno == libc::ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// `struct sockaddr_in`.
fn sockaddr(at: SocketAddrV4) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&at.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&at.ip().octets());
    bytes
}

fn read_sockaddr(bytes: &[u8]) -> Option<SocketAddrV4> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    (i32::from(family) == libc::AF_INET).then(|| SocketAddrV4::new(octets.into(), port))
}

fn peer_attributes(peer: &Peer) -> Attributes {
    let allowed = Attributes::new()
        .bytes(ALLOWED_FAMILY, &(libc::AF_INET as u16).to_ne_bytes())
        .bytes(ALLOWED_ADDRESS, &peer.address.octets())
        .bytes(ALLOWED_MASK, &[32]);
    let mut attributes =
        Attributes::new().bytes(PEER_PUBLIC_KEY, &peer.key.0).u32(PEER_FLAGS, REPLACE_ALLOWED_IPS);
    if let Some(endpoint) = peer.endpoint {
        attributes.push(PEER_ENDPOINT, &sockaddr(endpoint));
    }
    attributes
        .bytes(PEER_KEEPALIVE, &peer.keepalive.to_ne_bytes())
        .nest(PEER_ALLOWED_IPS, &Attributes::new().nest(0, &allowed))
}

fn setting_attributes(setting: &Setting) -> Attributes {
    let peer = |peer: &Attributes| Attributes::new().nest(DEVICE_PEERS, &Attributes::new().nest(0, peer));
    match setting {
        Setting::Key(key) => Attributes::new().bytes(DEVICE_PRIVATE_KEY, &key.0),
        Setting::Port(port) => Attributes::new().bytes(DEVICE_LISTEN_PORT, &port.to_ne_bytes()),
        Setting::Peer(given) => peer(&peer_attributes(given)),
        Setting::Remove(key) => {
            peer(&Attributes::new().bytes(PEER_PUBLIC_KEY, &key.0).u32(PEER_FLAGS, REMOVE_ME))
        }
    }
}

pub(super) fn set(
    socket: &mut Socket,
    family: u16,
    link: &str,
    setting: &Setting,
) -> Result<(), KernelError> {
    let mut all = Attributes::new().text(DEVICE_IFNAME, link);
    all.append(&setting_attributes(setting));
    socket.execute(&Message::new(family, &header(SET_DEVICE, VERSION), all))
}

pub(super) fn get(socket: &mut Socket, family: u16, link: &str) -> Result<State, KernelError> {
    let mut state = State::default();
    let name = Attributes::new().text(DEVICE_IFNAME, link);
    socket.dump(&Message::new(family, &header(GET_DEVICE, VERSION), name), |payload| {
        read_device(&mut state, payload.get(4..).unwrap_or_default(), link);
    })?;
    Ok(state)
}

/// Takes in one message; a link with many peers comes in several, and so may a peer.
fn read_device(state: &mut State, rest: &[u8], link: &str) {
    if find(rest, DEVICE_IFNAME).is_some_and(|name| text(name) != link) {
        return;
    }
    let array = |value: &[u8]| <[u8; 32]>::try_from(value).ok();
    for (kind, value) in attributes(rest) {
        match kind {
            DEVICE_PRIVATE_KEY => state.key = array(value).filter(|key| *key != [0; 32]).map(PrivateKey),
            DEVICE_LISTEN_PORT => state.port = short(value),
            DEVICE_PEERS => {
                for (_, peer) in attributes(value) {
                    let Some(key) = find(peer, PEER_PUBLIC_KEY).and_then(array) else { continue };
                    read_peer(state.peers.entry(PublicKey(key)).or_default(), peer);
                }
            }
            _ => {}
        }
    }
}

fn read_peer(peer: &mut PeerState, rest: &[u8]) {
    let long = |value: &[u8]| value.get(..8).and_then(|v| v.try_into().ok()).map_or(0, u64::from_ne_bytes);
    for (kind, value) in attributes(rest) {
        match kind {
            PEER_ENDPOINT => peer.endpoint = read_sockaddr(value),
            PEER_KEEPALIVE => peer.keepalive = short(value),
            PEER_HANDSHAKE => peer.handshake = long(value),
            PEER_RECEIVED => peer.received = long(value),
            PEER_SENT => peer.sent = long(value),
            PEER_ALLOWED_IPS => {
                for (_, allowed) in attributes(value) {
                    let octets = find(allowed, ALLOWED_ADDRESS).and_then(|v| <[u8; 4]>::try_from(v).ok());
                    peer.address = octets.map(Ipv4Addr::from);
                }
            }
            _ => {}
        }
    }
}

fn short(value: &[u8]) -> u16 {
    value.get(..2).and_then(|value| value.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_in_the_kernels_layout_and_read_back() {
        let peer = Peer {
            key: PublicKey([2; 32]),
            endpoint: Some("192.0.2.7:4790".parse().unwrap()),
            address: Ipv4Addr::new(169, 254, 144, 7),
            keepalive: 25,
        };
        let mut state = State::default();
        for setting in [Setting::Key(PrivateKey([1; 32])), Setting::Port(4790), Setting::Peer(peer)] {
            let attributes = Attributes::new().text(DEVICE_IFNAME, "rswg");
            let mut message = attributes;
            message.append(&setting_attributes(&setting));
            read_device(&mut state, message.as_bytes(), "rswg");
            read_device(&mut state, message.as_bytes(), "other");
        }
        assert_eq!((state.key, state.port), (Some(PrivateKey([1; 32])), 4790));
        let read = state.peers[&peer.key];
        assert_eq!((read.endpoint, read.address, read.keepalive), (peer.endpoint, Some(peer.address), 25));
        assert_eq!(state.peers.len(), 1);
    }

    #[test]
    fn the_kernel_is_asked_for_its_wireguard_by_name() {
        let mut socket = Socket::open(libc::NETLINK_GENERIC).expect("needs no privilege");
        let found = family(&mut socket).expect("that there is none is an answer");
        assert!(found.is_none_or(|id| id > GENL_ID_CTRL));
    }
}
