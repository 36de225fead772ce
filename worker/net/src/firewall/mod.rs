//! The node's own nft tables: what is in them ([`host`], [`helper`]), their elements, and how they travel ([`message`]).
//!
//! The rules never change while a daemon lives; what changes with networks and endpoints are elements of sets and
//! maps, and one chain for each service of an overlay. So an endpoint that comes or goes costs a handful of elements in one transaction, whatever the node carries.

mod expression;
pub(crate) mod helper;
pub(crate) mod host;
mod learned;
pub(crate) mod message;
pub(crate) mod reading;
pub(crate) mod rules;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::model::{BridgeNetwork, Endpoint, HostPort, Ip, Mac, NetworkConfig, NodeNetwork, Place, Protocol};
use crate::overlay::{
    Overlay,
    fabric::{Local, Uplink},
};

/// The sets and maps, by what an element means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// `inet`: names of our bridges.
    Bridges,
    /// `inet`: bridges whose containers take the node's address on the way out.
    Masqueraded,
    /// `inet`: bridges of internal networks.
    Internal,
    /// `inet`: bridge in and bridge out, equal: traffic that stays on its bridge, where containers reach each other.
    Within,
    /// `inet`: bridge and an address on it: a container's, and the gateway's on an internal one.
    Members,
    /// `inet`: bridge and an IPv6 address on it.
    Members6,
    /// `inet`: protocol and port of the node, to address and port of a container.
    Published,
    /// `inet`: the same, for IPv6 addresses.
    Published6,
    /// `inet`: address, protocol and port of the node, to address and port.
    Bound,
    Bound6,
    /// `inet`: interface of the node by which something came, protocol and port, to address and port.
    Entered,
    /// `inet`: the same, for IPv6 addresses.
    Entered6,
    /// `inet`: link to the overlays, to the address of the node that its own traffic takes there.
    Uplinks,
    /// `inet`: protocol and port of nodes that containers must not reach.
    Guarded,
    /// `inet`: addresses of the other nodes.
    Peers,
    Peers6,
    /// `inet`: the UDP ports of the tunnels to other nodes.
    Tunnels,
    /// `inet`: bridges of overlays that have a way out.
    Outbound,
    /// `inet`: bridge of the ingress network.
    Ingress,
    /// `inet`: the address of a task of this node, twice.
    Hairpins,
    Hairpins6,
    /// `inet`: bridge of an overlay, to its gateway's address.
    Gateways,
    Gateways6,
    /// `inet`: MAC of another node's bridges, to its number.
    Nodes,
    /// `inet`: bridge and virtual address, to the chain of the service.
    Services,
    Services6,
    /// `inet`: protocol and port of the mesh, to its chain.
    Mesh,
    /// `inet`: the same, for those who come by IPv6.
    Mesh6,
    /// `inet`: bridge and address of a task of this node that only some services may connect to.
    Restricted,
    Restricted6,
    /// `inet`: bridge and address of a task of a service that may connect to such, to the service's number.
    Callers,
    Callers6,
    /// `inet`: bridge and address of a restricted task, and the number of a service that may connect to it.
    Allowed,
    Allowed6,
    /// `bridge`: names of the veth devices of containers.
    Ports,
    /// `bridge`: veth and the one MAC that may be used behind it.
    Macs,
    /// `bridge`: veth, and the one MAC and address that may be used behind it.
    Sources,
    Sources6,
    /// `bridge`: VXLAN of an overlay and the address of a task of this node on it, to the task's MAC.
    Here,
    /// `bridge`: the address of a task elsewhere, to its node's MAC.
    Elsewhere,
    /// `bridge`: a flow from a task of this node to a virtual address, to the backend's address. Learned, see [`learned`].
    Calls,
    /// `bridge`: a flow from such a backend, to the virtual address. Learned.
    Answers,
    /// `bridge`: a flow of a published port, to the MAC it goes to. Learned.
    Meshed,
}

