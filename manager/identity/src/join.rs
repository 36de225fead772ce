//! Reaching a manager before one has a certificate, with nothing but a join token.
//!
//! Managers show their root in the handshake, and it is accepted only if its digest is the token's, so nothing is sent
//! to a stranger. First comes [`probe_client_config`], which does not judge times, for the clocks may disagree: over it
//! the manager's time and the root's PEM are fetched and compared ([`crate::check_clock`], [`verify_root`]). Then the
//! certificate is requested, and the token shown, on a connection of [`bootstrap_client_config`].

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::clock::from_unix;
use crate::tls::{client_builder, finish_client, require_manager, signature_checks};
use crate::token::RootDigest;
use crate::verify::{Roots, RootsError, VerifyError, verify, verify_at_any_time};

/// A configuration without a client certificate that accepts exactly a manager of the cluster whose root has this
/// digest.
pub fn bootstrap_client_config(expected_digest: RootDigest) -> Arc<ClientConfig> {
    anonymous(Arc::new(ServerWithRoot { expected: expected_digest, at_any_time: false }))
}

/// The same, but valid or not: for asking a manager for its time and its root. Nothing secret may be sent over it.
pub fn probe_client_config(expected_digest: RootDigest) -> Arc<ClientConfig> {
    anonymous(Arc::new(ServerWithRoot { expected: expected_digest, at_any_time: true }))
}

/// Why a root certificate was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyRootError {
    #[error("failed to read the root certificate the manager sent")]
    Read(#[source] RootsError),
    #[error("the root certificate the manager sent was refused")]
    Refused(#[source] VerifyError),
}

/// The root in `pem`, if it is the one whose digest the token names and no other comes with it.
pub fn verify_root(pem: &str, expected: RootDigest) -> Result<Roots, VerifyRootError> {
    let roots = Roots::from_pem(pem).map_err(VerifyRootError::Read)?;
    let stranger = roots.digests().find(|found| *found != expected);
    match stranger {
        Some(_) => Err(VerifyRootError::Refused(VerifyError::WrongRoot { expected, found: stranger })),
        None => Ok(roots),
    }
}

fn anonymous(verifier: Arc<dyn ServerCertVerifier>) -> Arc<ClientConfig> {
    let clock: Arc<dyn TimeProvider> = Arc::new(DefaultTimeProvider);
    let mut config = client_builder(&clock, verifier).with_no_client_auth();
    finish_client(&mut config);
    Arc::new(config)
}

#[derive(Debug)]
struct ServerWithRoot {
    expected: RootDigest,
    at_any_time: bool,
}

impl ServerCertVerifier for ServerWithRoot {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().find(|der| RootDigest::of_der(der) == self.expected);
        let Some(root) = shown else {
            let found = intermediates.last().map(|der| RootDigest::of_der(der));
            return Err(VerifyError::WrongRoot { expected: self.expected, found }.into());
        };
        let roots = std::slice::from_ref(root);
        let found = if self.at_any_time {
            verify_at_any_time(roots, leaf, intermediates)?
        } else {
            verify(roots, leaf, intermediates, from_unix(now))?
        };
        require_manager(&found.identity)?;
        Ok(ServerCertVerified::assertion())
    }

    signature_checks!();
}
