//! The terminal of a container's process: made in the container's own devpts, its master sent to whoever attends it.
//!
//! The container may have put anything in place of its `/dev/pts`, so what is opened there is checked, and its other
//! end is asked of the kernel and never looked up by name.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize};

use super::root::Root;
use crate::error::{Failure, Step};

/// What goes with the master over the socket, as runc has it.
const NAME: &[u8] = b"/dev/ptmx";
/// Source: linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Makes the terminal and has it as this process's standard descriptors and controlling terminal.
pub(super) fn set_up(
    root: &Root,
    socket: BorrowedFd<'_>,
    keeps_lines: bool,
    size: Option<(u16, u16)>,
    console: bool,
    uid: u32,
) -> Result<(), Failure> {
    let step = || "make the terminal in `/dev/pts`".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = root.open(Path::new("/dev/pts/ptmx"), flags, Mode::empty()).step(step)?;
    if rustix::fs::fstatfs(&master).step(step)?.f_type as i64 != DEVPTS_SUPER_MAGIC {
        return Err(Failure::new(step(), "no devpts is mounted there"));
    }
    rustix::pty::unlockpt(&master).step(step)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let end = rustix::pty::ioctl_tiocgptpeer(&master, flags).step(step)?;
    if uid != 0 {
        rustix::fs::fchown(&end, Some(Uid::from_raw(uid)), None::<Gid>).step(step)?;
    }
    if keeps_lines {
        let mut modes = rustix::termios::tcgetattr(&end).step(step)?;
        modes.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&end, OptionalActions::Now, &modes).step(step)?;
    }
    if let Some((columns, rows)) = size.filter(|size| *size != (0, 0)) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&end, size)
            .step(|| format!("set the terminal's size to {columns} × {rows}"))?;
    }
    if console {
        root.console(Path::new("/dev/console"), std::os::fd::AsFd::as_fd(&end))?;
    }
    send(socket, std::os::fd::AsFd::as_fd(&master))
        .step(|| "send the terminal over the console socket".to_owned())?;
    let step = || "take the terminal as standard descriptors".to_owned();
    rustix::stdio::dup2_stdin(&end).step(step)?;
    rustix::stdio::dup2_stdout(&end).step(step)?;
    rustix::stdio::dup2_stderr(&end).step(step)?;
    rustix::process::ioctl_tiocsctty(&end).step(step)
}

fn send(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(rustix::io::Errno::NOMEM);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(NAME)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// What [`set_up`] has sent, at the other end of the console socket.
pub(crate) fn receive_master(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut name = [0u8; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.flatten().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
