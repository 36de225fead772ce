//! What is refused, and names that fit.

use super::*;
use crate::testing::{endpoint, network};

fn check(change: impl FnOnce(&mut NodeNetwork), expected: &str) {
    let mut node = NodeNetwork {
        networks: vec![network("n0", 0), network("n1", 1)],
        endpoints: vec![
            endpoint("a", "n0", "10.90.0.2", &[(8080, 80)]),
            endpoint("b", "n0", "10.90.0.3", &[]),
        ],
        overlay: None,
    };
    change(&mut node);
    let found = node.validate().map_or_else(|error| error.to_string(), |()| "fine".into());
    assert_eq!(found, expected);
}

#[test]
fn nonsense_is_refused_by_name() {
    check(|_| {}, "fine");
    check(|n| n.networks[0].prefix_len = 31, "network `n0`: expected a prefix length of 1 to 30, found 31");
    check(
        |n| n.networks[0].bridge = "a-name-too-long-".into(),
        "network `n0`: expected an interface name of 1 to 15 bytes, found `a-name-too-long-`",
    );
    check(
        |n| n.networks[1].bridge = "rsw-br0".into(),
        "network `n1`: bridge `rsw-br0` belongs to network `n0`",
    );
    check(
        |n| n.networks[0].subnet = Ipv4Addr::new(10, 91, 0, 0),
        "network `n0`: expected subnet `10.90.0.0` for gateway `10.90.0.1/24`, found `10.91.0.0`",
    );
    check(
        |n| n.endpoints[0].address = Ipv4Addr::new(10, 91, 0, 2),
        "endpoint `a`: expected an address in `10.90.0.0/24`, found `10.91.0.2/24`",
    );
    check(
        |n| n.endpoints[0].address = Ipv4Addr::new(10, 90, 0, 1),
        "endpoint `a`: address `10.90.0.1/24` is reserved in network `n0`",
    );
    check(
        |n| n.endpoints[1].address = n.endpoints[0].address,
        "address `10.90.0.2` asked for by endpoint `b` belongs to endpoint `a`",
    );
    check(
        |n| n.endpoints[1].ports = n.endpoints[0].ports.clone(),
        "tcp port 8080 asked for by endpoint `b` is published by endpoint `a`",
    );
    check(
        |n| n.networks[0].ipv6 = Some(Cidr { address: "fd00:1::1".parse().unwrap(), prefix_len: 96 }),
        "network `n0`: expected an IPv6 prefix of 1 to 64, found `fd00:1::1/96`",
    );
    check(
        |n| {
            n.networks[0].ipv6 = Some(Cidr { address: "fd00:1::1".parse().unwrap(), prefix_len: 64 });
            n.endpoints[0].ipv6 = Some("fd00:2::2".parse().unwrap());
        },
        "endpoint `a`: expected an address behind gateway `fd00:1::1/64`, found `fd00:2::2`",
    );
    check(|n| n.networks[0].mtu = Some(500), "network `n0`: expected an MTU of 576 to 65485, found 500");
    check(|n| n.endpoints[1].id = "a".into(), "endpoint `a`: given twice");
    check(
        |n| n.endpoints[1].network = "n9".into(),
        "network `n9` of endpoint `b` is not on this node: ensure the network first",
    );
    check(|n| n.endpoints[1].netns_pid = 0, "endpoint `b`: expected a process id, found 0");
    check(|n| n.endpoints[0].ports[0].target = 0, "endpoint `a`: expected ports 1 to 65535, found `8080:0`");
    check(
        |n| n.endpoints[0].ports[0].at = Some(Place::interface("a b")),
        "endpoint `a`: expected an interface name of 1 to 15 bytes, found `a b`",
    );
}

/// Records of endpoints outlive the daemon that wrote them.
#[test]
fn ports_are_written_as_they_were_when_there_were_addresses_alone() {
    let port = |at| HostPort { protocol: Protocol::Tcp, published: 8080, target: 80, at };
    for (at, text) in [
        (None, "null"),
        (Some(Place::Address(Ipv4Addr::LOCALHOST.into())), r#""127.0.0.1""#),
        (Some(Place::Address(Ipv6Addr::LOCALHOST.into())), r#""::1""#),
        (Some(Place::interface("eth0")), r#"{"interface":"eth0"}"#),
    ] {
        let json = format!(r#"{{"protocol":"tcp","published":8080,"target":80,"at":{text}}}"#);
        assert_eq!(serde_json::to_string(&port(at.clone())).unwrap(), json);
        assert_eq!(serde_json::from_str::<HostPort>(&json).unwrap(), port(at));
    }
    let older = r#"{"protocol":"tcp","published":8080,"target":80}"#;
    assert_eq!(serde_json::from_str::<HostPort>(older).unwrap(), port(None));
}

#[test]
fn link_names_fit_and_differ() {
    let config = NetworkConfig::default();
    let names: BTreeSet<_> = (0..1000).map(|n| config.link_name(&format!("task-{n}"))).collect();
    assert_eq!(names.len(), 1000);
    assert!(names.iter().all(|name| name.len() == INTERFACE_NAME_MAX && name.starts_with("rsv")));
}

#[test]
fn aliases_tell_whose_link_it_is() {
    let config = NetworkConfig::default();
    let endpoint = endpoint("a", "n0", "10.90.0.2", &[]);
    let alias = config.endpoint_alias(&endpoint);
    assert_eq!(config.endpoint_of_alias(&alias), Some(("a", endpoint.address)));
    assert!(config.is_ours(&alias) && config.is_ours(&config.network_alias("n0")));
    let other = NetworkConfig { table: "rsw".into(), ..config };
    assert!(!other.is_ours(&alias) && other.endpoint_of_alias(&alias).is_none());
}

#[test]
fn records_of_before_ipv6_on_bridges_are_read_as_networks_without() {
    let mut network = serde_json::to_value(network("n0", 0)).unwrap();
    let mut attached = serde_json::to_value(endpoint("a", "n0", "10.90.0.2", &[])).unwrap();
    for field in ["ipv6", "ipv6_only"] {
        network.as_object_mut().unwrap().remove(field).unwrap();
    }
    attached.as_object_mut().unwrap().remove("ipv6").unwrap();
    assert_eq!(serde_json::from_value::<BridgeNetwork>(network).unwrap(), crate::testing::network("n0", 0));
    let read = serde_json::from_value::<Endpoint>(attached).unwrap();
    assert_eq!(read, endpoint("a", "n0", "10.90.0.2", &[]));
}
