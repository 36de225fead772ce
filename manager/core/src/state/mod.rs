//! The cluster's state: persistent tables of objects and the indexes that follow from them.
//!
//! [`apply`] is the only writer; everyone else reads snapshots, and a snapshot is a clone that costs a few pointers.
//! Secondary indexes follow from the tables and are kept out of snapshots; [`State::check`] verifies that they agree.

mod apply;
mod check;
mod command;
mod index;
mod network;

#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;
use rswarm_types::{
    Cluster, Network, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId, TaskSpec, TaskState,
    Timestamp, Version,
};
use serde::{Deserialize, Serialize};

pub use apply::apply;
pub(crate) use apply::takes_tasks;
pub use check::Violation;
pub use command::{Applied, Command, NewTask, ObjectRef, Rejected, ServiceChange, Write};
pub use index::NodeUsage;
pub(crate) use index::{fixed_host_ports, overlays};
pub use network::{AddressHolder, INGRESS_PORTS};
pub(crate) use network::{Routed, on_mesh, task_address};

/// Everything the managers agree on, as of `index`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Snapshot", into = "Snapshot")]
pub struct State {
    /// Index of the last command applied, rejected ones included.
    pub index: Version,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: OrdMap<NodeId, Arc<Node>>,
    pub(crate) services: OrdMap<ServiceId, Arc<Service>>,
    pub(crate) tasks: OrdMap<TaskId, Arc<Task>>,
    pub(crate) networks: OrdMap<NetworkId, Arc<Network>>,
    /// Where the search for a free address last ended, so that an address is not handed out again at once.
    pub(crate) address_cursors: OrdMap<NetworkId, Ipv4Addr>,
    /// Addresses that are free again and kept back for a while, with the time they were freed.
    pub(crate) released: OrdMap<(NetworkId, Ipv4Addr), Timestamp>,
    cursors: network::Cursors,
    pub(crate) indexes: index::Indexes,
}

/// What a snapshot holds: the tables without the indexes. Fields may be added, with a default.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    index: Version,
    #[serde(default)]
    cluster: Option<Arc<Cluster>>,
    #[serde(default)]
    nodes: Vec<Arc<Node>>,
    #[serde(default)]
    services: Vec<Arc<Service>>,
    #[serde(default)]
    tasks: Vec<Arc<Task>>,
    #[serde(default)]
    networks: Vec<Arc<Network>>,
    #[serde(default)]
    address_cursors: Vec<(NetworkId, Ipv4Addr)>,
    #[serde(default)]
    released: Vec<(NetworkId, Ipv4Addr, Timestamp)>,
    #[serde(default)]
    cursors: network::Cursors,
}

impl From<State> for Snapshot {
    fn from(state: State) -> Self {
        Self {
            index: state.index,
            cluster: state.cluster,
            nodes: state.nodes.values().cloned().collect(),
            services: state.services.values().cloned().collect(),
            tasks: state.tasks.values().cloned().collect(),
            networks: state.networks.values().cloned().collect(),
            address_cursors: state.address_cursors.iter().map(|(k, v)| (*k, *v)).collect(),
            released: state.released.iter().map(|((n, address), at)| (*n, *address, *at)).collect(),
            cursors: state.cursors,
        }
    }
}

impl From<Snapshot> for State {
    fn from(snapshot: Snapshot) -> Self {
        let (index, cluster, cursors) = (snapshot.index, snapshot.cluster, snapshot.cursors);
        let mut state = Self { index, cluster, cursors, ..Self::default() };
        for node in snapshot.nodes {
            state.put_node(node);
        }
        for (network, address, at) in snapshot.released {
            state.keep_back((network, address), at);
        }
        state.address_cursors = snapshot.address_cursors.into_iter().collect();
        for network in snapshot.networks {
            state.put_network(network);
        }
        for mut service in snapshot.services {
            // Of a snapshot from before endpoints were kept, when all ports were the nodes'.
            if service.endpoint.ports.is_empty() && !service.spec.endpoint.ports.is_empty() {
                let service = Arc::make_mut(&mut service);
                service.endpoint.ports.clone_from(&service.spec.endpoint.ports);
            }
            state.put_service(service);
        }
        for mut task in snapshot.tasks {
            state.share_spec(&mut task);
            state.put_task(task);
        }
        state
    }
}

impl State {
    /// The cluster object; `None` before `init`.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// All services by id.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All tasks by id, history included.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// All networks by id.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }

    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }

    /// Number of tasks, history included.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Number of nodes in whatever state.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.indexes.service_names.get(name).and_then(|id| self.service(*id))
    }

    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.indexes.network_names.get(name).and_then(|id| self.network(*id))
    }

    /// Tasks of a service by slot, then id; history included. Also those of a service that is gone.
    pub fn tasks_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes.by_service.get(&service).into_iter().flat_map(OrdMap::values)
    }

    /// Tasks that have, or are bound to, a node, by id; history included.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes.by_node.get(&node).into_iter().flat_map(OrdMap::values)
    }

    /// Tasks that want to run and have not been assigned: `new` and `pending` ones with a desired state up to
    /// `running`, by id.
    pub fn waiting_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes.waiting.values()
    }

    /// Services that have tasks; a service that is gone but has some left is among them.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = ServiceId> {
        self.indexes.by_service.keys().copied()
    }

    /// What the tasks assigned to a node hold of it.
    pub fn usage(&self, node: NodeId) -> Option<&NodeUsage> {
        self.indexes.usage.get(&node)
    }

    /// The live task or the service that has an address.
    pub fn address_owner(&self, network: NetworkId, address: Ipv4Addr) -> Option<AddressHolder> {
        self.indexes.addresses.get(&(network, address)).copied()
    }

    /// Services attached to a network; of the ingress network, those that publish on the mesh.
    pub fn services_on(&self, network: NetworkId) -> impl Iterator<Item = ServiceId> {
        self.indexes.services_on.get(&network).into_iter().flatten().copied()
    }

    /// Tasks on an overlay that have a node and have not been seen to end, by id.
    pub fn endpoints(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes.by_network.get(&network).into_iter().flat_map(OrdMap::values)
    }

    /// Nodes with such a task.
    pub fn nodes_on(&self, network: NetworkId) -> impl Iterator<Item = NodeId> {
        let (first, last) = (NodeId::from_bytes([0; 16]), NodeId::from_bytes([255; 16]));
        self.indexes.nodes_on.range((network, first)..=(network, last)).map(|((_, node), _)| *node)
    }

    /// How many addresses of a network tasks and services have.
    pub fn addresses_used(&self, network: NetworkId) -> usize {
        let (first, last) = ((network, Ipv4Addr::UNSPECIFIED), (network, Ipv4Addr::BROADCAST));
        self.indexes.addresses.range(first..=last).count()
    }

    /// Where the search for a free address last ended.
    pub fn address_cursor(&self, network: NetworkId) -> Option<Ipv4Addr> {
        self.address_cursors.get(&network).copied()
    }

    /// The service's task spec, shared with the tasks made from it.
    pub(crate) fn template(&self, service: ServiceId) -> Option<&Arc<TaskSpec>> {
        self.indexes.templates.get(&service)
    }
}

/// Whether a task holds its node's resources: it was assigned and has not been seen to end.
pub fn holds_resources(task: &Task) -> bool {
    task.node_id.is_some() && task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

/// Whether a task is meant to run: told to, and not seen to end.
pub fn is_active(task: &Task) -> bool {
    task.desired <= TaskState::Running && !task.status.state.is_terminal()
}
