//! Of which pieces of kernel state the overlays consist. Pure.
//!
//! A [`Piece`] is one thing in the helper namespace that is there or is not. What should be, and what was found, are
//! both sets of pieces; so are the differences between two [`Overlay`]s, which cost what changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use super::model::{
    NEXT_HOPS_PREFIX_LEN, Overlay, OverlayNetwork, PublishedPort, VirtualService, bridge_name, next_hop,
    next_hop6, node_mac, vxlan_name,
};
use crate::{
    firewall::{
        Backends, Balancer, Element, Set,
        helper::{OWN_MARK, PUBLISHED, PUBLISHED6, SERVICE, SERVICE6, UPLINK},
    },
    model::{Cidr, Cidr6, Endpoint, Mac, NetworkConfig, Protocol},
    netlink::{
        forwarding::{MarkRule, Stranger},
        route::Tunnel,
    },
    wireguard::{PrivateKey, PublicKey, VXLAN, WIREGUARD, inner_address},
};

/// Routes of a connection from node N are in this table plus N.
const TABLES: u32 = 1000;
const MAIN_TABLE: u32 = libc::RT_TABLE_MAIN as u32;
const MAIN_PRIORITY: u32 = 100;
const PIN_PRIORITY: u32 = 1000;

/// One thing in the helper namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Piece {
    /// `sound`, here and below, is false of one that was found with other settings.
    Bridge {
        name: String,
        mac: Mac,
        addresses: BTreeSet<Cidr>,
        mtu: u32,
        sound: bool,
    },
    Vxlan {
        name: String,
        tunnel: Tunnel,
        mtu: u32,
        sound: bool,
    },
    /// The IPv6 address of a bridge.
    Address {
        link: String,
        address: Cidr6,
    },
    /// The link that encrypts, with the addresses of this node.
    Tunnel {
        node: u16,
        mtu: u32,
        port: u16,
        sound: bool,
    },
    TunnelKey(PrivateKey),
    /// Whoever has `key` may send from `address` and is sent what is for it. Where it is, is only how it begins.
    TunnelPeer {
        key: PublicKey,
        address: Ipv4Addr,
        endpoint: SocketAddrV4,
    },
    Neighbour {
        link: String,
        address: IpAddr,
        mac: Mac,
        sound: bool,
    },
    Forward {
        link: String,
        mac: Mac,
        to: Option<Ipv4Addr>,
        sound: bool,
    },
    /// A default route.
    Route {
        table: u32,
        via: IpAddr,
        link: String,
    },
    Rule(MarkRule),
    /// Never wanted.
    Stranger(Stranger),
    Element(Element),
    Balancer(Balancer),
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { name, .. } => write!(f, "bridge `{name}`"),
            Self::Vxlan { name, .. } => write!(f, "vxlan `{name}`"),
            Self::Address { link, address } => write!(f, "address {address} of `{link}`"),
            Self::Tunnel { .. } => write!(f, "link `{WIREGUARD}`"),
            Self::TunnelKey(_) => write!(f, "key of `{WIREGUARD}`"),
            Self::TunnelPeer { key, address, .. } => {
                write!(f, "peer {address} of `{WIREGUARD}` with key {key}")
            }
            Self::Neighbour { link, address, mac, .. } => {
                write!(f, "neighbour {address} at {mac} on `{link}`")
            }
            Self::Forward { link, mac, to: None, .. } => write!(f, "forwarding of {mac} to `{link}`"),
            Self::Forward { link, mac, to: Some(to), .. } => {
                write!(f, "forwarding of {mac} by `{link}` to {to}")
            }
            Self::Route { table, via, link } => {
                write!(f, "default route of table {table} via {via} on `{link}`")
            }
            Self::Rule(MarkRule { mark, mask, table, ipv6, .. }) => {
                let family = if *ipv6 { "IPv6 " } else { "" };
                write!(f, "{family}rule of mark {mark:#x}/{mask:#x} to table {table}")
            }
            Self::Stranger(stranger) => stranger.fmt(f),
            Self::Element(element) => write!(f, "nft element: {element}"),
            Self::Balancer(balancer) => write!(f, "nft {balancer}"),
        }
    }
}

