//! Talking to registries: resolving a reference to a digest, and pulling images into the store.
//!
//! [`client`] knows HTTP, authentication and retries; [`pull`] knows what to fetch and where it goes. Push would be a
//! third file beside them.
//!
//! Source: OCI distribution-spec 1.1, "Pull"; Docker registry documentation, "Token Authentication Specification".

mod challenge;
mod client;
mod pull;

use std::{fmt, net::IpAddr, sync::Arc};

use crate::{
    digest::Digest,
    error::ImageError,
    manifest::{self, Descriptor, Document},
    platform::Platform,
    reference::Reference,
    store::ImageStore,
};
pub(crate) use client::Registries;
use client::Session;

/// What a registry wants to know of a user.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How far a pull has come. Several layers report at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known: this many layers, this many compressed bytes in all.
    Manifest {
        digest: Digest,
        layers: usize,
        bytes: u64,
    },
    /// Compressed bytes of a layer that are here, of how many; not sent for every chunk.
    Downloading {
        layer: Digest,
        done: u64,
        total: u64,
    },
    Unpacking {
        layer: Digest,
    },
    /// The layer is downloaded, verified and unpacked, or was here before.
    Ready {
        layer: Digest,
    },
}

/// Receives progress; called from several tasks and not to block.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to reach a registry and what to take from it.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Registries that may be used without a valid certificate or without TLS: `host`, `host:port`, or addresses as
    /// `10.0.0.0/8`. Loopback addresses always may.
    pub insecure_registries: Vec<String>,
    pub auth: Option<Credentials>,
    /// The platform to take of an image that has several; `None` means this host's.
    pub platform: Option<Platform>,
    /// Certificate authorities (PEM) trusted in addition to the system's.
    pub ca_certificates: Vec<Vec<u8>>,
    pub progress: Option<ProgressSink>,
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("insecure_registries", &self.insecure_registries)
            .field("auth", &self.auth)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

impl PullOptions {
    fn report(&self, progress: Progress) {
        if let Some(sink) = &self.progress {
            sink(progress);
        }
    }

    /// True if `registry` (`host[:port]`) may be used without TLS.
    fn is_insecure(&self, registry: &str) -> bool {
        let host = host_of(registry);
        let address: Option<IpAddr> = host.parse().ok();
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self.insecure_registries.iter().any(|entry| {
                entry == registry
                    || entry == host
                    || address.is_some_and(|address| in_network(address, entry))
            })
    }
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    }
}

/// True if `network` is `address/bits` and contains `address`.
fn in_network(address: IpAddr, network: &str) -> bool {
    let Some((base, bits)) = network.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) if bits <= 32 => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if bits <= 128 => {
            (a.to_bits() ^ b.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

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
        let session = Session::open(&self.inner.registries, &reference, options).await?;
        let (bytes, digest) = session.manifest(&reference).await?;
        let title = reference.familiar();
        let platforms = match manifest::parse(&bytes, &format!("`{title}`"))? {
            Document::Index(entries) => entries.into_iter().filter_map(|entry| entry.platform).collect(),
            Document::Manifest(manifest) => {
                let config = session.document(&manifest.config, "the config").await?;
                vec![manifest::config_platform(&manifest::read_config(&config, &title)?)]
            }
        };
        Ok(ResolvedReference { reference: reference.with_digest(digest).familiar(), digest, platforms })
    }
}

/// `/v2/<repository>/blobs/<digest>`.
fn blob_path(reference: &Reference, blob: &Descriptor) -> String {
    format!("/v2/{}/blobs/{}", reference.repository(), blob.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_registries_are_matched_by_host_port_and_network() {
        let options = PullOptions {
            insecure_registries: vec![
                "a.b:5000".into(),
                "plain".into(),
                "10.1.0.0/16".into(),
                "fd00::/8".into(),
            ],
            ..PullOptions::default()
        };
        for (registry, insecure) in [
            ("localhost:5000", true),
            ("127.3.2.1", true),
            ("[::1]:5000", true),
            ("a.b:5000", true),
            ("a.b", false),
            ("plain:7", true),
            ("10.1.2.3:5000", true),
            ("10.2.2.3:5000", false),
            ("[fd12::1]:5", true),
            ("docker.io", false),
        ] {
            assert_eq!(options.is_insecure(registry), insecure, "{registry}");
        }
        assert!(in_network("1.2.3.4".parse().unwrap(), "0.0.0.0/0"));
    }
}
