//! The rule set of the namespace that the overlays live in, as data. Read as nft would print it:
//!
//! ```text
//! table inet rswarm {
//!   chain raw         { type filter hook prerouting priority raw
//!                       iifname "rswg" notrack }
//!   chain raw-output  { type filter hook output priority raw
//!                       oifname "rswg" notrack }
//!   chain pin         { type filter hook prerouting priority mangle
//!                       ct direction reply ct mark != 0 meta mark set ct mark
//!                       ct state new iifname "rsup" ct mark set 0xfff
//!                       ct state new iifname @ingress ct mark set ether saddr map @nodes }
//!   chain pin-own     { type route hook output priority mangle
//!                       ct direction reply ct mark != 0 meta mark set ct mark }
//!   chain prerouting  { type nat hook prerouting priority dstnat
//!                       iifname . ip daddr vmap @services
//!                       iifname . ip6 daddr vmap @services6
//!                       iifname "rsup" meta l4proto . th dport vmap @published
//!                       meta nfproto ipv6 iifname "rsup" meta l4proto . th dport vmap @published6 }
//!   chain input       { type filter hook input priority filter
//!                       iifname "rswg" udp dport @tunnels accept
//!                       iifname "rswg" drop
//!                       udp dport @tunnels reject
//!                       ct state established,related accept
//!                       iifname "rsup" meta l4proto tcp reject with tcp reset
//!                       iifname "rsup" meta l4proto != icmp meta l4proto != icmpv6 reject }
//!   chain forward     { type filter hook forward priority filter
//!                       ct state established,related accept
//!                       tcp flags syn tcp option maxseg size set rt mtu
//!                       iifname "rsup" ct status dnat oifname . ip daddr @members accept
//!                       iifname @ingress oifname @ingress ct mark != 0 oifname . ip daddr @members accept
//!                       tcp flags ack iifname . ip saddr @members iifname . oifname @within
//!                         oifname . ip daddr @members accept
//!                       oifname . ip daddr @restricted meta mark set iifname . ip saddr map @callers
//!                       iifname . ip saddr @members iifname . oifname @within
//!                         oifname . ip daddr . meta mark @allowed meta mark set 0 accept
//!                       iifname . ip saddr @members iifname . oifname @within oifname . ip daddr @members
//!                         oifname . ip daddr != @restricted accept
//!                       iifname . ip saddr @members iifname @outbound oifname "rsup" accept
//!                       iifname "rsup" ct status dnat oifname . ip6 daddr @members6 accept
//!                       iifname @ingress oifname @ingress ct mark != 0 oifname . ip6 daddr @members6 accept
//!                       then @restricted6, @callers6, @allowed6, @within and @members6 as above, for ip6
//!                       iifname . ip6 saddr @members6 iifname @outbound oifname "rsup" accept
//!                       meta l4proto tcp reject with tcp reset
//!                       reject }
//!   chain postrouting { type nat hook postrouting priority srcnat
//!                       ip saddr . ip daddr @hairpins snat ip to oifname map @gateways
//!                       ip6 saddr . ip6 daddr @hairpins6 snat ip6 to oifname map @gateways6
//!                       meta l4proto tcp iifname . oifname @within ct status dnat th sport & 0x8000 == 0
//!                           snat ip to :32768-65535
//!                       oifname "rsup" masquerade }
//!   chain service-web-4097      { dnat ip to numgen random mod 2 map { 0 : 10.0.0.2, 1 : 10.0.0.3 } }
//!   chain service6-web-4097     { the same with IPv6 addresses }
//!   chain published6-tcp-8080   { the same with IPv6 addresses }
//!   chain published-tcp-8080    { meta l4proto tcp dnat ip to numgen random mod 1 map { 0 : 10.1.0.2 . 80 } }
//! }
//! table bridge rswarm {
//!   chain prerouting  { iifname "rsx*" accept, then as in the host's, see super::host; for IPv6:
//!                       ether type ip6 icmpv6 type 133-137 drop
//!                       ether type ip6 iifname . ether saddr . ip6 saddr @sources6 accept
//!                       ether type ip6 drop }
//!   chain direct      { type filter hook prerouting priority filter
//!                       iifname "rsx*" ether type ip tcp flags ack th dport & 0x8000 == 0
//!                           ether daddr set iifname . ip daddr map @here accept
//!                       iifname "rsx*" ether type ip tcp flags syn / syn,ack
//!                           iifname . ip daddr map @here notrack
//!                       iifname "rsx*" accept
//!                       ether type ip tcp flags ack ether daddr set ip daddr map @elsewhere accept
//!                       ether type ip tcp flags syn / syn,ack ip daddr map @elsewhere notrack }
//! }
//! ```
//!
//! - TCP by IPv4 between tasks of two nodes is switched, not routed (`direct`): the frame gets the MAC of the other's node,
//!   and there that of the task. Only a connection's first segment is routed, and so checked by `forward`. Answers to a service's address have
//!   to be translated back, so what comes from elsewhere for a port from 32768 on, where clients have theirs, is routed
//!   and tracked as well; a call to a service's address from a lower port gets a higher one (`postrouting`).
//! - A first packet's segment size is enough to clamp: what a task offers is never more than its network carries.
//! - Pinning: a connection from the mesh bears the number of the node by which it entered (0xfff: this one), told by the
//!   MAC from which its first packet came. Its replies bear the same mark, and rules for policy routing send them back
//!   that way, whatever the client's address.
//! - A service without backends has no chain; what is for its address then ends in `forward`, which refuses whatever
//!   is not for a known endpoint. So does what is for a published port, in `input`.
//! - A task that is sent to itself by its own service's address gets the gateway as its peer (`hairpins`), because it
//!   would not take packets from its own address.
//! - A task of a service with `--allow-from` is `restricted`: its own node lets only tasks of `allowed` services through to
//!   it, by which address ever it was called. The mark takes the caller's number from one rule to the next, when the packet
//!   is routed already. Who is `established` stays so, and so does TCP that has begun: of what a restricted task calls
//!   elsewhere only the answers come by here.
//! - VXLANs of encrypted networks have their sockets in here, and take what comes by `rswg` alone: no task can send them
//!   a frame that nobody has looked at. Nothing else is taken from there.
//! - The members of the ingress network cannot call each other: it only carries what entered by a published port.

