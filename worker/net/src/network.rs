//! The handle on the node's network: an async face on one thread that holds the sockets.

mod overlays;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::mpsc,
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    error::NetError,
    finding::{Check, Finding},
    firewall,
    kernel::Kernel,
    listeners::listens,
    model::{BridgeNetwork, Cidr, Cidr6, Endpoint, HostPort, Mac, NetworkConfig, NodeNetwork, Protocol},
    netns,
    overlay::Overlay,
    peers::PeerQuestions,
    plan::{self, Mesh, Operation, plan},
    probe,
};

type Job = Box<dyn FnOnce(&mut Node) + Send>;

/// The node's network. Cheap to clone; all clones speak to the same thread, which performs requests one by one in the
/// order in which they were made. The thread ends with the last clone; what it made in the kernel stays.
///
/// Everything happens in the network namespace of the thread that called [`Network::new`].
#[derive(Debug, Clone)]
pub struct Network {
    jobs: mpsc::Sender<Job>,
}

/// What an endpoint got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the node's end of the veth pair.
    pub link: String,
    pub mac: Mac,
    pub took: Duration,
}

/// The host's network as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Networks that the host has routes to, but for default routes and our own.
    pub routes: BTreeSet<Cidr>,
    /// The same of IPv6.
    pub routes6: BTreeSet<Cidr6>,
    /// Its addresses, but those of the loopback, of links alone and of our own links.
    pub addresses: BTreeSet<IpAddr>,
    /// MTU of the link that has the address asked for; `None` if no link has.
    pub mtu: Option<u32>,
}

/// What a reconciliation did.
#[derive(Debug, Default)]
pub struct Report {
    /// Differences that were mended.
    pub repaired: Vec<Operation>,
    /// Differences that stay, and why.
    pub failed: Vec<(Operation, NetError)>,
    /// Published ports on which other processes of this node listen; these are left to them.
    pub in_use: BTreeSet<(Protocol, u16)>,
    /// The host's network as it was found, if there are to be overlays.
    pub facts: Option<Facts>,
}

impl Report {
    /// There was nothing of ours, and nothing was wanted yet but the rules that are always there.
    pub fn begins(&self) -> bool {
        let rules =
            |operation: &Operation| matches!(operation, Operation::BuildRules(shape) if shape.is_empty());
        self.repaired.iter().all(rules)
    }

    /// Nothing was different.
    pub fn clean(&self) -> bool {
        self.repaired.is_empty() && self.failed.is_empty()
    }
}

