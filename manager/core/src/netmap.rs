//! What each node is told of the network: first whole, then by change, both from the state alone.
//!
//! A change costs what changed on the networks of that node, not the cluster: tables and indexes of two states share
//! what they have in common, and only the rest is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use rswarm_types::netmap::{
    EndpointState, Joined, MapAttachment, MapBridge, MapEndpoint, MapNetwork, MapNode, MapService,
    MapSubnets, NetworkChange, NetworkMap,
};
use rswarm_types::service::PublishMode;
use rswarm_types::{
    Network, NetworkDriver, NetworkId, Node, NodeId, NodeState, Service, ServiceId, Task, TaskId, TaskState,
};

use crate::state::{Routed, State, holds_resources, overlays};

/// All that a node must know.
pub fn full(state: &State, node: NodeId) -> NetworkChange {
    let set = map(state, node);
    NetworkChange { index: set.index, full: true, set, ..NetworkChange::default() }
}

/// The map of one node.
pub fn map(state: &State, node: NodeId) -> NetworkMap {
    let view = View::of(state, node);
    let networks = view.networks.iter().chain(&view.bridges);
    let services: BTreeSet<ServiceId> = networks.flat_map(|id| state.services_on(*id)).collect();
    let endpoints = view.networks.iter().flat_map(|id| state.endpoints(*id)).chain(state.tasks_on(node));
    NetworkMap {
        index: state.index,
        data_path_port: view.data_path_port(),
        nodes: state.nodes().filter_map(|node| Some((node.id, map_node(node)?))).collect(),
        networks: view.networks.iter().filter_map(|id| Some((*id, view.network(*id)?))).collect(),
        bridges: view.bridges.iter().filter_map(|id| Some((*id, view.bridge(*id)?))).collect(),
        subnets: state.networks().filter_map(|one| Some((one.id, subnets(state, one.id)?))).collect(),
        services: services.into_iter().filter_map(|id| Some((id, view.service(id)?))).collect(),
        endpoints: endpoints.filter_map(|task| Some((task.id, view.endpoint(task.id)?))).collect(),
    }
}

/// What makes the map of `after` of that of `before`.
pub fn change(before: &State, after: &State, node: NodeId) -> NetworkChange {
    let (old, new) = (View::of(before, node), View::of(after, node));
    let mut touched = Touched::default();
    for item in before.nodes.diff(&after.nodes) {
        touched.node(&item, before, after);
    }
    for id in old.networks.symmetric_difference(&new.networks) {
        for state in [before, after] {
            touched.tasks.extend(state.endpoints(*id).map(|task| task.id));
            touched.services.extend(state.services_on(*id));
        }
    }
    for id in old.bridges.symmetric_difference(&new.bridges) {
        touched.services.extend([before, after].into_iter().flat_map(|state| state.services_on(*id)));
    }
    touched.tasks_between(before.indexes.by_node.get(&node), after.indexes.by_node.get(&node));
    for id in old.networks.intersection(&new.networks) {
        touched.tasks_between(before.indexes.by_network.get(id), after.indexes.by_network.get(id));
    }
    for item in before.services.diff(&after.services) {
        let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
        touched.services.insert(*id);
        if is_renumbered(&item) {
            touched.tasks.extend(joined(after, *id).map(|(task, _)| task));
        }
    }

    let mut change = NetworkChange { index: after.index, ..NetworkChange::default() };
    (change.set.index, change.set.data_path_port) = (after.index, new.data_path_port());
    let NetworkMap { nodes, networks, bridges, subnets: known, services, endpoints, .. } = &mut change.set;
    for id in touched.nodes {
        let (before, after) = (before.node(id), after.node(id));
        let (before, after) = (before.and_then(|n| map_node(n)), after.and_then(|n| map_node(n)));
        compare(id, before, after, nodes, &mut change.removed_nodes);
    }
    for id in old.networks.union(&new.networks).copied() {
        compare(id, old.network(id), new.network(id), networks, &mut change.removed_networks);
    }
    for id in old.bridges.union(&new.bridges).copied() {
        compare(id, old.bridge(id), new.bridge(id), bridges, &mut change.removed_networks);
    }
    for item in before.networks.diff(&after.networks) {
        let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
        compare(*id, subnets(before, *id), subnets(after, *id), known, &mut change.removed_subnets);
    }
    for id in touched.services {
        compare(id, old.service(id), new.service(id), services, &mut change.removed_services);
    }
    for id in touched.tasks {
        compare(id, old.endpoint(id), new.endpoint(id), endpoints, &mut change.removed_endpoints);
    }
    change
}

