//! Engines that talk to each other through queues.

use super::*;
use crate::{new_key, public_key};

#[derive(Default)]
struct Queues {
    sent: Vec<(SocketAddrV4, Vec<u8>)>,
    delivered: Vec<Vec<u8>>,
}

impl Wire for Queues {
    fn send(&mut self, to: SocketAddrV4, datagram: &[u8]) {
        self.sent.push((to, datagram.to_vec()));
    }
    fn deliver(&mut self, packet: &[u8]) {
        self.delivered.push(packet.to_vec());
    }
}

fn inner(node: u8, place: u8) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, if place == 0 { 144 } else { 176 }, node)
}

fn at(node: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, node), 4790)
}

fn packet(from: Ipv4Addr, to: Ipv4Addr, text: &str) -> Vec<u8> {
    let length = (20 + text.len()) as u16;
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet.extend_from_slice(text.as_bytes());
    packet
}

/// Two nodes that know each other.
struct Pair {
    nodes: [(Engine, Queues); 2],
    /// Everything that was on the wire between them.
    wire: Vec<Vec<u8>>,
}

impl Pair {
    fn new() -> (Self, [PrivateKey; 2]) {
        let keys = [new_key().unwrap(), new_key().unwrap()];
        let mut pair =
            Self { nodes: std::array::from_fn(|_| (Engine::new(), Queues::default())), wire: Vec::new() };
        for n in 0..2 {
            pair.set(n, &Setting::Key(keys[n]));
            pair.know(n, &keys[1 - n], 0);
        }
        (pair, keys)
    }

    fn set(&mut self, n: usize, setting: &Setting) {
        let (engine, queues) = &mut self.nodes[n];
        engine.set(setting, queues, Instant::now());
    }

    /// Tells node `n` of a key of the other.
    fn know(&mut self, n: usize, key: &PrivateKey, place: u8) {
        let (other, key) = (2 - n as u8, public_key(key));
        let peer = Peer { key, endpoint: Some(at(other)), address: inner(other, place), keepalive: 25 };
        self.set(n, &Setting::Peer(peer));
    }

    fn send(&mut self, n: usize, place: (u8, u8), text: &str) {
        let (engine, queues) = &mut self.nodes[n];
        let (own, other) = (n as u8 + 1, 2 - n as u8);
        engine.outgoing(&packet(inner(own, place.0), inner(other, place.1), text), queues);
    }

    /// Carries datagrams until there are none.
    fn carry(&mut self) {
        loop {
            let mut idle = true;
            for n in 0..2 {
                for (to, datagram) in std::mem::take(&mut self.nodes[n].1.sent) {
                    idle = false;
                    assert_eq!(to, at(2 - n as u8));
                    self.wire.push(datagram.clone());
                    let (engine, queues) = &mut self.nodes[1 - n];
                    engine.incoming(at(n as u8 + 1), &datagram, queues);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn arrived(&mut self, n: usize) -> Vec<String> {
        let packets = std::mem::take(&mut self.nodes[n].1.delivered);
        packets.iter().map(|packet| String::from_utf8_lossy(&packet[20..]).into_owned()).collect()
    }
}

#[test]
fn what_is_sent_arrives_and_is_not_to_be_read_on_the_way() {
    let (mut pair, _) = Pair::new();
    for text in ["one", "two", "three"] {
        pair.send(0, (0, 0), text);
    }
    pair.carry();
    assert_eq!(pair.arrived(1), ["one", "two", "three"], "also what waited for the session");
    pair.send(1, (0, 0), "back");
    pair.carry();
    assert_eq!(pair.arrived(0), ["back"]);
    let seen = |text: &str| {
        pair.wire.iter().any(|datagram| datagram.windows(text.len()).any(|part| part == text.as_bytes()))
    };
    assert!(pair.wire.len() > 4 && !seen("three") && !seen("back"));
}

#[test]
fn a_peer_speaks_from_its_own_address_alone_and_a_stranger_not_at_all() {
    let (mut pair, keys) = Pair::new();
    pair.send(0, (1, 0), "from elsewhere");
    pair.carry();
    assert_eq!(pair.arrived(1), [""; 0]);
    pair.set(1, &Setting::Remove(public_key(&keys[0])));
    pair.send(0, (0, 0), "hello");
    pair.carry();
    assert_eq!(pair.arrived(1), [""; 0]);
    // Nonsense is not answered.
    for datagram in [&b""[..], b"x", &[1; 148], &[4, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0], &[0; 3000]]
    {
        let (engine, queues) = &mut pair.nodes[1];
        engine.incoming(at(9), datagram, queues);
        assert!(queues.sent.is_empty() && queues.delivered.is_empty());
    }
}

#[test]
fn a_node_goes_over_to_its_next_key_while_packets_are_under_way() {
    let (mut pair, keys) = Pair::new();
    pair.send(0, (0, 0), "before");
    pair.carry();
    pair.arrived(1);
    let next = new_key().unwrap();
    pair.know(1, &next, 1);
    pair.carry();
    // The other does not know yet that the key is in use: by the old one it is still heard.
    pair.send(1, (0, 0), "under way");
    pair.set(0, &Setting::Key(next));
    pair.carry();
    pair.send(0, (1, 0), "by the next");
    pair.send(1, (0, 0), "to the old");
    pair.carry();
    pair.send(1, (0, 1), "to the next");
    pair.carry();
    assert_eq!(pair.arrived(0), ["under way", "to the old", "to the next"]);
    assert_eq!(pair.arrived(1), ["by the next"]);
    // The old one is forgotten, and nobody who has it is heard any more.
    pair.set(1, &Setting::Remove(public_key(&keys[0])));
    pair.send(0, (1, 0), "still");
    pair.carry();
    assert_eq!(pair.arrived(1), ["still"]);
    assert_eq!(pair.nodes[0].0.state().key, Some(next));
    assert_eq!(pair.nodes[1].0.state().peers.len(), 1);
}

#[test]
fn whoever_has_moved_is_answered_where_he_is_now() {
    let (mut pair, _) = Pair::new();
    pair.send(0, (0, 0), "one");
    pair.carry();
    pair.send(0, (0, 0), "two");
    let (_, datagram) = pair.nodes[0].1.sent.pop().unwrap();
    let (engine, queues) = &mut pair.nodes[1];
    engine.incoming("203.0.113.9:1024".parse().unwrap(), &datagram, queues);
    pair.send(1, (0, 0), "back");
    assert_eq!(pair.nodes[1].1.sent.pop().unwrap().0.to_string(), "203.0.113.9:1024");
    assert_eq!(pair.arrived(1), ["one", "two"]);
}

/// The kernel shows a key in this form, whatever form it was given in: else it would be set again and again.
#[test]
fn a_new_key_is_in_the_form_that_the_kernel_shows() {
    for _ in 0..20 {
        let PrivateKey(bytes) = new_key().unwrap();
        assert!(bytes[0] & 7 == 0 && bytes[31] & 0xc0 == 0x40, "{bytes:x?}");
    }
}

#[test]
fn the_state_is_what_was_set() {
    let (pair, keys) = Pair::new();
    let state = pair.nodes[0].0.state();
    assert_eq!((state.key, state.peers.len()), (Some(keys[0]), 1));
    let peer = state.peers[&public_key(&keys[1])];
    assert_eq!((peer.address, peer.endpoint, peer.keepalive), (Some(inner(2, 0)), Some(at(2)), 25));
}
