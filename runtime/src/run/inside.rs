//! The container's first process, from its birth until it becomes the program it was made for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Uid};

use super::label;
use super::listener::Listener;
use super::root::{self, Root};
use super::sources;
use super::stdio;
use super::{FAILED, HOOKS, HOOKS_DONE, Message, READY, RECORDED, START, receive, send, terminal};
use crate::error::{Cause, Failure, Step};
use crate::hooks;
use crate::plan::{self, Inside, MountKind, Rlimit};
use crate::request::Rootfs;
use crate::sys::{self, MountAttributes};

/// Why a limit cannot be raised.
pub(super) const NO_RESOURCE: &str =
    "operation not permitted: raising a hard limit needs CAP_SYS_RESOURCE, which the runtime does not have";
/// So much of `/etc/passwd` is read.
const PASSWD_MAX: u64 = 1 << 20;
/// Where programs are searched when the container has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Performs all steps, the last of which replaces this process. Returns only when one failed and was reported, with the
/// exit code that shells give: 127 for something that was not found, else 126.
pub(super) fn run(steps: &[Inside], lines: Lines, preserved: u32) -> i32 {
    let mut process = Process {
        lines,
        preserved,
        given: Vec::new(),
        user: false,
        listener: None,
        root: None,
        executable: None,
        home: None,
        permitted: None,
        fails_by_itself: false,
    };
    let open = matches!(steps.first(), Some(Inside::AwaitAdmission { open: true, .. }));
    if let Err(failure) =
        process.prepare(open).and_then(|()| steps.iter().try_for_each(|step| process.perform(step)))
    {
        if process.fails_by_itself {
            let _ = rustix::io::write(sys::standard(2), format!("{failure}\n").as_bytes());
            return 1;
        }
        let mut message = vec![FAILED];
        let _ = serde_json::to_writer(&mut message, &failure);
        let channel = process.lines.channel.as_fd();
        // A filter that forbids sockets may still let programs write.
        let _ = send(channel, &message).or_else(|_| rustix::io::write(channel, &message).map(drop));
        return if failure.errno() == Some(libc::ENOENT) { 127 } else { 126 };
    }
    126
}

/// Descriptors of the process's own. Exec closes them.
pub(super) struct Lines {
    /// To whoever is waiting for this process.
    pub channel: OwnedFd,
    /// Listens for who will start it; else that is its creator.
    pub start: Option<OwnedFd>,
    /// Takes the master of its terminal.
    pub console: Option<OwnedFd>,
    /// That terminal leaves the ends of lines as they are written.
    pub keeps_lines: bool,
    /// The process whose namespaces it enters.
    pub target: Option<OwnedFd>,
}

struct Process {
    lines: Lines,
    /// Inherited descriptors after the standard ones.
    preserved: u32,
    /// What the creator has opened for this process; taken one by one.
    given: Vec<Option<OwnedFd>>,
    /// It is root of a user namespace only.
    user: bool,
    listener: Option<Listener>,
    root: Option<Root>,
    executable: Option<CString>,
    /// An addition to the environment.
    home: Option<String>,
    /// Capabilities that it has had.
    permitted: Option<u64>,
    /// See [`Inside::FailByItself`].
    fails_by_itself: bool,
}

impl Process {
    /// `open`: others are kept out a little later, for nobody else is in this process's new namespaces yet.
    fn prepare(&self, open: bool) -> Result<(), Failure> {
        if !open {
            protect()?;
        }
        rustix::process::setsid().step(|| "start a session".to_owned())?;
        rustix::process::umask(Mode::empty());
        Ok(())
    }

