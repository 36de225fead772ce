//! The rule set of the host's own namespace, as data. Read as nft would print it:
//!
//! ```text
//! table inet rswarm {
//!   chain raw         { type filter hook prerouting priority raw
//!                       udp dport @tunnels notrack accept
//!                       ip daddr 127.0.0.0/8 iifname @bridges drop }
//!   chain raw-output  { type filter hook output priority raw
//!                       udp dport @tunnels notrack }
//!   chain prerouting  { type nat hook prerouting priority dstnat
//!                       fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @bound
//!                       fib daddr type local dnat ip to iifname . meta l4proto . th dport map @entered
//!                       fib daddr type local dnat ip to meta l4proto . th dport map @published
//!                       then @bound6, @entered6 and @published6 as above, for ip6 daddr != ::1 }
//!   chain output      { the same, for connections made on the node itself, with oifname for iifname }
//!   chain input       { type filter hook input priority filter
//!                       iifname != @bridges accept
//!                       meta l4proto . th dport @guarded reject
//!                       iifname @internal ct state established,related accept
//!                       iifname @internal iifname . ip daddr @members th dport 53 accept
//!                       iifname @internal iifname . ip6 daddr @members6 th dport 53 accept
//!                       iifname @internal reject }
//!   chain operator    { }                          # yours: see below
//!   chain forward     { type filter hook forward priority filter
//!                       jump operator
//!                       ct state established,related accept
//!                       ip daddr @peers iifname @bridges meta l4proto . th dport @guarded reject
//!                       ip6 daddr @peers6 iifname @bridges meta l4proto . th dport @guarded reject
//!                       meta nfproto ipv4 iifname . oifname @within accept
//!                       iifname . oifname @within oifname . ip6 daddr @members6 accept
//!                       iifname @internal ct status dnat reject
//!                       iifname @internal meta l4proto tcp reject with tcp reset
//!                       iifname @internal reject
//!                       oifname @internal reject
//!                       iifname @bridges oifname != @bridges accept
//!                       oifname @bridges ct status dnat accept
//!                       oifname @bridges meta l4proto tcp reject with tcp reset
//!                       oifname @bridges reject }
//!   chain postrouting { type nat hook postrouting priority srcnat
//!                       oifname . ip saddr @members ct status dnat masquerade
//!                       oifname . ip6 saddr @members6 ct status dnat masquerade
//!                       iifname @bridges snat ip to oifname map @uplinks
//!                       ip saddr 127.0.0.0/8 snat ip to oifname map @uplinks
//!                       oifname @bridges ip saddr 127.0.0.0/8 masquerade
//!                       meta nfproto ipv6 iifname @bridges oifname @bridges ct status dnat masquerade
//!                       iifname @masqueraded oifname != @bridges masquerade }
//! }
//! table bridge rswarm {
//!   chain prerouting  { type filter hook prerouting priority dstnat
//!                       iifname . ether saddr . ip saddr @sources accept
//!                       iifname != @ports accept
//!                       ether type ip6 icmpv6 type 133-137 drop
//!                       ether type ip6 iifname . ether saddr . ip6 saddr @sources6 accept
//!                       iifname . ether saddr != @macs drop
//!                       iifname . arp saddr ether . arp saddr ip @sources accept
//!                       drop }
//! }
//! ```
//!
//! - `operator` is the place for the operator's own rules about forwarded traffic. It runs before ours, it is created
//!   empty and never touched again; only removing the whole table (`leave`) takes it away. A verdict of ours ends our
//!   table alone: a host firewall in other tables keeps its say.
//! - Published ports answer on 127.0.0.1 too. That needs `route_localnet` on the bridge, which by itself would let a
//!   container reach what the node serves on its loopback (CVE-2020-8558); the `raw` chain forbids just that.
//! - What is in a tunnel is tracked in the overlays' namespace; to track each tunnelled connection here once more, as
//!   one of its own by its source port, would cost a tenth of the connections made in a second.
//! - Hairpin: a container that calls a published port of its own node may be sent back to its own bridge. Its peer
//!   would answer it directly, past the translation, so there (and for 127.0.0.1) the source becomes the gateway.
//!   Every other caller is seen with its own address.
//! - Containers are reached by published ports alone, from other networks of this node as from outside, and reach no port
//!   that nodes have for each other (`guarded`), at whichever address of this node or another (`peers`).
//! - Of an internal network nothing is forwarded, and its containers reach of the node the name server at their gateway,
//!   which is a member there for that, and nothing else.
//! - Of a bridge whose containers are separate nothing is `within`: its ports exchange no frames, the bridge answers ARP for all of
//!   them, and so they are strangers to each other like those of other bridges. The kernel says of each such packet that it
//!   came by the way it goes (a redirect), and counts that against the refusals it may send: hence the resets,
//!   which are not translated back, and so are not for what was translated.
//! - By IPv6 containers of one bridge reach each other by the node, which is told where each is and asks nobody: what is for
//!   an address that none of them has is refused before it could fill the table of neighbours.
//! - Nothing here depends on `bridge-nf-call-iptables`. Where that is on, traffic between containers of one bridge
//!   passes `forward` too (hence `@within`), and a hairpin is translated inside the bridge without ever being routed:
//!   its incoming device is not known then (hence `@members` rather than a pair of devices), and it may have to leave
//!   by the port by which it came (hence hairpin mode on the containers' links).
//! - The source check is in the `bridge` family, where the packet's device is the container's veth and not the bridge;
//!   it holds between two containers of a bridge as well, and without `br_netfilter`.
//! - The link to the overlays' namespace (see [`super::helper`]) is one of `bridges` and `masqueraded`, and a port of
//!   the mesh one of `published` or `bound` that leads there. `uplinks` gives what comes from this node itself, or from
//!   containers whose addresses mean nothing on other nodes, the node's address; clients from elsewhere keep theirs.

