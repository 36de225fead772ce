//! A node's credentials on disk: `root.pem`, `node.pem` and `node.key` in a directory of their own.
//!
//! The directory is 0700 and each file 0600. Every file is replaced whole (written beside, synced, renamed, directory
//! synced). Key and certificate change together: the new key waits as `node.key.next` until its certificate is in
//! place, and loading finishes or drops what a crash left between the two.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::credentials::{Credentials, CredentialsError};
use crate::key::{KeyError, NodeKey};

const ROOT: &str = "root.pem";
const CERTIFICATE: &str = "node.pem";
const KEY: &str = "node.key";
const NEXT_KEY: &str = "node.key.next";

/// Where a node keeps its credentials.
#[derive(Debug, Clone)]
pub struct IdentityDir {
    path: PathBuf,
}

/// What went wrong with the directory or a file in it.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    #[error("failed to make the directory `{}`", path.display())]
    CreateDir { path: PathBuf, source: io::Error },
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("failed to remove `{}`", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error(
        "expected `{}` beside the other identity files, found none: restore it from a backup, or remove the directory \
         and join again",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("expected `{}` to be closed to other users, found mode {mode:04o}: run `chmod 600` on it", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "failed to read the key in `{}`: restore it from a backup, or remove the directory and join again",
        path.display()
    )]
    Key { path: PathBuf, source: KeyError },
    #[error(
        "failed to use `{}`: restore `root.pem`, `node.pem` and `node.key` from one backup, or remove the directory \
         and join again",
        path.display()
    )]
    Credentials { path: PathBuf, source: CredentialsError },
}

impl IdentityDir {
    /// Names the directory; touches nothing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The credentials of this node; `None` if it is no member of a cluster (no file is there).
    ///
    /// # Errors
    /// If some file is missing or cannot be read, the key is open to others, or the three do not belong together.
    /// Expired certificates load: their owner must be able to renew them.
    pub fn load(&self) -> Result<Option<Credentials>, DirError> {
        let [root, certificate, key, next] =
            [ROOT, CERTIFICATE, KEY, NEXT_KEY].map(|name| self.path.join(name));
        let (Some(root_pem), Some(cert_pem)) = (read(&root)?, read(&certificate)?) else {
            return self.load_nothing();
        };
        let mut problem = None;
        // A key that waits is newer: if the certificate is already its own, only the last rename is missing.
        for candidate in [&next, &key] {
            let Some(pem) = read_key(candidate)? else { continue };
            let key_path = candidate.clone();
            let node_key = NodeKey::from_pem(&pem).map_err(|source| DirError::Key { path: key_path, source });
            let result = node_key.and_then(|node_key| {
                Credentials::new(&root_pem, &cert_pem, node_key).map_err(|source| self.blame(source))
            });
            match result {
                Ok(credentials) if candidate == &next => {
                    self.rename(&next, &key)?;
                    return Ok(Some(credentials));
                }
                Ok(credentials) => {
                    remove(&next)?;
                    return Ok(Some(credentials));
                }
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or(DirError::Missing { path: key }))
    }

    /// Writes all three files. A crash at any point leaves either the old credentials or the new ones.
    ///
    /// Old and new must share a root, or the directory must hold nothing yet: roots are added before certificates
    /// change and dropped after, so that each step stands by itself.
    pub fn save(&self, credentials: &Credentials) -> Result<(), DirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .and_then(|()| fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)))
            .map_err(|source| DirError::CreateDir { path: self.path.clone(), source })?;
        self.write(NEXT_KEY, &credentials.key().to_pem())?;
        self.write(ROOT, credentials.roots().pem())?;
        self.write(CERTIFICATE, credentials.cert_pem())?;
        self.rename(&self.path.join(NEXT_KEY), &self.path.join(KEY))
    }

    /// Forgets the identity, the key first. Does nothing if there is none.
    pub fn clear(&self) -> Result<(), DirError> {
        [KEY, NEXT_KEY, CERTIFICATE, ROOT].iter().try_for_each(|name| remove(&self.path.join(name)))?;
        match fs::File::open(&self.path).and_then(|directory| directory.sync_all()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(DirError::Write { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Neither root nor certificate, or only one of them: a host outside any cluster, or a damaged directory.
    ///
    /// A key that waits alone, with or without the root, is the beginning of a first `save` that never ended.
    fn load_nothing(&self) -> Result<Option<Credentials>, DirError> {
        let exists = |name: &str| self.path.join(name).exists();
        let missing = match (exists(ROOT), exists(CERTIFICATE), exists(KEY)) {
            (_, false, false) if exists(NEXT_KEY) => {
                self.clear()?;
                return Ok(None);
            }
            (false, false, false) => return Ok(None),
            (false, ..) => ROOT,
            (true, ..) => CERTIFICATE,
        };
        Err(DirError::Missing { path: self.path.join(missing) })
    }

    /// Names the file that is to blame.
    fn blame(&self, source: CredentialsError) -> DirError {
        let name = match source {
            CredentialsError::Roots(_) => ROOT,
            CredentialsError::KeyMismatch | CredentialsError::Key(_) => KEY,
            _ => CERTIFICATE,
        };
        DirError::Credentials { path: self.path.join(name), source }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), DirError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!("{name}.tmp"));
        let written = || -> io::Result<()> {
            // What a crash left here may have another mode: start from nothing.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        written().map_err(|source| DirError::Write { path: path.clone(), source })?;
        self.rename(&beside, &path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DirError> {
        fs::rename(from, to)
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|source| DirError::Write { path: to.to_owned(), source })
    }
}

fn read(path: &Path) -> Result<Option<String>, DirError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DirError::Read { path: path.to_owned(), source }),
    }
}

fn read_key(path: &Path) -> Result<Option<String>, DirError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let metadata = fs::metadata(path).map_err(|source| DirError::Read { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(DirError::Open { path: path.to_owned(), mode });
    }
    Ok(Some(text))
}

fn remove(path: &Path) -> Result<(), DirError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DirError::Remove { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}
