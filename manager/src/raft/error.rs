//! What can go wrong with this manager's part in the Raft group.

use std::io;
use std::path::PathBuf;

use rswarm_core::state::Rejected;

use super::codec::CodecError;
use super::key::KeyError;
use super::log::LogError;
use super::node::{COMMAND_MAX, JOIN_TIMEOUT};
use super::snapshot::SnapshotError;

/// Why a member could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    #[error("failed to {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another daemon uses `{}`; stop it first", .0.display())]
    InUse(PathBuf),
    #[error("`{}` holds a manager's state already; start that one, or leave its cluster first", .0.display())]
    Exists(PathBuf),
    #[error("`{}` holds no manager's state", .0.display())]
    Missing(PathBuf),
    #[error("expected the state of {expected} in `{}`, found that of {found}", dir.display())]
    OtherOwner { dir: PathBuf, expected: String, found: String },
    #[error("failed to read `{}`", path.display())]
    Member {
        path: PathBuf,
        #[source]
        source: CodecError,
    },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the raft timings do not fit together")]
    Timings(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("failed to start the raft member from `{}`", dir.display())]
    Start {
        dir: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("failed to make the first write of the cluster")]
    First(#[source] ProposeError),
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// Why a manager could not join the group.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("manager `{addr}` refused to take this node into the group: {reason}")]
    Refused { addr: String, reason: String },
    #[error("no manager took this node into the group in time; the last one asked was `{addr}`: {reason}")]
    NoAnswer { addr: String, reason: String },
    #[error(
        "this node was taken into the group as member {raft_id} but did not become a voter within {JOIN_TIMEOUT:?}"
    )]
    NotPromoted { raft_id: u64 },
}

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// The command was understood and changes nothing.
    #[error(transparent)]
    Rejected(Rejected),
    /// Nothing was written; trying again later is safe.
    #[error("the cluster has no leader at the moment; nothing was changed")]
    NoLeader,
    /// It may still take effect.
    #[error("the leader did not answer in time; the change may or may not have been made")]
    Timeout,
    /// It may still take effect.
    #[error("this manager has stopped; the change may or may not have been made")]
    Stopped,
    #[error("expected a change of at most {COMMAND_MAX} bytes, found {len}")]
    TooLarge { len: usize },
    #[error("the change cannot be written: {0}")]
    Unwritable(String),
    /// Nothing was written.
    #[error("no space left on the file system of `{0}`: free some; nothing was changed")]
    NoRoom(String),
}

/// Why a read could not be made linearizable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the cluster has no leader at the moment")]
    NoLeader,
    #[error("this manager did not catch up with the leader in time")]
    Timeout,
    #[error("this manager has stopped")]
    Stopped,
}
