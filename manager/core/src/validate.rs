//! What a spec must satisfy before it is written. Source: swarm-parity 2.5.

mod dns;
mod network;
mod port;

use std::collections::BTreeSet;

use rswarm_types::kernel::{self, OWN_SYSCTLS, ULIMITS};
use rswarm_types::quantity::{format_bytes, format_duration};
use rswarm_types::service::UpdateConfig;
use rswarm_types::task::{
    ContainerSpec, LOG_BUFFER_BYTES_MAX, Limits, Mount, MountKind, RegistryAuth, RegistrySecret, Ulimit,
};
use rswarm_types::{ClusterSpec, NetworkDriver, Service, ServiceMode, ServiceSpec};

use crate::constraint::{Constraint, ConstraintError};
use crate::state::State;

pub use dns::aliases;
pub use network::{NetworkError, POOL_PREFIX_MAX, POOL_PREFIX_MIN, network_spec};
pub use port::PortError;

/// Most characters of a service's or network's name: it becomes a DNS label.
pub const MAX_NAME_LEN: usize = 63;
/// Most replicas of one service. Ten times what the whole cluster is built for; above it a typo is likelier.
pub const MAX_REPLICAS: u64 = 1_000_000;
/// Least CPU that can be limited or reserved: 0.001.
pub const MIN_NANO_CPUS: u64 = 1_000_000;
/// Least memory that can be limited or reserved: 4 MiB.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;
/// Least life of a node's certificate.
pub const MIN_CERT_EXPIRY: std::time::Duration = std::time::Duration::from_secs(3600);

/// Most bytes of a registry's credential; tokens of the large registries have up to 10,000.
pub const MAX_CREDENTIAL_LEN: usize = 64 << 10;

