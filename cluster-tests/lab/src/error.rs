//! What can go wrong in a lab.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rswarm_net::NetError;

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("a lab named `{name}` is already there")]
    Exists { name: String },
    #[error("failed to make, read or remove `{path}`")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to start `{program}` on `{host}`")]
    Spawn {
        program: PathBuf,
        host: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Network(#[from] NetError),
    /// Something that virtual machines need and this machine does not have: a test is skipped by it.
    #[error("needs {what}: {remedy}")]
    Missing { what: String, remedy: &'static str },
    #[error("`{path}` is no kernel module that can be loaded: expected an uncompressed one")]
    Module { path: PathBuf },
    #[error("virtual machine `{host}` failed to {action}: {reason}")]
    Guest { host: String, action: &'static str, reason: String },
    #[error("no page from http://{address}/ within {within:?}")]
    Page {
        address: SocketAddr,
        within: Duration,
        #[source]
        source: io::Error,
    },
    /// One line each.
    #[error("something of the lab is left: {}", .0.join("; "))]
    Leftovers(Vec<String>),
}

impl LabError {
    pub(crate) fn directory(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Directory { path, source }
    }
}
