//! Host-mode ports: which port of the node each one gets. Pure but for the random numbers, which come in.
//!
//! Source: swarm-parity 1.3, `--publish mode=host`; Linux's default `ip_local_port_range` for ports left open.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use rswarm_net::Place;
use rswarm_types::InterfaceName;
use rswarm_types::service::{PortConfig, Protocol, PublishMode};
use rswarm_types::task::PortStatus;

/// Where ports come from that the user left open.
const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// No port is left of those a node may choose from.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no {protocol} port from 32768 to 60999 is free on this node")]
pub struct NoFreePort {
    pub protocol: Protocol,
}

/// A port of the node.
pub type NodePort = (Protocol, u16);

/// Gives each host-mode port of a task its port of the node.
///
/// `taken` are ports given to other tasks, `free` asks the node about one that looks free, `random` is any number.
/// Fixed ports are taken as they are: whether somebody holds them is found out when they are bound.
///
/// # Errors
/// `NoFreePort` when a port was left open and none is to be had.
pub fn choose(
    ports: &[PortConfig],
    taken: &BTreeSet<NodePort>,
    mut free: impl FnMut(NodePort) -> bool,
    mut random: impl FnMut() -> u32,
) -> Result<Vec<PortStatus>, NoFreePort> {
    let mut taken = taken.clone();
    let host = |port: &&PortConfig| port.mode == PublishMode::Host;
    taken.extend(ports.iter().filter(host).filter_map(|port| Some((port.protocol, port.published?))));
    let mut chosen = Vec::new();
    for port in ports.iter().filter(host) {
        let published = match port.published {
            Some(published) => published,
            None => {
                let count = u32::from(EPHEMERAL.end() - EPHEMERAL.start()) + 1;
                let start = random() % count;
                (0..count)
                    .filter_map(|n| u16::try_from(u32::from(*EPHEMERAL.start()) + (start + n) % count).ok())
                    .find(|&candidate| {
                        let candidate = (port.protocol, candidate);
                        !taken.contains(&candidate) && free(candidate)
                    })
                    .ok_or(NoFreePort { protocol: port.protocol })?
            }
        };
        taken.insert((port.protocol, published));
        let PortConfig { protocol, target, host_ip, interface, .. } = *port;
        chosen.push(PortStatus { protocol, target, published, host_ip, interface });
    }
    Ok(chosen)
}

/// Where a published port answers, in the words of the data path.
pub fn place(host_ip: Option<IpAddr>, interface: Option<InterfaceName>) -> Option<Place> {
    let by = || interface.map(|name| Place::interface(name.as_str()));
    host_ip.map(Place::Address).or_else(by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(published: Option<u16>, mode: PublishMode) -> PortConfig {
        PortConfig { protocol: Protocol::Tcp, target: 80, published, mode, host_ip: None, interface: None }
    }

    fn published(chosen: &[PortStatus]) -> Vec<u16> {
        chosen.iter().map(|port| port.published).collect()
    }

    #[test]
    fn fixed_ports_stay_and_open_ones_are_found() {
        let open = port(None, PublishMode::Host);
        let ports = [open, port(Some(8080), PublishMode::Host), port(Some(1), PublishMode::Ingress), open];
        let taken = BTreeSet::from([(Protocol::Tcp, 32_768), (Protocol::Udp, 32_769)]);
        let chosen = choose(&ports, &taken, |port| port.1 != 32_770, || 0).unwrap();
        assert_eq!(published(&chosen), [32_769, 8080, 32_771]);
        let chosen = choose(&[open], &taken, |_| true, || 28_231).unwrap();
        assert_eq!(published(&chosen), [60_999]);
        let chosen = choose(&[open, open], &taken, |_| true, || 28_231).unwrap();
        assert_eq!(published(&chosen), [60_999, 32_769], "the range wraps around");
    }

    #[test]
    fn an_open_port_avoids_the_tasks_own_fixed_ones() {
        let ports = [port(None, PublishMode::Host), port(Some(40_000), PublishMode::Host)];
        let chosen = choose(&ports, &BTreeSet::new(), |_| true, || 40_000 - 32_768).unwrap();
        assert_eq!(published(&chosen), [40_001, 40_000]);
    }

    #[test]
    fn a_full_node_says_so() {
        let error = choose(&[port(None, PublishMode::Host)], &BTreeSet::new(), |_| false, || 7).unwrap_err();
        assert_eq!(error.to_string(), "no tcp port from 32768 to 60999 is free on this node");
    }
}
