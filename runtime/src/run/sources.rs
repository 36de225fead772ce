//! What the creator opens for the new process, and the way it takes to get there.
//!
//! A process in a user namespace cannot look into directories of the host that are closed to others, and only the
//! host's root can map the ids of a mount. The creator therefore opens such things, and sends them over the line.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::admission;
use super::root::{self, clone_mount};
use crate::error::{Failure, Step};
use crate::plan::{IdMaps, IdSource, Source};
use crate::request::Rootfs;
use crate::sys::{self, Fork, MountAttributes};

/// Descriptors in one message; the kernel takes at most 253.
const BATCH: usize = 128;
/// The message that brings them.
pub(super) const ADMITTED: u8 = b'A';

/// Opens everything, in the order of the plan.
///
/// # Errors
/// The first source that cannot be opened.
pub(super) fn open_all(sources: &[Source]) -> Result<Vec<OwnedFd>, Failure> {
    let mut users = Users::default();
    sources.iter().map(|source| open(source, &mut users)).collect()
}

fn open(source: &Source, users: &mut Users) -> Result<OwnedFd, Failure> {
    match source {
        Source::Root { rootfs: Rootfs::Directory(path), propagation } => {
            let step = || format!("use `{}` as root file system", path.display());
            let mount = clone_mount(CWD, path.as_os_str(), true).step(step)?;
            spread(mount.as_fd(), *propagation).step(step)?;
            Ok(mount)
        }
        Source::Root { rootfs: Rootfs::Overlay { lower, upper, work }, .. } => overlay(lower, upper, work),
        Source::Tree { path, recursive, ids, propagation } => {
            let step = || format!("bind mount `{}`", path.display());
            let mount = clone_mount(CWD, path.as_os_str(), *recursive).step(step)?;
            spread(mount.as_fd(), *propagation).step(step)?;
            if let Some(ids) = ids {
                let user = users.get(&ids.maps)?;
                sys::map_mount_ids(mount.as_fd(), user, ids.recursive)
                    .step(|| format!("map the ids of `{}`", path.display()))?;
            }
            Ok(mount)
        }
        Source::File(path) => std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .map(OwnedFd::from)
            .step(|| format!("open `{}`", path.display())),
        Source::Connection(path) => connect(path),
    }
}

fn spread(mount: BorrowedFd<'_>, propagation: u64) -> std::io::Result<()> {
    if propagation == 0 {
        return Ok(());
    }
    sys::mount_setattr(mount, MountAttributes { propagation, ..Default::default() }, true)
}

/// A connection to the socket at `path`, however long that is.
pub(super) fn connect(path: &Path) -> Result<OwnedFd, Failure> {
    let step = || format!("failed to connect with seccomp agent `{}`", path.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty()).step(step)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd())).step(step)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .step(step)?;
    rustix::net::connect(&socket, &address).step(step)?;
    Ok(socket)
}

/// An overlay that is mounted nowhere. Layers go by descriptor, as in [`root::mount_overlay`].
fn overlay(lower: &[PathBuf], upper: &Path, work: &Path) -> Result<OwnedFd, Failure> {
    let step = || format!("mount the overlay of {} layers", lower.len() + 1);
    let layers = lower.iter().map(|path| root::open_layer(path)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work_fd) = (root::open_layer(upper)?, root::open_layer(work)?);
    root::forget_volatile(work);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    let names: Vec<String> = layers.iter().map(name).collect();
    let joined = names.join(":");
    // One value has 255 bytes at most; newer kernels take layers one by one.
    if joined.len() < 256 {
        set("lowerdir", &joined).step(step)?;
    } else {
        names.iter().try_for_each(|name| set("lowerdir+", name)).step(step)?;
    }
    set("source", "overlay").step(step)?;
    set("upperdir", &name(&upper)).step(step)?;
    set("workdir", &name(&work_fd)).step(step)?;
    // Older kernels do without.
    let _ = rustix::mount::fsconfig_set_flag(&context, "volatile");
    rustix::mount::fsconfig_create(&context).step(step)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)
}

/// User namespaces that exist for their maps only.
#[derive(Default)]
struct Users {
    made: Vec<(IdSource, OwnedFd)>,
}

impl Users {
    fn get(&mut self, source: &IdSource) -> Result<BorrowedFd<'_>, Failure> {
        let at = match self.made.iter().position(|(known, _)| known == source) {
            Some(at) => at,
            None => {
                let namespace = match source {
                    IdSource::Maps(maps) => user_namespace(maps)?,
                    IdSource::Namespace(path) => std::fs::File::open(path)
                        .map(OwnedFd::from)
                        .step(|| format!("open the namespace `{}`", path.display()))?,
                };
                self.made.push((source.clone(), namespace));
                self.made.len() - 1
            }
        };
        Ok(self.made[at].1.as_fd())
    }
}

/// A user namespace with these maps and nobody in it.
fn user_namespace(maps: &IdMaps) -> Result<OwnedFd, Failure> {
    let step = || "make a user namespace for the ids of a mount".to_owned();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(step)?;
    match sys::clone_single_threaded(libc::CLONE_NEWUSER as u64, None).step(step)? {
        Fork::Child => {
            // Stays until the other end is closed, by whatever way.
            drop(writer);
            let _ = std::fs::File::from(reader).read(&mut [0]);
            sys::exit_now(0)
        }
        Fork::Parent(pid) => {
            let namespace = admission::write_maps(pid, maps).and_then(|()| {
                std::fs::File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from).step(step)
            });
            drop(writer);
            let _ = sys::wait_for(pid);
            namespace
        }
    }
}

/// Hands `descriptors` over, and with them the word that the process may begin.
pub(super) fn send(channel: BorrowedFd<'_>, descriptors: &[OwnedFd]) -> Result<(), Failure> {
    let step = || "hand descriptors to the container's process".to_owned();
    let all: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let batches = if all.is_empty() { vec![&all[..]] } else { all.chunks(BATCH).collect() };
    for batch in batches {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !batch.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(batch));
        }
        rustix::net::sendmsg(channel, &[IoSlice::new(&[ADMITTED])], &mut control, SendFlags::NOSIGNAL)
            .step(step)?;
    }
    Ok(())
}

/// Receives `count` descriptors; the other end of [`send`]. `None`: the creator has gone.
pub(super) fn receive(channel: BorrowedFd<'_>, count: usize) -> Result<Option<Vec<OwnedFd>>, Failure> {
    let step = || "take the descriptors of the creator".to_owned();
    let mut all = Vec::with_capacity(count);
    loop {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(channel, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Ok(None),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).step(step),
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                all.extend(descriptors);
            }
        }
        if byte != [ADMITTED] {
            return Err(super::unexpected(byte[0]));
        }
        if all.len() >= count {
            return Ok(Some(all));
        }
    }
}

/// Sends one message with one descriptor over a stream.
pub(super) fn send_one(socket: BorrowedFd<'_>, message: &[u8], fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let fds = [fd];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let mut rest = message;
    let mut sent = rustix::net::sendmsg(socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?;
    // The descriptor went with the first part.
    while sent < rest.len() {
        rest = &rest[sent..];
        let mut none = SendAncillaryBuffer::default();
        sent = rustix::net::sendmsg(socket, &[IoSlice::new(rest)], &mut none, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}
