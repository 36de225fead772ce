//! One manager, from its first breath to its last: founds a cluster, comes back after a restart, or joins one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_api::v1::ca_server::CaServer;
use rswarm_api::v1::control_server::ControlServer;
use rswarm_api::v1::dispatcher_server::DispatcherServer;
use rswarm_core::State;
use rswarm_core::state::{Command, Rejected, Write};
use rswarm_core::validate;
use rswarm_identity::{Receiver, RootCa, ServerExpectation};
use rswarm_types::network::{Ipam, IpamSpec6};
use rswarm_types::{
    Availability, Cluster, ClusterSpec, JoinSecrets, Meta, Network, NetworkDriver, NetworkId, NetworkSpec,
    Node, NodeDescription, NodeId, NodeSpec, NodeStatus, Role, Timestamp, Version,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::warn;

use crate::ca::{self, CaService};
use crate::context::Context;
use crate::control::ControlService;
use crate::dispatcher::DispatcherService;
use crate::gate::{Gate, is_outdated};
use crate::image::{BoxFuture, ImageResolver};
use crate::raft::{Connector, RaftConfig, RaftError, RaftNode, RaftSlot, Timings};
use crate::server::{self, Connections, ListenError};
use crate::{leader, random};
use rswarm_types::error::chain;

/// Largest message taken from users and workers. A full set of 1,000 tasks is about 1 MiB.
const MESSAGE_MAX: usize = 16 << 20;
/// Largest message taken from callers that may be anyone: a request for a certificate is below 2 KiB.
const CSR_MESSAGE_MAX: usize = 64 << 10;

/// From a node's removal or demotion until what it has open is closed: its session can still tell it so, and the answer
/// to a node that takes itself back can still reach it. It can do nothing new meanwhile.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Between two tries to catch up with the cluster after a start, each of which waits for a leader already.
const BARRIER_RETRY: Duration = Duration::from_secs(1);

/// What a manager needs to know of its host and its place in the cluster.
pub struct ManagerConfig {
    /// Directory of its own for log and snapshots; made if missing.
    pub dir: PathBuf,
    /// Where the API listens.
    pub listen_addr: SocketAddr,
    /// `IP:PORT` under which other nodes reach it. Port 0 means the port listened on.
    pub advertise_addr: String,
    /// This node's certificate, which must say manager. It also tells node and cluster.
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
    #[error("no cluster can be made with these settings")]
    FirstState(#[source] Rejected),
    #[error("failed to open the manager's port")]
    Listen(#[source] ListenError),
    #[error("failed to start the replicated log")]
    Raft(#[source] RaftError),
}

/// What a manager can say of itself at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerInfo {
    /// Index of the last log entry applied here.
    pub applied_index: u64,
    /// The node that leads, if one does.
    pub leader: Option<NodeId>,
    /// `IP:PORT` of all managers, this one's first.
    pub managers: Vec<String>,
    /// This one's own address.
    pub advertise_addr: String,
}

/// Why a manager ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The cluster wants this node to be a worker, or has removed it.
    Demoted,
    /// It cannot go on; the text says why.
    Fatal(String),
}

/// A running manager. [`Manager::shutdown`] stops it; dropping it does the same without waiting.
pub struct Manager {
    context: Arc<Context>,
    parts: JoinSet<()>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Manager {
    /// Founds a cluster: this node is its first manager.
    pub async fn init(config: ManagerConfig, options: InitOptions) -> Result<Self, StartError> {
        validate::cluster_spec(&options.spec).map_err(StartError::Spec)?;
        let door = Door::open(config).await?;
        let first = first_state(&door.config, &options);
        rswarm_core::apply(&State::default(), Version(1), &first).1.map_err(StartError::FirstState)?;
        let raft = RaftNode::bootstrap(door.raft_config(), first).await;
        door.complete(raft).await
    }

    /// Comes back after a restart of the daemon.
    pub async fn start(config: ManagerConfig) -> Result<Self, StartError> {
        let door = Door::open(config).await?;
        let raft = RaftNode::start(door.raft_config()).await;
        door.complete(raft).await
    }

    /// Joins the managers of a cluster, one of which is at `manager_addr` (`IP:PORT`). This node's certificate must
    /// already say manager.
    pub async fn join(config: ManagerConfig, manager_addr: &str) -> Result<Self, StartError> {
        // The leader dials back before it lets this node in, so the port has to answer first.
        let door = Door::open(config).await?;
        let config = door.raft_config();
        let raft = RaftNode::join(config, manager_addr).await;
        door.complete(raft).await
    }

    /// Whether `dir` holds a manager: one that has run, or was about to.
    pub fn exists(dir: &Path) -> bool {
        RaftNode::exists(dir)
    }

    /// The Control service, to be mounted on the unix socket of the daemon.
    pub fn control(&self) -> ControlService {
        ControlService::new(self.context.clone())
    }

    /// What this manager knows right now.
    pub fn info(&self) -> ManagerInfo {
        let state = self.context.store.snapshot();
        ManagerInfo {
            applied_index: self.context.raft.applied_index(),
            leader: self.context.leader(),
            managers: self.context.manager_addrs(&state),
            advertise_addr: self.context.advertise_addr.clone(),
        }
    }

    /// A new certificate for this node, signed here: without a valid one the managers cannot come together and agree on
    /// anything, renewals included. It says what the state known here says, and its index tells the other managers
    /// how old that is.
    ///
    /// # Errors
    /// If the state known here holds no such node, or the request cannot be signed.
    pub fn renew_own(&self, csr_pem: &str) -> Result<v1::RenewCertificateResponse, tonic::Status> {
        ca::renewed(&self.context.store.snapshot(), self.context.node, csr_pem)
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
        // Cancelled already after `shutdown`, which has nothing left to stop.
        if self.context.stop.is_cancelled() {
            return;
        }
        self.context.stop.cancel();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let context = self.context.clone();
            runtime.spawn(async move { context.raft.shutdown().await });
        }
    }
}

/// A manager whose port answers, but which is not part of a group yet.
struct Door {
    config: ManagerConfig,
    slot: RaftSlot,
    gate: Gate,
    connections: Arc<Connections>,
    parts: JoinSet<()>,
    ended: watch::Sender<Option<Ended>>,
    stop: CancellationToken,
}

impl Door {
    async fn open(mut config: ManagerConfig) -> Result<Self, StartError> {
        let listener = server::bind(config.listen_addr).await.map_err(StartError::Listen)?;
        if let (Some(host), Ok(addr)) = (config.advertise_addr.strip_suffix(":0"), listener.local_addr()) {
            config.advertise_addr = format!("{host}:{}", addr.port());
        }
        let (slot, connections) = (RaftSlot::default(), Arc::<Connections>::default());
        let gate = Gate::new(config.identity.identity().cluster, slot.clone());
        let (stop, ended) = (CancellationToken::new(), watch::Sender::new(None));
        let mut parts = JoinSet::new();
        let server =
            server::serve(listener, config.identity.clone(), gate.clone(), connections.clone(), stop.clone());
        let to_tell = ended.clone();
        parts.spawn(async move {
            if let Err(error) = server.await {
                to_tell.send_replace(Some(Ended::Fatal(format!("the API stopped: {}", chain(&error)))));
            }
        });
        Ok(Self { config, slot, gate, connections, parts, ended, stop })
    }

    fn raft_config(&self) -> RaftConfig {
        RaftConfig {
            dir: self.config.dir.clone(),
            cluster_id: self.config.identity.identity().cluster,
            node_id: self.config.identity.identity().node,
            addr: self.config.advertise_addr.clone(),
            timings: Timings::default(),
            snapshot_interval: ClusterSpec::default().snapshot_interval,
            connector: Arc::new(MutualTls(self.config.identity.clone())),
            slot: self.slot.clone(),
        }
    }

    /// Opens the services and starts what else a manager does; closes the port again if there is no log.
    async fn complete(mut self, raft: Result<RaftNode, RaftError>) -> Result<Manager, StartError> {
        let raft = match raft {
            Ok(raft) => raft,
            Err(error) => {
                self.stop.cancel();
                while self.parts.join_next().await.is_some() {}
                return Err(StartError::Raft(error));
            }
        };
        let (lead_sender, lead) = watch::channel(None);
        let context = Arc::new(Context {
            store: raft.store().clone(),
            raft,
            node: self.config.identity.identity().node,
            identity: self.config.identity,
            advertise_addr: self.config.advertise_addr,
            images: self.config.images,
            lead,
            stop: self.stop.clone(),
        });
        self.gate.open(routes(&context));
        let mut spawn = |part: BoxFuture<'static, ()>| {
            let until_stop = self.stop.clone().run_until_cancelled_owned(part);
            self.parts.spawn(async { until_stop.await.unwrap_or_default() });
        };
        spawn(Box::pin(leader::run(context.clone(), lead_sender)));
        spawn(Box::pin(close_outlawed(context.clone(), self.connections)));
        spawn(Box::pin(watch_own_end(context.clone(), self.ended.clone())));
        Ok(Manager { context, parts: self.parts, ended: self.ended.subscribe() })
    }
}

/// Connections between managers.
struct MutualTls(Receiver);

impl Connector for MutualTls {
    fn channel(&self, addr: &str) -> Channel {
        let identity = self.0.clone();
        rswarm_api::channel::tls(addr, move || identity.client_config(ServerExpectation::Manager))
    }
}

fn routes(context: &Arc<Context>) -> Routes {
    let control = ControlServer::new(ControlService::new(context.clone()));
    let ca = CaServer::new(CaService::new(context.clone()));
    let dispatcher = DispatcherServer::new(DispatcherService::new(context.clone()));
    Routes::new(control.max_decoding_message_size(MESSAGE_MAX))
        .add_service(ca.max_decoding_message_size(CSR_MESSAGE_MAX))
        .add_service(dispatcher.max_decoding_message_size(MESSAGE_MAX))
}

/// Closes the connections of nodes that are removed, and those that a manager opened before it was demoted: no stream
/// outlives the right by which it was opened. Requests of their own the gate refuses by itself.
async fn close_outlawed(context: Arc<Context>, connections: Arc<Connections>) {
    let mut changes = context.store.subscribe();
    let mut seen = Arc::new(State::default());
    loop {
        let state = changes.borrow_and_update().clone();
        let removed = |state: &State| -> BTreeSet<NodeId> {
            state.cluster().map(|cluster| cluster.removed_nodes.keys().copied().collect()).unwrap_or_default()
        };
        let gone: Vec<NodeId> = removed(&state).difference(&removed(&seen)).copied().collect();
        let changed = rswarm_core::dispatch::role_changes(&seen, &state);
        if !(gone.is_empty() && changed.is_empty()) {
            tokio::time::sleep(LAST_WORDS).await;
        }
        for node in gone {
            connections.close_of(node, |_| true);
        }
        for node in changed {
            connections.close_of(node, |certificate| is_outdated(&state, certificate));
        }
        seen = state;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Notices that this manager is none any more: the log stopped, or the cluster has made the node a worker.
async fn watch_own_end(context: Arc<Context>, ended: watch::Sender<Option<Ended>>) {
    let mut changes = context.store.subscribe();
    let demoted = async {
        // While the log is read back, the past goes by: this node may have been a worker in it.
        while context.raft.read_barrier().await.is_err() {
            tokio::time::sleep(BARRIER_RETRY).await;
        }
        let own = |state: &State| state.node(context.node).map(|node| node.role);
        if changes.wait_for(|state| own(state) == Some(Role::Manager)).await.is_ok()
            && changes.wait_for(|state| own(state) != Some(Role::Manager)).await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        () = demoted => Ended::Demoted,
        Some(reason) = context.raft.wait_stopped() => Ended::Fatal(format!("the replicated log stopped: {reason}")),
    };
    ended.send_replace(Some(end));
}

/// The command a cluster begins with.
fn first_state(config: &ManagerConfig, options: &InitOptions) -> Command {
    let now = Timestamp::now();
    let cluster = Cluster {
        id: config.identity.identity().cluster,
        meta: Meta::default(),
        spec: options.spec.clone(),
        root_ca: rswarm_types::RootCa {
            cert_pem: options.root_ca.cert_pem().to_owned(),
            key_pem: options.root_ca.key_pem().to_owned(),
        },
        join_secrets: JoinSecrets { worker: random::text(), manager: random::text() },
        removed_nodes: BTreeMap::new(),
    };
    let node = Node {
        id: config.identity.identity().node,
        meta: Meta::default(),
        spec: NodeSpec { role: Role::Manager, availability: options.availability, ..NodeSpec::default() },
        role: Role::Manager,
        description: Some(config.node_description.clone()),
        status: NodeStatus::default(),
        // Said by the group itself as soon as it is one.
        manager: None,
        role_since: Version::default(),
        number: 0,
    };
    let pool = options.spec.default_address_pool;
    let ipam = pool.nth(1).map(|gateway| Ipam { subnet: pool, gateway, ipv6: None });
    let network = |name: &str, driver, ipam| {
        Write::CreateNetwork(Box::new(Network {
            id: NetworkId::from_bytes(random::bytes()),
            meta: Meta::default(),
            spec: NetworkSpec::new(name, driver),
            ipam,
            vni: None,
        }))
    };
    // The rest is given to it when it is written.
    let mut spec = NetworkSpec::new("ingress", NetworkDriver::Overlay);
    spec.ingress = true;
    // Published ports answer by IPv6 too where a node has it.
    spec.ipam.ipv6 = Some(IpamSpec6::default());
    let id = NetworkId::from_bytes(random::bytes());
    let network_of_mesh = Network { id, meta: Meta::default(), spec, ipam: None, vni: None };
    let ingress = Write::CreateNetwork(Box::new(network_of_mesh));
    let writes = vec![
        Write::PutCluster { cluster: Box::new(cluster), expected: None },
        Write::CreateNode(Box::new(node)),
        network("bridge", NetworkDriver::Bridge, ipam),
        network("host", NetworkDriver::Host, None),
        network("none", NetworkDriver::None, None),
        ingress,
    ];
    Command { at: now, writes }
}
