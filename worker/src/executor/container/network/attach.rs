//! What one container is connected to, from its start to its end.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use rswarm_net::{BridgeNetwork, Endpoint, NetError};
use rswarm_types::cluster::Subnet;
use rswarm_types::service::{Protocol, PublishMode};
use rswarm_types::task::{PortStatus, TaskAddress, TaskNetwork};
use rswarm_types::{NetworkDriver, NetworkId, Task, TaskId};

use super::{Attached, Encryption, State, TaskNetworks, explain};
use crate::executor::container::links::{
    Link, bind, endpoints, fresh_endpoints, gateway6, give_way_out, host_port, ipv6_can_be_had, links,
};
use crate::executor::container::overlay;
use crate::executor::container::ports::{self, NodePort};
use crate::executor::container::record::Record;
use crate::executor::{Failure, FailureKind};

impl TaskNetworks {
    /// Connects the container of `task`, whose first process is `pid`, and writes down in `record` what it got.
    ///
    /// # Errors
    /// `Unfit` when a port or an address is taken, naming the holder; then nothing stays attached.
    pub async fn attach(&self, task: &Task, pid: i32, record: &mut Record) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        // What an attempt before left, as of a daemon that ended between this and the start.
        self.detach(&mut state, task.id).await;
        self.prepare_overlays(&mut state, task).await?;
        let links = links(task);
        ipv6_can_be_had(&links)?;
        let in_node = task.networks.iter().any(|network| network.driver == NetworkDriver::Host);
        let has_host_ports = task.ports.iter().any(|port| port.mode == PublishMode::Host);
        if has_host_ports && links.is_empty() && !in_node {
            let text =
                "host-mode ports need a network with addresses or the host's own, and the task has neither";
            return Err(Failure { text: text.to_owned(), kind: FailureKind::Unfit });
        }
        record.ports = if in_node {
            // The program binds them itself, each under its own number.
            let host = task.ports.iter().filter(|port| port.mode == PublishMode::Host);
            host.map(|port| PortStatus {
                protocol: port.protocol,
                target: port.target,
                published: port.target,
                host_ip: None,
                interface: None,
            })
            .collect()
        } else {
            let taken = state.attached.values().flat_map(|attached| attached.ports.iter().copied()).collect();
            let mut chosen = ports::choose(&task.ports, &taken, is_free, random)
                .map_err(|error| Failure::new(FailureKind::Unfit, &error))?;
            bind(&mut chosen, &links, &state.map);
            chosen
        };
        record.networks = self.bridges(&links);
        let host_ports = if in_node { Vec::new() } else { record.ports.iter().map(host_port).collect() };
        record.endpoints = endpoints(task.id, pid, &links, &state.map, host_ports);
        let present = Attached::of(record, in_node);
        // Before the kernel has it: should this be given up half-way, the release must know of it.
        state.attached.insert(task.id, present);
        if let Err(error) = self.make_links(record).await {
            let failure = explain(&error, &state.attached);
            self.detach(&mut state, task.id).await;
            return Err(failure);
        }
        Ok(())
    }

    /// Makes this node know the overlays of `task` before it is connected to them.
    async fn prepare_overlays(&self, state: &mut State, task: &Task) -> Result<(), Failure> {
        if task.networks.iter().any(|network| network.driver == NetworkDriver::Overlay) {
            self.catch_up(state).await?;
            overlay::check(&state.map, task)?;
            if let Encryption::Without(obstacle) = &self.encryption {
                overlay::check_clear(&state.map, task, obstacle)?;
            }
        }
        Ok(())
    }

    /// Gives the running container of `task` the links that its networks call for, and takes away what no network calls
    /// for any more; those it keeps are not touched.
    ///
    /// # Errors
    /// As [`Self::attach`]; then nothing new stays attached.
    pub async fn connect(&self, task: &Task, pid: i32, record: &mut Record) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        self.prepare_overlays(&mut state, task).await?;
        let links = links(task);
        ipv6_can_be_had(&links)?;
        let gone = record.endpoints.extract_if(.., |endpoint| {
            !links.iter().any(|(network, _)| endpoint.network == network.network.to_string())
        });
        let gone: Vec<Endpoint> = gone.collect();
        let kept = record.endpoints.len();
        let fresh = fresh_endpoints(task.id, pid, &links, &record.endpoints);
        record.endpoints.extend(fresh);
        give_way_out(&mut record.endpoints, &links, &state.map);
        record.networks = self.bridges(&links);
        let Some(former) = state.attached.insert(task.id, Attached::of(record, false)) else {
            // It has ended meanwhile.
            state.attached.remove(&task.id);
            return Ok(());
        };
        let result = self.make_links(record).await;
        let unwanted = if result.is_ok() { &gone } else { &record.endpoints[kept..] };
        for endpoint in unwanted {
            self.detach_endpoint(&endpoint.id).await;
        }
        state.left.extend(former.networks.iter().cloned());
        result.map_err(|error| {
            let failure = explain(&error, &state.attached);
            state.attached.insert(task.id, former);
            failure
        })
    }

    async fn make_links(&self, record: &Record) -> Result<(), NetError> {
        for network in &record.networks {
            self.network.ensure_network(network).await?;
        }
        for endpoint in &record.endpoints {
            self.network.attach(endpoint).await?;
        }
        Ok(())
    }

    /// Takes over what an earlier daemon attached. [`Self::repair`] then mends what is missing.
    pub async fn adopt(&self, task: TaskId, pid: i32, record: &Record) {
        let mut present = Attached::of(record, record.endpoints.is_empty());
        for endpoint in &mut present.endpoints {
            endpoint.netns_pid = pid;
        }
        self.state.lock().await.attached.insert(task, present);
    }

    /// Disconnects a task's container, whether it still exists or not. What fails is left to the next repair.
    pub async fn release(&self, task: TaskId) {
        let mut state = self.state.lock().await;
        self.detach(&mut state, task).await;
    }

    async fn detach(&self, state: &mut State, task: TaskId) {
        let Some(gone) = state.attached.remove(&task) else { return };
        for endpoint in &gone.endpoints {
            self.detach_endpoint(&endpoint.id).await;
        }
        state.left.extend(gone.networks);
    }

    /// Removes the bridges that no container is on any more. Not at once: the kernel takes its time for that, and the next
    /// container may be about to come.
    pub(super) async fn remove_unused(&self, state: &mut State) {
        let left = std::mem::take(&mut state.left);
        let used = |network: &BridgeNetwork| {
            state.attached.values().flat_map(|attached| &attached.networks).any(|held| held.id == network.id)
        };
        for network in left.iter().filter(|network| !used(network)) {
            if let Err(error) = self.network.remove_network(&network.id).await {
                let error = rswarm_types::error::chain(&error);
                tracing::warn!(bridge = network.bridge, %error, "bridge stays until the next repair");
            }
        }
    }

    pub(super) async fn detach_endpoint(&self, endpoint: &str) {
        if let Err(error) = self.network.detach(endpoint).await {
            let error = rswarm_types::error::chain(&error);
            tracing::warn!(endpoint, %error, "endpoint stays until the next repair");
        }
    }

    fn bridges(&self, links: &[Link<'_>]) -> Vec<BridgeNetwork> {
        let bridges = links.iter().filter(|(network, _)| network.driver == NetworkDriver::Bridge);
        bridges.map(|(network, address)| self.bridge(network, *address)).collect()
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
            masquerade: network.bridge.masquerade,
            internal: network.internal,
            ipv6: gateway6(address),
            ipv6_only: address.ipv4().is_none(),
            mtu: network.mtu,
            separate: !network.bridge.icc,
        }
    }
}

/// Fits the kernel's 15 bytes: the prefix and the end of the network's id, which is as random as its beginning.
fn bridge_name(prefix: &str, network: NetworkId) -> String {
    let id = network.to_string();
    format!("{prefix}{}", &id[id.len() - 10..])
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
