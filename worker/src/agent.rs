//! The agent: holds what this node was assigned and decides what to do next. Pure: one [`Input`] in, [`Output`]s out.
//!
//! The event loop in `server.rs` feeds it and performs what it asks. Assignments carry the index of the cluster state
//! they were computed at; one with a lower index than any seen comes from a leader that no longer is one, and is
//! ignored. Statuses are sent until a manager acknowledged them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rswarm_types::netmap::{NetworkChange, NetworkMap};
use rswarm_types::task::{RegistrySecret, TaskNetwork};
use rswarm_types::{NetworkDriver, Task, TaskId, TaskState, TaskStatus, Timestamp};

use crate::executor::{Failure, Found};
use crate::ledger::Entry;
use crate::task::{self, Conclusion, Done, Observed, Operation, Step, Wish};

/// What a manager assigned to this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assignments {
    /// Index of the cluster state it was computed at.
    pub index: u64,
    /// Whether `tasks` is everything, or only what changed.
    pub full: bool,
    pub tasks: Vec<Task>,
    pub removed: Vec<TaskId>,
    /// What changed of the networks these and other tasks are on.
    pub network: Option<Box<NetworkChange>>,
    /// Tasks that are assigned but could not be read; what is held under these ids stays as it is.
    pub unreadable: Vec<TaskId>,
}

/// Everything the agent can learn.
#[derive(Debug)]
pub enum Input {
    Assignments(Assignments),
    /// An operation ended.
    Finished {
        task: TaskId,
        attempt: u64,
        operation: Operation,
        result: Result<Done, Failure>,
    },
    /// How far a preparation is.
    Progress {
        task: TaskId,
        attempt: u64,
        message: String,
    },
    /// A leader listens: it is told everything it has not acknowledged.
    Connected,
    Disconnected,
    /// Statuses up to this sequence are safe with the managers.
    Acknowledged(u64),
    /// Every node's network is as the cluster state of this index says, or newer.
    Settled(u64),
    /// The node leaves the cluster: everything goes.
    Leave,
    /// The time that [`Agent::wake_at`] named has come.
    Tick,
}

/// Everything the agent can want.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Begin `operation`, giving up what was under way for the task.
    Perform {
        task: Arc<Task>,
        operation: Operation,
        attempt: u64,
    },
    /// Delete a container that belongs to no task of this node.
    Discard(TaskId),
    /// Write the task down as [`Agent::entry`] gives it.
    Save(TaskId),
    Forget(TaskId),
    SaveIndex(u64),
    /// Make the node's network as this map says, before what follows.
    SetNetwork(Arc<NetworkMap>),
    /// Have the leader say when [`Input::Settled`] is true of this index.
    AskSettled(u64),
    Send {
        sequence: u64,
        updates: Vec<(TaskId, TaskStatus)>,
    },
    /// These assignments came from a manager that no longer leads.
    Stale {
        index: u64,
        seen: u64,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Agent {
    tasks: BTreeMap<TaskId, Held>,
    /// Containers from before that no held task owns. They wait for the first full set: the manager may know them.
    strays: BTreeMap<TaskId, Found>,
    network: Arc<NetworkMap>,
    index: u64,
    /// Of the last message of statuses.
    sequence: u64,
    attempt: u64,
    connected: bool,
}

#[derive(Debug)]
struct Held {
    task: Arc<Task>,
    status: TaskStatus,
    assigned: bool,
    busy: Option<(Operation, u64)>,
    retry: Option<(Operation, Timestamp)>,
    /// Its networks may be others than those that its container was given.
    reconnect: bool,
    drain: Option<Drain>,
    report: Report,
}

/// A task that is to stop at `until`, and soon after every node is known to have seen `index`: then no connection comes
/// to it any more.
#[derive(Debug, Clone, Copy)]
struct Drain {
    index: u64,
    until: Timestamp,
}

impl Held {
    /// Whether other nodes send it connections.
    fn receives(&self) -> bool {
        let on_overlay = |network: &TaskNetwork| network.driver == NetworkDriver::Overlay;
        self.status.state == TaskState::Running
            && self.task.desired <= TaskState::Running
            && self.task.networks.iter().any(on_overlay)
    }
}

/// How far the present status of a task has got towards the managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    Unsent,
    Sent(u64),
    Acknowledged,
}

