//! Writing cpio archives in the `newc` form, which is what the kernel unpacks as its first root file system.
//!
//! Left out: reading, hard links, device nodes (the guest mounts devtmpfs), owners other than root.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const DIRECTORY_MODE: u32 = 0o755;

/// An archive being written. Directories above an entry are made as needed.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    /// Bytes written: names and contents start at multiples of 4.
    position: u64,
    inode: u32,
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, position: 0, inode: 0, directories: BTreeSet::new() }
    }

    /// A directory, and those above it. Fine if it is there.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let path = relative(path)?;
        self.parents(&path)?;
        if !path.as_os_str().is_empty() && self.directories.insert(path.clone()) {
            self.header(&name(&path)?, DIRECTORY | DIRECTORY_MODE, 0)?;
        }
        Ok(())
    }

    /// A file with these permissions; `contents` must hold `length` bytes.
    pub fn file(&mut self, path: &Path, mode: u32, length: u64, contents: impl Read) -> io::Result<()> {
        let path = relative(path)?;
        self.parents(&path)?;
        let size = u32::try_from(length).map_err(|_| {
            io::Error::new(io::ErrorKind::FileTooLarge, "a cpio archive holds files below 4 GiB")
        })?;
        self.header(&name(&path)?, REGULAR | mode, size)?;
        let copied = io::copy(&mut contents.take(length), &mut self.out)?;
        if copied != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter meanwhile"));
        }
        self.position += length;
        self.pad()
    }

    pub fn symlink(&mut self, path: &Path, target: &str) -> io::Result<()> {
        let path = relative(path)?;
        self.parents(&path)?;
        let size = u32::try_from(target.len()).map_err(|_| invalid("expected a shorter target"))?;
        self.header(&name(&path)?, SYMLINK | 0o777, size)?;
        self.write(target.as_bytes())?;
        self.pad()
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(TRAILER, 0, 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.directory(parent),
            _ => Ok(()),
        }
    }

    fn header(&mut self, name: &str, mode: u32, size: u32) -> io::Result<()> {
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1).map_err(|_| invalid("expected a shorter path"))?;
        // inode, mode, user, group, links, time, size, device (2), device of a node (2), length of the name, checksum
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = MAGIC.to_owned();
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.write(header.as_bytes())?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = (4 - self.position % 4) % 4;
        self.write(&[0; 3][..missing as usize])
    }
}

/// The path below the root, without anything that leads elsewhere.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(path.to_owned())
    } else {
        Err(invalid("expected a path without `.` and `..`"))
    }
}

fn name(path: &Path) -> io::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| invalid("expected a path of UTF-8"))
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per entry, as `name mode size`.
    fn list(archive: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at = 0;
        let aligned = |at: usize| at.div_ceil(4) * 4;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], MAGIC.as_bytes(), "at {at}");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11) as usize);
            let name = std::str::from_utf8(&archive[at + 110..at + 110 + name_size - 1]).unwrap();
            lines.push(format!("{name} {mode:o} {size}"));
            at = aligned(aligned(at + 110 + name_size) + size as usize);
        }
        lines
    }

    #[test]
    fn entries_are_aligned_and_their_directories_come_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/c"), 0o755, 5, &b"hello"[..]).unwrap();
        archive.file(Path::new("a/b/d"), 0o644, 0, io::empty()).unwrap();
        archive.symlink(Path::new("/a/link"), "b/c").unwrap();
        archive.directory(Path::new("/a/b")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let expected = [
            "a 40755 0",
            "a/b 40755 0",
            "a/b/c 100755 5",
            "a/b/d 100644 0",
            "a/link 120777 3",
            "TRAILER!!! 0 0",
        ];
        assert_eq!(list(&bytes), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.file(Path::new("/a/../b"), 0o644, 0, io::empty()).is_err());
        assert!(archive.file(Path::new("/big"), 0o644, 1 << 32, io::empty()).is_err());
        let short = archive.file(Path::new("/short"), 0o644, 4, &b"abc"[..]).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }
}
