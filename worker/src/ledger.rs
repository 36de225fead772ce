//! What survives a restart of the daemon: the tasks this node was assigned, with what was last known of each.
//!
//! One thread writes; changes that come while it writes go into one next transaction, so a burst costs two syncs.
//! Nobody waits for it: should the machine itself go down, its containers are gone as well, and the manager sends the
//! assignments again. What is not written: states before `running`, which the containers show, and which statuses a
//! manager has acknowledged, since telling it twice does no harm.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rswarm_types::{Task, TaskId, TaskStatus};
use serde::{Deserialize, Serialize};

/// Task id to JSON of [`Entry`].
const TASKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tasks");
/// `index`: the highest index of assignments seen.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const INDEX: &str = "index";
/// The data is small and read once; a larger cache would only take memory from the tasks.
const CACHE_BYTES: usize = 1 << 20;
/// Wait after a failed write, as with a full disk.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A task held by this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub task: Task,
    pub status: TaskStatus,
    /// `false` once the manager took it away; it is kept until nothing of it is left.
    pub assigned: bool,
}

/// What the ledger held when it was opened.
#[derive(Debug, Default, PartialEq)]
pub struct Contents {
    pub entries: Vec<Entry>,
    pub index: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("failed to make directory `{path}`")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("ledger `{path}` is in use by another process: is a second daemon running on this data root?")]
    Locked { path: PathBuf },
    #[error(
        "failed to open ledger `{path}`: if it is damaged, remove it; the manager sends again what it held"
    )]
    Open {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("failed to start the thread that writes ledger `{path}`")]
    Thread {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// See the module. Dropping it writes what is pending and closes the file.
pub struct Ledger {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    /// New value of each changed task; `None` deletes it.
    tasks: BTreeMap<TaskId, Option<Vec<u8>>>,
    index: Option<u64>,
    closed: bool,
    /// Writes that failed since the last that did not; what they were to write waits for the next.
    failures: u64,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.index.is_none()
    }
}

impl Ledger {
    /// Opens the ledger in the file `path`, making it if it is not there, and reads all of it.
    ///
    /// # Errors
    /// As in [`LedgerError`]; nothing was changed then.
    pub fn open(path: &Path) -> Result<(Self, Contents), LedgerError> {
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| LedgerError::Directory { path: parent.to_owned(), source })?;
        }
        let failed =
            |source: redb::Error| LedgerError::Open { path: path.to_owned(), source: Box::new(source) };
        let database = match open_file(path) {
            Ok(database) => database,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(LedgerError::Locked { path: path.to_owned() });
            }
            Err(error) => return Err(failed(error.into())),
        };
        let raw = read(&database).map_err(failed)?;
        let mut contents = Contents { entries: Vec::with_capacity(raw.0.len()), index: raw.1 };
        let mut unreadable = BTreeMap::new();
        for (key, value) in raw.0 {
            match serde_json::from_slice::<Entry>(&value) {
                Ok(entry) => contents.entries.push(entry),
                // As after a change of version. The manager sends the task again, and its container is taken up then.
                Err(error) => {
                    tracing::warn!(ledger = %path.display(), %error, "dropped an entry that cannot be read");
                    if let Ok(bytes) = <[u8; 16]>::try_from(key.as_slice()) {
                        unreadable.insert(TaskId::from_bytes(bytes), None);
                    }
                }
            }
        }
        if !unreadable.is_empty() {
            write(&database, &unreadable, None).map_err(failed)?;
        }
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new() });
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn({
                let (shared, path) = (shared.clone(), path.to_owned());
                move || shared.write_all(database, &path)
            })
            .map_err(|source| LedgerError::Thread { path: path.to_owned(), source })?;
        Ok((Self { shared, thread: Some(thread) }, contents))
    }

    /// Puts down a task, in place of what was known of it.
    pub fn put(&self, entry: &Entry) {
        match serde_json::to_vec(entry) {
            Ok(value) => self.change(|pending| {
                pending.tasks.insert(entry.task.id, Some(value));
            }),
            Err(error) => {
                tracing::error!(task = %entry.task.id, %error, "task cannot be written to the ledger");
            }
        }
    }

    /// Strikes out a task.
    pub fn forget(&self, id: TaskId) {
        self.change(|pending| {
            pending.tasks.insert(id, None);
        });
    }

    /// Puts down the highest index of assignments seen.
    pub fn set_index(&self, index: u64) {
        self.change(|pending| pending.index = Some(index));
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.change(|pending| pending.closed = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's thread panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: one transaction after the other until the ledger is closed.
    fn write_all(&self, database: Database, path: &Path) {
        let mut open = Some(database);
        loop {
            let mut pending = self
                .changed
                .wait_while(self.lock(), |pending| pending.is_empty() && !pending.closed)
                .unwrap_or_else(PoisonError::into_inner);
            if pending.is_empty() {
                return;
            }
            let (tasks, index) = (std::mem::take(&mut pending.tasks), pending.index.take());
            drop(pending);
            if let Err(error) = write_or_reopen(&mut open, path, &tasks, index) {
                let mut pending = self.lock();
                pending.failures += 1;
                // Said once, not every second.
                if pending.failures == 1 {
                    let error = rswarm_types::error::chain(&error);
                    tracing::error!(ledger = %path.display(), %error, "the ledger cannot be written, trying again");
                }
                for (id, value) in tasks {
                    pending.tasks.entry(id).or_insert(value);
                }
                pending.index = pending.index.or(index);
                if pending.closed {
                    return;
                }
                let _ = self.changed.wait_timeout_while(pending, RETRY_DELAY, |pending| !pending.closed);
            } else if std::mem::take(&mut self.lock().failures) > 0 {
                tracing::info!(ledger = %path.display(), "the ledger can be written again");
            }
        }
    }
}

/// The database in the file `path`, which only root may read: a task's environment often holds secrets.
fn open_file(path: &Path) -> Result<Database, redb::DatabaseError> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)
}

