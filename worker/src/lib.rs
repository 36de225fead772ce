//! The worker: takes assignments from the leader, runs them as containers, and reports what became of them.
//!
//! ```text
//!  leader ⇄ session.rs ─events→ server.rs ─inputs→ agent.rs (pure; asks task.rs for each step)
//!                                   │ ←outputs───────┘
//!                                   ├→ ledger.rs      what survives a restart
//!                                   ├→ executor.rs    containers, images, networks
//!                                   └→ logs.rs        log lines to the leader
//! ```
//!
//! Containers outlive the worker: dropping [`Worker`] or killing the process stops none, and the next worker on the
//! same data root takes them up with their state, logs and exit codes. The worker never depends on manager code.

pub mod agent;
pub mod executor;
mod ledger;
mod logs;
mod registry;
mod server;
mod session;
pub mod task;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rswarm_types::{NodeDescription, NodeId, Role, Task, TaskStatus, Timestamp, Version};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub use agent::Counts;
pub use executor::container::{
    ContainerExecutor, ContainerExecutorConfig, ContainerExecutorError, Guarded, KEY_PERIOD, USERS_BYTES_MAX,
    resolve_user, take_up,
};
use executor::{Executor, Failure};
use ledger::Ledger;
pub use ledger::{Entry, LedgerError};
pub use registry::{credentials, credentials_for};
use server::{Event, Server};
use session::Session;

/// Opens a connection to the manager at an address `HOST:PORT`, lazily.
pub type Connect = Arc<dyn Fn(&str) -> Channel + Send + Sync>;

/// What a worker on a real node needs.
pub struct WorkerConfig {
    pub node_id: NodeId,
    pub node_description: NodeDescription,
    pub identity: rswarm_identity::Receiver,
    /// `HOST:PORT` of managers to start with; the leader tells of others.
    pub managers: Vec<String>,
    /// The ledger is `worker/ledger` in here, and each task has a directory below `worker/tasks`.
    pub data_root: PathBuf,
    pub executor: ContainerExecutorConfig,
}

/// A worker with all that differs between a real node and a simulated one passed in.
pub struct WorkerParts {
    pub node_id: NodeId,
    pub node_description: NodeDescription,
    pub managers: Vec<String>,
    pub ledger: PathBuf,
    pub connect: Connect,
    pub executor: Arc<dyn Executor>,
}

/// What the leader told of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// `HOST:PORT` of each manager.
    pub managers: Vec<String>,
    /// Empty until the first session.
    pub root_cert_pem: String,
    /// The role this node should have; `None` until the first session.
    pub role: Option<Role>,
    /// A certificate issued from a state below this index is outdated: the node renews it at once.
    pub renew_below: Version,
}

/// Whether the leader is being heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// With the reason why there is no session.
    Searching { reason: String },
    /// With the leader's address, and what it finds wrong with this node.
    Connected { leader: String, warnings: Vec<String> },
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Executor(#[from] ContainerExecutorError),
    #[error("failed to look for containers of an earlier daemon: {0}")]
    Recover(String),
    #[error("failed to remove what the worker left: {0}")]
    Remove(String),
    #[error("the worker's event loop has ended: see its log")]
    Ended,
}

/// A running worker. Dropping it ends the worker at once, as a kill would; containers go on either way.
pub struct Worker {
    events: mpsc::Sender<Event>,
    cluster: watch::Receiver<ClusterView>,
    state: watch::Receiver<SessionState>,
    counts: watch::Receiver<Counts>,
    server: JoinHandle<()>,
    session: JoinHandle<()>,
    ledger: PathBuf,
}

impl Worker {
    /// Starts the worker of a real node: adopts the containers that are there and looks for the leader.
    ///
    /// # Errors
    /// As in [`WorkerError`]; nothing runs then that did not run before.
    pub async fn start(config: WorkerConfig) -> Result<Self, WorkerError> {
        let root = root_of(&config.data_root);
        let hostname = &config.node_description.hostname;
        let executor =
            ContainerExecutor::open(root.join("tasks"), config.node_id, hostname, config.executor)?;
        Self::start_with(WorkerParts {
            node_id: config.node_id,
            node_description: config.node_description,
            managers: config.managers,
            ledger: root.join("ledger"),
            connect: session::tls(config.identity),
            executor: Arc::new(executor),
        })
        .await
    }

