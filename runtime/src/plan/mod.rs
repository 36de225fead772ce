//! What it takes to create a container, as data: a pure function from configuration and host facts to steps.
//!
//! *Outside* steps are performed by the shim on the host; each one knows how it is undone. *Inside* steps are
//! performed by the new process in its own namespaces; they need no undo, because everything they make dies with
//! the process. `run` performs both.
//!
//! A part of the configuration that is not supported is refused here by name, before anything is touched.

mod exec;
mod lifecycle;
mod mounts;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxDeviceType, LinuxNamespaceType, PosixRlimitType, Process,
    Spec,
};

use crate::cgroup::{self, CgroupError, CgroupPlan, Layout};
use crate::request::Rootfs;
use crate::seccomp::{self, Program, SeccompError};
use crate::sys::CapabilityBits;

pub use exec::enter;
pub use lifecycle::{Callers, HookStep, Shape, complete, refuse_callers_parts};
pub(crate) use lifecycle::{annotations, hooks_of};
pub use mounts::{MountKind, MountPlan, mount_options};

/// What the plan needs to know about the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub cgroups: Layout,
}

/// Steps in the order of their execution. `outside` holds one [`Outside::SpawnInit`], which sets `inside` going.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub outside: Vec<Outside>,
    pub inside: Vec<Inside>,
}

/// A step on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Outside {
    /// Make the cgroup and set its limits.
    MakeCgroup(CgroupPlan),
    /// Make the container's first process with these new namespaces (`CLONE_NEW*`), in the v2 cgroup if there is one.
    SpawnInit { namespaces: u64 },
    /// Wait until its root file system is complete, run these hooks on the host, and let it go on.
    RunHooks(HookStep),
    /// Wait until it has done everything but exec.
    AwaitReady,
}

/// How an outside step is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    Nothing,
    RemoveCgroup,
    /// Kill the first process; its namespaces and mounts go with it.
    KillInit,
}

impl Outside {
    pub fn undo(&self) -> Undo {
        match self {
            Self::MakeCgroup(_) => Undo::RemoveCgroup,
            Self::SpawnInit { .. } => Undo::KillInit,
            Self::RunHooks(_) | Self::AwaitReady => Undo::Nothing,
        }
    }
}

