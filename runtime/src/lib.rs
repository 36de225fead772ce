//! An OCI runtime as a library, with the process that stays beside each container. It has never heard of a cluster.
//!
//! - [`Containers`] creates containers and finds them again; [`Container`] is the handle on one.
//! - [`shim_main`] is the entry of the helper process, one per container.
//! - [`runc_main`] is runc's command line over the same plan and steps, for callers that bring a parent of their own.
//! - [`features`] is what this runtime can do, [`KernelFeatures`] what the kernel cannot.
//! - [`default_spec`] is the configuration to start from; [`log`] reads what a container has written.
//!
//! Inside, a configuration becomes a [`plan`] (pure), which `run` performs. Only `sys` contains `unsafe`.

pub mod cgroup;
mod cli;
mod containers;
mod defaults;
mod error;
mod features;
mod hooks;
pub mod log;
pub mod plan;
mod probe;
mod request;
mod run;
mod seal;
pub mod seccomp;
mod session;
mod shim;
mod state;
mod sys;

pub use cgroup::Stats;
pub use cli::{PROGRAM as RUNC_PROGRAM, runc_main};
pub use containers::{Container, Containers, ShimCommand};
pub use defaults::{ALL_CAPABILITIES, DEFAULT_CAPABILITIES, default_spec, set_capabilities};
pub use error::{Cause, Failure, RuntimeError};
pub use features::features;
pub use oci_spec::runtime as oci;
pub use probe::{KernelFeatures, MissingFeature};
pub use request::{CreateRequest, ExecRequest, ExecUser, LogOptions, Rootfs, TerminalSize};
pub use session::{AttachEnd, Attachment, Session, Streams};
pub use shim::shim_main;
pub use state::{ExitStatus, ProcessEnd, State, Status};
pub use sys::{CapabilityBits, MountAttributes};
