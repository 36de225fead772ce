//! Malformed and odd input of the command line: refused by name, and nothing is left of it.
//!
//! Most of it is in tables beside the code (`plan/properties.rs`, `cgroup/check.rs`); here is what takes a real command.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::cli::{Bundle, Runtime, traces};
use common::{Lab, eventually};
use serde_json::{Value, json};

const SLEEP: &str = "while :; do sleep 0.05; done";

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn nobody_runs_as_the_user_that_the_kernel_reads_as_none() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let nobody = u32::MAX;
    for (user, field) in [
        (json!({ "uid": nobody, "gid": 0 }), "`process.user.uid`"),
        (json!({ "uid": 0, "gid": nobody }), "`process.user.gid`"),
        (json!({ "uid": 0, "gid": 0, "additionalGids": [1, nobody] }), "`process.user.additionalGids[1]`"),
    ] {
        let mut bundle = Bundle::new(&lab, "user", "id");
        bundle.config["process"]["user"] = user;
        bundle.write();
        let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
        assert!(answer.code == 1 && answer.errors.contains(field), "{answer:?}");
        assert!(!answer.output.contains("uid="), "{answer:?}");
    }
    // The last that there is.
    let mut bundle = Bundle::new(&lab, "last", SLEEP);
    bundle.config["process"]["user"] = json!({ "uid": nobody - 1, "gid": nobody - 1 });
    bundle.write();
    runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
    assert!(runtime.done(&["exec", "x", "/bin/id"]).starts_with("uid=4294967294 gid=4294967294"));
    let process = lab.directory.path().join("process.json");
    std::fs::write(
        &process,
        r#"{ "cwd": "/", "args": ["/bin/id"], "user": { "uid": 4294967295, "gid": 0 } }"#,
    )
    .unwrap();
    for (options, expected) in [
        (["--user", "4294967295"], "`--user` has the invalid value `4294967295`"),
        (["--user", "0:4294967295"], "`--user` has the invalid value `4294967295`"),
        (["--additional-gids", "4294967295"], "`--additional-gids` has the invalid value `4294967295`"),
        (["--process", process.to_str().unwrap()], "`process.user.uid` has the invalid value `4294967295`"),
        (["--env", "FOO"], "has the invalid value `FOO`: expected `NAME=value`"),
    ] {
        let answer = runtime.call(&[&["exec"], &options[..], &["x", "/bin/id"]].concat());
        assert!(answer.code == 255 && answer.errors.contains(expected), "{options:?}: {answer:?}");
        assert_eq!(answer.output, "", "{options:?}");
    }
}

#[test]
fn files_that_are_none_are_refused_instead_of_waited_for() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let bundle = Bundle::new(&lab, "pipe", "true");
    let config = bundle.path.join("config.json");
    std::fs::remove_file(&config).unwrap();
    mkfifo(&config);
    for command in ["create", "run"] {
        let answer = runtime.call(&[command, "--bundle", bundle.path(), "x"]);
        assert!(
            answer.code == 1 && answer.errors.contains("config.json`: expected a regular file"),
            "{answer:?}"
        );
    }
    // The bundle is not its own root file system.
    let mut bundle = Bundle::new(&lab, "root", "true");
    bundle.config["root"]["path"] = "".into();
    bundle.write();
    let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
    assert!(
        answer.errors.contains("`root.path` has the invalid value ``: expected a directory"),
        "{answer:?}"
    );
    assert_eq!(std::fs::read_dir(&bundle.path).unwrap().count(), 1, "something was made in the bundle");
}

#[test]
fn global_flags_are_checked_before_the_command_is_run() {
    let Some(lab) = Lab::new() else { return };
    for runtime in [Some(Runtime::ours(&lab)), Runtime::peer(&lab)].into_iter().flatten() {
        let bundle = Bundle::new(&lab, runtime.name, "true");
        for (flags, expected) in [(["--log", "/nope/x"], "/nope/x"), (["--rootless", "x"], "x")] {
            let answer = runtime.call(&[&flags[..], &["run", "--bundle", bundle.path(), "x"]].concat());
            assert!(answer.code == 1 && answer.errors.contains(expected), "{}: {answer:?}", runtime.name);
        }
        for word in ["auto", "Auto", "true", "0"] {
            let answer = runtime.call(&["--rootless", word, "list", "-q"]);
            assert_eq!(answer.code, 0, "{} {word}: {answer:?}", runtime.name);
        }
    }
}

