//! The content of the files that a node gives each container: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. Pure.
//!
//! Source: moby, `libnetwork/etchosts` and `libnetwork/internal/resolvconf`.

use std::fmt::Write as _;
use std::net::IpAddr;

use rswarm_types::task::{DnsConfig, TaskNetwork};

/// `/etc/hosts` of a container in its own network namespace.
///
/// `extra` are lines as `address name`, which the user wrote.
pub fn hosts(hostname: &str, networks: &[TaskNetwork], extra: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    for address in networks.iter().filter_map(|network| network.address) {
        for address in address.all() {
            // A domain name is followed by its first label, so that both forms resolve.
            match hostname.split_once('.') {
                Some((label, _)) => writeln!(text, "{address}\t{hostname} {label}"),
                None => writeln!(text, "{address}\t{hostname}"),
            }
            .expect("writing to a string");
        }
    }
    append_hosts(&mut text, extra);
    text
}

/// The node's own `/etc/hosts` with the user's lines, for a container in the node's network namespace.
pub fn hosts_of_node(node_hosts: &str, extra: &[String]) -> String {
    let mut text = node_hosts.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    append_hosts(&mut text, extra);
    text
}

fn append_hosts(text: &mut String, extra: &[String]) {
    for line in extra {
        match line.split_once([' ', '\t']) {
            Some((address, names)) => writeln!(text, "{address}\t{}", names.trim()),
            None => writeln!(text, "{line}"),
        }
        .expect("writing to a string");
    }
}

/// `/etc/resolv.conf`: the task's settings, else the node's.
///
/// Name servers on the node's loopback cannot be reached from another network namespace; `keep_loopback` is for
/// containers in the node's own. If none is left the file has none, rather than one the user never chose.
pub fn resolv_conf(node: &str, dns: &DnsConfig, keep_loopback: bool) -> String {
    let words = |key: &str| -> Vec<String> {
        // The last line of a kind counts, except that of name servers.
        node.lines()
            .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix([' ', '\t']))
            .map(|rest| rest.trim().to_owned())
            .collect()
    };
    let reachable = |server: &String| {
        let address = server.split('%').next().unwrap_or_default();
        keep_loopback || !address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let nameservers = match dns.nameservers.as_slice() {
        [] => words("nameserver").into_iter().filter(reachable).collect(),
        servers => servers.to_vec(),
    };
    let last = |given: &[String], key: &str| match given {
        [] => words(key).pop(),
        // Docker's way to say "none".
        [dot] if key == "search" && dot == "." => None,
        words => Some(words.join(" ")),
    };
    let mut text = String::new();
    for server in &nameservers {
        writeln!(text, "nameserver {server}").expect("writing to a string");
    }
    if nameservers.is_empty() {
        text.push_str(
            "# The node has no name server that a container could reach; give the service one with --dns.\n",
        );
    }
    for (key, given) in [("search", &dns.search), ("options", &dns.options)] {
        if let Some(words) = last(given, key) {
            writeln!(text, "{key} {words}").expect("writing to a string");
        }
    }
    text
}

/// The name servers of a node where a stub resolver on the loopback stands in `/etc/resolv.conf`: systemd-resolved
/// keeps the real ones beside it.
pub fn has_only_loopback_servers(resolv_conf: &str) -> bool {
    let mut servers = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .peekable();
    servers.peek().is_some() && servers.all(|server| server.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_types::task::{TaskAddress, TaskAddress6};
    use rswarm_types::{NetworkDriver, NetworkId};

    fn network(address: &str) -> TaskNetwork {
        TaskNetwork {
            network: NetworkId::from_bytes([1; 16]),
            name: "bridge".to_owned(),
            driver: NetworkDriver::Bridge,
            address: Some(TaskAddress {
                address: address.parse().unwrap(),
                prefix_len: 16,
                gateway: "10.213.0.1".parse().unwrap(),
                ipv6: None,
            }),
            aliases: vec![],
            internal: false,
            mtu: None,
            bridge: rswarm_types::network::BridgeOptions::default(),
            joined: false,
        }
    }

    #[test]
    fn hosts_name_the_container_and_what_the_user_added() {
        let both = [network("10.0.16.3"), network("10.213.0.9")];
        let text = hosts("web.example.org", &both, &["192.0.2.1 db db2".to_owned()]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        let lines = "10.0.16.3\tweb.example.org web\n10.213.0.9\tweb.example.org web\n192.0.2.1\tdb db2\n";
        assert!(text.ends_with(lines), "{text}");
        assert!(hosts("db", &both[..1], &[]).ends_with("ip6-allrouters\n10.0.16.3\tdb\n"));
        let mut dual = network("10.0.16.3");
        let ipv6 = TaskAddress6 {
            address: "fd00:1::3".parse().unwrap(),
            prefix_len: 64,
            gateway: None,
            alone: false,
        };
        dual.address.as_mut().unwrap().ipv6 = Some(ipv6);
        assert!(hosts("db", std::slice::from_ref(&dual), &[]).ends_with("\n10.0.16.3\tdb\nfd00:1::3\tdb\n"));
        dual.address.as_mut().unwrap().ipv6 = Some(TaskAddress6 { alone: true, ..ipv6 });
        assert!(hosts("db", &[dual], &[]).ends_with("ip6-allrouters\nfd00:1::3\tdb\n"));
        assert_eq!(hosts_of_node("1.2.3.4 a", &["192.0.2.1 db".to_owned()]), "1.2.3.4 a\n192.0.2.1\tdb\n");
    }

    #[test]
    fn name_servers_are_the_tasks_else_those_of_the_node_that_can_be_reached() {
        let node = "# comment\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch a.b\nsearch c.d\noptions ndots:2\n";
        let check = |dns: &[&[&str]; 3], keep, expected: &str| {
            let list = |n: usize| dns[n].iter().map(|&word| word.to_owned()).collect();
            let dns = DnsConfig { nameservers: list(0), search: list(1), options: list(2) };
            assert_eq!(resolv_conf(node, &dns, keep), expected);
        };
        check(&[&[], &[], &[]], false, "nameserver 192.0.2.53\nsearch c.d\noptions ndots:2\n");
        check(
            &[&[], &[], &[]],
            true,
            "nameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch c.d\noptions ndots:2\n",
        );
        check(
            &[&["127.0.0.1", "::1"], &["x", "y"], &["ndots:1"]],
            false,
            "nameserver 127.0.0.1\nnameserver ::1\nsearch x y\noptions ndots:1\n",
        );
        check(&[&["192.0.2.1"], &["."], &[]], false, "nameserver 192.0.2.1\noptions ndots:2\n");
        let none = resolv_conf("nameserver 127.0.0.53\nnameserver ::1\n", &DnsConfig::default(), false);
        assert!(none.starts_with("# ") && !none.contains("\nnameserver"), "{none}");
        assert!(has_only_loopback_servers("nameserver 127.0.0.53\n"));
        assert!(!has_only_loopback_servers(node) && !has_only_loopback_servers(""));
    }
}
