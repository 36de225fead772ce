//! What the network needs and `apply` gives: subnets, VNIs, virtual IPs, published ports, numbers of nodes.
//!
//! Given in the write that needs them, always the next free one in an order that follows from the state alone; what is
//! taken or used up refuses the write, by name and numbers.

mod join;
mod ports;
mod subnets;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rswarm_types::cluster::Subnet;
use rswarm_types::network::{FIRST_VNI, Ipam, LAST_VNI};
use rswarm_types::service::{EndpointMode, PortConfig, PublishMode, ServiceEndpoint};
use rswarm_types::task::{TaskAddress, TaskAddress6};
use rswarm_types::{
    Network, NetworkDriver, NetworkId, Node, NodeId, NodeState, Service, ServiceId, ServiceMode, ServiceSpec,
    Task, TaskId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::{Writer, missing};
use super::command::{ObjectRef, Rejected};
use crate::constraint;

pub use ports::INGRESS_PORTS;
pub(crate) use subnets::Routed;

/// The network of a task that names none.
const DEFAULT_NETWORK: &str = "bridge";
/// What fits in twelve bits of a mark: 0 is no node, and the last number means "this host" in the data path.
const NODE_NUMBERS: RangeInclusive<u16> = 1..=4094;
/// How long an address is kept back once it is free: neighbours, connections and name caches forget it meanwhile.
const QUARANTINE: Duration = Duration::from_secs(5);

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressHolder {
    Task(TaskId),
    /// As its virtual IP.
    Service(ServiceId),
}

/// Numbers last given, so that none is given again soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cursors {
    node_number: u16,
    vni: u32,
    service_number: u32,
}

/// Whether tasks with these ports are on the ingress network.
pub(crate) fn on_mesh(ports: &[PortConfig]) -> bool {
    ports.iter().any(|port| port.mode == PublishMode::Ingress)
}

/// Networks that a service or its tasks are attached to, the ingress network left out.
pub(super) fn attached(spec: &ServiceSpec) -> impl Iterator<Item = NetworkId> {
    spec.task.networks.iter().map(|attachment| attachment.network)
}

impl State {
    /// The network of the routing mesh.
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.indexes.ingress.and_then(|id| self.network(id))
    }

    /// The network of tasks that name none.
    pub(crate) fn default_network(&self) -> Option<&Arc<Network>> {
        self.network_by_name(DEFAULT_NETWORK)
    }

    /// A free address of a network, the first one after `last`, around the range once. An address that was just freed
    /// is so the last to be used again; during its quarantine it is given only if there is no other.
    pub(crate) fn free_address(
        &self,
        network: &Network,
        last: Option<Ipv4Addr>,
        at: Timestamp,
        given: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let ipam = network.ipam?;
        let range = range(network, ipam);
        let (first, size) = (u32::from(range.address), u32::try_from(range.size()).unwrap_or(u32::MAX));
        let start = last.filter(|last| range.contains(*last)).map_or(0, |last| u32::from(last) - first);
        let reserved = reserved(ipam);
        let free = |address: &Ipv4Addr| {
            !reserved.contains(address)
                && self.address_owner(network.id, *address).is_none()
                && !given(*address)
        };
        let kept_back = |address: &Ipv4Addr| {
            let released = self.released.get(&(network.id, *address));
            released.is_some_and(|released| released.after(QUARANTINE) > at)
        };
        let all = (1..=size).map(|step| {
            let offset = (u64::from(start) + u64::from(step)) % u64::from(size);
            Ipv4Addr::from(first + u32::try_from(offset).unwrap_or(0))
        });
        all.filter(|address| free(address)).find(|address| !kept_back(address)).or_else(|| {
            let (from, to) = ((network.id, range.address), (network.id, Ipv4Addr::BROADCAST));
            let released = self.released.range(from..=to);
            let released = released.filter(|((_, address), _)| range.contains(*address) && free(address));
            released.min_by_key(|(key, at)| (**at, **key)).map(|((_, address), _)| *address)
        })
    }

    /// Addresses that a network has for tasks and services.
    pub fn addresses_total(network: &Network) -> u64 {
        let Some(ipam) = network.ipam else { return 0 };
        let range = range(network, ipam);
        range.size() - reserved(ipam).iter().filter(|address| range.contains(**address)).count() as u64
    }

    /// The nodes that are ready and yet do not answer `node` by the data path, in words.
    pub fn unreached_peers(&self, node: &Node) -> Vec<String> {
        let Some(description) = &node.description else { return Vec::new() };
        let port = self.cluster().map_or(0, |cluster| cluster.spec.data_path_port);
        let silent = description.network.silent_peers.iter().filter_map(|id| self.node(*id));
        let up = silent
            .filter(|peer| peer.status.state == NodeState::Ready && node.status.state == NodeState::Ready);
        up.map(|peer| {
            let at = peer.description.as_ref().and_then(|description| description.network.data_path_addr);
            format!(
                "node `{}` gets no answer from node `{}` by the data path: let UDP port {port} pass between them{}",
                node.display_name(),
                peer.display_name(),
                at.map_or_else(String::new, |at| format!(", the other is at {at}")),
            )
        })
        .collect()
    }

    /// Bytes of a packet inside an overlay whose network leaves that open: what fits between any two nodes.
    pub(crate) fn overlay_mtu(&self, encrypted: bool) -> u32 {
        /// Outer Ethernet, IPv4, UDP and VXLAN headers. Source: RFC 7348, section 5.
        const VXLAN_BYTES: u32 = 50;
        /// What WireGuard puts around that: IPv4, UDP, its own header and the tag. Source: the WireGuard paper, 5.4.6.
        const WIREGUARD_BYTES: u32 = 60;
        const ETHERNET_MTU: u32 = 1500;
        /// Every host accepts as much. Source: RFC 791.
        const MTU_MIN: u32 = 576;
        let least = self.indexes.mtus.keys().next().copied().unwrap_or(ETHERNET_MTU);
        let around = VXLAN_BYTES + if encrypted { WIREGUARD_BYTES } else { 0 };
        least.saturating_sub(around).max(MTU_MIN)
    }
}

