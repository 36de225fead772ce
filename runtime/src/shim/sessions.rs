//! More processes in the container, for whoever asks over the socket.
//!
//! The shim only makes pipes and a copy of itself. The copy reads configuration and request, enters the container,
//! makes the process there, says its number, and is gone: so the shim neither grows by that nor waits for it, and the
//! process, an orphan by then, is the shim's to wait for.
//!
//! The client has the other ends of the pipes, or the terminal's master: nothing of what is read and written goes
//! through here. As long as the client is there. When it has gone, the process goes on as with Docker, so what it
//! writes has to be taken: for that the shim keeps a copy of each end that is read from.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};

use super::protocol::{self, Reply, Request};
use super::{is_readable, read};
use crate::cgroup::Cgroup;
use crate::error::{Failure, Step};
use crate::plan::{self, HostFacts};
use crate::request::ExecRequest;
use crate::run::{self, Given, Stdio};
use crate::state::{CONFIG_FILE, ProcessEnd};
use crate::sys::{self, Fork};

/// More at once are refused: each one takes descriptors here.
const SESSIONS_MAX: usize = 200;
/// A request is no longer than that: what the kernel takes for arguments and environment, as JSON.
const REQUEST_MAX: u64 = 8 << 20;

/// The container that the processes are for.
pub(super) struct Container<'a> {
    pub directory: &'a Path,
    pub init: i32,
    pub cgroup: &'a Cgroup,
}

#[derive(Default)]
pub(super) struct Sessions(Vec<Session>);

struct Session {
    /// `None` once it has gone.
    client: Option<OwnedFd>,
    process: Process,
    /// Standard output and error, or the terminal's master.
    kept: [Option<OwnedFd>; 2],
}

enum Process {
    /// On its way: who makes it, and where that reports.
    Making {
        maker: i32,
        report: OwnedFd,
        input: Input,
    },
    Running(i32),
}

/// What the client will write to.
enum Input {
    Pipe(OwnedFd),
    /// The terminal's master, which comes over this socket.
    Terminal(OwnedFd),
}

impl Sessions {
    /// Begins a session for `client`, who hears of it later.
    pub fn start(
        &mut self,
        container: &Container<'_>,
        client: OwnedFd,
        terminal: bool,
        request: Option<OwnedFd>,
    ) {
        let begun = match request {
            _ if self.0.len() >= SESSIONS_MAX => {
                Err(Failure::new("run a command", format!("{SESSIONS_MAX} of them run in this container")))
            }
            None => Err(Failure::new("run a command", "the request came without its file")),
            Some(request) => begin(container, terminal, &request),
        };
        match begun {
            Ok((process, kept)) => self.0.push(Session { client: Some(client), process, kept }),
            Err(failure) => drop(protocol::send(&client, &Reply::Failed(failure))),
        }
    }

    pub fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for session in &self.0 {
            let report = match &session.process {
                Process::Making { report, .. } => Some(report),
                Process::Running(_) => None,
            };
            let kept = session.kept.iter().flatten().filter(|_| session.client.is_none());
            let all = report.into_iter().chain(&session.client).chain(kept);
            fds.extend(all.map(|fd| PollFd::new(fd, PollFlags::IN)));
        }
    }

    /// Does whatever can be done.
    pub fn serve(&mut self) {
        self.hear_reports();
        for session in &mut self.0 {
            session.serve_client();
            if session.client.is_none() {
                session.throw_away();
            }
        }
    }

    /// A child of the shim has ended.
    pub fn reaped(&mut self, pid: i32, status: i32) {
        // It may be known from a report only that was not looked at yet.
        self.hear_reports();
        let is_its = |session: &Session| matches!(session.process, Process::Running(own) if own == pid);
        let Some(at) = self.0.iter().position(is_its) else { return };
        let session = self.0.swap_remove(at);
        let (code, signal) = sys::decode_wait_status(status);
        if let Some(client) = &session.client {
            let _ = protocol::send(client, &Reply::Ended(ProcessEnd { code, signal }));
        }
        self.0.shrink_to(4);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The container has ended: nobody comes into it any more.
    pub fn end(&mut self) {
        self.hear_reports();
        self.0.retain(|session| {
            let Process::Making { maker, .. } = session.process else { return true };
            let _ = sys::kill(maker, libc::SIGKILL);
            if let Some(client) = &session.client {
                let _ = protocol::send(client, &Reply::Failed(has_ended()));
            }
            false
        });
    }

    fn hear_reports(&mut self) {
        self.0.retain_mut(|session| match session.hear_report() {
            Ok(()) => true,
            Err(failure) => {
                if let Some(client) = &session.client {
                    let _ = protocol::send(client, &Reply::Failed(failure));
                }
                false
            }
        });
    }
}

impl Session {
    /// If the process runs now, the client hears of it and has its ends of the streams.
    fn hear_report(&mut self) -> Result<(), Failure> {
        let Process::Making { report, .. } = &self.process else { return Ok(()) };
        if !is_readable(report) {
            return Ok(());
        }
        let step = || "run a command".to_owned();
        let made: Option<Result<i32, Failure>> = protocol::receive(report).step(step)?;
        let pid =
            made.unwrap_or_else(|| Err(Failure::new(step(), "it was killed on its way into the container")))?;
        let Process::Making { input, .. } = std::mem::replace(&mut self.process, Process::Running(pid))
        else {
            return Ok(());
        };
        let input = match input {
            Input::Pipe(writer) => Some(writer),
            Input::Terminal(socket) => {
                self.kept[0] = Some(run::receive_master(&socket).step(|| "receive the terminal".to_owned())?);
                None
            }
        };
        let Some(client) = &self.client else { return Ok(()) };
        let ends: Vec<BorrowedFd<'_>> =
            input.iter().chain(self.kept.iter().flatten()).map(AsFd::as_fd).collect();
        if protocol::send_with(client, &Reply::Running { pid }, &ends).is_err() {
            self.part();
        }
        Ok(())
    }

