//! `service create`: flags to a new spec.

use std::path::PathBuf;

use clap::Args;
use rswarm_types::service::{EndpointSpec, ServiceMode, ServiceSpec, UpdateConfig};
use rswarm_types::task::{Mount, TaskSpec, Ulimit};

use super::unsupported::Unsupported;
use super::{
    FlagError, Settings, Surroundings, edit, env_key, env_lines, settle_capabilities, takes_next_word,
    with_values,
};
use crate::progress::Waiting;
use crate::service::value::{self, Attachment, Ports};

/// Everything that can follow `service create`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(args_override_self = true, mut_args(takes_next_word))]
pub struct CreateFlags {
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    unsupported: Unsupported<false>,
    /// Let only this service's tasks connect by overlay networks, and such as are named alike (default all)
    #[arg(long, value_name = "SERVICE")]
    allow_from: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY", value_parser = value::capability)]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY", value_parser = value::capability)]
    cap_drop: Vec<String>,
    /// Only nodes where this holds: key==value or key!=value
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Label of each container
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::label)]
    container_label: Vec<(String, String)>,
    /// Name server
    #[arg(long, value_name = "ADDRESS", value_parser = value::address)]
    dns: Vec<String>,
    /// Option of resolv.conf
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Variable of the environment: KEY=value, or KEY for the value here
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = value::env)]
    env: Vec<String>,
    /// File of variables; --env comes after it
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Supplementary group
    #[arg(long)]
    group: Vec<String>,
    /// Line of /etc/hosts: name:address
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = value::host)]
    host: Vec<String>,
    /// Label of the service
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = value::label)]
    label: Vec<(String, String)>,
    /// replicated or global (default replicated)
    #[arg(long, value_parser = value::mode)]
    mode: Option<ServiceMode>,
    /// Mount: type=bind,source=/path,target=/path[,readonly] or type=tmpfs,target=/path
    #[arg(long, value_parser = value::mount)]
    mount: Vec<Mount>,
    /// Name of the service (default: made up)
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Network to join: NAME, or name=NAME,alias=ALIAS
    #[arg(long, value_parser = value::attachment)]
    network: Vec<Attachment>,
    /// Spread over a label: spread=node.labels.zone
    #[arg(long, value_name = "PREFERENCE", value_parser = value::preference)]
    placement_pref: Vec<String>,
    /// Publish a port: [[HOST_IP:]PUBLISHED:]TARGET[/PROTOCOL], or target=80,published=8080,mode=host,interface=eth0
    #[arg(short, long, value_name = "PORT", value_parser = value::ports)]
    publish: Vec<Ports>,
    /// Kernel setting of the task's namespaces
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::option)]
    sysctl: Vec<(String, String)>,
    /// Resource limit: name=soft[:hard]
    #[arg(long, value_name = "LIMIT", value_parser = value::ulimit)]
    ulimit: Vec<Ulimit>,
    // One list, so that everything after the image belongs to the command, also what looks like a flag.
    /// Image, and what replaces its command
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND] [ARG]")]
    image_and_args: Vec<String>,
}

impl CreateFlags {
    pub fn no_resolve_image(&self) -> bool {
        self.settings.no_resolve_image()
    }

    pub fn with_registry_auth(&self) -> bool {
        self.settings.with_registry_auth()
    }

    /// Whether the cluster's networks have to be known.
    pub fn names_networks(&self) -> bool {
        !self.network.is_empty()
    }

