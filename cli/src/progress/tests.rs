use std::sync::Arc;

use rswarm_types::service::{EndpointSpec, UpdateConfig};
use rswarm_types::task::{PlacementFilter, TaskSpec, TaskStatus, Unplaced};
use rswarm_types::{Meta, NodeSpec, Role, ServiceId, ServiceSpec, Timestamp, Version};

use super::*;

const SERVICE: ServiceId = ServiceId::from_bytes([1; 16]);

fn node_id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn service(mode: ServiceMode) -> Service {
    Service {
        id: SERVICE,
        meta: Meta::default(),
        spec: ServiceSpec {
            name: "web".to_owned(),
            labels: rswarm_types::Labels::new(),
            mode,
            task: TaskSpec::default(),
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec::default(),
        },
        previous_spec: None,
        spec_version: Version(2),
        update_status: None,
        endpoint: Default::default(),
    }
}

/// A task by its number, place, node (0 is none), desired and observed state.
fn task(number: u8, slot: u64, node: u8, desired: TaskState, state: TaskState) -> Task {
    Task {
        id: TaskId::from_bytes([number; 16]),
        meta: Meta { created_at: Timestamp(u64::from(number)), ..Meta::default() },
        service_id: SERVICE,
        slot,
        node_id: (node != 0).then(|| node_id(node)),
        spec: Arc::new(TaskSpec::default()),
        spec_version: Version(2),
        service_name: "web".to_owned(),
        service_labels: rswarm_types::Labels::new(),
        ports: Vec::new(),
        desired,
        start_delay: Duration::ZERO,
        status: TaskStatus { state, ..TaskStatus::default() },
        networks: Vec::new(),
    }
}

fn node(number: u8, state: NodeState) -> Node {
    Node {
        id: node_id(number),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        role: Role::Worker,
        description: None,
        status: rswarm_types::NodeStatus { state, ..Default::default() },
        manager: None,
        role_since: Version::default(),
        number: 0,
    }
}

/// Every task is from the present spec, every node is ready.
fn snapshot(replicas: u64, tasks: Vec<Task>) -> Snapshot {
    Snapshot {
        service: service(ServiceMode::Replicated { replicas }),
        up_to_date: tasks.iter().map(|task| task.id).collect(),
        tasks,
        nodes: (1..=9).map(|number| node(number, NodeState::Ready)).collect(),
    }
}

fn failed(mut task: Task, error: &str) -> Task {
    task.status.error = error.to_owned();
    task
}

fn status(mut snapshot: Snapshot, state: UpdateState, message: &str) -> Snapshot {
    snapshot.service.update_status = Some(UpdateStatus {
        state,
        started_at: Timestamp::default(),
        completed_at: None,
        message: message.to_owned(),
    });
    snapshot
}

fn lines(view: &View) -> Vec<String> {
    view.lines.iter().map(ToString::to_string).collect()
}

/// The lines of a first view, bars without their blanks.
fn check(snapshot: &Snapshot, expected: &[&str]) {
    let view = Progress::default().observe(snapshot, Duration::ZERO);
    let shown: Vec<String> = lines(&view)
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ]", "]"))
        .collect();
    assert_eq!(shown, expected);
}

const READY: TaskState = TaskState::Ready;
const RUNNING: TaskState = TaskState::Running;
const SHUTDOWN: TaskState = TaskState::Shutdown;

