//! `network verify`: the leader has every node compare its kernel with what its networks should be.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rswarm_api::v1;
use rswarm_api::v1::verify_networks_response::NodeNetworks;
use rswarm_types::{Network, Node, NodeState};
use tonic::{Request, Status};

use super::lookup;
use crate::context::{Context, Leader, no_leader};
use crate::leader::Lead;

/// How long a node may take to read its kernel: with ten thousand endpoints it takes a tenth of a second.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a call waits for a leader during an election.
const ELECTION_PATIENCE: Duration = Duration::from_secs(5);

/// Answers a call on any manager.
pub(super) async fn verify_networks(
    context: &Arc<Context>,
    request: Request<v1::VerifyNetworksRequest>,
) -> Result<v1::VerifyNetworksResponse, Status> {
    match context.find_leader(ELECTION_PATIENCE).await {
        Leader::Here(lead) => {
            let state = context.read().await?;
            let name = &request.get_ref().network;
            let network = if name.is_empty() { None } else { Some(lookup::network(&state, name)?) };
            let nodes = state.nodes().map(|node| async {
                let checked = verify(&lead, node, network.map(|one| &**one)).await;
                let (route_conflicts, unreached_peers) =
                    (state.route_conflicts(node), state.unreached_peers(node));
                NodeNetworks { route_conflicts, unreached_peers, ..checked }
            });
            Ok(v1::VerifyNetworksResponse { nodes: join_all(nodes).await })
        }
        Leader::Elsewhere => {
            let (mut leader, onward) = context.pass_on(request)?;
            Ok(leader.verify_networks(onward).await?.into_inner())
        }
        Leader::Unknown => Err(no_leader()),
    }
}

/// What one node finds, of one network or of all.
async fn verify(lead: &Lead, node: &Node, network: Option<&Network>) -> NodeNetworks {
    let mut answer = NodeNetworks {
        node_id: node.id.to_string(),
        hostname: node.display_name(),
        ..NodeNetworks::default()
    };
    let Some(checked) = lead.hub.check_network(node.id) else {
        let why = if node.status.state == NodeState::Down { "it is down" } else { "it has no session yet" };
        why.clone_into(&mut answer.unreachable);
        return answer;
    };
    match tokio::time::timeout(ANSWER_PATIENCE, checked).await {
        Ok(Ok(mut check)) => {
            if let Some(network) = network.map(|network| network.id.to_string()) {
                check.differences.retain(|one| one.network.is_empty() || one.network == network);
            }
            answer.check = Some(check);
        }
        Ok(Err(_)) => "its session ended before it answered".clone_into(&mut answer.unreachable),
        Err(_) => answer.unreachable = format!("it has not answered within {ANSWER_PATIENCE:?}"),
    }
    answer
}
