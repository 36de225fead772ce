//! The membership of this node: entering a cluster, leaving it, and keeping role and certificate as the cluster wants
//! them. One lock orders these; the worker and the manager are started and stopped nowhere else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rswarm_api::{channel, v1};
use rswarm_identity as identity;
use rswarm_identity::{Credentials, Identity, IdentityDir, JoinToken, NodeKey};
use rswarm_image::{ImageStore, PullOptions};
use rswarm_manager::{Ended, InitOptions, Manager, ManagerConfig};
use rswarm_net::{NetworkConfig, TunnelProgram};
use rswarm_runtime::ShimCommand;
use rswarm_types::error::chain;
use rswarm_types::{Availability, ClusterId, ClusterSpec, NodeDescription, NodeId, Role, Timestamp, Version};
use rswarm_worker::{ContainerExecutorConfig, Guarded, SessionState, Worker, WorkerConfig};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::address::{
    advertise_addr, data_path_addr, ensure_free, listen_addr, local_address_to, with_default_port,
};
use super::journal::{Change, remove};
use super::resolve::Resolver;
use super::settings::Settings;
use super::socket::{ControlSwitch, NOT_A_MANAGER, NOT_A_MEMBER};
use super::{enrol, facts, journal};
use crate::paths::Paths;

/// Between two attempts to renew a certificate or to take up a role.
const RETRY: Duration = Duration::from_secs(5);
/// How long tasks get to stop when the node leaves before they are killed.
pub const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a new member waits for the leader's welcome.
const WELCOME_PATIENCE: Duration = Duration::from_secs(5);
/// First letters of the names of bridges.
const BRIDGE_PREFIX: &str = "rsb";

/// What does not change while the daemon runs.
pub struct NodeConfig {
    pub paths: Paths,
    pub images: ImageStore,
    pub pull: PullOptions,
    pub description: NodeDescription,
    /// This executable, which is also the shim.
    pub executable: PathBuf,
    pub started_at: Timestamp,
    /// After how long the node takes another key for encrypted networks.
    pub key_period: Duration,
}

impl NodeConfig {
    /// The namespace of the overlays is below the run root: several nodes may share a machine.
    fn network(&self) -> NetworkConfig {
        let run_root = &self.paths.run_root;
        let tunnel = TunnelProgram {
            executable: self.executable.clone(),
            args: vec!["tunnel".to_owned()],
            socket: run_root.join("tunnel.sock"),
            log: run_root.join("tunnel.log"),
        };
        NetworkConfig {
            helper: run_root.join("netns/overlay"),
            tunnel: Some(tunnel),
            ..NetworkConfig::default()
        }
    }

    /// How containers of the node `id` are run here.
    pub fn executor(&self, id: NodeId, listen_port: u16) -> ContainerExecutorConfig {
        ContainerExecutorConfig {
            containers: self.paths.containers(),
            shim: ShimCommand { executable: self.executable.clone(), args: vec!["shim".into()] },
            images: self.images.clone(),
            pull: self.pull.clone(),
            // Several nodes on one machine share its cgroups: each has a branch of its own.
            cgroup_parent: format!("/rswarm/{}", id.short()),
            network: self.network(),
            guarded: Guarded::from([(rswarm_net::Protocol::Tcp, listen_port)]),
            run_root: self.paths.run_root.clone(),
            bridge_prefix: BRIDGE_PREFIX.to_owned(),
            key_period: self.key_period,
        }
    }
}

/// The node; cloning shares it.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    config: NodeConfig,
    control: ControlSwitch,
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Inactive,
    Member(Box<Member>),
}

struct Member {
    credentials: identity::Store,
    identity: identity::Receiver,
    settings: Settings,
    worker: Worker,
    manager: Option<Manager>,
    keeper: JoinHandle<()>,
}

impl Node {
    pub fn new(config: NodeConfig, control: ControlSwitch) -> Self {
        control.off(NOT_A_MEMBER);
        Self { shared: Arc::new(Shared { config, control, state: Mutex::default() }) }
    }

    fn paths(&self) -> &Paths {
        &self.shared.config.paths
    }

    fn identity_dir(&self) -> IdentityDir {
        IdentityDir::new(self.paths().identity())
    }