/// What two pieces that cannot be at once have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Link(String),
    Address(String, Cidr6),
    Neighbour(String, IpAddr),
    Forward(String, Mac, bool),
    /// Its family too.
    Route(u32, bool),
    Rule(MarkRule),
    Chain(String),
    TunnelKey,
    TunnelPeer(PublicKey),
}

impl Piece {
    /// `None` of elements, which make room within the transaction.
    pub(super) fn place(&self) -> Option<Place> {
        Some(match self {
            Self::Bridge { name, .. } | Self::Vxlan { name, .. } => Place::Link(name.clone()),
            Self::Address { link, address } => Place::Address(link.clone(), *address),
            Self::Neighbour { link, address, .. } => Place::Neighbour(link.clone(), *address),
            Self::Forward { link, mac, to, .. } => Place::Forward(link.clone(), *mac, to.is_some()),
            Self::Route { table, via, .. } => Place::Route(*table, via.is_ipv6()),
            Self::Rule(rule) => Place::Rule(*rule),
            Self::Balancer(balancer) => Place::Chain(balancer.chain.clone()),
            Self::Tunnel { .. } => Place::Link(WIREGUARD.to_owned()),
            Self::TunnelKey(_) => Place::TunnelKey,
            Self::TunnelPeer { key, .. } => Place::TunnelPeer(*key),
            Self::Element(_) | Self::Stranger(_) => return None,
        })
    }

    /// The link that takes the piece along when it goes.
    pub(crate) fn link(&self) -> Option<&str> {
        match self {
            Self::Address { link, .. }
            | Self::Neighbour { link, .. }
            | Self::Forward { link, .. }
            | Self::Route { link, .. } => Some(link),
            Self::TunnelKey(_) | Self::TunnelPeer { .. } => Some(WIREGUARD),
            _ => None,
        }
    }

    /// The bridge that the piece is.
    pub(super) fn bridge(&self) -> Option<&str> {
        if let Self::Bridge { name, .. } = self { Some(name) } else { None }
    }

    /// The link that the piece is.
    pub(super) fn is_link(&self) -> Option<&str> {
        match self {
            Self::Bridge { name, .. } | Self::Vxlan { name, .. } => Some(name),
            Self::Tunnel { .. } => Some(WIREGUARD),
            _ => None,
        }
    }
}

/// The addresses of the veth between the host and the helper: of each end, both in one /30.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uplink {
    pub(crate) host: Ipv4Addr,
    pub(crate) helper: Ipv4Addr,
    /// Whether the host has IPv6 addresses of its own, so that there is a way out.
    pub(crate) ipv6: bool,
}

impl Uplink {
    pub(crate) const PREFIX_LEN: u8 = 30;

    /// Of the two ends. Neither asks for the other by IPv6: who forwards for others would need a link-local address for that.
    pub(crate) const HOST_MAC: Mac = Mac([0x02, 0x53, 0, 0, 0, 1]);
    pub(crate) const HELPER_MAC: Mac = Mac([0x02, 0x53, 0, 0, 0, 2]);

    /// The same in IPv6, of a prefix made for this (RFC 4193), so that no host has another use for it.
    pub(crate) const HOST6: Cidr6 =
        Cidr { address: Ipv6Addr::new(0xfd5c, 0x9a1e, 0x3b72, 0, 0, 0, 0, 1), prefix_len: 126 };
    pub(crate) const HELPER6: Cidr6 =
        Cidr { address: Ipv6Addr::new(0xfd5c, 0x9a1e, 0x3b72, 0, 0, 0, 0, 2), prefix_len: 126 };

    /// The /30s to choose from, none of which next hops use.
    pub(crate) fn candidates() -> impl Iterator<Item = Self> {
        (64..=127).rev().map(|third| Self {
            host: Ipv4Addr::new(169, 254, third, 1),
            helper: Ipv4Addr::new(169, 254, third, 2),
            ipv6: false,
        })
    }
}

