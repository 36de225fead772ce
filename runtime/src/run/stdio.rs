//! The standard descriptors of a container's process, as far as the host has a part in them.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Uid;

use super::root;
use crate::error::{Failure, Step};
use crate::sys;

/// Replaces standard descriptors that are the host's `/dev/null` by the container's: through the host's, a program could
/// close that to everybody on the host (`fchmod(2)`). Where the container has none, it has put something else there or
/// removed it, they become a new device. In a user namespace nobody may make one, nor change the host's.
pub(super) fn own_null() -> Result<(), Failure> {
    let device = rustix::fs::makedev(1, 3);
    let is_null = |fd: BorrowedFd<'_>| -> rustix::io::Result<bool> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == device)
    };
    let mut given = Vec::new();
    for number in 0..=2 {
        if is_null(sys::standard(number)).step(|| format!("look at descriptor {number}"))? {
            given.push(number);
        }
    }
    if given.is_empty() {
        return Ok(());
    }
    let step = || "make a `/dev/null` of the container's own".to_owned();
    for number in given {
        // For what the host's was open for. The image may have anything there, such as a pipe without an end.
        let access = rustix::fs::fcntl_getfl(sys::standard(number)).step(step)? & OFlags::RWMODE;
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let there = rustix::fs::open("/dev/null", flags, Mode::empty()).ok();
        let own = match there.filter(|fd| is_null(fd.as_fd()).unwrap_or(false)) {
            Some(own) => own,
            None => match root::new_device(FileType::CharacterDevice, device) {
                Err(Errno::PERM) => return Ok(()),
                made => made.step(step)?,
            },
        };
        match number {
            0 => rustix::stdio::dup2_stdin(&own),
            1 => rustix::stdio::dup2_stdout(&own),
            _ => rustix::stdio::dup2_stderr(&own),
        }
        .step(step)?;
    }
    Ok(())
}

/// Pipes belong to whoever made them; the container's user must be able to open `/dev/stdout`.
pub(super) fn give_to(uid: u32) -> Result<(), Failure> {
    for number in 0..=2 {
        let fd = sys::standard(number);
        let step = || format!("give descriptor {number} to user {uid}");
        let stat = rustix::fs::fstat(fd).step(step)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
                // In a user namespace they belong to nobody one could take them from.
                Err(Errno::PERM) => {}
                other => other.step(step)?,
            }
        }
    }
    Ok(())
}
