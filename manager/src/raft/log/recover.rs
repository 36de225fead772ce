//! Rebuilds the log from its segments at start, and decides what damage may be cut and what must be refused.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::LogIdOptionExt;
use serde::de::DeserializeOwned;

use super::segment::{self, Kind, Record, Tail};
use super::writer::{Disk, Summary, Written, begin_segment, sequence_of};
use super::{Location, LogError, Memory, Segment};
use crate::raft::codec;
use crate::raft::files;
use crate::raft::key::Sealer;
use crate::raft::types::Entry;

/// Reads the log in `dir`; an empty directory becomes an empty log.
pub fn recover(dir: &Path, sealer: &Sealer, segment_len: usize) -> Result<(Memory, Disk), LogError> {
    let at = |action| move |source| LogError::Io { action, path: dir.to_owned(), source };
    files::create_private_dir(dir).map_err(at("create"))?;
    let names = segment_names(dir).map_err(at("read"))?;

    let mut replay = Replay::default();
    let mut segments = VecDeque::new();
    let (mut allocated, mut end) = (0, 0);
    for (nth, (sequence, path)) in names.iter().enumerate() {
        if let Some((before, _)) = nth.checked_sub(1).map(|nth| &names[nth])
            && before + 1 != *sequence
        {
            return Err(LogError::Gap { dir: dir.to_owned(), missing: before + 1 });
        }
        let last = nth + 1 == names.len();
        let written;
        (written, allocated, end) = replay.segment(*sequence, path, last, sealer, segment_len)?;
        segments.push_back(written);
    }
    let Replay { mut memory, summary, .. } = replay;
    // A segment that is gone from the front shows as entries that are neither purged nor there.
    if let Some((first, _)) = names.first()
        && summary.purged.next_index() + memory.slots.len() as u64 != summary.last.next_index()
    {
        return Err(LogError::Gap { dir: dir.to_owned(), missing: first.saturating_sub(1) });
    }
    memory.vote = summary.vote;
    memory.committed = summary.committed;
    memory.purged = summary.purged;
    memory.cached_from = memory.first_index();

    if segments.is_empty() {
        let segment;
        (segment, allocated, end) =
            begin_segment(dir, 1, segment_len, &summary, sealer).map_err(at("begin a log in"))?;
        segments.push_back(Written { segment: Arc::new(segment), max_index: None });
    }
    let disk = Disk { dir: dir.to_owned(), segment_len, segments, allocated, end, synced: end, summary };
    Ok((memory, disk))
}

/// The segments by sequence number. Files that never got their name are removed.
fn segment_names(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(&path)?;
        } else if let Some(sequence) = path.file_name().and_then(|name| name.to_str()).and_then(sequence_of) {
            names.push((sequence, path));
        }
    }
    names.sort();
    Ok(names)
}

#[derive(Default)]
struct Replay {
    memory: Memory,
    summary: Summary,
    begun: bool,
}

