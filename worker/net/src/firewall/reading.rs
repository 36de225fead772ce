//! Reading our tables back, and comparing them with what they should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    Backends, Element,
    expression::{encode_rule, same_rule},
    message::*,
    rules::{FAMILIES, Family, Layout, OPERATOR, SetSpec},
};
use crate::{
    error::KernelError,
    model::{Ip, Protocol},
    netlink::{Attributes, Socket, attributes, be_number, find, text},
};

/// Our tables as they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub shape: Shape,
    pub elements: BTreeSet<Element>,
    pub balancers: BTreeMap<String, Backends>,
}

fn payload_of(payload: &[u8]) -> &[u8] {
    payload.get(4..).unwrap_or_default()
}

fn is_missing(error: &KernelError) -> bool {
    error.errno == libc::ENOENT
}

impl Tables {
    /// Follows a change that was made; `false` of one whose outcome has to be read.
    pub fn take_in(&mut self, change: &Change) -> bool {
        match change {
            Change::Add(element) => drop(self.elements.insert(element.clone())),
            Change::Remove(element) => drop(self.elements.remove(element)),
            Change::Balance(balancer) => {
                self.balancers.insert(balancer.chain.clone(), balancer.backends.clone());
            }
            Change::Unbalance(chain) => drop(self.balancers.remove(chain)),
            Change::Forget(_) => {}
            Change::Rules(_) | Change::Drop(_) => return false,
        }
        true
    }
}

/// Reads our tables back: their shape, their elements, their balancers.
pub(crate) fn observe(socket: &mut Socket, table: &str, layout: &Layout) -> Result<Tables, KernelError> {
    let mut shape = Shape { rules: true, ..Shape::default() };
    let mut elements = BTreeSet::new();
    let mut balancers = BTreeMap::new();
    for family in FAMILIES {
        match socket.get(&message(GET_TABLE, family, Attributes::new().text(TABLE_NAME, table))) {
            Ok(_) => shape.tables.insert(family),
            Err(error) if is_missing(&error) => {
                shape.rules = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        let dynamic = observe_chains(socket, table, layout, family, &mut shape)?;
        observe_sets(socket, table, layout, family, &mut shape)?;
        let rules = observe_rules(socket, table, family)?;
        shape.rules &= rules_intact(layout, family, &rules);
        for chain in dynamic {
            let backends = observe_balancer(socket, table, rules.get(&chain))?;
            balancers.insert(chain, backends);
        }
    }
    for spec in layout.specs().filter(|spec| !spec.learned) {
        if shape.sets.get(&(spec.family, spec.name.to_owned())) == Some(&true) {
            observe_elements(socket, table, spec, &mut elements)?;
        }
    }
    Ok(Tables { shape, elements, balancers })
}

/// The chains of a family; those of balancers are returned by name.
fn observe_chains(
    socket: &mut Socket,
    table: &str,
    layout: &Layout,
    family: Family,
    shape: &mut Shape,
) -> Result<Vec<String>, KernelError> {
    let chains = (layout.chains)();
    let mut dynamic = Vec::new();
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
            if family == Family::Inet && layout.is_balancer(&name) {
                dynamic.push(name);
            }
            return; // A chain that the operator made beside ours, to jump to from `operator`.
        }
        let right = known.is_some_and(|chain| {
            let wanted =
                chain.hook.map(|h| (Some(h.kind.to_owned()), Some(h.number), Some(h.priority as u32)));
            wanted == hook && policy == POLICY_ACCEPT
        });
        shape.chains.insert((family, name), right);
    })?;
    Ok(dynamic)
}

fn observe_sets(
    socket: &mut Socket,
    table: &str,
    layout: &Layout,
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
        let Some(set) = layout.specs().find(|set| set.family == family && set.name == name) else {
            return; // The operator's own, or a balancer's.
        };
        let right = value(SET_KEY_LEN) == Some(set.key_len)
            && value(SET_KEY_TYPE) == Some(set.key_type)
            && value(SET_DATA_LEN) == set.data.map(|(_, len)| len)
            && value(SET_FLAGS).unwrap_or(0) == set_flags(set);
        shape.sets.insert((family, name), right);
    })
}

/// The rules of a family, by chain.
type Rules = BTreeMap<String, Vec<Vec<u8>>>;

fn observe_rules(socket: &mut Socket, table: &str, family: Family) -> Result<Rules, KernelError> {
    let mut shown = Rules::new();
    let request = message(GET_RULE, family, Attributes::new().text(RULE_TABLE, table));
    socket.dump(&request, |payload| {
        let rest = payload_of(payload);
        if find(rest, RULE_TABLE).map(text).as_deref() == Some(table) {
            let chain = find(rest, RULE_CHAIN).map(text).unwrap_or_default();
            shown.entry(chain).or_default().push(find(rest, RULE_EXPRESSIONS).unwrap_or_default().to_vec());
        }
    })?;
    Ok(shown)
}

