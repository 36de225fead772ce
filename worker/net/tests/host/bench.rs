//! Figures, beside what is made by hand from the same parts of the kernel. Not run by default:
//! `cargo test --release -p rswarm-net --test host -- --ignored --nocapture --test-threads 1 bench`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rswarm_net::{
    Overlay, Protocol, PublishedPort, VirtualService,
    lab::{Host, Lab, LabSpec},
};

use crate::{
    cluster::{APP, Cluster, INGRESS, address},
    rig::{Container, installed, output, wait_until},
};

const ROUNDS: usize = 10;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A process in a task; killed when dropped.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_in(container: &Container, program: &str, arguments: &[&str]) -> Server {
    let mut command = rswarm_net::lab::command_in_netns(&container.netns(), program).unwrap();
    Server(command.args(arguments).stdout(Stdio::null()).spawn().unwrap())
}

/// Gigabits a second from one container to an address.
fn iperf(from: &Container, to: Ipv4Addr) -> f64 {
    let report = from.output("iperf3", &["-c", &to.to_string(), "-t", "2", "-J"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e9
}

/// Requests a second, by wrk.
fn wrk(command: &mut Command, url: &str, keep_alive: bool) -> f64 {
    let header = if keep_alive { "X-A: b" } else { "Connection: close" };
    let report = output(command.args(["-t", "1", "-c", "16", "-d", "2", "-H", header, url]));
    let line = report.lines().find(|line| line.starts_with("Requests/sec")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// Answers HTTP requests on port 80 until the test process ends.
fn serve_http(container: &Container) {
    let listener = container.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok(length) = stream.read(&mut buffer) {
                    let closes = buffer[..length].windows(5).any(|word| word == b"close");
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    if length == 0 || stream.write_all(answer).is_err() || closes {
                        return;
                    }
                }
            });
        }
    });
}

fn ip(host: &Host, arguments: &str) {
    output(host.command("ip").unwrap().args(arguments.split(' ')));
}

/// A container on a bridge of `host`, with a veth made by hand.
fn by_hand(host: &Host, bridge: &str, last: u8, mtu: u32) -> Container {
    let container = Container::start();
    ip(
        host,
        &format!("link add v{last} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", container.pid()),
    );
    ip(host, &format!("link set v{last} master {bridge} up"));
    container.output("ip", &["link", "set", "eth0", "up"]);
    container.output("ip", &["addr", "add", &format!("10.0.0.{last}/20"), "dev", "eth0"]);
    container
}