    fn perform(&mut self, step: &Inside) -> Result<(), Failure> {
        match step {
            Inside::EnterNamespaces { kinds, user } => {
                self.user = *user;
                self.enter_namespaces(*kinds)
            }
            Inside::SessionKeyring(name) => session_keyring(name, self.lines.target.is_none()),
            Inside::JoinNamespace { kind, path } => join_namespace(*kind, path),
            Inside::AwaitAdmission { descriptors, user, open } => {
                self.await_admission(*descriptors, *user)?;
                if *open { protect() } else { Ok(()) }
            }
            Inside::ConnectListener(listener) => {
                let given = listener.given.map(|number| self.take(number)).transpose()?;
                self.listener = Some(Listener::connect(listener, given)?);
                Ok(())
            }
            Inside::Label(label) => label::take(label),
            Inside::OomScoreAdj(adjustment) => {
                oom_score_adj(Path::new("/proc/self/oom_score_adj"), *adjustment)
            }
            Inside::Propagation(flags) => {
                let flags =
                    MountPropagationFlags::from_bits_retain(*flags as u32) | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", flags).step(|| "part with the host's mounts".to_owned())
            }
            Inside::TakeRoot(number) => {
                let mount = self.take(*number)?;
                root::cover(&mount)?;
                self.root = Some(Root::new(mount));
                Ok(())
            }
            Inside::MountRoot { rootfs, at } => self.mount_root(rootfs, at),
            Inside::LoopbackUp => sys::loopback_up().step(|| "bring up the loopback interface".to_owned()),
            Inside::Hostname(name) => {
                rustix::system::sethostname(name.as_bytes()).step(|| format!("set the host name `{name}`"))
            }
            Inside::Domainname(name) => rustix::system::setdomainname(name.as_bytes())
                .step(|| format!("set the domain name `{name}`")),
            Inside::Sysctl { name, value } => {
                // The host's /proc, which no image can have prepared; it shows the namespaces of whoever asks.
                let path = format!("/proc/sys/{}", plan::sysctl_path(name));
                write_existing(Path::new(&path), value)
                    .step(|| format!("set `{name}` of `linux.sysctl` to `{value}`"))
            }
            Inside::JoinCgroup(files) => files.iter().try_for_each(|file| {
                write_existing(file, "0").step(|| format!("join the cgroup by `{}`", file.display()))
            }),
            Inside::JoinCgroupBy(numbers) => numbers.iter().try_for_each(|number| {
                let file = self.take(*number)?;
                rustix::io::write(&file, b"0").map(drop).step(|| "join the cgroup".to_owned())
            }),
            Inside::Scheduling(scheduling) => {
                sys::set_scheduling(*scheduling).step(|| format!("set `process.scheduler` to {scheduling:?}"))
            }
            Inside::IoPriority(value) => sys::set_io_priority(*value).step(|| {
                format!("set `process.ioPriority` to class {}, priority {}", value >> 13, value & 7)
            }),
            Inside::MemoryPolicy(policy) => sys::set_memory_policy(policy).step(|| {
                let nodes = number_list(&policy.nodes);
                format!("set `linux.memoryPolicy` to mode {:#x} and nodes {nodes}", policy.mode)
            }),
            Inside::CpuAffinity(cpus) => sys::set_affinity(cpus)
                .step(|| format!("set `process.execCPUAffinity` to CPUs {}", number_list(cpus))),
            Inside::Personality(domain) => {
                sys::set_personality(*domain).step(|| format!("set the personality to {domain:#x}"))
            }
            Inside::UnshareIpc => {
                sys::unshare(libc::CLONE_NEWIPC).step(|| "make an ipc namespace".to_owned())
            }
            Inside::UnshareCgroup => sys::unshare_cgroup().step(|| "make a cgroup namespace".to_owned()),
            Inside::Mount(mount) => {
                let given = match mount.kind {
                    MountKind::Bind { given: Some(number), .. } => Some(self.take(number)?),
                    _ => None,
                };
                self.root()?.mount(mount, given)
            }
            Inside::Device(device) => self.root()?.device(device),
            Inside::DeviceLink { name, target } => self.root()?.device_link(name, target),
            Inside::MaskPath { path, label } => self.root()?.mask(path, label.as_deref()),
            Inside::ReadonlyPath(path) => self.root()?.make_readonly(path),
            Inside::AwaitHooks => {
                send(self.lines.channel.as_fd(), &[HOOKS]).step(|| "report to the creator".to_owned())?;
                self.await_byte(HOOKS_DONE)
            }
            Inside::RunHooks(step) => {
                if let Some(root) = &self.root {
                    // Before it is the root, the root file system is where hooks are run, as with runc.
                    let step = || "change to the root file system".to_owned();
                    rustix::process::fchdir(root.fd()).step(step)?;
                }
                let mut step = step.clone();
                if let Some(env) = &mut step.env {
                    env.extend(self.home.clone());
                }
                hooks::run(&step, Some(std::process::id() as i32), None)
            }
            Inside::Terminal { size, console, uid } => self.terminal(*size, *console, *uid),
            Inside::PivotRoot => self.pivot_root(),
            Inside::MoveRoot => self.move_root(),
            Inside::RootPropagation(flags) => {
                let flags = MountPropagationFlags::from_bits_retain(*flags as u32);
                rustix::mount::mount_change("/", flags)
                    .step(|| "set the propagation of the root file system".to_owned())
            }
            Inside::ReadonlyRoot => readonly_root(),
            Inside::Rlimit(limit) => rlimit(limit),
            Inside::MakeDirectory(path) => self.root()?.make_directory(path),
            Inside::WorkingDirectory(path) => working_directory(path),
            Inside::OwnNull => stdio::own_null(),
            Inside::StdioOwner { uid } => stdio::give_to(*uid),
            Inside::FindHome { uid } => {
                self.home = Some(format!("HOME={}", home(*uid)));
                Ok(())
            }
            Inside::NoNewPrivileges => {
                sys::set_no_new_privileges().step(|| "forbid new privileges".to_owned())
            }
            Inside::Seccomp(program) => {
                let notifications = sys::set_seccomp_filter(&program.instructions, program.flags)
                    .step(|| "install the seccomp filter".to_owned())?;
                match (notifications, self.listener.take()) {
                    (Some(notifications), Some(listener)) => listener.hand_over(&notifications),
                    (Some(_), None) => Err(Failure::new("install the seccomp filter", "it has no listener")),
                    (None, _) => Ok(()),
                }
            }
            Inside::BoundingSet(keep) => bounding_set(*keep),
            Inside::User { uid, gid, groups, umask } => {
                user(*uid, *gid, groups, self.user)?;
                rustix::process::umask(Mode::from_raw_mode(*umask));
                Ok(())
            }
            Inside::Capabilities { sets, ambient } => {
                let step = || format!("set the capabilities (permitted {:#x})", sets.permitted);
                // What we do not have cannot be granted, and must not be an error: see "Capabilities" in the
                // specification.
                // Asked once: a filter may forbid it later.
                let ours = match self.permitted {
                    Some(ours) => ours,
                    None => sys::permitted_capabilities().step(step)?,
                };
                self.permitted = Some(ours);
                let mut sets = *sets;
                for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
                    *set &= ours;
                }
                sys::set_capabilities(sets).step(step)?;
                numbers(*ambient & ours).try_for_each(sys::raise_ambient).step(step)
            }
            Inside::ResolveExecutable { name, path } => {
                let found = resolve_executable(name, path.as_deref().unwrap_or(DEFAULT_PATH))?;
                self.executable = CString::new(found.into_os_string().into_encoded_bytes()).ok();
                Ok(())
            }
            Inside::AwaitStart => {
                send(self.lines.channel.as_fd(), &[READY]).step(|| "report to the creator".to_owned())?;
                self.await_start()
            }
            Inside::PrepareExec => {
                sys::reset_signals();
                sys::close_on_exec_from(3 + self.preserved).step(|| "have exec close descriptors".to_owned())
            }
            Inside::FailByItself => {
                self.fails_by_itself = true;
                Ok(())
            }
            Inside::Exec { args, env } => self.exec(args, env),
        }
    }

    fn root(&mut self) -> Result<&mut Root, Failure> {
        self.root
            .as_mut()
            .ok_or_else(|| Failure::new("set up the container", "no root file system is mounted yet"))
    }

    /// Waits for a word of the creator. If that has gone, so does this process.
    fn await_byte(&self, expected: u8) -> Result<(), Failure> {
        match receive(self.lines.channel.as_fd())? {
            Message::Byte(byte) if byte == expected => Ok(()),
            Message::Closed => sys::exit_now(70),
            Message::Byte(byte) => Err(super::unexpected(byte)),
            Message::Failed(failure) => Err(failure),
        }
    }

    /// Waits to be started, by the creator or by the first who comes for it. That is also who hears of a failure.
    fn await_start(&mut self) -> Result<(), Failure> {
        let Some(listener) = self.lines.start.take() else { return self.await_byte(START) };
        // Nobody would find the container of a creator that was killed before it had written it down.
        self.await_byte(RECORDED)?;
        // This may take long, and there may be many.
        sys::trim_heap();
        sys::forget_program();
        loop {
            let accepted = rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC);
            match accepted {
                Ok(caller) => self.lines.channel = caller,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error).step(|| "wait for the start".to_owned()),
            }
            // One that leaves without the word changes nothing.
            if let Ok(Message::Byte(START)) = receive(self.lines.channel.as_fd()) {
                return Ok(());
            }
        }
    }

    fn enter_namespaces(&mut self, kinds: u64) -> Result<(), Failure> {
        let step = || "enter the container's namespaces".to_owned();
        let Some(target) = self.lines.target.as_ref() else {
            return Err(Failure::new(step(), "no container was given"));
        };
        if kinds == 0 {
            return Ok(());
        }
        // All at once: the kernel checks them before it changes any, and knows the right order.
        sys::set_namespace(target.as_fd(), kinds as i32).step(step)?;
        if kinds & libc::CLONE_NEWUSER as u64 == 0 {
            return Ok(());
        }
        self.user = true;
        become_root()
    }

    fn terminal(&mut self, size: Option<(u16, u16)>, console: bool, uid: u32) -> Result<(), Failure> {
        let Some(socket) = self.lines.console.take() else {
            return Err(Failure::new("make the terminal", "there is no console socket to send it to"));
        };
        let own = match &self.root {
            Some(_) => None,
            None => Some(Root::new(open_directory(Path::new("/"))?)),
        };
        let root = self.root.as_ref().or(own.as_ref());
        let Some(root) = root else { return Ok(()) };
        terminal::set_up(root, socket.as_fd(), self.lines.keeps_lines, size, console, uid)
    }

    fn await_admission(&mut self, descriptors: usize, user: bool) -> Result<(), Failure> {
        let Some(given) = sources::receive(self.lines.channel.as_fd(), descriptors)? else {
            sys::exit_now(70)
        };
        self.given = given.into_iter().map(Some).collect();
        self.user = user;
        if !user {
            return Ok(());
        }
        become_root()
    }

    /// One of the descriptors that the creator has opened.
    fn take(&mut self, number: usize) -> Result<OwnedFd, Failure> {
        self.given.get_mut(number).and_then(Option::take).ok_or_else(|| {
            Failure::new("set up the container", format!("descriptor {number} was not handed over"))
        })
    }

    fn mount_root(&mut self, rootfs: &Rootfs, at: &Path) -> Result<(), Failure> {
        match rootfs {
            Rootfs::Directory(path) => root::mount_directory(path, at)?,
            Rootfs::Overlay { lower, upper, work } => {
                root::mount_overlay(lower, upper, work, at, self.user)?;
            }
        }
        self.root = Some(Root::new(open_directory(at)?));
        Ok(())
    }

    /// Source: `pivot_root(2)`, "`pivot_root(".", ".")`": the old root ends up on top of the new one, and goes.
    fn pivot_root(&mut self) -> Result<(), Failure> {
        let step = || "change to the container's root file system".to_owned();
        self.root()?.finish()?;
        rustix::process::fchdir(self.root()?.fd()).step(step)?;
        rustix::process::pivot_root(".", ".").step(step)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).step(step)?;
        rustix::process::chdir("/").step(step)?;
        self.root = None;
        self.given.clear();
        Ok(())
    }

    /// Source: Linux `Documentation/filesystems/ramfs-rootfs-initramfs.rst`: the first root cannot be pivoted, but
    /// covered.
    fn move_root(&mut self) -> Result<(), Failure> {
        let step = || "cover the host's root file system".to_owned();
        self.root()?.finish()?;
        self.root()?.part_from_kernel()?;
        rustix::process::fchdir(self.root()?.fd()).step(step)?;
        rustix::mount::mount_move(".", "/").step(step)?;
        rustix::process::chroot(".").step(step)?;
        rustix::process::chdir("/").step(step)?;
        self.root = None;
        Ok(())
    }

    fn exec(&mut self, args: &[String], env: &[String]) -> Result<(), Failure> {
        let executable = self.executable.take().unwrap_or_default();
        let string = |text: &String| {
            let zero = |_| Failure::new("exec", "an argument contains a zero byte");
            CString::new(text.as_str()).map_err(zero)
        };
        let args = args.iter().map(string).collect::<Result<Vec<_>, _>>()?;
        let env = env.iter().chain(&self.home).map(string).collect::<Result<Vec<_>, _>>()?;
        let shown = executable.to_string_lossy();
        let step = || if self.fails_by_itself { format!("exec {shown}") } else { format!("exec `{shown}`") };
        Err(sys::exec(&executable, &args, &env)).step(step)
    }
}

