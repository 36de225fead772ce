//! The scheduler: gives `pending` tasks their nodes, or says in numbers why there is none. Source: swarm-parity 3.6.
//!
//! Tasks of one service and spec version are alike and are placed as a group: [`filter`] says which nodes could take
//! one, [`rank`] which should. Decisions are final; a task never moves. Reservations are exact: a node is never
//! given more than it has, and what a task holds is free again when it was seen to end.

mod filter;
mod rank;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rswarm_types::service::Protocol;
use rswarm_types::task::{PlacementFilter, Unplaced};
use rswarm_types::{Node, NodeId, ServiceId, Task, TaskState, Timestamp, Version};

use crate::plan::{Action, Outcome, Plan};
use crate::state::{NodeUsage, State, is_active};

pub(crate) use filter::platform_fits;

/// Failures of a service on a node that make it the last choice, if so many came within [`FAILURE_WINDOW`].
/// Swarm asks for 5, which it counts in memory; the history kept by default holds 4 per slot.
pub const FAILURES_THAT_COUNT: u32 = 3;
/// See [`FAILURES_THAT_COUNT`].
pub const FAILURE_WINDOW: Duration = Duration::from_secs(300);

/// Places all waiting tasks that have their networks. Assigns, or notes why not if that is news.
pub fn plan(state: &State, now: Timestamp) -> Plan {
    let mut groups: BTreeMap<(ServiceId, Version), Vec<&Arc<Task>>> = BTreeMap::new();
    for task in state.waiting_tasks().filter(|task| task.status.state == TaskState::Pending) {
        groups.entry((task.service_id, task.spec_version)).or_default().push(task);
    }
    let mut plan = Plan::default();
    if groups.is_empty() {
        return plan;
    }
    // Who has waited longest comes first.
    let mut groups: Vec<Vec<&Arc<Task>>> = groups.into_values().collect();
    for group in &mut groups {
        group.sort_by_key(|task| (task.slot, task.id));
    }
    groups.sort_by_cached_key(|group| {
        (group.iter().map(|task| task.meta.created_at).min(), group[0].service_id, group[0].spec_version)
    });
    let mut room = Room::new(state);
    for group in &groups {
        place(state, group, now, &mut room, &mut plan);
    }
    plan
}

fn place(state: &State, group: &[&Arc<Task>], now: Timestamp, room: &mut Room, plan: &mut Plan) {
    let mut needs = match filter::Needs::new(group[0]) {
        Ok(needs) => needs,
        Err(error) => {
            for task in group {
                explain(task, error.to_string(), None, plan);
            }
            return;
        }
    };
    let service = group[0].service_id;
    needs.copies = room.copies(state, service);
    let (bound, free): (Vec<&Arc<Task>>, Vec<&Arc<Task>>) =
        group.iter().partition(|task| task.node_id.is_some());
    for task in bound {
        let Some(at) = task.node_id.and_then(|id| room.index_of(id)) else { continue };
        match needs.check(&room.nodes[at], at) {
            Ok(()) => {
                room.take(at, &mut needs);
                plan.actions.push(Action::AssignTask { task: task.id, node: room.nodes[at].node.id });
            }
            Err(filter) => {
                let unplaced = Unplaced { reasons: vec![(filter, 1)] };
                explain(task, unplaced.to_string(), Some(unplaced), plan);
            }
        }
    }
    if !free.is_empty() {
        let failures = failures(state, free[0], now);
        let mut ranking = rank::Ranking::new(free[0], &failures, &needs, room);
        let mut free = free.into_iter();
        for task in free.by_ref() {
            let Some(at) = ranking.take(&mut needs, room) else {
                let unplaced = filter::explain(&needs, room);
                let text = unplaced.to_string();
                explain(task, text.clone(), Some(unplaced.clone()), plan);
                for task in free.by_ref() {
                    explain(task, text.clone(), Some(unplaced.clone()), plan);
                }
                break;
            };
            plan.actions.push(Action::AssignTask { task: task.id, node: room.nodes[at].node.id });
        }
    }
    room.placed.insert(service, needs.copies);
}

/// Notes why a task waits, unless that is known.
fn explain(task: &Task, error: String, unplaced: Option<Unplaced>, plan: &mut Plan) {
    if task.status.error == error && task.status.unplaced == unplaced {
        return;
    }
    let message = "pending task scheduling".to_owned();
    let outcome = Outcome { state: TaskState::Pending, message, error, unplaced };
    plan.actions.push(Action::SetStatus { task: task.id, outcome });
}

