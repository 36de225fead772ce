//! Published ports: on the mesh a number is one service's, and one that is left open is chosen.

use std::ops::RangeInclusive;

use rswarm_types::service::{PortConfig, Protocol, PublishMode, ServiceEndpoint};
use rswarm_types::{ServiceId, ServiceSpec};

use crate::state::apply::Writer;
use crate::state::command::Rejected;

/// Where ports are taken from that are published in mode `ingress` and left open. Source: swarm-parity 3.8.
pub const INGRESS_PORTS: RangeInclusive<u16> = 30_000..=32_767;

impl Writer {
    pub(super) fn published(
        &self,
        id: ServiceId,
        spec: &ServiceSpec,
        held: &ServiceEndpoint,
    ) -> Result<Vec<PortConfig>, Rejected> {
        let mut ports = spec.endpoint.ports.clone();
        for port in &ports {
            if let Some((number, user)) = port.published.zip(self.used_by_nodes(port)) {
                return Err(Rejected::PortOfNodes {
                    port: number,
                    protocol: port.protocol,
                    user: user.into(),
                });
            }
            if let Some((by, mode)) = self.port_holder(port, id) {
                let name = self.state.service(by).map_or_else(|| by.to_string(), |s| s.spec.name.clone());
                let number = port.published.unwrap_or_default();
                return Err(Rejected::PortTaken { port: number, protocol: port.protocol, mode, by: name });
            }
        }
        for i in 0..ports.len() {
            let open = ports[i];
            if open.mode != PublishMode::Ingress || open.published.is_some() {
                continue;
            }
            let free = |number: u16| {
                let wanted = PortConfig { published: Some(number), ..open };
                let own = |port: &PortConfig| {
                    (port.published, port.protocol) == (wanted.published, wanted.protocol)
                };
                !ports.iter().any(own)
                    && self.port_holder(&wanted, id).is_none()
                    && self.used_by_nodes(&wanted).is_none()
            };
            let had = held.ports.iter().filter(|port| (port.target, port.protocol, port.mode) == key(&open));
            let had = had.filter_map(|port| port.published).filter(|port| INGRESS_PORTS.contains(port));
            let number = had.chain(INGRESS_PORTS).find(|number| free(*number));
            ports[i].published = Some(number.ok_or(Rejected::NoPort { protocol: open.protocol })?);
        }
        Ok(ports)
    }

    /// What the nodes themselves need a port for.
    fn used_by_nodes(&self, port: &PortConfig) -> Option<&'static str> {
        let number = port.published?;
        let data_path = self.state.cluster().map_or(0, |cluster| cluster.spec.data_path_port);
        let is_managers = || {
            let mut managers = self.state.nodes().filter_map(|node| node.manager.as_ref());
            managers.any(|manager| manager.addr.rsplit(':').next() == Some(&number.to_string()))
        };
        match port.protocol {
            Protocol::Udp if data_path > 0 && (data_path..=data_path + 1).contains(&number) => {
                Some("the data path of overlay networks")
            }
            Protocol::Tcp if is_managers() => Some("the managers"),
            _ => None,
        }
    }

    /// Another service whose port excludes this one: on the mesh a number is one service's, in mode `host` any number
    /// of services may have it, on different nodes.
    fn port_holder(&self, port: &PortConfig, id: ServiceId) -> Option<(ServiceId, PublishMode)> {
        let key = (port.published?, port.protocol);
        let indexes = &self.state.indexes;
        let other = |service: &&ServiceId| **service != id;
        let mesh = indexes.ingress_ports.get(&key).filter(other).map(|by| (*by, PublishMode::Ingress));
        let on_nodes = || {
            let mut holders = indexes.host_ports.get(&key)?.iter();
            holders.find(other).map(|by| (*by, PublishMode::Host))
        };
        match port.mode {
            PublishMode::Ingress => mesh.or_else(on_nodes),
            PublishMode::Host => mesh,
        }
    }
}

fn key(port: &PortConfig) -> (u16, Protocol, PublishMode) {
    (port.target, port.protocol, port.mode)
}
