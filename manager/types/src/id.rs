//! Object ids: 128 random bits each, written as 25 characters of base 36 as Swarm users know them.
//!
//! An id is `Copy` and compares as a number; text appears only at the edges. Ids are minted by shells from a random
//! source, never by the core.

use std::fmt;
use std::str::FromStr;

/// Characters in the text form of an id: 36^25 is the first power of 36 above 2^128.
pub const ID_TEXT_LEN: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseIdError(String);

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected an id of {ID_TEXT_LEN} characters 0-9a-z, found `{}`", self.0)
    }
}

impl std::error::Error for ParseIdError {}

/// Writes `value` in base 36, padded with zeros to [`ID_TEXT_LEN`] characters.
pub fn to_base36(mut value: u128) -> String {
    let mut text = [b'0'; ID_TEXT_LEN];
    for place in text.iter_mut().rev() {
        *place = DIGITS[(value % 36) as usize];
        value /= 36;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads what [`to_base36`] wrote; `None` for another length, another character or a value of 2^128 or more.
pub fn from_base36(text: &str) -> Option<u128> {
    if text.len() != ID_TEXT_LEN {
        return None;
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return None,
        };
        value.checked_mul(36)?.checked_add(u128::from(digit))
    })
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// Makes an id from 16 random bytes; the caller brings the randomness.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// The 16 bytes of the id, big-endian.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// The first 12 characters, as tables show it.
            pub fn short(self) -> String {
                let mut text = self.to_string();
                text.truncate(12);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&to_base36(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), to_base36(self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                from_base36(text).map(Self).ok_or_else(|| ParseIdError(text.to_owned()))
            }
        }

        /// Text in formats for people, 16 bytes in binary ones.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serde::Serialize::serialize(&self.to_bytes(), serializer)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16] as serde::Deserialize>::deserialize(deserializer).map(Self::from_bytes)
                }
            }
        }
    };
}

id_type!(
    /// Identifies a cluster for its whole life; the organisation (O) of every certificate in it.
    ClusterId
);
id_type!(
    /// Identifies a node by its key; the common name (CN) of its certificate.
    NodeId
);
id_type!(
    /// Identifies a service.
    ServiceId
);
id_type!(
    /// Identifies a task: one attempt to fill a slot.
    TaskId
);
id_type!(
    /// Identifies a network.
    NetworkId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        for value in [0, 1, 35, 36, u128::from(u64::MAX), u128::MAX] {
            let id = TaskId::from_bytes(value.to_be_bytes());
            assert_eq!(id.to_string().len(), ID_TEXT_LEN);
            assert_eq!(id.to_string().parse(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<TaskId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        for text in ["", "abc", &"z".repeat(25), &"0".repeat(26), "000000000000000000000000A"] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
