//! More processes in a running container, over its shim's socket.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use common::{Lab, chain, eventually, first_line, read_until};
use rswarm_runtime::{
    Container, Containers, ExecRequest, ExecUser, RuntimeError, Session, Streams, TerminalSize,
};

fn running(lab: &Lab, script: &str) -> Container {
    let container = lab.containers.create(&lab.script("one", script)).unwrap();
    container.start().unwrap();
    container
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest { args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..ExecRequest::default() }
}

fn exec(container: &Container, request: &ExecRequest) -> Session {
    container.exec(request).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn text_of(end: OwnedFd) -> String {
    let mut text = String::new();
    File::from(end).read_to_string(&mut text).unwrap();
    text
}

/// Everything a session without input says, and its exit code as a shell gives it.
fn outcome(session: Session) -> (i32, String, String) {
    let code = session.wait().unwrap().shell_code();
    let Streams::Pipes { stdin, stdout, stderr } = session.streams else { panic!("it has a terminal") };
    drop(stdin);
    (code, text_of(stdout), text_of(stderr))
}

fn write(stdin: Option<&OwnedFd>, text: &str) {
    assert_eq!(rustix::io::write(stdin.unwrap(), text.as_bytes()).unwrap(), text.len());
}

#[test]
fn a_command_runs_with_the_rights_of_the_container_and_its_end_is_told() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "echo mine >/tmp/file; exec sleep 1000");
    eventually("the container has written its file", || {
        outcome(exec(&container, &shell("cat /tmp/file 2>/dev/null"))).1 == "mine\n"
    });
    let (code, stdout, stderr) = outcome(exec(&container, &shell("echo out; echo err >&2; exit 7")));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (7, "out\n", "err\n"));
    let show = "for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done; \
                cat /proc/self/cgroup; grep -e Cap -e Seccomp -e NoNew /proc/self/status";
    let (_, own, _) = outcome(exec(&container, &shell(&show.replace("self", "1"))));
    let (_, new, _) = outcome(exec(&container, &shell(show)));
    assert_eq!(own, new);
    assert!(own.contains("Seccomp:\t2"), "{own}");
    // Nothing of the shim's is there: `.`, `..`, 0, 1, 2 and the directory itself.
    assert_eq!(outcome(exec(&container, &shell("ls -a /proc/self/fd | wc -l"))).1, "6\n");
    container.delete().unwrap();
}

#[test]
fn what_the_request_says_takes_effect() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    let request = ExecRequest {
        env: vec!["A=1".to_owned(), "A=2".to_owned()],
        cwd: Some("/etc".into()),
        user: Some(ExecUser { uid: 7, gid: 8, additional_gids: vec![9] }),
        ..shell("readlink /proc/self/cwd; echo $A; id -u; id -g; id -G")
    };
    assert_eq!(outcome(exec(&container, &request)).1, "/etc\n2\n7\n8\n8 9\n");
    let mut echo = exec(&container, &ExecRequest { args: vec!["cat".to_owned()], ..ExecRequest::default() });
    let Streams::Pipes { stdin, stdout, .. } = &mut echo.streams else { panic!("it has a terminal") };
    write(stdin.as_ref(), "there and back\n");
    assert_eq!(first_line(stdout), "there and back");
    drop(stdin.take());
    assert_eq!(outcome(echo), (0, String::new(), String::new()));
    // Longer than a message to the shim may be.
    let long = "x".repeat(100_000);
    let request = ExecRequest { env: vec![format!("LONG={long}")], ..shell("echo ${#LONG}") };
    assert_eq!(outcome(exec(&container, &request)).1, "100000\n");
    container.delete().unwrap();
}

