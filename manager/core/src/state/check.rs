//! `check`: every rule of the state that a bug could break. Tests and simulation call it after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use rswarm_types::network::Ipam;
use rswarm_types::service::{EndpointMode, PortConfig, PublishMode};
use rswarm_types::{Network, NetworkDriver, NetworkId, NodeId, ServiceId, TaskId, TaskState, Version};

use super::command::ObjectRef;
use super::index::held_addresses;
use super::{State, holds_resources, on_mesh};

/// Who has each address, as far as it was looked at.
type Owners = BTreeMap<(NetworkId, Ipv4Addr), ObjectRef>;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("index `{0}` disagrees with the tables")]
    Index(&'static str),
    #[error("services `{0}` and `{1}` have the same name")]
    ServiceName(ServiceId, ServiceId),
    #[error("networks `{0}` and `{1}` have the same name")]
    NetworkName(NetworkId, NetworkId),
    #[error("{0} and {1} have the same address on one network")]
    Address(ObjectRef, ObjectRef),
    #[error("{0} has an address outside of its network, or the network's own")]
    AddressRange(ObjectRef),
    #[error("address {1} of network `{0}` is kept back and in use")]
    KeptBack(NetworkId, Ipv4Addr),
    #[error("services `{0}` and `{1}` publish the same port")]
    Port(ServiceId, ServiceId),
    #[error("service `{0}` has not what its spec asks for, or more")]
    Endpoint(ServiceId),
    #[error("networks `{0}` and `{1}` have the same VNI, overlap, or are both the ingress network")]
    Network(NetworkId, NetworkId),
    #[error("nodes `{0}` and `{1}` have the same number")]
    NodeNumber(NodeId, NodeId),
    #[error("task `{0}` is {1} and has no node")]
    NoNode(TaskId, TaskState),
    #[error("task `{0}` is {1} on node `{2}`, which does not exist")]
    GhostNode(TaskId, TaskState, NodeId),
    #[error("task `{0}` is {1} and has not been given its networks")]
    NoNetworks(TaskId, TaskState),
    #[error("an object has version {0}, above the state's {1}")]
    FutureVersion(Version, Version),
}

