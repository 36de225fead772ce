//! What is made is what is documented; what is changed behind our back is mended; what is ours goes away wholly.

use std::time::Duration;

use rswarm_net::{NodeNetwork, Protocol::Tcp};

use crate::rig::{Container, Rig, endpoint, fetch, network, node_network, output, port};

#[tokio::test]
async fn nft_shows_the_documented_rules() {
    needs_kernel!();
    let rig = Rig::new();
    rig.net.reconcile(&node_network(&[])).await.unwrap();
    let shown = rig.output("nft", &["list", "ruleset"]);
    let expected = include_str!("ruleset.nft");
    if std::env::var_os("RSWARM_UPDATE").is_some() {
        std::fs::write("tests/host/ruleset.nft", shown).unwrap();
        return;
    }
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn what_is_made_is_found_settled_also_by_the_next_daemon() {
    needs_kernel!();
    let rig = Rig::new();
    let (a, b) = (Container::start(), Container::start());
    let endpoints =
        [endpoint("a", &a, 2, &[port(Tcp, 8080, 80), port(Tcp, 8443, 443)]), endpoint("b", &b, 3, &[])];
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.ensure_network(&network()).await.unwrap();
    let mut took = Vec::new();
    for endpoint in &endpoints {
        took.push(rig.net.attach(endpoint).await.unwrap().took);
        let before = (rig.indexes(), rig.output("nft", &["list", "ruleset"]));
        rig.net.attach(endpoint).await.unwrap();
        let after = (rig.indexes(), rig.output("nft", &["list", "ruleset"]));
        assert_eq!(after, before, "attaching again changes nothing");
    }
    eprintln!("attach took {took:?}");
    assert_eq!(rig.net.verify().await.unwrap(), []);
    let next = Rig::daemon(rig.node());
    let report = next.reconcile(&node_network(&endpoints)).await.unwrap();
    assert!(report.clean(), "{report:?}");
    // What it does not want, it removes: one endpoint, then all.
    next.reconcile(&node_network(&endpoints[1..])).await.unwrap();
    let ruleset = rig.output("nft", &["list", "ruleset"]);
    assert!(!ruleset.contains("8080") && !ruleset.contains("10.90.0.2"), "{ruleset}");
    next.reconcile(&NodeNetwork::default()).await.unwrap();
    assert_eq!(rig.links(), ["lo", "eth0"]);
}

/// In place of a program: `ip` in the container, and a sysctl of the node that is switched off.
const IP_INSIDE: &str = "(ip inside)";
const SYSCTL_OFF: &str = "(sysctl off)";

#[tokio::test]
async fn planted_differences_are_mended_and_told() {
    needs_kernel!();
    let rig = Rig::new();
    let container = Container::start();
    let web = endpoint("web", &container, 2, &[port(Tcp, 8080, 80)]);
    let desired = node_network(std::slice::from_ref(&web));
    rig.net.reconcile(&desired).await.unwrap();
    container.serve(80, "web");
    let link = rig.net.attach(&web).await.unwrap().link;
    rig.nft("add rule inet rswarm operator tcp dport 666 counter drop");
    let cases: &[(&str, Vec<&str>, &str)] = &[
        (
            "nft",
            vec!["delete element inet rswarm published { tcp . 8080 }"],
            "add nft element: published tcp/8080 to 10.90.0.2:80",
        ),
        (
            "nft",
            vec!["add element inet rswarm published { tcp . 81 : 10.90.0.77 . 80 }"],
            "remove nft element: published tcp/81 to 10.90.0.77:80",
        ),
        (
            "nft",
            vec![
                "delete element inet rswarm published { tcp . 8080 }; add element inet rswarm published { tcp . 8080 : 10.90.0.77 . 81 }",
            ],
            "remove nft element: published tcp/8080 to 10.90.0.77:81",
        ),
        ("nft", vec!["flush chain inet rswarm postrouting"], "build the nft tables"),
        ("nft", vec!["add rule inet rswarm forward drop"], "build the nft tables"),
        ("nft", vec!["insert rule bridge rswarm prerouting accept"], "build the nft tables"),
        ("nft", vec!["delete table bridge rswarm"], "build the nft tables"),
        ("ip", vec!["link", "set", "rsw-br0", "down"], "bring up bridge `rsw-br0`"),
        ("ip", vec!["link", "set", "rsw-br0", "address", "02:00:00:00:00:01"], "bring up bridge `rsw-br0`"),
        ("ip", vec!["addr", "flush", "dev", "rsw-br0"], "add address `10.90.0.1/24` to `rsw-br0`"),
        (
            "ip",
            vec!["addr", "add", "10.91.0.1/24", "dev", "rsw-br0"],
            "remove address `10.91.0.1/24` from `rsw-br0`",
        ),
        (
            SYSCTL_OFF,
            vec!["net/ipv4/conf/rsw-br0/route_localnet"],
            "enable route_localnet and disable IPv6 on `rsw-br0`",
        ),
        (
            SYSCTL_OFF,
            vec!["net/ipv6/conf/rsw-br0/disable_ipv6"],
            "enable route_localnet and disable IPv6 on `rsw-br0`",
        ),
        (SYSCTL_OFF, vec!["net/ipv4/ip_forward"], "enable IPv4 forwarding"),
        ("ip", vec!["link", "set", &link, "down"], "bring up veth"),
        ("ip", vec!["link", "set", &link, "nomaster"], "bring up veth"),
        ("ip", vec!["link", "del", &link], "create veth"),
        (IP_INSIDE, vec!["route", "del", "default"], "configure `eth0` of endpoint `web`"),
        (IP_INSIDE, vec!["addr", "flush", "dev", "eth0"], "configure `eth0` of endpoint `web`"),
        (IP_INSIDE, vec!["link", "set", "lo", "down"], "configure `eth0` of endpoint `web`"),
        ("ip", vec!["link", "add", "rsvplanted", "type", "veth", "peer", "name", "planted1"], ""),
    ];
    let node = rig.node().address;
    for (program, arguments, expected) in cases {
        match *program {
            SYSCTL_OFF => {
                let path = std::path::Path::new("/proc/sys").join(arguments[0]);
                rig.node().run(|| std::fs::write(path, "0").unwrap()).unwrap();
            }
            IP_INSIDE => drop(container.output("ip", arguments)),
            program => drop(rig.output(program, arguments)),
        }
        let report = rig.net.reconcile(&desired).await.unwrap();
        let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
        assert!(report.failed.is_empty(), "{arguments:?}: {:?}", report.failed);
        if expected.is_empty() {
            assert!(told.is_empty(), "{arguments:?}: another's link is none of our business: {told:?}");
        } else {
            assert!(told.iter().any(|line| line.starts_with(expected)), "{arguments:?}: {told:?}");
        }
        assert_eq!(rig.net.verify().await.unwrap(), [], "{arguments:?}");
        let answer = rig.other().run(|| fetch(node, 8080)).unwrap();
        assert_eq!(answer.unwrap(), "web saw 10.77.0.2", "{arguments:?}");
    }
    let operator = rig.output("nft", &["list", "chain", "inet", "rswarm", "operator"]);
    assert!(operator.contains("dport 666"), "the operator's rules survive every repair: {operator}");
    // An old daemon's endpoint, marked as ours.
    rig.output("ip", &["link", "set", "rsvplanted", "alias", "rswarm endpoint gone 10.90.0.55"]);
    let report = rig.net.reconcile(&desired).await.unwrap();
    let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["remove link `rsvplanted`", "forget connections of `10.90.0.55`"]);
}