    /// The spec that was asked for; without a name the manager makes one up.
    pub fn spec(&self, surroundings: &Surroundings<'_>) -> Result<ServiceSpec, FlagError> {
        let mut spec = ServiceSpec {
            name: self.name.clone(),
            labels: self.label.iter().cloned().collect(),
            mode: self.mode.unwrap_or(ServiceMode::Replicated { replicas: 1 }),
            task: TaskSpec::default(),
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec::default(),
        };
        self.settings.apply(&mut spec)?;
        spec.endpoint.ports = self.publish.iter().flat_map(|ports| ports.0.iter().copied()).collect();
        spec.endpoint.allow_from = self.allow_from.iter().cloned().collect();
        spec.task.placement.constraints.clone_from(&self.constraint);
        spec.task.placement.spread.clone_from(&self.placement_pref);
        surroundings.attach(&mut spec.task.networks, &self.network)?;

        let container = &mut spec.task.container;
        if let Some((image, args)) = self.image_and_args.split_first() {
            container.image.clone_from(image);
            container.args = args.to_vec();
        }
        container.labels = self.container_label.iter().cloned().collect();
        let mut env = env_lines(surroundings)?;
        env.extend_from_slice(&self.env);
        edit(&mut container.env, |_| false, &with_values(&env, surroundings), |line| env_key(line));
        container.groups.clone_from(&self.group);
        for mount in &self.mount {
            if container.mounts.iter().any(|other| other.target == mount.target) {
                return Err(FlagError::DuplicateMount(mount.target.clone()));
            }
            container.mounts.push(mount.clone());
        }
        container.hosts.clone_from(&self.host);
        container.dns.nameservers.clone_from(&self.dns);
        container.dns.options.clone_from(&self.dns_option);
        container.dns.search.clone_from(&self.dns_search);
        container.sysctls = self.sysctl.iter().cloned().collect();
        container.cap_add.clone_from(&self.cap_add);
        container.cap_drop.clone_from(&self.cap_drop);
        for list in [&mut container.cap_add, &mut container.cap_drop] {
            list.retain(|capability| capability != value::RESET);
        }
        settle_capabilities(&mut container.cap_add, &mut container.cap_drop);
        edit(&mut container.ulimits, |_| false, &self.ulimit, |limit| limit.name.as_str());
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use rswarm_types::NetworkId;
    use rswarm_types::service::{
        EndpointMode, FailureAction, PortConfig, Protocol, PublishMode, UpdateOrder,
    };
    use rswarm_types::task::{MountKind, NetworkAttachment, RestartCondition};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: CreateFlags,
    }

    const NET: NetworkId = NetworkId::from_bytes([7; 16]);

    fn parse(args: &[&str]) -> Result<CreateFlags, String> {
        let args = std::iter::once("create").chain(args.iter().copied());
        Line::try_parse_from(args).map(|line| line.flags).map_err(|error| error.to_string())
    }

    fn spec(args: &[&str]) -> Result<ServiceSpec, String> {
        let env = |key: &str| (key == "HOME").then(|| "/root".to_owned());
        let surroundings = Surroundings {
            networks: &[(NET, "front".to_owned())],
            env: &env,
            env_files: &[("vars".into(), "\u{feff}# note\nA=file\n  B=2\n\nHOME\nUNSET\n".to_owned())],
        };
        let flags = parse(args)?;
        // Only a line that names the file reads it.
        let none = Surroundings { env_files: &[], ..surroundings };
        let surroundings = if flags.env_file.is_empty() { none } else { surroundings };
        flags.spec(&surroundings).map_err(|error| error.to_string())
    }

