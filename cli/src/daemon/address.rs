//! The addresses of a node: where it listens, and by which name others reach it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail, ensure};

use super::facts;

/// Where managers listen. Source: Swarm's port.
pub const DEFAULT_PORT: u16 = 2377;

/// The address of this host from which it reaches `addr`.
pub async fn local_address_to(addr: &str) -> std::io::Result<IpAddr> {
    Ok(tokio::net::TcpStream::connect(addr).await?.local_addr()?.ip())
}

/// Where this node listens as a manager; everywhere if nothing is given.
pub fn listen_addr(text: &str) -> anyhow::Result<SocketAddr> {
    match text {
        "" => Ok(SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))),
        text => parse_addr("--listen-addr", text, DEFAULT_PORT),
    }
}

/// The address told to other nodes: the one given, the one alone that this node listens at, or the only one this host has.
pub fn advertise_addr(text: &str, listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let port = listen.port();
    if !text.is_empty() {
        return parse_addr("--advertise-addr", text, port);
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    let addresses = facts::addresses();
    match addresses.as_slice() {
        [(_, ip)] => Ok(SocketAddr::new(*ip, port)),
        [] => {
            bail!("this host has no address by which others could reach it: give one by `--advertise-addr`")
        }
        several => {
            let list: Vec<_> = several.iter().map(|(name, ip)| format!("{ip} on {name}")).collect();
            bail!("this host has several addresses: choose one by `--advertise-addr` ({})", list.join(", "))
        }
    }
}

/// The address of the data path, if one is given: one of this host's, or that of an interface.
pub fn data_path_addr(text: &str) -> anyhow::Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let named = text.parse::<IpAddr>().is_ok() || !text.contains(':');
    ensure!(named, "invalid --data-path-addr `{text}`: expected IP or the name of an interface");
    let ip = parse_addr("--data-path-addr", text, DEFAULT_PORT)?.ip();
    ensure!(
        ip.is_ipv4(),
        "IPv6 is not supported yet as --data-path-addr: expected an IPv4 address, found `{ip}`"
    );
    ensure!(
        facts::has_address(ip),
        "`{ip}` is not an address of this host: use one of its own as `--data-path-addr`"
    );
    Ok(Some(ip))
}

/// `IP`, `IP:PORT`, or the name of an interface in the place of the address. Source: swarm-parity 1.1.
fn parse_addr(flag: &str, text: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let parsed =
        text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)));
    if let Ok(addr) = parsed {
        return Ok(addr);
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, number)) => (name, number.parse().ok()),
        None => (text, Some(port)),
    };
    match (facts::addresses_of(name).as_slice(), port) {
        ([ip], Some(port)) => Ok(SocketAddr::new(*ip, port)),
        ([_, _, ..], _) => bail!("interface `{name}` has several addresses: choose one of them as {flag}"),
        _ => bail!(
            "invalid {flag} `{text}`: expected IP, IP:PORT or the name of an interface that has an address"
        ),
    }
}

/// The address of a manager, with the port it has if none is given.
pub fn with_default_port(addr: &str) -> anyhow::Result<String> {
    let addr = addr.trim();
    ensure!(!addr.is_empty(), "the address of a manager is missing: expected HOST:PORT");
    if let Ok(ip) = addr.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DEFAULT_PORT).to_string());
    }
    match addr.rsplit_once(':') {
        None => Ok(format!("{addr}:{DEFAULT_PORT}")),
        Some((host, port)) => {
            ensure!(
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
                "invalid manager address `{addr}`: expected HOST:PORT"
            );
            Ok(addr.to_owned())
        }
    }
}

/// Whether `init`, or `join` at `manager`, could go on with these addresses, as far as this host alone can tell: looked
/// at before a daemon is started for it.
pub fn check(listen: &str, advertise: &str, manager: Option<&str>) -> anyhow::Result<()> {
    manager.map(with_default_port).transpose()?;
    let listen = listen_addr(listen)?;
    if manager.is_some() && advertise.is_empty() {
        // Found out by reaching the manager.
        return Ok(());
    }
    ensure_free(listen, advertise_addr(advertise, listen)?)
}

/// Whether this node could serve at its addresses: they are this host's, others reach where it listens, and the port is
/// free.
pub fn ensure_free(listen: SocketAddr, advertise: SocketAddr) -> anyhow::Result<()> {
    ensure!(
        facts::has_address(advertise.ip()),
        "`{}` is not an address of this host: use one of its own as `--advertise-addr`",
        advertise.ip()
    );
    ensure!(
        listen.ip().is_unspecified() || listen.ip() == advertise.ip(),
        "with --listen-addr `{listen}` nobody reaches this node at `{advertise}`, which it tells others: expected \
         `0.0.0.0:{0}` or `{1}:{0}`",
        listen.port(),
        advertise.ip()
    );
    std::net::TcpListener::bind(listen).map(drop).with_context(|| format!("cannot listen on `{listen}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manager_addresses_get_the_default_port() {
        for (given, expected) in [
            ("10.0.0.1", Some("10.0.0.1:2377")),
            ("10.0.0.1:99", Some("10.0.0.1:99")),
            ("manager.example", Some("manager.example:2377")),
            ("::1", Some("[::1]:2377")),
            ("", None),
            (":2377", None),
            ("host:port", None),
            ("host:0", None),
        ] {
            assert_eq!(with_default_port(given).ok().as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn the_data_path_has_an_address_of_this_host_and_no_port() {
        let lo = Some(IpAddr::from([127, 0, 0, 1]));
        for (text, expected) in [("", Ok(None)), ("127.0.0.1", Ok(lo)), ("lo", Ok(lo))] {
            assert_eq!(data_path_addr(text).map_err(|error| error.to_string()), expected, "{text}");
        }
        for (text, part) in [
            ("127.0.0.1:80", "expected IP or the name"),
            ("192.0.2.77", "is not an address of this host"),
            ("nonsense", "invalid --data-path-addr `nonsense`"),
            ("::1", "IPv6 is not supported yet"),
        ] {
            let error = data_path_addr(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_this_host_alone_can_refuse_is_refused() {
        let refusal = |listen, advertise, manager| check(listen, advertise, manager).unwrap_err().to_string();
        assert!(refusal("127.0.0.1:0", "127.0.0.1", Some("10.77.0.1:99999")).contains("`10.77.0.1:99999`"));
        assert!(
            refusal("127.0.0.1:0", "192.0.2.1", Some("10.77.0.1")).contains("`192.0.2.1` is not an address")
        );
        assert!(refusal("127.0.0.1:0", "192.0.2.1", None).contains("`192.0.2.1` is not an address"));
        assert!(refusal("nonsense", "", Some("10.77.0.1")).contains("--listen-addr `nonsense`"));
        assert!(refusal("127.0.0.2:0", "127.0.0.1", None).contains("expected `0.0.0.0:0` or `127.0.0.1:0`"));
        check("127.0.0.1:0", "127.0.0.1", Some("10.77.0.1:2377")).unwrap();
        check("127.0.0.1:0", "", None).unwrap();
        check("", "", Some("10.77.0.1")).unwrap();
    }

    #[test]
    fn an_interface_stands_for_its_address() {
        let parse = |text| parse_addr("--advertise-addr", text, 2377);
        assert_eq!(parse("10.0.0.1:99").unwrap().to_string(), "10.0.0.1:99");
        assert_eq!(parse("lo").unwrap().to_string(), "127.0.0.1:2377");
        assert_eq!(parse("lo:99").unwrap().to_string(), "127.0.0.1:99");
        for bad in ["nonsense", "lo:port", ":99", "10.0.0.256"] {
            assert!(parse(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
