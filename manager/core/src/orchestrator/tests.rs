//! Scenarios: what happens to the tasks of a service. Source: swarm-parity 3.1 to 3.7.

use super::is_up_to_date;
use std::time::Duration;

use rswarm_types::service::{FailureAction, UpdateOrder, UpdateState};
use rswarm_types::task::{RegistryAuth, RegistrySecret, RestartCondition};
use rswarm_types::*;

use crate::Write;
use crate::testing::{CPU, Fixture, node_id};

const SECOND: Duration = Duration::from_secs(1);
const UP: NodeState = NodeState::Ready;

fn images(f: &Fixture, service: ServiceId) -> Vec<String> {
    f.current(service).iter().map(|task| task.spec.container.image.clone()).collect()
}

fn update_state(f: &Fixture, service: ServiceId) -> Option<UpdateState> {
    f.state.service(service).unwrap().update_status.as_ref().map(|status| status.state)
}

#[test]
fn a_new_service_is_made_addressed_and_placed_in_one_command() {
    let mut f = Fixture::new(3);
    let web = f.create("web", 6, |_| {});
    assert_eq!(f.pass(), 1);
    assert_eq!(f.spread(web, 3), [2, 2, 2]);
    for task in f.current(web) {
        assert_eq!((task.status.state, task.networks.len()), (TaskState::Assigned, 1));
    }
}

#[test]
fn scaling_down_keeps_one_copy_per_node_and_leaves_no_trace() {
    let mut f = Fixture::new(3);
    let web = f.create("web", 6, |_| {});
    f.run();
    f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 3 });
    f.run();
    assert_eq!(f.spread(web, 3), [1, 1, 1]);
    assert_eq!(f.state.task_count(), 3);
    assert_eq!(update_state(&f, web), None);
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 4, |_| {});
    f.run();
    f.must(vec![Write::RemoveService { id: web, expected: None }]);
    f.run();
    assert_eq!(f.state.task_count(), 0);
    assert_eq!(f.state.usage(node_id(1)), None);
}

#[test]
fn replicas_of_a_down_node_run_elsewhere_and_it_takes_new_work_when_back() {
    let mut f = Fixture::new(3);
    let web = f.create("web", 3, |_| {});
    f.run();
    f.set_node(1, NodeState::Down, Availability::Active);
    f.run();
    assert_eq!((f.spread(web, 3), f.running(web)), (vec![0, 2, 1], 3));
    let lost: Vec<_> = f.state.tasks_on(node_id(1)).cloned().collect();
    assert_eq!((lost[0].status.state, lost[0].desired), (TaskState::Running, TaskState::Shutdown));
    f.set_node(1, UP, Availability::Active);
    f.run();
    assert_eq!(f.state.task(lost[0].id).unwrap().status.state, TaskState::Shutdown);
    f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 4 });
    f.run();
    assert_eq!(f.spread(web, 3), [1, 2, 1]);
}

#[test]
fn a_drained_node_loses_its_tasks_whatever_their_restart_condition() {
    for condition in [RestartCondition::Any, RestartCondition::OnFailure, RestartCondition::None] {
        let mut f = Fixture::new(2);
        let web = f.create("web", 4, |spec| spec.task.restart.condition = condition);
        f.run();
        f.set_node(1, UP, Availability::Drain);
        f.run();
        assert_eq!((f.spread(web, 2), f.running(web)), (vec![0, 4], 4), "{condition}");
    }
}

#[test]
fn a_paused_or_unknown_node_keeps_its_tasks_and_gets_no_new_ones() {
    for (state, availability) in [(UP, Availability::Pause), (NodeState::Unknown, Availability::Active)] {
        let mut f = Fixture::new(2);
        let web = f.create("web", 2, |_| {});
        f.run();
        f.set_node(1, state, availability);
        f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 4 });
        f.run();
        assert_eq!(f.spread(web, 2), [1, 3]);
    }
}