/// Recent failures of the task's service and spec version by node; only nodes with enough of them.
fn failures(state: &State, task: &Task, now: Timestamp) -> BTreeMap<NodeId, u32> {
    let since = now.before(FAILURE_WINDOW);
    let mut failures: BTreeMap<NodeId, u32> = BTreeMap::new();
    for other in state.tasks_of(task.service_id).filter(|other| other.spec_version == task.spec_version) {
        if matches!(other.status.state, TaskState::Failed | TaskState::Rejected)
            && other.status.applied_at >= since
            && let Some(node) = other.node_id
        {
            *failures.entry(node).or_default() += 1;
        }
    }
    failures.retain(|_, count| *count >= FAILURES_THAT_COUNT);
    failures
}

/// What is left of the nodes, as tasks are placed in this pass. Nodes are named by their position, in order of id.
struct Room<'a> {
    nodes: Vec<NodeRoom<'a>>,
    /// Copies by node of services that were looked at in this pass.
    placed: BTreeMap<ServiceId, BTreeMap<usize, u32>>,
}

struct NodeRoom<'a> {
    node: &'a Node,
    free_nano_cpus: u64,
    free_memory_bytes: u64,
    /// Tasks that were not seen to end.
    tasks: u32,
    /// Those of them that run or will.
    active: u32,
    load: u32,
    usage: Option<&'a NodeUsage>,
    /// Host ports given away in this pass.
    ports: BTreeSet<(u16, Protocol)>,
}

impl<'a> Room<'a> {
    fn new(state: &'a State) -> Self {
        let nodes = state
            .nodes()
            .map(|node| {
                let usage = state.usage(node.id);
                let has = node.description.as_ref().map(|d| d.resources).unwrap_or_default();
                let free_nano_cpus = has.nano_cpus.saturating_sub(usage.map_or(0, |u| u.nano_cpus));
                let free_memory_bytes = has.memory_bytes.saturating_sub(usage.map_or(0, |u| u.memory_bytes));
                NodeRoom {
                    node,
                    free_nano_cpus,
                    free_memory_bytes,
                    load: load(node, free_nano_cpus, free_memory_bytes),
                    tasks: usage.map_or(0, |u| u.tasks),
                    active: usage.map_or(0, |u| u.active),
                    usage,
                    ports: BTreeSet::new(),
                }
            })
            .collect();
        Self { nodes, placed: BTreeMap::new() }
    }

    fn index_of(&self, id: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |room| room.node.id).ok()
    }

    /// How many tasks of a service each node has that run or will.
    fn copies(&mut self, state: &State, service: ServiceId) -> BTreeMap<usize, u32> {
        if let Some(copies) = self.placed.remove(&service) {
            return copies;
        }
        let mut copies = BTreeMap::new();
        for task in state.tasks_of(service) {
            if is_active(task)
                && task.status.state >= TaskState::Assigned
                && let Some(at) = task.node_id.and_then(|id| self.index_of(id))
            {
                *copies.entry(at).or_default() += 1;
            }
        }
        copies
    }

    /// Gives a node one task of the group.
    fn take(&mut self, at: usize, needs: &mut filter::Needs) {
        let room = &mut self.nodes[at];
        room.free_nano_cpus -= needs.reserved.nano_cpus;
        room.free_memory_bytes -= needs.reserved.memory_bytes;
        room.tasks += 1;
        room.active += 1;
        room.load = load(room.node, room.free_nano_cpus, room.free_memory_bytes);
        room.ports.extend(needs.host_ports.iter().copied());
        *needs.copies.entry(at).or_default() += 1;
    }
}

/// Reserved share of the scarcer resource, in thousandths.
fn load(node: &Node, free_nano_cpus: u64, free_memory_bytes: u64) -> u32 {
    let has = node.description.as_ref().map(|d| d.resources).unwrap_or_default();
    let share = |free: u64, has: u64| {
        let used = u128::from(has.saturating_sub(free)) * 1000;
        used.checked_div(u128::from(has)).and_then(|share| u32::try_from(share).ok()).unwrap_or(0)
    };
    share(free_nano_cpus, has.nano_cpus).max(share(free_memory_bytes, has.memory_bytes))
}

/// The reasons of all filters, most frequent first.
fn sort_reasons(counts: &BTreeMap<PlacementFilter, u32>) -> Unplaced {
    let mut reasons: Vec<_> = counts.iter().map(|(filter, nodes)| (*filter, *nodes)).collect();
    reasons.sort_by_key(|(filter, nodes)| (std::cmp::Reverse(*nodes), *filter));
    Unplaced { reasons }
}
