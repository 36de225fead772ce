//! What a witness on the wire sees, and what is not sent at all.

use std::{net::UdpSocket, time::Duration};

use rswarm_net::lab::Witness;

use crate::{APP, OTHER};
use crate::{Cluster, cluster::address, cluster::helper, exchange, rig::output, rig::wait_until, sample};

fn witness(cluster: &Cluster) -> Witness {
    Witness::new(&cluster.lab.wire_path()).unwrap()
}

#[tokio::test]
async fn nothing_of_an_encrypted_network_is_to_be_read_on_the_wire() {
    needs_tunnel!();
    let cluster = sample().await;
    cluster.assert_settled().await;
    let tap = witness(&cluster);
    exchange(&cluster, APP, "a word in the clear");
    let clear = tap.frames();
    assert!(Witness::reads(&clear, "a word in the clear"), "the witness sees what is to be seen");
    assert!(Witness::datagrams_to(&clear, 4789) > 0);
    exchange(&cluster, OTHER, "a word between us");
    // The largest packet that fits is not cut: the outer one fills the link.
    let mtu = usize::try_from(cluster.mtu).unwrap() - 60;
    let large = "between us, at length ".repeat(80);
    exchange(&cluster, OTHER, &large[..mtu - 28]);
    let secret = tap.frames();
    assert!(!Witness::reads(&secret, "between us"), "in the clear on the wire");
    assert_eq!(Witness::datagrams_to(&secret, 4789), 0, "everything goes by the tunnel");
    assert!(Witness::datagrams_to(&secret, 4790) >= 2);
    assert!(secret.iter().any(|frame| frame.len() == 14 + mtu + 110), "{mtu}");
    // Replies too, and TCP.
    cluster.tasks[0].container.serve(80, "first");
    let at = cluster.tasks[0].address(OTHER);
    let answer = cluster.tasks[1].container.run(|| crate::rig::fetch(at, 80)).unwrap();
    assert_eq!(answer, format!("first saw {}", cluster.tasks[1].address(OTHER)));
    let replies = tap.frames();
    assert!(!Witness::reads(&replies, "first saw") && Witness::datagrams_to(&replies, 4790) > 0);
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
    let tap = witness(&cluster);
    let from = crate::socket(&cluster, 0, OTHER, 0);
    for _ in 0..20 {
        from.send_to(b"to nobody", (cluster.tasks[1].address(OTHER), 7000)).unwrap();
    }
    exchange(&cluster, APP, "meanwhile");
    let seen = tap.frames();
    assert!(Witness::reads(&seen, "meanwhile") && !Witness::reads(&seen, "to nobody"));
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
    // The kernel's WireGuard has no process.
    let in_user_space = has_process(&cluster);
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
        wait_until("the process has ended", || !has_process(&cluster));
    }
}

/// Whether a process encrypts for the first node.
fn has_process(cluster: &Cluster) -> bool {
    let mine = helper(cluster.host(1)).display().to_string();
    output(std::process::Command::new("ps").args(["-eo", "args"])).contains(&mine)
}

#[tokio::test]
async fn a_tunnel_ends_with_its_namespace() {
    needs_tunnel!();
    let cluster = sample().await;
    let mine = helper(cluster.host(1));
    assert!(mine.exists());
    rswarm_net::lab::delete_named_netns(&mine).unwrap();
    wait_until("the process has ended", || !has_process(&cluster));
    drop(cluster);
    let ours = format!("rswlab-ovl{}-", std::process::id());
    // The other tests of this process have theirs.
    let name = mine.file_name().unwrap().to_str().unwrap().strip_suffix("-1-overlay").unwrap().to_owned();
    assert!(name.starts_with(&ours), "{name}");
    let all = || output(std::process::Command::new("ps").args(["-eo", "args"]));
    wait_until("those of all nodes have ended", || !all().contains(&format!("{name}-")));
}

#[tokio::test]
async fn a_node_that_leaves_takes_its_tunnel_along() {
    needs_tunnel!();
    let cluster = sample().await;
    exchange(&cluster, OTHER, "before");
    cluster.node(1).remove_all().await.unwrap();
    assert!(!helper(cluster.host(1)).exists());
    wait_until("the process has ended", || !has_process(&cluster));
    wait_until("its port is free again", || {
        cluster.host(1).run(|| UdpSocket::bind("0.0.0.0:4790")).unwrap().is_ok()
    });
}