impl Set {
    /// The set of the same meaning for the family of `address`.
    fn of(self, address: IpAddr) -> Self {
        match self {
            _ if address.is_ipv4() => self,
            Self::Members => Self::Members6,
            Self::Peers => Self::Peers6,
            Self::Hairpins => Self::Hairpins6,
            Self::Gateways => Self::Gateways6,
            Self::Services => Self::Services6,
            Self::Sources => Self::Sources6,
            Self::Restricted => Self::Restricted6,
            Self::Callers => Self::Callers6,
            Self::Allowed => Self::Allowed6,
            Self::Published => Self::Published6,
            Self::Bound => Self::Bound6,
            Self::Entered => Self::Entered6,
            other => other,
        }
    }

    /// Whether it leads ports of the node away.
    fn publishes(self) -> bool {
        matches!(
            self,
            Self::Published | Self::Published6 | Self::Bound | Self::Bound6 | Self::Entered | Self::Entered6
        )
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// One element of a set or map, in the bytes the kernel keeps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub(crate) set: Set,
    pub(crate) key: Vec<u8>,
    /// Empty for a set; the name of the chain for a verdict map.
    pub(crate) data: Vec<u8>,
}

/// A chain that sends each new connection to one of some backends, by equal chances.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Balancer {
    pub(crate) chain: String,
    pub(crate) backends: Backends,
}

/// Where a [`Balancer`] sends connections: addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Backends {
    /// Any protocol, the port kept.
    Hosts(BTreeSet<IpAddr>),
    /// Connections of this protocol, to this port.
    Port(Protocol, u16, BTreeSet<IpAddr>),
    /// What was found in the kernel and is not to be understood.
    Unknown,
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain `{}` to ", self.chain)?;
        let (addresses, port) = match &self.backends {
            Backends::Hosts(addresses) => (addresses, None),
            Backends::Port(_, port, addresses) => (addresses, Some(*port)),
            Backends::Unknown => return f.write_str("what it should not"),
        };
        for (position, address) in addresses.iter().enumerate() {
            f.write_str(if position == 0 { "" } else { ", " })?;
            write!(f, "{address}")?;
        }
        port.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