use std::net::Ipv6Addr;

use super::{
    Set,
    rules::{
        Base, CT_ESTABLISHED, CT_RELATED, ChainSpec, Expr, Family, Layout, Meta, OPERATOR, REG_1, REG_2,
        Verdict, WORD_1, WORD_2, WORD_5, in_set, inet, ipv4, ipv6, l4proto, loopback, not_in_set, rule,
        source_check, state, translated, tunnelled,
    },
};

/// The rules of the host's own namespace.
pub(crate) static HOST: Layout = Layout {
    sets: &[
        Set::Bridges,
        Set::Masqueraded,
        Set::Internal,
        Set::Within,
        Set::Members,
        Set::Members6,
        Set::Published,
        Set::Published6,
        Set::Bound,
        Set::Bound6,
        Set::Entered,
        Set::Entered6,
        Set::Uplinks,
        Set::Guarded,
        Set::Peers,
        Set::Peers6,
        Set::Tunnels,
        Set::Ports,
        Set::Macs,
        Set::Sources,
        Set::Sources6,
    ],
    chains,
    balancers: &[],
};

/// Translates what is for a published port of this node; `by` tells the interface by which it came.
fn publish(by: Meta) -> Vec<Vec<Expr>> {
    let port = |to| Expr::Payload { base: Base::Transport, offset: 2, len: 2, to };
    let protocol = |to| Expr::Meta { key: Meta::L4proto, to };
    let lead = |ipv6, set| [Expr::Map(set), Expr::Dnat { ipv6, port: true }];
    let entered = [Expr::Meta { key: by, to: REG_1 }, protocol(REG_2), port(WORD_5)];
    let anywhere = [protocol(REG_1), port(WORD_1)];
    let ipv4 = &rule([&ipv4(), &[Expr::ToThisNode]]);
    let bound = [
        Expr::Payload { base: Base::Network, offset: 16, len: 4, to: REG_1 },
        protocol(WORD_1),
        port(WORD_2),
    ];
    // What is for the loopback cannot leave it by IPv6.
    let destination6 = Expr::Payload { base: Base::Network, offset: 24, len: 16, to: REG_1 };
    let not_loopback = [destination6.clone(), Expr::Differs(Ipv6Addr::LOCALHOST.octets().into())];
    let ipv6 = &rule([&ipv6(), &not_loopback, &[Expr::ToThisNode]]);
    let bound6 = [destination6, protocol(REG_2), port(WORD_5)];
    vec![
        rule([ipv4, &bound, &lead(false, Set::Bound)]),
        rule([ipv4, &entered, &lead(false, Set::Entered)]),
        rule([ipv4, &anywhere, &lead(false, Set::Published)]),
        rule([ipv6, &bound6, &lead(true, Set::Bound6)]),
        rule([ipv6, &entered, &lead(true, Set::Entered6)]),
        rule([ipv6, &anywhere, &lead(true, Set::Published6)]),
    ]
}

/// The destination is another node.
fn to_peer(set: Set, offset: u32, len: u32) -> [Expr; 2] {
    let address = Expr::Payload { base: Base::Network, offset, len, to: REG_1 };
    [address, Expr::Lookup { set, absent: false }]
}

/// Refuses what containers have no business with.
fn guard() -> [Expr; 4] {
    [
        Expr::Meta { key: Meta::L4proto, to: REG_1 },
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: WORD_1 },
        Expr::Lookup { set: Set::Guarded, absent: false },
        Expr::Unreachable,
    ]
}

/// The address at `offset` in its header is one of the bridge.
fn member(bridge: Meta, (set, offset, len): (Set, u32, u32)) -> [Expr; 3] {
    [
        Expr::Meta { key: bridge, to: REG_1 },
        Expr::Payload { base: Base::Network, offset, len, to: REG_2 },
        Expr::Lookup { set, absent: false },
    ]
}

/// Where sources and destinations are.
const SOURCE: (Set, u32, u32) = (Set::Members, 12, 4);
const SOURCE6: (Set, u32, u32) = (Set::Members6, 8, 16);
const DESTINATION: (Set, u32, u32) = (Set::Members, 16, 4);
const DESTINATION6: (Set, u32, u32) = (Set::Members6, 24, 16);

