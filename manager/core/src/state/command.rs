//! Commands: what the Raft log carries, and the ways in which one can be refused.
//!
//! Users edit cluster, node and service specs; those writes name the version they were computed from. Control loops
//! and workers move tasks forward; those writes commute with each other and are never refused: one whose object is
//! gone, or that would move something back, does nothing. So a plan never fails because a worker reported meanwhile.

use std::net::Ipv4Addr;
use std::time::Duration;

use rswarm_types::service::{Protocol, PublishMode};
use rswarm_types::task::TaskNetwork;
use rswarm_types::{
    Cluster, ClusterId, ManagerStatus, Network, NetworkDriver, NetworkId, NetworkSpec, Node, NodeDescription,
    NodeId, NodeSpec, NodeStatus, Role, ServiceId, ServiceSpec, TaskId, TaskState, TaskStatus, Timestamp,
    UpdateStatus, Version,
};
use serde::{Deserialize, Serialize};

use super::network::INGRESS_PORTS;

/// Writes that happen together or not at all. Enums and structs here grow by new variants and by fields with a
/// default; the log codec writes names, not positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// When it was proposed, by the proposer's clock: becomes `created_at`, `updated_at` and `applied_at`.
    pub at: Timestamp,
    pub writes: Vec<Write>,
}

impl Command {
    /// A command of one write.
    pub fn one(at: Timestamp, write: Write) -> Self {
        Self { at, writes: vec![write] }
    }
}

/// For the Raft library's log lines: how many writes of which object, no contents.
impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "command of {} writes", self.writes.len())
    }
}

/// One change to one object.
///
/// "Refused if" means that the whole command is; "ignored if" means that this write does nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// Sets the cluster object. Refused if its version is not `expected`; `None` means that there is none yet.
    PutCluster { cluster: Box<Cluster>, expected: Option<Version> },

    /// Adds a node, with a number if it takes part in overlays. Refused if it exists or was removed before, or if there
    /// are too many.
    CreateNode(Box<Node>),
    /// Changes what the user asks of a node. Refused if its version is not `expected`.
    UpdateNode { id: NodeId, spec: NodeSpec, expected: Version },
    /// Removes a node, orphans its tasks and outlaws its certificate. Refused for a member of the Raft group, and
    /// for a node that is not down unless `force`.
    RemoveNode {
        id: NodeId,
        #[serde(default)]
        force: bool,
    },
    /// Ignored if the node is gone. This and the next three do not change `meta.version`, which counts edits: so a
    /// user's edit never loses to a node that comes or goes.
    SetNodeStatus { id: NodeId, status: NodeStatus },
    /// Gives the node its number as soon as it takes part in overlays. Ignored if the node is gone.
    SetNodeDescription { id: NodeId, description: NodeDescription },
    /// The role of its present certificate. Ignored if the node is gone.
    SetNodeRole { id: NodeId, role: Role },
    /// Its membership of the Raft group. Ignored if the node is gone.
    SetNodeManager { id: NodeId, manager: Option<ManagerStatus> },

    /// Adds a network; gives it a subnet and a gateway if it has addresses and comes without, and an overlay its VNI.
    /// Refused if the id or the name is taken, if the subnet is not free or there is none, or for a second ingress
    /// network.
    CreateNetwork(Box<Network>),
    /// Changes labels, subnet and range of a network. Refused if its version is not `expected`, if anything else differs, if
    /// the subnet is another one of a network that is no overlay, and unless it contains the present one and is free.
    UpdateNetwork { id: NetworkId, spec: Box<NetworkSpec>, expected: Version },
    /// Removes a network. Refused while a service names it or publishes through it, or a live task is attached to it.
    RemoveNetwork { id: NetworkId },

    /// Adds a service, and gives it virtual IPs and the ports it left open. Refused if the id or the name is taken, a
    /// network it names is missing or the ingress network, if a port is another service's, or if there is no address
    /// or no port left.
    CreateService { id: ServiceId, spec: Box<ServiceSpec> },
    /// Changes a service; of its addresses and ports those stay that the spec still asks for. Refused if its version
    /// is not `expected`, if name or kind of mode differ, and as on creation. Starts a rolling change if tasks see a difference, and resumes a paused one.
    UpdateService {
        id: ServiceId,
        spec: Box<ServiceSpec>,
        expected: Version,
        #[serde(default)]
        change: ServiceChange,
    },
    /// Removes a service; its tasks follow. Refused if it is gone, or if `expected` is given and is not its version.
    RemoveService {
        id: ServiceId,
        #[serde(default)]
        expected: Option<Version>,
    },
    /// Puts the previous spec back because an update failed. Ignored unless the service still is at `spec_version`
    /// and has a previous spec, which is used up. If a port of that is another service's by now, the update is paused.
    RollBackService { id: ServiceId, spec_version: Version, message: String },
    /// How far a rolling change has come. Ignored unless the service still is at `spec_version`.
    SetUpdateStatus { id: ServiceId, spec_version: Version, status: UpdateStatus },

    /// Makes a task from its service's spec. Ignored if the service is gone or no longer at the task's
    /// `spec_version`, or if the id is taken. If its node no longer takes tasks it is left `pending`; if an address
    /// is no longer free it is left `new`.
    CreateTask(NewTask),
    /// Gives a `new` task its addresses and makes it `pending`. Ignored if it is past that, or an address is taken.
    AllocateTask { id: TaskId, networks: Vec<TaskNetwork> },
    /// Gives a `pending` task its node for ever. Ignored if it is past that, or the node takes no tasks.
    AssignTask { id: TaskId, node: NodeId },
    /// Raises the desired state. Ignored if it is there already or beyond.
    SetTaskDesired { id: TaskId, desired: TaskState },
    /// What was observed of a task: the later state wins; of two reports of one state the one with the later `at`.
    /// Ignored once a terminal state is known, and for states from `assigned` on while the task has no node.
    SetTaskStatus { id: TaskId, status: TaskStatus },
    /// Deletes a task, which tells its worker to delete its container. Ignored if it is gone.
    RemoveTask { id: TaskId },

    /// Connects a task to a network that its service is not on, under `address` or one that is free. Refused if the task has
    /// no addresses yet or is about to end, if it is on the network, and if the network is not for single tasks.
    ConnectTask {
        id: TaskId,
        network: NetworkId,
        aliases: Vec<String>,
        #[serde(default)]
        address: Option<Ipv4Addr>,
    },
    /// Takes a task off a network that it was connected to. Refused if it was not.
    DisconnectTask { id: TaskId, network: NetworkId },
}

