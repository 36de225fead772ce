//! Runs hooks: programs of the administrator's, with the container's state on their standard input.
//!
//! Source: OCI runtime-spec, "POSIX-platform Hooks" and "State".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};
use serde::Serialize;

use crate::error::{Cause, Failure, Step};
use crate::plan::{HookStep, Shape};

/// So much of what a failing hook said is passed on.
const WORDS_MAX: usize = 4 << 10;

/// The state of a container as the specification shapes it, for hooks and for whoever asks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OciState<'a> {
    pub oci_version: &'a str,
    pub id: &'a str,
    pub status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

/// Runs one hook after the other, in `directory` if it is given and there. `pid` is the container's first process as
/// seen from here.
///
/// # Errors
/// The first hook that could not be run, failed or did not end in time (it is killed then), with what it said.
pub(crate) fn run(step: &HookStep, pid: Option<i32>, directory: Option<&Path>) -> Result<(), Failure> {
    let Shape { oci_version, id, status, bundle, annotations } = &step.state;
    let state = OciState { oci_version, id, status, pid, bundle, annotations };
    let text =
        serde_json::to_vec(&state).map_err(|error| Failure::new("describe the state", error.to_string()))?;
    let directory = directory.filter(|directory| directory.is_dir());
    step.hooks.iter().try_for_each(|hook| {
        let env = hook.env().as_ref().or(step.env.as_ref());
        run_one(step.kind, hook, env, &text, directory)
    })
}

fn run_one(
    kind: &str,
    hook: &Hook,
    env: Option<&Vec<String>>,
    state: &[u8],
    directory: Option<&Path>,
) -> Result<(), Failure> {
    let step = || format!("run the {kind} hook `{}`", hook.path().display());
    let mut args = hook.args().iter().flatten();
    let mut command = Command::new(hook.path());
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    if let Some(env) = env {
        command.env_clear().envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    let (said, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(step)?;
    rustix::io::ioctl_fionbio(&said, true).step(step)?;
    let mut child = command
        .args(args)
        .stdin(input(state).step(step)?)
        .stdout(end.try_clone().step(step)?)
        .stderr(end)
        .spawn()
        .step(step)?;
    // Its copies of the pipe's end would hide the hook's end.
    drop(command);
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let mut words = Vec::new();
    let in_time = attend(&child, said, limit, &mut words);
    if !matches!(in_time, Ok(true)) {
        let _ = child.kill();
    }
    let status = child.wait().step(step)?;
    if !in_time.step(step)? {
        let seconds = limit.map_or(0, |limit| limit.as_secs());
        return Err(Failure::new(step(), format!("it did not end within {seconds} s")));
    }
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    let said = if words.is_empty() { String::new() } else { format!(", it said: {words}") };
    Err(Failure { step: step(), cause: Cause::Text(format!("{status}{said}")) })
}

/// The state as a file: nobody has to stay and write it, however long it is and whether it is read or not.
fn input(state: &[u8]) -> io::Result<Stdio> {
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state)?;
    file.rewind()?;
    Ok(OwnedFd::from(file).into())
}

/// Listens until the hook has ended; `false` when its time is over. What others still hold of its output is not
/// waited for.
fn attend(child: &Child, said: OwnedFd, limit: Option<Duration>, words: &mut Vec<u8>) -> io::Result<bool> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let pid = Pid::from_raw(child.id() as i32).ok_or(io::ErrorKind::NotFound)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut said = Some(File::from(said));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(said.as_ref().map(|said| PollFd::new(said, PollFlags::IN)));
        match poll(&mut fds, wait.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        if listen(said.as_mut(), words) {
            said = None;
        }
        if ended {
            return Ok(true);
        }
    }
}

/// Takes what is there. `true` when no more will come.
fn listen(said: Option<&mut File>, words: &mut Vec<u8>) -> bool {
    let Some(said) = said else { return false };
    let mut buffer = [0u8; 1024];
    loop {
        match said.read(&mut buffer) {
            Ok(0) => return true,
            Ok(len) => {
                let room = WORDS_MAX.saturating_sub(words.len());
                words.extend_from_slice(&buffer[..len.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn shell(script: &str, timeout: i64) -> HookStep {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let hook =
            HookBuilder::default().path("/bin/sh").args(args).env(vec!["A=b".to_owned()]).timeout(timeout);
        let state =
            Shape { oci_version: "1.2.0".into(), id: "x".into(), status: "creating", ..Default::default() };
        HookStep { kind: "prestart", hooks: vec![hook.build().unwrap()], state, env: None }
    }

    #[test]
    fn hook_without_an_environment_has_that_of_the_runtime() {
        // Anything that a shell does not set by itself.
        let own = ["PWD", "OLDPWD", "SHLVL", "PATH", "_"];
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        let found = std::env::vars()
            .find(|(name, value)| plain(name) && !own.contains(&name.as_str()) && !value.contains('\''));
        let Some((name, value)) = found else {
            eprintln!("skipped: needs an environment");
            return;
        };
        let mut step = shell(&format!("test \"${name}\" = '{value}' && test \"$PWD\" = /"), 20);
        step.hooks[0].set_env(None);
        run(&step, None, Some(Path::new("/"))).unwrap();
    }

    #[test]
    fn hook_has_its_environment_alone_and_the_state_on_its_input() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!(
            "{{ cat; echo; /usr/bin/env | grep -v -e PWD -e SHLVL -e _=; }} > {}",
            file.path().display()
        );
        run(&shell(&script, 20), Some(7), None).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(
            text,
            "{\"ociVersion\":\"1.2.0\",\"id\":\"x\",\"status\":\"creating\",\"pid\":7,\"bundle\":\"\"}\nA=b\n"
        );
    }

    #[test]
    fn failing_slow_and_missing_hooks_are_errors_that_say_so() {
        let said = |script: &str, timeout| run(&shell(script, timeout), None, None).unwrap_err().to_string();
        let prefix = "run the prestart hook `/bin/sh`: ";
        assert_eq!(said("echo no >&2; exit 3", 20), format!("{prefix}exit status: 3, it said: no"));
        assert_eq!(said("exec sleep 1000", 1), format!("{prefix}it did not end within 1 s"));
        // More than a pipe holds, and a grandchild that keeps the pipe open.
        assert!(said("sleep 5 & yes | head -c 300000; exit 1", 20).len() < 2 * WORDS_MAX);
        let mut missing = shell("", 1);
        missing.hooks[0].set_path("/no/hook".into());
        let error = run(&missing, None, None).unwrap_err();
        assert_eq!(error.to_string(), "run the prestart hook `/no/hook`: no such file or directory");
    }
}
