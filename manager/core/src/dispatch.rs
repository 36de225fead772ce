//! Who is alive, and what each node should be told.
//!
//! [`Sessions`] belongs to the leader's dispatcher alone, lives in memory, and is rebuilt after an election.
//! [`Assignments`] follow from [`State`]. Source: swarm-parity 3.9.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use rswarm_types::{Node, NodeId, NodeState, NodeStatus, Task, TaskId, TaskState, Timestamp, Version};

use crate::state::{State, Write};

/// How much longer than `node_down_after` nodes have after an election: they must find the new leader first.
const ELECTION_GRACE: u32 = 2;
/// Silent nodes from which on the leader suspects itself, if they also are more than half. Two machines may well
/// die together; for three, a switch or the leader's own network is likelier.
const SUSPICIOUS_SILENCES: usize = 3;
/// How long, in times `node_down_after`, the leader goes on suspecting itself before it believes what it sees.
const SUSPICION_LIMIT: u32 = 3;

/// Identifies one session of a node; minted by the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Why a heartbeat was refused: the node must register again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("no session of node `{0}` is known here; register again")]
    Unknown(NodeId),
    #[error("the session of node `{0}` was replaced by a newer one")]
    Superseded(NodeId),
}

/// Sessions and their leases, as the leader knows them.
#[derive(Debug, Clone)]
pub struct Sessions {
    down_after: Duration,
    leases: BTreeMap<NodeId, Lease>,
    /// Since when most nodes have been silent.
    suspicious_since: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    /// `None` until the node registers with this leader, and after its session ended.
    session: Option<SessionId>,
    until: Timestamp,
}

/// What follows from the time that passed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expiry {
    /// To be proposed.
    pub writes: Vec<Write>,
    /// Silent nodes that are left alone because too many fell silent together.
    pub held_back: Vec<NodeId>,
    /// When to ask again.
    pub wake_at: Option<Timestamp>,
}

impl Sessions {
    /// For a new leader: every node that was not down gets time to find it.
    ///
    /// Propose what the first [`Sessions::expire`] returns: those nodes become `unknown`.
    pub fn new(state: &State, now: Timestamp) -> Self {
        let down_after = down_after(state);
        let until = now.after(down_after * ELECTION_GRACE);
        let leases = state
            .nodes()
            .filter(|node| node.status.state != NodeState::Down)
            .map(|node| (node.id, Lease { session: None, until }))
            .collect();
        Self { down_after, leases, suspicious_since: None }
    }

    /// A node opened a session, which replaces any it had. Returns what to propose: it is `ready`.
    pub fn register(
        &mut self,
        state: &State,
        node: NodeId,
        session: SessionId,
        addr: Option<IpAddr>,
        now: Timestamp,
    ) -> Vec<Write> {
        let until = now.after(self.down_after);
        self.leases.insert(node, Lease { session: Some(session), until });
        let Some(held) = state.node(node) else { return Vec::new() };
        set_state(held, NodeState::Ready, "", addr.or(held.status.addr), now).into_iter().collect()
    }

    /// A node was heard from.
    pub fn heartbeat(
        &mut self,
        node: NodeId,
        session: SessionId,
        now: Timestamp,
    ) -> Result<(), SessionError> {
        let down_after = self.down_after;
        let lease = self.leases.get_mut(&node).ok_or(SessionError::Unknown(node))?;
        match lease.session {
            None => Err(SessionError::Unknown(node)),
            Some(held) if held != session => Err(SessionError::Superseded(node)),
            Some(_) => {
                lease.until = now.after(down_after);
                Ok(())
            }
        }
    }

    /// A session's stream ended. The node has until its lease runs out to come back.
    pub fn close(&mut self, node: NodeId, session: SessionId) {
        if let Some(lease) = self.leases.get_mut(&node)
            && lease.session == Some(session)
        {
            lease.session = None;
        }
    }

    /// The session that a node holds.
    pub fn session(&self, node: NodeId) -> Option<SessionId> {
        self.leases.get(&node).and_then(|lease| lease.session)
    }