/// An interface name as nft compares it: padded with NUL to 16 bytes.
fn name_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// Joins the parts of a concatenated key; each is padded to 4 bytes.
fn join(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

impl Element {
    pub(crate) fn member(set: Set, key: Vec<u8>) -> Self {
        Self { set, key, data: Vec::new() }
    }

    pub(crate) fn link(set: Set, name: &str) -> Self {
        Self::member(set, name_bytes(name).to_vec())
    }

    pub(crate) fn within(bridge: &str) -> Self {
        Self::member(Set::Within, join(&[&name_bytes(bridge), &name_bytes(bridge)]))
    }

    pub(crate) fn mac(link: &str, mac: Mac) -> Self {
        Self::member(Set::Macs, join(&[&name_bytes(link), &mac.0]))
    }

    pub(crate) fn source(link: &str, mac: Mac, address: IpAddr) -> Self {
        Self::member(Set::Sources.of(address), join(&[&name_bytes(link), &mac.0, &octets(address)]))
    }

    pub(crate) fn address(set: Set, link: &str, address: IpAddr) -> Self {
        Self::member(set.of(address), join(&[&name_bytes(link), &octets(address)]))
    }

    /// Leads a port of the node, where it is to answer, to `to`. `None` if it answers in the other family alone.
    pub(crate) fn published(port: &HostPort, to: SocketAddr) -> Option<Self> {
        let key = join(&[&[port.protocol.number()], &port.published.to_be_bytes()]);
        let (set, place) = match &port.at {
            None => (Set::Published, Vec::new()),
            Some(Place::Address(at)) if at.is_ipv4() != to.is_ipv4() => return None,
            Some(Place::Address(at)) if at.is_unspecified() => (Set::Published, Vec::new()),
            Some(Place::Address(at)) => (Set::Bound, octets(*at)),
            Some(Place::Interface { interface }) => (Set::Entered, name_bytes(interface).into()),
        };
        let data = join(&[&octets(to.ip()), &to.port().to_be_bytes()]);
        Some(Self { set: set.of(to.ip()), key: [place, key].concat(), data })
    }

    pub(crate) fn guarded(protocol: Protocol, port: u16) -> Self {
        Self::member(Set::Guarded, join(&[&[protocol.number()], &port.to_be_bytes()]))
    }

    pub(crate) fn peer(address: IpAddr) -> Self {
        Self::member(Set::Peers.of(address), octets(address))
    }

    pub(crate) fn tunnel(port: u16) -> Self {
        Self::member(Set::Tunnels, port.to_be_bytes().to_vec())
    }

    /// An address that goes with a link.
    pub(crate) fn address_of(set: Set, link: &str, address: IpAddr) -> Self {
        Self { set: set.of(address), key: name_bytes(link).to_vec(), data: octets(address) }
    }

    pub(crate) fn hairpin(address: IpAddr) -> Self {
        let octets = octets(address);
        Self::member(Set::Hairpins.of(address), join(&[&octets, &octets]))
    }

    pub(crate) fn node(mac: Mac, number: u16) -> Self {
        let key = mac.0.to_vec();
        Self { set: Set::Nodes, key, data: u32::from(number).to_ne_bytes().to_vec() }
    }

    /// Sends frames that come by the VXLAN straight to a task of this node.
    pub(crate) fn here(vxlan: &str, address: Ipv4Addr, mac: Mac) -> Self {
        Self { data: mac.0.to_vec(), ..Self::address(Set::Here, vxlan, address.into()) }
    }

    /// Sends frames for a task elsewhere straight to its node.
    pub(crate) fn elsewhere(address: Ipv4Addr, mac: Mac) -> Self {
        Self { set: Set::Elsewhere, key: address.octets().to_vec(), data: mac.0.to_vec() }
    }

    pub(crate) fn service(bridge: &str, address: IpAddr, chain: &str) -> Self {
        let key = join(&[&name_bytes(bridge), &octets(address)]);
        Self { set: Set::Services.of(address), key, data: chain.as_bytes().to_vec() }
    }

    pub(crate) fn caller(bridge: &str, address: IpAddr, service: u32) -> Self {
        Self { data: service.to_ne_bytes().to_vec(), ..Self::address(Set::Callers, bridge, address) }
    }

    pub(crate) fn allowed(bridge: &str, address: IpAddr, service: u32) -> Self {
        let key = join(&[&name_bytes(bridge), &octets(address), &service.to_ne_bytes()]);
        Self::member(Set::Allowed.of(address), key)
    }

    /// `set` is that of a family.
    pub(crate) fn mesh(set: Set, protocol: Protocol, port: u16, chain: &str) -> Self {
        let key = join(&[&[protocol.number()], &port.to_be_bytes()]);
        Self { set, key, data: chain.as_bytes().to_vec() }
    }

    /// Protocol and port of the node that it leads away.
    pub(crate) fn published_port(&self) -> Option<(u8, u16)> {
        if !self.set.publishes() {
            return None;
        }
        // Both are the end of the key, each padded to 4 bytes.
        let [protocol, _, _, _, high, low, ..] = *self.key.last_chunk::<8>()?;
        Some((protocol, u16::from_be_bytes([high, low])))
    }

    /// Whether it was made for the endpoint with this link and address.
    pub(crate) fn belongs_to(&self, link: &str, address: Option<Ipv4Addr>) -> bool {
        match self.set {
            Set::Ports | Set::Macs | Set::Sources | Set::Sources6 => self.key.starts_with(&name_bytes(link)),
            Set::Published | Set::Bound | Set::Entered => {
                address.is_some_and(|address| self.data.starts_with(&address.octets()))
            }
            Set::Members | Set::Hairpins | Set::Here => {
                address.is_some_and(|address| self.key.ends_with(&address.octets()))
            }
            _ => false,
        }
    }

    /// The link that its key begins with.
    pub(crate) fn of_link(&self) -> Option<String> {
        match self.set {
            set if set.publishes() => None,
            Set::Hairpins
            | Set::Hairpins6
            | Set::Nodes
            | Set::Mesh
            | Set::Mesh6
            | Set::Elsewhere
            | Set::Tunnels => None,
            _ => self.key.get(..16).map(crate::netlink::text),
        }
    }

    /// Whether both would sit in the same place.
    pub(crate) fn same_key(&self, other: &Self) -> bool {
        self.set == other.set && self.key == other.key
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |bytes: &[u8]| crate::netlink::text(bytes);
        let (key, data) = (&self.key, &self.data);
        let protocol = |number| match number {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => other.to_string(),
        };
        let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        let number = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let address = |bytes: &[u8]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]);
        let mac = |b: &[u8]| Mac([b[0], b[1], b[2], b[3], b[4], b[5]]);
        // What is behind the name of a link, to the end of the key.
        let address6 = |bytes: &[u8]| Ipv6Addr::read(bytes).unwrap_or(Ipv6Addr::UNSPECIFIED);
        let target = |bytes: &[u8]| match bytes.len() {
            8 => SocketAddr::from((address(bytes), port(&bytes[4..]))).to_string(),
            20 => SocketAddr::from((address6(&bytes[..16]), port(&bytes[16..]))).to_string(),
            _ => "what it should not".to_owned(),
        };
        match (self.set, key.len(), data.len()) {
            (Set::Published | Set::Published6, 8, _) => {
                write!(f, "published {}/{} to {}", protocol(key[0]), port(&key[4..]), target(data))
            }
            (Set::Bound, 12, _) => {
                let (at, proto, of) = (port(&key[8..]), protocol(key[4]), address(key));
                write!(f, "published {proto}/{at} of {of} to {}", target(data))
            }
            (Set::Bound6, 24, _) => {
                let (at, proto, of) = (port(&key[20..]), protocol(key[16]), address6(&key[..16]));
                write!(f, "published {proto}/{at} of {of} to {}", target(data))
            }
            (Set::Entered | Set::Entered6, 24, _) => {
                let (at, proto, by) = (port(&key[20..]), protocol(key[16]), name(&key[..16]));
                write!(f, "published {proto}/{at} by {by} to {}", target(data))
            }
            (Set::Mesh | Set::Mesh6, 8, _) => {
                let chain = String::from_utf8_lossy(data);
                write!(f, "published {}/{} to chain `{chain}`", protocol(key[0]), port(&key[4..]))
            }
            (Set::Services, 20, _) => {
                let chain = String::from_utf8_lossy(data);
                write!(f, "service {} on {} to chain `{chain}`", address(&key[16..]), name(key))
            }
            (Set::Services6, 32, _) => {
                let chain = String::from_utf8_lossy(data);
                write!(f, "service {} on {} to chain `{chain}`", address6(&key[16..]), name(key))
            }
            (Set::Hairpins6, 32, 0) => write!(f, "hairpin {}", address6(&key[16..])),
            (Set::Gateways6, 16, 16) => write!(f, "address {} of {}", address6(data), name(key)),
            (Set::Sources6, 40, 0) => write!(f, "source {} behind {}", address6(&key[24..]), name(key)),
            (Set::Members6, 32, 0) => write!(f, "member {} of {}", address6(&key[16..]), name(key)),
            (Set::Restricted, 20, 0) => write!(f, "restricted {} of {}", address(&key[16..]), name(key)),
            (Set::Restricted6, 32, 0) => write!(f, "restricted {} of {}", address6(&key[16..]), name(key)),
            (Set::Callers, 20, 4) => {
                let service = number(data);
                write!(f, "caller {} of {} in service {service}", address(&key[16..]), name(key))
            }
            (Set::Callers6, 32, 4) => {
                let service = number(data);
                write!(f, "caller {} of {} in service {service}", address6(&key[16..]), name(key))
            }
            (Set::Allowed, 24, 0) => {
                let service = number(&key[20..]);
                write!(f, "service {service} allowed to {} of {}", address(&key[16..]), name(key))
            }
            (Set::Allowed6, 36, 0) => {
                let service = number(&key[32..]);
                write!(f, "service {service} allowed to {} of {}", address6(&key[16..32]), name(key))
            }
            (Set::Guarded, 8, 0) => write!(f, "guarded {}/{}", protocol(key[0]), port(&key[4..])),
            (Set::Peers, 4, 0) => write!(f, "node at {}", address(key)),
            (Set::Peers6, 16, 0) => write!(f, "node at {}", address6(key)),
            (Set::Tunnels, 2, 0) => write!(f, "tunnels at udp/{}", port(key)),
            (Set::Hairpins, 8, 0) => write!(f, "hairpin {}", address(key)),
            (Set::Nodes, 6, 4) => {
                write!(f, "node {} at {}", number(data), mac(key))
            }
            (Set::Uplinks | Set::Gateways, 16, 4) => {
                write!(f, "address {} of {}", address(data), name(key))
            }
            (Set::Macs, 24, 0) => write!(f, "mac {} behind {}", mac(&key[16..]), name(key)),
            (Set::Sources, 28, 0) => {
                let address = address(&key[24..]);
                write!(f, "source {address} behind {}", name(key))
            }
            (Set::Here, 20, 6) => {
                write!(f, "direct {} from {} at {}", address(&key[16..]), name(key), mac(data))
            }
            (Set::Elsewhere, 4, 6) => write!(f, "direct {} at {}", address(key), mac(data)),
            (Set::Members, 20, 0) => {
                let address = address(&key[16..]);
                write!(f, "member {address} of {}", name(key))
            }
            (set, _, _) => write!(f, "{} {}", format!("{set:?}").to_lowercase(), name(key)),
        }
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Element({self})")
    }
}

