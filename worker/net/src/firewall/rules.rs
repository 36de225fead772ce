//! The words that rule sets are written in: sets, chains, and the steps of a rule.

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
    /// Its elements come from packets, and go by themselves.
    pub learned: bool,
}

/// Data of a verdict map: the chain to go on in.
pub(crate) const VERDICT: u32 = 0xffff_ff00;
/// Length of an interface name as a key.
pub(crate) const NAME_LEN: u32 = 16;

pub(crate) const INTEGER: u32 = 4;
pub(crate) const IPV4_ADDR: u32 = 7;
pub(crate) const IPV6_ADDR: u32 = 8;
const ETHER_ADDR: u32 = 9;
const INET_PROTO: u32 = 12;
pub(crate) const INET_SERVICE: u32 = 13;
const MARK: u32 = 19;
const IFNAME: u32 = 41;

/// nft's number of a concatenation of two types.
pub(crate) const fn pair(first: u32, second: u32) -> u32 {
    first << 6 | second
}

const fn plain(set: Set, family: Family, name: &'static str, key_type: u32, key_len: u32) -> SetSpec {
    SetSpec { set, family, name, key_type, key_len, data: None, learned: false }
}

const fn map(set: Set, family: Family, name: &'static str, key: (u32, u32), data: (u32, u32)) -> SetSpec {
    SetSpec { set, family, name, key_type: key.0, key_len: key.1, data: Some(data), learned: false }
}

/// A map from flows of TCP by IPv4: source and its port, destination and its port.
const fn flows(set: Set, name: &'static str, data: (u32, u32)) -> SetSpec {
    let end = pair(IPV4_ADDR, INET_SERVICE);
    let spec = map(set, Family::Bridge, name, (pair(pair(end, IPV4_ADDR), INET_SERVICE), 16), data);
    SetSpec { learned: true, ..spec }
}

