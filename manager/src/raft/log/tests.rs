//! The log across restarts, whole and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use openraft::entry::RaftEntry;
use openraft::storage::RaftLogStorageExt;
use openraft::{EntryPayload, LogId as LibraryLogId};
use rswarm_core::state::{Command, Write};
use rswarm_types::{ServiceId, Timestamp};

use super::*;
use crate::raft::key::DataKey;

/// Small, so that a few entries span several segments.
const SEGMENT_LEN: usize = 8 << 10;

struct Dir {
    tmp: tempfile::TempDir,
    sealer: Sealer,
}

impl Dir {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let sealer = DataKey::create(tmp.path()).unwrap().sealer();
        Self { tmp, sealer }
    }

    fn path(&self) -> PathBuf {
        self.tmp.path().join("log")
    }

    fn open(&self) -> Result<LogStore, LogError> {
        LogStore::open_with(&self.path(), self.sealer.clone(), SEGMENT_LEN)
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect()
    }

    fn replace(&self, files: &BTreeMap<String, Vec<u8>>) {
        for name in self.files().keys() {
            fs::remove_file(self.path().join(name)).unwrap();
        }
        for (name, bytes) in files {
            fs::write(self.path().join(name), bytes).unwrap();
        }
    }
}

fn id(term: u64, index: u64) -> LogId {
    LibraryLogId { leader_id: openraft::impls::leader_id_adv::LeaderId { term, node_id: 1 }, index }
}

fn vote(term: u64) -> Vote {
    Vote::new_committed(term, 1)
}

/// An entry of about 1 KiB.
fn entry(term: u64, index: u64) -> Entry {
    let write = Write::RemoveService { id: ServiceId::from_bytes([index as u8; 16]), expected: None };
    let command = Command { at: Timestamp(index), writes: vec![write; 15] };
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Arc::new(command)) }
}

async fn append(log: &mut LogStore, term: u64, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        log.blocking_append([entry(term, index)]).await.unwrap();
    }
}

/// All that a log can be asked.
#[derive(Debug, PartialEq)]
struct Contents {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Entry>,
}

async fn contents(log: &mut LogStore) -> Contents {
    let state = log.get_log_state().await.unwrap();
    Contents {
        vote: log.read_vote().await.unwrap(),
        committed: log.read_committed().await.unwrap(),
        purged: state.last_purged_log_id,
        last: state.last_log_id,
        entries: log.try_get_log_entries(0..1000).await.unwrap(),
    }
}

/// A log of several segments in which each kind of record occurs; closed, with what it held.
async fn filled(dir: &Dir) -> Contents {
    let mut log = dir.open().unwrap();
    log.save_vote(&vote(1)).await.unwrap();
    append(&mut log, 1, 0..=20).await;
    log.save_committed(Some(id(1, 15))).await.unwrap();
    log.truncate_after(Some(id(1, 17))).await.unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    append(&mut log, 2, 18..=30).await;
    log.purge(id(1, 9)).await.unwrap();
    log.save_committed(Some(id(2, 28))).await.unwrap();
    append(&mut log, 2, 31..=36).await;
    log.truncate_after(Some(id(2, 33))).await.unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    log.save_committed(Some(id(2, 28))).await.unwrap();
    append(&mut log, 2, 34..=34).await;
    let before = contents(&mut log).await;
    log.close().await;
    before
}

