//! A service on the mesh under load, while its tasks are replaced, moved and killed and daemons crash at random: only
//! requests that a killed task had may fail, and afterwards each kernel has what it should and nothing more.
//!
//! `CHAOS_SEED=n` repeats a run's choices (its timing is the machine's); `CHAOS_EVENTS=200` makes it long.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rswarm_cluster_tests::kernel::missing_program;
use rswarm_cluster_tests::{Choices, ClusterLab};
use rswarm_lab::get;
use rswarm_net::run_in_netns;

const EVENTS: usize = 15;
const MANAGERS: usize = 3;
const HOSTS: usize = 5;
const PUBLISHED: u16 = 8080;
const REPLICAS: usize = 5;
const SOON: Duration = Duration::from_secs(30);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// One client's pace; there are three.
const PERIOD: Duration = Duration::from_millis(10);
/// How long after a task was killed requests may be seen to have failed for it: 1 s, and what a client is kept waiting
/// where others have the processors.
const MOURNING: Duration = Duration::from_secs(3);

struct Failure {
    began: SystemTime,
    at: Instant,
    host: usize,
    error: io::Error,
}

#[test]
fn only_requests_of_killed_tasks_fail() {
    let Some(mut lab) = ClusterLab::form("mesh-chaos", MANAGERS, HOSTS - MANAGERS) else { return };
    let seed = number("CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("seed: {seed} (repeat with CHAOS_SEED={seed})");
    let mut choices = Choices::new(seed);
    let events = number("CHAOS_EVENTS").map_or(EVENTS, |events| events as usize);
    lab.ok(1, &["network", "create", "front"]);
    let publish = format!("{PUBLISHED}:80");
    let flags =
        ["--network", "front", "--publish", &publish, "--restart-delay", "0s", "--update-monitor", "1s"];
    lab.create(1, "web", REPLICAS, &flags, &["serve", "80"]);
    lab.until_running(1, "web", REPLICAS, SOON);

    let wire = lab.config().wire_netns();
    let addresses: Vec<Ipv4Addr> = lab.hosts().iter().map(|host| host.address).collect();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    let (mut events_at, mut silent) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        for first in 0..3 {
            let (addresses, stop, asked, failures) = (&addresses, &stop, &asked, &failures);
            let client = move || {
                let mut next = Instant::now();
                for n in first.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    next += PERIOD;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    asked.fetch_add(1, Ordering::Relaxed);
                    let host = n % addresses.len();
                    let began = SystemTime::now();
                    if let Err(error) = get((addresses[host], PUBLISHED).into(), PATIENCE) {
                        let failure = Failure { began, at: Instant::now(), host: host + 1, error };
                        failures.lock().unwrap().push(failure);
                    }
                }
            };
            let wire = &wire;
            scope.spawn(move || run_in_netns(wire, client).expect("the wire's namespace"));
        }
        // Ends the clients also when a change fails.
        let stopped = Stop(&stop);
        for n in 0..events {
            let manager = 1 + n % MANAGERS;
            change(&mut lab, &mut choices, manager, &mut events_at);
            lab.until_running(manager, "web", REPLICAS, SOON);
            silent.extend(lab.silent_starts(manager, "web"));
        }
        drop(stopped);
    });
    let failures = failures.into_inner().unwrap();
    let asked = asked.load(Ordering::Relaxed);
    let unexplained: Vec<String> = failures
        .iter()
        .filter(|failure| {
            let explains =
                |event: &Event| event.kills && event.at <= failure.at && failure.at <= event.at + MOURNING;
            let refused = failure.error.kind() == io::ErrorKind::ConnectionRefused;
            let starting = refused && silent.iter().any(|start| start.contains(&failure.began));
            !starting && !events_at.iter().any(explains)
        })
        .map(|failure| {
            let before = events_at.iter().rev().filter(|event| event.at <= failure.at).take(3);
            let before = before.map(|event| format!("{:.1?} after `{}`", failure.at - event.at, event.what));
            let before = before.collect::<Vec<_>>().join(", ");
            format!("through host-{}: {} ({before})", failure.host, failure.error)
        })
        .collect();
    let killed = events_at.iter().filter(|event| event.kills).count();
    eprintln!("{asked} requests, {} failed, {killed} tasks were killed", failures.len());
    assert!(unexplained.is_empty(), "{} of {asked}: {unexplained:#?}", unexplained.len());
    match missing_program() {
        Some(program) => eprintln!("skipped: `what the kernels have after it` needs `{program}`"),
        None => lab.until_kernels_are_exact(1, SOON),
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

struct Event {
    at: Instant,
    what: String,
    kills: bool,
}

fn change(lab: &mut ClusterLab, choices: &mut Choices, manager: usize, events: &mut Vec<Event>) {
    let mut begin = |what: String, kills| {
        eprintln!("{what}");
        events.push(Event { at: Instant::now(), what, kills });
    };
    match choices.below(4) {
        0 => {
            begin("replace all".to_owned(), false);
            accept(lab, manager, &["service", "update", "--force", "--update-parallelism", "2", "web"]);
        }
        1 => {
            let name = format!("host-{}", 1 + choices.below(HOSTS));
            begin(format!("drain {name}"), false);
            accept(lab, manager, &["node", "update", "--availability", "drain", &name]);
            lab.until_running(manager, "web", REPLICAS, SOON);
            accept(lab, manager, &["node", "update", "--availability", "active", &name]);
        }
        2 => {
            let host = 1 + choices.below(HOSTS);
            let pids = lab.workload_pids(host);
            let Some(pid) = pids.iter().nth(choices.below(pids.len().max(1))) else { return };
            begin(format!("kill task with process {pid} on host-{host}"), true);
            let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
            match killed {
                // It had been stopped meanwhile.
                Err(nix::errno::Errno::ESRCH) => {}
                killed => killed.expect("root may kill it"),
            }
        }
        _ => {
            let host = 1 + choices.below(HOSTS);
            begin(format!("crash the daemon of host-{host}"), false);
            lab.crash(host);
            lab.restart(host);
            // While it was away its kernel could not hear of a task that was killed: that is no event of this test.
            accept(lab, manager, &["network", "verify"]);
        }
    }
}

/// Makes a change through a manager, whose daemon may be about to start.
fn accept(lab: &ClusterLab, manager: usize, args: &[&str]) {
    lab.wait(&format!("`{}` is accepted", args.join(" ")), SOON, || {
        let output = lab.rswarm(manager, args);
        if output.code == Some(0) { Ok(()) } else { Err(output.stderr) }
    });
}
