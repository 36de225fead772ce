//! The desired state of a node's network, as plain data, and the rules it must obey.
//!
//! A network may have IPv6 beside IPv4. On an overlay each IPv4 address then has a twin, see
//! [`crate::OverlayNetwork::ipv6`], and whatever is told of the one holds for the other; on a node-local bridge each endpoint
//! tells both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::NetError,
    overlay::{MTU_MAX, MTU_MIN, MTU6_MIN, Overlay, fabric::Local},
};

/// Longest interface name the kernel takes (`IFNAMSIZ` less the closing NUL).
pub const INTERFACE_NAME_MAX: usize = 15;

/// Names under which this crate works, so that several daemons (in tests, even in one namespace) stay apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the nft tables (families `inet` and `bridge`), and the first word of the alias that marks each link of
    /// ours.
    pub table: String,
    /// First letters of the names of the veth devices on the node; at most 3 bytes.
    pub link_prefix: String,
    /// Where the namespace of the overlays is pinned.
    pub helper: PathBuf,
    /// Name of the host's end of the link to that namespace.
    pub uplink: String,
    /// What encrypts where the kernel cannot; without it only the kernel will do.
    pub tunnel: Option<TunnelProgram>,
}

/// How the process is started that encrypts what nodes send each other, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelProgram {
    pub executable: PathBuf,
    /// Its first arguments.
    pub args: Vec<String>,
    /// Where it listens to us.
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            table: "rswarm".into(),
            link_prefix: "rsv".into(),
            helper: "/run/rswarm/netns/overlay".into(),
            uplink: "rshost".into(),
            tunnel: None,
        }
    }
}

impl NetworkConfig {
    /// The name of the node's end of an endpoint's veth pair: the prefix and 60 bits of a hash (FNV-1a) of the id, as
    /// ids are longer than interface names may be.
    pub fn link_name(&self, endpoint: &str) -> String {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in endpoint.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let digits = (0..12).map(|n| char::from(DIGITS[(hash >> (n * 5)) as usize & 31]));
        self.link_prefix.chars().chain(digits).collect()
    }

    pub(crate) fn network_alias(&self, network: &str) -> String {
        format!("{} network {network}", self.table)
    }

    pub(crate) fn endpoint_alias(&self, endpoint: &Endpoint) -> String {
        format!("{} endpoint {} {}", self.table, endpoint.id, endpoint.address)
    }

    /// The address in the alias of an endpoint's link, if the link is ours.
    pub(crate) fn endpoint_of_alias<'a>(&self, alias: &'a str) -> Option<(&'a str, Ipv4Addr)> {
        let rest = alias.strip_prefix(self.table.as_str())?.strip_prefix(" endpoint ")?;
        let (id, address) = rest.rsplit_once(' ')?;
        Some((id, address.parse().ok()?))
    }

    pub(crate) fn is_ours(&self, alias: &str) -> bool {
        alias
            .strip_prefix(self.table.as_str())
            .is_some_and(|rest| rest.starts_with(" network ") || rest.starts_with(" endpoint "))
    }
}

/// Everything the node's network should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    pub networks: Vec<BridgeNetwork>,
    /// On `networks` and on those of `overlay`.
    pub endpoints: Vec<Endpoint>,
    pub overlay: Option<Arc<Overlay>>,
}

/// A network that lives on this node alone: a bridge with the gateway's address on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeNetwork {
    pub id: String,
    /// Name of the bridge device, such as `rsw-br0`; at most 15 bytes.
    pub bridge: String,
    /// The address on the bridge: the default gateway of its containers.
    pub gateway: Ipv4Addr,
    pub prefix_len: u8,
    /// First address of the subnet, `gateway` masked by `prefix_len`.
    pub subnet: Ipv4Addr,
    /// Whether traffic that leaves for elsewhere takes the node's address.
    pub masquerade: bool,
    /// No way out and none in: containers get no default route and nothing is forwarded.
    pub internal: bool,
    /// The bridge's IPv6 address, with its network's prefix, if there is one.
    #[serde(default)]
    pub ipv6: Option<Cidr6>,
    /// Without IPv4: such addresses only tell who is who, and nobody has them.
    #[serde(default)]
    pub ipv6_only: bool,
    /// Bytes of a packet inside; left to the kernel if `None`.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Its containers reach each other by published ports alone.
    #[serde(default)]
    pub separate: bool,
}

