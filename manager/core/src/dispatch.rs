//! Who is alive, and what each node should be told.
//!
//! [`Sessions`] belongs to the leader's dispatcher alone, lives in memory, and is rebuilt after an election.
//! [`Assignments`] follow from [`State`]. Source: swarm-parity 3.9.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use rswarm_types::task::RegistryAuth;
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
    /// Where it opened its session from.
    addr: Option<IpAddr>,
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
            .map(|node| (node.id, Lease { session: None, until, addr: None }))
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
        self.leases.insert(node, Lease { session: Some(session), until, addr });
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

    /// Whether a node that does not count as down has no session: what it was told last may be outdated.
    pub fn awaits_any(&self, now: Timestamp) -> bool {
        self.leases.values().any(|lease| lease.session.is_none() && lease.until > now)
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
            let until = now.after(self.down_after * ELECTION_GRACE);
            let grace = Lease { session: None, until, addr: None };
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
            // The state may not show yet what the registration wrote.
            let addr = lease.addr.or(node.status.addr);
            expiry.writes.extend(set_state(node, wanted, message, addr, now));
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

/// The registry's credential that the node of `task` needs: none once the task is over or told to stop.
pub fn credential(task: &Task) -> Option<&RegistryAuth> {
    let goes_on = !task.status.state.is_terminal() && task.desired <= TaskState::Running;
    task.spec.container.registry_auth.as_ref().filter(|_| goes_on)
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
                    (true, true) if before.desired == after.desired && before.networks == after.networks => {}
                    (_, true) => changes.set.push(Arc::clone(after)),
                    (true, false) => changes.removed.push(*id),
                    (false, false) => {}
                }
            }
        }
    }
    changes
}

/// Nodes that may have something new to learn: those whose own object differs, or whose tasks do. Costs the
/// difference.
pub fn touched(old: &State, new: &State) -> BTreeSet<NodeId> {
    let mut touched = BTreeSet::new();
    for item in old.nodes.diff(&new.nodes) {
        let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
        touched.insert(*id);
    }
    for item in old.tasks.diff(&new.tasks) {
        let (DiffItem::Add(_, task) | DiffItem::Remove(_, task) | DiffItem::Update { new: (_, task), .. }) =
            item;
        touched.extend(task.node_id);
    }
    touched
}

