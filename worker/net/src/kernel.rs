//! The hands: reads the kernel into an [`Observed`], performs [`Operation`]s. Blocking; one owner, see [`crate::network`].

mod facts;
mod ipv6;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use crate::{
    error::{KernelError, NetError},
    firewall::{
        Element,
        host::HOST,
        message::{self, Change},
        reading,
    },
    model::{Cidr, Cidr6, Endpoint, Mac, NetworkConfig, NodeNetwork},
    netlink::{
        Socket,
        conntrack::{self, Flows},
        forwarding::{self, Neighbour},
        route::{self, Link, LinkChange, Peer},
    },
    netns,
    overlay::{
        fabric::{Piece, Uplink},
        helper::{self, Helper},
        plan::{Action, Step},
    },
    plan::{Inside, Mesh, Observed, ObservedLink, Operation},
};

pub use ipv6::has_ipv6;
pub(crate) use ipv6::{configure_inside6, enable_ipv6};

/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

const ROUTE_LOCALNET: &str = "route_localnet";
const PROXY_ARP_PVLAN: &str = "proxy_arp_pvlan";

/// A setting of a link.
fn setting(link: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv4/conf/{link}/{name}"))
}

/// Whether a sysctl of this thread's network namespace is on. One that cannot be read counts as off: writing it then
/// gives the error that names it.
fn is_on(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

fn switch_on(path: &Path) -> Result<(), NetError> {
    switch(path, true)
}

fn switch(path: &Path, on: bool) -> Result<(), NetError> {
    let value = if on { "1" } else { "0" };
    fs::write(path, value).map_err(|source| NetError::Sysctl { path: path.to_owned(), value, source })
}

/// The sockets of one network namespace and the names to use in it.
pub(crate) struct Kernel {
    pub config: NetworkConfig,
    route: Socket,
    netfilter: Socket,
    /// The tables as last read, and the generation of the rule set they were read at.
    read: Option<(u32, message::Shape, BTreeSet<Element>)>,
    helper: Option<Helper>,
}

impl Kernel {
    /// Opens the sockets in the network namespace of the calling thread; all other calls must come from that thread
    /// too, because `/proc/sys/net` follows the thread.
    pub fn open(config: NetworkConfig) -> Result<Self, NetError> {
        Ok(Self {
            config,
            route: Socket::open(libc::NETLINK_ROUTE)
                .map_err(|error| NetError::kernel("open a NETLINK_ROUTE socket", error))?,
            netfilter: Socket::open(libc::NETLINK_NETFILTER)
                .map_err(|error| NetError::kernel("open a NETLINK_NETFILTER socket", error))?,
            read: None,
            helper: None,
        })
    }

    pub fn sockets(&mut self) -> (&mut Socket, &mut Socket) {
        (&mut self.route, &mut self.netfilter)
    }

    /// Reads everything that [`crate::plan::plan`] looks at.
    pub fn observe(&mut self, desired: &NodeNetwork) -> Result<Observed, NetError> {
        let config = self.config.clone();
        let links = route::links(&mut self.route).map_err(|error| NetError::kernel("list links", error))?;
        let addresses =
            route::addresses(&mut self.route).map_err(|error| NetError::kernel("list addresses", error))?;
        let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let found6 = route::addresses6(&mut self.route)
            .map_err(|error| NetError::kernel("list IPv6 addresses", error))?;
        let addresses6: BTreeSet<Cidr6> = found6.iter().map(|(_, cidr)| *cidr).collect();
        let mut observed = Observed {
            forwarding: is_on(Path::new(FORWARDING)),
            forwarding6: ipv6::forwards(),
            way_out6: ipv6::has_way_out(&addresses6, desired),
            ..Observed::default()
        };
        if let Some(overlay) = &desired.overlay {
            observed.facts = Some(self.facts_of(&links, &addresses, overlay.source())?);
        }
        for link in links {
            let mut found = observed_link(&link, link.master.and_then(|index| names.get(&index).cloned()));
            found.addresses = of_link(&addresses, link.index);
            found.addresses6 = of_link(&found6, link.index);
            observed.links.insert(link.name, found);
        }
        observed.neighbours = self.told_neighbours(desired, &names)?;
        let bridged =
            desired.endpoints.iter().filter(|endpoint| desired.network(&endpoint.network).is_some());
        for endpoint in bridged {
            if let Some(inside) = self.inside(endpoint)? {
                observed.inside.insert(endpoint.id.clone(), inside);
            }
        }
        (observed.shape, observed.elements) = self.firewall()?;
        if let Some(helper) = self.helper()? {
            observed.overlay = helper.observe(&config)?;
            let uplink = observed.links.get(&config.uplink);
            let neighbours = forwarding::neighbours(&mut self.route)
                .map_err(|error| NetError::kernel("list neighbours", error))?;
            let told = |neighbour: &Neighbour| {
                let address = IpAddr::from(Uplink::HELPER6.address);
                neighbour.lasting && (neighbour.address, neighbour.mac) == (address, Uplink::HELPER_MAC)
            };
            let ipv6_joined = addresses6.contains(&Uplink::HOST6) && neighbours.iter().any(told);
            observed.overlay.connected &= uplink.is_some_and(|link| {
                link.up
                    && link.alias == Some(config.uplink_alias())
                    && link.route_localnet
                    && link.addresses.len() == 1
                    && link.mac == Some(Uplink::HOST_MAC)
                    && (ipv6_joined || !has_ipv6())
                    && observed.overlay.uplink.is_some_and(|uplink| {
                        let address = uplink.host;
                        link.addresses.contains(&Cidr { address, prefix_len: Uplink::PREFIX_LEN })
                    })
            });
            for local in desired.locals() {
                if let Some(inside) = self.inside(local.endpoint)? {
                    observed.overlay.inside.insert(local.endpoint.id.clone(), inside);
                }
            }
        }
        if desired.overlay.is_some() {
            observed.mesh = self.mesh(desired, &observed.elements)?;
        }
        Ok(observed)
    }

    /// The namespace of the overlays, if there is one.
    pub fn helper(&mut self) -> Result<Option<&mut Helper>, NetError> {
        if let Some(helper) = self.helper.take_if(|helper| !helper.is_current()) {
            // Someone else let go of it. What is still in it would be in the way of its successor.
            helper.end()?;
        }
        if self.helper.is_none() {
            self.helper = Helper::open(&self.config)?;
        }
        Ok(self.helper.as_mut())
    }

    /// How the overlays are joined to this host, or should be. Ports that are published already are ours.
    pub fn mesh(
        &mut self,
        desired: &NodeNetwork,
        present: &BTreeSet<Element>,
    ) -> Result<Option<Mesh>, NetError> {
        let Some(overlay) = &desired.overlay else { return Ok(None) };
        let failed = |error| NetError::kernel("list addresses", error);
        let addresses = route::addresses(&mut self.route).map_err(failed)?;
        let own = route::link_by_name(&mut self.route, &self.config.uplink).map_err(failed)?;
        let Some(uplink) = helper::choose_uplink(&addresses, own.map(|link| link.index)) else {
            let reason =
                "every subnet from 169.254.64.0/30 to 169.254.127.0/30 is in use on this host".into();
            return Err(NetError::Invalid { what: "link", id: self.config.uplink.clone(), reason });
        };
        let held: BTreeSet<(u8, u16)> = present.iter().filter_map(Element::published_port).collect();
        let busy = overlay
            .published
            .iter()
            .filter(|(key, to)| !held.contains(&(key.0.number(), key.1)) && to.is_taken(**key));
        let addresses6 = route::addresses6(&mut self.route).map_err(failed)?;
        let ipv6 = ipv6::has_way_out(&addresses6.into_iter().map(|(_, cidr)| cidr).collect(), desired);
        let uplink = Uplink { ipv6, ..uplink };
        Ok(Some(Mesh { uplink, busy: busy.map(|(key, _)| *key).collect() }))
    }

    /// Reads our tables, unless nothing in the namespace's rule set has changed since they were read: the look at an
    /// idle node then costs one message, whatever it carries.
    pub fn firewall(&mut self) -> Result<(message::Shape, BTreeSet<Element>), NetError> {
        let failed = |error| NetError::kernel(format!("read nft table `{}`", self.config.table), error);
        let generation = reading::generation(&mut self.netfilter).map_err(failed)?;
        if let Some((at, shape, elements)) = &self.read
            && *at == generation
        {
            return Ok((shape.clone(), elements.clone()));
        }
        let tables = reading::observe(&mut self.netfilter, &self.config.table, &HOST).map_err(failed)?;
        let (shape, elements) = (tables.shape, tables.elements);
        self.read = Some((generation, shape.clone(), elements.clone()));
        Ok((shape, elements))
    }

    /// Reads one link with all that [`crate::plan::plan_network`] and [`crate::plan::plan_endpoint`] look at.
    pub fn link(&mut self, name: &str) -> Result<Option<ObservedLink>, NetError> {
        let failed = |error| NetError::kernel(format!("read link `{name}`"), error);
        let Some(link) = route::link_by_name(&mut self.route, name).map_err(failed)? else { return Ok(None) };
        let master = match link.master {
            Some(index) => {
                route::link_by_index(&mut self.route, index).map_err(failed)?.map(|master| master.name)
            }
            None => None,
        };
        let mut found = observed_link(&link, master);
        found.addresses = of_link(&route::addresses(&mut self.route).map_err(failed)?, link.index);
        found.addresses6 = of_link(&route::addresses6(&mut self.route).map_err(failed)?, link.index);
        Ok(Some(found))
    }

    /// Whom the bridges of networks with IPv6 are told of; `names` are those of all links.
    fn told_neighbours(
        &mut self,
        desired: &NodeNetwork,
        names: &BTreeMap<u32, String>,
    ) -> Result<BTreeSet<(String, Ipv6Addr, Mac)>, NetError> {
        let bridges = desired.networks.iter().filter(|network| network.ipv6.is_some());
        let bridges: BTreeSet<&str> = bridges.map(|network| network.bridge.as_str()).collect();
        if bridges.is_empty() {
            return Ok(BTreeSet::new());
        }
        let all = forwarding::neighbours(&mut self.route)
            .map_err(|error| NetError::kernel("list neighbours", error))?;
        let told = all.into_iter().filter(|neighbour| neighbour.lasting).filter_map(|neighbour| {
            let bridge = names.get(&neighbour.link).filter(|name| bridges.contains(name.as_str()))?;
            let IpAddr::V6(address) = neighbour.address else { return None };
            Some((bridge.clone(), address, neighbour.mac))
        });
        Ok(told.collect())
    }

    /// Reads the container's side; `None` when the namespace or the interface is not there.
    pub fn inside(&mut self, endpoint: &Endpoint) -> Result<Option<Inside>, NetError> {
        let Ok(mut socket) = socket_inside(endpoint) else { return Ok(None) };
        let read = || -> Result<Option<Inside>, KernelError> {
            let Some(link) = route::link_by_name(&mut socket, &endpoint.interface_name)? else {
                return Ok(None);
            };
            let loopback = route::link_by_name(&mut socket, "lo")?;
            let addresses = route::addresses(&mut socket)?;
            Ok(Some(Inside {
                index: link.index,
                mac: link.mac,
                up: link.up,
                loopback_up: loopback.is_some_and(|lo| lo.up),
                addresses: addresses
                    .iter()
                    .filter(|(index, _)| *index == link.index)
                    .map(|(_, cidr)| *cidr)
                    .collect(),
                gateway: forwarding::default_route(&mut socket, link.index)?,
                mtu: link.mtu,
                ipv6: ipv6::read_inside(&mut socket, link.index)?,
            }))
        };
        let mut read = read;
        read().map_err(|error| {
            NetError::kernel(format!("read the interface of endpoint `{}`", endpoint.id), error)
        })
    }

    /// Performs `operations` in order, neighbouring firewall changes as one transaction and all forgetting of
    /// connections as one pass. Calls `each` with the outcome of every operation; it says whether to go on.
    pub fn perform(
        &mut self,
        operations: &[Operation],
        mut each: impl FnMut(&Operation, Result<(), NetError>) -> bool,
    ) {
        let mut rest = operations;
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|operation| group(operation) == group(first)).count();
            let run = if group(first) == Group::Single { 1 } else { run };
            let (now, later) = rest.split_at(run);
            rest = later;
            let result = match group(first) {
                Group::Single => self.perform_one(first),
                Group::Helper => {
                    let steps: Vec<_> = now.iter().filter_map(helper_step).collect();
                    let config = self.config.clone();
                    self.in_helper().and_then(|(_, helper)| helper.change_firewall(&config, &steps))
                }
                Group::Firewall => {
                    self.change_firewall(&now.iter().filter_map(firewall_change).collect::<Vec<_>>())
                }
                Group::HelperForget => {
                    let steps: Vec<_> = now.iter().filter_map(helper_step).collect();
                    let config = self.config.clone();
                    self.in_helper().and_then(|(_, helper)| helper.forget(&config, &steps))
                }
                Group::Forget => self.forget(&now.iter().filter_map(flows).collect::<Vec<_>>()),
            };
            // A failed transaction is one failure, told with its first operation.
            let told = if result.is_err() { 1 } else { run };
            let mut result = Some(result);
            for operation in &now[..told] {
                if !each(operation, result.take().unwrap_or(Ok(()))) {
                    return;
                }
            }
        }
    }

    pub fn change_firewall(&mut self, changes: &[Change]) -> Result<(), NetError> {
        message::apply(&mut self.netfilter, &self.config.table, &HOST, changes)
            .map_err(|(what, error)| NetError::kernel(what, error))
    }

    fn forget(&mut self, which: &[Flows]) -> Result<(), NetError> {
        let forgotten = conntrack::forget(&mut self.netfilter, which)
            .map_err(|error| NetError::kernel("delete tracked connections", error))?;
        tracing::debug!(forgotten, ?which, "forgot tracked connections");
        Ok(())
    }

    /// What there is in the helper namespace for one task, by its link and address.
    pub fn overlay_pieces_of(
        &mut self,
        link: &str,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<Vec<Piece>, NetError> {
        let config = self.config.clone();
        let Some(helper) = self.helper()? else { return Ok(Vec::new()) };
        let its = |piece: &Piece| match piece {
            Piece::Element(element) => element.belongs_to(link, address),
            Piece::Neighbour { address: of, .. } => Some(*of) == address.map(IpAddr::from),
            _ => false,
        };
        Ok(helper.observe(&config)?.pieces.into_iter().filter(its).collect())
    }

    fn in_helper(&mut self) -> Result<(&mut Socket, &mut Helper), NetError> {
        let path = self.config.helper.clone();
        let missing = || NetError::Namespace { path, source: std::io::ErrorKind::NotFound.into() };
        self.helper()?;
        self.helper.as_mut().map(|helper| (&mut self.route, helper)).ok_or_else(missing)
    }

    fn perform_in_helper(&mut self, step: &Step) -> Result<(), NetError> {
        match &step.0 {
            Action::Connect(uplink) => {
                Helper::connect(&mut self.helper, &self.config, &mut self.route, *uplink)
            }
            Action::Disconnect => {
                self.helper()?;
                Helper::disconnect(&mut self.helper, &self.config, &mut self.route)
            }
            _ => self.in_helper().and_then(|(host, helper)| helper.perform(host, step)),
        }
    }

    fn perform_one(&mut self, operation: &Operation) -> Result<(), NetError> {
        let failed = |error| NetError::kernel(operation.to_string(), error);
        if let Operation::Overlay(step) = operation {
            return self.perform_in_helper(step);
        }
        let socket = &mut self.route;
        match operation {
            Operation::EnableForwarding6 => ipv6::enable_forwarding(),
            Operation::EnableForwarding => switch_on(Path::new(FORWARDING)),
            Operation::SettleBridge { bridge, ipv6, answers } => self.settle_bridge(bridge, *ipv6, *answers),
            Operation::RemoveLink { link } => route::delete_link(socket, link).map(drop).map_err(failed),
            Operation::CreateBridge { bridge, mac } => {
                route::create_bridge(socket, bridge, *mac).map_err(failed)
            }
            Operation::SetBridge { bridge, mac, alias, mtu } => {
                let change = LinkChange {
                    up: Some(true),
                    alias: Some(alias),
                    mac: Some(*mac),
                    mtu: *mtu,
                    ..LinkChange::default()
                };
                route::set_link(socket, bridge, &change).map_err(failed)
            }
            Operation::AddAddress { link, address } => {
                let index = self.index_of(link)?;
                route::add_address(&mut self.route, index, *address).map_err(failed)
            }
            Operation::RemoveAddress { link, address } => {
                let index = self.index_of(link)?;
                route::delete_address(&mut self.route, index, *address).map_err(failed)
            }
            Operation::AddAddress6 { link, address } => {
                let index = self.index_of(link)?;
                route::add_address6(&mut self.route, index, *address).map_err(failed)
            }
            Operation::RemoveAddress6 { link, address } => {
                let index = self.index_of(link)?;
                route::delete_address(&mut self.route, index, *address).map_err(failed)
            }
            Operation::AddNeighbour { link, address, mac } => {
                let index = self.index_of(link)?;
                forwarding::set_neighbour(&mut self.route, index, (*address).into(), *mac).map_err(failed)
            }
            Operation::RemoveNeighbour { link, address } => {
                let index = self.index_of(link)?;
                forwarding::delete_neighbour(&mut self.route, index, (*address).into()).map_err(failed)
            }
            Operation::CreateVeth { link, endpoint, mtu } => {
                let namespace = netns::open(&netns::of_process(endpoint.netns_pid))?;
                let peer = Peer {
                    name: &endpoint.interface_name,
                    mac: Some(endpoint.mac()),
                    mtu: *mtu,
                    namespace: namespace.as_fd(),
                };
                route::create_veth(socket, link, &peer).map_err(failed)
            }
            Operation::ConfigureInside { endpoint, address, gateway, mtu } => {
                let mut socket = socket_inside(endpoint)?;
                configure_inside(&mut socket, &endpoint.interface_name, *mtu, *address, *gateway)
                    .map_err(failed)
            }
            Operation::ConfigureInside6 { endpoint, inside } => configure_inside6(endpoint, inside),
            Operation::SetVeth { link, bridge, alias, mtu, isolated } => {
                // Isolated before it comes up, so that nothing passes meanwhile.
                let master = Some(self.index_of(bridge)?);
                let joined = LinkChange { master, mtu: *mtu, ..LinkChange::default() };
                let up = LinkChange { up: Some(true), alias: Some(alias), ..LinkChange::default() };
                let set = route::set_link(&mut self.route, link, &joined);
                let set = set.and_then(|()| route::set_hairpin(&mut self.route, link, *isolated));
                set.and_then(|()| route::set_link(&mut self.route, link, &up)).map_err(failed)
            }
            Operation::BuildRules(_)
            | Operation::AddElement(_)
            | Operation::RemoveElement(_)
            | Operation::ForgetAddress { .. }
            | Operation::ForgetPort { .. }
            | Operation::Overlay(_) => Ok(()), // Performed above, or in groups.
        }
    }

    /// The settings of a bridge of this node alone: published ports answer at 127.0.0.1, and no container is its router.
    fn settle_bridge(&mut self, bridge: &str, ipv6: bool, answers: bool) -> Result<(), NetError> {
        switch_on(&setting(bridge, ROUTE_LOCALNET))?;
        if answers {
            let index = self.index_of(bridge)?;
            forwarding::answer_at_once(&mut self.route, index)
                .map_err(|error| NetError::kernel(format!("have bridge `{bridge}` answer at once"), error))?;
        }
        switch(&setting(bridge, PROXY_ARP_PVLAN), answers)?;
        ipv6::settle_bridge(bridge, ipv6)
    }

    fn index_of(&mut self, name: &str) -> Result<u32, NetError> {
        index_of(&mut self.route, name)
            .map_err(|error| NetError::kernel(format!("find link `{name}`"), error))
    }

    /// Removes all that is ours from this namespace: tables, containers' links, bridges. IPv4 forwarding stays on, as
    /// others may have come to rely on it. Keeps going; the first error is returned.
    pub fn remove_all(&mut self) -> Result<(), NetError> {
        let nothing = NodeNetwork::default();
        let mut observed = self.observe(&nothing)?;
        observed.elements.clear();
        observed.shape = message::Shape::wanted(&HOST);
        let mut first_error = None;
        self.perform(&crate::plan::plan(&self.config.clone(), &nothing, &observed), |_, result| {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
            true
        });
        let existing = reading::existing(&mut self.netfilter, &self.config.table)
            .map_err(|error| NetError::kernel("list nft tables", error));
        let dropped = existing.and_then(|families| self.change_firewall(&[Change::Drop(families)]));
        first_error.map_or(dropped, Err)
    }
}