/// One container's attachment to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Unique on the node: the task's id, and for tasks on several networks something that tells them apart.
    pub id: String,
    /// The id of its [`BridgeNetwork`] or [`OverlayNetwork`](crate::OverlayNetwork).
    pub network: String,
    /// The container's init process, whose network namespace gets the interface.
    pub netns_pid: i32,
    pub address: Ipv4Addr,
    /// On a bridge with IPv6; on an overlay the twin of `address` counts.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Of the network when the address was given; on an overlay that of the network counts, which may have grown since.
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    /// Whether the container's default route leads there; of a task's endpoints one should say so. Never of internal
    /// networks. A task on the ingress network should have it there, or its answers will not find their way.
    #[serde(default = "yes")]
    pub default_route: bool,
    /// Name inside the container, `eth0` as a rule.
    pub interface_name: String,
    pub ports: Vec<HostPort>,
}

fn yes() -> bool {
    true
}

/// A port of this node that leads to a port of one container (`mode=host`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub published: u16,
    pub target: u16,
    /// Where alone it answers; everywhere if `None`.
    #[serde(default)]
    pub at: Option<Place>,
}

/// Where on the node a port answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// At this address; at every one of its family if it is the unspecified one.
    Address(IpAddr),
    /// At every address, for what comes by this interface. What the node sends to itself comes by `lo`.
    Interface { interface: String },
}

impl Place {
    pub fn interface(name: impl Into<String>) -> Self {
        Self::Interface { interface: name.into() }
    }

    /// Why it cannot be.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Self::Address(_) => None,
            Self::Interface { interface } => bad_interface_name(interface),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The protocol with this number in the IP header.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }

    /// The number in the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address that follows from the IPv4 address: a successor that gets the address of a gone
    /// container also gets its MAC, so no neighbour's cache goes stale.
    pub fn from_address(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address of one family, in network order.
pub trait Ip: Copy + Ord + fmt::Display {
    /// `AF_INET` or `AF_INET6`.
    const FAMILY: u8;
    const UNSPECIFIED: Self;
    fn bytes(&self) -> Vec<u8>;
    /// `None` of bytes of another length.
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Ip for Ipv4Addr {
    const FAMILY: u8 = libc::AF_INET as u8;
    const UNSPECIFIED: Self = Self::UNSPECIFIED;

    fn bytes(&self) -> Vec<u8> {
        self.octets().into()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        <[u8; 4]>::try_from(bytes).ok().map(Self::from)
    }
}

impl Ip for Ipv6Addr {
    const FAMILY: u8 = libc::AF_INET6 as u8;
    const UNSPECIFIED: Self = Self::UNSPECIFIED;

    fn bytes(&self) -> Vec<u8> {
        self.octets().into()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        <[u8; 16]>::try_from(bytes).ok().map(Self::from)
    }
}

/// An interface address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cidr<A = Ipv4Addr> {
    pub address: A,
    pub prefix_len: u8,
}

pub type Cidr6 = Cidr<Ipv6Addr>;

impl Cidr6 {
    /// Whether an address is in the network.
    pub(crate) fn contains(self, address: Ipv6Addr) -> bool {
        Self { address, ..self }.subnet() == self.subnet()
    }

    /// The first address of the network.
    pub fn subnet(self) -> Ipv6Addr {
        let hosts = u128::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
        Ipv6Addr::from(u128::from(self.address) & !hosts)
    }
}

impl Cidr {
    /// Whether an address is in the network.
    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.subnet())
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    /// The first address of the network.
    pub fn subnet(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) & self.mask())
    }

    /// The last address of the network.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) | !self.mask())
    }
}

impl<A: fmt::Display> fmt::Display for Cidr<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl BridgeNetwork {
    pub(crate) fn cidr(&self) -> Cidr {
        Cidr { address: self.gateway, prefix_len: self.prefix_len }
    }

