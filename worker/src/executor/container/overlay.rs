//! The map of the network in the words of the data path. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use rswarm_net::wireguard::{PeerKeys, PublicKey, TunnelEnd};
use rswarm_net::{Cidr, Overlay, OverlayNetwork, PublishedPort, VirtualService};
use rswarm_types::netmap::{EndpointState, MapEndpoint, MapNetwork, MapService, NetworkMap};
use rswarm_types::node::TunnelKeys;
use rswarm_types::service::{EndpointMode, PublishMode};
use rswarm_types::task::TaskNetwork;
use rswarm_types::{NetworkDriver, NetworkId, NodeId, ServiceId, Task};

use super::network::protocol;
use super::ports::place;
use crate::executor::{Failure, FailureKind};

/// Ports of the node that tasks must not reach: those that nodes talk to each other by.
pub type Guarded = BTreeSet<(rswarm_net::Protocol, u16)>;

/// What the overlays on `node` should be; `None` if it takes no part in any. `end` gives its end of the tunnel, whose
/// port it is told.
pub fn of(
    map: &NetworkMap,
    node: NodeId,
    guarded: &Guarded,
    end: impl FnOnce(u16) -> Option<TunnelEnd>,
) -> Option<Overlay> {
    let own = map.nodes.get(&node)?;
    if map.networks.is_empty() {
        return None;
    }
    let mut guarded = guarded.clone();
    guarded.insert((rswarm_net::Protocol::Udp, map.data_path_port));
    let tunnel_port = map.data_path_port + 1;
    if map.networks.values().any(|network| network.encrypted) {
        guarded.insert((rswarm_net::Protocol::Udp, tunnel_port));
    }
    let mut overlay = Overlay {
        tunnel: end(tunnel_port),
        node: own.number,
        source: ipv4(own.addr),
        data_path_port: map.data_path_port,
        guarded,
        ..Overlay::default()
    };
    for peer in map.nodes.iter().filter(|(id, _)| **id != node).map(|(_, peer)| peer) {
        overlay.peers.extend(ipv4(peer.addr).map(|address| (peer.number, address)));
        overlay.peer_addresses.extend(peer.addresses.iter().copied().chain([peer.addr]));
        overlay.keys.extend(peer.tunnel.map(|keys| (peer.number, peer_keys(&keys))));
    }
    for (id, network) in &map.networks {
        let vni = network.vni;
        let network = OverlayNetwork {
            id: id.to_string(),
            prefix_len: network.subnet.prefix_len,
            gateway: network.gateway,
            ipv6: network
                .ipv6
                .filter(|_| has_ipv6(network))
                .map(|ipv6| Cidr { address: ipv6.gateway, prefix_len: ipv6.subnet.prefix_len }),
            ipv6_only: network.ipv6.is_some_and(|ipv6| ipv6.alone),
            twins_from: network.ipv6.map_or(network.subnet.address, |ipv6| ipv6.first(network.subnet)),
            mtu: network.mtu,
            internal: network.internal,
            ingress: network.ingress,
            encrypted: network.encrypted,
        };
        overlay.networks.insert(vni, network);
    }
    for endpoint in map.endpoints.values().filter(|endpoint| endpoint.node != node) {
        let Some(peer) = map.nodes.get(&endpoint.node) else { continue };
        let addresses =
            endpoint.addresses.iter().filter_map(|(id, address)| Some((map.networks.get(id)?.vni, *address)));
        overlay.endpoints.extend(addresses.map(|at| (at, peer.number)));
    }
    let ready = ready(map);
    let backends = |id: &ServiceId, service: &MapService, network: NetworkId| -> BTreeSet<Ipv4Addr> {
        let tasks = || ready.get(id).into_iter().flatten();
        let all = || tasks().filter_map(|task| Some((task.node == node, *task.addresses.get(&network)?)));
        let own_alone = service.prefer_same_node && all().any(|(own, _)| own);
        all().filter(|(own, _)| *own || !own_alone).map(|(_, address)| address).collect()
    };
    let ingress = map.networks.iter().find(|(_, network)| network.ingress).map(|(id, _)| *id);
    for (id, service) in &map.services {
        for (network, attachment) in &service.networks {
            let (Some(of), Some(vip)) = (map.networks.get(network), attachment.vip) else { continue };
            if service.mode == EndpointMode::Vip {
                let service =
                    VirtualService { id: id.to_string(), backends: backends(id, service, *network) };
                overlay.services.insert((of.vni, vip), service);
            }
        }
        for port in service.ports.iter().filter(|port| port.mode == PublishMode::Ingress) {
            let (Some(published), Some(network)) = (port.published, ingress) else { continue };
            let at = place(port.host_ip, port.interface).into_iter().collect();
            let published_port =
                PublishedPort { target: port.target, backends: backends(id, service, network), at };
            overlay.published.insert((protocol(port.protocol), published), published_port);
        }
    }
    restrict(map, node, &mut overlay);
    Some(overlay)
}

