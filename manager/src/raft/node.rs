//! The handle on this manager's membership of the Raft group.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError as LibraryError};
use rswarm_api::v1::{JoinGroupRequest, ProposeRequest, ReadIndexRequest};
use rswarm_core::state::{Applied, Command, Rejected};
use rswarm_types::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::codec;
use super::compaction;
use super::config::RaftConfig;
use super::error::{JoinError, ProposeError, RaftError, ReadError};
use super::files;
use super::key::DataKey;
use super::leadership::{self, LeaderInfo, Leadership, Resumed};
use super::log::LogStore;
use super::membership;
use super::network::{NetworkFactory, Peers, never_sent};
use super::service::LEADER_METADATA;
use super::snapshot::SnapshotDir;
use super::state_machine::StateMachine;
use super::types::{LogId, Peer, Raft, Reply};
use crate::store::Store;

/// The member that `init` makes; later ones take a committed log index, which is higher.
const FIRST_RAFT_ID: u64 = 1;
/// How long a write or a read may look for a leader: an election, and some more under load.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks for a leader.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// From being admitted to having caught up and being a voter.
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Most a single command may have: several of them fit a message between managers.
pub(super) const COMMAND_MAX: usize = 2 << 20;

/// What became of a command at the member it was given to; also the answer on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Applied(Applied),
    Rejected(Rejected),
    /// Not written: that member cannot write now.
    NotLeader,
    /// Perhaps written.
    Unknown,
    /// Perhaps written; that member has stopped.
    Stopped,
    /// Not written: that member has no room for it in this place, and there is no other member.
    NoRoom(String),
}

/// Who this manager is in the group; written once, before the member first runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    cluster_id: ClusterId,
    node_id: NodeId,
    raft_id: u64,
}

/// This manager as a member of the Raft group. Clones share it; it runs until [`RaftNode::shutdown`].
#[derive(Clone)]
pub struct RaftNode {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    raft_id: u64,
    config: RaftConfig,
    log: LogStore,
    snapshots: SnapshotDir,
    store: Store,
    progress: watch::Receiver<Option<LogId>>,
    resumed: Resumed,
    leadership: watch::Receiver<Leadership>,
    peers: Arc<Peers>,
    /// One change of the group at a time.
    changing: tokio::sync::Mutex<()>,
    cancelled: CancellationToken,
    lock: File,
}

