//! Addresses, virtual IPs, ports, subnets and numbers over long random histories: nothing is given twice, nothing
//! stays behind.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_core::plan::Action;
use rswarm_core::state::NewTask;
use rswarm_core::{Command, State, Write, allocate, apply, netmap};
use rswarm_types::netmap::NetworkMap;
use rswarm_types::network::IpamSpec6;
use rswarm_types::node::NodeNetworkFacts;
use rswarm_types::service::{PortConfig, Protocol, PublishMode};
use rswarm_types::subnet::Subnet;
use rswarm_types::task::NetworkAttachment;
use rswarm_types::*;

const CYCLES: u64 = 10_000;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        // Source: Knuth, MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }

    fn pick<T>(&mut self, from: impl Iterator<Item = T>) -> Option<T> {
        let all: Vec<T> = from.collect();
        let n = self.below(all.len() as u64) as usize;
        all.into_iter().nth(n)
    }
}

struct World {
    state: State,
    now: Timestamp,
    rng: Rng,
    minted: u128,
    /// Of each node the state it was told of last, and the map it made of all it was told.
    told: BTreeMap<NodeId, (State, NetworkMap)>,
    refused: BTreeMap<&'static str, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let mut world = Self {
            state: State::default(),
            now,
            rng: Rng(seed),
            minted: 0,
            told: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        let spec = ClusterSpec {
            overlay_pools: vec!["10.0.0.0/25".parse().unwrap()],
            overlay_prefix_len: 28,
            ..ClusterSpec::default()
        };
        let cluster = Cluster {
            id: ClusterId::from_bytes([9; 16]),
            meta: Meta::default(),
            spec,
            root_ca: RootCa { cert_pem: String::new(), key_pem: String::new() },
            join_secrets: JoinSecrets { worker: String::new(), manager: String::new() },
            removed_nodes: BTreeMap::new(),
        };
        let mut writes = vec![Write::PutCluster { cluster: Box::new(cluster), expected: None }];
        writes.extend((1..=3).map(|n| Write::CreateNode(Box::new(node(n)))));
        world.must(writes);
        world.create_network("ingress", true);
        world
    }

    fn id(&mut self) -> [u8; 16] {
        self.minted += 1;
        self.minted.to_be_bytes()
    }

    fn commit(&mut self, writes: Vec<Write>) -> bool {
        let command = Command { at: self.now, writes };
        let (next, result) = apply(&self.state, Version(self.state.index.0 + 1), &command);
        self.state = next;
        if let Err(rejected) = &result {
            use rswarm_core::state::Rejected::*;
            let kind = match rejected {
                PortTaken { .. } => "port",
                NetworkFull { .. } | NetworkTooSmall { .. } => "full",
                NoSubnet { .. } => "subnet",
                InUse { .. } => "in use",
                NameTaken { .. } => "name",
                SubnetTaken { .. } => "growth",
                NotConnected { .. } => "not connected",
                other => panic!("{other}"),
            };
            *self.refused.entry(kind).or_insert(0) += 1;
        }
        result.is_ok()
    }

    fn must(&mut self, writes: Vec<Write>) {
        assert!(self.commit(writes), "{:?}", self.refused);
    }

    fn create_network(&mut self, name: &str, ingress: bool) {
        let mut spec = NetworkSpec::new(name, NetworkDriver::Overlay);
        (spec.ingress, spec.attachable) = (ingress, !ingress && self.rng.below(2) == 0);
        spec.ipam.ipv6 = self.minted.is_multiple_of(2).then(IpamSpec6::default);
        let id = NetworkId::from_bytes(self.id());
        let network = Network { id, meta: Meta::default(), spec, ipam: None, vni: None };
        self.commit(vec![Write::CreateNetwork(Box::new(network))]);
    }

    fn spec(&mut self, name: String) -> ServiceSpec {
        let networks: Vec<NetworkId> = self
            .state
            .networks()
            .filter(|network| !network.spec.ingress)
            .map(|network| network.id)
            .filter(|_| self.rng.below(3) == 0)
            .collect();
        let mut task = TaskSpec::default();
        let attach = |network| NetworkAttachment { network, aliases: vec![] };
        task.networks = networks.into_iter().map(attach).collect();
        let mut spec = ServiceSpec {
            name,
            labels: Labels::new(),
            mode: ServiceMode::Replicated { replicas: 1 },
            task,
            update: Default::default(),
            rollback: Default::default(),
            endpoint: Default::default(),
        };
        for _ in 0..self.rng.below(3) {
            let published = (self.rng.below(2) == 0).then(|| 30_000 + self.rng.below(6) as u16);
            let mode = if self.rng.below(4) == 0 { PublishMode::Host } else { PublishMode::Ingress };
            let taken = |port: &PortConfig| published.is_some() && port.published == published;
            if !spec.endpoint.ports.iter().any(taken) {
                spec.endpoint.ports.push(PortConfig {
                    protocol: Protocol::Tcp,
                    target: 80,
                    published,
                    mode,
                    host_ip: None,
                    interface: None,
                });
            }
        }
        if self.rng.below(6) == 0 && spec.endpoint.ports.is_empty() {
            spec.endpoint.mode = rswarm_types::service::EndpointMode::Dnsrr;
        }
        spec
    }

    fn create_task(&mut self) {
        let Some(service) = self.rng.pick(self.state.services().cloned()) else { return };
        let new = NewTask {
            id: TaskId::from_bytes(self.id()),
            service_id: service.id,
            spec_version: service.spec_version,
            slot: 1,
            node_id: None,
            desired: TaskState::Running,
            start_delay: Duration::ZERO,
            status: TaskStatus::default(),
            networks: Vec::new(),
        };
        self.must(vec![Write::CreateTask(new)]);
        let plan = allocate::plan(&self.state, self.now);
        let writes = plan.actions.into_iter().filter_map(|action| match action {
            Action::AllocateTask { task, networks } => Some(Write::AllocateTask { id: task, networks }),
            _ => None,
        });
        let mut writes: Vec<Write> = writes.collect();
        for id in self.state.waiting_tasks().map(|task| task.id) {
            writes.push(Write::AssignTask { id, node: node_id(1 + self.rng.below(3) as u8) });
        }
        self.must(writes);
    }

    fn cycle(&mut self) {
        self.now = self.now.after(Duration::from_millis(self.rng.below(900)));
        match self.rng.below(14) {
            12 => {
                let task = self.rng.pick(self.state.tasks().map(|task| task.id));
                let network = self.rng.pick(self.state.networks().map(|network| network.id));
                if let Some((id, network)) = task.zip(network) {
                    self.commit(vec![Write::ConnectTask { id, network, aliases: vec![], address: None }]);
                }
            }
            13 => {
                let joined = self.state.tasks().flat_map(|task| {
                    let joined = task.networks.iter().filter(|one| one.joined);
                    joined.map(|one| (task.id, one.network)).collect::<Vec<_>>()
                });
                if let Some((id, network)) = self.rng.pick(joined) {
                    self.must(vec![Write::DisconnectTask { id, network }]);
                }
            }
            11 => {
                let networks = self.state.networks().filter(|network| !network.spec.ingress);
                let network = self.rng.pick(networks.cloned());
                let Some((network, ipam)) =
                    network.and_then(|network| Some((network.clone(), network.ipam?)))
                else {
                    return;
                };
                let mut spec = Box::new(network.spec.clone());
                spec.ipam.subnet = Subnet::new(ipam.subnet.address, ipam.subnet.prefix_len - 1);
                self.commit(vec![Write::UpdateNetwork {
                    id: network.id,
                    spec,
                    expected: network.meta.version,
                }]);
            }
            10 => {
                let id = node_id(1 + self.rng.below(3) as u8);
                let held = (**self.state.node(id).unwrap()).clone();
                let down = held.status.state == NodeState::Down;
                let state = if down { NodeState::Ready } else { NodeState::Down };
                let mut description = held.description.unwrap();
                description.network.mtu = 1400 + self.rng.below(3) as u32;
                self.must(vec![
                    Write::SetNodeStatus { id, status: NodeStatus { state, ..held.status } },
                    Write::SetNodeDescription { id, description },
                ]);
            }
            0 => {
                let name = format!("net{}", self.rng.below(9));
                self.create_network(&name, false);
            }
            1 => {
                let networks = self.state.networks().filter(|network| !network.spec.ingress);
                if let Some(id) = self.rng.pick(networks.map(|network| network.id)) {
                    self.commit(vec![Write::RemoveNetwork { id }]);
                }
            }
            2 | 3 => {
                let name = format!("service{}", self.rng.below(12));
                let (spec, id) = (Box::new(self.spec(name)), ServiceId::from_bytes(self.id()));
                self.commit(vec![Write::CreateService { id, spec }]);
            }
            4 => {
                if let Some(id) = self.rng.pick(self.state.services().map(|service| service.id)) {
                    self.must(vec![Write::RemoveService { id, expected: None }]);
                }
            }
            5 => {
                if let Some(service) = self.rng.pick(self.state.services().cloned()) {
                    let spec = Box::new(self.spec(service.spec.name.clone()));
                    let (id, expected) = (service.id, service.meta.version);
                    let change = Default::default();
                    self.commit(vec![Write::UpdateService { id, spec, expected, change }]);
                }
            }
            6 | 7 => self.create_task(),
            8 => {
                if let Some(id) = self.rng.pick(self.state.tasks().map(|task| task.id)) {
                    let states = [TaskState::Running, TaskState::Failed, TaskState::Shutdown];
                    let state = states[self.rng.below(3) as usize];
                    let status = TaskStatus { state, at: self.now, ..TaskStatus::default() };
                    self.must(vec![Write::SetTaskStatus { id, status }]);
                }
            }
            _ => {
                if let Some(id) = self.rng.pick(self.state.tasks().map(|task| task.id)) {
                    self.must(vec![Write::RemoveTask { id }]);
                }
            }
        }
    }
}

