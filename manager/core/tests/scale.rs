//! How the core scales. Figures mean something only in release builds:
//! `cargo test --release -p rswarm-core --test scale -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)] // The one place that measures real time.

use std::time::Instant;

use rswarm_core::{Command, Dirty, Planner, State, Write, apply, netmap, plan_all, scheduler};
use rswarm_types::node::{NodeNetworkFacts, Platform, Resources};
use rswarm_types::*;

fn id(kind: u8, n: u64) -> [u8; 16] {
    let mut bytes = [kind; 16];
    bytes[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes
}

fn commit(state: &mut State, at: Timestamp, writes: Vec<Write>) {
    let (next, result) = apply(state, Version(state.index.0 + 1), &Command { at, writes });
    result.unwrap();
    *state = next;
}

fn cluster(nodes: u64) -> State {
    let mut state = State::default();
    let nodes = (0..nodes).map(|n| {
        Write::CreateNode(Box::new(Node {
            id: NodeId::from_bytes(id(1, n)),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            role: Role::Worker,
            description: Some(NodeDescription {
                hostname: format!("host{n}"),
                platform: Platform { os: "linux".into(), architecture: "amd64".into() },
                resources: Resources { nano_cpus: 64_000_000_000, memory_bytes: 256 << 30 },
                network: NodeNetworkFacts {
                    data_path_addr: Some([192, 0, 2, 1].into()),
                    mtu: 1500,
                    ..NodeNetworkFacts::default()
                },
                ..NodeDescription::default()
            }),
            status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
            manager: None,
            role_since: Version::default(),
            number: 0,
        }))
    });
    commit(&mut state, Timestamp::from_millis(1), nodes.collect());
    state
}

fn add_service(state: &mut State, n: u64, replicas: u64) -> ServiceId {
    let mut task = TaskSpec::default();
    task.container.image = "image:1".into();
    task.reservations = Resources { nano_cpus: 1_000_000, memory_bytes: 16 << 20 };
    let spec = ServiceSpec {
        name: format!("service{n}"),
        labels: Labels::new(),
        mode: ServiceMode::Replicated { replicas },
        task,
        update: Default::default(),
        rollback: Default::default(),
        endpoint: Default::default(),
    };
    let id = ServiceId::from_bytes(id(2, n));
    commit(state, Timestamp::from_millis(2), vec![Write::CreateService { id, spec: Box::new(spec) }]);
    id
}

fn mint() -> impl FnMut() -> TaskId {
    let mut n = 0;
    move || {
        n += 1;
        TaskId::from_bytes(id(3, n))
    }
}

#[test]
#[ignore = "a benchmark"]
fn schedule_100_000_tasks_onto_5_000_nodes() {
    for services in [1, 1000] {
        let mut state = cluster(5000);
        let mut next = mint();
        let now = Timestamp::from_millis(3);
        for n in 0..services {
            let service = add_service(&mut state, n, 100_000 / services);
            let spec_version = state.service(service).unwrap().spec_version;
            let pending = |slot| {
                Write::CreateTask(rswarm_core::state::NewTask {
                    id: next(),
                    service_id: service,
                    spec_version,
                    slot,
                    node_id: None,
                    desired: TaskState::Running,
                    start_delay: Default::default(),
                    status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
                    networks: Vec::new(),
                })
            };
            let writes = (1..=100_000 / services).map(pending).collect();
            commit(&mut state, now, writes);
        }
        assert_eq!(state.task_count(), 100_000);
        let start = Instant::now();
        let plan = scheduler::plan(&state, now);
        let planned = start.elapsed();
        let command = plan.into_command(&state, now, &mut next);
        let (state, result) = apply(&state, Version(state.index.0 + 1), &command);
        let total = start.elapsed();
        result.unwrap();
        assert_eq!(state.waiting_tasks().count(), 0);
        println!(
            "100,000 tasks of {services} services onto 5,000 nodes: planned in {planned:.2?}, with apply {total:.2?}"
        );
    }
}

#[test]
#[ignore = "a benchmark"]
fn one_more_service_in_a_cluster_of_10_000_tasks() {
    let mut state = cluster(100);
    let (mut next, mut planner) = (mint(), Planner::default());
    let now = Timestamp::from_millis(5);
    for n in 0..200 {
        add_service(&mut state, n, 50);
    }
    let fill = |state: &mut State, planner: &mut Planner, next: &mut dyn FnMut() -> TaskId| {
        let plan = planner.plan(state, now);
        let command = plan.into_command(state, now, &mut || next());
        *state = apply(state, Version(state.index.0 + 1), &command).0;
        command.writes.len()
    };
    while fill(&mut state, &mut planner, &mut next) > 0 {}
    assert_eq!(state.task_count(), 10_000);
    let start = Instant::now();
    assert!(plan_all(&state, now, None).is_empty());
    println!("full pass over 10,000 settled tasks: {:.2?}", start.elapsed());
    add_service(&mut state, 1000, 3);
    let start = Instant::now();
    let writes = fill(&mut state, &mut planner, &mut next);
    println!(
        "service of 3 replicas in a cluster of 10,000 tasks: {:.2?} for {writes} writes",
        start.elapsed()
    );
    let before = state.clone();
    let report = TaskStatus { state: TaskState::Running, at: now, ..TaskStatus::default() };
    let task = state.tasks().find(|task| task.status.state == TaskState::Assigned).unwrap().id;
    commit(&mut state, now, vec![Write::SetTaskStatus { id: task, status: report }]);
    let start = Instant::now();
    let dirty = Dirty::between(&before, &state);
    let compared = start.elapsed();
    assert!(plan_all(&state, now, Some(&dirty)).is_empty());
    println!(
        "one status report among 10,000 tasks: compared in {compared:.2?}, planned {:.2?}",
        start.elapsed()
    );
}

#[test]
#[ignore = "a benchmark"]
fn one_endpoint_of_10_000_on_one_network() {
    let mut state = cluster(100);
    let now = Timestamp::from_millis(5);
    let network = |n, name: &str, ingress| {
        let mut spec = NetworkSpec::new(name, NetworkDriver::Overlay);
        (spec.ingress, spec.ipam.subnet) = (ingress, Some(format!("10.{n}.0.0/16").parse().unwrap()));
        let id = NetworkId::from_bytes(id(4, n));
        Write::CreateNetwork(Box::new(Network { id, meta: Meta::default(), spec, ipam: None, vni: None }))
    };
    commit(&mut state, now, vec![network(1, "ingress", true), network(2, "front", false)]);
    let (mut next, mut planner) = (mint(), Planner::default());
    for n in 0..1000 {
        let service = add_service(&mut state, n, 10);
        let held = state.service(service).unwrap();
        let (mut spec, expected) = (held.spec.clone(), held.meta.version);
        let network = NetworkId::from_bytes(id(4, 2));
        spec.task.networks = vec![rswarm_types::task::NetworkAttachment { network, aliases: vec![] }];
        let (spec, change) = (Box::new(spec), Default::default());
        commit(&mut state, now, vec![Write::UpdateService { id: service, spec, expected, change }]);
    }
    loop {
        let plan = planner.plan(&state, now);
        if plan.is_empty() {
            break;
        }
        let command = plan.into_command(&state, now, &mut next);
        state = apply(&state, Version(state.index.0 + 1), &command).0;
    }
    let node = NodeId::from_bytes(id(1, 0));
    let start = Instant::now();
    let full = netmap::full(&state, node);
    println!("the whole map of {} endpoints: {:.2?}", full.set.endpoints.len(), start.elapsed());
    assert_eq!((full.set.endpoints.len(), full.set.services.len()), (10_000, 1000));

    let task = state.tasks().nth(5000).unwrap().id;
    let before = state.clone();
    let status = TaskStatus { state: TaskState::Running, at: now, ..TaskStatus::default() };
    let start = Instant::now();
    commit(&mut state, now, vec![Write::SetTaskStatus { id: task, status }]);
    let applied = start.elapsed();
    let netmap::Concerned::Nodes(nodes) = netmap::concerned(&before, &state) else { panic!("not everyone") };
    let found = start.elapsed();
    let changes: Vec<_> = nodes.iter().map(|node| netmap::change(&before, &state, *node)).collect();
    println!(
        "one endpoint becomes ready: applied in {applied:.2?}, {} nodes concerned after {:.2?}, their changes {:.2?}",
        nodes.len(),
        found - applied,
        start.elapsed() - found
    );
    assert!(nodes.len() == 100 && changes.iter().all(|change| change.set.endpoints.len() == 1));
}
