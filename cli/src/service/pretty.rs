//! `service inspect --pretty`: a service for reading. Source: swarm-parity 1.4.

use std::time::Duration;

use rswarm_types::quantity::{format_bytes, format_duration};
use rswarm_types::service::{ServiceMode, UpdateConfig};
use rswarm_types::task::{ContainerSpec, MountKind, TaskSpec};
use rswarm_types::{NetworkId, Service, Timestamp};

use crate::node::capitalised;
use crate::output::human_span;

/// Width of the names; values stand behind.
const WIDTH: usize = 24;

/// Lines of `name: value`, indented by what they belong to.
#[derive(Default)]
struct Page(String);

impl Page {
    fn heading(&mut self, name: &str) {
        self.0.push_str(&format!("{name}:\n"));
    }

    /// A line, unless there is nothing to say.
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = value.to_string();
        if !value.is_empty() {
            let name = format!("{name}:");
            self.0.push_str(&format!("{name:<WIDTH$}{value}\n"));
        }
    }

    fn words(&mut self, name: &str, words: &[String]) {
        self.line(name, words.join(" "));
    }

    /// `key=value` lines under a heading.
    fn labels(&mut self, name: &str, labels: &rswarm_types::Labels) {
        if !labels.is_empty() {
            let (indent, _) = name.split_at(name.len() - name.trim_start().len());
            self.heading(name);
            for (key, value) in labels {
                self.0.push_str(&format!("{indent} {key}={value}\n"));
            }
        }
    }
}

/// `networks` are those of the cluster: id and name.
pub fn pretty(service: &Service, networks: &[(NetworkId, String)]) -> String {
    let (spec, now) = (&service.spec, Timestamp::now());
    let mut page = Page::default();
    page.line("ID", service.id);
    page.line("Name", &spec.name);
    page.labels("Labels", &spec.labels);
    match spec.mode {
        ServiceMode::Replicated { replicas } => {
            page.line("Service Mode", "Replicated");
            page.line(" Replicas", replicas);
        }
        ServiceMode::Global => page.line("Service Mode", "Global"),
    }
    if let Some(status) = &service.update_status {
        let ago = |at: Timestamp| format!("{} ago", human_span(now.since(at)));
        page.heading("UpdateStatus");
        page.line(" State", status.state);
        page.line(" Started", ago(status.started_at));
        page.line(" Completed", status.completed_at.map(ago).unwrap_or_default());
        page.line(" Message", &status.message);
    }
    placement(&mut page, &spec.task);
    pace(&mut page, "UpdateConfig", "Update order", &spec.update);
    pace(&mut page, "RollbackConfig", "Rollback order", &spec.rollback);
    container(&mut page, &spec.task.container);
    resources(&mut page, &spec.task);
    restart(&mut page, &spec.task);
    page.heading("Log");
    page.line(" Max size", format_bytes(spec.task.log.max_size_bytes));
    page.line(" Max files", spec.task.log.max_files);
    if let Some(buffer) = spec.task.log.non_blocking_buffer_bytes {
        page.line(" Mode", "non-blocking");
        page.line(" Max buffer size", format_bytes(buffer));
    }
    let name = |id: NetworkId| {
        networks
            .iter()
            .find(|(other, _)| *other == id)
            .map_or_else(|| id.to_string(), |(_, name)| name.clone())
    };
    page.words("Networks", &spec.task.networks.iter().map(|n| name(n.network)).collect::<Vec<_>>());
    page.line("Endpoint Mode", spec.endpoint.mode);
    page.line("Prefer Same Node", if spec.endpoint.prefer_same_node { "true" } else { "" });
    page.line("Allowed From", Vec::from_iter(spec.endpoint.allow_from.iter().cloned()).join(" "));
    if !service.endpoint.ports.is_empty() {
        page.heading("Ports");
        for port in &service.endpoint.ports {
            let published = port.published.map_or_else(|| "chosen by the node".to_owned(), |p| p.to_string());
            page.0.push_str(&format!(" PublishedPort = {published}\n"));
            if let Some(at) = port.host_ip {
                page.0.push_str(&format!("  HostIP = {at}\n"));
            }
            if let Some(interface) = port.interface {
                page.0.push_str(&format!("  Interface = {interface}\n"));
            }
            page.0.push_str(&format!("  Protocol = {}\n", port.protocol));
            page.0.push_str(&format!("  TargetPort = {}\n", port.target));
            page.0.push_str(&format!("  PublishMode = {}\n", port.mode));
        }
    }
    page.0
}

