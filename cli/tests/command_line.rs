//! What the command line does without a daemon: help, versions, bad flags, and the daemon's own refusals to start.

use std::process::{Command, Output, Stdio};

fn rswarm(args: &[&str]) -> Output {
    let nowhere = tempfile::tempdir().expect("a temporary directory can be made");
    Command::new(env!("CARGO_BIN_EXE_rswarm"))
        .args(args)
        .stdin(Stdio::null())
        .env("DOCKER_CONFIG", nowhere.path())
        .env("RSWARM_RUN_ROOT", nowhere.path().join("run"))
        .env("RSWARM_DATA_ROOT", nowhere.path().join("data"))
        .output()
        .expect("rswarm can be run")
}

#[track_caller]
fn check(args: &[&str], code: i32, words: &[&str]) {
    let output = rswarm(args);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?} does not say `{word}`: {text}");
    }
}

#[test]
fn help_and_version_need_no_daemon() {
    check(&["--help"], 0, &["init", "join", "service", "node"]);
    check(&["service", "create", "--help"], 0, &["--replicas", "IMAGE"]);
    check(&["--version"], 0, &["rswarm", env!("CARGO_PKG_VERSION")]);
    check(&["version"], 1, &["Client:", "cannot reach the daemon"]);
    let own = env!("CARGO_PKG_VERSION");
    check(&["version", "--format", "{{.Client.Version}}"], 1, &[own, "cannot reach the daemon"]);
    check(&["version", "--format", "json"], 1, &[&format!(r#""Version":"{own}""#), r#""Server":null"#]);
}

#[test]
fn global_options_stand_apart_from_a_command_s_own() {
    let output = rswarm(&["node", "ls", "--help"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (own, global) = text.split_once("Which daemon").expect("they have a heading of their own");
    assert!(own.contains("--filter") && !own.contains("--data-root"), "{text}");
    assert!(global.contains("--data-root") && global.contains("--run-root"), "{text}");
    check(&["service", "ps"], 1, &["Usage: rswarm service ps <SERVICES>..."]);
}

#[test]
fn exit_codes_tell_bad_flags_from_failures() {
    check(&["node", "ls", "--nope"], 125, &["--nope"]);
    check(&["service", "create", "--replicas", "-1", "x"], 125, &["-1"]);
    check(&["service", "create", "--replicas", "many", "x"], 125, &["many"]);
    check(&["node", "update", "--availability", "sleepy", "n"], 125, &["sleepy", "active, pause, drain"]);
    check(&["init", "--default-addr-pool", "10.0.0.1/8"], 125, &["10.0.0.1/8", "expected a subnet"]);
    check(&["init", "--insecure-registry", "http://x"], 125, &["http://x", "HOST:PORT"]);
    check(&["service", "create"], 1, &["IMAGE"]);
    check(&["node", "rm"], 1, &["NODES"]);
    check(&["exec", "--nope", "web.1", "ls"], 125, &["--nope"]);
    check(&["exec", "web.1"], 1, &["COMMAND"]);
    check(&["nope"], 1, &["nope"]);
}

#[test]
fn image_commands_say_what_they_take() {
    for (command, word) in [("pull", "[host[:port]/]name[:tag]"), ("import", "`name[:tag]`")] {
        let output = rswarm(&["image", command, "--help"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(word) && !text.contains("[default: ]"), "{text}");
        assert!(!text.contains(r#"[default: ""]"#), "{text}");
    }
    check(
        &["image", "ls", "--help"],
        0,
        &["--all", "--digests", "dangling=true|false", "[REPOSITORY[:TAG]]"],
    );
    check(&["image", "ls", "-a", "--filter", "nope"], 1, &["`nope`: expected key=value"]);
}

/// The test's commands have no terminal.
#[test]
fn login_without_a_terminal_says_how() {
    check(&["login", "-u", "joe", "host:5000"], 1, &["no terminal", "the password", "--password-stdin"]);
    check(&["login", "host:5000"], 1, &["no terminal", "the user name", "--username"]);
}

#[test]
fn without_a_daemon_the_socket_and_the_way_out_are_named() {
    check(&["node", "ls"], 1, &["cannot reach the daemon at", "rswarm.sock", "rswarm init"]);
    check(&["ping"], 1, &["cannot reach the daemon"]);
    check(&["exec", "web.1", "ls", "-l"], 1, &["no task `web.1` on this node", "cannot reach the daemon"]);
}

#[test]
fn a_data_root_that_cannot_be_used_is_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    check(&["--data-root", "/proc/nope", "daemon"], 1, &["/proc/nope"]);
    check(&["--data-root", "/dev/null", "daemon"], 1, &["/dev/null"]);
}