    /// Takes up the membership that is on disk, if there is one.
    pub async fn resume(&self) -> anyhow::Result<()> {
        let mut state = self.shared.state.lock().await;
        let Some(credentials) = self.identity_dir().load()? else { return Ok(()) };
        let path = self.paths().settings();
        let settings = Settings::load(&path)?.with_context(|| {
            format!("`{}` is missing although the node has a certificate", path.display())
        })?;
        let role = credentials.identity().role;
        let (store, receiver) = identity::Store::new(credentials);
        let manager = match role {
            // Killed before the group had let it in: the keeper asks again.
            Role::Manager if !Manager::exists(&self.paths().manager()) => None,
            Role::Manager => {
                Some(Manager::start(self.manager_config(&receiver, &settings)).await.context("manager")?)
            }
            Role::Worker => None,
        };
        match self.start_worker(&receiver, &settings).await {
            Ok(worker) => {
                *state = self.enter(store, receiver, settings, manager, worker);
                Ok(())
            }
            Err(error) => {
                if let Some(manager) = manager {
                    manager.shutdown().await;
                }
                Err(error)
            }
        }
    }

    /// Creates a cluster with this node as its first manager.
    pub async fn init(&self, request: v1::InitRequest) -> anyhow::Result<v1::InitResponse> {
        let mut state = self.shared.state.lock().await;
        self.ensure_outside(&state)?;
        let spec = ClusterSpec::try_from(request.spec.unwrap_or_default())?;
        let availability = availability(request.availability)?;
        let listen_addr = listen_addr(&request.listen_addr)?;
        let advertise_addr = advertise_addr(&request.advertise_addr, listen_addr)?;
        let data_path_addr = data_path_addr(&request.data_path_addr)?;
        ensure_free(listen_addr, advertise_addr)?;
        if rswarm_net::is_data_path_taken(spec.data_path_port).unwrap_or(false) {
            anyhow::bail!(
                "UDP port {} is in use by another process of this host: the packets of overlay networks go by it; end \
                 that process, or choose another one by --data-path-port",
                spec.data_path_port
            );
        }

        let now = Timestamp::now();
        let root = identity::RootCa::generate(now)?;
        let claims = Identity {
            node: NodeId::from_bytes(random()?),
            role: Role::Manager,
            cluster: ClusterId::from_bytes(random()?),
        };
        let key = NodeKey::generate()?;
        // Before the first index there is none.
        let index = Version::default();
        let certificate = root.issue(&key.csr_pem()?, &claims, spec.node_cert_expiry, now, index, &[])?;
        let credentials = Credentials::new(root.cert_pem(), &certificate.pem, key)?;
        let managers = vec![advertise_addr.to_string()];
        let settings = Settings { listen_addr, advertise_addr, data_path_addr, managers };
        let (store, receiver) = identity::Store::new(credentials.clone());
        let options = InitOptions { spec, root_ca: root, availability };
        let mut manager = None;
        journal::begin(self.paths(), Change::Founding)?;
        let entered = async {
            let started = Manager::init(self.manager_config(&receiver, &settings), options).await?;
            let manager = manager.insert(started);
            journal::enter(self.paths(), &settings, &credentials)?;
            let tokens = rswarm_api::v1::control_server::Control::get_join_tokens(
                &manager.control(),
                tonic::Request::new(v1::GetJoinTokensRequest {}),
            )
            .await
            .map_err(|status| anyhow::anyhow!(status.message().to_owned()))?
            .into_inner();
            let worker = self.start_worker(&receiver, &settings).await?;
            journal::end(self.paths())?;
            Ok::<_, anyhow::Error>((worker, tokens))
        };
        match entered.await {
            Ok((worker, tokens)) => {
                let session = worker.session_state();
                *state = self.enter(store, receiver, settings, manager, worker);
                drop(state);
                let mut warnings = until_connected(session).await;
                warnings.extend(facts::overlay_faults(&self.shared.config.network()));
                Ok(v1::InitResponse {
                    warnings,
                    node_id: claims.node.to_string(),
                    cluster_id: claims.cluster.to_string(),
                    advertise_addr: advertise_addr.to_string(),
                    worker_token: tokens.worker,
                    manager_token: tokens.manager,
                })
            }
            Err(error) => Err(self.undo(error, manager).await),
        }
    }

