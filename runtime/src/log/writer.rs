//! The writing side: bytes of two streams in, records out, files rotated.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{CONTENT_MAX, Stream, file};
use crate::request::LogOptions;

/// The only writer of a container's log.
#[derive(Debug)]
pub(crate) struct Writer {
    directory: PathBuf,
    options: LogOptions,
    file: File,
    size: u64,
    /// Beginnings of lines whose end has not come yet, by stream.
    pending: [Vec<u8>; 2],
    /// Bytes that could not be written since the last that could.
    lost_bytes: u64,
}

impl Writer {
    /// Opens the log in `directory` for appending.
    pub fn open(directory: &Path, options: LogOptions) -> io::Result<Self> {
        let file = open(directory)?;
        let size = file.metadata()?.len();
        let options = LogOptions { max_files: options.max_files.max(1), ..options };
        Ok(Self {
            directory: directory.to_owned(),
            options,
            file,
            size,
            pending: [Vec::new(), Vec::new()],
            lost_bytes: 0,
        })
    }

    /// Takes output as it comes; whole lines are written at once, the rest waits for its end.
    ///
    /// Never fails: when the disk is full the container goes on, and the gap is noted in the log afterwards.
    pub fn write(&mut self, stream: Stream, bytes: &[u8], now_unix_nanos: i64) {
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        let mut records =
            Records { stream, now: now_unix_nanos, bytes: Vec::with_capacity(bytes.len() + 256) };
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = CONTENT_MAX - pending.len();
            let newline = rest.iter().take(room + 1).position(|byte| *byte == b'\n');
            if let Some(end) = newline {
                records.push(self, &[&pending, &rest[..end]], true);
                pending.clear();
                rest = &rest[end + 1..];
            } else if rest.len() > room {
                records.push(self, &[&pending, &rest[..room]], false);
                pending.clear();
                rest = &rest[room..];
            } else {
                pending.extend_from_slice(rest);
                rest = &[];
            }
        }
        self.append(&records.bytes);
        // An idle container must not keep a buffer.
        if pending.is_empty() {
            pending = Vec::new();
        }
        self.pending[stream as usize] = pending;
    }

    /// Writes what is left of lines that never ended.
    pub fn finish(&mut self, now_unix_nanos: i64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.pending[stream as usize].is_empty() {
                self.write(stream, b"\n", now_unix_nanos);
            }
        }
    }

    /// Says that output was lost at this place before it came here.
    pub fn note_loss(&mut self, bytes: u64, now_unix_nanos: i64) {
        // What comes after the gap is not the rest of a line that began before it.
        self.finish(now_unix_nanos);
        let note = format!("[rswarm: {bytes} bytes of output were lost, the log was not written in time]\n");
        self.write(Stream::Stderr, note.as_bytes(), now_unix_nanos);
    }

    fn append(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.lost_bytes > 0 {
            let note = format!(
                "[rswarm: {} bytes of output were lost, the log could not be written]",
                self.lost_bytes
            );
            let mut record =
                Records { stream: Stream::Stderr, now: crate::sys::unix_nanos(), bytes: Vec::new() };
            record.format(&[note.as_bytes()], true);
            if self.file.write_all(&record.bytes).is_err() {
                self.give_up(records.len());
                return;
            }
            self.size += record.bytes.len() as u64;
            self.lost_bytes = 0;
        }
        match self.file.write_all(records) {
            Ok(()) => self.size += records.len() as u64,
            Err(_) => self.give_up(records.len()),
        }
    }

    /// Notes a loss, and cuts off what may have been written of it, so that no record is torn.
    fn give_up(&mut self, bytes: usize) {
        self.lost_bytes += bytes as u64;
        let _ = self.file.set_len(self.size);
    }

    fn rotate(&mut self) {
        let last = self.options.max_files - 1;
        if last == 0 {
            // Nothing to keep: a new file in place of the old, which a reader that has it open can still finish.
            let _ = fs::remove_file(file(&self.directory, 0));
        }
        for number in (0..last).rev() {
            let _ = fs::rename(file(&self.directory, number), file(&self.directory, number + 1));
        }
        // Without a new file the old one goes on: better too long than lost.
        if let Ok(fresh) = open(&self.directory) {
            self.file = fresh;
            self.size = 0;
        }
    }
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(file(directory, 0))
}

/// Records on their way to the file.
struct Records {
    stream: Stream,
    now: i64,
    bytes: Vec<u8>,
}

impl Records {
    /// Adds a record, after making room for it.
    fn push(&mut self, writer: &mut Writer, content: &[&[u8]], full: bool) {
        let before = self.bytes.len();
        self.format(content, full);
        let after = self.bytes.len() as u64;
        let written = writer.size + before as u64;
        if writer.size + after > writer.options.max_size_bytes && written > 0 {
            let record = self.bytes.split_off(before);
            writer.append(&self.bytes);
            writer.rotate();
            self.bytes = record;
        }
    }

    fn format(&mut self, content: &[&[u8]], full: bool) {
        let flag = if full { 'F' } else { 'P' };
        let _ = write!(self.bytes, "{} {} {flag} ", self.now, self.stream.as_str());
        for piece in content {
            self.bytes.extend_from_slice(piece);
        }
        self.bytes.push(b'\n');
    }
}
