//! Who is called what, and who may ask for whom: an index of a [`NetworkMap`], made anew for each map. Pure.
//!
//! Source: swarm-parity 5.3; what differs is in `docs/discovery.md`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::id::{ID_TEXT_LEN, from_base36};
use rswarm_types::netmap::{EndpointState, Joined, MapEndpoint, MapService, MapSubnets, NetworkMap};
use rswarm_types::network::Ipam6;
use rswarm_types::service::{EndpointMode, PortConfig, Protocol};
use rswarm_types::subnet::Address;
use rswarm_types::{NetworkId, NodeId, TaskId};

use crate::host::PORT;
use crate::sockets::Audience;

/// The names of all networks of this node. Names are kept and asked for in lower case, without the last dot.
#[derive(Debug, Default)]
pub struct Names {
    /// Without the ingress network, which has no names.
    networks: Vec<Network>,
    tasks: Vec<Task>,
    owners: HashMap<Ipv4Addr, Owner>,
    /// Where tasks on bridges ask.
    bridges: Vec<Audience>,
    /// Of all networks that the node is on, ingress included.
    subnets: Vec<(Subnet, Option<Ipam6>)>,
    /// Of all networks of the cluster.
    clusters: Vec<MapSubnets>,
    /// Those of internal networks: who asks from there and is no task is as enclosed as the tasks are.
    internal: Vec<Subnet>,
}

#[derive(Debug)]
struct Network {
    name: String,
    subnet: Subnet,
    ipv6: Option<Ipam6>,
    services: Vec<Service>,
    /// Places in `services` by name and alias. An alias may be that of several.
    names: HashMap<String, Vec<usize>>,
    /// In the order of their ids, each with its places in `services` and `Service::backends`.
    tasks: Vec<(TaskId, usize, usize)>,
    /// Places in `tasks`, by the hostname that the user chose, and the names of a task that was connected.
    hostnames: HashMap<String, Vec<usize>>,
}

/// A service as one network sees it.
#[derive(Debug)]
struct Service {
    name: String,
    vip: Option<Ipv4Addr>,
    ports: Vec<PortConfig>,
    backends: Vec<Backend>,
}

#[derive(Debug)]
struct Backend {
    task: TaskId,
    slot: u64,
    node: NodeId,
    address: Ipv4Addr,
    ready: bool,
}

#[derive(Debug)]
struct Task {
    /// Its networks, with the place in `Network::services` and `Service::backends`.
    places: Vec<(usize, usize, usize)>,
    servers: Servers,
    enclosed: bool,
}

/// Name servers of a task's own; those of the node if there are none.
pub type Servers = Arc<[SocketAddr]>;

#[derive(Debug, Clone, Copy)]
enum Owner {
    /// A place in `Names::tasks`.
    Task(usize),
    /// The virtual address of a service: network, and place in `Network::services`.
    Service(usize, usize),
}

/// One backend of a service, for SRV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The task's full name.
    pub name: String,
    pub port: u16,
    pub found: Found,
}

/// An address of each family that its network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub address: Option<Ipv4Addr>,
    pub twin: Option<Ipv6Addr>,
}

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reverse {
    /// Not of the cluster's networks.
    Foreign,
    /// Of the cluster's networks, and of nobody that the asking task may know.
    Nobody,
    Name(String),
}

