use rswarm_types::task::{RegistryAuth, RegistrySecret};

use super::*;
use crate::executor::{Exit, FailureKind, FoundState};
use crate::testing::{id, task};

const NOW: Timestamp = Timestamp(1_000_000_000_000);

fn full(index: u64, tasks: &[u8]) -> Input {
    let tasks = tasks.iter().map(|&n| task(n)).collect();
    Input::Assignments(Assignments { index, full: true, tasks, ..Assignments::default() })
}

fn change(index: u64, tasks: Vec<Task>, removed: &[u8]) -> Input {
    let removed = removed.iter().map(|&n| id(n)).collect();
    Input::Assignments(Assignments { index, full: false, tasks, removed, ..Assignments::default() })
}

/// What an agent wants, in words: `prepare 1`, `save 1`, `send 1=preparing`.
fn shown(outputs: &[Output]) -> Vec<String> {
    let n = |id: &TaskId| id.to_bytes()[0];
    outputs
        .iter()
        .map(|output| match output {
            Output::Perform { task, operation, .. } => {
                format!("{} {}", format!("{operation:?}").to_lowercase(), n(&task.id))
            }
            Output::Discard(id) => format!("discard {}", n(id)),
            Output::Save(id) => format!("save {}", n(id)),
            Output::Forget(id) => format!("forget {}", n(id)),
            Output::SaveIndex(index) => format!("index {index}"),
            Output::SetNetwork(map) => format!("network {}", map.index),
            Output::AskSettled(index) => format!("settled {index}?"),
            Output::Send { updates, .. } => {
                let updates: Vec<_> =
                    updates.iter().map(|(id, status)| format!("{}={}", n(id), status.state)).collect();
                format!("send {}", updates.join(" "))
            }
            Output::Stale { index, seen } => format!("stale {index} < {seen}"),
        })
        .collect()
}

/// An agent, and the attempts it asked for.
struct Harness {
    agent: Agent,
    attempts: BTreeMap<(TaskId, Operation), u64>,
    now: Timestamp,
}

impl Harness {
    fn new() -> Self {
        let (agent, outputs) = Agent::restore(vec![], 0, NetworkMap::default(), vec![], NOW);
        assert_eq!(outputs, []);
        Self { agent, attempts: BTreeMap::new(), now: NOW }
    }

    fn take(&mut self, outputs: &[Output]) -> Vec<String> {
        for output in outputs {
            if let Output::Perform { task, operation, attempt } = output {
                self.attempts.insert((task.id, *operation), *attempt);
            }
        }
        shown(outputs)
    }

    fn check(&mut self, input: Input, expected: &[&str]) {
        let what = format!("{input:?}");
        let outputs = self.agent.handle(input, self.now);
        let found = self.take(&outputs);
        assert_eq!(found, expected, "after {what}");
    }

    fn done(&mut self, n: u8, operation: Operation, result: Result<Done, Failure>, expected: &[&str]) {
        let attempt = self.attempts[&(id(n), operation)];
        self.check(Input::Finished { task: id(n), attempt, operation, result }, expected);
    }

    fn run(&mut self, n: u8) {
        self.agent.handle(full(1, &[n]), self.now);
        for (operation, result) in [
            (Operation::Prepare, Done::Prepared),
            (Operation::Start, Done::Started { pid: Some(1), ports: vec![] }),
        ] {
            let attempt = self.agent.tasks[&id(n)].busy.unwrap().1;
            let outputs = self
                .agent
                .handle(Input::Finished { task: id(n), attempt, operation, result: Ok(result) }, self.now);
            self.take(&outputs);
        }
        assert_eq!(self.agent.tasks[&id(n)].status.state, TaskState::Running);
    }
}

