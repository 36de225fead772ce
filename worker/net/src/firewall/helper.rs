//! The rule set of the namespace that the overlays live in, as data. Read as nft would print it:
//!
//! ```text
//! table inet rswarm {
//!   chain raw         { type filter hook prerouting priority raw
//!                       iiftype none notrack }
//!   chain raw-output  { type filter hook output priority raw
//!                       oifname "rswg" notrack }
//!   chain pin         { type filter hook prerouting priority mangle
//!                       ct direction reply ct mark != 0 meta mark set ct mark }
//!   chain pin-own     { type route hook output priority mangle
//!                       ct direction reply ct mark != 0 meta mark set ct mark }
//!   chain prerouting  { type nat hook prerouting priority dstnat
//!                       iifname "rsup" ct mark set 0xfff
//!                       iifname @ingress ct mark set ether saddr map @nodes
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
//!                       numgen random mod 32 == 0 jump learn, see super::learned
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
//!   chain prerouting  { iifname "rsx*" goto from-elsewhere, then as in the host's, see super::host, but that IPv4
//!                       of tasks goes on in to-elsewhere }
//!   chain from-elsewhere { ether type != ip accept
//!                       meta l4proto != tcp accept
//!                       tcp flags ack / fin,syn,rst,ack goto from-middle
//!                       tcp flags ack th dport & 0x8000 == 0 ether daddr set iifname . ip daddr map @here accept
//!                       tcp flags syn / syn,ack iifname . ip daddr map @here notrack accept
//!                       then what is learned, see super::learned }
//!   chain from-middle { th dport & 0x8000 == 0 ether daddr set iifname . ip daddr map @here accept
//!                       then what is learned }
//!   chain to-elsewhere { meta l4proto != tcp accept
//!                       tcp flags ack / fin,syn,rst,ack goto to-middle
//!                       tcp flags ack ether daddr set ip daddr map @elsewhere accept
//!                       tcp flags syn / syn,ack ip daddr map @elsewhere notrack accept
//!                       then what is learned }
//!   chain to-middle   { ether daddr set ip daddr map @elsewhere accept
//!                       then what is learned }
//! }
//! ```
//!
//! - TCP by IPv4 between tasks of two nodes is switched, not routed (`from-elsewhere` and `to-elsewhere`): the frame gets
//!   the MAC of the other's node, and there that of the task. Only a connection's first segment is routed, and so checked
//!   by `forward`. Answers of a service's address have to be translated back, so what comes from elsewhere for a port from
//!   32768 on, where clients have theirs, is routed and tracked as well; a call to a service's address from a lower port
//!   gets a higher one (`postrouting`).
//! - A first packet's segment size is enough to clamp: what a task offers is never more than its network carries.
//! - Of the chains for translation only the first packet of a connection is shown, and of those in front every one; so
//!   what is to be noted of a connection is noted there.
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
    learned::{self, Way},
    rules::{
        Base, CT_ESTABLISHED, CT_RELATED, ChainSpec, Ct, Expr, Family, Layout, Meta, Onward, REG_1, REG_2,
        REG_3, Verdict, WORD_1, WORD_5, ether_type_not, in_set, inet, ipv4, ipv6, l4proto, l4proto_not,
        name_is, rule, source_check, state, translated, tunnelled,
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
pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

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
        Set::Calls,
        Set::Answers,
        Set::Meshed,
    ],
    chains,
    balancers: &[SERVICE, SERVICE6, PUBLISHED, PUBLISHED6],
};

/// A version of IP: where its header has the addresses, and the sets that such addresses are in.
struct Version {
    ipv6: bool,
    source: u32,
    destination: u32,
    len: u32,
    /// Where the next part of a key goes that ends with an address in [`REG_2`].
    behind: u32,
    /// Where the second of two addresses goes, the first being in [`REG_1`].
    second: u32,
    members: Set,
    restricted: Set,
    callers: Set,
    allowed: Set,
    services: Set,
    mesh: Set,
    hairpins: Set,
    gateways: Set,
}

