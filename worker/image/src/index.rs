//! The durable list of images and their names: one small file, replaced as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{blobs::sync_directory, digest::Digest, error::ImageError};

const FILE: &str = "images.json";
const VERSION: u32 = 1;

/// Where an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Pulled: other nodes can get it from the same place.
    Registry,
    /// Loaded, imported or built: only this node is known to have it.
    Local,
}

/// All images by id (the digest of the config).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub images: BTreeMap<Digest, Record>,
}

/// What is remembered of one image; the rest is in its blobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub manifest: Digest,
    pub origin: Origin,
    /// Full `name:tag`; each belongs to one image only.
    pub tags: BTreeSet<String>,
    /// Full `name@digest`, of the manifest and of the index it was chosen from.
    pub digests: BTreeSet<String>,
    /// From the base up.
    pub layers: Vec<LayerRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub diff_id: Digest,
    pub blob: Digest,
    /// Length of the files within, in bytes.
    pub unpacked: u64,
}

impl Default for Index {
    fn default() -> Self {
        Index { version: VERSION, images: BTreeMap::new() }
    }
}

impl Index {
    /// Reads the index of the store at `root`; a new store has an empty one.
    pub fn read(root: &Path) -> Result<Index, ImageError> {
        let path = root.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(error) => return Err(ImageError::io("read", path)(error)),
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::CorruptIndex { path: path.clone(), source })?;
        if index.version != VERSION {
            let reason = format!("version {} is not known, expected {VERSION}", index.version);
            return Err(ImageError::invalid(format!("image index `{}`", path.display()), reason));
        }
        Ok(index)
    }

    /// Replaces the index on disk; after an error the old one still holds.
    pub fn write(&self, root: &Path) -> Result<(), ImageError> {
        let path = root.join(FILE);
        let temporary = root.join("tmp").join(FILE);
        let bytes = serde_json::to_vec_pretty(self).expect("an index has string keys and plain values");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(ImageError::io("write", &path))?;
        sync_directory(root)
    }
}