    /// Compares leases with the state: who is silent is down, who has not registered is unknown, who has is ready.
    ///
    /// Level-triggered: a write that got lost is asked for again. If more than half of the nodes, and at least three,
    /// are silent at once, none of them is moved for as long as the suspicion lasts.
    pub fn expire(&mut self, state: &State, now: Timestamp) -> Expiry {
        self.down_after = down_after(state);
        self.leases.retain(|node, _| state.node(*node).is_some());
        let mut expiry = Expiry::default();
        let mut silent = Vec::new();
        let mut tracked = 0;
        for node in state.nodes() {
            let down = node.status.state == NodeState::Down;
            let grace = Lease { session: None, until: now.after(self.down_after * ELECTION_GRACE) };
            let lease = match self.leases.get(&node.id) {
                Some(lease) => *lease,
                None if down => continue,
                None => *self.leases.entry(node.id).or_insert(grace),
            };
            tracked += usize::from(!(down && lease.until <= now));
            if lease.until <= now {
                if !down {
                    silent.push(node);
                }
                continue;
            }
            expiry.wake_at = Some(expiry.wake_at.map_or(lease.until, |at: Timestamp| at.min(lease.until)));
            let wanted = match lease.session {
                Some(_) => NodeState::Ready,
                None if node.status.state == NodeState::Ready && lease.until > now.after(self.down_after) => {
                    // Only after an election does a lease reach that far: this leader has not heard from it yet.
                    NodeState::Unknown
                }
                None => continue,
            };
            let message =
                if wanted == NodeState::Unknown { "waiting for it to find the new leader" } else { "" };
            expiry.writes.extend(set_state(node, wanted, message, node.status.addr, now));
        }
        let suspicious = silent.len() >= SUSPICIOUS_SILENCES && silent.len() * 2 > tracked;
        let since = if suspicious { Some(self.suspicious_since.unwrap_or(now)) } else { None };
        self.suspicious_since = since;
        if let Some(believed_at) = since.map(|since| since.after(self.down_after * SUSPICION_LIMIT))
            && now < believed_at
        {
            expiry.held_back = silent.iter().map(|node| node.id).collect();
            expiry.wake_at = Some(expiry.wake_at.map_or(believed_at, |at| at.min(believed_at)));
            return expiry;
        }
        for node in silent {
            // Its session is void: should it still live, it must register to become ready again.
            if let Some(lease) = self.leases.get_mut(&node.id) {
                lease.session = None;
            }
            let message = "heartbeat failure";
            expiry.writes.extend(set_state(node, NodeState::Down, message, node.status.addr, now));
        }
        expiry
    }
}

fn down_after(state: &State) -> Duration {
    state.cluster().map_or_else(
        || rswarm_types::ClusterSpec::default().node_down_after,
        |cluster| cluster.spec.node_down_after,
    )
}

/// The write that brings a node into a state, unless it is in it.
fn set_state(
    node: &Node,
    state: NodeState,
    message: &str,
    addr: Option<IpAddr>,
    now: Timestamp,
) -> Option<Write> {
    let held = &node.status;
    let since = if held.state == state { held.since } else { now };
    let status = NodeStatus { state, message: message.to_owned(), addr, since };
    (status.state != held.state || status.addr != held.addr)
        .then_some(Write::SetNodeStatus { id: node.id, status })
}

/// The tasks of one node as of one index.
#[derive(Debug, Clone, Default)]
pub struct Assignments {
    pub index: Version,
    tasks: OrdMap<TaskId, Arc<Task>>,
}

/// What changed for a node between two indexes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    pub index: Version,
    /// New tasks and those whose desired state changed.
    pub set: Vec<Arc<Task>>,
    /// Tasks whose containers are to be deleted.
    pub removed: Vec<TaskId>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

/// Whether a worker is to know of a task that is on its node.
fn is_told(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && task.status.state != TaskState::Orphaned
}

impl Assignments {
    /// The tasks that the worker should hold, by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values().filter(|task| is_told(task))
    }
}

/// What a node should hold: its tasks from `assigned` on until they are removed, ended ones included, whose logs
/// may still be read. Costs a pointer.
pub fn assignments(state: &State, node: NodeId) -> Assignments {
    Assignments { index: state.index, tasks: state.indexes.by_node.get(&node).cloned().unwrap_or_default() }
}

/// What to tell a node that holds `old`. Costs the difference.
pub fn diff(old: &Assignments, state: &State, node: NodeId) -> Changes {
    let new = assignments(state, node);
    let mut changes = Changes { index: state.index, ..Changes::default() };
    for item in old.tasks.diff(&new.tasks) {
        match item {
            DiffItem::Add(_, task) => changes.set.extend(is_told(task).then(|| Arc::clone(task))),
            DiffItem::Remove(id, task) => changes.removed.extend(is_told(task).then_some(*id)),
            DiffItem::Update { old: (_, before), new: (id, after) } => {
                match (is_told(before), is_told(after)) {
                    // Its own report of a state is no news to the worker.
                    (true, true) if before.desired == after.desired => {}
                    (_, true) => changes.set.push(Arc::clone(after)),
                    (true, false) => changes.removed.push(*id),
                    (false, false) => {}
                }
            }
        }
    }
    changes
}
