//! Users without privileges.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::cli::Runtime;
use crate::common::{self, Lab};

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
