//! What a query gets: an answer from our names, or a way to the host's name servers. Pure.
//!
//! Source: swarm-parity 5.3.

use std::net::Ipv4Addr;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Name, Record, Ttl};
use domain::rdata::{A, Ptr, Srv};
use rswarm_types::cluster::Subnet;

use crate::message::{Question, Transport, Unreadable};
use crate::names::{Names, Reverse};

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
            let _ = named.iter().all(|(name, target)| add(name, target.address));
        }));
    }
    let mut addresses = names.addresses(asker, text)?;
    if !asks(Rtype::A) {
        addresses.clear();
    }
    rng.shuffle(&mut addresses);
    Some(question.finish(fill(question, addresses.into_iter().map(A::new)), |_| {}))
}

pub(crate) fn address_record(name: &Name<Vec<u8>>, address: Ipv4Addr) -> Record<&Name<Vec<u8>>, A> {
    Record::new(name, Class::IN, TTL, A::new(address))
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

/// What a name below `in-addr.arpa` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Address(Ipv4Addr),
    /// The zone of all addresses with the same beginning.
    Zone(Subnet),
    /// A name below an address.
    Below(Ipv4Addr),
}

impl Subject {
    fn read(name: &str) -> Option<Self> {
        let labels = name.strip_suffix(".in-addr.arpa")?;
        let mut bytes = [0; 4];
        let mut count = 0;
        for label in labels.rsplit('.') {
            let Ok(byte) = label.parse() else { break };
            match bytes.get_mut(count) {
                Some(place) => *place = byte,
                None => break,
            }
            count += 1;
        }
        let address = Ipv4Addr::from(bytes);
        match (count, labels.split('.').count()) {
            (0, _) => None,
            (4, 4) => Some(Self::Address(address)),
            (4, _) => Some(Self::Below(address)),
            (count, _) => Subnet::new(address, 8 * u8::try_from(count).ok()?).map(Self::Zone),
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
        Subject::Below(address) => {
            names.holds(Subnet { address, prefix_len: 32 }).then(|| question.refuse(Rcode::NXDOMAIN))
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