/// The elements that a network needs.
pub(crate) fn network_elements(network: &BridgeNetwork) -> BTreeSet<Element> {
    let bridge = network.bridge.as_str();
    let mut elements = BTreeSet::from([Element::link(Set::Bridges, bridge)]);
    elements.extend((!network.separate).then(|| Element::within(bridge)));
    if network.internal {
        elements.insert(Element::link(Set::Internal, bridge));
        let gateways = network.gateways().map(|address| Element::address(Set::Members, bridge, address));
        elements.extend(gateways);
    } else if network.masquerade {
        elements.insert(Element::link(Set::Masqueraded, bridge));
    }
    elements
}

/// The elements that an endpoint of a network needs.
pub(crate) fn endpoint_elements(
    config: &NetworkConfig,
    network: &BridgeNetwork,
    endpoint: &Endpoint,
) -> BTreeSet<Element> {
    let link = config.link_name(&endpoint.id);
    let mut elements =
        BTreeSet::from([Element::link(Set::Ports, &link), Element::mac(&link, endpoint.mac())]);
    for address in endpoint.addresses(network) {
        elements.insert(Element::source(&link, endpoint.mac(), address));
        elements.insert(Element::address(Set::Members, &network.bridge, address));
        let to = |port: &HostPort| (address, port.target).into();
        elements.extend(endpoint.ports.iter().filter_map(|port| Element::published(port, to(port))));
    }
    elements
}

