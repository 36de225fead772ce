//! What published ports must satisfy.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use rswarm_types::network::Ipam;
use rswarm_types::service::{EndpointMode, PortConfig, Protocol, PublishMode, UpdateOrder};
use rswarm_types::{Network, NetworkDriver, ServiceMode, ServiceSpec};

use crate::state::{State, on_mesh};

/// What is wrong with a published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("invalid port 0: expected 1 to 65535")]
    Zero,
    #[error("duplicate published port {port}/{protocol}")]
    Duplicate { port: u16, protocol: Protocol },
    #[error(
        "endpoint mode `dnsrr` has no address that could prefer tasks of the same node: expected mode `vip`"
    )]
    DnsrrSameNode,
    #[error("endpoint mode `dnsrr` cannot publish port {0} in mode `ingress`: expected mode `host`")]
    DnsrrIngress(u16),
    #[error(
        "port {port} cannot be published in mode `ingress` on network `{network}`, where the task has no address of \
         its own: expected mode `host`, or another network"
    )]
    IngressWithout { port: u16, network: String },
    #[error(
        "a global service that publishes host port {0} cannot be updated start-first: old and new task cannot \
             both have the port of one node; expected order `stop-first`"
    )]
    StartFirst(u16),
    #[error("port {0} cannot be published at an address and by an interface: expected one of them")]
    AddressAndInterface(u16),
    #[error("port {port} cannot answer at `{address}`: {reason}")]
    Address { port: u16, address: IpAddr, reason: &'static str },
    #[error(
        "port {port} cannot answer at `{address}`: network `{network}`, by which it is reached, has no IPv6; expected \
         one made with `rswarm network create {}--ipv6`", if *.ingress { "--ingress " } else { "" }
    )]
    NoIpv6 { port: u16, address: IpAddr, network: String, ingress: bool },
    #[error(
        "port {port} cannot answer at `{address}`: network `{network}`, by which it is reached, has IPv6 alone; expected an \
         IPv6 address, or another network"
    )]
    NoIpv4 { port: u16, address: IpAddr, network: String },
    #[error(
        "port {port} cannot be published in mode `host`: network `{network}`, by which it would be reached, is internal, \
         and nothing comes in; expected mode `ingress`, or a network that is not internal"
    )]
    Internal { port: u16, network: String },
    #[error(
        "port {port} cannot be bound to an address or interface on network `{network}`, where the program itself binds \
         it: expected neither, or another network"
    )]
    OwnProgram { port: u16, network: String },
}

/// Checks the ports alone.
pub(super) fn ports(spec: &ServiceSpec) -> Result<(), PortError> {
    if spec.endpoint.prefer_same_node && spec.endpoint.mode == EndpointMode::Dnsrr {
        return Err(PortError::DnsrrSameNode);
    }
    let mut seen = BTreeSet::new();
    for port in &spec.endpoint.ports {
        if port.target == 0 || port.published == Some(0) {
            return Err(PortError::Zero);
        }
        place(port)?;
        if port.mode == PublishMode::Ingress && spec.endpoint.mode == EndpointMode::Dnsrr {
            return Err(PortError::DnsrrIngress(port.target));
        }
        let Some(published) = port.published else { continue };
        if port.mode == PublishMode::Host
            && spec.mode == ServiceMode::Global
            && [spec.update.order, spec.rollback.order].contains(&UpdateOrder::StartFirst)
        {
            return Err(PortError::StartFirst(published));
        }
        if !seen.insert((published, port.protocol)) {
            return Err(PortError::Duplicate { port: published, protocol: port.protocol });
        }
    }
    Ok(())
}

/// Checks where a port is to answer.
fn place(port: &PortConfig) -> Result<(), PortError> {
    let Some(address) = port.host_ip else { return Ok(()) };
    if port.interface.is_some() {
        return Err(PortError::AddressAndInterface(port.target));
    }
    let reason = match address {
        address if address.is_multicast() => "expected an address of one node",
        IpAddr::V6(Ipv6Addr::LOCALHOST) => {
            "Linux does not let what is for it be translated; expected `127.0.0.1`"
        }
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            "each interface has addresses like that; expected another one, or `interface=NAME`"
        }
        _ => return Ok(()),
    };
    Err(PortError::Address { port: port.target, address, reason })
}

