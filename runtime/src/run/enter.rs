//! One more process in a container that runs.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Given, Place, await_exec, spawn};
use crate::cgroup::Cgroup;
use crate::error::{Failure, Step};
use crate::plan::Inside;
use crate::sys;

/// Makes a process that performs `steps`, which enter the container of the process `target`, and returns its pid once
/// it runs its program. If `target` has a pid namespace of its own (`own_pids`), the caller can make no processes
/// outside of it afterwards.
///
/// # Errors
/// What failed, here or there; the process is gone then.
pub(crate) fn enter(
    steps: &[Inside],
    target: BorrowedFd<'_>,
    own_pids: bool,
    cgroup: Option<BorrowedFd<'_>>,
    given: Given<'_>,
) -> Result<i32, Failure> {
    let entered = own_pids && enter_pids(steps, target)?;
    let entered = entered.then(|| steps.iter().map(without_user).collect::<Vec<_>>());
    let steps = entered.as_deref().unwrap_or(steps);
    let place = Place { namespaces: 0, birth: None, cgroup };
    let init = spawn(steps, place, given, Some(target))?;
    await_exec(init.channel.as_fd()).inspect_err(|_| {
        let _ = sys::wait_for(init.pid);
    })?;
    Ok(init.pid)
}

/// Has the processes that are made from now on in the pid namespace of `target`. Whoever has no privileges on the host
/// has them in the container's user namespace, and goes there first: `true`.
fn enter_pids(steps: &[Inside], target: BorrowedFd<'_>) -> Result<bool, Failure> {
    const USER: i32 = libc::CLONE_NEWUSER;
    let has_user =
        |step: &Inside| matches!(step, Inside::EnterNamespaces { kinds, .. } if kinds & USER as u64 != 0);
    let step = || "enter the container's pid namespace".to_owned();
    match sys::set_namespace(target, libc::CLONE_NEWPID) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && steps.iter().any(has_user) => {
            sys::set_namespace(target, libc::CLONE_NEWPID | USER).step(step).map(|()| true)
        }
        other => other.step(step).map(|()| false),
    }
}

/// A step of a process that is born in the user namespace it would enter.
fn without_user(step: &Inside) -> Inside {
    match step {
        Inside::EnterNamespaces { kinds, .. } => {
            Inside::EnterNamespaces { kinds: kinds & !(libc::CLONE_NEWUSER as u64), user: true }
        }
        other => other.clone(),
    }
}

/// The v2 cgroup to be born in. One that has controllers handed down takes no processes itself: then that of the
/// container's first process.
pub(crate) fn unified_place(cgroup: &Cgroup, init: i32) -> Result<Option<OwnedFd>, Failure> {
    let Some(own) = cgroup.unified()? else { return Ok(None) };
    let Some(member) = cgroup.unified_member() else { return Ok(Some(own)) };
    let handed = fs::read_to_string(member.directory.join("cgroup.subtree_control")).unwrap_or_default();
    if handed.trim().is_empty() {
        return Ok(Some(own));
    }
    let of_init = format!("/proc/{init}/cgroup");
    let text = fs::read_to_string(&of_init).step(|| format!("read `{of_init}`"))?;
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Ok(Some(own)) };
    let path = member.mount.join(path);
    File::open(&path).step(|| format!("open the cgroup `{}`", path.display())).map(|file| Some(file.into()))
}

/// Those of the container's namespaces that are not ours already: a user namespace cannot be entered twice.
pub(crate) fn joinable(namespaces: u64, init: i32) -> u64 {
    const USER: u64 = libc::CLONE_NEWUSER as u64;
    let identity = |who: &str| -> io::Result<(u64, u64)> {
        let stat = rustix::fs::stat(format!("/proc/{who}/ns/user"))?;
        Ok((stat.st_dev, stat.st_ino))
    };
    let same = match (identity("self"), identity(&init.to_string())) {
        (Ok(own), Ok(theirs)) => own == theirs,
        _ => false,
    };
    if same { namespaces & !USER } else { namespaces }
}
