#![allow(dead_code, reason = "each test program uses a part")]
//! A group of managers to experiment on: each with a directory, a loopback server and, while it is up, a member.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rswarm_core::state::{Applied, Command, Write};
use rswarm_manager::peer::PeerIdentity;
use rswarm_manager::raft::{
    Connector, Leadership, ProposeError, RaftConfig, RaftError, RaftNode, RaftSlot, Timings, server,
};
use rswarm_types::{
    Cluster, ClusterId, ClusterSpec, JoinSecrets, Meta, Network, NetworkDriver, NetworkId, NetworkSpec, Node,
    NodeId, NodeSpec, NodeStatus, Role, RootCa, Timestamp, Version,
};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

const DEADLINE: Duration = Duration::from_secs(20);
/// For groups whose leader is to stay, also on a machine with other work to do.
const PATIENT: Timings = Timings {
    heartbeat: Duration::from_millis(150),
    election_min: Duration::from_secs(2),
    election_max: Duration::from_secs(4),
};
/// Carries the caller's node id in place of a certificate.
const NODE_HEADER: &str = "test-node";

/// Plain connections that say who calls.
struct Plain(NodeId);

impl Connector for Plain {
    fn channel(&self, addr: &str) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
        endpoint.user_agent(format!("{NODE_HEADER}={}", self.0)).unwrap().connect_lazy()
    }
}

struct Manager {
    config: RaftConfig,
    addr: SocketAddr,
    node: Option<RaftNode>,
    /// The server's own runtime, so that ending it breaks its connections in the middle of whatever they do.
    serving: Option<Runtime>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.shutdown_background();
        }
    }
}

/// Up to nine managers; dropped, it stops with its runtime.
pub struct Group {
    tmp: tempfile::TempDir,
    cluster_id: ClusterId,
    snapshot_interval: u64,
    timings: Timings,
    managers: Vec<Manager>,
}

pub fn network_id(n: u128) -> NetworkId {
    NetworkId::from_bytes(n.to_be_bytes())
}

/// Writes something that can be found again: a network named after `n`.
pub async fn write_network(node: &RaftNode, n: u128) -> Result<Applied, ProposeError> {
    let spec = NetworkSpec::new(format!("network-{n}"), NetworkDriver::Bridge);
    let network = Network { id: network_id(n), meta: Meta::default(), spec, ipam: None, vni: None };
    node.propose(Command::one(Timestamp(1), Write::CreateNetwork(Box::new(network)))).await
}

/// Writes it until it is known to be written: a leader may go, or be short of a processor, before it answers.
pub async fn write_surely(node: &RaftNode, n: u128) {
    // A few tries of some seconds each.
    let deadline = tokio::time::Instant::now() + 3 * DEADLINE;
    let mut unanswered = false;
    loop {
        match write_network(node, n).await {
            Ok(_) => return,
            Err(ProposeError::Rejected(_)) if unanswered => return,
            Err(ProposeError::Timeout) if tokio::time::Instant::now() < deadline => unanswered = true,
            Err(ProposeError::NoLeader) if tokio::time::Instant::now() < deadline => {}
            Err(error) => panic!("network {n}: {error}"),
        }
    }
}

/// Writes the cluster, with this in its spec.
pub async fn set_snapshot_interval(node: &RaftNode, snapshot_interval: u64) {
    let cluster = Cluster {
        id: ClusterId::from_bytes([9; 16]),
        meta: Meta::default(),
        spec: ClusterSpec { snapshot_interval, ..ClusterSpec::default() },
        root_ca: RootCa { cert_pem: String::new(), key_pem: String::new() },
        join_secrets: JoinSecrets { worker: String::new(), manager: String::new() },
        removed_nodes: BTreeMap::new(),
    };
    let write = Write::PutCluster { cluster: Box::new(cluster), expected: None };
    node.propose(Command::one(Timestamp(1), write)).await.unwrap();
}

fn node_id(n: usize) -> NodeId {
    NodeId::from_bytes([n as u8 + 1; 16])
}

fn node_object(id: NodeId) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
        role: Role::Manager,
        description: None,
        status: NodeStatus::default(),
        manager: None,
        role_since: Version::default(),
        number: 0,
    }
}

