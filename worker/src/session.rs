//! The worker's line to the leader: finds it, keeps one stream open, and comes back with growing patience.
//!
//! What arrives goes to the event loop as [`SessionEvent`]s; what is to be sent goes into the [`Outbox`] that the first
//! event of each session brings. Nothing is decided here but whom to ask next and when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_api::v1::agent_message::Message as FromAgent;
use rswarm_api::v1::dispatcher_client::DispatcherClient;
use rswarm_api::v1::manager_message::Message as FromManager;
use rswarm_types::netmap::NetworkChange;
use rswarm_types::task::RegistryAuth;
use rswarm_types::{NodeDescription, Role, Task, TaskId, TaskState, TaskStatus, Timestamp, Version};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::agent::Assignments;
use crate::{ClusterView, Connect, SessionState};
use rswarm_types::error::chain;

/// How long a manager may take to answer `hello`, connecting included. One that is cut off does not hold up the
/// search for longer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// First wait when no manager helped, doubled up to the longest. Small enough that a new leader, elected in about one
/// second, is found within another half.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Redirects followed without a pause: during an election managers may point at each other.
const REDIRECTS_MAX: u32 = 3;
/// Messages on their way out. One is a heartbeat or one batch of statuses, so this many means that nobody reads.
const OUTBOX_MESSAGES: usize = 1024;
/// A full set of assignments of a crowded node is a few megabytes; tonic's own limit of 4 would cut it off.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Used until a manager names another.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);

/// News from the session for the event loop.
pub(crate) enum SessionEvent {
    /// A leader welcomed this node.
    Connected(Outbox),
    Disconnected,
    Assignments(Assignments),
    Acknowledged(u64),
    Settled(u64),
    SubscribeLogs(v1::LogSubscription),
    UnsubscribeLogs(String),
    CheckNetwork,
}

/// The way to the leader while the session lasts.
#[derive(Clone)]
pub(crate) struct Outbox {
    messages: mpsc::Sender<v1::AgentMessage>,
    broken: CancellationToken,
    /// For calls beside the session's stream.
    pub channel: Channel,
}

impl Outbox {
    /// Queues statuses. If the queue is full the session is ended, for the next one starts with all that is unsent.
    pub fn send_statuses(&self, sequence: u64, updates: &[(TaskId, TaskStatus)]) {
        let updates = updates
            .iter()
            .map(|(id, status)| v1::agent_message::Update {
                task_id: id.to_string(),
                status: Some(status.into()),
            })
            .collect();
        let statuses = v1::agent_message::TaskStatuses { sequence, updates };
        self.send(FromAgent::Statuses(statuses));
    }

    /// The node's network is as the map of this index says.
    pub fn send_network_set(&self, index: u64) {
        self.send(FromAgent::NetworkSet(index));
    }

    /// Asks to be told when that is true of every node.
    pub fn ask_settled(&self, index: u64) {
        self.send(FromAgent::AskSettled(index));
    }

    /// What the node says of itself has changed.
    pub fn send_description(&self, description: &NodeDescription) {
        self.send(FromAgent::Description(description.into()));
    }

    /// What a comparison of the node's networks found.
    pub fn send_network_check(&self, check: v1::NetworkCheck) {
        self.send(FromAgent::NetworkChecked(check));
    }

    fn send(&self, message: FromAgent) {
        if self.messages.try_send(v1::AgentMessage { message: Some(message) }).is_err() {
            self.broken.cancel();
        }
    }
}

/// See the module.
pub(crate) struct Session {
    pub connect: Connect,
    pub description: watch::Receiver<NodeDescription>,
    pub cluster: watch::Sender<ClusterView>,
    pub state: watch::Sender<SessionState>,
    /// Which events these are is the receiver's business.
    pub events: mpsc::Sender<crate::server::Event>,
}

