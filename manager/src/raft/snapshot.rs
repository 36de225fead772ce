//! Snapshots on disk: the whole state as of one log entry.
//!
//! ```text
//! magic "RSWSNAP" + format version (u8) | file id (16 random bytes) | chunks
//! chunk: length of the sealed bytes (u32, little-endian), sealed bytes
//! ```
//! The first chunk holds what the snapshot is of (its metadata), the last one the SHA-256 of all that lies between:
//! the state, in chunks of at most [`CHUNK_LEN`]. Each is sealed to the file id, its number and its role, so that no
//! chunk can be dropped, moved, or taken from another file. A snapshot gets its name only once it is on disk and this
//! manager stands by it ([`SnapshotDir::adopt`]); the one before it is kept.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::LogIdOptionExt;
use sha2::{Digest, Sha256};

use super::codec::{self, CodecError};
use super::files;
use super::key::{SEAL_OVERHEAD, Sealer};
use super::types::SnapshotMeta;

/// Contents of a chunk, on disk and on the wire: what fits a message and keeps little in memory.
pub const CHUNK_LEN: usize = 512 << 10;
/// The newest one and the one before.
const KEPT: usize = 2;

const MAGIC: [u8; 8] = *b"RSWSNAP\x01";
const ID_LEN: usize = 16;

/// Why a snapshot was not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("failed to {action} the snapshot `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("expected a snapshot of format version 1 in `{}`, found something else", .0.display())]
    Foreign(PathBuf),
    #[error("the snapshot `{}` is corrupt in chunk {chunk}", path.display())]
    Corrupt { path: PathBuf, chunk: u64 },
    #[error("the snapshot `{}` ends early", .0.display())]
    CutShort(PathBuf),
    #[error("the snapshot `{}` cannot be understood", path.display())]
    Contents {
        path: PathBuf,
        #[source]
        source: CodecError,
    },
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a chunk is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Meta = 1,
    State = 2,
    Digest = 3,
}

fn place(id: &[u8; ID_LEN], number: u64, part: Part) -> [u8; 25] {
    let mut bytes = [0; 25];
    bytes[..16].copy_from_slice(id);
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24] = part as u8;
    bytes
}

/// The snapshots of one manager.
#[derive(Clone)]
pub struct SnapshotDir {
    dir: Arc<Path>,
    sealer: Sealer,
}

/// A snapshot that is whole and on disk; clones share the file, which is readable for as long as one of them lives.
#[derive(Clone)]
pub struct SnapshotFile {
    pub meta: SnapshotMeta,
    /// SHA-256 of the state's bytes.
    pub digest: [u8; 32],
    path: PathBuf,
    file: Arc<File>,
    sealer: Sealer,
    /// Until it is adopted: removes the file when nobody wants it any more.
    temporary: Option<Arc<Temporary>>,
}

/// A file that goes when this does; one that was renamed meanwhile stays.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next start.
        let _ = files::remove_if_present(&self.0);
    }
}

