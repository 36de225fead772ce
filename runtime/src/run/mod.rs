//! Performs a [`Plan`]: the outside steps here, in the shim; the inside ones in the process that is made on the way.
//!
//! If a step fails, those done before are undone in reverse. Shim and new process talk over a pair of sockets:
//! the process says "ready" or what went wrong, and is told "start". Exec closes its end.

mod inside;
mod root;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::cgroup::Cgroup;
use crate::error::{Failure, Step};
use crate::plan::{Outside, Plan, Undo};
use crate::sys::{self, Fork};

/// The one message to the new process.
const START: u8 = b'S';
/// Messages from it; a failure is followed by its JSON.
const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// A failure's text is short; what does not fit is cut off by the kernel and reported as such.
const MESSAGE_MAX: usize = 8192;

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

/// Creates the container. `meanwhile` is called with pid and cgroup while the new process is busy with itself.
///
/// # Errors
/// What failed, outside or inside; everything done until then was undone.
pub(crate) fn create(
    plan: &Plan,
    stdio: Stdio<'_>,
    meanwhile: impl FnOnce(i32, &Cgroup) -> Result<(), Failure>,
) -> Result<Created, Failure> {
    let mut host = Host { cgroup: Cgroup { members: Vec::new() }, init: None };
    let mut meanwhile = Some(meanwhile);
    for (at, step) in plan.outside.iter().enumerate() {
        if let Err(failure) = host.perform(step, plan, stdio, &mut meanwhile) {
            for done in plan.outside[..=at].iter().rev() {
                host.undo(done.undo());
            }
            return Err(failure);
        }
    }
    let Host { cgroup, init } = host;
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
        send(self.channel.as_fd(), &[START]).step(|| "start the container's process".to_owned())?;
        match receive(self.channel.as_fd())? {
            Message::Closed => Ok(()),
            Message::Failed(failure) => Err(failure),
            Message::Byte(byte) => Err(unexpected(byte)),
        }
    }
}

struct Init {
    pid: i32,
    channel: OwnedFd,
}

/// What the outside steps have made so far.
struct Host {
    cgroup: Cgroup,
    init: Option<Init>,
}

impl Host {
    fn perform(
        &mut self,
        step: &Outside,
        plan: &Plan,
        stdio: Stdio<'_>,
        meanwhile: &mut Option<impl FnOnce(i32, &Cgroup) -> Result<(), Failure>>,
    ) -> Result<(), Failure> {
        match step {
            Outside::MakeCgroup(cgroup) => {
                self.cgroup = cgroup.cgroup.clone();
                cgroup.perform()
            }
            Outside::SpawnInit { namespaces } => {
                self.init = Some(spawn(plan, *namespaces, &self.cgroup, stdio)?);
                Ok(())
            }
            Outside::AwaitReady => {
                let init = self.init()?;
                let meanwhile = meanwhile.take().map_or(Ok(()), |work| work(init.pid, &self.cgroup));
                match receive(init.channel.as_fd())? {
                    Message::Byte(READY) => meanwhile,
                    Message::Byte(byte) => Err(unexpected(byte)),
                    Message::Failed(failure) => Err(failure),
                    Message::Closed => Err(Failure::new("set up the container", self.reason_of_death())),
                }
            }
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
                let _ = self.cgroup.remove();
                self.cgroup.prune_parents();
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

fn spawn(plan: &Plan, namespaces: u64, cgroup: &Cgroup, stdio: Stdio<'_>) -> Result<Init, Failure> {
    let unified = cgroup.unified()?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .step(|| "make a pair of sockets".to_owned())?;
    let fork = sys::clone_single_threaded(namespaces, unified.as_ref().map(AsFd::as_fd))
        .step(|| format!("make a process with new namespaces ({})", names(namespaces)))?;
    match fork {
        Fork::Parent(pid) => Ok(Init { pid, channel: ours }),
        Fork::Child => {
            // Nothing may run up into the shim's code from here, not even a panic.
            let code = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let stdio = [stdio.stdin, stdio.stdout, stdio.stderr];
                sys::keep_only(stdio, theirs.as_fd())
                    .map_or(126, |channel| inside::run(&plan.inside, channel))
            }));
            sys::exit_now(code.unwrap_or(126))
        }
    }
}

fn names(namespaces: u64) -> String {
    let table = [
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWUTS, "uts"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWNET, "net"),
    ];
    let chosen: Vec<&str> =
        table.iter().filter(|(bit, _)| namespaces & *bit as u64 != 0).map(|(_, name)| *name).collect();
    chosen.join(", ")
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