/// Checks the ports against the networks by which they are reached. `networks` are those that the service names.
pub(super) fn on_networks(state: &State, spec: &ServiceSpec, networks: &[&Network]) -> Result<(), PortError> {
    for port in &spec.endpoint.ports {
        let without = |driver| networks.iter().find(|network| network.spec.driver == driver);
        let alone = without(NetworkDriver::Host).or(without(NetworkDriver::None));
        let own = alone.filter(|network| network.spec.driver == NetworkDriver::Host);
        let (number, name) = (port.target, |network: &Network| network.spec.name.clone());
        if let Some(network) = alone.filter(|_| port.mode == PublishMode::Ingress) {
            return Err(PortError::IngressWithout { port: number, network: name(network) });
        }
        if let Some(network) = own.filter(|_| port.host_ip.is_some() || port.interface.is_some()) {
            return Err(PortError::OwnProgram { port: number, network: name(network) });
        }
        let network = reached_by(state, spec, networks);
        if let Some(network) = network.filter(|at| at.spec.internal && port.mode == PublishMode::Host) {
            return Err(PortError::Internal { port: number, network: name(network) });
        }
        let Some(address) = port.host_ip else { continue };
        if let Some(network) = network
            && address.is_ipv4()
            && network.ipam.is_some_and(Ipam::is_ipv6_alone)
        {
            return Err(PortError::NoIpv4 { port: number, address, network: name(network) });
        }
        if address.is_ipv4() {
            continue;
        }
        let lacking = network.filter(|network| network.ipam.is_none_or(|ipam| ipam.ipv6.is_none()));
        if let Some(network) = lacking {
            let ingress = network.spec.ingress;
            return Err(PortError::NoIpv6 { port: number, address, network: name(network), ingress });
        }
    }
    Ok(())
}

