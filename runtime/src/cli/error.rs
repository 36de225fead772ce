//! What a command can answer instead of doing its work.
//!
//! Callers look for some phrases in these messages; they are runc's: `does not exist` and `container not running`
//! (containerd's shim, podman), `already exists`, `cannot exec in a stopped container`.

use std::io;
use std::path::PathBuf;

use super::options::UsageError;
use crate::cgroup::CgroupError;
use crate::error::Failure;
use crate::plan::{ConfigError, PlanError};

#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error(
        "invalid container ID format: `{id}`, expected 1 to 1024 characters out of a-z, A-Z, 0-9, `_`, `+`, `-`, `.`"
    )]
    InvalidId { id: String },
    #[error("container with given ID already exists: `{id}`")]
    Exists { id: String },
    #[error("container `{id}` does not exist")]
    NotFound { id: String },
    #[error("container not running: `{id}` is {found}")]
    NotRunning { id: String, found: &'static str },
    #[error("cannot start an already running container: `{id}` is {found}")]
    AlreadyRunning { id: String, found: &'static str },
    #[error("cannot start a container in the paused state: resume `{id}` first")]
    Paused { id: String },
    #[error("cannot start a container that has stopped: `{id}`")]
    HasStopped { id: String },
    #[error("cannot delete container {id} that is not stopped: {found}")]
    NotStopped { id: String, found: &'static str },
    #[error("process args cannot be empty: expected a command after the container's id, or --process")]
    NoCommand,
    #[error("cannot exec in a stopped container: `{id}`")]
    ExecStopped { id: String },
    #[error("cannot exec in a paused container (use --ignore-paused to override): `{id}`")]
    ExecPaused { id: String },
    #[error("container not paused: `{id}` is {found}")]
    NotPaused { id: String, found: &'static str },
    #[error("container `{id}` did not end within {seconds} s of being killed")]
    StillRunning { id: String, seconds: u64 },
    #[error("unknown signal `{signal}`: expected a number or a name such as TERM")]
    UnknownSignal { signal: String },
    #[error("`{command}` is not supported: processes can be neither saved nor restored")]
    NoCheckpoint { command: String },
    #[error("{path} is not a sub cgroup path: expected one without `..`")]
    AboveCgroup { path: String },
    #[error("unknown controller {name}: expected one that the container has a cgroup of")]
    UnknownController { name: String },
    #[error("adding pid to the cgroup: {}: no such file or directory", path.display())]
    NoSubCgroup { path: PathBuf },
    #[error(
        "unable to apply cgroup configuration: permission denied for `{}`: leave out `linux.cgroupsPath`", path.display()
    )]
    CgroupNotPermitted { path: PathBuf },
    #[error(
        "cannot set `linux.resources.{name}`: rootless needs no limits + no cgrouppath when no permission is granted for cgroups"
    )]
    LimitNotPermitted { name: &'static str },
    #[error(
        "container `{id}` has no cgroup with the controller `{controller}`: its processes are in `{}`, where its user may make none; \
         have one delegated (with systemd: `systemd-run --user --scope`) or be root, and create the container anew",
        path.display()
    )]
    NotDelegated { id: String, controller: String, path: PathBuf },
    #[error("a terminal needs {expected}")]
    Terminal { expected: &'static str },
    #[error("cannot keep descriptor {number} of --preserve-fds: it is not open")]
    Descriptor { number: u32 },
    #[error("JSON specification file `{path}` not found")]
    NoSpec { path: PathBuf },
    #[error("file `{path}` exists, remove it first")]
    SpecExists { path: PathBuf },
    #[error("`{path}` is not valid")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{path}` is not valid")]
    Spec {
        path: PathBuf,
        #[source]
        source: ConfigError,
    },
    #[error("`{field}` has the invalid value `{value}`: expected {expected}")]
    Config { field: &'static str, value: String, expected: &'static str },
    #[error("failed to {action} `{path}`")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to {action}")]
    Os {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("the container was stopped")]
    Poststart(#[source] Failure),
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// Names the file that an error belongs to.
pub(super) trait OnFile<T> {
    fn on(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, CommandError>;
}

impl<T, E: Into<io::Error>> OnFile<T> for Result<T, E> {
    fn on(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, CommandError> {
        self.map_err(|error| CommandError::File { action, path: path.into(), source: error.into() })
    }
}

/// Names what was being done, for an error that belongs to no file.
pub(super) trait During<T> {
    fn during(self, action: &'static str) -> Result<T, CommandError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str) -> Result<T, CommandError> {
        self.map_err(|error| CommandError::Os { action, source: error.into() })
    }
}
