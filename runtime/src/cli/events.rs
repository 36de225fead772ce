//! `events`: use of resources every now and then, and each time the kernel kills for want of memory.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::Context;
use super::container::{Container, Phase};
use super::error::{CommandError, During};
use super::options::{Parsed, UsageError};
use super::show::print;
use crate::cgroup::{Cgroup, Usage};
use crate::sys;

const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Usage>,
}

/// `events`. Ends with the container.
pub(super) fn events(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    let interval = match parsed.value("interval") {
        None => INTERVAL,
        Some(text) => duration(text).ok_or_else(|| UsageError::InvalidValue {
            flag: "interval",
            value: text.to_owned(),
            expected: "a duration above 0 such as 5s or 1m30s",
        })?,
    };
    if container.phase() == Phase::Stopped {
        let found = Phase::Stopped.name();
        return Err(CommandError::NotRunning { id: container.record.id, found });
    }
    if parsed.is_on("stats") {
        return show(&container, "stats", Some(container.record.cgroup.usage()));
    }
    follow(&container, interval)
}

fn follow(container: &Container, interval: Duration) -> Result<(), CommandError> {
    let Some(pidfd) = container.pidfd() else { return Ok(()) };
    let cgroup = &container.record.cgroup;
    let alarm = OutOfMemory::watch(cgroup).during("watch for out-of-memory events")?;
    let mut kills = cgroup.oom_kills();
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(alarm.as_ref().map(|alarm| PollFd::new(&alarm.fd, PollFlags::IN)));
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).during("wait for events"),
        }
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        if let Some(alarm) = &alarm {
            alarm.hear();
        }
        // Counted and not announced: an alarm may be about less, and several may come as one.
        let now = cgroup.oom_kills();
        for _ in kills..now {
            show(container, "oom", None)?;
        }
        kills = kills.max(now);
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            next += interval;
            show(container, "stats", Some(cgroup.usage()))?;
        }
    }
}

fn show(container: &Container, kind: &str, data: Option<Usage>) -> Result<(), CommandError> {
    let event = Event { kind, id: &container.record.id, data };
    let text = serde_json::to_string(&event).map_err(io::Error::from).during("describe the event")?;
    print(&(text + "\n"))
}

/// Becomes readable when a cgroup may have run out of memory.
struct OutOfMemory {
    fd: OwnedFd,
    /// v1 counts only as long as this is open.
    _control: Option<OwnedFd>,
}

impl OutOfMemory {
    /// `None` where the host has no memory controller.
    fn watch(cgroup: &Cgroup) -> io::Result<Option<Self>> {
        if let Some(member) =
            cgroup.members.iter().find(|member| member.controllers.iter().any(|name| name == "memory"))
        {
            return Self::watch_v1(&member.directory).map(Some);
        }
        let Some(member) = cgroup.unified_member() else { return Ok(None) };
        let file = member.directory.join("memory.events");
        if !file.exists() {
            return Ok(None);
        }
        let fd = sys::watch_directory(&CString::new(file.as_os_str().as_bytes())?)?;
        Ok(Some(Self { fd, _control: None }))
    }

    /// Source: Linux `cgroup-v1/memory.rst`, "OOM Control".
    fn watch_v1(directory: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags)?;
        let control = std::fs::File::open(directory.join("memory.oom_control"))?;
        let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        std::fs::write(directory.join("cgroup.event_control"), line)?;
        Ok(Self { fd, _control: Some(control.into()) })
    }

    fn hear(&self) {
        let mut buffer = [0u8; 512];
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|len| len == buffer.len()) {}
    }
}

/// A duration as Go writes it, such as `1m30s` or `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits =
            rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').filter(|at| *at > 0)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = after;
    }
    (total > Duration::ZERO).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("5s", Some(5_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("500ms", Some(500)),
            ("0s", None),
            ("5", None),
            ("s", None),
            ("", None),
            ("5 s", None),
        ] {
            assert_eq!(duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }
}
