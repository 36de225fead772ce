//! The Ca service: hands out the root certificate, turns a join token into a certificate and a place in the cluster,
//! takes that place back from a node that failed to enter, and renews the certificates of members.
//!
//! Works on any manager: the root's key is part of the replicated, encrypted state. What a certificate says is decided
//! here alone; of a request only the key is used.

use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::state::Write;
use rswarm_identity::{Claims, IssueError, JoinToken, RootCa, Roots, secret_matches};
use rswarm_types::{
    Availability, Cluster, Meta, Node, NodeId, NodeSpec, NodeStatus, Role, Timestamp, Version,
};
use tonic::{Request, Response, Status};

use crate::context::{Context, the_cluster};
use crate::random;
use crate::server::Peer;
use rswarm_types::error::chain;

/// How long a node that gives its place back waits until the leader has removed it from the Raft group.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(10);

/// The Ca service of one manager.
#[derive(Clone)]
pub(crate) struct CaService {
    context: Arc<Context>,
}

impl CaService {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn issue(
        &self,
        request: v1::IssueCertificateRequest,
    ) -> Result<v1::IssueCertificateResponse, Status> {
        let availability = match request.availability {
            0 => Availability::default(),
            number => v1::Availability::try_from(number)
                .ok()
                .and_then(|availability| Availability::try_from(availability).ok())
                .ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "invalid field `availability`: unknown value `{number}`"
                    ))
                })?,
        };
        // Anyone may ask: what can be refused here and now costs the other managers nothing.
        let token = token_of(the_cluster(&self.context.store.snapshot())?, &request.token)?;
        // Not a snapshot: a token that was replaced a moment ago must not work on a manager that lags behind.
        let state = self.context.read().await?;
        let cluster = the_cluster(&state)?;
        let root = root_of(cluster)?;
        let role = role_of_secret(cluster, &token)?;
        let id = NodeId::from_bytes(random::bytes());
        let cert_pem = sign(&state, cluster, &root, id, role, &request.csr_pem)?;
        let node = Node {
            id,
            meta: Meta::default(),
            spec: NodeSpec { role, availability, ..NodeSpec::default() },
            role,
            description: None,
            status: NodeStatus::default(),
            manager: None,
            role_since: Version::default(),
            number: 0,
        };
        let state = self.context.write(vec![Write::CreateNode(Box::new(node))]).await?;
        Ok(v1::IssueCertificateResponse {
            cert_pem,
            root_cert_pem: root.cert_pem().to_owned(),
            node_id: id.to_string(),
            cluster_id: cluster.id.to_string(),
            role: v1::Role::from(role).into(),
            manager_addrs: self.context.manager_addrs(&state),
        })
    }

    async fn renew(&self, peer: Option<Peer>, csr_pem: &str) -> Result<v1::RenewCertificateResponse, Status> {
        let node = caller(peer)?;
        renewed(&*self.context.read().await?, node, csr_pem)
    }

    /// Undoes [`CaService::issue`] for a node that has failed to enter. One that was taken into the Raft group is demoted
    /// first, so that the group does not count on it.
    async fn withdraw(&self, peer: Option<Peer>) -> Result<(), Status> {
        let id = caller(peer)?;
        let mut changes = self.context.store.subscribe();
        let demoted = async {
            loop {
                let state = self.context.read().await?;
                let Some(node) = state.node(id) else { return Ok(false) };
                if node.description.is_some() || node.status.addr.is_some() {
                    return Err(Status::failed_precondition(format!(
                        "node `{id}` has been part of the cluster: run `rswarm leave` on it, then `rswarm node rm` on a \
                         manager"
                    )));
                }
                if node.spec.role == Role::Worker && node.role == Role::Worker && node.manager.is_none() {
                    return Ok(true);
                }
                if node.spec.role == Role::Manager {
                    let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
                    let write = Write::UpdateNode { id, spec, expected: node.meta.version };
                    self.context.write(vec![write]).await?;
                }
                // The leader's role manager does the rest.
                let done = |state: &Arc<State>| {
                    state.node(id).is_none_or(|node| node.role == Role::Worker && node.manager.is_none())
                };
                if changes.wait_for(done).await.is_err() {
                    return Err(Status::unavailable("this manager is stopping: ask another one"));
                }
            }
        };
        let late = |_| {
            Status::deadline_exceeded(format!(
                "node `{id}` was not removed from the managers within {WITHDRAW_TIMEOUT:?}"
            ))
        };
        if tokio::time::timeout(WITHDRAW_TIMEOUT, demoted).await.map_err(late)?? {
            self.context.write(vec![Write::RemoveNode { id, force: true }]).await?;
            tracing::info!(node = %id, "a node failed to enter the cluster and gave its place back");
        }
        Ok(())
    }
}

/// Who asks, by the key it has proved. The role table lets no others through.
fn caller(peer: Option<Peer>) -> Result<NodeId, Status> {
    let identity = peer.and_then(|peer| peer.identity());
    identity
        .map(|identity| identity.node)
        .ok_or_else(|| Status::unauthenticated("expected a certificate of this cluster, found none"))
}

/// A new certificate for a member, in the role it has in `state`.
pub(crate) fn renewed(
    state: &State,
    node: NodeId,
    csr_pem: &str,
) -> Result<v1::RenewCertificateResponse, Status> {
    let cluster = the_cluster(state)?;
    let node = state.node(node).ok_or_else(|| unknown_node(node))?;
    let root = root_of(cluster)?;
    Ok(v1::RenewCertificateResponse {
        cert_pem: sign(state, cluster, &root, node.id, node.role, csr_pem)?,
        root_cert_pem: root.cert_pem().to_owned(),
        role: v1::Role::from(node.role).into(),
    })
}

