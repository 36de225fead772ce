//! What must hold after every step, whatever happened.

use std::collections::BTreeMap;

use rswarm_core::State;
use rswarm_types::{NodeId, TaskId, TaskState};

/// What was seen of each task before.
#[derive(Default)]
pub struct Checks {
    seen: BTreeMap<TaskId, (Option<NodeId>, TaskState, TaskState)>,
    /// Nodes whose capacity was made smaller under their tasks.
    pub shrunk: std::collections::BTreeSet<NodeId>,
}

impl Checks {
    pub fn after_step(&mut self, state: &State) -> Result<(), String> {
        if let Some(violation) = state.check().first() {
            return Err(violation.to_string());
        }
        for task in state.tasks() {
            let (node, observed, desired) = (task.node_id, task.status.state, task.desired);
            if let Some((old_node, old_observed, old_desired)) =
                self.seen.insert(task.id, (node, observed, desired))
            {
                if old_node.is_some() && old_node != node {
                    return Err(format!("task {} moved from {old_node:?} to {node:?}", task.id));
                }
                if observed < old_observed {
                    return Err(format!("task {} went back from {old_observed} to {observed}", task.id));
                }
                if desired < old_desired {
                    return Err(format!("desired state of {} went back to {desired}", task.id));
                }
            }
        }
        self.seen.retain(|id, _| state.task(*id).is_some());
        for node in state.nodes().filter(|node| !self.shrunk.contains(&node.id)) {
            let (Some(usage), Some(description)) = (state.usage(node.id), &node.description) else {
                continue;
            };
            let has = description.resources;
            if usage.nano_cpus > has.nano_cpus || usage.memory_bytes > has.memory_bytes {
                return Err(format!("node {} is overcommitted: {usage:?} of {has:?}", node.id));
            }
            if let Some((port, count)) = usage.host_ports.iter().find(|(_, count)| **count > 1) {
                return Err(format!("host port {port:?} of node {} is claimed {count} times", node.id));
            }
        }
        Ok(())
    }
}
