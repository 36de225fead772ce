//! The node's own nft tables: what is in them ([`rules`]), its elements, and how they travel ([`message`]).
//!
//! The rules never change while a daemon lives; what changes with networks and endpoints are elements of sets and
//! maps. So an endpoint that comes or goes costs a handful of elements in one transaction, whatever the node carries.

pub(crate) mod message;
pub(crate) mod rules;

use std::{collections::BTreeSet, fmt, net::Ipv4Addr};

use crate::model::{BridgeNetwork, Endpoint, HostPort, Mac, NetworkConfig, NodeNetwork};

/// The sets and maps, by what an element means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// `inet`: names of our bridges.
    Bridges,
    /// `inet`: bridges whose containers take the node's address on the way out.
    Masqueraded,
    /// `inet`: bridges of internal networks.
    Internal,
    /// `inet`: bridge in and bridge out, equal: traffic that stays on its bridge.
    Within,
    /// `inet`: bridge and an address on it.
    Members,
    /// `inet`: protocol and port of the node, to address and port of a container.
    Published,
    /// `bridge`: names of the veth devices of containers.
    Ports,
    /// `bridge`: veth and the one MAC that may be used behind it.
    Macs,
    /// `bridge`: veth and the one address that may be used behind it.
    Sources,
}

/// One element of a set or map, in the bytes the kernel keeps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub(crate) set: Set,
    pub(crate) key: Vec<u8>,
    /// Empty for a set.
    pub(crate) data: Vec<u8>,
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
    fn member(set: Set, key: Vec<u8>) -> Self {
        Self { set, key, data: Vec::new() }
    }

    fn link(set: Set, name: &str) -> Self {
        Self::member(set, name_bytes(name).to_vec())
    }

    fn within(bridge: &str) -> Self {
        Self::member(Set::Within, join(&[&name_bytes(bridge), &name_bytes(bridge)]))
    }

    fn mac(link: &str, mac: Mac) -> Self {
        Self::member(Set::Macs, join(&[&name_bytes(link), &mac.0]))
    }

    fn address(set: Set, link: &str, address: Ipv4Addr) -> Self {
        Self::member(set, join(&[&name_bytes(link), &address.octets()]))
    }

    fn published(port: &HostPort, address: Ipv4Addr) -> Self {
        Self {
            set: Set::Published,
            key: join(&[&[port.protocol.number()], &port.published.to_be_bytes()]),
            data: join(&[&address.octets(), &port.target.to_be_bytes()]),
        }
    }

    /// Whether it was made for the endpoint with this link and address.
    pub(crate) fn belongs_to(&self, link: &str, address: Option<Ipv4Addr>) -> bool {
        match self.set {
            Set::Ports | Set::Macs | Set::Sources => self.key.starts_with(&name_bytes(link)),
            Set::Published => address.is_some_and(|address| self.data.starts_with(&address.octets())),
            Set::Members => address.is_some_and(|address| self.key.ends_with(&address.octets())),
            Set::Bridges | Set::Masqueraded | Set::Internal | Set::Within => false,
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
        match (self.set, key.len(), data.len()) {
            (Set::Published, 8, 8) => {
                let protocol = match key[0] {
                    6 => "tcp".to_owned(),
                    17 => "udp".to_owned(),
                    132 => "sctp".to_owned(),
                    other => other.to_string(),
                };
                let (published, target) =
                    (u16::from_be_bytes([key[4], key[5]]), u16::from_be_bytes([data[4], data[5]]));
                let address = Ipv4Addr::new(data[0], data[1], data[2], data[3]);
                write!(f, "published {protocol}/{published} to {address}:{target}")
            }
            (Set::Macs, 24, 0) => {
                let mac = Mac([key[16], key[17], key[18], key[19], key[20], key[21]]);
                write!(f, "mac {mac} behind {}", name(key))
            }
            (Set::Sources, 20, 0) => {
                let address = Ipv4Addr::new(key[16], key[17], key[18], key[19]);
                write!(f, "source {address} behind {}", name(key))
            }
            (Set::Members, 20, 0) => {
                let address = Ipv4Addr::new(key[16], key[17], key[18], key[19]);
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
    let mut elements = BTreeSet::from([Element::link(Set::Bridges, bridge), Element::within(bridge)]);
    if network.internal {
        elements.insert(Element::link(Set::Internal, bridge));
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
    let mut elements = BTreeSet::from([
        Element::link(Set::Ports, &link),
        Element::mac(&link, endpoint.mac()),
        Element::address(Set::Sources, &link, endpoint.address),
        Element::address(Set::Members, &network.bridge, endpoint.address),
    ]);
    elements.extend(endpoint.ports.iter().map(|port| Element::published(port, endpoint.address)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{endpoint, network};

    #[test]
    fn elements_of_a_node_are_those_documented() {
        let mut internal = network("n1", 1);
        internal.internal = true;
        let node = NodeNetwork {
            networks: vec![network("n0", 0), internal],
            endpoints: vec![endpoint("a", "n0", "10.90.0.2", &[(8080, 80)])],
        };
        let config = NetworkConfig::default();
        let link = config.link_name("a");
        let found: Vec<_> = elements(&config, &node).iter().map(ToString::to_string).collect();
        let expected = [
            "bridges rsw-br0".to_owned(),
            "bridges rsw-br1".into(),
            "masqueraded rsw-br0".into(),
            "internal rsw-br1".into(),
            "within rsw-br0".into(),
            "within rsw-br1".into(),
            "member 10.90.0.2 of rsw-br0".into(),
            "published tcp/8080 to 10.90.0.2:80".into(),
            format!("ports {link}"),
            format!("mac 02:42:0a:5a:00:02 behind {link}"),
            format!("source 10.90.0.2 behind {link}"),
        ];
        assert_eq!(found, expected);
    }
}
