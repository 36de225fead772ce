//! Labels of security modules, which the process writes for itself below `/proc/self/attr`.
//!
//! Source: `apparmor(7)`; `proc_pid_attr(5)`.

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Failure, Step};
use crate::plan::Label;

/// Source: Linux `include/uapi/linux/magic.h`.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Takes a label. An unknown one is named.
pub(super) fn take(label: &Label) -> Result<(), Failure> {
    let unknown = (libc::EINVAL, "the kernel's policy knows no such label");
    match label {
        Label::AppArmor(name) => {
            let step = format!("apply the AppArmor profile `{name}`");
            let unknown = (libc::ENOENT, "the kernel has no profile of this name: load it first");
            write("apparmor/exec", &format!("exec {name}"), &step, unknown)
        }
        Label::Selinux(label) => {
            write("exec", label, &format!("give the program the SELinux label `{label}`"), unknown)
        }
        Label::Keys(label) => {
            write("keycreate", label, &format!("give keys the SELinux label `{label}`"), unknown)
        }
    }
}

/// Writes to an attribute of this process. `unknown`: what an errno of the kernel means.
///
/// It must be the kernel that is asked: a label that goes to anything else is one that the container does not have.
fn write(file: &str, value: &str, step: &str, unknown: (i32, &str)) -> Result<(), Failure> {
    let opening = || format!("{step}: open `/proc/self/attr/{file}`");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).step(opening)?;
    if rustix::fs::fstatfs(&proc).step(opening)?.f_type as i64 != PROC_SUPER_MAGIC {
        return Err(Failure::new(step, "expected the kernel's own file system on `/proc`"));
    }
    // Nor is anything mounted on the way.
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let (path, flags) = (format!("self/attr/{file}"), OFlags::WRONLY | OFlags::CLOEXEC);
    let file = rustix::fs::openat2(&proc, path, flags, Mode::empty(), resolve).step(opening)?;
    match rustix::io::write(&file, value.as_bytes()) {
        Err(error) if error.raw_os_error() == unknown.0 => Err(Failure::new(step, unknown.1)),
        other => other.map(drop).step(|| step.to_owned()),
    }
}