/// Waits until `holds`, but not for ever.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Group {
    /// A group of one.
    pub async fn bootstrap() -> Self {
        Self::of(1).await
    }

    pub async fn of(count: usize) -> Self {
        Self::of_with(count, 10_000, Timings::default()).await
    }

    /// One that elects nobody else as long as its leader lives.
    pub async fn steady(count: usize, snapshot_interval: u64) -> Self {
        Self::of_with(count, snapshot_interval, PATIENT).await
    }

    async fn of_with(count: usize, snapshot_interval: u64, timings: Timings) -> Self {
        let mut group = Self {
            tmp: tempfile::tempdir().unwrap(),
            cluster_id: ClusterId::from_bytes([9; 16]),
            snapshot_interval,
            timings,
            managers: Vec::new(),
        };
        for n in 0..count {
            let manager = group.manager(n);
            group.managers.push(manager);
            if n == 0 {
                let first = Command::one(Timestamp(1), Write::CreateNode(Box::new(node_object(node_id(0)))));
                let node = RaftNode::bootstrap(group.managers[0].config.clone(), first).await.unwrap();
                group.managers[0].node = Some(node);
            } else {
                let create = Command::one(Timestamp(1), Write::CreateNode(Box::new(node_object(node_id(n)))));
                group.node(0).propose(create).await.unwrap();
                // Through the member before: it refers to the leader.
                let via = group.managers[n - 1].addr.to_string();
                let node = RaftNode::join(group.managers[n].config.clone(), &via).await.unwrap();
                group.managers[n].node = Some(node);
            }
        }
        group
    }

    fn manager(&self, n: usize) -> Manager {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let config = RaftConfig {
            dir: self.tmp.path().join(n.to_string()),
            cluster_id: self.cluster_id,
            node_id: node_id(n),
            addr: addr.to_string(),
            timings: self.timings,
            snapshot_interval: self.snapshot_interval,
            connector: Arc::new(Plain(node_id(n))),
            slot: RaftSlot::default(),
        };
        let serving = Some(serve(listener, config.slot.clone()));
        Manager { config, addr, node: None, serving }
    }

    pub fn node(&self, n: usize) -> &RaftNode {
        self.managers[n].node.as_ref().expect("that manager is down")
    }

    pub fn alive(&self) -> Vec<usize> {
        (0..self.managers.len()).filter(|n| self.managers[*n].node.is_some()).collect()
    }

    pub fn dir(&self, n: usize) -> PathBuf {
        self.managers[n].config.dir.clone()
    }

    pub fn has(&self, n: usize, network: u128) -> bool {
        self.node(n).store().snapshot().network(network_id(network)).is_some()
    }

    /// The manager that leads, once one does.
    pub async fn leader(&self) -> usize {
        let leads = |n: &usize| matches!(*self.node(*n).leadership().borrow(), Leadership::Leader { .. });
        eventually("a leader", || self.alive().iter().any(leads)).await;
        self.alive().into_iter().find(leads).unwrap()
    }

    /// Stops a manager without a word to the others: connections break, the port is closed.
    pub async fn kill(&mut self, n: usize) {
        let manager = &mut self.managers[n];
        if let Some(serving) = manager.serving.take() {
            serving.shutdown_background();
        }
        if let Some(node) = manager.node.take() {
            node.shutdown().await;
        }
    }

    pub async fn restart(&mut self, n: usize) {
        let manager = &mut self.managers[n];
        let listener = rebind(manager.addr).await;
        manager.serving = Some(serve(listener, manager.config.slot.clone()));
        manager.node = Some(RaftNode::start(manager.config.clone()).await.unwrap());
    }

    /// Takes the last `count` entries, and what was written after them, from the log of a manager that is down, as a
    /// disk does that said they were safe when they were not; with none, what was noted after the last one: how much
    /// of the log is committed. The form of a segment is that of `raft::log::segment`.
    pub fn lose_last_entries(&self, n: usize, count: usize) {
        assert!(self.managers[n].node.is_none(), "that manager is up");
        let segments = std::fs::read_dir(self.dir(n).join("log")).unwrap().map(|entry| entry.unwrap().path());
        let path = segments.max().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let mut entries = Vec::new();
        let mut after = 16;
        let mut at = 16;
        loop {
            let body_len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let next = at + (24 + body_len).next_multiple_of(8);
            match bytes[at + 8] {
                0 => break,
                2 => {
                    entries.push(at);
                    after = next;
                }
                _ => {}
            }
            at = next;
        }
        entries.push(after);
        bytes[entries[entries.len() - 1 - count]..].fill(0);
        std::fs::write(&path, bytes).unwrap();
    }

    /// A manager that was removed joins anew with an empty directory; returns its new id.
    pub async fn join_again(&mut self, n: usize) -> u64 {
        std::fs::remove_dir_all(self.dir(n)).unwrap();
        let via = self.managers[self.alive()[0]].addr.to_string();
        let manager = &mut self.managers[n];
        let listener = rebind(manager.addr).await;
        manager.serving = Some(serve(listener, manager.config.slot.clone()));
        let node = RaftNode::join(manager.config.clone(), &via).await.unwrap();
        let raft_id = node.raft_id();
        manager.node = Some(node);
        raft_id
    }

    /// A second member on the directory of the first.
    pub async fn open_again(&self, n: usize) -> Result<RaftNode, RaftError> {
        RaftNode::start(RaftConfig { slot: RaftSlot::default(), ..self.managers[n].config.clone() }).await
    }

    pub async fn open_as_another_cluster(&self, n: usize) -> Result<RaftNode, RaftError> {
        let cluster_id = ClusterId::from_bytes([8; 16]);
        RaftNode::start(RaftConfig { cluster_id, ..self.managers[n].config.clone() }).await
    }

    pub async fn join_with_unreachable_address(&self) -> Result<RaftNode, RaftError> {
        let config = RaftConfig {
            dir: self.tmp.path().join("unreachable"),
            node_id: node_id(7),
            addr: "127.0.0.1:1".to_owned(),
            connector: Arc::new(Plain(node_id(7))),
            slot: RaftSlot::default(),
            ..self.managers[0].config.clone()
        };
        RaftNode::join(config, &self.managers[0].addr.to_string()).await
    }
}

/// Binds an address that a server has just been taken from.
async fn rebind(addr: SocketAddr) -> TcpListener {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => return listener,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{addr}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn serve(listener: TcpListener, slot: RaftSlot) -> Runtime {
    let identify = tonic::service::InterceptorLayer::new(|mut request: tonic::Request<()>| {
        let agent =
            request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let id = agent.split_once('=').and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        if let Some(id) = id {
            request.extensions_mut().insert(PeerIdentity(id, Role::Manager));
        }
        Ok(request)
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        Server::builder()
            .layer(identify)
            .add_service(server(slot))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    runtime
}
