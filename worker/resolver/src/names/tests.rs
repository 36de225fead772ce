use super::*;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rswarm_types::netmap::{MapAttachment, MapBridge, MapEndpoint, MapNetwork};
use rswarm_types::service::PublishMode;
use rswarm_types::{ServiceId, Version};

pub(crate) fn network(number: u8) -> NetworkId {
    NetworkId::from_bytes([number; 16])
}

pub(crate) fn task(number: u16) -> TaskId {
    TaskId::from_bytes((u128::from(number) << 96).to_be_bytes())
}

fn service(number: u16) -> ServiceId {
    ServiceId::from_bytes(u128::from(number).to_be_bytes())
}

pub(crate) const NODE: NodeId = NodeId::from_bytes([7; 16]);

fn map_network(name: &str, subnet: &str, ingress: bool) -> MapNetwork {
    let subnet: Subnet = subnet.parse().unwrap();
    MapNetwork {
        name: name.to_owned(),
        vni: 4096,
        subnet,
        gateway: subnet.nth(1).unwrap(),
        ipv6: None,
        mtu: 1450,
        internal: false,
        ingress,
        encrypted: false,
    }
}

/// Networks 1 `front`, 2 `Back.office`, 3 `ingress`, and 4 elsewhere, of which only the subnets are known; a service's
/// virtual address on a network ends in its number, a task's in its own.
///
/// - 2 `Web` on both, alias `www` on front; tasks 21 and 22 ready, 23 starting, 24 draining
/// - 3 `db` on 2 in mode dnsrr, aliases `store` and `web-db`; tasks 31 and 32 ready, 31 with hostname `Primary`
/// - 4 `lonely` on front; task 41 starting
/// - 5 `agent` on front, global; task 51 ready
/// - 6 `other` on front, alias `www` too; task 61 ready
pub(crate) fn map() -> NetworkMap {
    let mut map = NetworkMap { index: Version(1), ..NetworkMap::default() };
    map.networks.insert(network(1), map_network("front", "10.0.0.0/20", false));
    map.networks.insert(network(2), map_network("Back.office", "10.0.16.0/20", false));
    map.networks.insert(network(3), map_network("ingress", "10.255.0.0/20", true));
    let (ipv4, ipv6) = ("10.0.48.0/20".parse().ok(), "fd00:4::/64".parse().ok());
    map.subnets.insert(network(4), MapSubnets { ipv4, ipv6 });
    let port = |target, protocol| PortConfig {
        protocol,
        target,
        published: Some(8080),
        mode: PublishMode::Ingress,
        host_ip: None,
        interface: None,
    };
    type On<'a> = &'a [(u8, &'a [&'a str])];
    let mut add = |number: u8, name: &str, mode, on: On<'_>, ports: &[PortConfig]| {
        let attached = |&(at, aliases): &(u8, &[&str])| {
            let vip = (mode == EndpointMode::Vip).then(|| address(at, number));
            let aliases = aliases.iter().map(|&alias| alias.to_owned()).collect();
            (network(at), MapAttachment { vip, aliases })
        };
        let networks = on.iter().map(attached).collect();
        let added = MapService {
            name: name.to_owned(),
            mode,
            networks,
            ports: ports.to_vec(),
            ..MapService::default()
        };
        map.services.insert(service(number.into()), added);
    };
    let web_ports = [port(80, Protocol::Tcp), port(53, Protocol::Udp)];
    add(2, "Web", EndpointMode::Vip, &[(1, &["www", "WWW"]), (2, &[])], &web_ports);
    add(3, "db", EndpointMode::Dnsrr, &[(2, &["store", "web-db"])], &[]);
    add(4, "lonely", EndpointMode::Vip, &[(1, &[])], &[]);
    add(5, "agent", EndpointMode::Vip, &[(1, &[])], &[]);
    add(6, "other", EndpointMode::Vip, &[(1, &["www"])], &[]);
    let mut run = |number: u8, slot, on: &[u8], state, hostname: &str| {
        let addresses = on.iter().map(|&at| (network(at), address(at, number))).collect();
        let (service, hostname) = (service(u16::from(number / 10)), hostname.to_owned());
        let (nameservers, joined, enclosed) = (Vec::new(), None, false);
        let endpoint = MapEndpoint {
            service,
            slot,
            node: NODE,
            addresses,
            state,
            hostname,
            nameservers,
            joined,
            enclosed,
        };
        map.endpoints.insert(task(number.into()), endpoint);
    };
    run(21, 1, &[1, 2, 3], EndpointState::Ready, "");
    run(22, 2, &[1, 2, 3], EndpointState::Ready, "");
    run(23, 3, &[1, 2, 3], EndpointState::Starting, "");
    run(24, 1, &[1, 2, 3], EndpointState::Draining, "");
    run(31, 1, &[2], EndpointState::Ready, "Primary");
    run(32, 2, &[2], EndpointState::Ready, "");
    run(41, 1, &[1], EndpointState::Starting, "");
    run(51, 0, &[1], EndpointState::Ready, "");
    run(61, 1, &[1], EndpointState::Ready, "");
    map
}

pub(crate) fn address(network: u8, host: u8) -> Ipv4Addr {
    match network {
        1 => Ipv4Addr::new(10, 0, 0, host),
        2 => Ipv4Addr::new(10, 0, 16, host),
        _ => Ipv4Addr::new(10, 255, 0, host),
    }
}

