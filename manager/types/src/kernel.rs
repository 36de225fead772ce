//! Names the kernel knows, as users write them: signals, limits and settings (sysctls). The manager refuses with these what the
//! worker could not carry out.

/// Source: linux/signal.h, the numbers most architectures share; the first has number 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// The number of a signal: `SIGTERM`, `term`, `15`, `RTMIN+3`. `None` if there is no such signal.
pub fn signal(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    if let Some(number) = (1..).zip(SIGNALS).find_map(|(number, known)| (known == name).then_some(number)) {
        return Some(number);
    }
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok().filter(|n| *n >= 0) }
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => SIGRTMIN.checked_add(offset(rest, '+')?)?,
        (_, Some(rest)) => SIGRTMAX.checked_sub(offset(rest, '-')?)?,
        (None, None) => return None,
    };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

/// Resources that can be limited, without `RLIMIT_`. Source: setrlimit(2).
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// The settings a container has of its own, in words. The last belong to its network and so only to one that has its
/// own.
pub const OWN_SYSCTLS: &str = "kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.*, net.*";

/// Whether a setting is the container's own, so that setting it does not reach the rest of the node.
///
/// Source: OCI runtime-spec; namespaces(7): what belongs to the ipc and the network namespace.
pub fn is_own_sysctl(name: &str, own_network: bool) -> bool {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    // Both spellings name the same file.
    let dotted = name.replace('/', ".");
    let own = IPC.contains(&dotted.as_str())
        || dotted.starts_with("fs.mqueue.")
        || (own_network && dotted.starts_with("net."));
    own && !dotted.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [
            ("SIGHUP", Some(1)),
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SYS", Some(31)),
            ("15", Some(15)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("0", None),
            ("65", None),
            ("", None),
            ("SIGNOPE", None),
            ("RTMIN+99", None),
            ("RTMIN+2147483647", None),
            ("RTMIN+-1", None),
            ("RTMIN3", None),
            ("RTMAX+1", None),
        ] {
            assert_eq!(signal(text), expected, "{text}");
        }
    }

    #[test]
    fn only_settings_of_the_container_are_its_own() {
        for (name, own_network, expected) in [
            ("net.ipv4.ip_forward", true, true),
            ("net/ipv4/ip_forward", true, true),
            ("net.ipv4.ip_forward", false, false),
            ("kernel.shmmax", false, true),
            ("fs.mqueue.msg_max", true, true),
            ("kernel.panic", true, false),
            ("vm.swappiness", true, false),
            ("net.../../kernel/panic", true, false),
        ] {
            assert_eq!(is_own_sysctl(name, own_network), expected, "{name} {own_network}");
        }
    }
}
