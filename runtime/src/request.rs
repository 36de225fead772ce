//! What a caller asks for: everything needed to create one container.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

/// One container to be created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// 1 to 128 characters out of `a-z A-Z 0-9 _ . -`; also the name of its directory.
    pub id: String,
    /// The OCI configuration. Its `root.path` and `linux.cgroupsPath` are not used: see `rootfs` and `cgroup`.
    pub spec: Spec,
    pub rootfs: Rootfs,
    /// Whether there is a standard input for those who attach; else it is empty. A terminal always is one.
    pub stdin: bool,
    pub log: LogOptions,
    /// The container's cgroup, the same below every hierarchy, such as `/rswarm/<node>/<task>`. It must be the
    /// container's alone. The shims of all containers below one parent share its child `shims`.
    pub cgroup: String,
}

/// Where the container's root file system comes from. Whatever is mounted for it is mounted inside the container's
/// own mount namespace: the host never sees it, and it goes away with the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rootfs {
    /// A directory that is used as it is.
    Directory(PathBuf),
    /// An overlay of read-only directories below a writable one. `work` is on the file system of `upper`. The writable
    /// layer may be used again after the container has ended, but not after a crash of the machine: where the kernel
    /// can, it is mounted `volatile`, that is without ever being synced to disk.
    Overlay {
        /// Topmost first.
        lower: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
    },
}

/// Bounds of the log: `max_files` files of at most `max_size_bytes` each (plus one record).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    pub max_size_bytes: u64,
    /// At least 1.
    pub max_files: u32,
    /// The non-blocking mode, and how much output may wait for the disk in it: at most 256 MiB, rounded up to a power of
    /// two. What comes when that is full is lost, and counted in the log. In the blocking mode (`None`) a container
    /// waits for a slow disk. A full one stops it in neither.
    #[serde(default)]
    pub non_blocking_buffer_bytes: Option<u64>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { max_size_bytes: 10 << 20, max_files: 3, non_blocking_buffer_bytes: None }
    }
}

/// One more process for a running container. What is not said is as with the container's own process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program, looked up as the container's is, and what it is given.
    pub args: Vec<String>,
    /// `NAME=value`, in addition or in place of the container's.
    pub env: Vec<String>,
    pub cwd: Option<PathBuf>,
    pub user: Option<ExecUser>,
    /// A terminal of this size in place of pipes.
    pub terminal: Option<TerminalSize>,
}

/// Who a process runs as, as ids of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// Nothing by nothing is what a terminal has whose size nobody has said yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// The part of a request that is not the OCI configuration, as stored in `shim.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimRequest {
    pub rootfs: Rootfs,
    #[serde(default)]
    pub stdin: bool,
    pub log: LogOptions,
    pub cgroup: String,
}
