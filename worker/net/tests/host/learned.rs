//! Connections that last are switched past routing, and nothing of them changes by it.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rswarm_net::Protocol::Tcp;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketType, bind, connect, socket,
        sockopt::{set_socket_linger, set_socket_reuseaddr},
    },
};

use crate::{
    cluster::{APP, Cluster, INGRESS, Task, helper},
    rig::DEADLINE,
};

/// So many exchanges that a connection is learned: that 1000 segments are all passed over has a chance of 10^-14.
const MANY: usize = 1000;
const PORT: u16 = 80;

/// Answers each line with `name` and whom it sees, until it hears "enough".
fn answer(task: &Task, name: &'static str) {
    let listener = task.container.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let seen = format!("{name} saw {}\n", stream.peer_addr().unwrap());
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                for line in lines.map_while(Result::ok) {
                    if line == "enough" || stream.write_all(seen.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Connects from this port of the client's, as soon as the last connection from it has ended.
fn open(own: u16, to: (Ipv4Addr, u16)) -> TcpStream {
    let end = Instant::now() + DEADLINE;
    let stream = loop {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, own)).unwrap();
        match connect(&socket, &SocketAddrV4::new(to.0, to.1)) {
            Err(Errno::ADDRNOTAVAIL) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
            result => break result.map(|()| TcpStream::from(socket)).unwrap(),
        }
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Has a line answered as often as it takes to be learned; returns the answer, which is always the same.
fn converse(stream: &mut TcpStream) -> String {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut answer = String::new();
    for _ in 0..MANY {
        stream.write_all(b"and?\n").unwrap();
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(answer.is_empty() || answer == line, "{answer} and then {line}");
        answer = line;
    }
    answer.trim_end().to_owned()
}

/// How many flows a node has learned, of calls, answers and by published ports.
fn learned(cluster: &Cluster, node: usize) -> [usize; 3] {
    ["calls", "answers", "meshed"].map(|map| {
        let shown = cluster.inside(node, "nft", &["list", "map", "bridge", "rswarm", map]);
        shown.matches("expires").count()
    })
}

/// For how many seconds tracking will keep what it knows of the connection from this port, if nothing comes; where the
/// kernel shows that.
fn kept(cluster: &Cluster, node: usize, own: u16) -> Option<u64> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").ok();
    let Some(shown) = rswarm_net::run_in_netns(&helper(cluster.host(node)), read).unwrap() else {
        eprintln!("left out: needs /proc/net/nf_conntrack, as a witness");
        return None;
    };
    let line = shown.lines().find(|line| line.contains(&format!("sport={own} "))).unwrap();
    Some(line.split_whitespace().nth(4).unwrap().parse().unwrap())
}

/// Waits until a node has forgotten all flows.
fn assert_forgotten(cluster: &Cluster, node: usize) {
    let end = Instant::now() + DEADLINE;
    while learned(cluster, node) != [0; 3] {
        assert!(Instant::now() < end, "{:?}", learned(cluster, node));
    }
}

/// Ends a connection by a reset.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Segments of the middle of connections that a node has routed so far.
struct Routed<'a>(&'a Cluster, usize);

impl<'a> Routed<'a> {
    fn count(cluster: &'a Cluster, node: usize) -> Self {
        for words in [
            "add table ip count",
            "add chain ip count forward { type filter hook forward priority 9 ; }",
            "add rule ip count forward tcp flags & (syn | fin | rst) == 0 counter",
        ] {
            cluster.inside(node, "nft", &[words]);
        }
        Self(cluster, node)
    }

    fn segments(&self) -> u64 {
        let shown = self.0.inside(self.1, "nft", &["list", "table", "ip", "count"]);
        shown.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Routed<'_> {
    fn drop(&mut self) {
        self.0.inside(self.1, "nft", &["delete", "table", "ip", "count"]);
    }
}

/// A client on node 1 and a service with a task on nodes 2 and 3 each.
async fn served() -> (Cluster, Ipv4Addr) {
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    for (node, last, name) in [(2, 3, "three"), (3, 4, "four")] {
        let task = cluster.start(node, last, &[APP]).await;
        answer(&cluster.tasks[task], name);
    }
    let service = cluster.serve("web", APP, 200, &[3, 4]);
    cluster.tell().await;
    (cluster, service)
}

#[tokio::test]
async fn a_call_by_a_virtual_address_is_switched_once_it_lasts() {
    needs_kernel!();
    let (cluster, service) = served().await;
    let client = &cluster.tasks[0].container;
    let mut stream = client.run(|| open(40_000, (service, PORT)));
    let answer = converse(&mut stream);
    assert!(answer.ends_with(" saw 10.0.0.2:40000"), "{answer}");
    assert_eq!(learned(&cluster, 1), [1, 1, 0]);
    let routed = Routed::count(&cluster, 1);
    assert_eq!(converse(&mut stream), answer);
    assert_eq!(routed.segments(), 0, "none");
    // What tracking saw last was a question, never answered as far as it knows; a client may be silent for longer than that.
    assert!(kept(&cluster, 1, 40_000).is_none_or(|seconds| seconds > 5 * 3600));
    // What is learned is nobody's mistake, and a daemon that starts leaves it alone.
    cluster.assert_settled().await;
    cluster.tell().await;
    assert_eq!(learned(&cluster, 1), [1, 1, 0]);
    // Forgotten in the middle, it goes on by routing, and is learned again.
    for map in ["calls", "answers"] {
        cluster.inside(1, "nft", &["flush", "map", "bridge", "rswarm", map]);
    }
    assert_eq!(converse(&mut stream), answer);
    assert!(routed.segments() > 0);
    assert_eq!(learned(&cluster, 1), [1, 1, 0]);
    // The end of it is the end of what was learned.
    drop(stream);
    assert_forgotten(&cluster, 1);
}

#[tokio::test]
async fn a_reset_is_the_end_of_both_directions() {
    needs_kernel!();
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    let task = cluster.start(2, 5, &[INGRESS, APP]).await;
    let service = cluster.serve("other", APP, 201, &[5]);
    cluster.publish(Tcp, 8080, 81, &[5]);
    cluster.tell().await;
    let listener = cluster.tasks[task].container.listen(81);
    let (client, outside) = (&cluster.tasks[0].container, cluster.outside());
    let by_port = (cluster.host(3).address, 8080);
    for published in [false, true] {
        for by_client in [false, true] {
            let mut stream = if published {
                outside.run(|| open(40_001, by_port)).unwrap()
            } else {
                client.run(|| open(40_001, (service, 81)))
            };
            let mut accepted = listener.accept().unwrap().0;
            for _ in 0..MANY {
                stream.write_all(b"x").unwrap();
                accepted.read_exact(&mut [0]).unwrap();
                accepted.write_all(b"y").unwrap();
                stream.read_exact(&mut [0]).unwrap();
            }
            let (node, known) = if published { (2, [0, 0, 2]) } else { (1, [1, 1, 0]) };
            assert_eq!(learned(&cluster, node), known);
            let (first, second) = if by_client { (stream, accepted) } else { (accepted, stream) };
            reset(first);
            assert_forgotten(&cluster, node);
            drop(second);
        }
    }
}

#[tokio::test]
async fn answers_by_a_tasks_own_address_are_switched_and_a_call_of_the_same_ports_forgets_that() {
    needs_kernel!();
    let (mut cluster, _) = served().await;
    let service = cluster.serve("only", APP, 201, &[3]);
    cluster.tell().await;
    let (client, own) = (&cluster.tasks[0].container, cluster.tasks[1].address(APP));
    let call = |to| {
        let mut stream = client.run(|| open(40_000, (to, PORT)));
        assert_eq!(converse(&mut stream), "three saw 10.0.0.2:40000");
        stream
    };
    let mut stream = call(own);
    assert_eq!(learned(&cluster, 1), [0, 1, 0]);
    let routed = Routed::count(&cluster, 1);
    converse(&mut stream);
    assert_eq!(routed.segments(), 0, "none");
    // The task hears nothing that it would answer, so the bridge does not hear of the end.
    reset(stream);
    assert_eq!(learned(&cluster, 1), [0, 1, 0]);
    let stream = call(service);
    assert_eq!(learned(&cluster, 1), [1, 1, 0]);
    reset(stream);
    assert_forgotten(&cluster, 1);
    drop(call(own));
    assert_forgotten(&cluster, 1);
}

#[tokio::test]
async fn a_port_used_again_leads_to_the_backend_that_is_drawn_then() {
    needs_kernel!();
    let (cluster, service) = served().await;
    let client = &cluster.tasks[0].container;
    let mut seen = std::collections::BTreeSet::new();
    // Both are drawn, but for a chance of 10^-17.
    for _ in 0..60 {
        let mut stream = client.run(|| open(40_000, (service, PORT)));
        seen.insert(converse(&mut stream));
        // The task closes first, so that the client's port is free at once.
        stream.write_all(b"enough\n").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        if seen.len() == 2 {
            break;
        }
    }
    let both = ["four saw 10.0.0.2:40000", "three saw 10.0.0.2:40000"];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), both);
}

