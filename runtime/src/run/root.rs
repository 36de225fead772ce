//! The container's root file system while it is being filled: paths that cannot leave it, and mounts by descriptor.
//!
//! An image is free to contain links such as `dev -> /etc`. Every path is therefore resolved by the kernel with the
//! container's root as its root (`openat2`, `RESOLVE_IN_ROOT`), and mounts are attached to the descriptor that came
//! of it, never to a path that could mean something else by then.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::cgroup::{Cgroup, unescape};
use crate::error::{Failure, Step};
use crate::plan::{Device, MountKind, MountPlan};
use crate::sys::{self, MountAttributes};

/// A descriptor of the root directory of the container's file system.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    /// An empty read-only tmpfs, made for the first masked directory and used for all.
    empty: Option<OwnedFd>,
    /// The mounts of the kernel's own file systems by their path. What is hidden in them is looked for in them, for
    /// by then somebody else may have put something in their place (CVE-2023-27561).
    kernel: Vec<(PathBuf, OwnedFd)>,
    /// What is to be read-only in the end, when everything below it is there.
    read_only: Vec<(PathBuf, OwnedFd)>,
}

/// How long a walk is repeated that somebody disturbs by renaming what is on its way.
const UNDISTURBED_MAX: Duration = Duration::from_secs(5);

/// So many links the kernel follows on one path. Source: `path_resolution(7)`.
const LINKS_MAX: usize = 40;

/// File systems that show the kernel, and must be where everybody expects them.
const KERNEL: [&str; 2] = ["proc", "sysfs"];

