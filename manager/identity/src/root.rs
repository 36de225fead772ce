//! The cluster's certificate authority: makes the root and signs node certificates.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rswarm_types::{NodeId, Role, Timestamp, Version};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::certificate::{Identity, IdentityError, SERIAL_RANDOM_LEN, parse_x509, unit_of_role, validity};
use crate::clock::{BACKDATE, asn1};
use crate::key::{KeyError, NodeKey};
use crate::token::RootDigest;

/// Common name of the root, and a name every manager's certificate carries.
pub(crate) const CA_NAME: &str = "rswarm-ca";

/// Twenty years, leap days included.
const ROOT_LIFE: Duration = Duration::from_secs((20 * 365 + 5) * 24 * 3600);

/// An uncompressed point on P-256: 0x04 and two coordinates of 32 bytes.
const P256_POINT_LEN: usize = 65;

/// The cluster's root certificate and its key: ECDSA P-256, self-signed.
pub struct RootCa {
    der: CertificateDer<'static>,
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, NodeKeySigner>,
    not_after: Timestamp,
}

/// Lends a [`NodeKey`] to rcgen's issuer.
struct NodeKeySigner(NodeKey);

impl PublicKeyData for NodeKeySigner {
    fn der_bytes(&self) -> &[u8] {
        self.0.pair().der_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.pair().algorithm()
    }
}

impl rcgen::SigningKey for NodeKeySigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        <KeyPair as rcgen::SigningKey>::sign(self.0.pair(), message)
    }
}

