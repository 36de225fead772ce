//! Tasks: listed and shown, never written by users.

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_types::{NodeId, ServiceId, TaskState};
use tonic::Status;

use super::ControlService;
use super::filter::Filters;
use super::lookup;

impl ControlService {
    pub(super) async fn tasks(
        &self,
        request: &v1::ListTasksRequest,
    ) -> Result<v1::ListTasksResponse, Status> {
        let filters =
            Filters::new(&request.filters, &["id", "name", "label", "service", "node", "desired-state"])?;
        let desired: Vec<TaskState> = filters.parsed("desired-state")?;
        let state = self.context.read().await?;
        let services = services_named(&state, &filters)?;
        let nodes = nodes_named(&state, &filters)?;
        let tasks = state
            .tasks()
            .filter(|task| {
                filters.prefix("id", &task.id.to_string())
                    && filters.prefix("name", &task.name())
                    && filters.label("label", &task.service_labels)
                    && services.as_ref().is_none_or(|wanted| wanted.contains(&task.service_id))
                    && nodes.as_ref().is_none_or(|wanted| task.node_id.is_some_and(|id| wanted.contains(&id)))
                    && (desired.is_empty() || desired.contains(&task.desired))
            })
            .map(|task| (&**task).into())
            .collect();
        Ok(v1::ListTasksResponse { tasks })
    }

    pub(super) async fn task(&self, request: &v1::GetTaskRequest) -> Result<v1::GetTaskResponse, Status> {
        let state = self.context.read().await?;
        Ok(v1::GetTaskResponse { task: Some((&**lookup::task(&state, &request.task)?).into()) })
    }
}

/// The services the filter names; `None` if it is not given.
fn services_named(state: &State, filters: &Filters<'_>) -> Result<Option<Vec<ServiceId>>, Status> {
    let ids: Vec<_> = filters
        .values("service")
        .map(|name| lookup::service(state, name).map(|service| service.id))
        .collect::<Result<_, _>>()?;
    Ok((!ids.is_empty()).then_some(ids))
}

/// The nodes the filter names; `None` if it is not given.
fn nodes_named(state: &State, filters: &Filters<'_>) -> Result<Option<Vec<NodeId>>, Status> {
    let ids: Vec<_> = filters
        .values("node")
        .map(|name| lookup::node(state, name).map(|node| node.id))
        .collect::<Result<_, _>>()?;
    Ok((!ids.is_empty()).then_some(ids))
}
