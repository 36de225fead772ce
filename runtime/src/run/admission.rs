//! What the creator does for a process that is in another user namespace: ids, limits, the owner of its descriptors.
//!
//! Source: `user_namespaces(7)`, "Defining user and group ID mappings"; `newuidmap(1)`.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::FileType;
use rustix::process::{Gid, Uid};

use super::inside::write_existing;
use crate::error::{Failure, Step};
use crate::plan::{Admission, IdMap, IdMaps, Rlimit, host_id, map_text};
use crate::sys;

/// Does it all for the process `pid`, whose standard descriptors are `stdio`.
///
/// # Errors
/// What the creator has no right to either, by name.
pub(super) fn admit(admission: &Admission, pid: i32, stdio: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    if let Some(maps) = &admission.maps {
        write_maps(pid, maps)?;
    }
    if let Some(adjustment) = admission.oom_score_adj {
        super::inside::oom_score_adj(&PathBuf::from(format!("/proc/{pid}/oom_score_adj")), adjustment)?;
    }
    for Rlimit { name, resource, soft, hard } in &admission.rlimits {
        let step = || format!("set {name} to {soft}:{hard}");
        match sys::set_rlimit_of(pid, *resource, *soft, *hard) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(Failure::new(step(), super::inside::NO_RESOURCE));
            }
            other => other.step(step)?,
        }
    }
    match admission.stdio_owner {
        Some((uid, gid)) => own_pipes(pid, uid, gid, stdio),
        None => Ok(()),
    }
}

/// Pipes belong to whoever made them; the container's user must be able to open `/dev/stdout`.
fn own_pipes(pid: i32, uid: u32, gid: u32, stdio: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    let (Some(uid), Some(gid)) = (outside(pid, "uid_map", uid)?, outside(pid, "gid_map", gid)?) else {
        // Unmapped: becoming that user will fail, and say so.
        return Ok(());
    };
    for fd in stdio {
        let step = || format!("give the standard descriptors to user {uid} of the host");
        let stat = rustix::fs::fstat(fd.as_fd()).step(step)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).step(step)?;
        }
    }
    Ok(())
}

/// Our id for one of the process's.
fn outside(pid: i32, file: &str, id: u32) -> Result<Option<u32>, Failure> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).step(|| format!("read `{path}`"))?;
    let maps: Vec<IdMap> = text
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            let mut next = || numbers.next().flatten();
            Some(IdMap { container: next()?, host: next()?, size: next()? })
        })
        .collect();
    Ok(host_id(&maps, id))
}

/// Gives the user namespace of the process `pid` its ids. Without privileges that takes `newuidmap` and `newgidmap`,
/// unless it is one's own id alone.
///
/// # Errors
/// Names the file or program.
pub(super) fn write_maps(pid: i32, maps: &IdMaps) -> Result<(), Failure> {
    let own = |kind: &str, maps: &[IdMap]| {
        let path = PathBuf::from(format!("/proc/{pid}/{kind}_map"));
        let text = map_text(maps);
        let failure = |error: std::io::Error| -> Result<(), Failure> {
            Err(error).step(|| format!("write `{}` to `{}`", text.trim_end(), path.display()))
        };
        match write_existing(&path, &text) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                if let [IdMap { size: 1, .. }] = maps {
                    if kind == "gid" {
                        // Else one could leave a group that is denied something. See user_namespaces(7).
                        let deny = PathBuf::from(format!("/proc/{pid}/setgroups"));
                        write_existing(&deny, "deny").step(|| format!("write `{}`", deny.display()))?;
                    }
                    return write_existing(&path, &text).or_else(failure);
                }
                by_program(&format!("new{kind}map"), pid, maps)
            }
            other => other.or_else(failure),
        }
    };
    own("uid", &maps.uids)?;
    own("gid", &maps.gids)
}

fn by_program(program: &str, pid: i32, maps: &[IdMap]) -> Result<(), Failure> {
    let step = || format!("map ids with `{program}`, which reads /etc/subuid and /etc/subgid");
    let ids = maps.iter().flat_map(|map| [map.container, map.host, map.size]).map(|id| id.to_string());
    let output =
        Command::new(program).arg(pid.to_string()).args(ids).stdin(Stdio::null()).output().step(step)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(step(), format!("{}: {}", output.status, said.trim())))
}
