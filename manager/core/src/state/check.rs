//! `check`: every rule of the state that a bug could break. Tests and simulation call it after every step.

use std::collections::BTreeMap;

use rswarm_types::{NetworkId, NodeId, ServiceId, TaskId, TaskState, Version};

use super::index::held_addresses;
use super::{State, holds_resources};

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("index `{0}` disagrees with the tables")]
    Index(&'static str),
    #[error("services `{0}` and `{1}` have the same name")]
    ServiceName(ServiceId, ServiceId),
    #[error("networks `{0}` and `{1}` have the same name")]
    NetworkName(NetworkId, NetworkId),
    #[error("tasks `{0}` and `{1}` have the same address on one network")]
    Address(TaskId, TaskId),
    #[error("task `{0}` has an address outside of its network")]
    AddressRange(TaskId),
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
        self.check_tasks(&mut found);
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

    fn check_tasks(&self, found: &mut Vec<Violation>) {
        let mut owners = BTreeMap::new();
        for task in self.tasks() {
            let state = task.status.state;
            match task.node_id {
                None if state >= TaskState::Assigned => found.push(Violation::NoNode(task.id, state)),
                Some(node) if holds_resources(task) && self.node(node).is_none() => {
                    found.push(Violation::GhostNode(task.id, state, node));
                }
                _ => {}
            }
            if state > TaskState::New && task.networks.len() != task.spec.networks.len().max(1) {
                // A task without networks of its own is on the default bridge, if the cluster has one.
                if !(task.spec.networks.is_empty() && task.networks.is_empty()) {
                    found.push(Violation::NoNetworks(task.id, state));
                }
            }
            for address in held_addresses(task) {
                if let Some(other) = owners.insert(address, task.id) {
                    found.push(Violation::Address(other, task.id));
                }
                let subnet = self.network(address.0).and_then(|n| n.ipam).map(|ipam| ipam.subnet);
                if !subnet.is_some_and(|subnet| subnet.contains(address.1)) {
                    found.push(Violation::AddressRange(task.id));
                }
            }
        }
    }
}
