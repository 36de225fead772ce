//! Encrypted networks on the real kernel: nodes in namespaces, and a witness on the wire between them.
#![allow(clippy::unwrap_used, dead_code)]

#[macro_use]
#[path = "../../../net/tests/host/rig.rs"]
mod rig;
#[path = "../../../net/tests/host/cluster.rs"]
mod cluster;

/// Runs the rest of the test, or says by name what is missing.
macro_rules! needs_tunnel {
    () => {
        if let Some(what) = $crate::cannot_encrypt() {
            eprintln!("skipped: needs {what}");
            return;
        }
    };
}

mod bench;
mod keys;
mod wire;

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cluster::{APP, Cluster, INGRESS, OTHER};
use rswarm_net::wireguard::{PeerKeys, TunnelEnd};
use rswarm_tunnel::{new_key, public_key};

/// Says why a test cannot run here, if it cannot.
fn cannot_encrypt() -> Option<String> {
    let config = rswarm_net::NetworkConfig {
        tunnel: Some(rswarm_net::TunnelProgram {
            executable: program(),
            args: Vec::new(),
            socket: PathBuf::new(),
            log: PathBuf::new(),
        }),
        ..rswarm_net::NetworkConfig::default()
    };
    rig::cannot_run().map(str::to_owned).or_else(|| rswarm_net::wireguard::obstacle(&config))
}

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_rswarm-tunnel").into()
}

/// What a node begins with.
fn fresh_end() -> (TunnelEnd, PeerKeys) {
    let key = new_key().unwrap();
    (TunnelEnd { port: 4790, key, place: 0 }, PeerKeys { keys: [Some(public_key(&key)), None], place: 0 })
}

/// Two nodes with a network in the clear and an encrypted one, and on each a task on both: those with last bytes 2 and 3.
async fn sample() -> Cluster {
    let mut cluster = Cluster::with_program(2, Some(program()));
    cluster.networks = vec![INGRESS, APP, OTHER];
    cluster.encrypted.insert(OTHER);
    cluster.ends = (1..=2).map(|node| (node, fresh_end())).collect();
    cluster.tell().await;
    cluster.start(1, 2, &[APP, OTHER]).await;
    cluster.start(2, 3, &[APP, OTHER]).await;
    cluster.tell().await;
    cluster
}

/// A socket of a task.
fn socket(cluster: &Cluster, task: usize, vni: u32, port: u16) -> UdpSocket {
    let task = &cluster.tasks[task];
    let socket = task.container.run(|| UdpSocket::bind((task.address(vni), port)).unwrap());
    socket.set_read_timeout(Some(rig::DEADLINE)).unwrap();
    socket
}

/// Sends `text` from the first task to the second one, again and again until it arrives.
fn exchange(cluster: &Cluster, vni: u32, text: &str) {
    let (from, to) = (socket(cluster, 0, vni, 0), socket(cluster, 1, vni, 7000));
    to.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let target = SocketAddr::from((cluster.tasks[1].address(vni), 7000));
    let mut buffer = [0; 2000];
    rig::wait_until("a datagram arrives", || {
        from.send_to(text.as_bytes(), target).unwrap();
        to.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == text.as_bytes())
    });
}

/// Datagrams that go from the first task to the second one and back, a hundred in a second, until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Duration>>,
}

impl Traffic {
    fn start(cluster: &Cluster, vni: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (from, to) = (socket(cluster, 0, vni, 7001), socket(cluster, 1, vni, 7002));
        from.connect((cluster.tasks[1].address(vni), 7002)).unwrap();
        to.connect((cluster.tasks[0].address(vni), 7001)).unwrap();
        for socket in [&from, &to] {
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        }
        let run = |socket: UdpSocket, asks: bool, stop: Arc<AtomicBool>| {
            move || {
                let (mut heard, mut longest) = (Instant::now(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    if asks {
                        let _ = socket.send(b"ping");
                        thread::sleep(Duration::from_millis(10));
                    }
                    if socket.recv(&mut [0; 16]).is_ok() {
                        longest = longest.max(heard.elapsed());
                        heard = Instant::now();
                        if !asks {
                            let _ = socket.send(b"pong");
                        }
                    }
                }
                longest.max(heard.elapsed())
            }
        };
        let threads =
            vec![thread::spawn(run(from, true, stop.clone())), thread::spawn(run(to, false, stop.clone()))];
        Self { stop, threads }
    }

    /// The longest time in which nothing came back.
    fn longest_gap(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap_or_default()
    }
}
