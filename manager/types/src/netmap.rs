//! What one node must know of the cluster's networks: those it has tasks on, and who else is on them.
//!
//! The leader computes it from the state and sends it beside the assignments, first whole and then by change. The
//! worker programs the kernel from it, and keeps it on disk for the resolver, which outlives the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::cluster::{Subnet, Subnet6};
use crate::network::Ipam6;
use crate::node::TunnelKeys;
use crate::service::{EndpointMode, PortConfig};
use crate::{NetworkId, NodeId, ServiceId, TaskId, Version};

/// The map as of one index.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkMap {
    /// The state's index it was computed at.
    pub index: Version,
    /// UDP port of the encapsulated traffic.
    pub data_path_port: u16,
    /// Every node that takes part in overlays, this one included: each is an entry of the mesh.
    pub nodes: BTreeMap<NodeId, MapNode>,
    /// Overlays with a task on this node, and the ingress network.
    pub networks: BTreeMap<NetworkId, MapNetwork>,
    /// Networks of driver `bridge`, made by users, with a task on this node. Nothing of them is elsewhere.
    pub bridges: BTreeMap<NetworkId, MapBridge>,
    /// Where the cluster's networks have their addresses, also those of which this node has no task.
    pub subnets: BTreeMap<NetworkId, MapSubnets>,
    /// Services attached to one of these networks, or published on the mesh.
    pub services: BTreeMap<ServiceId, MapService>,
    /// Tasks on `networks`, this node's own included, and its own on `bridges`, from assigned until they have ended.
    pub endpoints: BTreeMap<TaskId, MapEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapNode {
    /// [`Node::number`](crate::Node::number).
    pub number: u16,
    pub name: String,
    /// Its data path address.
    pub addr: IpAddr,
    /// [`NodeNetworkFacts::addresses`](crate::node::NodeNetworkFacts::addresses).
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// Without keys nothing can be sent to it on encrypted networks.
    #[serde(default)]
    pub tunnel: Option<TunnelKeys>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapNetwork {
    pub name: String,
    pub vni: u32,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    /// Of a network with both families: whoever has an address in `subnet` has its twin too.
    #[serde(default)]
    pub ipv6: Option<Ipam6>,
    /// Bytes of a packet inside: what fits between any two of `nodes`, encapsulation taken off.
    pub mtu: u32,
    pub internal: bool,
    pub ingress: bool,
    pub encrypted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapBridge {
    pub name: String,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    /// As of overlays.
    #[serde(default)]
    pub ipv6: Option<Ipam6>,
    #[serde(default)]
    pub internal: bool,
}

/// The subnets of a network that hosts can have addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSubnets {
    pub ipv4: Option<Subnet>,
    pub ipv6: Option<Subnet6>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MapService {
    pub name: String,
    pub mode: EndpointMode,
    /// Its address on each network that it is attached to and this map knows, `None` in mode `dnsrr` and on bridges.
    pub networks: BTreeMap<NetworkId, MapAttachment>,
    /// Ports published on the mesh, `published` always set.
    pub ports: Vec<PortConfig>,
    /// [`EndpointSpec::allow_from`](crate::service::EndpointSpec::allow_from).
    #[serde(default)]
    pub allow_from: BTreeSet<String>,
    /// [`ServiceEndpoint::number`](crate::service::ServiceEndpoint::number).
    #[serde(default)]
    pub number: u32,
    /// [`EndpointSpec::prefer_same_node`](crate::service::EndpointSpec::prefer_same_node).
    #[serde(default)]
    pub prefer_same_node: bool,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MapAttachment {
    pub vip: Option<Ipv4Addr>,
    pub aliases: Vec<String>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEndpoint {
    pub service: ServiceId,
    /// 0 for a task of a global service.
    pub slot: u64,
    pub node: NodeId,
    /// Its addresses on the networks of this map, ingress included.
    pub addresses: BTreeMap<NetworkId, Ipv4Addr>,
    pub state: EndpointState,
    /// What the container calls itself, if that is not left to the runtime.
    pub hostname: String,
    /// Of a task of this node: whom it wants asked for names that are none of the cluster, instead of the node's own name
    /// servers.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
    /// Of a task that was connected to one of the map's networks, which its service is not on.
    #[serde(default)]
    pub joined: Option<Joined>,
    /// Of a task of this node: none of its networks has a way out, so that it hears of nothing outside either.
    #[serde(default)]
    pub enclosed: bool,
}

/// What must be known of a task where its service is not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Joined {
    /// Name of its service.
    pub service: String,
    /// [`MapService::number`] of it.
    #[serde(default)]
    pub number: u32,
    /// The networks, and the names that the task was given there beside its own.
    pub aliases: BTreeMap<NetworkId, Vec<String>>,
}

/// What may be sent to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Reachable by its address, for those who know it: not running yet.
    Starting,
    /// Takes its share of what goes to its service, and is found by name.
    Ready,
    /// Is about to stop, or has to: keeps the connections it has and gets no new ones.
    Draining,
}

/// What changed in a map. Applied in the order `removed…`, then the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkChange {
    pub index: Version,
    /// `set` is the whole map: what is not in it is gone.
    pub full: bool,
    /// What is new or different. Its `index` and `data_path_port` are those of the map after the change.
    pub set: NetworkMap,
    pub removed_nodes: Vec<NodeId>,
    /// Bridges too.
    pub removed_networks: Vec<NetworkId>,
    pub removed_subnets: Vec<NetworkId>,
    pub removed_services: Vec<ServiceId>,
    pub removed_endpoints: Vec<TaskId>,
}

impl NetworkChange {
    pub fn is_empty(&self) -> bool {
        !self.full
            && self.set.nodes.is_empty()
            && self.set.networks.is_empty()
            && self.set.bridges.is_empty()
            && self.set.subnets.is_empty()
            && self.set.services.is_empty()
            && self.set.endpoints.is_empty()
            && self.removed_nodes.is_empty()
            && self.removed_networks.is_empty()
            && self.removed_subnets.is_empty()
            && self.removed_services.is_empty()
            && self.removed_endpoints.is_empty()
    }
}

impl NetworkMap {
    /// Takes a change in. A partial one that is older than the map is ignored; returns whether it was taken.
    pub fn apply(&mut self, change: NetworkChange) -> bool {
        if change.full {
            // Also of a lower index: the map may be another cluster's.
            *self = change.set;
            self.index = change.index;
            return true;
        }
        if change.index < self.index {
            return false;
        }
        for id in &change.removed_nodes {
            self.nodes.remove(id);
        }
        for id in &change.removed_networks {
            self.networks.remove(id);
            self.bridges.remove(id);
        }
        for id in &change.removed_subnets {
            self.subnets.remove(id);
        }
        for id in &change.removed_services {
            self.services.remove(id);
        }
        for id in &change.removed_endpoints {
            self.endpoints.remove(id);
        }
        self.index = change.index;
        self.data_path_port = change.set.data_path_port;
        self.nodes.extend(change.set.nodes);
        self.networks.extend(change.set.networks);
        self.bridges.extend(change.set.bridges);
        self.subnets.extend(change.set.subnets);
        self.services.extend(change.set.services);
        self.endpoints.extend(change.set.endpoints);
        true
    }

    /// The change that makes `self` of `before`.
    pub fn since(&self, before: &Self) -> NetworkChange {
        NetworkChange {
            index: self.index,
            full: false,
            set: Self {
                index: self.index,
                data_path_port: self.data_path_port,
                nodes: different(&before.nodes, &self.nodes),
                networks: different(&before.networks, &self.networks),
                bridges: different(&before.bridges, &self.bridges),
                subnets: different(&before.subnets, &self.subnets),
                services: different(&before.services, &self.services),
                endpoints: different(&before.endpoints, &self.endpoints),
            },
            removed_nodes: gone(&before.nodes, &self.nodes),
            removed_networks: [gone(&before.networks, &self.networks), gone(&before.bridges, &self.bridges)]
                .concat(),
            removed_subnets: gone(&before.subnets, &self.subnets),
            removed_services: gone(&before.services, &self.services),
            removed_endpoints: gone(&before.endpoints, &self.endpoints),
        }
    }
}

fn different<K: Ord + Copy, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let new = after.iter().filter(|(id, value)| before.get(id) != Some(value));
    new.map(|(id, value)| (*id, value.clone())).collect()
}

