//! Which ports processes of this node listen on.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, socket_with,
    sockopt::{set_ipv6_v6only, set_socket_reuseaddr},
};

use crate::model::{Ip, Place, Protocol};

/// Whether a socket in the network namespace of this thread listens on `port`, and would get what comes to the place
/// `at`, or to any if that is `None`. SCTP is not looked at: the kernel lists it elsewhere, and only while its module
/// is loaded.
pub(crate) fn listens(protocol: Protocol, port: u16, at: Option<&Place>) -> bool {
    // The states in which a socket waits for anyone: TCP_LISTEN; TCP_CLOSE, which is what unconnected UDP shows.
    let (tables, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], "0A"),
        Protocol::Udp => (["udp", "udp6"], "07"),
        Protocol::Sctp => return false,
    };
    // The kernel's table costs milliseconds to read, so it is asked only when the port is not plainly free: an outgoing
    // connection that happens to use the port is in the way of binding, but not in ours.
    if can_bind(protocol, port, at) {
        return false;
    }
    tables.iter().any(|table| {
        fs::read_to_string(format!("/proc/thread-self/net/{table}"))
            .is_ok_and(|text| listed(&text, state, port, at))
    })
}

/// Whether the port could be bound; it is let go at once, and nothing ever listens.
fn can_bind(protocol: Protocol, port: u16, at: Option<&Place>) -> bool {
    let kind = if protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let address = match at {
        Some(Place::Address(address)) => *address,
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let bound = socket_with(family, kind, SocketFlags::CLOEXEC, None).and_then(|socket| {
        set_socket_reuseaddr(&socket, protocol == Protocol::Tcp)?;
        if address.is_ipv6() {
            set_ipv6_v6only(&socket, true)?;
        }
        bind(&socket, &SocketAddr::new(address, port))
    });
    bound.is_ok()
}

/// Looks through a table as in `/proc/net/tcp`: number, local address and port in hexadecimal, remote, state, ….
fn listed(table: &str, state: &str, port: u16, at: Option<&Place>) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let Some((address, digits)) = fields.next().and_then(|field| field.rsplit_once(':')) else {
            return false;
        };
        u16::from_str_radix(digits, 16) == Ok(port)
            && fields.nth(1) == Some(state)
            && at.is_none_or(|at| read(address).is_some_and(|address| hears(address, at)))
    })
}

/// Reads an address as the kernel writes it, in words of the machine's order of bytes. IPv4's mapped form is IPv4.
fn read(hexadecimal: &str) -> Option<IpAddr> {
    let words = (0..hexadecimal.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(hexadecimal.get(at..at + 8)?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ipv6 = || Ipv6Addr::read(&bytes).map(|address| address.to_canonical());
    Ipv4Addr::read(&bytes).map(IpAddr::from).or_else(ipv6)
}

/// Whether a socket on this address gets what comes to `at`.
fn hears(address: IpAddr, at: &Place) -> bool {
    match at {
        Place::Address(at) => {
            let any = address.is_unspecified() || at.is_unspecified();
            // Who listens on `::` hears IPv4 too, as a rule.
            address == *at || address == Ipv6Addr::UNSPECIFIED || any && address.is_ipv4() == at.is_ipv4()
        }
        // What comes from outside is for any address but the node's loopback.
        Place::Interface { interface } => interface == "lo" || !address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000\n\
             2: 00000000000000000000000000000000:0051 00000000000000000000000000000000:0000 0A 0:0\n\
             3: 00000000000000000000000001000000:0052 00000000000000000000000000000000:0000 0A 0:0\n";
        for (port, expected) in [(0x1f90, true), (0x9c40, false), (80, false)] {
            assert_eq!(listed(table, "0A", port, None), expected, "{port}");
        }
        let at = |address: &str| Place::Address(address.parse().unwrap());
        for (port, at, expected) in [
            (0x1f90, at("127.0.0.1"), true),
            (0x1f90, at("192.0.2.1"), false),
            (0x1f90, at("0.0.0.0"), true),
            (0x1f90, at("::"), false),
            (0x51, at("192.0.2.1"), true),
            (0x51, at("fd00::1"), true),
            (0x52, at("::1"), true),
            (0x52, at("fd00::1"), false),
            (0x52, at("::"), true),
            (0x52, at("0.0.0.0"), false),
            (0x1f90, Place::interface("lo"), true),
            (0x1f90, Place::interface("eth0"), false),
            (0x51, Place::interface("eth0"), true),
            (0x52, Place::interface("eth0"), false),
        ] {
            assert_eq!(listed(table, "0A", port, Some(&at)), expected, "{port} {at:?}");
        }
    }
}
