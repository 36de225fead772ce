//! The networks of the containers on this node: what each has, and keeping the kernel in line with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use rswarm_net::{BridgeNetwork, Endpoint, HostPort, NetError, Network, NetworkConfig, NodeNetwork};
use rswarm_types::cluster::Subnet;
use rswarm_types::service::{Protocol, PublishMode};
use rswarm_types::task::{PortStatus, TaskAddress, TaskNetwork};
use rswarm_types::{NetworkDriver, NetworkId, Task, TaskId};

use super::ports::{self, NodePort};
use super::record::Record;
use crate::executor::{Failure, FailureKind};

/// The containers' networks. What they should be is held under one lock, across each change of the kernel, so that a
/// repair never takes a half-made endpoint for one too many.
pub struct TaskNetworks {
    network: Network,
    bridge_prefix: String,
    attached: tokio::sync::Mutex<BTreeMap<TaskId, Attached>>,
}

/// What one container has.
struct Attached {
    name: String,
    networks: Vec<BridgeNetwork>,
    endpoints: Vec<Endpoint>,
    ports: BTreeSet<NodePort>,
}

impl TaskNetworks {
    /// Probes the kernel; changes nothing yet.
    ///
    /// # Errors
    /// Those of [`Network::new`].
    pub fn open(config: NetworkConfig, bridge_prefix: String) -> Result<Self, NetError> {
        Ok(Self { network: Network::new(config)?, bridge_prefix, attached: tokio::sync::Mutex::default() })
    }

