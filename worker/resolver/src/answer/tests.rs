use super::*;

use std::collections::BTreeSet;

use domain::base::iana::OptRcode;
use domain::base::{Message, MessageBuilder, ParsedName, ToName as _};
use domain::rdata::AllRecordData;
use proptest::prelude::{Just, ProptestConfig, Strategy as _, any, prop_assert, prop_assert_eq, prop_oneof};
use proptest::proptest;
use rswarm_types::network::Ipam6;

use crate::message::MAX_UDP_LEN;
use crate::names::tests::{NODE, address, large_map, map, network, task};

fn query(name: &str, qtype: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&Name::vec_from_str(name).unwrap(), qtype)).unwrap();
    builder.finish()
}

fn query_with_edns(name: &str, qtype: Rtype, udp_len: u16, version: u8) -> Vec<u8> {
    let bytes = query(name, qtype);
    let mut builder = MessageBuilder::new_vec();
    *builder.header_mut() = Message::from_slice(&bytes).unwrap().header();
    let mut builder = builder.question();
    builder.push((&Name::vec_from_str(name).unwrap(), qtype)).unwrap();
    let mut builder = builder.additional();
    builder
        .opt(|opt| {
            opt.set_udp_payload_size(udp_len);
            opt.set_version(version);
            Ok(())
        })
        .unwrap();
    builder.finish()
}

fn reply_to(names: &Names, query: &[u8], asker: Ipv4Addr, via: Transport) -> Option<Vec<u8>> {
    match answer(names, query, asker, via, &mut Rng::new(1)) {
        Answer::Reply(reply) => Some(reply),
        Answer::Forward(_) => None,
        Answer::Nothing => panic!("no answer to {query:?}"),
    }
}

/// `NOERROR`, then the data of answer and additional section, sorted within a section; `forwarded` if it is not ours.
fn shown(names: &Names, asker: Ipv4Addr, name: &str, qtype: Rtype) -> String {
    let Some(reply) = reply_to(names, &query(name, qtype), asker, Transport::Udp) else {
        return "forwarded".to_owned();
    };
    let message = Message::from_slice(&reply).unwrap();
    let header = message.header();
    assert_eq!(
        (header.id(), header.qr(), header.rd(), header.ra(), header.tc()),
        (0x1234, true, true, true, false)
    );
    let mut text = vec![header.rcode().to_string()];
    let mut records = BTreeSet::new();
    for record in message {
        let (record, section) = record.unwrap();
        let record = record.to_any_record::<AllRecordData<_, ParsedName<_>>>().unwrap();
        assert_eq!(record.ttl().as_secs(), 2);
        let owner = match format!("{section:?}").as_str() {
            "Answer" => String::new(),
            _ => format!("{}=", record.owner()),
        };
        records.insert(format!("{owner}{}", record.data()));
    }
    text.extend(records);
    text.join(" ")
}

