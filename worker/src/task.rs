//! One task's next step: pure functions of what is wanted, what was observed, and the time.
//!
//! The agent asks [`step`] after every change and gives each finished operation to [`conclude`]; nothing here acts.
//! A container is never restarted in place: a task that ended stays ended, and its replacement is another task.
//!
//! Source: swarm-parity 4.1, which also fixes the words of messages and errors.

use std::time::Duration;

use rswarm_types::task::{ContainerStatus, PortStatus};
use rswarm_types::{TaskState, TaskStatus, Timestamp};

use crate::executor::{Exit, Failure, FailureKind, Found, FoundState};

/// Wait before a step that failed for a passing reason is tried again.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long a task that is to stop waits at most for all nodes to know that it takes no new connections. A node that says
/// nothing counts as down before (5 s by default), and is then not waited for.
pub const DRAIN_MAX: Duration = Duration::from_secs(6);
/// What came to it before the last node let go gets so long to be answered.
pub const LINGER: Duration = Duration::from_millis(100);
/// Wait before the remains of a task are tried again: nobody waits for them, and what holds them tends to stay.
pub const REMOVE_RETRY_DELAY: Duration = Duration::from_secs(5);

/// What the manager wants of a task on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Have it ready, but do not start it.
    Park,
    Run,
    /// End it and keep what is left, for its log and exit code.
    Stop,
    /// No longer assigned: end it and delete every trace.
    Gone,
}

impl Wish {
    /// From the desired state of a task and whether it is still assigned here.
    pub fn of(desired: TaskState, assigned: bool) -> Self {
        match desired {
            _ if !assigned => Self::Gone,
            TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Remove
            | TaskState::Orphaned => Self::Stop,
            TaskState::Running | TaskState::Complete => Self::Run,
            _ => Self::Park,
        }
    }
}

/// Work for the executor. At most one is under way per task; a new one supersedes the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Prepare,
    Start,
    /// Give what runs the networks that the task has by now.
    Connect,
    Wait,
    Shutdown,
    Remove,
}

/// What an operation came to when it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Prepared,
    Started {
        pid: Option<i32>,
        ports: Vec<PortStatus>,
    },
    Connected,
    /// Of `Wait`: it ended by itself. Of `Shutdown`: it ended on request, or had ended before.
    Ended(Option<Exit>),
    /// It ended or was ended, and nobody knows how: its shim did not answer and was killed.
    EndedByForce,
    Removed,
}

/// All that decides about a task's next step, beside what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    pub state: TaskState,
    pub busy: Option<Operation>,
    /// This operation failed for a passing reason and is not to be tried before then.
    pub retry: Option<(Operation, Timestamp)>,
    /// Its networks may be others than those that its container was given.
    pub reconnect: bool,
    /// Other nodes may still send it new connections: it is not to be stopped before then.
    pub drain: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until something changes.
    Idle,
    IdleUntil(Timestamp),
    /// Move on to this state, with this message; no work is needed for it.
    Report(TaskState, &'static str),
    /// Begin this operation; whatever was under way is given up.
    Perform(Operation),
}

/// The next step of a task.
pub fn step(wish: Wish, observed: Observed, now: Timestamp) -> Step {
    use TaskState as S;
    let failed_just_now =
        |operation| observed.retry.is_some_and(|(failed, at)| failed == operation && at > now);
    let perform = |operation| match observed.retry {
        _ if observed.busy == Some(operation) => Step::Idle,
        Some((_, at)) if failed_just_now(operation) => Step::IdleUntil(at),
        _ => Step::Perform(operation),
    };
    let draining = observed.drain.filter(|until| *until > now);
    match (observed.state, wish) {
        (state, Wish::Gone) if state.is_terminal() => perform(Operation::Remove),
        (state, _) if state.is_terminal() => Step::Idle,
        // Nothing was made for it yet.
        (S::New | S::Pending | S::Assigned | S::Accepted, Wish::Stop | Wish::Gone) => {
            Step::Report(S::Shutdown, "shutdown")
        }
        (S::Running, Wish::Stop | Wish::Gone) if draining.is_some() => {
            draining.map_or(Step::Idle, Step::IdleUntil)
        }
        (_, Wish::Stop | Wish::Gone) => perform(Operation::Shutdown),
        (S::New | S::Pending | S::Assigned, _) => Step::Report(S::Accepted, "accepted"),
        (S::Accepted, _) => Step::Report(S::Preparing, "preparing"),
        (S::Preparing, _) => perform(Operation::Prepare),
        (S::Ready, Wish::Run) => Step::Report(S::Starting, "starting"),
        (S::Starting, _) => perform(Operation::Start),
        (S::Running, _) if observed.reconnect && !failed_just_now(Operation::Connect) => {
            perform(Operation::Connect)
        }
        (S::Running, _) => perform(Operation::Wait),
        // Parked until it is wanted running.
        _ => Step::Idle,
    }
}

/// What follows from a finished operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// The status to report from now on.
    Status(TaskStatus),
    /// Try again then; the status, with the reason in it, stays in its state.
    Retry(TaskStatus, Timestamp),
    /// Nothing of the task is left on this node.
    Gone,
}

