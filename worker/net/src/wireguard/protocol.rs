//! The words by which a WireGuard link in user space is set and read: lines `name=value`, an empty one at the end. Only
//! what we need of them, both ways. Source: <https://www.wireguard.com/xplatform/>.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddrV4};

use super::{Peer, PeerState, PrivateKey, PublicKey, Setting, State};

/// What is asked of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Get,
    Set(Vec<Setting>),
}

/// Reading and writing.
#[derive(Debug)]
pub struct Words;

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn key(text: &str) -> Result<[u8; 32], String> {
    let malformed = || format!("expected a key of 64 hexadecimal digits, found {} characters", text.len());
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let bytes: Vec<u8> = digits
        .ok_or_else(malformed)?
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0))
        .collect();
    if text.len() == 64 { bytes.try_into().map_err(|_| malformed()) } else { Err(malformed()) }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("invalid `{name}={value}`"))
}

impl Words {
    pub fn request(request: &Request) -> String {
        let Request::Set(settings) = request else { return "get=1\n\n".to_owned() };
        let mut text = "set=1\n".to_owned();
        for setting in settings {
            let _ = match setting {
                Setting::Key(key) => writeln!(text, "private_key={}", hex(&key.0)),
                Setting::Port(port) => writeln!(text, "listen_port={port}"),
                Setting::Remove(key) => writeln!(text, "public_key={}\nremove=true", hex(&key.0)),
                Setting::Peer(peer) => {
                    let _ = writeln!(text, "public_key={}", hex(&peer.key.0));
                    if let Some(endpoint) = peer.endpoint {
                        let _ = writeln!(text, "endpoint={endpoint}");
                    }
                    writeln!(
                        text,
                        "persistent_keepalive_interval={}\nreplace_allowed_ips=true\nallowed_ip={}/32",
                        peer.keepalive, peer.address
                    )
                }
            };
        }
        text.push('\n');
        text
    }

    /// # Errors
    /// What is wrong, in words.
    pub fn parse_request(text: &str) -> Result<Request, String> {
        let mut lines = text.lines().take_while(|line| !line.is_empty());
        match lines.next() {
            Some("get=1") => return Ok(Request::Get),
            Some("set=1") => {}
            other => {
                return Err(format!("expected `get=1` or `set=1`, found `{}`", other.unwrap_or_default()));
            }
        }
        let mut settings = Vec::new();
        // The peer under way: its key, and what is known of it.
        let mut open: Option<(PublicKey, PeerState, bool)> = None;
        let close = |open: Option<(PublicKey, PeerState, bool)>| match open {
            None => Ok(None),
            Some((key, _, true)) => Ok(Some(Setting::Remove(key))),
            Some((key, state, false)) => {
                let address = state.address.ok_or("expected an `allowed_ip` for each peer")?;
                let peer = Peer { key, endpoint: state.endpoint, address, keepalive: state.keepalive };
                Ok::<_, String>(Some(Setting::Peer(peer)))
            }
        };
        for line in lines {
            let (name, value) =
                line.split_once('=').ok_or_else(|| format!("expected `name=value`, found `{line}`"))?;
            match (name, &mut open) {
                ("private_key", _) => settings.push(Setting::Key(PrivateKey(key(value)?))),
                ("listen_port", _) => settings.push(Setting::Port(number(name, value)?)),
                ("public_key", _) => {
                    settings.extend(close(open.take())?);
                    open = Some((PublicKey(key(value)?), PeerState::default(), false));
                }
                ("remove", Some((_, _, remove))) => *remove = value == "true",
                ("replace_allowed_ips", Some(_)) => {}
                (_, Some((_, state, _))) => peer_line(state, name, value)?,
                (_, None) => return Err(format!("unknown setting `{name}`")),
            }
        }
        settings.extend(close(open)?);
        Ok(Request::Set(settings))
    }

    pub fn state(state: &State) -> String {
        let mut text = String::new();
        if let Some(key) = state.key {
            let _ = writeln!(text, "private_key={}", hex(&key.0));
        }
        let _ = writeln!(text, "listen_port={}", state.port);
        for (key, peer) in &state.peers {
            let _ = writeln!(text, "public_key={}", hex(&key.0));
            if let Some(endpoint) = peer.endpoint {
                let _ = writeln!(text, "endpoint={endpoint}");
            }
            let _ = writeln!(
                text,
                "persistent_keepalive_interval={}\nlast_handshake_time_sec={}\nrx_bytes={}\ntx_bytes={}",
                peer.keepalive, peer.handshake, peer.received, peer.sent
            );
            if let Some(address) = peer.address {
                let _ = writeln!(text, "allowed_ip={address}/32");
            }
        }
        text.push_str(&Self::outcome(0));
        text
    }

