//! Replicated services: so many slots, wherever there is room. Source: swarm-parity 3.1.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rswarm_types::{NodeId, TaskState};

use super::fit::Context;
use super::place::{self, Place};
use super::{heal, update, wake};
use crate::plan::{Action, Plan};

/// Most tasks that one pass makes for a service: keeps a command below some 2 MiB. The next pass goes on.
pub const MAX_NEW_TASKS: usize = 4096;

pub(super) fn plan(context: &Context, replicas: u64, plan: &mut Plan) {
    let places = place::slots(context.state, context.service.id);
    let filled: Vec<&Place> = places.iter().filter(|place| place.is_filled()).collect();
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let (kept, surplus) = split_surplus(&filled, wanted);
    for place in surplus {
        remove_all(place, plan);
    }
    let healed: BTreeSet<u64> =
        kept.iter().filter(|place| heal::plan(context, place, plan)).map(|place| place.slot).collect();
    let refilled = fill(context, &filled, wanted, plan);
    // What is left of slots that nobody needs any more is not worth keeping.
    for place in places.iter().filter(|p| !p.is_filled() && !refilled.contains(&p.slot)) {
        remove_all(place, plan);
    }
    let acted: Vec<bool> = kept.iter().map(|place| healed.contains(&place.slot)).collect();
    update::plan(context, &kept, &acted, plan);
}

/// Makes tasks for the lowest free slot numbers; returns those.
fn fill(context: &Context, filled: &[&Place], wanted: usize, plan: &mut Plan) -> BTreeSet<u64> {
    let missing = wanted.saturating_sub(filled.len());
    let taken: BTreeSet<u64> = filled.iter().map(|place| place.slot).collect();
    let free = (1..).filter(|slot| !taken.contains(slot));
    let slots: BTreeSet<u64> = free.take(missing.min(MAX_NEW_TASKS)).collect();
    for slot in &slots {
        plan.actions.push(Action::CreateTask(context.draft(*slot, None, TaskState::Running, Duration::ZERO)));
    }
    if missing > slots.len() {
        wake(plan, context.service.id, context.now);
    }
    slots
}

fn remove_all(place: &Place, plan: &mut Plan) {
    for task in place.tasks.iter().filter(|task| task.desired < TaskState::Remove) {
        plan.set_desired(task.id, TaskState::Remove);
    }
}

/// Divides filled slots into those to keep, by number, and those that are too many.
///
/// Kept first: the n-th copy on its node before the n+1-th, so that what stays is spread; running before not
/// running; low numbers before high ones.
fn split_surplus<'p, 'a>(
    filled: &[&'p Place<'a>],
    wanted: usize,
) -> (Vec<&'p Place<'a>>, Vec<&'p Place<'a>>) {
    if filled.len() <= wanted {
        return (filled.to_vec(), Vec::new());
    }
    let mut ranked: Vec<(bool, &'p Place<'a>, Option<NodeId>)> = filled
        .iter()
        .map(|place| {
            let running = place.current().find(|task| task.status.state == TaskState::Running);
            let node = running.or(place.current().next_back()).and_then(|task| task.node_id);
            (running.is_none(), *place, node)
        })
        .collect();
    ranked.sort_by_key(|(idle, place, _)| (*idle, place.slot));
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut ranked: Vec<_> = ranked
        .into_iter()
        .map(|(idle, place, node)| {
            // Without a node there is nothing to lose: such slots go first.
            let nth = node.map_or(usize::MAX, |node| {
                let count = copies.entry(node).or_default();
                *count += 1;
                *count
            });
            (nth, idle, place.slot, place)
        })
        .collect();
    ranked.sort_by_key(|(nth, idle, slot, _)| (*nth, *idle, *slot));
    let mut places: Vec<_> = ranked.into_iter().map(|(.., place)| place).collect();
    let surplus = places.split_off(wanted);
    places.sort_by_key(|place| place.slot);
    (places, surplus)
}