/// Two hosts with a bridge each, joined by a VXLAN, and a container on each: what anyone would make by hand.
fn hand_made(name: &str) -> (Lab, [Container; 2]) {
    let lab = Lab::create(LabSpec { gateway: true, ..LabSpec::new(name, 3) }).unwrap();
    let containers = [1usize, 2].map(|number| {
        let (host, other) = (lab.host(number), lab.host(3 - number).address);
        ip(host, "link add br9 mtu 1450 type bridge");
        let local = host.address;
        ip(host, &format!("link add vx9 mtu 1450 type vxlan id 9 dstport 4789 local {local} remote {other}"));
        ip(host, "link set vx9 master br9 up");
        ip(host, "link set br9 up");
        // Tables would have what only passes the bridge tracked, which nobody asked for; nothing to set where that cannot be.
        host.run(|| drop(std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0"))).unwrap();
        by_hand(host, "br9", number as u8 + 1, 1450)
    });
    (lab, containers)
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn bench_throughput_between_two_hosts() {
    needs_kernel!();
    if !installed("iperf3") {
        return;
    }
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    cluster.start(2, 3, &[APP]).await;
    let service = cluster.serve("web", APP, 200, &[3]);
    cluster.tell().await;
    let (_lab, hand) = hand_made(&format!("byhand{}", std::process::id()));
    let _servers =
        [start_in(&cluster.tasks[1].container, "iperf3", &["-s"]), start_in(&hand[1], "iperf3", &["-s"])];
    let ready = |container: &Container, to: Ipv4Addr| {
        wait_until("iperf3 listens", || container.run(|| std::net::TcpStream::connect((to, 5201))).is_ok());
    };
    ready(&cluster.tasks[0].container, address(APP, 3));
    ready(&hand[0], Ipv4Addr::new(10, 0, 0, 3));
    thread::sleep(Duration::from_millis(500));
    let mut all: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        all[0].push(iperf(&hand[0], Ipv4Addr::new(10, 0, 0, 3)));
        all[1].push(iperf(&cluster.tasks[0].container, address(APP, 3)));
        all[2].push(iperf(&cluster.tasks[0].container, service));
    }
    let [plain, overlay, service] = all.map(median);
    eprintln!(
        "Gbit/s: by hand {plain:.2}, overlay {overlay:.2} ({:.2}), by virtual address {service:.2} ({:.2})",
        overlay / plain,
        service / plain
    );
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn bench_requests_through_services_and_the_mesh() {
    needs_kernel!();
    if !installed("wrk") {
        return;
    }
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    cluster.start(2, 3, &[INGRESS, APP]).await;
    let service = cluster.serve("web", APP, 200, &[3]);
    // A task for each way in: to one task the same client by two nodes is two clients with one address, whose ports it
    // would take for used up.
    cluster.start(2, 4, &[INGRESS]).await;
    cluster.publish(Protocol::Tcp, 8081, 80, &[3]);
    cluster.publish(Protocol::Tcp, 8082, 80, &[4]);
    // And one beside the caller.
    cluster.start(1, 5, &[APP]).await;
    let beside = cluster.serve("beside", APP, 201, &[5]);
    cluster.tell().await;
    for server in &cluster.tasks[1..] {
        serve_http(&server.container);
    }
    // On hosts of its own, without the tables below: those have even the tunnel tracked.
    let (_bare, bare) = hand_made(&format!("bare{}", std::process::id()));
    serve_http(&bare[1]);
    let (lab, hand) = hand_made(&format!("byhand{}", std::process::id()));
    serve_http(&hand[1]);
    // The plainest published port: one host, one veth, one rule.
    let host = lab.host(2);
    ip(host, "addr add 10.0.0.1/20 dev br9");
    hand[1].output("ip", &["route", "add", "default", "via", "10.0.0.1"]);
    host.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).unwrap();
    for command in [
        "add table ip plain",
        "add chain ip plain pre { type nat hook prerouting priority -100; }",
        "add rule ip plain pre tcp dport 8080 dnat to 10.0.0.3:80",
    ] {
        output(host.command("nft").unwrap().arg(command));
    }
    // The same by another host, which has to pose as the client to get the answers.
    let entry = lab.host(1);
    entry.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).unwrap();
    ip(entry, &format!("route add 10.0.0.3 via {}", host.address));
    for command in [
        "add table ip plain",
        "add chain ip plain pre { type nat hook prerouting priority -100; }",
        "add rule ip plain pre tcp dport 8080 dnat to 10.0.0.3:80",
        "add chain ip plain post { type nat hook postrouting priority 100; }",
        "add rule ip plain post ct status dnat masquerade",
    ] {
        output(entry.command("nft").unwrap().arg(command));
    }
    // And over the VXLAN, as whoever has an overlay would do by hand.
    hand[1].output("ip", &["address", "add", "10.0.0.4/20", "dev", "eth0"]);
    ip(entry, "addr add 10.0.0.9/20 dev br9");
    output(entry.command("nft").unwrap().arg("add rule ip plain pre tcp dport 8090 dnat to 10.0.0.4:80"));
    // A virtual address by hand: the caller's host translates, and poses as the caller to get the answers.
    let translated = Ipv4Addr::new(10, 9, 9, 9);
    hand[0].output("ip", &["route", "add", &translated.to_string(), "via", "10.0.0.9"]);
    for of in ["all", "br9"] {
        // It would tell the caller of a shorter way, which does not translate.
        let path = format!("/proc/sys/net/ipv4/conf/{of}/send_redirects");
        entry.run(|| std::fs::write(path, "0").unwrap()).unwrap();
    }
    let rule = format!("add rule ip plain pre ip daddr {translated} dnat to 10.0.0.3");
    output(entry.command("nft").unwrap().arg(rule));
    let inside =
        |container: &Container| rswarm_net::lab::command_in_netns(&container.netns(), "wrk").unwrap();
    for keep_alive in [true, false] {
        let mut all: [Vec<f64>; 9] = Default::default();
        for _ in 0..ROUNDS {
            let url = |to: Ipv4Addr, port: u16| format!("http://{to}:{port}/");
            let plain = Ipv4Addr::new(10, 0, 0, 3);
            all[0].push(wrk(&mut inside(&bare[0]), &url(plain, 80), keep_alive));
            let mut own = inside(&cluster.tasks[0].container);
            all[1].push(wrk(&mut own, &url(service, 80), keep_alive));
            let mut own = inside(&cluster.tasks[0].container);
            all[6].push(wrk(&mut own, &url(beside, 80), keep_alive));
            let outside = lab.host(3).command("wrk").unwrap();
            all[2].push(wrk(&mut { outside }, &url(host.address, 8080), keep_alive));
            let outside = lab.host(3).command("wrk").unwrap();
            all[5].push(wrk(&mut { outside }, &url(entry.address, 8080), keep_alive));
            let outside = lab.host(3).command("wrk").unwrap();
            all[7].push(wrk(&mut { outside }, &url(entry.address, 8090), keep_alive));
            all[8].push(wrk(&mut inside(&hand[0]), &url(translated, 80), keep_alive));
            for (slot, node) in [(3, 1usize), (4, 2)] {
                let mut outside = cluster.outside().command("wrk").unwrap();
                all[slot].push(wrk(
                    &mut outside,
                    &url(cluster.host(node).address, 8080 + node as u16),
                    keep_alive,
                ));
            }
        }
        let [vxlan, service, dnat, far, near, detour, beside, tunnelled, translated] = all.map(median);
        eprintln!(
            "requests/s, keep-alive {keep_alive}: VXLAN by hand {vxlan:.0}, virtual address {service:.0} ({:.2}), one by hand {translated:.0} ({:.2}); \
             veth and DNAT {dnat:.0}, virtual address on one node {beside:.0} ({:.2}), mesh by its own node {near:.0} ({:.2}), by another {far:.0} ({:.2}); \
             veth and DNAT by another host {detour:.0} ({:.2} of it), with a VXLAN between the two {tunnelled:.0} ({:.2} of it)",
            service / vxlan,
            translated / vxlan,
            beside / dnat,
            near / dnat,
            far / dnat,
            far / detour,
            far / tunnelled
        );
    }
}

/// CPU time of this process's threads so far.
fn cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let spent = |path: std::path::PathBuf| -> Option<u64> {
        std::fs::read_to_string(path).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| spent(thread.path().join("schedstat"))).sum())
}

