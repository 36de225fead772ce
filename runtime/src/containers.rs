//! The caller's side: creating containers, and handles on them that work from any process, before and after a restart.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::{Cgroup, Layout, Stats};
use crate::error::{self, Failure, RuntimeError};
use crate::request::{CreateRequest, ShimRequest};
use crate::seal::seal;
use crate::shim::protocol::{self, Reply, Request};
use crate::state::{
    self, CONFIG_FILE, EXIT_FILE, ExitStatus, INIT_FILE, InitRecord, REQUEST_FILE, ROOTFS_DIRECTORY, State,
    Status,
};
use crate::sys;

/// How long a shim may take to create a container or to run its program. Only a hanging file system gets near it.
pub(crate) const WORK: Duration = Duration::from_secs(60);
/// How long a shim may take to answer what it knows by heart.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// How long a shim that is told to leave may take. Its own end takes at most 5 s, where a cgroup is slow to go.
const LEAVE: Duration = Duration::from_secs(10);
/// How long the end of a killed container may take.
const END: Duration = Duration::from_secs(20);

/// How the shim is started: an executable that calls [`crate::shim_main`] when these arguments come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimCommand {
    pub executable: PathBuf,
    pub args: Vec<OsString>,
}

impl Default for ShimCommand {
    /// This very program with the argument `shim`.
    fn default() -> Self {
        Self { executable: "/proc/self/exe".into(), args: vec!["shim".into()] }
    }
}

/// All containers below one state directory. Cheap to clone; may be used from any thread.
#[derive(Clone, Debug)]
pub struct Containers {
    root: PathBuf,
    shim: Arc<Shim>,
}

#[derive(Debug)]
struct Shim {
    command: ShimCommand,
    /// The executable on a private read-only mount, see [`seal`].
    sealed: Option<File>,
}

impl Containers {
    /// `root` is durable, such as `<data-root>/containers`, and is made when the first container is.
    pub fn new(root: impl AsRef<Path>, shim: ShimCommand) -> Self {
        let root = std::path::absolute(root.as_ref()).unwrap_or_else(|_| root.as_ref().to_owned());
        let sealed = seal(&shim.executable).ok();
        Self { root, shim: Arc::new(Shim { command: shim, sealed }) }
    }

