//! What every service of a manager needs: the log to propose to, the state to read, and who leads.

use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1::control_client::ControlClient;
use rswarm_core::State;
use rswarm_core::state::{Command, Rejected, Write};
use rswarm_identity::{Receiver, ServerExpectation};
use rswarm_types::{Cluster, NodeId, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::error::rejected;
use crate::image::ImageResolver;
use crate::leader::Lead;
use crate::raft::{Leadership, ProposeError, RaftNode, ReadError};
use crate::store::Store;
use rswarm_types::error::chain;

/// A follower applies what was committed within a heartbeat; one that takes longer is cut off.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks a call that another manager passed on.
const PASSED_ON: &str = "rswarm-passed-on";

/// Shared by all parts of one manager.
pub(crate) struct Context {
    pub raft: RaftNode,
    pub store: Store,
    pub identity: Receiver,
    pub node: NodeId,
    /// `IP:PORT` under which other nodes reach this manager.
    pub advertise_addr: String,
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
    #[error("a command was committed, but this manager did not catch up with it in time")]
    NotCaughtUp,
}

impl Context {
    /// The state with everything that was acknowledged before the call.
    pub(crate) async fn read(&self) -> Result<Arc<State>, Status> {
        match self.raft.read_barrier().await {
            Ok(()) => Ok(self.store.snapshot()),
            Err(ReadError::NoLeader) => {
                Err(Status::unavailable(format!("{}: {}", ReadError::NoLeader, self.what_is_wrong().await)))
            }
            Err(error) => Err(Status::unavailable(chain(&error))),
        }
    }

    /// Commits `writes` on behalf of a caller; returns a state that holds them.
    pub(crate) async fn write(&self, writes: Vec<Write>) -> Result<Arc<State>, Status> {
        match self.propose(Command { at: Timestamp::now(), writes }).await {
            Ok(()) => Ok(self.store.snapshot()),
            Err(WriteError::Rejected(reason)) => Err(rejected(&reason)),
            Err(WriteError::Propose(error)) => {
                let status = propose_status(&error);
                if !matches!(error, ProposeError::NoLeader | ProposeError::Timeout) {
                    return Err(status);
                }
                let why = self.what_is_wrong().await;
                Err(Status::new(status.code(), format!("{}: {why}", status.message())))
            }
            Err(error @ WriteError::NotCaughtUp) => Err(Status::deadline_exceeded(chain(&error))),
        }
    }

    /// Commits a command; returns once this manager has applied it.
    pub(crate) async fn propose(&self, command: Command) -> Result<(), WriteError> {
        let applied = match self.raft.propose(command).await {
            Ok(applied) => applied,
            Err(ProposeError::Rejected(reason)) => return Err(WriteError::Rejected(reason)),
            Err(error) => return Err(WriteError::Propose(error)),
        };
        let mut changes = self.store.subscribe();
        let caught_up = changes.wait_for(|state| state.index >= applied.index);
        match tokio::time::timeout(CATCH_UP_TIMEOUT, caught_up).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(WriteError::NotCaughtUp),
        }
    }

    /// What stands in the way of a change: a full disk here, or managers that do not answer.
    async fn what_is_wrong(&self) -> String {
        if let Some(dir) = self.raft.out_of_room() {
            return format!("no space left on the file system of `{dir}`: free some");
        }
        let state = self.store.snapshot();
        let name = |id: NodeId| state.node(id).map_or_else(|| id.to_string(), |node| node.display_name());
        let managers: Vec<(String, bool)> = (self.raft.roll_call().await.into_iter())
            .map(|(member, answers)| (format!("`{}` ({})", name(member.node_id), member.addr), answers))
            .collect();
        quorum_words(&managers)
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
                if matches!(*leadership.borrow_and_update(), Leadership::Follower { leader: Some(_) }) {
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
        self.raft.members().into_iter().find(|member| member.leader).map(|member| member.node_id)
    }

    /// `IP:PORT` of another manager that leads, if there is one.
    pub(crate) fn leader_addr(&self) -> Option<String> {
        self.raft.leader().filter(|leader| leader.raft_id != self.raft.raft_id()).map(|leader| leader.addr)
    }

    /// A client of the manager at `addr`.
    pub(crate) fn control_client(&self, addr: &str) -> ControlClient<Channel> {
        let identity = self.identity.clone();
        let channel =
            rswarm_api::channel::tls(addr, move || identity.client_config(ServerExpectation::Manager));
        ControlClient::new(channel)
    }

    /// What a call becomes that only the leader can answer: the leader's client, and the request to make of it.
    ///
    /// # Errors
    /// No leader is known, or the call was passed on already: two managers never pass it to and fro.
    pub(crate) fn pass_on<T>(
        &self,
        request: Request<T>,
    ) -> Result<(ControlClient<Channel>, Request<T>), Status> {
        let passed_on = request.metadata().get(PASSED_ON).is_some();
        let addr = self.leader_addr().filter(|_| !passed_on).ok_or_else(no_leader)?;
        let mut onward = Request::new(request.into_inner());
        onward.metadata_mut().insert(PASSED_ON, MetadataValue::from_static("1"));
        Ok((self.control_client(&addr), onward))
    }

    /// Addresses of all managers, this one's first.
    pub(crate) fn manager_addrs(&self, state: &State) -> Vec<String> {
        let own = &self.advertise_addr;
        let others = crate::dispatcher::manager_addrs(state).into_iter().filter(|addr| addr != own);
        std::iter::once(own.clone()).chain(others).collect()
    }
}

/// The cluster object, which is there from `init` on and on other managers once they have caught up.
pub(crate) fn the_cluster(state: &State) -> Result<&Arc<Cluster>, Status> {
    state
        .cluster()
        .ok_or_else(|| Status::unavailable("this manager is still catching up: try again in a moment"))
}

/// For calls that need one.
pub(crate) fn no_leader() -> Status {
    Status::unavailable("the cluster has no leader at present: try again in a moment")
}

/// Sleeps that long; for ever if there is nothing to wake up for.
pub(crate) async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn propose_status(error: &ProposeError) -> Status {
    let text = chain(error);
    match error {
        ProposeError::Rejected(reason) => rejected(reason),
        ProposeError::NoLeader | ProposeError::Stopped => Status::unavailable(text),
        ProposeError::Timeout => Status::deadline_exceeded(text),
        ProposeError::TooLarge { .. } => Status::invalid_argument(text),
        ProposeError::Unwritable(_) => Status::internal(text),
        ProposeError::NoRoom(_) => Status::resource_exhausted(text),
    }
}

/// What whoever met a cluster without a leader should know: how many managers answer, how many must, and who does not.
fn quorum_words(managers: &[(String, bool)]) -> String {
    let silent: Vec<&str> =
        managers.iter().filter(|(_, answers)| !answers).map(|(name, _)| &**name).collect();
    let (all, needed) = (managers.len(), managers.len() / 2 + 1);
    let answering = all - silent.len();
    if answering >= needed {
        return format!("{answering} of {all} managers answer, enough to elect one in a moment");
    }
    format!(
        "{answering} of {all} managers answer and {needed} must; start again or reconnect {}",
        silent.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_quorum_names_who_is_missing() {
        let check = |answers: &[bool], expected: &str| {
            let managers: Vec<_> =
                answers.iter().enumerate().map(|(n, answers)| (format!("`m{}`", n + 1), *answers)).collect();
            assert_eq!(quorum_words(&managers), expected);
        };
        check(
            &[true, false, false],
            "1 of 3 managers answer and 2 must; start again or reconnect `m2`, `m3`",
        );
        check(&[true, false], "1 of 2 managers answer and 2 must; start again or reconnect `m2`");
        check(&[true, true, false], "2 of 3 managers answer, enough to elect one in a moment");
    }
}
