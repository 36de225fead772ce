//! Join tokens: what a host needs to know to join. The digest lets it recognise the cluster's root before it sends
//! anything; the secret tells the managers that it may join, and in which role.
//!
//! Source: swarm-parity 3.13. A token has no checksum: a wrong digit in the digest shows when the root is compared, one
//! in the secret when a manager compares it.

use std::fmt;
use std::str::FromStr;

use ring::{digest, hmac};
use rswarm_types::id::{from_base36, to_base36};

const PREFIX: &str = "RSWTKN-1-";
/// 36^50 is the first power of 36 above 2^256.
const DIGEST_LEN: usize = 50;
const SECRET_LEN: usize = rswarm_types::id::ID_TEXT_LEN;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// SHA-256 of the root certificate's DER. Written as 50 characters of base 36.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootDigest([u8; 32]);

impl RootDigest {
    /// The digest of a root certificate.
    pub fn of_der(der: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, der);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// `None` for another length, another character, or a value of 2^256 or more.
    fn from_base36(text: &str) -> Option<Self> {
        if text.len() != DIGEST_LEN {
            return None;
        }
        let mut bytes = [0u8; 32];
        for digit in text.bytes() {
            let mut carry = DIGITS.iter().position(|d| *d == digit)?;
            for byte in bytes.iter_mut().rev() {
                carry += usize::from(*byte) * 36;
                *byte = (carry & 0xff) as u8;
                carry >>= 8;
            }
            if carry != 0 {
                return None;
            }
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.0;
        let mut text = [b'0'; DIGEST_LEN];
        for place in text.iter_mut().rev() {
            let mut remainder = 0usize;
            for byte in &mut bytes {
                let value = remainder * 256 + usize::from(*byte);
                *byte = (value / 36) as u8;
                remainder = value % 36;
            }
            *place = DIGITS[remainder];
        }
        f.pad(&String::from_utf8_lossy(&text))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootDigest({self})")
    }
}

/// The secret half of a token: 128 random bits as 25 characters of base 36.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret(String);

impl JoinSecret {
    /// A new secret from the system's random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(to_base36(u128::from_be_bytes(bytes))))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<JoinSecret> for String {
    fn from(secret: JoinSecret) -> Self {
        secret.0
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret { .. }")
    }
}

/// Whether `given` is the secret `expected`, in a time that does not tell how much of it was right.
pub fn secret_matches(expected: &str, given: &str) -> bool {
    // Codes of equal length are compared in constant time, whatever the lengths of the two texts.
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"rswarm join secret");
    hmac::verify(&key, given.as_bytes(), hmac::sign(&key, expected.as_bytes()).as_ref()).is_ok()
}

