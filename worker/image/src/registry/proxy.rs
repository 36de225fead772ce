//! Which proxy a request goes through: the environment's, decided as Docker does.
//!
//! Source: golang.org/x/net/http/httpproxy, `proxy.go`.

use std::net::IpAddr;

use reqwest::Url;

use super::options::{in_network, is_loopback};

/// What the environment says of proxies.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    /// Who is reached directly: see [`is_direct`].
    direct: String,
}

impl Proxies {
    /// `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or the same in lower case.
    pub fn from_environment() -> Proxies {
        let read = |name: &str| {
            let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            set(name).or_else(|| set(&name.to_ascii_lowercase()))
        };
        Proxies {
            http: read("HTTP_PROXY"),
            https: read("HTTPS_PROXY"),
            direct: read("NO_PROXY").unwrap_or_default(),
        }
    }

    /// The address of the proxy for `url`; `None` if it is reached directly.
    pub fn for_url(&self, url: &Url) -> Option<String> {
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        if is_loopback(host) || is_direct(&self.direct, host.trim_matches(['[', ']']), port) {
            return None;
        }
        if url.scheme() == "https" { self.https.clone() } else { self.http.clone() }
    }
}

/// Whether one of the entries of `list` means `host` at `port`: `*`, a network, an address, a name with those below it, or
/// `.name` for these alone; an address or a name may have a port, which then counts as well.
fn is_direct(list: &str, host: &str, port: u16) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
        if entry == "*" || address.is_some_and(|address| in_network(address, &entry)) {
            return true;
        }
        let (name, wanted) = match entry.rsplit_once(':') {
            Some((name, wanted)) if entry.parse::<IpAddr>().is_err() => {
                (name.trim_matches(['[', ']']), wanted)
            }
            _ => (entry.as_str(), ""),
        };
        if !wanted.is_empty() && wanted.parse() != Ok(port) {
            return false;
        }
        if let Ok(named) = name.parse::<IpAddr>() {
            return address == Some(named);
        }
        let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
        match host.strip_suffix(name) {
            Some(above) if !name.is_empty() => {
                name.starts_with('.') || above.is_empty() || above.ends_with('.')
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_reached_directly_is_told_as_docker_does() {
        for (list, host, port, expected) in [
            ("", "reg.test", 443, false),
            ("*", "10.9.9.9", 5443, true),
            ("*", "reg.test", 443, true),
            ("10.9.9.9", "10.9.9.9", 5443, true),
            ("10.9.9.9:5443", "10.9.9.9", 5443, true),
            ("10.9.9.9:5443", "10.9.9.9", 443, false),
            ("10.9.9.9", "10.9.9.99", 443, false),
            ("10.0.0.0/8", "10.9.9.9", 5443, true),
            ("10.0.0.0/8", "11.9.9.9", 5443, false),
            ("10.0.0.0/8", "reg.test", 443, false),
            ("fd00::1", "fd00::1", 443, true),
            ("[fd00::1]:443", "fd00::1", 443, true),
            ("[fd00::1]:444", "fd00::1", 443, false),
            ("fd00::/8", "fd00::1", 443, true),
            ("other, Reg.Test ", "reg.test", 443, true),
            ("reg.test:5000", "reg.test", 5000, true),
            ("reg.test:5000", "reg.test", 5001, false),
            ("reg.test:", "reg.test", 5001, true),
            ("test", "reg.test", 443, true),
            ("test", "regtest", 443, false),
            (".test", "reg.test", 443, true),
            (".reg.test", "reg.test", 443, false),
            ("*.test:5000", "reg.test", 5000, true),
            ("*.test:5000", "reg.test", 443, false),
            ("*test", "reg.test", 443, false),
            (":443,,", "reg.test", 443, false),
        ] {
            assert_eq!(is_direct(list, host, port), expected, "{host}:{port} with `{list}`");
        }
    }

    #[test]
    fn each_scheme_has_its_proxy_and_loopback_none() {
        let proxies = Proxies {
            http: Some("http://user:secret@plain:1".into()),
            https: Some("tls:2".into()),
            direct: "direct.test:443,[fd00::1]:5000".into(),
        };
        for (url, expected) in [
            ("http://reg.test/v2/", Some("http://user:secret@plain:1")),
            ("https://reg.test:5000", Some("tls:2")),
            ("https://direct.test", None),
            ("http://direct.test", Some("http://user:secret@plain:1")),
            ("https://[fd00::1]:5000", None),
            ("https://[fd00::1]", Some("tls:2")),
            ("https://localhost:5000", None),
            ("http://127.0.0.1", None),
            ("https://[::1]:5000", None),
        ] {
            assert_eq!(proxies.for_url(&url.parse().unwrap()).as_deref(), expected, "{url}");
        }
    }
}
