//! The worker's session and event loop against a manager in name only, with containers in name only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_api::v1::manager_message::{self, Message as FromManager};
use rswarm_types::netmap::NetworkChange;
use rswarm_types::node::{TunnelKey, TunnelKeys};
use rswarm_types::service::Protocol;
use rswarm_types::{NodeDescription, NodeId, Role, Task, TaskState, Version};

use crate::testing::manager::{Behaviour, DEADLINE, Heard, Manager, assignments, id, task};
use crate::testing::{Fake, FakeExecutor, NEXT_KEY_AT};
use crate::{Counts, SessionState, Worker, WorkerParts};

struct Node {
    directory: tempfile::TempDir,
    executor: FakeExecutor,
}

impl Node {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), executor: FakeExecutor::default() }
    }

    async fn start(&self, managers: &[&str]) -> Worker {
        let parts = || WorkerParts {
            node_id: NodeId::from_bytes([8; 16]),
            node_description: NodeDescription { hostname: "box".to_owned(), ..NodeDescription::default() },
            managers: managers.iter().map(|&addr| addr.to_owned()).collect(),
            ledger: self.directory.path().join("ledger"),
            connect: Arc::new(|addr| {
                tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
            }),
            executor: Arc::new(self.executor.clone()),
        };
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            match Worker::start_with(parts()).await {
                Ok(worker) => return worker,
                // A worker that was dropped closes its ledger a moment later.
                Err(crate::WorkerError::Ledger(crate::LedgerError::Locked { .. }))
                    if tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test]
async fn tasks_run_and_their_end_is_told() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    let node = Node::new();
    *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[task(1), task(2)], &[])];
    let worker = node.start(&[&addr]).await;
    let both = |state| move |heard: &Heard| heard.last(1) == Some(state) && heard.last(2) == Some(state);
    manager.until("two running tasks", both(TaskState::Running)).await;
    let mut counts = worker.counts();
    let reached = counts.wait_for(|counts| *counts == Counts { held: 2, running: 2 });
    tokio::time::timeout(DEADLINE, reached).await.unwrap().unwrap();
    node.executor.end(id(1), 3);
    manager.until("the failure", |heard| heard.last(1) == Some(TaskState::Failed)).await;
    let stopped = Task { desired: TaskState::Shutdown, ..task(2) };
    manager.say(assignments(2, false, &[stopped], &[]));
    let heard = manager.until("the stop", |heard| heard.last(2) == Some(TaskState::Shutdown)).await;
    assert_eq!(heard.errors[&id(1)], "task: non-zero exit (3)");
    assert_eq!(heard.hostname, "box");
    for states in heard.statuses.values() {
        assert!(states.is_sorted(), "{states:?}");
    }
    assert!(node.executor.of(id(2)).is_some(), "a stopped container stays for its log");
    manager.say(assignments(3, false, &[], &[1, 2]));
    let mut containers = node.executor.containers.subscribe();
    tokio::time::timeout(DEADLINE, containers.wait_for(BTreeMap::is_empty)).await.unwrap().unwrap();
    manager.until("heartbeats", |heard| heard.heartbeats > 3).await;
}

#[tokio::test]
async fn the_leader_is_found_by_redirect_and_again_when_it_is_gone() {
    let (first, first_addr, _serving) = Manager::start(Behaviour::Lead).await;
    let (second, second_addr, _serving) = Manager::start(Behaviour::Redirect(first_addr.clone())).await;
    *first.greeting.lock().unwrap() = vec![
        FromManager::Cluster(manager_message::ClusterView {
            manager_addrs: vec![first_addr.clone(), second_addr.clone()],
            root_cert_pem: "PEM".to_owned(),
            role: v1::Role::Manager.into(),
            heartbeat_period_nanos: 30_000_000,
            renew_below: 4,
        }),
        assignments(1, true, &[task(1)], &[]),
    ];
    let node = Node::new();
    let worker = node.start(&[&second_addr]).await;
    first.until("the redirected worker", |heard| heard.last(1) == Some(TaskState::Running)).await;
    assert_eq!(
        *worker.session_state().borrow(),
        SessionState::Connected { leader: first_addr.clone(), warnings: vec!["odd".to_owned()] }
    );
    let view = worker.cluster_view().borrow().clone();
    assert_eq!((view.managers.len(), view.root_cert_pem.as_str()), (2, "PEM"));
    assert_eq!((view.role, view.renew_below), (Some(Role::Manager), Version(4)));

    *second.behaviour.lock().unwrap() = Behaviour::Lead;
    *first.behaviour.lock().unwrap() = Behaviour::Redirect(second_addr.clone());
    first.hang_up();
    let begun = std::time::Instant::now();
    let heard =
        second.until("the new leader's worker", |heard| heard.last(1) == Some(TaskState::Running)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    assert_eq!(heard.sessions, 1);
    // What the new leader does not know of, a stale one cannot take away.
    second.say(assignments(0, true, &[], &[]));
    second.say(assignments(2, false, &[task(2)], &[]));
    second.until("the second task", |heard| heard.last(2) == Some(TaskState::Running)).await;
    assert_eq!(node.executor.of(id(1)), Some(Fake::Running));
}

#[tokio::test]
async fn what_is_not_acknowledged_is_told_to_the_next_session() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[task(1)], &[])];
    let node = Node::new();
    let _worker = node.start(&[&addr]).await;
    let heard = manager.until("a running task", |heard| heard.last(1) == Some(TaskState::Running)).await;
    let told = heard.statuses[&id(1)].len();
    manager.greeting.lock().unwrap().clear();
    manager.hang_up();
    let again = |heard: &Heard| heard.sessions == 2 && heard.statuses[&id(1)].len() == told + 1;
    let heard = manager.until("the repetition", again).await;
    manager.say(FromManager::StatusesAcknowledged(heard.sequence));
    manager.say(assignments(2, false, &[task(2)], &[]));
    manager.until("the second task", |heard| heard.last(2) == Some(TaskState::Running)).await;
    manager.hang_up();
    let heard = manager
        .until("the third session", |heard| heard.sessions == 3 && heard.statuses[&id(2)].len() > 1)
        .await;
    assert_eq!(heard.statuses[&id(1)].len(), told + 1, "acknowledged, hence not repeated");
}

