//! What may change of a network while it is in use: labels, a larger subnet, another range of it.

use std::sync::Arc;

use rswarm_types::network::{Ipam, Ipam6, IpamSpec};
use rswarm_types::subnet::Subnet;
use rswarm_types::task::TaskAddress;
use rswarm_types::{Meta, Network, NetworkDriver, NetworkId, NetworkSpec, TaskId, Version};

use super::subnets::taken;
use super::{range, reserved};
use crate::state::State;
use crate::state::apply::{Writer, expect_version, missing};
use crate::state::command::{ObjectRef, Rejected};
use crate::validate::POOL_PREFIX_MIN;

impl Writer {
    pub(in crate::state) fn update_network(
        &mut self,
        id: NetworkId,
        spec: &NetworkSpec,
        expected: Version,
    ) -> Result<(), Rejected> {
        let object = ObjectRef::Network(id);
        let held = self.state.network(id).ok_or(missing(object))?;
        expect_version(object, expected, held.meta.version)?;
        let ipam_spec = IpamSpec { subnet: spec.ipam.subnet, range: spec.ipam.range, ..held.spec.ipam };
        let labels = spec.labels.clone();
        if *spec != (NetworkSpec { labels, ipam: ipam_spec, ..held.spec.clone() }) {
            return Err(Rejected::NetworkFixed { name: held.spec.name.clone() });
        }
        let mut network = Network { spec: spec.clone(), ..Network::clone(held) };
        network.meta = Meta { version: self.index, updated_at: self.at, ..network.meta };
        let subnet = spec.ipam.subnet.zip(held.ipam).filter(|(subnet, ipam)| *subnet != ipam.subnet);
        if let Some((subnet, ipam)) = subnet {
            network.ipam = Some(self.grown(held, ipam, subnet)?);
        }
        self.state.put_network(Arc::new(network));
        if let Some((subnet, _)) = subnet {
            self.tell_tasks(id, subnet);
        }
        Ok(())
    }

    /// The addresses of a network in a larger subnet: gateway and all that was given stay, twins too.
    fn grown(&self, network: &Network, ipam: Ipam, subnet: Subnet) -> Result<Ipam, Rejected> {
        let name = || network.spec.name.clone();
        if network.spec.driver != NetworkDriver::Overlay {
            return Err(Rejected::SubnetFixed { name: name(), driver: network.spec.driver });
        }
        if !holds(subnet, ipam.subnet) {
            let (found, subnet) = (subnet.to_string(), ipam.subnet.to_string());
            return Err(Rejected::SubnetTooNarrow { name: name(), subnet, found });
        }
        if let Some((other, by)) = self.state.overlap(subnet, Some(network.id)) {
            return Err(taken(subnet, other, by));
        }
        Ok(within(ipam, subnet))
    }

    /// Tasks that are on the network are seen with its prefix.
    fn tell_tasks(&mut self, id: NetworkId, subnet: Subnet) {
        let live = self.state.tasks().filter(|task| !task.status.state.is_terminal());
        let on_it = live.filter(|task| task.networks.iter().any(|one| one.network == id));
        let on_it: Vec<TaskId> = on_it.map(|task| task.id).collect();
        for task in on_it {
            self.change_task(task, |task| {
                for network in task.networks.iter_mut().filter(|one| one.network == id) {
                    let prefix_len = subnet.prefix_len;
                    network.address = network.address.map(|at| TaskAddress { prefix_len, ..at });
                }
                true
            });
        }
    }
}

impl State {
    /// How a network comes to have room for `needed` tasks and services, or why it does not: the end of a message.
    pub(crate) fn way_to_grow(&self, network: &Network, needed: u64) -> String {
        let grows = |ipam: &Ipam| network.spec.driver == NetworkDriver::Overlay && !ipam.is_ipv6_alone();
        let Some(ipam) = network.ipam.filter(grows) else {
            return String::new();
        };
        let is_part = range(network, ipam) != ipam.subnet;
        let first = if is_part { ipam.subnet.prefix_len } else { ipam.subnet.prefix_len.saturating_sub(1) };
        let mut all =
            (POOL_PREFIX_MIN..=first).rev().filter_map(|length| Subnet::new(ipam.subnet.address, length));
        let room = |subnet: Subnet| subnet.size() - reserved(within(ipam, subnet)).len() as u64;
        let Some(large) = all.find(|subnet| room(*subnet) >= needed) else {
            return "; no network is as large as that".to_owned();
        };
        if let Some((other, by)) = self.overlap(large, Some(network.id)) {
            return format!("; it cannot grow to `{large}`, which overlaps `{other}`, {by}");
        }
        let mut flags = String::new();
        for (flag, given) in
            [("--subnet", large != ipam.subnet), ("--ip-range", network.spec.ipam.range.is_some())]
        {
            flags += &if given { format!(" {flag} {large}") } else { String::new() };
        }
        format!("; make it larger: `rswarm network update{flags} {}`", network.spec.name)
    }
}

/// The same addresses as part of a larger subnet, twins included.
fn within(ipam: Ipam, subnet: Subnet) -> Ipam {
    let ipv6 = ipam.ipv6.map(|ipv6| {
        let counted_from = Some(ipv6.first(ipam.subnet)).filter(|first| *first != subnet.address);
        Ipam6 { counted_from, ..ipv6 }
    });
    Ipam { subnet, ipv6, ..ipam }
}

/// Whether `inner` lies in `outer`.
fn holds(outer: Subnet, inner: Subnet) -> bool {
    outer.prefix_len <= inner.prefix_len && outer.contains(inner.address)
}
