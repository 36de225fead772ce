//! What a node's certificate says: who it is, and how long it may say so.
//!
//! Reading a certificate verifies nothing; that is [`crate::verify`]'s part. After a handshake on a configuration of
//! [`crate::Receiver`] the peer's certificate is already verified.

use std::time::Duration;

use rswarm_types::{ClusterId, NodeId, Role, Timestamp, Version};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::clock::{BACKDATE, CLOCK_LEEWAY, from_asn1};

/// Who a node is: subject CN, OU and O of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pub node: NodeId,
    pub role: Role,
    pub cluster: ClusterId,
}

/// A node's certificate, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCertificate {
    pub identity: Identity,
    /// Index of the cluster's state from which it was issued: the first half of its serial number. Unlike a time it
    /// tells without any clock what its issuer knew, such as the last change of the node's role.
    pub index: Version,
    /// Start of its validity, which is [`BACKDATE`] before it was issued.
    pub not_before: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
}

/// Why a certificate names no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("expected an X.509 certificate in DER, found something else: {0}")]
    NotX509(String),
    #[error("expected exactly one {0} in the subject of a node's certificate, found `{1}`")]
    Subject(&'static str, String),
    #[error("expected a node id as common name, found `{0}`")]
    Node(String),
    #[error("expected `rswarm-manager` or `rswarm-worker` as organizational unit, found `{0}`")]
    Role(String),
    #[error("expected a cluster id as organization, found `{0}`")]
    Cluster(String),
}

impl Identity {
    /// Reads the identity out of a leaf certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        NodeCertificate::from_der(der).map(|certificate| certificate.identity)
    }
}

impl NodeCertificate {
    /// Reads a leaf certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse_x509(der)?;
        let subject = certificate.subject();
        let node = only("common name", subject, subject.iter_common_name())?;
        let role = only("organizational unit", subject, subject.iter_organizational_unit())?;
        let cluster = only("organization", subject, subject.iter_organization())?;
        let identity = Identity {
            node: node.parse().map_err(|_| IdentityError::Node(node.to_owned()))?,
            role: role_of_unit(role).ok_or_else(|| IdentityError::Role(role.to_owned()))?,
            cluster: cluster.parse().map_err(|_| IdentityError::Cluster(cluster.to_owned()))?,
        };
        let (not_before, not_after) = validity(&certificate);
        Ok(Self { identity, index: index_of(certificate.raw_serial()), not_before, not_after })
    }

    /// Whether it has expired, give or take [`CLOCK_LEEWAY`]. It then still proves its owner's key.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now > self.not_after.after(CLOCK_LEEWAY)
    }
}

/// The certificate a peer has shown on a TLS connection; `None` if it showed none, as joining nodes do.
///
/// Takes what rustls' and tonic's `peer_certs()` give: the leaf comes first.
pub fn peer_certificate(
    chain: Option<&[CertificateDer<'_>]>,
) -> Result<Option<NodeCertificate>, IdentityError> {
    chain.and_then(<[_]>::first).map(|leaf| NodeCertificate::from_der(leaf)).transpose()
}

/// When to renew a certificate: at a random point between 50 and 80 % of its life, so that nodes that joined together
/// do not renew together.
///
/// `random` is uniform in 0..1. Life is counted from the moment of issue, [`BACKDATE`] after `not_before`: else a
/// certificate for one hour would be due the moment it is made.
///
/// Source: swarm-parity 3.13.
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, random: f64) -> Timestamp {
    let issued = not_before.after(BACKDATE).min(not_after);
    let fraction = 0.5 + 0.3 * random.clamp(0.0, 1.0);
    issued.after(Duration::from_secs_f64(not_after.since(issued).as_secs_f64() * fraction))
}

/// Length of a serial number's second half, which is random.
pub(crate) const SERIAL_RANDOM_LEN: usize = 8;

/// The first half of a serial number, whose leading zeros DER leaves out.
fn index_of(serial: &[u8]) -> Version {
    let first = &serial[..serial.len().saturating_sub(SERIAL_RANDOM_LEN)];
    Version(first.iter().fold(0, |index, byte| (index << 8) | u64::from(*byte)))
}

/// The organizational unit that stands for a role.
pub(crate) fn unit_of_role(role: Role) -> &'static str {
    match role {
        Role::Manager => "rswarm-manager",
        Role::Worker => "rswarm-worker",
    }
}

fn role_of_unit(unit: &str) -> Option<Role> {
    [Role::Manager, Role::Worker].into_iter().find(|role| unit_of_role(*role) == unit)
}

pub(crate) fn parse_x509(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(IdentityError::NotX509("bytes follow the certificate".to_owned())),
        Err(error) => Err(IdentityError::NotX509(error.to_string())),
    }
}

/// First and last moment of validity.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    (from_asn1(certificate.validity().not_before), from_asn1(certificate.validity().not_after))
}

/// The only value of an attribute. With two of them, two readers could see two identities.
fn only<'a>(
    what: &'static str,
    subject: &X509Name<'_>,
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<&'a str, IdentityError> {
    let error = || IdentityError::Subject(what, subject.to_string());
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_str().map_err(|_| error()),
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_life() {
        let issued = Timestamp::from_millis(1_700_000_000_000);
        let life = Duration::from_secs(1000);
        let at =
            |random| renew_at(issued.before(BACKDATE), issued.after(life), random).since(issued).as_secs();
        assert_eq!([at(0.0), at(0.5), at(1.0)], [500, 650, 800]);
        assert_eq!(at(7.0), 800, "what is no fraction is brought to the nearest end");
        let odd = renew_at(issued, issued.after(Duration::from_secs(60)), 0.5);
        assert_eq!(
            odd,
            issued.after(Duration::from_secs(60)),
            "shorter than the backdate: not before its end"
        );
    }

    #[test]
    fn what_is_no_certificate_has_no_identity() {
        assert!(matches!(Identity::from_der(b"nonsense"), Err(IdentityError::NotX509(_))));
        assert_eq!(peer_certificate(None), Ok(None));
        assert_eq!(peer_certificate(Some(&[])), Ok(None));
    }
}