fn found(address: Ipv4Addr) -> Found {
    Found { address: Some(address), twin: None }
}

/// Task 31 of `db`, which is on network 2, connected to network 1 with the alias `Replica`.
#[test]
fn a_connected_task_is_found_by_its_own_names_and_its_service_is_not() {
    let mut map = map();
    let endpoint = map.endpoints.get_mut(&task(31)).unwrap();
    endpoint.addresses.insert(network(1), address(1, 31));
    let aliases = [(network(1), vec!["Replica".to_owned()])].into();
    endpoint.joined = Some(Joined { service: "db".to_owned(), number: 3, aliases });
    // That network's map may not know the service at all.
    map.services.remove(&service(3));
    map.endpoints.remove(&task(32));
    let names = Names::new(&map);
    let asker = address(1, 61);
    let full = format!("db.1.{}", task(31));
    for name in ["replica", "primary", "db.1", "db.1.front", "replica.front", &full, &task(31).short()] {
        assert_eq!(names.addresses(asker, name), Some(vec![found(address(1, 31))]), "{name}");
    }
    for name in ["db", "tasks.db", "1.db", "db.2"] {
        assert_eq!(names.addresses(asker, name), None, "{name}");
    }
    assert_eq!(names.name_of(asker, address(1, 31).into()), Reverse::Name(format!("{full}.front")));
    // It sees both networks itself.
    assert_eq!(names.addresses(address(1, 31), "other"), Some(vec![found(address(1, 6))]));
}

/// A task's short id is enough for its name, and no text beside it.
/// Who asks from there is as enclosed as the tasks are, whoever he is.
#[test]
fn of_a_stranger_on_an_internal_bridge_nobody_is_asked() {
    let mut map = map();
    let subnet: Subnet = "10.9.0.0/24".parse().unwrap();
    let stranger = subnet.nth(9).unwrap();
    for internal in [false, true] {
        let gateway = subnet.nth(1).unwrap();
        let bridge = MapBridge { name: "local".into(), subnet, gateway, ipv6: None, internal };
        map.bridges.insert(network(9), bridge);
        assert_eq!(Names::new(&map).servers_of(stranger).is_none(), internal);
    }
}

#[test]
fn a_short_id_names_its_task_and_nothing_near_it() {
    let names = Names::new(&map());
    let asker = address(1, 61);
    assert_eq!(names.addresses(asker, &task(21).short()), Some(vec![found(address(1, 21))]));
    assert_eq!(names.addresses(asker, &task(23).short()), Some(vec![]), "known, not ready");
    assert_eq!(names.addresses(asker, &task(20).short()), None);
    assert_eq!(names.addresses(asker, &task(31).short()), None, "on another network");
    assert_eq!(names.addresses(asker, "zzzzzzzzzzzz"), None);
    assert_eq!(names.addresses(asker, "not-an-id-ab"), None);
}

pub(crate) fn large_map(services: u16, tasks_each: u16) -> NetworkMap {
    let mut map = NetworkMap::default();
    map.networks.insert(network(1), map_network("large", "10.0.0.0/8", false));
    let host = |number: u32| Ipv4Addr::from(0x0a00_0002 + number);
    for number in 0..services {
        let aliases = vec![format!("alias-of-{number}")];
        let attachment = MapAttachment { vip: Some(host(number.into())), aliases };
        let networks = BTreeMap::from([(network(1), attachment)]);
        let (name, mode) = (format!("service-{number}"), EndpointMode::Vip);
        map.services.insert(service(number), MapService { name, mode, networks, ..MapService::default() });
        for slot in 1..=tasks_each {
            let place = number * tasks_each + slot;
            let endpoint = MapEndpoint {
                service: service(number),
                slot: slot.into(),
                node: NODE,
                addresses: BTreeMap::from([(network(1), host(0x1_0000 + u32::from(place)))]),
                state: EndpointState::Ready,
                hostname: format!("host-{place}"),
                nameservers: Vec::new(),
                joined: None,
                enclosed: false,
            };
            map.endpoints.insert(task(place), endpoint);
        }
    }
    map
}

/// Of a development build on a busy machine, hence the wide bound; `docs/benchmarks.md` has the release's figures.
#[test]
fn an_index_of_ten_thousand_endpoints_is_made_in_no_time() {
    let map = large_map(1000, 10);
    let start = Instant::now();
    let names = Names::new(&map);
    let built = start.elapsed();
    let bytes = rmp_serde::to_vec_named(&map).unwrap();
    let start = Instant::now();
    let read: NetworkMap = rmp_serde::from_slice(&bytes).unwrap();
    eprintln!("{} bytes, decoded in {:?}, index made in {built:?}", bytes.len(), start.elapsed());
    assert_eq!(read, map);
    let asker = Ipv4Addr::from(0x0a01_0003);
    let vip = Ipv4Addr::from(0x0a00_0002 + 999);
    assert_eq!(names.addresses(asker, "service-999"), Some(vec![found(vip)]));
    assert_eq!(names.addresses(asker, "alias-of-999.large"), Some(vec![found(vip)]));
    assert_eq!(names.addresses(asker, "tasks.service-999").map(|found| found.len()), Some(10));
    assert!(built < Duration::from_secs(5), "{built:?}");
}
