//! Looks at the host for what a plan depends on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use crate::cgroup::{Cgroup, Layout, Manager};
use crate::error::{Failure, Step};
use crate::plan::HostFacts;
use crate::sys;

const CAP_SYS_ADMIN: u32 = 21;

impl HostFacts {
    /// What matters for a container with this configuration in the cgroup `cgroup`. Nothing is looked for that the
    /// configuration does not ask for.
    ///
    /// # Errors
    /// Without a usable `/proc`.
    pub fn detect(spec: &Spec, cgroup: &str) -> Result<Self, Failure> {
        let mut facts = Self::of(spec)?;
        if facts.rootless {
            delegated(&mut facts.cgroups, cgroup);
        }
        Ok(facts)
    }

    /// The same, where systemd manages the cgroups: it, and no hierarchy's owner, says what may be had.
    ///
    /// # Errors
    /// Without a usable `/proc`, and without a systemd that can be asked.
    pub fn detect_with_systemd(spec: &Spec) -> Result<Self, Failure> {
        let mut facts = Self::of(spec)?;
        let user = facts.rootless || !rustix::process::geteuid().is_root() || in_user_namespace();
        facts.systemd = Some(Manager::find(&facts.cgroups, user)?);
        Ok(facts)
    }

    fn of(spec: &Spec) -> Result<Self, Failure> {
        let permitted = sys::permitted_capabilities().step(|| "read the own capabilities".to_owned())?;
        let rootless = permitted & 1 << CAP_SYS_ADMIN == 0;
        let cgroups = Layout::detect().step(|| "look for cgroups in `/proc/self/mountinfo`".to_owned())?;
        let labels = spec.process().as_ref().map(Self::labels).unwrap_or_default();
        let mount_label = spec.linux().as_ref().is_some_and(|linux| is_set(linux.mount_label()));
        let selinux = labels.selinux || mount_label && has_selinux();
        let offsets = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref());
        let uptime = if offsets.is_some() { uptime()? } else { Duration::ZERO };
        let joined = spec.linux().as_ref().map(joined_of_host).unwrap_or_default();
        Ok(Self { cgroups, rootless, selinux, uptime, joined, ..labels })
    }

    /// What matters for the labels of a process alone.
    pub fn labels(process: &Process) -> Self {
        Self {
            apparmor: is_set(process.apparmor_profile()) && has_apparmor(),
            selinux: is_set(process.selinux_label()) && has_selinux(),
            ..Self::default()
        }
    }
}

/// Namespaces with a path that leads to our own, as Docker gives for the host's network.
fn joined_of_host(linux: &Linux) -> u64 {
    let of = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    let given = linux.namespaces().iter().flatten();
    given.fold(0, |bits, namespace| {
        let (kind, own) = match namespace.typ() {
            LinuxNamespaceType::Network => (libc::CLONE_NEWNET, "/proc/self/ns/net"),
            LinuxNamespaceType::Ipc => (libc::CLONE_NEWIPC, "/proc/self/ns/ipc"),
            LinuxNamespaceType::Uts => (libc::CLONE_NEWUTS, "/proc/self/ns/uts"),
            // The others have no settings that a container could change.
            _ => return bits,
        };
        let found = namespace.path().as_deref().and_then(of);
        if found.is_some() && found == of(Path::new(own)) { bits | kind as u64 } else { bits }
    })
}

/// Source: `proc_uptime(5)`.
fn uptime() -> Result<Duration, Failure> {
    let step = || "read `/proc/uptime`".to_owned();
    let text = std::fs::read_to_string("/proc/uptime").step(step)?;
    let seconds = text.split_ascii_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    uptime
        .ok_or_else(|| Failure::new(step(), format!("expected a number of seconds, found `{}`", text.trim())))
}

/// Root of a user namespace, as podman makes one for a user, is nobody to the system's manager.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn is_set(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

/// Source: `apparmor(7)`.
fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Source: `selinux(8)`: its file system is there when it is switched on.
fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Leaves the hierarchies in which somebody has given us a part of the tree.
fn delegated(layout: &mut Layout, cgroup: &str) {
    let mine = |directory: &Path| {
        let above = directory.ancestors().find(|path| path.exists());
        above.is_some_and(|path| {
            let writable = rustix::fs::Access::WRITE_OK;
            let control = path.join("cgroup.procs");
            rustix::fs::access(path, writable).is_ok() && rustix::fs::access(control, writable).is_ok()
        })
    };
    let members = Cgroup::at(layout, cgroup).members;
    let kept: Vec<PathBuf> =
        members.into_iter().filter(|member| mine(&member.directory)).map(|member| member.mount).collect();
    layout.v1.retain(|hierarchy| kept.contains(&hierarchy.mount));
    layout.unified = layout.unified.take().filter(|mount| kept.contains(mount));
}
