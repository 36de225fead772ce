//! What the worker asks of whatever runs its tasks. The adapter onto our own runtime is in [`container`]; tests and
//! simulations bring others.

pub mod container;

use std::sync::Arc;

use futures::future::BoxFuture;
use rswarm_api::v1;
use rswarm_types::error::chain;
use rswarm_types::netmap::NetworkMap;
use rswarm_types::node::{NodeNetworkFacts, TunnelKeys};
use rswarm_types::task::PortStatus;
use rswarm_types::{Task, TaskId, Timestamp, Version};
use tokio::sync::mpsc;

use crate::task::Done;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n when ended by signal n.
    pub code: i32,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// By this node's clock.
    pub at: Timestamp,
}

/// Why an operation failed, as the user will read it in the task's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The whole chain of causes, joined by `: `.
    pub text: String,
    pub kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// It may work in a moment: the task keeps its state and the operation is tried again.
    Temporary,
    /// This node cannot give the task what it asks for: `rejected`, also when found out at start.
    Unfit,
    /// `rejected` before start, `failed` from then on.
    Final,
}

impl Failure {
    /// Writes down `error` with all its causes; `Temporary` if one of these passes, else as `kind` says.
    pub fn unless_passing(kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(if passes(error) { FailureKind::Temporary } else { kind }, error)
    }

    /// Writes down `error` with all its causes.
    pub fn new(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        Self { text: chain(error), kind }
    }
}

/// Whether the machine lacked something that may be there again in a moment (`ENOSPC`, `EMFILE`, `ENFILE`, `EAGAIN`,
/// `EIO`, `ENOMEM`), or a shim gave no answer.
fn passes(error: &(dyn std::error::Error + 'static)) -> bool {
    use rswarm_runtime::{Failure, RuntimeError};
    use rustix::io::Errno;
    const PASSING: [Errno; 6] =
        [Errno::NOSPC, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::IO, Errno::NOMEM];
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        let number = io
            .and_then(std::io::Error::raw_os_error)
            .or_else(|| error.downcast_ref::<Failure>().and_then(Failure::errno));
        let unanswered = matches!(
            error.downcast_ref::<RuntimeError>(),
            Some(RuntimeError::Control { .. } | RuntimeError::StillRunning { .. })
        );
        if unanswered || number.is_some_and(|number| PASSING.contains(&Errno::from_raw_os_error(number))) {
            return true;
        }
        // The cause of an I/O error that wraps another error is the cause of the latter, which would be left out.
        next = match io.and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// What an earlier daemon left.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    pub found: Vec<Found>,
    /// The last map it made the node's network from.
    pub network: NetworkMap,
}

/// A container that was there when the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub task: TaskId,
    pub state: FoundState,
    pub ports: Vec<PortStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundState {
    Created,
    Running {
        pid: i32,
    },
    Ended,
    /// It did not say: it may run, and then as `pid`.
    Unknown {
        pid: Option<i32>,
    },
    /// It was ended because the process beside it was.
    Lost,
    /// Half made, half removed, or from before a reboot.
    Broken,
}

/// Where an executor says how far a long preparation has come.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(String) + Send + Sync>);

impl Progress {
    pub fn new(tell: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Shows `message` as the task's until the next one.
    pub fn tell(&self, message: String) {
        (self.0)(message);
    }
}

/// Which part of a task's log is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// Only lines from then on; 0 means all.
    pub since: Timestamp,
    /// Only the last so many of these.
    pub tail: Option<u64>,
    /// Go on with new lines until the container ended.
    pub follow: bool,
}

/// One line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub at: Timestamp,
    pub stderr: bool,
    /// Without its line feed.
    pub line: Vec<u8>,
}