/// Whoever has come into a user namespace has its privileges, and no id in it yet.
fn become_root() -> Result<(), Failure> {
    let step = || "become root of the user namespace".to_owned();
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(step)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(step)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(|| format!("open `{}`", path.display()))
}

/// What the caller keeps in its session keyring is none of the container's business. The `first` process makes one that
/// those find who enter the container later.
fn session_keyring(name: &str, first: bool) -> Result<(), Failure> {
    let step = || format!("make the session keyring `{name}`");
    match sys::join_session_keyring(name) {
        // A kernel without keyrings, or a seccomp filter around us that forbids them.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        Ok(keyring) if first => sys::let_join_keyring(keyring).step(step),
        other => other.map(drop).step(step),
    }
}

/// Nobody who shares a namespace with us may look into this process while it still is the host's program.
fn protect() -> Result<(), Failure> {
    sys::set_undumpable().step(|| "protect the container's process".to_owned())
}

fn numbers(bits: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |number| bits & 1 << number != 0)
}

pub(super) fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn join_namespace(kind: i32, path: &Path) -> Result<(), Failure> {
    let step = || format!("join the namespace `{}`", path.display());
    let file = std::fs::File::open(path).step(step)?;
    sys::set_namespace(file.as_fd(), kind).step(step)
}

