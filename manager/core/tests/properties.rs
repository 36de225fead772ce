//! Properties of `apply` over all inputs: the order of reports does not matter, nothing makes a check fail, and a
//! refused command changes nothing.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rswarm_core::state::NewTask;
use rswarm_core::{Command, State, Write, apply};
use rswarm_types::*;

const TASKS: u8 = 4;

fn task(n: u8) -> TaskId {
    TaskId::from_bytes([n; 16])
}

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn commit(state: &State, writes: Vec<Write>) -> State {
    let at = Timestamp::from_millis(100);
    let (next, result) = apply(state, Version(state.index.0 + 1), &Command { at, writes });
    result.unwrap();
    next
}

/// Two ready nodes, one service, and four of its tasks: new, pending, and two assigned.
fn start() -> State {
    let mut writes: Vec<Write> = (1..=2)
        .map(|n| {
            Write::CreateNode(Box::new(Node {
                id: node(n),
                meta: Meta::default(),
                spec: NodeSpec::default(),
                role: Role::Worker,
                description: Some(NodeDescription::default()),
                status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
                manager: None,
                role_since: Version::default(),
                number: 0,
            }))
        })
        .collect();
    let service = ServiceId::from_bytes([1; 16]);
    let mode = ServiceMode::Replicated { replicas: 4 };
    let spec = ServiceSpec {
        name: "web".into(),
        labels: Labels::new(),
        mode,
        task: TaskSpec::default(),
        update: Default::default(),
        rollback: Default::default(),
        endpoint: Default::default(),
    };
    writes.push(Write::CreateService { id: service, spec: Box::new(spec) });
    let state = commit(&State::default(), writes);
    let states = [TaskState::New, TaskState::Pending, TaskState::Assigned, TaskState::Assigned];
    let tasks = states.into_iter().zip(1..).map(|(state, n)| {
        Write::CreateTask(NewTask {
            id: task(n),
            service_id: service,
            spec_version: Version(1),
            slot: n.into(),
            node_id: (state == TaskState::Assigned).then_some(node(1)),
            desired: TaskState::Running,
            start_delay: Default::default(),
            status: TaskStatus { state, ..TaskStatus::default() },
            networks: Vec::new(),
        })
    });
    commit(&state, tasks.collect())
}

fn any_state() -> impl Strategy<Value = TaskState> {
    (0..TaskState::ALL.len()).prop_map(|n| TaskState::ALL[n])
}

/// What workers and control loops write about tasks, in any mixture.
fn any_write() -> impl Strategy<Value = Write> {
    let id = (1..=TASKS).prop_map(task);
    prop_oneof![
        (id.clone(), any_state()).prop_map(|(id, desired)| Write::SetTaskDesired { id, desired }),
        (id.clone(), any_state(), 0..200u64).prop_map(|(id, state, at)| {
            let at = Timestamp::from_millis(at);
            Write::SetTaskStatus { id, status: TaskStatus { state, at, ..TaskStatus::default() } }
        }),
        (id.clone(), 1..=3u8).prop_map(|(id, n)| Write::AssignTask { id, node: node(n) }),
        id.clone().prop_map(|id| Write::AllocateTask { id, networks: Vec::new() }),
        id.prop_map(|id| Write::RemoveTask { id }),
        (1..=2u8, any::<bool>()).prop_map(|(n, force)| Write::RemoveNode { id: node(n), force }),
    ]
}

proptest! {
    #[test]
    fn reports_of_one_worker_may_arrive_in_any_order(
        reports in proptest::collection::vec((any_state(), 0..200u64), 1..8),
        order in any::<u64>(),
    ) {
        // A worker reports one terminal state at most; which of two would win is no question.
        let mut ended = false;
        let mut reports = reports;
        reports.retain(|(state, _)| !state.is_terminal() || !std::mem::replace(&mut ended, true));
        let write = |(state, at): &(TaskState, u64)| {
            let at = Timestamp::from_millis(*at);
            let status = TaskStatus { state: *state, at, ..TaskStatus::default() };
            vec![Write::SetTaskStatus { id: task(3), status }]
        };
        let in_order = reports.iter().fold(start(), |state, report| commit(&state, write(report)));
        let mut shuffled = reports.clone();
        let mut seed = order;
        for i in (1..shuffled.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let out_of_order = shuffled.iter().fold(start(), |state, report| commit(&state, write(report)));
        let seen = |state: &State| state.task(task(3)).map(|t| (t.status.state, t.status.at)).unwrap();
        prop_assert_eq!(seen(&in_order), seen(&out_of_order));
    }

    #[test]
    fn no_sequence_of_writes_breaks_an_invariant(
        commands in proptest::collection::vec(proptest::collection::vec(any_write(), 1..4), 1..20),
    ) {
        let mut state = start();
        for writes in commands {
            let command = Command { at: Timestamp::from_millis(150), writes };
            let (next, result) = apply(&state, Version(state.index.0 + 1), &command);
            prop_assert_eq!(next.check(), vec![]);
            if result.is_err() {
                let mut unchanged = state.clone();
                unchanged.index = next.index;
                prop_assert!(unchanged == next, "a refused command changed the state");
            }
            for old in state.tasks() {
                let Some(new) = next.task(old.id) else { continue };
                prop_assert!(new.status.state >= old.status.state && new.desired >= old.desired);
                prop_assert!(old.node_id.is_none() || old.node_id == new.node_id);
            }
            state = next;
        }
    }
}
