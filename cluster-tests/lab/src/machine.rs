//! What a scenario needs of a host, be it a network namespace or a virtual machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::LabError;

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// `None` when a signal ended it and the number is not known.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn new(code: Option<i32>, stdout: &[u8], stderr: &[u8]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code, stdout: text(stdout), stderr: text(stderr) }
    }
}

/// A host on the wire of a lab, with an `rswarm` of its own.
pub trait Machine {
    /// From 1.
    fn number(&self) -> usize;

    /// `host-1`; also the name its daemon gives to the node.
    fn name(&self) -> &str;

    fn address(&self) -> Ipv4Addr;

    /// Runs any program there to its end.
    ///
    /// # Errors
    /// When it cannot be started, the host is off, or the program takes longer than `within`. (A namespace waits for
    /// as long as it takes.)
    fn run(&self, program: &str, args: &[&str], within: Duration) -> Result<Output, LabError>;

    /// Runs `rswarm …` as somebody would type it there.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn rswarm(&self, args: &[&str], within: Duration) -> Result<Output, LabError>;

    /// Makes a file of this machine readable there; the path it has there.
    ///
    /// # Errors
    /// When it cannot be copied.
    fn give(&self, file: &Path) -> Result<PathBuf, LabError>;

    /// Starts the daemon; it is ready once `rswarm ping` succeeds.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start_daemon(&mut self) -> Result<(), LabError>;

    /// Takes the power away: nothing there gets to say how it ended.
    ///
    /// # Errors
    /// When something of it is left.
    fn power_off(&mut self) -> Result<(), LabError>;

    /// The last lines of what there is to know when something went wrong.
    fn log_tail(&self, lines: usize) -> String;
}
