//! Start, end, and the change from one resolver to the next.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use domain::base::iana::Rtype;
use rswarm_resolver::{Asker, Health, health};
use rustix::process::{Pid, Signal, kill_process};

use crate::needs_root;
use crate::rig::{Rig, ask_here, map, wait_until};

fn pid_file(rig: &Rig) -> String {
    std::fs::read_to_string(rig.run_root.path().join(rswarm_resolver::PID_FILE)).unwrap().trim().to_owned()
}

#[test]
fn there_is_one_per_run_root_and_sigterm_ends_it() {
    needs_root!();
    let mut rig = Rig::new("");
    rig.write_map(&map(&[]));
    let pid = rig.start(&[]);
    let second = rig.command(&[]).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.success() && said.contains(&format!("process id {pid} serves")), "{said}");
    assert_eq!(pid_file(&rig), pid.to_string());
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::TERM).unwrap();
    assert!(rig.first().wait().unwrap().success());
    // Killed the hard way, it leaves nothing in the way of the next either.
    let next = rig.start(&[]);
    kill_process(Pid::from_raw(next as i32).unwrap(), Signal::KILL).unwrap();
    let last = rig.start(&["--replace"]);
    assert_eq!(pid_file(&rig), last.to_string());
    assert_eq!(rig.ask(3, "web"), "NOERROR 10.77.0.3/2");
}

#[test]
fn a_newer_one_takes_over_and_no_question_is_lost() {
    needs_root!();
    let mut rig = Rig::new("");
    rig.write_map(&map(&[]));
    let first = rig.start(&[]);
    let (server, host) = (rig.server(), rig.lab.host(3).clone());
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (stop, asked) = (&stop, &asked);
        let ask_all = move || {
            // A socket for each question, so that the kernel chooses anew who gets it.
            while !stop.load(Ordering::Relaxed) {
                let heard = ask_here(server, "web", Rtype::A);
                assert_eq!(heard.as_deref(), Some("NOERROR 10.77.0.3/2"), "question {asked:?}");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        };
        let host = &host;
        let asker = scope.spawn(move || host.run(ask_all).unwrap());
        let mut before = first;
        for round in 1..=10 {
            wait_until("some were asked", || {
                asked.load(Ordering::Relaxed) > 100 * round || asker.is_finished()
            });
            let next = rig.start(&["--replace"]);
            assert_ne!(next, before);
            assert_eq!(pid_file(&rig), next.to_string());
            before = next;
        }
        stop.store(true, Ordering::Relaxed);
        asker.join().unwrap();
    });
    wait_until("the first has ended", || rig.first().try_wait().unwrap().is_some());
}

#[test]
fn one_that_hangs_or_listens_elsewhere_shows_and_gives_way() {
    needs_root!();
    let mut rig = Rig::new("");
    rig.write_map(&map(&[]));
    let address = rig.lab.host(3).address.into();
    let asker =
        |server: Ipv4Addr| Asker { netns: rig.lab.host(3).netns.clone(), address, server: server.into() };
    let (here, elsewhere) = (asker(rig.lab.host(2).address), asker(rig.lab.host(4).address));
    let gone = Asker { address: Ipv4Addr::new(10, 77, 0, 99).into(), ..here.clone() };
    let seen = |asker: &Asker| health(std::slice::from_ref(asker), Duration::from_secs(2));
    assert_eq!((seen(&here), seen(&gone)), (Some(Health::Unheard), None));
    let first = rig.start(&[]);
    assert_eq!((seen(&here), seen(&elsewhere)), (Some(Health::Answered), Some(Health::Unheard)));
    assert_eq!(health(&[elsewhere, gone, here.clone()], Duration::from_secs(2)), Some(Health::Answered));
    let stop = |pid: u32| kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP).unwrap();
    stop(first);
    assert_eq!(seen(&here), Some(Health::Silent));
    let next = rig.start(&["--replace"]);
    assert_eq!((pid_file(&rig), seen(&here)), (next.to_string(), Some(Health::Answered)));
    stop(next);
    rswarm_resolver::stop(rig.run_root.path()).unwrap();
    assert!(!rswarm_resolver::runs(rig.run_root.path()));
}

#[test]
fn what_is_wrong_at_the_start_is_said_by_name() {
    needs_root!();
    let rig = Rig::new("");
    let fails = |more: &[&str], code: i32, text: &str| {
        let output = rig.command(more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && said.contains(text), "{said}");
    };
    fails(&["--nonsense"], 125, "unknown argument `--nonsense`");
    fails(&["--netns", "/nowhere"], 1, "`/nowhere`");
    fails(&["--run-root", "/nowhere"], 1, "`/nowhere/resolver.pid`");
    let host = rig.lab.host(2);
    let _taken = host.run(|| std::net::UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    fails(&[], 1, "failed to listen on `0.0.0.0:53`, UDP and TCP: ");
}
