//! `apply`: the one function that changes [`State`].
//!
//! It runs on every manager for every log entry, so its result follows from state, index and command alone. Writes
//! of one command see each other in order. See [`Write`] for the rule of each.

use std::sync::Arc;
use std::time::Duration;

use rswarm_types::service::{ServiceEndpoint, UpdateState};
use rswarm_types::task::TaskNetwork;
use rswarm_types::{
    Availability, Cluster, Meta, Node, NodeId, NodeState, Role, Service, ServiceId, ServiceMode, ServiceSpec,
    Task, TaskId, TaskState, TaskStatus, Timestamp, UpdateStatus, Version,
};

use super::State;
use super::command::{Applied, Command, NewTask, ObjectRef, Rejected, ServiceChange, Write};
use super::index::held_addresses;

/// How long past the longest life of its certificate a removed node stays outlawed: allows for wrong clocks.
/// Source: swarm-parity 3.10.
const REMOVED_NODE_MARGIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Applies one command as log entry `index`.
///
/// All writes take effect, or none does and the reason is returned; `index` is recorded either way.
pub fn apply(state: &State, index: Version, command: &Command) -> (State, Result<Applied, Rejected>) {
    let mut next = state.clone();
    next.index = index;
    let mut writer = Writer { state: next, index, at: command.at };
    writer.end_quarantines();
    for write in &command.writes {
        if let Err(rejected) = writer.write(write) {
            let mut unchanged = state.clone();
            unchanged.index = index;
            return (unchanged, Err(rejected));
        }
    }
    (writer.state, Ok(Applied { index }))
}

/// Whether the scheduler may give a node new tasks.
pub(crate) fn takes_tasks(node: &Node) -> bool {
    node.spec.availability == Availability::Active && node.status.state == NodeState::Ready
}

/// Applies the writes of one command.
pub(super) struct Writer {
    pub(super) state: State,
    pub(super) index: Version,
    pub(super) at: Timestamp,
}

impl Writer {
    fn write(&mut self, write: &Write) -> Result<(), Rejected> {
        match write {
            Write::PutCluster { cluster, expected } => self.put_cluster(cluster, *expected)?,
            Write::CreateNode(node) => self.create_node(node)?,
            Write::UpdateNode { id, spec, expected } => {
                let held = self.state.node(*id).ok_or(missing(ObjectRef::Node(*id)))?;
                expect_version(ObjectRef::Node(*id), *expected, held.meta.version)?;
                let mut node = Node { spec: spec.clone(), ..Node::clone(held) };
                node.meta = Meta { version: self.index, updated_at: self.at, ..node.meta };
                self.state.put_node(Arc::new(node));
            }
            Write::RemoveNode { id, force } => self.remove_node(*id, *force)?,
            Write::SetNodeStatus { id, status } => self.note_node(*id, |node| {
                node.status = status.clone();
            }),
            Write::SetNodeDescription { id, description } => {
                self.note_node(*id, |node| node.description = Some(description.clone()));
                self.number_node(*id);
            }
            Write::SetNodeRole { id, role } => self.set_node_role(*id, *role),
            Write::SetNodeManager { id, manager } => self.note_node(*id, |node| {
                node.manager.clone_from(manager);
            }),
            Write::CreateNetwork(network) => self.create_network(network)?,
            Write::UpdateNetwork { id, spec, expected } => self.update_network(*id, spec, *expected)?,
            Write::RemoveNetwork { id } => self.remove_network(*id)?,
            Write::CreateService { id, spec } => self.create_service(*id, spec)?,
            Write::UpdateService { id, spec, expected, change } => {
                self.update_service(*id, spec, *expected, *change)?;
            }
            Write::RemoveService { id, expected } => {
                let object = ObjectRef::Service(*id);
                let found = self.state.service(*id).ok_or(missing(object))?.meta.version;
                expect_version(object, expected.unwrap_or(found), found)?;
                if let Some(service) = self.state.take_service(*id) {
                    self.release(service.endpoint.vips.clone(), &[]);
                }
            }
            Write::RollBackService { id, spec_version, message } => {
                self.roll_back_service(*id, *spec_version, message);
            }
            Write::SetUpdateStatus { id, spec_version, status } => {
                self.change_service(*id, *spec_version, |service| {
                    service.update_status = Some(status.clone());
                });
            }
            Write::CreateTask(task) => self.create_task(task),
            Write::AllocateTask { id, networks } => self.allocate_task(*id, networks),
            Write::AssignTask { id, node } => self.assign_task(*id, *node),
            Write::SetTaskDesired { id, desired } => self.change_task(*id, |task| {
                let raise = *desired > task.desired;
                if raise {
                    task.desired = *desired;
                }
                raise
            }),
            Write::SetTaskStatus { id, status } => self.set_task_status(*id, status),
            Write::RemoveTask { id } => self.remove_task(*id),
            Write::ConnectTask { id, network, aliases, address } => {
                self.connect_task(*id, *network, aliases, *address)?;
            }
            Write::DisconnectTask { id, network } => self.disconnect_task(*id, *network)?,
        }
        Ok(())
    }

