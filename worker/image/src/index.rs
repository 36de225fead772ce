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

/// What the store has, by manifest.
///
/// Several manifests may describe one image (one config, layers compressed in other ways). Each has its own names and
/// blobs; the image, its id and its unpacked layers are shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub manifests: BTreeMap<Digest, Record>,
}

/// What is remembered of one manifest; the rest is in its blobs.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Digest of the config: the image's id.
    pub id: Digest,
    pub origin: Origin,
    /// Full `name:tag`; each belongs to one manifest only.
    pub tags: BTreeSet<String>,
    /// Full `name@digest`, of the manifest or of an index it was chosen from.
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

/// `images.json`: by id, the preferred manifest of each image with the others after it.
///
/// Stores of before there were others lack `others`, and need no migration; a daemon of that time reads this file as
/// well, and knows the preferred manifest alone.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    images: BTreeMap<Digest, StoredImage>,
}

#[derive(Serialize, Deserialize)]
struct StoredImage {
    #[serde(flatten)]
    preferred: StoredManifest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    others: Vec<StoredManifest>,
}

#[derive(Serialize, Deserialize)]
struct StoredManifest {
    manifest: Digest,
    origin: Origin,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
    layers: Vec<LayerRecord>,
}

impl From<Stored> for Index {
    fn from(stored: Stored) -> Index {
        let images = stored.images.into_iter().flat_map(|(id, image)| {
            std::iter::once(image.preferred).chain(image.others).map(move |stored| {
                let StoredManifest { manifest, origin, tags, digests, layers } = stored;
                (manifest, Record { id, origin, tags, digests, layers })
            })
        });
        Index { manifests: images.collect() }
    }
}

impl From<&Index> for Stored {
    fn from(index: &Index) -> Stored {
        let ids: BTreeSet<Digest> = index.manifests.values().map(|record| record.id).collect();
        let stored = |manifest: Digest| {
            let Record { id: _, origin, tags, digests, layers } = index.manifests[&manifest].clone();
            StoredManifest { manifest, origin, tags, digests, layers }
        };
        let image = |id: Digest| {
            let mut manifests = index.manifests_of(&id).into_iter().map(stored);
            let preferred = manifests.next()?;
            Some((id, StoredImage { preferred, others: manifests.collect() }))
        };
        Stored { version: VERSION, images: ids.into_iter().filter_map(image).collect() }
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
        let stored: Stored = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::CorruptIndex { path: path.clone(), source })?;
        if stored.version != VERSION {
            let reason = format!("version {} is not known, expected {VERSION}", stored.version);
            return Err(ImageError::invalid(format!("image index `{}`", path.display()), reason));
        }
        Ok(stored.into())
    }

    /// Replaces the index on disk; after an error the old one still holds.
    pub fn write(&self, root: &Path) -> Result<(), ImageError> {
        let path = root.join(FILE);
        let temporary = root.join("tmp").join(FILE);
        let bytes = serde_json::to_vec_pretty(&Stored::from(self))
            .expect("an index has string keys and plain values");
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
