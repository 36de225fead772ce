//! The rolling updater: replaces tasks that are out of date at the pace asked for, and stops or turns back when too
//! many of the new ones fail. Source: swarm-parity 3.5.
//!
//! All it knows is in the state: which places hold a task of the present spec, when that was first seen running, and
//! whether it failed. Unlike in Swarm an update is complete only when its tasks have run.

use std::time::Duration;

use rswarm_types::service::{FailureAction, UpdateConfig, UpdateState};
use rswarm_types::{TaskState, Timestamp};

use super::fit::Context;
use super::place::Place;
use super::{heal, still_waits, wake};
use crate::plan::{Action, Plan};
use crate::state::ObjectRef;

/// A monitor period of zero means this. Source: swarm-parity 1.3.
const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

/// How the update of one place stands.
enum Progress {
    /// Nothing to do: its task is as asked and older than the update.
    Untouched,
    /// No current task is as asked.
    Dirty,
    /// Replaced; the new task has not run yet, or the old one is still there.
    InFlight,
    /// The new task ran, first seen then.
    Done(Timestamp),
}

/// Plans for the filled places of a service; `acted` says which of them were given a new task in this pass already.
pub(super) fn plan(context: &Context, places: &[&Place], acted: &[bool], plan: &mut Plan) {
    let service = context.service;
    let status = service.update_status.as_ref();
    let state = status.map(|status| status.state);
    let progress: Vec<Progress> = places
        .iter()
        .zip(acted)
        .map(|(place, acted)| if *acted { Progress::InFlight } else { progress(context, place) })
        .collect();
    let dirty = progress.iter().filter(|p| matches!(p, Progress::Dirty)).count();
    if let Some(UpdateState::Paused | UpdateState::RollbackPaused) = state {
        if dirty > 0 {
            plan.note(
                ObjectRef::Service(service.id),
                format!("update paused with {dirty} tasks out of date"),
            );
        }
        return;
    }
    let active = matches!(state, Some(UpdateState::Updating | UpdateState::RollbackStarted));
    if !active && dirty == 0 {
        return;
    }
    let config = heal::pace(service);
    let monitor = if config.monitor.is_zero() { DEFAULT_MONITOR } else { config.monitor };
    let since = status.map_or(Timestamp::default(), |status| status.started_at);
    if active && stop_on_failure(context, places, config, monitor, since, plan) {
        return;
    }

    let mut in_flight = 0;
    let mut settled_at = None;
    for place in &progress {
        match place {
            Progress::InFlight => in_flight += 1,
            Progress::Done(at) => {
                if dirty > 0
                    && let Some(until) = still_waits(*at, config.delay, context.now)
                {
                    in_flight += 1;
                    wake(plan, service.id, until);
                }
                if let Some(until) = still_waits(*at, monitor, context.now) {
                    settled_at = settled_at.max(Some(until));
                }
            }
            Progress::Untouched | Progress::Dirty => {}
        }
    }
    let room = match usize::try_from(config.parallelism).unwrap_or(usize::MAX) {
        0 => usize::MAX,
        parallelism => parallelism.saturating_sub(in_flight),
    };
    let mut next: Vec<&Place> = places
        .iter()
        .zip(&progress)
        .filter(|(_, progress)| matches!(progress, Progress::Dirty))
        .map(|(place, _)| *place)
        .collect();
    // Places where nothing runs have nothing to lose.
    next.sort_by_key(|place| {
        let runs = place.current().any(|task| task.status.state == TaskState::Running);
        (runs, place.slot, place.node)
    });
    for place in next.into_iter().take(room) {
        heal::renew(context, place, plan);
    }
    if active && dirty == 0 && in_flight == 0 {
        match settled_at {
            Some(when) => wake(plan, service.id, when),
            None => complete(context, plan),
        }
    }
}

fn progress(context: &Context, place: &Place) -> Progress {
    let version = context.service.spec_version;
    let tried = place.settled().is_some_and(|task| context.is_clean(task));
    if !tried && !place.current().any(|task| context.is_clean(task)) {
        return Progress::Dirty;
    }
    let mut made = place.tasks.iter().filter(|task| task.spec_version == version).peekable();
    if made.peek().is_none() {
        return Progress::Untouched;
    }
    let first_ran = made
        .filter(|task| task.status.state >= TaskState::Running)
        .map(|task| task.status.running_since.unwrap_or(task.status.applied_at))
        .min();
    // If the new one failed for good the old one stays, and there is nothing to wait for.
    let new_one_ended =
        place.current().filter(|task| context.is_clean(task)).all(|t| t.status.state.is_terminal());
    let old_one_left = place.current().any(|task| !context.is_clean(task));
    match first_ran {
        Some(at) if !old_one_left || new_one_ended => Progress::Done(at),
        _ => Progress::InFlight,
    }
}

/// Acts if too many of the update's own tasks failed; returns whether it did.
///
/// Of each place only the first task of the update counts, and only if it failed before it ran or within `monitor`
/// of it. What failed before the update was last resumed is forgiven.
fn stop_on_failure(
    context: &Context,
    places: &[&Place],
    config: &UpdateConfig,
    monitor: Duration,
    since: Timestamp,
    plan: &mut Plan,
) -> bool {
    if config.failure_action == FailureAction::Continue {
        return false;
    }
    let service = context.service;
    let failed: Vec<_> = places
        .iter()
        .filter_map(|place| place.tasks.iter().find(|task| task.spec_version == service.spec_version))
        .filter(|task| {
            let status = &task.status;
            matches!(status.state, TaskState::Failed | TaskState::Rejected)
                && status.applied_at > since
                && status.running_since.is_none_or(|ran| status.applied_at.since(ran) <= monitor)
        })
        .collect();
    let Some(first) = failed.first() else { return false };
    #[allow(clippy::cast_precision_loss)]
    let ratio = failed.len() as f64 / places.len().max(1) as f64;
    if ratio <= config.max_failure_ratio {
        return false;
    }
    let rolls_back =
        service.update_status.as_ref().is_some_and(|status| status.state == UpdateState::RollbackStarted);
    let why = format!("due to failure or early termination of task {}", first.id);
    let (service, spec_version) = (service.id, service.spec_version);
    plan.actions.push(if rolls_back {
        let message = format!("rollback paused {why}");
        Action::SetUpdateStatus { service, spec_version, state: UpdateState::RollbackPaused, message }
    } else if config.failure_action == FailureAction::Rollback && context.service.previous_spec.is_some() {
        let message = format!("update rolled back {why}");
        Action::RollBackService { service, spec_version, message }
    } else {
        let message = format!("update paused {why}");
        Action::SetUpdateStatus { service, spec_version, state: UpdateState::Paused, message }
    });
    true
}

fn complete(context: &Context, plan: &mut Plan) {
    let service = context.service;
    let rolled_back =
        service.update_status.as_ref().is_some_and(|status| status.state == UpdateState::RollbackStarted);
    let (state, message) = if rolled_back {
        (UpdateState::RollbackCompleted, "rollback completed")
    } else {
        (UpdateState::Completed, "update completed")
    };
    plan.actions.push(Action::SetUpdateStatus {
        service: service.id,
        spec_version: service.spec_version,
        state,
        message: message.to_owned(),
    });
}
