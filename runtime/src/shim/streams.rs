//! The shim's side of the container's standard descriptors.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Failure, Step};
use crate::run;

pub(super) struct Streams {
    /// Standard output and error, as long as anybody has them open; or the terminal's master alone. They do not block.
    pub outputs: [Option<OwnedFd>; 2],
    /// Held open for those who attach, so that none of them ends it. A terminal's input is its output.
    pub input: Option<OwnedFd>,
    pub terminal: bool,
    /// Where the terminal's master comes.
    console: Option<OwnedFd>,
}

/// The container's side. What is not there is `/dev/null`.
pub(super) struct Ends {
    pub stdio: [Option<OwnedFd>; 3],
    pub console: Option<OwnedFd>,
}

impl Streams {
    pub fn make(terminal: bool, stdin: bool) -> Result<(Self, Ends), Failure> {
        let mut streams = Self { outputs: [None, None], input: None, terminal, console: None };
        let mut ends = Ends { stdio: [None, None, None], console: None };
        if terminal {
            let kind = SocketType::STREAM;
            let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
            let (ours, theirs) = pair.step(|| "make a pair of sockets".to_owned())?;
            (streams.console, ends.console) = (Some(ours), Some(theirs));
            return Ok((streams, ends));
        }
        let step = || "make a pipe for the container's output".to_owned();
        for (output, end) in streams.outputs.iter_mut().zip(&mut ends.stdio[1..]) {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).step(step)?;
            rustix::io::ioctl_fionbio(&reader, true).step(step)?;
            (*output, *end) = (Some(reader), Some(writer));
        }
        if stdin {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).step(step)?;
            (ends.stdio[0], streams.input) = (Some(reader), Some(writer));
        }
        Ok((streams, ends))
    }

    /// To be called when the container has been created.
    pub fn receive_terminal(&mut self) -> Result<(), Failure> {
        let Some(console) = self.console.take() else { return Ok(()) };
        let step = || "receive the container's terminal".to_owned();
        let master = run::receive_master(&console).step(step)?;
        rustix::io::ioctl_fionbio(&master, true).step(step)?;
        self.outputs[0] = Some(master);
        Ok(())
    }
}
