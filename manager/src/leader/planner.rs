//! The driver of the control loops: plans, proposes, and plans again when something changed or time has come.
//!
//! One proposal is in flight; changes that come meanwhile are seen by the next pass together.

use rswarm_core::Command;
use rswarm_core::pass::Planner;
use rswarm_types::{TaskId, Timestamp};
use tracing::debug;

use crate::context::{Context, WriteError, sleep};
use crate::{batch, random};

/// Plans until a proposal fails for another reason than that it was refused, or the store closes.
pub(super) async fn run(context: &Context) -> Result<(), WriteError> {
    let mut planner = Planner::default();
    let mut changes = context.store.subscribe();
    loop {
        let state = changes.borrow_and_update().clone();
        let now = Timestamp::now();
        let plan = planner.plan(&state, now);
        for note in &plan.notes {
            debug!(about = %note.about, "{}", note.text);
        }
        if !plan.is_empty() {
            let command = plan.into_command(&state, now, &mut || TaskId::from_bytes(random::bytes()));
            match propose(context, command).await {
                Ok(()) => continue,
                Err(WriteError::Rejected(reason)) => {
                    // Plans hold only writes that are never refused, so this is a fault; a fresh look may get past it.
                    tracing::error!(%reason, "a plan was refused");
                    planner = Planner::default();
                }
                Err(error) => return Err(error),
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = sleep(planner.wake_at().map(|at| at.since(Timestamp::now()))) => {}
        }
    }
}

/// Proposes a plan, in several commands if it is large. Each of its writes stands for itself, so that a plan which
/// was carried out in part is no harm: the next pass plans the rest again.
async fn propose(context: &Context, command: Command) -> Result<(), WriteError> {
    for writes in batch::split(command.writes) {
        context.propose(Command { at: command.at, writes }).await?;
    }
    Ok(())
}