#[tokio::test]
async fn a_restart_finds_all_that_was_acknowledged() {
    let dir = Dir::new();
    let before = filled(&dir).await;
    assert_eq!((before.vote, before.committed), (Some(vote(2)), Some(id(2, 28))));
    assert_eq!((before.purged, before.last), (Some(id(1, 9)), Some(id(2, 34))));
    let indexes: Vec<u64> = before.entries.iter().map(Entry::index).collect();
    assert_eq!(indexes, (10..=34).collect::<Vec<_>>());
    assert!(dir.files().len() > 2, "spans segments");
    assert!(!dir.files().keys().next().unwrap().starts_with("0000000001-"), "the first segment was purged");
    for name in dir.files().keys() {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    for _ in 0..2 {
        let mut log = dir.open().unwrap();
        assert_eq!(contents(&mut log).await, before);
        log.close().await;
    }
    // It goes on where it was.
    let mut log = dir.open().unwrap();
    append(&mut log, 2, 35..=50).await;
    log.purge(id(2, 50)).await.unwrap();
    log.save_vote(&vote(3)).await.unwrap();
    assert_eq!(dir.files().len(), 1, "only the segment written to is left");
    log.close().await;
    let mut log = dir.open().unwrap();
    let after = contents(&mut log).await;
    assert_eq!((after.purged, after.last, after.entries.len()), (Some(id(2, 50)), Some(id(2, 50)), 0));
    append(&mut log, 3, 51..=51).await;
    log.close().await;
}

#[tokio::test]
async fn a_purge_beyond_the_end_leaves_no_hole() {
    let dir = Dir::new();
    let mut log = dir.open().unwrap();
    append(&mut log, 1, 0..=3).await;
    log.purge(id(4, 100)).await.unwrap();
    append(&mut log, 4, 101..=102).await;
    log.close().await;
    let mut log = dir.open().unwrap();
    let after = contents(&mut log).await;
    assert_eq!((after.purged, after.last, after.entries.len()), (Some(id(4, 100)), Some(id(4, 102)), 2));
    log.close().await;
}

#[tokio::test]
async fn entries_that_left_memory_are_read_from_disk() {
    let dir = Dir::new();
    let mut log = LogStore::open(&dir.path(), dir.sealer.clone()).unwrap();
    let all: Vec<Entry> = (0..2600).map(|index| entry(1, index)).collect();
    log.blocking_append(all.clone()).await.unwrap();
    let cached = log.shared.memory().cached_bytes;
    assert!(cached <= CACHE_BYTES && cached > CACHE_BYTES / 2, "{cached}");
    assert!(log.shared.memory().slots[0].entry.is_none());
    assert!(log.try_get_log_entries(..).await.unwrap() == all);
    let some = log.limited_get_log_entries(0, 2600).await.unwrap();
    assert!(some.len() > 100 && some.len() < 2600, "{}", some.len());
    log.close().await;
    let mut log = LogStore::open(&dir.path(), dir.sealer.clone()).unwrap();
    assert!(log.shared.memory().cached_bytes <= CACHE_BYTES);
    assert!(log.try_get_log_entries(..).await.unwrap() == all);
    log.close().await;
}

#[tokio::test]
async fn a_record_larger_than_a_segment_gets_its_own() {
    let dir = Dir::new();
    let mut log = dir.open().unwrap();
    let write = Write::RemoveService { id: ServiceId::from_bytes([7; 16]), expected: None };
    let command = Command { at: Timestamp(1), writes: vec![write; 1000] };
    let large = Entry { log_id: id(1, 1), payload: EntryPayload::Normal(Arc::new(command)) };
    append(&mut log, 1, 0..=0).await;
    log.blocking_append([large.clone()]).await.unwrap();
    append(&mut log, 1, 2..=2).await;
    log.close().await;
    let mut log = dir.open().unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(1, 0), large, entry(1, 2)]);
    log.close().await;
}

#[tokio::test]
async fn a_write_torn_at_any_place_is_cut_and_the_log_goes_on() {
    let dir = Dir::new();
    let before = filled(&dir).await;
    let files = dir.files();
    let (name, whole) = files.iter().next_back().unwrap();
    let records = segment::scan(whole).records;
    assert!(records.len() > 3);
    for record in &records[1..] {
        for cut in [1, 9, segment::HEADER_LEN, segment::HEADER_LEN + record.body_len - 1] {
            let mut torn = files.clone();
            torn.get_mut(name).unwrap()[record.offset + cut..].fill(0);
            dir.replace(&torn);
            let mut log =
                dir.open().unwrap_or_else(|error| panic!("cut {cut} bytes into {record:?}: {error}"));
            let mut after = contents(&mut log).await;
            // 34 to 36 were there before the truncation that may have been cut.
            let kept =
                after.entries.iter().zip(&before.entries).take_while(|(after, before)| after == before);
            assert!(
                kept.count() >= after.entries.len().min(before.entries.len())
                    && after.last >= Some(id(2, 30))
            );
            let (term, next) = (3, after.last.next_index());
            append(&mut log, term, next..=next + 1).await;
            log.close().await;
            let mut log = dir.open().unwrap();
            after.entries.extend((next..=next + 1).map(|index| entry(term, index)));
            assert_eq!(contents(&mut log).await.entries, after.entries);
            log.close().await;
        }
    }
}

