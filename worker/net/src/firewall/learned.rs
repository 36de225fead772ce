//! Flows of TCP by IPv4 that had to be routed, and are switched once they last: by a service's virtual address between two
//! nodes, by a published port on the task's node, and answers by a task's own address. Read as nft would print it, `FLOW`
//! being `ip saddr . tcp sport . ip daddr . tcp dport`:
//!
//! ```text
//! table inet rswarm {
//!   chain forward      { numgen random mod 32 == 0 jump learn, and then as in super::helper }
//!   chain learn        { LASTING iifname @ingress oifname @ingress ct mark != 0 meta mark set 0x1fff
//!                        LASTING ct mark 0 ct direction original ct status dnat / snat,dnat iifname . oifname @within
//!                          ct original ip daddr & 0.0.255.255 != 0.0.0.0 meta mark set ct original ip daddr
//!                        nfproto ipv4, tcp flags ack / fin,syn,rst,ack, th dport & 0x8000 != 0 ct state invalid
//!                          iifname . oifname @within meta mark set 0x1ffe }
//! }                      LASTING: nfproto ipv4, tcp flags ack / fin,syn,rst,ack, ct state established ct expiration > 2h
//! table bridge rswarm {
//!   map calls          { FLOW : ip daddr;    flags dynamic,timeout; timeout 1h }
//!   map answers        { FLOW : ip saddr;    … }
//!   map meshed         { FLOW : ether daddr; … }
//!   chain output       { type filter hook output priority filter
//!                        meta mark & 0xfffff000 == 0 accept
//!                        meta mark 0x1fff add @meshed { FLOW : ether daddr } accept
//!                        meta mark 0x1ffe add @answers { FLOW : ip saddr } accept
//!                        oifname "rsx*" add @calls { ip saddr . tcp sport . meta mark . tcp dport : ip daddr }
//!                        oifname "rsx*" add @answers { ip daddr . tcp dport . ip saddr . tcp sport : meta mark } }
//!   chain to-middle, after what helper has there
//!                      { th sport & 0x8000 != 0 ip daddr set FLOW map @calls ether daddr set ip daddr map @elsewhere accept
//!                        th sport & 0x8000 == 0 ether daddr set FLOW map @meshed accept }
//!   chain from-middle  { th dport & 0x8000 != 0 ip saddr set FLOW map @answers ether daddr set iifname . ip daddr map @here accept
//!                        th dport & 0x8000 == 0 ether daddr set FLOW map @meshed accept }
//!   chain to-elsewhere, likewise
//!                      { th sport & 0x8000 != 0 FLOW map @calls != 0.0.0.0 goto call
//!                        th sport & 0x8000 == 0 FLOW map @meshed != 00:00:00:00:00:00 goto mesh }
//!   chain from-elsewhere
//!                      { by th dport, goto answer or goto mesh }
//!   chain call         { meta mark set FLOW map @calls
//!                          delete @answers { meta mark . tcp dport . ip saddr . tcp sport … } meta mark set 0
//!                        delete @calls { FLOW … } accept }
//!   chain answer and chain mesh
//!                      { likewise }
//! }
//! ```
//!
//! - A connection begins routed: checked, tracked, translated. Of its later segments one in [`ONE_IN`] is marked (`learn`) with what
//!   the bridge cannot know, the virtual address, and `output` notes where that segment, as it left, went. From then on the
//!   bridge does the same to all that follow, both ways. Short connections mostly end before, and cost next to nothing.
//! - What is called by its own address answers from there, which only routing can tell from an answer of a service: the
//!   bridge learns that it stays as it is. The answer to an opening forgets what was learned of an earlier connection of the same ports.
//! - Segments that open or end a connection are always routed, so tracking sees them, and the connection is forgotten first, both
//!   ways. It is not learned again: tracking keeps what has been ended from one side for minutes only, and has to see each segment.
//! - An element goes after [`KEPT`], whether used or not: the next segments are routed, and tracking learns that the connection
//!   lives. It keeps one for longer than that, also if the last segment that it saw was never acknowledged, as far as it knows
//!   (`nf_conntrack_tcp_timeout_unacknowledged` in [`crate::overlay::helper`]).
//! - When a task goes, tracking forgets its connections, and the bridge all that it has learned: what still lives is learned anew.
//! - Clients have ports from 32768 on, see [`super::helper`]; below are services. So whatever is routed costs one look-up.
//! - Linux before 6.5, but for the stable series that had it mended, does not free what is deleted by a rule. [`CAPACITY`] bounds
//!   that; when it is reached, flows are routed.

