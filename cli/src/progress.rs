//! Waiting for a service to converge, and what is shown meanwhile. Source: swarm-parity 1.5.
//!
//! [`Progress`] is pure: each view of the service that the manager streams, and the time since the start, give lines
//! to show and a verdict. [`wait`] reads the stream and draws: on a terminal one block that is redrawn in place,
//! elsewhere a line whenever something worth a line changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use rswarm_api::v1;
use rswarm_types::service::{ServiceMode, UpdateState, UpdateStatus};
use rswarm_types::{Node, NodeId, NodeState, Service, Task, TaskId, TaskState};
use tokio::time::Instant;
use tonic::Code;

use crate::client::Client;
use crate::output;
use crate::service::boolean;

/// Whether to wait for a service, and whether to show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub struct Waiting {
    /// Do not wait for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, action = clap::ArgAction::Set,
        value_parser = boolean, value_name = "BOOL")]
    pub detach: bool,
    /// Wait without showing progress
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, action = clap::ArgAction::Set,
        value_parser = boolean, value_name = "BOOL")]
    pub quiet: bool,
}

/// With more tasks than this only their number is shown.
const MAX_BARS: u64 = 20;
/// Longer errors are cut.
const ERROR_CHARS: usize = 75;
const BAR_CHARS: usize = 50;
/// Steps of a bar, from new to running.
const STEPS: usize = 9;
/// Length of the longest state that has a bar, `preparing`.
const STATE_CHARS: usize = 9;
/// How long a broken stream is tried again: a manager that lost its leader finds one in seconds.
const RECONNECT_FOR: Duration = Duration::from_secs(30);
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// The service and all that concerns it at one moment.
#[derive(Debug, Clone)]
struct Snapshot {
    service: Service,
    tasks: Vec<Task>,
    nodes: Vec<Node>,
    /// Tasks made from the present spec.
    up_to_date: BTreeSet<TaskId>,
}

impl TryFrom<v1::WatchServiceResponse> for Snapshot {
    type Error = anyhow::Error;
    fn try_from(wire: v1::WatchServiceResponse) -> anyhow::Result<Self> {
        Ok(Self {
            service: Service::try_from(wire.service.unwrap_or_default())?,
            tasks: wire.tasks.into_iter().map(Task::try_from).collect::<Result<_, _>>()?,
            nodes: wire.nodes.into_iter().map(Node::try_from).collect::<Result<_, _>>()?,
            up_to_date: wire.up_to_date_task_ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?,
        })
    }
}

/// What a line is about, which decides whether it is shown where there is no terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The whole: shown when it changed.
    Overall,
    /// One task on its way.
    Bar,
    /// One task's trouble: shown once each.
    Trouble,
    /// The wait at the end; its countdown alone is no news.
    Verify,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    kind: Kind,
    id: String,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Not there yet; if all runs, ask again after this time although nothing may change.
    Wait(Option<Duration>),
    Converged,
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    lines: Vec<Line>,
    verdict: Verdict,
}

/// One line of the display: a slot or a node.
struct Unit<'a> {
    name: String,
    task: &'a Task,
    /// Of the attempts before `task`, while it waits to be started.
    error: Option<&'a str>,
}

/// The memory between views.
#[derive(Debug, Default)]
struct Progress {
    /// When everything ran for the first time without a break, since the start of the display.
    running_since: Option<Duration>,
    relapsed: bool,
    /// Slot numbers have gaps; units are numbered from 1 in the order in which they appeared.
    places: BTreeMap<u64, usize>,
}

impl Progress {
    /// Judges one view; `now` is the time since the display began and never goes back.
    fn observe(&mut self, snapshot: &Snapshot, now: Duration) -> View {
        let service = &snapshot.service;
        let status = service.update_status.as_ref();
        if let Some(verdict) = failure(status) {
            return View { lines: Vec::new(), verdict };
        }
        let state = status.map(|status| status.state);
        let rolling_back =
            matches!(state, Some(UpdateState::RollbackStarted | UpdateState::RollbackCompleted));
        let (units, wanted) = match service.spec.mode {
            ServiceMode::Replicated { replicas } => (self.slots(snapshot, replicas), Some(replicas)),
            ServiceMode::Global => nodes(snapshot),
        };
        let is_running = |unit: &&Unit<'_>| {
            unit.task.status.state == TaskState::Running && unit.task.desired <= TaskState::Running
        };
        // While surplus tasks stop there are more that run than are wanted.
        let running = units.iter().filter(is_running).count() as u64;
        let running = wanted.map_or(running, |wanted| running.min(wanted));

