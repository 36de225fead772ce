//! The life of containers and of those who look after them: signals, restarts, losses, deletion.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::os::fd::AsFd;

use common::{Lab, chain, eventually, output};
use rswarm_runtime::log::{ReadOptions, Reader};
use rswarm_runtime::{LogOptions, RuntimeError, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn is_readable(fd: impl AsFd, seconds: i64) -> bool {
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// The parent of a container's first process: its shim.
fn shim_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn is_gone(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn kill(pid: i32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn states_follow_each_other_and_are_checked() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "sleep 1000")).unwrap();
    let state = container.state().unwrap();
    assert_eq!((state.status, state.started_at_unix_nanos), (Status::Created, None));
    assert_eq!(state.pid, container.pid());
    let again = lab.containers.create(&lab.script("one", "true")).unwrap_err();
    assert!(matches!(again, RuntimeError::AlreadyExists { .. }), "{again}");

    container.start().unwrap();
    let state = container.state().unwrap();
    assert_eq!(state.status, Status::Running);
    assert!(state.started_at_unix_nanos.unwrap() >= state.created_at_unix_nanos);
    let twice = container.start().unwrap_err();
    assert_eq!(chain(&twice), "container `one` is running, expected created");

    container.kill(libc::SIGKILL, false).unwrap();
    let status = container.wait().unwrap();
    assert_eq!((status.code, status.signal, status.oom_killed), (None, Some(9), false));
    assert_eq!(status.shell_code(), 137);
    assert_eq!(container.state().unwrap().status, Status::Exited(status));
    let late = container.kill(libc::SIGTERM, false).unwrap_err();
    assert!(matches!(late, RuntimeError::WrongState { found: Status::Exited(_), .. }), "{late}");

    container.delete().unwrap();
    container.delete().unwrap();
    assert!(matches!(container.state().unwrap_err(), RuntimeError::NotFound { .. }));
    assert!(matches!(lab.containers.open("one").unwrap_err(), RuntimeError::NotFound { .. }));
    assert!(matches!(lab.containers.open("../x").unwrap_err(), RuntimeError::InvalidId { .. }));
}

#[test]
fn created_container_that_is_never_started_can_be_deleted() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "true")).unwrap();
    let pid = container.pid().unwrap();
    let shim = shim_of(pid);
    container.delete().unwrap();
    assert!(is_gone(pid) && is_gone(shim));
    assert!(lab.containers.list().unwrap().is_empty());
}

#[test]
fn stop_signal_is_handled_by_the_program() {
    let Some(lab) = Lab::new() else { return };
    let container = lab
        .containers
        .create(&lab.script("one", "trap 'echo bye; exit 5' TERM; echo ready; sleep 1000 & wait"))
        .unwrap();
    container.start().unwrap();
    eventually("the trap is set", || output(&container).contains("ready"));
    container.kill(libc::SIGTERM, false).unwrap();
    assert_eq!(container.wait().unwrap().code, Some(5));
    assert_eq!(output(&container), "ready\nbye\n");
}

#[test]
fn signal_to_all_reaches_every_process() {
    let Some(lab) = Lab::new() else { return };
    let script = "sh -c 'trap \"echo one\" USR1; echo ready; while :; do sleep 0.01; done' & \
                  trap 'echo two' USR1; echo ready; while :; do sleep 0.01; done";
    let container = lab.containers.create(&lab.script("one", script)).unwrap();
    container.start().unwrap();
    eventually("both are ready", || output(&container).matches("ready").count() == 2);
    container.kill(libc::SIGUSR1, true).unwrap();
    eventually("both have answered", || {
        output(&container).contains("one") && output(&container).contains("two")
    });
    container.kill(libc::SIGKILL, true).unwrap();
    assert_eq!(container.wait().unwrap().signal, Some(9));
}

#[test]
fn watch_becomes_readable_at_the_end_and_not_before() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "sleep 1000")).unwrap();
    let watch = container.watch().unwrap();
    container.start().unwrap();
    assert!(!is_readable(&watch, 0));
    container.kill(libc::SIGKILL, true).unwrap();
    assert!(is_readable(&watch, 20));
    container.wait().unwrap();
    // One that begins afterwards is ready at once.
    eventually("the shim has gone", || is_readable(container.watch().unwrap(), 0));
}

