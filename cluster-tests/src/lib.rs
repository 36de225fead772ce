//! Clusters of real daemons on the hosts of a lab, to make claims about and to break.
//!
//! - [`ClusterLab`] is a lab with helpers to form a cluster, to type commands on its hosts, and to wait for what should
//!   become true. It says what the daemons logged when something does not.
//! - [`Api`] asks a host's daemon directly, for assertions too fine or too frequent for the command line.
//! - [`vm`] has virtual machines instead of namespaces: a kernel and cgroups of their own.
//! - [`scenario`] holds what is claimed on both.
//! - [`kernel`] looks at the hosts' kernels from outside, and says what should be there.
//! - [`workload`] is the image whose containers the tests run.
//!
//! The tests below `tests/` need root. Without it they report themselves as skipped, by name.

mod alone;
mod api;
mod built;
mod choices;
mod cluster;
mod figures;
pub mod kernel;
pub mod scenario;
pub mod vm;
pub mod workload;

pub use api::{Api, is_running};
pub use built::{TestProgram, programs, rswarm_executable, test_programs};
pub use choices::Choices;
pub use cluster::{ClusterLab, describe};
pub use figures::{Figure, median};
pub use rswarm_lab::Output;
