//! runc's command line on the real kernel: each case beside Debian's runc, where that is installed.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::cli::{Answer, Bundle, Runtime, traces};
use common::{Lab, eventually};
use serde_json::{Value, json};

/// Ours, and the peer if there is one.
fn runtimes(lab: &Lab) -> Vec<Runtime> {
    std::iter::once(Runtime::ours(lab)).chain(Runtime::peer(lab)).collect()
}

const SLEEP: &str = "trap 'exit 3' TERM; while :; do sleep 0.05; done";

/// Brings a container `x` into a state of its life.
fn bring(runtime: &Runtime, lab: &Lab, state: &str) {
    if state == "unknown" {
        return;
    }
    let bundle = Bundle::new(lab, &format!("{}-{state}", runtime.name), SLEEP);
    if state == "half-created" {
        std::fs::create_dir_all(runtime.root.join("x")).unwrap();
        return;
    }
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    if state == "created" {
        return;
    }
    runtime.done(&["start", "x"]);
    match state {
        "running" => {}
        "paused" => drop(runtime.done(&["pause", "x"])),
        "stopped" => {
            runtime.done(&["kill", "x", "KILL"]);
            runtime.await_status("x", "stopped");
        }
        other => panic!("unknown state {other}"),
    }
}

#[test]
fn every_command_in_every_state_answers_as_runc_does() {
    let Some(lab) = Lab::new() else { return };
    let commands: &[&[&str]] = &[
        &["state", "x"],
        &["start", "x"],
        &["kill", "x", "0"],
        &["kill", "--all", "x", "0"],
        &["kill", "x", "NOSUCH"],
        &["delete", "x"],
        &["delete", "--force", "x"],
        &["exec", "x", "/bin/true"],
        &["exec", "x", "/bin/sh", "-c", "exit 3"],
        &["exec", "x", "/bin/nope"],
        &["ps", "--format", "json", "x"],
        &["pause", "x"],
        &["resume", "x"],
        &["update", "--pids-limit", "20", "x"],
        &["events", "--stats", "x"],
        &["create", "--bundle", "BUNDLE", "x"],
    ];
    let runtimes = runtimes(&lab);
    for state in ["unknown", "half-created", "created", "running", "paused", "stopped"] {
        for command in commands {
            let answers: Vec<Answer> = runtimes
                .iter()
                .map(|runtime| {
                    bring(runtime, &lab, state);
                    let bundle = Bundle::new(&lab, &format!("{}-other", runtime.name), SLEEP);
                    let args: Vec<&str> = command
                        .iter()
                        .map(|word| if *word == "BUNDLE" { bundle.path() } else { *word })
                        .collect();
                    let answer = runtime.call(&args);
                    runtime.call(&["resume", "x"]);
                    runtime.done(&["delete", "--force", "x"]);
                    answer
                })
                .collect();
            let ours = &answers[0];
            // An error says so, with the word that callers look for.
            assert_eq!(
                ours.code != 0 && ours.code != 3,
                ours.errors.contains("level=error"),
                "{state}: {command:?}: {ours:?}"
            );
            if let [ours, theirs] = &answers[..] {
                assert_eq!(ours.code, theirs.code, "{state}: {command:?}\n{ours:?}\n{theirs:?}");
            }
        }
    }
}

#[test]
fn errors_have_the_words_that_callers_look_for() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let said = |args: &[&str]| runtime.call(args).errors;
    assert!(said(&["kill", "x", "9"]).contains("does not exist"));
    assert!(said(&["kill", "../x", "9"]).contains("invalid container ID format"));
    bring(&runtime, &lab, "stopped");
    assert!(said(&["kill", "x", "9"]).contains("container not running"));
    assert!(said(&["exec", "x", "/bin/true"]).contains("cannot exec in a stopped container"));
    assert!(said(&["start", "x"]).contains("cannot start a container that has stopped"));

    let log = lab.directory.path().join("log.json");
    let answer = runtime.call(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "y"]);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["msg"].as_str()),
        (Some("error"), Some("container `y` does not exist"))
    );
    assert_eq!((answer.code, answer.errors.as_str()), (1, "container `y` does not exist\n"));
}

