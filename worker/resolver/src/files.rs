//! The files by which a task finds names: `/etc/resolv.conf` and `/etc/hosts`. Pure.
//!
//! Source: moby, `libnetwork/internal/resolvconf` and `libnetwork/etchosts`.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use rswarm_types::task::DnsConfig;

/// `/etc/resolv.conf` of a task that asks us, at `nameservers`.
///
/// Search list and options are the task's, else the host's. Names of services have no dot, so unless someone chose
/// otherwise no name is too short to be tried as it is: `ndots:0`. The task's own name servers are not for this file.
pub fn resolv_conf(host: &str, nameservers: &[IpAddr], dns: &DnsConfig) -> String {
    // The last line of a kind counts.
    let of_host = |key: &str| -> Vec<String> {
        let mut lines =
            host.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix([' ', '\t']));
        lines.next_back().into_iter().flat_map(str::split_ascii_whitespace).map(str::to_owned).collect()
    };
    let search = match dns.search.as_slice() {
        [] => of_host("search"),
        // Docker's way to say "none".
        [dot] if dot == "." => Vec::new(),
        given => given.to_vec(),
    };
    let mut options = if dns.options.is_empty() { of_host("options") } else { dns.options.clone() };
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = String::new();
    for server in nameservers {
        writeln!(text, "nameserver {server}").expect("writing to a string");
    }
    for (key, words) in [("search", search), ("options", options)] {
        if !words.is_empty() {
            writeln!(text, "{key} {}", words.join(" ")).expect("writing to a string");
        }
    }
    text
}

/// `/etc/hosts` of a task in its own network namespace.
///
/// `extra` are lines as `address name`, which the user wrote.
pub fn hosts(hostname: &str, addresses: &[Ipv4Addr], extra: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    for address in addresses {
        // A domain name is followed by its first label, so that both forms resolve.
        match hostname.split_once('.') {
            Some((label, _)) => writeln!(text, "{address}\t{hostname} {label}"),
            None => writeln!(text, "{address}\t{hostname}"),
        }
        .expect("writing to a string");
    }
    for line in extra {
        match line.split_once([' ', '\t']) {
            Some((address, names)) => writeln!(text, "{address}\t{}", names.trim()),
            None => writeln!(text, "{line}"),
        }
        .expect("writing to a string");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_list_and_options_are_the_task_s_else_the_host_s() {
        let host = "# c\nnameserver 192.0.2.53\nsearch a.b\nsearch c.d  e.f\noptions timeout:1 edns0\n";
        let check = |host: &str, search: &[&str], options: &[&str], expected: &str| {
            let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            let nameservers = vec!["192.0.2.1".to_owned()];
            let dns = DnsConfig { nameservers, search: list(search), options: list(options) };
            let text = resolv_conf(host, &[Ipv4Addr::new(10, 0, 0, 1).into()], &dns);
            assert_eq!(text, format!("nameserver 10.0.0.1\n{expected}"));
        };
        check(host, &[], &[], "search c.d e.f\noptions timeout:1 edns0 ndots:0\n");
        check(host, &["x", "y"], &["ndots:2"], "search x y\noptions ndots:2\n");
        check(host, &["."], &["attempts:1"], "options attempts:1 ndots:0\n");
        check("options ndots:5\n", &[], &[], "options ndots:5\n");
        check("", &[], &[], "options ndots:0\n");
    }

    #[test]
    fn hosts_name_the_task_on_each_network_and_what_the_user_added() {
        let addresses = [Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 1, 3)];
        let text = hosts("web.example.org", &addresses, &["192.0.2.1 db db2".to_owned()]);
        let lines = "10.0.0.3\tweb.example.org web\n10.0.1.3\tweb.example.org web\n192.0.2.1\tdb db2\n";
        assert!(text.starts_with("127.0.0.1\tlocalhost\n") && text.ends_with(lines), "{text}");
        assert!(hosts("db", &addresses[..1], &[]).ends_with("ip6-allrouters\n10.0.0.3\tdb\n"));
    }
}