    /// Enters the cluster whose token is given, in the role the token is for.
    pub async fn join(&self, request: v1::JoinRequest) -> anyhow::Result<v1::JoinResponse> {
        let mut state = self.shared.state.lock().await;
        self.ensure_outside(&state)?;
        let token: JoinToken = request.token.parse()?;
        let manager_addr = with_default_port(&request.manager_addr)?;
        let listen_addr = listen_addr(&request.listen_addr)?;
        availability(request.availability)?;
        let data_path_addr = data_path_addr(&request.data_path_addr)?;
        let advertise_addr = if request.advertise_addr.is_empty() && listen_addr.ip().is_unspecified() {
            // The address by which this host reaches the manager is one by which the manager reaches this host.
            let ip = tokio::time::timeout(channel::CONNECT_TIMEOUT, local_address_to(&manager_addr))
                .await
                .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
                .with_context(|| format!("cannot reach a manager at `{manager_addr}`"))?;
            SocketAddr::new(ip, listen_addr.port())
        } else {
            advertise_addr(&request.advertise_addr, listen_addr)?
        };
        // Known before the cluster is asked, so that a node that cannot serve never becomes an entry there.
        ensure_free(listen_addr, advertise_addr)?;

        let enrolment = enrol::enrol(&token, &manager_addr, request.availability, Timestamp::now);
        let joined = tokio::time::timeout(enrol::ANSWER_TIMEOUT, enrolment).await.with_context(|| {
            format!("the manager at `{manager_addr}` did not answer within {:?}", enrol::ANSWER_TIMEOUT)
        })??;
        let identity = joined.credentials.identity();
        let mut managers = joined.managers;
        managers.retain(|addr| *addr != manager_addr);
        managers.insert(0, manager_addr.clone());
        let settings = Settings { listen_addr, advertise_addr, data_path_addr, managers };
        let (store, receiver) = identity::Store::new(joined.credentials.clone());
        let mut manager = None;
        let entered = async {
            // First on disk: a daemon that is killed from here on comes back as the node the cluster knows.
            journal::enter(self.paths(), &settings, &joined.credentials)?;
            if identity.role == Role::Manager {
                let config = self.manager_config(&receiver, &settings);
                manager = Some(Manager::join(config, &manager_addr).await?);
            }
            self.start_worker(&receiver, &settings).await
        };
        match entered.await {
            Ok(worker) => {
                let session = worker.session_state();
                *state = self.enter(store, receiver, settings, manager, worker);
                drop(state);
                let mut warnings = until_connected(session).await;
                warnings.extend(facts::overlay_faults(&self.shared.config.network()));
                Ok(v1::JoinResponse {
                    warnings,
                    node_id: identity.node.to_string(),
                    cluster_id: identity.cluster.to_string(),
                    role: v1::Role::from(identity.role).into(),
                })
            }
            Err(error) => {
                // Whatever happens now, no later daemon is to take this up again.
                if let Err(error) = journal::begin(self.paths(), Change::Leaving) {
                    tracing::warn!(error = chain(&*error), "a join that failed could not be marked as such");
                }
                // While its manager still runs: the group may need this one's voice to let it go.
                let withdrawn = enrol::withdraw(&settings.managers, &receiver).await;
                let error = match withdrawn {
                    Ok(()) => error,
                    Err(reason) => error.context(format!(
                        "node `{}` stays known to the cluster, remove it there by `rswarm node rm`: {reason:#}",
                        identity.node
                    )),
                };
                Err(self.undo(error, manager).await)
            }
        }
    }

