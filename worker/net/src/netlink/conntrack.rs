//! Forgetting tracked connections, so that no flow goes on to an endpoint that is gone.
//!
//! Source: Linux `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use super::{Attributes, Message, Socket, attributes, find};
use crate::{error::KernelError, model::Protocol};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const GET_STATS: u16 = SUBSYSTEM | 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Which connections are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flows {
    /// Those with this address at either end, before or after translation.
    Of(IpAddr),
    /// Those first sent to this port of any address.
    To(Protocol, u16),
}

impl Flows {
    fn matches(&self, original: &[u8], reply: &[u8]) -> bool {
        match self {
            Self::Of(address) => [original, reply].iter().any(|tuple| {
                let ends = find(tuple, CTA_TUPLE_IP).unwrap_or_default();
                attributes(ends).any(|(_, value)| match address {
                    IpAddr::V4(address) => value == address.octets(),
                    IpAddr::V6(address) => value == address.octets(),
                })
            }),
            Self::To(protocol, port) => find(original, CTA_TUPLE_PROTO).is_some_and(|end| {
                find(end, CTA_PROTO_NUM) == Some(&[protocol.number()])
                    && find(end, CTA_PROTO_DST_PORT) == Some(&port.to_be_bytes())
            }),
        }
    }
}

/// `struct nfgenmsg` for both families.
const HEADER: [u8; 4] = [libc::AF_UNSPEC as u8, 0, 0, 0];

/// Proves that the kernel answers conntrack requests.
pub(crate) fn probe(socket: &mut Socket) -> Result<(), KernelError> {
    socket.dump(&Message::new(GET, &HEADER, Attributes::new()), |_| {})
}

/// How many connections are tracked in the namespace; `None` if the kernel does not say.
fn tracked(socket: &mut Socket) -> Option<u32> {
    let answer = socket.get(&Message::new(GET_STATS, &HEADER, Attributes::new())).ok()?;
    find(answer.get(4..)?, CTA_STATS_GLOBAL_ENTRIES).and_then(super::be_number)
}

/// Deletes every tracked connection that any of `which` means; returns how many.
///
/// Walks the whole table once, unless nothing is tracked in this namespace: the kernel of Debian 12 cannot delete by one
/// address. The table is that of all namespaces, so a walk over 262,144 empty places takes some 3 ms.
pub(crate) fn forget(socket: &mut Socket, which: &[Flows]) -> Result<usize, KernelError> {
    if which.is_empty() || tracked(socket) == Some(0) {
        return Ok(0);
    }
    let mut doomed = Vec::new();
    socket.dump(&Message::new(GET, &HEADER, Attributes::new()), |payload| {
        let Some(rest) = payload.get(4..) else { return };
        let (Some(original), Some(reply)) = (find(rest, CTA_TUPLE_ORIG), find(rest, CTA_TUPLE_REPLY)) else {
            return;
        };
        if which.iter().any(|flows| flows.matches(original, reply)) {
            // The id keeps us from deleting a newer connection between the same ends.
            let mut key = Attributes::new().bytes(CTA_TUPLE_ORIG | super::NESTED, original);
            for kind in [CTA_ID, CTA_ZONE] {
                if let Some(value) = find(rest, kind) {
                    key.push(kind, value);
                }
            }
            doomed.push(Message::new(DELETE, &[payload[0], 0, 0, 0], key));
        }
    })?;
    let mut forgotten = 0;
    for message in &doomed {
        match socket.execute(message) {
            Ok(()) => forgotten += 1,
            Err(error) if error.errno == libc::ENOENT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}
