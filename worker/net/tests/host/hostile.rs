//! What a container may try that has `CAP_NET_RAW` and no good intentions.

use std::{
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use rswarm_net::{BridgeNetwork, Mac, Protocol::Tcp};

use crate::{
    cluster::{APP, Cluster, INNER, second_address},
    rig::{
        Container, Rig, endpoint, fetch, network, output, port, receive, serve, stays_silent, udp, wait_until,
    },
};

const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Priority 0, network 0: to whom it comes it is as good as untagged. Source: IEEE 802.1Q.
const TAG: [u8; 4] = [0x81, 0, 0, 0];

/// Sends a frame by a container's `eth0`, as it is.
fn send_frame(from: &Container, frame: &[u8]) {
    from.run(|| {
        let links = nix::ifaddrs::getifaddrs().unwrap();
        let mut all = links.filter(|link| link.interface_name == "eth0").filter_map(|link| link.address);
        let link: LinkAddr = *all.find_map(|address| address.as_link_addr().copied()).as_ref().unwrap();
        let raw: OwnedFd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).unwrap();
        assert_eq!(sendto(raw.as_raw_fd(), frame, &link, MsgFlags::empty()).unwrap(), frame.len());
    });
}

/// The sum of RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.fold(0, |sum, word| (sum + word) % 0xffff);
    (!(sum as u16)).to_be_bytes()
}

/// UDP over IPv4, its own checksum left out.
fn datagram(from: Ipv4Addr, (to, to_port): (Ipv4Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = (28 + text.len()) as u16;
    let mut header = [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    let udp = [4000u16.to_be_bytes(), to_port.to_be_bytes(), (length - 20).to_be_bytes(), [0, 0]].concat();
    [header, udp, text.to_vec()].concat()
}

fn frame(to: Mac, from: Mac, tag: &[u8], kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, tag, &kind, packet].concat()
}

/// The address of the link to the gateway, as the container sees it.
fn gateway_mac(of: &Container, gateway: Ipv4Addr) -> Mac {
    UdpSocket::connect(&of.run(|| udp(Ipv4Addr::UNSPECIFIED, 0)), (gateway, 9))
        .and_then(|()| of.run(|| udp(Ipv4Addr::UNSPECIFIED, 0)).send_to(b"?", (gateway, 9)))
        .unwrap();
    let mut found = None;
    wait_until("the gateway has answered", || {
        let shown = of.output("ip", &["neigh", "show", &gateway.to_string()]);
        let text = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
        found = text.map(|text| text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect());
        found.is_some()
    });
    Mac(Vec::try_into(found.unwrap()).unwrap())
}

#[tokio::test]
async fn a_tagged_frame_is_checked_like_any_other() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    let mut started = Vec::new();
    for (node, last) in [(1, 2), (1, 3), (2, 4)] {
        started.push(cluster.start(node, last, &[APP]).await);
    }
    cluster.tell().await;
    let [liar, near, far] = [0, 1, 2].map(|n| &cluster.tasks[started[n]]);
    let (own, gateway) = (liar.address(APP), crate::cluster::address(APP, 1));
    let (mac, to) = (liar.endpoints()[0].mac(), gateway_mac(&liar.container, gateway));
    for task in [near, far] {
        let target = (task.address(APP), 99);
        let receiver = task.container.run(|| udp(target.0, 99));
        send_frame(&liar.container, &frame(to, mac, &[], IPV4, &datagram(own, target, b"true")));
        assert_eq!(receive(&receiver).0, b"true", "frames that are sent by hand arrive");
        let stolen = crate::cluster::address(APP, 77);
        for (tag, from) in [(&[][..], stolen), (&TAG, stolen), (&TAG, own), (&[TAG, TAG].concat(), stolen)] {
            send_frame(&liar.container, &frame(to, mac, tag, IPV4, &datagram(from, target, b"false")));
            assert!(stays_silent(&receiver), "{from} {tag:?}");
        }
    }
    cluster.assert_settled().await;
}

/// A router advertisement with a prefix for addresses. Source: RFC 4861, 4.2 and 4.6.
fn advertisement(mac: Mac) -> Vec<u8> {
    let (from, all): (Ipv6Addr, Ipv6Addr) = ("fe80::bad".parse().unwrap(), "ff02::1".parse().unwrap());
    let mut icmp = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    icmp.extend(mac.0);
    icmp.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    icmp.extend("fdba:d::".parse::<Ipv6Addr>().unwrap().octets());
    let pseudo =
        [&from.octets()[..], &all.octets(), &[0, 0, 0, icmp.len() as u8, 0, 0, 0, 58], &icmp].concat();
    let sum = checksum(&pseudo);
    icmp[2..4].copy_from_slice(&sum);
    let header = [0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255];
    [&header[..], &from.octets(), &all.octets(), &icmp].concat()
}