        let mut lines = Vec::new();
        let id = if rolling_back { "rolling back update" } else { "overall progress" };
        let overall = wanted.map_or_else(
            || "waiting for new tasks".to_owned(),
            |wanted| format!("{running} out of {wanted} tasks"),
        );
        lines.push(Line { kind: Kind::Overall, id: id.to_owned(), text: overall });
        if let Some(status) = status.filter(|status| rolling_back && !status.message.is_empty()) {
            lines.push(Line { kind: Kind::Overall, id: "rollback".to_owned(), text: status.message.clone() });
        }
        if wanted.is_some_and(|wanted| wanted <= MAX_BARS) {
            lines.extend(units.iter().map(|unit| unit.line(rolling_back)));
        }
        let verdict = if wanted == Some(running) {
            // Nothing that could fail needs no watching.
            let monitor = if running == 0 { Duration::ZERO } else { service.spec.update.monitor };
            self.verify(&mut lines, &service.id.to_string(), monitor, now)
        } else {
            self.relapsed |= self.running_since.take().is_some();
            if self.relapsed {
                lines.push(Line::verify("Detected task failure".to_owned()));
            }
            Verdict::Wait(None)
        };
        View { lines, verdict }
    }

    /// All that is wanted runs: it has to do so for `monitor` without a break.
    fn verify(&mut self, lines: &mut Vec<Line>, id: &str, monitor: Duration, now: Duration) -> Verdict {
        self.relapsed = false;
        let since = *self.running_since.get_or_insert(now);
        let left = (since + monitor).saturating_sub(now);
        if left.is_zero() {
            lines.push(Line::verify(format!("Service {id} converged")));
            return Verdict::Converged;
        }
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        lines.push(Line::verify(format!("Waiting {seconds} seconds to verify that tasks are stable...")));
        // The next whole second of the countdown.
        let step = Duration::from_nanos(u64::from(left.subsec_nanos()));
        Verdict::Wait(Some(if step.is_zero() { Duration::from_secs(1).min(left) } else { step }))
    }

    /// The present attempt of each slot, from the present spec and on a node that is not down.
    fn slots<'a>(&mut self, snapshot: &'a Snapshot, replicas: u64) -> Vec<Unit<'a>> {
        let down = snapshot.down();
        let mut slots: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
        for task in &snapshot.tasks {
            let gone = task.node_id.is_some_and(|node| down.contains(&node));
            if snapshot.concerns(task) && !gone {
                slots.entry(task.slot).or_default().push(task);
            }
        }
        // Slots that went away leave their line to others.
        self.places.retain(|slot, _| slots.contains_key(slot));
        for slot in slots.keys() {
            let taken: BTreeSet<usize> = self.places.values().copied().collect();
            let free = (1..).find(|place| !taken.contains(place)).unwrap_or_default();
            self.places.entry(*slot).or_insert(free);
        }
        let mut units: Vec<(usize, Unit<'a>)> = slots
            .iter()
            .filter_map(|(slot, tasks)| {
                let place = self.places[slot];
                let unit = unit(format!("{place}/{replicas}"), tasks)?;
                (place as u64 <= replicas || unit.task.desired <= TaskState::Running).then_some((place, unit))
            })
            .collect();
        units.sort_by_key(|(place, _)| *place);
        units.into_iter().map(|(_, unit)| unit).collect()
    }
}

impl Snapshot {
    /// Whether a task is one of those to wait for, or an attempt at one. What was tried with an equal spec before the
    /// last update says nothing of this one.
    fn concerns(&self, task: &Task) -> bool {
        self.up_to_date.contains(&task.id)
            && (task.desired <= TaskState::Running || task.spec_version == self.service.spec_version)
    }

    fn down(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|node| node.status.state == NodeState::Down).map(|node| node.id).collect()
    }
}