/// A join token: `RSWTKN-1-<digest>-<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub digest: RootDigest,
    /// The text of a [`JoinSecret`].
    pub secret: String,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.digest, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Why a text is not a join token. Never repeats the text, which may hold most of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    #[error("expected a join token, found an empty text: `rswarm join-token worker` on a manager prints one")]
    Empty,
    #[error(
        "expected a token of rswarm (`RSWTKN-1-…`), found one of Docker Swarm (`SWMTKN-…`): this cluster and that one \
         are different, run `rswarm join-token worker` on an rswarm manager"
    )]
    DockerSwarm,
    #[error(
        "expected token version 1 (`RSWTKN-1-…`), found version `{0}`: it comes from another version of rswarm"
    )]
    Version(String),
    #[error(
        "expected a join token that starts with `RSWTKN-1-`: copy it whole from `rswarm join-token worker`"
    )]
    Prefix,
    #[error(
        "expected a {part} of {expected} characters in the join token, found {found}: it was {}, copy it whole",
        if found < expected { "cut short" } else { "pasted with something more" }
    )]
    Length { part: &'static str, expected: usize, found: usize },
    #[error("expected only 0-9 and a-z in the {part} of the join token, found `{found}`: copy it unchanged")]
    Character { part: &'static str, found: char },
    #[error("the {part} of the join token is no value an rswarm manager writes: copy it unchanged")]
    Value { part: &'static str },
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let Some(rest) = text.strip_prefix(PREFIX) else {
            return Err(not_our_prefix(text));
        };
        let (digest_text, secret) = rest.split_once('-').unwrap_or((rest, ""));
        check_part("digest", digest_text, DIGEST_LEN)?;
        check_part("secret", secret, SECRET_LEN)?;
        let digest = RootDigest::from_base36(digest_text).ok_or(ParseTokenError::Value { part: "digest" })?;
        from_base36(secret).ok_or(ParseTokenError::Value { part: "secret" })?;
        Ok(Self { digest, secret: secret.to_owned() })
    }
}

fn not_our_prefix(text: &str) -> ParseTokenError {
    if text.is_empty() {
        ParseTokenError::Empty
    } else if text.starts_with("SWMTKN-") {
        ParseTokenError::DockerSwarm
    } else if PREFIX.starts_with(text) {
        ParseTokenError::Length { part: "digest", expected: DIGEST_LEN, found: 0 }
    } else if let Some((version, _)) = text.strip_prefix("RSWTKN-").and_then(|rest| rest.split_once('-')) {
        ParseTokenError::Version(version.chars().take(10).collect())
    } else {
        ParseTokenError::Prefix
    }
}

fn check_part(part: &'static str, text: &str, expected: usize) -> Result<(), ParseTokenError> {
    let is_digit = |c: &char| c.is_ascii_digit() || c.is_ascii_lowercase();
    if let Some(found) = text.chars().find(|c| !is_digit(c)) {
        return Err(ParseTokenError::Character { part, found });
    }
    if text.len() != expected {
        return Err(ParseTokenError::Length { part, expected, found: text.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_round_trip(digest in any::<[u8; 32]>(), secret in any::<u128>()) {
            let token = JoinToken { digest: RootDigest::from_bytes(digest), secret: to_base36(secret) };
            let text = token.to_string();
            prop_assert_eq!(text.len(), PREFIX.len() + DIGEST_LEN + 1 + SECRET_LEN);
            prop_assert_eq!(text.parse::<JoinToken>(), Ok(token));
        }

        #[test]
        fn no_text_panics(text in "(RSWTKN-1-)?.{0,90}") {
            let _ = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn ends_of_the_range_round_trip() {
        for bytes in [[0u8; 32], [0xff; 32]] {
            let digest = RootDigest::from_bytes(bytes);
            assert_eq!(RootDigest::from_base36(&digest.to_string()), Some(digest));
        }
        assert_eq!(RootDigest::from_base36(&"z".repeat(DIGEST_LEN)), None, "above 2^256");
    }

    #[test]
    fn each_way_to_be_no_token_has_its_error() {
        use ParseTokenError::{Character, DockerSwarm, Empty, Length, Prefix, Value, Version};
        let (digest, secret) = ("0".repeat(50), "1".repeat(25));
        let cases = [
            (String::new(), Empty),
            (" \n".to_owned(), Empty),
            (format!("SWMTKN-1-{digest}-{secret}"), DockerSwarm),
            (format!("RSWTKN-2-{digest}-{secret}"), Version("2".to_owned())),
            ("RSWTKN-".to_owned(), Length { part: "digest", expected: 50, found: 0 }),
            ("worker".to_owned(), Prefix),
            ("RSWTKN-1-000".to_owned(), Length { part: "digest", expected: 50, found: 3 }),
            (format!("RSWTKN-1-{digest}"), Length { part: "secret", expected: 25, found: 0 }),
            (
                format!("RSWTKN-1-{digest}-{}", &secret[1..]),
                Length { part: "secret", expected: 25, found: 24 },
            ),
            (format!("RSWTKN-1-{digest}-{secret}0"), Length { part: "secret", expected: 25, found: 26 }),
            (format!("RSWTKN-1-{digest}-{secret} x"), Character { part: "secret", found: ' ' }),
            (format!("RSWTKN-1-{}A-{secret}", &digest[1..]), Character { part: "digest", found: 'A' }),
            (format!("RSWTKN-1-{}-{secret}", "z".repeat(50)), Value { part: "digest" }),
            (format!("RSWTKN-1-{digest}-{}", "z".repeat(25)), Value { part: "secret" }),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<JoinToken>(), Err(expected), "{text}");
        }
        assert!(
            format!(" RSWTKN-1-{digest}-{secret}\n").parse::<JoinToken>().is_ok(),
            "space around is harmless"
        );
    }

    #[test]
    fn secrets_are_compared_whole_and_stay_out_of_debug_output() {
        let secret = JoinSecret::generate().unwrap();
        assert_ne!(secret, JoinSecret::generate().unwrap());
        assert!(secret_matches(secret.as_str(), secret.as_str()));
        for wrong in ["", &secret.as_str()[1..], &format!("{}0", secret.as_str())] {
            assert!(!secret_matches(secret.as_str(), wrong));
        }
        let token = JoinToken { digest: RootDigest::from_bytes([7; 32]), secret: secret.clone().into() };
        assert!(!format!("{token:?}{secret:?}").contains(secret.as_str()));
    }
}
