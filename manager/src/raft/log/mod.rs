//! The durable log: entries, vote and commit point in our own files.
//!
//! Calls put their change into memory, where it can be read at once, and into a queue; one thread writes what is
//! queued with one write and one sync, then reports in order ([`writer`]). Entries are kept in memory up to
//! [`CACHE_BYTES`], older ones are read back from their segment. [`recover`] rebuilds the memory at start,
//! [`segment`] is the form of the files.

mod recover;
mod segment;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::type_config::alias::VoteOf;
use openraft::{LogIdOptionExt, OptionalSend};
use tokio::sync::{oneshot, watch};

use super::codec::{self, CodecError};
use super::key::Sealer;
use super::types::{Entry, LogId, TypeConfig, Vote};
use segment::Kind;
use writer::{NewEntry, Op};

/// Entries kept in memory, by their encoded size: about what a follower that lags a second needs.
const CACHE_BYTES: usize = 2 << 20;
/// Encoded bytes of entries in one message to a follower.
const MESSAGE_BYTES: usize = 1 << 20;

/// Why the log cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("failed to {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("expected a log segment of format version 1 in `{}`, found something else", .0.display())]
    Foreign(PathBuf),
    #[error("log segment {missing} is missing in `{}`; {REPAIR}", dir.display())]
    Gap { dir: PathBuf, missing: u64 },
    #[error(
        "`{}` is corrupt at byte {offset}: a damaged record stands before a whole one at byte {next}; {REPAIR}",
        path.display()
    )]
    Corrupt { path: PathBuf, offset: usize, next: usize },
    #[error(
        "`{}` is corrupt at byte {offset}: its last record has the length it should have and a wrong checksum, so it was \
         not cut short by a power cut but changed; {REPAIR}",
        path.display()
    )]
    Changed { path: PathBuf, offset: usize },
    #[error("`{}` ends at byte {offset} with a damaged record, but it is not the last segment; {REPAIR}", path.display())]
    CutShort { path: PathBuf, offset: usize },
    #[error(
        "expected at least {expected} bytes in `{}`, found {found}: a segment has its full length from its beginning, \
         so the end of this one is lost; {REPAIR}",
        path.display()
    )]
    Short { path: PathBuf, expected: usize, found: usize },
    #[error("the record at byte {offset} of `{}` does not open with the data key of this manager; {REPAIR}", path.display())]
    Sealed { path: PathBuf, offset: usize },
    #[error("the record at byte {offset} of `{}` cannot be understood", path.display())]
    Contents {
        path: PathBuf,
        offset: usize,
        #[source]
        source: CodecError,
    },
    #[error("expected log index {expected} at byte {offset} of `{}`, found {found}; {REPAIR}", path.display())]
    Order { path: PathBuf, offset: usize, expected: u64, found: u64 },
}

/// What to do about a damaged log.
const REPAIR: &str = "if other managers hold a majority, run `rswarm leave --force` here (it ends this node's \
                      containers and needs no daemon), `rswarm node demote` and `rswarm node rm` there, and join \
                      again; else restore a backup";

/// Where an entry lies on disk.
#[derive(Debug, Clone)]
struct Location {
    segment: Arc<Segment>,
    offset: usize,
    body_len: usize,
}

/// A segment's file.
#[derive(Debug)]
struct Segment {
    sequence: u64,
    path: PathBuf,
    file: File,
}

/// An entry of the log.
#[derive(Debug)]
struct Slot {
    log_id: LogId,
    /// Tells a slot from an earlier one of the same index that was truncated.
    ticket: u64,
    encoded_len: usize,
    /// `None` until written.
    location: Option<Location>,
    /// `None` when only on disk.
    entry: Option<Entry>,
}

/// The log as readers see it; ahead of the disk by what is queued.
#[derive(Debug, Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The entries after `purged`, without a gap.
    slots: VecDeque<Slot>,
    /// Index of the first slot that may still hold its entry.
    cached_from: u64,
    cached_bytes: usize,
    next_ticket: u64,
}

impl Memory {
    fn first_index(&self) -> u64 {
        self.slots.front().map_or(self.purged.next_index(), |slot| slot.log_id.index)
    }

    fn slot(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first_index())?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    fn push(&mut self, entry: Entry, encoded_len: usize, location: Option<Location>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.cached_bytes += encoded_len;
        self.slots.push_back(Slot {
            log_id: entry.log_id,
            ticket,
            encoded_len,
            location,
            entry: Some(entry),
        });
        ticket
    }

    /// Accounts for a slot that was taken out.
    fn forget(&mut self, slot: &Slot) {
        if slot.entry.is_some() {
            self.cached_bytes -= slot.encoded_len;
        }
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        while let Some(slot) = self.slots.pop_back_if(|slot| slot.log_id.index >= last.next_index()) {
            self.forget(&slot);
        }
        self.cached_from = self.cached_from.min(last.next_index());
    }

    fn purge(&mut self, upto: LogId) {
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.log_id.index <= upto.index) {
            self.forget(&slot);
        }
        self.purged = self.purged.max(Some(upto));
    }

    /// Drops the oldest cached entries that are on disk until the cache is within its bound.
    fn shrink(&mut self) {
        self.cached_from = self.cached_from.max(self.first_index());
        while self.cached_bytes > CACHE_BYTES {
            let index = self.cached_from;
            let Some(slot) = self.slot(index) else { return };
            if slot.location.is_none() {
                return;
            }
            if slot.entry.take().is_some() {
                let freed = slot.encoded_len;
                self.cached_bytes -= freed;
            }
            self.cached_from += 1;
        }
    }
}

