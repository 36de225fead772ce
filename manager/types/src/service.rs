//! Services: what the user wants to run, how many, and how a change of mind is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::node::words;
use crate::{InterfaceName, Labels, Meta, NetworkId, ServiceId, TaskSpec, Timestamp, Version};

/// A service. Source: swarm-parity 2.3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// The spec before the last update; one level only.
    pub previous_spec: Option<Box<ServiceSpec>>,
    /// The version at which `spec` was last written; tasks made from it carry the same.
    pub spec_version: Version,
    /// Absent if never updated since creation.
    pub update_status: Option<UpdateStatus>,
    /// What the service was given so that others can reach it.
    #[serde(default)]
    pub endpoint: ServiceEndpoint,
}

/// How a service is reached, with all that was left open chosen. Kept over updates as far as the spec allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceEndpoint {
    /// One address for each overlay that the service is attached to, in mode `vip`; none on the ingress network.
    pub vips: BTreeMap<NetworkId, Ipv4Addr>,
    /// The ports of the spec; those of mode `ingress` all have `published`.
    pub ports: Vec<PortConfig>,
    /// By which the data path tells it from other services; from 1.
    pub number: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique in the cluster; cannot be changed.
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    pub mode: ServiceMode,
    pub task: TaskSpec,
    #[serde(default)]
    pub update: UpdateConfig,
    #[serde(default)]
    pub rollback: UpdateConfig,
    #[serde(default)]
    pub endpoint: EndpointSpec,
}

/// How many tasks a service has. Cannot be changed from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceMode {
    /// So many slots, wherever there is room.
    Replicated { replicas: u64 },
    /// One task on every node that fits.
    Global,
}

/// The pace of a rolling change. Source: swarm-parity 3.5.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Slots replaced at once; 0 means all.
    pub parallelism: u64,
    /// Wait after one slot is done and before the next.
    pub delay: Duration,
    pub failure_action: FailureAction,
    /// How long after `running` a failure still counts against the update.
    pub monitor: Duration,
    /// Act when failures divided by replaced slots is above this; from 0 to 1.
    pub max_failure_ratio: f64,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

/// How far a rolling change has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

/// How a service is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortConfig>,
    /// Names of the services whose tasks alone may connect to this one's by overlays, whether they exist yet or not. Empty
    /// is every task of those networks. What comes by a published port is not concerned.
    pub allow_from: BTreeSet<String>,
    /// On a node with tasks of the service that take connections, its virtual addresses and ports in mode `ingress` lead
    /// to those alone.
    pub prefer_same_node: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    #[default]
    Vip,
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortConfig {
    pub protocol: Protocol,
    /// The port inside the container.
    pub target: u16,
    /// The port outside. `None` lets the node choose one from 32768 to 60999, or, in mode `ingress`, the cluster one
    /// from 30000 to 32767.
    pub published: Option<u16>,
    pub mode: PublishMode,
    /// The address of a node on which alone it answers, or every one of a family if that is its unspecified one; `None`
    /// means all of them.
    #[serde(default, with = "host_ip")]
    pub host_ip: Option<IpAddr>,
    /// The interface of a node by which alone it is reached; never together with `host_ip`.
    #[serde(default)]
    pub interface: Option<InterfaceName>,
}

/// An address of either family, written as IPv4 ones were when there were no others: where numbers are written, as its
/// octets alone.
pub(crate) mod host_ip {
    use super::*;

    pub fn serialize<S: Serializer>(at: &Option<IpAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            None => serializer.serialize_none(),
            Some(IpAddr::V4(at)) => serializer.serialize_some(at),
            Some(IpAddr::V6(at)) => serializer.serialize_some(at),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
        if deserializer.is_human_readable() {
            return Option::deserialize(deserializer);
        }
        let Some(octets) = Option::<Vec<u8>>::deserialize(deserializer)? else { return Ok(None) };
        let ipv4 = <[u8; 4]>::try_from(&octets[..]).map(|octets| Ipv4Addr::from(octets).into());
        let either =
            ipv4.or_else(|_| <[u8; 16]>::try_from(&octets[..]).map(|octets| Ipv6Addr::from(octets).into()));
        either
            .map(Some)
            .map_err(|_| D::Error::invalid_length(octets.len(), &"the 4 or 16 octets of an address"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, through the mesh.
    #[default]
    Ingress,
    /// On the node that runs the task.
    Host,
}

words!(FailureAction, "failure action", Pause => "pause", Continue => "continue", Rollback => "rollback");
words!(UpdateOrder, "update order", StopFirst => "stop-first", StartFirst => "start-first");
words!(EndpointMode, "endpoint mode", Vip => "vip", Dnsrr => "dnsrr");
words!(Protocol, "protocol", Tcp => "tcp", Udp => "udp", Sctp => "sctp");
words!(PublishMode, "publish mode", Ingress => "ingress", Host => "host");
words!(UpdateState, "update state", Updating => "updating", Paused => "paused", Completed => "completed",
    RollbackStarted => "rollback_started", RollbackPaused => "rollback_paused",
    RollbackCompleted => "rollback_completed");
