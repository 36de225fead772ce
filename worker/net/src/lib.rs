//! The network of one node: bridges, containers' links, published ports, and the kernel adapters that make them.
//!
//! ```text
//! NodeNetwork (desired) ─┐
//!                        ├─> plan() ──> [Operation] ──> kernel (rtnetlink, nf_tables, conntrack)
//! Observed (read back) ──┘
//! ```
//!
//! [`plan`] decides and is pure; the kernel adapters act and decide nothing; [`Network`] is the handle a daemon
//! holds. No external program is run, and nothing but our own links, our own nft tables and two sysctls
//! (`ip_forward` and its like of IPv6) is changed, beside those of our links.
//!
//! [`lab`] makes hosts out of network namespaces, for tests and for the playground.
//!
//! Node-local bridges are in the host's own namespace. Everything of the networks that span nodes is in a helper
//! namespace, see [`Overlay`] and `docs/networking.md`; its plan is of the same make.
//!
//! Left out: which addresses and networks there are (the cluster's state), and names (the resolver).

mod error;
mod finding;
mod firewall;
mod kernel;
pub mod lab;
mod listeners;
mod model;
mod netlink;
mod netns;
mod network;
mod overlay;
mod peers;
mod plan;
mod probe;
pub mod wireguard;

pub use error::{KernelError, NetError};
pub use finding::{Check, Finding, Part};
pub use firewall::{Balancer, Element, Set, message::Shape};
pub use kernel::has_ipv6;
pub use model::{
    BridgeNetwork, Cidr, Cidr6, Endpoint, HostPort, INTERFACE_NAME_MAX, Mac, NetworkConfig, NodeNetwork,
    Place, Protocol, TunnelProgram,
};
pub use netns::run_in_netns;
pub use network::{Attachment, Facts, Network, Report, facts, missing_for_overlays};
pub use overlay::{MTU6_MIN, Overlay, OverlayNetwork, PublishedPort, Step, VirtualService};
pub use peers::{PeerAnswers, PeerQuestions};
pub use plan::{Inside, Observed, ObservedLink, Operation, plan};
pub use probe::is_data_path_taken;

#[cfg(test)]
mod testing {
    //! Samples for the tests of this crate.

    use std::net::Ipv4Addr;

    use super::{BridgeNetwork, Endpoint, HostPort, Protocol};

    pub(crate) fn network(id: &str, number: u8) -> BridgeNetwork {
        BridgeNetwork {
            id: id.into(),
            bridge: format!("rsw-br{number}"),
            gateway: Ipv4Addr::new(10, 90, number, 1),
            prefix_len: 24,
            subnet: Ipv4Addr::new(10, 90, number, 0),
            masquerade: true,
            internal: false,
            ipv6: None,
            ipv6_only: false,
            mtu: None,
            separate: false,
        }
    }

    pub(crate) fn endpoint(id: &str, network: &str, address: &str, ports: &[(u16, u16)]) -> Endpoint {
        let address: Ipv4Addr = address.parse().expect("a sample address");
        let [a, b, c, _] = address.octets();
        Endpoint {
            id: id.into(),
            network: network.into(),
            netns_pid: 1,
            address,
            ipv6: None,
            prefix_len: 24,
            gateway: Ipv4Addr::new(a, b, c, 1),
            default_route: true,
            interface_name: "eth0".into(),
            ports: ports
                .iter()
                .map(|&(published, target)| HostPort { protocol: Protocol::Tcp, published, target, at: None })
                .collect(),
        }
    }
}
