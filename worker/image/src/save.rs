//! Saving images to one archive that is both an OCI layout (`index.json`) and what `docker load` reads
//! (`manifest.json`), as current versions of `docker save` write it.
//!
//! Blobs go as they are stored, so digests stay. The same images give the same bytes.
//!
//! Source: OCI image-spec, `image-layout.md`; Docker image specification v1.2, "Combined Image JSON + Filesystem
//! Changeset Format".

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
};

use serde_json::json;

use crate::{
    archive::{NAME, REF_NAME},
    builder::{append, header},
    digest::{Digest, HashingReader},
    error::ImageError,
    manifest::{self, Descriptor, Document, OCI_INDEX},
    names::familiar,
    reference::Reference,
    store::{Image, ImageStore},
};

impl ImageStore {
    /// Writes the images that `names` (names or ids) mean as one archive; an image given by id goes without a name, and a
    /// name without a tag means all tags of that repository. Blocking.
    ///
    /// # Errors
    /// `NoSuchImage`, `AmbiguousId` before anything is written; `SaveFailed` if `writer` fails; `CorruptBlob` and
    /// `MissingBlob` by name: what was written until then is no archive.
    pub fn save(&self, names: &[String], writer: impl Write) -> Result<(), ImageError> {
        let names: Vec<String> = names.iter().flat_map(|name| self.names_of(name)).collect();
        let mut images: Vec<(Image, BTreeSet<String>)> = Vec::new();
        for name in &names {
            let image = self.find(name)?;
            // An id is no name, even where it would parse as one.
            let tag = name
                .parse::<Reference>()
                .ok()
                .filter(|name| name.digest().is_none() && image.references.contains(&name.familiar()))
                .map(|name| name.to_string());
            match images.iter_mut().find(|(known, _)| known.manifest_digest == image.manifest_digest) {
                Some((_, tags)) => tags.extend(tag),
                None => images.push((image, tag.into_iter().collect())),
            }
        }
        let _pinned = self.pin(images.iter().flat_map(|(image, _)| {
            [image.id, image.manifest_digest].into_iter().chain(image.blobs.iter().copied())
        }));
        // One that was removed before that has no blobs to keep.
        names.iter().try_for_each(|name| self.find(name).map(drop))?;
        let mut index = Vec::new();
        let mut docker = Vec::new();
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        for (image, tags) in &images {
            let bytes = self.inner.blobs.read(&image.manifest_digest, manifest::MAX_DOCUMENT)?;
            let Document::Manifest(manifest) = manifest::parse(&bytes, &format!("`{}`", image.id))? else {
                return Err(ImageError::invalid(format!("image `{}`", image.id), "its manifest is an index"));
            };
            blobs.insert(image.manifest_digest, bytes.len() as u64);
            blobs.extend(
                manifest.layers.iter().chain([&manifest.config]).map(|blob| (blob.digest, blob.size)),
            );
            let mut descriptor =
                Descriptor::new(manifest.own_media_type(), image.manifest_digest, bytes.len() as u64);
            descriptor.platform = Some(manifest::config_platform(&image.config));
            index.extend(descriptors(&descriptor, tags));
            let file = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            docker.push(json!({
                "Config": file(&image.id),
                "RepoTags": tags.iter().map(|tag| familiar(tag)).collect::<Vec<_>>(),
                "Layers": image.blobs.iter().map(file).collect::<Vec<_>>(),
            }));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index });
        let mut archive = tar::Builder::new(writer);
        let failed = |source| ImageError::SaveFailed { source };
        append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644).map_err(failed)?;
        append(&mut archive, "index.json", index.to_string().as_bytes(), 0o644).map_err(failed)?;
        append(&mut archive, "manifest.json", json!(docker).to_string().as_bytes(), 0o644).map_err(failed)?;
        for (digest, size) in blobs {
            self.save_blob(&mut archive, digest, size)?;
        }
        archive.into_inner().and_then(|mut writer| writer.flush()).map_err(failed)
    }

    /// The names that `name` stands for: if it is that of a repository, all that are in it, pinned ones too. Source:
    /// `docker image save`.
    fn names_of(&self, name: &str) -> Vec<String> {
        let just = || vec![name.to_owned()];
        let tagged = name.rsplit('/').next().unwrap_or(name).contains([':', '@']);
        let Some(repository) = name.parse::<Reference>().ok().filter(|_| !tagged) else { return just() };
        let within = |name: &String| {
            name.parse::<Reference>().is_ok_and(|reference| reference.name() == repository.name())
        };
        let all = self.list().into_iter().flat_map(|image| image.references.into_iter().chain(image.digests));
        let names: Vec<String> = all.filter(within).collect();
        if names.is_empty() { just() } else { names }
    }

    /// Copies a blob, verified as it goes by.
    fn save_blob(
        &self,
        archive: &mut tar::Builder<impl Write>,
        digest: Digest,
        size: u64,
    ) -> Result<(), ImageError> {
        let mut reader = HashingReader::new(self.inner.blobs.open_blob(&digest)?);
        let mut entry = header(tar::EntryType::Regular, 0o644, size);
        let name = format!("blobs/sha256/{}", digest.hex());
        archive
            .append_data(&mut entry, name, reader.by_ref().take(size))
            .map_err(|source| ImageError::SaveFailed { source })?;
        self.inner.blobs.confirm(&digest, reader)
    }
}

/// One entry of the index for each name, or one without a name.
fn descriptors(descriptor: &Descriptor, tags: &BTreeSet<String>) -> Vec<Descriptor> {
    if tags.is_empty() {
        return vec![descriptor.clone()];
    }
    let named = |full: &String| {
        let tag = full.rsplit_once(':').map_or(full.as_str(), |(_, tag)| tag);
        let annotations = [(NAME.to_owned(), full.clone()), (REF_NAME.to_owned(), tag.to_owned())];
        Descriptor { annotations: Some(annotations.into()), ..descriptor.clone() }
    };
    tags.iter().map(named).collect()
}