fn running(replicas: u64) -> Snapshot {
    let task = |slot| task(u8::try_from(slot).unwrap(), slot, 1, RUNNING, RUNNING);
    snapshot(replicas, (1..=replicas).map(task).collect())
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn slots_have_a_line_each_numbered_from_one() {
    check(
        &snapshot(
            3,
            vec![
                task(1, 5, 1, RUNNING, RUNNING),
                task(2, 2, 0, RUNNING, TaskState::New),
                task(3, 9, 2, RUNNING, TaskState::Preparing),
            ],
        ),
        &[
            "overall progress: 1 out of 3 tasks",
            "1/3: new [=====>]",
            "2/3: running [==================================================>]",
            "3/3: preparing [=================================>]",
        ],
    );
    check(&snapshot(2, vec![]), &["overall progress: 0 out of 2 tasks"]);
}

#[test]
fn many_tasks_are_only_counted() {
    check(&snapshot(21, vec![task(1, 1, 1, RUNNING, RUNNING)]), &["overall progress: 1 out of 21 tasks"]);
}

#[test]
fn the_attempt_that_is_meant_to_live_is_shown() {
    let old = failed(task(1, 1, 1, SHUTDOWN, TaskState::Failed), "task: non-zero exit (1)");
    for (present, line) in [
        // While it is held back, why it has to be made again is worth more than its own state.
        (task(2, 1, 1, READY, READY), "1/1: task: non-zero exit (1)"),
        (
            task(2, 1, 1, RUNNING, TaskState::Starting),
            "1/1: starting [============================================>]",
        ),
        (failed(task(2, 1, 1, RUNNING, TaskState::Failed), "task:\n broken"), "1/1: task: broken"),
    ] {
        check(&snapshot(1, vec![old.clone(), present]), &["overall progress: 0 out of 1 tasks", line]);
    }
    // Start first: the new task is the one that has come less far.
    let both = vec![task(1, 1, 1, RUNNING, RUNNING), task(2, 1, 2, RUNNING, TaskState::Preparing)];
    let view = Progress::default().observe(&snapshot(1, both), Duration::ZERO);
    assert_eq!(view.verdict, Verdict::Wait(None));
}

#[test]
fn an_error_of_an_update_before_this_one_is_not_shown() {
    let mut old = failed(task(1, 1, 1, SHUTDOWN, TaskState::Rejected), "no such image");
    check(&snapshot(1, vec![old.clone()]), &["overall progress: 0 out of 1 tasks", "1/1: no such image"]);
    // The spec is what it was at the first attempt; this is another one.
    old.spec_version = Version(1);
    check(&snapshot(1, vec![old.clone()]), &["overall progress: 0 out of 1 tasks"]);
    let held = task(2, 1, 1, READY, READY);
    check(
        &snapshot(1, vec![old, held]),
        &["overall progress: 0 out of 1 tasks", "1/1: ready [======================================>]"],
    );
}

#[test]
fn a_pending_task_says_why() {
    let mut pending = task(1, 1, 0, RUNNING, TaskState::Pending);
    pending.status.unplaced = Some(Unplaced { reasons: vec![(PlacementFilter::Resources, 2)] });
    check(
        &snapshot(1, vec![pending]),
        &["overall progress: 0 out of 1 tasks", "1/1: no suitable node (insufficient resources on 2 nodes)"],
    );
}

#[test]
fn tasks_of_an_older_spec_and_on_nodes_that_are_down_do_not_count() {
    let mut view = snapshot(2, vec![task(1, 1, 1, RUNNING, RUNNING), task(2, 2, 2, RUNNING, RUNNING)]);
    view.nodes[1].status.state = NodeState::Down;
    view.up_to_date.remove(&TaskId::from_bytes([1; 16]));
    check(&view, &["overall progress: 0 out of 2 tasks"]);
}

#[test]
fn long_errors_are_cut() {
    let shown = cut(&"x".repeat(100));
    assert_eq!((shown.chars().count(), shown.ends_with('…')), (75, true));
    assert_eq!(cut("a\nb"), "a b");
}

#[test]
fn a_service_converges_once_it_ran_for_the_monitor_period() {
    let mut progress = Progress::default();
    let view = progress.observe(&running(2), SECOND);
    assert_eq!(lines(&view).last().unwrap(), "verify: Waiting 5 seconds to verify that tasks are stable...");
    assert_eq!(view.verdict, Verdict::Wait(Some(SECOND)));
    let view = progress.observe(&running(2), Duration::from_millis(3_500));
    assert_eq!(lines(&view).last().unwrap(), "verify: Waiting 3 seconds to verify that tasks are stable...");
    assert_eq!(view.verdict, Verdict::Wait(Some(SECOND / 2)));
    let view = progress.observe(&running(2), SECOND * 6);
    assert_eq!(lines(&view).last().unwrap(), &format!("verify: Service {SERVICE} converged"));
    assert_eq!(view.verdict, Verdict::Converged);
}

#[test]
fn a_relapse_starts_the_wait_over() {
    let mut progress = Progress::default();
    let broken = snapshot(1, vec![failed(task(1, 1, 1, RUNNING, TaskState::Failed), "gone")]);
    progress.observe(&running(1), SECOND);
    let view = progress.observe(&broken, SECOND * 4);
    assert_eq!(lines(&view).last().unwrap(), "verify: Detected task failure");
    assert_eq!(view.verdict, Verdict::Wait(None));
    let view = progress.observe(&running(1), SECOND * 7);
    assert_eq!(lines(&view).last().unwrap(), "verify: Waiting 5 seconds to verify that tasks are stable...");
    assert_eq!(progress.observe(&running(1), SECOND * 11).verdict, Verdict::Wait(Some(SECOND)));
    assert_eq!(progress.observe(&running(1), SECOND * 12).verdict, Verdict::Converged);
}

#[test]
fn nothing_to_run_converges_at_once_and_leftovers_of_a_scale_down_do_not_count() {
    let leftover = task(1, 1, 1, TaskState::Remove, RUNNING);
    let verdict = Progress::default().observe(&snapshot(0, vec![leftover]), Duration::ZERO).verdict;
    assert_eq!(verdict, Verdict::Converged);
    let mut progress = Progress::default();
    let two = vec![task(1, 1, 1, RUNNING, RUNNING), task(2, 2, 1, TaskState::Remove, RUNNING)];
    let view = progress.observe(&snapshot(1, two), Duration::ZERO);
    assert_eq!(view.verdict, Verdict::Wait(Some(SECOND)));
}

#[test]
fn paused_changes_fail_and_finished_rollbacks_do_not() {
    let view = |state| Progress::default().observe(&status(running(1), state, "why"), Duration::ZERO);
    assert_eq!(view(UpdateState::Paused).verdict, Verdict::Failed("service update paused: why".to_owned()));
    assert_eq!(
        view(UpdateState::RollbackPaused).verdict,
        Verdict::Failed("service rollback paused: why".to_owned())
    );
    for state in [UpdateState::Updating, UpdateState::Completed] {
        assert_eq!(view(state).verdict, Verdict::Wait(Some(SECOND)));
        assert_eq!(lines(&view(state))[0], "overall progress: 1 out of 1 tasks");
    }
    for state in [UpdateState::RollbackStarted, UpdateState::RollbackCompleted] {
        assert_eq!(view(state).verdict, Verdict::Wait(Some(SECOND)));
        assert_eq!(lines(&view(state))[..2], ["rolling back update: 1 out of 1 tasks", "rollback: why"]);
    }
}

#[test]
fn a_global_service_has_a_line_for_each_node() {
    let global = |tasks| Snapshot { service: service(ServiceMode::Global), ..snapshot(0, tasks) };
    check(&global(vec![]), &["overall progress: waiting for new tasks"]);
    let (one, two) = (node_id(1).short(), node_id(2).short());
    let mut view = global(vec![
        task(1, 0, 1, RUNNING, RUNNING),
        task(2, 0, 2, RUNNING, TaskState::Starting),
        task(3, 0, 3, RUNNING, RUNNING),
    ]);
    // The third node still runs the task of the spec before.
    view.up_to_date.remove(&TaskId::from_bytes([3; 16]));
    check(
        &view,
        &[
            "overall progress: 1 out of 3 tasks",
            &format!("{one}: running [==================================================>]"),
            &format!("{two}: starting [============================================>]"),
        ],
    );
    let mut done = global(vec![task(1, 0, 1, RUNNING, RUNNING), task(2, 0, 2, SHUTDOWN, SHUTDOWN)]);
    assert_eq!(Progress::default().observe(&done, Duration::ZERO).verdict, Verdict::Wait(Some(SECOND)));
    done.nodes[0].status.state = NodeState::Down;
    check(&done, &["overall progress: waiting for new tasks"]);
    // One that ended for good is waited for although nothing is wanted of it any more.
    let ended = failed(task(2, 0, 2, SHUTDOWN, TaskState::Failed), "gone");
    check(
        &global(vec![task(1, 0, 1, RUNNING, RUNNING), ended]),
        &[
            "overall progress: 1 out of 2 tasks",
            &format!("{one}: running [==================================================>]"),
            &format!("{two}: gone"),
        ],
    );
}

#[test]
fn without_a_terminal_only_news_are_printed() {
    let mut display =
        Display { quiet: false, terminal: false, drawn: 0, said: BTreeMap::new(), troubles: BTreeSet::new() };
    let mut progress = Progress::default();
    let broken = || failed(task(1, 1, 1, RUNNING, TaskState::Failed), "gone");
    let starting = snapshot(1, vec![task(1, 1, 1, RUNNING, TaskState::Starting)]);
    let mut out = String::new();
    for (view, at) in [
        (&starting, 0),
        (&snapshot(1, vec![broken()]), 1),
        (&starting, 2),
        (&snapshot(1, vec![broken()]), 3),
        (&running(1), 4),
        (&running(1), 5),
        (&running(1), 9),
    ] {
        out += &display.sparse(&progress.observe(view, SECOND * at).lines);
    }
    assert_eq!(
        out,
        format!(
            "overall progress: 0 out of 1 tasks\n1/1: gone\noverall progress: 1 out of 1 tasks\n\
             verify: Waiting 5 seconds to verify that tasks are stable...\nverify: Service {SERVICE} converged\n"
        )
    );
}

#[test]
fn on_a_terminal_the_block_is_drawn_over_itself() {
    let mut display =
        Display { quiet: false, terminal: true, drawn: 0, said: BTreeMap::new(), troubles: BTreeSet::new() };
    let line = |text: &str| Line::verify(text.to_owned());
    assert_eq!(display.block(&[line("a")]), "\x1b[?7lverify: a\x1b[K\n\x1b[J\x1b[?7h");
    assert_eq!(
        display.block(&[line("b"), line("c")]),
        "\x1b[?7l\x1b[1A\rverify: b\x1b[K\nverify: c\x1b[K\n\x1b[J\x1b[?7h"
    );
}
