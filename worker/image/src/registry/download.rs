//! Reading manifests and blobs: from mirrors first, then from the registry itself, and on from where it broke off.

use futures::{FutureExt, future::BoxFuture};
use reqwest::{Response, StatusCode, header};
use tokio::sync::mpsc;

use super::{
    PullOptions, Registries, retry,
    session::{Purpose, Session, retry_all},
};
use crate::{
    digest::Digest,
    error::ImageError,
    manifest::{
        self, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST,
    },
    reference::Reference,
};

/// Where a reference can be read from: mirrors of its registry, then the registry.
pub(super) struct Sources<'a> {
    sessions: Vec<Session<'a>>,
}

impl<'a> Sources<'a> {
    /// Finds out how to reach them. That the registry itself cannot be reached only matters once a mirror has failed.
    pub async fn open(
        registries: &Registries,
        reference: &Reference,
        options: &'a PullOptions,
    ) -> Result<Sources<'a>, ImageError> {
        let mut sessions = Vec::new();
        for mirror in options.mirrors.iter().filter(|mirror| mirror.registry == reference.registry()) {
            sessions.push(Session::open_mirror(registries, mirror, reference, options)?);
        }
        match Session::open(registries, reference, Purpose::Read, options).await {
            Ok(session) => sessions.push(session),
            Err(error) if sessions.is_empty() => return Err(error),
            Err(error) => tracing::debug!(%reference, %error, "only its mirrors are left"),
        }
        Ok(Sources { sessions })
    }

    /// The manifest or index of `reference`, verified: its digest, its bytes and what they say.
    pub async fn manifest(&self, reference: &Reference) -> Result<(Digest, Vec<u8>, Document), ImageError> {
        self.ask(|session| session.manifest(reference).boxed()).await
    }

    /// A small blob such as a config, verified.
    pub async fn document(&self, blob: &Descriptor, name: &str) -> Result<Vec<u8>, ImageError> {
        self.ask(|session| session.document(blob, name).boxed()).await
    }

    /// What the first source gives whose answer is good, the registry being the last one. A mirror is passed over, unless
    /// the fault is this host's.
    pub async fn ask<'s, T>(
        &'s self,
        attempt: impl Fn(&'s Session<'a>) -> BoxFuture<'s, Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        let (last, mirrors) = self.sessions.split_last().expect("opening gives at least one");
        for mirror in mirrors {
            match attempt(mirror).await {
                Err(
                    error @ (ImageError::Io { .. }
                    | ImageError::NoSpace { .. }
                    | ImageError::NotWritable { .. }),
                ) => return Err(error),
                Err(error) => {
                    tracing::info!(mirror = %mirror.registry, reference = %mirror.title, %error, "mirror passed over");
                }
                found => return found,
            }
        }
        attempt(last).await
    }
}