#[test]
fn exit_codes_of_run_and_exec_are_those_of_the_program() {
    let Some(lab) = Lab::new() else { return };
    for runtime in runtimes(&lab) {
        for (script, expected) in [("true", 0), ("exit 7", 7), ("kill -TERM $$; exit 4", 4)] {
            let bundle = Bundle::new(&lab, &format!("{}-codes", runtime.name), script);
            let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
            assert_eq!(answer.code, expected, "{} {script}: {answer:?}", runtime.name);
            assert_eq!(runtime.call(&["state", "x"]).code, 1, "{} is gone", runtime.name);
        }
        bring(&runtime, &lab, "running");
        for (script, expected) in [("true", 0), ("exit 7", 7), ("kill -9 $$; sleep 5", 137)] {
            let answer = runtime.call(&["exec", "x", "sh", "-c", script]);
            assert_eq!(answer.code, expected, "{} {script}: {answer:?}", runtime.name);
        }
        assert_eq!(runtime.call(&["exec", "x", "nope"]).code, 255, "{}", runtime.name);
    }
}

#[test]
fn output_of_looking_has_runcs_shape() {
    let Some(lab) = Lab::new() else { return };
    let views: Vec<[Value; 3]> = runtimes(&lab)
        .iter()
        .map(|runtime| {
            assert_eq!(runtime.done(&["list", "--format", "json"]).trim(), "null", "{}", runtime.name);
            let mut bundle = Bundle::new(&lab, &format!("{}-shape", runtime.name), SLEEP);
            bundle.config["annotations"] = json!({ "a": "b" });
            bundle.write();
            runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
            let pid = runtime.state("x")["pid"].as_i64().unwrap();
            assert!(Path::new(&format!("/proc/{pid}")).exists());
            let pids: Vec<i64> = serde_json::from_str(&runtime.done(&["ps", "-f", "json", "x"])).unwrap();
            assert!(pids.contains(&pid), "{}: {pids:?}", runtime.name);
            let table = runtime.done(&["ps", "x"]);
            assert!(
                table.starts_with("UID") && table.contains(&format!(" {pid} ")),
                "{}: {table}",
                runtime.name
            );
            assert_eq!(runtime.done(&["list", "-q"]), "x\n");
            assert!(
                runtime.done(&["list"]).starts_with("ID          PID         STATUS"),
                "{}",
                runtime.name
            );
            let list: Value = serde_json::from_str(&runtime.done(&["list", "--format=json"])).unwrap();
            let events: Value = serde_json::from_str(&runtime.done(&["events", "--stats", "x"])).unwrap();
            runtime.done(&["kill", "x", "KILL"]);
            runtime.await_status("x", "stopped");
            assert_eq!(runtime.state("x")["pid"], 0);
            let mut views = [runtime.state("x"), list[0].clone(), events];
            for view in &mut views[..2] {
                for (key, expected) in [
                    ("bundle", Some(bundle.path().to_owned())),
                    ("ociVersion", None),
                    ("created", None),
                    ("pid", None),
                ] {
                    let found = std::mem::take(&mut view[key]);
                    assert!(
                        expected.is_none_or(|expected| found == expected),
                        "{}: {key} {found}",
                        runtime.name
                    );
                    assert!(!found.is_null());
                }
            }
            views
        })
        .collect();
    let [ours, theirs] = &views[..] else { return };
    assert_eq!(ours[0], theirs[0]);
    assert_eq!(ours[1], theirs[1]);
    assert_eq!(paths(&ours[2], ""), paths(&theirs[2], ""));
}

/// All places of a value where something is, but for lists' items and for counters that may be absent at zero.
fn paths(value: &Value, at: &str) -> BTreeSet<String> {
    const OPTIONAL: [&str; 6] =
        ["/cache", "/usage", "/max", "/limit", "/ioServiceBytesRecursive", "/ioServicedRecursive"];
    let Value::Object(map) = value else {
        let leaf = OPTIONAL.iter().all(|end| !at.ends_with(end));
        return leaf.then(|| at.to_owned()).into_iter().collect();
    };
    map.iter().flat_map(|(key, value)| paths(value, &format!("{at}/{key}"))).collect()
}