/// An address of a network as a task is given it.
pub(crate) fn task_address(ipam: Ipam, address: Ipv4Addr) -> TaskAddress {
    let ipv6 = ipam.ipv6.map(|ipv6| TaskAddress6 {
        address: ipv6.twin(ipam.subnet, address),
        prefix_len: ipv6.subnet.prefix_len,
        gateway: Some(ipv6.gateway),
        alone: ipv6.alone,
    });
    TaskAddress { address, prefix_len: ipam.subnet.prefix_len, gateway: ipam.gateway, ipv6 }
}

/// The part of a subnet that addresses are taken from.
fn range(network: &Network, ipam: Ipam) -> Subnet {
    network.spec.ipam.range.unwrap_or(ipam.subnet)
}

/// What nobody is given: the network's own address, the broadcast address, the gateway's, and those whose twins are the IPv6
/// network's own or its gateway's.
fn reserved(ipam: Ipam) -> BTreeSet<Ipv4Addr> {
    let last = Ipv4Addr::from(u32::from(ipam.subnet.address) + (ipam.subnet.size() - 1) as u32);
    let twins =
        ipam.ipv6.map(|ipv6| [Some(ipv6.first(ipam.subnet)), ipv6.of_twin(ipam.subnet, ipv6.gateway)]);
    let twins = twins.into_iter().flatten().flatten();
    [ipam.subnet.address, last, ipam.gateway].into_iter().chain(twins).collect()
}

impl Writer {
    pub(super) fn create_network(&mut self, network: &Network) -> Result<(), Rejected> {
        if self.state.networks.contains_key(&network.id) {
            return Err(Rejected::Exists { object: ObjectRef::Network(network.id) });
        }
        let spec = &network.spec;
        if let Some(held) = self.state.network_by_name(&spec.name) {
            return Err(Rejected::NameTaken { name: spec.name.clone(), by: ObjectRef::Network(held.id) });
        }
        if let Some(held) = self.state.ingress().filter(|_| spec.ingress) {
            return Err(Rejected::IngressExists { name: held.spec.name.clone() });
        }
        let mut network = Network { meta: self.new_meta(), ..network.clone() };
        let has_addresses = matches!(spec.driver, NetworkDriver::Bridge | NetworkDriver::Overlay);
        if has_addresses && network.ipam.is_none() {
            let alone = spec.ipam.ipv6.is_some_and(|ipv6| ipv6.alone);
            let subnet = match spec.ipam.subnet {
                _ if alone => self.free_numbers()?,
                Some(subnet) => self.not_taken(subnet)?,
                None => self.free_subnet()?,
            };
            let gateway = spec.ipam.gateway.or(subnet.nth(1)).unwrap_or(subnet.address);
            network.ipam = Some(Ipam { subnet, gateway, ipv6: None });
        }
        if spec.driver == NetworkDriver::Overlay {
            network.vni = Some(self.free_vni()?);
        }
        if let (Some(ipam), Some(asked)) = (&mut network.ipam, spec.ipam.ipv6) {
            ipam.ipv6 = Some(self.ipv6_side(*ipam, asked)?);
        }
        self.state.put_network(Arc::new(network));
        Ok(())
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) -> Result<(), Rejected> {
        let object = ObjectRef::Network(id);
        if !self.state.networks.contains_key(&id) {
            return Err(missing(object));
        }
        if let Some(service) = self.state.services_on(id).next() {
            return Err(Rejected::InUse { object, by: ObjectRef::Service(service) });
        }
        let attached =
            |task: &Task| !task.status.state.is_terminal() && task.networks.iter().any(|n| n.network == id);
        if let Some(task) = self.state.tasks().find(|t| attached(t)) {
            return Err(Rejected::InUse { object, by: ObjectRef::Task(task.id) });
        }
        self.state.take_network(id);
        Ok(())
    }

