//! Who reaches whom, and with which address.

use std::io::ErrorKind::ConnectionRefused;
use std::net::{Ipv4Addr, TcpListener};

use rswarm_net::{
    BridgeNetwork, Endpoint, HostPort, NetError, Place,
    Protocol::{Tcp, Udp},
};

use crate::rig::{
    Container, Rig, endpoint, fetch, network, port, receive, serve, stays_silent, udp, wait_until,
};

#[tokio::test]
async fn published_port_answers_from_everywhere_and_sees_the_client() {
    needs_kernel!();
    let rig = Rig::new();
    let (web, neighbour) = (Container::start(), Container::start());
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("web", &web, 2, &[port(Tcp, 8080, 80)])).await.unwrap();
    rig.net.attach(&endpoint("neighbour", &neighbour, 3, &[])).await.unwrap();
    web.serve(80, "web");
    let node = rig.node().address;
    let elsewhere = rig.other().run(|| fetch(node, 8080)).unwrap();
    assert_eq!(elsewhere.unwrap(), "web saw 10.77.0.2");
    let own = rig.node().run(|| fetch(node, 8080)).unwrap();
    assert_eq!(own.unwrap(), "web saw 10.77.0.1");
    let loopback = rig.node().run(|| fetch(Ipv4Addr::LOCALHOST, 8080)).unwrap();
    assert_eq!(loopback.unwrap(), "web saw 10.90.0.1");
    let gateway = rig.node().run(|| fetch(Ipv4Addr::new(10, 90, 0, 1), 8080)).unwrap();
    assert_eq!(gateway.unwrap(), "web saw 10.90.0.1");
    for bridged in [false, true] {
        rig.filter_bridged(bridged);
        // Turned round on the bridge: the neighbour, and the container itself.
        assert_eq!(neighbour.run(|| fetch(node, 8080)).unwrap(), "web saw 10.90.0.1", "{bridged}");
        assert_eq!(web.run(|| fetch(node, 8080)).unwrap(), "web saw 10.90.0.1", "{bridged}");
        // Directly, container to container.
        let direct = neighbour.run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80)).unwrap();
        assert_eq!(direct, "web saw 10.90.0.3", "{bridged}");
    }
    let direct = rig.node().run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80)).unwrap();
    assert_eq!(direct.unwrap(), "web saw 10.90.0.1");
    assert!(rig.other().run(|| fetch(node, 8081)).unwrap().is_err(), "only what is published answers");
    rig.net.remove_all().await.unwrap();
}

#[tokio::test]
async fn outgoing_traffic_takes_the_address_of_the_node() {
    needs_kernel!();
    let rig = Rig::new();
    let container = Container::start();
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("a", &container, 2, &[])).await.unwrap();
    serve(rig.other().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap(), "outside");
    let outside = rig.other().address;
    assert_eq!(container.run(|| fetch(outside, 80)).unwrap(), "outside saw 10.77.0.1");
}

