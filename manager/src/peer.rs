//! Who is on the other end of a connection, as its certificate says.

use rswarm_types::{NodeId, Role};

/// Request extension put there by the server layer that read the peer's certificate; absent for callers without one
/// and on the unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity(pub NodeId, pub Role);
