//! The log as runc's callers read it: lines of text or JSON on standard error or in the file of `--log`.
//!
//! An error goes to both, for some callers look at the one and some at the other.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::error::{CommandError, OnFile};
use super::time::rfc3339;
use crate::error::Cause;
use crate::sys;

#[derive(Debug, Default)]
pub(super) struct Log {
    pub file: Option<PathBuf>,
    pub json: bool,
    pub debug: bool,
}

impl Log {
    /// Makes the file, if there is to be one and it is not there.
    pub fn check(&self) -> Result<(), CommandError> {
        let Some(path) = &self.file else { return Ok(()) };
        Self::open(path).map(drop).on("open the log", path)
    }

    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(path)
    }

    pub fn error(&self, message: &str) {
        self.write("error", message);
        if self.file.is_some() {
            // Standard error may be closed, or a full disk.
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }

    pub fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write("debug", message);
        }
    }

    fn write(&self, level: &str, message: &str) {
        let seconds = sys::unix_nanos() / 1_000_000_000 * 1_000_000_000;
        let line = self.line(level, message, &rfc3339(seconds));
        let opened = self.file.as_deref().map(Self::open);
        // One write for a line: several commands may share the file.
        let _ = match opened {
            Some(Ok(mut file)) => file.write_all(line.as_bytes()),
            Some(Err(_)) | None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn line(&self, level: &str, message: &str, time: &str) -> String {
        if self.json {
            return json!({"level": level, "msg": message, "time": time}).to_string() + "\n";
        }
        let mut quoted = String::with_capacity(message.len() + 2);
        for letter in message.chars() {
            match letter {
                '"' | '\\' => quoted.extend(['\\', letter]),
                '\n' => quoted.push_str("\\n"),
                letter if letter.is_control() => {
                    let _ = write!(quoted, "\\x{:02x}", u32::from(letter));
                }
                letter => quoted.push(letter),
            }
        }
        format!("time=\"{time}\" level={level} msg=\"{quoted}\"\n")
    }
}

/// An error with all its causes on one line, those of the kernel in words alone.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = match cause.downcast_ref::<std::io::Error>() {
            Some(error) => write!(text, ": {}", Cause::from(error)),
            None => write!(text, ": {cause}"),
        };
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_runcs_form() {
        let text = Log::default();
        let expected = "time=\"T\" level=error msg=\"no \\\"x\\\"\\n\"\n";
        assert_eq!(text.line("error", "no \"x\"\n", "T"), expected);
        let json = Log { json: true, ..Log::default() };
        let expected = "{\"level\":\"error\",\"msg\":\"no \\\"x\\\"\",\"time\":\"T\"}\n";
        assert_eq!(json.line("error", "no \"x\"", "T"), expected);
    }
}