impl RaftNode {
    /// Begins a group of one, and commits `first` to it: the cluster, this node.
    ///
    /// # Errors
    /// Refused if the directory holds a member already. After any other error the directory is to be deleted.
    pub async fn bootstrap(config: RaftConfig, first: Command) -> Result<Self, RaftError> {
        let peer = Peer { node_id: config.node_id, addr: config.addr.clone() };
        let dir = config.dir.clone();
        let node = Self::create(config, FIRST_RAFT_ID).await?;
        let start = async {
            let members = std::collections::BTreeMap::from([(FIRST_RAFT_ID, peer)]);
            node.inner
                .raft
                .initialize(members)
                .await
                .map_err(|error| RaftError::Start { dir, source: Box::new(error) })?;
            node.propose(first).await.map_err(RaftError::First)
        };
        match start.await {
            Ok(_) => Ok(node),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }

    /// Starts again from what is on disk; the group is the one it knew.
    pub async fn start(config: RaftConfig) -> Result<Self, RaftError> {
        let path = config.dir.join("member");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RaftError::Missing(config.dir));
            }
            Err(source) => return Err(RaftError::Io { action: "read", path, source }),
        };
        let identity: Identity =
            codec::decode("a raft identity", &bytes).map_err(|source| RaftError::Member { path, source })?;
        if (identity.cluster_id, identity.node_id) != (config.cluster_id, config.node_id) {
            let owner = |cluster, node| format!("node `{node}` of cluster `{cluster}`");
            return Err(RaftError::OtherOwner {
                expected: owner(config.cluster_id, config.node_id),
                found: owner(identity.cluster_id, identity.node_id),
                dir: config.dir,
            });
        }
        Self::open(config, identity.raft_id).await
    }

    /// Whether `dir` holds a member. One that was killed before it first ran has neither an identity nor the log that
    /// comes after it.
    pub fn exists(dir: &Path) -> bool {
        dir.join("member").exists() || dir.join("log").exists()
    }

    /// Becomes a member of the group that the manager at `addr` belongs to, and returns once this one has caught up and
    /// the group can do without any minority of its members, this one counted. The server on `config.addr` must be
    /// running with `config.slot` by then.
    ///
    /// # Errors
    /// After an error the directory is to be deleted; joining again is safe.
    pub async fn join(config: RaftConfig, addr: &str) -> Result<Self, RaftError> {
        let raft_id = Self::ask_to_join(&config, addr).await?;
        let node = Self::create(config, raft_id).await?;
        let deadline = Instant::now() + JOIN_TIMEOUT;
        while !node.votes_in_full() || node.read_barrier().await.is_err() {
            if Instant::now() >= deadline {
                node.shutdown().await;
                return Err(JoinError::NotPromoted { raft_id }.into());
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Ok(node)
    }

    /// Asks managers, beginning with the one at `addr`, until the leader answers; returns the id it gave.
    async fn ask_to_join(config: &RaftConfig, addr: &str) -> Result<u64, JoinError> {
        let peers = Peers::new(config.connector.clone(), config.cluster_id);
        let deadline = Instant::now() + LEADER_TIMEOUT * 2;
        let mut asked = addr.to_owned();
        loop {
            let request = JoinGroupRequest { addr: config.addr.clone() };
            let mut client = peers.client(&asked);
            let answer = tokio::time::timeout_at(deadline, client.join_group(request)).await;
            let status = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner().raft_id),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer"),
            };
            let leader = status.metadata().get(LEADER_METADATA).and_then(|addr| addr.to_str().ok());
            let reason = status.message().to_owned();
            match (leader, status.code()) {
                (Some(leader), _) => asked = leader.to_owned(),
                (
                    None,
                    Code::Unavailable | Code::FailedPrecondition | Code::DeadlineExceeded | Code::Unknown,
                ) => {
                    asked = addr.to_owned();
                }
                (None, _) => return Err(JoinError::Refused { addr: asked, reason }),
            }
            if Instant::now() >= deadline {
                return Err(JoinError::NoAnswer { addr: asked, reason });
            }
            tokio::time::sleep(RETRY_PAUSE * 5).await;
        }
    }

    /// Opens a member that has not run before.
    async fn create(config: RaftConfig, raft_id: u64) -> Result<Self, RaftError> {
        let dir = config.dir.clone();
        if Self::exists(&dir) {
            return Err(RaftError::Exists(dir));
        }
        let io_error = |action| {
            let path = dir.clone();
            move |source| RaftError::Io { action, path, source }
        };
        files::create_private_dir(&dir).map_err(io_error("create"))?;
        DataKey::create(&dir)?;
        let identity = Identity { cluster_id: config.cluster_id, node_id: config.node_id, raft_id };
        let path = dir.join("member");
        let bytes = codec::encode("a raft identity", &identity)
            .map_err(|source| RaftError::Member { path: path.clone(), source })?;
        files::write_atomic(&path, &bytes).map_err(io_error("write the identity in"))?;
        Self::open(config, raft_id).await
    }

    async fn open(config: RaftConfig, raft_id: u64) -> Result<Self, RaftError> {
        let library = config.library().map_err(|error| RaftError::Timings(Box::new(error)))?;
        let store = Store::new();
        let disk = {
            let (dir, store) = (config.dir.clone(), store.clone());
            tokio::task::spawn_blocking(move || open_disk(&dir, store))
        };
        let (lock, log, snapshots, machine) = match disk.await.map_err(tokio::task::JoinError::try_into_panic)
        {
            Ok(opened) => opened?,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => std::future::pending().await,
        };
        let progress = machine.progress();
        let peers = Arc::new(Peers::new(config.connector.clone(), config.cluster_id));
        let network = NetworkFactory { peers: peers.clone(), patience: config.timings.election_min / 2 };
        let io_error = |source| RaftError::Io { action: "read the log in", path: config.dir.clone(), source };
        let resumed = Resumed::of(log.clone()).await.map_err(io_error)?;
        let raft = match Raft::new(raft_id, library, network, log.clone(), machine).await {
            Ok(raft) => raft,
            Err(error) => {
                log.close().await;
                return Err(RaftError::Start { dir: config.dir, source: Box::new(error) });
            }
        };

        let (leadership_sender, leadership) = watch::channel(Leadership::Follower { leader: None });
        let cancelled = CancellationToken::new();
        let timings = config.timings;
        let node = Self {
            inner: Arc::new(Inner {
                raft: raft.clone(),
                raft_id,
                config,
                log,
                snapshots,
                store,
                progress: progress.clone(),
                resumed,
                leadership,
                peers,
                changing: tokio::sync::Mutex::default(),
                cancelled: cancelled.clone(),
                lock,
            }),
        };
        tokio::spawn(leadership::watch(raft, progress, resumed, leadership_sender, timings, cancelled));
        tokio::spawn(membership::maintain(node.clone()));
        tokio::spawn(compaction::maintain(node.clone()));
        tokio::spawn(membership::hand_over_when_full(node.clone()));
        node.inner.config.slot.set(Some(node.clone()));
        Ok(node)
    }

    /// Writes a command through the leader, wherever that is, and returns once this is durable at a majority and
    /// applied by the leader. When this member leads, its [`store`](Self::store) shows the change by then; else after
    /// a [`read_barrier`](Self::read_barrier), or once its state's index has reached [`Applied::index`].
    ///
    /// While there is no leader it waits for one, up to 5 s.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let command = Arc::new(command);
        let encoded = codec::encode("a command", &*command)
            .map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        if encoded.len() > COMMAND_MAX {
            return Err(ProposeError::TooLarge { len: encoded.len() });
        }
        let deadline = Instant::now() + LEADER_TIMEOUT;
        loop {
            let outcome = match self.leader() {
                Some(leader) if leader.raft_id == self.inner.raft_id => {
                    self.propose_here(command.clone()).await
                }
                Some(leader) => self.propose_there(&leader, &encoded, deadline).await,
                None if self.stopped() => return Err(ProposeError::Stopped),
                None => Outcome::NotLeader,
            };
            match outcome {
                Outcome::Applied(applied) => return Ok(applied),
                Outcome::Rejected(rejected) => return Err(ProposeError::Rejected(rejected)),
                Outcome::Unknown => return Err(ProposeError::Timeout),
                Outcome::Stopped => return Err(ProposeError::Stopped),
                Outcome::NoRoom(dir) => return Err(ProposeError::NoRoom(dir)),
                Outcome::NotLeader if Instant::now() >= deadline => return Err(ProposeError::NoLeader),
                // No leader, or one that waits for its first answers.
                Outcome::NotLeader => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Writes a command if this member can write now.
    pub(super) async fn propose_here(&self, command: Arc<Command>) -> Outcome {
        // With others there a majority of them may still have room.
        if let Some(dir) = self.out_of_room()
            && self.members().len() == 1
        {
            return Outcome::NoRoom(dir);
        }
        match tokio::time::timeout(LEADER_TIMEOUT, self.inner.raft.client_write(command)).await {
            Ok(Ok(response)) => match response.data {
                Reply::Applied(applied) => Outcome::Applied(applied),
                Reply::Rejected(rejected) => Outcome::Rejected(rejected),
                Reply::Nothing => Outcome::Unknown,
            },
            Ok(Err(LibraryError::APIError(ClientWriteError::ForwardToLeader(_)))) => Outcome::NotLeader,
            Ok(Err(LibraryError::APIError(_))) | Err(_) => Outcome::Unknown,
            Ok(Err(LibraryError::Fatal(_))) => Outcome::Stopped,
        }
    }

    /// The directory in which this member's log has no room to go on.
    pub fn out_of_room(&self) -> Option<String> {
        self.full().borrow().as_ref().map(|dir| dir.display().to_string())
    }

    /// The same, and its changes.
    pub(super) fn full(&self) -> watch::Receiver<Option<PathBuf>> {
        self.inner.log.full()
    }

    async fn propose_there(&self, leader: &LeaderInfo, encoded: &[u8], deadline: Instant) -> Outcome {
        let request = ProposeRequest { command: encoded.to_vec() };
        let mut client = self.inner.peers.client(&leader.addr);
        match tokio::time::timeout_at(deadline, client.propose(request)).await {
            Ok(Ok(response)) => match codec::decode("a reply", &response.into_inner().reply) {
                Ok(Outcome::Stopped) | Err(_) => Outcome::Unknown,
                Ok(outcome) => outcome,
            },
            Ok(Err(status)) if never_sent(&status) => Outcome::NotLeader,
            // The service itself says this only before it has looked at the command.
            Ok(Err(status)) if super::network::answered(&status) && status.code() == Code::Unavailable => {
                Outcome::NotLeader
            }
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        }
    }

    /// Returns once this member's [`store`](Self::store) shows everything that was acknowledged, by whichever
    /// manager, before the call.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        let deadline = Instant::now() + LEADER_TIMEOUT;
        let index = loop {
            let index = match self.leader() {
                // One that waits for room to write down a new leader's term answers nobody.
                Some(leader) if leader.raft_id == self.inner.raft_id => {
                    tokio::time::timeout_at(deadline, self.read_index_here()).await.ok().flatten()
                }
                Some(leader) => {
                    let mut client = self.inner.peers.client(&leader.addr);
                    let ask = tokio::time::timeout_at(deadline, client.read_index(ReadIndexRequest {}));
                    tokio::select! {
                        answer = ask => {
                            answer.ok().and_then(Result::ok).map(|response| response.into_inner().index)
                        }
                        // A host that lost its power answers nothing, not even a refusal. Nothing is written, so
                        // asking its successor is as good.
                        () = self.led_by_another_than(leader.raft_id) => None,
                    }
                }
                None if self.stopped() => return Err(ReadError::Stopped),
                None => None,
            };
            match index {
                Some(index) => break index,
                None if Instant::now() >= deadline => return Err(ReadError::NoLeader),
                None => tokio::time::sleep(RETRY_PAUSE).await,
            }
        };
        let mut progress = self.inner.progress.clone();
        let reached = progress.wait_for(|log_id| log_id.is_some_and(|log_id| log_id.index >= index));
        match tokio::time::timeout_at(deadline.max(Instant::now() + LEADER_TIMEOUT / 2), reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::Timeout),
        }
    }

    /// Waits until this member knows of another leader, or of none.
    async fn led_by_another_than(&self, raft_id: u64) {
        let mut leadership = self.leadership();
        let another = |now: &Leadership| match now {
            Leadership::Leader { .. } => true,
            Leadership::Follower { leader } => leader.as_ref().is_none_or(|leader| leader.raft_id != raft_id),
        };
        if leadership.wait_for(another).await.is_err() {
            // This member stops; the caller's deadline ends the wait.
            std::future::pending::<()>().await;
        }
    }

    /// The index a linearizable read must see, if this member leads and a majority confirms that it still does.
    pub(super) async fn read_index_here(&self) -> Option<u64> {
        let term = self.inner.raft.server_metrics().borrow_watched().vote.leader_id.term;
        let reader = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
        Some(self.inner.resumed.until(term).unwrap_or(0).max(reader.read_log_id().index()))
    }

    /// The state as this member knows it.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// This member's part in the group, and its changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// The leader this member believes in; it may be this one, and it may not be able to write yet.
    pub fn leader(&self) -> Option<LeaderInfo> {
        leadership::believed_leader(&self.inner.raft)
    }

    /// Index of the last log entry whose effect [`store`](Self::store) shows; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.inner.progress.borrow().map_or(0, |log_id| log_id.index)
    }

    /// This member's id, never used for another.
    pub fn raft_id(&self) -> u64 {
        self.inner.raft_id
    }

    /// What it was started with.
    pub fn config(&self) -> &RaftConfig {
        &self.inner.config
    }

    /// Returns when the member no longer runs: after [`shutdown`](Self::shutdown), or, with the reason, after a
    /// failure it cannot go on from. In the latter case the daemon should end.
    pub async fn wait_stopped(&self) -> Option<String> {
        let mut metrics = self.inner.raft.metrics();
        let reason = loop {
            if let Err(error) = &metrics.borrow_and_update().running_state {
                break error.to_string();
            }
            // A core that panics reports nothing: it is only gone.
            if metrics.changed().await.is_err() {
                break "the raft core ended unexpectedly".to_owned();
            }
        };
        (!self.inner.cancelled.is_cancelled()).then_some(reason)
    }

    /// Stops the member and releases its directory. The group goes on without it, if it can.
    pub async fn shutdown(&self) {
        self.inner.config.slot.set(None);
        self.inner.cancelled.cancel();
        // The core may be waiting for a vote to be written that waits for room.
        self.inner.log.stop_waiting();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!("the raft member did not stop in order: {error}");
        }
        self.inner.log.close().await;
        if let Err(error) = self.inner.lock.unlock() {
            tracing::warn!("failed to unlock `{}`: {error}", self.inner.config.dir.display());
        }
    }

    fn stopped(&self) -> bool {
        self.inner.cancelled.is_cancelled() || self.wait_stopped().now_or_never().is_some()
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    pub(super) fn snapshots(&self) -> &SnapshotDir {
        &self.inner.snapshots
    }

    pub(super) fn changing(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.changing
    }

    pub(super) fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancelled
    }
}