/// Every row of the design's section "Discovery", and of swarm-parity 5.3 where it goes beyond.
#[test]
fn each_kind_of_name_has_its_answer() {
    let names = Names::new(&map());
    let (front, back, both) = (address(1, 61), address(2, 31), address(1, 21));
    let stranger = Ipv4Addr::new(10, 213, 0, 9);
    let web_21 = format!("web.1.{}", task(21));
    let web_22 = format!("web.2.{}", task(22));
    let agent = format!("agent.{NODE}.{}", task(51));
    let check = |asker, name: &str, qtype, expected: &str| {
        assert_eq!(shown(&names, asker, name, qtype), expected, "{name} {qtype} from {asker}");
    };
    let a = |asker, name: &str, expected: &str| check(asker, name, Rtype::A, expected);
    // A service by its virtual address, on each network that the asking task is on too.
    a(front, "web", "NOERROR 10.0.0.2");
    a(back, "web", "NOERROR 10.0.16.2");
    a(both, "web", "NOERROR 10.0.0.2 10.0.16.2");
    a(address(2, 21), "web", "NOERROR 10.0.0.2 10.0.16.2");
    a(address(1, 23), "web", "NOERROR 10.0.0.2 10.0.16.2");
    a(front, "wEB.", "NOERROR 10.0.0.2");
    a(front, "web.front", "NOERROR 10.0.0.2");
    a(both, "Web.Front", "NOERROR 10.0.0.2");
    a(both, "web.back.office", "NOERROR 10.0.16.2");
    // An alias counts on its network alone, and may be that of several.
    a(front, "www", "NOERROR 10.0.0.2 10.0.0.6");
    a(front, "www.front", "NOERROR 10.0.0.2 10.0.0.6");
    a(back, "www", "forwarded");
    // Without a virtual address: the tasks that are ready.
    a(back, "db", "NOERROR 10.0.16.31 10.0.16.32");
    a(back, "store", "NOERROR 10.0.16.31 10.0.16.32");
    a(back, "web-db.back.office", "NOERROR 10.0.16.31 10.0.16.32");
    // Tasks, slots, one task, hostnames.
    a(front, "tasks.web", "NOERROR 10.0.0.21 10.0.0.22");
    a(back, "tasks.store", "NOERROR 10.0.16.31 10.0.16.32");
    a(front, "tasks.www", "NOERROR 10.0.0.21 10.0.0.22 10.0.0.61");
    a(front, "tasks.web.front", "NOERROR 10.0.0.21 10.0.0.22");
    a(front, "1.web", "NOERROR 10.0.0.21");
    a(front, "2.WEB.front", "NOERROR 10.0.0.22");
    a(back, "2.store", "NOERROR 10.0.16.32");
    a(front, &format!("{NODE}.agent"), "NOERROR 10.0.0.51");
    a(front, &web_21, "NOERROR 10.0.0.21");
    a(both, &format!("{web_21}.back.office"), "NOERROR 10.0.16.21");
    a(front, &agent, "NOERROR 10.0.0.51");
    a(back, "primary", "NOERROR 10.0.16.31");
    a(back, "PRIMARY.back.office", "NOERROR 10.0.16.31");
    a(front, &task(22).short(), "NOERROR 10.0.0.22");
    // Known, without anyone to answer: empty, and told to nobody else.
    for name in ["lonely", "tasks.lonely", "1.lonely", "9.web", "lonely.front", "3.web", "1.agent"] {
        a(front, name, "NOERROR");
    }
    a(front, &format!("web.3.{}", task(23)), "NOERROR");
    a(front, &format!("web.1.{}", task(24)), "NOERROR");
    a(front, &format!("web.1.{}", task(22)), "NOERROR");
    a(front, &format!("web.7.{}", task(99)), "NOERROR");
    a(front, &task(41).short(), "NOERROR");
    a(front, "_80._tcp.web", "NOERROR");
    for qtype in [Rtype::AAAA, Rtype::MX, Rtype::TXT, Rtype::HTTPS, Rtype::SRV, Rtype::PTR] {
        check(front, "web", qtype, "NOERROR");
    }
    check(front, "web", Rtype::ANY, "NOERROR 10.0.0.2");
    check(back, "db", Rtype::AAAA, "NOERROR");
    // Not ours, or not the asking task's: a name alone, a name below one of ours, another network's.
    for name in
        ["example.org", "nosuch", "nosuch.front", "x.web", "01.web", "+1.web", "tasks.nosuch", "front", "."]
    {
        a(front, name, "forwarded");
        check(front, name, Rtype::AAAA, "forwarded");
    }
    for name in ["db", "store", "primary", "db.back.office", "web.back.office", "tasks.db", "web.ingress"] {
        a(front, name, "forwarded");
    }
    for name in ["web", "tasks.web", "web.front", &web_21] {
        a(stranger, name, "forwarded");
    }
    // SRV: the ready tasks behind a published port, with their addresses.
    let srv = |asker, name: &str, expected: &str| check(asker, name, Rtype::SRV, expected);
    let both_tasks = format!(
        "NOERROR 0 0 80 {web_21}.front 0 0 80 {web_22}.front {web_21}.front=10.0.0.21 {web_22}.front=10.0.0.22"
    );
    srv(front, "_80._tcp.web", &both_tasks);
    srv(front, "_80._TCP.Web.front", &both_tasks);
    check(front, "_80._tcp.web", Rtype::ANY, &both_tasks);
    for name in ["_81._tcp.web", "_80._udp.web", "_http._tcp.web", "_80._tcp.lonely"] {
        srv(front, name, "NOERROR");
    }
    srv(front, "_80._tcp.nosuch", "forwarded");
    srv(front, "_ldap._tcp.example.org", "forwarded");
    // PTR: by the name with the network; other addresses of our networks are nobody's.
    let ptr = |asker, name: &str, expected: &str| check(asker, name, Rtype::PTR, expected);
    ptr(front, "21.0.0.10.in-addr.arpa", &format!("NOERROR {web_21}.front."));
    ptr(front, "2.0.0.10.IN-ADDR.arpa", "NOERROR web.front.");
    ptr(front, "51.0.0.10.in-addr.arpa", &format!("NOERROR {agent}.front."));
    ptr(back, "31.16.0.10.in-addr.arpa", &format!("NOERROR db.1.{}.back.office.", task(31)));
    check(front, "21.0.0.10.in-addr.arpa", Rtype::A, "NOERROR");
    for name in ["99.0.0.10", "31.16.0.10", "21.0.255.10", "_tcp.21.0.0.10", "2.48.0.10", "_tcp.2.63.0.10"] {
        ptr(front, &format!("{name}.in-addr.arpa"), "NXDOMAIN");
        ptr(stranger, &format!("{name}.in-addr.arpa"), "NXDOMAIN");
    }
    ptr(front, "15.0.10.in-addr.arpa", "NOERROR");
    ptr(front, "48.0.10.in-addr.arpa", "NOERROR");
    for name in ["0.10", "10", "1.2.0.192", "1.32.0.10", "x", "256.0.0.10"] {
        let forwarded = if name == "256.0.0.10" { "NOERROR" } else { "forwarded" };
        ptr(front, &format!("{name}.in-addr.arpa"), forwarded);
    }
    ptr(front, "in-addr.arpa", "forwarded");
}

