//! Links and addresses by rtnetlink: the few requests a node needs, each one function.
//!
//! Source: Linux `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`, rtnetlink(7).

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use super::{Attributes, Message, Socket, attributes, find, number, text};
use crate::{
    error::KernelError,
    model::{Cidr, Cidr6, Ip, Mac},
};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const NEW: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// A network interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    pub alias: Option<String>,
    pub up: bool,
    pub mac: Option<Mac>,
    pub master: Option<u32>,
    /// For a veth: the index of its other end, in that end's own namespace.
    pub peer: Option<u32>,
    /// For a port of a bridge: whether it may send back what came in by it.
    pub hairpin: bool,
    pub mtu: u32,
    /// For a bridge: neither spanning tree nor multicast snooping.
    pub plain: bool,
    /// Whether packets pass: the other end is up too, and as a port of a bridge it forwards.
    pub ready: bool,
    /// For a port of a bridge: as [`close_port`] makes it.
    pub closed: bool,
    /// For a port of a bridge: whether it exchanges no frames with other such ports.
    pub isolated: bool,
    pub tunnel: Option<Tunnel>,
}

/// A VXLAN: network number, own address and UDP port of the packets it sends and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tunnel {
    pub vni: u32,
    pub local: Ipv4Addr,
    pub port: u16,
}

/// `struct ifinfomsg`; `up` sets or clears `IFF_UP`, `None` leaves it.
fn link_header(index: u32, up: Option<bool>) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(up) = up {
        let flag = libc::IFF_UP as u32;
        header[8..12].copy_from_slice(&(if up { flag } else { 0 }).to_ne_bytes());
        header[12..16].copy_from_slice(&flag.to_ne_bytes());
    }
    header
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let index = number(payload.get(4..)?)?;
    let flags = number(payload.get(8..)?)?;
    let mut link = Link {
        index,
        name: String::new(),
        kind: String::new(),
        alias: None,
        up: flags & libc::IFF_UP as u32 != 0,
        mac: None,
        master: None,
        peer: None,
        hairpin: false,
        mtu: 0,
        plain: false,
        ready: false,
        closed: false,
        isolated: false,
        tunnel: None,
    };
    const FORWARDING: &[u8] = &[3];
    const UP: &[u8] = &[6];
    let (mut running, mut forwarding) = (false, true);
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_MASTER => link.master = number(value),
            IFLA_OPERSTATE => running = value == UP,
            IFLA_MTU => link.mtu = number(value).unwrap_or(0),
            IFLA_LINK => link.peer = number(value),
            IFLA_LINKINFO => {
                link.kind = find(value, IFLA_INFO_KIND).map(text).unwrap_or_default();
                let port = find(value, IFLA_INFO_SLAVE_DATA).unwrap_or_default();
                link.hairpin = find(port, IFLA_BRPORT_MODE) == Some(&[1]);
                forwarding = find(port, IFLA_BRPORT_STATE).is_none_or(|state| state == FORWARDING);
                link.closed = CLOSED.iter().all(|(kind, wanted)| find(port, *kind) == Some(&[*wanted]));
                link.isolated = find(port, IFLA_BRPORT_ISOLATED) == Some(&[1]);
                let data = find(value, IFLA_INFO_DATA).unwrap_or_default();
                link.plain = find(data, IFLA_BR_STP_STATE).and_then(number) == Some(0)
                    && find(data, IFLA_BR_MCAST_SNOOPING) == Some(&[0]);
                link.tunnel = (link.kind == "vxlan").then(|| read_tunnel(data)).flatten();
            }
            _ => {}
        }
    }
    link.ready = running && forwarding;
    Some(link)
}

/// A VXLAN that learns is not one of ours.
fn read_tunnel(data: &[u8]) -> Option<Tunnel> {
    let port = <[u8; 2]>::try_from(find(data, IFLA_VXLAN_PORT)?).ok()?;
    let local = <[u8; 4]>::try_from(find(data, IFLA_VXLAN_LOCAL)?).ok()?;
    (find(data, IFLA_VXLAN_LEARNING) == Some(&[0])).then_some(Tunnel {
        vni: find(data, IFLA_VXLAN_ID).and_then(number)?,
        local: Ipv4Addr::from(local),
        port: u16::from_be_bytes(port),
    })
}