#[test]
fn a_create_that_fails_leaves_nothing_and_says_why() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    std::fs::create_dir(&runtime.root).unwrap();
    let hook =
        |kind: &str| json!({ kind: [{ "path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 1"] }] });
    type Edit = Box<dyn Fn(&mut Value)>;
    let set = |pointer: &'static str, value: Value| -> Edit {
        // What the default has nothing of is made.
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        Box::new(move |config| config.pointer_mut(parent).unwrap()[key] = value.clone())
    };
    let hooks = |value: Value| -> Edit { Box::new(move |config| config["hooks"] = value.clone()) };
    let cases: Vec<(Edit, &[&str], &str)> = vec![
        (set("/process/args", json!(["/bin/nope"])), &[], "exec `/bin/nope`: no such file or directory"),
        (set("/process/cwd", json!("relative")), &[], "`process.cwd` has the invalid value `relative`"),
        (set("/root/path", json!("/no/rootfs")), &[], "`root.path` has the invalid value `/no/rootfs`"),
        (set("/ociVersion", json!("2.0.0")), &[], "`ociVersion`"),
        (set("/process/user", json!("root")), &[], "`process.user`"),
        (
            set(
                "/mounts",
                json!([{ "destination": "/x", "type": "bind", "source": "/no/source", "options": ["bind"] }]),
            ),
            &[],
            "bind mount `/no/source`",
        ),
        (
            set("/mounts", json!([{ "destination": "/x", "type": "nosuchfs" }])),
            &[],
            "mount nosuchfs on `/x`: this kernel has no file system `nosuchfs`",
        ),
        (
            set("/linux/resources", json!({ "memory": { "limit": 64 << 20, "swap": 32 << 20 } })),
            &[],
            "`linux.resources.memory.swap` has the invalid value `33554432`",
        ),
        (
            // Which there are only the kernel knows.
            set("/linux/resources", json!({ "cpu": { "cpus": "8000" } })),
            &[],
            "cpuset.cpus` for `linux.resources.cpu.cpus`: ",
        ),
        (
            set("/linux/resources", json!({ "hugepageLimits": [{ "pageSize": "4KB", "limit": 0 }] })),
            &[],
            " for `linux.resources.hugepageLimits`: no such file or directory",
        ),
        (
            set("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "63" })),
            &[],
            "set `linux.memoryPolicy` to mode 0x2 and nodes 63: ",
        ),
        (
            set("/linux/sysctl", json!({ "net.ipv4.conf.all.forwarding": "yes" })),
            &[],
            "set `net.ipv4.conf.all.forwarding` of `linux.sysctl` to `yes`: ",
        ),
        (
            set("/linux/cgroupsPath", json!("/a/../b")),
            &[],
            "`linux.cgroupsPath` has the invalid value `/a/../b`",
        ),
        (hooks(hook("prestart")), &[], "run the prestart hook `/bin/sh`: exit status: 1, it said: no"),
        (hooks(hook("createRuntime")), &[], "run the createRuntime hook"),
        (hooks(hook("createContainer")), &[], "run the createContainer hook"),
        (
            hooks(json!({ "prestart": [{ "path": "relative" }] })),
            &[],
            "`hooks.prestart[0].path` has the invalid value `relative`",
        ),
        (
            hooks(
                json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1 }] }),
            ),
            &[],
            "did not end within 1 s",
        ),
        (set("/process/terminal", json!(true)), &[], "a terminal needs --console-socket"),
        (
            set("/process/terminal", json!(true)),
            &["--console-socket", "/no/socket"],
            "connect to the console socket `/no/socket`",
        ),
        (
            set("/hostname", json!("x")),
            &["--console-socket", "/no/socket"],
            "a terminal needs process.terminal",
        ),
        (
            set("/hostname", json!("x")),
            &["--pid-file", "/no/directory/pid"],
            "write the pid to `/no/directory/pid`",
        ),
        (set("/hostname", json!("x")), &["--preserve-fds", "90"], "of --preserve-fds"),
    ];
    for (edit, options, expected) in cases {
        let mut bundle = Bundle::new(&lab, "failing", "true");
        edit(&mut bundle.config);
        bundle.write();
        let before = traces(&lab);
        let answer = runtime.call(&[&["create", "--bundle", bundle.path(), "x"], options].concat());
        assert_eq!(answer.code, 1, "{expected}: {answer:?}");
        assert!(answer.errors.contains(expected), "expected {expected}, found {}", answer.errors);
        let difference =
            |after: &BTreeSet<String>| -> Vec<String> { after.difference(&before).cloned().collect() };
        // Processes that were killed may take a moment to be gone.
        eventually("nothing is left", || {
            difference(&traces(&lab)).iter().all(|trace| !trace.starts_with("process"))
        });
        assert_eq!(difference(&traces(&lab)), Vec::<String>::new(), "{expected}");
    }
}