/// Writes to the database in `open`, or to one opened anew: after one failed I/O, as with a full disk, redb refuses
/// everything until it was closed, so that it is then.
fn write_or_reopen(
    open: &mut Option<Database>,
    path: &Path,
    tasks: &BTreeMap<TaskId, Option<Vec<u8>>>,
    index: Option<u64>,
) -> Result<(), redb::Error> {
    let database = match open.take() {
        Some(database) => database,
        None => open_file(path)?,
    };
    write(&database, tasks, index)?;
    *open = Some(database);
    Ok(())
}

type Raw = (Vec<(Vec<u8>, Vec<u8>)>, u64);

fn read(database: &Database) -> Result<Raw, redb::Error> {
    // Opening a table in a write transaction makes it.
    let transaction = database.begin_write()?;
    transaction.open_table(TASKS)?;
    transaction.open_table(NUMBERS)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let mut tasks = Vec::new();
    for item in transaction.open_table(TASKS)?.iter()? {
        let (id, value) = item?;
        tasks.push((id.value().to_vec(), value.value().to_vec()));
    }
    let index = transaction.open_table(NUMBERS)?.get(INDEX)?.map_or(0, |index| index.value());
    Ok((tasks, index))
}

fn write(
    database: &Database,
    tasks: &BTreeMap<TaskId, Option<Vec<u8>>>,
    index: Option<u64>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TASKS)?;
        for (id, value) in tasks {
            let key = id.to_bytes();
            match value {
                Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                None => table.remove(key.as_slice())?,
            };
        }
        if let Some(index) = index {
            transaction.open_table(NUMBERS)?.insert(INDEX, index)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::task;

    #[test]
    fn what_was_put_down_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/ledger");
        let entry = |n| Entry { task: task(n), status: TaskStatus::default(), assigned: true };
        {
            let (ledger, contents) = Ledger::open(&path).unwrap();
            assert_eq!(contents, Contents::default());
            ledger.put(&entry(1));
            ledger.put(&entry(2));
            ledger.put(&Entry { assigned: false, ..entry(1) });
            ledger.put(&entry(3));
            ledger.forget(task(3).id);
            ledger.set_index(7);
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let (_ledger, contents) = Ledger::open(&path).unwrap();
        let expected = vec![Entry { assigned: false, ..entry(1) }, entry(2)];
        assert_eq!(contents, Contents { entries: expected, index: 7 });
    }

    #[test]
    fn an_entry_of_another_version_is_dropped_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let entry = Entry { task: task(1), status: TaskStatus::default(), assigned: true };
        Ledger::open(&path).unwrap().0.put(&entry);
        {
            let database = Database::open(&path).unwrap();
            let other = BTreeMap::from([(task(2).id, Some(br#"{"shape":"unknown"}"#.to_vec()))]);
            write(&database, &other, None).unwrap();
            assert_eq!(read(&database).unwrap().0.len(), 2);
        }
        let (ledger, contents) = Ledger::open(&path).unwrap();
        assert_eq!(contents.entries, [entry]);
        drop(ledger);
        assert_eq!(read(&Database::open(&path).unwrap()).unwrap().0.len(), 1);
    }

    /// Runs itself again in a mount namespace of its own, where a small file system can be filled.
    #[test]
    fn a_full_disk_delays_writes_until_there_is_room_again() {
        const INSIDE: &str = "RSWARM_TEST_SMALL_DISK";
        let name = "ledger::tests::a_full_disk_delays_writes_until_there_is_room_again";
        if let Some(small) = std::env::var_os(INSIDE) {
            return fill_and_empty(Path::new(&small));
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount -t tmpfs -o size=8m small \"$0\" && exec \"$@\"")
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    }

    fn fill_and_empty(small: &Path) {
        use std::io::Write;
        let until = |what: &str, ledger: &Ledger, done: fn(&Pending) -> bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !done(&ledger.shared.lock()) {
                assert!(std::time::Instant::now() < deadline, "timed out waiting until {what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let path = small.join("ledger");
        let (ledger, _) = Ledger::open(&path).unwrap();
        let entry = |n: u8| {
            let mut entry = Entry { task: task(n), status: TaskStatus::default(), assigned: true };
            // More than the pages that the file has already.
            entry.status.message = "x".repeat(1 << 20);
            entry
        };
        ledger.put(&entry(1));
        until("the first is written", &ledger, Pending::is_empty);
        let mut filler = std::fs::File::create(small.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        for n in 2..5 {
            ledger.put(&entry(n));
        }
        // The tries after the first fail as well, and do no harm.
        until("two writes fail", &ledger, |pending| pending.failures >= 2);
        ledger.forget(task(4).id);
        drop(filler);
        std::fs::remove_file(small.join("filler")).unwrap();
        until("all is written", &ledger, |pending| pending.is_empty() && pending.failures == 0);
        drop(ledger);
        let (_ledger, contents) = Ledger::open(&path).unwrap();
        assert_eq!(contents.entries, [entry(1), entry(2), entry(3)]);
    }

    #[test]
    fn a_second_daemon_is_refused_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (first, _) = Ledger::open(&path).unwrap();
        let error = Ledger::open(&path).err().unwrap().to_string();
        assert!(error.contains("second daemon"), "{error}");
        drop(first);
        std::fs::write(&path, b"not a ledger, but long enough to be looked at as one").unwrap();
        let error = Ledger::open(&path).err().unwrap().to_string();
        assert!(error.contains("remove it"), "{error}");
    }
}
