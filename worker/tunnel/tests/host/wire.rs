//! What a witness on the wire sees, and what is not sent at all.

use std::{mem::MaybeUninit, net::UdpSocket, os::fd::OwnedFd, time::Duration};

use rswarm_net::run_in_netns;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::{APP, OTHER};
use crate::{Cluster, cluster::address, cluster::helper, exchange, rig::output, rig::wait_until, sample};

/// Every frame on the wire between the hosts.
struct Witness(OwnedFd);

impl Witness {
    fn new(cluster: &Cluster) -> Self {
        let all = std::num::NonZeroU32::new(u32::from((libc::ETH_P_ALL as u16).to_be())).unwrap();
        let protocol = Some(rustix::net::Protocol::from_raw(all));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let open = || socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol).unwrap();
        Self(run_in_netns(&cluster.lab.wire_path(), open).unwrap())
    }

    /// What it has seen since it was asked last.
    fn frames(&self) -> Vec<Vec<u8>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        std::iter::from_fn(|| {
            let ((frame, _), _) = recv(&self.0, &mut buffer[..], RecvFlags::empty()).ok()?;
            Some(frame.to_vec())
        })
        .collect()
    }
}

fn has(frames: &[Vec<u8>], text: &str) -> bool {
    frames.iter().any(|frame| frame.windows(text.len()).any(|part| part == text.as_bytes()))
}

fn to_port(frames: &[Vec<u8>], port: u16) -> usize {
    let is = |frame: &&Vec<u8>| {
        frame.get(12..14) == Some(&[8, 0])
            && frame.get(23) == Some(&17)
            && frame.get(36..38) == Some(&port.to_be_bytes())
    };
    frames.iter().filter(is).count()
}

#[tokio::test]
async fn nothing_of_an_encrypted_network_is_to_be_read_on_the_wire() {
    needs_tunnel!();
    let cluster = sample().await;
    cluster.assert_settled().await;
    let witness = Witness::new(&cluster);
    exchange(&cluster, APP, "a word in the clear");
    let clear = witness.frames();
    assert!(has(&clear, "a word in the clear"), "the witness sees what is to be seen");
    assert!(to_port(&clear, 4789) > 0);
    exchange(&cluster, OTHER, "a word between us");
    // The largest packet that fits is not cut: the outer one fills the link.
    let mtu = usize::try_from(cluster.mtu).unwrap() - 60;
    let large = "between us, at length ".repeat(80);
    exchange(&cluster, OTHER, &large[..mtu - 28]);
    let secret = witness.frames();
    assert!(!has(&secret, "between us"), "in the clear on the wire");
    assert_eq!(to_port(&secret, 4789), 0, "everything goes by the tunnel");
    assert!(to_port(&secret, 4790) >= 2);
    assert!(secret.iter().any(|frame| frame.len() == 14 + mtu + 110), "{mtu}");
    // Replies too, and TCP.
    cluster.tasks[0].container.serve(80, "first");
    let at = cluster.tasks[0].address(OTHER);
    let answer = cluster.tasks[1].container.run(|| crate::rig::fetch(at, 80)).unwrap();
    assert_eq!(answer, format!("first saw {}", cluster.tasks[1].address(OTHER)));
    let replies = witness.frames();
    assert!(!has(&replies, "first saw") && to_port(&replies, 4790) > 0);
    cluster.assert_settled().await;
}

#[tokio::test]
async fn a_node_whose_key_is_not_known_is_sent_nothing() {
    needs_tunnel!();
    let mut cluster = sample().await;
    exchange(&cluster, OTHER, "while it is known");
    let known = cluster.ends.remove(&2).unwrap();
    cluster.node(1).apply(cluster.overlay(1)).await.unwrap();
    let shown = cluster.inside(1, "bridge", &["fdb", "show", "dev", "rsx4098"]);
    assert!(!shown.contains("dst"), "{shown}");
    let witness = Witness::new(&cluster);
    let from = crate::socket(&cluster, 0, OTHER, 0);
    for _ in 0..20 {
        from.send_to(b"to nobody", (cluster.tasks[1].address(OTHER), 7000)).unwrap();
    }
    exchange(&cluster, APP, "meanwhile");
    let seen = witness.frames();
    assert!(has(&seen, "meanwhile") && !has(&seen, "to nobody"));
    assert_eq!(cluster.node(1).verify().await.unwrap(), []);
    cluster.ends.insert(2, known);
    cluster.tell().await;
    exchange(&cluster, OTHER, "known again");
}

#[tokio::test]
async fn a_task_cannot_speak_to_the_tunnel() {
    needs_tunnel!();
    let cluster = sample().await;
    let task = &cluster.tasks[0];
    for vni in [APP, OTHER] {
        let socket = task.container.run(|| {
            let socket = UdpSocket::bind((task.address(vni), 0)).unwrap();
            socket.connect((address(vni, 1), 4789)).unwrap();
            socket
        });
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // A VXLAN frame of the encrypted network, as it would be taken from another node.
        socket.send(&[8, 0, 0, 0, 0, 0x10, 2, 0]).unwrap();
        let refused = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
async fn with_the_last_encrypted_network_the_tunnel_goes() {
    needs_tunnel!();
    let mut cluster = sample().await;
    let links = |cluster: &Cluster| cluster.inside(1, "ip", &["-br", "link"]);
    assert!(links(&cluster).contains("rswg"));
    let users = || output(std::process::Command::new("ps").args(["-eo", "args"]));
    let mine = helper(cluster.host(1)).display().to_string();
    // The kernel's WireGuard has no process.
    let in_user_space = users().contains(&mine);
    for number in 0..2 {
        let (node, endpoint) = (cluster.tasks[number].node, cluster.tasks[number].endpoints().remove(1));
        cluster.node(node).detach(&endpoint.id).await.unwrap();
        cluster.tasks[number].networks = vec![APP];
    }
    cluster.networks = vec![crate::INGRESS, APP];
    cluster.tell().await;
    cluster.assert_settled().await;
    assert!(!links(&cluster).contains("rswg"));
    if in_user_space {
        wait_until("the process has ended", || !users().contains(&mine));
    }
}