/// A step of the container's first process.
#[derive(Clone, Debug, PartialEq)]
pub enum Inside {
    /// Enter these namespaces (`CLONE_NEW*`) of a running container; its first process is the target descriptor.
    EnterNamespaces(u64),
    /// Leave the caller's session keyring for a new one of this name.
    SessionKeyring(String),
    /// Enter an existing namespace.
    JoinNamespace {
        kind: i32,
        path: PathBuf,
    },
    OomScoreAdj(i32),
    /// Keep mounts from spreading to the host: `MS_*` propagation for the whole tree.
    Propagation(u64),
    /// Make the root file system appear at the mount point.
    MountRoot {
        rootfs: Rootfs,
        at: PathBuf,
    },
    LoopbackUp,
    Hostname(String),
    Domainname(String),
    /// Write below `/proc/sys`.
    Sysctl {
        name: String,
        value: String,
    },
    /// Move to the v1 cgroups by writing to these `tasks` files. A process that moves itself, alone, is spared the
    /// kernel-wide lock (and the grace period of some milliseconds) that moving another process takes.
    JoinCgroup(Vec<PathBuf>),
    /// A new cgroup namespace, rooted at the container's cgroup.
    UnshareCgroup,
    Mount(MountPlan),
    Device(Device),
    /// A link in `/dev`, such as `fd` to `/proc/self/fd`. Left alone if the name exists.
    DeviceLink {
        name: &'static str,
        target: &'static str,
    },
    MaskPath(PathBuf),
    ReadonlyPath(PathBuf),
    /// Say that the root file system is complete, and wait until the hooks on the host have run.
    AwaitHooks,
    /// Run hooks from in here.
    RunHooks(HookStep),
    /// Make a terminal, send its master over the console socket, and have the other end as standard descriptors.
    Terminal {
        /// Columns and rows.
        size: Option<(u16, u16)>,
        /// Whether it also appears as `/dev/console`.
        console: bool,
        /// Who may open it.
        uid: u32,
    },
    /// Make the root file system the root, and drop the host's.
    PivotRoot,
    /// The same where the root cannot be pivoted (an initramfs): it covers the host's, which stays beneath.
    MoveRoot,
    ReadonlyRoot,
    Rlimit {
        name: String,
        resource: u32,
        soft: u64,
        hard: u64,
    },
    WorkingDirectory(PathBuf),
    StdioOwner {
        uid: u32,
    },
    NoNewPrivileges,
    Seccomp(Program),
    BoundingSet(u64),
    User {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        umask: u32,
        keep_capabilities: bool,
    },
    Capabilities {
        sets: CapabilityBits,
        ambient: u64,
    },
    /// Find the program, so that a missing one is an error of create and not of start.
    ResolveExecutable {
        name: String,
        path: Option<String>,
    },
    /// Say that all is well, and wait to be told to start.
    AwaitStart,
    Exec {
        args: Vec<String>,
        env: Vec<String>,
    },
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A configuration that cannot be carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("`{field}` is missing")]
    Missing { field: &'static str },
    #[error("`{field}` is not supported yet")]
    NotSupported { field: String },
    #[error("`{field}` has the invalid value `{value}`: {reason}")]
    Invalid { field: &'static str, value: String, reason: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// The device nodes every container has. Source: OCI runtime-spec, "Default Devices".
const DEFAULT_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Sysctls that belong to the IPC namespace, beside all of `fs.mqueue`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The steps that create the container `spec` describes, with its root file system mounted at `mount_point`
/// (an empty directory) and in the cgroup `cgroup`.
///
/// # Errors
/// Invalid and unsupported parts of the configuration, by name.
pub fn create(
    spec: &Spec,
    rootfs: &Rootfs,
    mount_point: PathBuf,
    cgroup: &str,
    host: &HostFacts,
) -> Result<Plan, PlanError> {
    let process = spec.process().as_ref().ok_or(PlanError::Missing { field: "process" })?;
    let linux = spec.linux().as_ref().ok_or(PlanError::Missing { field: "linux" })?;
    refuse_unsupported(spec, process, linux)?;
    let namespaces = Namespaces::of(linux)?;
    let cgroup = cgroup::plan(&host.cgroups, cgroup, linux.resources().as_ref())?;

    let mut inside = Vec::new();
    inside.extend(
        namespaces
            .joined
            .iter()
            .map(|(kind, path)| Inside::JoinNamespace { kind: *kind, path: path.clone() }),
    );
    if let Some(adjustment) = process.oom_score_adj() {
        inside.push(Inside::OomScoreAdj(adjustment));
    }
    inside.push(Inside::Propagation(mounts::root_propagation(linux.rootfs_propagation().as_deref())?));
    inside.push(Inside::MountRoot { rootfs: rootfs.clone(), at: mount_point });
    if namespaces.creates(libc::CLONE_NEWNET) {
        inside.push(Inside::LoopbackUp);
    }
    if let Some(name) = spec.hostname() {
        namespaces.require(libc::CLONE_NEWUTS, "hostname", name)?;
        inside.push(Inside::Hostname(name.clone()));
    }
    if let Some(name) = spec.domainname() {
        namespaces.require(libc::CLONE_NEWUTS, "domainname", name)?;
        inside.push(Inside::Domainname(name.clone()));
    }
    sysctls(linux, &namespaces, &mut inside)?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for mount in mounts {
        inside.push(Inside::Mount(MountPlan::of(mount, &cgroup.cgroup)?));
    }
    devices(linux, mounts, &mut inside)?;
    // After the devices, for the rules of the cgroup may forbid to make them.
    inside.push(Inside::JoinCgroup(cgroup.cgroup.v1_task_files()));
    if namespaces.cgroup {
        inside.push(Inside::UnshareCgroup);
    }
    inside.extend(linux.readonly_paths().iter().flatten().map(|path| Inside::ReadonlyPath(path.into())));
    inside.extend(linux.masked_paths().iter().flatten().map(|path| Inside::MaskPath(path.into())));
    inside.push(Inside::PivotRoot);
    if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
        inside.push(Inside::ReadonlyRoot);
    }
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose()?;
    process_steps(process, filter, &mut inside)?;

    Ok(Plan {
        outside: vec![
            Outside::MakeCgroup(cgroup),
            Outside::SpawnInit { namespaces: namespaces.created },
            Outside::AwaitReady,
        ],
        inside,
    })
}

/// From being in the new root to running the program. The order matters: what needs privileges comes before they
/// go, and the filter comes last of what may be privileged.
fn process_steps(
    process: &Process,
    filter: Option<Program>,
    inside: &mut Vec<Inside>,
) -> Result<(), PlanError> {
    let args = process.args().clone().unwrap_or_default();
    let name =
        args.first().filter(|name| !name.is_empty()).ok_or(PlanError::Missing { field: "process.args" })?;
    let env = process.env().clone().unwrap_or_default();
    for (field, list) in [("process.args", &args), ("process.env", &env)] {
        if let Some(bad) = list.iter().find(|text| text.contains('\0')) {
            let value = bad.replace('\0', "\\0");
            return Err(PlanError::Invalid { field, value, reason: "it contains a zero byte".to_owned() });
        }
    }
    if !process.cwd().is_absolute() {
        let value = process.cwd().display().to_string();
        return Err(PlanError::Invalid {
            field: "process.cwd",
            value,
            reason: "expected an absolute path".to_owned(),
        });
    }
    for limit in process.rlimits().iter().flatten() {
        let (name, resource) = rlimit(limit.typ());
        if limit.soft() > limit.hard() {
            let value = limit.soft().to_string();
            let reason = format!("{name} is above its hard limit {}", limit.hard());
            return Err(PlanError::Invalid { field: "process.rlimits", value, reason });
        }
        inside.push(Inside::Rlimit { name, resource, soft: limit.soft(), hard: limit.hard() });
    }
    inside.push(Inside::WorkingDirectory(process.cwd().clone()));
    let user = process.user();
    if user.uid() != 0 {
        inside.push(Inside::StdioOwner { uid: user.uid() });
    }
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let filter = filter.map(Inside::Seccomp);
    let (late, early) = if no_new_privileges { (filter, None) } else { (None, filter) };
    // Without no-new-privileges only a privileged process may install a filter, so this must precede the loss of
    // privileges; with it the filter can be the very last thing and need not allow what we still do.
    inside.extend(early);
    let capabilities = process.capabilities().as_ref();
    if let Some(sets) = capabilities {
        inside.push(Inside::BoundingSet(bits(sets.bounding().as_ref())));
    }
    inside.push(Inside::User {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(0o022),
        keep_capabilities: capabilities.is_some(),
    });
    if let Some(sets) = capabilities {
        inside.push(capability_step(sets));
    }
    if no_new_privileges {
        inside.push(Inside::NoNewPrivileges);
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).map(str::to_owned);
    inside.push(Inside::ResolveExecutable { name: name.clone(), path });
    inside.push(Inside::AwaitStart);
    inside.extend(late);
    inside.push(Inside::Exec { args, env });
    Ok(())
}

fn capability_step(sets: &LinuxCapabilities) -> Inside {
    let permitted = bits(sets.permitted().as_ref());
    let inheritable = bits(sets.inheritable().as_ref());
    Inside::Capabilities {
        sets: CapabilityBits {
            effective: bits(sets.effective().as_ref()) & permitted,
            permitted,
            inheritable,
        },
        // The kernel only takes what is both permitted and inheritable.
        ambient: bits(sets.ambient().as_ref()) & permitted & inheritable,
    }
}

/// Capability numbers as a bit mask. Source: linux/capability.h.
fn bits(set: Option<&Capabilities>) -> u64 {
    set.into_iter()
        .flatten()
        .fold(0, |bits, capability| bits | 1 << crate::defaults::capability_number(*capability))
}

fn rlimit(kind: PosixRlimitType) -> (String, u32) {
    let number = match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    (kind.to_string(), number)
}

/// The namespaces of a container, by what happens to them.
struct Namespaces {
    /// `CLONE_NEW*` bits, without the cgroup namespace: that one can only be made inside the cgroup.
    created: u64,
    cgroup: bool,
    joined: Vec<(i32, PathBuf)>,
}

impl Namespaces {
    fn of(linux: &Linux) -> Result<Self, PlanError> {
        let mut all = Self { created: 0, cgroup: false, joined: Vec::new() };
        for namespace in linux.namespaces().iter().flatten() {
            let kind = match namespace.typ() {
                LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
                LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
                LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
                LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
                LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
                LinuxNamespaceType::Network => libc::CLONE_NEWNET,
                LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                    return Err(not_supported(&format!("linux.namespaces: {:?}", namespace.typ())));
                }
            };
            match namespace.path() {
                None if kind == libc::CLONE_NEWCGROUP => all.cgroup = true,
                None => all.created |= kind as u64,
                // Joining a pid namespace takes another fork, and another mount namespace has another root.
                Some(_) if matches!(kind, libc::CLONE_NEWPID | libc::CLONE_NEWNS) => {
                    return Err(not_supported(&format!("linux.namespaces: path of {:?}", namespace.typ())));
                }
                Some(path) => all.joined.push((kind, path.clone())),
            }
        }
        if !all.creates(libc::CLONE_NEWNS) {
            return Err(PlanError::Missing { field: "linux.namespaces: mount" });
        }
        Ok(all)
    }

    fn creates(&self, kind: i32) -> bool {
        self.created & kind as u64 != 0
    }

    /// The container must have its own namespace of this kind, or `field` would change the host.
    fn require(&self, kind: i32, field: &'static str, value: &str) -> Result<(), PlanError> {
        if self.creates(kind) || self.joined.iter().any(|(joined, _)| *joined == kind) {
            return Ok(());
        }
        let reason = "the container shares this namespace with the host".to_owned();
        Err(PlanError::Invalid { field, value: value.to_owned(), reason })
    }
}