/// Draws the conclusion from the result of `operation`.
pub fn conclude(
    status: &TaskStatus,
    operation: Operation,
    result: Result<Done, Failure>,
    now: Timestamp,
) -> Conclusion {
    let mut next = status.clone();
    let mut to = |state, message: &str| {
        (next.state, next.at, next.message, next.error) = (state, now, message.to_owned(), String::new());
    };
    match (operation, result) {
        (_, Ok(Done::Removed)) => return Conclusion::Gone,
        (_, Ok(Done::Prepared)) => to(TaskState::Ready, "prepared"),
        (_, Ok(Done::Started { pid, ports })) => {
            to(TaskState::Running, "started");
            next.container = Some(ContainerStatus { pid, ..ContainerStatus::default() });
            next.ports = ports;
        }
        (_, Ok(Done::Connected)) => next.error.clear(),
        (Operation::Wait, Ok(Done::Ended(Some(exit)))) => end_by_itself(&mut next, &exit),
        (Operation::Wait, Ok(Done::Ended(None))) => lose(&mut next, SHIM_ENDED, now),
        (Operation::Wait, Ok(Done::EndedByForce)) => lose(&mut next, SHIM_SILENT, now),
        (_, Ok(Done::Ended(exit))) => {
            to(TaskState::Shutdown, "shutdown");
            set_exit(&mut next, exit.as_ref());
        }
        (_, Ok(Done::EndedByForce)) => {
            to(TaskState::Shutdown, "shutdown");
            set_exit(&mut next, None);
            next.error = format!("task: {SHIM_SILENT}");
        }
        (Operation::Remove, Err(failure)) => {
            next.error = failure.text;
            return Conclusion::Retry(next, now.after(REMOVE_RETRY_DELAY));
        }
        // Whatever the reason: as long as its process is there, the task has not ended.
        (Operation::Connect | Operation::Wait | Operation::Shutdown, Err(failure)) => {
            next.error = failure.text;
            return Conclusion::Retry(next, now.after(RETRY_DELAY));
        }
        (_, Err(Failure { text, kind: FailureKind::Temporary })) => {
            next.error = text;
            return Conclusion::Retry(next, now.after(RETRY_DELAY));
        }
        (_, Err(Failure { text, kind })) => {
            let unfit = kind == FailureKind::Unfit || next.state < TaskState::Starting;
            next.state = if unfit { TaskState::Rejected } else { TaskState::Failed };
            (next.at, next.error) = (now, text);
            if let Some(container) = &mut next.container {
                container.pid = None;
            }
        }
    }
    Conclusion::Status(next)
}

/// The status of a task after the daemon started anew: what was last known of it, corrected by what is there.
///
/// The ledger may be behind (intermediate states are not written), the container never is. An ended container counts
/// as running here: whether it ended by itself or on request is for the step that follows.
pub fn adopt(status: &TaskStatus, found: Option<&Found>, now: Timestamp) -> TaskStatus {
    let mut next = status.clone();
    if status.state.is_terminal() {
        return next;
    }
    let running = |next: &mut TaskStatus, pid| {
        if next.state != TaskState::Running {
            (next.state, next.at, next.message) = (TaskState::Running, now, "started".to_owned());
            next.error.clear();
        }
        next.container = Some(ContainerStatus { pid, ..ContainerStatus::default() });
    };
    match found {
        Some(Found { state: FoundState::Running { pid }, ports, .. }) => {
            running(&mut next, Some(*pid));
            next.ports.clone_from(ports);
        }
        Some(Found { state: FoundState::Ended, ports, .. }) => {
            running(&mut next, None);
            next.ports.clone_from(ports);
        }
        Some(Found { state: FoundState::Created, .. }) if status.state < TaskState::Running => {}
        // As long as nothing proves its end, the task goes on from where it was.
        Some(Found { state: FoundState::Unknown { pid }, ports, .. }) => {
            if status.state == TaskState::Running {
                running(&mut next, *pid);
                next.ports.clone_from(ports);
            }
        }
        _ if status.state <= TaskState::Preparing => {}
        Some(Found { state: FoundState::Lost, .. }) => lose(&mut next, SHIM_ENDED, now),
        _ => lose(&mut next, "its container is gone from the node, as after a reboot", now),
    }
    next
}

/// Why a container is lost whose machine is still the same.
const SHIM_ENDED: &str =
    "its container was ended because its shim, the process beside it, ended unexpectedly";

const SHIM_SILENT: &str = "its shim, the process beside its container, did not answer and was killed; how the \
                           container ended is not known";

fn lose(status: &mut TaskStatus, cause: &str, now: Timestamp) {
    (status.state, status.at) = (TaskState::Failed, now);
    status.error = format!("task: {cause}");
    if let Some(container) = &mut status.container {
        container.pid = None;
    }
}

fn end_by_itself(status: &mut TaskStatus, exit: &Exit) {
    set_exit(status, Some(exit));
    status.at = exit.at;
    match exit.code {
        0 if !exit.oom_killed => {
            (status.state, status.message) = (TaskState::Complete, "finished".to_owned());
            status.error.clear();
        }
        code => {
            status.state = TaskState::Failed;
            let cause = if exit.oom_killed { ": out of memory" } else { "" };
            status.error = format!("task: non-zero exit ({code}){cause}");
        }
    }
}

fn set_exit(status: &mut TaskStatus, exit: Option<&Exit>) {
    match exit {
        Some(exit) => {
            status.container =
                Some(ContainerStatus { pid: None, exit_code: Some(exit.code), oom_killed: exit.oom_killed });
        }
        None => {
            if let Some(container) = &mut status.container {
                container.pid = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