pub(crate) const SETS: [SetSpec; 43] = [
    plain(Set::Bridges, Family::Inet, "bridges", IFNAME, NAME_LEN),
    plain(Set::Masqueraded, Family::Inet, "masqueraded", IFNAME, NAME_LEN),
    plain(Set::Internal, Family::Inet, "internal", IFNAME, NAME_LEN),
    plain(Set::Within, Family::Inet, "within", pair(IFNAME, IFNAME), 32),
    plain(Set::Members, Family::Inet, "members", pair(IFNAME, IPV4_ADDR), 20),
    plain(Set::Members6, Family::Inet, "members6", pair(IFNAME, IPV6_ADDR), 32),
    map(
        Set::Published,
        Family::Inet,
        "published",
        (pair(INET_PROTO, INET_SERVICE), 8),
        (pair(IPV4_ADDR, INET_SERVICE), 8),
    ),
    map(
        Set::Published6,
        Family::Inet,
        "published6",
        (pair(INET_PROTO, INET_SERVICE), 8),
        (pair(IPV6_ADDR, INET_SERVICE), 20),
    ),
    map(
        Set::Bound,
        Family::Inet,
        "bound",
        (pair(pair(IPV4_ADDR, INET_PROTO), INET_SERVICE), 12),
        (pair(IPV4_ADDR, INET_SERVICE), 8),
    ),
    map(
        Set::Bound6,
        Family::Inet,
        "bound6",
        (pair(pair(IPV6_ADDR, INET_PROTO), INET_SERVICE), 24),
        (pair(IPV6_ADDR, INET_SERVICE), 20),
    ),
    map(
        Set::Entered,
        Family::Inet,
        "entered",
        (pair(pair(IFNAME, INET_PROTO), INET_SERVICE), 24),
        (pair(IPV4_ADDR, INET_SERVICE), 8),
    ),
    map(
        Set::Entered6,
        Family::Inet,
        "entered6",
        (pair(pair(IFNAME, INET_PROTO), INET_SERVICE), 24),
        (pair(IPV6_ADDR, INET_SERVICE), 20),
    ),
    map(Set::Uplinks, Family::Inet, "uplinks", (IFNAME, NAME_LEN), (IPV4_ADDR, 4)),
    plain(Set::Guarded, Family::Inet, "guarded", pair(INET_PROTO, INET_SERVICE), 8),
    plain(Set::Peers, Family::Inet, "peers", IPV4_ADDR, 4),
    plain(Set::Peers6, Family::Inet, "peers6", IPV6_ADDR, 16),
    plain(Set::Tunnels, Family::Inet, "tunnels", INET_SERVICE, 2),
    plain(Set::Outbound, Family::Inet, "outbound", IFNAME, NAME_LEN),
    plain(Set::Ingress, Family::Inet, "ingress", IFNAME, NAME_LEN),
    plain(Set::Hairpins, Family::Inet, "hairpins", pair(IPV4_ADDR, IPV4_ADDR), 8),
    plain(Set::Hairpins6, Family::Inet, "hairpins6", pair(IPV6_ADDR, IPV6_ADDR), 32),
    map(Set::Gateways, Family::Inet, "gateways", (IFNAME, NAME_LEN), (IPV4_ADDR, 4)),
    map(Set::Gateways6, Family::Inet, "gateways6", (IFNAME, NAME_LEN), (IPV6_ADDR, 16)),
    map(Set::Nodes, Family::Inet, "nodes", (ETHER_ADDR, 6), (MARK, 4)),
    map(Set::Services, Family::Inet, "services", (pair(IFNAME, IPV4_ADDR), 20), (VERDICT, 16)),
    map(Set::Services6, Family::Inet, "services6", (pair(IFNAME, IPV6_ADDR), 32), (VERDICT, 16)),
    map(Set::Mesh, Family::Inet, "published", (pair(INET_PROTO, INET_SERVICE), 8), (VERDICT, 16)),
    map(Set::Mesh6, Family::Inet, "published6", (pair(INET_PROTO, INET_SERVICE), 8), (VERDICT, 16)),
    plain(Set::Restricted, Family::Inet, "restricted", pair(IFNAME, IPV4_ADDR), 20),
    plain(Set::Restricted6, Family::Inet, "restricted6", pair(IFNAME, IPV6_ADDR), 32),
    map(Set::Callers, Family::Inet, "callers", (pair(IFNAME, IPV4_ADDR), 20), (MARK, 4)),
    map(Set::Callers6, Family::Inet, "callers6", (pair(IFNAME, IPV6_ADDR), 32), (MARK, 4)),
    plain(Set::Allowed, Family::Inet, "allowed", pair(pair(IFNAME, IPV4_ADDR), MARK), 24),
    plain(Set::Allowed6, Family::Inet, "allowed6", pair(pair(IFNAME, IPV6_ADDR), MARK), 36),
    plain(Set::Ports, Family::Bridge, "ports", IFNAME, NAME_LEN),
    plain(Set::Macs, Family::Bridge, "macs", pair(IFNAME, ETHER_ADDR), 24),
    plain(Set::Sources, Family::Bridge, "sources", pair(pair(IFNAME, ETHER_ADDR), IPV4_ADDR), 28),
    plain(Set::Sources6, Family::Bridge, "sources6", pair(pair(IFNAME, ETHER_ADDR), IPV6_ADDR), 40),
    map(Set::Here, Family::Bridge, "here", (pair(IFNAME, IPV4_ADDR), 20), (ETHER_ADDR, 6)),
    map(Set::Elsewhere, Family::Bridge, "elsewhere", (IPV4_ADDR, 4), (ETHER_ADDR, 6)),
    flows(Set::Calls, "calls", (IPV4_ADDR, 4)),
    flows(Set::Answers, "answers", (IPV4_ADDR, 4)),
    flows(Set::Meshed, "meshed", (ETHER_ADDR, 6)),
];

