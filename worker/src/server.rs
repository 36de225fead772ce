//! The event loop: feeds the agent with what happens and performs what it asks. All state is the agent's; what this
//! adds are the handles of things under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rswarm_types::netmap::NetworkMap;
use rswarm_types::{NodeDescription, NodeId, Task, TaskId, TaskStatus, Timestamp, Version};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::agent::{Agent, Counts, Input, Output};
use crate::executor::{Executor, Failure, Progress};
use crate::ledger::Ledger;
use crate::logs::Subscriptions;
use crate::session::{Outbox, SessionEvent};
use crate::task::{Done, Operation, REMOVE_RETRY_DELAY};

/// Events on their way to the loop, which handles each in microseconds.
pub(crate) const EVENTS: usize = 1024;
/// How often the node is compared with what should be there.
const REPAIR_PERIOD: Duration = Duration::from_secs(5);

/// Everything that can happen to a worker.
pub(crate) enum Event {
    Session(SessionEvent),
    Finished {
        task: TaskId,
        attempt: u64,
        operation: Operation,
        result: Result<Done, Failure>,
    },
    Progress {
        task: TaskId,
        attempt: u64,
        message: String,
    },
    Discarded {
        task: TaskId,
        result: Result<Done, Failure>,
    },
    DiscardAgain(TaskId),
    Repaired(Result<(), Failure>),
    NetworkSet {
        index: Version,
        result: Result<(), Failure>,
    },
    /// What the node waited for has arrived everywhere: whether it says something else of itself now.
    Settled(Result<bool, Failure>),
    /// Tell what is held.
    Tasks(oneshot::Sender<Vec<(Arc<Task>, TaskStatus)>>),
    /// End the loop and leave containers alone.
    Shutdown,
    /// End and remove everything, with force after so long.
    Leave {
        patience: Duration,
        done: oneshot::Sender<Result<(), Failure>>,
    },
}

/// See the module.
pub(crate) struct Server {
    agent: Agent,
    ledger: Ledger,
    executor: Arc<dyn Executor>,
    node_id: NodeId,
    /// What the node says of itself.
    description: watch::Sender<NodeDescription>,
    counts: watch::Sender<Counts>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    operations: HashMap<TaskId, (u64, AbortHandle)>,
    discards: HashMap<TaskId, AbortHandle>,
    outbox: Option<Outbox>,
    subscriptions: Subscriptions,
    repairing: bool,
}

