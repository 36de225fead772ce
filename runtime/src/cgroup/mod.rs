//! Control groups: one directory per hierarchy for each container, on v1, v2 and hybrid hosts.
//!
//! [`plan`] is pure: it says which directories there are to be and what is written into which file. [`Cgroup`]
//! performs it and is the handle on the result. A *hybrid* host has its controllers on v1 and an (almost) empty v2
//! tree beside them; the container joins that too, because it can be killed as a whole there, and because controllers
//! that no v1 hierarchy has may be found there.
//!
//! Who makes the directories: this module, or [`systemd`], which calls them units.
//!
//! Left out: kernel memory limits, which kernels have given up.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst`; OCI runtime-spec, "Control groups".

mod block_io;
mod check;
mod devices;
mod freezer;
mod layout;
mod limits;
pub(crate) mod systemd;
#[cfg(test)]
mod tests;
mod usage;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Failure, Step};
use crate::sys;

pub(crate) use layout::unescape;
pub use layout::{Hierarchy, Layout};
pub use limits::{CgroupError, CgroupPlan, Write, plan, update};
pub(crate) use systemd::UNIT_ANNOTATIONS;
pub use systemd::{Manager, Unit};
pub use usage::Usage;

/// The name of the v2 tree among a cgroup's members.
const UNIFIED: &str = "unified";
/// How often in a row a parent may be pruned before a directory in it is given up. Each time is the end of another
/// container, so that more than one or two are not met in practice.
const PRUNED_MAX: u32 = 100;
/// The cgroup that shims move to, beside those of their containers.
pub(crate) const SHIMS: &str = "shims";

/// The directories that make up one container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    pub members: Vec<Member>,
    /// Where systemd manages it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<systemd::Unit>,
}

/// One hierarchy's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Names of the controllers, `name=…` for a named one, `unified` for the v2 tree.
    pub controllers: Vec<String>,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The directory itself, below `mount`.
    pub directory: PathBuf,
}

/// What a container uses at one moment. Absent values have no controller on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub memory_bytes: Option<u64>,
    /// `None` also without a limit.
    pub memory_limit_bytes: Option<u64>,
    pub cpu_nanos: Option<u64>,
    pub pids: Option<u64>,
}

impl Cgroup {
    /// The cgroup `path` (absolute, below each hierarchy) on this host. Creates nothing.
    pub fn at(layout: &Layout, path: &str) -> Self {
        let relative = path.trim_start_matches('/');
        let member = |controllers: &[String], mount: &Path| Member {
            controllers: controllers.to_vec(),
            mount: mount.to_owned(),
            directory: mount.join(relative),
        };
        let mut members: Vec<Member> =
            layout.v1.iter().map(|hierarchy| member(&hierarchy.controllers, &hierarchy.mount)).collect();
        members.extend(layout.unified.as_deref().map(|mount| member(&[UNIFIED.to_owned()], mount)));
        Self { members, unit: None }
    }

    /// None yet.
    pub fn nowhere() -> Self {
        Self { members: Vec::new(), unit: None }
    }

    /// Removes directories left by a container that was killed with its shim: their counters must not be taken for
    /// this one's.
    ///
    /// # Errors
    /// A directory that is in use; whoever uses it is left alone.
    pub fn clear(&self) -> Result<(), Failure> {
        if self.unit.is_some() {
            // systemd says so itself when there is another unit of this name.
            return Ok(());
        }
        for member in &self.members {
            if let Err(error) = fs::remove_dir(&member.directory)
                && error.raw_os_error() == Some(libc::EBUSY)
            {
                return Err(Failure::new(
                    format!("create cgroup `{}`", member.directory.display()),
                    "it is in use by other processes or groups",
                ));
            }
        }
        Ok(())
    }

