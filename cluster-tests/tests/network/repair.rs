//! What is told of a network that is not as it should be, and that it is mended.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::{helper, missing_program, output, resolve};
use rswarm_net::lab::delete_named_netns;
use rswarm_net::run_in_netns;

use super::{MONITOR, SOON, form, gateway, namespaces, until_below};

#[test]
fn a_filtered_data_path_is_told_and_a_changed_mtu_is_followed() {
    if let Some(program) = missing_program() {
        eprintln!("skipped: `a_filtered_data_path_is_told_and_a_changed_mtu_is_followed` needs `{program}`");
        return;
    }
    const TOLD: Duration = Duration::from_secs(40);
    let Some(mut lab) = ClusterLab::form("filtered", 1, 2) else { return };
    form(&lab, 3);
    let run = |lab: &ClusterLab, words: &str| output(&lab.host(2).netns, words);
    let listed = |lab: &ClusterLab| lab.ok(1, &["node", "ls"]);
    run(&lab, "nft add table ip filtered");
    run(&lab, "nft add chain ip filtered input { type filter hook input priority 0 ; }");
    run(&lab, "nft add rule ip filtered input udp dport 4789 drop");
    lab.wait("all nodes tell whom they do not reach", TOLD, || {
        let shown = listed(&lab);
        let all = shown.contains("cut off from 2") && shown.matches("cut off from 1").count() == 2;
        if all { Ok(()) } else { Err(shown) }
    });
    let told = "`host-1` gets no answer from node `host-2` by the data path: let UDP port 4789 pass";
    assert!(lab.ok(1, &["node", "inspect", "--pretty", "host-1"]).contains(told));
    let verified = lab.rswarm(1, &["network", "verify"]);
    assert!(verified.code == Some(1) && verified.stdout.contains(told), "{}", verified.stdout);
    run(&lab, "nft delete table ip filtered");
    lab.wait("all reach each other", TOLD, || {
        let shown = listed(&lab);
        if shown.contains("cut off") { Err(shown) } else { Ok(()) }
    });
    // A node that is down, and daemons that are away, cut nobody off.
    run(&lab, "ip link set eth0 mtu 1300");
    lab.crash(3);
    let narrow = |lab: &ClusterLab, number: usize| {
        let shown = output(&helper(lab.host(number)), "ip link");
        let links: Vec<&str> =
            shown.lines().filter(|line| line.contains(": rs") && !line.contains(": rsup")).collect();
        let wide = links.iter().find(|line| !line.contains("mtu 1250 "));
        wide.map_or(Ok(()), |line| Err(format!("host-{number}: {line}")))
    };
    lab.wait("links have what fits", TOLD, || narrow(&lab, 1).and_then(|()| narrow(&lab, 2)));
    lab.restart(3);
    lab.until_ready(3);
    lab.wait("links have what fits", TOLD, || narrow(&lab, 3));
    assert!(!listed(&lab).contains("cut off"), "{}", listed(&lab));
}

/// What `network verify --json` says of each host.
fn verify(lab: &ClusterLab) -> Vec<serde_json::Value> {
    let said = lab.rswarm(1, &["network", "verify", "--json"]);
    serde_json::from_str(&said.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", said.stdout, said.stderr))
}

fn mended(lab: &ClusterLab) -> Vec<u64> {
    verify(lab).iter().map(|node| node["Mended"].as_u64().expect("a number")).collect()
}

#[test]
fn a_resolver_that_hangs_or_was_left_behind_is_told_replaced_and_counted() {
    let Some(lab) = ClusterLab::form("names", 1, 0) else { return };
    lab.ok(1, &["network", "create", "front"]);
    lab.create(1, "web", 1, &["--network", "front", MONITOR], &[]);
    lab.until_running(1, "web", 1, SOON);
    let (server, (_, netns)) = (gateway(&lab, "front"), namespaces(&lab, "web").remove(0));
    let host = lab.host(1);
    let resolver = || -> i32 {
        let text = std::fs::read_to_string(host.run_root.join("resolver.pid")).expect("a resolver");
        text.trim().parse().expect("a process id")
    };
    let until_answered = |first: i32| {
        lab.wait("another one answers", SOON, || {
            let missing = verify(&lab)[0]["Missing"]["Names"].clone();
            if resolver() != first && missing == 0 { Ok(()) } else { Err(format!("missing: {missing}")) }
        });
        assert_eq!(resolve(&netns, server, "web").map(|found| found.len()), Some(1));
    };
    let before = mended(&lab)[0];
    let told = (0..3).any(|_| {
        // Another moment if the repair was there first.
        let hanging = resolver();
        kill(Pid::from_raw(hanging), Signal::SIGSTOP).expect("it runs");
        let told = verify(&lab)[0]["Missing"]["Names"] == 1;
        until_answered(hanging);
        told
    });
    assert!(told, "a resolver that hangs is told");
    assert!(mended(&lab)[0] > before);
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));

    // One of another program, as after an upgrade.
    let program = format!("/proc/{}/exe", resolver());
    let copy = host.data_root.join("rswarm-of-before");
    std::fs::copy(&program, &copy).expect("a copy");
    let mut command = std::process::Command::new(&copy);
    command
        .args(["resolver", "--replace", "--run-root"])
        .arg(&host.run_root)
        .arg("--netns")
        .arg(helper(host));
    let mut of_before = run_in_netns(&host.netns, || command.spawn()).expect("the host").expect("it starts");
    let former = i32::try_from(of_before.id()).expect("a process id");
    let ended = lab.wait("another takes its place", SOON, || {
        let ended = of_before.try_wait().expect("its end can be asked for");
        ended.ok_or_else(|| "it still runs".to_owned())
    });
    assert!(ended.success());
    until_answered(former);

    let (former, before) = (resolver(), mended(&lab)[0]);
    delete_named_netns(&helper(host)).expect("the helper namespace goes");
    until_answered(former);
    assert!(mended(&lab)[0] > before);
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
}

