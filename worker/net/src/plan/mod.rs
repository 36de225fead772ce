//! The plan: what to do to the kernel so that it is as desired. Pure; reads no clock, touches no socket.
//!
//! Order matters and is fixed: what is surplus goes, bridges come, veth pairs come with the node's end still down, the
//! firewall changes in one transaction, only then do the node's ends come up, and last the connections of gone
//! endpoints are forgotten. So no container is reachable or can speak before its rules are in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    firewall::{self, Element, message::Shape},
    model::{BridgeNetwork, Cidr, Cidr6, Endpoint, Mac, NetworkConfig, NodeNetwork, Protocol},
    network::Facts,
    overlay::{
        fabric::{self, Uplink},
        plan::{Action, ObservedOverlay, Step},
    },
};

/// What was found in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether the node forwards IPv4.
    pub forwarding: bool,
    /// Whether it forwards IPv6.
    pub forwarding6: bool,
    /// Whether it has IPv6 addresses of its own.
    pub way_out6: bool,
    /// All links of the node's namespace, by name.
    pub links: BTreeMap<String, ObservedLink>,
    /// The container's side, by endpoint; absent where its namespace or interface is.
    pub inside: BTreeMap<String, Inside>,
    /// Whom the bridges of networks with IPv6 are told of for good.
    pub neighbours: BTreeSet<(String, Ipv6Addr, Mac)>,
    /// Tables, chains, sets and rules.
    pub shape: Shape,
    /// Elements of our sets and maps.
    pub elements: BTreeSet<Element>,
    pub overlay: ObservedOverlay,
    /// How the overlays are to be joined to the host; present when they are wanted.
    pub mesh: Option<Mesh>,
    /// Of the host itself; present when overlays are wanted.
    pub facts: Option<Facts>,
}

/// How the host is joined to its overlays: chosen once, by what else there is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    pub(crate) uplink: Uplink,
    /// Published ports on which other processes of the host listen. They are not taken from those.
    pub(crate) busy: BTreeSet<(Protocol, u16)>,
}

/// A link in the node's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// `bridge`, `veth`, …
    pub kind: String,
    /// Who made it and for what, see [`NetworkConfig`].
    pub alias: Option<String>,
    pub up: bool,
    pub mac: Option<Mac>,
    /// Name of the bridge it belongs to.
    pub master: Option<String>,
    pub addresses: BTreeSet<Cidr>,
    /// But for those that links give themselves.
    pub addresses6: BTreeSet<Cidr6>,
    /// Whether packets for 127.0.0.0/8 may pass; only looked at for bridges.
    pub route_localnet: bool,
    /// Whether a bridge that has to do with IPv6 has the addresses that it is given and no others.
    pub ipv6: Option<bool>,
    /// Whether a port of a bridge may send back what came in by it.
    pub hairpin: bool,
    /// Whether a port of a bridge exchanges no frames with other such ports.
    pub isolated: bool,
    /// Whether a bridge answers for all addresses behind it; only looked at for bridges.
    pub answers: bool,
    pub mtu: u32,
    /// Index of a veth's other end.
    pub peer: Option<u32>,
}

/// The interface inside a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    pub index: u32,
    pub mac: Option<Mac>,
    pub up: bool,
    pub loopback_up: bool,
    pub addresses: BTreeSet<Cidr>,
    /// Gateway of the default route through this interface.
    pub gateway: Option<Ipv4Addr>,
    pub mtu: u32,
    pub ipv6: Inside6,
}

/// What an interface inside a container has of IPv6, the addresses that links give themselves left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside6 {
    pub addresses: BTreeSet<Cidr6>,
    /// Those set for good.
    pub neighbours: BTreeSet<(Ipv6Addr, Mac)>,
    /// With their gateways.
    pub routes: BTreeSet<(Cidr6, Ipv6Addr)>,
}

