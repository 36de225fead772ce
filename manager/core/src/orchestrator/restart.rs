//! Whether and when a task that ended is replaced. Source: swarm-parity 3.4.
//!
//! The ended task's own policy decides. Attempts are counted from the tasks kept in the place, so a new leader
//! counts as the old one did. Unlike in Swarm a crash loop slows down.

use std::time::Duration;

use rswarm_types::task::RestartCondition;
use rswarm_types::{Task, TaskState, Timestamp};

use super::place::Place;
use super::still_waits;

/// A task that ran this long was no crash: the delay starts over.
pub const RESTART_SETTLED: Duration = Duration::from_secs(60);
/// The longest delay a crash loop grows to, unless the user asked for a longer one.
pub const RESTART_DELAY_MAX: Duration = Duration::from_secs(300);
/// What the delay grows from if the user asked for none: a loop without any would occupy the whole cluster.
pub const RESTART_DELAY_FLOOR: Duration = Duration::from_millis(100);

/// What becomes of the place of a task that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Restart {
    /// Replace it; the replacement may start after the delay.
    Now(Duration),
    /// Ask again then: it ended before it was to start, and waits out that delay.
    At(Timestamp),
    /// It stays ended and fills its place; why.
    Never(String),
}

/// Decides for `task`, which is current and was seen to end.
pub(super) fn decide(task: &Task, place: &Place, now: Timestamp) -> Restart {
    if task.status.state == TaskState::Orphaned {
        return Restart::Now(Duration::ZERO);
    }
    if let Some(reason) = forbidden(task, place) {
        return Restart::Never(reason);
    }
    if task.desired == TaskState::Ready
        && let Some(until) = still_waits(task.meta.created_at, task.start_delay, now)
    {
        return Restart::At(until);
    }
    Restart::Now(delay(task, place))
}

/// Why the policy of a task that ended forbids to replace it; `None` if it does not. The answer stays the same.
pub(super) fn forbidden(task: &Task, place: &Place) -> Option<String> {
    let policy = &task.spec.restart;
    match policy.condition {
        RestartCondition::None => return Some("its restart condition is `none`".to_owned()),
        RestartCondition::OnFailure if task.status.state == TaskState::Complete => {
            return Some("it completed, and its restart condition is `on-failure`".to_owned());
        }
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    let attempts = attempts(task, place);
    (policy.max_attempts > 0 && attempts >= policy.max_attempts)
        .then(|| format!("it was restarted {attempts} times, the most its policy allows"))
}

/// How often the place was refilled under the task's spec, within the policy's window before the task ended.
///
/// The reaper keeps one task more than `max_attempts`, so the first of the place, which is no restart, is either
/// kept or not needed to reach the limit.
fn attempts(task: &Task, place: &Place) -> u64 {
    let window = task.spec.restart.window;
    let counts_from =
        if window.is_zero() { Timestamp::default() } else { task.status.applied_at.before(window) };
    let restarts = place
        .tasks
        .iter()
        .filter(|other| other.spec_version == task.spec_version)
        .skip(1)
        .filter(|other| other.meta.created_at >= counts_from);
    restarts.count() as u64
}

/// The policy's delay, doubled for each failure in a row that came soon after the start.
///
/// With a limited number of attempts it does not grow: the attempts are to fall into the window.
fn delay(task: &Task, place: &Place) -> Duration {
    let policy = &task.spec.restart;
    if policy.max_attempts > 0 {
        return policy.delay;
    }
    let crashed = |t: &Task| {
        let ran = t.status.running_since.map_or(Duration::ZERO, |since| t.status.applied_at.since(since));
        matches!(t.status.state, TaskState::Failed | TaskState::Rejected) && ran < RESTART_SETTLED
    };
    let in_a_row = place
        .tasks
        .iter()
        .rev()
        .filter(|other| other.spec_version == task.spec_version)
        .take_while(|other| crashed(other))
        .count();
    let Some(doublings) = u32::try_from(in_a_row).ok().and_then(|n| n.checked_sub(1)).filter(|n| *n > 0)
    else {
        return policy.delay;
    };
    let base = if policy.delay.is_zero() { RESTART_DELAY_FLOOR } else { policy.delay };
    base.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX))
        .min(RESTART_DELAY_MAX.max(policy.delay))
}
