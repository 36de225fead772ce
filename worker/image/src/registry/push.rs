//! Pushing an image: its blobs a few at a time, then its manifest as it is, so that its digest stays.

use std::{collections::HashSet, time::Duration};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use reqwest::header;

use super::{
    Progress, PullOptions,
    download::announced_digest,
    session::{Purpose, Session, retry_all},
    upload::Placed,
};
use crate::{
    digest::Digest,
    error::ImageError,
    manifest::{self, Descriptor, Document},
    reference::Reference,
    store::ImageStore,
};

/// Blobs of one push that are uploaded at a time; as Docker does.
const PARALLEL_BLOBS: usize = 5;
/// Repositories of the registry that are tried for one blob.
const MAX_MOUNTS: usize = 3;
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What a push left in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The name pushed, as a user writes it: `host:5000/app:1`.
    pub reference: String,
    pub tag: String,
    /// Digest of the manifest; the same as in this store.
    pub digest: Digest,
    /// Length of the manifest in bytes.
    pub size: u64,
}

impl ImageStore {
    /// Pushes what has the name `reference` to the registry that the name says: the manifest that the name means.
    ///
    /// Layers go as they are stored, so manifest and digest are the same there as here. Blobs that the registry has
    /// are not sent again; those that this store knows to be in another repository of the registry are mounted from
    /// there. Afterwards the image also has its pinned name there.
    ///
    /// # Errors
    /// `NoSuchImage`; `InvalidReference` for one with a digest; `Unauthorized`, `Unreachable`, `RegistryAnswer` and
    /// others by name. Blobs sent until then may stay in the registry, but nothing refers to them.
    pub async fn push(&self, reference: &str, options: &PullOptions) -> Result<Pushed, ImageError> {
        let reference: Reference = reference.parse()?;
        let Some(tag) = reference.tag().filter(|_| reference.digest().is_none()).map(str::to_owned) else {
            return Err(ImageError::InvalidReference {
                reference: reference.familiar(),
                reason: "push takes a name and a tag; the digest follows from the content".to_owned(),
            });
        };
        let image = self.find_name(&reference)?;
        let _pinned = self.pin(image.blobs.iter().copied().chain([image.id, image.manifest_digest]));
        let bytes = self.inner.blobs.read(&image.manifest_digest, manifest::MAX_DOCUMENT)?;
        let Document::Manifest(manifest) = manifest::parse(&bytes, &format!("`{}`", reference.familiar()))?
        else {
            return Err(ImageError::invalid(format!("image `{}`", image.id), "its manifest is an index"));
        };
        let (layers, size) = (manifest.layers.len(), manifest.layers.iter().map(|layer| layer.size).sum());
        options.report(Progress::Manifest { digest: image.manifest_digest, layers, bytes: size });

        let session = Session::open(&self.inner.registries, &reference, Purpose::Write, options).await?;
        let mut seen = HashSet::new();
        let mut blobs: Vec<Descriptor> = manifest.layers.clone();
        // These may not be given away, by their license; who pulls has them from elsewhere.
        blobs.retain(|layer| !layer.is_nondistributable());
        blobs.push(manifest.config.clone());
        blobs.retain(|blob| seen.insert(blob.digest));
        stream::iter(blobs)
            .map(|blob| self.push_blob(&session, &reference, blob, options).boxed())
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<Vec<()>>()
            .await?;

        let media_type = manifest.own_media_type();
        let found = retry_all(|| session.put_manifest(&tag, media_type, &bytes).boxed())
            .await?
            .unwrap_or(image.manifest_digest);
        if found != image.manifest_digest {
            return Err(ImageError::DigestMismatch {
                what: format!("the manifest of `{}` as its registry took it", reference.familiar()),
                expected: image.manifest_digest,
                found,
            });
        }
        self.add_pinned_name(&image.manifest_digest, &reference.pinned_name(found))?;
        Ok(Pushed { reference: reference.familiar(), tag, digest: found, size: bytes.len() as u64 })
    }

    async fn push_blob(
        &self,
        session: &Session<'_>,
        target: &Reference,
        blob: Descriptor,
        options: &PullOptions,
    ) -> Result<(), ImageError> {
        let mut mounts = self.repositories_with(&blob.digest, target.registry());
        mounts.retain(|repository| repository != target.repository());
        mounts.truncate(MAX_MOUNTS);
        if !self.inner.blobs.contains(&blob.digest, blob.size) {
            return Err(ImageError::MissingBlob { digest: blob.digest });
        }
        let layer = blob.digest;
        options.report(match session.place(&blob, self, &mounts, options.progress.as_ref()).await? {
            Placed::Present => Progress::Present { layer },
            Placed::Mounted => Progress::Mounted { layer },
            Placed::Uploaded => Progress::Ready { layer },
        });
        Ok(())
    }
}

impl Session<'_> {
    /// Gives the digest that the registry says the manifest has there, if it says one.
    async fn put_manifest(
        &self,
        target: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Option<Digest>, ImageError> {
        let url = self.url(&format!("/v2/{}/manifests/{target}", self.repository))?;
        let response = self
            .send(|client| {
                Ok(client
                    .put(url.clone())
                    .header(header::CONTENT_TYPE, media_type)
                    .timeout(MANIFEST_TIMEOUT)
                    .body(bytes.to_vec()))
            })
            .await?;
        if response.status().is_success() {
            return Ok(announced_digest(&response));
        }
        Err(self.refusal(response).await)
    }
}
