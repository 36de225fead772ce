//! What can go wrong with images, worded for the person who asked.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::{
    digest::Digest,
    platform::Platform,
    unpack::{LayerError, TarError},
};

/// Any failure of the image store or of talking to a registry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    #[error("invalid image reference `{reference}`: {reason}")]
    InvalidReference { reference: String, reason: String },
    #[error("invalid digest `{text}`: {reason}")]
    InvalidDigest { text: String, reason: String },
    #[error("invalid platform `{text}`: expected `os`, `arch`, `os/arch` or `os/arch/variant`")]
    InvalidPlatform { text: String },

    #[error("no such image: `{reference}`")]
    NoSuchImage { reference: String },
    #[error("`{prefix}` is the beginning of {matches} image ids: write more of it")]
    AmbiguousId { prefix: String, matches: usize },
    #[error("image `{image}` is used by {user}: remove that first, or force")]
    InUse { image: String, user: String },
    #[error("image `{image}` has several names ({}): remove them one by one, or force", names.join(", "))]
    SeveralNames { image: String, names: Vec<String> },

    #[error("no space left on the file system of `{path}`: free some, or use another data root")]
    NoSpace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not writable: check its owner and mode, or use another data root")]
    NotWritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to {action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("image store `{root}` is in use by another process")]
    Locked { root: PathBuf },
    #[error("image index `{path}` is corrupt: remove it and pull or load the images again")]
    CorruptIndex {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "blob `{digest}` in `{path}` is corrupt: its content has the digest `{found}`; pull or load the image again"
    )]
    CorruptBlob { digest: Digest, path: PathBuf, found: Digest },
    #[error("blob `{digest}` is missing from the image store: pull or load the image again")]
    MissingBlob { digest: Digest },

    #[error("not an image archive: found neither `index.json` (OCI) nor `manifest.json` (docker save)")]
    NotAnImageArchive,
    #[error("image archive is corrupt")]
    Archive {
        #[source]
        source: TarError,
    },
    #[error("image archive lacks `{path}`")]
    MissingFromArchive { path: String },
    #[error("image archive is corrupt: {reason}")]
    CorruptArchive {
        reason: String,
        #[source]
        source: Option<io::Error>,
    },
    #[error("the image archive cannot be written")]
    SaveFailed {
        #[source]
        source: io::Error,
    },
    #[error("invalid filter `{filter}`: {reason}")]
    InvalidFilter { filter: String, reason: String },
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("digest mismatch of {what}: expected `{expected}`, found `{found}`")]
    DigestMismatch { what: String, expected: Digest, found: Digest },
    #[error("{what} is {found} bytes long, but {expected} were announced")]
    SizeMismatch { what: String, expected: u64, found: u64 },
    #[error("{what} is not valid JSON of its kind")]
    InvalidJson {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("invalid {what}: {reason}")]
    InvalidImage { what: String, reason: String },
    #[error("layer `{layer}` cannot be unpacked")]
    Layer {
        layer: Digest,
        #[source]
        source: LayerError,
    },
    #[error("root file system archive cannot be imported")]
    Import {
        #[source]
        source: LayerError,
    },

    #[error("unsupported media type `{media_type}` of {what}")]
    UnsupportedMediaType { what: String, media_type: String },
    #[error(
        "`{reference}` uses image manifest schema 1, which is not supported: push it again with a current tool"
    )]
    UnsupportedSchema { reference: String },
    #[error("no manifest for {wanted} in `{reference}`, which has {}", list(available))]
    NoPlatform { reference: String, wanted: Platform, available: Vec<Platform> },

    #[error("no such image in its registry: `{reference}`")]
    NotInRegistry { reference: String },
    #[error("its registry has lost `{digest}`, a part of `{reference}`: push that image again")]
    BlobLost { reference: String, digest: String },
    #[error("unauthorized to {action} `{reference}` at `{registry}`: {detail}")]
    Unauthorized { action: &'static str, reference: String, registry: String, detail: String },
    #[error("registry `{registry}` refused the login: {detail}")]
    LoginRefused { registry: String, detail: String },
    #[error("registry `{registry}` is unreachable")]
    Unreachable {
        registry: String,
        #[source]
        source: Option<reqwest::Error>,
    },
    #[error(
        "no verified TLS connection to registry `{registry}`: if its certificate is of a private authority, put that into \
         `/etc/rswarm/certs.d/{registry}/ca.crt`; if it speaks plain http or has a certificate of its own, give \
         `--insecure-registry {registry}` to `rswarm daemon`, or to the `rswarm init` or `join` that starts it"
    )]
    NotVerified {
        registry: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("registry `{registry}` did not answer in time")]
    TimedOut {
        registry: String,
        #[source]
        source: Option<reqwest::Error>,
    },
    #[error("registry `{registry}` broke off while {what}")]
    Interrupted {
        registry: String,
        what: String,
        #[source]
        source: Option<reqwest::Error>,
    },
    #[error("registry `{registry}` answered {status} to `{url}`: {detail}")]
    RegistryAnswer {
        registry: String,
        url: String,
        status: u16,
        detail: String,
        /// How long the registry asked to be left alone.
        retry_after: Option<Duration>,
    },
    #[error("registry `{registry}` limits how often it may be asked: {detail}{}", pause(*retry_after))]
    RateLimited { registry: String, detail: String, retry_after: Option<Duration> },
    #[error("invalid registry mirror `{text}`: expected `[HOST=]http(s)://HOST[:PORT][/PATH]`")]
    InvalidMirror { text: String },
    #[error("cannot set up a connection to registry `{registry}`")]
    Client {
        registry: String,
        #[source]
        source: reqwest::Error,
    },
}

fn pause(retry_after: Option<Duration>) -> String {
    retry_after.map_or(String::new(), |wait| format!("; it wants to be left alone for {} s", wait.as_secs()))
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none".to_owned();
    }
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

impl ImageError {
    /// Wraps a failed file operation; a full or read-only place gets words of its own.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ImageError::NoSpace { path, source },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                ImageError::NotWritable { path, source }
            }
            _ => ImageError::Io { action, path, source },
        }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> ImageError {
        ImageError::InvalidImage { what: what.into(), reason: reason.into() }
    }
}