/// The link called `name`, or `None`.
pub(crate) fn link_by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, KernelError> {
    get_link(socket, 0, Attributes::new().text(IFLA_IFNAME, name))
}

/// The link with this index, or `None`.
pub(crate) fn link_by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, KernelError> {
    get_link(socket, index, Attributes::new())
}

fn get_link(socket: &mut Socket, index: u32, which: Attributes) -> Result<Option<Link>, KernelError> {
    match socket.get(&Message::new(libc::RTM_GETLINK, &link_header(index, None), which)) {
        Ok(payload) => Ok(read_link(&payload)),
        Err(error) if error.errno == libc::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links of the namespace.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, KernelError> {
    let mut found = Vec::new();
    let request = Message::new(libc::RTM_GETLINK, &link_header(0, None), Attributes::new());
    socket.dump(&request, |payload| found.extend(read_link(payload)))?;
    Ok(found)
}

/// Creates a bridge, still down. The address is given, because a bridge without one takes that of its lowest port
/// and so changes it when containers come and go.
pub(crate) fn create_bridge(socket: &mut Socket, name: &str, mac: Mac) -> Result<(), KernelError> {
    let info = Attributes::new().text(IFLA_INFO_KIND, "bridge");
    let attributes =
        Attributes::new().text(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, &mac.0).nest(IFLA_LINKINFO, &info);
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes).flags(NEW))
}

/// The far end of a veth pair to be created.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// Of both ends; the kernel's choice if `None`.
    pub mtu: Option<u32>,
    pub namespace: BorrowedFd<'a>,
}

/// Creates a veth pair, both ends down, the far one straight in its namespace.
pub(crate) fn create_veth(socket: &mut Socket, name: &str, peer: &Peer<'_>) -> Result<(), KernelError> {
    let mut far = Attributes::new().text(IFLA_IFNAME, peer.name);
    if let Some(mac) = peer.mac {
        far.push(IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = peer.mtu {
        far.push(IFLA_MTU, &mtu.to_ne_bytes());
    }
    far.push(IFLA_NET_NS_FD, &peer.namespace.as_raw_fd().to_ne_bytes());
    let mut peer_bytes = link_header(0, None).to_vec();
    peer_bytes.extend_from_slice(far.as_bytes());
    let data = Attributes::new().bytes(VETH_INFO_PEER, &peer_bytes);
    let info = Attributes::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &data);
    let mut attributes = Attributes::new().text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, &info);
    if let Some(mtu) = peer.mtu {
        attributes.push(IFLA_MTU, &mtu.to_ne_bytes());
    }
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes).flags(NEW))
}

/// Creates a VXLAN, still down, in `namespace`. Its UDP socket stays in the namespace of `socket`.
pub(crate) fn create_vxlan(
    socket: &mut Socket,
    name: &str,
    tunnel: &Tunnel,
    mtu: u32,
    namespace: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    let data = Attributes::new()
        .u32(IFLA_VXLAN_ID, tunnel.vni)
        .bytes(IFLA_VXLAN_LOCAL, &tunnel.local.octets())
        .bytes(IFLA_VXLAN_LEARNING, &[0])
        .bytes(IFLA_VXLAN_PORT, &tunnel.port.to_be_bytes());
    let info = Attributes::new().text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, &data);
    let attributes = Attributes::new()
        .text(IFLA_IFNAME, name)
        .u32(IFLA_MTU, mtu)
        .u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32)
        .nest(IFLA_LINKINFO, &info);
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes).flags(NEW))
}

/// Gives a VXLAN another address to send from; nothing else about it changes.
pub(crate) fn set_vxlan_source(socket: &mut Socket, name: &str, source: Ipv4Addr) -> Result<(), KernelError> {
    let data = Attributes::new().bytes(IFLA_VXLAN_LOCAL, &source.octets());
    let info = Attributes::new().text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, &data);
    let attributes = Attributes::new().text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, &info);
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes))
}

/// Creates a WireGuard link, still down, in `namespace`. Its UDP socket will be in the namespace of `socket`.
pub(crate) fn create_wireguard(
    socket: &mut Socket,
    name: &str,
    namespace: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    let info = Attributes::new().text(IFLA_INFO_KIND, "wireguard");
    let attributes = Attributes::new()
        .text(IFLA_IFNAME, name)
        .u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32)
        .nest(IFLA_LINKINFO, &info);
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes).flags(NEW))
}

