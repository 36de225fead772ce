//! A fake worker: steps its tasks towards what is desired and reports, over a network that may be bad.

use std::collections::BTreeMap;
use std::sync::Arc;

use rswarm_core::dispatch::{Assignments, Changes, SessionId};
use rswarm_types::{NodeId, Task, TaskId, TaskState, TaskStatus, Timestamp};

use crate::rng::Rng;

pub struct Worker {
    pub id: NodeId,
    /// Powered on.
    pub on: bool,
    /// Reaches the managers.
    pub connected: bool,
    pub session: Option<SessionId>,
    /// What the dispatcher told it, by the dispatcher's own book.
    pub held: Assignments,
    tasks: BTreeMap<TaskId, Local>,
    /// Reports on their way.
    pub wire: Vec<(Timestamp, TaskId, TaskStatus)>,
}

struct Local {
    desired: TaskState,
    state: TaskState,
    at: Timestamp,
    next: Timestamp,
    sent: bool,
}

/// How badly tasks and network behave.
#[derive(Debug, Clone, Copy)]
pub struct Mood {
    pub fails_percent: u64,
    pub late_ms: u64,
    pub repeats_percent: u64,
}

impl Worker {
    pub fn new(id: NodeId) -> Self {
        let (tasks, wire) = (BTreeMap::new(), Vec::new());
        Self { id, on: true, connected: true, session: None, held: Assignments::default(), tasks, wire }
    }

    pub fn full_set<'a>(&mut self, tasks: impl Iterator<Item = &'a Arc<Task>>, now: Timestamp) {
        let tasks: Vec<_> = tasks.cloned().collect();
        self.tasks.retain(|id, _| tasks.iter().any(|task| task.id == *id));
        for local in self.tasks.values_mut() {
            local.sent = false;
        }
        tasks.iter().for_each(|task| self.set(task, now));
    }

    pub fn change(&mut self, changes: &Changes, now: Timestamp) {
        changes.set.iter().for_each(|task| self.set(task, now));
        for id in &changes.removed {
            self.tasks.remove(id);
        }
    }

    fn set(&mut self, task: &Task, now: Timestamp) {
        assert_eq!(task.node_id, Some(self.id), "a worker was given another's task");
        let state = task.status.state;
        let local = self.tasks.entry(task.id).or_insert(Local {
            desired: task.desired,
            state,
            at: now,
            next: now,
            // What the managers know need not be told again.
            sent: true,
        });
        local.desired = local.desired.max(task.desired);
    }

    /// The machine lost power: nothing of its tasks is left but the ledger.
    pub fn power_off(&mut self, now: Timestamp) {
        self.on = false;
        self.session = None;
        self.wire.clear();
        for local in self.tasks.values_mut().filter(|local| !local.state.is_terminal()) {
            *local = Local { state: TaskState::Failed, at: now, sent: false, ..*local };
        }
    }

    pub fn step(&mut self, rng: &mut Rng, now: Timestamp, mood: Mood) {
        if !self.on {
            return;
        }
        for local in self.tasks.values_mut().filter(|local| !local.state.is_terminal() && local.next <= now) {
            let fails = rng.chance(mood.fails_percent);
            let next = match local.state {
                _ if local.desired > TaskState::Running => TaskState::Shutdown,
                TaskState::Assigned => TaskState::Accepted,
                TaskState::Accepted => TaskState::Preparing,
                TaskState::Preparing if fails => TaskState::Rejected,
                TaskState::Preparing => TaskState::Ready,
                TaskState::Ready if local.desired == TaskState::Ready => continue,
                TaskState::Ready => TaskState::Starting,
                TaskState::Starting if fails => TaskState::Failed,
                TaskState::Starting => TaskState::Running,
                TaskState::Running if fails && rng.chance(20) => TaskState::Complete,
                TaskState::Running if fails => TaskState::Failed,
                _ => continue,
            };
            *local = Local { state: next, at: now, sent: false, ..*local };
            local.next = Timestamp::from_millis(now.as_millis() + rng.below(2000));
        }
        for (id, local) in self.tasks.iter_mut().filter(|(_, local)| !local.sent) {
            local.sent = true;
            let status = TaskStatus { state: local.state, at: local.at, ..TaskStatus::default() };
            let copies = 1 + u64::from(rng.chance(mood.repeats_percent));
            for _ in 0..copies {
                let arrives = Timestamp::from_millis(now.as_millis() + rng.below(mood.late_ms));
                self.wire.push((arrives, *id, status.clone()));
            }
        }
    }
}
