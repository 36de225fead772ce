//! Networks. So far each is local to its node: a bridge, the host's own, or none; overlays will join them here.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::cluster::Subnet;
use crate::{Labels, Meta, NetworkId};

/// A network that tasks attach to. `bridge`, `host` and `none` exist from `init` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// Present for drivers that give addresses.
    pub ipam: Option<Ipam>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    pub labels: Labels,
    pub driver: NetworkDriver,
}

/// How a network is made on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// A bridge on each node, with network address translation to the outside.
    Bridge,
    /// The node's own network namespace.
    Host,
    /// A namespace with nothing but a loopback.
    None,
}

/// The addresses of a network. Each address is given to at most one task in the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pub subnet: Subnet,
    /// On each node the bridge's own address.
    pub gateway: Ipv4Addr,
}
