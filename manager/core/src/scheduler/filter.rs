//! May it run there? The filters, in the order in which Swarm asks them, and one of our own at the end. Source:
//! swarm-parity 3.6.

use std::collections::BTreeMap;

use rswarm_types::node::{Platform, Resources};
use rswarm_types::service::Protocol;
use rswarm_types::task::{PlacementFilter, TASKS_PER_NODE_MAX, Unplaced};
use rswarm_types::{Node, Task};

use super::{NodeRoom, Room, sort_reasons};
use crate::constraint::{self, Constraint, ConstraintError};
use crate::state::{fixed_host_ports, takes_tasks};

/// What the tasks of a group ask of a node, and where copies of their service are.
pub(super) struct Needs<'a> {
    pub reserved: Resources,
    pub host_ports: Vec<(u16, Protocol)>,
    /// Tasks of the service by node.
    pub copies: BTreeMap<usize, u32>,
    constraints: Vec<Constraint>,
    platforms: &'a [Platform],
    max_replicas: u64,
}

impl<'a> Needs<'a> {
    pub fn new(task: &'a Task) -> Result<Self, ConstraintError> {
        let placement = &task.spec.placement;
        Ok(Self {
            reserved: task.spec.reservations,
            host_ports: fixed_host_ports(task).collect(),
            copies: BTreeMap::new(),
            constraints: constraint::parse_all(&placement.constraints)?,
            platforms: &placement.platforms,
            max_replicas: placement.max_replicas,
        })
    }

    /// Whether a node may take one more task of the group; if not, the first filter it fails.
    pub fn check(&self, room: &NodeRoom, at: usize) -> Result<(), PlacementFilter> {
        if !takes_tasks(room.node) {
            return Err(PlacementFilter::Ready);
        }
        if !self.has_resources(room) {
            return Err(PlacementFilter::Resources);
        }
        if !constraint::all_match(&self.constraints, room.node) {
            return Err(PlacementFilter::Constraint);
        }
        if !platform_fits(self.platforms, room.node) {
            return Err(PlacementFilter::Platform);
        }
        self.check_again(room, at)
    }

    /// Of the filters those whose answer changes as tasks of the group are placed.
    pub fn check_again(&self, room: &NodeRoom, at: usize) -> Result<(), PlacementFilter> {
        if !self.has_resources(room) {
            return Err(PlacementFilter::Resources);
        }
        let taken =
            |port| room.ports.contains(port) || room.usage.is_some_and(|u| u.host_ports.contains_key(port));
        if self.host_ports.iter().any(taken) {
            return Err(PlacementFilter::HostPort);
        }
        let copies = self.copies.get(&at).copied().unwrap_or(0);
        if self.max_replicas > 0 && u64::from(copies) >= self.max_replicas {
            return Err(PlacementFilter::MaxReplicas);
        }
        if room.tasks >= TASKS_PER_NODE_MAX {
            return Err(PlacementFilter::MaxTasks);
        }
        Ok(())
    }

    fn has_resources(&self, room: &NodeRoom) -> bool {
        self.reserved.nano_cpus <= room.free_nano_cpus && self.reserved.memory_bytes <= room.free_memory_bytes
    }
}

/// How many nodes each filter turns away.
pub(super) fn explain(needs: &Needs, room: &Room) -> Unplaced {
    let mut counts: BTreeMap<PlacementFilter, u32> = BTreeMap::new();
    for (at, node) in room.nodes.iter().enumerate() {
        if let Err(filter) = needs.check(node, at) {
            *counts.entry(filter).or_default() += 1;
        }
    }
    sort_reasons(&counts)
}

/// Whether an image made for `platforms` runs on a node. An empty list, and an empty word, mean any.
pub(crate) fn platform_fits(platforms: &[Platform], node: &Node) -> bool {
    if platforms.is_empty() {
        return true;
    }
    let Some(has) = node.description.as_ref().map(|d| &d.platform) else { return false };
    platforms.iter().any(|wanted| {
        (wanted.os.is_empty() || wanted.os == has.os)
            && (wanted.architecture.is_empty()
                || common_name(&wanted.architecture) == common_name(&has.architecture))
    })
}

/// The kernel and Go name some architectures differently.
fn common_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
