//! `rswarm tunnel`: its arguments, and the loop that carries everything.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use rswarm_net::{
    NetError,
    wireguard::{Request, Setting, Words},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    device::{Received, Sides, open_tun},
    engine::{BUFFER, Engine},
};

const USAGE: &str = "\
Usage: rswarm tunnel --socket PATH --netns PATH --device NAME

Encrypts what nodes send each other on encrypted networks (WireGuard), where the kernel cannot. Ends when the device is
deleted, or the namespace has lost its name.

  --socket PATH   Where it is told its key, port and peers (the cross-platform configuration protocol of WireGuard)
  --netns PATH    Network namespace that gets the device; the UDP socket stays in the caller's
  --device NAME   Name of the device
";

/// As the command line has it for flags that are unknown or malformed.
const EXIT_BAD_FLAG: i32 = 125;
/// How often the state machines look at the clock.
const TICK: Duration = Duration::from_millis(250);
/// Packets of one side taken in a row before the other side is looked at.
const BATCH: usize = 64;
/// Whoever has connected says what he wants at once. Nothing is carried meanwhile.
const CONTROL_PATIENCE: Duration = Duration::from_millis(500);
/// Longest request: some hundred bytes for each of 4094 peers.
const REQUEST_MAX: u64 = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
struct Options {
    socket: PathBuf,
    netns: PathBuf,
    device: String,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Namespace(#[from] NetError),
    #[error("failed to make device `{name}` of `/dev/net/tun`: {source}")]
    Device { name: String, source: io::Error },
    #[error("failed to listen on `{path}`: {source}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("failed to wait for packets: {0}")]
    Wait(rustix::io::Errno),
}

/// Runs the tunnel with the words behind `rswarm tunnel`, until its device is deleted; returns the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> i32 {
    let say = |text: &str| drop(writeln!(io::stderr(), "rswarm tunnel: {text}"));
    let options = match parse(args) {
        Ok(Some(options)) => options,
        Ok(None) => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return 0;
        }
        Err(reason) => {
            say(&format!("{reason}\n\n{USAGE}"));
            return EXIT_BAD_FLAG;
        }
    };
    match run(&options) {
        Ok(()) => 0,
        Err(error) => {
            say(&error.to_string());
            1
        }
    }
}

/// `None` if help was asked for.
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
    let (mut socket, mut netns, mut device) = (None, None, None);
    while let Some(word) = args.next() {
        let flag = word.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| format!("expected a value after `{flag}`"));
        match flag.as_str() {
            "--socket" => socket = Some(value()?.into()),
            "--netns" => netns = Some(value()?.into()),
            "--device" => device = Some(value()?.to_string_lossy().into_owned()),
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown argument `{flag}`")),
        }
    }
    let missing = |flag: &str| format!("expected `{flag}`");
    let options = Options {
        socket: socket.ok_or_else(|| missing("--socket"))?,
        netns: netns.ok_or_else(|| missing("--netns"))?,
        device: device.ok_or_else(|| missing("--device"))?,
    };
    if !(1..libc::IFNAMSIZ).contains(&options.device.len()) {
        return Err(format!("expected a device name of 1 to 15 bytes, found `{}`", options.device));
    }
    Ok(Some(options))
}