impl Inside6 {
    /// What a container's end has on a network with IPv6. There is no neighbour discovery: the gateway is told for good, and
    /// the way to everything else; `out` leads to what is elsewhere.
    pub(crate) fn new(own: Ipv6Addr, gateway: Cidr6, mac: Mac, out: bool) -> Self {
        let subnet = Cidr { address: gateway.subnet(), ..gateway };
        let anywhere = Cidr { address: Ipv6Addr::UNSPECIFIED, prefix_len: 0 };
        let to = [subnet].into_iter().chain(out.then_some(anywhere));
        Self {
            addresses: [Cidr { address: own, prefix_len: 128 }].into(),
            neighbours: [(gateway.address, mac)].into(),
            routes: to.map(|to| (to, gateway.address)).collect(),
        }
    }

    /// Whether `found` has all of it, and no other address.
    pub(crate) fn is_in(&self, found: &Self) -> bool {
        self.addresses == found.addresses
            && self.neighbours.is_subset(&found.neighbours)
            && self.routes.is_subset(&found.routes)
    }
}

impl Inside {
    /// Whether it has this address of IPv4 and no other, and leads to this gateway if there is one.
    pub(crate) fn is_configured(&self, address: Option<Cidr>, gateway: Option<Ipv4Addr>) -> bool {
        self.up
            && self.loopback_up
            && self.addresses == address.into_iter().collect()
            && (gateway.is_none() || self.gateway == gateway)
    }
}

/// One change to the kernel. `Display` says it in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    EnableForwarding,
    EnableForwarding6,
    /// Deletes a link of ours that should not be, or not be like that.
    RemoveLink {
        link: String,
    },
    CreateBridge {
        bridge: String,
        mac: Mac,
    },
    /// Sets a bridge's MAC, alias and MTU and brings it up.
    SetBridge {
        bridge: String,
        mac: Mac,
        alias: String,
        mtu: Option<u32>,
    },
    AddAddress {
        link: String,
        address: Cidr,
    },
    RemoveAddress {
        link: String,
        address: Cidr,
    },
    /// Lets published ports answer at 127.0.0.1, and keeps the bridge out of IPv6, or to the addresses that it is given.
    SettleBridge {
        bridge: String,
        ipv6: bool,
        /// Whether it answers for all addresses behind it, so that what is for them is routed.
        answers: bool,
    },
    AddAddress6 {
        link: String,
        address: Cidr6,
    },
    RemoveAddress6 {
        link: String,
        address: Cidr6,
    },
    /// Tells a bridge for good where an address is.
    AddNeighbour {
        link: String,
        address: Ipv6Addr,
        mac: Mac,
    },
    RemoveNeighbour {
        link: String,
        address: Ipv6Addr,
    },
    /// Makes the veth pair, the far end in the container.
    CreateVeth {
        link: String,
        endpoint: Endpoint,
        mtu: Option<u32>,
    },
    /// Gives the container's end its MTU, IPv4 address and route. `address` is `None` on a network without IPv4, `gateway` also
    /// on an internal one.
    ConfigureInside {
        endpoint: Endpoint,
        address: Option<Cidr>,
        gateway: Option<Ipv4Addr>,
        mtu: Option<u32>,
    },
    ConfigureInside6 {
        endpoint: Endpoint,
        inside: Inside6,
    },
    /// Makes tables, chains, sets and rules anew where they are not as they should be.
    BuildRules(Shape),
    RemoveElement(Element),
    AddElement(Element),
    /// Puts the node's end on the bridge, in hairpin mode, marks it as ours, brings it up.
    SetVeth {
        link: String,
        bridge: String,
        alias: String,
        mtu: Option<u32>,
        isolated: bool,
    },
    /// Deletes the tracked connections of an address.
    ForgetAddress {
        address: IpAddr,
    },
    /// A change in the namespace of the overlays.
    Overlay(Step),
    /// Deletes the tracked connections to a port of the node, which were made before it was published.
    ForgetPort {
        protocol: Protocol,
        port: u16,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnableForwarding6 => f.write_str("enable IPv6 forwarding"),
            Self::EnableForwarding => f.write_str("enable IPv4 forwarding"),
            Self::RemoveLink { link } => write!(f, "remove link `{link}`"),
            Self::CreateBridge { bridge, .. } => write!(f, "create bridge `{bridge}`"),
            Self::SetBridge { bridge, .. } => write!(f, "bring up bridge `{bridge}`"),
            Self::AddAddress { link, address } => write!(f, "add address `{address}` to `{link}`"),
            Self::RemoveAddress { link, address } => write!(f, "remove address `{address}` from `{link}`"),
            Self::AddAddress6 { link, address } => write!(f, "add address `{address}` to `{link}`"),
            Self::RemoveAddress6 { link, address } => write!(f, "remove address `{address}` from `{link}`"),
            Self::AddNeighbour { link, address, mac } => {
                write!(f, "add neighbour `{address}` at {mac} on `{link}`")
            }
            Self::RemoveNeighbour { link, address } => {
                write!(f, "remove neighbour `{address}` from `{link}`")
            }
            Self::SettleBridge { bridge, ipv6, answers } => {
                let ipv6 = if *ipv6 { "enable" } else { "disable" };
                let answers = if *answers { ", proxy_arp_pvlan" } else { "" };
                write!(f, "enable route_localnet{answers} and {ipv6} IPv6 on `{bridge}`")
            }
            Self::CreateVeth { link, endpoint, .. } => {
                write!(
                    f,
                    "create veth `{link}` to `{}` of endpoint `{}`",
                    endpoint.interface_name, endpoint.id
                )
            }
            Self::ConfigureInside { endpoint, .. } => {
                write!(f, "configure `{}` of endpoint `{}`", endpoint.interface_name, endpoint.id)
            }
            Self::ConfigureInside6 { endpoint, .. } => {
                write!(f, "configure IPv6 of `{}` of endpoint `{}`", endpoint.interface_name, endpoint.id)
            }
            Self::BuildRules(_) => f.write_str("build the nft tables"),
            Self::RemoveElement(element) => write!(f, "remove nft element: {element}"),
            Self::AddElement(element) => write!(f, "add nft element: {element}"),
            Self::SetVeth { link, bridge, .. } => write!(f, "bring up veth `{link}` on bridge `{bridge}`"),
            Self::Overlay(step) => step.fmt(f),
            Self::ForgetAddress { address } => write!(f, "forget connections of `{address}`"),
            Self::ForgetPort { protocol, port } => write!(f, "forget connections to {protocol} port {port}"),
        }
    }
}