/// All elements that the node should have.
pub(crate) fn elements(config: &NetworkConfig, node: &NodeNetwork) -> BTreeSet<Element> {
    let networks = node.networks.iter().flat_map(network_elements);
    let endpoints = node
        .endpoints
        .iter()
        .filter_map(|endpoint| Some(endpoint_elements(config, node.network(&endpoint.network)?, endpoint)));
    networks.chain(endpoints.flatten()).collect()
}

/// Elements that a mesh needs in the host's own tables.
pub(crate) fn mesh_elements(
    config: &NetworkConfig,
    overlay: &Overlay,
    uplink: Uplink,
    busy: &BTreeSet<(Protocol, u16)>,
) -> BTreeSet<Element> {
    let link = config.uplink.as_str();
    let mut elements = BTreeSet::from([
        Element::link(Set::Bridges, link),
        Element::link(Set::Masqueraded, link),
        Element::address_of(Set::Uplinks, link, overlay.source().into()),
        Element::tunnel(overlay.data_path_port),
    ]);
    elements.extend(overlay.tunnel().map(|end| Element::tunnel(end.port)));
    elements.extend(overlay.peer_addresses.iter().map(|address| Element::peer(*address)));
    elements.extend(overlay.guarded.iter().map(|(protocol, port)| Element::guarded(*protocol, *port)));
    let ipv6 = overlay.published_by_ipv6();
    for ((protocol, published), to) in overlay.published.iter().filter(|(key, _)| !busy.contains(*key)) {
        let anywhere = HostPort { protocol: *protocol, published: *published, target: *published, at: None };
        let bound = to.at.iter().map(|at| HostPort { at: Some(at.clone()), ..anywhere.clone() });
        let ports = to.at.is_empty().then(|| anywhere.clone()).into_iter().chain(bound);
        let ends = |port| uplink_elements(uplink, (true, ipv6), &port).collect::<Vec<_>>();
        elements.extend(ports.flat_map(ends));
    }
    elements
}

