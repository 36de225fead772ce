//! What all rules for one service look at, and whether a task may stay where it is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rswarm_types::{
    Availability, Node, NodeId, NodeState, Service, Task, TaskId, TaskSpec, TaskState, Timestamp,
};

use crate::constraint::{self, Constraint, ConstraintError};
use crate::plan::{Draft, Outcome};
use crate::state::{State, holds_resources, is_active};

/// A service and what its rules need.
pub(super) struct Context<'a> {
    pub state: &'a State,
    pub service: &'a Arc<Service>,
    pub now: Timestamp,
    template: Arc<TaskSpec>,
    constraints: Vec<Constraint>,
    /// Tasks that an overcommitted node must give up, found once per node.
    overcommitted: RefCell<BTreeMap<NodeId, BTreeSet<TaskId>>>,
}

/// Whether a task is what its service asks for today, so that no update will replace it.
pub fn is_up_to_date(state: &State, service: &Arc<Service>, task: &Task) -> bool {
    // Constraints that do not parse were refused when the service was written.
    Context::new(state, service, Timestamp::default()).is_ok_and(|context| context.is_clean(task))
}

/// Why a running task must leave its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evacuation {
    /// The node is down: nothing is known to run there.
    Lost,
    /// The node is drained, or no longer fits. The task there is to stop first.
    Unwanted,
}

impl<'a> Context<'a> {
    pub fn new(state: &'a State, service: &'a Arc<Service>, now: Timestamp) -> Result<Self, ConstraintError> {
        let constraints = constraint::parse_all(&service.spec.task.placement.constraints)?;
        let template = match state.template(service.id) {
            Some(template) => Arc::clone(template),
            None => Arc::new(service.spec.task.clone()),
        };
        Ok(Self { state, service, now, template, constraints, overcommitted: RefCell::default() })
    }

    /// Whether a task is what its service's spec asks for today. Source: swarm-parity 3.5, "what is dirty".
    ///
    /// A change of placement alone leaves tasks be whose node satisfies the new constraints, and one of the registry's
    /// credential those that have their image.
    pub fn is_clean(&self, task: &Task) -> bool {
        if task.spec_version == self.service.spec_version {
            return true;
        }
        if task.ports != self.service.spec.endpoint.ports {
            return false;
        }
        if task.spec == self.template {
            return true;
        }
        let satisfied = task
            .node_id
            .and_then(|id| self.state.node(id))
            .is_some_and(|node| constraint::all_match(&self.constraints, node));
        if !satisfied {
            return false;
        }
        let mut moved = TaskSpec::clone(&task.spec);
        moved.placement.clone_from(&self.template.placement);
        if (TaskState::Ready..=TaskState::Running).contains(&task.status.state) {
            moved.container.registry_auth.clone_from(&self.template.container.registry_auth);
        }
        moved == *self.template
    }

    /// Whether a task that was assigned and has not ended must leave its node.
    ///
    /// Unlike in Swarm, a task that no longer fits is stopped like one on a drained node, and not declared rejected
    /// while it runs. Source: swarm-parity 3.1, 3.7.
    pub fn evacuation(&self, task: &Task) -> Option<Evacuation> {
        if !holds_resources(task) {
            return None;
        }
        let node = self.state.node(task.node_id?)?;
        if node.status.state == NodeState::Down {
            return Some(Evacuation::Lost);
        }
        match node.spec.availability {
            Availability::Drain => Some(Evacuation::Unwanted),
            Availability::Pause => None,
            Availability::Active => {
                let fits =
                    constraint::all_match(&self.constraints, node) && !self.is_overcommitted(node, task);
                (!fits).then_some(Evacuation::Unwanted)
            }
        }
    }

    /// Whether a node satisfies the service's constraints and is of one of its platforms.
    pub fn suits(&self, node: &Node) -> bool {
        constraint::all_match(&self.constraints, node)
            && crate::scheduler::platform_fits(&self.template.placement.platforms, node)
    }

    fn is_overcommitted(&self, node: &Node, task: &Task) -> bool {
        let (Some(usage), Some(description)) = (self.state.usage(node.id), &node.description) else {
            return false;
        };
        let capacity = description.resources;
        if usage.nano_cpus <= capacity.nano_cpus && usage.memory_bytes <= capacity.memory_bytes {
            return false;
        }
        let mut known = self.overcommitted.borrow_mut();
        known.entry(node.id).or_insert_with(|| surplus_tasks(self.state, node)).contains(&task.id)
    }

    /// A new task for a place of this service.
    pub fn draft(&self, slot: u64, node: Option<NodeId>, desired: TaskState, start_delay: Duration) -> Draft {
        Draft {
            service: self.service.id,
            spec_version: self.service.spec_version,
            slot,
            node,
            desired,
            start_delay,
            networks: Vec::new(),
            outcome: Outcome { message: "created".to_owned(), ..Outcome::default() },
        }
    }
}

/// The tasks a node must give up so that the reservations of those that stay fit: the newest first.
fn surplus_tasks(state: &State, node: &Node) -> BTreeSet<TaskId> {
    let capacity = node.description.as_ref().map(|d| d.resources).unwrap_or_default();
    let mut staying: Vec<&Arc<Task>> =
        state.tasks_on(node.id).filter(|task| holds_resources(task) && is_active(task)).collect();
    staying.sort_by_key(|task| (task.meta.created_at, task.id));
    let (mut cpus, mut memory) = (0u64, 0u64);
    let mut surplus = BTreeSet::new();
    for task in staying {
        let wanted = task.spec.reservations;
        if wanted == rswarm_types::node::Resources::default() {
            continue;
        }
        if cpus + wanted.nano_cpus > capacity.nano_cpus
            || memory + wanted.memory_bytes > capacity.memory_bytes
        {
            surplus.insert(task.id);
        } else {
            cpus += wanted.nano_cpus;
            memory += wanted.memory_bytes;
        }
    }
    surplus
}