#[test]
fn a_task_whose_node_no_longer_fits_moves() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 1, |spec| {
        spec.task.placement.constraints = vec!["node.labels.disk!=hdd".into()];
    });
    f.run();
    assert_eq!(f.spread(web, 2), [1, 0]);
    let node = f.state.node(node_id(1)).unwrap();
    let mut spec = node.spec.clone();
    spec.labels.insert("disk".into(), "hdd".into());
    let (id, expected) = (node.id, node.meta.version);
    f.must(vec![Write::UpdateNode { id, spec, expected }]);
    f.run();
    assert_eq!((f.spread(web, 2), f.running(web)), (vec![0, 1], 1));
}

#[test]
fn a_shrunk_node_gives_up_the_newest_tasks_that_no_longer_fit() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 4, |spec| spec.task.reservations.nano_cpus = CPU);
    f.run();
    let mut description = f.state.node(node_id(1)).unwrap().description.clone().unwrap();
    description.resources.nano_cpus = 2 * CPU;
    f.must(vec![Write::SetNodeDescription { id: node_id(1), description }]);
    f.run();
    assert_eq!(f.running(web), 2);
    assert_eq!(f.state.usage(node_id(1)).unwrap().nano_cpus, 2 * CPU);
    let waiting: Vec<_> = f.state.waiting_tasks().map(|t| t.status.error.clone()).collect();
    assert_eq!(waiting, ["no suitable node (insufficient resources on 1 node)"; 2]);
}

#[test]
fn a_failed_task_is_replaced_after_its_delay_and_a_crash_loop_slows_down() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 1, |_| {});
    f.run();
    for expected in [5, 10, 20, 40, 80, 80] {
        let failed = f.current(web)[0].id;
        f.report(failed, TaskState::Failed);
        f.run();
        let next = f.current(web)[0].clone();
        assert_eq!((next.desired, next.status.state), (TaskState::Ready, TaskState::Ready));
        assert_eq!(next.start_delay, SECOND * expected);
        f.run_for(SECOND * expected - Duration::from_millis(1));
        assert_eq!(f.running(web), 0);
        f.run_for(Duration::from_millis(1));
        assert_eq!(f.running(web), 1);
    }
    // Five per slot are kept.
    assert_eq!(f.state.task_count(), 5);
    f.wait(super::RESTART_SETTLED);
    f.report(f.current(web)[0].id, TaskState::Failed);
    f.run();
    assert_eq!(f.current(web)[0].start_delay, SECOND * 5);
}

#[test]
fn a_task_rejected_during_its_delay_waits_it_out() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 1, |_| {});
    f.run();
    f.report(f.current(web)[0].id, TaskState::Failed);
    f.pass();
    let replacement = f.current(web)[0].id;
    f.report(replacement, TaskState::Rejected);
    f.pass();
    assert_eq!(f.current(web)[0].id, replacement);
    f.wait(SECOND * 5);
    f.pass();
    assert_ne!(f.current(web)[0].id, replacement);
}

#[test]
fn restart_conditions_and_attempts() {
    use RestartCondition::{Any, None, OnFailure};
    for (condition, attempts, ends, restarts) in [
        (Any, 0, TaskState::Complete, 7),
        (Any, 0, TaskState::Failed, 7),
        (OnFailure, 0, TaskState::Complete, 0),
        (OnFailure, 0, TaskState::Failed, 7),
        (None, 0, TaskState::Failed, 0),
        (Any, 2, TaskState::Failed, 2),
        (Any, 6, TaskState::Failed, 6),
    ] {
        let mut f = Fixture::new(1);
        let web = f.create("web", 1, |spec| {
            spec.task.restart.condition = condition;
            spec.task.restart.max_attempts = attempts;
        });
        f.run();
        let mut seen = 0;
        for _ in 0..7 {
            let Some(task) = f.current(web).first().map(|task| task.id) else { break };
            f.report(task, ends);
            f.run_for(SECOND * 600);
            seen += usize::from(f.current(web).iter().any(|next| next.id != task));
        }
        assert_eq!(seen, restarts, "{condition} {attempts} {ends}");
        // Of one that ended for good nothing is wanted, and nothing takes its place.
        let ended = f.state.tasks_of(web).max_by_key(|task| task.meta.created_at).unwrap();
        let desired = if restarts < 7 { TaskState::Shutdown } else { TaskState::Running };
        assert_eq!(ended.desired, desired, "{condition} {attempts} {ends}");
    }
}

