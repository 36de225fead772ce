//! A node's credentials: key, certificate and roots, known to belong together.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::certificate::{Identity, NodeCertificate, parse_x509};
use crate::key::NodeKey;
use crate::verify::{Roots, RootsError, VerifyError, verify_at_any_time};

/// What a node proves its identity with. Consistent by construction, but possibly expired.
#[derive(Debug, Clone)]
pub struct Credentials {
    roots: Roots,
    cert_pem: String,
    key: NodeKey,
    certificate: NodeCertificate,
    certified: Arc<CertifiedKey>,
}

/// Why parts do not make credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("failed to read the root certificate")]
    Roots(#[source] RootsError),
    #[error("expected a node certificate as PEM, found text that cannot be decoded: {0}")]
    CertificatePem(String),
    #[error("expected a node certificate as PEM, found none (`-----BEGIN CERTIFICATE-----` is missing)")]
    NoCertificate,
    #[error("the node certificate and the root certificate do not belong together")]
    Chain(#[source] VerifyError),
    #[error("the node certificate and the private key do not belong together")]
    KeyMismatch,
    #[error("failed to make the private key ready for use")]
    Key(#[source] rustls::Error),
}

impl Credentials {
    /// Puts together what a node got when it joined, or loaded.
    ///
    /// `roots_pem` holds one root or several, `cert_pem` the leaf and any intermediate certificates.
    ///
    /// # Errors
    /// If a part cannot be read, the certificate does not chain to a root, or the key is another's. An expired
    /// certificate is no error: its owner must be able to renew it.
    pub fn new(roots_pem: &str, cert_pem: &str, key: NodeKey) -> Result<Self, CredentialsError> {
        let roots = Roots::from_pem(roots_pem).map_err(CredentialsError::Roots)?;
        let mut chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CredentialsError::CertificatePem(error.to_string()))?;
        let (leaf, intermediates) = chain.split_first().ok_or(CredentialsError::NoCertificate)?;
        let certificate =
            verify_at_any_time(roots.certificates(), leaf, intermediates).map_err(CredentialsError::Chain)?;
        let x509 = parse_x509(leaf).map_err(|error| CredentialsError::Chain(VerifyError::Identity(error)))?;
        if x509.public_key().subject_public_key.data != key.public() {
            return Err(CredentialsError::KeyMismatch);
        }
        // The roots ride along: a joining node finds in the handshake itself the root that its token names.
        chain.extend(roots.certificates().iter().cloned());
        let signer =
            rustls::crypto::ring::sign::any_ecdsa_type(&key.to_der()).map_err(CredentialsError::Key)?;
        let certified = Arc::new(CertifiedKey::new(chain, signer));
        Ok(Self { roots, cert_pem: cert_pem.to_owned(), key, certificate, certified })
    }

    pub fn identity(&self) -> Identity {
        self.certificate.identity
    }

    /// Identity and validity.
    pub fn certificate(&self) -> NodeCertificate {
        self.certificate
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The leaf and any intermediate certificates, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}
