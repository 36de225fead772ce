//! Tasks on different nodes reach each other, and only those they should.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rswarm_net::{Network, PeerAnswers, PeerQuestions};

use crate::{
    cluster::{APP, Cluster, INNER, OTHER, Task, address, address6, helper},
    rig::{DEADLINE, fetch, installed, output, receive, serve, stays_silent, udp, wait_until},
};

/// Sends bytes from one task to another, and compares.
fn transfer(from: &Task, to: &Task, vni: u32, bytes: usize) {
    let listener = to.container.listen(7000);
    let sent: Vec<u8> = (0..bytes).map(|n| (n * 31 % 251) as u8).collect();
    let received = thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all
    });
    let mut stream = from.container.run(|| TcpStream::connect((to.address(vni), 7000)).unwrap());
    stream.write_all(&sent).unwrap();
    drop(stream);
    assert!(received.join().unwrap() == sent, "what arrives is what was sent");
}

#[tokio::test]
async fn tasks_reach_each_other_within_and_across_nodes() {
    needs_kernel!();
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    for (node, last) in [(1, 2), (1, 3), (2, 4), (3, 5)] {
        cluster.start(node, last, &[APP]).await;
    }
    cluster.tell().await;
    cluster.assert_settled().await;
    let settings = format!("/proc/sys/net/ipv4/neigh/rsb{APP}/proxy_delay");
    assert_eq!(cluster.inside(1, "cat", &[&settings]).trim(), "0", "a first packet waits for no answer");
    let ping = installed("ping");
    for from in &cluster.tasks {
        for to in &cluster.tasks {
            if from.id != to.id {
                if ping {
                    let address = to.address(APP).to_string();
                    from.container.output("ping", &["-c", "1", "-W", "10", &address]);
                }
                transfer(from, to, APP, 1_000_000);
            }
        }
    }
    let (first, last) = (&cluster.tasks[0], &cluster.tasks[3]);
    transfer(first, last, APP, 10_000_000);
    last.container.serve(80, "last");
    assert_eq!(first.container.run(|| fetch(last.address(APP), 80)).unwrap(), "last saw 10.0.0.2");
}

#[test]
fn a_kernel_that_can_do_all_lacks_nothing() {
    needs_kernel!();
    let missing = rswarm_net::missing_for_overlays(&rswarm_net::NetworkConfig::default()).unwrap();
    assert_eq!(missing, Vec::<String>::new());
}

#[tokio::test]
async fn a_narrow_link_on_one_node_loses_nothing() {
    needs_kernel!();
    let mut cluster = Cluster::new(3);
    output(cluster.host(2).command("ip").unwrap().args(["link", "set", "eth0", "mtu", "1300"]));
    cluster.mtu = 1250;
    cluster.tell().await;
    for (node, last) in [(1, 2), (2, 3), (3, 4)] {
        cluster.start(node, last, &[APP]).await;
    }
    cluster.tell().await;
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        transfer(&cluster.tasks[from], &cluster.tasks[to], APP, 10_000_000);
    }
    // And after it has changed under way.
    cluster.mtu = 1150;
    output(cluster.host(2).command("ip").unwrap().args(["link", "set", "eth0", "mtu", "1200"]));
    cluster.tell().await;
    cluster.assert_settled().await;
    transfer(&cluster.tasks[0], &cluster.tasks[1], APP, 10_000_000);
}

