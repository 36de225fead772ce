//! The networks of the containers on this node: what each has, and keeping the kernel in line with it.

mod attach;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rswarm_api::v1;
use rswarm_net::{
    BridgeNetwork, Check, Endpoint, Facts, Finding, NetError, Network, NodeNetwork, Overlay, Part,
    PeerAnswers, PeerQuestions,
};
use rswarm_resolver::{MapReader, MapWriter};
use rswarm_types::cluster::Subnet;
use rswarm_types::netmap::NetworkMap;
use rswarm_types::node::{NodeNetworkFacts, TunnelKeys};
use rswarm_types::service::Protocol;
use rswarm_types::{NodeId, TaskId, Timestamp, Version};

use super::keys::Keys;
use super::overlay::{self, Guarded};
use super::ports::NodePort;
use super::record::Record;
use super::resolver::Resolver;
use super::{ContainerExecutorConfig, ContainerExecutorError, blocking};
use crate::executor::{Failure, FailureKind};

/// Differences that are told at most, of which each takes a hundred bytes.
const DIFFERENCES_MAX: usize = 10_000;

/// The containers' networks. What they should be is held under one lock, across each change of the kernel, so that a
/// repair never takes a half-made endpoint for one too many.
pub struct TaskNetworks {
    network: Network,
    bridge_prefix: String,
    node: NodeId,
    guarded: Guarded,
    run_root: PathBuf,
    resolver: Arc<Resolver>,
    encryption: Encryption,
    /// The last map a manager sent.
    announced: Mutex<Arc<NetworkMap>>,
    state: tokio::sync::Mutex<State>,
    /// Differences that were mended since this daemon started.
    mended: AtomicU64,
    /// Whether this daemon has looked at the kernel before.
    looked: AtomicBool,
    seen: Mutex<Seen>,
    peers: tokio::sync::Mutex<Peers>,
}

/// What of the node's network is its own affair or its surroundings'.
#[derive(Default)]
struct Seen {
    in_use: BTreeSet<NodePort>,
    /// `None` until the host was looked at.
    host: Option<Facts>,
    silent: BTreeSet<u16>,
}

/// The other nodes as the data path shows them.
#[derive(Default)]
struct Peers {
    asked: PeerQuestions,
    /// By number: how many questions in a row were not answered.
    unanswered: BTreeMap<u16, u32>,
}

/// Whether this node takes part in encrypted networks.
pub enum Encryption {
    With(Keys),
    /// With the reason.
    Without(String),
}

impl Encryption {
    /// # Errors
    /// The keys cannot be read or written.
    pub fn open(path: PathBuf, config: &ContainerExecutorConfig) -> Result<Self, ContainerExecutorError> {
        if let Some(obstacle) = rswarm_net::wireguard::obstacle(&config.network) {
            return Ok(Self::Without(obstacle));
        }
        match Keys::open(path.clone(), config.key_period, Timestamp::now()) {
            Ok(keys) => Ok(Self::With(keys)),
            Err(source) => Err(ContainerExecutorError::Keys { path, source }),
        }
    }

    fn keys(&self) -> Option<&Keys> {
        match self {
            Self::With(keys) => Some(keys),
            Self::Without(_) => None,
        }
    }
}

/// What the kernel was made as.
#[derive(Default)]
struct State {
    attached: BTreeMap<TaskId, Attached>,
    map: Arc<NetworkMap>,
    /// The file that says the same, for the resolver and the next daemon.
    file: Option<MapWriter>,
    /// Bridges that a container has left.
    left: Vec<BridgeNetwork>,
}

/// What one container has.
struct Attached {
    name: String,
    networks: Vec<BridgeNetwork>,
    endpoints: Vec<Endpoint>,
    ports: BTreeSet<NodePort>,
    /// [`Record::name_server`].
    name_server: Option<IpAddr>,
}

