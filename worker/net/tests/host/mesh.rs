//! Virtual addresses and published ports: who answers, and whom the task sees.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use rswarm_net::{
    HostPort, Place,
    Protocol::{Tcp, Udp},
};

use crate::{
    cluster::{APP, Cluster, INGRESS, Task},
    rig::{DEADLINE, fetch, output, port, udp},
};

/// Answers datagrams with `name` and the caller's address, from whatever address the kernel chooses.
fn echo(task: &Task, port: u16) {
    let socket = task.container.run(|| udp(Ipv4Addr::UNSPECIFIED, port));
    let name = task.id.clone();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} saw {}", from.ip()).as_bytes(), from);
        }
    });
}

/// What a server at this port answers to a datagram.
fn ask(socket: &UdpSocket, to: (Ipv4Addr, u16)) -> String {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send_to(b"hello", to).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    assert_eq!(from, SocketAddr::from(to), "the answer comes from whom was asked");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Nodes 1 and 2 without a task of the service, node 3 with it.
async fn meshed() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    cluster.start(3, 2, &[INGRESS, APP]).await;
    cluster.tasks[0].container.serve(80, "web");
    echo(&cluster.tasks[0], 53);
    cluster.publish(Tcp, 8080, 80, &[2]);
    cluster.publish(Udp, 5353, 53, &[2]);
    cluster.tell().await;
    cluster
}

