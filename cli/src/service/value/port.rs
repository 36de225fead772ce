//! Published ports: `[PUBLISHED:]TARGET[/PROTOCOL]`, with ranges, or `target=…,published=…,protocol=…,mode=…`, and where
//! they answer.

use std::net::IpAddr;

use rswarm_types::InterfaceName;
use rswarm_types::service::{PortConfig, Protocol, PublishMode};

use super::{Parsed, ValueError, csv};

/// The ports of one flag; a range makes several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<PortConfig>);

/// Which ports `--publish-rm` takes away: those that agree in everything given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortPattern {
    target: u16,
    published: Option<u16>,
    protocol: Protocol,
    mode: Option<PublishMode>,
    host_ip: Option<IpAddr>,
    interface: Option<InterfaceName>,
}

impl PortPattern {
    pub fn matches(&self, port: &PortConfig) -> bool {
        port.target == self.target
            && port.protocol == self.protocol
            && self.mode.is_none_or(|mode| port.mode == mode)
            && self.published.is_none_or(|published| port.published == Some(published))
            && self.host_ip.is_none_or(|at| port.host_ip == Some(at))
            && self.interface.is_none_or(|name| port.interface == Some(name))
    }
}

const SHORT: &str = "[[HOST_IP:]PUBLISHED:]TARGET[/PROTOCOL], like 8080:80, 127.0.0.1:8080:80 or 53:53/udp";
const ADDRESS: &str = "an address of the node, like 127.0.0.1 or [fd00::1]";

/// Reads `--publish`.
pub fn ports(text: &str) -> Parsed<Ports> {
    let patterns = patterns(text)?;
    let port = |pattern: PortPattern| PortConfig {
        protocol: pattern.protocol,
        target: pattern.target,
        published: pattern.published,
        mode: pattern.mode.unwrap_or_default(),
        host_ip: pattern.host_ip,
        interface: pattern.interface,
    };
    Ok(Ports(patterns.into_iter().map(port).collect()))
}

/// Reads `--publish-rm`: one target port.
pub fn port_pattern(text: &str) -> Parsed<PortPattern> {
    match patterns(text)?.as_slice() {
        [pattern] => Ok(*pattern),
        _ => Err(ValueError::new("one target port, like 80 or 53/udp", text)),
    }
}

fn patterns(text: &str) -> Parsed<Vec<PortPattern>> {
    if text.contains('=') { long(text).map(|pattern| vec![pattern]) } else { short(text) }
}

fn long(text: &str) -> Parsed<PortPattern> {
    let (mut target, mut published, mut mode) = (None, None, None);
    let (mut host_ip, mut interface) = (None, None);
    let mut protocol = Protocol::default();
    for field in csv(text)? {
        let (key, value) = field.split_once('=').ok_or_else(|| ValueError::new("key=value", &field))?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "target" => target = Some(number(value)?),
            "published" => published = if value == "0" { None } else { Some(number(value)?) },
            "protocol" => {
                protocol = value
                    .to_ascii_lowercase()
                    .parse()
                    .map_err(|_| ValueError::new("protocol tcp, udp or sctp", value))?;
            }
            "mode" => {
                mode = Some(value.parse().map_err(|_| ValueError::new("mode ingress or host", value))?);
            }
            "host_ip" => {
                let bare = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(value);
                let address: IpAddr = bare.parse().map_err(|_| ValueError::new(ADDRESS, value))?;
                host_ip = Some(address.to_canonical());
            }
            "interface" => {
                let name = value.parse().map_err(|_| {
                    ValueError::new("interface=NAME, of 1 to 15 bytes without `/`, `:` and spaces", value)
                })?;
                interface = Some(name);
            }
            key => {
                let keys = "target, published, protocol, mode, host_ip or interface";
                return Err(ValueError::new(keys, key));
            }
        }
    }
    let target = target.ok_or_else(|| ValueError::new("target=PORT", text))?;
    if host_ip.is_some() && interface.is_some() {
        return Err(ValueError::new("host_ip or interface, not both", text));
    }
    Ok(PortPattern { target, published, protocol, mode, host_ip, interface })
}

fn short(text: &str) -> Parsed<Vec<PortPattern>> {
    let error = || ValueError::new(SHORT, text);
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol: Protocol = protocol.to_ascii_lowercase().parse().map_err(|_| error())?;
    let (published, target) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (host_ip, published) = match published.rsplit_once(':') {
        Some((host_ip, published)) => (Some(bracketed(host_ip)?), published),
        None => (None, published),
    };
    let targets = range(target)?;
    let published: Vec<Option<u16>> = match published {
        "" | "0" => vec![None; targets.len()],
        range_text => range(range_text)?.map(Some).collect(),
    };
    if published.len() != targets.len() {
        return Err(ValueError::new("published and target ranges of equal length", text));
    }
    let pattern = |(published, target)| PortPattern {
        target,
        published,
        protocol,
        mode: None,
        host_ip,
        interface: None,
    };
    Ok(published.into_iter().zip(targets).map(pattern).collect())
}

/// An address before a port: of IPv6 in brackets, so that one knows where it ends.
fn bracketed(text: &str) -> Parsed<IpAddr> {
    let ipv6 = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match ipv6 {
        Some(bare) => bare.parse().map(IpAddr::V6).ok(),
        None => text.parse().map(IpAddr::V4).ok(),
    };
    let address = address.ok_or_else(|| ValueError::new(ADDRESS, text))?;
    Ok(address.to_canonical())
}

