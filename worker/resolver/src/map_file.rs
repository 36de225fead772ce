//! The file that the worker leaves for us: `network-map` in the run root, replaced by renaming.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use rswarm_types::netmap::NetworkMap;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::sync::mpsc::Sender;

use crate::command::chain;
use crate::log;
use crate::names::Names;

/// The name of the file in the run root: a [`NetworkMap`] in MessagePack, fields by name.
pub const FILE_NAME: &str = "network-map";

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("expected a network map in `{path}`, found something else")]
    Decode {
        path: PathBuf,
        #[source]
        source: rmp_serde::decode::Error,
    },
    #[error("failed to watch the directory `{path}`")]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads the map in the run root. No file: an empty map.
pub fn read(run_root: &Path) -> Result<NetworkMap, MapError> {
    let path = run_root.join(FILE_NAME);
    match fs::read(&path) {
        Ok(bytes) => rmp_serde::from_slice(&bytes).map_err(|source| MapError::Decode { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(NetworkMap::default()),
        Err(source) => Err(MapError::Read { path, source }),
    }
}

/// Follows the file, on a thread of its own, so that a large map delays no reply: sends the names of each new one.
///
/// What is written after this call is not missed. A file that cannot be read changes nothing: the last good one is
/// still the best we know.
pub fn follow(run_root: &Path, names: Sender<Names>) -> Result<(), MapError> {
    let watch = || -> io::Result<OwnedFd> {
        let fd = inotify::init(CreateFlags::CLOEXEC)?;
        let written = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        let gone = WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        inotify::add_watch(&fd, run_root, written | gone | WatchFlags::ONLYDIR)?;
        Ok(fd)
    };
    let run_root = run_root.to_owned();
    let failed = |source| MapError::Watch { path: run_root.clone(), source };
    let inotify = watch().map_err(failed)?;
    let thread = thread::Builder::new().name("network-map".to_owned()).stack_size(STACK);
    let path = run_root.clone();
    let run = move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&inotify, &mut buffer);
        loop {
            if let Err(error) = wait(&mut events) {
                log!("failed to watch `{}`: {error}; the names stay as they are", path.display());
                return;
            }
            match read(&path) {
                Ok(map) => {
                    if names.blocking_send(Names::new(&map)).is_err() {
                        return;
                    }
                }
                Err(error) => log!("{}; the names stay as they were", chain(&error)),
            }
        }
    };
    thread.spawn(run).map(drop).map_err(failed)
}

/// Decoding does not recurse into what a file says, only into what a map is.
const STACK: usize = 256 << 10;

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