#[tokio::test]
async fn a_new_worker_goes_on_with_no_manager() {
    let (manager, addr, serving) = Manager::start(Behaviour::Lead).await;
    *manager.greeting.lock().unwrap() = vec![assignments(7, true, &[task(1), task(2)], &[])];
    let node = Node::new();
    let worker = node.start(&[&addr]).await;
    let both = |heard: &Heard| [1, 2].iter().all(|&n| heard.last(n) == Some(TaskState::Running));
    manager.until("two running tasks", both).await;
    serving.abort();
    drop(worker);
    node.executor.end(id(2), 5);
    let stray = id(9);
    node.executor.containers.send_modify(|containers| {
        containers.insert(stray, Fake::Running);
    });

    let worker = node.start(&["127.0.0.1:1"]).await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let tasks = worker.tasks().await.unwrap();
        let states: Vec<_> = tasks.iter().map(|(_, status)| status.state).collect();
        if states == [TaskState::Running, TaskState::Failed] {
            let exit_code = tasks[1].1.container.as_ref().unwrap().exit_code;
            assert_eq!(exit_code, Some(5));
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{states:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let SessionState::Searching { reason } = worker.session_state().borrow().clone() else {
        panic!("there is no manager")
    };
    assert!(!reason.is_empty());
    worker.shutdown().await;

    // Back with a manager: what happened meanwhile is told, and what belongs to nobody goes.
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    *manager.greeting.lock().unwrap() = vec![assignments(7, true, &[task(1), task(2)], &[])];
    let _worker = node.start(&[&addr]).await;
    manager.until("the failure", |heard| heard.last(2) == Some(TaskState::Failed)).await;
    let mut containers = node.executor.containers.subscribe();
    let gone = containers.wait_for(|containers| !containers.contains_key(&stray));
    tokio::time::timeout(DEADLINE, gone).await.unwrap().unwrap();
    assert_eq!(node.executor.of(id(1)), Some(Fake::Running));
}

#[tokio::test]
async fn an_unreadable_task_is_rejected_by_name() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    let mut wire = v1::Task::from(&task(1));
    wire.desired = 4711;
    let message =
        manager_message::Assignments { index: 1, full: true, tasks: vec![wire], ..Default::default() };
    *manager.greeting.lock().unwrap() = vec![FromManager::Assignments(message)];
    let node = Node::new();
    let _worker = node.start(&[&addr]).await;
    let heard = manager.until("the rejection", |heard| heard.last(1) == Some(TaskState::Rejected)).await;
    assert!(heard.errors[&id(1)].contains("cannot read the task"), "{:?}", heard.errors);
}

#[tokio::test]
async fn logs_go_to_whoever_asked_until_it_has_enough() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[task(1), task(2)], &[])];
    let node = Node::new();
    let _worker = node.start(&[&addr]).await;
    let both = |heard: &Heard| [1, 2].iter().all(|&n| heard.last(n) == Some(TaskState::Running));
    manager.until("two running tasks", both).await;
    let subscribe = |name: &str, tasks: &[u8], follow, tail| {
        manager.say(FromManager::SubscribeLogs(v1::LogSubscription {
            id: name.to_owned(),
            task_ids: tasks.iter().map(|&n| id(n).to_string()).collect(),
            follow,
            since_at: 0,
            tail,
        }));
    };
    subscribe("all", &[1, 2, 3], false, Some(2));
    let heard =
        manager.until("the end of the log", |heard| heard.logs_ended.contains(&"all".to_owned())).await;
    let mut lines = heard.logs["all"].clone();
    lines.sort();
    assert_eq!(lines, ["web.1 line 4", "web.1 line 5", "web.2 line 4", "web.2 line 5"]);

    subscribe("follow", &[1], true, None);
    subscribe("dropped", &[2], true, None);
    let five = |name: &str, heard: &Heard| heard.logs.get(name).is_some_and(|lines| lines.len() == 5);
    manager.until("both logs", |heard| five("follow", heard) && five("dropped", heard)).await;
    manager.say(FromManager::UnsubscribeLogs("dropped".to_owned()));
    manager
        .until("the end of the dropped log", |heard| heard.logs_ended.contains(&"dropped".to_owned()))
        .await;
    node.executor.end(id(1), 0);
    let heard = manager.until("the rest", |heard| heard.logs_ended.contains(&"follow".to_owned())).await;
    assert_eq!(heard.logs["follow"].last().unwrap(), "web.1 line 6");
    assert_eq!(heard.logs["dropped"].len(), 5);
    // A task that is not here has no log, and that is no fault.
    subscribe("nothing", &[3], true, None);
    let heard = manager.until("nothing", |heard| heard.logs_ended.contains(&"nothing".to_owned())).await;
    assert_eq!(heard.logs["nothing"], Vec::<String>::new());
}