#[test]
fn container_outlives_its_creator_and_is_adopted() {
    let Some(lab) = Lab::new() else { return };
    let request = lab.script("one", "while ! [ -e /tmp/go ]; do sleep 0.01; done; echo still here; exit 9");
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    let pid = container.pid().unwrap();
    let shim = shim_of(pid);
    // The shim does not hang on to whoever created it: not a child, not in the session, no connection needed.
    assert_ne!(shim_of(shim), std::process::id() as i32);
    let session = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!(session(shim), shim.to_string());
    drop(container);

    let adopted = lab.containers.open("one").unwrap();
    assert_eq!((adopted.pid(), adopted.state().unwrap().status), (Some(pid), Status::Running));
    std::fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    assert_eq!(adopted.wait().unwrap().code, Some(9));
    assert_eq!(output(&adopted), "still here\n");
}

#[test]
fn end_without_any_daemon_is_known_afterwards() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "exit 42")).unwrap();
    let shim = shim_of(container.pid().unwrap());
    container.start().unwrap();
    drop(container);
    eventually("the shim has left", || is_gone(shim));
    let adopted = lab.containers.open("one").unwrap();
    assert_eq!(adopted.pid(), None);
    let Status::Exited(status) = adopted.state().unwrap().status else { panic!("expected exited") };
    assert_eq!(status.code, Some(42));
    assert!(status.finished_at_unix_nanos >= status.started_at_unix_nanos.unwrap());
    assert_eq!(adopted.wait().unwrap(), status);
}

#[test]
fn killed_shim_makes_the_container_lost_and_ends_it() {
    let Some(lab) = Lab::new() else { return };
    for start in [false, true] {
        let container = lab.containers.create(&lab.script("one", "sleep 1000")).unwrap();
        let pid = container.pid().unwrap();
        if start {
            container.start().unwrap();
        }
        kill(shim_of(pid), libc::SIGKILL);
        let found = lab.containers.open("one").unwrap();
        assert_eq!(found.state().unwrap().status, Status::Lost);
        assert!(is_gone(pid), "started: {start}");
        let error = found.wait().unwrap_err();
        assert_eq!(chain(&error), "container `one` is lost, expected exited");
        found.delete().unwrap();
        assert!(lab.containers.list().unwrap().is_empty());
    }
}

/// As after a power cut or on a full disk: a record has its name but not its content.
#[test]
fn damaged_records_keep_nothing_from_being_killed_and_deleted() {
    let Some(lab) = Lab::new() else { return };
    for damage in [Some(""), Some("{\"boot_id\": 1"), None] {
        let request = lab.script("one", "sleep 1000 & sleep 1000");
        let container = lab.containers.create(&request).unwrap();
        container.start().unwrap();
        let pid = container.pid().unwrap();
        kill(shim_of(pid), libc::SIGKILL);
        match damage {
            Some(content) => {
                std::fs::write(container.log_directory().join("state.json"), content).unwrap();
                std::fs::write(container.log_directory().join("exit.json"), content).unwrap();
            }
            None => std::fs::remove_file(container.log_directory().join("state.json")).unwrap(),
        }
        let found = lab.containers.open("one").unwrap();
        assert_eq!(found.state().unwrap().status, Status::Lost);
        eventually("the first process is gone", || is_gone(pid));
        found.delete().unwrap();
        assert!(lab.containers.list().unwrap().is_empty());
        let layout = rswarm_runtime::cgroup::Layout::detect().unwrap();
        let cgroup = rswarm_runtime::cgroup::Cgroup::at(&layout, &request.cgroup);
        assert!(cgroup.members.iter().all(|member| !member.directory.exists()), "{damage:?}");
    }
}

#[test]
fn a_shim_that_does_not_answer_says_nothing_about_its_container() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "sleep 1000")).unwrap();
    container.start().unwrap();
    let pid = container.pid().unwrap();
    let shim = shim_of(pid);
    kill(shim, libc::SIGSTOP);
    let found = lab.containers.find("one").unwrap();
    let begun = std::time::Instant::now();
    let limit = std::time::Duration::from_millis(100);
    // More often than connections can wait for it.
    for _ in 0..80 {
        let error = lab.containers.find("one").unwrap().state_within(limit / 10).unwrap_err();
        assert!(matches!(error, RuntimeError::Control { .. }), "{}", chain(&error));
    }
    assert!(matches!(found.state_within(limit).unwrap_err(), RuntimeError::Control { .. }));
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(found.init_pid().unwrap(), Some(pid));
    kill(shim, libc::SIGCONT);
    assert_eq!(found.state().unwrap().status, Status::Running);
    container.kill(libc::SIGKILL, true).unwrap();
    container.wait().unwrap();
    assert_eq!(found.init_pid().unwrap(), None);
}

