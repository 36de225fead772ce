//! When to try again, and after what wait.

use std::time::Duration;

use reqwest::{Response, header};

use crate::error::ImageError;

/// Tries in a row that brought nothing; with the waits between them an unreachable registry is reported after 2 s.
pub(super) const ATTEMPTS: u32 = 4;
/// Wait after the first failed try; doubles each time.
const BACKOFF: Duration = Duration::from_millis(250);
/// The longest wait a registry may ask for; who wants more is reported instead.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How long to wait after `failures` failed tries in a row before the next one; `None` to give up.
///
/// What a registry asks for by `Retry-After` is honoured. Source: RFC 9110, section 10.2.3.
pub(super) fn wait(error: &ImageError, failures: u32) -> Option<Duration> {
    if failures >= ATTEMPTS || !is_transient(error) {
        return None;
    }
    let backoff = BACKOFF * 2u32.pow(failures.saturating_sub(1));
    match error {
        ImageError::RegistryAnswer { retry_after: Some(wait), .. }
        | ImageError::RateLimited { retry_after: Some(wait), .. } => {
            (*wait <= MAX_WAIT).then_some(backoff.max(*wait))
        }
        _ => Some(backoff),
    }
}

/// True for what may be better in a moment.
fn is_transient(error: &ImageError) -> bool {
    match error {
        ImageError::Unreachable { .. }
        | ImageError::TimedOut { .. }
        | ImageError::Interrupted { .. }
        | ImageError::RateLimited { .. } => true,
        ImageError::RegistryAnswer { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
        _ => false,
    }
}

/// How long a registry asks to be left alone: seconds, or a date.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    parse(value, jiff::Timestamp::now())
}

fn parse(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value.trim()).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "1994-11-06T08:49:30Z".parse().unwrap();
        for (value, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse(value, now), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn waits_double_and_obey_the_registry() {
        let limited = |seconds: u64| ImageError::RateLimited {
            registry: "r".into(),
            detail: String::new(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let unreachable = ImageError::Unreachable { registry: "r".into(), source: None };
        let missing = ImageError::NotInRegistry { reference: "x".into() };
        for (error, failures, expected) in [
            (&unreachable, 1, Some(250)),
            (&unreachable, 3, Some(1000)),
            (&unreachable, 4, None),
            (&limited(3), 1, Some(3000)),
            (&limited(0), 1, Some(250)),
            (&limited(3600), 1, None),
            (&missing, 1, None),
        ] {
            assert_eq!(wait(error, failures), expected.map(Duration::from_millis), "{error}, {failures}");
        }
    }
}
