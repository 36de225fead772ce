//! Managers and fake workers on loopback ports in one process, talking over real mutual TLS.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rswarm_api::v1;
use rswarm_api::v1::ca_client::CaClient;
use rswarm_api::v1::control_client::ControlClient;
use rswarm_api::v1::dispatcher_client::DispatcherClient;
use rswarm_identity::{
    Claims, Credentials, JoinToken, NodeKey, Receiver, RootCa, ServerExpectation, Store,
    bootstrap_client_config,
};
use rswarm_manager::{
    BoxFuture, ImageResolver, InitOptions, Manager, ManagerConfig, ResolveError, ResolvedImage,
};
use rswarm_types::netmap::{NetworkChange, NetworkMap};
use rswarm_types::node::{NodeNetworkFacts, Platform, Resources};
use rswarm_types::task::RegistryAuth;
use rswarm_types::{Availability, ClusterId, ClusterSpec, NodeDescription, NodeId, Role, Timestamp, Version};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Long enough for a machine shared with other builds; nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Of which workers report something stale when asked.
pub const ODD_NETWORK: &str = "0000000000000000000000odd";

/// Life of the certificates that tests sign themselves.
pub const LIFE: Duration = Duration::from_secs(3600);

/// Polls until `look` finds something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Knows `web`, `down`, and `private` for those with a credential; says of others that there are none.
pub struct Images;

impl ImageResolver for Images {
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
    ) -> BoxFuture<'a, Result<ResolvedImage, ResolveError>> {
        Box::pin(async move {
            let name = image.to_owned();
            match image {
                "private" if auth.is_none() => {
                    Err(ResolveError::Denied { image: name, source: "unauthorized to read `private`".into() })
                }
                "private" => Ok(ResolvedImage {
                    pinned: format!("private:latest@sha256:{}", "b".repeat(64)),
                    platforms: Vec::new(),
                }),
                "web" => Ok(ResolvedImage {
                    pinned: format!("web:latest@sha256:{}", "a".repeat(64)),
                    platforms: vec![Platform { os: "linux".to_owned(), architecture: "amd64".to_owned() }],
                }),
                "down" => Err(ResolveError::Unavailable {
                    image: name,
                    source: "the registry does not answer".into(),
                }),
                _ => Err(ResolveError::NotFound { image: name, reason: "no such tag".to_owned() }),
            }
        })
    }
}

/// A manager and what a test needs to talk to it.
pub struct Host {
    pub manager: Manager,
    pub identity: Receiver,
    pub addr: String,
    pub dir: tempfile::TempDir,
}

/// Settings with which a silent node is noticed soon.
pub fn quick() -> ClusterSpec {
    ClusterSpec {
        heartbeat_period: Duration::from_millis(300),
        node_down_after: Duration::from_secs(4),
        ..ClusterSpec::default()
    }
}

pub fn description(hostname: &str) -> NodeDescription {
    NodeDescription {
        hostname: hostname.to_owned(),
        platform: Platform { os: "linux".to_owned(), architecture: "amd64".to_owned() },
        resources: Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 },
        engine_version: "0.1.0".to_owned(),
        network: NodeNetworkFacts {
            data_path_addr: Some([127, 0, 0, 1].into()),
            mtu: 1500,
            ..NodeNetworkFacts::default()
        },
        ..NodeDescription::default()
    }
}

pub fn config(dir: &std::path::Path, identity: &Receiver, addr: &str) -> ManagerConfig {
    ManagerConfig {
        dir: dir.join("manager"),
        listen_addr: addr.parse().unwrap(),
        advertise_addr: addr.to_owned(),
        identity: identity.clone(),
        images: Arc::new(Images),
        node_description: description("m"),
    }
}

impl Host {
    /// A new cluster of one manager, which takes no tasks.
    pub async fn found() -> Self {
        Self::found_with_root().await.0
    }

    /// The same with the cluster's root, to sign certificates by hand.
    pub async fn found_with_root() -> (Self, RootCa) {
        let now = Timestamp::now();
        let root = RootCa::generate(now).unwrap();
        let claims = Claims {
            node: NodeId::from_bytes(random()),
            role: Role::Manager,
            cluster: ClusterId::from_bytes(random()),
        };
        let key = NodeKey::generate().unwrap();
        let issued = root.issue(&key.csr_pem().unwrap(), &claims, LIFE, now, Version(0), &[]).unwrap();
        let credentials = Credentials::new(root.cert_pem(), &issued.pem, key).unwrap();
        let (_, identity) = Store::new(credentials);
        let dir = tempfile::tempdir().unwrap();
        let own_root = RootCa::from_pem(root.cert_pem(), root.key_pem()).unwrap();
        let options = InitOptions { spec: quick(), root_ca: root, availability: Availability::Drain };
        let manager = Manager::init(config(dir.path(), &identity, "127.0.0.1:0"), options).await.unwrap();
        let addr = manager.info().advertise_addr;
        (Self { manager, identity, addr, dir }, own_root)
    }

