use super::*;

use domain::base::{MessageBuilder, Name};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq};
use proptest::proptest;

use crate::message::Transport;

pub(crate) fn question(name: &str, qtype: Rtype, edns: Option<(u16, bool)>) -> Question {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&Name::vec_from_str(name).unwrap(), qtype)).unwrap();
    let mut builder = builder.additional();
    if let Some((udp_len, dnssec_ok)) = edns {
        let opt = |opt: &mut domain::base::message_builder::OptBuilder<'_, Vec<u8>>| {
            opt.set_udp_payload_size(udp_len);
            opt.set_dnssec_ok(dnssec_ok);
            Ok(())
        };
        builder.opt(opt).unwrap();
    }
    Question::read(&builder.finish(), Transport::Udp).unwrap()
}

pub(crate) fn query(question: &Question) -> Vec<u8> {
    question.query(0xabcd)
}

/// A record of the question's name, written by hand.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Record {
    A(u32),
    /// Time to live, and that of what is not there.
    Soa(u32, u32),
    Opt,
}

impl Record {
    fn bytes(self) -> Vec<u8> {
        let record = |rtype: u8, ttl: u32, data: &[u8]| {
            let mut bytes = vec![0xc0, 12, 0, rtype, 0, 1];
            bytes.extend(ttl.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
            bytes
        };
        match self {
            Self::A(ttl) => record(1, ttl, &[192, 0, 2, 1]),
            Self::Soa(ttl, minimum) => {
                let mut data = vec![0xc0, 12, 0xc0, 12];
                data.extend([0; 16]);
                data.extend(minimum.to_be_bytes());
                record(6, ttl, &data)
            }
            Self::Opt => vec![0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// The reply of a name server.
pub(crate) fn message(
    query: &[u8],
    rcode: u8,
    answer: &[Record],
    authority: &[Record],
    additional: &[Record],
) -> Vec<u8> {
    let question_end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let mut reply = query[..question_end].to_vec();
    reply[2] = 0x81;
    reply[3] = 0x80 | rcode;
    for (at, section) in [answer, authority, additional].into_iter().enumerate() {
        reply[6 + 2 * at..8 + 2 * at].copy_from_slice(&(section.len() as u16).to_be_bytes());
        section.iter().for_each(|record| reply.extend(record.bytes()));
    }
    reply
}

#[test]
fn how_long_a_reply_may_be_kept() {
    let query = query(&question("example.org", Rtype::A, None));
    let check = |rcode, answer: &[Record], authority: &[Record], additional: &[Record], life| {
        let reply = Relayed::read(message(&query, rcode, answer, authority, additional), &query).unwrap();
        assert_eq!(reply.life.as_secs(), life, "{rcode} {answer:?} {authority:?} {additional:?}");
    };
    use Record::{A, Opt, Soa};
    check(0, &[A(300)], &[], &[], 300);
    check(0, &[A(300), A(20)], &[], &[Opt], 20);
    check(0, &[A(300)], &[Soa(30, 5)], &[A(7)], 7);
    check(0, &[A(u32::MAX)], &[], &[], 3600);
    check(0, &[A(0)], &[], &[], 0);
    // What is not there: RFC 2308.
    check(0, &[], &[Soa(300, 60)], &[Opt], 60);
    check(3, &[], &[Soa(30, 60)], &[], 30);
    check(3, &[A(10)], &[Soa(300, 60)], &[], 10);
    check(0, &[], &[], &[], 0);
    check(3, &[], &[], &[Opt], 0);
    check(2, &[], &[Soa(300, 60)], &[], 0);
    check(5, &[A(300)], &[], &[], 0);
}

#[test]
fn only_the_reply_to_the_question_is_taken() {
    let asked = question("example.org", Rtype::A, None);
    let query = query(&asked);
    let good = message(&query, 0, &[Record::A(60)], &[], &[]);
    let read = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Relayed::read(bytes, &query).is_some()
    };
    assert!(read(&|_| {}));
    assert!(read(&|bytes| bytes[13] = b'E'), "case does not count");
    assert!(!read(&|bytes| bytes[0] ^= 1), "another number");
    assert!(!read(&|bytes| bytes[2] &= 0x7f), "a question");
    assert!(!read(&|bytes| bytes[13] = b'x'), "another name");
    assert!(!read(&|bytes| bytes[26] ^= 4), "another type");
    assert!(!read(&|bytes| bytes[5] = 0), "no question");
    assert!(!read(&|bytes| bytes.truncate(bytes.len() - 1)), "half an address");
    assert!(!read(&|bytes| bytes[7] = 2), "fewer records than it says");
    assert!(!read(&Vec::clear));
    let cut = |bytes: &mut Vec<u8>| {
        bytes[2] |= 2;
        bytes.truncate(bytes.len() - 1);
    };
    assert!(read(&cut), "one that says it was cut need not be whole");
}

#[test]
fn a_reply_is_made_to_fit_its_client() {
    let plain = question("example.org", Rtype::A, None);
    let edns = question("exAMPLE.org", Rtype::A, Some((1232, true)));
    let query = query(&edns);
    let of = |records: usize| {
        let reply = message(
            &query,
            0,
            &vec![Record::A(60); records],
            &[],
            &[Record::A(60), Record::Opt, Record::A(9)],
        );
        Relayed::read(reply, &query).unwrap()
    };
    let check = |relayed: &Relayed, question: &Question| {
        let reply = relayed.reply(question, Duration::from_secs(100));
        let message = Message::from_slice(&reply).unwrap();
        assert_eq!((message.header().id(), message.header().ra()), (0x1234, true));
        assert_eq!(&reply[12..25], question.name.as_slice());
        assert!(reply.len() <= question.max_len());
        // Every record can be read; none has outlived its time by more than it had.
        for record in message {
            let (record, _) = record.unwrap();
            assert!(record.rtype() == Rtype::OPT || record.ttl().as_secs() == 0);
        }
        let counts = message.header_counts();
        (counts.ancount(), counts.arcount(), message.header().tc(), message.opt().map(|opt| opt.dnssec_ok()))
    };
    assert_eq!(check(&of(2), &plain), (2, 1, false, None));
    assert_eq!(check(&of(2), &edns), (2, 2, false, Some(true)));
    assert_eq!(check(&of(40), &plain), (0, 0, true, None));
    assert_eq!(check(&of(40), &edns), (40, 2, false, Some(true)));
    assert_eq!(check(&of(100), &edns), (0, 1, true, Some(true)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A name server may send what it likes.
    #[test]
    fn no_reply_breaks_it(
        tail in proptest::collection::vec(any::<u8>(), 0..60),
        spoilt in proptest::collection::vec((2usize..150, any::<u8>()), 0..5),
    ) {
        let asked = question("example.org", Rtype::A, Some((1232, false)));
        let query = query(&asked);
        let mut bytes = message(&query, 0, &[Record::A(60)], &[Record::Soa(5, 6)], &[Record::Opt]);
        bytes.extend(tail);
        for (at, byte) in spoilt {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Some(relayed) = Relayed::read(bytes, &query) {
            let reply = relayed.reply(&asked, Duration::from_secs(1));
            prop_assert!(reply.len() <= asked.max_len());
            prop_assert_eq!(&reply[..2], &[0x12, 0x34]);
        }
    }
}
