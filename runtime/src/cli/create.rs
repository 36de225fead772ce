//! `create`, `start` and `run`.
//!
//! The first process is a child of this program, and once that has left, of whoever collects orphans for the caller:
//! its exit status is the caller's. Until it is started it waits on a socket in the state directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespaceType, Process, Spec,
};

use super::Context;
use super::console::{self, Console};
use super::container::{self, Container, Intended, Phase, Record};
use super::end;
use super::error::{CommandError, During, OnFile};
use super::notify::{self, Notify};
use super::options::Parsed;
use super::time::rfc3339;
use crate::cgroup::systemd::UnitName;
use crate::cgroup::{Cgroup, CgroupError};
use crate::error::{Failure, Step};
use crate::hooks;
use crate::plan::{self, Callers, HookStep, HostFacts, Inside, Listener, Outside, Plan, PlanError};
use crate::request::Rootfs;
use crate::run::{self, Given, Stdio};
use crate::state::{self, ProcessIdentity};
use crate::sys;

/// Said of a limit that is left out.
pub(super) const NO_KERNEL_MEMORY: &str = "limits of kernel memory are ignored: kernels have given them up";

/// `create`.
pub(super) fn create(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    make(context, parsed, false).map(drop)
}

/// `start`.
pub(super) fn start(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    let notify = start_container(context, &container).inspect_err(|error| {
        if let CommandError::Poststart(_) = error {
            // Source: OCI runtime-spec 1.3, "Lifecycle" 9: an error, and life goes on with 12, the deletion.
            let _ = end::destroy(context, &container);
        }
    })?;
    await_ready(context, &container, notify.as_ref());
    Ok(())
}

/// `run`: gives the exit code of the container.
pub(super) fn run(context: &Context, parsed: &Parsed) -> Result<i32, CommandError> {
    let foreground = !parsed.is_on("detach");
    let signals = foreground.then(console::watch_signals).transpose()?;
    if foreground && !parsed.is_on("no-subreaper") {
        sys::set_child_subreaper().during("become the parent of orphans")?;
    }
    let (container, terminal) = make(context, parsed, foreground)?;
    let result = start_container(context, &container).and_then(|notify| match &signals {
        Some(signals) => {
            let pid = container.record.init_process_pid;
            console::attend(pid, signals, terminal, notify.map(|notify| (notify, &context.log)))
        }
        None => {
            await_ready(context, &container, notify.as_ref());
            Ok(0)
        }
    });
    if (foreground && !parsed.is_on("keep")) || result.is_err() {
        let ended = end::destroy(context, &container);
        return result.and_then(|code| ended.map(|()| code));
    }
    result
}

/// Whoever does not stay with a container stays until it is ready, if its caller wants to hear of that.
fn await_ready(context: &Context, container: &Container, notify: Option<&Notify>) {
    if let Some(notify) = notify {
        notify.wait(container.pidfd().as_ref(), container.record.init_process_pid, &context.log);
    }
}

fn start_container(context: &Context, container: &Container) -> Result<Option<Notify>, CommandError> {
    let id = || container.record.id.clone();
    match container.phase() {
        Phase::Created => {}
        Phase::Stopped => return Err(CommandError::HasStopped { id: id() }),
        Phase::Paused => return Err(CommandError::Paused { id: id() }),
        phase => return Err(CommandError::AlreadyRunning { id: id(), found: phase.name() }),
    }
    let Some(line) = container::claim_start(&container.directory).on("connect to", &container.directory)?
    else {
        return Err(CommandError::AlreadyRunning { id: id(), found: "being started" });
    };
    let notify = Notify::listen(container, &context.log);
    run::start(line.as_fd()).inspect_err(|_| {
        // Whoever hears of the failure is to find that it has ended.
        let _ = container.pidfd().as_ref().map(end::await_end);
    })?;
    run_hooks(container, "poststart", Some(container.record.init_process_pid))
        .map_err(CommandError::Poststart)?;
    Ok(notify)
}