impl World {
    /// Tells some nodes what changed since they were told last, and checks that they now know what there is to know.
    fn tell(&mut self) {
        for id in (1..=3).map(node_id).filter(|_| self.rng.below(3) > 0).collect::<Vec<_>>() {
            let change = match self.told.get(&id) {
                None => netmap::full(&self.state, id),
                Some((before, _)) => netmap::change(before, &self.state, id),
            };
            let (told, map) = self.told.entry(id).or_default();
            if !change.is_empty() {
                let before = std::mem::replace(told, self.state.clone());
                let concerned = netmap::concerned(&before, &self.state);
                assert!(
                    change.full
                        || matches!(&concerned, netmap::Concerned::Everyone)
                        || matches!(&concerned, netmap::Concerned::Nodes(nodes) if nodes.contains(&id)),
                    "a session that sleeps through this: {change:?}"
                );
            }
            assert!(map.apply(change));
            assert_eq!(*map, netmap::map(&self.state, id));
        }
    }
}

fn node_id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn node(n: u8) -> Node {
    let network =
        NodeNetworkFacts { data_path_addr: Some([192, 0, 2, n].into()), mtu: 1500, ..Default::default() };
    Node {
        id: node_id(n),
        meta: Meta::default(),
        number: 0,
        spec: NodeSpec::default(),
        role: Role::Worker,
        role_since: Version::default(),
        description: Some(NodeDescription { network, ..NodeDescription::default() }),
        status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
        manager: None,
    }
}

