//! nf_tables on the wire: our tables, as one transaction for each change.
//!
//! Source: Linux `include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    Backends, Balancer, Element, Set,
    expression::encode_rule,
    learned, octets,
    rules::{
        self, ChainSpec, Expr, FAMILIES, Family, Hook, INET_SERVICE, IPV4_ADDR, IPV6_ADDR, Layout, Meta,
        OPERATOR, REG_1, SetSpec, VERDICT, pair,
    },
};
use crate::{
    error::KernelError,
    netlink::{Attributes, Message, Socket},
};

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DEL_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const DEL_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const DEL_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
pub(super) const DEL_SET: u16 = 11;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const GET_ELEMENT: u16 = 13;
pub(super) const DEL_ELEMENT: u16 = 14;
pub(super) const GET_GENERATION: u16 = 16;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const LIST_ITEM: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_DESCRIPTION: u16 = 9;
pub(super) const SET_TIMEOUT: u16 = 11;
pub(super) const SET_USERDATA: u16 = 13;
pub(super) const GENERATION_ID: u16 = 1;
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS_LIST: u16 = 3;
pub(super) const ELEMENTS_SET_ID: u16 = 4;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const SET_IS_ANONYMOUS: u32 = 1;
pub(super) const SET_IS_CONSTANT: u32 = 2;
pub(super) const SET_IS_MAP: u32 = 8;
pub(super) const SET_HAS_TIMEOUT: u32 = 16;
pub(super) const SET_IS_DYNAMIC: u32 = 32;
pub(super) const POLICY_ACCEPT: u32 = 1;
/// Attributes end at 64 KiB; the largest element takes some 80 bytes.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 500;

/// A change to the tables; a list of them is applied as one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// (Re)makes tables, chains, rules and sets as they should be, given what is there.
    Rules(Shape),
    Add(Element),
    Remove(Element),
    /// Makes the chain, or gives it other backends.
    Balance(Balancer),
    /// Deletes the chain of this name, which nothing may lead to any more.
    Unbalance(String),
    /// Empties a learned map.
    Forget(Set),
    /// Deletes the tables of these families, with all that is in them.
    Drop(Vec<Family>),
}

/// Which parts of our tables exist, and which of them are as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    pub(super) tables: BTreeSet<Family>,
    /// By name; whether the chain's type, hook and priority are right.
    pub(super) chains: BTreeMap<(Family, String), bool>,
    /// By name; whether the set's type is right.
    pub(super) sets: BTreeMap<(Family, String), bool>,
    /// Whether every rule is in its place and none besides.
    pub(super) rules: bool,
}

impl Shape {
    /// There is none of our tables.
    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Nothing is missing, changed or besides.
    pub(crate) fn intact(&self, layout: &Layout) -> bool {
        self == &Self::wanted(layout)
    }

    /// Whether the set of `element` outlives [`Change::Rules`].
    pub(crate) fn keeps(&self, element: &Element) -> bool {
        let spec = element.set.spec();
        self.sets.get(&(spec.family, spec.name.to_owned())) == Some(&true)
    }

    /// As it is after [`Change::Rules`].
    pub(crate) fn wanted(layout: &Layout) -> Self {
        Self {
            tables: FAMILIES.into(),
            chains: (layout.chains)()
                .iter()
                .map(|chain| ((chain.family, chain.name.to_owned()), true))
                .collect(),
            sets: layout.specs().map(|set| ((set.family, set.name.to_owned()), true)).collect(),
            rules: true,
        }
    }
}

pub(super) fn message(kind: u16, family: Family, attributes: Attributes) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, &[family as u8, 0, 0, 0], attributes)
}

fn batch(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, &[0, 0, high, low], Attributes::new())
}

/// Applies `changes` wholly or not at all.
///
/// # Errors
/// What was refused, in words, and the kernel's answer.
pub(crate) fn apply(
    socket: &mut Socket,
    table: &str,
    layout: &Layout,
    changes: &[Change],
) -> Result<(), (String, KernelError)> {
    let messages = encode(table, layout, changes);
    if messages.is_empty() {
        return Ok(());
    }
    let requests: Vec<Message> = messages.iter().map(|(_, message)| message.clone()).collect();
    socket.transaction(&batch(BATCH_BEGIN), &requests, &batch(BATCH_END)).map_err(|(position, error)| {
        let what = position
            .and_then(|at| messages.get(at))
            .map_or("change the nft tables", |(what, _)| what.as_str());
        (what.to_owned(), error)
    })
}

