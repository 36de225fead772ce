//! Starting a daemon for `init` and `join` on a host where none runs.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rswarm_types::error::chain;

use super::registries::{self, Remembered};
use crate::paths::Paths;

/// The unit that packages install.
const UNIT: &str = "rswarm.service";
/// A daemon that has not opened its socket by then has failed, or will tell why in its log.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at the socket.
const POLL: Duration = Duration::from_millis(5);

/// What was begun for a command: the daemon if this process is its parent, what it was given to remember, and those of
/// its roots that had not been there.
#[derive(Debug, Default)]
pub struct Started {
    daemon: Option<Child>,
    remembered: Option<Remembered>,
    roots: Vec<PathBuf>,
}

impl Started {
    /// Takes it back: the command it was done for has failed, and nothing shall stay of that.
    pub fn undo(mut self) {
        if let Some(Err(error)) = self.remembered.take().map(Remembered::forget) {
            eprintln!("{}", chain(&*error));
        }
        let Some(mut daemon) = self.daemon.take() else { return };
        let Ok(pid) = i32::try_from(daemon.id()) else { return };
        let asked =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        if asked.is_ok() && daemon.wait().is_ok() {
            eprintln!("Stopped the rswarm daemon again (process {pid}).");
            for root in self.roots {
                if let Err(error) = std::fs::remove_dir_all(&root)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    eprintln!("cannot remove `{}` again: {}", root.display(), chain(&error));
                }
            }
        }
    }
}

/// Makes sure a daemon answers on the socket, and says on standard error if one had to be started. Before that `check`
/// is asked whether what it is started for can be done.
///
/// # Errors
/// Also if one runs already and does not know all of `registries`: it reads them when it starts.
pub fn ensure_running(
    paths: &Paths,
    registries: &[String],
    check: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Started> {
    if answers(paths) {
        let known = registries::load(&paths.registries())?;
        if let Some(new) = registries.iter().find(|new| !known.contains(new)) {
            bail!(
                "the daemon runs already and knows nothing of `--insecure-registry {new}`: stop it and run this again, \
                 or start it with that flag"
            );
        }
        return Ok(Started::default());
    }
    super::require_root()?;
    check()?;
    let roots = [&paths.data_root, &paths.run_root].into_iter().filter(|root| !root.exists());
    let roots = roots.cloned().collect();
    crate::paths::make_private(&paths.data_root)?;
    let remembered = registries::remember(&paths.registries(), registries)?;
    let mut started = Started { remembered, roots, daemon: None };
    match start(paths) {
        Ok(daemon) => {
            started.daemon = daemon;
            Ok(started)
        }
        Err(error) => {
            started.undo();
            Err(error)
        }
    }
}

/// Starts the daemon and waits until it answers. Gives it if this process is its parent.
fn start(paths: &Paths) -> anyhow::Result<Option<Child>> {
    if unit_is_installed() && paths.are_the_hosts() {
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
    Ok(Some(child))
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

fn wait(paths: &Paths, mut child: Option<&mut Child>) -> anyhow::Result<()> {
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
