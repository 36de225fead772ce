//! The options of a network's driver (`-o`, `driver_opts`), by the names that Docker gives them.

use std::net::{IpAddr, Ipv4Addr};

use rswarm_types::network::BridgeOptions;
use rswarm_types::{NetworkDriver, NetworkSpec};

use super::{MTU_MAX, MTU_MIN, NetworkError};

pub(super) const MTU: &str = "com.docker.network.driver.mtu";
const ENCRYPTED: &str = "encrypted";
const ICC: &str = "com.docker.network.bridge.enable_icc";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const HOST_IP: &str = "com.docker.network.bridge.host_binding_ipv4";
const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
const MODE6: &str = "com.docker.network.bridge.gateway_mode_ipv6";

const OVERLAY: [&str; 2] = [MTU, ENCRYPTED];
const BRIDGE: [&str; 6] = [MTU, ICC, MASQUERADE, HOST_IP, MODE, MODE6];

/// What Docker has and rswarm does not, and what to do instead.
const REFUSED: [(&str, &str); 6] = [
    (
        "com.docker.network.bridge.name",
        "each node names its bridge by the network's id; leave it out, and see `ip link show type bridge` on a node",
    ),
    (
        "com.docker.network.container_iface_prefix",
        "the interfaces of a task are `eth0`, `eth1` and so on; leave it out",
    ),
    (
        "com.docker.network.bridge.default_bridge",
        "tasks of services that name no network are on the network `bridge`; leave it out",
    ),
    (
        "com.docker.network.bridge.inhibit_ipv4",
        "the bridge's address is the gateway of its tasks; leave it out, and make the network with `--internal` if \
         they are to have no way out",
    ),
    (
        "com.docker.network.bridge.trusted_host_interfaces",
        "tasks are reached by published ports alone; leave it out, and publish with `interface=NAME`",
    ),
    (
        "com.docker.network.driver.overlay.vxlanid_list",
        "the cluster numbers overlays itself, so that no number comes back soon after its network has gone; leave it \
         out, and keep clear of another VXLAN of the hosts by `rswarm init --data-path-port`",
    ),
];

