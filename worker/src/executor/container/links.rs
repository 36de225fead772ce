//! The links of one container: which it has to have, and how they are numbered. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rswarm_net::{Cidr, Cidr6, Endpoint, HostPort};
use rswarm_types::netmap::NetworkMap;
use rswarm_types::task::{PortStatus, TaskAddress, TaskNetwork};
use rswarm_types::{NetworkId, Task, TaskId};

use super::network::protocol;
use super::record::Record;
use super::{overlay, ports};
use crate::executor::{Failure, FailureKind};

/// A network of a task that gives addresses.
pub type Link<'a> = (&'a TaskNetwork, TaskAddress);

pub fn links(task: &Task) -> Vec<Link<'_>> {
    task.networks.iter().filter_map(|network| Some((network, network.address?))).collect()
}

/// Whether a container was given a link for each network of its task, and no other.
pub fn has_its_links(task: &Task, record: &Record) -> bool {
    let wanted: BTreeSet<String> =
        links(task).iter().map(|(network, _)| network.network.to_string()).collect();
    let held = record.endpoints.iter().map(|endpoint| endpoint.network.clone());
    held.collect::<BTreeSet<_>>() == wanted
}

/// Endpoints for the networks that a running container is not on yet, still without a way out.
pub fn fresh_endpoints(task: TaskId, pid: i32, links: &[Link<'_>], held: &[Endpoint]) -> Vec<Endpoint> {
    let fresh = links.iter().filter(|(network, _)| {
        let id = network.network.to_string();
        held.iter().all(|endpoint| endpoint.network != id)
    });
    let is_held = |n: &usize| held.iter().any(|endpoint| endpoint.interface_name == interface_name(*n));
    let numbers = (0..).filter(|n| !is_held(n));
    fresh.zip(numbers).map(|(link, n)| endpoint(task, pid, link, n, None)).collect()
}

/// The way out stays where it is; a container that has none gets the first that there is.
pub fn give_way_out(endpoints: &mut [Endpoint], links: &[Link<'_>], map: &NetworkMap) {
    if endpoints.iter().any(|endpoint| endpoint.default_route) {
        return;
    }
    let Some(network) = way_out(links, map).map(|network| network.to_string()) else { return };
    for endpoint in endpoints {
        endpoint.default_route = endpoint.network == network;
    }
}

fn interface_name(n: usize) -> String {
    format!("eth{n}")
}

/// The `n`-th link of a task's container.
fn endpoint(
    task: TaskId,
    pid: i32,
    (network, address): &Link<'_>,
    n: usize,
    way_out: Option<NetworkId>,
) -> Endpoint {
    Endpoint {
        id: if n == 0 { task.to_string() } else { format!("{task}.{n}") },
        network: network.network.to_string(),
        netns_pid: pid,
        address: address.address,
        ipv6: address.ipv6.map(|ipv6| ipv6.address),
        prefix_len: address.prefix_len,
        gateway: address.gateway,
        default_route: way_out == Some(network.network),
        interface_name: interface_name(n),
        ports: Vec::new(),
    }
}

/// The network with the way out.
fn way_out(links: &[Link<'_>], map: &NetworkMap) -> Option<NetworkId> {
    let networks: Vec<_> = links.iter().map(|(network, _)| *network).collect();
    overlay::way_out(map, &networks)
}

/// The network that ports lead to: the one with the way out, else the first.
fn reached_by<'a>(links: &[Link<'a>], map: &NetworkMap) -> Option<&'a TaskNetwork> {
    let way_out = way_out(links, map);
    let mut networks = links.iter().map(|(network, _)| *network);
    let first = networks.clone().next();
    networks.find(|network| Some(network.network) == way_out).or(first)
}