    /// Connects the container of `task`, whose first process is `pid`, and writes down in `record` what it got.
    ///
    /// # Errors
    /// `Unfit` when a port or an address is taken, naming the holder; then nothing stays attached.
    pub async fn attach(&self, task: &Task, pid: i32, record: &mut Record) -> Result<(), Failure> {
        let mut attached = self.attached.lock().await;
        // What an attempt before left, as of a daemon that ended between this and the start.
        self.detach(&mut attached, task.id).await;
        let bridges: Vec<(&TaskNetwork, TaskAddress)> = task
            .networks
            .iter()
            .filter(|network| network.driver == NetworkDriver::Bridge)
            .filter_map(|network| Some((network, network.address?)))
            .collect();
        let in_node = task.networks.iter().any(|network| network.driver == NetworkDriver::Host);
        let has_host_ports = task.ports.iter().any(|port| port.mode == PublishMode::Host);
        if has_host_ports && bridges.is_empty() && !in_node {
            let text =
                "host-mode ports need a bridge or the host's network, and the task has neither".to_owned();
            return Err(Failure { text, kind: FailureKind::Unfit });
        }
        record.ports = if in_node {
            // The program binds them itself, each under its own number.
            let host = task.ports.iter().filter(|port| port.mode == PublishMode::Host);
            host.map(|port| PortStatus {
                protocol: port.protocol,
                target: port.target,
                published: port.target,
            })
            .collect()
        } else {
            let taken = attached.values().flat_map(|attached| attached.ports.iter().copied()).collect();
            ports::choose(&task.ports, &taken, is_free, random)
                .map_err(|error| Failure::new(FailureKind::Unfit, &error))?
        };
        record.networks = bridges.iter().map(|(network, address)| self.bridge(network, *address)).collect();
        let host_ports = if in_node { Vec::new() } else { record.ports.iter().map(host_port).collect() };
        record.endpoints = endpoints(task.id, pid, &bridges, host_ports);
        let present = Attached::of(record, in_node);
        // Before the kernel has it: should this be given up half-way, the release must know of it.
        attached.insert(task.id, present);
        for (network, endpoint) in record.networks.iter().zip(&record.endpoints) {
            let mut result = self.network.ensure_network(network).await;
            if result.is_ok() {
                result = self.network.attach(endpoint).await.map(drop);
            }
            if let Err(error) = result {
                let failure = explain(&error, &attached);
                self.detach(&mut attached, task.id).await;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Takes over what an earlier daemon attached. [`Self::repair`] then mends what is missing.
    pub async fn adopt(&self, task: TaskId, pid: i32, record: &Record) {
        let mut present = Attached::of(record, record.endpoints.is_empty());
        for endpoint in &mut present.endpoints {
            endpoint.netns_pid = pid;
        }
        self.attached.lock().await.insert(task, present);
    }

    /// Disconnects a task's container, whether it still exists or not. What fails is left to the next repair.
    pub async fn release(&self, task: TaskId) {
        let mut attached = self.attached.lock().await;
        self.detach(&mut attached, task).await;
    }

    async fn detach(&self, attached: &mut BTreeMap<TaskId, Attached>, task: TaskId) {
        let Some(gone) = attached.remove(&task) else { return };
        for endpoint in &gone.endpoints {
            if let Err(error) = self.network.detach(&endpoint.id).await {
                let error = crate::executor::chain(&error);
                tracing::warn!(endpoint = %endpoint.id, %error, "endpoint stays until the next repair");
            }
        }
    }

    /// Makes the kernel as it should be, and says what was different.
    pub async fn repair(&self) -> Result<(), Failure> {
        let attached = self.attached.lock().await;
        let desired = desired(&attached);
        let report = self.network.reconcile(&desired).await.map_err(|error| explain(&error, &attached))?;
        if !report.repaired.is_empty() {
            tracing::info!(operations = ?report.repaired, "the node's network differed and was mended");
        }
        for (operation, error) in &report.failed {
            let error = crate::executor::chain(error);
            tracing::warn!(?operation, %error, "a difference in the node's network stays");
        }
        Ok(())
    }

    /// Removes all that is ours from the kernel.
    pub async fn remove_all(&self) -> Result<(), Failure> {
        let mut attached = self.attached.lock().await;
        attached.clear();
        self.network.remove_all().await.map_err(|error| Failure::new(FailureKind::Final, &error))
    }

    fn bridge(&self, network: &TaskNetwork, address: TaskAddress) -> BridgeNetwork {
        let subnet =
            Subnet::new(address.gateway, address.prefix_len).map_or(address.gateway, |subnet| subnet.address);
        BridgeNetwork {
            id: network.network.to_string(),
            bridge: bridge_name(&self.bridge_prefix, network.network),
            gateway: address.gateway,
            prefix_len: address.prefix_len,
            subnet,
            masquerade: true,
            internal: false,
        }
    }
}

impl Attached {
    fn of(record: &Record, in_node: bool) -> Self {
        // In the node's own namespace the program holds its ports like any other.
        let ports = if in_node { &[][..] } else { &record.ports };
        Self {
            name: record.name.clone(),
            networks: record.networks.clone(),
            endpoints: record.endpoints.clone(),
            ports: ports.iter().map(|port| (port.protocol, port.published)).collect(),
        }
    }
}

/// Fits the kernel's 15 bytes: the prefix and the end of the network's id, which is as random as its beginning.
fn bridge_name(prefix: &str, network: NetworkId) -> String {
    let id = network.to_string();
    format!("{prefix}{}", &id[id.len() - 10..])
}

fn desired(attached: &BTreeMap<TaskId, Attached>) -> NodeNetwork {
    let mut desired = NodeNetwork::default();
    for present in attached.values() {
        for network in &present.networks {
            if desired.network(&network.id).is_none() {
                desired.networks.push(network.clone());
            }
        }
        desired.endpoints.extend(present.endpoints.iter().cloned());
    }
    desired
}

/// One endpoint for each bridge, `eth0` on. Ports lead to the first.
fn endpoints(
    task: TaskId,
    pid: i32,
    bridges: &[(&TaskNetwork, TaskAddress)],
    mut ports: Vec<HostPort>,
) -> Vec<Endpoint> {
    let endpoint = |(n, (network, address)): (usize, &(&TaskNetwork, TaskAddress))| Endpoint {
        id: if n == 0 { task.to_string() } else { format!("{task}.{n}") },
        network: network.network.to_string(),
        netns_pid: pid,
        address: address.address,
        prefix_len: address.prefix_len,
        gateway: address.gateway,
        default_route: n == 0,
        interface_name: format!("eth{n}"),
        ports: std::mem::take(&mut ports),
    };
    bridges.iter().enumerate().map(endpoint).collect()
}

fn host_port(port: &PortStatus) -> HostPort {
    HostPort { protocol: protocol(port.protocol), published: port.published, target: port.target }
}

fn protocol(protocol: Protocol) -> rswarm_net::Protocol {
    match protocol {
        Protocol::Tcp => rswarm_net::Protocol::Tcp,
        Protocol::Udp => rswarm_net::Protocol::Udp,
        Protocol::Sctp => rswarm_net::Protocol::Sctp,
    }
}

/// A network error in the words of tasks; what somebody else holds makes the task unfit for this node.
fn explain(error: &NetError, attached: &BTreeMap<TaskId, Attached>) -> Failure {
    let name = |endpoint: &str| {
        let id = endpoint.split('.').next().and_then(|id| id.parse::<TaskId>().ok());
        match id.and_then(|id| Some((id, attached.get(&id)?))) {
            Some((id, holder)) => format!("task `{}` ({})", holder.name, id.short()),
            None => format!("`{endpoint}`"),
        }
    };
    let text = match error {
        NetError::PortTaken { protocol, port, holder, .. } => {
            format!("{protocol} port {port} is published by {} on this node", name(holder))
        }
        NetError::PortInUse { protocol, port, .. } => {
            format!("{protocol} port {port} is in use by another process on this node")
        }
        NetError::AddressTaken { address, holder, .. } => {
            format!("address {address} belongs to {} on this node", name(holder))
        }
        other => return Failure::unless_passing(FailureKind::Final, other),
    };
    Failure { text, kind: FailureKind::Unfit }
}

/// Whether nobody on this node listens on a port. SCTP is not asked: few kernels have it loaded.
fn is_free((protocol, port): NodePort) -> bool {
    match protocol {
        Protocol::Tcp => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
        Protocol::Udp => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
        Protocol::Sctp => true,
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness ports are given in order.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}
