//! Annotations `org.systemd.property.NAME`: properties of the unit in the words of whoever asks for the container. Pure.
//!
//! The value is written as GVariant's text: `'text'`, `true`, `uint64 5`, `['a', 'b']`; a bare number is an `int32`. A time
//! in seconds (`TimeoutStopSec`) is passed on in microseconds, which is all the bus knows (`TimeoutStopUSec`).
//!
//! Source: runc, `docs/systemd.md`, "Auxiliary properties"; GLib, "GVariant Text Format".

use super::wire::{Property, Value};
use crate::cgroup::CgroupError;

/// What their names begin with.
pub const PREFIX: &str = "org.systemd.property.";

/// The properties in `annotations`.
///
/// # Errors
/// Those that cannot be read, by name.
pub(super) fn properties<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<Property>, CgroupError> {
    let mut all = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let invalid = |expected| CgroupError::Annotation { key: key.clone(), value: text.clone(), expected };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(invalid("the name of a property after the last dot, as `TimeoutStopUSec`"));
        }
        let value = parse(text.trim())
            .ok_or_else(|| invalid("`'text'`, `true`, `uint64 5`, `['a', 'b']` or the like"))?;
        all.push(match name.strip_suffix("Sec").filter(|start| !start.ends_with('U')) {
            Some(start) => {
                let micros = micros(&value).ok_or_else(|| invalid("a number of seconds, not below 0"))?;
                (format!("{start}USec"), Value::U64(micros))
            }
            None => (name.to_owned(), value),
        });
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(all)
}

fn micros(seconds: &Value) -> Option<u64> {
    let whole = match *seconds {
        Value::I16(number) => i64::from(number),
        Value::I32(number) => i64::from(number),
        Value::I64(number) => number,
        Value::U16(number) => i64::from(number),
        Value::U32(number) => i64::from(number),
        Value::U64(number) => i64::try_from(number).ok()?,
        Value::F64(number) => {
            let micros = number * 1e6;
            return (micros >= 0.0 && micros < u64::MAX as f64).then_some(micros as u64);
        }
        _ => return None,
    };
    u64::try_from(whole).ok()?.checked_mul(1_000_000)
}

fn parse(text: &str) -> Option<Value> {
    if let Some(list) = text.strip_prefix('[') {
        let mut rest = list.strip_suffix(']')?.trim();
        let mut texts = Vec::new();
        while !rest.is_empty() {
            let (text, after) = quoted(rest)?;
            texts.push(text);
            let after = after.trim_start();
            rest = match after.strip_prefix(',') {
                Some(more) => Some(more.trim_start()).filter(|more| !more.is_empty())?,
                None if after.is_empty() => after,
                None => return None,
            };
        }
        return Some(Value::Texts(texts));
    }
    if text.starts_with(['\'', '"']) {
        return quoted(text).filter(|(_, after)| after.is_empty()).map(|(text, _)| Value::Text(text));
    }
    Some(match text.split_once(' ').map(|(kind, number)| (kind, number.trim())) {
        Some(("int16", number)) => Value::I16(number.parse().ok()?),
        Some(("uint16", number)) => Value::U16(number.parse().ok()?),
        Some(("int32", number)) => Value::I32(number.parse().ok()?),
        Some(("uint32", number)) => Value::U32(number.parse().ok()?),
        Some(("int64", number)) => Value::I64(number.parse().ok()?),
        Some(("uint64", number)) => Value::U64(number.parse().ok()?),
        Some(("double", number)) => Value::F64(number.parse().ok()?),
        Some(("boolean", word)) => Value::Bool(word.parse().ok()?),
        Some(_) => return None,
        None if text.contains('.') => Value::F64(text.parse().ok()?),
        None => text.parse().map(Value::Bool).or_else(|_| text.parse().map(Value::I32)).ok()?,
    })
}

/// A string in quotes at the beginning, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let mut out = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => out.push(letters.next()?.1),
            letter if letter == quote => return Some((out, &text[at + 1..])),
            letter => out.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(key: &str, text: &str) -> Result<Vec<Property>, String> {
        let (key, text) = (key.to_owned(), text.to_owned());
        properties([(&key, &text)]).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_read_as_glib_writes_them() {
        for (name, text, expected, value) in [
            ("CollectMode", "'inactive'", "CollectMode", Value::Text("inactive".to_owned())),
            ("Some", r#""a\"b""#, "Some", Value::Text("a\"b".to_owned())),
            ("SendSIGHUP", "true", "SendSIGHUP", Value::Bool(true)),
            ("TimeoutStopUSec", "uint64 5", "TimeoutStopUSec", Value::U64(5)),
            ("TimeoutStopSec", "3", "TimeoutStopUSec", Value::U64(3_000_000)),
            ("TimeoutStopSec", "1.5", "TimeoutStopUSec", Value::U64(1_500_000)),
            ("OOMScoreAdjust", "-5", "OOMScoreAdjust", Value::I32(-5)),
            (
                "After",
                "['a.service', \"b.service\"]",
                "After",
                Value::Texts(vec!["a.service".into(), "b.service".into()]),
            ),
            ("After", "[]", "After", Value::Texts(Vec::new())),
        ] {
            let found = read(&format!("org.systemd.property.{name}"), text);
            assert_eq!(found, Ok(vec![(expected.to_owned(), value)]), "{name}={text}");
        }
        assert_eq!(read("org.opencontainers.other", "'x'"), Ok(Vec::new()));
    }

    #[test]
    fn other_values_are_refused_by_name() {
        for (name, text) in [
            ("CollectMode", "inactive"),
            ("CollectMode", "'inactive"),
            ("CollectMode", "'a' b"),
            ("TimeoutStopUSec", "uint64 -5"),
            ("TimeoutStopSec", "-1"),
            ("TimeoutStopSec", "'x'"),
            ("After", "['a' 'b']"),
            ("After", "['a',]"),
            ("X.Y", "true"),
            ("", "true"),
            ("Some", ""),
        ] {
            let error = read(&format!("org.systemd.property.{name}"), text).unwrap_err();
            assert!(
                error.contains(&format!("`org.systemd.property.{name}` has the invalid value `{text}`")),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\['\",a-c0-9 .\\\\\\]-]{0,16}|(uint64|double|boolean) \\PC{0,8}|\\PC{0,16}") {
            let _ = read("org.systemd.property.TimeoutSec", &text);
            let _ = read("org.systemd.property.Other", &text);
        }
    }
}