/// Runs hooks that follow an operation. The first failure after the start ends it; after the end each hook is run, and
/// the first failure reported.
pub(super) fn run_hooks(container: &Container, kind: &'static str, pid: Option<i32>) -> Result<(), Failure> {
    let HookStep { kind, hooks, state, .. } = container.hooks(kind);
    let mut result = Ok(());
    for hook in hooks {
        let step = HookStep { kind, hooks: vec![hook], state: state.clone(), env: None };
        result = result.and(hooks::run(&step, pid, Some(&state.bundle)));
        if result.is_err() && kind == "poststart" {
            break;
        }
    }
    result
}

/// Makes a container up to the point where it waits to be started. Nothing is left of one that could not be made.
/// In the foreground the master of its terminal, if it has one, comes back too.
fn make(
    context: &Context,
    parsed: &Parsed,
    foreground: bool,
) -> Result<(Container, Option<OwnedFd>), CommandError> {
    let id = context.id(parsed);
    let handed = handed_sockets();
    let preserved = check_preserved(parsed, handed)?;
    let pid_file = parsed.value("pid-file").map(absolute).transpose()?;
    let bundle = absolute(parsed.value("bundle").unwrap_or("."))?;
    let bundle = bundle.canonicalize().on("find the bundle", &bundle)?;
    let directory = context.store.directory(id)?;
    if directory.exists() {
        return Err(CommandError::Exists { id: id.to_owned() });
    }
    let mut config = Config::read(context, id, &bundle, parsed.is_on("systemd-cgroup"))?;
    sys::forget_program();
    if handed > 0 {
        config.announce_sockets(handed);
    }
    let notifies = notify::offer(&mut config.spec, &directory, &context.log);
    let plan = config.plan(parsed)?;
    sys::forget_program();
    let console = Console::open(config.has_terminal(), parsed.value("console-socket"), foreground)?;

    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&context.store.root).on("make", &context.store.root)?;
    builder.recursive(false).mode(0o711);
    match builder.create(&directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CommandError::Exists { id: id.to_owned() });
        }
        other => other.on("make", &directory)?,
    }
    let intended = intended(&plan);
    let prepared = if notifies { notify::make(&directory) } else { Ok(()) };
    let made = prepared.on("make a place for a socket in", &directory);
    let made = made.and_then(|()| intended.write(&directory).on("write the cgroup's place to", &directory));
    let made = made.and_then(|()| config.perform(&plan, &directory, preserved, &console));
    let made = made.and_then(|container| {
        let terminal = console.master()?;
        if let Some(path) = &pid_file {
            write_pid_file(path, container.record.init_process_pid)?;
        }
        Ok((container, terminal))
    });
    made.inspect_err(|_| {
        // What the plan made it has undone; with a record there is more, the hooks of the end among it.
        match context.store.load(id) {
            Ok(container) => drop(end::destroy(context, &container)),
            Err(_) => drop(fs::remove_dir_all(&directory)),
        }
        intended.prune();
    })
}

/// What of the container's cgroups there is not yet.
fn intended(plan: &Plan) -> Intended {
    let cgroup = plan.outside.iter().find_map(|step| match step {
        Outside::MakeCgroup(cgroup) => Some(&cgroup.cgroup),
        _ => None,
    });
    cgroup.map_or_else(Intended::default, Intended::of)
}

/// A file that ends: whoever opened a pipe without a writer would wait for ever.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map(|_| bytes)
}

/// A configuration with what its place adds to it.
struct Config {
    id: String,
    bundle: PathBuf,
    rootfs: PathBuf,
    /// A path, or `slice:prefix:name` for systemd.
    cgroup: String,
    systemd: bool,
    spec: Spec,
    /// Its process without what only the first one has, which `exec` starts from.
    process: Process,
}