/// While hooks run, the first process still sees the host's root.
/// Where it runs, `cluster-tests/tests/vm_systemd.rs` says what then.
#[test]
fn systemd_that_does_not_run_is_missed_by_name() {
    let Some(lab) = Lab::new() else { return };
    if Path::new("/run/systemd/system").exists() {
        eprintln!("skipped: needs a machine without systemd");
        return;
    }
    let runtime = Runtime::ours(&lab);
    let mut bundle = Bundle::new(&lab, "unit", SLEEP);
    bundle.config["linux"]["cgroupsPath"] = "system.slice:rswarm:unit".into();
    bundle.write();
    let before = traces(&lab);
    let answer = runtime.call(&["--systemd-cgroup", "create", "--bundle", bundle.path(), "x"]);
    assert_eq!(answer.code, 1);
    for words in ["systemd does not run here", "leave out --systemd-cgroup", "cgroupfs"] {
        assert!(answer.errors.contains(words), "{}", answer.errors);
    }
    assert_eq!(traces(&lab), before);
}

#[test]
fn nothing_is_run_in_a_container_that_is_being_created() {
    let Some(lab) = Lab::new() else { return };
    let ours = Runtime::ours(&lab);
    let mut bundle = Bundle::new(&lab, "early", "sleep 1000");
    let answer = lab.directory.path().join("answer");
    let command = ours.command(&["exec", "x", "true"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let script = format!("{}; echo $? > {}", words.join(" "), answer.display());
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20, "env": ["PATH=/bin:/usr/bin"] });
    bundle.config["hooks"] = json!({ "createRuntime": [hook] });
    bundle.write();
    ours.done(&["create", "--bundle", bundle.path(), "x"]);
    assert_eq!(std::fs::read_to_string(&answer).unwrap(), "255\n");
    ours.done(&["delete", "--force", "x"]);
}

/// The directory may be one that others write to.
#[test]
fn the_pid_file_is_not_written_through_a_prepared_link() {
    let Some(lab) = Lab::new() else { return };
    let ours = Runtime::ours(&lab);
    let bundle = Bundle::new(&lab, "pid", "sleep 1000");
    bundle.write();
    let place = lab.directory.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let victim = place.join("victim");
    std::fs::write(&victim, "kept").unwrap();
    std::os::unix::fs::symlink(&victim, place.join(".pid")).unwrap();
    std::os::unix::fs::symlink(&victim, place.join("pid")).unwrap();
    let path = place.join("pid");
    ours.done(&["create", "--bundle", bundle.path(), "--pid-file", path.to_str().unwrap(), "x"]);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
    let pid: i64 = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    assert_eq!(ours.state("x")["pid"], pid);
    ours.done(&["delete", "--force", "x"]);
}

