//! What goes between our own streams and those of a process in a task: for `exec` and `attach`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::select_all;
use rswarm_runtime::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a pipe holds, and more than a terminal does.
const PIPE: usize = 64 << 10;
/// How long the end waits for output that is still on its way.
const DRAIN: Duration = Duration::from_millis(200);

/// A process of a task; readable when it has ended.
pub trait Attended: AsFd {
    /// The signal `number` has reached us. Gives whether to stay.
    fn signalled(&self, number: i32) -> bool;
    /// Nobody reads any more what we pass on. Gives whether to stay.
    fn unread(&self) -> bool;
    /// Our terminal has this size.
    fn resized(&self, size: TerminalSize) -> io::Result<()>;
}

/// This side of its streams.
#[derive(Debug)]
pub struct Ends {
    /// Where ours goes. Without it, nothing is read.
    pub input: Option<OwnedFd>,
    pub output: OwnedFd,
    /// `None` with a terminal.
    pub errors: Option<OwnedFd>,
    pub detach_keys: DetachKeys,
}

/// Why one leaves a process that has not ended.
#[derive(Debug)]
pub enum Left {
    /// The keys for that were typed.
    Detached,
    Signalled(i32),
    Unread,
    Failed(anyhow::Error),
}

impl Left {
    /// What to end with.
    pub fn into_code(self) -> anyhow::Result<i32> {
        match self {
            Self::Detached => {
                eprintln!("read escape sequence");
                // As Docker's: how the process ends is not known.
                Ok(1)
            }
            Self::Signalled(number) => Ok(128 + number),
            Self::Unread => Ok(0),
            Self::Failed(error) => Err(error),
        }
    }
}

/// Of the terminal we have.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    Some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// Stays with a process until it has ended: passes input, output, signals and the terminal's size on.
pub async fn attend(process: &impl Attended, ends: Ends) -> Result<(), Left> {
    let Ends { input, output, errors, detach_keys } = ends;
    let _raw = (input.is_some() && errors.is_none()).then(Raw::begin);
    let ended = CancellationToken::new();
    let output = forward(output, tokio::io::stdout(), process, &ended);
    let errors = async {
        match errors {
            Some(errors) => forward(errors, tokio::io::stderr(), process, &ended).await,
            None => Ok(()),
        }
    };
    let work = async { tokio::try_join!(output, errors, until_end(process, &ended)) };
    tokio::select! {
        done = work => done.map(drop),
        left = feed(input, &detach_keys) => Err(left),
    }
}

fn failed(error: io::Error) -> Left {
    Left::Failed(anyhow::Error::new(error).context("cannot stay with the process"))
}

/// Passes signals and the terminal's size on until the process has ended.
async fn until_end(process: &impl Attended, ended: &CancellationToken) -> Result<(), Left> {
    // Those that ask a program for something, of all that reach this one.
    let kinds = [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    let watched = kinds.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?)));
    let mut signals = watched.collect::<io::Result<Vec<(i32, Signal)>>>().map_err(failed)?;
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    // It may have changed since it was said.
    let follow_size = || size().map_or(Ok(()), |size| process.resized(size)).map_err(failed);
    follow_size()?;
    // Nothing is read through it.
    let end = process.as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd_unchecked);
    let end = end.map_err(failed)?;
    loop {
        let next = signals.iter_mut().map(|(number, signal)| Box::pin(signal.recv().map(|_| *number)));
        tokio::select! {
            ready = end.readable() => {
                ended.cancel();
                return ready.map_err(failed);
            }
            (number, ..) = select_all(next) => if !process.signalled(number) {
                return Err(Left::Signalled(number));
            },
            _ = resized.recv() => follow_size()?,
        }
    }
}

/// Copies what the process writes. When it has ended, what it wrote until then is still to come; others that it has
/// left behind may write for as long as they like.
async fn forward(
    from: OwnedFd,
    to: impl AsyncWrite + Unpin,
    process: &impl Attended,
    ended: &CancellationToken,
) -> Result<(), Left> {
    let from = non_blocking(from).and_then(pipe::Receiver::from_owned_fd_unchecked);
    let mut from = from.map_err(failed)?;
    let mut to = Some(to);
    let mut buffer = vec![0; 8 << 10];
    let mut left = PIPE;
    while left > 0 {
        let over = ended.is_cancelled();
        let len = tokio::select! {
            // An error: nobody has the terminal open any more.
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = ended.cancelled(), if !over => continue,
            () = tokio::time::sleep(DRAIN), if over => 0,
        };
        if len == 0 {
            break;
        }
        if over {
            left = left.saturating_sub(len);
        }
        if let Some(open) = &mut to
            && (open.write_all(&buffer[..len]).await.is_err() || open.flush().await.is_err())
        {
            to = None;
            if !process.unread() {
                return Err(Left::Unread);
            }
        }
    }
    Ok(())
}

