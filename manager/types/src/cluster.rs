//! The one cluster object: settings, certificate authority and join secrets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ClusterId, Meta, NodeId, Timestamp};

/// The cluster. Exactly one exists from `init` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub root_ca: RootCa,
    pub join_secrets: JoinSecrets,
    /// Nodes that were removed, with the time until which their certificates could still be valid.
    /// A certificate of a node in here is refused everywhere.
    pub removed_nodes: BTreeMap<NodeId, Timestamp>,
}

/// Settings a user may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    /// Tasks kept per slot, the live one included. Source: swarm-parity 2.7.
    pub task_history_limit: u64,
    /// How often a worker's session must be heard from.
    pub heartbeat_period: Duration,
    /// Silence after which a node counts as down.
    pub node_down_after: Duration,
    /// Life of a node's certificate; at least one hour.
    pub node_cert_expiry: Duration,
    /// Applied Raft entries between two snapshots.
    pub snapshot_interval: u64,
    /// Subnet of the network `bridge`.
    pub default_address_pool: Subnet,
    /// Where the subnets of overlays are taken from that name none.
    pub overlay_pools: Vec<Subnet>,
    /// Length of the prefix of a subnet taken from `overlay_pools`.
    pub overlay_prefix_len: u8,
    /// UDP port of the traffic between nodes; fixed for the life of the cluster.
    pub data_path_port: u16,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            task_history_limit: 5,
            heartbeat_period: Duration::from_secs(1),
            node_down_after: Duration::from_secs(5),
            node_cert_expiry: Duration::from_secs(90 * 24 * 3600),
            snapshot_interval: 10_000,
            default_address_pool: Subnet { address: Ipv4Addr::new(10, 213, 0, 0), prefix_len: 16 },
            overlay_pools: vec![Subnet { address: Ipv4Addr::new(10, 0, 0, 0), prefix_len: 8 }],
            overlay_prefix_len: 20,
            data_path_port: 4789,
        }
    }
}

/// The certificate authority of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    /// The root certificate, PEM.
    pub cert_pem: String,
    /// Its private key, PKCS#8 PEM. Stored only in the encrypted Raft log and snapshots; never sent to a worker.
    pub key_pem: String,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// The secret halves of the two join tokens: 128 random bits each, base 36, 25 characters.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSecrets {
    pub worker: String,
    pub manager: String,
}

impl std::fmt::Debug for JoinSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinSecrets { .. }")
    }
}

/// An IPv4 network: `address` has no host bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subnet {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
}

impl Subnet {
    /// The network that `address/prefix_len` lies in; `None` if the prefix is longer than 32.
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        let mask = Self::mask(prefix_len)?;
        Some(Self { address: Ipv4Addr::from(u32::from(address) & mask), prefix_len })
    }

    fn mask(prefix_len: u8) -> Option<u32> {
        match prefix_len {
            0 => Some(0),
            1..=32 => Some(u32::MAX << (32 - prefix_len)),
            _ => None,
        }
    }

    /// Whether `address` lies in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        Self::new(address, self.prefix_len) == Some(self)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The `n`th address of the network (0 is the network's own); `None` beyond its end.
    pub fn nth(self, n: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(u32::from(self.address).checked_add(n)?);
        self.contains(address).then_some(address)
    }

    /// Number of addresses, network and broadcast included.
    pub fn size(self) -> u64 {
        1u64 << (32 - u32::from(self.prefix_len.min(32)))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// Why a text is not a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseSubnetError(String);

impl std::fmt::Display for ParseSubnetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expected a subnet like `10.213.0.0/16`, found `{}`", self.0)
    }
}

impl std::error::Error for ParseSubnetError {}

impl std::str::FromStr for Subnet {
    type Err = ParseSubnetError;
    fn from_str(text: &str) -> Result<Self, ParseSubnetError> {
        let error = || ParseSubnetError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address = address.parse().map_err(|_| error())?;
        Self::new(address, prefix.parse().map_err(|_| error())?)
            .filter(|s| s.address == address)
            .ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_parse_contain_and_count() {
        let net: Subnet = "10.213.0.0/16".parse().unwrap();
        assert_eq!(net.size(), 65_536);
        assert_eq!(net.nth(1), Some(Ipv4Addr::new(10, 213, 0, 1)));
        assert_eq!(net.nth(65_536), None);
        assert!(
            net.contains(Ipv4Addr::new(10, 213, 255, 255)) && !net.contains(Ipv4Addr::new(10, 214, 0, 0))
        );
        assert!(net.overlaps("10.0.0.0/8".parse().unwrap()) && !net.overlaps("10.0.0.0/24".parse().unwrap()));
        for text in ["10.213.0.1/16", "10.0.0.0", "10.0.0.0/33", "x/8"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