impl TaskNetworks {
    /// Probes the kernel; changes nothing yet.
    ///
    /// # Errors
    /// Those of [`Network::new`].
    pub fn open(
        config: &ContainerExecutorConfig,
        node: NodeId,
        resolver: Resolver,
        encryption: Encryption,
    ) -> Result<Self, NetError> {
        let (announced, state) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self {
            network: Network::new(config.network.clone())?,
            bridge_prefix: config.bridge_prefix.clone(),
            node,
            guarded: config.guarded.clone(),
            run_root: config.run_root.clone(),
            resolver: Arc::new(resolver),
            encryption,
            announced,
            state,
            mended: AtomicU64::new(0),
            looked: AtomicBool::new(false),
            seen: Mutex::default(),
            peers: tokio::sync::Mutex::default(),
        })
    }

    /// The map that an earlier daemon worked from, which counts until a manager sends another.
    pub async fn recover(&self) -> NetworkMap {
        let mut reader = MapReader::new(&self.run_root);
        if let Err(error) = reader.refresh() {
            // The first message of a manager mends it.
            tracing::warn!(error = %rswarm_types::error::chain(&error), "the map of the network is damaged");
        }
        let known = Arc::new(reader.into_map());
        self.state.lock().await.map = known.clone();
        self.announce(known.clone());
        NetworkMap::clone(&known)
    }

    /// Notes what a manager sent. [`Self::follow`] makes it so, and so does whatever needs it first.
    pub fn announce(&self, map: Arc<NetworkMap>) {
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = map;
    }

    /// Makes the kernel as the last map says, and then writes the map down for the resolver and the next daemon.
    pub async fn follow(&self) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await
    }

    async fn catch_up(&self, state: &mut State) -> Result<(), Failure> {
        let announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if Arc::ptr_eq(&announced, &state.map) {
            return Ok(());
        }
        let former = std::mem::replace(&mut state.map, announced);
        self.leave_lost_networks(state, &former).await;
        if let Err(failure) = self.set_overlay(state).await {
            // Whoever asks next tries again.
            state.map = former;
            return Err(failure);
        }
        let written = match &mut state.file {
            Some(file) => file.change(&state.map.since(&former), &state.map),
            None => MapWriter::create(&self.run_root, &state.map).map(|file| state.file = Some(file)),
        };
        written.map_err(|error| Failure::new(FailureKind::Temporary, &error))?;
        self.resolve(state)
    }

    /// Disconnects containers from overlays that are no longer this node's: a task that was disconnected is told of only
    /// after this.
    async fn leave_lost_networks(&self, state: &mut State, former: &NetworkMap) {
        let gone = former.networks.keys().filter(|id| !state.map.networks.contains_key(*id));
        let gone: BTreeSet<String> = gone.map(ToString::to_string).collect();
        let mut lost = Vec::new();
        for attached in state.attached.values_mut() {
            lost.extend(attached.endpoints.extract_if(.., |endpoint| gone.contains(&endpoint.network)));
        }
        for endpoint in lost {
            self.detach_endpoint(&endpoint.id).await;
        }
    }

    /// Sees to it that names resolve on a node that takes part in overlays.
    fn resolve(&self, state: &State) -> Result<(), Failure> {
        if state.map.networks.is_empty() { Ok(()) } else { self.resolver.ensure() }
    }

    fn overlay(&self, map: &NetworkMap) -> Option<Overlay> {
        overlay::of(map, self.node, &self.guarded, |port| Some(self.encryption.keys()?.end(port)))
    }

    /// The node's public keys, as others are to know them.
    pub fn tunnel_keys(&self) -> Option<TunnelKeys> {
        self.encryption.keys().map(Keys::told)
    }

    /// The index at which every node knows this one's next key, as long as that is not in use.
    pub fn awaits_settled(&self) -> Option<Version> {
        let announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.encryption.keys()?.awaits(&announced, self.node)
    }

    /// Every node has arrived at `index`: if that is what the next key waits for, it is used from now on.
    pub async fn settled(&self, index: Version) -> Result<bool, Failure> {
        let Some(keys) = self.encryption.keys() else { return Ok(false) };
        let state = self.state.lock().await;
        let changed = keys.settled(index, Timestamp::now());
        if !changed.map_err(|error| Failure::new(FailureKind::Temporary, &error))? {
            return Ok(false);
        }
        tracing::info!("this node goes over to its next key for encrypted networks");
        self.set_overlay(&state).await.map(|()| true)
    }

    /// Tells the kernel what follows from the map and the containers here.
    async fn set_overlay(&self, state: &State) -> Result<(), Failure> {
        let Some(overlay) = self.overlay(&state.map) else {
            return self.make_so(state).await;
        };
        let in_use = self.network.apply(overlay).await.map_err(|error| explain(&error, &state.attached))?;
        self.note_in_use(&in_use);
        Ok(())
    }

    /// Makes the kernel as it should be, and says what was different.
    pub async fn repair(&self) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        self.remove_unused(&mut state).await;
        let encrypted = state.map.networks.values().any(|network| network.encrypted);
        if let Some(keys) = self.encryption.keys().filter(|_| encrypted) {
            let aged = keys.age(Timestamp::now());
            aged.map_err(|error| Failure::new(FailureKind::Temporary, &error))?;
        }
        self.make_so(&state).await?;
        self.resolve(&state)?;
        drop(state);
        self.ask_around().await;
        self.mend_resolver().await
    }

    /// Looks at who of the other nodes has answered since the last time, and asks again.
    async fn ask_around(&self) {
        let mut peers = self.peers.lock().await;
        let answers = peers.asked.answers();
        peers.note(&answers);
        match self.network.ask_peers(&peers.asked).await {
            Ok(asked) => peers.asked = asked,
            Err(error) => {
                let error = rswarm_types::error::chain(&error);
                tracing::warn!(%error, "other nodes cannot be asked by the data path");
            }
        }
        let silent: BTreeSet<u16> = peers.silent().collect();
        let mut seen = self.seen();
        if silent != seen.silent {
            tracing::info!(nodes = ?silent, "nodes that do not answer by the data path");
        }
        seen.silent = silent;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_in_use(&self, in_use: &BTreeSet<(rswarm_net::Protocol, u16)>) {
        let mut seen = self.seen();
        let known = &mut seen.in_use;
        let in_use: BTreeSet<NodePort> = in_use.iter().map(|(of, port)| (protocol_of(*of), *port)).collect();
        for (protocol, port) in in_use.difference(known) {
            tracing::warn!(%protocol, port, "published port is in use by another process on this node");
        }
        *known = in_use;
    }

    /// Brings facts up to date, as of when the node was last looked at.
    pub fn update_facts(&self, facts: &mut NodeNetworkFacts) {
        let map = self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = self.seen();
        facts.ports_in_use.clone_from(&seen.in_use);
        let silent = map.nodes.iter().filter(|(_, node)| seen.silent.contains(&node.number));
        facts.silent_peers = silent.map(|(id, _)| *id).collect();
        if let Some(host) = &seen.host {
            take_up(facts, host);
        }
    }

    /// What differs from what a manager told last, without mending it. Under the lock, so that nothing is half made.
    pub async fn check(&self) -> v1::NetworkCheck {
        let mended = self.mended.load(Ordering::Relaxed);
        let mut state = self.state.lock().await;
        let found = match self.catch_up(&mut state).await {
            Ok(()) => self.network.check().await.map_err(|error| explain(&error, &state.attached)),
            Err(failure) => Err(failure),
        };
        let (found, error) = match found {
            Ok(found) => (found, String::new()),
            Err(failure) => (Check::default(), failure.text),
        };
        let keyless = overlay::without_key(&state.map, self.node).into_iter().map(|(network, node)| {
            v1::NetworkDifference {
                part: v1::NetworkPart::Forwarding.into(),
                missing: true,
                what: format!("key of node `{node}`, without which it is sent nothing"),
                network: network.to_string(),
            }
        });
        let keyless: Vec<_> = keyless.collect();
        drop(state);
        let fault = self.resolver_fault().await.unwrap_or_else(|failure| Some(failure.text));
        let nameless = fault.map(|fault| v1::NetworkDifference {
            part: v1::NetworkPart::Name.into(),
            missing: true,
            what: format!("answers by name: {fault}"),
            network: String::new(),
        });
        v1::NetworkCheck {
            differences: found
                .findings
                .into_iter()
                .map(difference)
                .chain(keyless)
                .chain(nameless)
                .take(DIFFERENCES_MAX)
                .collect(),
            error,
            mended,
            ports_in_use: found.in_use.iter().map(|(of, port)| (&(protocol_of(*of), *port)).into()).collect(),
        }
    }

    async fn make_so(&self, state: &State) -> Result<(), Failure> {
        let overlay = self.overlay(&state.map).map(Arc::new);
        let desired = NodeNetwork { overlay, ..desired(&state.attached) };
        let report =
            self.network.reconcile(&desired).await.map_err(|error| explain(&error, &state.attached))?;
        // A node that never had a network before has nothing to mend.
        let begins = !self.looked.swap(true, Ordering::Relaxed) && report.begins();
        self.note_in_use(&report.in_use);
        if report.facts.is_some() {
            self.seen().host = report.facts;
        }
        if !report.repaired.is_empty() && !begins {
            self.mended.fetch_add(report.repaired.len() as u64, Ordering::Relaxed);
            tracing::info!(operations = ?report.repaired, "the node's network differed and was mended");
        }
        for (operation, error) in &report.failed {
            let error = rswarm_types::error::chain(error);
            tracing::warn!(?operation, %error, "a difference in the node's network stays");
        }
        Ok(())
    }

    /// Removes all that is ours from the kernel.
    pub async fn remove_all(&self) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        *state = State::default();
        self.announce(state.map.clone());
        self.resolver.end().await;
        self.network.remove_all().await.map_err(|error| Failure::new(FailureKind::Final, &error))?;
        let forgotten = self.encryption.keys().map_or(Ok(()), Keys::remove);
        forgotten.map_err(|error| Failure::new(FailureKind::Final, &error))?;
        match std::fs::remove_file(self.run_root.join(rswarm_resolver::MAP_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::new(FailureKind::Final, &error))
            }
            _ => Ok(()),
        }
    }
}

