//! A directory that files are created in and never outside of.
//!
//! Every lookup goes through `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, so links in the tree lead within it,
//! even if someone else exchanges them meanwhile; every creation is a `*at` call on the opened parent with one plain
//! name and follows no link.
//!
//! Source: Linux `openat2(2)`; kernel guide `filesystems/overlayfs.rst`, "whiteouts and opaque directories".

use std::{
    cell::Cell,
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps,
        Uid, XattrFlags,
    },
    io::Errno,
};

use super::tar::Entry;

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// As many links as the kernel follows in one path.
const MAX_LINKS: u32 = 40;
const OPAQUE: &str = "trusted.overlay.opaque";

/// The root of the tree being filled.
pub struct Tree {
    root: OwnedFd,
    implied: Cell<u64>,
}

/// An opened directory of the tree; names given to its methods must be single components.
pub struct Directory {
    fd: OwnedFd,
}

impl Tree {
    pub fn open(path: &Path) -> io::Result<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Tree { root: rustix::fs::openat(CWD, path, flags, Mode::empty())?, implied: Cell::default() })
    }

    /// How many directories [`Tree::make_directory`] has made.
    pub fn implied(&self) -> u64 {
        self.implied.get()
    }

    /// An empty file without a name, on the file system of the tree.
    pub fn nameless_file(&self) -> io::Result<File> {
        let name = b".rswarm-nameless";
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.root, OsStr::from_bytes(name), flags, mode)?;
        rustix::fs::unlinkat(&self.root, OsStr::from_bytes(name), AtFlags::empty())?;
        Ok(file.into())
    }

    /// Opens the existing directory `path`, following links within the tree.
    pub fn directory(&self, path: &[&[u8]]) -> io::Result<Directory> {
        Ok(Directory { fd: self.open_path(path, OFlags::RDONLY | OFlags::DIRECTORY)? })
    }

    /// Opens the directory `path`, making what is missing of it (owner root, mode 0755).
    pub fn make_directory(&self, path: &[&[u8]]) -> io::Result<Directory> {
        self.make_directory_within(path, MAX_LINKS)
    }

    fn make_directory_within(&self, path: &[&[u8]], links_left: u32) -> io::Result<Directory> {
        match self.directory(path) {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => {}
            found => return found,
        }
        let Some((name, parent_path)) = path.split_last() else { return Err(io::ErrorKind::NotFound.into()) };
        let parent = self.make_directory_within(parent_path, links_left)?;
        match parent.kind(name)? {
            None => {
                parent.create_directory(name)?;
                self.implied.set(self.implied.get() + 1);
            }
            Some(FileType::Symlink) => {
                // A link to a directory that only a lower layer has: make it here too, so that the entry lands where
                // the link leads in the finished tree.
                let left = links_left.checked_sub(1).ok_or_else(|| io::Error::from(Errno::LOOP))?;
                let target = rustix::fs::readlinkat(&parent.fd, OsStr::from_bytes(name), Vec::new())?;
                let resolved = follow(parent_path, target.to_bytes());
                let parts: Vec<&[u8]> = resolved.iter().map(Vec::as_slice).collect();
                self.make_directory_within(&parts, left)?;
            }
            Some(FileType::CharacterDevice) => {
                // Removed by a whiteout of this layer, then made anew: nothing of the lower one may shine through.
                parent.remove(name)?;
                parent.create_directory(name)?;
                self.directory(path)?.make_opaque()?;
            }
            Some(_) => return Err(Errno::NOTDIR.into()),
        }
        self.directory(path)
    }

    fn open_path(&self, path: &[&[u8]], flags: OFlags) -> io::Result<OwnedFd> {
        let joined = if path.is_empty() { b".".to_vec() } else { path.join(&b'/') };
        loop {
            // The kernel asks to try again where a rename elsewhere raced with the resolution of `..`.
            match rustix::fs::openat2(
                &self.root,
                OsStr::from_bytes(&joined),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                CONFINED,
            ) {
                Err(Errno::AGAIN) => {}
                result => return Ok(result?),
            }
        }
    }
}

/// The parts of where a link at `parent` with text `target` leads, `..` at the root staying there.
fn follow(parent: &[&[u8]], target: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> =
        if target.starts_with(b"/") { Vec::new() } else { parent.iter().map(|part| part.to_vec()).collect() };
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name.to_vec()),
        }
    }
    parts
}