/// A network that has grown downwards: new addresses are ours forwards and backwards, and twins are where they were.
#[test]
fn names_have_addresses_of_a_larger_subnet() {
    let mut map = map();
    let front = map.networks.get_mut(&network(1)).unwrap();
    let counted_from = Some(front.subnet.address);
    front.subnet = "8.0.0.0/6".parse().unwrap();
    front.ipv6 = Some(Ipam6 {
        subnet: "fd00:1::/64".parse().unwrap(),
        gateway: "fd00:1::1".parse().unwrap(),
        counted_from,
        alone: false,
    });
    let new = Ipv4Addr::new(9, 255, 255, 255);
    for endpoint in map.endpoints.values_mut().filter(|endpoint| endpoint.slot == 2) {
        endpoint.addresses.entry(network(1)).and_modify(|at| *at = new);
    }
    let names = Names::new(&map);
    let front = address(1, 61);
    assert_eq!(shown(&names, front, "tasks.web", Rtype::A), "NOERROR 10.0.0.21 9.255.255.255");
    assert_eq!(shown(&names, front, "1.web", Rtype::AAAA), "NOERROR fd00:1::15");
    assert_eq!(shown(&names, front, "2.web", Rtype::AAAA), "NOERROR fd00:1::ffff:ffff");
    let named = format!("NOERROR web.2.{}.front.", task(22));
    assert_eq!(shown(&names, front, "255.255.255.9.in-addr.arpa", Rtype::PTR), named);
    let twin = format!("f.f.f.f.f.f.f.f.{}1.0.0.0.0.0.d.f.ip6.arpa", "0.".repeat(16));
    assert_eq!(shown(&names, front, &twin, Rtype::PTR), named);
    assert_eq!(shown(&names, front, "2.0.0.9.in-addr.arpa", Rtype::PTR), "NXDOMAIN");
}

