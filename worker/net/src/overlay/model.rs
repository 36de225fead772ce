//! What the overlays on this node should be, as plain data, and the rules it must obey.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    error::NetError,
    firewall::helper::{OWN_MARK, TUNNEL},
    listeners::listens,
    model::{Cidr, Cidr6, Mac, NetworkConfig, Place, Protocol},
    wireguard::{PeerKeys, TunnelEnd, inner_address},
};

/// The overlay networks of a cluster, as far as this node has to do with them. Networks are named by their VNI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// This node's number, 1 to 4094.
    pub node: u16,
    /// This node's address towards the others.
    pub source: Option<Ipv4Addr>,
    /// UDP port of the encapsulated traffic.
    pub data_path_port: u16,
    /// Ports, of this node and of the others, that tasks must not reach.
    pub guarded: BTreeSet<(Protocol, u16)>,
    /// The other nodes by number, with their addresses.
    pub peers: BTreeMap<u16, Ipv4Addr>,
    /// All addresses of the other nodes, also those at which no packets are exchanged.
    pub peer_addresses: BTreeSet<IpAddr>,
    /// This node's end of the tunnel to the others. Without it nothing leaves by encrypted networks.
    pub tunnel: Option<TunnelEnd>,
    /// The keys of the others. Nothing is sent by encrypted networks to a node without.
    pub keys: BTreeMap<u16, PeerKeys>,
    pub networks: BTreeMap<u32, OverlayNetwork>,
    /// Network and address of each task elsewhere, and its node's number. Own tasks are told by
    /// [`Network::attach`](crate::Network::attach); such as are in here are passed over.
    pub endpoints: BTreeMap<(u32, Ipv4Addr), u16>,
    /// Virtual addresses.
    pub services: BTreeMap<(u32, Ipv4Addr), VirtualService>,
    /// Ports of the mesh.
    pub published: BTreeMap<(Protocol, u16), PublishedPort>,
    /// Network and address of each task of this node to which not everyone may connect, and the numbers of the services
    /// that may.
    pub restricted: BTreeMap<(u32, Ipv4Addr), BTreeSet<u32>>,
    /// Network and address of each task of such services, wherever it is, and the service's number.
    pub callers: BTreeMap<(u32, Ipv4Addr), u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// What [`Endpoint::network`](crate::Endpoint::network) calls it.
    pub id: String,
    /// The address of every node on its bridge.
    pub gateway: Ipv4Addr,
    /// Of the subnet, and so of all addresses in it, whatever their endpoints say: it may become shorter while tasks run.
    pub prefix_len: u8,
    /// The address of every node there in IPv6, if the network has it: then each address of the IPv4 subnet has a twin in
    /// the IPv6 one, in the same place from `twins_from` on, whose twin is the first.
    pub ipv6: Option<Cidr6>,
    pub twins_from: Ipv4Addr,
    /// Without IPv4: such addresses only tell who is who, and nobody has them.
    pub ipv6_only: bool,
    /// Bytes of a packet inside.
    pub mtu: u32,
    /// No way out.
    pub internal: bool,
    /// Carries the traffic of published ports; one network at most.
    pub ingress: bool,
    /// What it carries between nodes goes through the tunnel.
    pub encrypted: bool,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    /// Of letters, digits, `-` and `_`: names its chain.
    pub id: String,
    /// Addresses of the tasks that take new connections.
    pub backends: BTreeSet<Ipv4Addr>,
}

/// A port that answers on this node for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    pub target: u16,
    /// Addresses on the ingress network of the tasks that take new connections.
    pub backends: BTreeSet<Ipv4Addr>,
    /// Where on this node it answers; everywhere if empty.
    pub at: BTreeSet<Place>,
}

impl PublishedPort {
    /// Whether another process of the node listens where it should answer.
    pub(crate) fn is_taken(&self, (protocol, port): (Protocol, u16)) -> bool {
        match self.at.is_empty() {
            true => listens(protocol, port, None),
            false => self.at.iter().any(|at| listens(protocol, port, Some(at))),
        }
    }
}

/// Least bytes of a packet: what every host has to accept. Source: RFC 791.
pub(crate) const MTU_MIN: u32 = 576;
/// Most: an IPv4 packet, less what VXLAN puts around it.
pub(crate) const MTU_MAX: u32 = 65_485;
/// Least bytes of a packet where there is IPv6. Source: RFC 8200, section 5.
pub const MTU6_MIN: u32 = 1280;

/// The bridge of a network.
pub(crate) fn bridge_name(vni: u32) -> String {
    format!("rsb{vni}")
}

/// The VXLAN of a network.
pub(crate) fn vxlan_name(vni: u32) -> String {
    format!("{TUNNEL}{vni}")
}

/// The MAC of all bridges of a node.
pub(crate) fn node_mac(number: u16) -> Mac {
    let [a, b, c, d] = u32::from(number).to_be_bytes();
    Mac([0x02, 0x52, a, b, c, d])
}

/// A node as next hop, its address on the bridge of the ingress network. Only other nodes' questions are sent to it.
pub(crate) fn next_hop(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(169, 254, 128 + high, low)
}

/// The same in IPv6.
pub(crate) fn next_hop6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x5253, number)
}

/// Of the subnet that all next hops are in.
pub(crate) const NEXT_HOPS_PREFIX_LEN: u8 = 20;

impl OverlayNetwork {
    pub(crate) fn cidr(&self) -> Cidr {
        Cidr { address: self.gateway, prefix_len: self.prefix_len }
    }

    /// Whether TCP between nodes may go past routing once it has begun.
    pub(crate) fn is_switched(&self) -> bool {
        !self.ingress && !self.ipv6_only
    }

