//! From what a user typed to an object: full id, then exact name, then unique prefix of an id.
//!
//! Source: swarm-parity 1.0. A node's name is its host name, which several nodes may share.

use rswarm_types::{NetworkId, NodeId, ServiceId, TaskId};

use crate::state::State;

/// The kinds of objects that users name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Node,
    Service,
    Task,
    Network,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
        })
    }
}

/// Why a text does not name one object. The words are Swarm's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no such {kind}: {text}")]
    NotFound { kind: Kind, text: String },
    #[error("{kind} {text} is ambiguous ({matches} matches found)")]
    Ambiguous { kind: Kind, text: String, matches: usize },
}

/// The node of that id, host name or id prefix.
pub fn node(state: &State, text: &str) -> Result<NodeId, ResolveError> {
    let named: Vec<NodeId> = state
        .nodes()
        .filter(|node| node.description.as_ref().is_some_and(|d| d.hostname == text))
        .map(|node| node.id)
        .collect();
    let exact = text.parse().ok().filter(|id| state.node(*id).is_some());
    pick(Kind::Node, text, exact, &named, state.nodes().map(|node| node.id))
}

/// The service of that id, name or id prefix.
pub fn service(state: &State, text: &str) -> Result<ServiceId, ResolveError> {
    let named: Vec<ServiceId> = state.service_by_name(text).map(|service| service.id).into_iter().collect();
    let exact = text.parse().ok().filter(|id| state.service(*id).is_some());
    pick(Kind::Service, text, exact, &named, state.services().map(|service| service.id))
}

/// The network of that id, name or id prefix.
pub fn network(state: &State, text: &str) -> Result<NetworkId, ResolveError> {
    let named: Vec<NetworkId> = state.network_by_name(text).map(|network| network.id).into_iter().collect();
    let exact = text.parse().ok().filter(|id| state.network(*id).is_some());
    pick(Kind::Network, text, exact, &named, state.networks().map(|network| network.id))
}

/// The task of that id, name (`service.slot`, as tables show it) or id prefix. Of several tasks with one name, all
/// but one of which have been told to stop, the remaining one is meant.
pub fn task(state: &State, text: &str) -> Result<TaskId, ResolveError> {
    let exact = text.parse().ok().filter(|id| state.task(*id).is_some());
    let mut named = Vec::new();
    if exact.is_none()
        && let Some((name, _)) = text.rsplit_once('.')
        && let Some(service) = state.service_by_name(name)
    {
        let of_name: Vec<_> = state.tasks_of(service.id).filter(|task| task.name() == text).collect();
        let live: Vec<_> = of_name.iter().copied().filter(|task| crate::state::is_active(task)).collect();
        named = if live.is_empty() { of_name } else { live }.into_iter().map(|task| task.id).collect();
    }
    pick(Kind::Task, text, exact, &named, state.tasks().map(|task| task.id))
}

fn pick<Id: Copy + std::fmt::Display>(
    kind: Kind,
    text: &str,
    exact: Option<Id>,
    named: &[Id],
    all: impl Iterator<Item = Id>,
) -> Result<Id, ResolveError> {
    if let Some(id) = exact {
        return Ok(id);
    }
    let by_prefix: Vec<Id>;
    let found = if named.is_empty() && !text.is_empty() {
        by_prefix = all.filter(|id| id.to_string().starts_with(text)).collect();
        &by_prefix
    } else {
        named
    };
    match found {
        [one] => Ok(*one),
        [] => Err(ResolveError::NotFound { kind, text: text.to_owned() }),
        many => Err(ResolveError::Ambiguous { kind, text: text.to_owned(), matches: many.len() }),
    }
}
