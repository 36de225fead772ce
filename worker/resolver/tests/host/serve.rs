//! Answers over real sockets.

use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};

use domain::base::iana::Rtype;
use rswarm_types::Version;

use crate::needs_root;
use crate::rig::{Rig, ask, ask_tcp, map, wait_until};

#[test]
fn a_task_hears_the_names_of_its_networks_from_the_address_it_asked() {
    needs_root!();
    let mut rig = Rig::new("");
    rig.write_map(&map(&[9]));
    let second = ["addr", "add", "10.77.0.200/24", "dev", "eth0"];
    assert!(rig.lab.host(2).command("ip").unwrap().args(second).status().unwrap().success());
    // An address of the node's own that comes later.
    rig.start(&["--listen", "10.77.0.201"]);
    assert_eq!(rig.ask(3, "web"), "NOERROR 10.77.0.3/2 10.77.0.9/2");
    assert_eq!(rig.ask(4, "web"), "NOERROR 10.77.0.4/2");
    assert_eq!(rig.ask(4, "alias-two.two"), "NOERROR 10.77.0.4/2");
    let second = (Ipv4Addr::new(10, 77, 0, 200), 53).into();
    let heard = ask(rig.lab.host(3), second, "9.web", Rtype::A);
    assert_eq!(heard.as_deref(), Some("NOERROR 10.77.0.9/2"));
    let own = ["addr", "add", "10.77.0.201/24", "dev", "eth0"];
    assert!(rig.lab.host(1).command("ip").unwrap().args(own).status().unwrap().success());
    let third = (Ipv4Addr::new(10, 77, 0, 201), 53).into();
    assert_eq!(ask(rig.lab.host(3), third, "9.web", Rtype::A).as_deref(), Some("NOERROR 10.77.0.9/2"));
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
