//! Starting a daemon for `init` and `join` on a host where none runs.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::paths::Paths;

/// The unit that packages install.
const UNIT: &str = "rswarm.service";
/// A daemon that has not opened its socket by then has failed, or will tell why in its log.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at the socket.
const POLL: Duration = Duration::from_millis(5);

/// A daemon that was started for a command.
#[derive(Debug)]
pub struct Started(std::process::Child);

impl Started {
    /// Ends it again: the command it was started for has failed, and nothing shall stay of that.
    pub fn stop(mut self) {
        let Ok(pid) = i32::try_from(self.0.id()) else { return };
        let asked =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        if asked.is_ok() && self.0.wait().is_ok() {
            eprintln!("Stopped the rswarm daemon again (process {pid}).");
        }
    }
}

/// Makes sure a daemon answers on the socket, and says on standard error if one had to be started. Gives the daemon
/// if this command is its parent.
pub fn ensure_running(paths: &Paths) -> anyhow::Result<Option<Started>> {
    if answers(paths) {
        return Ok(None);
    }
    super::require_root()?;
    if unit_is_installed() && paths.socket() == Path::new("/run/rswarm/rswarm.sock") {
        let status =
            Command::new("systemctl").args(["start", UNIT]).status().context("cannot run systemctl")?;
        if !status.success() {
            bail!("`systemctl start {UNIT}` failed: see `journalctl -u {UNIT}`");
        }
        wait(paths, None)?;
        eprintln!("Started the rswarm daemon through its systemd unit ({UNIT}).");
        return Ok(None);
    }
    let log_path = paths.log();
    crate::paths::make_private(&paths.data_root)?;
    let log = std::fs::File::options().append(true).create(true).open(&log_path);
    let log = log.with_context(|| format!("cannot write `{}`", log_path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find the rswarm executable")?);
    command
        .arg("daemon")
        .arg("--data-root")
        .arg(&paths.data_root)
        .arg("--run-root")
        .arg(&paths.run_root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        // A group of its own: Ctrl-C at the terminal is for this command and not for the daemon.
        .process_group(0);
    let mut child = command.spawn().context("cannot start the daemon")?;
    wait(paths, Some(&mut child)).with_context(|| format!("the daemon's log is `{}`", log_path.display()))?;
    eprintln!("Started the rswarm daemon (process {}, log `{}`).", child.id(), log_path.display());
    Ok(Some(Started(child)))
}

fn answers(paths: &Paths) -> bool {
    std::os::unix::net::UnixStream::connect(paths.socket()).is_ok()
}

fn unit_is_installed() -> bool {
    Path::new("/run/systemd/system").exists()
        && ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"]
            .iter()
            .any(|dir| Path::new(dir).join(UNIT).exists())
}

fn wait(paths: &Paths, mut child: Option<&mut std::process::Child>) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !answers(paths) {
        if let Some(child) = child.as_deref_mut()
            && let Some(status) = child.try_wait()?
        {
            let log = std::fs::read_to_string(paths.log()).unwrap_or_default();
            let reason =
                log.lines().last().unwrap_or("it could not even write why: is the file system full?");
            bail!("the daemon ended at once ({status}): {reason}");
        }
        if Instant::now() > deadline {
            bail!("the daemon did not open `{}` within {START_TIMEOUT:?}", paths.socket().display());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
