//! Node-local bridges with IPv6: what holds of IPv4 there holds of IPv6, and nobody plays the router.

use std::{
    io::ErrorKind::ConnectionRefused,
    net::{Ipv6Addr, SocketAddrV6, TcpListener},
    time::Duration,
};

use rswarm_net::{BridgeNetwork, Cidr, Endpoint, HostPort, NodeNetwork, Place, Protocol::Tcp};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};

use crate::rig::{Container, Rig, endpoint, fetch, network, output, port, serve, wait_until};

/// Runs the rest of the test, or says by name what is missing.
macro_rules! needs_ipv6 {
    () => {
        needs_kernel!();
        if !rswarm_net::has_ipv6() {
            eprintln!("skipped: needs a kernel with IPv6");
            return;
        }
    };
}

fn address6(network: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x90, network, 0, 0, 0, 0, last)
}

/// Hosts have these beside their IPv4 addresses.
fn host6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, number)
}

fn dual(number: u8) -> BridgeNetwork {
    BridgeNetwork {
        id: format!("n{number}"),
        bridge: format!("rsw-br{number}"),
        gateway: [10, 90 + number, 0, 1].into(),
        subnet: [10, 90 + number, 0, 0].into(),
        ipv6: Some(Cidr { address: address6(number.into(), 1), prefix_len: 64 }),
        ..network()
    }
}

fn on(network: u8, id: &str, container: &Container, last: u8, ports: &[HostPort]) -> Endpoint {
    Endpoint {
        network: format!("n{network}"),
        address: [10, 90 + network, 0, last].into(),
        ipv6: Some(address6(network.into(), last.into())),
        gateway: [10, 90 + network, 0, 1].into(),
        ..endpoint(id, container, last, ports)
    }
}

/// A node and another machine, both with IPv6; on the node two bridges, the second one internal, with two and one container.
struct Sample {
    rig: Rig,
    containers: [Container; 3],
    desired: NodeNetwork,
}

impl Sample {
    async fn new() -> Self {
        let rig = Rig::new();
        for (host, number) in [(rig.node(), 1), (rig.other(), 2)] {
            let address = format!("{}/64", host6(number));
            let arguments = ["-6", "addr", "add", &address, "dev", "eth0", "nodad"];
            output(host.command("ip").unwrap().args(arguments));
            wait_until("a host has its link-local address", || {
                let shown = output(host.command("ip").unwrap().args(["-6", "addr", "show", "dev", "eth0"]));
                shown.contains("fe80:") && !shown.contains("tentative")
            });
        }
        let containers = [Container::start(), Container::start(), Container::start()];
        let internal = BridgeNetwork { internal: true, ..dual(1) };
        let desired = NodeNetwork {
            networks: vec![dual(0), internal],
            endpoints: vec![
                on(0, "a", &containers[0], 2, &[port(Tcp, 8080, 80)]),
                on(0, "b", &containers[1], 3, &[]),
                Endpoint { default_route: false, ..on(1, "c", &containers[2], 2, &[]) },
            ],
            overlay: None,
        };
        for network in &desired.networks {
            rig.net.ensure_network(network).await.unwrap();
        }
        for endpoint in &desired.endpoints {
            rig.net.attach(endpoint).await.unwrap();
        }
        for (container, name) in containers.iter().zip(["a", "b", "c"]) {
            container.serve(80, name);
        }
        Self { rig, containers, desired }
    }

    /// What a container hears from an address.
    fn ask(&self, from: usize, to: Ipv6Addr, port: u16) -> std::io::Result<String> {
        self.containers[from].run(|| fetch(to, port))
    }
}

