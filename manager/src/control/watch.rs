//! `WatchService`: a service, its tasks and their nodes, again after every change that concerns them.
//!
//! Views are taken of the newest state; changes that come while a view is on its way ride on the next one.

use std::collections::BTreeSet;
use std::sync::Arc;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::orchestrator::is_up_to_date;
use rswarm_types::{Node, Service, ServiceId, ServiceMode, Task};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{ControlService, lookup, service};

/// Views on their way to a caller. One is enough: the next is taken when this one was.
const VIEWS: usize = 1;

pub(super) type WatchStream = ReceiverStream<Result<v1::WatchServiceResponse, Status>>;

impl ControlService {
    pub(super) async fn watch_service(
        &self,
        request: &v1::WatchServiceRequest,
    ) -> Result<WatchStream, Status> {
        let mut changes = self.context.store.subscribe();
        let mut state = self.context.read().await?;
        let id = lookup::service(&state, &request.service)?.id;
        let (views, stream) = mpsc::channel(VIEWS);
        let stop = self.context.stop.clone();
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let view = View::of(&state, id);
                if view != last {
                    let message = match &view {
                        Some(view) => Ok(view.to_wire(&state)),
                        None => Err(Status::not_found(format!("service `{id}` was removed"))),
                    };
                    let gone = message.is_err();
                    if views.send(message).await.is_err() || gone {
                        return;
                    }
                    last = view;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = views.closed() => return,
                    () = stop.cancelled() => {
                        let _ = views.send(Err(Status::unavailable("this manager is stopping"))).await;
                        return;
                    }
                }
                state = changes.borrow_and_update().clone();
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}

/// What a watcher sees of a state.
struct View {
    service: Arc<Service>,
    tasks: Vec<Arc<Task>>,
    nodes: Vec<Arc<Node>>,
}

/// Objects are shared between states until they change, so the same pointers mean the same view.
impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.service, &other.service)
            && same(&self.tasks, &other.tasks)
            && same(&self.nodes, &other.nodes)
    }
}

fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

impl View {
    fn of(state: &State, id: ServiceId) -> Option<Self> {
        let service = state.service(id)?.clone();
        let tasks: Vec<_> = state.tasks_of(id).cloned().collect();
        let nodes = match service.spec.mode {
            ServiceMode::Global => state.nodes().cloned().collect(),
            ServiceMode::Replicated { .. } => {
                let ids: BTreeSet<_> = tasks.iter().filter_map(|task| task.node_id).collect();
                ids.into_iter().filter_map(|id| state.node(id)).cloned().collect()
            }
        };
        Some(Self { service, tasks, nodes })
    }

    fn to_wire(&self, state: &State) -> v1::WatchServiceResponse {
        v1::WatchServiceResponse {
            index: state.index.0,
            service: Some(service::shown(state, &self.service)),
            tasks: self.tasks.iter().map(|task| (&**task).into()).collect(),
            nodes: self.nodes.iter().map(|node| (&**node).into()).collect(),
            up_to_date_task_ids: self
                .tasks
                .iter()
                .filter(|task| is_up_to_date(state, &self.service, task))
                .map(|task| task.id.to_string())
                .collect(),
        }
    }
}
