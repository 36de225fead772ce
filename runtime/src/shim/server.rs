//! The shim's life after the creation: one `poll` loop, then an orderly end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketFlags;

use super::attached::Attached;
use super::is_readable;
use super::protocol::{self, Reply, Request};
use super::sessions::{Container, Sessions};
use super::streams::Streams;
use crate::cgroup::Cgroup;
use crate::error::Failure;
use crate::log::{Output, Stream};
use crate::run::Created;
use crate::state::{self, EXIT_FILE, ExitStatus, State, Status};
use crate::sys;

/// More connections than a daemon needs; the surplus is closed.
const CLIENTS_MAX: usize = 64;
/// How long the end waits for output that someone outside of the container may still hold open.
const DRAIN: Duration = Duration::from_millis(200);
/// How long the end tries to remove a cgroup whose last processes are on their way out.
const REMOVE: Duration = Duration::from_secs(5);

/// What a shim is made of.
pub(super) struct Parts {
    pub directory: PathBuf,
    pub created: Created,
    pub created_at: i64,
    pub mounts: Option<OwnedFd>,
    pub signals: OwnedFd,
    pub listener: OwnedFd,
    pub streams: Streams,
    pub log: Output,
}

pub(super) struct Server {
    directory: PathBuf,
    pid: i32,
    cgroup: Cgroup,
    created_at: i64,
    started_at: Option<i64>,
    /// Until it is started.
    created: Option<Created>,
    _mounts: Option<OwnedFd>,
    signals: OwnedFd,
    listener: OwnedFd,
    streams: Streams,
    log: Output,
    attached: Attached,
    clients: Vec<Client>,
    sessions: Sessions,
    /// The container is being deleted: nobody will ask for its exit status.
    deleting: bool,
}

struct Client {
    socket: OwnedFd,
    watching: bool,
}

