//! What callers notice of replacements, drains and updates.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rswarm_cluster_tests::ClusterLab;
use rswarm_lab::get;
use rswarm_net::run_in_netns;

use super::{MONITOR, PATIENCE, PERIOD, PUBLISHED, SOON, form, until_below};

#[test]
fn replaced_scaled_and_drained_tasks_fail_no_request() {
    let Some(lab) = ClusterLab::form("drain", 1, 2) else { return };
    form(&lab, 3);
    let wire = lab.config().wire_netns();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut silent = Vec::new();
    let mut failures = std::thread::scope(|scope| {
        let client = |host: usize| {
            let address = lab.host(host).address;
            let (wire, stop, asked) = (&wire, &stop, &asked);
            move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(PERIOD);
                    asked.fetch_add(1, Ordering::Relaxed);
                    let at = SystemTime::now();
                    if let Err(error) =
                        run_in_netns(wire, || get((address, PUBLISHED).into(), PATIENCE)).expect("the wire")
                    {
                        failures.push((at, host, error));
                    }
                }
                failures
            }
        };
        let clients: Vec<_> = (1..=3).map(|host| scope.spawn(client(host))).collect();
        for change in [
            &["service", "update", "--force", "web"][..],
            &["service", "scale", "web=1"],
            &["service", "scale", "web=4"],
            &["service", "update", "--force", "web"],
            &["node", "update", "--availability", "drain", "host-2"],
        ] {
            lab.ok(1, change);
            silent.extend(lab.silent_starts(1, "web"));
        }
        lab.wait("host-2 is empty", SOON, || {
            let tasks = lab.ok(1, &["node", "ps", "--filter", "desired-state=running", "--quiet", "host-2"]);
            if tasks.trim().is_empty() { Ok(()) } else { Err(tasks) }
        });
        lab.until_running(1, "web", 4, SOON);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    silent.extend(lab.silent_starts(1, "web"));
    assert!(!silent.is_empty());
    let asked = asked.load(Ordering::Relaxed);
    eprintln!("{asked} requests, {} failed", failures.len());
    failures.retain(|(at, _, error)| {
        error.kind() != ErrorKind::ConnectionRefused || !silent.iter().any(|start| start.contains(at))
    });
    assert!(failures.is_empty(), "{failures:?}, and tasks did not listen {silent:?}");
    assert!(asked > 100, "{asked}");
}

#[test]
fn datagrams_of_one_port_go_on_through_a_rolling_update() {
    let Some(lab) = ClusterLab::form("udp", 1, 2) else { return };
    lab.ok(1, &["network", "create", "front"]);
    let publish = format!("{PUBLISHED}:80/udp");
    lab.create(1, "web", 2, &["--network", "front", "--publish", &publish, MONITOR], &["serve", "80"]);
    lab.until_running(1, "web", 2, SOON);
    let (wire, address) = (lab.config().wire_netns(), lab.host(3).address);
    let longest_silence = || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                run_in_netns(&wire, || {
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    socket.connect((address, PUBLISHED))?;
                    socket.set_read_timeout(Some(Duration::from_millis(10)))?;
                    let (mut heard, mut longest, mut buffer) = (Instant::now(), Duration::ZERO, [0; 512]);
                    while !stop.load(Ordering::Relaxed) {
                        // A refusal of what was sent before may come back here.
                        let _ = socket.send(b"?");
                        if socket.recv(&mut buffer).is_ok() {
                            longest = longest.max(heard.elapsed());
                            heard = Instant::now();
                        }
                    }
                    Ok::<_, std::io::Error>(longest.max(heard.elapsed()))
                })
            });
            lab.ok(1, &["service", "update", "--force", "web"]);
            stop.store(true, Ordering::Relaxed);
            client.join().expect("the client").expect("its namespace").expect("a socket")
        })
    };
    // A flow that leads nowhere is kept for 30 s.
    let silences = until_below(Duration::from_secs(1), longest_silence);
    assert!(silences.iter().all(|silence| *silence < Duration::from_secs(10)), "silent for {silences:?}");
}
