//! The configuration that `spec` writes: the one runc writes, for this runtime's version of the specification.
//!
//! Source: runc, `libcontainer/specconv/example.go`, for the choice of values.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::about::SPECIFICATION;
use super::create::absolute;
use super::error::{CommandError, OnFile};
use super::options::Parsed;
use crate::defaults::{MASKED_PATHS, READONLY_PATHS};

/// `spec`.
pub(super) fn spec(parsed: &Parsed) -> Result<(), CommandError> {
    let path = absolute(parsed.value("bundle").unwrap_or("."))?.join("config.json");
    // runc looks at the same: on v1 the container sees where it is.
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut config = template(v2);
    if parsed.is_on("rootless") {
        let id = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        without_privileges(&mut config, id);
    }
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(&config, &mut serializer)
        .map_err(|source| CommandError::Json { path: path.clone(), source })?;
    text.push(b'\n');
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(CommandError::SpecExists { path }),
        other => other.and_then(|mut file| file.write_all(&text)).on("write", path),
    }
}

/// A shell on a terminal, on a host with nothing but v2 cgroups or another one.
fn template(v2: bool) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount"];
    if v2 {
        kinds.push("cgroup");
    }
    let namespaces: Vec<Value> = kinds.into_iter().map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": SPECIFICATION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "ambient": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": super::PROGRAM,
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            },
            {
                "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            {
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
            },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
    })
}

/// For a user with this uid and gid who has no others.
fn without_privileges(config: &mut Value, (uid, gid): (u32, u32)) {
    let linux = &mut config["linux"];
    linux["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
    linux["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": 1 }]);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user" }));
    }
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            // A sysfs of its own needs a network namespace of its own.
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = json!({ "destination": "/sys", "type": "none", "source": "/sys", "options": options });
        }
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            // Groups that are not mapped cannot own anything.
            options.retain(|option| !option.as_str().is_some_and(|option| option.starts_with("gid=")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_configurations_that_can_be_planned() {
        for (v2, rootless) in [(false, false), (true, false), (true, true)] {
            let mut config = template(v2);
            if rootless {
                without_privileges(&mut config, (1000, 1000));
            }
            let (spec, unknown) = crate::plan::parse(config.to_string().as_bytes()).unwrap();
            assert!(unknown.is_empty());
            let cgroups =
                crate::cgroup::Layout::parse("34 30 0:30 / /c/devices rw - cgroup cgroup rw,devices");
            let host = crate::plan::HostFacts { cgroups, rootless, ..Default::default() };
            let rootfs = crate::Rootfs::Directory("/".into());
            crate::plan::create(&spec, &rootfs, "/".into(), "/x", &host).unwrap();
        }
    }
}
