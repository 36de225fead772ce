//! The Dispatcher service: the line between workers and the leader.
//!
//! A session lives on the leader alone; other managers redirect. What a node should hold follows from the state, so a
//! session that is woken compares and sends the difference: nothing is queued, nothing can be missed.

mod hub;
pub(crate) mod reports;
mod session;

use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::netmap::Concerned;
use rswarm_types::{ClusterSpec, NodeId, Role};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;
use crate::server::Peer;

pub(crate) use hub::Hub;

/// Messages on their way to one worker. A worker that does not read stops its session, and nobody else's.
const OUTGOING: usize = 16;

/// The Dispatcher service of one manager.
#[derive(Clone)]
pub(crate) struct DispatcherService {
    context: Arc<Context>,
}

impl DispatcherService {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl v1::dispatcher_server::Dispatcher for DispatcherService {
    type SessionStream = ReceiverStream<Result<v1::ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (peer, node) = caller(&request)?;
        let (out, stream) = mpsc::channel(OUTGOING);
        let session = session::run(self.context.clone(), peer, node, request.into_inner(), out);
        tokio::spawn(self.context.stop.clone().run_until_cancelled_owned(session));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<v1::PublishLogsRequest>>,
    ) -> Result<Response<v1::PublishLogsResponse>, Status> {
        let (_, node) = caller(&request)?;
        let lead = self.context.lead.borrow().clone();
        let lead = lead.ok_or_else(|| Status::unavailable("this manager does not lead at present"))?;
        lead.logs.publish(node, request.into_inner()).await?;
        Ok(Response::new(v1::PublishLogsResponse {}))
    }
}

/// Wakes the sessions that a change of state concerns, until the store closes.
pub(crate) async fn wake_sessions(context: &Context, hub: &Hub) {
    let mut changes = context.store.subscribe();
    let mut seen = changes.borrow_and_update().clone();
    hub.wake_all();
    while changes.changed().await.is_ok() {
        let state = changes.borrow_and_update().clone();
        let touched = rswarm_core::dispatch::touched(&seen, &state);
        let managers_may_differ = touched
            .iter()
            .any(|id| [&seen, &state].iter().any(|s| s.node(*id).is_some_and(|n| n.manager.is_some())));
        let cluster_differs = match (seen.cluster(), state.cluster()) {
            (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
            (old, new) => old.is_some() != new.is_some(),
        };
        let managers_differ = managers_may_differ && manager_addrs(&seen) != manager_addrs(&state);
        match rswarm_core::netmap::concerned(&seen, &state) {
            Concerned::Nodes(nodes) if !cluster_differs && !managers_differ => {
                hub.wake(touched.union(&nodes).copied());
            }
            _ => hub.wake_all(),
        }
        seen = state;
    }
}

/// Proposes what follows from leases that run out, until a proposal fails.
pub(crate) async fn expire_sessions(context: &Context, hub: &Hub) -> Result<(), crate::context::WriteError> {
    let mut held_back = 0;
    loop {
        let now = rswarm_types::Timestamp::now();
        let expiry = hub.expire(&context.store.snapshot(), now);
        if expiry.held_back.len() != held_back {
            held_back = expiry.held_back.len();
            if held_back > 0 {
                tracing::warn!(nodes = held_back, "most nodes fell silent together: moving nothing for now");
            }
        }
        if !expiry.writes.is_empty() {
            context.propose(rswarm_core::Command { at: now, writes: expiry.writes }).await?;
        }
        let wait = expiry.wake_at.map(|at| at.since(now).max(hub::EXPIRY_PERIOD_MIN));
        tokio::select! {
            () = crate::context::sleep(wait) => {}
            () = hub.lease_added.notified() => {}
        }
    }
}

/// What `node` should know of the cluster.
fn cluster_view(state: &State, node: NodeId) -> v1::manager_message::ClusterView {
    v1::manager_message::ClusterView {
        manager_addrs: manager_addrs(state),
        root_cert_pem: state.cluster().map(|cluster| cluster.root_ca.cert_pem.clone()).unwrap_or_default(),
        role: v1::Role::from(state.node(node).map_or(Role::Worker, |node| node.role)).into(),
        heartbeat_period_nanos: nanos(heartbeat_period(state)),
        renew_below: state.node(node).map_or(0, |node| node.role_since.0),
    }
}

/// Addresses of the managers, by node id.
pub(crate) fn manager_addrs(state: &State) -> Vec<String> {
    state.nodes().filter_map(|node| node.manager.as_ref()).map(|manager| manager.addr.clone()).collect()
}

fn heartbeat_period(state: &State) -> Duration {
    state
        .cluster()
        .map_or_else(|| ClusterSpec::default().heartbeat_period, |cluster| cluster.spec.heartbeat_period)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Who opened a stream. The role table lets only nodes call here, so a caller without identity is a fault of ours.
fn caller<T>(request: &Request<T>) -> Result<(Peer, NodeId), Status> {
    let peer = request.extensions().get::<Peer>().copied();
    peer.and_then(|peer| peer.identity().map(|identity| (peer, identity.node)))
        .ok_or_else(|| Status::unauthenticated("expected a certificate of this cluster, found none"))
}
