//! The Ca service: hands out the root certificate, turns a join token into a certificate and a place in the cluster,
//! and renews the certificates of members.
//!
//! Works on any manager: the root's key is part of the replicated, encrypted state. What a certificate says is decided
//! here alone; of a request only the key is used.

use std::sync::Arc;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::state::Write;
use rswarm_identity::{Claims, IssueError, JoinToken, RootCa, RootDigest, secret_matches};
use rswarm_types::{Availability, Cluster, Meta, Node, NodeId, NodeSpec, NodeStatus, Role, Timestamp};
use tonic::{Request, Response, Status};

use crate::context::{Context, the_cluster};
use crate::error::chain;
use crate::random;
use crate::server::Peer;

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
        // Not a snapshot: a token that was replaced a moment ago must not work on a manager that lags behind.
        let state = self.context.read().await?;
        let cluster = the_cluster(&state)?;
        let root = root_of(cluster)?;
        let role = role_of_token(cluster, root.digest(), &request.token)?;
        let id = NodeId::from_bytes(random::bytes());
        let cert_pem = self.sign(cluster, &root, id, role, &request.csr_pem)?;
        let node = Node {
            id,
            meta: Meta::default(),
            spec: NodeSpec { role, availability, ..NodeSpec::default() },
            role,
            description: None,
            status: NodeStatus::default(),
            manager: None,
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
        let identity = peer
            .and_then(|peer| peer.identity)
            .ok_or_else(|| Status::unauthenticated("expected a certificate of this cluster, found none"))?;
        let state = self.context.read().await?;
        let cluster = the_cluster(&state)?;
        let node = state.node(identity.node).ok_or_else(|| unknown_node(identity.node))?;
        let root = root_of(cluster)?;
        let cert_pem = self.sign(cluster, &root, node.id, node.role, csr_pem)?;
        Ok(v1::RenewCertificateResponse {
            cert_pem,
            root_cert_pem: root.cert_pem().to_owned(),
            role: v1::Role::from(node.role).into(),
        })
    }

    fn sign(
        &self,
        cluster: &Cluster,
        root: &RootCa,
        node: NodeId,
        role: Role,
        csr_pem: &str,
    ) -> Result<String, Status> {
        let claims = Claims { node, role, cluster: cluster.id };
        let issued = root.issue(csr_pem, &claims, cluster.spec.node_cert_expiry, Timestamp::now(), &[]);
        issued.map(|certificate| certificate.pem).map_err(|error| match error {
            IssueError::Request(_) | IssueError::KeyKind | IssueError::Name(_) => {
                Status::invalid_argument(chain(&error))
            }
            IssueError::Random(_) | IssueError::Sign { .. } => Status::internal(chain(&error)),
        })
    }
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

/// The role that a token stands for.
fn role_of_token(cluster: &Cluster, digest: RootDigest, text: &str) -> Result<Role, Status> {
    let token: JoinToken =
        text.parse().map_err(|error| Status::invalid_argument(format!("invalid join token: {error}")))?;
    if token.digest != digest {
        return Err(Status::permission_denied(
            "the join token is of another cluster: run `rswarm join-token worker` on a manager of this one",
        ));
    }
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
}

#[cfg(test)]
mod tests {
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
            role_of_token(&cluster, digest, &token).map_err(|status| status.message().to_owned())
        };
        assert_eq!(check(digest, &secrets.worker), Ok(Role::Worker));
        assert_eq!(check(digest, &secrets.manager), Ok(Role::Manager));
        assert!(check(digest, &random::text()).unwrap_err().contains("replaced"));
        let other = RootDigest::from_bytes([7; 32]);
        assert!(check(other, &secrets.manager).unwrap_err().contains("another cluster"));
        assert!(role_of_token(&cluster, digest, "RSWTKN-1-abc").is_err());
    }
}
