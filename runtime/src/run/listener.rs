//! The agent that answers for system calls of the container: it gets the filter's notification descriptor, together
//! with a description of the container, over its socket.
//!
//! The connection is made while the process still sees the host, and used once the filter is there, for the descriptor
//! exists no earlier.
//!
//! Source: OCI runtime-spec, "The Container Process State"; `seccomp_unotify(2)`.

use std::os::fd::{AsFd, OwnedFd};

use serde_json::json;

use super::sources;
use crate::error::{Failure, Step};
use crate::plan;

#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    message: Vec<u8>,
}

impl Listener {
    /// Connects, unless the creator did it (`given`).
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(plan: &plan::Listener, given: Option<OwnedFd>) -> Result<Self, Failure> {
        let socket = match given {
            Some(socket) => socket,
            None => sources::connect(&plan.path)?,
        };
        let mut message = json!({
            "ociVersion": plan.oci_version,
            "fds": ["seccompFd"],
            "pid": host_pid(),
            "state": {
                "ociVersion": plan.oci_version,
                "id": plan.id,
                "status": "creating",
                "pid": host_pid(),
                "bundle": plan.bundle,
                "annotations": plan.annotations,
            },
        });
        if let Some(metadata) = &plan.metadata {
            message["metadata"] = metadata.clone().into();
        }
        Ok(Self { socket, message: message.to_string().into_bytes() })
    }

    /// Sends description and descriptor, and closes.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn hand_over(self, notifications: &OwnedFd) -> Result<(), Failure> {
        sources::send_one(self.socket.as_fd(), &self.message, notifications.as_fd())
            .step(|| "hand the seccomp notifications to their listener".to_owned())
    }
}

/// Our pid as the host sees it: its `/proc` says so, whatever pid namespace the reader is in.
fn host_pid() -> i32 {
    let link = std::fs::read_link("/proc/self").ok();
    let pid = link.as_deref().and_then(|link| link.to_str()?.parse().ok());
    pid.unwrap_or_else(|| std::process::id() as i32)
}