/// The node's task from the present spec, for each node that has one or still has one of the spec before. Their
/// number is unknown until the first task is there.
fn nodes(snapshot: &Snapshot) -> (Vec<Unit<'_>>, Option<u64>) {
    let down = snapshot.down();
    let mut present: BTreeMap<NodeId, Vec<&Task>> = BTreeMap::new();
    let mut expected = BTreeSet::new();
    for task in &snapshot.tasks {
        let Some(node) = task.node_id.filter(|node| !down.contains(node)) else { continue };
        if snapshot.concerns(task) {
            present.entry(node).or_default().push(task);
        }
        if task.desired <= TaskState::Running {
            expected.insert(node);
        }
    }
    // A node whose task ended for good was not let off.
    expected.extend(present.iter().filter(|(_, tasks)| ended_by_itself(tasks)).map(|(node, _)| *node));
    let units = present.iter().filter(|(node, _)| expected.contains(*node));
    let units = units.filter_map(|(node, tasks)| unit(node.short(), tasks)).collect();
    (units, (!expected.is_empty()).then_some(expected.len() as u64))
}

/// Whether the newest of these tasks was not told to stop before it ended.
fn ended_by_itself(tasks: &[&Task]) -> bool {
    let newest = tasks.iter().max_by_key(|task| (task.meta.created_at, task.id));
    newest.is_some_and(|task| {
        matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
    })
}

/// Of several attempts the one that is meant to live; of equals the one that has come less far, so that a start-first
/// update is not done before its new task runs. If none is meant to live, the newest.
fn unit<'a>(name: String, tasks: &[&'a Task]) -> Option<Unit<'a>> {
    let rank = |task: &Task| {
        let state = if task.desired <= TaskState::Running { task.status.state } else { TaskState::Remove };
        (task.desired, state, std::cmp::Reverse(task.meta.created_at))
    };
    let task = *tasks.iter().min_by_key(|task| rank(task))?;
    let held = task.desired == TaskState::Ready && task.status.error.is_empty();
    let previous = tasks.iter().filter(|other| held && !other.status.error.is_empty());
    let error = previous.max_by_key(|other| other.meta.created_at).map(|other| other.status.error.as_str());
    Some(Unit { name, task, error })
}

impl Unit<'_> {
    fn line(&self, rolling_back: bool) -> Line {
        let status = &self.task.status;
        let trouble = match &status.unplaced {
            _ if !status.error.is_empty() => Some(status.error.clone()),
            Some(unplaced) if status.state == TaskState::Pending => Some(unplaced.to_string()),
            _ => self.error.map(str::to_owned),
        };
        if let Some(text) = trouble.filter(|_| status.state != TaskState::Running) {
            return Line { kind: Kind::Trouble, id: self.name.clone(), text: cut(&text) };
        }
        let state = status.state.to_string();
        let text = match step(status.state) {
            Some(step) => {
                let step = if rolling_back { STEPS - step } else { step };
                format!("{state:STATE_CHARS$} {}", bar(step))
            }
            None => state,
        };
        Line { kind: Kind::Bar, id: self.name.clone(), text }
    }
}

impl Line {
    fn verify(text: String) -> Self {
        Self { kind: Kind::Verify, id: "verify".to_owned(), text }
    }

    /// What counts as news where lines stay: a countdown is none.
    fn news(&self) -> Option<String> {
        match self.kind {
            Kind::Bar => None,
            Kind::Overall | Kind::Trouble => Some(self.to_string()),
            Kind::Verify => Some(self.text.replace(|c: char| c.is_ascii_digit(), "")),
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.id, self.text.trim_end())
    }
}

/// How far a task has come of [`STEPS`]; none once it ended.
fn step(state: TaskState) -> Option<usize> {
    match state {
        TaskState::New => Some(1),
        TaskState::Pending => Some(3),
        TaskState::Assigned => Some(4),
        TaskState::Accepted => Some(5),
        TaskState::Preparing => Some(6),
        TaskState::Ready => Some(7),
        TaskState::Starting => Some(8),
        TaskState::Running => Some(STEPS),
        _ => None,
    }
}

fn bar(step: usize) -> String {
    let done = BAR_CHARS * step / STEPS;
    format!("[{}>{}]", "=".repeat(done), " ".repeat(BAR_CHARS - done))
}

fn cut(error: &str) -> String {
    let flat: String = error.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= ERROR_CHARS {
        return flat;
    }
    flat.chars().take(ERROR_CHARS - 1).chain(['…']).collect()
}