/// What is kept of addresses that are free, read from a snapshot.
fn released(state: &State) -> usize {
    let json = serde_json::to_value(state).unwrap();
    json["released"].as_array().unwrap().len()
}

#[test]
fn ten_thousand_random_cycles_give_nothing_twice_and_leave_nothing_behind() {
    let mut world = World::new(7);
    for cycle in 0..CYCLES {
        world.cycle();
        assert_eq!(world.state.check(), [], "in cycle {cycle}");
        world.tell();
    }
    let kinds: Vec<_> = world.refused.keys().copied().collect();
    assert_eq!(
        kinds,
        ["full", "growth", "in use", "name", "not connected", "port", "subnet"],
        "every refusal was met: {:?}",
        world.refused
    );

    for id in world.state.tasks().map(|task| task.id).collect::<Vec<_>>() {
        world.must(vec![Write::RemoveTask { id }]);
    }
    for id in world.state.services().map(|service| service.id).collect::<Vec<_>>() {
        world.must(vec![Write::RemoveService { id, expected: None }]);
    }
    let ingress = world.state.ingress().unwrap().id;
    assert_eq!(world.state.addresses_used(ingress), 0);
    for id in world.state.networks().map(|network| network.id).collect::<Vec<_>>() {
        world.must(vec![Write::RemoveNetwork { id }]);
    }
    assert_eq!((world.state.check(), released(&world.state)), (vec![], 0));
    // All that is open again can be had again, from the start.
    world.create_network("ingress", true);
    let ingress = world.state.ingress().unwrap();
    assert_eq!(ingress.ipam.unwrap().subnet.to_string(), "10.0.0.0/28");
}

#[test]
fn a_snapshot_gives_the_same_state_back_and_one_from_before_networks_loads() {
    let mut world = World::new(3);
    (0..500).for_each(|_| world.cycle());
    let text = serde_json::to_string(&world.state).unwrap();
    let back: State = serde_json::from_str(&text).unwrap();
    assert!(back == world.state && back.check().is_empty());

    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    let strip = |object: &mut serde_json::Value, keys: &[&str]| {
        keys.iter().for_each(|key| drop(object.as_object_mut().unwrap().remove(*key)));
    };
    strip(&mut old, &["released", "cursors", "services", "tasks", "networks"]);
    strip(&mut old["cluster"]["spec"], &["overlay_pools", "overlay_prefix_len", "data_path_port"]);
    for node in old["nodes"].as_array_mut().unwrap() {
        strip(node, &["number"]);
        strip(&mut node["description"], &["network"]);
    }
    let old: State = serde_json::from_value(old).unwrap();
    assert_eq!(old.check(), []);
    assert_eq!(old.cluster().unwrap().spec.overlay_prefix_len, 20);
}
