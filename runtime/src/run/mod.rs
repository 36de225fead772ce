//! Performs a [`Plan`]: the outside steps here, in the shim; the inside ones in the process that is made on the way.
//!
//! If a step fails, those done before are undone in reverse. Creator and new process talk over a pair of sockets:
//! the process says "ready" or what went wrong, and is told "start". Exec closes its end. Where the creator does not
//! stay, "start" comes by a connection to a listening socket that the process has inherited; it listens there once the
//! creator has said that the container is recorded, and ends with one that does not come to that.
//!
//! [`enter()`] makes one more process in a container that runs.

mod admission;
mod birth;
mod copy;
mod enter;
mod host;
mod inside;
mod label;
mod listener;
mod root;
mod sources;
mod stdio;
mod terminal;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::cgroup::Cgroup;
use crate::error::{Failure, Step};
use crate::hooks;
use crate::plan::{Birth, Inside, Outside, Plan, Undo, namespace_name};
use crate::sys::{self, Fork};

pub(crate) use enter::{enter, joinable, unified_place};
pub(crate) use terminal::receive_master;

/// Messages to the new process.
const START: u8 = b'S';
const HOOKS_DONE: u8 = b'D';
/// The creator has done its part, and leaves: the process may wait for whoever comes with "start".
const RECORDED: u8 = b'W';
/// Messages from it; a failure is followed by its JSON.
const HOOKS: u8 = b'H';
const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// A failure's text is short; what does not fit is cut off by the kernel and reported as such.
const MESSAGE_MAX: usize = 8192;
/// How long the last processes of a container that failed may take to leave its cgroup.
const CGROUP_END: Duration = Duration::from_secs(2);

/// A container whose first process waits to be started.
#[derive(Debug)]
pub(crate) struct Created {
    pub pid: i32,
    pub cgroup: Cgroup,
    channel: OwnedFd,
}

/// Standard descriptors of the new process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stdio<'a> {
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
}

/// What a new process is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    pub stdio: Stdio<'a>,
    /// How many descriptors from 3 on it has in common with its creator, and keeps.
    pub preserved: u32,
    /// Where it listens for the word to start; without, the word comes from its creator.
    pub start: Option<BorrowedFd<'a>>,
    /// Where it sends the master of its terminal.
    pub console: Option<BorrowedFd<'a>>,
    /// That terminal leaves the ends of lines as they are written.
    pub keeps_lines: bool,
}

impl<'a> Given<'a> {
    pub fn stdio(stdio: Stdio<'a>) -> Self {
        Self { stdio, preserved: 0, start: None, console: None, keeps_lines: false }
    }
}

/// Creates the container. `meanwhile` is called with pid and cgroup while the new process is busy with itself.
///
/// # Errors
/// What failed, outside or inside; everything done until then was undone.
pub(crate) fn create(
    plan: &Plan,
    given: Given<'_>,
    meanwhile: impl FnOnce(i32, &Cgroup) -> Result<(), Failure>,
) -> Result<Created, Failure> {
    let mut host =
        Host { cgroup: Cgroup::nowhere(), made: Vec::new(), sources: Vec::new(), init: None, paused: false };
    let mut meanwhile = Some(meanwhile);
    for (at, step) in plan.outside.iter().enumerate() {
        if let Err(failure) = host.perform(step, plan, given, &mut meanwhile) {
            for done in plan.outside[..=at].iter().rev() {
                host.undo(done.undo());
            }
            return Err(failure);
        }
    }
    let Host { cgroup, init, .. } = host;
    let Some(Init { pid, channel }) = init else {
        return Err(Failure::new("create the container", "the plan makes no process"));
    };
    Ok(Created { pid, cgroup, channel })
}

impl Created {
    /// Lets the process run its program.
    ///
    /// # Errors
    /// When exec failed; the process is gone then.
    pub fn start(self) -> Result<(), Failure> {
        start(self.channel.as_fd())
    }
}