impl Config {
    fn read(context: &Context, id: &str, bundle: &Path, systemd: bool) -> Result<Self, CommandError> {
        let path = bundle.join("config.json");
        let bytes = match read_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CommandError::NoSpec { path });
            }
            other => other.on("read", &path)?,
        };
        // Here and between other phases: what is done with need not stay, and reading is most of the program.
        sys::forget_program();
        let (mut spec, unknown) =
            plan::parse(&bytes).map_err(|source| CommandError::Spec { path, source })?;
        sys::forget_program();
        for name in unknown {
            context.log.warn(&plan::unknown_capability(&name));
        }
        let invalid = |field, value: &str, expected| {
            Err(CommandError::Config { field, value: value.to_owned(), expected })
        };
        let Some(root) = spec.root() else {
            return Err(PlanError::Missing { field: "root" }.into());
        };
        let rootfs = bundle.join(root.path());
        // An empty one would be the bundle itself.
        if root.path().as_os_str().is_empty() || !rootfs.is_dir() {
            return invalid("root.path", &root.path().display().to_string(), "a directory");
        }
        let linux = spec.linux().as_ref().ok_or(PlanError::Missing { field: "linux" })?;
        let cgroup = match linux.cgroups_path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
            Some(path) if systemd => path.display().to_string(),
            None if systemd => UnitName::default_path(id),
            // From the top of each hierarchy, whether the path says so or not.
            Some(path) => Path::new("/").join(path).display().to_string(),
            None => format!("/{id}"),
        };
        let process = spec.process().clone().ok_or(PlanError::Missing { field: "process" })?;
        forget_kernel_memory(context, &mut spec);
        allow_default_devices(&mut spec);
        absolute_sources(&mut spec, bundle);
        Ok(Self { id: id.to_owned(), bundle: bundle.to_owned(), rootfs, cgroup, systemd, spec, process })
    }

    /// The program is process 1 of its namespace and has the sockets from descriptor 3 on.
    fn announce_sockets(&mut self, count: u32) {
        let Some(process) = self.spec.process_mut() else { return };
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }

    fn has_terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(Process::terminal) == Some(true)
    }

    fn plan(&self, parsed: &Parsed) -> Result<Plan, CommandError> {
        let host = if self.systemd {
            HostFacts::detect_with_systemd(&self.spec)?
        } else {
            HostFacts::detect(&self.spec, &self.cgroup)?
        };
        sys::forget_program();
        let path = self.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        let asked = path.filter(|path| !path.as_os_str().is_empty());
        let none = host.cgroups.v1.is_empty() && host.cgroups.unified.is_none();
        if let Some(path) = asked.filter(|_| host.rootless && none && !self.systemd) {
            return Err(CommandError::CgroupNotPermitted { path: path.clone() });
        }
        let rootfs = Rootfs::Directory(self.rootfs.clone());
        let plan = plan::create(&self.spec, &rootfs, self.rootfs.clone(), &self.cgroup, &host);
        let mut plan = plan.map_err(|error| match (error, asked) {
            (PlanError::Cgroup(CgroupError::Path { .. }), Some(path)) => {
                let path = path.display().to_string();
                PlanError::Cgroup(CgroupError::Path { path }).into()
            }
            (PlanError::Cgroup(CgroupError::NoController { name, .. }), _) if host.rootless => {
                CommandError::LimitNotPermitted { name }
            }
            (other, _) => other.into(),
        })?;
        let callers = Callers {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            no_pivot: parsed.is_on("no-pivot"),
            keep_keyring: parsed.is_on("no-new-keyring"),
        };
        plan::complete(&mut plan, &self.spec, &callers)?;
        for step in &mut plan.outside {
            if let Outside::MakeCgroup(cgroup) = step {
                // The caller may have made it, and set what we do not.
                cgroup.reuse = true;
            }
        }
        Ok(plan)
    }

    fn perform(
        &self,
        plan: &Plan,
        directory: &Path,
        preserved: u32,
        console: &Console,
    ) -> Result<Container, CommandError> {
        let filter = plan.inside.iter().find_map(|step| match step {
            Inside::Seccomp(program) => Some(program),
            _ => None,
        });
        if let Some(filter) = filter {
            container::write_filter(directory, filter)?;
        }
        let listener = container::listen(directory).on("listen in", directory)?;
        let given = Given {
            stdio: Stdio { stdin: sys::standard(0), stdout: sys::standard(1), stderr: sys::standard(2) },
            preserved,
            start: Some(listener.as_fd()),
            console: console.end(),
            keeps_lines: console.keeps_lines(),
        };
        let mut record = self.record(filter.map(|filter| filter.flags))?;
        record.seccomp_listener = plan.inside.iter().find_map(|step| match step {
            Inside::ConnectListener(listener) => Some(Listener { given: None, ..listener.clone() }),
            _ => None,
        });
        record.personality = plan.inside.iter().find_map(|step| match step {
            Inside::Personality(personality) => Some(*personality),
            _ => None,
        });
        record.memory_policy = plan.inside.iter().find_map(|step| match step {
            Inside::MemoryPolicy(policy) => Some(policy.clone()),
            _ => None,
        });
        record.keeps_keyring = !plan.inside.iter().any(|step| matches!(step, Inside::SessionKeyring(_)));
        run::create(plan, given, |pid, cgroup| {
            sys::forget_program();
            let fill = |record: &mut Record| -> io::Result<()> {
                let identity = ProcessIdentity::of(pid)?;
                (record.init_process_pid, record.init_process_start) = (pid, identity.start_time);
                record.cgroup = cgroup.clone();
                let members = cgroup.members.iter().flat_map(|member| {
                    member.controllers.iter().map(|name| (name.clone(), member.directory.clone()))
                });
                record.cgroup_paths = members.collect();
                record.namespace_paths = namespace_paths(pid);
                sys::forget_program();
                container::write_record(directory, record)
            };
            fill(&mut record).step(|| format!("write the state to `{}`", directory.display()))
        })?;
        sys::forget_program();
        container::allow_start(directory)?;
        Ok(Container { directory: directory.to_owned(), record })
    }

    fn record(&self, seccomp_flags: Option<u32>) -> Result<Record, CommandError> {
        let listed = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let kinds = listed.into_iter().flatten().map(|namespace| namespace_kind(namespace.typ()));
        let owns_pids = listed
            .into_iter()
            .flatten()
            .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none());
        Ok(Record {
            id: self.id.clone(),
            oci_version: self.spec.version().clone(),
            init_process_pid: 0,
            init_process_start: 0,
            boot_id: state::boot_id().on("read", "/proc/sys/kernel/random/boot_id")?,
            created: rfc3339(sys::unix_nanos()),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            annotations: plan::annotations(&self.spec),
            cgroup_paths: BTreeMap::new(),
            namespace_paths: BTreeMap::new(),
            cgroup: Cgroup::nowhere(),
            namespaces: kinds.fold(0, |bits, (_, bit, _)| bits | bit as u64),
            owns_pids,
            process: self.process.clone(),
            seccomp_flags,
            seccomp_listener: None,
            personality: None,
            memory_policy: None,
            keeps_keyring: false,
            poststart: plan::hooks_of(&self.spec, "poststart")?,
            poststop: plan::hooks_of(&self.spec, "poststop")?,
        })
    }
}

