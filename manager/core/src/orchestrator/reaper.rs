//! The reaper: deletes tasks nobody needs, and gives up tasks on nodes that are lost for good.
//! Source: swarm-parity 2.7, 3.9.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_types::{ClusterSpec, NodeId, NodeState, ServiceId, Task, TaskState, Timestamp};

use crate::plan::{Action, Outcome, Plan, Subject};
use crate::state::{State, holds_resources};

/// How long a node may be down before its tasks count as orphaned. Measured from when it went down, so an election
/// does not start it over.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Deletes of a service's tasks those that ended and are to be removed, those that were told to stop before they had
/// a node, and of each place the oldest ended ones beyond the history limit.
pub fn plan(state: &State, service: ServiceId) -> Plan {
    let mut plan = Plan::default();
    let limit = state
        .cluster()
        .map_or(ClusterSpec::default().task_history_limit, |cluster| cluster.spec.task_history_limit);
    let mut places: BTreeMap<(u64, Option<NodeId>), Vec<&Arc<Task>>> = BTreeMap::new();
    for task in state.tasks_of(service) {
        let never_ran = task.status.state < TaskState::Assigned;
        let ended = task.status.state.is_terminal();
        let unwanted = task.desired > TaskState::Running;
        if (unwanted && never_ran) || (task.desired == TaskState::Remove && ended) {
            plan.actions.push(Action::RemoveTask { task: task.id });
        } else {
            let node = task.node_id.filter(|_| task.slot == 0);
            places.entry((task.slot, node)).or_default().push(task);
        }
    }
    for tasks in places.values_mut().filter(|tasks| tasks.len() > 1) {
        tasks.sort_by_key(|task| (task.meta.created_at, task.id));
        // Restart attempts are counted from what is kept.
        let kept = tasks.iter().map(|task| task.spec.restart.max_attempts.saturating_add(1)).max();
        let kept = kept.filter(|kept| *kept > 1).unwrap_or(0).max(limit).max(1);
        let surplus = tasks.len().saturating_sub(usize::try_from(kept).unwrap_or(usize::MAX));
        let dead = |task: &Task| task.desired > TaskState::Running && task.status.state.is_terminal();
        for task in tasks.iter().take(surplus).filter(|task| dead(task)) {
            plan.actions.push(Action::RemoveTask { task: task.id });
        }
    }
    plan
}

/// Orphans the tasks of a node that has been down for [`ORPHAN_AFTER`].
pub fn orphans(state: &State, node: NodeId, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = state.node(node).filter(|node| node.status.state == NodeState::Down) else {
        return plan;
    };
    let lost: Vec<_> = state.tasks_on(node.id).filter(|task| holds_resources(task)).collect();
    if lost.is_empty() {
        return plan;
    }
    let due = node.status.since.after(ORPHAN_AFTER);
    if now < due {
        plan.wake_by(Subject::Node(node.id), due);
        return plan;
    }
    for task in lost {
        let outcome = Outcome {
            state: TaskState::Orphaned,
            message: "the task's node has been down for 24 hours".to_owned(),
            ..Outcome::default()
        };
        plan.actions.push(Action::SetStatus { task: task.id, outcome });
    }
    plan
}