/// Where ports answer that name no place themselves is a matter of the network that they lead to.
pub fn bind(ports: &mut [PortStatus], links: &[Link<'_>], map: &NetworkMap) {
    let host_ip = reached_by(links, map).and_then(|network| network.bridge.host_ip);
    for port in ports.iter_mut().filter(|port| port.interface.is_none()) {
        port.host_ip = port.host_ip.or(host_ip.map(IpAddr::from));
    }
}

/// One endpoint for each network with addresses, `eth0` on. Ports lead to the one with the way out.
pub fn endpoints(
    task: TaskId,
    pid: i32,
    links: &[Link<'_>],
    map: &NetworkMap,
    mut ports: Vec<HostPort>,
) -> Vec<Endpoint> {
    let way_out = way_out(links, map);
    let open = reached_by(links, map).map(|network| network.network);
    let with_ports = |(n, link): (usize, &Link<'_>)| Endpoint {
        ports: if open == Some(link.0.network) { std::mem::take(&mut ports) } else { Vec::new() },
        ..endpoint(task, pid, link, n, way_out)
    };
    links.iter().enumerate().map(with_ports).collect()
}

pub fn host_port(port: &PortStatus) -> HostPort {
    HostPort {
        protocol: protocol(port.protocol),
        published: port.published,
        target: port.target,
        at: ports::place(port.host_ip, port.interface),
    }
}

/// Refuses a task that would have no address at all, as its network has IPv6 alone and this kernel has none.
pub fn ipv6_can_be_had(links: &[Link<'_>]) -> Result<(), Failure> {
    match links.iter().find(|(_, address)| address.ipv4().is_none()) {
        Some((network, _)) if !rswarm_net::has_ipv6() => Err(Failure {
            text: format!("network `{}` has IPv6 alone, and this node's kernel has none", network.name),
            kind: FailureKind::Unfit,
        }),
        _ => Ok(()),
    }
}

/// The IPv6 address of a bridge, where the kernel has IPv6.
pub fn gateway6(of: TaskAddress) -> Option<Cidr6> {
    let ipv6 = of.ipv6.filter(|_| rswarm_net::has_ipv6())?;
    Some(Cidr { address: ipv6.gateway?, prefix_len: ipv6.prefix_len })
}

#[cfg(test)]
mod tests {
    use rswarm_types::NetworkDriver;
    use rswarm_types::service::Protocol;

    use super::*;

    fn network(n: u8, joined: bool) -> TaskNetwork {
        let address = TaskAddress {
            address: [10, n, 0, 2].into(),
            prefix_len: 16,
            gateway: [10, n, 0, 1].into(),
            ipv6: None,
        };
        TaskNetwork {
            network: NetworkId::from_bytes([n; 16]),
            name: format!("n{n}"),
            driver: NetworkDriver::Bridge,
            address: Some(address),
            aliases: vec![],
            internal: false,
            mtu: None,
            bridge: rswarm_types::network::BridgeOptions::default(),
            joined,
        }
    }

    #[test]
    fn ports_answer_where_the_network_says_that_they_lead_to() {
        let (map, own) = (NetworkMap::default(), Some(IpAddr::from([127, 0, 0, 1])));
        let mut all = [network(1, false), network(2, false)];
        all[1].bridge.host_ip = Some([127, 0, 0, 1].into());
        let bound = |all: &[TaskNetwork], host_ip: Option<IpAddr>, interface: Option<&str>| {
            let links: Vec<Link<'_>> = all.iter().filter_map(|one| Some((one, one.address?))).collect();
            let interface = interface.map(|name| name.parse().unwrap());
            let (protocol, target, published) = (Protocol::Tcp, 80, 8080);
            let mut ports = [PortStatus { protocol, target, published, host_ip, interface }];
            bind(&mut ports, &links, &map);
            ports[0].host_ip
        };
        assert_eq!(bound(&all, None, None), None, "the first network leads out");
        all[0].internal = true;
        assert_eq!(bound(&all, None, None), own);
        let other = Some(IpAddr::from([0, 0, 0, 0]));
        assert_eq!(bound(&all, other, None), other, "what the port says itself counts");
        assert_eq!(bound(&all, None, Some("eth0")), None);
    }

    #[test]
    fn what_is_connected_later_takes_the_next_free_name_and_leaves_the_way_out() {
        let (map, task) = (NetworkMap::default(), TaskId::from_bytes([7; 16]));
        let all: Vec<TaskNetwork> = (1..=3).map(|n| network(n, n > 1)).collect();
        let links: Vec<Link<'_>> = all.iter().filter_map(|one| Some((one, one.address?))).collect();
        let shown = |endpoints: &[Endpoint]| -> Vec<_> {
            let one = |endpoint: &Endpoint| {
                (endpoint.interface_name.clone(), endpoint.address.octets()[1], endpoint.default_route)
            };
            endpoints.iter().map(one).collect()
        };
        let eth = |n: u8| format!("eth{n}");
        let mut held = endpoints(task, 1, &links[..1], &map, vec![]);
        assert_eq!(shown(&held), [(eth(0), 1, true)]);
        let connected = |mut held: Vec<Endpoint>, links: &[Link<'_>]| {
            held.extend(fresh_endpoints(task, 1, links, &held));
            give_way_out(&mut held, links, &map);
            held
        };
        held = connected(held, &links);
        assert_eq!(shown(&held), [(eth(0), 1, true), (eth(1), 2, false), (eth(2), 3, false)]);
        assert_eq!(held[2].id, format!("{task}.2"));
        held.remove(1);
        held = connected(held, &links);
        assert_eq!(shown(&held), [(eth(0), 1, true), (eth(2), 3, false), (eth(1), 2, false)]);
        // One without a way out gets it with the first network that has one.
        assert_eq!(shown(&connected(vec![], &links[1..])), [(eth(0), 2, true), (eth(1), 3, false)]);
        // So it does when the network with its way out has gone, also where it was already.
        held.remove(0);
        assert_eq!(shown(&connected(held, &links[1..])), [(eth(2), 3, false), (eth(1), 2, true)]);
    }
}
