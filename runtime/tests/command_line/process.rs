//! What a program is given: user, variables, rights, terminal and descriptors.

use std::process::Command;

use serde_json::json;

use crate::common::Lab;
use crate::common::cli::{Bundle, Runtime};
use crate::{bring, runtimes};

#[test]
fn exec_has_the_users_environment_and_rights_it_is_given() {
    let Some(lab) = Lab::new() else { return };
    for runtime in runtimes(&lab) {
        bring(&runtime, &lab, "running");
        let script = "id -u; id -g; id -G; pwd; echo $A; grep -e CapEff -e CapInh -e NoNewPrivs -e Seccomp: /proc/self/status";
        let options = [
            "--user",
            "7:8",
            "--additional-gids",
            "9",
            "--cwd",
            "/tmp",
            "--env",
            "A=b",
            "--cap",
            "CAP_SYS_ADMIN",
        ];
        let args = [&["exec"][..], &options, &["x", "sh", "-c", script]].concat();
        let output = runtime.done(&args).split_whitespace().collect::<Vec<_>>().join(" ");
        // Capabilities of another user than root are only effective if they are ambient.
        let expected =
            "7 8 8 9 /tmp b CapInh: 0000000000000000 CapEff: 0000000000000000 NoNewPrivs: 0 Seccomp: 2";
        assert_eq!(output, expected, "{}", runtime.name);

        let process = lab.directory.path().join("process.json");
        let json = json!({
            "user": { "uid": 0, "gid": 0, "additionalGids": [5] }, "args": ["sh", "-c", "id -G; echo $B; ulimit -n; umask"],
            "env": ["B=c", "PATH=/bin"], "cwd": "/",
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 77 }], "noNewPrivileges": true,
        });
        std::fs::write(&process, json.to_string()).unwrap();
        let pid_file = lab.directory.path().join("pid");
        let args =
            ["exec", "--process", process.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap(), "x"];
        let output = runtime.done(&args).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output, "0 5 c 77 0022", "{}", runtime.name);
        assert!(std::fs::read_to_string(pid_file).unwrap().parse::<i32>().is_ok());
        runtime.done(&["delete", "--force", "x"]);
    }
}

/// None of them are the caller's.
#[test]
fn who_is_given_no_capabilities_has_none_or_those_of_the_container() {
    let Some(lab) = Lab::new() else { return };
    let shown = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for runtime in runtimes(&lab) {
        let show = "grep -e CapInh -e CapPrm -e CapEff -e CapBnd -e CapAmb /proc/self/status | cut -f2";
        for uid in [0, 1000] {
            let mut bundle = Bundle::new(&lab, &format!("{}-none-{uid}", runtime.name), show);
            let process = bundle.config["process"].as_object_mut().unwrap();
            process.remove("capabilities");
            process["user"]["uid"] = uid.into();
            bundle.write();
            let found = runtime.done(&["run", "--bundle", bundle.path(), "x"]);
            assert_eq!(shown(&found), ["0000000000000000"; 5], "{} as {uid}", runtime.name);
        }
        let mut bundle = Bundle::new(&lab, &format!("{}-few", runtime.name), "exec sleep 1000");
        let few = json!(["CAP_KILL"]);
        bundle.config["process"]["capabilities"] =
            json!({ "bounding": few, "effective": few, "permitted": few });
        bundle.write();
        runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
        let process = lab.directory.path().join("process.json");
        let json = json!({ "args": ["sh", "-c", show], "env": ["PATH=/bin"], "cwd": "/" });
        std::fs::write(&process, json.to_string()).unwrap();
        let found = runtime.done(&["exec", "--process", process.to_str().unwrap(), "x"]);
        let kill = "0000000000000020";
        let expected = ["0000000000000000", kill, kill, kill, "0000000000000000"];
        assert_eq!(shown(&found), expected, "{}", runtime.name);
        runtime.done(&["delete", "--force", "x"]);
    }
}

/// A daemon that wants to hear nothing of its children has what it starts ignore theirs too.
#[test]
fn children_are_waited_for_although_the_caller_ignores_its_own() {
    use std::os::unix::process::CommandExt;
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let ignoring = |args: &[&str]| {
        let mut command = runtime.command(args);
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                Ok(())
            })
        };
        runtime.answer(command)
    };
    let mut bundle = Bundle::new(&lab, "ignored", "exit 7");
    bundle.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
    bundle.write();
    assert_eq!(ignoring(&["run", "--bundle", bundle.path(), "x"]).code, 7);
    bring(&runtime, &lab, "running");
    assert_eq!(ignoring(&["exec", "x", "sh", "-c", "exit 5"]).code, 5);
    let shown = ignoring(&["ps", "x"]);
    assert!(shown.code == 0 && shown.output.contains("sh -c"), "{shown:?}");
}