#[tokio::test]
async fn a_single_change_copes_with_a_firewall_changed_behind_its_back() {
    needs_kernel!();
    let rig = Rig::new();
    let (a, b) = (Container::start(), Container::start());
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("a", &a, 2, &[port(Tcp, 8080, 80)])).await.unwrap();
    a.serve(80, "a");
    b.serve(80, "b");
    let node = rig.node().address;
    rig.nft("add element inet rswarm published { tcp . 8081 : 10.90.0.77 . 80 }");
    rig.net.attach(&endpoint("b", &b, 3, &[port(Tcp, 8081, 80)])).await.unwrap();
    assert_eq!(rig.other().run(|| fetch(node, 8081)).unwrap().unwrap(), "b saw 10.77.0.2");
    rig.nft("delete element inet rswarm published { tcp . 8081 }");
    assert!(rig.net.detach("b").await.unwrap());
    rig.nft("delete table inet rswarm");
    rig.net.attach(&endpoint("b", &b, 3, &[port(Tcp, 8081, 80)])).await.unwrap();
    for (port, name) in [(8080, "a"), (8081, "b")] {
        let answer = rig.other().run(|| fetch(node, port)).unwrap().unwrap();
        assert_eq!(answer, format!("{name} saw 10.77.0.2"));
    }
    assert_eq!(rig.net.verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_failed_attach_leaves_nothing() {
    needs_kernel!();
    let rig = Rig::new();
    let container = Container::start();
    rig.net.ensure_network(&network()).await.unwrap();
    let mut gone = endpoint("gone", &container, 2, &[port(Tcp, 8080, 80)]);
    drop(container);
    let error = rig.net.attach(&gone).await.unwrap_err();
    assert!(error.to_string().contains("failed to enter network namespace"), "{error}");
    // The interface's name is taken inside: the pair cannot be made.
    let occupied = Container::start();
    occupied.output("ip", &["link", "add", "eth0", "type", "bridge"]);
    gone.netns_pid = occupied.pid();
    rig.net.attach(&gone).await.unwrap_err();
    assert_eq!(rig.links(), ["lo", "eth0", "rsw-br0"]);
    assert_eq!(rig.net.verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_fresh_daemon_can_detach_what_its_predecessor_attached() {
    needs_kernel!();
    let rig = Rig::new();
    let (a, b) = (Container::start(), Container::start());
    rig.net.ensure_network(&network()).await.unwrap();
    rig.net.attach(&endpoint("a", &a, 2, &[port(Tcp, 8080, 80)])).await.unwrap();
    rig.net.attach(&endpoint("b", &b, 3, &[port(Tcp, 8081, 80)])).await.unwrap();
    let next = Rig::daemon(rig.node());
    assert!(next.detach("a").await.unwrap());
    let report =
        next.reconcile(&node_network(&[endpoint("b", &b, 3, &[port(Tcp, 8081, 80)])])).await.unwrap();
    assert!(report.clean(), "{report:?}");
}

#[tokio::test]
async fn remove_all_leaves_the_node_as_it_was() {
    needs_kernel!();
    let rig = Rig::new();
    rig.nft("add table inet firewall { chain input { type filter hook input priority 0; }; }");
    rig.output("ip", &["link", "add", "br7", "type", "bridge"]);
    let picture = || {
        let links = rig.links();
        (
            links,
            rig.output("nft", &["list", "ruleset"]),
            rig.output("ip", &["route"]),
            rig.output("ip", &["-4", "-o", "addr"]),
        )
    };
    let before = picture();
    let containers: Vec<_> = (0..3).map(|_| Container::start()).collect();
    rig.net.ensure_network(&network()).await.unwrap();
    for (container, number) in containers.iter().zip(2u8..) {
        let ports = [port(Tcp, 8000 + u16::from(number), 80)];
        rig.net.attach(&endpoint(&format!("c{number}"), container, number, &ports)).await.unwrap();
    }
    assert_ne!(picture(), before);
    // The next daemon removes it too, without knowing what there is.
    Rig::daemon(rig.node()).remove_all().await.unwrap();
    assert_eq!(picture(), before);
    rig.net.remove_all().await.unwrap();
    assert_eq!(picture(), before);
}

#[tokio::test]
async fn a_bridge_of_someone_else_is_refused_by_name() {
    needs_kernel!();
    let rig = Rig::new();
    rig.output("ip", &["link", "add", "rsw-br0", "type", "veth", "peer", "name", "other"]);
    let error = rig.net.ensure_network(&network()).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to create bridge `rsw-br0`");
    rig.net.remove_all().await.unwrap();
    assert_eq!(rig.links(), ["lo", "eth0", "other", "rsw-br0"]);
}

#[tokio::test]
async fn many_endpoints_attach_quickly_and_settle() {
    needs_kernel!();
    let rig = Rig::new();
    let containers: Vec<_> = (0..20).map(|_| Container::start()).collect();
    rig.net.ensure_network(&network()).await.unwrap();
    let mut took: Vec<Duration> = Vec::new();
    for (container, number) in containers.iter().zip(2u8..) {
        let ports = [port(Tcp, 8000 + u16::from(number), 80)];
        took.push(
            rig.net.attach(&endpoint(&format!("c{number}"), container, number, &ports)).await.unwrap().took,
        );
    }
    took.sort();
    eprintln!("attach: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
    assert_eq!(rig.net.verify().await.unwrap(), []);
    let links = output(rig.node().command("ip").unwrap().args(["-o", "link", "show", "master", "rsw-br0"]));
    assert_eq!(links.lines().count(), 20);
}

#[tokio::test]
async fn facts_are_what_others_route_and_the_size_of_the_way_out() {
    needs_kernel!();
    let rig = Rig::new();
    rig.net.ensure_network(&network()).await.unwrap();
    rig.output("ip", &["link", "set", "eth0", "mtu", "1400"]);
    rig.output("ip", &["route", "add", "172.20.0.0/14", "via", "10.77.0.2"]);
    let facts = |source| {
        rig.node().run(|| rswarm_net::facts(rswarm_net::NetworkConfig::default(), source)).unwrap().unwrap()
    };
    let mtu_of_another = facts([192, 0, 2, 1].into()).mtu;
    let facts = facts(rig.node().address);
    let routes: Vec<_> = facts.routes.iter().map(ToString::to_string).collect();
    assert_eq!((routes, facts.mtu), (vec!["10.77.0.0/24".into(), "172.20.0.0/14".into()], Some(1400)));
    assert_eq!(mtu_of_another, None);
}
