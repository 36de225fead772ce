//! From what a user typed to an object, errors as the caller sees them. The rules are [`rswarm_core::resolve`]'s.

use std::sync::Arc;

use rswarm_core::State;
use rswarm_core::resolve::{self, ResolveError};
use rswarm_types::{Network, Node, Service, Task};
use tonic::Status;

pub(crate) fn node<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Node>, Status> {
    find(resolve::node(state, text), |id| state.node(id))
}

pub(crate) fn service<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Service>, Status> {
    find(resolve::service(state, text), |id| state.service(id))
}

pub(crate) fn task<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Task>, Status> {
    find(resolve::task(state, text), |id| state.task(id))
}

pub(crate) fn network<'a>(state: &'a State, text: &str) -> Result<&'a Arc<Network>, Status> {
    find(resolve::network(state, text), |id| state.network(id))
}

fn find<'a, Id, T>(
    resolved: Result<Id, ResolveError>,
    get: impl FnOnce(Id) -> Option<&'a Arc<T>>,
) -> Result<&'a Arc<T>, Status> {
    let id = resolved.map_err(|error| match error {
        ResolveError::NotFound { .. } => Status::not_found(error.to_string()),
        ResolveError::Ambiguous { .. } => Status::invalid_argument(error.to_string()),
    })?;
    Ok(get(id).expect("what was resolved in a snapshot is in it"))
}