#[tokio::test]
async fn a_published_port_answers_on_every_node_and_the_task_sees_the_client() {
    needs_kernel!();
    let cluster = meshed().await;
    let outside = cluster.outside();
    for number in 1..=3 {
        let node = cluster.host(number);
        let seen = outside.run(|| fetch(node.address, 8080)).unwrap().unwrap();
        assert_eq!(seen, "web saw 10.77.0.4", "by node {number}");
        let socket = outside.run(|| udp(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert_eq!(ask(&socket, (node.address, 5353)), "task2 saw 10.77.0.4", "by node {number}");
        // From the node itself, by its address and by its loopback.
        let own = format!("web saw {}", node.address);
        for address in [node.address, Ipv4Addr::LOCALHOST] {
            assert_eq!(node.run(|| fetch(address, 8080)).unwrap().unwrap(), own, "{address}");
            let socket = node.run(|| udp(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            assert_eq!(ask(&socket, (address, 5353)), own.replace("web", "task2"), "{address}");
        }
        // From another node.
        let other = cluster.host(number % 3 + 1);
        let seen = other.run(|| fetch(node.address, 8080)).unwrap().unwrap();
        assert_eq!(seen, format!("web saw {}", other.address));
    }
    // From tasks: of the same node, of another, and the one that answers itself.
    cluster.assert_settled().await;
}

#[tokio::test]
async fn tasks_reach_published_ports_and_the_own_service() {
    needs_kernel!();
    let mut cluster = meshed().await;
    let client = cluster.start(1, 3, &[APP]).await;
    let web = cluster.serve("web", APP, 200, &[2]);
    cluster.tell().await;
    for (task, node) in [(client, 1), (client, 3), (0, 3), (0, 1)] {
        let own = cluster.host(cluster.tasks[task].node).address;
        let address = cluster.host(node).address;
        let seen = cluster.tasks[task].container.run(|| fetch(address, 8080)).unwrap();
        assert_eq!(seen, format!("web saw {own}"), "task {task} by node {node}");
    }
    let seen = cluster.tasks[client].container.run(|| fetch(web, 80)).unwrap();
    assert_eq!(seen, "web saw 10.0.0.3");
    let hairpin = cluster.tasks[0].container.run(|| fetch(web, 80)).unwrap();
    assert_eq!(hairpin, "web saw 10.0.0.1", "a task that calls itself sees the gateway");
}

#[tokio::test]
async fn connections_are_spread_and_move_on_from_backends_that_go() {
    needs_kernel!();
    let mut cluster = Cluster::new(3);
    cluster.tell().await;
    let client = cluster.start(1, 2, &[APP]).await;
    for (node, last) in [(1, 3), (2, 4), (3, 5)] {
        let task = cluster.start(node, last, &[APP]).await;
        let task = &cluster.tasks[task];
        task.container.serve(80, ["three", "four", "five"][usize::from(last) - 3]);
        echo(task, 53);
    }
    let address = cluster.serve("web", APP, 200, &[3, 4, 5]);
    cluster.tell().await;
    let ask_often = |cluster: &Cluster| -> BTreeSet<String> {
        let fetch = || fetch(address, 80).unwrap();
        (0..60).map(|_| cluster.tasks[client].container.run(fetch)).collect()
    };
    let all = ["five saw 10.0.0.2", "four saw 10.0.0.2", "three saw 10.0.0.2"].map(String::from);
    assert_eq!(ask_often(&cluster), BTreeSet::from(all.clone()));
    // A flow of datagrams stays with its backend, and moves on when that goes; an established connection is reset.
    let socket = cluster.tasks[client].container.run(|| udp(Ipv4Addr::UNSPECIFIED, 0));
    let first = ask(&socket, (address, 53));
    for _ in 0..5 {
        assert_eq!(ask(&socket, (address, 53)), first);
    }
    let holder: u8 = first.strip_prefix("task").unwrap()[..1].parse().unwrap();
    let listener = |last: u8| {
        let task = cluster.tasks.iter().find(|task| task.last == last).unwrap();
        task.container.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 81)).unwrap())
    };
    let listeners = [3, 4, 5].map(listener);
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(cluster.tasks[client].container.run(|| TcpStream::connect((address, 81)).unwrap()));
    }
    let mut accepted: Vec<Vec<TcpStream>> = Vec::new();
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
        accepted.push(std::iter::from_fn(|| listener.accept().ok().map(|(stream, _)| stream)).collect());
    }
    assert!(accepted.iter().all(|streams| !streams.is_empty()), "each got its share");
    let gone: BTreeSet<u16> =
        accepted[usize::from(holder) - 3].iter().map(|stream| stream.peer_addr().unwrap().port()).collect();
    // Out of the service, but not gone: its flows stay.
    cluster.serve("web", APP, 200, &[3, 4, 5].into_iter().filter(|last| *last != holder).collect::<Vec<_>>());
    cluster.tell().await;
    assert_eq!(ask(&socket, (address, 53)), first, "draining");
    assert_eq!(ask_often(&cluster).len(), 2, "no new connections");
    let task = cluster.tasks.iter().position(|task| task.last == holder).unwrap();
    let removed = cluster.tasks.remove(task);
    for endpoint in removed.endpoints() {
        assert!(cluster.node(removed.node).detach(&endpoint.id).await.unwrap());
    }
    cluster.tell().await;
    assert_ne!(ask(&socket, (address, 53)), first, "moved on");
    for stream in &mut streams {
        let own = stream.local_addr().unwrap().port();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        stream.write_all(b"still there?").unwrap();
        let answer = if gone.contains(&own) {
            stream.read(&mut [0; 8]).map_err(|error| error.kind())
        } else {
            continue;
        };
        assert_eq!(answer, Err(std::io::ErrorKind::ConnectionReset));
    }
    // None left: refused, at once, and open again with the next.
    cluster.serve("web", APP, 200, &[]);
    cluster.tell().await;
    let refused = cluster.tasks[client].container.run(|| fetch(address, 80)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let socket = cluster.tasks[client].container.run(|| udp(Ipv4Addr::UNSPECIFIED, 0));
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect((address, 53)).unwrap();
    socket.send(b"anyone?").unwrap();
    let error = socket.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    cluster.serve("web", APP, 200, &[cluster.tasks[1].last]);
    cluster.tell().await;
    assert_eq!(ask_often(&cluster).len(), 1);
    cluster.assert_settled().await;
}

