//! A container's output on disk: written by its shim, read by anyone.
//!
//! One record per line of output:
//!
//! ```text
//! <unix nanoseconds> <stdout|stderr> <P|F> <content>\n
//! ```
//!
//! `F` ends a line of output, `P` is a piece of a line that goes on in the stream's next record: lines longer than
//! 16 KiB are split. The content is the container's bytes without the newline. The time is when the shim read the
//! (end of the) piece. Output that was lost is a line of the container's standard error that begins with `[rswarm: `.
//!
//! The newest records are in `log`, older ones in `log.1`, `log.2` and so on. A file that is full is renamed, and the
//! oldest one removed, so the whole is bounded. A record is never split over two files.

mod output;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

pub(crate) use output::Output;
pub use reader::{ReadOptions, Reader, Record};
use writer::Writer;

/// Longest content of one record.
const CONTENT_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// File number `number`: 0 is the one being written.
fn file(directory: &Path, number: u32) -> PathBuf {
    if number == 0 { directory.join("log") } else { directory.join(format!("log.{number}")) }
}