use super::{
    Set,
    rules::{
        Base, CT_ESTABLISHED, CT_NEW, CT_RELATED, ChainSpec, Ct, Expr, Family, Hook, Layout, Meta, REG_1,
        REG_2, REG_3, Verdict, WORD_1, WORD_5, ether_type, in_set, inet, ipv4, ipv6, name_is, rule,
        source_check, translated, tunnelled,
    },
};
use crate::wireguard::WIREGUARD;

/// The helper's end of the veth to the host.
pub(crate) const UPLINK: &str = "rsup";
/// First letters of the names of the VXLANs.
pub(crate) const TUNNEL: &str = "rsx";
/// Mark of a connection that came in by [`UPLINK`]; nodes have the numbers below.
pub(crate) const OWN_MARK: u32 = 0xfff;

/// Flags of TCP.
const SYN: u8 = 2;
const ACK: u8 = 16;

pub(crate) const SERVICE: &str = "service-";
pub(crate) const SERVICE6: &str = "service6-";
pub(crate) const PUBLISHED: &str = "published-";
pub(crate) const PUBLISHED6: &str = "published6-";

/// The rules of the overlays' namespace.
pub(crate) static HELPER: Layout = Layout {
    sets: &[
        Set::Within,
        Set::Members,
        Set::Members6,
        Set::Outbound,
        Set::Ingress,
        Set::Hairpins,
        Set::Hairpins6,
        Set::Gateways,
        Set::Gateways6,
        Set::Nodes,
        Set::Services,
        Set::Services6,
        Set::Mesh,
        Set::Mesh6,
        Set::Restricted,
        Set::Restricted6,
        Set::Callers,
        Set::Callers6,
        Set::Allowed,
        Set::Allowed6,
        Set::Tunnels,
        Set::Ports,
        Set::Macs,
        Set::Sources,
        Set::Sources6,
        Set::Here,
        Set::Elsewhere,
    ],
    chains,
    balancers: &[SERVICE, SERVICE6, PUBLISHED, PUBLISHED6],
};

fn state(bits: u32) -> [Expr; 2] {
    [Expr::Ct(Ct::State), Expr::AnyOf(bits)]
}