const CLONE_NEWTIME: i32 = 0x80;

/// Name in runc's state, `CLONE_NEW*` bit, and name in `/proc/<pid>/ns`.
fn namespace_kind(kind: LinuxNamespaceType) -> (&'static str, i32, &'static str) {
    match kind {
        LinuxNamespaceType::Mount => ("NEWNS", libc::CLONE_NEWNS, "mnt"),
        LinuxNamespaceType::Cgroup => ("NEWCGROUP", libc::CLONE_NEWCGROUP, "cgroup"),
        LinuxNamespaceType::Uts => ("NEWUTS", libc::CLONE_NEWUTS, "uts"),
        LinuxNamespaceType::Ipc => ("NEWIPC", libc::CLONE_NEWIPC, "ipc"),
        LinuxNamespaceType::User => ("NEWUSER", libc::CLONE_NEWUSER, "user"),
        LinuxNamespaceType::Pid => ("NEWPID", libc::CLONE_NEWPID, "pid"),
        LinuxNamespaceType::Network => ("NEWNET", libc::CLONE_NEWNET, "net"),
        LinuxNamespaceType::Time => ("NEWTIME", CLONE_NEWTIME, "time"),
    }
}

fn namespace_paths(pid: i32) -> BTreeMap<String, PathBuf> {
    let all = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Time,
    ];
    let path = |(name, _, file): (&str, i32, &str)| {
        (name.to_owned(), PathBuf::from(format!("/proc/{pid}/ns/{file}")))
    };
    all.into_iter().map(namespace_kind).map(path).collect()
}

/// Limits that kernels have given up are ignored, as by runc, and not without a word.
fn forget_kernel_memory(context: &Context, spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    let Some(memory) = resources.and_then(|resources| resources.memory_mut().as_mut()) else { return };
    if memory.kernel().or(memory.kernel_tcp()).is_some_and(|limit| limit != 0) {
        context.log.warn(NO_KERNEL_MEMORY);
        memory.set_kernel(None).set_kernel_tcp(None);
    }
}