/// How many tasks are held, and how many of these run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub held: usize,
    pub running: usize,
}

impl Agent {
    /// Takes up where the last daemon ended, from its ledger, the network it knew, and the containers that are there.
    pub fn restore(
        entries: Vec<Entry>,
        index: u64,
        network: NetworkMap,
        found: Vec<Found>,
        now: Timestamp,
    ) -> (Self, Vec<Output>) {
        let mut agent = Self { index, network: Arc::new(network), ..Self::default() };
        agent.strays = found.into_iter().map(|found| (found.task, found)).collect();
        let mut dirty = BTreeSet::new();
        for Entry { task, status, assigned } in entries {
            dirty.insert(task.id);
            agent.hold(task, &status, assigned, now);
        }
        let outputs = agent.settle(dirty, now);
        (agent, outputs)
    }

    /// Takes in one piece of news and says what follows from it.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Output> {
        let mut dirty = BTreeSet::new();
        let mut outputs = Vec::new();
        match input {
            Input::Assignments(assignments) => self.assign(assignments, now, &mut dirty, &mut outputs),
            Input::Finished { task, attempt, operation, result } => {
                self.finish(task, attempt, operation, result, now, &mut dirty, &mut outputs);
            }
            Input::Progress { task, attempt, message } => {
                if let Some(held) = self.tasks.get_mut(&task)
                    && held.busy == Some((Operation::Prepare, attempt))
                {
                    held.status.message = message;
                    held.report = Report::Unsent;
                }
            }
            Input::Connected => {
                self.connected = true;
                for held in self.tasks.values_mut() {
                    if matches!(held.report, Report::Sent(_)) {
                        held.report = Report::Unsent;
                    }
                }
            }
            Input::Disconnected => self.connected = false,
            Input::Acknowledged(sequence) => {
                for held in self.tasks.values_mut() {
                    if matches!(held.report, Report::Sent(sent) if sent <= sequence) {
                        held.report = Report::Acknowledged;
                    }
                }
            }
            Input::Settled(index) => {
                for held in self.tasks.values_mut() {
                    if let Some(drain) = held.drain.as_mut().filter(|drain| drain.index <= index) {
                        drain.index = u64::MAX;
                        drain.until = drain.until.min(now.after(task::LINGER));
                    }
                }
            }
            Input::Leave => {
                for (id, held) in &mut self.tasks {
                    if std::mem::take(&mut held.assigned) {
                        outputs.push(Output::Save(*id));
                    }
                    held.drain = None;
                    dirty.insert(*id);
                }
                outputs.extend(std::mem::take(&mut self.strays).into_keys().map(Output::Discard));
            }
            Input::Tick => {
                let due = |held: &Held| {
                    held.retry.is_some_and(|(_, at)| at <= now)
                        || held.drain.is_some_and(|drain| drain.until <= now)
                };
                dirty.extend(self.tasks.iter().filter(|(_, held)| due(held)).map(|(id, _)| *id));
            }
        }
        outputs.extend(self.settle(dirty, now));
        self.send(&mut outputs);
        outputs
    }

    /// When to give the next [`Input::Tick`], if at all.
    pub fn wake_at(&self) -> Option<Timestamp> {
        let retries = self.tasks.values().filter_map(|held| match (held.retry?, held.busy) {
            ((_, at), None) => Some(at),
            // It goes on meanwhile.
            ((Operation::Connect, at), Some((Operation::Wait, _))) => Some(at),
            _ => None,
        });
        let drains = self.tasks.values().filter_map(|held| Some(held.drain?.until));
        retries.chain(drains).min()
    }

    /// What the ledger should hold of a task: its credential for a registry stays in memory.
    pub fn entry(&self, id: TaskId) -> Option<Entry> {
        let held = self.tasks.get(&id)?;
        let (mut task, status) = (Task::clone(&held.task), held.status.clone());
        if task.spec.container.registry_auth.is_some()
            && let Some(auth) = &mut Arc::make_mut(&mut task.spec).container.registry_auth
        {
            auth.secret = RegistrySecret::Withheld;
        }
        Some(Entry { task, status, assigned: held.assigned })
    }

    /// A task that is held here.
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id).map(|held| &held.task)
    }

    /// Every task held here and its status.
    pub fn tasks(&self) -> impl Iterator<Item = (&Arc<Task>, &TaskStatus)> {
        self.tasks.values().map(|held| (&held.task, &held.status))
    }

    pub fn counts(&self) -> Counts {
        let running = |held: &&Held| held.status.state == TaskState::Running;
        Counts { held: self.tasks.len(), running: self.tasks.values().filter(running).count() }
    }

    fn hold(&mut self, task: Task, status: &TaskStatus, assigned: bool, now: Timestamp) {
        let found = self.strays.remove(&task.id);
        let status = task::adopt(status, found.as_ref(), now);
        let held = Held {
            task: Arc::new(task),
            assigned,
            busy: None,
            retry: None,
            // The daemon before may have heard of a change, and no more.
            reconnect: status.state == TaskState::Running,
            status,
            drain: None,
            report: Report::Unsent,
        };
        self.tasks.insert(held.task.id, held);
    }

    fn assign(
        &mut self,
        assignments: Assignments,
        now: Timestamp,
        dirty: &mut BTreeSet<TaskId>,
        outputs: &mut Vec<Output>,
    ) {
        let Assignments { index, full, tasks, removed, network, unreadable } = assignments;
        if index < self.index {
            outputs.push(Output::Stale { index, seen: self.index });
            return;
        }
        if index > self.index {
            self.index = index;
            // Alone it is not worth a write: a set that changes nothing here needs no protection from older ones.
            if full || !tasks.is_empty() || !removed.is_empty() {
                outputs.push(Output::SaveIndex(index));
            }
        }
        if let Some(change) = network
            && Arc::make_mut(&mut self.network).apply(*change)
        {
            outputs.push(Output::SetNetwork(self.network.clone()));
        }
        let mut gone: BTreeSet<_> = removed.into_iter().collect();
        if full {
            let named: BTreeSet<_> = tasks.iter().map(|task| task.id).chain(unreadable).collect();
            gone.extend(self.tasks.keys().filter(|id| !named.contains(id)));
            let strays = std::mem::take(&mut self.strays);
            for (id, found) in strays {
                if named.contains(&id) {
                    self.strays.insert(id, found);
                } else {
                    outputs.push(Output::Discard(id));
                }
            }
        }
        for id in gone {
            if let Some(held) = self.tasks.get_mut(&id)
                && held.assigned
            {
                held.assigned = false;
                dirty.insert(id);
                outputs.push(Output::Save(id));
            }
        }
        for task in tasks {
            let id = task.id;
            match self.tasks.get_mut(&id) {
                Some(held) => {
                    // It lost what we said: say it again.
                    if task.status.state < held.status.state && held.report == Report::Acknowledged {
                        held.report = Report::Unsent;
                    }
                    let changed = !held.assigned
                        || is_withheld(&held.task) && !is_withheld(&task)
                        || held.task.desired != task.desired
                        || held.task.networks != task.networks;
                    if !changed {
                        continue;
                    }
                    if held.receives() && task.desired > TaskState::Running {
                        held.drain = Some(Drain { index, until: now.after(task::DRAIN_MAX) });
                        outputs.push(Output::AskSettled(index));
                    }
                    held.assigned = true;
                    held.reconnect |= held.task.networks != task.networks;
                    held.task = Arc::new(task);
                }
                None => {
                    let status = task.status.clone();
                    self.hold(task, &status, true, now);
                }
            }
            dirty.insert(id);
            outputs.push(Output::Save(id));
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn finish(
        &mut self,
        id: TaskId,
        attempt: u64,
        operation: Operation,
        result: Result<Done, Failure>,
        now: Timestamp,
        dirty: &mut BTreeSet<TaskId>,
        outputs: &mut Vec<Output>,
    ) {
        let Some(held) = self.tasks.get_mut(&id).filter(|held| held.busy == Some((operation, attempt)))
        else {
            // The end of something given up.
            return;
        };
        held.busy = None;
        held.retry = None;
        held.reconnect |= operation == Operation::Connect && result.is_err();
        dirty.insert(id);
        match task::conclude(&held.status, operation, result, now) {
            // As when it was connected as it should be: nobody need hear of that.
            Conclusion::Status(status) if status == held.status => {}
            Conclusion::Status(status) => {
                held.status = status;
                held.report = Report::Unsent;
                // Lower states need not be written: the container shows them.
                if held.status.state >= TaskState::Running {
                    outputs.push(Output::Save(id));
                }
            }
            Conclusion::Retry(status, at) => {
                if held.status != status {
                    held.status = status;
                    held.report = Report::Unsent;
                }
                held.retry = Some((operation, at));
            }
            Conclusion::Gone => {
                self.tasks.remove(&id);
                dirty.remove(&id);
                outputs.push(Output::Forget(id));
            }
        }
    }

    /// Takes every step that is due for these tasks.
    fn settle(&mut self, dirty: BTreeSet<TaskId>, now: Timestamp) -> Vec<Output> {
        let mut outputs = Vec::new();
        for id in dirty {
            let Some(held) = self.tasks.get_mut(&id) else { continue };
            // Ends: each step but `Perform`, which is the last one, moves the state forward.
            loop {
                let observed = Observed {
                    state: held.status.state,
                    busy: held.busy.map(|(operation, _)| operation),
                    retry: held.retry,
                    reconnect: held.reconnect,
                    drain: held.drain.map(|drain| drain.until),
                };
                match task::step(Wish::of(held.task.desired, held.assigned), observed, now) {
                    Step::Idle | Step::IdleUntil(_) => break,
                    Step::Report(state, message) => {
                        (held.status.state, held.status.at) = (state, now);
                        held.status.message = message.to_owned();
                        held.report = Report::Unsent;
                        if state.is_terminal() {
                            outputs.push(Output::Save(id));
                        }
                    }
                    Step::Perform(operation) => {
                        held.drain = held.drain.filter(|_| operation != Operation::Shutdown);
                        self.attempt += 1;
                        held.busy = Some((operation, self.attempt));
                        held.reconnect &= operation != Operation::Connect;
                        held.retry =
                            held.retry.filter(|(failed, _)| *failed == Operation::Connect && held.reconnect);
                        outputs.push(Output::Perform {
                            task: held.task.clone(),
                            operation,
                            attempt: self.attempt,
                        });
                        break;
                    }
                }
            }
        }
        outputs
    }

    /// Sends all unsent statuses in one message. Of several changes of a task only the last one is told.
    fn send(&mut self, outputs: &mut Vec<Output>) {
        if !self.connected {
            return;
        }
        let sequence = self.sequence + 1;
        let mut updates = Vec::new();
        for (id, held) in &mut self.tasks {
            if held.report == Report::Unsent {
                held.report = Report::Sent(sequence);
                updates.push((*id, held.status.clone()));
            }
        }
        if !updates.is_empty() {
            self.sequence = sequence;
            outputs.push(Output::Send { sequence, updates });
        }
    }
}

/// Whether a task has a credential that is not known here, as after a restart of the daemon.
fn is_withheld(task: &Task) -> bool {
    let auth = task.spec.container.registry_auth.as_ref();
    auth.is_some_and(|auth| auth.secret == RegistrySecret::Withheld)
}

#[cfg(test)]
mod tests;