    fn free_vni(&mut self) -> Result<u32, Rejected> {
        let after = self.state.cursors.vni.max(FIRST_VNI - 1);
        let taken = |vni: u32| self.state.networks().any(|network| network.vni == Some(vni));
        let vni = (after + 1..=LAST_VNI).chain(FIRST_VNI..=after).find(|vni| !taken(*vni));
        let vni = vni.ok_or(Rejected::NoVni)?;
        self.state.cursors.vni = vni;
        Ok(vni)
    }

    /// Gives a node its number as soon as it takes part in overlays. None is left for more than 4094 of them, which
    /// [`Rejected::TooManyNodes`] keeps out.
    pub(super) fn number_node(&mut self, id: NodeId) {
        let Some(held) = self.state.node(id) else { return };
        let takes_part = held.description.as_ref().is_some_and(|d| d.network.data_path_addr.is_some());
        if held.number != 0 || !takes_part {
            return;
        }
        let (first, last) = (*NODE_NUMBERS.start(), *NODE_NUMBERS.end());
        let after = self.state.cursors.node_number.clamp(first - 1, last);
        let mut numbers = (after + 1..=last).chain(first..=after);
        let Some(number) = numbers.find(|number| !self.state.indexes.node_numbers.contains_key(number))
        else {
            return;
        };
        let node = Node { number, ..Node::clone(held) };
        self.state.cursors.node_number = number;
        self.state.put_node(Arc::new(node));
    }

    pub(super) fn room_for_node(&self) -> Result<(), Rejected> {
        let most = usize::from(*NODE_NUMBERS.end());
        if self.state.nodes.len() < most { Ok(()) } else { Err(Rejected::TooManyNodes { most }) }
    }

    /// What a service with `spec` is reached by; what it has already it keeps.
    pub(super) fn endpoint(
        &mut self,
        id: ServiceId,
        spec: &ServiceSpec,
        held: &ServiceEndpoint,
    ) -> Result<ServiceEndpoint, Rejected> {
        let ingress = self.state.ingress();
        for network in attached(spec) {
            let network = self.state.network(network).ok_or(missing(ObjectRef::Network(network)))?;
            if network.spec.ingress {
                return Err(Rejected::IngressByName { name: network.spec.name.clone() });
            }
        }
        if on_mesh(&spec.endpoint.ports) && ingress.is_none() {
            return Err(Rejected::NoIngress);
        }
        self.room_for_tasks(id, spec)?;
        let ports = self.published(id, spec, held)?;
        let vips = self.virtual_ips(spec, held)?;
        let number = if held.number == 0 { self.service_number() } else { held.number };
        Ok(ServiceEndpoint { vips, ports, number })
    }