/// Those of one link.
fn of_link<A: Copy + Ord>(all: &[(u32, Cidr<A>)], link: u32) -> BTreeSet<Cidr<A>> {
    all.iter().filter(|(index, _)| *index == link).map(|(_, cidr)| *cidr).collect()
}

/// The index of a link that must be there.
pub(crate) fn index_of(socket: &mut Socket, name: &str) -> Result<u32, KernelError> {
    let missing = KernelError { errno: libc::ENODEV, reason: None };
    route::link_by_name(socket, name)?.map(|link| link.index).ok_or(missing)
}

fn observed_link(link: &Link, master: Option<String>) -> ObservedLink {
    let is_bridge = link.kind == "bridge";
    let has = |name| is_on(&setting(&link.name, name));
    ObservedLink {
        kind: link.kind.clone(),
        alias: link.alias.clone(),
        up: link.up,
        mac: link.mac,
        master,
        addresses: BTreeSet::new(),
        addresses6: BTreeSet::new(),
        route_localnet: (is_bridge || link.alias.is_some()) && has(ROUTE_LOCALNET),
        ipv6: if is_bridge { ipv6::of_bridge(&link.name) } else { None },
        hairpin: link.hairpin,
        isolated: link.isolated,
        answers: is_bridge && has(PROXY_ARP_PVLAN),
        mtu: link.mtu,
        peer: link.peer,
    }
}

