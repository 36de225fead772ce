//! What the adapter remembers of each task on disk, so that the next daemon can go on with its container.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use rswarm_image::Digest;
use rswarm_net::{BridgeNetwork, Endpoint};
use rswarm_types::TaskId;
use rswarm_types::task::PortStatus;
use serde::{Deserialize, Serialize};

const FILE: &str = "task.json";

/// Written when the container is made, and again when its network is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The task's name, for messages.
    pub name: String,
    pub image: Option<Digest>,
    pub stop_signal: i32,
    pub ports: Vec<PortStatus>,
    pub networks: Vec<BridgeNetwork>,
    /// `netns_pid` is that of the container when it was started.
    pub endpoints: Vec<Endpoint>,
    /// The gateway of a bridge, if the resolver answered there when the container was started.
    pub name_server: Option<IpAddr>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            name: String::new(),
            image: None,
            stop_signal: 15,
            ports: Vec::new(),
            networks: Vec::new(),
            endpoints: Vec::new(),
            name_server: None,
        }
    }
}

/// Ids and names of the tasks below `tasks`, in no order. A task without a readable record has no name.
pub fn tasks_on_disk(tasks: &Path) -> io::Result<Vec<(TaskId, String)>> {
    let entries = match std::fs::read_dir(tasks) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push((id, Record::read(&entry.path())?.unwrap_or_default().name));
        }
    }
    Ok(found)
}

impl Record {
    /// The record in a task's directory; `None` if it has none that can be read, as after a power cut.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(directory.join(FILE)) {
            Ok(bytes) => {
                let read = serde_json::from_slice(&bytes).inspect_err(|error| {
                    tracing::warn!(directory = %directory.display(), %error, "a task's record is damaged");
                });
                Ok(read.ok())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the record in place of the one before, as a whole. It need not survive the machine: the container does not.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join("task.tmp");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(temporary, directory.join(FILE))
    }
}