/// On a network with IPv6 whoever has an address has its twin too: forwards and backwards.
#[test]
fn names_have_ipv6_addresses_where_the_network_has_them() {
    let mut map = map();
    let front = map.networks.get_mut(&network(1)).unwrap();
    front.ipv6 = Some(Ipam6 {
        subnet: "fd00:1::/64".parse().unwrap(),
        gateway: "fd00:1::1".parse().unwrap(),
        counted_from: None,
        alone: false,
    });
    let names = Names::new(&map);
    let (front, back, both) = (address(1, 61), address(2, 31), address(1, 21));
    let check = |asker, name: &str, qtype, expected: &str| {
        assert_eq!(shown(&names, asker, name, qtype), expected, "{name} {qtype} from {asker}");
    };
    let web_21 = format!("web.1.{}", task(21));
    for (name, expected) in [
        ("web", "fd00:1::2"),
        ("www.front", "fd00:1::2 fd00:1::6"),
        ("tasks.web", "fd00:1::15 fd00:1::16"),
        ("1.web", "fd00:1::15"),
        (&web_21, "fd00:1::15"),
        (&task(22).short(), "fd00:1::16"),
    ] {
        check(front, name, Rtype::AAAA, &format!("NOERROR {expected}"));
    }
    check(front, "web", Rtype::A, "NOERROR 10.0.0.2");
    check(front, "web", Rtype::ANY, "NOERROR 10.0.0.2 fd00:1::2");
    check(front, "lonely", Rtype::AAAA, "NOERROR");
    check(back, "db", Rtype::AAAA, "NOERROR");
    check(both, "web", Rtype::AAAA, "NOERROR fd00:1::2");
    let srv = |n| format!("0 0 80 web.{}.{}.front", n - 20, task(n));
    let add = |n| {
        let name = format!("web.{}.{}.front", n - 20, task(n));
        format!("{name}=10.0.0.{n} {name}=fd00:1::{n:x}")
    };
    let all = format!("NOERROR {} {} {} {}", srv(21), srv(22), add(21), add(22));
    check(front, "_80._tcp.web", Rtype::SRV, &all);

    let arpa = |address: &str| {
        let number = u128::from(address.parse::<Ipv6Addr>().unwrap());
        let digits = (0..32).map(|n| format!("{:x}.", number >> (4 * n) & 15));
        format!("{}ip6.arpa", digits.collect::<String>())
    };
    let ptr = |asker, name: &str, expected: &str| check(asker, name, Rtype::PTR, expected);
    ptr(front, &arpa("fd00:1::15"), &format!("NOERROR {web_21}.front."));
    ptr(front, &arpa("fd00:1::2").to_uppercase(), "NOERROR web.front.");
    check(front, &arpa("fd00:1::2"), Rtype::AAAA, "NOERROR");
    for nobody in ["fd00:1::63", "fd00:1::1:15", "fd00:1:0:0:1::", "fd00:4::2"] {
        ptr(front, &arpa(nobody), "NXDOMAIN");
    }
    ptr(back, &arpa("fd00:1::15"), "NXDOMAIN");
    ptr(front, &format!("x.{}", arpa("fd00:1::15")), "NXDOMAIN");
    let zone = |digits: usize| arpa("fd00:1::")[2 * (32 - digits)..].to_owned();
    ptr(front, &zone(16), "NOERROR");
    ptr(front, &zone(31), "NOERROR");
    for foreign in [&zone(15), "ip6.arpa", &arpa("fd00:2::15"), &arpa("::1"), "10.d.f.ip6.arpa"] {
        ptr(front, foreign, "forwarded");
    }
}

