//! Seccomp profiles on the real kernel: actions, the agent that is asked, and what the filter leaves of performance.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use common::{Lab, chain};
use rswarm_runtime::CreateRequest;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

fn with_profile(lab: &Lab, id: &str, script: &str, profile: Value) -> CreateRequest {
    let mut request = lab.script(id, script);
    let mut config = serde_json::to_value(&request.spec).unwrap();
    config["linux"]["seccomp"] = profile;
    request.spec = serde_json::from_value(config).unwrap();
    request
}

fn rule(names: &[&str], action: &str) -> Value {
    json!({ "names": names, "action": action })
}

#[test]
fn actions_do_what_their_names_say() {
    let Some(lab) = Lab::new() else { return };
    let mkdir = ["mkdir", "mkdirat"];
    let run = |id: &str, action: Value| {
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [action] });
        let mut request = with_profile(&lab, id, "", profile);
        common::edit_args(&mut request.spec, &["/bin/busybox", "mkdir", "/tmp/made"]);
        let container = lab.containers.create(&request).unwrap_or_else(|error| panic!("{}", chain(&error)));
        container.start().unwrap();
        let status = container.wait().unwrap();
        (status.code, status.signal, common::output(&container))
    };
    assert_eq!(run("allow", rule(&mkdir, "SCMP_ACT_ALLOW")).0, Some(0));
    assert_eq!(run("log", rule(&mkdir, "SCMP_ACT_LOG")).0, Some(0));
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        assert_eq!(run(action, rule(&mkdir, action)).1, Some(libc::SIGSYS), "{action}");
    }
    // Nobody traces it.
    assert!(run("trace", rule(&mkdir, "SCMP_ACT_TRACE")).2.contains("Function not implemented"));
    assert!(run("errno", rule(&mkdir, "SCMP_ACT_ERRNO")).2.contains("Operation not permitted"));
    let full = json!({ "names": mkdir, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSPC });
    assert!(run("full", full).2.contains("No space left"));
    // By argument: only the mode that mkdir(1) asks for by default.
    let mode = |value: u32| {
        json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 1, "value": 0o777, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }] })
    };
    assert_eq!(run("mode", mode(0o777)).0, Some(1));
    assert_eq!(run("other-mode", mode(0o700)).0, Some(0));
}

#[test]
fn unknown_calls_do_not_exist_and_unlisted_architectures_kill() {
    let Some(lab) = Lab::new() else { return };
    let (_, text) = lab.run(&lab.script("one", "cat /proc/self/status"));
    assert!(text.contains("Seccomp_filters:\t1"), "{text}");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [rule(&["a_call_of_the_future", "mkdir"], "SCMP_ACT_ERRNO")],
    });
    let (_, text) = lab.run(&with_profile(&lab, "two", "mkdir /x; cat /proc/self/status", profile));
    assert!(text.contains("Operation not permitted") && text.contains("Seccomp:\t2"), "{text}");
}

/// The kernel's `struct seccomp_notif`: id, pid, flags, then number, architecture, instruction, arguments.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;

/// Takes one container's notifications and answers the first `count` with `errno`. Gives what it was told of the
/// container, and the numbers of the calls.
fn agent(listener: UnixListener, count: usize, errno: i32) -> JoinHandle<(Value, Vec<i32>)> {
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&connection, &mut buffers, &mut control, flags).unwrap().bytes;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(all) = message {
                descriptors.extend(all);
            }
        }
        bytes.truncate(received);
        // One state for one connection, which then is closed.
        connection.read_to_end(&mut bytes).unwrap();
        let notifications = descriptors.pop().unwrap();
        let mut calls = Vec::new();
        while calls.len() < count {
            let mut notification = Notification::default();
            // SAFETY: the structure is that of linux/seccomp.h, zeroed as the kernel wants it.
            let result = unsafe { libc::ioctl(notifications.as_raw_fd(), RECEIVE, &raw mut notification) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            calls.push(notification.number);
            let response = Response { id: notification.id, value: 0, error: -errno, flags: 0 };
            // SAFETY: as above.
            let result = unsafe { libc::ioctl(notifications.as_raw_fd(), SEND, &raw const response) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        }
        (serde_json::from_slice(&bytes).unwrap(), calls)
    })
}

fn asks_for_mkdir(socket: &std::path::Path) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "for the agent",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [rule(&["mkdir"], "SCMP_ACT_NOTIFY")],
    })
}

#[test]
fn agent_is_told_of_the_container_and_decides() {
    let Some(lab) = Lab::new() else { return };
    // A path longer than a socket's address may be.
    let directory = lab.directory.path().join("d".repeat(120));
    std::fs::create_dir(&directory).unwrap();
    for (id, no_new_privileges, user) in
        [("early", false, false), ("late", true, false), ("user", false, true)]
    {
        let socket = directory.join(id);
        let place = std::fs::File::open(&directory).unwrap();
        let short = format!("/proc/self/fd/{}/{id}", place.as_raw_fd());
        let agent = agent(UnixListener::bind(short).unwrap(), 2, libc::EDQUOT);
        let script = "mkdir /tmp/a; mkdir /tmp/b; rmdir /tmp/a; exit 5";
        let mut request = with_profile(&lab, id, script, asks_for_mkdir(&socket));
        let mut config = serde_json::to_value(&request.spec).unwrap();
        config["process"]["noNewPrivileges"] = no_new_privileges.into();
        config["annotations"] = json!({ "org.example": "note" });
        if user {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
            config["linux"]["uidMappings"] = maps.clone();
            config["linux"]["gidMappings"] = maps;
        }
        request.spec = serde_json::from_value(config).unwrap();
        let container = lab.containers.create(&request).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let pid = container.pid().unwrap();
        container.start().unwrap();
        assert_eq!(container.wait().unwrap().code, Some(5));
        let text = common::output(&container);
        assert_eq!(text.matches("quota exceeded").count(), 2, "{text}");
        let (state, calls) = agent.join().unwrap();
        assert_eq!(calls, [libc::SYS_mkdir as i32; 2]);
        let expected = json!({
            "ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": pid, "metadata": "for the agent",
            "state": {
                "ociVersion": "1.2.0", "id": id, "status": "creating", "pid": pid,
                "bundle": lab.containers.directory(id).unwrap(), "annotations": { "org.example": "note" },
            },
        });
        assert_eq!(state, expected);
    }
}

#[test]
fn missing_agent_is_an_error_of_create() {
    let Some(lab) = Lab::new() else { return };
    let socket = lab.directory.path().join("nobody");
    let error =
        lab.containers.create(&with_profile(&lab, "one", "true", asks_for_mkdir(&socket))).unwrap_err();
    let expected =
        format!("failed to connect with seccomp agent `{}`: no such file or directory", socket.display());
    assert!(chain(&error).ends_with(&expected), "{}", chain(&error));
    drop(UnixListener::bind(&socket).unwrap());
    let error =
        lab.containers.create(&with_profile(&lab, "one", "true", asks_for_mkdir(&socket))).unwrap_err();
    assert!(chain(&error).ends_with("connection refused"), "{}", chain(&error));
    // Without a rule that asks, the path means nothing.
    let mut profile = asks_for_mkdir(&socket);
    profile["syscalls"] = json!([]);
    assert_eq!(lab.run(&with_profile(&lab, "two", "exit 3", profile)).0, 3);
}
