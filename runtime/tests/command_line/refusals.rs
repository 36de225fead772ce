//! What fails says why, and leaves nothing.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::SLEEP;
use crate::common::cli::{Bundle, Runtime, traces};
use crate::common::{Lab, eventually};

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
    // As Docker's `--network host`; what it already is, lest the host be changed.
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let of_host_network = move |config: &mut Value| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.iter_mut().find(|one| one["type"] == "network").unwrap()["path"] =
            "/proc/self/ns/net".into();
        config["linux"]["sysctl"] = json!({ "net.core.somaxconn": somaxconn.trim() });
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
            set(
                "/mounts",
                json!([{ "destination": "/bin", "type": "bind", "source": "/bin/busybox", "options": ["bind"] }]),
            ),
            &[],
            "bind mount `/bin/busybox` on `/bin`: not a directory",
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
            Box::new(of_host_network),
            &[],
            "`net.core.somaxconn`: the container shares this namespace with the host",
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

/// While hooks run, the first process still sees the host's root.
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
