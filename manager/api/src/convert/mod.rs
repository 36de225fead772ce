//! Conversion between wire messages and `rswarm-types`.
//!
//! To the wire it cannot fail: `From<&types::X> for v1::X`. From the wire every field is checked, and what does not
//! fit is refused by its path: `TryFrom<v1::X> for types::X`. An unset enum or message means the type's default.

mod enums;
mod network;
mod objects;
mod spec;

use std::fmt::Display;
use std::str::FromStr;

/// A field of a message that holds what it cannot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid field `{field}`: {reason}")]
pub struct WireError {
    /// Dotted path from the message that was converted: `spec.task.container.mounts[2].kind`.
    field: String,
    reason: String,
}

impl WireError {
    fn new(field: &str, reason: impl Display) -> Self {
        Self { field: field.to_owned(), reason: reason.to_string() }
    }

    fn missing(field: &str) -> Self {
        Self::new(field, "expected a value, found none")
    }

    fn inside(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// A conversion of one nested field, with its name put in front of any error.
trait Field<T> {
    fn field(self, name: &str) -> Result<T, WireError>;
}

impl<T, E: Into<WireError>> Field<T> for Result<T, E> {
    fn field(self, name: &str) -> Result<T, WireError> {
        self.map_err(|error| error.into().inside(name))
    }
}

/// A text that has to parse.
fn parse<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, WireError> {
    text.parse().map_err(|error: T::Err| WireError::new(field, error))
}

/// A text that has to parse unless it is empty.
fn parse_optional<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<Option<T>, WireError> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

/// A number that has to fit a narrower type.
fn narrow<T: TryFrom<N>, N: Display + Copy>(field: &str, number: N) -> Result<T, WireError> {
    T::try_from(number).map_err(|_| WireError::new(field, format!("`{number}` is out of range")))
}

/// A message that may be absent, in which case the default stands.
fn or_default<W, T: Default + TryFrom<W, Error = WireError>>(
    field: &str,
    message: Option<W>,
) -> Result<T, WireError> {
    message.map_or_else(|| Ok(T::default()), |message| T::try_from(message).field(field))
}

/// A message that must be there.
fn required<W, T: TryFrom<W, Error = WireError>>(field: &str, message: Option<W>) -> Result<T, WireError> {
    T::try_from(message.ok_or_else(|| WireError::missing(field))?).field(field)
}

/// Every element of a list, errors numbered.
fn each<W, T: TryFrom<W, Error = WireError>>(field: &str, list: Vec<W>) -> Result<Vec<T>, WireError> {
    list.into_iter()
        .enumerate()
        .map(|(i, item)| T::try_from(item).map_err(|error| error.inside(&format!("{field}[{i}]"))))
        .collect()
}

/// An enum by its number; 0 means the default.
fn word<W: TryFrom<i32>, T: Default + TryFrom<W, Error = WireError>>(
    field: &str,
    number: i32,
) -> Result<T, WireError> {
    if number == 0 { Ok(T::default()) } else { exact_word(field, number) }
}

/// An enum by its number; 0 is refused.
fn exact_word<W: TryFrom<i32>, T: TryFrom<W, Error = WireError>>(
    field: &str,
    number: i32,
) -> Result<T, WireError> {
    let wire = W::try_from(number).map_err(|_| WireError::new(field, format!("unknown value `{number}`")))?;
    T::try_from(wire).map_err(|error| WireError::new(field, error.reason))
}

fn all<'a, T: 'a, W: From<&'a T>>(list: impl IntoIterator<Item = &'a T>) -> Vec<W> {
    list.into_iter().map(W::from).collect()
}

fn nanos(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn labels(labels: &rswarm_types::Labels) -> std::collections::HashMap<String, String> {
    labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}