/// What is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("invalid name `{0}`: expected 1 to {MAX_NAME_LEN} letters, digits and inner `-` or `_`")]
    Name(String),
    #[error("invalid replicas {found}: expected at most {MAX_REPLICAS}")]
    Replicas { found: u64 },
    #[error(
        "invalid size {} of the log's buffer: expected 1 byte to {}",
        format_bytes(*.found),
        format_bytes(LOG_BUFFER_BYTES_MAX)
    )]
    LogBuffer { found: u64 },
    #[error("no image given")]
    NoImage,
    #[error("invalid image `{0}`: expected a reference like `name:tag` or `registry/name@sha256:…`")]
    Image(String),
    #[error("a credential without a registry: expected the `host[:port]` that it is for")]
    CredentialOfNone,
    #[error(
        "invalid credential for `{registry}`: expected at most {MAX_CREDENTIAL_LEN} bytes, found {found}"
    )]
    Credential { registry: String, found: usize },
    #[error("invalid {what} {} CPUs: expected at least 0.001", *.found as f64 / 1e9)]
    Cpus { what: &'static str, found: u64 },
    #[error("invalid {what} {}: expected at least {}", format_bytes(*.found), format_bytes(MIN_MEMORY_BYTES))]
    Memory { what: &'static str, found: u64 },
    #[error("invalid {what} failure ratio {found}: expected a number from 0 to 1")]
    FailureRatio { what: &'static str, found: String },
    #[error("a rollback cannot be rolled back: expected failure action `pause` or `continue`")]
    RollbackAction,
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    #[error("invalid placement preference `{0}`: expected `node.labels.<name>` or `engine.labels.<name>`")]
    Spread(String),
    #[error("a global service cannot have a maximum of replicas per node")]
    GlobalMaxReplicas,
    #[error("{what} `{text}` holds a template, which is not supported yet: expected plain text")]
    Template { what: &'static str, text: String },
    #[error("an init process in the container is not supported yet: run an image that brings one")]
    Init,
    #[error("invalid working directory `{0}`: expected an absolute path")]
    Dir(String),
    #[error("unknown capability `{0}`: expected `ALL` or a name from capabilities(7) like `NET_ADMIN`")]
    Capability(String),
    #[error("invalid mount target `{0}`: expected an absolute path other than `/` without `..`")]
    MountTarget(String),
    #[error("duplicate mount target `{0}`")]
    DuplicateMount(String),
    #[error("invalid mount source `{0}`: expected an absolute path on the node")]
    MountSource(String),
    #[error("invalid mount source `{0}`: a tmpfs has none")]
    TmpfsSource(String),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(
        "network `{0}` cannot be named by a service: it carries the ports that are published in mode `ingress`"
    )]
    IngressByName(String),
    #[error("invalid environment variable `{0}`: expected `NAME=value`")]
    Env(String),
    #[error("invalid alias `{0}`: expected a host name like `db` or `db.internal`")]
    Alias(String),
    #[error("invalid search domain `{0}`: expected a domain like `example.org`, or `.` alone for none")]
    Search(String),
    #[error("invalid name server `{0}`: expected an address like `192.0.2.53`")]
    Nameserver(String),
    #[error("invalid DNS option `{0}`: expected one from resolv.conf(5) like `ndots:2`")]
    DnsOption(String),
    #[error("duplicate network `{0}`")]
    DuplicateNetwork(String),
    #[error(
        "network `{first}` cannot be combined with `{second}`: a task uses the node's network or none, or networks \
         of its own"
    )]
    NetworksApart { first: String, second: String },
    #[error("unknown stop signal `{0}`: expected a name or number from signal(7) like `SIGTERM`")]
    StopSignal(String),
    #[error("sysctl `{0}` is the node's, not the container's: expected one of {OWN_SYSCTLS}")]
    Sysctl(String),
    #[error("sysctl `{0}` is the node's for tasks on network `host`: leave it out, or use another network")]
    HostSysctl(String),
    #[error("unknown ulimit `{found}`: expected one of {}", ULIMITS.join(", "))]
    Ulimit { found: String },
    #[error("ulimit `{name}`: expected a soft limit of at most the hard one, found {soft} above {hard}")]
    SoftAboveHard { name: String, soft: i64, hard: i64 },
    #[error("the name of a service cannot be changed: expected `{expected}`, found `{found}`")]
    Renamed { expected: String, found: String },
    #[error("the mode of a service cannot be changed between replicated and global; create another service")]
    ModeChanged,
    #[error("invalid {what} {}: expected at least {}", format_duration(*.found), format_duration(*.least))]
    Duration { what: &'static str, found: std::time::Duration, least: std::time::Duration },
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Checks a service as the user wrote it.
pub fn service_spec(spec: &ServiceSpec) -> Result<(), SpecError> {
    name(&spec.name)?;
    match spec.mode {
        ServiceMode::Replicated { replicas } if replicas > MAX_REPLICAS => {
            return Err(SpecError::Replicas { found: replicas });
        }
        ServiceMode::Global if spec.task.placement.max_replicas > 0 => {
            return Err(SpecError::GlobalMaxReplicas);
        }
        _ => {}
    }
    container(spec)?;
    let reserved = spec.task.reservations;
    let reserved =
        Limits { nano_cpus: reserved.nano_cpus, memory_bytes: reserved.memory_bytes, ..Limits::default() };
    amounts(["CPU limit", "memory limit"], spec.task.limits)?;
    amounts(["CPU reservation", "memory reservation"], reserved)?;
    if let Some(found) = spec.task.log.non_blocking_buffer_bytes
        && !(1..=LOG_BUFFER_BYTES_MAX).contains(&found)
    {
        return Err(SpecError::LogBuffer { found });
    }
    for text in &spec.task.placement.constraints {
        text.parse::<Constraint>()?;
    }
    for text in &spec.task.placement.spread {
        spread(text)?;
    }
    pace("update", &spec.update)?;
    pace("rollback", &spec.rollback)?;
    if spec.rollback.failure_action == rswarm_types::service::FailureAction::Rollback {
        return Err(SpecError::RollbackAction);
    }
    let mut networks = BTreeSet::new();
    for attachment in &spec.task.networks {
        if !networks.insert(attachment.network) {
            return Err(SpecError::DuplicateNetwork(attachment.network.to_string()));
        }
        dns::aliases(&attachment.aliases)?;
    }
    spec.endpoint.allow_from.iter().try_for_each(|caller| name(caller))?;
    Ok(port::ports(spec)?)
}

/// Checks a change of a service: the new spec itself, and what cannot be changed.
pub fn service_update(held: &Service, spec: &ServiceSpec) -> Result<(), SpecError> {
    if held.spec.name != spec.name {
        return Err(SpecError::Renamed { expected: held.spec.name.clone(), found: spec.name.clone() });
    }
    if matches!(held.spec.mode, ServiceMode::Global) != matches!(spec.mode, ServiceMode::Global) {
        return Err(SpecError::ModeChanged);
    }
    service_spec(spec)
}

/// Checks what depends on the networks a service attaches to. Unknown ones are left to the caller, who looked them up.
pub fn service_networks(state: &State, spec: &ServiceSpec) -> Result<(), SpecError> {
    let networks: Vec<_> = spec.task.networks.iter().filter_map(|one| state.network(one.network)).collect();
    if let Some(ingress) = networks.iter().find(|network| network.spec.ingress) {
        return Err(SpecError::IngressByName(ingress.spec.name.clone()));
    }
    let is_alone = |driver| matches!(driver, NetworkDriver::Host | NetworkDriver::None);
    let alone = networks.iter().find(|network| is_alone(network.spec.driver));
    let other = alone.and_then(|alone| networks.iter().find(|network| network.id != alone.id));
    if let Some((alone, other)) = alone.zip(other) {
        let (first, second) = (alone.spec.name.clone(), other.spec.name.clone());
        return Err(SpecError::NetworksApart { first, second });
    }
    let known: Vec<_> = networks.iter().map(|network| &***network).collect();
    port::on_networks(state, spec, &known)?;
    let Some(alone) = alone else { return Ok(()) };
    let shared = |name: &&String| !kernel::is_own_sysctl(name, alone.spec.driver != NetworkDriver::Host);
    match spec.task.container.sysctls.keys().find(shared) {
        Some(name) => Err(SpecError::HostSysctl(name.clone())),
        None => Ok(()),
    }
}

/// Checks the cluster's settings.
pub fn cluster_spec(spec: &ClusterSpec) -> Result<(), SpecError> {
    let at_least = |what, found, least| {
        if found < least { Err(SpecError::Duration { what, found, least }) } else { Ok(()) }
    };
    at_least("certificate expiry", spec.node_cert_expiry, MIN_CERT_EXPIRY)?;
    at_least("heartbeat period", spec.heartbeat_period, std::time::Duration::from_millis(100))?;
    // One lost heartbeat must not make a node look dead.
    at_least("time after which a node is down", spec.node_down_after, spec.heartbeat_period * 2)?;
    Ok(network::cluster(spec)?)
}

/// Checks a name of a service or network: letters and digits, with `-` and `_` inside.
pub fn name(name: &str) -> Result<(), SpecError> {
    let word = |c: char| c.is_ascii_alphanumeric();
    let valid = (1..=MAX_NAME_LEN).contains(&name.len())
        && name.chars().all(|c| word(c) || c == '-' || c == '_')
        && name.starts_with(word)
        && name.ends_with(word);
    if valid { Ok(()) } else { Err(SpecError::Name(name.to_owned())) }
}

/// Source: capabilities(7), Linux 5.9 and later; `ALL` is Docker's.
const CAPABILITIES: [&str; 42] = [
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

fn credential(auth: &RegistryAuth) -> Result<(), SpecError> {
    if auth.registry.is_empty() {
        return Err(SpecError::CredentialOfNone);
    }
    let found = match &auth.secret {
        RegistrySecret::Password { username, password } => username.len() + password.len(),
        RegistrySecret::IdentityToken(token) | RegistrySecret::RegistryToken(token) => token.len(),
        RegistrySecret::Withheld => 0,
    };
    if found <= MAX_CREDENTIAL_LEN {
        return Ok(());
    }
    Err(SpecError::Credential { registry: auth.registry.clone(), found })
}

fn container(spec: &ServiceSpec) -> Result<(), SpecError> {
    let container = &spec.task.container;
    if container.image.is_empty() {
        return Err(SpecError::NoImage);
    }
    let image_char = |c: char| c.is_ascii_alphanumeric() || "-_./:@+".contains(c);
    if !container.image.chars().all(image_char)
        || !container.image.starts_with(|c: char| c.is_ascii_alphanumeric())
        || container.image.ends_with([':', '/', '@'])
    {
        return Err(SpecError::Image(container.image.clone()));
    }
    if let Some(auth) = &container.registry_auth {
        credential(auth)?;
    }
    for env in &container.env {
        if env.split_once('=').is_none_or(|(name, _)| name.is_empty()) || env.contains('\0') {
            return Err(SpecError::Env(env.clone()));
        }
    }
    if container.init {
        return Err(SpecError::Init);
    }
    if !container.dir.is_empty() && !container.dir.starts_with('/') {
        return Err(SpecError::Dir(container.dir.clone()));
    }
    for name in container.cap_add.iter().chain(&container.cap_drop) {
        let upper = name.to_ascii_uppercase();
        if !CAPABILITIES.contains(&upper.strip_prefix("CAP_").unwrap_or(&upper)) {
            return Err(SpecError::Capability(name.clone()));
        }
    }
    // Swarm expands these; taken as plain text they would surprise. Source: swarm-parity 4.7.
    let templated = [("hostname", &container.hostname)].into_iter();
    let templated = templated
        .chain(container.env.iter().map(|env| ("environment variable", env)))
        .chain(container.mounts.iter().map(|mount| ("mount source", &mount.source)));
    for (what, text) in templated {
        if text.contains("{{") {
            return Err(SpecError::Template { what, text: text.clone() });
        }
    }
    mounts(&container.mounts)?;
    dns::settings(&container.dns)?;
    kernel_settings(container)
}

fn mounts(mounts: &[Mount]) -> Result<(), SpecError> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        let target = mount.target.trim_end_matches('/');
        if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
            return Err(SpecError::MountTarget(mount.target.clone()));
        }
        if !targets.insert(target) {
            return Err(SpecError::DuplicateMount(mount.target.clone()));
        }
        match mount.kind {
            MountKind::Bind if !mount.source.starts_with('/') => {
                return Err(SpecError::MountSource(mount.source.clone()));
            }
            MountKind::Tmpfs { .. } if !mount.source.is_empty() => {
                return Err(SpecError::TmpfsSource(mount.source.clone()));
            }
            MountKind::Bind | MountKind::Tmpfs { .. } => {}
        }
    }
    Ok(())
}