#[tokio::test]
async fn a_container_is_no_router_for_its_node() {
    needs_kernel!();
    if !rswarm_net::has_ipv6() {
        eprintln!("skipped: `a_container_is_no_router_for_its_node` needs a kernel with IPv6");
        return;
    }
    let rig = Rig::new();
    let container = Container::start();
    rig.net.ensure_network(&network()).await.unwrap();
    let attached = endpoint("a", &container, 2, &[]);
    rig.net.attach(&attached).await.unwrap();
    let conf = "/proc/sys/net/ipv6/conf/rsw-br0";
    let read =
        |name: &str| rig.node().run(|| std::fs::read_to_string(format!("{conf}/{name}"))).unwrap().unwrap();
    assert_eq!(read("disable_ipv6"), "1\n", "the bridge has no use for it");
    // A node that would listen all the same.
    for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "2")] {
        rig.node().run(|| std::fs::write(format!("{conf}/{name}"), value)).unwrap().unwrap();
    }
    let everyone = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let advertise = || {
        let packet = advertisement(attached.mac());
        send_frame(&container, &frame(everyone, attached.mac(), &[], IPV6, &packet));
        send_frame(&container, &frame(everyone, attached.mac(), &TAG, IPV6, &packet));
    };
    let routes = || rig.output("ip", &["-6", "route", "show", "default"]);
    advertise();
    // What is sent later comes later.
    let known = rig.node().run(|| udp(Ipv4Addr::new(10, 90, 0, 1), 99)).unwrap();
    container
        .run(|| udp(Ipv4Addr::UNSPECIFIED, 0))
        .send_to(b"on", (Ipv4Addr::new(10, 90, 0, 1), 99))
        .unwrap();
    assert_eq!(receive(&known).0, b"on");
    assert_eq!(routes(), "");
    // Proof that the test can fail.
    rig.nft("flush chain bridge rswarm prerouting");
    wait_until("the node has a new router", || {
        advertise();
        routes().contains("fe80::bad")
    });
}

#[tokio::test]
async fn containers_are_reached_by_published_ports_alone() {
    needs_kernel!();
    let rig = Rig::new();
    let (a, b) = (Container::start(), Container::start());
    let other = BridgeNetwork {
        id: "n1".into(),
        bridge: "rsw-br1".into(),
        gateway: Ipv4Addr::new(10, 91, 0, 1),
        subnet: Ipv4Addr::new(10, 91, 0, 0),
        ..network()
    };
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.ensure_network(&other).await.unwrap();
    rig.net.attach(&endpoint("a", &a, 2, &[port(Tcp, 8080, 80)])).await.unwrap();
    let there = rswarm_net::Endpoint {
        network: "n1".into(),
        address: Ipv4Addr::new(10, 91, 0, 2),
        gateway: Ipv4Addr::new(10, 91, 0, 1),
        ..endpoint("b", &b, 2, &[])
    };
    rig.net.attach(&there).await.unwrap();
    a.serve(80, "a");
    let (direct, node) = (Ipv4Addr::new(10, 90, 0, 2), rig.node().address);
    output(rig.other().command("ip").unwrap().args([
        "route",
        "add",
        "10.90.0.0/24",
        "via",
        &node.to_string(),
    ]));
    let outside = || rig.other().run(|| fetch(direct, 80)).unwrap();
    assert!(b.run(|| fetch(direct, 80)).is_err(), "another network of the node");
    assert!(outside().is_err(), "a neighbour of the node");
    assert!(rig.node().run(|| fetch(direct, 80)).unwrap().is_ok(), "the node itself");
    assert!(b.run(|| fetch(node, 8080)).is_ok() && rig.other().run(|| fetch(node, 8080)).unwrap().is_ok());
    // Proof that the test can fail.
    rig.nft("flush chain inet rswarm forward");
    assert!(b.run(|| fetch(direct, 80)).is_ok() && outside().is_ok());
}

#[tokio::test]
async fn ports_that_nodes_have_for_each_other_are_closed_to_containers_at_every_address() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    let task = cluster.start(1, 2, &[APP]).await;
    let victims = [cluster.start(1, 3, &[INNER]).await, cluster.start(2, 4, &[INNER]).await];
    cluster.tell().await;
    let bridged = Container::start();
    cluster.node(1).ensure_network(&network()).await.unwrap();
    cluster.node(1).attach(&endpoint("bridged", &bridged, 2, &[])).await.unwrap();
    let mut addresses = vec![Ipv4Addr::new(10, 90, 0, 1)];
    for number in [1, 2] {
        let (host, second) = (cluster.host(number), second_address(number));
        output(host.command("ip").unwrap().args(["addr", "add", &format!("{second}/24"), "dev", "eth0"]));
        addresses.extend([host.address, second]);
        for (port, name) in [(2377, "secret"), (2378, "open")] {
            serve(host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap(), name);
        }
    }
    let containers = [(&cluster.tasks[task].container, "overlay"), (&bridged, "bridge")];
    for (container, kind) in containers {
        for address in &addresses {
            let reached = |port| container.run(|| fetch(*address, port));
            assert!(reached(2377).is_err(), "from {kind} at {address}");
            assert!(reached(2378).is_ok(), "from {kind} at {address}: {:?}", reached(2378));
        }
    }
    // A frame for a network that is closed to them, in a datagram for a node's data path.
    for victim in victims {
        let victim = &cluster.tasks[victim];
        let (own, mac) = (victim.address(INNER), victim.endpoints()[0].mac());
        let receiver = victim.container.run(|| udp(own, 99));
        let inside = datagram(crate::cluster::address(INNER, 9), (own, 99), b"in");
        let [_, vni @ ..] = INNER.to_be_bytes();
        let capsule = [&[8, 0, 0, 0][..], &vni, &[0], &frame(mac, mac, &[], IPV4, &inside)].concat();
        let send = |from: &Container| {
            for address in &addresses {
                let _ = from.run(|| udp(Ipv4Addr::UNSPECIFIED, 0)).send_to(&capsule, (*address, 4789));
            }
        };
        containers.iter().for_each(|(container, _)| send(container));
        assert!(stays_silent(&receiver));
        // Proof that the test can fail.
        let host = cluster.host(1);
        let nft = |rule: &str| output(host.command("nft").unwrap().arg(rule));
        if victim.node == 2 {
            nft("flush chain inet rswarm forward");
            nft("flush chain inet rswarm input");
            send(containers[1].0);
            assert_eq!(receive(&receiver).0, b"in");
        }
    }
}
