//! Whoever taps the wire between the hosts, and sees all that is there to be read.

use std::{mem::MaybeUninit, num::NonZeroU32, os::fd::OwnedFd, path::Path};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with,
    sockopt::set_socket_recv_buffer_size_force,
};

use crate::{KernelError, NetError, run_in_netns};

/// Room for what passes between two looks.
const BUFFER: usize = 64 << 20;
/// Longer ones are cut.
const FRAME_MAX: usize = 16 << 10;

/// A look at every frame on the links of a network namespace, from the moment it is made.
#[derive(Debug)]
pub struct Witness(OwnedFd);

impl Witness {
    /// # Errors
    /// `Namespace`, or `Kernel` without privilege.
    pub fn new(netns: &Path) -> Result<Self, NetError> {
        let opened = run_in_netns(netns, || {
            let all = NonZeroU32::new(u32::from((libc::ETH_P_ALL as u16).to_be())).map(Protocol::from_raw);
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, all)?;
            set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            Ok(socket)
        })?;
        let failed = |error: rustix::io::Errno| {
            NetError::kernel("tap the wire", KernelError { errno: error.raw_os_error(), reason: None })
        };
        opened.map(Self).map_err(failed)
    }

    /// The frames since it was asked last.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![MaybeUninit::uninit(); FRAME_MAX];
        std::iter::from_fn(|| {
            let ((frame, _), _) = recv(&self.0, &mut buffer[..], RecvFlags::empty()).ok()?;
            Some(frame.to_vec())
        })
        .collect()
    }

    /// Whether any of `frames` has this in it.
    pub fn reads(frames: &[Vec<u8>], text: &str) -> bool {
        frames.iter().any(|frame| frame.windows(text.len()).any(|part| part == text.as_bytes()))
    }

    /// How many of `frames` are UDP over IPv4 to this port.
    pub fn datagrams_to(frames: &[Vec<u8>], port: u16) -> usize {
        let is = |frame: &&Vec<u8>| {
            frame.get(12..14) == Some(&[8, 0])
                && frame.get(23) == Some(&17)
                && frame.get(36..38) == Some(&port.to_be_bytes())
        };
        frames.iter().filter(is).count()
    }
}
