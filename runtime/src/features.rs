//! What this runtime can do, for whoever wants to know before asking it to.
//!
//! A pure function: it speaks of the runtime, not of the host it is on. Every list comes from the table the code itself
//! works with, where there is one.
//!
//! Source: OCI runtime-spec, "Features" and "Linux Features".

use serde_json::{Value, json};

use crate::cgroup;
use crate::defaults::ALL_CAPABILITIES;
use crate::plan;

/// The features document. `annotations` are ours to choose; the caller may add its version.
pub fn features() -> Value {
    let capabilities: Vec<String> = ALL_CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": plan::known_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": true,
                "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": architectures(),
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "memoryPolicy": {
                "modes": [
                    "MPOL_DEFAULT", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_LOCAL",
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false },
        },
        "potentiallyUnsafeConfigAnnotations": [cgroup::UNIT_ANNOTATIONS],
    })
}

const SECCOMP_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64"]
    } else {
        &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::default_spec;
    use crate::oci::{LinuxSeccomp, Spec};

    /// A configuration with `value` at `pointer`, as the plan sees it. Without a host name, which needs a namespace.
    fn accepted(pointer: &str, value: Value) -> Result<(), String> {
        let mut config = serde_json::to_value(default_spec()).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        config.as_object_mut().unwrap().remove("hostname");
        config.pointer_mut(parent).unwrap()[name] = value;
        let (spec, unknown) =
            plan::parse(config.to_string().as_bytes()).map_err(|error| error.to_string())?;
        assert!(unknown.is_empty(), "{unknown:?}");
        check(&spec)
    }

    fn check(spec: &Spec) -> Result<(), String> {
        let hierarchy = crate::cgroup::Hierarchy {
            controllers: vec!["devices".to_owned()],
            mount: "/sys/fs/cgroup/devices".into(),
        };
        let cgroups = crate::cgroup::Layout { v1: vec![hierarchy], ..Default::default() };
        let host = plan::HostFacts { cgroups, ..Default::default() };
        let rootfs = crate::Rootfs::Directory("/image".into());
        plan::create(spec, &rootfs, "/rootfs".into(), "/a/b", &host)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn strings(pointer: &str) -> Vec<String> {
        let all = features();
        let list = all.pointer(pointer).unwrap().as_array().unwrap();
        list.iter().map(|entry| entry.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_listed_is_accepted() {
        for option in strings("/mountOptions") {
            let bind = !matches!(option.as_str(), "tmpcopyup");
            let ids = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
            let mut mount =
                json!({ "destination": "/x", "source": "/s", "type": "tmpfs", "options": [option] });
            if bind {
                mount["type"] = "bind".into();
                mount["uidMappings"] = ids.clone();
                mount["gidMappings"] = ids;
            }
            assert_eq!(accepted("/mounts", json!([mount])), Ok(()), "{option}");
        }
        for name in strings("/linux/namespaces").into_iter().filter(|name| name != "user") {
            let list = if name == "mount" { json!([]) } else { json!([{ "type": name }]) };
            let mut list = list.as_array().unwrap().clone();
            list.push(json!({ "type": "mount" }));
            assert_eq!(accepted("/linux/namespaces", list.into()), Ok(()), "{name}");
        }
        for name in strings("/linux/capabilities") {
            assert_eq!(accepted("/process/capabilities/bounding", json!([name])), Ok(()), "{name}");
        }
        for action in strings("/linux/seccomp/actions") {
            let rule = json!({ "names": ["mkdir"], "action": action });
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent", "syscalls": [rule],
                "flags": strings("/linux/seccomp/supportedFlags"), "architectures": strings("/linux/seccomp/archs"),
            });
            assert_eq!(accepted("/linux/seccomp", profile), Ok(()), "{action}");
        }
        for op in strings("/linux/seccomp/operators") {
            let rule = json!({
                "names": ["mkdir"], "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 0, "value": 1, "valueTwo": 1, "op": op }],
            });
            let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
            assert!(serde_json::from_value::<LinuxSeccomp>(profile.clone()).is_ok());
            assert_eq!(accepted("/linux/seccomp", profile), Ok(()), "{op}");
        }
        for mode in strings("/linux/memoryPolicy/modes") {
            let nodes = if matches!(mode.as_str(), "MPOL_DEFAULT" | "MPOL_LOCAL") { "" } else { "0" };
            let policy = json!({ "mode": mode, "nodes": nodes });
            assert_eq!(accepted("/linux/memoryPolicy", policy), Ok(()), "{mode}");
        }
        for flag in strings("/linux/memoryPolicy/flags") {
            let policy = json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] });
            assert_eq!(accepted("/linux/memoryPolicy", policy), Ok(()), "{flag}");
        }
        for version in ["ociVersionMin", "ociVersionMax"] {
            assert_eq!(accepted("/ociVersion", features()[version].clone()), Ok(()), "{version}");
        }
    }

    #[test]
    fn capabilities_are_listed_by_number() {
        for (number, capability) in ALL_CAPABILITIES.iter().enumerate() {
            assert_eq!(crate::defaults::capability_number(*capability) as usize, number);
        }
    }

    #[test]
    fn what_is_listed_as_missing_is_refused() {
        let refused = |pointer, value| accepted(pointer, value).unwrap_err();
        assert!(refused("/linux/intelRdt", json!({ "closID": "x" })).contains("`linux.intelRdt`"));
        assert!(refused("/linux/netDevices", json!({ "eth0": {} })).contains("`linux.netDevices`"));
        let unsafe_ones = features()["potentiallyUnsafeConfigAnnotations"].clone();
        assert_eq!(unsafe_ones, json!(["org.systemd.property."]));
        assert!(refused("/ociVersion", "1.4.0".into()).contains("expected 1.0.0 to 1.3.x"));
    }
}
