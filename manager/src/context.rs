//! What every service of a manager needs: the log to propose to, the state to read, and who leads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rswarm_core::State;
use rswarm_core::state::{Command, Rejected, Write};
use rswarm_identity::Receiver;
use rswarm_types::{Cluster, NodeId, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::error::{chain, rejected};
use crate::image::ImageResolver;
use crate::leader::Lead;
use crate::raft::{ProposeError, RaftNode, ReadError};
use crate::store::Store;

/// Shared by all parts of one manager.
pub(crate) struct Context {
    pub raft: RaftNode,
    pub store: Store,
    pub identity: Receiver,
    pub node: NodeId,
    /// `IP:PORT` under which other nodes reach this manager.
    pub advertise_addr: SocketAddr,
    pub images: Arc<dyn ImageResolver>,
    /// The leader's parts while this manager leads.
    pub lead: watch::Receiver<Option<Arc<Lead>>>,
    /// Cancelled when the manager stops.
    pub stop: CancellationToken,
}

/// Who leads the cluster.
pub(crate) enum Leader {
    /// This manager, and its leader parts are up.
    Here(Arc<Lead>),
    /// Another one, whose address is known.
    Elsewhere,
    /// Nobody, as far as this manager can tell.
    Unknown,
}

/// Why a command of the manager's own was not committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("failed to propose a command")]
    Propose(#[source] ProposeError),
    #[error("a command was refused")]
    Rejected(#[source] Rejected),
}

impl Context {
    /// The state with everything that was acknowledged before the call.
    pub(crate) async fn read(&self) -> Result<Arc<State>, Status> {
        self.raft.read_barrier().await.map_err(|error| read_status(&error))?;
        Ok(self.store.snapshot())
    }

    /// Commits `writes` on behalf of a caller; returns a state that holds them.
    pub(crate) async fn write(&self, writes: Vec<Write>) -> Result<Arc<State>, Status> {
        match self.propose(Command { at: Timestamp::now(), writes }).await {
            Ok(()) => Ok(self.store.snapshot()),
            Err(WriteError::Rejected(reason)) => Err(rejected(&reason)),
            Err(WriteError::Propose(error)) => Err(propose_status(&error)),
        }
    }

    /// Commits a command; returns once this manager has applied it.
    pub(crate) async fn propose(&self, command: Command) -> Result<(), WriteError> {
        match self.raft.propose(command).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Rejected(reason)) => Err(WriteError::Rejected(reason)),
            Err(error) => Err(WriteError::Propose(error)),
        }
    }

    /// Finds out who leads, waiting up to `patience` while nobody does.
    pub(crate) async fn find_leader(&self, patience: Duration) -> Leader {
        let mut lead = self.lead.clone();
        let mut leadership = self.raft.leadership();
        let search = async {
            loop {
                if let Some(lead) = lead.borrow_and_update().clone() {
                    return Leader::Here(lead);
                }
                if leadership.borrow_and_update().leader.as_ref().is_some_and(|l| l.node_id != self.node) {
                    return Leader::Elsewhere;
                }
                let open = tokio::select! {
                    changed = lead.changed() => changed.is_ok(),
                    changed = leadership.changed() => changed.is_ok(),
                };
                if !open {
                    return Leader::Unknown;
                }
            }
        };
        tokio::time::timeout(patience, search).await.unwrap_or(Leader::Unknown)
    }

    /// The node that leads, if there is one.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.raft.leadership().borrow().leader.as_ref().map(|leader| leader.node_id)
    }

    /// `IP:PORT` of the leader, if there is one.
    pub(crate) fn leader_addr(&self) -> Option<String> {
        self.raft.leadership().borrow().leader.as_ref().map(|leader| leader.addr.clone())
    }

    /// Addresses of all managers, this one's first.
    pub(crate) fn manager_addrs(&self, state: &State) -> Vec<String> {
        let own = self.advertise_addr.to_string();
        let others = crate::dispatcher::manager_addrs(state).into_iter().filter(|addr| *addr != own);
        std::iter::once(own.clone()).chain(others).collect()
    }

    /// Whether a manager answers, as far as this one can tell.
    pub(crate) fn is_reachable(&self, node: NodeId) -> bool {
        node == self.node || self.raft.is_reachable(node)
    }
}

/// The cluster object, which is there from `init` on and on other managers once they have caught up.
pub(crate) fn the_cluster(state: &State) -> Result<&Arc<Cluster>, Status> {
    state.cluster().ok_or_else(|| Status::unavailable("this manager is still catching up: try again in a moment"))
}

/// Sleeps that long; for ever if there is nothing to wake up for.
pub(crate) async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn propose_status(error: &ProposeError) -> Status {
    Status::unavailable(chain(error))
}

fn read_status(error: &ReadError) -> Status {
    Status::unavailable(chain(error))
}
