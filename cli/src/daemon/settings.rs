//! What a member node remembers of its place in the cluster beside its certificate: one small file, replaced whole.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Where a manager listens.
    pub listen_addr: SocketAddr,
    /// Under which address other nodes reach this one.
    pub advertise_addr: SocketAddr,
    /// Where packets of overlays leave and arrive; `None` means the advertised address.
    #[serde(default)]
    pub data_path_addr: Option<IpAddr>,
    /// Managers as last heard of, to find the leader after a restart.
    pub managers: Vec<String>,
}

impl Settings {
    /// Reads the file; `None` if there is none.
    pub fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        read(path, "the node's settings")
    }

    /// Replaces the file durably.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        write(path, self)
    }
}

/// Reads a file of JSON; `None` if there is none. `what` it should hold is named if it is damaged.
pub fn read<T: DeserializeOwned>(path: &Path, what: &str) -> anyhow::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("`{}` is damaged: expected {what}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

/// Replaces a file by `value` as JSON, durably: after a power cut it holds the one or the other.
pub fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let next = path.with_extension("json.next");
        let mut file = std::fs::File::create(&next)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        std::fs::rename(&next, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}
