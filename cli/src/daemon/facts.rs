//! What can be learned of this host: name, platform, resources, kernel, addresses.

use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rswarm_net::NetworkConfig;
use rswarm_types::node::{NodeNetworkFacts, Platform, Resources};
use rswarm_types::{Labels, NodeDescription};

/// What the node tells the managers of itself.
pub fn describe(hostname: Option<&str>, labels: &Labels) -> NodeDescription {
    NodeDescription {
        hostname: hostname.map_or_else(host_name, str::to_owned),
        platform: platform(),
        resources: resources(),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        engine_labels: labels.clone(),
        // Known once the node is one of a cluster: see [`network_facts`].
        network: NodeNetworkFacts::default(),
    }
}

/// What overlays must know of this host, whose packets leave and arrive at `data_path_addr`.
pub fn network_facts(config: NetworkConfig, data_path_addr: IpAddr) -> NodeNetworkFacts {
    let mut known = NodeNetworkFacts { data_path_addr: Some(data_path_addr), ..NodeNetworkFacts::default() };
    let IpAddr::V4(source) = data_path_addr else { return known };
    match rswarm_net::facts(config, source) {
        Ok(facts) => rswarm_worker::take_up(&mut known, &facts),
        Err(error) => tracing::warn!(%error, "the host's routes cannot be read: overlays may overlap them"),
    }
    known
}

/// What overlays need of the kernel and it lacks, in words.
pub fn overlay_faults(config: &NetworkConfig) -> Vec<String> {
    rswarm_net::missing_for_overlays(config).unwrap_or_else(|error| {
        let error = rswarm_types::error::chain(&error);
        vec![format!("whether overlay networks work on this node cannot be found out: {error}")]
    })
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// In Go's words, as images use them.
pub fn platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned() }
}

/// CPUs this process may use and the host's memory.
pub fn resources() -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    Resources { nano_cpus: cpus as u64 * 1_000_000_000, memory_bytes: memory.unwrap_or(0) * 1024 }
}

pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// `v2` when the unified hierarchy is mounted alone, `hybrid` when it stands beside others, else `v1`.
pub fn cgroup_version() -> &'static str {
    match () {
        () if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => "v2",
        () if Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() => "hybrid",
        () => "v1",
    }
}

/// Interfaces that are no way to reach this host from others: loopback, and bridges made for containers.
fn leads_outside(name: &str, flags: InterfaceFlags) -> bool {
    const LOCAL: [&str; 4] = ["docker", "br-", "veth", "rsw"];
    flags.contains(InterfaceFlags::IFF_UP)
        && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
        && !LOCAL.iter().any(|prefix| name.starts_with(prefix))
}

/// Addresses under which other hosts could reach this one, with their interfaces. IPv4 only as long as nothing else
/// is carried.
pub fn addresses() -> Vec<(String, IpAddr)> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    interfaces
        .filter(|interface| leads_outside(&interface.interface_name, interface.flags))
        .filter_map(|interface| {
            let address = interface.address?.as_sockaddr_in()?.ip();
            Some((interface.interface_name, IpAddr::V4(address)))
        })
        .collect()
}

/// The addresses of the interface `name`, whatever it leads to; IPv4 as above.
pub fn addresses_of(name: &str) -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let own = interfaces.filter(|interface| interface.interface_name == name);
    own.filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip()))).collect()
}

/// Whether an address belongs to this host, loopback included.
pub fn has_address(wanted: IpAddr) -> bool {
    let Ok(mut interfaces) = getifaddrs() else { return false };
    interfaces.any(|interface| {
        let address = interface.address.as_ref();
        let found = address.and_then(|address| match wanted {
            IpAddr::V4(_) => address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())),
            IpAddr::V6(_) => address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())),
        });
        found == Some(wanted)
    })
}
