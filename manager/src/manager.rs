//! One manager, from its first breath to its last: founds a cluster, comes back after a restart, or joins one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rswarm_api::v1::ca_server::CaServer;
use rswarm_api::v1::control_server::ControlServer;
use rswarm_api::v1::dispatcher_server::DispatcherServer;
use rswarm_core::state::{Command, Write};
use rswarm_core::validate;
use rswarm_identity::{Receiver, RootCa};
use rswarm_types::network::Ipam;
use rswarm_types::{
    Availability, Cluster, ClusterId, ClusterSpec, JoinSecrets, ManagerStatus, Meta, Network, NetworkDriver,
    NetworkId, NetworkSpec, Node, NodeDescription, NodeId, NodeSpec, NodeState, NodeStatus, Role, Timestamp,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::warn;

use crate::ca::CaService;
use crate::context::{Context, WriteError};
use crate::control::ControlService;
use crate::dispatcher::DispatcherService;
use crate::error::chain;
use crate::gate::GateLayer;
use crate::image::ImageResolver;
use crate::raft::{RaftConfig, RaftError, RaftNode};
use crate::server::{self, Connections, ListenError};
use crate::{leader, random};

/// Largest message taken from users and workers. A full set of 1,000 tasks is about 1 MiB.
const MESSAGE_MAX: usize = 16 << 20;

/// What a manager needs to know of its host and its place in the cluster.
pub struct ManagerConfig {
    /// Directory of its own for log and snapshots; made if missing.
    pub dir: PathBuf,
    /// Where the API listens.
    pub listen_addr: SocketAddr,
    /// Under which other nodes reach it. Port 0 means the port listened on.
    pub advertise_addr: SocketAddr,
    pub node_id: NodeId,
    pub cluster_id: ClusterId,
    /// This node's certificate, which must say manager.
    pub identity: Receiver,
    pub images: Arc<dyn ImageResolver>,
    /// What this node says of itself until its worker part has a session.
    pub node_description: NodeDescription,
}

/// What a new cluster starts with.
pub struct InitOptions {
    pub spec: ClusterSpec,
    /// The root that signed this node's certificate.
    pub root_ca: RootCa,
    /// Whether this node takes tasks.
    pub availability: Availability,
}

/// Why a manager did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("invalid cluster settings")]
    Spec(#[source] validate::SpecError),
    #[error("failed to open the manager's port")]
    Listen(#[source] ListenError),
    #[error("failed to start the replicated log")]
    Raft(#[source] RaftError),
    #[error("failed to write the cluster's first state: {0}")]
    FirstState(String),
}

/// What a manager can say of itself at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerInfo {
    /// Index of the last log entry applied here.
    pub applied_index: u64,
    /// The node that leads, if one does.
    pub leader: Option<NodeId>,
    /// `IP:PORT` of all managers, this one's first.
    pub manager_addrs: Vec<String>,
    pub advertise_addr: SocketAddr,
}

/// Why a manager ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The cluster wants this node to be a worker, or has removed it.
    Demoted,
    /// It cannot go on; the text says why.
    Fatal(String),
}

/// A running manager. Dropping it stops it without waiting; [`Manager::shutdown`] waits.
pub struct Manager {
    context: Arc<Context>,
    parts: JoinSet<()>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Manager {
    /// Founds a cluster: this node is its first manager.
    pub async fn init(config: ManagerConfig, options: InitOptions) -> Result<Self, StartError> {
        validate::cluster_spec(&options.spec).map_err(StartError::Spec)?;
        let (config, listener) = listen(config).await?;
        let raft = RaftNode::bootstrap(raft_config(&config)).await.map_err(StartError::Raft)?;
        let first = first_state(&config, &options, raft.id());
        let manager = Self::run(config, listener, raft);
        match manager.context.propose(first).await {
            Ok(()) => Ok(manager),
            Err(error) => {
                manager.shutdown().await;
                Err(StartError::FirstState(chain(&error)))
            }
        }
    }

    /// Comes back after a restart of the daemon.
    pub async fn start(config: ManagerConfig) -> Result<Self, StartError> {
        let (config, listener) = listen(config).await?;
        let raft = RaftNode::start(raft_config(&config)).await.map_err(StartError::Raft)?;
        Ok(Self::run(config, listener, raft))
    }

    /// Joins the managers of a cluster, one of which is at `manager_addr` (`IP:PORT`). This node's certificate must
    /// already say manager.
    pub async fn join(config: ManagerConfig, manager_addr: &str) -> Result<Self, StartError> {
        let (config, listener) = listen(config).await?;
        let raft = RaftNode::open(raft_config(&config)).await.map_err(StartError::Raft)?;
        // The leader dials back before it lets this node in, so the port has to answer first.
        let manager = Self::run(config, listener, raft);
        match manager.context.raft.join(manager_addr).await {
            Ok(()) => Ok(manager),
            Err(error) => {
                manager.shutdown().await;
                Err(StartError::Raft(error))
            }
        }
    }

    fn run(config: ManagerConfig, listener: TcpListener, raft: RaftNode) -> Self {
        let (lead_sender, lead) = watch::channel(None);
        let (ended_sender, ended) = watch::channel(None);
        let stop = CancellationToken::new();
        let context = Arc::new(Context {
            store: raft.store().clone(),
            raft,
            identity: config.identity.clone(),
            node: config.node_id,
            advertise_addr: config.advertise_addr,
            images: config.images.clone(),
            lead,
            stop: stop.clone(),
        });
        let mut parts = JoinSet::new();
        let connections = Arc::new(Connections::default());
        {
            let gate = GateLayer::new(context.store.clone(), config.cluster_id);
            let (routes, connections) = (routes(&context), connections.clone());
            let (context, ended) = (context.clone(), ended_sender.clone());
            parts.spawn(async move {
                let identity = context.identity.clone();
                let stop = context.stop.clone();
                let served = server::serve(listener, identity, gate, routes, connections, stop).await;
                if let Err(error) = served {
                    end(&ended, Ended::Fatal(format!("the API stopped: {}", chain(&error))));
                }
            });
        }
        parts.spawn(stop.clone().run_until_cancelled_owned(leader::run(context.clone(), lead_sender)).map_unit());
        parts.spawn(stop.clone().run_until_cancelled_owned(close_removed(context.clone(), connections)).map_unit());
        parts.spawn(stop.run_until_cancelled_owned(watch_own_end(context.clone(), ended_sender)).map_unit());
        Self { context, parts, ended }
    }

    /// The Control service, to be mounted on the unix socket of the daemon.
    pub fn control(&self) -> ControlService {
        ControlService::new(self.context.clone())
    }

    /// What this manager knows right now.
    pub fn info(&self) -> ManagerInfo {
        let state = self.context.store.snapshot();
        ManagerInfo {
            applied_index: state.index.0,
            leader: self.context.leader(),
            manager_addrs: self.context.manager_addrs(&state),
            advertise_addr: self.context.advertise_addr,
        }
    }

    /// Turns to `Some` when the manager ended by itself. It still has to be shut down.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.clone()
    }

    /// Stops serving, then the log. What was acknowledged is on disk.
    pub async fn shutdown(mut self) {
        self.context.stop.cancel();
        while let Some(part) = self.parts.join_next().await {
            if let Err(error) = part
                && error.is_panic()
            {
                warn!(%error, "a part of the manager panicked");
            }
        }
        self.context.raft.shutdown().await;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.context.stop.cancel();
    }
}