#[test]
fn hooks_run_in_their_place_with_the_state_on_their_input() {
    let Some(lab) = Lab::new() else { return };
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    // runc 1.1 runs poststart hooks before the start, and those in the container before it has its name.
    for runtime in [Runtime::ours(&lab)] {
        let notes = lab.directory.path().join(format!("notes-{}", runtime.name));
        std::fs::create_dir(&notes).unwrap();
        let mut bundle = Bundle::new(&lab, &format!("{}-hooks", runtime.name), "sleep 1000");
        let order = notes.join("order");
        for kind in kinds {
            // The one inside writes where the other side can see it.
            let place = if kind == "startContainer" { "/notes".into() } else { notes.clone() };
            let place = place.display();
            let script = format!(
                "cat > {place}/{kind}; echo {kind} $(hostname) $A >> {place}/order; readlink /proc/self/ns/mnt >> {place}/{kind}.ns"
            );
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20,
                "env": ["A=b", "PATH=/bin:/usr/bin"] });
            bundle.config["hooks"][kind] = json!([hook]);
        }
        bundle.config["hostname"] = "inside".into();
        bundle.config["annotations"] = json!({ "c": "d" });
        bundle.config["mounts"].as_array_mut().unwrap().push(
            json!({ "destination": "/notes", "type": "bind", "source": notes, "options": ["rbind", "rw"] }),
        );
        bundle.write();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim();
        runtime.done(&["create", "--bundle", bundle.path(), "x"]);
        let pid = runtime.state("x")["pid"].clone();
        let lines = |count: usize| -> Vec<String> {
            std::fs::read_to_string(&order).unwrap().lines().take(count).map(str::to_owned).collect()
        };
        let mut expected = vec![
            format!("prestart {host} b"),
            format!("createRuntime {host} b"),
            "createContainer inside b".into(),
        ];
        assert_eq!(lines(9), expected, "{}", runtime.name);
        runtime.done(&["start", "x"]);
        expected.extend(["startContainer inside b".into(), format!("poststart {host} b")]);
        assert_eq!(lines(9), expected, "{}", runtime.name);
        runtime.done(&["delete", "--force", "x"]);
        expected.push(format!("poststop {host} b"));
        assert_eq!(lines(9), expected, "{}", runtime.name);
        for (kind, status, outside) in [
            ("prestart", "creating", true),
            ("createRuntime", "creating", true),
            ("createContainer", "creating", false),
            ("startContainer", "created", false),
            ("poststart", "running", true),
            ("poststop", "stopped", true),
        ] {
            let state: Value =
                serde_json::from_str(&std::fs::read_to_string(notes.join(kind)).unwrap()).unwrap();
            let found = (state["id"].as_str(), state["status"].as_str(), state["bundle"].as_str());
            assert_eq!(found, (Some("x"), Some(status), Some(bundle.path())), "{} {kind}", runtime.name);
            assert_eq!(state["annotations"], json!({ "c": "d" }), "{} {kind}", runtime.name);
            let own = if outside { pid.clone() } else { json!(1) };
            if kind != "poststop" {
                assert_eq!(state["pid"], own, "{} {kind}", runtime.name);
            }
            let namespace = std::fs::read_to_string(notes.join(format!("{kind}.ns"))).unwrap();
            let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
            assert_eq!(namespace.trim() == ours.to_str().unwrap(), outside, "{} {kind}", runtime.name);
        }
    }
}

#[test]
fn a_failing_hook_of_the_start_stops_the_container_and_one_of_the_end_only_warns() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 1"] }]);
    let mut bundle = Bundle::new(&lab, "hooks", SLEEP);
    bundle.config["hooks"] = json!({ "startContainer": failing });
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    let answer = runtime.call(&["start", "x"]);
    assert_eq!(answer.code, 1);
    assert!(
        answer.errors.contains("run the startContainer hook `/bin/sh`: exit status: 1, it said: no"),
        "{answer:?}"
    );
    runtime.await_status("x", "stopped");
    runtime.done(&["delete", "x"]);

    // Source: OCI runtime-spec, "Lifecycle" 9 and 13: after the start an error, and the container is deleted.
    let trace = lab.directory.path().join("poststop");
    let noted = json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("touch {}", trace.display())] });
    bundle.config["hooks"] = json!({ "poststart": failing, "poststop": [failing[0], noted] });
    bundle.write();
    for detached in [false, true] {
        let answer = if detached {
            runtime.call(&["run", "--detach", "--bundle", bundle.path(), "x"])
        } else {
            runtime.done(&["create", "--bundle", bundle.path(), "x"]);
            runtime.call(&["start", "x"])
        };
        assert_eq!(answer.code, 1, "{answer:?}");
        let expected =
            "the container was stopped: run the poststart hook `/bin/sh`: exit status: 1, it said: no";
        assert!(answer.errors.contains(expected), "{answer:?}");
        assert!(answer.errors.contains("level=warning msg=\"run the poststop hook"), "{answer:?}");
        assert_eq!(runtime.call(&["state", "x"]).code, 1);
        std::fs::remove_file(&trace).unwrap();
    }

    bundle.config["hooks"] = json!({ "poststop": failing });
    bundle.write();
    runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
    let answer = runtime.call(&["delete", "--force", "x"]);
    assert!(answer.code == 0 && answer.errors.contains("level=warning"), "{answer:?}");
    assert_eq!(runtime.call(&["state", "x"]).code, 1);
}

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
}