pub(super) fn oom_score_adj(path: &Path, adjustment: i32) -> Result<(), Failure> {
    let step = || format!("set oom_score_adj to {adjustment}");
    let present = std::fs::read_to_string(path).step(step)?;
    if present.trim() == adjustment.to_string() {
        return Ok(());
    }
    match write_existing(path, &adjustment.to_string()) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Err(Failure::new(
            step(),
            format!(
                "operation not permitted: lowering it from {} needs CAP_SYS_RESOURCE, which the runtime does not have",
                present.trim()
            ),
        )),
        other => other.step(step),
    }
}

fn rlimit(Rlimit { name, resource, soft, hard }: &Rlimit) -> Result<(), Failure> {
    let step = || format!("set {name} to {soft}:{hard}");
    match sys::set_rlimit(*resource, *soft, *hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(Failure::new(step(), NO_RESOURCE)),
        other => other.step(step),
    }
}

fn readonly_root() -> Result<(), Failure> {
    let step = || "make the root file system read-only".to_owned();
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    sys::mount_setattr(root.as_fd(), attributes, false).step(step)
}

fn working_directory(path: &Path) -> Result<(), Failure> {
    let step = || format!("change to the working directory `{}`", path.display());
    rustix::process::chdir(path).step(step)?;
    // A path through /proc could have led out of the container by way of an open descriptor (CVE-2024-21626).
    if !sys::current_directory().step(step)?.starts_with(b"/") {
        return Err(Failure::new(step(), "it is outside of the container"));
    }
    Ok(())
}

