//! Who belongs to the group: taking members in, removing them, and bringing every change to its end.
//!
//! Changes are level-triggered. The leader looks at the group as it is: a joint configuration left by an interrupted
//! change is resolved, a learner that has caught up becomes a voter, and the node objects are made to say what the
//! group says. So whoever leads finishes what another has begun.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use rswarm_api::v1::ReadIndexRequest;
use rswarm_core::state::{Command, State, Write};
use rswarm_types::{ManagerStatus, Node, NodeId, Timestamp};
use tokio::time::Instant;

use super::leadership::{Leadership, silence};
use super::network::answered;
use super::node::RaftNode;
use super::types::Peer;

/// How long the leader tries to reach a node that wants in.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// A change of the group commits within an election, or the majority is gone.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether others can do without a leader that has no room.
const ROOM_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at a change that is under way.
const POLL: Duration = Duration::from_millis(50);
/// Between two looks at the node objects while the state keeps changing.
const STATE_PAUSE: Duration = Duration::from_millis(200);
/// Entries a learner may lag and still become a voter: what is sent in a moment.
const PROMOTION_LAG: u64 = 1000;

/// A member of the group, as this manager sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub raft_id: u64,
    pub node_id: NodeId,
    /// `IP:PORT` of its API.
    pub addr: String,
    /// Else it is still catching up.
    pub voter: bool,
    pub leader: bool,
    pub reachability: Reachability,
}

/// Whether a member answers the leader. Only the leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachability {
    Reachable,
    Unreachable,
    /// Asked of a manager that does not lead.
    Unknown,
}

/// Why a node was not taken into the group.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error("this manager is not the leader")]
    NotLeader,
    #[error(
        "the leader cannot reach `{addr}`: {reason}; check the advertised address and that the port is open"
    )]
    Unreachable { addr: String, reason: String },
    #[error("`{addr}` is the address of the manager on node `{owner}`; remove that node first")]
    AddrTaken { addr: String, owner: NodeId },
    #[error("the member this node was before cannot be removed")]
    Replace(#[source] RemoveError),
    #[error("the group did not agree to the new member: {0}")]
    Change(String),
}

/// How a removal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The group goes on without the member.
    Done,
    /// The member was this one, and it led: another one leads now and has to be asked again.
    Transferred { to: u64 },
}

/// Why a member was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("this manager is not the leader")]
    NotLeader,
    #[error("the group has no member {0}")]
    NoMember(u64),
    #[error("member {0} is the last manager of the cluster; without it the cluster's state is lost")]
    Last(u64),
    #[error(
        "removing member {raft_id} would lose the quorum: of the {voters} managers left {needed} must be reachable, \
         and {reachable} are; bring one back, or add one, first"
    )]
    Quorum { raft_id: u64, voters: usize, needed: usize, reachable: usize },
    #[error("no other manager took over the leadership in time")]
    Transfer,
    #[error("the group did not agree to the removal: {0}")]
    Change(String),
}

/// The group as the library knows it at one moment.
struct Group {
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    peers: Vec<(u64, Peer)>,
    joint: bool,
    /// The latest change is committed.
    settled: bool,
    /// Learners that have what was committed when they were added, and nearly all since.
    caught_up: BTreeSet<u64>,
}

/// What brings a group nearer to being settled.
#[derive(Debug, PartialEq)]
enum Step {
    /// Nothing yet: a change is under way, or a learner is not ready.
    Wait,
    /// Ends a joint configuration that an interrupted change has left.
    Resolve,
    /// Makes the node objects say which member each node is.
    Describe(Vec<Write>),
    /// Makes a learner a voter. One at a time: each step keeps the largest overlap with the group before it.
    Promote(u64),
    Rest,
}

impl Group {
    fn next_step(&self, state: &State) -> Step {
        if !self.settled {
            return Step::Wait;
        }
        if self.joint {
            return Step::Resolve;
        }
        // Before the promotions, which may take their time: until then nobody is listed as a manager.
        let writes = self.undescribed(state);
        if !writes.is_empty() {
            return Step::Describe(writes);
        }
        match self.caught_up.first() {
            Some(learner) => Step::Promote(*learner),
            None if self.learners.is_empty() => Step::Rest,
            None => Step::Wait,
        }
    }

    /// What the node objects say wrongly.
    fn undescribed(&self, state: &State) -> Vec<Write> {
        let described = |node: &Node| {
            let mut voters = self.peers.iter().filter(|(id, _)| self.voters.contains(id));
            let member = voters.find(|(_, peer)| peer.node_id == node.id)?;
            Some(ManagerStatus { raft_id: member.0, addr: member.1.addr.clone() })
        };
        let all = state.nodes().map(|node| (node, described(node)));
        let wrong = all.filter(|(node, manager)| node.manager != *manager);
        wrong.map(|(node, manager)| Write::SetNodeManager { id: node.id, manager }).collect()
    }
}