#[test]
fn the_hosts_program_cannot_be_written_to_from_a_container() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    bring(&runtime, &lab, "created");
    let pid = runtime.state("x")["pid"].clone();
    // Now it is busy; later it would still be on a mount that nobody can make writable.
    let mount = rustix::fs::statvfs(format!("/proc/{pid}/exe")).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    runtime.done(&["start", "x"]);
    // The container has itself executed: it finds a program that cannot be written to either, and no way out.
    let script = "/proc/self/exe --help | head -1";
    std::os::unix::fs::symlink("/proc/self/exe", lab.layer().join("bin/itself")).unwrap();
    let answer = runtime.call(&["exec", "x", "/bin/itself", "--version"]);
    assert!(answer.output.contains("rswarm-runc version") || answer.code == 255, "{script}: {answer:?}");
}

#[test]
fn the_program_moves_to_a_sealed_mount_without_starting_again() {
    use std::os::unix::fs::FileExt;
    let Some(lab) = Lab::new() else { return };
    if !Path::new("/proc/sys/kernel/ns_last_pid").exists() {
        return eprintln!("skipped: needs a kernel that can restore processes (CONFIG_CHECKPOINT_RESTORE)");
    }
    let runtime = Runtime::ours(&lab);
    bring(&runtime, &lab, "created");
    let process = format!("/proc/{}", runtime.state("x")["pid"]);
    // By which name it was started: one in /proc if that was a second time.
    let vector = std::fs::read(format!("{process}/auxv")).unwrap();
    let words: Vec<u64> =
        vector.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    let at = words.chunks_exact(2).find(|pair| pair[0] == libc::AT_EXECFN).unwrap()[1];
    let expected = format!("{}\0", env!("CARGO_BIN_EXE_rswarm-runc"));
    let mut name = vec![0; expected.len()];
    let read = std::fs::File::open(format!("{process}/mem")).unwrap().read_at(&mut name, at).unwrap();
    name.truncate(read);
    assert_eq!(String::from_utf8_lossy(&name), expected);
    // Neither as its executable nor piece by piece is the host's file at hand.
    let mapped = std::fs::read_dir(format!("{process}/map_files")).unwrap();
    let mut files: Vec<PathBuf> = mapped.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 2, "{files:?}");
    files.push(format!("{process}/exe").into());
    for file in files {
        let mount = rustix::fs::statvfs(&file).unwrap();
        assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{}", file.display());
    }
}

#[test]
fn the_binary_answers_what_engines_ask_it_first() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let version = runtime.done(&["--version"]);
    let lines: Vec<&str> = version.lines().collect();
    assert!(lines[0].starts_with("rswarm-runc version ") && lines[1].starts_with("commit: "), "{version}");
    assert!(lines[2].starts_with("spec: 1."), "{version}");
    let features: Value = serde_json::from_str(&runtime.done(&["features"])).unwrap();
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&"pid".into()));
    let directory = lab.directory.path().join("spec");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.to_str().unwrap();
    runtime.done(&["spec", "--bundle", path]);
    let answer = runtime.call(&["spec", "--bundle", path]);
    assert!(answer.code == 1 && answer.errors.contains("exists, remove it first"), "{answer:?}");
}

