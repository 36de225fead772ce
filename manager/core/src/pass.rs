//! One pass of the leader's control loops, and the memory between passes.
//!
//! Each stage plans over the state as the stages before would leave it, so a new service goes from nothing to
//! assigned tasks in one command. Services are independent of each other until tasks compete for addresses and nodes.

use std::collections::{BTreeMap, BTreeSet};

use imbl::ordmap::DiffItem;
use rswarm_types::{Node, NodeId, ServiceId, ServiceMode, Task, TaskId, TaskState, Timestamp, Version};

use crate::orchestrator::{self, reaper};
use crate::plan::{Action, Draft, Outcome, Plan, Subject};
use crate::state::{State, apply};
use crate::{allocate, scheduler};

/// What may need another look. Losing one costs time only: a full pass finds the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dirty {
    pub services: BTreeSet<ServiceId>,
    pub nodes: BTreeSet<NodeId>,
    /// A setting changed that all services look at.
    pub everything: bool,
}

impl Dirty {
    /// What differs between two states. Costs the difference, not the tables.
    pub fn between(old: &State, new: &State) -> Self {
        let mut dirty = Self::default();
        let same_cluster = match (old.cluster(), new.cluster()) {
            (Some(a), Some(b)) => a.spec == b.spec,
            (None, None) => true,
            _ => false,
        };
        dirty.everything = !same_cluster;
        for item in old.services.diff(&new.services) {
            let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) =
                item;
            dirty.services.insert(*id);
        }
        for item in old.tasks.diff(&new.tasks) {
            let (DiffItem::Add(_, task)
            | DiffItem::Remove(_, task)
            | DiffItem::Update { new: (_, task), .. }) = item;
            dirty.services.insert(task.service_id);
        }
        for item in old.nodes.diff(&new.nodes) {
            match item {
                DiffItem::Update { old: (_, before), new: (_, after) } if !matters(before, after) => {}
                DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => {
                    dirty.touch_node(new, *id);
                }
            }
        }
        dirty
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && !self.everything
    }

    /// A node changed: so may what every task on it and every global service should do.
    fn touch_node(&mut self, state: &State, node: NodeId) {
        self.nodes.insert(node);
        self.services.extend(state.tasks_on(node).map(|task| task.service_id));
        let global = |mode: &ServiceMode| matches!(mode, ServiceMode::Global);
        self.services.extend(state.services().filter(|s| global(&s.spec.mode)).map(|s| s.id));
    }

    fn add(&mut self, subject: Subject) {
        match subject {
            Subject::Service(service) => self.services.insert(service),
            Subject::Node(node) => self.nodes.insert(node),
        };
    }
}

/// Whether a node changed in something that plans depend on.
fn matters(before: &Node, after: &Node) -> bool {
    before.spec != after.spec
        || before.role != after.role
        || before.description != after.description
        || before.status.state != after.status.state
        || before.status.addr != after.status.addr
}

/// Everything that should be done as of `now`: for all objects, or for those that are dirty.
///
/// Waiting tasks are always looked at: whatever changed may have made room for them.
pub fn plan_all(state: &State, now: Timestamp, dirty: Option<&Dirty>) -> Plan {
    let dirty = dirty.filter(|dirty| !dirty.everything);
    let (services, nodes): (BTreeSet<ServiceId>, BTreeSet<NodeId>) = match dirty {
        Some(dirty) => (dirty.services.clone(), dirty.nodes.clone()),
        None => {
            let services = state.services().map(|service| service.id).chain(state.services_with_tasks());
            (services.collect(), state.nodes().map(|node| node.id).collect())
        }
    };
    let mut pass = Pass { state: state.clone(), now, plan: Plan::default(), drafts: BTreeMap::new() };

    let mut stage = Plan::default();
    for node in &nodes {
        stage.merge(reaper::orphans(&pass.state, *node, now));
    }
    for service in &services {
        stage.merge(orchestrator::plan(&pass.state, *service, now));
    }
    pass.advance(stage);

    let mut stage = Plan::default();
    for service in &services {
        stage.merge(reaper::plan(&pass.state, *service));
    }
    pass.advance(stage);

    let stage = allocate::plan(&pass.state, now);
    pass.advance(stage);

    let stage = scheduler::plan(&pass.state, now);
    pass.finish(stage)
}

/// The state as it would be after the stages so far, with placeholders for the ids of new tasks.
struct Pass {
    state: State,
    now: Timestamp,
    plan: Plan,
    /// New tasks by placeholder: small numbers, which no minted id is.
    drafts: BTreeMap<TaskId, ()>,
}

