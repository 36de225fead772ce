//! The file by which a task finds this resolver: `/etc/resolv.conf`. Pure.
//!
//! Source: moby, `libnetwork/internal/resolvconf`.

use std::fmt::Write as _;
use std::net::IpAddr;

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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
}