impl Root {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, empty: None, kernel: Vec::new(), read_only: Vec::new() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The file at `path` as the container will see it; links are followed inside.
    fn resolve(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, Mode::empty())
    }

    pub fn open(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        open_in(self.fd(), path, flags, mode, ResolveFlags::empty())
    }

    /// The directory at `path` with no link on the way, made if it is missing. A link there would be the image's, and
    /// lead what everybody looks for at `path` somewhere else (CVE-2019-16884, CVE-2023-27561).
    fn ordinary_directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let open = || open_in(self.fd(), path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        match open() {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        self.directory(path)?;
        open()
    }

    /// The directory at `path`, made with its parents if it is missing.
    fn directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let open = || self.open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        match open() {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        self.make(path, make_directory)?;
        open()
    }

    /// Makes what is missing at `path`, its parents as directories and the end of it by `make_end`. Links are followed as
    /// the kernel would, also those that lead to nothing: then that is made. Nothing is opened but by the name of one part
    /// in a directory that is open, and `..` leads to the directory it was reached from.
    fn make(
        &self,
        path: &Path,
        make_end: fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        let mut way: Vec<OwnedFd> = Vec::new();
        let mut rest = parts(path);
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                way.pop();
                continue;
            }
            let here = way.last().map_or(self.fd(), AsFd::as_fd);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = || rustix::fs::openat(here, &part, flags, Mode::empty());
            let found = match open() {
                Err(Errno::NOENT) => {
                    let make = if rest.is_empty() { make_end } else { make_directory };
                    match make(here, &part) {
                        Ok(()) | Err(Errno::EXIST) => open()?,
                        Err(error) => return Err(error),
                    }
                }
                other => other?,
            };
            if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    way.clear();
                }
                rest.extend(parts(target));
            } else {
                way.push(found);
            }
        }
        Ok(())
    }

    /// Makes the working directory if it is not there.
    pub fn make_directory(&self, path: &Path) -> Result<(), Failure> {
        let step = || format!("make the working directory `{}`", path.display());
        self.directory(path).map(drop).step(step)
    }

    /// The file at `path`, made empty if it is missing: something to mount a file on.
    fn file(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        self.make(path, make_file)?;
        self.resolve(path)
    }

    /// Performs one mount of the plan. `given` is its source, if somebody else opened that.
    pub fn mount(&mut self, plan: &MountPlan, given: Option<OwnedFd>) -> Result<(), Failure> {
        let target = plan.target.display();
        match &plan.kind {
            MountKind::FileSystem { name, source, options, copy_up } => {
                // Before its place is made: of one that cannot be there shall be no directory left.
                let mut attributes = plan.attributes;
                if name == "tmpfs" {
                    attributes.set &= !libc::MOUNT_ATTR_RDONLY;
                }
                let label = plan.label.as_deref();
                let mount = new_mount(name, source.as_deref(), options, attributes, label, &plan.target)?;
                let kernel = KERNEL.contains(&name.as_str());
                let missing = self.resolve(&plan.target).is_err();
                let place =
                    if kernel { self.ordinary_directory(&plan.target) } else { self.directory(&plan.target) };
                let place = match place {
                    Err(Errno::LOOP) => {
                        let step = format!("mount {name} on `{target}`");
                        return Err(Failure::new(
                            step,
                            "must be mounted on ordinary directory: expected a directory and no symbolic link there",
                        ));
                    }
                    other => other.step(|| format!("make the mount point `{target}`"))?,
                };
                if name == "tmpfs" {
                    let step = || format!("fill the tmpfs on `{target}`");
                    if !options.iter().any(|(key, _)| key == "mode") {
                        // As with runc, what covers a directory is open to those to whom that was, and else to
                        // everybody, also when the container is started again and finds the directory.
                        let (from, to) = if missing { (&mount, &place) } else { (&place, &mount) };
                        let mode = rustix::fs::fstat(from).step(step)?.st_mode & 0o7777;
                        rustix::fs::chmodat(to, ".", Mode::from_raw_mode(mode), AtFlags::empty())
                            .step(step)?;
                    }
                    if *copy_up {
                        super::copy::tree(place.as_fd(), mount.as_fd()).step(step)?;
                    }
                }
                let propagation =
                    MountAttributes { propagation: plan.attributes.propagation, ..Default::default() };
                set_attributes(mount.as_fd(), propagation, false, &plan.target)?;
                set_attributes(mount.as_fd(), plan.recursive, true, &plan.target)?;
                attach(mount.as_fd(), place.as_fd()).step(|| format!("mount {name} on `{target}`"))?;
                if kernel {
                    self.kernel.push((plan.target.clone(), mount));
                } else if attributes != plan.attributes {
                    self.read_only.push((plan.target.clone(), mount));
                }
                Ok(())
            }
            MountKind::Bind { source, recursive, .. } => {
                let mount = match given {
                    Some(mount) => mount,
                    None => clone_mount(CWD, source.as_os_str(), *recursive)
                        .step(|| format!("bind mount `{}` on `{target}`", source.display()))?,
                };
                let place =
                    if is_directory(&mount) { self.directory(&plan.target) } else { self.file(&plan.target) };
                let place = place.step(|| format!("make the mount point `{target}`"))?;
                set_attributes(mount.as_fd(), plan.attributes, false, &plan.target)?;
                set_attributes(mount.as_fd(), plan.recursive, true, &plan.target)?;
                // The kernel's word for it is "invalid argument".
                let fits = is_directory(&place) == is_directory(&mount);
                let attached = if fits { attach(mount.as_fd(), place.as_fd()) } else { Err(Errno::NOTDIR) };
                attached.step(|| format!("bind mount `{}` on `{target}`", source.display()))
            }
            MountKind::Cgroup(cgroup) => {
                let place =
                    self.directory(&plan.target).step(|| format!("make the mount point `{target}`"))?;
                cgroup_mount(cgroup, plan, place.as_fd())
            }
        }
    }

    /// Makes read-only what had to be filled first.
    pub fn finish(&mut self) -> Result<(), Failure> {
        let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        let mut mounts = self.read_only.drain(..);
        mounts.try_for_each(|(target, mount)| set_attributes(mount.as_fd(), attributes, false, &target))
    }

    /// Unmounts the host's file systems that show the kernel. A root that is only covered keeps its mounts, and the
    /// kernel allows whoever makes a user namespace a procfs of his own, with nothing masked in it, as long as there is
    /// an open one in the mount namespace, seen or not.
    pub fn part_from_kernel(&self) -> Result<(), Failure> {
        let step = || "part with the host's procfs and sysfs".to_owned();
        let info = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let info = std::fs::read_to_string(info).step(step)?;
        let own = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").step(step)?;
        // Inner ones first.
        for place in kernel_mounts_outside(&mounts, own).iter().rev() {
            match rustix::mount::unmount(place, UnmountFlags::DETACH) {
                // Of another user namespace, it cannot be taken away but covered.
                Err(Errno::INVAL | Errno::PERM) => {
                    let none = rustix::mount::MountFlags::empty();
                    rustix::mount::mount("tmpfs", place, "tmpfs", none, None).step(step)?;
                }
                other => other.step(step)?,
            }
        }
        Ok(())
    }

    /// Hides what is at `path`, if anything is: an empty directory or an empty file in its place.
    pub fn mask(&mut self, path: &Path, label: Option<&str>) -> Result<(), Failure> {
        let step = || format!("mask `{}`", path.display());
        let Some(place) = self.existing(path).step(step)? else { return Ok(()) };
        let stat = rustix::fs::fstat(&place).step(step)?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let Some(empty) = &self.empty else {
                let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
                let options = [("size".to_owned(), Some("0k".to_owned()))];
                let first = new_mount("tmpfs", Some("tmpfs"), &options, attributes, label, path)?;
                // Before Linux 6.15 a mount can be cloned only once it is attached.
                attach(first.as_fd(), place.as_fd()).step(step)?;
                self.empty = Some(first);
                return Ok(());
            };
            clone_mount(empty.as_fd(), OsStr::new(""), false).step(step)?
        } else {
            // The host's device, for the container's may be anything its image wants.
            clone_host_device(Path::new("/dev/null")).step(step)?
        };
        attach(cover.as_fd(), place.as_fd()).step(step)
    }

    /// Makes what is at `path`, if anything is, read-only.
    pub fn make_readonly(&self, path: &Path) -> Result<(), Failure> {
        let step = || format!("make `{}` read-only", path.display());
        let Some(place) = self.existing(path).step(step)? else { return Ok(()) };
        let mount = clone_mount(place.as_fd(), OsStr::new(""), true).step(step)?;
        let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        sys::mount_setattr(mount.as_fd(), attributes, true).step(step)?;
        attach(mount.as_fd(), place.as_fd()).step(step)
    }

    fn existing(&self, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
        // The deepest mount that the path is in, if it is one of the kernel's.
        let kernel = self.kernel.iter().rev().find_map(|(target, mount)| {
            let rest = path.strip_prefix(target).ok().filter(|rest| !rest.as_os_str().is_empty())?;
            Some(open_in(mount.as_fd(), rest, OFlags::PATH, Mode::empty(), ResolveFlags::empty()))
        });
        match kernel.unwrap_or_else(|| self.resolve(path)) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the terminal `end` appear at `path`.
    pub fn console(&self, path: &Path, end: BorrowedFd<'_>) -> Result<(), Failure> {
        let step = || format!("mount the terminal on `{}`", path.display());
        let place = self.file(path).step(step)?;
        let mount = clone_mount(end, OsStr::new(""), false).step(step)?;
        attach(mount.as_fd(), place.as_fd()).step(step)
    }

    /// Makes a device node. One that is there already must be the same.
    pub fn device(&self, device: &Device) -> Result<(), Failure> {
        let step = || format!("make the device `{}`", device.path.display());
        let (parent, name) = split(&device.path).step(step)?;
        let parent = self.directory(parent).step(step)?;
        let number = rustix::fs::makedev(device.major, device.minor);
        let kind = FileType::from_raw_mode(device.kind);
        match rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(device.mode), number) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // By a link or not; it may be the host's, whose owner stays.
                let there = self.resolve(&device.path).and_then(rustix::fs::fstat);
                let same = |stat: &rustix::fs::Stat| {
                    FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number
                };
                return match there {
                    Ok(stat) if same(&stat) => Ok(()),
                    _ => Err(Failure::new(step(), "something else is there")),
                };
            }
            // In a user namespace nobody makes devices, but the host's can be shown.
            Err(Errno::PERM) => return self.host_device(device),
            Err(error) => return Err(error).step(step),
        }
        if (device.uid, device.gid) != (0, 0) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(device.uid), rustix::fs::Gid::from_raw(device.gid));
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).step(step)?;
        }
        Ok(())
    }

    /// Shows the host's device of the same path and number.
    fn host_device(&self, device: &Device) -> Result<(), Failure> {
        let step = || format!("show the device `{}` of the host", device.path.display());
        let mount = clone_host_device(&device.path).step(step)?;
        let stat = rustix::fs::fstat(&mount).step(step)?;
        let number = rustix::fs::makedev(device.major, device.minor);
        if stat.st_mode & libc::S_IFMT != device.kind || stat.st_rdev != number {
            return Err(Failure::new(
                step(),
                "the host has something else there, and making one is not permitted",
            ));
        }
        let place = self.file(&device.path).step(step)?;
        attach(mount.as_fd(), place.as_fd()).step(step)
    }

    /// A link in `/dev`.
    pub fn device_link(&self, name: &str, target: &str) -> Result<(), Failure> {
        let step = || format!("link `/dev/{name}` to `{target}`");
        let dev = self.directory(Path::new("/dev")).step(step)?;
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).step(step),
        }
    }
}