#[tokio::test]
async fn a_published_port_without_backends_refuses() {
    needs_kernel!();
    let mut cluster = meshed().await;
    let node = cluster.host(1).address;
    let socket = cluster.outside().run(|| udp(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    assert_eq!(ask(&socket, (node, 5353)), "task2 saw 10.77.0.4");
    cluster.publish(Tcp, 8080, 80, &[]);
    cluster.publish(Udp, 5353, 53, &[]);
    cluster.tasks.clear();
    for number in 1..=3 {
        cluster.node(number).reconcile(&cluster.desired(number)).await.unwrap();
    }
    let refused = cluster.outside().run(|| fetch(node, 8080)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    socket.connect((node, 5353)).unwrap();
    socket.send(b"anyone?").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // The same flow finds the next task.
    cluster.start(2, 6, &[INGRESS]).await;
    echo(&cluster.tasks[0], 53);
    cluster.publish(Udp, 5353, 53, &[6]);
    cluster.tell().await;
    socket.send(b"hello").unwrap();
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"task6 saw 10.77.0.4");
}

#[tokio::test]
async fn ports_bound_to_an_address_and_ports_in_use() {
    needs_kernel!();
    let mut cluster = meshed().await;
    let node = cluster.host(1).address;
    cluster.published.get_mut(&(Tcp, 8080)).unwrap().at =
        BTreeSet::from([Place::Address(Ipv4Addr::LOCALHOST.into())]);
    cluster.tell().await;
    assert!(cluster.outside().run(|| fetch(node, 8080)).unwrap().is_err());
    let own = cluster.host(1).run(|| fetch(Ipv4Addr::LOCALHOST, 8080)).unwrap().unwrap();
    assert_eq!(own, "web saw 10.77.0.1");
    // A port on which someone listens is left to him, and told.
    let listener = cluster.host(1).run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).unwrap()).unwrap();
    crate::rig::serve(listener, "his");
    cluster.publish(Tcp, 9000, 80, &[2]);
    let busy = cluster.node(1).apply(cluster.overlay(1)).await.unwrap();
    assert_eq!(busy, BTreeSet::from([(Tcp, 9000)]));
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    let seen = cluster.outside().run(|| fetch(node, 9000)).unwrap().unwrap();
    assert_eq!(seen, "his saw 10.77.0.4");
    // Nobody is in the way by the wire, somebody is by the loopback.
    let _his = cluster.host(1).run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 9001)).unwrap()).unwrap();
    cluster.publish(Tcp, 9001, 80, &[2]);
    for (interface, expected) in [("eth0", vec![9000]), ("lo", vec![9000, 9001])] {
        cluster.published.get_mut(&(Tcp, 9001)).unwrap().at = BTreeSet::from([Place::interface(interface)]);
        let busy = cluster.node(1).apply(cluster.overlay(1)).await.unwrap();
        assert_eq!(busy, expected.into_iter().map(|port| (Tcp, port)).collect(), "{interface}");
        assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    }
    assert_eq!(cluster.node(2).apply(cluster.overlay(2)).await.unwrap(), BTreeSet::new());
    let seen = cluster.outside().run(|| fetch(cluster.host(2).address, 9000)).unwrap().unwrap();
    assert_eq!(seen, "web saw 10.77.0.4");
}