#[tokio::test]
async fn containers_reach_each_other_and_the_world_by_ipv6_and_their_ports_answer() {
    needs_ipv6!();
    let sample = Sample::new().await;
    let rig = &sample.rig;
    assert_eq!(rig.net.verify().await.unwrap(), [], "what is made is found settled");
    assert_eq!(sample.ask(1, address6(0, 2), 80).unwrap(), "a saw fd00:90::3");
    assert_eq!(sample.ask(0, address6(0, 3), 80).unwrap(), "b saw fd00:90::2");
    // Out, by the node's address.
    let listener = rig.other().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
    serve(listener, "outside");
    assert_eq!(sample.ask(0, host6(2), 80).unwrap(), "outside saw 2001:db8:77::1");
    // In, by the published port: the client is seen, and a neighbour or the container itself as the gateway.
    let outside = || rig.other().run(|| fetch(host6(1), 8080)).unwrap();
    assert_eq!(outside().unwrap(), "a saw 2001:db8:77::2");
    assert_eq!(rig.other().run(|| fetch(rig.node().address, 8080)).unwrap().unwrap(), "a saw 10.77.0.2");
    assert_eq!(rig.node().run(|| fetch(host6(1), 8080)).unwrap().unwrap(), "a saw 2001:db8:77::1");
    for bridged in [false, true] {
        rig.filter_bridged(bridged);
        for from in [0, 1] {
            assert_eq!(sample.ask(from, host6(1), 8080).unwrap(), "a saw fd00:90::1", "{bridged}");
        }
        assert_eq!(sample.ask(1, address6(0, 2), 80).unwrap(), "a saw fd00:90::3", "{bridged}");
    }
    // At one address alone.
    let at = |at: Ipv6Addr| HostPort { at: Some(Place::Address(at.into())), ..port(Tcp, 8080, 80) };
    rig.net.publish("a", &[at(host6(1))]).await.unwrap();
    assert_eq!(outside().unwrap(), "a saw 2001:db8:77::2");
    rig.net.publish("a", &[at(host6(7))]).await.unwrap();
    assert_eq!(outside().unwrap_err().kind(), ConnectionRefused);
    // Nobody's address, and other networks, are refused at once; internal ones have no way out.
    let via = host6(1).to_string();
    output(rig.other().command("ip").unwrap().args(["-6", "route", "add", "fd00:90::/48", "via", &via]));
    assert_eq!(sample.ask(0, address6(0, 77), 80).unwrap_err().kind(), ConnectionRefused);
    assert_eq!(sample.ask(0, address6(1, 2), 80).unwrap_err().kind(), ConnectionRefused);
    assert_eq!(rig.other().run(|| fetch(address6(0, 2), 80)).unwrap().unwrap_err().kind(), ConnectionRefused);
    let inside = &sample.containers[2];
    assert_eq!(inside.output("ip", &["-6", "route", "show", "default"]), "");
    inside.output("ip", &["-6", "route", "add", "default", "via", "fd00:90:1::1", "dev", "eth0", "onlink"]);
    for (to, port) in [(host6(2), 80), (address6(0, 3), 80), (host6(1), 8080)] {
        assert_eq!(sample.ask(2, to, port).unwrap_err().kind(), ConnectionRefused, "{to}");
    }
    assert_eq!(rig.node().run(|| fetch(address6(1, 2), 80)).unwrap().unwrap(), "c saw fd00:90:1::1");
    // The links have the addresses they were given and no others.
    let shown = rig.output("ip", &["-6", "-o", "addr", "show", "dev", "rsw-br0"]);
    assert!(shown.contains("fd00:90::1/64") && !shown.contains("fe80"), "{shown}");
    // An endpoint that goes takes all of it along; the next daemon finds the rest settled.
    assert!(rig.net.detach("a").await.unwrap());
    assert_eq!(outside().unwrap_err().kind(), ConnectionRefused);
    let left = rig.output("ip", &["-6", "neigh", "show", "dev", "rsw-br0", "nud", "permanent"]);
    assert!(!left.contains("fd00:90::2") && left.contains("fd00:90::3"), "{left}");
    assert_eq!(rig.net.verify().await.unwrap(), []);
    let mut rest = sample.desired.clone();
    rest.endpoints.remove(0);
    let report = Rig::daemon(rig.node()).reconcile(&rest).await.unwrap();
    assert!(report.clean(), "{report:?}");
    rig.net.remove_all().await.unwrap();
    assert_eq!(rig.links(), ["lo", "eth0"]);
}