fn sign(
    state: &State,
    cluster: &Cluster,
    root: &RootCa,
    node: NodeId,
    role: Role,
    csr_pem: &str,
) -> Result<String, Status> {
    let claims = Claims { node, role, cluster: cluster.id };
    let life = cluster.spec.node_cert_expiry;
    let issued = root.issue(csr_pem, &claims, life, Timestamp::now(), state.index, &[]);
    issued.map(|certificate| certificate.pem).map_err(|error| match error {
        IssueError::Request(_) | IssueError::KeyKind | IssueError::Name(_) => {
            Status::invalid_argument(chain(&error))
        }
        IssueError::Random(_) | IssueError::Sign { .. } => Status::internal(chain(&error)),
    })
}

/// The certificate authority kept in the cluster object.
pub(crate) fn root_of(cluster: &Cluster) -> Result<RootCa, Status> {
    RootCa::from_pem(&cluster.root_ca.cert_pem, &cluster.root_ca.key_pem)
        .map_err(|error| Status::internal(format!("failed to read the cluster's root: {}", chain(&error))))
}

/// A node with a valid certificate that this cluster's state does not hold.
pub(crate) fn unknown_node(id: NodeId) -> Status {
    Status::permission_denied(format!(
        "node `{id}` is not in this cluster any more: run `rswarm leave` on it, then join again"
    ))
}

/// Reads a token of this cluster; whether its secret is right is another question.
fn token_of(cluster: &Cluster, text: &str) -> Result<JoinToken, Status> {
    let token: JoinToken =
        text.parse().map_err(|error| Status::invalid_argument(format!("invalid join token: {error}")))?;
    let roots = Roots::from_pem(&cluster.root_ca.cert_pem)
        .map_err(|error| Status::internal(format!("failed to read the cluster's root: {}", chain(&error))))?;
    if !roots.digests().any(|digest| digest == token.digest) {
        return Err(Status::permission_denied(
            "the join token is of another cluster: run `rswarm join-token worker` on a manager of this one",
        ));
    }
    Ok(token)
}

/// The role that a token's secret stands for.
fn role_of_secret(cluster: &Cluster, token: &JoinToken) -> Result<Role, Status> {
    // Both are always compared, so that time tells nothing about which of the two came closer.
    let worker = secret_matches(&cluster.join_secrets.worker, &token.secret);
    let manager = secret_matches(&cluster.join_secrets.manager, &token.secret);
    match (worker, manager) {
        (_, true) => Ok(Role::Manager),
        (true, false) => Ok(Role::Worker),
        (false, false) => Err(Status::permission_denied(
            "the join token is not valid: it was replaced by a newer one or mistyped; run \
             `rswarm join-token worker` on a manager for the present one",
        )),
    }
}

/// The root certificate as this manager knows it, whether or not there is a quorum.
fn root_pem(state: &State) -> Result<String, Status> {
    Ok(the_cluster(state)?.root_ca.cert_pem.clone())
}

#[tonic::async_trait]
impl v1::ca_server::Ca for CaService {
    async fn get_root_certificate(
        &self,
        _request: Request<v1::GetRootCertificateRequest>,
    ) -> Result<Response<v1::GetRootCertificateResponse>, Status> {
        let root_cert_pem = root_pem(&self.context.store.snapshot())?;
        Ok(Response::new(v1::GetRootCertificateResponse { root_cert_pem, server_at: Timestamp::now().0 }))
    }

    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Result<Response<v1::IssueCertificateResponse>, Status> {
        self.issue(request.into_inner()).await.map(Response::new)
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().copied();
        self.renew(peer, &request.get_ref().csr_pem).await.map(Response::new)
    }

    async fn withdraw(
        &self,
        request: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawResponse>, Status> {
        let peer = request.extensions().get::<Peer>().copied();
        self.withdraw(peer).await.map(|()| Response::new(v1::WithdrawResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use rswarm_identity::RootDigest;
    use rswarm_types::{ClusterId, ClusterSpec, JoinSecrets};

    use super::*;

    #[test]
    fn a_token_stands_for_a_role_only_in_its_own_cluster_and_until_replaced() {
        let root = RootCa::generate(Timestamp::now()).unwrap();
        let secrets = JoinSecrets { worker: random::text(), manager: random::text() };
        let cluster = Cluster {
            id: ClusterId::from_bytes(random::bytes()),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: rswarm_types::RootCa {
                cert_pem: root.cert_pem().to_owned(),
                key_pem: root.key_pem().to_owned(),
            },
            join_secrets: secrets.clone(),
            removed_nodes: std::collections::BTreeMap::new(),
        };
        let digest = root.digest();
        let check = |digest_in_token, secret: &str| {
            let token = JoinToken { digest: digest_in_token, secret: secret.to_owned() }.to_string();
            token_of(&cluster, &token)
                .and_then(|token| role_of_secret(&cluster, &token))
                .map_err(|status| status.message().to_owned())
        };
        assert_eq!(check(digest, &secrets.worker), Ok(Role::Worker));
        assert_eq!(check(digest, &secrets.manager), Ok(Role::Manager));
        assert!(check(digest, &random::text()).unwrap_err().contains("replaced"));
        let other = RootDigest::from_bytes([7; 32]);
        assert!(check(other, &secrets.manager).unwrap_err().contains("another cluster"));
        assert!(token_of(&cluster, "RSWTKN-1-abc").is_err());
    }
}
