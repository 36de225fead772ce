//! SCTP by a published port (RFC 9260), spoken by hand: few kernels have it, and none needs it to pass it on.

use std::{net::Ipv4Addr, os::fd::OwnedFd, time::Instant};

use rswarm_net::Protocol::Sctp;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};

use crate::{
    cluster::{Cluster, INGRESS},
    rig::DEADLINE,
};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const IP_HEADER: usize = 20;

/// A packet of one INIT or INIT ACK chunk.
struct Packet {
    from: u16,
    to: u16,
    /// What the receiver had asked for in its own INIT; 0 in an INIT itself.
    tag: u32,
    chunk: u8,
    asks_for: u32,
}

/// The checksum of RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk, 0, 0, 20]);
        bytes.extend(self.asks_for.to_be_bytes());
        // Window, streams out and in, first number.
        bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        let sum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads it, and checks that whoever changed its ports has summed it up anew.
    fn read(bytes: &[u8]) -> Self {
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let packet =
            Self { from: short(0), to: short(2), tag: long(4), chunk: bytes[12], asks_for: long(16) };
        assert_eq!(packet.bytes(), bytes, "every field, the checksum too");
        packet
    }
}

fn raw() -> OwnedFd {
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
    socket
}

fn send(socket: &OwnedFd, to: Ipv4Addr, packet: &Packet) {
    sendto(socket, &packet.bytes(), SendFlags::empty(), &std::net::SocketAddrV4::new(to, 0)).unwrap();
}

/// The next such chunk: its sender, and the packet.
fn receive(socket: &OwnedFd, chunk: u8) -> (Ipv4Addr, Packet) {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        let mut buffer = [0; 256];
        let (length, _) = recv(socket, &mut buffer, RecvFlags::empty()).expect("a packet");
        let from = Ipv4Addr::from(<[u8; 4]>::try_from(&buffer[12..16]).unwrap());
        let packet = Packet::read(&buffer[IP_HEADER..length]);
        if packet.chunk == chunk {
            return (from, packet);
        }
    }
    panic!("no chunk {chunk} came");
}

#[tokio::test]
async fn a_published_port_answers_by_sctp_on_every_node_and_the_task_sees_the_client() {
    needs_kernel!();
    let mut cluster = Cluster::new(2);
    cluster.tell().await;
    cluster.start(2, 2, &[INGRESS]).await;
    cluster.publish(Sctp, 8132, 132, &[2]);
    cluster.tell().await;
    let (client, server) = (cluster.outside().run(raw).unwrap(), cluster.tasks[0].container.run(raw));
    for number in [1, 2] {
        let node = cluster.host(number).address;
        let from = 5000 + number as u16;
        send(&client, node, &Packet { from, to: 8132, tag: 0, chunk: INIT, asks_for: 7 });
        let (caller, init) = receive(&server, INIT);
        assert_eq!((caller, init.from, init.to), (cluster.outside().address, from, 132), "by node {number}");
        let answer = Packet { from: 132, to: from, tag: init.asks_for, chunk: INIT_ACK, asks_for: 8 };
        send(&server, caller, &answer);
        let (answered, packet) = receive(&client, INIT_ACK);
        assert_eq!((answered, packet.from, packet.to), (node, 8132, from), "by node {number}");
    }
    cluster.assert_settled().await;
}
