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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn a_full_id_then_a_name_then_a_unique_prefix() {
        let mut f = Fixture::new(2);
        let web = f.create("web", 2, |_| {});
        f.create("other", 1, |_| {});
        f.run();
        let id = web.to_string();
        assert_eq!((service(&f.state, &id), service(&f.state, "web")), (Ok(web), Ok(web)));
        let bridge = f.state.network_by_name("bridge").unwrap().id;
        assert_eq!(network(&f.state, &bridge.to_string()[..5]), Ok(bridge));
        assert_eq!(service(&f.state, "we").unwrap_err().to_string(), "no such service: we");
        assert_eq!(service(&f.state, "").unwrap_err().to_string(), "no such service: ");
        // Ids of the fixture begin alike.
        assert_eq!(
            service(&f.state, "0").unwrap_err().to_string(),
            "service 0 is ambiguous (2 matches found)"
        );
        assert_eq!(task(&f.state, "web.2"), Ok(f.current(web)[1].id));
        assert!(node(&f.state, "host1").is_ok() && network(&f.state, "bridge").is_ok());
        f.add_node(3, |node| node.description.as_mut().unwrap().hostname = "host1".into());
        let ambiguous = ResolveError::Ambiguous { kind: Kind::Node, text: "host1".into(), matches: 2 };
        assert_eq!(node(&f.state, "host1"), Err(ambiguous));
    }
}