#[tokio::test]
async fn a_port_answers_by_the_interface_that_was_asked_for() {
    needs_kernel!();
    let mut cluster = meshed().await;
    let node = cluster.host(1).address;
    let early = cluster.outside().run(|| udp(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // What the node sends to itself comes by its loopback.
    for (interface, from_outside, from_itself) in
        [("lo", false, true), ("eth0", true, false), ("gone0", false, false)]
    {
        for key in [(Tcp, 8080), (Udp, 5353)] {
            cluster.published.get_mut(&key).unwrap().at = BTreeSet::from([Place::interface(interface)]);
        }
        cluster.tell().await;
        cluster.assert_settled().await;
        let seen = cluster.outside().run(|| fetch(node, 8080)).unwrap().ok();
        assert_eq!(seen, from_outside.then(|| "web saw 10.77.0.4".to_owned()), "{interface}");
        for own in [node, Ipv4Addr::LOCALHOST] {
            let seen = cluster.host(1).run(|| fetch(own, 8080)).unwrap().ok();
            assert_eq!(seen, from_itself.then(|| "web saw 10.77.0.1".to_owned()), "{interface}, {own}");
        }
        // What came before the port answered there is no hindrance to what comes then.
        if from_outside {
            assert_eq!(ask(&early, (node, 5353)), "task2 saw 10.77.0.4");
        } else {
            early.send_to(b"too early", (node, 5353)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_port_of_one_task_leads_to_it_from_its_node_alone() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    let task = cluster.start(1, 2, &[APP]).await;
    cluster.tasks[task].container.serve(80, "task");
    cluster.tasks[task].ports = vec![port(Tcp, 8000, 80)];
    let endpoint = cluster.tasks[task].endpoints().remove(0);
    cluster.node(1).publish(&endpoint.id, &endpoint.ports).await.unwrap();
    let outside = cluster.outside();
    let (first, second) = (cluster.host(1).address, cluster.host(2).address);
    assert_eq!(outside.run(|| fetch(first, 8000)).unwrap().unwrap(), "task saw 10.77.0.3");
    assert!(outside.run(|| fetch(second, 8000)).unwrap().is_err());
    cluster.assert_settled().await;
    let bound =
        HostPort { at: Some(Place::Address(Ipv4Addr::LOCALHOST.into())), ..endpoint.ports[0].clone() };
    cluster.node(1).publish(&endpoint.id, std::slice::from_ref(&bound)).await.unwrap();
    assert!(outside.run(|| fetch(first, 8000)).unwrap().is_err());
    let own = cluster.host(1).run(|| fetch(Ipv4Addr::LOCALHOST, 8000)).unwrap().unwrap();
    assert_eq!(own, "task saw 10.77.0.1");
    let by_wire = HostPort { at: Some(Place::interface("eth0")), ..bound };
    cluster.node(1).publish(&endpoint.id, &[by_wire]).await.unwrap();
    assert_eq!(outside.run(|| fetch(first, 8000)).unwrap().unwrap(), "task saw 10.77.0.3");
    assert!(cluster.host(1).run(|| fetch(Ipv4Addr::LOCALHOST, 8000)).unwrap().is_err());
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    assert!(cluster.node(1).detach(&endpoint.id).await.unwrap());
    assert!(outside.run(|| fetch(first, 8000)).unwrap().is_err());
}

#[tokio::test]
async fn the_host_is_as_it_was_but_for_our_own() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    let host = cluster.host(1).clone();
    let run = |program: &str, arguments: &[&str]| output(host.command(program).unwrap().args(arguments));
    run("nft", &["add table inet firewall { chain input { type filter hook input priority 0; }; }"]);
    run("nft", &["add table ip nat { chain post { type nat hook postrouting priority 100; }; }"]);
    let foreign = || {
        let tables = ["inet firewall", "ip nat"].map(|table| {
            let words: Vec<_> = ["list", "table"].into_iter().chain(table.split(' ')).collect();
            run("nft", &words)
        });
        (
            tables,
            run("ip", &["-4", "-o", "addr", "show", "dev", "eth0"]),
            run("ip", &["route", "show", "dev", "eth0"]),
        )
    };
    let all = || (run("nft", &["list", "ruleset"]), run("ip", &["-br", "link"]), run("ip", &["route"]));
    let (before, everything) = (foreign(), all());
    cluster.tell().await;
    cluster.start(1, 2, &[INGRESS, APP]).await;
    cluster.publish(Tcp, 8080, 80, &[2]);
    cluster.tell().await;
    assert_eq!(foreign(), before);
    assert!(run("ip", &["-br", "link"]).contains("rshost"));
    cluster.node(1).remove_all().await.unwrap();
    assert_eq!(all(), everything, "nothing stays");
    assert!(!crate::cluster::helper(&host).exists());
}
