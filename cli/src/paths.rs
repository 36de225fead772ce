//! Where a node keeps things. Everything the daemon writes lies below two roots, so that several nodes can live on one
//! machine.

use std::path::PathBuf;

use clap::Args;

/// The roots of one node; global flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Paths {
    /// Directory for what must survive a reboot
    #[arg(
        long,
        global = true,
        env = "RSWARM_DATA_ROOT",
        default_value = "/var/lib/rswarm",
        value_name = "DIR"
    )]
    pub data_root: PathBuf,
    /// Directory for what must not: the socket and the files of running containers
    #[arg(long, global = true, env = "RSWARM_RUN_ROOT", default_value = "/run/rswarm", value_name = "DIR")]
    pub run_root: PathBuf,
}

impl Paths {
    /// The daemon's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run_root.join("rswarm.sock")
    }

    /// What a daemon that was started by `init` or `join` without systemd writes its log to.
    pub fn log(&self) -> PathBuf {
        self.data_root.join("daemon.log")
    }

    /// Held by the one daemon on this data root.
    pub fn lock(&self) -> PathBuf {
        self.data_root.join("lock")
    }

    /// Certificate, key and root.
    pub fn identity(&self) -> PathBuf {
        self.data_root.join("identity")
    }

    /// Addresses of this node and of the managers it knows.
    pub fn settings(&self) -> PathBuf {
        self.data_root.join("node.json")
    }

    /// Raft log and snapshots.
    pub fn manager(&self) -> PathBuf {
        self.data_root.join("manager")
    }

    /// Running and ended containers with their logs.
    pub fn containers(&self) -> PathBuf {
        self.data_root.join("containers")
    }

    /// Content store and unpacked layers.
    pub fn images(&self) -> PathBuf {
        self.data_root.join("images")
    }
}
