//! `service logs`: the leader subscribes the workers involved, each publishes what its tasks wrote, and the records
//! are passed on to the caller as they come.
//!
//! Other managers pass the call on to the leader. Queues are bounded at each step: a caller that reads slowly slows
//! the workers down, and one that hangs up ends their subscriptions. Source: swarm-parity 3.12.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rswarm_api::v1;
use rswarm_api::v1::manager_message::Message;
use rswarm_core::State;
use rswarm_types::{NodeId, ServiceId, Task, TaskId, TaskState};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::context::{Context, Leader, no_leader};
use crate::control::lookup;
use crate::leader::Lead;
use crate::random;

/// How long a worker may take to start publishing.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries of a follower to reach a node that could not be.
const FOLLOW_RETRY: Duration = Duration::from_secs(1);
/// How long a call waits for a leader during an election.
const ELECTION_PATIENCE: Duration = Duration::from_secs(5);
/// Batches of records on their way through this manager, per call.
const BATCHES: usize = 64;

type LogStream = Pin<Box<dyn Stream<Item = Result<v1::ServiceLogsResponse, Status>> + Send>>;

/// Subscriptions that are open on the leader.
#[derive(Default)]
pub(crate) struct Broker {
    open: Mutex<BTreeMap<String, Subscription>>,
}

#[derive(Clone)]
struct Subscription {
    node: NodeId,
    tasks: Arc<BTreeMap<TaskId, Labelled>>,
    events: mpsc::Sender<Event>,
}

/// What the leader knows of a task and the worker need not tell.
#[derive(Clone)]
struct Labelled {
    service_name: String,
    slot: u64,
}

/// What happens to a subscription.
enum Event {
    Started(String),
    Records(Vec<v1::LogRecord>),
    Ended(String, Result<(), Status>),
}

