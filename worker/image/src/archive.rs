//! Loading images from archives: OCI layouts (`index.json`) and those of `docker save` (`manifest.json`).
//!
//! The archive is read once, as a stream. Its files are staged as blobs, then the images they describe are checked and
//! unpacked, and only then are they added; a refused archive leaves nothing.
//!
//! Source: OCI image-spec, `image-layout.md`; Docker image specification v1.2, "Combined Image JSON + Filesystem
//! Changeset Format".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::Read,
};

use serde::Deserialize;

use crate::{
    blobs::StagedBlob,
    compress::{self, Compression, decompress},
    digest::Digest,
    error::ImageError,
    index::Origin,
    layers::Layers,
    manifest::{self, Descriptor, Document, MAX_DOCUMENT, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
    names::familiar,
    platform::Platform,
    reference::Reference,
    store::{Image, ImageStore, NewImage, Pins},
    unpack::{Kind, TarReader},
};

/// Files in one archive: 127 layers of a hundred images with their configs stay below.
const MAX_FILES: usize = 50_000;
/// How deep indexes may nest.
const MAX_NESTING: u32 = 4;
/// Name of an image in an OCI layout, as BuildKit and containerd write it: always a full reference.
pub(crate) const NAME: &str = "io.containerd.image.name";
/// Name of an image in an OCI layout, per specification; some tools write a bare tag here.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// How to load an archive.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The platform to take of an image that has several; `None` means this host's.
    pub platform: Option<Platform>,
    /// A name for the archive's image if it brings none.
    pub reference: Option<Reference>,
}

/// An image that came with an archive.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub image: Image,
    /// The names it has in the archive, as a user writes them; in the store it may have more.
    pub names: Vec<String>,
}

impl ImageStore {
    /// Loads the images of an OCI or docker archive, plain or compressed with gzip or zstd. Blocking.
    ///
    /// Layers are unpacked right away, so that a bad one is refused here and the first start is fast. Names move here
    /// from other images. Gives the images in the archive's order; one without a name is known by its id.
    ///
    /// # Errors
    /// `NotAnImageArchive`, `Archive`, `CorruptArchive`, `MissingFromArchive`, `DigestMismatch`, `NoPlatform`, `Layer`
    /// and others that name the part at fault; then nothing was added.
    pub fn load(&self, reader: impl Read + Send, options: &LoadOptions) -> Result<Vec<Loaded>, ImageError> {
        let files = self.stage_archive(reader)?;
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        let mut images = if files.contains("index.json") {
            files.oci_images(&wanted)?
        } else if files.contains("manifest.json") {
            files.docker_images(&wanted)?
        } else {
            return Err(ImageError::NotAnImageArchive);
        };
        if let (Some(reference), [image]) = (&options.reference, images.as_mut_slice())
            && image.tags.is_empty()
        {
            image.tags.push(reference.without_digest());
        }
        let added = self.add(&files, images);
        if added.is_err() {
            self.collect_garbage()?;
        }
        added
    }

