//! Sees to it that the node's resolver runs: a process of its own, so that names resolve while the daemon is away.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::blocking;
use crate::executor::{Failure, FailureKind};

/// How long it has to let go of what it holds once told to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How the resolver of a node is started and found again.
#[derive(Debug)]
pub struct Resolver {
    /// This program.
    executable: PathBuf,
    run_root: PathBuf,
    /// The network namespace that tasks ask it in.
    netns: PathBuf,
    /// The one started last, to be reaped should it end.
    child: Mutex<Option<Child>>,
}

impl Resolver {
    pub fn new(executable: PathBuf, run_root: PathBuf, netns: PathBuf) -> Self {
        Self { executable, run_root, netns, child: Mutex::default() }
    }

    /// Starts it unless it runs.
    ///
    /// # Errors
    /// The program cannot be executed. What it fails at itself is in its log.
    pub fn ensure(&self) -> Result<(), Failure> {
        if rswarm_resolver::runs(&self.run_root) {
            return Ok(());
        }
        let log = self.run_root.join("resolver.log");
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = &mut *child
            && let Ok(None) = former.try_wait()
        {
            // On its way to the lock, or away from it.
            return Ok(());
        }
        let mut start = || -> io::Result<()> {
            let log = File::options().create(true).append(true).open(&log)?;
            let mut command = Command::new(&self.executable);
            command.arg("resolver").arg("--run-root").arg(&self.run_root).arg("--netns").arg(&self.netns);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            // Not of the daemon's group: what ends that one at a terminal leaves the resolver alone.
            *child = Some(command.process_group(0).spawn()?);
            Ok(())
        };
        start().map_err(|error| Failure {
            text: format!("failed to start the resolver, whose log is `{}`: {error}", log.display()),
            kind: FailureKind::Temporary,
        })
    }

    /// Ends it, if it runs.
    pub async fn end(&self) {
        let run_root = self.run_root.clone();
        let ended = blocking(move || rswarm_resolver::stop(&run_root, END_PATIENCE)).await;
        let failure = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => Failure::new(FailureKind::Temporary, &error),
            Err(failure) => failure,
        };
        tracing::warn!(error = %failure.text, "the resolver runs on");
    }
}