#[tokio::test]
async fn nobody_speaks_for_another_by_ipv6_nor_plays_the_router_of_a_bridge() {
    needs_ipv6!();
    let sample = Sample::new().await;
    let [from, to, _] = &sample.containers;
    let icmp = |address: Ipv6Addr| {
        let raw = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        rustix::net::bind(&raw, &SocketAddrV6::new(address, 0, 0, 0)).unwrap();
        sockopt::set_socket_timeout(&raw, sockopt::Timeout::Recv, Some(Duration::from_millis(300))).unwrap();
        raw
    };
    let receiver = to.run(|| icmp(address6(0, 3)));
    let arrives = |kind: u8, source: Ipv6Addr| {
        from.run(|| {
            let sender = icmp(source);
            sockopt::set_ipv6_unicast_hops(&sender, Some(255)).unwrap();
            let message = [kind, 0, 0, 0, 0x52, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let target = SocketAddrV6::new(address6(0, 3), 0, 0, 0);
            sendto(&sender, &message, SendFlags::empty(), &target).unwrap();
        });
        let mut buffer = [0; 64];
        while let Ok((len, _)) = recv(&receiver, &mut buffer[..], RecvFlags::empty()) {
            if len > 5 && buffer[4..6] == [0x52, kind] {
                return true;
            }
        }
        false
    };
    let own = address6(0, 2);
    // The kernel takes its time to let a new link's packets pass.
    wait_until("an honest echo request arrives", || arrives(128, own));
    for kind in 133..=137 {
        assert!(!arrives(kind, own), "type {kind}");
    }
    from.output("ip", &["addr", "add", "fd00:90::9/128", "dev", "eth0", "nodad"]);
    assert!(!arrives(128, address6(0, 9)), "of another's address");
    wait_until("an honest one still does", || arrives(128, own));
    let report = sample.rig.net.reconcile(&sample.desired).await.unwrap();
    let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["configure IPv6 of `eth0` of endpoint `a`"]);
}

