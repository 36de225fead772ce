//! Nodes: what users may ask of them, and the rules that keep a cluster from losing its managers.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::state::Write;
use rswarm_types::{Labels, Node, NodeId, NodeSpec, Role, Version};
use tonic::{Request, Status};

use super::filter::Filters;
use super::{ControlService, lookup};
use crate::raft::Reachability;

/// The leader is asked who answers it; a list of nodes does not wait longer for that.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

const FILTERS: [&str; 6] = ["id", "name", "label", "node.label", "role", "membership"];

impl ControlService {
    pub(super) async fn nodes(
        &self,
        request: &v1::ListNodesRequest,
    ) -> Result<v1::ListNodesResponse, Status> {
        let filters = Filters::new(&request.filters, &FILTERS)?;
        let roles: Vec<Role> = filters.parsed("role")?;
        if let Some(odd) = filters.values("membership").find(|value| !["accepted", "pending"].contains(value))
        {
            return Err(Status::invalid_argument(format!(
                "invalid filter `membership`: expected `accepted` or `pending`, found `{odd}`"
            )));
        }
        let state = self.context.read().await?;
        let managers = self.managers().await;
        let none = Labels::new();
        let engine_labels = |node: &Node| -> Labels {
            node.description.as_ref().map_or_else(|| none.clone(), |d| d.engine_labels.clone())
        };
        let nodes = state
            .nodes()
            .filter(|node| {
                filters.prefix("id", &node.id.to_string())
                    && filters.any("name", |name| {
                        node.description.as_ref().is_some_and(|d| d.hostname.starts_with(name))
                    })
                    && filters.label("label", &engine_labels(node))
                    && filters.label("node.label", &node.spec.labels)
                    && (roles.is_empty() || roles.contains(&node.role))
                    // A valid token is the approval: no node waits for one.
                    && filters.any("membership", |membership| membership == "accepted")
            })
            .map(|node| shown(node, &managers))
            .collect();
        Ok(v1::ListNodesResponse { nodes })
    }

    pub(super) async fn node(&self, request: &v1::GetNodeRequest) -> Result<v1::GetNodeResponse, Status> {
        let state = self.context.read().await?;
        let node = lookup::node(&state, &request.node)?;
        Ok(v1::GetNodeResponse {
            node: Some(shown(node, &self.managers().await)),
            route_conflicts: state.route_conflicts(node),
            unreached_peers: state.unreached_peers(node),
        })
    }

    pub(super) async fn update_node(
        &self,
        request: v1::UpdateNodeRequest,
    ) -> Result<v1::UpdateNodeResponse, Status> {
        let state = self.context.read().await?;
        let node = lookup::node(&state, &request.id)?;
        let id = node.id;
        let wire = request.spec.ok_or_else(|| Status::invalid_argument("expected a spec, found none"))?;
        let spec = NodeSpec::try_from(wire)?;
        if node.spec.role == Role::Manager && spec.role == Role::Worker {
            may_demote(&state, node, &self.managers().await)?;
        }
        let expected = Version(request.version);
        let state = self.context.write(vec![Write::UpdateNode { id, spec, expected }]).await?;
        let node = lookup::node(&state, &id.to_string())?;
        Ok(v1::UpdateNodeResponse { node: Some(shown(node, &self.managers().await)) })
    }

    pub(super) async fn remove_node(
        &self,
        request: &v1::RemoveNodeRequest,
    ) -> Result<v1::RemoveNodeResponse, Status> {
        let state = self.context.read().await?;
        let node = lookup::node(&state, &request.node)?;
        if node.manager.is_some() || node.spec.role == Role::Manager || node.role == Role::Manager {
            return Err(Status::failed_precondition(format!(
                "node `{}` is a manager; demote it before removing it",
                node.id
            )));
        }
        self.context.write(vec![Write::RemoveNode { id: node.id, force: request.force }]).await?;
        Ok(v1::RemoveNodeResponse {})
    }

    /// How each manager fares. Only the leader knows who answers; other managers ask it.
    async fn managers(&self) -> BTreeMap<NodeId, Standing> {
        let own = self.context.raft.members();
        let mut managers: BTreeMap<_, _> = own
            .into_iter()
            .map(|member| {
                let standing = Standing { leads: member.leader, reachability: member.reachability.into() };
                (member.node_id, standing)
            })
            .collect();
        let unsure = managers.values().any(|m| m.reachability == v1::Reachability::Unknown);
        if let Some(addr) = self.context.leader_addr().filter(|_| unsure) {
            let filter = v1::Filter { key: "role".to_owned(), values: vec!["manager".to_owned()] };
            let mut leader = self.context.control_client(&addr);
            let mut request = Request::new(v1::ListNodesRequest { filters: vec![filter] });
            request.set_timeout(ASK_TIMEOUT);
            // Without an answer the rest is still worth showing.
            let answer = tokio::time::timeout(ASK_TIMEOUT, leader.list_nodes(request)).await;
            let nodes = answer.ok().and_then(Result::ok).map(|answer| answer.into_inner().nodes);
            for node in nodes.unwrap_or_default() {
                if let (Ok(id), Some(manager)) = (node.id.parse::<NodeId>(), node.manager)
                    && let Some(held) = managers.get_mut(&id)
                {
                    held.reachability = manager.reachability();
                }
            }
        }
        managers
    }
}

/// What a manager is at present.
#[derive(Debug, Clone, Copy)]
struct Standing {
    leads: bool,
    reachability: v1::Reachability,
}

impl From<Reachability> for v1::Reachability {
    fn from(reachability: Reachability) -> Self {
        match reachability {
            Reachability::Reachable => Self::Reachable,
            Reachability::Unreachable => Self::Unreachable,
            Reachability::Unknown => Self::Unknown,
        }
    }
}

/// Refuses a demotion that would leave the cluster without managers, or without a quorum of reachable ones.
///
/// Source: swarm-parity 3.10.
fn may_demote(state: &State, node: &Node, managers: &BTreeMap<NodeId, Standing>) -> Result<(), Status> {
    let staying: Vec<&Node> = state
        .nodes()
        .map(|other| &**other)
        .filter(|other| other.id != node.id && other.spec.role == Role::Manager && other.manager.is_some())
        .collect();
    if staying.is_empty() {
        return Err(Status::failed_precondition(format!(
            "attempting to demote the last manager of the cluster, node `{}`; promote another node first",
            node.display_name()
        )));
    }
    let answers =
        |other: &Node| managers.get(&other.id).is_some_and(|m| m.reachability == v1::Reachability::Reachable);
    let silent: Vec<_> = staying
        .iter()
        .filter(|other| !answers(other))
        .map(|other| format!("`{}`", other.display_name()))
        .collect();
    let (reachable, needed) = (staying.len() - silent.len(), staying.len() / 2 + 1);
    if reachable < needed {
        return Err(Status::failed_precondition(format!(
            "demoting node `{}` would result in a loss of quorum: expected at least {needed} reachable of the {} \
             managers that stay, found {reachable}; start again or reconnect {}",
            node.display_name(),
            staying.len(),
            silent.join(", ")
        )));
    }
    Ok(())
}

/// A node on the wire.
fn shown(node: &Node, managers: &BTreeMap<NodeId, Standing>) -> v1::Node {
    let mut wire = v1::Node::from(node);
    if let (Some(manager), Some(standing)) = (&mut wire.manager, managers.get(&node.id)) {
        manager.leader = standing.leads;
        manager.reachability = standing.reachability.into();
    }
    wire
}
