//! Those who are shown what the container writes. Each has pipes of its own, which are all the memory a slow one takes:
//! when one is full, its client is told and shown no more. Neither container nor log ever wait for a client.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::is_readable;
use super::protocol::{self, Reply, Request};
use super::streams::Streams;
use crate::error::{Failure, Step};
use crate::log::Stream;
use crate::state::ExitStatus;

/// More at once are refused.
const CLIENTS_MAX: usize = 64;
/// What a client may be behind, by stream.
const BUFFER: usize = 256 << 10;

#[derive(Default)]
pub(super) struct Attached(Vec<Client>);

struct Client {
    socket: OwnedFd,
    /// Standard output and error, as long as there are any and somebody reads.
    outputs: [Option<OwnedFd>; 2],
}

impl Attached {
    /// Shows to the client at `socket` whatever comes from now on.
    pub fn add(&mut self, socket: OwnedFd, streams: &Streams) {
        let made = match self.0.len() {
            CLIENTS_MAX.. => Err(Failure::new("attach", format!("{CLIENTS_MAX} clients are attached"))),
            _ => make_pipes(streams).step(|| "make pipes for a client".to_owned()),
        };
        let (readers, outputs) = match made {
            Ok(made) => made,
            Err(failure) => return drop(protocol::send(&socket, &Reply::Failed(failure))),
        };
        let terminal = streams.terminal;
        let input = if terminal { streams.outputs[0].as_ref() } else { streams.input.as_ref() };
        let descriptors: Vec<BorrowedFd<'_>> = readers.iter().chain(input).map(AsFd::as_fd).collect();
        let reply = Reply::Attached { terminal, input: input.is_some() };
        if protocol::send_with(&socket, &reply, &descriptors).is_ok() {
            self.0.push(Client { socket, outputs });
        }
    }

    pub fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.extend(self.0.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
    }

    /// Forgets clients that have gone. There is nothing else to be heard from them.
    pub fn serve(&mut self) {
        self.0.retain(|client| {
            !is_readable(&client.socket)
                || matches!(protocol::receive::<Request>(&client.socket), Ok(Some(_)))
        });
        self.0.shrink_to(4);
    }

    /// Never waits for anybody.
    pub fn show(&mut self, stream: Stream, bytes: &[u8]) {
        self.0.retain_mut(|client| {
            let output = &mut client.outputs[stream as usize];
            let Some(fd) = output else { return true };
            match rustix::io::write(fd, bytes) {
                Ok(len) if len == bytes.len() => true,
                Err(Errno::PIPE) => {
                    *output = None;
                    true
                }
                _ => {
                    let _ = protocol::send(&client.socket, &Reply::Lagging);
                    false
                }
            }
        });
    }

    /// Nothing more comes of this stream.
    pub fn end(&mut self, stream: Stream) {
        self.0.iter_mut().for_each(|client| client.outputs[stream as usize] = None);
    }

    /// The container has ended.
    pub fn dismiss(&mut self, status: ExitStatus) {
        for client in self.0.drain(..) {
            let _ = protocol::send(&client.socket, &Reply::Exited(status));
        }
    }
}

/// Their reading and writing ends. A stream that has ended is at its end for the client too.
fn make_pipes(streams: &Streams) -> rustix::io::Result<(Vec<OwnedFd>, [Option<OwnedFd>; 2])> {
    let mut readers = Vec::new();
    let mut writers = [None, None];
    let count = if streams.terminal { 1 } else { 2 };
    for (to, output) in writers.iter_mut().zip(&streams.outputs).take(count) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        // The usual size does where more is not to be had.
        let _ = fcntl_setpipe_size(&writer, BUFFER);
        readers.push(reader);
        *to = output.is_some().then_some(writer);
    }
    Ok((readers, writers))
}
