//! What it takes to create a container, as data: a pure function from configuration and host facts to steps.
//!
//! *Outside* steps are performed by the shim on the host; each one knows how it is undone. *Inside* steps are
//! performed by the new process in its own namespaces; they need no undo, because everything they make dies with
//! the process. `run` performs both.
//!
//! A part of the configuration that is not supported is refused here by name, before anything is touched.

mod devices;
mod exec;
mod lifecycle;
mod mounts;
mod namespaces;
mod objects;
mod process;
mod program;
#[cfg(test)]
mod properties;
mod sysctl;
#[cfg(test)]
mod tests;
mod validate;

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Linux, LinuxResources, Process, Spec};

use crate::cgroup::{self, CgroupError, CgroupPlan, Layout};
use crate::request::Rootfs;
use crate::seccomp::{self, Program, SeccompError};
use crate::sys::{CapabilityBits, MemoryPolicy, Scheduling};

use namespaces::Namespaces;

pub use exec::{Entry, enter, process_of};
pub use lifecycle::{Callers, HookStep, Shape, add_terminal, complete, fail_by_itself, refuse_hooks};
pub(crate) use lifecycle::{annotations, hooks_of};
pub(crate) use mounts::is_bind;
pub(crate) use mounts::known_options;
pub use mounts::{IdSource, MountIds, MountKind, MountPlan};
pub use namespaces::{Birth, IdMap, IdMaps, host_id, map_text, name as namespace_name};
pub(crate) use objects::is_plain_capability;
pub use sysctl::path as sysctl_path;
pub use validate::{ConfigError, check, parse, parse_process, parse_resources, unknown_capability};

/// What the plan needs to know about the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Hierarchies the container may have a cgroup in.
    pub cgroups: Layout,
    /// Whoever creates the container has no privileges on this host, so that it needs a user namespace.
    pub rootless: bool,
    /// Who manages the cgroups, if that is not this runtime itself.
    pub systemd: Option<cgroup::Manager>,
    /// Security modules that are switched on.
    pub apparmor: bool,
    pub selinux: bool,
    /// How long it has been running.
    pub uptime: Duration,
    /// `CLONE_NEW*` of the namespaces that the container is to join by path and that are its creator's own.
    pub joined: u64,
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
    /// Make the cgroup, or have it made by systemd, and set its limits. A process that exists is put there.
    MakeCgroup(CgroupPlan),
    /// Open what the new process could not open, or not in this form. They are numbered in this order.
    OpenSources(Vec<Source>),
    /// Make the container's first process with these new namespaces (`CLONE_NEW*`), in the v2 cgroup if there is one
    /// already.
    SpawnInit { namespaces: u64, birth: Option<Birth> },
    /// Give it what its own privileges do not reach, and let it begin.
    Admit(Admission),
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
            Self::OpenSources(_) | Self::Admit(_) | Self::RunHooks(_) | Self::AwaitReady => Undo::Nothing,
        }
    }
}

/// Something that is opened for the new process, by whoever has the right to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The root file system, mounted nowhere; `propagation` is that of its mounts.
    Root { rootfs: Rootfs, propagation: u64 },
    /// A copy of the mount at `path`, mounted nowhere. `propagation` 0 keeps what it has.
    Tree { path: PathBuf, recursive: bool, ids: Option<MountIds>, propagation: u64 },
    /// An existing file, for writing.
    File(PathBuf),
    /// A connection to a listening socket.
    Connection(PathBuf),
}

/// What a new process cannot do for itself, because it is in another user or mount namespace than its creator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Ids of its new user namespace.
    pub maps: Option<IdMaps>,
    pub oom_score_adj: Option<i32>,
    pub rlimits: Vec<Rlimit>,
    /// Who owns its standard descriptors, as ids of the container.
    pub stdio_owner: Option<(u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub name: String,
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Who is told of system calls that the seccomp profile wants to be asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listener {
    pub path: PathBuf,
    pub metadata: Option<String>,
    /// See [`identify`].
    pub id: String,
    pub bundle: PathBuf,
    pub oci_version: String,
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The number of the descriptor that the creator hands over, where it is the one to connect.
    pub given: Option<usize>,
    /// The first process of the container, where another one enters it.
    #[serde(default)]
    pub entered: Option<i32>,
}

/// A label that a process takes, and has its children take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// The AppArmor profile that exec brings.
    AppArmor(String),
    /// The SELinux label that exec brings.
    Selinux(String),
    /// The SELinux label of keys that are made until exec.
    Keys(String),
}

