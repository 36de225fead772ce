//! `sd_notify(3)` across the container's border, for units of `Type=notify`.
//!
//! The container does not see the socket of its caller. It has one of its own, at which whoever starts it listens
//! until the program is ready, and then tells the caller. As with runc that is all: other messages, and what comes
//! later, are not passed on.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use super::container::{self, Container};
use super::report::{Log, chain};

const VARIABLE: &str = "NOTIFY_SOCKET";
/// In the state directory.
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
/// In the container.
const TARGET: &str = "/run/notify";
/// How long the caller may take to hear us before we go on.
const BARRIER: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The caller's socket, if it has one.
fn callers() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|value| !value.is_empty())
}

/// Where the caller waits to be notified, puts a socket to come from `directory` into the configuration of a container.
/// Says whether [`make`] has to be called.
pub(super) fn offer(spec: &mut Spec, directory: &Path, log: &Log) -> bool {
    if callers().is_none() {
        return false;
    }
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let joins = |namespace: &oci_spec::runtime::LinuxNamespace| {
        namespace.typ() == LinuxNamespaceType::Mount && namespace.path().is_some()
    };
    if namespaces.into_iter().flatten().any(joins) {
        log.warn("NOTIFY_SOCKET is not passed on: nothing is mounted into a mount namespace of others");
        return false;
    }
    let mut mount = Mount::default();
    mount.set_destination(TARGET.into()).set_source(Some(directory.join(DIRECTORY)));
    mount.set_options(Some(["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec()));
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("{VARIABLE}={TARGET}/{SOCKET}"));
        process.set_env(Some(env));
    }
    true
}

/// Makes the directory that is mounted. The socket comes with the start.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    let path = directory.join(DIRECTORY);
    fs::create_dir(&path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// The way from a container to its caller.
pub(super) struct Notify {
    /// The container's socket.
    from: OwnedFd,
    /// The caller's.
    to: OwnedFd,
}

impl Notify {
    /// To be called before the program is started. Without it the container starts all the same: a caller who cannot be
    /// reached is warned.
    pub fn listen(container: &Container, log: &Log) -> Option<Self> {
        let name = callers()?;
        let directory = container.directory.join(DIRECTORY);
        let open = || {
            let to = connect(name.as_bytes())?;
            let (_handle, address) = container::address(&directory, SOCKET)?;
            let from = socket()?;
            rustix::net::bind(&from, &address)?;
            // Of whichever user the program is.
            fs::set_permissions(directory.join(SOCKET), Permissions::from_mode(0o777))?;
            Ok(Self { from, to })
        };
        let said = |error: &io::Error| {
            let name = name.display();
            log.warn(&format!("{VARIABLE}={name} will not hear of the container: {}", chain(error)));
        };
        open().inspect_err(said).ok()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    /// Waits until the program is ready, or its process has ended (`pidfd`, none where it has already).
    pub fn wait(&self, pidfd: Option<&OwnedFd>, main: i32, log: &Log) {
        loop {
            let mut fds = vec![PollFd::new(&self.from, PollFlags::IN)];
            fds.extend(pidfd.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
            let interrupted = pidfd.is_some() && poll(&mut fds, None).is_err();
            // What it said last may have come together with its end.
            let ended = !interrupted && fds.get(1).is_none_or(|first| !first.revents().is_empty());
            if self.pass_on(main, log) || ended {
                return;
            }
        }
    }

    /// Reads what has come, without waiting. Once it is that the program is ready, the caller is told so, and that
    /// `main` is the process to watch: then there is no more to do.
    pub fn pass_on(&self, main: i32, log: &Log) -> bool {
        let mut buffer = [0u8; 4096];
        while let Ok((len, _)) = rustix::net::recv(&self.from, &mut buffer, rustix::net::RecvFlags::DONTWAIT)
        {
            let mut lines = buffer[..len].split(|byte| *byte == b'\n');
            let Some(ready) = lines.find(|line| line.starts_with(b"READY=")) else { continue };
            // In one message: a service that is ready is watched by its process from the beginning.
            let message = [ready, format!("\nMAINPID={main}\n").as_bytes()].concat();
            if let Err(error) = self.tell(&message) {
                log.warn(&format!("{VARIABLE} did not hear that the container is ready: {}", chain(&error)));
            }
            return true;
        }
        false
    }

    /// Systemd finds the unit by the sender's process, which therefore stays until it has been heard.
    ///
    /// Source: `sd_notify_barrier(3)`.
    fn tell(&self, message: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.to, message, SendFlags::NOSIGNAL)?;
        let (heard, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [theirs.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let text = [io::IoSlice::new(b"BARRIER=1")];
        // Whoever has gone since has heard enough.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if rustix::net::sendmsg(&self.to, &text, &mut control, flags).is_ok() {
            drop(theirs);
            let _ = poll(&mut [PollFd::new(&heard, PollFlags::empty())], Some(&BARRIER));
        }
        Ok(())
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// A line to a socket in the file system or, with `@`, in the network namespace.
fn connect(name: &[u8]) -> io::Result<OwnedFd> {
    let address = match name {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        [b'/', ..] => SocketAddrUnix::new(name)?,
        _ => {
            return Err(io::Error::other(
                "expected a path from `/`, or `@` and the name of an abstract socket",
            ));
        }
    };
    let socket = socket()?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}