    /// Leaves the cluster: ends all tasks here and forgets everything about it.
    pub async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut state = self.shared.state.lock().await;
        let State::Member(member) = &*state else { bail!(NOT_A_MEMBER) };
        if let Some(manager) = &member.manager
            && !force
        {
            let others = manager.info().managers.len().saturating_sub(1);
            if others == 0 {
                bail!(
                    "this node is the last manager: leaving erases all cluster state, and the tasks of other nodes \
                     go on without control; use `--force` if that is what you want"
                );
            }
            bail!(
                "this node is a manager, and leaving would count as the loss of one of {}: demote it first with \
                 `rswarm node demote`, or use `--force`",
                others + 1
            );
        }
        let State::Member(member) = std::mem::take(&mut *state) else { return Ok(()) };
        let Member { worker, manager, keeper, .. } = *member;
        keeper.abort();
        self.shared.control.off(NOT_A_MEMBER);
        let removed = worker.remove_everything(LEAVE_PATIENCE).await;
        if let Some(manager) = manager {
            manager.shutdown().await;
        }
        journal::forget(self.paths())?;
        removed.context("the node has left, but not all of its tasks could be removed")
    }

    /// Stops manager and worker; containers go on.
    pub async fn shutdown(&self) {
        let state = std::mem::take(&mut *self.shared.state.lock().await);
        if let State::Member(member) = state {
            member.keeper.abort();
            member.worker.shutdown().await;
            if let Some(manager) = member.manager {
                manager.shutdown().await;
            }
        }
    }

    pub async fn info(&self) -> v1::InfoResponse {
        use v1::info_response::Membership;
        let config = &self.shared.config;
        let mut info = v1::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: config.description.hostname.clone(),
            data_root: config.paths.data_root.display().to_string(),
            run_root: config.paths.run_root.display().to_string(),
            platform: Some((&config.description.platform).into()),
            resources: Some((&config.description.resources).into()),
            kernel: facts::kernel(),
            cgroup: facts::cgroup_version().to_owned(),
            started_at: config.started_at.0,
            ..v1::InfoResponse::default()
        };
        // A join under way holds the lock; whoever asks meanwhile is told so instead of waiting.
        let Ok(state) = self.shared.state.try_lock() else {
            info.set_membership(Membership::Pending);
            "a change of membership is under way".clone_into(&mut info.message);
            return info;
        };
        let State::Member(member) = &*state else {
            info.set_membership(Membership::Inactive);
            return info;
        };
        let identity = member.identity.identity();
        info.node_id = identity.node.to_string();
        info.cluster_id = identity.cluster.to_string();
        info.set_role(identity.role.into());
        info.advertise_addr = member.settings.advertise_addr.to_string();
        info.cert_expires_at = member.identity.certificate().not_after.0;
        info.containers_running = member.worker.counts().borrow().running as u64;
        info.manager_addrs.clone_from(&member.settings.managers);
        match &*member.worker.session_state().borrow() {
            SessionState::Connected { .. } => info.set_membership(Membership::Active),
            SessionState::Searching { reason } => {
                info.set_membership(Membership::Pending);
                info.message = format!("no session with a leader: {reason}");
            }
        }
        if let Some(manager) = &member.manager {
            let seen = manager.info();
            info.applied_index = Some(seen.applied_index);
            info.leader = seen.leader.map(|node| node.to_string());
            info.manager_addrs = seen.managers;
        }
        info
    }

    fn ensure_outside(&self, state: &State) -> anyhow::Result<()> {
        if let State::Member(_) = state {
            bail!("this node is already part of a cluster: use `rswarm leave` to leave it first");
        }
        let left = self.paths().manager();
        ensure!(
            !left.exists(),
            "`{}` holds the state of a cluster this node has no certificate for: move it away, or use another \
             `--data-root`",
            left.display()
        );
        Ok(())
    }

    fn manager_config(&self, identity: &identity::Receiver, settings: &Settings) -> ManagerConfig {
        let config = &self.shared.config;
        ManagerConfig {
            dir: config.paths.manager(),
            listen_addr: settings.listen_addr,
            advertise_addr: settings.advertise_addr.to_string(),
            identity: identity.clone(),
            images: Arc::new(Resolver { images: config.images.clone(), options: config.pull.clone() }),
            node_description: self.description(settings),
        }
    }

    /// What this node says of itself as a member.
    fn description(&self, settings: &Settings) -> NodeDescription {
        let addr = settings.data_path_addr.unwrap_or(settings.advertise_addr.ip());
        let config = &self.shared.config;
        NodeDescription {
            network: facts::network_facts(config.network(), addr),
            ..config.description.clone()
        }
    }

    /// Starts the worker of a member; it adopts the containers that are there.
    async fn start_worker(
        &self,
        identity: &identity::Receiver,
        settings: &Settings,
    ) -> anyhow::Result<Worker> {
        let config = &self.shared.config;
        let started = Worker::start(WorkerConfig {
            node_id: identity.identity().node,
            node_description: self.description(settings),
            identity: identity.clone(),
            managers: settings.managers.clone(),
            data_root: config.paths.data_root.clone(),
            executor: config.executor(identity.identity().node, settings.listen_addr.port()),
        });
        started.await.map_err(|error| anyhow::Error::new(error).context("worker"))
    }

    /// Makes a member of what was started for it, and has its certificate and role kept.
    fn enter(
        &self,
        credentials: identity::Store,
        identity: identity::Receiver,
        settings: Settings,
        manager: Option<Manager>,
        worker: Worker,
    ) -> State {
        match &manager {
            Some(manager) => self.shared.control.on(manager.control()),
            None => self.shared.control.off(NOT_A_MANAGER),
        }
        let keeper = tokio::spawn(keep(self.clone(), identity.clone(), worker.cluster_view()));
        State::Member(Box::new(Member { credentials, identity, settings, worker, manager, keeper }))
    }

    /// Takes back a membership that did not come about.
    async fn undo(&self, error: anyhow::Error, manager: Option<Manager>) -> anyhow::Error {
        self.shared.control.off(NOT_A_MEMBER);
        if let Some(manager) = manager {
            manager.shutdown().await;
        }
        match journal::forget(self.paths()) {
            Ok(()) => error,
            Err(undo) => error.context(format!("also, cleaning up failed: {undo:#}")),
        }
    }

    /// Stores what the leader told of the managers.
    async fn remember_managers(&self, managers: Vec<String>) -> anyhow::Result<()> {
        let mut state = self.shared.state.lock().await;
        let State::Member(member) = &mut *state else { return Ok(()) };
        if managers.is_empty() || member.settings.managers == managers {
            return Ok(());
        }
        member.settings.managers = managers;
        member.settings.save(&self.paths().settings())
    }

    /// Obtains a new certificate, in whatever role the cluster wants for this node now, and takes that role up.
    ///
    /// One that was issued before `since` is outdated: the node's role has changed meanwhile, perhaps more than once.
    async fn renew(&self, since: Version) -> anyhow::Result<()> {
        let mut state = self.shared.state.lock().await;
        let State::Member(member) = &mut *state else { return Ok(()) };
        let former = member.identity.credentials();
        let key = NodeKey::generate()?;
        let csr_pem = key.csr_pem()?;
        let response = match &member.manager {
            // Where all have expired nobody could be asked: managers hold the root's key.
            Some(manager) if former.certificate().is_expired(Timestamp::now()) => {
                manager.renew_own(&csr_pem).map_err(|status| anyhow::anyhow!(status.message().to_owned()))?
            }
            _ => enrol::renew(&member.settings.managers, &member.identity, &csr_pem).await?,
        };
        let credentials = enrol::renewed(&response, key, &former)?;
        let role = credentials.identity().role;
        if former.certificate().index < since
            && let Some(manager) = member.manager.take()
        {
            // A member of an earlier time: even if the node is a manager again, the group no longer knows this one.
            self.end_manager(manager).await?;
        }
        self.identity_dir().save(&credentials)?;
        member.credentials.publish(credentials);
        tracing::info!(%role, "certificate renewed");
        self.take_up_role(member).await
    }

    /// Ends the manager of a node that is none any more, and deletes its log: the group has removed this member.
    async fn end_manager(&self, manager: Manager) -> anyhow::Result<()> {
        self.shared.control.off(NOT_A_MANAGER);
        manager.shutdown().await;
        remove(&self.paths().manager(), |path| std::fs::remove_dir_all(path))
    }

    /// Starts or stops the manager, as the certificate says.
    async fn take_up_role(&self, member: &mut Member) -> anyhow::Result<()> {
        match (member.identity.identity().role, member.manager.take()) {
            (Role::Manager, None) => {
                let config = self.manager_config(&member.identity, &member.settings);
                let others: Vec<_> = member
                    .settings
                    .managers
                    .iter()
                    .filter(|addr| **addr != member.settings.advertise_addr.to_string())
                    .cloned()
                    .collect();
                let first = others.first().context("no other manager is known")?;
                // State of an earlier time as a manager is of no use: the group knows this member by a new number.
                remove(&self.paths().manager(), |path| std::fs::remove_dir_all(path))?;
                let manager = Manager::join(config, first).await.context("cannot become a manager")?;
                self.shared.control.on(manager.control());
                member.manager = Some(manager);
                tracing::info!("this node is a manager now");
            }
            (Role::Worker, Some(manager)) => {
                self.end_manager(manager).await?;
                tracing::info!("this node is a worker now");
            }
            (_, manager) => member.manager = manager,
        }
        Ok(())
    }

    /// Why the manager of this node ended by itself, as soon as it does; for ever nothing if there is none.
    async fn manager_ended(&self) -> Ended {
        let ended = match &*self.shared.state.lock().await {
            State::Member(member) => member.manager.as_ref().map(Manager::ended),
            State::Inactive => None,
        };
        let Some(mut ended) = ended else { return std::future::pending().await };
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // It was shut down on purpose.
            None => std::future::pending().await,
        }
    }

    /// Whether the certificate's role and the running parts disagree.
    async fn role_is_unsettled(&self) -> bool {
        match &*self.shared.state.lock().await {
            State::Member(member) => {
                (member.identity.identity().role == Role::Manager) != member.manager.is_some()
            }
            State::Inactive => false,
        }
    }
}

