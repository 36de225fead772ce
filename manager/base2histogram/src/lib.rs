//! Stands in for the crate of this name that openraft counts its batches with.
//!
//! Openraft offers no way to read these counts unless its feature `runtime-stats` is on, and it is off here. The real
//! crate nevertheless builds 26 MB of lookup tables when the first histogram is made. This one counts samples and
//! knows nothing about how they are distributed: turning `runtime-stats` on does not compile against it, on purpose.
//! `docs/decisions/0006-no-histograms-in-openraft.md` tells more.

use std::fmt;
use std::marker::PhantomData;

/// Counts samples. `T` is the original's type of slot metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    samples: u64,
    slot: PhantomData<T>,
}

impl<T> Histogram<T> {
    #[must_use]
    pub fn new() -> Self {
        Self { samples: 0, slot: PhantomData }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records `value` `count` times.
    pub fn record_n(&mut self, _value: u64, count: u64) {
        self.samples += count;
    }

    /// The number of samples; all percentiles are zero, for want of the samples themselves.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: self.samples, ..PercentileStats::default() }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields that openraft names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples", self.samples)
    }
}

/// A chart that openraft builds for `runtime-stats` only. It cannot be shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    #[must_use]
    pub fn add<T>(self, _label: &str, _histogram: Histogram<T>) -> Self {
        self
    }
}