/// A service of `replicas` whose first task has just ended for good.
fn settled(nodes: u8, replicas: u64, ends: TaskState) -> (Fixture, ServiceId, TaskId) {
    let mut f = Fixture::new(nodes);
    let web = f.create("web", replicas, |spec| spec.task.restart.condition = RestartCondition::None);
    f.run();
    let ended = f.current(web)[0].id;
    f.report(ended, ends);
    f.run_for(SECOND * 600);
    assert_eq!(f.state.task(ended).unwrap().desired, TaskState::Shutdown);
    assert_eq!(f.running(web) as u64, replicas - 1);
    (f, web, ended)
}

#[test]
fn what_ended_for_good_fills_its_slot_until_the_spec_changes() {
    for ends in [TaskState::Complete, TaskState::Failed] {
        let (mut f, web, ended) = settled(2, 3, ends);
        // Neither more slots nor the loss of its node bring it back.
        f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 4 });
        f.set_node(1, UP, Availability::Drain);
        f.run_for(SECOND * 600);
        assert_eq!((f.running(web), f.state.tasks_of(web).filter(|task| task.slot == 1).count()), (3, 1));
        assert!(f.state.task(ended).is_some());
        f.update(web, |spec| spec.task.container.image = "image:2".into());
        f.run_for(SECOND * 600);
        assert_eq!((f.running(web), update_state(&f, web)), (4, Some(UpdateState::Completed)));
    }
    // It is the first to go when there are too many.
    let (mut f, web, ended) = settled(2, 3, TaskState::Failed);
    f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 2 });
    f.run();
    assert_eq!((f.running(web), f.state.task(ended)), (2, None));
}

#[test]
fn a_stopped_global_task_comes_back_with_its_node_and_one_that_ended_for_good_does_not() {
    let mut f = Fixture::new(2);
    let agent = f.create("agent", 0, |spec| {
        spec.mode = ServiceMode::Global;
        spec.task.restart.condition = RestartCondition::None;
    });
    f.run();
    let first = f.current(agent).iter().find(|task| task.node_id == Some(node_id(1))).unwrap().id;
    f.report(first, TaskState::Failed);
    f.run();
    for n in [1, 2] {
        f.set_node(n, UP, Availability::Drain);
        f.run();
        assert_eq!(f.spread(agent, 2)[usize::from(n) - 1], 0);
        f.set_node(n, UP, Availability::Active);
        f.run();
    }
    assert_eq!((f.spread(agent, 2), f.running(agent)), (vec![0, 1], 1));
    assert_eq!(f.state.task(first).unwrap().status.state, TaskState::Failed);
}

#[test]
fn a_start_first_update_whose_task_ended_for_good_leaves_the_old_one_and_ends() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 1, |spec| {
        spec.task.restart.condition = RestartCondition::None;
        spec.update.order = UpdateOrder::StartFirst;
        spec.update.failure_action = FailureAction::Continue;
    });
    f.run();
    f.update(web, |spec| spec.task.container.image = "image:2".into());
    f.pass();
    let new = f.current(web).iter().find(|task| task.spec.container.image == "image:2").unwrap().id;
    f.report(new, TaskState::Failed);
    f.run_for(SECOND * 60);
    assert_eq!(images(&f, web), ["image:1"]);
    assert_eq!(f.state.task(new).unwrap().desired, TaskState::Shutdown);
    assert_eq!((f.running(web), update_state(&f, web)), (1, Some(UpdateState::Completed)));
    assert_eq!(f.state.task_count(), 2);
}