#[tokio::test]
async fn a_backend_that_goes_resets_also_what_was_learned() {
    needs_kernel!();
    let (mut cluster, service) = served().await;
    let mut streams = Vec::new();
    for (last, own) in [(3, 40_000), (4, 40_010)] {
        cluster.serve("web", APP, 200, &[last]);
        cluster.tell().await;
        let client = &cluster.tasks[0].container;
        streams.extend((own..own + 4).map(|own| client.run(|| open(own, (service, PORT)))));
    }
    let answers: Vec<String> = streams.iter_mut().map(converse).collect();
    assert_eq!(learned(&cluster, 1), [8, 8, 0]);
    let task = cluster.tasks.iter().position(|task| task.last == 3).unwrap();
    let gone = cluster.tasks.remove(task);
    for endpoint in gone.endpoints() {
        assert!(cluster.node(gone.node).detach(&endpoint.id).await.unwrap());
    }
    cluster.tell().await;
    for (stream, answer) in streams.iter_mut().zip(&answers) {
        if answer.starts_with("four") {
            assert_eq!(converse(stream), *answer, "of the other task, it lives");
            continue;
        }
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // Perhaps it has been, when it acknowledged the last answer.
        let asked = stream.write_all(b"and?\n");
        let answer = asked.and_then(|()| stream.read(&mut [0; 8])).map_err(|error| error.kind());
        assert_eq!(answer, Err(ErrorKind::ConnectionReset));
    }
    cluster.assert_settled().await;
}

