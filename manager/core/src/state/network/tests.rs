//! What the network is given in `apply`.

use std::time::Duration;

use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::network::{IpamSpec6, NUMBERS};
use rswarm_types::node::NodeNetworkFacts;
use rswarm_types::service::{EndpointMode, FailureAction, PortConfig, Protocol, PublishMode, UpdateState};
use rswarm_types::task::NetworkAttachment;
use rswarm_types::{
    Cluster, ClusterId, Network, NetworkDriver, NetworkId, NetworkSpec, NodeDescription, ServiceId,
    ServiceMode, ServiceSpec, TaskId, TaskState,
};

use super::AddressHolder;
use crate::Write;
use crate::state::{Rejected, ServiceChange, State};
use crate::testing::{Fixture, node_id};

fn overlay(f: &mut Fixture, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> (NetworkId, Write) {
    let mut network = f.network(name, "10.0.0.0/24");
    (network.ipam, network.spec.driver) = (None, NetworkDriver::Overlay);
    change(&mut network.spec);
    (network.id, Write::CreateNetwork(Box::new(network)))
}

fn make(f: &mut Fixture, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkId {
    let (id, write) = overlay(f, name, change);
    f.must(vec![write]);
    id
}

fn refused(f: &mut Fixture, write: Write) -> String {
    f.commit(vec![write]).unwrap_err().to_string()
}

fn network(f: &Fixture, id: NetworkId) -> &Network {
    f.state.network(id).unwrap()
}

fn subnet(f: &Fixture, id: NetworkId) -> String {
    network(f, id).ipam.unwrap().subnet.to_string()
}

fn on(networks: &[NetworkId]) -> impl FnOnce(&mut ServiceSpec) {
    let attach = |network: &NetworkId| NetworkAttachment { network: *network, aliases: vec![] };
    let networks: Vec<_> = networks.iter().map(attach).collect();
    |spec| spec.task.networks = networks
}

fn port(published: Option<u16>, target: u16, mode: PublishMode) -> PortConfig {
    PortConfig { protocol: Protocol::Tcp, target, published, mode, host_ip: None, interface: None }
}

fn publish(ports: &[PortConfig]) -> impl FnOnce(&mut ServiceSpec) {
    let ports = ports.to_vec();
    |spec| spec.endpoint.ports = ports
}

fn create_write(f: &mut Fixture, name: &str, change: impl FnOnce(&mut ServiceSpec)) -> Write {
    let spec = Box::new(Fixture::spec(name, 1, change));
    Write::CreateService { id: ServiceId::from_bytes(f.mint().to_bytes()), spec }
}

fn published(f: &Fixture, id: ServiceId) -> Vec<u16> {
    f.state.service(id).unwrap().endpoint.ports.iter().filter_map(|port| port.published).collect()
}

const MESH: PublishMode = PublishMode::Ingress;

#[test]
fn overlays_get_vnis_and_subnets_that_overlap_nothing() {
    // `bridge` has 10.0.0.0/24.
    let mut f = Fixture::new(0);
    f.add_node(1, |node| {
        let routes = vec!["10.0.16.0/22".parse().unwrap()];
        let network = NodeNetworkFacts { routes, ..NodeNetworkFacts::default() };
        node.description = Some(NodeDescription { hostname: "alpha".into(), network, ..Default::default() });
    });
    let front = make(&mut f, "front", |_| {});
    let back = make(&mut f, "back", |_| {});
    // Each has room to grow, up to sixteen times; neither what is routed nor another network is in the way.
    assert_eq!([subnet(&f, front), subnet(&f, back)], ["10.1.0.0/20", "10.2.0.0/20"]);
    assert_eq!((network(&f, front).vni, network(&f, back).vni), (Some(4096), Some(4097)));
    // A subnet is used again, a VNI not so soon: packets of the network that had it may still be under way.
    f.must(vec![Write::RemoveNetwork { id: front }]);
    let third = make(&mut f, "third", |_| {});
    assert_eq!((subnet(&f, third).as_str(), network(&f, third).vni), ("10.1.0.0/20", Some(4098)));

    let of = |text: &str| Some(text.parse::<Subnet>().unwrap());
    let (_, write) = overlay(&mut f, "a", |spec| spec.ipam.subnet = of("10.2.15.0/24"));
    let text = refused(&mut f, write);
    assert_eq!(text, "subnet `10.2.15.0/24` overlaps `10.2.0.0/20`, network `back`; choose another one");
    let (_, write) = overlay(&mut f, "a", |spec| spec.ipam.subnet = of("10.0.18.0/24"));
    let text = refused(&mut f, write);
    assert!(text.contains("overlaps `10.0.16.0/22`, a route of node `alpha`"), "{text}");
    let own = make(&mut f, "own", |spec| {
        (spec.ipam.subnet, spec.ipam.gateway) = (of("172.20.0.0/16"), Some([172, 20, 9, 9].into()));
    });
    assert_eq!(network(&f, own).ipam.unwrap().gateway.to_string(), "172.20.9.9");
}

#[test]
fn a_network_with_ipv6_gives_everybody_a_twin() {
    let mut f = Fixture::new(1);
    f.add_node(2, |node| {
        let routes6 = vec!["fd00:9::/48".parse().unwrap()];
        let network = NodeNetworkFacts { routes6, ..NodeNetworkFacts::default() };
        node.description = Some(NodeDescription { hostname: "alpha".into(), network, ..Default::default() });
    });
    let side = |f: &Fixture, id| {
        let ipv6 = network(f, id).ipam.unwrap().ipv6.unwrap();
        (ipv6.subnet.to_string(), ipv6.gateway.to_string())
    };
    let asked = |subnet: &str, gateway: Option<&str>| {
        let gateway = gateway.map(|text| text.parse().unwrap());
        Some(IpamSpec6 { subnet: Some(subnet.parse().unwrap()), gateway, alone: false })
    };
    let pool = Cluster::ipv6_pool(f.state.cluster().map_or(ClusterId::from_bytes([0; 16]), |held| held.id));
    let nth = |n: u32| format!("{}{n}::", pool.address.to_string().trim_end_matches(':').to_owned() + ":");
    let plain = make(&mut f, "plain", |_| {});
    assert_eq!(network(&f, plain).ipam.unwrap().ipv6, None);
    let first = make(&mut f, "first", |spec| spec.ipam.ipv6 = Some(IpamSpec6::default()));
    assert_eq!(side(&f, first).0.parse::<Subnet6>().unwrap(), format!("{}/64", nth(1)).parse().unwrap());
    let second = make(&mut f, "second", |spec| spec.ipam.ipv6 = Some(IpamSpec6::default()));
    assert_eq!(side(&f, second).0.parse::<Subnet6>().unwrap(), format!("{}/64", nth(2)).parse().unwrap());
    // The gateway of one family is the twin of the other's, unless both are chosen.
    let own = make(&mut f, "own", |spec| {
        spec.ipam.subnet = Some("172.20.0.0/29".parse().unwrap());
        spec.ipam.gateway = Some([172, 20, 0, 6].into());
        spec.ipam.ipv6 = asked("fd00:1::/64", None);
    });
    assert_eq!(side(&f, own), ("fd00:1::/64".into(), "fd00:1::6".into()));
    let odd = make(&mut f, "odd", |spec| {
        spec.ipam.subnet = Some("172.21.0.0/29".parse().unwrap());
        spec.ipam.ipv6 = asked("fd00:2::/64", Some("fd00:2::3"));
    });
    for (subnet, expected) in [
        ("fd00:1::/60", "overlaps `fd00:1::/64`, network `own`"),
        ("fd00:9:0:7::/64", "overlaps `fd00:9::/48`, a route of node `alpha`"),
    ] {
        let (_, write) = overlay(&mut f, "a", |spec| spec.ipam.ipv6 = asked(subnet, None));
        let text = refused(&mut f, write);
        assert!(text.contains(expected), "{text}");
    }
    // Nobody has the address whose twin is the gateway: four of eight are left, one of them the service's.
    let write = create_write(&mut f, "more", |spec| {
        on(&[odd])(spec);
        spec.mode = ServiceMode::Replicated { replicas: 4 };
    });
    let text = refused(&mut f, write);
    assert!(text.contains("has 4 addresses") && text.contains("service `more` for 5;"), "{text}");
    let web = f.create("web", 3, on(&[odd]));
    f.run();
    let vip = f.state.service(web).unwrap().endpoint.vips[&odd];
    let tasks = f.state.tasks().filter_map(|task| task.networks.first()?.address);
    let mut twins: Vec<String> = tasks.map(|at| at.ipv6.unwrap().address.to_string()).collect();
    twins.push(network(&f, odd).ipam.unwrap().twin(vip).unwrap().to_string());
    twins.sort();
    assert_eq!(twins, ["fd00:2::2", "fd00:2::4", "fd00:2::5", "fd00:2::6"]);
    assert_eq!(f.state.check(), []);
}

#[test]
fn a_network_with_ipv6_alone_is_in_nobody_s_way_and_shows_no_number() {
    let mut f = Fixture::new(1);
    let alone = |spec: &mut NetworkSpec| {
        spec.ipam.ipv6 = Some(IpamSpec6 { alone: true, ..IpamSpec6::default() });
    };
    let plain = make(&mut f, "plain", |_| {});
    let (first, second) = (make(&mut f, "first", alone), make(&mut f, "second", alone));
    let next = make(&mut f, "next", |_| {});
    // Of the pools nothing is taken.
    assert_eq!([plain, next].map(|id| subnet(&f, id)), ["10.1.0.0/20", "10.2.0.0/20"]);
    let ipams = [first, second].map(|id| network(&f, id).ipam.unwrap());
    assert!(ipams.iter().all(|ipam| ipam.subnet.prefix_len == 16 && NUMBERS.contains(ipam.subnet.address)));
    assert!(!ipams[0].subnet.overlaps(ipams[1].subnet));
    assert_eq!(ipams[0].shown(ipams[0].gateway), ipams[0].ipv6.unwrap().gateway);
    // A node that routes such addresses itself is not told of what nobody sees.
    f.add_node(2, |node| {
        let routes = vec!["240.0.0.0/8".parse().unwrap()];
        let network = NodeNetworkFacts { routes, ..NodeNetworkFacts::default() };
        node.description = Some(NodeDescription { hostname: "beta".into(), network, ..Default::default() });
    });
    assert!(f.state.route_conflicts(f.state.node(node_id(2)).unwrap()).is_empty());
    let write = create_write(&mut f, "web", |spec| {
        on(&[first])(spec);
        spec.mode = ServiceMode::Replicated { replicas: 70_000 };
    });
    let text = refused(&mut f, write);
    assert!(
        text.contains(&format!("network `first` ({}) has 65533 addresses", ipams[0].shown_subnet())),
        "{text}"
    );
    assert!(text.ends_with("service `web` for 70001"), "{text}");
    f.create("web", 2, on(&[first]));
    f.run();
    let addresses = f.state.tasks().filter_map(|task| task.networks.first()?.address);
    assert!(addresses.into_iter().all(|at| at.ipv4().is_none() && at.all().all(|one| one.is_ipv6())));
    assert_eq!(f.state.check(), []);
}

#[test]
fn a_node_that_comes_with_a_route_to_a_network_is_told() {
    let mut f = Fixture::new(0);
    make(&mut f, "front", |_| {});
    f.add_node(1, |node| {
        let routes = vec!["10.1.4.0/24".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
        let network = NodeNetworkFacts { routes, ..NodeNetworkFacts::default() };
        node.description = Some(NodeDescription { hostname: "beta".into(), network, ..Default::default() });
    });
    let conflicts = f.state.route_conflicts(f.state.node(node_id(1)).unwrap());
    let expected = "network `front` has the addresses `10.1.0.0/20`, and node `beta` has a route of its own to \
                    `10.1.4.0/24`: ";
    assert!(conflicts.len() == 1 && conflicts[0].starts_with(expected), "{conflicts:?}");
}

#[test]
fn networks_stand_apart_as_long_as_there_is_room() {
    let mut f = Fixture::new(0);
    let mut cluster = (**f.state.cluster().unwrap()).clone();
    cluster.spec.overlay_pools = vec!["10.64.0.0/20".parse().unwrap(), "10.96.0.0/22".parse().unwrap()];
    cluster.spec.overlay_prefix_len = 22;
    let expected = Some(cluster.meta.version);
    f.must(vec![Write::PutCluster { cluster: Box::new(cluster), expected }]);
    let made: Vec<_> = (0..5).map(|n| make(&mut f, &format!("n{n}"), |_| {})).collect();
    let subnets: Vec<_> = made.iter().map(|id| subnet(&f, *id)).collect();
    assert_eq!(subnets, ["10.64.0.0/22", "10.64.8.0/22", "10.64.4.0/22", "10.64.12.0/22", "10.96.0.0/22"]);
}

#[test]
fn used_up_pools_are_refused_with_an_example() {
    let mut f = Fixture::new(0);
    let mut cluster = (**f.state.cluster().unwrap()).clone();
    cluster.spec.overlay_pools = ["10.0.0.0/23", "10.9.0.0/29"].map(|pool| pool.parse().unwrap()).to_vec();
    cluster.spec.overlay_prefix_len = 24;
    let expected = Some(cluster.meta.version);
    f.must(vec![Write::PutCluster { cluster: Box::new(cluster), expected }]);
    let (one, two) = (make(&mut f, "one", |_| {}), make(&mut f, "two", |_| {}));
    assert_eq!([subnet(&f, one), subnet(&f, two)], ["10.0.1.0/24", "10.9.0.0/29"]);
    let (_, write) = overlay(&mut f, "three", |_| {});
    let text = refused(&mut f, write);
    assert!(text.starts_with("no free /24 in the address pools `10.0.0.0/23`, `10.9.0.0/29`"), "{text}");
    assert!(text.contains("`10.9.0.0/29` is network `two`'s"), "{text}");
}

#[test]
fn services_get_a_virtual_ip_on_each_overlay_and_keep_it() {
    let mut f = Fixture::new(1);
    let (front, back) = (make(&mut f, "front", |_| {}), make(&mut f, "back", |_| {}));
    let web = f.create("web", 2, on(&[front]));
    f.run();
    let vips = |f: &Fixture| f.state.service(web).unwrap().endpoint.vips.clone();
    let first = vips(&f)[&front];
    assert_eq!(f.state.address_owner(front, first), Some(AddressHolder::Service(web)));
    let addresses: Vec<_> = f.current(web).iter().map(|t| t.networks[0].address.unwrap().address).collect();
    assert!(!addresses.contains(&first) && addresses[0] != addresses[1]);
    f.update(web, on(&[front, back]));
    assert_eq!((vips(&f)[&front], vips(&f).len()), (first, 2));
    f.update(web, |spec| spec.endpoint.mode = EndpointMode::Dnsrr);
    assert!(vips(&f).is_empty() && f.state.address_owner(front, first).is_none());
    f.update(web, |spec| spec.endpoint.mode = EndpointMode::Vip);
    assert_ne!(vips(&f)[&front], first, "just freed");
}

#[test]
fn a_full_network_refuses_a_service_with_the_numbers() {
    let mut f = Fixture::new(1);
    let tiny = make(&mut f, "tiny", |spec| {
        spec.ipam.subnet = Some("10.9.0.0/24".parse().unwrap());
        spec.ipam.range = Some("10.9.0.0/30".parse().unwrap());
    });
    // The range has the network's own address, the gateway, and two more.
    let web = f.create("web", 1, on(&[tiny]));
    f.run();
    assert_eq!(f.running(web), 1);
    let write = create_write(&mut f, "more", on(&[tiny]));
    let text = refused(&mut f, write);
    let expected = "network `tiny` (10.9.0.0/24) has 2 addresses: other services ask for 2, service `more` for 2; make it larger: \
         `rswarm network update --ip-range 10.9.0.0/24 tiny`";
    assert_eq!(text, expected);
    // So does a service that grows; one that shrinks never, nor one whose nodes become more.
    let held = f.state.service(web).unwrap().clone();
    let scaled = |replicas| {
        let spec = ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..held.spec.clone() };
        let (id, expected) = (held.id, held.meta.version);
        Write::UpdateService { id, spec: Box::new(spec), expected, change: ServiceChange::Update }
    };
    assert!(refused(&mut f, scaled(2)).contains("other services ask for 0, service `web` for 3;"));
    f.must(vec![scaled(0)]);
}

#[test]
fn services_without_a_network_share_the_addresses_of_the_default_one() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 200, |_| {});
    let front = make(&mut f, "front", |_| {});
    f.create("elsewhere", 200, on(&[front]));
    let write = create_write(&mut f, "more", |spec| spec.mode = ServiceMode::Replicated { replicas: 54 });
    let expected =
        "network `bridge` (10.0.0.0/24) has 253 addresses: other services ask for 200, service `more` for 54";
    assert_eq!(refused(&mut f, write), expected);
    f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 199 });
    f.create("more", 54, |_| {});
}

