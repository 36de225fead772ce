//! `service update`: changes to the spec a service has. Removals come first, then additions.

use clap::Args;
use rswarm_types::service::ServiceSpec;
use rswarm_types::task::{Mount, Ulimit};

use super::unsupported::Unsupported;
use super::{FlagError, Settings, Surroundings, edit, env_key, settle_capabilities, with_values};
use crate::progress::Waiting;
use crate::service::value::{self, Attachment, PortPattern, Ports, Words};

/// Everything that can follow `service update`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(args_override_self = true)]
pub struct UpdateFlags {
    #[command(flatten)]
    pub waiting: Waiting,
    /// Name or id
    pub service: String,
    #[command(flatten)]
    changes: Changes,
}

/// What an update changes.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct Changes {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    unsupported: Unsupported<true>,
    /// Go back to the previous spec
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    rollback: Option<bool>,
    /// Replace every task although nothing changed
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = value::boolean, value_name = "BOOL")]
    force: Option<bool>,
    /// Image
    #[arg(long)]
    image: Option<String>,
    /// What replaces the image's command; split as by a shell
    #[arg(long, value_name = "COMMAND", value_parser = value::words, allow_hyphen_values = true)]
    args: Option<Words>,
    /// Add a capability, or take back that it is dropped; RESET empties the list first
    #[arg(long, value_name = "CAPABILITY", value_parser = value::capability)]
    cap_add: Vec<String>,
    /// Drop a capability, or take back that it is added; RESET empties the list first
    #[arg(long, value_name = "CAPABILITY", value_parser = value::capability)]
    cap_drop: Vec<String>,
    /// Add a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Add or change a label of each container
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::label)]
    container_label_add: Vec<(String, String)>,
    /// Remove a label of each container
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Add a name server
    #[arg(long, value_name = "ADDRESS", value_parser = value::address)]
    dns_add: Vec<String>,
    /// Remove a name server
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<String>,
    /// Add an option of resolv.conf
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Remove an option of resolv.conf
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add a search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Remove a search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Add or change a variable: KEY=value, or KEY for the value here
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = value::env)]
    env_add: Vec<String>,
    /// Remove a variable
    #[arg(long, value_name = "KEY")]
    env_rm: Vec<String>,
    /// Add a supplementary group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Remove a supplementary group
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add a line of /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = value::host)]
    host_add: Vec<String>,
    /// Remove lines of /etc/hosts
    #[arg(long, value_name = "NAME[:ADDRESS]")]
    host_rm: Vec<String>,
    /// Add or change a label of the service
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::label)]
    label_add: Vec<(String, String)>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Add a mount, or replace that of the same target
    #[arg(long, value_name = "MOUNT", value_parser = value::mount)]
    mount_add: Vec<Mount>,
    /// Remove the mount with this target
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Join a network
    #[arg(long, value_name = "NETWORK", value_parser = value::attachment)]
    network_add: Vec<Attachment>,
    /// Leave a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Spread over one more label, after those there are
    #[arg(long, value_name = "PREFERENCE", value_parser = value::preference)]
    placement_pref_add: Vec<String>,
    /// No longer spread over a label
    #[arg(long, value_name = "PREFERENCE", value_parser = value::preference)]
    placement_pref_rm: Vec<String>,
    /// Publish a port
    #[arg(long, value_name = "PORT", value_parser = value::ports)]
    publish_add: Vec<Ports>,
    /// No longer publish a target port: TARGET[/PROTOCOL]
    #[arg(long, value_name = "PORT", value_parser = value::port_pattern)]
    publish_rm: Vec<PortPattern>,
    /// Add or change a kernel setting
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::option)]
    sysctl_add: Vec<(String, String)>,
    /// Remove a kernel setting
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
    /// Add or change a resource limit
    #[arg(long, value_name = "LIMIT", value_parser = value::ulimit)]
    ulimit_add: Vec<Ulimit>,
    /// Remove a resource limit
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
}

impl UpdateFlags {
    /// Whether to go back to the previous spec instead of changing this one.
    ///
    /// # Errors
    /// `RollbackAlone` if something is to be changed as well.
    pub fn rollback(&self) -> Result<bool, FlagError> {
        if self.changes.rollback != Some(true) {
            return Ok(false);
        }
        let alone = Changes { rollback: self.changes.rollback, ..Changes::default() };
        if self.changes == alone { Ok(true) } else { Err(FlagError::RollbackAlone) }
    }

    /// Whether the image's digest is to be looked up anew: only if an image was given.
    pub fn resolve_image(&self) -> bool {
        self.changes.image.is_some() && !self.changes.settings.no_resolve_image()
    }

    /// Whether the cluster's networks have to be known.
    pub fn names_networks(&self) -> bool {
        !self.changes.network_add.is_empty() || !self.changes.network_rm.is_empty()
    }

    /// Carries the changes out on `spec`.
    pub fn apply(&self, spec: &mut ServiceSpec, surroundings: &Surroundings<'_>) -> Result<(), FlagError> {
        self.changes.apply(spec, surroundings)
    }
}