/// Of a network with IPv6 alone the IPv4 addresses are numbers that nobody is told.
#[test]
fn where_there_is_ipv6_alone_nobody_hears_of_ipv4() {
    let mut map = map();
    let front = map.networks.get_mut(&network(1)).unwrap();
    let subnet = front.subnet;
    let ipv6 = Ipam6 {
        subnet: "fd00:1::/64".parse().unwrap(),
        gateway: "fd00:1::1".parse().unwrap(),
        counted_from: None,
        alone: true,
    };
    front.ipv6 = Some(ipv6);
    let names = Names::new(&map);
    let asker = names.asker(ipv6.twin(subnet, address(1, 61)).into()).unwrap();
    assert_eq!(asker, address(1, 61));
    assert_eq!(names.asker("fd00:2::1".parse().unwrap()), None);
    let check = |name: &str, qtype, expected: &str| {
        assert_eq!(shown(&names, asker, name, qtype), expected, "{name} {qtype}");
    };
    check("web", Rtype::A, "NOERROR");
    check("web", Rtype::AAAA, "NOERROR fd00:1::2");
    check("web", Rtype::ANY, "NOERROR fd00:1::2");
    check("tasks.web", Rtype::A, "NOERROR");
    check("tasks.web", Rtype::AAAA, "NOERROR fd00:1::15 fd00:1::16");
    // Who has such a number elsewhere is nobody here.
    check("2.0.0.10.in-addr.arpa", Rtype::PTR, "forwarded");
}

#[test]
fn the_question_comes_back_as_it_was_written() {
    let names = Names::new(&map());
    let reply = reply_to(&names, &query("wEb.FROnt", Rtype::A), address(1, 61), Transport::Udp).unwrap();
    let message = Message::from_slice(&reply).unwrap();
    let name: Name<Vec<u8>> = message.sole_question().unwrap().qname().to_name();
    assert_eq!(name.as_slice(), b"\x03wEb\x05FROnt\x00");
    assert!(message.header().aa());
}

#[test]
fn the_order_is_another_each_time() {
    let names = Names::new(&map());
    let mut rng = Rng::new(3);
    let mut first = BTreeSet::new();
    for _ in 0..64 {
        let query = query("db", Rtype::A);
        let Answer::Reply(reply) = answer(&names, &query, address(2, 31), Transport::Udp, &mut rng) else {
            panic!("`db` is ours");
        };
        // The last byte of the last address.
        first.insert(*reply.last().unwrap());
    }
    assert_eq!(first, BTreeSet::from([31, 32]));
    let mut list: Vec<u32> = (0..100).collect();
    rng.shuffle(&mut list);
    assert!(!list.is_sorted());
    list.sort_unstable();
    assert_eq!(list, (0..100).collect::<Vec<_>>(), "nothing lost");
}

/// Records, and whether there were more: as many as fit the client, by EDNS or without.
#[test]
fn a_reply_is_no_longer_than_the_client_takes_and_says_what_is_missing() {
    let names = Names::new(&large_map(1, 1000));
    let asker = Ipv4Addr::from(0x0a01_0003);
    let ask = |query: &[u8], via| {
        let reply = reply_to(&names, query, asker, via).unwrap();
        let message = Message::from_slice(&reply).unwrap();
        let size = message.opt().map(|opt| opt.udp_payload_size());
        (reply.len(), message.header_counts().ancount(), message.header().tc(), size)
    };
    let name = "tasks.service-0";
    let edns = |len| query_with_edns(name, Rtype::A, len, 0);
    // 12 bytes of header, 21 of question, 16 for each address, 11 for EDNS.
    assert_eq!(ask(&query(name, Rtype::A), Transport::Udp), (33 + 29 * 16, 29, true, None));
    assert_eq!(ask(&edns(100), Transport::Udp), (33 + 29 * 16 + 11, 29, true, Some(MAX_UDP_LEN)));
    assert_eq!(ask(&edns(1000), Transport::Udp), (33 + 59 * 16 + 11, 59, true, Some(MAX_UDP_LEN)));
    assert_eq!(ask(&edns(65535), Transport::Udp), (33 + 74 * 16 + 11, 74, true, Some(MAX_UDP_LEN)));
    assert_eq!(ask(&query(name, Rtype::A), Transport::Tcp), (33 + 1000 * 16, 1000, false, None));
    assert_eq!(ask(&edns(512), Transport::Tcp), (33 + 1000 * 16 + 11, 1000, false, Some(MAX_UDP_LEN)));
}