/// `80` or `80-90`.
fn range(text: &str) -> Parsed<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(ValueError::new("a range that goes up", text));
    }
    Ok(first..=last)
}

fn number(text: &str) -> Parsed<u16> {
    match text.parse() {
        Ok(0) | Err(_) => Err(ValueError::new("a port from 1 to 65535", text)),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protocol::{Sctp, Tcp, Udp};
    use PublishMode::{Host, Ingress};

    fn port(published: u16, target: u16, protocol: Protocol, mode: PublishMode) -> PortConfig {
        PortConfig {
            protocol,
            target,
            published: (published != 0).then_some(published),
            mode,
            host_ip: None,
            interface: None,
        }
    }

    fn check(text: &str, expected: &[PortConfig]) {
        let found = ports(text).map(|ports| ports.0).unwrap_or_default();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn both_syntaxes() {
        check("80", &[port(0, 80, Tcp, Ingress)]);
        check("8080:80", &[port(8080, 80, Tcp, Ingress)]);
        check("53:53/UDP", &[port(53, 53, Udp, Ingress)]);
        check("0:80", &[port(0, 80, Tcp, Ingress)]);
        check("8000-8001:80-81", &[port(8000, 80, Tcp, Ingress), port(8001, 81, Tcp, Ingress)]);
        check("80-81", &[port(0, 80, Tcp, Ingress), port(0, 81, Tcp, Ingress)]);
        check("target=80", &[port(0, 80, Tcp, Ingress)]);
        let at = |address: &str, port| PortConfig { host_ip: Some(address.parse().unwrap()), ..port };
        let local = |port| at("127.0.0.1", port);
        check("127.0.0.1:8080:80", &[local(port(8080, 80, Tcp, Ingress))]);
        check("127.0.0.1::53/udp", &[local(port(0, 53, Udp, Ingress))]);
        check("0.0.0.0:8080:80", &[at("0.0.0.0", port(8080, 80, Tcp, Ingress))]);
        check("[::]:8080:80", &[at("::", port(8080, 80, Tcp, Ingress))]);
        check("[fd00::1]:8080:80", &[at("fd00::1", port(8080, 80, Tcp, Ingress))]);
        check("[fd00::1]::53/udp", &[at("fd00::1", port(0, 53, Udp, Ingress))]);
        for host_ip in ["fd00::1", "[fd00::1]", "FD00:0::1"] {
            let text = format!("target=80,mode=host,host_ip={host_ip}");
            check(&text, &[at("fd00::1", port(0, 80, Tcp, Host))]);
        }
        check("[::ffff:127.0.0.1]:8080:80", &[local(port(8080, 80, Tcp, Ingress))]);
        check("target=80,mode=host,host_ip=127.0.0.1", &[local(port(0, 80, Tcp, Host))]);
        let by = |port| PortConfig { interface: Some("eth0".parse().unwrap()), ..port };
        check("target=80,published=8080,interface=eth0", &[by(port(8080, 80, Tcp, Ingress))]);
        check("target=80,mode=host,interface=eth0", &[by(port(0, 80, Tcp, Host))]);
        check("published=8080,target=80,protocol=sctp,mode=host", &[port(8080, 80, Sctp, Host)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "a port from 1 to 65535"),
            ("0", "a port from 1 to 65535"),
            ("80:65536", "a port from 1 to 65535"),
            ("8000-8002:80-81", "equal length"),
            ("8000-8001:80", "equal length"),
            ("81-80", "a range that goes up"),
            ("fd00::1:80:80", "an address of the node, like 127.0.0.1 or [fd00::1]"),
            ("[127.0.0.1]:80:80", "an address of the node"),
            ("[fe80::1%eth0]:80:80", "an address of the node"),
            ("localhost:80:80", "an address of the node"),
            ("target=80,host_ip=x", "an address of the node"),
            ("target=80,host_ip=", "an address of the node"),
            ("80/icmp", "PUBLISHED:]TARGET[/PROTOCOL]"),
            ("published=80", "target=PORT"),
            ("target=80,mode=all", "mode ingress or host"),
            ("target=80,protocol=x", "protocol tcp, udp or sctp"),
            ("target=80,ip=1", "target, published, protocol, mode, host_ip or interface"),
            ("target=80,interface=", "interface=NAME"),
            ("target=80,interface=sixteen-bytes-xy", "1 to 15 bytes"),
            ("target=80,interface=a/b", "interface=NAME"),
            ("target=80,interface=lo,host_ip=127.0.0.1", "host_ip or interface, not both"),
            ("target=80,host", "key=value"),
        ] {
            let error = ports(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn removal_matches_what_is_given() {
        let web = port(8080, 80, Tcp, Ingress);
        let host = PortConfig { interface: Some("eth0".parse().unwrap()), ..port(8080, 80, Tcp, Host) };
        for (text, removes_web, removes_host) in [
            ("80", true, true),
            ("80/udp", false, false),
            ("81", false, false),
            ("8080:80", true, true),
            ("8081:80", false, false),
            ("target=80,mode=host", false, true),
            ("target=80,interface=eth0", false, true),
            ("target=80,interface=eth1", false, false),
            ("127.0.0.1:8080:80", false, false),
            ("0.0.0.0:8080:80", false, false),
            ("[fd00::1]:8080:80", false, false),
        ] {
            let pattern = port_pattern(text).unwrap();
            assert_eq!(
                (pattern.matches(&web), pattern.matches(&host)),
                (removes_web, removes_host),
                "{text}"
            );
        }
        assert!(port_pattern("80-81").is_err());
    }
}