/// Whether this node can carry a network's IPv6.
fn has_ipv6(network: &MapNetwork) -> bool {
    let able = network.mtu >= rswarm_net::MTU6_MIN && rswarm_net::has_ipv6();
    if !able {
        tracing::debug!(network = network.name, mtu = network.mtu, "a network is without IPv6 here");
    }
    able
}

/// Who may connect to the tasks here to which not everyone may. The ingress network carries published ports alone.
fn restrict(map: &NetworkMap, node: NodeId, overlay: &mut Overlay) {
    let restricted = map.services.iter().filter(|(_, service)| !service.allow_from.is_empty());
    let restricted: BTreeMap<ServiceId, &MapService> =
        restricted.map(|(id, service)| (*id, service)).collect();
    if restricted.is_empty() {
        return;
    }
    let services = map.services.iter().map(|(id, service)| (&service.name, (*id, service.number)));
    let joined = map.endpoints.values().filter_map(|endpoint| {
        let joined = endpoint.joined.as_ref()?;
        Some((&joined.service, (endpoint.service, joined.number)))
    });
    // Services that were made before they had numbers are nobody's callers.
    let numbered = services.chain(joined).filter(|(_, (_, number))| *number != 0);
    let by_name: BTreeMap<&str, (ServiceId, u32)> = numbered.map(|(name, at)| (name.as_str(), at)).collect();
    let callers = |service: &MapService| {
        let known = service.allow_from.iter().filter_map(|name| by_name.get(name.as_str()));
        known.copied().collect::<BTreeMap<ServiceId, u32>>()
    };
    let all: BTreeMap<ServiceId, u32> = restricted.values().flat_map(|service| callers(service)).collect();
    for endpoint in map.endpoints.values() {
        let (caller, service) = (all.get(&endpoint.service), restricted.get(&endpoint.service));
        let service = service.filter(|_| endpoint.node == node);
        for (network, address) in &endpoint.addresses {
            let Some(network) = map.networks.get(network).filter(|network| !network.ingress) else {
                continue;
            };
            let at = (network.vni, *address);
            overlay.callers.extend(caller.map(|number| (at, *number)));
            overlay.restricted.extend(service.map(|service| (at, callers(service).into_values().collect())));
        }
    }
}

fn peer_keys(keys: &TunnelKeys) -> PeerKeys {
    PeerKeys { keys: keys.places().map(|key| key.map(|key| PublicKey(key.0))), place: keys.place }
}

/// Nodes by name that nothing can be sent to on an encrypted network, although they have tasks there: they have told no
/// key.
pub fn without_key(map: &NetworkMap, node: NodeId) -> BTreeSet<(NetworkId, String)> {
    let encrypted = |id: &&NetworkId| map.networks.get(id).is_some_and(|network| network.encrypted);
    let silent = map.endpoints.values().filter_map(|endpoint| {
        let other = map.nodes.get(&endpoint.node).filter(|_| endpoint.node != node)?;
        other.tunnel.is_none().then_some((endpoint, other))
    });
    silent
        .flat_map(|(endpoint, other)| {
            endpoint.addresses.keys().filter(encrypted).map(|id| (*id, other.name.clone()))
        })
        .collect()
}

/// The tasks of each service that take new connections.
fn ready(map: &NetworkMap) -> BTreeMap<ServiceId, Vec<&MapEndpoint>> {
    let mut ready: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for endpoint in map.endpoints.values().filter(|endpoint| endpoint.state == EndpointState::Ready) {
        ready.entry(endpoint.service).or_default().push(endpoint);
    }
    ready
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        // Overlays between nodes that know each other by IPv6 are still to come: see `docs/networking.md`.
        IpAddr::V6(_) => None,
    }
}

