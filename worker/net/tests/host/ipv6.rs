//! Overlays with IPv6: tasks reach each other by their twins as they do by IPv4, and nobody else does.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use rswarm_net::{
    HostPort, Place,
    Protocol::{Tcp, Udp},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};

use crate::{
    cluster::{APP, Cluster, INGRESS, INNER, OTHER, address6, helper},
    rig::{DEADLINE, fetch, installed, output, port, serve, wait_until},
};

/// Two nodes with tasks on both and a service; all networks but ingress have IPv6.
async fn sample() -> Cluster {
    let mut cluster = Cluster::new(2);
    give_hosts_ipv6(&cluster);
    cluster.ipv6 = vec![APP, OTHER, INNER];
    cluster.tell().await;
    for (node, last, networks) in
        [(1, 2, [INGRESS, APP]), (1, 3, [APP, INNER]), (2, 4, [APP, INNER]), (2, 5, [OTHER, INNER])]
    {
        let number = cluster.start(node, last, &networks).await;
        cluster.tasks[number].container.serve(80, ["two", "three", "four", "five"][number]);
    }
    cluster.serve("web", APP, 200, &[3, 4]);
    cluster.serve("self", APP, 201, &[2]);
    cluster.tell().await;
    cluster
}

/// What the task at this place hears from an address.
fn ask(cluster: &Cluster, task: usize, to: impl Into<IpAddr>) -> std::io::Result<String> {
    let to = to.into();
    cluster.tasks[task].container.run(|| fetch(to, 80))
}

#[tokio::test]
async fn tasks_reach_each_other_by_ipv6_and_see_who_calls() {
    needs_kernel!();
    let mut cluster = sample().await;
    for (from, to, expected) in [
        (0, address6(APP, 3), "three saw fd00:1001::2"),
        (0, address6(APP, 4), "four saw fd00:1001::2"),
        (2, address6(APP, 2), "two saw fd00:1001::4"),
        (1, address6(INNER, 5), "five saw fd00:1003::3"),
        // A task that draws itself sees its gateway.
        (0, address6(APP, 201), "two saw fd00:1001::1"),
    ] {
        assert_eq!(ask(&cluster, from, to).unwrap(), expected, "{to}");
    }
    // By the service's address each of its tasks is met, from either node.
    for from in [0, 2] {
        let mut heard = std::collections::BTreeSet::new();
        for _ in 0..64 {
            heard.insert(
                ask(&cluster, from, address6(APP, 200)).unwrap().split(' ').next().unwrap().to_owned(),
            );
        }
        assert_eq!(heard.into_iter().collect::<Vec<_>>(), ["four", "three"]);
    }
    assert!(ask(&cluster, 0, cluster.tasks[1].address(APP)).unwrap().starts_with("three saw 10.0.0.2"));
    // Nobody's address, a service without tasks, another network: refused at once.
    cluster.serve("web", APP, 200, &[]);
    cluster.tell().await;
    for (from, to) in [
        (0, address6(APP, 77)),
        (0, "fd00:1001::1:2".parse().unwrap()),
        (0, address6(APP, 200)),
        (1, address6(OTHER, 5)),
        (3, address6(APP, 2)),
    ] {
        assert_eq!(ask(&cluster, from, to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    cluster.assert_settled().await;
    // What a large packet carries arrives, as it does by IPv4.
    if installed("ping") {
        let ping = ["-6", "-c1", "-W10", "-s1402", "-Mdo", "fd00:1001::4"];
        cluster.tasks[0].container.output("ping", &ping);
    }
}

/// Gives all hosts of the lab an IPv6 address beside the IPv4 one: the last byte is the same.
pub fn give_hosts_ipv6(cluster: &Cluster) {
    for number in 1..=cluster.nodes.len() + 1 {
        let address = format!("{}/64", host6(number));
        let arguments = ["-6", "addr", "add", &address, "dev", "eth0", "nodad"];
        output(cluster.host(number).command("ip").unwrap().args(arguments));
    }
    // They ask for each other by their link-local addresses, once they are sure that nobody else has those.
    for number in 1..=cluster.nodes.len() + 1 {
        wait_until("a host has its link-local address", || {
            let mut ip = cluster.host(number).command("ip").unwrap();
            let shown = output(ip.args(["-6", "addr", "show", "dev", "eth0"]));
            shown.contains("fe80:") && !shown.contains("tentative")
        });
    }
}

pub fn host6(number: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, number as u16)
}

#[tokio::test]
async fn tasks_get_out_by_their_nodes_ipv6_address_unless_their_network_is_internal() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    let node = cluster.host(1).clone();
    let accept_ra = |value: Option<&str>| {
        let path = "/proc/sys/net/ipv6/conf/eth0/accept_ra";
        let change = || match value {
            Some(value) => std::fs::write(path, value).map(|()| String::new()),
            None => std::fs::read_to_string(path),
        };
        node.run(change).unwrap().unwrap()
    };
    accept_ra(Some("1"));
    give_hosts_ipv6(&cluster);
    cluster.ipv6 = vec![APP, INNER];
    for number in [1, 2] {
        cluster.node(number).reconcile(&cluster.desired(number)).await.unwrap();
    }
    cluster.start(1, 2, &[APP]).await;
    cluster.start(1, 3, &[INNER]).await;
    let listener = cluster.outside().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
    serve(listener, "outside");
    assert_eq!(ask(&cluster, 0, host6(3)).unwrap(), "outside saw 2001:db8:77::1");
    let error = ask(&cluster, 1, host6(3)).unwrap_err().kind();
    assert!([ErrorKind::NetworkUnreachable, ErrorKind::ConnectionRefused].contains(&error), "{error}");
    // The ports that nodes talk to each other by are closed to tasks, on their own node and on others.
    for host in [1, 2, 3] {
        let reached = cluster.tasks[0].container.run(|| fetch(host6(host), 2377));
        assert_eq!(reached.unwrap_err().kind(), ErrorKind::ConnectionRefused, "host {host}");
    }
    assert_eq!(accept_ra(None).trim(), "2", "the host still hears routers, although it forwards");
    cluster.assert_settled().await;
}

/// Three nodes with IPv6 addresses, of which the third alone has the task.
async fn meshed() -> Cluster {
    let mut cluster = Cluster::new(3);
    give_hosts_ipv6(&cluster);
    cluster.ipv6 = vec![INGRESS, APP];
    cluster.tell().await;
    let number = cluster.start(3, 2, &[INGRESS, APP]).await;
    let task = &cluster.tasks[number];
    task.container.serve(80, "web");
    let socket = task.container.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("web saw {}", from.ip()).as_bytes(), from);
        }
    });
    cluster.publish(Tcp, 8080, 80, &[2]);
    cluster.publish(Udp, 5353, 53, &[2]);
    cluster.tell().await;
    cluster
}

