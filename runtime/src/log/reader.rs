//! The reading side: from any point to the end, and on as the log grows, through rotations.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Stream, file};
use crate::sys;

/// One piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub at_unix_nanos: i64,
    pub stream: Stream,
    /// The line, or a piece of it, without its newline.
    pub line: Vec<u8>,
    /// The line goes on in the stream's next record.
    pub partial: bool,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Only records of this time and later.
    pub since_unix_nanos: Option<i64>,
    /// Only the last so many lines of those there are.
    pub tail: Option<u64>,
}

/// Reads a container's log in order. Follows the writer from file to file; if the writer overtakes it by more files
/// than are kept, it goes on with the oldest one left.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    since_unix_nanos: i64,
    /// Oldest first. All but the last are complete.
    files: VecDeque<File>,
    buffer: Vec<u8>,
    /// How much of `buffer` was used up.
    used: usize,
}

/// More files than any sensible log has.
const FILES_MAX: u32 = 1000;
/// Numbers in a row that may be missing in the middle of a log.
const GAP_MAX: u32 = 2;
/// How often the files are listed anew because the log was rotated meanwhile: far more often than a writer can keep up.
const SCANS_MAX: u32 = 1000;
const BLOCK: usize = 64 << 10;

/// Device and inode: what a file is known by, whatever its name.
type Identity = (u64, u64);

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino())
}

