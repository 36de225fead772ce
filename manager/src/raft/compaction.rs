//! When to make a snapshot, and what to keep of the log behind it.
//!
//! Both follow the cluster's spec as it is at the moment, on every manager by itself: a changed interval counts at
//! once, and after a restart. The log is kept from the snapshot before the newest one on, so that this one can still be
//! started from, and for followers that lag.

use openraft::async_runtime::watch::WatchReceiver;
use rswarm_core::State;

use super::node::RaftNode;

/// What one look at the log came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    snapshot: bool,
    /// Entries up to this index are of no use any more.
    purge_upto: Option<u64>,
}

/// Remembers what was asked for, so that nothing is asked for twice.
#[derive(Debug, Default)]
struct Compaction {
    /// Index up to which the newest snapshot was made.
    newest: u64,
    /// The last index at which one was asked for: should it have failed, the next comes an interval later.
    asked: u64,
}

impl Compaction {
    /// What is due now that entries up to `applied` are applied and those up to `snapshot` are in a snapshot.
    fn look(&mut self, applied: u64, snapshot: u64, interval: u64) -> Due {
        let mut due = Due::default();
        if snapshot > self.newest {
            due.purge_upto = (self.newest > 0).then_some(self.newest);
            self.newest = snapshot;
        }
        if applied >= self.newest.max(self.asked).saturating_add(interval.max(1)) {
            self.asked = applied;
            due.snapshot = true;
        }
        due
    }
}

/// Makes snapshots and cuts the log until the member stops.
pub(super) async fn maintain(node: RaftNode) {
    let mut metrics = node.raft().metrics();
    let mut states = node.store().subscribe();
    let cancelled = node.cancelled().clone();
    let index = |id: Option<u64>| id.unwrap_or_default();
    let mut compaction = Compaction::default();
    loop {
        states.mark_unchanged();
        let (applied, snapshot) = {
            let metrics = metrics.borrow_and_update();
            let snapshot = metrics.snapshot.as_ref().map(|id| id.index);
            (index(metrics.last_applied.as_ref().map(|id| id.index)), index(snapshot))
        };
        let interval = interval(&states.borrow(), node.config().snapshot_interval);
        let due = compaction.look(applied, snapshot, interval);
        let purged = match due.purge_upto {
            Some(upto) => node.raft().trigger().purge_log(upto).await,
            None => Ok(()),
        };
        let asked = if due.snapshot { node.raft().trigger().snapshot().await } else { Ok(()) };
        if purged.and(asked).is_err() {
            // The member has stopped, as whoever waits for that is told.
            return;
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            // A new interval. Without one this is no more than another look at the same numbers.
            changed = states.changed() => if changed.is_err() { return },
            () = cancelled.cancelled() => return,
        }
    }
}

fn interval(state: &State, otherwise: u64) -> u64 {
    state.cluster().map_or(otherwise, |cluster| cluster.spec.snapshot_interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(snapshot: bool, purge_upto: Option<u64>) -> Due {
        Due { snapshot, purge_upto }
    }

    #[test]
    fn a_snapshot_is_due_every_interval_and_the_log_is_kept_from_the_one_before() {
        let mut compaction = Compaction::default();
        // (applied, in a snapshot, interval), what is due
        for ((applied, snapshot, interval), expected) in [
            ((9, 0, 10), due(false, None)),
            ((12, 0, 10), due(true, None)),
            ((13, 0, 10), due(false, None)),
            ((14, 12, 10), due(false, None)),
            ((22, 12, 10), due(true, None)),
            ((23, 22, 10), due(false, Some(12))),
            // A shorter interval counts at once, a longer one too.
            ((24, 22, 2), due(true, None)),
            ((24, 24, 2), due(false, Some(22))),
            ((30, 24, 100), due(false, None)),
            // One that fails is tried again an interval later.
            ((124, 24, 100), due(true, None)),
            ((125, 24, 100), due(false, None)),
            ((224, 24, 100), due(true, None)),
            // One from the leader, ahead of all that was applied here.
            ((300, 300, 100), due(false, Some(24))),
            ((301, 300, 0), due(true, None)),
        ] {
            assert_eq!(
                compaction.look(applied, snapshot, interval),
                expected,
                "{applied} {snapshot} {interval}"
            );
        }
    }
}