impl Broker {
    /// Takes in what a worker publishes, until it has no more to say or nobody listens any longer.
    pub(crate) async fn publish(
        &self,
        node: NodeId,
        mut stream: Streaming<v1::PublishLogsRequest>,
    ) -> Result<(), Status> {
        let Some(mut message) = stream.message().await? else { return Ok(()) };
        let id = message.subscription_id.clone();
        let Some(subscription) = self.lock().get(&id).cloned() else {
            return Err(Status::not_found(format!("log subscription `{id}` has ended")));
        };
        if subscription.node != node {
            return Err(Status::permission_denied(format!("log subscription `{id}` is another node's")));
        }
        let events = &subscription.events;
        if events.send(Event::Started(id.clone())).await.is_err() {
            return Ok(());
        }
        let result = loop {
            match self.checked(&subscription, &id, message) {
                Ok(records) if records.is_empty() => {}
                Ok(records) => {
                    if events.send(Event::Records(records)).await.is_err() {
                        return Ok(());
                    }
                }
                Err(status) => break Err(status),
            }
            let next = tokio::select! {
                next = stream.message() => next,
                () = events.closed() => return Ok(()),
            };
            match next {
                Ok(Some(next)) => message = next,
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        };
        let _ = events.send(Event::Ended(id, result.clone())).await;
        result
    }

    /// The records of a message, labelled by what the leader knows; refuses those of tasks not subscribed to.
    fn checked(
        &self,
        subscription: &Subscription,
        id: &str,
        message: v1::PublishLogsRequest,
    ) -> Result<Vec<v1::LogRecord>, Status> {
        if message.subscription_id != id {
            return Err(Status::invalid_argument("expected one log subscription per call, found another"));
        }
        let label = |record: v1::LogRecord| {
            let task = record.task_id.parse().ok().and_then(|id: TaskId| subscription.tasks.get(&id));
            let task = task.ok_or_else(|| {
                Status::permission_denied(format!(
                    "nobody subscribed to the log of task `{}`",
                    record.task_id
                ))
            })?;
            Ok(v1::LogRecord {
                service_name: task.service_name.clone(),
                slot: task.slot,
                node_id: subscription.node.to_string(),
                ..record
            })
        };
        message.records.into_iter().map(label).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Subscription>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a call on any manager.
pub(crate) async fn service_logs(
    context: &Arc<Context>,
    request: Request<v1::ServiceLogsRequest>,
) -> Result<LogStream, Status> {
    match context.find_leader(ELECTION_PATIENCE).await {
        Leader::Here(lead) => {
            let state = context.read().await?;
            let targets = Targets::resolve(&state, &request.get_ref().targets)?;
            let (replies, stream) = mpsc::channel(BATCHES);
            let call = Call::new(context.clone(), lead, request.into_inner(), targets, replies);
            tokio::spawn(call.run(state));
            Ok(Box::pin(ReceiverStream::new(stream)))
        }
        Leader::Elsewhere => {
            let (mut leader, onward) = context.pass_on(request)?;
            Ok(Box::pin(leader.service_logs(onward).await?.into_inner()))
        }
        Leader::Unknown => Err(no_leader()),
    }
}

/// What a caller wants to read.
struct Targets {
    services: BTreeSet<ServiceId>,
    tasks: BTreeSet<TaskId>,
}

impl Targets {
    fn resolve(state: &State, names: &[String]) -> Result<Self, Status> {
        if names.is_empty() {
            return Err(Status::invalid_argument("expected a service or task whose log to read, found none"));
        }
        let mut targets = Self { services: BTreeSet::new(), tasks: BTreeSet::new() };
        for name in names {
            match (lookup::service(state, name), lookup::task(state, name)) {
                (Ok(service), _) => {
                    targets.services.insert(service.id);
                }
                (Err(_), Ok(task)) => {
                    targets.tasks.insert(task.id);
                }
                (Err(service), Err(task)) => {
                    let not_found = tonic::Code::NotFound;
                    return Err(match (service.code(), task.code()) {
                        (code, _) if code != not_found => service,
                        (_, code) if code != not_found => task,
                        _ => Status::not_found(format!("no such service or task: {name}")),
                    });
                }
            }
        }
        Ok(targets)
    }

    /// The tasks meant, that a node has heard of, by node.
    fn by_node(&self, state: &State) -> BTreeMap<NodeId, Vec<Arc<Task>>> {
        let of_services = self.services.iter().flat_map(|id| state.tasks_of(*id));
        let single = self.tasks.iter().filter_map(|id| state.task(*id));
        let mut by_node: BTreeMap<NodeId, Vec<Arc<Task>>> = BTreeMap::new();
        for task in of_services.chain(single) {
            let told = task.status.state >= TaskState::Assigned && task.status.state != TaskState::Orphaned;
            if let Some(node) = task.node_id.filter(|_| told) {
                by_node.entry(node).or_default().push(task.clone());
            }
        }
        by_node
    }

    /// Whether nothing that was asked for exists any more.
    fn are_gone(&self, state: &State) -> bool {
        self.services.iter().all(|id| state.service(*id).is_none())
            && self.tasks.iter().all(|id| state.task(*id).is_none())
    }
}

/// One call of `ServiceLogs` on the leader.
struct Call {
    context: Arc<Context>,
    lead: Arc<Lead>,
    request: v1::ServiceLogsRequest,
    targets: Targets,
    replies: mpsc::Sender<Result<v1::ServiceLogsResponse, Status>>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    subscriptions: Subscriptions,
    /// Tasks that some subscription covers or covered.
    covered: BTreeSet<TaskId>,
    /// Nodes a caller was already told about.
    unreachable: BTreeSet<NodeId>,
    /// For a follower: time of the last record of each task, where to go on after a stream broke.
    seen: BTreeMap<String, u64>,
    /// For a follower: when to try again to reach nodes that could not be.
    retry_at: Option<Instant>,
}

/// The call's own subscriptions; dropping them ends them on the workers.
struct Subscriptions {
    lead: Arc<Lead>,
    /// Until when each must have started; `None` once it has.
    waiting: BTreeMap<String, (NodeId, Option<Instant>)>,
}

impl Subscriptions {
    fn end(&mut self, id: &str) -> Option<NodeId> {
        let (node, _) = self.waiting.remove(id)?;
        self.lead.logs.lock().remove(id);
        Some(node)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        for (id, (node, _)) in std::mem::take(&mut self.waiting) {
            self.lead.logs.lock().remove(&id);
            // A worker that cannot be told now finds out when it publishes.
            self.lead.hub.push(node, Message::UnsubscribeLogs(id));
        }
    }
}

impl Call {
    fn new(
        context: Arc<Context>,
        lead: Arc<Lead>,
        request: v1::ServiceLogsRequest,
        targets: Targets,
        replies: mpsc::Sender<Result<v1::ServiceLogsResponse, Status>>,
    ) -> Self {
        let (events, inbox) = mpsc::channel(BATCHES);
        let subscriptions = Subscriptions { lead: lead.clone(), waiting: BTreeMap::new() };
        Self {
            context,
            lead,
            request,
            targets,
            replies,
            events,
            inbox,
            subscriptions,
            covered: BTreeSet::new(),
            unreachable: BTreeSet::new(),
            seen: BTreeMap::new(),
            retry_at: None,
        }
    }

    async fn run(mut self, state: Arc<State>) {
        let lead = self.lead.clone();
        let replies = self.replies.clone();
        let stop = self.context.stop.clone();
        let end = tokio::select! {
            end = self.talk(state) => end,
            () = replies.closed() => return,
            () = lead.ended.cancelled() => Err(Status::unavailable("the leader changed: ask again")),
            () = stop.cancelled() => Err(Status::unavailable("this manager is stopping: ask another")),
        };
        if let Err(status) = end {
            let _ = replies.send(Err(status)).await;
        }
    }

    async fn talk(&mut self, state: Arc<State>) -> Result<(), Status> {
        let mut changes = self.context.store.subscribe();
        self.subscribe(&state, true).await;
        loop {
            if self.subscriptions.waiting.is_empty()
                && (!self.request.follow || self.targets.are_gone(&self.context.store.snapshot()))
            {
                return Ok(());
            }
            let deadline = self.subscriptions.waiting.values().filter_map(|(_, until)| *until).min();
            tokio::select! {
                Some(event) = self.inbox.recv() => self.on_event(event).await,
                () = until(deadline) => self.give_up_on_silent().await,
                () = until(self.retry_at) => {
                    self.retry_at = None;
                    self.subscribe(&self.context.store.snapshot(), false).await;
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let state = changes.borrow_and_update().clone();
                    if self.request.follow {
                        self.subscribe(&state, false).await;
                    }
                }
            }
        }
    }

    /// Subscribes the nodes of tasks that no subscription covers yet. `tail` and `since` are about what was there
    /// when the caller asked, not about tasks that came later.
    async fn subscribe(&mut self, state: &State, first: bool) {
        for (node, mut tasks) in self.targets.by_node(state) {
            tasks.retain(|task| !self.covered.contains(&task.id));
            if tasks.is_empty() {
                continue;
            }
            let id = random::text();
            let labelled = tasks
                .iter()
                .map(|t| (t.id, Labelled { service_name: t.service_name.clone(), slot: t.slot }))
                .collect();
            let subscription = Subscription { node, tasks: Arc::new(labelled), events: self.events.clone() };
            self.lead.logs.lock().insert(id.clone(), subscription);
            let message = v1::LogSubscription {
                id: id.clone(),
                task_ids: tasks.iter().map(|task| task.id.to_string()).collect(),
                follow: self.request.follow,
                since_at: self.request.since_at.max(self.resume_at(&tasks)),
                tail: self.request.tail.filter(|_| first),
            };
            if self.lead.hub.push(node, Message::SubscribeLogs(message)) {
                self.covered.extend(tasks.iter().map(|task| task.id));
                let started_by = Some(Instant::now() + PUBLISH_PATIENCE);
                self.subscriptions.waiting.insert(id, (node, started_by));
            } else {
                // Its tasks stay uncovered, so that a follower tries again.
                self.lead.logs.lock().remove(&id);
                self.missing(node, "it has no connection to the managers").await;
            }
        }
    }

    /// From when on the records of these tasks are still wanted: after what all of them have already said.
    fn resume_at(&self, tasks: &[Arc<Task>]) -> u64 {
        let seen = |task: &Arc<Task>| self.seen.get(&task.id.to_string()).map_or(0, |at| at + 1);
        tasks.iter().map(seen).min().unwrap_or(0)
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Started(id) => {
                if let Some((node, started_by)) = self.subscriptions.waiting.get_mut(&id) {
                    *started_by = None;
                    self.unreachable.remove(node);
                }
            }
            Event::Records(mut records) => {
                if self.request.follow {
                    records.retain(|record| self.note_seen(record));
                }
                let reply = v1::ServiceLogsResponse { records, warnings: Vec::new() };
                // A caller that hung up is noticed where all is waited for.
                let _ = self.replies.send(Ok(reply)).await;
            }
            Event::Ended(id, result) => {
                let tasks = self.tasks_of(&id);
                if let (Some(node), Err(status)) = (self.subscriptions.end(&id), result) {
                    self.covered.retain(|task| !tasks.contains(task));
                    self.missing(node, &format!("its stream broke: {}", status.message())).await;
                }
            }
        }
    }

    /// Remembers how far a task's log was read; `false` for a record that was passed on before.
    fn note_seen(&mut self, record: &v1::LogRecord) -> bool {
        match self.seen.get_mut(&record.task_id) {
            Some(seen) if record.at < *seen => false,
            Some(seen) => {
                *seen = record.at;
                true
            }
            None => {
                self.seen.insert(record.task_id.clone(), record.at);
                true
            }
        }
    }

    fn tasks_of(&self, id: &str) -> Vec<TaskId> {
        let open = self.lead.logs.lock();
        open.get(id).map(|subscription| subscription.tasks.keys().copied().collect()).unwrap_or_default()
    }

    async fn give_up_on_silent(&mut self) {
        let now = Instant::now();
        let late = |(_, (_, until)): &(&String, &(NodeId, Option<Instant>))| until.is_some_and(|u| u <= now);
        let silent: Vec<_> =
            self.subscriptions.waiting.iter().filter(late).map(|(id, _)| id.clone()).collect();
        for id in silent {
            let tasks = self.tasks_of(&id);
            if let Some(node) = self.subscriptions.end(&id) {
                self.covered.retain(|task| !tasks.contains(task));
                self.missing(node, "it did not answer within 5 s").await;
            }
        }
    }

    /// Logs of a node cannot be had now; a follower tries again in a while.
    async fn missing(&mut self, node: NodeId, why: &str) {
        if self.request.follow {
            self.retry_at = Some(Instant::now() + FOLLOW_RETRY);
        }
        self.warn(node, why).await;
    }

    /// Tells the caller, once per node and failure, that part of the logs is missing.
    async fn warn(&mut self, node: NodeId, why: &str) {
        if !self.unreachable.insert(node) {
            return;
        }
        let state = self.context.store.snapshot();
        let name = state.node(node).map_or_else(|| node.to_string(), |node| node.display_name());
        let warning = format!("logs of node `{name}` ({node}) are missing: {why}");
        let reply = v1::ServiceLogsResponse { records: Vec::new(), warnings: vec![warning] };
        let _ = self.replies.send(Ok(reply)).await;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