    /// Another manager of the same cluster.
    pub async fn join(&self) -> Self {
        let token = self.tokens().await.manager;
        let (_, identity) = enroll(&self.addr, &token).await.unwrap();
        self.join_as(identity).await
    }

    /// Another manager, which already has its certificate.
    pub async fn join_as(&self, identity: Receiver) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::join(config(dir.path(), &identity, "127.0.0.1:0"), &self.addr).await.unwrap();
        let addr = manager.info().advertise_addr;
        Self { manager, identity, addr, dir }
    }

    /// The control service over mutual TLS, with this host's own certificate.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(channel(&self.addr, &self.identity))
    }

    pub async fn tokens(&self) -> v1::GetJoinTokensResponse {
        self.control().get_join_tokens(v1::GetJoinTokensRequest {}).await.unwrap().into_inner()
    }

    pub async fn node(&self, id: &str) -> Result<v1::Node, Status> {
        let request = v1::GetNodeRequest { node: id.to_owned() };
        Ok(self.control().get_node(request).await?.into_inner().node.unwrap())
    }

    /// A worker that joins by token and opens a session.
    pub async fn worker(&self, name: &str) -> Worker {
        let (_, identity) = enroll(&self.addr, &self.tokens().await.worker).await.unwrap();
        let worker = Worker::connect(&self.addr, identity, name).await;
        let id = worker.id();
        eventually("the worker is ready", || async {
            let node = self.node(&id).await.ok()?;
            (node.status?.state() == v1::NodeState::Ready && node.description.is_some()).then_some(())
        })
        .await;
        worker
    }
}

/// Credentials of a node, signed by hand three hours ago: they have expired.
pub fn expired(root: &RootCa, claims: &Claims) -> Credentials {
    let issued = Timestamp::now().before(3 * LIFE);
    let key = NodeKey::generate().unwrap();
    let issued = root.issue(&key.csr_pem().unwrap(), claims, LIFE, issued, Version(0), &[]).unwrap();
    Credentials::new(root.cert_pem(), &issued.pem, key).unwrap()
}

pub fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

pub fn channel(addr: &str, identity: &Receiver) -> Channel {
    let identity = identity.clone();
    rswarm_api::channel::tls(addr, move || identity.client_config(ServerExpectation::Manager))
}

/// Joins by token, as a host without a certificate does; returns the answer and the new identity.
pub async fn enroll(addr: &str, token: &str) -> Result<(v1::IssueCertificateResponse, Receiver), Status> {
    let digest = token.parse::<JoinToken>().unwrap().digest;
    enroll_trusting(addr, token, move || bootstrap_client_config(digest)).await
}

/// The same with a trust of the caller's choice.
pub async fn enroll_trusting(
    addr: &str,
    token: &str,
    trust: impl Fn() -> Arc<rustls::ClientConfig> + Send + Sync + 'static,
) -> Result<(v1::IssueCertificateResponse, Receiver), Status> {
    let key = NodeKey::generate().unwrap();
    let request = v1::IssueCertificateRequest {
        csr_pem: key.csr_pem().unwrap(),
        token: token.to_owned(),
        availability: 0,
    };
    let mut ca = CaClient::new(rswarm_api::channel::tls(addr, trust));
    let issued = ca.issue_certificate(request).await?.into_inner();
    let credentials = Credentials::new(&issued.root_cert_pem, &issued.cert_pem, key).unwrap();
    Ok((issued, Store::new(credentials).1))
}

/// What a worker was told, by task.
type Told<T> = Arc<Mutex<BTreeMap<String, T>>>;

/// A worker that claims to run whatever it is told to.
pub struct Worker {
    pub identity: Receiver,
    tasks: Told<v1::Task>,
    credentials: Told<v1::RegistryAuth>,
    map: Arc<Mutex<NetworkMap>>,
    acknowledged: tokio::sync::watch::Receiver<u64>,
    /// Roles the managers said this node should have.
    role: tokio::sync::watch::Receiver<i32>,
    session: tokio::task::JoinHandle<Option<Status>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.session.abort();
    }
}

