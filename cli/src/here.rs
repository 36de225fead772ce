//! Tasks of this node, for what works without a daemon.

use std::fmt::Display;

use anyhow::{Context as _, bail};
use rswarm_api::v1;
use rswarm_runtime::{Container, Containers, RuntimeError, ShimCommand};
use rswarm_types::{Task, TaskId};

use crate::client::{Client, call};
use crate::node;
use crate::paths::Paths;

/// The container of the task that `text` names.
pub async fn container(paths: &Paths, client: &Client, text: &str) -> anyhow::Result<Container> {
    let containers = Containers::new(paths.containers(), ShimCommand::default());
    let id = find(paths, &containers, client, text).await?;
    containers.find(&id.to_string()).map_err(|error| not_running(text, &error))
}

/// What is said of a task that is here and has ended, or not begun.
pub fn explain(text: &str, error: RuntimeError) -> anyhow::Error {
    match error {
        RuntimeError::WrongState { found, .. } => {
            not_running(text, &format_args!("its container is {found}"))
        }
        error => error.into(),
    }
}

fn not_running(text: &str, what: &dyn Display) -> anyhow::Error {
    anyhow::anyhow!("task `{text}` is not running: {what}")
}

/// The task of this node that `text` names, by the rules of every other command; of several with one name the one that
/// runs. What is not here may be elsewhere, which a manager knows.
async fn find(paths: &Paths, containers: &Containers, client: &Client, text: &str) -> anyhow::Result<TaskId> {
    let tasks = rswarm_worker::tasks_on_disk(&paths.data_root).with_context(|| {
        format!("cannot look for tasks in `{}`: this needs to be root", paths.data_root.display())
    })?;
    if let Some((id, _)) = tasks.iter().find(|(id, _)| id.to_string() == text) {
        return Ok(*id);
    }
    let runs = |id: &TaskId| {
        let container = containers.find(&id.to_string());
        container.and_then(|container| container.init_pid()).is_ok_and(|pid| pid.is_some())
    };
    let named: Vec<TaskId> = tasks.iter().filter(|(_, name)| name == text).map(|(id, _)| *id).collect();
    let running: Vec<TaskId> = named.iter().copied().filter(runs).collect();
    let found = match (running.is_empty(), named.is_empty()) {
        (false, _) => running,
        (true, false) => named,
        (true, true) => {
            let ids = tasks.iter().map(|(id, _)| *id);
            ids.filter(|id| !text.is_empty() && id.to_string().starts_with(text)).collect()
        }
    };
    match found[..] {
        [one] => Ok(one),
        [] => Err(elsewhere(client, text).await),
        _ => bail!("task {text} is ambiguous ({} matches found on this node)", found.len()),
    }
}

/// Why a task that is not on this node cannot be entered.
async fn elsewhere(client: &Client, text: &str) -> anyhow::Error {
    let known = async {
        let found = call!(client, control.get_task(v1::GetTaskRequest { task: text.to_owned() }))?;
        let task = Task::try_from(found.task.unwrap_or_default())?;
        let Some(node) = task.node_id.map(|id| id.to_string()) else {
            return Ok(format!("task `{text}` has no node yet (it is {})", task.status.state));
        };
        let name = node::names(client).await?.remove(&node).unwrap_or(node);
        let state = task.status.state;
        Ok::<_, anyhow::Error>(format!(
            "task `{text}` is not on this node but on `{name}` (it is {state} there): run this command there"
        ))
    };
    match known.await {
        Ok(words) => anyhow::anyhow!(words),
        Err(error) => error.context(format!("no task `{text}` on this node")),
    }
}
