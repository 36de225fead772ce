//! Halting all processes of a cgroup where they are, and letting them go on.
//!
//! Source: Linux `cgroup-v1/freezer-subsystem.rst`; `cgroup-v2.rst`, `cgroup.freeze`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Cgroup, keyed};
use crate::error::{Failure, Step};

/// How long processes may take to halt. One in an uninterruptible call holds up all.
const HALT: Duration = Duration::from_secs(10);

enum Freezer {
    V1(PathBuf),
    V2 { control: PathBuf, events: PathBuf },
}

impl Cgroup {
    fn freezer(&self) -> Option<Freezer> {
        if let Some(member) = self.members.iter().find(|member| member.has("freezer")) {
            return Some(Freezer::V1(member.directory.join("freezer.state")));
        }
        let member = self.members.iter().find(|member| member.is_unified())?;
        let file = |name: &str| member.directory.join(name);
        Some(Freezer::V2 { control: file("cgroup.freeze"), events: file("cgroup.events") })
    }

    /// Whether its processes can be halted.
    pub fn has_freezer(&self) -> bool {
        self.freezer().is_some()
    }

    /// Whether its processes are halted, or about to be.
    pub fn is_frozen(&self) -> bool {
        match self.freezer() {
            Some(Freezer::V1(state)) => {
                fs::read_to_string(state).is_ok_and(|state| matches!(state.trim(), "FROZEN" | "FREEZING"))
            }
            Some(Freezer::V2 { control, .. }) => {
                fs::read_to_string(control).is_ok_and(|state| state.trim() == "1")
            }
            None => false,
        }
    }

    /// Halts its processes. Returns once all are halted.
    ///
    /// # Errors
    /// Names the file. When they did not halt in time they are let go on.
    pub fn freeze(&self) -> Result<(), Failure> {
        self.turn(true).inspect_err(|_| {
            let _ = self.thaw();
        })
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// Names the file.
    pub fn thaw(&self) -> Result<(), Failure> {
        self.turn(false)
    }

    fn turn(&self, frozen: bool) -> Result<(), Failure> {
        let step = || (if frozen { "freeze the cgroup" } else { "thaw the cgroup" }).to_owned();
        let Some(freezer) = self.freezer() else {
            return Err(Failure::new(step(), "this host has no freezer"));
        };
        let deadline = Instant::now() + HALT;
        let mut pause = Duration::from_micros(100);
        loop {
            if freezer.turn(frozen).step(|| format!("{} by `{}`", step(), freezer.file().display()))? {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(step(), format!("it took more than {} s", HALT.as_secs())));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}

impl Freezer {
    fn file(&self) -> &PathBuf {
        match self {
            Self::V1(file) | Self::V2 { control: file, .. } => file,
        }
    }

    /// Says what is wanted, each time anew: v1 forgets about processes that were forked meanwhile. `true` when it is so.
    fn turn(&self, frozen: bool) -> io::Result<bool> {
        match self {
            Self::V1(state) => {
                let word = if frozen { "FROZEN" } else { "THAWED" };
                fs::write(state, word)?;
                Ok(fs::read_to_string(state)?.trim() == word)
            }
            Self::V2 { control, events } => {
                fs::write(control, if frozen { "1" } else { "0" })?;
                Ok(!frozen || keyed(events, "frozen") == Some(1))
            }
        }
    }
}
