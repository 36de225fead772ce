//! The role manager: brings nodes to the role their spec asks for.
//!
//! Promotion: the role flips, the node is told by its session, renews its certificate and joins the Raft group.
//! Demotion: the node leaves the Raft group first, then its role flips, so that no certificate of a worker ever votes.
//! Source: swarm-parity 3.10.

use std::time::Duration;

use rswarm_core::State;
use rswarm_core::state::{Command, Write};
use rswarm_types::{Node, Role, Timestamp};
use tracing::{info, warn};

use crate::context::{Context, WriteError};
use crate::raft::{Removal, RemoveError};
use rswarm_types::error::chain;

/// A change of membership that failed is tried again so often.
const RETRY: Duration = Duration::from_secs(5);

/// Reconciles roles until a proposal fails or the store closes.
pub(super) async fn run(context: &Context) -> Result<(), WriteError> {
    let mut changes = context.store.subscribe();
    loop {
        let state = changes.borrow_and_update().clone();
        let mut all_done = true;
        for node in pending(&state) {
            all_done &= reconcile(context, node).await?;
        }
        let retry = (!all_done).then_some(RETRY);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = crate::context::sleep(retry) => {}
        }
    }
}

/// Nodes whose role differs from the one wanted, and workers that are members of the group all the same: they were
/// taken in while they were being demoted.
fn pending(state: &State) -> impl Iterator<Item = &Node> {
    state
        .nodes()
        .map(|node| &**node)
        .filter(|node| node.role != node.spec.role || (node.role == Role::Worker && node.manager.is_some()))
}

/// Takes a node the next step towards its role; `false` if that has to be tried again.
async fn reconcile(context: &Context, node: &Node) -> Result<bool, WriteError> {
    let id = node.id;
    let mut writes = vec![Write::SetNodeRole { id, role: node.spec.role }];
    if node.spec.role == Role::Worker {
        // The node object does not tell of learners, the group does.
        let member = context.raft.members().into_iter().find(|member| member.node_id == id);
        let removed = match member {
            Some(member) => context.raft.remove_member(member.raft_id).await,
            None => Ok(Removal::Done),
        };
        match removed {
            Ok(Removal::Done) | Err(RemoveError::NoMember(_)) => {}
            // The next leader completes it; this unit ends when that one takes over.
            Ok(Removal::Transferred { .. }) => return Ok(false),
            Err(error) => {
                warn!(node = %id, error = chain(&error), "failed to remove a manager from the Raft group");
                return Ok(false);
            }
        }
        // In one step, so that nobody sees a worker that is a member of the group.
        writes.insert(0, Write::SetNodeManager { id, manager: None });
    }
    context.propose(Command { at: Timestamp::now(), writes }).await?;
    info!(node = %id, role = %node.spec.role, "changed the role of a node");
    Ok(true)
}
