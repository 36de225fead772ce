//! The rule set, as data. Read as nft would print it:
//!
//! ```text
//! table inet rswarm {
//!   chain raw         { type filter hook prerouting priority raw
//!                       iifname @bridges ip daddr 127.0.0.0/8 drop }
//!   chain prerouting  { type nat hook prerouting priority dstnat
//!                       fib daddr type local dnat ip to meta l4proto . th dport map @published }
//!   chain output      { the same, for connections made on the node itself }
//!   chain operator    { }                          # yours: see below
//!   chain forward     { type filter hook forward priority filter
//!                       jump operator
//!                       iifname . oifname @within accept
//!                       iifname @internal drop
//!                       oifname @internal drop
//!                       iifname @bridges accept
//!                       oifname @bridges accept }
//!   chain postrouting { type nat hook postrouting priority srcnat
//!                       oifname . ip saddr @members ct status dnat masquerade
//!                       oifname @bridges ip saddr 127.0.0.0/8 masquerade
//!                       iifname @masqueraded oifname != @bridges masquerade }
//! }
//! table bridge rswarm {
//!   chain prerouting  { type filter hook prerouting priority dstnat
//!                       iifname != @ports accept
//!                       iifname . ether saddr != @macs drop
//!                       ether type ip  iifname . ip saddr != @sources drop
//!                       ether type arp iifname . arp saddr ip != @sources drop
//!                       ether type arp iifname . arp saddr ether != @macs drop }
//! }
//! ```
//!
//! - `operator` is the place for the operator's own rules about forwarded traffic. It runs before ours, it is created
//!   empty and never touched again; only removing the whole table (`leave`) takes it away. A verdict of ours ends our
//!   table alone: a host firewall in other tables keeps its say.
//! - Published ports answer on 127.0.0.1 too. That needs `route_localnet` on the bridge, which by itself would let a
//!   container reach what the node serves on its loopback (CVE-2020-8558); the `raw` chain forbids just that.
//! - Hairpin: a container that calls a published port of its own node may be sent back to its own bridge. Its peer
//!   would answer it directly, past the translation, so there (and for 127.0.0.1) the source becomes the gateway.
//!   Every other caller is seen with its own address.
//! - Nothing here depends on `bridge-nf-call-iptables`. Where that is on, traffic between containers of one bridge
//!   passes `forward` too (hence `@within`), and a hairpin is translated inside the bridge without ever being routed:
//!   its incoming device is not known then (hence `@members` rather than a pair of devices), and it may have to leave
//!   by the port by which it came (hence hairpin mode on the containers' links).
//! - The source check is in the `bridge` family, where the packet's device is the container's veth and not the bridge;
//!   it holds between two containers of a bridge as well, and without `br_netfilter`.

use super::Set;

/// Address family of a table, as in `nfgenmsg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Inet = 1,
    Bridge = 7,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];

/// Type and lengths of a set, in nft's own type numbers, which only serve to print it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetSpec {
    pub set: Set,
    pub family: Family,
    pub name: &'static str,
    pub key_type: u32,
    pub key_len: u32,
    /// Type and length of a map's data.
    pub data: Option<(u32, u32)>,
}

/// Length of an interface name as a key.
pub(crate) const NAME_LEN: u32 = 16;

const IPV4_ADDR: u32 = 7;
const ETHER_ADDR: u32 = 9;
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;
const IFNAME: u32 = 41;

/// nft's number of a concatenation of two types.
const fn pair(first: u32, second: u32) -> u32 {
    first << 6 | second
}

const fn plain(set: Set, family: Family, name: &'static str, key_type: u32, key_len: u32) -> SetSpec {
    SetSpec { set, family, name, key_type, key_len, data: None }
}

