//! Where packets go, by rtnetlink: routes and rules, neighbours, and the forwarding tables of bridges and VXLANs.
//!
//! Source: Linux `include/uapi/linux/{rtnetlink,neighbour,fib_rules}.h`, rtnetlink(7).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Attributes, Message, Socket, find, number};
use crate::{
    error::KernelError,
    model::{Cidr, Ip, Mac},
};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const FRA_PRIORITY: u16 = 6;
const FRA_MARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_MASK: u16 = 16;
const FR_ACT_TO_TABLE: u8 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_REACHABLE: u16 = 0x02;
const NUD_NOARP: u16 = 0x40;
const RTM_SETNEIGHTBL: u16 = 67;
const NDTA_NAME: u16 = 1;
const NDTA_PARMS: u16 = 6;
const NDTPA_IFINDEX: u16 = 1;
const NDTPA_PROXY_DELAY: u16 = 13;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const NTF_MASTER: u8 = 0x04;

const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

fn ip(value: &[u8]) -> Option<IpAddr> {
    Ipv4Addr::read(value).map(IpAddr::from).or_else(|| Ipv6Addr::read(value).map(IpAddr::from))
}

/// Family and bytes.
fn parts(address: IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET, address.bytes()),
        IpAddr::V6(address) => (libc::AF_INET6, address.bytes()),
    }
}

fn fine_if(result: Result<(), KernelError>, errno: i32) -> Result<(), KernelError> {
    match result {
        Err(error) if error.errno == errno => Ok(()),
        other => other,
    }
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
    socket.execute(&Message::new(libc::RTM_NEWROUTE, &route_header(), attributes).flags(REPLACE))
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

/// A route to elsewhere in some table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route<A = Ipv4Addr> {
    pub table: u32,
    /// `0.0.0.0/0` or `::/0` is the default route.
    pub to: Cidr<A>,
    pub via: Option<A>,
    pub link: u32,
}

/// All unicast routes of a family in the namespace.
pub(crate) fn routes<A: Ip>(socket: &mut Socket) -> Result<Vec<Route<A>>, KernelError> {
    let mut found = Vec::new();
    let mut header = [0; 12];
    header[0] = A::FAMILY;
    socket.dump(&Message::new(libc::RTM_GETROUTE, &header, Attributes::new()), |payload| {
        let Some(rest) = payload.get(12..) else { return };
        if payload[0] != A::FAMILY || payload[7] != libc::RTN_UNICAST {
            return;
        }
        found.push(Route {
            table: find(rest, RTA_TABLE).and_then(number).unwrap_or(u32::from(payload[4])),
            to: Cidr {
                address: find(rest, RTA_DST).and_then(A::read).unwrap_or(A::UNSPECIFIED),
                prefix_len: payload[1],
            },
            via: find(rest, RTA_GATEWAY).and_then(A::read),
            link: find(rest, RTA_OIF).and_then(number).unwrap_or(0),
        });
    })?;
    Ok(found)
}

fn route_message<A: Ip>(kind: u16, route: &Route<A>) -> Message {
    const ON_LINK: u32 = 4;
    let mut header = route_header();
    (header[0], header[1], header[4]) = (A::FAMILY, route.to.prefix_len, 0);
    header[8..12].copy_from_slice(&ON_LINK.to_ne_bytes());
    let mut attributes = Attributes::new().u32(RTA_TABLE, route.table).u32(RTA_OIF, route.link);
    if route.to.prefix_len > 0 {
        attributes.push(RTA_DST, &route.to.address.bytes());
    }
    if let Some(via) = route.via {
        attributes.push(RTA_GATEWAY, &via.bytes());
    }
    Message::new(kind, &header, attributes)
}

/// Sets a route of a table. Its gateway need not be in a subnet of the link.
pub(crate) fn set_route<A: Ip>(socket: &mut Socket, route: &Route<A>) -> Result<(), KernelError> {
    socket.execute(&route_message(libc::RTM_NEWROUTE, route).flags(REPLACE))
}