/// Checks names that only the kernel of a node gives a meaning.
fn kernel_settings(container: &ContainerSpec) -> Result<(), SpecError> {
    let signal = &container.stop_signal;
    if !signal.is_empty() && kernel::signal(signal).is_none() {
        return Err(SpecError::StopSignal(signal.clone()));
    }
    if let Some(name) = container.sysctls.keys().find(|name| !kernel::is_own_sysctl(name, true)) {
        return Err(SpecError::Sysctl(name.clone()));
    }
    for Ulimit { name, soft, hard } in &container.ulimits {
        if !ULIMITS.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(SpecError::Ulimit { found: name.clone() });
        }
        // A negative limit is none.
        let size = |limit: i64| if limit < 0 { i64::MAX } else { limit };
        if size(*soft) > size(*hard) {
            return Err(SpecError::SoftAboveHard { name: name.clone(), soft: *soft, hard: *hard });
        }
    }
    Ok(())
}

fn amounts([cpu, memory]: [&'static str; 2], limits: Limits) -> Result<(), SpecError> {
    if (1..MIN_NANO_CPUS).contains(&limits.nano_cpus) {
        return Err(SpecError::Cpus { what: cpu, found: limits.nano_cpus });
    }
    if (1..MIN_MEMORY_BYTES).contains(&limits.memory_bytes) {
        return Err(SpecError::Memory { what: memory, found: limits.memory_bytes });
    }
    Ok(())
}

fn spread(text: &str) -> Result<(), SpecError> {
    let name = text.strip_prefix("node.labels.").or_else(|| text.strip_prefix("engine.labels."));
    if name.is_none_or(str::is_empty) { Err(SpecError::Spread(text.to_owned())) } else { Ok(()) }
}

fn pace(what: &'static str, config: &UpdateConfig) -> Result<(), SpecError> {
    if (0.0..=1.0).contains(&config.max_failure_ratio) {
        return Ok(());
    }
    Err(SpecError::FailureRatio { what, found: config.max_failure_ratio.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use rswarm_types::service::{PortConfig, Protocol, PublishMode};
    use rswarm_types::task::NetworkAttachment;

    fn message(change: impl FnOnce(&mut ServiceSpec)) -> String {
        service_spec(&Fixture::spec("web", 1, change)).err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn good_and_bad_specs() {
        let port = |published, mode| PortConfig {
            protocol: Protocol::Tcp,
            target: 80,
            published: Some(published),
            mode,
            host_ip: None,
            interface: None,
        };
        let bind = |target: &str| Mount {
            kind: MountKind::Bind,
            source: "/srv".into(),
            target: target.into(),
            read_only: false,
        };
        let ulimit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
        type Change = Box<dyn FnOnce(&mut ServiceSpec)>;
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(|_| {}), ""),
            (Box::new(|s| s.name = "-web".into()), "invalid name `-web`"),
            (Box::new(|s| s.name = "a".repeat(64)), "invalid name"),
            (Box::new(|s| s.name = "a.b".into()), "invalid name"),
            (
                Box::new(|s| s.mode = ServiceMode::Replicated { replicas: 1_000_000_000 }),
                "invalid replicas 1000000000: expected at most 1000000",
            ),
            (Box::new(|s| s.task.container.image.clear()), "no image given"),
            (Box::new(|s| s.task.container.image = "a b".into()), "invalid image `a b`"),
            (
                Box::new(|s| s.task.limits.memory_bytes = 1 << 20),
                "invalid memory limit 1MiB: expected at least 4MiB",
            ),
            (
                Box::new(|s| s.task.log.non_blocking_buffer_bytes = Some(1 << 30)),
                "invalid size 1GiB of the log's buffer: expected 1 byte to 256MiB",
            ),
            (Box::new(|s| s.task.reservations.nano_cpus = 1), "invalid CPU reservation 0.000000001 CPUs"),
            (
                Box::new(|s| s.task.placement.constraints = vec!["node.colour==red".into()]),
                "unknown key `node.colour`",
            ),
            (
                Box::new(|s| s.task.placement.spread = vec!["zone".into()]),
                "invalid placement preference `zone`",
            ),
            (Box::new(|s| s.update.max_failure_ratio = f64::NAN), "invalid update failure ratio NaN"),
            (
                Box::new(move |s| s.task.container.mounts = vec![bind("/a"), bind("/a/")]),
                "duplicate mount target `/a/`",
            ),
            (Box::new(move |s| s.task.container.mounts = vec![bind("a")]), "invalid mount target `a`"),
            (
                Box::new(move |s| s.endpoint.ports = vec![port(80, PublishMode::Host); 2]),
                "duplicate published port 80/tcp",
            ),
            (Box::new(move |s| s.endpoint.ports = vec![port(80, PublishMode::Ingress)]), ""),
            (Box::new(|s| s.task.container.env = vec!["A".into()]), "invalid environment variable `A`"),
            (Box::new(|s| s.task.container.cap_add = vec!["cap_net_admin".into(), "ALL".into()]), ""),
            (Box::new(|s| s.task.container.cap_drop = vec!["FOO".into()]), "unknown capability `FOO`"),
            (
                Box::new(|s| {
                    let secret = RegistrySecret::RegistryToken("x".repeat(70_000));
                    s.task.container.registry_auth = Some(RegistryAuth { registry: "r:5000".into(), secret });
                }),
                "invalid credential for `r:5000`: expected at most 65536 bytes, found 70000",
            ),
            (
                Box::new(|s| {
                    let secret = RegistrySecret::IdentityToken("x".into());
                    s.task.container.registry_auth = Some(RegistryAuth { registry: String::new(), secret });
                }),
                "a credential without a registry",
            ),
            (Box::new(|s| s.task.container.dir = "rel".into()), "invalid working directory `rel`"),
            (Box::new(|s| s.task.container.init = true), "not supported yet"),
            (Box::new(|s| s.task.container.stop_signal = "SIGRTMIN+1".into()), ""),
            (Box::new(|s| s.task.container.stop_signal = "NOPE".into()), "unknown stop signal `NOPE`"),
            (Box::new(|s| s.task.container.sysctls = [("net.core.somaxconn".into(), "1".into())].into()), ""),
            (
                Box::new(|s| s.task.container.sysctls = [("vm.swappiness".into(), "1".into())].into()),
                "sysctl `vm.swappiness` is the node's",
            ),
            (Box::new(move |s| s.task.container.ulimits = vec![ulimit("nofile", 10, -1)]), ""),
            (
                Box::new(move |s| s.task.container.ulimits = vec![ulimit("files", 1, 1)]),
                "unknown ulimit `files`: expected one of as, core",
            ),
            (
                Box::new(move |s| s.task.container.ulimits = vec![ulimit("nofile", -1, 10)]),
                "found -1 above 10",
            ),
            (
                Box::new(move |s| s.task.container.mounts = vec![bind("/a/../b")]),
                "invalid mount target `/a/../b`",
            ),
            (
                Box::new(|s| s.task.container.hostname = "{{.Node.Hostname}}".into()),
                "hostname `{{.Node.Hostname}}` holds a template",
            ),
            (
                Box::new(|s| s.task.container.env = vec!["T={{.Task.Name}}".into()]),
                "environment variable `T={{.Task.Name}}` holds a template",
            ),
        ];
        for (change, expected) in cases {
            let found = message(change);
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{expected}: {found}"
            );
        }
    }

    #[test]
    fn the_node_s_network_excludes_others_and_its_settings() {
        let mut f = Fixture::new(1);
        let bridge = f.network("own", "10.1.0.0/24");
        let mut host = f.network("host", "10.2.0.0/24");
        (host.id, host.ipam) = (rswarm_types::NetworkId::from_bytes([9; 16]), None);
        host.spec.driver = NetworkDriver::Host;
        let ids = [bridge.id, host.id];
        f.must(vec![
            crate::Write::CreateNetwork(Box::new(bridge)),
            crate::Write::CreateNetwork(Box::new(host)),
        ]);
        let check = |networks: &[rswarm_types::NetworkId], sysctl: &str| {
            let spec = Fixture::spec("web", 1, |spec| {
                let attach = |network: &_| NetworkAttachment { network: *network, aliases: vec![] };
                spec.task.networks = networks.iter().map(attach).collect();
                spec.task.container.sysctls = [(sysctl.to_owned(), "1".to_owned())].into();
            });
            service_networks(&f.state, &spec).err().map(|error| error.to_string()).unwrap_or_default()
        };
        let (net, ipc) = ("net.core.somaxconn", "kernel.shmmax");
        assert_eq!([check(&[], net), check(&ids[..1], net), check(&ids[1..], ipc)], ["", "", ""]);
        assert!(
            check(&ids, ipc).contains("network `host` cannot be combined with `own`"),
            "{}",
            check(&ids, ipc)
        );
        assert!(
            check(&ids[1..], net)
                .contains("sysctl `net.core.somaxconn` is the node's for tasks on network `host`")
        );
        let mesh = Fixture::spec("web", 1, |spec| {
            spec.task.networks = vec![NetworkAttachment { network: ids[1], aliases: vec![] }];
            let (protocol, mode) = (Protocol::Tcp, PublishMode::Ingress);
            spec.endpoint.ports = vec![PortConfig {
                protocol,
                target: 80,
                published: None,
                mode,
                host_ip: None,
                interface: None,
            }];
        });
        let error = service_networks(&f.state, &mesh).unwrap_err().to_string();
        assert!(
            error.starts_with("port 80 cannot be published in mode `ingress` on network `host`"),
            "{error}"
        );
    }

    #[test]
    fn name_and_mode_cannot_be_changed() {
        let mut f = Fixture::new(0);
        let web = f.create("web", 1, |_| {});
        let held = f.state.service(web).unwrap();
        let check = |change: fn(&mut ServiceSpec)| {
            let mut spec = held.spec.clone();
            change(&mut spec);
            service_update(held, &spec)
        };
        assert_eq!(check(|spec| spec.mode = ServiceMode::Replicated { replicas: 9 }), Ok(()));
        assert_eq!(check(|spec| spec.mode = ServiceMode::Global), Err(SpecError::ModeChanged));
        assert!(matches!(check(|spec| spec.name = "other".into()), Err(SpecError::Renamed { .. })));
    }
}
