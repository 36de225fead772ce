//! What users write: specs of services, tasks, nodes and the cluster.

use std::net::IpAddr;
use std::time::Duration;

use rswarm_types as types;
use types::node::{Platform, Resources};
use types::service::{EndpointSpec, PortConfig, ServiceMode, ServiceSpec, UpdateConfig};
use types::task::{
    ContainerSpec, DnsConfig, Limits, LogConfig, Mount, MountKind, NetworkAttachment, Placement,
    RegistryAuth, RegistrySecret, RestartPolicy, TaskSpec, Ulimit,
};
use types::{ClusterSpec, NodeSpec};

use super::{
    WireError, all, each, exact_word, labels, nanos, narrow, or_default, parse, parse_optional, required,
    word,
};
use crate::v1;

impl From<&ServiceSpec> for v1::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: labels(&spec.labels),
            mode: Some((&spec.mode).into()),
            task: Some((&spec.task).into()),
            update: Some((&spec.update).into()),
            rollback: Some((&spec.rollback).into()),
            endpoint: Some((&spec.endpoint).into()),
        }
    }
}

impl TryFrom<v1::ServiceSpec> for ServiceSpec {
    type Error = WireError;
    fn try_from(wire: v1::ServiceSpec) -> Result<Self, WireError> {
        Ok(Self {
            name: wire.name,
            labels: wire.labels.into_iter().collect(),
            mode: required("mode", wire.mode)?,
            task: or_default("task", wire.task)?,
            update: or_default("update", wire.update)?,
            rollback: or_default("rollback", wire.rollback)?,
            endpoint: or_default("endpoint", wire.endpoint)?,
        })
    }
}

impl From<&ServiceMode> for v1::ServiceMode {
    fn from(mode: &ServiceMode) -> Self {
        use v1::service_mode::{Global, Mode, Replicated};
        Self {
            mode: Some(match mode {
                ServiceMode::Replicated { replicas } => Mode::Replicated(Replicated { replicas: *replicas }),
                ServiceMode::Global => Mode::Global(Global {}),
            }),
        }
    }
}

impl TryFrom<v1::ServiceMode> for ServiceMode {
    type Error = WireError;
    fn try_from(wire: v1::ServiceMode) -> Result<Self, WireError> {
        use v1::service_mode::Mode;
        match wire.mode.ok_or_else(|| WireError::missing("mode"))? {
            Mode::Replicated(replicated) => Ok(Self::Replicated { replicas: replicated.replicas }),
            Mode::Global(_) => Ok(Self::Global),
        }
    }
}

impl From<&UpdateConfig> for v1::UpdateConfig {
    fn from(config: &UpdateConfig) -> Self {
        Self {
            parallelism: config.parallelism,
            delay_nanos: nanos(config.delay),
            failure_action: v1::FailureAction::from(config.failure_action).into(),
            monitor_nanos: nanos(config.monitor),
            max_failure_ratio: config.max_failure_ratio,
            order: v1::UpdateOrder::from(config.order).into(),
        }
    }
}

impl TryFrom<v1::UpdateConfig> for UpdateConfig {
    type Error = WireError;
    fn try_from(wire: v1::UpdateConfig) -> Result<Self, WireError> {
        Ok(Self {
            parallelism: wire.parallelism,
            delay: Duration::from_nanos(wire.delay_nanos),
            failure_action: word::<v1::FailureAction, _>("failure_action", wire.failure_action)?,
            monitor: Duration::from_nanos(wire.monitor_nanos),
            max_failure_ratio: wire.max_failure_ratio,
            order: word::<v1::UpdateOrder, _>("order", wire.order)?,
        })
    }
}

impl From<&EndpointSpec> for v1::EndpointSpec {
    fn from(spec: &EndpointSpec) -> Self {
        Self {
            mode: v1::EndpointMode::from(spec.mode).into(),
            ports: all(&spec.ports),
            allow_from: spec.allow_from.iter().cloned().collect(),
            prefer_same_node: spec.prefer_same_node,
        }
    }
}

