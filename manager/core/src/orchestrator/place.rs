//! The tasks of one place: a slot, or a node for a global service.

use std::sync::Arc;

use rswarm_types::{NodeId, NodeState, ServiceId, Task, TaskState};

use super::restart;
use crate::state::State;

/// A place and its tasks, oldest first.
pub(super) struct Place<'a> {
    /// 0 for a global service.
    pub slot: u64,
    /// Set for a global service.
    pub node: Option<NodeId>,
    pub tasks: Vec<&'a Arc<Task>>,
}

impl<'a> Place<'a> {
    fn new(slot: u64, node: Option<NodeId>, mut tasks: Vec<&'a Arc<Task>>) -> Self {
        tasks.sort_by_key(|task| (task.meta.created_at, task.id));
        Self { slot, node, tasks }
    }

    /// Tasks that were not told to stop.
    pub fn wanted(&self) -> impl DoubleEndedIterator<Item = &'a Arc<Task>> {
        self.tasks.iter().copied().filter(|task| task.desired <= TaskState::Running)
    }

    /// The newest task, if it ended by itself for good: it fills the place although nothing is wanted of it any more.
    pub fn settled(&self) -> Option<&'a Arc<Task>> {
        let newest = self.tasks.last().copied()?;
        let by_itself =
            matches!(newest.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected);
        let for_good =
            by_itself && newest.desired == TaskState::Shutdown && restart::forbidden(newest, self).is_some();
        for_good.then_some(newest)
    }

    /// Tasks that fill the place: those wanted, else the one it has settled with.
    pub fn current(&self) -> impl DoubleEndedIterator<Item = &'a Arc<Task>> {
        let settled = if self.wanted().next().is_none() { self.settled() } else { None };
        self.wanted().chain(settled)
    }

    pub fn is_filled(&self) -> bool {
        self.current().next().is_some()
    }

    /// Tasks besides `than` that may still run: on a node that is there to run them and not seen to end.
    pub fn others_alive(&self, state: &State, than: &Task) -> impl Iterator<Item = &'a Arc<Task>> {
        self.tasks.iter().copied().filter(move |task| task.id != than.id && may_run(state, task))
    }
}

/// Whether a container of the task may exist as far as anyone can tell.
pub(super) fn may_run(state: &State, task: &Task) -> bool {
    let node_is_up = || {
        task.node_id.and_then(|id| state.node(id)).is_some_and(|node| node.status.state != NodeState::Down)
    };
    crate::state::holds_resources(task) && node_is_up()
}

/// The slots of a service by number, each with at least one task.
pub(super) fn slots(state: &State, service: ServiceId) -> Vec<Place<'_>> {
    let mut places: Vec<Place> = Vec::new();
    let mut tasks: Vec<&Arc<Task>> = Vec::new();
    for task in state.tasks_of(service) {
        if let Some(first) = tasks.first()
            && first.slot != task.slot
        {
            places.push(Place::new(first.slot, None, std::mem::take(&mut tasks)));
        }
        tasks.push(task);
    }
    if let Some(first) = tasks.first() {
        places.push(Place::new(first.slot, None, tasks));
    }
    places
}

/// The places of a global service by node: every node of the cluster, and nodes that are gone but have tasks.
pub(super) fn nodes(state: &State, service: ServiceId) -> Vec<Place<'_>> {
    let mut by_node: std::collections::BTreeMap<NodeId, Vec<&Arc<Task>>> =
        state.nodes().map(|node| (node.id, Vec::new())).collect();
    for task in state.tasks_of(service) {
        if let Some(node) = task.node_id {
            by_node.entry(node).or_default().push(task);
        }
    }
    by_node.into_iter().map(|(node, tasks)| Place::new(0, Some(node), tasks)).collect()
}
