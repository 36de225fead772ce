//! Who the peers are, and what is sent to and taken from them. Reads no socket: see [`Wire`].

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use boringtun::{
    noise::{
        Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon,
        rate_limiter::RateLimiter,
    },
    x25519,
};
use rswarm_net::wireguard::{Peer, PeerState, PrivateKey, PublicKey, Setting, State};

/// Handshakes taken in a second; whoever comes on top of that must prove where he is. Each is counted twice.
const HANDSHAKES_MAX: u64 = 200;
/// How long what was encrypted by the key before is still taken. Source: the WireGuard paper, `Reject-After-Time`.
const FORMER_KEPT: Duration = Duration::from_secs(180);
/// Room for the largest datagram.
pub const BUFFER: usize = 1 << 16;

/// Where packets go.
pub trait Wire {
    /// To another node.
    fn send(&mut self, to: SocketAddrV4, datagram: &[u8]);
    /// To this node.
    fn deliver(&mut self, packet: &[u8]);
}

pub struct Engine {
    key: Option<Key>,
    pub port: u16,
    peers: BTreeMap<PublicKey, PeerLine>,
    by_address: HashMap<Ipv4Addr, PublicKey>,
    /// By the first 24 bits of the numbers that a line gives its sessions.
    by_number: HashMap<u32, PublicKey>,
    next_number: u32,
    buffer: Vec<u8>,
}

struct Key {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
}

/// A peer, and the state of the protocol with it.
struct PeerLine {
    set: Peer,
    endpoint: Option<SocketAddrV4>,
    line: Option<Line>,
    /// That of the key before, which only takes what is still under way.
    former: Option<(Line, Instant)>,
    received: u64,
    sent: u64,
    revived: Option<Instant>,
}

struct Line {
    number: u32,
    tunn: Box<Tunn>,
}

impl Engine {
    pub fn new() -> Self {
        // Numbers are drawn by the kernel's WireGuard; here it is enough that a restart does not give the same again.
        let mut bytes = [0; 4];
        let _ = getrandom::fill(&mut bytes);
        Self {
            key: None,
            port: 0,
            peers: BTreeMap::new(),
            by_address: HashMap::new(),
            by_number: HashMap::new(),
            next_number: u32::from_ne_bytes(bytes) >> 8,
            buffer: vec![0; BUFFER],
        }
    }

    /// Does what is asked; the port is the caller's to open.
    pub fn set(&mut self, setting: &Setting, wire: &mut impl Wire, now: Instant) {
        match setting {
            Setting::Port(port) => self.port = *port,
            Setting::Key(key) => self.set_key(*key, wire, now),
            Setting::Peer(peer) => self.set_peer(*peer, wire, now),
            Setting::Remove(key) => self.remove(key),
        }
    }