/// Deletes a route; that it is gone already is fine.
pub(crate) fn delete_route<A: Ip>(socket: &mut Socket, route: &Route<A>) -> Result<(), KernelError> {
    fine_if(socket.execute(&route_message(libc::RTM_DELROUTE, route)), libc::ESRCH)
}

/// Sends what is for `to` by a link, whatever its mark: the table of the node's own addresses is looked at first.
pub(crate) fn set_local_way(socket: &mut Socket, to: Cidr, link: u32) -> Result<(), KernelError> {
    let mut header = route_header();
    (header[1], header[4]) = (to.prefix_len, libc::RT_TABLE_LOCAL);
    let attributes = Attributes::new().bytes(RTA_DST, &to.address.octets()).u32(RTA_OIF, link);
    socket.execute(&Message::new(libc::RTM_NEWROUTE, &header, attributes).flags(REPLACE))
}

/// A route or a rule of a kind that nobody but a stranger makes, as the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stranger {
    pub is_rule: bool,
    /// `struct rtmsg` or `struct fib_rule_hdr`, and attributes: enough to have it deleted.
    told: Vec<u8>,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (header, rest) = self.told.split_at(12);
        let address = find(rest, RTA_DST).and_then(ip);
        let table = find(rest, RTA_TABLE).and_then(number).unwrap_or(u32::from(header[4]));
        match (self.is_rule, address) {
            (true, _) => {
                let priority = find(rest, FRA_PRIORITY).and_then(number).unwrap_or(0);
                write!(f, "somebody's rule of priority {priority} to table {table}")
            }
            (false, Some(address)) => {
                write!(f, "somebody's route to {address}/{} in table {table}", header[1])
            }
            (false, None) => write!(f, "somebody's route to everywhere in table {table}"),
        }
    }
}

/// Routes other than default ones and those that follow from addresses, and rules that do not look at the mark but for
/// those that each namespace has.
pub(crate) fn strangers(socket: &mut Socket) -> Result<Vec<Stranger>, KernelError> {
    /// Priorities of the rules that lead to the tables `local`, `main` and `default`.
    const OF_THE_KERNEL: [u32; 3] = [0, 32766, 32767];
    const RTM_F_CLONED: u32 = 0x200;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; 12];
        header[0] = family as u8;
        socket.dump(&Message::new(libc::RTM_GETROUTE, &header, Attributes::new()), |payload| {
            let Some(rest) = payload.get(12..).filter(|_| i32::from(payload[0]) == family) else { return };
            let table = find(rest, RTA_TABLE).and_then(number).unwrap_or(u32::from(payload[4]));
            let cloned = number(&payload[8..12]).unwrap_or(0) & RTM_F_CLONED != 0;
            let is_default = payload[1] == 0 && payload[7] == libc::RTN_UNICAST;
            let follows = payload[5] == libc::RTPROT_KERNEL || table == u32::from(libc::RT_TABLE_LOCAL);
            if !(cloned || is_default || follows) {
                found.push(Stranger { is_rule: false, told: payload.to_vec() });
            }
        })?;
    }
    socket.dump(&Message::new(libc::RTM_GETRULE, &[0; 12], Attributes::new()), |payload| {
        let Some(rest) = payload.get(12..) else { return };
        let priority = find(rest, FRA_PRIORITY).and_then(number).unwrap_or(0);
        let of_kernel = OF_THE_KERNEL.contains(&priority) && payload[1..3] == [0, 0];
        if find(rest, FRA_MASK).is_none() && !of_kernel {
            found.push(Stranger { is_rule: true, told: payload.to_vec() });
        }
    })?;
    Ok(found)
}

/// Has a stranger's route or rule deleted; that it is gone already is fine.
pub(crate) fn delete_stranger(socket: &mut Socket, stranger: &Stranger) -> Result<(), KernelError> {
    let kind = if stranger.is_rule { libc::RTM_DELRULE } else { libc::RTM_DELROUTE };
    let deleted = socket.execute(&Message::new(kind, &stranger.told, Attributes::new()));
    fine_if(fine_if(deleted, libc::ESRCH), libc::ENOENT)
}

/// "Packets with this mark look into this table": a rule for policy routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MarkRule {
    /// Of IPv6; else of IPv4.
    pub ipv6: bool,
    pub priority: u32,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
}