/// The messages for `changes`, each with what it does; neighbouring elements of one set share a message.
fn encode(table: &str, layout: &Layout, changes: &[Change]) -> Vec<(String, Message)> {
    let mut out = Vec::new();
    let mut rest = changes;
    // Sets without a name are told apart by number within the transaction.
    let mut ids = 1000..;
    while let Some(first) = rest.first() {
        let (Change::Add(element) | Change::Remove(element)) = first else {
            match first {
                Change::Rules(shape) => encode_rules(table, layout, shape, &mut out),
                Change::Balance(balancer) => {
                    encode_balancer(table, balancer, ids.next().unwrap_or_default(), &mut out);
                }
                Change::Unbalance(chain) => {
                    let attributes = Attributes::new().text(CHAIN_TABLE, table).text(CHAIN_NAME, chain);
                    out.push((format!("flush nft chain `{chain}`"), flush(table, Family::Inet, chain)));
                    out.push((
                        format!("delete nft chain `{chain}`"),
                        message(DEL_CHAIN, Family::Inet, attributes),
                    ));
                }
                Change::Forget(set) => {
                    let spec = set.spec();
                    let all = Attributes::new().text(ELEMENTS_TABLE, table).text(ELEMENTS_SET, spec.name);
                    out.push((
                        format!("empty nft map `{}`", spec.name),
                        message(DEL_ELEMENT, spec.family, all),
                    ));
                }
                Change::Drop(families) => out.extend(families.iter().map(|&family| {
                    let attributes = Attributes::new().text(TABLE_NAME, table);
                    (format!("delete nft table `{table}`"), message(DEL_TABLE, family, attributes))
                })),
                Change::Add(_) | Change::Remove(_) => {}
            }
            rest = &rest[1..];
            continue;
        };
        let add = matches!(first, Change::Add(_));
        let run: Vec<&Element> = rest
            .iter()
            .take(ELEMENTS_PER_MESSAGE)
            .map_while(|change| match change {
                Change::Add(other) if add && other.set == element.set => Some(other),
                Change::Remove(other) if !add && other.set == element.set => Some(other),
                _ => None,
            })
            .collect();
        rest = &rest[run.len()..];
        out.push(encode_elements(table, element.set.spec(), add, &run));
    }
    out
}

fn encode_elements(table: &str, spec: &SetSpec, add: bool, elements: &[&Element]) -> (String, Message) {
    let mut list = Attributes::new();
    for element in elements {
        let key = Attributes::new().bytes(DATA_VALUE, &element.key);
        let mut item = Attributes::new().nest(ELEMENT_KEY, &key);
        if add && !element.data.is_empty() {
            item = item.nest(ELEMENT_DATA, &encode_data(spec, &element.data));
        }
        list = list.nest(LIST_ITEM, &item);
    }
    let attributes = Attributes::new()
        .text(ELEMENTS_TABLE, table)
        .text(ELEMENTS_SET, spec.name)
        .nest(ELEMENTS_LIST, &list);
    let (verb, kind) = if add { ("add", NEW_ELEMENT) } else { ("remove", DEL_ELEMENT) };
    let names: Vec<_> = elements.iter().take(3).map(ToString::to_string).collect();
    let what = format!("{verb} {} element(s) ({}…) in nft table `{table}`", elements.len(), names.join(", "));
    let flags = if add { libc::NLM_F_CREATE } else { 0 };
    (what, message(kind, spec.family, attributes).flags(flags))
}

fn encode_data(spec: &SetSpec, data: &[u8]) -> Attributes {
    if spec.data.is_none_or(|(kind, _)| kind != VERDICT) {
        return Attributes::new().bytes(DATA_VALUE, data);
    }
    let mut chain = data.to_vec();
    chain.push(0);
    let verdict = Attributes::new().be32(VERDICT_CODE, libc::NFT_GOTO as u32).bytes(VERDICT_CHAIN, &chain);
    Attributes::new().nest(DATA_VERDICT, &verdict)
}

fn flush(table: &str, family: Family, chain: &str) -> Message {
    message(DEL_RULE, family, Attributes::new().text(RULE_TABLE, table).text(RULE_CHAIN, chain))
}

fn append(table: &str, family: Family, chain: &str, rule: &[Expr]) -> Message {
    let attributes = Attributes::new()
        .text(RULE_TABLE, table)
        .text(RULE_CHAIN, chain)
        .nest(RULE_EXPRESSIONS, &encode_rule(rule));
    message(NEW_RULE, family, attributes).flags(libc::NLM_F_CREATE | libc::NLM_F_APPEND)
}

