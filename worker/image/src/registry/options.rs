//! How to reach a registry, as whom, and what of it comes back as progress.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, sync::Arc};

use crate::{digest::Digest, error::ImageError, platform::Platform, reference::DEFAULT_REGISTRY};

/// How a user proves who they are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// Exchanged for access tokens at the registry's token server; what a login may give instead of the password.
    IdentityToken(String),
    /// Sent to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
            Credentials::IdentityToken(_) => f.write_str("IdentityToken(..)"),
            Credentials::RegistryToken(_) => f.write_str("RegistryToken(..)"),
        }
    }
}

/// How far a pull or a push has come. Several layers report at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known: this many layers, this many compressed bytes in all.
    Manifest {
        /// The one that the registry has the name under: of an image of several platforms, that of its index.
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
    /// Bytes of a layer that the registry has taken, of how many.
    Uploading {
        layer: Digest,
        done: u64,
        total: u64,
    },
    /// Nothing had to be moved: the layer was at its destination.
    Present {
        layer: Digest,
    },
    /// The registry took the layer from another of its repositories.
    Mounted {
        layer: Digest,
    },
    /// The layer is where it belongs: downloaded, verified and unpacked, or uploaded.
    Ready {
        layer: Digest,
    },
}

/// Receives progress; called from several tasks and not to block.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// A server asked before a registry itself, for reading only. Text form: `[HOST=]URL`, with `docker.io` as the host
/// if none is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `host[:port]` of the registry it stands for.
    pub registry: String,
    /// `http(s)://host[:port][/path]`, without a slash at the end.
    pub url: String,
}

impl FromStr for Mirror {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Mirror, ImageError> {
        let invalid = || ImageError::InvalidMirror { text: text.to_owned() };
        let (registry, url) = match text.split_once('=') {
            Some((registry, url)) if !registry.contains('/') => (registry, url),
            _ => (DEFAULT_REGISTRY, text),
        };
        let parsed = reqwest::Url::parse(url).map_err(|_| invalid())?;
        let plain = parsed.query().is_none() && parsed.fragment().is_none() && parsed.username().is_empty();
        if registry.is_empty() || !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() || !plain
        {
            return Err(invalid());
        }
        Ok(Mirror { registry: registry.to_owned(), url: url.trim_end_matches('/').to_owned() })
    }
}

/// How to reach a registry and what to take from it.
///
/// Proxies are taken from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`); loopback is reached directly.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Registries that may be used without a valid certificate or without TLS: `host`, `host:port`, or addresses as
    /// `10.0.0.0/8`. Loopback addresses always may.
    pub insecure_registries: Vec<String>,
    /// Asked in this order before the registry they stand for.
    pub mirrors: Vec<Mirror>,
    /// Shown to the registry itself, never to a mirror.
    pub auth: Option<Credentials>,
    /// The platform to take of an image that has several; `None` means this host's.
    pub platform: Option<Platform>,
    /// Directories with a directory for each registry of private authorities, `host[:port]`, whose `*.crt` (PEM) are
    /// trusted for it in addition to the system's.
    pub certificate_directories: Vec<PathBuf>,
    pub progress: Option<ProgressSink>,
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("insecure_registries", &self.insecure_registries)
            .field("mirrors", &self.mirrors)
            .field("auth", &self.auth)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

impl PullOptions {
    pub(super) fn report(&self, progress: Progress) {
        if let Some(sink) = &self.progress {
            sink(progress);
        }
    }

    /// True if `registry` (`host[:port]`) may be used without TLS.
    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        let host = host_of(registry);
        let address: Option<IpAddr> = host.parse().ok();
        is_loopback(registry)
            || self.insecure_registries.iter().any(|entry| {
                entry == registry
                    || entry == host
                    || address.is_some_and(|address| in_network(address, entry))
            })
    }
}

/// True if `registry` (`host[:port]`) is this machine.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = host_of(registry);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    }
}

/// True if `network` is `address/bits` and contains `address`.
pub(super) fn in_network(address: IpAddr, network: &str) -> bool {
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

    #[test]
    fn mirrors_are_read_with_and_without_a_host() {
        for (text, expected) in [
            ("https://m.example", Some(("docker.io", "https://m.example"))),
            ("http://127.0.0.1:5000/", Some(("docker.io", "http://127.0.0.1:5000"))),
            ("ghcr.io=https://m:5/ghcr", Some(("ghcr.io", "https://m:5/ghcr"))),
            ("m.example", None),
            ("ftp://m", None),
            ("=https://m", None),
            ("https://m/?a=b", None),
            ("https://user:pw@m", None),
        ] {
            let parsed = text.parse::<Mirror>().ok();
            let parsed = parsed.as_ref().map(|mirror| (mirror.registry.as_str(), mirror.url.as_str()));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let password = Credentials::Password { username: "joe".into(), password: "hunter2".into() };
        let options = PullOptions { auth: Some(password), ..PullOptions::default() };
        let text = format!("{options:?} {:?}", Credentials::IdentityToken("hunter2".into()));
        assert!(text.contains("joe") && !text.contains("hunter2"), "{text}");
    }
}
