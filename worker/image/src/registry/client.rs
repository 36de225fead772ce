//! HTTP to one registry: scheme, authentication, time-outs, retries, and errors in words.
//!
//! A thin layer on `reqwest`, as the point of it is to say exactly what went wrong and to resume what broke off.

use std::{
    collections::HashMap,
    io::ErrorKind,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use reqwest::{Response, StatusCode, header};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    PullOptions, blob_path,
    challenge::{self, Challenge},
};
use crate::{
    digest::Digest,
    error::ImageError,
    manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST},
    reference::{DEFAULT_REGISTRY, Reference},
};

/// Where `docker.io` really is.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// For a connection with its TLS handshake; as long as Docker waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a single byte; registries that fetch from elsewhere first can be silent for a while.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Tries in a row that brought nothing; with the waits between them an unreachable registry is reported after 2 s.
const ATTEMPTS: u32 = 4;
/// Wait after the first failed try; doubles each time.
const BACKOFF: Duration = Duration::from_millis(250);
/// How much of an error page is quoted.
const MAX_DETAIL: usize = 300;

/// What is shared by all talks with registries: connections, and who is downloading what.
#[derive(Default)]
pub(crate) struct Registries {
    verified: OnceLock<reqwest::Client>,
    unverified: OnceLock<reqwest::Client>,
    /// Scheme of registries that may be insecure, once known.
    schemes: Mutex<HashMap<String, &'static str>>,
    gates: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Registries {
    /// The gate of one blob: who holds its lock downloads, others wait.
    pub fn gate(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        // Those nobody holds any more are of no use.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.entry(*digest).or_default().clone()
    }

    fn client(
        &self,
        registry: &str,
        insecure: bool,
        options: &PullOptions,
    ) -> Result<reqwest::Client, ImageError> {
        let failed = |source| ImageError::Client { registry: registry.to_owned(), source };
        let cell = if insecure { &self.unverified } else { &self.verified };
        if !insecure && !options.ca_certificates.is_empty() {
            return build(false, options).map_err(failed);
        }
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        let client = build(insecure, options).map_err(failed)?;
        Ok(cell.get_or_init(|| client).clone())
    }
}

fn build(insecure: bool, options: &PullOptions) -> reqwest::Result<reqwest::Client> {
    // The program installs the provider; a test or a tool that forgot shall not panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("rswarm/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .tls_danger_accept_invalid_certs(insecure);
    if insecure {
        builder = builder.no_proxy(); // Loopback and in-house registries are reached directly.
    }
    let mut extra = Vec::new();
    for pem in &options.ca_certificates {
        extra.extend(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    if !extra.is_empty() {
        builder = builder.tls_certs_merge(extra);
    }
    builder.build()
}

/// A talk with one registry about one repository.
pub(crate) struct Session<'a> {
    client: reqwest::Client,
    /// `scheme://host[:port]`.
    base: String,
    reference: &'a Reference,
    options: &'a PullOptions,
    /// The `Authorization` that the registry asked for.
    authorization: tokio::sync::Mutex<Option<header::HeaderValue>>,
}

impl<'a> Session<'a> {
    /// Finds out how to reach the reference's registry.
    pub async fn open(
        registries: &Registries,
        reference: &'a Reference,
        options: &'a PullOptions,
    ) -> Result<Session<'a>, ImageError> {
        let registry = reference.registry();
        let host = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
        let insecure = options.is_insecure(registry);
        let client = registries.client(registry, insecure, options)?;
        let scheme = if insecure { probe(registries, &client, host).await? } else { "https" };
        let base = format!("{scheme}://{host}");
        Ok(Session { client, base, reference, options, authorization: tokio::sync::Mutex::default() })
    }

    /// The manifest or index of `reference`, verified, and its digest.
    pub async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, Digest), ImageError> {
        let target = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or_default().to_owned(),
        };
        let path = format!("/v2/{}/manifests/{target}", reference.repository());
        let what = format!("the manifest of `{}`", reference.familiar());
        let (bytes, announced) = self.retry(|| self.fetch_document(&path, &what, true).boxed()).await?;
        let found = Digest::of(&bytes);
        match reference.digest().or(announced) {
            Some(expected) if expected != found => Err(ImageError::DigestMismatch { what, expected, found }),
            _ => Ok((bytes, found)),
        }
    }

    /// A small blob such as a config, verified.
    pub async fn document(&self, blob: &Descriptor, name: &str) -> Result<Vec<u8>, ImageError> {
        let path = blob_path(self.reference, blob);
        let what = format!("{name} of `{}`", self.reference.familiar());
        let (bytes, _) = self.retry(|| self.fetch_document(&path, &what, false).boxed()).await?;
        let found = Digest::of(&bytes);
        if found != blob.digest {
            return Err(ImageError::DigestMismatch { what, expected: blob.digest, found });
        }
        Ok(bytes)
    }

    /// Sends the bytes of a blob to `sink`, resuming where a connection broke; the receiver verifies them.
    pub async fn stream(
        &self,
        blob: &Descriptor,
        sink: &mpsc::Sender<Option<bytes::Bytes>>,
        mut report: impl FnMut(u64),
    ) -> Result<(), ImageError> {
        let mut done = 0u64;
        let mut failures = 0;
        loop {
            let before = done;
            let error = match self.stream_once(blob, sink, &mut done, &mut report).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures = if done > before { 1 } else { failures + 1 };
            if failures >= ATTEMPTS || sink.is_closed() || !is_transient(&error) {
                return Err(error);
            }
            tracing::debug!(layer = %blob.digest, done, %error, "download broke off, resuming");
            tokio::time::sleep(BACKOFF * 2u32.pow(failures - 1)).await;
        }
    }

    async fn stream_once(
        &self,
        blob: &Descriptor,
        sink: &mpsc::Sender<Option<bytes::Bytes>>,
        done: &mut u64,
        report: &mut impl FnMut(u64),
    ) -> Result<(), ImageError> {
        let what = || format!("layer `{}`", blob.digest);
        let interrupted = |source| ImageError::Interrupted {
            registry: self.reference.registry().to_owned(),
            what: what(),
            source,
        };
        let mut response = self.get(&blob_path(self.reference, blob), false, *done).await?;
        // A registry that cannot resume sends everything again; what is here already is passed over.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { *done };
        while *done < blob.size {
            let Some(mut chunk) = response.chunk().await.map_err(|e| interrupted(Some(e.without_url())))?
            else {
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
            *done += chunk.len() as u64;
            if sink.send(Some(chunk)).await.is_err() {
                return Err(interrupted(None)); // The receiver failed, and says why.
            }
            report(*done);
        }
        let too_long =
            *done > blob.size || matches!(response.chunk().await, Ok(Some(more)) if !more.is_empty());
        if too_long {
            let (expected, found) = (blob.size, (*done).max(blob.size + 1));
            return Err(ImageError::SizeMismatch { what: what(), expected, found });
        }
        Ok(())
    }

    async fn fetch_document(
        &self,
        path: &str,
        what: &str,
        is_manifest: bool,
    ) -> Result<(Vec<u8>, Option<Digest>), ImageError> {
        let mut response = self.get(path, is_manifest, 0).await?;
        let announced = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await.map_err(|source| ImageError::Interrupted {
                registry: self.reference.registry().to_owned(),
                what: what.to_owned(),
                source: Some(source.without_url()),
            })?;
            let Some(chunk) = chunk else { return Ok((bytes, announced.filter(|_| is_manifest))) };
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(ImageError::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT });
            }
        }
    }

    /// Gets `path` from byte `from` on, authenticating if asked to; anything but success is an error.
    async fn get(&self, path: &str, is_manifest: bool, from: u64) -> Result<Response, ImageError> {
        let url = format!("{}{path}", self.base);
        let mut authenticated = false;
        loop {
            let mut request = self.client.get(&url);
            if is_manifest {
                request = request.header(
                    header::ACCEPT,
                    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", "),
                );
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = self.authorization.lock().await.clone() {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(|e| self.unreachable(e))?;
            match response.status() {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if !authenticated => {
                    self.authenticate(&response).await?;
                    authenticated = true;
                }
                _ => return Err(self.refusal(url, response).await),
            }
        }
    }

    /// Turns an answer that is no success into an error.
    async fn refusal(&self, url: String, response: Response) -> ImageError {
        let registry = self.reference.registry().to_owned();
        let reference = self.reference.familiar();
        let status = response.status();
        let detail = detail(response).await;
        match status {
            StatusCode::NOT_FOUND => ImageError::NotInRegistry { reference },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ImageError::Unauthorized { reference, registry, detail }
            }
            _ => ImageError::RegistryAnswer { registry, url, status: status.as_u16(), detail },
        }
    }

    /// Answers the challenge in `refused`, so that the next request carries what it asks for.
    async fn authenticate(&self, refused: &Response) -> Result<(), ImageError> {
        let challenges: Vec<Challenge> = refused
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| challenge::parse(value.to_str().ok()?))
            .collect();
        let credentials = self.options.auth.as_ref();
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let value = match (bearer.or(challenges.first()), credentials) {
            (Some(Challenge::Bearer { realm, service, scope, .. }), _) => {
                format!("Bearer {}", self.token(realm, service.as_deref(), scope.as_deref()).await?)
            }
            (Some(Challenge::Basic), Some(credentials)) => {
                let pair = format!("{}:{}", credentials.username, credentials.password);
                format!("Basic {}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pair))
            }
            (Some(Challenge::Basic), None) => {
                return Err(self.unauthorized("it wants a user name and a password"));
            }
            (None, _) => return Err(self.unauthorized("it wants an unknown kind of authentication")),
        };
        let mut value = header::HeaderValue::from_str(&value)
            .map_err(|_| self.unauthorized("its token server sent an unusable token"))?;
        value.set_sensitive(true);
        *self.authorization.lock().await = Some(value);
        Ok(())
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let default_scope = format!("repository:{}:pull", self.reference.repository());
        let mut request = self.client.get(realm).query(&[("scope", scope.unwrap_or(&default_scope))]);
        if let Some(service) = service {
            request = request.query(&[("service", service)]);
        }
        if let Some(credentials) = &self.options.auth {
            if !realm.starts_with("https://") && self.base.starts_with("https://") {
                return Err(
                    self.unauthorized("its token server is not reached by https, so the password stays here")
                );
            }
            request = request.basic_auth(&credentials.username, Some(&credentials.password));
        }
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.unauthorized(&detail(response).await));
        }
        if !status.is_success() {
            return Err(self.refusal(realm.to_owned(), response).await);
        }
        let bytes = response.bytes().await.map_err(|e| self.unreachable(e))?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        token
            .and_then(|token| token.token.or(token.access_token))
            .ok_or_else(|| self.unauthorized("its token server sent no token"))
    }

    fn unauthorized(&self, detail: &str) -> ImageError {
        ImageError::Unauthorized {
            reference: self.reference.familiar(),
            registry: self.reference.registry().to_owned(),
            detail: detail.to_owned(),
        }
    }

    fn unreachable(&self, source: reqwest::Error) -> ImageError {
        let (registry, source) = (self.reference.registry().to_owned(), source.without_url());
        if failed_in_tls(&source) && !self.options.is_insecure(&registry) {
            return ImageError::NotVerified { registry, source };
        }
        ImageError::Unreachable { registry, source: Some(source) }
    }

    /// Runs `attempt` until it succeeds, fails for good, or has failed [`ATTEMPTS`] times.
    ///
    /// Boxed futures, because the compiler cannot see yet that those of async closures may change threads.
    async fn retry<'f, T>(
        &self,
        mut attempt: impl FnMut() -> BoxFuture<'f, Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        for failures in 1.. {
            match attempt().await {
                Err(error) if failures < ATTEMPTS && is_transient(&error) => {
                    tracing::debug!(reference = %self.reference, %error, "trying again");
                    tokio::time::sleep(BACKOFF * 2u32.pow(failures - 1)).await;
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// Whether a connection came about and then failed as a TLS connection: what came back is no TLS, or its certificate is
/// not to be trusted.
fn failed_in_tls(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    error.is_connect()
        && causes
            .any(|error| matches!(io_kind(error), Some(ErrorKind::InvalidData | ErrorKind::UnexpectedEof)))
}

/// The kind of an I/O error; of one that wraps another, which is no cause of it for the standard library, the inner's.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let io = error.downcast_ref::<std::io::Error>()?;
    io.get_ref().and_then(|inner| io_kind(inner)).or(Some(io.kind()))
}

/// Whether a registry that may be insecure speaks TLS, remembered; TLS is tried first, as Docker does.
async fn probe(
    registries: &Registries,
    client: &reqwest::Client,
    host: &str,
) -> Result<&'static str, ImageError> {
    let lock = || registries.schemes.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(scheme) = lock().get(host) {
        return Ok(scheme);
    }
    let mut failures = 0;
    loop {
        let mut last = None;
        for scheme in ["https", "http"] {
            match client.get(format!("{scheme}://{host}/v2/")).send().await {
                Ok(_) => {
                    lock().insert(host.to_owned(), scheme);
                    return Ok(scheme);
                }
                Err(error) => last = Some(error.without_url()),
            }
        }
        failures += 1;
        if failures >= ATTEMPTS {
            return Err(ImageError::Unreachable { registry: host.to_owned(), source: last });
        }
        tokio::time::sleep(BACKOFF * 2u32.pow(failures - 1)).await;
    }
}

/// True for what may be better in a moment.
fn is_transient(error: &ImageError) -> bool {
    match error {
        ImageError::Unreachable { .. } | ImageError::Interrupted { .. } => true,
        ImageError::RegistryAnswer { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        _ => false,
    }
}

/// What an error answer says: the registry's own messages, or the start of the page.
async fn detail(mut response: Response) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 64 * 1024 {
            break;
        }
    }
    let text = match serde_json::from_slice::<Envelope>(&body) {
        Ok(envelope) => {
            let line = |problem: &Problem| format!("{}: {}", problem.code.to_lowercase(), problem.message);
            envelope.errors.iter().map(line).collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(&body).split_whitespace().collect::<Vec<_>>().join(" "),
    };
    if text.is_empty() {
        return status.canonical_reason().unwrap_or("no reason given").to_lowercase();
    }
    text.chars().take(MAX_DETAIL).collect()
}
