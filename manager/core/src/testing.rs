//! A small cluster for unit tests: real state, real passes, a clock that moves when told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_types::network::{Ipam, NetworkSpec};
use rswarm_types::node::{Platform, Resources};
use rswarm_types::*;

use crate::state::{Rejected, ServiceChange};
use crate::{Command, Planner, State, Write, apply, plan_all};

pub const CPU: u64 = 1_000_000_000;
pub const GIB: u64 = 1 << 30;

pub struct Fixture {
    pub state: State,
    pub now: Timestamp,
    planner: Planner,
    minted: u128,
}

pub fn node_id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

impl Fixture {
    /// A cluster with a /24 `bridge` and `nodes` ready nodes of 4 CPUs and 4 GiB, numbered from 1.
    pub fn new(nodes: u8) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let mut fixture = Self { state: State::default(), now, planner: Planner::default(), minted: 1 << 64 };
        let cluster = Cluster {
            id: ClusterId::from_bytes([9; 16]),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa { cert_pem: String::new(), key_pem: String::new() },
            join_secrets: JoinSecrets { worker: String::new(), manager: String::new() },
            removed_nodes: BTreeMap::new(),
        };
        let bridge = fixture.network("bridge", "10.0.0.0/24");
        fixture.must(vec![
            Write::PutCluster { cluster: Box::new(cluster), expected: None },
            Write::CreateNetwork(Box::new(bridge)),
        ]);
        (1..=nodes).for_each(|n| fixture.add_node(n, |_| {}));
        fixture
    }

    pub fn network(&mut self, name: &str, subnet: &str) -> Network {
        let subnet: cluster::Subnet = subnet.parse().unwrap();
        Network {
            id: NetworkId::from_bytes(self.mint().to_bytes()),
            meta: Meta::default(),
            spec: NetworkSpec::new(name, NetworkDriver::Bridge),
            ipam: Some(Ipam { subnet, gateway: subnet.nth(1).unwrap(), ipv6: None }),
            vni: None,
        }
    }

    pub fn add_node(&mut self, n: u8, change: impl FnOnce(&mut Node)) {
        let mut node = Node {
            id: node_id(n),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            role: Role::Worker,
            description: Some(NodeDescription {
                hostname: format!("host{n}"),
                platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
                resources: Resources { nano_cpus: 4 * CPU, memory_bytes: 4 * GIB },
                ..NodeDescription::default()
            }),
            status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
            manager: None,
            role_since: Version::default(),
            number: 0,
        };
        change(&mut node);
        self.must(vec![Write::CreateNode(Box::new(node))]);
    }

    pub fn mint(&mut self) -> TaskId {
        self.minted += 1;
        TaskId::from_bytes(self.minted.to_be_bytes())
    }

    pub fn commit(&mut self, writes: Vec<Write>) -> Result<(), Rejected> {
        let command = Command { at: self.now, writes };
        let (next, result) = apply(&self.state, Version(self.state.index.0 + 1), &command);
        self.state = next;
        assert_eq!(self.state.check(), []);
        result.map(|_| ())
    }

    pub fn must(&mut self, writes: Vec<Write>) {
        self.commit(writes).unwrap();
    }

    pub fn spec(name: &str, replicas: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
        let mut spec = ServiceSpec {
            name: name.into(),
            labels: Labels::new(),
            mode: ServiceMode::Replicated { replicas },
            task: TaskSpec::default(),
            update: Default::default(),
            rollback: Default::default(),
            endpoint: Default::default(),
        };
        spec.task.container.image = "image:1".into();
        change(&mut spec);
        spec
    }

    /// Creates a service; plans nothing yet.
    pub fn create(&mut self, name: &str, replicas: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
        let spec = Self::spec(name, replicas, change);
        let id = ServiceId::from_bytes(self.mint().to_bytes());
        self.must(vec![Write::CreateService { id, spec: Box::new(spec) }]);
        id
    }

    pub fn update(&mut self, id: ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let held = self.state.service(id).unwrap();
        let (mut spec, expected) = (held.spec.clone(), held.meta.version);
        change(&mut spec);
        let change = ServiceChange::Update;
        self.must(vec![Write::UpdateService { id, spec: Box::new(spec), expected, change }]);
    }

    pub fn set_node(&mut self, n: u8, state: NodeState, availability: Availability) {
        let node = self.state.node(node_id(n)).unwrap();
        let spec = NodeSpec { availability, ..node.spec.clone() };
        let status = NodeStatus { state, since: self.now, ..node.status.clone() };
        let (id, expected) = (node.id, node.meta.version);
        self.must(vec![Write::UpdateNode { id, spec, expected }, Write::SetNodeStatus { id, status }]);
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// Passes until nothing is left to do; returns how many commands that took.
    pub fn pass(&mut self) -> usize {
        for commands in 0..20 {
            let plan = self.planner.plan(&self.state, self.now);
            if plan.is_empty() {
                assert_eq!(plan_all(&self.state, self.now, None).actions, [], "the planner missed something");
                return commands;
            }
            let state = self.state.clone();
            let command = plan.into_command(&state, self.now, &mut || self.mint());
            self.must(command.writes);
        }
        panic!("the plan does not settle");
    }

    pub fn report(&mut self, id: TaskId, state: TaskState) {
        let status = TaskStatus { state, at: self.now, ..TaskStatus::default() };
        self.must(vec![Write::SetTaskStatus { id, status }]);
    }

    /// Every task on a node that is up does at once what it should; passes until all is done.
    pub fn run(&mut self) {
        loop {
            self.pass();
            let due: Vec<(TaskId, TaskState)> = self
                .state
                .tasks()
                .filter(|task| crate::state::holds_resources(task))
                .filter(|task| {
                    self.state.node(task.node_id.unwrap()).unwrap().status.state != NodeState::Down
                })
                .filter_map(|task| match (task.desired, task.status.state) {
                    (TaskState::Ready, state) if state < TaskState::Ready => {
                        Some((task.id, TaskState::Ready))
                    }
                    (TaskState::Running, state) if state < TaskState::Running => {
                        Some((task.id, TaskState::Running))
                    }
                    (desired, _) if desired > TaskState::Running => Some((task.id, TaskState::Shutdown)),
                    _ => None,
                })
                .collect();
            if due.is_empty() {
                return;
            }
            due.into_iter().for_each(|(id, state)| self.report(id, state));
        }
    }

    /// Waits until the next wake-up and runs, again and again for `time`.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.after(time);
        self.run();
        while let Some(at) = self.planner.wake_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.run();
        }
        self.now = end;
        self.run();
    }

    /// Tasks of a service that were not told to stop, by slot.
    pub fn current(&self, service: ServiceId) -> Vec<Arc<Task>> {
        self.state.tasks_of(service).filter(|task| task.desired <= TaskState::Running).cloned().collect()
    }

    pub fn running(&self, service: ServiceId) -> usize {
        self.current(service).iter().filter(|task| task.status.state == TaskState::Running).count()
    }

    /// Tasks not told to stop by node, from node 1.
    pub fn spread(&self, service: ServiceId, nodes: u8) -> Vec<usize> {
        let on = |n| self.current(service).iter().filter(|t| t.node_id == Some(node_id(n))).count();
        (1..=nodes).map(on).collect()
    }
}