impl Session<'_> {
    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Vec<u8>, Document), ImageError> {
        let target = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or_default().to_owned(),
        };
        let path = format!("/v2/{}/manifests/{target}", self.repository);
        let what = format!("the manifest of `{}`", reference.familiar());
        let (bytes, announced) = retry_all(|| self.fetch_document(&path, &what, true).boxed()).await?;
        let found = Digest::of(&bytes);
        if let Some(expected) = reference.digest().or(announced).filter(|expected| *expected != found) {
            return Err(ImageError::DigestMismatch { what, expected, found });
        }
        let document = manifest::parse(&bytes, &format!("`{}`", self.title))?;
        Ok((found, bytes, document))
    }

    async fn document(&self, blob: &Descriptor, name: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(&blob.digest);
        let what = format!("{name} of `{}`", self.title);
        let (bytes, _) = retry_all(|| self.fetch_document(&path, &what, false).boxed()).await?;
        let found = Digest::of(&bytes);
        if found != blob.digest {
            return Err(ImageError::DigestMismatch { what, expected: blob.digest, found });
        }
        Ok(bytes)
    }

    /// Sends the bytes of a blob from `start` on to `sink`; the receiver verifies them.
    pub async fn stream(
        &self,
        blob: &Descriptor,
        start: u64,
        sink: &mpsc::Sender<Option<bytes::Bytes>>,
        mut report: impl FnMut(u64),
    ) -> Result<(), ImageError> {
        let (mut done, mut failures) = (start, 0);
        while done < blob.size || blob.size == 0 {
            let before = done;
            let error = match self.stream_once(blob, sink, &mut done, &mut report).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures = if done > before { 1 } else { failures + 1 };
            let Some(wait) = retry::wait(&error, failures).filter(|_| !sink.is_closed()) else {
                return Err(error);
            };
            tracing::debug!(layer = %blob.digest, done, %error, "download broke off, resuming");
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// `done` counts what is there, also after an error.
    async fn stream_once(
        &self,
        blob: &Descriptor,
        sink: &mpsc::Sender<Option<bytes::Bytes>>,
        done: &mut u64,
        report: &mut impl FnMut(u64),
    ) -> Result<(), ImageError> {
        let what = || format!("layer `{}`", blob.digest);
        let interrupted = |source| self.interrupted(format!("sending {}", what()), source);
        let too_long = |found| ImageError::SizeMismatch { what: what(), expected: blob.size, found };
        let (mut response, first) = self.blob_from(blob, *done).await?;
        // What is here already is passed over.
        let mut skip = *done - first;
        while *done < blob.size {
            let Some(mut chunk) = response.chunk().await.map_err(|e| interrupted(Some(e)))? else {
                return Err(interrupted(None));
            };
            if skip > 0 {
                let passed = skip.min(chunk.len() as u64);
                skip -= passed;
                chunk = chunk.split_off(passed as usize);
            }
            if chunk.is_empty() {
                continue;
            }
            let after = *done + chunk.len() as u64;
            if after > blob.size {
                return Err(too_long(after));
            }
            if sink.send(Some(chunk)).await.is_err() {
                return Err(interrupted(None)); // The receiver failed, and says why.
            }
            *done = after;
            report(after);
        }
        match response.chunk().await {
            Ok(Some(more)) if !more.is_empty() => Err(too_long(blob.size + more.len() as u64)),
            _ => Ok(()),
        }
    }

    /// The answer that brings a blob from byte `from` on, or from an earlier one where the registry cannot resume, and the
    /// position of its first byte.
    async fn blob_from(&self, blob: &Descriptor, from: u64) -> Result<(Response, u64), ImageError> {
        let path = self.blob_path(&blob.digest);
        if from > 0 {
            match self.get(&path, false, from).await {
                Ok(response) => {
                    if let Some(first) = first_byte(&response, from).filter(|first| *first <= from) {
                        return Ok((response, first));
                    }
                }
                Err(ImageError::RegistryAnswer { status: 416, .. }) => {}
                Err(error) => return Err(error),
            }
            tracing::debug!(layer = %blob.digest, from, "download cannot be resumed, beginning anew");
        }
        Ok((self.get(&path, false, 0).await?, 0))
    }

    async fn fetch_document(
        &self,
        path: &str,
        what: &str,
        is_manifest: bool,
    ) -> Result<(Vec<u8>, Option<Digest>), ImageError> {
        let response = self.get(path, is_manifest, 0).await?;
        let announced = announced_digest(&response);
        Ok((self.small_body(response, what).await?, announced.filter(|_| is_manifest)))
    }

    /// The body of an answer that is small by its nature.
    pub(super) async fn small_body(&self, mut response: Response, what: &str) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        loop {
            let chunk =
                response.chunk().await.map_err(|e| self.interrupted(format!("sending {what}"), Some(e)))?;
            let Some(chunk) = chunk else { return Ok(bytes) };
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(ImageError::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT });
            }
        }
    }

    /// Gets `path` from byte `from` on; anything but success is an error.
    async fn get(&self, path: &str, is_manifest: bool, from: u64) -> Result<Response, ImageError> {
        let url = format!("{}{path}", self.base);
        let response = self
            .send(|client| {
                let mut request = client.get(&url);
                if is_manifest {
                    request = request.header(
                        header::ACCEPT,
                        [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", "),
                    );
                }
                if from > 0 {
                    request = request.header(header::RANGE, format!("bytes={from}-"));
                }
                Ok(request)
            })
            .await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// `/v2/<repository>/blobs/<digest>`.
    pub(super) fn blob_path(&self, digest: &Digest) -> String {
        format!("/v2/{}/blobs/{digest}", self.repository)
    }
}

/// The position of the first byte of an answer to a request from byte `from` on; `None` if it cannot be told.
fn first_byte(response: &Response, from: u64) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    match response.headers().get(header::CONTENT_RANGE) {
        Some(range) => range.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok(),
        None => Some(from),
    }
}

/// The digest that the server gives for what it sends or took.
pub(super) fn announced_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}
