//! The unix socket of the daemon: local calls always, cluster calls as long as this node is a manager.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};

use anyhow::Context as _;
use rswarm_api::v1::control_server::ControlServer;
use rswarm_api::v1::local_server::LocalServer;
use rswarm_manager::ControlService;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

use super::local::LocalService;
use crate::client::MAX_MESSAGE_BYTES;

/// The control service of the manager on this node, while there is one.
#[derive(Clone, Default)]
pub struct ControlSwitch(Arc<RwLock<Target>>);

enum Target {
    /// A membership is being taken up.
    Starting,
    /// With the words for whoever asks.
    Off(&'static str),
    On(ControlServer<ControlService>),
}

/// What a node outside of any cluster answers. Source: swarm-parity 1.0.
pub const NOT_A_MEMBER: &str = "this node is not a member of a cluster: use `rswarm init` to create one or \
                                `rswarm join` to enter one";
/// What a worker answers.
pub const NOT_A_MANAGER: &str = "this node is not a manager: worker nodes cannot view or change cluster state; run \
                                 the command on a manager, or promote this node there by `rswarm node promote`";

impl Default for Target {
    fn default() -> Self {
        Self::Off(NOT_A_MEMBER)
    }
}

impl ControlSwitch {
    pub fn on(&self, service: ControlService) {
        let server = ControlServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        self.set(Target::On(server));
    }

    pub fn off(&self, reason: &'static str) {
        self.set(Target::Off(reason));
    }

    /// Until it is known what this node is.
    pub fn starting(&self) {
        self.set(Target::Starting);
    }

    fn set(&self, target: Target) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = target;
    }
}

impl NamedService for ControlSwitch {
    const NAME: &'static str = <ControlServer<ControlService> as NamedService>::NAME;
}

impl Service<Request<Body>> for ControlSwitch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let status = match &*self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Target::On(server) => return server.clone().call(request),
            Target::Starting => Status::unavailable("the daemon is starting: try again in a moment"),
            Target::Off(reason) => Status::failed_precondition(*reason),
        };
        Box::pin(std::future::ready(Ok(status.into_http())))
    }
}

/// Listens on `path` for root alone. A socket that a killed daemon left is replaced; the caller holds the lock that
/// makes sure no other daemon uses it.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let bind = || -> std::io::Result<UnixListener> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().with_context(|| format!("cannot listen on `{}`", path.display()))
}

/// Serves until `end` is ready; calls under way are finished first.
pub async fn serve(
    listener: UnixListener,
    local: LocalService,
    control: ControlSwitch,
    end: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let local = LocalServer::new(local)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    tonic::transport::Server::builder()
        .add_service(local)
        .add_service(control)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end)
        .await
        .context("the unix socket failed")
}

#[cfg(test)]
mod tests {
    use rswarm_api::v1;
    use rswarm_api::v1::control_client::ControlClient;

    use super::*;

    #[tokio::test]
    async fn who_asks_too_early_is_told_to_come_again_and_not_that_there_is_no_cluster() {
        let switch = ControlSwitch::default();
        let code = async || {
            let mut client = ControlClient::new(switch.clone());
            client.get_cluster(v1::GetClusterRequest {}).await.expect_err("nothing is there").code()
        };
        assert_eq!(code().await, tonic::Code::FailedPrecondition);
        switch.starting();
        assert_eq!(code().await, tonic::Code::Unavailable);
        switch.off(NOT_A_MANAGER);
        assert_eq!(code().await, tonic::Code::FailedPrecondition);
    }
}