#[test]
fn a_task_goes_its_way_and_each_step_is_told() {
    let mut h = Harness::new();
    h.check(Input::Connected, &[]);
    h.check(full(5, &[1]), &["index 5", "save 1", "prepare 1", "send 1=preparing"]);
    h.done(1, Operation::Prepare, Ok(Done::Prepared), &["start 1", "send 1=starting"]);
    let started = Done::Started { pid: Some(7), ports: vec![] };
    h.done(1, Operation::Start, Ok(started), &["save 1", "wait 1", "send 1=running"]);
    let exit = Exit { code: 0, oom_killed: false, at: NOW };
    h.done(1, Operation::Wait, Ok(Done::Ended(Some(exit))), &["save 1", "send 1=complete"]);
    h.check(change(6, vec![], &[1]), &["index 6", "save 1", "remove 1"]);
    h.done(1, Operation::Remove, Ok(Done::Removed), &["forget 1"]);
    assert_eq!(h.agent.counts(), Counts::default());
}

#[test]
fn a_settled_agent_wants_nothing() {
    let mut h = Harness::new();
    h.run(1);
    h.check(full(1, &[1]), &[]);
    h.check(Input::Tick, &[]);
    assert_eq!(h.agent.wake_at(), None);
    // A later state of the cluster that changes nothing here is no reason to do anything.
    h.check(change(2, vec![], &[]), &[]);
}

#[test]
fn an_older_index_is_ignored() {
    let mut h = Harness::new();
    h.run(1);
    h.check(change(9, vec![task(2)], &[]), &["index 9", "save 2", "prepare 2"]);
    h.check(full(8, &[]), &["stale 8 < 9"]);
    h.check(change(8, vec![], &[1, 2]), &["stale 8 < 9"]);
    assert_eq!(h.agent.counts().held, 2);
    // Also by the next daemon, which knows the index from the ledger.
    let entries = [1, 2].map(|n| h.agent.entry(id(n)).unwrap()).to_vec();
    let (agent, _) = Agent::restore(entries, 9, NetworkMap::default(), vec![], NOW);
    h.agent = agent;
    h.check(full(8, &[]), &["stale 8 < 9"]);
}

#[test]
fn what_a_full_set_leaves_out_is_stopped_then_removed() {
    let mut h = Harness::new();
    h.run(1);
    h.check(full(2, &[]), &["index 2", "save 1", "shutdown 1"]);
    h.done(1, Operation::Shutdown, Ok(Done::Ended(None)), &["save 1", "remove 1"]);
    h.done(1, Operation::Remove, Ok(Done::Removed), &["forget 1"]);
}

#[test]
fn a_stop_supersedes_a_preparation_and_its_late_result_is_ignored() {
    let mut h = Harness::new();
    h.check(full(1, &[1]), &["index 1", "save 1", "prepare 1"]);
    let stopped = Task { desired: TaskState::Shutdown, ..task(1) };
    h.check(change(2, vec![stopped], &[]), &["index 2", "save 1", "shutdown 1"]);
    h.done(1, Operation::Prepare, Ok(Done::Prepared), &[]);
    h.done(1, Operation::Shutdown, Ok(Done::Ended(None)), &["save 1"]);
    assert_eq!(h.agent.entry(id(1)).unwrap().status.state, TaskState::Shutdown);
}

#[test]
fn a_parked_task_waits_for_leave_to_start() {
    let mut h = Harness::new();
    let parked = Task { desired: TaskState::Ready, ..task(1) };
    h.check(change(1, vec![parked], &[]), &["index 1", "save 1", "prepare 1"]);
    h.done(1, Operation::Prepare, Ok(Done::Prepared), &[]);
    h.check(change(2, vec![task(1)], &[]), &["index 2", "save 1", "start 1"]);
}

#[test]
fn statuses_are_told_until_acknowledged() {
    let mut h = Harness::new();
    h.run(1);
    h.check(Input::Connected, &["send 1=running"]);
    h.check(Input::Disconnected, &[]);
    h.check(Input::Connected, &["send 1=running"]);
    // An acknowledgement of the first message says nothing of the second.
    h.check(Input::Acknowledged(1), &[]);
    h.check(Input::Disconnected, &[]);
    h.check(Input::Connected, &["send 1=running"]);
    h.check(Input::Acknowledged(3), &[]);
    h.check(Input::Disconnected, &[]);
    h.check(Input::Connected, &[]);
    // A leader that lost it is told again.
    h.check(full(2, &[1]), &["index 2", "send 1=running"]);
}

