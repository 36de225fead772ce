//! What only looks: `state`, `list`, `ps`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::Context;
use super::container::Container;
use super::error::{CommandError, During};
use super::options::{Parsed, UsageError};

/// A container as runc shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    oci_version: &'a str,
    id: &'a str,
    /// 0 when it has stopped.
    pid: i32,
    status: &'a str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    owner: String,
}

fn view(container: &Container, owner: String) -> View<'_> {
    let record = &container.record;
    let phase = container.phase();
    View {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: container.pid(phase).unwrap_or(0),
        status: phase.name(),
        bundle: &record.bundle,
        rootfs: &record.rootfs,
        created: &record.created,
        annotations: &record.annotations,
        owner,
    }
}

/// `state`.
pub(super) fn state(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    let text = serde_json::to_string_pretty(&view(&container, String::new()));
    print(&text.map_err(std::io::Error::from).during("describe the state")?)
}

/// `list`. A container whose record cannot be read is named in the log and left out.
pub(super) fn list(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let format = format(parsed)?;
    let mut containers = Vec::new();
    for id in context.store.ids()? {
        match context.store.load(&id) {
            Ok(container) => containers.push(container),
            // It is being made or deleted at this moment.
            Err(CommandError::NotFound { .. }) => {}
            Err(error) => context.log.warn(&super::report::chain(&error)),
        }
    }
    if parsed.is_on("quiet") {
        let ids: String = containers.iter().map(|container| container.record.id.clone() + "\n").collect();
        return print(&ids);
    }
    let views: Vec<View<'_>> = containers.iter().map(|container| view(container, owner(container))).collect();
    if format == Format::Json {
        // As runc has it: nothing is "null" there.
        let text = if views.is_empty() { Ok("null".to_owned()) } else { serde_json::to_string(&views) };
        return print(&(text.map_err(std::io::Error::from).during("describe the containers")? + "\n"));
    }
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(views.iter().map(|view| {
        let bundle = view.bundle.display().to_string();
        [
            view.id.to_owned(),
            view.pid.to_string(),
            view.status.to_owned(),
            bundle,
            view.created.to_owned(),
            view.owner.clone(),
        ]
    }));
    print(&table(&rows))
}

/// Columns at least 12 wide, 3 apart, the last one as it is.
fn table(rows: &[[String; 6]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| -> String {
        let cells = row[..5].iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<String>() + &row[5] + "\n"
    };
    rows.iter().map(line).collect()
}

/// Name of whoever made the container; the number if it has no name.
fn owner(container: &Container) -> String {
    let Ok(uid) = fs::metadata(&container.directory).map(|metadata| metadata.uid()) else {
        return String::new();
    };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

/// `ps`.
pub(super) fn ps(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    let pids = container.record.cgroup.pids().during("list the processes of the container")?;
    if format(parsed)? == Format::Json {
        let text = serde_json::to_string(&pids).map_err(std::io::Error::from);
        return print(&(text.during("describe the processes")? + "\n"));
    }
    let options = &parsed.arguments[1..];
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default[..] } else { options };
    let output = Command::new("ps").args(options).output().during("run `ps`")?;
    if !output.status.success() {
        // Where it selects nothing, it says so by its exit status alone.
        let said =
            [output.stderr, output.stdout].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
        let said = said.into_iter().filter(|said| !said.is_empty());
        let text = std::iter::once(output.status.to_string()).chain(said).collect::<Vec<_>>().join(": ");
        return Err(std::io::Error::other(text)).during("run `ps`");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let Some(column) = title.split_whitespace().position(|name| name == "PID") else {
        return Err(std::io::Error::other("its output has no column PID")).during("run `ps`");
    };
    let is_ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    print(
        &std::iter::once(title)
            .chain(lines.filter(is_ours))
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
}

fn format(parsed: &Parsed) -> Result<Format, UsageError> {
    match parsed.value("format") {
        None | Some("table" | "") => Ok(Format::Table),
        Some("json") => Ok(Format::Json),
        Some(value) => {
            let (flag, value) = ("format", value.to_owned());
            Err(UsageError::InvalidValue { flag, value, expected: "table or json" })
        }
    }
}

/// To standard output, all of it or an error.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).during("write to standard output")
}
