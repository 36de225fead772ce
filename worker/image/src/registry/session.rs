//! A talk with one server about one repository: requests that authenticate when asked to, and refusals in words.

use std::{io::ErrorKind, time::Instant};

use futures::future::BoxFuture;
use reqwest::{RequestBuilder, Response, StatusCode, Url, header};
use serde::Deserialize;

use super::{
    Credentials, Mirror, PullOptions, Registries,
    client::probe,
    options::is_loopback,
    retry,
    token::{self, Token},
};
use crate::{
    error::ImageError,
    reference::{DEFAULT_REGISTRY, Reference},
};

/// Where `docker.io` really is.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// How much of an error page is quoted.
const MAX_DETAIL: usize = 300;

/// What a talk is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
    Login,
}

/// A talk with one server about one repository.
pub(super) struct Session<'a> {
    pub client: reqwest::Client,
    /// `scheme://host[:port][/path]`.
    pub base: String,
    /// `host[:port]` as the user knows it.
    pub registry: String,
    /// It may be used without a valid certificate.
    insecure: bool,
    /// For example `library/nginx`; empty for a login.
    pub repository: String,
    /// The reference in the user's words.
    pub title: String,
    pub purpose: Purpose,
    pub credentials: Option<&'a Credentials>,
    /// The `Authorization` that the registry asked for.
    authorization: tokio::sync::Mutex<Option<Token>>,
}