fn make_directory(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
}

fn make_file(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// The names on a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let named = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}

/// Opens `path` with `root` as its root: neither `..` nor a link leads out of it.
fn open_in(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    more: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    let end = Instant::now() + UNDISTURBED_MAX;
    loop {
        // AGAIN: something was renamed during the walk, so the kernel could not vouch for the result.
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < end => {}
            other => return other,
        }
    }
}

/// Places of procfs and sysfs that are neither the mount `own` nor below it. Source: `proc_pid_mountinfo(5)`.
fn kernel_mounts_outside(mountinfo: &str, own: &str) -> Vec<PathBuf> {
    let lines = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let mounts: Vec<(Vec<&str>, &str)> =
        lines.map(|(mount, kind)| (mount.split(' ').take(5).collect(), kind)).collect();
    let parents: BTreeMap<&str, &str> = mounts.iter().map(|(fields, _)| (fields[0], fields[1])).collect();
    let is_own = |id: &str| {
        // Up to a mount that is not in the list, or is its own parent.
        let up = |id: &&str| parents.get(id).copied().filter(|parent| parent != id);
        std::iter::successors(Some(id), up).any(|id| id == own)
    };
    let kernel =
        mounts.iter().filter(|(_, kind)| KERNEL.contains(&kind.split(' ').next().unwrap_or_default()));
    let outside = kernel.filter(|(fields, _)| !is_own(fields[0]));
    outside.map(|(fields, _)| unescape(fields[4]).into()).collect()
}