impl Worker {
    pub async fn connect(addr: &str, identity: Receiver, name: &str) -> Self {
        let tasks: Told<v1::Task> = Arc::default();
        let credentials: Told<v1::RegistryAuth> = Arc::default();
        let map: Arc<Mutex<NetworkMap>> = Arc::default();
        let (acknowledge, acknowledged) = tokio::sync::watch::channel(0);
        let (tell_role, role) = tokio::sync::watch::channel(0);
        let session = session(
            addr.to_owned(),
            identity.clone(),
            name.to_owned(),
            (tasks.clone(), credentials.clone(), map.clone()),
            acknowledge,
            tell_role,
        );
        let session = tokio::spawn(session);
        Self { identity, tasks, credentials, map, acknowledged, role, session }
    }

    pub fn id(&self) -> String {
        self.identity.identity().node.to_string()
    }

    /// Falls silent, as a machine does that lost its power.
    pub fn power_off(&self) {
        self.session.abort();
    }

    /// The tasks it was told to run.
    pub fn tasks(&self) -> Vec<v1::Task> {
        let running = |task: &&v1::Task| task.desired() == v1::TaskState::Running;
        self.tasks.lock().unwrap().values().filter(running).cloned().collect()
    }

    /// The network as it was told of it.
    pub fn map(&self) -> NetworkMap {
        self.map.lock().unwrap().clone()
    }

    /// What it was last told for the registry of a task's image.
    pub fn credential(&self, task: &str) -> Option<v1::RegistryAuth> {
        self.credentials.lock().unwrap().get(task).cloned()
    }

    /// How many credentials it was ever told.
    pub fn credentials_seen(&self) -> usize {
        self.credentials.lock().unwrap().len()
    }

    pub async fn wait_acknowledged(&mut self) {
        let wait = self.acknowledged.wait_for(|sequence| *sequence > 0);
        tokio::time::timeout(PATIENCE, wait).await.expect("an acknowledgement in time").unwrap();
    }

    pub async fn wait_role(&mut self, wanted: v1::Role) {
        let wait = self.role.wait_for(|role| *role == i32::from(wanted));
        tokio::time::timeout(PATIENCE, wait).await.expect("the role in time").unwrap();
    }

    /// Why the managers ended its session.
    pub async fn wait_refused(mut self) -> Option<Status> {
        tokio::time::timeout(PATIENCE, &mut self.session).await.expect("the session's end in time").unwrap()
    }
}

fn agent(message: v1::agent_message::Message) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}

/// Opens a session at the manager that leads; returns both ends.
pub async fn open_session(
    addr: &str,
    identity: &Receiver,
    name: &str,
) -> Result<
    (mpsc::Sender<v1::AgentMessage>, tonic::Streaming<v1::ManagerMessage>, DispatcherClient<Channel>),
    Status,
> {
    use v1::manager_message::Message;
    let mut addr = addr.to_owned();
    loop {
        let mut client = DispatcherClient::new(channel(&addr, identity));
        let (send, outgoing) = mpsc::channel(64);
        let hello = v1::agent_message::Hello { description: Some((&description(name)).into()) };
        send.send(agent(v1::agent_message::Message::Hello(hello))).await.unwrap();
        let mut incoming = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
        match incoming.message().await?.and_then(|message| message.message) {
            Some(Message::Welcome(_)) => return Ok((send, incoming, client)),
            Some(Message::Redirect(redirect)) if !redirect.leader_addr.is_empty() => {
                addr = redirect.leader_addr;
            }
            Some(Message::Redirect(_)) => {}
            other => panic!("expected a welcome or a redirect, found {other:?}"),
        }
    }
}