/// Takes what was found of the host into what the node tells of itself.
pub fn take_up(facts: &mut NodeNetworkFacts, host: &Facts) {
    facts.mtu = host.mtu.unwrap_or(facts.mtu);
    let routes = host.routes.iter().filter_map(|to| Subnet::new(to.address, to.prefix_len));
    facts.routes = routes.take(NodeNetworkFacts::ROUTES_MAX).collect();
    facts.addresses = host.addresses.iter().take(NodeNetworkFacts::ADDRESSES_MAX).copied().collect();
    let routes = host.routes6.iter().filter_map(|to| Subnet::new(to.address, to.prefix_len));
    facts.routes6 = routes.take(NodeNetworkFacts::ROUTES_MAX).collect();
}

impl Peers {
    /// Lost packets and a node that starts anew are no news yet.
    const UNANSWERED: u32 = 3;

    fn note(&mut self, answers: &PeerAnswers) {
        for number in &answers.silent {
            *self.unanswered.entry(*number).or_default() += 1;
        }
        self.unanswered.retain(|number, _| !answers.answered.contains(number));
    }

    fn silent(&self) -> impl Iterator<Item = u16> {
        let long = self.unanswered.iter().filter(|(_, times)| **times >= Self::UNANSWERED);
        long.map(|(number, _)| *number)
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
            name_server: record.name_server,
            ports: ports.iter().map(|port| (port.protocol, port.published)).collect(),
        }
    }
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

pub fn protocol(protocol: Protocol) -> rswarm_net::Protocol {
    match protocol {
        Protocol::Tcp => rswarm_net::Protocol::Tcp,
        Protocol::Udp => rswarm_net::Protocol::Udp,
        Protocol::Sctp => rswarm_net::Protocol::Sctp,
    }
}

fn difference(finding: Finding) -> v1::NetworkDifference {
    let part = match finding.part {
        Part::Link => v1::NetworkPart::Link,
        Part::Forwarding => v1::NetworkPart::Forwarding,
        Part::Neighbour => v1::NetworkPart::Neighbour,
        Part::Route => v1::NetworkPart::Route,
        Part::Rule => v1::NetworkPart::Rule,
        Part::Map => v1::NetworkPart::Map,
    };
    v1::NetworkDifference {
        part: part.into(),
        missing: finding.missing,
        what: finding.what,
        network: finding.network.unwrap_or_default(),
    }
}

fn protocol_of(protocol: rswarm_net::Protocol) -> Protocol {
    match protocol {
        rswarm_net::Protocol::Tcp => Protocol::Tcp,
        rswarm_net::Protocol::Udp => Protocol::Udp,
        rswarm_net::Protocol::Sctp => Protocol::Sctp,
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