impl Server {
    pub fn new(parts: Parts) -> Self {
        Self {
            directory: parts.directory,
            pid: parts.created.pid,
            cgroup: parts.created.cgroup.clone(),
            created_at: parts.created_at,
            started_at: None,
            created: Some(parts.created),
            _mounts: parts.mounts,
            signals: parts.signals,
            listener: parts.listener,
            streams: parts.streams,
            log: parts.log,
            attached: Attached::default(),
            clients: Vec::new(),
            sessions: Sessions::default(),
            deleting: false,
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn add_client(&mut self, socket: OwnedFd) {
        self.clients.push(Client { socket, watching: false });
    }

    /// Serves until the container has ended and everything about it has been put down.
    pub fn run(mut self) {
        let status = loop {
            self.wait(None);
            if let Some(status) = self.reap() {
                break status;
            }
            self.copy_output();
            self.accept();
            self.serve_clients();
            self.sessions.serve();
            self.attached.serve();
        };
        self.finish(status);
    }

    /// Sleeps until something can be done.
    fn wait(&self, limit: Option<Duration>) {
        let sources = [&self.signals, &self.listener];
        let mut fds: Vec<PollFd<'_>> = sources
            .into_iter()
            .chain(self.streams.outputs.iter().flatten())
            .chain(self.clients.iter().map(|client| &client.socket))
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        self.sessions.watch(&mut fds);
        self.attached.watch(&mut fds);
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        // Interrupted or not: whoever is called next finds out what is ready, as nothing blocks.
        let _ = poll(&mut fds, limit.as_ref());
    }

    /// Waits for ended children; gives the raw status of the container's first process if it is one of them.
    fn reap(&mut self) -> Option<i32> {
        let mut record = [0u8; 128];
        while rustix::io::read(&self.signals, &mut record).is_ok() {}
        let mut found = None;
        while let Some((pid, status)) = sys::reap() {
            if pid == self.pid {
                found = Some(status);
            } else {
                self.sessions.reaped(pid, status);
            }
        }
        found
    }

    /// Moves what the container has written into its log, and shows it. `true` while a stream is open.
    fn copy_output(&mut self) -> bool {
        let mut buffer = [0u8; 16 << 10];
        for (output, stream) in self.streams.outputs.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
            // A container that never stops writing must not keep requests waiting: the next round goes on.
            for _ in 0..16 {
                let Some(fd) = output.as_ref() else { break };
                match rustix::io::read(fd, &mut buffer) {
                    // IO: nobody has the terminal open any more.
                    Ok(0) | Err(rustix::io::Errno::IO) => {
                        *output = None;
                        self.attached.end(stream);
                    }
                    Ok(len) => {
                        self.log.write(stream, &buffer[..len], sys::unix_nanos());
                        self.attached.show(stream, &buffer[..len]);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        self.streams.outputs.iter().any(Option::is_some)
    }

    fn accept(&mut self) {
        while let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            if self.clients.len() < CLIENTS_MAX {
                self.add_client(socket);
            }
        }
    }

    /// Answers every request that has come.
    fn serve_clients(&mut self) {
        let clients = std::mem::take(&mut self.clients);
        self.clients = clients.into_iter().filter_map(|client| self.serve(client)).collect();
        self.clients.shrink_to(4);
    }

    /// `None` when the client has gone, or has become something else than a client.
    fn serve(&mut self, mut client: Client) -> Option<Client> {
        if !is_readable(&client.socket) {
            return Some(client);
        }
        let Ok(Some((request, descriptors))) = protocol::receive_with(&client.socket) else { return None };
        let reply = match request {
            Request::State => Reply::State(self.state()),
            Request::Start => self.start(),
            Request::Kill { signal, all } => self.kill(signal, all),
            Request::Watch => {
                client.watching = true;
                return Some(client);
            }
            Request::Attach => {
                self.attached.add(client.socket, &self.streams);
                return None;
            }
            Request::Exec { terminal } if self.created.is_none() => {
                let container =
                    Container { directory: &self.directory, init: self.pid, cgroup: &self.cgroup };
                self.sessions.start(&container, client.socket, terminal, descriptors.into_iter().next());
                return None;
            }
            Request::Exec { .. } | Request::Signal { .. } => Reply::WrongState(self.state().status),
            Request::Delete => {
                self.deleting = true;
                // Answered by our end.
                let _ = self.kill(libc::SIGKILL, true);
                return Some(client);
            }
        };
        protocol::send(&client.socket, &reply).is_ok().then_some(client)
    }

    fn state(&self) -> State {
        State {
            status: if self.created.is_some() { Status::Created } else { Status::Running },
            pid: Some(self.pid),
            created_at_unix_nanos: self.created_at,
            started_at_unix_nanos: self.started_at,
        }
    }

    fn start(&mut self) -> Reply {
        let Some(created) = self.created.take() else { return Reply::WrongState(self.state().status) };
        match created.start() {
            Ok(()) => {
                self.started_at = Some(sys::unix_nanos());
                Reply::Done
            }
            Err(failure) => Reply::Failed(failure),
        }
    }

    fn kill(&self, signal: i32, all: bool) -> Reply {
        let killed = sys::kill(self.pid, signal);
        let killed = if all { killed.and(self.cgroup.signal_others(signal, self.pid)) } else { killed };
        match killed {
            Ok(()) => Reply::Done,
            Err(error) => {
                let target = if all { "all processes" } else { "the first process" };
                Reply::Failed(Failure {
                    step: format!("send signal {signal} to {target}"),
                    cause: (&error).into(),
                })
            }
        }
    }

    /// The container's first process is gone: see the rest off, and leave a record.
    fn finish(mut self, raw_status: i32) {
        // Without a pid namespace of its own, others may have outlived it.
        let _ = self.cgroup.signal_all(libc::SIGKILL);
        self.sessions.end();
        let deadline = Instant::now() + DRAIN;
        while (self.copy_output() | self.end_sessions()) && Instant::now() < deadline {
            let outputs: Vec<&OwnedFd> = self.streams.outputs.iter().flatten().collect();
            let mut fds: Vec<PollFd<'_>> = outputs.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
            let step = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let _ = poll(&mut fds, Some(&step));
        }
        let finished_at = sys::unix_nanos();
        self.log.finish(finished_at);

        let (code, signal) = sys::decode_wait_status(raw_status);
        let status = ExitStatus {
            code,
            signal,
            oom_killed: self.cgroup.oom_kills() > 0,
            created_at_unix_nanos: self.created_at,
            started_at_unix_nanos: self.started_at,
            finished_at_unix_nanos: finished_at,
        };
        let path = self.directory.join(EXIT_FILE);
        // Readable before anyone is told; safe from a power cut before the shim leaves, but nobody waits for that.
        let _ = state::write_record(&path, &status, false);
        for client in self.clients.iter().filter(|client| client.watching) {
            let _ = protocol::send(&client.socket, &Reply::Exited(status));
        }
        self.attached.dismiss(status);
        let deadline = Instant::now() + REMOVE;
        while self.cgroup.remove().is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.accept();
        self.serve_after_end(status);
        if !self.deleting {
            let _ = state::write_record(&path, &status, true);
        }
    }

    /// Waits for what is left of the sessions; with a pid namespace of its own the container's end was theirs, and they
    /// were told. `true` while there are any.
    fn end_sessions(&mut self) -> bool {
        if !self.sessions.is_empty() {
            self.reap();
        }
        !self.sessions.is_empty()
    }

    /// Answers what came in the meantime. Most of all, a deletion spares the wait for the disk.
    fn serve_after_end(&mut self, status: ExitStatus) {
        for client in &self.clients {
            if !is_readable(&client.socket) {
                continue;
            }
            let reply = match protocol::receive::<Request>(client.socket.as_fd()) {
                Ok(Some(Request::Delete)) => {
                    self.deleting = true;
                    continue;
                }
                Ok(Some(Request::Watch)) => Reply::Exited(status),
                Ok(Some(Request::State)) => {
                    Reply::State(State { status: Status::Exited(status), pid: None, ..self.state() })
                }
                Ok(Some(_)) => Reply::WrongState(Status::Exited(status)),
                Ok(None) | Err(_) => continue,
            };
            let _ = protocol::send(&client.socket, &reply);
        }
    }
}
