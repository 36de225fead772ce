//! Replication: one log of commands, agreed on by the managers, and the state it makes on each of them.
//!
//! The only code that names the consensus library. Everyone else holds a [`RaftNode`], proposes commands with it and
//! reads the state through its [`Store`](crate::store::Store).
//!
//! - [`node`]: the handle: start, propose, linearizable reads, who leads.
//! - [`membership`]: joining, leaving, and bringing every change of the group to its end.
//! - [`compaction`]: when to make snapshots, and what to keep of the log.
//! - [`service`], [`network`]: the two ends of the messages between managers.
//! - [`log`], [`snapshot`], [`key`]: what is on disk, sealed. [`codec`]: the form of all bytes.
//! - [`state_machine`]: applies and publishes.
//!
//! On disk, under the directory given: `member` (who this manager is in the group), `dek` (the data key), `log/`,
//! `snapshots/`, and `lock`, held while a daemon runs on it. Recovery from a lost majority, backups and autolock
//! will work on these files; they have no other home.

pub mod codec;
mod compaction;
mod config;
mod error;
mod files;
mod key;
mod leadership;
mod log;
mod membership;
mod network;
mod node;
mod service;
mod snapshot;
mod state_machine;
mod types;

pub use config::{RaftConfig, Timings};
pub use error::{JoinError, ProposeError, RaftError, ReadError};
pub use key::KeyError;
pub use leadership::{LeaderInfo, Leadership};
pub use log::LogError;
pub use membership::{AdmitError, Member, Reachability, Removal, RemoveError};
pub use network::Connector;
pub use node::RaftNode;
pub use service::{LEADER_METADATA, RaftService, RaftSlot, server};
pub use snapshot::SnapshotError;

#[cfg(test)]
mod conformance;