impl Names {
    pub fn new(map: &NetworkMap) -> Self {
        let mut names = Self {
            bridges: map.bridges.values().map(Audience::of).collect(),
            subnets: map
                .networks
                .values()
                .map(|network| (network.subnet, network.ipv6))
                .chain(map.bridges.values().map(|bridge| (bridge.subnet, bridge.ipv6)))
                .collect(),
            clusters: map.subnets.values().copied().collect(),
            internal: map
                .networks
                .values()
                .filter(|one| one.internal)
                .map(|one| one.subnet)
                .chain(map.bridges.values().filter(|one| one.internal).map(|one| one.subnet))
                .collect(),
            owners: HashMap::with_capacity(map.endpoints.len() + map.services.len()),
            tasks: Vec::with_capacity(map.endpoints.len()),
            ..Self::default()
        };
        let mut places = HashMap::new();
        let overlays = map.networks.iter().filter(|(_, network)| !network.ingress);
        let overlays = overlays.map(|(id, network)| (id, &network.name, network.subnet, network.ipv6));
        let bridges = map.bridges.iter().map(|(id, bridge)| (id, &bridge.name, bridge.subnet, bridge.ipv6));
        for (id, name, subnet, ipv6) in overlays.chain(bridges) {
            places.insert(*id, names.networks.len());
            names.networks.push(Network {
                name: name.to_ascii_lowercase(),
                subnet,
                ipv6,
                services: Vec::new(),
                names: HashMap::new(),
                tasks: Vec::new(),
                hostnames: HashMap::new(),
            });
        }
        let mut services = HashMap::with_capacity(map.services.len());
        for (id, service) in &map.services {
            services.insert(*id, names.add_service(service, &places));
        }
        for (id, endpoint) in &map.endpoints {
            let task = names.tasks.len();
            let members = services.get(&endpoint.service);
            let mut task_places = Vec::with_capacity(endpoint.addresses.len());
            for (on, &address) in &endpoint.addresses {
                names.owners.insert(address, Owner::Task(task));
                let Some(&network) = places.get(on) else { continue };
                let network_names = &mut names.networks[network];
                let joined = endpoint
                    .joined
                    .as_ref()
                    .and_then(|joined| Some((joined, joined.aliases.get(on)?.as_slice())));
                let member = members.and_then(|all| all.iter().find(|(at, _)| *at == network));
                let service = match (member, joined) {
                    (Some(&(_, service)), _) => service,
                    (None, Some((joined, _))) => network_names.add_unnamed(&joined.service),
                    (None, None) => continue,
                };
                let ready = endpoint.state == EndpointState::Ready;
                let (slot, node) = (endpoint.slot, endpoint.node);
                let backends = &mut network_names.services[service].backends;
                let place = (network, service, backends.len());
                backends.push(Backend { task: *id, slot, node, address, ready });
                let at = network_names.tasks.len();
                let own = Some(endpoint.hostname.clone()).filter(|name| !name.is_empty());
                for name in own
                    .into_iter()
                    .chain(joined.into_iter().flat_map(|joined| joined_names(endpoint, joined)))
                {
                    network_names.hostnames.entry(name.to_ascii_lowercase()).or_default().push(at);
                }
                network_names.tasks.push((*id, place.1, place.2));
                task_places.push(place);
            }
            let reachable = |at: &&IpAddr| !at.is_loopback();
            let servers =
                endpoint.nameservers.iter().filter(reachable).map(|at| (*at, PORT).into()).collect();
            names.tasks.push(Task { places: task_places, servers, enclosed: endpoint.enclosed });
        }
        names
    }

    /// Enters a service on each of its networks; returns where it is.
    fn add_service(
        &mut self,
        service: &MapService,
        places: &HashMap<NetworkId, usize>,
    ) -> Vec<(usize, usize)> {
        let mut members = Vec::with_capacity(service.networks.len());
        for (network, attachment) in &service.networks {
            let Some(&network) = places.get(network) else { continue };
            let at = &mut self.networks[network];
            let place = at.services.len();
            let name = service.name.to_ascii_lowercase();
            for alias in attachment.aliases.iter().map(|alias| alias.to_ascii_lowercase()) {
                if alias != name {
                    let entry = at.names.entry(alias).or_default();
                    // The same alias twice, or in two spellings.
                    if entry.last() != Some(&place) {
                        entry.push(place);
                    }
                }
            }
            at.names.entry(name.clone()).or_default().push(place);
            let vip = attachment.vip.filter(|_| service.mode == EndpointMode::Vip);
            if let Some(vip) = vip {
                self.owners.insert(vip, Owner::Service(network, place));
            }
            at.services.push(Service { name, vip, ports: service.ports.clone(), backends: Vec::new() });
            members.push((network, place));
        }
        members
    }