/// Whether the map knows the overlays of `task`. A manager sends both together, so it lacks them only for a moment.
pub fn check(map: &NetworkMap, task: &Task) -> Result<(), Failure> {
    let unknown = |network: &&TaskNetwork| {
        network.driver == NetworkDriver::Overlay && !map.networks.contains_key(&network.network)
    };
    match task.networks.iter().find(unknown) {
        None => fits(map, &task.networks),
        Some(network) => Err(Failure {
            text: format!("waiting for a manager to tell of network `{}`", network.name),
            kind: FailureKind::Temporary,
        }),
    }
}

/// Refuses a task with a network that has IPv6 alone and packets too small for that.
fn fits(map: &NetworkMap, networks: &[TaskNetwork]) -> Result<(), Failure> {
    let known = networks.iter().filter_map(|network| map.networks.get(&network.network));
    let mut alone = known.filter(|known| known.ipv6.is_some_and(|ipv6| ipv6.alone));
    match alone.find(|known| known.mtu < rswarm_net::MTU6_MIN) {
        None => Ok(()),
        Some(known) => Err(Failure {
            text: format!(
                "network `{}` has IPv6 alone, which needs packets of {} bytes, and the links between nodes carry {}",
                known.name,
                rswarm_net::MTU6_MIN,
                known.mtu
            ),
            kind: FailureKind::Unfit,
        }),
    }
}

/// Refuses a task with an encrypted network on a node that cannot encrypt.
pub fn check_clear(map: &NetworkMap, task: &Task, obstacle: &str) -> Result<(), Failure> {
    let encrypted =
        |network: &&TaskNetwork| map.networks.get(&network.network).is_some_and(|known| known.encrypted);
    match task.networks.iter().find(encrypted) {
        None => Ok(()),
        Some(network) => Err(Failure {
            text: format!(
                "network `{}` is encrypted, and this node cannot do that: {obstacle}",
                network.name
            ),
            kind: FailureKind::Unfit,
        }),
    }
}

/// Which of a task's networks has its way out: the ingress network, as what comes in there must go back there, else the
/// first that has one.
pub fn way_out(map: &NetworkMap, networks: &[&TaskNetwork]) -> Option<NetworkId> {
    let known = |network: &TaskNetwork| map.networks.get(&network.network);
    let ingress = networks.iter().find(|network| known(network).is_some_and(|known| known.ingress));
    let closed = |network: &TaskNetwork| known(network).map_or(network.internal, |known| known.internal);
    let open = || networks.iter().find(|network| !closed(network));
    ingress.or_else(open).map(|network| network.network)
}

#[cfg(test)]
mod tests {
    use rswarm_net::{Place, wireguard::PrivateKey};
    use rswarm_types::TaskId;
    use rswarm_types::netmap::{Joined, MapAttachment, MapNode};
    use rswarm_types::network::Ipam6;
    use rswarm_types::node::TunnelKey;
    use rswarm_types::service::{PortConfig, Protocol};

    use super::*;

