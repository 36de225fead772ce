//! Who leads, as the rest of the manager should believe it.
//!
//! A member counts as leader only once it has committed and applied an entry of its own term, and only while a
//! majority answers it: control loops that start with that see all that was ever acknowledged, and those of a leader
//! that was cut off stop before its successor's have done much.
//!
//! A group of one needs no clock: its ticks are turned off, so that an idle daemon does nothing.

use std::io;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::Timings;
use super::log::LogStore;
use super::types::{LogId, Raft};

/// This member's part in the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    /// May plan and write. Another term is another leadership, even without a follower in between.
    Leader { term: u64 },
    /// Knows who leads, or not at the moment.
    Follower { leader: Option<LeaderInfo> },
}

/// Where the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderInfo {
    pub raft_id: u64,
    /// `IP:PORT` of its API.
    pub addr: String,
}

/// Silence after which a member counts as unreachable.
pub(super) fn silence(timings: Timings) -> Duration {
    timings.election_max * 2
}

/// The leader the library believes in, as soon as it does.
pub(super) fn believed_leader(raft: &Raft) -> Option<LeaderInfo> {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let raft_id = metrics.current_leader?;
    let addr = metrics.membership_config.get_node(&raft_id)?.addr.clone();
    Some(LeaderInfo { raft_id, addr })
}

/// What a member had on disk when it started.
///
/// The library lets a leader that comes back lead on in its old term, without an election and the entry that tells how
/// much of the log is committed. What the leader has noted of that may be less than what it acknowledged, which is all
/// in its log: so in that term nothing counts as applied, and nothing is read, before that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resumed {
    term: u64,
    last: Option<u64>,
}

impl Resumed {
    pub async fn of(mut log: LogStore) -> io::Result<Self> {
        let term = log.read_vote().await?.map_or(0, |vote| vote.leader_id.term);
        let last = log.get_log_state().await?.last_log_id.map(|log_id| log_id.index);
        Ok(Self { term, last })
    }

    /// Up to where a leader of `term` must have applied the log before it shows its state. A lower term than at the start
    /// is one that the library has not told yet.
    pub fn until(self, term: u64) -> Option<u64> {
        self.last.filter(|_| term <= self.term)
    }
}

/// Keeps `leadership` true until cancelled or until the library stops.
pub(super) async fn watch(
    raft: Raft,
    mut progress: watch::Receiver<Option<LogId>>,
    resumed: Resumed,
    leadership: watch::Sender<Leadership>,
    timings: Timings,
    cancelled: CancellationToken,
) {
    let id = *raft.node_id();
    let mut metrics = raft.server_metrics();
    loop {
        let (leads, term, alone) = {
            let metrics = metrics.borrow_and_update();
            let membership = &metrics.membership_config;
            let alone = membership.nodes().all(|(member, _)| *member == id);
            (metrics.state.is_leader(), metrics.vote.leader_id.term, alone)
        };
        raft.runtime_config().tick(!(leads && alone));

        let applied = progress
            .borrow_and_update()
            .is_some_and(|log_id| log_id.leader_id.term == term && Some(log_id.index) >= resumed.until(term));
        let heard = alone || {
            let metrics = raft.metrics();
            let acked = metrics.borrow_watched().last_quorum_acked;
            acked.is_none_or(|acked| acked.elapsed() < silence(timings))
        };
        let next = if leads && applied && heard {
            Leadership::Leader { term }
        } else {
            Leadership::Follower { leader: believed_leader(&raft).filter(|leader| leader.raft_id != id) }
        };
        leadership.send_if_modified(|current| {
            let changed = *current != next;
            if changed {
                tracing::info!("raft member {id}: {next:?}");
                *current = next;
            }
            changed
        });

        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { break },
            changed = progress.changed(), if leads && !applied => if changed.is_err() { break },
            () = tokio::time::sleep(timings.election_max), if leads && !alone => {}
            () = cancelled.cancelled() => break,
        }
    }
    leadership.send_replace(Leadership::Follower { leader: None });
}
