//! The birth of a process that must be in some namespace before it exists.
//!
//! A process never changes its own pid namespace, and only enters a new time namespace by being born into it; user and
//! mount namespaces are best joined before others are made. An intermediary goes there first and then makes the
//! process, as its sibling: the creator is the parent as usual.
//!
//! Source: `setns(2)`, `clone(2)` (`CLONE_PARENT`), `time_namespaces(7)`.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use super::inside::write_existing;
use super::label;
use crate::error::{Failure, Step};
use crate::plan::{Birth, namespace_name};
use crate::sys::{self, Fork};

/// As [`sys::clone_single_threaded`], after what `birth` says.
///
/// # Errors
/// What failed in the intermediary, by namespace and path.
pub(super) fn make(birth: &Birth, namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Fork, Failure> {
    let step = || "make a process that enters namespaces".to_owned();
    let (mut reader, writer) = std::io::pipe().step(step)?;
    match sys::fork_single_threaded().step(step)? {
        Fork::Parent(intermediary) => {
            drop(writer);
            let mut answer = Vec::new();
            let read = reader.read_to_end(&mut answer).step(step);
            let _ = sys::wait_for(intermediary);
            read?;
            let made: Result<i32, Failure> = serde_json::from_slice(&answer)
                .map_err(|_| Failure::new(step(), "it was killed before it could tell why"))?;
            made.map(Fork::Parent)
        }
        Fork::Child => {
            let made = std::panic::catch_unwind(AssertUnwindSafe(|| {
                go(birth)?;
                sys::clone_sibling(namespaces, cgroup).step(|| "make the container's process".to_owned())
            }));
            let answer = match made {
                // The container's process, which goes its own way.
                Ok(Ok(Fork::Child)) => return Ok(Fork::Child),
                Ok(Ok(Fork::Parent(pid))) => Ok(pid),
                Ok(Err(failure)) => Err(failure),
                Err(_) => sys::exit_now(70),
            };
            let bytes = serde_json::to_vec::<Result<i32, Failure>>(&answer).unwrap_or_default();
            let mut writer = writer;
            let _ = writer.write_all(&bytes);
            sys::exit_now(0)
        }
    }
}

fn go(birth: &Birth) -> Result<(), Failure> {
    birth.labels.iter().try_for_each(label::take)?;
    if let Some(offsets) = &birth.time {
        sys::unshare(libc::CLONE_NEWTIME).step(|| "make a time namespace".to_owned())?;
        if !offsets.is_empty() {
            write_existing(Path::new("/proc/self/timens_offsets"), offsets)
                .step(|| format!("set `linux.timeOffsets` to `{}`", offsets.trim_end()))?;
        }
    }
    join(&birth.join)
}

/// Enters all of them. Whoever may enter a namespace with the privileges it has keeps these until the end; the others
/// are those of the user namespace, and open to its root. The mount namespace comes last of each, for it changes what
/// paths mean; so all are opened before.
fn join(namespaces: &[(i32, PathBuf)]) -> Result<(), Failure> {
    let mut rest = namespaces
        .iter()
        .map(|(kind, path)| {
            let file =
                std::fs::File::open(path).step(|| format!("open the namespace `{}`", path.display()))?;
            Ok((*kind, path.as_path(), OwnedFd::from(file)))
        })
        .collect::<Result<Vec<(i32, &Path, OwnedFd)>, Failure>>()?;
    rest.sort_by_key(|(kind, ..)| *kind == libc::CLONE_NEWNS);
    let step =
        |kind: i32, path: &Path| format!("join the {} namespace `{}`", namespace_name(kind), path.display());
    let user = rest.iter().position(|(kind, ..)| *kind == libc::CLONE_NEWUSER);
    if let Some(user) = user.map(|at| rest.remove(at)) {
        let mut later = Vec::new();
        for (kind, path, fd) in rest {
            match sys::set_namespace(fd.as_fd(), kind) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => later.push((kind, path, fd)),
                other => other.step(|| step(kind, path))?,
            }
        }
        let (kind, path, fd) = user;
        sys::set_namespace(fd.as_fd(), kind).step(|| step(kind, path))?;
        rest = later;
    }
    rest.iter()
        .try_for_each(|(kind, path, fd)| sys::set_namespace(fd.as_fd(), *kind).step(|| step(*kind, path)))
}
