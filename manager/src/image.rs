//! What the manager asks of images: the digest behind a name, once, when a service is written.
//!
//! The manager itself neither stores nor fetches images. The daemon brings an [`ImageResolver`] built on its image
//! store and registry client.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rswarm_types::node::Platform;
use rswarm_types::task::RegistryAuth;

/// A registry that takes longer counts as out of reach: the service is then created from the reference as written.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(15);

/// A future that can be stored and sent.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Finds out what an image reference stands for at present.
pub trait ImageResolver: Send + Sync + 'static {
    /// Looks `image` up, in the node's own store first if it has one, then at its registry, which is shown `auth` if
    /// that is meant for it.
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
    ) -> BoxFuture<'a, Result<ResolvedImage, ResolveError>>;
}

/// An image as of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The reference with its digest: `name:tag@sha256:…`.
    pub pinned: String,
    /// What it was built for; empty if that is not known.
    pub platforms: Vec<Platform>,
}

/// Why an image reference could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It can never name an image: the service is refused.
    #[error("invalid image reference `{image}`: {reason}")]
    Invalid { image: String, reason: String },
    /// The registry was asked and has no such image: the service is refused.
    #[error("image `{image}` not found: {reason}")]
    NotFound { image: String, reason: String },
    /// The registry does not let us look. The service keeps the reference as written, with a warning.
    #[error(
        "image `{image}` could not be looked up (for a private image, log in to its registry and give \
         `--with-registry-auth`)"
    )]
    Denied { image: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// Nobody could be asked. The service keeps the reference as written, with a warning.
    #[error("image `{image}` could not be looked up")]
    Unavailable { image: String, source: Box<dyn std::error::Error + Send + Sync> },
}