fn rule_message(kind: u16, rule: &MarkRule) -> Message {
    let mut header = [0; 12];
    header[0] = if rule.ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    header[7] = FR_ACT_TO_TABLE;
    let attributes = Attributes::new()
        .u32(FRA_PRIORITY, rule.priority)
        .u32(FRA_MARK, rule.mark)
        .u32(FRA_MASK, rule.mask)
        .u32(FRA_TABLE, rule.table);
    Message::new(kind, &header, attributes)
}

/// Adds a rule; that it is there already is fine.
pub(crate) fn add_rule(socket: &mut Socket, rule: &MarkRule) -> Result<(), KernelError> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    fine_if(socket.execute(&rule_message(libc::RTM_NEWRULE, rule).flags(flags)), libc::EEXIST)
}

/// Deletes a rule; that it is gone already is fine.
pub(crate) fn delete_rule(socket: &mut Socket, rule: &MarkRule) -> Result<(), KernelError> {
    fine_if(socket.execute(&rule_message(libc::RTM_DELRULE, rule)), libc::ENOENT)
}

/// All rules that look at the mark, of both families.
pub(crate) fn rules(socket: &mut Socket) -> Result<Vec<MarkRule>, KernelError> {
    let mut found = Vec::new();
    socket.dump(&Message::new(libc::RTM_GETRULE, &[0; 12], Attributes::new()), |payload| {
        let Some(rest) = payload.get(12..) else { return };
        let value = |kind| find(rest, kind).and_then(number);
        if let Some(mask) = value(FRA_MASK) {
            found.push(MarkRule {
                ipv6: i32::from(payload[0]) == libc::AF_INET6,
                priority: value(FRA_PRIORITY).unwrap_or(0),
                mark: value(FRA_MARK).unwrap_or(0),
                mask,
                table: value(FRA_TABLE).unwrap_or(u32::from(payload[4])),
            });
        }
    })?;
    Ok(found)
}

/// `struct ndmsg`.
fn neighbour_header(family: i32, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// Says for good at which MAC an address is found.
pub(crate) fn set_neighbour(
    socket: &mut Socket,
    link: u32,
    address: IpAddr,
    mac: Mac,
) -> Result<(), KernelError> {
    let (family, bytes) = parts(address);
    let header = neighbour_header(family, link, NUD_PERMANENT, 0);
    let attributes = Attributes::new().bytes(NDA_DST, &bytes).bytes(NDA_LLADDR, &mac.0);
    socket.execute(&Message::new(libc::RTM_NEWNEIGH, &header, attributes).flags(REPLACE))
}

/// Forgets a neighbour; that it is gone already is fine.
pub(crate) fn delete_neighbour(socket: &mut Socket, link: u32, address: IpAddr) -> Result<(), KernelError> {
    let (family, bytes) = parts(address);
    let header = neighbour_header(family, link, 0, 0);
    let attributes = Attributes::new().bytes(NDA_DST, &bytes);
    fine_if(socket.execute(&Message::new(libc::RTM_DELNEIGH, &header, attributes)), libc::ENOENT)
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub link: u32,
    pub address: IpAddr,
    pub mac: Mac,
    /// Set for good, not found out or set for a time.
    pub lasting: bool,
}

/// All neighbours of both families whose MAC is known, but for groups.
pub(crate) fn neighbours(socket: &mut Socket) -> Result<Vec<Neighbour>, KernelError> {
    const NUD_INCOMPLETE: u16 = 0x01;
    const NUD_FAILED: u16 = 0x20;
    const GROUP: u8 = 1;
    let mut found = Vec::new();
    let header = neighbour_header(libc::AF_UNSPEC, 0, 0, 0);
    socket.dump(&Message::new(libc::RTM_GETNEIGH, &header, Attributes::new()), |payload| {
        let Some(rest) = payload.get(12..) else { return };
        let state = u16::from_ne_bytes([payload[8], payload[9]]);
        let mac = find(rest, NDA_LLADDR).and_then(|value| value.try_into().ok()).map(Mac);
        if let (0, Some(link), Some(address), Some(mac)) = (
            state & (NUD_INCOMPLETE | NUD_FAILED),
            number(&payload[4..]),
            find(rest, NDA_DST).and_then(ip),
            mac.filter(|mac| mac.0[0] & GROUP == 0),
        ) {
            found.push(Neighbour { link, address, mac, lasting: state == NUD_PERMANENT });
        }
    })?;
    Ok(found)
}

/// Has a link answer at once for addresses that are not its own. The kernel's default is a random wait of up to 0.8 s, and a
/// new link takes it from the initial namespace, whatever this one's says.
pub(crate) fn answer_at_once(socket: &mut Socket, link: u32) -> Result<(), KernelError> {
    let parameters =
        Attributes::new().u32(NDTPA_IFINDEX, link).bytes(NDTPA_PROXY_DELAY, &0_u64.to_ne_bytes());
    let table = Attributes::new().text(NDTA_NAME, "arp_cache").nest(NDTA_PARMS, &parameters);
    // `struct ndtmsg`.
    let header = [libc::AF_INET as u8, 0, 0, 0];
    socket.execute(&Message::new(RTM_SETNEIGHTBL, &header, table))
}

/// An entry of a forwarding table: frames for `mac` leave by `link`, and if that is a VXLAN, for the node at `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forward {
    pub link: u32,
    pub mac: Mac,
    /// `Some` in the table of a VXLAN, `None` in that of the bridge that `link` is a port of.
    pub to: Option<Ipv4Addr>,
}