    /// `args` make of the plain service what `change` makes of it.
    fn check(args: &[&str], change: impl Fn(&mut ServiceSpec)) {
        let mut expected = spec(&["web"]).unwrap();
        change(&mut expected);
        let args: Vec<_> = args.iter().copied().chain(["web"]).collect();
        assert_eq!(spec(&args), Ok(expected), "{args:?}");
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn an_image_alone_makes_one_replica_with_the_defaults() {
        let found = spec(&["nginx:1"]).unwrap();
        assert_eq!(found.mode, ServiceMode::Replicated { replicas: 1 });
        assert_eq!((found.task.container.image.as_str(), found.name.as_str()), ("nginx:1", ""));
        assert_eq!((found.update, found.rollback), (UpdateConfig::default(), UpdateConfig::default()));
    }

    #[test]
    fn words_after_the_image_are_its_arguments_even_if_they_look_like_flags() {
        let found = spec(&["--name", "web", "nginx", "--replicas", "3", "-p", "80"]).unwrap();
        assert_eq!(found.task.container.args, strings(&["--replicas", "3", "-p", "80"]));
        assert_eq!(found.mode, ServiceMode::Replicated { replicas: 1 });
        assert_eq!(found.name, "web");
    }

    #[test]
    fn each_flag_sets_its_field() {
        check(&["--name", "x"], |s| s.name = "x".to_owned());
        check(&["--replicas", "3"], |s| s.mode = ServiceMode::Replicated { replicas: 3 });
        check(&["--replicas=3", "--replicas=4"], |s| s.mode = ServiceMode::Replicated { replicas: 4 });
        check(&["--mode", "global"], |s| s.mode = ServiceMode::Global);
        check(&["-l", "a=1", "--label", "b"], |s| {
            s.labels = [("a".into(), "1".into()), ("b".into(), String::new())].into();
        });
        check(&["--container-label", "a=1"], |s| {
            s.task.container.labels = [("a".into(), "1".into())].into();
        });
        check(&["--entrypoint", "sh -c 'a b'"], |s| s.task.container.command = strings(&["sh", "-c", "a b"]));
        check(&["--entrypoint", "-x"], |s| s.task.container.command = strings(&["-x"]));
        check(&["--hostname", "h"], |s| s.task.container.hostname = "h".to_owned());
        check(&["-u", "1:2", "-w", "/x"], |s| {
            s.task.container.user = "1:2".to_owned();
            s.task.container.dir = "/x".to_owned();
        });
        check(&["--init", "--read-only"], |s| {
            s.task.container.init = true;
            s.task.container.read_only = true;
        });
        check(&["--init=false", "--read-only=false", "--no-healthcheck", "--tty=false"], |_| {});
        check(&["--group", "a", "--group", "b"], |s| s.task.container.groups = strings(&["a", "b"]));
        check(&["--host", "db:10.0.0.7"], |s| s.task.container.hosts = strings(&["10.0.0.7 db"]));
        check(&["--dns", "1.1.1.1", "--dns-option", "ndots:2", "--dns-search", "x.y"], |s| {
            let dns = &mut s.task.container.dns;
            dns.nameservers = strings(&["1.1.1.1"]);
            dns.options = strings(&["ndots:2"]);
            dns.search = strings(&["x.y"]);
        });
        check(&["--sysctl", "net.core.somaxconn=1024"], |s| {
            s.task.container.sysctls = [("net.core.somaxconn".into(), "1024".into())].into();
        });
        check(&["--ulimit", "nofile=1:2", "--ulimit", "nofile=3"], |s| {
            s.task.container.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 3, hard: 3 }];
        });
        check(&["--oom-score-adj", "-500"], |s| s.task.container.oom_score_adj = -500);
        check(&["--stop-signal", "SIGUSR1", "--stop-grace-period", "1m30s"], |s| {
            s.task.container.stop_signal = "SIGUSR1".to_owned();
            s.task.container.stop_grace_period = Some(Duration::from_secs(90));
        });
        check(&["--limit-cpu", "0.5", "--limit-memory", "64m", "--limit-pids", "9"], |s| {
            s.task.limits.nano_cpus = 500_000_000;
            s.task.limits.memory_bytes = 64 << 20;
            s.task.limits.pids = 9;
        });
        check(&["--reserve-cpu", "1", "--reserve-memory", "1g"], |s| {
            s.task.reservations.nano_cpus = 1_000_000_000;
            s.task.reservations.memory_bytes = 1 << 30;
        });
        check(
            &["--restart-condition", "on-failure", "--restart-delay", "1s", "--restart-max-attempts", "3"],
            |s| {
                s.task.restart.condition = RestartCondition::OnFailure;
                s.task.restart.delay = Duration::from_secs(1);
                s.task.restart.max_attempts = 3;
            },
        );
        check(&["--restart-window", "1m"], |s| s.task.restart.window = Duration::from_secs(60));
        check(&["--log-driver", "json-file", "--log-opt", "max-size=1m", "--log-opt", "max-file=7"], |s| {
            s.task.log.max_size_bytes = 1 << 20;
            s.task.log.max_files = 7;
        });
        check(&["--log-opt", "max-size=1m"], |s| s.task.log.max_size_bytes = 1 << 20);
        check(&["--log-opt", "mode=non-blocking"], |s| {
            s.task.log.non_blocking_buffer_bytes = Some(1 << 20);
        });
        check(&["--log-opt", "max-buffer-size=4m", "--log-opt", "mode=non-blocking"], |s| {
            s.task.log.non_blocking_buffer_bytes = Some(4 << 20);
        });
        check(&["--log-opt", "mode=blocking"], |_| {});
        check(&["-t"], |s| s.task.container.tty = true);
        check(&["--tty=true"], |s| s.task.container.tty = true);
    }

    #[test]
    fn placement_network_and_pace() {
        check(&["--constraint", "node.role==worker", "--placement-pref", "spread=node.labels.zone"], |s| {
            s.task.placement.constraints = strings(&["node.role==worker"]);
            s.task.placement.spread = strings(&["node.labels.zone"]);
        });
        check(&["--replicas-max-per-node", "2"], |s| s.task.placement.max_replicas = 2);
        check(&["--endpoint-mode", "dnsrr"], |s| s.endpoint.mode = EndpointMode::Dnsrr);
        check(&["--prefer-same-node"], |s| s.endpoint.prefer_same_node = true);
        check(&["--allow-from", "api", "--allow-from", "jobs"], |s| {
            s.endpoint.allow_from = ["api".to_owned(), "jobs".to_owned()].into();
        });
        check(&["--network", "name=front,alias=a"], |s| {
            s.task.networks = vec![NetworkAttachment { network: NET, aliases: strings(&["a"]) }];
        });
        check(&["-p", "8080-8081:80-81", "--publish", "target=53,protocol=udp,mode=host"], |s| {
            let port = |published, target, protocol, mode| PortConfig {
                protocol,
                target,
                published,
                mode,
                host_ip: None,
                interface: None,
            };
            s.endpoint.ports = vec![
                port(Some(8080), 80, Protocol::Tcp, PublishMode::Ingress),
                port(Some(8081), 81, Protocol::Tcp, PublishMode::Ingress),
                port(None, 53, Protocol::Udp, PublishMode::Host),
            ];
        });
        check(&["--mount", "type=bind,src=/a,dst=/b,ro"], |s| {
            s.task.container.mounts = vec![Mount {
                kind: MountKind::Bind,
                source: "/a".to_owned(),
                target: "/b".to_owned(),
                read_only: true,
            }];
        });
        let pace = |kind: &str| -> Vec<String> {
            ["parallelism=0", "delay=1s", "failure-action=continue", "monitor=9s", "max-failure-ratio=0.3"]
                .iter()
                .map(|flag| format!("--{kind}-{flag}"))
                .chain([format!("--{kind}-order=start-first")])
                .collect()
        };
        let expected = UpdateConfig {
            parallelism: 0,
            delay: Duration::from_secs(1),
            failure_action: FailureAction::Continue,
            monitor: Duration::from_secs(9),
            max_failure_ratio: 0.3,
            order: UpdateOrder::StartFirst,
        };
        let (update, rollback) = (pace("update"), pace("rollback"));
        check(&update.iter().map(String::as_str).collect::<Vec<_>>(), |s| s.update = expected);
        check(&rollback.iter().map(String::as_str).collect::<Vec<_>>(), |s| s.rollback = expected);
        check(&["--update-monitor", "0s"], |_| {});
    }

    #[test]
    fn the_environment_comes_from_files_first_and_the_last_word_counts() {
        check(&["-e", "A=1", "-e", "B=2", "-e", "A=3"], |s| s.task.container.env = strings(&["A=3", "B=2"]));
        check(&["-e", "HOME", "-e", "UNSET"], |s| s.task.container.env = strings(&["HOME=/root"]));
        check(&["-e", "A=1", "--env-file", "vars"], |s| {
            s.task.container.env = strings(&["A=1", "B=2", "HOME=/root"]);
        });
    }

    #[test]
    fn capabilities_are_settled() {
        for (args, add, drop) in [
            (
                &["--cap-add", "net_admin", "--cap-drop", "CHOWN"][..],
                &["CAP_NET_ADMIN"][..],
                &["CAP_CHOWN"][..],
            ),
            (&["--cap-add", "chown", "--cap-drop", "chown"], &["CAP_CHOWN"], &[]),
            (&["--cap-add", "chown", "--cap-add", "all"], &["ALL"], &[]),
            (&["--cap-drop", "all", "--cap-add", "chown"], &["CAP_CHOWN"], &["ALL"]),
        ] {
            check(args, |s| {
                s.task.container.cap_add = strings(add);
                s.task.container.cap_drop = strings(drop);
            });
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, part) in [
            (
                &["--replicas", "-1", "web"][..],
                "'--replicas <N>': expected a number of tasks from 0 to 1000000, found `-1`",
            ),
            (&["--replicas", "many", "web"], "expected a number of tasks from 0 to 1000000, found `many`"),
            (
                &["--update-delay", "10", "web"],
                "expected a duration like `300ms`, `10s` or `1h15m`, found `10`",
            ),
            (&["--limit-memory", "1x", "web"], "--limit-memory"),
            (&["--update-order", "both", "web"], "expected stop-first, start-first"),
            (&["--oom-score-adj", "2000", "web"], "-1000..=1000"),
            (&["--nope", "web"], "--nope"),
            (&["--name", "x"], "IMAGE"),
            (
                &["--mode", "global", "--replicas", "2", "web"],
                "--replicas can only be used with replicated mode",
            ),
            (
                &["--mode", "global", "--replicas-max-per-node", "2", "web"],
                "--replicas-max-per-node can only be used with replicated mode",
            ),
            (&["--network", "back", "web"], "network `back` not found"),
            (&["--network", "front", "--network", "front", "web"], "already attached to network `front`"),
            (
                &["--mount", "type=tmpfs,dst=/a", "--mount", "type=tmpfs,dst=/a", "web"],
                "duplicate mount target `/a`",
            ),
            (&["--secret", "key", "web"], "--secret is not supported yet: mount a file"),
            (&["--health-cmd", "true", "web"], "--health-cmd is not supported yet"),
            (&["--log-opt", "max-buffer-size=1m", "web"], "give mode=non-blocking with it"),
            (&["--mode", "replicated-job", "web"], "mode `replicated-job` is not supported yet"),
            (&["--secret-add", "key", "web"], "unexpected argument '--secret-add'"),
        ] {
            let error = spec(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn env_files_are_checked_by_line() {
        let flags = parse(&["web"]).unwrap();
        for (text, expected) in [
            ("A=1\r\nB=x y\n", Ok(strings(&["A=1", "B=x y"]))),
            ("A=\n", Ok(strings(&["A="]))),
            ("A=1\n=x\n", Err("invalid line 2 of env file `f`: expected KEY=value, found `=x`".to_owned())),
            ("A B=1", Err("invalid line 1 of env file `f`: expected KEY=value, found `A B=1`".to_owned())),
            ("A =1", Err("invalid line 1 of env file `f`: expected KEY=value, found `A =1`".to_owned())),
        ] {
            let files = [("f".into(), text.to_owned())];
            let surroundings = Surroundings { networks: &[], env: &|_| None, env_files: &files };
            let found = flags.spec(&surroundings).map(|spec| spec.task.container.env);
            assert_eq!(found.map_err(|e| e.to_string()), expected, "{text}");
        }
    }
}
