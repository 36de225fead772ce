//! The steps of a rule on the wire.
//!
//! Source: Linux `include/uapi/linux/netfilter/nf_tables.h`.

use super::{
    Set,
    message::{DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, LIST_ITEM, VERDICT_CHAIN, VERDICT_CODE},
    rules::{Base, Ct, Expr, Meta, REG_1, REG_2, Verdict, WORD_1},
};
use crate::netlink::{Attributes, attributes, find, text};

/// Where a verdict goes.
const VERDICT_REGISTER: u32 = 0;

pub(super) fn encode_rule(expressions: &[Expr]) -> Attributes {
    let mut list = Attributes::new();
    for expression in expressions {
        for (name, data) in encode_expression(expression) {
            let item = Attributes::new().text(EXPR_NAME, name).nest(EXPR_DATA, &data);
            list = list.nest(LIST_ITEM, &item);
        }
    }
    list
}

fn compare(operator: u32, value: &[u8]) -> (&'static str, Attributes) {
    let data = Attributes::new().bytes(DATA_VALUE, value);
    ("cmp", Attributes::new().be32(1, REG_1).be32(2, operator).nest(3, &data))
}

fn load(register: u32, value: &[u8]) -> (&'static str, Attributes) {
    let data = Attributes::new().bytes(DATA_VALUE, value);
    ("immediate", Attributes::new().be32(1, register).nest(2, &data))
}

/// Goes on only if one of `bits` is set in register 1.
fn any_of(bits: &[u8]) -> Vec<(&'static str, Attributes)> {
    masked(bits, 1)
}

/// Compares what is left of register 1 under `bits` with zero.
fn masked(bits: &[u8], operator: u32) -> Vec<(&'static str, Attributes)> {
    masked_as(bits, &vec![0; bits.len()], operator)
}

/// Compares what is left of register 1 under `bits` with `wanted`.
fn masked_as(bits: &[u8], wanted: &[u8], operator: u32) -> Vec<(&'static str, Attributes)> {
    let zero = vec![0; bits.len()];
    let value = |bytes: &[u8]| Attributes::new().bytes(DATA_VALUE, bytes);
    let and = Attributes::new()
        .be32(1, REG_1)
        .be32(2, REG_1)
        .be32(3, bits.len() as u32)
        .nest(4, &value(bits))
        .nest(5, &value(&zero));
    vec![("bitwise", and), compare(operator, wanted)]
}

/// Turns the number of that many bytes in register 1 into network byte order.
fn to_network_order(len: u32) -> (&'static str, Attributes) {
    const TO_NETWORK_ORDER: u32 = 1;
    let turn = Attributes::new().be32(1, REG_1).be32(2, REG_1).be32(3, TO_NETWORK_ORDER);
    ("byteorder", turn.be32(4, len).be32(5, len))
}

/// Changes a learned map as packets pass.
fn dynamic(set: Set, operation: u32) -> Attributes {
    Attributes::new().text(1, set.spec().name).be32(3, operation).be32(4, REG_1).be32(5, REG_2)
}

fn family(ipv6: bool) -> u32 {
    (if ipv6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 }) as u32
}

