//! IPv6 of links, of the host as a router, and inside containers.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{index_of, is_on, socket_inside, switch_on};
use crate::{
    error::{KernelError, NetError},
    model::{Cidr6, Endpoint, NodeNetwork},
    netlink::{
        Socket,
        forwarding::{self, Route},
        route,
    },
    netns,
    overlay::fabric::Uplink,
    plan::Inside6,
};

const FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const DISABLE: &str = "disable_ipv6";
/// Of links that have the addresses that they are given, and no others. The last one switches it on.
const SETTINGS: [(&str, &str); 5] = [
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    // No link-local address: nobody is to be reached by one, and redirects are not sent without.
    ("addr_gen_mode", "1"),
    (DISABLE, "0"),
];

/// Whether this kernel has IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether this thread's network namespace forwards IPv6.
pub(super) fn forwards() -> bool {
    is_on(Path::new(FORWARDING))
}

/// Has the host forward IPv6. A host that does so no longer minds what routers say of themselves, unless it is told to:
/// where it did, it goes on doing so. Source: Linux `Documentation/networking/ip-sysctl.rst`, `accept_ra`.
pub(super) fn enable_forwarding() -> Result<(), NetError> {
    let path = Path::new("/proc/sys/net/ipv6/conf");
    let failed = |source| NetError::Sysctl { path: path.to_owned(), value: "2", source };
    for link in fs::read_dir(path).map_err(failed)? {
        let path = link.map_err(failed)?.path().join("accept_ra");
        if is_on(&path) {
            fs::write(&path, "2").map_err(|source| NetError::Sysctl { path, value: "2", source })?;
        }
    }
    switch_on(Path::new(FORWARDING))
}

/// Whether a host with these IPv6 addresses can reach others by them.
pub(super) fn has_way_out(addresses: &BTreeSet<Cidr6>, node: &NodeNetwork) -> bool {
    let ours = |cidr: Cidr6| node.networks.iter().any(|network| network.ipv6 == Some(cidr));
    let others = addresses.iter().filter(|cidr| !ours(**cidr) && **cidr != Uplink::HOST6);
    others.into_iter().any(|cidr| !cidr.address.is_loopback())
}

/// Switches a link's IPv6 on in the namespace of the calling thread: it has the addresses that it is given, and no others.
pub(crate) fn enable_ipv6(link: &str) -> Result<(), NetError> {
    SETTINGS.iter().try_for_each(|(name, value)| set(link, name, value))
}

/// Keeps a bridge out of IPv6, or leaves it the addresses that it is given. Those that it has go in either case.
pub(super) fn settle_bridge(bridge: &str, ipv6: bool) -> Result<(), NetError> {
    if !has_ipv6() {
        return Ok(());
    }
    set(bridge, DISABLE, "1")?;
    if ipv6 { enable_ipv6(bridge) } else { Ok(()) }
}

/// What a bridge has to do with IPv6, see [`ObservedLink::ipv6`](crate::plan::ObservedLink::ipv6).
pub(super) fn of_bridge(bridge: &str) -> Option<bool> {
    let has = |(name, value): &(&str, &str)| {
        fs::read_to_string(setting(bridge, name)).is_ok_and(|found| found.trim() == *value)
    };
    let on = has_ipv6() && !has(&(DISABLE, "1"));
    on.then(|| SETTINGS.iter().all(has))
}

fn setting(link: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{link}/{name}"))
}

fn set(link: &str, name: &str, value: &'static str) -> Result<(), NetError> {
    let path = setting(link, name);
    fs::write(&path, value).map_err(|source| NetError::Sysctl { path, value, source })
}

/// What an interface inside a container has of IPv6.
pub(super) fn read_inside(socket: &mut Socket, index: u32) -> Result<Inside6, KernelError> {
    if !has_ipv6() {
        return Ok(Inside6::default());
    }
    let addresses = route::addresses6(socket)?.into_iter().filter(|(of, _)| *of == index);
    let neighbours = forwarding::neighbours(socket)?.into_iter().filter(|at| at.link == index && at.lasting);
    let neighbours = neighbours.filter_map(|neighbour| match neighbour.address {
        IpAddr::V6(address) => Some((address, neighbour.mac)),
        IpAddr::V4(_) => None,
    });
    let routes = forwarding::routes(socket)?.into_iter().filter(|route| route.link == index);
    Ok(Inside6 {
        addresses: addresses.map(|(_, cidr)| cidr).collect(),
        neighbours: neighbours.collect(),
        routes: routes.filter_map(|route| Some((route.to, route.via?))).collect(),
    })
}

/// Gives a task's end what it shall have of IPv6, and takes other addresses from it.
pub(crate) fn configure_inside6(endpoint: &Endpoint, inside: &Inside6) -> Result<(), NetError> {
    let name = endpoint.interface_name.as_str();
    netns::run_in_netns(&netns::of_process(endpoint.netns_pid), || enable_ipv6(name))??;
    let mut socket = socket_inside(endpoint)?;
    let mut set = || -> Result<(), KernelError> {
        let index = index_of(&mut socket, name)?;
        let all = route::addresses6(&mut socket)?.into_iter().filter(|(of, _)| *of == index);
        for (_, surplus) in all.filter(|(_, cidr)| !inside.addresses.contains(cidr)) {
            route::delete_address(&mut socket, index, surplus)?;
        }
        for address in &inside.addresses {
            route::add_address6(&mut socket, index, *address)?;
        }
        for (address, mac) in &inside.neighbours {
            forwarding::set_neighbour(&mut socket, index, (*address).into(), *mac)?;
        }
        for (to, via) in &inside.routes {
            let table = libc::RT_TABLE_MAIN.into();
            forwarding::set_route(&mut socket, &Route { table, to: *to, via: Some(*via), link: index })?;
        }
        Ok(())
    };
    set().map_err(|error| NetError::kernel(format!("configure IPv6 of endpoint `{}`", endpoint.id), error))
}