impl State {
    /// Every broken invariant; empty unless there is a bug. Costs a walk through all tables.
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_indexes(&mut found);
        self.check_names(&mut found);
        let mut owners = BTreeMap::new();
        self.check_services(&mut owners, &mut found);
        self.check_tasks(&mut owners, &mut found);
        self.check_networks(&mut found);
        let versions = (self.cluster().map(|c| c.meta.version).into_iter())
            .chain(self.nodes().map(|n| n.meta.version))
            .chain(self.services().flat_map(|s| [s.meta.version, s.spec_version]))
            .chain(self.tasks().map(|t| t.meta.version))
            .chain(self.networks().map(|n| n.meta.version));
        found.extend(versions.filter(|v| *v > self.index).map(|v| Violation::FutureVersion(v, self.index)));
        found
    }

    fn check_indexes(&self, found: &mut Vec<Violation>) {
        let rebuilt = State::from(super::Snapshot::from(self.clone()));
        let (held, fresh) = (&self.indexes, &rebuilt.indexes);
        for (name, agrees) in [
            ("service names", held.service_names == fresh.service_names),
            ("network names", held.network_names == fresh.network_names),
            ("templates", held.templates == fresh.templates),
            ("tasks by service", held.by_service == fresh.by_service),
            ("tasks by node", held.by_node == fresh.by_node),
            ("waiting tasks", held.waiting == fresh.waiting),
            ("node usage", held.usage == fresh.usage),
            ("addresses", held.addresses == fresh.addresses),
            ("node numbers", held.node_numbers == fresh.node_numbers),
            ("MTUs", held.mtus == fresh.mtus),
            ("ingress network", held.ingress == fresh.ingress),
            ("services by network", held.services_on == fresh.services_on),
            ("ingress ports", held.ingress_ports == fresh.ingress_ports),
            ("host ports", held.host_ports == fresh.host_ports),
            ("endpoints by network", held.by_network == fresh.by_network),
            ("nodes by network", held.nodes_on == fresh.nodes_on),
            ("quarantine", held.quarantine == fresh.quarantine),
        ] {
            if !agrees {
                found.push(Violation::Index(name));
            }
        }
    }

    fn check_names(&self, found: &mut Vec<Violation>) {
        let mut services = BTreeMap::new();
        for service in self.services() {
            if let Some(other) = services.insert(&service.spec.name, service.id) {
                found.push(Violation::ServiceName(other, service.id));
            }
        }
        let mut networks = BTreeMap::new();
        for network in self.networks() {
            if let Some(other) = networks.insert(&network.spec.name, network.id) {
                found.push(Violation::NetworkName(other, network.id));
            }
        }
    }

    fn check_services(&self, owners: &mut Owners, found: &mut Vec<Violation>) {
        let mut ports = BTreeMap::new();
        for service in self.services() {
            for (network, address) in &service.endpoint.vips {
                self.check_address((*network, *address), ObjectRef::Service(service.id), owners, found);
            }
            let mesh = service.endpoint.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
            for port in mesh {
                if let Some(other) = ports.insert((port.published, port.protocol), service.id) {
                    found.push(Violation::Port(other, service.id));
                }
            }
            let kept = |(asked, given): (&PortConfig, &PortConfig)| {
                let open = asked.published.is_none() && asked.mode == PublishMode::Ingress;
                let given_open = PortConfig { published: asked.published, ..*given };
                given_open == *asked && if open { given.published.is_some() } else { given == asked }
            };
            let (asked, given) = (&service.spec.endpoint.ports, &service.endpoint.ports);
            let overlays = service.spec.task.networks.iter().filter_map(|at| self.network(at.network));
            let overlays = overlays.filter(|network| network.spec.driver == NetworkDriver::Overlay);
            let overlays: BTreeSet<NetworkId> = match service.spec.endpoint.mode {
                EndpointMode::Vip => overlays.map(|network| network.id).collect(),
                EndpointMode::Dnsrr => BTreeSet::new(),
            };
            if asked.len() != given.len()
                || !asked.iter().zip(given).all(kept)
                || !overlays.iter().eq(service.endpoint.vips.keys())
            {
                found.push(Violation::Endpoint(service.id));
            }
        }
    }

    fn check_networks(&self, found: &mut Vec<Violation>) {
        let overlays: Vec<_> =
            self.networks().filter(|network| network.spec.driver == NetworkDriver::Overlay).collect();
        for (i, network) in overlays.iter().enumerate() {
            let clash = |other: &&&Arc<Network>| {
                let overlap = match (network.ipam, other.ipam) {
                    (Some(one), Some(two)) => {
                        let both = one.ipv6.zip(two.ipv6);
                        one.subnet.overlaps(two.subnet)
                            || both.is_some_and(|(one, two)| one.subnet.overlaps(two.subnet))
                    }
                    _ => true,
                };
                overlap || network.vni == other.vni || (network.spec.ingress && other.spec.ingress)
            };
            if let Some(other) = overlays[i + 1..].iter().find(clash) {
                found.push(Violation::Network(network.id, other.id));
            }
        }
        let mut numbers = BTreeMap::new();
        for node in self.nodes().filter(|node| node.number != 0) {
            if let Some(other) = numbers.insert(node.number, node.id) {
                found.push(Violation::NodeNumber(other, node.id));
            }
        }
        for (network, address) in self.released.keys() {
            if self.network(*network).is_none() || self.address_owner(*network, *address).is_some() {
                found.push(Violation::KeptBack(*network, *address));
            }
        }
    }

    fn check_address(
        &self,
        key: (NetworkId, Ipv4Addr),
        owner: ObjectRef,
        owners: &mut Owners,
        found: &mut Vec<Violation>,
    ) {
        if let Some(other) = owners.insert(key, owner) {
            found.push(Violation::Address(other, owner));
        }
        let ipam = self.network(key.0).and_then(|network| network.ipam);
        let fits = |ipam: Ipam| {
            let twin = ipam.twin(key.1);
            let twin_fits = ipam.ipv6.is_none_or(|ipv6| {
                twin.is_some_and(|t| {
                    ipv6.subnet.contains(t) && ![ipv6.gateway, ipv6.subnet.address].contains(&t)
                })
            });
            ipam.subnet.contains(key.1) && ipam.gateway != key.1 && twin_fits
        };
        if !ipam.is_some_and(fits) {
            found.push(Violation::AddressRange(owner));
        }
    }

    fn check_tasks(&self, owners: &mut Owners, found: &mut Vec<Violation>) {
        for task in self.tasks() {
            let state = task.status.state;
            match task.node_id {
                None if state >= TaskState::Assigned => found.push(Violation::NoNode(task.id, state)),
                Some(node) if holds_resources(task) && self.node(node).is_none() => {
                    found.push(Violation::GhostNode(task.id, state, node));
                }
                _ => {}
            }
            let mesh = usize::from(on_mesh(&task.ports));
            let of_service = task.networks.iter().filter(|network| !network.joined).count();
            if state > TaskState::New && of_service != task.spec.networks.len().max(1) + mesh {
                // A task without networks of its own is on the default bridge, if the cluster has one.
                if !(task.spec.networks.is_empty() && of_service == mesh) {
                    found.push(Violation::NoNetworks(task.id, state));
                }
            }
            for address in held_addresses(task) {
                self.check_address(address, ObjectRef::Task(task.id), owners, found);
            }
        }
    }
}
