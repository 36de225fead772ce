//! The host's end of a guest's control channel: programs are run in the guest, and what they say comes back.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::frame::{self, Frame, PIECE_BYTES, Run};
use crate::machine::Output;

/// A guest that takes nothing for so long hangs.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Whoever waits for frames, by request; `None` once the channel has ended.
type Waiting = Arc<Mutex<Option<BTreeMap<u32, Sender<Frame>>>>>;

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the machine is off")]
    Off(#[source] Option<io::Error>),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{0}")]
    Refused(String),
    #[error("failed to read the program's input")]
    Input(#[source] io::Error),
}

/// A connection to the agent in a guest. Several threads may use it at once.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// Number of the next request; held while a frame is written, as frames must not mix.
    next: Mutex<u32>,
    waiting: Waiting,
    up: Mutex<Receiver<Frame>>,
}

impl Channel {
    /// # Errors
    /// When the stream cannot be used by two threads.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let (sender, up) = mpsc::channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some([(0, sender)].into())));
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (reader, shared) = (stream.try_clone()?, waiting.clone());
        std::thread::Builder::new().name("vm-channel".to_owned()).spawn(move || receive(&reader, &shared))?;
        Ok(Self { stream, next: Mutex::new(1), waiting, up: Mutex::new(up) })
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    /// `Refused` with what went wrong in the guest, `Off` or `TimedOut`.
    pub fn until_up(&self, within: Duration) -> Result<(), ChannelError> {
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        match up.recv_timeout(within) {
            Ok(Frame::Failed(reason)) => Err(ChannelError::Refused(reason)),
            Ok(_) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err(ChannelError::TimedOut(within)),
            Err(RecvTimeoutError::Disconnected) => Err(ChannelError::Off(None)),
        }
    }

    /// Runs a program to its end, with `input` as its standard input. A program that is left running when `within` is
    /// over goes on.
    ///
    /// # Errors
    /// All of [`ChannelError`].
    pub fn run(&self, run: Run, input: &mut dyn Read, within: Duration) -> Result<Output, ChannelError> {
        let deadline = Instant::now() + within;
        let (sender, frames) = mpsc::channel();
        let request = self.open(sender, run)?;
        let outcome = self.send_input(request, input).and_then(|()| collect(&frames, deadline, within));
        if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            waiting.remove(&request);
        }
        outcome
    }

    /// Ends the connection; the guest takes it as the loss of its power.
    pub fn close(&self) {
        // It may have ended by itself.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn open(&self, sender: Sender<Frame>, run: Run) -> Result<u32, ChannelError> {
        let request = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(request, sender),
            None => return Err(ChannelError::Off(None)),
        };
        self.send(request, &Frame::Run(run))?;
        Ok(request)
    }

    fn send(&self, request: u32, frame: &Frame) -> Result<(), ChannelError> {
        let _alone = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write(&self.stream, request, frame).map_err(|error| ChannelError::Off(Some(error)))
    }

    fn send_input(&self, request: u32, input: &mut dyn Read) -> Result<(), ChannelError> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = input.read(&mut piece).map_err(ChannelError::Input)?;
            self.send(request, &Frame::Input(piece[..length].to_vec()))?;
            if length == 0 {
                return Ok(());
            }
        }
    }
}

/// Gives each frame to whoever waits for it, until the stream ends.
fn receive(stream: &UnixStream, waiting: &Waiting) {
    // What is no frame ends the channel like its loss: nothing after it could be trusted.
    while let Ok(Some((request, frame))) = frame::read(stream) {
        if let Some(waiting) = waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            && let Some(sender) = waiting.get(&request)
        {
            // Whoever stopped waiting does not mind.
            let _ = sender.send(frame);
        }
    }
    // Those who wait are told by the end of their channels.
    *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn collect(frames: &Receiver<Frame>, deadline: Instant, within: Duration) -> Result<Output, ChannelError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match frames.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Frame::Output(piece)) => stdout.extend(piece),
            Ok(Frame::ErrorOutput(piece)) => stderr.extend(piece),
            Ok(Frame::Ended(code)) => return Ok(Output::new(Some(code), &stdout, &stderr)),
            Ok(Frame::Refused(reason)) => return Err(ChannelError::Refused(reason)),
            // A guest sends nothing else.
            Ok(Frame::Run(_) | Frame::Input(_) | Frame::Ready | Frame::Failed(_)) => {}
            Err(RecvTimeoutError::Timeout) => return Err(ChannelError::TimedOut(within)),
            Err(RecvTimeoutError::Disconnected) => return Err(ChannelError::Off(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn words(words: &[&str]) -> Run {
        Run { words: words.iter().map(|word| (*word).to_owned()).collect(), environment: BTreeMap::new() }
    }

    #[test]
    fn answers_find_their_requests_and_a_loss_ends_them_all() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                frame::write(&theirs, 0, &Frame::Ready).unwrap();
                let mut runs = Vec::new();
                let mut inputs: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
                let mut complete = 0;
                while complete < 2 {
                    match frame::read(&theirs).unwrap().unwrap() {
                        (request, Frame::Run(run)) => runs.push((request, run.words[0].clone())),
                        (_, Frame::Input(piece)) if piece.is_empty() => complete += 1,
                        (request, Frame::Input(piece)) => inputs.entry(request).or_default().extend(piece),
                        other => panic!("{other:?}"),
                    }
                }
                // In the other order, mixed.
                for (request, word) in runs.iter().rev() {
                    frame::write(&theirs, *request, &Frame::Output(word.clone().into_bytes())).unwrap();
                }
                for (request, _) in &runs {
                    let input = inputs.remove(request).unwrap_or_default();
                    frame::write(&theirs, *request, &Frame::ErrorOutput(input)).unwrap();
                    frame::write(&theirs, *request, &Frame::Ended(3)).unwrap();
                }
                // The third request is never answered: the machine goes off.
                while !matches!(frame::read(&theirs).unwrap(), Some((_, Frame::Run(_)))) {}
                theirs.shutdown(Shutdown::Both).unwrap();
            });
            channel.until_up(SOON).unwrap();
            let first = scope.spawn(|| channel.run(words(&["one"]), &mut &b"input"[..], SOON).unwrap());
            let second = channel.run(words(&["two"]), &mut io::empty(), SOON).unwrap();
            let first = first.join().unwrap();
            assert_eq!((first.code, &first.stdout[..], &first.stderr[..]), (Some(3), "one", "input"));
            assert_eq!((second.code, &second.stdout[..], &second.stderr[..]), (Some(3), "two", ""));
            let lost = channel.run(words(&["three"]), &mut io::empty(), SOON).unwrap_err();
            assert!(matches!(lost, ChannelError::Off(_)), "{lost}");
        });
        assert!(matches!(channel.run(words(&["four"]), &mut io::empty(), SOON), Err(ChannelError::Off(_))));
    }

    #[test]
    fn program_that_takes_too_long_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours).unwrap();
        let late = channel.run(words(&["x"]), &mut io::empty(), Duration::from_millis(1)).unwrap_err();
        assert!(matches!(late, ChannelError::TimedOut(_)), "{late}");
    }
}