/// The rule set of one network namespace: the same tables, with other sets and chains in them.
#[derive(Debug)]
pub(crate) struct Layout {
    pub sets: &'static [Set],
    /// In the order in which they are made.
    pub chains: fn() -> Vec<ChainSpec>,
    /// First words of the chains that come and go, see [`super::Balancer`].
    pub balancers: &'static [&'static str],
}

impl Layout {
    pub fn specs(&self) -> impl Iterator<Item = &'static SetSpec> {
        self.sets.iter().map(|set| set.spec())
    }

    pub fn is_balancer(&self, chain: &str) -> bool {
        self.balancers.iter().any(|prefix| chain.starts_with(prefix))
    }
}

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
pub(crate) const REG_3: u32 = 3;
/// The second word of [`REG_1`], its third, and its fourth.
pub(crate) const WORD_1: u32 = 9;
pub(crate) const WORD_2: u32 = 10;
pub(crate) const WORD_3: u32 = 11;
/// The second word of [`REG_2`], and its third.
pub(crate) const WORD_5: u32 = 13;
const WORD_6: u32 = 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Mark = 3,
    Iifname = 6,
    Oifname = 7,
    Iiftype = 8,
    Nfproto = 15,
    L4proto = 16,
}

/// What is known of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ct {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
}

pub(crate) const CT_INVALID: u32 = 1;
pub(crate) const CT_ESTABLISHED: u32 = 2;
pub(crate) const CT_RELATED: u32 = 4;
pub(crate) const CT_STATUS_SNAT: u32 = 1 << 4;
pub(crate) const CT_STATUS_DNAT: u32 = 1 << 5;

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
    /// As [`Self::Jump`], without coming back.
    Goto(&'static str),
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
    /// Goes on only if register 1 does not equal these bytes.
    Differs(Vec<u8>),
    /// Goes on only if one of these bits is set in the byte in register 1.
    AnyBitOfByte(u8),
    /// Goes on only if none of these bits is set in the byte in register 1.
    NoBitOfByte(u8),
    /// Goes on only if what is left of register 1 under the mask is the value (or, `not`, is not).
    Masked {
        mask: Vec<u8>,
        value: Vec<u8>,
        not: bool,
    },
    /// Goes on only if register 1 is found (or, `absent`, is not).
    Lookup {
        set: Set,
        absent: bool,
    },
    /// Goes on with the data found under register 1 in register 1.
    Map(Set),
    /// Goes on only for a destination that is an address of this node.
    ToThisNode,
    /// Loads what is known of the connection into register 1.
    Ct(Ct),
    /// Loads the IPv4 address that the connection was opened to, before any translation, into register 1.
    CalledAddress,
    /// Goes on only if connection tracking will keep the connection for longer than this, in seconds, without a packet.
    KeptLonger(u32),
    /// Goes on only if one of these bits is set in register 1.
    AnyOf(u32),
    /// Goes on only if the byte in register 1 is one of these or between them.
    Between(u8, u8),
    /// Goes on only if register 1 is not 0.
    NotZero,
    /// Loads a constant into register 1.
    Load(Vec<u8>),
    /// Marks the connection with register 1.
    MarkConnection,
    /// Marks the packet with register 1.
    MarkPacket,
    /// Gives the frame the MAC in register 1 as its destination.
    SendTo,
    /// Puts register 1 in the place of the IPv4 address at `offset` of its header, and mends the checksums.
    SetAddress {
        offset: u32,
    },
    /// Adds an element to a learned map, of key in register 1 and data in register 2, unless the key is there.
    Learn(Set),
    /// Deletes the element of the key in register 1; register 2 is to hold something, but does not count.
    Unlearn(Set),
    /// Keeps the packet out of connection tracking.
    Untracked,
    /// Goes on in the chain found under register 1, if there is one.
    Dispatch(Set),
    /// Loads a number below this into register 1, drawn for each packet.
    Draw(u32),
    /// Goes on with the data found under register 1 in a set without a name.
    Pick {
        name: String,
        id: Option<u32>,
    },
    /// Sets the segment size that a TCP peer will use to what the route carries.
    ClampMss,
    /// Answers with a TCP reset.
    Reset,
    /// Answers with "port unreachable".
    Unreachable,
    /// Translates the destination to the address in register 1 and, if asked for, the port in its second word.
    Dnat {
        ipv6: bool,
        port: bool,
    },
    /// Translates the source to the address in register 1.
    Snat {
        ipv6: bool,
    },
    /// Translates the source's port to one of these.
    SnatPorts {
        first: u16,
        last: u16,
    },
    Masquerade,
    Verdict(Verdict),
}