/// A task of this node on an overlay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local<'a> {
    /// This node's number.
    pub node: u16,
    pub vni: u32,
    pub network: &'a OverlayNetwork,
    pub endpoint: &'a Endpoint,
}

impl Local<'_> {
    /// The address inside, with the network's prefix.
    pub fn cidr(&self) -> Cidr {
        Cidr { address: self.endpoint.address, prefix_len: self.network.prefix_len }
    }
}

/// The pieces of the namespace itself in one family, in which the host has this address.
fn base_pieces(host: IpAddr) -> [Piece; 4] {
    let ipv6 = host.is_ipv6();
    let rule = |priority, mark, table| Piece::Rule(MarkRule { ipv6, priority, mark, mask: OWN_MARK, table });
    let route = |table| Piece::Route { table, via: host, link: UPLINK.into() };
    [
        route(MAIN_TABLE),
        route(TABLES + OWN_MARK),
        // Most packets bear no mark: they shall not look at a rule for each node.
        rule(MAIN_PRIORITY, 0, MAIN_TABLE),
        rule(PIN_PRIORITY + OWN_MARK, OWN_MARK, TABLES + OWN_MARK),
    ]
}

fn network_pieces(overlay: &Overlay, vni: u32, network: &OverlayNetwork) -> Vec<Piece> {
    let bridge = bridge_name(vni);
    let own = Cidr { address: next_hop(overlay.node), prefix_len: NEXT_HOPS_PREFIX_LEN };
    let own = network.ingress.then_some(own);
    let ipv4 = Some(network.cidr()).filter(|_| !network.ipv6_only);
    let mut pieces = vec![
        Piece::Bridge {
            name: bridge.clone(),
            mac: node_mac(overlay.node),
            addresses: ipv4.into_iter().chain(own).collect(),
            mtu: network.mtu,
            sound: true,
        },
        Piece::Element(if network.ingress {
            Element::link(Set::Ingress, &bridge)
        } else {
            Element::within(&bridge)
        }),
    ];
    let gateway = ipv4.map(|cidr| Element::address_of(Set::Gateways, &bridge, cidr.address.into()));
    pieces.extend(gateway.map(Piece::Element));
    if !network.internal {
        pieces.push(Piece::Element(Element::link(Set::Outbound, &bridge)));
    }
    if let Some(address) = network.ipv6 {
        pieces.push(Piece::Element(Element::address_of(Set::Gateways, &bridge, address.address.into())));
        pieces.push(Piece::Address { link: bridge, address });
    }
    let local = match network.encrypted {
        true => overlay.tunnel().map(|end| inner_address(overlay.node, end.place)),
        false => Some(overlay.source()),
    };
    // Without a tunnel the network is that of this node alone, rather than one in the clear.
    pieces.extend(local.map(|local| {
        let tunnel = Tunnel { vni, local, port: overlay.data_path_port };
        Piece::Vxlan { name: vxlan_name(vni), tunnel, mtu: network.mtu, sound: true }
    }));
    pieces
}

/// What it takes that encrypted networks reach other nodes: the link, and as peers those who have tasks on them.
fn tunnel_pieces(overlay: &Overlay, reach: &Reach) -> BTreeSet<Piece> {
    let Some(end) = overlay.tunnel() else { return BTreeSet::new() };
    let encrypted = |vni: &u32| overlay.networks.get(vni).is_some_and(|network| network.encrypted);
    let widest = overlay.networks.values().filter(|network| network.encrypted).map(|network| network.mtu);
    let mut pieces = BTreeSet::from([
        Piece::Tunnel {
            node: overlay.node,
            mtu: widest.max().unwrap_or_default() + VXLAN,
            port: end.port,
            sound: true,
        },
        Piece::TunnelKey(end.key),
        Piece::Element(Element::tunnel(overlay.data_path_port)),
    ]);
    let nodes: BTreeSet<u16> =
        reach.keys().filter(|(vni, _)| encrypted(vni)).map(|(_, node)| *node).collect();
    for node in nodes {
        let (Some(address), Some(peer)) = (overlay.peers.get(&node), overlay.keys.get(&node)) else {
            continue;
        };
        let endpoint = SocketAddrV4::new(*address, end.port);
        // Also by the key that it will go over to, so that it can do so at any time.
        pieces.extend([0, 1].iter().zip(peer.keys).filter_map(|(place, key)| {
            Some(Piece::TunnelPeer { key: key?, address: inner_address(node, *place), endpoint })
        }));
    }
    pieces
}

