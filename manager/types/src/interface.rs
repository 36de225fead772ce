//! Names of network interfaces, as Linux has them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name that an interface may have, whether there is one of that name or not.
///
/// Source: Linux `net/core/dev.c`, `dev_valid_name`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName {
    /// Padded with NUL.
    bytes: [u8; Self::LEN_MAX],
}

impl InterfaceName {
    /// `IFNAMSIZ` less the closing NUL.
    pub const LEN_MAX: usize = 15;

    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(Self::LEN_MAX);
        // Made of a whole text, so it always is one.
        std::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

/// Why a text is no name of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseInterfaceError {
    found: String,
}

impl fmt::Display for ParseInterfaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected the name of an interface, like `eth0`: 1 to {} bytes without `/`, `:` and spaces; found `{}`",
            InterfaceName::LEN_MAX,
            self.found
        )
    }
}

impl std::error::Error for ParseInterfaceError {}

impl FromStr for InterfaceName {
    type Err = ParseInterfaceError;
    fn from_str(text: &str) -> Result<Self, ParseInterfaceError> {
        let special = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
        if !(1..=Self::LEN_MAX).contains(&text.len()) || [".", ".."].contains(&text) || text.contains(special)
        {
            return Err(ParseInterfaceError { found: text.to_owned() });
        }
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Serialize for InterfaceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for InterfaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_kernel_takes() {
        for fine in ["lo", "eth0", "eth0.12", "wlan-ä", "fifteen-bytes-x"] {
            let name: InterfaceName = fine.parse().unwrap();
            assert_eq!(name.to_string(), fine);
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!((json.as_str(), serde_json::from_str(&json).unwrap()), (&*format!("{fine:?}"), name));
        }
        for bad in ["", ".", "..", "a/b", "eth0:1", "a b", "a\t", "a\0b", "sixteen-bytes-xy", "ääääääää"]
        {
            let error = bad.parse::<InterfaceName>().map(|_| ()).map_err(|error| error.to_string());
            assert!(error.is_err_and(|text| text.ends_with(&format!("found `{bad}`"))), "{bad}");
            assert!(serde_json::from_str::<InterfaceName>(&format!("{bad:?}")).is_err());
        }
    }
}