const IPV4: Version = Version {
    ipv6: false,
    source: 12,
    destination: 16,
    len: 4,
    behind: WORD_5,
    second: WORD_1,
    members: Set::Members,
    restricted: Set::Restricted,
    callers: Set::Callers,
    allowed: Set::Allowed,
    services: Set::Services,
    mesh: Set::Mesh,
    hairpins: Set::Hairpins,
    gateways: Set::Gateways,
};

const IPV6: Version = Version {
    ipv6: true,
    source: 8,
    destination: 24,
    len: 16,
    behind: REG_3,
    second: REG_2,
    members: Set::Members6,
    restricted: Set::Restricted6,
    callers: Set::Callers6,
    allowed: Set::Allowed6,
    services: Set::Services6,
    mesh: Set::Mesh6,
    hairpins: Set::Hairpins6,
    gateways: Set::Gateways6,
};

/// It stays on one bridge, that of a network whose tasks may speak with each other.
pub(super) fn within() -> [Expr; 3] {
    [
        Expr::Meta { key: Meta::Iifname, to: REG_1 },
        Expr::Meta { key: Meta::Oifname, to: REG_2 },
        Expr::Lookup { set: Set::Within, absent: false },
    ]
}

impl Version {
    fn is(&self) -> [Expr; 2] {
        if self.ipv6 { ipv6() } else { ipv4() }
    }

    fn address(&self, offset: u32, to: u32) -> Expr {
        Expr::Payload { base: Base::Network, offset, len: self.len, to }
    }

    /// Loads the device `key` and the address at `offset`.
    fn at(&self, key: Meta, offset: u32) -> [Expr; 2] {
        [Expr::Meta { key, to: REG_1 }, self.address(offset, REG_2)]
    }

    /// The sender is a member of the network that it sends on.
    fn sender(&self) -> Vec<Expr> {
        let known = Expr::Lookup { set: self.members, absent: false };
        rule([&self.at(Meta::Iifname, self.source), &[known]])
    }

    /// The receiver is a member of the network that it is on.
    fn receiver(&self) -> Vec<Expr> {
        let known = Expr::Lookup { set: self.members, absent: false };
        rule([&self.at(Meta::Oifname, self.destination), &[known]])
    }

    /// Who may send to whom.
    fn forward(&self) -> Vec<Vec<Expr>> {
        let (is, source, destination, within) = (&self.is(), &self.sender(), &self.receiver(), &within());
        let accept = &[Expr::Verdict(Verdict::Accept)];
        let lookup = |set, absent| Expr::Lookup { set, absent };
        let (callee, caller) =
            (&self.at(Meta::Oifname, self.destination), &self.at(Meta::Iifname, self.source));
        let mut rules = vec![
            rule([is, &name_is(Meta::Iifname, UPLINK), &translated(), destination, accept]),
            rule([
                is,
                &in_set(Meta::Iifname, Set::Ingress),
                &in_set(Meta::Oifname, Set::Ingress),
                &[Expr::Ct(Ct::Mark), Expr::NotZero],
                destination,
                accept,
            ]),
        ];
        // Only that of IPv4 is switched, see `DIRECT`.
        if !self.ipv6 {
            rules.push(rule([is, &tcp(Expr::AnyBitOfByte(ACK)), source, within, destination, accept]));
        }
        let number = [Expr::Meta { key: Meta::Mark, to: self.behind }, lookup(self.allowed, false)];
        let unmark = [Expr::Load(0u32.to_ne_bytes().to_vec()), Expr::MarkPacket];
        let mark = [Expr::Map(self.callers), Expr::MarkPacket];
        rules.extend([
            rule([is, callee, &[lookup(self.restricted, false)], caller, &mark]),
            rule([is, source, within, callee, &number, &unmark, accept]),
            // Where `destination` has just loaded the receiver.
            rule([is, source, within, destination, &[lookup(self.restricted, true)], accept]),
            rule([
                is,
                source,
                &in_set(Meta::Iifname, Set::Outbound),
                &name_is(Meta::Oifname, UPLINK),
                accept,
            ]),
        ]);
        rules
    }