#[tokio::test]
async fn a_published_port_answers_by_ipv6_on_every_node_and_the_task_sees_the_client() {
    needs_kernel!();
    let mut cluster = meshed().await;
    let outside = host6(4);
    let ask = |number: usize| {
        let by_udp = || {
            let socket = UdpSocket::bind((outside, 0)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.send_to(b"hello", (host6(number), 5353)).unwrap();
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(from, (host6(number), 5353).into(), "the answer comes from whom was asked");
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        let both = cluster.outside().run(|| (fetch(host6(number), 8080).unwrap(), by_udp()));
        both.unwrap()
    };
    for number in 1..=3 {
        let expected = format!("web saw {outside}");
        assert_eq!(ask(number), (expected.clone(), expected), "by node {number}");
        let ipv4 = cluster.outside().run(|| fetch(cluster.host(number).address, 8080)).unwrap().unwrap();
        assert_eq!(ipv4, "web saw 10.77.0.4");
    }
    // The nodes themselves, their own port included; and a task, by its own node and by another.
    for (from, to) in [(1, 1), (1, 2), (2, 3), (3, 3)] {
        let seen = cluster.host(from).run(|| fetch(host6(to), 8080)).unwrap().unwrap();
        assert_eq!(seen, format!("web saw {}", host6(from)), "{from} to {to}");
    }
    let loopback = cluster.host(3).run(|| fetch(Ipv6Addr::LOCALHOST, 8080)).unwrap();
    assert_eq!(
        loopback.unwrap_err().kind(),
        ErrorKind::ConnectionRefused,
        "not by the loopback, and at once"
    );
    for number in 1..=3 {
        let seen = cluster.tasks[0].container.run(|| fetch(host6(number), 8080));
        assert!(seen.as_ref().is_ok_and(|seen| seen.starts_with("web saw ")), "{number}: {seen:?}");
    }
    cluster.assert_settled().await;
    // The next daemon finds the same.
    cluster.nodes[0] = cluster.daemon(1);
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.clean(), "{report:?}");
    // Without a task to answer, the port refuses.
    cluster.publish(Tcp, 8080, 80, &[]);
    cluster.tell().await;
    let error = cluster.outside().run(|| fetch(host6(1), 8080)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // A network that has no IPv6 any more, by way of a comparison with the kernel.
    cluster.publish(Tcp, 8080, 80, &[2]);
    cluster.ipv6 = vec![APP];
    cluster.tell().await;
    let error = cluster.outside().run(|| fetch(host6(1), 8080)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    for number in 1..=3 {
        cluster.node(number).reconcile(&cluster.desired(number)).await.unwrap();
    }
    cluster.assert_settled().await;
    let ipv4 = cluster.outside().run(|| fetch(cluster.host(1).address, 8080)).unwrap().unwrap();
    assert_eq!(ipv4, "web saw 10.77.0.4");
}

#[tokio::test]
async fn a_port_answers_at_the_ipv6_address_and_by_the_interface_that_was_asked_for() {
    needs_kernel!();
    let mut cluster = meshed().await;
    let (own, other, ipv4) = (host6(1), host6(77), cluster.host(1).address);
    let second = format!("{other}/64");
    let arguments = ["-6", "addr", "add", &second, "dev", "eth0", "nodad"];
    output(cluster.host(1).command("ip").unwrap().args(arguments));
    let at = |address: &str| Place::Address(address.parse().unwrap());
    // From outside at the one address, at the other, by IPv4; and from the node itself.
    for (place, expected) in [
        (at(&own.to_string()), [true, false, false, true]),
        (at("::"), [true, true, false, true]),
        (at("0.0.0.0"), [false, false, true, false]),
        (at("fd00::77"), [false; 4]),
        (Place::interface("eth0"), [true, true, true, false]),
        (Place::interface("lo"), [false, false, false, true]),
    ] {
        cluster.published.get_mut(&(Tcp, 8080)).unwrap().at = [place.clone()].into();
        cluster.tell().await;
        let outside = cluster.outside();
        let asked = [IpAddr::from(own), other.into(), ipv4.into()];
        let seen = asked.map(|address| outside.run(|| fetch(address, 8080)).unwrap().ok());
        let itself = cluster.host(1).run(|| fetch(own, 8080)).unwrap().ok();
        let seen: Vec<_> = seen
            .into_iter()
            .chain([itself])
            .map(|seen| seen.is_some_and(|seen| seen.starts_with("web saw ")))
            .collect();
        assert_eq!(seen, expected, "{place:?}");
        cluster.assert_settled().await;
    }
    // A port on which someone listens by IPv6 alone is left to him where he would get what comes.
    let listen = || {
        let socket = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        sockopt::set_ipv6_v6only(&socket, true).unwrap();
        rustix::net::bind(&socket, &SocketAddrV6::new(other, 9000, 0, 0)).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        socket
    };
    let _his = cluster.host(1).run(listen).unwrap();
    cluster.publish(Tcp, 9000, 80, &[2]);
    for (place, busy) in [
        (at(&other.to_string()), true),
        (at(&own.to_string()), false),
        (at("::"), true),
        (at("0.0.0.0"), false),
    ] {
        cluster.published.get_mut(&(Tcp, 9000)).unwrap().at = [place.clone()].into();
        let found = cluster.node(1).apply(cluster.overlay(1)).await.unwrap();
        assert_eq!(found, busy.then_some((Tcp, 9000)).into_iter().collect(), "{place:?}");
    }
}

#[tokio::test]
async fn the_host_ports_of_a_task_answer_by_ipv6() {
    needs_kernel!();
    let mut cluster = Cluster::new(1);
    give_hosts_ipv6(&cluster);
    cluster.ipv6 = vec![INGRESS, APP];
    cluster.tell().await;
    let number = cluster.start(1, 2, &[APP]).await;
    let task = &mut cluster.tasks[number];
    task.container.serve(80, "web");
    task.ports = vec![port(Tcp, 8081, 80)];
    let endpoint = task.endpoints().remove(0);
    cluster.node(1).attach(&endpoint).await.unwrap();
    let seen = cluster.outside().run(|| fetch(host6(1), 8081)).unwrap().unwrap();
    assert_eq!(seen, format!("web saw {}", host6(2)));
    cluster.assert_settled().await;
    // At that address alone.
    let bound = HostPort { at: Some(Place::Address(host6(1).into())), ..endpoint.ports[0].clone() };
    cluster.node(1).publish(&endpoint.id, &[bound]).await.unwrap();
    let seen = cluster.outside().run(|| fetch(host6(1), 8081)).unwrap().unwrap();
    assert_eq!(seen, format!("web saw {}", host6(2)));
    assert!(cluster.outside().run(|| fetch(cluster.host(1).address, 8081)).unwrap().is_err());
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    cluster.node(1).detach(&endpoint.id).await.unwrap();
    let error = cluster.outside().run(|| fetch(host6(1), 8081)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn an_overlay_without_ipv4_has_none_and_does_the_same_by_ipv6() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    give_hosts_ipv6(&cluster);
    (cluster.ipv6, cluster.ipv6_only) = (vec![INGRESS, APP], vec![APP]);
    cluster.tell().await;
    for (node, last) in [(1, 2), (1, 3), (2, 4)] {
        let number = cluster.start(node, last, &[APP]).await;
        cluster.tasks[number].container.serve(80, ["two", "three", "four"][number]);
    }
    cluster.serve("web", APP, 200, &[4]);
    cluster.tell().await;
    for (to, expected) in
        [(3, "three saw fd00:1001::2"), (4, "four saw fd00:1001::2"), (200, "four saw fd00:1001::2")]
    {
        assert_eq!(ask(&cluster, 0, address6(APP, to)).unwrap(), expected);
    }
    let inside = cluster.tasks[0].container.output("ip", &["-4", "-o", "addr", "show", "up"]);
    assert!(inside.lines().all(|line| line.contains(" lo ")), "{inside}");
    assert_eq!(cluster.inside(1, "ip", &["-4", "addr", "show", "dev", "rsb4097"]), "");
    let members = cluster.inside(1, "nft", &["list", "set", "inet", "rswarm", "members"]);
    assert!(!members.contains("rsb4097"), "{members}");
    // A port in mode `host` answers by IPv6 alone.
    let task = &mut cluster.tasks[0];
    task.ports = vec![port(Tcp, 8081, 80)];
    let endpoint = task.endpoints().remove(0);
    cluster.node(1).attach(&endpoint).await.unwrap();
    let seen = cluster.outside().run(|| fetch(host6(1), 8081)).unwrap().unwrap();
    assert_eq!(seen, format!("two saw {}", host6(3)));
    assert!(cluster.outside().run(|| fetch(cluster.host(1).address, 8081)).unwrap().is_err());
    cluster.assert_settled().await;
    // The next daemon finds the same.
    cluster.nodes[0] = cluster.daemon(1);
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.clean(), "{report:?}");
}

#[tokio::test]
async fn nobody_speaks_for_another_and_nobody_plays_the_router() {
    needs_kernel!();
    let cluster = sample().await;
    let (from, to) = (&cluster.tasks[0].container, &cluster.tasks[2].container);
    let icmp = |address: Ipv6Addr| {
        let raw = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        rustix::net::bind(&raw, &SocketAddrV6::new(address, 0, 0, 0)).unwrap();
        sockopt::set_socket_timeout(&raw, sockopt::Timeout::Recv, Some(Duration::from_millis(500))).unwrap();
        raw
    };
    let receiver = to.run(|| icmp(address6(APP, 4)));
    // Whether a message of this type from that address comes to the other task.
    let arrives = |kind: u8, source: Ipv6Addr| {
        from.run(|| {
            let sender = icmp(source);
            sockopt::set_ipv6_unicast_hops(&sender, Some(255)).unwrap();
            let message = [kind, 0, 0, 0, 0x52, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let target = SocketAddrV6::new(address6(APP, 4), 0, 0, 0);
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
    let own = address6(APP, 2);
    wait_until("an honest echo request arrives", || arrives(128, own));
    for kind in 133..=137 {
        assert!(!arrives(kind, own), "type {kind}");
    }
    from.output("ip", &["addr", "add", "fd00:1001::3/128", "dev", "eth1", "nodad"]);
    assert!(!arrives(128, address6(APP, 3)), "of another's address");
    wait_until("an honest one still does", || arrives(128, own));
    // Nothing that a task says changes where a node thinks its neighbours are.
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["configure IPv6 of `eth1` of endpoint `task2.4097`"]);
}

#[tokio::test]
async fn planted_differences_in_ipv6_are_mended_and_told() {
    needs_kernel!();
    let cluster = sample().await;
    let node = cluster.node(1);
    let table = "inet rswarm";
    let cases: Vec<(&str, String, &str)> = vec![
        (
            "ip",
            "-6 neigh del fd00:1001::4 dev rsb4097".into(),
            "add neighbour fd00:1001::4 at 02:52:00:00:00:02",
        ),
        (
            "ip",
            "-6 neigh add fd00:1001::77 lladdr 02:00:00:00:00:01 dev rsb4097 nud permanent".into(),
            "remove neighbour fd00:1001::77",
        ),
        ("ip", "-6 addr flush dev rsb4097".into(), "add address fd00:1001::1/64 of `rsb4097`"),
        ("ip", "-6 addr add fd00:1001::9/64 dev rsb4097 nodad".into(), "remove address fd00:1001::9/64"),
        ("ip", "link del rsb4097".into(), "add bridge `rsb4097`"),
        ("ip", "-6 route del default".into(), "add default route of table 254"),
        ("ip", "-6 addr flush dev rsup".into(), "make the namespace"),
        ("sysctl", "net/ipv6/conf/rsb4097/disable_ipv6=1".into(), "add address fd00:1001::1/64"),
        ("sysctl", "net/ipv6/conf/all/forwarding=0".into(), "make the namespace"),
        ("nft", format!("flush chain {table} service6-web-4097"), "add nft chain `service6-web-4097`"),
        ("nft", format!("flush map {table} services6"), "add nft element: service fd00:1001::c8"),
        ("nft", format!("flush map {table} gateways6"), "add nft element: address fd00:1001::1 of rsb4097"),
        (
            "nft",
            format!("add element {table} members6 {{ rsb4097 . fd00:1001::77 }}"),
            "remove nft element: member fd00:1001::77",
        ),
        ("nft", "flush set bridge rswarm sources6".into(), "add nft element: source fd00:1001::2"),
        ("task", "-6 addr flush dev eth1".into(), "configure IPv6 of `eth1`"),
        ("task", "-6 addr add fd00:1001::5/128 dev eth1 nodad".into(), "configure IPv6 of `eth1`"),
        ("task", "-6 neigh flush dev eth1 nud permanent".into(), "configure IPv6 of `eth1`"),
        ("task", "-6 route flush dev eth1".into(), "configure IPv6 of `eth1`"),
    ];
    for (program, arguments, expected) in cases {
        let words: Vec<&str> =
            if program == "nft" { vec![&arguments] } else { arguments.split(' ').collect() };
        match program {
            "sysctl" => {
                let (name, value) = arguments.split_once('=').unwrap();
                let path = std::path::Path::new("/proc/sys").join(name);
                let write = || std::fs::write(path, value).unwrap();
                rswarm_net::run_in_netns(&helper(cluster.host(1)), write).unwrap();
            }
            "task" => drop(cluster.tasks[0].container.output("ip", &words)),
            program => drop(cluster.inside(1, program, &words)),
        }
        assert!(!node.check().await.unwrap().findings.is_empty(), "{arguments}");
        let report = node.reconcile(&cluster.desired(1)).await.unwrap();
        let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
        assert!(report.failed.is_empty(), "{arguments}: {:?}", report.failed);
        assert!(told.iter().any(|line| line.starts_with(expected)), "{arguments}: {told:?}");
        assert_eq!(node.verify().await.unwrap(), [], "{arguments}");
        assert_eq!(ask(&cluster, 0, address6(APP, 4)).unwrap(), "four saw fd00:1001::2", "{arguments}");
        ask(&cluster, 0, address6(APP, 200)).unwrap_or_else(|error| panic!("{arguments}: {error}"));
    }
}

#[tokio::test]
async fn a_network_that_goes_takes_its_ipv6_along_and_the_next_daemon_keeps_it() {
    needs_kernel!();
    let mut cluster = sample().await;
    cluster.nodes[0] = cluster.daemon(1);
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.clean(), "{report:?}");
    // A connection ends with its task.
    let to = SocketAddrV6::new(address6(APP, 4), 80, 0, 0);
    let open = cluster.tasks[0].container.run(|| TcpStream::connect(to)).unwrap();
    for endpoint in cluster.tasks.remove(2).endpoints() {
        cluster.node(2).detach(&endpoint.id).await.unwrap();
    }
    cluster.serve("web", APP, 200, &[3]);
    cluster.tell().await;
    drop(open);
    let left = cluster.inside(1, "ip", &["-6", "neigh", "show", "nud", "permanent"]);
    assert!(!left.contains("fd00:1001::4 "), "{left}");
    cluster.assert_settled().await;
    for task in std::mem::take(&mut cluster.tasks) {
        for endpoint in task.endpoints() {
            cluster.node(task.node).detach(&endpoint.id).await.unwrap();
        }
    }
    cluster.services.clear();
    cluster.ipv6.clear();
    cluster.networks = vec![INGRESS];
    cluster.tell().await;
    let left = cluster.inside(1, "ip", &["-6", "addr", "show", "scope", "global"]);
    assert!(!left.contains("fd00:"), "{left}");
    cluster.assert_settled().await;
    let rules = output(
        rswarm_net::lab::command_in_netns(&helper(cluster.host(1)), "ip").unwrap().args(["-6", "rule"]),
    );
    assert!(!rules.contains("fwmark"), "{rules}");
}