impl<'a> Session<'a> {
    /// Finds out how to reach the reference's registry.
    pub async fn open(
        registries: &Registries,
        reference: &Reference,
        purpose: Purpose,
        options: &'a PullOptions,
    ) -> Result<Session<'a>, ImageError> {
        let registry = reference.registry();
        let host = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
        let insecure = options.is_insecure(registry);
        let client = match purpose {
            Purpose::Write => registries.client_for_push(registry, insecure, options)?,
            Purpose::Read | Purpose::Login => registries.client(registry, insecure, options)?,
        };
        let scheme =
            if insecure { probe(&registries.client(registry, true, options)?, host).await? } else { "https" };
        Ok(Session {
            client,
            base: format!("{scheme}://{host}"),
            registry: registry.to_owned(),
            insecure,
            repository: reference.repository().to_owned(),
            title: reference.familiar(),
            purpose,
            credentials: options.auth.as_ref(),
            authorization: tokio::sync::Mutex::default(),
        })
    }

    /// A talk with a mirror of the reference's registry. Credentials for the registry are none of its business.
    pub fn open_mirror(
        registries: &Registries,
        mirror: &Mirror,
        reference: &Reference,
        options: &'a PullOptions,
    ) -> Result<Session<'a>, ImageError> {
        let url =
            Url::parse(&mirror.url).map_err(|_| ImageError::InvalidMirror { text: mirror.url.clone() })?;
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let insecure = is_loopback(&host) || options.is_insecure(&host);
        Ok(Session {
            client: registries.client(&host, insecure, options)?,
            base: mirror.url.clone(),
            registry: host,
            insecure,
            repository: reference.repository().to_owned(),
            title: reference.familiar(),
            purpose: Purpose::Read,
            credentials: None,
            authorization: tokio::sync::Mutex::default(),
        })
    }

    /// A talk about nothing but who the user is.
    pub async fn for_login(
        registries: &Registries,
        registry: &str,
        options: &'a PullOptions,
    ) -> Result<Session<'a>, ImageError> {
        // Any repository does, to have the host's name checked.
        let reference: Reference = if registry == DEFAULT_REGISTRY {
            "login".parse()?
        } else {
            let reference: Reference = format!("{registry}/login").parse()?;
            if reference.registry() != registry {
                return Err(ImageError::InvalidReference {
                    reference: registry.to_owned(),
                    reason: "a registry's host has a dot or a port, or is `localhost`".to_owned(),
                });
            }
            reference
        };
        let mut session = Session::open(registries, &reference, Purpose::Login, options).await?;
        session.repository.clear();
        Ok(session)
    }

    /// Sends what `request` makes to this server, once more with an answer to its challenge if it wants one. Gives
    /// whatever answer then comes.
    pub async fn send(
        &self,
        request: impl Fn(&reqwest::Client) -> Result<RequestBuilder, ImageError>,
    ) -> Result<Response, ImageError> {
        let used = self.current().await;
        let first = self.send_with(&request, used.as_ref()).await?;
        // Nobody but the registry may ask who the user is.
        if first.status() != StatusCode::UNAUTHORIZED || !self.is_ours(first.url()) {
            return Ok(first);
        }
        let token = self.authenticate(&first, used.as_ref()).await?;
        self.send_with(&request, Some(&token)).await
    }

    async fn send_with(
        &self,
        request: &impl Fn(&reqwest::Client) -> Result<RequestBuilder, ImageError>,
        authorization: Option<&header::HeaderValue>,
    ) -> Result<Response, ImageError> {
        let (client, request) = request(&self.client)?.build_split();
        let mut request = request.map_err(|e| self.unreachable(e))?;
        // Registries may send uploads elsewhere, with the right to write in the address: no one there needs ours.
        if let Some(authorization) = authorization.filter(|_| self.is_ours(request.url())) {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        client.execute(request).await.map_err(|e| self.unreachable(e))
    }

    fn is_ours(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }

    /// The authorization found so far, unless it is about to expire.
    async fn current(&self) -> Option<header::HeaderValue> {
        let mut authorization = self.authorization.lock().await;
        if authorization.as_ref().is_some_and(|token| token.expires.is_some_and(|at| at <= Instant::now())) {
            *authorization = None;
        }
        authorization.as_ref().map(|token| token.value.clone())
    }

    /// Answers the challenge in `refused`; others who were refused with the same `used` share the answer.
    async fn authenticate(
        &self,
        refused: &Response,
        used: Option<&header::HeaderValue>,
    ) -> Result<header::HeaderValue, ImageError> {
        let mut authorization = self.authorization.lock().await;
        if let Some(token) = authorization.as_ref()
            && Some(&token.value) != used
        {
            return Ok(token.value.clone());
        }
        let token = token::answer(self, refused).await?;
        let value = token.value.clone();
        *authorization = Some(token);
        Ok(value)
    }

    /// Checks the credentials; gives the identity token if there is one.
    pub async fn login(&self) -> Result<Option<String>, ImageError> {
        let url = format!("{}/v2/", self.base);
        let response = retry_all(|| Box::pin(self.send(|client| Ok(client.get(&url))))).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        Ok(self.authorization.lock().await.as_ref().and_then(|token| token.identity.clone()))
    }

    /// Turns an answer that is no success into an error.
    pub async fn refusal(&self, response: Response) -> ImageError {
        let registry = self.registry.clone();
        let status = response.status();
        let mut url = response.url().clone();
        // What follows the path of an upload is a secret.
        url.set_query(None);
        let retry_after = retry::retry_after(&response);
        let detail = detail(response).await;
        match status {
            StatusCode::NOT_FOUND if self.purpose == Purpose::Read => {
                let reference = self.title.clone();
                match url.path().rsplit_once("/blobs/") {
                    Some((_, digest)) => ImageError::BlobLost { reference, digest: digest.to_owned() },
                    None => ImageError::NotInRegistry { reference },
                }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorized(&detail),
            StatusCode::TOO_MANY_REQUESTS => ImageError::RateLimited { registry, detail, retry_after },
            _ => ImageError::RegistryAnswer {
                registry,
                url: url.into(),
                status: status.as_u16(),
                detail,
                retry_after,
            },
        }
    }

    pub fn unauthorized(&self, detail: &str) -> ImageError {
        let action = match self.purpose {
            Purpose::Read => "read",
            Purpose::Write => "write",
            Purpose::Login => {
                return ImageError::LoginRefused {
                    registry: self.registry.clone(),
                    detail: detail.to_owned(),
                };
            }
        };
        ImageError::Unauthorized {
            action,
            reference: self.title.clone(),
            registry: self.registry.clone(),
            detail: detail.to_owned(),
        }
    }

    pub fn unreachable(&self, source: reqwest::Error) -> ImageError {
        let (registry, is_timeout) = (self.registry.clone(), source.is_timeout());
        let source = source.without_url();
        if failed_in_tls(&source) && !self.insecure {
            return ImageError::NotVerified { registry, source };
        }
        let source = Some(source);
        if is_timeout {
            ImageError::TimedOut { registry, source }
        } else {
            ImageError::Unreachable { registry, source }
        }
    }

    /// A body that ended too early, or stalled.
    pub fn interrupted(&self, what: impl Into<String>, source: Option<reqwest::Error>) -> ImageError {
        match source {
            Some(source) if source.is_timeout() => self.unreachable(source),
            source => ImageError::Interrupted {
                registry: self.registry.clone(),
                what: what.into(),
                source: source.map(reqwest::Error::without_url),
            },
        }
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

/// Runs `attempt` until it succeeds, fails for good, or has failed too often.
///
/// Boxed futures, because the compiler cannot see yet that those of async closures may change threads.
pub(super) async fn retry_all<'f, T>(
    mut attempt: impl FnMut() -> BoxFuture<'f, Result<T, ImageError>>,
) -> Result<T, ImageError> {
    let mut failures = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failures += 1;
        let Some(wait) = retry::wait(&error, failures) else { return Err(error) };
        tracing::debug!(%error, ?wait, "trying again");
        tokio::time::sleep(wait).await;
    }
}

/// What an error answer says: the registry's own messages, or the start of the page.
pub(super) async fn detail(mut response: Response) -> String {
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
