//! Containers on disk: one directory each below the root, with everything a later command must know.
//!
//! | file | there | says |
//! |---|---|---|
//! | `state.json` | once the first process exists | [`Record`] |
//! | `cgroup.json` | before its cgroups are made | [`Intended`], for who cleans up after a creation that was cut short |
//! | `creating.sock` | while it sets itself up | it cannot be started yet |
//! | `start.sock` | until it is started | where the first process waits; who removes the name starts it |
//! | `notify` | with a `NOTIFY_SOCKET` | mounted into the container, with the socket of `notify.rs` |
//! | `seccomp.bpf` | with a seccomp profile | its compiled filter, for `exec` |
//!
//! The names `id`, `init_process_pid`, `init_process_start`, `created`, `cgroup_paths` and `namespace_paths` in
//! `state.json` are runc's, which monitoring tools read; the rest is this runtime's own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{Hook, Process};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::error::{CommandError, OnFile};
use crate::cgroup::{Cgroup, Member};
use crate::error::Failure;
use crate::plan::{HookStep, Shape};
use crate::seccomp::{Instruction, Program};
use crate::state;
use crate::sys::MemoryPolicy;

const RECORD: &str = "state.json";
const INTENDED: &str = "cgroup.json";
const CREATING: &str = "creating.sock";
const START: &str = "start.sock";
const FILTER: &str = "seccomp.bpf";

/// What is known of a container beside what the kernel knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub oci_version: String,
    pub init_process_pid: i32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub init_process_start: u64,
    pub boot_id: String,
    /// RFC 3339.
    pub created: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub annotations: BTreeMap<String, String>,
    /// By controller.
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    /// By kind, as `NEWNET`.
    pub namespace_paths: BTreeMap<String, PathBuf>,
    pub cgroup: Cgroup,
    /// `CLONE_NEW*` bits of the namespaces that are not the caller's.
    pub namespaces: u64,
    /// The first process takes all others with it when it ends.
    pub owns_pids: bool,
    /// The process of the configuration, which `exec` starts from.
    pub process: Process,
    /// Flags of the filter in `seccomp.bpf`.
    pub seccomp_flags: Option<u32>,
    /// Who is asked by it.
    pub seccomp_listener: Option<crate::plan::Listener>,
    /// `PER_*`.
    pub personality: Option<u32>,
    #[serde(default)]
    pub memory_policy: Option<MemoryPolicy>,
    /// It is in its creator's session keyring, and who enters it in the own one.
    #[serde(default)]
    pub keeps_keyring: bool,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// Cgroups that a creation is about to make. What was there before is not among them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Intended {
    members: Vec<Member>,
    /// Directories above, deepest first. A container leaves them behind when it is deleted, for others may count on them;
    /// one that never came to be must not.
    above: Vec<PathBuf>,
}

impl Intended {
    pub fn of(cgroup: &Cgroup) -> Self {
        let missing = cgroup.members.iter().filter(|member| !member.directory.exists());
        Self { members: missing.cloned().collect(), above: cgroup.missing_parents() }
    }

    pub fn write(&self, directory: &Path) -> io::Result<()> {
        state::write_record(&directory.join(INTENDED), self, false)
    }

    pub fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(INTENDED)).ok()?).ok()
    }

    /// Removes them, with the time that their processes, which end with their creator, may take. Where others have come
    /// to be in one since, it stays.
    pub fn remove(self, limit: Duration) -> Result<(), Failure> {
        let removed = Cgroup { members: self.members.clone(), unit: None }.remove_soon(limit);
        self.prune();
        removed
    }

    pub fn prune(&self) {
        self.above.iter().for_each(|directory| drop(fs::remove_dir(directory)));
    }
}

/// Where in its life a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// All containers below one directory.
#[derive(Debug)]
pub(super) struct Store {
    pub root: PathBuf,
}

/// A container that exists.
#[derive(Debug)]
pub(super) struct Container {
    pub directory: PathBuf,
    pub record: Record,
}

impl Store {
    /// Where a container of this id has its files.
    pub fn directory(&self, id: &str) -> Result<PathBuf, CommandError> {
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
        let named = !id.is_empty() && id.len() <= 1024 && id != "." && id != "..";
        if named && id.bytes().all(ordinary) {
            return Ok(self.root.join(id));
        }
        Err(CommandError::InvalidId { id: id.to_owned() })
    }