/// It is for the port of name servers.
fn name_server() -> [Expr; 2] {
    const PORT: u16 = 53;
    [
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: REG_1 },
        Expr::Equal(PORT.to_be_bytes().into()),
    ]
}

/// The encapsulated packets of the overlays.
fn untracked() -> Vec<Expr> {
    rule([&tunnelled(), &[Expr::Untracked]])
}

fn chains() -> Vec<ChainSpec> {
    use Expr::{Map, Masquerade, Meta as Load, Snat};
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let drop = &[Expr::Verdict(Verdict::Drop)];
    let (reject, reset) = (&[Expr::Unreachable], &[Expr::Reset]);
    let (bridged, internal) = (&in_set(Meta::Iifname, Set::Bridges), &in_set(Meta::Iifname, Set::Internal));
    let within = &[
        Load { key: Meta::Iifname, to: REG_1 },
        Load { key: Meta::Oifname, to: REG_2 },
        Expr::Lookup { set: Set::Within, absent: false },
    ];
    let node_source = &[Load { key: Meta::Oifname, to: REG_1 }, Map(Set::Uplinks), Snat { ipv6: false }];
    vec![
        ChainSpec { family: Family::Inet, name: OPERATOR, hook: None, rules: Vec::new() },
        inet(
            "raw",
            "filter",
            libc::NF_INET_PRE_ROUTING,
            -300,
            // What is in tunnels first, as it is the most by far; from containers `input` refuses it.
            vec![rule([&untracked(), accept]), rule([&ipv4(), &loopback(16), bridged, drop])],
        ),
        inet("raw-output", "filter", libc::NF_INET_LOCAL_OUT, -300, vec![untracked()]),
        inet("prerouting", "nat", libc::NF_INET_PRE_ROUTING, -100, publish(Meta::Iifname)),
        // What the node sends to itself leaves by the loopback and comes by it.
        inet("output", "nat", libc::NF_INET_LOCAL_OUT, -100, publish(Meta::Oifname)),
        inet(
            "input",
            "filter",
            libc::NF_INET_LOCAL_IN,
            0,
            vec![
                rule([&not_in_set(Meta::Iifname, Set::Bridges), accept]),
                guard().into(),
                rule([internal, &state(CT_ESTABLISHED | CT_RELATED), accept]),
                rule([internal, &ipv4(), &member(Meta::Iifname, DESTINATION), &name_server(), accept]),
                rule([internal, &ipv6(), &member(Meta::Iifname, DESTINATION6), &name_server(), accept]),
                rule([internal, reject]),
            ],
        ),
        inet(
            "forward",
            "filter",
            libc::NF_INET_FORWARD,
            0,
            vec![
                vec![Expr::Verdict(Verdict::Jump(OPERATOR))],
                rule([&state(CT_ESTABLISHED | CT_RELATED), accept]),
                rule([&ipv4(), &to_peer(Set::Peers, 16, 4), bridged, &guard()]),
                rule([&ipv6(), &to_peer(Set::Peers6, 24, 16), bridged, &guard()]),
                rule([&ipv4(), within, accept]),
                rule([&ipv6(), within, &member(Meta::Oifname, DESTINATION6), accept]),
                rule([internal, &translated(), reject]),
                rule([internal, &l4proto(libc::IPPROTO_TCP), reset]),
                rule([internal, reject]),
                rule([&in_set(Meta::Oifname, Set::Internal), reject]),
                rule([bridged, &not_in_set(Meta::Oifname, Set::Bridges), accept]),
                rule([&in_set(Meta::Oifname, Set::Bridges), &translated(), accept]),
                rule([&in_set(Meta::Oifname, Set::Bridges), &l4proto(libc::IPPROTO_TCP), reset]),
                rule([&in_set(Meta::Oifname, Set::Bridges), reject]),
            ],
        ),
        inet(
            "postrouting",
            "nat",
            libc::NF_INET_POST_ROUTING,
            100,
            vec![
                rule([&ipv4(), &member(Meta::Oifname, SOURCE), &translated(), &[Masquerade]]),
                rule([&ipv6(), &member(Meta::Oifname, SOURCE6), &translated(), &[Masquerade]]),
                rule([&ipv4(), bridged, node_source]),
                rule([&ipv4(), &loopback(12), node_source]),
                rule([&in_set(Meta::Oifname, Set::Bridges), &ipv4(), &loopback(12), &[Masquerade]]),
                rule([&ipv6(), bridged, &in_set(Meta::Oifname, Set::Bridges), &translated(), &[Masquerade]]),
                rule([
                    &in_set(Meta::Iifname, Set::Masqueraded),
                    &not_in_set(Meta::Oifname, Set::Bridges),
                    &[Masquerade],
                ]),
            ],
        ),
        source_check(None),
    ]
}
