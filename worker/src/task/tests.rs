use super::*;
use rswarm_types::TaskId;
use rswarm_types::service::Protocol;

const NOW: Timestamp = Timestamp(1_000_000_000_000);

/// Every observed state against everything that can be wanted, with nothing under way.
#[test]
fn every_state_and_wish_has_its_step() {
    use TaskState as S;
    let report = Step::Report;
    let perform = Step::Perform;
    let (shutdown, remove) = (perform(Operation::Shutdown), perform(Operation::Remove));
    let stop = report(S::Shutdown, "shutdown");
    let accept = report(S::Accepted, "accepted");
    //                 park, run, stop, gone
    let table = [
        (S::New, [accept, accept, stop, stop]),
        (S::Pending, [accept, accept, stop, stop]),
        (S::Assigned, [accept, accept, stop, stop]),
        (S::Accepted, [report(S::Preparing, "preparing"), report(S::Preparing, "preparing"), stop, stop]),
        (S::Preparing, [perform(Operation::Prepare), perform(Operation::Prepare), shutdown, shutdown]),
        (S::Ready, [Step::Idle, report(S::Starting, "starting"), shutdown, shutdown]),
        (S::Starting, [perform(Operation::Start), perform(Operation::Start), shutdown, shutdown]),
        (S::Running, [perform(Operation::Wait), perform(Operation::Wait), shutdown, shutdown]),
        (S::Complete, [Step::Idle, Step::Idle, Step::Idle, remove]),
        (S::Shutdown, [Step::Idle, Step::Idle, Step::Idle, remove]),
        (S::Failed, [Step::Idle, Step::Idle, Step::Idle, remove]),
        (S::Rejected, [Step::Idle, Step::Idle, Step::Idle, remove]),
        (S::Remove, [Step::Idle, Step::Idle, Step::Idle, remove]),
        (S::Orphaned, [Step::Idle, Step::Idle, Step::Idle, remove]),
    ];
    assert_eq!(table.map(|(state, _)| state), S::ALL);
    for (state, expected) in table {
        for (wish, expected) in [Wish::Park, Wish::Run, Wish::Stop, Wish::Gone].into_iter().zip(expected) {
            let observed = Observed { state, busy: None, retry: None, reconnect: false, drain: None };
            assert_eq!(step(wish, observed, NOW), expected, "{state} {wish:?}");
        }
    }
}

/// An operation under way is left alone unless another is due, which then takes its place.
#[test]
fn work_under_way_is_begun_once_and_superseded() {
    use Operation as O;
    let operations = [O::Prepare, O::Start, O::Wait, O::Shutdown, O::Remove];
    for state in TaskState::ALL {
        for wish in [Wish::Park, Wish::Run, Wish::Stop, Wish::Gone] {
            let fresh =
                step(wish, Observed { state, busy: None, retry: None, reconnect: false, drain: None }, NOW);
            for busy in operations {
                let expected = if fresh == Step::Perform(busy) { Step::Idle } else { fresh };
                let observed =
                    Observed { state, busy: Some(busy), retry: None, reconnect: false, drain: None };
                assert_eq!(step(wish, observed, NOW), expected, "{state} {wish:?} {busy:?}");
            }
        }
    }
}

#[test]
fn a_retry_waits_for_its_time_and_delays_nothing_else() {
    let later = NOW.after(RETRY_DELAY);
    let observed = Observed {
        state: TaskState::Preparing,
        busy: None,
        retry: Some((Operation::Prepare, later)),
        reconnect: false,
        drain: None,
    };
    assert_eq!(step(Wish::Run, observed, NOW), Step::IdleUntil(later));
    assert_eq!(step(Wish::Run, observed, later), Step::Perform(Operation::Prepare));
    assert_eq!(step(Wish::Stop, observed, NOW), Step::Perform(Operation::Shutdown));
}

#[test]
fn a_container_is_watched_also_while_it_cannot_be_connected() {
    use Operation as O;
    let later = NOW.after(RETRY_DELAY);
    let observed = |state, busy, retry| Observed { state, busy, retry, reconnect: true, drain: None };
    let running = |busy, retry| observed(TaskState::Running, busy, retry);
    assert_eq!(step(Wish::Run, running(Some(O::Wait), None), NOW), Step::Perform(O::Connect));
    assert_eq!(step(Wish::Run, running(Some(O::Connect), None), NOW), Step::Idle);
    let failed = Some((O::Connect, later));
    assert_eq!(step(Wish::Run, running(None, failed), NOW), Step::Perform(O::Wait));
    assert_eq!(step(Wish::Run, running(Some(O::Wait), failed), NOW), Step::Idle);
    assert_eq!(step(Wish::Run, running(Some(O::Wait), failed), later), Step::Perform(O::Connect));
    assert_eq!(step(Wish::Stop, running(Some(O::Connect), None), NOW), Step::Perform(O::Shutdown));
    // What does not run yet is given its networks when it starts.
    let starting = observed(TaskState::Starting, None, None);
    assert_eq!(step(Wish::Run, starting, NOW), Step::Perform(O::Start));
}