/// The directory of a user by the container's `/etc/passwd`, else `/`, as with runc.
///
/// Source: `passwd(5)`.
fn home(uid: u32) -> String {
    // The image may have anything there, such as a pipe without an end.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut users = String::new();
    if let Ok(file) = rustix::fs::open("/etc/passwd", flags, Mode::empty())
        && rustix::fs::fstat(&file)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    {
        use std::io::Read;
        // What was read before an error is as good as a shorter file.
        let _ = std::fs::File::from(file).take(PASSWD_MAX).read_to_string(&mut users);
    }
    let home_of = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        fields.nth(2).filter(|home| found && !home.is_empty() && !home.contains('\0')).map(str::to_owned)
    };
    users.lines().find_map(home_of).unwrap_or_else(|| "/".to_owned())
}

/// The numbers of the bits that are set.
fn number_list(bits: &[u64]) -> String {
    let set = |number: &usize| bits[number / 64] >> (number % 64) & 1 == 1;
    let numbers: Vec<String> = (0..bits.len() * 64).filter(set).map(|number| number.to_string()).collect();
    numbers.join(",")
}

fn bounding_set(keep: u64) -> Result<(), Failure> {
    for number in numbers(!keep) {
        match sys::drop_bounding(number) {
            // Past the last capability of this kernel.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other.step(|| format!("drop capability {number} from the bounding set"))?,
        }
    }
    Ok(())
}