    /// What the bridge has of IPv4.
    pub(crate) fn ipv4(&self) -> Option<Cidr> {
        Some(self.cidr()).filter(|_| !self.ipv6_only)
    }

    /// The bridge's addresses.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4().map(|cidr| cidr.address.into());
        ipv4.into_iter().chain(self.ipv6.map(|cidr| cidr.address.into()))
    }

    fn check(&self) -> Result<(), NetError> {
        let invalid =
            |reason: String| Err(NetError::Invalid { what: "network", id: self.id.clone(), reason });
        if self.id.is_empty() || self.id.contains(char::is_whitespace) {
            return invalid("expected an id without spaces".into());
        }
        if let Some(reason) = bad_interface_name(&self.bridge) {
            return invalid(reason);
        }
        if !(1..=30).contains(&self.prefix_len) {
            return invalid(format!("expected a prefix length of 1 to 30, found {}", self.prefix_len));
        }
        if self.cidr().subnet() != self.subnet {
            return invalid(format!(
                "expected subnet `{}` for gateway `{}`, found `{}`",
                self.cidr().subnet(),
                self.cidr(),
                self.subnet
            ));
        }
        if self.gateway == self.subnet || self.gateway == self.cidr().broadcast() {
            return invalid(format!("expected a host address as gateway, found `{}`", self.cidr()));
        }
        if let Some(ipv6) = self.ipv6.filter(|ipv6| !(1..=64).contains(&ipv6.prefix_len)) {
            return invalid(format!("expected an IPv6 prefix of 1 to 64, found `{ipv6}`"));
        }
        // Less would end IPv4, and IPv6 where there is any.
        let least = if self.ipv6.is_some() { MTU6_MIN } else { MTU_MIN };
        if let Some(mtu) = self.mtu.filter(|mtu| !(least..=MTU_MAX).contains(mtu)) {
            return invalid(format!("expected an MTU of {least} to {MTU_MAX}, found {mtu}"));
        }
        Ok(())
    }
}

impl Endpoint {
    /// The MAC of the container's interface.
    pub fn mac(&self) -> Mac {
        Mac::from_address(self.address)
    }

    pub(crate) fn cidr(&self) -> Cidr {
        Cidr { address: self.address, prefix_len: self.prefix_len }
    }

    /// Its IPv6 address on a bridge, if both have one.
    pub(crate) fn address6(&self, network: &BridgeNetwork) -> Option<Ipv6Addr> {
        network.ipv6.and(self.ipv6)
    }

    /// Its addresses on a bridge.
    pub(crate) fn addresses(&self, network: &BridgeNetwork) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = Some(IpAddr::from(self.address)).filter(|_| !network.ipv6_only);
        ipv4.into_iter().chain(self.address6(network).map(IpAddr::from))
    }

    /// `own` is its address, `net` the gateway's in the network.
    fn check(&self, own: Cidr, net: Cidr) -> Result<(), NetError> {
        let invalid =
            |reason: String| Err(NetError::Invalid { what: "endpoint", id: self.id.clone(), reason });
        if self.id.is_empty() || self.id.contains(char::is_whitespace) {
            return invalid("expected an id without spaces".into());
        }
        if let Some(reason) = bad_interface_name(&self.interface_name) {
            return invalid(reason);
        }
        if self.netns_pid <= 0 {
            return invalid(format!("expected a process id, found {}", self.netns_pid));
        }
        if own.prefix_len != net.prefix_len || own.subnet() != net.subnet() {
            return invalid(format!(
                "expected an address in `{}/{}`, found `{own}`",
                net.subnet(),
                net.prefix_len
            ));
        }
        if own.address == net.address || own.address == net.subnet() || own.address == net.broadcast() {
            return invalid(format!("address `{own}` is reserved in network `{}`", self.network));
        }
        if let Some(port) = self.ports.iter().find(|port| port.published == 0 || port.target == 0) {
            return invalid(format!("expected ports 1 to 65535, found `{}:{}`", port.published, port.target));
        }
        if let Some(reason) = self.ports.iter().find_map(|port| port.at.as_ref()?.fault()) {
            return invalid(reason);
        }
        Ok(())
    }
}