/// The one rule of a balancer, which draws from the set called `name`; `None` when it has no backends.
pub(super) fn balancer_rule(backends: &Backends, name: &str, id: Option<u32>) -> Option<Vec<Expr>> {
    let pick = |count: usize| [Expr::Draw(count as u32), Expr::Pick { name: name.to_owned(), id }];
    let (mut rule, addresses, port) = match backends {
        Backends::Hosts(addresses) => (Vec::new(), addresses, false),
        Backends::Port(protocol, _, addresses) => {
            let of = [Expr::Meta { key: Meta::L4proto, to: REG_1 }, Expr::Equal(vec![protocol.number()])];
            (of.to_vec(), addresses, true)
        }
        Backends::Unknown => return None,
    };
    rule.extend(pick(addresses.len()));
    let ipv6 = addresses.first()?.is_ipv6();
    rule.push(Expr::Dnat { ipv6, port });
    Some(rule)
}

fn encode_balancer(table: &str, balancer: &Balancer, id: u32, out: &mut Vec<(String, Message)>) {
    // The kernel puts a number in the place of `%d`.
    const NAME: &str = "__map%d";
    let chain = balancer.chain.as_str();
    let what = format!("set nft {balancer}");
    let attributes = Attributes::new().text(CHAIN_TABLE, table).text(CHAIN_NAME, chain);
    out.push((what.clone(), message(NEW_CHAIN, Family::Inet, attributes).flags(libc::NLM_F_CREATE)));
    out.push((what.clone(), flush(table, Family::Inet, chain)));
    let Some(rule) = balancer_rule(&balancer.backends, NAME, Some(id)) else { return };
    let (addresses, port) = match &balancer.backends {
        Backends::Hosts(addresses) => (addresses, None),
        Backends::Port(_, port, addresses) => (addresses, Some(*port)),
        Backends::Unknown => return,
    };
    let (of, len) =
        if addresses.first().is_some_and(IpAddr::is_ipv6) { (IPV6_ADDR, 16) } else { (IPV4_ADDR, 4) };
    let (kind, len) = if port.is_some() { (pair(of, INET_SERVICE), len + 4) } else { (of, len) };
    let set = Attributes::new()
        .text(SET_TABLE, table)
        .text(SET_NAME, NAME)
        .be32(SET_FLAGS, SET_IS_ANONYMOUS | SET_IS_CONSTANT | SET_IS_MAP)
        .be32(SET_KEY_TYPE, rules::INTEGER)
        .be32(SET_KEY_LEN, 4)
        .be32(SET_DATA_TYPE, kind)
        .be32(SET_DATA_LEN, len)
        .nest(SET_DESCRIPTION, &Attributes::new().be32(1, addresses.len() as u32))
        .be32(SET_ID, id)
        .bytes(SET_USERDATA, &in_host_order());
    out.push((what.clone(), message(NEW_SET, Family::Inet, set).flags(libc::NLM_F_CREATE)));
    let numbered: Vec<_> = (0u32..).zip(addresses).collect();
    for some in numbered.chunks(ELEMENTS_PER_MESSAGE) {
        let list = some.iter().fold(Attributes::new(), |list, (number, address)| {
            let mut data = octets(**address);
            if let Some(port) = port {
                data.extend_from_slice(&port.to_be_bytes());
                data.extend_from_slice(&[0, 0]);
            }
            let item = Attributes::new()
                .nest(ELEMENT_KEY, &Attributes::new().bytes(DATA_VALUE, &number.to_ne_bytes()))
                .nest(ELEMENT_DATA, &Attributes::new().bytes(DATA_VALUE, &data));
            list.nest(LIST_ITEM, &item)
        });
        let attributes = Attributes::new()
            .text(ELEMENTS_TABLE, table)
            .text(ELEMENTS_SET, NAME)
            .be32(ELEMENTS_SET_ID, id)
            .nest(ELEMENTS_LIST, &list);
        out.push((what.clone(), message(NEW_ELEMENT, Family::Inet, attributes).flags(libc::NLM_F_CREATE)));
    }
    out.push((what, append(table, Family::Inet, chain, &rule)));
}

