//! The TUN device and the UDP socket: packets of this node on the one side, datagrams of the others on the other.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::Path,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use rswarm_net::{NetError, run_in_netns};
use rustix::{
    fs::{Mode, OFlags},
    ioctl::{Setter, ioctl, opcode},
    net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force},
};

use crate::engine::Wire;

/// Room for what arrives while others have the processor.
const SOCKET_BUFFER: usize = 4 << 20;
/// Datagrams that the kernel cuts out of one. Source: `UDP_MAX_SEGMENTS` of Linux before 6.9.
const SEGMENTS_MAX: usize = 64;
/// Bytes that fit in one datagram, and so in all that are cut out of it.
const DATAGRAM_MAX: usize = 65_507;

/// `struct ifreq`, as far as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes the device `name` in the network namespace at `netns`. It is gone when the file is closed.
pub fn open_tun(netns: &Path, name: &str) -> Result<io::Result<File>, NetError> {
    run_in_netns(netns, || {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
        let end = name.len().min(libc::IFNAMSIZ - 1);
        request.name[..end].copy_from_slice(&name.as_bytes()[..end]);
        // SAFETY: `TUNSETIFF` takes a pointer to a `struct ifreq`, which `InterfaceRequest` has the size and layout of.
        unsafe {
            let set = Setter::<{ opcode::write::<libc::c_int>(b'T', 202) }, InterfaceRequest>::new(request);
            ioctl(&file, set)?;
        }
        Ok(File::from(file))
    })
}

/// Both sides.
pub struct Sides {
    pub tun: File,
    udp: Option<UdpSocket>,
    waiting: Waiting,
}

/// Datagrams for one node, of one length but for the last, that the kernel takes at once.
struct Waiting {
    to: SocketAddrV4,
    length: usize,
    bytes: Vec<u8>,
    /// Whether the kernel and the way to the others can do that.
    at_once: bool,
}

/// What was received: datagrams of one length but for the last.
pub struct Received {
    pub from: SocketAddrV4,
    pub bytes: usize,
    pub length: usize,
}

impl Sides {
    pub fn new(tun: File) -> Self {
        let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let waiting = Waiting { to: nobody, length: 0, bytes: Vec::with_capacity(1 << 16), at_once: true };
        Self { tun, udp: None, waiting }
    }

    /// Opens the port; that of before stays if that fails.
    pub fn listen(&mut self, port: u16) -> io::Result<()> {
        let now = self.udp.as_ref().and_then(|udp| udp.local_addr().ok()).map(|at| at.port());
        if now == Some(port) {
            return Ok(());
        }
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        udp.set_nonblocking(true)?;
        // Without privilege the default stays.
        let _ = set_socket_recv_buffer_size_force(&udp, SOCKET_BUFFER);
        let _ = set_socket_send_buffer_size_force(&udp, SOCKET_BUFFER);
        // Kernels that cannot do that give them one by one.
        let _ = setsockopt(&udp, sockopt::UdpGroSegment, &true);
        self.udp = Some(udp);
        Ok(())
    }

    /// The next packet of this node, `None` if there is none just now.
    pub fn packet(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        none_yet((&self.tun).read(buffer))
    }

    /// The next datagrams of another node. What is an error of one sent earlier is none.
    pub fn datagrams(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let udp = self.udp.as_ref()?;
        let mut control = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrIn>(udp.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
        let together = message.cmsgs().ok()?.find_map(|item| match item {
            ControlMessageOwned::UdpGroSegments(length) => usize::try_from(length).ok(),
            _ => None,
        });
        let (from, bytes) = (message.address.map(SocketAddrV4::from)?, message.bytes);
        Some(Received { from, bytes, length: together.filter(|length| *length > 0).unwrap_or(bytes.max(1)) })
    }

    pub fn udp(&self) -> Option<BorrowedFd<'_>> {
        self.udp.as_ref().map(AsFd::as_fd)
    }

    /// Sends what waits for more of its kind.
    pub fn flush(&mut self) {
        let Waiting { to, length, bytes, at_once } = &mut self.waiting;
        if let Some(udp) = &self.udp
            && !bytes.is_empty()
        {
            if *at_once && bytes.len() > *length {
                let segment = u16::try_from(*length).unwrap_or(u16::MAX);
                let control = [ControlMessage::UdpGsoSegments(&segment)];
                let (parts, peer) = ([IoSlice::new(bytes)], SockaddrIn::from(*to));
                let flags = MsgFlags::MSG_DONTWAIT;
                match sendmsg(udp.as_raw_fd(), &parts, &control, flags, Some(&peer)) {
                    // The link is too narrow for one of them, or its driver cannot add checksums.
                    Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EIO | nix::errno::Errno::EMSGSIZE) => {
                        *at_once = false;
                    }
                    _ => bytes.clear(),
                }
            }
            for datagram in bytes.chunks((*length).max(1)) {
                let _ = udp.send_to(datagram, *to);
            }
        }
        bytes.clear();
    }
}

/// What cannot be sent is lost, as on any network.
impl Wire for Sides {
    fn send(&mut self, to: SocketAddrV4, datagram: &[u8]) {
        let waiting = &self.waiting;
        let fits = waiting.to == to
            && datagram.len() <= waiting.length
            && waiting.bytes.len() + datagram.len() <= DATAGRAM_MAX.min(waiting.length * SEGMENTS_MAX);
        if !fits {
            self.flush();
        }
        let waiting = &mut self.waiting;
        if waiting.bytes.is_empty() {
            (waiting.to, waiting.length) = (to, datagram.len());
        }
        waiting.bytes.extend_from_slice(datagram);
        // A shorter one ends the row.
        if datagram.len() < waiting.length {
            self.flush();
        }
    }

    fn deliver(&mut self, packet: &[u8]) {
        let _ = (&self.tun).write(packet);
    }
}

fn none_yet<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides() -> (Sides, SocketAddrV4) {
        let mut sides = Sides::new(File::open("/dev/null").unwrap());
        sides.listen(0).unwrap();
        let port = sides.udp.as_ref().unwrap().local_addr().unwrap().port();
        (sides, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    }

    fn received(sides: &mut Sides, count: usize) -> Vec<Vec<u8>> {
        let (mut found, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        sides.udp.as_ref().unwrap().set_nonblocking(true).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while found.len() < count && std::time::Instant::now() < end {
            let Some(Received { bytes, length, .. }) = sides.datagrams(&mut buffer) else {
                std::thread::yield_now();
                continue;
            };
            found.extend(buffer[..bytes].chunks(length).map(<[u8]>::to_vec));
        }
        found
    }

    #[test]
    fn what_is_sent_at_once_arrives_as_it_was_and_in_its_order() {
        let ((mut from, _), (mut to, at), (mut other, elsewhere)) = (sides(), sides(), sides());
        let lengths = [1400, 1400, 1400, 700, 1400, 32, 900, 1400, 1400];
        let sent: Vec<Vec<u8>> = (0_u8..)
            .zip(lengths)
            .map(|(n, length)| vec![n; length])
            .chain((0..200).map(|n| vec![n; 1000]))
            .collect();
        for at_once in [true, false] {
            from.waiting.at_once = at_once;
            for (n, datagram) in sent.iter().enumerate() {
                from.send(at, datagram);
                if n == 4 {
                    from.send(elsewhere, b"in between");
                }
            }
            from.flush();
            assert_eq!(received(&mut to, sent.len()), sent, "at once: {at_once}");
            assert_eq!(received(&mut other, 1), [b"in between"]);
            assert_eq!(from.waiting.at_once, at_once, "this kernel can do that");
        }
    }
}