/// The elements that lead a port, by its own number, to the namespace of the overlays, by each of these families.
fn uplink_elements(
    uplink: Uplink,
    (ipv4, ipv6): (bool, bool),
    port: &HostPort,
) -> impl Iterator<Item = Element> {
    let helper = ipv4.then_some(IpAddr::from(uplink.helper));
    let helper6 = ipv6.then_some(IpAddr::from(Uplink::HELPER6.address));
    let ends = helper.into_iter().chain(helper6);
    ends.filter_map(|end| Element::published(port, (end, port.published).into()))
}

/// The elements that lead to the ports of a task that is on an overlay.
pub(crate) fn local_elements(uplink: Uplink, local: &Local<'_>) -> BTreeSet<Element> {
    let families = (!local.network.ipv6_only, local.network.ipv6.is_some());
    local.endpoint.ports.iter().flat_map(|port| uplink_elements(uplink, families, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Cidr,
        testing::{endpoint, network},
    };

    #[test]
    fn elements_of_a_node_are_those_documented() {
        let mut internal = network("n1", 1);
        internal.internal = true;
        internal.ipv6 = Some(Cidr { address: "fd00:1::1".parse().unwrap(), prefix_len: 64 });
        let inside = Endpoint {
            ipv6: Some("fd00:1::2".parse().unwrap()),
            ..endpoint("b", "n1", "10.90.1.2", &[(8081, 81)])
        };
        let node = NodeNetwork {
            networks: vec![network("n0", 0), internal],
            endpoints: vec![endpoint("a", "n0", "10.90.0.2", &[(8080, 80)]), inside],
            overlay: None,
        };
        let config = NetworkConfig::default();
        let (link, other) = (config.link_name("a"), config.link_name("b"));
        let found: Vec<_> = elements(&config, &node).iter().map(ToString::to_string).collect();
        let expected = [
            "bridges rsw-br0".to_owned(),
            "bridges rsw-br1".into(),
            "masqueraded rsw-br0".into(),
            "internal rsw-br1".into(),
            "within rsw-br0".into(),
            "within rsw-br1".into(),
            "member 10.90.0.2 of rsw-br0".into(),
            "member 10.90.1.1 of rsw-br1".into(),
            "member 10.90.1.2 of rsw-br1".into(),
            "member fd00:1::1 of rsw-br1".into(),
            "member fd00:1::2 of rsw-br1".into(),
            "published tcp/8080 to 10.90.0.2:80".into(),
            "published tcp/8081 to 10.90.1.2:81".into(),
            "published tcp/8081 to [fd00:1::2]:81".into(),
            format!("ports {link}"),
            format!("ports {other}"),
            format!("mac 02:42:0a:5a:00:02 behind {link}"),
            format!("mac 02:42:0a:5a:01:02 behind {other}"),
            format!("source 10.90.0.2 behind {link}"),
            format!("source 10.90.1.2 behind {other}"),
            format!("source fd00:1::2 behind {other}"),
        ];
        // Those of two links are in the order of their names.
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        assert_eq!(sorted(found), sorted(expected.to_vec()));
    }
}
