//! Claims about encrypted networks, seen from the wire between the nodes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rswarm_api::v1;
use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::output;
use rswarm_lab::page;
use rswarm_net::lab::Witness;

const SOON: Duration = Duration::from_secs(20);
/// Keys get this old here.
const KEY_PERIOD: Duration = Duration::from_secs(3);
/// A lost packet is sent again after 0.2 s, and then after twice that.
const WAIT_MAX: Duration = Duration::from_secs(2);
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