    /// The other way to start: directories that are there are used with all that is set in them.
    ///
    /// # Errors
    /// Somebody is in one, or whoever came into it would be frozen.
    pub fn check_unused(&self) -> Result<(), Failure> {
        for Member { directory, .. } in &self.members {
            let step = || format!("use the cgroup `{}`", directory.display());
            let mut pids = Vec::new();
            if directory.exists() {
                collect_pids(directory, &mut pids).step(step)?;
            }
            if !pids.is_empty() {
                let text = format!("the container's cgroup is not empty: {} process(es) found", pids.len());
                return Err(Failure::new(step(), text));
            }
        }
        if self.is_frozen() {
            return Err(Failure::new("use the cgroup", "the container's cgroup unexpectedly frozen"));
        }
        Ok(())
    }

    /// Hands the v2 `controllers` down to it.
    fn enable(&self, controllers: &[&str]) -> Result<(), Failure> {
        let unified = self.members.iter().find(|member| member.is_unified() && !controllers.is_empty());
        unified.map_or(Ok(()), |member| member.enable_controllers(controllers))
    }

    /// Makes the directories, hands the v2 `controllers` down to them and applies the limits.
    ///
    /// # Errors
    /// A limit that cannot be set is an error that names file and value. Undo with [`Self::remove`].
    pub fn create(&self, controllers: &[&str], limits: &[Write]) -> Result<(), Failure> {
        for member in &self.members {
            unless_pruned(|| member.make_missing())?;
        }
        self.enable(controllers)?;
        let mut open: Option<(&Path, fs::File)> = None;
        for write in limits {
            // Rules come in rows for one file.
            let at = Some(write.path.as_path());
            if open.as_ref().map(|(path, _)| *path) != at {
                open = Some((&write.path, write.open()?));
            }
            if let Some((_, file)) = &mut open {
                write.perform_on(file)?;
            }
        }
        Ok(())
    }

    /// Directories above this cgroup that do not exist yet, deepest first. Those that systemd makes are its own.
    pub fn missing_parents(&self) -> Vec<PathBuf> {
        if self.unit.is_some() {
            return Vec::new();
        }
        let parents = self.members.iter().flat_map(|member| {
            let above = member.directory.ancestors().skip(1);
            above.take_while(|directory| directory.starts_with(&member.mount) && !directory.exists())
        });
        parents.map(Path::to_owned).collect()
    }

    /// The files through which a process of one thread joins the v1 directories, by writing `0`. (A container is born
    /// in its v2 one, see [`Self::unified`].)
    pub fn v1_task_files(&self) -> Vec<PathBuf> {
        let v1 = self.members.iter().filter(|member| !member.is_unified());
        v1.map(|member| member.directory.join("tasks")).collect()
    }