#[tokio::test]
async fn a_segment_that_lost_its_end_is_refused_by_file_and_length() {
    let dir = Dir::new();
    filled(&dir).await;
    let files = dir.files();
    for (name, whole) in &files {
        assert_eq!(whole.len(), SEGMENT_LEN, "closed or not, a segment has its full length");
        let records = segment::scan(whole).records;
        let last = records.last().unwrap();
        // Within the zeros, after and within a record, between records, at and within the preamble, nothing.
        let lengths =
            [SEGMENT_LEN - 1, last.end(), last.offset + 30, last.offset, segment::PREAMBLE_LEN, 9, 0];
        for found in lengths {
            let mut short = files.clone();
            short.get_mut(name).unwrap().truncate(found);
            dir.replace(&short);
            let error = dir.open().err().unwrap_or_else(|| panic!("`{name}` of {found} bytes was opened"));
            let text = error.to_string();
            assert!(
                matches!(error, LogError::Short { expected: SEGMENT_LEN, found: len, .. } if len == found),
                "{text}"
            );
            assert!(text.contains(name) && text.contains("restore a backup"), "{text}");
            assert_eq!(dir.files(), short, "nothing was changed");
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_is_refused_by_file_and_offset() {
    let dir = Dir::new();
    filled(&dir).await;
    let files = dir.files();
    let mut kinds = Vec::new();
    for (name, whole) in &files {
        let records = segment::scan(whole).records;
        let last_segment = files.keys().next_back() == Some(name);
        for record in &records {
            let very_last = last_segment && Some(record) == records.last();
            if !kinds.contains(&record.kind) {
                kinds.push(record.kind);
            }
            for at in [0, 3, 5, 8, 13, 16, segment::HEADER_LEN, segment::HEADER_LEN + record.body_len - 1] {
                if very_last && at < 4 {
                    continue; // A damaged length at the end looks like a write that was cut.
                }
                let mut bad = files.clone();
                bad.get_mut(name).unwrap()[record.offset + at] ^= 0x20;
                dir.replace(&bad);
                let error = dir.open().err().unwrap_or_else(|| panic!("byte {at} of {record:?} in `{name}`"));
                let text = error.to_string();
                assert!(
                    matches!(
                        error,
                        LogError::Corrupt { offset, .. } | LogError::Changed { offset, .. } | LogError::CutShort { offset, .. }
                            if offset == record.offset
                    ),
                    "{text}"
                );
                assert!(text.contains(name) && text.contains("restore a backup"), "{text}");
                assert_eq!(dir.files(), bad, "nothing was changed");
            }
        }
    }
    kinds.sort_by_key(|kind| *kind as u8);
    let all = [Kind::State, Kind::Entry, Kind::Vote, Kind::Committed, Kind::Truncate, Kind::Purge];
    assert_eq!(kinds, all, "each kind of record was tried");
}

#[tokio::test]
async fn a_missing_segment_another_key_and_a_foreign_file_are_refused() {
    let dir = Dir::new();
    filled(&dir).await;
    let files = dir.files();
    let names: Vec<&String> = files.keys().collect();
    for gone in &names[..names.len() - 1] {
        let mut fewer = files.clone();
        fewer.remove(*gone);
        dir.replace(&fewer);
        assert!(matches!(dir.open(), Err(LogError::Gap { .. })), "{gone}");
    }
    dir.replace(&files);
    let other = DataKey::create(tempfile::tempdir().unwrap().path()).unwrap().sealer();
    let error = LogStore::open_with(&dir.path(), other, SEGMENT_LEN).err().unwrap();
    assert!(matches!(error, LogError::Sealed { .. }), "{error}");
    let mut swapped = files.clone();
    swapped.insert(names[1].clone(), files[names[0]].clone());
    dir.replace(&swapped);
    assert!(matches!(dir.open(), Err(LogError::Foreign(_))));
    // What never got its name is of no account.
    dir.replace(&files);
    fs::write(dir.path().join("0000000099-00000000000000000099.new"), b"half").unwrap();
    dir.open().unwrap().close().await;
    assert_eq!(dir.files().len(), files.len());
}

/// Runs itself again in a mount namespace of its own, where a small file system can be filled.
#[test]
fn a_full_disk_delays_a_segment_until_there_is_room_again() {
    const INSIDE: &str = "RSWARM_TEST_SMALL_DISK";
    let name = "raft::log::tests::a_full_disk_delays_a_segment_until_there_is_room_again";
    if let Some(small) = std::env::var_os(INSIDE) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        return runtime.block_on(fill_and_empty(Path::new(&small)));
    }
    let tmp = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs -o size=1m small \"$0\" && exec \"$@\"")
        .arg(tmp.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, tmp.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("Operation not permitted") {
        eprintln!("skipped: needs root");
        return;
    }
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
}

async fn fill_and_empty(small: &Path) {
    use std::io::Write as _;
    let sealer = DataKey::create(small).unwrap().sealer();
    let open = || LogStore::open_with(&small.join("log"), sealer.clone(), SEGMENT_LEN).unwrap();
    let mut log = open();
    append(&mut log, 1, 0..=2).await;
    let fill = || {
        let mut filler = fs::File::create(small.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    };
    let empty = || fs::remove_file(small.join("filler")).unwrap();
    // More than what is left of the segment.
    #[allow(clippy::async_yields_async, reason = "the caller waits for it later")]
    let append_until_full = async |indexes: std::ops::RangeInclusive<u64>| {
        let mut writing = log.clone();
        let waiting = tokio::spawn(async move { append(&mut writing, 1, indexes).await });
        log.full().wait_for(Option::is_some).await.unwrap();
        assert!(!waiting.is_finished(), "nobody is told of what is not on disk");
        waiting
    };
    fill();
    let waiting = append_until_full(3..=20).await;
    empty();
    waiting.await.unwrap();
    assert_eq!(*log.full().borrow(), None);

    // A log that is closed while it waits drops what it has no room for, and nothing else.
    fill();
    let waiting = append_until_full(21..=60).await;
    log.close().await;
    assert!(waiting.await.is_err(), "not all of it was written");
    empty();
    let mut log = open();
    let contents = contents(&mut log).await;
    let last = contents.last.unwrap().index;
    assert!((20..60).contains(&last), "{last}");
    let indexes: Vec<u64> = contents.entries.iter().map(Entry::index).collect();
    assert_eq!(indexes, (0..=last).collect::<Vec<_>>(), "without a gap");
}