/// Sources of bind mounts may be relative to the bundle. Source: OCI runtime-spec, "Mounts".
fn absolute_sources(spec: &mut Spec, bundle: &Path) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if let Some(source) = mount.source().as_ref().filter(|_| plan::is_bind(mount)) {
            let source = bundle.join(source);
            mount.set_source(Some(source));
        }
    }
}

/// Puts the rules about devices that no configuration has to name around those it names: nothing else may be used,
/// every node may be made, and what every container has may be used.
///
/// Source: OCI runtime-spec, "Default Devices"; runc, `specconv.AllowedDevices`.
fn allow_default_devices(spec: &mut Spec) {
    let rule = |allow, kind, major: i64, minor: i64, access: &str| -> LinuxDeviceCgroup {
        let builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        builder.major(major).minor(minor).build().expect("all fields are set")
    };
    let Some(linux) = spec.linux_mut() else { return };
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = vec![rule(false, LinuxDeviceType::A, -1, -1, "rwm")];
    rules.extend(resources.devices().iter().flatten().cloned());
    rules.extend([LinuxDeviceType::C, LinuxDeviceType::B].map(|kind| rule(true, kind, -1, -1, "m")));
    // null, zero, full, random, urandom, tty, ptmx, and all pseudo terminals.
    let nodes = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, -1)];
    rules.extend(nodes.map(|(major, minor)| rule(true, LinuxDeviceType::C, major, minor, "rwm")));
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

/// How many sockets whoever called us has handed to this very process. Source: `sd_listen_fds(3)`.
fn handed_sockets() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id())).unwrap_or(0)
}

/// How many descriptors to keep: `handed` ones and those of `--preserve-fds` behind them. All must be the caller's: none
/// of ours is to end up in the place of one that is missing.
pub(super) fn check_preserved(parsed: &Parsed, handed: u32) -> Result<u32, CommandError> {
    let count = parsed.number::<u32>("preserve-fds")?.unwrap_or(0).saturating_add(handed);
    let missing = (3..).take(count as usize).find(|number| !sys::is_inherited(*number));
    match missing {
        Some(number) => Err(CommandError::Descriptor { number }),
        None => Ok(count),
    }
}

pub(super) fn absolute(path: impl AsRef<Path>) -> Result<PathBuf, CommandError> {
    std::path::absolute(path.as_ref()).on("find", path.as_ref())
}

/// Readers wait for the file to appear, so it appears with its content.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<(), CommandError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    // Others may write to the directory: what they put there is neither written through nor removed.
    let mut file = fs::File::create_new(&temporary).on("write the pid to", path)?;
    file.write_all(pid.to_string().as_bytes())
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .on("write the pid to", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Layout;

    #[test]
    fn device_rules_of_the_configuration_stand_between_those_of_every_container() {
        let mut spec = crate::default_spec();
        let own = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(10i64)
            .minor(229i64);
        let mut resources = oci_spec::runtime::LinuxResources::default();
        resources.set_devices(Some(vec![own.access("rw").build().unwrap()]));
        spec.linux_mut().as_mut().unwrap().set_resources(Some(resources));
        allow_default_devices(&mut spec);
        let layout = Layout::parse("34 30 0:30 / /c/devices rw - cgroup cgroup rw,devices");
        let plan = plan::create(
            &spec,
            &Rootfs::Directory("/".into()),
            "/".into(),
            "/t",
            &HostFacts { cgroups: layout, ..Default::default() },
        );
        let Some(Outside::MakeCgroup(cgroup)) = plan.unwrap().outside.into_iter().next() else {
            panic!("no cgroup")
        };
        let rules: Vec<&str> = cgroup.limits.iter().map(|write| write.value.as_str()).collect();
        let expected = [
            "a *:* rwm",
            "c 10:229 rw",
            "c *:* m",
            "b *:* m",
            "c 1:3 rwm",
            "c 1:5 rwm",
            "c 1:7 rwm",
            "c 1:8 rwm",
            "c 1:9 rwm",
            "c 5:0 rwm",
            "c 5:2 rwm",
            "c 136:* rwm",
        ];
        assert_eq!(rules, expected);
    }
}