    /// Creates a container up to, but not including, the start of its program. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`RuntimeError::Create`] names the step that failed, a missing program among them. Nothing is left behind.
    pub fn create(&self, request: &CreateRequest) -> Result<Container, RuntimeError> {
        let id = &request.id;
        let directory = self.directory(id)?;
        let file_error =
            |action| move |path: PathBuf| move |source| RuntimeError::File { action, path, source };
        let mut private = fs::DirBuilder::new();
        private.mode(0o700);
        private
            .recursive(true)
            .create(&self.root)
            .map_err(file_error("create the directory")(self.root.clone()))?;
        private.recursive(false).create(&directory).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RuntimeError::AlreadyExists { id: id.clone() },
            _ => RuntimeError::File { action: "create the directory", path: directory.clone(), source },
        })?;
        self.create_in(&directory, request).inspect_err(|error| {
            if matches!(error, RuntimeError::Create { .. }) && !directory.join(INIT_FILE).exists() {
                // It may have failed because others use its cgroup: these are not its own to kill.
                let _ = fs::remove_file(directory.join(REQUEST_FILE));
            }
            // The shim has undone what it made, except for the cgroup that it was in itself.
            let _ = Container::new(id.clone(), directory.clone(), None, None).delete();
            let _ = fs::remove_dir_all(&directory);
        })
    }

    fn create_in(&self, directory: &Path, request: &CreateRequest) -> Result<Container, RuntimeError> {
        let rootfs = directory.join(ROOTFS_DIRECTORY);
        fs::create_dir(&rootfs).map_err(|source| RuntimeError::File {
            action: "create the directory",
            path: rootfs,
            source,
        })?;
        write(directory.join(CONFIG_FILE), &request.spec)?;
        let rest = ShimRequest {
            rootfs: request.rootfs.clone(),
            stdin: request.stdin,
            log: request.log,
            cgroup: request.cgroup.clone(),
        };
        write(directory.join(REQUEST_FILE), &rest)?;
        let channel = self.spawn(directory)?;
        let id = request.id.clone();
        let control = |source| RuntimeError::Control { id: id.clone(), source };
        match protocol::receive(&channel).map_err(control)? {
            Some(Reply::Created { pid }) => {
                Ok(Container::new(request.id.clone(), directory.to_owned(), Some(channel), Some(pid)))
            }
            Some(Reply::Failed(source)) => Err(RuntimeError::Create { id: request.id.clone(), source }),
            Some(other) => Err(control(unexpected(&other))),
            None => Err(RuntimeError::Create {
                id: request.id.clone(),
                source: Failure::new("run the shim", "it ended without an answer"),
            }),
        }
    }

    /// Starts a shim for `directory` and gives the line to it.
    fn spawn(&self, directory: &Path) -> Result<OwnedFd, RuntimeError> {
        let path = &self.shim.command.executable;
        let error = |source| RuntimeError::SpawnShim { path: path.clone(), source };
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| error(errno.into()))?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(WORK))
            .map_err(|errno| error(errno.into()))?;
        let program = match &self.shim.sealed {
            Some(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            None => path.clone(),
        };
        let status = Command::new(program)
            .arg0("rswarm")
            .args(&self.shim.command.args)
            .arg(directory)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(error)?;
        if status.success() {
            Ok(ours)
        } else {
            Err(error(io::Error::other(format!("it failed with {status}"))))
        }
    }

    /// The handle on an existing container. What is left of one whose shim was killed is killed too.
    ///
    /// # Errors
    /// `NotFound` if there is none of this id.
    pub fn open(&self, id: &str) -> Result<Container, RuntimeError> {
        let container = self.find(id)?;
        let pid = container.state()?.pid;
        Ok(Container { pid, ..container })
    }

    /// The handle on an existing container without a question to its shim, which may not answer: nothing blocks,
    /// nothing is killed, and [`Container::pid`] is `None`.
    ///
    /// # Errors
    /// `NotFound` if there is none of this id.
    pub fn find(&self, id: &str) -> Result<Container, RuntimeError> {
        let directory = self.directory(id)?;
        if !directory.is_dir() {
            return Err(RuntimeError::NotFound { id: id.to_owned() });
        }
        Ok(Container::new(id.to_owned(), directory, None, None))
    }

    /// Ids of all containers, ended and lost ones included, in order.
    ///
    /// # Errors
    /// The file system's.
    pub fn list(&self) -> Result<Vec<String>, RuntimeError> {
        let error = |source| RuntimeError::File { action: "list", path: self.root.clone(), source };
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(error)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error)?;
            ids.extend(entry.file_name().into_string().ok().filter(|name| self.directory(name).is_ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Where a container keeps its records and its log.
    ///
    /// # Errors
    /// `InvalidId`.
    pub fn directory(&self, id: &str) -> Result<PathBuf, RuntimeError> {
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(ordinary) {
            return Err(RuntimeError::InvalidId { id: id.to_owned() });
        }
        Ok(self.root.join(id))
    }
}

fn write<T: serde::Serialize>(path: PathBuf, value: &T) -> Result<(), RuntimeError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| RuntimeError::Record { path: path.clone(), source })?;
    state::create_private(&path)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(|source| RuntimeError::File { action: "write", path, source })
}

pub(crate) fn unexpected(reply: &Reply) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {reply:?}"))
}

/// Readable at once, as its other end is closed.
fn ended_channel() -> rustix::io::Result<OwnedFd> {
    let (ours, _closed) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok(ours)
}

fn read_boot_id() -> Result<String, RuntimeError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    state::boot_id().map_err(|source| RuntimeError::File { action: "read", path, source })
}

/// What may be left of a container without a shim.
struct Remains {
    cgroup: Cgroup,
    /// 0 if unknown.
    created_at_unix_nanos: i64,
}

/// A container. All methods may be called from any thread; those that ask the shim block for its answer.
#[derive(Debug)]
pub struct Container {
    id: String,
    directory: PathBuf,
    pid: Option<i32>,
    control: Mutex<Option<OwnedFd>>,
}

impl Container {
    pub(crate) fn new(id: String, directory: PathBuf, control: Option<OwnedFd>, pid: Option<i32>) -> Self {
        Self { id, directory, pid, control: Mutex::new(control) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Host pid of the first process as of when this handle was made; `None` if it had ended by then. Between
    /// creation and start its network namespace can be set up through `/proc/<pid>/ns/net`.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Where the log is, for [`crate::log::Reader::open`].
    pub fn log_directory(&self) -> &Path {
        &self.directory
    }

    /// Runs the program. Returns once it runs.
    ///
    /// # Errors
    /// `Start` when the program cannot be executed (the container has ended then), `WrongState` when it was started
    /// before.
    pub fn start(&self) -> Result<(), RuntimeError> {
        match self.ask(Request::Start, WORK)? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Failed(source)) => Err(RuntimeError::Start { id: self.id.clone(), source }),
            other => Err(self.wrong_state("created", other)?),
        }
    }