/// What it takes that frames for a node find it.
fn reach_pieces(vni: u32, number: u16, address: Ipv4Addr) -> [Piece; 2] {
    let (link, mac) = (vxlan_name(vni), node_mac(number));
    [
        Piece::Forward { link: link.clone(), mac, to: Some(address), sound: true },
        Piece::Forward { link, mac, to: None, sound: true },
    ]
}

/// What it takes that connections from a node are answered by it.
fn peer_pieces(ingress: u32, network: &OverlayNetwork, number: u16) -> Vec<Piece> {
    let (bridge, mark, mac) = (bridge_name(ingress), u32::from(number), node_mac(number));
    let mut pieces = vec![Piece::Element(Element::node(mac, number))];
    let hops = [IpAddr::from(next_hop(number))].into_iter();
    for via in hops.chain(network.ipv6.map(|_| next_hop6(number).into())) {
        let (ipv6, table, priority) = (via.is_ipv6(), TABLES + mark, PIN_PRIORITY + mark);
        pieces.extend([
            Piece::Neighbour { link: bridge.clone(), address: via, mac, sound: true },
            Piece::Route { table, via, link: bridge.clone() },
            Piece::Rule(MarkRule { ipv6, priority, mark, mask: OWN_MARK, table }),
        ]);
    }
    pieces
}

/// What it takes that an endpoint is found; `direct` leads there past routing, where that is allowed.
fn endpoint_pieces(
    vni: u32,
    network: &OverlayNetwork,
    address: Ipv4Addr,
    mac: Mac,
    direct: Option<Element>,
) -> Vec<Piece> {
    let pieces = |address| {
        let link = bridge_name(vni);
        let member = Piece::Element(Element::address(Set::Members, &link, address));
        [Piece::Neighbour { link, address, mac, sound: true }, member]
    };
    network.both(address).flat_map(pieces).chain(direct.map(Piece::Element)).collect()
}

fn service_pieces(
    vni: u32,
    network: &OverlayNetwork,
    address: Ipv4Addr,
    service: &VirtualService,
) -> Vec<Piece> {
    if service.backends.is_empty() {
        return Vec::new();
    }
    let pieces = |address: IpAddr| {
        let prefix = if address.is_ipv6() { SERVICE6 } else { SERVICE };
        let chain = format!("{prefix}{}-{vni}", service.id);
        let element = Element::service(&bridge_name(vni), address, &chain);
        let all = service.backends.iter().flat_map(|backend| network.both(*backend));
        let backends = Backends::Hosts(all.filter(|at| at.is_ipv6() == address.is_ipv6()).collect());
        [Piece::Balancer(Balancer { chain, backends }), Piece::Element(element)]
    };
    network.both(address).flat_map(pieces).collect()
}

/// `network` is the one that the backends are on.
fn published_pieces(
    network: Option<&OverlayNetwork>,
    (protocol, port): (Protocol, u16),
    target: u16,
    backends: &BTreeSet<Ipv4Addr>,
) -> Vec<Piece> {
    let pieces = |set, prefix, backends: BTreeSet<IpAddr>| {
        let chain = format!("{prefix}{protocol}-{port}");
        let element = Element::mesh(set, protocol, port, &chain);
        let backends = Backends::Port(protocol, target, backends);
        [Piece::Balancer(Balancer { chain, backends }), Piece::Element(element)]
    };
    let all =
        |at: &Ipv4Addr| network.map_or_else(|| vec![(*at).into()], |network| network.both(*at).collect());
    let (twins, ipv4): (BTreeSet<_>, BTreeSet<_>) = backends.iter().flat_map(all).partition(IpAddr::is_ipv6);
    let families = [(Set::Mesh, PUBLISHED, ipv4), (Set::Mesh6, PUBLISHED6, twins)];
    let families = families.into_iter().filter(|(.., backends)| !backends.is_empty());
    families.flat_map(|(set, prefix, backends)| pieces(set, prefix, backends)).collect()
}

