//! One worker's session on the leader: `hello`, then both sides talk until one of them leaves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use rswarm_api::v1;
use rswarm_api::v1::manager_message::Message as Out;
use rswarm_core::State;
use rswarm_core::state::Write;
use rswarm_core::{dispatch, netmap};
use rswarm_types::{NodeDescription, NodeId, Task, TaskId, TaskState, TaskStatus, Timestamp, Version};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::hub::Session;
use crate::ca::unknown_node;
use crate::context::{Context, Leader};
use crate::leader::Lead;
use crate::server::Peer;

/// A peer that opens a stream and says nothing is not a worker.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker is kept waiting during an election before it is told to come back.
const ELECTION_PATIENCE: Duration = Duration::from_secs(2);

/// How long a worker waits for its welcome while what it said of itself is written down. A leader that cannot write
/// still has assignments to tell.
const WELCOME_PATIENCE: Duration = Duration::from_secs(1);

/// Longest remark about a task that is kept, in bytes.
const REMARK_MAX: usize = 4096;
/// Largest description of a node, in bytes.
const DESCRIPTION_MAX: usize = 64 << 10;

/// What goes to the worker.
pub(super) type Outgoing = mpsc::Sender<Result<v1::ManagerMessage, Status>>;

/// Why a session ends.
enum End {
    /// The worker hung up, or its connection broke.
    Gone,
    /// The worker is told, and the stream ends.
    Refused(Status),
    /// Another manager leads; the worker is told which.
    Redirect,
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// Serves a session until it ends.
pub(super) async fn run(
    context: Arc<Context>,
    peer: Peer,
    node: NodeId,
    mut inbound: Streaming<v1::AgentMessage>,
    out: Outgoing,
) {
    let end = match serve(&context, peer, node, &mut inbound, &out).await {
        Ok(()) => return,
        Err(end) => end,
    };
    // The worker may be gone, in which case nobody is left to tell.
    let _ = match end {
        End::Gone => return,
        End::Refused(status) => out.send(Err(status)).await,
        End::Redirect => {
            let leader_addr = context.leader_addr().unwrap_or_default();
            out.send(Ok(message(Out::Redirect(v1::manager_message::Redirect { leader_addr })))).await
        }
    };
}

async fn serve(
    context: &Arc<Context>,
    peer: Peer,
    node: NodeId,
    inbound: &mut Streaming<v1::AgentMessage>,
    out: &Outgoing,
) -> Result<(), End> {
    let hello = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let hello = hello.map_err(|_| Status::deadline_exceeded("expected `hello` within 5 s, found silence"))?;
    let Ok(Some(v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(hello)) })) = hello else {
        return Err(Status::invalid_argument("expected `hello` as the first message of a session").into());
    };
    let description = match hello.description {
        Some(description) => Some(description_from(description)?),
        None => None,
    };
    let lead = match context.find_leader(ELECTION_PATIENCE).await {
        Leader::Here(lead) => lead,
        Leader::Elsewhere | Leader::Unknown => return Err(End::Redirect),
    };
    tokio::select! {
        result = conversation(context, &lead, peer, node, description, inbound, out) => result,
        () = lead.ended.cancelled() => Err(End::Redirect),
        () = out.closed() => Err(End::Gone),
    }
}

