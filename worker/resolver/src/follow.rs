//! Follows the worker's file, on a thread of its own, so that a large map delays no reply.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::sync::mpsc::Sender;

use crate::command::chain;
use crate::log;
use crate::map_file::{FILE_NAME, MapError, MapReader};
use crate::names::Names;

/// Decoding does not recurse into what a file says, only into what a map is.
const STACK: usize = 256 << 10;

/// Returns the names there are now, and sends those of each new map.
///
/// A file that cannot be read changes nothing: the last good map is still the best we know.
pub fn follow(run_root: &Path, names: Sender<Names>) -> Result<Names, MapError> {
    let failed = |source| MapError::Watch { path: run_root.to_owned(), source };
    let inotify = watch(run_root).map_err(failed)?;
    // What is written from here on is not missed.
    let mut map = MapReader::new(run_root);
    refresh(&mut map);
    let first = Names::new(map.map());
    let path = run_root.to_owned();
    let run = move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&inotify, &mut buffer);
        loop {
            if let Err(error) = wait(&mut events) {
                log!("failed to watch `{}`: {error}; the names stay as they are", path.display());
                return;
            }
            if refresh(&mut map) && names.blocking_send(Names::new(map.map())).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("network-map".to_owned()).stack_size(STACK);
    thread.spawn(run).map_err(failed)?;
    Ok(first)
}

/// Whether there may be other names than before.
fn refresh(map: &mut MapReader) -> bool {
    map.refresh().unwrap_or_else(|error| {
        log!("{}; the last good map counts", chain(&error));
        true
    })
}

fn watch(run_root: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(CreateFlags::CLOEXEC)?;
    let written = WatchFlags::MOVED_TO | WatchFlags::MODIFY;
    let gone = WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    inotify::add_watch(&fd, run_root, written | gone | WatchFlags::ONLYDIR)?;
    Ok(fd)
}

/// Waits until something happened to the file; takes in with it all that happened meanwhile.
fn wait(events: &mut Reader<'_, &OwnedFd>) -> io::Result<()> {
    let mut changed = false;
    loop {
        match events.next() {
            // Of events that were too many we do not know whose they were.
            Ok(event) => {
                changed |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                    || event.file_name().is_some_and(|name| name.to_bytes() == FILE_NAME.as_bytes());
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if changed && events.is_buffer_empty() {
            return Ok(());
        }
    }
}
