//! Secondary indexes: all that follows from the tables and would cost a walk through them to find.
//!
//! Changed only together with the tables, by the `put_*` and `take_*` functions here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use rswarm_types::service::{Protocol, PublishMode};
use rswarm_types::{
    Network, NetworkDriver, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId, TaskSpec, TaskState,
    Timestamp,
};

use super::network::{AddressHolder, attached, on_mesh};
use super::{State, holds_resources, is_active};

/// What the tasks assigned to a node hold of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeUsage {
    /// Tasks assigned and not seen to end.
    pub tasks: u32,
    /// Sum of the reservations of tasks assigned and not seen to end.
    pub nano_cpus: u64,
    /// Likewise, in bytes.
    pub memory_bytes: u64,
    /// Tasks assigned, told to run and not seen to end.
    pub active: u32,
    /// Host-mode ports of tasks assigned and not seen to end, with the number of tasks that claim each.
    pub host_ports: BTreeMap<(u16, Protocol), u32>,
}

/// See the accessors of [`State`] for what each is for.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Indexes {
    pub service_names: OrdMap<String, ServiceId>,
    pub network_names: OrdMap<String, NetworkId>,
    pub templates: OrdMap<ServiceId, Arc<TaskSpec>>,
    pub by_service: OrdMap<ServiceId, OrdMap<(u64, TaskId), Arc<Task>>>,
    pub by_node: OrdMap<NodeId, OrdMap<TaskId, Arc<Task>>>,
    pub waiting: OrdMap<TaskId, Arc<Task>>,
    pub usage: OrdMap<NodeId, NodeUsage>,
    pub addresses: OrdMap<(NetworkId, Ipv4Addr), AddressHolder>,
    pub node_numbers: OrdMap<u16, NodeId>,
    /// How many nodes that take part in overlays have an uplink of each MTU.
    pub mtus: OrdMap<u32, u32>,
    pub ingress: Option<NetworkId>,
    pub services_on: OrdMap<NetworkId, OrdSet<ServiceId>>,
    pub ingress_ports: OrdMap<(u16, Protocol), ServiceId>,
    pub host_ports: OrdMap<(u16, Protocol), OrdSet<ServiceId>>,
    /// Endpoints of overlays.
    pub by_network: OrdMap<NetworkId, OrdMap<TaskId, Arc<Task>>>,
    /// How many of them are on each node.
    pub nodes_on: OrdMap<(NetworkId, NodeId), u32>,
    /// The released addresses in the order in which they were.
    pub quarantine: OrdSet<(Timestamp, NetworkId, Ipv4Addr)>,
}

/// Host-mode ports with a fixed number: the ones that can clash.
pub(crate) fn fixed_host_ports(task: &Task) -> impl Iterator<Item = (u16, Protocol)> {
    task.ports
        .iter()
        .filter(|port| port.mode == PublishMode::Host)
        .filter_map(|port| port.published.map(|number| (number, port.protocol)))
}

/// Addresses a task occupies: those it was given, until it is seen to end.
pub(crate) fn held_addresses(task: &Task) -> impl Iterator<Item = (NetworkId, Ipv4Addr)> {
    let live = !task.status.state.is_terminal();
    task.networks
        .iter()
        .filter(move |_| live)
        .filter_map(|network| network.address.map(|a| (network.network, a.address)))
}

/// Overlays on which a task can be reached: it is or will be there, under an address.
pub(crate) fn overlays(task: &Task) -> impl Iterator<Item = (NetworkId, Ipv4Addr)> {
    let there = holds_resources(task);
    let overlays = task.networks.iter().filter(|network| network.driver == NetworkDriver::Overlay);
    overlays.filter(move |_| there).filter_map(|network| Some((network.network, network.address?.address)))
}

/// Whether a task wants to run and has no confirmed node yet.
fn is_waiting(task: &Task) -> bool {
    task.status.state < TaskState::Assigned && task.desired <= TaskState::Running
}

impl State {
    pub(crate) fn put_service(&mut self, service: Arc<Service>) {
        let template = match self.indexes.templates.get(&service.id) {
            Some(held) if **held == service.spec.task => Arc::clone(held),
            _ => Arc::new(service.spec.task.clone()),
        };
        if let Some(held) = self.services.get(&service.id).cloned() {
            self.unlink_service(&held);
        }
        self.indexes.templates.insert(service.id, template);
        self.indexes.service_names.insert(service.spec.name.clone(), service.id);
        for network in self.networks_of(&service) {
            self.indexes.services_on.entry(network).or_default().insert(service.id);
        }
        for (network, address) in &service.endpoint.vips {
            self.indexes.addresses.insert((*network, *address), AddressHolder::Service(service.id));
            self.take_back((*network, *address));
        }
        for port in &service.endpoint.ports {
            let Some(number) = port.published else { continue };
            let key = (number, port.protocol);
            match port.mode {
                PublishMode::Ingress => drop(self.indexes.ingress_ports.insert(key, service.id)),
                PublishMode::Host => {
                    self.indexes.host_ports.entry(key).or_default().insert(service.id);
                }
            }
        }
        self.services.insert(service.id, service);
    }