async fn conversation(
    context: &Arc<Context>,
    lead: &Lead,
    peer: Peer,
    node: NodeId,
    description: Option<NodeDescription>,
    inbound: &mut Streaming<v1::AgentMessage>,
    out: &Outgoing,
) -> Result<(), End> {
    let state = context.store.snapshot();
    let held = state.node(node).ok_or_else(|| unknown_node(node))?;
    let (mut session, mut writes) = lead.hub.open(&state, node, peer.addr.ip(), Timestamp::now());
    if let Some(description) = description
        && held.description.as_ref() != Some(&description)
    {
        writes.push(Write::SetNodeDescription { id: node, description });
    }
    // Whoever is welcomed is also known, with its name. Should these get lost, so does this session.
    let _ = tokio::time::timeout(WELCOME_PATIENCE, lead.reports.write(writes).await).await;

    let heartbeat_period = super::heartbeat_period(&state);
    // With what the node has just said of its routes.
    let described = context.store.snapshot();
    let warnings = described.node(node).map(|held| described.route_conflicts(held)).unwrap_or_default();
    let welcome = v1::manager_message::Welcome {
        session_id: session.id.0.to_string(),
        heartbeat_period_nanos: super::nanos(heartbeat_period),
        warnings,
        data_path_port: described.cluster().map_or(0, |cluster| cluster.spec.data_path_port).into(),
    };
    send(out, Out::Welcome(welcome)).await?;
    let mut view = super::cluster_view(&state, node);
    send(out, Out::Cluster(view.clone())).await?;
    let mut told = dispatch::assignments(&state, node);
    let first = v1::manager_message::Assignments {
        network: Some((&netmap::full(&state, node)).into()),
        ..full_set(&told)
    };
    send(out, Out::Assignments(first)).await?;
    let mut network = NetworkLine { mapped: state, sent: told.index, set: None, asked: BTreeSet::new() };
    let mut settled = session.settled();
    // What changed while this was set up did not know of this session yet.
    session.wake.notify_one();

    let mut unacknowledged = FuturesOrdered::new();
    loop {
        tokio::select! {
            received = inbound.message() => {
                let Ok(Some(received)) = received else { return Err(End::Gone) };
                session.heard(Timestamp::now()).map_err(|error| Status::aborted(error.to_string()))?;
                let (sequence, writes) = match received.message {
                    Some(v1::agent_message::Message::NetworkSet(index)) => {
                        network.set = network.set.max(Some(Version(index)));
                        network.tell(&session);
                        continue;
                    }
                    Some(v1::agent_message::Message::AskSettled(index)) => {
                        network.asked.insert(Version(index));
                        settled.mark_changed();
                        session.wake_all();
                        continue;
                    }
                    Some(v1::agent_message::Message::NetworkChecked(check)) => {
                        session.network_checked(check);
                        continue;
                    }
                    Some(message) => report(&context.store.snapshot(), node, message)?,
                    None => continue,
                };
                let committed = lead.reports.write(writes).await;
                unacknowledged.push_back(async move { committed.await.map(|()| sequence) });
            }
            Some(committed) = unacknowledged.next(), if !unacknowledged.is_empty() => {
                let Ok(sequence) = committed else { return Err(End::Redirect) };
                if let Some(sequence) = sequence {
                    send(out, Out::StatusesAcknowledged(sequence)).await?;
                }
            }
            () = session.wake.notified() => {
                let state = context.store.snapshot();
                tell_news(state, &session, &mut view, &mut told, &mut network, out).await?;
                network.tell(&session);
            }
            // The hub lives as long as this session.
            Ok(()) = settled.changed(), if !network.asked.is_empty() => {
                let index = *settled.borrow_and_update();
                let waiting = network.asked.split_off(&Version(index.0 + 1));
                if !std::mem::replace(&mut network.asked, waiting).is_empty() {
                    send(out, Out::NetworkSettled(index.0)).await?;
                }
            }
            Some(message) = session.pushed.recv() => send(out, message).await?,
            () = session.superseded.cancelled() => {
                return Err(Status::aborted("this node has opened another session").into());
            }
        }
    }
}

/// How far the node's network has got.
struct NetworkLine {
    /// The state that the last change was computed to.
    mapped: Arc<State>,
    /// The index of the last change sent.
    sent: Version,
    /// The index of the last map that the node's kernel follows.
    set: Option<Version>,
    /// Indexes of which the node wants to know when all nodes are there.
    asked: BTreeSet<Version>,
}

impl NetworkLine {
    /// A node that has done all it was told is where the state is, whether that concerned it or not.
    fn tell(&self, session: &Session) {
        if self.set >= Some(self.sent) {
            session.settle(self.mapped.index);
        }
    }
}

/// Tells the worker what it does not know yet.
async fn tell_news(
    state: Arc<State>,
    session: &Session,
    view: &mut v1::manager_message::ClusterView,
    told: &mut dispatch::Assignments,
    line: &mut NetworkLine,
    out: &Outgoing,
) -> Result<(), End> {
    let node = session.node;
    if state.node(node).is_none() {
        return Err(unknown_node(node).into());
    }
    let changes = dispatch::diff(told, &state, node);
    *told = dispatch::assignments(&state, node);
    let network = netmap::change(&line.mapped, &state, node);
    if !network.is_empty() {
        line.sent = network.index;
    }
    if !changes.is_empty() || !network.is_empty() {
        let assignments = v1::manager_message::Assignments {
            index: changes.index.0,
            full: false,
            removed_task_ids: changes.removed.iter().map(ToString::to_string).collect(),
            network: (!network.is_empty()).then(|| (&network).into()),
            ..with_credentials(changes.set.iter())
        };
        send(out, Out::Assignments(assignments)).await?;
    }
    let news = super::cluster_view(&state, node);
    line.mapped = state;
    if news != *view {
        *view = news.clone();
        send(out, Out::Cluster(news)).await?;
    }
    Ok(())
}