impl Network {
    /// Probes the kernel and starts the thread. Changes nothing yet: call [`Network::reconcile`] with what should be.
    ///
    /// # Errors
    /// `MissingFeature` names what the kernel lacks; `NotPermitted` or `Namespace` without privilege.
    pub fn new(config: NetworkConfig) -> Result<Self, NetError> {
        check_config(&config)?;
        probe::probe(&config)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        thread::Builder::new()
            .name("rswarm-net".into())
            .spawn(move || {
                let opened = Kernel::open(config);
                match opened {
                    Ok(kernel) => {
                        let mut node = Node {
                            kernel,
                            current: NodeNetwork::default(),
                            mesh: None,
                            facts: None,
                            obstacles: BTreeMap::new(),
                        };
                        let _ = ready.send(Ok(()));
                        for job in queue {
                            job(&mut node);
                        }
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(|error| NetError::kernel("start the network thread", error.into()))?;
        started.recv().map_err(|_| NetError::ThreadEnded)??;
        Ok(Self { jobs })
    }

    /// Asks other nodes' kernels whether the data path leads there: what came back is looked at later. `former` are the
    /// questions before.
    pub async fn ask_peers(&self, former: &PeerQuestions) -> Result<PeerQuestions, NetError> {
        let last = former.last();
        self.ask(move |node| {
            let Some(overlay) = node.current.overlay.clone() else { return Ok(PeerQuestions::default()) };
            let helper = node.kernel.helper()?;
            helper.map_or_else(|| Ok(PeerQuestions::default()), |helper| helper.ask(&overlay, last))
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Node) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |node| drop(reply.send(f(node))));
        self.jobs.send(job).map_err(|_| NetError::ThreadEnded)?;
        answer.await.map_err(|_| NetError::ThreadEnded)?
    }

    /// Makes the network's bridge, or mends it. Idempotent.
    pub async fn ensure_network(&self, network: &BridgeNetwork) -> Result<(), NetError> {
        let network = network.clone();
        self.ask(move |node| node.ensure_network(&network)).await
    }

    /// Removes a network and its bridge. Its endpoints must be detached. Returns whether it was known.
    pub async fn remove_network(&self, id: &str) -> Result<bool, NetError> {
        let id = id.to_owned();
        self.ask(move |node| node.remove_network(&id)).await
    }

    /// Connects a container and publishes its ports. Idempotent: what is right already is left alone.
    ///
    /// On an error nothing of a new endpoint stays.
    pub async fn attach(&self, endpoint: &Endpoint) -> Result<Attachment, NetError> {
        let endpoint = endpoint.clone();
        self.ask(move |node| node.attach(&endpoint)).await
    }

    /// Sets the published ports of an attached endpoint to exactly `ports`. Idempotent. Connections through a port
    /// that is withdrawn go on until the endpoint is detached.
    pub async fn publish(&self, endpoint: &str, ports: &[HostPort]) -> Result<(), NetError> {
        let (id, ports) = (endpoint.to_owned(), ports.to_vec());
        self.ask(move |node| node.publish(&id, ports)).await
    }

    /// Disconnects a container: ports, link, tracked connections. Returns whether anything was there. It works after
    /// the container and its namespace are gone, and for endpoints of an earlier daemon.
    pub async fn detach(&self, endpoint: &str) -> Result<bool, NetError> {
        let id = endpoint.to_owned();
        self.ask(move |node| node.detach(&id)).await
    }

    /// Makes the overlays as told, by what changed since they were told last: that is what it costs. Returns the
    /// published ports on which other processes of this node listen; these are left to them.
    ///
    /// The daemon that comes after another must tell all it holds by [`Network::reconcile`] before.
    ///
    /// # Errors
    /// When `overlay` makes no sense, or the first difference that could not be mended.
    pub async fn apply(&self, overlay: Overlay) -> Result<BTreeSet<(Protocol, u16)>, NetError> {
        self.ask(move |node| node.apply(overlay)).await
    }

    /// Makes the kernel as `desired`: reads back links, addresses, rules and elements, mends differences and removes
    /// what is ours and not desired. From here on `desired` is what the other calls build on.
    ///
    /// # Errors
    /// Only when `desired` makes no sense or the kernel cannot be read; a difference that cannot be mended is in the
    /// report.
    pub async fn reconcile(&self, desired: &NodeNetwork) -> Result<Report, NetError> {
        let desired = desired.clone();
        self.ask(move |node| node.reconcile(desired)).await
    }

    /// The differences between the kernel and what was asked of this handle, without mending them.
    pub async fn verify(&self) -> Result<Vec<Operation>, NetError> {
        self.ask(|node| node.differences(&node.current.clone())).await
    }

    /// The same differences in words, and published ports that are not ours to have.
    pub async fn check(&self) -> Result<Check, NetError> {
        self.ask(|node| {
            let operations = node.differences(&node.current.clone())?;
            let config = &node.kernel.config;
            let findings = operations.iter().filter_map(|one| Finding::of(config, &node.current, one));
            let explained = |finding: Finding| match node.obstacles.get(&finding.what) {
                Some(reason) => Finding { what: format!("{}: {reason}", finding.what), ..finding },
                None => finding,
            };
            let findings = findings.map(explained);
            Ok(Check { findings: findings.collect(), in_use: node.in_use() })
        })
        .await
    }

    /// Removes all that is ours: links, bridges, tables. Also what an earlier daemon with the same names left.
    pub async fn remove_all(&self) -> Result<(), NetError> {
        self.ask(|node| {
            node.current = NodeNetwork::default();
            node.mesh = None;
            node.kernel.remove_all()
        })
        .await
    }
}

/// What overlays must know of the host, whose encapsulated packets have `source`: for the calling thread's namespace.
///
/// # Errors
/// The kernel cannot be read.
pub fn facts(config: NetworkConfig, source: Ipv4Addr) -> Result<Facts, NetError> {
    Kernel::open(config)?.facts(source)
}

/// What overlays rest on and this kernel lacks, and what will not work for it, in words.
///
/// # Errors
/// `NotPermitted` or `Namespace` without privilege.
pub fn missing_for_overlays(config: &NetworkConfig) -> Result<Vec<String>, NetError> {
    probe::missing_for_overlays(config)
}

fn check_config(config: &NetworkConfig) -> Result<(), NetError> {
    let invalid = |reason: String| NetError::Invalid { what: "table", id: config.table.clone(), reason };
    let name = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if !name(&config.table) || config.table.len() > 64 {
        return Err(invalid("expected 1 to 64 letters, digits, `-` or `_`".into()));
    }
    if !name(&config.link_prefix) || config.link_prefix.len() > 3 {
        return Err(invalid(format!(
            "expected a link prefix of 1 to 3 letters, found `{}`",
            config.link_prefix
        )));
    }
    Ok(())
}

/// What the thread owns: the kernel's sockets, and what was asked for so far.
struct Node {
    kernel: Kernel,
    current: NodeNetwork,
    /// How the overlays are joined to the host, while there are any.
    mesh: Option<Mesh>,
    /// As found when all was last compared with the kernel.
    facts: Option<Facts>,
    /// Why differences stayed when they were last to be mended, by what they are.
    obstacles: BTreeMap<String, String>,
}

impl Node {
    fn ensure_network(&mut self, network: &BridgeNetwork) -> Result<(), NetError> {
        let mut next = self.current.clone();
        next.networks.retain(|other| other.id != network.id);
        next.networks.push(network.clone());
        next.validate()?;
        let old = self.current.network(&network.id).map(firewall::network_elements).unwrap_or_default();
        let new = firewall::network_elements(network);
        let found = self.kernel.link(&network.bridge)?;
        let mut operations = vec![Operation::EnableForwarding];
        operations.extend(network.ipv6.map(|_| Operation::EnableForwarding6));
        operations.extend(plan::plan_network(&self.kernel.config, network, found.as_ref()));
        operations.extend(old.difference(&new).cloned().map(Operation::RemoveElement));
        operations.extend(new.into_iter().map(Operation::AddElement));
        self.perform(&next, &operations)?;
        self.current = next;
        Ok(())
    }

    fn remove_network(&mut self, id: &str) -> Result<bool, NetError> {
        let Some(network) = self.current.network(id).cloned() else { return Ok(false) };
        if let Some(user) = self.current.endpoints.iter().find(|endpoint| endpoint.network == id) {
            let reason = format!("endpoint `{}` is attached: detach it first", user.id);
            return Err(NetError::Invalid { what: "network", id: id.into(), reason });
        }
        let mut next = self.current.clone();
        next.networks.retain(|other| other.id != id);
        let mut operations: Vec<_> =
            firewall::network_elements(&network).into_iter().map(Operation::RemoveElement).collect();
        operations.push(Operation::RemoveLink { link: network.bridge });
        self.perform(&next, &operations)?;
        self.current = next;
        Ok(true)
    }

    fn attach(&mut self, endpoint: &Endpoint) -> Result<Attachment, NetError> {
        let started = std::time::Instant::now();
        let mut next = self.current.clone();
        next.endpoints.retain(|other| other.id != endpoint.id);
        next.endpoints.push(endpoint.clone());
        next.validate()?;
        if next.local(endpoint).is_some() {
            self.attach_to_overlay(next, endpoint)?;
            let link = self.kernel.config.link_name(&endpoint.id);
            return Ok(Attachment { link, mac: endpoint.mac(), took: started.elapsed() });
        }
        let network = next.network(&endpoint.network).cloned().ok_or_else(|| NetError::UnknownNetwork {
            endpoint: endpoint.id.clone(),
            network: endpoint.network.clone(),
        })?;
        let config = self.kernel.config.clone();
        let name = config.link_name(&endpoint.id);
        let link = self.kernel.link(&name)?;
        let inside = if link.is_some() { self.kernel.inside(endpoint)? } else { None };
        let steps = plan::plan_endpoint(&config, &network, endpoint, link.as_ref(), inside.as_ref());
        let old = self.current.endpoint(&endpoint.id).cloned();
        refuse_ports_in_use(old.as_ref(), endpoint)?;
        let (link, mac) = (network.bridge.clone(), endpoint.mac());
        let told = endpoint.address6(&network);
        let told = told.map(|address| Operation::AddNeighbour { link, address, mac });
        let operations: Vec<_> = steps
            .before
            .into_iter()
            .chain(told)
            .chain(self.element_changes(old.as_ref(), endpoint, &next))
            .chain(steps.after)
            .chain(forget_early_datagrams(old.as_ref(), endpoint))
            .collect();
        if let Err(error) = self.perform(&next, &operations) {
            if old.is_none() {
                self.undo_attach(&network, endpoint);
            }
            return Err(error);
        }
        self.current = next;
        Ok(Attachment { link: name, mac: endpoint.mac(), took: started.elapsed() })
    }

    /// Takes back what a failed attach may have left; its own failures are only logged, as the cause is told already.
    fn undo_attach(&mut self, network: &BridgeNetwork, endpoint: &Endpoint) {
        let link = self.kernel.config.link_name(&endpoint.id);
        let wanted = firewall::endpoint_elements(&self.kernel.config, network, endpoint);
        let present = self.kernel.firewall().map(|(_, elements)| elements).unwrap_or_default();
        let mut operations = vec![Operation::RemoveLink { link }];
        operations.extend(forget_neighbour(network, endpoint));
        operations.extend(wanted.intersection(&present).cloned().map(Operation::RemoveElement));
        self.kernel.perform(&operations, |operation, result| {
            if let Err(error) = result {
                tracing::warn!(%operation, %error, "failed to undo an attach");
            }
            true
        });
    }

    fn publish(&mut self, id: &str, ports: Vec<HostPort>) -> Result<(), NetError> {
        let old = self.current.endpoint(id).cloned().ok_or_else(|| NetError::UnknownEndpoint(id.into()))?;
        let new = Endpoint { ports, ..old.clone() };
        let mut next = self.current.clone();
        next.endpoints.retain(|other| other.id != id);
        next.endpoints.push(new.clone());
        next.validate()?;
        refuse_ports_in_use(Some(&old), &new)?;
        if next.local(&new).is_some() {
            return self.attach_to_overlay(next, &new);
        }
        let operations: Vec<_> = self
            .element_changes(Some(&old), &new, &next)
            .chain(forget_early_datagrams(Some(&old), &new))
            .collect();
        self.perform(&next, &operations)?;
        self.current = next;
        Ok(())
    }

    fn detach(&mut self, id: &str) -> Result<bool, NetError> {
        if let Some(detached) = self.detach_from_overlay(id)? {
            return Ok(detached);
        }
        let config = self.kernel.config.clone();
        let name = config.link_name(id);
        let link = self.kernel.link(&name)?;
        let known = self.current.endpoint(id).cloned();
        let marked =
            link.as_ref().and_then(|link| link.alias.as_deref()).and_then(|a| config.endpoint_of_alias(a));
        let address = known.as_ref().map(|endpoint| endpoint.address).or(marked.map(|(_, address)| address));
        let network = known.as_ref().and_then(|endpoint| self.current.network(&endpoint.network));
        let mut next = self.current.clone();
        next.endpoints.retain(|other| other.id != id);
        let mut operations = Vec::new();
        if let Some(endpoint) = &known {
            let elements = self.elements_of(&self.current, endpoint);
            operations.extend(elements.into_iter().map(Operation::RemoveElement));
            operations.extend(network.and_then(|network| forget_neighbour(network, endpoint)));
        } else {
            // An earlier daemon's: what it published can be told by link and address.
            let (_, present) = self.kernel.firewall()?;
            let its = present.into_iter().filter(|element| element.belongs_to(&name, address));
            operations.extend(its.map(Operation::RemoveElement));
        }
        if link.is_some() {
            operations.push(Operation::RemoveLink { link: name });
        }
        let twin = known.as_ref().zip(network).and_then(|(endpoint, network)| endpoint.address6(network));
        let anything = known.is_some() || !operations.is_empty();
        let addresses = address.map(IpAddr::from).into_iter().chain(twin.map(IpAddr::from));
        operations.extend(addresses.map(|address| Operation::ForgetAddress { address }));
        self.perform(&next, &operations)?;
        self.current = next;
        Ok(anything)
    }

    fn in_use(&self) -> BTreeSet<(Protocol, u16)> {
        self.mesh.as_ref().map(|mesh| mesh.busy.clone()).unwrap_or_default()
    }

    fn differences(&mut self, desired: &NodeNetwork) -> Result<Vec<Operation>, NetError> {
        let observed = self.kernel.observe(desired)?;
        self.mesh = observed.mesh.clone();
        self.facts = observed.facts.clone();
        // The kernel takes the links of a container that has ended, and whoever attached it takes the rest: it is no
        // difference until then.
        let config = &self.kernel.config;
        let ended =
            desired.endpoints.iter().filter(|endpoint| !netns::of_process(endpoint.netns_pid).exists());
        let ended: BTreeSet<String> = ended.map(|endpoint| config.link_name(&endpoint.id)).collect();
        let mut operations = plan(config, desired, &observed);
        operations.retain(|operation| operation.port(config).is_none_or(|link| !ended.contains(&link)));
        Ok(operations)
    }

    fn reconcile(&mut self, desired: NodeNetwork) -> Result<Report, NetError> {
        desired.validate()?;
        let operations = self.differences(&desired)?;
        let mut report = Report { in_use: self.in_use(), facts: self.facts.clone(), ..Report::default() };
        self.kernel.perform(&operations, |operation, result| {
            match result {
                Ok(()) => report.repaired.push(operation.clone()),
                Err(error) => report.failed.push((operation.clone(), error)),
            }
            true
        });
        let config = &self.kernel.config;
        let obstacles = report.failed.iter().filter_map(|(operation, error)| {
            let what = Finding::of(config, &desired, operation)?.what;
            Some((what, std::error::Error::source(error).unwrap_or(error).to_string()))
        });
        self.obstacles = obstacles.collect();
        self.current = desired;
        Ok(report)
    }

    /// The elements in the host's own tables of an endpoint whose network is known in `node`.
    fn elements_of(&self, node: &NodeNetwork, endpoint: &Endpoint) -> BTreeSet<firewall::Element> {
        if let Some((network, config)) = node.network(&endpoint.network).zip(Some(&self.kernel.config)) {
            return firewall::endpoint_elements(config, network, endpoint);
        }
        let local = self.mesh.as_ref().zip(node.local(endpoint));
        local.map(|(mesh, local)| firewall::local_elements(mesh.uplink, &local)).unwrap_or_default()
    }

    fn element_changes(
        &self,
        old: Option<&Endpoint>,
        new: &Endpoint,
        next: &NodeNetwork,
    ) -> impl Iterator<Item = Operation> + use<> {
        let before = old.map(|old| self.elements_of(&self.current, old)).unwrap_or_default();
        let after = self.elements_of(next, new);
        let surplus: Vec<_> = before.difference(&after).cloned().collect();
        surplus.into_iter().map(Operation::RemoveElement).chain(after.into_iter().map(Operation::AddElement))
    }

    /// Performs `operations`, stopping at the first failure. The firewall changes in them are written for a firewall
    /// that is as we left it; should the kernel refuse them, they are worked out anew from what is really there.
    fn perform(&mut self, next: &NodeNetwork, operations: &[Operation]) -> Result<(), NetError> {
        let is_firewall = |operation: &Operation| {
            matches!(operation, Operation::AddElement(_) | Operation::RemoveElement(_))
        };
        let start = operations.iter().position(is_firewall).unwrap_or(operations.len());
        let end = operations.iter().rposition(is_firewall).map_or(operations.len(), |last| last + 1);
        self.perform_strictly(&operations[..start])?;
        if let Err(error) = self.perform_strictly(&operations[start..end]) {
            tracing::info!(%error, "the firewall is not as it was left: comparing it with what it should be");
            let repair = self.firewall_repair(next, &operations[start..end])?;
            self.perform_strictly(&repair)?;
        }
        self.perform_strictly(&operations[end..])
    }

    fn perform_strictly(&mut self, operations: &[Operation]) -> Result<(), NetError> {
        let mut outcome = Ok(());
        self.kernel.perform(operations, |_, result| {
            outcome = result;
            outcome.is_ok()
        });
        outcome
    }

    /// The same changes for the firewall as it is: rules that are missing are made, of the removals only those of
    /// elements that are there, and elements in the place of wanted ones make room. Nothing else is removed, as a
    /// fresh daemon does not know all endpoints before its first reconciliation.
    fn firewall_repair(
        &mut self,
        next: &NodeNetwork,
        changes: &[Operation],
    ) -> Result<Vec<Operation>, NetError> {
        let (shape, present) = self.kernel.firewall()?;
        let mut wanted = plan::elements(&self.kernel.config, next, self.mesh.as_ref());
        wanted.extend(changes.iter().filter_map(|change| match change {
            Operation::AddElement(element) => Some(element.clone()),
            _ => None,
        }));
        let unwanted = |element: &firewall::Element| {
            !wanted.contains(element)
                && (changes.contains(&Operation::RemoveElement(element.clone()))
                    || wanted.iter().any(|other| other.same_key(element)))
        };
        let mut operations = Vec::new();
        let present: BTreeSet<_> = present.into_iter().filter(|element| shape.keeps(element)).collect();
        if !shape.intact(&firewall::host::HOST) {
            operations.push(Operation::BuildRules(shape));
        }
        operations.extend(present.iter().filter(|e| unwanted(e)).cloned().map(Operation::RemoveElement));
        operations.extend(wanted.difference(&present).cloned().map(Operation::AddElement));
        Ok(operations)
    }
}

/// What the bridge was told of an endpoint, which its link does not take along.
fn forget_neighbour(network: &BridgeNetwork, endpoint: &Endpoint) -> Option<Operation> {
    let (link, address) = (network.bridge.clone(), endpoint.address6(network)?);
    Some(Operation::RemoveNeighbour { link, address })
}

/// Refuses ports on which another process of the node listens: it would be cut off without a word, as translation
/// comes before delivery. Ports that the endpoint had before are not looked at.
fn refuse_ports_in_use(old: Option<&Endpoint>, new: &Endpoint) -> Result<(), NetError> {
    let added = new.ports.iter().filter(|port| old.is_none_or(|old| !old.ports.contains(port)));
    for port in added {
        if listens(port.protocol, port.published, port.at.as_ref()) {
            return Err(NetError::PortInUse {
                protocol: port.protocol,
                port: port.published,
                endpoint: new.id.clone(),
            });
        }
    }
    Ok(())
}

/// Datagrams that came before the port was published have left an untranslated connection behind, which would go on
/// for as long as the sender keeps talking.
fn forget_early_datagrams(old: Option<&Endpoint>, new: &Endpoint) -> Vec<Operation> {
    let had = |port: &HostPort| old.is_some_and(|old| old.ports.contains(port));
    new.ports
        .iter()
        .filter(|port| port.protocol == Protocol::Udp && !had(port))
        .map(|port| Operation::ForgetPort { protocol: port.protocol, port: port.published })
        .collect()
}