    /// The IPv6 address of whoever has this one.
    pub(crate) fn twin(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let place = u32::from(address).wrapping_sub(u32::from(self.twins_from));
        self.ipv6.map(|ipv6| Ipv6Addr::from(u128::from(ipv6.subnet()).wrapping_add(place.into())))
    }

    /// An address and its twin, as far as the network has them.
    pub(crate) fn both(&self, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = Some(IpAddr::from(address)).filter(|_| !self.ipv6_only);
        ipv4.into_iter().chain(self.twin(address).map(IpAddr::from))
    }
}

impl Overlay {
    /// The network of this id, with its VNI.
    pub fn network(&self, id: &str) -> Option<(u32, &OverlayNetwork)> {
        self.networks.iter().find(|(_, network)| network.id == id).map(|(vni, network)| (*vni, network))
    }

    pub(crate) fn ingress(&self) -> Option<u32> {
        self.networks.iter().find(|(_, network)| network.ingress).map(|(vni, _)| *vni)
    }

    /// Whether published ports answer by IPv6 too.
    pub(crate) fn published_by_ipv6(&self) -> bool {
        self.networks.values().any(|network| network.ingress && network.ipv6.is_some())
    }

    pub(crate) fn has_ipv6(&self) -> bool {
        self.networks.values().any(|network| network.ipv6.is_some())
    }

    /// This node's address towards the others, once [`Self::validate`] was content.
    pub(crate) fn source(&self) -> Ipv4Addr {
        self.source.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Our end of the tunnel, if anything is to go through it.
    pub(crate) fn tunnel(&self) -> Option<&TunnelEnd> {
        self.tunnel.as_ref().filter(|_| self.networks.values().any(|network| network.encrypted))
    }

    /// Where a network's packets for another node go; `None` as long as that is not known.
    pub(crate) fn address_for(&self, vni: u32, node: u16) -> Option<Ipv4Addr> {
        let address = self.peers.get(&node).filter(|_| node != self.node)?;
        if !self.networks.get(&vni)?.encrypted {
            return Some(*address);
        }
        self.tunnel?;
        let PeerKeys { keys, place } = self.keys.get(&node)?;
        (*keys.get(usize::from(*place))?).map(|_| inner_address(node, *place))
    }

    /// Checks that the whole makes sense, before any of it touches the kernel.
    ///
    /// # Errors
    /// `Invalid`, naming the first offender.
    pub fn validate(&self) -> Result<(), NetError> {
        let invalid = |what: &'static str, id: String, reason: &str| {
            Err(NetError::Invalid { what, id, reason: reason.to_owned() })
        };
        let number = |number: u16| number != 0 && u32::from(number) < OWN_MARK;
        if !number(self.node) {
            return invalid("node", self.node.to_string(), "expected a number of 1 to 4094");
        }
        if self.source.is_none() {
            return invalid("node", self.node.to_string(), "expected the address it has towards the others");
        }
        if self.data_path_port == 0 {
            return invalid("data path port", "0".into(), "expected 1 to 65535");
        }
        if let Some(peer) = self.peers.keys().find(|peer| !number(**peer)) {
            return invalid("node", peer.to_string(), "expected a number of 1 to 4094");
        }
        if self.tunnel.is_some_and(|end| end.port == 0 || end.port == self.data_path_port || end.place > 1) {
            let reason = "expected a port of its own, and place 0 or 1";
            return invalid("tunnel", self.node.to_string(), reason);
        }
        let mut ingress = None;
        for (vni, network) in &self.networks {
            let id = || network.id.clone();
            if network.id.is_empty() || network.id.contains(char::is_whitespace) {
                return invalid("network", id(), "expected an id without spaces");
            }
            if !(1..=0x00ff_ffff).contains(vni) {
                return invalid("network", id(), "expected a VNI of 1 to 16777215");
            }
            if !(1..=30).contains(&network.prefix_len) {
                return invalid("network", id(), "expected a prefix of 1 to 30");
            }
            if network.ipv6.is_some_and(|ipv6| !(1..=64).contains(&ipv6.prefix_len)) {
                return invalid("network", id(), "expected an IPv6 prefix of 1 to 64");
            }
            if network.ipv6.is_some() && network.mtu < MTU6_MIN {
                return invalid("network", id(), "expected an MTU of at least 1280 for IPv6");
            }
            if !(MTU_MIN..=MTU_MAX).contains(&network.mtu) {
                return invalid("network", id(), "expected an MTU of 576 to 65485");
            }
            if network.ingress && network.ipv6_only {
                return invalid("network", id(), "expected IPv4 on the ingress network");
            }
            if network.ingress && ingress.replace(vni).is_some() {
                return invalid("network", id(), "there is an ingress network already");
            }
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = self.networks.values().find(|network| !ids.insert(&network.id)) {
            return invalid("network", twice.id.clone(), "given twice");
        }
        let word = |text: &str| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let mut chains = BTreeSet::new();
        for ((vni, _), service) in &self.services {
            if !word(&service.id) {
                return invalid(
                    "service",
                    service.id.clone(),
                    "expected 1 to 64 letters, digits, `-` or `_`",
                );
            }
            if !chains.insert((vni, &service.id)) {
                return invalid("service", service.id.clone(), "two virtual addresses on one network");
            }
        }
        if let Some((_, port)) = self.published.keys().find(|(_, port)| *port == 0) {
            return invalid("published port", port.to_string(), "expected 1 to 65535");
        }
        for ((_, port), to) in &self.published {
            if let Some(reason) = to.at.iter().find_map(Place::fault) {
                return invalid("published port", port.to_string(), &reason);
            }
        }
        Ok(())
    }
}

impl NetworkConfig {
    /// The alias of the link to the helper namespace.
    pub(crate) fn uplink_alias(&self) -> String {
        format!("{} uplink", self.table)
    }
}
