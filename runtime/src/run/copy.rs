//! Copies what an image has in a directory onto the tmpfs that is about to cover it (`tmpcopyup`).
//!
//! By descriptor all the way, and no link is followed: what is copied is the image's, and it may hold anything. Owners,
//! modes and times stay; extended attributes are left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// No honest image nests deeper.
const DEPTH_MAX: usize = 200;

/// Copies everything in the directory `from` into the directory `to`.
///
/// # Errors
/// The first entry that cannot be read or written.
pub(super) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    directory(from, to, DEPTH_MAX)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            copy(from.as_fd(), to, name, depth)?;
        }
    }
    Ok(())
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr, depth: usize) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let closed = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        FileType::Directory => {
            let below =
                rustix::fs::openat(from, name, closed | OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let made =
                rustix::fs::openat(to, name, closed | OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            directory(below.as_fd(), made.as_fd(), depth)?;
        }
        FileType::RegularFile => {
            let flags = closed | OFlags::RDONLY | OFlags::NONBLOCK;
            let mut source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
            let flags = closed | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut copy = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            std::io::copy(&mut source, &mut copy)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to, name)?;
        }
        _ => rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
    }
    like(to, name, kind, &stat)
}

/// Owner first: a change of it takes the set-user-id bit away.
fn like(to: BorrowedFd<'_>, name: &OsStr, kind: FileType, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
