//! The data key: 32 random bytes that seal the log and the snapshots of one manager.
//!
//! It lies in `dek` beside them, readable by root alone. Autolock will wrap what is in that file with another key;
//! nothing but [`DataKey`] knows how the key is stored.

use std::io;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use super::files;

const KEY_FILE: &str = "dek";
const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// How many bytes longer a sealed body is than its contents.
pub const SEAL_OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// Why there is no data key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("failed to read the data key `{}`; without it this manager's log cannot be opened", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to write the data key `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("expected {KEY_LEN} bytes in the data key `{}`, found {found}", path.display())]
    Length { path: PathBuf, found: usize },
    #[error("the system gave no random bytes for a data key")]
    Random(#[source] getrandom::Error),
}

/// The key in memory. Not printable.
pub struct DataKey([u8; KEY_LEN]);

impl DataKey {
    /// Makes a new key and stores it in `dir`, replacing one that is there.
    pub fn create(dir: &Path) -> Result<Self, KeyError> {
        let mut key = [0; KEY_LEN];
        getrandom::fill(&mut key).map_err(KeyError::Random)?;
        let path = dir.join(KEY_FILE);
        files::write_atomic(&path, &key).map_err(|source| KeyError::Write { path, source })?;
        Ok(Self(key))
    }

    /// Reads the key stored in `dir`.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        let path = dir.join(KEY_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => match bytes[..].try_into() {
                Ok(key) => Ok(Self(key)),
                Err(_) => Err(KeyError::Length { path, found: bytes.len() }),
            },
            Err(source) => Err(KeyError::Read { path, source }),
        }
    }

    /// The cipher under this key.
    pub fn sealer(&self) -> Sealer {
        Sealer(XChaCha20Poly1305::new(&self.0.into()))
    }
}

/// Seals and opens bodies with XChaCha20-Poly1305. Nonces are random and travel with the body: with 24 bytes they
/// need no counter that would have to survive a crash.
#[derive(Clone)]
pub struct Sealer(XChaCha20Poly1305);

impl Sealer {
    /// Appends nonce, ciphertext and tag to `out`. `place` says where the body belongs; it opens nowhere else.
    pub fn seal(&self, place: &[u8], plain: &[u8], out: &mut Vec<u8>) {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).expect("the kernel gave random bytes before and cannot run out of them");
        out.reserve(plain.len() + SEAL_OVERHEAD);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let tag = self
            .0
            .encrypt_inout_detached(&XNonce::from(nonce), place, (&mut out[start..]).into())
            .expect("bodies are far below the cipher's limit of 256 GiB");
        out.extend_from_slice(&tag);
    }

    /// The contents of a sealed body; `None` if a byte of it, or its place, is not what was sealed.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>()?;
        let mut plain = body.to_vec();
        self.0
            .decrypt_inout_detached(&XNonce::from(*nonce), place, plain.as_mut_slice().into(), &(*tag).into())
            .ok()?;
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_body_opens_only_in_its_place_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = DataKey::create(dir.path()).unwrap().sealer();
        let mut sealed = Vec::new();
        sealer.seal(b"here", b"contents", &mut sealed);
        assert_eq!(sealed.len(), 8 + SEAL_OVERHEAD);
        assert_eq!(sealer.open(b"here", &sealed).unwrap(), b"contents");
        assert!(sealer.open(b"there", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(sealer.open(b"here", &bad).is_none(), "flipped byte {at}");
        }
        assert!(sealer.open(b"here", &sealed[..20]).is_none());
    }

    #[test]
    fn the_key_file_is_private_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(DataKey::load(dir.path()), Err(KeyError::Read { .. })));
        let key = DataKey::create(dir.path()).unwrap();
        assert_eq!(DataKey::load(dir.path()).unwrap().0, key.0);
        let path = dir.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(DataKey::load(dir.path()), Err(KeyError::Length { found: 5, .. })));
    }
}
