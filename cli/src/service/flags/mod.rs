//! The flags of `service create` and `service update`, and what they make of a [`ServiceSpec`]. Pure: files, the
//! environment and the cluster's networks are handed in.
//!
//! Flags with one value are the same for both commands and are in [`Settings`]; lists are given whole on creation
//! ([`create`]) and changed by `-add` and `-rm` on update ([`update`]). Source: swarm-parity 1.3, 1.3b.

mod create;
mod unsupported;
mod update;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rswarm_types::quantity::{parse_cpus, parse_duration};
use rswarm_types::service::{
    EndpointMode, FailureAction, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
};
use rswarm_types::task::{LogConfig, NetworkAttachment, RestartCondition};
use rswarm_types::{NetworkId, quantity::ParseQuantityError};

pub use create::CreateFlags;
pub use update::UpdateFlags;

use super::value::{self, Attachment, LogOption, Words};

/// Flags that are each well formed and do not go together, or name what is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    #[error("--{flag} can only be used with replicated mode")]
    NeedsReplicated { flag: &'static str },
    #[error("--log-opt replaces all options of the log driver: give --log-driver in the same update")]
    LogOptionsWithoutDriver,
    #[error("--log-opt max-buffer-size is of the non-blocking mode only: give mode=non-blocking with it")]
    BufferOfBlockingLog,
    #[error("duplicate mount target `{0}`")]
    DuplicateMount(String),
    #[error("network `{0}` not found")]
    NoSuchNetwork(String),
    #[error("network `{name}` is ambiguous ({matches} matches found)")]
    AmbiguousNetwork { name: String, matches: usize },
    #[error("service is already attached to network `{0}`")]
    AlreadyAttached(String),
    #[error("invalid line {line} of env file `{}`: expected KEY=value, found `{text}`", path.display())]
    EnvFile { path: PathBuf, line: usize, text: String },
    #[error(
        "--rollback goes back to the previous spec as it was: expected no other flags than --detach and --quiet"
    )]
    RollbackAlone,
}

/// What may wait for a log in the non-blocking mode when nothing is said. Source: Docker Engine documentation, "Configure
/// logging drivers", `max-buffer-size`.
const LOG_BUFFER_BYTES: u64 = 1 << 20;

/// What the values of flags refer to outside the command line.
pub struct Surroundings<'a> {
    /// Every network of the cluster: id and name.
    pub networks: &'a [(NetworkId, String)],
    /// The client's environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The files named by `--env-file`, in order.
    pub env_files: &'a [(PathBuf, String)],
}

impl Surroundings<'_> {
    /// Full id, then exact name, then unique prefix of an id, as the manager resolves. Source: swarm-parity 1.0.
    fn network(&self, wanted: &str) -> Result<NetworkId, FlagError> {
        let exact = |(id, name): &&(NetworkId, String)| id.to_string() == wanted || name == wanted;
        if let Some((id, _)) = self.networks.iter().find(exact) {
            return Ok(*id);
        }
        let starts: Vec<_> =
            self.networks.iter().filter(|(id, _)| id.to_string().starts_with(wanted)).collect();
        match starts.as_slice() {
            [(id, _)] => Ok(*id),
            [] => Err(FlagError::NoSuchNetwork(wanted.to_owned())),
            _ => Err(FlagError::AmbiguousNetwork { name: wanted.to_owned(), matches: starts.len() }),
        }
    }

    fn attach(&self, list: &mut Vec<NetworkAttachment>, added: &[Attachment]) -> Result<(), FlagError> {
        for Attachment { network, aliases } in added {
            let id = self.network(network)?;
            if list.iter().any(|attachment| attachment.network == id) {
                return Err(FlagError::AlreadyAttached(network.clone()));
            }
            list.push(NetworkAttachment { network: id, aliases: aliases.clone() });
        }
        Ok(())
    }
}

/// Lets a flag that needs a value take the next word whatever it looks like, as in Docker: `--args -v`,
/// `--oom-score-adj -500`. A negative number where none fits is then a wrong value of that flag.
fn takes_next_word(arg: clap::Arg) -> clap::Arg {
    let needs_value = arg.get_action().takes_values() && !arg.is_require_equals_set();
    if needs_value && !arg.is_positional() { arg.allow_hyphen_values(true) } else { arg }
}

