//! What is in the helper namespace is what is documented, is mended when spoiled, and outlives the daemon. The
//! witnesses are `ip`, `bridge` and `nft`.

use std::{collections::BTreeSet, net::Ipv4Addr};

use rswarm_net::{
    Finding, Part,
    Protocol::{Tcp, Udp},
};
use serde_json::Value;

use crate::{
    cluster::{APP, Cluster, INGRESS, INNER, helper},
    rig::{fetch, output, udp},
};

/// Two nodes, three tasks, a service and two published ports.
async fn sample() -> Cluster {
    let mut cluster = Cluster::new(2);
    cluster.networks = vec![INGRESS, APP, INNER];
    cluster.tell().await;
    cluster.start(1, 2, &[INGRESS, APP]).await;
    cluster.start(2, 3, &[INGRESS, APP]).await;
    cluster.start(1, 4, &[INNER]).await;
    cluster.serve("web", APP, 200, &[2, 3]);
    cluster.publish(Tcp, 8080, 80, &[2, 3]);
    cluster.publish(Udp, 5353, 53, &[3]);
    cluster.restrict(APP, &[2], &[7]);
    cluster.call(7, APP, &[3]);
    cluster.tell().await;
    cluster
}

#[tokio::test]
async fn nft_shows_the_documented_rules_of_the_overlays() {
    needs_kernel!();
    let cluster = sample().await;
    let mut shown = cluster.inside(1, "nft", &["list", "ruleset"]);
    for (number, task) in cluster.tasks.iter().enumerate().filter(|(_, task)| task.node == 1) {
        for (place, endpoint) in task.endpoints().iter().enumerate() {
            let link = cluster.node(1).attach(endpoint).await.unwrap().link;
            shown = shown.replace(&link, &format!("task{number}-{place}"));
        }
    }
    // The kernel lists elements in an order of its own.
    let sorted = |text: &str| -> Vec<String> {
        let mut lines = Vec::new();
        let joined = text.replace(",\\n", ",").replace(",\n", ",");
        for line in joined.lines() {
            match line.split_once("elements = {") {
                Some((head, rest)) => {
                    let elements: BTreeSet<_> = rest
                        .trim_end_matches('}')
                        .split(',')
                        .map(|element| element.trim().to_owned())
                        .collect();
                    let elements: Vec<_> = elements.into_iter().collect();
                    lines.push(format!("{head}elements = {{ {} }}", elements.join(", ")));
                }
                None => lines.push(line.to_owned()),
            }
        }
        lines
    };
    let expected = include_str!("overlay.nft");
    if std::env::var_os("RSWARM_UPDATE").is_some() {
        std::fs::write("tests/host/overlay.nft", sorted(&shown).join("\n") + "\n").unwrap();
        return;
    }
    assert_eq!(sorted(&shown), sorted(expected));
}

/// Names and indexes of the links in a helper: one made anew has a new index.
fn links(cluster: &Cluster, number: usize) -> Vec<(String, u64)> {
    let links: Value = serde_json::from_str(&cluster.inside(number, "ip", &["-j", "link"])).unwrap();
    let link =
        |link: &Value| (link["ifname"].as_str().unwrap().to_owned(), link["ifindex"].as_u64().unwrap());
    links.as_array().unwrap().iter().map(link).collect()
}