#[test]
fn wishes_follow_from_the_desired_state() {
    for desired in TaskState::ALL {
        let expected = match desired {
            TaskState::Running | TaskState::Complete => Wish::Run,
            state if state > TaskState::Complete => Wish::Stop,
            _ => Wish::Park,
        };
        assert_eq!(Wish::of(desired, true), expected, "{desired}");
        assert_eq!(Wish::of(desired, false), Wish::Gone, "{desired}");
    }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: "before".to_owned(), ..TaskStatus::default() }
}

fn failure(kind: FailureKind) -> Failure {
    Failure { text: "no such thing".to_owned(), kind }
}

fn exit(code: i32, oom_killed: bool) -> Exit {
    Exit { code, oom_killed, at: Timestamp(7) }
}

/// `state: message | error`, as a person would see it.
fn shown(conclusion: &Conclusion) -> String {
    match conclusion {
        Conclusion::Gone => "gone".to_owned(),
        Conclusion::Status(s) => format!("{}: {} | {}", s.state, s.message, s.error),
        Conclusion::Retry(s, at) => {
            format!("retry in {:?} {}: {} | {}", at.since(NOW), s.state, s.message, s.error)
        }
    }
}

#[test]
fn every_operation_and_outcome_has_its_conclusion() {
    use Operation as O;
    use TaskState as S;
    let started = Done::Started { pid: Some(7), ports: vec![] };
    for (state, operation, result, expected) in [
        (S::Preparing, O::Prepare, Ok(Done::Prepared), "ready: prepared | "),
        (S::Preparing, O::Prepare, Err(failure(FailureKind::Final)), "rejected: before | no such thing"),
        (S::Preparing, O::Prepare, Err(failure(FailureKind::Unfit)), "rejected: before | no such thing"),
        (
            S::Preparing,
            O::Prepare,
            Err(failure(FailureKind::Temporary)),
            "retry in 1s preparing: before | no such thing",
        ),
        (S::Starting, O::Start, Ok(started), "running: started | "),
        (S::Starting, O::Start, Err(failure(FailureKind::Final)), "failed: before | no such thing"),
        (S::Starting, O::Start, Err(failure(FailureKind::Unfit)), "rejected: before | no such thing"),
        (
            S::Starting,
            O::Start,
            Err(failure(FailureKind::Temporary)),
            "retry in 1s starting: before | no such thing",
        ),
        (S::Running, O::Wait, Ok(Done::Ended(Some(exit(0, false)))), "complete: finished | "),
        (
            S::Running,
            O::Wait,
            Ok(Done::Ended(Some(exit(3, false)))),
            "failed: before | task: non-zero exit (3)",
        ),
        (
            S::Running,
            O::Wait,
            Ok(Done::Ended(Some(exit(137, true)))),
            "failed: before | task: non-zero exit (137): out of memory",
        ),
        (
            S::Running,
            O::Wait,
            Ok(Done::Ended(None)),
            "failed: before | task: its container was ended because its shim, the process beside it, ended unexpectedly",
        ),
        (
            S::Running,
            O::Wait,
            Err(failure(FailureKind::Final)),
            "retry in 1s running: before | no such thing",
        ),
        (
            S::Running,
            O::Wait,
            Err(failure(FailureKind::Temporary)),
            "retry in 1s running: before | no such thing",
        ),
        (
            S::Running,
            O::Wait,
            Ok(Done::EndedByForce),
            "failed: before | task: its shim, the process beside its container, did not answer and was killed; how the container ended is not known",
        ),
        (
            S::Running,
            O::Shutdown,
            Ok(Done::EndedByForce),
            "shutdown: shutdown | task: its shim, the process beside its container, did not answer and was killed; how the container ended is not known",
        ),
        (S::Running, O::Shutdown, Ok(Done::Ended(Some(exit(143, false)))), "shutdown: shutdown | "),
        (S::Preparing, O::Shutdown, Ok(Done::Ended(None)), "shutdown: shutdown | "),
        (
            S::Running,
            O::Shutdown,
            Err(failure(FailureKind::Final)),
            "retry in 1s running: before | no such thing",
        ),
        (
            S::Running,
            O::Shutdown,
            Err(failure(FailureKind::Temporary)),
            "retry in 1s running: before | no such thing",
        ),
        (S::Shutdown, O::Remove, Ok(Done::Removed), "gone"),
        (
            S::Shutdown,
            O::Remove,
            Err(failure(FailureKind::Final)),
            "retry in 5s shutdown: before | no such thing",
        ),
    ] {
        let conclusion = conclude(&status(state), operation, result.clone(), NOW);
        assert_eq!(shown(&conclusion), expected, "{state} {operation:?} {result:?}");
    }
}

