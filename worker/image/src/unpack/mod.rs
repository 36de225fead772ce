//! Unpacking one layer into a directory that overlayfs can use as a lower layer.
//!
//! Whiteouts become what overlayfs expects; ownership, modes, times, links and extended attributes are kept. The layer
//! is hostile until proven otherwise: nothing is written outside the directory, devices are refused, sizes and counts
//! are bounded, and every refusal names the entry. What was written when an error comes is the caller's to remove.
//!
//! Source: OCI image-spec, `layer.md`, "Applying Changesets" and "Whiteouts".

mod tar;
mod times;
mod tree;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use rustix::fs::FileType;
use thiserror::Error;

pub(crate) use self::tar::TarReader;
pub use self::tar::{Entry, Kind, TarError};
use self::times::Times;
use self::tree::{Directory, Tree};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const AUFS_METADATA: &[u8] = b".wh..wh.";
/// Where aufs keeps files with several names; a layer may have hard links to them.
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// Bounds on what one layer may hold.
#[derive(Clone, Copy, Debug)]
pub struct LayerLimits {
    /// Sum of the lengths of all files in bytes, holes included.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

impl LayerLimits {
    /// The largest images in public use (machine learning with its models) stay below 32 GiB a layer.
    pub const MAX_BYTES: u64 = 64 << 30;
    /// A full Debian with every TeX package has 400,000 files.
    pub const MAX_ENTRIES: u64 = 2_000_000;
}

impl Default for LayerLimits {
    fn default() -> Self {
        LayerLimits { bytes: Self::MAX_BYTES, entries: Self::MAX_ENTRIES }
    }
}

/// Why a layer cannot be unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    #[error("entry `{entry}` leads outside the layer")]
    PathTraversal { entry: String },
    #[error("entry `{entry}` is a device node ({major}:{minor}): layers with devices are refused")]
    Device { entry: String, major: u32, minor: u32 },
    #[error("entry `{entry}` is a hard link to `{target}`, which this layer does not have")]
    LinkTarget { entry: String, target: String },
    #[error("entry `{entry}` has an invalid name")]
    Name { entry: String },
    #[error("layer is larger than the limit of {limit} bytes at entry `{entry}`")]
    TooManyBytes { entry: String, limit: u64 },
    #[error("layer has more than {limit} entries at entry `{entry}`")]
    TooManyEntries { entry: String, limit: u64 },
    #[error("failed to {action} entry `{entry}`")]
    Entry {
        action: &'static str,
        entry: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("failed to read the compressed layer")]
    Decompress {
        #[source]
        source: io::Error,
    },
    #[error("failed to open directory `{path}`")]
    Directory {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl LayerError {
    /// The error of the operating system beneath, if there is one.
    pub(crate) fn io_error(&self) -> Option<&io::Error> {
        match self {
            LayerError::Entry { source, .. }
            | LayerError::Decompress { source }
            | LayerError::Directory { source, .. } => Some(source),
            LayerError::Tar(TarError::Read { source, .. }) => Some(source),
            _ => None,
        }
    }
}

/// What a layer held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    /// Sum of the lengths of all files in bytes, holes included.
    pub bytes: u64,
    /// The newest time of an entry: seconds since the epoch, nanoseconds.
    pub newest: Option<(i64, u32)>,
}

/// Unpacks the uncompressed tar stream `source` into the existing, empty directory `root`.
///
/// Reads up to the archive's end mark and gives `source` back, so that the caller can drain and verify the rest.
/// Needs root (ownership, whiteouts, `trusted.` attributes).
pub(crate) fn unpack<R: Read>(
    source: R,
    root: &Path,
    limits: LayerLimits,
) -> Result<(Unpacked, R), LayerError> {
    let failed = |source| LayerError::Directory { path: root.display().to_string(), source };
    let tree = Tree::open(root).map_err(failed)?;
    let times = tree.nameless_file().map(Times::new).map_err(failed)?;
    let mut unpacker = Unpacker { tree, limits, total: Unpacked::default(), times };
    let mut tar = TarReader::new(source);
    while let Some(entry) = tar.next()? {
        unpacker.count(&entry)?;
        unpacker.entry(&entry, &mut tar)?;
    }
    let Unpacker { tree, times, total, .. } = unpacker;
    remove_aufs_links(&tree).map_err(failed)?;
    set_directory_times(&tree, times)?;
    Ok((total, tar.into_inner()))
}

struct Unpacker {
    tree: Tree,
    limits: LayerLimits,
    total: Unpacked,
    times: Times,
}

impl Unpacker {
    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.total.entries += 1;
        // With the directories that names imply: one name may stand for two thousand.
        if self.total.entries + self.tree.implied() > self.limits.entries {
            return Err(LayerError::TooManyEntries { entry: entry.name(), limit: self.limits.entries });
        }
        self.total.bytes = self.total.bytes.saturating_add(entry.size);
        if self.total.bytes > self.limits.bytes {
            return Err(LayerError::TooManyBytes { entry: entry.name(), limit: self.limits.bytes });
        }
        self.total.newest = self.total.newest.max(Some(entry.mtime));
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &Entry, tar: &mut TarReader<R>) -> Result<(), LayerError> {
        let path = components(&entry.path, entry)?;
        let fail = |action| failed(action, entry);
        let Some((name, parent_path)) = path.split_last() else {
            return self.root(entry);
        };
        // Bookkeeping of aufs, of no meaning elsewhere; what hard links may name goes at the end.
        let is_metadata = |part: &&[u8]| part.starts_with(AUFS_METADATA);
        let below_metadata = parent_path.iter().any(is_metadata) && parent_path[0] != AUFS_LINKS;
        if below_metadata || is_metadata(name) && *name != OPAQUE_MARK {
            return Ok(());
        }
        if *name == OPAQUE_MARK {
            let directory = self.tree.make_directory(parent_path).map_err(fail("make the directory of"))?;
            return directory.make_opaque().map_err(fail("mark as opaque the directory of"));
        }
        let parent = self.tree.make_directory(parent_path).map_err(fail("make the directory of"))?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&parent, hidden, entry);
        }
        match entry.kind {
            Kind::Character if entry.device == (0, 0) => return self.whiteout(&parent, name, entry),
            Kind::Character | Kind::Block => {
                let (major, minor) = entry.device;
                return Err(LayerError::Device { entry: entry.name(), major, minor });
            }
            _ => {}
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(&parent, name, entry);
        }
        let kept = self.make_way(&parent, name, entry)?;
        match entry.kind {
            Kind::Directory => {
                if !kept {
                    parent.create_directory(name).map_err(fail("create"))?;
                }
                self.times.note(&path.join(&b'/'), entry.mtime).map_err(fail("note the time of"))?;
            }
            Kind::File => {
                let file = parent.create_file(name).map_err(fail("create"))?;
                write_file(file, entry, tar)?;
            }
            Kind::Symlink => parent.create_symlink(name, &entry.link).map_err(fail("create"))?,
            Kind::Fifo => parent.create_fifo(name).map_err(fail("create"))?,
            Kind::HardLink | Kind::Character | Kind::Block => unreachable!("handled above"),
        }
        parent.apply(name, entry, entry.kind == Kind::Symlink).map_err(fail("set the attributes of"))
    }

    /// `./`: the attributes of the layer's own root.
    fn root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Directory {
            return Err(LayerError::Name { entry: entry.name() });
        }
        let fail = failed("set the attributes of", entry);
        let root = self.tree.directory(&[]).map_err(failed("open", entry))?;
        self.times.note(b"", entry.mtime).map_err(failed("note the time of", entry))?;
        root.apply(b".", entry, false).map_err(fail)
    }

    /// Removes what stands where `entry` goes. True if a directory is there and stays, as the new one is one too.
    fn make_way(&mut self, parent: &Directory, name: &[u8], entry: &Entry) -> Result<bool, LayerError> {
        let existing = parent.kind(name).map_err(failed("look up", entry))?;
        match existing {
            None => return Ok(false),
            Some(FileType::Directory) if entry.kind == Kind::Directory => return Ok(true),
            Some(_) => parent.remove(name).map_err(failed("replace", entry))?,
        }
        if existing == Some(FileType::CharacterDevice) && entry.kind == Kind::Directory {
            // A whiteout of this layer came first: the new directory must not show what was removed.
            parent.create_directory(name).map_err(failed("create", entry))?;
            let made = parent.open_directory(name).map_err(failed("open", entry))?;
            made.make_opaque().map_err(failed("mark as opaque", entry))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Hides `hidden` of the layers below. What this layer itself has under that name stays and hides it as well.
    fn whiteout(&self, parent: &Directory, hidden: &[u8], entry: &Entry) -> Result<(), LayerError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::Name { entry: entry.name() });
        }
        let fail = failed("create the whiteout", entry);
        match parent.kind(hidden).map_err(failed("look up", entry))? {
            None => parent.create_whiteout(hidden).map_err(fail),
            Some(FileType::Directory) => {
                parent.open_directory(hidden).and_then(|directory| directory.make_opaque()).map_err(fail)
            }
            Some(_) => Ok(()),
        }
    }

    fn hard_link(&mut self, parent: &Directory, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let missing = || LayerError::LinkTarget {
            entry: entry.name(),
            target: String::from_utf8_lossy(&entry.link).into(),
        };
        let target = components(&entry.link, entry)?;
        let Some((target_name, target_parent)) = target.split_last() else { return Err(missing()) };
        let directory = self.tree.directory(target_parent).map_err(|_| missing())?;
        let target = directory.stat(target_name).map_err(failed("look up the target of", entry))?;
        let target = target.ok_or_else(missing)?;
        if !matches!(
            FileType::from_raw_mode(target.st_mode),
            FileType::RegularFile | FileType::Symlink | FileType::Fifo
        ) {
            // A whiteout among them: that file is gone.
            return Err(missing());
        }
        let existing = parent.stat(name).map_err(failed("look up", entry))?;
        if existing
            .is_some_and(|existing| (existing.st_dev, existing.st_ino) == (target.st_dev, target.st_ino))
        {
            return Ok(()); // The link is there already, or names itself.
        }
        self.make_way(parent, name, entry)?;
        parent.create_hard_link(name, &directory, target_name).map_err(failed("create", entry))
    }
}