use super::{
    Set,
    helper::{ACK, FLAGS, SYN, below_clients, elsewhere, here, within},
    rules::{
        Base, CT_ESTABLISHED, CT_INVALID, CT_STATUS_DNAT, CT_STATUS_SNAT, ChainSpec, Ct, Expr, Family, Hook,
        Meta, REG_1, REG_2, Verdict, WORD_1, WORD_2, WORD_3, in_set, ipv4, l4proto, name_begins, rule, state,
    },
};

/// Of the segments that are routed, one in so many makes its flow known.
const ONE_IN: u32 = 32;
/// How long a flow is known, in seconds.
pub(super) const KEPT: u32 = 3600;
/// Of how many flows each map knows at most.
pub(super) const CAPACITY: u32 = 65536;

/// Mark of a segment that came in, or goes back, by a published port. Nodes have lower ones, and a virtual address a higher
/// one, unless it ends in `.0.0`.
const MESH_MARK: u32 = 0x1fff;
/// Mark of an answer to a call by a task's own address.
const DIRECT_MARK: u32 = 0x1ffe;
const BELOW_MARKS: u32 = 0xffff_f000;

/// Where an IPv4 header has its addresses, and a TCP header its ports.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

const FIN: u8 = 1;
const RST: u8 = 4;

/// What marks the segments that the bridge is to learn from.
const LEARN: &str = "learn";

const ACCEPT: Expr = Expr::Verdict(Verdict::Accept);

fn address(offset: u32, to: u32) -> Expr {
    Expr::Payload { base: Base::Network, offset, len: 4, to }
}

fn port(offset: u32, to: u32) -> Expr {
    Expr::Payload { base: Base::Transport, offset, len: 2, to }
}

fn receiver(to: u32) -> Expr {
    Expr::Payload { base: Base::Link, offset: 0, len: 6, to }
}

/// Loads the flow that the segment belongs to.
fn flow() -> [Expr; 4] {
    [
        address(SOURCE, REG_1),
        port(SOURCE_PORT, WORD_1),
        address(DESTINATION, WORD_2),
        port(DESTINATION_PORT, WORD_3),
    ]
}

/// Loads the flow of the answers to this segment.
fn backwards() -> [Expr; 4] {
    [
        address(DESTINATION, REG_1),
        port(DESTINATION_PORT, WORD_1),
        address(SOURCE, WORD_2),
        port(SOURCE_PORT, WORD_3),
    ]
}

/// Goes on only with segments of TCP in the middle of a connection.
pub(super) fn in_the_middle() -> [Expr; 2] {
    [FLAGS, Expr::Masked { mask: vec![FIN | SYN | RST | ACK], value: vec![ACK], not: false }]
}

/// The port at `offset` is one that clients have.
fn of_client(offset: u32) -> [Expr; 2] {
    let high = Expr::Payload { base: Base::Transport, offset, len: 1, to: REG_1 };
    [high, Expr::AnyBitOfByte(0x80)]
}

/// Picks segments out of what is forwarded.
pub(super) fn pick() -> Vec<Expr> {
    vec![Expr::Draw(ONE_IN), Expr::Equal(vec![0; 4]), Expr::Verdict(Verdict::Jump(LEARN))]
}