/// Whose map may differ between two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    Nodes(BTreeSet<NodeId>),
    Everyone,
}

/// Nodes whose map may differ. Costs the difference, and the nodes.
pub fn concerned(before: &State, after: &State) -> Concerned {
    let mut networks: BTreeSet<NetworkId> = BTreeSet::new();
    for item in before.nodes.diff(&after.nodes) {
        if is_news(&item) {
            return Concerned::Everyone;
        }
    }
    if before.indexes.ingress != after.indexes.ingress {
        return Concerned::Everyone;
    }
    for item in before.networks.diff(&after.networks) {
        let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
        if subnets(before, *id) != subnets(after, *id) {
            return Concerned::Everyone;
        }
        networks.insert(*id);
    }
    let mut nodes = BTreeSet::new();
    for item in before.tasks.diff(&after.tasks) {
        let mut touch = |task: &Task| {
            networks.extend(overlays(task).map(|(network, _)| network));
            nodes.extend(task.node_id);
        };
        match item {
            DiffItem::Add(_, task) | DiffItem::Remove(_, task) => touch(task),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                touch(old);
                touch(new);
            }
        }
    }
    for item in before.services.diff(&after.services) {
        let renumbered = is_renumbered(&item);
        let mut touch = |state: &State, service: &Service| {
            let all = state.networks_of(service);
            if all.iter().any(|id| named_bridge(state, *id).is_some()) {
                nodes.extend(state.tasks_of(service.id).filter_map(|task| task.node_id));
            }
            networks.extend(all);
            if renumbered {
                networks.extend(joined(state, service.id).map(|(_, network)| network));
            }
        };
        match item {
            DiffItem::Add(_, service) => touch(after, service),
            DiffItem::Remove(_, service) => touch(before, service),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                touch(before, old);
                touch(after, new);
            }
        }
    }
    if after.indexes.ingress.is_some_and(|ingress| networks.contains(&ingress)) {
        return Concerned::Everyone;
    }
    nodes.extend(networks.into_iter().flat_map(|network| after.nodes_on(network)));
    Concerned::Nodes(nodes)
}

/// Whether a service's number differs, which is also told of its tasks where the service itself is not.
fn is_renumbered(item: &DiffItem<'_, '_, ServiceId, Arc<Service>>) -> bool {
    match item {
        DiffItem::Add(..) | DiffItem::Remove(..) => true,
        DiffItem::Update { old: (_, old), new: (_, new) } => old.endpoint.number != new.endpoint.number,
    }
}

/// Tasks of a service that were connected to networks, and these.
fn joined(state: &State, service: ServiceId) -> impl Iterator<Item = (TaskId, NetworkId)> {
    state.tasks_of(service).flat_map(|task| {
        let networks = task.networks.iter().filter(|one| one.joined);
        networks.map(|one| (task.id, one.network))
    })
}

/// A state as one node sees it.
struct View<'a> {
    state: &'a State,
    node: NodeId,
    /// Overlays with a task on the node, and the ingress network.
    networks: BTreeSet<NetworkId>,
    /// Bridges with names and a task on the node.
    bridges: BTreeSet<NetworkId>,
}

/// A network of driver `bridge` that has names: one made by a user. The default one has none, as Docker's.
fn named_bridge(state: &State, id: NetworkId) -> Option<&Arc<Network>> {
    let is_default = state.default_network().is_some_and(|default| default.id == id);
    state.network(id).filter(|network| network.spec.driver == NetworkDriver::Bridge && !is_default)
}

/// Where a network has the addresses of its tasks.
fn subnets(state: &State, id: NetworkId) -> Option<MapSubnets> {
    let ipam = state.network(id)?.ipam?;
    Some(MapSubnets { ipv4: Ipv4Addr::subnet_of(ipam), ipv6: Ipv6Addr::subnet_of(ipam) })
}

/// The bridges with names on which a task can be reached.
fn bridges(state: &State, task: &Task) -> impl Iterator<Item = (NetworkId, Ipv4Addr)> {
    let there = holds_resources(task);
    let bridges = task.networks.iter().filter(move |one| there && one.driver == NetworkDriver::Bridge);
    let named = bridges.filter(|one| named_bridge(state, one.network).is_some());
    named.filter_map(|one| Some((one.network, one.address?.address)))
}