/// What it writes for a start runs, with nothing but another program and no terminal.
#[test]
fn its_own_spec_runs() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let directory = lab.directory.path().join("spec");
    std::fs::create_dir(&directory).unwrap();
    runtime.done(&["spec", "--bundle", directory.to_str().unwrap()]);
    let config = directory.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    spec["root"]["path"] = lab.layer().to_str().into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] =
        json!(["sh", "-c", "hostname; touch /x 2>/dev/null || echo read-only; : > /dev/null && echo null"]);
    spec["linux"]["cgroupsPath"] = format!("{}/spec", lab.cgroup).into();
    std::fs::write(&config, spec.to_string()).unwrap();
    assert_eq!(
        runtime.done(&["run", "--bundle", directory.to_str().unwrap(), "x"]),
        "rswarm-runc\nread-only\nnull\n"
    );
}

#[test]
fn users_without_privileges_have_containers_too() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let Some(lab) = Lab::new() else { return };
    if !Path::new("/usr/bin/setpriv").exists() {
        eprintln!("skipped: needs setpriv (Debian package util-linux)");
        return;
    }
    let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    open(lab.directory.path());
    let home = lab.directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let program = home.join("runtime");
    // Their own, so that a container of theirs could overwrite it, and no mount is theirs to make.
    common::copy_program(env!("CARGO_BIN_EXE_rswarm-runc"), &program);
    for path in [&home, &program] {
        open(path);
        chown(path, Some(1000), Some(1000)).unwrap();
    }
    let call = |args: &[&str]| {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).arg(&program).args(args);
        command.env("XDG_RUNTIME_DIR", &home).current_dir(&home).stdin(std::process::Stdio::null());
        Runtime::ours(&lab).answer(command)
    };
    let done = |args: &[&str]| {
        let answer = call(args);
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.errors);
        answer.output
    };
    done(&["spec", "--rootless"]);
    let config = home.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    spec["root"]["path"] = lab.layer().to_str().into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(["sleep", "1000"]);
    std::fs::write(&config, spec.to_string()).unwrap();
    // Nobody has given them a cgroup, which is an error only where one is asked for.
    for (change, expected) in [
        (json!({ "cgroupsPath": "/of/nobody" }), "unable to apply cgroup configuration: permission denied"),
        (
            json!({ "resources": { "pids": { "limit": 5 } } }),
            "cannot set `linux.resources.pids.limit`: rootless needs no limits",
        ),
    ] {
        let mut changed = spec.clone();
        changed["linux"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        std::fs::write(&config, changed.to_string()).unwrap();
        let answer = call(&["create", "x"]);
        assert!(answer.code == 1 && answer.errors.contains(expected), "{answer:?}");
    }
    std::fs::write(&config, spec.to_string()).unwrap();
    let created = call(&["create", "x"]);
    if created.code != 0 && created.errors.contains("new namespaces") {
        eprintln!("skipped: needs user namespaces for users other than root: {}", created.errors);
        return;
    }
    assert_eq!(created.code, 0, "{}", created.errors);
    let state: Value = serde_json::from_str(&done(&["state", "x"])).unwrap();
    let program = std::fs::read_link(format!("/proc/{}/exe", state["pid"])).unwrap();
    assert!(program.to_str().unwrap().starts_with("/memfd:"), "{}", program.display());
    done(&["start", "x"]);
    assert_eq!(done(&["exec", "x", "sh", "-c", "id -u; touch /dev/shm/x && echo mine"]), "0\nmine\n");
    // The host's cgroups are seen, not changed (CVE-2023-25809).
    let mounts = done(&["exec", "x", "grep", " /sys/fs/cgroup", "/proc/mounts"]);
    let last = mounts.lines().last().unwrap();
    let options = last.split(' ').nth(3).unwrap();
    assert!(options.split(',').any(|option| option == "ro"), "{mounts}");
    for (args, controller) in
        [(&["pause", "x"][..], "freezer"), (&["update", "--memory", "1g", "x"], "memory")]
    {
        let answer = call(args);
        let lacks = format!(
            "`x` has no cgroup with the controller `{controller}`: its processes are in `/sys/fs/cgroup"
        );
        assert!(answer.code == 1 && answer.errors.contains(&lacks), "{answer:?}");
    }
    done(&["delete", "--force", "x"]);
    assert_eq!(std::fs::read_dir(home.join("rswarm-runc")).map_or(0, Iterator::count), 0);
}
