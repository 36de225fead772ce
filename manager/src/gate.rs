//! Who may call what: one layer before all services, asked for every request.
//!
//! A connection keeps the certificate it was opened with, so the certificate alone does not decide: a node that was
//! removed is refused, one that was demoted is a worker at once, whatever its certificate still says, and one whose
//! certificate has expired can renew it and nothing else.
//!
//! Replication is the hard case. A manager that lags behind may still take its leader for the worker that one was
//! before, and would never learn better if it refused what that leader sends. So between members it is not the role
//! known here that decides, but when the certificate was issued: it carries the index of the state it was issued from,
//! and one that says manager counts unless its owner's role has changed since. Whoever was made a manager again shows
//! a newer one, which no replica can mistake for the old, and no clock is asked.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rswarm_api::access::{self, Access, Caller};
use rswarm_core::State;
use rswarm_identity::NodeCertificate;
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
        if let Some(identity) = peer.and_then(|peer| peer.identity()) {
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
    let caller = match peer.and_then(|peer| peer.identity().map(|identity| (peer, identity))) {
        None => Caller::Anonymous,
        Some((_, identity)) if identity.cluster != cluster => {
            return Err(Status::permission_denied(format!(
                "expected a node of cluster `{cluster}`, found one of `{}`",
                identity.cluster
            )));
        }
        Some((_, identity))
            if state.cluster().is_some_and(|c| c.removed_nodes.contains_key(&identity.node)) =>
        {
            return Err(Status::permission_denied(format!(
                "node `{}` was removed from the cluster: run `rswarm leave` on it, then join again",
                identity.node
            )));
        }
        Some((peer, _)) if peer.expired => Caller::Expired,
        Some((peer, _)) if peer.certificate.is_some_and(|certificate| is_outdated(state, &certificate)) => {
            Caller::Node(Role::Worker)
        }
        Some((_, identity)) if replicates(path) => Caller::Node(identity.role),
        Some((_, identity)) => {
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
        Caller::Expired => "a node whose certificate has expired: it has to renew it first",
        Caller::Node(Role::Worker) => "a worker",
        Caller::Node(Role::Manager) => "a manager",
        Caller::LocalRoot => "root",
    };
    let whom = match access {
        Access::Anyone => "anyone",
        Access::AnyNode | Access::AnyKey => "nodes of this cluster",
        Access::Manager => "managers",
        Access::LocalRoot => "root on the host itself, through its unix socket",
    };
    let code = if matches!(caller, Caller::Anonymous | Caller::Expired) {
        tonic::Code::Unauthenticated
    } else {
        tonic::Code::PermissionDenied
    };
    Err(Status::new(code, format!("`{path}` is for {whom}, not for {who}")))
}

/// Whether a certificate says manager although its owner's role has changed since it was issued.
pub(crate) fn is_outdated(state: &State, certificate: &NodeCertificate) -> bool {
    certificate.identity.role == Role::Manager
        && state.node(certificate.identity.node).is_some_and(|node| certificate.index < node.role_since)
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
            role_since: Version::default(),
            number: 0,
        }
    }

    /// Index of the state in [`state`].
    const NOW: u64 = 9;

    /// Node 1 is a manager, 2 a worker, 3 was removed, 4 is not known. Node 5 was a manager until index 9, node 6 was
    /// one until 8 and is one again since 9.
    fn state() -> State {
        let cluster = rswarm_types::Cluster {
            id: CLUSTER,
            meta: Meta::default(),
            spec: rswarm_types::ClusterSpec::default(),
            root_ca: rswarm_types::RootCa { cert_pem: String::new(), key_pem: String::new() },
            join_secrets: rswarm_types::JoinSecrets { worker: String::new(), manager: String::new() },
            removed_nodes: [(NodeId::from_bytes([3; 16]), Timestamp(u64::MAX))].into(),
        };
        let mut writes = vec![Write::PutCluster { cluster: Box::new(cluster), expected: None }];
        for (id, role) in [(1, Role::Manager), (2, Role::Worker), (5, Role::Manager), (6, Role::Manager)] {
            writes.push(Write::CreateNode(Box::new(node(id, role))));
        }
        let role = |id, role| Write::SetNodeRole { id: NodeId::from_bytes([id; 16]), role };
        let steps = [
            (1, writes),
            (8, vec![role(6, Role::Worker), role(1, Role::Manager)]),
            (NOW, vec![role(5, Role::Worker), role(6, Role::Manager)]),
        ];
        let mut state = State::default();
        for (index, writes) in steps {
            let (next, applied) = apply(&state, Version(index), &Command { at: Timestamp(1), writes });
            applied.unwrap();
            state = next;
        }
        state
    }

    fn at() -> std::net::SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    fn peer_since(index: u64, node: u8, role: Role, cluster: ClusterId) -> Option<Peer> {
        let identity = Identity { node: NodeId::from_bytes([node; 16]), role, cluster };
        let (not_before, not_after) = (Timestamp(0), Timestamp(u64::MAX));
        let certificate = NodeCertificate { identity, index: Version(index), not_before, not_after };
        Some(Peer { addr: at(), certificate: Some(certificate), expired: false })
    }

    fn peer(node: u8, role: Role, cluster: ClusterId) -> Option<Peer> {
        peer_since(1, node, role, cluster)
    }

    #[track_caller]
    fn check_all(cases: &[(Option<Peer>, &str, Option<Code>)]) {
        let state = state();
        for (peer, path, expected) in cases {
            let verdict = check(&state, CLUSTER, *peer, path);
            assert_eq!(verdict.err().map(|status| status.code()), *expected, "{peer:?} {path}");
        }
    }

    const LIST: &str = "/rswarm.v1.Control/ListNodes";
    const SESSION: &str = "/rswarm.v1.Dispatcher/Session";
    const APPEND: &str = "/rswarm.v1.Raft/AppendEntries";
    const ISSUE: &str = "/rswarm.v1.Ca/IssueCertificate";
    const RENEW: &str = "/rswarm.v1.Ca/RenewCertificate";

    #[test]
    fn the_cluster_knows_better_than_a_certificate() {
        use Role::{Manager, Worker};
        let other = ClusterId::from_bytes([9; 16]);
        let anonymous = Some(Peer { addr: at(), certificate: None, expired: false });
        check_all(&[
            (peer(1, Manager, CLUSTER), LIST, None),
            (peer(1, Manager, CLUSTER), APPEND, None),
            (peer(1, Worker, CLUSTER), LIST, Some(Code::PermissionDenied)),
            (peer(2, Worker, CLUSTER), SESSION, None),
            (peer(2, Worker, CLUSTER), APPEND, Some(Code::PermissionDenied)),
            (peer(4, Manager, CLUSTER), LIST, None),
            // Removed.
            (peer(3, Manager, CLUSTER), APPEND, Some(Code::PermissionDenied)),
            (peer(3, Worker, CLUSTER), SESSION, Some(Code::PermissionDenied)),
            (peer(3, Worker, CLUSTER), ISSUE, Some(Code::PermissionDenied)),
            (peer(1, Manager, other), LIST, Some(Code::PermissionDenied)),
            (anonymous, ISSUE, None),
            (anonymous, RENEW, Some(Code::Unauthenticated)),
            (anonymous, LIST, Some(Code::Unauthenticated)),
            (None, SESSION, Some(Code::Unauthenticated)),
            (peer(1, Manager, CLUSTER), "/rswarm.v1.Local/Leave", Some(Code::PermissionDenied)),
            (peer(1, Manager, CLUSTER), "/grpc.health.v1.Health/Check", Some(Code::Unimplemented)),
        ]);
    }

    #[test]
    fn a_demoted_manager_replicates_no_more_and_one_that_is_promoted_again_does() {
        use Role::Manager;
        let refused = Some(Code::PermissionDenied);
        let mut cases = Vec::new();
        for call in ["AppendEntries", "Vote", "PreVote", "InstallSnapshot", "TransferLeader"] {
            let path: &str = Box::leak(format!("/rswarm.v1.Raft/{call}").into_boxed_str());
            cases.extend([
                // Demoted with index 9: its certificate is from before.
                (peer_since(8, 5, Manager, CLUSTER), path, refused),
                // This manager lags: the certificate is from a state that it has not seen, in which the node is one again.
                (peer_since(NOW + 1, 5, Manager, CLUSTER), path, None),
                // The same of a node that was a worker all the time, as far as this manager knows.
                (peer_since(NOW + 1, 2, Manager, CLUSTER), path, None),
                // Promoted again with index 9: the certificate of its first time gives nothing back.
                (peer_since(7, 6, Manager, CLUSTER), path, refused),
                (peer_since(NOW, 6, Manager, CLUSTER), path, None),
                // A joining manager, which has everything before it.
                (peer_since(NOW + 1, 4, Manager, CLUSTER), path, None),
            ]);
        }
        for path in ["/rswarm.v1.Raft/Propose", "/rswarm.v1.Raft/JoinGroup", LIST] {
            cases.extend([
                (peer_since(8, 5, Manager, CLUSTER), path, refused),
                (peer_since(NOW + 1, 5, Manager, CLUSTER), path, refused),
                (peer_since(7, 6, Manager, CLUSTER), path, refused),
                (peer_since(NOW, 6, Manager, CLUSTER), path, None),
            ]);
        }
        // What workers may do is still theirs.
        cases.extend([
            (peer_since(8, 5, Manager, CLUSTER), SESSION, None),
            (peer_since(8, 5, Manager, CLUSTER), RENEW, None),
        ]);
        check_all(&cases);
    }

    #[test]
    fn an_expired_certificate_is_good_for_another_one_alone() {
        let expired = |node| peer(node, Role::Manager, CLUSTER).map(|peer| Peer { expired: true, ..peer });
        check_all(&[
            (expired(1), RENEW, None),
            (expired(1), "/rswarm.v1.Ca/GetRootCertificate", None),
            (expired(1), LIST, Some(Code::Unauthenticated)),
            (expired(1), APPEND, Some(Code::Unauthenticated)),
            (expired(1), SESSION, Some(Code::Unauthenticated)),
            (expired(3), RENEW, Some(Code::PermissionDenied)),
        ]);
    }
}