/// A step of the container's first process.
#[derive(Clone, Debug, PartialEq)]
pub enum Inside {
    /// Enter these namespaces (`CLONE_NEW*`) of a running container; its first process is the target descriptor.
    EnterNamespaces {
        kinds: u64,
        /// It is root of the container's user namespace already.
        user: bool,
    },
    /// Leave the caller's session keyring for the container's, of this name.
    SessionKeyring(String),
    /// Wait for so many descriptors of the creator, and until it has done its part; be root of the user namespace.
    AwaitAdmission {
        descriptors: usize,
        user: bool,
        /// Until then the creator, having no privileges, must be able to write to the process's files in `/proc`.
        open: bool,
    },
    /// Connect to the seccomp agent, while its socket can be reached.
    ConnectListener(Listener),
    Label(Label),
    /// Enter an existing namespace.
    JoinNamespace {
        kind: i32,
        path: PathBuf,
    },
    OomScoreAdj(i32),
    /// Keep mounts from spreading to the host: `MS_*` propagation for the whole tree.
    Propagation(u64),
    /// Use the root file system that the creator has opened.
    TakeRoot(usize),
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
    /// The same by files that the creator has opened.
    JoinCgroupBy(Vec<usize>),
    Scheduling(Scheduling),
    /// As `ioprio_set(2)` takes it.
    IoPriority(u32),
    MemoryPolicy(MemoryPolicy),
    /// A bit per CPU.
    CpuAffinity(Vec<u64>),
    /// `PER_*`.
    Personality(u32),
    /// A new ipc namespace, made by root of the user namespace, to whom its message queues belong then.
    UnshareIpc,
    /// A new cgroup namespace, rooted at the container's cgroup.
    UnshareCgroup,
    Mount(MountPlan),
    Device(Device),
    /// A link in `/dev`, such as `fd` to `/proc/self/fd`. Left alone if the name exists.
    DeviceLink {
        name: &'static str,
        target: &'static str,
    },
    MaskPath {
        path: PathBuf,
        /// SELinux context of an empty directory in its place.
        label: Option<String>,
    },
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
    /// How mounts spread to and from the container's root: `MS_*`.
    RootPropagation(u64),
    ReadonlyRoot,
    Rlimit(Rlimit),
    /// Make the working directory if it is not there, as a container's first process finds it.
    MakeDirectory(PathBuf),
    WorkingDirectory(PathBuf),
    /// What is the host's `/dev/null` becomes the container's own, whose mode and owner may be changed.
    OwnNull,
    StdioOwner {
        uid: u32,
    },
    /// Look up the user's directory, which is to be `HOME`.
    FindHome {
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
    /// What exec needs besides and a filter may forbid: descriptors that it closes, signals as they were at first.
    PrepareExec,
    /// From here on a failure is the program's: who started it has been told that it runs. As with runc it is said on the
    /// standard error, and the exit code is 1.
    FailByItself,
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
    Invalid { field: Cow<'static, str>, value: String, reason: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// The steps that create the container `spec` describes, with its root file system mounted at `mount_point`
/// (an empty directory) and in the cgroup `cgroup`: a path, or where systemd manages them `slice:prefix:name`.
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
    validate::check(spec)?;
    let process = spec.process().as_ref().ok_or(PlanError::Missing { field: "process" })?;
    let linux = spec.linux().as_ref().ok_or(PlanError::Missing { field: "linux" })?;
    refuse_unsupported(linux)?;
    let mut namespaces = Namespaces::of(linux, host)?;
    validate::check_namespaces(spec, process, &namespaces, host)?;
    let limits = resources(linux, host);
    let cgroup = match &host.systemd {
        None => cgroup::plan(&host.cgroups, cgroup, limits.as_deref())?,
        Some(manager) => {
            let annotations = spec.annotations().iter().flatten();
            cgroup::systemd::plan(&host.cgroups, manager, cgroup, limits.as_deref(), annotations)?
        }
    };
    let propagation = mounts::root_propagation(linux.rootfs_propagation().as_deref())?;
    let user = namespaces.has(libc::CLONE_NEWUSER);
    let own_mounts = namespaces.creates(libc::CLONE_NEWNS);
    // Whether the creator can do more than the process, or sees more.
    let far = (user && !host.rootless) || !own_mounts;
    let mut sources = Sources::default();

    let mount_label = process::selinux_label("linux.mountLabel", linux.mount_label(), host)?;
    let (key_label, mut labels) = process::labels(process, host)?;
    let mut inside = Vec::new();
    if own_mounts {
        inside.extend(key_label.map(Inside::Label));
    } else {
        // Before it is in a mount namespace in which others may have anything for `/proc`.
        namespaces.birth.labels = key_label.into_iter().chain(labels.drain(..)).collect();
    }
    let own_ipc = user && namespaces.creates(libc::CLONE_NEWIPC);
    if own_ipc {
        inside.push(Inside::UnshareIpc);
    }
    inside.extend(
        namespaces
            .joined
            .iter()
            .map(|(kind, path)| Inside::JoinNamespace { kind: *kind, path: path.clone() }),
    );
    if let Some(adjustment) = process.oom_score_adj() {
        inside.push(Inside::OomScoreAdj(adjustment));
    }
    linux.seccomp().as_ref().map_or(Ok(()), seccomp::check_program)?;
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose()?;
    if let Some(path) = listener_path(linux, filter.as_ref()) {
        let given = far.then(|| sources.add(Source::Connection(path.clone())));
        inside.push(Inside::ConnectListener(listener(spec, linux, path.clone(), given)));
    }
    if own_mounts {
        inside.push(Inside::Propagation(propagation.tree));
        inside.push(if far {
            let propagation = propagation.tree;
            Inside::TakeRoot(sources.add(Source::Root { rootfs: rootfs.clone(), propagation }))
        } else {
            Inside::MountRoot { rootfs: rootfs.clone(), at: mount_point }
        });
    }
    if namespaces.creates(libc::CLONE_NEWNET) {
        inside.push(Inside::LoopbackUp);
    }
    if let Some(name) = spec.hostname().as_ref().filter(|name| !name.is_empty()) {
        namespaces.require(libc::CLONE_NEWUTS, "hostname", name)?;
        inside.push(Inside::Hostname(name.clone()));
    }
    if let Some(name) = spec.domainname().as_ref().filter(|name| !name.is_empty()) {
        namespaces.require(libc::CLONE_NEWUTS, "domainname", name)?;
        inside.push(Inside::Domainname(name.clone()));
    }
    sysctl::sysctls(linux, &namespaces, &mut inside)?;
    if own_mounts {
        let shared = propagation.root == Some(libc::MS_SHARED);
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        for (at, mount) in mounts.iter().enumerate() {
            let mut mount = MountPlan::of(at, mount, &cgroup.cgroup, &namespaces)?;
            if let MountKind::Bind { source, recursive, ids, given } = &mut mount.kind
                && (far || (shared && !host.rootless) || ids.is_some())
            {
                if host.rootless {
                    let reason = "without privileges on the host ids cannot be mapped".to_owned();
                    let (field, value) = (format!("mounts[{at}].options"), "idmap".to_owned());
                    return Err(PlanError::Invalid { field: field.into(), value, reason });
                }
                let (path, recursive, ids) = (source.clone(), *recursive, ids.clone());
                // In a shared tree a mount stays what it is on the host.
                let propagation = if shared { 0 } else { propagation.tree };
                *given = Some(sources.add(Source::Tree { path, recursive, ids, propagation }));
            }
            mount.set_label(mount_label);
            inside.push(Inside::Mount(mount));
        }
        devices::devices(linux, mounts, &mut inside)?;
    }
    // After the devices, for the rules of the cgroup may forbid to make them.
    let files = cgroup.cgroup.v1_task_files();
    inside.push(if far {
        Inside::JoinCgroupBy(files.into_iter().map(|file| sources.add(Source::File(file))).collect())
    } else {
        Inside::JoinCgroup(files)
    });
    if namespaces.cgroup {
        inside.push(Inside::UnshareCgroup);
    }
    inside.extend(process::scheduling(process)?);
    inside.extend(process::memory_policy(linux)?.map(Inside::MemoryPolicy));
    if own_mounts {
        inside.push(Inside::MakeDirectory(process.cwd().clone()));
        inside.extend(linux.readonly_paths().iter().flatten().map(|path| Inside::ReadonlyPath(path.into())));
        inside.extend(
            linux
                .masked_paths()
                .iter()
                .flatten()
                .map(|path| Inside::MaskPath { path: path.into(), label: mount_label.cloned() }),
        );
        // By the host's /proc, which no image can have prepared.
        inside.extend(labels.into_iter().map(Inside::Label));
        inside.push(Inside::PivotRoot);
        inside.extend(propagation.root.map(Inside::RootPropagation));
        if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
            inside.push(Inside::ReadonlyRoot);
        }
    }
    inside.extend(process::personality(linux)?);
    program::steps(process, filter, &mut inside)?;

    let Namespaces { mut created, birth, maps, .. } = namespaces;
    if own_ipc {
        created &= !(libc::CLONE_NEWIPC as u64);
    }
    let birth = (birth != Birth::default()).then_some(birth);
    let spawn = Outside::SpawnInit { namespaces: created, birth };
    let made_user = created & libc::CLONE_NEWUSER as u64 != 0;
    let mut admission = Admission { maps: maps.filter(|_| made_user), ..Admission::default() };
    if far {
        move_out(&mut inside, process, &mut admission);
    }
    // Processes are born in their cgroup, except where systemd makes that around a process.
    let born_before = cgroup.unit.is_some();
    let make = Outside::MakeCgroup(cgroup);
    let (mut outside, spawn) =
        if born_before { (vec![spawn, make], None) } else { (vec![make], Some(spawn)) };
    let descriptors = sources.0.len();
    if descriptors > 0 {
        outside.push(Outside::OpenSources(sources.0));
    }
    outside.extend(spawn);
    if born_before || user || far || descriptors > 0 {
        outside.push(Outside::Admit(admission));
        let open = host.rootless && made_user;
        inside.insert(0, Inside::AwaitAdmission { descriptors, user, open });
    }
    outside.push(Outside::AwaitReady);
    Ok(Plan { outside, inside })
}

/// Tells a seccomp agent which container it is asked about; [`create`] does not know.
pub fn identify(plan: &mut Plan, id: &str, bundle: &std::path::Path) {
    for step in &mut plan.inside {
        if let Inside::ConnectListener(listener) = step {
            id.clone_into(&mut listener.id);
            bundle.clone_into(&mut listener.bundle);
        }
    }
}

/// Parts the container from the keyring of whoever creates it.
pub fn part_keyring(plan: &mut Plan, id: &str) {
    let first =
        |step: &&Inside| matches!(step, Inside::AwaitAdmission { .. } | Inside::Label(Label::Keys(_)));
    let at = plan.inside.iter().take_while(first).count();
    plan.inside.insert(at, Inside::SessionKeyring(keyring_name(id)));
}

/// As with runc.
pub fn keyring_name(id: &str) -> String {
    format!("_ses.{id}")
}

/// What the creator opens, by number.
#[derive(Default)]
struct Sources(Vec<Source>);

impl Sources {
    fn add(&mut self, source: Source) -> usize {
        self.0.push(source);
        self.0.len() - 1
    }
}

/// Leaves to the creator what takes privileges of the host.
fn move_out(inside: &mut Vec<Inside>, process: &Process, admission: &mut Admission) {
    inside.retain(|step| match step {
        Inside::OomScoreAdj(adjustment) => {
            admission.oom_score_adj = Some(*adjustment);
            false
        }
        Inside::Rlimit(limit) => {
            admission.rlimits.push(limit.clone());
            false
        }
        Inside::StdioOwner { .. } => false,
        _ => true,
    });
    admission.stdio_owner = Some((process.user().uid(), process.user().gid()));
}

/// The agent's socket, if any rule of the profile needs it.
fn listener_path<'a>(linux: &'a Linux, filter: Option<&Program>) -> Option<&'a PathBuf> {
    filter.filter(|filter| filter.notifies())?;
    linux.seccomp().as_ref()?.listener_path().as_ref()
}

fn listener(spec: &Spec, linux: &Linux, path: PathBuf, given: Option<usize>) -> Listener {
    Listener {
        path,
        metadata: linux.seccomp().as_ref().and_then(|profile| profile.listener_metadata().clone()),
        oci_version: spec.version().clone(),
        annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        given,
        ..Listener::default()
    }
}

/// Resources without what nobody but the host's root can have: rules for devices, where an unprivileged container has
/// no way to a device anyway.
fn resources<'a>(linux: &'a Linux, host: &HostFacts) -> Option<Cow<'a, LinuxResources>> {
    let mut resources = Cow::Borrowed(linux.resources().as_ref()?);
    if host.rootless {
        resources.to_mut().set_devices(None);
    }
    Some(resources)
}

fn not_supported(field: &str) -> PlanError {
    PlanError::NotSupported { field: field.to_owned() }
}

fn refuse_unsupported(linux: &Linux) -> Result<(), PlanError> {
    let refused = [
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
    ];
    refused.iter().find(|(_, set)| *set).map_or(Ok(()), |(field, _)| Err(not_supported(field)))
}
