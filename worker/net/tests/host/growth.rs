//! The subnet of a network becomes a larger one while tasks run and talk.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rswarm_net::VirtualService;

use crate::{
    cluster::{Cluster, INGRESS, OTHER, Task, address, address6},
    rig::{fetch, serve},
};

/// Longer than an answer takes on a busy machine, shorter than if packets were lost again and again.
const INTERRUPTION: Duration = Duration::from_secs(3);

/// How often a client asks, so that it leaves the processor to others.
const PACE: Duration = Duration::from_millis(2);

/// Says back what it is told, on every connection.
fn echo(task: &Task) {
    let listener = task.container.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7000)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut word) = (stream.unwrap(), [0; 4]);
            thread::spawn(
                move || {
                    while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
                },
            );
        }
    });
}

/// Has words said back for as long as it may; says how often, and the longest that one took.
fn converse(mut stream: TcpStream, stop: &AtomicBool) -> (usize, Duration) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut words, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let (asked, mut back) = (Instant::now(), [0; 4]);
        stream.write_all(b"word").unwrap();
        stream.read_exact(&mut back).unwrap();
        (words, longest) = (words + 1, longest.max(asked.elapsed()));
        thread::sleep(PACE);
    }
    (words, longest)
}

/// The twin of an address of the network, which is counted from the first one before it grew.
fn twin(at: Ipv4Addr) -> Ipv6Addr {
    let place = u32::from(at).wrapping_sub(u32::from(Ipv4Addr::new(10, 0, 16, 0)));
    Ipv6Addr::from(u128::from(address6(OTHER, 0)) + u128::from(place))
}

#[tokio::test]
async fn a_network_grows_in_both_directions_and_nobody_is_interrupted() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.networks = vec![INGRESS, OTHER];
    cluster.ipv6 = vec![OTHER];
    cluster.tell().await;
    for (node, last) in [(1, 2), (1, 3), (2, 4)] {
        cluster.start(node, last, &[OTHER]).await;
    }
    let service = cluster.serve("web", OTHER, 200, &[4]);
    cluster.tell().await;
    let inside = |task: &Task, what: &str| {
        let words = format!("{what} dev eth0");
        task.container.output("ip", &words.split(' ').collect::<Vec<_>>())
    };
    let indexes = |cluster: &Cluster| -> Vec<String> {
        cluster
            .tasks
            .iter()
            .map(|task| inside(task, "-o link show").split(':').next().unwrap().into())
            .collect()
    };
    assert!(inside(&cluster.tasks[0], "addr show").contains("10.0.16.2/20"));
    let before = indexes(&cluster);
    echo(&cluster.tasks[1]);
    echo(&cluster.tasks[2]);

    // By address to the same node and to another one, by the other family, and by the address of a service.
    let (near, far) = (address(OTHER, 3), address(OTHER, 4));
    let peers: [IpAddr; 5] = [near.into(), far.into(), twin(near).into(), twin(far).into(), service.into()];
    let connect = |at: &IpAddr| {
        let at = SocketAddr::new(*at, 7000);
        cluster.tasks[0].container.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(2)).unwrap())
    };
    let streams: Vec<TcpStream> = peers.iter().map(connect).collect();
    let stop: &AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let talks: Vec<_> =
        streams.into_iter().map(|stream| thread::spawn(move || converse(stream, stop))).collect();

    cluster.grown.insert(OTHER, 16);
    assert_eq!(cluster.node(1).apply(cluster.overlay(1)).await.unwrap(), BTreeSet::new());
    // The daemon of the other node was away; its successor finds tasks whose endpoints tell the former prefix.
    cluster.nodes[1] = cluster.daemon(2);
    let report = cluster.node(2).reconcile(&cluster.desired(2)).await.unwrap();
    assert!(report.failed.is_empty() && !report.repaired.is_empty(), "{report:?}");
    cluster.assert_settled().await;
    assert_eq!(indexes(&cluster), before, "links are the same");
    for task in &cluster.tasks {
        let shown = inside(task, "addr show");
        let own = format!("inet {}/16 ", task.address(OTHER));
        assert!(shown.contains(&own) && shown.matches("inet ").count() == 1, "{shown}");
        let routes = inside(task, "route show table all");
        assert!(routes.contains("10.0.0.0/16") && !routes.contains("10.0.16.0/20"), "{routes}");
        assert!(routes.contains("default via 10.0.16.1"), "{routes}");
        assert!(!routes.contains("broadcast 10.0.31.255"), "it is an address like any other: {routes}");
    }
    for number in [1, 2] {
        let shown = cluster.inside(number, "ip", &["addr", "show", "dev", "rsb4098"]);
        assert!(shown.contains("10.0.16.1/16") && !shown.contains("/20"), "{shown}");
    }

    // New ones before and beyond the former range, that which was the broadcast address among them.
    let new = [(1, 9, [10, 0, 3, 9]), (2, 8, [10, 0, 200, 8]), (2, 7, [10, 0, 31, 255])];
    for (node, last, at) in new {
        cluster.start_at(node, last, &[OTHER], Some(at.into())).await;
    }
    let far_service = Ipv4Addr::new(10, 0, 100, 100);
    let backends = cluster.tasks[1..].iter().map(|task| task.address(OTHER)).collect();
    cluster.services.insert((OTHER, far_service), VirtualService { id: "all".into(), backends });
    cluster.tell().await;
    cluster.assert_settled().await;
    for task in &cluster.tasks {
        task.container.serve(80, "it");
    }
    for from in &cluster.tasks {
        let own = from.address(OTHER);
        for to in cluster.tasks.iter().filter(|to| to.id != from.id) {
            let to = to.address(OTHER);
            let get = |at: IpAddr| {
                from.container.run(|| fetch(at, 80)).unwrap_or_else(|e| panic!("{own} to {at}: {e}"))
            };
            assert_eq!(get(to.into()), format!("it saw {own}"));
            assert_eq!(get(twin(to).into()), format!("it saw {}", twin(own)));
        }
        for _ in 0..5 {
            let at: IpAddr = far_service.into();
            for at in [at, twin(far_service).into()] {
                from.container.run(|| fetch(at, 80)).unwrap_or_else(|e| panic!("{own} to {at}: {e}"));
            }
        }
        // Where nobody is, nobody answers.
        let nobody = Ipv4Addr::new(10, 0, 222, 2);
        let refused = from.container.run(|| fetch(nobody, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
    // The way out is as it was.
    let outside = cluster.outside();
    serve(outside.run(|| TcpListener::bind((outside.address, 80)).unwrap()).unwrap(), "out");
    for task in &cluster.tasks {
        let said = task.container.run(|| fetch(outside.address, 80)).unwrap();
        assert_eq!(said, format!("out saw {}", cluster.host(task.node).address));
    }

    stop.store(true, Ordering::Relaxed);
    for (talk, peer) in talks.into_iter().zip(peers) {
        let (words, longest) = talk.join().unwrap();
        assert!(words > 20 && longest < INTERRUPTION, "{peer}: {words} words, one took {longest:?}");
    }
}
