//! `rswarm exec` and `rswarm attach`: commands in tasks and tasks' own streams, as a user has them. The image is a busybox.

use std::io::{Read, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rswarm_cluster_tests::ClusterLab;

const SOON: Duration = Duration::from_secs(15);
const BUSYBOX: &str = "/bin/busybox";
const IMAGE: &str = "shell:1";

/// A manager and `workers` more nodes, the last of which runs the task `shell.1`.
fn lab(name: &str, workers: usize) -> Option<ClusterLab> {
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs {BUSYBOX} (Debian package busybox-static)");
        return None;
    }
    let lab = ClusterLab::form(name, 1, workers)?;
    let last = workers + 1;
    let archive = archive(&lab.config().data_dir);
    lab.ok(last, &["image", "import", &archive.to_string_lossy(), IMAGE]);
    let place = format!("node.hostname=={}", lab.host(last).name);
    let service =
        ["service", "create", "--detach", "--name", "shell", "--constraint", &place, "--no-resolve-image"];
    lab.ok(1, &[&service[..], &[IMAGE, "sleep", "100000"]].concat());
    lab.until_running(1, "shell", 1, SOON);
    Some(lab)
}

fn archive(directory: &Path) -> PathBuf {
    let root = directory.join("shell");
    for name in ["bin", "etc", "tmp", "proc", "sys", "dev", "home"] {
        std::fs::create_dir_all(root.join(name)).expect("it can be filled");
    }
    std::fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox can be copied");
    for name in ["sh", "sleep", "cat", "id", "pwd", "stty", "wc", "yes", "kill", "head"] {
        symlink("busybox", root.join("bin").join(name)).expect("links can be made");
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\njoe:x:7:8::/home:/bin/sh\n")
        .expect("passwd");
    std::fs::write(root.join("etc/group"), "staff:x:50:joe\n").expect("group");
    let archive = directory.join("shell.tar");
    let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status();
    assert!(packed.expect("tar can be run").success());
    archive
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn exec(lab: &ClusterLab, host: usize, args: &[&str]) -> (Option<i32>, String, String) {
    let output = lab.rswarm(host, &[&["exec"], args].concat());
    (output.code, output.stdout, output.stderr)
}

/// The same with something on standard input.
fn exec_with(lab: &ClusterLab, args: &[&str], input: &[u8]) -> Output {
    let mut command = lab.host(1).rswarm([&["exec"], args].concat()).expect("the host is there");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("rswarm can be run");
    let mut stdin = child.stdin.take().expect("it has one");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("rswarm can be waited for");
    writer.join().expect("the writer does not panic");
    output
}

#[test]
fn commands_run_in_a_task_and_their_ends_are_told() {
    let Some(lab) = lab("exec", 0) else { return };
    let said = |out: &str, err: &str, code| (Some(code), out.to_owned(), err.to_owned());
    let script = "echo out; echo err >&2; exit 7";
    assert_eq!(exec(&lab, 1, &["shell.1", "sh", "-c", script]), said("out\n", "err\n", 7));
    let id = lab.ok(1, &["service", "ps", "-q", "shell"]);
    let id = id.trim();
    for name in [id, &id[..8]] {
        assert_eq!(exec(&lab, 1, &[name, "sh", "-c", "kill -9 $$"]), said("", "", 137));
    }
    let script = "id -u; id -g; id -G; pwd; echo $HOME $A $B";
    let flags = ["-u", "joe", "-w", "/etc", "-e", "A=1", "-e", "NOT_SET_HERE", "--env", "B=x y"];
    let found = exec(&lab, 1, &[&flags[..], &["shell.1", "sh", "-c", script]].concat());
    assert_eq!(found, said("7\n8\n8 50\n/etc\n/home 1 x y\n", "", 0));
    // A home that was given to the service is that of all its commands.
    let service =
        ["service", "create", "--detach", "--name", "home", "--env", "HOME=/given", "--no-resolve-image"];
    lab.ok(1, &[&service[..], &[IMAGE, "sleep", "100000"]].concat());
    lab.until_running(1, "home", 1, SOON);
    for (flags, home) in [(&[][..], "/given\n"), (&["-u", "joe"], "/given\n"), (&["-e", "HOME=/x"], "/x\n")] {
        let found = exec(&lab, 1, &[flags, &["home.1", "sh", "-c", "echo $HOME"]].concat());
        assert_eq!(found, said(home, "", 0), "{flags:?}");
    }
    // Without -i there is no input.
    assert_eq!(exec(&lab, 1, &["shell.1", "cat"]), said("", "", 0));
    let long = "0123456789abcde\n".repeat(100_000);
    let output = exec_with(&lab, &["-i", "shell.1", "cat"], long.as_bytes());
    assert_eq!(
        (output.status.code(), text(&output.stdout) == long),
        (Some(0), true),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(exec(&lab, 1, &["-d", "shell.1", "sh", "-c", "echo gone >/tmp/said"]), said("", "", 0));
    lab.wait("the detached command has written", SOON, || {
        match exec(&lab, 1, &["shell.1", "cat", "/tmp/said"]) {
            (Some(0), found, _) if found == "gone\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn what_cannot_run_is_told_apart() {
    let Some(lab) = lab("execbad", 1) else { return };
    // Where the task is: a worker, which holds nothing of the cluster's state.
    for (args, code, words) in [
        (&["shell.1", "nope"][..], 127, "exec `nope` (searched in"),
        (&["shell.1", "/bin/nope"], 127, "exec `/bin/nope`: no such file or directory"),
        (&["shell.1", "/etc/passwd"], 126, "exec `/etc/passwd`: permission denied"),
        (&["-w", "/nowhere", "shell.1", "id"], 127, "`/nowhere`"),
        (&["-u", "nobody", "shell.1", "id"], 1, "unable to find user `nobody`"),
        (&["-e", "=x", "shell.1", "id"], 1, "invalid variable `=x`: expected KEY=VALUE or KEY"),
        (&["--privileged", "shell.1", "id"], 1, "--privileged is not supported"),
        (&["-it", "shell.1", "id"], 1, "standard input is no terminal"),
        (&["-i", "--detach-keys", "ctrl-x", "shell.1", "id"], 1, "--tty"),
        (&["shell.2", "id"], 1, "no task `shell.2` on this node"),
        (&["--nope", "shell.1", "id"], 125, "--nope"),
        (&["shell.1"], 1, "COMMAND"),
    ] {
        let (found, _, said) = exec(&lab, 2, args);
        assert!(found == Some(code) && said.contains(words), "{args:?}: {found:?}, {said}");
    }
    let (code, _, said) = exec(&lab, 1, &["shell.1", "id"]);
    let elsewhere = format!("task `shell.1` is not on this node but on `{}`", lab.host(2).name);
    assert!(code == Some(1) && said.contains(&elsewhere), "{code:?}, {said}");
}

#[test]
fn a_command_outlives_the_daemon_and_needs_none() {
    let Some(mut lab) = lab("execcrash", 0) else { return };
    let mut command = lab.host(1).rswarm(["exec", "-i", "shell.1", "sh", "-c", "echo up; read a; exit $a"]);
    let command = command.as_mut().expect("the host is there");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("rswarm can be run");
    let mut up = [0; 3];
    child.stdout.as_mut().expect("it has one").read_exact(&mut up).expect("it says that it is up");
    lab.crash(1);
    let (code, said, _) = exec(&lab, 1, &["shell.1", "sh", "-c", "echo without a daemon"]);
    assert_eq!((code, said.as_str()), (Some(0), "without a daemon\n"));
    let mut stdin = child.stdin.take().expect("it has one");
    stdin.write_all(b"5\n").expect("it can be written to");
    assert_eq!(child.wait().expect("it can be waited for").code(), Some(5));
    lab.start(1);
    lab.until_running(1, "shell", 1, SOON);
}

#[test]
fn signals_and_a_reader_that_has_gone_reach_the_command() {
    let Some(lab) = lab("execsig", 0) else { return };
    for (number, code) in [("INT", 3), ("TERM", 4)] {
        let script = "trap 'exit 3' INT; trap 'exit 4' TERM; echo up; while :; do sleep 0.01; done";
        let mut command =
            lab.host(1).rswarm(["exec", "shell.1", "sh", "-c", script]).expect("the host is there");
        let mut child = command.stdout(Stdio::piped()).spawn().expect("rswarm can be run");
        let mut up = [0; 3];
        child.stdout.as_mut().expect("it has one").read_exact(&mut up).expect("it says that it is up");
        let sent = Command::new("kill").arg(format!("-{number}")).arg(child.id().to_string()).status();
        assert!(sent.expect("kill can be run").success());
        assert_eq!(child.wait().expect("it can be waited for").code(), Some(code), "{number}");
    }
    let mut command = lab.host(1).rswarm(["exec", "shell.1", "yes"]).expect("the host is there");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("rswarm can be run");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it can be waited for").code(), Some(141));
}

/// `rswarm WORDS` on a terminal, which `script` gives it.
fn on_terminal(lab: &ClusterLab, words: &str) -> Command {
    let host = lab.host(1);
    let rswarm = host.rswarm([""; 0]).expect("the host is there");
    let line = format!("stty rows 33 cols 99; {} {words}", rswarm.get_program().to_string_lossy());
    let mut command = host.command("script").expect("the host is there");
    command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
    command.env("RSWARM_DATA_ROOT", &host.data_root).env("RSWARM_RUN_ROOT", &host.run_root);
    command
}

#[test]
fn a_terminal_is_passed_through_and_services_have_theirs() {
    if Command::new("script").arg("--version").output().is_err() {
        return eprintln!("skipped: needs script (Debian package bsdutils)");
    }
    let Some(lab) = lab("exectty", 0) else { return };
    let mut command = on_terminal(&lab, "exec -it shell.1 sh -c 'stty size; echo $TERM; exit 5'");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script can be run");
    // An end of input would be typed by `script`, and shown.
    let stdin = child.stdin.take();
    let output = child.wait_with_output().expect("it can be waited for");
    drop(stdin);
    assert!(text(&output.stdout).contains("33 99\r\nxterm\r\n"), "{}", text(&output.stdout));
    assert_eq!(output.status.code(), Some(5));
    // Ctrl-C is a key like any other here, and what it means is up to the terminal there.
    let script = "'trap \"exit 6\" INT; echo up; while :; do sleep 0.01; done'";
    let mut command = on_terminal(&lab, &format!("exec -it shell.1 sh -c {script}"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script can be run");
    let mut up = [0; 2];
    child.stdout.as_mut().expect("it has one").read_exact(&mut up).expect("it says that it is up");
    assert_eq!(&up, b"up");
    child.stdin.as_mut().expect("it has one").write_all(b"\x03").expect("it can be written to");
    assert_eq!(child.wait().expect("it can be waited for").code(), Some(6));

    let service = ["service", "create", "--detach", "--name", "tty", "--tty", "--no-resolve-image"];
    let log = ["--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=64k"];
    let words = [IMAGE, "sh", "-c", "test -t 0 && test -t 1 && echo a terminal for $TERM; exec sleep 100000"];
    lab.ok(1, &[&service[..], &log, &words].concat());
    lab.until_running(1, "tty", 1, SOON);
    lab.wait("its log says so", SOON, || {
        let said = lab.ok(1, &["service", "logs", "--raw", "tty"]);
        if said == "a terminal for xterm\r\n" { Ok(()) } else { Err(said) }
    });
    let format = "{{.Spec.TaskTemplate.ContainerSpec.TTY}} {{json .Spec.TaskTemplate.LogDriver.Options}}";
    let shown = lab.ok(1, &["service", "inspect", "--format", format, "tty"]);
    assert!(shown.starts_with("true {"), "{shown}");
    assert!(
        shown.contains(r#""mode":"non-blocking""#) && shown.contains(r#""max-buffer-size":"65536""#),
        "{shown}"
    );
    lab.ok(1, &["service", "update", "--detach", "--tty=false", "tty"]);
    let format = "{{json .Spec.TaskTemplate.ContainerSpec}}";
    assert!(!lab.ok(1, &["service", "inspect", "--format", format, "tty"]).contains("TTY"));
}

/// What comes, up to and with `end`.
fn read_until(from: &mut impl Read, end: &str) -> String {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(end.as_bytes()) {
        match from.read(&mut byte) {
            Ok(1) => all.push(byte[0]),
            other => panic!("expected `{end}`, found {other:?} after {}", text(&all)),
        }
    }
    text(&all)
}

fn attach(lab: &ClusterLab, args: &[&str]) -> Child {
    let mut command = lab.host(1).rswarm([&["attach"], args].concat()).expect("the host is there");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("rswarm can be run")
}

fn terminate(child: &Child) {
    let sent = Command::new("kill").arg(child.id().to_string()).status();
    assert!(sent.expect("kill can be run").success());
}

#[test]
fn attached_one_sees_what_a_task_writes_and_how_it_ends() {
    let Some(mut lab) = lab("attach", 0) else { return };
    let script = "trap 'echo bye >&2; exit 5' TERM; while :; do echo tick; sleep 0.05; done";
    let service = ["service", "create", "--detach", "--name", "talk", "--restart-condition", "none"];
    lab.ok(1, &[&service[..], &["--no-resolve-image", IMAGE, "sh", "-c", script]].concat());
    lab.until_running(1, "talk", 1, SOON);
    // Signals go no further if one says so, and whoever goes is not missed.
    let mut deaf = attach(&lab, &["--sig-proxy=false", "talk.1"]);
    read_until(deaf.stdout.as_mut().expect("it has one"), "tick\n");
    terminate(&deaf);
    assert_eq!(deaf.wait().expect("it can be waited for").code(), Some(128 + 15));
    let mut short = attach(&lab, &["talk.1"]);
    drop(short.stdout.take());
    assert_eq!(short.wait().expect("it can be waited for").code(), Some(0));
    lab.crash(1);
    let (mut one, mut other) = (attach(&lab, &["talk.1"]), attach(&lab, &["talk.1"]));
    for child in [&mut one, &mut other] {
        read_until(child.stdout.as_mut().expect("it has one"), "tick\n");
    }
    terminate(&one);
    for child in [one, other] {
        let output = child.wait_with_output().expect("it can be waited for");
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(5), "bye\n"));
    }
    lab.start(1);
    let ended = attach(&lab, &["talk.1"]).wait_with_output().expect("it can be waited for");
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("task `talk.1` is not running"), "{}", text(&ended.stderr));
}

#[test]
fn a_terminal_is_typed_into_and_left() {
    if Command::new("script").arg("--version").output().is_err() {
        return eprintln!("skipped: needs script (Debian package bsdutils)");
    }
    let Some(lab) = lab("attachtty", 0) else { return };
    let script = "while read line; do echo \"got $line at $(stty size)\"; done";
    let service = ["service", "create", "--detach", "--name", "tty", "--tty", "--no-resolve-image"];
    lab.ok(1, &[&service[..], &[IMAGE, "sh", "-c", script]].concat());
    lab.until_running(1, "tty", 1, SOON);
    for (words, typed) in [
        ("attach tty.1", "\x10\x11"),
        ("attach --detach-keys ctrl-x,x tty.1", "\x18x"),
        (&format!("exec -it --detach-keys ctrl-x,x tty.1 sh -c '{script}'"), "\x18x"),
    ] {
        let mut command = on_terminal(&lab, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("script can be run");
        let (mut input, mut output) = (child.stdin.take().expect("one"), child.stdout.take().expect("one"));
        input.write_all(b"word\r").expect("it can be written to");
        read_until(&mut output, "got word at 33 99\r\n");
        input.write_all(typed.as_bytes()).expect("it can be written to");
        read_until(&mut output, "read escape sequence");
        assert_eq!(child.wait().expect("it can be waited for").code(), Some(1));
    }
    lab.until_running(1, "tty", 1, SOON);
    let refused = attach(&lab, &["tty.1"]).wait_with_output().expect("it can be waited for");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("use --no-stdin"), "{}", text(&refused.stderr));
}