#[test]
fn while_nobody_listens_only_the_last_status_is_kept() {
    let mut h = Harness::new();
    h.run(1);
    let exit = Exit { code: 1, oom_killed: false, at: NOW };
    h.done(1, Operation::Wait, Ok(Done::Ended(Some(exit))), &["save 1"]);
    h.check(Input::Connected, &["send 1=failed"]);
}

#[test]
fn a_passing_failure_is_tried_again_in_time() {
    let mut h = Harness::new();
    h.check(full(1, &[1]), &["index 1", "save 1", "prepare 1"]);
    let failure = Failure { text: "busy".to_owned(), kind: FailureKind::Temporary };
    h.done(1, Operation::Prepare, Err(failure), &[]);
    let at = NOW.after(task::RETRY_DELAY);
    assert_eq!(h.agent.wake_at(), Some(at));
    h.check(Input::Tick, &[]);
    h.now = at;
    h.check(Input::Tick, &["prepare 1"]);
    assert_eq!(h.agent.wake_at(), None);
}

#[test]
fn progress_is_shown_while_preparing_and_not_after() {
    let mut h = Harness::new();
    h.check(full(1, &[1]), &["index 1", "save 1", "prepare 1"]);
    let attempt = h.attempts[&(id(1), Operation::Prepare)];
    let progress = |message: &str| Input::Progress { task: id(1), attempt, message: message.to_owned() };
    h.check(Input::Connected, &["send 1=preparing"]);
    h.check(progress("preparing: 50 %"), &["send 1=preparing"]);
    assert_eq!(h.agent.entry(id(1)).unwrap().status.message, "preparing: 50 %");
    h.done(1, Operation::Prepare, Ok(Done::Prepared), &["start 1", "send 1=starting"]);
    h.check(progress("preparing: 60 %"), &[]);
}

#[test]
fn a_new_daemon_takes_up_what_it_finds() {
    let entry = |n, state| Entry {
        task: task(n),
        status: TaskStatus { state, ..TaskStatus::default() },
        assigned: true,
    };
    let found = |n, state| Found { task: id(n), state, ports: vec![] };
    let entries = vec![
        entry(1, TaskState::Accepted),
        entry(2, TaskState::Running),
        entry(3, TaskState::Running),
        entry(4, TaskState::Complete),
        Entry { assigned: false, ..entry(5, TaskState::Running) },
    ];
    let running = FoundState::Running { pid: 7 };
    let found = vec![
        found(1, running),
        found(2, FoundState::Ended),
        found(4, FoundState::Ended),
        found(5, running),
        found(6, running),
        found(7, running),
    ];
    let (agent, outputs) = Agent::restore(entries, 3, NetworkMap::default(), found, NOW);
    assert_eq!(shown(&outputs), ["connect 1", "connect 2", "shutdown 5"]);
    let mut h = Harness { agent, attempts: BTreeMap::new(), now: NOW };
    assert_eq!(h.agent.entry(id(3)).unwrap().status.state, TaskState::Failed, "its container is gone");
    // Nothing is taken from a container that the ledger lost until a manager has said what is assigned.
    h.check(Input::Connected, &["send 1=running 2=running 3=failed 4=complete 5=running"]);
    h.check(full(3, &[1, 2, 3, 4, 6]), &["discard 7", "save 6", "connect 6", "send 6=running"]);
}

#[test]
fn a_running_task_that_left_no_trace_here_has_failed() {
    let mut h = Harness::new();
    let mut lost = task(1);
    lost.status.state = TaskState::Running;
    h.check(Input::Connected, &[]);
    h.check(change(1, vec![lost], &[]), &["index 1", "save 1", "send 1=failed"]);
}

