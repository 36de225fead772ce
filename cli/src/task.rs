//! `rswarm task …`, and the task table that `service ps` and `node ps` share. Source: swarm-parity 1.4.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use rswarm_api::v1;
use rswarm_types::{InterfaceName, Task, Timestamp};
use serde_json::{Value, json};

use crate::client::{Client, call, filters};
use crate::output::{self, Columns, human_span, natural_cmp};
use crate::{node, shape};

#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks of all services
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show tasks in full
    Inspect {
        /// `json` or a Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true)]
        tasks: Vec<String>,
    },
}

/// The flags of every list of tasks.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show only tasks that match: id, name, label, service, node (`self` is this one), desired-state
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    pub format: Option<String>,
    /// Ids instead of names
    #[arg(long)]
    pub no_resolve: bool,
    /// Ids, images and errors in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
}

const COLUMNS: Columns = Columns {
    table: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
};

/// Errors longer than this are cut, unless `--no-trunc`.
const ERROR_CHARS: usize = 30;

pub async fn run(client: &Client, command: TaskCommand) -> anyhow::Result<()> {
    match command {
        TaskCommand::Ls(args) => list_where(client, &args, None).await,
        TaskCommand::Inspect { format, tasks } => {
            let (mut found, mut errors) = (Vec::new(), Vec::new());
            for task in tasks {
                match call!(client, control.get_task(v1::GetTaskRequest { task })) {
                    Ok(response) => {
                        found.push(shape::task(&Task::try_from(response.task.unwrap_or_default())?));
                    }
                    Err(error) => errors.push(error.to_string()),
                }
            }
            output::inspect(format.as_deref(), &found)?;
            if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
        }
    }
}

/// Lists the tasks that match `selection` and the filters given by the user.
pub async fn list(client: &Client, args: &ListArgs, selection: v1::Filter) -> anyhow::Result<()> {
    list_where(client, args, Some(selection)).await
}

async fn list_where(client: &Client, args: &ListArgs, selection: Option<v1::Filter>) -> anyhow::Result<()> {
    let mut wanted = filters(&args.filter)?;
    node::resolve_self(client, &mut wanted).await?;
    let mut narrowed = Vec::new();
    if let Some(selection) = selection {
        // A filter of the same key by the user narrows the selection; as one key it would widen it.
        narrowed = wanted.extract_if(.., |filter| filter.key == selection.key).collect();
        wanted.push(selection);
    }
    let tasks = call!(client, control.list_tasks(v1::ListTasksRequest { filters: wanted }))?.tasks;
    let mut tasks = tasks.into_iter().map(Task::try_from).collect::<Result<Vec<_>, _>>()?;
    if !narrowed.is_empty() {
        let allowed = call!(client, control.list_tasks(v1::ListTasksRequest { filters: narrowed }))?.tasks;
        tasks.retain(|task| allowed.iter().any(|other| other.id == task.id.to_string()));
    }
    let nodes = if args.no_resolve || args.quiet { BTreeMap::new() } else { node::names(client).await? };
    sort(&mut tasks);
    if args.quiet && args.format.is_none() {
        let ids: String = tasks.iter().map(|task| format!("{}\n", task.id)).collect();
        return Ok(output::print(&ids)?);
    }
    output::list(COLUMNS, args.format.as_deref(), &rows(&tasks, &nodes, args, Timestamp::now()))
}

/// By name, naturally; newest first within a slot, so that history stands below what runs.
fn sort(tasks: &mut [Task]) {
    tasks.sort_by(|a, b| {
        natural_cmp(&a.name(), &b.name())
            .then_with(|| b.meta.created_at.cmp(&a.meta.created_at))
            .then_with(|| b.id.cmp(&a.id))
    });
}

fn rows(tasks: &[Task], nodes: &BTreeMap<String, String>, args: &ListArgs, now: Timestamp) -> Vec<Value> {
    let mut previous = String::new();
    tasks
        .iter()
        .map(|task| {
            let service =
                if args.no_resolve { task.service_id.to_string() } else { task.service_name.clone() };
            let name = task.name().replacen(&task.service_name, &service, 1);
            let repeated = name == previous;
            previous.clone_from(&name);
            let node = task.node_id.map(|id| id.to_string()).unwrap_or_default();
            json!({
                "ID": if args.no_trunc { task.id.to_string() } else { task.id.short() },
                "Name": if repeated { format!(" \\_ {name}") } else { name },
                "Image": if args.no_trunc { task.spec.container.image.clone() }
                    else { familiar_image(&task.spec.container.image) },
                "Node": nodes.get(&node).unwrap_or(&node),
                "DesiredState": node::capitalised(&task.desired.to_string()),
                "CurrentState": format!("{} {} ago", node::capitalised(&task.status.state.to_string()),
                    human_span(now.since(task.status.at)).to_lowercase()),
                "Error": error(task, args.no_trunc),
                "Ports": ports(task),
            })
        })
        .collect()
}

fn error(task: &Task, full: bool) -> String {
    let text = match (&task.status.unplaced, task.status.error.as_str()) {
        (Some(unplaced), "") => unplaced.to_string(),
        (_, error) => error.to_owned(),
    };
    if text.is_empty() {
        return text;
    }
    let text = text.replace(['\n', '\t'], " ");
    if full || text.chars().count() <= ERROR_CHARS {
        return format!("\"{text}\"");
    }
    format!("\"{}…\"", text.chars().take(ERROR_CHARS - 1).collect::<String>())
}

fn ports(task: &Task) -> String {
    let port = |port: &rswarm_types::task::PortStatus| {
        format!("{}:{}->{}/{}", at(port.host_ip, port.interface), port.published, port.target, port.protocol)
    };
    task.status.ports.iter().map(port).collect::<Vec<_>>().join(",")
}

/// Where on a node a published port answers: at an address, by an interface, or everywhere.
pub fn at(host_ip: Option<IpAddr>, interface: Option<InterfaceName>) -> String {
    match (host_ip, interface) {
        (Some(IpAddr::V4(at)), _) => at.to_string(),
        (Some(IpAddr::V6(at)), _) => format!("[{at}]"),
        (None, Some(name)) => name.to_string(),
        (None, None) => "*".to_owned(),
    }
}

/// Without the digest if there is a tag, and without Docker Hub's own names.
pub fn familiar_image(image: &str) -> String {
    let (name, digest) = image.split_once('@').unwrap_or((image, ""));
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    if tagged || digest.is_empty() { name.to_owned() } else { format!("{name}@{digest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shown_short() {
        for (image, shown) in [
            ("docker.io/library/nginx:1@sha256:ab", "nginx:1"),
            ("127.0.0.1:5000/x/web:2@sha256:ab", "127.0.0.1:5000/x/web:2"),
            ("127.0.0.1:5000/web@sha256:ab", "127.0.0.1:5000/web@sha256:ab"),
            ("web", "web"),
        ] {
            assert_eq!(familiar_image(image), shown);
        }
    }
}
