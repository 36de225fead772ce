//! Keys that change, daemons that go, and a tunnel that is spoiled.

use std::{process::Command, time::Duration};

use rswarm_net::wireguard::{PeerKeys, TunnelEnd};
use rswarm_tunnel::{new_key, public_key};

use crate::{Cluster, OTHER, Traffic, exchange, rig::output, sample};

/// Some milliseconds are usual, and more where others have the processors; a handshake that is lost costs 5 s.
const GAP_MAX: Duration = Duration::from_secs(4);

/// The index of the link, which is another one if it was made anew.
fn index(cluster: &Cluster) -> u64 {
    let shown: serde_json::Value =
        serde_json::from_str(&cluster.inside(1, "ip", &["-j", "link", "show", "rswg"])).unwrap();
    shown[0]["ifindex"].as_u64().unwrap()
}

#[tokio::test]
async fn a_node_goes_over_to_its_next_key_under_traffic() {
    needs_tunnel!();
    let mut cluster = sample().await;
    exchange(&cluster, OTHER, "before");
    let traffic = Traffic::start(&cluster, OTHER);
    for turn in 0..4 {
        // Each node in turn, each by both places.
        let node = turn % 2 + 1;
        let (end, keys) = cluster.ends[&node];
        let next = new_key().unwrap();
        let place = 1 - end.place;
        let mut both = keys;
        both.keys[usize::from(place)] = Some(public_key(&next));
        cluster.ends.insert(node, (end, both));
        cluster.tell().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // It goes over, and only then do the others hear of that.
        cluster.ends.insert(node, (TunnelEnd { key: next, place, ..end }, both));
        cluster.node(node).apply(cluster.overlay(node)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut keys = PeerKeys { keys: [None, None], place };
        keys.keys[usize::from(place)] = Some(public_key(&next));
        cluster.ends.insert(node, (TunnelEnd { key: next, place, ..end }, keys));
        cluster.tell().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.assert_settled().await;
    }
    let gap = traffic.longest_gap();
    eprintln!("longest gap over four changes of keys: {gap:?}");
    assert!(gap < GAP_MAX, "{gap:?}");
}

#[tokio::test]
async fn the_tunnel_outlives_the_daemon_and_is_taken_up_by_the_next() {
    needs_tunnel!();
    let mut cluster = sample().await;
    exchange(&cluster, OTHER, "before");
    let before = index(&cluster);
    let traffic = Traffic::start(&cluster, OTHER);
    cluster.nodes.clear();
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.nodes = (1..=2).map(|number| cluster.daemon(number)).collect();
    for number in 1..=2 {
        let report = cluster.node(number).reconcile(&cluster.desired(number)).await.unwrap();
        assert!(report.clean(), "{report:?}");
    }
    let gap = traffic.longest_gap();
    assert!(gap < GAP_MAX, "{gap:?}");
    assert_eq!(index(&cluster), before);
}

#[tokio::test]
async fn what_is_spoiled_is_named_and_mended() {
    needs_tunnel!();
    let cluster = sample().await;
    exchange(&cluster, OTHER, "before");
    let address = |shown: &str| cluster.inside(1, "ip", &["addr", shown, "169.254.144.1/32", "dev", "rswg"]);
    let findings = async || -> Vec<String> {
        let check = cluster.node(1).check().await.unwrap();
        check.findings.iter().map(ToString::to_string).collect()
    };
    let mend = async || {
        let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
        assert!(!report.repaired.is_empty() && report.failed.is_empty(), "{report:?}");
        assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    };
    address("del");
    let found = findings().await;
    assert!(found.contains(&"missing link `rswg`".to_owned()), "{found:?}");
    mend().await;
    cluster.inside(1, "ip", &["link", "set", "rswg", "down"]);
    mend().await;
    cluster.inside(1, "ip", &["route", "del", "169.254.176.0/20", "dev", "rswg", "table", "local"]);
    mend().await;
    exchange(&cluster, OTHER, "after small repairs");
    cluster.inside(1, "ip", &["link", "del", "rswg"]);
    let found = findings().await;
    assert!(found.iter().any(|one| one.starts_with("missing peer 169.254.144.2 of `rswg`")), "{found:?}");
    mend().await;
    exchange(&cluster, OTHER, "after a new link");
    // The process is killed: its link goes with it.
    let mine = crate::cluster::helper(cluster.host(1)).display().to_string();
    let all = output(Command::new("ps").args(["-eo", "pid,args"]));
    if let Some(line) = all.lines().find(|line| line.contains(&mine)) {
        let pid = line.split_whitespace().next().unwrap();
        output(Command::new("kill").args(["-9", pid]));
        crate::rig::wait_until("the link is gone", || {
            !cluster.inside(1, "ip", &["-br", "link"]).contains("rswg")
        });
        mend().await;
        exchange(&cluster, OTHER, "after a new process");
    }
}