/// 1,000 services of 10 tasks each on one network, on 50 nodes.
fn large(cluster: &Cluster) -> Overlay {
    let mut overlay = cluster.overlay(1);
    overlay.peers = (2..52).map(|number| (number, Ipv4Addr::new(10, 77, 1, number as u8))).collect();
    let at = |number: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 2)) + number);
    let network = overlay.networks.get_mut(&APP).unwrap();
    (network.twins_from, network.gateway, network.prefix_len) =
        (Ipv4Addr::new(10, 128, 0, 0), Ipv4Addr::new(10, 128, 0, 1), 12);
    overlay.endpoints = (0..10_000).map(|number| ((APP, at(number)), 2 + (number % 50) as u16)).collect();
    overlay.services = (0..1_000u32)
        .map(|number| {
            let backends = (0..10).map(|n| at(number * 10 + n)).collect();
            ((APP, at(20_000 + number)), VirtualService { id: format!("service{number}"), backends })
        })
        .collect();
    let port = |number: u16| PublishedPort {
        target: 80,
        backends: BTreeSet::from([address(INGRESS, (number % 250) as u8 + 2)]),
        at: BTreeSet::new(),
    };
    overlay.published = (0..100).map(|number| ((Protocol::Tcp, 8000 + number), port(number))).collect();
    overlay
}

#[tokio::test]
#[ignore = "takes seconds, and is a figure"]
async fn bench_one_change_among_ten_thousand_endpoints() {
    needs_kernel!();
    let cluster = Cluster::new(1);
    let mut overlay = large(&cluster);
    let before = cpu();
    cluster.node(1).apply(overlay.clone()).await.unwrap();
    eprintln!("all at once: {:?} of CPU", cpu() - before);
    let before = cpu();
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    eprintln!("reading all back and comparing: {:?}", cpu() - before);
    let (key, node) = overlay.endpoints.iter().next().map(|(key, node)| (*key, *node)).unwrap();
    let service = *overlay.services.keys().next().unwrap();
    let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..50 {
        for gone in [true, false] {
            let backends = &mut overlay.services.get_mut(&service).unwrap().backends;
            if gone {
                overlay.endpoints.remove(&key);
                backends.remove(&key.1);
            } else {
                overlay.endpoints.insert(key, node);
                backends.insert(key.1);
            }
            let told = overlay.clone();
            let before = cpu();
            cluster.node(1).apply(told).await.unwrap();
            let name = if gone { "an endpoint goes" } else { "an endpoint comes" };
            figures.entry(name).or_default().push((cpu() - before).as_secs_f64() * 1e3);
        }
    }
    let before = cpu();
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    eprintln!("comparing again: {:?}", cpu() - before);
    for (name, values) in figures {
        let worst = values.iter().copied().fold(0.0, f64::max);
        let median = median(values);
        eprintln!("{name}: median {median:.2} ms of CPU, worst {worst:.2}");
        assert!(median < 5.0, "{name}");
    }
}
