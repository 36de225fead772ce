//! Networks: overlays that span nodes, and those local to a node (a bridge, the host's own, or none).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::subnet::{Subnet, Subnet6};
use crate::{Labels, Meta, NetworkId};

/// A network that tasks attach to. `bridge`, `host` and `none` exist from `init` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// Present for drivers that give addresses.
    pub ipam: Option<Ipam>,
    /// VXLAN network identifier (RFC 7348), from [`FIRST_VNI`] on. Present for overlays.
    #[serde(default)]
    pub vni: Option<u32>,
}

/// Where VNIs start, as in Swarm.
pub const FIRST_VNI: u32 = 4096;
/// The largest number VXLAN has room for.
pub const LAST_VNI: u32 = (1 << 24) - 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    pub labels: Labels,
    pub driver: NetworkDriver,
    /// No way out and none in.
    #[serde(default)]
    pub internal: bool,
    /// Containers that are no task of a service may join.
    #[serde(default)]
    pub attachable: bool,
    /// The network that carries the routing mesh; one in the cluster at most.
    #[serde(default)]
    pub ingress: bool,
    /// Bytes of a packet inside; `None` follows the path between the nodes, and of a bridge is what Ethernet has.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Traffic between nodes is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    #[serde(default)]
    pub bridge: BridgeOptions,
    /// As the user gave them, for what shows them again.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    #[serde(default)]
    pub ipam: IpamSpec,
}

impl NetworkSpec {
    /// A network with nothing but a name and a driver.
    pub fn new(name: impl Into<String>, driver: NetworkDriver) -> Self {
        Self {
            name: name.into(),
            labels: Labels::new(),
            driver,
            internal: false,
            attachable: false,
            ingress: false,
            mtu: None,
            encrypted: false,
            bridge: BridgeOptions::default(),
            options: BTreeMap::new(),
            ipam: IpamSpec::default(),
        }
    }
}

/// What options say of a network of driver `bridge` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BridgeOptions {
    /// Whether its tasks reach each other.
    pub icc: bool,
    /// Whether what leaves the node takes the node's address.
    pub masquerade: bool,
    /// Where alone ports in mode `host` answer that name no place of their own.
    pub host_ip: Option<Ipv4Addr>,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self { icc: true, masquerade: true, host_ip: None }
    }
}

/// Addresses that the user asks for; what is left open is chosen from the cluster's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamSpec {
    pub subnet: Option<Subnet>,
    /// The first address if left open.
    pub gateway: Option<Ipv4Addr>,
    /// The part of `subnet` that tasks and services get their addresses from.
    pub range: Option<Subnet>,
    /// What is asked for of IPv6, if the network is to have it too.
    pub ipv6: Option<IpamSpec6>,
}

/// The part of an [`IpamSpec`] that is about IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamSpec6 {
    pub subnet: Option<Subnet6>,
    /// The twin of the IPv4 gateway if left open.
    pub gateway: Option<Ipv6Addr>,
    /// Without IPv4 beside it.
    pub alone: bool,
}

/// How a network is made on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// A bridge on each node, with network address translation to the outside.
    Bridge,
    /// One network across all nodes that have tasks on it.
    Overlay,
    /// The node's own network namespace.
    Host,
    /// A namespace with nothing but a loopback.
    None,
}

/// The addresses of a network. Each address is given to at most one task in the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pub subnet: Subnet,
    /// On each node the bridge's own address.
    pub gateway: Ipv4Addr,
    /// Of a network with both families.
    #[serde(default)]
    pub ipv6: Option<Ipam6>,
}

/// The IPv6 side of a network. Nobody is given an address in it: each address of the IPv4 subnet has a *twin* there, in the
/// same place from the first one on. So what has the one has the other, and only one of them is kept account of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam6 {
    /// With room for every place of the IPv4 subnet, see [`PREFIX6_MAX`].
    pub subnet: Subnet6,
    /// On each node the bridge's own address.
    pub gateway: Ipv6Addr,
    /// The IPv4 address whose twin is the first of `subnet`, where that is not the first of the IPv4 subnet: so that everybody
    /// keeps the twin he has when the network grows downwards.
    #[serde(default)]
    pub counted_from: Option<Ipv4Addr>,
    /// The network has no IPv4: addresses of the IPv4 subnet only number those of this one, and nobody sees them.
    #[serde(default)]
    pub alone: bool,
}

/// Where the numbers are taken from of networks with IPv6 alone, so that they are in nobody's way: addresses that no host
/// has. Source: RFC 1112, section 4, class E.
pub const NUMBERS: Subnet = Subnet { address: Ipv4Addr::new(240, 0, 0, 0), prefix_len: 4 };
/// Of the numbers of one such network.
pub const NUMBERS_PREFIX_LEN: u8 = 16;

/// Longest prefix of an IPv6 subnet, as is usual; there is a place for every IPv4 address.
pub const PREFIX6_MAX: u8 = 64;

impl Ipam6 {
    /// The twin of an address of the IPv4 subnet `of`.
    ///
    /// Addresses before the one that is counted from have the last places of 2³², which no IPv4 subnet reaches from the front.
    pub fn twin(self, of: Subnet, address: Ipv4Addr) -> Ipv6Addr {
        let place = u32::from(address).wrapping_sub(u32::from(self.first(of)));
        self.subnet.nth(place).unwrap_or(self.subnet.address)
    }

