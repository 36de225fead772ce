//! What a query gets: an answer from our names, or a way to the host's name servers. Pure.
//!
//! Source: swarm-parity 5.3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Name, Record, Ttl};
use domain::rdata::{A, Aaaa, AllRecordData, Ptr, Srv};
use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::subnet::Address;

use crate::message::{Question, Transport, Unreadable};
use crate::names::{Found, Names, Reverse};

/// How long a client may keep an answer.
const TTL: Ttl = Ttl::from_secs(2);

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// A whole message.
    Reply(Vec<u8>),
    /// Not ours.
    Forward(Question),
    /// No reply is due.
    Nothing,
}

/// Answers a query that came from `asker`.
pub fn answer(names: &Names, query: &[u8], asker: Ipv4Addr, via: Transport, rng: &mut Rng) -> Answer {
    let question = match Question::read(query, via) {
        Ok(question) => question,
        Err(Unreadable::Refuse(reply)) => return Answer::Reply(reply),
        Err(Unreadable::Drop) => return Answer::Nothing,
    };
    let transfer = matches!(question.qtype, Rtype::AXFR | Rtype::IXFR);
    if transfer || !matches!(question.qclass, Class::IN | Class::ANY) {
        return Answer::Reply(question.refuse(Rcode::REFUSED));
    }
    let reply = question.text().and_then(|text| known(names, &question, &text, asker, rng));
    match reply {
        Some(reply) => Answer::Reply(reply),
        None => Answer::Forward(question),
    }
}

/// The reply to a question for one of our names; for a type that the name does not have it is empty.
fn known(names: &Names, question: &Question, text: &str, asker: Ipv4Addr, rng: &mut Rng) -> Option<Vec<u8>> {
    let asks = |qtype| question.qtype == qtype || question.qtype == Rtype::ANY;
    if let Some(subject) = Subject::read(text) {
        return reverse(names, question, subject, asker, asks(Rtype::PTR));
    }
    if let Some(mut targets) = names.targets(asker, text) {
        if !asks(Rtype::SRV) {
            targets.clear();
        }
        rng.shuffle(&mut targets);
        let named =
            targets.iter().filter_map(|target| Some((Name::vec_from_str(&target.name).ok()?, target)));
        let named: Vec<_> = named.collect();
        let records = named.iter().map(|(name, target)| Srv::new(0, 0, target.port, name));
        let reply = fill(question, records);
        return Some(question.finish(reply, |add| {
            let both = |found: Found| [found.address.map(IpAddr::from), found.twin.map(IpAddr::from)];
            let addresses = named.iter().flat_map(|(name, target)| both(target.found).map(|at| (name, at)));
            let _ = addresses.filter_map(|(name, at)| Some((name, at?))).all(|(name, at)| add(name, at));
        }));
    }
    let mut found = names.addresses(asker, text)?;
    rng.shuffle(&mut found);
    let a = found.iter().filter(|_| asks(Rtype::A)).filter_map(|found| found.address.map(IpAddr::from));
    let aaaa = found.iter().filter(|_| asks(Rtype::AAAA)).filter_map(|found| found.twin.map(IpAddr::from));
    Some(question.finish(fill(question, a.chain(aaaa).map(address_data)), |_| {}))
}

/// Of type A or AAAA.
type AddressData = AllRecordData<Vec<u8>, Name<Vec<u8>>>;

fn address_data(address: IpAddr) -> AddressData {
    match address {
        IpAddr::V4(address) => A::new(address).into(),
        IpAddr::V6(address) => Aaaa::new(address).into(),
    }
}

pub(crate) fn address_record(name: &Name<Vec<u8>>, address: IpAddr) -> Record<&Name<Vec<u8>>, AddressData> {
    Record::new(name, Class::IN, TTL, address_data(address))
}

/// A reply with as many records as there is room for; it says so if there was none for the others.
fn fill<D>(
    question: &Question,
    records: impl Iterator<Item = D>,
) -> domain::base::message_builder::AnswerBuilder<domain::base::StaticCompressor<Vec<u8>>>
where
    D: domain::base::rdata::ComposeRecordData,
{
    let mut reply = question.reply(Rcode::NOERROR);
    reply.header_mut().set_aa(true);
    for data in records {
        if reply.push(Record::new(&question.name, Class::IN, TTL, data)).is_err() {
            reply.header_mut().set_tc(true);
            break;
        }
    }
    reply
}

/// What a name below `in-addr.arpa` or `ip6.arpa` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Address(IpAddr),
    /// The zone of all addresses with the same beginning.
    Zone(Subnet),
    Zone6(Subnet6),
    /// A name below an address.
    Below(IpAddr),
}

impl Subject {
    fn read(name: &str) -> Option<Self> {
        if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
            return Self::read_labels::<Ipv4Addr>(labels, 8, |label| label.parse().ok(), Self::Zone);
        }
        let labels = name.strip_suffix(".ip6.arpa")?;
        let digit = |label: &str| u8::from_str_radix(label, 16).ok().filter(|_| label.len() == 1);
        Self::read_labels::<Ipv6Addr>(labels, 4, digit, Self::Zone6)
    }

    /// Labels of so many bits each, the last one first.
    fn read_labels<T: Address + Into<IpAddr>>(
        labels: &str,
        bits: u8,
        read: impl Fn(&str) -> Option<u8>,
        zone: fn(Subnet<T>) -> Self,
    ) -> Option<Self> {
        let (mut number, mut prefix_len) = (0u128, 0);
        for label in labels.rsplit('.').take((T::BITS / bits).into()) {
            let Some(part) = read(label) else { break };
            number = number << bits | u128::from(part);
            prefix_len += bits;
        }
        let missing = u32::from(T::BITS - prefix_len);
        let address = T::from_number(number.checked_shl(missing).unwrap_or(0));
        let (all, whole) = (labels.split('.').count(), usize::from(T::BITS / bits));
        match prefix_len {
            0 => None,
            len if len == T::BITS && all == whole => Some(Self::Address(address.into())),
            len if len == T::BITS => Some(Self::Below(address.into())),
            len => Subnet::new(address, len).map(zone),
        }
    }
}

/// Addresses of our networks are nobody else's business, whether they are in use or not.
fn reverse(
    names: &Names,
    question: &Question,
    subject: Subject,
    asker: Ipv4Addr,
    wanted: bool,
) -> Option<Vec<u8>> {
    let empty = || question.finish(fill(question, std::iter::empty::<A>()), |_| {});
    match subject {
        Subject::Zone(zone) => names.holds(zone).then(empty),
        Subject::Zone6(zone) => names.holds6(zone).then(empty),
        Subject::Below(address) => {
            let ours = match address {
                IpAddr::V4(address) => names.holds(Subnet { address, prefix_len: 32 }),
                IpAddr::V6(address) => names.holds6(Subnet { address, prefix_len: 128 }),
            };
            ours.then(|| question.refuse(Rcode::NXDOMAIN))
        }
        Subject::Address(address) => match names.name_of(asker, address) {
            Reverse::Foreign => None,
            Reverse::Nobody => Some(question.refuse(Rcode::NXDOMAIN)),
            Reverse::Name(name) => {
                let name = Name::vec_from_str(&name).ok().filter(|_| wanted);
                Some(question.finish(fill(question, name.iter().map(Ptr::new)), |_| {}))
            }
        },
    }
}

/// Random enough to spread load (splitmix64), and for nothing else.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = (u128::from(self.next()) * (last as u128 + 1)) >> 64;
            list.swap(last, other as usize);
        }
    }
}

#[cfg(test)]
mod tests;