fn placement(page: &mut Page, task: &TaskSpec) {
    let placement = &task.placement;
    if placement.constraints.is_empty() && placement.spread.is_empty() && placement.max_replicas == 0 {
        return;
    }
    page.heading("Placement");
    if !placement.constraints.is_empty() {
        page.line(" Constraints", format!("[{}]", placement.constraints.join(" ")));
    }
    let preferences: Vec<String> = placement.spread.iter().map(|label| format!("spread={label}")).collect();
    page.words(" Preferences", &preferences);
    if placement.max_replicas > 0 {
        page.line(" Max Replicas Per Node", placement.max_replicas);
    }
}

fn pace(page: &mut Page, heading: &str, order: &str, config: &UpdateConfig) {
    page.heading(heading);
    page.line(" Parallelism", config.parallelism);
    page.line(" Delay", span(config.delay));
    page.line(" On failure", config.failure_action);
    page.line(" Monitoring Period", format_duration(config.monitor));
    page.line(" Max failure ratio", config.max_failure_ratio);
    page.line(&format!(" {order}"), config.order);
}

/// A span that says nothing when it is zero.
fn span(span: Duration) -> String {
    if span.is_zero() { String::new() } else { format_duration(span) }
}

fn container(page: &mut Page, container: &ContainerSpec) {
    page.heading("ContainerSpec");
    page.line(" Image", &container.image);
    page.words(" Command", &container.command);
    page.words(" Args", &container.args);
    page.words(" Env", &container.env);
    page.line(" Hostname", &container.hostname);
    page.line(" Dir", &container.dir);
    page.line(" User", &container.user);
    page.words(" Groups", &container.groups);
    page.labels(" Labels", &container.labels);
    page.line(" Init", container.init);
    page.line(" TTY", if container.tty { "true" } else { "" });
    page.line(" Read only", if container.read_only { "true" } else { "" });
    page.line(" Stop signal", &container.stop_signal);
    page.line(" Stop grace period", container.stop_grace_period.map(format_duration).unwrap_or_default());
    page.words(" Hosts", &container.hosts.iter().map(|line| line.replace(' ', "=")).collect::<Vec<_>>());
    page.words(" DNS", &container.dns.nameservers);
    page.words(" DNS search", &container.dns.search);
    page.words(" DNS options", &container.dns.options);
    page.labels(" SysCtls", &container.sysctls);
    page.words(" Capabilities added", &container.cap_add);
    page.words(" Capabilities dropped", &container.cap_drop);
    let ulimits: Vec<String> =
        container.ulimits.iter().map(|u| format!("{}={}:{}", u.name, u.soft, u.hard)).collect();
    page.words(" Ulimits", &ulimits);
    if container.oom_score_adj != 0 {
        page.line(" OOM score adjustment", container.oom_score_adj);
    }
    if container.mounts.is_empty() {
        return;
    }
    page.heading("Mounts");
    for mount in &container.mounts {
        page.line(" Target", &mount.target);
        page.line("  Source", &mount.source);
        page.line("  ReadOnly", mount.read_only);
        match mount.kind {
            MountKind::Bind => page.line("  Type", "bind"),
            MountKind::Tmpfs { size_bytes, mode } => {
                page.line("  Type", "tmpfs");
                page.line("  Size", if size_bytes == 0 { String::new() } else { format_bytes(size_bytes) });
                page.line("  Mode", if mode == 0 { String::new() } else { format!("{mode:o}") });
            }
        }
    }
}

fn resources(page: &mut Page, task: &TaskSpec) {
    let (limits, reservations) = (&task.limits, &task.reservations);
    let cpus = |nanos: u64| match nanos {
        0 => String::new(),
        #[allow(clippy::cast_precision_loss)]
        nanos => (nanos as f64 / 1e9).to_string(),
    };
    let memory = |bytes: u64| if bytes == 0 { String::new() } else { format_bytes(bytes) };
    page.heading("Resources");
    if reservations.nano_cpus > 0 || reservations.memory_bytes > 0 {
        page.heading(" Reservations");
        page.line("  CPU", cpus(reservations.nano_cpus));
        page.line("  Memory", memory(reservations.memory_bytes));
    }
    if limits.nano_cpus > 0 || limits.memory_bytes > 0 || limits.pids > 0 {
        page.heading(" Limits");
        page.line("  CPU", cpus(limits.nano_cpus));
        page.line("  Memory", memory(limits.memory_bytes));
        page.line("  Pids", if limits.pids == 0 { String::new() } else { limits.pids.to_string() });
    }
}

fn restart(page: &mut Page, task: &TaskSpec) {
    page.heading("RestartPolicy");
    page.line(" Condition", capitalised(&task.restart.condition.to_string()));
    page.line(" Delay", span(task.restart.delay));
    if task.restart.max_attempts > 0 {
        page.line(" Max attempts", task.restart.max_attempts);
    }
    page.line(" Window", span(task.restart.window));
}
