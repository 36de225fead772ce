//! What is said over a shim's socket: one JSON value per packet, requests and replies in turn. Some bring descriptors.
//!
//! A connection that closes means the shim has ended; its last word is then in the container's directory.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::state::{ExitStatus, ProcessEnd, SOCKET_FILE, State, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    State,
    /// Run the program. Answered when exec has succeeded or failed.
    Start,
    /// Send a signal to the first process, or to all.
    Kill {
        signal: i32,
        all: bool,
    },
    /// Answered when the container has ended.
    Watch,
    /// Show what the container writes from now on. From then on the connection is about that.
    Attach,
    /// Run one more process. The descriptor that comes along is a file with an [`crate::ExecRequest`]; this says only
    /// what the shim itself must know of it. From then on the connection is the session's.
    Exec {
        terminal: bool,
    },
    /// Send a signal to the process of the session.
    Signal {
        signal: i32,
    },
    /// Kill everything and leave, without caring for the exit status. Answered by the end of the connection.
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The first word after a successful creation.
    Created {
        pid: i32,
    },
    State(State),
    Done,
    Failed(Failure),
    WrongState(Status),
    Exited(ExitStatus),
    /// Along comes what is read from for standard output and error, or for the output of the `terminal`. Then, if there
    /// is `input`, what is written to for it: for a terminal that is its master, which is not to be read from.
    Attached {
        terminal: bool,
        input: bool,
    },
    /// What is shown was not read in time, so the rest of it is not shown any more.
    Lagging,
    /// The session's process runs. Along come what is written to for its standard input and read from for its standard
    /// output and error; or the master of its terminal.
    Running {
        pid: i32,
    },
    /// The session's process has ended.
    Ended(ProcessEnd),
}

/// No message is longer.
const MESSAGE_MAX: usize = 16 << 10;

/// Descriptors that come with one message at most.
const DESCRIPTORS_MAX: usize = 3;

pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T) -> io::Result<()> {
    send_with(socket, message, &[])
}

/// Sends a message and copies of `descriptors`. Waits for nobody: who does not read what it has asked for is like one
/// that has gone.
pub(crate) fn send_with<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// The next message; `None` when the other side has closed.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<T>> {
    receive_with(socket).map(|received| received.map(|(message, _)| message))
}

/// The next message and the descriptors that came with it; `None` when the other side has closed.
pub(crate) fn receive_with<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = [0u8; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            // CONNRESET: the other side closed with something of ours unread. That is said once; its last word, or
            // the end, comes with the next call.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if len == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let message = serde_json::from_slice(&buffer[..len]).map_err(io::Error::other)?;
    Ok(Some((message, descriptors)))
}

/// Listens in the container's directory.
pub(crate) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    with_address(directory, |address| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&socket, address)?;
        rustix::net::listen(&socket, 64)?;
        Ok(socket)
    })
}

/// Connects to the shim of the container in `directory`. Neither that nor any answer takes longer than `limit`: one
/// that was stopped does not even accept connections, once enough of them wait.
pub(crate) fn connect(directory: &Path, limit: Duration) -> io::Result<OwnedFd> {
    with_address(directory, |address| {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(limit))?;
        rustix::net::connect(&socket, address)?;
        Ok(socket)
    })
}

/// The socket's address by way of the directory's descriptor, because socket paths end at 107 bytes and data roots
/// may be deep.
fn with_address<T>(
    directory: &Path,
    act: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>,
) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_FILE}", handle.as_raw_fd()))?;
    Ok(act(&address)?)
}