fn cpus(text: &str) -> Result<u64, ParseQuantityError> {
    parse_cpus(text)
}

/// The flags that both commands have. `None` leaves what is there.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct Settings {
    /// How the service's name resolves: vip or dnsrr
    #[arg(long, value_name = "MODE")]
    endpoint_mode: Option<EndpointMode>,
    /// Replace the image's entrypoint; split as by a shell
    #[arg(long, value_name = "COMMAND", value_parser = value::words)]
    entrypoint: Option<Words>,
    /// Host name in the container
    #[arg(long)]
    hostname: Option<String>,
    /// Run an init as process 1 (not supported yet)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    init: Option<bool>,
    /// Most CPUs the task may use, like 0.5
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    limit_cpu: Option<u64>,
    /// Most memory the task may use, like 512m
    #[arg(long, value_name = "BYTES", value_parser = value::bytes)]
    limit_memory: Option<u64>,
    /// Most processes the task may have; 0 is no limit
    #[arg(long, value_name = "N")]
    limit_pids: Option<u64>,
    /// json-file, local or rswarm: all mean rswarm's own
    #[arg(long, value_name = "DRIVER", value_parser = value::log_driver)]
    log_driver: Option<String>,
    /// max-size=10m, max-file=3, mode=non-blocking or max-buffer-size=1m
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::log_option)]
    log_opt: Vec<LogOption>,
    /// Accepted, as tasks have no health checks
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    no_healthcheck: Option<bool>,
    /// Leave the image as written, without looking up its digest
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    no_resolve_image: Option<bool>,
    /// From -1000 (spared) to 1000 (killed first) when the node is out of memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Connect callers to tasks on the node that they come by, as long as there are such
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    prefer_same_node: Option<bool>,
    /// Mount the root file system read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    read_only: Option<bool>,
    /// Give tasks a terminal in place of pipes
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    tty: Option<bool>,
    /// Number of tasks
    #[arg(long, value_name = "N", value_parser = value::replicas)]
    replicas: Option<u64>,
    /// Most tasks on one node; 0 is no limit
    #[arg(long, value_name = "N")]
    replicas_max_per_node: Option<u64>,
    /// CPUs a node must have to spare
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    reserve_cpu: Option<u64>,
    /// Memory a node must have to spare
    #[arg(long, value_name = "BYTES", value_parser = value::bytes)]
    reserve_memory: Option<u64>,
    /// When a task that ended is replaced: none, on-failure or any (default any)
    #[arg(long, value_name = "CONDITION")]
    restart_condition: Option<RestartCondition>,
    /// Wait before a restart (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    restart_delay: Option<Duration>,
    /// Give up after so many restarts; 0 is never
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u64>,
    /// Restarts older than this do not count; 0s means all do
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    restart_window: Option<Duration>,
    /// Wait between rollbacks of tasks (default 0s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    rollback_delay: Option<Duration>,
    /// pause or continue (default pause)
    #[arg(long, value_name = "ACTION", value_parser = value::rollback_failure_action)]
    rollback_failure_action: Option<FailureAction>,
    /// Share of failures that a rollback bears (default 0)
    #[arg(long, value_name = "RATIO", value_parser = value::ratio)]
    rollback_max_failure_ratio: Option<f64>,
    /// How long a task must run to count as rolled back (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    rollback_monitor: Option<Duration>,
    /// stop-first or start-first (default stop-first)
    #[arg(long, value_name = "ORDER")]
    rollback_order: Option<UpdateOrder>,
    /// Tasks rolled back at once; 0 is all (default 1)
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<u64>,
    /// Wait between the stop signal and the kill (default 10s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    stop_grace_period: Option<Duration>,
    /// Signal that asks the task to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Wait between updates of tasks (default 0s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    update_delay: Option<Duration>,
    /// pause, continue or rollback (default pause)
    #[arg(long, value_name = "ACTION")]
    update_failure_action: Option<FailureAction>,
    /// Share of failures that an update bears (default 0)
    #[arg(long, value_name = "RATIO", value_parser = value::ratio)]
    update_max_failure_ratio: Option<f64>,
    /// How long a task must run to count as updated (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    update_monitor: Option<Duration>,
    /// stop-first or start-first (default stop-first)
    #[arg(long, value_name = "ORDER")]
    update_order: Option<UpdateOrder>,
    /// Tasks updated at once; 0 is all (default 1)
    #[arg(long, value_name = "N")]
    update_parallelism: Option<u64>,
    /// User and group in the container: name or number, user[:group]
    #[arg(short, long)]
    user: Option<String>,
    /// Give the service your credential for the image's registry, for the nodes that pull it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    with_registry_auth: Option<bool>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
}