fn full_set(assignments: &dispatch::Assignments) -> v1::manager_message::Assignments {
    v1::manager_message::Assignments {
        index: assignments.index.0,
        full: true,
        ..with_credentials(assignments.tasks())
    }
}

/// Tasks, and beside them the credentials that their node needs for them.
fn with_credentials<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>) -> v1::manager_message::Assignments {
    let mut assignments = v1::manager_message::Assignments::default();
    for task in tasks {
        assignments.tasks.push((&**task).into());
        assignments.credentials.extend(dispatch::credential(task).map(|auth| {
            v1::manager_message::Credential { task_id: task.id.to_string(), auth: Some(auth.into()) }
        }));
    }
    assignments
}

/// What a worker's message asks to be written down, and the sequence to acknowledge once it is.
fn report(
    state: &State,
    node: NodeId,
    message: v1::agent_message::Message,
) -> Result<(Option<u64>, Vec<Write>), Status> {
    use v1::agent_message::Message;
    match message {
        Message::Hello(_) => Err(Status::invalid_argument("expected one `hello` per session, found another")),
        // The last three are the conversation's own.
        Message::Heartbeat(_)
        | Message::NetworkSet(_)
        | Message::AskSettled(_)
        | Message::NetworkChecked(_) => Ok((None, Vec::new())),
        Message::Description(description) => {
            let description = description_from(description)?;
            let known = state.node(node).and_then(|node| node.description.as_ref()) == Some(&description);
            let write = Write::SetNodeDescription { id: node, description };
            Ok((None, if known { Vec::new() } else { vec![write] }))
        }
        Message::Statuses(statuses) => {
            let writes = statuses.updates.into_iter().filter_map(|update| status_write(state, node, update));
            Ok((Some(statuses.sequence), writes.collect::<Result<_, _>>()?))
        }
    }
}

/// The write that a status stands for; `None` if its task is gone, which is no fault of the worker.
fn status_write(
    state: &State,
    node: NodeId,
    update: v1::agent_message::Update,
) -> Option<Result<Write, Status>> {
    let id: TaskId = match update.task_id.parse() {
        Ok(id) => id,
        Err(error) => {
            return Some(Err(Status::invalid_argument(format!("invalid field `task_id`: {error}"))));
        }
    };
    let task = state.task(id)?;
    if task.node_id != Some(node) {
        return Some(Err(Status::permission_denied(format!(
            "task `{id}` is not assigned to node `{node}`, which reported on it"
        ))));
    }
    let mut status = match TaskStatus::try_from(update.status.unwrap_or_default()) {
        Ok(status) => status,
        Err(error) => return Some(Err(error.into())),
    };
    cut(&mut status.message);
    cut(&mut status.error);
    // The states before and after these are the managers' to give.
    if !(TaskState::Accepted..=TaskState::Rejected).contains(&status.state) {
        return Some(Err(Status::invalid_argument(format!(
            "a worker cannot report the state `{}` (task `{id}`)",
            status.state
        ))));
    }
    Some(Ok(Write::SetTaskStatus { id, status }))
}

/// A remark about a task is for people: what is longer than this is no remark, and would fill the log.
fn cut(text: &mut String) {
    let end = text.floor_char_boundary(REMARK_MAX);
    text.truncate(end);
}

/// What a node says of itself, if that is of a size to be kept.
fn description_from(wire: v1::NodeDescription) -> Result<NodeDescription, Status> {
    let size = prost::Message::encoded_len(&wire);
    if size > DESCRIPTION_MAX {
        return Err(Status::invalid_argument(format!(
            "expected a node description of at most {DESCRIPTION_MAX} bytes, found {size}: use fewer engine labels"
        )));
    }
    Ok(NodeDescription::try_from(wire)?)
}

async fn send(out: &Outgoing, content: Out) -> Result<(), End> {
    out.send(Ok(message(content))).await.map_err(|_| End::Gone)
}

fn message(content: Out) -> v1::ManagerMessage {
    v1::ManagerMessage { message: Some(content) }
}
