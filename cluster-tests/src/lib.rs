//! Clusters of real daemons on the hosts of a lab, to make claims about and to break.
//!
//! - [`ClusterLab`] is a lab with helpers to form a cluster, to type commands on its hosts, and to wait for what should
//!   become true. It says what the daemons logged when something does not.
//! - [`Api`] asks a host's daemon directly, for assertions too fine or too frequent for the command line.
//! - [`workload`] is the image whose containers the tests run.
//!
//! The tests below `tests/` need root. Without it they report themselves as skipped, by name.

mod api;
mod binary;
mod cluster;
mod figures;
pub mod workload;

pub use api::{Api, is_running};
pub use binary::rswarm_executable;
pub use cluster::{ClusterLab, Output, describe};
pub use figures::{Figure, median};
