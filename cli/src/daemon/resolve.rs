//! Finds the digest behind an image name for the manager, with the image store and the registry client of this node.

use rswarm_image::{ImageError, ImageStore, Origin, PullOptions};
use rswarm_manager::{BoxFuture, ImageResolver, ResolveError, ResolvedImage};
use rswarm_types::node::Platform;
use rswarm_types::task::RegistryAuth;

/// Looks names up in the local store, then at their registry.
///
/// An image that was loaded, imported or built here is what its name means. One that came from a registry is looked
/// up there again, since tags move; without an answer what is here is used.
pub struct Resolver {
    pub images: ImageStore,
    pub options: PullOptions,
}

impl ImageResolver for Resolver {
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
    ) -> BoxFuture<'a, Result<ResolvedImage, ResolveError>> {
        Box::pin(async move {
            let local = self.images.get(image);
            if let Some(local) = &local
                && local.origin == Origin::Local
            {
                return pinned(image, local);
            }
            let auth = rswarm_worker::credentials_for(image, auth);
            let options = PullOptions { auth, ..self.options.clone() };
            match (self.images.resolve_digest(image, &options).await, local) {
                (Ok(resolved), _) => Ok(ResolvedImage {
                    pinned: resolved.reference,
                    platforms: resolved.platforms.into_iter().map(platform).collect(),
                }),
                (Err(error), Some(local)) => {
                    tracing::warn!(image, %error, "registry does not answer for the image: using the local one");
                    pinned(image, &local)
                }
                (Err(error), None) => Err(refusal(image, error)),
            }
        })
    }
}

fn pinned(image: &str, found: &rswarm_image::Image) -> Result<ResolvedImage, ResolveError> {
    let reference: rswarm_image::Reference = image.parse().map_err(|error| refusal(image, error))?;
    Ok(ResolvedImage {
        pinned: reference.with_digest(found.manifest_digest).to_string(),
        platforms: vec![Platform {
            os: found.config.os().to_string(),
            architecture: found.config.architecture().to_string(),
        }],
    })
}

fn platform(platform: rswarm_image::Platform) -> Platform {
    Platform { os: platform.os, architecture: platform.arch }
}

fn refusal(image: &str, error: ImageError) -> ResolveError {
    let image = image.to_owned();
    match error {
        ImageError::InvalidReference { reason, .. } => ResolveError::Invalid { image, reason },
        ImageError::NotInRegistry { .. } | ImageError::NoSuchImage { .. } => {
            ResolveError::NotFound { image, reason: error.to_string() }
        }
        error @ ImageError::Unauthorized { .. } => ResolveError::Denied { image, source: Box::new(error) },
        error => ResolveError::Unavailable { image, source: Box::new(error) },
    }
}