/// What to change on a link; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkChange<'a> {
    pub up: Option<bool>,
    pub alias: Option<&'a str>,
    /// Index of the bridge to belong to.
    pub master: Option<u32>,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
}

/// Changes the link called `name`.
pub(crate) fn set_link(socket: &mut Socket, name: &str, change: &LinkChange<'_>) -> Result<(), KernelError> {
    let mut attributes = Attributes::new().text(IFLA_IFNAME, name);
    if let Some(alias) = change.alias {
        attributes.push(IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(master) = change.master {
        attributes.push(IFLA_MASTER, &master.to_ne_bytes());
    }
    if let Some(mac) = change.mac {
        attributes.push(IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = change.mtu {
        attributes.push(IFLA_MTU, &mtu.to_ne_bytes());
    }
    socket.execute(&Message::new(libc::RTM_SETLINK, &link_header(0, change.up), attributes))
}

/// Lets a port of a bridge send back what came in by it; `isolated`, it exchanges no frames with other such ports. The link
/// must be on its bridge already.
pub(crate) fn set_hairpin(socket: &mut Socket, name: &str, isolated: bool) -> Result<(), KernelError> {
    set_port(socket, name, &[(IFLA_BRPORT_MODE, 1), (IFLA_BRPORT_ISOLATED, u8::from(isolated))])
}

/// What [`close_port`] sets: nothing is learned from the port, and it gets only what is addressed to somebody who is
/// known to be behind it.
const CLOSED: [(u16, u8); 4] = [
    (IFLA_BRPORT_LEARNING, 0),
    (IFLA_BRPORT_UNICAST_FLOOD, 0),
    (IFLA_BRPORT_MCAST_FLOOD, 0),
    (IFLA_BRPORT_BCAST_FLOOD, 0),
];

/// Closes a port of a bridge to everything but what is sent to a known address behind it; `isolated`, also to what comes
/// from other isolated ports.
pub(crate) fn close_port(socket: &mut Socket, name: &str, isolated: bool) -> Result<(), KernelError> {
    let flags: Vec<_> = CLOSED.into_iter().chain([(IFLA_BRPORT_ISOLATED, u8::from(isolated))]).collect();
    set_port(socket, name, &flags)
}

/// Switches spanning tree and multicast snooping of a bridge off.
pub(crate) fn make_plain(socket: &mut Socket, name: &str) -> Result<(), KernelError> {
    let data = Attributes::new().u32(IFLA_BR_STP_STATE, 0).bytes(IFLA_BR_MCAST_SNOOPING, &[0]);
    let info = Attributes::new().text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, &data);
    let attributes = Attributes::new().text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, &info);
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes))
}

fn set_port(socket: &mut Socket, name: &str, flags: &[(u16, u8)]) -> Result<(), KernelError> {
    let port = flags.iter().fold(Attributes::new(), |port, (kind, value)| port.bytes(*kind, &[*value]));
    let info = Attributes::new().text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, &port);
    let attributes = Attributes::new().text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, &info);
    socket.execute(&Message::new(libc::RTM_NEWLINK, &link_header(0, None), attributes))
}

/// Deletes the link called `name`; of a veth pair both ends go. Returns whether it was there.
pub(crate) fn delete_link(socket: &mut Socket, name: &str) -> Result<bool, KernelError> {
    let request =
        Message::new(libc::RTM_DELLINK, &link_header(0, None), Attributes::new().text(IFLA_IFNAME, name));
    match socket.execute(&request) {
        Ok(()) => Ok(true),
        Err(error) if error.errno == libc::ENODEV => Ok(false),
        Err(error) => Err(error),
    }
}

