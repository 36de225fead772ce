//! Answers over real sockets.

use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};

use domain::base::iana::Rtype;
use rswarm_types::netmap::MapBridge;
use rswarm_types::service::EndpointMode;
use rswarm_types::{NetworkId, TaskId, Version};

use crate::needs_root;
use crate::rig::{Rig, ask, ask_tcp, map, wait_until};

#[test]
fn a_task_hears_the_names_of_its_networks_from_the_address_it_asked() {
    needs_root!();
    let mut rig = Rig::new("");
    rig.write_map(&map(&[9]));
    let second = ["addr", "add", "10.77.0.200/24", "dev", "eth0"];
    assert!(rig.lab.host(2).command("ip").unwrap().args(second).status().unwrap().success());
    rig.start(&[]);
    assert_eq!(rig.ask(3, "web"), "NOERROR 10.77.0.3/2 10.77.0.9/2");
    assert_eq!(rig.ask(4, "web"), "NOERROR 10.77.0.4/2");
    assert_eq!(rig.ask(4, "alias-two.two"), "NOERROR 10.77.0.4/2");
    let second = (Ipv4Addr::new(10, 77, 0, 200), 53).into();
    let heard = ask(rig.lab.host(3), second, "9.web", Rtype::A);
    assert_eq!(heard.as_deref(), Some("NOERROR 10.77.0.9/2"));
}

#[test]
fn tasks_on_a_bridge_hear_each_others_names_at_its_gateway_and_others_hear_nothing() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.1\n");
    crate::rig::World::start(rig.lab.host(1), Ipv4Addr::LOCALHOST.into());
    // Host 3 is on it, host 4 is not; the gateway's address comes later than the resolver.
    let mut map = map(&[]);
    let (local, gateway) = (NetworkId::from_bytes([9; 16]), Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(rig.lab.host(1).address, gateway);
    let (name, subnet) = ("Local".to_owned(), "10.77.0.0/30".parse().unwrap());
    let bridge = MapBridge { name, subnet, gateway, ipv6: None, internal: false };
    for (id, endpoint) in &mut map.endpoints {
        if *id == TaskId::from_bytes([3; 16]) {
            endpoint.addresses = [(local, Ipv4Addr::new(10, 77, 0, 3))].into();
        }
    }
    let web = map.services.values_mut().next().unwrap();
    (web.mode, web.networks) = (EndpointMode::Vip, [(local, Default::default())].into());
    rig.write_map(&map);
    rig.start(&[]);
    let server = std::net::SocketAddr::from((gateway, 53));
    let connect = |host: usize| rig.lab.host(host).run(|| TcpStream::connect(server)).unwrap();
    assert!(connect(3).is_err(), "no bridge, no name server");
    map.bridges.insert(local, bridge);
    rig.write_map(&map);
    wait_until("the bridge has a name server", || connect(3).is_ok());
    for name in ["web", "web.local", "tasks.web", "3.web"] {
        assert_eq!(ask(rig.lab.host(3), server, name, Rtype::A).unwrap(), "NOERROR 10.77.0.3/2");
    }
    assert_eq!(ask(rig.lab.host(3), server, "2.0.77.10.in-addr.arpa", Rtype::PTR).unwrap(), "NXDOMAIN");
    assert_eq!(ask(rig.lab.host(3), server, "plain.example", Rtype::A).unwrap(), "NOERROR 192.0.2.1/60");
    assert_eq!(ask_tcp(&mut connect(3).unwrap(), "web").unwrap(), "NOERROR 10.77.0.3/2");
    // Neither whom a route leads there, nor the node itself.
    for host in [4, 1] {
        ask_tcp(&mut connect(host).unwrap(), "plain.example").unwrap_err();
        let heard = rig.lab.host(host).run(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
            socket.send_to(&crate::rig::query(1, "plain.example", Rtype::A), server).unwrap();
            socket.recv(&mut [0; 512])
        });
        heard.unwrap().unwrap_err();
    }
    map.bridges.clear();
    rig.write_map(&map);
    wait_until("it is gone with its bridge", || connect(3).is_err());
}

#[test]
fn a_bridge_whose_port_somebody_else_has_waits_and_keeps_no_other_from_its_names() {
    needs_root!();
    let mut rig = Rig::new("");
    let gateway = rig.lab.host(1).address;
    let taken = rig.lab.host(1).run(|| std::net::UdpSocket::bind((gateway, 53)).unwrap()).unwrap();
    let mut map = map(&[]);
    let (name, subnet) = ("local".to_owned(), "10.77.0.0/24".parse().unwrap());
    map.bridges.insert(
        NetworkId::from_bytes([9; 16]),
        MapBridge { name, subnet, gateway, ipv6: None, internal: false },
    );
    rig.write_map(&map);
    rig.start(&[]);
    assert_eq!(rig.ask(3, "web"), "NOERROR 10.77.0.3/2");
    drop(taken);
    wait_until("the port is free", || {
        rig.lab.host(1).run(|| std::net::UdpSocket::bind((gateway, 53))).unwrap().is_ok()
    });
    rig.write_map(&map);
    wait_until("the next map brings it", || {
        rig.lab.host(3).run(|| TcpStream::connect((gateway, 53))).unwrap().is_ok()
    });
}

