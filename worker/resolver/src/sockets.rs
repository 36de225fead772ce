//! Listening sockets, and answers from the very address that was asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrStorage, bind, connect, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::netmap::MapBridge;
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
        address: SocketAddr,
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
pub fn listen_on(address: SocketAddr, netns: Option<&Path>) -> Result<Listeners, BindError> {
    let open = || open(address).map_err(|source| BindError::Socket { address, source });
    match netns {
        Some(path) => rswarm_net::run_in_netns(path, open)?,
        None => open(),
    }
}

fn open(address: SocketAddr) -> io::Result<Listeners> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let bound = |kind| -> io::Result<OwnedFd> {
        let fd = socket(family, kind, flags, None)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        setsockopt(&fd, sockopt::ReuseAddr, &(kind == SockType::Stream))?;
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
        if address.is_ipv6() {
            // Beside the socket of the other family.
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(fd)
    };
    let udp = bound(SockType::Datagram)?;
    match address {
        SocketAddr::V4(_) => setsockopt(&udp, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
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
    /// The same of one without IPv4.
    Bridge6 {
        gateway: Ipv6Addr,
        subnet: Subnet6,
    },
}

impl Audience {
    pub fn of(bridge: &MapBridge) -> Self {
        match bridge.ipv6.filter(|ipv6| ipv6.alone) {
            Some(ipv6) => Self::Bridge6 { gateway: ipv6.gateway, subnet: ipv6.subnet },
            None => Self::Bridge { gateway: bridge.gateway, subnet: bridge.subnet },
        }
    }

    pub fn has(self, peer: IpAddr) -> bool {
        match (self, peer) {
            (Self::All, _) => true,
            (Self::Bridge { gateway, subnet }, IpAddr::V4(peer)) => subnet.contains(peer) && peer != gateway,
            (Self::Bridge6 { gateway, subnet }, IpAddr::V6(peer)) => subnet.contains(peer) && peer != gateway,
            _ => false,
        }
    }

    /// The gateway of the bridge.
    pub fn gateway(self) -> Option<IpAddr> {
        match self {
            Self::All => None,
            Self::Bridge { gateway, .. } => Some(gateway.into()),
            Self::Bridge6 { gateway, .. } => Some(gateway.into()),
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
    pub peer: SocketAddr,
    local: IpAddr,
}

impl Udp {
    pub fn new(socket: std::net::UdpSocket, audience: Audience) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::from_std(socket)?, audience })
    }

    /// Whether a question from there is to be answered.
    pub fn hears(&self, origin: Origin) -> bool {
        self.audience.has(origin.peer.ip())
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
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let local = message.cmsgs()?.find_map(|item| match item {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into())
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
            _ => None,
        });
        let peer = message.address.and_then(socket_address).ok_or(io::ErrorKind::InvalidData)?;
        Ok((message.bytes, Origin { peer, local: local.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) }))
    }

    /// From now on nothing new comes here: of several sockets on one address the kernel passes over those that are
    /// connected. What has come already can still be received.
    pub fn leave(&self) -> io::Result<()> {
        let loopback = match self.socket.local_addr()? {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Ok(connect(self.socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(loopback, 0xffff)))?)
    }

    /// Sends a reply. One that cannot be sent is lost, as on any network: the client asks again.
    pub fn send(&self, reply: &[u8], to: &Origin) {
        let (parts, peer) = ([IoSlice::new(reply)], SockaddrStorage::from(to.peer));
        let send = |control: &ControlMessage| {
            let flags = MsgFlags::MSG_DONTWAIT;
            let _ =
                sendmsg(self.socket.as_raw_fd(), &parts, std::slice::from_ref(control), flags, Some(&peer));
        };
        match to.local {
            IpAddr::V4(local) => send(&ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(local).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            })),
            IpAddr::V6(local) => send(&ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: local.octets() },
                ipi6_ifindex: 0,
            })),
        }
    }
}

fn socket_address(from: SockaddrStorage) -> Option<SocketAddr> {
    let ipv4 = || from.as_sockaddr_in().map(|ipv4| SocketAddrV4::from(*ipv4).into());
    ipv4().or_else(|| from.as_sockaddr_in6().map(|ipv6| SocketAddrV6::from(*ipv6).into()))
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