/// How an attempt at one manager ended.
enum Ended {
    /// There was a session, and now there is none.
    Broken(String),
    Redirected(String),
    NoLeader,
    Failed(String),
    /// Nobody listens to the events any more.
    Closed,
}

impl Session {
    /// Runs until the event loop is gone.
    pub async fn run(self) {
        let mut last_leader: Option<String> = None;
        let mut redirect: Option<String> = None;
        let mut redirects = 0;
        let mut failures = 0u32;
        let mut next = 0usize;
        loop {
            let addr = match redirect.take() {
                Some(addr) => addr,
                None => {
                    let managers = self.cluster.borrow().managers.clone();
                    let Some(addr) = candidate(&managers, last_leader.as_deref(), next) else {
                        self.say(SessionState::Searching { reason: "no manager is known".to_owned() });
                        tokio::time::sleep(BACKOFF_MAX).await;
                        continue;
                    };
                    next += 1;
                    addr
                }
            };
            let reason = match self.attempt(&addr).await {
                Ended::Closed => return,
                Ended::Redirected(leader) if redirects < REDIRECTS_MAX => {
                    redirects += 1;
                    redirect = Some(leader);
                    continue;
                }
                Ended::Redirected(_) | Ended::NoLeader => format!("manager `{addr}` knows no leader"),
                Ended::Failed(reason) => format!("manager `{addr}`: {reason}"),
                Ended::Broken(reason) => {
                    tracing::info!(leader = %addr, %reason, "session ended");
                    self.say(SessionState::Searching { reason });
                    if self.tell(SessionEvent::Disconnected).await.is_err() {
                        return;
                    }
                    // It most likely died or stepped down: the others know first.
                    (last_leader, redirects, failures, next) = (Some(addr), 0, 0, 0);
                    tokio::time::sleep(jittered(BACKOFF_MIN / 4)).await;
                    continue;
                }
            };
            redirects = 0;
            tracing::debug!(%reason, "no session yet");
            self.say(SessionState::Searching { reason });
            // A round asks every manager once, then waits.
            if next.is_multiple_of(self.cluster.borrow().managers.len().max(1)) {
                tokio::time::sleep(jittered(backoff(failures))).await;
                failures = failures.saturating_add(1);
            }
        }
    }

