//! Listening sockets, and answers from the very address that was asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn,
    bind, connect, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use rswarm_types::cluster::Subnet;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The port that name servers have.
pub const PORT: u16 = 53;
/// Room for the queries that arrive while a new map is read.
const RECEIVE_BUFFER: usize = 1 << 20;
/// A query has one name, of 255 bytes at most, and EDNS options; what is longer is cut and thereby malformed.
pub const MAX_QUERY: usize = 4096;

/// One address, by UDP and TCP. Blocking must not happen on either.
#[derive(Debug)]
pub struct Listeners {
    pub udp: std::net::UdpSocket,
    pub tcp: TcpListener,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("failed to listen on `{address}`, UDP and TCP")]
    Socket {
        address: SocketAddrV4,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Namespace(#[from] rswarm_net::NetError),
}

/// Listens in the caller's network namespace, or in the one at `netns`.
///
/// The address need not be there yet. A second resolver may listen beside the first, which is how one takes over from
/// another without a query being refused.
pub fn listen_on(address: SocketAddrV4, netns: Option<&Path>) -> Result<Listeners, BindError> {
    let open = || open(address).map_err(|source| BindError::Socket { address, source });
    match netns {
        Some(path) => rswarm_net::run_in_netns(path, open)?,
        None => open(),
    }
}

fn open(address: SocketAddrV4) -> io::Result<Listeners> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let bound = |kind| -> io::Result<OwnedFd> {
        let fd = socket(AddressFamily::Inet, kind, flags, None)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        setsockopt(&fd, sockopt::ReuseAddr, &(kind == SockType::Stream))?;
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
        Ok(fd)
    };
    let udp = bound(SockType::Datagram)?;
    setsockopt(&udp, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&udp, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    let tcp = bound(SockType::Stream)?;
    listen(&tcp, Backlog::new(128)?)?;
    Ok(Listeners { udp: udp.into(), tcp: tcp.into() })
}

/// Whose questions are heard at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Audience {
    All,
    /// The tasks on a bridge. Its gateway can be reached from elsewhere too, for whom the node is no name server, and
    /// the node itself has no questions.
    Bridge {
        gateway: Ipv4Addr,
        subnet: Subnet,
    },
}

impl Audience {
    pub fn has(self, peer: Ipv4Addr) -> bool {
        match self {
            Self::All => true,
            Self::Bridge { gateway, subnet } => subnet.contains(peer) && peer != gateway,
        }
    }
}

/// A UDP socket in the runtime.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    audience: Audience,
}

/// Who asked, and at which address of ours.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub peer: SocketAddrV4,
    local: libc::in_addr,
}

impl Udp {
    pub fn new(socket: std::net::UdpSocket, audience: Audience) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::from_std(socket)?, audience })
    }

    /// Whether a question from there is to be answered.
    pub fn hears(&self, origin: Origin) -> bool {
        self.audience.has(*origin.peer.ip())
    }

    /// Waits until there is something to receive.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next query, `None` if there is none just now: then [`Udp::readable`] waits for it.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Origin)>> {
        none_yet(self.socket.try_io(Interest::READABLE, || self.receive_raw(buffer)))
    }

    /// The next query, also one of which the runtime has not heard yet.
    pub fn receive_last(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Origin)>> {
        none_yet(self.receive_raw(buffer))
    }

    fn receive_raw(&self, buffer: &mut [u8]) -> io::Result<(usize, Origin)> {
        let mut control = [0; CONTROL_LEN];
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let local = message.cmsgs()?.find_map(|item| match item {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_spec_dst),
            _ => None,
        });
        let peer = message.address.map(SocketAddrV4::from).ok_or(io::ErrorKind::InvalidData)?;
        let any = libc::in_addr { s_addr: u32::from(Ipv4Addr::UNSPECIFIED).to_be() };
        Ok((message.bytes, Origin { peer, local: local.unwrap_or(any) }))
    }

    /// From now on nothing new comes here: of several sockets on one address the kernel passes over those that are
    /// connected. What has come already can still be received.
    pub fn leave(&self) -> io::Result<()> {
        let nobody = SockaddrIn::new(127, 0, 0, 1, 0xffff);
        Ok(connect(self.socket.as_raw_fd(), &nobody)?)
    }

    /// Sends a reply. One that cannot be sent is lost, as on any network: the client asks again.
    pub fn send(&self, reply: &[u8], to: &Origin) {
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: to.local,
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let (parts, peer) = ([IoSlice::new(reply)], SockaddrIn::from(to.peer));
        let _ = sendmsg(self.socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&peer));
    }
}

fn none_yet<T>(received: io::Result<T>) -> io::Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Room for the packet information: its header and the structure, aligned.
const CONTROL_LEN: usize = 64;