impl Pass {
    /// Carries a stage out on the tentative state and keeps what it wants of tasks that exist.
    fn advance(&mut self, stage: Plan) {
        if !stage.is_empty() {
            let mut minted = Vec::new();
            let mut next = self.drafts.len() as u128;
            let command = stage.clone().into_command(&self.state, self.now, &mut || {
                next += 1;
                minted.push(TaskId::from_bytes(next.to_be_bytes()));
                TaskId::from_bytes(next.to_be_bytes())
            });
            let index = Version(self.state.index.0 + 1);
            // Plans hold only writes that are never refused.
            self.state = apply(&self.state, index, &command).0;
            self.drafts.extend(minted.into_iter().map(|id| (id, ())));
        }
        self.keep(stage);
    }

    fn keep(&mut self, mut stage: Plan) {
        stage.actions.retain(|action| match action {
            Action::CreateTask(_) => false,
            Action::AllocateTask { task, .. }
            | Action::AssignTask { task, .. }
            | Action::SetDesired { task, .. }
            | Action::SetStatus { task, .. }
            | Action::RemoveTask { task } => !self.drafts.contains_key(task),
            Action::RollBackService { .. } | Action::SetUpdateStatus { .. } => true,
        });
        self.plan.merge(stage);
    }

    /// Adds the last stage, and the new tasks as they stand after it.
    fn finish(mut self, stage: Plan) -> Plan {
        let mut placed: BTreeMap<TaskId, NodeId> = BTreeMap::new();
        let mut explained: BTreeMap<TaskId, Outcome> = BTreeMap::new();
        for action in &stage.actions {
            match action {
                Action::AssignTask { task, node } if self.drafts.contains_key(task) => {
                    placed.insert(*task, *node);
                }
                Action::SetStatus { task, outcome } if self.drafts.contains_key(task) => {
                    explained.insert(*task, outcome.clone());
                }
                _ => {}
            }
        }
        self.keep(stage);
        for id in self.drafts.keys() {
            let Some(task) = self.state.task(*id) else { continue };
            let mut draft = as_draft(task);
            if let Some(node) = placed.get(id) {
                draft.node = Some(*node);
                draft.outcome = Outcome {
                    state: TaskState::Assigned,
                    message: "scheduler assigned task to node".to_owned(),
                    ..Outcome::default()
                };
            } else if let Some(outcome) = explained.remove(id) {
                draft.outcome = outcome;
            }
            self.plan.actions.push(Action::CreateTask(draft));
        }
        self.plan
    }
}

fn as_draft(task: &Task) -> Draft {
    Draft {
        service: task.service_id,
        spec_version: task.spec_version,
        slot: task.slot,
        node: task.node_id,
        desired: task.desired,
        start_delay: task.start_delay,
        networks: task.networks.clone(),
        outcome: Outcome {
            state: task.status.state,
            message: task.status.message.clone(),
            error: task.status.error.clone(),
            unplaced: task.status.unplaced.clone(),
        },
    }
}

/// Plans pass after pass, each for what changed since the one before. A new leader starts with a new one, whose
/// first pass looks at everything.
#[derive(Debug, Clone, Default)]
pub struct Planner {
    seen: Option<State>,
    wakes: BTreeMap<Subject, Timestamp>,
}

impl Planner {
    /// What should be done, given that the state is now `state`.
    ///
    /// Commit the plan's command and wait until `state` holds it before asking again; else it is planned twice.
    pub fn plan(&mut self, state: &State, now: Timestamp) -> Plan {
        let mut dirty = match &self.seen {
            Some(seen) => Dirty::between(seen, state),
            None => Dirty { everything: true, ..Dirty::default() },
        };
        let due: Vec<Subject> =
            self.wakes.iter().filter(|(_, when)| **when <= now).map(|(s, _)| *s).collect();
        due.into_iter().for_each(|subject| dirty.add(subject));
        let plan = plan_all(state, now, Some(&dirty));
        if dirty.everything {
            self.wakes.clear();
        } else {
            self.wakes.retain(|subject, _| match subject {
                Subject::Service(service) => !dirty.services.contains(service),
                Subject::Node(node) => !dirty.nodes.contains(node),
            });
        }
        self.wakes.extend(plan.wakes.iter().map(|(subject, when)| (*subject, *when)));
        self.seen = Some(state.clone());
        plan
    }

    /// When to ask again although nothing changed.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.wakes.values().min().copied()
    }
}