/// Parent and name; a path that ends in neither a name nor the root is refused.
fn split(path: &Path) -> rustix::io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => Ok((parent, name)),
        _ => Err(Errno::INVAL),
    }
}

/// A new instance of a file system, mounted nowhere yet, whose files have the SELinux context `label`.
fn new_mount(
    name: &str,
    source: Option<&str>,
    options: &[(String, Option<String>)],
    attributes: MountAttributes,
    label: Option<&str>,
    target: &Path,
) -> Result<OwnedFd, Failure> {
    let step = || format!("mount {name} on `{}`", target.display());
    let context = match rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => {
            return Err(Failure::new(step(), format!("this kernel has no file system `{name}`")));
        }
        other => other.step(step)?,
    };
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(&context, "source", source).step(step)?;
    }
    for (key, value) in options {
        let set = match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => rustix::mount::fsconfig_set_flag(&context, key.as_str()),
        };
        let value = value.as_deref().map_or(String::new(), |value| format!("={value}"));
        set.step(|| format!("{} with option `{key}{value}`", step()))?;
    }
    // The kernel has made the file system of message queues with their namespace, and takes no options for it.
    let later = name == "mqueue";
    let labelling = |label: &str| format!("{} with the SELinux label `{label}`", step());
    if let Some(label) = label.filter(|_| !later) {
        rustix::mount::fsconfig_set_string(&context, "context", label).step(|| labelling(label))?;
    }
    rustix::mount::fsconfig_create(&context).step(|| label.map_or_else(step, labelling))?;
    let flags = MountAttrFlags::from_bits_retain(attributes.set as u32);
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).step(step)?;
    if let Some(label) = label.filter(|_| later) {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&mount, ".", flags, Mode::empty()).step(step)?;
        rustix::fs::fsetxattr(&root, "security.selinux", label.as_bytes(), XattrFlags::empty())
            .step(|| labelling(label))?;
    }
    Ok(mount)
}

/// A copy of the mount at `path`, mounted nowhere yet.
pub(super) fn clone_mount(at: BorrowedFd<'_>, path: &OsStr, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(at, path, flags)
}

/// A copy of the mount of the host's device node at `path`. Read-only: the device can be written to all the same, but
/// mode, owner, times and attributes are those of the host's own file.
fn clone_host_device(path: &Path) -> io::Result<OwnedFd> {
    let mount = clone_mount(CWD, path.as_os_str(), false)?;
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(mount.as_fd(), MountAttributes { set, ..Default::default() }, false)?;
    Ok(mount)
}

