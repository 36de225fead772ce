//! Containers of a data root that was here before this one: its files were deleted or moved away while they ran, so no
//! ledger knows them and nobody will ever end them.
//!
//! One that may be another daemon's is left alone. A stray's shim was started for a container of this very directory,
//! which only this daemon may use now, in this daemon's network, whose links and rules are this daemon's alone; and its
//! files are gone, or lie in a data root on which no daemon runs.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rswarm_runtime::cgroup::{Cgroup, Layout};
use rswarm_types::TaskId;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long killed processes may take to be gone. Only one that hangs in the kernel gets near it.
const END: Duration = Duration::from_secs(10);
/// Where each daemon keeps others off its data root.
const LOCK: &str = "lock";

/// A shim whose container nobody knows.
struct Stray {
    shim: Pid,
    task: TaskId,
}

/// Ends what a data root before this one has left running; returns the tasks.
pub(super) fn end(containers: &Path, shim_args: &[std::ffi::OsString]) -> Vec<TaskId> {
    let strays = find(containers, shim_args);
    for stray in &strays {
        match stray.end(containers, shim_args) {
            Ok(()) => tracing::warn!(
                task = %stray.task,
                "ended a container of a data root that was here before: its files are gone"
            ),
            Err(error) => tracing::error!(
                task = %stray.task, shim = stray.shim.as_raw_nonzero(), %error,
                "a container of a data root that was here before could not be ended"
            ),
        }
    }
    strays.into_iter().map(|stray| stray.task).collect()
}

fn find(containers: &Path, shim_args: &[std::ffi::OsString]) -> Vec<Stray> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter_map(|shim| {
        let task = task_of(shim, containers, shim_args)?;
        let directory = containers.join(task.to_string());
        let lost = !directory.exists() && is_neighbour(shim) && is_nobodys(shim, &directory);
        lost.then_some(Stray { shim, task })
    })
    .collect()
}

fn proc(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", pid.as_raw_nonzero()))
}

/// The task whose container's shim a process is, if it was started for one in `containers`.
fn task_of(pid: Pid, containers: &Path, shim_args: &[std::ffi::OsString]) -> Option<TaskId> {
    use std::os::unix::ffi::OsStrExt as _;
    let line = fs::read(proc(pid, "cmdline")).ok()?;
    let mut words = line.strip_suffix(&[0]).unwrap_or(&line).split(|byte| *byte == 0).skip(1);
    shim_args.iter().all(|arg| words.next() == Some(arg.as_bytes())).then_some(())?;
    let directory = Path::new(std::ffi::OsStr::from_bytes(words.next()?));
    (directory.parent() == Some(containers)).then_some(())?;
    directory.file_name()?.to_str()?.parse().ok()
}

/// Whether a process has the root directory and the network of this one.
fn is_neighbour(pid: Pid) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    ["root", "ns/net"].iter().all(|name| {
        let own = identity(&Path::new("/proc/thread-self").join(name));
        own.is_some() && own == identity(&proc(pid, name))
    })
}

/// Whether the files that a shim holds open for its container are deleted, or in a data root that no daemon uses.
fn is_nobodys(shim: Pid, directory: &Path) -> bool {
    let entries = fs::read_dir(proc(shim, "fd")).into_iter().flatten().flatten();
    let mut files = entries.filter_map(|entry| {
        let file = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file)?;
        Some((file.nlink() == 0, fs::read_link(entry.path()).ok()?))
    });
    files.any(|(deleted, path)| {
        // `<data root>/containers/<task>/<log>`, under whatever name that root has now.
        let home = path.parent().filter(|parent| parent.file_name() == directory.file_name());
        let root = home.and_then(|home| home.parent()?.parent());
        root.is_some_and(|root| deleted || !is_used(root))
    })
}

/// Whether a daemon holds the lock of a data root.
fn is_used(root: &Path) -> bool {
    match File::open(root.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

impl Stray {
    /// Kills the container and its shim and removes their cgroups.
    fn end(&self, containers: &Path, shim_args: &[std::ffi::OsString]) -> std::io::Result<()> {
        let shim = pidfd_open(self.shim, PidfdFlags::empty())?;
        if task_of(self.shim, containers, shim_args) != Some(self.task) {
            return Ok(());
        }
        let cgroup = cgroup_path(self.shim, &self.task.to_string());
        let cgroup = match cgroup {
            Some(path) => Some(Cgroup::at(&Layout::detect()?, &path)),
            None => None,
        };
        // While its parent lives, no number of a child can become another process's.
        for child in children(self.shim) {
            let _ = kill_process(child, Signal::KILL);
        }
        pidfd_send_signal(&shim, Signal::KILL)?;
        if let Some(cgroup) = cgroup {
            cgroup.signal_all(Signal::KILL.as_raw())?;
            cgroup.remove_soon(END).map_err(std::io::Error::other)?;
            cgroup.prune_parents();
        }
        Ok(())
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let id = pid.as_raw_nonzero();
    let text = fs::read_to_string(proc(pid, &format!("task/{id}/children"))).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The cgroup of the container `id`: where its process is, or beside that of its shim.
fn cgroup_path(shim: Pid, id: &str) -> Option<String> {
    let of = |pid: Pid| fs::read_to_string(proc(pid, "cgroup")).unwrap_or_default();
    let paths = |text: String, end: &str| {
        text.lines()
            .filter_map(|line| line.splitn(3, ':').nth(2)?.strip_suffix(end).map(str::to_owned))
            .next()
    };
    let end = format!("/{id}");
    let parent = children(shim).into_iter().find_map(|child| paths(of(child), &end));
    parent.or_else(|| paths(of(shim), "/shims")).map(|parent| parent + &end)
}