    /// One attempt at one manager, and the whole session if it leads.
    async fn attempt(&self, addr: &str) -> Ended {
        let channel = (self.connect)(addr);
        let mut client = DispatcherClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (messages, outgoing) = mpsc::channel(OUTBOX_MESSAGES);
        let outbox = Outbox { messages, broken: CancellationToken::new(), channel };
        outbox.send(FromAgent::Hello(v1::agent_message::Hello {
            description: Some((&*self.description.borrow()).into()),
        }));
        let opening = async {
            let mut incoming = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
            let first = incoming.message().await?;
            Ok::<_, tonic::Status>((incoming, first))
        };
        let (mut incoming, first) = match tokio::time::timeout(HELLO_TIMEOUT, opening).await {
            Ok(Ok((incoming, first))) => (incoming, first.and_then(|message| message.message)),
            Ok(Err(status)) => return Ended::Failed(describe(&status)),
            Err(_) => return Ended::Failed(format!("no answer within {HELLO_TIMEOUT:?}")),
        };
        let (mut heartbeat, warnings) = match first {
            Some(FromManager::Welcome(mut welcome)) => {
                welcome.warnings.extend(data_path_taken(welcome.data_path_port).await);
                (ticker(welcome.heartbeat_period_nanos), welcome.warnings)
            }
            Some(FromManager::Redirect(redirect)) if redirect.leader_addr.is_empty() => {
                return Ended::NoLeader;
            }
            Some(FromManager::Redirect(redirect)) => return Ended::Redirected(redirect.leader_addr),
            Some(_) => return Ended::Failed("it spoke before it welcomed this node".to_owned()),
            None => return Ended::Failed("it hung up instead of answering".to_owned()),
        };
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        self.say(SessionState::Connected { leader: addr.to_owned(), warnings });
        if self.tell(SessionEvent::Connected(outbox.clone())).await.is_err() {
            return Ended::Closed;
        }
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                _ = heartbeat.tick() => {
                    outbox.send(FromAgent::Heartbeat(v1::agent_message::Heartbeat {}));
                    continue;
                }
                () = outbox.broken.cancelled() => {
                    return Ended::Broken("the leader reads nothing any more".to_owned());
                }
            };
            let event = match message {
                Err(status) => return Ended::Broken(describe(&status)),
                Ok(None) => return Ended::Broken("the leader ended the session".to_owned()),
                Ok(Some(message)) => match message.message {
                    Some(FromManager::Assignments(assignments)) => {
                        SessionEvent::Assignments(read_assignments(assignments, &outbox))
                    }
                    Some(FromManager::StatusesAcknowledged(sequence)) => SessionEvent::Acknowledged(sequence),
                    Some(FromManager::NetworkSettled(index)) => SessionEvent::Settled(index),
                    Some(FromManager::Cluster(view)) => {
                        if view.heartbeat_period_nanos != 0 {
                            heartbeat = ticker(view.heartbeat_period_nanos);
                        }
                        self.see(view);
                        continue;
                    }
                    Some(FromManager::SubscribeLogs(subscription)) => {
                        SessionEvent::SubscribeLogs(subscription)
                    }
                    Some(FromManager::UnsubscribeLogs(id)) => SessionEvent::UnsubscribeLogs(id),
                    Some(FromManager::CheckNetwork(_)) => SessionEvent::CheckNetwork,
                    Some(FromManager::Redirect(_)) => {
                        return Ended::Broken("the leader stepped down".to_owned());
                    }
                    // A repeated welcome, or a message of a later version.
                    Some(FromManager::Welcome(_)) | None => continue,
                },
            };
            if self.tell(event).await.is_err() {
                return Ended::Closed;
            }
        }
    }

    async fn tell(&self, event: SessionEvent) -> Result<(), ()> {
        self.events.send(crate::server::Event::Session(event)).await.map_err(|_| ())
    }

    fn say(&self, state: SessionState) {
        self.state.send_if_modified(|present| {
            let changed = *present != state;
            *present = state;
            changed
        });
    }

    fn see(&self, view: v1::manager_message::ClusterView) {
        self.cluster.send_if_modified(|present| {
            let mut next = present.clone();
            if !view.manager_addrs.is_empty() {
                next.managers = view.manager_addrs;
            }
            if !view.root_cert_pem.is_empty() {
                next.root_cert_pem = view.root_cert_pem;
            }
            match v1::Role::try_from(view.role) {
                Ok(v1::Role::Worker) => next.role = Some(Role::Worker),
                Ok(v1::Role::Manager) => next.role = Some(Role::Manager),
                Ok(v1::Role::Unspecified) | Err(_) => {}
            }
            next.renew_below = Version(view.renew_below);
            let changed = *present != next;
            *present = next;
            changed
        });
    }
}

/// Whom to ask as number `n` since the last session: every manager in turn, the last leader after the others.
fn candidate(managers: &[String], last_leader: Option<&str>, n: usize) -> Option<String> {
    let mut order: Vec<&String> = managers.iter().collect();
    order.sort_by_key(|addr| Some(addr.as_str()) == last_leader);
    order.get(n % order.len().max(1)).map(|addr| (*addr).clone())
}

/// The wait after so many rounds in which no manager helped.
fn backoff(rounds: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << rounds.min(16)).min(BACKOFF_MAX)
}