impl Replay {
    /// Reads one segment; returns it, its length and where its next record goes.
    fn segment(
        &mut self,
        sequence: u64,
        path: &Path,
        last: bool,
        sealer: &Sealer,
        segment_len: usize,
    ) -> Result<(Written, usize, usize), LogError> {
        let io_error = |action| move |source| LogError::Io { action, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error("open"))?;
        let bytes = fs::read(path).map_err(io_error("read"))?;
        if bytes.len() >= segment::PREAMBLE_LEN && !segment::has_preamble(&bytes, sequence) {
            return Err(LogError::Foreign(path.to_owned()));
        }
        // A power cut loses what was written to a segment, never its length: that was on disk before its name.
        if bytes.len() < segment_len {
            let found = bytes.len();
            return Err(LogError::Short { path: path.to_owned(), expected: segment_len, found });
        }
        let scan = segment::scan(&bytes);
        let offset = scan.end;
        match scan.tail {
            Tail::Clean => {}
            Tail::Corrupt { next } => return Err(LogError::Corrupt { path: path.to_owned(), offset, next }),
            Tail::Changed => return Err(LogError::Changed { path: path.to_owned(), offset }),
            // The first record was on disk before the segment got its name.
            Tail::Torn if !last || scan.records.is_empty() => {
                return Err(LogError::CutShort { path: path.to_owned(), offset });
            }
            Tail::Torn => {}
        }
        if scan.records.first().is_none_or(|record| record.kind != Kind::State) {
            return Err(LogError::CutShort { path: path.to_owned(), offset: segment::PREAMBLE_LEN });
        }

        let segment = Arc::new(Segment { sequence, path: path.to_owned(), file });
        let mut max_index = None;
        for record in &scan.records {
            self.record(&segment, record, &bytes, sealer)?;
            if record.kind == Kind::Entry {
                max_index = max_index.max(Some(record.index));
            }
        }
        if scan.tail == Tail::Torn {
            let cut = bytes.len() - offset;
            tracing::warn!(
                "cut an unfinished write of at most {cut} bytes at byte {offset} of `{}`; nobody was told that it was on disk, \
                 unless the record's length was damaged since, which looks the same",
                path.display()
            );
            // Zeros, so that a later scan does not meet remains of it behind new records.
            let wipe = || segment.file.write_all_at(&vec![0; cut], offset as u64);
            wipe().map_err(io_error("cut an unfinished write in"))?;
        }
        if last {
            // What comes next says that all before it is on disk.
            segment.file.sync_data().map_err(io_error("sync"))?;
        }
        Ok((Written { segment, max_index }, bytes.len(), offset))
    }

    fn record(
        &mut self,
        segment: &Arc<Segment>,
        record: &Record,
        bytes: &[u8],
        sealer: &Sealer,
    ) -> Result<(), LogError> {
        let path = || segment.path.clone();
        let offset = record.offset;
        let sealed = &bytes[record.body_offset()..record.body_offset() + record.body_len];
        let place = segment::place(segment.sequence, offset, record.kind, record.index);
        let plain = sealer.open(&place, sealed).ok_or_else(|| LogError::Sealed { path: path(), offset })?;
        let order = |expected, found| {
            if expected == found {
                Ok(())
            } else {
                Err(LogError::Order { path: path(), offset, expected, found })
            }
        };
        match record.kind {
            Kind::State => {
                let summary: Summary = contents("a log summary", &plain, segment, offset)?;
                if self.begun {
                    order(self.summary.last.next_index(), summary.last.next_index())?;
                }
                self.begun = true;
                self.summary = summary;
            }
            Kind::Entry => {
                let entry: Entry = contents("a log entry", &plain, segment, offset)?;
                order(self.summary.last.next_index(), entry.log_id.index)?;
                self.summary.last = Some(entry.log_id);
                let location = Location { segment: segment.clone(), offset, body_len: record.body_len };
                self.memory.push(entry, plain.len(), Some(location));
                self.memory.shrink();
            }
            Kind::Vote => self.summary.vote = Some(contents("a vote", &plain, segment, offset)?),
            Kind::Committed => self.summary.committed = contents("a log id", &plain, segment, offset)?,
            Kind::Truncate => {
                let after = contents("a log id", &plain, segment, offset)?;
                self.summary.truncate_after(after);
                self.memory.truncate_after(after);
            }
            Kind::Purge => {
                let upto = contents("a log id", &plain, segment, offset)?;
                self.summary.purge(upto);
                self.memory.purge(upto);
            }
        }
        Ok(())
    }
}

fn contents<T: DeserializeOwned>(
    what: &'static str,
    plain: &[u8],
    segment: &Segment,
    offset: usize,
) -> Result<T, LogError> {
    codec::decode(what, plain).map_err(|source| LogError::Contents {
        path: segment.path.clone(),
        offset,
        source,
    })
}