#[tokio::test]
async fn the_kernel_has_exactly_the_entries_of_the_endpoints_there_are() {
    needs_kernel!();
    let mut cluster = sample().await;
    let lines = |cluster: &Cluster, program: &str, arguments: &[&str], word: &str| -> BTreeSet<String> {
        let output = cluster.inside(1, program, arguments);
        output
            .lines()
            .filter(|line| line.contains(word))
            .map(|line| line.trim().replace("link-netnsid 0 ", ""))
            .collect()
    };
    let set = |lines: &[&str]| -> BTreeSet<String> { lines.iter().map(|line| (*line).to_owned()).collect() };
    let neighbours = |cluster: &Cluster| lines(cluster, "ip", &["neigh", "show", "nud", "permanent"], "");
    let all = [
        "169.254.128.2 dev rsb4096 lladdr 02:52:00:00:00:02 PERMANENT",
        "10.255.0.2 dev rsb4096 lladdr 02:42:0a:ff:00:02 PERMANENT",
        "10.255.0.3 dev rsb4096 lladdr 02:52:00:00:00:02 PERMANENT",
        "10.0.0.2 dev rsb4097 lladdr 02:42:0a:00:00:02 PERMANENT",
        "10.0.0.3 dev rsb4097 lladdr 02:52:00:00:00:02 PERMANENT",
        "10.0.32.4 dev rsb4099 lladdr 02:42:0a:00:20:04 PERMANENT",
    ];
    assert_eq!(neighbours(&cluster), set(&all));
    let tunnels = |cluster: &Cluster| lines(cluster, "bridge", &["fdb", "show"], "dst");
    let entry = |vni| format!("02:52:00:00:00:02 dev rsx{vni} dst 10.77.0.2 self permanent");
    assert_eq!(tunnels(&cluster), set(&[&entry(4096), &entry(4097)]));
    assert_eq!(
        lines(&cluster, "ip", &["route", "show", "table", "1002"], ""),
        set(&["default via 169.254.128.2 dev rsb4096 proto static onlink"])
    );
    // The other node's task goes: of its network nothing of that node is left, but it still is an entry node.
    let gone = cluster.tasks.remove(1);
    for endpoint in gone.endpoints() {
        cluster.node(2).detach(&endpoint.id).await.unwrap();
    }
    cluster.serve("web", APP, 200, &[2]);
    cluster.publish(Tcp, 8080, 80, &[2]);
    cluster.publish(Udp, 5353, 53, &[]);
    cluster.tell().await;
    assert_eq!(neighbours(&cluster), set(&[all[0], all[1], all[3], all[5]]));
    assert_eq!(tunnels(&cluster), set(&[&entry(4096)]));
    cluster.assert_settled().await;
    // A node goes, then a network.
    let mut overlay = cluster.overlay(1);
    overlay.peers.clear();
    cluster.node(1).apply(overlay.clone()).await.unwrap();
    assert_eq!(tunnels(&cluster), set(&[]));
    assert_eq!(lines(&cluster, "ip", &["rule"], "fwmark 0x2"), set(&[]));
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    for endpoint in cluster.tasks.remove(1).endpoints() {
        cluster.node(1).detach(&endpoint.id).await.unwrap();
    }
    overlay.networks.remove(&INNER);
    cluster.node(1).apply(overlay).await.unwrap();
    assert!(!links(&cluster, 1).iter().any(|(name, _)| name.ends_with("4099")));
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
}

#[tokio::test]
async fn the_next_daemon_finds_all_settled_and_tears_nothing_down() {
    needs_kernel!();
    let mut cluster = sample().await;
    let picture = |cluster: &Cluster| (links(cluster, 1), cluster.inside(1, "nft", &["list", "ruleset"]));
    let before = picture(&cluster);
    cluster.nodes[0] = cluster.daemon(1);
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.clean(), "{report:?}");
    assert_eq!(picture(&cluster), before);
    // One that knows of no tasks removes them; one that is to have no overlays removes all.
    cluster.nodes[0] = cluster.daemon(1);
    assert!(cluster.node(1).detach(&cluster.tasks[0].endpoints()[1].id).await.unwrap());
    let mut desired = cluster.desired(1);
    desired.endpoints.remove(1);
    let report = cluster.node(1).reconcile(&desired).await.unwrap();
    assert!(report.clean(), "the detach left nothing: {report:?}");
    cluster.node(1).reconcile(&rswarm_net::NodeNetwork::default()).await.unwrap();
    assert!(!helper(cluster.host(1)).exists());
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    cluster.assert_settled().await;
}