    fn serve_client(&mut self) {
        let Some(client) = self.client.as_ref().filter(|client| is_readable(client)) else { return };
        match (protocol::receive(client), &self.process) {
            (Ok(Some(Request::Signal { signal })), Process::Running(pid)) => drop(sys::kill(*pid, signal)),
            (Ok(Some(_)), _) => {}
            (Ok(None) | Err(_), _) => self.part(),
        }
    }

    /// The client has gone. Nobody else waits for what is in the streams, so that they need not block.
    fn part(&mut self) {
        self.client = None;
        for fd in self.kept.iter().flatten() {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
    }

    fn throw_away(&mut self) {
        let mut buffer = [0u8; 4096];
        for kept in &mut self.kept {
            // A process that never stops writing must not keep others waiting.
            for _ in 0..16 {
                let Some(fd) = kept.as_ref() else { break };
                match rustix::io::read(fd, &mut buffer) {
                    Ok(0) => *kept = None,
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    // EIO: nobody has the terminal open any more.
                    Err(_) => *kept = None,
                }
            }
        }
    }
}

fn has_ended() -> Failure {
    Failure::new("run a command", "the container has ended")
}

/// Makes the streams, and a copy of this process that makes the other one.
fn begin(
    container: &Container<'_>,
    terminal: bool,
    request: &OwnedFd,
) -> Result<(Process, [Option<OwnedFd>; 2]), Failure> {
    let step = || "make the streams of a command".to_owned();
    let pair = |kind| rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (report, theirs) = pair(SocketType::SEQPACKET).step(step)?;
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (input, stdio, console, kept);
    if terminal {
        let (ours, end) = pair(SocketType::STREAM).step(step)?;
        let null = || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        stdio = [null().step(step)?, null().step(step)?, null().step(step)?];
        (input, console, kept) = (Input::Terminal(ours), Some(end), [None, None]);
    } else {
        let (stdin, writer) = pipe().step(step)?;
        let (stdout_reader, stdout) = pipe().step(step)?;
        let (stderr_reader, stderr) = pipe().step(step)?;
        stdio = [stdin, stdout, stderr];
        (input, console, kept) = (Input::Pipe(writer), None, [Some(stdout_reader), Some(stderr_reader)]);
    }
    match sys::fork_single_threaded().step(|| "make a process".to_owned())? {
        Fork::Parent(maker) => Ok((Process::Making { maker, report, input }, kept)),
        Fork::Child => {
            // Nothing may run up into the shim's code from here, not even a panic.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let own = [Some(theirs.as_fd()), Some(request.as_fd()), console.as_ref().map(AsFd::as_fd)];
                let stdio = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
                // What others wait for the end of must not be held open from here.
                let Ok([Some(report), Some(request), console]) = sys::keep_only(stdio, 0, own) else {
                    return;
                };
                let made = make(container, request, console.as_ref().map(AsFd::as_fd));
                let _ = protocol::send(report, &made);
            }));
            sys::exit_now(0)
        }
    }
}

/// Makes the process and gives its pid once it runs its program.
fn make(
    container: &Container<'_>,
    request: OwnedFd,
    console: Option<BorrowedFd<'_>>,
) -> Result<i32, Failure> {
    let init = Pid::from_raw(container.init).ok_or_else(has_ended)?;
    let target = rustix::process::pidfd_open(init, PidfdFlags::empty()).map_err(|_| has_ended())?;
    let mut text = Vec::new();
    let read_request = File::from(request).take(REQUEST_MAX + 1).read_to_end(&mut text);
    read_request.step(|| "read the request".to_owned())?;
    let invalid = |error: String| Failure::new("read the request", error);
    if text.len() as u64 > REQUEST_MAX {
        return Err(invalid(format!("it is longer than {REQUEST_MAX} bytes")));
    }
    let request: ExecRequest = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    let spec: Spec = read(container.directory, CONFIG_FILE)?;
    let planned = plan::process_of(&spec, &request).and_then(|process| {
        let entry = plan::Entry::of(&spec, container.init)?;
        Ok((process, entry))
    });
    let invalid = |error: plan::PlanError| Failure::new("read the command", error.to_string());
    let (process, mut entry) = planned.map_err(invalid)?;
    const PIDS: u64 = libc::CLONE_NEWPID as u64;
    let namespaces = run::joinable(entry.namespaces, container.init);
    entry.namespaces = namespaces & !PIDS;
    entry.cgroup_files = container.cgroup.v1_task_files();
    let id = container.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    entry.keyring = Some(plan::keyring_name(&id));
    if let Some(listener) = &mut entry.listener {
        listener.id = id;
        container.directory.clone_into(&mut listener.bundle);
    }
    let steps = plan::enter(&process, entry, &HostFacts::labels(&process)).map_err(invalid)?;
    let stdio = Stdio { stdin: sys::standard(0), stdout: sys::standard(1), stderr: sys::standard(2) };
    let given = Given { console, ..Given::stdio(stdio) };
    let unified = run::unified_place(container.cgroup, container.init)?;
    run::enter(&steps, target.as_fd(), namespaces & PIDS != 0, unified.as_ref().map(AsFd::as_fd), given)
}