#[test]
fn a_command_that_cannot_run_says_why() {
    let Some(lab) = Lab::new() else { return };
    std::fs::write(lab.layer().join("etc/plain"), "x").unwrap();
    let container = running(&lab, "exec sleep 1000");
    let refused = |request: &ExecRequest| match container.exec(request).unwrap_err() {
        RuntimeError::Exec { source, .. } => (source.errno(), source.to_string()),
        other => panic!("{}", chain(&other)),
    };
    let program = |name: &str| ExecRequest { args: vec![name.to_owned()], ..ExecRequest::default() };
    assert_eq!(
        refused(&program("/bin/nope")),
        (Some(libc::ENOENT), "exec `/bin/nope`: no such file or directory".to_owned())
    );
    assert_eq!(refused(&program("/etc/plain")).0, Some(libc::EACCES));
    let nowhere = ExecRequest { cwd: Some("/nowhere".into()), ..shell("true") };
    assert!(refused(&nowhere).1.contains("`/nowhere`"), "{:?}", refused(&nowhere));
    let relative = ExecRequest { cwd: Some("etc".into()), ..shell("true") };
    assert!(refused(&relative).1.contains("expected an absolute path"), "{:?}", refused(&relative));
    assert!(refused(&ExecRequest::default()).1.contains("process.args"));
    // Nothing of all that is left: neither in the container nor at the shim.
    assert_eq!(outcome(exec(&container, &shell("set -- /proc/[0-9]*; echo $#"))).1, "2\n");
    container.kill(libc::SIGKILL, true).unwrap();
    container.wait().unwrap();
    let late = container.exec(&shell("true")).unwrap_err();
    assert!(chain(&late).ends_with("is exited, expected running"), "{}", chain(&late));
}

#[test]
fn a_container_that_was_not_started_takes_no_commands() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "sleep 1000")).unwrap();
    let early = container.exec(&shell("true")).unwrap_err();
    assert_eq!(chain(&early), "container `one` is created, expected running");
}

#[test]
fn many_commands_run_at_once_and_each_is_told_its_own_end() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    let sessions: Vec<(i32, Session)> = (0..60)
        .map(|number| (number, exec(&container, &shell(&format!("read line; echo $line; exit {number}")))))
        .collect();
    for (number, session) in sessions.into_iter().rev() {
        let Streams::Pipes { stdin, stdout, .. } = &session.streams else { panic!("it has a terminal") };
        write(stdin.as_ref(), &format!("line {number}\n"));
        assert_eq!(first_line(stdout), format!("line {number}"));
        assert_eq!(session.wait().unwrap().code, Some(number));
    }
    // And short ones from several threads, whose ends come while others begin.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let container = &container;
            scope.spawn(move || {
                for number in 0..25 {
                    let code = thread * 25 + number;
                    assert_eq!(outcome(exec(container, &shell(&format!("exit {code}")))).0, code);
                }
            });
        }
    });
    container.delete().unwrap();
}

#[test]
fn signals_reach_the_command_and_how_it_was_killed_is_told() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    let session =
        exec(&container, &shell("trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.01; done"));
    let Streams::Pipes { stdout, .. } = &session.streams else { panic!("it has a terminal") };
    assert_eq!(first_line(stdout), "ready");
    session.signal(libc::SIGTERM).unwrap();
    assert_eq!(first_line(stdout), "caught");
    assert_eq!(session.wait().unwrap().code, Some(3));
    let session = exec(&container, &shell("exec sleep 1000"));
    session.signal(libc::SIGKILL).unwrap();
    assert_eq!(session.wait().unwrap().signal, Some(libc::SIGKILL));
    container.delete().unwrap();
}

#[test]
fn a_terminal_has_the_size_it_is_given_and_takes_another() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    let request = ExecRequest {
        terminal: Some(TerminalSize { columns: 91, rows: 17 }),
        ..shell("trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.01; done")
    };
    let session = exec(&container, &request);
    let Streams::Terminal(master) = &session.streams else { panic!("it has pipes") };
    assert_eq!(read_until(master, "ready\r\n"), "17 91\r\nready\r\n");
    session.resize(TerminalSize { columns: 60, rows: 40 }).unwrap();
    assert_eq!(read_until(master, "\n"), "40 60\r\n");
    // Ctrl-C.
    rustix::io::write(master, b"\x03").unwrap();
    assert_eq!(session.wait().unwrap().shell_code(), 130);
    container.delete().unwrap();
}

