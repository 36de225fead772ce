//! Who may call what: one layer before all services, asked for every request.
//!
//! A connection keeps the certificate it was opened with, so the certificate alone does not decide: a node that was
//! removed is refused, and one that was demoted is a worker at once, whatever its certificate still says.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rswarm_api::access::{self, Access, Caller};
use rswarm_core::State;
use rswarm_types::{ClusterId, Role};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::peer::PeerIdentity;
use crate::raft::{self, RaftSlot};
use crate::server::Peer;

/// How the paths of replication begin.
const RAFT: &str = "/rswarm.v1.Raft/";

/// Refuses requests that the role table does not admit; hands the others to their service.
///
/// Replication is served from the first moment: a joining manager must answer the others before it is one. The other
/// services come once it is.
#[derive(Clone)]
pub(crate) struct Gate {
    cluster: ClusterId,
    slot: RaftSlot,
    raft: Routes,
    rest: Arc<OnceLock<Routes>>,
}

impl Gate {
    pub(crate) fn new(cluster: ClusterId, slot: RaftSlot) -> Self {
        let raft = Routes::new(raft::server(slot.clone())).prepare();
        Self { cluster, slot, raft, rest: Arc::default() }
    }

    /// Opens the other services, once and for all.
    pub(crate) fn open(&self, routes: Routes) {
        // Later calls would change nothing: there is one set of services per manager.
        let _ = self.rest.set(routes.prepare());
    }

    /// The service a request is for, if its caller may have it.
    fn admit(&self, peer: Option<Peer>, path: &str) -> Result<Routes, Status> {
        let state = self.slot.get().map(|node| node.store().snapshot()).unwrap_or_default();
        check(&state, self.cluster, peer, path)?;
        if path.starts_with(RAFT) {
            return Ok(self.raft.clone());
        }
        let starting = || Status::unavailable("this manager is still starting: try again in a moment");
        self.rest.get().cloned().ok_or_else(starting)
    }
}