pub(crate) const SETS: [SetSpec; 9] = [
    plain(Set::Bridges, Family::Inet, "bridges", IFNAME, NAME_LEN),
    plain(Set::Masqueraded, Family::Inet, "masqueraded", IFNAME, NAME_LEN),
    plain(Set::Internal, Family::Inet, "internal", IFNAME, NAME_LEN),
    plain(Set::Within, Family::Inet, "within", pair(IFNAME, IFNAME), 32),
    plain(Set::Members, Family::Inet, "members", pair(IFNAME, IPV4_ADDR), 20),
    SetSpec {
        set: Set::Published,
        family: Family::Inet,
        name: "published",
        key_type: pair(INET_PROTO, INET_SERVICE),
        key_len: 8,
        data: Some((pair(IPV4_ADDR, INET_SERVICE), 8)),
    },
    plain(Set::Ports, Family::Bridge, "ports", IFNAME, NAME_LEN),
    plain(Set::Macs, Family::Bridge, "macs", pair(IFNAME, ETHER_ADDR), 24),
    plain(Set::Sources, Family::Bridge, "sources", pair(IFNAME, IPV4_ADDR), 20),
];

impl Set {
    pub(crate) fn spec(self) -> &'static SetSpec {
        SETS.iter().find(|spec| spec.set == self).expect("every set has its line in SETS")
    }
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

/// A chain and its rules; without a hook it is the operator's, and its content is never ours.
#[derive(Debug, Clone)]
pub(crate) struct ChainSpec {
    pub family: Family,
    pub name: &'static str,
    pub hook: Option<Hook>,
    pub rules: Vec<Vec<Expr>>,
}

/// Registers of the rule machine: 16 bytes each by the first numbers, 4 bytes each from `WORD_1` on.
pub(crate) const REG_1: u32 = 1;
pub(crate) const REG_2: u32 = 2;
/// The second word of [`REG_1`].
pub(crate) const WORD_1: u32 = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Iifname = 6,
    Oifname = 7,
    Nfproto = 15,
    L4proto = 16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    Meta {
        key: Meta,
        to: u32,
    },
    Payload {
        base: Base,
        offset: u32,
        len: u32,
        to: u32,
    },
    /// Goes on only if register 1 equals these bytes.
    Equal(Vec<u8>),
    /// Goes on only if register 1 is found (or, `absent`, is not).
    Lookup {
        set: Set,
        absent: bool,
    },
    /// Goes on with the data found under register 1 in register 1.
    Map(Set),
    /// Goes on only for a destination that is an address of this node.
    ToThisNode,
    /// Goes on only for connections whose destination was translated.
    Translated,
    /// Translates the destination to the address in register 1 and the port in its second word.
    Dnat,
    Masquerade,
    Verdict(Verdict),
}

fn in_set(key: Meta, set: Set) -> [Expr; 2] {
    [Expr::Meta { key, to: REG_1 }, Expr::Lookup { set, absent: false }]
}

fn not_in_set(key: Meta, set: Set) -> [Expr; 2] {
    [Expr::Meta { key, to: REG_1 }, Expr::Lookup { set, absent: true }]
}

fn ipv4() -> [Expr; 2] {
    [Expr::Meta { key: Meta::Nfproto, to: REG_1 }, Expr::Equal(vec![libc::NFPROTO_IPV4 as u8])]
}

/// The first byte of an address in the IPv4 header at `offset` is 127.
fn loopback(offset: u32) -> [Expr; 2] {
    [Expr::Payload { base: Base::Network, offset, len: 1, to: REG_1 }, Expr::Equal(vec![127])]
}

fn ether_type(kind: u16) -> [Expr; 2] {
    [
        Expr::Payload { base: Base::Link, offset: 12, len: 2, to: REG_1 },
        Expr::Equal(kind.to_be_bytes().to_vec()),
    ]
}

/// Device and header field together are not in `set`.
fn foreign_source(base: Base, offset: u32, len: u32, set: Set) -> [Expr; 3] {
    [
        Expr::Meta { key: Meta::Iifname, to: REG_1 },
        Expr::Payload { base, offset, len, to: REG_2 },
        Expr::Lookup { set, absent: true },
    ]
}