    fn stage_archive(&self, reader: impl Read + Send) -> Result<Files, ImageError> {
        let unreadable = |source| {
            let reason = "it cannot be read".to_owned();
            ImageError::CorruptArchive { reason, source: Some(source) }
        };
        let (_, reader) = decompress(reader).map_err(unreadable)?;
        let mut tar = TarReader::new(reader);
        let mut files = Files::default();
        let limit = self.inner.limits.archive_bytes;
        let mut total = 0u64;
        while let Some(entry) = tar.next().map_err(|source| ImageError::Archive { source })? {
            total = total.saturating_add(entry.size);
            if total > limit || files.staged.len() + files.links.len() >= MAX_FILES {
                return Err(ImageError::TooLarge {
                    what: format!("image archive at `{}`", entry.name()),
                    limit,
                });
            }
            let name = plain_name("", &entry.name());
            match entry.kind {
                Kind::File => {
                    let mut writer = self.inner.blobs.writer()?;
                    writer.copy(&mut tar, limit, &format!("`{name}` in the image archive"))?;
                    files.staged.insert(name, writer.finish());
                }
                Kind::Symlink => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let target = plain_name(parent, &String::from_utf8_lossy(&entry.link));
                    files.links.insert(name, target);
                }
                Kind::HardLink => {
                    files.links.insert(name, plain_name("", &String::from_utf8_lossy(&entry.link)));
                }
                _ => {}
            }
        }
        Ok(files)
    }

    /// Puts the blobs in place, unpacks the layers, then adds the images.
    fn add(&self, files: &Files, images: Vec<Found>) -> Result<Vec<Loaded>, ImageError> {
        let mut pinned: Vec<Pins> = Vec::new();
        let mut ready = Vec::new();
        for image in images {
            let manifest_digest = Digest::of(&image.manifest);
            let layers: Vec<(Digest, Digest)> =
                image.diff_ids.iter().copied().zip(image.layers.iter().map(|(_, blob)| *blob)).collect();
            let digests = layers.iter().flat_map(|(diff_id, blob)| [*diff_id, *blob]);
            pinned.push(self.pin(digests.chain([manifest_digest, Digest::of(&image.config)])));
            for (name, blob) in &image.layers {
                // Several images of one archive may share the file; after the first it is in place.
                let staged = files.file(name)?;
                if fs::exists(staged.path()).unwrap_or(false) {
                    staged.commit()?;
                }
                debug_assert_eq!(staged.digest, *blob);
            }
            let id = self.inner.blobs.put(&image.config)?;
            let manifest = self.inner.blobs.put(&image.manifest)?;
            ready.push(NewImage {
                id,
                manifest,
                origin: Origin::Local,
                tags: image.tags.iter().map(Reference::to_string).collect(),
                digests: BTreeSet::new(),
                layers: self.unpack_all(&layers, Layers::admit)?,
            });
        }
        let commit = |new: NewImage| {
            let names = new.tags.iter().map(|tag| familiar(tag)).collect();
            Ok(Loaded { image: self.commit(new)?, names })
        };
        ready.into_iter().map(commit).collect()
    }
}

/// An image of the archive, checked as far as its documents go.
struct Found {
    tags: Vec<Reference>,
    config: Vec<u8>,
    manifest: Vec<u8>,
    diff_ids: Vec<Digest>,
    /// Name in the archive and digest of each layer, from the base up.
    layers: Vec<(String, Digest)>,
}

/// The archive's files by name.
#[derive(Default)]
struct Files {
    staged: HashMap<String, StagedBlob>,
    links: HashMap<String, String>,
}

