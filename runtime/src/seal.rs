//! Protection of the host's executable against programs in containers (CVE-2019-5736).
//!
//! A process on its way into a container still runs the host's program, and a container can have itself execute
//! `/proc/self/exe`. Either way somebody in it gets hold of the host's file. From a read-only mount that file cannot be
//! written to, and a mount that is in no namespace cannot be found and made writable. This costs no copy.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{Access, MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use crate::sys::{self, MountAttributes};

/// A read-only mount of `executable` that is in no namespace.
pub(crate) fn seal(executable: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, executable, flags)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    sys::mount_setattr(mount.as_fd(), attributes, false)?;
    Ok(mount)
}

/// Sees to it that this process runs from a sealed mount, if need be by executing its program once more from its
/// beginning: to be called first of all. Whoever may not mount, but may write to the file, runs a sealed copy.
///
/// # Errors
/// The executable could be written to and cannot be protected.
pub(crate) fn run_sealed() -> io::Result<()> {
    let own = Path::new("/proc/self/exe");
    if rustix::fs::statvfs(own)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let protected = match seal(own) {
        Ok(mount) => mount,
        // Without the privilege to mount there is none to write to the file of another user either.
        Err(_) if rustix::fs::access(own, Access::WRITE_OK).is_err() => return Ok(()),
        Err(_) => {
            let file = File::open(own)?;
            if rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
                return Ok(());
            }
            copy(file)?
        }
    };
    let path = CString::new(format!("/proc/self/fd/{}", protected.as_raw_fd()))?;
    let text = |text: std::ffi::OsString| CString::new(text.into_vec());
    let args = std::env::args_os().map(text).collect::<Result<Vec<_>, _>>()?;
    let env = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        text(name)
    });
    Err(sys::exec(&path, &args, &env.collect::<Result<Vec<_>, _>>()?))
}

/// A copy in memory that nobody can change any more.
fn copy(mut file: File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("rswarm-runc", flags)?);
    io::copy(&mut file, &mut copy)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    // It cannot be executed as long as it is open for writing.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(File::open(path)?.into())
}