    /// The part of it in the v2 tree.
    pub fn unified_member(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.is_unified())
    }

    /// The v2 directory, for a `clone` straight into it.
    ///
    /// # Errors
    /// Names the directory.
    pub fn unified(&self) -> Result<Option<OwnedFd>, Failure> {
        let Some(member) = self.unified_member() else { return Ok(None) };
        fs::File::open(&member.directory)
            .step(|| format!("open cgroup `{}`", member.directory.display()))
            .map(|file| Some(file.into()))
    }

    /// Sends `signal` to every process in the cgroup until no process is left that has not had it.
    pub fn signal_all(&self, signal: i32) -> io::Result<()> {
        self.signal_others(signal, 0)
    }

    /// The same, except to the process `done`, which has had it already.
    pub fn signal_others(&self, signal: i32, done: i32) -> io::Result<()> {
        if signal == libc::SIGKILL
            && let Some(member) = self.unified_member()
            && fs::write(member.directory.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        let mut signalled = std::collections::BTreeSet::from([done]);
        loop {
            let mut fresh = false;
            for pid in self.pids()? {
                if signalled.insert(pid) {
                    fresh = true;
                    // It may be gone by now, which is what is wanted.
                    let _ = sys::kill(pid, signal);
                }
            }
            if !fresh {
                return Ok(());
            }
        }
    }

    /// Host pids of its processes, those in cgroups below it included, in order.
    ///
    /// # Errors
    /// The file system's; a cgroup that does not exist has no processes.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let Some(member) = self.main_member() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect_pids(&member.directory, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The member that every process of the container is in and that no container moves its processes out of.
    fn main_member(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.has("pids")).or(self.members.first())
    }

    /// Processes in any of the directories, or below.
    pub fn is_populated(&self) -> bool {
        self.members.iter().any(|member| {
            let mut pids = Vec::new();
            collect_pids(&member.directory, &mut pids).is_ok() && !pids.is_empty()
        })
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.members
            .iter()
            .find_map(|member| {
                if member.has("memory") {
                    keyed(&member.directory.join("memory.oom_control"), "oom_kill")
                } else if member.is_unified() {
                    keyed(&member.directory.join("memory.events"), "oom_kill")
                } else {
                    None
                }
            })
            .unwrap_or(0)
    }

    /// Whether its kernel counts swap.
    pub fn limits_swap(&self) -> bool {
        let has = |member: &Member, file| member.directory.join(file).exists();
        self.members
            .iter()
            .any(|member| has(member, "memory.memsw.limit_in_bytes") || has(member, "memory.swap.max"))
    }

    /// Current use.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for member in &self.members {
            let number = |file: &str| read_number(&member.directory.join(file));
            if member.has("memory") {
                stats.memory_bytes = number("memory.usage_in_bytes");
                // "No limit" is the largest multiple of the page size.
                stats.memory_limit_bytes = number("memory.limit_in_bytes").filter(|limit| *limit < 1 << 62);
            }
            if member.has("cpuacct") {
                stats.cpu_nanos = number("cpuacct.usage");
            }
            if member.has("pids") {
                stats.pids = number("pids.current");
            }
            if member.is_unified() {
                let micros = keyed(&member.directory.join("cpu.stat"), "usage_usec");
                stats.memory_bytes = stats.memory_bytes.or_else(|| number("memory.current"));
                stats.memory_limit_bytes = stats.memory_limit_bytes.or_else(|| number("memory.max"));
                stats.cpu_nanos = stats.cpu_nanos.or(micros.map(|micros| micros * 1000));
                stats.pids = stats.pids.or_else(|| number("pids.current"));
            }
        }
        stats
    }

    /// Quota and period of the processors' time in microseconds; no quota is `None`, as is what this host does not have.
    pub fn cpu_share(&self) -> (Option<i64>, Option<u64>) {
        if let Some(member) = self.members.iter().find(|member| member.has("cpu")) {
            let number = |file: &str| read_number(&member.directory.join(file));
            let quota = number("cpu.cfs_quota_us").and_then(|quota| i64::try_from(quota).ok());
            return (quota, number("cpu.cfs_period_us"));
        }
        let text = self
            .unified_member()
            .and_then(|member| fs::read_to_string(member.directory.join("cpu.max")).ok());
        let mut words = text.as_deref().unwrap_or_default().split_ascii_whitespace();
        (words.next().and_then(|word| word.parse().ok()), words.next().and_then(|word| word.parse().ok()))
    }

    /// Removes the directories with everything below. Idempotent; a directory with processes stays.
    ///
    /// # Errors
    /// The first directory that could not be removed, after all were tried.
    pub fn remove(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        for member in &self.members {
            let removed = remove_tree(&member.directory);
            result = result.and(removed.step(|| format!("remove cgroup `{}`", member.directory.display())));
        }
        result
    }

    /// Has it removed by whoever made it; processes on their way out are given `limit`.
    ///
    /// # Errors
    /// As [`Self::remove`], at the end of that time; or that of the unit, after the directories were removed.
    pub fn remove_soon(&self, limit: Duration) -> Result<(), Failure> {
        let stopped = self.unit.as_ref().map_or(Ok(()), systemd::Unit::stop);
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(200);
        loop {
            match self.remove() {
                Err(failure) if failure.errno() == Some(libc::EBUSY) && Instant::now() + pause < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                other => return stopped.and(other),
            }
        }
    }

    /// Removes parents that nobody uses any more, and the shims' cgroup beside, as far as they are empty.
    pub fn prune_parents(&self) {
        for member in &self.members {
            let Some(parent) = member.directory.parent() else { continue };
            let _ = fs::remove_dir(parent.join(SHIMS));
            let above = parent.ancestors().take_while(|directory| *directory != member.mount);
            for directory in above {
                if fs::remove_dir(directory).is_err() {
                    break;
                }
            }
        }
    }

    /// Moves the calling process out of whatever service it was started from, into `shims` beside this cgroup.
    /// Hierarchies whose root it is in are left alone: nobody stops or limits anything there.
    ///
    /// # Errors
    /// Names the directory that could not be made or joined.
    pub fn move_self_beside(&self) -> Result<(), Failure> {
        let own = fs::read_to_string("/proc/self/cgroup").step(|| "read `/proc/self/cgroup`".to_owned())?;
        for member in &self.members {
            let name = if member.is_unified() { String::new() } else { member.controllers.join(",") };
            let at_root = own.lines().any(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                fields.next() == Some(&name) && fields.next() == Some("/")
            });
            if at_root {
                continue;
            }
            let Some(parent) = member.directory.parent() else { continue };
            Member { directory: parent.join(SHIMS), ..member.clone() }.make_and_join()?;
        }
        Ok(())
    }
}

