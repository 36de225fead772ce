//! The TUN device and the UDP socket: packets of this node on the one side, datagrams of the others on the other.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
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
    pub udp: Option<UdpSocket>,
}

impl Sides {
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
        self.udp = Some(udp);
        Ok(())
    }

    /// The next packet of this node, `None` if there is none just now.
    pub fn packet(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        none_yet((&self.tun).read(buffer))
    }

    /// The next datagram of another node. One that an earlier one of ours caused an error for is none.
    pub fn datagram(&mut self, buffer: &mut [u8]) -> Option<(usize, SocketAddrV4)> {
        match self.udp.as_ref()?.recv_from(buffer) {
            Ok((length, SocketAddr::V4(from))) => Some((length, from)),
            _ => None,
        }
    }

    pub fn udp(&self) -> Option<BorrowedFd<'_>> {
        self.udp.as_ref().map(AsFd::as_fd)
    }
}

/// What cannot be sent is lost, as on any network.
impl Wire for Sides {
    fn send(&mut self, to: SocketAddrV4, datagram: &[u8]) {
        if let Some(udp) = &self.udp {
            let _ = udp.send_to(datagram, to);
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
