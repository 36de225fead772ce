//! Reaching a manager before one has a certificate, with nothing but a join token.
//!
//! [`bootstrap_client_config`] is the way to join: managers show their root in the handshake, and it is accepted only
//! if its digest is the token's, so nothing is sent to a stranger. On that connection the root's PEM is fetched,
//! compared with [`verify_root`], and the certificate requested.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::clock::from_unix;
use crate::tls::{client_builder, finish_client, require_manager, signature_checks};
use crate::token::RootDigest;
use crate::verify::{Roots, RootsError, VerifyError, verify};

/// A configuration without a client certificate that accepts exactly a manager of the cluster whose root has this
/// digest.
pub fn bootstrap_client_config(expected_digest: RootDigest) -> Arc<ClientConfig> {
    anonymous(Arc::new(ServerWithRoot { expected: expected_digest }))
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
        let found = verify(std::slice::from_ref(root), leaf, intermediates, from_unix(now))?;
        require_manager(&found.identity)?;
        Ok(ServerCertVerified::assertion())
    }

    signature_checks!();
}
