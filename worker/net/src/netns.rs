//! Entering network namespaces: only ever on a thread made for it, so that no thread of the runtime changes place.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::statfs,
    mount::UnmountFlags,
    thread::{LinkNameSpaceType, UnshareFlags},
};

use crate::error::NetError;

/// Opens a network namespace by the path of its file, such as `/run/netns/x` or `/proc/<pid>/ns/net`.
pub(crate) fn open(path: &Path) -> Result<File, NetError> {
    File::open(path).map_err(|source| NetError::Namespace { path: path.to_owned(), source })
}

/// The path of a process's network namespace.
pub(crate) fn of_process(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Whether a namespace is mounted at `path`, rather than nothing or the file that was left when it went.
pub(crate) fn is_pinned(path: &Path) -> bool {
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    statfs(path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
}

/// Whether `path` leads to the namespace that `open` is.
pub(crate) fn same(open: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    open.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
}

/// Makes an empty network namespace and holds it by a mount at `path`, which must not exist.
pub(crate) fn create_pinned(path: &Path) -> Result<(), NetError> {
    let failed = |source| NetError::Namespace { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    File::create_new(path).map_err(failed)?;
    let mounted = in_new(|| rustix::mount::mount_bind("/proc/thread-self/ns/net", path));
    let mounted = mounted.and_then(|result| result.map_err(|error| failed(error.into())));
    if mounted.is_err() {
        let _ = fs::remove_file(path);
    }
    mounted
}

/// Lets go of a namespace held by a mount; it ends with its last user. Fine if it is gone.
pub(crate) fn remove_pinned(path: &Path) -> Result<(), NetError> {
    let failed = |source| NetError::Namespace { path: path.to_owned(), source };
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Not a mount: the file alone is left.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
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