impl SnapshotDir {
    /// Opens `dir`, creates it if needed, and removes what was not finished there.
    pub fn open(dir: &Path, sealer: Sealer) -> Result<Self, SnapshotError> {
        let fail = |action| move |source| SnapshotError::Io { action, path: dir.to_owned(), source };
        files::create_private_dir(dir).map_err(fail("create the directory for"))?;
        for entry in fs::read_dir(dir).map_err(fail("look for"))? {
            let path = entry.map_err(fail("look for"))?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                files::remove_if_present(&path).map_err(fail("remove an unfinished"))?;
            }
        }
        Ok(Self { dir: dir.into(), sealer })
    }

    /// Finished snapshots, newest first.
    pub fn list(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let fail = |source| SnapshotError::Io { action: "look for", path: self.dir.to_path_buf(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.extension().is_some_and(|extension| extension == "snapshot") {
                paths.push(path);
            }
        }
        paths.sort_unstable_by(|a, b| b.cmp(a));
        Ok(paths)
    }

    /// Begins a snapshot under a name of its own; it counts once it is finished and adopted.
    pub fn begin(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, SnapshotError> {
        let mut id = [0; ID_LEN];
        getrandom::fill(&mut id).expect("the kernel gave random bytes before and cannot run out of them");
        let path = self.dir.join(format!("{:032x}.new", u128::from_be_bytes(id)));
        let fail = |source| SnapshotError::Io { action: "create", path: path.clone(), source };
        let mut out = BufWriter::with_capacity(CHUNK_LEN, files::create_private(&path).map_err(fail)?);
        out.write_all(&MAGIC).and_then(|()| out.write_all(&id)).map_err(fail)?;
        let mut writer = SnapshotWriter {
            dir: self.clone(),
            meta: meta.clone(),
            temporary: Arc::new(Temporary(path)),
            id,
            out,
            number: 0,
            pending: Vec::new(),
            digest: Sha256::new(),
        };
        let meta = codec::encode("snapshot metadata", meta)
            .map_err(|source| SnapshotError::Contents { path: writer.path().to_owned(), source })?;
        writer.chunk(Part::Meta, &meta).map_err(|source| writer.failed(source))?;
        Ok(writer)
    }

    /// Opens a finished snapshot and checks every byte of it.
    pub fn load(&self, path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let fail = |source| SnapshotError::Io { action: "open", path: path.to_owned(), source };
        let file = Arc::new(File::open(path).map_err(fail)?);
        let mut chunks = Chunks::open(path, file.clone(), self.sealer.clone())?;
        let meta = chunks.meta()?;
        while chunks.next_state()?.is_some() {}
        let digest = chunks.digest.finalize().into();
        let sealer = self.sealer.clone();
        Ok(SnapshotFile { meta, digest, path: path.to_owned(), file, sealer, temporary: None })
    }

    /// Gives a snapshot its name and removes those no longer kept. One that has its name is left as it is.
    pub fn adopt(&self, snapshot: SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        if snapshot.temporary.is_none() {
            return Ok(snapshot);
        }
        let last = snapshot.meta.last_log_id;
        let term = last.map_or(0, |log_id| log_id.leader_id.term);
        let path = self.dir.join(format!("{:020}-{term:020}.snapshot", last.next_index()));
        fs::rename(&snapshot.path, &path)
            .and_then(|()| files::sync_dir(&self.dir))
            .map_err(|source| SnapshotError::Io { action: "rename", path: snapshot.path.clone(), source })?;
        self.remove_old()?;
        Ok(SnapshotFile { path, temporary: None, ..snapshot })
    }

    fn remove_old(&self) -> Result<(), SnapshotError> {
        for path in self.list()?.into_iter().skip(KEPT) {
            files::remove_if_present(&path).map_err(|source| SnapshotError::Io {
                action: "remove",
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// A snapshot being written: an `io::Write` for the encoded state. Dropped unfinished, it leaves nothing behind.
pub struct SnapshotWriter {
    dir: SnapshotDir,
    meta: SnapshotMeta,
    temporary: Arc<Temporary>,
    id: [u8; ID_LEN],
    out: BufWriter<File>,
    number: u64,
    pending: Vec<u8>,
    digest: Sha256,
}

impl SnapshotWriter {
    /// Makes the snapshot durable. It counts once it is adopted.
    pub fn finish(mut self) -> Result<SnapshotFile, SnapshotError> {
        let digest: [u8; 32] = self.seal_rest().map_err(|source| self.failed(source))?;
        let Self { dir, meta, temporary, out, .. } = self;
        let fail = |source| SnapshotError::Io { action: "write", path: temporary.0.clone(), source };
        let file = out.into_inner().map_err(io::IntoInnerError::into_error).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        Ok(SnapshotFile {
            meta,
            digest,
            path: temporary.0.clone(),
            file: Arc::new(file),
            sealer: dir.sealer,
            temporary: Some(temporary),
        })
    }

    /// The file written to.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    fn seal_rest(&mut self) -> io::Result<[u8; 32]> {
        if !self.pending.is_empty() {
            let last = std::mem::take(&mut self.pending);
            self.chunk(Part::State, &last)?;
        }
        let digest: [u8; 32] = self.digest.clone().finalize().into();
        self.chunk(Part::Digest, &digest)?;
        Ok(digest)
    }

    fn chunk(&mut self, part: Part, plain: &[u8]) -> io::Result<()> {
        let mut sealed = Vec::new();
        self.dir.sealer.seal(&place(&self.id, self.number, part), plain, &mut sealed);
        self.number += 1;
        if part == Part::State {
            self.digest.update(plain);
        }
        let len = u32::try_from(sealed.len()).map_err(io::Error::other)?;
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(&sealed)
    }

    fn failed(&self, source: io::Error) -> SnapshotError {
        SnapshotError::Io { action: "write", path: self.path().to_owned(), source }
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_LEN - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == CHUNK_LEN {
            let full = std::mem::take(&mut self.pending);
            self.chunk(Part::State, &full)?;
            self.pending = full;
            self.pending.clear();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotFile {
    /// The state's bytes from the start. Independent of other readers of the same snapshot.
    pub fn chunks(&self) -> Result<Chunks, SnapshotError> {
        let mut chunks = Chunks::open(&self.path, self.file.clone(), self.sealer.clone())?;
        chunks.meta()?;
        Ok(chunks)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a file from an offset of its own, so that several readers can share it.
struct At {
    file: Arc<File>,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = std::os::unix::fs::FileExt::read_at(&*self.file, buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// The chunks of a snapshot in order, each checked as it is read; also an `io::Read` of the state.
pub struct Chunks {
    path: PathBuf,
    from: BufReader<At>,
    sealer: Sealer,
    id: [u8; ID_LEN],
    number: u64,
    digest: Sha256,
    current: Vec<u8>,
    taken: usize,
    finished: bool,
}

impl Chunks {
    fn open(path: &Path, file: Arc<File>, sealer: Sealer) -> Result<Self, SnapshotError> {
        let mut from = BufReader::with_capacity(64 << 10, At { file, offset: 0 });
        let mut start = [0; MAGIC.len() + ID_LEN];
        from.read_exact(&mut start).map_err(|_| SnapshotError::Foreign(path.to_owned()))?;
        let (magic, id) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(SnapshotError::Foreign(path.to_owned()));
        }
        let id = id.try_into().map_err(|_| SnapshotError::Foreign(path.to_owned()))?;
        Ok(Self {
            path: path.to_owned(),
            from,
            sealer,
            id,
            number: 0,
            digest: Sha256::new(),
            current: Vec::new(),
            taken: 0,
            finished: false,
        })
    }

    fn meta(&mut self) -> Result<SnapshotMeta, SnapshotError> {
        let sealed = self.sealed()?;
        let plain = self.open_as(&sealed, Part::Meta).ok_or_else(|| self.corrupt())?;
        self.number += 1;
        codec::decode("snapshot metadata", &plain)
            .map_err(|source| SnapshotError::Contents { path: self.path.clone(), source })
    }

    /// The next piece of the state; `None` after the last, once the digest was found right.
    pub fn next_state(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        if self.finished {
            return Ok(None);
        }
        let sealed = self.sealed()?;
        if let Some(plain) = self.open_as(&sealed, Part::State) {
            self.number += 1;
            self.digest.update(&plain);
            return Ok(Some(plain));
        }
        let digest = self.open_as(&sealed, Part::Digest).ok_or_else(|| self.corrupt())?;
        if digest != self.digest.clone().finalize()[..] {
            return Err(self.corrupt());
        }
        self.finished = true;
        Ok(None)
    }

    fn sealed(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let mut len = [0; 4];
        let short = |_| SnapshotError::CutShort(self.path.clone());
        self.from.read_exact(&mut len).map_err(short)?;
        let len = u32::from_le_bytes(len) as usize;
        // Metadata names every member and may outgrow a chunk's worth of state only in nonsense.
        if len > CHUNK_LEN + SEAL_OVERHEAD {
            return Err(self.corrupt());
        }
        let mut sealed = vec![0; len];
        self.from.read_exact(&mut sealed).map_err(short)?;
        Ok(sealed)
    }

    fn open_as(&self, sealed: &[u8], part: Part) -> Option<Vec<u8>> {
        self.sealer.open(&place(&self.id, self.number, part), sealed)
    }

    fn corrupt(&self) -> SnapshotError {
        SnapshotError::Corrupt { path: self.path.clone(), chunk: self.number }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.current.len() {
            match self.next_state()? {
                Some(chunk) => (self.current, self.taken) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let rest = &self.current[self.taken..];
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        self.taken += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::key::DataKey;
    use std::os::unix::fs::PermissionsExt;

    fn contents() -> Vec<u8> {
        (0..CHUNK_LEN * 2 + 1000).map(|n| (n % 251) as u8).collect()
    }

    fn meta(index: u64) -> SnapshotMeta {
        let leader_id = openraft::impls::leader_id_adv::LeaderId { term: 3, node_id: 1 };
        SnapshotMeta {
            last_log_id: Some(openraft::LogId { leader_id, index }),
            last_membership: Default::default(),
        }
    }

    fn write(dir: &SnapshotDir, index: u64) -> SnapshotFile {
        let mut writer = dir.begin(&meta(index)).unwrap();
        writer.write_all(&contents()).unwrap();
        dir.adopt(writer.finish().unwrap()).unwrap()
    }

    fn open() -> (tempfile::TempDir, SnapshotDir) {
        let tmp = tempfile::tempdir().unwrap();
        let sealer = DataKey::create(tmp.path()).unwrap().sealer();
        let dir = SnapshotDir::open(&tmp.path().join("snapshots"), sealer).unwrap();
        (tmp, dir)
    }

    #[test]
    fn what_was_written_is_read_and_the_one_before_is_kept() {
        let (_tmp, dir) = open();
        for index in [10, 20, 30] {
            write(&dir, index);
        }
        drop(dir.begin(&meta(40)).unwrap());
        drop(dir.begin(&meta(50)).unwrap().finish().unwrap());
        let paths = dir.list().unwrap();
        assert_eq!(paths.len(), 2);
        assert_eq!(fs::read_dir(&*dir.dir).unwrap().count(), 2, "an abandoned one leaves nothing");
        for (path, index) in paths.iter().zip([30, 20]) {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
            let snapshot = dir.load(path).unwrap();
            assert_eq!(snapshot.meta, meta(index));
            let mut read = Vec::new();
            snapshot.chunks().unwrap().read_to_end(&mut read).unwrap();
            assert!(read == contents());
        }
    }

    #[test]
    fn damage_anywhere_is_found() {
        let (_tmp, dir) = open();
        let path = write(&dir, 10).path().to_owned();
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(9973).chain([0, 8, 24, 28, whole.len() - 1]) {
            let mut bad = whole.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert!(dir.load(&path).is_err(), "flipped byte {at}");
        }
        for len in [0, 10, 30, whole.len() / 2, whole.len() - 60, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(dir.load(&path).is_err(), "cut at {len}");
        }
        fs::write(&path, &whole).unwrap();
        dir.load(&path).unwrap();
    }
}
