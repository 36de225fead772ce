//! The terminal on this side: where its master is sent, and staying with it in the foreground.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::termios::{OptionalActions, OutputModes, Termios};

use super::error::{CommandError, During, OnFile};
use super::notify::Notify;
use super::report::Log;
use crate::run::receive_master;
use crate::sys;

/// How long the end waits for output that is still on its way, if somebody keeps the terminal open; else its end is seen.
const DRAIN: Duration = Duration::from_secs(1);

/// Where the master of a new terminal goes.
pub(super) enum Console {
    /// There is no terminal.
    None,
    /// To the socket of whoever attends it.
    Theirs(OwnedFd),
    /// To us, over a pair of sockets: the process's end and ours.
    Ours(OwnedFd, OwnedFd),
}

impl Console {
    /// For a process with or without a `terminal`, that is left alone or stayed with (`foreground`).
    pub fn open(terminal: bool, socket: Option<&str>, foreground: bool) -> Result<Self, CommandError> {
        match (terminal, socket) {
            (false, None) => Ok(Self::None),
            (false, Some(_)) => {
                Err(CommandError::Terminal { expected: "process.terminal (--tty) beside --console-socket" })
            }
            (true, None) if foreground => {
                let kind = SocketType::STREAM;
                let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
                let (theirs, ours) = pair.during("make a pair of sockets")?;
                Ok(Self::Ours(theirs, ours))
            }
            (true, None) => {
                Err(CommandError::Terminal { expected: "--console-socket when nobody stays with it" })
            }
            (true, Some(_)) if foreground => {
                Err(CommandError::Terminal { expected: "--detach beside --console-socket" })
            }
            (true, Some(path)) => {
                let socket =
                    UnixStream::connect(path).on("connect to the console socket", Path::new(path))?;
                Ok(Self::Theirs(socket.into()))
            }
        }
    }

    /// The end that the process is given.
    pub fn end(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::None => None,
            Self::Theirs(socket) | Self::Ours(socket, _) => Some(socket.as_fd()),
        }
    }

    /// What is written to it is shown by ours, or goes to a file: either way no `\r` has to come before a `\n`. As with runc.
    pub fn keeps_lines(&self) -> bool {
        matches!(self, Self::Ours(..))
    }

    /// The terminal's master, where it was sent to us.
    pub fn master(self) -> Result<Option<OwnedFd>, CommandError> {
        let Self::Ours(theirs, ours) = self else { return Ok(None) };
        drop(theirs);
        receive_master(&ours).during("receive the terminal").map(Some)
    }
}

/// Signals that are passed on to the process we stay with, and those that are for us. To be called before it is made.
pub(super) fn watch_signals() -> Result<OwnedFd, CommandError> {
    let all: Vec<i32> = (1..=64).collect();
    sys::block_signals_into_fd(&all).during("watch for signals")
}

/// Stays with our child `pid` until it ends: passes signals on, and copies between our terminal and its own (`master`).
/// Meanwhile whoever is to be notified hears when it is ready, and that we are the process to watch.
/// Gives its exit code, 128 and the signal's number if it was killed.
pub(super) fn attend(
    pid: i32,
    signals: &OwnedFd,
    master: Option<OwnedFd>,
    mut notify: Option<(Notify, &Log)>,
) -> Result<i32, CommandError> {
    let mut terminal = master.map(Terminal::new).transpose().during("prepare the terminal")?;
    loop {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        if let Some(terminal) = &terminal {
            terminal.watch(&mut fds);
        }
        fds.extend(notify.iter().map(|(notify, _)| PollFd::from_borrowed_fd(notify.fd(), PollFlags::IN)));
        // Interrupted or not: whoever is called next finds out what is ready.
        let _ = poll(&mut fds, None);
        drop(fds);
        notify.take_if(|(notify, log)| notify.pass_on(std::process::id() as i32, log));
        let code = take_signals(pid, signals, terminal.as_ref());
        if let Some(terminal) = &mut terminal {
            terminal.copy();
        }
        if let Some(code) = code {
            if let Some(mut terminal) = terminal {
                terminal.drain();
            }
            return Ok(code);
        }
    }
}

