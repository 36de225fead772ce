//! The name server of a node: answers the tasks' queries for each other's names, and passes on the rest.
//!
//! A process of its own (`rswarm resolver`), which outlives the daemon: all it knows of the cluster is the file
//! `network-map` in the run root. `names` and `answer` decide, `message` and `relay` read and write what goes over the
//! wire, `cache` and `host` know what the host's name servers are and said: all these are pure. `command`, `server`,
//! `forward`, `shares`, `places`, `sockets`, `follow`, `map_file` and `instance` act.
//!
//! For the worker there are `files`, what a task's `/etc/resolv.conf` says, `map_file`, by which it tells us of the
//! networks, and `health`, by which it knows whether tasks are answered.

mod answer;
mod cache;
mod command;
mod files;
mod follow;
mod forward;
mod health;
mod host;
mod instance;
mod map_file;
mod message;
mod names;
mod places;
mod relay;
mod server;
mod shares;
mod sockets;

pub use answer::{Answer, Rng, answer};
pub use command::main;
pub use files::resolv_conf;
pub use health::{Asker, Health, health};
pub use instance::{FILE_NAME as PID_FILE, InstanceError, holder, runs, stop};
pub use map_file::{FILE_NAME as MAP_FILE, MapError, MapReader, MapWriter};
pub use message::{Question, Transport};
pub use names::Names;
