//! The world: users, nodes, a leader and a log.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_core::dispatch::{self, SessionId, Sessions};
use rswarm_core::state::ServiceChange;
use rswarm_core::{Command, Planner, State, Write, apply, plan_all};
use rswarm_types::network::{Ipam, NetworkSpec};
use rswarm_types::node::{Platform, Resources};
use rswarm_types::service::*;
use rswarm_types::task::RestartCondition;
use rswarm_types::*;

use crate::checks::Checks;
use crate::rng::Rng;
use crate::worker::{Mood, Worker};

pub struct World {
    pub state: State,
    pub log: Vec<(Version, Command)>,
    rng: Rng,
    now: Timestamp,
    sessions: Sessions,
    planner: Planner,
    workers: BTreeMap<NodeId, Worker>,
    next_session: u64,
    mood: Mood,
    checks: Checks,
    trace: bool,
}

const GIB: u64 = 1 << 30;
const CPU: u64 = 1_000_000_000;

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let state = State::default();
        let now = Timestamp::from_millis(1_000_000_000);
        let mood = Mood { fails_percent: rng.below(12), late_ms: 1 + rng.below(3000), repeats_percent: 20 };
        let mut world = Self {
            sessions: Sessions::new(&state, now),
            state,
            log: Vec::new(),
            now,
            planner: Planner::default(),
            workers: BTreeMap::new(),
            next_session: 0,
            mood,
            checks: Checks::default(),
            trace: std::env::var("RSWARM_SIM_TRACE").is_ok(),
            rng,
        };
        world.found();
        world
    }

    fn found(&mut self) {
        let cluster = Cluster {
            id: ClusterId::from_bytes(self.rng.id()),
            meta: Meta::default(),
            spec: ClusterSpec { task_history_limit: self.rng.below(6), ..ClusterSpec::default() },
            root_ca: RootCa { cert_pem: String::new(), key_pem: String::new() },
            join_secrets: JoinSecrets { worker: String::new(), manager: String::new() },
            removed_nodes: BTreeMap::new(),
        };
        // Sometimes so small that addresses run out.
        let prefix_len = if self.rng.chance(20) { 28 } else { 22 };
        let network = Network {
            id: NetworkId::from_bytes(self.rng.id()),
            meta: Meta::default(),
            spec: NetworkSpec::new("bridge", NetworkDriver::Bridge),
            ipam: Some(Ipam {
                subnet: format!("10.0.0.0/{prefix_len}").parse().unwrap(),
                gateway: "10.0.0.1".parse().unwrap(),
                ipv6: None,
            }),
            vni: None,
        };
        let writes = vec![
            Write::PutCluster { cluster: Box::new(cluster), expected: None },
            Write::CreateNetwork(Box::new(network)),
        ];
        self.commit(writes).unwrap();
        for _ in 0..3 + self.rng.below(4) {
            self.add_node();
        }
    }

    fn add_node(&mut self) {
        let id = NodeId::from_bytes(self.rng.id());
        let mut spec = NodeSpec::default();
        spec.labels.insert("zone".into(), format!("z{}", self.rng.below(3)));
        let node = Node {
            id,
            meta: Meta::default(),
            spec,
            role: Role::Worker,
            description: Some(NodeDescription {
                hostname: format!("host{}", self.workers.len()),
                platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
                resources: Resources { nano_cpus: 4 * CPU, memory_bytes: 4 * GIB },
                ..NodeDescription::default()
            }),
            status: NodeStatus::default(),
            manager: None,
            role_since: Version::default(),
            number: 0,
        };
        self.commit(vec![Write::CreateNode(Box::new(node))]).unwrap();
        self.workers.insert(id, Worker::new(id));
    }

    /// Puts a command into the log and applies it. A refusal is the caller's to judge.
    fn commit(&mut self, writes: Vec<Write>) -> Result<(), String> {
        let command = Command { at: self.now, writes };
        let index = Version(self.state.index.0 + 1);
        let (next, result) = apply(&self.state, index, &command);
        if self.trace {
            eprintln!("{} {index} {command:?} {result:?}", self.now.as_millis());
        }
        self.state = next;
        self.log.push((index, command));
        result.map(|_| ()).map_err(|rejected| rejected.to_string())
    }

    /// What a user asks for: refused only if there are not the addresses for it.
    fn ask(&mut self, writes: Vec<Write>) {
        let refused = self.commit(writes).err();
        assert!(refused.as_ref().is_none_or(|why| why.contains("addresses: other services")), "{refused:?}");
    }

    /// Something happens, or nothing.
    pub fn disturb(&mut self) {
        let services: Vec<ServiceId> = self.state.services().map(|s| s.id).collect();
        let nodes: Vec<NodeId> = self.workers.keys().copied().collect();
        let node = self.rng.pick(&nodes).copied();
        let service = self.rng.pick(&services).copied();
        match self.rng.below(100) {
            0..4 if services.len() < 6 => {
                let spec = self.random_spec(format!("s{}", self.log.len()));
                let id = ServiceId::from_bytes(self.rng.id());
                self.ask(vec![Write::CreateService { id, spec: Box::new(spec) }]);
            }
            4..12 => self.edit(service),
            12 => {
                if let Some(id) = service {
                    self.commit(vec![Write::RemoveService { id, expected: None }]).unwrap();
                }
            }
            13..16 => self.edit_node(node),
            16 => self.lose_node(node),
            17..20 => {
                if let Some(worker) = node.and_then(|id| self.workers.get_mut(&id)) {
                    worker.power_off(self.now);
                }
            }
            20..23 => {
                if let Some(worker) = node.and_then(|id| self.workers.get_mut(&id)) {
                    worker.connected = false;
                }
            }
            23..33 => {
                if let Some(worker) = node.and_then(|id| self.workers.get_mut(&id)) {
                    (worker.on, worker.connected) = (true, true);
                }
            }
            33..36 => {
                // A session drops and comes back.
                if let Some(worker) = node.and_then(|id| self.workers.get_mut(&id))
                    && let Some(session) = worker.session.take()
                {
                    self.sessions.close(worker.id, session);
                }
            }
            36 => self.elect(),
            37 if nodes.len() < 9 => self.add_node(),
            _ => {}
        }
    }

    fn random_spec(&mut self, name: String) -> ServiceSpec {
        let rng = &mut self.rng;
        let mode = match rng.below(4) {
            0 => ServiceMode::Global,
            _ => ServiceMode::Replicated { replicas: rng.below(9) },
        };
        let mut task = TaskSpec::default();
        task.container.image = "img:1".into();
        if rng.chance(40) {
            task.reservations =
                Resources { nano_cpus: rng.below(3) * CPU / 2, memory_bytes: rng.below(4) * GIB / 4 };
        }
        if rng.chance(20) {
            task.placement.constraints = vec![format!("node.labels.zone==z{}", rng.below(3))];
        }
        if rng.chance(30) {
            task.placement.spread = vec!["node.labels.zone".into()];
        }
        if rng.chance(20) && mode != ServiceMode::Global {
            task.placement.max_replicas = 1 + rng.below(3);
        }
        task.restart.delay = Duration::from_millis(rng.below(6000));
        if rng.chance(20) {
            task.restart.max_attempts = 1 + rng.below(3);
        }
        task.restart.condition = match rng.below(6) {
            0 => RestartCondition::None,
            1 => RestartCondition::OnFailure,
            _ => RestartCondition::Any,
        };
        let mut pace = || UpdateConfig {
            parallelism: rng.below(4),
            delay: Duration::from_millis(rng.below(3) * 1000),
            failure_action: match rng.below(3) {
                0 => FailureAction::Pause,
                1 => FailureAction::Continue,
                _ => FailureAction::Rollback,
            },
            monitor: Duration::from_secs(rng.below(8)),
            max_failure_ratio: if rng.chance(50) { 0.0 } else { 0.5 },
            order: if rng.chance(30) { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst },
        };
        let (mut update, mut rollback) = (pace(), pace());
        if rollback.failure_action == FailureAction::Rollback {
            rollback.failure_action = FailureAction::Pause;
        }
        let mut endpoint = EndpointSpec::default();
        if rng.chance(20) {
            let published = Some(8000 + rng.below(3) as u16);
            endpoint.ports = vec![PortConfig {
                protocol: Protocol::Tcp,
                target: 80,
                published,
                mode: PublishMode::Host,
                host_ip: None,
                interface: None,
            }];
            (update.order, rollback.order) = (UpdateOrder::StopFirst, UpdateOrder::StopFirst);
        }
        let spec = ServiceSpec { name, labels: Labels::new(), mode, task, update, rollback, endpoint };
        rswarm_core::validate::service_spec(&spec).unwrap();
        spec
    }

    fn edit(&mut self, service: Option<ServiceId>) {
        let Some(held) = service.and_then(|id| self.state.service(id)).cloned() else { return };
        let mut spec = held.spec.clone();
        let mut change = ServiceChange::Update;
        match self.rng.below(8) {
            0..3 => {
                if let ServiceMode::Replicated { replicas } = &mut spec.mode {
                    *replicas = self.rng.below(10);
                }
            }
            3 | 4 => spec.task.container.image = format!("img:{}", self.rng.below(1000)),
            5 => spec.task.force_update += 1,
            6 => spec.task.placement.constraints = vec![format!("node.labels.zone!=z{}", self.rng.below(3))],
            _ => match held.previous_spec {
                Some(ref previous) => {
                    spec = ServiceSpec::clone(previous);
                    change = ServiceChange::Rollback;
                }
                None => spec.update.parallelism = 0,
            },
        }
        let (id, expected) = (held.id, held.meta.version);
        self.ask(vec![Write::UpdateService { id, spec: Box::new(spec), expected, change }]);
    }

    fn edit_node(&mut self, node: Option<NodeId>) {
        let Some(held) = node.and_then(|id| self.state.node(id)).cloned() else { return };
        let mut spec = held.spec.clone();
        match self.rng.below(6) {
            0 => spec.labels.insert("zone".into(), format!("z{}", self.rng.below(3))).map_or((), drop),
            1 => spec.availability = Availability::Pause,
            2 | 3 => spec.availability = Availability::Drain,
            _ => spec.availability = Availability::Active,
        }
        let mut writes = vec![Write::UpdateNode { id: held.id, spec, expected: held.meta.version }];
        if self.rng.chance(10) {
            let mut description = held.description.clone().unwrap_or_default();
            description.resources = Resources { nano_cpus: 2 * CPU, memory_bytes: 2 * GIB };
            self.checks.shrunk.insert(held.id);
            writes.push(Write::SetNodeDescription { id: held.id, description });
        }
        self.commit(writes).unwrap();
    }

    fn lose_node(&mut self, node: Option<NodeId>) {
        let Some(id) = node.filter(|_| self.workers.len() > 2) else { return };
        // Refused unless it is down: then nothing may have changed.
        let before = self.state.clone();
        match self.commit(vec![Write::RemoveNode { id, force: false }]) {
            Ok(()) => drop(self.workers.remove(&id)),
            Err(_) => {
                let mut unchanged = before;
                unchanged.index = self.state.index;
                assert!(unchanged == self.state, "a refused command changed the state");
            }
        }
    }

    fn elect(&mut self) {
        self.sessions = Sessions::new(&self.state, self.now);
        self.planner = Planner::default();
        for worker in self.workers.values_mut() {
            worker.session = None;
        }
    }

    /// Some time passes; everyone does their part.
    pub fn step(&mut self) -> Result<(), String> {
        let pause = 10 + self.rng.below(990);
        self.now = self.now.after(Duration::from_millis(pause));
        self.talk();
        let expiry = self.sessions.expire(&self.state, self.now);
        if !expiry.writes.is_empty() {
            self.commit(expiry.writes)?;
        }
        self.lead()?;
        self.checks.after_step(&self.state)
    }

    /// Workers register, hear what is new, and report.
    fn talk(&mut self) {
        let mut writes = Vec::new();
        for worker in self.workers.values_mut() {
            if worker.on && worker.connected {
                match worker.session {
                    Some(session) => {
                        if self.sessions.heartbeat(worker.id, session, self.now).is_err() {
                            worker.session = None;
                        } else {
                            let changes = dispatch::diff(&worker.held, &self.state, worker.id);
                            worker.change(&changes, self.now);
                            worker.held = dispatch::assignments(&self.state, worker.id);
                        }
                    }
                    None if self.rng.chance(60) => {
                        self.next_session += 1;
                        let session = SessionId(self.next_session);
                        writes.extend(self.sessions.register(
                            &self.state,
                            worker.id,
                            session,
                            None,
                            self.now,
                        ));
                        worker.session = Some(session);
                        worker.held = dispatch::assignments(&self.state, worker.id);
                        let held = worker.held.clone();
                        worker.full_set(held.tasks(), self.now);
                    }
                    None => {}
                }
            }
            worker.step(&mut self.rng, self.now, self.mood);
            if worker.session.is_some() && worker.connected {
                let now = self.now;
                let (arrived, on_the_way) =
                    std::mem::take(&mut worker.wire).into_iter().partition(|(at, ..)| *at <= now);
                worker.wire = on_the_way;
                let mut arrived: Vec<_> = arrived;
                if self.rng.chance(50) {
                    arrived.reverse();
                }
                let of_node =
                    |id: &TaskId| self.state.task(*id).is_some_and(|t| t.node_id == Some(worker.id));
                writes.extend(
                    arrived
                        .into_iter()
                        .filter(|(_, id, _)| of_node(id))
                        .map(|(_, id, status)| Write::SetTaskStatus { id, status }),
                );
            }
        }
        if !writes.is_empty() {
            self.commit(writes).expect("reports are never refused");
        }
    }

    /// The leader plans until nothing is left to do.
    fn lead(&mut self) -> Result<(), String> {
        let before = self.state.clone();
        for round in 0.. {
            let plan = self.planner.plan(&self.state, self.now);
            if plan.is_empty() {
                break;
            }
            if round == 20 {
                return Err(format!("the plan does not settle: {:?}", plan.actions));
            }
            let (state, now) = (self.state.clone(), self.now);
            let rng = &mut self.rng;
            let command = plan.into_command(&state, now, &mut || TaskId::from_bytes(rng.id()));
            self.commit(command.writes)?;
        }
        let full = plan_all(&self.state, self.now, None);
        if !full.is_empty() {
            return Err(format!("a full pass finds what the incremental one missed: {:?}", full.actions));
        }
        let undone = |task: &&std::sync::Arc<Task>| {
            before.task(task.id).is_none() && task.desired > TaskState::Running
        };
        if let Some(task) = self.state.tasks().find(undone) {
            return Err(format!("task {} was made and told to stop at once", task.id));
        }
        for task in self.state.tasks().filter(|task| task.status.state == TaskState::Assigned) {
            let was = before.task(task.id).map(|task| task.status.state);
            let node = task.node_id.and_then(|id| self.state.node(id)).ok_or("assigned without a node")?;
            let takes =
                node.status.state == NodeState::Ready && node.spec.availability == Availability::Active;
            if was.is_none_or(|state| state < TaskState::Assigned) && !takes {
                return Err(format!("task {} was given to node {}, which takes none", task.id, node.id));
            }
        }
        Ok(())
    }

    /// Everything becomes well; then the cluster must come to rest with every place filled.
    pub fn settle(&mut self) -> Result<(), String> {
        self.mood = Mood { fails_percent: 0, late_ms: 1, repeats_percent: 0 };
        for worker in self.workers.values_mut() {
            (worker.on, worker.connected) = (true, true);
        }
        let nodes: Vec<Node> = self.state.nodes().map(|node| Node::clone(node)).collect();
        for node in nodes {
            let spec = NodeSpec { availability: Availability::Active, ..node.spec };
            self.commit(vec![Write::UpdateNode { id: node.id, spec, expected: node.meta.version }])?;
        }
        let deadline = self.now.after(Duration::from_secs(3600));
        let mut quiet = 0;
        while quiet < 50 {
            let index = self.state.index;
            self.step()?;
            let rests = self.state.index == index && self.planner.wake_at().is_none();
            quiet = if rests { quiet + 1 } else { 0 };
            if self.now > deadline {
                let wakes = self.planner.wake_at();
                return Err(format!("no rest within an hour; {}; wakes {wakes:?}", self.unfinished()));
            }
        }
        match self.unfinished() {
            text if text.is_empty() => Ok(()),
            text => Err(text),
        }
    }

    fn is_newest(&self, task: &Task) -> bool {
        let age = |task: &Task| (task.meta.created_at, task.id);
        let of_place = self.state.tasks_of(task.service_id).filter(|other| other.name() == task.name());
        of_place.max_by_key(|other| age(other)).is_some_and(|newest| newest.id == task.id)
    }

    /// Whether a task ended by itself and its place is left at that.
    fn has_settled(&self, task: &Task) -> bool {
        matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
            && task.desired == TaskState::Shutdown
            && may_end(task)
            && self.is_newest(task)
    }

    /// What is not as it should be in a cluster at rest; empty if all is well.
    fn unfinished(&self) -> String {
        let mut wrong = Vec::new();
        for task in self.state.tasks() {
            let (state, desired) = (task.status.state, task.desired);
            if desired > TaskState::Running && !state.is_terminal() {
                wrong.push(format!("{} is {state} and should be {desired}", task.name()));
            }
            if self.state.service(task.service_id).is_none() {
                wrong.push(format!("{} has no service", task.name()));
            }
            // Of one that ended for good nothing is wanted, unless its place also holds a newer one.
            let may_rest = state.is_terminal() && may_end(task) && !self.is_newest(task);
            let explained = state < TaskState::Assigned && !task.status.error.is_empty();
            if desired <= TaskState::Running && state != TaskState::Running && !may_rest && !explained {
                let node = task.node_id.and_then(|id| self.state.node(id));
                let node = node.map(|node| (node.status.state, node.spec.availability));
                wrong.push(format!("{} rests as {state}, desired {desired}, on {node:?}", task.name()));
                for other in self.state.tasks_of(task.service_id).filter(|t| t.name() == task.name()) {
                    let (spec, status) = (other.spec_version, other.status.state);
                    wrong.push(format!(
                        "  beside {} of {spec}: {status}, desired {}",
                        other.id, other.desired
                    ));
                }
            }
        }
        for service in self.state.services() {
            let current: Vec<_> =
                self.state.tasks_of(service.id).filter(|t| t.desired <= TaskState::Running).collect();
            // A new task that failed for good leaves the old one in place.
            let waits = current
                .iter()
                .any(|task| task.status.state < TaskState::Assigned || task.status.state.is_terminal());
            match service.spec.mode {
                ServiceMode::Replicated { replicas } => {
                    let mut slots: std::collections::BTreeSet<u64> = current.iter().map(|t| t.slot).collect();
                    if current.len() > slots.len() && !waits {
                        wrong.push(format!("{} has {} tasks too many", service.spec.name, current.len()));
                    }
                    let tasks = self.state.tasks_of(service.id);
                    slots.extend(tasks.filter(|task| self.has_settled(task)).map(|task| task.slot));
                    if slots.len() as u64 != replicas {
                        wrong.push(format!("{} fills {slots:?} of {replicas} slots", service.spec.name));
                    }
                }
                ServiceMode::Global => {
                    let nodes: std::collections::BTreeSet<_> = current.iter().map(|t| t.node_id).collect();
                    if nodes.len() != current.len() && !waits {
                        wrong.push(format!("{} has two tasks on a node", service.spec.name));
                    }
                }
            }
            let state = service.update_status.as_ref().map(|status| status.state);
            let under_way = matches!(state, Some(UpdateState::Updating | UpdateState::RollbackStarted));
            if under_way && !waits {
                wrong.push(format!("{} rests amid an update", service.spec.name));
            }
        }
        wrong.join("; ")
    }
}

/// Whether the policy of a task lets it end for good.
fn may_end(task: &Task) -> bool {
    task.spec.restart.condition != RestartCondition::Any || task.spec.restart.max_attempts > 0
}