fn gone<K: Ord + Copy, V>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Vec<K> {
    before.keys().filter(|id| !after.contains_key(id)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(index: u64, nodes: &[(u128, u16)]) -> NetworkMap {
        let node = |&(id, number): &(u128, u16)| {
            let addr = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let (name, addresses) = (format!("n{number}"), BTreeSet::new());
            let node = MapNode { number, name, addr, addresses, tunnel: None };
            (NodeId::from_bytes(id.to_be_bytes()), node)
        };
        NetworkMap { index: Version(index), nodes: nodes.iter().map(node).collect(), ..NetworkMap::default() }
    }

    #[test]
    fn a_change_makes_the_later_map_of_the_earlier_and_an_old_one_is_ignored() {
        let (mut old, mut new) = (map(1, &[(1, 1), (2, 2)]), map(2, &[(2, 7), (3, 3)]));
        let bridge = |n: u8| {
            let subnet = Subnet::new(Ipv4Addr::new(10, n, 0, 0), 24).unwrap();
            let (name, gateway) = (format!("b{n}"), Ipv4Addr::new(10, n, 0, 1));
            let bridge = MapBridge { name, subnet, gateway, ipv6: None, internal: n == 3 };
            (NetworkId::from_bytes([n; 16]), bridge)
        };
        old.bridges.extend([1, 2].map(bridge));
        new.bridges.extend([2, 3].map(bridge));
        let subnets = |(id, bridge): (&NetworkId, &MapBridge)| {
            (*id, MapSubnets { ipv4: Some(bridge.subnet), ipv6: None })
        };
        (old.subnets, new.subnets) =
            (old.bridges.iter().map(subnets).collect(), new.bridges.iter().map(subnets).collect());
        let change = new.since(&old);
        assert_eq!((change.set.subnets.len(), change.removed_subnets.len()), (1, 1));
        assert_eq!((change.set.nodes.len(), change.removed_nodes.len()), (2, 1));
        assert_eq!((change.set.bridges.len(), change.removed_networks.len()), (1, 1));
        let mut built = old.clone();
        assert!(built.apply(change));
        assert_eq!(built, new);
        assert!(!built.apply(old.since(&new)), "of index 1");
        assert_eq!(built, new);
        assert!(new.since(&new).is_empty());
    }
}
