//! The host's resolver configuration, as far as it concerns whom to ask and how long to wait. Pure.
//!
//! Source: resolv.conf(5).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

/// As in the C library.
const MAX_SERVERS: usize = 3;
pub const PORT: u16 = 53;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// In the order in which to ask them.
    pub servers: Vec<SocketAddr>,
    /// How long to wait for one of them.
    pub timeout: Duration,
    /// How often to go through all of them.
    pub attempts: u32,
    /// Begin with another one each time.
    pub rotate: bool,
}

impl HostConfig {
    /// Reads the text of `/etc/resolv.conf`. What is unknown or malformed is passed over, as the C library does.
    ///
    /// Where the host says nothing we wait 2 s (the C library: 5), so that two dead servers are passed over before a
    /// client with the usual 5 s gives up.
    pub fn parse(text: &str) -> Self {
        let mut config =
            Self { servers: Vec::new(), timeout: Duration::from_secs(2), attempts: 2, rotate: false };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(server);
                    if config.servers.len() < MAX_SERVERS {
                        config.servers.extend(server);
                    }
                }
                Some("options") => words.for_each(|word| config.option(word)),
                _ => {}
            }
        }
        if config.servers.is_empty() && !text.lines().any(|line| line.starts_with("nameserver")) {
            config.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        config
    }

    fn option(&mut self, word: &str) {
        match word.split_once(':') {
            Some(("timeout", value)) => {
                if let Ok(seconds) = value.parse::<u64>() {
                    self.timeout = Duration::from_secs(seconds.clamp(1, 30));
                }
            }
            Some(("attempts", value)) => {
                if let Ok(attempts) = value.parse::<u32>() {
                    self.attempts = attempts.clamp(1, 5);
                }
            }
            None if word == "rotate" => self.rotate = true,
            _ => {}
        }
    }
}

/// `192.0.2.53`, `2001:db8::53`, `fe80::1%eth0`.
fn server(word: &str) -> Option<SocketAddr> {
    match word.split_once('%') {
        None => Some((word.parse::<IpAddr>().ok()?, PORT).into()),
        Some((address, link)) => {
            let scope = link.parse().ok().or_else(|| nix::net::if_::if_nametoindex(link).ok())?;
            Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_options_are_read_as_the_c_library_does() {
        let check = |text: &str, servers: &[&str], (timeout, attempts, rotate)| {
            let servers = servers.iter().map(|server| server.parse().unwrap()).collect();
            let expected = HostConfig { servers, timeout: Duration::from_secs(timeout), attempts, rotate };
            assert_eq!(HostConfig::parse(text), expected, "{text}");
        };
        check("", &["127.0.0.1:53"], (2, 2, false));
        check("search example.org\n", &["127.0.0.1:53"], (2, 2, false));
        check(
            "# c\nnameserver 192.0.2.1\n;c\nnameserver 2001:db8::1 trailing\nnameserver nonsense\n",
            &["192.0.2.1:53", "[2001:db8::1]:53"],
            (2, 2, false),
        );
        check("nameserver fe80::1%1\n", &["[fe80::1%1]:53"], (2, 2, false));
        check(
            "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4\n",
            &["1.0.0.1:53", "1.0.0.2:53", "1.0.0.3:53"],
            (2, 2, false),
        );
        check(
            "options timeout:1 attempts:9 rotate edns0\nnameserver 127.0.0.53\noptions timeout:x\n",
            &["127.0.0.53:53"],
            (1, 5, true),
        );
        // Of servers that make no sense nothing is left, not even the default.
        check("nameserver nonsense\n", &[], (2, 2, false));
    }
}