/// `struct ifaddrmsg`. An IPv6 address counts at once: nobody else can have one that was given to us (`IFA_F_NODAD`).
fn address_header<A: Ip>(prefix_len: u8, index: u32) -> [u8; 8] {
    let flags = if i32::from(A::FAMILY) == libc::AF_INET6 { libc::IFA_F_NODAD as u8 } else { 0 };
    let mut header = [A::FAMILY, prefix_len, flags, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Adds an address; that it is there already is fine.
pub(crate) fn add_address(socket: &mut Socket, index: u32, cidr: Cidr) -> Result<(), KernelError> {
    let mut more = Attributes::new();
    if cidr.prefix_len < 31 {
        more.push(IFA_BROADCAST, &cidr.broadcast().octets());
    }
    add(socket, index, cidr, more)
}

/// Adds an IPv6 address; that it is there already is fine.
pub(crate) fn add_address6(socket: &mut Socket, index: u32, cidr: Cidr6) -> Result<(), KernelError> {
    add(socket, index, cidr, Attributes::new())
}

fn add<A: Ip>(
    socket: &mut Socket,
    index: u32,
    cidr: Cidr<A>,
    attributes: Attributes,
) -> Result<(), KernelError> {
    let bytes = cidr.address.bytes();
    let attributes = attributes.bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes);
    let header = address_header::<A>(cidr.prefix_len, index);
    match socket.execute(&Message::new(libc::RTM_NEWADDR, &header, attributes).flags(NEW)) {
        Err(error) if error.errno == libc::EEXIST => Ok(()),
        other => other,
    }
}

/// Gives a link these IPv4 addresses and no others. One whose prefix changes is there all the time, and so is what goes on
/// by it.
pub(crate) fn set_addresses(
    socket: &mut Socket,
    index: u32,
    wanted: &BTreeSet<Cidr>,
) -> Result<(), KernelError> {
    let add_all = |socket: &mut Socket| wanted.iter().try_for_each(|one| add_address(socket, index, *one));
    add_all(socket)?;
    let all = addresses(socket)?.into_iter().filter(|(of, _)| *of == index).map(|(_, cidr)| cidr);
    let surplus: Vec<Cidr> = all.filter(|cidr| !wanted.contains(cidr)).collect();
    for cidr in &surplus {
        delete_address(socket, index, *cidr)?;
    }
    // The first address of a subnet may have taken the others there along.
    if surplus.is_empty() { Ok(()) } else { add_all(socket) }
}

/// Removes an address with just this prefix; that it is gone already is fine.
pub(crate) fn delete_address<A: Ip>(
    socket: &mut Socket,
    index: u32,
    cidr: Cidr<A>,
) -> Result<(), KernelError> {
    // By IFA_LOCAL alone the kernel would take whichever prefix comes first.
    let bytes = cidr.address.bytes();
    let attributes = Attributes::new().bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes);
    let header = address_header::<A>(cidr.prefix_len, index);
    match socket.execute(&Message::new(libc::RTM_DELADDR, &header, attributes)) {
        Err(error) if error.errno == libc::EADDRNOTAVAIL => Ok(()),
        other => other,
    }
}

/// All IPv4 addresses of the namespace, each with the index of its link.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<(u32, Cidr)>, KernelError> {
    addresses_of(socket)
}

/// All IPv6 addresses of the namespace, each with the index of its link, but for those that links give themselves.
pub(crate) fn addresses6(socket: &mut Socket) -> Result<Vec<(u32, Cidr6)>, KernelError> {
    let all = addresses_of::<Ipv6Addr>(socket)?;
    Ok(all.into_iter().filter(|(_, cidr)| !cidr.address.is_unicast_link_local()).collect())
}

fn addresses_of<A: Ip>(socket: &mut Socket) -> Result<Vec<(u32, Cidr<A>)>, KernelError> {
    let mut found = Vec::new();
    let mut header = address_header::<A>(0, 0);
    header[2] = 0;
    socket.dump(&Message::new(libc::RTM_GETADDR, &header, Attributes::new()), |payload| {
        // Where there is no IPv6, the kernel tells of the family that it has.
        if payload.first() != Some(&A::FAMILY) {
            return;
        }
        let Some(index) = payload.get(4..).and_then(number) else { return };
        // IPv6 names an address that has no peer only once.
        let rest = payload.get(8..).unwrap_or_default();
        let address = find(rest, IFA_LOCAL).or_else(|| find(rest, IFA_ADDRESS)).and_then(A::read);
        if let Some(address) = address {
            found.push((index, Cidr { address, prefix_len: payload[1] }));
        }
    })?;
    Ok(found)
}