impl TryFrom<v1::EndpointSpec> for EndpointSpec {
    type Error = WireError;
    fn try_from(wire: v1::EndpointSpec) -> Result<Self, WireError> {
        Ok(Self {
            mode: word::<v1::EndpointMode, _>("mode", wire.mode)?,
            ports: each("ports", wire.ports)?,
            allow_from: wire.allow_from.into_iter().collect(),
            prefer_same_node: wire.prefer_same_node,
        })
    }
}

/// The address that a port is published on.
pub(super) fn host_ip(text: &str) -> Result<Option<IpAddr>, WireError> {
    Ok(parse_optional("host_ip", text)?.map(|at: IpAddr| at.to_canonical()))
}

impl From<&PortConfig> for v1::PortConfig {
    fn from(port: &PortConfig) -> Self {
        Self {
            protocol: v1::Protocol::from(port.protocol).into(),
            target: port.target.into(),
            published: port.published.map(Into::into),
            mode: v1::PublishMode::from(port.mode).into(),
            host_ip: port.host_ip.map(|at| at.to_string()).unwrap_or_default(),
            interface: port.interface.map(|name| name.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::PortConfig> for PortConfig {
    type Error = WireError;
    fn try_from(wire: v1::PortConfig) -> Result<Self, WireError> {
        Ok(Self {
            protocol: word::<v1::Protocol, _>("protocol", wire.protocol)?,
            target: narrow("target", wire.target)?,
            published: wire.published.map(|port| narrow("published", port)).transpose()?,
            mode: word::<v1::PublishMode, _>("mode", wire.mode)?,
            host_ip: host_ip(&wire.host_ip)?,
            interface: parse_optional("interface", &wire.interface)?,
        })
    }
}

impl From<&TaskSpec> for v1::TaskSpec {
    fn from(spec: &TaskSpec) -> Self {
        Self {
            container: Some((&spec.container).into()),
            limits: Some((&spec.limits).into()),
            reservations: Some((&spec.reservations).into()),
            restart: Some((&spec.restart).into()),
            placement: Some((&spec.placement).into()),
            networks: all(&spec.networks),
            log: Some((&spec.log).into()),
            force_update: spec.force_update,
        }
    }
}

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = WireError;
    fn try_from(wire: v1::TaskSpec) -> Result<Self, WireError> {
        Ok(Self {
            container: or_default("container", wire.container)?,
            limits: or_default("limits", wire.limits)?,
            reservations: or_default("reservations", wire.reservations)?,
            restart: or_default("restart", wire.restart)?,
            placement: or_default("placement", wire.placement)?,
            networks: each("networks", wire.networks)?,
            log: or_default("log", wire.log)?,
            force_update: wire.force_update,
        })
    }
}

/// Without the credential, which does not travel with a spec.
impl From<&ContainerSpec> for v1::ContainerSpec {
    fn from(spec: &ContainerSpec) -> Self {
        Self {
            image: spec.image.clone(),
            labels: labels(&spec.labels),
            command: spec.command.clone(),
            args: spec.args.clone(),
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            dir: spec.dir.clone(),
            user: spec.user.clone(),
            groups: spec.groups.clone(),
            read_only: spec.read_only,
            tty: spec.tty,
            init: spec.init,
            stop_signal: spec.stop_signal.clone(),
            stop_grace_period_nanos: spec.stop_grace_period.map(nanos),
            mounts: all(&spec.mounts),
            hosts: spec.hosts.clone(),
            dns: Some(v1::DnsConfig {
                nameservers: spec.dns.nameservers.clone(),
                search: spec.dns.search.clone(),
                options: spec.dns.options.clone(),
            }),
            sysctls: labels(&spec.sysctls),
            cap_add: spec.cap_add.clone(),
            cap_drop: spec.cap_drop.clone(),
            ulimits: all(&spec.ulimits),
            oom_score_adj: spec.oom_score_adj,
        }
    }
}

impl TryFrom<v1::ContainerSpec> for ContainerSpec {
    type Error = WireError;
    fn try_from(wire: v1::ContainerSpec) -> Result<Self, WireError> {
        let dns = wire.dns.unwrap_or_default();
        Ok(Self {
            image: wire.image,
            registry_auth: None,
            labels: wire.labels.into_iter().collect(),
            command: wire.command,
            args: wire.args,
            hostname: wire.hostname,
            env: wire.env,
            dir: wire.dir,
            user: wire.user,
            groups: wire.groups,
            read_only: wire.read_only,
            tty: wire.tty,
            init: wire.init,
            stop_signal: wire.stop_signal,
            stop_grace_period: wire.stop_grace_period_nanos.map(Duration::from_nanos),
            mounts: each("mounts", wire.mounts)?,
            hosts: wire.hosts,
            dns: DnsConfig { nameservers: dns.nameservers, search: dns.search, options: dns.options },
            sysctls: wire.sysctls.into_iter().collect(),
            cap_add: wire.cap_add,
            cap_drop: wire.cap_drop,
            ulimits: each("ulimits", wire.ulimits)?,
            oom_score_adj: wire.oom_score_adj,
        })
    }
}

impl std::fmt::Debug for v1::RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl From<&RegistryAuth> for v1::RegistryAuth {
    fn from(auth: &RegistryAuth) -> Self {
        let mut wire = Self { registry: auth.registry.clone(), ..Self::default() };
        match &auth.secret {
            RegistrySecret::Password { username, password } => {
                (wire.username, wire.password) = (username.clone(), password.clone());
            }
            RegistrySecret::IdentityToken(token) => wire.identity_token.clone_from(token),
            RegistrySecret::RegistryToken(token) => wire.registry_token.clone_from(token),
            RegistrySecret::Withheld => {}
        }
        wire
    }
}

/// Of several secrets the most direct one counts.
impl TryFrom<v1::RegistryAuth> for RegistryAuth {
    type Error = WireError;
    fn try_from(wire: v1::RegistryAuth) -> Result<Self, WireError> {
        let v1::RegistryAuth { username, password, identity_token, registry_token, registry } = wire;
        let secret = if !registry_token.is_empty() {
            RegistrySecret::RegistryToken(registry_token)
        } else if !identity_token.is_empty() {
            RegistrySecret::IdentityToken(identity_token)
        } else if !username.is_empty() {
            RegistrySecret::Password { username, password }
        } else {
            return Err(WireError::new(
                "username",
                "expected a user name and a password, or a token, found neither",
            ));
        };
        Ok(Self { registry, secret })
    }
}

impl From<&Ulimit> for v1::Ulimit {
    fn from(limit: &Ulimit) -> Self {
        Self { name: limit.name.clone(), soft: limit.soft, hard: limit.hard }
    }
}

impl TryFrom<v1::Ulimit> for Ulimit {
    type Error = WireError;
    fn try_from(wire: v1::Ulimit) -> Result<Self, WireError> {
        Ok(Self { name: wire.name, soft: wire.soft, hard: wire.hard })
    }
}

impl From<&Mount> for v1::Mount {
    fn from(mount: &Mount) -> Self {
        let (kind, tmpfs_size_bytes, tmpfs_mode) = match mount.kind {
            MountKind::Bind => (v1::MountKind::Bind, 0, 0),
            MountKind::Tmpfs { size_bytes, mode } => (v1::MountKind::Tmpfs, size_bytes, mode),
        };
        Self {
            kind: kind.into(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
            tmpfs_size_bytes,
            tmpfs_mode,
        }
    }
}

impl TryFrom<v1::Mount> for Mount {
    type Error = WireError;
    fn try_from(wire: v1::Mount) -> Result<Self, WireError> {
        let kind = match v1::MountKind::try_from(wire.kind) {
            Ok(v1::MountKind::Bind) => MountKind::Bind,
            Ok(v1::MountKind::Tmpfs) => {
                MountKind::Tmpfs { size_bytes: wire.tmpfs_size_bytes, mode: wire.tmpfs_mode }
            }
            Ok(v1::MountKind::Unspecified) => return Err(WireError::missing("kind")),
            Err(_) => return Err(WireError::new("kind", format!("unknown value `{}`", wire.kind))),
        };
        Ok(Self { kind, source: wire.source, target: wire.target, read_only: wire.read_only })
    }
}

impl From<&Limits> for v1::Limits {
    fn from(limits: &Limits) -> Self {
        Self { nano_cpus: limits.nano_cpus, memory_bytes: limits.memory_bytes, pids: limits.pids }
    }
}

impl TryFrom<v1::Limits> for Limits {
    type Error = WireError;
    fn try_from(wire: v1::Limits) -> Result<Self, WireError> {
        Ok(Self { nano_cpus: wire.nano_cpus, memory_bytes: wire.memory_bytes, pids: wire.pids })
    }
}

impl From<&Resources> for v1::Resources {
    fn from(resources: &Resources) -> Self {
        Self { nano_cpus: resources.nano_cpus, memory_bytes: resources.memory_bytes }
    }
}

impl TryFrom<v1::Resources> for Resources {
    type Error = WireError;
    fn try_from(wire: v1::Resources) -> Result<Self, WireError> {
        Ok(Self { nano_cpus: wire.nano_cpus, memory_bytes: wire.memory_bytes })
    }
}

impl From<&RestartPolicy> for v1::RestartPolicy {
    fn from(policy: &RestartPolicy) -> Self {
        Self {
            condition: v1::RestartCondition::from(policy.condition).into(),
            delay_nanos: nanos(policy.delay),
            max_attempts: policy.max_attempts,
            window_nanos: nanos(policy.window),
        }
    }
}

impl TryFrom<v1::RestartPolicy> for RestartPolicy {
    type Error = WireError;
    fn try_from(wire: v1::RestartPolicy) -> Result<Self, WireError> {
        Ok(Self {
            condition: word::<v1::RestartCondition, _>("condition", wire.condition)?,
            delay: Duration::from_nanos(wire.delay_nanos),
            max_attempts: wire.max_attempts,
            window: Duration::from_nanos(wire.window_nanos),
        })
    }
}

impl From<&Placement> for v1::Placement {
    fn from(placement: &Placement) -> Self {
        Self {
            constraints: placement.constraints.clone(),
            spread: placement.spread.clone(),
            max_replicas: placement.max_replicas,
            platforms: all(&placement.platforms),
        }
    }
}

impl TryFrom<v1::Placement> for Placement {
    type Error = WireError;
    fn try_from(wire: v1::Placement) -> Result<Self, WireError> {
        Ok(Self {
            constraints: wire.constraints,
            spread: wire.spread,
            max_replicas: wire.max_replicas,
            platforms: each("platforms", wire.platforms)?,
        })
    }
}

impl From<&Platform> for v1::Platform {
    fn from(platform: &Platform) -> Self {
        Self { os: platform.os.clone(), architecture: platform.architecture.clone() }
    }
}

impl TryFrom<v1::Platform> for Platform {
    type Error = WireError;
    fn try_from(wire: v1::Platform) -> Result<Self, WireError> {
        Ok(Self { os: wire.os, architecture: wire.architecture })
    }
}

impl From<&NetworkAttachment> for v1::NetworkAttachment {
    fn from(attachment: &NetworkAttachment) -> Self {
        Self { network: attachment.network.to_string(), aliases: attachment.aliases.clone() }
    }
}

impl TryFrom<v1::NetworkAttachment> for NetworkAttachment {
    type Error = WireError;
    fn try_from(wire: v1::NetworkAttachment) -> Result<Self, WireError> {
        Ok(Self { network: parse("network", &wire.network)?, aliases: wire.aliases })
    }
}

impl From<&LogConfig> for v1::LogConfig {
    fn from(config: &LogConfig) -> Self {
        let LogConfig { max_size_bytes, max_files, non_blocking_buffer_bytes } = *config;
        Self { max_size_bytes, max_files, non_blocking_buffer_bytes }
    }
}

impl TryFrom<v1::LogConfig> for LogConfig {
    type Error = WireError;
    fn try_from(wire: v1::LogConfig) -> Result<Self, WireError> {
        let v1::LogConfig { max_size_bytes, max_files, non_blocking_buffer_bytes } = wire;
        Ok(Self { max_size_bytes, max_files, non_blocking_buffer_bytes })
    }
}

impl From<&NodeSpec> for v1::NodeSpec {
    fn from(spec: &NodeSpec) -> Self {
        Self {
            labels: labels(&spec.labels),
            role: v1::Role::from(spec.role).into(),
            availability: v1::Availability::from(spec.availability).into(),
        }
    }
}

impl TryFrom<v1::NodeSpec> for NodeSpec {
    type Error = WireError;
    fn try_from(wire: v1::NodeSpec) -> Result<Self, WireError> {
        Ok(Self {
            labels: wire.labels.into_iter().collect(),
            role: exact_word::<v1::Role, _>("role", wire.role)?,
            availability: exact_word::<v1::Availability, _>("availability", wire.availability)?,
        })
    }
}

impl From<&ClusterSpec> for v1::ClusterSpec {
    fn from(spec: &ClusterSpec) -> Self {
        Self {
            task_history_limit: spec.task_history_limit,
            heartbeat_period_nanos: nanos(spec.heartbeat_period),
            node_down_after_nanos: nanos(spec.node_down_after),
            node_cert_expiry_nanos: nanos(spec.node_cert_expiry),
            snapshot_interval: spec.snapshot_interval,
            default_address_pool: spec.default_address_pool.to_string(),
            overlay_pools: spec.overlay_pools.iter().map(ToString::to_string).collect(),
            overlay_prefix_len: spec.overlay_prefix_len.into(),
            data_path_port: spec.data_path_port.into(),
        }
    }
}

/// Unset fields (0, empty) take the default.
impl TryFrom<v1::ClusterSpec> for ClusterSpec {
    type Error = WireError;
    fn try_from(wire: v1::ClusterSpec) -> Result<Self, WireError> {
        let default = Self::default();
        let number = |given: u64, default: u64| if given == 0 { default } else { given };
        let span =
            |given: u64, default: Duration| if given == 0 { default } else { Duration::from_nanos(given) };
        Ok(Self {
            task_history_limit: number(wire.task_history_limit, default.task_history_limit),
            heartbeat_period: span(wire.heartbeat_period_nanos, default.heartbeat_period),
            node_down_after: span(wire.node_down_after_nanos, default.node_down_after),
            node_cert_expiry: span(wire.node_cert_expiry_nanos, default.node_cert_expiry),
            snapshot_interval: number(wire.snapshot_interval, default.snapshot_interval),
            default_address_pool: parse_optional("default_address_pool", &wire.default_address_pool)?
                .unwrap_or(default.default_address_pool),
            overlay_pools: match &wire.overlay_pools[..] {
                [] => default.overlay_pools,
                pools => pools.iter().map(|pool| parse("overlay_pools", pool)).collect::<Result<_, _>>()?,
            },
            overlay_prefix_len: match wire.overlay_prefix_len {
                0 => default.overlay_prefix_len,
                length => narrow("overlay_prefix_len", length)?,
            },
            data_path_port: match wire.data_path_port {
                0 => default.data_path_port,
                port => narrow("data_path_port", port)?,
            },
        })
    }
}
