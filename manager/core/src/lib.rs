//! The brain of rswarm, pure: cluster state, the rules that change it, and the control loops that plan changes.
//!
//! Nothing here is async, reads a clock, draws a random number, or touches files or sockets; `.clippy.toml` bans
//! what would. What a loop may look at goes in, what it wants done comes out, and why not comes out as well.
//!
//! - [`state`]: the tables, and [`apply`], the only function that changes them.
//! - [`validate`], [`resolve`], [`constraint`]: what users write, and what they mean.
//! - [`plan`]: wishes without ids and times.
//! - [`pass`]: one pass of all loops, [`orchestrator`], [`allocate`] and [`scheduler`], and the memory between passes.
//! - [`dispatch`], [`netmap`]: who is alive, and what each node should be told.

pub mod allocate;
pub mod constraint;
pub mod dispatch;
pub mod netmap;
pub mod orchestrator;
pub mod pass;
pub mod plan;
pub mod resolve;
pub mod scheduler;
pub mod state;
pub mod validate;

#[cfg(test)]
mod testing;

pub use pass::{Dirty, Planner, plan_all};
pub use plan::Plan;
pub use state::{Command, State, Write, apply};