#[test]
fn a_terminal_goes_over_the_console_socket() {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    let Some(lab) = Lab::new() else { return };
    for runtime in runtimes(&lab) {
        let socket = lab.directory.path().join(format!("{}.sock", runtime.name));
        let listener = UnixListener::bind(&socket).unwrap();
        let receive = || -> (Vec<u8>, std::fs::File) {
            use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
            let (stream, _) = listener.accept().unwrap();
            let mut name = [0u8; 64];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [std::io::IoSliceMut::new(&mut name)];
            let len = recvmsg(&stream, &mut buffers, &mut control, RecvFlags::empty()).unwrap().bytes;
            let mut all: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(list) => Some(list),
                    _ => None,
                })
                .flatten()
                .collect();
            (name[..len].to_vec(), all.pop().unwrap().into())
        };
        let script =
            "readlink /proc/self/fd/0; stty size; test -c /dev/console && echo console; exec sleep 1000";
        let mut bundle = Bundle::new(&lab, &format!("{}-terminal", runtime.name), script);
        bundle.config["process"]["terminal"] = true.into();
        bundle.config["process"]["consoleSize"] = json!({ "width": 90, "height": 33 });
        bundle.write();
        let path = socket.to_str().unwrap();
        runtime.done(&["create", "--bundle", bundle.path(), "--console-socket", path, "x"]);
        let (name, mut master) = receive();
        assert_eq!(String::from_utf8(name).unwrap(), "/dev/ptmx", "{}", runtime.name);
        runtime.done(&["start", "x"]);
        let mut text = String::new();
        let mut buffer = [0u8; 256];
        while !text.contains("console\r\n") {
            let len = master.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
        }
        assert_eq!(text, "/dev/pts/0\r\n33 90\r\nconsole\r\n", "{}", runtime.name);

        let process = lab.directory.path().join("process.json");
        let json = json!({ "terminal": true, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c", "readlink /proc/self/fd/1; read line; echo got $line"] });
        std::fs::write(&process, json.to_string()).unwrap();
        runtime.done(&[
            "exec",
            "--detach",
            "--process",
            process.to_str().unwrap(),
            "--console-socket",
            path,
            "x",
        ]);
        let (_, mut second) = receive();
        std::io::Write::write_all(&mut second, b"word\n").unwrap();
        let mut text = String::new();
        while !text.contains("got word") {
            let len = second.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
        }
        assert!(text.contains("/dev/pts/1"), "{}: {text}", runtime.name);
        runtime.done(&["delete", "--force", "x"]);
    }
}

#[test]
fn descriptors_are_kept_when_asked_for_and_else_closed() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let bundle = Bundle::new(
        &lab,
        "descriptors",
        "for f in 3 4 5 6; do [ -e /proc/self/fd/$f ] && readlink /proc/self/fd/$f; done; true",
    );
    let seen = |options: &str| {
        // A shell opens them, for the standard library closes all it starts a program with.
        let binary = env!("CARGO_BIN_EXE_rswarm-runc");
        let (root, path) = (runtime.root.display(), bundle.path());
        let line = format!(
            "exec 3</etc/passwd 4</etc/group 5</etc/hosts; exec {binary} --root {root} run {options} -b {path} x"
        );
        let output = Command::new("/bin/sh").args(["-c", &line]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(seen(""), "");
    assert_eq!(seen("--preserve-fds 2"), "/etc/passwd\n/etc/group\n");
    // Our own are not taken for the caller's.
    let log = lab.directory.path().join("log");
    let log = ["--log", log.to_str().unwrap()];
    let answer =
        runtime.call(&[&log[..], &["run", "--preserve-fds", "1", "-b", bundle.path(), "x"]].concat());
    assert!(answer.code == 1 && answer.errors.contains("of --preserve-fds"), "{answer:?}");
}

#[test]
fn exec_has_the_containers_session_keyring_unless_that_keeps_the_callers() {
    let Some(lab) = Lab::new() else { return };
    if !std::path::Path::new("/proc/keys").exists() {
        eprintln!("skipped: needs a kernel with keyrings");
        return;
    }
    let runtimes = [Some(Runtime::ours(&lab)), Runtime::peer(&lab)];
    for runtime in runtimes.iter().flatten() {
        for (more, own) in [(&[][..], true), (&["--no-new-keyring"], false)] {
            let mut bundle = Bundle::new(&lab, runtime.name, "sleep 1000");
            bundle.config["linux"]["maskedPaths"] = json!([]);
            bundle.write();
            // Keyrings are found by their names, also those that are about to go.
            let id = format!("keys-{}-{own}-{}", runtime.name, std::process::id());
            runtime.done(&[&["create", "--bundle", bundle.path()], more, &[&id]].concat());
            runtime.done(&["start", &id]);
            let found = |user: &str| {
                let keys = runtime.done(&["exec", "--user", user, &id, "cat", "/proc/keys"]);
                keys.matches(&format!("_ses.{id}")).count()
            };
            // Of the keys of root, a user sees those alone that the own process has; root sees the first process's, too.
            let expected = usize::from(own);
            assert_eq!((found("1000"), found("0")), (expected, expected), "{} {more:?}", runtime.name);
            runtime.done(&["delete", "--force", &id]);
        }
    }
}