#[test]
fn attempts_before_the_window_do_not_count() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 1, |spec| {
        spec.task.restart.max_attempts = 2;
        spec.task.restart.window = SECOND * 60;
    });
    f.run();
    for _ in 0..6 {
        f.run_for(SECOND * 50);
        f.report(f.current(web)[0].id, TaskState::Failed);
        f.run_for(SECOND * 5);
        assert_eq!(f.running(web), 1);
    }
}

#[test]
fn a_rolling_update_replaces_one_slot_at_a_time() {
    let mut f = Fixture::new(3);
    let web = f.create("web", 3, |spec| spec.update.delay = SECOND * 10);
    f.run();
    f.update(web, |spec| spec.task.container.image = "image:2".into());
    let mut least = 3;
    for expected in 1..=3 {
        f.pass();
        least = least.min(f.running(web));
        f.run();
        let new = images(&f, web).iter().filter(|image| *image == "image:2").count();
        assert_eq!((new, f.running(web)), (expected, 3));
        assert_eq!(update_state(&f, web), Some(UpdateState::Updating));
        if expected < 3 {
            f.run_for(SECOND * 9);
            f.wait(SECOND);
        }
    }
    assert_eq!(least, 2);
    f.run_for(SECOND * 5);
    assert_eq!(update_state(&f, web), Some(UpdateState::Completed));
}

#[test]
fn start_first_keeps_the_old_task_until_the_new_one_runs() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 2, |spec| spec.update.order = UpdateOrder::StartFirst);
    f.run();
    f.update(web, |spec| spec.task.container.image = "image:2".into());
    f.pass();
    assert_eq!((f.current(web).len(), f.running(web)), (3, 2));
    f.run_for(SECOND * 10);
    assert_eq!(images(&f, web), ["image:2", "image:2"]);
    assert_eq!(update_state(&f, web), Some(UpdateState::Completed));
}

/// Starts an update whose tasks all fail as soon as they run.
fn failing_update(action: FailureAction) -> (Fixture, ServiceId) {
    let mut f = Fixture::new(3);
    let web = f.create("web", 3, |spec| spec.update.failure_action = action);
    f.run();
    f.update(web, |spec| spec.task.container.image = "image:2".into());
    for _ in 0..10 {
        f.wait(Duration::from_millis(1));
        f.pass();
        let bad: Vec<_> = f
            .current(web)
            .iter()
            .filter(|t| t.spec.container.image == "image:2" && crate::state::holds_resources(t))
            .map(|t| t.id)
            .collect();
        bad.into_iter().for_each(|id| f.report(id, TaskState::Failed));
    }
    f.run();
    (f, web)
}

#[test]
fn a_failing_update_pauses_and_a_further_update_resumes_it() {
    let (mut f, web) = failing_update(FailureAction::Pause);
    assert_eq!(update_state(&f, web), Some(UpdateState::Paused));
    assert_eq!(images(&f, web).iter().filter(|image| *image == "image:1").count(), 2);
    f.update(web, |_| {});
    assert_eq!(update_state(&f, web), Some(UpdateState::Updating));
    f.run_for(SECOND * 60);
    assert_eq!(update_state(&f, web), Some(UpdateState::Completed));
    assert_eq!(images(&f, web), ["image:2"; 3]);
}

#[test]
fn a_failing_update_goes_on_if_told_so() {
    let (mut f, web) = failing_update(FailureAction::Continue);
    f.run_for(SECOND * 600);
    assert_eq!(images(&f, web), ["image:2"; 3]);
    assert_eq!(update_state(&f, web), Some(UpdateState::Completed));
}

#[test]
fn a_failing_update_rolls_back_if_told_so() {
    let (mut f, web) = failing_update(FailureAction::Rollback);
    f.run_for(SECOND * 60);
    assert_eq!(update_state(&f, web), Some(UpdateState::RollbackCompleted));
    assert_eq!((images(&f, web), f.running(web)), (vec!["image:1".to_owned(); 3], 3));
    assert!(f.state.service(web).unwrap().previous_spec.is_none());
}