/// Waits until the cluster knows this new member's name and state, or for as long as a user may be kept waiting: it
/// is a member either way. Returns what the leader finds wrong with it.
async fn until_connected(mut session: watch::Receiver<SessionState>) -> Vec<String> {
    let connected = session.wait_for(|state| matches!(state, SessionState::Connected { .. }));
    match tokio::time::timeout(WELCOME_PATIENCE, connected).await {
        Ok(Ok(state)) => match &*state {
            SessionState::Connected { warnings, .. } => warnings.clone(),
            SessionState::Searching { .. } => Vec::new(),
        },
        Ok(Err(_)) => Vec::new(),
        Err(_) => {
            tracing::warn!("no leader has welcomed this node within {WELCOME_PATIENCE:?}; it goes on asking");
            Vec::new()
        }
    }
}

/// Follows what the leader says of this node and renews its certificate in time, for as long as it is a member.
async fn keep(
    node: Node,
    identity: identity::Receiver,
    mut view: watch::Receiver<rswarm_worker::ClusterView>,
) {
    let chance =
        random().map_or(0.5, |bytes: [u8; 4]| f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX));
    loop {
        let seen = view.borrow_and_update().clone();
        if let Err(error) = node.remember_managers(seen.managers).await {
            tracing::warn!(error = chain(&*error), "the managers' addresses could not be stored");
        }
        let certificate = identity.certificate();
        let due = identity::renew_at(certificate.not_before, certificate.not_after, chance);
        let now = Timestamp::now();
        let wanted = certificate.index < seen.renew_below || now >= due;
        let outcome = if wanted {
            node.renew(seen.renew_below).await
        } else if node.role_is_unsettled().await {
            match &mut *node.shared.state.lock().await {
                State::Member(member) => node.take_up_role(member).await,
                State::Inactive => Ok(()),
            }
        } else {
            Ok(())
        };
        let wait = match outcome {
            Ok(()) if wanted => Duration::ZERO,
            Ok(()) => due.since(now),
            Err(error) => {
                tracing::warn!(error = chain(&*error), "certificate or role is not as the cluster wants it");
                RETRY
            }
        };
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            ended = node.manager_ended() => match ended {
                // The leader's next word brings the new role; asking at once would only be told the old one.
                Ended::Demoted => tokio::time::sleep(RETRY).await,
                Ended::Fatal(reason) => {
                    // Whoever supervises the daemon starts it again; containers go on meanwhile.
                    tracing::error!(reason, "the manager cannot go on: ending the daemon");
                    std::process::exit(1);
                }
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the system has no randomness")?;
    Ok(bytes)
}

fn availability(number: i32) -> anyhow::Result<Availability> {
    match v1::Availability::try_from(number) {
        Ok(v1::Availability::Unspecified) => Ok(Availability::Active),
        Ok(value) => Ok(value.try_into()?),
        Err(_) => bail!("unknown availability `{number}`"),
    }
}