impl<'a> View<'a> {
    fn of(state: &'a State, node: NodeId) -> Self {
        let own = state.tasks_on(node).flat_map(|task| overlays(task)).map(|(network, _)| network);
        let bridges = state.tasks_on(node).flat_map(|task| bridges(state, task)).map(|(network, _)| network);
        Self { state, node, networks: own.chain(state.indexes.ingress).collect(), bridges: bridges.collect() }
    }

    fn data_path_port(&self) -> u16 {
        self.state.cluster().map_or(0, |cluster| cluster.spec.data_path_port)
    }

    fn network(&self, id: NetworkId) -> Option<MapNetwork> {
        let network: &Network = self.state.network(id).filter(|_| self.networks.contains(&id))?;
        let ipam = network.ipam?;
        Some(MapNetwork {
            name: network.spec.name.clone(),
            vni: network.vni?,
            subnet: ipam.subnet,
            gateway: ipam.gateway,
            ipv6: ipam.ipv6,
            mtu: network.spec.mtu.unwrap_or_else(|| self.state.overlay_mtu(network.spec.encrypted)),
            internal: network.spec.internal,
            ingress: network.spec.ingress,
            encrypted: network.spec.encrypted,
        })
    }

    fn bridge(&self, id: NetworkId) -> Option<MapBridge> {
        let network = named_bridge(self.state, id).filter(|_| self.bridges.contains(&id))?;
        let ipam = network.ipam?;
        Some(MapBridge {
            name: network.spec.name.clone(),
            subnet: ipam.subnet,
            gateway: ipam.gateway,
            ipv6: ipam.ipv6,
            internal: network.spec.internal,
        })
    }

    fn knows(&self, network: NetworkId) -> bool {
        self.networks.contains(&network) || self.bridges.contains(&network)
    }

    fn service(&self, id: ServiceId) -> Option<MapService> {
        let Service { spec, endpoint, .. } = &**self.state.service(id)?;
        let known = spec.task.networks.iter().filter(|at| self.knows(at.network));
        let attachment = |vip: Option<&Ipv4Addr>, aliases: &[String]| MapAttachment {
            vip: vip.copied(),
            aliases: aliases.to_vec(),
        };
        let networks = known.map(|at| (at.network, attachment(endpoint.vips.get(&at.network), &at.aliases)));
        let mesh = self.state.indexes.ingress.is_some();
        let ports = endpoint.ports.iter().filter(|port| mesh && port.mode == PublishMode::Ingress);
        let service = MapService {
            name: spec.name.clone(),
            mode: spec.endpoint.mode,
            networks: networks.collect(),
            ports: ports.copied().collect(),
            allow_from: spec.endpoint.allow_from.clone(),
            number: endpoint.number,
            prefer_same_node: spec.endpoint.prefer_same_node,
        };
        (!service.networks.is_empty() || !service.ports.is_empty()).then_some(service)
    }

    fn endpoint(&self, id: TaskId) -> Option<MapEndpoint> {
        let task = self.state.task(id)?;
        let node = self.state.node(task.node_id?)?;
        if !is_reachable(node) {
            return None;
        }
        let known = overlays(task).filter(|(network, _)| self.networks.contains(network));
        // Those of other nodes' tasks lead to nobody, or to somebody else.
        let here = bridges(self.state, task).filter(|_| node.id == self.node);
        let endpoint = MapEndpoint {
            service: task.service_id,
            slot: task.slot,
            node: node.id,
            addresses: known.chain(here).collect(),
            state: match task.status.state {
                _ if task.desired > TaskState::Running => EndpointState::Draining,
                TaskState::Running => EndpointState::Ready,
                _ => EndpointState::Starting,
            },
            hostname: task.spec.container.hostname.clone(),
            // Only its own node is asked by it.
            nameservers: match node.id == self.node {
                true => task.spec.container.dns.nameservers.iter().filter_map(|at| at.parse().ok()).collect(),
                false => Vec::new(),
            },
            joined: self.joined(task),
            enclosed: node.id == self.node && self.is_enclosed(task),
        };
        (!endpoint.addresses.is_empty()).then_some(endpoint)
    }

