//! The nouns of rswarm: ids, specs, objects, task states, versions and quantities.
//!
//! Every crate speaks in these types. They hold no behaviour beyond parsing, printing and ordering; nothing here
//! reads a clock, draws a random number or does I/O, except [`Timestamp::now`], which only shells may call.

pub mod cluster;
pub mod error;
pub mod id;
pub mod interface;
pub mod kernel;
pub mod netmap;
pub mod network;
pub mod node;
pub mod quantity;
pub mod service;
pub mod subnet;
pub mod task;
pub mod time;

pub use cluster::{Cluster, ClusterSpec, JoinSecrets, RootCa};
pub use id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
pub use interface::InterfaceName;
pub use network::{Network, NetworkDriver, NetworkSpec};
pub use node::{Availability, ManagerStatus, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Role};
pub use service::{Service, ServiceMode, ServiceSpec, UpdateStatus};
pub use task::{Task, TaskSpec, TaskState, TaskStatus};
pub use time::{Meta, Timestamp, Version};

/// User-given key/value pairs. Ordered, so that what is printed and hashed does not depend on insertion order.
pub type Labels = std::collections::BTreeMap<String, String>;
