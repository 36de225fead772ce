//! Tasks: one attempt to fill a slot. A replacement is a new task; a task has one node for its whole life.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::network::{BridgeOptions, NetworkDriver};
use crate::node::{Platform, Resources, words};
use crate::service::{PortConfig, Protocol, host_ip};
use crate::{InterfaceName, Labels, Meta, NetworkId, NodeId, ServiceId, TaskId, Timestamp, Version};

/// A task. Immutable but for `node_id` (set once), `desired`, `status` and `networks`. Source: swarm-parity 2.4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service_id: ServiceId,
    /// Numbered place from 1; 0 for the tasks of a global service, whose place is their node.
    pub slot: u64,
    pub node_id: Option<NodeId>,
    /// The service's task spec when the task was made.
    pub spec: Arc<TaskSpec>,
    /// The service's `spec_version` when the task was made.
    pub spec_version: Version,
    /// The service's name and labels when the task was made.
    pub service_name: String,
    pub service_labels: Labels,
    /// The service's published ports when the task was made.
    pub ports: Vec<PortConfig>,
    pub desired: TaskState,
    /// How long after its creation a task made with desired state `ready` waits before it may start: the restart
    /// delay of the task it replaces, grown when that one is in a crash loop.
    #[serde(default)]
    pub start_delay: Duration,
    pub status: TaskStatus,
    /// Given by the allocator before the task is `pending`.
    pub networks: Vec<TaskNetwork>,
}

impl Task {
    /// `service.slot`, or `service.node` for a global service: the name tables show.
    pub fn name(&self) -> String {
        match (self.slot, self.node_id) {
            (0, Some(node)) => format!("{}.{node}", self.service_name),
            (slot, _) => format!("{}.{slot}", self.service_name),
        }
    }
}

/// What a task runs. Source: swarm-parity 2.3.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub limits: Limits,
    pub reservations: Resources,
    pub restart: RestartPolicy,
    pub placement: Placement,
    /// Networks to join; empty means the default bridge.
    pub networks: Vec<NetworkAttachment>,
    pub log: LogConfig,
    /// Raised to replace every task although nothing else changed.
    pub force_update: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Pinned to a digest when the service is written: `name:tag@sha256:…`.
    pub image: String,
    /// For pulling `image`. It never travels with the spec: see [`RegistryAuth`].
    pub registry_auth: Option<RegistryAuth>,
    pub labels: Labels,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Empty means the first 12 characters of the task's id.
    pub hostname: String,
    /// `KEY=value` each.
    pub env: Vec<String>,
    /// Working directory; empty means the image's.
    pub dir: String,
    /// `user[:group]`, names or numbers; empty means the image's.
    pub user: String,
    /// Supplementary groups.
    pub groups: Vec<String>,
    pub read_only: bool,
    /// A terminal in place of pipes.
    pub tty: bool,
    /// Run the built-in init as process 1: it reaps orphans and forwards signals.
    pub init: bool,
    /// Name or number; empty means the image's, else SIGTERM.
    pub stop_signal: String,
    /// Between the stop signal and SIGKILL; `None` means 10 s.
    pub stop_grace_period: Option<Duration>,
    pub mounts: Vec<Mount>,
    /// Lines of `/etc/hosts`, as `address name`.
    pub hosts: Vec<String>,
    pub dns: DnsConfig,
    pub sysctls: Labels,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: i32,
}

/// A user's credential for a registry, kept in a service's spec for the nodes that its tasks are assigned to.
///
/// It is stored in the encrypted Raft log and snapshots alone. On the wire a spec has no field for it: a request brings
/// it beside the spec, and the dispatcher sends it beside the tasks whose image is still to be pulled.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth {
    /// `host[:port]` as in the names of its images; shown to no other registry.
    pub registry: String,
    pub secret: RegistrySecret,
}

/// How the user proves who they are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistrySecret {
    Password {
        username: String,
        password: String,
    },
    /// Exchanged for access tokens at the registry's token server.
    IdentityToken(String),
    /// Sent to the registry as it is.
    RegistryToken(String),
    /// There is one, and it is not written down here: a worker's ledger says so.
    Withheld,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RegistrySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistrySecret { .. }")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As in `setrlimit`, lower case and without `RLIMIT_`: `nofile`.
    pub name: String,
    /// -1 means unlimited.
    pub soft: i64,
    pub hard: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    /// A path on the node for `bind`; empty for `tmpfs`.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    Bind,
    Tmpfs {
        /// 0 means no limit of its own.
        size_bytes: u64,
        /// Permission bits of the root directory; 0 means 1777.
        mode: u32,
    },
}