#[tokio::test]
async fn an_internal_network_has_no_way_out_and_none_in() {
    needs_kernel!();
    let rig = Rig::new();
    let (a, b) = (Container::start(), Container::start());
    let mut internal = network();
    internal.internal = true;
    rig.net.ensure_network(&internal).await.unwrap();
    rig.net.attach(&endpoint("a", &a, 2, &[port(Tcp, 8080, 80)])).await.unwrap();
    rig.net.attach(&endpoint("b", &b, 3, &[])).await.unwrap();
    a.serve(80, "a");
    for bridged in [false, true] {
        rig.filter_bridged(bridged);
        assert_eq!(b.run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80)).unwrap(), "a saw 10.90.0.3", "{bridged}");
    }
    assert_eq!(a.output("ip", &["route", "show", "default"]), "");
    let node = rig.node().address;
    let refused = |result: std::io::Result<String>| result.unwrap_err().kind() == ConnectionRefused;
    assert!(refused(rig.other().run(|| fetch(node, 8080)).unwrap()), "its ports do not answer");
    // Even a container that gives itself a route does not get out, nor to another network of the node or its ports.
    serve(rig.other().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap(), "outside");
    let open = BridgeNetwork {
        id: "n1".into(),
        bridge: "rsw-br1".into(),
        gateway: Ipv4Addr::new(10, 91, 0, 1),
        subnet: Ipv4Addr::new(10, 91, 0, 0),
        ..network()
    };
    rig.net.ensure_network(&open).await.unwrap();
    let c = Container::start();
    let at = Endpoint {
        network: "n1".into(),
        address: Ipv4Addr::new(10, 91, 0, 2),
        gateway: Ipv4Addr::new(10, 91, 0, 1),
        ..endpoint("c", &c, 2, &[port(Tcp, 8081, 80)])
    };
    rig.net.attach(&at).await.unwrap();
    c.serve(80, "c");
    assert_eq!(rig.other().run(|| fetch(node, 8081)).unwrap().unwrap(), "c saw 10.77.0.2");
    b.output("ip", &["route", "add", "default", "via", "10.90.0.1"]);
    let outside = rig.other().address;
    for (address, port) in [(outside, 80), (at.address, 80), (node, 8081)] {
        assert!(refused(b.run(|| fetch(address, port))), "{address}:{port}");
    }
    assert!(refused(c.run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80))));
    // Of the node it reaches the name server at the gateway, and no more; the node reaches it.
    let listen = |port| rig.node().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    serve(listen(53), "names");
    serve(listen(22), "shell");
    let gateway = network().gateway;
    assert_eq!(b.run(|| fetch(gateway, 53)).unwrap(), "names saw 10.90.0.3");
    for (address, port) in [(gateway, 22), (node, 22), (node, 53)] {
        assert!(refused(b.run(|| fetch(address, port))), "{address}:{port}");
    }
    assert_eq!(
        rig.node().run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80)).unwrap().unwrap(),
        "a saw 10.90.0.1"
    );
    assert_eq!(rig.net.verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_flow_does_not_outlive_its_endpoint() {
    needs_kernel!();
    let rig = Rig::new();
    let (old, new) = (Container::start(), Container::start());
    rig.net.ensure_network(&network()).await.unwrap();
    let client = rig.other().run(|| udp(Ipv4Addr::UNSPECIFIED, 4000)).unwrap();
    client.connect((rig.node().address, 5353)).unwrap();
    // A datagram before the port is published leaves an untranslated connection behind.
    client.send(b"early").unwrap();
    stays_silent(&client);
    rig.net.attach(&endpoint("old", &old, 2, &[port(Udp, 5353, 53)])).await.unwrap();
    let at_old = old.run(|| udp(Ipv4Addr::UNSPECIFIED, 53));
    client.send(b"one").unwrap();
    let (datagram, from) = receive(&at_old);
    assert_eq!((&datagram[..], from.to_string()), (&b"one"[..], "10.77.0.2:4000".into()));
    assert!(rig.net.detach("old").await.unwrap());
    rig.net.attach(&endpoint("new", &new, 3, &[port(Udp, 5353, 53)])).await.unwrap();
    let at_new = new.run(|| udp(Ipv4Addr::UNSPECIFIED, 53));
    client.send(b"two").unwrap();
    assert_eq!(receive(&at_new).0, b"two");
    assert!(!rig.net.detach("old").await.unwrap(), "detaching again is fine and does nothing");
}

#[tokio::test]
async fn a_container_cannot_take_anothers_address() {
    needs_kernel!();
    let rig = Rig::new();
    let (honest, liar) = (Container::start(), Container::start());
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("honest", &honest, 2, &[])).await.unwrap();
    rig.net.attach(&endpoint("liar", &liar, 3, &[])).await.unwrap();
    let target = Ipv4Addr::new(10, 90, 0, 2);
    let receiver = honest.run(|| udp(target, 99));
    liar.run(|| udp(Ipv4Addr::new(10, 90, 0, 3), 0)).send_to(b"true", (target, 99)).unwrap();
    assert_eq!(receive(&receiver).0, b"true");
    // A second address does not get through, though the neighbour's MAC is known by now.
    liar.output("ip", &["addr", "add", "10.90.0.9/32", "dev", "eth0"]);
    liar.run(|| udp(Ipv4Addr::new(10, 90, 0, 9), 0)).send_to(b"false", (target, 99)).unwrap();
    assert!(stays_silent(&receiver), "another source address");
    // Nor another MAC, nor an ARP answer in another's name.
    liar.output("ip", &["link", "set", "eth0", "address", "02:42:0a:5a:00:63"]);
    liar.run(|| udp(Ipv4Addr::new(10, 90, 0, 3), 0)).send_to(b"false", (target, 99)).unwrap();
    assert!(stays_silent(&receiver), "another MAC");
}

