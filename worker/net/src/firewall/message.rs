//! nf_tables on the wire: encoding our tables, reading them back, comparing the two.
//!
//! Source: Linux `include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h`.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Element, Set,
    rules::{self, ChainSpec, Expr, FAMILIES, Family, Hook, OPERATOR, REG_1, SETS, SetSpec, Verdict, WORD_1},
};
use crate::{
    error::KernelError,
    netlink::{Attributes, Message, Socket, attributes, be_number, find, text},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const DEL_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DEL_ELEMENT: u16 = 14;
const GET_GENERATION: u16 = 16;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ITEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
const GENERATION_ID: u16 = 1;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const SET_IS_MAP: u32 = 8;
const POLICY_ACCEPT: u32 = 1;
/// Attributes end at 64 KiB; the largest element takes some 80 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// A change to the tables; a list of them is applied as one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// (Re)makes tables, chains, rules and sets as they should be, given what is there.
    Rules(Shape),
    Add(Element),
    Remove(Element),
    /// Deletes the tables of these families, with all that is in them.
    Drop(Vec<Family>),
}

/// Which parts of our tables exist, and which of them are as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    tables: BTreeSet<Family>,
    /// By name; whether the chain's type, hook and priority are right.
    chains: BTreeMap<(Family, String), bool>,
    /// By name; whether the set's type is right.
    sets: BTreeMap<(Family, String), bool>,
    /// Whether every rule is in its place and none besides.
    rules: bool,
}

impl Shape {
    /// Nothing is missing, changed or besides.
    pub fn intact(&self) -> bool {
        self == &Self::wanted()
    }

    /// Whether the set of `element` outlives [`Change::Rules`].
    pub(crate) fn keeps(&self, element: &Element) -> bool {
        let spec = element.set.spec();
        self.sets.get(&(spec.family, spec.name.to_owned())) == Some(&true)
    }

    /// As it is after [`Change::Rules`].
    pub(crate) fn wanted() -> Self {
        Self {
            tables: FAMILIES.into(),
            chains: rules::chains()
                .iter()
                .map(|chain| ((chain.family, chain.name.to_owned()), true))
                .collect(),
            sets: SETS.iter().map(|set| ((set.family, set.name.to_owned()), true)).collect(),
            rules: true,
        }
    }
}

