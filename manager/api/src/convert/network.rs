//! Networks, and what a node is told of them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;

use rswarm_types as types;
use types::netmap::{
    Joined, MapAttachment, MapBridge, MapEndpoint, MapNetwork, MapNode, MapService, MapSubnets,
    NetworkChange, NetworkMap,
};
use types::network::{BridgeOptions, Ipam, Ipam6, IpamSpec, IpamSpec6, Network, NetworkSpec};
use types::node::{NodeNetworkFacts, TunnelKey, TunnelKeys};
use types::service::{Protocol, ServiceEndpoint};
use types::{NetworkId, NodeId, ServiceId, TaskId, Version};

use super::{
    Field, WireError, all, each, exact_word, labels, narrow, or_default, parse, parse_optional, required,
    word,
};
use crate::v1;

impl From<&Network> for v1::Network {
    fn from(network: &Network) -> Self {
        let ipv6 = network.ipam.and_then(|ipam| ipam.ipv6);
        Self {
            id: network.id.to_string(),
            meta: Some((&network.meta).into()),
            spec: Some((&network.spec).into()),
            subnet: text(network.ipam.map(|ipam| ipam.subnet)),
            gateway: text(network.ipam.map(|ipam| ipam.gateway)),
            vni: network.vni,
            subnet6: text(ipv6.map(|ipv6| ipv6.subnet)),
            gateway6: text(ipv6.map(|ipv6| ipv6.gateway)),
            counted_from6: text(ipv6.and_then(|ipv6| ipv6.counted_from)),
            ipv6_alone: ipv6.is_some_and(|ipv6| ipv6.alone),
        }
    }
}

impl TryFrom<v1::Network> for Network {
    type Error = WireError;
    fn try_from(wire: v1::Network) -> Result<Self, WireError> {
        let subnet = parse_optional("subnet", &wire.subnet)?;
        let ipam = subnet
            .map(|subnet| {
                let gateway = parse("gateway", &wire.gateway)?;
                let ipv6 = ipv6_side(&wire.subnet6, &wire.gateway6, &wire.counted_from6, wire.ipv6_alone)?;
                Ok::<_, WireError>(Ipam { subnet, gateway, ipv6 })
            })
            .transpose()?;
        Ok(Self {
            id: parse("id", &wire.id)?,
            meta: or_default("meta", wire.meta)?,
            spec: required("spec", wire.spec)?,
            ipam,
            vni: wire.vni,
        })
    }
}

impl From<&NetworkSpec> for v1::NetworkSpec {
    fn from(spec: &NetworkSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: labels(&spec.labels),
            driver: v1::NetworkDriver::from(spec.driver).into(),
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            mtu: spec.mtu,
            encrypted: spec.encrypted,
            bridge: Some((&spec.bridge).into()),
            options: labels(&spec.options),
            subnet: text(spec.ipam.subnet),
            gateway: text(spec.ipam.gateway),
            range: text(spec.ipam.range),
            ipv6: spec.ipam.ipv6.is_some(),
            subnet6: text(spec.ipam.ipv6.and_then(|ipv6| ipv6.subnet)),
            gateway6: text(spec.ipam.ipv6.and_then(|ipv6| ipv6.gateway)),
            ipv6_alone: spec.ipam.ipv6.is_some_and(|ipv6| ipv6.alone),
        }
    }
}

impl TryFrom<v1::NetworkSpec> for NetworkSpec {
    type Error = WireError;
    fn try_from(wire: v1::NetworkSpec) -> Result<Self, WireError> {
        Ok(Self {
            name: wire.name,
            labels: wire.labels.into_iter().collect(),
            driver: exact_word::<v1::NetworkDriver, _>("driver", wire.driver)?,
            internal: wire.internal,
            attachable: wire.attachable,
            ingress: wire.ingress,
            mtu: wire.mtu,
            encrypted: wire.encrypted,
            bridge: or_default("bridge", wire.bridge)?,
            options: wire.options.into_iter().collect(),
            ipam: IpamSpec {
                subnet: parse_optional("subnet", &wire.subnet)?,
                gateway: parse_optional("gateway", &wire.gateway)?,
                range: parse_optional("range", &wire.range)?,
                ipv6: Some(IpamSpec6 {
                    subnet: parse_optional("subnet6", &wire.subnet6)?,
                    gateway: parse_optional("gateway6", &wire.gateway6)?,
                    alone: wire.ipv6_alone,
                })
                .filter(|_| wire.ipv6),
            },
        })
    }
}