/// The options of a driver, in words.
pub(super) fn known(driver: NetworkDriver) -> String {
    let names: &[&str] = if driver == NetworkDriver::Overlay { &OVERLAY } else { &BRIDGE };
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Takes the options of a network in as what they mean.
pub(super) fn take_in(spec: &mut NetworkSpec) -> Result<(), NetworkError> {
    spec.bridge = BridgeOptions::default();
    for (name, value) in &spec.options {
        let own = match spec.driver {
            NetworkDriver::Overlay => OVERLAY.contains(&name.as_str()),
            _ => BRIDGE.contains(&name.as_str()),
        };
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(NetworkError::OptionRefused { name: name.clone(), why });
        }
        let invalid = |expected: &str| {
            let (name, value, expected) = (name.clone(), value.clone(), expected.to_owned());
            NetworkError::OptionValue { name, value, expected }
        };
        let either = || match value.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(invalid("`true` or `false`")),
        };
        match name.as_str() {
            _ if !own => return Err(NetworkError::Option { name: name.clone(), driver: spec.driver }),
            MTU => {
                let mtu = value.parse().ok().filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu));
                let expected = || format!("a number of bytes from {MTU_MIN} to {MTU_MAX}");
                spec.mtu = Some(mtu.ok_or_else(|| invalid(&expected()))?);
            }
            ENCRYPTED => match value.as_str() {
                "" | "true" => spec.encrypted = true,
                "false" => spec.encrypted = false,
                _ => return Err(invalid("`true` (or nothing) or `false`")),
            },
            ICC => spec.bridge.icc = either()?,
            MASQUERADE => spec.bridge.masquerade = either()?,
            HOST_IP => spec.bridge.host_ip = host_ip(value).map_err(invalid)?,
            // What is left are the two modes: there is one, under this name.
            _ if value != "nat" => {
                return Err(invalid(&format!(
                    "`nat`, as tasks are reached by published ports alone; for a way out without translation \
                     `{MASQUERADE}=false`"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where ports answer that name no place; `None` is everywhere.
fn host_ip(value: &str) -> Result<Option<Ipv4Addr>, &'static str> {
    match value.parse() {
        Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Ok(None),
        Ok(IpAddr::V4(address)) if !address.is_multicast() && !address.is_broadcast() => Ok(Some(address)),
        Ok(IpAddr::V6(_)) => Err("an IPv4 address; for ports of IPv6, `--publish '[ADDRESS]:8080:80'`"),
        _ => Err("an IPv4 address of the nodes, as `127.0.0.1`, or `0.0.0.0` for all of them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The spec that comes of options, or what is told of them.
    fn of(driver: NetworkDriver, options: &[(&str, &str)]) -> Result<NetworkSpec, String> {
        let mut spec = NetworkSpec::new("front", driver);
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        spec.options = options.collect();
        super::super::network_spec(&mut spec).map(|()| spec).map_err(|error| error.to_string())
    }

    #[test]
    fn options_mean_what_docker_says_of_them() {
        use NetworkDriver::{Bridge, Overlay};
        let spec = of(Overlay, &[(MTU, "1400")]).unwrap();
        assert_eq!((spec.mtu, spec.encrypted), (Some(1400), false));
        for (value, encrypted) in [("", true), ("true", true), ("false", false)] {
            assert_eq!(of(Overlay, &[(ENCRYPTED, value)]).unwrap().encrypted, encrypted, "{value:?}");
        }
        let all =
            [(MTU, "9000"), (ICC, "false"), (MASQUERADE, "false"), (HOST_IP, "127.0.0.1"), (MODE, "nat")];
        let spec = of(Bridge, &all).unwrap();
        let host_ip = Some(Ipv4Addr::LOCALHOST);
        assert_eq!(spec.mtu, Some(9000));
        assert_eq!(spec.bridge, BridgeOptions { icc: false, masquerade: false, host_ip });
        let spec = of(Bridge, &[(ICC, "true"), (MASQUERADE, "true"), (HOST_IP, "0.0.0.0"), (MODE6, "nat")]);
        assert_eq!(spec.unwrap().bridge, BridgeOptions::default());
    }

    #[test]
    fn what_is_not_to_be_had_is_refused_by_name_and_value() {
        use NetworkDriver::{Bridge, Overlay};
        let cases = [
            (
                Overlay,
                MTU,
                "70000",
                "invalid option `com.docker.network.driver.mtu=70000`: expected a number",
            ),
            (
                Bridge,
                MTU,
                "big",
                "invalid option `com.docker.network.driver.mtu=big`: expected a number of bytes",
            ),
            (Overlay, ENCRYPTED, "yes", "invalid option `encrypted=yes`: expected `true`"),
            (
                Bridge,
                ENCRYPTED,
                "",
                "unknown option `encrypted` for driver `bridge`: expected `com.docker.network.dri",
            ),
            (
                Overlay,
                ICC,
                "false",
                "unknown option `com.docker.network.bridge.enable_icc` for driver `overlay`",
            ),
            (Overlay, "dsr", "", "unknown option `dsr` for driver `overlay`"),
            (Bridge, ICC, "no", "bridge.enable_icc=no`: expected `true` or `false`"),
            (Bridge, MASQUERADE, "", "bridge.enable_ip_masquerade=`: expected `true` or `false`"),
            (Bridge, HOST_IP, "eth0", "host_binding_ipv4=eth0`: expected an IPv4 address of the nodes"),
            (
                Bridge,
                HOST_IP,
                "224.0.0.1",
                "host_binding_ipv4=224.0.0.1`: expected an IPv4 address of the nodes",
            ),
            (Bridge, HOST_IP, "::1", "host_binding_ipv4=::1`: expected an IPv4 address; for ports of IPv6"),
            (Bridge, MODE, "routed", "gateway_mode_ipv4=routed`: expected `nat`"),
            (
                Bridge,
                REFUSED[0].0,
                "br0",
                "option `com.docker.network.bridge.name` is not for rswarm: each node",
            ),
            (Overlay, REFUSED[5].0, "5000", "vxlanid_list` is not for rswarm: the cluster numbers overlays"),
        ];
        for (driver, name, value, expected) in cases {
            let told = of(driver, &[(name, value)]).unwrap_err();
            assert!(told.contains(expected), "{expected}: {told}");
        }
    }
}
