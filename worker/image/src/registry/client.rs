//! Connections to registries: what all talks share.

use std::{
    collections::HashMap,
    io::ErrorKind,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use super::{PullOptions, proxy::Proxies, retry};
use crate::{digest::Digest, error::ImageError};

/// For a connection with its TLS handshake; as long as Docker waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a single byte; registries that fetch from elsewhere first can be silent for a while.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// What is shared by all talks with registries: connections, and who is downloading what.
#[derive(Default)]
pub(crate) struct Registries {
    verified: OnceLock<reqwest::Client>,
    unverified: OnceLock<reqwest::Client>,
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

    /// A client for `host[:port]`.
    pub fn client(
        &self,
        host: &str,
        insecure: bool,
        options: &PullOptions,
    ) -> Result<reqwest::Client, ImageError> {
        let failed = |source| ImageError::Client { registry: host.to_owned(), source };
        let authorities = if insecure { Vec::new() } else { authorities(host, options)? };
        if !authorities.is_empty() {
            return build(false, Some(READ_TIMEOUT), authorities).map_err(failed);
        }
        let cell = if insecure { &self.unverified } else { &self.verified };
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        let client = build(insecure, Some(READ_TIMEOUT), authorities).map_err(failed)?;
        Ok(cell.get_or_init(|| client).clone())
    }

    /// A client for sending: each request brings its own time-out, as nothing comes back while a body is on its way.
    pub fn client_for_push(
        &self,
        host: &str,
        insecure: bool,
        options: &PullOptions,
    ) -> Result<reqwest::Client, ImageError> {
        let authorities = if insecure { Vec::new() } else { authorities(host, options)? };
        build(insecure, None, authorities)
            .map_err(|source| ImageError::Client { registry: host.to_owned(), source })
    }
}

/// Whether a registry that may be insecure speaks TLS; it is tried first, as Docker does. Asked for each talk anew, as the
/// answer may change.
pub(super) async fn probe(client: &reqwest::Client, host: &str) -> Result<&'static str, ImageError> {
    let mut failures = 0;
    loop {
        let mut last = None;
        for scheme in ["https", "http"] {
            match client.get(format!("{scheme}://{host}/v2/")).send().await {
                Ok(_) => return Ok(scheme),
                Err(error) => last = Some(error.without_url()),
            }
        }
        failures += 1;
        let error = ImageError::Unreachable { registry: host.to_owned(), source: last };
        let Some(wait) = retry::wait(&error, failures) else { return Err(error) };
        tokio::time::sleep(wait).await;
    }
}

fn build(
    insecure: bool,
    read_timeout: Option<Duration>,
    authorities: Vec<reqwest::Certificate>,
) -> reqwest::Result<reqwest::Client> {
    // The program installs the provider; a test or a tool that forgot shall not panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let proxies = Proxies::from_environment();
    let mut builder = reqwest::Client::builder()
        .proxy(reqwest::Proxy::custom(move |url| proxies.for_url(url)))
        .user_agent(concat!("rswarm/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_danger_accept_invalid_certs(insecure);
    if let Some(timeout) = read_timeout {
        builder = builder.read_timeout(timeout);
    }
    if !authorities.is_empty() {
        builder = builder.tls_certs_merge(authorities);
    }
    builder.build()
}

/// The private authorities for a registry. They are read each time, so that one that was put there counts at once.
fn authorities(host: &str, options: &PullOptions) -> Result<Vec<reqwest::Certificate>, ImageError> {
    let mut found = Vec::new();
    for directory in &options.certificate_directories {
        let directory = directory.join(host);
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            entries => entries.map_err(ImageError::io("list", &directory))?,
        };
        for entry in entries {
            let path = entry.map_err(ImageError::io("list", &directory))?.path();
            if path.extension().is_none_or(|extension| extension != "crt") {
                continue;
            }
            let pem = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
            let read = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if read.is_empty() {
                let what = format!("authority `{}`", path.display());
                return Err(ImageError::invalid(what, "expected a certificate in PEM"));
            }
            found.extend(read);
        }
    }
    Ok(found)
}
