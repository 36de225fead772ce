//! Single tasks on networks that their services are not on.

use std::net::Ipv4Addr;

use rswarm_types::task::{TaskAddress, TaskNetwork};
use rswarm_types::{Network, NetworkDriver, NetworkId, Task, TaskId, TaskState};

use super::{AddressHolder, full, range, reserved, task_address};
use crate::state::apply::{Writer, missing};
use crate::state::command::{ObjectRef, Rejected};
use crate::state::is_active;

impl Writer {
    pub(in crate::state) fn connect_task(
        &mut self,
        id: TaskId,
        network: NetworkId,
        aliases: &[String],
        address: Option<Ipv4Addr>,
    ) -> Result<(), Rejected> {
        let task = self.state.task(id).ok_or(missing(ObjectRef::Task(id)))?;
        let network = self.state.network(network).ok_or(missing(ObjectRef::Network(network)))?;
        let refused = |reason: String| Rejected::NotConnected {
            task: task.name(),
            network: network.spec.name.clone(),
            reason: reason.into(),
        };
        if let Some(obstacle) = obstacle(task, network) {
            return Err(refused(obstacle.to_owned()));
        }
        let joined = TaskNetwork {
            network: network.id,
            name: network.spec.name.clone(),
            driver: network.spec.driver,
            address: Some(self.address_for(network, address, refused)?),
            aliases: aliases.to_vec(),
            internal: network.spec.internal,
            mtu: network.spec.mtu,
            bridge: network.spec.bridge,
            joined: true,
        };
        self.advance_cursors(std::slice::from_ref(&joined));
        self.change_task(id, |task| {
            task.networks.push(joined);
            true
        });
        Ok(())
    }

    /// The address that is asked for, or one that is free.
    fn address_for(
        &self,
        network: &Network,
        asked: Option<Ipv4Addr>,
        refused: impl Fn(String) -> Rejected,
    ) -> Result<TaskAddress, Rejected> {
        let ipam = network.ipam.ok_or_else(|| refused("the network gives no addresses".to_owned()))?;
        let Some(asked) = asked else {
            let last = self.state.address_cursor(network.id);
            let free = self.state.free_address(network, last, self.at, |_| false);
            return Ok(task_address(ipam, free.ok_or_else(|| full(&self.state, network))?));
        };
        let given_out = range(network, ipam);
        let shown = ipam.shown(asked);
        if !given_out.contains(asked) || reserved(ipam).contains(&asked) {
            let gateway = ipam.shown(ipam.gateway);
            let given_out = match ipam.is_ipv6_alone() {
                true => format!("the first {} of `{}`", ipam.subnet.size(), ipam.shown_subnet()),
                false => format!("`{given_out}`"),
            };
            return Err(refused(format!(
                "address {shown} is not for tasks; expected one of {given_out}, neither its first nor its last, nor \
                 the gateway {gateway}"
            )));
        }
        match self.state.address_owner(network.id, asked) {
            Some(AddressHolder::Task(id)) => {
                Err(refused(format!("address {shown} is in use by {}", ObjectRef::Task(id))))
            }
            Some(AddressHolder::Service(id)) => {
                Err(refused(format!("address {shown} is in use by {}", ObjectRef::Service(id))))
            }
            None => Ok(task_address(ipam, asked)),
        }
    }

    pub(in crate::state) fn disconnect_task(
        &mut self,
        id: TaskId,
        network: NetworkId,
    ) -> Result<(), Rejected> {
        let task = self.state.task(id).ok_or(missing(ObjectRef::Task(id)))?;
        let network = self.state.network(network).ok_or(missing(ObjectRef::Network(network)))?;
        let name = network.spec.name.clone();
        let reason = match task.networks.iter().find(|one| one.network == network.id) {
            Some(one) if one.joined => None,
            Some(_) if network.spec.ingress => Some("its service publishes ports by it".to_owned()),
            Some(_) => Some(format!(
                "it is there with all tasks of its service; take the service off it: `rswarm service update \
                 --network-rm {name} {}`",
                task.service_name
            )),
            None => Some("it is not on that network".to_owned()),
        };
        if let Some(reason) = reason {
            return Err(Rejected::NotDisconnected {
                task: task.name(),
                network: name,
                reason: reason.into(),
            });
        }
        let network = network.id;
        self.change_task(id, |task| {
            task.networks.retain(|one| one.network != network);
            true
        });
        Ok(())
    }
}

/// Why a task cannot come to a network, if it cannot.
fn obstacle(task: &Task, network: &Network) -> Option<&'static str> {
    let node_own = |one: &TaskNetwork| matches!(one.driver, NetworkDriver::Host | NetworkDriver::None);
    Some(match network.spec.driver {
        _ if !is_active(task) => "it has ended or is about to; connect the one that takes its place",
        _ if task.status.state == TaskState::New => "it has no addresses yet; try again when it has",
        _ if task.networks.iter().any(|one| one.network == network.id) => "it is on that network already",
        _ if task.networks.iter().any(node_own) => {
            "it has the node's own network or none at all, and that cannot be combined with others"
        }
        NetworkDriver::Host | NetworkDriver::None => {
            "only networks of driver `overlay` or `bridge` can be connected to"
        }
        NetworkDriver::Overlay if network.spec.ingress => {
            "the ingress network is only for published ports; choose another one"
        }
        NetworkDriver::Overlay if !network.spec.attachable => {
            "only whole services come to it; make a network with `--attachable`"
        }
        NetworkDriver::Overlay | NetworkDriver::Bridge => return None,
    })
}
