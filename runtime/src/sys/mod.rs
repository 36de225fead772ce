//! Raw system calls that no safe wrapper covers. The only `unsafe` of this crate.
//!
//! Everything here is a thin, checked door to the kernel: no policy, no formatting, `io::Error` with the errno.

#![allow(unsafe_code)]

mod attributes;
mod memory;
mod namespaces;

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub use attributes::*;
pub use memory::*;
pub use namespaces::*;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks the calling process. Refused when the process has more than one thread, because the child may then
/// only make async-signal-safe calls, and ours allocates.
///
/// # Errors
/// The kernel's, or `EBUSY`-like [`io::ErrorKind::ResourceBusy`] with more than one thread.
pub fn fork_single_threaded() -> io::Result<Fork> {
    ensure_single_threaded()?;
    // SAFETY: there is no second thread, so no lock is held by anyone but us, and the child may do anything.
    match check(c_long::from(unsafe { libc::fork() }))? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// A fork with new namespaces: `clone3` with `namespaces` (`CLONE_NEW*`) and, on cgroup v2, straight into `cgroup`.
/// The child's pid is that of our own pid namespace.
///
/// # Errors
/// The kernel's; as [`fork_single_threaded`] with more than one thread.
pub fn clone_single_threaded(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    ensure_single_threaded()?;
    // SAFETY: all fields of `clone_args` are integers, for which zero is the documented "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and without a stack this behaves like fork: the child runs on a copy of this
    // stack. There is no second thread whose lock could be left taken.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(pid as i32) })
}

fn ensure_single_threaded() -> io::Result<()> {
    // `nlink` of the task directory is the number of threads plus two.
    let threads = rustix::fs::stat("/proc/self/task").map_or(1, |stat| stat.st_nlink.saturating_sub(2));
    if threads > 1 {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("process has {threads} threads, expected 1"),
        ));
    }
    Ok(())
}