    /// Networks that a service is attached to, ingress included if it publishes on the mesh.
    pub(crate) fn networks_of(&self, service: &Service) -> Vec<NetworkId> {
        let mesh = self.indexes.ingress.filter(|_| on_mesh(&service.spec.endpoint.ports));
        attached(&service.spec).chain(mesh).collect()
    }

    fn unlink_service(&mut self, service: &Service) {
        for network in self.networks_of(service) {
            remove_from(&mut self.indexes.services_on, &network, &service.id);
        }
        for (network, address) in &service.endpoint.vips {
            self.indexes.addresses.remove(&(*network, *address));
        }
        for port in &service.endpoint.ports {
            let Some(number) = port.published else { continue };
            let key = (number, port.protocol);
            match port.mode {
                PublishMode::Ingress => drop(self.indexes.ingress_ports.remove(&key)),
                PublishMode::Host => remove_from(&mut self.indexes.host_ports, &key, &service.id),
            }
        }
    }

    pub(crate) fn take_service(&mut self, id: ServiceId) -> Option<Arc<Service>> {
        let service = self.services.remove(&id)?;
        self.unlink_service(&service);
        self.indexes.templates.remove(&id);
        self.indexes.service_names.remove(&service.spec.name);
        Some(service)
    }

    pub(crate) fn put_network(&mut self, network: Arc<Network>) {
        self.indexes.network_names.insert(network.spec.name.clone(), network.id);
        if network.spec.ingress {
            self.indexes.ingress = Some(network.id);
        }
        self.networks.insert(network.id, network);
    }

    pub(crate) fn take_network(&mut self, id: NetworkId) -> Option<Arc<Network>> {
        let network = self.networks.remove(&id)?;
        self.indexes.network_names.remove(&network.spec.name);
        self.address_cursors.remove(&id);
        if self.indexes.ingress == Some(id) {
            self.indexes.ingress = None;
        }
        let (first, last) = ((id, Ipv4Addr::UNSPECIFIED), (id, Ipv4Addr::BROADCAST));
        let released: Vec<_> = self.released.range(first..=last).map(|(key, _)| *key).collect();
        released.into_iter().for_each(|key| self.take_back(key));
        Some(network)
    }

    pub(crate) fn put_node(&mut self, node: Arc<Node>) {
        if let Some(held) = self.nodes.get(&node.id).cloned() {
            self.unlink_node(&held);
        }
        if node.number != 0 {
            self.indexes.node_numbers.insert(node.number, node.id);
        }
        if let Some(mtu) = uplink_mtu(&node) {
            *self.indexes.mtus.entry(mtu).or_insert(0) += 1;
        }
        self.nodes.insert(node.id, node);
    }

    pub(crate) fn take_node(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.remove(&id) {
            self.unlink_node(&node);
        }
    }

    fn unlink_node(&mut self, node: &Node) {
        self.indexes.node_numbers.remove(&node.number);
        if let Some(mtu) = uplink_mtu(node)
            && let Some(count) = self.indexes.mtus.get_mut(&mtu)
        {
            *count -= 1;
            if *count == 0 {
                self.indexes.mtus.remove(&mtu);
            }
        }
    }

    /// Keeps a free address back from `at` on.
    pub(crate) fn keep_back(&mut self, key: (NetworkId, Ipv4Addr), at: Timestamp) {
        self.take_back(key);
        self.released.insert(key, at);
        self.indexes.quarantine.insert((at, key.0, key.1));
    }

    fn take_back(&mut self, key: (NetworkId, Ipv4Addr)) {
        if let Some(at) = self.released.remove(&key) {
            self.indexes.quarantine.remove(&(at, key.0, key.1));
        }
    }

    /// Lets a task read from a snapshot share its spec with its service again.
    pub(crate) fn share_spec(&self, task: &mut Arc<Task>) {
        if let Some(template) = self.indexes.templates.get(&task.service_id)
            && *template == task.spec
        {
            Arc::make_mut(task).spec = Arc::clone(template);
        }
    }