/// The network of a task that its ports lead to: the one with its way out, as nodes see it, else the first.
fn reached_by<'a>(state: &'a State, spec: &ServiceSpec, networks: &[&'a Network]) -> Option<&'a Network> {
    let ingress = state.ingress().filter(|_| on_mesh(&spec.endpoint.ports));
    let open = networks.iter().find(|network| !network.spec.internal).or(networks.first()).copied();
    ingress.map(|network| &**network).or(open).or_else(|| state.default_network().map(|network| &**network))
}

#[cfg(test)]
mod tests {
    use rswarm_types::NetworkSpec;
    use rswarm_types::network::IpamSpec6;
    use rswarm_types::task::NetworkAttachment;

    use super::*;
    use crate::Write;
    use crate::testing::Fixture;

    fn port(mode: PublishMode, host_ip: &str) -> PortConfig {
        let host_ip = Some(host_ip).filter(|at| !at.is_empty()).map(|at| at.parse().unwrap());
        PortConfig {
            protocol: Protocol::Tcp,
            target: 80,
            published: Some(8080),
            mode,
            host_ip,
            interface: None,
        }
    }

    fn spec(ports: &[PortConfig]) -> ServiceSpec {
        Fixture::spec("web", 1, |spec| spec.endpoint.ports = ports.to_vec())
    }

    fn told(result: Result<(), PortError>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn addresses_that_no_port_can_answer_at_are_refused_with_the_reason() {
        for (host_ip, expected) in [
            ("127.0.0.1", ""),
            ("0.0.0.0", ""),
            ("fd00::1", ""),
            ("::", ""),
            ("::1", "port 80 cannot answer at `::1`: Linux does not let what is for it be translated"),
            ("fe80::1", "port 80 cannot answer at `fe80::1`: each interface has addresses like that"),
            ("ff02::1", "port 80 cannot answer at `ff02::1`: expected an address of one node"),
            ("224.0.0.1", "port 80 cannot answer at `224.0.0.1`: expected an address of one node"),
        ] {
            let found = told(ports(&spec(&[port(PublishMode::Ingress, host_ip)])));
            assert!(
                found.starts_with(expected) && found.is_empty() == expected.is_empty(),
                "{host_ip}: {found}"
            );
        }
        let both =
            PortConfig { interface: Some("lo".parse().unwrap()), ..port(PublishMode::Host, "127.0.0.1") };
        assert!(
            told(ports(&spec(&[both]))).starts_with("port 80 cannot be published at an address and by an")
        );
    }

    #[test]
    fn tasks_of_the_same_node_are_preferred_by_virtual_addresses_alone() {
        let mut spec = spec(&[]);
        (spec.endpoint.mode, spec.endpoint.prefer_same_node) = (EndpointMode::Dnsrr, true);
        assert!(told(ports(&spec)).contains("expected mode `vip`"));
        spec.endpoint.mode = EndpointMode::Vip;
        assert_eq!(ports(&spec), Ok(()));
    }

    #[test]
    fn a_port_needs_a_network_by_which_it_can_be_reached() {
        let mut f = Fixture::new(1);
        let mut make = |name: &str, ipv6: bool, change: fn(&mut NetworkSpec)| {
            let mut network = f.network(name, "10.0.0.0/24");
            (network.ipam, network.spec.driver) = (None, NetworkDriver::Overlay);
            network.spec.ipam.ipv6 = ipv6.then(Default::default);
            change(&mut network.spec);
            let id = network.id;
            f.must(vec![Write::CreateNetwork(Box::new(network))]);
            id
        };
        let ingress = make("ingress", false, |spec| spec.ingress = true);
        let old = make("old", false, |_| {});
        let new = make("new", true, |_| {});
        let inner = make("inner", false, |spec| spec.internal = true);
        let alone = make("alone", true, |spec| {
            spec.ipam.ipv6 = Some(IpamSpec6 { alone: true, ..IpamSpec6::default() });
        });
        let host = make("host", false, |spec| spec.driver = NetworkDriver::Host);
        let (mesh, one) = (port(PublishMode::Ingress, "fd00::1"), port(PublishMode::Host, "fd00::1"));
        let by = PortConfig { interface: Some("eth0".parse().unwrap()), ..port(PublishMode::Host, "") };
        let check = |f: &Fixture, networks: &[_], ports: &[PortConfig], expected: &str| {
            let mut spec = spec(ports);
            let attachment = |network: &_| NetworkAttachment { network: *network, aliases: vec![] };
            spec.task.networks = networks.iter().map(attachment).collect();
            let known: Vec<&Network> = networks.iter().map(|id| &**f.state.network(*id).unwrap()).collect();
            let found = told(on_networks(&f.state, &spec, &known));
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{expected}: {found}"
            );
        };
        check(
            &f,
            &[new],
            &[mesh],
            "port 80 cannot answer at `fd00::1`: network `ingress`, by which it is reached, has no IPv6; expected one \
             made with `rswarm network create --ingress --ipv6`",
        );
        check(&f, &[], &[one], "network `bridge`, by which it is reached, has no IPv6");
        check(&f, &[new], &[one], "");
        check(&f, &[inner, new], &[one], "");
        check(&f, &[inner, old], &[one], "network `old`, by which it is reached, has no IPv6");
        let other = PortConfig { published: Some(81), ..port(PublishMode::Ingress, "") };
        check(&f, &[new], &[one, other], "network `ingress`, by which it is reached");
        check(
            &f,
            &[inner],
            &[port(PublishMode::Host, "")],
            "port 80 cannot be published in mode `host`: network `inner`, by which it would be reached, is internal",
        );
        check(&f, &[inner, old], &[port(PublishMode::Host, "")], "");
        check(&f, &[inner], &[port(PublishMode::Ingress, "")], "");
        let local = port(PublishMode::Host, "127.0.0.1");
        check(
            &f,
            &[alone],
            &[local],
            "port 80 cannot answer at `127.0.0.1`: network `alone`, by which it is reached,",
        );
        check(&f, &[alone], &[one], "");
        check(&f, &[host], &[port(PublishMode::Host, "")], "");
        check(&f, &[host], &[by], "port 80 cannot be bound to an address or interface on network `host`");
        check(&f, &[host], &[port(PublishMode::Host, "127.0.0.1")], "where the program itself binds it");
        check(&f, &[old], &[by], "");
        f.must(vec![Write::RemoveNetwork { id: ingress }]);
        let mut ingress = f.network("ingress", "10.0.0.0/24");
        (ingress.ipam, ingress.spec.driver, ingress.spec.ingress) = (None, NetworkDriver::Overlay, true);
        ingress.spec.ipam.ipv6 = Some(Default::default());
        f.must(vec![Write::CreateNetwork(Box::new(ingress))]);
        check(&f, &[old], &[mesh], "");
        check(&f, &[old], &[one, other], "");
    }
}
