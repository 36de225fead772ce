//! Claims about encrypted networks, seen from the wire between the nodes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rswarm_api::v1;
use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::{missing_program, output};
use rswarm_lab::page;
use rswarm_net::lab::Witness;

const SOON: Duration = Duration::from_secs(20);
/// Keys get this old here.
const KEY_PERIOD: Duration = Duration::from_secs(3);
/// A packet that is lost is sent again within 1 s, and a handshake after 5 s: none may be.
const WAIT_MAX: Duration = Duration::from_millis(4500);
const NODES: usize = 3;
/// What is on the wire when a page is sent in the clear.
const IN_THE_CLEAR: &str = "HTTP/1.";

/// The running tasks of a service: namespace, and address on `network`.
fn tasks(lab: &ClusterLab, service: &str, network: &str) -> Tasks {
    let running = lab.api(1).running(service).expect("a manager answers");
    let one = |task: &v1::Task| {
        let pid = task.status.as_ref()?.container.as_ref()?.pid?;
        let on = task.networks.iter().find(|on| on.name == network)?;
        let address = on.address.as_ref()?.address.parse().ok()?;
        Some((PathBuf::from(format!("/proc/{pid}/ns/net")), address))
    };
    running.iter().filter_map(one).collect()
}

type Tasks = Vec<(PathBuf, Ipv4Addr)>;

/// Every client asks every server once. Returns the longest that one had to wait.
fn ask((clients, servers): &(Tasks, Tasks)) -> Duration {
    let mut longest = Duration::ZERO;
    for (netns, _) in clients {
        for (_, address) in servers {
            let started = Instant::now();
            page(netns, *address, 80).unwrap_or_else(|error| panic!("{address}: {error}"));
            longest = longest.max(started.elapsed());
        }
    }
    longest
}

fn pairs(lab: &ClusterLab, network: &str) -> (Tasks, Tasks) {
    let pairs = (tasks(lab, "client", network), tasks(lab, "web", network));
    assert_eq!((pairs.0.len(), pairs.1.len()), (NODES, NODES));
    pairs
}

/// The nodes' keys as they are on disk.
fn keys(lab: &ClusterLab) -> Vec<String> {
    let current = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let held: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        held["current"].to_string()
    };
    lab.hosts().iter().map(|host| current(&host.data_root.join("worker/tunnel-keys"))).collect()
}

fn encrypts(lab: &ClusterLab, number: usize) -> bool {
    let host = lab.host(number);
    let helper = host.run_root.join("netns/overlay");
    let Ok(mut command) = rswarm_net::lab::command_in_netns(&helper, "ip") else { return false };
    let output = command.args(["-br", "link"]).output().expect("`ip` is there");
    String::from_utf8_lossy(&output.stdout).contains("rswg")
}

#[test]
fn what_tasks_send_each_other_on_an_encrypted_network_is_nowhere_to_be_read() {
    let Some(mut lab) = ClusterLab::form("encryption", 1, NODES - 1) else { return };
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: needs `/dev/net/tun`");
        return;
    }
    lab.daemon_args = vec!["--key-period".to_owned(), KEY_PERIOD.as_secs().to_string()];
    (1..=NODES).for_each(|number| lab.restart(number));
    lab.until_ready(NODES);
    lab.refused(1, &["network", "create", "--opt", "encrypted=perhaps", "x"], &["encrypted=perhaps"]);
    lab.ok(1, &["network", "create", "open"]);
    lab.ok(1, &["network", "create", "--opt", "encrypted", "--subnet", "10.64.0.0/27", "secret"]);
    assert!((1..=NODES).all(|number| !encrypts(&lab, number)), "only nodes with tasks there need it");
    let networks = ["--network", "open", "--network", "secret"];
    lab.create(1, "web", NODES, &networks, &["serve", "80"]);
    lab.create(1, "client", NODES, &networks, &[]);
    lab.until_running(1, "web", NODES, SOON);
    lab.until_running(1, "client", NODES, SOON);

    let witness = Witness::new(&lab.config().wire_netns()).expect("the wire can be tapped");
    ask(&pairs(&lab, "open"));
    assert!(Witness::reads(&witness.frames(), IN_THE_CLEAR), "the witness sees what is to be seen");
    let secret = pairs(&lab, "secret");
    ask(&secret);
    let frames = witness.frames();
    assert!(!Witness::reads(&frames, IN_THE_CLEAR));
    assert!(Witness::datagrams_to(&frames, 4790) > NODES * NODES);

    // The network grows and every node changes its key several times meanwhile, and no page fails.
    lab.ok(1, &["network", "update", "--subnet", "10.64.0.0/20", "secret"]);
    let mut seen = vec![keys(&lab)];
    let end = Instant::now() + KEY_PERIOD * 6;
    let mut longest = Duration::ZERO;
    while Instant::now() < end {
        longest = longest.max(ask(&secret));
        let now = keys(&lab);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    eprintln!("longest wait for a page while keys change: {longest:?}");
    assert!(longest < WAIT_MAX, "{longest:?}");
    for node in 0..NODES {
        let mut of_node: Vec<&String> = seen.iter().map(|keys| &keys[node]).collect();
        of_node.dedup();
        assert!(of_node.len() > 2, "node {} has had {} keys", node + 1, of_node.len());
    }
    assert!(!Witness::reads(&witness.frames(), IN_THE_CLEAR));
    let grown = output(&secret.0[0].0, "ip -brief -4 addr");
    assert!(grown.contains(&format!("{}/20", secret.0[0].1)), "{grown}");
    lab.wait("every kernel is as it was told", SOON, || {
        let output = lab.rswarm(1, &["network", "verify"]);
        if output.code == Some(0) { Ok(()) } else { Err(output.stdout + &output.stderr) }
    });

    // Nothing of it needs the daemons.
    (1..=NODES).for_each(|number| lab.crash(number));
    ask(&secret);
    lab.daemon_args.clear();
    (1..=NODES).for_each(|number| lab.restart(number));
    lab.until_ready(NODES);
    ask(&secret);
    assert!(!Witness::reads(&witness.frames(), IN_THE_CLEAR));
    for service in ["web", "client"] {
        lab.ok(1, &["service", "rm", service]);
    }
    lab.wait("the tunnels are gone", SOON, || {
        let left: Vec<usize> = (1..=NODES).filter(|number| encrypts(&lab, *number)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("on {left:?}")) }
    });
}

