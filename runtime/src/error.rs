//! What can go wrong, by operation, and the form in which it crosses from shim and container to the caller.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state::Status;

/// An operation on a container that did not succeed. Nothing is left half done unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    #[error(
        "invalid container id `{id}`: expected 1 to 128 characters out of a-z, A-Z, 0-9, `_`, `.`, `-`, not starting with `.`"
    )]
    InvalidId { id: String },
    #[error("container `{id}` already exists")]
    AlreadyExists { id: String },
    #[error("container `{id}` not found")]
    NotFound { id: String },
    #[error("failed to {action} `{path}`")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not a valid record")]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("failed to start the container shim `{path}`")]
    SpawnShim {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to create container `{id}`")]
    Create {
        id: String,
        #[source]
        source: Failure,
    },
    #[error("failed to start container `{id}`")]
    Start {
        id: String,
        #[source]
        source: Failure,
    },
    #[error("failed to signal container `{id}`")]
    Kill {
        id: String,
        #[source]
        source: Failure,
    },
    /// [`Failure::errno`] tells what was not found (`ENOENT`) from what cannot be executed.
    #[error("failed to run a command in container `{id}`")]
    Exec {
        id: String,
        #[source]
        source: Failure,
    },
    #[error("failed to attach to container `{id}`")]
    Attach {
        id: String,
        #[source]
        source: Failure,
    },
    #[error("lost the shim of container `{id}`, and with it how the container or the command in it ended")]
    SessionLost { id: String },
    #[error("container `{id}` is {found}, expected {expected}")]
    WrongState { id: String, expected: &'static str, found: Status },
    #[error("lost the shim of container `{id}` while waiting for its answer")]
    Control {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "container `{id}` did not end within {seconds} s of being killed; a process of it may hang in the kernel"
    )]
    StillRunning { id: String, seconds: u64 },
    #[error("failed to read the cgroup statistics of container `{id}`")]
    Stats {
        id: String,
        #[source]
        source: io::Error,
    },
}

impl RuntimeError {
    /// Whether the container's shim is there but did not answer in time, or did not leave: it hangs, or somebody
    /// stopped it. Nothing is said about the container by that.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Control { source, .. } => is_timeout(source),
            Self::StillRunning { .. } => true,
            _ => false,
        }
    }
}

/// What sockets with a time limit say when that has passed.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// One step that failed, in the shim or inside the container: what was attempted, and why it did not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was attempted on what, such as ``exec `/bin/nope` ``.
    pub step: String,
    pub cause: Cause,
}

/// The reason for a [`Failure`]. Both forms survive the way between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// An errno.
    Os(i32),
    /// Something no errno stands for.
    Text(String),
}

impl Failure {
    pub fn new(step: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { step: step.into(), cause: Cause::Text(cause.into()) }
    }

    /// The errno, where the kernel gave one: `ENOENT` or `EACCES` of the executable, for example.
    pub fn errno(&self) -> Option<i32> {
        match self.cause {
            Cause::Os(errno) => Some(errno),
            Cause::Text(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    /// The step and its cause on one line: a failure is always the end of an error chain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os(errno) => {
                // "No such file or directory (os error 2)" without its tail and its capital letter.
                let text = io::Error::from_raw_os_error(*errno).to_string();
                let text = text.split(" (os error").next().unwrap_or_default();
                let mut letters = text.chars();
                let first = letters.next().map(|letter| letter.to_ascii_lowercase());
                write!(f, "{}{}", first.map(String::from).unwrap_or_default(), letters.as_str())
            }
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<&io::Error> for Cause {
    fn from(error: &io::Error) -> Self {
        error.raw_os_error().map_or_else(|| Self::Text(error.to_string()), Self::Os)
    }
}

/// Names the step that an error belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step(), cause: Cause::from(&error.into()) })
    }
}
