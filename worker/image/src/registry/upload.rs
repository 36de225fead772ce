//! Sending one blob to a registry: not at all if it is there, from another of its repositories if it can be mounted,
//! in one piece if it is small, else in chunks that go on where a connection broke.
//!
//! Source: OCI distribution-spec 1.1, "Push", "Pushing blobs", "Mounting a blob from another repository".

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, TryStreamExt, stream};
use reqwest::{Body, Response, StatusCode, Url, header};
use tokio::io::AsyncReadExt;

use super::{
    Progress, ProgressSink, blocking, retry,
    session::{Session, retry_all},
};
use crate::{digest::Digest, error::ImageError, manifest::Descriptor, store::ImageStore};

/// Blobs up to this size go in one request; larger ones in chunks of it.
const CHUNK: u64 = 16 << 20;
/// Bytes read from disk at a time.
const PIECE: usize = 64 * 1024;
/// A request may take this long, and longer by what it carries at [`SLOWEST`]: registries check a blob, or move it to
/// where it stays, before they answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes a second; a slower connection counts as broken.
const SLOWEST: u64 = 16 * 1024;

/// How a blob came to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Present,
    Mounted,
    Uploaded,
}

/// An upload that the registry has begun: where it goes on, and how much is there.
struct Upload {
    location: Url,
    done: u64,
    /// Smallest chunk the registry takes, except for the last one.
    chunk: u64,
}

impl Session<'_> {
    /// True if the registry has the blob.
    async fn has(&self, digest: &Digest) -> Result<bool, ImageError> {
        let url = format!("{}{}", self.base, self.blob_path(digest));
        let response = self.send(|client| Ok(client.head(&url).timeout(PATIENCE))).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Brings `blob` from `store` to the registry, verified before any of it is sent. `mounts` are repositories of the same
    /// registry that may have it.
    pub async fn place(
        &self,
        blob: &Descriptor,
        store: &ImageStore,
        mounts: &[String],
        progress: Option<&ProgressSink>,
    ) -> Result<Placed, ImageError> {
        if retry_all(|| self.has(&blob.digest).boxed()).await? {
            return Ok(Placed::Present);
        }
        let mut failures = 0;
        let mut upload = None;
        let mut in_one_piece = blob.size <= CHUNK;
        for from in mounts {
            let started = retry_all(|| self.start(blob, Some(from)).boxed()).await;
            match started {
                Ok(None) => return Ok(Placed::Mounted),
                // Not there, or we may not read it there: the registry began an upload instead.
                Ok(begun) => {
                    upload = begun;
                    break;
                }
                Err(ImageError::Unauthorized { .. } | ImageError::RegistryAnswer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (kept, digest) = (store.clone(), blob.digest);
        blocking(move || kept.inner.blobs.verify(&digest)).await?;
        let path = &store.inner.blobs.path(&digest);
        loop {
            let before = upload.as_ref().map_or(0, |upload| upload.done);
            let attempt = if in_one_piece {
                self.send_whole(blob, path, &mut upload, progress).await
            } else {
                self.send_chunks(blob, path, &mut upload, progress).await
            };
            let error = match attempt {
                Ok(()) => return Ok(Placed::Uploaded),
                Err(error) => error,
            };
            if !in_one_piece
                && matches!(&error, ImageError::RegistryAnswer { status, .. } if matches!(status, 400 | 404 | 405 | 411 | 413 | 416 | 501))
            {
                // Not every registry takes chunks, or an upload is lost: all at once, from the start.
                tracing::debug!(layer = %blob.digest, %error, "chunks are refused, sending in one piece");
                (in_one_piece, upload) = (true, None);
                continue;
            }
            let moved = upload.as_ref().is_some_and(|upload| upload.done > before);
            failures = if moved { 1 } else { failures + 1 };
            let Some(wait) = retry::wait(&error, failures) else { return Err(error) };
            tracing::debug!(layer = %blob.digest, %error, "upload broke off, trying again");
            tokio::time::sleep(wait).await;
            if in_one_piece {
                upload = None;
            } else if let Some(begun) = &mut upload
                && self.ask_how_far(begun).await.is_err()
            {
                upload = None;
            }
        }
    }

    /// Begins an upload, or has the blob mounted from another repository: then there is nothing to upload.
    async fn start(&self, blob: &Descriptor, from: Option<&String>) -> Result<Option<Upload>, ImageError> {
        let mut url = self.url(&format!("/v2/{}/blobs/uploads/", self.repository))?;
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", &blob.digest.to_string()).append_pair("from", from);
        }
        let response = self
            .send(|client| Ok(client.post(url.clone()).header(header::CONTENT_LENGTH, 0).timeout(PATIENCE)))
            .await?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => {
                let smallest = response.headers().get("oci-chunk-min-length");
                let smallest = smallest.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
                let location = location(&response).ok_or_else(|| self.no_location(&response))?;
                Ok(Some(Upload { location, done: 0, chunk: CHUNK.max(smallest) }))
            }
            _ => Err(self.refusal(response).await),
        }
    }

    async fn send_whole(
        &self,
        blob: &Descriptor,
        path: &Path,
        upload: &mut Option<Upload>,
        progress: Option<&ProgressSink>,
    ) -> Result<(), ImageError> {
        let begun = match upload.take() {
            Some(begun) => begun,
            None => match self.start(blob, None).await? {
                Some(begun) => begun,
                None => return Ok(()),
            },
        };
        self.finish(blob, &begun, |_| Ok((blob.size, body(path, 0, blob, blob.size, progress)?))).await
    }

    async fn send_chunks(
        &self,
        blob: &Descriptor,
        path: &Path,
        upload: &mut Option<Upload>,
        progress: Option<&ProgressSink>,
    ) -> Result<(), ImageError> {
        if upload.is_none() {
            *upload = self.start(blob, None).await?;
        }
        let Some(begun) = upload else { return Ok(()) };
        while begun.done < blob.size {
            let (start, length) = (begun.done, begun.chunk.min(blob.size - begun.done));
            let url = begun.location.clone();
            let response = self
                .send(|client| {
                    Ok(client
                        .patch(url.clone())
                        .header(header::CONTENT_TYPE, "application/octet-stream")
                        .header(header::CONTENT_RANGE, format!("{start}-{}", start + length - 1))
                        .header(header::CONTENT_LENGTH, length)
                        .timeout(timeout(length))
                        .body(body(path, start, blob, length, progress)?))
                })
                .await?;
            match response.status() {
                StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                    begun.location = location(&response).unwrap_or(url);
                    // A registry may keep less than it was sent; it says so.
                    begun.done = received(&response).unwrap_or(start + length).min(blob.size);
                    if begun.done <= start {
                        return Err(self.interrupted(format!("taking layer `{}`", blob.digest), None));
                    }
                }
                _ => return Err(self.refusal(response).await),
            }
        }
        let begun = &*begun;
        self.finish(blob, begun, |_| Ok((0, Body::from("")))).await
    }

    /// Ends an upload: the registry checks the digest.
    async fn finish(
        &self,
        blob: &Descriptor,
        upload: &Upload,
        body: impl Fn(()) -> Result<(u64, Body), ImageError>,
    ) -> Result<(), ImageError> {
        let mut url = upload.location.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let response = self
            .send(|client| {
                let (length, body) = body(())?;
                Ok(client
                    .put(url.clone())
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, length)
                    .timeout(timeout(length))
                    .body(body))
            })
            .await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(self.refusal(response).await)
    }

    /// Asks how much of an upload is there after a connection broke.
    async fn ask_how_far(&self, upload: &mut Upload) -> Result<(), ImageError> {
        let url = upload.location.clone();
        let response = self.send(|client| Ok(client.get(url.clone()).timeout(PATIENCE))).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        upload.done = received(&response).unwrap_or(0);
        if let Some(location) = location(&response) {
            upload.location = location;
        }
        Ok(())
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, ImageError> {
        Url::parse(&format!("{}{path}", self.base)).map_err(|error| {
            ImageError::invalid(format!("address of registry `{}`", self.registry), error.to_string())
        })
    }

    fn no_location(&self, response: &Response) -> ImageError {
        ImageError::RegistryAnswer {
            registry: self.registry.clone(),
            url: response.url().to_string(),
            status: response.status().as_u16(),
            detail: "it does not say where to upload to".to_owned(),
            retry_after: None,
        }
    }
}