    fn set_key(&mut self, key: PrivateKey, wire: &mut impl Wire, now: Instant) {
        if self.key.as_ref().is_some_and(|held| held.secret.to_bytes() == key.0) {
            return;
        }
        let secret = x25519::StaticSecret::from(key.0);
        let public = x25519::PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_MAX));
        self.key = Some(Key { secret, public, limiter });
        let keys: Vec<PublicKey> = self.peers.keys().copied().collect();
        for key in keys {
            let line = self.new_line(&key);
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let former = std::mem::replace(&mut peer.line, line);
            let gone = former.and_then(|former| peer.former.replace((former, now)));
            if let Some((gone, _)) = gone {
                self.by_number.remove(&gone.number);
            }
            self.begin(&key, wire, now);
        }
    }

    fn set_peer(&mut self, peer: Peer, wire: &mut impl Wire, now: Instant) {
        if let Some(other) = self.by_address.insert(peer.address, peer.key).filter(|other| *other != peer.key)
        {
            // An address has one holder, as in the kernel: the last one who got it.
            if let Some(other) = self.peers.get_mut(&other) {
                other.set.address = Ipv4Addr::UNSPECIFIED;
            }
        }
        if let Some(held) = self.peers.get_mut(&peer.key) {
            let former = std::mem::replace(&mut held.set, peer);
            held.endpoint = peer.endpoint.or(held.endpoint);
            if former.address != peer.address {
                self.by_address.remove(&former.address);
            }
            return;
        }
        let line = self.new_line_for(&peer);
        let (endpoint, key) = (peer.endpoint, peer.key);
        let held = PeerLine { set: peer, endpoint, line, former: None, received: 0, sent: 0, revived: None };
        self.peers.insert(key, held);
        self.begin(&key, wire, now);
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(gone) = self.peers.remove(key) else { return };
        if self.by_address.get(&gone.set.address) == Some(key) {
            self.by_address.remove(&gone.set.address);
        }
        self.by_number.retain(|_, of| of != key);
    }

    fn new_line(&mut self, key: &PublicKey) -> Option<Line> {
        let set = self.peers.get(key)?.set;
        self.new_line_for(&set)
    }

    fn new_line_for(&mut self, peer: &Peer) -> Option<Line> {
        let Key { secret, limiter, .. } = self.key.as_ref()?;
        let number = loop {
            self.next_number = (self.next_number + 1) & 0x00ff_ffff;
            if !self.by_number.contains_key(&self.next_number) {
                break self.next_number;
            }
        };
        self.by_number.insert(number, peer.key);
        let public = x25519::PublicKey::from(peer.key.0);
        let (keepalive, limiter) = (Some(peer.keepalive), Some(limiter.clone()));
        let tunn = Tunn::new(secret.clone(), public, None, keepalive, number, limiter);
        Some(Line { number, tunn: Box::new(tunn) })
    }

    /// Asks a peer for a session, so that it knows where this node is before anything is to be sent.
    fn begin(&mut self, key: &PublicKey, wire: &mut impl Wire, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.revived = Some(now);
        let Some(line) = &mut peer.line else { return };
        if let TunnResult::WriteToNetwork(datagram) =
            line.tunn.format_handshake_initiation(&mut self.buffer, true)
            && let Some(to) = peer.endpoint
        {
            wire.send(to, datagram);
        }
    }

    /// A packet of this node for another one.
    pub fn outgoing(&mut self, packet: &[u8], wire: &mut impl Wire) {
        let Some(to) = destination(packet) else { return };
        let Some(peer) = self.by_address.get(&to).and_then(|key| self.peers.get_mut(key)) else { return };
        let Some(line) = &mut peer.line else { return };
        if let TunnResult::WriteToNetwork(datagram) = line.tunn.encapsulate(packet, &mut self.buffer)
            && let Some(to) = peer.endpoint
        {
            peer.sent += datagram.len() as u64;
            wire.send(to, datagram);
        }
    }

    /// A datagram of another node, or of anybody.
    pub fn incoming(&mut self, from: SocketAddrV4, datagram: &[u8], wire: &mut impl Wire) {
        let Some(key) = &self.key else { return };
        let source = Some((*from.ip()).into());
        let (number, from_whom) = match key.limiter.verify_packet(source, datagram, &mut self.buffer) {
            Ok(Packet::HandshakeInit(init)) => {
                let Ok(half) = parse_handshake_anon(&key.secret, &key.public, &init) else { return };
                (None, Some(PublicKey(half.peer_static_public)))
            }
            Ok(Packet::HandshakeResponse(response)) => (Some(response.receiver_idx >> 8), None),
            Ok(Packet::PacketCookieReply(reply)) => (Some(reply.receiver_idx >> 8), None),
            Ok(Packet::PacketData(data)) => (Some(data.receiver_idx >> 8), None),
            Err(TunnResult::WriteToNetwork(cookie)) => return wire.send(from, cookie),
            Err(_) => return,
        };
        let whose = number.and_then(|number| self.by_number.get(&number).copied()).or(from_whom);
        let Some(peer) = whose.and_then(|key| self.peers.get_mut(&key)) else { return };
        let former = peer.former.as_mut().map(|(line, _)| line).filter(|line| Some(line.number) == number);
        let Some(line) = former.or(peer.line.as_mut()) else { return };
        match line.tunn.decapsulate(source, datagram, &mut self.buffer) {
            // Not from the peer, or not for us.
            TunnResult::Err(_) => return,
            TunnResult::WriteToTunnelV4(packet, address) => {
                if address == peer.set.address {
                    peer.received += packet.len() as u64;
                    wire.deliver(packet);
                }
            }
            TunnResult::WriteToNetwork(answer) => wire.send(from, answer),
            TunnResult::WriteToTunnelV6(..) | TunnResult::Done => {}
        }
        peer.endpoint = Some(from);
        // Whoever begins a session has to be heard by it once before he is sent anything by it.
        if number.is_none() {
            return;
        }
        while let TunnResult::WriteToNetwork(waiting) = line.tunn.decapsulate(None, &[], &mut self.buffer) {
            peer.sent += waiting.len() as u64;
            wire.send(from, waiting);
        }
    }

    /// To be called a few times in a second.
    pub fn tick(&mut self, wire: &mut impl Wire, now: Instant) {
        if let Some(key) = &self.key {
            key.limiter.reset_count();
        }
        let mut expired = Vec::new();
        for (key, peer) in &mut self.peers {
            if let Some((line, _)) =
                peer.former.take_if(|(_, since)| now.duration_since(*since) > FORMER_KEPT)
            {
                self.by_number.remove(&line.number);
            }
            let Some(line) = &mut peer.line else { continue };
            match line.tunn.update_timers(&mut self.buffer) {
                TunnResult::WriteToNetwork(datagram) => {
                    if let Some(to) = peer.endpoint {
                        wire.send(to, datagram);
                    }
                }
                // The state machine has given up, and would wait for something to send. We may be behind an address
                // translation, where the others cannot reach us before we reach them.
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    let pause = Duration::from_secs(peer.set.keepalive.into());
                    if !pause.is_zero() && peer.revived.is_none_or(|at| now.duration_since(at) >= pause) {
                        expired.push(*key);
                    }
                }
                _ => {}
            }
        }
        for key in expired {
            self.begin(&key, wire, now);
        }
    }

    pub fn state(&self) -> State {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let peer = |(key, peer): (&PublicKey, &PeerLine)| {
            let ago = peer.line.as_ref().and_then(|line| line.tunn.time_since_last_handshake());
            let state = PeerState {
                address: (!peer.set.address.is_unspecified()).then_some(peer.set.address),
                endpoint: peer.endpoint,
                keepalive: peer.set.keepalive,
                handshake: ago.map_or(0, |ago| since_1970.saturating_sub(ago).as_secs()),
                received: peer.received,
                sent: peer.sent,
            };
            (*key, state)
        };
        State {
            key: self.key.as_ref().map(|key| PrivateKey(key.secret.to_bytes())),
            port: self.port,
            peers: self.peers.iter().map(peer).collect(),
        }
    }
}

fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    (packet[0] >> 4 == 4).then(|| octets.into())
}

#[cfg(test)]
mod tests;
