//! Whether a certificate is this cluster's and valid now.
//!
//! Judged in this order: signed by a root we trust; names a node; not expired and not from the future, give or take
//! [`CLOCK_LEEWAY`]. A foreign certificate is thus called foreign, not expired. Roots are not judged by time: trusting
//! one is the cluster's decision. Revocation is the RPC layer's part, see the crate's head.

use std::sync::{Arc, LazyLock};

use rswarm_types::{ClusterId, NodeId, Role, Timestamp};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::certificate::{IdentityError, NodeCertificate, parse_x509, validity};
use crate::clock::{CLOCK_LEEWAY, Utc, from_unix, unix};
use crate::token::RootDigest;

/// The one crypto provider.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Why a peer's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the certificate is not signed by this cluster's root: its owner belongs to another cluster")]
    UnknownIssuer,
    #[error("the certificate's chain of signatures is not valid: {0}")]
    Chain(String),
    #[error("the certificate names no node")]
    Identity(#[source] IdentityError),
    #[error(
        "the certificate has expired: it was valid until {}, this host's clock says {}; renew it, or check both clocks",
        Utc(*not_after), Utc(*now)
    )]
    Expired { not_after: Timestamp, now: Timestamp },
    #[error(
        "the certificate is not valid yet: it starts at {}, this host's clock says {}; check this host's clock",
        Utc(*not_before), Utc(*now)
    )]
    NotYetValid { not_before: Timestamp, now: Timestamp },
    #[error("expected a certificate of cluster `{expected}`, found one of cluster `{found}`")]
    WrongCluster { expected: ClusterId, found: ClusterId },
    #[error("expected a manager's certificate, found one of node `{node}` with role {role}")]
    NotManager { node: NodeId, role: Role },
    #[error("expected the certificate of node `{expected}`, found one of node `{found}`")]
    WrongNode { expected: NodeId, found: NodeId },
    #[error(
        "expected a cluster whose root has digest `{expected}`, found {}: the token belongs to another cluster, or was \
         mistyped; `rswarm join-token worker` on a manager prints it",
        found.map_or("none".to_owned(), |found| format!("`{found}`"))
    )]
    WrongRoot { expected: RootDigest, found: Option<RootDigest> },
}

/// As rustls wants it, so that the other side is sent the fitting alert. [`crate::diagnose`] finds the way back.
impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(match error {
            VerifyError::UnknownIssuer => CertificateError::UnknownIssuer,
            VerifyError::Expired { not_after, now } => {
                CertificateError::ExpiredContext { time: unix(now), not_after: unix(not_after) }
            }
            VerifyError::NotYetValid { not_before, now } => {
                CertificateError::NotValidYetContext { time: unix(now), not_before: unix(not_before) }
            }
            other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
        })
    }
}

impl VerifyError {
    /// The way back from what was given to rustls.
    pub(crate) fn from_rustls(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired { not_after: from_unix(*not_after), now: from_unix(*time) }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Self::NotYetValid { not_before: from_unix(*not_before), now: from_unix(*time) }
            }
            CertificateError::Other(rustls::OtherError(other)) => match other.downcast_ref::<Self>() {
                Some(ours) => ours.clone(),
                None => Self::Chain(other.to_string()),
            },
            other => Self::Chain(other.to_string()),
        }
    }
}

/// The roots a node trusts: one, or two while the cluster's root is being exchanged.
#[derive(Clone, PartialEq, Eq)]
pub struct Roots {
    pem: String,
    certificates: Vec<CertificateDer<'static>>,
}

/// Why a text holds no roots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    #[error("expected root certificates as PEM, found none (`-----BEGIN CERTIFICATE-----` is missing)")]
    None,
    #[error("expected root certificates as PEM, found text that cannot be decoded: {0}")]
    Pem(String),
    #[error("failed to read a root certificate")]
    Certificate(#[source] IdentityError),
    #[error("expected a root certificate, found one that may not sign others")]
    NotAuthority,
}

impl Roots {
    /// Reads one root certificate or several.
    pub fn from_pem(pem: &str) -> Result<Self, RootsError> {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| RootsError::Pem(error.to_string()))?;
        if certificates.is_empty() {
            return Err(RootsError::None);
        }
        for certificate in &certificates {
            if !parse_x509(certificate).map_err(RootsError::Certificate)?.is_ca() {
                return Err(RootsError::NotAuthority);
            }
        }
        Ok(Self { pem: pem.to_owned(), certificates })
    }

    /// The PEM they were read from.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// One digest per root, in the order they were given.
    pub fn digests(&self) -> impl Iterator<Item = RootDigest> {
        self.certificates.iter().map(|der| RootDigest::of_der(der))
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

/// Whether `leaf` is a node certificate that `roots` stand for, and valid at `now`.
pub(crate) fn verify(
    roots: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<NodeCertificate, VerifyError> {
    let certificate = verify_or_expired(roots, leaf, intermediates, now)?;
    if certificate.is_expired(now) {
        return Err(VerifyError::Expired { not_after: certificate.not_after, now });
    }
    Ok(certificate)
}

/// The same, or one that was valid earlier: whoever shows it still proves the key.
pub(crate) fn verify_or_expired(
    roots: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<NodeCertificate, VerifyError> {
    let certificate = verify_at_any_time(roots, leaf, intermediates)?;
    let not_before = certificate.not_before;
    if now < not_before.before(CLOCK_LEEWAY) {
        return Err(VerifyError::NotYetValid { not_before, now });
    }
    Ok(certificate)
}

/// Whether `leaf` is a node certificate that `roots` stand for, whatever any clock says: what a node finds on its disk
/// after a long sleep.
pub(crate) fn verify_at_any_time(
    roots: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<NodeCertificate, VerifyError> {
    let (_, last_moment) = validity(&parse_x509(leaf).map_err(VerifyError::Identity)?);
    let mut anchors = RootCertStore::empty();
    anchors.add_parsable_certificates(roots.iter().map(|root| root.clone().into_owned()));
    let parsed = ParsedCertificate::try_from(leaf).map_err(|error| chain_error(&error))?;
    let algorithms = PROVIDER.signature_verification_algorithms.all;
    // The time is judged by `verify`; here signatures are checked as of a moment at which the leaf was valid. Every
    // node certificate serves both ends of a connection, so one check of its usage does for both.
    verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &anchors,
        intermediates,
        unix(last_moment),
        algorithms,
    )
    .map_err(|error| chain_error(&error))?;
    NodeCertificate::from_der(leaf).map_err(VerifyError::Identity)
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.digests()).finish()
    }
}

/// All clusters' roots have the same name, so a foreign certificate shows as a signature that does not fit.
fn chain_error(error: &rustls::Error) -> VerifyError {
    match error {
        rustls::Error::InvalidCertificate(inner) => VerifyError::from_rustls(inner),
        other => VerifyError::Chain(other.to_string()),
    }
}