impl RaftNode {
    fn group(&self) -> Group {
        // Told together with who leads, and before the rest: in that, one that has just come back has no members yet.
        let server = self.raft().server_metrics();
        let server = server.borrow_watched();
        let config = &server.membership_config;
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let membership = config.membership();
        let learners: BTreeSet<u64> = membership.learner_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let caught_up = |id: &u64| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            matched.is_some_and(|log_id| {
                Some(log_id) >= *config.log_id() && log_id.index + PROMOTION_LAG >= last
            })
        };
        Group {
            voters: membership.voter_ids().collect(),
            peers: membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
            joint: membership.get_joint_config().len() > 1,
            settled: config.log_id() == server.committed_membership_config.log_id(),
            caught_up: learners.iter().copied().filter(caught_up).collect(),
            learners,
        }
    }

    /// Whether it is committed that this member votes, and not only as one half of a joint configuration: that needs
    /// a majority of the members before this one as well, whichever of them are lost meanwhile.
    pub(super) fn votes_in_full(&self) -> bool {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let configs = metrics.committed_membership_config.membership().get_joint_config();
        !configs.is_empty() && configs.iter().all(|voters| voters.contains(&self.raft_id()))
    }

    /// All members by id.
    pub fn members(&self) -> Vec<Member> {
        let leader = self.leader().map(|leader| leader.raft_id);
        let group = self.group();
        let reachable = self.reachable();
        let reachability = |id: u64| match &reachable {
            Some(reachable) if reachable.contains(&id) => Reachability::Reachable,
            Some(_) => Reachability::Unreachable,
            None if id == self.raft_id() => Reachability::Reachable,
            None => Reachability::Unknown,
        };
        group
            .peers
            .into_iter()
            .map(|(raft_id, peer)| Member {
                raft_id,
                node_id: peer.node_id,
                addr: peer.addr,
                voter: group.voters.contains(&raft_id),
                leader: leader == Some(raft_id),
                reachability: reachability(raft_id),
            })
            .collect()
    }

    /// The members that vote, and whether each answers this one now. Asks them all at once: for the moments in which no
    /// leader knows.
    pub async fn roll_call(&self) -> Vec<(Member, bool)> {
        let voters = self.members().into_iter().filter(|member| member.voter);
        let calls = voters.map(|member| async {
            let answers = member.raft_id == self.raft_id() || self.dial(&member.addr).await.is_ok();
            (member, answers)
        });
        futures::future::join_all(calls).await
    }

    /// Members that have lately answered, this one included; `None` unless this one leads.
    fn reachable(&self) -> Option<BTreeSet<u64>> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref()?;
        let limit = silence(self.config().timings);
        let recent = heard.iter().filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() < limit));
        Some(recent.map(|(id, _)| *id).chain([self.raft_id()]).collect())
    }

    fn leads(&self) -> bool {
        matches!(*self.leadership().borrow(), Leadership::Leader { .. })
    }

    /// Takes the node into the group as a learner, and returns its id; it becomes a voter once it has caught up. A
    /// member that the node was before, and whose log it has lost, is removed.
    pub(super) async fn admit(&self, node_id: NodeId, addr: &str) -> Result<u64, AdmitError> {
        if !self.leads() {
            return Err(AdmitError::NotLeader);
        }
        self.dial(addr).await?;
        let _changing = self.changing().lock().await;
        for (raft_id, peer) in self.group().peers {
            if peer.node_id == node_id {
                self.remove(raft_id).await.map_err(AdmitError::Replace)?;
            } else if peer.addr == addr {
                return Err(AdmitError::AddrTaken { addr: addr.to_owned(), owner: peer.node_id });
            }
        }
        // A committed index is used once in the life of the cluster.
        let change = async {
            let written = self.raft().write_blank().await.map_err(|error| error.to_string())?;
            let raft_id = written.log_id.index;
            let peer = Peer { node_id, addr: addr.to_owned() };
            self.raft().add_learner(raft_id, peer, false).await.map_err(|error| error.to_string())?;
            Ok(raft_id)
        };
        let raft_id = in_time(change).await.map_err(AdmitError::Change)?;
        tracing::info!("node `{node_id}` at `{addr}` joins the group as member {raft_id}");
        Ok(raft_id)
    }

    /// Checks that `addr` leads to a server that answers, whatever it answers.
    async fn dial(&self, addr: &str) -> Result<(), AdmitError> {
        let mut client = self.peers().client(addr);
        let reason = match tokio::time::timeout(DIAL_TIMEOUT, client.read_index(ReadIndexRequest {})).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) if answered(&status) => return Ok(()),
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {DIAL_TIMEOUT:?}"),
        };
        Err(AdmitError::Unreachable { addr: addr.to_owned(), reason })
    }

    /// Removes a member for ever. Only the leader can; asked to remove itself it hands over first.
    ///
    /// # Errors
    /// Refused where the managers left would have no reachable majority.
    pub async fn remove_member(&self, raft_id: u64) -> Result<Removal, RemoveError> {
        if !self.leads() {
            return Err(RemoveError::NotLeader);
        }
        let _changing = self.changing().lock().await;
        if raft_id == self.raft_id() {
            self.check_quorum_without(raft_id)?;
            return Ok(Removal::Transferred { to: self.transfer_leadership().await? });
        }
        self.remove(raft_id).await?;
        Ok(Removal::Done)
    }

    async fn remove(&self, raft_id: u64) -> Result<(), RemoveError> {
        let group = self.group();
        let change = if group.voters.contains(&raft_id) {
            self.check_quorum_without(raft_id)?;
            ChangeMembers::RemoveVoters(BTreeSet::from([raft_id]))
        } else if group.learners.contains(&raft_id) {
            ChangeMembers::RemoveNodes(BTreeSet::from([raft_id]))
        } else {
            return Err(RemoveError::NoMember(raft_id));
        };
        self.change(change).await.map_err(RemoveError::Change)?;
        tracing::info!("member {raft_id} was removed from the group");
        Ok(())
    }

    fn check_quorum_without(&self, raft_id: u64) -> Result<(), RemoveError> {
        let left: BTreeSet<u64> = self.group().voters.into_iter().filter(|voter| *voter != raft_id).collect();
        if left.is_empty() {
            return Err(RemoveError::Last(raft_id));
        }
        let reachable = self.reachable().ok_or(RemoveError::NotLeader)?;
        let (voters, needed) = (left.len(), left.len() / 2 + 1);
        let reachable = left.intersection(&reachable).count();
        if reachable < needed {
            return Err(RemoveError::Quorum { raft_id, voters, needed, reachable });
        }
        Ok(())
    }

    /// Hands the leadership to the reachable voter with the most of the log, and returns its id once it leads.
    pub async fn transfer_leadership(&self) -> Result<u64, RemoveError> {
        let reachable = self.reachable().ok_or(RemoveError::NotLeader)?;
        let voters = self.group().voters;
        let to = {
            let metrics = self.raft().metrics();
            let metrics = metrics.borrow_watched();
            let matched =
                |id: &u64| metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            let others = voters.intersection(&reachable).filter(|id| **id != self.raft_id());
            others.max_by_key(|id| matched(id)).copied()
        };
        let to = to.ok_or(RemoveError::Transfer)?;
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        self.raft().trigger().transfer_leader(to).await.map_err(|_| RemoveError::Transfer)?;
        loop {
            match self.leader() {
                Some(leader) if leader.raft_id != self.raft_id() => return Ok(leader.raft_id),
                _ if Instant::now() >= deadline => return Err(RemoveError::Transfer),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Whether voters other than this leader are a majority, answer, and have the log up to `index`.
    fn can_do_without_this(&self, index: Option<u64>) -> bool {
        let Some(reachable) = self.reachable() else { return false };
        let voters = self.group().voters;
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let matched = |id: &u64| metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let others = voters.intersection(&reachable).filter(|id| **id != self.raft_id());
        let able = others.filter(|id| matched(id).map(|log_id| log_id.index) >= index).count();
        able > voters.len() / 2
    }

    /// Changes the group and waits until the result is uniform. Voters that are removed do not stay as learners.
    async fn change(&self, change: ChangeMembers<u64, Peer>) -> Result<(), String> {
        in_time(async {
            self.raft().change_membership(change, false).await.map(drop).map_err(|error| error.to_string())
        })
        .await
    }

    /// Takes one step towards a settled group. Returns whether more may be to do soon.
    async fn settle(&self) -> bool {
        let _changing = self.changing().lock().await;
        let mut step = self.group().next_step(&self.store().snapshot());
        if let Step::Describe(writes) = step {
            if let Err(error) = self.propose(Command { at: Timestamp::now(), writes }).await {
                tracing::warn!("failed to record the members of the group: {error}; trying again");
                return true;
            }
            step = self.group().next_step(&self.store().snapshot());
        }
        match step {
            Step::Resolve => {
                let resolve = ChangeMembers::AddVoterIds(BTreeSet::new());
                self.try_change("resolve a joint configuration", resolve).await;
            }
            Step::Promote(learner) => {
                let promote = ChangeMembers::AddVoterIds(BTreeSet::from([learner]));
                self.try_change("make a learner a voter", promote).await;
            }
            // A node object may have come since.
            Step::Wait | Step::Describe(_) => {}
            Step::Rest => return false,
        }
        true
    }

    async fn try_change(&self, what: &str, change: ChangeMembers<u64, Peer>) {
        if let Err(error) = self.change(change).await {
            tracing::warn!("failed to {what}: {error}; trying again");
        }
    }
}

async fn in_time<T>(change: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
        Ok(result) => result,
        Err(_) => Err(format!("no majority answered within {CHANGE_TIMEOUT:?}")),
    }
}

/// Settles the group for as long as this member leads, until it stops.
pub(super) async fn maintain(node: RaftNode) {
    let mut leadership = node.leadership();
    let mut metrics = node.raft().server_metrics();
    let mut states = node.store().subscribe();
    let cancelled = node.cancelled().clone();
    loop {
        leadership.borrow_and_update();
        states.mark_unchanged();
        metrics.borrow_and_update();
        let more = node.leads() && node.settle().await;
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = metrics.changed() => if changed.is_err() { return },
            // A node object may have come or changed; a busy log wakes this no more often than that.
            changed = states.changed() => {
                if changed.is_err() { return }
                tokio::time::sleep(STATE_PAUSE).await;
            }
            () = tokio::time::sleep(POLL), if more => {}
            () = cancelled.cancelled() => return,
        }
    }
}

