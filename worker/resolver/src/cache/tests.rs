use super::*;

use crate::relay::tests::{Record, message, query, question};

fn relayed(question: &Question, ttl: u32) -> Rc<Relayed> {
    let query = query(question);
    let reply = message(&query, 0, &[Record::A(ttl)], &[], &[]);
    Rc::new(Relayed::read(reply, &query).unwrap())
}

#[test]
fn a_message_lives_as_long_as_it_says_and_grows_old() {
    let (mut cache, start) = (Cache::default(), Instant::now());
    let asked = question("example.org", Rtype::A, None);
    cache.put(&asked, &Servers::default(), relayed(&asked, 10), start);
    let (found, age) = cache
        .get(&question("EXAMPLE.org", Rtype::A, None), &Servers::default(), start + Duration::from_secs(9))
        .unwrap();
    assert_eq!(age, Duration::from_secs(9));
    let ttl = |reply: &[u8]| u32::from_be_bytes(reply[reply.len() - 10..reply.len() - 6].try_into().unwrap());
    assert_eq!(ttl(&found.reply(&asked, age)), 1);
    assert!(cache.get(&asked, &Servers::default(), start + Duration::from_secs(10)).is_none());
    assert!(cache.get(&question("example.org", Rtype::AAAA, None), &Servers::default(), start).is_none());
    assert!(
        cache
            .get(&question("example.org", Rtype::A, Some((1232, true))), &Servers::default(), start)
            .is_none(),
        "with DNSSEC"
    );
    assert!(
        cache
            .get(&question("example.org", Rtype::A, Some((1232, false))), &Servers::default(), start)
            .is_some()
    );
    let others: Servers = std::sync::Arc::new([([192, 0, 2, 53], 53).into()]);
    assert!(cache.get(&asked, &others, start).is_none(), "what others say is not known");
    cache.clear();
    assert!(cache.get(&asked, &Servers::default(), start).is_none());
    cache.put(&asked, &Servers::default(), relayed(&asked, 0), start);
    assert!(cache.entries.is_empty(), "for this once");
}

#[test]
fn it_never_holds_more_than_its_bound_and_forgets_what_would_die_first() {
    let (mut cache, start) = (Cache::default(), Instant::now());
    let name = |number: usize| question(&format!("n{number}.example.org"), Rtype::A, None);
    for number in 0..3 * MAX_ENTRIES {
        let asked = name(number);
        cache.put(&asked, &Servers::default(), relayed(&asked, 10 + number as u32 / 100), start);
        assert!(cache.entries.len() <= MAX_ENTRIES);
    }
    assert!(cache.get(&name(0), &Servers::default(), start).is_none());
    assert!(cache.get(&name(3 * MAX_ENTRIES - 1), &Servers::default(), start).is_some());
    // The dead go first, and suffice.
    let later = start + Duration::from_secs(100);
    let before = cache.entries.len();
    for number in 0..MAX_ENTRIES {
        let asked = question(&format!("later{number}"), Rtype::A, None);
        cache.put(&asked, &Servers::default(), relayed(&asked, 10), later);
    }
    assert_eq!(cache.entries.len(), MAX_ENTRIES, "{before} were dead");
}

#[test]
fn a_message_that_is_too_long_is_not_kept() {
    let mut cache = Cache::default();
    let asked = question("example.org", Rtype::A, None);
    let query = query(&asked);
    let reply = message(&query, 0, &[Record::A(60); 300], &[], &[]);
    cache.put(&asked, &Servers::default(), Rc::new(Relayed::read(reply, &query).unwrap()), Instant::now());
    assert!(cache.entries.is_empty());
}
