//! Pulling an image: manifest, config, then layers a few at a time, each streamed to disk, verified and unpacked.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    task::spawn_blocking,
};

use super::{Progress, PullOptions, blocking, download::Sources, session::Session};
use crate::{
    digest::Digest,
    error::ImageError,
    index::Origin,
    layers::Layers,
    manifest::{self, Descriptor, Document, Manifest},
    partial::Partial,
    platform::Platform,
    reference::Reference,
    store::{Image, ImageStore, NewImage},
};

/// Layers of one pull that are downloaded at a time; as Docker does.
const PARALLEL_LAYERS: usize = 3;
/// Chunks (up to 64 KiB) of one layer between network and disk.
const CHUNKS_IN_FLIGHT: usize = 16;
/// Bytes between two reports of progress of a layer.
const REPORT_EVERY: u64 = 256 * 1024;

impl ImageStore {
    /// Pulls `reference` from its registry: by digest if it has one, else by tag, for the platform in `options`.
    ///
    /// A pinned image that is here already is not asked for again. Blobs that are here are not downloaded again;
    /// concurrent pulls share the downloads of common layers. Dropping the future stops the pull and leaves no image.
    ///
    /// # Errors
    /// `NotInRegistry`, `Unauthorized`, `Unreachable`, `NoPlatform`, `DigestMismatch`, `UnsupportedSchema`,
    /// `UnsupportedMediaType`, `Layer`, `NoSpace` and others by name; then no image was added.
    pub async fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        if reference.digest().is_some()
            && options.platform.is_none()
            && let Some(image) = self.get(&reference.to_string())
            && self.has_blobs(&image)
        {
            return Ok(image);
        }
        let result = Box::pin(self.pull_reference(&reference, options)).await;
        if matches!(result, Err(ImageError::Layer { .. } | ImageError::DigestMismatch { .. })) {
            // What was fetched will not be wanted again. After a fault of the network it may, so it stays.
            let store = self.clone();
            if let Err(error) = blocking(move || store.collect_garbage()).await {
                tracing::warn!(%reference, %error, "what the failed pull left could not be removed");
            }
        }
        result
    }

    async fn pull_reference(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Image, ImageError> {
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        let sources = Sources::open(&self.inner.registries, reference, options).await?;
        let (top_digest, bytes, manifest) = find_manifest(&sources, reference, &wanted).await?;
        let manifest_digest = Digest::of(&bytes);
        let (layers, size) = (manifest.layers.len(), manifest.layers.iter().map(|layer| layer.size).sum());
        options.report(Progress::Manifest { digest: top_digest, layers, bytes: size });

        let blobs = manifest.layers.iter().map(|layer| layer.digest);
        let _pinned = self.pin(blobs.chain([manifest_digest, manifest.config.digest]));
        let config = match self.inner.blobs.read(&manifest.config.digest, manifest::MAX_DOCUMENT) {
            Ok(config) => config,
            Err(_) => sources.document(&manifest.config, "the config").await?,
        };
        let (_, diff_ids) = manifest::parse_config(&config, layers, &wanted, &reference.familiar())?;
        let _pinned_layers = self.pin(diff_ids.iter().copied());

        let mut seen = HashSet::new();
        let pairs: Vec<(Descriptor, Digest)> =
            manifest.layers.iter().cloned().zip(diff_ids.iter().copied()).collect();
        let unique: Vec<(Descriptor, Digest)> =
            pairs.iter().filter(|(layer, _)| seen.insert(layer.digest)).cloned().collect();
        stream::iter(unique)
            .map(|(layer, diff_id)| self.ready_layer(&sources, layer, diff_id, options).boxed())
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect::<Vec<()>>()
            .await?;

        let digests = BTreeSet::from([reference.pinned_name(top_digest)]);
        // As with Docker, a pinned reference gives no tag: the tag may mean something else by now.
        let tags = if reference.digest().is_some() { Vec::new() } else { vec![reference.to_string()] };
        let store = self.clone();
        blocking(move || {
            let pairs: Vec<(Digest, Digest)> =
                pairs.iter().map(|(layer, diff_id)| (*diff_id, layer.digest)).collect();
            let id = store.inner.blobs.put(&config)?;
            let manifest = store.inner.blobs.put(&bytes)?;
            let layers = store.unpack_all(&pairs, Layers::admit)?;
            store.commit(NewImage { id, manifest, origin: Origin::Registry, tags, digests, layers })
        })
        .await
    }

    /// Downloads and unpacks one layer. A damaged copy that was here before is fetched once more.
    async fn ready_layer(
        &self,
        sources: &Sources<'_>,
        layer: Descriptor,
        diff_id: Digest,
        options: &PullOptions,
    ) -> Result<(), ImageError> {
        for last in [false, true] {
            self.download(sources, &layer, options).await?;
            options.report(Progress::Unpacking { layer: layer.digest });
            let (store, blob) = (self.clone(), layer.digest);
            match blocking(move || store.inner.layers.ensure(&store.inner.blobs, &diff_id, &blob)).await {
                Err(ImageError::CorruptBlob { .. } | ImageError::MissingBlob { .. }) if !last => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        options.report(Progress::Ready { layer: layer.digest });
        Ok(())
    }

    /// Brings one blob into the store, unless it is there, from the first source that has it as it should be; waits if
    /// another pull is at it.
    async fn download(
        &self,
        sources: &Sources<'_>,
        layer: &Descriptor,
        options: &PullOptions,
    ) -> Result<(), ImageError> {
        // Held until the writer has ended, also if this pull is dropped before.
        let gate = Arc::new(self.inner.registries.gate(&layer.digest).lock_owned().await);
        if self.inner.blobs.contains(&layer.digest, layer.size) {
            options.report(Progress::Present { layer: layer.digest });
            return Ok(());
        }
        sources.ask(|session| self.download_from(session, layer, gate.clone(), options).boxed()).await
    }

    async fn download_from(
        &self,
        session: &Session<'_>,
        layer: &Descriptor,
        gate: Arc<OwnedMutexGuard<()>>,
        options: &PullOptions,
    ) -> Result<(), ImageError> {
        loop {
            let (store, expected, size) = (self.clone(), layer.digest, layer.size);
            let partial = blocking(move || store.inner.partials.resume(expected, size)).await?;
            let start = partial.bytes();
            match self.fetch(session, layer, partial, gate.clone(), options).await {
                // What was there before may be what is wrong; it is gone now.
                Err(ImageError::DigestMismatch { .. }) if start > 0 => {
                    tracing::warn!(layer = %layer.digest, start, "resumed download is not what it should be: fetching all of it");
                }
                result => return result,
            }
        }
    }

    /// Goes on with a download to its end.
    async fn fetch(
        &self,
        session: &Session<'_>,
        layer: &Descriptor,
        partial: Partial,
        gate: Arc<OwnedMutexGuard<()>>,
        options: &PullOptions,
    ) -> Result<(), ImageError> {
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let (store, start) = (self.clone(), partial.bytes());
        let writer = spawn_blocking(move || {
            let _gate = gate;
            write(&store, partial, receiver)
        });
        let (digest, total) = (layer.digest, layer.size);
        let mut reported = start;
        let sent = session
            .stream(layer, start, &sender, |done| {
                if done - reported >= REPORT_EVERY || done == total {
                    reported = done;
                    options.report(Progress::Downloading { layer: digest, done, total });
                }
            })
            .await;
        if sent.is_ok() {
            // Only this mark makes what was written a blob. A writer that failed is heard below.
            let _ = sender.send(None).await;
        }
        drop(sender);
        let written = writer.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        written.and(sent)
    }

    /// Whether its blobs are there. Documents are small enough to be verified as well; a damaged layer goes when it is read.
    fn has_blobs(&self, image: &Image) -> bool {
        let blobs = &self.inner.blobs;
        let documents = [image.id, image.manifest_digest];
        documents.iter().all(|document| blobs.read(document, manifest::MAX_DOCUMENT).is_ok())
            && image.blobs.iter().all(|blob| blobs.path(blob).exists())
    }
}

/// Writes chunks until the mark of the end, then verifies; without the mark the download stays unfinished.
fn write(
    store: &ImageStore,
    mut partial: Partial,
    mut chunks: mpsc::Receiver<Option<bytes::Bytes>>,
) -> Result<(), ImageError> {
    loop {
        match chunks.blocking_recv() {
            Some(Some(chunk)) => partial.write(&chunk)?,
            Some(None) => return partial.commit(&store.inner.blobs),
            None => return Ok(()),
        }
    }
}

/// The digest under which the registry has the image, and the bytes and the content of the manifest for `wanted`.
async fn find_manifest(
    sources: &Sources<'_>,
    reference: &Reference,
    wanted: &Platform,
) -> Result<(Digest, Vec<u8>, Manifest), ImageError> {
    let title = reference.familiar();
    let (top_digest, bytes, document) = sources.manifest(reference).await?;
    let entries = match document {
        Document::Manifest(manifest) => return Ok((top_digest, bytes, manifest)),
        Document::Index(entries) => entries,
    };
    let chosen = manifest::choose(&entries, wanted, &title)?;
    match sources.manifest(&reference.with_digest(chosen.digest)).await? {
        (_, bytes, Document::Manifest(manifest)) => Ok((top_digest, bytes, manifest)),
        (_, _, Document::Index(_)) => {
            Err(ImageError::invalid(format!("image `{title}`"), "its index leads to another index"))
        }
    }
}