    /// Starts a worker from parts.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn start_with(parts: WorkerParts) -> Result<Self, WorkerError> {
        let (ledger, contents) = Ledger::open(&parts.ledger)?;
        let recovery =
            parts.executor.recover().await.map_err(|failure| WorkerError::Recover(failure.text))?;
        let (agent, outputs) = agent::Agent::restore(
            contents.entries,
            contents.index,
            recovery.network,
            recovery.found,
            Timestamp::now(),
        );
        let (events, receiver) = mpsc::channel(server::EVENTS);
        let (counts_sender, counts) = watch::channel(agent.counts());
        let view = ClusterView { managers: parts.managers, ..ClusterView::default() };
        let (cluster_sender, cluster) = watch::channel(view);
        let searching = SessionState::Searching { reason: "just started".to_owned() };
        let (state_sender, state) = watch::channel(searching);
        let mut description = parts.node_description;
        description.network.tunnel = parts.executor.tunnel_keys();
        let (description_sender, description) = watch::channel(description);
        let server = Server::new(
            agent,
            ledger,
            parts.executor,
            (parts.node_id, description_sender),
            counts_sender,
            (events.clone(), receiver),
        );
        let session = Session {
            connect: parts.connect,
            description,
            cluster: cluster_sender,
            state: state_sender,
            events: events.clone(),
        };
        Ok(Self {
            events,
            cluster,
            state,
            counts,
            server: tokio::spawn(server.run(outputs)),
            session: tokio::spawn(session.run()),
            ledger: parts.ledger,
        })
    }

    /// What the leader tells of the cluster.
    pub fn cluster_view(&self) -> watch::Receiver<ClusterView> {
        self.cluster.clone()
    }

    /// Whether, and by whom, this worker is led.
    pub fn session_state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// How many tasks are held, and how many of them run.
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.clone()
    }

    /// Every task held by this node with its status, by id.
    ///
    /// # Errors
    /// `Ended` if the worker is no more.
    pub async fn tasks(&self) -> Result<Vec<(Arc<Task>, TaskStatus)>, WorkerError> {
        let (sender, answer) = oneshot::channel();
        self.events.send(Event::Tasks(sender)).await.map_err(|_| WorkerError::Ended)?;
        answer.await.map_err(|_| WorkerError::Ended)
    }

    /// Ends the worker and leaves its containers running. The ledger is written and closed when this returns.
    pub async fn shutdown(mut self) {
        self.session.abort();
        let _ = self.events.send(Event::Shutdown).await;
        let _ = (&mut self.server).await;
    }

    /// For a node that leaves its cluster: ends all tasks, with force after `patience`, and removes containers,
    /// networks and the ledger.
    ///
    /// # Errors
    /// `Remove` says what stayed and why; calling it on a new worker tries again.
    pub async fn remove_everything(mut self, patience: Duration) -> Result<(), WorkerError> {
        self.session.abort();
        let (done, result) = oneshot::channel();
        let leave = Event::Leave { patience, done };
        self.events.send(leave).await.map_err(|_| WorkerError::Ended)?;
        let result = result.await.map_err(|_| WorkerError::Ended)?;
        let _ = (&mut self.server).await;
        result.map_err(|Failure { text, .. }| WorkerError::Remove(text))?;
        std::fs::remove_file(&self.ledger)
            .map_err(|error| WorkerError::Remove(format!("`{}`: {error}", self.ledger.display())))
    }
}

/// For a node that leaves its cluster and whose worker cannot be started: does without a manager and an identity what
/// [`Worker::remove_everything`] does. Of a ledger that cannot be read nothing is needed: its containers are known
/// from what is there.
///
/// # Errors
/// As [`Worker::start`] and [`Worker::remove_everything`]; it may be called again.
pub async fn remove_everything(
    data_root: &Path,
    executor: ContainerExecutorConfig,
    patience: Duration,
) -> Result<(), WorkerError> {
    let root = root_of(data_root);
    let ledger = root.join("ledger");
    if let Err(LedgerError::Open { .. }) = Ledger::open(&ledger) {
        std::fs::remove_file(&ledger)
            .map_err(|error| WorkerError::Remove(format!("`{}`: {error}", ledger.display())))?;
    }
    let nobody = || tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let node_id = NodeId::from_bytes([0; 16]);
    let worker = Worker::start_with(WorkerParts {
        node_id,
        node_description: NodeDescription::default(),
        managers: Vec::new(),
        connect: Arc::new(move |_| nobody()),
        executor: Arc::new(ContainerExecutor::open(root.join("tasks"), node_id, "", executor)?),
        ledger,
    });
    worker.await?.remove_everything(patience).await
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.session.abort();
        self.server.abort();
    }
}

fn root_of(data_root: &Path) -> PathBuf {
    data_root.join("worker")
}

/// The tasks that the worker with this data root has containers of, running or not, by id and name. It need not run.
///
/// # Errors
/// The file system's.
pub fn tasks_on_disk(data_root: &Path) -> std::io::Result<Vec<(rswarm_types::TaskId, String)>> {
    executor::container::tasks_on_disk(&root_of(data_root).join("tasks"))
}