    /// How a request ended: an error number, or 0.
    pub fn outcome(errno: i32) -> String {
        format!("errno={errno}\n\n")
    }

    /// What was answered: the state, and the error number.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse_answer(text: &str) -> Result<(State, i32), String> {
        let (mut state, mut errno) = (State::default(), None);
        let mut peers: BTreeMap<PublicKey, PeerState> = BTreeMap::new();
        let mut open: Option<PublicKey> = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (name, value) =
                line.split_once('=').ok_or_else(|| format!("expected `name=value`, found `{line}`"))?;
            match (name, open) {
                ("private_key", _) => state.key = Some(PrivateKey(key(value)?)),
                ("listen_port", _) => state.port = number(name, value)?,
                ("errno", _) => errno = Some(number(name, value)?),
                ("public_key", _) => open = Some(PublicKey(key(value)?)),
                (_, Some(key)) => peer_line(peers.entry(key).or_default(), name, value)?,
                _ => {}
            }
            if let Some(key) = open {
                peers.entry(key).or_default();
            }
        }
        state.peers = peers;
        Ok((state, errno.ok_or("expected `errno` at the end of the answer")?))
    }
}

fn peer_line(peer: &mut PeerState, name: &str, value: &str) -> Result<(), String> {
    match name {
        "endpoint" => {
            let at: SocketAddrV4 = number(name, value)?;
            peer.endpoint = Some(at);
        }
        "persistent_keepalive_interval" => peer.keepalive = number(name, value)?,
        "allowed_ip" => peer.address = Some(number(name, value.strip_suffix("/32").unwrap_or(value))?),
        "last_handshake_time_sec" => peer.handshake = number(name, value)?,
        "rx_bytes" => peer.received = number(name, value)?,
        "tx_bytes" => peer.sent = number(name, value)?,
        // Of later versions, and what we never set.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(n: u8) -> Peer {
        Peer {
            key: PublicKey([n; 32]),
            endpoint: (n > 1).then(|| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, n), 4790)),
            address: Ipv4Addr::new(169, 254, 144, n),
            keepalive: 25,
        }
    }

    #[test]
    fn what_is_asked_and_answered_is_read_as_it_was_written() {
        let settings = vec![
            Setting::Key(PrivateKey([0xab; 32])),
            Setting::Port(4790),
            Setting::Peer(peer(1)),
            Setting::Remove(PublicKey([3; 32])),
            Setting::Peer(peer(2)),
        ];
        for request in [Request::Get, Request::Set(Vec::new()), Request::Set(settings)] {
            assert_eq!(Words::parse_request(&Words::request(&request)), Ok(request));
        }
        let states = [1, 2].map(|n| {
            let Peer { key, endpoint, address, keepalive } = peer(n);
            let state =
                PeerState { address: Some(address), endpoint, keepalive, handshake: 9, received: 7, sent: 8 };
            (key, state)
        });
        let state = State { key: Some(PrivateKey([1; 32])), port: 4790, peers: states.into() };
        assert_eq!(Words::parse_answer(&Words::state(&state)), Ok((state, 0)));
        assert_eq!(Words::parse_answer("errno=98\n\n"), Ok((State::default(), 98)));
    }

    #[test]
    fn nonsense_is_named() {
        let hex = "0g".repeat(32);
        for (text, expected) in [
            ("", "expected `get=1`"),
            ("set=1\nfwmark=1\n\n", "unknown setting `fwmark`"),
            ("set=1\nlisten_port=70000\n\n", "invalid `listen_port=70000`"),
            ("set=1\nprivate_key=12\n\n", "64 hexadecimal digits, found 2"),
            (&format!("set=1\nprivate_key={hex}\n\n"), "64 hexadecimal digits"),
            (&format!("set=1\npublic_key={}\n\n", "00".repeat(32)), "expected an `allowed_ip`"),
            ("set=1\nprivate_key\n\n", "expected `name=value`, found `private_key`"),
        ] {
            let error = Words::parse_request(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Words::parse_answer("listen_port=1\n").is_err(), "without an end");
    }
}