    fn hairpin(&self) -> Vec<Expr> {
        rule([
            &self.is(),
            &[
                self.address(self.source, REG_1),
                self.address(self.destination, self.second),
                Expr::Lookup { set: self.hairpins, absent: false },
                Expr::Meta { key: Meta::Oifname, to: REG_1 },
                Expr::Map(self.gateways),
                Expr::Snat { ipv6: self.ipv6 },
            ],
        ])
    }

    /// Goes on in the chain of the service.
    fn service(&self) -> Vec<Expr> {
        let called = self.at(Meta::Iifname, self.destination);
        rule([&self.is(), &called, &[Expr::Dispatch(self.services)]])
    }

    /// Goes on in the chain of the published port.
    fn published(&self) -> Vec<Expr> {
        let port = [
            Expr::Meta { key: Meta::L4proto, to: REG_1 },
            Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: WORD_1 },
            Expr::Dispatch(self.mesh),
        ];
        rule([&self.is(), &name_is(Meta::Iifname, UPLINK), &port])
    }
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

/// Loads the flags of a TCP segment.
pub(super) const FLAGS: Expr = Expr::Payload { base: Base::Transport, offset: 13, len: 1, to: REG_1 };

fn tcp(flags: Expr) -> Vec<Expr> {
    rule([&l4proto(libc::IPPROTO_TCP), &[FLAGS, flags]])
}

/// The port at `offset` of the transport header is below 32768.
pub(super) fn below_clients(offset: u32) -> [Expr; 2] {
    let high = Expr::Payload { base: Base::Transport, offset, len: 1, to: REG_1 };
    [high, Expr::NoBitOfByte(0x80)]
}

/// A port that a client's own port may be is given.
const TO_CLIENTS: Expr = Expr::SnatPorts { first: 32768, last: u16::MAX };

/// The way of TCP between the tasks of two nodes, past routing.
const DIRECT: Onward = Onward { prefix: TUNNEL, trusted: "from-elsewhere", checked: "to-elsewhere" };

/// Loads the MAC of the task of this node that the frame from elsewhere is for.
pub(super) fn here() -> Vec<Expr> {
    rule([&IPV4.at(Meta::Iifname, IPV4.destination), &[Expr::Map(Set::Here)]])
}

/// Loads the MAC of the node whose task the frame is for.
pub(super) fn elsewhere() -> [Expr; 2] {
    [IPV4.address(IPV4.destination, REG_1), Expr::Map(Set::Elsewhere)]
}

/// Where segments in the middle of connections go on: most by far, so nothing else is asked of them.
const FROM_MIDDLE: &str = "from-middle";
const TO_MIDDLE: &str = "to-middle";

fn direct() -> [ChainSpec; 4] {
    let (here, elsewhere) = (&here(), &elsewhere());
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let not_ipv4 = rule([&ether_type_not(0x0800), accept]);
    let not_tcp = rule([&l4proto_not(libc::IPPROTO_TCP), accept]);
    let middle = |chain| rule([&learned::in_the_middle(), &[Expr::Verdict(Verdict::Goto(chain))]]);
    let acknowledges = &[FLAGS, Expr::AnyBitOfByte(ACK)];
    let begins = &[FLAGS, Expr::Masked { mask: vec![SYN | ACK], value: vec![SYN], not: false }];
    let send = &rule([&[Expr::SendTo], accept]);
    let untracked = &rule([&[Expr::Untracked], accept]);
    let for_service = &below_clients(2);
    let chain = |name, first: Vec<Vec<Expr>>, learned: [Vec<Expr>; 2]| {
        let rules = first.into_iter().chain(learned).collect();
        ChainSpec { family: Family::Bridge, name, hook: None, rules }
    };
    let from_elsewhere = vec![
        not_ipv4,
        not_tcp.clone(),
        middle(FROM_MIDDLE),
        rule([acknowledges, for_service, here, send]),
        rule([begins, here, untracked]),
    ];
    let to_elsewhere = vec![
        not_tcp,
        middle(TO_MIDDLE),
        rule([acknowledges, elsewhere, send]),
        rule([begins, elsewhere, untracked]),
    ];
    [
        chain(FROM_MIDDLE, vec![rule([for_service, here, send])], learned::from_elsewhere(Way::send)),
        chain(TO_MIDDLE, vec![rule([elsewhere, send])], learned::to_elsewhere(Way::send)),
        chain(DIRECT.trusted, from_elsewhere, learned::from_elsewhere(Way::forget)),
        chain(DIRECT.checked, to_elsewhere, learned::to_elsewhere(Way::forget)),
    ]
}