/// What it takes that only some services may connect to a task.
fn restricted_pieces(
    (vni, network): (u32, &OverlayNetwork),
    address: Ipv4Addr,
    callers: &BTreeSet<u32>,
) -> Vec<Piece> {
    let link = bridge_name(vni);
    let pieces = |address| {
        let allowed = callers.iter().map(|service| Element::allowed(&link, address, *service));
        let all = allowed.chain([Element::address(Set::Restricted, &link, address)]);
        all.map(Piece::Element).collect::<Vec<_>>()
    };
    network.both(address).flat_map(pieces).collect()
}

/// What it takes that a task is known as one of a service that may connect to such.
fn caller_pieces((vni, network): (u32, &OverlayNetwork), address: Ipv4Addr, service: u32) -> Vec<Piece> {
    let link = bridge_name(vni);
    let all = network.both(address).map(|address| Element::caller(&link, address, service));
    all.map(Piece::Element).collect()
}

/// The pieces of a task of this node, but for its link.
pub(crate) fn local_pieces(config: &NetworkConfig, local: &Local<'_>) -> BTreeSet<Piece> {
    let endpoint = local.endpoint;
    let (link, address, mac) = (config.link_name(&endpoint.id), endpoint.address, endpoint.mac());
    let direct = local.network.is_switched().then(|| Element::here(&vxlan_name(local.vni), address, mac));
    let pieces = endpoint_pieces(local.vni, local.network, address, mac, direct);
    let mut pieces = BTreeSet::from_iter(pieces);
    let elements = [Element::link(Set::Ports, &link), Element::mac(&link, mac)];
    pieces.extend(elements.map(Piece::Element));
    for address in local.network.both(address) {
        let elements = [Element::source(&link, mac, address), Element::hairpin(address)];
        pieces.extend(elements.map(Piece::Element));
    }
    pieces.insert(Piece::Forward { link, mac, to: None, sound: true });
    for port in &endpoint.ports {
        let backends = BTreeSet::from([address]);
        let key = (port.protocol, port.published);
        pieces.extend(published_pieces(Some(local.network), key, port.target, &backends));
    }
    pieces
}

/// For each network and node: whether frames go there, and its address.
type Reach = BTreeMap<(u32, u16), Ipv4Addr>;

/// Bits for every node number, in words of 64.
const NODE_WORDS: usize = (OWN_MARK as usize + 1) / 64;

fn reach(overlay: &Overlay) -> Reach {
    // Endpoints come by network, and there are few nodes: a bit for each.
    let mut tasks: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut last: Option<(u32, Vec<u64>)> = None;
    for ((vni, _), node) in &overlay.endpoints {
        if last.as_ref().is_none_or(|(of, _)| of != vni) {
            tasks.extend(last.replace((*vni, vec![0; NODE_WORDS])));
        }
        if let Some(word) = last.as_mut().and_then(|(_, bits)| bits.get_mut(usize::from(*node / 64))) {
            *word |= 1 << (node % 64);
        }
    }
    tasks.extend(last);
    let numbers = |bits: Vec<u64>| {
        (0..=OWN_MARK as u16).filter(move |n| bits[usize::from(n / 64)] >> (n % 64) & 1 != 0)
    };
    let tasks = tasks.into_iter().flat_map(|(vni, bits)| numbers(bits).map(move |node| (vni, node)));
    // Replies to a connection from the mesh go to the node by which it came, tasks or not.
    let mesh =
        overlay.ingress().into_iter().flat_map(|vni| overlay.peers.keys().map(move |node| (vni, *node)));
    let known = |(vni, node)| Some(((vni, node), overlay.address_for(vni, node)?));
    tasks.chain(mesh).filter_map(known).collect()
}