/// Hard limits; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub nano_cpus: u64,
    pub memory_bytes: u64,
    pub pids: u64,
}

/// When a task that ended is replaced. Source: swarm-parity 3.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Duration,
    /// 0 means unlimited.
    pub max_attempts: u64,
    /// Restarts older than this do not count; zero means all do.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    None,
    OnFailure,
    #[default]
    Any,
}

/// Where a task may run and where it should rather run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// `key==value` or `key!=value`, all of which must hold.
    pub constraints: Vec<String>,
    /// Labels to spread over, outermost first: `node.labels.zone` or `engine.labels.zone`.
    pub spread: Vec<String>,
    /// Most copies of the service on one node; 0 means no limit.
    pub max_replicas: u64,
    /// What the image was built for; empty means unknown, which fits everywhere.
    pub platforms: Vec<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// Id of the network; names are resolved when the service is written.
    pub network: NetworkId,
    pub aliases: Vec<String>,
}

/// Bounds of a task's log on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    pub max_size_bytes: u64,
    pub max_files: u32,
    /// How much output may wait for a slow disk; what is more is lost. `None`: the task waits.
    pub non_blocking_buffer_bytes: Option<u64>,
}

/// More output than that never waits. The kernel has no larger pipes, or not without much trouble.
pub const LOG_BUFFER_BYTES_MAX: u64 = 256 << 20;

impl Default for LogConfig {
    fn default() -> Self {
        Self { max_size_bytes: 10 << 20, max_files: 3, non_blocking_buffer_bytes: None }
    }
}

/// A network as a task sees it: all a worker needs to attach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetwork {
    pub network: NetworkId,
    pub name: String,
    pub driver: NetworkDriver,
    /// Present for drivers that give addresses.
    pub address: Option<TaskAddress>,
    pub aliases: Vec<String>,
    /// It has no way out and none in.
    #[serde(default)]
    pub internal: bool,
    /// [`NetworkSpec::mtu`](crate::NetworkSpec::mtu).
    #[serde(default)]
    pub mtu: Option<u32>,
    /// [`NetworkSpec::bridge`](crate::NetworkSpec::bridge).
    #[serde(default)]
    pub bridge: BridgeOptions,
    /// This task alone was connected to it by a user; its service is not on the network.
    #[serde(default)]
    pub joined: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAddress {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    /// On a network with both families, the twin of `address`.
    #[serde(default)]
    pub ipv6: Option<TaskAddress6>,
}

impl TaskAddress {
    /// What the task has of IPv4, with the gateway.
    pub fn ipv4(self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let alone = self.ipv6.is_some_and(|ipv6| ipv6.alone);
        (!alone).then_some((self.address, self.gateway))
    }

    /// The task's addresses.
    pub fn all(self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4().map(|(address, _)| address.into());
        ipv4.into_iter().chain(self.ipv6.map(|ipv6| ipv6.address.into()))
    }

    /// The node's address on the network, as the task asks it.
    pub fn asked_gateway(self) -> Option<IpAddr> {
        let ipv4 = self.ipv4().map(|(_, gateway)| IpAddr::from(gateway));
        ipv4.or_else(|| self.ipv6?.gateway.map(IpAddr::from))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAddress6 {
    pub address: Ipv6Addr,
    pub prefix_len: u8,
    /// `None` of tasks that were given their addresses before bridges had IPv6; nodes know those of overlays.
    #[serde(default)]
    pub gateway: Option<Ipv6Addr>,
    /// As [`Ipam6::alone`](crate::network::Ipam6::alone).
    #[serde(default)]
    pub alone: bool,
}

/// The observed state of a task, in the order in which it can only move forward; the numbers are Swarm's.
/// Some values are also used as the desired state: `Ready`, `Running`, `Shutdown`, `Remove`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Created by an orchestrator.
    #[default]
    New = 0,
    /// Has its addresses; waits for a node.
    Pending = 64,
    /// Has a node.
    Assigned = 192,
    /// The worker knows of it.
    Accepted = 256,
    /// Image, networks, container are being made.
    Preparing = 320,
    /// The container is made and waits for leave to start.
    Ready = 384,
    Starting = 448,
    Running = 512,
    /// Ended by itself with exit code 0.
    Complete = 576,
    /// Ended on request.
    Shutdown = 640,
    /// Ended with another exit code, or an error at or after start.
    Failed = 704,
    /// Could not be set up, or its node no longer fits.
    Rejected = 768,
    /// Desired only: delete once it has stopped.
    Remove = 800,
    /// Its node is gone for good.
    Orphaned = 832,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Whether an observed state means that nothing of the task runs and nothing will.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }
}