#[test]
fn no_limit_of_processes_is_the_one_that_is_there() {
    let Some(lab) = Lab::new() else { return };
    for runtime in [Some(Runtime::ours(&lab)), Runtime::peer(&lab)].into_iter().flatten() {
        let mut bundle = Bundle::new(&lab, runtime.name, SLEEP);
        bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 7 } });
        bundle.write();
        runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
        let resources = lab.directory.path().join("resources.json");
        std::fs::write(&resources, r#"{ "pids": { "limit": 0 } }"#).unwrap();
        runtime.done(&["update", "--pids-limit", "0", "x"]);
        runtime.done(&["update", "--resources", resources.to_str().unwrap(), "x"]);
        let events: Value = serde_json::from_str(&runtime.done(&["events", "--stats", "x"])).unwrap();
        assert_eq!(events["data"]["pids"]["limit"], 7, "{}", runtime.name);
        runtime.done(&["delete", "--force", "x"]);
    }
    let runtime = Runtime::ours(&lab);
    let bundle = Bundle::new(&lab, "odd", SLEEP);
    runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
    let resources = lab.directory.path().join("resources.json");
    std::fs::write(&resources, r#"{ "cpu": { "quota": "1" } }"#).unwrap();
    for (options, expected) in [
        (["--resources", resources.to_str().unwrap()], "is not valid: `cpu.quota` has the invalid value"),
        (
            ["--cpu-quota", "1"],
            "`linux.resources.cpu.quota` has the invalid value `1`: expected at least 1000",
        ),
        (["--cpuset-cpus", "x"], "`linux.resources.cpu.cpus` has the invalid value `x`"),
    ] {
        let answer = runtime.call(&[&["update"], &options[..], &["x"]].concat());
        assert!(answer.code == 1 && answer.errors.contains(expected), "{options:?}: {answer:?}");
    }
}

/// Directories of the lab's cgroups, of all hierarchies.
fn cgroups(lab: &Lab) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    mounts.map(|mount| PathBuf::from(format!("{mount}{}", lab.cgroup))).filter(|path| path.exists()).collect()
}

#[test]
fn a_creation_that_is_killed_on_the_way_leaves_nothing_once_it_is_deleted() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    std::fs::create_dir(&runtime.root).unwrap();
    // An agent that never answers: the creator waits for it, and has made the cgroups by then.
    let agent = lab.directory.path().join("agent");
    let listener = UnixListener::bind(&agent).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let waiting: Vec<_> = (0..2).map_while(|_| connect(&agent)).collect();
    let maps = json!([{ "containerID": 0, "hostID": 0, "size": 1000 }]);
    let mut bundle = Bundle::new(&lab, "cut/short", "true");
    let linux = &mut bundle.config["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    linux["uidMappings"] = maps.clone();
    linux["gidMappings"] = maps;
    linux["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": agent,
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }],
    });
    bundle.write();
    for options in [&["delete", "--force", "x"][..], &["delete", "x"]] {
        let before = traces(&lab);
        let mut creator = runtime.command(&["create", "--bundle", bundle.path(), "x"]);
        let mut creator = creator.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let all = cgroups_of_host();
        eventually("the cgroups are made", || cgroups(&lab).len() == all && is_waiting(creator.id()));
        creator.kill().unwrap();
        creator.wait().unwrap();
        assert!(runtime.root.join("x").exists() && !cgroups(&lab).is_empty());
        // Without force it has never been there, as with runc.
        let answer = runtime.call(options);
        assert_eq!(answer.code, i32::from(options.len() == 2), "{answer:?}");
        let left: BTreeSet<_> = traces(&lab).difference(&before).cloned().collect();
        assert_eq!((left, cgroups(&lab)), Default::default(), "{options:?}");
    }
    drop(waiting);
}

#[test]
fn a_first_process_that_nobody_has_recorded_ends_with_its_creator() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let bundle = Bundle::new(&lab, "early", "true");
    for attempt in 0..500 {
        let id = format!("x{attempt}");
        let mut creator = runtime.command(&["create", "--bundle", bundle.path(), &id]);
        let mut creator = creator.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = creator.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let first = || -> Option<u32> { std::fs::read_to_string(&children).ok()?.trim().parse().ok() };
        let first = std::iter::repeat_with(first).find_map(|found| found.or(gone(pid).then_some(0))).unwrap();
        // Stopped before it has written down what it has made? Then the first process goes as far as it can alone.
        let creator_pid = rustix::process::Pid::from_child(&creator);
        rustix::process::kill_process(creator_pid, rustix::process::Signal::STOP).unwrap();
        eventually("the creator stands still", || gone(pid) || state(pid) == Some('T'));
        let early =
            first != 0 && state(pid) == Some('T') && !runtime.root.join(&id).join("state.json").exists();
        if early {
            eventually("the first process waits", || {
                let call = std::fs::read_to_string(format!("/proc/{first}/syscall")).unwrap_or_default();
                let number = |call: i64| format!("{call} ");
                [libc::SYS_recvfrom, libc::SYS_accept4].iter().any(|one| call.starts_with(&number(*one)))
                    && std::fs::read_to_string(format!("/proc/{first}/status"))
                        .is_ok_and(|status| status.contains("CapBnd:\t00000000a80425fb"))
            });
        }
        creator.kill().unwrap();
        creator.wait().unwrap();
        if early {
            eventually("the first process has ended", || gone(first));
            assert_eq!(runtime.call(&["delete", "--force", &id]).code, 0);
            // Those above may be of an attempt before, and such are left for others.
            assert!(cgroups(&lab).iter().all(|above| !above.join("early").exists()));
            return;
        }
        runtime.done(&["delete", "--force", &id]);
    }
    eprintln!("skipped: the creator could not be stopped in time");
}

/// The letter of a process's state.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn gone(pid: u32) -> bool {
    matches!(state(pid), None | Some('Z' | 'X'))
}

/// A connection, unless the listener's queue is full.
fn connect(path: &Path) -> Option<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).ok().map(|()| socket)
}

fn cgroups_of_host() -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(" - cgroup")).count()
}

/// Whether it sleeps in a call for a connection.
fn is_waiting(pid: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.starts_with(&format!("{} ", libc::SYS_connect))
}