#[test]
fn an_unreadable_task_keeps_what_it_has() {
    let mut h = Harness::new();
    h.run(1);
    let assignments = Assignments { index: 2, full: true, unreadable: vec![id(1)], ..Assignments::default() };
    h.check(Input::Assignments(assignments), &["index 2"]);
}

#[test]
fn leaving_ends_everything() {
    let mut h = Harness::new();
    h.run(1);
    h.agent.strays.insert(id(9), Found { task: id(9), state: FoundState::Broken, ports: vec![] });
    h.check(Input::Leave, &["save 1", "discard 9", "shutdown 1"]);
    h.done(1, Operation::Shutdown, Ok(Done::Ended(None)), &["save 1", "remove 1"]);
    h.done(1, Operation::Remove, Ok(Done::Removed), &["forget 1"]);
}

#[test]
fn a_credential_is_not_written_down_and_is_learned_again_after_a_restart() {
    let secret = RegistrySecret::RegistryToken("s3cr3t".to_owned());
    let with_secret = |index, full| {
        let mut task = task(1);
        let auth = RegistryAuth { registry: "r".to_owned(), secret: secret.clone() };
        Arc::make_mut(&mut task.spec).container.registry_auth = Some(auth);
        Input::Assignments(Assignments { index, full, tasks: vec![task], ..Assignments::default() })
    };
    let secret_of = |agent: &Agent| {
        let auth = agent.task(id(1)).unwrap().spec.container.registry_auth.clone();
        auth.map(|auth| auth.secret)
    };
    let mut h = Harness::new();
    h.check(with_secret(1, true), &["index 1", "save 1", "prepare 1"]);
    assert_eq!(secret_of(&h.agent), Some(secret.clone()));
    let entry = h.agent.entry(id(1)).unwrap();
    let written = serde_json::to_string(&entry).unwrap();
    assert!(!written.contains("s3cr3t"), "{written}");

    let (agent, outputs) = Agent::restore(vec![entry], 1, NetworkMap::default(), vec![], NOW);
    let mut h = Harness { agent, attempts: BTreeMap::new(), now: NOW };
    assert_eq!(h.take(&outputs), ["prepare 1"]);
    assert_eq!(secret_of(&h.agent), Some(RegistrySecret::Withheld));
    let awaited = Failure { text: "waiting".to_owned(), kind: FailureKind::Temporary };
    h.done(1, Operation::Prepare, Err(awaited), &[]);
    h.check(with_secret(1, true), &["save 1"]);
    assert_eq!(secret_of(&h.agent), Some(secret.clone()));
    h.now = h.now.after(task::RETRY_DELAY);
    h.check(Input::Tick, &["prepare 1"]);
}

#[test]
fn a_task_on_an_overlay_is_stopped_once_no_node_sends_it_connections() {
    let on_overlay = |desired| {
        let network = rswarm_types::task::TaskNetwork {
            network: rswarm_types::NetworkId::from_bytes([1; 16]),
            name: "front".to_owned(),
            driver: NetworkDriver::Overlay,
            address: None,
            aliases: vec![],
            internal: false,
            mtu: None,
            bridge: rswarm_types::network::BridgeOptions::default(),
            joined: false,
        };
        Task { desired, networks: vec![network], ..task(1) }
    };
    let stop = || change(2, vec![on_overlay(TaskState::Shutdown)], &[]);
    let running = || {
        let mut h = Harness::new();
        let begin = change(1, vec![on_overlay(TaskState::Running)], &[]);
        h.check(begin, &["index 1", "save 1", "prepare 1"]);
        h.done(1, Operation::Prepare, Ok(Done::Prepared), &["start 1"]);
        h.done(1, Operation::Start, Ok(Done::Started { pid: None, ports: vec![] }), &["save 1", "wait 1"]);
        h.check(stop(), &["index 2", "settled 2?", "save 1"]);
        h
    };
    let mut h = running();
    h.check(Input::Settled(1), &[]);
    h.check(Input::Settled(2), &[]);
    h.now = h.agent.wake_at().unwrap();
    assert_eq!(h.now, NOW.after(task::LINGER));
    h.check(Input::Tick, &["shutdown 1"]);

    let mut h = running();
    let until = h.agent.wake_at().unwrap();
    assert_eq!(until, NOW.after(task::DRAIN_MAX));
    h.now = until;
    h.check(Input::Tick, &["shutdown 1"]);
    assert_eq!(h.agent.wake_at(), None);

    // One that ends meanwhile needs no more of it.
    let mut h = running();
    let exit = Exit { code: 0, oom_killed: false, at: NOW };
    h.done(1, Operation::Wait, Ok(Done::Ended(Some(exit))), &["save 1"]);
    h.check(Input::Settled(2), &[]);
}

