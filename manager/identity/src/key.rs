//! A node's private key. It is made on the node and never leaves it; only a CSR does.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// An ECDSA P-256 key. Cloning shares it.
#[derive(Clone)]
pub struct NodeKey(Arc<KeyPair>);

/// What went wrong with a key. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("failed to make an ECDSA P-256 key")]
    Generate(#[source] rcgen::Error),
    #[error(
        "expected an ECDSA P-256 private key as PKCS#8 PEM (`-----BEGIN PRIVATE KEY-----`), found something else"
    )]
    Parse(#[source] rcgen::Error),
    #[error("failed to sign a certificate request")]
    Sign(#[source] rcgen::Error),
}

impl NodeKey {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        Ok(Self(Arc::new(pair)))
    }

    /// Reads what [`NodeKey::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let pair =
            KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256).map_err(KeyError::Parse)?;
        Ok(Self(Arc::new(pair)))
    }

    /// PKCS#8 PEM: a secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A certificate request (PKCS#10, RFC 2986) that proves possession of the key. It asks for nothing: what the
    /// certificate says is up to the issuer.
    pub fn csr_pem(&self) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&*self.0).map_err(KeyError::Sign)?;
        csr.pem().map_err(KeyError::Sign)
    }

    /// The public half: an uncompressed point, 65 bytes.
    pub(crate) fn public(&self) -> &[u8] {
        self.0.der_bytes()
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub(crate) fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey { .. }")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_stay_out_of_debug_output() {
        let key = NodeKey::generate().unwrap();
        let again = NodeKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(key.public().len(), 65);
        assert_eq!(format!("{key:?}"), "NodeKey { .. }");
        assert!(NodeKey::from_pem("nonsense").is_err());
    }
}
