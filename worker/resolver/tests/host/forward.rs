//! Names that are not ours, asked of name servers in the node's namespace.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Instant;

use domain::base::iana::Rtype;
use rswarm_types::TaskId;

use crate::needs_root;
use crate::rig::{Rig, World, ask, ask_tcp, map, wait_until};

fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[test]
fn other_names_are_passed_on_and_kept_for_a_while_and_our_own_never_leave() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\n");
    let world = World::start(rig.lab.host(1), loopback(1));
    rig.write_map(&map(&[]));
    rig.start(&[]);
    assert_eq!(rig.ask(3, "plain.example"), "NOERROR 192.0.2.1/60");
    assert!(rig.ask(4, "PLAIN.example").starts_with("NOERROR 192.0.2.1/"));
    assert_eq!(world.times("plain.example"), 1);
    for _ in 0..2 {
        assert_eq!(rig.ask(3, "none.example"), "NXDOMAIN");
        assert_eq!(rig.ask(3, "fail.example"), "SERVFAIL");
    }
    assert_eq!(world.times("none.example"), 1);
    assert_eq!(world.times("fail.example"), 4, "each time as often as there are attempts");
    assert_eq!(rig.ask(3, "refuse.example"), "REFUSED");
    // Wrong answers, one of them with another number, do not count.
    assert_eq!(rig.ask(3, "liar.example"), "NOERROR 192.0.2.1/60");
    // What does not fit is fetched by TCP, and kept for the client that comes by TCP itself.
    assert_eq!(rig.ask(3, "big.example"), "NOERROR TC");
    let asked = world.times("big.example");
    assert_eq!(asked, 2);
    let server = rig.server();
    let mut stream = rig.lab.host(3).run(|| TcpStream::connect(server).unwrap()).unwrap();
    assert_eq!(ask_tcp(&mut stream, "big.example").unwrap().split(' ').count(), 61);
    assert_eq!(world.times("big.example"), asked);
    // Another network's names are the world's affair, ours are not.
    for name in
        ["web", "tasks.web", "7.web", "alias-one.one", "99.0.77.10.in-addr.arpa", "77.10.in-addr.arpa"]
    {
        for qtype in [Rtype::A, Rtype::AAAA, Rtype::PTR, Rtype::SRV] {
            ask(rig.lab.host(3), rig.server(), name, qtype).expect("an answer in time");
        }
    }
    let all = world.all();
    assert!(!all.iter().any(|name| name.contains("web") || name.contains("alias")), "{all:?}");
    assert!(!all.contains(&"99.0.77.10.in-addr.arpa".to_owned()), "{all:?}");
    assert!(all.contains(&"77.10.in-addr.arpa".to_owned()), "more than our network: {all:?}");
    assert_eq!(rig.ask(3, "alias-two"), "NOERROR 192.0.2.1/60");
}

#[test]
fn a_task_with_name_servers_of_its_own_has_those_asked_and_no_others() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    let host = rig.lab.host(1);
    let (of_node, of_task) = (World::start(host, loopback(1)), World::start(host, host.address.into()));
    let mut map = map(&[]);
    let task = TaskId::from_bytes([4; 16]);
    // On the loopback it means the task's own, where the node cannot ask.
    map.endpoints.get_mut(&task).unwrap().nameservers = vec![loopback(1), host.address.into()];
    rig.write_map(&map);
    rig.start(&[]);
    for _ in 0..2 {
        assert!(rig.ask(3, "plain.example").starts_with("NOERROR 192.0.2.1/"));
        assert!(rig.ask(4, "plain.example").starts_with("NOERROR 192.0.2.1/"));
    }
    let asked = (of_node.times("plain.example"), of_task.times("plain.example"));
    assert_eq!(asked, (1, 1), "each is asked once, and its answer kept for those who ask it");
    assert_eq!(rig.ask(4, "web"), "NOERROR 10.77.0.4/2", "our names stay ours");
    assert_eq!(rig.ask(4, "silent.example"), "SERVFAIL");
    assert_eq!(of_node.times("silent.example"), 0);
}