    pub(super) fn new_meta(&self) -> Meta {
        Meta { version: self.index, created_at: self.at, updated_at: self.at }
    }

    fn put_cluster(&mut self, cluster: &Cluster, expected: Option<Version>) -> Result<(), Rejected> {
        let mut cluster = cluster.clone();
        match (&self.state.cluster, expected) {
            (None, None) => cluster.meta = self.new_meta(),
            (None, Some(_)) => return Err(missing(ObjectRef::Cluster)),
            (Some(_), None) => return Err(Rejected::Exists { object: ObjectRef::Cluster }),
            (Some(held), Some(expected)) => {
                expect_version(ObjectRef::Cluster, expected, held.meta.version)?;
                if held.id != cluster.id {
                    return Err(Rejected::OtherCluster { expected: held.id, found: cluster.id });
                }
                cluster.meta = Meta { version: self.index, updated_at: self.at, ..held.meta };
            }
        }
        self.state.cluster = Some(Arc::new(cluster));
        Ok(())
    }

    fn create_node(&mut self, node: &Node) -> Result<(), Rejected> {
        if self.state.nodes.contains_key(&node.id) {
            return Err(Rejected::Exists { object: ObjectRef::Node(node.id) });
        }
        if self.state.cluster.as_ref().is_some_and(|c| c.removed_nodes.contains_key(&node.id)) {
            return Err(Rejected::NodeRemoved(node.id));
        }
        self.room_for_node()?;
        self.state.put_node(Arc::new(Node { meta: self.new_meta(), ..node.clone() }));
        self.number_node(node.id);
        Ok(())
    }

    fn remove_node(&mut self, id: NodeId, force: bool) -> Result<(), Rejected> {
        let node = self.state.nodes.get(&id).ok_or(missing(ObjectRef::Node(id)))?;
        if node.manager.is_some() {
            return Err(Rejected::NodeIsManager(id));
        }
        if node.status.state == NodeState::Ready && !force {
            return Err(Rejected::NodeNotDown(id));
        }
        self.state.take_node(id);
        if let Some(cluster) = &mut self.state.cluster {
            let cluster = Arc::make_mut(cluster);
            cluster.removed_nodes.retain(|_, until| *until > self.at);
            let until = self.at.after(cluster.spec.node_cert_expiry).after(REMOVED_NODE_MARGIN);
            cluster.removed_nodes.insert(id, until);
            cluster.meta = Meta { version: self.index, updated_at: self.at, ..cluster.meta };
        }
        let orphans: Vec<TaskId> = self.state.tasks_on(id).map(|task| task.id).collect();
        let status = TaskStatus {
            state: TaskState::Orphaned,
            at: self.at,
            message: "the task's node was removed".to_owned(),
            ..TaskStatus::default()
        };
        for task in orphans {
            // A task bound to the node but never confirmed there has no state to lose: its worker never heard of it.
            if self.state.task(task).is_some_and(|t| t.status.state < TaskState::Assigned) {
                self.remove_task(task);
            } else {
                self.set_task_status(task, &status);
            }
        }
        Ok(())
    }