impl Service<http::Request<Body>> for Gate {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().copied();
        if let Some(identity) = peer.and_then(|peer| peer.identity) {
            request.extensions_mut().insert(PeerIdentity(identity.node, identity.role));
        }
        match self.admit(peer, request.uri().path()) {
            // Routes are always ready, and fail only where there is no service, which `check` has excluded.
            Ok(mut routes) => {
                Box::pin(async move { Ok(routes.call(request).await.unwrap_or_else(|e| match e {})) })
            }
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

/// Whether `peer` may call the RPC at `path`, as of `state`.
fn check(state: &State, cluster: ClusterId, peer: Option<Peer>, path: &str) -> Result<(), Status> {
    let Some(access) = access::of_path(path) else {
        return Err(Status::unimplemented(format!("`{path}` is no call this manager knows")));
    };
    let caller = match peer.and_then(|peer| peer.identity) {
        None => Caller::Anonymous,
        Some(identity) if identity.cluster != cluster => {
            return Err(Status::permission_denied(format!(
                "expected a node of cluster `{cluster}`, found one of `{}`",
                identity.cluster
            )));
        }
        Some(identity) if state.cluster().is_some_and(|c| c.removed_nodes.contains_key(&identity.node)) => {
            return Err(Status::permission_denied(format!(
                "node `{}` was removed from the cluster: run `rswarm leave` on it, then join again",
                identity.node
            )));
        }
        // A manager that lags behind may still take the new leader for the worker it was, and would never learn better
        // if it refused what that leader replicates to it.
        Some(identity) if replicates(path) => Caller::Node(identity.role),
        Some(identity) => {
            // A node this manager has not heard of yet is what its certificate says: it joined a moment ago.
            let wanted = state.node(identity.node).map_or(identity.role, |node| node.role);
            Caller::Node(identity.role.min(wanted))
        }
    };
    if access.admits(caller) {
        return Ok(());
    }
    let who = match caller {
        Caller::Anonymous => "a caller without a certificate of this cluster",
        Caller::Node(Role::Worker) => "a worker",
        Caller::Node(Role::Manager) => "a manager",
        Caller::LocalRoot => "root",
    };
    let whom = match access {
        Access::Anyone => "anyone",
        Access::AnyNode => "nodes of this cluster",
        Access::Manager => "managers",
        Access::LocalRoot => "root on the host itself, through its unix socket",
    };
    let code = if caller == Caller::Anonymous {
        tonic::Code::Unauthenticated
    } else {
        tonic::Code::PermissionDenied
    };
    Err(Status::new(code, format!("`{path}` is for {whom}, not for {who}")))
}

/// Whether an RPC carries the log between members, as opposed to asking the leader for something.
fn replicates(path: &str) -> bool {
    matches!(
        path.strip_prefix(RAFT),
        Some("AppendEntries" | "Vote" | "PreVote" | "InstallSnapshot" | "TransferLeader")
    )
}

#[cfg(test)]
mod tests {
    use rswarm_core::state::{Command, Write, apply};
    use rswarm_identity::Identity;
    use rswarm_types::{Meta, Node, NodeId, NodeSpec, NodeStatus, Timestamp, Version};
    use tonic::Code;

    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

    fn node(id: u8, role: Role) -> Node {
        Node {
            id: NodeId::from_bytes([id; 16]),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            role,
            description: None,
            status: NodeStatus::default(),
            manager: None,
        }
    }

    /// Node 1 is a manager, 2 a worker, 3 was removed, 4 is not known.
    fn state() -> State {
        let cluster = rswarm_types::Cluster {
            id: CLUSTER,
            meta: Meta::default(),
            spec: rswarm_types::ClusterSpec::default(),
            root_ca: rswarm_types::RootCa { cert_pem: String::new(), key_pem: String::new() },
            join_secrets: rswarm_types::JoinSecrets { worker: String::new(), manager: String::new() },
            removed_nodes: [(NodeId::from_bytes([3; 16]), Timestamp(u64::MAX))].into(),
        };
        let writes = vec![
            Write::PutCluster { cluster: Box::new(cluster), expected: None },
            Write::CreateNode(Box::new(node(1, Role::Manager))),
            Write::CreateNode(Box::new(node(2, Role::Worker))),
        ];
        let (state, applied) = apply(&State::default(), Version(1), &Command { at: Timestamp(1), writes });
        applied.unwrap();
        state
    }

    fn peer(node: u8, role: Role, cluster: ClusterId) -> Option<Peer> {
        let identity = Identity { node: NodeId::from_bytes([node; 16]), role, cluster };
        Some(Peer { addr: "127.0.0.1:1".parse().unwrap(), identity: Some(identity) })
    }

    #[test]
    fn the_cluster_knows_better_than_a_certificate() {
        use Role::{Manager, Worker};
        let other = ClusterId::from_bytes([9; 16]);
        let (list, session) = ("/rswarm.v1.Control/ListNodes", "/rswarm.v1.Dispatcher/Session");
        let (append, propose) = ("/rswarm.v1.Raft/AppendEntries", "/rswarm.v1.Raft/Propose");
        let issue = "/rswarm.v1.Ca/IssueCertificate";
        let anonymous = Some(Peer { addr: "127.0.0.1:1".parse().unwrap(), identity: None });
        let cases = [
            (peer(1, Manager, CLUSTER), list, None),
            (peer(1, Worker, CLUSTER), list, Some(Code::PermissionDenied)),
            (peer(2, Worker, CLUSTER), session, None),
            // Demoted a moment ago.
            (peer(2, Manager, CLUSTER), list, Some(Code::PermissionDenied)),
            (peer(2, Manager, CLUSTER), propose, Some(Code::PermissionDenied)),
            (peer(2, Manager, CLUSTER), session, None),
            // Promoted in a state this manager has yet to be sent.
            (peer(2, Manager, CLUSTER), append, None),
            (peer(2, Worker, CLUSTER), append, Some(Code::PermissionDenied)),
            (peer(4, Manager, CLUSTER), list, None),
            // Removed.
            (peer(3, Manager, CLUSTER), append, Some(Code::PermissionDenied)),
            (peer(3, Worker, CLUSTER), session, Some(Code::PermissionDenied)),
            (peer(3, Worker, CLUSTER), issue, Some(Code::PermissionDenied)),
            (peer(1, Manager, other), list, Some(Code::PermissionDenied)),
            (anonymous, issue, None),
            (anonymous, list, Some(Code::Unauthenticated)),
            (None, session, Some(Code::Unauthenticated)),
            (peer(1, Manager, CLUSTER), "/rswarm.v1.Local/Leave", Some(Code::PermissionDenied)),
            (peer(1, Manager, CLUSTER), "/grpc.health.v1.Health/Check", Some(Code::Unimplemented)),
        ];
        let state = state();
        for (peer, path, expected) in cases {
            let verdict = check(&state, CLUSTER, peer, path);
            assert_eq!(verdict.err().map(|status| status.code()), expected, "{peer:?} {path}");
        }
    }
}