    /// Sends a signal to the first process, or to `all` processes of the container.
    ///
    /// # Errors
    /// `WrongState` when it has ended.
    pub fn kill(&self, signal: i32, all: bool) -> Result<(), RuntimeError> {
        match self.ask(Request::Kill { signal, all }, ANSWER)? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Failed(source)) => Err(RuntimeError::Kill { id: self.id.clone(), source }),
            other => Err(self.wrong_state("created or running", other)?),
        }
    }

    /// What the container is doing now.
    ///
    /// # Errors
    /// `NotFound` when it was deleted; those of reading its records. Any other error says nothing about the container:
    /// it may well run, see [`Self::init_pid`].
    pub fn state(&self) -> Result<State, RuntimeError> {
        self.state_by(ANSWER, END)
    }

    /// The same for a caller that must go on: `limit` bounds each of its waits.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub fn state_within(&self, limit: Duration) -> Result<State, RuntimeError> {
        self.state_by(limit, limit)
    }

    fn state_by(&self, answer: Duration, end: Duration) -> Result<State, RuntimeError> {
        match self.ask(Request::State, answer)? {
            Some(Reply::State(state)) => Ok(state),
            Some(other) => Err(RuntimeError::Control { id: self.id.clone(), source: unexpected(&other) }),
            None => self.last_state(end),
        }
    }

    /// Host pid of the first process if it runs now, as the records and the kernel have it: the shim is not asked.
    ///
    /// # Errors
    /// Those of reading the records.
    pub fn init_pid(&self) -> Result<Option<i32>, RuntimeError> {
        let record: Option<InitRecord> = state::read_record(&self.directory.join(INIT_FILE))?;
        let Some(record) = record.filter(|record| record.init.is_alive()) else { return Ok(None) };
        Ok((record.boot_id == read_boot_id()? && !self.is_zombie(record.init.pid)).then_some(record.init.pid))
    }

    /// Blocks until the container has ended.
    ///
    /// # Errors
    /// `WrongState` when it was lost, so that nobody knows how it ended.
    pub fn wait(&self) -> Result<ExitStatus, RuntimeError> {
        let watch = self.watch()?;
        if let Ok(Some(Reply::Exited(status))) = protocol::receive(&watch) {
            return Ok(status);
        }
        let status = self.last_state(END)?.status;
        match status {
            Status::Exited(exit) => Ok(exit),
            found => Err(RuntimeError::WrongState { id: self.id.clone(), expected: "exited", found }),
        }
    }

    /// A descriptor that becomes readable (or hung up) when the container has ended, for `poll` or an event loop.
    /// Call [`Self::wait`], which does not block then, for the result. One per interested party; close to forget.
    ///
    /// # Errors
    /// Those of making a socket.
    pub fn watch(&self) -> Result<OwnedFd, RuntimeError> {
        let control = |source: io::Error| RuntimeError::Control { id: self.id.clone(), source };
        if let Some(socket) = self.connect(ANSWER)?
            && protocol::send(&socket, &Request::Watch).is_ok()
        {
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, None)
                .map_err(|errno| control(errno.into()))?;
            return Ok(socket);
        }
        ended_channel().map_err(|errno| control(errno.into()))
    }

    /// A descriptor that becomes readable when the container's first process has ended, whether its shim says so or
    /// not; at once if it has. `None` if nothing is on record about that process.
    ///
    /// # Errors
    /// Those of reading the records and of watching a process.
    pub fn watch_process(&self) -> Result<Option<OwnedFd>, RuntimeError> {
        let record: Option<InitRecord> = state::read_record(&self.directory.join(INIT_FILE))?;
        let Some(record) = record else { return Ok(None) };
        let control = |errno: Errno| RuntimeError::Control { id: self.id.clone(), source: errno.into() };
        let ended = || ended_channel().map(Some).map_err(control);
        let same_boot = record.boot_id == read_boot_id()?;
        let Some(pid) = Pid::from_raw(record.init.pid).filter(|_| same_boot) else { return ended() };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // Only a process that was the container's after it was opened was so before.
            Ok(process) if record.init.is_alive() => Ok(Some(process)),
            Ok(_) | Err(Errno::SRCH) => ended(),
            Err(errno) => Err(control(errno)),
        }
    }

    /// Sends a signal to the first process without its shim, which does not answer. Does nothing if that has ended.
    ///
    /// # Errors
    /// Those of reading the records and of sending a signal.
    pub fn signal_past_shim(&self, signal: i32) -> Result<(), RuntimeError> {
        let Some(pid) = self.init_pid()? else { return Ok(()) };
        sys::kill(pid, signal).map_err(|error| RuntimeError::Kill {
            id: self.id.clone(),
            source: Failure {
                step: format!("send signal {signal} to the first process"),
                cause: (&error).into(),
            },
        })
    }

    /// Kills the container's shim, which does not answer, and the container. How that ended is known only if the shim
    /// had written it down before; else it is lost.
    ///
    /// # Errors
    /// `StillRunning` when a process does not die; it can be tried again.
    pub fn end_with_shim(&self) -> Result<(), RuntimeError> {
        self.kill_shim()?;
        self.end_orphans(END).map(drop)
    }

    /// Kills whatever is left of the container and removes all that was made for it, its log included. The layers of
    /// its root file system belong to the caller. Deleting a container that is gone already is a success. A shim that
    /// does not do its part in time is killed.
    ///
    /// # Errors
    /// `StillRunning` when a process does not die; it can be tried again.
    pub fn delete(&self) -> Result<(), RuntimeError> {
        if !self.dismiss_shim() {
            self.kill_shim()?;
        }
        if let Some(Remains { cgroup, .. }) = self.end_orphans(END)? {
            let deadline = Instant::now() + END;
            while cgroup.remove().is_err() {
                if Instant::now() > deadline {
                    return Err(RuntimeError::StillRunning { id: self.id.clone(), seconds: END.as_secs() });
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            cgroup.prune_parents();
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| RuntimeError::File {
                action: "remove",
                path: self.directory.clone(),
                source,
            }),
        }
    }

    /// Current use of memory, CPU and processes.
    ///
    /// # Errors
    /// `Stats` when the container has ended.
    pub fn stats(&self) -> Result<Stats, RuntimeError> {
        let record: Option<InitRecord> = state::read_record(&self.directory.join(INIT_FILE))?;
        let record = record.filter(|record| record.init.is_alive());
        record.map(|record| record.cgroup.stats()).ok_or_else(|| RuntimeError::Stats {
            id: self.id.clone(),
            source: io::Error::new(io::ErrorKind::NotFound, "it has ended"),
        })
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line to the shim; `None` when there is no shim any more, which no other failure says.
    pub(crate) fn connect(&self, limit: Duration) -> Result<Option<OwnedFd>, RuntimeError> {
        match protocol::connect(&self.directory, limit) {
            Ok(socket) => Ok(Some(socket)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(source) => Err(RuntimeError::Control { id: self.id.clone(), source }),
        }
    }

    /// One question to the shim, whose answer may take `limit`; `None` when there is no shim any more.
    fn ask(&self, request: Request, limit: Duration) -> Result<Option<Reply>, RuntimeError> {
        let deadline = Instant::now() + limit;
        loop {
            let mut connection = self.connection();
            if connection.is_none() {
                *connection = self.connect(limit)?;
            }
            let Some(socket) = connection.as_ref() else { return Ok(None) };
            let _ = sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(limit));
            let source = match protocol::send(socket, &request).and_then(|()| protocol::receive(socket)) {
                Ok(Some(reply)) => return Ok(Some(reply)),
                Ok(None) => io::ErrorKind::BrokenPipe.into(),
                Err(error) => error,
            };
            // A late answer must not be taken for the next question's.
            *connection = None;
            drop(connection);
            // Closed: it has ended, which the next attempt tells, or had too many connections and did not read this. Reset,
            // when it was killed before it took the connection.
            let closed = matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
            if !closed || Instant::now() > deadline {
                return Err(RuntimeError::Control { id: self.id.clone(), source });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells the shim to end everything and waits until it has left; `false` if it is there and does not.
    fn dismiss_shim(&self) -> bool {
        let known = self.connection().take();
        let socket = match known.map_or_else(|| self.connect(ANSWER), |socket| Ok(Some(socket))) {
            Ok(Some(socket)) => socket,
            Ok(None) => return true,
            Err(error) => return !error.is_silence(),
        };
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LEAVE));
        let mut answered = protocol::send(&socket, &Request::Delete).map(|()| true);
        while let Ok(true) = answered {
            // Anything that still comes is an answer nobody waits for any more; the end says that it has left.
            answered = protocol::receive::<Reply>(&socket).map(|reply| reply.is_some());
        }
        !answered.is_err_and(|error| error::is_timeout(&error))
    }

    /// Kills the shim, if it still runs.
    fn kill_shim(&self) -> Result<(), RuntimeError> {
        let record: Option<InitRecord> = state::read_record(&self.directory.join(INIT_FILE))?;
        if let Some(record) = record
            && record.boot_id == read_boot_id()?
            && record.shim.is_alive()
        {
            // Whether it has gone is seen to by whoever asked.
            let _ = sys::kill(record.shim.pid, libc::SIGKILL);
        }
        Ok(())
    }

    pub(crate) fn wrong_state(
        &self,
        expected: &'static str,
        reply: Option<Reply>,
    ) -> Result<RuntimeError, RuntimeError> {
        let found = match reply {
            Some(Reply::WrongState(found)) => found,
            Some(other) => {
                return Err(RuntimeError::Control { id: self.id.clone(), source: unexpected(&other) });
            }
            None => self.last_state(END)?.status,
        };
        Ok(RuntimeError::WrongState { id: self.id.clone(), expected, found })
    }

    /// What the records say, for a container without a shim.
    fn last_state(&self, limit: Duration) -> Result<State, RuntimeError> {
        let remains = self.end_orphans(limit)?;
        let exit: Option<ExitStatus> = state::read_record(&self.directory.join(EXIT_FILE))?;
        if let Some(exit) = exit {
            return Ok(State {
                status: Status::Exited(exit),
                pid: None,
                created_at_unix_nanos: exit.created_at_unix_nanos,
                started_at_unix_nanos: exit.started_at_unix_nanos,
            });
        }
        if !self.directory.is_dir() {
            return Err(RuntimeError::NotFound { id: self.id.clone() });
        }
        Ok(State {
            status: Status::Lost,
            pid: None,
            created_at_unix_nanos: remains.map_or(0, |remains| remains.created_at_unix_nanos),
            started_at_unix_nanos: None,
        })
    }

    /// Sees to it that neither shim nor container run any more: the shim is given time to finish its work, and what a
    /// killed shim left is killed. Gives what was known of both, if they got that far and it was in this boot.
    fn end_orphans(&self, limit: Duration) -> Result<Option<Remains>, RuntimeError> {
        let deadline = Instant::now() + limit;
        let in_time = || match Instant::now() > deadline {
            true => Err(RuntimeError::StillRunning { id: self.id.clone(), seconds: limit.as_secs() }),
            false => Ok(()),
        };
        let record: Option<InitRecord> = state::read_record(&self.directory.join(INIT_FILE))?;
        let Some(record) = record else { return self.end_unrecorded(in_time) };
        if record.boot_id != read_boot_id()? {
            return Ok(None);
        }
        while record.shim.is_alive() && !self.is_zombie(record.shim.pid) {
            in_time()?;
            std::thread::sleep(Duration::from_micros(200));
        }
        while record.init.is_alive() && !self.is_zombie(record.init.pid) {
            // The pid is the container's own first process: boot, number and start time agree.
            let _ = sys::kill(record.init.pid, libc::SIGKILL);
            let _ = record.cgroup.signal_all(libc::SIGKILL);
            in_time()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let exit: Option<ExitStatus> = state::read_record(&self.directory.join(EXIT_FILE))?;
        if exit.is_none() {
            let _ = record.cgroup.signal_all(libc::SIGKILL);
        }
        let InitRecord { cgroup, created_at_unix_nanos, .. } = record;
        Ok(Some(Remains { cgroup, created_at_unix_nanos }))
    }

    /// The same where the shim's record is missing or damaged: the request names the cgroup, which is the container's
    /// alone. (A shim that has not come to its record yet listens already, so that nobody comes here.)
    fn end_unrecorded(
        &self,
        in_time: impl Fn() -> Result<(), RuntimeError>,
    ) -> Result<Option<Remains>, RuntimeError> {
        let request: Option<ShimRequest> = state::read_record(&self.directory.join(REQUEST_FILE))?;
        let Some(request) = request else { return Ok(None) };
        let path = PathBuf::from("/proc/self/mountinfo");
        let layout =
            Layout::detect().map_err(|source| RuntimeError::File { action: "read", path, source })?;
        let cgroup = Cgroup::at(&layout, &request.cgroup);
        // As long as somebody listens, there is a shim.
        while self.connect(ANSWER)?.is_some() {
            in_time()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        while cgroup.is_populated() {
            let _ = cgroup.signal_all(libc::SIGKILL);
            in_time()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Some(Remains { cgroup, created_at_unix_nanos: 0 }))
    }

    /// Ended, and only waiting to be waited for by a parent that may take its time.
    fn is_zombie(&self, pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
        })
    }
}