/// Marks what the bridge is to learn.
fn learn() -> ChainSpec {
    let lasting = &rule([
        &ipv4(),
        &l4proto(libc::IPPROTO_TCP),
        &in_the_middle(),
        &state(CT_ESTABLISHED),
        &[Expr::KeptLonger(2 * KEPT)],
    ]);
    let translated = Expr::Masked {
        mask: (CT_STATUS_SNAT | CT_STATUS_DNAT).to_ne_bytes().to_vec(),
        value: CT_STATUS_DNAT.to_ne_bytes().to_vec(),
        not: false,
    };
    let no_mark = Expr::Masked { mask: vec![0, 0, 255, 255], value: vec![0; 4], not: true };
    ChainSpec {
        family: Family::Inet,
        name: LEARN,
        hook: None,
        rules: vec![
            rule([
                lasting,
                &in_set(Meta::Iifname, Set::Ingress),
                &in_set(Meta::Oifname, Set::Ingress),
                &[Expr::Ct(Ct::Mark), Expr::NotZero],
                &[Expr::Load(MESH_MARK.to_ne_bytes().to_vec()), Expr::MarkPacket],
            ]),
            rule([
                lasting,
                &[Expr::Ct(Ct::Mark), Expr::Equal(vec![0; 4])],
                &[Expr::Ct(Ct::Direction), Expr::Equal(vec![0])],
                &[Expr::Ct(Ct::Status), translated],
                &within(),
                &[Expr::CalledAddress, no_mark, Expr::CalledAddress, Expr::MarkPacket],
            ]),
            // Of a connection that is not tracked.
            rule([
                &ipv4(),
                &l4proto(libc::IPPROTO_TCP),
                &in_the_middle(),
                &of_client(DESTINATION_PORT),
                &state(CT_INVALID),
                &within(),
                &[Expr::Load(DIRECT_MARK.to_ne_bytes().to_vec()), Expr::MarkPacket],
            ]),
        ],
    }
}

/// Notes where marked segments go as they leave the bridge.
fn output() -> ChainSpec {
    const LOCAL_OUT: u32 = 3;
    let tunnel = &name_begins(Meta::Oifname, super::helper::TUNNEL);
    let called = Expr::Meta { key: Meta::Mark, to: WORD_2 };
    let call = [address(SOURCE, REG_1), port(SOURCE_PORT, WORD_1), called, port(DESTINATION_PORT, WORD_3)];
    let unmarked = Expr::Masked { mask: BELOW_MARKS.to_ne_bytes().to_vec(), value: vec![0; 4], not: false };
    let marked =
        |mark: u32| [Expr::Meta { key: Meta::Mark, to: REG_1 }, Expr::Equal(mark.to_ne_bytes().to_vec())];
    ChainSpec {
        family: Family::Bridge,
        name: "output",
        hook: Some(Hook { kind: "filter", number: LOCAL_OUT, priority: 0 }),
        rules: vec![
            vec![Expr::Meta { key: Meta::Mark, to: REG_1 }, unmarked, ACCEPT],
            rule([&marked(MESH_MARK), &flow(), &[receiver(REG_2), Expr::Learn(Set::Meshed), ACCEPT]]),
            // It comes from where it says.
            rule([
                &marked(DIRECT_MARK),
                &flow(),
                &[address(SOURCE, REG_2), Expr::Learn(Set::Answers), ACCEPT],
            ]),
            rule([tunnel, &call, &[address(DESTINATION, REG_2), Expr::Learn(Set::Calls)]]),
            rule([
                tunnel,
                &backwards(),
                &[Expr::Meta { key: Meta::Mark, to: REG_2 }, Expr::Learn(Set::Answers)],
            ]),
        ],
    }
}

/// A way that segments take which are of a learned flow.
pub(super) struct Way {
    set: Set,
    chain: &'static str,
    /// What is done to a segment, from what the map holds on.
    send: Vec<Expr>,
    /// Forgets the flow of what goes the other way.
    forget_back: Vec<Expr>,
}

/// Forgets the flow that is loaded.
fn forget(set: Set) -> [Expr; 2] {
    // What the element held is of no account.
    let held = if set == Set::Meshed { receiver(REG_2) } else { address(DESTINATION, REG_2) };
    [held, Expr::Unlearn(set)]
}

