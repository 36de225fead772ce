//! One resolver per run root: who holds the lock on `resolver.pid` is it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The name of the file in the run root. It holds the process id, in decimal.
pub const FILE_NAME: &str = "resolver.pid";
/// How long the one before may take to end.
const TAKE_OVER: Duration = Duration::from_secs(5);
/// How long it may take to end by itself: it has nothing to do but to answer what it has received.
const GRACE: Duration = Duration::from_secs(2);
/// How long the kernel may take to end it.
const KILL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("failed to lock `{path}`")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to write the process id to `{path}`")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to end the resolver with process id {pid}")]
    End {
        pid: i32,
        #[source]
        source: io::Error,
    },
    #[error("expected the resolver before this one to end within {TAKE_OVER:?}; end the holder of `{path}`")]
    StillThere { path: PathBuf },
}

/// The right to be the resolver of a run root; given back by the end of the process, however it ends.
#[derive(Debug)]
pub struct Instance {
    _lock: File,
}

/// What there is in a run root.
#[derive(Debug)]
pub enum Claim {
    Ours(Instance),
    /// Somebody else's; the process id, if it is written already.
    Taken(Option<i32>),
}

/// Becomes the resolver of the run root, if there is none.
pub fn claim(run_root: &Path) -> Result<Claim, InstanceError> {
    let path = run_root.join(FILE_NAME);
    let lock = |source| InstanceError::Lock { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(lock)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let mut write = || {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())
            };
            write().map_err(|source| InstanceError::Write { path: path.clone(), source })?;
            Ok(Claim::Ours(Instance { _lock: file }))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(lock)?;
            Ok(Claim::Taken(text.trim().parse().ok()))
        }
        Err(error) => Err(lock(error.into())),
    }
}

/// Asks the resolver of the run root to end, and becomes it.
pub fn take_over(run_root: &Path) -> Result<Instance, InstanceError> {
    let deadline = Instant::now() + TAKE_OVER;
    loop {
        let pid = match claim(run_root)? {
            Claim::Ours(instance) => return Ok(instance),
            Claim::Taken(pid) => pid,
        };
        if Instant::now() >= deadline {
            return Err(InstanceError::StillThere { path: run_root.join(FILE_NAME) });
        }
        if let Some(pid) = pid {
            end(run_root, pid).map_err(|source| InstanceError::End { pid, source })?;
        }
    }
}

/// Whether the run root has a resolver: the kernel lets go of the lock for it however it ends.
pub fn runs(run_root: &Path) -> bool {
    File::open(run_root.join(FILE_NAME)).is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// The process id of the resolver of the run root, if there is one and it has written it.
pub fn holder(run_root: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(run_root.join(FILE_NAME)).ok()?;
    text.trim().parse().ok().filter(|_| runs(run_root))
}

/// Ends the resolver of the run root, if there is one.
///
/// # Errors
/// `End`.
pub fn stop(run_root: &Path) -> Result<(), InstanceError> {
    match holder(run_root) {
        Some(pid) => end(run_root, pid).map_err(|source| InstanceError::End { pid, source }),
        None => Ok(()),
    }
}

/// Asks the process to end, makes it if it hangs, and waits until it has, or time is up.
fn end(run_root: &Path, pid: i32) -> io::Result<()> {
    let Some(id) = Pid::from_raw(pid).filter(|_| pid > 0) else { return Ok(()) };
    let process = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The descriptor names one process for good. It is the right one if the lock is still held under that number.
    match claim(run_root) {
        Ok(Claim::Taken(Some(holder))) if holder == pid => {}
        _ => return Ok(()),
    }
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, KILL)] {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => break,
            Err(error) => return Err(error.into()),
        }
        let wait = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