fn rules_intact(layout: &Layout, family: Family, shown: &Rules) -> bool {
    (layout.chains)().iter().filter(|chain| chain.family == family && chain.name != OPERATOR).all(|chain| {
        let shown = shown.get(chain.name).map_or(&[][..], Vec::as_slice);
        shown.len() == chain.rules.len()
            && chain
                .rules
                .iter()
                .zip(shown)
                .all(|(rule, shown)| same_rule(encode_rule(rule).as_bytes(), shown))
    })
}

/// What the rules of a balancer's chain do.
fn observe_balancer(
    socket: &mut Socket,
    table: &str,
    rules: Option<&Vec<Vec<u8>>>,
) -> Result<Backends, KernelError> {
    let Some([rule]) = rules.map(Vec::as_slice) else { return Ok(Backends::Unknown) };
    let lookup = attributes(rule)
        .find(|(_, item)| find(item, EXPR_NAME).map(text).as_deref() == Some("lookup"))
        .and_then(|(_, item)| find(item, EXPR_DATA));
    let Some(name) = lookup.and_then(|data| find(data, 1)).map(text) else { return Ok(Backends::Unknown) };
    let protocol = attributes(rule)
        .find(|(_, item)| find(item, EXPR_NAME).map(text).as_deref() == Some("cmp"))
        .and_then(|(_, item)| find(find(item, EXPR_DATA)?, 3))
        .and_then(|data| find(data, DATA_VALUE)?.first().copied())
        .and_then(Protocol::from_number);
    let mut picked = BTreeMap::new();
    dump_elements(socket, table, Family::Inet, &name, |key, data| {
        picked.insert(key.try_into().map_or(u32::MAX, u32::from_ne_bytes), data);
    })?;
    let len = |data: &[u8]| if data.len() < 16 { 4 } else { 16 };
    let address = |data: &Vec<u8>| match data.get(..len(data))? {
        short if short.len() == 4 => Ipv4Addr::read(short).map(IpAddr::from),
        long => Ipv6Addr::read(long).map(IpAddr::from),
    };
    let addresses: BTreeSet<IpAddr> = picked.values().filter_map(address).collect();
    let port = |data: &Vec<u8>| Some(u16::from_be_bytes([*data.get(len(data))?, *data.get(len(data) + 1)?]));
    let ports: BTreeSet<Option<u16>> = picked.values().map(port).collect();
    let backends = match (protocol, ports.first()) {
        (None, Some(None)) => Backends::Hosts(addresses),
        (Some(protocol), Some(Some(port))) if ports.len() == 1 => Backends::Port(protocol, *port, addresses),
        _ => Backends::Unknown,
    };
    // Every number drawn must lead somewhere, and the rule must do just this.
    let complete = picked.keys().copied().eq(0..picked.len() as u32);
    let right = balancer_rule(&backends, &name, None)
        .is_some_and(|wanted| complete && same_rule(encode_rule(&wanted).as_bytes(), rule));
    Ok(if right { backends } else { Backends::Unknown })
}

fn dump_elements(
    socket: &mut Socket,
    table: &str,
    family: Family,
    set: &str,
    mut each: impl FnMut(Vec<u8>, Vec<u8>),
) -> Result<(), KernelError> {
    let request = Attributes::new().text(ELEMENTS_TABLE, table).text(ELEMENTS_SET, set);
    socket.dump(&message(GET_ELEMENT, family, request), |payload| {
        let list = find(payload_of(payload), ELEMENTS_LIST).unwrap_or_default();
        for (_, item) in attributes(list) {
            let Some(key) = find(item, ELEMENT_KEY).and_then(|key| find(key, DATA_VALUE)) else { continue };
            let data = find(item, ELEMENT_DATA).unwrap_or_default();
            let chain = find(data, DATA_VERDICT).and_then(|verdict| find(verdict, VERDICT_CHAIN)).map(text);
            let value = chain.map(String::into_bytes).or_else(|| find(data, DATA_VALUE).map(<[u8]>::to_vec));
            each(key.to_vec(), value.unwrap_or_default());
        }
    })
}

fn observe_elements(
    socket: &mut Socket,
    table: &str,
    spec: &SetSpec,
    elements: &mut BTreeSet<Element>,
) -> Result<(), KernelError> {
    dump_elements(socket, table, spec.family, spec.name, |key, data| {
        elements.insert(Element { set: spec.set, key, data });
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