/// Locks the directory and opens what is in it. Blocks.
fn open_disk(dir: &Path, store: Store) -> Result<(File, LogStore, SnapshotDir, StateMachine), RaftError> {
    let path = dir.join("lock");
    let io_error = |action| {
        let path = path.clone();
        move |source| RaftError::Io { action, path, source }
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(RaftError::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => return Err(io_error("lock")(source)),
    }
    let sealer = DataKey::load(dir)?.sealer();
    let snapshots = SnapshotDir::open(&dir.join("snapshots"), sealer.clone())?;
    let machine = StateMachine::open(snapshots.clone(), store)?;
    let log = LogStore::open(&dir.join("log"), sealer)?;
    Ok((lock, log, snapshots, machine))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use rswarm_core::state::Write;
    use rswarm_types::{Meta, Node, NodeSpec, NodeStatus, Role, Timestamp, Version};
    use tonic::transport::{Channel, Endpoint};

    use super::super::config::Timings;
    use super::super::network::Connector;
    use super::super::service::RaftSlot;
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    struct Plain;

    impl Connector for Plain {
        fn channel(&self, addr: &str) -> Channel {
            Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
        }
    }

    /// A group of one; it needs no server.
    async fn alone(dir: &Path) -> RaftNode {
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let config = RaftConfig {
            dir: dir.join("raft"),
            cluster_id: ClusterId::from_bytes([9; 16]),
            node_id: NodeId::from_bytes([1; 16]),
            addr: addr.to_string(),
            timings: Timings::default(),
            snapshot_interval: 10_000,
            connector: Arc::new(Plain),
            slot: RaftSlot::default(),
        };
        let node = Node {
            id: config.node_id,
            meta: Meta::default(),
            spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
            role: Role::Manager,
            description: None,
            status: NodeStatus::default(),
            manager: None,
            role_since: Version::default(),
            number: 0,
        };
        let first = Command::one(Timestamp(1), Write::CreateNode(Box::new(node)));
        RaftNode::bootstrap(config, first).await.unwrap()
    }

    #[tokio::test]
    async fn a_core_that_panics_is_a_stop_with_a_reason() {
        let tmp = tempfile::tempdir().unwrap();
        let node = alone(tmp.path()).await;
        let waiting = tokio::spawn({
            let node = node.clone();
            async move { node.wait_stopped().await }
        });
        // Runs in the core's own task.
        node.raft().external_request(|_| panic!("on purpose")).await.unwrap();
        let reason = tokio::time::timeout(DEADLINE, waiting).await.expect("the stop is noticed").unwrap();
        assert_eq!(reason.as_deref(), Some("the raft core ended unexpectedly"));
        assert!(node.stopped(), "and it is known to have stopped");
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_shutdown_is_a_stop_without_a_reason() {
        let tmp = tempfile::tempdir().unwrap();
        let node = alone(tmp.path()).await;
        let waiting = tokio::spawn({
            let node = node.clone();
            async move { node.wait_stopped().await }
        });
        node.shutdown().await;
        let reason = tokio::time::timeout(DEADLINE, waiting).await.expect("the stop is noticed").unwrap();
        assert_eq!(reason, None);
    }
}