/// Between half and all of `wait`, so that a thousand workers do not return in one moment.
fn jittered(wait: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness the full wait is as good.
    if getrandom::fill(&mut bytes).is_err() {
        return wait;
    }
    wait / 2 + (wait / 2).mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

fn ticker(period_nanos: u64) -> tokio::time::Interval {
    let period = match period_nanos {
        0 => HEARTBEAT_PERIOD,
        nanos => Duration::from_nanos(nanos),
    };
    let mut ticker = tokio::time::interval(period);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticker.reset();
    ticker
}

/// What is wrong if a process of this host has the port of overlay networks, in words.
async fn data_path_taken(port: u32) -> Option<String> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let taken = tokio::task::spawn_blocking(move || rswarm_net::is_data_path_taken(port)).await;
    matches!(taken, Ok(Ok(true))).then(|| {
        format!(
            "UDP port {port} is in use by another process of this host: overlay networks and published ports do not work \
             on this node until it has ended"
        )
    })
}

/// What a failed call says, down to the cause: tonic keeps "connection refused" several sources below.
fn describe(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    }
}

/// Reads assignments. A task that cannot be read, as one with a field of a later version, is rejected by name.
fn read_assignments(wire: v1::manager_message::Assignments, outbox: &Outbox) -> Assignments {
    let mut assignments = Assignments { index: wire.index, full: wire.full, ..Assignments::default() };
    assignments.removed = wire.removed_task_ids.iter().filter_map(|id| id.parse().ok()).collect();
    let mut credentials: HashMap<_, _> =
        wire.credentials.into_iter().map(|one| (one.task_id, one.auth.unwrap_or_default())).collect();
    // Half a network would be worse than the one before; the next full message mends it.
    assignments.network = wire.network.and_then(|change| {
        NetworkChange::try_from(change)
            .inspect_err(|error| tracing::error!(%error, "a change of the network cannot be read"))
            .ok()
            .map(Box::new)
    });
    let mut rejected = Vec::new();
    for task in wire.tasks {
        let id = task.id.clone();
        let auth = credentials.remove(&id).map(RegistryAuth::try_from).transpose();
        let read = auth.and_then(|auth| {
            let mut task = Task::try_from(task)?;
            Arc::make_mut(&mut task.spec).container.registry_auth = auth;
            Ok(task)
        });
        match read {
            Ok(task) => assignments.tasks.push(task),
            Err(error) => {
                tracing::error!(task = %id, %error, "assigned task cannot be read");
                let Ok(id) = id.parse() else { continue };
                assignments.unreadable.push(id);
                let status = TaskStatus {
                    state: TaskState::Rejected,
                    at: Timestamp::now(),
                    error: format!("this node cannot read the task; does it run an older version? {error}"),
                    ..TaskStatus::default()
                };
                rejected.push((id, status));
            }
        }
    }
    if !rejected.is_empty() {
        outbox.send_statuses(0, &rejected);
    }
    assignments
}

/// The connections of a real node: mutual TLS to managers of its own cluster.
pub(crate) fn tls(identity: rswarm_identity::Receiver) -> Connect {
    let identity = Arc::new(identity);
    Arc::new(move |addr| {
        let identity = identity.clone();
        rswarm_api::channel::tls(addr, move || {
            identity.client_config(rswarm_identity::ServerExpectation::Manager)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manager_is_asked_in_turn_and_the_last_leader_last() {
        let managers: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let asked = |leader| -> Vec<_> { (0..4).filter_map(|n| candidate(&managers, leader, n)).collect() };
        assert_eq!(asked(None), ["a", "b", "c", "a"]);
        assert_eq!(asked(Some("a")), ["b", "c", "a", "b"]);
        assert_eq!(candidate(&[], None, 0), None);
    }

    #[test]
    fn patience_grows_within_bounds() {
        assert_eq!(backoff(0), BACKOFF_MIN);
        assert_eq!(backoff(1), BACKOFF_MIN * 2);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
        for _ in 0..100 {
            let wait = jittered(BACKOFF_MAX);
            assert!(wait >= BACKOFF_MAX / 2 && wait <= BACKOFF_MAX, "{wait:?}");
        }
    }
}