    /// Writes down what is known of a node; no edit, so its version stays.
    fn note_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let Some(held) = self.state.node(id) else { return };
        let mut node = Node::clone(held);
        change(&mut node);
        node.meta.updated_at = self.at;
        self.state.put_node(Arc::new(node));
    }

    fn set_node_role(&mut self, id: NodeId, role: Role) {
        let index = self.index;
        self.note_node(id, |node| {
            if node.role != role {
                node.role = role;
                node.role_since = index;
            }
        });
    }

    fn create_service(&mut self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Rejected> {
        // An id whose former tasks are still being removed is as taken as one in the table.
        if self.state.services.contains_key(&id) || self.state.tasks_of(id).next().is_some() {
            return Err(Rejected::Exists { object: ObjectRef::Service(id) });
        }
        if let Some(held) = self.state.service_by_name(&spec.name) {
            return Err(Rejected::NameTaken { name: spec.name.clone(), by: ObjectRef::Service(held.id) });
        }
        let endpoint = self.endpoint(id, spec, &ServiceEndpoint::default())?;
        self.state.put_service(Arc::new(Service {
            id,
            meta: self.new_meta(),
            spec: spec.clone(),
            previous_spec: None,
            spec_version: self.index,
            update_status: None,
            endpoint,
        }));
        Ok(())
    }

    fn update_service(
        &mut self,
        id: ServiceId,
        spec: &ServiceSpec,
        expected: Version,
        change: ServiceChange,
    ) -> Result<(), Rejected> {
        let held = self.state.service(id).ok_or(missing(ObjectRef::Service(id)))?;
        expect_version(ObjectRef::Service(id), expected, held.meta.version)?;
        if held.spec.name != spec.name {
            let (expected, found) = (held.spec.name.clone(), spec.name.clone());
            return Err(Rejected::Renamed { id, expected, found });
        }
        if matches!(held.spec.mode, ServiceMode::Global) != matches!(spec.mode, ServiceMode::Global) {
            return Err(Rejected::ModeChanged(id));
        }
        let mut service = Service::clone(held);
        let endpoint = self.endpoint(id, spec, &service.endpoint)?;
        let (old, new) = (&service.spec.endpoint, &spec.endpoint);
        let tasks_see_it = service.spec.task != spec.task || (old.mode, &old.ports) != (new.mode, &new.ports);
        let resumes = service
            .update_status
            .as_ref()
            .is_some_and(|s| matches!(s.state, UpdateState::Paused | UpdateState::RollbackPaused));
        let (state, message) = match change {
            ServiceChange::Update => (UpdateState::Updating, "update in progress"),
            ServiceChange::Rollback => (UpdateState::RollbackStarted, "manually requested rollback"),
        };
        if tasks_see_it {
            service.spec_version = self.index;
        }
        if tasks_see_it || resumes || change == ServiceChange::Rollback {
            service.update_status = Some(self.update_started(state, message));
        } else if service
            .update_status
            .as_ref()
            .is_some_and(|s| matches!(s.state, UpdateState::Completed | UpdateState::RollbackCompleted))
        {
            // What is over says nothing of this change. Source: swarm-parity 3.5.
            service.update_status = None;
        }
        service.previous_spec = Some(Box::new(std::mem::replace(&mut service.spec, spec.clone())));
        service.meta = Meta { version: self.index, updated_at: self.at, ..service.meta };
        self.put_endpoint(&mut service, endpoint);
        self.state.put_service(Arc::new(service));
        Ok(())
    }

    /// If the previous spec can be had no more, because a port it published is another service's by now, the service
    /// stays as it is, and says why.
    fn roll_back_service(&mut self, id: ServiceId, spec_version: Version, message: &str) {
        let Some(held) = self.state.service(id).filter(|s| s.spec_version == spec_version) else { return };
        let mut service = Service::clone(held);
        let Some(previous) = service.previous_spec.take() else { return };
        match self.endpoint(id, &previous, &service.endpoint) {
            Ok(endpoint) => {
                service.spec = *previous;
                service.spec_version = self.index;
                service.meta.version = self.index;
                service.update_status = Some(self.update_started(UpdateState::RollbackStarted, message));
                self.put_endpoint(&mut service, endpoint);
            }
            Err(rejected) => {
                service.previous_spec = Some(previous);
                let message = format!("rollback not possible: {rejected}");
                service.update_status = Some(self.update_started(UpdateState::RollbackPaused, &message));
            }
        }
        service.meta.updated_at = self.at;
        self.state.put_service(Arc::new(service));
    }

    fn put_endpoint(&mut self, service: &mut Service, endpoint: ServiceEndpoint) {
        let former = std::mem::replace(&mut service.endpoint, endpoint);
        let kept: Vec<_> = service.endpoint.vips.iter().map(|(id, address)| (*id, *address)).collect();
        self.release(former.vips, &kept);
    }

    fn update_started(&self, state: UpdateState, message: &str) -> UpdateStatus {
        UpdateStatus { state, started_at: self.at, completed_at: None, message: message.to_owned() }
    }

    /// Writes down how a service fares, if it still is at `spec_version`; no edit, so its version stays.
    fn change_service(&mut self, id: ServiceId, spec_version: Version, change: impl FnOnce(&mut Service)) {
        let Some(held) = self.state.service(id).filter(|s| s.spec_version == spec_version) else { return };
        let mut service = Service::clone(held);
        change(&mut service);
        service.meta.updated_at = self.at;
        self.state.put_service(Arc::new(service));
    }

    fn create_task(&mut self, new: &NewTask) {
        let Some(service) = self.state.service(new.service_id) else { return };
        if service.spec_version != new.spec_version || self.state.tasks.contains_key(&new.id) {
            return;
        }
        let Some(spec) = self.state.template(new.service_id).cloned() else { return };
        let mut task = Task {
            id: new.id,
            meta: self.new_meta(),
            service_id: new.service_id,
            slot: new.slot,
            node_id: new.node_id,
            spec,
            spec_version: new.spec_version,
            service_name: service.spec.name.clone(),
            service_labels: service.spec.labels.clone(),
            ports: service.spec.endpoint.ports.clone(),
            desired: new.desired,
            start_delay: new.start_delay,
            status: TaskStatus { at: self.at, applied_at: self.at, ..new.status.clone() },
            networks: new.networks.clone(),
        };
        let node_takes_it =
            task.node_id.is_some_and(|id| self.state.node(id).is_some_and(|node| takes_tasks(node)));
        if task.status.state >= TaskState::Assigned && !node_takes_it {
            task.status.state = TaskState::Pending;
            // Unlike a replica, a global task stays bound: its place is the node.
            if !matches!(service.spec.mode, ServiceMode::Global) {
                task.node_id = None;
            }
        }
        if !self.addresses_free(&task.networks) {
            task.status.state = TaskState::New;
            task.networks.clear();
        }
        self.advance_cursors(&task.networks);
        self.state.put_task(Arc::new(task));
    }

    fn allocate_task(&mut self, id: TaskId, networks: &[TaskNetwork]) {
        if !self.addresses_free(networks) {
            return;
        }
        let Some(TaskState::New) = self.state.task(id).map(|task| task.status.state) else { return };
        self.advance_cursors(networks);
        let (at, index) = (self.at, self.index);
        self.change_task(id, |task| {
            task.networks = networks.to_vec();
            task.status = TaskStatus {
                state: TaskState::Pending,
                at,
                applied_at: at,
                message: "pending task scheduling".to_owned(),
                ..TaskStatus::default()
            };
            task.meta.version = index;
            true
        });
    }

    fn assign_task(&mut self, id: TaskId, node: NodeId) {
        if !self.state.node(node).is_some_and(|node| takes_tasks(node)) {
            return;
        }
        let at = self.at;
        self.change_task(id, |task| {
            if task.status.state != TaskState::Pending || task.node_id.is_some_and(|bound| bound != node) {
                return false;
            }
            task.node_id = Some(node);
            task.status = TaskStatus {
                state: TaskState::Assigned,
                at,
                applied_at: at,
                message: "scheduler assigned task to node".to_owned(),
                ..TaskStatus::default()
            };
            true
        });
    }

    fn set_task_status(&mut self, id: TaskId, status: &TaskStatus) {
        let at = self.at;
        self.change_task(id, |task| {
            let held = &task.status;
            // Before a task has a node only the leader writes its status, in order; no clock decides there.
            let explains = status.state == held.state && held.state < TaskState::Assigned;
            let later = explains || (status.state, status.at) > (held.state, held.at);
            let placeless = status.state >= TaskState::Assigned && held.state < TaskState::Assigned;
            // Only `AllocateTask` and `AssignTask` move a task to a node: no report can.
            let skips_allocation = held.state == TaskState::New && status.state != TaskState::New;
            if held.state.is_terminal() || !later || placeless || skips_allocation {
                return false;
            }
            let running_since = held.running_since.or((status.state == TaskState::Running).then_some(at));
            let applied_at = if status.state == held.state { held.applied_at } else { at };
            task.status = TaskStatus { applied_at, running_since, ..status.clone() };
            true
        });
    }

    /// Changes a task in place; `change` says whether it did anything.
    pub(super) fn change_task(&mut self, id: TaskId, change: impl FnOnce(&mut Task) -> bool) {
        let Some(held) = self.state.task(id).cloned() else { return };
        let mut task = Task::clone(&held);
        if change(&mut task) {
            task.meta = Meta { version: self.index, updated_at: self.at, ..task.meta };
            if held_addresses(&held).ne(held_addresses(&task)) {
                self.release(held_addresses(&held), &held_addresses(&task).collect::<Vec<_>>());
            }
            self.state.put_task(Arc::new(task));
        }
    }

    fn remove_task(&mut self, id: TaskId) {
        if let Some(task) = self.state.take_task(id) {
            self.release(held_addresses(&task), &[]);
        }
    }

    /// Whether all networks are as when addresses were chosen, and nobody has these meanwhile.
    fn addresses_free(&self, networks: &[TaskNetwork]) -> bool {
        networks.iter().all(|TaskNetwork { network: id, address, .. }| {
            self.state.network(*id).is_some_and(|network| {
                address.is_none_or(|at| {
                    network.ipam.is_some_and(|ipam| ipam.subnet.prefix_len == at.prefix_len)
                        && self.state.address_owner(*id, at.address).is_none()
                })
            })
        })
    }

    pub(super) fn advance_cursors(&mut self, networks: &[TaskNetwork]) {
        for network in networks {
            if let Some(address) = network.address {
                self.state.address_cursors.insert(network.network, address.address);
            }
        }
    }
}

pub(super) fn missing(object: ObjectRef) -> Rejected {
    Rejected::Missing { object }
}

pub(super) fn expect_version(object: ObjectRef, expected: Version, found: Version) -> Result<(), Rejected> {
    if expected == found { Ok(()) } else { Err(Rejected::Stale { object, expected, found }) }
}