    /// The container of this id, once its first process was made.
    pub fn load(&self, id: &str) -> Result<Container, CommandError> {
        let directory = self.directory(id)?;
        let path = directory.join(RECORD);
        let bytes = match fs::read(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(CommandError::NotFound { id: id.to_owned() });
            }
            other => other.on("read", &path)?,
        };
        let record = serde_json::from_slice(&bytes).map_err(|source| CommandError::Json { path, source })?;
        Ok(Container { directory, record })
    }

    /// Names of all directories below the root that may be containers, in order.
    pub fn ids(&self) -> Result<Vec<String>, CommandError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.on("list", &self.root)?,
        };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut ids: Vec<String> =
            directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        Ok(ids)
    }
}

impl Container {
    pub fn phase(&self) -> Phase {
        self.look().0
    }

    /// With a descriptor of the first process, which is it and no other, unless it has ended.
    pub fn look(&self) -> (Phase, Option<OwnedFd>) {
        let pidfd = self.pidfd();
        let phase = if pidfd.is_none() {
            Phase::Stopped
        } else if self.directory.join(CREATING).exists() {
            Phase::Creating
        } else if self.record.cgroup.is_frozen() {
            Phase::Paused
        } else if self.is_waiting() {
            Phase::Created
        } else {
            Phase::Running
        };
        (phase, pidfd)
    }

    /// Whether the first process has not been started yet.
    pub fn is_waiting(&self) -> bool {
        self.directory.join(START).exists()
    }

    /// Whether the first process exists and has not ended. Its number alone does not tell: numbers come round again.
    fn is_alive(&self) -> bool {
        state::ProcessIdentity::of_running(self.record.init_process_pid)
            .is_ok_and(|found| found.start_time == self.record.init_process_start)
            && state::boot_id().is_ok_and(|boot| boot == self.record.boot_id)
    }

    /// Host pid of the first process while it exists.
    pub fn pid(&self, phase: Phase) -> Option<i32> {
        (phase != Phase::Stopped).then_some(self.record.init_process_pid)
    }

    /// A descriptor of the first process, which is it and no other.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.record.init_process_pid)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(fd)
    }

    /// The hooks that run after the start, or after the deletion.
    pub fn hooks(&self, kind: &'static str) -> HookStep {
        let (hooks, status) = match kind {
            "poststart" => (&self.record.poststart, "running"),
            _ => (&self.record.poststop, "stopped"),
        };
        let state = Shape {
            oci_version: self.record.oci_version.clone(),
            id: self.record.id.clone(),
            status,
            bundle: self.record.bundle.clone(),
            annotations: self.record.annotations.clone(),
        };
        HookStep { kind, hooks: hooks.clone(), state, env: None }
    }

    /// The compiled seccomp filter, if the container has one.
    pub fn filter(&self) -> Result<Option<Program>, CommandError> {
        let Some(flags) = self.record.seccomp_flags else { return Ok(None) };
        let path = self.directory.join(FILTER);
        let bytes = fs::read(&path).on("read", &path)?;
        let chunks = bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok());
        Ok(Some(Program { instructions: chunks.map(Instruction::from_bytes).collect(), flags }))
    }
}

/// Writes what [`Store::load`] reads. It appears as a whole or not at all.
pub(super) fn write_record(directory: &Path, record: &Record) -> io::Result<()> {
    state::write_record(&directory.join(RECORD), record, false)
}

pub(super) fn write_filter(directory: &Path, filter: &Program) -> Result<(), CommandError> {
    let bytes: Vec<u8> = filter.instructions.iter().flat_map(Instruction::to_bytes).collect();
    let path = directory.join(FILTER);
    fs::write(&path, bytes).on("write", path)
}

/// Where a process that is being created will wait to be started.
pub(super) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let (_handle, address) = address(directory, CREATING)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// The container can be started from now on.
pub(super) fn allow_start(directory: &Path) -> Result<(), CommandError> {
    let path = directory.join(START);
    fs::rename(directory.join(CREATING), &path).on("make", path)
}

/// A line to the waiting process, for one caller only: whoever comes second finds nothing (`None`).
pub(super) fn claim_start(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let (_handle, address) = address(directory, START)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
        other => other?,
    }
    match fs::remove_file(directory.join(START)) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// By way of the directory's descriptor, for socket paths end at 107 bytes.
pub(super) fn address(directory: &Path, name: &str) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()))?;
    Ok((handle, address))
}
