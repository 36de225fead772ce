//! How wrong clocks may be, and how points in time are shown and converted.

use std::fmt;
use std::time::Duration;

use rswarm_types::Timestamp;
use rustls_pki_types::UnixTime;
use x509_parser::time::ASN1Time;

/// Certificates are issued this much in the past, so that a node whose clock is behind can use them at once.
///
/// Source: swarm-parity 3.13.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// How far two clocks may lie apart: at join, and on either end of a certificate's validity.
///
/// Fifteen minutes pass any clock that is merely unsynchronised and catch what is misconfigured, above all a time zone
/// written into the hardware clock, which is off by half an hour at least. One number serves both uses, so a node that
/// was let in does not stumble over certificates afterwards.
pub const CLOCK_LEEWAY: Duration = Duration::from_secs(15 * 60);

/// This host's clock and a manager's are too far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected this host's clock within {} minutes of the manager's, found it {}: here it is {}, there {}; \
     set this host's clock (for example with NTP) and try again",
    CLOCK_LEEWAY.as_secs() / 60, Offset { ours: *ours, theirs: *theirs }, Utc(*ours), Utc(*theirs)
)]
pub struct ClockSkew {
    pub ours: Timestamp,
    pub theirs: Timestamp,
}

/// Compares this host's clock with a manager's, as a joining node does before it asks for a certificate.
///
/// # Errors
/// [`ClockSkew`] if they are more than [`CLOCK_LEEWAY`] apart.
pub fn check_clock(server_time: Timestamp, now: Timestamp) -> Result<(), ClockSkew> {
    let apart = now.since(server_time).max(server_time.since(now));
    if apart > CLOCK_LEEWAY { Err(ClockSkew { ours: now, theirs: server_time }) } else { Ok(()) }
}

/// "62 minutes behind".
struct Offset {
    ours: Timestamp,
    theirs: Timestamp,
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (apart, word) = if self.ours > self.theirs {
            (self.ours.since(self.theirs), "ahead")
        } else {
            (self.theirs.since(self.ours), "behind")
        };
        write!(f, "{} minutes {word}", apart.as_secs() / 60)
    }
}

/// Shows a time as `2026-01-31T23:59:59Z` (RFC 3339).
pub(crate) struct Utc(pub Timestamp);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = asn1(self.0).to_datetime();
        let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
        let (hour, minute, second) = (time.hour(), time.minute(), time.second());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Certificates count in whole seconds; fractions are cut off.
pub(crate) fn asn1(time: Timestamp) -> ASN1Time {
    let seconds =
        i64::try_from(time.as_millis() / 1000).expect("2^64 nanoseconds are far fewer than 2^63 seconds");
    ASN1Time::from_timestamp(seconds).expect("a Timestamp ends in 2554, ASN.1 time in 9999")
}

/// A certificate's time; what lies before 1970 or after 2554 becomes the nearest end.
pub(crate) fn from_asn1(time: ASN1Time) -> Timestamp {
    Timestamp::from_millis(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000))
}

pub(crate) fn unix(time: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_nanos(time.0))
}

pub(crate) fn from_unix(time: UnixTime) -> Timestamp {
    Timestamp::from_millis(time.as_secs().saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_within_the_leeway_pass_and_others_are_named() {
        let theirs = Timestamp::from_millis(1_769_904_000_000);
        let second = Duration::from_secs(1);
        for now in [theirs, theirs.after(CLOCK_LEEWAY), theirs.before(CLOCK_LEEWAY)] {
            assert_eq!(check_clock(theirs, now), Ok(()));
        }
        for now in [theirs.after(CLOCK_LEEWAY + second), theirs.before(CLOCK_LEEWAY + second)] {
            assert_eq!(check_clock(theirs, now), Err(ClockSkew { ours: now, theirs }));
        }
        let error = check_clock(theirs, theirs.before(Duration::from_secs(3600))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected this host's clock within 15 minutes of the manager's, found it 60 minutes behind: here it is \
             2026-01-31T23:00:00Z, there 2026-02-01T00:00:00Z; set this host's clock (for example with NTP) and try \
             again"
        );
    }
}