/// `namespaced`: in a user namespace that was made without privileges, groups can neither be set nor taken away.
fn user(uid: u32, gid: u32, groups: &[u32], namespaced: bool) -> Result<(), Failure> {
    let step = || format!("become user {uid}:{gid}");
    if uid != 0 {
        sys::keep_capabilities(true).step(step)?;
    }
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Err(rustix::io::Errno::PERM) if namespaced && groups.is_empty() => {}
        other => other.step(step)?,
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(step)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(step)
}

/// The program `name` stands for: as a shell would, except that a name with a slash is never searched.
fn resolve_executable(name: &str, path: &str) -> Result<PathBuf, Failure> {
    let is_executable = |candidate: &Path| -> io::Result<()> {
        if std::fs::metadata(candidate)?.is_file() {
            // As the kernel decides it: with the capabilities a user was given.
            let (may, as_effective) = (rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS);
            match rustix::fs::accessat(rustix::fs::CWD, candidate, may, as_effective) {
                // What a filter around us may say of a call that it does not know.
                Err(rustix::io::Errno::PERM) => Ok(rustix::fs::access(candidate, may)?),
                other => Ok(other?),
            }
        } else {
            Err(io::Error::from_raw_os_error(libc::EACCES))
        }
    };
    if name.contains('/') {
        return is_executable(Path::new(name)).step(|| format!("exec `{name}`")).map(|()| name.into());
    }
    let mut cause = Cause::Os(libc::ENOENT);
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match is_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => cause = Cause::Os(libc::EACCES),
            Err(_) => {}
        }
    }
    Err(Failure { step: format!("exec `{name}` (searched in `{path}`)"), cause })
}