impl Directory {
    /// The type of `name`, links not followed; `None` if there is none.
    pub fn kind(&self, name: &[u8]) -> io::Result<Option<FileType>> {
        Ok(self.stat(name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    pub fn stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub fn create_directory(&self, name: &[u8]) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&self.fd, OsStr::from_bytes(name), mode)?;
        // Again, as the process' umask has a say in the creation.
        Ok(rustix::fs::chmodat(&self.fd, OsStr::from_bytes(name), mode, AtFlags::empty())?)
    }

    pub fn open_directory(&self, name: &[u8]) -> io::Result<Directory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Directory { fd: rustix::fs::openat(&self.fd, OsStr::from_bytes(name), flags, Mode::empty())? })
    }

    /// Creates an empty file that must not exist.
    pub fn create_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, OsStr::from_bytes(name), flags, Mode::from_raw_mode(0o600))?.into())
    }

    pub fn create_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), &self.fd, OsStr::from_bytes(name))?)
    }

    pub fn create_fifo(&self, name: &[u8]) -> io::Result<()> {
        self.node(name, FileType::Fifo)
    }

    /// Creates overlayfs' whiteout, the character device 0/0; it hides `name` of the layers below.
    pub fn create_whiteout(&self, name: &[u8]) -> io::Result<()> {
        self.node(name, FileType::CharacterDevice)
    }

    fn node(&self, name: &[u8], kind: FileType) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o600);
        Ok(rustix::fs::mknodat(&self.fd, OsStr::from_bytes(name), kind, mode, rustix::fs::makedev(0, 0))?)
    }

    /// Makes `name` another name of the file `existing` in `other`; a link there is linked, not followed.
    pub fn create_hard_link(&self, name: &[u8], other: &Directory, existing: &[u8]) -> io::Result<()> {
        let (from, to) = (OsStr::from_bytes(existing), OsStr::from_bytes(name));
        Ok(rustix::fs::linkat(&other.fd, from, &self.fd, to, AtFlags::empty())?)
    }

    /// Hides everything that lower layers have in this directory.
    pub fn make_opaque(&self) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(&self.fd, OPAQUE, b"y", XattrFlags::empty())?)
    }

    /// Removes `name` and everything below it.
    pub fn remove(&self, name: &[u8]) -> io::Result<()> {
        let os = OsStr::from_bytes(name);
        match rustix::fs::unlinkat(&self.fd, os, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            result => return Ok(result?),
        }
        let inner = self.open_directory(name)?;
        for child in Dir::read_from(&inner.fd)? {
            let child = child?;
            let child_name = child.file_name().to_bytes();
            if child_name != b"." && child_name != b".." {
                inner.remove(child_name)?;
            }
        }
        Ok(rustix::fs::unlinkat(&self.fd, os, AtFlags::REMOVEDIR)?)
    }

    /// Gives `name` the owner, mode, extended attributes and time of `entry`; a directory's time comes later.
    ///
    /// Owner first, as a change of owner clears set-user-id bits and file capabilities.
    pub fn apply(&self, name: &[u8], entry: &Entry, is_link: bool) -> io::Result<()> {
        let os = OsStr::from_bytes(name);
        let (owner, group) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(&self.fd, os, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_link {
            // The name was made by us a moment ago and is no link, so following is harmless.
            rustix::fs::chmodat(&self.fd, os, Mode::from_raw_mode(entry.mode as RawMode), AtFlags::empty())?;
        }
        self.set_xattrs(name, entry)?;
        self.set_time(name, entry.mtime)
    }

    fn set_xattrs(&self, name: &[u8], entry: &Entry) -> io::Result<()> {
        // There is no `setxattrat` before Linux 6.13; the opened parent's entry in /proc names the same place.
        let mut path = format!("/proc/self/fd/{}/", self.fd.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        for (key, value) in &entry.xattrs {
            if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
                // They would steer overlayfs itself; builders leave them behind by mistake.
                tracing::warn!(entry = entry.name(), xattr = %String::from_utf8_lossy(key), "overlayfs attribute left out");
                continue;
            }
            let result = rustix::fs::lsetxattr(
                OsStr::from_bytes(&path),
                OsStr::from_bytes(key),
                value,
                XattrFlags::empty(),
            );
            match result {
                // No file system here may support it, as for SELinux labels and `user.` on links. A capability that
                // is lost would change what the program may do, so that one is an error.
                Err(Errno::OPNOTSUPP | Errno::PERM) if key != b"security.capability" => {
                    tracing::debug!(entry = entry.name(), xattr = %String::from_utf8_lossy(key), "attribute not supported here");
                }
                Err(errno) => {
                    let (key, bytes) = (String::from_utf8_lossy(key).into_owned(), value.len());
                    let source = io::Error::from(errno);
                    return Err(io::Error::new(source.kind(), AttributeRefused { key, bytes, source }));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    pub fn set_time(&self, name: &[u8], (seconds, nanos): (i64, u32)) -> io::Result<()> {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(&self.fd, OsStr::from_bytes(name), &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Which extended attribute could not be set; within an [`io::Error`], whose kind is that of the cause.
#[derive(Debug, thiserror::Error)]
#[error("its attribute `{key}` of {bytes} bytes is refused")]
struct AttributeRefused {
    key: String,
    bytes: usize,
    #[source]
    source: io::Error,
}