/// Nodes whose role changed between two states. Costs the difference.
pub fn role_changes(old: &State, new: &State) -> Vec<NodeId> {
    let changed = old.nodes.diff(&new.nodes).filter_map(|item| match item {
        DiffItem::Update { old: (_, before), new: (id, after) } => {
            (before.role_since != after.role_since).then_some(*id)
        }
        DiffItem::Add(..) | DiffItem::Remove(..) => None,
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, node_id};
    use rswarm_types::Availability;

    const SECOND: Duration = Duration::from_secs(1);

    fn states(f: &Fixture, nodes: u8) -> Vec<NodeState> {
        (1..=nodes).map(|n| f.state.node(node_id(n)).unwrap().status.state).collect()
    }

    fn expire(f: &mut Fixture, sessions: &mut Sessions) -> Expiry {
        let expiry = sessions.expire(&f.state, f.now);
        f.must(expiry.writes.clone());
        assert_eq!(sessions.expire(&f.state, f.now).writes, [], "asks for what it has");
        expiry
    }

    /// A leader with sessions of all nodes.
    fn leader(nodes: u8) -> (Fixture, Sessions) {
        let mut f = Fixture::new(nodes);
        let mut sessions = Sessions::new(&f.state, f.now);
        for n in 1..=nodes {
            let writes = sessions.register(&f.state, node_id(n), SessionId(n.into()), None, f.now);
            f.must(writes);
        }
        (f, sessions)
    }

    fn beat(f: &Fixture, sessions: &mut Sessions, nodes: impl IntoIterator<Item = u8>) {
        for n in nodes {
            sessions.heartbeat(node_id(n), SessionId(n.into()), f.now).unwrap();
        }
    }

    #[test]
    fn a_silent_node_is_down_after_the_lease_and_ready_when_it_registers_again() {
        use NodeState::{Down, Ready};
        let (mut f, mut sessions) = leader(3);
        f.wait(SECOND * 4);
        beat(&f, &mut sessions, [1, 2]);
        let expiry = expire(&mut f, &mut sessions);
        assert_eq!((states(&f, 3), expiry.wake_at), (vec![Ready; 3], Some(f.now.after(SECOND))));
        f.wait(SECOND);
        expire(&mut f, &mut sessions);
        assert_eq!(states(&f, 3), [Ready, Ready, Down]);
        let late = sessions.heartbeat(node_id(3), SessionId(3), f.now);
        assert_eq!(late, Err(SessionError::Unknown(node_id(3))));
        let writes = sessions.register(&f.state, node_id(3), SessionId(9), None, f.now);
        f.must(writes);
        assert_eq!(states(&f, 3), [Ready; 3]);
    }

    #[test]
    fn a_newer_session_replaces_the_older() {
        let (f, mut sessions) = leader(1);
        sessions.register(&f.state, node_id(1), SessionId(50), None, f.now);
        let old = sessions.heartbeat(node_id(1), SessionId(1), f.now);
        assert_eq!(old, Err(SessionError::Superseded(node_id(1))));
        sessions.close(node_id(1), SessionId(1));
        assert_eq!(sessions.session(node_id(1)), Some(SessionId(50)));
    }

    #[test]
    fn a_pass_that_does_not_see_the_registration_yet_keeps_the_address() {
        let mut f = Fixture::new(1);
        let mut sessions = Sessions::new(&f.state, f.now);
        let addr = Some(IpAddr::from([10, 0, 0, 7]));
        // What it wrote is on its way.
        sessions.register(&f.state, node_id(1), SessionId(1), addr, f.now);
        expire(&mut f, &mut sessions);
        let status = &f.state.node(node_id(1)).unwrap().status;
        assert_eq!((status.state, status.addr), (NodeState::Ready, addr));
    }

    #[test]
    fn after_an_election_nodes_are_unknown_until_they_register_or_the_grace_is_over() {
        use NodeState::{Down, Ready, Unknown};
        let mut f = Fixture::new(3);
        f.set_node(3, Down, Availability::Active);
        let mut sessions = Sessions::new(&f.state, f.now);
        expire(&mut f, &mut sessions);
        assert_eq!(states(&f, 3), [Unknown, Unknown, Down]);
        let writes = sessions.register(&f.state, node_id(1), SessionId(1), None, f.now);
        f.must(writes);
        f.wait(SECOND * 9);
        let _ = sessions.heartbeat(node_id(1), SessionId(1), f.now);
        let writes = sessions.register(&f.state, node_id(1), SessionId(2), None, f.now);
        f.must(writes);
        expire(&mut f, &mut sessions);
        assert_eq!(states(&f, 3), [Ready, Unknown, Down]);
        f.wait(SECOND);
        expire(&mut f, &mut sessions);
        assert_eq!(states(&f, 3), [Ready, Down, Down]);
    }

    #[test]
    fn when_most_fall_silent_together_the_leader_suspects_itself_for_a_while() {
        use NodeState::{Down, Ready};
        let (mut f, mut sessions) = leader(5);
        f.wait(SECOND * 4);
        beat(&f, &mut sessions, [1, 2]);
        f.wait(SECOND * 2);
        let expiry = expire(&mut f, &mut sessions);
        assert_eq!((expiry.held_back.len(), states(&f, 5)), (3, vec![Ready; 5]));
        // They were not lost after all but for one.
        for n in [4, 5] {
            let writes = sessions.register(&f.state, node_id(n), SessionId(n.into()), None, f.now);
            f.must(writes);
        }
        expire(&mut f, &mut sessions);
        assert_eq!(states(&f, 5), [Ready, Ready, Down, Ready, Ready]);
        // This time they stay silent.
        f.wait(SECOND * 2);
        beat(&f, &mut sessions, [1]);
        f.wait(SECOND * 4);
        assert_eq!(expire(&mut f, &mut sessions).held_back.len(), 3);
        for _ in 0..15 {
            f.wait(SECOND);
            beat(&f, &mut sessions, [1]);
            expire(&mut f, &mut sessions);
        }
        assert_eq!(states(&f, 5), [Ready, Down, Down, Down, Down]);
    }

    #[test]
    fn a_node_is_told_new_tasks_wishes_and_removals_and_not_its_own_reports() {
        let mut f = Fixture::new(1);
        let nothing = assignments(&f.state, node_id(1));
        let web = f.create("web", 2, |_| {});
        f.pass();
        assert_eq!(diff(&nothing, &f.state, node_id(1)).set.len(), 2);
        let held = assignments(&f.state, node_id(1));
        let tasks: Vec<_> = held.tasks().map(|task| task.id).collect();
        f.report(tasks[0], TaskState::Running);
        f.report(tasks[1], TaskState::Running);
        assert!(diff(&held, &f.state, node_id(1)).is_empty());
        let mut tools = f.network("tools", "10.9.0.0/24");
        (tools.ipam, tools.spec.attachable) = (None, true);
        let (network, id) = (tools.id, tasks[0]);
        let connect = Write::ConnectTask { id, network, aliases: vec![], address: None };
        f.must(vec![Write::CreateNetwork(Box::new(tools)), connect]);
        let changes = diff(&held, &f.state, node_id(1));
        assert_eq!(changes.set.iter().map(|t| (t.id, t.networks.len())).collect::<Vec<_>>(), [(id, 2)]);
        f.must(vec![Write::RemoveService { id: web, expected: None }]);
        f.pass();
        let changes = diff(&held, &f.state, node_id(1));
        assert_eq!(changes.set.iter().map(|t| t.desired).collect::<Vec<_>>(), [TaskState::Remove; 2]);
        f.run();
        let changes = diff(&held, &f.state, node_id(1));
        assert_eq!((changes.set.len(), changes.removed, changes.index), (0, tasks, f.state.index));
    }
}
