//! A WireGuard link in user space: a process of its own, which outlives the daemon. It ends when its link does.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Request, Setting, State, WIREGUARD, Words};
use crate::{error::KernelError, model::TunnelProgram};

/// It answers within microseconds, unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(2);

fn ask(socket: &Path, request: &Request) -> Result<State, KernelError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(Words::request(request).as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match Words::parse_answer(&answer) {
        Ok((state, 0)) => Ok(state),
        Ok((_, errno)) => Err(KernelError { errno, reason: None }),
        Err(reason) => Err(KernelError { errno: libc::EPROTO, reason: Some(reason) }),
    }
}

pub(super) fn get(program: &TunnelProgram) -> Result<State, KernelError> {
    ask(&program.socket, &Request::Get)
}

pub(super) fn set(program: &TunnelProgram, setting: &Setting) -> Result<(), KernelError> {
    ask(&program.socket, &Request::Set(vec![setting.clone()])).map(drop)
}

/// Starts the process, whose link is in the namespace at `netns`, and waits until it answers.
pub(super) fn start(program: &TunnelProgram, netns: &Path) -> Result<Child, KernelError> {
    let failed = |what: &str| {
        let reason = format!("{what}, see `{}`", program.log.display());
        KernelError { errno: libc::ECHILD, reason: Some(reason) }
    };
    let log = File::options().create(true).append(true).open(&program.log)?;
    let mut command = Command::new(&program.executable);
    command.args(&program.args).arg("--socket").arg(&program.socket).arg("--netns").arg(netns);
    command.arg("--device").arg(WIREGUARD);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // What ends the daemon at a terminal leaves it alone.
    let mut child = command.process_group(0).spawn()?;
    let end = Instant::now() + PATIENCE;
    loop {
        if get(program).is_ok() {
            return Ok(child);
        }
        if child.try_wait()?.is_some() {
            return Err(failed("the process that encrypts has ended"));
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("the process that encrypts does not answer"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a TUN device can be made at all.
pub(super) fn is_possible() -> io::Result<()> {
    File::options().read(true).write(true).open("/dev/net/tun").map(drop)
}
