//! The caller's side of what goes on with a running container: more processes in it, and a look at its output.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::termios::Winsize;

use crate::containers::{ANSWER, Container, WORK, unexpected};
use crate::error::RuntimeError;
use crate::request::{ExecRequest, TerminalSize};
use crate::shim::protocol::{self, Reply, Request};
use crate::state::{ExitStatus, ProcessEnd, State, Status};

/// A process beside the container's own. It belongs to the shim: it goes on when this handle is dropped, and what it
/// writes is thrown away then. It ends with the container.
#[derive(Debug)]
pub struct Session {
    /// As the host numbers it.
    pub pid: i32,
    pub streams: Streams,
    container: String,
    connection: OwnedFd,
}

/// This side of a process's standard descriptors. They block; whoever does not read holds up the process.
#[derive(Debug)]
pub enum Streams {
    /// Taking and dropping `stdin` is its end.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// The master.
    Terminal(OwnedFd),
}

impl Container {
    /// Runs one more process in the container. Returns once its program runs.
    ///
    /// # Errors
    /// `Exec` when it cannot be run, `WrongState` unless the container is running.
    pub fn exec(&self, request: &ExecRequest) -> Result<Session, RuntimeError> {
        let control = |source: io::Error| RuntimeError::Control { id: self.id().to_owned(), source };
        let file = in_memory(request).map_err(control)?;
        let expected = "running";
        let asked = Request::Exec { terminal: request.terminal.is_some() };
        let answer = self.ask_apart(&asked, &[file.as_fd()], WORK)?;
        let Some((reply, descriptors, connection)) = answer else { return Err(self.unheard(expected)) };
        let pid = match reply {
            Reply::Running { pid } => pid,
            Reply::Failed(source) => return Err(RuntimeError::Exec { id: self.id().to_owned(), source }),
            other => return Err(self.wrong_state(expected, Some(other))?),
        };
        let mut descriptors = descriptors.into_iter();
        let streams = match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (stdin @ Some(_), Some(stdout), Some(stderr)) => Streams::Pipes { stdin, stdout, stderr },
            (Some(master), None, None) => Streams::Terminal(master),
            _ => return Err(control(unexpected(&reply))),
        };
        set_limit(&connection, None).map_err(control)?;
        Ok(Session { pid, streams, container: self.id().to_owned(), connection })
    }
}

impl Container {
    /// Asks the shim by a connection of its own, which comes back with the answer and what was sent along. `None` when there
    /// is no shim any more, also when it ends before it has read the question.
    fn ask_apart(
        &self,
        request: &Request,
        given: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Option<(Reply, Vec<OwnedFd>, OwnedFd)>, RuntimeError> {
        let Some(connection) = self.connect(ANSWER)? else { return Ok(None) };
        let asked = protocol::send_with(&connection, request, given)
            .and_then(|()| set_limit(&connection, Some(limit)))
            .and_then(|()| protocol::receive_with(&connection));
        match asked {
            Ok(received) => Ok(received.map(|(reply, descriptors)| (reply, descriptors, connection))),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(None)
            }
            Err(source) => Err(RuntimeError::Control { id: self.id().to_owned(), source }),
        }
    }
}

/// What a container writes from some moment on. Its log goes on beside it.
#[derive(Debug)]
pub struct Attachment {
    /// What it writes to a terminal, if it has one. Blocks.
    pub stdout: OwnedFd,
    /// `None` with a terminal.
    pub stderr: Option<OwnedFd>,
    /// If the container was created with it. Shared with all who are attached. With a terminal this is its master:
    /// only to be written to, and that does not block.
    pub stdin: Option<OwnedFd>,
    terminal: bool,
    container: String,
    connection: OwnedFd,
}

/// Why there is nothing more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachEnd {
    Exited(ExitStatus),
    /// It was not read in time: 256 KiB of one stream were waiting.
    Lagging,
}

impl Container {
    /// Has a copy of what the container writes from now on. May be called before its start.
    ///
    /// # Errors
    /// `WrongState` when it has ended.
    pub fn attach(&self) -> Result<Attachment, RuntimeError> {
        let control = |source: io::Error| RuntimeError::Control { id: self.id().to_owned(), source };
        let expected = "created or running";
        let answer = self.ask_apart(&Request::Attach, &[], ANSWER)?;
        let Some((reply, descriptors, connection)) = answer else { return Err(self.unheard(expected)) };
        let (terminal, input) = match reply {
            Reply::Attached { terminal, input } => (terminal, input),
            Reply::Failed(source) => return Err(RuntimeError::Attach { id: self.id().to_owned(), source }),
            other => return Err(self.wrong_state(expected, Some(other))?),
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| control(unexpected(&reply)));
        let stdout = next()?;
        let stderr = (!terminal).then(&mut next).transpose()?;
        let stdin = input.then(&mut next).transpose()?;
        set_limit(&connection, None).map_err(control)?;
        Ok(Attachment { stdout, stderr, stdin, terminal, container: self.id().to_owned(), connection })
    }
}