    /// Refuses a service that asks for more addresses than its networks have beside what others ask for. One that asks for
    /// no more than before goes on, however tight it has become.
    fn room_for_tasks(&self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Rejected> {
        let held = self.state.service(id).map(|service| &service.spec);
        let on_ingress = self.state.indexes.ingress.filter(|_| on_mesh(&spec.endpoint.ports));
        let default = self.state.default_network().filter(|_| spec.task.networks.is_empty());
        let networks = attached(spec).chain(on_ingress).chain(default.map(|network| network.id));
        for network in networks.filter_map(|network| self.state.network(network)) {
            let asked = self.addresses_asked(spec, network);
            let before = held.map_or(0, |held| self.addresses_asked(held, network));
            if network.ipam.is_none() || asked <= before {
                continue;
            }
            let others = self.asked_by_others(id, network);
            let total = State::addresses_total(network);
            if asked + others > total {
                let subnet = network.ipam.map(Ipam::shown_subnet).unwrap_or_default();
                let (name, service) = (network.spec.name.clone(), spec.name.clone());
                let way_out = self.state.way_to_grow(network, asked + others).into();
                return Err(Rejected::NetworkTooSmall {
                    name,
                    subnet,
                    total,
                    others,
                    service,
                    asked,
                    way_out,
                });
            }
        }
        Ok(())
    }

    /// Addresses that services but for this one take on a network. Who is on the default one is not indexed, as it is not
    /// named.
    fn asked_by_others(&self, id: ServiceId, network: &Network) -> u64 {
        let asked = |other: &Arc<Service>| self.addresses_asked(&other.spec, network);
        if network.spec.name == DEFAULT_NETWORK {
            return self.state.services().filter(|other| other.id != id).map(asked).sum();
        }
        let others = self.state.services_on(network.id).filter(|other| *other != id);
        others.filter_map(|other| self.state.service(other)).map(asked).sum()
    }

    /// Addresses that a service takes on a network: one for each task, and on an overlay one of its own.
    fn addresses_asked(&self, spec: &ServiceSpec, network: &Network) -> u64 {
        let named = attached(spec).any(|id| id == network.id);
        let published = network.spec.ingress && on_mesh(&spec.endpoint.ports);
        let by_default = spec.task.networks.is_empty() && network.spec.name == DEFAULT_NETWORK;
        if !(named || published || by_default) {
            return 0;
        }
        let tasks = match spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::Global => {
                let constraints = constraint::parse_all(&spec.task.placement.constraints).unwrap_or_default();
                self.state.nodes().filter(|node| constraint::all_match(&constraints, node)).count() as u64
            }
        };
        let overlay = network.spec.driver == NetworkDriver::Overlay;
        tasks + u64::from(named && overlay && spec.endpoint.mode == EndpointMode::Vip)
    }

    /// One that no service has had yet: there are enough for a new service each second for 136 years.
    fn service_number(&mut self) -> u32 {
        let cursor = &mut self.state.cursors.service_number;
        *cursor = cursor.saturating_add(1);
        *cursor
    }

    fn virtual_ips(
        &mut self,
        spec: &ServiceSpec,
        held: &ServiceEndpoint,
    ) -> Result<BTreeMap<NetworkId, Ipv4Addr>, Rejected> {
        let mut vips = BTreeMap::new();
        if spec.endpoint.mode != EndpointMode::Vip {
            return Ok(vips);
        }
        for id in attached(spec) {
            let Some(network) = self.state.network(id).filter(|n| n.spec.driver == NetworkDriver::Overlay)
            else {
                continue;
            };
            let address = match held.vips.get(&id) {
                Some(address) => *address,
                None => {
                    let last = self.state.address_cursor(id);
                    let free = self.state.free_address(network, last, self.at, |_| false);
                    free.ok_or_else(|| full(&self.state, network))?
                }
            };
            vips.insert(id, address);
        }
        for (id, address) in vips.iter().filter(|(id, _)| !held.vips.contains_key(id)) {
            self.state.address_cursors.insert(*id, *address);
        }
        Ok(vips)
    }

    /// Keeps addresses back that `before` had and `after` has not.
    pub(super) fn release(
        &mut self,
        before: impl IntoIterator<Item = (NetworkId, Ipv4Addr)>,
        after: &[(NetworkId, Ipv4Addr)],
    ) {
        for freed in before {
            if !after.contains(&freed) {
                self.state.keep_back(freed, self.at);
            }
        }
    }

    /// Forgets the quarantines that are over.
    pub(super) fn end_quarantines(&mut self) {
        while let Some((at, network, address)) = self.state.indexes.quarantine.get_min().copied()
            && at.after(QUARANTINE) <= self.at
        {
            self.state.indexes.quarantine.remove(&(at, network, address));
            self.state.released.remove(&(network, address));
        }
    }
}

fn full(state: &State, network: &Network) -> Rejected {
    let (used, total) = (state.addresses_used(network.id), State::addresses_total(network));
    Rejected::NetworkFull {
        name: network.spec.name.clone(),
        subnet: network.ipam.map(Ipam::shown_subnet).unwrap_or_default(),
        used,
        total,
        way_out: state.way_to_grow(network, total + 1).into(),
    }
}