    /// Where tasks on bridges of this node ask.
    pub fn bridges(&self) -> &[Audience] {
        &self.bridges
    }

    /// By which address of ours whoever asks from there is known; `None` of an IPv6 address of none of our networks.
    pub fn asker(&self, from: IpAddr) -> Option<Ipv4Addr> {
        match from.to_canonical() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(twin) => self.of_twin(twin).flatten(),
        }
    }

    /// The address whose twin this is. `None` if it is of none of our networks, nobody's address if it has no place there.
    fn of_twin(&self, twin: Ipv6Addr) -> Option<Option<Ipv4Addr>> {
        let mut sides = self.subnets.iter().filter_map(|(subnet, ipv6)| Some((*subnet, (*ipv6)?)));
        let (subnet, ipv6) = sides.find(|(_, ipv6)| ipv6.subnet.contains(twin))?;
        Some(ipv6.of_twin(subnet, twin))
    }

    /// The networks of the task with this address; none for an address of no task.
    fn networks_of(&self, asker: Ipv4Addr) -> impl Iterator<Item = &Network> {
        let task = match self.owners.get(&asker) {
            Some(Owner::Task(task)) => Some(&self.tasks[*task]),
            _ => None,
        };
        let places = task.into_iter().flat_map(|task| &task.places);
        places.map(|(network, ..)| &self.networks[*network])
    }

    /// Whom the task with the address `asker` wants asked for names that are not ours; `None` if nobody may be: a
    /// question can carry as much out of an internal network as any packet.
    pub fn servers_of(&self, asker: Ipv4Addr) -> Option<Servers> {
        match self.owners.get(&asker) {
            Some(Owner::Task(task)) => {
                Some(&self.tasks[*task]).filter(|task| !task.enclosed).map(|task| task.servers.clone())
            }
            _ => (!self.internal.iter().any(|subnet| subnet.contains(asker))).then(Servers::default),
        }
    }

    /// The addresses of `name` for the task with the address `asker`: `None` if the name is not ours.
    ///
    /// A name is tried as it is on all networks of the asking task, then at every dot as a name and a network.
    pub fn addresses(&self, asker: Ipv4Addr, name: &str) -> Option<Vec<Found>> {
        self.find(asker, name, |network, name| {
            let addresses = network.addresses(name)?;
            Some(addresses.into_iter().map(|address| network.found(address)).collect())
        })
    }

    /// The ready tasks behind a port that a service publishes: `None` if `name` is no `_<port>._<protocol>.<service>`
    /// with a service of ours.
    pub fn targets(&self, asker: Ipv4Addr, name: &str) -> Option<Vec<Target>> {
        let (port, rest) = name.strip_prefix('_')?.split_once("._")?;
        let (protocol, service) = rest.split_once('.')?;
        let wanted = (port.parse::<u16>().ok(), protocol.parse::<Protocol>().ok());
        self.find(asker, service, |network, service| network.targets(service, wanted))
    }

    /// The name of an address, as the task with the address `asker` may know it.
    pub fn name_of(&self, asker: Ipv4Addr, address: IpAddr) -> Reverse {
        let address = match address {
            IpAddr::V4(address) => {
                let ours = self.ipv4().any(|subnet| subnet.contains(address));
                Some(address).filter(|_| ours)
            }
            IpAddr::V6(twin) => match self.of_twin(twin) {
                // Of the IPv6 subnet only as much is used as the IPv4 one has places.
                Some(None) => return Reverse::Nobody,
                None if self.holds6(Subnet { address: twin, prefix_len: 128 }) => return Reverse::Nobody,
                found => found.flatten(),
            },
        };
        let Some(address) = address else { return Reverse::Foreign };
        let (network, name) = match self.owners.get(&address) {
            Some(&Owner::Service(network, service)) => {
                let network = &self.networks[network];
                (network, format!("{}.{}", network.services[service].name, network.name))
            }
            Some(&Owner::Task(task)) => {
                let mut places = self.tasks[task].places.iter();
                let found = places.find_map(|&(network, service, backend)| {
                    let network = &self.networks[network];
                    let service = &network.services[service];
                    let backend = &service.backends[backend];
                    (backend.address == address).then(|| (network, network.task_name(service, backend)))
                });
                match found {
                    Some(found) => found,
                    None => return Reverse::Nobody,
                }
            }
            None => return Reverse::Nobody,
        };
        match self.networks_of(asker).any(|seen| std::ptr::eq(seen, network)) {
            true => Reverse::Name(name),
            false => Reverse::Nobody,
        }
    }

    /// Whether a network of the cluster holds all of `subnet`.
    pub fn holds(&self, subnet: Subnet) -> bool {
        self.ipv4().any(|ours| is_within(subnet, ours))
    }

    /// The subnets of networks that have IPv4.
    fn ipv4(&self) -> impl Iterator<Item = Subnet> {
        let own = self.subnets.iter().filter(|(_, ipv6)| !ipv6.is_some_and(|ipv6| ipv6.alone));
        own.map(|(subnet, _)| *subnet).chain(self.clusters.iter().filter_map(|one| one.ipv4))
    }

    /// The same of IPv6.
    pub fn holds6(&self, subnet: Subnet6) -> bool {
        let own = self.subnets.iter().filter_map(|(_, ipv6)| Some((*ipv6)?.subnet));
        let mut all = own.chain(self.clusters.iter().filter_map(|one| one.ipv6));
        all.any(|ours| is_within(subnet, ours))
    }

    fn find<T>(
        &self,
        asker: Ipv4Addr,
        name: &str,
        look: impl Fn(&Network, &str) -> Option<Vec<T>>,
    ) -> Option<Vec<T>> {
        let join = |found: Option<Vec<T>>, more: Vec<T>| match found {
            None => Some(more),
            Some(mut all) => {
                all.extend(more);
                Some(all)
            }
        };
        let plain = self.networks_of(asker).filter_map(|network| look(network, name)).fold(None, join);
        plain.or_else(|| {
            name.match_indices('.').find_map(|(dot, _)| {
                let (name, suffix) = (&name[..dot], &name[dot + 1..]);
                let networks = self.networks_of(asker).filter(|network| network.name == suffix);
                networks.filter_map(|network| look(network, name)).fold(None, join)
            })
        })
    }
}