fn encode_expression(expression: &Expr) -> Vec<(&'static str, Attributes)> {
    const FIB_ADDRESS_TYPE: u32 = 3;
    const FIB_BY_DESTINATION: u32 = 2;
    let lookup = |set: Set| Attributes::new().text(1, set.spec().name).be32(2, REG_1);
    match expression {
        Expr::Meta { key, to } => vec![("meta", Attributes::new().be32(1, *to).be32(2, *key as u32))],
        Expr::Payload { base, offset, len, to } => vec![(
            "payload",
            Attributes::new().be32(1, *to).be32(2, *base as u32).be32(3, *offset).be32(4, *len),
        )],
        Expr::Equal(value) => vec![compare(0, value)],
        Expr::Lookup { set, absent: false } => vec![("lookup", lookup(*set))],
        Expr::Lookup { set, absent: true } => vec![("lookup", lookup(*set).be32(5, 1))],
        Expr::Map(set) => vec![("lookup", lookup(*set).be32(3, REG_1))],
        Expr::ToThisNode => vec![
            ("fib", Attributes::new().be32(1, REG_1).be32(2, FIB_ADDRESS_TYPE).be32(3, FIB_BY_DESTINATION)),
            compare(0, &u32::from(libc::RTN_LOCAL).to_ne_bytes()),
        ],
        Expr::Differs(value) => vec![compare(1, value)],
        Expr::Ct(key) => vec![("ct", Attributes::new().be32(1, REG_1).be32(2, *key as u32))],
        Expr::AnyOf(bits) => any_of(&bits.to_ne_bytes()),
        Expr::AnyBitOfByte(bits) => any_of(&[*bits]),
        Expr::NoBitOfByte(bits) => masked(&[*bits], 0),
        Expr::Masked { mask, value, not } => masked_as(mask, value, u32::from(*not)),
        Expr::CalledAddress => {
            const DESTINATION_IPV4: u32 = 20;
            const ORIGINAL: u8 = 0;
            vec![("ct", Attributes::new().be32(1, REG_1).be32(2, DESTINATION_IPV4).bytes(3, &[ORIGINAL]))]
        }
        Expr::KeptLonger(seconds) => {
            const EXPIRATION: u32 = 5;
            const GREATER: u32 = 4;
            let load = Attributes::new().be32(1, REG_1).be32(2, EXPIRATION);
            vec![("ct", load), to_network_order(4), compare(GREATER, &(seconds * 1000).to_be_bytes())]
        }
        Expr::SetAddress { offset } => {
            const INET_CHECKSUM: u32 = 1;
            const CHECKSUM_OFFSET: u32 = 10;
            const ALSO_OF_TRANSPORT: u32 = 1;
            let to =
                Attributes::new().be32(2, Base::Network as u32).be32(3, *offset).be32(4, 4).be32(5, REG_1);
            vec![("payload", to.be32(6, INET_CHECKSUM).be32(7, CHECKSUM_OFFSET).be32(8, ALSO_OF_TRANSPORT))]
        }
        Expr::Learn(set) => vec![("dynset", dynamic(*set, 0))],
        Expr::Unlearn(set) => vec![("dynset", dynamic(*set, 2))],
        Expr::Between(first, last) => {
            let end = |byte: u8| Attributes::new().bytes(DATA_VALUE, &[byte]);
            vec![(
                "range",
                Attributes::new().be32(1, REG_1).be32(2, 0).nest(3, &end(*first)).nest(4, &end(*last)),
            )]
        }
        Expr::NotZero => vec![compare(1, &0u32.to_ne_bytes())],
        Expr::Load(value) => vec![load(REG_1, value)],
        Expr::MarkConnection => vec![("ct", Attributes::new().be32(2, Ct::Mark as u32).be32(4, REG_1))],
        Expr::MarkPacket => vec![("meta", Attributes::new().be32(2, Meta::Mark as u32).be32(3, REG_1))],
        Expr::SendTo => {
            let (offset, len) = (0, 6);
            let to = Attributes::new().be32(2, Base::Link as u32).be32(3, offset).be32(4, len).be32(5, REG_1);
            vec![("payload", to)]
        }
        Expr::Untracked => vec![("notrack", Attributes::new())],
        Expr::Dispatch(set) => vec![("lookup", lookup(*set).be32(3, VERDICT_REGISTER))],
        Expr::Draw(below) => {
            const RANDOM: u32 = 1;
            vec![("numgen", Attributes::new().be32(1, REG_1).be32(2, *below).be32(3, RANDOM).be32(4, 0))]
        }
        Expr::Pick { name, id } => {
            let lookup = Attributes::new().text(1, name).be32(2, REG_1).be32(3, REG_1);
            vec![("lookup", id.map_or(lookup.clone(), |id| lookup.be32(4, id)))]
        }
        Expr::ClampMss => {
            const ROUTE_TCP_MSS: u32 = 3;
            const OPTION_MAXSEG: u8 = 2;
            const OF_TCP_OPTION: u32 = 1;
            vec![
                ("rt", Attributes::new().be32(1, REG_1).be32(2, ROUTE_TCP_MSS)),
                to_network_order(2),
                (
                    "exthdr",
                    Attributes::new()
                        .bytes(2, &[OPTION_MAXSEG])
                        .be32(3, 2)
                        .be32(4, 2)
                        .be32(6, OF_TCP_OPTION)
                        .be32(7, REG_1),
                ),
            ]
        }
        Expr::Reset => vec![("reject", Attributes::new().be32(1, 1))],
        Expr::Unreachable => vec![("reject", Attributes::new().be32(1, 2).bytes(2, &[1]))],
        Expr::Dnat { ipv6, port } => {
            let nat = Attributes::new().be32(1, 1).be32(2, family(*ipv6)).be32(3, REG_1);
            // Behind the address.
            let port_at = if *ipv6 { REG_2 } else { WORD_1 };
            vec![("nat", if *port { nat.be32(5, port_at) } else { nat })]
        }
        Expr::Snat { ipv6 } => {
            vec![("nat", Attributes::new().be32(1, 0).be32(2, family(*ipv6)).be32(3, REG_1))]
        }
        Expr::SnatPorts { first, last } => {
            let nat = Attributes::new().be32(1, 0).be32(2, libc::NFPROTO_IPV4 as u32);
            // Each in a register of its own, else `nft` cannot print the rule.
            let [from, to] = [(REG_1, first), (REG_2, last)].map(|(to, port)| load(to, &port.to_be_bytes()));
            vec![from, to, ("nat", nat.be32(5, REG_1).be32(6, REG_2))]
        }
        Expr::Masquerade => vec![("masq", Attributes::new())],
        Expr::Verdict(verdict) => {
            let code = match verdict {
                Verdict::Drop => libc::NF_DROP,
                Verdict::Accept => libc::NF_ACCEPT,
                Verdict::Jump(_) => libc::NFT_JUMP,
                Verdict::Goto(_) => libc::NFT_GOTO,
            };
            let mut inner = Attributes::new().be32(VERDICT_CODE, code as u32);
            if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
                inner = inner.text(VERDICT_CHAIN, chain);
            }
            let data = Attributes::new().nest(DATA_VERDICT, &inner);
            vec![("immediate", Attributes::new().be32(1, 0).nest(2, &data))]
        }
    }
}

/// Whether everything we `sent` for a rule is in what the kernel shows, expression by expression. The kernel may add
/// attributes of its own (defaults, counters), so equality would be too much to ask.
pub(super) fn same_rule(sent: &[u8], shown: &[u8]) -> bool {
    let items = |list| attributes(list).filter(|&(kind, _)| kind == LIST_ITEM).map(|(_, item)| item);
    items(sent).count() == items(shown).count()
        && items(sent).zip(items(shown)).all(|(sent, shown)| {
            let data = |item| find(item, EXPR_DATA).unwrap_or_default();
            find(sent, EXPR_NAME).map(text) == find(shown, EXPR_NAME).map(text)
                && within(data(sent), data(shown))
        })
}

/// Every attribute in `sent` is in `shown`, with the same value or, where nested, the same attributes.
fn within(sent: &[u8], shown: &[u8]) -> bool {
    attributes(sent).all(|(kind, value)| {
        find(shown, kind).is_some_and(|other| {
            value == other || (attributes(value).next().is_some() && within(value, other))
        })
    })
}