/// An rtnetlink socket in the endpoint's namespace.
pub(crate) fn socket_inside(endpoint: &Endpoint) -> Result<Socket, NetError> {
    netns::run_in_netns(&netns::of_process(endpoint.netns_pid), || Socket::open(libc::NETLINK_ROUTE))?
        .map_err(|error| NetError::kernel(format!("open a socket for endpoint `{}`", endpoint.id), error))
}

pub(crate) fn configure_inside(
    socket: &mut Socket,
    name: &str,
    mtu: Option<u32>,
    address: Option<Cidr>,
    gateway: Option<std::net::Ipv4Addr>,
) -> Result<(), KernelError> {
    let missing = KernelError { errno: libc::ENODEV, reason: None };
    let index = route::link_by_name(socket, name)?.ok_or(missing)?.index;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    route::set_link(socket, "lo", &up)?;
    route::set_addresses(socket, index, &address.into_iter().collect())?;
    route::set_link(socket, name, &LinkChange { mtu, ..up })?;
    gateway.map_or(Ok(()), |gateway| forwarding::set_default_route(socket, index, gateway))
}

/// Operations that are performed together when they are neighbours.
#[derive(PartialEq, Eq)]
enum Group {
    Single,
    Firewall,
    Forget,
    Helper,
    HelperForget,
}

fn group(operation: &Operation) -> Group {
    match operation {
        Operation::BuildRules(_) | Operation::AddElement(_) | Operation::RemoveElement(_) => Group::Firewall,
        Operation::ForgetAddress { .. } | Operation::ForgetPort { .. } => Group::Forget,
        Operation::Overlay(step) if step.0.is_firewall() => Group::Helper,
        Operation::Overlay(step) if step.0.is_forget() => Group::HelperForget,
        _ => Group::Single,
    }
}

fn helper_step(operation: &Operation) -> Option<&Step> {
    match operation {
        Operation::Overlay(step) => Some(step),
        _ => None,
    }
}

fn firewall_change(operation: &Operation) -> Option<Change> {
    match operation {
        Operation::BuildRules(shape) => Some(Change::Rules(shape.clone())),
        Operation::AddElement(element) => Some(Change::Add(element.clone())),
        Operation::RemoveElement(element) => Some(Change::Remove(element.clone())),
        _ => None,
    }
}

fn flows(operation: &Operation) -> Option<Flows> {
    match operation {
        Operation::ForgetAddress { address } => Some(Flows::Of(*address)),
        Operation::ForgetPort { protocol, port } => Some(Flows::To(*protocol, *port)),
        _ => None,
    }
}