/// Lets the process at the other end run its program.
///
/// # Errors
/// When exec, or a hook before it, failed; the process is gone then.
pub(crate) fn start(channel: BorrowedFd<'_>) -> Result<(), Failure> {
    send(channel, &[START]).step(|| "start the container's process".to_owned())?;
    await_exec(channel)
}

fn await_exec(channel: BorrowedFd<'_>) -> Result<(), Failure> {
    match receive(channel)? {
        Message::Closed => Ok(()),
        Message::Failed(failure) => Err(failure),
        Message::Byte(byte) => Err(unexpected(byte)),
    }
}

struct Init {
    pid: i32,
    channel: OwnedFd,
}

/// What the outside steps have made so far.
struct Host {
    cgroup: Cgroup,
    /// Directories above the cgroup that were made for it, deepest first.
    made: Vec<PathBuf>,
    /// Opened for the new process, until it has them.
    sources: Vec<OwnedFd>,
    init: Option<Init>,
    /// The process waits for the end of the hooks.
    paused: bool,
}

impl Host {
    fn perform(
        &mut self,
        step: &Outside,
        plan: &Plan,
        given: Given<'_>,
        meanwhile: &mut Option<impl FnOnce(i32, &Cgroup) -> Result<(), Failure>>,
    ) -> Result<(), Failure> {
        match step {
            Outside::MakeCgroup(cgroup) => {
                let first = self.init.as_ref().map(|init| init.pid);
                // Another's is not ours to take back.
                cgroup.claim(first)?;
                self.cgroup = cgroup.cgroup.clone();
                self.made = self.cgroup.missing_parents();
                cgroup.perform(first)
            }
            Outside::OpenSources(sources) => {
                self.sources = sources::open_all(sources)?;
                Ok(())
            }
            Outside::SpawnInit { namespaces, birth } => {
                let unified = self.cgroup.unified()?;
                let place = Place {
                    namespaces: *namespaces,
                    birth: birth.as_ref(),
                    cgroup: unified.as_ref().map(AsFd::as_fd),
                };
                self.init = Some(spawn(&plan.inside, place, given, None)?);
                Ok(())
            }
            Outside::Admit(admission) => {
                let init = self.init()?;
                let Stdio { stdin, stdout, stderr } = given.stdio;
                admission::admit(admission, init.pid, [stdin, stdout, stderr])?;
                sources::send(init.channel.as_fd(), &self.sources)?;
                self.sources.clear();
                Ok(())
            }
            Outside::RunHooks(hooks) => {
                let init = self.init()?;
                let pid = init.pid;
                let meanwhile = meanwhile.take().map_or(Ok(()), |work| work(pid, &self.cgroup));
                if !self.paused {
                    self.await_byte(HOOKS)?;
                    self.paused = true;
                }
                meanwhile?;
                hooks::run(hooks, Some(pid), Some(&hooks.state.bundle))
            }
            Outside::AwaitReady => {
                let init = self.init()?;
                if self.paused {
                    send(init.channel.as_fd(), &[HOOKS_DONE])
                        .step(|| "let the container go on".to_owned())?;
                }
                let meanwhile = meanwhile.take().map_or(Ok(()), |work| work(init.pid, &self.cgroup));
                self.await_byte(READY)?;
                meanwhile?;
                if given.start.is_some() {
                    let init = self.init()?;
                    send(init.channel.as_fd(), &[RECORDED])
                        .step(|| "let the container wait for its start".to_owned())?;
                }
                Ok(())
            }
        }
    }

    fn await_byte(&self, expected: u8) -> Result<(), Failure> {
        match receive(self.init()?.channel.as_fd())? {
            Message::Byte(byte) if byte == expected => Ok(()),
            Message::Byte(byte) => Err(unexpected(byte)),
            Message::Failed(failure) => Err(failure),
            Message::Closed => Err(Failure::new("set up the container", self.reason_of_death())),
        }
    }

