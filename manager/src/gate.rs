//! Who may call what: one layer before all services, asked for every request.
//!
//! A connection keeps the certificate it was opened with, so the certificate alone does not decide: a node that was
//! removed is refused, and one that was demoted is a worker at once, whatever its certificate still says.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use rswarm_api::access::{self, Access, Caller};
use rswarm_core::State;
use rswarm_types::{ClusterId, Role};
use tonic::Status;
use tower::{Layer, Service};

use crate::peer::PeerIdentity;
use crate::server::Peer;
use crate::store::Store;

/// Puts a [`Gate`] before a service.
#[derive(Clone)]
pub(crate) struct GateLayer {
    store: Store,
    cluster: ClusterId,
}

impl GateLayer {
    pub(crate) fn new(store: Store, cluster: ClusterId) -> Self {
        Self { store, cluster }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, store: self.store.clone(), cluster: self.cluster }
    }
}

/// Refuses requests that the role table does not admit; passes the others on unchanged.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    inner: S,
    store: Store,
    cluster: ClusterId,
}

impl<S, B, R> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().copied();
        if let Some(identity) = peer.and_then(|peer| peer.identity) {
            request.extensions_mut().insert(PeerIdentity(identity.node, identity.role));
        }
        let verdict = check(&self.store.snapshot(), self.cluster, peer, request.uri().path());
        match verdict {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

/// Whether `peer` may call the RPC at `path`, as of `state`.
fn check(
    state: &State,
    cluster: ClusterId,
    peer: Option<Peer>,
    path: &str,
) -> Result<(), Status> {
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
    let code = if caller == Caller::Anonymous { tonic::Code::Unauthenticated } else { tonic::Code::PermissionDenied };
    Err(Status::new(code, format!("`{path}` is for {whom}, not for {who}")))
}

/// Whether an RPC carries the log between members, as opposed to asking the leader for something.
fn replicates(path: &str) -> bool {
    matches!(
        path.strip_prefix("/rswarm.v1.Raft/"),
        Some("AppendEntries" | "Vote" | "PreVote" | "InstallSnapshot" | "TransferLeader")
    )
}
