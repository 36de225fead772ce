//! Messages to the other members, over gRPC. A member that cannot be reached is an error, never a made-up answer.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use rswarm_api::v1::raft_client::RaftClient;
use rswarm_api::v1::{RaftMessage, SnapshotChunk};
use rswarm_types::ClusterId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::codec;
use super::snapshot::SnapshotFile;
use super::state_machine::off_thread;
use super::types::{Peer, SnapshotMeta, TypeConfig, Vote};

/// Largest message between managers: entries of 1 MiB, one command more, and some room.
pub const MESSAGE_MAX: usize = 8 << 20;
/// Members whose connections are kept; more than any sensible group has.
const CHANNELS_KEPT: usize = 32;
/// A receiver that takes no piece of a snapshot for this long is given up on.
const SNAPSHOT_STALL: Duration = Duration::from_secs(10);

/// Makes connections to other managers.
pub trait Connector: Send + Sync + 'static {
    /// A channel to `addr` (`HOST:PORT`) that connects when first used and again when it broke.
    fn channel(&self, addr: &str) -> Channel;
}

/// Sent before a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotHeader {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    /// SHA-256 of the state that follows.
    pub digest: [u8; 32],
}

/// Connections to the other members, one each.
pub struct Peers {
    connector: Arc<dyn Connector>,
    cluster_id: ClusterId,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    pub fn new(connector: Arc<dyn Connector>, cluster_id: ClusterId) -> Self {
        Self { connector, cluster_id, channels: Mutex::default() }
    }

    /// A client of the member at `addr`; does not connect yet.
    pub fn client(&self, addr: &str) -> RaftClient<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= CHANNELS_KEPT && !channels.contains_key(addr) {
            channels.clear();
        }
        let channel = channels.entry(addr.to_owned()).or_insert_with(|| self.connector.channel(addr)).clone();
        RaftClient::new(channel).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }
}

/// Whether a call failed before it could reach the other side, so that it certainly had no effect there.
pub fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a status was made by the other side's service, as opposed to the transport.
pub fn answered(status: &Status) -> bool {
    status.source().is_none()
}

/// Makes clients for the library.
pub struct NetworkFactory {
    pub peers: Arc<Peers>,
    /// Shortest time to wait for an answer. The library's own limit for log messages is one heartbeat, which a disk
    /// that is slow for a moment exceeds.
    pub patience: Duration,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Network {
        Network { peers: self.peers.clone(), target, addr: node.addr.clone(), patience: self.patience }
    }
}

/// A client of one member.
pub struct Network {
    peers: Arc<Peers>,
    target: u64,
    addr: String,
    patience: Duration,
}

impl Network {
    async fn call<Q, A, C, F>(
        &self,
        what: &'static str,
        request: &Q,
        limit: Duration,
        call: C,
    ) -> Result<A, RPCError<TypeConfig>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        C: FnOnce(RaftClient<Channel>, RaftMessage) -> F,
        F: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let body = codec::encode(what, request).map_err(|error| NetworkError::new(&error))?;
        let message = RaftMessage { cluster_id: self.peers.cluster_id.to_string(), to: self.target, body };
        let answer = tokio::time::timeout(limit, call(self.peers.client(&self.addr), message)).await;
        match answer {
            Ok(Ok(answer)) => {
                Ok(codec::decode(what, &answer.into_inner().body)
                    .map_err(|error| NetworkError::new(&error))?)
            }
            Ok(Err(status)) => Err(Unreachable::new(&status).into()),
            Err(_) => Err(Unreachable::from_string(format!(
                "no answer to {what} from member {} at `{}` within {limit:?}",
                self.target, self.addr
            ))
            .into()),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let limit = option.soft_ttl().max(self.patience);
        self.call("log entries", &rpc, limit, |mut client, message| async move {
            client.append_entries(message).await
        })
        .await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call("a vote", &rpc, option.soft_ttl(), |mut client, message| async move {
            client.vote(message).await
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call("a pre-vote", &rpc, option.soft_ttl(), |mut client, message| async move {
            client.pre_vote(message).await
        })
        .await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let limit = option.soft_ttl().max(self.patience);
        self.call("a leadership transfer", &req, limit, |mut client, message| async move {
            client.transfer_leader(message).await
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = SnapshotHeader { vote, meta: snapshot.meta, digest: snapshot.snapshot.digest };
        let header =
            codec::encode("a snapshot header", &header).map_err(|error| NetworkError::new(&error))?;
        let first = SnapshotChunk {
            cluster_id: self.peers.cluster_id.to_string(),
            to: self.target,
            header,
            data: Vec::new(),
        };
        let (pieces, stream) = mpsc::channel(2);
        let mut client = self.peers.client(&self.addr);
        let install = client.install_snapshot(Request::new(ReceiverStream::new(stream)));
        let sending = send_pieces(first, snapshot.snapshot, pieces);
        let transfer = async {
            // The answer may come before all was sent: then it is a refusal.
            let (answer, ()) = tokio::join!(install, sending);
            answer
        };
        tokio::select! {
            answer = transfer => {
                let answer = answer.map_err(|status| Unreachable::new(&status))?;
                Ok(codec::decode("a snapshot answer", &answer.into_inner().body)
                    .map_err(|error| NetworkError::new(&error))?)
            }
            closed = cancel => Err(closed.into()),
        }
    }
}

/// Feeds the stream until the snapshot ends or the receiver hangs up. A read error or a stall ends the stream early;
/// the receiver then misses the digest.
async fn send_pieces(first: SnapshotChunk, snapshot: SnapshotFile, pieces: mpsc::Sender<SnapshotChunk>) {
    let blank = SnapshotChunk { header: Vec::new(), ..first.clone() };
    if pieces.send(first).await.is_err() {
        return;
    }
    let mut chunks = match snapshot.chunks() {
        Ok(chunks) => chunks,
        Err(error) => return tracing::error!("failed to send a snapshot: {error}"),
    };
    loop {
        let read = off_thread(move || {
            let chunk = chunks.next_state()?;
            Ok((chunk, chunks))
        });
        let data = match read.await {
            Ok((Some(data), rest)) => {
                chunks = rest;
                data
            }
            Ok((None, _)) => return,
            Err(error) => return tracing::error!("failed to send a snapshot: {error}"),
        };
        if pieces.send_timeout(SnapshotChunk { data, ..blank.clone() }, SNAPSHOT_STALL).await.is_err() {
            return;
        }
    }
}