words!(TaskState, "task state", New => "new", Pending => "pending", Assigned => "assigned", Accepted => "accepted",
    Preparing => "preparing", Ready => "ready", Starting => "starting", Running => "running", Complete => "complete",
    Shutdown => "shutdown", Failed => "failed", Rejected => "rejected", Remove => "remove", Orphaned => "orphaned");
words!(RestartCondition, "restart condition", None => "none", OnFailure => "on-failure", Any => "any");
words!(NetworkDriver, "network driver", Bridge => "bridge", Overlay => "overlay", Host => "host", None => "none");

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When the state was reached, by the clock of whoever observed it.
    pub at: Timestamp,
    /// When a manager first wrote this state down, by that manager's clock. Written by `apply` alone.
    pub applied_at: Timestamp,
    /// When a manager first saw it running, by that manager's clock; kept after it ended. Written by `apply` alone.
    pub running_since: Option<Timestamp>,
    /// What is going on, for people: "preparing", "started".
    pub message: String,
    /// What went wrong; empty if nothing did.
    pub error: String,
    /// Why a `pending` task has no node.
    pub unplaced: Option<Unplaced>,
    pub container: Option<ContainerStatus>,
    /// Host-mode ports as actually bound.
    pub ports: Vec<PortStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    pub pid: Option<i32>,
    /// Present once it ended; 128 + n when ended by signal n.
    pub exit_code: Option<i32>,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    pub protocol: Protocol,
    pub target: u16,
    pub published: u16,
    /// As [`PortConfig::host_ip`].
    #[serde(default, with = "host_ip")]
    pub host_ip: Option<IpAddr>,
    /// As [`PortConfig::interface`].
    #[serde(default)]
    pub interface: Option<InterfaceName>,
}

/// Why no node took a task: how many nodes each filter turned away. A node counts for the first filter it fails.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unplaced {
    /// Most frequent first, ties in the order of the filters.
    pub reasons: Vec<(PlacementFilter, u32)>,
}

/// The scheduler's filters in the order in which they are asked. Source: swarm-parity 3.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementFilter {
    Ready,
    Resources,
    Constraint,
    Platform,
    HostPort,
    MaxReplicas,
    /// The node has as many tasks as a node may have, see [`TASKS_PER_NODE_MAX`].
    MaxTasks,
}

/// How many live tasks one node is given at most, so that a slip in a number of replicas starves no node. The kernel's
/// bridge has 1024 ports.
pub const TASKS_PER_NODE_MAX: u32 = 1000;

impl std::fmt::Display for Unplaced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.reasons.is_empty() {
            return f.write_str("no suitable node (the cluster has no nodes)");
        }
        f.write_str("no suitable node (")?;
        for (i, (filter, nodes)) in self.reasons.iter().enumerate() {
            let (separator, s) = (if i == 0 { "" } else { "; " }, if *nodes == 1 { "" } else { "s" });
            f.write_str(separator)?;
            match filter {
                PlacementFilter::Ready => write!(f, "{nodes} node{s} not available for new tasks")?,
                PlacementFilter::Resources => write!(f, "insufficient resources on {nodes} node{s}")?,
                PlacementFilter::Constraint => {
                    write!(f, "scheduling constraints not satisfied on {nodes} node{s}")?;
                }
                PlacementFilter::Platform => write!(f, "unsupported platform on {nodes} node{s}")?,
                PlacementFilter::HostPort => write!(f, "host-mode port already in use on {nodes} node{s}")?,
                PlacementFilter::MaxReplicas => {
                    write!(f, "max replicas per node limit exceeded on {nodes} node{s}")?;
                }
                PlacementFilter::MaxTasks => {
                    write!(f, "no room for more tasks ({TASKS_PER_NODE_MAX}) on {nodes} node{s}")?;
                }
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_ordered_as_listed_and_named_uniquely() {
        for pair in TaskState::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for state in TaskState::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
    }
}