#[test]
fn what_is_no_question_for_us_is_refused_by_its_code_or_dropped() {
    let names = Names::new(&map());
    let ask = |query: &[u8]| match answer(&names, query, address(1, 61), Transport::Udp, &mut Rng::new(1)) {
        Answer::Reply(reply) => {
            let message = Message::from_slice(&reply).unwrap();
            assert!(message.header().qr());
            Some(message.opt_rcode())
        }
        Answer::Forward(_) => panic!("forwarded"),
        Answer::Nothing => None,
    };
    let good = query("web", Rtype::A);
    let with = |at: usize, byte: u8| {
        let mut query = good.clone();
        query[at] = byte;
        query
    };
    assert_eq!(ask(&good), Some(OptRcode::NOERROR));
    assert_eq!(ask(&[]), None);
    assert_eq!(ask(&good[..11]), None, "no whole header");
    assert_eq!(ask(&with(2, 0x80)), None, "an answer");
    assert_eq!(ask(&with(2, 0x28)), Some(OptRcode::NOTIMP), "an update");
    assert_eq!(ask(&good[..20]), Some(OptRcode::FORMERR), "half a question");
    assert_eq!(ask(&with(5, 0)), Some(OptRcode::FORMERR), "no question");
    assert_eq!(ask(&with(5, 2)), Some(OptRcode::FORMERR), "two questions");
    assert_eq!(ask(&with(12, 0xc0)), Some(OptRcode::FORMERR), "a pointer that leads nowhere");
    assert_eq!(ask(&with(good.len() - 1, 3)), Some(OptRcode::REFUSED), "of class CH");
    assert_eq!(ask(&query("web", Rtype::AXFR)), Some(OptRcode::REFUSED));
    assert_eq!(ask(&query_with_edns("web", Rtype::A, 1232, 1)), Some(OptRcode::BADVERS));
    assert_eq!(ask(&query_with_edns("web", Rtype::A, 1232, 0)), Some(OptRcode::NOERROR));
}

/// Bytes that are no name of ours in whatever spelling.
#[test]
fn labels_with_odd_bytes_are_forwarded_as_they_are() {
    let names = Names::new(&map());
    for name in [&b"\x07web.fro\x00"[..], b"\x03we\xff\x00", b"\x09web front\x00"] {
        let mut bytes = query(".", Rtype::A)[..12].to_vec();
        bytes.extend(name);
        bytes.extend([0, 1, 0, 1]);
        match answer(&names, &bytes, address(1, 61), Transport::Udp, &mut Rng::new(1)) {
            Answer::Forward(question) => assert_eq!(question.name.as_slice(), name),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, there is no panic, and a reply is one to the query.
    #[test]
    fn no_bytes_break_it(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        spoilt in proptest::collection::vec((0usize..60, any::<u8>()), 0..6),
        name in prop_oneof![
            Just("tasks.web.front".to_owned()),
            Just("_80._tcp.web".to_owned()),
            Just("21.0.0.10.in-addr.arpa".to_owned()),
            Just(format!("{}0.0.d.f.ip6.arpa", "1.".repeat(28))),
            proptest::collection::vec(any::<u8>().prop_map(|byte| char::from(byte % 128)), 1..40)
                .prop_map(String::from_iter),
        ],
        tcp in any::<bool>(),
    ) {
        let names = Names::new(&map());
        let mut queries = vec![bytes];
        if let Ok(name) = Name::vec_from_str(&name) {
            let mut query = query_with_edns(&name.to_string(), Rtype::ANY, 1232, 0);
            for (at, byte) in spoilt {
                let at = at % query.len();
                query[at] = byte;
            }
            queries.push(query);
        }
        let via = if tcp { Transport::Tcp } else { Transport::Udp };
        for query in queries {
            match answer(&names, &query, address(1, 61), via, &mut Rng::new(1)) {
                Answer::Reply(reply) => {
                    prop_assert_eq!(&reply[..2], &query[..2]);
                    prop_assert!(reply[2] & 0x80 != 0 && reply.len() <= 65535);
                    prop_assert!(tcp || reply.len() <= MAX_UDP_LEN.into());
                }
                Answer::Forward(question) => prop_assert!(!question.query(7).is_empty()),
                Answer::Nothing => {}
            }
        }
    }
}
