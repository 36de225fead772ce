//! The way from the shim to the log: straight, or in the non-blocking mode by a process that may wait for the disk.
//!
//! Between shim and that process is a pipe, which is the buffer: it takes no memory of either, and holds what is in it
//! also when the shim is killed. What finds it full is lost, counted, and said in the log at that place.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, PidfdFlags};

use super::{Stream, Writer};
use crate::request::LogOptions;
use crate::sys::{self, Fork};

/// A frame no longer than that goes into a pipe as a whole or not at all. Source: `pipe(7)`, `PIPE_BUF`.
const FRAME_MAX: usize = 4096;
/// Time, kind and length of the content.
const HEADER: usize = 8 + 4 + 4;
/// Content of a frame beside streams: a number of bytes that were lost.
const LOST: u32 = 2;
/// Nothing comes after it.
const END: u32 = 3;
/// How long the end of the container waits until what is buffered is on disk. Whoever writes it goes on alone then.
const FLUSH: Duration = Duration::from_secs(1);

/// Where a container's output goes.
#[derive(Debug)]
pub(crate) enum Output {
    Direct(Writer),
    Queued(Queue),
}

#[derive(Debug)]
pub(crate) struct Queue {
    directory: PathBuf,
    options: LogOptions,
    pipe: OwnedFd,
    writer: OwnedFd,
    lost_bytes: u64,
}

enum Pushed {
    Yes,
    Full,
    /// Nobody takes anything any more.
    Gone,
}

impl Output {
    /// Opens the log in `directory`. May make a process, so that there must not be a second thread.
    ///
    /// # Errors
    /// The kernel's; for a buffer that is larger than it makes them too.
    pub fn open(directory: &Path, options: LogOptions) -> io::Result<Self> {
        let writer = Writer::open(directory, options)?;
        let Some(buffer_bytes) = options.non_blocking_buffer_bytes else { return Ok(Self::Direct(writer)) };
        drop(writer);
        let (reader, pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let size = usize::try_from(buffer_bytes).unwrap_or(usize::MAX).max(FRAME_MAX);
        fcntl_setpipe_size(&pipe, size).map_err(|errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("a buffer of {buffer_bytes} bytes cannot be had: {error}"))
        })?;
        match sys::fork_single_threaded()? {
            Fork::Parent(pid) => {
                let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
                let writer = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
                let directory = directory.to_owned();
                Ok(Self::Queued(Queue { directory, options, pipe, writer, lost_bytes: 0 }))
            }
            Fork::Child => {
                // Nothing may run up into the shim's code from here, not even a panic.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    let stdio = [0, 1, 2].map(sys::standard);
                    // What others wait for the end of must not be held open from here.
                    if let Ok([Some(reader)]) = sys::keep_only(stdio, 0, [Some(reader.as_fd())]) {
                        let _ = rustix::thread::set_name(c"rswarm-log");
                        sys::trim_heap();
                        sys::forget_program();
                        let _ = write_all(File::from(reader), directory, options);
                    }
                }));
                sys::exit_now(0)
            }
        }
    }

    /// Takes output as it comes.
    pub fn write(&mut self, stream: Stream, bytes: &[u8], now_unix_nanos: i64) {
        let queue = match self {
            Self::Direct(writer) => return writer.write(stream, bytes, now_unix_nanos),
            Self::Queued(queue) => queue,
        };
        for (at, content) in bytes.chunks(FRAME_MAX - HEADER).enumerate() {
            match queue.take(stream, content, now_unix_nanos) {
                Pushed::Yes => {}
                Pushed::Full => queue.lost_bytes += content.len() as u64,
                Pushed::Gone => {
                    // Somebody has killed it. A log that may block is better than none.
                    let Ok(mut writer) = Writer::open(&queue.directory, queue.options) else { return };
                    if queue.lost_bytes > 0 {
                        writer.note_loss(queue.lost_bytes, now_unix_nanos);
                    }
                    writer.write(stream, &bytes[at * (FRAME_MAX - HEADER)..], now_unix_nanos);
                    *self = Self::Direct(writer);
                    return;
                }
            }
        }
    }

    /// The container has ended: sees to it that its log is complete.
    pub fn finish(&mut self, now_unix_nanos: i64) {
        let queue = match self {
            Self::Direct(writer) => return writer.finish(now_unix_nanos),
            Self::Queued(queue) => queue,
        };
        let loss = queue.lost_bytes.to_ne_bytes();
        let loss = (queue.lost_bytes > 0).then_some((LOST, &loss[..]));
        for (kind, content) in loss.into_iter().chain([(END, &[][..])]) {
            if matches!(queue.push(kind, content, now_unix_nanos), Pushed::Full) {
                wait_for(&queue.pipe, PollFlags::OUT);
                let _ = queue.push(kind, content, now_unix_nanos);
            }
        }
        wait_for(&queue.writer, PollFlags::IN);
    }
}

fn wait_for(fd: &OwnedFd, flags: PollFlags) {
    let limit = Timespec { tv_sec: FLUSH.as_secs() as i64, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(fd, flags)], Some(&limit));
}

impl Queue {
    fn take(&mut self, stream: Stream, content: &[u8], now: i64) -> Pushed {
        if self.lost_bytes > 0 {
            match self.push(LOST, &self.lost_bytes.to_ne_bytes(), now) {
                Pushed::Yes => self.lost_bytes = 0,
                other => return other,
            }
        }
        self.push(stream as u32, content, now)
    }

    fn push(&self, kind: u32, content: &[u8], now: i64) -> Pushed {
        let mut frame = [0u8; FRAME_MAX];
        let len = HEADER + content.len();
        frame[..8].copy_from_slice(&now.to_ne_bytes());
        frame[8..12].copy_from_slice(&kind.to_ne_bytes());
        frame[12..HEADER].copy_from_slice(&(content.len() as u32).to_ne_bytes());
        frame[HEADER..len].copy_from_slice(content);
        match rustix::io::write(&self.pipe, &frame[..len]) {
            Ok(_) => Pushed::Yes,
            Err(Errno::PIPE) => Pushed::Gone,
            Err(_) => Pushed::Full,
        }
    }
}

/// The life of the process that writes: until the shim has gone, and nothing is left of what it said.
fn write_all(mut frames: File, directory: &Path, options: LogOptions) -> io::Result<()> {
    let mut writer = Writer::open(directory, options)?;
    let mut frame = [0u8; FRAME_MAX];
    while frames.read_exact(&mut frame[..HEADER]).is_ok() {
        let [a, b, c, d, e, f, g, h, k0, k1, k2, k3, l0, l1, l2, l3, ..] = frame;
        let now = i64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let kind = u32::from_ne_bytes([k0, k1, k2, k3]);
        let content = &mut frame[..(u32::from_ne_bytes([l0, l1, l2, l3]) as usize).min(FRAME_MAX)];
        frames.read_exact(content)?;
        match kind {
            0 => writer.write(Stream::Stdout, content, now),
            1 => writer.write(Stream::Stderr, content, now),
            END => break,
            _ => {
                let lost = content.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                writer.note_loss(lost, now);
            }
        }
    }
    writer.finish(sys::unix_nanos());
    Ok(())
}
