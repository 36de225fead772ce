//! What can go wrong in a lab.

use std::io;
use std::path::{Path, PathBuf};

use rswarm_net::NetError;

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("a lab named `{name}` is already there")]
    Exists { name: String },
    #[error("failed to make or remove `{path}`")]
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
