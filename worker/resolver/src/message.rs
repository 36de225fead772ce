//! Queries as they arrive, and the frame of every reply: header, question, EDNS, and how long it may be. Pure.
//!
//! Source: RFC 1035, section 4; RFC 6891 (EDNS).

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AnswerBuilder, PushError};
use domain::base::{Message, MessageBuilder, Name, StaticCompressor, ToName as _};

/// What fits into one packet on any path that is not broken: RFC 9715 and what resolvers agreed on in 2020.
pub const MAX_UDP_LEN: u16 = 1232;
/// What every client takes: RFC 1035, section 4.2.1.
const MIN_UDP_LEN: u16 = 512;
pub const HEADER_LEN: usize = 12;
/// An OPT record without options.
const OPT_LEN: usize = 11;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    /// As the client wrote it.
    pub name: Name<Vec<u8>>,
    pub qtype: Rtype,
    pub qclass: Class,
    pub recursion_desired: bool,
    pub authentic_data: bool,
    pub checking_disabled: bool,
    pub edns: Option<Edns>,
    transport: Transport,
}

/// What of the client's OPT record counts here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    pub udp_len: u16,
    pub dnssec_ok: bool,
}

/// A message that is no question we could look at.
#[derive(Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Answered with an error.
    Refuse(Vec<u8>),
    /// Answered with nothing, lest two servers answer each other for ever.
    Drop,
}

type Reply = AnswerBuilder<StaticCompressor<Vec<u8>>>;

impl Question {
    /// # Errors
    /// `Refuse` with FORMERR, NOTIMP or BADVERS; `Drop` for what has no whole header and for answers.
    pub fn read(bytes: &[u8], transport: Transport) -> Result<Self, Unreadable> {
        let message = Message::from_slice(bytes).map_err(|_| Unreadable::Drop)?;
        let header = message.header();
        if header.qr() {
            return Err(Unreadable::Drop);
        }
        if header.opcode() != Opcode::QUERY {
            return Err(refuse(message, Rcode::NOTIMP));
        }
        let Ok(question) = message.sole_question() else { return Err(refuse(message, Rcode::FORMERR)) };
        let opt = message.opt();
        let read = Self {
            id: header.id(),
            name: question.qname().to_name(),
            qtype: question.qtype(),
            qclass: question.qclass(),
            recursion_desired: header.rd(),
            authentic_data: header.ad(),
            checking_disabled: header.cd(),
            edns: opt
                .as_ref()
                .map(|opt| Edns { udp_len: opt.udp_payload_size(), dnssec_ok: opt.dnssec_ok() }),
            transport,
        };
        match opt {
            Some(opt) if opt.version() != 0 => Err(Unreadable::Refuse(read.finish_with(
                read.reply(Rcode::NOERROR),
                OptRcode::BADVERS,
                |_| {},
            ))),
            _ => Ok(read),
        }
    }

    /// The name in lower case without the last dot; `None` if it holds a byte that no name of ours can.
    pub fn text(&self) -> Option<String> {
        let mut text = String::with_capacity(self.name.len());
        for label in self.name.iter().filter(|label| !label.is_root()) {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                match byte {
                    b'.' | 0..=b' ' | 127.. => return None,
                    byte => text.push(char::from(byte.to_ascii_lowercase())),
                }
            }
        }
        Some(text)
    }

    /// The bytes of a reply that the client takes.
    pub fn max_len(&self) -> usize {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => edns.udp_len.clamp(MIN_UDP_LEN, MAX_UDP_LEN).into(),
            (Transport::Udp, None) => MIN_UDP_LEN.into(),
        }
    }

    /// Bytes that [`Question::append_opt`] needs.
    pub fn opt_len(&self) -> usize {
        if self.edns.is_some() { OPT_LEN } else { 0 }
    }

    /// The start of a reply, with room left for the OPT record.
    pub fn reply(&self, rcode: Rcode) -> Reply {
        let Ok(mut builder) =
            MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(MIN_UDP_LEN.into())));
        builder.set_push_limit(self.max_len() - self.opt_len());
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.recursion_desired);
        header.set_cd(self.checking_disabled);
        header.set_ra(true);
        header.set_rcode(rcode);
        let mut builder = builder.question();
        // Header and question are below 300 bytes.
        let pushed = builder.push((&self.name, self.qtype, self.qclass));
        debug_assert!(pushed.is_ok());
        builder.answer()
    }

    /// The end of a reply: first what `add` puts into the additional section, as far as there is room, then EDNS.
    pub fn finish(
        &self,
        reply: Reply,
        add: impl FnOnce(&mut dyn FnMut(&Name<Vec<u8>>, std::net::IpAddr) -> bool),
    ) -> Vec<u8> {
        let rcode = reply.header().rcode().into();
        self.finish_with(reply, rcode, add)
    }

    fn finish_with(
        &self,
        reply: Reply,
        rcode: OptRcode,
        add: impl FnOnce(&mut dyn FnMut(&Name<Vec<u8>>, std::net::IpAddr) -> bool),
    ) -> Vec<u8> {
        let mut reply = reply.additional();
        add(&mut |name, address| reply.push(crate::answer::address_record(name, address)).is_ok());
        reply.clear_push_limit();
        if let Some(edns) = self.edns {
            let pushed: Result<(), PushError> = reply.opt(|opt| {
                opt.set_udp_payload_size(MAX_UDP_LEN);
                opt.set_dnssec_ok(edns.dnssec_ok);
                opt.set_rcode(rcode);
                Ok(())
            });
            debug_assert!(pushed.is_ok());
        }
        reply.finish().into_target()
    }

    /// A reply that says nothing but this.
    pub fn refuse(&self, rcode: Rcode) -> Vec<u8> {
        self.finish(self.reply(rcode), |_| {})
    }

    /// The same question as a query of our own, to a name server.
    pub fn query(&self, id: u16) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_ad(self.authentic_data);
        header.set_cd(self.checking_disabled);
        let mut builder = builder.question();
        let pushed = builder.push((&self.name, self.qtype, self.qclass));
        debug_assert!(pushed.is_ok());
        let mut builder = builder.additional();
        if let Some(edns) = self.edns {
            let pushed = builder.opt(|opt| {
                opt.set_udp_payload_size(MAX_UDP_LEN);
                opt.set_dnssec_ok(edns.dnssec_ok);
                Ok(())
            });
            debug_assert!(pushed.is_ok());
        }
        builder.finish()
    }

    /// Writes EDNS below a message of a name server, which has room for it.
    pub fn append_opt(&self, message: &mut Vec<u8>) {
        let Some(edns) = self.edns else { return };
        let [high, low] = MAX_UDP_LEN.to_be_bytes();
        // Root, type 41, size, extended code and version 0, DO, no options.
        message.extend([0, 0, 41, high, low, 0, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        let additional = u16::from_be_bytes([message[10], message[11]]) + 1;
        message[10..12].copy_from_slice(&additional.to_be_bytes());
    }
}

/// A header alone: the rest could not be read.
fn refuse(query: &Message<[u8]>, rcode: Rcode) -> Unreadable {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(query.header().id());
    header.set_qr(true);
    header.set_opcode(query.header().opcode());
    header.set_rd(query.header().rd());
    header.set_rcode(rcode);
    Unreadable::Refuse(builder.finish())
}