fn remove_aufs_links(tree: &Tree) -> io::Result<()> {
    let root = tree.directory(&[])?;
    match root.kind(AUFS_LINKS)? {
        Some(_) => root.remove(AUFS_LINKS),
        None => Ok(()),
    }
}

fn set_directory_times(tree: &Tree, times: Times) -> Result<(), LayerError> {
    let mut current = String::new();
    let set = times.replay(|path, time| {
        current = path.escape_ascii().to_string();
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        match tree.directory(&parts).and_then(|directory| directory.set_time(b".", time)) {
            // A later entry of the layer replaced it by a file.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            set => set,
        }
    });
    set.map_err(|source| LayerError::Directory { path: current, source })
}

fn failed(action: &'static str, entry: &Entry) -> impl FnOnce(io::Error) -> LayerError + Clone {
    let entry = entry.name();
    move |source| LayerError::Entry { action, entry, source }
}

/// The parts of an entry's name relative to the layer's root; a leading `/` means that root, `..` is refused.
fn components<'a>(path: &'a [u8], entry: &Entry) -> Result<Vec<&'a [u8]>, LayerError> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(LayerError::PathTraversal { entry: entry.name() }),
            name if name.contains(&0) => return Err(LayerError::Name { entry: entry.name() }),
            name => parts.push(name),
        }
    }
    Ok(parts)
}

/// Writes the pieces of a file; stretches without data become holes.
fn write_file<R: Read>(mut file: File, entry: &Entry, tar: &mut TarReader<R>) -> Result<(), LayerError> {
    let mut buffer = [0u8; 64 * 1024];
    for piece in &entry.pieces {
        if piece.offset > 0 {
            file.seek(SeekFrom::Start(piece.offset)).map_err(failed("write", entry))?;
        }
        let mut left = piece.length;
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            let count = tar.read(&mut buffer[..want]).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    LayerError::Entry { action: "read all of", entry: entry.name(), source }
                }
                _ => LayerError::Decompress { source },
            })?;
            if count == 0 {
                return Err(failed("read all of", entry)(io::ErrorKind::UnexpectedEof.into()));
            }
            file.write_all(&buffer[..count]).map_err(failed("write", entry))?;
            left -= count as u64;
        }
    }
    let is_whole =
        entry.pieces.last().is_some_and(|last| last.length > 0 && last.offset + last.length == entry.size);
    if !is_whole {
        // The file ends in a hole.
        file.set_len(entry.size).map_err(failed("write", entry))?;
    }
    Ok(())
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