/// All that should be in the helper namespace, but for the links of this node's tasks.
pub(crate) fn pieces(
    config: &NetworkConfig,
    overlay: &Overlay,
    locals: &[Local<'_>],
    uplink: Uplink,
) -> BTreeSet<Piece> {
    let mut pieces = BTreeSet::from(base_pieces(uplink.host.into()));
    if overlay.has_ipv6() {
        let (link, address) = (UPLINK.to_owned(), Uplink::HOST6.address.into());
        pieces.insert(Piece::Neighbour { link, address, mac: Uplink::HOST_MAC, sound: true });
        let base = base_pieces(Uplink::HOST6.address.into());
        let out = |piece: &Piece| matches!(piece, Piece::Route { table: MAIN_TABLE, .. });
        pieces.extend(base.into_iter().filter(|piece| uplink.ipv6 || !out(piece)));
    }
    let (_, come) = changes(&Overlay { networks: BTreeMap::new(), ..blank(overlay) }, overlay);
    pieces.extend(come);
    for local in locals {
        pieces.extend(local_pieces(config, local));
    }
    pieces
}

/// The same node without any network or task.
fn blank(overlay: &Overlay) -> Overlay {
    let Overlay { node, source, data_path_port, tunnel, .. } = *overlay;
    Overlay { node, source, data_path_port, tunnel, ..Overlay::default() }
}

/// Where two maps differ: key, value in the first, value in the second.
fn differing<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return None,
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            let (a, b) = (before.map(|(_, value)| value), after.map(|(_, value)| value));
            if a != b {
                return before.or(after).map(|(key, _)| (key, a, b));
            }
        }
    })
}

/// Whether the step from one to the other is too deep for [`changes`]: all must be compared with the kernel then.
pub(crate) fn is_deep(old: &Overlay, new: &Overlay) -> bool {
    blank(old) != blank(new)
        || old.has_ipv6() != new.has_ipv6()
        || old.ingress() != new.ingress()
        || differing(&old.networks, &new.networks).any(|(_, a, b)| a.is_some() && b.is_some())
}