#[test]
fn ports_are_one_service_s_and_open_ones_stay() {
    let mut f = Fixture::new(1);
    let write = create_write(&mut f, "web", publish(&[port(None, 80, MESH)]));
    assert!(refused(&mut f, write).contains("needs an ingress network"));
    let ingress = make(&mut f, "ingress", |spec| spec.ingress = true);
    let web = f.create("web", 1, publish(&[port(None, 80, MESH), port(Some(30_001), 81, MESH)]));
    let api = f.create("api", 1, publish(&[port(None, 80, MESH), port(None, 80, MESH)]));
    assert_eq!((published(&f, web), published(&f, api)), (vec![30_000, 30_001], vec![30_002, 30_003]));

    let write = create_write(&mut f, "other", publish(&[port(Some(30_002), 80, MESH)]));
    assert_eq!(refused(&mut f, write), "port 30002/tcp is published by service `api` already");
    // What nodes have for each other.
    let manager = Some(rswarm_types::ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".to_owned() });
    f.must(vec![Write::SetNodeManager { id: node_id(1), manager }]);
    for (number, protocol, expected) in [
        (2377, Protocol::Tcp, "port 2377/tcp belongs to the managers on every node; publish another one"),
        (4789, Protocol::Udp, "port 4789/udp belongs to the data path of overlay networks on every node"),
        (4790, Protocol::Udp, "port 4790/udp belongs to the data path"),
    ] {
        for mode in [MESH, PublishMode::Host] {
            let taken = PortConfig { protocol, ..port(Some(number), 80, mode) };
            let write = create_write(&mut f, "other", publish(&[taken]));
            assert!(refused(&mut f, write).starts_with(expected), "{number}");
        }
    }
    let write = create_write(&mut f, "other", publish(&[port(Some(30_000), 80, PublishMode::Host)]));
    assert_eq!(refused(&mut f, write), "port 30000/tcp is published by service `web` already");
    let host = [port(Some(9000), 80, PublishMode::Host)];
    let (one, _two) = (f.create("one", 1, publish(&host)), f.create("two", 1, publish(&host)));
    let write = create_write(&mut f, "other", publish(&[port(Some(9000), 80, MESH)]));
    assert_eq!(
        refused(&mut f, write),
        format!("port 9000/tcp is published by service `{}` already in mode `host`", {
            let first = f.state.indexes.host_ports[&(9000, Protocol::Tcp)].get_min().unwrap();
            f.state.service(*first).unwrap().spec.name.clone()
        })
    );
    f.must(vec![Write::RemoveService { id: one, expected: None }]);

    // What is open stays where it is, though the service publishes something else besides.
    f.update(api, publish(&[port(Some(8080), 80, MESH), port(None, 80, MESH), port(None, 82, MESH)]));
    assert_eq!(published(&f, api), [8080, 30_002, 30_003]);
    f.must(vec![Write::RemoveService { id: web, expected: None }]);
    f.update(api, |spec| spec.task.force_update += 1);
    assert_eq!(published(&f, api), [8080, 30_002, 30_003]);

    f.run();
    let tasks = f.current(api);
    assert_eq!((tasks[0].networks.len(), tasks[0].networks[0].network), (2, ingress));
    let in_use = f.commit(vec![Write::RemoveNetwork { id: ingress }]).unwrap_err();
    assert!(matches!(in_use, Rejected::InUse { .. }), "{in_use}");
    let (_, write) = overlay(&mut f, "second", |spec| spec.ingress = true);
    assert_eq!(refused(&mut f, write), "network `ingress` is the ingress network; remove it first");
    let write = create_write(&mut f, "x", on(&[ingress]));
    assert!(refused(&mut f, write).contains("network `ingress` cannot be named by a service"));
}

#[test]
fn all_ports_published_is_refused_with_the_numbers() {
    let mut f = Fixture::new(0);
    make(&mut f, "ingress", |spec| spec.ingress = true);
    let all: Vec<_> = super::INGRESS_PORTS.map(|_| port(None, 80, MESH)).collect();
    f.create("web", 1, publish(&all));
    let write = create_write(&mut f, "x", publish(&[port(None, 80, MESH)]));
    assert!(refused(&mut f, write).starts_with("no free tcp port: all 2768 from 30000 to 32767"));
    let udp = PortConfig { protocol: Protocol::Udp, ..port(None, 80, MESH) };
    let other = f.create("x", 1, publish(&[udp]));
    assert_eq!(published(&f, other), [30_000]);
}

#[test]
fn a_rollback_to_a_port_that_is_taken_by_now_pauses_and_says_why() {
    let mut f = Fixture::new(1);
    make(&mut f, "ingress", |spec| spec.ingress = true);
    let web = f.create("web", 1, |spec| {
        spec.endpoint.ports = vec![port(Some(8080), 80, MESH)];
        spec.update.failure_action = FailureAction::Rollback;
    });
    f.run();
    f.update(web, publish(&[port(Some(9090), 80, MESH)]));
    f.create("api", 0, publish(&[port(Some(8080), 80, MESH)]));
    f.pass();
    f.wait(Duration::from_secs(1));
    let made = f.current(web).iter().map(|task| task.id).max().unwrap();
    f.report(made, TaskState::Failed);
    f.pass();
    let service = f.state.service(web).unwrap();
    let status = service.update_status.clone().unwrap();
    assert_eq!(status.state, UpdateState::RollbackPaused);
    assert_eq!(status.message, "rollback not possible: port 8080/tcp is published by service `api` already");
    assert_eq!((published(&f, web), service.previous_spec.is_some()), (vec![9090], true));
}

#[test]
fn a_released_address_is_kept_back_for_five_seconds_unless_there_is_no_other() {
    let mut f = Fixture::new(1);
    let tiny = make(&mut f, "tiny", |spec| spec.ipam.subnet = Some("10.9.0.0/29".parse().unwrap()));
    let address = |f: &Fixture, id| f.state.service(id).unwrap().endpoint.vips[&tiny].octets()[3];
    // Five are free: .2 to .6.
    let ids: Vec<_> = ["a", "b", "c", "d"].map(|name| f.create(name, 0, on(&[tiny]))).to_vec();
    assert_eq!(ids.iter().map(|id| address(&f, *id)).collect::<Vec<_>>(), [2, 3, 4, 5]);
    let remove = |f: &mut Fixture, id| f.must(vec![Write::RemoveService { id, expected: None }]);
    remove(&mut f, ids[1]);
    f.wait(Duration::from_secs(1));
    remove(&mut f, ids[0]);
    let e = f.create("e", 0, on(&[tiny]));
    assert_eq!(address(&f, e), 6, "the one that nobody had");
    let g = f.create("g", 0, on(&[tiny]));
    assert_eq!(address(&f, g), 3, "of those kept back the one that was freed first");
    remove(&mut f, g);
    f.wait(Duration::from_secs(4));
    let h = f.create("h", 0, on(&[tiny]));
    assert_eq!(address(&f, h), 2, "its time is over, that of .3 is not");
    f.wait(Duration::from_secs(5));
    f.must(vec![]);
    assert!(f.state.released.is_empty());
}

#[test]
fn nodes_that_take_part_in_overlays_get_numbers_that_are_not_used_again_at_once() {
    let mut f = Fixture::new(0);
    let taking_part = |node: &mut rswarm_types::Node| {
        let network =
            NodeNetworkFacts { data_path_addr: Some([192, 0, 2, 1].into()), mtu: 1500, ..Default::default() };
        node.description = Some(NodeDescription { network, ..NodeDescription::default() });
    };
    (1..=2).for_each(|n| f.add_node(n, taking_part));
    f.add_node(3, |_| {});
    let number = |f: &Fixture, n| f.state.node(node_id(n)).unwrap().number;
    assert_eq!([number(&f, 1), number(&f, 2), number(&f, 3)], [1, 2, 0]);
    f.must(vec![Write::RemoveNode { id: node_id(2), force: true }]);
    let mut described = (**f.state.node(node_id(1)).unwrap()).clone();
    taking_part(&mut described);
    let description = described.description.unwrap();
    f.must(vec![Write::SetNodeDescription { id: node_id(3), description: description.clone() }]);
    assert_eq!(number(&f, 3), 3);
    f.must(vec![Write::SetNodeDescription { id: node_id(3), description }]);
    assert_eq!(number(&f, 3), 3, "kept");
    f.state.cursors.node_number = 4094;
    f.add_node(4, taking_part);
    assert_eq!(number(&f, 4), 2);
}

#[test]
fn services_have_numbers_of_their_own_and_whom_they_let_in_concerns_no_task() {
    let mut f = Fixture::new(1);
    let (a, b) = (f.create("a", 1, |_| {}), f.create("b", 1, |_| {}));
    let number = |f: &Fixture, id: ServiceId| f.state.service(id).unwrap().endpoint.number;
    assert_eq!([number(&f, a), number(&f, b)], [1, 2]);
    let before = f.state.service(a).unwrap().spec_version;
    f.update(a, |spec| spec.endpoint.allow_from = ["b".to_owned()].into());
    let service = f.state.service(a).unwrap();
    assert_eq!((service.spec_version, &service.update_status), (before, &None));
    assert_eq!(number(&f, a), 1);
    f.must(vec![Write::RemoveService { id: b, expected: None }]);
    let c = f.create("c", 1, |_| {});
    assert_eq!(number(&f, c), 3, "no other service's rules may take it for `b`");
}

fn update_write(f: &Fixture, id: NetworkId, change: impl FnOnce(&mut NetworkSpec)) -> Write {
    let held = network(f, id);
    let mut spec = Box::new(held.spec.clone());
    change(&mut spec);
    Write::UpdateNetwork { id, spec, expected: held.meta.version }
}

fn grow(to: &str) -> impl FnOnce(&mut NetworkSpec) {
    let subnet = to.parse().unwrap();
    move |spec| spec.ipam.subnet = Some(subnet)
}

#[test]
fn a_network_in_use_grows_and_everybody_stays() {
    let mut f = Fixture::new(2);
    let tiny = make(&mut f, "tiny", |spec| {
        spec.ipam.subnet = Some("10.9.0.8/29".parse().unwrap());
        spec.ipam.ipv6 = Some(IpamSpec6::default());
    });
    // Five are free: one of them is the service's.
    let web = f.create("web", 4, on(&[tiny]));
    f.run();
    let held = |f: &Fixture| -> Vec<_> {
        f.state.tasks().map(|task| (task.id, task.networks[0].address.unwrap())).collect()
    };
    let twins = |f: &Fixture| -> Vec<_> {
        let ipam = network(f, tiny).ipam.unwrap();
        (8..16).map(|last| ipam.twin([10, 9, 0, last].into()).unwrap()).collect()
    };
    let (before, twins_before, vip) =
        (held(&f), twins(&f), f.state.service(web).unwrap().endpoint.vips[&tiny]);
    let scaled = |f: &Fixture, replicas| {
        let held = f.state.service(web).unwrap();
        let spec = ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..held.spec.clone() };
        let (id, expected) = (held.id, held.meta.version);
        Write::UpdateService { id, spec: Box::new(spec), expected, change: ServiceChange::Update }
    };
    let write = scaled(&f, 30);
    let text = refused(&mut f, write);
    let expected = "has 5 addresses: other services ask for 0, service `web` for 31; make it larger: \
                    `rswarm network update --subnet 10.9.0.0/26 tiny`";
    assert!(text.ends_with(expected), "{text}");

    let write = update_write(&f, tiny, grow("10.9.0.0/26"));
    f.must(vec![write.clone()]);
    assert!(refused(&mut f, write).contains("update out of sequence"));
    let ipam = network(&f, tiny).ipam.unwrap();
    assert_eq!(
        (ipam.subnet.to_string(), ipam.gateway.to_string()),
        ("10.9.0.0/26".into(), "10.9.0.9".into())
    );
    assert_eq!((f.state.service(web).unwrap().endpoint.vips[&tiny], twins(&f)), (vip, twins_before.clone()));
    for ((id, before), (same, after)) in before.into_iter().zip(held(&f)) {
        assert_eq!((id, before.address, before.ipv6), (same, after.address, after.ipv6));
        assert_eq!((before.prefix_len, after.prefix_len), (29, 26));
    }
    let (updates, write) = (f.state.service(web).unwrap().spec_version, scaled(&f, 30));
    f.must(vec![write]);
    f.run();
    assert_eq!(f.running(web), 30);
    assert_eq!(f.state.service(web).unwrap().spec_version, updates, "nobody is replaced");
    // Nobody has the one whose twin is the IPv6 subnet's own; the former broadcast address is like any other now.
    let write = scaled(&f, 59);
    f.must(vec![write]);
    f.run();
    let owner = |last| f.state.address_owner(tiny, [10, 9, 0, last].into());
    assert_eq!((f.running(web), owner(8), owner(15).is_some()), (59, None, true));
    assert_eq!(
        State::addresses_total(network(&f, tiny)),
        60,
        "64 less network, broadcast, gateway, and that one"
    );
    // Grown once more, twins still are where they were.
    let write = update_write(&f, tiny, grow("10.8.0.0/15"));
    f.must(vec![write]);
    assert_eq!(twins(&f), twins_before);
}