impl Member {
    fn is_unified(&self) -> bool {
        self.has(UNIFIED)
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Makes this directory and those above it that are not there.
    fn make_missing(&self) -> Result<(), Failure> {
        let mut missing: Vec<&Path> =
            self.directory.ancestors().take_while(|directory| !directory.exists()).collect();
        missing.reverse();
        for directory in missing {
            let made = match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            };
            made.step(|| format!("create cgroup `{}`", directory.display()))?;
            if self.has("cpuset") {
                inherit_cpuset(directory)?;
            }
        }
        Ok(())
    }

    /// v2: hands these controllers, as far as there are, down from the root to the parent of this directory.
    fn enable_controllers(&self, controllers: &[&str]) -> Result<(), Failure> {
        let available = fs::read_to_string(self.mount.join("cgroup.controllers"))
            .step(|| format!("read the controllers of cgroup `{}`", self.mount.display()))?;
        let wanted: Vec<String> = controllers
            .iter()
            .filter(|name| available.split_ascii_whitespace().any(|found| found == **name))
            .map(|name| format!("+{name}"))
            .collect();
        let parent = self.directory.parent().unwrap_or(&self.mount);
        let mut chain: Vec<&Path> =
            parent.ancestors().take_while(|path| path.starts_with(&self.mount)).collect();
        chain.reverse();
        for directory in chain {
            let control = directory.join("cgroup.subtree_control");
            let enabled = fs::read_to_string(&control).unwrap_or_default();
            let is_enabled =
                |name: &String| enabled.split_ascii_whitespace().any(|found| found == &name[1..]);
            if !wanted.iter().all(is_enabled) {
                fs::write(&control, wanted.join(" "))
                    .step(|| format!("write `{}` to `{}`", wanted.join(" "), control.display()))?;
            }
        }
        Ok(())
    }

    /// Moves the calling process, which has one thread, into this directory, which is made if it is not there.
    fn make_and_join(&self) -> Result<(), Failure> {
        let file = if self.is_unified() { "cgroup.procs" } else { "tasks" };
        let join = Write { path: self.directory.join(file), value: "0".to_owned(), name: None };
        unless_pruned(|| self.make_missing().and_then(|()| join.perform()))
    }
}

impl CgroupPlan {
    /// Makes sure that the place is this container's and no other's. systemd then has made a unit around the process
    /// `first`.
    ///
    /// # Errors
    /// Whoever has the place is left alone. What systemd says.
    pub fn claim(&self, first: Option<i32>) -> Result<(), Failure> {
        match &self.unit {
            Some(unit) => unit.make(first),
            None if self.reuse => self.cgroup.check_unused(),
            None => self.cgroup.clear(),
        }
    }