fn is_within<A: Address>(part: Subnet<A>, whole: Subnet<A>) -> bool {
    whole.prefix_len <= part.prefix_len && whole.contains(part.address)
}

impl Network {
    fn found(&self, address: Ipv4Addr) -> Found {
        let alone = self.ipv6.is_some_and(|ipv6| ipv6.alone);
        let twin = self.ipv6.map(|ipv6| ipv6.twin(self.subnet, address));
        Found { address: (!alone).then_some(address), twin }
    }

    fn addresses(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        self.of_services(name)
            .or_else(|| self.of_part(name))
            .or_else(|| self.of_task(name))
            .or_else(|| self.of_host(name))
    }

    fn named(&self, name: &str) -> Option<impl Iterator<Item = &Service>> {
        Some(self.names.get(name)?.iter().map(|&place| &self.services[place]))
    }

    /// `<service>`, `<alias>`: a virtual address only while someone is there to answer at it.
    fn of_services(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let mut found = Vec::new();
        for service in self.named(name)? {
            match service.vip {
                Some(vip) => found.extend(service.ready().next().map(|_| vip)),
                None => found.extend(service.ready().map(|backend| backend.address)),
            }
        }
        Some(found)
    }

    /// `tasks.<service>`, `<slot>.<service>`, and for a global service `<node id>.<service>`.
    ///
    /// A slot that has no task just now is a known name.
    fn of_part(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let (part, service) = name.split_once('.')?;
        let services = self.named(service)?;
        let ready = services.flat_map(Service::ready);
        if part == "tasks" {
            return Some(ready.map(|backend| backend.address).collect());
        }
        let part = Part::read(part)?;
        Some(ready.filter(|backend| part.is_of(backend)).map(|backend| backend.address).collect())
    }

