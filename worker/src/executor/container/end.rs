//! How a container ends: by itself, on request, or by force.
//!
//! Its shim tells of the end and passes signals on. A shim that hangs, or that somebody stopped, does neither; then the
//! first process itself is watched and signalled, and at last both are killed: no task keeps its node for ever, and
//! none is said to run when nothing does. As long as the process runs and is meant to, a silent shim costs nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rswarm_runtime::{Container, ExitStatus, RuntimeError, State, Status};
use rswarm_types::{Task, TaskId, Timestamp};
use tokio::net::unix::pipe;

use super::{ContainerExecutor, Error, Node, blocking};
use crate::executor::{Exit, Failure, FailureKind};
use crate::task::Done;

/// Without a grace period of its own. Source: swarm-parity 1.3.
const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// How long a shim may take to tell of an end that the kernel has told of. It takes up to 5 s where a cgroup is slow
/// to go.
const SHIM_ANSWER: Duration = Duration::from_secs(10);

/// A container and where its end shows.
struct Watched {
    container: Arc<Container>,
    /// Readable when the shim tells of the end, or has gone. `None` if it does not even take the question.
    told: Option<OwnedFd>,
    /// Readable when the first process has ended. `None` if nothing is known about that.
    process: Option<OwnedFd>,
}

/// The same for the event loop.
struct Ends {
    told: Option<pipe::Receiver>,
    process: Option<pipe::Receiver>,
}

/// How far a stop got without waiting.
#[derive(Clone, Copy)]
enum Stop {
    NeverStarted,
    Asked,
    /// Its process was asked, as its shim does not answer.
    AskedPastShim,
    Ended,
}

impl ContainerExecutor {
    pub(super) async fn wait(&self, task: TaskId) -> Result<Done, Failure> {
        let node = self.node.clone();
        let Some(watched) = blocking(move || node.find_and_watch(task)).await?? else {
            return Ok(Done::Ended(None));
        };
        let (container, ends) = watched.split()?;
        let told = ends.reached().await?;
        let done = blocking(move || outcome(&container, told)).await??;
        self.networks.release(task).await;
        Ok(done)
    }

    pub(super) async fn shutdown(&self, task: Arc<Task>) -> Result<Done, Failure> {
        let guard = self.lock(task.id).await;
        let (node, id) = (self.node.clone(), task.id);
        let Some(watched) = blocking(move || node.find_and_watch(id)).await?? else {
            self.networks.release(id).await;
            return Ok(Done::Ended(None));
        };
        let (container, ends) = watched.split()?;
        let grace = task.spec.container.stop_grace_period.unwrap_or(STOP_GRACE_PERIOD);
        let asked = {
            let (node, container) = (self.node.clone(), container.clone());
            blocking(move || node.ask_to_stop(id, &container, grace)).await??
        };
        let done = match asked {
            Stop::NeverStarted => Done::Ended(None),
            Stop::Ended => blocking(move || outcome(&container, true)).await??,
            Stop::Asked => {
                let told = match tokio::time::timeout(grace, ends.reached()).await {
                    Ok(told) => told?,
                    Err(_) => {
                        let container = container.clone();
                        blocking(move || kill(&container)).await??;
                        // Until it is really gone: a process that hangs in the kernel keeps its task alive.
                        ends.reached().await?
                    }
                };
                blocking(move || outcome(&container, told)).await??
            }
            Stop::AskedPastShim => {
                let _ = tokio::time::timeout(grace, ends.process_ended()).await;
                blocking(move || end_by_force(&container)).await??
            }
        };
        self.networks.release(id).await;
        drop(guard);
        Ok(done)
    }
}

