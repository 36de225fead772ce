//! Claims about the playground: what it shows is there, and it leaves nothing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends a playground whatever happens to the test.
struct Cleanup(&'static str);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = rswarm(&["playground", "down", "--name", self.0], None);
    }
}

fn rswarm(args: &[&str], run_root: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
    command.args(args).stdin(Stdio::null());
    if let Some(run_root) = run_root {
        command.env("RSWARM_RUN_ROOT", run_root);
    }
    command.output().expect("rswarm can be run")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn has_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: `{test}` needs root");
    }
    root
}

/// Everything a playground of this name could have left, by name.
fn leftovers(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for path in [
        format!("/run/rswarm-lab/rswlab-{name}-net"),
        format!("/run/rswarm-lab/rswlab-{name}-1"),
        format!("/var/lib/rswarm-playground/{name}"),
        format!("/run/rswarm-playground/{name}"),
    ] {
        if Path::new(&path).exists() {
            found.push(path);
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("there is a proc");
    let marks = [format!("rswlab-{name}-"), format!("rswarm-playground/{name}/")];
    found.extend(
        mounts.lines().filter(|line| marks.iter().any(|mark| line.contains(mark))).map(str::to_owned),
    );
    for entry in std::fs::read_dir("/proc").expect("there is a proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&marks[1]) {
            found.push(line);
        }
    }
    found
}

#[test]
fn detached_playground_works_until_it_is_taken_down() {
    const NAME: &str = "test-detached";
    if !has_root("detached_playground_works_until_it_is_taken_down") {
        return;
    }
    let _cleanup = Cleanup(NAME);
    let output = rswarm(&["playground", "--detach", "--name", NAME, "--hosts", "3", "--replicas", "4"], None);
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    for slot in 1..=4 {
        assert!(shown.contains(&format!("task:     web.{slot}\n")), "a page of each replica:\n{shown}");
    }
    for words in [
        "rswarm init --advertise-addr",
        "rswarm join --token RSWTKN-1-",
        "revision: 1",
        "peer:     10.",
        "Leader",
    ] {
        assert!(shown.contains(words), "expected `{words}` in:\n{shown}");
    }

    let run_root = format!("/run/rswarm-playground/{NAME}/host-1");
    let nodes = rswarm(&["node", "ls", "-q"], Some(&run_root));
    assert_eq!(String::from_utf8_lossy(&nodes.stdout).lines().count(), 3, "{}", text(&nodes));

    let again = rswarm(&["playground", "--detach", "--name", NAME], None);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("already there"), "{}", text(&again));
    let nodes = rswarm(&["node", "ls", "-q"], Some(&run_root));
    assert!(nodes.status.success(), "the refusal has not touched the first: {}", text(&nodes));

    let down = rswarm(&["playground", "down", "--name", NAME], Some(&run_root));
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(leftovers(NAME), Vec::<String>::new());
    let down = rswarm(&["playground", "down", "--name", NAME], None);
    assert!(down.status.success() && text(&down).contains("no playground"), "{}", text(&down));
}

#[test]
fn interrupted_playground_leaves_nothing() {
    const NAME: &str = "test-interrupt";
    if !has_root("interrupted_playground_leaves_nothing") {
        return;
    }
    // Once when it is up, and once in the middle of it.
    for sign in ["stays up until", "rswarm join"] {
        let _cleanup = Cleanup(NAME);
        let mut child = Command::new(env!("CARGO_BIN_EXE_rswarm"))
            .args(["playground", "--name", NAME, "--hosts", "2", "--replicas", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("rswarm can be run");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut shown = String::new();
        let found = lines.by_ref().map_while(Result::ok).any(|line| {
            shown.push_str(&line);
            shown.push('\n');
            line.contains(sign)
        });
        assert!(found, "expected `{sign}` in:\n{shown}");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
        // Somebody must read what else it says, or it waits for that.
        lines.map_while(Result::ok).for_each(drop);
        let started_at = Instant::now();
        while child.try_wait().expect("it is ours").is_none() {
            assert!(started_at.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(leftovers(NAME), Vec::<String>::new(), "after `{sign}`");
    }
}

#[test]
fn playground_that_was_killed_is_removed_by_name() {
    const NAME: &str = "test-killed";
    if !has_root("playground_that_was_killed_is_removed_by_name") {
        return;
    }
    let _cleanup = Cleanup(NAME);
    let mut child = Command::new(env!("CARGO_BIN_EXE_rswarm"))
        .args(["playground", "--name", NAME, "--hosts", "1", "--replicas", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("rswarm can be run");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("stays up until")));
    child.kill().expect("it runs");
    child.wait().expect("it is ours");
    assert_ne!(leftovers(NAME), Vec::<String>::new(), "nobody has cleaned up yet");
    let down = rswarm(&["playground", "down", "--name", NAME], None);
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(leftovers(NAME), Vec::<String>::new());
}