#[tokio::test]
async fn planted_differences_in_the_overlays_are_mended_and_told() {
    needs_kernel!();
    let cluster = sample().await;
    cluster.tasks[0].container.serve(80, "near");
    cluster.tasks[1].container.serve(80, "far");
    // Who talks to himself in there changes nothing.
    let alone = || udp(Ipv4Addr::LOCALHOST, 0).send_to(b"?", (Ipv4Addr::LOCALHOST, 9)).unwrap();
    rswarm_net::run_in_netns(&helper(cluster.host(1)), alone).unwrap();
    cluster.assert_settled().await;
    let link = cluster.node(1).attach(&cluster.tasks[0].endpoints()[0]).await.unwrap().link;
    let table = "inet rswarm";
    let cases: Vec<(&str, String, &str)> = vec![
        ("ip", "neigh del 10.0.0.3 dev rsb4097".into(), "add neighbour 10.0.0.3 at 02:52:00:00:00:02"),
        (
            "ip",
            "neigh replace 10.0.0.3 lladdr 02:00:00:00:00:01 dev rsb4097 nud permanent".into(),
            "add neighbour 10.0.0.3",
        ),
        (
            "ip",
            "neigh add 10.0.0.77 lladdr 02:00:00:00:00:01 dev rsb4097 nud permanent".into(),
            "remove neighbour 10.0.0.77",
        ),
        (
            "bridge",
            "fdb del 02:52:00:00:00:02 dev rsx4097 self".into(),
            "add forwarding of 02:52:00:00:00:02 by `rsx4097`",
        ),
        (
            "bridge",
            "fdb replace 02:52:00:00:00:02 dev rsx4097 dst 10.77.0.9 self".into(),
            "add forwarding of 02:52:00:00:00:02 by `rsx4097`",
        ),
        (
            "bridge",
            "fdb add 00:00:00:00:00:00 dev rsx4097 dst 10.77.0.9 self".into(),
            "remove forwarding of 00:00:00:00:00:00",
        ),
        (
            "bridge",
            "fdb del 02:52:00:00:00:02 dev rsx4097 master".into(),
            "add forwarding of 02:52:00:00:00:02 to `rsx4097`",
        ),
        (
            "bridge",
            format!("fdb del 02:42:0a:ff:00:02 dev {link} master"),
            "add forwarding of 02:42:0a:ff:00:02",
        ),
        ("bridge", format!("link set dev {link} isolated off"), "join"),
        ("bridge", "link set dev rsx4097 learning on".into(), "add vxlan `rsx4097`"),
        ("ip", "link set rsx4097 down".into(), "add vxlan `rsx4097`"),
        ("ip", "link del rsx4097".into(), "add vxlan `rsx4097`"),
        ("ip", "link del rsb4097".into(), "add bridge `rsb4097`"),
        ("ip", "link set rsb4097 down".into(), "add bridge `rsb4097`"),
        ("ip", "link set rsb4097 address 02:00:00:00:00:01".into(), "add bridge `rsb4097`"),
        ("ip", "link set rsb4097 mtu 1400".into(), "add bridge `rsb4097`"),
        ("ip", "addr flush dev rsb4097".into(), "add bridge `rsb4097`"),
        ("ip", format!("link del {link}"), "create veth"),
        ("ip", format!("link set {link} down"), "bring up veth"),
        ("ip", format!("link set {link} nomaster"), "join"),
        ("ip", "rule del fwmark 0x2/0xfff".into(), "add rule of mark 0x2/0xfff to table 1002"),
        ("ip", "rule add fwmark 0x9/0xfff table 1009".into(), "remove rule of mark 0x9"),
        ("ip", "route flush table 1002".into(), "add default route of table 1002"),
        ("ip", "route del default".into(), "add default route of table 254"),
        (
            "ip",
            "route add blackhole 10.0.0.3/32".into(),
            "remove somebody's route to 10.0.0.3/32 in table 254",
        ),
        (
            "ip",
            "route add 10.0.0.2 via 169.254.127.1 dev rsup table 1002".into(),
            "remove somebody's route to 10.0.0.2/32 in table 1002",
        ),
        ("ip", "-6 route add unreachable fd00:9::/64".into(), "remove somebody's route to fd00:9::/64"),
        (
            "ip",
            "rule add from 10.0.0.3 lookup 1002 pref 50".into(),
            "remove somebody's rule of priority 50 to table 1002",
        ),
        ("sysctl", "net/ipv4/conf/rsb4097/proxy_arp_pvlan 0".into(), "add bridge `rsb4097`"),
        ("sysctl", "net/ipv4/conf/rsb4097/forwarding 0".into(), "add bridge `rsb4097`"),
        ("sysctl", "net/ipv4/conf/rsb4097/rp_filter 1".into(), "add bridge `rsb4097`"),
        ("sysctl", "net/ipv4/conf/all/arp_ignore 8".into(), "make the namespace"),
        ("ip", "link del rsup".into(), "make the namespace"),
        ("sysctl", "net/ipv4/ip_forward".into(), "make the namespace"),
        ("nft", format!("flush chain {table} service-web-4097"), "add nft chain `service-web-4097`"),
        ("nft", format!("add rule {table} published-tcp-8080 drop"), "add nft chain `published-tcp-8080`"),
        ("nft", format!("add chain {table} service-old-4097"), "remove nft chain `service-old-4097`"),
        ("nft", format!("flush map {table} services"), "add nft element: service 10.0.0.200"),
        ("nft", format!("insert rule {table} forward drop"), "build the nft tables of the overlays"),
        ("nft", format!("delete table {table}"), "build the nft tables of the overlays"),
        (
            "nft",
            format!("add element {table} members {{ rsb4097 . 10.0.0.77 }}"),
            "remove nft element: member 10.0.0.77",
        ),
    ];
    for (program, arguments, expected) in cases {
        if program == "sysctl" {
            let (name, value) = arguments.split_once(' ').unwrap_or((&arguments, "0"));
            let path = std::path::Path::new("/proc/sys").join(name);
            let write = || std::fs::write(path, value).unwrap();
            rswarm_net::run_in_netns(&helper(cluster.host(1)), write).unwrap();
        } else {
            let words: Vec<&str> =
                if program == "nft" { vec![&arguments] } else { arguments.split(' ').collect() };
            cluster.inside(1, program, &words);
        }
        let found = cluster.node(1).check().await.unwrap().findings;
        assert!(!found.is_empty(), "{arguments}");
        let one = |finding: &Finding| (finding.part, finding.missing, finding.network.clone());
        let expected_finding = match &arguments[..] {
            text if text.starts_with("neigh add") => Some((Part::Neighbour, false, Some(APP))),
            text if text.starts_with("neigh del") => Some((Part::Neighbour, true, Some(APP))),
            "fdb del 02:52:00:00:00:02 dev rsx4097 self" => Some((Part::Forwarding, true, Some(APP))),
            "rule add fwmark 0x9/0xfff table 1009" => Some((Part::Rule, false, None)),
            "route flush table 1002" => Some((Part::Route, true, None)),
            text if text.starts_with("add element") => Some((Part::Map, false, Some(APP))),
            text if text.starts_with("delete table") => Some((Part::Rule, true, None)),
            _ => None,
        };
        if let Some((part, missing, network)) = expected_finding {
            let wanted = (part, missing, network.map(|vni| cluster.overlay(1).networks[&vni].id.clone()));
            assert!(found.iter().any(|finding| one(finding) == wanted), "{arguments}: {found:?}");
        }
        let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
        let told: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
        assert!(report.failed.is_empty(), "{arguments}: {:?}", report.failed);
        assert_eq!(cluster.node(1).check().await.unwrap().findings, [].into(), "{arguments}");
        assert!(told.iter().any(|line| line.starts_with(expected)), "{arguments}: {told:?}");
        assert_eq!(cluster.node(1).verify().await.unwrap(), [], "{arguments}");
        let from = &cluster.tasks[0].container;
        let far = from.run(|| fetch(cluster.tasks[1].address(APP), 80));
        assert_eq!(far.unwrap(), "far saw 10.0.0.2", "{arguments}");
        let mesh = cluster.outside().run(|| fetch(cluster.host(1).address, 8080)).unwrap().unwrap();
        assert!(mesh.ends_with("saw 10.77.0.3"), "{arguments}: {mesh}");
    }
    // The host's end of the link, and the namespace itself.
    output(cluster.host(1).command("ip").unwrap().args(["link", "del", "rshost"]));
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    rswarm_net::lab::delete_named_netns(&helper(cluster.host(1))).unwrap();
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    cluster.assert_settled().await;
    let mesh = cluster.outside().run(|| fetch(cluster.host(1).address, 8080)).unwrap().unwrap();
    assert!(mesh.ends_with("saw 10.77.0.3"), "{mesh}");
}