fn l4proto(protocol: i32) -> [Expr; 2] {
    [Expr::Meta { key: Meta::L4proto, to: REG_1 }, Expr::Equal(vec![protocol as u8])]
}

/// The device `key` and the address in the IPv4 header at `offset` are those of an endpoint.
fn member(key: Meta, offset: u32) -> Vec<Expr> {
    vec![
        Expr::Meta { key, to: REG_1 },
        Expr::Payload { base: Base::Network, offset, len: 4, to: REG_2 },
        Expr::Lookup { set: Set::Members, absent: false },
    ]
}

/// The same with the address in the IPv6 header.
fn member6(key: Meta, offset: u32) -> Vec<Expr> {
    vec![
        Expr::Meta { key, to: REG_1 },
        Expr::Payload { base: Base::Network, offset, len: 16, to: REG_2 },
        Expr::Lookup { set: Set::Members6, absent: false },
    ]
}

/// Goes on in the chain of the published port, if there is one.
fn published(set: Set) -> [Expr; 3] {
    [
        Expr::Meta { key: Meta::L4proto, to: REG_1 },
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: WORD_1 },
        Expr::Dispatch(set),
    ]
}

fn pin_reply() -> Vec<Expr> {
    vec![
        Expr::Ct(Ct::Direction),
        Expr::Equal(vec![1]),
        Expr::Ct(Ct::Mark),
        Expr::NotZero,
        Expr::Ct(Ct::Mark),
        Expr::MarkPacket,
    ]
}

fn tcp(flags: Expr) -> Vec<Expr> {
    let byte = Expr::Payload { base: Base::Transport, offset: 13, len: 1, to: REG_1 };
    rule([&l4proto(libc::IPPROTO_TCP), &[byte, flags]])
}

/// The port at `offset` of the transport header is below 32768.
fn below_clients(offset: u32) -> [Expr; 2] {
    let high = Expr::Payload { base: Base::Transport, offset, len: 1, to: REG_1 };
    [high, Expr::NoBitOfByte(0x80)]
}

/// The port range that a client's own port is drawn from.
fn clients() -> Expr {
    Expr::Load([32768u16.to_be_bytes(), [0; 2], u16::MAX.to_be_bytes(), [0; 2]].concat())
}

/// The way of TCP between the tasks of two nodes, past routing.
fn direct() -> ChainSpec {
    let from_elsewhere =
        &[Expr::Meta { key: Meta::Iifname, to: REG_1 }, Expr::Equal(TUNNEL.as_bytes().to_vec())];
    let destination = |to| Expr::Payload { base: Base::Network, offset: 16, len: 4, to };
    let here = &[Expr::Meta { key: Meta::Iifname, to: REG_1 }, destination(REG_2), Expr::Map(Set::Here)];
    let elsewhere = &[destination(REG_1), Expr::Map(Set::Elsewhere)];
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let goes_on = &rule([&ether_type(0x0800), &tcp(Expr::AnyBitOfByte(ACK))]);
    let begins = &rule([&ether_type(0x0800), &begins()]);
    let (send, untracked) = (&[Expr::SendTo], &[Expr::Untracked]);
    ChainSpec {
        family: Family::Bridge,
        name: "direct",
        hook: Some(Hook { kind: "filter", number: 0, priority: -200 }),
        rules: vec![
            rule([from_elsewhere, goes_on, &below_clients(2), here, send, accept]),
            rule([from_elsewhere, begins, here, untracked]),
            rule([from_elsewhere, accept]),
            rule([goes_on, elsewhere, send, accept]),
            rule([begins, elsewhere, untracked]),
        ],
    }
}

/// The first segment of a connection.
fn begins() -> Vec<Expr> {
    let byte = Expr::Payload { base: Base::Transport, offset: 13, len: 1, to: REG_1 };
    rule([&tcp(Expr::AnyBitOfByte(SYN)), &[byte, Expr::NoBitOfByte(ACK)]])
}

