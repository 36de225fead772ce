//! The allocator: gives `new` tasks their networks and addresses. Source: swarm-parity 3.8.
//!
//! Published host ports need nothing from it: they belong to the node and are left to the scheduler and the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use rswarm_types::network::Ipam;
use rswarm_types::task::{TaskAddress, TaskNetwork};
use rswarm_types::{Network, NetworkId, Task, TaskState, Timestamp};

use crate::plan::{Action, Outcome, Plan};
use crate::state::{State, on_mesh, task_address};

/// Why a task cannot be given its networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum AllocateError {
    #[error("network `{0}` not found")]
    Missing(NetworkId),
    #[error("a port in mode `ingress` needs an ingress network, and the cluster has none")]
    NoIngress,
    #[error("no free address in network `{name}` ({subnet}): {used} of {total} in use{way_out}")]
    Exhausted { name: String, subnet: String, used: usize, total: u64, way_out: String },
}

/// Gives each waiting `new` task its networks. One that gets none stays `new`, with the reason.
pub fn plan(state: &State, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let (given, cursors, full) = Default::default();
    let mut allocator = Allocator { state, now, given, cursors, full };
    for task in state.waiting_tasks().filter(|task| task.status.state == TaskState::New) {
        match allocator.networks(task) {
            Ok(networks) => plan.actions.push(Action::AllocateTask { task: task.id, networks }),
            Err(error) => {
                let error = error.to_string();
                if task.status.error != error {
                    let message = "waiting for an address".to_owned();
                    let outcome = Outcome { state: TaskState::New, message, error, unplaced: None };
                    plan.actions.push(Action::SetStatus { task: task.id, outcome });
                }
            }
        }
    }
    plan
}

struct Allocator<'a> {
    state: &'a State,
    now: Timestamp,
    /// Given out in this pass.
    given: BTreeSet<(NetworkId, Ipv4Addr)>,
    /// Where this pass's search stands.
    cursors: BTreeMap<NetworkId, Ipv4Addr>,
    /// Networks found to have no free address: one search is enough.
    full: BTreeSet<NetworkId>,
}

impl Allocator<'_> {
    fn networks(&mut self, task: &Task) -> Result<Vec<TaskNetwork>, AllocateError> {
        let mut networks = Vec::new();
        // The first one, as the way back to clients of the mesh.
        if on_mesh(&task.ports) {
            let ingress = self.state.ingress().ok_or(AllocateError::NoIngress)?;
            networks.push(self.attach(ingress, &[])?);
        }
        if task.spec.networks.is_empty() {
            let default = self.state.default_network();
            networks.extend(default.map(|network| self.attach(network, &[])).transpose()?);
        }
        for attachment in &task.spec.networks {
            let network = self.state.network(attachment.network);
            let network = network.ok_or(AllocateError::Missing(attachment.network))?;
            networks.push(self.attach(network, &attachment.aliases)?);
        }
        // Only now, so that a task that fails on its second network keeps nothing of the first.
        for network in &networks {
            if let Some(address) = network.address {
                self.given.insert((network.network, address.address));
                self.cursors.insert(network.network, address.address);
            }
        }
        Ok(networks)
    }

    fn attach(&mut self, network: &Network, aliases: &[String]) -> Result<TaskNetwork, AllocateError> {
        Ok(TaskNetwork {
            network: network.id,
            name: network.spec.name.clone(),
            driver: network.spec.driver,
            address: network.ipam.map(|ipam| self.address(network, ipam)).transpose()?,
            aliases: aliases.to_vec(),
            internal: network.spec.internal,
            mtu: network.spec.mtu,
            bridge: network.spec.bridge,
            joined: false,
        })
    }

    fn address(&mut self, network: &Network, ipam: Ipam) -> Result<TaskAddress, AllocateError> {
        let last = self.cursors.get(&network.id).copied().or(self.state.address_cursor(network.id));
        if !self.full.contains(&network.id) {
            let given = |address| self.given.contains(&(network.id, address));
            if let Some(address) = self.state.free_address(network, last, self.now, given) {
                return Ok(task_address(ipam, address));
            }
        }
        self.full.insert(network.id);
        let in_pass = self.given.iter().filter(|(id, _)| *id == network.id).count();
        let total = State::addresses_total(network);
        Err(AllocateError::Exhausted {
            name: network.spec.name.clone(),
            subnet: ipam.shown_subnet(),
            used: self.state.addresses_used(network.id) + in_pass,
            total,
            way_out: self.state.way_to_grow(network, total + 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use rswarm_types::{ServiceMode, ServiceSpec, TaskState};

    use crate::Write;
    use crate::testing::Fixture;

    #[test]
    fn an_address_is_not_used_again_at_once() {
        let mut f = Fixture::new(1);
        let mut seen = std::collections::BTreeSet::new();
        // 253 are free: all but the network, the gateway and the broadcast address.
        for round in 0..253 {
            let web = f.create("web", 1, |_| {});
            f.run();
            let address = f.current(web)[0].networks[0].address.unwrap().address;
            assert!(seen.insert(address), "{address} came again in round {round}");
            f.must(vec![Write::RemoveService { id: web, expected: None }]);
            f.run();
        }
        let web = f.create("web", 1, |_| {});
        f.run();
        assert!(seen.contains(&f.current(web)[0].networks[0].address.unwrap().address));
    }

    #[test]
    fn a_full_network_leaves_tasks_new_with_the_numbers_until_one_is_freed() {
        let mut f = Fixture::new(3);
        let network = f.network("tiny", "10.1.0.0/29");
        let id = network.id;
        f.must(vec![Write::CreateNetwork(Box::new(network))]);
        let on_tiny = |spec: &mut ServiceSpec| {
            spec.task.networks = vec![rswarm_types::task::NetworkAttachment { network: id, aliases: vec![] }];
        };
        let web = f.create("web", 2, on_tiny);
        let everywhere = f.create("everywhere", 0, |spec| {
            on_tiny(spec);
            spec.mode = ServiceMode::Global;
        });
        f.run();
        assert_eq!((f.running(web), f.running(everywhere)), (2, 3));
        f.add_node(4, |_| {});
        f.run();
        let waiting: Vec<_> = f.state.waiting_tasks().cloned().collect();
        assert_eq!((f.running(everywhere), waiting.len()), (3, 1));
        assert_eq!(waiting[0].status.state, TaskState::New);
        assert_eq!(waiting[0].status.error, "no free address in network `tiny` (10.1.0.0/29): 5 of 5 in use");
        f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 1 });
        f.run();
        assert_eq!((f.running(everywhere), f.state.waiting_tasks().count()), (4, 0));
    }
}