fn bad_interface_name(name: &str) -> Option<String> {
    let fine = (1..=INTERFACE_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    (!fine).then(|| format!("expected an interface name of 1 to {INTERFACE_NAME_MAX} bytes, found `{name}`"))
}

impl NodeNetwork {
    pub fn network(&self, id: &str) -> Option<&BridgeNetwork> {
        self.networks.iter().find(|network| network.id == id)
    }

    pub fn endpoint(&self, id: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.id == id)
    }

    /// The overlay that an endpoint is on, if it is on one.
    pub(crate) fn local<'a>(&'a self, endpoint: &'a Endpoint) -> Option<Local<'a>> {
        let overlay = self.overlay.as_ref()?;
        let (vni, network) = overlay.network(&endpoint.network)?;
        Some(Local { node: overlay.node, vni, network, endpoint })
    }

    /// The endpoints on overlays.
    pub(crate) fn locals(&self) -> Vec<Local<'_>> {
        self.endpoints.iter().filter_map(|endpoint| self.local(endpoint)).collect()
    }

    /// Checks that the state makes sense as a whole, before any of it touches the kernel.
    ///
    /// # Errors
    /// `Invalid`, `UnknownNetwork`, `PortTaken` or `AddressTaken`, naming the first offender in the given order.
    pub fn validate(&self) -> Result<(), NetError> {
        if let Some(overlay) = &self.overlay {
            overlay.validate()?;
        }
        let mut ids = BTreeSet::new();
        let mut bridges = BTreeMap::new();
        for network in &self.networks {
            network.check()?;
            let duplicate = |reason| NetError::Invalid { what: "network", id: network.id.clone(), reason };
            if !ids.insert(&network.id) {
                return Err(duplicate("given twice".into()));
            }
            if let Some(holder) = bridges.insert(&network.bridge, &network.id) {
                return Err(duplicate(format!("bridge `{}` belongs to network `{holder}`", network.bridge)));
            }
        }
        let mut ids = BTreeSet::new();
        let mut addresses = BTreeMap::new();
        let mesh = String::from("mesh");
        let published = self.overlay.iter().flat_map(|overlay| overlay.published.keys());
        let mut ports: BTreeMap<_, _> = published.map(|key| (*key, &mesh)).collect();
        for endpoint in &self.endpoints {
            let id = &endpoint.id;
            let network = self.network(&endpoint.network).map(|network| (endpoint.cidr(), network.cidr()));
            let overlay = || self.local(endpoint).map(|local| (local.cidr(), local.network.cidr()));
            let (own, net) = network.or_else(overlay).ok_or_else(|| NetError::UnknownNetwork {
                endpoint: id.clone(),
                network: endpoint.network.clone(),
            })?;
            endpoint.check(own, net)?;
            let ipv6 = self.network(&endpoint.network).and_then(|network| endpoint.ipv6.zip(network.ipv6));
            if let Some((own, net)) = ipv6.filter(|(own, net)| !net.contains(*own) || *own == net.address) {
                let reason = format!("expected an address behind gateway `{net}`, found `{own}`");
                return Err(NetError::Invalid { what: "endpoint", id: id.clone(), reason });
            }
            if !ids.insert(id) {
                return Err(NetError::Invalid {
                    what: "endpoint",
                    id: id.clone(),
                    reason: "given twice".into(),
                });
            }
            if let Some(holder) = addresses.insert((&endpoint.network, endpoint.address), id) {
                return Err(NetError::AddressTaken {
                    address: endpoint.address,
                    endpoint: id.clone(),
                    holder: holder.clone(),
                });
            }
            for port in &endpoint.ports {
                if let Some(holder) = ports.insert((port.protocol, port.published), id) {
                    return Err(NetError::PortTaken {
                        protocol: port.protocol,
                        port: port.published,
                        endpoint: id.clone(),
                        holder: holder.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
