//! TCP between tasks of two nodes goes past routing, and only where it should.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, bind, connect, ipproto, recv, sendto, socket,
    sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout},
};

use crate::{
    cluster::{APP, Cluster, OTHER, Task, address},
    rig::{DEADLINE, wait_until},
};

/// Says back what it is told, once by each connection.
fn echo(task: &Task, port: u16) {
    let listener = task.container.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut word) = (stream.unwrap(), [0; 4]);
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
        }
    });
}

/// Connects from a port of the client's own choice, and has a word said back.
fn converse(task: &Task, own: u16, to: (Ipv4Addr, u16)) {
    let began = Instant::now();
    let mut stream = task.container.run(|| {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, own)).unwrap();
        connect(&socket, &SocketAddrV4::new(to.0, to.1)).unwrap();
        TcpStream::from(socket)
    });
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"word").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"word");
    assert!(began.elapsed() < DEADLINE, "from {own} to {to:?}: {:?}", began.elapsed());
}

#[tokio::test]
async fn any_port_of_a_client_reaches_any_port_of_a_task_and_of_a_service() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    cluster.start(2, 3, &[APP]).await;
    let service = cluster.serve("web", APP, 200, &[3]);
    cluster.tell().await;
    for target in [80, 40_000] {
        echo(&cluster.tasks[1], target);
        // By the service's address first, and last: what is tracked of that is soon out of the way of the same ports.
        for to in [service, address(APP, 3), service] {
            for own in [900, 32_767, 32_768, 61_000] {
                converse(&cluster.tasks[0], own, (to, target));
            }
        }
    }
}

/// A socket that takes every segment for the task, and sends such as it is given.
fn raw(task: &Task) -> OwnedFd {
    task.container.run(|| {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::TCP)).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(300))).unwrap();
        socket
    })
}

#[tokio::test]
async fn a_segment_of_no_connection_stays_on_its_network() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    cluster.start(1, 2, &[APP]).await;
    cluster.start(2, 3, &[APP]).await;
    cluster.start(2, 4, &[OTHER]).await;
    cluster.tell().await;
    let from = raw(&cluster.tasks[0]);
    let arrives = |to: &Task, vni: u32| {
        let socket = raw(to);
        let mut segment = [0; 20];
        segment[..4].copy_from_slice(&[0x90, 0, 0, 80]);
        segment[12] = 5 << 4;
        segment[13] = 16;
        sendto(&from, &segment, SendFlags::empty(), &SocketAddrV4::new(to.address(vni), 0)).unwrap();
        recv(&socket, &mut [0; 200][..], RecvFlags::empty()).is_ok()
    };
    wait_until("one within the network arrives", || arrives(&cluster.tasks[1], APP));
    assert!(!arrives(&cluster.tasks[2], OTHER));
}