fn message(kind: u16, family: Family, attributes: Attributes) -> Message {
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
    changes: &[Change],
) -> Result<(), (String, KernelError)> {
    let messages = encode(table, changes);
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
fn encode(table: &str, changes: &[Change]) -> Vec<(String, Message)> {
    let mut out = Vec::new();
    let mut rest = changes;
    while let Some(first) = rest.first() {
        let (Change::Add(element) | Change::Remove(element)) = first else {
            match first {
                Change::Rules(shape) => encode_rules(table, shape, &mut out),
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
            item = item.nest(ELEMENT_DATA, &Attributes::new().bytes(DATA_VALUE, &element.data));
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

fn encode_rules(table: &str, shape: &Shape, out: &mut Vec<(String, Message)>) {
    let mut push = |what: String, message: Message| out.push((what, message));
    for family in FAMILIES {
        let attributes = Attributes::new().text(TABLE_NAME, table);
        push(
            format!("create nft table `{table}`"),
            message(NEW_TABLE, family, attributes).flags(libc::NLM_F_CREATE),
        );
    }
    let chains = rules::chains();
    // Rules first, as they hold on to chains and sets; those of the operator stay unless the chain itself is wrong.
    for ((family, name), &right) in &shape.chains {
        if name != OPERATOR || *family != Family::Inet || !right {
            let attributes = Attributes::new().text(RULE_TABLE, table).text(RULE_CHAIN, name);
            push(format!("flush nft chain `{name}`"), message(DEL_RULE, *family, attributes));
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
    for (id, set) in (1..).zip(&SETS) {
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
            let attributes = Attributes::new()
                .text(RULE_TABLE, table)
                .text(RULE_CHAIN, chain.name)
                .nest(RULE_EXPRESSIONS, &encode_rule(expressions));
            let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
            push(
                format!("add a rule to nft chain `{}`", chain.name),
                message(NEW_RULE, chain.family, attributes).flags(flags),
            );
        }
    }
}

fn encode_set(table: &str, set: &SetSpec, id: u32) -> Message {
    let mut attributes = Attributes::new()
        .text(SET_TABLE, table)
        .text(SET_NAME, set.name)
        .be32(SET_FLAGS, if set.data.is_some() { SET_IS_MAP } else { 0 })
        .be32(SET_KEY_TYPE, set.key_type)
        .be32(SET_KEY_LEN, set.key_len)
        .be32(SET_ID, id);
    if set.key_len == rules::NAME_LEN {
        // A hint for nft, which else prints a lone interface name as if it were in network byte order: type 0 (order
        // of the key), 4 bytes, 1 (the machine's).
        let [a, b, c, d] = 1u32.to_ne_bytes();
        attributes = attributes.bytes(SET_USERDATA, &[0, 4, a, b, c, d]);
    }
    if let Some((kind, len)) = set.data {
        attributes = attributes.be32(SET_DATA_TYPE, kind).be32(SET_DATA_LEN, len);
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

fn encode_rule(expressions: &[Expr]) -> Attributes {
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

fn encode_expression(expression: &Expr) -> Vec<(&'static str, Attributes)> {
    const CT_STATUS: u32 = 2;
    const CT_STATUS_DNAT: u32 = 1 << 5;
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
        Expr::Translated => {
            let bytes = |value: u32| Attributes::new().bytes(DATA_VALUE, &value.to_ne_bytes());
            vec![
                ("ct", Attributes::new().be32(1, REG_1).be32(2, CT_STATUS)),
                (
                    "bitwise",
                    Attributes::new()
                        .be32(1, REG_1)
                        .be32(2, REG_1)
                        .be32(3, 4)
                        .nest(4, &bytes(CT_STATUS_DNAT))
                        .nest(5, &bytes(0)),
                ),
                compare(1, &0u32.to_ne_bytes()),
            ]
        }
        Expr::Dnat => vec![(
            "nat",
            Attributes::new().be32(1, 1).be32(2, libc::NFPROTO_IPV4 as u32).be32(3, REG_1).be32(5, WORD_1),
        )],
        Expr::Masquerade => vec![("masq", Attributes::new())],
        Expr::Verdict(verdict) => {
            let code = match verdict {
                Verdict::Drop => libc::NF_DROP,
                Verdict::Accept => libc::NF_ACCEPT,
                Verdict::Jump(_) => libc::NFT_JUMP,
            };
            let mut inner = Attributes::new().be32(VERDICT_CODE, code as u32);
            if let Verdict::Jump(chain) = verdict {
                inner = inner.text(VERDICT_CHAIN, chain);
            }
            let data = Attributes::new().nest(DATA_VERDICT, &inner);
            vec![("immediate", Attributes::new().be32(1, 0).nest(2, &data))]
        }
    }
}

/// Whether everything we `sent` for a rule is in what the kernel shows, expression by expression. The kernel may add
/// attributes of its own (defaults, counters), so equality would be too much to ask.
fn same_rule(sent: &[u8], shown: &[u8]) -> bool {
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

fn payload_of(payload: &[u8]) -> &[u8] {
    payload.get(4..).unwrap_or_default()
}

fn is_missing(error: &KernelError) -> bool {
    error.errno == libc::ENOENT
}

/// Reads our tables back: their shape and their elements.
pub(crate) fn observe(socket: &mut Socket, table: &str) -> Result<(Shape, BTreeSet<Element>), KernelError> {
    let mut shape = Shape { rules: true, ..Shape::default() };
    let mut elements = BTreeSet::new();
    for family in FAMILIES {
        match socket.get(&message(GET_TABLE, family, Attributes::new().text(TABLE_NAME, table))) {
            Ok(_) => shape.tables.insert(family),
            Err(error) if is_missing(&error) => {
                shape.rules = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        observe_chains(socket, table, family, &mut shape)?;
        observe_sets(socket, table, family, &mut shape)?;
        shape.rules &= rules_intact(socket, table, family)?;
    }
    for spec in &SETS {
        if shape.sets.get(&(spec.family, spec.name.to_owned())) == Some(&true) {
            observe_elements(socket, table, spec, &mut elements)?;
        }
    }
    Ok((shape, elements))
}

fn observe_chains(
    socket: &mut Socket,
    table: &str,
    family: Family,
    shape: &mut Shape,
) -> Result<(), KernelError> {
    let chains = rules::chains();
    socket.dump(&message(GET_CHAIN, family, Attributes::new()), |payload| {
        let rest = payload_of(payload);
        if payload.first() != Some(&(family as u8))
            || find(rest, CHAIN_TABLE).map(text).as_deref() != Some(table)
        {
            return;
        }
        let name = find(rest, CHAIN_NAME).map(text).unwrap_or_default();
        let hook = find(rest, CHAIN_HOOK).map(|hook| {
            let part = |kind| find(hook, kind).and_then(be_number);
            (find(rest, CHAIN_TYPE).map(text), part(HOOK_NUMBER), part(HOOK_PRIORITY))
        });
        let policy = find(rest, CHAIN_POLICY).and_then(be_number).unwrap_or(POLICY_ACCEPT);
        let known = chains.iter().find(|chain| chain.family == family && chain.name == name);
        if known.is_none() && hook.is_none() {
            return; // A chain that the operator made beside ours, to jump to from `operator`.
        }
        let right = known.is_some_and(|chain| {
            let wanted =
                chain.hook.map(|h| (Some(h.kind.to_owned()), Some(h.number), Some(h.priority as u32)));
            wanted == hook && policy == POLICY_ACCEPT
        });
        shape.chains.insert((family, name), right);
    })
}

fn observe_sets(
    socket: &mut Socket,
    table: &str,
    family: Family,
    shape: &mut Shape,
) -> Result<(), KernelError> {
    let request = message(GET_SET, family, Attributes::new().text(SET_TABLE, table));
    socket.dump(&request, |payload| {
        let rest = payload_of(payload);
        if find(rest, SET_TABLE).map(text).as_deref() != Some(table) {
            return;
        }
        let name = find(rest, SET_NAME).map(text).unwrap_or_default();
        let value = |kind| find(rest, kind).and_then(be_number);
        let Some(set) = SETS.iter().find(|set| set.family == family && set.name == name) else {
            return; // The operator's own.
        };
        let right = value(SET_KEY_LEN) == Some(set.key_len)
            && value(SET_KEY_TYPE) == Some(set.key_type)
            && value(SET_DATA_LEN) == set.data.map(|(_, len)| len)
            && value(SET_FLAGS).unwrap_or(0) == if set.data.is_some() { SET_IS_MAP } else { 0 };
        shape.sets.insert((family, name), right);
    })
}

fn rules_intact(socket: &mut Socket, table: &str, family: Family) -> Result<bool, KernelError> {
    let mut shown: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    let request = message(GET_RULE, family, Attributes::new().text(RULE_TABLE, table));
    socket.dump(&request, |payload| {
        let rest = payload_of(payload);
        if find(rest, RULE_TABLE).map(text).as_deref() == Some(table) {
            let chain = find(rest, RULE_CHAIN).map(text).unwrap_or_default();
            shown.entry(chain).or_default().push(find(rest, RULE_EXPRESSIONS).unwrap_or_default().to_vec());
        }
    })?;
    Ok(rules::chains().iter().filter(|chain| chain.family == family && chain.hook.is_some()).all(|chain| {
        let shown = shown.get(chain.name).map_or(&[][..], Vec::as_slice);
        shown.len() == chain.rules.len()
            && chain
                .rules
                .iter()
                .zip(shown)
                .all(|(rule, shown)| same_rule(encode_rule(rule).as_bytes(), shown))
    }))
}

fn observe_elements(
    socket: &mut Socket,
    table: &str,
    spec: &SetSpec,
    elements: &mut BTreeSet<Element>,
) -> Result<(), KernelError> {
    let attributes_of_set = Attributes::new().text(ELEMENTS_TABLE, table).text(ELEMENTS_SET, spec.name);
    socket.dump(&message(GET_ELEMENT, spec.family, attributes_of_set), |payload| {
        let list = find(payload_of(payload), ELEMENTS_LIST).unwrap_or_default();
        for (_, item) in attributes(list) {
            let value = |kind| find(item, kind).and_then(|data| find(data, DATA_VALUE)).map(<[u8]>::to_vec);
            elements.extend(value(ELEMENT_KEY).map(|key| Element {
                set: spec.set,
                key,
                data: value(ELEMENT_DATA).unwrap_or_default(),
            }));
        }
    })
}

/// A number that changes with every change of any rule set in the namespace, whoever makes it.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, KernelError> {
    let answer = socket.get(&message(GET_GENERATION, Family::Inet, Attributes::new()))?;
    // The answer starts with `struct nfgenmsg`.
    answer
        .get(4..)
        .and_then(|attributes| find(attributes, GENERATION_ID))
        .and_then(be_number)
        .ok_or(KernelError { errno: libc::EPROTO, reason: None })
}

/// The families in which our table exists.
pub(crate) fn existing(socket: &mut Socket, table: &str) -> Result<Vec<Family>, KernelError> {
    let mut found = Vec::new();
    for family in FAMILIES {
        match socket.get(&message(GET_TABLE, family, Attributes::new().text(TABLE_NAME, table))) {
            Ok(_) => found.push(family),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
