//! The one cluster object: settings, certificate authority and join secrets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::subnet::{ParseSubnetError, Subnet, Subnet6};
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

impl Cluster {
    /// Where the IPv6 subnets of overlays are taken from that name none: a /48 that is this cluster's alone, as far as
    /// random numbers can tell. Source: RFC 4193, section 3.
    pub fn ipv6_pool(id: ClusterId) -> Subnet6 {
        let mut bytes = [0; 16];
        bytes[0] = 0xfd;
        bytes[1..6].copy_from_slice(&id.to_bytes()[..5]);
        Subnet { address: bytes.into(), prefix_len: 48 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_s_ipv6_pool_is_its_own_and_unique_local() {
        let pool = |last| {
            let mut id = [7; 16];
            id[4] = last;
            Cluster::ipv6_pool(ClusterId::from_bytes(id)).to_string()
        };
        assert_eq!((pool(7), pool(8)), ("fd07:707:707::/48".into(), "fd07:707:708::/48".into()));
    }
}
