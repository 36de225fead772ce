//! Protection of the host's executable against programs in containers (CVE-2019-5736).
//!
//! A process on its way into a container still runs the host's program, and a container can have itself execute
//! `/proc/self/exe`. Either way somebody in it gets hold of the host's file. From a read-only mount that file cannot be
//! written to, and a mount that is in no namespace cannot be found and made writable. This costs no copy, and mostly no
//! second start of the program either.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{Access, MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use crate::sys::{self, MountAttributes};

/// `executable`, opened on a read-only mount that is in no namespace. Nobody can change that mount any more: its own
/// descriptor, by which one could, is closed here.
pub(crate) fn seal(executable: &Path) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, executable, flags)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    sys::mount_setattr(mount.as_fd(), attributes, false)?;
    File::open(own(&mount))
}

fn own(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Sees to it that this process runs from a sealed mount: it moves there as it is, or where it cannot it executes its
/// program once more from its beginning. To be called first of all. Whoever may not mount, but may write to the file,
/// runs a sealed copy.
///
/// # Errors
/// The executable could be written to and cannot be protected.
pub(crate) fn run_sealed() -> io::Result<()> {
    let program = Path::new("/proc/self/exe");
    if rustix::fs::statvfs(program)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let protected = match seal(program) {
        Ok(file) if sys::run_from(file.as_fd()).is_ok() => return Ok(()),
        Ok(file) => file,
        // Without the privilege to mount there is none to write to the file of another user either.
        Err(_) if rustix::fs::access(program, Access::WRITE_OK).is_err() => return Ok(()),
        Err(_) => {
            let file = File::open(program)?;
            if rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
                return Ok(());
            }
            copy(file)?
        }
    };
    let path = CString::new(own(&protected))?;
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
fn copy(mut file: File) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("rswarm-runc", flags)?);
    io::copy(&mut file, &mut copy)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    // It cannot be executed as long as it is open for writing.
    File::open(own(&copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_mount_cannot_be_made_writable() {
        let file = match seal(Path::new("/proc/self/exe")) {
            Ok(file) => file,
            Err(error) => return eprintln!("skipped: needs the privilege to mount ({error})"),
        };
        let attributes = MountAttributes { clear: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        let refused = sys::mount_setattr(file.as_fd(), attributes, false);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let written = std::fs::OpenOptions::new().write(true).open(own(&file));
        assert_ne!(written.unwrap_err().raw_os_error(), None);
        assert!(rustix::fs::fstatvfs(&file).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY));
    }
}