impl From<&BridgeOptions> for v1::BridgeOptions {
    fn from(options: &BridgeOptions) -> Self {
        Self { no_icc: !options.icc, no_masquerade: !options.masquerade, host_ip: text(options.host_ip) }
    }
}

impl TryFrom<v1::BridgeOptions> for BridgeOptions {
    type Error = WireError;
    fn try_from(wire: v1::BridgeOptions) -> Result<Self, WireError> {
        let host_ip = parse_optional("host_ip", &wire.host_ip)?;
        Ok(Self { icc: !wire.no_icc, masquerade: !wire.no_masquerade, host_ip })
    }
}

impl From<&NodeNetworkFacts> for v1::NodeNetworkFacts {
    fn from(facts: &NodeNetworkFacts) -> Self {
        Self {
            data_path_addr: text(facts.data_path_addr),
            mtu: facts.mtu,
            routes: facts.routes.iter().map(ToString::to_string).collect(),
            ports_in_use: facts.ports_in_use.iter().map(Into::into).collect(),
            routes6: facts.routes6.iter().map(ToString::to_string).collect(),
            tunnel: facts.tunnel.as_ref().map(Into::into),
            silent_peers: facts.silent_peers.iter().map(ToString::to_string).collect(),
            addresses: facts.addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::NodeNetworkFacts> for NodeNetworkFacts {
    type Error = WireError;
    fn try_from(wire: v1::NodeNetworkFacts) -> Result<Self, WireError> {
        Ok(Self {
            data_path_addr: parse_optional("data_path_addr", &wire.data_path_addr)?,
            mtu: wire.mtu,
            routes: texts("routes", &wire.routes)?,
            routes6: texts("routes6", &wire.routes6)?,
            ports_in_use: each("ports_in_use", wire.ports_in_use)?.into_iter().collect(),
            tunnel: tunnel(wire.tunnel)?,
            silent_peers: texts("silent_peers", &wire.silent_peers)?.into_iter().collect(),
            addresses: texts("addresses", &wire.addresses)?.into_iter().collect(),
        })
    }
}

impl From<&TunnelKeys> for v1::TunnelKeys {
    fn from(keys: &TunnelKeys) -> Self {
        Self {
            place: keys.place.into(),
            current: keys.current.0.to_vec(),
            next: keys.next.map(|next| next.0.to_vec()).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::TunnelKeys> for TunnelKeys {
    type Error = WireError;
    fn try_from(wire: v1::TunnelKeys) -> Result<Self, WireError> {
        let key = |field: &str, bytes: &[u8]| {
            let reason = || WireError::new(field, format!("expected 32 bytes, found {}", bytes.len()));
            bytes.try_into().map(TunnelKey).map_err(|_| reason())
        };
        let place = narrow("place", wire.place)?;
        if place > 1 {
            return Err(WireError::new("place", format!("expected 0 or 1, found {place}")));
        }
        let next = (!wire.next.is_empty()).then(|| key("next", &wire.next)).transpose()?;
        Ok(Self { place, current: key("current", &wire.current)?, next })
    }
}

fn tunnel(wire: Option<v1::TunnelKeys>) -> Result<Option<TunnelKeys>, WireError> {
    wire.map(|keys| TunnelKeys::try_from(keys).map_err(|error| error.inside("tunnel"))).transpose()
}

impl From<&(Protocol, u16)> for v1::PortInUse {
    fn from((protocol, port): &(Protocol, u16)) -> Self {
        Self { protocol: v1::Protocol::from(*protocol).into(), port: (*port).into() }
    }
}

impl TryFrom<v1::PortInUse> for (Protocol, u16) {
    type Error = WireError;
    fn try_from(wire: v1::PortInUse) -> Result<Self, WireError> {
        Ok((word::<v1::Protocol, _>("protocol", wire.protocol)?, narrow("port", wire.port)?))
    }
}

impl From<&ServiceEndpoint> for v1::ServiceEndpoint {
    fn from(endpoint: &ServiceEndpoint) -> Self {
        let vip = |(network, address): (&NetworkId, &Ipv4Addr)| v1::service_endpoint::VirtualIp {
            network: network.to_string(),
            address: address.to_string(),
        };
        Self {
            vips: endpoint.vips.iter().map(vip).collect(),
            ports: all(&endpoint.ports),
            number: endpoint.number,
        }
    }
}

impl TryFrom<v1::ServiceEndpoint> for ServiceEndpoint {
    type Error = WireError;
    fn try_from(wire: v1::ServiceEndpoint) -> Result<Self, WireError> {
        let vip = |vip: &v1::service_endpoint::VirtualIp| {
            Ok((parse("vips.network", &vip.network)?, parse("vips.address", &vip.address)?))
        };
        Ok(Self {
            vips: wire.vips.iter().map(vip).collect::<Result<_, WireError>>()?,
            ports: each("ports", wire.ports)?,
            number: wire.number,
        })
    }
}

impl From<&NetworkChange> for v1::NetworkChange {
    fn from(change: &NetworkChange) -> Self {
        let NetworkMap { index: _, data_path_port, nodes, networks, bridges, subnets, services, endpoints } =
            &change.set;
        Self {
            index: change.index.0,
            full: change.full,
            data_path_port: (*data_path_port).into(),
            nodes: nodes.iter().map(node_to_wire).collect(),
            networks: networks.iter().map(network_to_wire).collect(),
            bridges: bridges.iter().map(bridge_to_wire).collect(),
            subnets: subnets.iter().map(subnets_to_wire).collect(),
            services: services.iter().map(service_to_wire).collect(),
            endpoints: endpoints.iter().map(endpoint_to_wire).collect(),
            removed_node_ids: change.removed_nodes.iter().map(ToString::to_string).collect(),
            removed_network_ids: change.removed_networks.iter().map(ToString::to_string).collect(),
            removed_subnets_ids: change.removed_subnets.iter().map(ToString::to_string).collect(),
            removed_service_ids: change.removed_services.iter().map(ToString::to_string).collect(),
            removed_endpoint_ids: change.removed_endpoints.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::NetworkChange> for NetworkChange {
    type Error = WireError;
    fn try_from(wire: v1::NetworkChange) -> Result<Self, WireError> {
        let index = Version(wire.index);
        Ok(Self {
            index,
            full: wire.full,
            set: NetworkMap {
                index,
                data_path_port: narrow("data_path_port", wire.data_path_port)?,
                nodes: entries("nodes", wire.nodes, node_from_wire)?,
                networks: entries("networks", wire.networks, network_from_wire)?,
                bridges: entries("bridges", wire.bridges, bridge_from_wire)?,
                subnets: entries("subnets", wire.subnets, |one| subnets_from_wire(&one))?,
                services: entries("services", wire.services, service_from_wire)?,
                endpoints: entries("endpoints", wire.endpoints, endpoint_from_wire)?,
            },
            removed_nodes: texts("removed_node_ids", &wire.removed_node_ids)?,
            removed_networks: texts("removed_network_ids", &wire.removed_network_ids)?,
            removed_subnets: texts("removed_subnets_ids", &wire.removed_subnets_ids)?,
            removed_services: texts("removed_service_ids", &wire.removed_service_ids)?,
            removed_endpoints: texts("removed_endpoint_ids", &wire.removed_endpoint_ids)?,
        })
    }
}

fn node_to_wire((id, node): (&NodeId, &MapNode)) -> v1::MapNode {
    v1::MapNode {
        id: id.to_string(),
        number: node.number.into(),
        name: node.name.clone(),
        addr: node.addr.to_string(),
        addresses: node.addresses.iter().map(ToString::to_string).collect(),
        tunnel: node.tunnel.as_ref().map(Into::into),
    }
}

fn node_from_wire(wire: v1::MapNode) -> Result<(NodeId, MapNode), WireError> {
    let (number, addr) = (narrow("number", wire.number)?, parse("addr", &wire.addr)?);
    let tunnel = tunnel(wire.tunnel)?;
    let addresses = texts("addresses", &wire.addresses)?.into_iter().collect();
    Ok((parse("id", &wire.id)?, MapNode { number, name: wire.name, addr, addresses, tunnel }))
}

fn network_to_wire((id, network): (&NetworkId, &MapNetwork)) -> v1::MapNetwork {
    v1::MapNetwork {
        id: id.to_string(),
        name: network.name.clone(),
        vni: network.vni,
        subnet: network.subnet.to_string(),
        gateway: network.gateway.to_string(),
        mtu: network.mtu,
        internal: network.internal,
        ingress: network.ingress,
        encrypted: network.encrypted,
        subnet6: text(network.ipv6.map(|ipv6| ipv6.subnet)),
        gateway6: text(network.ipv6.map(|ipv6| ipv6.gateway)),
        counted_from6: text(network.ipv6.and_then(|ipv6| ipv6.counted_from)),
        ipv6_alone: network.ipv6.is_some_and(|ipv6| ipv6.alone),
    }
}

fn ipv6_side(
    subnet: &str,
    gateway: &str,
    counted_from: &str,
    alone: bool,
) -> Result<Option<Ipam6>, WireError> {
    let Some(subnet) = parse_optional("subnet6", subnet)? else { return Ok(None) };
    let counted_from = parse_optional("counted_from6", counted_from)?;
    Ok(Some(Ipam6 { subnet, gateway: parse("gateway6", gateway)?, counted_from, alone }))
}

fn network_from_wire(wire: v1::MapNetwork) -> Result<(NetworkId, MapNetwork), WireError> {
    let network = MapNetwork {
        name: wire.name,
        vni: wire.vni,
        subnet: parse("subnet", &wire.subnet)?,
        gateway: parse("gateway", &wire.gateway)?,
        ipv6: ipv6_side(&wire.subnet6, &wire.gateway6, &wire.counted_from6, wire.ipv6_alone)?,
        mtu: wire.mtu,
        internal: wire.internal,
        ingress: wire.ingress,
        encrypted: wire.encrypted,
    };
    Ok((parse("id", &wire.id)?, network))
}

fn bridge_to_wire((id, bridge): (&NetworkId, &MapBridge)) -> v1::MapBridge {
    v1::MapBridge {
        id: id.to_string(),
        name: bridge.name.clone(),
        subnet: bridge.subnet.to_string(),
        gateway: bridge.gateway.to_string(),
        internal: bridge.internal,
        subnet6: text(bridge.ipv6.map(|ipv6| ipv6.subnet)),
        gateway6: text(bridge.ipv6.map(|ipv6| ipv6.gateway)),
        ipv6_alone: bridge.ipv6.is_some_and(|ipv6| ipv6.alone),
    }
}

fn bridge_from_wire(wire: v1::MapBridge) -> Result<(NetworkId, MapBridge), WireError> {
    let (subnet, gateway) = (parse("subnet", &wire.subnet)?, parse("gateway", &wire.gateway)?);
    // It does not grow.
    let ipv6 = ipv6_side(&wire.subnet6, &wire.gateway6, "", wire.ipv6_alone)?;
    let bridge = MapBridge { name: wire.name, subnet, gateway, ipv6, internal: wire.internal };
    Ok((parse("id", &wire.id)?, bridge))
}

fn subnets_to_wire((id, subnets): (&NetworkId, &MapSubnets)) -> v1::MapSubnets {
    v1::MapSubnets { id: id.to_string(), ipv4: text(subnets.ipv4), ipv6: text(subnets.ipv6) }
}

fn subnets_from_wire(wire: &v1::MapSubnets) -> Result<(NetworkId, MapSubnets), WireError> {
    let (ipv4, ipv6) = (parse_optional("ipv4", &wire.ipv4)?, parse_optional("ipv6", &wire.ipv6)?);
    Ok((parse("id", &wire.id)?, MapSubnets { ipv4, ipv6 }))
}

fn service_to_wire((id, service): (&ServiceId, &MapService)) -> v1::MapService {
    let attachment = |(network, at): (&NetworkId, &MapAttachment)| v1::MapAttachment {
        network: network.to_string(),
        vip: text(at.vip),
        aliases: at.aliases.clone(),
    };
    v1::MapService {
        id: id.to_string(),
        name: service.name.clone(),
        mode: v1::EndpointMode::from(service.mode).into(),
        networks: service.networks.iter().map(attachment).collect(),
        ports: all(&service.ports),
        allow_from: service.allow_from.iter().cloned().collect(),
        number: service.number,
        prefer_same_node: service.prefer_same_node,
    }
}

fn service_from_wire(wire: v1::MapService) -> Result<(ServiceId, MapService), WireError> {
    let service = MapService {
        name: wire.name,
        mode: word::<v1::EndpointMode, _>("mode", wire.mode)?,
        networks: entries("networks", wire.networks, |at: v1::MapAttachment| {
            let attachment = MapAttachment { vip: parse_optional("vip", &at.vip)?, aliases: at.aliases };
            Ok((parse("network", &at.network)?, attachment))
        })?,
        ports: each("ports", wire.ports)?,
        allow_from: wire.allow_from.into_iter().collect(),
        number: wire.number,
        prefer_same_node: wire.prefer_same_node,
    };
    Ok((parse("id", &wire.id)?, service))
}

fn endpoint_to_wire((id, endpoint): (&TaskId, &MapEndpoint)) -> v1::MapEndpoint {
    let address = |(network, address): (&NetworkId, &Ipv4Addr)| v1::MapAddress {
        network: network.to_string(),
        address: address.to_string(),
    };
    let joined_network = |(network, aliases): (&NetworkId, &Vec<String>)| v1::JoinedNetwork {
        network: network.to_string(),
        aliases: aliases.clone(),
    };
    v1::MapEndpoint {
        task_id: id.to_string(),
        service_id: endpoint.service.to_string(),
        slot: endpoint.slot,
        node_id: endpoint.node.to_string(),
        addresses: endpoint.addresses.iter().map(address).collect(),
        state: v1::EndpointState::from(endpoint.state).into(),
        hostname: endpoint.hostname.clone(),
        nameservers: endpoint.nameservers.iter().map(ToString::to_string).collect(),
        joined: endpoint.joined.as_ref().map(|joined| v1::Joined {
            service: joined.service.clone(),
            number: joined.number,
            networks: joined.aliases.iter().map(joined_network).collect(),
        }),
        enclosed: endpoint.enclosed,
    }
}

fn endpoint_from_wire(wire: v1::MapEndpoint) -> Result<(TaskId, MapEndpoint), WireError> {
    let endpoint = MapEndpoint {
        service: parse("service_id", &wire.service_id)?,
        slot: wire.slot,
        node: parse("node_id", &wire.node_id)?,
        addresses: entries("addresses", wire.addresses, |at: v1::MapAddress| {
            Ok((parse("network", &at.network)?, parse("address", &at.address)?))
        })?,
        state: exact_word::<v1::EndpointState, _>("state", wire.state)?,
        hostname: wire.hostname,
        nameservers: texts("nameservers", &wire.nameservers)?,
        joined: wire.joined.map(|joined| joined_from_wire(joined).field("joined")).transpose()?,
        enclosed: wire.enclosed,
    };
    Ok((parse("task_id", &wire.task_id)?, endpoint))
}

fn joined_from_wire(wire: v1::Joined) -> Result<Joined, WireError> {
    let aliases = entries("networks", wire.networks, |at: v1::JoinedNetwork| {
        Ok((parse("network", &at.network)?, at.aliases))
    })?;
    Ok(Joined { service: wire.service, number: wire.number, aliases })
}

/// What is not given is empty.
fn text(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn texts<T: std::str::FromStr<Err: Display>>(field: &str, list: &[String]) -> Result<Vec<T>, WireError> {
    list.iter().enumerate().map(|(i, text)| parse(&format!("{field}[{i}]"), text)).collect()
}

/// Every entry of a map that travels as a list, errors numbered.
fn entries<W, K: Ord, V>(
    field: &str,
    list: Vec<W>,
    convert: impl Fn(W) -> Result<(K, V), WireError>,
) -> Result<BTreeMap<K, V>, WireError> {
    list.into_iter()
        .enumerate()
        .map(|(i, entry)| convert(entry).map_err(|error| error.inside(&format!("{field}[{i}]"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::netmap::EndpointState;
    use types::network::NetworkDriver;
    use types::service::{EndpointMode, PortConfig, PublishMode};
    use types::{Meta, NodeDescription, Timestamp};

    fn network() -> Network {
        let mut spec = NetworkSpec::new("backend", NetworkDriver::Overlay);
        spec.internal = true;
        spec.mtu = Some(1400);
        spec.bridge = BridgeOptions { icc: false, masquerade: false, host_ip: Some([127, 0, 0, 1].into()) };
        spec.labels.insert("a".into(), "b".into());
        spec.options.insert("com.docker.network.driver.mtu".into(), "1400".into());
        spec.ipam.subnet = Some("10.9.0.0/16".parse().unwrap());
        spec.ipam.range = Some("10.9.1.0/24".parse().unwrap());
        spec.ipam.ipv6 =
            Some(IpamSpec6 { subnet: Some("fd00:1::/64".parse().unwrap()), gateway: None, alone: true });
        let ipv6 = Ipam6 {
            subnet: "fd00:1::/64".parse().unwrap(),
            gateway: "fd00:1::1".parse().unwrap(),
            counted_from: Some([10, 9, 1, 0].into()),
            alone: true,
        };
        Network {
            id: NetworkId::from_bytes([3; 16]),
            meta: Meta { version: Version(7), created_at: Timestamp(1), updated_at: Timestamp(2) },
            ipam: Some(Ipam {
                subnet: "10.9.0.0/16".parse().unwrap(),
                gateway: [10, 9, 0, 1].into(),
                ipv6: Some(ipv6),
            }),
            spec,
            vni: Some(4097),
        }
    }

    fn change() -> NetworkChange {
        let (network, node) = (NetworkId::from_bytes([3; 16]), NodeId::from_bytes([4; 16]));
        let service = ServiceId::from_bytes([1; 16]);
        let mut set = NetworkMap { index: Version(9), data_path_port: 4789, ..NetworkMap::default() };
        let keys = TunnelKeys { place: 1, current: TunnelKey([1; 32]), next: Some(TunnelKey([2; 32])) };
        let (addr, tunnel) = ([192, 0, 2, 7].into(), Some(keys));
        set.nodes
            .insert(node, MapNode { number: 7, name: "n7".into(), addr, addresses: [addr].into(), tunnel });
        set.networks.insert(
            network,
            MapNetwork {
                name: "backend".into(),
                vni: 4097,
                subnet: "10.9.0.0/16".parse().unwrap(),
                gateway: [10, 9, 0, 1].into(),
                ipv6: Some(Ipam6 {
                    subnet: "fd00:1::/64".parse().unwrap(),
                    gateway: "fd00:1::1".parse().unwrap(),
                    counted_from: Some([10, 9, 1, 0].into()),
                    alone: true,
                }),
                mtu: 1450,
                internal: true,
                ingress: false,
                encrypted: false,
            },
        );
        let subnet = "10.8.0.0/24".parse().unwrap();
        let ipv6 = Some(Ipam6 {
            subnet: "fd00:8::/64".parse().unwrap(),
            gateway: "fd00:8::1".parse().unwrap(),
            counted_from: None,
            alone: true,
        });
        let gateway = [10, 8, 0, 1].into();
        let bridge = MapBridge { name: "local".into(), subnet, gateway, ipv6, internal: true };
        set.bridges.insert(NetworkId::from_bytes([8; 16]), bridge);
        let subnets = MapSubnets { ipv4: Some(subnet), ipv6: Some("fd00:8::/64".parse().unwrap()) };
        set.subnets.insert(NetworkId::from_bytes([8; 16]), subnets);
        let at = MapAttachment { vip: Some([10, 9, 0, 2].into()), aliases: vec!["db".into()] };
        set.services.insert(
            service,
            MapService {
                name: "web".into(),
                mode: EndpointMode::Vip,
                networks: [(network, at)].into(),
                ports: vec![PortConfig {
                    protocol: Protocol::Udp,
                    target: 53,
                    published: Some(53),
                    mode: PublishMode::Ingress,
                    host_ip: None,
                    interface: None,
                }],
                allow_from: ["api".to_owned()].into(),
                number: 7,
                prefer_same_node: true,
            },
        );
        set.endpoints.insert(
            TaskId::from_bytes([5; 16]),
            MapEndpoint {
                service,
                slot: 3,
                node,
                addresses: [(network, [10, 9, 0, 3].into())].into(),
                state: EndpointState::Draining,
                hostname: "h".into(),
                nameservers: vec![[192, 0, 2, 53].into()],
                joined: Some(Joined {
                    service: "web".into(),
                    number: 7,
                    aliases: [(network, vec!["a".to_owned()])].into(),
                }),
                enclosed: true,
            },
        );
        NetworkChange {
            index: Version(9),
            full: false,
            set,
            removed_nodes: vec![NodeId::from_bytes([6; 16])],
            removed_networks: vec![NetworkId::from_bytes([6; 16])],
            removed_subnets: vec![NetworkId::from_bytes([7; 16])],
            removed_services: vec![ServiceId::from_bytes([6; 16])],
            removed_endpoints: vec![TaskId::from_bytes([6; 16])],
        }
    }

    #[test]
    fn networks_facts_and_changes_survive_the_wire() {
        let network = network();
        assert_eq!(Network::try_from(v1::Network::from(&network)), Ok(network));
        let change = change();
        assert_eq!(NetworkChange::try_from(v1::NetworkChange::from(&change)), Ok(change));
        let facts = NodeNetworkFacts {
            data_path_addr: Some([192, 0, 2, 1].into()),
            mtu: 1500,
            routes: vec!["192.0.2.0/24".parse().unwrap()],
            routes6: vec!["2001:db8::/32".parse().unwrap()],
            addresses: ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
            ports_in_use: [(Protocol::Udp, 53)].into(),
            tunnel: Some(TunnelKeys { place: 0, current: TunnelKey([3; 32]), next: None }),
            silent_peers: [NodeId::from_bytes([5; 16])].into(),
        };
        let description = NodeDescription { network: facts, ..NodeDescription::default() };
        assert_eq!(NodeDescription::try_from(v1::NodeDescription::from(&description)), Ok(description));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_path() {
        let mut wire = v1::NetworkChange::from(&change());
        wire.endpoints[0].addresses[0].address = "10.9".into();
        let error = NetworkChange::try_from(wire).unwrap_err().to_string();
        assert!(error.starts_with("invalid field `endpoints[0].addresses[0].address`: "), "{error}");
        let mut wire = v1::NetworkChange::from(&change());
        wire.nodes[0].number = 70_000;
        let error = NetworkChange::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "invalid field `nodes[0].number`: `70000` is out of range");
        let mut wire = v1::NetworkChange::from(&change());
        wire.nodes[0].tunnel.as_mut().unwrap().next = vec![1; 31];
        let error = NetworkChange::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "invalid field `nodes[0].tunnel.next`: expected 32 bytes, found 31");
        let mut wire = v1::Network::from(&network());
        wire.spec.as_mut().unwrap().subnet = "10.9.0.1/16".into();
        let error = Network::try_from(wire).unwrap_err().to_string();
        assert!(error.starts_with("invalid field `spec.subnet`: "), "{error}");
    }
}
