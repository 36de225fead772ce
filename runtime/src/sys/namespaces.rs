//! Namespaces beyond the plain clone: siblings, single steps, and the ids of mounts.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Fork, check, ensure_single_threaded};

/// As [`super::clone_single_threaded`], but the new process is a child of the caller's parent.
///
/// # Errors
/// As there.
pub fn clone_sibling(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    ensure_single_threaded()?;
    // SAFETY: all fields of `clone_args` are integers, for which zero is the documented "not used". The exit signal
    // has to be that: a sibling has its maker's.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PARENT as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: as there: the child runs on a copy of this stack, and no second thread holds a lock.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(pid as i32) })
}

/// Makes new namespaces (`CLONE_NEW*`) for this process or, with those of pids and time, for its children.
pub fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: no pointers; affects this process only, which has one thread.
    check(c_long::from(unsafe { libc::unshare(namespaces) })).map(drop)
}

/// Shows the files of a mount (and with `recursive` of those below) with other owners: ids go through the maps of the
/// user namespace `user`. The mount must not be attached yet.
pub fn map_mount_ids(mount: BorrowedFd<'_>, user: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    // SAFETY: zero means "unchanged" for every field.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = libc::MOUNT_ATTR_IDMAP;
    attr.userns_fd = user.as_raw_fd() as u64;
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid C string, `attr` lives until the call returns and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    })
    .map(drop)
}
