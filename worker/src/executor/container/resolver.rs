//! Sees to it that the node's resolver runs: a process of its own, so that names resolve while the daemon is away.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rswarm_resolver::{Asker, Health};

use super::blocking;
use crate::executor::{Failure, FailureKind};

/// How long it may be silent: clients wait for 5 s.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

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

    /// Starts it unless it runs, and in the place of one that another program than this runs: that of before an upgrade.
    /// Whether it answers is for [`Self::fault`].
    ///
    /// # Errors
    /// The program cannot be executed. What it fails at itself is in its log.
    pub fn ensure(&self) -> Result<(), Failure> {
        let runs = rswarm_resolver::runs(&self.run_root);
        if runs && !rswarm_resolver::holder(&self.run_root).is_some_and(|pid| self.is_another(pid)) {
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
            if runs {
                tracing::info!("the resolver is another program's and is replaced");
                command.arg("--replace");
            }
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

    /// Whether the process is known to run another file than ours; what was replaced on the disk is another one.
    fn is_another(&self, pid: i32) -> bool {
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let (its, ours) = (identity(Path::new(&format!("/proc/{pid}/exe"))), identity(&self.executable));
        its.is_some() && ours.is_some() && its != ours
    }

    /// Why tasks are not answered, if they are not. Takes [`ANSWER_PATIENCE`] then, else no time.
    pub fn fault(&self, tasks: &[Asker]) -> Option<String> {
        let health = rswarm_resolver::health(tasks, ANSWER_PATIENCE)?;
        if !rswarm_resolver::runs(&self.run_root) {
            let log = self.run_root.join("resolver.log");
            return Some(format!("resolver does not run; why is in `{}`", log.display()));
        }
        match health {
            Health::Answered => None,
            Health::Unheard => Some("resolver does not listen where the networks are".to_owned()),
            Health::Silent => Some(format!("resolver has not answered for {ANSWER_PATIENCE:?}")),
        }
    }

    /// Puts a new one in the place of one that does not answer, or not where tasks ask.
    ///
    /// # Errors
    /// It cannot be ended, or as [`Self::ensure`].
    pub fn replace(&self) -> Result<(), Failure> {
        rswarm_resolver::stop(&self.run_root)
            .map_err(|error| Failure::new(FailureKind::Temporary, &error))?;
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // One that hangs before it has the lock is nobody yet.
            let _ = child.kill().and_then(|()| child.wait());
        }
        self.ensure()
    }

    /// Ends it, if it runs.
    pub async fn end(&self) {
        let run_root = self.run_root.clone();
        let ended = blocking(move || rswarm_resolver::stop(&run_root)).await;
        let failure = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => Failure::new(FailureKind::Temporary, &error),
            Err(failure) => failure,
        };
        tracing::warn!(error = %failure.text, "the resolver runs on");
    }
}
