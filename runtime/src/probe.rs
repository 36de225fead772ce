//! What the kernel must offer to containers, looked at once when a daemon starts: a feature that is not there is named
//! then, and not by the first task that fails. [`KernelFeatures::missing`] is pure; [`KernelFeatures::of_this_host`] finds out.
//!
//! What networks need is found out by `rswarm-net`, which knows it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use rustix::mount::{FsOpenFlags, fsopen};

use crate::cgroup::Layout;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Whether the file system type `overlay` is there.
    pub overlay: bool,
    pub seccomp: bool,
    /// As in `/proc/self/ns`.
    pub namespaces: BTreeSet<String>,
    /// Controllers of all hierarchies; those of v2 as in `cgroup.controllers`.
    pub controllers: BTreeSet<String>,
    /// Whether there is a v2 tree; it controls devices without a controller of that name.
    pub unified: bool,
}

/// A feature that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("kernel lacks {name} ({option}): {advice}")]
pub struct MissingFeature {
    pub name: &'static str,
    /// Of the kernel's configuration.
    pub option: &'static str,
    /// What to do, or what cannot be had without it.
    pub advice: &'static str,
    /// No container runs without it; else only what asks for it does not.
    pub required: bool,
}

const ENABLE: &str = "enable it or load its module, then start again";

/// By their name in `/proc/self/ns`.
const NAMESPACES: [(&str, &str, &str); 6] = [
    ("mnt", "mount namespaces", "CONFIG_NAMESPACES"),
    ("pid", "process namespaces", "CONFIG_PID_NS"),
    ("net", "network namespaces", "CONFIG_NET_NS"),
    ("ipc", "IPC namespaces", "CONFIG_IPC_NS"),
    ("uts", "UTS namespaces", "CONFIG_UTS_NS"),
    ("cgroup", "cgroup namespaces", "CONFIG_CGROUPS"),
];

/// By the name of the controller, with what cannot be had without it.
const CONTROLLERS: [(&str, &str, &str, &str); 3] = [
    (
        "memory",
        "the cgroup controller for memory",
        "CONFIG_MEMCG",
        "tasks with a memory limit will be rejected here; boot with cgroup_enable=memory",
    ),
    (
        "cpu",
        "the cgroup controller for CPU",
        "CONFIG_CGROUP_SCHED",
        "tasks with a CPU limit will be rejected here",
    ),
    (
        "pids",
        "the cgroup controller for processes",
        "CONFIG_CGROUP_PIDS",
        "tasks with a limit of processes will be rejected here",
    ),
];

impl KernelFeatures {
    /// Looks at the running kernel. Needs root; loads modules where the kernel can.
    ///
    /// # Errors
    /// When `/proc` cannot be read, or a file system type cannot be asked for.
    pub fn of_this_host() -> io::Result<Self> {
        let layout = Layout::detect()?;
        let mut controllers: BTreeSet<String> =
            layout.v1.iter().flat_map(|hierarchy| hierarchy.controllers.iter().cloned()).collect();
        if let Some(unified) = &layout.unified {
            let text = std::fs::read_to_string(unified.join("cgroup.controllers"))?;
            controllers.extend(text.split_whitespace().map(str::to_owned));
        }
        let namespaces = std::fs::read_dir("/proc/self/ns")?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            overlay: has_overlay()?,
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            namespaces,
            controllers,
            unified: layout.unified.is_some(),
        })
    }

    /// What is not there, that without which nothing runs first.
    pub fn missing(&self) -> Vec<MissingFeature> {
        let required = |name, option| MissingFeature { name, option, advice: ENABLE, required: true };
        let mut missing = Vec::new();
        if !self.overlay {
            missing.push(required("overlayfs", "CONFIG_OVERLAY_FS"));
        }
        if !self.seccomp {
            missing.push(required("seccomp filters", "CONFIG_SECCOMP_FILTER"));
        }
        let namespaces = NAMESPACES.iter().filter(|(key, ..)| !self.namespaces.contains(*key));
        missing.extend(namespaces.map(|(_, name, option)| required(name, option)));
        if self.controllers.is_empty() && !self.unified {
            let advice = "mount /sys/fs/cgroup, as systemd does, then start again";
            missing.push(MissingFeature {
                advice,
                ..required("control groups, or none are mounted", "CONFIG_CGROUPS")
            });
            return missing;
        }
        if !self.unified && !self.controllers.contains("devices") {
            missing.push(required("the cgroup controller for devices", "CONFIG_CGROUP_DEVICE"));
        }
        let controllers = CONTROLLERS.iter().filter(|(key, ..)| !self.controllers.contains(*key));
        missing.extend(controllers.map(|(_, name, option, advice)| MissingFeature {
            name,
            option,
            advice,
            required: false,
        }));
        missing
    }
}

/// Asking for the type loads its module, which reading `/proc/filesystems` would not.
fn has_overlay() -> io::Result<bool> {
    match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(words: &str) -> BTreeSet<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn good() -> KernelFeatures {
        KernelFeatures {
            overlay: true,
            seccomp: true,
            namespaces: set("cgroup ipc mnt net pid user uts"),
            controllers: set("cpu cpuset memory pids"),
            unified: true,
        }
    }

    fn check(change: impl FnOnce(&mut KernelFeatures), expected: &[(&str, bool)]) {
        let mut features = good();
        change(&mut features);
        let missing = features.missing();
        let found: Vec<_> = missing.iter().map(|one| (one.name, one.required)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        check(|_| {}, &[]);
        check(|f| f.overlay = false, &[("overlayfs", true)]);
        check(|f| f.seccomp = false, &[("seccomp filters", true)]);
        check(|f| assert!(f.namespaces.remove("pid")), &[("process namespaces", true)]);
        check(|f| assert!(f.controllers.remove("memory")), &[("the cgroup controller for memory", false)]);
        // Of v1 devices have a controller, which every container needs.
        check(
            |f| {
                f.unified = false;
                f.controllers = set("cpu memory pids");
            },
            &[("the cgroup controller for devices", true)],
        );
        check(
            |f| {
                f.unified = false;
                f.controllers.clear();
            },
            &[("control groups, or none are mounted", true)],
        );
        let words = KernelFeatures { overlay: false, ..good() }.missing()[0].to_string();
        assert_eq!(
            words,
            "kernel lacks overlayfs (CONFIG_OVERLAY_FS): enable it or load its module, then start again"
        );
    }

    #[test]
    fn this_host_has_what_its_tests_need() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let missing = KernelFeatures::of_this_host().unwrap().missing();
        assert!(!missing.iter().any(|one| one.required), "{missing:?}");
    }
}
