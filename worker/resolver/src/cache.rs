//! What name servers said lately, within bounds. Pure: time comes from the caller.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use domain::base::iana::{Class, Rtype};

use crate::message::Question;
use crate::names::Servers;
use crate::relay::Relayed;

/// Messages kept. With [`MAX_MESSAGE`] at most 4 MB, and 200 KB when they are of the usual length.
const MAX_ENTRIES: usize = 1024;
/// Longer ones are not kept.
const MAX_MESSAGE: usize = 4096;

/// What makes two questions the same to a name server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Wire form, lower case.
    name: Vec<u8>,
    qtype: Rtype,
    qclass: Class,
    dnssec_ok: bool,
    authentic_data: bool,
    checking_disabled: bool,
    /// Who was asked.
    servers: Servers,
}

impl Key {
    fn new(question: &Question, servers: &Servers) -> Self {
        Self {
            servers: servers.clone(),
            name: question.name.as_slice().to_ascii_lowercase(),
            qtype: question.qtype,
            qclass: question.qclass,
            dnssec_ok: question.edns.is_some_and(|edns| edns.dnssec_ok),
            authentic_data: question.authentic_data,
            checking_disabled: question.checking_disabled,
        }
    }
}

#[derive(Debug)]
struct Entry {
    message: Rc<Relayed>,
    stored: Instant,
}

impl Entry {
    fn is_alive(&self, now: Instant) -> bool {
        now < self.stored + self.message.life
    }
}

#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
}

impl Cache {
    /// A message that is still good, and its age.
    pub fn get(
        &self,
        question: &Question,
        servers: &Servers,
        now: Instant,
    ) -> Option<(Rc<Relayed>, Duration)> {
        let entry = self.entries.get(&Key::new(question, servers)).filter(|entry| entry.is_alive(now))?;
        Some((entry.message.clone(), now - entry.stored))
    }

    pub fn put(&mut self, question: &Question, servers: &Servers, message: Rc<Relayed>, now: Instant) {
        if message.life.is_zero() || message.size() > MAX_MESSAGE {
            return;
        }
        if self.entries.len() >= MAX_ENTRIES {
            self.make_room(now);
        }
        self.entries.insert(Key::new(question, servers), Entry { message, stored: now });
    }

    pub fn clear(&mut self) {
        self.entries = HashMap::new();
    }

    /// Drops what is dead, and if that is not enough the half that would die first.
    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.is_alive(now));
        if self.entries.len() >= MAX_ENTRIES {
            let mut ends: Vec<_> =
                self.entries.values().map(|entry| entry.stored + entry.message.life).collect();
            let middle = ends.len() / 2;
            let (sooner, &mut median, _) = ends.select_nth_unstable(middle);
            // Of those that die at that moment so many as are left of the half.
            let mut more = sooner.iter().filter(|end| **end == median).count();
            self.entries.retain(|_, entry| {
                let end = entry.stored + entry.message.life;
                let goes = end < median || end == median && more > 0;
                more -= usize::from(goes && end == median);
                !goes
            });
        }
    }
}

#[cfg(test)]
mod tests;