async fn session(
    addr: String,
    identity: Receiver,
    name: String,
    (tasks, credentials, map): (Told<v1::Task>, Told<v1::RegistryAuth>, Arc<Mutex<NetworkMap>>),
    acknowledge: tokio::sync::watch::Sender<u64>,
    tell_role: tokio::sync::watch::Sender<i32>,
) -> Option<Status> {
    use v1::agent_message::{Heartbeat, Message as Say, TaskStatuses, Update};
    use v1::manager_message::Message;
    let (send, mut incoming, dispatcher) = match open_session(&addr, &identity, &name).await {
        Ok(opened) => opened,
        Err(status) => return Some(status),
    };
    let mut sequence = 0;
    let mut beat = tokio::time::interval(Duration::from_millis(200));
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            _ = beat.tick() => {
                let _ = send.send(agent(Say::Heartbeat(Heartbeat {}))).await;
                continue;
            }
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return None,
            Err(status) => return Some(status),
        };
        match message.message {
            Some(Message::Assignments(assignments)) => {
                let updates: Vec<Update> = assignments.tasks.iter().filter_map(observe).collect();
                if let Some(change) = assignments.network {
                    assert_eq!(change.index, assignments.index);
                    let change = NetworkChange::try_from(change).unwrap();
                    assert_eq!(change.full, assignments.full);
                    assert!(map.lock().unwrap().apply(change));
                }
                knows_networks(&map.lock().unwrap(), &assignments.tasks);
                let told = assignments.credentials.into_iter();
                credentials.lock().unwrap().extend(told.map(|one| (one.task_id, one.auth.unwrap())));
                {
                    let mut held = tasks.lock().unwrap();
                    if assignments.full {
                        held.clear();
                    }
                    held.extend(assignments.tasks.into_iter().map(|task| (task.id.clone(), task)));
                    held.retain(|id, _| !assignments.removed_task_ids.contains(id));
                }
                if !updates.is_empty() {
                    sequence += 1;
                    let _ = send.send(agent(Say::Statuses(TaskStatuses { sequence, updates }))).await;
                }
            }
            Some(Message::StatusesAcknowledged(sequence)) => {
                acknowledge.send_replace(sequence);
            }
            Some(Message::Cluster(view)) => {
                tell_role.send_replace(view.role);
            }
            Some(Message::CheckNetwork(_)) => {
                let stale = |what: &str, network: &str| v1::NetworkDifference {
                    what: what.to_owned(),
                    network: network.to_owned(),
                    ..Default::default()
                };
                let differences = vec![stale("rule", ""), stale("neighbour", ODD_NETWORK)];
                let check = v1::NetworkCheck { differences, mended: 7, ..Default::default() };
                let _ = send.send(agent(Say::NetworkChecked(check))).await;
            }
            Some(Message::SubscribeLogs(subscription)) => {
                tokio::spawn(publish(dispatcher.clone(), subscription));
            }
            _ => {}
        }
    }
}

/// No task may come before its networks.
fn knows_networks(map: &NetworkMap, tasks: &[v1::Task]) {
    for task in tasks.iter().filter(|task| task.desired() <= v1::TaskState::Running) {
        let overlays = task.networks.iter().filter(|one| one.driver() == v1::NetworkDriver::Overlay);
        for network in overlays {
            assert!(map.networks.contains_key(&network.network.parse().unwrap()), "{network:?}");
            assert!(map.endpoints.contains_key(&task.id.parse().unwrap()), "{task:?}");
        }
    }
}

/// What becomes of a task at once in a perfect world.
fn observe(task: &v1::Task) -> Option<v1::agent_message::Update> {
    let state = match task.desired() {
        v1::TaskState::Running => v1::TaskState::Running,
        v1::TaskState::Ready => v1::TaskState::Ready,
        v1::TaskState::Shutdown | v1::TaskState::Remove => v1::TaskState::Shutdown,
        _ => return None,
    };
    let status = v1::TaskStatus { state: state.into(), at: Timestamp::now().0, ..v1::TaskStatus::default() };
    Some(v1::agent_message::Update { task_id: task.id.clone(), status: Some(status) })
}

/// Two lines for every task subscribed to; a follower's stream then stays open.
async fn publish(mut dispatcher: DispatcherClient<Channel>, subscription: v1::LogSubscription) {
    let (send, outgoing) = mpsc::channel(4);
    let record = |task_id: &String, line: &str| v1::LogRecord {
        task_id: task_id.clone(),
        at: Timestamp::now().0,
        stream: v1::log_record::Stream::Stdout.into(),
        line: line.into(),
        ..v1::LogRecord::default()
    };
    let records =
        subscription.task_ids.iter().flat_map(|id| [record(id, "one"), record(id, "two")]).collect();
    let request = v1::PublishLogsRequest { subscription_id: subscription.id, records };
    send.send(request).await.unwrap();
    let open = subscription.follow.then_some(send);
    let _ = dispatcher.publish_logs(Request::new(ReceiverStream::new(outgoing))).await;
    drop(open);
}
