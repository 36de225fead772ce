//! Networks: overlays that span nodes, and those local to a node (a bridge, the host's own, or none).

use std::collections::BTreeMap;
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
    /// VXLAN network identifier (RFC 7348), from [`FIRST_VNI`] on. Present for overlays.
    #[serde(default)]
    pub vni: Option<u32>,
}

/// Where VNIs start, as in Swarm.
pub const FIRST_VNI: u32 = 4096;
/// The largest number VXLAN has room for.
pub const LAST_VNI: u32 = (1 << 24) - 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    pub labels: Labels,
    pub driver: NetworkDriver,
    /// No way out and none in.
    #[serde(default)]
    pub internal: bool,
    /// Containers that are no task of a service may join.
    #[serde(default)]
    pub attachable: bool,
    /// The network that carries the routing mesh; one in the cluster at most.
    #[serde(default)]
    pub ingress: bool,
    /// Bytes of a packet inside; `None` follows the path between the nodes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Traffic between nodes is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// As the user gave them, for what shows them again.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    #[serde(default)]
    pub ipam: IpamSpec,
}

impl NetworkSpec {
    /// A network with nothing but a name and a driver.
    pub fn new(name: impl Into<String>, driver: NetworkDriver) -> Self {
        Self {
            name: name.into(),
            labels: Labels::new(),
            driver,
            internal: false,
            attachable: false,
            ingress: false,
            mtu: None,
            encrypted: false,
            options: BTreeMap::new(),
            ipam: IpamSpec::default(),
        }
    }
}

/// Addresses that the user asks for; what is left open is chosen from the cluster's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamSpec {
    pub subnet: Option<Subnet>,
    /// The first address if left open.
    pub gateway: Option<Ipv4Addr>,
    /// The part of `subnet` that tasks and services get their addresses from.
    pub range: Option<Subnet>,
}

/// How a network is made on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// A bridge on each node, with network address translation to the outside.
    Bridge,
    /// One network across all nodes that have tasks on it.
    Overlay,
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
