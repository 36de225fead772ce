//! `service update`: changes to the spec a service has. Removals come first, then additions.

use std::collections::BTreeSet;

use clap::Args;
use rswarm_types::service::ServiceSpec;
use rswarm_types::task::{Mount, Ulimit};

use super::unsupported::Unsupported;
use super::{
    FlagError, Settings, Surroundings, edit, env_key, settle_capabilities, takes_next_word, with_values,
};
use crate::progress::Waiting;
use crate::service::value::{self, Attachment, PortPattern, Ports, Words};

/// Everything that can follow `service update`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(args_override_self = true, mut_args(takes_next_word))]
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
    #[arg(long, value_name = "COMMAND", value_parser = value::words)]
    args: Option<Words>,
    /// Let this service's tasks connect by overlay networks; all others only if named, too
    #[arg(long, value_name = "SERVICE")]
    allow_from_add: Vec<String>,
    /// No longer name a service that may connect; if none is left, all may
    #[arg(long, value_name = "SERVICE")]
    allow_from_rm: Vec<String>,
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

    pub fn with_registry_auth(&self) -> bool {
        self.changes.settings.with_registry_auth()
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

        spec.endpoint.allow_from.retain(|name| !self.allow_from_rm.contains(name));
        spec.endpoint.allow_from.extend(self.allow_from_add.iter().cloned());

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
        let added: BTreeSet<&String> = self.cap_add.iter().filter(|c| *c != value::RESET).collect();
        let dropped: BTreeSet<&String> = self.cap_drop.iter().filter(|c| *c != value::RESET).collect();
        for capability in dropped.difference(&added) {
            step(add, drop, capability);
        }
        for capability in added {
            step(drop, add, capability);
        }
        settle_capabilities(add, drop);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rswarm_types::NetworkId;
    use rswarm_types::service::{EndpointSpec, PortConfig, Protocol, PublishMode, ServiceMode, UpdateConfig};
    use rswarm_types::task::{MountKind, NetworkAttachment, TaskSpec};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: UpdateFlags,
    }

    const FRONT: NetworkId = NetworkId::from_bytes([7; 16]);
    const BACK: NetworkId = NetworkId::from_bytes([8; 16]);

    fn parse(args: &[&str]) -> Result<UpdateFlags, String> {
        let args = std::iter::once("update").chain(args.iter().copied()).chain(["web"]);
        Line::try_parse_from(args).map(|line| line.flags).map_err(|error| error.to_string())
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn map(pairs: &[(&str, &str)]) -> rswarm_types::Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn mount(target: &str, read_only: bool) -> Mount {
        Mount { kind: MountKind::Bind, source: "/src".to_owned(), target: target.to_owned(), read_only }
    }

    fn port(published: u16, target: u16, protocol: Protocol) -> PortConfig {
        PortConfig {
            protocol,
            target,
            published: Some(published),
            mode: PublishMode::Ingress,
            host_ip: None,
            interface: None,
        }
    }

    /// A service with two of everything.
    fn before() -> ServiceSpec {
        let mut task = TaskSpec::default();
        task.placement.constraints = strings(&["a==1", "b==2"]);
        task.placement.spread = strings(&["node.labels.a", "node.labels.b"]);
        task.placement.max_replicas = 2;
        task.networks = vec![NetworkAttachment { network: FRONT, aliases: strings(&["x"]) }];
        task.log.max_files = 9;
        let container = &mut task.container;
        container.image = "web:1@sha256:ab".to_owned();
        container.labels = map(&[("a", "1"), ("b", "2")]);
        container.command = strings(&["run"]);
        container.args = strings(&["old"]);
        container.env = strings(&["A=1", "B=2"]);
        container.groups = strings(&["a", "b"]);
        container.mounts = vec![mount("/a", false), mount("/b", false)];
        container.hosts = strings(&["1.1.1.1 a", "2.2.2.2 a", "3.3.3.3 b"]);
        container.dns.nameservers = strings(&["1.1.1.1", "2.2.2.2"]);
        container.dns.search = strings(&["a", "b"]);
        container.dns.options = strings(&["a", "b"]);
        container.sysctls = map(&[("a", "1"), ("b", "2")]);
        container.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 1, hard: 2 }];
        ServiceSpec {
            name: "web".to_owned(),
            labels: map(&[("a", "1"), ("b", "2")]),
            mode: ServiceMode::Replicated { replicas: 2 },
            task,
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec {
                ports: vec![port(80, 8080, Protocol::Tcp), port(53, 8053, Protocol::Udp)],
                ..EndpointSpec::default()
            },
        }
    }

    fn updated(mut spec: ServiceSpec, args: &[&str]) -> Result<ServiceSpec, String> {
        let env = |key: &str| (key == "HOME").then(|| "/root".to_owned());
        let surroundings = Surroundings {
            networks: &[(FRONT, "front".to_owned()), (BACK, "back".to_owned())],
            env: &env,
            env_files: &[],
        };
        parse(args)?.apply(&mut spec, &surroundings).map_err(|error| error.to_string())?;
        Ok(spec)
    }

    fn check(args: &[&str], change: impl Fn(&mut ServiceSpec)) {
        let mut expected = before();
        change(&mut expected);
        assert_eq!(updated(before(), args), Ok(expected), "{args:?}");
    }

    #[test]
    fn nothing_given_changes_nothing() {
        check(&[], |_| {});
        check(&["--force=false", "--detach", "-q", "--no-healthcheck"], |_| {});
    }

    #[test]
    fn one_value_flags_replace() {
        check(&["--image", "web:2"], |s| s.task.container.image = "web:2".to_owned());
        check(&["--args", "-x 'y z'"], |s| s.task.container.args = strings(&["-x", "y z"]));
        check(&["--args", "", "--entrypoint", ""], |s| {
            s.task.container.args.clear();
            s.task.container.command.clear();
        });
        check(&["--force"], |s| s.task.force_update = 1);
        check(&["--replicas", "5", "--replicas-max-per-node", "0"], |s| {
            s.mode = ServiceMode::Replicated { replicas: 5 };
            s.task.placement.max_replicas = 0;
        });
        check(&["--limit-cpu", "0.5", "--read-only"], |s| {
            s.task.limits.nano_cpus = 500_000_000;
            s.task.container.read_only = true;
        });
        // A driver given anew starts from the defaults.
        check(&["--log-driver", "local"], |s| s.task.log = rswarm_types::task::LogConfig::default());
        check(&["--log-driver", "local", "--log-opt", "max-file=2"], |s| s.task.log.max_files = 2);
    }

    #[test]
    fn callers_are_added_and_removed_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        check(&["--allow-from-add", "api", "--allow-from-add", "jobs"], |s| {
            s.endpoint.allow_from = names(&["api", "jobs"]);
        });
        let mut spec = before();
        spec.endpoint.allow_from = names(&["api", "jobs"]);
        let fewer = updated(spec.clone(), &["--allow-from-rm", "jobs", "--allow-from-rm", "other"]).unwrap();
        assert_eq!(fewer.endpoint.allow_from, names(&["api"]));
        let none = updated(fewer, &["--allow-from-rm", "api"]).unwrap();
        assert_eq!(none.endpoint, before().endpoint);
    }

    #[test]
    fn maps_and_lists_are_edited_in_place() {
        check(&["--label-add", "b=3", "--label-add", "c", "--label-rm", "a"], |s| {
            s.labels = map(&[("b", "3"), ("c", "")]);
        });
        check(&["--container-label-add", "b=3", "--container-label-rm", "a"], |s| {
            s.task.container.labels = map(&[("b", "3")]);
        });
        check(&["--sysctl-add", "b=3", "--sysctl-rm", "a"], |s| {
            s.task.container.sysctls = map(&[("b", "3")]);
        });
        check(&["--env-add", "A=9", "--env-add", "HOME", "--env-rm", "B"], |s| {
            s.task.container.env = strings(&["A=9", "HOME=/root"]);
        });
        check(&["--env-rm", "NONE", "--env-rm", "A=1"], |_| {});
        check(&["--constraint-add", "c!=3", "--constraint-rm", "a==1", "--constraint-add", "b==2"], |s| {
            s.task.placement.constraints = strings(&["b==2", "c!=3"]);
        });
        check(
            &["--placement-pref-add", "spread=node.labels.c", "--placement-pref-rm", "spread=node.labels.a"],
            |s| s.task.placement.spread = strings(&["node.labels.b", "node.labels.c"]),
        );
        check(&["--group-add", "c", "--group-rm", "a"], |s| s.task.container.groups = strings(&["b", "c"]));
        check(&["--dns-add", "3.3.3.3", "--dns-rm", "1.1.1.1"], |s| {
            s.task.container.dns.nameservers = strings(&["2.2.2.2", "3.3.3.3"]);
        });
        check(&["--dns-search-add", "c", "--dns-search-rm", "a"], |s| {
            s.task.container.dns.search = strings(&["b", "c"]);
        });
        check(&["--dns-option-add", "c", "--dns-option-rm", "a"], |s| {
            s.task.container.dns.options = strings(&["b", "c"]);
        });
        check(&["--ulimit-add", "nofile=3", "--ulimit-add", "core=0"], |s| {
            s.task.container.ulimits = vec![
                Ulimit { name: "nofile".to_owned(), soft: 3, hard: 3 },
                Ulimit { name: "core".to_owned(), soft: 0, hard: 0 },
            ];
        });
        check(&["--ulimit-rm", "nofile"], |s| s.task.container.ulimits.clear());
    }

    #[test]
    fn hosts_go_by_name_or_by_name_and_address() {
        check(&["--host-rm", "a"], |s| s.task.container.hosts = strings(&["3.3.3.3 b"]));
        check(&["--host-rm", "a:2.2.2.2"], |s| {
            s.task.container.hosts = strings(&["1.1.1.1 a", "3.3.3.3 b"]);
        });
        check(&["--host-add", "c:4.4.4.4", "--host-rm", "3.3.3.3"], |s| {
            s.task.container.hosts.push("4.4.4.4 c".to_owned());
        });
    }

    #[test]
    fn mounts_go_by_target_and_ports_by_target_port() {
        check(&["--mount-rm", "/a"], |s| s.task.container.mounts = vec![mount("/b", false)]);
        check(&["--mount-add", "type=bind,src=/src,dst=/a,ro"], |s| {
            s.task.container.mounts[0] = mount("/a", true);
        });
        check(&["--publish-rm", "8080"], |s| {
            s.endpoint.ports.remove(0);
        });
        check(&["--publish-rm", "8053"], |_| {});
        check(&["--publish-rm", "8053/udp", "--publish-add", "81:8080"], |s| {
            s.endpoint.ports = vec![port(80, 8080, Protocol::Tcp), port(81, 8080, Protocol::Tcp)];
        });
        check(&["--publish-add", "80:8080"], |_| {});
    }

    #[test]
    fn networks_go_by_name_or_id() {
        let back = || NetworkAttachment { network: BACK, aliases: Vec::new() };
        check(&["--network-add", "back", "--network-rm", "front"], |s| s.task.networks = vec![back()]);
        check(&["--network-rm", &FRONT.to_string(), "--network-add", &BACK.to_string()], |s| {
            s.task.networks = vec![back()];
        });
        check(&["--network-rm", "front", "--network-add", "front"], |s| s.task.networks[0].aliases.clear());
    }

    #[test]
    fn capabilities_move_one_step() {
        for (add, drop, args, add_after, drop_after) in [
            (&[][..], &[][..], &["--cap-add", "chown"][..], &["CAP_CHOWN"][..], &[][..]),
            (&[], &["CAP_CHOWN"], &["--cap-add", "chown"], &[], &[]),
            (&["CAP_CHOWN"], &[], &["--cap-drop", "chown"], &[], &[]),
            (&[], &[], &["--cap-drop", "chown"], &[], &["CAP_CHOWN"]),
            (&["CAP_CHOWN"], &[], &["--cap-add", "chown"], &["CAP_CHOWN"], &[]),
            (&[], &[], &["--cap-add", "chown", "--cap-drop", "chown"], &["CAP_CHOWN"], &[]),
            (&["CAP_A", "CAP_B"], &["CAP_C"], &["--cap-add", "reset"], &[], &["CAP_C"]),
            (&["CAP_A"], &["CAP_C"], &["--cap-drop", "reset", "--cap-drop", "d"], &["CAP_A"], &["CAP_D"]),
            (&["CAP_B"], &[], &["--cap-add", "all"], &["ALL"], &[]),
            (&["CAP_B"], &["CAP_C"], &["--cap-drop", "all"], &["CAP_B"], &["ALL"]),
        ] {
            let mut spec = before();
            spec.task.container.cap_add = strings(add);
            spec.task.container.cap_drop = strings(drop);
            let found = updated(spec, args).unwrap().task.container;
            let expected = (strings(add_after), strings(drop_after));
            assert_eq!((found.cap_add, found.cap_drop), expected, "{add:?} {drop:?} {args:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, part) in [
            (&["--log-opt", "max-file=2"][..], "give --log-driver in the same update"),
            (&["--network-add", "front"], "already attached to network `front`"),
            (&["--network-add", "x"], "network `x` not found"),
            (&["--network-rm", "x"], "network `x` not found"),
            (
                &["--mount-add", "type=tmpfs,dst=/t", "--mount-add", "type=tmpfs,dst=/t"],
                "duplicate mount target `/t`",
            ),
            (&["--secret-add", "key"], "--secret-add is not supported yet"),
            (&["--config-rm", "key"], "--config-rm is not supported yet"),
            (&["--mode", "global"], "unexpected argument '--mode'"),
            (&["--name", "x"], "unexpected argument '--name'"),
        ] {
            let error = updated(before(), args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
        let global = ServiceSpec { mode: ServiceMode::Global, ..before() };
        let error = updated(global, &["--replicas", "2"]).unwrap_err();
        assert_eq!(error, "--replicas can only be used with replicated mode");
    }

    #[test]
    fn rollback_stands_alone() {
        for (args, expected) in [
            (&["--rollback"][..], Ok(true)),
            (&["--rollback", "-d", "--quiet"], Ok(true)),
            (&["--rollback=false", "--force"], Ok(false)),
            (&["--rollback", "--force"], Err(FlagError::RollbackAlone)),
            (&["--rollback", "--replicas", "2"], Err(FlagError::RollbackAlone)),
            (&[], Ok(false)),
        ] {
            assert_eq!(parse(args).unwrap().rollback(), expected, "{args:?}");
        }
    }

    #[test]
    fn only_a_given_image_is_looked_up() {
        for (args, expected) in [
            (&[][..], false),
            (&["--image", "web:2"], true),
            (&["--image", "web:2", "--no-resolve-image"], false),
        ] {
            assert_eq!(parse(args).unwrap().resolve_image(), expected, "{args:?}");
        }
    }
}