pub(super) fn in_set(key: Meta, set: Set) -> [Expr; 2] {
    [Expr::Meta { key, to: REG_1 }, Expr::Lookup { set, absent: false }]
}

/// The device is the one of that name.
pub(super) fn name_is(key: Meta, name: &str) -> [Expr; 2] {
    [Expr::Meta { key, to: REG_1 }, Expr::Equal(super::name_bytes(name).to_vec())]
}

/// The device is one whose name begins with that.
pub(super) fn name_begins(key: Meta, prefix: &str) -> [Expr; 2] {
    [Expr::Meta { key, to: REG_1 }, Expr::Equal(prefix.as_bytes().to_vec())]
}

/// It is UDP, to one of the ports of the tunnels.
pub(super) fn tunnelled() -> [Expr; 4] {
    [
        Expr::Meta { key: Meta::L4proto, to: REG_1 },
        Expr::Equal(vec![libc::IPPROTO_UDP as u8]),
        Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: REG_1 },
        Expr::Lookup { set: Set::Tunnels, absent: false },
    ]
}

pub(super) fn l4proto(protocol: i32) -> [Expr; 2] {
    [Expr::Meta { key: Meta::L4proto, to: REG_1 }, Expr::Equal(vec![protocol as u8])]
}

pub(super) fn l4proto_not(protocol: i32) -> [Expr; 2] {
    [Expr::Meta { key: Meta::L4proto, to: REG_1 }, Expr::Differs(vec![protocol as u8])]
}

pub(super) fn not_in_set(key: Meta, set: Set) -> [Expr; 2] {
    [Expr::Meta { key, to: REG_1 }, Expr::Lookup { set, absent: true }]
}

pub(super) fn ipv4() -> [Expr; 2] {
    [Expr::Meta { key: Meta::Nfproto, to: REG_1 }, Expr::Equal(vec![libc::NFPROTO_IPV4 as u8])]
}

pub(super) fn ipv6() -> [Expr; 2] {
    [Expr::Meta { key: Meta::Nfproto, to: REG_1 }, Expr::Equal(vec![libc::NFPROTO_IPV6 as u8])]
}

/// The connection is in one of these states.
pub(super) fn state(bits: u32) -> [Expr; 2] {
    [Expr::Ct(Ct::State), Expr::AnyOf(bits)]
}

/// The first byte of an address in the IPv4 header at `offset` is 127.
pub(super) fn loopback(offset: u32) -> [Expr; 2] {
    [Expr::Payload { base: Base::Network, offset, len: 1, to: REG_1 }, Expr::Equal(vec![127])]
}

pub(super) fn ether_type(kind: u16) -> [Expr; 2] {
    [
        Expr::Payload { base: Base::Link, offset: 12, len: 2, to: REG_1 },
        Expr::Equal(kind.to_be_bytes().to_vec()),
    ]
}

/// It is none of that kind.
pub(super) fn ether_type_not(kind: u16) -> [Expr; 2] {
    let [load, _] = ether_type(kind);
    [load, Expr::Differs(kind.to_be_bytes().to_vec())]
}

/// Loads the device, and the MAC that is at `offset` in a header.
fn device_and_mac(base: Base, offset: u32) -> [Expr; 2] {
    [Expr::Meta { key: Meta::Iifname, to: REG_1 }, Expr::Payload { base, offset, len: 6, to: REG_2 }]
}