/// What an update of a service is, seen by the one who asks for it: decides whose pace is kept and how it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceChange {
    #[default]
    Update,
    /// The spec is the previous one, asked for by the user; pace and failure action come from `spec.rollback`.
    Rollback,
}

/// All of a task that does not follow from its service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTask {
    pub id: TaskId,
    pub service_id: ServiceId,
    /// The service's `spec_version` the plan was made from.
    pub spec_version: Version,
    /// 0 for the tasks of a global service.
    pub slot: u64,
    /// The node it is assigned to, or bound to while it is `new` or `pending`.
    #[serde(default)]
    pub node_id: Option<NodeId>,
    pub desired: TaskState,
    /// See [`Task::start_delay`](rswarm_types::Task::start_delay).
    #[serde(default)]
    pub start_delay: Duration,
    /// `new`, `pending` (then with its networks) or `assigned` (then also with its node).
    #[serde(default)]
    pub status: TaskStatus,
    #[serde(default)]
    pub networks: Vec<TaskNetwork>,
}

/// A command took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The version that every object it wrote now carries.
    pub index: Version,
}

/// Names an object in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectRef {
    Cluster,
    Node(NodeId),
    Service(ServiceId),
    Task(TaskId),
    Network(NetworkId),
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Node(id) => write!(f, "node `{id}`"),
            Self::Service(id) => write!(f, "service `{id}`"),
            Self::Task(id) => write!(f, "task `{id}`"),
            Self::Network(id) => write!(f, "network `{id}`"),
        }
    }
}