/// Forgets in `other` the flow that goes back by `set`: one address of its key is what the map holds. That gets there by the
/// packet's mark, for nft could not print a key with a look-up in its middle.
fn forget_back(set: Set, other: Set, key: impl FnOnce(fn(u32) -> Expr) -> [Expr; 4]) -> Vec<Expr> {
    rule([
        &flow(),
        &[Expr::Map(set), Expr::MarkPacket],
        &key(|to| Expr::Meta { key: Meta::Mark, to }),
        &forget(other),
        &[Expr::Load(vec![0; 4]), Expr::MarkPacket],
    ])
}

impl Way {
    /// Sends on a segment in the middle of a connection whose flow is of this kind, as `port` tells.
    pub(super) fn send(&self, port: &[Expr; 2]) -> Vec<Expr> {
        rule([port, &flow(), &[Expr::Map(self.set)], &self.send, &[Expr::SendTo, ACCEPT]])
    }

    /// Forgets the flow, both ways, of a segment that opens or ends a connection: tracking has to see what comes after an
    /// end, as it does not keep the connection for long then.
    pub(super) fn forget(&self, port: &[Expr; 2]) -> Vec<Expr> {
        // With its data, as Linux before 6.5 looks no map up without; and compared with nothing that it could be, else `nft`
        // would not show it.
        let len = self.set.spec().data.map_or(0, |(_, len)| len as usize);
        let known =
            [Expr::Map(self.set), Expr::Differs(vec![0; len]), Expr::Verdict(Verdict::Goto(self.chain))];
        rule([port, &flow(), &known])
    }

    /// Where the flow is forgotten.
    fn chain(&self) -> ChainSpec {
        let rules = vec![self.forget_back.clone(), rule([&flow(), &forget(self.set), &[ACCEPT]])];
        ChainSpec { family: Family::Bridge, name: self.chain, hook: None, rules }
    }
}

fn calls() -> Way {
    let send = rule([&[Expr::SetAddress { offset: DESTINATION }], &elsewhere()]);
    let from_backend = forget_back(Set::Calls, Set::Answers, |held| {
        [held(REG_1), port(DESTINATION_PORT, WORD_1), address(SOURCE, WORD_2), port(SOURCE_PORT, WORD_3)]
    });
    Way { set: Set::Calls, chain: "call", send, forget_back: from_backend }
}

fn answers() -> Way {
    let send = rule([&[Expr::SetAddress { offset: SOURCE }], &here()]);
    let to_service = forget_back(Set::Answers, Set::Calls, |held| {
        [address(DESTINATION, REG_1), port(DESTINATION_PORT, WORD_1), held(WORD_2), port(SOURCE_PORT, WORD_3)]
    });
    Way { set: Set::Answers, chain: "answer", send, forget_back: to_service }
}

fn meshed() -> Way {
    let forget_back = rule([&backwards(), &forget(Set::Meshed)]);
    Way { set: Set::Meshed, chain: "mesh", send: Vec::new(), forget_back }
}

/// For TCP by IPv4 of tasks: what [`Way::send`] or [`Way::forget`] has to do with segments of learned flows.
pub(super) fn to_elsewhere(what: fn(&Way, &[Expr; 2]) -> Vec<Expr>) -> [Vec<Expr>; 2] {
    [what(&calls(), &of_client(SOURCE_PORT)), what(&meshed(), &below_clients(SOURCE_PORT))]
}

/// The same for TCP by IPv4 from other nodes.
pub(super) fn from_elsewhere(what: fn(&Way, &[Expr; 2]) -> Vec<Expr>) -> [Vec<Expr>; 2] {
    [what(&answers(), &of_client(DESTINATION_PORT)), what(&meshed(), &below_clients(DESTINATION_PORT))]
}

/// The chains, those first that others lead to.
pub(super) fn chains() -> Vec<ChainSpec> {
    vec![calls().chain(), answers().chain(), meshed().chain(), learn(), output()]
}
