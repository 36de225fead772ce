//! What a network and the cluster's address pools must satisfy.

mod options;

use std::net::{IpAddr, Ipv4Addr};

use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::network::PREFIX6_MAX;
use rswarm_types::{ClusterSpec, NetworkDriver, NetworkSpec};

use super::SpecError;

/// Longest prefix of an address pool: with the network, the gateway and the broadcast address five are left for tasks.
/// Source: Swarm's limit of `--default-addr-pool-mask-length`.
pub const POOL_PREFIX_MAX: u8 = 29;
/// Shortest one: no private range is larger.
pub const POOL_PREFIX_MIN: u8 = 8;

/// Least bytes of a packet: what every host has to accept. Source: RFC 791.
const MTU_MIN: u32 = 576;
/// Most: an IPv4 packet, less what VXLAN puts around it.
const MTU_MAX: u32 = 65_535 - 50;

/// Least bytes of a packet where there is IPv6. Source: RFC 8200, section 5.
const MTU6_MIN: u32 = 1280;
/// Shortest prefix of an IPv6 subnet: what a provider is given.
const PREFIX6_MIN: u8 = 32;

/// Ports that may carry the data path. Source: swarm-parity 1.1, `--data-path-port`.
const DATA_PATH_PORTS: std::ops::RangeInclusive<u16> = 1024..=49_151;

/// What is wrong with a network, or with where networks are taken from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "a network of driver `{0}` exists in every cluster, under that name: expected `overlay` or `bridge`"
    )]
    Driver(NetworkDriver),
    #[error("unknown option `{name}` for driver `{driver}`: expected {}", options::known(*.driver))]
    Option { name: String, driver: NetworkDriver },
    #[error("option `{name}` is not for rswarm: {why}")]
    OptionRefused { name: String, why: &'static str },
    #[error("invalid option `{name}={value}`: expected {expected}")]
    OptionValue { name: String, value: String, expected: String },
    #[error("invalid MTU {0}: expected a number of bytes from {MTU_MIN} to {MTU_MAX}")]
    Mtu(u32),
    #[error(
        "the ingress network is an overlay that no container attaches to and that has a way out: leave out {0}"
    )]
    Ingress(&'static str),
    #[error(
        "containers that are no task attach to overlays only: leave `attachable` out for driver `bridge`"
    )]
    AttachableBridge,
    #[error("{0} of IPv4 is given for a network without IPv4: leave it out, or expected IPv4 as well")]
    Ipv4Part(&'static str),
    #[error("{what} `{found}` is given without a subnet that it lies in")]
    NoSubnet { what: &'static str, found: String },
    #[error("{what} `{found}` lies outside of subnet `{subnet}`")]
    Outside { what: &'static str, found: String, subnet: String },
    #[error("gateway `{gateway}` is the {what} of subnet `{subnet}`: expected one of the addresses between")]
    Gateway { gateway: IpAddr, what: &'static str, subnet: String },
    #[error("address range `{range}` of subnet `{subnet}` has no address left for tasks")]
    RangeEmpty { range: Subnet, subnet: Subnet },
    #[error(
        "invalid {what} `{found}`: expected a network of /{POOL_PREFIX_MIN} to /{POOL_PREFIX_MAX}, so that tasks \
         find addresses in it"
    )]
    Size { what: &'static str, found: Subnet },
    #[error("invalid subnet `{0}`: expected a network of /{PREFIX6_MIN} to /{PREFIX6_MAX}")]
    Size6(Subnet6),
    #[error(
        "invalid option `{option}={0}` for a network with IPv6: expected at least {MTU6_MIN} bytes",
        option = options::MTU
    )]
    Mtu6(u32),
    #[error("invalid {what} `{found}`: it overlaps `{reserved}`, {why}")]
    Reserved { what: &'static str, found: String, reserved: String, why: &'static str },
    #[error("address pools `{0}` and `{1}` overlap")]
    PoolsOverlap(Subnet, Subnet),
    #[error(
        "invalid length {0} of the prefixes taken from address pools: expected {POOL_PREFIX_MIN} to {POOL_PREFIX_MAX}"
    )]
    PrefixLen(u8),
    #[error("invalid data path port {found}: expected {} to {}", DATA_PATH_PORTS.start(), DATA_PATH_PORTS.end())]
    DataPathPort { found: u16 },
}

