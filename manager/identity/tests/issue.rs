//! What the certificate authority signs, and what it does not.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, HOUR, node_id};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};
use rswarm_identity::{
    BACKDATE, Credentials, CredentialsError, Identity, IssueError, NodeCertificate, NodeKey, RootCa,
    RootCaError, RootDigest,
};
use rswarm_types::{Role, Timestamp, Version};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
        other => panic!("unexpected name {other}"),
    };
    names.value.general_names.iter().map(name).collect()
}

#[test]
fn the_root_survives_storage_and_is_what_tokens_name() {
    let now = Timestamp::from_millis(1_800_000_000_000);
    let ca = RootCa::generate(now).unwrap();
    let again = RootCa::from_pem(ca.cert_pem(), ca.key_pem()).unwrap();
    let root = der(ca.cert_pem());
    assert_eq!(again.digest(), ca.digest());
    assert_eq!(ca.digest(), RootDigest::of_der(&root));
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    assert_eq!(root.subject().to_string(), "CN=rswarm-ca");
    assert_eq!(root.issuer(), root.subject());
    assert!(root.is_ca());
    assert_eq!(root.validity().not_after.to_datetime().year(), 2047);
    assert!(!format!("{ca:?}").contains("PRIVATE"));

    let other = RootCa::generate(now).unwrap();
    assert!(matches!(RootCa::from_pem(ca.cert_pem(), other.key_pem()), Err(RootCaError::KeyMismatch)));
    assert!(matches!(RootCa::from_pem("", ca.key_pem()), Err(RootCaError::Pem(_))));
}

#[test]
fn a_certificate_says_what_the_managers_decided() {
    let cluster = Cluster::new(1);
    let now = Timestamp::from_millis(1_800_000_000_123);
    for (role, names) in [
        (Role::Worker, vec!["rswarm-worker".to_owned(), node_id(7).to_string()]),
        (Role::Manager, vec!["rswarm-manager".to_owned(), node_id(7).to_string(), "rswarm-ca".to_owned()]),
    ] {
        let key = NodeKey::generate().unwrap();
        let extra = ["a.example".to_owned(), "10.0.0.1".to_owned()];
        let claims = cluster.claims(7, role);
        let issued =
            cluster.ca.issue(&key.csr_pem().unwrap(), &claims, HOUR, now, Version(5), &extra).unwrap();
        let der = der(&issued.pem);
        let whole_seconds = Timestamp::from_millis(now.as_millis() / 1000 * 1000);
        assert_eq!(issued.expires_at, whole_seconds.after(HOUR));
        assert_eq!(
            NodeCertificate::from_der(&der).unwrap(),
            NodeCertificate {
                identity: Identity { node: node_id(7), role, cluster: cluster.id },
                index: Version(5),
                not_before: whole_seconds.before(BACKDATE),
                not_after: issued.expires_at,
            }
        );
        let (_, x509) = X509Certificate::from_der(&der).unwrap();
        let expected = [names, vec!["a.example".to_owned(), "[10, 0, 0, 1]".to_owned()]].concat();
        assert_eq!(dns_names(&x509), expected);
        let usage = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !usage.any);
        assert!(!x509.is_ca());
        let again = cluster.issue(&key, &claims, now);
        assert_ne!(Serial::of(&issued.pem), Serial::of(&again.pem), "one key, two certificates, two numbers");
    }
}

#[test]
fn the_index_of_any_state_is_read_back() {
    let cluster = Cluster::new(1);
    let csr = NodeKey::generate().unwrap().csr_pem().unwrap();
    let claims = cluster.claims(1, Role::Manager);
    // DER drops leading zeros, which a random half may begin with: hence many.
    for index in [0, 1, 0x7f, 0x80, 0xff, 0x100, u64::MAX >> 1].into_iter().cycle().take(700) {
        let issued = cluster.ca.issue(&csr, &claims, HOUR, Timestamp::now(), Version(index), &[]).unwrap();
        assert_eq!(NodeCertificate::from_der(&der(&issued.pem)).unwrap().index, Version(index));
    }
}

#[derive(Debug, PartialEq)]
struct Serial(Vec<u8>);

impl Serial {
    fn of(pem: &str) -> Self {
        let der = der(pem);
        Self(X509Certificate::from_der(&der).unwrap().1.raw_serial().to_vec())
    }
}