/// Overwrites `place` if something was given.
fn set<T: Clone>(place: &mut T, given: Option<&T>) {
    if let Some(value) = given {
        place.clone_from(value);
    }
}

impl Settings {
    /// Whether the image is to be left as written.
    fn no_resolve_image(&self) -> bool {
        self.no_resolve_image == Some(true)
    }

    /// Whether the user's credential goes with the service.
    fn with_registry_auth(&self) -> bool {
        self.with_registry_auth == Some(true)
    }

    fn apply(&self, spec: &mut ServiceSpec) -> Result<(), FlagError> {
        self.apply_mode(spec)?;
        set(&mut spec.endpoint.mode, self.endpoint_mode.as_ref());
        set(&mut spec.endpoint.prefer_same_node, self.prefer_same_node.as_ref());
        self.apply_pace(spec);

        let task = &mut spec.task;
        set(&mut task.limits.nano_cpus, self.limit_cpu.as_ref());
        set(&mut task.limits.memory_bytes, self.limit_memory.as_ref());
        set(&mut task.limits.pids, self.limit_pids.as_ref());
        set(&mut task.reservations.nano_cpus, self.reserve_cpu.as_ref());
        set(&mut task.reservations.memory_bytes, self.reserve_memory.as_ref());
        set(&mut task.restart.condition, self.restart_condition.as_ref());
        set(&mut task.restart.delay, self.restart_delay.as_ref());
        set(&mut task.restart.max_attempts, self.restart_max_attempts.as_ref());
        set(&mut task.restart.window, self.restart_window.as_ref());
        if self.log_driver.is_some() || !self.log_opt.is_empty() {
            task.log = self.log()?;
        }

        let container = &mut task.container;
        set(&mut container.command, self.entrypoint.as_ref().map(|words| &words.0));
        set(&mut container.hostname, self.hostname.as_ref());
        set(&mut container.init, self.init.as_ref());
        set(&mut container.oom_score_adj, self.oom_score_adj.as_ref());
        set(&mut container.read_only, self.read_only.as_ref());
        set(&mut container.tty, self.tty.as_ref());
        set(&mut container.stop_signal, self.stop_signal.as_ref());
        set(&mut container.user, self.user.as_ref());
        set(&mut container.dir, self.workdir.as_ref());
        if self.stop_grace_period.is_some() {
            container.stop_grace_period = self.stop_grace_period;
        }
        Ok(())
    }

    fn apply_mode(&self, spec: &mut ServiceSpec) -> Result<(), FlagError> {
        match &mut spec.mode {
            ServiceMode::Replicated { replicas } => {
                set(replicas, self.replicas.as_ref());
                set(&mut spec.task.placement.max_replicas, self.replicas_max_per_node.as_ref());
            }
            ServiceMode::Global if self.replicas.is_some() => {
                return Err(FlagError::NeedsReplicated { flag: "replicas" });
            }
            ServiceMode::Global if self.replicas_max_per_node.is_some() => {
                return Err(FlagError::NeedsReplicated { flag: "replicas-max-per-node" });
            }
            ServiceMode::Global => {}
        }
        Ok(())
    }

