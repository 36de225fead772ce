//! What is known about a container, and the records the shim keeps of it.

use std::fmt;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::RuntimeError;

/// The OCI configuration as it was given.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// The rest of the request.
pub(crate) const REQUEST_FILE: &str = "shim.json";
/// [`InitRecord`], written when the container has been created.
pub(crate) const INIT_FILE: &str = "state.json";
/// [`ExitStatus`], made durable when the container has ended.
pub(crate) const EXIT_FILE: &str = "exit.json";
/// Where the shim listens.
pub(crate) const SOCKET_FILE: &str = "shim.sock";
/// Mount point of the root file system; always empty when seen from the host.
pub(crate) const ROOTFS_DIRECTORY: &str = "rootfs";

/// A container at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub status: Status,
    /// Host pid of the container's first process while it exists.
    pub pid: Option<i32>,
    pub created_at_unix_nanos: i64,
    pub started_at_unix_nanos: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Everything is in place and the process waits to be started.
    Created,
    Running,
    Exited(ExitStatus),
    /// The shim vanished without leaving an exit status, so none will ever be known. Whatever it left was killed.
    Lost,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited(_) => "exited",
            Self::Lost => "lost",
        })
    }
}

/// How a container's first process ended. Exactly one of `code` and `signal` is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel killed at least one of the container's processes because its memory limit was reached.
    pub oom_killed: bool,
    pub created_at_unix_nanos: i64,
    /// `None` when it was never started.
    pub started_at_unix_nanos: Option<i64>,
    pub finished_at_unix_nanos: i64,
}

impl ExitStatus {
    /// The exit code as shells give it: 128 plus the signal for a killed process.
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// How the process of a session ended. Exactly one of `code` and `signal` is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl ProcessEnd {
    /// As [`ExitStatus::shell_code`].
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// What another process needs to find a container whose shim is gone. Pids are only believed together with the boot
/// and their start time, because numbers come round again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitRecord {
    pub boot_id: String,
    pub init: ProcessIdentity,
    pub shim: ProcessIdentity,
    pub created_at_unix_nanos: i64,
    pub cgroup: Cgroup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessIdentity {
    pub fn of(pid: i32) -> io::Result<Self> {
        Self::read(pid).map(|(found, _)| found)
    }

    /// The same for a process that has not ended: one that only waits to be waited for is not found.
    pub fn of_running(pid: i32) -> io::Result<Self> {
        match Self::read(pid)? {
            (_, b'Z' | b'X') => Err(io::ErrorKind::NotFound.into()),
            (found, _) => Ok(found),
        }
    }

    /// With its state letter.
    fn read(pid: i32) -> io::Result<(Self, u8)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is a name in brackets that may itself hold spaces and brackets.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
        let mut fields = fields.into_iter().flatten();
        let state = fields.next().and_then(|field| field.bytes().next());
        let start_time = fields.nth(18).and_then(|field| field.parse().ok());
        match (state, start_time) {
            (Some(state), Some(start_time)) => Ok((Self { pid, start_time }, state)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected `/proc/{pid}/stat`"))),
        }
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|found| found == self)
    }
}

/// Identifies this boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// Reads a JSON record; `None` when the file does not exist or holds no such record, as after a power cut that came
/// before its content was on the disk: what is known without it must do then, for ever.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuntimeError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RuntimeError::File { action: "read", path: path.to_owned(), source }),
    };
    Ok(serde_json::from_slice(&bytes).ok())
}

/// An empty file that only root may read: configurations hold secrets in their environment, and so may a log.
pub(crate) fn create_private(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes a JSON record that appears as a whole or not at all. With `durable` it also survives a power cut.
pub(crate) fn write_record<T: Serialize>(path: &Path, record: &T, durable: bool) -> io::Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("tmp");
    let mut file = create_private(&temporary)?;
    file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)?;
    if durable {
        file.sync_all()?;
    }
    drop(file);
    std::fs::rename(&temporary, path)?;
    if let (true, Some(directory)) = (durable, path.parent()) {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}