#[tokio::test]
async fn planted_differences_in_the_ipv6_of_a_bridge_are_mended_and_told() {
    needs_ipv6!();
    let sample = Sample::new().await;
    let (rig, a) = (&sample.rig, &sample.containers[0]);
    let cases: [(&str, &str, &str); 14] = [
        ("ip", "-6 neigh del fd00:90::2 dev rsw-br0", "add neighbour `fd00:90::2` at 02:42:0a:5a:00:02"),
        (
            "ip",
            "-6 neigh add fd00:90::77 lladdr 02:00:00:00:00:01 dev rsw-br0 nud permanent",
            "remove neighbour `fd00:90::77`",
        ),
        ("ip", "-6 addr flush dev rsw-br0", "add address `fd00:90::1/64` to `rsw-br0`"),
        (
            "ip",
            "-6 addr add fd00:90::9/64 dev rsw-br0 nodad",
            "remove address `fd00:90::9/64` from `rsw-br0`",
        ),
        ("ip", "link del rsw-br0", "create bridge `rsw-br0`"),
        ("sysctl", "rsw-br0/disable_ipv6=1", "enable route_localnet and enable IPv6 on `rsw-br0`"),
        ("sysctl", "rsw-br0/addr_gen_mode=0", "enable route_localnet and enable IPv6 on `rsw-br0`"),
        ("sysctl", "all/forwarding=0", "enable IPv6 forwarding"),
        ("nft", "flush map inet rswarm published6", "add nft element: published tcp/8080 to [fd00:90::2]:80"),
        (
            "nft",
            "add element inet rswarm members6 { rsw-br0 . fd00:90::77 }",
            "remove nft element: member fd00:90::77",
        ),
        ("nft", "flush set bridge rswarm sources6", "add nft element: source fd00:90::2"),
        ("task", "-6 addr flush dev eth0", "configure IPv6 of `eth0` of endpoint `a`"),
        ("task", "-6 neigh flush dev eth0 nud permanent", "configure IPv6 of `eth0` of endpoint `a`"),
        ("task", "-6 route flush dev eth0", "configure IPv6 of `eth0` of endpoint `a`"),
    ];
    for (program, arguments, expected) in cases {
        let words: Vec<&str> =
            if program == "nft" { vec![arguments] } else { arguments.split(' ').collect() };
        match program {
            "sysctl" => {
                let (name, value) = arguments.split_once('=').unwrap();
                let path = format!("/proc/sys/net/ipv6/conf/{name}");
                rig.node().run(|| std::fs::write(path, value)).unwrap().unwrap();
            }
            "task" => drop(a.output("ip", &words)),
            program => drop(rig.output(program, &words)),
        }
        assert!(!rig.net.check().await.unwrap().findings.is_empty(), "{arguments}");
        let report = rig.net.reconcile(&sample.desired).await.unwrap();
        let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
        assert!(report.failed.is_empty(), "{arguments}: {:?}", report.failed);
        assert!(told.iter().any(|line| line.starts_with(expected)), "{arguments}: {told:?}");
        assert_eq!(rig.net.verify().await.unwrap(), [], "{arguments}");
        assert_eq!(sample.ask(1, address6(0, 2), 80).unwrap(), "a saw fd00:90::3", "{arguments}");
        let outside = rig.other().run(|| fetch(host6(1), 8080)).unwrap();
        assert_eq!(outside.unwrap(), "a saw 2001:db8:77::2", "{arguments}");
    }
}

#[tokio::test]
async fn a_bridge_without_ipv4_has_none_and_does_the_same_by_ipv6() {
    needs_ipv6!();
    let sample = Sample::new().await;
    let rig = &sample.rig;
    let network = BridgeNetwork { ipv6_only: true, ..dual(2) };
    let (d, e) = (Container::start(), Container::start());
    rig.net.ensure_network(&network).await.unwrap();
    rig.net.attach(&on(2, "d", &d, 2, &[port(Tcp, 8082, 80)])).await.unwrap();
    rig.net.attach(&on(2, "e", &e, 3, &[])).await.unwrap();
    d.serve(80, "d");
    assert_eq!(rig.net.verify().await.unwrap(), [], "what is made is found settled");
    for shown in [
        rig.output("ip", &["-4", "addr", "show", "dev", "rsw-br2"]),
        d.output("ip", &["-4", "addr", "show", "dev", "eth0"]),
        d.output("ip", &["-4", "route"]),
    ] {
        assert_eq!(shown, "");
    }
    assert_eq!(e.run(|| fetch(address6(2, 2), 80)).unwrap(), "d saw fd00:90:2::3");
    assert_eq!(rig.other().run(|| fetch(host6(1), 8082)).unwrap().unwrap(), "d saw 2001:db8:77::2");
    let ipv4 = rig.other().run(|| fetch(rig.node().address, 8082)).unwrap();
    assert_eq!(ipv4.unwrap_err().kind(), ConnectionRefused, "published by IPv6 alone");
    // One that takes the number for an address is not heard.
    d.output("ip", &["addr", "add", "10.92.0.2/24", "dev", "eth0"]);
    assert!(d.run(|| fetch(std::net::Ipv4Addr::new(10, 92, 0, 1), 80)).is_err());
    let mut desired = sample.desired.clone();
    desired.networks.push(network);
    desired.endpoints.extend([on(2, "d", &d, 2, &[port(Tcp, 8082, 80)]), on(2, "e", &e, 3, &[])]);
    let report = rig.net.reconcile(&desired).await.unwrap();
    let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["configure `eth0` of endpoint `d`"]);
}