/// Device, MAC and IPv4 address are those of a container; the address is at `offset`.
fn source(mac: (Base, u32), offset: u32) -> Vec<Expr> {
    let address = Expr::Payload { base: Base::Network, offset, len: 4, to: WORD_6 };
    let known = Expr::Lookup { set: Set::Sources, absent: false };
    rule([&device_and_mac(mac.0, mac.1), &[address, known]])
}

/// The same of IPv6.
fn source6() -> Vec<Expr> {
    let address = Expr::Payload { base: Base::Network, offset: 8, len: 16, to: WORD_6 };
    let known = Expr::Lookup { set: Set::Sources6, absent: false };
    rule([&device_and_mac(Base::Link, 6), &[address, known]])
}

/// Messages of neighbour discovery, of routers too. Nobody needs them where all neighbours are set for good.
/// Source: RFC 4861, section 4: types 133 to 137.
fn discovery() -> Vec<Expr> {
    vec![
        Expr::Meta { key: Meta::L4proto, to: REG_1 },
        Expr::Equal(vec![libc::IPPROTO_ICMPV6 as u8]),
        Expr::Payload { base: Base::Transport, offset: 0, len: 1, to: REG_1 },
        Expr::Between(133, 137),
    ]
}

/// Goes on only for connections whose destination was translated.
pub(super) fn translated() -> [Expr; 2] {
    [Expr::Ct(Ct::Status), Expr::AnyOf(CT_STATUS_DNAT)]
}

pub(super) fn rule<const N: usize>(parts: [&[Expr]; N]) -> Vec<Expr> {
    parts.concat()
}

/// A chain of the `inet` table.
pub(super) fn inet(
    name: &'static str,
    kind: &'static str,
    number: i32,
    priority: i32,
    rules: Vec<Vec<Expr>>,
) -> ChainSpec {
    let hook = Some(Hook { kind, number: number as u32, priority });
    ChainSpec { family: Family::Inet, name, hook, rules }
}

/// Chains in which frames of overlays go on.
pub(super) struct Onward {
    /// What the names of links to other nodes begin with, whose frames are trusted.
    pub prefix: &'static str,
    pub trusted: &'static str,
    /// For IPv4 of containers that has passed the check.
    pub checked: &'static str,
}

/// What a container sends must bear its own addresses, and be IPv4, ARP or, where the network has it, IPv6: anything else,
/// tagged frames too, would be looked at by nobody. Neighbour discovery is nobody's business.
pub(super) fn source_check(onward: Option<&Onward>) -> ChainSpec {
    let accept = &[Expr::Verdict(Verdict::Accept)];
    let goto = |chain| Expr::Verdict(Verdict::Goto(chain));
    let trusted =
        |onward: &Onward| rule([&name_begins(Meta::Iifname, onward.prefix), &[goto(onward.trusted)]]);
    let checked = &[onward.map_or(Expr::Verdict(Verdict::Accept), |onward| goto(onward.checked))];
    let drop = &[Expr::Verdict(Verdict::Drop)];
    let ipv6 = &ether_type(0x86dd);
    // By far the most packets are IPv4 and honest: one look-up lets them pass.
    let checks = [
        rule([&ether_type(0x0800), &source((Base::Link, 6), 12), checked]),
        rule([&not_in_set(Meta::Iifname, Set::Ports), accept]),
        rule([ipv6, &discovery(), drop]),
        rule([ipv6, &source6(), accept]),
        rule([&device_and_mac(Base::Link, 6), &[Expr::Lookup { set: Set::Macs, absent: true }], drop]),
        rule([&ether_type(0x0806), &source((Base::Network, 8), 14), accept]),
        vec![Expr::Verdict(Verdict::Drop)],
    ];
    ChainSpec {
        family: Family::Bridge,
        name: "prerouting",
        hook: Some(Hook { kind: "filter", number: 0, priority: -300 }),
        rules: onward.map(trusted).into_iter().chain(checks).collect(),
    }
}

/// The chain that belongs to the operator.
pub(crate) const OPERATOR: &str = "operator";