fn publish() -> Vec<Expr> {
    let mut rule = ipv4().to_vec();
    rule.extend([
        Expr::ToThisNode,
        Expr::Meta { key: Meta::L4proto, to: REG_1 },
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: WORD_1 },
        Expr::Map(Set::Published),
        Expr::Dnat,
    ]);
    rule
}

fn rule<const N: usize>(parts: [&[Expr]; N]) -> Vec<Expr> {
    parts.concat()
}

/// The chains of both tables, in the order in which they are made.
pub(crate) fn chains() -> Vec<ChainSpec> {
    use Expr::{Masquerade, Meta as Load, Translated};
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let drop = &[Expr::Verdict(Verdict::Drop)];
    let inet = |name, kind, number: i32, priority, rules| ChainSpec {
        family: Family::Inet,
        name,
        hook: Some(Hook { kind, number: number as u32, priority }),
        rules,
    };
    vec![
        ChainSpec { family: Family::Inet, name: OPERATOR, hook: None, rules: Vec::new() },
        inet(
            "raw",
            "filter",
            libc::NF_INET_PRE_ROUTING,
            -300,
            vec![rule([&in_set(Meta::Iifname, Set::Bridges), &ipv4(), &loopback(16), drop])],
        ),
        inet("prerouting", "nat", libc::NF_INET_PRE_ROUTING, -100, vec![publish()]),
        inet("output", "nat", libc::NF_INET_LOCAL_OUT, -100, vec![publish()]),
        inet(
            "forward",
            "filter",
            libc::NF_INET_FORWARD,
            0,
            vec![
                vec![Expr::Verdict(Verdict::Jump(OPERATOR))],
                vec![
                    Load { key: Meta::Iifname, to: REG_1 },
                    Load { key: Meta::Oifname, to: REG_2 },
                    Expr::Lookup { set: Set::Within, absent: false },
                    Expr::Verdict(Verdict::Accept),
                ],
                rule([&in_set(Meta::Iifname, Set::Internal), drop]),
                rule([&in_set(Meta::Oifname, Set::Internal), drop]),
                rule([&in_set(Meta::Iifname, Set::Bridges), accept]),
                rule([&in_set(Meta::Oifname, Set::Bridges), accept]),
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
                        Load { key: Meta::Oifname, to: REG_1 },
                        Expr::Payload { base: Base::Network, offset: 12, len: 4, to: REG_2 },
                        Expr::Lookup { set: Set::Members, absent: false },
                        Translated,
                        Masquerade,
                    ],
                ]),
                rule([&in_set(Meta::Oifname, Set::Bridges), &ipv4(), &loopback(12), &[Masquerade]]),
                rule([
                    &ipv4(),
                    &in_set(Meta::Iifname, Set::Masqueraded),
                    &not_in_set(Meta::Oifname, Set::Bridges),
                    &[Masquerade],
                ]),
            ],
        ),
        ChainSpec {
            family: Family::Bridge,
            name: "prerouting",
            hook: Some(Hook { kind: "filter", number: 0, priority: -300 }),
            rules: vec![
                rule([&not_in_set(Meta::Iifname, Set::Ports), accept]),
                rule([&foreign_source(Base::Link, 6, 6, Set::Macs), drop]),
                rule([&ether_type(0x0800), &foreign_source(Base::Network, 12, 4, Set::Sources), drop]),
                rule([&ether_type(0x0806), &foreign_source(Base::Network, 14, 4, Set::Sources), drop]),
                rule([&ether_type(0x0806), &foreign_source(Base::Network, 8, 6, Set::Macs), drop]),
            ],
        },
    ]
}

/// The chain that belongs to the operator.
pub(crate) const OPERATOR: &str = "operator";