    fn is_enclosed(&self, task: &Task) -> bool {
        let mut networks = task.networks.iter().map(|one| self.state.network(one.network));
        networks.all(|network| network.is_some_and(|network| network.spec.internal))
    }

    fn joined(&self, task: &Task) -> Option<Joined> {
        let joined = task.networks.iter().filter(|one| one.joined && self.knows(one.network));
        let aliases: BTreeMap<_, _> = joined.map(|one| (one.network, one.aliases.clone())).collect();
        let number = self.state.service(task.service_id).map_or(0, |service| service.endpoint.number);
        (!aliases.is_empty()).then(|| Joined { service: task.service_name.clone(), number, aliases })
    }
}

/// A node that takes part in overlays; up or down, so that its entries do not come and go.
fn map_node(node: &Node) -> Option<MapNode> {
    let network = &node.description.as_ref()?.network;
    let (addr, tunnel) = (network.data_path_addr?, network.tunnel);
    let addresses = network.addresses.clone();
    (node.number != 0).then(|| MapNode {
        number: node.number,
        name: node.display_name(),
        addr,
        addresses,
        tunnel,
    })
}

fn is_reachable(node: &Node) -> bool {
    map_node(node).is_some() && node.status.state != NodeState::Down
}

fn mtu(node: &Node) -> u32 {
    node.description.as_ref().map_or(0, |description| description.network.mtu)
}

/// Whether a node differs in what maps say of it, or for what reason its tasks are in them.
fn is_news(item: &DiffItem<'_, '_, NodeId, Arc<Node>>) -> bool {
    match item {
        DiffItem::Add(_, node) | DiffItem::Remove(_, node) => map_node(node).is_some(),
        DiffItem::Update { old: (_, old), new: (_, new) } => {
            map_node(old) != map_node(new) || is_reachable(old) != is_reachable(new) || mtu(old) != mtu(new)
        }
    }
}

#[derive(Default)]
struct Touched {
    nodes: BTreeSet<NodeId>,
    services: BTreeSet<ServiceId>,
    tasks: BTreeSet<TaskId>,
}

impl Touched {
    fn node(&mut self, item: &DiffItem<'_, '_, NodeId, Arc<Node>>, before: &State, after: &State) {
        if !is_news(item) {
            return;
        }
        let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
        self.nodes.insert(**id);
        for state in [before, after] {
            self.tasks.extend(state.tasks_on(**id).map(|task| task.id));
        }
    }

    fn tasks_between(
        &mut self,
        before: Option<&OrdMap<TaskId, Arc<Task>>>,
        after: Option<&OrdMap<TaskId, Arc<Task>>>,
    ) {
        let none = OrdMap::new();
        for item in before.unwrap_or(&none).diff(after.unwrap_or(&none)) {
            let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) =
                item;
            self.tasks.insert(*id);
        }
    }
}