/// Leaves at once, without unwinding or running exit handlers: for children made by the calls above.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Blocks every signal and gives back a descriptor that reads those of `signals`.
pub fn block_signals_into_fd(signals: &[c_int]) -> io::Result<OwnedFd> {
    // SAFETY: plain initialisation of a signal set that lives on this stack, then calls with valid pointers.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(c_long::from(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut())))?;
        let mut wanted: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut wanted);
        for signal in signals {
            libc::sigaddset(&raw mut wanted, *signal);
        }
        let fd = check(c_long::from(libc::signalfd(
            -1,
            &raw const wanted,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Lets children be waited for, whatever whoever started this process thinks of its own: `SIGCHLD` that is ignored stays
/// ignored across exec, and then the kernel keeps nothing of a child that ends.
pub fn expect_children() {
    // SAFETY: no pointers, and no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Puts every signal back to its default action and unblocks all: what a program expects to be started with.
/// Rust ignores `SIGPIPE`, and an ignored signal stays ignored across exec.
pub fn reset_signals() {
    // SAFETY: the structures live on this stack; numbers the C library reserves answer EINVAL, which is fine.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sends `signal` (0 only checks) to a process.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// Sends `signal` (0 only checks) to the process that `fd` stands for. Real-time signals are as good as any.
pub fn pidfd_kill(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<c_void>();
    // SAFETY: no information goes with the signal.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) }).map(drop)
}

/// One ended child, if there is one: `(pid, raw wait status)`. Never blocks.
pub fn reap() -> Option<(i32, c_int)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call. __WALL also sees children whose exit signal is not SIGCHLD.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Waits for one child to end.
pub fn wait_for(pid: i32) -> io::Result<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let result = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        match check(c_long::from(result)) {
            Ok(_) => return Ok(status),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `(exit code, signal)` of a raw wait status; exactly one is present.
pub fn decode_wait_status(status: c_int) -> (Option<i32>, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        (None, Some(libc::WTERMSIG(status)))
    } else {
        (Some(libc::WEXITSTATUS(status)), None)
    }
}

/// Attributes to give a mount: `MOUNT_ATTR_*` bits to set and to clear, and one `MS_SHARED`, `MS_SLAVE`,
/// `MS_PRIVATE` or `MS_UNBINDABLE` (0 for "as it is").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttributes {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
}

/// Changes the mount that `fd` is the root of; `recursive` includes all mounts below.
pub fn mount_setattr(fd: BorrowedFd<'_>, attributes: MountAttributes, recursive: bool) -> io::Result<()> {
    // SAFETY: zero means "unchanged" for every field.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = attributes.set;
    attr.attr_clr = attributes.clear;
    attr.propagation = attributes.propagation;
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid C string, `attr` lives until the call returns and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no pointers; only a flag of each descriptor changes.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Leaves a new process with these descriptors: 0, 1 and 2 as given and `preserved` ones from 3 on as they are, all
/// kept across exec, and `own` ones behind, closed by exec. Everything else is closed, so the process must never
/// return to code that owned it.
pub fn keep_only<const N: usize>(
    stdio: [BorrowedFd<'_>; 3],
    preserved: u32,
    own: [Option<BorrowedFd<'_>>; N],
) -> io::Result<[Option<OwnedFd>; N]> {
    let first = 3 + preserved as RawFd;
    // Out of the way first, so that no source is overwritten before it was copied.
    let aside = first + N as RawFd;
    // SAFETY: no pointers; whoever owned the closed descriptors never runs in this process again (see above).
    unsafe {
        let copy = |fd: BorrowedFd<'_>| {
            check(c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, aside)))
        };
        let mut standard = [0; 3];
        for (to, fd) in standard.iter_mut().zip(stdio) {
            *to = copy(fd)? as RawFd;
        }
        let mut copies = [None; N];
        for (to, fd) in copies.iter_mut().zip(own) {
            *to = fd.map(copy).transpose()?;
        }
        for (to, copy) in standard.iter().enumerate() {
            check(c_long::from(libc::dup2(*copy, to as RawFd)))?;
        }
        let mut owned = [const { None }; N];
        let mut next = first;
        for (to, copy) in owned.iter_mut().zip(copies) {
            if let Some(copy) = copy {
                check(c_long::from(libc::dup3(copy as RawFd, next, libc::O_CLOEXEC)))?;
                *to = Some(OwnedFd::from_raw_fd(next));
                next += 1;
            }
        }
        check(libc::syscall(libc::SYS_close_range, next as u32, u32::MAX, 0u32))?;
        Ok(owned)
    }
}

/// Leaves the session keyring for the one of this name, which is made if nobody has one that may be searched: its number.
///
/// Source: `keyctl(2)`, `KEYCTL_JOIN_SESSION_KEYRING`.
pub fn join_session_keyring(name: &str) -> io::Result<c_long> {
    let name = CString::new(name)?;
    // SAFETY: `name` outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Lets processes of the keyring's user join it by its name.
///
/// Source: `keyctl(2)`, `KEYCTL_SETPERM`; `keyrings(7)`, "Access rights".
pub fn let_join_keyring(keyring: c_long) -> io::Result<()> {
    // All for who has it, view, read, search and link for its user: what it is made with, and search.
    const RIGHTS: u32 = 0x3f1b_0000;
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, keyring, RIGHTS) }).map(drop)
}

/// Takes over the descriptor this process was started with as number `fd`, moved away from the standard ones.
pub fn adopt_standard(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC gives a new descriptor that only the returned handle owns.
    unsafe {
        check(c_long::from(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3)))
            .map(|fd| OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A borrowed view of a standard descriptor.
pub fn standard(fd: RawFd) -> BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&fd));
    // SAFETY: 0, 1 and 2 are open from the start of the process to its end.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Whether a descriptor is open, and not one that this process has opened for itself.
pub fn is_inherited(number: u32) -> bool {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(number as c_int, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

/// Replaces the program. Returns only on failure.
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in null and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Installs a seccomp filter for this thread. `program` is in the kernel's `sock_filter` layout. Gives the
/// notification descriptor, if the flags ask for one.
pub fn set_seccomp_filter(
    program: &[crate::seccomp::Instruction],
    flags: u32,
) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct SockFprog {
        len: u16,
        filter: *const crate::seccomp::Instruction,
    }
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp program is too long"))?;
    let prog = SockFprog { len, filter: program.as_ptr() };
    // SAFETY: `Instruction` is `repr(C)` with the fields of `sock_filter`; the program outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog) };
    let asked = u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0;
    // SAFETY: with that flag the result is a new descriptor, which belongs to the handle made from it.
    check(result).map(|fd| asked.then(|| unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
}

/// Loads a program that decides about the use of devices and attaches it to a v2 cgroup, for as long as that exists.
/// `program` is in the kernel's `bpf_insn` layout.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    const PROG_LOAD: c_int = 5;
    const PROG_ATTACH: c_int = 8;
    #[repr(C)]
    struct Load {
        program_type: u32,
        instruction_count: u32,
        instructions: *const u64,
        license: *const c_char,
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    let load = Load {
        program_type: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        instruction_count: program.len() as u32,
        instructions: program.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
    };
    // SAFETY: layouts as in linux/bpf.h, whose later fields are zero when left out; everything outlives the calls, and
    // the new descriptor belongs to the handle made from it.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of_val(&load)))?;
        let fd = OwnedFd::from_raw_fd(fd as RawFd);
        let attach = Attach {
            target: cgroup.as_raw_fd() as u32,
            program: fd.as_raw_fd() as u32,
            attach_type: 6, // BPF_CGROUP_DEVICE
            flags: 2,       // BPF_F_ALLOW_MULTI: all programs up the tree must agree
        };
        check(libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of_val(&attach))).map(drop)
    }
}

/// The three process capability sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilityBits {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// Sets effective, permitted and inheritable capabilities of this thread in one call.
pub fn set_capabilities(bits: CapabilityBits) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words for each set.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let word = |shift: u32| Data {
        effective: (bits.effective >> shift) as u32,
        permitted: (bits.permitted >> shift) as u32,
        inheritable: (bits.inheritable >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: layouts as in linux/capability.h; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

fn prctl(option: c_int, arg2: u64, arg3: u64) -> io::Result<i32> {
    // SAFETY: callers pass options whose arguments are integers.
    check(c_long::from(unsafe { libc::prctl(option, arg2, arg3, 0u64, 0u64) })).map(|value| value as i32)
}

/// Removes one capability from the bounding set. Numbers the kernel does not know answer `EINVAL`.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0).map(drop)
}

/// Adds one capability to the ambient set; it must be permitted and inheritable.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability)).map(drop)
}

/// Keeps permitted capabilities over a change from root to another user; exec clears this again.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0).map(drop)
}

/// Forbids gaining privileges by exec, for good.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Keeps other processes from tracing this one or looking into its `/proc` entry; exec undoes it.
pub fn set_undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Makes orphaned descendants ours to wait for.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// Sets a soft and hard limit of this process; `resource` is a `RLIMIT_*` number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call.
    check(c_long::from(unsafe { libc::setrlimit(resource, &raw const limit) })).map(drop)
}

/// Brings up the loopback interface of this network namespace.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: `ifreq` is plain data; the socket is owned by the handle made from it.
    unsafe {
        let socket =
            check(c_long::from(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)))?;
        let socket = OwnedFd::from_raw_fd(socket as RawFd);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        check(c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request))).map(drop)
    }
}

