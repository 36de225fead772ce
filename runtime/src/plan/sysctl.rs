//! Kernel settings of the container's namespaces. Pure.
//!
//! Source: OCI runtime-spec, "Sysctl"; `namespaces(7)` for what belongs to which namespace.

use std::ops::RangeInclusive;

use oci_spec::runtime::Linux;

use super::namespaces::Namespaces;
use super::{Inside, PlanError};

/// Sysctls that belong to the IPC namespace, beside all of `fs.mqueue`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

const INT: RangeInclusive<u64> = 0..=i32::MAX as u64;
const LONG: RangeInclusive<u64> = 0..=u64::MAX;

/// What is known of values: how many numbers out of which range there may be. The kernel knows the rest.
///
/// Source: Linux `ipc/ipc_sysctl.c`, `ipc/mq_sysctl.c`, `net/ipv4/sysctl_net_ipv4.c`, `net/core/sysctl_net_core.c`.
const NUMBERS: [(&str, usize, RangeInclusive<u64>); 19] = [
    ("kernel.msgmax", 1, INT),
    ("kernel.msgmnb", 1, INT),
    ("kernel.msgmni", 1, INT),
    ("kernel.sem", 4, INT),
    ("kernel.shmall", 1, LONG),
    ("kernel.shmmax", 1, LONG),
    ("kernel.shmmni", 1, INT),
    ("kernel.shm_rmid_forced", 1, 0..=1),
    ("fs.mqueue.msg_default", 1, INT),
    ("fs.mqueue.msg_max", 1, INT),
    ("fs.mqueue.msgsize_default", 1, INT),
    ("fs.mqueue.msgsize_max", 1, INT),
    ("fs.mqueue.queues_max", 1, INT),
    ("net.core.somaxconn", 1, INT),
    ("net.ipv4.ip_forward", 1, INT),
    ("net.ipv4.ip_local_port_range", 2, 1..=65_535),
    ("net.ipv4.ip_unprivileged_port_start", 1, 0..=65_535),
    ("net.ipv4.ping_group_range", 2, LONG),
    ("net.ipv4.tcp_syncookies", 1, 0..=2),
];

/// Up to `count` of them, also as `0x10` and `010`.
fn are_numbers(value: &str, count: usize, range: &RangeInclusive<u64>) -> bool {
    let number = |word: &str| match (word.strip_prefix("0x"), word.strip_prefix('0')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (None, Some(digits)) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
        _ => word.parse().ok(),
    };
    let words: Vec<&str> = value.split_ascii_whitespace().collect();
    let one_of = |word: &&str| number(word).is_some_and(|number| range.contains(&number));
    (1..=count).contains(&words.len()) && words.iter().all(one_of)
}

/// A name with dots between its parts, and slashes for dots in them: which of the two comes first in `name` separates.
///
/// Source: `sysctl(8)`, `sysctl.d(5)`.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => path(name),
        _ => name.to_owned(),
    }
}

/// Where the kernel shows the setting of that name, below `/proc/sys`.
pub fn path(name: &str) -> String {
    let swapped = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swapped).collect()
}

pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
    inside: &mut Vec<Inside>,
) -> Result<(), PlanError> {
    let mut all: Vec<_> = linux.sysctl().iter().flatten().collect();
    all.sort();
    for (name, value) in all {
        let field = "linux.sysctl";
        let asked = name;
        let name = &dotted(asked);
        if name.contains('\0') || name.split('.').any(|part| part.trim_matches('/').is_empty()) {
            let reason = "expected names separated by dots, or by slashes".to_owned();
            return Err(PlanError::Invalid { field: field.into(), value: asked.clone(), reason });
        }
        if value.contains('\0') {
            let reason = format!("the value of {name} contains a zero byte");
            return Err(PlanError::Invalid {
                field: field.into(),
                value: value.replace('\0', "\\0"),
                reason,
            });
        }
        if let Some((_, count, range)) = NUMBERS.iter().find(|(known, ..)| known == name)
            && !are_numbers(value, *count, range)
        {
            let what = if *count == 1 { "a number" } else { "numbers" };
            let reason = format!("expected {what} from {} to {} for {name}", range.start(), range.end());
            return Err(PlanError::Invalid {
                field: field.into(),
                value: value.escape_debug().to_string(),
                reason,
            });
        }
        if name.starts_with("net.") {
            namespaces.require(libc::CLONE_NEWNET, field, name)?;
        } else if name.starts_with("fs.mqueue.") || IPC_SYSCTLS.contains(&name.as_str()) {
            namespaces.require(libc::CLONE_NEWIPC, field, name)?;
        } else if name == "kernel.hostname" {
            let reason = "as with runc, expected `hostname` for that".to_owned();
            return Err(PlanError::Invalid { field: field.into(), value: name.clone(), reason });
        } else if name == "kernel.domainname" {
            namespaces.require(libc::CLONE_NEWUTS, field, name)?;
        } else {
            let reason = "it is not a setting of a namespace, so it would change the host".to_owned();
            return Err(PlanError::Invalid { field: field.into(), value: name.clone(), reason });
        }
        inside.push(Inside::Sysctl { name: name.clone(), value: value.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_dots_or_slashes_between_their_parts() {
        for (name, found, at) in [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.5/forwarding",
                "net.ipv4.conf.eth0/5.forwarding",
                "net/ipv4/conf/eth0.5/forwarding",
            ),
            (
                "net.ipv4.conf.eth0/5.forwarding",
                "net.ipv4.conf.eth0/5.forwarding",
                "net/ipv4/conf/eth0.5/forwarding",
            ),
        ] {
            assert_eq!((dotted(name).as_str(), path(found).as_str()), (found, at), "{name}");
        }
    }

    #[test]
    fn numbers_are_read_as_the_kernel_does() {
        for (value, count, good) in [
            ("1", 1, true),
            (" 1\n", 1, true),
            ("0x7fffffff", 1, true),
            ("010", 1, true),
            ("250 32000 32 128", 4, true),
            ("250\t32000", 4, true),
            ("1 2", 1, false),
            ("", 1, false),
            ("yes", 1, false),
            ("-1", 1, false),
            ("1.5", 1, false),
            ("2147483648", 1, false),
            ("1 2 3 4 5", 4, false),
        ] {
            assert_eq!(are_numbers(value, count, &INT), good, "{value:?}");
        }
    }
}