fn compare<K: Ord, V: PartialEq>(
    id: K,
    before: Option<V>,
    after: Option<V>,
    set: &mut std::collections::BTreeMap<K, V>,
    removed: &mut Vec<K>,
) {
    match (before, after) {
        (before, Some(after)) if before.as_ref() != Some(&after) => {
            set.insert(id, after);
        }
        (Some(_), None) => removed.push(id),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use rswarm_types::node::NodeNetworkFacts;
    use rswarm_types::service::{EndpointMode, PortConfig, Protocol};
    use rswarm_types::task::NetworkAttachment;
    use rswarm_types::{Availability, NetworkDriver, NetworkSpec, NodeDescription};

    use super::*;
    use crate::Write;
    use crate::testing::{Fixture, node_id};

    fn fixture(nodes: u8) -> (Fixture, NetworkId, NetworkId) {
        let mut f = Fixture::new(0);
        for n in 1..=nodes {
            f.add_node(n, |node| {
                let (addr, mtu) = ([192, 0, 2, n].into(), 1500 - u32::from(n));
                let network =
                    NodeNetworkFacts { data_path_addr: Some(addr), mtu, ..NodeNetworkFacts::default() };
                let held = node.description.take().unwrap();
                node.description = Some(NodeDescription { network, ..held });
            });
        }
        let mut make = |name: &str, change: fn(&mut NetworkSpec)| {
            let mut network = f.network(name, "10.0.0.0/24");
            (network.ipam, network.spec.driver) = (None, NetworkDriver::Overlay);
            change(&mut network.spec);
            let id = network.id;
            f.must(vec![Write::CreateNetwork(Box::new(network))]);
            id
        };
        let ids = (make("ingress", |spec| spec.ingress = true), make("front", |_| {}));
        (f, ids.0, ids.1)
    }

    fn on(network: NetworkId, node: u8) -> impl FnOnce(&mut rswarm_types::ServiceSpec) {
        move |spec| {
            spec.task.networks = vec![NetworkAttachment { network, aliases: vec!["www".into()] }];
            spec.task.placement.constraints = vec![format!("node.hostname==host{node}")];
        }
    }

    #[test]
    fn a_node_learns_of_the_networks_of_its_tasks_and_of_the_mesh() {
        let (mut f, ingress, front) = fixture(3);
        let port = PortConfig {
            protocol: Protocol::Tcp,
            target: 80,
            published: None,
            mode: PublishMode::Ingress,
            host_ip: None,
            interface: None,
        };
        let web = f.create("web", 1, on(front, 1));
        let api = f.create("api", 1, |spec| {
            on(front, 2)(spec);
            spec.endpoint.ports = vec![port];
        });
        f.create("rr", 1, |spec| {
            on(front, 2)(spec);
            spec.endpoint.mode = EndpointMode::Dnsrr;
        });
        f.run();
        let maps: Vec<NetworkMap> = (1..=3).map(|n| map(&f.state, node_id(n))).collect();
        assert!(maps.iter().all(|map| map.nodes.len() == 3 && map.data_path_port == 4789));
        let sizes = maps.iter().map(|m| (m.networks.len(), m.services.len(), m.endpoints.len()));
        assert_eq!(sizes.collect::<Vec<_>>(), [(2, 3, 3), (2, 3, 3), (1, 1, 1)]);
        assert_eq!(maps[0].networks[&front].mtu, 1497 - 50, "the smallest uplink's, less the encapsulation");

        let vip = f.state.service(web).unwrap().endpoint.vips[&front];
        let at = MapAttachment { vip: Some(vip), aliases: vec!["www".into()] };
        assert_eq!(maps[1].services[&web].networks, [(front, at)].into());
        assert_eq!(maps[1].services.values().filter(|s| s.mode == EndpointMode::Dnsrr).count(), 1);
        // The third node is an entry of the mesh and no more.
        let seen = &maps[2].services[&api];
        assert_eq!((seen.networks.len(), seen.ports[0].published), (0, Some(30_000)));
        let seen = maps[2].endpoints.values().next().unwrap();
        assert_eq!((seen.node, seen.state), (node_id(2), EndpointState::Ready));
        assert_eq!(seen.addresses.keys().collect::<Vec<_>>(), [&ingress]);
    }

    #[test]
    fn a_task_with_internal_networks_alone_is_enclosed_as_its_own_node_is_told() {
        let (mut f, _, front) = fixture(2);
        let mut network = f.network("inside", "10.0.0.0/24");
        (network.ipam, network.spec.driver, network.spec.internal) = (None, NetworkDriver::Overlay, true);
        let inside = network.id;
        f.must(vec![Write::CreateNetwork(Box::new(network))]);
        f.create("both", 1, |spec| {
            on(front, 1)(spec);
            spec.task.networks.push(NetworkAttachment { network: inside, aliases: vec![] });
        });
        let vault = f.create("vault", 1, on(inside, 1));
        f.create("other", 1, on(inside, 2));
        f.run();
        let enclosed = map(&f.state, node_id(1)).endpoints.into_iter().filter(|(_, one)| one.enclosed);
        assert_eq!(enclosed.map(|(_, one)| one.service).collect::<Vec<_>>(), [vault]);
    }

    #[test]
    fn of_a_bridge_a_node_is_told_of_its_own_tasks_alone() {
        let (mut f, _, front) = fixture(2);
        let network = f.network("local", "10.9.0.0/24");
        let local = network.id;
        f.must(vec![Write::CreateNetwork(Box::new(network))]);
        let plain = f.create("plain", 1, |spec| spec.task.networks.clear());
        f.create("first", 1, on(local, 1));
        f.run();
        let before = f.state.clone();
        let told = map(&f.state, node_id(1));
        assert_eq!((told.bridges[&local].name.as_str(), told.bridges.len()), ("local", 1));
        assert!(!told.endpoints.values().any(|one| one.service == plain), "the default bridge has no names");
        assert!(map(&f.state, node_id(2)).bridges.is_empty());

        let both = f.create("both", 2, |spec| {
            on(front, 1)(spec);
            spec.task.placement.constraints.clear();
            spec.task.networks.push(NetworkAttachment { network: local, aliases: vec!["store".into()] });
        });
        f.run();
        for n in [1, 2] {
            let mut built = map(&before, node_id(n));
            assert!(built.apply(change(&before, &f.state, node_id(n))));
            assert_eq!(built, map(&f.state, node_id(n)));
            let at = &built.services[&both].networks[&local];
            assert_eq!((at.vip, at.aliases.as_slice()), (None, &["store".to_owned()][..]));
            let (here, there): (Vec<_>, Vec<_>) = built
                .endpoints
                .values()
                .filter(|one| one.service == both)
                .partition(|one| one.node == node_id(n));
            assert_eq!((here.len(), there.len()), (1, 1));
            assert!(here[0].addresses.contains_key(&local) && !there[0].addresses.contains_key(&local));
        }
        // What is said of its services concerns the nodes with their tasks.
        let before = f.state.clone();
        let task = f.current(both)[0].clone();
        f.update(both, |spec| spec.endpoint.allow_from = ["plain".to_owned()].into());
        let Concerned::Nodes(nodes) = concerned(&before, &f.state) else { panic!("some nodes") };
        assert!(nodes.contains(&task.node_id.unwrap()));
        // The last task takes the bridge along.
        let before = map(&f.state, node_id(2));
        let (state, held) = (f.state.clone(), f.current(both));
        for task in held.iter().filter(|task| task.node_id == Some(node_id(2))) {
            f.report(task.id, TaskState::Failed);
        }
        let told = change(&state, &f.state, node_id(2));
        let mut built = before;
        built.apply(told);
        assert!(built.bridges.is_empty() && built == map(&f.state, node_id(2)));
    }

    #[test]
    fn a_network_that_grew_is_told_where_its_tasks_are() {
        let (mut f, ingress, front) = fixture(3);
        f.create("web", 1, on(front, 1));
        f.run();
        let mut mesh = (**f.state.network(ingress).unwrap()).clone();
        (mesh.ipam, mesh.spec.ipam.subnet) = (None, Some("10.64.0.0/20".parse().unwrap()));
        f.must(vec![Write::RemoveNetwork { id: ingress }, Write::CreateNetwork(Box::new(mesh))]);
        let mut grow = |id: NetworkId, to: &str| {
            let (before, held) = (f.state.clone(), f.state.network(id).unwrap().clone());
            let mut spec = Box::new(held.spec.clone());
            spec.ipam.subnet = Some(to.parse().unwrap());
            f.must(vec![Write::UpdateNetwork { id, spec, expected: held.meta.version }]);
            (before, f.state.clone())
        };
        let (before, after) = grow(front, "10.2.0.0/19");
        assert_eq!(
            concerned(&before, &after),
            Concerned::Everyone,
            "all know where addresses are the cluster's"
        );
        let told = change(&before, &after, node_id(1));
        assert_eq!(told.set.networks[&front].subnet.to_string(), "10.2.0.0/19");
        assert_eq!((told.set.networks.len(), told.set.endpoints.len(), told.set.services.len()), (1, 0, 0));
        let told = change(&before, &after, node_id(2)).set;
        assert_eq!(told.subnets[&front].ipv4.unwrap().to_string(), "10.2.0.0/19");
        assert!(told.networks.is_empty());
        // All nodes are on the ingress network, also while it has no task.
        let (before, after) = grow(ingress, "10.64.0.0/16");
        assert_eq!(concerned(&before, &after), Concerned::Everyone);
        assert!(change(&before, &after, node_id(3)).set.networks.contains_key(&ingress));
    }

    #[test]
    fn every_node_knows_where_networks_have_addresses() {
        let (mut f, ingress, front) = fixture(2);
        let empty = f.state.clone();
        let network = f.network("local", "10.9.0.0/24");
        let local = network.id;
        f.must(vec![Write::CreateNetwork(Box::new(network))]);
        assert_eq!(concerned(&empty, &f.state), Concerned::Everyone);
        let (before, full) = (map(&empty, node_id(2)), map(&f.state, node_id(2)));
        assert!([ingress, front, local].iter().all(|id| full.subnets.contains_key(id)));
        assert_eq!(full.subnets[&local].ipv4.unwrap().to_string(), "10.9.0.0/24");
        let mut built = before.clone();
        built.apply(change(&empty, &f.state, node_id(2)));
        assert_eq!(built, full);
        let held = f.state.clone();
        f.must(vec![Write::RemoveNetwork { id: local }]);
        assert_eq!(concerned(&held, &f.state), Concerned::Everyone);
        built.apply(change(&held, &f.state, node_id(2)));
        assert_eq!(built.subnets, before.subnets);
    }

    #[test]
    fn encrypted_networks_are_narrower_and_a_new_key_is_told_to_all() {
        use rswarm_types::node::{TunnelKey, TunnelKeys};
        let (mut f, _, _) = fixture(2);
        let mut network = f.network("secret", "10.0.0.0/24");
        (network.ipam, network.spec.driver) = (None, NetworkDriver::Overlay);
        network.spec.encrypted = true;
        let secret = network.id;
        f.must(vec![Write::CreateNetwork(Box::new(network))]);
        f.create("vault", 1, on(secret, 1));
        f.run();
        let seen = map(&f.state, node_id(1));
        assert_eq!(
            (seen.networks[&secret].encrypted, seen.networks[&secret].mtu),
            (true, 1498 - 110),
            "room for VXLAN and WireGuard"
        );
        assert_eq!(seen.nodes[&node_id(2)].tunnel, None);

        let before = f.state.clone();
        let tunnel = Some(TunnelKeys { place: 0, current: TunnelKey([7; 32]), next: None });
        let mut description = f.state.node(node_id(2)).unwrap().description.clone().unwrap();
        description.network.tunnel = tunnel;
        f.must(vec![Write::SetNodeDescription { id: node_id(2), description }]);
        assert_eq!(concerned(&before, &f.state), Concerned::Everyone);
        let told = change(&before, &f.state, node_id(1));
        assert_eq!(told.set.nodes[&node_id(2)].tunnel, tunnel);
        assert!(told.set.endpoints.is_empty() && told.removed_nodes.is_empty());
    }

    #[test]
    fn endpoints_start_get_ready_drain_and_go() {
        let (mut f, _, front) = fixture(2);
        f.create("local", 1, on(front, 1));
        f.run();
        let seen = |f: &Fixture, id| map(&f.state, node_id(1)).endpoints.get(&id).map(|seen| seen.state);
        let web = f.create("web", 1, on(front, 2));
        f.pass();
        let task = f.current(web)[0].id;
        assert_eq!(seen(&f, task), Some(EndpointState::Starting));
        f.report(task, TaskState::Running);
        assert_eq!(seen(&f, task), Some(EndpointState::Ready));
        f.set_node(2, NodeState::Down, Availability::Active);
        assert_eq!(seen(&f, task), None);
        f.set_node(2, NodeState::Ready, Availability::Active);
        f.must(vec![Write::SetTaskDesired { id: task, desired: TaskState::Shutdown }]);
        assert_eq!(seen(&f, task), Some(EndpointState::Draining));
        f.report(task, TaskState::Shutdown);
        assert_eq!(seen(&f, task), None);
    }

    #[test]
    fn only_those_on_the_network_are_concerned_by_what_happens_on_it() {
        let (mut f, _, front) = fixture(3);
        f.create("a", 1, on(front, 1));
        f.create("b", 1, on(front, 2));
        f.run();
        let before = f.state.clone();
        let web = f.create("web", 1, on(front, 1));
        f.pass();
        let both = Concerned::Nodes([node_id(1), node_id(2)].into());
        assert_eq!(concerned(&before, &f.state), both);
        let change = change(&before, &f.state, node_id(2));
        assert_eq!((change.set.services.len(), change.set.endpoints.len()), (1, 1));
        assert!(super::change(&before, &f.state, node_id(3)).is_empty());
        let before = f.state.clone();
        let status = rswarm_types::NodeStatus {
            message: "x".into(),
            ..f.state.node(node_id(3)).unwrap().status.clone()
        };
        f.must(vec![Write::SetNodeStatus { id: node_id(3), status }]);
        assert_eq!(concerned(&before, &f.state), Concerned::Nodes(BTreeSet::new()));
        f.set_node(3, NodeState::Down, Availability::Active);
        assert_eq!(concerned(&before, &f.state), Concerned::Everyone);
        assert!(f.state.service(web).is_some());
    }
}