impl Reader {
    /// Opens the log in `directory` (a container's directory). There may be none yet: it is read once it is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(directory: &Path, options: ReadOptions) -> io::Result<Self> {
        let mut reader = Self {
            directory: directory.to_owned(),
            since_unix_nanos: options.since_unix_nanos.unwrap_or(i64::MIN),
            files: VecDeque::new(),
            buffer: Vec::new(),
            used: 0,
        };
        reader.files = reader.newer_than(None)?;
        if let Some(lines) = options.tail {
            reader.skip_to_last(lines)?;
        }
        Ok(reader)
    }

    /// The next record, or `None` when there is none at present. May be called again later: see [`Self::changes`].
    ///
    /// # Errors
    /// The file system's. Lines that are no records are skipped.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            while let Some(line) = self.take_line() {
                if let Some(record) =
                    parse(&line).filter(|record| record.at_unix_nanos >= self.since_unix_nanos)
                {
                    return Ok(Some(record));
                }
            }
            if !self.fill()? && !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// A descriptor that becomes readable when the log may have grown. Its content means nothing; read it until it is
    /// empty, or just make a new one, before asking for records again.
    ///
    /// # Errors
    /// When the directory is gone or the host is out of inotify instances.
    pub fn changes(&self) -> io::Result<OwnedFd> {
        let path = CString::new(self.directory.as_os_str().as_bytes())?;
        sys::watch_directory(&path)
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let rest = &self.buffer[self.used..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].to_vec();
        self.used += end + 1;
        Some(line)
    }

    /// Reads more of the present file. `false` at its end.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(file) = self.files.front_mut() else { return Ok(false) };
        self.buffer.drain(..self.used);
        self.used = 0;
        let len = self.buffer.len();
        self.buffer.resize(len + BLOCK, 0);
        let read = file.read(&mut self.buffer[len..]);
        self.buffer.truncate(len + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }

    /// Goes on to the next file. `false` when the present one is still being written.
    fn advance(&mut self) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            // An unfinished record at the end of a complete file was cut short by a crash.
            self.buffer.clear();
            self.used = 0;
            return Ok(true);
        }
        let present = self.files.front().map(File::metadata).transpose()?.as_ref().map(identity);
        // If there are newer ones, the present file is complete from now on, but more may have come since it was
        // last read: it is only left when its end is seen again.
        let newer = self.newer_than(present)?;
        let found = !newer.is_empty();
        self.files.extend(newer);
        Ok(found)
    }

    /// All files that are newer than the one with this identity; all there are if it is not among them.
    ///
    /// # Errors
    /// The file system's, and that the log is rotated all the time.
    fn newer_than(&self, present: Option<Identity>) -> io::Result<VecDeque<File>> {
        for _ in 0..SCANS_MAX {
            if let Some(newer) = self.scan(present, |path| File::open(path))? {
                return Ok(newer);
            }
        }
        let place = self.directory.display();
        Err(io::Error::other(format!(
            "the log in `{place}` was rotated each of {SCANS_MAX} times that it was listed"
        )))
    }

    /// One look at it. `None` when the log was rotated meanwhile: after two rotations the files may be out of order.
    pub(super) fn scan(
        &self,
        present: Option<Identity>,
        mut open: impl FnMut(&Path) -> io::Result<File>,
    ) -> io::Result<Option<VecDeque<File>>> {
        let mut newer: VecDeque<(File, Identity)> = VecDeque::new();
        let (mut missing, mut newest) = (0, None);
        for number in 0..FILES_MAX {
            let opened = match open(&file(&self.directory, number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Or the writer is between two renames: one number, any of them, is missing for a moment. The
                    // next rotation may have come to the number after it by the time that is looked for.
                    missing += 1;
                    if missing > GAP_MAX {
                        break;
                    }
                    continue;
                }
                other => other?,
            };
            missing = 0;
            let found = identity(&opened.metadata()?);
            newest.get_or_insert(found);
            if Some(found) == present {
                break;
            }
            // A rotation while we look shows a file twice.
            if newer.iter().all(|(_, known)| *known != found) {
                newer.push_front((opened, found));
            }
        }
        let same = self.newest()? == newest;
        Ok(same.then(|| newer.into_iter().map(|(opened, _)| opened).collect()))
    }

    /// The file that is written to, or in the middle of a rotation the one that was.
    fn newest(&self) -> io::Result<Option<Identity>> {
        for number in 0..=GAP_MAX {
            match std::fs::metadata(file(&self.directory, number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map(|meta| Some(identity(&meta))),
            }
        }
        Ok(None)
    }

    /// Leaves the last `lines` lines to be read.
    fn skip_to_last(&mut self, mut lines: u64) -> io::Result<()> {
        for at in (0..self.files.len()).rev() {
            if let Some(offset) = offset_of_last(&mut self.files[at], &mut lines)? {
                self.files.drain(..at);
                self.files[0].seek(SeekFrom::Start(offset))?;
                break;
            }
        }
        // Where the search went through a file without finding the place, all of it is wanted.
        for file in self.files.iter_mut().skip(1) {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(())
    }
}

/// Where the last `lines` lines of `file` begin. If it has fewer, `None` and the number still missing in `lines`.
fn offset_of_last(file: &mut File, lines: &mut u64) -> io::Result<Option<u64>> {
    let mut position = file.seek(SeekFrom::End(0))?;
    // The part of the file from `position` that was not looked at yet; ends with a newline once a record was seen.
    let mut buffer = Vec::new();
    let mut at_end = true;
    loop {
        if at_end && let Some(newline) = buffer.iter().rposition(|byte| *byte == b'\n') {
            // What follows is still being written.
            buffer.truncate(newline + 1);
            at_end = false;
        }
        while !at_end && !buffer.is_empty() {
            let body = &buffer[..buffer.len() - 1];
            let start = match body.iter().rposition(|byte| *byte == b'\n') {
                Some(newline) => newline + 1,
                None if position == 0 => 0,
                None => break,
            };
            if is_line_end(&body[start..]) {
                if *lines == 0 {
                    return Ok(Some(position + buffer.len() as u64));
                }
                *lines -= 1;
            }
            buffer.truncate(start);
        }
        if position == 0 {
            file.seek(SeekFrom::Start(0))?;
            return Ok(None);
        }
        let len = position.min(BLOCK as u64);
        position -= len;
        file.seek(SeekFrom::Start(position))?;
        let mut block = vec![0; len as usize];
        file.read_exact(&mut block)?;
        block.append(&mut buffer);
        buffer = block;
    }
}

fn is_line_end(line: &[u8]) -> bool {
    line.split(|byte| *byte == b' ').nth(2) == Some(b"F")
}

fn parse(line: &[u8]) -> Option<Record> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let at_unix_nanos = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match fields.next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Record { at_unix_nanos, stream, line: fields.next()?.to_vec(), partial })
}