/// Hands the leadership over when this member's log has no room, until it stops.
///
/// Only where the others can elect a leader without this one's vote, which it could not write down: a majority of the
/// voters answer and have, on disk, what this one cannot write. Else it leads on, so that at least it can be read.
pub(super) async fn hand_over_when_full(node: RaftNode) {
    let mut full = node.full();
    let cancelled = node.cancelled().clone();
    let work = async {
        while full.wait_for(Option::is_some).await.is_ok() {
            let stuck = node.raft().metrics().borrow_watched().last_log_index;
            while full.borrow().is_some() {
                if node.leads() && node.can_do_without_this(stuck) {
                    match node.transfer_leadership().await {
                        Ok(to) => {
                            tracing::warn!("member {to} leads now, as there is no room for the log here");
                        }
                        Err(error) => tracing::warn!("cannot hand over, and there is no room here: {error}"),
                    }
                }
                tokio::time::sleep(ROOM_PAUSE).await;
            }
        }
    };
    cancelled.run_until_cancelled(work).await;
}

#[cfg(test)]
mod tests {
    use rswarm_core::state::apply;
    use rswarm_types::{Meta, NodeSpec, NodeStatus, Role, Version};

    use super::*;

    #[test]
    fn members_are_listed_before_others_become_voters() {
        let node_id = |n: u64| NodeId::from_bytes([n as u8; 16]);
        let peer = |n: u64| (n, Peer { node_id: node_id(n), addr: format!("10.0.0.{n}:2377") });
        let mut state = State::default();
        let write = |state: &mut State, writes| {
            let command = Command { at: Timestamp(1), writes };
            let (next, result) = apply(state, Version(state.index.0 + 1), &command);
            result.unwrap();
            *state = next;
        };
        let node = |n| Node {
            id: node_id(n),
            meta: Meta::default(),
            number: 0,
            spec: NodeSpec::default(),
            role: Role::Manager,
            role_since: Version::default(),
            description: None,
            status: NodeStatus::default(),
            manager: None,
        };
        let nodes = [1, 2].map(|n| Write::CreateNode(Box::new(node(n))));
        write(&mut state, nodes.into());
        let mut group = Group {
            voters: [1].into(),
            learners: [2].into(),
            peers: vec![peer(1), peer(2)],
            joint: false,
            settled: true,
            caught_up: [2].into(),
        };
        let status = |n: u64| ManagerStatus { raft_id: n, addr: peer(n).1.addr };
        let list = |n: u64| vec![Write::SetNodeManager { id: node_id(n), manager: Some(status(n)) }];
        assert_eq!(group.next_step(&state), Step::Describe(list(1)));
        write(&mut state, list(1));
        assert_eq!(group.next_step(&state), Step::Promote(2));
        group.caught_up.clear();
        assert_eq!(group.next_step(&state), Step::Wait);
        (group.voters, group.learners) = ([1, 2].into(), BTreeSet::new());
        group.settled = false;
        assert_eq!(group.next_step(&state), Step::Wait);
        group.settled = true;
        assert_eq!(group.next_step(&state), Step::Describe(list(2)));
        write(&mut state, list(2));
        assert_eq!(group.next_step(&state), Step::Rest);
        group.joint = true;
        assert_eq!(group.next_step(&state), Step::Resolve);
    }
}
