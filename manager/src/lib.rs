//! The manager: the shell around the pure core.
//!
//! - [`raft`]: replicates commands and holds the state they make; the only code that names the consensus library.
//! - [`store`]: the state as readers see it.
//! - [`peer`]: who is on the other end of a connection.

pub mod peer;
pub mod raft;
pub mod store;