fn forward_message(kind: u16, forward: &Forward) -> Message {
    let (state, flags) = match forward.to {
        Some(_) => (NUD_NOARP | NUD_PERMANENT, NTF_SELF),
        None => (NUD_NOARP | NUD_REACHABLE, NTF_MASTER),
    };
    let header = neighbour_header(libc::AF_BRIDGE, forward.link, state, flags);
    let mut attributes = Attributes::new().bytes(NDA_LLADDR, &forward.mac.0);
    if let Some(to) = forward.to {
        attributes.push(NDA_DST, &to.octets());
    }
    Message::new(kind, &header, attributes)
}

/// Sets an entry, whatever it was before.
pub(crate) fn set_forward(socket: &mut Socket, forward: &Forward) -> Result<(), KernelError> {
    socket.execute(&forward_message(libc::RTM_NEWNEIGH, forward).flags(REPLACE))
}

/// Deletes an entry; that it is gone already is fine.
pub(crate) fn delete_forward(socket: &mut Socket, forward: &Forward) -> Result<(), KernelError> {
    fine_if(socket.execute(&forward_message(libc::RTM_DELNEIGH, forward)), libc::ENOENT)
}

/// How an entry of a forwarding table was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// As by [`set_forward`].
    Set,
    /// By a bridge for the MAC of a port, or as if it were such: frames are for this node itself.
    Local,
    /// Learned, or set for a time.
    Passing,
}

/// All entries of all tables but the groups that links listen to.
pub(crate) fn forwards(socket: &mut Socket) -> Result<Vec<(Forward, Origin)>, KernelError> {
    const NDA_MASTER: u16 = 9;
    let mut found = Vec::new();
    let header = neighbour_header(libc::AF_BRIDGE, 0, 0, 0);
    socket.dump(&Message::new(libc::RTM_GETNEIGH, &header, Attributes::new()), |payload| {
        let Some(rest) = payload.get(12..) else { return };
        let state = u16::from_ne_bytes([payload[8], payload[9]]);
        let to = find(rest, NDA_DST).and_then(Ipv4Addr::read);
        let mac = find(rest, NDA_LLADDR).and_then(|value| value.try_into().ok()).map(Mac);
        let in_table = to.is_some() || find(rest, NDA_MASTER).is_some();
        let origin = match (to, state & NUD_PERMANENT != 0, state & NUD_NOARP != 0) {
            (None, true, _) => Origin::Local,
            (None, false, true) | (Some(_), true, _) => Origin::Set,
            _ => Origin::Passing,
        };
        if let (true, Some(link), Some(mac)) = (in_table, number(&payload[4..]), mac) {
            found.push((Forward { link, mac, to }, origin));
        }
    })?;
    Ok(found)
}