    /// Makes what there is not yet, with all that limits it. A process `first` that exists already is put there.
    ///
    /// # Errors
    /// As [`Cgroup::create`]. Undo with [`Cgroup::remove_soon`].
    pub fn perform(&self, first: Option<i32>) -> Result<(), Failure> {
        self.cgroup.create(&self.controllers, &self.limits)?;
        if let (Some(pid), Some(member)) = (first, self.cgroup.unified_member()) {
            // Where systemd is on v1, or the unit is a slice, nobody has done so.
            let path = member.directory.join("cgroup.procs");
            Write { path, value: pid.to_string(), name: None }.perform()?;
        }
        let Some(rules) = &self.device_program else { return Ok(()) };
        let step = || "control the devices of the cgroup".to_owned();
        let program = devices::compile(rules);
        let Some(directory) = self.cgroup.unified()? else {
            return Err(Failure::new(step(), "no v2 cgroup tree is mounted"));
        };
        sys::attach_device_program(directory.as_fd(), &program).step(step)
    }

    /// Applies the limits to a cgroup that exists. Values may depend on each other's order, as a limit and the higher one
    /// above it do: what is refused at first is tried once more.
    ///
    /// # Errors
    /// The first value that was refused twice; those before and after may have been taken.
    pub fn change(&self) -> Result<(), Failure> {
        if let Some(unit) = &self.cgroup.unit {
            unit.tell(&self.limits)?;
        } else {
            // There may be limits that create was not asked for.
            self.cgroup.enable(&self.controllers)?;
        }
        let refused: Vec<&Write> = self.limits.iter().filter(|write| write.perform().is_err()).collect();
        refused.into_iter().try_for_each(Write::perform)
    }
}

impl Write {
    fn perform(&self) -> Result<(), Failure> {
        self.perform_on(&mut self.open()?)
    }

    fn open(&self) -> Result<fs::File, Failure> {
        // Not created when missing: a kernel without the feature must be noticed on any file system.
        fs::OpenOptions::new().write(true).open(&self.path).step(|| self.describe())
    }

    fn perform_on(&self, file: &mut fs::File) -> Result<(), Failure> {
        use io::Write as _;
        file.write_all(self.value.as_bytes())
            .step(|| self.describe())
            .map_err(|failure| self.with_use(failure))
    }

    /// Says how much there is of what v1 cannot bring below a limit.
    fn with_use(&self, failure: Failure) -> Failure {
        let used = match self.path.file_name().and_then(|name| name.to_str()) {
            Some("memory.limit_in_bytes") => "memory.usage_in_bytes",
            Some("memory.memsw.limit_in_bytes") => "memory.memsw.usage_in_bytes",
            _ => return failure,
        };
        match read_number(&self.path.with_file_name(used)) {
            Some(used) if failure.errno() == Some(libc::EBUSY) => {
                let text = format!(
                    "{used} bytes are in use, of which too few can be given up: expected a higher limit"
                );
                Failure::new(failure.step, text)
            }
            _ => failure,
        }
    }

    fn describe(&self) -> String {
        let field = self.name.map_or(String::new(), |name| format!(" for `linux.resources.{name}`"));
        format!("write `{}` to `{}`{field}", self.value, self.path.display())
    }
}

/// Does `work`, and does it again when somebody pruned a parent in the middle of it, as the removal of the last container
/// beside the new one does. The kernel then says that something does not exist or, of a file that was opened before
/// its directory went, that there is no such device.
fn unless_pruned(work: impl Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    let mut attempts = 0;
    loop {
        match work() {
            Err(failure)
                if matches!(failure.errno(), Some(libc::ENOENT | libc::ENODEV)) && attempts < PRUNED_MAX =>
            {
                attempts += 1;
            }
            other => return other,
        }
    }
}

/// A new v1 cpuset has neither CPUs nor memory nodes and lets no process in until it has both.
fn inherit_cpuset(directory: &Path) -> Result<(), Failure> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (Some(parent), path) = (directory.parent(), directory.join(file)) else { continue };
        let read = || fs::read_to_string(parent.join(file)).step(|| format!("read `{}`", parent.display()));
        let mut inherited = read()?;
        if inherited.trim().is_empty() {
            // Made a moment ago by another shim that has not come to this yet. The topmost one is never empty.
            inherit_cpuset(parent)?;
            inherited = read()?;
        }
        Write { path, value: inherited.trim().to_owned(), name: None }.perform()?;
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(error),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    // Groups that the container made below its own.
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn collect_pids(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Its threads are in groups of their own.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key number` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
