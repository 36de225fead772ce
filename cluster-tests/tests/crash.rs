//! A daemon that is killed at any point of making and removing containers: the next one finishes what it began, and
//! nothing of it is left on the host when all services are gone.
//!
//! `CRASH_SEED=n` repeats a run's choices (its timing is the machine's); `CRASH_ROUNDS=n` makes it longer. The seed is
//! printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rswarm_cluster_tests::{Choices, ClusterLab, workload};
use rswarm_lab::Process;
use rswarm_net::{Network, NetworkConfig};

const ROUNDS: usize = 25;
const SERVICES_MAX: usize = 3;
/// Within which a change is under way: making a container takes some 50 ms, removing one about as long.
const KILL_WITHIN_MILLIS: usize = 250;
const ACCEPT_DEADLINE: Duration = Duration::from_secs(20);
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn a_daemon_killed_at_any_point_leaves_nothing_behind() {
    let Some(mut lab) = ClusterLab::form("crash", 1, 0) else { return };
    let seed = number("CRASH_SEED").unwrap_or_else(|| std::process::id() as usize);
    let rounds = number("CRASH_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("seed: {seed} (repeat with CRASH_SEED={seed})");
    let mut choices = Choices::new(seed as u64);
    let node = lab.node_id(1);
    let mut services: Vec<String> = Vec::new();
    for n in 0..rounds {
        // What is not acknowledged is asked for again of the next daemon.
        if services.len() < SERVICES_MAX && (services.is_empty() || choices.below(2) == 0) {
            let (name, replicas) = (format!("s{n}"), (1 + choices.below(2)).to_string());
            let args = ["service", "create", "-d", "--name", &name, "--replicas", &replicas, workload::IMAGE];
            accept(&lab, &args, "is in use by");
            services.push(name);
        } else {
            let name = services.swap_remove(choices.below(services.len()));
            accept(&lab, &["service", "rm", &name], "no such service");
        }
        std::thread::sleep(Duration::from_millis(choices.below(KILL_WITHIN_MILLIS) as u64));
        lab.crash(1);
        lab.start(1);
    }
    for name in &services {
        accept(&lab, &["service", "rm", name], "no such service");
    }
    let settling = Instant::now();
    lab.wait("nothing is left of any task", SETTLE_DEADLINE, || match leftovers(&lab, &node) {
        left if left.is_empty() => Ok(()),
        left => Err(left.join("; ")),
    });
    eprintln!("nothing was left after {} ms", settling.elapsed().as_millis());
    let panics = fs::read_to_string(lab.host(1).log_path()).unwrap_or_default().contains("panicked");
    assert!(!panics, "a daemon panicked\n{}", lab.logs());
}

fn accept(lab: &ClusterLab, args: &[&str], done_already: &str) {
    lab.wait(&format!("`{}` is accepted", args.join(" ")), ACCEPT_DEADLINE, || {
        let output = lab.rswarm(1, args);
        let message = output.stderr.to_lowercase();
        if output.code == Some(0) || message.contains(done_already) { Ok(()) } else { Err(message) }
    });
}

/// Everything on the host that only a task can have brought.
fn leftovers(lab: &ClusterLab, node_id: &str) -> Vec<String> {
    let host = lab.host(1);
    let mut left = Vec::new();
    let of_node = |process: &Process| process.is_daemon() || process.is_resolver();
    let others = host.processes().into_iter().filter(|process| !of_node(process));
    left.extend(others.map(|process| format!("process {} ({})", process.pid, process.words.join(" "))));
    for directory in ["containers", "worker/tasks"] {
        let entries = fs::read_dir(host.data_root.join(directory)).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| format!("`{}`", entry.path().display())));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it can be read");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.clone().filter(|point| Path::new(point).starts_with(&host.data_root));
    left.extend(below.map(|point| format!("mount `{point}`")));
    left.extend(cgroups(&mounts, node_id).map(|path| format!("cgroup `{}`", path.display())));
    left.extend(network(lab));
    left
}

/// The node's cgroups: one with processes in it cannot be removed, so that none of these is overlooked.
fn cgroups<'a>(mounts: &'a str, node_id: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let points = hierarchies.filter_map(|line| line.split(' ').nth(4));
    let branch = move |point: &str| Path::new(point).join("rswarm").join(&node_id[..12]);
    points.map(branch).filter(|path| path.exists())
}

/// Links and elements of maps that are ours and that nobody wants. What is in the namespace of the overlays, which stays
/// as long as the node is a member, the daemon compares itself.
fn network(lab: &ClusterLab) -> Vec<String> {
    let verified = lab.host(1).run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let helper = lab.host(1).run_root.join("netns/overlay");
        let network = Network::new(NetworkConfig { helper, ..NetworkConfig::default() })?;
        let differences = runtime.block_on(network.verify())?;
        Ok::<_, anyhow::Error>(differences.iter().map(ToString::to_string).collect::<Vec<_>>())
    });
    let of_node = |text: &String| {
        let parts = ["the namespace of the overlays", "rshost", "tunnels at", "guarded", "node at"];
        parts.iter().any(|part| text.contains(part))
    };
    match verified.expect("the host is there") {
        Ok(mut differences) => {
            differences.retain(|text| !of_node(text));
            let overlays = lab.rswarm(1, &["network", "verify"]);
            if overlays.code != Some(0) {
                differences.push(overlays.stdout + &overlays.stderr);
            }
            differences
        }
        Err(error) => vec![format!("the network cannot be read: {error:#}")],
    }
}
