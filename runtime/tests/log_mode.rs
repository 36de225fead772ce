//! The non-blocking mode of the log: neither a slow disk nor a full one stops the container, and what is lost is said.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::path::Path;

use common::{Lab, chain, eventually, output};
use rswarm_runtime::{Container, CreateRequest, LogOptions, Status};

fn non_blocking(mut request: CreateRequest, buffer_bytes: u64) -> CreateRequest {
    request.log = LogOptions { non_blocking_buffer_bytes: Some(buffer_bytes), ..LogOptions::default() };
    request
}

/// The process that writes the container's log.
fn log_writer(container: &Container) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid().unwrap())).unwrap();
    let shim = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
    let mut found = None;
    // It takes its name when it has come to itself.
    eventually("there is a process for the log", || {
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        let is_it = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "rswarm-log\n")
        };
        found = children.split_whitespace().find(is_it).map(|pid| pid.parse().unwrap());
        found.is_some()
    });
    found.unwrap()
}

fn kill(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// How many bytes the log says were lost, all in all.
fn lost(log: &str) -> u64 {
    let notes = log.lines().filter_map(|line| line.strip_prefix("[rswarm: "));
    notes.map(|note| note.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_log_that_keeps_up_has_every_line_when_the_end_is_told() {
    let Some(lab) = Lab::new() else { return };
    let script = "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; printf 'the rest'";
    for round in 0..5 {
        let (code, text) = lab.run(&non_blocking(lab.script(&format!("c{round}"), script), 1 << 20));
        assert_eq!(code, 0);
        let expected: String = (0..500).map(|number| format!("line {number}\n")).collect();
        assert_eq!(text, expected + "the rest\n");
    }
}

#[test]
fn a_writer_that_waits_for_the_disk_stops_nobody_and_what_is_lost_is_counted() {
    let Some(lab) = Lab::new() else { return };
    // More than the container's pipe, the shim and a buffer of 64 KiB hold together.
    let script = "read go; yes 1234567 | head -n 100000; echo done >/tmp/done; read go; echo after";
    let mut request = non_blocking(lab.script("one", script), 64 << 10);
    request.stdin = true;
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    let writer = log_writer(&container);
    kill(writer, rustix::process::Signal::STOP);
    let attached = container.attach().unwrap();
    let go = || assert_eq!(rustix::io::write(attached.stdin.as_ref().unwrap(), b"\n").unwrap(), 1);
    go();
    let done = lab.directory.path().join("layers/one/upper/tmp/done");
    eventually("the container has said all of it", || done.exists());
    assert_eq!(container.state().unwrap().status, Status::Running, "its shim answers");
    kill(writer, rustix::process::Signal::CONT);
    eventually("what was buffered is written", || output(&container).len() >= 10_000);
    go();
    assert_eq!(container.wait().unwrap().code, Some(0));
    let log = output(&container);
    let whole = log.lines().filter(|line| *line == "1234567").count() as u64;
    assert!((1000..50_000).contains(&whole), "{whole} lines");
    assert!(log.ends_with("after\n"));
    let said = lost(&log);
    assert!(said > 0, "{log}");
    // Lines at the edge of the gap are there in part.
    let in_part: u64 = log
        .lines()
        .filter(|line| !line.starts_with("[rswarm") && *line != "1234567" && *line != "after")
        .map(|line| line.len() as u64)
        .sum();
    let kept = whole * 8 + in_part;
    let all = 100_000 * 8;
    assert!((kept + said).abs_diff(all) <= 16, "{kept} kept and {said} lost of {all}");
}

#[test]
fn a_full_disk_does_not_stop_the_container() {
    let Some(lab) = Lab::new() else { return };
    let place = lab.directory.path().join("containers");
    std::fs::create_dir_all(&place).unwrap();
    let mounted = Mounted::tmpfs(&place, "size=256k");
    for mode in ["blocking", "non-blocking"] {
        let script = "yes 1234567 | head -n 100000; echo done >/tmp/done; exec sleep 1000";
        let mut request = lab.script(mode, script);
        if mode == "non-blocking" {
            request = non_blocking(request, 64 << 10);
        }
        let container = lab.containers.create(&request).unwrap_or_else(|error| panic!("{}", chain(&error)));
        container.start().unwrap();
        let done = lab.directory.path().join(format!("layers/{mode}/upper/tmp/done"));
        eventually("the container has said all of it", || done.exists());
        assert_eq!(container.state().unwrap().status, Status::Running);
        container.delete().unwrap();
    }
    drop(mounted);
}

#[test]
fn a_writer_that_was_killed_is_replaced_by_the_shim() {
    let Some(lab) = Lab::new() else { return };
    let mut request = non_blocking(lab.script("one", "echo before; read go; echo after"), 1 << 20);
    request.stdin = true;
    let container = lab.containers.create(&request).unwrap();
    let attached = container.attach().unwrap();
    container.start().unwrap();
    eventually("the first line is written", || output(&container) == "before\n");
    let writer = log_writer(&container);
    kill(writer, rustix::process::Signal::KILL);
    eventually("it is gone", || !Path::new(&format!("/proc/{writer}")).exists());
    rustix::io::write(attached.stdin.as_ref().unwrap(), b"\n").unwrap();
    container.wait().unwrap();
    assert_eq!(output(&container), "before\nafter\n");
}

#[test]
fn a_buffer_that_cannot_be_had_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let error = lab.containers.create(&non_blocking(lab.script("one", "true"), 1 << 40)).unwrap_err();
    assert!(chain(&error).contains("a buffer of 1099511627776 bytes cannot be had"), "{}", chain(&error));
    assert!(lab.containers.list().unwrap().is_empty());
}

struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, options: &str) -> Self {
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "test"]).arg(at).status();
        assert!(mounted.unwrap().success());
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}