#[test]
fn growth_is_refused_by_name_where_something_else_is() {
    let mut f = Fixture::new(1);
    f.add_node(2, |node| {
        let routes = vec!["10.20.0.0/16".parse().unwrap()];
        let network = NodeNetworkFacts { routes, ..NodeNetworkFacts::default() };
        node.description = Some(NodeDescription { hostname: "beta".into(), network, ..Default::default() });
    });
    let made = |f: &mut Fixture, name: &str, subnet: &str| make(f, name, grow(subnet));
    let front = made(&mut f, "front", "10.16.16.0/20");
    made(&mut f, "other", "10.17.0.0/16");
    let bridge = f.state.network_by_name("bridge").unwrap().id;
    for (id, to, expected) in [
        (front, "10.16.16.0/21", "does not contain all of `10.16.16.0/20`, where network `front` has given"),
        (front, "10.16.32.0/20", "does not contain all of"),
        (front, "10.16.0.0/15", "`10.16.0.0/15` overlaps `10.17.0.0/16`, network `other`"),
        (front, "10.0.0.0/8", "overlaps"),
        (bridge, "10.0.0.0/8", "network `bridge` has driver `bridge`, whose networks keep their subnet"),
    ] {
        let write = update_write(&f, id, grow(to));
        let text = refused(&mut f, write);
        assert!(text.contains(expected), "{text}");
    }
    let far = made(&mut f, "far", "10.21.0.0/16");
    let write = update_write(&f, far, grow("10.20.0.0/15"));
    assert!(refused(&mut f, write).contains("overlaps `10.20.0.0/16`, a route of node `beta`"));
    for change in [
        (|spec| spec.internal = true) as fn(&mut NetworkSpec),
        |spec| spec.name = "x".into(),
        |spec| {
            spec.ipam.gateway = Some([10, 16, 16, 9].into());
        },
    ] {
        let write = update_write(&f, front, change);
        let text = refused(&mut f, write);
        assert_eq!(
            text,
            "of network `front` only labels, subnet and address range can be changed; make another network"
        );
    }
    let write = update_write(&f, front, |spec| drop(spec.labels.insert("a".into(), "b".into())));
    f.must(vec![write]);
    assert_eq!((network(&f, front).spec.labels.len(), subnet(&f, front)), (1, "10.16.16.0/20".into()));
    // A network that cannot grow says why; the range decides where addresses come from.
    let write = create_write(&mut f, "web", |spec| {
        on(&[far])(spec);
        spec.mode = ServiceMode::Replicated { replicas: 70_000 };
    });
    let text = refused(&mut f, write);
    assert!(
        text.ends_with(
            "; it cannot grow to `10.20.0.0/15`, which overlaps `10.20.0.0/16`, a route of node `beta`"
        ),
        "{text}"
    );
    let write = update_write(&f, front, |spec| {
        spec.ipam.subnet = Some("10.16.0.0/16".parse().unwrap());
        spec.ipam.range = Some("10.16.128.0/24".parse().unwrap());
    });
    f.must(vec![write]);
    let web = f.create("web", 1, on(&[front]));
    f.run();
    let at = f.current(web)[0].networks[0].address.unwrap().address;
    assert_eq!((at.octets()[2], State::addresses_total(network(&f, front))), (128, 256));
}

