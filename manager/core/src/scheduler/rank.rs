//! Where is best? Spread over the labels asked for, then over nodes.
//!
//! Among nodes, in this order: no recent failures, fewer tasks of the service, fewer tasks, less reserved, lower id.
//! With preferences the nodes form a tree, one level per label; each level gives its values equal counts, those of
//! tasks that run already included. What one branch cannot take goes to the others. Source: swarm-parity 3.6.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use rswarm_types::{Node, NodeId, Task};

use super::filter::Needs;
use super::{NodeRoom, Room};

/// Smaller is better: recent failures, tasks of the service, tasks, load, position by id.
type Key = (u32, u32, u32, u32, usize);

/// The nodes that may take tasks of one group, best first.
pub(super) struct Ranking<'a> {
    root: Tree,
    failures: &'a BTreeMap<NodeId, u32>,
}

enum Tree {
    Branches {
        children: Vec<Tree>,
        /// Tasks of the service below each child that may still take one, by number and then by label value.
        order: BTreeSet<(u32, usize)>,
    },
    Nodes(BinaryHeap<Reverse<Key>>),
}

impl<'a> Ranking<'a> {
    pub fn new(task: &Task, failures: &'a BTreeMap<NodeId, u32>, needs: &Needs, room: &Room) -> Self {
        let all: Vec<usize> = (0..room.nodes.len()).collect();
        let root = build(&task.spec.placement.spread, all, failures, needs, room);
        Self { root, failures }
    }

    /// Takes the best node for one task and books it there; `None` if no node can take one.
    pub fn take(&mut self, needs: &mut Needs, room: &mut Room) -> Option<usize> {
        let failures = self.failures;
        self.root.take(failures, needs, room)
    }
}

/// The tree over `nodes`, which differ by the labels in `spread`, outermost first.
fn build(
    spread: &[String],
    nodes: Vec<usize>,
    failures: &BTreeMap<NodeId, u32>,
    needs: &Needs,
    room: &Room,
) -> Tree {
    let Some((label, inner)) = spread.split_first() else {
        let able = nodes.into_iter().filter(|at| needs.check(&room.nodes[*at], *at).is_ok());
        return Tree::Nodes(able.map(|at| Reverse(key(at, failures, needs, &room.nodes[at]))).collect());
    };
    let mut by_value: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for at in nodes {
        by_value.entry(label_of(room.nodes[at].node, label)).or_default().push(at);
    }
    let (mut children, mut order) = (Vec::new(), BTreeSet::new());
    for nodes in by_value.into_values() {
        // Tasks on nodes that cannot take more count for the balance as well.
        let tasks = nodes.iter().filter_map(|at| needs.copies.get(at)).sum();
        order.insert((tasks, children.len()));
        children.push(build(inner, nodes, failures, needs, room));
    }
    Tree::Branches { children, order }
}

/// The value of `node.labels.X` or `engine.labels.X`; a node without it has the empty value.
fn label_of<'n>(node: &'n Node, label: &str) -> &'n str {
    let value = match label.split_once(".labels.") {
        Some(("node", name)) => node.spec.labels.get(name),
        Some(("engine", name)) => node.description.as_ref().and_then(|d| d.engine_labels.get(name)),
        _ => None,
    };
    value.map_or("", String::as_str)
}

fn key(at: usize, failures: &BTreeMap<NodeId, u32>, needs: &Needs, room: &NodeRoom) -> Key {
    let failed = if failures.is_empty() { 0 } else { failures.get(&room.node.id).copied().unwrap_or(0) };
    (failed, needs.copies.get(&at).copied().unwrap_or(0), room.active, room.load, at)
}

impl Tree {
    fn take(
        &mut self,
        failures: &BTreeMap<NodeId, u32>,
        needs: &mut Needs,
        room: &mut Room,
    ) -> Option<usize> {
        match self {
            Self::Branches { children, order } => {
                while let Some((tasks, child)) = order.pop_first() {
                    // A child that is exhausted stays out: nothing is given back while a group is placed.
                    if let Some(at) = children[child].take(failures, needs, room) {
                        order.insert((tasks + 1, child));
                        return Some(at);
                    }
                }
                None
            }
            Self::Nodes(heap) => {
                let Reverse((.., at)) = heap.pop()?;
                room.take(at, needs);
                if needs.check_again(&room.nodes[at], at).is_ok() {
                    heap.push(Reverse(key(at, failures, needs, &room.nodes[at])));
                }
                Some(at)
            }
        }
    }
}
