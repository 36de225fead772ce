//! What may be asked for of a node-local bridge: the size of its packets, containers that do not reach each other, a way out
//! without translation.

use std::io::ErrorKind::ConnectionRefused;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use rswarm_net::{BridgeNetwork, Cidr, Endpoint, NodeNetwork, Protocol::Tcp};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};

use crate::rig::{Container, Rig, endpoint, fetch, network, output, port, receive, serve, stays_silent, udp};

/// Two containers on a network: the first one publishes its port 80.
struct Sample {
    rig: Rig,
    a: Container,
    b: Container,
    desired: NodeNetwork,
}

impl Sample {
    async fn new(network: BridgeNetwork) -> Self {
        let rig = Rig::new();
        let (a, b) = (Container::start(), Container::start());
        let twin = |last: u16| network.ipv6.map(|_| address6(last));
        let endpoints = vec![
            Endpoint { ipv6: twin(2), ..endpoint("a", &a, 2, &[port(Tcp, 8080, 80)]) },
            Endpoint { ipv6: twin(3), ..endpoint("b", &b, 3, &[]) },
        ];
        rig.net.ensure_network(&network).await.unwrap();
        for endpoint in &endpoints {
            rig.net.attach(endpoint).await.unwrap();
        }
        assert_eq!(rig.net.verify().await.unwrap(), [], "what is made is found settled");
        for (container, name) in [(&a, "a"), (&b, "b")] {
            container.serve(80, name);
        }
        let desired = NodeNetwork { networks: vec![network], endpoints, overlay: None };
        Self { rig, a, b, desired }
    }

    /// The first container's addresses.
    fn addresses_of_a(&self) -> impl Iterator<Item = IpAddr> {
        let (endpoint, network) = (&self.desired.endpoints[0], &self.desired.networks[0]);
        let ipv6 = endpoint.ipv6.filter(|_| network.ipv6.is_some());
        [Some(endpoint.address.into()), ipv6.map(IpAddr::from)].into_iter().flatten()
    }

    /// Names of the node's ends of the containers' links.
    fn links(&self) -> Vec<String> {
        let names = self.rig.links();
        names.into_iter().filter(|name| name.starts_with("rsv")).collect()
    }

    /// Has `program` change something on the node, and sees it told and mended.
    async fn mends(&self, program: &str, arguments: &[&str]) {
        self.rig.output(program, arguments);
        assert_ne!(self.rig.net.verify().await.unwrap(), [], "{arguments:?}");
        let report = self.rig.net.reconcile(&self.desired).await.unwrap();
        assert!(report.failed.is_empty() && !report.repaired.is_empty(), "{arguments:?}: {report:?}");
        assert_eq!(self.rig.net.verify().await.unwrap(), [], "{arguments:?}");
    }
}

fn address6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x90, 0, 0, 0, 0, 0, last)
}

/// With IPv6 where the kernel has it.
fn dual() -> BridgeNetwork {
    let ipv6 = rswarm_net::has_ipv6().then(|| Cidr { address: address6(1), prefix_len: 64 });
    BridgeNetwork { ipv6, ..network() }
}

fn refused(result: std::io::Result<String>) -> bool {
    result.expect_err("not to be reached").kind() == ConnectionRefused
}

#[tokio::test]
async fn a_network_carries_packets_of_the_size_that_was_asked_for() {
    needs_kernel!();
    for mtu in [1300, 9000] {
        let sample = Sample::new(BridgeNetwork { mtu: Some(mtu), ..dual() }).await;
        // The whole packet is 28 bytes longer; one that may not be cut passes up to the size, and no larger one does.
        let to = sample.a.run(|| udp([10, 90, 0, 2].into(), 99));
        let from = sample.b.run(|| udp([10, 90, 0, 3].into(), 0));
        sockopt::set_ip_mtu_discover(&from, Ipv4PathMtuDiscovery::DO).unwrap();
        for (length, fits) in [(mtu - 28, true), (mtu - 27, false)] {
            let sent = from.send_to(&vec![0; length as usize], (Ipv4Addr::new(10, 90, 0, 2), 99));
            assert_eq!(sent.is_ok(), fits, "{length}: {sent:?}");
            if fits {
                receive(&to);
            } else {
                assert!(stays_silent(&to), "{length}");
            }
        }
        let shown = sample.rig.output("ip", &["link", "show", "rsw-br0"]);
        assert!(shown.contains(&format!("mtu {mtu} ")), "{shown}");
        let link = &sample.links()[0];
        for link in ["rsw-br0", link] {
            sample.mends("ip", &["link", "set", link, "mtu", "1400"]).await;
        }
        for container in [&sample.a, &sample.b] {
            container.output("ip", &["link", "set", "eth0", "mtu", "1290"]);
            sample.mends("true", &[]).await;
            let shown = container.output("ip", &["link", "show", "eth0"]);
            assert!(shown.contains(&format!("mtu {mtu} ")), "{shown}");
        }
    }
    // Of a network that was asked for nothing it is the container's own affair.
    let sample = Sample::new(network()).await;
    sample.a.output("ip", &["link", "set", "eth0", "mtu", "1400"]);
    assert_eq!(sample.rig.net.verify().await.unwrap(), []);
}

