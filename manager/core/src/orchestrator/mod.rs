//! Orchestrators: from services to tasks.
//!
//! A *place* is what a service wants filled: a numbered slot, or a node for a global service. A place holds tasks:
//! its history, the current one (desired up to `running`), and a second current one during a start-first update.
//! [`heal`] keeps one place filled, [`update`] replaces what is out of date at the asked pace, [`reaper`] clears up.
//!
//! Everything follows from the state, so a new leader goes on where the old one stopped.

mod fit;
mod global;
mod heal;
mod place;
pub mod reaper;
mod replicated;
mod restart;
mod update;

#[cfg(test)]
mod tests;

use rswarm_types::{ServiceId, ServiceMode, TaskState, Timestamp};

use crate::plan::{Plan, Subject};
use crate::state::{ObjectRef, State};

pub use fit::is_up_to_date;
pub use restart::{RESTART_DELAY_FLOOR, RESTART_DELAY_MAX, RESTART_SETTLED};

/// What should be done for one service as of `now`. For one that is gone: its tasks are to be removed.
pub fn plan(state: &State, service: ServiceId, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(found) = state.service(service) else {
        for task in state.tasks_of(service).filter(|task| task.desired < TaskState::Remove) {
            plan.set_desired(task.id, TaskState::Remove);
        }
        return plan;
    };
    match fit::Context::new(state, found, now) {
        Ok(context) => match found.spec.mode {
            ServiceMode::Replicated { replicas } => replicated::plan(&context, replicas, &mut plan),
            ServiceMode::Global => global::plan(&context, &mut plan),
        },
        // Specs are checked before they are written, so this is a service written by a newer version.
        Err(error) => plan.note(ObjectRef::Service(service), error.to_string()),
    }
    plan
}

/// When something that began at `start` and lasts `wait` is over; `None` if it is by now.
///
/// A start in the future is the mark of another manager's clock; nothing waits for that.
fn still_waits(start: Timestamp, wait: std::time::Duration, now: Timestamp) -> Option<Timestamp> {
    let end = start.after(wait);
    (start <= now && now < end).then_some(end)
}

/// Asks for a look at the service when a wait is over.
fn wake(plan: &mut Plan, service: ServiceId, when: Timestamp) {
    plan.wake_by(Subject::Service(service), when);
}
