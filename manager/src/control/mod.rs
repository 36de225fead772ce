//! The Control service: what users and their tools ask of a cluster, on any manager.
//!
//! Reads wait until this manager has applied all that was acknowledged before the call. Writes are checked against a
//! snapshot for good messages; what counts is the version they name, which `apply` compares. One module per noun.

mod cluster;
mod filter;
pub(crate) mod lookup;
mod name;
mod network;
mod node;
mod service;
mod task;
mod verify;
mod watch;

use std::pin::Pin;
use std::sync::Arc;

use rswarm_api::v1;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::context::Context;

/// The Control service of one manager. Cloning shares it; the daemon mounts a clone on its unix socket.
#[derive(Clone)]
pub struct ControlService {
    context: Arc<Context>,
}

impl ControlService {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

macro_rules! unary {
    ($($rpc:ident($request:ident) -> $response:ident = |$this:ident, $message:ident| $call:expr;)*) => {
        #[tonic::async_trait]
        impl v1::control_server::Control for ControlService {
            type WatchServiceStream = watch::WatchStream;
            type ServiceLogsStream =
                Pin<Box<dyn Stream<Item = Result<v1::ServiceLogsResponse, Status>> + Send>>;

            async fn watch_service(
                &self,
                request: Request<v1::WatchServiceRequest>,
            ) -> Result<Response<Self::WatchServiceStream>, Status> {
                Self::watch_service(self, request.get_ref()).await.map(Response::new)
            }

            async fn service_logs(
                &self,
                request: Request<v1::ServiceLogsRequest>,
            ) -> Result<Response<Self::ServiceLogsStream>, Status> {
                crate::logs::service_logs(&self.context, request).await.map(Response::new)
            }

            async fn verify_networks(
                &self,
                request: Request<v1::VerifyNetworksRequest>,
            ) -> Result<Response<v1::VerifyNetworksResponse>, Status> {
                verify::verify_networks(&self.context, request).await.map(Response::new)
            }

            $(async fn $rpc(
                &self,
                request: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                let ($this, $message) = (self, request.into_inner());
                $call.await.map(Response::new)
            })*
        }
    };
}

unary! {
    get_cluster(GetClusterRequest) -> GetClusterResponse = |this, _request| this.cluster();
    get_join_tokens(GetJoinTokensRequest) -> GetJoinTokensResponse = |this, _request| this.join_tokens();
    rotate_join_token(RotateJoinTokenRequest) -> GetJoinTokensResponse =
        |this, request| this.rotate_join_token(request);
    list_nodes(ListNodesRequest) -> ListNodesResponse = |this, request| this.nodes(&request);
    get_node(GetNodeRequest) -> GetNodeResponse = |this, request| this.node(&request);
    update_node(UpdateNodeRequest) -> UpdateNodeResponse = |this, request| Self::update_node(this, request);
    remove_node(RemoveNodeRequest) -> RemoveNodeResponse = |this, request| Self::remove_node(this, &request);
    create_service(CreateServiceRequest) -> CreateServiceResponse =
        |this, request| Self::create_service(this, request);
    list_services(ListServicesRequest) -> ListServicesResponse = |this, request| this.services(&request);
    get_service(GetServiceRequest) -> GetServiceResponse = |this, request| this.service(&request);
    update_service(UpdateServiceRequest) -> UpdateServiceResponse =
        |this, request| Self::update_service(this, request);
    remove_service(RemoveServiceRequest) -> RemoveServiceResponse =
        |this, request| Self::remove_service(this, &request);
    list_tasks(ListTasksRequest) -> ListTasksResponse = |this, request| this.tasks(&request);
    get_task(GetTaskRequest) -> GetTaskResponse = |this, request| this.task(&request);
    list_networks(ListNetworksRequest) -> ListNetworksResponse = |this, request| this.networks(&request);
    create_network(CreateNetworkRequest) -> CreateNetworkResponse =
        |this, request| Self::create_network(this, request);
    get_network(GetNetworkRequest) -> GetNetworkResponse = |this, request| this.network(&request);
    update_network(UpdateNetworkRequest) -> UpdateNetworkResponse =
        |this, request| Self::update_network(this, request);
    remove_network(RemoveNetworkRequest) -> RemoveNetworkResponse =
        |this, request| Self::remove_network(this, &request);
    connect_task(ConnectTaskRequest) -> ConnectTaskResponse =
        |this, request| Self::connect_task(this, request);
    disconnect_task(DisconnectTaskRequest) -> DisconnectTaskResponse =
        |this, request| Self::disconnect_task(this, &request);
    prune_networks(PruneNetworksRequest) -> PruneNetworksResponse =
        |this, request| Self::prune_networks(this, &request);
}