#[tokio::test]
async fn networks_are_apart_and_internal_ones_have_no_way_out() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    let app = cluster.start(1, 2, &[APP]).await;
    let other = cluster.start(1, 3, &[OTHER]).await;
    let far = cluster.start(2, 4, &[OTHER]).await;
    let inner = cluster.start(1, 5, &[INNER]).await;
    let peer = cluster.start(2, 6, &[INNER]).await;
    let both = cluster.start(2, 7, &[APP, OTHER]).await;
    cluster.tell().await;
    for task in &cluster.tasks {
        task.container.serve(80, "task");
    }
    let reaches = |from: usize, to: Ipv4Addr| cluster.tasks[from].container.run(|| fetch(to, 80)).is_ok();
    let at = |task: usize, vni| cluster.tasks[task].address(vni);
    assert!(reaches(other, at(far, OTHER)));
    assert!(reaches(inner, at(peer, INNER)));
    assert!(reaches(both, at(app, APP)) && reaches(both, at(far, OTHER)) && reaches(other, at(both, OTHER)));
    for (from, to) in [
        (app, at(other, OTHER)),
        (app, at(far, OTHER)),
        (other, at(app, APP)),
        (app, at(inner, INNER)),
        (inner, at(app, APP)),
        (far, at(both, APP)),
    ] {
        assert!(!reaches(from, to), "{from} to {to}");
    }
    let outside = cluster.outside().address;
    let listener = cluster.outside().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
    serve(listener, "outside");
    let seen = cluster.tasks[app].container.run(|| fetch(outside, 80)).unwrap();
    assert_eq!(seen, "outside saw 10.77.0.1", "a task's traffic takes the node's address");
    // Even if it gives itself a route.
    cluster.tasks[inner].container.output("ip", &["route", "add", "default", "via", "10.0.32.1"]);
    assert!(!reaches(inner, outside));
    // Nor are the node's control port, its helper's link or another network's gateway open to it.
    // The other node's neither.
    for node in [cluster.host(1), cluster.host(2)] {
        serve(node.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2377)).unwrap()).unwrap(), "manager");
        assert!(cluster.tasks[app].container.run(|| fetch(node.address, 2377)).is_err());
        assert!(cluster.outside().run(|| fetch(node.address, 2377)).unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_restricted_service_answers_none_but_the_allowed() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.ipv6 = vec![APP];
    cluster.tell().await;
    let near = cluster.start(1, 2, &[APP, OTHER]).await;
    let far = cluster.start(2, 3, &[APP]).await;
    let caller = cluster.start(1, 4, &[APP]).await;
    let second = cluster.start(2, 5, &[APP]).await;
    let stranger = cluster.start(1, 6, &[APP, OTHER]).await;
    let away = cluster.start(2, 7, &[APP]).await;
    let service = cluster.serve("db", APP, 200, &[2, 3]);
    cluster.tell().await;
    for task in &cluster.tasks {
        task.container.serve(80, "task");
    }
    let reaches = |cluster: &Cluster, from: usize, to: Ipv4Addr| {
        let reached = cluster.tasks[from].container.run(|| fetch(to, 80)).is_ok();
        let [.., third, last] = to.octets();
        if third == 0 {
            // By IPv6 as by IPv4.
            let twin = cluster.tasks[from].container.run(|| fetch(address6(APP, last), 80));
            assert_eq!(reached, twin.is_ok(), "{from} to {to}: {twin:?}");
        }
        reached
    };
    let at = |cluster: &Cluster, task: usize| cluster.tasks[task].address(APP);
    let servers = [at(&cluster, near), at(&cluster, far), service];
    let all = [near, far, caller, second, stranger];
    for (from, to) in all.iter().flat_map(|from| servers.map(|to| (*from, to))) {
        assert!(reaches(&cluster, from, to), "{from} to {to}");
    }
    let held = {
        let to = (at(&cluster, far), 80);
        cluster.tasks[stranger].container.run(|| TcpStream::connect(to)).unwrap()
    };
    cluster.restrict(APP, &[2, 3], &[7]);
    cluster.call(7, APP, &[4, 5]);
    cluster.tell().await;
    cluster.assert_settled().await;
    // What a task sends to itself does not come by here.
    let pairs = all.iter().flat_map(|from| servers.map(|to| (*from, to)));
    for (from, to) in pairs.filter(|(from, to)| at(&cluster, *from) != *to) {
        assert_eq!(reaches(&cluster, from, to), [caller, second].contains(&from), "{from} to {to}");
    }
    // At once, not by silence; what a restricted task itself calls is not concerned, nor another network.
    let refused = cluster.tasks[stranger].container.run(|| TcpStream::connect((service, 80))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for called in [stranger, away] {
        assert!(reaches(&cluster, near, at(&cluster, called)), "{called}");
    }
    assert!(reaches(&cluster, stranger, cluster.tasks[near].address(OTHER)));
    // Who was connected stays so.
    (&held).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    (&held).read_to_string(&mut answer).unwrap();
    assert!(answer.contains("task"), "{answer}");
    // Datagrams, too.
    let receiver = cluster.tasks[near].container.run(|| udp(Ipv4Addr::UNSPECIFIED, 99));
    let send = |from: usize| {
        let socket = cluster.tasks[from].container.run(|| udp(Ipv4Addr::UNSPECIFIED, 0));
        socket.send_to(b"?", (at(&cluster, near), 99)).unwrap();
    };
    send(stranger);
    assert!(stays_silent(&receiver));
    // Here, too, it hears at once that it may not, and from the gateway, wherever that was said.
    for closed in servers {
        let socket = cluster.tasks[stranger].container.run(|| udp(Ipv4Addr::UNSPECIFIED, 0));
        socket.connect((closed, 99)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send(b"?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{closed}");
    }
    send(second);
    assert_eq!(receive(&receiver).0, b"?");
    // Another may call, one task of it more; then nobody is kept out any more.
    cluster.restrict(APP, &[2, 3], &[7, 8]);
    cluster.call(8, APP, &[6]);
    cluster.tell().await;
    assert!(reaches(&cluster, stranger, service) && reaches(&cluster, stranger, at(&cluster, far)));
    assert!(!reaches(&cluster, near, at(&cluster, far)), "its own tasks only if allowed");
    (cluster.restricted, cluster.callers) = Default::default();
    cluster.tell().await;
    cluster.assert_settled().await;
    assert!(reaches(&cluster, near, at(&cluster, far)));
}

/// Who answers a node, and who does not although all but `silent` have.
async fn answers(node: &Network, silent: usize) -> PeerAnswers {
    let questions = node.ask_peers(&PeerQuestions::default()).await.unwrap();
    let (mut found, end) = (questions.answers(), Instant::now() + DEADLINE);
    let mut enough = None;
    // Those that are not to answer have another half of a second.
    while !found.silent.is_empty() && Instant::now() < enough.unwrap_or(end) {
        if found.silent.len() <= silent {
            enough.get_or_insert(Instant::now() + Duration::from_millis(500));
        }
        thread::sleep(Duration::from_millis(5));
        found.answered.extend(questions.answers().answered);
        found.silent.retain(|number| !found.answered.contains(number));
    }
    found
}

#[tokio::test]
async fn kernels_answer_by_the_data_path_unless_it_is_filtered() {
    needs_kernel!();
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    let all = |numbers: &[u16]| numbers.iter().copied().collect::<std::collections::BTreeSet<_>>();
    let found = answers(cluster.node(1), 0).await;
    assert_eq!(found, PeerAnswers { answered: all(&[2, 3]), silent: all(&[]) });
    // Without a daemon, too.
    cluster.nodes[1] = cluster.daemon(2);
    assert_eq!(answers(cluster.node(1), 0).await.silent, all(&[]));
    let nft = |words: &str| {
        let host = cluster.host(3);
        output(host.command("nft").unwrap().arg(words));
    };
    nft("add table ip test");
    nft("add chain ip test input { type filter hook input priority 0 ; }");
    nft("add rule ip test input udp dport 4789 drop");
    let found = answers(cluster.node(1), 1).await;
    assert_eq!(found, PeerAnswers { answered: all(&[2]), silent: all(&[3]) });
    // What the others answer does not arrive either.
    assert_eq!(answers(cluster.node(3), 2).await.silent, all(&[1, 2]));
    nft("delete table ip test");
    assert_eq!(answers(cluster.node(1), 0).await.silent, all(&[]));
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_task_speaks_with_its_own_address_only() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    let honest = cluster.start(2, 2, &[APP]).await;
    let liar = cluster.start(1, 3, &[APP]).await;
    cluster.start(1, 9, &[APP]).await;
    cluster.tell().await;
    let (honest, liar) = (&cluster.tasks[honest], &cluster.tasks[liar]);
    let target = (honest.address(APP), 99);
    let receiver = honest.container.run(|| udp(target.0, 99));
    let send = |from: Ipv4Addr, word: &[u8]| {
        liar.container.run(|| udp(from, 0)).send_to(word, target).unwrap();
    };
    send(liar.address(APP), b"true");
    assert_eq!(receive(&receiver).0, b"true");
    // The address of a neighbour, and one that nobody has.
    for stolen in ["10.0.0.9", "10.0.0.77"] {
        liar.container.output("ip", &["addr", "add", &format!("{stolen}/32"), "dev", "eth0"]);
        send(stolen.parse().unwrap(), b"false");
        assert!(stays_silent(&receiver), "{stolen}");
    }
    liar.container.output("ip", &["link", "set", "eth0", "address", "02:42:0a:00:00:09"]);
    send(liar.address(APP), b"false");
    assert!(stays_silent(&receiver), "another MAC");
}

#[tokio::test]
async fn hosts_do_not_track_what_tunnels_carry() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    cluster.start(2, 3, &[APP]).await;
    cluster.tell().await;
    cluster.tasks[1].container.serve(80, "b");
    cluster.tasks[0].container.run(|| fetch(address(APP, 3), 80)).unwrap();
    let datagram = || std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", (address(APP, 3), 53));
    cluster.tasks[0].container.run(datagram).unwrap();
    let tracked = |namespace: &std::path::Path| {
        rswarm_net::run_in_netns(namespace, || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))
            .unwrap()
    };
    let Ok(inside) = tracked(&helper(cluster.host(1))) else {
        eprintln!("skipped: needs /proc/net/nf_conntrack, as a witness");
        return;
    };
    assert!(inside.contains("dport=53 "), "{inside}");
    assert!(!inside.contains("dport=80 "), "TCP to a task is switched: {inside}");
    for number in [1, 2] {
        let flows =
            cluster.host(number).run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
        let flows = flows.unwrap().unwrap();
        assert!(!flows.contains("dport=4789 "), "host {number}: {flows}");
    }
}

#[tokio::test]
async fn a_data_path_port_that_a_process_has_is_told() {
    needs_kernel!();
    let cluster = Cluster::new(1);
    let has =
        |cluster: &Cluster| cluster.host(1).run(|| rswarm_net::is_data_path_taken(4789)).unwrap().unwrap();
    assert!(!has(&cluster));
    let other = cluster.host(1).run(|| udp(Ipv4Addr::UNSPECIFIED, 4789)).unwrap();
    assert!(has(&cluster));
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(!report.failed.is_empty());
    let found = cluster.node(1).check().await.unwrap().findings;
    let told = |finding: &rswarm_net::Finding| finding.to_string();
    let all: Vec<String> = found.iter().map(told).collect();
    let expected = "missing vxlan `rsx4097`: Address already in use";
    assert!(all.iter().any(|one| one.starts_with(expected)), "{all:?}");
    drop(other);
    wait_until("the port is free", || !has(&cluster));
    let report = cluster.node(1).reconcile(&cluster.desired(1)).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    cluster.assert_settled().await;
    assert!(!has(&cluster), "the kernel's own shares it");
}
