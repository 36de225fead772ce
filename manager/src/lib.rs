//! The manager: the thin shell around the pure core.
//!
//! - [`Manager`] is the whole of it: found a cluster, come back, or join one.
//! - `server`, `gate`: the port, and who may call what.
//! - `control`, `ca`, `dispatcher`, `logs`: the services, on every manager.
//! - `leader`: what runs on the leader alone, as one unit.
//! - [`raft`], [`store`]: the replicated log and the state it makes; the only code that names the consensus library.

mod batch;
mod ca;
mod context;
mod control;
mod dispatcher;
mod error;
mod gate;
mod image;
mod leader;
mod logs;
mod manager;
pub mod peer;
pub mod raft;
mod random;
mod server;
pub mod store;

pub use control::ControlService;
pub use image::{BoxFuture, ImageResolver, ResolveError, ResolvedImage};
pub use manager::{Ended, InitOptions, Manager, ManagerConfig, ManagerInfo, StartError};
pub use server::ListenError;
