//! The file by which the worker tells the resolver of the networks: `network-map` in the run root.
//!
//! It is a [`NetworkMap`] and, behind it, the changes since, each a [`NetworkChange`]: MessagePack, fields by name. So one
//! endpoint that comes or goes costs its own bytes and not those of ten thousand others. A whole map takes the place of
//! the file by renaming, so that it is never seen half written; of a change that is, the rest is waited for.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rmp_serde::decode::Error as DecodeError;
use rswarm_types::netmap::{NetworkChange, NetworkMap};
use serde::Deserialize;

/// The name of the file in the run root.
pub const FILE_NAME: &str = "network-map";
/// Changes are appended until they are longer than the map and this.
const MAX_CHANGES: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("expected a network map and its changes in `{path}`, found something else")]
    Decode {
        path: PathBuf,
        #[source]
        source: DecodeError,
    },
    #[error("failed to encode what is to be written to `{path}`")]
    Encode {
        path: PathBuf,
        #[source]
        source: rmp_serde::encode::Error,
    },
    #[error("failed to write `{path}`")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to watch the directory `{path}`")]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The map as the file has it.
#[derive(Debug)]
pub struct MapReader {
    path: PathBuf,
    /// Where `map` is from: open, so that no other file can be taken for it; and how much of it was read.
    file: Option<(File, u64)>,
    map: NetworkMap,
}

impl MapReader {
    /// Reads nothing yet.
    pub fn new(run_root: &Path) -> Self {
        Self { path: run_root.join(FILE_NAME), file: None, map: NetworkMap::default() }
    }

    /// The last good map; an empty one without a file.
    pub fn map(&self) -> &NetworkMap {
        &self.map
    }

    pub fn into_map(self) -> NetworkMap {
        self.map
    }

    /// Takes in what is new in the file; returns whether the map is another now.
    ///
    /// # Errors
    /// `Read` and `Decode`; the last good map then still holds.
    pub fn refresh(&mut self) -> Result<bool, MapError> {
        let read_failed = |source| MapError::Read { path: self.path.clone(), source };
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.map = NetworkMap::default();
                return Ok(self.file.take().is_some());
            }
            Err(error) => return Err(read_failed(error)),
        };
        let new = file.metadata().map_err(read_failed)?;
        let held = self.file.as_ref().and_then(|(held, end)| Some((held.metadata().ok()?, *end)));
        let end = held
            .filter(|(held, end)| (held.dev(), held.ino()) == (new.dev(), new.ino()) && new.len() >= *end);
        let start = end.map_or(0, |(_, end)| end);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut bytes)).map_err(read_failed)?;

        let decode_failed = |source| MapError::Decode { path: self.path.clone(), source };
        let mut rest = bytes.as_slice();
        let whole = match start {
            0 => Some(next::<NetworkMap>(&mut rest).map_err(decode_failed)?),
            _ => None,
        };
        let mut another = whole.is_some();
        if let Some(map) = whole {
            self.map = map;
        }
        let outcome = loop {
            match next::<NetworkChange>(&mut rest) {
                Ok(change) => another |= self.map.apply(change),
                // The rest of it is still to come.
                Err(error) if is_incomplete(&error) => break Ok(another),
                // What was good before it has been taken in; whoever is told of the error asks for the map as well.
                Err(source) => break Err(MapError::Decode { path: self.path.clone(), source }),
            }
        };
        self.file = Some((file, start + (bytes.len() - rest.len()) as u64));
        outcome
    }
}

/// Takes one value from the front of `bytes`, which stay as they are if there is none.
fn next<T: for<'de> Deserialize<'de>>(bytes: &mut &[u8]) -> Result<T, DecodeError> {
    let mut rest = *bytes;
    let value = rmp_serde::from_read(&mut rest)?;
    *bytes = rest;
    Ok(value)
}

fn is_incomplete(error: &DecodeError) -> bool {
    match error {
        DecodeError::InvalidMarkerRead(error) | DecodeError::InvalidDataRead(error) => {
            error.kind() == io::ErrorKind::UnexpectedEof
        }
        _ => false,
    }
}

/// Writes the file; for the worker.
#[derive(Debug)]
pub struct MapWriter {
    path: PathBuf,
    file: File,
    whole_len: u64,
    changes_len: u64,
}

impl MapWriter {
    /// Replaces what there is by `map`.
    pub fn create(run_root: &Path, map: &NetworkMap) -> Result<Self, MapError> {
        let path = run_root.join(FILE_NAME);
        let bytes =
            rmp_serde::to_vec_named(map).map_err(|source| MapError::Encode { path: path.clone(), source })?;
        let new = run_root.join(format!("{FILE_NAME}.new"));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            fs::rename(&new, &path)?;
            io::Result::Ok(file)
        };
        let file = write().map_err(|source| MapError::Write { path: path.clone(), source })?;
        Ok(Self { path, file, whole_len: bytes.len() as u64, changes_len: 0 })
    }

    /// Adds a change; `after` is the map with it.
    ///
    /// # Errors
    /// `Encode` or `Write`: the file then says what it did before, and the next call writes it anew.
    pub fn change(&mut self, change: &NetworkChange, after: &NetworkMap) -> Result<(), MapError> {
        let bytes = rmp_serde::to_vec_named(change)
            .map_err(|source| MapError::Encode { path: self.path.clone(), source })?;
        let len = self.changes_len.saturating_add(bytes.len() as u64);
        if !change.full && len <= self.whole_len + MAX_CHANGES && self.file.write_all(&bytes).is_ok() {
            self.changes_len = len;
            return Ok(());
        }
        // Half a change may stand at the end now, and nothing may be written behind that.
        self.changes_len = u64::MAX;
        let run_root = self.path.parent().unwrap_or(Path::new("."));
        *self = Self::create(run_root, after)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