/// One image of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Files {
    fn contains(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// The file `name`, through the links that old versions of `docker save` write for repeated layers.
    fn file(&self, name: &str) -> Result<&StagedBlob, ImageError> {
        let mut current = name;
        for _ in 0..8 {
            match (self.staged.get(current), self.links.get(current)) {
                (Some(file), _) => return Ok(file),
                (None, Some(target)) => current = target,
                (None, None) => break,
            }
        }
        Err(ImageError::MissingFromArchive { path: name.to_owned() })
    }

    /// Reads a document; blobs that were put in place meanwhile are read by [`crate::blobs::Blobs`] instead.
    fn read(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let file = self.file(name)?;
        if file.size > MAX_DOCUMENT {
            return Err(ImageError::TooLarge {
                what: format!("`{name}` in the image archive"),
                limit: MAX_DOCUMENT,
            });
        }
        fs::read(file.path()).map_err(ImageError::io("read", file.path()))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, ImageError> {
        let what = format!("`{name}` in the image archive");
        serde_json::from_slice(&self.read(name)?).map_err(|source| ImageError::InvalidJson { what, source })
    }

    /// The name of the blob `digest` in an OCI layout, after its content was verified.
    fn blob(&self, digest: &Digest) -> Result<String, ImageError> {
        let name = format!("blobs/sha256/{}", digest.hex());
        let found = self.file(&name)?.digest;
        if found != *digest {
            let what = format!("`{name}` in the image archive");
            return Err(ImageError::DigestMismatch { what, expected: *digest, found });
        }
        Ok(name)
    }

    fn oci_images(&self, wanted: &Platform) -> Result<Vec<Found>, ImageError> {
        let Document::Index(entries) =
            manifest::parse(&self.read("index.json")?, "`index.json` in the image archive")?
        else {
            return Err(ImageError::invalid("image archive", "its `index.json` is not an index"));
        };
        // Entries of one name are one image for several platforms; entries without platform are images of their own.
        let mut groups: BTreeMap<(String, usize), Vec<Descriptor>> = BTreeMap::new();
        for (position, entry) in entries.into_iter().enumerate() {
            let name = entry.annotation(NAME).or(entry.annotation(REF_NAME)).unwrap_or_default().to_owned();
            let single = if entry.platform.is_some() { usize::MAX } else { position };
            groups.entry((name, single)).or_default().push(entry);
        }
        if groups.is_empty() {
            return Err(ImageError::invalid("image archive", "its `index.json` names no image"));
        }
        let tags = self.docker_tags();
        let mut found: Vec<Found> = Vec::new();
        for entries in groups.into_values() {
            let name = entries[0].annotation(NAME).or(entries[0].annotation(REF_NAME)).map(str::to_owned);
            let title = name.clone().unwrap_or_else(|| "image archive".to_owned());
            let mut image = self.oci_image(&entries, wanted, &title, MAX_NESTING)?;
            // A bare tag is no name, though it would parse as one.
            let full_name =
                name.filter(|name| entries[0].annotation(NAME).is_some() || name.contains(['/', ':']));
            image
                .tags
                .extend(full_name.and_then(|name| name.parse().ok()).map(|r: Reference| r.without_digest()));
            if image.tags.is_empty() {
                let layers = image.layers.iter().map(|(_, blob)| *blob).collect();
                image
                    .tags
                    .extend(tags.get(&(Digest::of(&image.config), layers)).into_iter().flatten().cloned());
            }
            // One image under two names appears as two entries.
            match found.iter_mut().find(|other| other.manifest == image.manifest) {
                Some(other) => other.tags.extend(image.tags),
                None => found.push(image),
            }
        }
        Ok(found)
    }

    fn oci_image(
        &self,
        entries: &[Descriptor],
        wanted: &Platform,
        title: &str,
        nesting: u32,
    ) -> Result<Found, ImageError> {
        // Archives of one platform often keep the whole index; what is not here cannot be meant.
        let present: Vec<Descriptor> =
            entries.iter().filter(|entry| self.blob(&entry.digest).is_ok()).cloned().collect();
        let chosen =
            match manifest::choose(if present.is_empty() { entries } else { &present }, wanted, title) {
                Ok(chosen) => chosen,
                Err(error) => {
                    // A damaged manifest is worth more to know than that its platform is missing.
                    for entry in entries
                        .iter()
                        .filter(|entry| self.contains(&format!("blobs/sha256/{}", entry.digest.hex())))
                    {
                        self.blob(&entry.digest)?;
                    }
                    return Err(error);
                }
            };
        let bytes = self.read(&self.blob(&chosen.digest)?)?;
        let manifest = match manifest::parse(&bytes, &format!("`{title}`"))? {
            Document::Manifest(manifest) => manifest,
            Document::Index(inner) if nesting > 0 => {
                return self.oci_image(&inner, wanted, title, nesting - 1);
            }
            Document::Index(_) => {
                return Err(ImageError::invalid("image archive", "its indexes nest too deeply"));
            }
        };
        let config = self.read(&self.blob(&manifest.config.digest)?)?;
        let (_, diff_ids) = manifest::parse_config(&config, manifest.layers.len(), wanted, title)?;
        let layer = |layer: &Descriptor| Ok((self.blob(&layer.digest)?, layer.digest));
        let layers = manifest.layers.iter().map(layer).collect::<Result<_, ImageError>>()?;
        Ok(Found { tags: Vec::new(), config, manifest: bytes, diff_ids, layers })
    }

    /// The names in the `manifest.json` that current versions of `docker save` add to an OCI layout, by config and
    /// layers: the same config may be there with layers compressed in several ways.
    fn docker_tags(&self) -> HashMap<(Digest, Vec<Digest>), Vec<Reference>> {
        let images: Vec<DockerImage> = self.json("manifest.json").unwrap_or_default();
        let digest = |name: &String| Some(self.file(&plain_name("", name)).ok()?.digest);
        let mut tags: HashMap<_, Vec<Reference>> = HashMap::new();
        for image in images {
            let layers: Option<Vec<Digest>> = image.layers.iter().map(digest).collect();
            if let (Some(config), Some(layers)) = (digest(&image.config), layers) {
                let names = image.repo_tags.unwrap_or_default();
                let names = names.iter().filter_map(|tag| tag.parse().ok());
                tags.entry((config, layers)).or_default().extend(names);
            }
        }
        tags
    }

    fn docker_images(&self, wanted: &Platform) -> Result<Vec<Found>, ImageError> {
        let images: Vec<DockerImage> = self.json("manifest.json")?;
        if images.is_empty() {
            return Err(ImageError::invalid("image archive", "its `manifest.json` names no image"));
        }
        images.iter().map(|image| self.docker_image(image, wanted)).collect()
    }

    fn docker_image(&self, image: &DockerImage, wanted: &Platform) -> Result<Found, ImageError> {
        let tags: Vec<Reference> =
            image.repo_tags.iter().flatten().map(|tag| tag.parse()).collect::<Result<_, ImageError>>()?;
        let title = tags.first().map_or_else(|| image.config.clone(), Reference::familiar);
        let config_name = plain_name("", &image.config);
        let config = self.read(&config_name)?;
        // `docker save` names the config after its digest.
        let stem = config_name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>() {
            let found = Digest::of(&config);
            if found != expected {
                let what = format!("`{config_name}` in the image archive");
                return Err(ImageError::DigestMismatch { what, expected, found });
            }
        }
        let (_, diff_ids) = manifest::parse_config(&config, image.layers.len(), wanted, &title)?;
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        for name in &image.layers {
            let name = plain_name("", name);
            let file = self.file(&name)?;
            descriptors.push(Descriptor::new(
                layer_media_type(compression_of(file)?),
                file.digest,
                file.size,
            ));
            layers.push((name, file.digest));
        }
        let descriptor = Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64);
        let manifest = Manifest::new(descriptor, descriptors);
        debug_assert_eq!(manifest.media_type, OCI_MANIFEST);
        manifest.check(&format!("`{title}`"))?;
        let manifest = serde_json::to_vec(&manifest).expect("a manifest has string keys and plain values");
        Ok(Found { tags, config, manifest, diff_ids, layers })
    }
}

/// How a staged file is compressed.
pub(crate) fn compression_of(file: &StagedBlob) -> Result<Compression, ImageError> {
    let mut magic = Vec::new();
    let unreadable = |source| {
        let reason = format!("layer `{}`", file.digest);
        ImageError::CorruptArchive { reason, source: Some(source) }
    };
    let open = File::open(file.path()).map_err(ImageError::io("open", file.path()))?;
    open.take(6).read_to_end(&mut magic).map_err(ImageError::io("read", file.path()))?;
    compress::detect(&magic).map_err(unreadable)
}

pub(crate) fn layer_media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => OCI_LAYER,
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// `name` as seen from the directory `parent` of the archive, without `.` and `..`. Only ever used to look names up.
fn plain_name(parent: &str, name: &str) -> String {
    let mut parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