#[test]
fn what_tasks_do_not_see_restarts_none() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 2, |_| {});
    f.run();
    let before = f.current(web);
    f.update(web, |spec| {
        spec.labels.insert("a".into(), "b".into());
        spec.update.parallelism = 7;
    });
    // A change of placement that the nodes satisfy is no reason either.
    f.update(web, |spec| spec.task.placement.constraints = vec!["node.role==worker".into()]);
    f.run_for(SECOND * 10);
    assert_eq!(f.current(web), before);
    // Whoever waits for the update is told the same.
    let service = f.state.service(web).unwrap();
    assert!(before.iter().all(|task| is_up_to_date(&f.state, service, task)));
    // And an edit that no task sees leaves no word of the update before.
    assert!(service.update_status.is_some());
    f.update(web, |spec| drop(spec.labels.insert("a".into(), "b".into())));
    assert_eq!(f.state.service(web).unwrap().update_status, None);
}

#[test]
fn a_new_credential_replaces_only_tasks_that_still_need_their_image() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 2, |_| {});
    f.pass();
    let before = f.current(web);
    f.report(before[0].id, TaskState::Running);
    f.report(before[1].id, TaskState::Preparing);
    f.update(web, |spec| {
        let secret = RegistrySecret::IdentityToken("token".into());
        spec.task.container.registry_auth = Some(RegistryAuth { registry: "r".into(), secret });
    });
    f.run_for(SECOND * 10);
    let after = f.current(web);
    assert_eq!(after[0], f.state.task(before[0].id).cloned().unwrap(), "it runs: it has what it needs");
    assert_ne!(after[1].id, before[1].id);
    assert!(after[1].spec.container.registry_auth.is_some());
    assert_eq!(update_state(&f, web), Some(UpdateState::Completed));
}

#[test]
fn a_global_service_has_one_task_on_every_node_that_fits() {
    let mut f = Fixture::new(3);
    f.add_node(4, |node| drop(node.spec.labels.insert("no".into(), "yes".into())));
    let agent = f.create("agent", 0, |spec| {
        spec.mode = ServiceMode::Global;
        spec.task.placement.constraints = vec!["node.labels.no!=yes".into()];
    });
    f.run();
    assert_eq!((f.spread(agent, 4), f.running(agent)), (vec![1, 1, 1, 0], 3));
    f.add_node(5, |_| {});
    f.set_node(1, UP, Availability::Drain);
    f.set_node(2, NodeState::Down, Availability::Active);
    f.run();
    assert_eq!(f.spread(agent, 5), [0, 0, 1, 0, 1]);
    f.set_node(1, UP, Availability::Active);
    f.set_node(2, UP, Availability::Active);
    f.update(agent, |spec| spec.task.container.image = "image:2".into());
    f.run_for(SECOND * 60);
    assert_eq!((f.spread(agent, 5), f.running(agent)), (vec![1, 1, 1, 0, 1], 4));
    assert_eq!(images(&f, agent), ["image:2"; 4]);
}

#[test]
fn tasks_of_a_removed_node_are_orphaned_and_replaced() {
    let mut f = Fixture::new(2);
    let web = f.create("web", 2, |_| {});
    f.run();
    let remove = |force| vec![Write::RemoveNode { id: node_id(1), force }];
    assert!(f.commit(remove(false)).unwrap_err().to_string().contains("is not down and can't be removed"));
    f.must(remove(true));
    f.run();
    assert_eq!((f.spread(web, 2), f.running(web)), (vec![0, 2], 2));
    assert!(f.state.cluster().unwrap().removed_nodes.contains_key(&node_id(1)));
}

#[test]
fn tasks_of_a_node_lost_for_a_day_are_orphaned() {
    let mut f = Fixture::new(2);
    f.create("web", 2, |_| {});
    f.run();
    f.set_node(1, NodeState::Down, Availability::Active);
    f.run_for(super::reaper::ORPHAN_AFTER - SECOND);
    assert!(f.state.usage(node_id(1)).is_some());
    f.run_for(SECOND);
    assert_eq!(f.state.usage(node_id(1)), None);
}
