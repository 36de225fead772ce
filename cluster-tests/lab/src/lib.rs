//! Several hosts on one machine, each with a daemon of its own: network namespaces on a wire (see
//! [`rswarm_net::lab`]), and per host a data root, a run root and a process.
//!
//! The playground shows the product on such a lab and the cluster's tests break it on one; neither is known here, and
//! nothing of a cluster either: what is run on a host is the caller's business.
//!
//! ```text
//! <data dir>/host-1/            data root; daemon.log is in it
//! <run dir>/host-1/             run root; rswarm.sock is in it
//! /run/rswarm-lab/rswlab-<name>-1    the host's network, rswlab-<name>-net the wire between them
//! ```
//!
//! [`vm`] has the same with virtual machines for hosts; [`Machine`] is what both are to a scenario.
//!
//! A lab is gone without a trace when it is dropped, unless [`Lab::keep`] was called; [`LabConfig::destroy`] removes
//! one by its name alone, also after the process that made it was killed.

mod error;
mod fetch;
mod host;
mod machine;
mod processes;
mod sweep;
pub mod vm;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

pub use error::LabError;
pub use fetch::{get, page};
pub use host::Host;
pub use machine::{Machine, Output};
pub use processes::{Process, of_daemon_and_containers};
use rswarm_net::lab as wire;

/// Which lab: its name, and where it keeps things. The same value finds it again from another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabConfig {
    /// Letters, digits and `-`; told apart from other labs on this machine by it.
    pub name: String,
    /// 1 to 200.
    pub hosts: usize,
    /// The first address belongs to the first host, the last to the wire. `/24`.
    pub subnet: Ipv4Addr,
    /// The `rswarm` executable.
    pub executable: PathBuf,
    /// The lab's own; made and removed with it.
    pub data_dir: PathBuf,
    /// The lab's own; made and removed with it.
    pub run_dir: PathBuf,
}

/// Hosts on a wire. Dropping it ends all that is on them.
#[derive(Debug)]
pub struct Lab {
    config: LabConfig,
    hosts: Vec<Host>,
    wire: Option<wire::Lab>,
}

impl LabConfig {
    /// Where the wire, and with it everything on it, can be reached from: a namespace's path.
    pub fn wire_netns(&self) -> PathBuf {
        PathBuf::from(format!("/run/rswarm-lab/rswlab-{}-net", self.name))
    }

    /// Whether there is anything of a lab of this name, left by a process that was killed or still in use.
    pub fn exists(&self) -> bool {
        self.run_dir.exists() || self.data_dir.exists() || !wire::Lab::namespaces_of(&self.name).is_empty()
    }

    /// Ends and removes whatever there is of this lab. Fine if there is nothing.
    ///
    /// # Errors
    /// `Leftovers` with everything that could not be removed, after all was tried.
    pub fn destroy(&self) -> Result<(), LabError> {
        sweep::lab(self)
    }
}

impl Lab {
    /// Makes the hosts; nothing runs on them yet.
    ///
    /// # Errors
    /// `Exists` when there is something of this name already, `Network` without the privilege for namespaces. Nothing
    /// is left behind then.
    pub fn create(config: LabConfig) -> Result<Self, LabError> {
        if config.exists() {
            return Err(LabError::Exists { name: config.name });
        }
        let parent = |path: &PathBuf| path.parent().map_or(Ok(()), fs::create_dir_all);
        parent(&config.run_dir).map_err(LabError::directory(&config.run_dir))?;
        // Making the directory is what claims the name: of two at once, one fails.
        match fs::create_dir(&config.run_dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(LabError::Exists { name: config.name });
            }
            other => other.map_err(LabError::directory(&config.run_dir))?,
        }
        // From here on dropping it undoes whatever was made.
        let mut lab = Self { config, hosts: Vec::new(), wire: None };
        let spec = wire::LabSpec {
            subnet: lab.config.subnet,
            gateway: true,
            ..wire::LabSpec::new(&lab.config.name, lab.config.hosts)
        };
        let wire = wire::Lab::create(spec)?;
        for host in wire.hosts() {
            lab.hosts.push(Host::create(&lab.config, host.clone())?);
        }
        lab.wire = Some(wire);
        Ok(lab)
    }

    /// The hosts in order of their numbers.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// All hosts, to be changed.
    pub fn hosts_mut(&mut self) -> &mut [Host] {
        &mut self.hosts
    }

    /// The host with this number, from 1.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// As [`Self::host`].
    ///
    /// # Panics
    /// When there is none.
    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    pub fn config(&self) -> &LabConfig {
        &self.config
    }

    /// Lets hosts and daemons outlive this process; [`LabConfig::destroy`] ends them.
    pub fn keep(mut self) {
        if let Some(wire) = self.wire.take() {
            wire.keep();
        }
        self.hosts.clear();
        // Not dropped: that would be the end of the lab.
        std::mem::forget(self);
    }

    /// Ends everything there and removes it.
    ///
    /// # Errors
    /// Those of [`LabConfig::destroy`].
    pub fn destroy(mut self) -> Result<(), LabError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LabError> {
        for host in &mut self.hosts {
            host.crash();
        }
        // The sweep below removes the namespaces, when nothing is in them any more.
        if let Some(wire) = self.wire.take() {
            wire.keep();
        }
        self.config.destroy()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if (self.wire.is_some() || self.config.exists())
            && let Err(error) = self.end()
        {
            eprintln!("lab `{}`: {error}", self.config.name);
        }
    }
}
