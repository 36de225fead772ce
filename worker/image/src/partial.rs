//! Downloads under way: `partial/<hex>`, which outlive a cut, a cancelled pull and a restart, so that the next pull
//! goes on where the last one broke off.
//!
//! What is in them counts for nothing until the whole was hashed; only then it becomes a blob.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    blobs::{Blobs, sync_directory},
    digest::{Digest, Hasher},
    error::ImageError,
};

/// How long a download that nobody goes on with keeps its place.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Partials {
    directory: PathBuf,
}

impl Partials {
    /// Opens the place for downloads, and removes those that were given up long ago.
    pub fn open(root: &Path) -> Result<Partials, ImageError> {
        let directory = root.join("partial");
        fs::create_dir_all(&directory).map_err(ImageError::io("create", &directory))?;
        let partials = Partials { directory };
        partials.retain(|_| false, false)?;
        Ok(partials)
    }

    /// Goes on with the download of `expected`, or begins it. One at a time: see the gates of the registry client.
    ///
    /// Hashes what is there, so it takes a while for large ones. What is longer than `size` is begun anew.
    pub fn resume(&self, expected: Digest, size: u64) -> Result<Partial, ImageError> {
        let path = self.directory.join(expected.hex());
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(ImageError::io("open", &path))?;
        let mut partial = Partial { file, path, hasher: Hasher::default(), expected };
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            match partial.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => partial.hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::io("read", &partial.path)(error)),
            }
        }
        if partial.bytes() > size {
            partial.file.set_len(0).map_err(ImageError::io("write", &partial.path))?;
            partial.hasher = Hasher::default();
        }
        Ok(partial)
    }

    /// Removes downloads that `keep` does not want: all of them if `also_fresh`, else those left alone for a day.
    /// Gives the bytes freed.
    pub fn retain(&self, keep: impl Fn(&Digest) -> bool, also_fresh: bool) -> Result<u64, ImageError> {
        let mut freed = 0;
        for file in fs::read_dir(&self.directory).map_err(ImageError::io("list", &self.directory))? {
            let file = file.map_err(ImageError::io("list", &self.directory))?;
            let digest = format!("sha256:{}", file.file_name().to_string_lossy()).parse();
            if digest.as_ref().is_ok_and(&keep) {
                continue;
            }
            let Ok(metadata) = file.metadata() else { continue };
            let fresh = metadata
                .modified()
                .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < KEPT));
            if also_fresh || !fresh {
                fs::remove_file(file.path()).map_err(ImageError::io("remove", file.path()))?;
                freed += metadata.len();
            }
        }
        Ok(freed)
    }

    /// Bytes of the downloads, under way or given up, that `count` wants.
    pub fn bytes(&self, count: impl Fn(&Digest) -> bool) -> u64 {
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let counts = |file: &fs::DirEntry| {
            let digest = format!("sha256:{}", file.file_name().to_string_lossy()).parse();
            digest.map_or(true, |digest| count(&digest))
        };
        files.filter(counts).filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }
}

/// One download; what was written stays when it is dropped.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    expected: Digest,
}

impl Partial {
    /// Bytes that are here.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(ImageError::io("write", &self.path))?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Makes the whole download a blob, if it is what its name says; else it is removed.
    pub fn commit(self, blobs: &Blobs) -> Result<(), ImageError> {
        let (found, _) = self.hasher.finish();
        if found != self.expected {
            fs::remove_file(&self.path).map_err(ImageError::io("remove", &self.path))?;
            let what = "a layer as its registry sent it".to_owned();
            return Err(ImageError::DigestMismatch { what, expected: self.expected, found });
        }
        self.file.sync_all().map_err(ImageError::io("sync", &self.path))?;
        let target = blobs.path(&found);
        fs::rename(&self.path, &target).map_err(ImageError::io("rename into place", &target))?;
        sync_directory(blobs.directory())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_goes_on_where_it_was_left() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path()).unwrap();
        let digest = Digest::of(b"hello world");
        {
            let partials = Partials::open(root.path()).unwrap();
            partials.resume(digest, 11).unwrap().write(b"hello").unwrap();
        }
        let partials = Partials::open(root.path()).unwrap();
        let mut partial = partials.resume(digest, 11).unwrap();
        assert_eq!(partial.bytes(), 5);
        partial.write(b" world").unwrap();
        partial.commit(&blobs).unwrap();
        assert_eq!(blobs.read(&digest, 100).unwrap(), b"hello world");
        assert_eq!(partials.bytes(|_| true), 0);
    }

    #[test]
    fn what_is_wrong_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path()).unwrap();
        let partials = Partials::open(root.path()).unwrap();
        let digest = Digest::of(b"x");
        let mut partial = partials.resume(digest, 1).unwrap();
        partial.write(b"y").unwrap();
        assert!(matches!(partial.commit(&blobs), Err(ImageError::DigestMismatch { .. })));
        assert!(!blobs.contains(&digest, 1));
        partials.resume(digest, 100).unwrap().write(b"too long").unwrap();
        assert_eq!(partials.resume(digest, 1).unwrap().bytes(), 0);
    }

    #[test]
    fn only_what_was_left_alone_for_long_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        let partials = Partials::open(root.path()).unwrap();
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        for digest in [old, new] {
            partials.resume(digest, 9).unwrap().write(b"abc").unwrap();
        }
        let file = File::options().write(true).open(root.path().join("partial").join(old.hex())).unwrap();
        file.set_modified(SystemTime::now() - 2 * KEPT).unwrap();
        assert_eq!(partials.retain(|digest| *digest == old, false).unwrap(), 0);
        assert_eq!(partials.retain(|_| false, false).unwrap(), 3);
        assert_eq!(partials.bytes(|_| true), 3);
        assert_eq!(partials.retain(|_| false, true).unwrap(), 3);
    }
}