#[test]
fn exit_code_time_and_ports_are_kept() {
    let port =
        PortStatus { protocol: Protocol::Tcp, target: 80, published: 32_768, host_ip: None, interface: None };
    let started = Done::Started { pid: Some(7), ports: vec![port] };
    let Conclusion::Status(running) =
        conclude(&status(TaskState::Starting), Operation::Start, Ok(started), NOW)
    else {
        panic!("a started task has a status")
    };
    assert_eq!((running.container.as_ref().unwrap().pid, running.ports.as_slice()), (Some(7), &[port][..]));
    let ended = Done::Ended(Some(exit(137, true)));
    let Conclusion::Status(failed) = conclude(&running, Operation::Wait, Ok(ended), NOW) else {
        panic!("an ended task has a status")
    };
    let container = ContainerStatus { pid: None, exit_code: Some(137), oom_killed: true };
    assert_eq!((failed.container, failed.at), (Some(container), Timestamp(7)));
}

#[test]
fn a_new_daemon_believes_the_container() {
    use TaskState as S;
    let found = |state| Found { task: TaskId::from_bytes([1; 16]), state, ports: vec![] };
    let (created, running, ended, broken, lost, unknown) = (
        found(FoundState::Created),
        found(FoundState::Running { pid: 7 }),
        found(FoundState::Ended),
        found(FoundState::Broken),
        found(FoundState::Lost),
        found(FoundState::Unknown { pid: Some(7) }),
    );
    for state in S::ALL {
        let adopted = |found| adopt(&status(state), found, NOW).state;
        // terminal stays; else: without a container, created, running, ended, broken, lost, unknown
        let expected = match state {
            _ if state.is_terminal() => [state; 7],
            S::Running => [S::Failed, S::Failed, S::Running, S::Running, S::Failed, S::Failed, S::Running],
            S::Ready | S::Starting => [S::Failed, state, S::Running, S::Running, S::Failed, S::Failed, state],
            _ => [state, state, S::Running, S::Running, state, state, state],
        };
        let found = [&created, &running, &ended, &broken, &lost, &unknown];
        let actual: Vec<_> = std::iter::once(None).chain(found.map(Some)).map(adopted).collect();
        assert_eq!(actual, expected, "{state}");
    }
}

#[test]
fn states_only_move_forward() {
    let results = [
        Ok(Done::Prepared),
        Ok(Done::Started { pid: Some(1), ports: vec![] }),
        Ok(Done::Ended(None)),
        Ok(Done::Ended(Some(exit(1, false)))),
        Ok(Done::EndedByForce),
        Err(failure(FailureKind::Final)),
        Err(failure(FailureKind::Temporary)),
    ];
    for state in TaskState::ALL {
        for wish in [Wish::Park, Wish::Run, Wish::Stop, Wish::Gone] {
            let Step::Perform(operation) =
                step(wish, Observed { state, busy: None, retry: None, reconnect: false, drain: None }, NOW)
            else {
                continue;
            };
            for result in &results {
                let fits = match (operation, result) {
                    (_, Err(_)) => true,
                    (Operation::Prepare, Ok(done)) => *done == Done::Prepared,
                    (Operation::Start, Ok(done)) => matches!(done, Done::Started { .. }),
                    (_, Ok(done)) => matches!(done, Done::Ended(_) | Done::EndedByForce),
                };
                if !fits || operation == Operation::Remove {
                    continue;
                }
                if let Conclusion::Status(next) | Conclusion::Retry(next, _) =
                    conclude(&status(state), operation, result.clone(), NOW)
                {
                    assert!(next.state >= state, "{state} {operation:?} {result:?} went back");
                }
            }
        }
    }
}

#[test]
fn a_task_that_connections_may_still_come_to_is_stopped_when_its_time_is_over() {
    let until = NOW.after(DRAIN_MAX);
    let observed =
        |state, drain| Observed { state, busy: Some(Operation::Wait), retry: None, reconnect: false, drain };
    for wish in [Wish::Stop, Wish::Gone] {
        assert_eq!(step(wish, observed(TaskState::Running, Some(until)), NOW), Step::IdleUntil(until));
        for (drain, now) in [(Some(until), until), (None, NOW)] {
            let next = step(wish, observed(TaskState::Running, drain), now);
            assert_eq!(next, Step::Perform(Operation::Shutdown));
        }
        // What does not run yet gets none.
        let starting = step(wish, observed(TaskState::Starting, Some(until)), NOW);
        assert_eq!(starting, Step::Perform(Operation::Shutdown));
    }
}
