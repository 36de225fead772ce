//! A host's daemon by its socket, without the command line between.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rswarm_api::channel;
use rswarm_api::v1::control_client::ControlClient;
use rswarm_api::v1::local_client::LocalClient;
use rswarm_api::v1::{self, TaskState};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

/// A call that takes longer has failed: tests wait for conditions, not for calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Calls to one daemon; each blocks until it is answered.
#[derive(Debug, Clone)]
pub struct Api {
    runtime: Arc<Runtime>,
    channel: Channel,
}

/// Whether a task is one of those that make up its service now.
pub fn is_running(task: &v1::Task) -> bool {
    task.desired() == TaskState::Running
        && task.status.as_ref().is_some_and(|status| status.state() == TaskState::Running)
}

impl Api {
    pub(crate) fn new(runtime: Arc<Runtime>, socket: &Path) -> Self {
        // Making a channel needs a runtime around, to spawn its connection later.
        let channel = {
            let _entered = runtime.enter();
            channel::unix(socket)
        };
        Self { runtime, channel }
    }

    fn wait<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(async {
            match tokio::time::timeout(CALL_TIMEOUT, call).await {
                Ok(answer) => answer.map(tonic::Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"))),
            }
        })
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub fn info(&self) -> Result<v1::InfoResponse, Status> {
        self.wait(LocalClient::new(self.channel.clone()).info(v1::InfoRequest {}))
    }

    /// Founds a cluster, without starting a daemon where none runs as the command would.
    pub fn init(&self, advertise_addr: &str) -> Result<v1::InitResponse, Status> {
        let request = v1::InitRequest {
            advertise_addr: advertise_addr.to_owned(),
            spec: Some((&rswarm_types::ClusterSpec::default()).into()),
            ..v1::InitRequest::default()
        };
        self.wait(LocalClient::new(self.channel.clone()).init(request))
    }

    /// Leaves the cluster, whatever that costs it.
    pub fn leave(&self) -> Result<(), Status> {
        let request = v1::LeaveRequest { force: true };
        self.wait(LocalClient::new(self.channel.clone()).leave(request)).map(drop)
    }

    pub fn nodes(&self) -> Result<Vec<v1::Node>, Status> {
        self.wait(self.control().list_nodes(v1::ListNodesRequest::default())).map(|answer| answer.nodes)
    }

    pub fn networks(&self) -> Result<Vec<v1::Network>, Status> {
        self.wait(self.control().list_networks(v1::ListNetworksRequest::default()))
            .map(|answer| answer.networks)
    }

    pub fn services(&self) -> Result<Vec<v1::Service>, Status> {
        self.wait(self.control().list_services(v1::ListServicesRequest::default()))
            .map(|answer| answer.services)
    }

    pub fn service(&self, name: &str) -> Result<v1::Service, Status> {
        let answer =
            self.wait(self.control().get_service(v1::GetServiceRequest { service: name.to_owned() }))?;
        answer.service.ok_or_else(|| Status::not_found(name))
    }

    /// All tasks, history included; of one service if it is named.
    pub fn tasks(&self, service: Option<&str>) -> Result<Vec<v1::Task>, Status> {
        let filter = |service: &str| v1::Filter { key: "service".into(), values: vec![service.to_owned()] };
        let filters = service.map(filter).into_iter().collect();
        self.wait(self.control().list_tasks(v1::ListTasksRequest { filters })).map(|answer| answer.tasks)
    }

    /// The tasks that make up a service now.
    pub fn running(&self, service: &str) -> Result<Vec<v1::Task>, Status> {
        self.tasks(Some(service)).map(|tasks| tasks.into_iter().filter(is_running).collect())
    }

    pub fn create(&self, spec: v1::ServiceSpec) -> Result<v1::Service, Status> {
        let request = v1::CreateServiceRequest { spec: Some(spec), ..Default::default() };
        let answer = self.wait(self.control().create_service(request))?;
        answer.service.ok_or_else(|| Status::internal("no service in the answer"))
    }

    /// Changes a service's spec, based on `version` or else on the present one.
    pub fn update(
        &self,
        name: &str,
        version: Option<u64>,
        change: impl FnOnce(&mut v1::ServiceSpec),
    ) -> Result<v1::Service, Status> {
        let service = self.service(name)?;
        let mut spec = service.spec.clone().unwrap_or_default();
        change(&mut spec);
        let present = service.meta.as_ref().map_or(0, |meta| meta.version);
        let request = v1::UpdateServiceRequest {
            id: service.id,
            version: version.unwrap_or(present),
            spec: Some(spec),
            ..v1::UpdateServiceRequest::default()
        };
        let answer = self.wait(self.control().update_service(request))?;
        answer.service.ok_or_else(|| Status::internal("no service in the answer"))
    }

    pub fn remove(&self, service: &str) -> Result<(), Status> {
        let request = v1::RemoveServiceRequest { service: service.to_owned() };
        self.wait(self.control().remove_service(request)).map(drop)
    }

    /// Creates a service and watches it until `replicas` of its tasks run; the time that took, the call included.
    pub fn time_to_running(&self, spec: v1::ServiceSpec, replicas: usize) -> Result<Duration, Status> {
        let mut control = self.control();
        self.runtime.block_on(async {
            let work = async {
                let started_at = Instant::now();
                let name = spec.name.clone();
                let request = v1::CreateServiceRequest { spec: Some(spec), ..Default::default() };
                control.create_service(request).await?;
                let watch = v1::WatchServiceRequest { service: name };
                let mut views = control.watch_service(watch).await?.into_inner();
                while let Some(view) = views.message().await? {
                    if view.tasks.iter().filter(|task| is_running(task)).count() >= replicas {
                        return Ok(started_at.elapsed());
                    }
                }
                Err(Status::aborted("the stream ended before all replicas ran"))
            };
            let late = |_| Status::deadline_exceeded("the replicas did not run within a minute");
            tokio::time::timeout(Duration::from_secs(60), work).await.map_err(late)?
        })
    }
}