/// Source: moby, `libnetwork/resolver.go`, which fails as well when a container has internal networks alone.
#[test]
fn a_task_without_a_way_out_hears_of_its_networks_and_of_nothing_else() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\n");
    let world = World::start(rig.lab.host(1), loopback(1));
    let mut map = map(&[]);
    let task = TaskId::from_bytes([4; 16]);
    let endpoint = map.endpoints.get_mut(&task).unwrap();
    (endpoint.enclosed, endpoint.nameservers) = (true, vec![rig.lab.host(1).address.into()]);
    rig.write_map(&map);
    rig.start(&[]);
    // Also what others asked for, and is remembered.
    assert_eq!(rig.ask(3, "plain.example"), "NOERROR 192.0.2.1/60");
    for name in ["plain.example", "secret.example"] {
        assert_eq!(rig.ask(4, name), "SERVFAIL");
    }
    assert_eq!(rig.ask(4, "web"), "NOERROR 10.77.0.4/2");
    assert_eq!(world.all(), ["plain.example"]);
    // Whoever asks from an internal network and is not known is no better off.
    map.endpoints.remove(&task);
    map.networks.values_mut().for_each(|network| network.internal = true);
    rig.write_map(&map);
    wait_until("the new map counts", || rig.ask(4, "web") == "SERVFAIL");
    assert_eq!(rig.ask(4, "plain.example"), "SERVFAIL");
    assert_eq!(rig.ask(3, "else.example"), "NOERROR 192.0.2.1/60", "it has another network");
}

#[test]
fn a_dead_or_failing_server_is_passed_over_and_the_next_question_does_not_wait_for_it() {
    needs_root!();
    // The first has no such host behind it (silence), the second refuses at once, the third answers.
    let mut rig = Rig::new(
        "nameserver 10.77.0.99\nnameserver 127.0.0.8\nnameserver 127.0.0.1\noptions timeout:3 attempts:1\n",
    );
    World::start(rig.lab.host(1), loopback(1));
    rig.start(&[]);
    assert_eq!(rig.ask(3, "first.example"), "NOERROR 192.0.2.1/60");
    let start = Instant::now();
    assert_eq!(rig.ask(3, "second.example"), "NOERROR 192.0.2.1/60");
    assert!(start.elapsed().as_millis() < 2900, "{:?}", start.elapsed());
    assert_eq!(rig.ask(3, "fail.example"), "SERVFAIL");
}

#[test]
fn an_answer_that_comes_after_the_next_try_was_made_is_taken() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n");
    World::start(rig.lab.host(1), loopback(1));
    rig.start(&[]);
    assert_eq!(rig.ask(3, "late.example"), "NOERROR 192.0.2.1/60");
    assert_eq!(rig.ask(3, "silent.example"), "SERVFAIL", "both tries end");
}

#[test]
fn a_change_of_the_host_s_servers_counts_for_the_next_question() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    let (old, new) = (World::start(rig.lab.host(1), loopback(1)), World::start(rig.lab.host(1), loopback(2)));
    rig.start(&[]);
    assert_eq!(rig.ask(3, "silent.example"), "SERVFAIL");
    assert_eq!(rig.ask(3, "plain.example"), "NOERROR 192.0.2.1/60");
    let next = rig.run_root.path().join("resolv.conf.new");
    std::fs::write(&next, "nameserver 127.0.0.2\n").unwrap();
    std::fs::rename(next, rig.resolv_conf()).unwrap();
    assert_eq!(rig.ask(3, "plain.example"), "NOERROR 192.0.2.1/60");
    assert_eq!((old.times("plain.example"), new.times("plain.example")), (1, 1), "what was kept is gone too");
}

/// So that one who asks much cannot use up the node's sockets, nor what others may ask.
#[test]
fn questions_beyond_the_bound_are_refused_at_once_and_ours_are_answered_all_the_while() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\noptions timeout:5 attempts:1\n");
    World::start(rig.lab.host(1), loopback(1));
    rig.write_map(&map(&[]));
    rig.start(&[]);
    let server = rig.server();
    let host = rig.lab.host(3);
    let refused = host
        .run(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(server).unwrap();
            let mut buffer = [0; 4096];
            // In steps that no socket's buffer is too small for.
            for number in 0..256u16 {
                socket
                    .send(&crate::rig::query(number, &format!("silent.n{number}.example"), Rtype::A))
                    .unwrap();
                if number % 64 == 63 {
                    socket.send(&crate::rig::query(5000, "web", Rtype::A)).unwrap();
                    let len = socket.recv(&mut buffer).unwrap();
                    assert_eq!(crate::rig::shown(&buffer[..len]), "NOERROR 10.77.0.3/2");
                }
            }
            socket.send(&crate::rig::query(6000, "silent.last.example", Rtype::A)).unwrap();
            let len = socket.recv(&mut buffer).unwrap();
            (u16::from_be_bytes([buffer[0], buffer[1]]), crate::rig::shown(&buffer[..len]))
        })
        .unwrap();
    assert_eq!(refused, (6000, "SERVFAIL".to_owned()));
    assert_eq!(rig.ask(4, "plain.example"), "NOERROR 192.0.2.1/60");
}