#[test]
fn only_root_can_read_what_is_kept_of_a_container() {
    use std::os::unix::fs::PermissionsExt;
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "echo secret")).unwrap();
    container.start().unwrap();
    container.wait().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = container.log_directory();
    assert_eq!((mode(directory), mode(directory.parent().unwrap())), (0o700, 0o700));
    for name in ["config.json", "shim.json", "state.json", "exit.json", "log"] {
        assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
    }
}

#[test]
fn log_is_complete_and_in_order_over_rotations_while_followed() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script("one", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done");
    request.log = LogOptions { max_size_bytes: 8 << 10, max_files: 50, ..LogOptions::default() };
    let container = lab.containers.create(&request).unwrap();
    let mut reader = Reader::open(container.log_directory(), ReadOptions::default()).unwrap();
    let mut lines = Vec::new();
    container.start().unwrap();
    let watch = container.watch().unwrap();
    loop {
        let ended = is_readable(&watch, 0);
        while let Some(record) = reader.next_record().unwrap() {
            lines.push(String::from_utf8(record.line).unwrap());
        }
        if ended {
            break;
        }
    }
    assert_eq!(lines, (0..3000).map(|number| format!("line {number}")).collect::<Vec<_>>());
    assert!(container.log_directory().join("log.3").exists());
}

#[test]
fn much_output_at_the_very_end_is_not_lost() {
    let Some(lab) = Lab::new() else { return };
    let container =
        lab.containers.create(&lab.script("one", "yes 0123456789abcde | head -c 600000")).unwrap();
    container.start().unwrap();
    container.wait().unwrap();
    let text = output(&container);
    assert_eq!(text.len(), 600_000);
    assert!(text.lines().all(|line| line == "0123456789abcde"));
}

#[test]
fn many_containers_at_once_do_not_get_in_each_others_way() {
    let Some(lab) = Lab::new() else { return };
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                for round in 0..5 {
                    let id = format!("c{worker}-{round}");
                    let container =
                        lab.containers.create(&lab.script(&id, &format!("exit {worker}"))).unwrap();
                    container.start().unwrap();
                    assert_eq!(container.wait().unwrap().code, Some(worker));
                    container.delete().unwrap();
                }
            });
        }
    });
    assert!(lab.containers.list().unwrap().is_empty());
}

#[test]
fn a_shim_that_was_stopped_does_not_keep_its_container() {
    let Some(lab) = Lab::new() else { return };
    // It is deleted, ended by force, and ends by itself.
    for round in 0..3 {
        let request = lab.script("one", "sleep 1000 & sleep 1000");
        let container = lab.containers.create(&request).unwrap();
        container.start().unwrap();
        let pid = container.pid().unwrap();
        let shim = shim_of(pid);
        let process = container.watch_process().unwrap().unwrap();
        kill(shim, libc::SIGSTOP);
        assert!(!is_readable(&process, 0), "it runs, whatever its shim does");
        if round == 2 {
            container.signal_past_shim(libc::SIGKILL).unwrap();
            assert!(is_readable(&process, 5));
            let later = lab.containers.find("one").unwrap().watch_process().unwrap().unwrap();
            assert!(is_readable(&later, 0), "an end is seen by whoever comes later, too");
        }
        let silent = container.state_within(std::time::Duration::from_millis(50)).unwrap_err();
        assert!(silent.is_silence(), "{}", chain(&silent));
        if round > 0 {
            container.end_with_shim().unwrap();
            assert_eq!(container.state().unwrap().status, Status::Lost);
            container.signal_past_shim(libc::SIGKILL).unwrap();
        }
        container.delete().unwrap();
        eventually("both processes are gone", || is_gone(pid) && is_gone(shim));
        assert!(!container.log_directory().exists());
        let layout = rswarm_runtime::cgroup::Layout::detect().unwrap();
        let cgroup = rswarm_runtime::cgroup::Cgroup::at(&layout, &request.cgroup);
        assert!(cgroup.members.iter().all(|member| !member.directory.exists()));
    }
}

#[test]
fn deletion_leaves_no_process_directory_or_cgroup() {
    let Some(lab) = Lab::new() else { return };
    let request = lab.script("one", "sleep 1000 & sleep 1000");
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    let pid = container.pid().unwrap();
    let shim = shim_of(pid);
    container.delete().unwrap();
    assert!(is_gone(pid) && is_gone(shim));
    assert!(!container.log_directory().exists());
    let layout = rswarm_runtime::cgroup::Layout::detect().unwrap();
    let cgroup = rswarm_runtime::cgroup::Cgroup::at(&layout, &request.cgroup);
    assert!(cgroup.members.iter().all(|member| !member.directory.exists()));
}
