//! One lab at a time: on few cores two would disturb each other's timing.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

/// Held while a lab is up, also against other processes.
const LOCK: &str = "/run/rswarm-tests.lock";

static SERIAL: Mutex<()> = Mutex::new(());

/// The right to have a lab, until it is dropped.
#[derive(Debug)]
pub(crate) struct Alone {
    _lock: Flock<File>,
    _serial: MutexGuard<'static, ()>,
}

impl Alone {
    /// Waits until no other lab is up.
    pub(crate) fn wait() -> anyhow::Result<Self> {
        let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::create(LOCK).with_context(|| format!("cannot write `{LOCK}`"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context(LOCK)?;
        Ok(Self { _lock: lock, _serial: serial })
    }
}