/// Deals with the signals that have come. The exit code, if our child has ended.
fn take_signals(pid: i32, signals: &OwnedFd, terminal: Option<&Terminal>) -> Option<i32> {
    // `struct signalfd_siginfo`, which begins with the signal's number.
    let mut record = [0u8; 128];
    let mut code = None;
    while rustix::io::read(signals, &mut record).is_ok_and(|len| len == record.len()) {
        let signal = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        match (signal, terminal) {
            (libc::SIGCHLD, _) => {
                while let Some((found, status)) = sys::reap() {
                    if found == pid {
                        let (exit, signal) = sys::decode_wait_status(status);
                        code = Some(exit.unwrap_or_else(|| 128 + signal.unwrap_or(0)));
                    }
                }
            }
            (libc::SIGWINCH, Some(terminal)) => terminal.copy_size(),
            (libc::SIGPIPE | libc::SIGURG, _) => {}
            // Once it has been waited for, its number may be another's.
            _ if code.is_some() => {}
            _ => {
                // If it has just ended, that is the next thing we hear.
                let _ = sys::kill(pid, signal);
            }
        }
    }
    code
}

/// Copies between our standard descriptors and the master of a terminal. Ours is raw meanwhile, if it is a terminal.
struct Terminal {
    master: OwnedFd,
    /// How ours was.
    before: Option<Termios>,
    has_input: bool,
    /// Input that the master has not taken yet.
    pending: Vec<u8>,
    has_output: bool,
}

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let before = rustix::termios::tcgetattr(sys::standard(0)).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // As with runc: what comes is what the program wrote, and ours ends its lines.
            raw.output_modes.insert(OutputModes::OPOST);
            rustix::termios::tcsetattr(sys::standard(0), OptionalActions::Drain, &raw)?;
        }
        let terminal = Self { master, before, has_input: true, pending: Vec::new(), has_output: true };
        terminal.copy_size();
        Ok(terminal)
    }

    fn copy_size(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(sys::standard(0)) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let writing = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let reading = if self.has_output { PollFlags::IN } else { PollFlags::empty() };
        // A master that has hung up would be ready for ever.
        if self.has_output {
            fds.push(PollFd::new(&self.master, writing | reading));
        }
        if self.has_input && self.pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(sys::standard(0), PollFlags::IN));
        }
    }

    fn copy(&mut self) {
        // A program that never stops writing must not keep signals waiting.
        for _ in 0..16 {
            if !self.copy_output() {
                break;
            }
        }
        if self.pending.is_empty() && self.has_input && is_readable(sys::standard(0)) {
            let mut buffer = [0u8; 4096];
            match rustix::io::read(sys::standard(0), &mut buffer) {
                Ok(0) => self.has_input = false,
                Ok(len) => self.pending.extend_from_slice(&buffer[..len]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => self.has_input = false,
            }
        }
        if !self.pending.is_empty()
            && let Ok(len) = rustix::io::write(&self.master, &self.pending)
        {
            self.pending.drain(..len);
        }
    }

    /// `true` when there may be more.
    fn copy_output(&mut self) -> bool {
        let mut buffer = [0u8; 4096];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(0) => self.has_output = false,
            Ok(len) => {
                let mut rest = &buffer[..len];
                while let Ok(len @ 1..) = rustix::io::write(sys::standard(1), rest) {
                    rest = &rest[len..];
                }
                return true;
            }
            Err(rustix::io::Errno::INTR) => return true,
            Err(rustix::io::Errno::AGAIN) => {}
            // EIO: nobody has the other end open any more.
            Err(_) => self.has_output = false,
        }
        false
    }

    /// The rest of the output. Others may have the terminal open for as long as they like.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while self.has_output && Instant::now() < deadline {
            if !self.copy_output() && self.has_output {
                let step = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let _ = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&step));
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(sys::standard(0), OptionalActions::Drain, before);
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}
