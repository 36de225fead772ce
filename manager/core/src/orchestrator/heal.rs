//! Keeps one filled place filled: replaces what ended or must leave, starts what was made ready, and ends what a
//! start-first update has replaced. Source: swarm-parity 3.1, 3.4.

use std::sync::Arc;
use std::time::Duration;

use rswarm_types::service::{UpdateConfig, UpdateOrder, UpdateState};
use rswarm_types::{Service, Task, TaskState};

use super::fit::{Context, Evacuation};
use super::place::{Place, may_run};
use super::restart::{self, Restart};
use super::{still_waits, wake};
use crate::plan::{Action, Plan};
use crate::state::ObjectRef;

/// How long a replacement waits for the task it replaces to stop, beyond that one's grace period.
/// Swarm waits 60 s whatever the grace period, and so may run both.
const STOP_WAIT: Duration = Duration::from_secs(60);
/// The grace period of a task that names none.
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

/// Plans for one filled place. Returns whether the place was given a new task or had one taken away.
pub(super) fn plan(context: &Context, place: &Place, plan: &mut Plan) -> bool {
    let (mut fresh, mut stale): (Vec<_>, Vec<_>) = place.current().partition(|task| context.is_clean(task));
    fresh.sort_by_key(|task| merit(task));
    stale.sort_by_key(|task| merit(task));
    let replaced = fresh.first().is_some_and(|task| {
        matches!(task.status.state, TaskState::Running | TaskState::Complete)
            || pace(context.service).order == UpdateOrder::StopFirst
    });
    let mut acted = false;
    // One of each is enough. The old one stays until the new one does its work, if it does any itself; else it only
    // keeps resources from the new one.
    for (index, task) in stale.iter().enumerate() {
        let useless = !fresh.is_empty() && task.status.state != TaskState::Running;
        if index > 0 || replaced || useless {
            plan.set_desired(task.id, TaskState::Shutdown);
            acted = true;
        }
    }
    for task in fresh.iter().skip(1) {
        plan.set_desired(task.id, TaskState::Shutdown);
        acted = true;
    }
    let Some(main) = fresh.first().or(stale.first()) else { return acted };
    heal_main(context, place, main, plan) || acted
}

/// Best first: running, then on its way, then ended; older before newer.
fn merit(task: &Task) -> (bool, bool, rswarm_types::Timestamp, rswarm_types::TaskId) {
    let state = task.status.state;
    (state != TaskState::Running, state.is_terminal(), task.meta.created_at, task.id)
}

fn heal_main(context: &Context, place: &Place, main: &Arc<Task>, plan: &mut Plan) -> bool {
    let service = context.service.id;
    let (desired, delay) = if main.status.state.is_terminal() {
        match restart::decide(main, place, context.now) {
            Restart::Now(delay) => (TaskState::Ready, delay),
            Restart::At(when) => {
                wake(plan, service, when);
                return false;
            }
            Restart::Never(reason) => {
                plan.note(ObjectRef::Task(main.id), format!("not restarted: {reason}"));
                // Nothing is wanted of it any more; its place has settled. Source: swarm-parity 3.4.
                let newest = place.tasks.last().is_some_and(|task| task.id == main.id);
                if newest && main.desired < TaskState::Shutdown {
                    plan.set_desired(main.id, TaskState::Shutdown);
                }
                return false;
            }
        }
    } else {
        match context.evacuation(main) {
            Some(Evacuation::Lost) => (TaskState::Running, Duration::ZERO),
            Some(Evacuation::Unwanted) => (TaskState::Ready, Duration::ZERO),
            None => {
                if main.desired == TaskState::Ready {
                    start(context, place, main, plan);
                }
                return false;
            }
        }
    };
    replace(context, place, main, desired, delay, plan);
    true
}

/// Ends a task and makes its successor from the service's present spec.
fn replace(
    context: &Context,
    place: &Place,
    old: &Task,
    desired: TaskState,
    delay: Duration,
    plan: &mut Plan,
) {
    plan.set_desired(old.id, TaskState::Shutdown);
    let nothing_to_wait_for = delay.is_zero()
        && !may_run(context.state, old)
        && place.others_alive(context.state, old).next().is_none();
    let desired = if nothing_to_wait_for { TaskState::Running } else { desired };
    plan.actions.push(Action::CreateTask(context.draft(place.slot, place.node, desired, delay)));
}

/// Lets a prepared task run once its delay is over and those it replaces have stopped.
fn start(context: &Context, place: &Place, task: &Task, plan: &mut Plan) {
    let created = task.meta.created_at;
    if let Some(until) = still_waits(created, task.start_delay, context.now) {
        wake(plan, context.service.id, until);
        return;
    }
    let grace = place
        .others_alive(context.state, task)
        .map(|other| other.spec.container.stop_grace_period.unwrap_or(DEFAULT_STOP_GRACE))
        .max();
    if let Some(grace) = grace
        && let Some(until) = still_waits(created, task.start_delay.max(STOP_WAIT + grace), context.now)
    {
        wake(plan, context.service.id, until);
        return;
    }
    plan.set_desired(task.id, TaskState::Running);
}

/// The pace of the change that a service is in: that of its rollback while it rolls back.
pub(super) fn pace(service: &Service) -> &UpdateConfig {
    let rolls_back = service.update_status.as_ref().is_some_and(|status| {
        matches!(
            status.state,
            UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted
        )
    });
    if rolls_back { &service.spec.rollback } else { &service.spec.update }
}

/// Replaces a current task because the spec changed, in the order asked for.
pub(super) fn renew(context: &Context, place: &Place, plan: &mut Plan) {
    let start_first = pace(context.service).order == UpdateOrder::StartFirst;
    let mut waits = false;
    for task in place.wanted() {
        // What does not run serves nobody: it need not stay until its successor does.
        if !start_first || task.status.state != TaskState::Running {
            plan.set_desired(task.id, TaskState::Shutdown);
            waits |= may_run(context.state, task);
        }
    }
    let desired = if waits { TaskState::Ready } else { TaskState::Running };
    plan.actions.push(Action::CreateTask(context.draft(place.slot, place.node, desired, Duration::ZERO)));
}