#[tokio::test]
async fn separate_containers_reach_each_other_by_published_ports_alone() {
    needs_kernel!();
    {
        let sample = Sample::new(BridgeNetwork { separate: true, internal: true, ..dual() }).await;
        for address in sample.addresses_of_a() {
            assert!(refused(sample.b.run(|| fetch(address, 80))), "internal as well: {address}");
        }
    }
    let sample = Sample::new(BridgeNetwork { separate: true, ..dual() }).await;
    let (rig, a, b) = (&sample.rig, &sample.a, &sample.b);
    serve(rig.node().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap()).unwrap(), "node");
    serve(rig.other().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap(), "outside");
    let (node, outside) = (rig.node().address, rig.other().address);
    for bridged in [false, true] {
        rig.filter_bridged(bridged);
        for address in sample.addresses_of_a() {
            let asked = b.run(|| fetch(address, 80));
            assert!(refused(asked), "at once, and not by silence: {address}, {bridged}");
        }
        assert_eq!(b.run(|| fetch(Ipv4Addr::new(10, 90, 0, 1), 53)).unwrap(), "node saw 10.90.0.3");
        assert_eq!(b.run(|| fetch(outside, 80)).unwrap(), "outside saw 10.77.0.1");
        assert_eq!(rig.other().run(|| fetch(node, 8080)).unwrap().unwrap(), "a saw 10.77.0.2");
        let direct = rig.node().run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80)).unwrap();
        assert_eq!(direct.unwrap(), "a saw 10.90.0.1");
    }
    rig.filter_bridged(false);
    for caller in [a, b] {
        assert_eq!(caller.run(|| fetch(node, 8080)).unwrap(), "a saw 10.90.0.1");
    }
    // Nor past the node, for one that knows where the other is; which it would be else.
    let heard = || {
        let at = a.run(|| udp(Ipv4Addr::new(10, 90, 0, 2), 99));
        let from = b.run(|| udp(Ipv4Addr::new(10, 90, 0, 3), 0));
        from.send_to(b"past", (Ipv4Addr::new(10, 90, 0, 2), 99)).unwrap();
        !stays_silent(&at)
    };
    b.output("ip", &["neigh", "replace", "10.90.0.2", "lladdr", "02:42:0a:5a:00:02", "dev", "eth0"]);
    assert!(!heard());
    let links = sample.links();
    for link in &links {
        rig.output("bridge", &["link", "set", "dev", link, "isolated", "off"]);
    }
    assert!(heard(), "so it would be heard");
    for link in &links {
        sample.mends("bridge", &["link", "set", "dev", link, "isolated", "off"]).await;
    }
    assert!(!heard());
    sample.mends("sysctl", &["-qw", "net.ipv4.conf.rsw-br0.proxy_arp_pvlan=0"]).await;
    sample.mends("nft", &["add element inet rswarm within { \"rsw-br0\" . \"rsw-br0\" }"]).await;
    rig.net.remove_all().await.unwrap();
    assert_eq!(rig.links(), ["lo", "eth0"]);
}

#[tokio::test]
async fn without_translation_the_world_sees_the_container() {
    needs_kernel!();
    let sample = Sample::new(BridgeNetwork { masquerade: false, ..network() }).await;
    let other = sample.rig.other();
    serve(other.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap(), "outside");
    let via = sample.rig.node().address.to_string();
    output(other.command("ip").unwrap().args(["route", "add", "10.90.0.0/24", "via", &via]));
    assert_eq!(sample.b.run(|| fetch(other.address, 80)).unwrap(), "outside saw 10.90.0.3");
    // Who has a route to it reaches it by its published ports nevertheless, and not directly.
    assert!(refused(other.run(|| fetch(Ipv4Addr::new(10, 90, 0, 2), 80)).unwrap()));
    assert_eq!(other.run(|| fetch(sample.rig.node().address, 8080)).unwrap().unwrap(), "a saw 10.77.0.2");
    sample.mends("nft", &["add element inet rswarm masqueraded { \"rsw-br0\" }"]).await;
}