#[test]
fn dig_understands_every_answer() {
    needs_root!();
    if Command::new("dig").arg("-v").stderr(Stdio::null()).status().is_err() {
        eprintln!("skipped: needs dig");
        return;
    }
    let mut rig = Rig::new("");
    rig.write_map(&map(&(10..110).collect::<Vec<_>>()));
    rig.start(&[]);
    let dig = |words: &[&str]| {
        let mut command = rig.lab.host(3).command("dig").unwrap();
        let output = command.arg("@10.77.0.2").args(["+tries=1", "+timeout=5"]).args(words).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("WARNING") && !text.contains("malformed"), "{text}");
        text
    };
    let all = dig(&["tasks.web", "+noedns"]);
    assert!(all.contains("Truncated, retrying in TCP mode") && all.contains("ANSWER: 101,"), "{all}");
    let some = dig(&["tasks.web", "+ignore"]);
    assert!(some.contains("tc") && some.contains("udp: 1232") && some.contains("ANSWER: 74,"), "{some}");
    let reverse = dig(&["-x", "10.77.0.9", "+noall", "+comments"]);
    assert!(reverse.contains("status: NXDOMAIN"), "{reverse}");
    assert!(dig(&["-x", "10.77.0.3", "+short"]).starts_with("web.3."));
    let empty = dig(&["aaaa", "web"]);
    assert!(
        empty.contains("status: NOERROR") && empty.contains("ANSWER: 0,") && empty.contains(" aa "),
        "{empty}"
    );
    assert!(dig(&["+tcp", "+short", "3.web"]).starts_with("10.77.0.3\n"));
    let version = dig(&["web", "+edns=7", "+noednsneg"]);
    assert!(version.contains("status: BADVERS"), "{version}");
}

#[test]
fn a_new_map_counts_at_once_a_torn_one_not_at_all_and_without_one_there_are_no_names() {
    needs_root!();
    let mut rig = Rig::new("nameserver 127.0.0.9\n");
    rig.start(&[]);
    assert_eq!(rig.ask(3, "web"), "SERVFAIL", "no map, and nobody to pass it on to");
    rig.write_map(&map(&[9]));
    wait_until("the first map counts", || rig.ask(3, "web") == "NOERROR 10.77.0.3/2 10.77.0.9/2");
    let whole = rmp_serde::to_vec_named(&map(&[])).unwrap();
    rig.write_bytes(&whole[..whole.len() / 2]);
    rig.write_bytes(b"");
    wait_until("it is said", || rig.said("the last good map counts") > 0);
    assert_eq!(rig.ask(3, "web"), "NOERROR 10.77.0.3/2 10.77.0.9/2");
    let (before, mut after) = (map(&[9]), map(&[10, 11]));
    let mut writer = rig.write_map(&before);
    after.index = Version(1);
    writer.change(&after.since(&before), &after).unwrap();
    wait_until("the change counts", || rig.ask(3, "web") == "NOERROR 10.77.0.10/2 10.77.0.11/2 10.77.0.3/2");
    std::fs::remove_file(rig.run_root.path().join(rswarm_resolver::MAP_FILE)).unwrap();
    wait_until("no map counts", || rig.ask(3, "web") == "SERVFAIL");
}

#[test]
fn a_tcp_connection_takes_many_queries_and_a_client_so_many_connections() {
    needs_root!();
    let mut rig = Rig::new("");
    rig.write_map(&map(&[]));
    rig.start(&[]);
    let server = rig.server();
    let connect = || rig.lab.host(3).run(|| TcpStream::connect(server).unwrap()).unwrap();
    let mut first = connect();
    for _ in 0..100 {
        assert_eq!(ask_tcp(&mut first, "web").unwrap(), "NOERROR 10.77.0.3/2");
    }
    let mut others: Vec<_> = (0..15).map(|_| connect()).collect();
    for stream in &mut others {
        assert_eq!(ask_tcp(stream, "web").unwrap(), "NOERROR 10.77.0.3/2");
    }
    ask_tcp(&mut connect(), "web").unwrap_err();
    let mut elsewhere = rig.lab.host(4).run(|| TcpStream::connect(server).unwrap()).unwrap();
    assert_eq!(ask_tcp(&mut elsewhere, "web").unwrap(), "NOERROR 10.77.0.4/2");
    drop(others);
    wait_until("places are free again", || ask_tcp(&mut connect(), "web").is_ok());
    assert_eq!(ask_tcp(&mut first, "web").unwrap(), "NOERROR 10.77.0.3/2");
}