    /// The address of the IPv4 subnet `of` whose twin `twin` is.
    pub fn of_twin(self, of: Subnet, twin: Ipv6Addr) -> Option<Ipv4Addr> {
        let place = u128::from(twin).checked_sub(self.subnet.address.into())?;
        let address = u32::from(self.first(of)).wrapping_add(u32::try_from(place).ok()?);
        Some(Ipv4Addr::from(address)).filter(|address| of.contains(*address))
    }

    /// The address of the IPv4 subnet `of` whose twin is the first.
    pub fn first(self, of: Subnet) -> Ipv4Addr {
        self.counted_from.unwrap_or(of.address)
    }
}

impl Ipam {
    /// The twin of an address of this network, if it has IPv6.
    pub fn twin(self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.ipv6.map(|ipv6| ipv6.twin(self.subnet, address))
    }

    /// Whether there is nothing but IPv6.
    pub fn is_ipv6_alone(self) -> bool {
        self.ipv6.is_some_and(|ipv6| ipv6.alone)
    }

    /// An address as whoever is on the network knows it.
    pub fn shown(self, address: Ipv4Addr) -> IpAddr {
        let twin = self.twin(address).filter(|_| self.is_ipv6_alone());
        twin.map_or(address.into(), IpAddr::from)
    }

    /// The same of the subnet.
    pub fn shown_subnet(self) -> String {
        let ipv6 = self.ipv6.filter(|ipv6| ipv6.alone);
        ipv6.map_or_else(|| self.subnet.to_string(), |ipv6| ipv6.subnet.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_have_the_same_place_and_lead_back() {
        let (subnet, gateway) = ("fd00:1::/64".parse().unwrap(), "fd00:1::1".parse().unwrap());
        let ipv6 = Ipam6 { subnet, gateway, counted_from: None, alone: false };
        let of: Subnet = "10.0.16.0/20".parse().unwrap();
        let address = Ipv4Addr::new(10, 0, 17, 2);
        let twin = ipv6.twin(of, address);
        assert_eq!(twin.to_string(), "fd00:1::102");
        assert_eq!(ipv6.of_twin(of, twin), Some(address));
        for stranger in ["fd00:1::1000", "fd00:1:0:1::2", "fd00::2", "::"] {
            assert_eq!(ipv6.of_twin(of, stranger.parse().unwrap()), None, "{stranger}");
        }
    }

    #[test]
    fn what_was_written_before_networks_could_have_ipv6_alone_or_options_is_read_as_it_was_meant() {
        let ipv6 = r#"{"subnet":{"address":"fd00:1::","prefix_len":64},"gateway":"fd00:1::1"}"#;
        assert!(!serde_json::from_str::<Ipam6>(ipv6).unwrap().alone);
        assert!(!serde_json::from_str::<IpamSpec6>(r#"{"subnet":null,"gateway":null}"#).unwrap().alone);
        let address = r#"{"address":"10.0.0.2","prefix_len":20,"gateway":"10.0.0.1",
                          "ipv6":{"address":"fd00:1::2","prefix_len":64}}"#;
        let address: crate::task::TaskAddress = serde_json::from_str(address).unwrap();
        assert_eq!(address.asked_gateway(), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(address.all().count(), 2);
        let network = format!(
            r#"{{"network":"{}","name":"n","driver":"bridge","address":null,"aliases":[]}}"#,
            NetworkId::from_bytes([1; 16])
        );
        let network: crate::task::TaskNetwork = serde_json::from_str(&network).unwrap();
        assert!(!network.internal);
        let BridgeOptions { icc, masquerade, host_ip } = network.bridge;
        assert_eq!((network.mtu, icc, masquerade, host_ip), (None, true, true, None));
    }

    #[test]
    fn twins_stay_when_a_network_grows_downwards() {
        let (subnet, gateway) = ("fd00:1::/64".parse().unwrap(), "fd00:1::1".parse().unwrap());
        let (old, new): (Subnet, Subnet) = ("10.0.16.0/20".parse().unwrap(), "10.0.0.0/16".parse().unwrap());
        let before = Ipam6 { subnet, gateway, counted_from: None, alone: false };
        let after = Ipam6 { counted_from: Some(old.address), ..before };
        for address in ["10.0.16.0", "10.0.16.1", "10.0.31.255"] {
            let address = address.parse().unwrap();
            assert_eq!(after.twin(new, address), before.twin(old, address));
        }
        let all: std::collections::BTreeSet<_> =
            (0..65_536).map(|n| after.twin(new, new.nth(n).unwrap())).collect();
        assert_eq!(all.len(), 65_536, "no two have the same");
        assert!(all.iter().all(|twin| subnet.contains(*twin) && after.of_twin(new, *twin).is_some()));
        assert_eq!(after.twin(new, [10, 0, 15, 255].into()).to_string(), "fd00:1::ffff:ffff");
        assert_eq!(after.of_twin(new, "fd00:1::fffe:ffff".parse().unwrap()), None);
    }
}
