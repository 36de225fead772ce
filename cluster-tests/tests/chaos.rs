//! Random changes while random hosts and daemons die: nothing acknowledged is lost, nothing is left over, and when the
//! faults end everything becomes as it was asked for.
//!
//! `CHAOS_SEED=n` repeats a run's choices (its timing is the machine's). The seed is printed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rswarm_cluster_tests::{Choices, ClusterLab, workload};

const CHANGES: usize = 50;
const MANAGERS: usize = 3;
const HOSTS: usize = 5;
/// For a change to be accepted while a manager dies.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(20);
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// Total of replicas: each is a process on this machine.
const REPLICAS_MAX: usize = 6;
const SERVICES_MAX: usize = 8;

/// What is down, and until when.
struct Fault {
    host: usize,
    whole_host: bool,
    ends_at: Instant,
}

#[test]
fn no_acknowledged_service_is_lost_when_hosts_and_daemons_die_at_random() {
    let Some(mut lab) = ClusterLab::form("chaos", MANAGERS, HOSTS - MANAGERS) else { return };
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("seed: {seed} (repeat with CHAOS_SEED={seed})");
    let mut choices = Choices::new(seed);
    // What was acknowledged: services and their replicas.
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    let mut fault: Option<Fault> = None;
    for n in 0..CHANGES {
        if let Some(present) = fault.take_if(|fault| Instant::now() > fault.ends_at) {
            recover(&mut lab, &present);
        }
        // One at a time, so that a majority of managers is always left.
        if fault.is_none() && choices.below(2) == 0 {
            fault = Some(strike(&mut lab, &mut choices));
        }
        change(&lab, &mut choices, &mut expected, n, fault.as_ref().map(|fault| fault.host));
        // Changes come over time, so that faults hit them in every stage.
        std::thread::sleep(Duration::from_millis(choices.below(500) as u64));
    }
    if let Some(present) = fault {
        recover(&mut lab, &present);
    }
    settle(&lab, &expected);
}

fn strike(lab: &mut ClusterLab, choices: &mut Choices) -> Fault {
    let (host, whole_host) = match choices.below(4) {
        0 => (MANAGERS + 1 + choices.below(HOSTS - MANAGERS), true),
        1 => (lab.leader(1).unwrap_or(1), true),
        2 => (lab.leader(2).unwrap_or(2), false),
        _ => (1 + choices.below(HOSTS), false),
    };
    if whole_host {
        eprintln!("power off host {host}");
        lab.power_off(host);
    } else {
        eprintln!("kill the daemon of host {host}");
        lab.crash(host);
    }
    // Mostly short; now and then so long that what ran there is run elsewhere.
    let lasts_millis = if choices.below(4) == 0 { 8_000 } else { 200 + 50 * choices.below(40) as u64 };
    let ends_at = Instant::now() + Duration::from_millis(lasts_millis);
    Fault { host, whole_host, ends_at }
}

fn recover(lab: &mut ClusterLab, fault: &Fault) {
    eprintln!("host {} comes back", fault.host);
    if fault.whole_host {
        lab.power_on(fault.host);
    } else {
        lab.start(fault.host);
    }
}

/// Makes a change through a manager that is up, again and again until it is acknowledged. A change whose answer was
/// lost may have been made, so the next attempt takes "it is so already" for success.
fn change(
    lab: &ClusterLab,
    choices: &mut Choices,
    expected: &mut BTreeMap<String, usize>,
    n: usize,
    down: Option<usize>,
) {
    let names: Vec<String> = expected.keys().cloned().collect();
    let name = names.get(choices.below(names.len().max(1))).cloned();
    let replicas = choices.below(REPLICAS_MAX + 1);
    let managers: Vec<usize> = (1..=MANAGERS).filter(|number| Some(*number) != down).collect();
    let mut attempt = 0;
    let mut through = || {
        attempt += 1;
        managers[(n + attempt) % managers.len()]
    };
    let kind = choices.below(3);
    match (kind, name) {
        (0, _) | (_, None) if expected.len() < SERVICES_MAX => {
            let name = format!("s{n}");
            eprintln!("create {name} with {replicas}");
            lab.wait(&format!("`{name}` is created"), ACCEPT_DEADLINE, || {
                let text = replicas.to_string();
                let args = ["service", "create", "-d", "--name", &name, "--replicas", &text, workload::IMAGE];
                accepted(lab, through(), &args, "is in use by")
            });
            expected.insert(name, replicas);
        }
        (1, Some(name)) => {
            eprintln!("remove {name}");
            lab.wait(&format!("`{name}` is removed"), ACCEPT_DEADLINE, || {
                accepted(lab, through(), &["service", "rm", &name], "no such service")
            });
            expected.remove(&name);
        }
        (_, Some(name)) => {
            eprintln!("scale {name} to {replicas}");
            lab.wait(&format!("`{name}` is scaled"), ACCEPT_DEADLINE, || {
                accepted(lab, through(), &["service", "scale", "-d", &format!("{name}={replicas}")], "\0")
            });
            expected.insert(name, replicas);
        }
        (_, None) => {}
    }
}

fn accepted(lab: &ClusterLab, host: usize, args: &[&str], done_already: &str) -> Result<(), String> {
    let output = lab.rswarm(host, args);
    let message = output.stderr.to_lowercase();
    if output.code == Some(0) || message.contains(done_already) { Ok(()) } else { Err(message) }
}

fn settle(lab: &ClusterLab, expected: &BTreeMap<String, usize>) {
    lab.until_ready(HOSTS);
    let started_at = Instant::now();
    lab.wait("every acknowledged service is there, and no other", SETTLE_DEADLINE, || {
        let services = lab.api(1).services().map_err(|status| status.to_string())?;
        let found: Vec<String> =
            services.into_iter().filter_map(|service| Some(service.spec?.name)).collect();
        let lost: Vec<_> = expected.keys().filter(|name| !found.contains(name)).collect();
        let more: Vec<_> = found.iter().filter(|name| !expected.contains_key(*name)).collect();
        if lost.is_empty() && more.is_empty() {
            Ok(())
        } else {
            Err(format!("lost {lost:?}, too many {more:?}"))
        }
    });
    for (name, replicas) in expected {
        lab.until_running(1, name, *replicas, SETTLE_DEADLINE);
    }
    let total: usize = expected.values().sum();
    lab.wait("no container is left over", SETTLE_DEADLINE, || {
        let counts: Vec<_> = (1..=HOSTS).map(|number| lab.workload_pids(number).len()).collect();
        if counts.iter().sum::<usize>() == total {
            Ok(())
        } else {
            Err(format!("{counts:?}, expected {total}"))
        }
    });
    // Each process is that of a task, on the node the task is on.
    let tasks = lab.api(1).tasks(None).expect("a manager answers");
    let nodes = lab.api(1).nodes().expect("a manager answers");
    let mut by_host: BTreeMap<usize, usize> = BTreeMap::new();
    for task in tasks.iter().filter(|task| rswarm_cluster_tests::is_running(task)) {
        let node = nodes.iter().find(|node| node.id == task.node_id).expect("tasks run on known nodes");
        *by_host.entry(lab.number_of(node).expect("nodes are hosts")).or_default() += 1;
    }
    for number in 1..=HOSTS {
        let expected = by_host.get(&number).copied().unwrap_or(0);
        assert_eq!(lab.workload_pids(number).len(), expected, "host {number}");
    }
    eprintln!("settled after {} ms", started_at.elapsed().as_millis());
}
