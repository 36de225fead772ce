//! Plans: what a control loop wants done, in terms that hold no new ids and no times.
//!
//! The driver mints both when it turns a plan into a [`Command`]; so a loop can be asked twice and says the same.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_types::service::UpdateState;
use rswarm_types::task::{TaskNetwork, Unplaced};
use rswarm_types::{NodeId, ServiceId, TaskId, TaskState, TaskStatus, Timestamp, UpdateStatus, Version};

use crate::state::{Command, NewTask, ObjectRef, State, Write};

/// What should be done now, what people should know, and when to look again.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Why something that one might expect is not done.
    pub notes: Vec<Note>,
    /// When what is planned for a service or node may change although nothing else does.
    pub wakes: BTreeMap<Subject, Timestamp>,
}

/// What a wake-up is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Service(ServiceId),
    Node(NodeId),
}

/// A remark for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub about: ObjectRef,
    pub text: String,
}

/// One wish. See [`Write`] for when the matching write is ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    CreateTask(Draft),
    AllocateTask {
        task: TaskId,
        networks: Vec<TaskNetwork>,
    },
    AssignTask {
        task: TaskId,
        node: NodeId,
    },
    SetDesired {
        task: TaskId,
        desired: TaskState,
    },
    /// Notes why a task stays `new` or `pending`, or that it is orphaned.
    SetStatus {
        task: TaskId,
        outcome: Outcome,
    },
    RemoveTask {
        task: TaskId,
    },
    RollBackService {
        service: ServiceId,
        spec_version: Version,
        message: String,
    },
    SetUpdateStatus {
        service: ServiceId,
        spec_version: Version,
        state: UpdateState,
        message: String,
    },
}

/// A task to be made: all but its id and its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub service: ServiceId,
    pub spec_version: Version,
    /// 0 for a global service.
    pub slot: u64,
    /// Where it is bound to (global), or, once `outcome.state` is `assigned`, where it is assigned to.
    pub node: Option<NodeId>,
    pub desired: TaskState,
    pub start_delay: Duration,
    pub networks: Vec<TaskNetwork>,
    pub outcome: Outcome,
}

/// A task's status as a manager writes it, but for the times.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    pub state: TaskState,
    pub message: String,
    pub error: String,
    pub unplaced: Option<Unplaced>,
}

impl Outcome {
    fn into_status(self, now: Timestamp) -> TaskStatus {
        let Self { state, message, error, unplaced } = self;
        TaskStatus { state, at: now, applied_at: now, message, error, unplaced, ..TaskStatus::default() }
    }
}

impl Plan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// When the next look is due, if nothing happens before.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.wakes.values().min().copied()
    }

    /// Asks for another look at `subject` at `when` at the latest.
    pub fn wake_by(&mut self, subject: Subject, when: Timestamp) {
        let held = self.wakes.entry(subject).or_insert(when);
        *held = (*held).min(when);
    }

    pub(crate) fn note(&mut self, about: ObjectRef, text: impl Into<String>) {
        self.notes.push(Note { about, text: text.into() });
    }

    pub(crate) fn set_desired(&mut self, task: TaskId, desired: TaskState) {
        self.actions.push(Action::SetDesired { task, desired });
    }

    /// Adds what another plan wants, notes and wakes for.
    pub fn merge(&mut self, other: Self) {
        self.actions.extend(other.actions);
        self.notes.extend(other.notes);
        for (subject, when) in other.wakes {
            self.wake_by(subject, when);
        }
    }

    /// The command that carries the plan out: mints an id for each new task and stamps everything with `now`.
    ///
    /// `state` must be the one the plan was made from.
    pub fn into_command(self, state: &State, now: Timestamp, mint: &mut impl FnMut() -> TaskId) -> Command {
        let writes = self.actions.into_iter().map(|action| action.into_write(state, now, mint)).collect();
        Command { at: now, writes }
    }
}

impl Action {
    fn into_write(self, state: &State, now: Timestamp, mint: &mut impl FnMut() -> TaskId) -> Write {
        match self {
            Self::CreateTask(draft) => Write::CreateTask(draft.into_task(mint(), now)),
            Self::AllocateTask { task, networks } => Write::AllocateTask { id: task, networks },
            Self::AssignTask { task, node } => Write::AssignTask { id: task, node },
            Self::SetDesired { task, desired } => Write::SetTaskDesired { id: task, desired },
            Self::SetStatus { task, outcome } => {
                Write::SetTaskStatus { id: task, status: outcome.into_status(now) }
            }
            Self::RemoveTask { task } => Write::RemoveTask { id: task },
            Self::RollBackService { service, spec_version, message } => {
                Write::RollBackService { id: service, spec_version, message }
            }
            Self::SetUpdateStatus { service, spec_version, state: update, message } => {
                let held = state.service(service).and_then(|s| s.update_status.as_ref());
                let started_at = held.map_or(now, |status| status.started_at);
                let ended = matches!(update, UpdateState::Completed | UpdateState::RollbackCompleted);
                let completed_at = ended.then_some(now);
                let status = UpdateStatus { state: update, started_at, completed_at, message };
                Write::SetUpdateStatus { id: service, spec_version, status }
            }
        }
    }
}

impl Draft {
    pub(crate) fn into_task(self, id: TaskId, now: Timestamp) -> NewTask {
        NewTask {
            id,
            service_id: self.service,
            spec_version: self.spec_version,
            slot: self.slot,
            node_id: self.node,
            desired: self.desired,
            start_delay: self.start_delay,
            status: self.outcome.into_status(now),
            networks: self.networks,
        }
    }
}
