//! Links, addresses and routes by rtnetlink: the few requests a node needs, each one function.
//!
//! Source: Linux `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`, rtnetlink(7).

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::{Attributes, Message, Socket, attributes, find, number, text};
use crate::{
    error::KernelError,
    model::{Cidr, Mac},
};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

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
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_MASTER => link.master = number(value),
            IFLA_LINK => link.peer = number(value),
            IFLA_LINKINFO => {
                link.kind = find(value, IFLA_INFO_KIND).map(text).unwrap_or_default();
                let port = find(value, IFLA_INFO_SLAVE_DATA).unwrap_or_default();
                link.hairpin = find(port, IFLA_BRPORT_MODE) == Some(&[1]);
            }
            _ => {}
        }
    }
    Some(link)
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
    pub namespace: BorrowedFd<'a>,
}

/// Creates a veth pair, both ends down, the far one straight in its namespace.
pub(crate) fn create_veth(socket: &mut Socket, name: &str, peer: &Peer<'_>) -> Result<(), KernelError> {
    let mut far = Attributes::new().text(IFLA_IFNAME, peer.name);
    if let Some(mac) = peer.mac {
        far.push(IFLA_ADDRESS, &mac.0);
    }
    far.push(IFLA_NET_NS_FD, &peer.namespace.as_raw_fd().to_ne_bytes());
    let mut peer_bytes = link_header(0, None).to_vec();
    peer_bytes.extend_from_slice(far.as_bytes());
    let data = Attributes::new().bytes(VETH_INFO_PEER, &peer_bytes);
    let info = Attributes::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &data);
    let attributes = Attributes::new().text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, &info);
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
    socket.execute(&Message::new(libc::RTM_SETLINK, &link_header(0, change.up), attributes))
}

/// Lets a port of a bridge send back what came in by it. The link must be on its bridge already.
pub(crate) fn set_hairpin(socket: &mut Socket, name: &str) -> Result<(), KernelError> {
    let port = Attributes::new().bytes(IFLA_BRPORT_MODE, &[1]);
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

/// `struct ifaddrmsg`.
fn address_header(prefix_len: u8, index: u32) -> [u8; 8] {
    let mut header = [libc::AF_INET as u8, prefix_len, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Adds an IPv4 address; that it is there already is fine.
pub(crate) fn add_address(socket: &mut Socket, index: u32, cidr: Cidr) -> Result<(), KernelError> {
    let mut attributes =
        Attributes::new().bytes(IFA_LOCAL, &cidr.address.octets()).bytes(IFA_ADDRESS, &cidr.address.octets());
    if cidr.prefix_len < 31 {
        attributes.push(IFA_BROADCAST, &cidr.broadcast().octets());
    }
    let header = address_header(cidr.prefix_len, index);
    match socket.execute(&Message::new(libc::RTM_NEWADDR, &header, attributes).flags(NEW)) {
        Err(error) if error.errno == libc::EEXIST => Ok(()),
        other => other,
    }
}

/// Removes an IPv4 address; that it is gone already is fine.
pub(crate) fn delete_address(socket: &mut Socket, index: u32, cidr: Cidr) -> Result<(), KernelError> {
    let attributes = Attributes::new().bytes(IFA_LOCAL, &cidr.address.octets());
    let header = address_header(cidr.prefix_len, index);
    match socket.execute(&Message::new(libc::RTM_DELADDR, &header, attributes)) {
        Err(error) if error.errno == libc::EADDRNOTAVAIL => Ok(()),
        other => other,
    }
}

/// All IPv4 addresses of the namespace, each with the index of its link.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<(u32, Cidr)>, KernelError> {
    let mut found = Vec::new();
    let request = Message::new(libc::RTM_GETADDR, &address_header(0, 0), Attributes::new());
    socket.dump(&request, |payload| {
        let Some(index) = payload.get(4..).and_then(number) else { return };
        let local = payload.get(8..).and_then(|rest| find(rest, IFA_LOCAL));
        if let Some(octets) = local.and_then(|value| <[u8; 4]>::try_from(value).ok()) {
            found.push((index, Cidr { address: Ipv4Addr::from(octets), prefix_len: payload[1] }));
        }
    })?;
    Ok(found)
}

/// `struct rtmsg` of a unicast route in the main table.
fn route_header() -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = libc::RTPROT_STATIC;
    header[6] = libc::RT_SCOPE_UNIVERSE;
    header[7] = libc::RTN_UNICAST;
    header
}

/// Makes `gateway` on link `index` the default route, whatever it was before.
pub(crate) fn set_default_route(
    socket: &mut Socket,
    index: u32,
    gateway: Ipv4Addr,
) -> Result<(), KernelError> {
    let attributes = Attributes::new().u32(RTA_OIF, index).bytes(RTA_GATEWAY, &gateway.octets());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    socket.execute(&Message::new(libc::RTM_NEWROUTE, &route_header(), attributes).flags(flags))
}

/// The gateway of the default route through link `index`, if there is one.
pub(crate) fn default_route(socket: &mut Socket, index: u32) -> Result<Option<Ipv4Addr>, KernelError> {
    let mut found = None;
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    socket.dump(&Message::new(libc::RTM_GETROUTE, &header, Attributes::new()), |payload| {
        let Some(rest) = payload.get(12..) else { return };
        let is_default =
            payload[1] == 0 && payload[4] == libc::RT_TABLE_MAIN && find(rest, RTA_DST).is_none();
        if is_default && find(rest, RTA_OIF).and_then(number) == Some(index) {
            let octets = find(rest, RTA_GATEWAY).and_then(|value| <[u8; 4]>::try_from(value).ok());
            found = found.or(octets.map(Ipv4Addr::from));
        }
    })?;
    Ok(found)
}