/// Seconds for which the router below remembers who sent a datagram: more than pass between two that keep a way open.
const REMEMBERED: u32 = 30;

/// Puts the host behind a router that translates its address, and lets nothing begin from outside.
fn translate(lab: &ClusterLab, number: usize) {
    let (port, address) = (format!("h{number}"), lab.host(number).address);
    let script = format!(
        "set -e
        ip link set {port} nomaster
        ip route add {address}/32 dev {port}
        cd /proc/sys/net
        echo 1 > ipv4/ip_forward
        echo 1 > ipv4/conf/{port}/proxy_arp
        echo {REMEMBERED} | tee netfilter/nf_conntrack_udp_timeout netfilter/nf_conntrack_udp_timeout_stream
        nft add table ip router
        nft add chain ip router out '{{ type nat hook postrouting priority srcnat; }}'
        nft add rule ip router out iifname {port} masquerade random
        nft add chain ip router in '{{ type filter hook forward priority filter; }}'
        nft add rule ip router in oifname {port} ct state new drop"
    );
    let mut shell = rswarm_net::lab::command_in_netns(&lab.config().wire_netns(), "sh").expect("the wire");
    let said = shell.args(["-c", &script]).output().expect("`sh` is there");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    // It shall ask anew whom to send to.
    output(&lab.host(number).netns, "ip neigh flush dev eth0");
}

/// For how many seconds the router will remember the tunnel of the host behind it.
fn remembered(lab: &ClusterLab, number: usize) -> Option<u32> {
    let from = format!("src={} ", lab.host(number).address);
    let known = output(&lab.config().wire_netns(), "cat /proc/thread-self/net/nf_conntrack");
    let line = known.lines().find(|line| line.contains(&from) && line.contains(" dport=4790 "))?;
    line.split_whitespace().nth(4)?.parse().ok()
}

/// From outside its tunnel is found only as long as the router remembers it.
#[test]
fn a_node_behind_an_address_translation_stays_reachable_on_encrypted_networks() {
    let Some(lab) = ClusterLab::form("translated", 1, 1) else { return };
    if let Some(missing) = missing_program() {
        eprintln!("skipped: needs `{missing}`");
        return;
    }
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: needs `/dev/net/tun`");
        return;
    }
    translate(&lab, 2);
    lab.until_ready(2);
    lab.ok(1, &["network", "create", "--opt", "encrypted", "secret"]);
    let on = |role: &str| format!("node.role=={role}");
    for (service, role, command) in [("web", "worker", &["serve", "80"][..]), ("client", "manager", &[])] {
        lab.create(1, service, 1, &["--network", "secret", "--constraint", &on(role)], command);
        lab.until_running(1, service, 1, SOON);
    }
    let inside = (tasks(&lab, "client", "secret"), tasks(&lab, "web", "secret"));
    // A tunnel that began before the other end knew its key begins again 5 s later.
    let (netns, address) = (&inside.0[0].0, inside.1[0].1);
    lab.wait("the first page", SOON, || page(netns, address, 80).map_err(|error| error.to_string()));
    // No packet for longer than half of that, and then one that none of the tasks sent.
    let mut least = REMEMBERED;
    lab.wait("the way is kept open", Duration::from_secs(u64::from(REMEMBERED) + 15), || {
        let left = remembered(&lab, 2).unwrap_or_default();
        least = least.min(left);
        if least < REMEMBERED / 2 && left > least { Ok(()) } else { Err(format!("{left} s of {least} left")) }
    });
    assert!(least > 0, "it was forgotten meanwhile");
    let waited = ask(&inside);
    assert!(waited < WAIT_MAX, "{waited:?}");
}
