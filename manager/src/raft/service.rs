//! The gRPC service the other managers call. Who may call is decided by the layer in front of it.

use std::io::Write;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rswarm_api::v1::join_group_response::Member;
use rswarm_api::v1::raft_server::{Raft as RaftRpc, RaftServer};
use rswarm_api::v1::{
    JoinGroupRequest, JoinGroupResponse, ProposeRequest, ProposeResponse, RaftMessage, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use super::codec;
use super::membership::AdmitError;
use super::network::{MESSAGE_MAX, SnapshotHeader};
use super::node::RaftNode;
use super::snapshot::SnapshotError;
use super::state_machine::off_thread;
use crate::peer::PeerIdentity;

/// Metadata of a refusal by a member that does not lead: the leader's address, when it is known.
pub const LEADER_METADATA: &str = "rswarm-leader";

/// Where the service finds this node's membership: empty on a worker, filled while the node is a manager. The server
/// holds one for its whole life; starting and stopping a [`RaftNode`] fills and empties it.
#[derive(Clone, Default)]
pub struct RaftSlot(Arc<ArcSwapOption<RaftNode>>);

impl RaftSlot {
    /// This node's membership, if it is a manager.
    pub fn get(&self) -> Option<RaftNode> {
        self.0.load().as_deref().cloned()
    }

    pub(super) fn set(&self, node: Option<RaftNode>) {
        self.0.store(node.map(Arc::new));
    }
}

/// The service over what is in `slot`.
pub fn server(slot: RaftSlot) -> RaftServer<RaftService> {
    RaftServer::new(RaftService { slot })
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX)
}

/// Answers for the member in the slot.
pub struct RaftService {
    slot: RaftSlot,
}

impl RaftService {
    fn node(&self) -> Result<RaftNode, Status> {
        self.slot.get().ok_or_else(|| Status::unavailable("this node is not a manager, or not yet"))
    }

    /// The member a message is meant for, or why it is refused.
    fn addressee(&self, cluster_id: &str, to: u64) -> Result<RaftNode, Status> {
        let node = self.node()?;
        let config = node.config();
        if cluster_id != config.cluster_id.to_string() {
            return Err(Status::permission_denied(format!(
                "expected a message of cluster `{}`, found one of cluster `{cluster_id}`",
                config.cluster_id
            )));
        }
        if to != node.raft_id() {
            return Err(Status::failed_precondition(format!(
                "expected a message for member {}, found one for member {to}, which is no longer at this address",
                node.raft_id()
            )));
        }
        Ok(node)
    }

    fn open<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: Request<RaftMessage>,
    ) -> Result<(RaftNode, T), Status> {
        let message = request.into_inner();
        let node = self.addressee(&message.cluster_id, message.to)?;
        Ok((
            node,
            codec::decode(what, &message.body)
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
        ))
    }
}

fn answer<T: Serialize>(
    node: &RaftNode,
    what: &'static str,
    body: &T,
) -> Result<Response<RaftMessage>, Status> {
    let body = codec::encode(what, body).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(RaftMessage { cluster_id: node.config().cluster_id.to_string(), to: 0, body }))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this manager has stopped: {error}"))
}

/// A refusal that says where the leader is.
fn not_leader(node: &RaftNode) -> Status {
    let mut status = Status::failed_precondition("this manager is not the leader");
    if let Some(leader) = node.leader()
        && let Ok(addr) = leader.addr.parse()
    {
        status.metadata_mut().insert(LEADER_METADATA, addr);
    }
    status
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    async fn append_entries(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (node, body) = self.open("log entries", request)?;
        answer(&node, "log entries", &node.raft().append_entries(body).await.map_err(stopped)?)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (node, body) = self.open("a vote", request)?;
        answer(&node, "a vote", &node.raft().vote(body).await.map_err(stopped)?)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (node, body) = self.open("a pre-vote", request)?;
        answer(&node, "a pre-vote", &node.raft().pre_vote(body).await.map_err(stopped)?)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (node, body) = self.open("a leadership transfer", request)?;
        answer(
            &node,
            "a leadership transfer",
            &node.raft().handle_transfer_leader(body).await.map_err(stopped)?,
        )
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let failed = |error: SnapshotError| Status::internal(error.to_string());
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("no snapshot header"))?;
        let node = self.addressee(&first.cluster_id, first.to)?;
        let header: SnapshotHeader = codec::decode("a snapshot header", &first.header)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (dir, meta) = (node.snapshots().clone(), header.meta.clone());
        let mut writer = off_thread(move || dir.begin(&meta)).await.map_err(failed)?;
        while let Some(piece) = stream.message().await? {
            writer = off_thread(move || match writer.write_all(&piece.data) {
                Ok(()) => Ok(writer),
                Err(source) => {
                    let path = writer.path().to_owned();
                    Err(SnapshotError::Io { action: "write", path, source })
                }
            })
            .await
            .map_err(failed)?;
        }
        let snapshot = off_thread(move || writer.finish()).await.map_err(failed)?;
        if snapshot.digest != header.digest {
            return Err(Status::data_loss("the snapshot did not arrive whole"));
        }
        let snapshot = openraft::Snapshot { meta: header.meta, snapshot };
        let done = node.raft().install_full_snapshot(header.vote, snapshot).await.map_err(stopped)?;
        answer(&node, "a snapshot answer", &done)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let node = self.node()?;
        let command = codec::decode("a command", &request.into_inner().command)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let outcome = node.propose_here(Arc::new(command)).await;
        let reply =
            codec::encode("a reply", &outcome).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ProposeResponse { reply }))
    }

    async fn read_index(
        &self,
        _request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let node = self.node()?;
        match node.read_index_here().await {
            Some(index) => Ok(Response::new(ReadIndexResponse { index })),
            None => Err(not_leader(&node)),
        }
    }

    async fn join_group(
        &self,
        request: Request<JoinGroupRequest>,
    ) -> Result<Response<JoinGroupResponse>, Status> {
        let node = self.node()?;
        let Some(PeerIdentity(node_id, _)) = request.extensions().get::<PeerIdentity>().copied() else {
            return Err(Status::unauthenticated("expected a node's certificate, found none"));
        };
        let addr = request.into_inner().addr;
        match node.admit(node_id, &addr).await {
            Ok(raft_id) => {
                let members = node
                    .members()
                    .into_iter()
                    .map(|member| Member { raft_id: member.raft_id, addr: member.addr })
                    .collect();
                Ok(Response::new(JoinGroupResponse { raft_id, members }))
            }
            Err(AdmitError::NotLeader) => Err(not_leader(&node)),
            Err(error @ AdmitError::Unreachable { .. }) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}