fn run(options: &Options) -> Result<(), Error> {
    let namespace = identity(options);
    let tun = open_tun(&options.netns, &options.device)?
        .map_err(|source| Error::Device { name: options.device.clone(), source })?;
    let mut sides = Sides::new(tun);
    let listener =
        listen(options).map_err(|source| Error::Listen { path: options.socket.clone(), source })?;
    let (mut engine, mut buffer) = (Engine::new(), vec![0; BUFFER]);
    let mut ticked = Instant::now();
    loop {
        let wait = TICK.saturating_sub(ticked.elapsed());
        let ready = wait_for(&sides, &listener, wait).map_err(Error::Wait)?;
        if ready.datagrams {
            for _ in 0..BATCH {
                let Some(Received { from, bytes, length }) = sides.datagrams(&mut buffer) else { break };
                for datagram in buffer[..bytes].chunks(length) {
                    engine.incoming(from, datagram, &mut sides);
                }
            }
        }
        if ready.packets {
            for _ in 0..BATCH {
                match sides.packet(&mut buffer) {
                    Ok(Some(length)) => engine.outgoing(&buffer[..length], &mut sides),
                    Ok(None) => break,
                    // The device is down, or gone: then there is nothing left to do.
                    Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(()),
                    Err(_) => break,
                }
            }
        }
        if ready.control
            && let Ok((stream, _)) = listener.accept()
        {
            // Whoever hangs up does not want the answer.
            let _ = control(&mut engine, &mut sides, stream);
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            engine.tick(&mut sides, ticked);
            // We keep it alive, so it would never end if whoever made it forgot about us.
            if identity(options) != namespace {
                return Ok(());
            }
        }
        sides.flush();
    }
}

/// Which namespace it is; `None` if it has lost its name.
fn identity(options: &Options) -> Option<(u64, u64)> {
    fs::metadata(&options.netns).ok().map(|file| (file.dev(), file.ino()))
}

fn listen(options: &Options) -> io::Result<UnixListener> {
    // Who has the device is the one who is asked from now on.
    match fs::remove_file(&options.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&options.socket)?;
    // The private key can be asked for.
    fs::set_permissions(&options.socket, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

struct Ready {
    packets: bool,
    datagrams: bool,
    control: bool,
}

fn wait_for(sides: &Sides, listener: &UnixListener, wait: Duration) -> rustix::io::Result<Ready> {
    let tun = sides.tun.as_fd();
    let mut fds = vec![PollFd::new(&tun, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    let udp = sides.udp();
    fds.extend(udp.iter().map(|udp| PollFd::new(udp, PollFlags::IN)));
    let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
    match poll(&mut fds, Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready { packets: ready(0), control: ready(1), datagrams: ready(2) })
}

/// One request and its answer.
fn control(engine: &mut Engine, sides: &mut Sides, mut stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CONTROL_PATIENCE))?;
    stream.set_write_timeout(Some(CONTROL_PATIENCE))?;
    let mut text = String::new();
    (&stream).take(REQUEST_MAX).read_to_string(&mut text)?;
    let answer = match Words::parse_request(&text) {
        Ok(Request::Get) => Words::state(&engine.state()),
        Ok(Request::Set(settings)) => Words::outcome(set(engine, sides, &settings)),
        Err(reason) => {
            let _ = writeln!(io::stderr(), "rswarm tunnel: a request is refused: {reason}");
            Words::outcome(libc::EINVAL)
        }
    };
    stream.write_all(answer.as_bytes())
}

/// Returns the number of the error that ended it, or 0.
fn set(engine: &mut Engine, sides: &mut Sides, settings: &[Setting]) -> i32 {
    for setting in settings {
        if let Setting::Port(port) = setting
            && let Err(error) = sides.listen(*port)
        {
            return error.raw_os_error().unwrap_or(libc::EIO);
        }
        engine.set(setting, sides, Instant::now());
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_refused_by_name() {
        let read = |line: &str| parse(line.split_whitespace().map(OsString::from));
        let options = Options { socket: "/s".into(), netns: "/n".into(), device: "rswg".into() };
        assert_eq!(read("--socket /s --netns /n --device rswg"), Ok(Some(options)));
        assert_eq!(read("--help"), Ok(None));
        for (line, reason) in [
            ("--netns /n --device d", "expected `--socket`"),
            ("--socket", "expected a value after `--socket`"),
            ("--socket /s --netns /n --device a-name-too-long-", "1 to 15 bytes"),
            ("--port 1", "unknown argument `--port`"),
        ] {
            assert!(read(line).unwrap_err().contains(reason), "{line}");
        }
    }
}