#[test]
fn a_plan_made_before_its_network_grew_gives_no_address() {
    let mut f = Fixture::new(1);
    let front = make(&mut f, "front", grow("10.9.0.0/24"));
    let web = f.create("web", 1, on(&[front]));
    let plan = crate::pass::plan_all(&f.state, f.now, None);
    let state = f.state.clone();
    let command = plan.into_command(&state, f.now, &mut || f.mint());
    let write = update_write(&f, front, grow("10.9.0.0/16"));
    f.must(vec![write]);
    f.must(command.writes);
    let prefixes = |f: &Fixture| -> Vec<_> {
        let networks = f.state.tasks().flat_map(|task| task.networks.clone());
        networks.map(|network| network.address.unwrap().prefix_len).collect()
    };
    assert!(prefixes(&f).is_empty());
    f.run();
    assert_eq!((f.running(web), prefixes(&f)), (1, vec![16]));
}

fn connect(id: TaskId, network: NetworkId, address: Option<&str>) -> Write {
    let address = address.map(|text| text.parse().unwrap());
    Write::ConnectTask { id, network, aliases: vec!["db".to_owned()], address }
}

#[test]
fn a_task_is_connected_to_a_network_and_taken_off_again() {
    let mut f = Fixture::new(1);
    let front = make(&mut f, "front", |_| {});
    let tools = make(&mut f, "tools", |spec| {
        spec.attachable = true;
        spec.ipam.subnet = Some("10.9.0.0/29".parse().unwrap());
        spec.ipam.ipv6 = Some(IpamSpec6::default());
    });
    let web = f.create("web", 1, on(&[front]));
    f.run();
    let id = f.current(web)[0].id;
    let networks = |f: &Fixture| f.state.task(id).unwrap().networks.clone();
    let refused = |f: &mut Fixture, write: Write, expected: &str| {
        let text = refused(f, write);
        assert!(text.starts_with("task `web.1` cannot be ") && text.contains(expected), "{text}");
    };
    refused(&mut f, connect(id, front, None), "it is on that network already");
    refused(&mut f, connect(id, tools, Some("10.9.0.1")), "address 10.9.0.1 is not for tasks");
    refused(&mut f, connect(id, tools, Some("10.9.1.2")), "expected one of `10.9.0.0/29`");
    f.must(vec![connect(id, tools, Some("10.9.0.6"))]);
    let joined = networks(&f).pop().unwrap();
    let ipv6 = network(&f, tools).ipam.unwrap().twin([10, 9, 0, 6].into());
    assert_eq!(joined.address.unwrap().ipv6.map(|ipv6| ipv6.address), ipv6);
    assert_eq!((networks(&f).len(), joined.joined, joined.aliases), (2, true, vec!["db".to_owned()]));
    assert_eq!(f.state.check(), []);
    refused(&mut f, connect(id, tools, None), "it is on that network already");
    assert!(f.commit(vec![Write::RemoveNetwork { id: tools }]).is_err());

    let api = f.create("api", 1, on(&[front]));
    f.run();
    let other = f.current(api)[0].id;
    let text = super::tests::refused(&mut f, connect(other, tools, Some("10.9.0.6")));
    assert!(text.ends_with(&format!("address 10.9.0.6 is in use by task `{id}`")), "{text}");
    // A service is taken off a network with all its tasks, and is no reason for them to stay connected.
    let write = |network| Write::DisconnectTask { id, network };
    refused(&mut f, write(front), "`rswarm service update --network-rm front web`");
    f.must(vec![write(tools)]);
    assert_eq!((networks(&f).len(), f.state.address_owner(tools, [10, 9, 0, 6].into())), (1, None));
    refused(&mut f, write(tools), "it is not on that network");

    // A replacement comes without.
    f.must(vec![connect(id, tools, None)]);
    f.update(web, |spec| spec.task.force_update += 1);
    f.run();
    let next = f.current(web)[0].clone();
    assert!(next.id != id && next.networks.len() == 1);
    refused(&mut f, connect(id, tools, None), "it has ended or is about to");
    assert_eq!((f.state.addresses_used(tools), f.state.check()), (0, vec![]));
}