impl Node {
    fn find_and_watch(&self, task: TaskId) -> Result<Option<Watched>, Error> {
        let Some(container) = self.find(task)? else { return Ok(None) };
        let process = container.watch_process()?;
        let told = match container.watch() {
            Ok(told) => Some(told),
            Err(error) if error.is_silence() && process.is_some() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Watched { container: Arc::new(container), told, process }))
    }

    /// Sends the stop signal; without a grace period the last one at once.
    fn ask_to_stop(&self, task: TaskId, container: &Container, grace: Duration) -> Result<Stop, Error> {
        let signal = || Ok::<_, Error>(self.read_record(task)?.unwrap_or_default().stop_signal);
        match container.state() {
            Ok(State { status: Status::Exited(_) | Status::Lost, .. }) => return Ok(Stop::Ended),
            Ok(State { status: Status::Created, .. }) => {
                container.delete()?;
                return Ok(Stop::NeverStarted);
            }
            Ok(State { status: Status::Running, .. }) => {}
            Err(error) if error.is_silence() => {
                if !grace.is_zero() {
                    container.signal_past_shim(signal()?)?;
                }
                return Ok(Stop::AskedPastShim);
            }
            Err(error) => return Err(error.into()),
        }
        if grace.is_zero() {
            kill(container)?;
            return Ok(Stop::Asked);
        }
        match container.kill(signal()?, false) {
            Ok(()) => Ok(Stop::Asked),
            Err(RuntimeError::WrongState { .. }) => Ok(Stop::Ended),
            Err(error) => Err(error.into()),
        }
    }
}

impl Watched {
    fn split(self) -> Result<(Arc<Container>, Ends), Failure> {
        let Self { container, told, process } = self;
        let ends = Ends { told: told.map(watch).transpose()?, process: process.map(watch).transpose()? };
        Ok((container, ends))
    }
}

impl Ends {
    /// Returns when the container has ended: `true` if its shim says so, `false` if it has had the time to and did not.
    async fn reached(&self) -> Result<bool, Failure> {
        let told = async {
            match &self.told {
                Some(told) => told.readable().await.map_err(|error| watch_failure(&error)),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = told => told.map(|()| true),
            () = async {
                self.process_ended().await;
                tokio::time::sleep(SHIM_ANSWER).await;
            } => Ok(false),
        }
    }

    async fn process_ended(&self) {
        match &self.process {
            Some(process) if process.readable().await.is_ok() => {}
            // The shim will have to tell.
            _ => std::future::pending().await,
        }
    }
}

/// How a container that has ended did so. A shim that does not say is killed, and what is left of the container; one
/// that has not `told` of the end by now is not asked any more.
fn outcome(container: &Container, told: bool) -> Result<Done, Error> {
    if !told {
        return end_by_force(container);
    }
    match container.state_within(SHIM_ANSWER) {
        Ok(State { status: Status::Exited(status), .. }) => Ok(Done::Ended(Some(read_exit(&status)))),
        Ok(State { status: Status::Lost, .. }) | Err(RuntimeError::NotFound { .. }) => Ok(Done::Ended(None)),
        Ok(State { status: found, .. }) => {
            let id = container.id().to_owned();
            Err(RuntimeError::WrongState { id, expected: "exited", found }.into())
        }
        Err(error) if error.is_silence() => end_by_force(container),
        Err(error) => Err(error.into()),
    }
}

fn end_by_force(container: &Container) -> Result<Done, Error> {
    tracing::warn!(container = container.id(), "its shim does not answer: both are killed");
    container.end_with_shim()?;
    match container.state()?.status {
        // Its last word, before it fell silent.
        Status::Exited(status) => Ok(Done::Ended(Some(read_exit(&status)))),
        _ => Ok(Done::EndedByForce),
    }
}

fn read_exit(status: &ExitStatus) -> Exit {
    Exit {
        code: status.shell_code(),
        oom_killed: status.oom_killed,
        at: Timestamp(u64::try_from(status.finished_at_unix_nanos).unwrap_or_default()),
    }
}

/// SIGKILL to every process of the container. A shim that has fallen silent by now is for [`outcome`].
fn kill(container: &Container) -> Result<(), Error> {
    match container.kill(9, true) {
        Ok(()) | Err(RuntimeError::WrongState { .. }) => Ok(()),
        Err(error) if error.is_silence() => Ok(container.end_with_shim()?),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn until_readable(fd: OwnedFd) -> Result<(), Failure> {
    watch(fd)?.readable().await.map_err(|error| watch_failure(&error))
}

/// Readiness of any descriptor. Nothing is read through it, so that it is called a pipe does not matter; the type made
/// for this asks its users for `unsafe`.
pub(super) fn watch(fd: OwnedFd) -> Result<pipe::Receiver, Failure> {
    pipe::Receiver::from_owned_fd_unchecked(fd).map_err(|error| watch_failure(&error))
}

fn watch_failure(error: &std::io::Error) -> Failure {
    Failure { text: format!("failed to watch the container: {error}"), kind: FailureKind::Temporary }
}
