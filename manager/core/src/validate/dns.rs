//! What tasks are called beside their service's name, and where they look names up.

use std::net::IpAddr;

use rswarm_types::task::DnsConfig;

use super::SpecError;

/// Checks the names that someone is to have on a network: labels of 1 to 63 bytes with dots between them, 253 in all.
///
/// # Errors
/// Names the first one that no resolver would find.
pub fn aliases(aliases: &[String]) -> Result<(), SpecError> {
    match aliases.iter().find(|alias| !is_name(alias)) {
        Some(odd) => Err(SpecError::Alias(odd.clone())),
        None => Ok(()),
    }
}

/// Checks what is to stand in `resolv.conf`.
pub(super) fn settings(dns: &DnsConfig) -> Result<(), SpecError> {
    let is_address = |text: &str| text.split('%').next().is_some_and(|at| at.parse::<IpAddr>().is_ok());
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(odd) = dns.nameservers.iter().find(|at| !is_address(at) || !is_word(at)) {
        return Err(SpecError::Nameserver(odd.clone()));
    }
    // Docker's word for no search domain stands alone.
    let is_none = dns.search == ["."];
    let is_domain = |text: &str| is_name(text.strip_suffix('.').unwrap_or(text));
    if let Some(odd) = dns.search.iter().find(|domain| !is_none && !is_domain(domain)) {
        return Err(SpecError::Search(odd.clone()));
    }
    match dns.options.iter().find(|option| !is_word(option)) {
        Some(odd) => Err(SpecError::DnsOption(odd.clone())),
        None => Ok(()),
    }
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(inner)
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_no_resolver_could_read_are_named() {
        let check = |[nameservers, search, options]: [&[&str]; 3], expected: &str| {
            let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            let dns =
                DnsConfig { nameservers: list(nameservers), search: list(search), options: list(options) };
            let found = settings(&dns).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{found}");
        };
        check([&[], &[], &[]], "");
        let most = [["a"; 63].concat().as_str(); 3].join(".") + "." + &"b".repeat(61);
        check([&["192.0.2.1", "fe80::1%eth0"], &["a.b", "c.d.", "_tcp.x", &most], &["ndots:2"]], "");
        check([&[], &["."], &[]], "");
        let too_long = format!("{most}b");
        for odd in
            ["foo bar", "...", "", ".", "a..b", "a.b\nnameserver 192.0.2.1", &"a".repeat(64), &too_long]
        {
            check(
                [&[], &["x.y", odd], &[]],
                &format!("invalid search domain `{odd}`: expected a domain like"),
            );
        }
        for odd in ["", "here", "192.0.2.1 192.0.2.2", "fe80::1%a b"] {
            check([&[odd], &[], &[]], &format!("invalid name server `{odd}`"));
        }
        check([&[], &[], &["ndots:2\nsearch x"]], "invalid DNS option `ndots:2\nsearch x`");
    }
}