/// Where the answer says to go on; relative addresses are of the request's.
fn location(response: &Response) -> Option<Url> {
    let value = response.headers().get(header::LOCATION)?.to_str().ok()?;
    response.url().join(value).ok()
}

/// Bytes of an upload that the registry says it has, from `Range: 0-<last>`. Some say `0-0` for none.
fn received(response: &Response) -> Option<u64> {
    let value = response.headers().get(header::RANGE)?.to_str().ok()?;
    let last: u64 = value.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

fn timeout(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes / SLOWEST)
}

/// `length` bytes of the file from `start` on, as a body that reports what has left.
fn body(
    path: &Path,
    start: u64,
    blob: &Descriptor,
    length: u64,
    progress: Option<&ProgressSink>,
) -> Result<Body, ImageError> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    file.seek(SeekFrom::Start(start)).map_err(ImageError::io("read", path))?;
    let (layer, total) = (blob.digest, blob.size);
    let progress = progress.map(Arc::clone);
    let file = tokio::fs::File::from_std(file);
    let pieces = stream::try_unfold((file, 0u64), move |(mut file, sent)| {
        let progress = progress.clone();
        async move {
            if sent == length {
                return Ok(None);
            }
            let mut piece = vec![0u8; PIECE.min((length - sent) as usize)];
            let count = file.read(&mut piece).await?;
            if count == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
            piece.truncate(count);
            let sent = sent + count as u64;
            if let Some(report) = &progress {
                report(Progress::Uploading { layer, done: start + sent, total });
            }
            Ok(Some((bytes::Bytes::from(piece), (file, sent))))
        }
    });
    Ok(Body::wrap_stream(pieces.into_stream()))
}