/// As with Docker.
#[test]
fn a_command_goes_on_without_its_client() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    // More than any pipe or terminal holds: somebody has to take it.
    let script =
        |name| format!("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo $? >/tmp/{name}");
    for (name, terminal) in [("pipes", None), ("terminal", Some(TerminalSize::default()))] {
        drop(exec(&container, &ExecRequest { terminal, ..shell(&script(name)) }));
        let there = lab.directory.path().join("layers/one/upper/tmp").join(name);
        eventually("the command is done", || std::fs::read_to_string(&there).is_ok_and(|text| text == "0\n"));
    }
    container.delete().unwrap();
}

#[test]
fn sessions_end_with_the_container() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    let sessions: Vec<Session> = (0..5).map(|_| exec(&container, &shell("exec sleep 1000"))).collect();
    container.kill(libc::SIGKILL, false).unwrap();
    for session in sessions {
        assert_eq!(session.wait().unwrap().signal, Some(libc::SIGKILL));
    }
    assert_eq!(container.wait().unwrap().signal, Some(libc::SIGKILL));
}

/// Its shim is the parent of the command, and no daemon has a part in it.
#[test]
fn a_session_outlives_who_made_the_container() {
    let Some(lab) = Lab::new() else { return };
    let maker = running(&lab, "exec sleep 1000");
    let shim = rswarm_runtime::ShimCommand { executable: "/bin/false".into(), args: Vec::new() };
    let other = Containers::new(lab.directory.path().join("containers"), shim).find("one").unwrap();
    let session = exec(&maker, &shell("read line; exit 9"));
    let parent = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned()
    };
    eventually("the shim is its parent", || parent(session.pid) == parent(maker.pid().unwrap()));
    drop(maker);
    let Streams::Pipes { stdin, .. } = &session.streams else { panic!("it has a terminal") };
    write(stdin.as_ref(), "go\n");
    assert_eq!(session.wait().unwrap().code, Some(9));
    assert_eq!(outcome(exec(&other, &shell("exit 8"))).0, 8);
    other.delete().unwrap();
}

#[test]
fn a_killed_shim_is_told_as_such() {
    let Some(lab) = Lab::new() else { return };
    let container = running(&lab, "exec sleep 1000");
    let session = exec(&container, &shell("exec sleep 1000"));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid().unwrap())).unwrap();
    let shim: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &shim.to_string()]).status().unwrap();
    assert_eq!((killed.code(), killed.signal()), (Some(0), None));
    assert!(matches!(session.wait(), Err(RuntimeError::SessionLost { .. })));
    assert_eq!(container.state().unwrap().status, rswarm_runtime::Status::Lost);
}

#[test]
fn a_command_has_the_containers_session_keyring() {
    let Some(lab) = Lab::new() else { return };
    if !Path::new("/proc/keys").exists() {
        eprintln!("skipped: needs a kernel with keyrings");
        return;
    }
    // Keyrings are found by their names, also those that are about to go.
    let id = format!("keys-{}", std::process::id());
    let mut request = lab.script(&id, "sleep 1000");
    request.spec.linux_mut().as_mut().unwrap().set_masked_paths(None);
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    let found = |uid| {
        let user = Some(ExecUser { uid, gid: uid, additional_gids: Vec::new() });
        let (code, keys, errors) =
            outcome(exec(&container, &ExecRequest { user, ..shell("cat /proc/keys") }));
        assert_eq!(code, 0, "{errors}");
        keys.matches(&format!("_ses.{id}")).count()
    };
    // Of the keys of root, a user sees those alone that the own process has; root sees the first process's, too.
    assert_eq!((found(1000), found(0)), (1, 1));
}
