//! Talking to registries: resolving a reference to a digest, pulling images into the store, pushing them out of it.
//!
//! ```text
//! options.rs    how to reach a registry, as whom; progress
//! client.rs     connections, shared by all; who downloads what
//! proxy.rs      which proxy of the environment a request goes through
//! session.rs    a talk with one server about one repository: authentication, refusals in words
//! token.rs      answering challenges (challenge.rs reads them)
//! retry.rs      when to try again
//! download.rs   manifests and blobs from mirrors and registry, resumed where they broke off
//! pull.rs       what to fetch and where it goes
//! upload.rs     one blob to a registry, resumed likewise; push.rs what to send
//! ```
//!
//! Source: OCI distribution-spec 1.1; Docker registry documentation, "Token Authentication Specification" and
//! "OAuth2 Token Authentication".

mod challenge;
mod client;
mod download;
mod options;
mod proxy;
mod pull;
mod push;
mod retry;
mod session;
mod token;
mod upload;

use crate::{
    digest::Digest,
    error::ImageError,
    manifest::{self, Document},
    platform::Platform,
    reference::Reference,
    store::ImageStore,
};
pub(crate) use client::Registries;
use download::Sources;
pub use options::{Credentials, Mirror, Progress, ProgressSink, PullOptions};
pub use push::Pushed;
use session::Session;

/// What a registry has under a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedReference {
    /// The reference as a user would write it, pinned: `nginx:1.25@sha256:…`.
    pub reference: String,
    /// Digest of the manifest or, for an image of several platforms, of the index.
    pub digest: Digest,
    /// The platforms there are.
    pub platforms: Vec<Platform>,
}

impl ImageStore {
    /// Asks the registry for the digest and the platforms of `reference`; downloads no layer.
    ///
    /// # Errors
    /// `NotInRegistry`, `Unauthorized`, `Unreachable`, `UnsupportedSchema` and others by name.
    pub async fn resolve_digest(
        &self,
        reference: &str,
        options: &PullOptions,
    ) -> Result<ResolvedReference, ImageError> {
        let reference: Reference = reference.parse()?;
        let sources = Sources::open(&self.inner.registries, &reference, options).await?;
        let (digest, _, document) = sources.manifest(&reference).await?;
        let platforms = match document {
            Document::Index(entries) => entries.into_iter().filter_map(|entry| entry.platform).collect(),
            Document::Manifest(manifest) => {
                let config = sources.document(&manifest.config, "the config").await?;
                vec![manifest::config_platform(&manifest::read_config(&config, &reference.familiar())?)]
            }
        };
        Ok(ResolvedReference { reference: reference.with_digest(digest).familiar(), digest, platforms })
    }

    /// Shows `credentials` to `registry` (`host[:port]`), and gives the identity token to keep instead of the password
    /// if its token server issues one.
    ///
    /// # Errors
    /// `InvalidReference` if that is no host; `LoginRefused`, `Unreachable`, `TimedOut` and others by name.
    pub async fn login(
        &self,
        registry: &str,
        credentials: &Credentials,
        options: &PullOptions,
    ) -> Result<Option<String>, ImageError> {
        let options = PullOptions { auth: Some(credentials.clone()), ..options.clone() };
        Session::for_login(&self.inner.registries, registry, &options).await?.login().await
    }
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}