/// Shared by the handles and the writer thread.
struct Shared {
    memory: Mutex<Memory>,
    sealer: Sealer,
    /// The file system there is no room on for the next segment.
    full: watch::Sender<Option<PathBuf>>,
    closing: AtomicBool,
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing panics while it holds the lock, and if it did the raft core would stop on its own.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, location: &Location, log_id: LogId) -> io::Result<Entry> {
        let mut sealed = vec![0; location.body_len];
        let segment = &location.segment;
        segment.file.read_exact_at(&mut sealed, (location.offset + segment::HEADER_LEN) as u64)?;
        let place = segment::place(segment.sequence, location.offset, Kind::Entry, log_id.index);
        let plain = self.sealer.open(&place, &sealed).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                LogError::Sealed { path: segment.path.clone(), offset: location.offset },
            )
        })?;
        Ok(codec::decode("a log entry", &plain)?)
    }
}

/// Handle on the log; clones share it. The files are released when [`LogStore::close`] returns, or soon after the
/// last clone is gone.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Op>,
}

impl LogStore {
    /// Opens the log in `dir`, or begins one there if it is empty. Reads and checks every record, so call it off the
    /// runtime's threads.
    ///
    /// # Errors
    /// Anything but an unfinished write at the very end is refused; see [`LogError`].
    pub fn open(dir: &Path, sealer: Sealer) -> Result<Self, LogError> {
        Self::open_with(dir, sealer, writer::SEGMENT_LEN)
    }

    pub(super) fn open_with(dir: &Path, sealer: Sealer, segment_len: usize) -> Result<Self, LogError> {
        let (mut memory, disk) = recover::recover(dir, &sealer, segment_len)?;
        memory.shrink();
        let shared = Arc::new(Shared {
            memory: Mutex::new(memory),
            sealer,
            full: watch::Sender::default(),
            closing: AtomicBool::new(false),
        });
        let (queue, ops) = mpsc::channel();
        let writer = writer::Writer::new(shared.clone(), disk);
        std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run(&ops)).map_err(
            |source| LogError::Io { action: "start the log writer for", path: dir.to_owned(), source },
        )?;
        Ok(Self { shared, queue })
    }

    /// The directory for whose next segment there is no room. What was queued waits until there is.
    pub fn full(&self) -> watch::Receiver<Option<PathBuf>> {
        self.shared.full.subscribe()
    }

    /// From now on what there is no room for is dropped instead of waiting for it; nobody is told that it is written.
    pub fn stop_waiting(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
    }

    /// Waits until all that was queued is on disk, if there is room, then releases the files. Later calls fail.
    pub async fn close(&self) {
        self.stop_waiting();
        let (done, closed) = oneshot::channel();
        if self.queue.send(Op::Close { done }).is_ok() {
            let _ = closed.await;
        }
    }

    fn enqueue(&self, op: Op) -> io::Result<()> {
        self.queue.send(op).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the raft log is closed"))
    }

    async fn enqueue_and_wait(&self, op: impl FnOnce(oneshot::Sender<()>) -> Op) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        self.enqueue(op(done))?;
        synced.await.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the raft log is closed"))
    }

    fn entries(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        // Taken under the lock: entries in memory and the places of the others. The files are read after it; a segment
        // that is deleted meanwhile stays readable through its open file.
        let mut found: Vec<Result<Entry, (Location, LogId)>> = Vec::new();
        {
            let mut memory = self.shared.memory();
            let mut bytes = 0;
            for index in from.max(memory.first_index())..to {
                let Some(slot) = memory.slot(index) else { break };
                bytes += slot.encoded_len;
                if bytes > max_bytes && !found.is_empty() {
                    break;
                }
                match (&slot.entry, &slot.location) {
                    (Some(entry), _) => found.push(Ok(entry.clone())),
                    (None, Some(location)) => found.push(Err((location.clone(), slot.log_id))),
                    (None, None) => unreachable!("an entry leaves memory only once it has a place on disk"),
                }
            }
        }
        found
            .into_iter()
            .map(|entry| entry.or_else(|(location, log_id)| self.shared.read(&location, log_id)))
            .collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<TypeConfig>>, io::Error> {
        Ok(self.shared.memory().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start, end, MESSAGE_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.shared.memory();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.slots.back().map(|slot| slot.log_id).or(memory.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> Result<(), io::Error> {
        self.shared.memory().vote = Some(*vote);
        let vote = *vote;
        self.enqueue_and_wait(|done| Op::Vote { vote, done }).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.memory().committed = committed;
        self.enqueue(Op::Committed { committed })
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut new = Vec::new();
        for entry in entries {
            let encoded = codec::encode("a log entry", &entry)?;
            let log_id = entry.log_id;
            let ticket = self.shared.memory().push(entry, encoded.len(), None);
            new.push(NewEntry { log_id, ticket, encoded });
        }
        self.enqueue(Op::Append { entries: new, done: callback })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.shared.memory().truncate_after(last_log_id);
        self.enqueue_and_wait(|done| Op::Truncate { after: last_log_id, done }).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.shared.memory().purge(log_id);
        self.enqueue(Op::Purge { upto: log_id })
    }
}

#[cfg(test)]
mod tests;
