//! The types the consensus library is instantiated with.

use std::sync::Arc;

use rswarm_core::state::{Applied, Command, Rejected};
use rswarm_types::NodeId;
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// A log entry carries a command, shared rather than copied; its reply is what `apply` said.
    pub TypeConfig:
        D = Arc<Command>,
        R = Reply,
        NodeId = u64,
        Node = Peer,
);

/// Who a member of the group is and where to find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The node in the cluster state.
    pub node_id: NodeId,
    /// `IP:PORT` of its API.
    pub addr: String,
}

/// For the library's conformance suite alone: no real member is made this way.
impl Default for Peer {
    fn default() -> Self {
        Self { node_id: NodeId::from_bytes([0; 16]), addr: String::new() }
    }
}

/// What a log entry led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The entry carried no command: a membership, or the blank entry of a new leader.
    Nothing,
    Applied(Applied),
    Rejected(Rejected),
}

pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
