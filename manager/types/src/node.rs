//! Nodes: what the user asked of them, what they said of themselves, and what the managers saw.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::{Subnet, Subnet6};
use crate::service::Protocol;
use crate::{Labels, Meta, NodeId, Timestamp, Version};

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    /// Short name in the data path (marks, link-layer addresses): from 1 to 4094, not used again soon after removal.
    #[serde(default)]
    pub number: u16,
    pub spec: NodeSpec,
    /// The role its present certificate carries; follows `spec.role`.
    pub role: Role,
    /// Index at which `role` last changed; 0 if it never has. Certificates issued from an older state are outdated: the
    /// node renews its own, and one that says manager gives no rights.
    #[serde(default)]
    pub role_since: Version,
    /// What the node said of itself when it last registered; `None` until its first session.
    pub description: Option<NodeDescription>,
    pub status: NodeStatus,
    /// Present while the node is a member of the Raft group.
    pub manager: Option<ManagerStatus>,
}

impl Node {
    /// The host name once the node has told it, else the id.
    pub fn display_name(&self) -> String {
        match &self.description {
            Some(description) => description.hostname.clone(),
            None => self.id.to_string(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub labels: Labels,
    /// The role wanted.
    pub role: Role,
    pub availability: Availability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Worker,
    Manager,
}

/// Whether the scheduler may use a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes tasks.
    #[default]
    Active,
    /// Keeps its tasks and takes no new ones.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    /// Version of the daemon, e.g. `0.1.0`.
    pub engine_version: String,
    /// Labels set on the daemon's command line.
    pub engine_labels: Labels,
    #[serde(default)]
    pub network: NodeNetworkFacts,
}

/// What a node says of its network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeNetworkFacts {
    /// Where other nodes send encapsulated packets to, and what it sends them from.
    pub data_path_addr: Option<IpAddr>,
    /// Bytes of a packet on the link that has `data_path_addr`; 0 if unknown.
    pub mtu: u32,
    /// What the node routes itself, the default route left out: overlays stay clear of it.
    pub routes: Vec<Subnet>,
    /// The same of IPv6.
    pub routes6: Vec<Subnet6>,
    /// All addresses of the node but those of its loopback, of its links alone and of its networks for tasks.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports of the mesh on which other processes of the node listen: it leaves them to those.
    pub ports_in_use: BTreeSet<(Protocol, u16)>,
    /// By which others know it on encrypted networks; `None` of a node that cannot take part in these.
    pub tunnel: Option<TunnelKeys>,
    /// Nodes whose kernel does not answer by the data path, whether they are up or not.
    pub silent_peers: BTreeSet<NodeId>,
}

impl NodeNetworkFacts {
    /// Routes that are told at most: a description has a bounded size.
    pub const ROUTES_MAX: usize = 512;
    /// Addresses that are told at most: every other node minds them.
    pub const ADDRESSES_MAX: usize = 64;
}

/// The public X25519 keys of a node. There are two places for them, each with an address of the node inside the tunnel,
/// so that its next key can be known to all before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelKeys {
    /// The place of `current`, 0 or 1; `next` has the other.
    pub place: u8,
    pub current: TunnelKey,
    #[serde(default)]
    pub next: Option<TunnelKey>,
}

impl TunnelKeys {
    /// The keys by their places.
    pub fn places(&self) -> [Option<TunnelKey>; 2] {
        let (current, next) = (Some(self.current), self.next);
        if self.place == 0 { [current, next] } else { [next, current] }
    }
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TunnelKey(pub [u8; 32]);

impl std::fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Operating system and architecture in the words of Go's `GOOS` and `GOARCH`, as OCI images use them.
/// An empty word in an image's platform list means any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
}

/// Amounts that can be reserved or that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    pub memory_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub state: NodeState,
    /// Why it is in that state; empty when there is nothing to say.
    pub message: String,
    /// Where managers saw its connection come from.
    pub addr: Option<IpAddr>,
    /// When `state` last changed, by the leader's clock.
    pub since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// No session since the present leader came to power.
    #[default]
    Unknown,
    /// Silent for longer than allowed: its replicas run elsewhere.
    Down,
    /// Has a session.
    Ready,
}

/// Membership of the Raft group. Who leads and who can be reached is measured when asked, never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Never used twice, also not after removal.
    pub raft_id: u64,
    /// `IP:PORT` under which other nodes reach its API.
    pub addr: String,
}

macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident => $word:literal),+) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $(Self::$variant => $word),+ })
            }
        }
        impl std::str::FromStr for $type {
            type Err = crate::quantity::ParseWordError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(crate::quantity::ParseWordError::new($what, &[$($word),+], text)),
                }
            }
        }
    };
}
pub(crate) use words;

words!(Role, "role", Worker => "worker", Manager => "manager");
words!(Availability, "availability", Active => "active", Pause => "pause", Drain => "drain");
words!(NodeState, "node state", Unknown => "unknown", Down => "down", Ready => "ready");