/// Why there is no certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum RootCaError {
    #[error("failed to make the root key")]
    Key(#[source] KeyError),
    #[error("failed to sign the root certificate")]
    Sign(#[source] rcgen::Error),
    #[error("expected a root certificate as PEM, found something else")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("failed to read the root certificate")]
    Certificate(#[source] IdentityError),
    #[error("failed to read the root's name or usages")]
    Issuer(#[source] rcgen::Error),
    #[error("expected a certificate authority, found a certificate that may not sign others")]
    NotAuthority,
    #[error("the root certificate and the root key do not belong together")]
    KeyMismatch,
    #[error("failed to draw random bytes")]
    Random(#[source] getrandom::Error),
}

/// What a certificate shall say, which is what it will be read as. Decided by the managers, never by the one who asks.
pub type Claims = Identity;

/// A signed node certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The leaf, PEM.
    pub pem: String,
    /// End of its validity, in whole seconds.
    pub expires_at: Timestamp,
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("expected a certificate request (PKCS#10, PEM) signed with its own key, found one that is not")]
    Request(#[source] rcgen::Error),
    #[error("expected an ECDSA P-256 key in the certificate request, found another kind")]
    KeyKind,
    #[error("expected a DNS name or an IP address, found `{0}`")]
    Name(String),
    #[error("failed to draw random bytes for the serial number")]
    Random(#[source] getrandom::Error),
    #[error("failed to sign the certificate of node `{node}`")]
    Sign { node: NodeId, source: rcgen::Error },
}

impl RootCa {
    /// A new root with a new key, valid for 20 years from [`BACKDATE`] before `now`.
    pub fn generate(now: Timestamp) -> Result<Self, RootCaError> {
        let key = NodeKey::generate().map_err(RootCaError::Key)?;
        let mut params = CertificateParams::default();
        params.not_before = asn1(now.before(BACKDATE)).to_datetime();
        params.not_after = asn1(now.after(ROOT_LIFE)).to_datetime();
        params.serial_number = Some(serial(Version(0)).map_err(RootCaError::Random)?);
        params.distinguished_name = name([(DnType::CommonName, CA_NAME.to_owned())]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key.pair()).map_err(RootCaError::Sign)?;
        Self::from_pem(&certificate.pem(), &key.to_pem())
    }

    /// The root from what [`RootCa::cert_pem`] and [`RootCa::key_pem`] gave.
    ///
    /// # Errors
    /// If either cannot be read, they do not belong together, or the certificate is no authority's.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, RootCaError> {
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(RootCaError::Pem)?;
        let key = NodeKey::from_pem(key_pem).map_err(RootCaError::Key)?;
        let x509 = parse_x509(&der).map_err(RootCaError::Certificate)?;
        if !x509.is_ca() {
            return Err(RootCaError::NotAuthority);
        }
        if x509.public_key().subject_public_key.data != key.public() {
            return Err(RootCaError::KeyMismatch);
        }
        let (_, not_after) = validity(&x509);
        let issuer = Issuer::from_ca_cert_der(&der, NodeKeySigner(key)).map_err(RootCaError::Issuer)?;
        Ok(Self {
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            issuer,
            not_after,
            der: der.clone(),
        })
    }

    /// The root certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The root's private key, PKCS#8 PEM: the secret on which the cluster rests.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The digest that join tokens carry.
    pub fn digest(&self) -> RootDigest {
        RootDigest::of_der(&self.der)
    }

    /// Signs a node certificate for the key in `csr_pem`.
    ///
    /// Of the request only the key is used; its signature proves that the sender holds the private half. Subject: CN
    /// node id, OU role, O cluster id. Names: role, node id, `rswarm-ca` for managers, and `extra_sans` (DNS names or
    /// IP addresses). Usable on both ends of a connection. Valid from [`BACKDATE`] before `now` until `validity` after
    /// it, or until the root itself ends. `index` is that of the state from which the claims were taken, see
    /// [`NodeCertificate::index`](crate::NodeCertificate::index).
    ///
    /// Source: swarm-parity 3.13.
    pub fn issue(
        &self,
        csr_pem: &str,
        claims: &Claims,
        validity: Duration,
        now: Timestamp,
        index: Version,
        extra_sans: &[String],
    ) -> Result<IssuedCertificate, IssueError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(IssueError::Request)?;
        let key = &request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_LEN {
            return Err(IssueError::KeyKind);
        }
        let expires_at = asn1(now.after(validity).min(self.not_after));
        let mut params = CertificateParams::default();
        params.not_before = asn1(now.before(BACKDATE)).to_datetime();
        params.not_after = expires_at.to_datetime();
        params.serial_number = Some(serial(index).map_err(IssueError::Random)?);
        params.distinguished_name = name([
            (DnType::OrganizationName, claims.cluster.to_string()),
            (DnType::OrganizationalUnitName, unit_of_role(claims.role).to_owned()),
            (DnType::CommonName, claims.node.to_string()),
        ]);
        params.subject_alt_names = alt_names(claims, extra_sans)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(|source| IssueError::Sign { node: claims.node, source })?;
        Ok(IssuedCertificate { pem: certificate.pem(), expires_at: crate::clock::from_asn1(expires_at) })
    }
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

fn name<const N: usize>(parts: [(DnType, String); N]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        name.push(kind, value);
    }
    name
}

fn alt_names(claims: &Claims, extra: &[String]) -> Result<Vec<SanType>, IssueError> {
    let ca = (claims.role == Role::Manager).then(|| CA_NAME.to_owned());
    [unit_of_role(claims.role).to_owned(), claims.node.to_string()]
        .into_iter()
        .chain(ca)
        .chain(extra.iter().cloned())
        .map(|text| match text.parse() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => text.clone().try_into().map(SanType::DnsName).map_err(|_| IssueError::Name(text)),
        })
        .collect()
}

/// The index, then 64 random bits: positive, as RFC 5280, 4.1.2.2 asks. Without them two certificates over one key had
/// one number.
fn serial(index: Version) -> Result<SerialNumber, getrandom::Error> {
    let mut bytes = [0u8; 8 + SERIAL_RANDOM_LEN];
    let (first, second) = bytes.split_at_mut(8);
    // Raft indexes begin at 1 and are counted one by one: the highest bit is never reached.
    first.copy_from_slice(&(index.0 & (u64::MAX >> 1)).to_be_bytes());
    getrandom::fill(second)?;
    Ok(SerialNumber::from_slice(&bytes))
}