/// A change that stopped and waits for the user.
fn failure(status: Option<&UpdateStatus>) -> Option<Verdict> {
    let status = status?;
    let what = match status.state {
        UpdateState::Paused => "update",
        UpdateState::RollbackPaused => "rollback",
        _ => return None,
    };
    Some(Verdict::Failed(format!("service {what} paused: {}", status.message)))
}

/// Shows views on standard output.
struct Display {
    quiet: bool,
    terminal: bool,
    /// Lines of the block on the terminal.
    drawn: usize,
    /// What was already said where there is no terminal: the last line of each id, and every trouble.
    said: BTreeMap<String, String>,
    troubles: BTreeSet<String>,
}

impl Display {
    fn new(quiet: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { quiet, terminal, drawn: 0, said: BTreeMap::new(), troubles: BTreeSet::new() }
    }

    fn show(&mut self, lines: &[Line]) -> std::io::Result<()> {
        if self.quiet || lines.is_empty() {
            return Ok(());
        }
        let text = if self.terminal { self.block(lines) } else { self.sparse(lines) };
        output::print(&text)
    }

    /// The block anew, over the old one. Long lines are cut by the terminal, as a wrapped one would break the count.
    fn block(&mut self, lines: &[Line]) -> String {
        let mut out = String::from("\x1b[?7l");
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
        for line in lines {
            out.push_str(&format!("{line}\x1b[K\n"));
        }
        out.push_str("\x1b[J\x1b[?7h");
        self.drawn = lines.len();
        out
    }

    fn sparse(&mut self, lines: &[Line]) -> String {
        let mut out = String::new();
        for line in lines {
            let Some(news) = line.news() else { continue };
            let new = match line.kind {
                Kind::Trouble => self.troubles.insert(line.text.clone()),
                _ => self.said.insert(line.id.clone(), news.clone()).as_ref() != Some(&news),
            };
            if new {
                out.push_str(&format!("{line}\n"));
            }
        }
        out
    }
}

/// Waits until `service` (id) runs as wanted and stays so for its monitor period.
///
/// Ctrl-C ends the wait and not the operation: that is no error.
///
/// # Errors
/// If the update or rollback paused, if the service was removed, or if the daemon cannot be asked.
pub async fn wait(client: &Client, service: &str, quiet: bool) -> anyhow::Result<()> {
    tokio::select! {
        result = watch(client, service, quiet) => result,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            if !quiet {
                output::print(&format!(
                    "Operation continuing in background.\nUse `rswarm service ps {service}` to check progress.\n"
                ))?;
            }
            Ok(())
        }
    }
}

async fn watch(client: &Client, service: &str, quiet: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut progress, mut display) = (Progress::default(), Display::new(quiet));
    let mut broken_since: Option<Instant> = None;
    let mut stream = None;
    let mut latest: Option<Snapshot> = None;
    let mut wake: Option<Instant> = None;
    loop {
        let next = async {
            let views: &mut tonic::Streaming<v1::WatchServiceResponse> = match &mut stream {
                Some(views) => views,
                None => {
                    let request = v1::WatchServiceRequest { service: service.to_owned() };
                    stream.insert(client.control().watch_service(request).await?.into_inner())
                }
            };
            views.message().await?.ok_or_else(|| tonic::Status::unavailable("the stream ended"))
        };
        let due = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            view = next => match view {
                Ok(view) => {
                    latest = Some(Snapshot::try_from(view)?);
                    broken_since = None;
                }
                Err(status) if is_passing(&status) => {
                    let since = *broken_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= RECONNECT_FOR {
                        return Err(client.error(&status).into());
                    }
                    stream = None;
                    // What runs cannot be judged while nobody tells.
                    wake = None;
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                    continue;
                }
                Err(status) if status.code() == Code::NotFound && latest.is_some() => {
                    anyhow::bail!("service `{service}` was removed");
                }
                Err(status) => return Err(client.error(&status).into()),
            },
            () = due => {}
        }
        let Some(snapshot) = &latest else { continue };
        let View { lines, verdict } = progress.observe(snapshot, start.elapsed());
        display.show(&lines)?;
        match verdict {
            Verdict::Wait(pause) => wake = pause.map(|pause| Instant::now() + pause),
            Verdict::Converged => return Ok(()),
            Verdict::Failed(reason) => anyhow::bail!(reason),
        }
    }
}

/// Whether a stream that broke so may be opened again with success.
fn is_passing(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Aborted | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

#[cfg(test)]
mod tests;
