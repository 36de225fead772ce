//! Versioned bytes: how commands, log records, messages between managers and snapshots are written.
//!
//! A leading byte names the version, MessagePack with named fields follows. Fields may be added with a default; any
//! other change needs a new version. Bytes of an unknown version are refused by name, never guessed at.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version written; the only one read so far.
pub const VERSION: u8 = 1;

/// Why bytes were not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{what} is empty")]
    Empty { what: &'static str },
    #[error("expected {what} in format version {VERSION}, found version {found}; a newer rswarm wrote it")]
    Version { what: &'static str, found: u8 },
    #[error("failed to write {what}")]
    Encode {
        what: &'static str,
        #[source]
        source: rmp_serde::encode::Error,
    },
    #[error("failed to write {what}")]
    Write {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to read {what}")]
    Decode {
        what: &'static str,
        #[source]
        source: rmp_serde::decode::Error,
    },
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Writes `value`; `what` names it in the error.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(128);
    encode_into(what, value, &mut bytes)?;
    Ok(bytes)
}

/// Writes `value` to the end of `out`.
pub fn encode_into<T: Serialize, W: std::io::Write>(
    what: &'static str,
    value: &T,
    out: &mut W,
) -> Result<(), CodecError> {
    out.write_all(&[VERSION]).map_err(|source| CodecError::Write { what, source })?;
    rmp_serde::encode::write_named(out, value).map_err(|source| CodecError::Encode { what, source })
}

/// Reads what [`encode`] wrote.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty { what })?;
    if version != VERSION {
        return Err(CodecError::Version { what, found: version });
    }
    rmp_serde::from_slice(body).map_err(|source| CodecError::Decode { what, source })
}

/// Reads what [`encode_into`] wrote, from a stream.
pub fn decode_from<T: DeserializeOwned, R: std::io::Read>(
    what: &'static str,
    mut from: R,
) -> Result<T, CodecError> {
    let mut version = [0];
    from.read_exact(&mut version).map_err(|source| CodecError::Decode {
        what,
        source: rmp_serde::decode::Error::InvalidMarkerRead(source),
    })?;
    if version[0] != VERSION {
        return Err(CodecError::Version { what, found: version[0] });
    }
    rmp_serde::from_read(from).map_err(|source| CodecError::Decode { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_and_rubbish_are_refused_by_name() {
        let bytes = encode("a thing", &("x".to_owned(), 7u64)).unwrap();
        assert_eq!(decode::<(String, u64)>("a thing", &bytes).unwrap(), ("x".to_owned(), 7));
        let mut other = bytes.clone();
        other[0] = 9;
        let error = decode::<(String, u64)>("a thing", &other).unwrap_err().to_string();
        assert_eq!(error, "expected a thing in format version 1, found version 9; a newer rswarm wrote it");
        let error = decode_from::<(String, u64), _>("a thing", &other[..]).unwrap_err().to_string();
        assert!(error.contains("version 9"), "{error}");
        assert!(decode::<(String, u64)>("a thing", &[]).is_err());
        for end in 1..bytes.len() {
            assert!(decode::<(String, u64)>("a thing", &bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
