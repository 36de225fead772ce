//! The one thread that writes the log.
//!
//! It takes all that is queued, writes it with one write and one `fdatasync`, and then reports each piece in order.
//! When a write or a sync fails the process ends: what is on disk is then unknown, and a second sync that succeeds
//! proves nothing about pages the kernel has already given up on. Only a lack of room for a new segment is waited out:
//! what was written before is on disk, and the new file has no name yet.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use openraft::LogIdOptionExt;
use openraft::storage::IOFlushed;
use rswarm_types::error::chain;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::segment::{self, Kind};
use super::{Location, Segment, Shared};
use crate::raft::codec;
use crate::raft::files;
use crate::raft::key::{SEAL_OVERHEAD, Sealer};
use crate::raft::types::{LogId, TypeConfig, Vote};

/// Preallocated length of a segment: long enough that beginning one is rare, short enough to be made of zeros in a
/// few milliseconds. A record that is longer gets a segment of its own. A shorter segment is refused as damaged, so
/// this may be lowered but not raised within a format version.
pub const SEGMENT_LEN: usize = 4 << 20;
/// Most that is written before a sync: what a disk takes in some milliseconds.
const BATCH_BYTES: usize = 4 << 20;
/// Between two tries to begin a segment on a full file system.
const FULL_RETRY: Duration = Duration::from_millis(250);

/// A change to the log.
pub enum Op {
    Append { entries: Vec<NewEntry>, done: IOFlushed<TypeConfig> },
    Vote { vote: Vote, done: oneshot::Sender<()> },
    Committed { committed: Option<LogId> },
    Truncate { after: Option<LogId>, done: oneshot::Sender<()> },
    Purge { upto: LogId },
    Close { done: oneshot::Sender<()> },
}

pub struct NewEntry {
    pub log_id: LogId,
    pub ticket: u64,
    pub encoded: Vec<u8>,
}

/// All but the entries, as written so far; the first record of each segment, so that those before it can go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// The last entry, or `purged` if there is none.
    pub last: Option<LogId>,
}

impl Summary {
    pub fn truncate_after(&mut self, after: Option<LogId>) {
        if self.last > after {
            self.last = after;
        }
    }

    pub fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        if self.last.next_index() <= upto.index {
            self.last = Some(upto);
        }
    }
}

/// The files and the place of the next record.
pub struct Disk {
    pub dir: PathBuf,
    pub segment_len: usize,
    /// Oldest first; the last one is written to. Never empty.
    pub segments: VecDeque<Written>,
    /// Length of the file written to.
    pub allocated: usize,
    /// Where the next record goes.
    pub end: usize,
    /// Up to where the file is on disk.
    pub synced: usize,
    pub summary: Summary,
}

/// A segment, and the highest index of an entry in it.
pub struct Written {
    pub segment: Arc<Segment>,
    pub max_index: Option<u64>,
}

/// Makes segment `sequence`, whose first record is `summary`. It gets its name only once that is on disk, so a
/// segment without it is damaged and never just unfinished. Returns the segment, its length and the end of the
/// first record.
pub fn begin_segment(
    dir: &Path,
    sequence: u64,
    len: usize,
    summary: &Summary,
    sealer: &Sealer,
) -> io::Result<(Segment, usize, usize)> {
    let mut bytes = segment::preamble(sequence).to_vec();
    let plain = codec::encode("a log summary", summary)?;
    let synced = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let place = segment::place(sequence, bytes.len(), Kind::State, 0);
    segment::push_record(&mut bytes, Kind::State, 0, synced, |out| sealer.seal(&place, &plain, out));
    let end = bytes.len();
    let len = len.max(end);
    bytes.resize(len, 0);

    let path = dir.join(file_name(sequence, summary.last.next_index()));
    let temporary = path.with_extension("new");
    files::remove_if_present(&temporary)?;
    let file = files::create_private(&temporary)?;
    let written = file.write_all_at(&bytes, 0).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // What little room there was is for others again.
        files::remove_if_present(&temporary)?;
        return Err(error);
    }
    fs::rename(&temporary, &path)?;
    files::sync_dir(dir)?;
    Ok((Segment { sequence, path, file }, len, end))
}

/// Whether a write failed for want of room alone.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// `<sequence>-<index of the first entry>.log`, both in decimal with leading zeros.
fn file_name(sequence: u64, first_index: u64) -> String {
    format!("{sequence:010}-{first_index:020}.log")
}

