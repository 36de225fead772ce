//! The brain of rswarm, pure: cluster state, the rules that change it, and the control loops that plan changes.
//!
//! Nothing here is async, reads a clock, draws a random number, or touches files or sockets; `.clippy.toml` bans
//! what would. What a loop may look at goes in, what it wants done comes out, and why not comes out as well.
//!
//! - [`state`]: the tables, and [`apply`], the only function that changes them.
//! - [`validate`], [`resolve`], [`constraint`]: what users write, and what they mean.
//! - [`plan`]: wishes without ids and times.
//! - [`dispatch`]: who is alive, and what each node should be told.

pub mod constraint;
pub mod dispatch;
pub mod plan;
pub mod resolve;
pub mod state;
pub mod validate;

pub use plan::Plan;
pub use state::{Command, State, Write, apply};