#[tokio::test]
async fn a_leader_that_asks_is_told_what_the_node_finds_of_its_networks() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    let node = Node::new();
    let _worker = node.start(&[&addr]).await;
    manager.until("a session", |heard| heard.heartbeats > 0).await;
    manager.say(FromManager::CheckNetwork(v1::manager_message::CheckNetwork {}));
    let heard = manager.until("the answer", |heard| !heard.checks.is_empty()).await;
    assert_eq!(heard.checks[0].mended, 7);
    // Unasked it says which published ports others have taken, as soon as the network was looked at.
    node.executor.ports_in_use.lock().unwrap().insert((Protocol::Tcp, 8080));
    let change = NetworkChange { full: true, ..NetworkChange::default() };
    manager.say(FromManager::Assignments(v1::manager_message::Assignments {
        index: 1,
        full: true,
        network: Some((&change).into()),
        ..Default::default()
    }));
    manager.until("the port in use", |heard| heard.ports_in_use == [8080]).await;
}

#[tokio::test]
async fn a_key_is_told_from_the_first_word_on_and_the_next_is_used_once_all_nodes_have_it() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    let node = Node::new();
    let (first, second) = (TunnelKey([1; 32]), TunnelKey([2; 32]));
    let keys = |place, current, next| TunnelKeys { place, current, next };
    let wire = |keys: TunnelKeys| Some(v1::TunnelKeys::from(&keys));
    *node.executor.tunnel.lock().unwrap() = Some(keys(0, first, None));
    let _worker = node.start(&[&addr]).await;
    let heard = manager.until("a session", |heard| heard.heartbeats > 0).await;
    assert_eq!(heard.tunnel, wire(keys(0, first, None)));

    let both = keys(0, first, Some(second));
    *node.executor.tunnel.lock().unwrap() = Some(both);
    let change = NetworkChange { full: true, ..NetworkChange::default() };
    manager.say(FromManager::Assignments(v1::manager_message::Assignments {
        index: 1,
        full: true,
        network: Some((&change).into()),
        ..Default::default()
    }));
    manager.until("both keys", |heard| heard.tunnel == wire(both)).await;
    manager.until("a question", |heard| heard.awaited.contains(&NEXT_KEY_AT.0)).await;
    manager.say(FromManager::NetworkSettled(NEXT_KEY_AT.0 - 1));
    manager.say(FromManager::NetworkSettled(NEXT_KEY_AT.0));
    manager.until("the change", |heard| heard.tunnel == wire(keys(1, second, None))).await;
}

#[tokio::test]
async fn leaving_ends_and_removes_everything_with_force_if_need_be() {
    let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
    *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[task(1), task(2)], &[])];
    let node = Node::new();
    node.executor.stubborn.lock().unwrap().insert(id(2));
    let worker = node.start(&[&addr]).await;
    let both = |heard: &Heard| [1, 2].iter().all(|&n| heard.last(n) == Some(TaskState::Running));
    manager.until("two running tasks", both).await;
    worker.remove_everything(Duration::from_millis(50)).await.unwrap();
    assert!(node.executor.containers.borrow().is_empty());
    assert!(!node.directory.path().join("ledger").exists());
}
