//! One host of a lab: its daemon and its cable.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rswarm_net::lab as wire;

use crate::error::LabError;
use crate::machine::{Machine, Output};
use crate::{LabConfig, processes, sweep};

/// A host: a network of its own, a data root, a run root, and at most one daemon that this process started.
#[derive(Debug)]
pub struct Host {
    /// From 1.
    pub number: usize,
    /// `host-1`; also the name its daemon gives to the node.
    pub name: String,
    pub address: Ipv4Addr,
    /// `/run/rswarm-lab/…`
    pub netns: PathBuf,
    pub data_root: PathBuf,
    pub run_root: PathBuf,
    executable: PathBuf,
    wire: wire::Host,
    daemon: Option<Child>,
}

/// How far back the end of a log is looked for.
const LOG_TAIL_BYTES: u64 = 64 << 10;

impl Host {
    pub(crate) fn create(config: &LabConfig, wire: wire::Host) -> Result<Self, LabError> {
        let name = name(wire.number);
        let (data_root, run_root) = (config.data_dir.join(&name), config.run_dir.join(&name));
        for directory in [&data_root, &run_root] {
            fs::create_dir_all(directory).map_err(LabError::directory(directory))?;
        }
        Ok(Self {
            number: wire.number,
            address: wire.address,
            netns: wire.netns.clone(),
            executable: config.executable.clone(),
            name,
            data_root,
            run_root,
            wire,
            daemon: None,
        })
    }

    /// Starts the daemon; it is ready when [`Self::answers`]. What it says goes to the end of [`Self::log_path`].
    ///
    /// # Errors
    /// `Spawn` or `Directory`.
    pub fn start_daemon(&mut self, args: &[&str]) -> Result<(), LabError> {
        let path = self.log_path();
        let log =
            File::options().append(true).create(true).open(&path).map_err(LabError::directory(&path))?;
        let mut command = self.command(&self.executable)?;
        command
            .arg("daemon")
            .arg("--data-root")
            .arg(&self.data_root)
            .arg("--run-root")
            .arg(&self.run_root)
            .args(["--hostname", &self.name])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/")
            // Ctrl-C at the terminal is for whoever started this, and is passed on as it sees fit.
            .process_group(0);
        self.daemon = Some(command.spawn().map_err(|source| self.spawn_error(source))?);
        Ok(())
    }

    /// Whether a daemon listens on the host's socket.
    pub fn answers(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    pub fn socket(&self) -> PathBuf {
        self.run_root.join("rswarm.sock")
    }

    /// Pid of the daemon that this process started, while it runs.
    pub fn daemon_pid(&mut self) -> Option<u32> {
        let child = self.daemon.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// `rswarm …` as somebody would type it on this host.
    ///
    /// # Errors
    /// `Network` when the host is gone.
    pub fn rswarm<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command, LabError> {
        let mut command = self.command(&self.executable)?;
        command.args(args).env("RSWARM_DATA_ROOT", &self.data_root).env("RSWARM_RUN_ROOT", &self.run_root);
        Ok(command)
    }

    /// Any program, to run on this host.
    ///
    /// # Errors
    /// `Network` when the host is gone.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        Ok(self.wire.command(program)?)
    }

    /// Runs `f` on this host; sockets opened there stay there.
    ///
    /// # Errors
    /// `Network` when the host is gone.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        Ok(self.wire.run(f)?)
    }

    /// Pulls the cable.
    ///
    /// # Errors
    /// `Network`.
    pub fn cut(&self) -> Result<(), LabError> {
        Ok(self.wire.cut()?)
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// `Network`.
    pub fn heal(&self) -> Result<(), LabError> {
        Ok(self.wire.heal()?)
    }

    /// Asks the daemon to end (SIGTERM) and waits for it. Containers go on.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
        }
    }

    /// Kills the daemon that this process started, and nothing else.
    pub fn crash(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Takes the power away: the cable is dead and every process here is killed. Disks keep what was written.
    ///
    /// # Errors
    /// `Network`, or `Leftovers` when a process does not die.
    pub fn power_off(&mut self) -> Result<(), LabError> {
        self.cut()?;
        self.crash();
        sweep::kill_all(&self.netns, &self.data_root)
    }

    /// Everything that runs here.
    pub fn processes(&self) -> Vec<processes::Process> {
        processes::of_host(&self.netns, &self.data_root)
    }

    pub fn log_path(&self) -> PathBuf {
        self.data_root.join("daemon.log")
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_path(), lines).unwrap_or_default()
    }

    fn output(&self, command: &mut Command) -> Result<Output, LabError> {
        let output = command.stdin(Stdio::null()).output().map_err(|source| LabError::Spawn {
            program: command.get_program().into(),
            host: self.name.clone(),
            source,
        })?;
        Ok(Output::new(output.status.code(), &output.stdout, &output.stderr))
    }

    fn spawn_error(&self, source: std::io::Error) -> LabError {
        LabError::Spawn { program: self.executable.clone(), host: self.name.clone(), source }
    }
}

/// A namespace shares this machine's files, so nothing has to be copied.
impl Machine for Host {
    fn number(&self) -> usize {
        self.number
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn run(&self, program: &str, args: &[&str], _within: Duration) -> Result<Output, LabError> {
        let mut command = self.command(program)?;
        self.output(command.args(args))
    }

    fn rswarm(&self, args: &[&str], _within: Duration) -> Result<Output, LabError> {
        self.output(&mut self.rswarm(args)?)
    }

    fn give(&self, file: &Path) -> Result<PathBuf, LabError> {
        Ok(file.to_owned())
    }

    fn start_daemon(&mut self) -> Result<(), LabError> {
        self.start_daemon(&[])
    }

    fn power_off(&mut self) -> Result<(), LabError> {
        self.power_off()
    }

    fn log_tail(&self, lines: usize) -> String {
        self.log_tail(lines)
    }
}

/// Name of the host with this number.
pub(crate) fn name(number: usize) -> String {
    format!("host-{number}")
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}