/// Enters the namespace that `fd` stands for. `kind` is its `CLONE_NEW*` flag.
pub fn set_namespace(fd: BorrowedFd<'_>, kind: c_int) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    check(c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kind) })).map(drop)
}

/// Leaves the cgroup namespace for a new one, rooted at the present cgroup.
pub fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: no pointers; affects this process only, which has one thread.
    check(c_long::from(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })).map(drop)
}

/// A watch of a file, or of the files in a directory, readable when one changes.
pub fn watch_directory(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `path` is a C string; the descriptor is owned by the handle made from it.
    unsafe {
        let fd = check(c_long::from(libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK)))?;
        let fd = OwnedFd::from_raw_fd(fd as RawFd);
        let events = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO;
        check(c_long::from(libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), events)))?;
        Ok(fd)
    }
}

/// The kernel's working directory string; starts with `(unreachable)` when outside of the root.
pub fn current_directory() -> io::Result<Vec<u8>> {
    let mut buffer = [0u8; 4096];
    // SAFETY: the buffer's true size is passed; the kernel writes a C string of the returned length.
    let len = check(unsafe {
        libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr().cast::<c_void>(), buffer.len())
    })?;
    Ok(buffer[..(len as usize).saturating_sub(1)].to_vec())
}

/// Wall clock in nanoseconds since 1970.
pub fn unix_nanos() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