/// A device open to everybody, on a file system of its own that is mounted nowhere.
pub(super) fn new_device(kind: FileType, number: u64) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::fs::mknodat(&mount, "device", kind, Mode::empty(), number)?;
    rustix::fs::chmodat(&mount, "device", Mode::from_raw_mode(0o666), AtFlags::empty())?;
    rustix::fs::openat(&mount, "device", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

fn is_directory(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
    recursive: bool,
    target: &Path,
) -> Result<(), Failure> {
    if attributes == MountAttributes::default() {
        return Ok(());
    }
    sys::mount_setattr(mount, attributes, recursive)
        .step(|| format!("set the options of the mount on `{}`", target.display()))
}

/// The container's own part of the cgroup tree: on v2 just that; on v1 a tmpfs with one directory per hierarchy, and
/// links for hierarchies that have several names.
fn cgroup_mount(cgroup: &Cgroup, plan: &MountPlan, place: BorrowedFd<'_>) -> Result<(), Failure> {
    let bind = |directory: &Path, place: BorrowedFd<'_>| -> Result<(), Failure> {
        let step = || format!("mount the cgroup `{}`", directory.display());
        let mount = clone_mount(CWD, directory.as_os_str(), false).step(step)?;
        set_attributes(mount.as_fd(), plan.attributes, false, &plan.target)?;
        attach(mount.as_fd(), place).step(step)
    };
    match cgroup.members.as_slice() {
        [only] => return bind(&only.directory, place),
        // It has no cgroup of its own: the host's can be looked at, as with rootless runc.
        [] => {
            let step = || format!("show the host's cgroups on `{}`", plan.target.display());
            let host = clone_mount(CWD, OsStr::new("/sys/fs/cgroup"), true).step(step)?;
            let closed = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
            sys::mount_setattr(host.as_fd(), closed, true).step(step)?;
            return attach(host.as_fd(), place).step(step);
        }
        _ => {}
    }
    let writable = MountAttributes { set: plan.attributes.set & !libc::MOUNT_ATTR_RDONLY, ..plan.attributes };
    let options = [("mode".to_owned(), Some("755".to_owned()))];
    let label = plan.label.as_deref();
    let tmpfs = new_mount("tmpfs", Some("cgroup"), &options, writable, label, &plan.target)?;
    let step = || format!("mount the cgroups on `{}`", plan.target.display());
    attach(tmpfs.as_fd(), place).step(step)?;
    for member in &cgroup.members {
        let Some(name) = member.mount.file_name() else { continue };
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755)).step(step)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let inner = rustix::fs::openat(&tmpfs, name, flags, Mode::empty()).step(step)?;
        bind(&member.directory, inner.as_fd())?;
        for alias in member.controllers.iter().filter(|_| member.controllers.len() > 1) {
            if OsStr::new(alias) != name {
                rustix::fs::symlinkat(name, &tmpfs, alias.as_str()).step(step)?;
            }
        }
    }
    set_attributes(tmpfs.as_fd(), plan.attributes, false, &plan.target)
}

/// A layer of an overlay.
pub(super) fn open_layer(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).step(|| format!("open the layer `{}`", path.display()))
}

/// Takes away the mark of an earlier volatile mount, which would refuse another one. What it warns of, a crash in
/// between, is the caller's to know: see `Rootfs::Overlay`.
pub(super) fn forget_volatile(work: &Path) {
    let _ = std::fs::remove_dir_all(work.join("work/incompat/volatile"));
}

/// Covers the host's root with the container's: a place that exists, and that every process can reach. Paths still
/// mean the host's.
pub(super) fn cover(mount: &OwnedFd) -> Result<(), Failure> {
    rustix::mount::move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step(|| "mount the root file system".to_owned())
}

/// Mounts an overlay at `at`. Layers are named by descriptor numbers, relative to `/proc/self/fd`: the kernel takes
/// one page of options at most, and real paths of a deep image do not fit. `user`: in a user namespace the overlay's
/// own marks are attributes that users may set.
pub(super) fn mount_overlay(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    at: &Path,
    user: bool,
) -> Result<(), Failure> {
    let step = || format!("mount the overlay of {} layers on `{}`", lower.len() + 1, at.display());
    let layers = lower.iter().map(|path| open_layer(path)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work_fd) = (open_layer(upper)?, open_layer(work)?);
    let numbers: Vec<String> = layers.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    forget_volatile(work);
    let (upper_number, work_number) = (upper.as_raw_fd(), work_fd.as_raw_fd());
    let user = if user { ",userxattr" } else { "" };
    let data = format!("lowerdir={},upperdir={upper_number},workdir={work_number}{user}", numbers.join(":"));
    rustix::process::chdir("/proc/self/fd").step(step)?;
    let mount = |data: &str| -> io::Result<()> {
        let data = std::ffi::CString::new(data)?;
        rustix::mount::mount(
            "overlay",
            at,
            "overlay",
            rustix::mount::MountFlags::empty(),
            Some(data.as_c_str()),
        )?;
        Ok(())
    };
    // A container's own layer is never used again after a crash of the machine, so there is nothing to sync; without
    // this the end of every container writes back all of the host's file system.
    let mounted = match mount(&format!("{data},volatile")) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => mount(&data),
        other => other,
    };
    rustix::process::chdir("/").step(step)?;
    mounted.step(step)
}

/// Mounts a copy of the directory tree `path` at `at`.
pub(super) fn mount_directory(path: &Path, at: &Path) -> Result<(), Failure> {
    let step = || format!("use `{}` as root file system", path.display());
    let mount = clone_mount(CWD, path.as_os_str(), true).step(step)?;
    rustix::mount::move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(step)
}