    const FRONT: NetworkId = NetworkId::from_bytes([1; 16]);
    const INGRESS: NetworkId = NetworkId::from_bytes([2; 16]);
    const WEB: ServiceId = ServiceId::from_bytes([3; 16]);

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn end(port: u16) -> Option<TunnelEnd> {
        Some(TunnelEnd { port, key: PrivateKey([1; 32]), place: 1 })
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 16, last)
    }

    fn map() -> NetworkMap {
        let network = |name: &str, vni, third, ingress| MapNetwork {
            name: name.to_owned(),
            vni,
            subnet: format!("10.0.{third}.0/20").parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, third, 1),
            ipv6: None,
            mtu: 1450,
            internal: false,
            ingress,
            encrypted: false,
        };
        let endpoint = |on: u8, last: u8, state| MapEndpoint {
            service: WEB,
            slot: u64::from(last),
            node: node(on),
            addresses: BTreeMap::from([(FRONT, address(last)), (INGRESS, Ipv4Addr::new(10, 0, 0, last))]),
            state,
            hostname: String::new(),
            nameservers: Vec::new(),
            joined: None,
            enclosed: false,
        };
        let port = PortConfig {
            protocol: Protocol::Tcp,
            target: 80,
            published: Some(8080),
            mode: PublishMode::Ingress,
            host_ip: Some(Ipv4Addr::LOCALHOST.into()),
            interface: None,
        };
        let map_node = |n: u8| MapNode {
            number: u16::from(n),
            name: format!("n{n}"),
            addr: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)),
            addresses: BTreeSet::from([IpAddr::V4(Ipv4Addr::new(198, 51, 100, n))]),
            tunnel: None,
        };
        NetworkMap {
            data_path_port: 4789,
            nodes: (1..=2).map(|n| (node(n), map_node(n))).collect(),
            networks: BTreeMap::from([
                (FRONT, network("front", 4097, 16, false)),
                (INGRESS, network("ingress", 4096, 0, true)),
            ]),
            services: BTreeMap::from([(
                WEB,
                MapService {
                    name: "web".to_owned(),
                    mode: EndpointMode::Vip,
                    networks: BTreeMap::from([(
                        FRONT,
                        MapAttachment { vip: Some(address(2)), aliases: Vec::new() },
                    )]),
                    ports: vec![port],
                    allow_from: BTreeSet::new(),
                    number: 7,
                    prefer_same_node: false,
                },
            )]),
            endpoints: [
                (1, 3, EndpointState::Ready),
                (2, 4, EndpointState::Ready),
                (2, 5, EndpointState::Draining),
                (2, 6, EndpointState::Starting),
            ]
            .into_iter()
            .map(|(on, last, state)| (TaskId::from_bytes([last; 16]), endpoint(on, last, state)))
            .collect(),
            ..NetworkMap::default()
        }
    }

    fn task_network(id: NetworkId, driver: NetworkDriver) -> TaskNetwork {
        TaskNetwork {
            network: id,
            name: "n".to_owned(),
            driver,
            address: None,
            aliases: Vec::new(),
            internal: false,
            mtu: None,
            bridge: rswarm_types::network::BridgeOptions::default(),
            joined: false,
        }
    }

    fn ipv6(alone: bool) -> Ipam6 {
        Ipam6 {
            subnet: "fd00:1::/64".parse().unwrap(),
            gateway: "fd00:1::1".parse().unwrap(),
            counted_from: None,
            alone,
        }
    }

    #[test]
    fn ready_tasks_take_connections_and_those_elsewhere_have_a_way() {
        let overlay = of(&map(), node(1), &Guarded::new(), end).unwrap();
        assert_eq!((overlay.node, overlay.source), (1, Some(Ipv4Addr::new(192, 0, 2, 1))));
        assert_eq!(overlay.peers, BTreeMap::from([(2, Ipv4Addr::new(192, 0, 2, 2))]));
        let all = [[192, 0, 2, 2], [198, 51, 100, 2]].map(IpAddr::from);
        assert_eq!(overlay.peer_addresses, all.into());
        let service = &overlay.services[&(4097, address(2))];
        assert_eq!(service.backends, BTreeSet::from([address(3), address(4)]));
        let port = &overlay.published[&(rswarm_net::Protocol::Tcp, 8080)];
        let on_ingress = |last| Ipv4Addr::new(10, 0, 0, last);
        assert_eq!((port.target, &port.backends), (80, &BTreeSet::from([on_ingress(3), on_ingress(4)])));
        assert_eq!(port.at, BTreeSet::from([Place::Address(Ipv4Addr::LOCALHOST.into())]));
        // Also those that take no new ones keep what they have.
        let elsewhere: Vec<_> = overlay.endpoints.keys().filter(|(vni, _)| *vni == 4097).collect();
        assert_eq!(elsewhere, [&(4097, address(4)), &(4097, address(5)), &(4097, address(6))]);
        assert!(overlay.guarded.contains(&(rswarm_net::Protocol::Udp, 4789)));
    }

    #[test]
    fn tasks_of_the_same_node_are_preferred_where_that_is_asked_and_there_are_such() {
        let mut map = map();
        map.services.get_mut(&WEB).unwrap().prefer_same_node = true;
        let last = |map: &NetworkMap, on: u8| -> Vec<(u8, u8)> {
            let overlay = of(map, node(on), &Guarded::new(), end).unwrap();
            let service = &overlay.services[&(4097, address(2))].backends;
            let port = &overlay.published[&(rswarm_net::Protocol::Tcp, 8080)].backends;
            service.iter().zip(port).map(|(a, b)| (a.octets()[3], b.octets()[3])).collect()
        };
        assert_eq!([last(&map, 1), last(&map, 2)], [[(3, 3)], [(4, 4)]]);
        // A node whose own task takes no new connections leads to the others.
        map.endpoints.get_mut(&TaskId::from_bytes([3; 16])).unwrap().state = EndpointState::Draining;
        assert_eq!([last(&map, 1), last(&map, 2)], [[(4, 4)], [(4, 4)]]);
    }

    #[test]
    fn a_network_has_ipv6_here_where_its_packets_are_large_enough() {
        let mut map = map();
        let ipv6 = ipv6(false);
        map.networks.get_mut(&FRONT).unwrap().ipv6 = Some(ipv6);
        let of = |map: &NetworkMap| of(map, node(1), &Guarded::new(), |_| None).unwrap().networks[&4097].ipv6;
        let expected = Cidr { address: ipv6.gateway, prefix_len: 64 };
        assert_eq!(of(&map), Some(expected).filter(|_| rswarm_net::has_ipv6()));
        map.networks.get_mut(&FRONT).unwrap().mtu = 1279;
        assert_eq!(of(&map), None);
        // Twins are counted from where the network began before it grew.
        let grown = map.networks.get_mut(&FRONT).unwrap();
        grown.subnet = "10.0.0.0/16".parse().unwrap();
        grown.ipv6 = Some(Ipam6 { counted_from: Some([10, 0, 16, 0].into()), ..ipv6 });
        let seen = super::of(&map, node(1), &Guarded::new(), |_| None).unwrap().networks[&4097].clone();
        assert_eq!((seen.prefix_len, seen.twins_from), (16, [10, 0, 16, 0].into()));
    }

    #[test]
    fn services_are_told_apart_where_not_everyone_may_connect() {
        let plain = of(&map(), node(1), &Guarded::new(), end).unwrap();
        assert_eq!((plain.restricted.len(), plain.callers.len()), (0, 0));
        let mut map = map();
        let api = ServiceId::from_bytes([4; 16]);
        let web = map.services.get_mut(&WEB).unwrap();
        web.allow_from = BTreeSet::from(["api".to_owned(), "to-come".to_owned()]);
        let called =
            MapService { name: "api".to_owned(), allow_from: BTreeSet::new(), number: 8, ..web.clone() };
        map.services.insert(api, called);
        let mut caller = map.endpoints.values().next().unwrap().clone();
        (caller.service, caller.addresses) = (api, BTreeMap::from([(FRONT, address(9))]));
        map.endpoints.insert(TaskId::from_bytes([9; 16]), caller);
        // Each node looks after its own tasks, on all networks but the ingress network.
        for (n, own) in [(1, vec![3]), (2, vec![4, 5, 6])] {
            let overlay = of(&map, node(n), &Guarded::new(), end).unwrap();
            let restricted = own.into_iter().map(|last| ((4097, address(last)), BTreeSet::from([8])));
            assert_eq!(overlay.restricted, restricted.collect());
            assert_eq!(overlay.callers, BTreeMap::from([((4097, address(9)), 8)]));
        }
        // Also a task that was connected to the network, of a service that is not on it.
        map.services.remove(&api);
        let caller = map.endpoints.get_mut(&TaskId::from_bytes([9; 16])).unwrap();
        caller.joined = Some(Joined { service: "api".to_owned(), number: 8, aliases: BTreeMap::new() });
        let overlay = of(&map, node(1), &Guarded::new(), end).unwrap();
        assert_eq!(overlay.callers, BTreeMap::from([((4097, address(9)), 8)]));
    }

    #[test]
    fn an_encrypted_network_goes_by_the_keys_that_the_map_tells() {
        let key = |n: u8| TunnelKey([n; 32]);
        let mut map = map();
        let clear = of(&map, node(1), &Guarded::new(), end).unwrap();
        assert!(clear.keys.is_empty() && !clear.guarded.contains(&(rswarm_net::Protocol::Udp, 4790)));
        map.networks.get_mut(&FRONT).unwrap().encrypted = true;
        assert_eq!(without_key(&map, node(1)), BTreeSet::from([(FRONT, "n2".to_owned())]));
        assert_eq!(without_key(&map, node(2)), BTreeSet::from([(FRONT, "n1".to_owned())]));
        map.nodes.get_mut(&node(2)).unwrap().tunnel =
            Some(TunnelKeys { place: 1, current: key(5), next: Some(key(6)) });
        assert!(without_key(&map, node(1)).is_empty());
        let overlay = of(&map, node(1), &Guarded::new(), end).unwrap();
        assert!(overlay.networks[&4097].encrypted && !overlay.networks[&4096].encrypted);
        assert_eq!(overlay.tunnel.map(|end| (end.port, end.place)), Some((4790, 1)));
        let keys = [Some(PublicKey([6; 32])), Some(PublicKey([5; 32]))];
        assert_eq!(overlay.keys, BTreeMap::from([(2, PeerKeys { keys, place: 1 })]));
        assert!(overlay.guarded.contains(&(rswarm_net::Protocol::Udp, 4790)));
    }

    #[test]
    fn a_node_that_is_told_of_no_network_has_no_overlay() {
        let empty = NetworkMap { networks: BTreeMap::new(), ..map() };
        assert!(of(&empty, node(1), &Guarded::new(), end).is_none());
        assert!(of(&map(), node(9), &Guarded::new(), end).is_none());
    }

    #[test]
    fn a_network_with_ipv6_alone_is_refused_where_its_packets_are_too_small() {
        let mut map = map();
        let front = map.networks.get_mut(&FRONT).unwrap();
        (front.mtu, front.ipv6) = (1279, Some(ipv6(false)));
        let networks = [task_network(FRONT, NetworkDriver::Overlay)];
        assert!(fits(&map, &networks).is_ok(), "it has IPv4 beside it");
        map.networks.get_mut(&FRONT).unwrap().ipv6 = Some(ipv6(true));
        let failure = fits(&map, &networks).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unfit);
        assert!(
            failure.text.contains("`front` has IPv6 alone, which needs packets of 1280 bytes"),
            "{}",
            failure.text
        );
        map.networks.get_mut(&FRONT).unwrap().mtu = 1280;
        assert!(fits(&map, &networks).is_ok());
    }

    #[test]
    fn the_way_out_is_the_ingress_network_else_the_first_that_has_one() {
        let (front, ingress) =
            (task_network(FRONT, NetworkDriver::Overlay), task_network(INGRESS, NetworkDriver::Overlay));
        let mut local = task_network(NetworkId::from_bytes([9; 16]), NetworkDriver::Bridge);
        let mut map = map();
        assert_eq!(way_out(&map, &[&front, &ingress]), Some(INGRESS));
        assert_eq!(way_out(&map, &[&front, &local]), Some(FRONT));
        map.networks.get_mut(&FRONT).unwrap().internal = true;
        assert_eq!(way_out(&map, &[&front, &local]), Some(local.network));
        assert_eq!(way_out(&map, &[&front]), None);
        local.internal = true;
        assert_eq!(way_out(&map, &[&front, &local]), None);
    }

    /// What a change costs before the data path sees it.
    #[test]
    #[ignore = "a figure: cargo test --release -p rswarm-worker --lib -- --ignored --nocapture one_change"]
    fn one_change_among_ten_thousand_endpoints() {
        let mut map = map();
        let (service, endpoint) =
            (map.services[&WEB].clone(), map.endpoints.values().next().unwrap().clone());
        for n in 0..10_000_u32 {
            let id = |n: u32| ServiceId::from_bytes(u128::from(n + 1000).to_be_bytes());
            if n < 1000 {
                let vip = Some(Ipv4Addr::from(0x0a01_0000 + n));
                let attachment = MapAttachment { vip, aliases: Vec::new() };
                let networks = BTreeMap::from([(FRONT, attachment)]);
                map.services.insert(id(n), MapService { networks, ports: Vec::new(), ..service.clone() });
            }
            let addresses = BTreeMap::from([(FRONT, Ipv4Addr::from(0x0a02_0000 + n))]);
            let service = id(n % 1000);
            let task = TaskId::from_bytes(u128::from(n + 1000).to_be_bytes());
            map.endpoints.insert(task, MapEndpoint { service, addresses, ..endpoint.clone() });
        }
        let started = std::time::Instant::now();
        let mut next = map.clone();
        next.endpoints.pop_last();
        let cloned = started.elapsed();
        let change = next.since(&map);
        let compared = started.elapsed();
        let overlay = of(&next, node(1), &Guarded::new(), end).unwrap();
        let made = started.elapsed();
        assert_eq!((change.removed_endpoints.len(), overlay.services.len()), (1, 1001));
        eprintln!(
            "map copied {cloned:?}, compared {:?}, overlay made {:?}",
            compared - cloned,
            made - compared
        );
    }
}