/// The pieces to remove and to add when `old` becomes `new`.
pub(crate) fn changes(old: &Overlay, new: &Overlay) -> (Vec<Piece>, Vec<Piece>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (vni, a, b) in differing(&old.networks, &new.networks) {
        gone.extend(a.into_iter().flat_map(|network| network_pieces(old, *vni, network)));
        come.extend(b.into_iter().flat_map(|network| network_pieces(new, *vni, network)));
    }
    let (reached, reaches) = (reach(old), reach(new));
    gone.extend(tunnel_pieces(old, &reached));
    come.extend(tunnel_pieces(new, &reaches));
    for ((vni, node), a, b) in differing(&reached, &reaches) {
        gone.extend(a.into_iter().flat_map(|address| reach_pieces(*vni, *node, *address)));
        come.extend(b.into_iter().flat_map(|address| reach_pieces(*vni, *node, *address)));
    }
    let pinned = |overlay: &Overlay, number: u16| {
        let ingress =
            overlay.ingress().filter(|_| number != overlay.node && overlay.peers.contains_key(&number));
        let network = ingress.and_then(|vni| network_of(overlay, vni));
        network.map(|(vni, network)| peer_pieces(vni, network, number)).into_iter().flatten()
    };
    if old.ingress() == new.ingress() {
        for (number, a, b) in differing(&old.peers, &new.peers) {
            if a.is_none() || b.is_none() {
                gone.extend(pinned(old, *number));
                come.extend(pinned(new, *number));
            }
        }
    } else {
        gone.extend(old.peers.keys().flat_map(|number| pinned(old, *number)));
        come.extend(new.peers.keys().flat_map(|number| pinned(new, *number)));
    }
    let remote = |overlay: &Overlay, (vni, address): &(u32, Ipv4Addr), node: &u16| {
        let known = *node != overlay.node && overlay.peers.contains_key(node);
        let (_, network) = network_of(overlay, *vni).filter(|_| known)?;
        let mac = node_mac(*node);
        let direct = network.is_switched().then(|| Element::elsewhere(*address, mac));
        Some(endpoint_pieces(*vni, network, *address, mac, direct))
    };
    let service = |overlay: &Overlay, (vni, address): &(u32, Ipv4Addr), service: &VirtualService| {
        Some(service_pieces(*vni, network_of(overlay, *vni)?.1, *address, service))
    };
    let published = |overlay: &Overlay, key: &(Protocol, u16), to: &PublishedPort| {
        let network = overlay.ingress().and_then(|vni| network_of(overlay, vni));
        Some(published_pieces(network.map(|(_, network)| network), *key, to.target, &to.backends))
    };
    let restricted = |overlay: &Overlay, (vni, address): &(u32, Ipv4Addr), callers: &BTreeSet<u32>| {
        Some(restricted_pieces(network_of(overlay, *vni)?, *address, callers))
    };
    let caller = |overlay: &Overlay, (vni, address): &(u32, Ipv4Addr), service: &u32| {
        Some(caller_pieces(network_of(overlay, *vni)?, *address, *service))
    };
    // A node or network that comes or goes takes along what is on it, whether that is listed before or not.
    let networks = old.networks.keys().eq(new.networks.keys());
    let nodes = networks && old.peers.keys().eq(new.peers.keys());
    let ports = old.published_by_ipv6() == new.published_by_ipv6();
    let mut change = (gone, come);
    entries(&mut change, (old, &old.endpoints), (new, &new.endpoints), nodes, remote);
    entries(&mut change, (old, &old.services), (new, &new.services), networks, service);
    entries(&mut change, (old, &old.published), (new, &new.published), ports, published);
    entries(&mut change, (old, &old.restricted), (new, &new.restricted), networks, restricted);
    entries(&mut change, (old, &old.callers), (new, &new.callers), networks, caller);
    let (mut gone, mut come) = change;
    // What both have (an element whose chain alone changed) stays.
    let both: BTreeSet<Piece> = {
        let before: BTreeSet<&Piece> = gone.iter().collect();
        come.iter().filter(|piece| before.contains(piece)).cloned().collect()
    };
    gone.retain(|piece| !both.contains(piece));
    come.retain(|piece| !both.contains(piece));
    (gone, come)
}

fn network_of(overlay: &Overlay, vni: u32) -> Option<(u32, &OverlayNetwork)> {
    Some((vni, overlay.networks.get(&vni)?))
}

/// Adds to those gone and come what one map asks for before and after. Where they stand on the `same_ground`, entries that
/// are equal ask for the same, and only the others are looked at.
fn entries<K: Ord, V: PartialEq>(
    (gone, come): &mut (Vec<Piece>, Vec<Piece>),
    (old, before): (&Overlay, &BTreeMap<K, V>),
    (new, after): (&Overlay, &BTreeMap<K, V>),
    same_ground: bool,
    pieces: impl Fn(&Overlay, &K, &V) -> Option<Vec<Piece>>,
) {
    if same_ground {
        for (key, a, b) in differing(before, after) {
            gone.extend(a.and_then(|value| pieces(old, key, value)).into_iter().flatten());
            come.extend(b.and_then(|value| pieces(new, key, value)).into_iter().flatten());
        }
    } else {
        gone.extend(before.iter().filter_map(|(key, value)| pieces(old, key, value)).flatten());
        come.extend(after.iter().filter_map(|(key, value)| pieces(new, key, value)).flatten());
    }
}

/// Addresses of tasks elsewhere that are no more, or are at another node.
pub(crate) fn left(old: &Overlay, new: &Overlay) -> BTreeSet<IpAddr> {
    let left = differing(&old.endpoints, &new.endpoints).filter(|(_, a, _)| a.is_some());
    let both = |(vni, address): &(u32, Ipv4Addr)| Some(network_of(old, *vni)?.1.both(*address));
    left.filter_map(|(key, _, _)| both(key)).flatten().collect()
}

#[cfg(test)]
mod tests;
