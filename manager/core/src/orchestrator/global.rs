//! Global services: one task on every node that fits. Source: swarm-parity 3.2.
//!
//! A task is made bound to its node; the scheduler merely confirms that it fits there, or says why not.

use std::time::Duration;

use rswarm_types::{Availability, NodeState, TaskState};

use super::fit::Context;
use super::place::{self, Place};
use super::{heal, update};
use crate::plan::{Action, Plan};
use crate::state::State;

/// What a global service wants of a node.
enum Wish {
    /// A task that runs.
    Task,
    /// Nothing new; what is there stays: the node is paused, or has not been heard of since the last election.
    Leave,
    /// No task: the node is drained, down, or does not suit.
    Absence,
    /// The node is gone; so shall be what it ran.
    Forget,
}

pub(super) fn plan(context: &Context, plan: &mut Plan) {
    let places = place::nodes(context.state, context.service.id);
    let (mut kept, mut acted) = (Vec::new(), Vec::new());
    for place in &places {
        match wish(context, context.state, place) {
            Wish::Task if place.is_filled() => {
                acted.push(heal::plan(context, place, plan));
                kept.push(place);
            }
            Wish::Task => {
                let draft = context.draft(0, place.node, TaskState::Running, Duration::ZERO);
                plan.actions.push(Action::CreateTask(draft));
            }
            Wish::Leave => {}
            // What ended for good before stays so when the node is back or suits again.
            Wish::Absence => {
                for task in place.wanted() {
                    plan.set_desired(task.id, TaskState::Shutdown);
                }
            }
            Wish::Forget => {
                for task in place.tasks.iter().filter(|task| task.desired < TaskState::Remove) {
                    plan.set_desired(task.id, TaskState::Remove);
                }
            }
        }
    }
    update::plan(context, &kept, &acted, plan);
}

fn wish(context: &Context, state: &State, place: &Place) -> Wish {
    let Some(node) = place.node.and_then(|id| state.node(id)) else { return Wish::Forget };
    match (node.status.state, node.spec.availability) {
        (NodeState::Down, _) | (_, Availability::Drain) => Wish::Absence,
        (_, Availability::Pause) | (NodeState::Unknown, _) => Wish::Leave,
        (NodeState::Ready, Availability::Active) if context.suits(node) => Wish::Task,
        (NodeState::Ready, Availability::Active) => Wish::Absence,
    }
}