    /// `<service>.<slot>.<task id>`.
    fn of_task(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let (rest, id) = name.rsplit_once('.')?;
        let id: TaskId = id.parse().ok()?;
        let (service, part) = rest.rsplit_once('.')?;
        let part = Part::read(part)?;
        let place = self.tasks.binary_search_by_key(&id, |(task, ..)| *task).ok();
        let task = place.map(|place| self.task(place));
        let task = task.filter(|(of, backend)| of.name == service && part.is_of(backend));
        if task.is_none() && !self.names.contains_key(service) {
            return None;
        }
        Some(
            task.into_iter()
                .filter(|(_, backend)| backend.ready)
                .map(|(_, backend)| backend.address)
                .collect(),
        )
    }

    /// The name that a container calls itself by: the user's choice, or the beginning of the task's id.
    fn of_host(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let ready = |place| {
            let (_, backend) = self.task(place);
            backend.ready.then_some(backend.address)
        };
        if let Some(places) = self.hostnames.get(name) {
            return Some(places.iter().filter_map(|&place| ready(place)).collect());
        }
        if name.len() != SHORT_ID_LEN {
            return None;
        }
        let first = from_base36(&format!("{name:0<ID_TEXT_LEN$}"))?;
        let first = TaskId::from_bytes(first.to_be_bytes());
        let place = self.tasks.partition_point(|(task, ..)| *task < first);
        let (task, ..) = self.tasks.get(place)?;
        (task.short() == name).then(|| ready(place).into_iter().collect())
    }

    fn targets(
        &self,
        service: &str,
        (port, protocol): (Option<u16>, Option<Protocol>),
    ) -> Option<Vec<Target>> {
        let mut found = Vec::new();
        for service in self.named(service)? {
            let matching =
                |known: &&PortConfig| Some(known.target) == port && Some(known.protocol) == protocol;
            if let Some(port) = service.ports.iter().find(matching) {
                found.extend(service.ready().map(|backend| Target {
                    name: self.task_name(service, backend),
                    port: port.target,
                    found: self.found(backend.address),
                }));
            }
        }
        Some(found)
    }

    /// For a task whose service is not on the network, and not known there by its name.
    fn add_unnamed(&mut self, service: &str) -> usize {
        let name = service.to_ascii_lowercase();
        self.services.push(Service { name, vip: None, ports: Vec::new(), backends: Vec::new() });
        self.services.len() - 1
    }

    fn task(&self, place: usize) -> (&Service, &Backend) {
        let (_, service, backend) = self.tasks[place];
        let service = &self.services[service];
        (service, &service.backends[backend])
    }

    fn task_name(&self, service: &Service, backend: &Backend) -> String {
        let (service, network, task) = (&service.name, &self.name, backend.task);
        match backend.slot {
            0 => format!("{service}.{}.{task}.{network}", backend.node),
            slot => format!("{service}.{slot}.{task}.{network}"),
        }
    }
}

/// What a task that was connected to a network is called there: as tables show it, and by its aliases.
fn joined_names<'a>(
    endpoint: &MapEndpoint,
    (joined, aliases): (&Joined, &'a [String]),
) -> impl Iterator<Item = String> + use<'a> {
    let place = match endpoint.slot {
        0 => endpoint.node.to_string(),
        slot => slot.to_string(),
    };
    let name = format!("{}.{place}", joined.service);
    std::iter::once(name).chain(aliases.iter().cloned())
}

/// As [`TaskId::short`] has it.
const SHORT_ID_LEN: usize = 12;

impl Service {
    fn ready(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.ready)
    }
}

/// What tells the tasks of a service apart in their names.
enum Part {
    Slot(u64),
    Node(NodeId),
}

impl Part {
    fn read(text: &str) -> Option<Self> {
        let node = || text.parse().ok().map(Self::Node);
        // `+1` and `01` are no slots.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let slot = digits.then(|| text.parse().ok().map(Self::Slot)).flatten();
        slot.or_else(node)
    }

    fn is_of(&self, backend: &Backend) -> bool {
        match *self {
            Self::Slot(slot) => backend.slot == slot,
            Self::Node(node) => backend.slot == 0 && backend.node == node,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