/// The sequence number in a segment's file name.
pub fn sequence_of(file_name: &str) -> Option<u64> {
    let (sequence, first_index) = file_name.strip_suffix(".log")?.split_once('-')?;
    first_index.parse::<u64>().ok()?;
    sequence.parse().ok()
}

/// What is reported once it is on disk.
enum Done {
    Entries(Vec<(u64, u64, Location)>, IOFlushed<TypeConfig>),
    Ack(oneshot::Sender<()>),
    Purged,
}

pub struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    /// Records for the place `disk.end - buffer.len()`.
    buffer: Vec<u8>,
    done: Vec<Done>,
    committed: Option<Option<LogId>>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, disk: Disk) -> Self {
        Self { shared, disk, buffer: Vec::new(), done: Vec::new(), committed: None }
    }

    /// Runs until closed, or until nobody can send any more.
    pub fn run(mut self, ops: &mpsc::Receiver<Op>) {
        let mut closing = None;
        while closing.is_none() {
            let Ok(first) = ops.recv() else { break };
            let mut next = Some(first);
            while let Some(op) = next {
                if let Op::Close { done } = op {
                    closing = Some(done);
                    break;
                }
                if !self.check("write to", |writer| writer.take(op)) {
                    return;
                }
                next = if self.buffer.len() < BATCH_BYTES { ops.try_recv().ok() } else { None };
            }
            if !self.check("write to", Self::finish_batch) {
                return;
            }
        }
        if closing.is_some() && !self.check("close", |writer| writer.flush(true)) {
            return;
        }
        drop(self.disk);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// Performs a step. False if there is no room for it on a log that is being closed: the rest is then dropped, so
    /// that nothing is written after a gap.
    fn check(&mut self, action: &str, step: impl FnOnce(&mut Self) -> io::Result<()>) -> bool {
        let Err(error) = step(self) else { return true };
        let path = self.current().segment.path.display();
        if is_full(&error) && self.shared.closing.load(Ordering::Relaxed) {
            tracing::warn!("closed the raft log `{path}` with changes there was no room for");
            return false;
        }
        let text = format!(
            "failed to {action} the raft log `{path}`: {error}; ending, since what is on disk is unknown"
        );
        tracing::error!("{text}");
        eprintln!("rswarm: {text}");
        std::process::abort();
    }

    fn current(&self) -> &Written {
        self.disk.segments.back().expect("a log has a segment from its beginning")
    }

    fn take(&mut self, op: Op) -> io::Result<()> {
        match op {
            Op::Append { entries, done } => {
                let mut placed = Vec::with_capacity(entries.len());
                for entry in entries {
                    let location = self.record(Kind::Entry, entry.log_id.index, &entry.encoded)?;
                    let current =
                        self.disk.segments.back_mut().expect("a log has a segment from its beginning");
                    current.max_index = current.max_index.max(Some(entry.log_id.index));
                    self.disk.summary.last = Some(entry.log_id);
                    placed.push((entry.log_id.index, entry.ticket, location));
                }
                self.done.push(Done::Entries(placed, done));
            }
            Op::Vote { vote, done } => {
                self.disk.summary.vote = Some(vote);
                self.record(Kind::Vote, 0, &codec::encode("a vote", &vote)?)?;
                self.done.push(Done::Ack(done));
            }
            // Of several in a batch the last one will do.
            Op::Committed { committed } => self.committed = Some(committed),
            Op::Truncate { after, done } => {
                self.disk.summary.truncate_after(after);
                self.record(Kind::Truncate, after.next_index(), &codec::encode("a log id", &after)?)?;
                self.done.push(Done::Ack(done));
            }
            Op::Purge { upto } => {
                self.disk.summary.purge(upto);
                self.record(Kind::Purge, upto.index, &codec::encode("a log id", &upto)?)?;
                self.done.push(Done::Purged);
            }
            Op::Close { .. } => unreachable!("handled by `run`"),
        }
        Ok(())
    }

    /// Adds a record to the buffer, in a new segment if it does not fit.
    fn record(&mut self, kind: Kind, index: u64, plain: &[u8]) -> io::Result<Location> {
        let len = segment::record_len(plain.len() + SEAL_OVERHEAD);
        if self.disk.end + len > self.disk.allocated {
            self.rotate(len)?;
        }
        let segment = self.current().segment.clone();
        let offset = self.disk.end;
        let place = segment::place(segment.sequence, offset, kind, index);
        let synced = u32::try_from(self.disk.synced).unwrap_or(u32::MAX);
        let sealer = &self.shared.sealer;
        segment::push_record(&mut self.buffer, kind, index, synced, |out| sealer.seal(&place, plain, out));
        self.disk.end += len;
        Ok(Location { segment, offset, body_len: plain.len() + SEAL_OVERHEAD })
    }

    fn rotate(&mut self, room: usize) -> io::Result<()> {
        self.flush(true)?;
        // Room for the summary as well, which is a few hundred bytes.
        let len = self.disk.segment_len.max(room + 4096);
        let sequence = self.current().segment.sequence + 1;
        let (segment, allocated, end) = self.begin_once_there_is_room(sequence, len)?;
        self.disk.segments.push_back(Written { segment: Arc::new(segment), max_index: None });
        self.disk.allocated = allocated;
        self.disk.end = end;
        self.disk.synced = end;
        Ok(())
    }

    /// Begins a segment, and tries again for as long as there is no room for it and nobody closes the log.
    fn begin_once_there_is_room(&self, sequence: u64, len: usize) -> io::Result<(Segment, usize, usize)> {
        let dir = &self.disk.dir;
        loop {
            let begun = begin_segment(dir, sequence, len, &self.disk.summary, &self.shared.sealer);
            match begun {
                Err(error) if is_full(&error) && !self.shared.closing.load(Ordering::Relaxed) => {
                    if self.shared.full.borrow().is_none() {
                        let dir = dir.display();
                        tracing::error!(
                            "no room for the raft log in `{dir}`: {}; free some: the daemon goes on by itself when there is, and \
                             until then nothing is written here",
                            chain(&error)
                        );
                        self.shared.full.send_replace(Some(self.disk.dir.clone()));
                    }
                }
                begun => {
                    let was_full = self.shared.full.borrow().is_some();
                    if was_full {
                        self.shared.full.send_replace(None);
                    }
                    if was_full && begun.is_ok() {
                        tracing::info!("there is room for the raft log in `{}` again", dir.display());
                    }
                    return begun;
                }
            }
            std::thread::sleep(FULL_RETRY);
        }
    }

    fn finish_batch(&mut self) -> io::Result<()> {
        if let Some(committed) = self.committed.take() {
            self.disk.summary.committed = committed;
            self.record(Kind::Committed, committed.next_index(), &codec::encode("a log id", &committed)?)?;
        }
        // The commit point alone waits for nobody: a restart that misses it asks the others.
        let sync = !self.done.is_empty();
        self.flush(sync)?;
        self.report()
    }

    fn flush(&mut self, sync: bool) -> io::Result<()> {
        let start = self.disk.end - self.buffer.len();
        let file = &self.current().segment.file;
        if !self.buffer.is_empty() {
            file.write_all_at(&self.buffer, start as u64)?;
        }
        if sync && self.disk.synced < self.disk.end {
            file.sync_data()?;
            self.disk.synced = self.disk.end;
        }
        self.buffer.clear();
        self.buffer.shrink_to(64 << 10);
        Ok(())
    }

    fn report(&mut self) -> io::Result<()> {
        for done in std::mem::take(&mut self.done) {
            match done {
                Done::Entries(placed, callback) => {
                    let mut memory = self.shared.memory();
                    for (index, ticket, location) in placed {
                        if let Some(slot) = memory.slot(index).filter(|slot| slot.ticket == ticket) {
                            slot.location = Some(location);
                        }
                    }
                    memory.shrink();
                    drop(memory);
                    callback.io_completed(Ok(()));
                }
                // Whoever asked may have gone.
                Done::Ack(done) => drop(done.send(())),
                Done::Purged => self.delete_purged()?,
            }
        }
        Ok(())
    }

    /// Deletes the oldest segments as long as all of their entries are purged.
    fn delete_purged(&mut self) -> io::Result<()> {
        let purged = self.disk.summary.purged.map(|log_id| log_id.index);
        let mut deleted = false;
        while self.disk.segments.len() > 1 && self.disk.segments[0].max_index <= purged {
            if let Some(written) = self.disk.segments.pop_front() {
                fs::remove_file(&written.segment.path)?;
                deleted = true;
            }
        }
        if deleted { files::sync_dir(&self.disk.dir) } else { Ok(()) }
    }
}