/// Runs tasks. Operations on one task are never asked for at the same time, but a future may be dropped to give the
/// operation up: the next one on that task must then cope with whatever was reached. All are idempotent.
pub trait Executor: Send + Sync + 'static {
    /// Makes everything up to a container that only needs to be started; a container that is there is taken as it is.
    fn prepare(&self, task: Arc<Task>, progress: Progress) -> BoxFuture<'_, Result<Done, Failure>>;
    /// Starts the container; one that was started before is left as it is.
    fn start(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>>;
    /// Gives a running container the networks that the task has, and takes away those it has no more.
    fn connect(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>>;
    /// Waits for the container's end.
    fn wait(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>>;
    /// Ends the container: stop signal, grace period, kill. What is left stays for its log.
    fn shutdown(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>>;
    /// Deletes all that is left of the task, ending it at once if it runs. The task may be unknown.
    fn remove(&self, task: TaskId) -> BoxFuture<'_, Result<Done, Failure>>;
    /// What is there from before; called once, before anything else.
    fn recover(&self) -> BoxFuture<'_, Result<Recovery, Failure>>;
    /// Sends the asked part of a task's log; ends early when nobody receives any more.
    fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
        lines: mpsc::Sender<LogLine>,
    ) -> BoxFuture<'_, Result<(), Failure>>;
    /// Makes the node's network as `map` says. Tasks that start after this call find it so, also before the future has
    /// ended; of several maps under way only the last counts.
    fn network(&self, map: Arc<NetworkMap>) -> BoxFuture<'static, Result<(), Failure>>;
    /// Compares the node with what should be there and repairs it; called every few seconds.
    fn repair(&self) -> BoxFuture<'_, Result<(), Failure>>;
    /// Compares the node's networks with what should be there, and mends nothing.
    fn check_network(&self) -> BoxFuture<'_, v1::NetworkCheck>;
    /// Brings what is known of the node's network up to date, as of the last time somebody looked.
    fn update_facts(&self, facts: &mut NodeNetworkFacts);
    /// The node's public keys for encrypted networks; `None` of one that cannot take part in these.
    fn tunnel_keys(&self) -> Option<TunnelKeys> {
        None
    }
    /// The index of which this node waits until all nodes have arrived there, if it waits for anything.
    fn awaits_settled(&self) -> Option<Version> {
        None
    }
    /// All nodes have arrived there. Returns whether what the node says of itself is another now.
    fn settled(&self, _index: Version) -> BoxFuture<'static, Result<bool, Failure>> {
        Box::pin(std::future::ready(Ok(false)))
    }
    /// Removes what belongs to no single task: networks, rules, directories. Called when no task is left.
    fn clear(&self) -> BoxFuture<'_, Result<(), Failure>>;
}

#[cfg(test)]
mod tests {
    use std::io;

    use rswarm_runtime::{Cause, RuntimeError};

    use super::*;

    #[test]
    fn causes_are_said_in_words_alone() {
        let error = RuntimeError::File {
            action: "write",
            path: "/x".into(),
            source: io::Error::from_raw_os_error(28),
        };
        let text = chain(&error);
        assert!(text.ends_with(": No space left on device"), "{text}");
        assert_eq!(chain(&io::Error::other("a (b)")), "a (b)");
    }

    #[test]
    fn what_the_machine_lacks_for_a_moment_is_tried_again() {
        let kind = |error: &(dyn std::error::Error + 'static)| {
            Failure::unless_passing(FailureKind::Final, error).kind
        };
        let file = |number| RuntimeError::File {
            action: "write",
            path: "/x".into(),
            source: io::Error::from_raw_os_error(number),
        };
        // ENOSPC, EMFILE, ENFILE, EAGAIN, EIO, ENOMEM; ENOENT, EACCES, EINVAL, ENOEXEC
        for (number, expected) in [28, 24, 23, 11, 5, 12]
            .map(|number| (number, FailureKind::Temporary))
            .into_iter()
            .chain([2, 13, 22, 8].map(|number| (number, FailureKind::Final)))
        {
            assert_eq!(kind(&file(number)), expected, "{number}");
            let source = rswarm_runtime::Failure { step: "exec".to_owned(), cause: Cause::Os(number) };
            let in_shim = RuntimeError::Create { id: "x".to_owned(), source };
            assert_eq!(kind(&in_shim), expected, "{number} in the shim");
            assert_eq!(kind(&io::Error::other(file(number))), expected, "{number}, wrapped");
        }
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&RuntimeError::Control { id: "x".to_owned(), source }), FailureKind::Temporary);
        let unfit = Failure::unless_passing(FailureKind::Unfit, &file(2));
        assert_eq!(unfit.kind, FailureKind::Unfit);
    }
}