fn encode_rules(table: &str, layout: &Layout, shape: &Shape, out: &mut Vec<(String, Message)>) {
    let mut push = |what: String, message: Message| out.push((what, message));
    for family in FAMILIES {
        let attributes = Attributes::new().text(TABLE_NAME, table);
        push(
            format!("create nft table `{table}`"),
            message(NEW_TABLE, family, attributes).flags(libc::NLM_F_CREATE),
        );
    }
    let chains = (layout.chains)();
    // Rules first, as they hold on to chains and sets; those of the operator stay unless the chain itself is wrong.
    for ((family, name), &right) in &shape.chains {
        if name != OPERATOR || *family != Family::Inet || !right {
            push(format!("flush nft chain `{name}`"), flush(table, *family, name));
        }
    }
    for ((family, name), &right) in &shape.chains {
        if !right {
            let attributes = Attributes::new().text(CHAIN_TABLE, table).text(CHAIN_NAME, name);
            push(format!("delete nft chain `{name}`"), message(DEL_CHAIN, *family, attributes));
        }
    }
    for ((family, name), &right) in &shape.sets {
        if !right {
            let attributes = Attributes::new().text(SET_TABLE, table).text(SET_NAME, name);
            push(format!("delete nft set `{name}`"), message(DEL_SET, *family, attributes));
        }
    }
    for (id, set) in (1..).zip(layout.specs()) {
        if shape.sets.get(&(set.family, set.name.to_owned())) != Some(&true) {
            push(format!("create nft set `{}`", set.name), encode_set(table, set, id));
        }
    }
    for chain in &chains {
        if shape.chains.get(&(chain.family, chain.name.to_owned())) != Some(&true) {
            push(format!("create nft chain `{}`", chain.name), encode_chain(table, chain));
        }
    }
    for chain in &chains {
        for expressions in &chain.rules {
            push(
                format!("add a rule to nft chain `{}`", chain.name),
                append(table, chain.family, chain.name, expressions),
            );
        }
    }
}

/// A hint for nft, which else prints a lone interface name or number as if it were in network byte order: type 0 (order
/// of the key), 4 bytes, 1 (the machine's).
fn in_host_order() -> [u8; 6] {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
}

/// The same of a map's data: type 1.
fn data_in_host_order() -> [u8; 6] {
    let [_, rest @ ..] = in_host_order();
    let mut hint = [1; 6];
    hint[1..].copy_from_slice(&rest);
    hint
}

/// What kind of set it is.
pub(super) fn set_flags(set: &SetSpec) -> u32 {
    let map = if set.data.is_some() { SET_IS_MAP } else { 0 };
    if set.learned { map | SET_HAS_TIMEOUT | SET_IS_DYNAMIC } else { map }
}

fn encode_set(table: &str, set: &SetSpec, id: u32) -> Message {
    let mut attributes = Attributes::new()
        .text(SET_TABLE, table)
        .text(SET_NAME, set.name)
        .be32(SET_FLAGS, set_flags(set))
        .be32(SET_KEY_TYPE, set.key_type)
        .be32(SET_KEY_LEN, set.key_len)
        .be32(SET_ID, id);
    if set.key_len == rules::NAME_LEN {
        attributes = attributes.bytes(SET_USERDATA, &in_host_order());
    }
    if [Set::Nodes, Set::Callers, Set::Callers6].contains(&set.set) {
        attributes = attributes.bytes(SET_USERDATA, &data_in_host_order());
    }
    if let Some((kind, len)) = set.data {
        attributes = attributes.be32(SET_DATA_TYPE, kind).be32(SET_DATA_LEN, len);
    }
    if set.learned {
        let size = Attributes::new().be32(1, learned::CAPACITY);
        let timeout = (u64::from(learned::KEPT) * 1000).to_be_bytes();
        attributes = attributes.nest(SET_DESCRIPTION, &size).bytes(SET_TIMEOUT, &timeout);
    }
    message(NEW_SET, set.family, attributes).flags(libc::NLM_F_CREATE)
}

fn encode_chain(table: &str, chain: &ChainSpec) -> Message {
    let mut attributes = Attributes::new().text(CHAIN_TABLE, table).text(CHAIN_NAME, chain.name);
    if let Some(Hook { kind, number, priority }) = chain.hook {
        let hook = Attributes::new().be32(HOOK_NUMBER, number).be32(HOOK_PRIORITY, priority as u32);
        attributes =
            attributes.nest(CHAIN_HOOK, &hook).text(CHAIN_TYPE, kind).be32(CHAIN_POLICY, POLICY_ACCEPT);
    }
    message(NEW_CHAIN, chain.family, attributes).flags(libc::NLM_F_CREATE)
}
