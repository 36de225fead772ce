//! The cluster object and its join tokens.

use rswarm_api::v1;
use rswarm_core::state::Write;
use rswarm_identity::{JoinToken, RootDigest};
use rswarm_types::{Cluster, Role};
use tonic::Status;

use super::ControlService;
use crate::ca;
use crate::context::the_cluster;
use crate::random;

impl ControlService {
    pub(super) async fn cluster(&self) -> Result<v1::GetClusterResponse, Status> {
        let state = self.context.read().await?;
        Ok(v1::GetClusterResponse { cluster: Some((&**the_cluster(&state)?).into()) })
    }

    pub(super) async fn join_tokens(&self) -> Result<v1::GetJoinTokensResponse, Status> {
        let state = self.context.read().await?;
        let cluster = the_cluster(&state)?;
        let digest = ca::root_of(cluster)?.digest();
        Ok(v1::GetJoinTokensResponse {
            worker: token(digest, &cluster.join_secrets.worker),
            manager: token(digest, &cluster.join_secrets.manager),
            manager_addrs: self.context.manager_addrs(&state),
        })
    }

    pub(super) async fn rotate_join_token(
        &self,
        request: v1::RotateJoinTokenRequest,
    ) -> Result<v1::GetJoinTokensResponse, Status> {
        let role = v1::Role::try_from(request.role).ok().and_then(|role| Role::try_from(role).ok());
        let role = role.ok_or_else(|| {
            Status::invalid_argument("expected the role `worker` or `manager` whose token is to be replaced")
        })?;
        let state = self.context.read().await?;
        let held = the_cluster(&state)?;
        let mut cluster = Cluster::clone(held);
        match role {
            Role::Worker => cluster.join_secrets.worker = random::text(),
            Role::Manager => cluster.join_secrets.manager = random::text(),
        }
        let expected = Some(held.meta.version);
        self.context.write(vec![Write::PutCluster { cluster: Box::new(cluster), expected }]).await?;
        self.join_tokens().await
    }
}

fn token(digest: RootDigest, secret: &str) -> String {
    JoinToken { digest, secret: secret.to_owned() }.to_string()
}