#[tokio::test]
async fn a_container_cannot_reach_the_loopback_of_the_node() {
    needs_kernel!();
    let rig = Rig::new();
    let container = Container::start();
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("a", &container, 2, &[])).await.unwrap();
    let secret = rig.node().run(|| udp(Ipv4Addr::LOCALHOST, 99)).unwrap();
    // The container sends what is for 127.0.0.1 out to the gateway, from an address that passes the source check.
    container.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")).unwrap();
    container.output("ip", &["route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local"]);
    container.output("ip", &["route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local"]);
    container.output("ip", &["route", "add", "127.0.0.0/8", "via", "10.90.0.1"]);
    let send = || {
        let socket = container.run(|| udp(Ipv4Addr::new(10, 90, 0, 2), 0));
        socket.send_to(b"knock", (Ipv4Addr::LOCALHOST, 99))
    };
    send().unwrap();
    assert!(stays_silent(&secret), "the raw chain drops it");
    // Proof that the test can fail: without that chain the packet arrives.
    rig.nft("flush chain inet rswarm raw");
    send().unwrap();
    assert_eq!(receive(&secret).0, b"knock");
}

#[tokio::test]
async fn ports_and_addresses_are_not_given_twice() {
    needs_kernel!();
    let rig = Rig::new();
    let (a, b) = (Container::start(), Container::start());
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("a", &a, 2, &[port(Tcp, 8080, 80)])).await.unwrap();
    let taken = rig.net.attach(&endpoint("b", &b, 3, &[port(Tcp, 8080, 80)])).await.unwrap_err();
    assert!(matches!(taken, NetError::PortTaken { port: 8080, .. }), "{taken}");
    let taken = rig.net.attach(&endpoint("b", &b, 2, &[])).await.unwrap_err();
    assert!(matches!(taken, NetError::AddressTaken { .. }), "{taken}");
    rig.net.attach(&endpoint("b", &b, 3, &[port(Udp, 8080, 80)])).await.unwrap();
    // Ports can change while attached.
    rig.net.publish("a", &[port(Tcp, 8081, 80)]).await.unwrap();
    rig.net.publish("b", &[port(Tcp, 8080, 80)]).await.unwrap();
    a.serve(80, "a");
    b.serve(80, "b");
    let node = rig.node().address;
    assert_eq!(rig.other().run(|| fetch(node, 8081)).unwrap().unwrap(), "a saw 10.77.0.2");
    assert_eq!(rig.other().run(|| fetch(node, 8080)).unwrap().unwrap(), "b saw 10.77.0.2");
    let busy = rig.node().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).unwrap()).unwrap();
    let taken = rig.net.publish("a", &[port(Tcp, 9000, 80)]).await.unwrap_err();
    assert!(matches!(taken, NetError::PortInUse { port: 9000, .. }), "{taken}");
    drop(busy);
    wait_until("the port is free", || {
        rig.node().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000))).unwrap().is_ok()
    });
    rig.net.publish("a", &[port(Tcp, 9000, 80)]).await.unwrap();
    // At one address of the node, while another process has the port at another.
    let his = rig.node().run(move || TcpListener::bind((node, 9001)).unwrap()).unwrap();
    serve(his, "his");
    let bound = HostPort { at: Some(Place::Address(Ipv4Addr::LOCALHOST.into())), ..port(Tcp, 9001, 80) };
    rig.net.publish("a", std::slice::from_ref(&bound)).await.unwrap();
    let own = rig.node().run(|| fetch(Ipv4Addr::LOCALHOST, 9001)).unwrap().unwrap();
    assert!(own.starts_with("a saw "), "{own}");
    assert_eq!(rig.other().run(|| fetch(node, 9001)).unwrap().unwrap(), "his saw 10.77.0.2");
    for at in [Place::Address(node.into()), Place::interface("eth0"), Place::interface("lo")] {
        let taken = rig.net.publish("a", &[HostPort { at: Some(at), ..bound.clone() }]).await.unwrap_err();
        assert!(matches!(taken, NetError::PortInUse { port: 9001, .. }), "{taken}");
    }
    // By an interface, while another process has the port at the loopback.
    let his = rig.node().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 9002)).unwrap()).unwrap();
    serve(his, "his");
    let by_wire = HostPort { at: Some(Place::interface("eth0")), ..port(Tcp, 9002, 80) };
    rig.net.publish("a", &[by_wire]).await.unwrap();
    assert_eq!(rig.other().run(|| fetch(node, 9002)).unwrap().unwrap(), "a saw 10.77.0.2");
    let own = rig.node().run(|| fetch(Ipv4Addr::LOCALHOST, 9002)).unwrap().unwrap();
    assert_eq!(own, "his saw 127.0.0.1");
    assert_eq!(rig.net.verify().await.unwrap(), []);
}