fn sysctls(linux: &Linux, namespaces: &Namespaces, inside: &mut Vec<Inside>) -> Result<(), PlanError> {
    let mut all: Vec<_> = linux.sysctl().iter().flatten().collect();
    all.sort();
    for (name, value) in all {
        let field = "linux.sysctl";
        if name.contains('/') || name.split('.').any(str::is_empty) {
            let reason = "expected names separated by dots".to_owned();
            return Err(PlanError::Invalid { field, value: name.clone(), reason });
        }
        if name.starts_with("net.") {
            namespaces.require(libc::CLONE_NEWNET, field, name)?;
        } else if name.starts_with("fs.mqueue.") || IPC_SYSCTLS.contains(&name.as_str()) {
            namespaces.require(libc::CLONE_NEWIPC, field, name)?;
        } else {
            let reason = "it is not a setting of a namespace, so it would change the host".to_owned();
            return Err(PlanError::Invalid { field, value: name.clone(), reason });
        }
        inside.push(Inside::Sysctl { name: name.clone(), value: value.clone() });
    }
    Ok(())
}

fn devices(
    linux: &Linux,
    mounts: &[oci_spec::runtime::Mount],
    inside: &mut Vec<Inside>,
) -> Result<(), PlanError> {
    // A /dev of the host has its nodes, and must not get ours.
    let host_dev = mounts.iter().any(|mount| {
        let bind = |option: &String| option == "bind" || option == "rbind";
        mount.destination().as_path() == "/dev" && mount.options().iter().flatten().any(bind)
    });
    if !host_dev {
        inside.extend(DEFAULT_DEVICES.iter().map(|(name, major, minor)| {
            let path = PathBuf::from(format!("/dev/{name}"));
            let (major, minor) = (*major, *minor);
            Inside::Device(Device { path, kind: libc::S_IFCHR, major, minor, mode: 0o666, uid: 0, gid: 0 })
        }));
        inside.extend(DEVICE_LINKS.iter().map(|(name, target)| Inside::DeviceLink { name, target }));
    }
    for device in linux.devices().iter().flatten() {
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => {
                let value = device.path().display().to_string();
                let reason = "type `a` is only for rules".to_owned();
                return Err(PlanError::Invalid { field: "linux.devices", value, reason });
            }
        };
        inside.push(Inside::Device(Device {
            path: device.path().clone(),
            kind,
            major: u32::try_from(device.major()).unwrap_or(0),
            minor: u32::try_from(device.minor()).unwrap_or(0),
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        }));
    }
    Ok(())
}

fn not_supported(field: &str) -> PlanError {
    PlanError::NotSupported { field: field.to_owned() }
}

fn refuse_unsupported(spec: &Spec, process: &Process, linux: &Linux) -> Result<(), PlanError> {
    let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refused = [
        (
            "uidMappings",
            spec.uid_mappings().is_some() || linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()),
        ),
        (
            "gidMappings",
            spec.gid_mappings().is_some() || linux.gid_mappings().as_ref().is_some_and(|m| !m.is_empty()),
        ),
        ("process.apparmorProfile", some(process.apparmor_profile())),
        ("process.selinuxLabel", some(process.selinux_label())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
        ("linux.mountLabel", some(linux.mount_label())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())),
    ];
    refused.iter().find(|(_, set)| *set).map_or(Ok(()), |(field, _)| Err(not_supported(field)))
}