impl Operation {
    /// The node's end of the container's link that the operation is about, if it is about one.
    pub(crate) fn port(&self, config: &NetworkConfig) -> Option<String> {
        match self {
            Self::RemoveLink { link } | Self::CreateVeth { link, .. } | Self::SetVeth { link, .. } => {
                Some(link.clone())
            }
            Self::ConfigureInside { endpoint, .. } | Self::ConfigureInside6 { endpoint, .. } => {
                Some(config.link_name(&endpoint.id))
            }
            Self::Overlay(Step(action)) => match action {
                Action::RemovePort { link }
                | Action::CreatePort { link, .. }
                | Action::PlugPort { link, .. }
                | Action::OpenPort { link, .. } => Some(link.clone()),
                Action::ConfigureInside { endpoint, .. } | Action::ConfigureInside6 { endpoint, .. } => {
                    Some(config.link_name(&endpoint.id))
                }
                Action::Add(piece) => piece.link().map(str::to_owned),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The operations that turn `observed` into `desired`; empty when all is well.
///
/// `desired` must be valid ([`NodeNetwork::validate`]). Links that are not ours are never touched.
pub fn plan(config: &NetworkConfig, desired: &NodeNetwork, observed: &Observed) -> Vec<Operation> {
    let mut before = plan_overlay(config, desired, observed);
    let mut after = Vec::new();
    let routes = !desired.networks.is_empty() || desired.overlay.is_some();
    if routes && !observed.forwarding {
        before.push(Operation::EnableForwarding);
    }
    let overlays6 = desired.overlay.as_ref().is_some_and(|overlay| overlay.has_ipv6());
    let bridges6 = desired.networks.iter().any(|network| network.ipv6.is_some());
    // Overlays have a namespace of their own, and only their way out leads by the host.
    if (bridges6 || overlays6 && observed.way_out6) && !observed.forwarding6 {
        before.push(Operation::EnableForwarding6);
    }
    remove_surplus(config, desired, observed, &mut before, &mut after);
    for network in &desired.networks {
        before.extend(plan_network(config, network, observed.links.get(&network.bridge)));
    }
    for endpoint in &desired.endpoints {
        let Some(network) = desired.network(&endpoint.network) else { continue };
        let link = observed.links.get(&config.link_name(&endpoint.id));
        let steps = plan_endpoint(config, network, endpoint, link, observed.inside.get(&endpoint.id));
        before.extend(steps.before);
        after.extend(steps.after);
    }
    plan_neighbours(desired, observed, &mut before, &mut after);
    let wanted = elements(config, desired, observed.mesh.as_ref());
    let present = present_elements(observed);
    if !observed.shape.intact(&firewall::host::HOST) {
        before.push(Operation::BuildRules(observed.shape.clone()));
    }
    before.extend(present.difference(&wanted).cloned().map(Operation::RemoveElement));
    before.extend(wanted.difference(&present).cloned().map(Operation::AddElement));
    after.sort_by_key(|operation| matches!(operation, Operation::ForgetAddress { .. }));
    before.extend(after);
    before
}

/// The operations in the namespace of the overlays.
fn plan_overlay(config: &NetworkConfig, desired: &NodeNetwork, observed: &Observed) -> Vec<Operation> {
    let step = |action| Operation::Overlay(Step(action));
    let Some((overlay, mesh)) = desired.overlay.as_ref().zip(observed.mesh.as_ref()) else {
        return if observed.overlay.exists { vec![step(Action::Disconnect)] } else { Vec::new() };
    };
    let locals = desired.locals();
    let pieces = fabric::pieces(config, overlay, &locals, mesh.uplink);
    let found = &observed.overlay;
    let connected = found.connected && found.uplink.map(|uplink| uplink.host) == Some(mesh.uplink.host);
    let connect = (!connected).then(|| step(Action::Connect(mesh.uplink)));
    let steps = crate::overlay::plan::plan(config, &pieces, &locals, found);
    connect.into_iter().chain(steps.into_iter().map(Operation::Overlay)).collect()
}

/// All elements that the host's own tables should have.
pub(crate) fn elements(
    config: &NetworkConfig,
    desired: &NodeNetwork,
    mesh: Option<&Mesh>,
) -> BTreeSet<Element> {
    let mut elements = firewall::elements(config, desired);
    if let Some((overlay, mesh)) = desired.overlay.as_ref().zip(mesh) {
        elements.extend(firewall::mesh_elements(config, overlay, mesh.uplink, &mesh.busy));
        for local in desired.locals() {
            elements.extend(firewall::local_elements(mesh.uplink, &local));
        }
    }
    elements
}

/// The elements that survive a rebuilding of the rules.
fn present_elements(observed: &Observed) -> BTreeSet<Element> {
    observed.elements.iter().filter(|element| observed.shape.keeps(element)).cloned().collect()
}

fn remove_surplus(
    config: &NetworkConfig,
    desired: &NodeNetwork,
    observed: &Observed,
    before: &mut Vec<Operation>,
    after: &mut Vec<Operation>,
) {
    let wanted: BTreeSet<String> = desired
        .networks
        .iter()
        .map(|network| network.bridge.clone())
        .chain(desired.endpoints.iter().map(|endpoint| config.link_name(&endpoint.id)))
        .collect();
    let addresses: BTreeSet<Ipv4Addr> = desired.endpoints.iter().map(|endpoint| endpoint.address).collect();
    // Containers' links before bridges, so that a bridge is empty when it goes.
    for veths in [true, false] {
        for (name, link) in &observed.links {
            if (link.kind == "veth") != veths || wanted.contains(name) || !is_ours(config, name, link) {
                continue;
            }
            before.push(Operation::RemoveLink { link: name.clone() });
            let gone = link.alias.as_deref().and_then(|alias| config.endpoint_of_alias(alias));
            if let Some((_, address)) = gone.filter(|(_, address)| !addresses.contains(address)) {
                after.push(Operation::ForgetAddress { address: address.into() });
            }
        }
    }
}

/// Whom bridges are told of, once they are as they should be: one that is made anew, or set anew, has forgotten.
fn plan_neighbours(
    desired: &NodeNetwork,
    observed: &Observed,
    before: &mut Vec<Operation>,
    after: &mut Vec<Operation>,
) {
    let forgetful: BTreeSet<&String> = before
        .iter()
        .filter_map(|operation| match operation {
            Operation::CreateBridge { bridge, .. }
            | Operation::SettleBridge { bridge, .. }
            | Operation::SetBridge { bridge, .. } => Some(bridge),
            _ => None,
        })
        .collect();
    let present: BTreeSet<_> =
        observed.neighbours.iter().filter(|(bridge, ..)| !forgetful.contains(bridge)).collect();
    let told = |endpoint: &Endpoint| {
        let network = desired.network(&endpoint.network)?;
        Some((network.bridge.clone(), endpoint.address6(network)?, endpoint.mac()))
    };
    let wanted: BTreeSet<_> = desired.endpoints.iter().filter_map(told).collect();
    let mut operations = Vec::new();
    for (link, address, _) in present.iter().filter(|one| !wanted.contains(**one)) {
        if !wanted.iter().any(|(of, at, _)| (of, at) == (link, address)) {
            operations.push(Operation::RemoveNeighbour { link: link.clone(), address: *address });
            after.push(Operation::ForgetAddress { address: (*address).into() });
        }
    }
    let missing = wanted.iter().filter(|one| !present.contains(one)).cloned();
    operations.extend(missing.map(|(link, address, mac)| Operation::AddNeighbour { link, address, mac }));
    before.extend(operations);
}

/// A link that carries our mark, or a veth under our name that a crash kept from getting it.
fn is_ours(config: &NetworkConfig, name: &str, link: &ObservedLink) -> bool {
    match &link.alias {
        Some(alias) => config.is_ours(alias),
        None => {
            let hashed = name.len() == config.link_name("").len() && name.starts_with(&config.link_prefix);
            link.kind == "veth" && hashed && !link.up
        }
    }
}

/// The operations on one network's bridge.
pub(crate) fn plan_network(
    config: &NetworkConfig,
    network: &BridgeNetwork,
    found: Option<&ObservedLink>,
) -> Vec<Operation> {
    let mut operations = Vec::new();
    let bridge = &network.bridge;
    let mac = Mac::from_address(network.gateway);
    let alias = config.network_alias(&network.id);
    // A bridge of that name that is another's makes the kernel refuse the creation: the error then names it.
    let usable = |link: &&ObservedLink| {
        link.kind == "bridge" && link.alias.as_ref().is_none_or(|alias| config.is_ours(alias))
    };
    let found = found.filter(usable);
    if found.is_none() {
        operations.push(Operation::CreateBridge { bridge: bridge.clone(), mac });
    }
    // Before it comes up, as it gives itself an address else, and asks for routers. The other addresses go with it.
    let settled = found.filter(|link| {
        link.route_localnet && link.ipv6 == network.ipv6.map(|_| true) && link.answers == network.separate
    });
    if settled.is_none() {
        let (ipv6, answers) = (network.ipv6.is_some(), network.separate);
        operations.push(Operation::SettleBridge { bridge: bridge.clone(), ipv6, answers });
    }
    let set = found.is_some_and(|link| {
        link.up
            && link.mac == Some(mac)
            && link.alias.as_ref() == Some(&alias)
            && network.mtu.is_none_or(|mtu| link.mtu == mtu)
    });
    if !set {
        operations.push(Operation::SetBridge { bridge: bridge.clone(), mac, alias, mtu: network.mtu });
    }
    let surplus = found.into_iter().flat_map(|link| &link.addresses).copied();
    let surplus = surplus.filter(|found| Some(*found) != network.ipv4());
    operations.extend(surplus.map(|address| Operation::RemoveAddress { link: bridge.clone(), address }));
    let missing = network.ipv4().filter(|own| found.is_none_or(|link| !link.addresses.contains(own)));
    operations.extend(missing.map(|address| Operation::AddAddress { link: bridge.clone(), address }));
    let surplus = settled.into_iter().flat_map(|link| &link.addresses6).copied();
    let surplus = surplus.filter(|found| Some(*found) != network.ipv6);
    operations.extend(surplus.map(|address| Operation::RemoveAddress6 { link: bridge.clone(), address }));
    let missing = network.ipv6.filter(|own| settled.is_none_or(|link| !link.addresses6.contains(own)));
    operations.extend(missing.map(|address| Operation::AddAddress6 { link: bridge.clone(), address }));
    operations
}

/// What an endpoint needs, before and after the firewall is changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct EndpointSteps {
    pub before: Vec<Operation>,
    pub after: Vec<Operation>,
}

/// The operations on one endpoint's veth pair.
pub(crate) fn plan_endpoint(
    config: &NetworkConfig,
    network: &BridgeNetwork,
    endpoint: &Endpoint,
    link: Option<&ObservedLink>,
    inside: Option<&Inside>,
) -> EndpointSteps {
    let mut steps = EndpointSteps::default();
    let name = config.link_name(&endpoint.id);
    let alias = config.endpoint_alias(endpoint);
    let out = endpoint.default_route && !network.internal;
    let address = network.ipv4().map(|_| endpoint.cidr());
    let gateway = address.and(out.then_some(endpoint.gateway));
    let (mtu, isolated) = (network.mtu, network.separate);
    // Both ends must be there, belong together, and carry the right MAC; else the pair is made anew.
    let pair = link.zip(inside).filter(|(link, inside)| {
        link.kind == "veth" && link.peer == Some(inside.index) && inside.mac == Some(endpoint.mac())
    });
    if pair.is_none() {
        if link.is_some() {
            steps.before.push(Operation::RemoveLink { link: name.clone() });
        }
        let (link, endpoint) = (name.clone(), endpoint.clone());
        steps.before.push(Operation::CreateVeth { link, endpoint, mtu });
    }
    let configured = pair.is_some_and(|(_, inside)| {
        inside.is_configured(address, gateway) && mtu.is_none_or(|mtu| inside.mtu == mtu)
    });
    if !configured {
        let endpoint = endpoint.clone();
        steps.before.push(Operation::ConfigureInside { endpoint, address, gateway, mtu });
    }
    let wanted6 = endpoint
        .address6(network)
        .zip(network.ipv6)
        .map(|(own, gateway6)| Inside6::new(own, gateway6, Mac::from_address(network.gateway), out));
    if let Some(inside6) = wanted6
        && pair.is_none_or(|(_, inside)| !inside6.is_in(&inside.ipv6))
    {
        steps.before.push(Operation::ConfigureInside6 { endpoint: endpoint.clone(), inside: inside6 });
    }
    let in_place = pair.is_some_and(|(link, _)| {
        link.up
            && link.hairpin
            && link.isolated == isolated
            && mtu.is_none_or(|mtu| link.mtu == mtu)
            && link.master.as_ref() == Some(&network.bridge)
            && link.alias.as_ref() == Some(&alias)
    });
    if !in_place {
        let (link, bridge) = (name, network.bridge.clone());
        steps.after.push(Operation::SetVeth { link, bridge, alias, mtu, isolated });
    }
    steps
}

#[cfg(test)]
mod tests;