/// Copies our input. Returns only when it is to go no further, or cannot.
async fn feed(to: Option<OwnedFd>, keys: &DetachKeys) -> Left {
    let copied = async {
        let Some(to) = to else { return Ok(false) };
        let mut to = pipe::Sender::from_owned_fd_unchecked(non_blocking(to)?)?;
        let mut from = tokio::io::stdin();
        let mut buffer = vec![0; 8 << 10];
        let mut held = Vec::new();
        loop {
            let len = from.read(&mut buffer).await?;
            // Its end is the process's: `to` is dropped.
            if len == 0 {
                return to.write_all(&held).await.map(|()| false).or(Ok(false));
            }
            let (passed, detach) = keys.sift(&mut held, &buffer[..len]);
            // A process that does not read is none the worse for it.
            if to.write_all(&passed).await.is_err() {
                return Ok(false);
            }
            if detach {
                return Ok(true);
            }
        }
    };
    match copied.await {
        Ok(true) => Left::Detached,
        Ok(false) => std::future::pending().await,
        Err(error) => {
            let error: io::Error = error;
            Left::Failed(anyhow::Error::new(error).context("cannot pass standard input on"))
        }
    }
}

fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// What is typed to leave a terminal; nothing, if one cannot.
///
/// Source: Docker's `--detach-keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let key = |word: &str| match (word.as_bytes(), word.strip_prefix("ctrl-").map(str::as_bytes)) {
            ([key], _) => Some(*key),
            (_, Some([key @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')])) => Some(key & 0x1f),
            _ => None,
        };
        let keys = text.split(',').map(|word| {
            key(word).with_context(|| {
                format!("unknown key `{word}`: expected a letter, or ctrl- and one of a-z @ [ \\ ] ^ _")
            })
        });
        keys.collect::<anyhow::Result<_>>().map(Self)
    }
}

impl DetachKeys {
    /// What of `held`, which may be the beginning of them, and then of `typed` is certain not to belong to them; and
    /// whether they are complete.
    fn sift(&self, held: &mut Vec<u8>, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::new();
        for &key in typed {
            held.push(key);
            while !self.0.starts_with(held) {
                passed.push(held.remove(0));
            }
            if !held.is_empty() && *held == self.0 {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

/// Our terminal while it only passes things on: keys are the process's to make something of.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &raw);
        Self(Some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Option<Vec<u8>> {
        text.parse::<DetachKeys>().ok().map(|keys| keys.0)
    }

    #[test]
    fn keys_are_letters_and_controls() {
        for (text, expected) in [
            ("ctrl-p,ctrl-q", Some(&b"\x10\x11"[..])),
            ("a,ctrl-@,Z", Some(b"a\0Z")),
            ("ctrl-\\", Some(b"\x1c")),
            ("ctrl-", None),
            ("ctrl-P", None),
            ("ctrl-1", None),
            ("", None),
            ("ab", None),
            ("a,", None),
        ] {
            assert_eq!(keys(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_typed_is_passed_on_but_for_the_keys() {
        fn check(keys: &str, typed: &[&str], expected: &str, detached: bool) {
            let keys = keys.parse::<DetachKeys>().unwrap_or_default();
            let mut held = Vec::new();
            let mut all = Vec::new();
            let mut left = false;
            for text in typed {
                let (passed, detach) = keys.sift(&mut held, text.as_bytes());
                all.extend(passed);
                left = detach;
            }
            assert_eq!((String::from_utf8_lossy(&all).as_ref(), left), (expected, detached), "{typed:?}");
        }
        check("ctrl-p,ctrl-q", &["ab\x10\x11cd"], "ab", true);
        check("ctrl-p,ctrl-q", &["ab\x10", "\x11"], "ab", true);
        check("ctrl-p,ctrl-q", &["ab\x10", "c\x11"], "ab\x10c\x11", false);
        check("ctrl-p,ctrl-q", &["\x10\x10\x11"], "\x10", true);
        check("a,a,b", &["aa", "ab"], "a", true);
        check("a,a,b", &["aa"], "", false);
        check("", &["a\x10\x11"], "a\x10\x11", false);
    }
}