    fn init(&self) -> Result<&Init, Failure> {
        self.init.as_ref().ok_or_else(|| Failure::new("create the container", "its process was not made yet"))
    }

    /// Why the process vanished without a word.
    fn reason_of_death(&self) -> String {
        let killed =
            if self.cgroup.oom_kills() > 0 { ", its memory limit is too low to set it up" } else { "" };
        format!("its first process was killed{killed}")
    }

    /// Takes a step back as far as possible: the failure that led here is the one worth reporting.
    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::RemoveCgroup => {
                // Where the cgroup came second it goes first, but not from under a process.
                self.undo(Undo::KillInit);
                let _ = self.cgroup.remove_soon(CGROUP_END);
                for directory in self.made.drain(..) {
                    let _ = std::fs::remove_dir(directory);
                }
            }
            Undo::KillInit => {
                if let Some(init) = self.init.take() {
                    let _ = sys::kill(init.pid, libc::SIGKILL);
                    let _ = sys::wait_for(init.pid);
                }
            }
        }
    }
}

/// Where a process is made.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// New ones: `CLONE_NEW*`.
    namespaces: u64,
    /// What comes before.
    birth: Option<&'a Birth>,
    /// On v2.
    cgroup: Option<BorrowedFd<'a>>,
}

fn spawn(
    steps: &[Inside],
    place: Place<'_>,
    given: Given<'_>,
    target: Option<BorrowedFd<'_>>,
) -> Result<Init, Failure> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .step(|| "make a pair of sockets".to_owned())?;
    let Place { namespaces, birth, cgroup } = place;
    let fork = match birth {
        Some(birth) => birth::make(birth, namespaces, cgroup)?,
        None => sys::clone_single_threaded(namespaces, cgroup)
            .step(|| format!("make a process with new namespaces ({})", names(namespaces)))?,
    };
    match fork {
        Fork::Parent(pid) => Ok(Init { pid, channel: ours }),
        Fork::Child => {
            // Nothing may run up into the creator's code from here, not even a panic.
            let code = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let Stdio { stdin, stdout, stderr } = given.stdio;
                let own = [Some(theirs.as_fd()), given.start, given.console, target];
                sys::keep_only([stdin, stdout, stderr], given.preserved, own).map_or(126, |own| {
                    let [Some(channel), start, console, target] = own else { return 126 };
                    let lines =
                        inside::Lines { channel, start, console, keeps_lines: given.keeps_lines, target };
                    inside::run(steps, lines, given.preserved)
                })
            }));
            sys::exit_now(code.unwrap_or(126))
        }
    }
}

fn names(namespaces: u64) -> String {
    let all = (0..32).map(|bit| 1i32 << bit).filter(|kind| namespaces & *kind as u64 & 0xffff_ffff != 0);
    all.map(namespace_name).collect::<Vec<_>>().join(", ")
}

enum Message {
    Byte(u8),
    Failed(Failure),
    Closed,
}

fn send(channel: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<()> {
    rustix::net::send(channel, bytes, SendFlags::NOSIGNAL).map(drop)
}

fn receive(channel: BorrowedFd<'_>) -> Result<Message, Failure> {
    let mut buffer = [0u8; MESSAGE_MAX];
    let len = loop {
        match rustix::net::recv(channel, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => break len,
            // CONNRESET: the other end died with something of ours unread. That is said once; its last word, or the
            // end, comes with the next call.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error).step(|| "read from the container's process".to_owned()),
        }
    };
    Ok(match &buffer[..len] {
        [] => Message::Closed,
        [FAILED, json @ ..] => Message::Failed(
            serde_json::from_slice(json)
                .unwrap_or_else(|_| Failure::new("set up the container", String::from_utf8_lossy(json))),
        ),
        [byte, ..] => Message::Byte(*byte),
    })
}

fn unexpected(byte: u8) -> Failure {
    Failure::new("talk to the container's process", format!("unexpected message {byte:#x}"))
}