fn chains() -> Vec<ChainSpec> {
    use Expr::{MarkConnection, Masquerade, Meta as Load, Reset, Unreachable};
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let from_uplink = &name_is(Meta::Iifname, UPLINK);
    let known = &state(CT_ESTABLISHED | CT_RELATED);
    let drop = &[Expr::Verdict(Verdict::Drop)];
    let from_tunnel = &name_is(Meta::Iifname, WIREGUARD);
    let to_tunnel = &name_is(Meta::Oifname, WIREGUARD);
    // The tunnel, as no other link here: for every packet, a number is read sooner than a name.
    let without_frames =
        &[Load { key: Meta::Iiftype, to: REG_1 }, Expr::Equal(libc::ARPHRD_NONE.to_ne_bytes().to_vec())];
    let raw = |name, number, device: &[Expr]| {
        inet(name, "filter", number, -300, vec![rule([device, &[Expr::Untracked]])])
    };
    let mut chains = learned::chains();
    chains.extend(direct());
    chains.extend([
        raw("raw", libc::NF_INET_PRE_ROUTING, without_frames),
        raw("raw-output", libc::NF_INET_LOCAL_OUT, to_tunnel),
        inet("pin", "filter", libc::NF_INET_PRE_ROUTING, -150, vec![pin_reply()]),
        inet("pin-own", "route", libc::NF_INET_LOCAL_OUT, -150, vec![pin_reply()]),
        inet(
            "prerouting",
            "nat",
            libc::NF_INET_PRE_ROUTING,
            -100,
            vec![
                rule([from_uplink, &[Expr::Load(OWN_MARK.to_ne_bytes().to_vec()), MarkConnection]]),
                rule([
                    &in_set(Meta::Iifname, Set::Ingress),
                    &[
                        Load { key: Meta::Iiftype, to: REG_1 },
                        Expr::Equal(libc::ARPHRD_ETHER.to_ne_bytes().to_vec()),
                        Expr::Payload { base: Base::Link, offset: 6, len: 6, to: REG_1 },
                        Expr::Map(Set::Nodes),
                        MarkConnection,
                    ],
                ]),
                IPV4.service(),
                IPV6.service(),
                IPV4.published(),
                IPV6.published(),
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
            [
                vec![
                    learned::pick(),
                    rule([known, accept]),
                    rule([&tcp(Expr::AnyBitOfByte(SYN)), &[Expr::ClampMss]]),
                ],
                IPV4.forward(),
                IPV6.forward(),
                vec![rule([&l4proto(libc::IPPROTO_TCP), &[Reset]]), vec![Unreachable]],
            ]
            .concat(),
        ),
        inet(
            "postrouting",
            "nat",
            libc::NF_INET_POST_ROUTING,
            100,
            vec![
                IPV4.hairpin(),
                IPV6.hairpin(),
                rule([
                    &l4proto(libc::IPPROTO_TCP),
                    &within(),
                    &translated(),
                    &below_clients(0),
                    &[TO_CLIENTS],
                ]),
                rule([&name_is(Meta::Oifname, UPLINK), &[Masquerade]]),
            ],
        ),
        source_check(Some(&DIRECT)),
    ]);
    chains
}