fn chains() -> Vec<ChainSpec> {
    use Expr::{Dispatch, Lookup, MarkConnection, Masquerade, Meta as Load, Reset, Snat, Unreachable};
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let from_uplink = &name_is(Meta::Iifname, UPLINK);
    let to_uplink = &name_is(Meta::Oifname, UPLINK);
    let known = &state(CT_ESTABLISHED | CT_RELATED);
    let (source, destination) = (&member(Meta::Iifname, 12), &member(Meta::Oifname, 16));
    let (source6, destination6) = (&member6(Meta::Iifname, 8), &member6(Meta::Oifname, 24));
    // Where the address of the destination was just loaded.
    let unrestricted = &[Lookup { set: Set::Restricted, absent: true }];
    let unrestricted6 = &[Lookup { set: Set::Restricted6, absent: true }];
    let header = |offset, to| Expr::Payload { base: Base::Network, offset, len: 4, to };
    let header6 = |offset, to| Expr::Payload { base: Base::Network, offset, len: 16, to };
    let within = &[
        Load { key: Meta::Iifname, to: REG_1 },
        Load { key: Meta::Oifname, to: REG_2 },
        Lookup { set: Set::Within, absent: false },
    ];
    let drop = &[Expr::Verdict(Verdict::Drop)];
    let from_tunnel = &name_is(Meta::Iifname, WIREGUARD);
    let to_tunnel = &name_is(Meta::Oifname, WIREGUARD);
    let raw = |name, number, device: &[Expr]| {
        inet(name, "filter", number, -300, vec![rule([device, &[Expr::Untracked]])])
    };
    vec![
        raw("raw", libc::NF_INET_PRE_ROUTING, from_tunnel),
        raw("raw-output", libc::NF_INET_LOCAL_OUT, to_tunnel),
        inet(
            "pin",
            "filter",
            libc::NF_INET_PRE_ROUTING,
            -150,
            vec![
                pin_reply(),
                rule([
                    &state(CT_NEW),
                    from_uplink,
                    &[Expr::Load(OWN_MARK.to_ne_bytes().to_vec()), MarkConnection],
                ]),
                rule([
                    &state(CT_NEW),
                    &in_set(Meta::Iifname, Set::Ingress),
                    &[
                        Load { key: Meta::Iiftype, to: REG_1 },
                        Expr::Equal(libc::ARPHRD_ETHER.to_ne_bytes().to_vec()),
                        Expr::Payload { base: Base::Link, offset: 6, len: 6, to: REG_1 },
                        Expr::Map(Set::Nodes),
                        MarkConnection,
                    ],
                ]),
            ],
        ),
        inet("pin-own", "route", libc::NF_INET_LOCAL_OUT, -150, vec![pin_reply()]),
        inet(
            "prerouting",
            "nat",
            libc::NF_INET_PRE_ROUTING,
            -100,
            vec![
                rule([
                    &ipv4(),
                    &[Load { key: Meta::Iifname, to: REG_1 }, header(16, REG_2), Dispatch(Set::Services)],
                ]),
                rule([
                    &ipv6(),
                    &[Load { key: Meta::Iifname, to: REG_1 }, header6(24, REG_2), Dispatch(Set::Services6)],
                ]),
                rule([&ipv4(), from_uplink, &published(Set::Mesh)]),
                rule([&ipv6(), from_uplink, &published(Set::Mesh6)]),
            ],
        ),
        inet(
            "input",
            "filter",
            libc::NF_INET_LOCAL_IN,
            0,
            vec![
                rule([from_tunnel, &tunnelled(), accept]),
                rule([from_tunnel, drop]),
                rule([&tunnelled(), &[Unreachable]]),
                rule([known, accept]),
                rule([from_uplink, &l4proto(libc::IPPROTO_TCP), &[Reset]]),
                rule([
                    from_uplink,
                    &[
                        Load { key: Meta::L4proto, to: REG_1 },
                        Expr::Differs(vec![libc::IPPROTO_ICMP as u8]),
                        Expr::Differs(vec![libc::IPPROTO_ICMPV6 as u8]),
                        Unreachable,
                    ],
                ]),
            ],
        ),
        inet(
            "forward",
            "filter",
            libc::NF_INET_FORWARD,
            0,
            vec![
                rule([known, accept]),
                rule([&tcp(Expr::AnyBitOfByte(SYN)), &[Expr::ClampMss]]),
                rule([&ipv4(), from_uplink, &translated(), destination, accept]),
                rule([
                    &ipv4(),
                    &in_set(Meta::Iifname, Set::Ingress),
                    &in_set(Meta::Oifname, Set::Ingress),
                    &[Expr::Ct(Ct::Mark), Expr::NotZero],
                    destination,
                    accept,
                ]),
                rule([&ipv4(), &tcp(Expr::AnyBitOfByte(ACK)), source, within, destination, accept]),
                rule([
                    &ipv4(),
                    &[
                        Load { key: Meta::Oifname, to: REG_1 },
                        header(16, REG_2),
                        Lookup { set: Set::Restricted, absent: false },
                        Load { key: Meta::Iifname, to: REG_1 },
                        header(12, REG_2),
                        Expr::Map(Set::Callers),
                        Expr::MarkPacket,
                    ],
                ]),
                rule([
                    &ipv4(),
                    source,
                    within,
                    &[
                        Load { key: Meta::Oifname, to: REG_1 },
                        header(16, REG_2),
                        Load { key: Meta::Mark, to: WORD_5 },
                        Lookup { set: Set::Allowed, absent: false },
                        Expr::Load(0u32.to_ne_bytes().to_vec()),
                        Expr::MarkPacket,
                    ],
                    accept,
                ]),
                rule([&ipv4(), source, within, destination, unrestricted, accept]),
                rule([&ipv4(), source, &in_set(Meta::Iifname, Set::Outbound), to_uplink, accept]),
                rule([&ipv6(), from_uplink, &translated(), destination6, accept]),
                rule([
                    &ipv6(),
                    &in_set(Meta::Iifname, Set::Ingress),
                    &in_set(Meta::Oifname, Set::Ingress),
                    &[Expr::Ct(Ct::Mark), Expr::NotZero],
                    destination6,
                    accept,
                ]),
                rule([
                    &ipv6(),
                    &[
                        Load { key: Meta::Oifname, to: REG_1 },
                        header6(24, REG_2),
                        Lookup { set: Set::Restricted6, absent: false },
                        Load { key: Meta::Iifname, to: REG_1 },
                        header6(8, REG_2),
                        Expr::Map(Set::Callers6),
                        Expr::MarkPacket,
                    ],
                ]),
                rule([
                    &ipv6(),
                    source6,
                    within,
                    &[
                        Load { key: Meta::Oifname, to: REG_1 },
                        header6(24, REG_2),
                        Load { key: Meta::Mark, to: REG_3 },
                        Lookup { set: Set::Allowed6, absent: false },
                        Expr::Load(0u32.to_ne_bytes().to_vec()),
                        Expr::MarkPacket,
                    ],
                    accept,
                ]),
                rule([&ipv6(), source6, within, destination6, unrestricted6, accept]),
                rule([&ipv6(), source6, &in_set(Meta::Iifname, Set::Outbound), to_uplink, accept]),
                rule([&l4proto(libc::IPPROTO_TCP), &[Reset]]),
                vec![Unreachable],
            ],
        ),
        inet(
            "postrouting",
            "nat",
            libc::NF_INET_POST_ROUTING,
            100,
            vec![
                rule([
                    &ipv4(),
                    &[
                        header(12, REG_1),
                        header(16, WORD_1),
                        Lookup { set: Set::Hairpins, absent: false },
                        Load { key: Meta::Oifname, to: REG_1 },
                        Expr::Map(Set::Gateways),
                        Snat { ipv6: false },
                    ],
                ]),
                rule([
                    &ipv6(),
                    &[
                        header6(8, REG_1),
                        header6(24, REG_2),
                        Lookup { set: Set::Hairpins6, absent: false },
                        Load { key: Meta::Oifname, to: REG_1 },
                        Expr::Map(Set::Gateways6),
                        Snat { ipv6: true },
                    ],
                ]),
                rule([
                    &l4proto(libc::IPPROTO_TCP),
                    &[
                        Load { key: Meta::Iifname, to: REG_1 },
                        Load { key: Meta::Oifname, to: REG_2 },
                        Lookup { set: Set::Within, absent: false },
                    ],
                    &translated(),
                    &below_clients(0),
                    &[clients(), Expr::SnatPorts],
                ]),
                rule([to_uplink, &[Masquerade]]),
            ],
        ),
        source_check(Some(TUNNEL)),
        direct(),
    ]
}