/// Why a command changed nothing. Replicated with the log's replies, so it carries what a client needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejected {
    #[error(
        "update out of sequence: expected {object} at version {expected}, found {found}; read it again and retry"
    )]
    Stale { object: ObjectRef, expected: Version, found: Version },
    #[error("{object} not found")]
    Missing { object: ObjectRef },
    #[error("{object} exists already")]
    Exists { object: ObjectRef },
    #[error("name `{name}` is in use by {by}")]
    NameTaken { name: String, by: ObjectRef },
    #[error("{object} is in use by {by}; remove that first")]
    InUse { object: ObjectRef, by: ObjectRef },
    #[error("node `{0}` is a manager; demote it before removing it")]
    NodeIsManager(NodeId),
    #[error("node `{0}` is not down and can't be removed; stop it first, or use force")]
    NodeNotDown(NodeId),
    #[error("node `{0}` was removed from the cluster; join again with a new identity")]
    NodeRemoved(NodeId),
    #[error("the name of service `{id}` cannot be changed: expected `{expected}`, found `{found}`")]
    Renamed { id: ServiceId, expected: String, found: String },
    #[error(
        "the mode of service `{0}` cannot be changed between replicated and global; create another service"
    )]
    ModeChanged(ServiceId),
    #[error("expected cluster `{expected}`, found `{found}`")]
    OtherCluster { expected: ClusterId, found: ClusterId },
    #[error("port {port}/{protocol} is published by service `{by}` already{}", in_mode(*.mode))]
    PortTaken { port: u16, protocol: Protocol, mode: PublishMode, by: String },
    #[error("port {port}/{protocol} belongs to {user} on every node; publish another one")]
    PortOfNodes { port: u16, protocol: Protocol, user: Box<str> },
    #[error(
        "no free {protocol} port: all {} from {} to {} are published; give one with `published=`",
        INGRESS_PORTS.len(), INGRESS_PORTS.start(), INGRESS_PORTS.end()
    )]
    NoPort { protocol: Protocol },
    #[error("no free address in network `{name}` ({subnet}): {used} of {total} in use{way_out}")]
    NetworkFull {
        name: String,
        subnet: String,
        used: usize,
        total: u64,
        #[serde(default)]
        way_out: Box<str>,
    },
    #[error(
        "network `{name}` ({subnet}) has {total} addresses: other services ask for {others}, service `{service}` for \
         {asked}{way_out}"
    )]
    NetworkTooSmall {
        name: String,
        subnet: String,
        total: u64,
        others: u64,
        service: String,
        asked: u64,
        #[serde(default)]
        way_out: Box<str>,
    },
    #[error("task `{task}` cannot be connected to network `{network}`: {reason}")]
    NotConnected { task: String, network: String, reason: Box<str> },
    #[error("task `{task}` cannot be disconnected from network `{network}`: {reason}")]
    NotDisconnected { task: String, network: String, reason: Box<str> },
    #[error("of network `{name}` only labels, subnet and address range can be changed; make another network")]
    NetworkFixed { name: String },
    #[error(
        "network `{name}` has driver `{driver}`, whose networks keep their subnet: only overlays can grow"
    )]
    SubnetFixed { name: String, driver: NetworkDriver },
    #[error(
        "subnet `{found}` does not contain all of `{subnet}`, where network `{name}` has given addresses; expected a \
         larger one around it"
    )]
    SubnetTooNarrow { name: String, subnet: String, found: String },
    #[error("subnet `{subnet}` overlaps `{other}`, {by}; choose another one")]
    SubnetTaken { subnet: String, other: String, by: String },
    #[error(
        "no free /{prefix_len} in the address pools {pools}: among others {example}; give a subnet, or choose other \
         pools when the cluster is made"
    )]
    NoSubnet { prefix_len: u8, pools: String, example: String },
    #[error("the cluster has {most} networks with IPv6 alone, the most there can be; remove one of them")]
    TooManyIpv6Alone { most: u32 },
    #[error("all VNIs are in use; remove an overlay network")]
    NoVni,
    #[error("the cluster has {most} nodes, the most there can be; remove those that are gone")]
    TooManyNodes { most: usize },
    #[error("network `{name}` is the ingress network; remove it first")]
    IngressExists { name: String },
    #[error(
        "a port in mode `ingress` needs an ingress network; make one with `rswarm network create --ingress`"
    )]
    NoIngress,
    #[error(
        "network `{name}` cannot be named by a service: it carries the ports that are published in mode `ingress`"
    )]
    IngressByName { name: String },
}

fn in_mode(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "",
        PublishMode::Host => " in mode `host`",
    }
}