    fn apply_pace(&self, spec: &mut ServiceSpec) {
        // A monitor of 0s means the default, as in Docker: nothing could be watched in no time.
        let monitor = |given: Option<Duration>| {
            given.map(|span| if span.is_zero() { UpdateConfig::default().monitor } else { span })
        };
        let update = &mut spec.update;
        set(&mut update.parallelism, self.update_parallelism.as_ref());
        set(&mut update.delay, self.update_delay.as_ref());
        set(&mut update.failure_action, self.update_failure_action.as_ref());
        set(&mut update.monitor, monitor(self.update_monitor).as_ref());
        set(&mut update.max_failure_ratio, self.update_max_failure_ratio.as_ref());
        set(&mut update.order, self.update_order.as_ref());
        let rollback = &mut spec.rollback;
        set(&mut rollback.parallelism, self.rollback_parallelism.as_ref());
        set(&mut rollback.delay, self.rollback_delay.as_ref());
        set(&mut rollback.failure_action, self.rollback_failure_action.as_ref());
        set(&mut rollback.monitor, monitor(self.rollback_monitor).as_ref());
        set(&mut rollback.max_failure_ratio, self.rollback_max_failure_ratio.as_ref());
        set(&mut rollback.order, self.rollback_order.as_ref());
    }

    /// The log's bounds: what is given, the rest by default.
    fn log(&self) -> Result<LogConfig, FlagError> {
        let mut log = LogConfig::default();
        let (mut non_blocking, mut buffer) = (false, None);
        for option in &self.log_opt {
            match *option {
                LogOption::MaxSize(bytes) => log.max_size_bytes = bytes,
                LogOption::MaxFile(files) => log.max_files = files,
                LogOption::NonBlocking(on) => non_blocking = on,
                LogOption::MaxBuffer(bytes) => buffer = Some(bytes),
            }
        }
        if buffer.is_some() && !non_blocking {
            return Err(FlagError::BufferOfBlockingLog);
        }
        log.non_blocking_buffer_bytes = non_blocking.then(|| buffer.unwrap_or(LOG_BUFFER_BYTES));
        Ok(log)
    }
}

/// The key of a `KEY=value` line.
fn env_key(line: &str) -> &str {
    line.split_once('=').map_or(line, |(key, _)| key)
}

/// Takes out what `gone` names, then puts in `added`: in the place of what has the same key, else at the end.
fn edit<T: Clone, K: PartialEq + ?Sized>(
    list: &mut Vec<T>,
    gone: impl Fn(&T) -> bool,
    added: &[T],
    key: impl Fn(&T) -> &K,
) {
    list.retain(|item| !gone(item));
    for item in added {
        match list.iter_mut().find(|other| key(other) == key(item)) {
            Some(other) => other.clone_from(item),
            None => list.push(item.clone()),
        }
    }
}

/// Which capabilities are left when `ALL` stands for every other one and adding beats dropping; each list sorted.
fn settle_capabilities(add: &mut Vec<String>, drop: &mut Vec<String>) {
    for list in [&mut *add, &mut *drop] {
        if list.iter().any(|capability| capability == value::ALL) {
            *list = vec![value::ALL.to_owned()];
        }
        list.sort();
        list.dedup();
    }
    drop.retain(|capability| !add.contains(capability));
}

/// Reads env files: `KEY=value` lines, `KEY` for the client's own value, comments after `#` at the start of a line.
fn env_lines(surroundings: &Surroundings<'_>) -> Result<Vec<String>, FlagError> {
    let mut lines = Vec::new();
    for (path, text) in surroundings.env_files {
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = env_key(line);
            // `KEY = value` would set a variable whose name ends in a blank.
            if key.is_empty()
                || key.trim_end().contains(char::is_whitespace)
                || (line.contains('=') && key.ends_with(char::is_whitespace))
            {
                return Err(FlagError::EnvFile {
                    path: path.clone(),
                    line: number + 1,
                    text: line.to_owned(),
                });
            }
            lines.push(line.trim_end_matches('\r').to_owned());
        }
    }
    Ok(lines)
}

/// Gives lines without a value that of the client's environment; a variable the client has not is left out.
fn with_values(lines: &[String], surroundings: &Surroundings<'_>) -> Vec<String> {
    let value = |line: &String| {
        if line.contains('=') {
            return Some(line.clone());
        }
        let key = line.trim_end();
        (surroundings.env)(key).map(|value| format!("{key}={value}"))
    };
    lines.iter().filter_map(value).collect()
}