/// Checks a network as the user wrote it, and takes its options in.
pub fn network_spec(spec: &mut NetworkSpec) -> Result<(), SpecError> {
    super::name(&spec.name)?;
    if matches!(spec.driver, NetworkDriver::Host | NetworkDriver::None) {
        return Err(NetworkError::Driver(spec.driver).into());
    }
    options::take_in(spec)?;
    if let Some(mtu) = spec.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
        return Err(NetworkError::Mtu(mtu).into());
    }
    if let Some(mtu) = spec.mtu.filter(|mtu| spec.ipam.ipv6.is_some() && *mtu < MTU6_MIN) {
        return Err(NetworkError::Mtu6(mtu).into());
    }
    if spec.driver == NetworkDriver::Bridge {
        for (given, error) in [
            (spec.ingress, NetworkError::Ingress("driver `bridge`")),
            (spec.attachable, NetworkError::AttachableBridge),
        ] {
            if given {
                return Err(error.into());
            }
        }
    }
    let alone = spec.ipam.ipv6.is_some_and(|ipv6| ipv6.alone);
    let parts = [
        (spec.bridge.host_ip.is_some(), "a host binding"),
        (spec.ipam.subnet.is_some(), "a subnet"),
        (spec.ipam.gateway.is_some(), "a gateway"),
        (spec.ipam.range.is_some(), "an address range"),
    ];
    if let Some((_, what)) = parts.into_iter().find(|(given, _)| *given && alone) {
        return Err(NetworkError::Ipv4Part(what).into());
    }
    for (given, what) in
        [(spec.attachable, "`attachable`"), (spec.internal, "`internal`"), (alone, "`--ipv4=false`")]
    {
        if given && spec.ingress {
            return Err(NetworkError::Ingress(what).into());
        }
    }
    addresses(spec)?;
    Ok(addresses6(spec)?)
}

fn addresses6(spec: &NetworkSpec) -> Result<(), NetworkError> {
    let Some(asked) = spec.ipam.ipv6 else { return Ok(()) };
    let Some(subnet) = asked.subnet else {
        return match asked.gateway {
            Some(gateway) => Err(NetworkError::NoSubnet { what: "gateway", found: gateway.to_string() }),
            None => Ok(()),
        };
    };
    if !(PREFIX6_MIN..=PREFIX6_MAX).contains(&subnet.prefix_len) {
        return Err(NetworkError::Size6(subnet));
    }
    // Source: RFC 6890, addresses that no host has.
    const RESERVED: [(u16, u8, &str); 3] = [
        (0, 8, "which is loopback or stands for IPv4"),
        (0xfe80, 10, "which is link-local"),
        (0xff00, 8, "which is multicast"),
    ];
    for (first, prefix_len, why) in RESERVED {
        let reserved = Subnet6 { address: [first, 0, 0, 0, 0, 0, 0, 0].into(), prefix_len };
        if reserved.overlaps(subnet) {
            let (found, reserved) = (subnet.to_string(), reserved.to_string());
            return Err(NetworkError::Reserved { what: "subnet", found, reserved, why });
        }
    }
    let Some(gateway) = asked.gateway else { return Ok(()) };
    let text = subnet.to_string();
    if !subnet.contains(gateway) {
        return Err(NetworkError::Outside { what: "gateway", found: gateway.to_string(), subnet: text });
    }
    if gateway == subnet.address {
        return Err(NetworkError::Gateway { gateway: gateway.into(), what: "address", subnet: text });
    }
    Ok(())
}

fn addresses(spec: &NetworkSpec) -> Result<(), NetworkError> {
    let (gateway, range) = (spec.ipam.gateway, spec.ipam.range);
    let Some(subnet) = spec.ipam.subnet else {
        let gateway = gateway.map(|gateway| ("gateway", gateway.to_string()));
        return match gateway.or(range.map(|range| ("address range", range.to_string()))) {
            Some((what, found)) => Err(NetworkError::NoSubnet { what, found }),
            None => Ok(()),
        };
    };
    has_room("subnet", subnet)?;
    let last = u64::from(u32::from(subnet.address)) + subnet.size() - 1;
    if let Some(gateway) = gateway {
        if !subnet.contains(gateway) {
            return Err(NetworkError::Outside {
                what: "gateway",
                found: gateway.to_string(),
                subnet: subnet.to_string(),
            });
        }
        for (special, what) in
            [(u64::from(u32::from(subnet.address)), "address"), (last, "broadcast address")]
        {
            if u64::from(u32::from(gateway)) == special {
                let (gateway, subnet) = (gateway.into(), subnet.to_string());
                return Err(NetworkError::Gateway { gateway, what, subnet });
            }
        }
    }
    if let Some(range) = range {
        if range.prefix_len < subnet.prefix_len || !subnet.contains(range.address) {
            let (found, subnet) = (range.to_string(), subnet.to_string());
            return Err(NetworkError::Outside { what: "address range", found, subnet });
        }
        let gateway = gateway.or(subnet.nth(1));
        let special = [Some(subnet.address), gateway, u32::try_from(last).ok().map(Ipv4Addr::from)];
        let special = special.into_iter().flatten().filter(|address| range.contains(*address)).count();
        if range.size() <= special as u64 {
            return Err(NetworkError::RangeEmpty { range, subnet });
        }
    }
    Ok(())
}