impl Container {
    /// The content of a file in the container, at most `bytes_max` of it, as its first process would find it; `None` if
    /// there is no such file.
    ///
    /// # Errors
    /// `WrongState` when the container does not run.
    pub fn read_file(&self, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, RuntimeError> {
        let Some(pid) = self.init_pid()? else { return Err(self.unheard("running")) };
        let error = |source: io::Error| RuntimeError::File { action: "read", path: path.to_owned(), source };
        let root = format!("/proc/{pid}/root");
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let root = root.map_err(|errno| error(errno.into()))?;
        if self.init_pid()? != Some(pid) {
            return Err(self.unheard("running"));
        }
        // The container may have put anything there, such as a pipe without an end or a way out.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), inside) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => File::from(other.map_err(|errno| error(errno.into()))?),
        };
        if !file.metadata().map_err(error)?.is_file() {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(bytes_max).read_to_end(&mut content).map_err(error)?;
        Ok(Some(content))
    }
}

impl Attachment {
    /// Blocks until there is nothing more to come. To be called once; [`Self::as_fd`] tells when it does not block.
    ///
    /// # Errors
    /// `SessionLost` when the shim was killed.
    pub fn wait(&self) -> Result<AttachEnd, RuntimeError> {
        match last_word(&self.connection, &self.container)? {
            Reply::Exited(status) => Ok(AttachEnd::Exited(status)),
            Reply::Lagging => Ok(AttachEnd::Lagging),
            other => Err(RuntimeError::Control { id: self.container.clone(), source: unexpected(&other) }),
        }
    }

    /// Gives the container's terminal, if it has one, another size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let master = self.stdin.as_ref().filter(|_| self.terminal);
        master.map_or(Ok(()), |master| resize(master, size))
    }
}

/// Readable when there is nothing more to come.
impl AsFd for Attachment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn last_word(connection: &OwnedFd, container: &str) -> Result<Reply, RuntimeError> {
    let id = || container.to_owned();
    let received = protocol::receive(connection);
    received
        .map_err(|source| RuntimeError::Control { id: id(), source })?
        .ok_or_else(|| RuntimeError::SessionLost { id: id() })
}

impl Container {
    /// Why the shim has closed the line without a word, or is not there.
    fn unheard(&self, expected: &'static str) -> RuntimeError {
        let id = self.id().to_owned();
        match self.state() {
            Ok(State { status: Status::Created | Status::Running, .. }) => {
                let why = "it has too many connections, or is of a version that does not know this yet";
                RuntimeError::Control { id, source: io::Error::other(why) }
            }
            Ok(State { status: found, .. }) => RuntimeError::WrongState { id, expected, found },
            Err(error) => error,
        }
    }
}

/// A file that is nowhere, for what may be longer than a message.
fn in_memory(request: &ExecRequest) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("exec", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(request).map_err(io::Error::other)?)?;
    file.rewind()?;
    Ok(file)
}

fn set_limit(connection: &OwnedFd, limit: Option<std::time::Duration>) -> io::Result<()> {
    Ok(sockopt::set_socket_timeout(connection, sockopt::Timeout::Recv, limit)?)
}

impl Session {
    /// Blocks until the process has ended. To be called once; [`Self::as_fd`] tells when it does not block.
    ///
    /// # Errors
    /// `SessionLost` when the shim was killed.
    pub fn wait(&self) -> Result<ProcessEnd, RuntimeError> {
        match last_word(&self.connection, &self.container)? {
            Reply::Ended(end) => Ok(end),
            other => Err(RuntimeError::Control { id: self.container.clone(), source: unexpected(&other) }),
        }
    }

    /// Sends a signal to the process. If it has ended by then, nothing happens.
    ///
    /// # Errors
    /// When the shim is gone.
    pub fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        protocol::send(&self.connection, &Request::Signal { signal })
            .map_err(|source| RuntimeError::Control { id: self.container.clone(), source })
    }

    /// Gives its terminal, if it has one, another size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match &self.streams {
            Streams::Terminal(master) => resize(master, size),
            Streams::Pipes { .. } => Ok(()),
        }
    }
}

/// Readable when the process has ended.
impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn resize(master: &OwnedFd, TerminalSize { columns, rows }: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn a_shim_that_ends_before_it_takes_the_connection_is_gone() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().expect("a place");
            let listener = protocol::listen(directory.path()).expect("a socket");
            let container = Container::new("one".to_owned(), directory.path().into(), None, None);
            let answer = std::thread::scope(|scope| {
                let asking = scope.spawn(|| container.ask_apart(&Request::Attach, &[], ANSWER));
                poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).expect("a connection");
                drop(listener);
                asking.join().expect("no panic")
            });
            assert!(matches!(answer, Ok(None)), "{answer:?}");
        }
    }
}