#[test]
fn planted_entries_vanish_and_are_counted() {
    if let Some(program) = missing_program() {
        eprintln!("skipped: `planted_entries_vanish_and_are_counted` needs `{program}`");
        return;
    }
    const WITHIN: Duration = Duration::from_secs(10);
    let Some(lab) = ClusterLab::form("planted", 1, 2) else { return };
    form(&lab, 3);
    lab.until_kernels_are_exact(1, SOON);
    let before = mended(&lab);
    assert_eq!(before, [0, 0, 0], "nothing differs in health");
    // On host-1, so `…:01` is its own and `…:02` a peer's; 10.1.0.2 is the first virtual address on `front`.
    let planted = [
        "bridge fdb replace 02:52:00:00:00:02 dev rsx4097 dst 10.79.0.99 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dev rsx4097 dst 10.79.0.99 self permanent",
        "bridge fdb del 02:52:00:00:00:03 dev rsx4096 self",
        "bridge fdb add 02:52:00:00:00:77 dev rsx4097 master static",
        "bridge fdb add 02:52:00:00:00:78 dev rsx4097 master permanent",
        "bridge fdb replace 02:52:00:00:00:03 dev rsx4097 master permanent",
        "ip neigh add 10.1.0.200 lladdr 02:52:00:00:00:02 dev rsb4097 nud permanent",
        "ip neigh add 10.1.0.201 lladdr 02:52:00:00:00:02 dev rsb4097 nud noarp",
        "ip neigh add 10.1.0.202 lladdr 02:52:00:00:00:02 dev rsb4097 nud reachable",
        "ip neigh replace 169.254.128.2 lladdr 02:52:00:00:00:03 dev rsb4096 nud permanent",
        "ip route replace default via 169.254.128.3 dev rsb4096 table 1002 onlink",
        "ip rule del fwmark 0x3/0xfff",
        "ip rule add from 10.1.0.3 lookup 1002 pref 50",
        "ip route add blackhole 10.1.0.3",
        "nft add element inet rswarm members { rsb4097 . 10.1.0.200 }",
        "nft delete element inet rswarm services { rsb4097 . 10.1.0.2 }",
    ];
    let kernel = helper(lab.host(1));
    let took = until_below(WITHIN, || {
        for words in planted {
            output(&kernel, words);
        }
        let planted_at = Instant::now();
        lab.until_kernels_are_exact(1, SOON);
        planted_at.elapsed()
    });
    let after = mended(&lab);
    let all_planted = (took.len() * planted.len()) as u64;
    assert!(after[0] >= before[0] + all_planted, "{before:?} {after:?}");
    assert_eq!(after[1..], before[1..], "nothing was planted there");
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
    // What ends is no difference either, also of the bridges that only this service was on.
    lab.create(1, "local", 3, &[MONITOR], &["serve", "80"]);
    lab.until_running(1, "local", 3, SOON);
    lab.ok(1, &["service", "rm", "web", "client", "local"]);
    lab.wait("all tasks are gone", SOON, || {
        let left = lab.ok(1, &["task", "ls", "-q"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    lab.until_kernels_are_exact(1, SOON);
    assert_eq!(mended(&lab), after);
}