/// Checks where the cluster takes addresses from, and the port between nodes.
pub(super) fn cluster(spec: &ClusterSpec) -> Result<(), NetworkError> {
    has_room("subnet of the network `bridge`", spec.default_address_pool)?;
    for (i, pool) in spec.overlay_pools.iter().enumerate() {
        has_room("address pool", *pool)?;
        if let Some(other) = spec.overlay_pools[..i].iter().find(|other| other.overlaps(*pool)) {
            return Err(NetworkError::PoolsOverlap(*other, *pool));
        }
    }
    if !(POOL_PREFIX_MIN..=POOL_PREFIX_MAX).contains(&spec.overlay_prefix_len) {
        return Err(NetworkError::PrefixLen(spec.overlay_prefix_len));
    }
    if !DATA_PATH_PORTS.contains(&spec.data_path_port) {
        return Err(NetworkError::DataPathPort { found: spec.data_path_port });
    }
    Ok(())
}

/// Checks that tasks can be given addresses of a network. Source: RFC 6890, addresses that no host has.
fn has_room(what: &'static str, found: Subnet) -> Result<(), NetworkError> {
    if !(POOL_PREFIX_MIN..=POOL_PREFIX_MAX).contains(&found.prefix_len) {
        return Err(NetworkError::Size { what, found });
    }
    const RESERVED: [([u8; 4], u8, &str); 4] = [
        ([0, 0, 0, 0], 8, "which stands for this network"),
        ([127, 0, 0, 0], 8, "which is loopback"),
        ([169, 254, 0, 0], 16, "which is link-local"),
        ([224, 0, 0, 0], 3, "which is multicast or reserved"),
    ];
    for (address, prefix_len, why) in RESERVED {
        let reserved = Subnet { address: Ipv4Addr::from(address), prefix_len };
        if reserved.overlaps(found) {
            let (found, reserved) = (found.to_string(), reserved.to_string());
            return Err(NetworkError::Reserved { what, found, reserved, why });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rswarm_types::network::IpamSpec6;

    use super::*;
    use crate::validate::cluster_spec;

    fn check(found: Option<String>, expected: &str) {
        let found = found.unwrap_or_default();
        assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{expected}: {found}");
    }

    #[test]
    fn pools_have_room_and_are_nobody_else_s() {
        for (pool, expected) in [
            ("10.213.0.0/16", ""),
            ("10.0.0.0/8", ""),
            ("192.168.7.0/29", ""),
            ("192.168.7.0/31", "`192.168.7.0/31`: expected a network of /8 to /29"),
            ("192.168.7.1/32", "invalid"),
            ("0.0.0.0/0", "invalid"),
            ("127.1.0.0/16", "it overlaps `127.0.0.0/8`, which is loopback"),
            ("169.254.1.0/24", "link-local"),
            ("224.0.0.0/8", "multicast"),
        ] {
            let pool: Subnet = pool.parse().unwrap();
            let bridge = ClusterSpec { default_address_pool: pool, ..ClusterSpec::default() };
            check(cluster_spec(&bridge).err().map(|error| error.to_string()), expected);
            let overlays = ClusterSpec { overlay_pools: vec![pool], ..ClusterSpec::default() };
            check(cluster_spec(&overlays).err().map(|error| error.to_string()), expected);
        }
        type Change = fn(&mut ClusterSpec);
        let cases: [(Change, &str); 3] = [
            (
                |s| s.overlay_pools = ["10.1.0.0/16", "10.0.0.0/8"].map(|p| p.parse().unwrap()).to_vec(),
                "overlap",
            ),
            (|s| s.overlay_prefix_len = 30, "invalid length 30"),
            (|s| s.data_path_port = 80, "invalid data path port 80: expected 1024 to 49151"),
        ];
        for (change, expected) in cases {
            let mut spec = ClusterSpec::default();
            change(&mut spec);
            check(cluster_spec(&spec).err().map(|error| error.to_string()), expected);
        }
    }

    #[test]
    fn good_and_bad_networks() {
        let subnet = |spec: &mut NetworkSpec, text: &str| spec.ipam.subnet = Some(text.parse().unwrap());
        let option = |spec: &mut NetworkSpec, name: &str, value: &str| {
            spec.options.insert(name.into(), value.into());
        };
        let ipv6 = |spec: &mut NetworkSpec, subnet: Option<&str>, gateway: Option<&str>| {
            let (subnet, gateway) =
                (subnet.map(|s| s.parse().unwrap()), gateway.map(|text| text.parse().unwrap()));
            spec.ipam.ipv6 = Some(IpamSpec6 { subnet, gateway, alone: false });
        };
        let alone = |spec: &mut NetworkSpec| {
            spec.ipam.ipv6 = Some(IpamSpec6 { alone: true, ..IpamSpec6::default() });
        };
        type Change<'a> = Box<dyn Fn(&mut NetworkSpec) + 'a>;
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(|_| {}), ""),
            (Box::new(|s| s.name = "a.b".into()), "invalid name"),
            (Box::new(|s| s.driver = NetworkDriver::Host), "driver `host` exists in every cluster"),
            (Box::new(|s| (s.ingress, s.attachable) = (true, true)), "leave out `attachable`"),
            (Box::new(|s| (s.ingress, s.internal) = (true, true)), "leave out `internal`"),
            (
                Box::new(|s| (s.ingress, s.driver) = (true, NetworkDriver::Bridge)),
                "leave out driver `bridge`",
            ),
            (Box::new(|s| (s.internal, s.driver) = (true, NetworkDriver::Bridge)), ""),
            (Box::new(move |s| subnet(s, "10.9.0.0/16")), ""),
            (Box::new(move |s| subnet(s, "10.9.0.0/30")), "invalid subnet `10.9.0.0/30`"),
            (Box::new(move |s| subnet(s, "224.1.0.0/16")), "multicast"),
            (
                Box::new(|s| s.ipam.gateway = Some([10, 9, 0, 1].into())),
                "gateway `10.9.0.1` is given without a subnet",
            ),
            (
                Box::new(move |s| {
                    subnet(s, "10.9.0.0/24");
                    s.ipam.gateway = Some([10, 9, 1, 1].into());
                }),
                "gateway `10.9.1.1` lies outside of subnet `10.9.0.0/24`",
            ),
            (
                Box::new(move |s| {
                    subnet(s, "10.9.0.0/24");
                    s.ipam.gateway = Some([10, 9, 0, 255].into());
                }),
                "is the broadcast address of subnet",
            ),
            (
                Box::new(move |s| {
                    subnet(s, "10.9.0.0/24");
                    s.ipam.range = Some("10.9.0.0/16".parse().unwrap());
                }),
                "address range `10.9.0.0/16` lies outside",
            ),
            (
                Box::new(move |s| {
                    subnet(s, "10.9.0.0/24");
                    s.ipam.range = Some("10.9.0.0/31".parse().unwrap());
                }),
                "has no address left",
            ),
            (Box::new(move |s| ipv6(s, None, None)), ""),
            (Box::new(move |s| alone(s)), ""),
            (
                Box::new(move |s| {
                    alone(s);
                    s.driver = NetworkDriver::Bridge;
                    option(s, "com.docker.network.bridge.host_binding_ipv4", "127.0.0.1");
                }),
                "a host binding of IPv4 is given for a network without IPv4",
            ),
            (
                Box::new(move |s| {
                    alone(s);
                    s.ingress = true;
                }),
                "leave out `--ipv4=false`",
            ),
            (
                Box::new(move |s| {
                    alone(s);
                    subnet(s, "10.9.0.0/16");
                }),
                "a subnet of IPv4 is given for a network without IPv4",
            ),
            (Box::new(move |s| ipv6(s, Some("fd00:1::/64"), Some("fd00:1::9"))), ""),
            (Box::new(move |s| ipv6(s, Some("2001:db8::/48"), None)), ""),
            (
                Box::new(move |s| {
                    ipv6(s, None, None);
                    s.driver = NetworkDriver::Bridge;
                }),
                "",
            ),
            (
                Box::new(move |s| {
                    ipv6(s, None, None);
                    option(s, options::MTU, "1279");
                }),
                "mtu=1279` for a network with IPv6",
            ),
            (Box::new(move |s| ipv6(s, Some("fd00:1::/112"), None)), "expected a network of /32 to /64"),
            (Box::new(move |s| ipv6(s, Some("fc00::/7"), None)), "invalid subnet `fc00::/7`"),
            (Box::new(move |s| ipv6(s, Some("fe80::/64"), None)), "link-local"),
            (Box::new(move |s| ipv6(s, Some("ff02::/64"), None)), "multicast"),
            (Box::new(move |s| ipv6(s, Some("::/64"), None)), "loopback"),
            (Box::new(move |s| ipv6(s, None, Some("fd00:1::9"))), "`fd00:1::9` is given without a subnet"),
            (
                Box::new(move |s| ipv6(s, Some("fd00:1::/64"), Some("fd00:2::9"))),
                "`fd00:2::9` lies outside of subnet `fd00:1::/64`",
            ),
            (Box::new(move |s| ipv6(s, Some("fd00:1::/64"), Some("fd00:1::"))), "is the address of subnet"),
        ];
        for (change, expected) in cases {
            let mut spec = NetworkSpec::new("front", NetworkDriver::Overlay);
            change(&mut spec);
            check(network_spec(&mut spec).err().map(|error| error.to_string()), expected);
        }
    }
}
