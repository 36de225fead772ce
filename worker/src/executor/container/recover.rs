//! What a daemon finds of the tasks of the one before it.
//!
//! Only what is proven counts: a container whose shim does not answer may well run.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rswarm_runtime::{Container, RuntimeError, State, Status};
use rswarm_types::TaskId;

use super::record::Record;
use super::{ContainerExecutor, Error, Node, blocking, file_error, strays};
use crate::executor::{Failure, Found, FoundState, Recovery};
use rswarm_types::error::chain;

/// Containers from before that are looked at at the same time, each in a thread.
const RECOVERING_MAX: usize = 32;
/// How long each of them may take to say how it is; the daemon starts no sooner.
const RECOVER_ANSWER: Duration = Duration::from_secs(1);

/// A container found at start.
struct Recovered {
    task: TaskId,
    state: FoundState,
    record: Option<Record>,
}

impl ContainerExecutor {
    /// Takes over what the daemon before left running, with its networks, and ends what no daemon knows any more.
    pub(super) async fn recover(&self) -> Result<Recovery, Failure> {
        let node = self.node.clone();
        blocking(move || strays::end(&node.config.containers, &node.config.shim.args)).await?;
        let node = self.node.clone();
        let recovered = blocking(move || node.take_stock()).await??;
        let network = self.networks.recover().await;
        let mut found = Vec::new();
        for Recovered { task, state, record } in recovered {
            let ports = record.as_ref().map(|record| record.ports.clone()).unwrap_or_default();
            let pid = match state {
                FoundState::Running { pid } => Some(pid),
                FoundState::Unknown { pid } => pid,
                _ => None,
            };
            if let (Some(pid), Some(record)) = (pid, record) {
                self.networks.adopt(task, pid, &record).await;
            }
            found.push(Found { task, state, ports });
        }
        // What cannot be mended now is tried again by every repair; the containers go on meanwhile.
        if let Err(failure) = self.networks.repair().await {
            tracing::error!(error = %failure.text, "the network of adopted containers could not be checked");
        }
        Ok(Recovery { found, network })
    }
}

impl Node {
    /// Several at a time, as each that does not answer takes its second.
    fn look_at_all(&self, tasks: &[TaskId]) -> Vec<(TaskId, FoundState)> {
        let next = AtomicUsize::new(0);
        let look = || {
            let mut found = Vec::new();
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let container = self.containers.find(&task.to_string());
                found.push((*task, container.map_or(FoundState::Broken, |container| look_at(&container))));
            }
            found
        };
        std::thread::scope(|scope| {
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, look).ok();
            let threads: Vec<_> = (1..tasks.len().min(RECOVERING_MAX)).filter_map(spawn).collect();
            // This thread does its part: all, should no other have been had.
            let mut found = look();
            for thread in threads {
                found.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            found
        })
    }

    /// Takes stock of all that is there, without any answer from a shim if need be.
    fn take_stock(&self) -> Result<Vec<Recovered>, Error> {
        let mut tasks = Vec::new();
        for id in self.containers.list()? {
            match id.parse::<TaskId>() {
                Ok(task) => tasks.push(task),
                // A container of this directory that no task can have made.
                Err(_) => tracing::warn!(container = %id, "left alone: its name is no task's id"),
            }
        }
        let mut recovered = BTreeMap::new();
        for (task, state) in self.look_at_all(&tasks) {
            recovered.insert(task, Recovered { task, state, record: self.read_record(task)? });
        }
        // Directories whose container was never made, or is gone.
        let entries = std::fs::read_dir(&self.tasks).map_err(file_error("list", &self.tasks))?;
        for entry in entries {
            let entry = entry.map_err(file_error("list", &self.tasks))?;
            if let Some(task) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                recovered.entry(task).or_insert(Recovered { task, state: FoundState::Broken, record: None });
            }
        }
        let mut in_use = self.images_in_use.lock().unwrap_or_else(PoisonError::into_inner);
        for Recovered { task, record, .. } in recovered.values() {
            if let Some(Record { image: Some(image), name, .. }) = record {
                in_use.insert(*task, (*image, name.clone()));
            }
        }
        Ok(recovered.into_values().collect())
    }
}

/// What is to be thought of a container from before this daemon.
fn look_at(container: &Container) -> FoundState {
    match container.state_within(RECOVER_ANSWER) {
        Ok(State { status: Status::Running, pid: Some(pid), .. }) => FoundState::Running { pid },
        Ok(State { status: Status::Created, .. }) => FoundState::Created,
        Ok(State { status: Status::Exited(exit), .. }) if exit.started_at_unix_nanos.is_some() => {
            FoundState::Ended
        }
        // Of a container from before a reboot nobody knows when it was made.
        Ok(State { status: Status::Lost, created_at_unix_nanos: 1.., .. }) => FoundState::Lost,
        Ok(_) | Err(RuntimeError::NotFound { .. }) => FoundState::Broken,
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(container = container.id(), %error, "the state of a container is not known yet");
            FoundState::Unknown { pid: container.init_pid().unwrap_or_default() }
        }
    }
}
