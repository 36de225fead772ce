//! `kill` and `delete`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Context;
use super::container::{Container, Intended, Phase};
use super::create::run_hooks;
use super::error::{CommandError, During, OnFile};
use super::options::Parsed;
use crate::sys;

/// How long a killed process may take to end, and its cgroup to be removed.
const END: Duration = Duration::from_secs(10);
/// The same for a process that was made and not recorded before its creator ended, and that ends with it.
const CUT_SHORT: Duration = Duration::from_secs(2);

/// `kill`.
pub(super) fn kill(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    let word = parsed.arguments.get(1).map(String::as_str).filter(|word| !word.is_empty()).unwrap_or("TERM");
    let signal =
        signal_number(word).ok_or_else(|| CommandError::UnknownSignal { signal: word.to_owned() })?;
    let cgroup = &container.record.cgroup;
    let signal_all = || cgroup.signal_all(signal).during("signal the processes of the container");
    // Of a container that shares its pid namespace, others may live on after the first. Killed means all of them, as with
    // runc since 1.2.
    let kills_others = signal == libc::SIGKILL && !container.record.owns_pids;
    if parsed.is_on("all") {
        signal_all()?;
    } else {
        // The kernel spares the first process of a namespace what it has no handler for, and one that waits has none.
        let waits = container.is_waiting() && signal_ends(signal);
        let sent = container
            .pidfd()
            .map(|pidfd| sys::pidfd_kill(&pidfd, if waits { libc::SIGKILL } else { signal }));
        let reached = match sent {
            None => false,
            Some(Err(error)) if error.raw_os_error() == Some(libc::ESRCH) => false,
            Some(sent) => sent.during("signal the container's first process").map(|()| true)?,
        };
        let others = kills_others && !cgroup.pids().during("list the processes of the container")?.is_empty();
        if others {
            signal_all()?;
        }
        if !reached && !others {
            let id = container.record.id.clone();
            return Err(CommandError::NotRunning { id, found: Phase::Stopped.name() });
        }
    }
    // A frozen v1 task does not even die.
    if signal == libc::SIGKILL && cgroup.is_frozen() {
        cgroup.thaw()?;
    }
    Ok(())
}

/// Whether a process without a handler ends by `signal`, or would. Source: signal(7).
fn signal_ends(signal: i32) -> bool {
    const SPARE: [i32; 9] = [
        0,
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    !SPARE.contains(&signal)
}

/// `delete`.
pub(super) fn delete(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let force = parsed.is_on("force");
    let container = match context.load(parsed) {
        Err(CommandError::NotFound { id }) => {
            // A creation that was cut short leaves a directory without a record.
            let directory = context.store.directory(&id)?;
            if let Some(Err(failure)) = Intended::read(&directory).map(|intended| intended.remove(CUT_SHORT))
            {
                context.log.warn(&failure.to_string());
            }
            let _ = fs::remove_dir_all(directory);
            return if force { Ok(()) } else { Err(CommandError::NotFound { id }) };
        }
        other => other?,
    };
    match container.phase() {
        Phase::Stopped | Phase::Created => {}
        _ if force => {}
        phase => {
            return Err(CommandError::NotStopped { id: container.record.id, found: phase.name() });
        }
    }
    destroy(context, &container)
}

/// Kills what is left of a container, and removes all that was made for it.
pub(super) fn destroy(context: &Context, container: &Container) -> Result<(), CommandError> {
    let cgroup = &container.record.cgroup;
    kill_first(container)?;
    if !container.record.owns_pids {
        cgroup.signal_all(libc::SIGKILL).during("kill the processes of the container")?;
        if cgroup.is_frozen() {
            cgroup.thaw()?;
        }
    }
    cgroup.remove_soon(END)?;
    match fs::remove_dir_all(&container.directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.on("remove", &container.directory)?,
    }
    if let Err(failure) = run_hooks(container, "poststop", None) {
        // Source: OCI runtime-spec, "Lifecycle" 13: a warning.
        context.log.warn(&failure.to_string());
    }
    Ok(())
}

fn kill_first(container: &Container) -> Result<(), CommandError> {
    let Some(pidfd) = container.pidfd() else { return Ok(()) };
    let _ = sys::pidfd_kill(&pidfd, libc::SIGKILL);
    if container.record.cgroup.is_frozen() {
        container.record.cgroup.thaw()?;
    }
    if !await_end(&pidfd).during("wait for the container's end")? {
        let id = container.record.id.clone();
        return Err(CommandError::StillRunning { id, seconds: END.as_secs() });
    }
    // If it is our own child, nobody else will wait for it.
    let _ = sys::wait_for(container.record.init_process_pid);
    Ok(())
}

/// Waits until a process has ended: whether it does within [`END`].
pub(super) fn await_end(pidfd: &OwnedFd) -> rustix::io::Result<bool> {
    let deadline = Instant::now() + END;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&wait)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// A signal by number or name, with or without `SIG`, in any case.
fn signal_number(word: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 34] = [
        ("ABRT", libc::SIGABRT),
        ("ALRM", libc::SIGALRM),
        ("BUS", libc::SIGBUS),
        ("CHLD", libc::SIGCHLD),
        ("CLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("FPE", libc::SIGFPE),
        ("HUP", libc::SIGHUP),
        ("ILL", libc::SIGILL),
        ("INT", libc::SIGINT),
        ("IO", libc::SIGIO),
        ("IOT", libc::SIGIOT),
        ("KILL", libc::SIGKILL),
        ("PIPE", libc::SIGPIPE),
        ("POLL", libc::SIGPOLL),
        ("PROF", libc::SIGPROF),
        ("PWR", libc::SIGPWR),
        ("QUIT", libc::SIGQUIT),
        ("SEGV", libc::SIGSEGV),
        ("STKFLT", libc::SIGSTKFLT),
        ("STOP", libc::SIGSTOP),
        ("SYS", libc::SIGSYS),
        ("TERM", libc::SIGTERM),
        ("TRAP", libc::SIGTRAP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("VTALRM", libc::SIGVTALRM),
        ("WINCH", libc::SIGWINCH),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
    ];
    if let Ok(number) = word.parse::<i32>() {
        return (0..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset =
        |name: &str, sign: &str| name.split_once(sign).and_then(|(_, number)| number.parse::<i32>().ok());
    let real_time = match name {
        "RTMIN" => Some(libc::SIGRTMIN()),
        "RTMAX" => Some(libc::SIGRTMAX()),
        _ if name.starts_with("RTMIN+") => offset(name, "+").map(|by| libc::SIGRTMIN() + by),
        _ if name.starts_with("RTMAX-") => offset(name, "-").map(|by| libc::SIGRTMAX() - by),
        _ => None,
    };
    let real_time = real_time.filter(|number| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(number));
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).or(real_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, expected) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("RTMIN+3", Some(libc::SIGRTMIN() + 3)),
            ("SIGRTMAX-1", Some(libc::SIGRTMAX() - 1)),
            ("RTMIN+99", None),
            ("0", Some(0)),
            ("99", None),
            ("BLA", None),
            ("", None),
        ] {
            assert_eq!(signal_number(word), expected, "{word}");
        }
    }
}