impl Server {
    pub fn new(
        agent: Agent,
        ledger: Ledger,
        executor: Arc<dyn Executor>,
        (node_id, description): (NodeId, watch::Sender<NodeDescription>),
        counts: watch::Sender<Counts>,
        (sender, events): (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    ) -> Self {
        Self {
            agent,
            ledger,
            executor,
            node_id,
            description,
            counts,
            events,
            sender,
            operations: HashMap::new(),
            discards: HashMap::new(),
            outbox: None,
            subscriptions: Subscriptions::default(),
            repairing: false,
        }
    }

    /// Runs until told to end. `outputs` are what the agent asked for when it was restored.
    pub async fn run(mut self, outputs: Vec<Output>) {
        self.perform_all(outputs);
        let mut repair = tokio::time::interval(REPAIR_PERIOD);
        repair.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.agent.wake_at().map(|at| at.since(Timestamp::now()));
            tokio::select! {
                // The loop holds a sender, so the channel is never closed.
                Some(event) = self.events.recv() => match event {
                    Event::Shutdown => return,
                    Event::Leave { patience, done } => {
                        let result = self.leave(patience).await;
                        let _ = done.send(result);
                        return;
                    }
                    event => self.handle(event),
                },
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => self.feed(Input::Tick),
                _ = repair.tick() => self.repair(),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Session(event) => self.handle_session(event),
            Event::Finished { task, attempt, operation, result } => {
                if self.operations.get(&task).is_some_and(|(current, _)| *current == attempt) {
                    self.operations.remove(&task);
                }
                match &result {
                    Err(failure) => {
                        tracing::warn!(%task, ?operation, error = %failure.text, "operation failed");
                    }
                    Ok(done) => tracing::debug!(%task, ?operation, ?done, "operation done"),
                }
                self.feed(Input::Finished { task, attempt, operation, result });
            }
            Event::Progress { task, attempt, message } => {
                self.feed(Input::Progress { task, attempt, message });
            }
            Event::Discarded { task, result } => {
                self.discards.remove(&task);
                if let Err(failure) = result {
                    tracing::warn!(%task, error = %failure.text, "a container of no task cannot be removed yet");
                    let sender = self.sender.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(REMOVE_RETRY_DELAY).await;
                        let _ = sender.send(Event::DiscardAgain(task)).await;
                    });
                }
            }
            Event::DiscardAgain(task) => self.discard(task),
            Event::Repaired(result) => {
                self.repairing = false;
                self.tell_network();
                if let Err(failure) = result {
                    tracing::warn!(error = %failure.text, "the node could not be repaired");
                }
            }
            Event::NetworkSet { index, result } => {
                self.tell_network();
                match (result, &self.outbox) {
                    (Ok(()), Some(outbox)) => {
                        outbox.send_network_set(index.0);
                        if let Some(awaited) = self.executor.awaits_settled() {
                            outbox.ask_settled(awaited.0);
                        }
                    }
                    (Ok(()), None) => {}
                    (Err(failure), _) => {
                        tracing::warn!(%index, error = %failure.text, "the node's network is not as it should be yet");
                    }
                }
            }
            Event::Settled(Ok(_)) => self.tell_network(),
            Event::Settled(Err(failure)) => {
                tracing::warn!(error = %failure.text, "the node could not go over to its next key yet");
            }
            Event::Tasks(answer) => {
                let tasks = self.agent.tasks().map(|(task, status)| (task.clone(), status.clone())).collect();
                let _ = answer.send(tasks);
            }
            // Handled by the loop itself.
            Event::Shutdown | Event::Leave { .. } => {}
        }
    }

    fn handle_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Connected(outbox) => {
                // It may have changed since `hello` was written.
                outbox.send_description(&self.description.borrow());
                self.outbox = Some(outbox);
                self.feed(Input::Connected);
            }
            SessionEvent::Disconnected => {
                self.outbox = None;
                self.subscriptions.end_all();
                self.feed(Input::Disconnected);
            }
            SessionEvent::Assignments(assignments) => self.feed(Input::Assignments(assignments)),
            SessionEvent::Acknowledged(sequence) => self.feed(Input::Acknowledged(sequence)),
            SessionEvent::Settled(index) => {
                self.feed(Input::Settled(index));
                let (settled, sender) = (self.executor.settled(Version(index)), self.sender.clone());
                tokio::spawn(async move {
                    let result = settled.await;
                    if result != Ok(false) {
                        let _ = sender.send(Event::Settled(result)).await;
                    }
                });
            }
            SessionEvent::SubscribeLogs(subscription) => {
                let tasks = subscription
                    .task_ids
                    .iter()
                    .filter_map(|id| self.agent.task(id.parse().ok()?).cloned())
                    .collect();
                if let Some(outbox) = &self.outbox {
                    let (executor, channel) = (self.executor.clone(), outbox.channel.clone());
                    self.subscriptions.begin(subscription, tasks, self.node_id, executor, channel);
                }
            }
            SessionEvent::UnsubscribeLogs(id) => self.subscriptions.end(&id),
            SessionEvent::CheckNetwork => {
                if let Some(outbox) = self.outbox.clone() {
                    let executor = self.executor.clone();
                    tokio::spawn(async move { outbox.send_network_check(executor.check_network().await) });
                }
            }
        }
    }

    /// Tells the managers when the node's network is no longer as they know it.
    fn tell_network(&self) {
        let changed = self.description.send_if_modified(|description| {
            let former = description.network.clone();
            self.executor.update_facts(&mut description.network);
            description.network.tunnel = self.executor.tunnel_keys();
            description.network != former
        });
        if let Some(outbox) = self.outbox.as_ref().filter(|_| changed) {
            outbox.send_description(&self.description.borrow());
        }
    }

    fn feed(&mut self, input: Input) {
        let outputs = self.agent.handle(input, Timestamp::now());
        self.perform_all(outputs);
    }

    fn perform_all(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Perform { task, operation, attempt } => self.perform(task, operation, attempt),
                Output::Discard(id) => self.discard(id),
                Output::Save(id) => {
                    if let Some(entry) = self.agent.entry(id) {
                        self.ledger.put(&entry);
                    }
                }
                Output::Forget(id) => self.ledger.forget(id),
                Output::SaveIndex(index) => self.ledger.set_index(index),
                Output::SetNetwork(map) => self.set_network(map),
                Output::AskSettled(index) => {
                    if let Some(outbox) = &self.outbox {
                        outbox.ask_settled(index);
                    }
                }
                Output::Send { sequence, updates } => {
                    if let Some(outbox) = &self.outbox {
                        outbox.send_statuses(sequence, &updates);
                    }
                }
                Output::Stale { index, seen } => {
                    tracing::warn!(index, seen, "ignored assignments of a manager that no longer leads");
                }
            }
        }
        let counts = self.agent.counts();
        self.counts.send_if_modified(|present| {
            let changed = *present != counts;
            *present = counts;
            changed
        });
    }

    fn perform(&mut self, task: Arc<Task>, operation: Operation, attempt: u64) {
        let (executor, sender, id) = (self.executor.clone(), self.sender.clone(), task.id);
        let progress = Progress::new({
            let sender = sender.clone();
            // A lost line of progress is followed by the next one.
            move |message| drop(sender.try_send(Event::Progress { task: id, attempt, message }))
        });
        let work = async move {
            match operation {
                Operation::Prepare => executor.prepare(task, progress).await,
                Operation::Start => executor.start(task).await,
                Operation::Connect => executor.connect(task).await,
                Operation::Wait => executor.wait(task).await,
                Operation::Shutdown => executor.shutdown(task).await,
                Operation::Remove => executor.remove(id).await,
            }
        };
        let handle = tokio::spawn(async move {
            let result = work.await;
            let _ = sender.send(Event::Finished { task: id, attempt, operation, result }).await;
        });
        if let Some((_, superseded)) = self.operations.insert(id, (attempt, handle.abort_handle())) {
            superseded.abort();
        }
    }

    fn set_network(&self, map: Arc<NetworkMap>) {
        let (sender, index) = (self.sender.clone(), map.index);
        let work = self.executor.network(map);
        tokio::spawn(async move {
            let result = work.await;
            let _ = sender.send(Event::NetworkSet { index, result }).await;
        });
    }

    fn discard(&mut self, task: TaskId) {
        if self.agent.task(task).is_some() || self.discards.contains_key(&task) {
            return;
        }
        tracing::info!(%task, "removing a container that belongs to no task of this node");
        let (executor, sender) = (self.executor.clone(), self.sender.clone());
        let handle = tokio::spawn(async move {
            let result = executor.remove(task).await;
            let _ = sender.send(Event::Discarded { task, result }).await;
        });
        self.discards.insert(task, handle.abort_handle());
    }

    fn repair(&mut self) {
        if std::mem::replace(&mut self.repairing, true) {
            return;
        }
        let (executor, sender) = (self.executor.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = executor.repair().await;
            let _ = sender.send(Event::Repaired(result)).await;
        });
    }

    /// Ends all tasks as their specs say, those that take longer than `patience` at once, and leaves nothing.
    async fn leave(&mut self, patience: Duration) -> Result<(), Failure> {
        (self.outbox, self.subscriptions) = (None, Subscriptions::default());
        self.feed(Input::Disconnected);
        self.feed(Input::Leave);
        let deadline = tokio::time::Instant::now() + patience;
        while self.agent.counts().held > 0 || !self.discards.is_empty() {
            let wake = self.agent.wake_at().map(|at| at.since(Timestamp::now()));
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => self.feed(Input::Tick),
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        for (_, (_, operation)) in self.operations.drain() {
            operation.abort();
        }
        let left: Vec<_> =
            self.agent.tasks().map(|(task, _)| task.id).chain(self.discards.keys().copied()).collect();
        let removed = join_all(left.iter().map(|id| self.executor.remove(*id))).await;
        for (id, result) in left.iter().zip(removed) {
            result?;
            self.ledger.forget(*id);
        }
        self.executor.clear().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (_, (_, operation)) in self.operations.drain() {
            operation.abort();
        }
    }
}
