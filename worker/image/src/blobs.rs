//! The content-addressed blobs: `blobs/sha256/<hex>`, each verified as it is written and as it is read.
//!
//! A blob appears by rename, synced before, so that one under its final name is complete also after a power cut.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    digest::{Digest, Hasher, HashingReader},
    error::ImageError,
};

pub(crate) struct Blobs {
    directory: PathBuf,
    temporary: PathBuf,
}

impl Blobs {
    pub fn open(root: &Path) -> Result<Blobs, ImageError> {
        let directory = root.join("blobs/sha256");
        fs::create_dir_all(&directory).map_err(ImageError::io("create", &directory))?;
        Ok(Blobs { directory, temporary: root.join("tmp") })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// True if the blob is there with `size` bytes; its content is verified when it is read.
    pub fn contains(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Opens a blob for reading; the caller verifies what it reads.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::MissingBlob { digest: *digest },
            _ => ImageError::io("open", path)(error),
        })
    }

    /// Reads a whole blob of at most `limit` bytes and verifies it.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let path = self.path(digest);
        let mut file = self.open_blob(digest)?.take(limit + 1);
        file.read_to_end(&mut bytes).map_err(ImageError::io("read", &path))?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::TooLarge { what: format!("blob `{digest}`"), limit });
        }
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(ImageError::CorruptBlob { digest: *digest, path, found });
        }
        Ok(bytes)
    }

    /// Reads a whole blob for nothing but to verify it.
    pub fn verify(&self, digest: &Digest) -> Result<(), ImageError> {
        self.confirm(digest, HashingReader::new(self.open_blob(digest)?))
    }

    /// Reads the rest of a blob, and whether it is what its name says. One that is not is removed, so that the next pull or
    /// load fetches it anew; not if one has already.
    pub fn confirm(&self, digest: &Digest, mut reader: HashingReader<File>) -> Result<(), ImageError> {
        let path = self.path(digest);
        io::copy(&mut reader, &mut io::sink()).map_err(ImageError::io("read", &path))?;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let read = reader.get_ref().metadata().map(identity).ok();
        let found = reader.finish().0;
        if found == *digest {
            return Ok(());
        }
        if fs::metadata(&path).map(identity).ok() == read {
            self.remove(digest)?;
        }
        Err(ImageError::CorruptBlob { digest: *digest, path, found })
    }

    /// Stores `bytes` under their digest; nothing is written if they are there already, whole.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        if self.read(&digest, bytes.len() as u64).is_err() {
            let mut writer = self.writer()?;
            writer.write(bytes)?;
            writer.finish().commit()?;
        }
        Ok(digest)
    }

    /// Starts writing a blob whose digest is not known yet.
    pub fn writer(&self) -> Result<BlobWriter, ImageError> {
        let path = temporary_path(&self.temporary, "blob");
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(ImageError::io("create", &path))?;
        Ok(BlobWriter {
            file,
            path: TemporaryFile(path),
            directory: self.directory.clone(),
            hasher: Hasher::default(),
        })
    }

    /// Removes a blob; one that is not there is fine.
    pub fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A name in the directory for unfinished things that no one else uses.
pub(crate) fn temporary_path(directory: &Path, kind: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    directory.join(format!("{kind}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// A blob being written; dropped without a commit it leaves nothing.
pub(crate) struct BlobWriter {
    file: File,
    path: TemporaryFile,
    directory: PathBuf,
    hasher: Hasher,
}

impl BlobWriter {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(ImageError::io("write", &self.path.0))?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Copies `source` to its end, at most `limit` bytes; `what` names it in messages.
    pub fn copy(&mut self, mut source: impl Read, limit: u64, what: &str) -> Result<(), ImageError> {
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.write(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let reason = format!("{what} cannot be read to its end");
                    return Err(ImageError::CorruptArchive { reason, source: Some(source) });
                }
            }
            if self.hasher.bytes() > limit {
                return Err(ImageError::TooLarge { what: what.to_owned(), limit });
            }
        }
    }

    /// Ends the writing; the result can still be given up.
    pub fn finish(self) -> StagedBlob {
        let (digest, size) = self.hasher.finish();
        StagedBlob { path: self.path, directory: self.directory, digest, size }
    }
}

/// A whole blob without its name yet; dropped it leaves nothing.
pub(crate) struct StagedBlob {
    path: TemporaryFile,
    directory: PathBuf,
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
}

impl StagedBlob {
    /// Where the bytes are for now.
    pub fn path(&self) -> &Path {
        &self.path.0
    }

    /// Makes the blob durable under its digest.
    pub fn commit(&self) -> Result<(), ImageError> {
        let path = &self.path.0;
        File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::io("sync", path))?;
        let target = self.directory.join(self.digest.hex());
        fs::rename(path, &target).map_err(ImageError::io("rename into place", &target))?;
        sync_directory(&self.directory)
    }
}

/// A file that is removed when dropped, unless renamed away before.
struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(ImageError::io("sync", path))
}
