//! The agent that answers for system calls of the container: it gets the filter's notification descriptor, together
//! with a description of the container, over its socket.
//!
//! The connection is made while the process still sees the host, and used once the filter is there, for the descriptor
//! exists no earlier.
//!
//! Source: OCI runtime-spec, "The Container Process State"; `seccomp_unotify(2)`.

use std::os::fd::{AsFd, OwnedFd};

use serde_json::{Value, json};

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
        Ok(Self { socket, message: message(plan, host_pid()).to_string().into_bytes() })
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

/// What the agent is told of the process `pid` and of its container, which may be the container's first.
fn message(plan: &plan::Listener, pid: i32) -> Value {
    let (status, first) = plan.entered.map_or(("creating", pid), |first| ("running", first));
    let mut message = json!({
        "ociVersion": plan.oci_version,
        "fds": ["seccompFd"],
        "pid": pid,
        "state": {
            "ociVersion": plan.oci_version,
            "id": plan.id,
            "status": status,
            "pid": first,
            "bundle": plan.bundle,
            "annotations": plan.annotations,
        },
    });
    if let Some(metadata) = &plan.metadata {
        message["metadata"] = metadata.clone().into();
    }
    message
}

/// Our pid as the host sees it: its `/proc` says so, whatever pid namespace the reader is in.
fn host_pid() -> i32 {
    let link = std::fs::read_link("/proc/self").ok();
    let pid = link.as_deref().and_then(|link| link.to_str()?.parse().ok());
    pid.unwrap_or_else(|| std::process::id() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_can_tell_a_process_that_enters_from_the_first() {
        let first = plan::Listener { id: "one".to_owned(), ..Default::default() };
        let told = message(&first, 7);
        assert_eq!((&told["pid"], &told["state"]["pid"]), (&json!(7), &json!(7)));
        assert_eq!(told["state"]["status"], "creating");
        assert!(told.get("metadata").is_none());
        let metadata = Some("x".to_owned());
        let told = message(&plan::Listener { entered: Some(5), metadata, ..first }, 7);
        assert_eq!((&told["pid"], &told["state"]["pid"]), (&json!(7), &json!(5)));
        assert_eq!((&told["state"]["status"], &told["metadata"]), (&json!("running"), &json!("x")));
    }
}
