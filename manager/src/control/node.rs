//! Nodes: what users may ask of them, and the rules that keep a cluster from losing its managers.

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::state::Write;
use rswarm_types::{Labels, Node, NodeSpec, Role, Version};
use tonic::Status;

use super::filter::Filters;
use super::{ControlService, lookup};

const FILTERS: [&str; 6] = ["id", "name", "label", "node.label", "role", "membership"];

impl ControlService {
    pub(super) async fn nodes(&self, request: &v1::ListNodesRequest) -> Result<v1::ListNodesResponse, Status> {
        let filters = Filters::new(&request.filters, &FILTERS)?;
        let roles: Vec<Role> = filters.parsed("role")?;
        if let Some(odd) = filters.values("membership").find(|value| !["accepted", "pending"].contains(value)) {
            return Err(Status::invalid_argument(format!(
                "invalid filter `membership`: expected `accepted` or `pending`, found `{odd}`"
            )));
        }
        let state = self.context.read().await?;
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
            .map(|node| self.shown(node))
            .collect();
        Ok(v1::ListNodesResponse { nodes })
    }

    pub(super) async fn node(&self, request: &v1::GetNodeRequest) -> Result<v1::GetNodeResponse, Status> {
        let state = self.context.read().await?;
        let node = lookup::node(&state, &request.node)?;
        Ok(v1::GetNodeResponse { node: Some(self.shown(node)) })
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
            self.may_demote(&state, node)?;
        }
        let expected = Version(request.version);
        let state = self.context.write(vec![Write::UpdateNode { id, spec, expected }]).await?;
        let node = lookup::node(&state, &id.to_string())?;
        Ok(v1::UpdateNodeResponse { node: Some(self.shown(node)) })
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

    /// Refuses a demotion that would leave the cluster without managers, or without a quorum of reachable ones.
    ///
    /// Source: swarm-parity 3.10.
    fn may_demote(&self, state: &State, node: &Node) -> Result<(), Status> {
        let staying: Vec<&Node> = state
            .nodes()
            .map(|other| &**other)
            .filter(|other| other.id != node.id && other.spec.role == Role::Manager && other.manager.is_some())
            .collect();
        if staying.is_empty() {
            return Err(Status::failed_precondition(format!(
                "attempting to demote the last manager of the swarm: node `{}`; promote another node first",
                node.display_name()
            )));
        }
        let reachable = staying.iter().filter(|other| self.context.is_reachable(other.id)).count();
        let needed = staying.len() / 2 + 1;
        if reachable < needed {
            return Err(Status::failed_precondition(format!(
                "demoting node `{}` would result in a loss of quorum: expected at least {needed} reachable managers \
                 among the {} that stay, found {reachable}",
                node.display_name(),
                staying.len()
            )));
        }
        Ok(())
    }

    /// A node on the wire; leader and reachability as this manager sees them now.
    fn shown(&self, node: &Node) -> v1::Node {
        let mut wire = v1::Node::from(node);
        if let Some(manager) = &mut wire.manager {
            manager.leader = self.context.leader() == Some(node.id);
            manager.reachability = if self.context.is_reachable(node.id) {
                v1::Reachability::Reachable
            } else {
                v1::Reachability::Unreachable
            }
            .into();
        }
        wire
    }
}