#[test]
fn a_running_task_is_connected_to_what_it_is_given_and_tried_again() {
    let on = |networks: &[u8]| {
        let network = |n: &u8| rswarm_types::task::TaskNetwork {
            network: rswarm_types::NetworkId::from_bytes([*n; 16]),
            name: format!("n{n}"),
            driver: NetworkDriver::Bridge,
            address: None,
            aliases: vec![],
            internal: false,
            mtu: None,
            bridge: rswarm_types::network::BridgeOptions::default(),
            joined: true,
        };
        Task { desired: TaskState::Running, networks: networks.iter().map(network).collect(), ..task(1) }
    };
    let mut h = Harness::new();
    h.check(change(1, vec![on(&[])], &[]), &["index 1", "save 1", "prepare 1"]);
    h.done(1, Operation::Prepare, Ok(Done::Prepared), &["start 1"]);
    // Heard of while it starts: what `start` was asked for had none.
    h.check(change(2, vec![on(&[1])], &[]), &["index 2", "save 1"]);
    let started = Done::Started { pid: None, ports: vec![] };
    h.done(1, Operation::Start, Ok(started), &["save 1", "connect 1"]);
    // And another while it is connected.
    h.check(change(3, vec![on(&[1, 2])], &[]), &["index 3", "save 1"]);
    h.done(1, Operation::Connect, Ok(Done::Connected), &["connect 1"]);
    let failure = Failure { text: "no room".to_owned(), kind: FailureKind::Final };
    h.done(1, Operation::Connect, Err(failure), &["wait 1"]);
    assert_eq!(h.agent.tasks().next().unwrap().1.error, "no room");
    h.now = h.agent.wake_at().unwrap();
    assert_eq!(h.now, NOW.after(task::RETRY_DELAY));
    h.check(Input::Tick, &["connect 1"]);
    h.done(1, Operation::Connect, Ok(Done::Connected), &["save 1", "wait 1"]);
    assert_eq!((h.agent.wake_at(), h.agent.tasks().next().unwrap().1.error.as_str()), (None, ""));
    // The next daemon does not know how far this one came.
    let (entry, running) = (h.agent.entry(id(1)).unwrap(), FoundState::Running { pid: 7 });
    let found = Found { task: id(1), state: running, ports: vec![] };
    let (agent, outputs) = Agent::restore(vec![entry], 3, NetworkMap::default(), vec![found], NOW);
    let mut h = Harness { agent, attempts: BTreeMap::new(), now: NOW };
    assert_eq!(h.take(&outputs), ["connect 1"]);
    h.done(1, Operation::Connect, Ok(Done::Connected), &["wait 1"]);
}

#[test]
fn the_network_is_set_before_what_needs_it() {
    let mut h = Harness::new();
    let network = NetworkChange {
        index: rswarm_types::Version(4),
        full: true,
        set: NetworkMap { data_path_port: 4789, ..NetworkMap::default() },
        ..NetworkChange::default()
    };
    let assignments = Assignments { index: 4, full: true, tasks: vec![task(1)], ..Assignments::default() };
    let assignments = Assignments { network: Some(Box::new(network)), ..assignments };
    h.check(Input::Assignments(assignments), &["index 4", "network 4", "save 1", "prepare 1"]);
}