    pub(crate) fn put_task(&mut self, task: Arc<Task>) {
        if let Some(old) = self.tasks.get(&task.id).cloned() {
            self.unlink(&old, Some(&task));
        }
        self.link(&task);
        if !self.released.is_empty() {
            held_addresses(&task).for_each(|address| self.take_back(address));
        }
        self.tasks.insert(task.id, task);
    }

    pub(crate) fn take_task(&mut self, id: TaskId) -> Option<Arc<Task>> {
        let task = self.tasks.remove(&id)?;
        self.unlink(&task, None);
        Some(task)
    }

    fn link(&mut self, task: &Arc<Task>) {
        let indexes = &mut self.indexes;
        let of_service = indexes.by_service.entry(task.service_id).or_default();
        of_service.insert((task.slot, task.id), Arc::clone(task));
        if let Some(node) = task.node_id {
            indexes.by_node.entry(node).or_default().insert(task.id, Arc::clone(task));
        }
        if is_waiting(task) {
            indexes.waiting.insert(task.id, Arc::clone(task));
        }
        for address in held_addresses(task) {
            indexes.addresses.insert(address, AddressHolder::Task(task.id));
        }
        for (network, _) in overlays(task) {
            indexes.by_network.entry(network).or_default().insert(task.id, Arc::clone(task));
            if let Some(node) = task.node_id {
                *indexes.nodes_on.entry((network, node)).or_insert(0) += 1;
            }
        }
        if let Some(node) = task.node_id.filter(|_| holds_resources(task)) {
            let usage = indexes.usage.entry(node).or_default();
            usage.tasks += 1;
            usage.nano_cpus += task.spec.reservations.nano_cpus;
            usage.memory_bytes += task.spec.reservations.memory_bytes;
            usage.active += u32::from(is_active(task));
            for port in fixed_host_ports(task) {
                *usage.host_ports.entry(port).or_insert(0) += 1;
            }
        }
    }

    /// Takes a task out of the indexes; what `next`, its new form, will overwrite anyway may stay.
    fn unlink(&mut self, task: &Task, next: Option<&Task>) {
        let indexes = &mut self.indexes;
        for (network, _) in overlays(task) {
            if !next.is_some_and(|next| overlays(next).any(|(id, _)| id == network))
                && let Some(on_network) = indexes.by_network.get_mut(&network)
            {
                on_network.remove(&task.id);
                if on_network.is_empty() {
                    indexes.by_network.remove(&network);
                }
            }
            if let Some(node) = task.node_id
                && let Some(count) = indexes.nodes_on.get_mut(&(network, node))
            {
                *count -= 1;
                if *count == 0 {
                    indexes.nodes_on.remove(&(network, node));
                }
            }
        }
        if next.is_none() {
            if let Some(of_service) = indexes.by_service.get_mut(&task.service_id) {
                of_service.remove(&(task.slot, task.id));
                if of_service.is_empty() {
                    indexes.by_service.remove(&task.service_id);
                }
            }
            if let Some(node) = task.node_id
                && let Some(on_node) = indexes.by_node.get_mut(&node)
            {
                on_node.remove(&task.id);
                if on_node.is_empty() {
                    indexes.by_node.remove(&node);
                }
            }
        }
        if is_waiting(task) && !next.is_some_and(is_waiting) {
            indexes.waiting.remove(&task.id);
        }
        if !next.is_some_and(|next| held_addresses(next).eq(held_addresses(task))) {
            for address in held_addresses(task) {
                indexes.addresses.remove(&address);
            }
        }
        if let Some(node) = task.node_id.filter(|_| holds_resources(task))
            && let Some(usage) = indexes.usage.get_mut(&node)
        {
            usage.tasks -= 1;
            usage.nano_cpus -= task.spec.reservations.nano_cpus;
            usage.memory_bytes -= task.spec.reservations.memory_bytes;
            usage.active -= u32::from(is_active(task));
            for port in fixed_host_ports(task) {
                if let Some(count) = usage.host_ports.get_mut(&port) {
                    *count -= 1;
                    if *count == 0 {
                        usage.host_ports.remove(&port);
                    }
                }
            }
            if usage.tasks == 0 {
                indexes.usage.remove(&node);
            }
        }
    }
}

/// MTU of a node's way to the others, if it takes part in overlays and knows.
fn uplink_mtu(node: &Node) -> Option<u32> {
    let facts = &node.description.as_ref()?.network;
    (facts.data_path_addr.is_some() && facts.mtu > 0).then_some(facts.mtu)
}

fn remove_from<K: Ord + Clone, V: Ord + Clone>(sets: &mut OrdMap<K, OrdSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
