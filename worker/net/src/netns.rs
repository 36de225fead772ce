//! Entering network namespaces: only ever on a thread made for it, so that no thread of the runtime changes place.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::NetError;

/// Opens a network namespace by the path of its file, such as `/run/netns/x` or `/proc/<pid>/ns/net`.
pub(crate) fn open(path: &Path) -> Result<File, NetError> {
    File::open(path).map_err(|source| NetError::Namespace { path: path.to_owned(), source })
}

/// The path of a process's network namespace.
pub(crate) fn of_process(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Runs `f` on a fresh thread inside the network namespace at `path`; mounts, cgroups and all else stay the caller's.
///
/// Sockets opened there stay there, wherever they are used later. `/proc/sys/net` shows that namespace too.
///
/// # Errors
/// `Namespace` when it cannot be opened or entered (the latter needs CAP_SYS_ADMIN).
///
/// # Panics
/// When `f` does.
pub fn run_in_netns<T: Send>(path: &Path, f: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    let file = open(path)?;
    within(file.as_fd(), path, f)
}

/// As [`run_in_netns`], for a namespace already open; `path` is for the error.
pub(crate) fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    path: &Path,
    f: impl FnOnce() -> T + Send,
) -> Result<T, NetError> {
    on_fresh_thread(|| {
        rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
            .map_err(|error| NetError::Namespace { path: path.to_owned(), source: error.into() })?;
        Ok(f())
    })
}

/// Runs `f` on a fresh thread inside a new, empty network namespace, which ends with `f` unless `f` keeps it open.
pub(crate) fn in_new<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    on_fresh_thread(|| {
        // SAFETY: only the network namespace of this thread is unshared; no file descriptor table, no file system
        // attributes, on which other code might rely, change hands.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|error| NetError::Namespace { path: "(new)".into(), source: error.into() })?;
        Ok(f())
    })
}

fn on_fresh_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
