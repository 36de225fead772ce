//! The brain of rswarm, pure: cluster state, the rules that change it, and the control loops that plan changes.
//!
//! Nothing here is async, reads a clock, draws a random number, or touches files or sockets; `.clippy.toml` bans
//! what would. What a loop may look at goes in, what it wants done comes out, and why not comes out as well.
//!
//! - [`state`]: the tables, and [`state::apply`], the only function that changes them.

pub mod state;

pub use state::{Command, State, Write, apply};