#[test]
fn tasks_are_connected_only_to_networks_that_are_for_single_ones() {
    let mut f = Fixture::new(1);
    let closed = make(&mut f, "closed", |_| {});
    let ingress = make(&mut f, "mesh", |spec| spec.ingress = true);
    let open = make(&mut f, "open", |spec| spec.attachable = true);
    let named = |f: &mut Fixture, name: &str| f.state.network_by_name(name).map(|network| network.id);
    let bridge = named(&mut f, "bridge").unwrap();
    let mut host = f.network("host", "10.9.0.0/24");
    (host.ipam, host.spec.driver) = (None, NetworkDriver::Host);
    let host_id = host.id;
    f.must(vec![Write::CreateNetwork(Box::new(host))]);
    let web = f.create("web", 1, |_| {});
    let node_own = f.create("agent", 1, on(&[host_id]));
    f.run();
    let (id, agent) = (f.current(web)[0].id, f.current(node_own)[0].id);
    for (task, network, expected) in [
        (id, closed, "only whole services come to it; make a network with `--attachable`"),
        (id, ingress, "only for published ports"),
        (id, host_id, "only networks of driver `overlay` or `bridge`"),
        (id, bridge, "it is on that network already"),
        (agent, open, "the node's own network"),
    ] {
        let text = refused(&mut f, connect(task, network, None));
        assert!(text.contains(expected), "{text}");
    }
    let unknown = NetworkId::from_bytes([0xee; 16]);
    assert!(refused(&mut f, connect(id, unknown, None)).ends_with("not found"));
}