#[test]
fn the_wishes_of_a_request_are_ignored() {
    let cluster = Cluster::new(1);
    let pair = KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(["rswarm-ca".to_owned(), "rswarm-manager".to_owned()]).unwrap();
    wishes.distinguished_name.push(DnType::CommonName, node_id(1).to_string());
    wishes.distinguished_name.push(DnType::OrganizationalUnitName, "rswarm-manager");
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = wishes.serialize_request(&pair).unwrap().pem().unwrap();
    let claims = cluster.claims(2, Role::Worker);
    let issued = cluster.ca.issue(&csr, &claims, HOUR, Timestamp::now(), Version(0), &[]).unwrap();
    let der = der(&issued.pem);
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(
        Identity::from_der(&der).unwrap(),
        Identity { node: node_id(2), role: Role::Worker, cluster: cluster.id }
    );
    assert_eq!(dns_names(&x509), ["rswarm-worker".to_owned(), node_id(2).to_string()]);
    assert!(!x509.is_ca());
}

/// Asks for a certificate over someone else's public key, signing with its own.
struct Thief {
    own: KeyPair,
    stolen: KeyPair,
}

impl PublicKeyData for Thief {
    fn der_bytes(&self) -> &[u8] {
        self.stolen.der_bytes()
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.own.algorithm()
    }
}

impl SigningKey for Thief {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.own.sign(message)
    }
}

#[test]
fn a_request_without_proof_of_its_key_is_refused() {
    let cluster = Cluster::new(1);
    let issue = |csr: &str| {
        cluster
            .ca
            .issue(csr, &cluster.claims(1, Role::Worker), HOUR, Timestamp::now(), Version(0), &[])
            .unwrap_err()
    };
    let thief = Thief { own: KeyPair::generate().unwrap(), stolen: KeyPair::generate().unwrap() };
    let tampered = CertificateParams::default().serialize_request(&thief).unwrap().pem().unwrap();
    assert!(matches!(
        issue(&tampered),
        IssueError::Request(rcgen::Error::InvalidCertificationRequestSignature)
    ));

    assert!(matches!(issue("nonsense"), IssueError::Request(_)));
    let other_kind = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = CertificateParams::default().serialize_request(&other_kind).unwrap().pem().unwrap();
    assert!(matches!(issue(&csr), IssueError::KeyKind));
}

#[test]
fn names_that_are_none_and_lives_beyond_the_root_are_bounded() {
    let cluster = Cluster::new(1);
    let csr = NodeKey::generate().unwrap().csr_pem().unwrap();
    let claims = cluster.claims(1, Role::Worker);
    let error =
        cluster.ca.issue(&csr, &claims, HOUR, Timestamp::now(), Version(0), &["ä".to_owned()]).unwrap_err();
    assert!(matches!(error, IssueError::Name(name) if name == "ä"));
    let long =
        cluster.ca.issue(&csr, &claims, HOUR * 24 * 365 * 100, Timestamp::now(), Version(0), &[]).unwrap();
    let root = der(cluster.ca.cert_pem());
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    assert_eq!(long.expires_at.as_millis() / 1000, root.validity().not_after.timestamp() as u64);
}

#[test]
fn credentials_are_consistent_or_do_not_exist() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
    let (key, other_key) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let issued = ours.issue(&key, &ours.claims(1, Role::Worker), Timestamp::now());
    let make = |root: &str, cert: &str, key: &NodeKey| Credentials::new(root, cert, key.clone()).map(drop);
    assert!(make(ours.ca.cert_pem(), &issued.pem, &key).is_ok());
    let wrong_key = make(ours.ca.cert_pem(), &issued.pem, &other_key);
    assert!(matches!(wrong_key, Err(CredentialsError::KeyMismatch)));
    let wrong_root = make(theirs.ca.cert_pem(), &issued.pem, &key);
    assert!(matches!(wrong_root, Err(CredentialsError::Chain(_))));
    let leaf_as_root = make(&issued.pem, &issued.pem, &key);
    assert!(matches!(leaf_as_root, Err(CredentialsError::Roots(_))));
    assert!(matches!(make(ours.ca.cert_pem(), "", &key), Err(CredentialsError::NoCertificate)));
    let long_gone =
        ours.issue(&key, &ours.claims(1, Role::Worker), Timestamp::from_millis(1_000_000_000_000));
    assert!(make(ours.ca.cert_pem(), &long_gone.pem, &key).is_ok(), "expired, but it can be renewed");
    let credentials = ours.node(1, Role::Worker);
    assert!(!format!("{credentials:?}").contains("PRIVATE"));
}
