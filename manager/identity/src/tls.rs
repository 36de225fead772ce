//! The rustls configurations of a node, exchanged under running listeners when its certificate or the roots change.
//!
//! [`Store`] is held by the one task that renews; every listener and dialler has a [`Receiver`] and asks it for a
//! configuration per connection. Open connections keep the identity they were opened with: whoever must not keep it
//! (demotion, removal) has its connections closed by the server that holds them.
//!
//! TLS 1.3 only, ALPN `h2`, no session resumption: a resumed session would bring back the identity of an earlier
//! certificate without looking at it, and a full handshake costs less than a millisecond.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rswarm_types::NodeId;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::{Identity, NodeCertificate};
use crate::clock::from_unix;
use crate::credentials::Credentials;
use crate::verify::{PROVIDER, Roots, VerifyError, verify, verify_or_expired};

const ALPN_HTTP2: &[u8] = b"h2";

/// Whom a client means to reach. In either case the server must be of the client's own cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerExpectation {
    /// Any manager.
    Manager,
    /// This node, whatever its role.
    Node(NodeId),
}

/// The writing end: publishes new credentials.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// The reading end. Cloned freely.
#[derive(Debug, Clone)]
pub struct Receiver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn TimeProvider>,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    credentials: Credentials,
    server: Arc<ServerConfig>,
}

impl Store {
    /// Starts with `credentials`, judging certificates by the system's clock.
    pub fn new(credentials: Credentials) -> (Self, Receiver) {
        Self::with_clock(credentials, Arc::new(DefaultTimeProvider))
    }

    /// The same with a clock of the caller's.
    pub fn with_clock(credentials: Credentials, clock: Arc<dyn TimeProvider>) -> (Self, Receiver) {
        let current = ArcSwap::from_pointee(Current::new(credentials, &clock));
        let shared = Arc::new(Shared { clock, current });
        (Self { shared: Arc::clone(&shared) }, Receiver { shared })
    }

    /// From now on, new connections use `credentials`.
    pub fn publish(&self, credentials: Credentials) {
        self.shared.current.store(Arc::new(Current::new(credentials, &self.shared.clock)));
    }

    /// Another reading end.
    pub fn receiver(&self) -> Receiver {
        Receiver { shared: Arc::clone(&self.shared) }
    }
}

impl Receiver {
    /// The configuration for the next accepted connection.
    ///
    /// A client need not show a certificate, for joining nodes have none: whether a call needs one is in the role
    /// table. One that is shown must be of this cluster, and valid or expired: an expired one proves the key, and with
    /// that its owner may renew it and do nothing else. That is the caller's part: read it with
    /// [`crate::peer_certificate`] and ask [`NodeCertificate::is_expired`].
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shared.current.load().server)
    }

    /// The configuration for the next connection to be opened. Host names are not compared: give rustls any name.
    pub fn client_config(&self, expect: ServerExpectation) -> Arc<ClientConfig> {
        let current = self.shared.current.load();
        let verifier = ExpectedServer {
            roots: current.credentials.roots().clone(),
            own: current.credentials.identity(),
            expect,
        };
        let mut config = client_builder(&self.shared.clock, Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(current.credentials.certified())));
        finish_client(&mut config);
        Arc::new(config)
    }

    /// Who this node is at present.
    pub fn identity(&self) -> Identity {
        self.shared.current.load().credentials.identity()
    }

    /// Identity and validity of the certificate in use.
    pub fn certificate(&self) -> NodeCertificate {
        self.shared.current.load().credentials.certificate()
    }

    /// All that is in use.
    pub fn credentials(&self) -> Credentials {
        self.shared.current.load().credentials.clone()
    }
}

impl Current {
    fn new(credentials: Credentials, clock: &Arc<dyn TimeProvider>) -> Self {
        let verifier = ClusterClient { roots: credentials.roots().clone(), own: credentials.identity() };
        let mut config = ServerConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::clone(clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3 suites")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Self { credentials, server: Arc::new(config) }
    }
}

type ClientBuilder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

/// What all client configurations have in common.
pub(crate) fn client_builder(
    clock: &Arc<dyn TimeProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> ClientBuilder {
    ClientConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::clone(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

pub(crate) fn finish_client(config: &mut ClientConfig) {
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    // Addresses are hints, and the name would be sent in clear.
    config.enable_sni = false;
}

/// The part of a verifier that has the peer prove it holds the key of the certificate it showed.
macro_rules! signature_checks {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::verify::PROVIDER.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            $crate::verify::PROVIDER.signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use signature_checks;

/// Accepts the server a client expects.
#[derive(Debug)]
struct ExpectedServer {
    roots: Roots,
    own: Identity,
    expect: ServerExpectation,
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = verify(self.roots.certificates(), leaf, intermediates, from_unix(now))?.identity;
        same_cluster(&self.own, &found)?;
        match self.expect {
            ServerExpectation::Manager => require_manager(&found)?,
            ServerExpectation::Node(expected) if expected == found.node => {}
            ServerExpectation::Node(expected) => {
                return Err(VerifyError::WrongNode { expected, found: found.node }.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    signature_checks!();
}

/// Accepts any node of the cluster, also with an expired certificate, and clients without one.
#[derive(Debug)]
struct ClusterClient {
    roots: Roots,
    own: Identity,
}

impl ClientCertVerifier for ClusterClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let found =
            verify_or_expired(self.roots.certificates(), leaf, intermediates, from_unix(now))?.identity;
        same_cluster(&self.own, &found)?;
        Ok(ClientCertVerified::assertion())
    }

    signature_checks!();
}

fn same_cluster(own: &Identity, found: &Identity) -> Result<(), VerifyError> {
    if own.cluster == found.cluster {
        return Ok(());
    }
    Err(VerifyError::WrongCluster { expected: own.cluster, found: found.cluster })
}

pub(crate) fn require_manager(found: &Identity) -> Result<(), VerifyError> {
    match found.role {
        rswarm_types::Role::Manager => Ok(()),
        role => Err(VerifyError::NotManager { node: found.node, role }),
    }
}
