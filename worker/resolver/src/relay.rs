//! A name server's message on its way to our client: checked, without its EDNS, with the places of its times to live.
//! Pure.

use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, ParsedName};
use domain::rdata::Soa;

use crate::message::{HEADER_LEN, Question};

/// No answer is kept longer, whatever it says.
const MAX_TTL: u32 = 3600;

/// A reply that fits its question, fit to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    message: Vec<u8>,
    /// Where in `message` times to live stand.
    ttls: Vec<usize>,
    /// Where the question ends.
    question_end: usize,
    pub rcode: Rcode,
    /// The name server had more to say than there was room for.
    pub truncated: bool,
    /// How long it may be kept; zero if it must not.
    pub life: Duration,
}

impl Relayed {
    /// Reads what a name server sent in reply to `query`. `None` if it is no reply to that, or is malformed.
    pub fn read(mut bytes: Vec<u8>, query: &[u8]) -> Option<Self> {
        let message = Message::from_slice(&bytes).ok()?;
        if !message.is_answer(Message::from_slice(query).ok()?) || message.header_counts().qdcount() != 1 {
            return None;
        }
        let (header, truncated) = (message.header(), message.header().tc());
        let mut questions = message.question();
        questions.next()?.ok()?;
        let question_end = questions.pos();
        let mut section = questions.answer().ok()?;
        let (mut ttls, mut shortest) = (Vec::new(), MAX_TTL);
        // Of the start of authority in the second section: RFC 2308, section 5.
        let mut negative_ttl = None;
        let mut cut = None;
        let mut answers = 0;
        for number in 0..3 {
            let mut kept = 0u16;
            loop {
                let start = section.pos();
                let record = match section.next() {
                    None => break,
                    Some(Ok(record)) => record,
                    // A message that was cut short need not be whole.
                    Some(Err(_)) if truncated => break,
                    Some(Err(_)) => return None,
                };
                if number == 2 && record.rtype() == Rtype::OPT {
                    // What follows is left out with it: nothing in that section is owed to anyone.
                    cut = Some((start, kept));
                    break;
                }
                kept += 1;
                let ttl = record.ttl().as_secs();
                // The time to live and the length of the data stand before the data.
                ttls.push(section.pos() - usize::from(record.rdlen()) - 6);
                shortest = shortest.min(ttl);
                if number == 1
                    && let Ok(Some(soa)) = record.to_record::<Soa<ParsedName<_>>>()
                {
                    negative_ttl = Some(ttl.min(soa.data().minimum().as_secs()));
                }
            }
            if number == 0 {
                answers = kept;
            }
            section = match section.next_section() {
                Ok(Some(next)) if cut.is_none() => next,
                Ok(_) => break,
                Err(_) if truncated => break,
                Err(_) => return None,
            };
        }
        let rcode = header.rcode();
        let life = match (rcode, answers) {
            _ if truncated => 0,
            (Rcode::NOERROR, 1..) => shortest,
            (Rcode::NOERROR | Rcode::NXDOMAIN, _) => negative_ttl.map_or(0, |ttl| ttl.min(shortest)),
            _ => 0,
        };
        if let Some((end, kept)) = cut {
            bytes.truncate(end);
            bytes[10..HEADER_LEN].copy_from_slice(&kept.to_be_bytes());
        }
        Some(Self {
            message: bytes,
            ttls,
            question_end,
            rcode,
            truncated,
            life: Duration::from_secs(life.into()),
        })
    }

    /// Bytes it takes in memory.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.message.capacity() + self.ttls.capacity() * size_of::<usize>()
    }

    /// The reply to `question`, `age` after the message came.
    pub fn reply(&self, question: &Question, age: Duration) -> Vec<u8> {
        let room = question.max_len() - question.opt_len();
        let too_long = self.truncated || self.message.len() > room;
        let end = if too_long { self.question_end } else { self.message.len() };
        let mut reply = Vec::with_capacity(end + question.opt_len());
        reply.extend_from_slice(&self.message[..end]);
        let mut header = Message::from_slice(&self.message).map(Message::header).unwrap_or_default();
        header.set_id(question.id);
        header.set_aa(false);
        header.set_rd(question.recursion_desired);
        header.set_ra(true);
        header.set_cd(question.checking_disabled);
        header.set_tc(too_long);
        reply[..4].copy_from_slice(&header.as_slice()[..4]);
        // In the client's own spelling; equal but for case.
        let name = question.name.as_slice();
        if self.question_end == HEADER_LEN + name.len() + 4 {
            reply[HEADER_LEN..HEADER_LEN + name.len()].copy_from_slice(name);
        }
        if too_long {
            reply[6..HEADER_LEN].fill(0);
        } else {
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            for &at in &self.ttls {
                let place = &mut reply[at..at + 4];
                let ttl = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
                place.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
            }
        }
        question.append_opt(&mut reply);
        reply
    }
}

#[cfg(test)]
pub(crate) mod tests;
