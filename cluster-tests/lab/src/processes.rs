//! Which processes of this machine belong to a host of a lab.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Empty for a kernel thread.
    pub words: Vec<String>,
}

impl Process {
    /// Whether it is the process beside a container.
    pub fn is_shim(&self) -> bool {
        self.words.get(1).is_some_and(|word| word == "shim")
    }

    /// Whether it is a daemon.
    pub fn is_daemon(&self) -> bool {
        !self.is_shim() && self.words.iter().skip(1).any(|word| word == "daemon")
    }

    /// Whether it answers the tasks' questions for names.
    pub fn is_resolver(&self) -> bool {
        self.words.get(1).is_some_and(|word| word == "resolver")
    }

    /// Ends it at once; fine if it is gone.
    pub fn kill(&self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

/// All processes but those that have ended and wait for their parents.
fn all() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets that may itself hold spaces and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { pid, parent, words })
}

/// Identity of a namespace: device and inode of its file.
fn namespace(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The processes of a host: those in its network namespace, the daemon and shims of its data root, and all of their
/// descendants, which is where containers are. This process and those it comes from are never among them.
pub fn of_host(netns: &Path, data_root: &Path) -> Vec<Process> {
    let all = all();
    let wanted = namespace(netns);
    let own = ancestors_of_self(&all);
    let mut found: BTreeSet<i32> = all
        .values()
        .filter(|process| {
            let there = namespace(&PathBuf::from(format!("/proc/{}/ns/net", process.pid)));
            (wanted.is_some() && there == wanted) || works_on(process, data_root)
        })
        .map(|process| process.pid)
        .collect();
    loop {
        let more: Vec<i32> = all
            .values()
            .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    all.into_values().filter(|process| found.contains(&process.pid) && !own.contains(&process.pid)).collect()
}

/// The daemon, the shims and the containers' processes of a data root.
pub fn of_daemon_and_containers(data_root: &Path) -> Vec<Process> {
    of_host(Path::new("/nonexistent"), data_root)
}

/// Processes of a program that were started with files below a directory, such as `id=x,path=/directory/y`.
pub fn of_directory(program: &str, directory: &Path) -> Vec<Process> {
    let prefix = format!("{}/", directory.display());
    let is_one = |process: &Process| {
        let own = process
            .words
            .first()
            .is_some_and(|word| Path::new(word).file_name().is_some_and(|n| n == program));
        own && process.words.iter().any(|word| word.contains(&prefix))
    };
    all().into_values().filter(is_one).collect()
}

fn works_on(process: &Process, data_root: &Path) -> bool {
    let below = |word: &String| Path::new(word).starts_with(data_root);
    (process.is_shim() || process.is_daemon()) && process.words.iter().any(below)
}

fn ancestors_of_self(all: &BTreeMap<i32, Process>) -> BTreeSet<i32> {
    let mut own = BTreeSet::new();
    let mut pid = std::process::id() as i32;
    while own.insert(pid) {
        let Some(process) = all.get(&pid) else { break };
        pid = process.parent;
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_recognised_by_their_words() {
        let process = |words: &[&str]| Process {
            pid: 1,
            parent: 0,
            words: words.iter().map(|w| (*w).into()).collect(),
        };
        let daemon = process(&["/x/rswarm", "--data-root", "/d/host-1", "daemon"]);
        let shim = process(&["rswarm", "shim", "/d/host-1/containers/abc"]);
        let reader = process(&["tail", "-f", "/d/host-1/daemon.log"]);
        let root = Path::new("/d/host-1");
        assert!(works_on(&daemon, root) && works_on(&shim, root));
        assert!(!works_on(&reader, root), "somebody who looks at a log is left alone");
        assert!(!works_on(&shim, Path::new("/d/host-10")) && !works_on(&daemon, Path::new("/d/host")));
    }

    #[test]
    fn own_process_is_never_found() {
        let found = of_host(Path::new("/proc/self/ns/net"), Path::new("/nonexistent"));
        let own = std::process::id() as i32;
        assert!(!found.iter().any(|process| process.pid == own));
    }
}
