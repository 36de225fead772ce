//! Amounts as people write them: sizes, CPUs and durations, and the error for a word that is not in a list.

use std::fmt;
use std::time::Duration;

/// A word that is none of those expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseWordError {
    what: &'static str,
    expected: &'static [&'static str],
    found: String,
}

impl ParseWordError {
    pub(crate) fn new(what: &'static str, expected: &'static [&'static str], found: &str) -> Self {
        Self { what, expected, found: found.to_owned() }
    }
}

impl fmt::Display for ParseWordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid {} `{}`: expected {}", self.what, self.found, self.expected.join(", "))
    }
}

impl std::error::Error for ParseWordError {}

/// A quantity that does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseQuantityError {
    expected: &'static str,
    found: String,
}

impl fmt::Display for ParseQuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found `{}`", self.expected, self.found)
    }
}

impl std::error::Error for ParseQuantityError {}

/// Reads a size: `64m`, `1.5g`, `512kb`, `1GiB`; units are powers of 1024, none means bytes.
pub fn parse_bytes(text: &str) -> Result<u64, ParseQuantityError> {
    let error = || ParseQuantityError { expected: "a size like `512m` or `1.5g`", found: text.to_owned() };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(error()),
    };
    decimal(number, 1u64 << shift).ok_or_else(error)
}

/// Reads a number of CPUs as billionths: `0.5` is 500,000,000.
pub fn parse_cpus(text: &str) -> Result<u64, ParseQuantityError> {
    decimal(text.trim(), 1_000_000_000)
        .ok_or_else(|| ParseQuantityError { expected: "a number of CPUs like `0.5`", found: text.to_owned() })
}

/// `number` times `scale` in exact arithmetic, rounded down; `None` if it is no decimal or does not fit.
fn decimal(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let only_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !only_digits(whole) || !only_digits(fraction) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = &fraction[..fraction.len().min(18)];
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = part * u128::from(scale) / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(scale)?.checked_add(u64::try_from(part).ok()?)
}

/// Reads a duration in Go's form: `300ms`, `1m30s`, `1h15m30.5s`, `0`. Negative ones are refused.
pub fn parse_duration(text: &str) -> Result<Duration, ParseQuantityError> {
    let error = || ParseQuantityError {
        expected: "a duration like `300ms`, `10s` or `1h15m`",
        found: text.to_owned(),
    };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(error());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let nanos = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(error()),
        };
        let part = Duration::from_nanos(decimal(number, nanos).ok_or_else(error)?);
        total = total.checked_add(part).ok_or_else(error)?;
        rest = next;
    }
    Ok(total)
}

/// Writes a duration as Go does: `1h15m30.5s`, `300ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fraction = |value: u128, per: u128| {
        let text = format!("{}.{:0width$}", value / per, value % per, width = per.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanos, 1_000_000)),
        _ => {
            let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
            let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// Writes a size with the largest unit that leaves at least 1: `1.5GiB`, `64MiB`, `12B`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = if bytes == 0 { 0 } else { (bytes.ilog2() / 10).min(5) as usize };
    #[allow(clippy::cast_precision_loss)]
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    let digits = format!("{value:.2}");
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512m", Some(512 << 20)),
            ("1.5g", Some(3 << 29)),
            ("64KB", Some(64 << 10)),
            ("1 GiB", Some(1 << 30)),
            (".5k", Some(512)),
            ("", None),
            ("-1m", None),
            ("12x", None),
            ("99999999999g", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn cpus() {
        for (text, expected) in [
            ("0.5", Some(500_000_000)),
            ("2", Some(2_000_000_000)),
            ("0.0000000019", Some(1)),
            ("a", None),
            (".", None),
        ] {
            assert_eq!(parse_cpus(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected, back) in [
            ("0", Some(0), "0s"),
            ("300ms", Some(300_000_000), "300ms"),
            ("1h15m30.5s", Some(4_530_500_000_000), "1h15m30.5s"),
            ("90s", Some(90_000_000_000), "1m30s"),
            ("1.5us", Some(1_500), "1.5µs"),
            ("10", None, ""),
            ("-1s", None, ""),
            ("s", None, ""),
            ("1d", None, ""),
        ] {
            let parsed = parse_duration(text).ok();
            assert_eq!(parsed, expected.map(Duration::from_nanos), "{text}");
            if let Some(duration) = parsed {
                assert_eq!(format_duration(duration), back);
            }
        }
    }

    #[test]
    fn byte_counts_are_written_short() {
        for (bytes, text) in [(0, "0B"), (12, "12B"), (64 << 20, "64MiB"), (3 << 29, "1.5GiB")] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