#[tokio::test]
async fn what_is_half_closed_goes_on_the_other_way() {
    needs_kernel!();
    let (cluster, _) = served().await;
    let mut cluster = cluster;
    let service = cluster.serve("only", APP, 201, &[3]);
    cluster.tell().await;
    let (client, task) = (&cluster.tasks[0].container, &cluster.tasks[1]);
    let listener = task.container.listen(81);
    const LONG: usize = 20_000_000;
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut byte = [0];
        for _ in 0..MANY {
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
        assert_eq!(stream.read(&mut byte).unwrap(), 0, "the client has said all");
        let all: Vec<u8> = (0..LONG).map(|n| (n % 251) as u8).collect();
        stream.write_all(&all).unwrap();
    });
    let mut stream = client.run(|| open(40_000, (service, 81)));
    for _ in 0..MANY {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(learned(&cluster, 1), [1, 1, 0]);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    server.join().unwrap();
    assert!(all.len() == LONG && all.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    assert_eq!(learned(&cluster, 1), [0; 3], "what is half-closed is tracked to the end");
}

#[tokio::test]
async fn a_published_port_is_switched_on_the_node_of_its_task() {
    needs_kernel!();
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    cluster.start(2, 3, &[INGRESS]).await;
    answer(&cluster.tasks[0], "three");
    cluster.publish(Tcp, 8080, PORT, &[3]);
    cluster.tell().await;
    let outside = cluster.outside();
    let expected = format!("three saw {}:40000", outside.address);
    // By one node, and then from the same port by the other, with neither a word between.
    for entry in [1, 3, 1] {
        let to = (cluster.host(entry).address, 8080);
        let mut stream = outside.run(|| open(40_000, to)).unwrap();
        assert_eq!(converse(&mut stream), expected, "by node {entry}");
        assert_eq!(learned(&cluster, 2), [0, 0, 2], "by node {entry}");
        let routed = Routed::count(&cluster, 2);
        assert_eq!(converse(&mut stream), expected, "by node {entry}");
        assert_eq!(routed.segments(), 0, "by node {entry}");
        stream.write_all(b"enough\n").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    cluster.assert_settled().await;
}

#[tokio::test]
async fn a_rule_planted_where_others_lead_to_is_taken_away() {
    needs_kernel!();
    let cluster = Cluster::new(1);
    cluster.tell().await;
    for chain in ["to-elsewhere", "call", "learn"] {
        let family = if chain == "learn" { "inet" } else { "bridge" };
        cluster.inside(1, "nft", &["insert", "rule", family, "rswarm", chain, "drop"]);
        assert_eq!(cluster.node(1).verify().await.unwrap().len(), 1, "{chain}");
        cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
        cluster.assert_settled().await;
    }
}