/// Edits a list of texts, each its own key.
fn edit_texts(list: &mut Vec<String>, removed: &[String], added: &[String]) {
    edit(list, |item| removed.contains(item), added, String::as_str);
}

fn edit_map(map: &mut rswarm_types::Labels, removed: &[String], added: &[(String, String)]) {
    map.retain(|key, _| !removed.contains(key));
    map.extend(added.iter().cloned());
}

/// Whether the line `address name` is meant by `name`, `name:address` or `name=address`.
fn names_host(line: &str, removed: &str) -> bool {
    match value::host(removed) {
        Ok(whole) => line == whole,
        Err(_) => line.split_whitespace().skip(1).any(|name| name == removed),
    }
}

impl Changes {
    fn apply(&self, spec: &mut ServiceSpec, surroundings: &Surroundings<'_>) -> Result<(), FlagError> {
        if !self.settings.log_opt.is_empty() && self.settings.log_driver.is_none() {
            return Err(FlagError::LogOptionsWithoutDriver);
        }
        self.settings.apply(spec)?;
        edit_map(&mut spec.labels, &self.label_rm, &self.label_add);

        let ports = &mut spec.endpoint.ports;
        let added: Vec<_> = self.publish_add.iter().flat_map(|ports| ports.0.iter().copied()).collect();
        edit(ports, |port| self.publish_rm.iter().any(|rm| rm.matches(port)), &added, |port| port);

        let task = &mut spec.task;
        edit_texts(&mut task.placement.constraints, &self.constraint_rm, &self.constraint_add);
        edit_texts(&mut task.placement.spread, &self.placement_pref_rm, &self.placement_pref_add);
        for removed in &self.network_rm {
            let id = surroundings.network(removed)?;
            task.networks.retain(|attachment| attachment.network != id);
        }
        surroundings.attach(&mut task.networks, &self.network_add)?;
        if self.force == Some(true) {
            task.force_update += 1;
        }

        let container = &mut task.container;
        if let Some(image) = &self.image {
            container.image.clone_from(image);
        }
        if let Some(args) = &self.args {
            container.args.clone_from(&args.0);
        }
        edit_map(&mut container.labels, &self.container_label_rm, &self.container_label_add);
        edit_map(&mut container.sysctls, &self.sysctl_rm, &self.sysctl_add);
        edit_texts(&mut container.dns.nameservers, &self.dns_rm, &self.dns_add);
        edit_texts(&mut container.dns.options, &self.dns_option_rm, &self.dns_option_add);
        edit_texts(&mut container.dns.search, &self.dns_search_rm, &self.dns_search_add);
        edit_texts(&mut container.groups, &self.group_rm, &self.group_add);
        let gone = |line: &String| self.env_rm.iter().any(|key| key == env_key(line));
        edit(&mut container.env, gone, &with_values(&self.env_add, surroundings), |line| env_key(line));
        let gone = |line: &String| self.host_rm.iter().any(|removed| names_host(line, removed));
        edit(&mut container.hosts, gone, &self.host_add, String::as_str);
        for (i, mount) in self.mount_add.iter().enumerate() {
            if self.mount_add[..i].iter().any(|other| other.target == mount.target) {
                return Err(FlagError::DuplicateMount(mount.target.clone()));
            }
        }
        let gone = |mount: &Mount| self.mount_rm.contains(&mount.target);
        edit(&mut container.mounts, gone, &self.mount_add, |mount| mount.target.as_str());
        let gone = |limit: &Ulimit| self.ulimit_rm.contains(&limit.name);
        edit(&mut container.ulimits, gone, &self.ulimit_add, |limit| limit.name.as_str());
        self.apply_capabilities(&mut container.cap_add, &mut container.cap_drop);
        Ok(())
    }

    /// Each capability is added, dropped, or as the default has it; adding moves it one step up, dropping one step
    /// down, and of both in one update adding wins. Source: swarm-parity 1.3b.
    fn apply_capabilities(&self, add: &mut Vec<String>, drop: &mut Vec<String>) {
        if self.cap_add.is_empty() && self.cap_drop.is_empty() {
            return;
        }
        for (list, flags) in [(&mut *add, &self.cap_add), (&mut *drop, &self.cap_drop)] {
            if flags.iter().any(|capability| capability == value::RESET) {
                list.clear();
            }
        }
        let step = |from: &mut Vec<String>, to: &mut Vec<String>, capability: &String| {
            let before = from.len();
            from.retain(|other| other != capability);
            if from.len() == before {
                to.push(capability.clone());
            }
        };
        let mut given: Vec<&String> = Vec::new();
        let mut first_time = |capability: &'_ String| capability != value::RESET;
        for capability in self.cap_drop.iter().filter(|c| first_time(c) && !self.cap_add.contains(c)) {
            if !given.contains(&capability) {
                given.push(capability);
                step(add, drop, capability);
            }
        }
        for capability in self.cap_add.iter().filter(|c| first_time(c)) {
            if !given.contains(&capability) {
                given.push(capability);
                step(drop, add, capability);
            }
        }
        settle_capabilities(add, drop);
    }
}
