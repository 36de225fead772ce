//! Finding out what the kernel can do, by doing it once in a network namespace made for that and thrown away.

use std::{net::Ipv4Addr, os::fd::AsFd, path::Path};

use crate::{
    error::{KernelError, NetError},
    firewall::{
        Backends, Balancer, Element,
        helper::{HELPER, OWN_MARK, PUBLISHED},
        message::{self, Change, Shape},
    },
    kernel::{Kernel, index_of},
    model::{Mac, NetworkConfig, Protocol},
    netlink::{
        Socket, conntrack,
        forwarding::{self, Forward, MarkRule},
        route::{self, LinkChange},
    },
    netns,
};

/// Checks every kernel feature that the node's network rests on.
///
/// # Errors
/// `MissingFeature`, naming the first that is not there; `NotPermitted` or `Namespace` without privilege.
pub(crate) fn probe(config: &NetworkConfig) -> Result<(), NetError> {
    netns::in_new(|| {
        let mut kernel = Kernel::open(config.clone())?;
        let (route, _) = kernel.sockets();
        let bridge = route::create_bridge(route, "probe", Mac::from_address(Ipv4Addr::new(10, 0, 0, 1)));
        told(bridge, "bridges", "CONFIG_BRIDGE")?;
        let namespace = netns::open(Path::new("/proc/thread-self/ns/net"))?;
        let peer = route::Peer { name: "probe1", mac: None, mtu: None, namespace: namespace.as_fd() };
        told(route::create_veth(route, "probe0", &peer), "veth devices", "CONFIG_VETH")?;
        // The rule set itself is the probe of everything it uses: sets, maps, fib, nat, masquerade, both families.
        let changes = [Change::Rules(Shape::default())];
        kernel.change_firewall(&changes).map_err(|error| match error {
            NetError::Kernel { action, source } => {
                let (feature, option) = firewall_feature(&action);
                tracing::warn!(%action, error = %source, "the kernel refused the probe");
                NetError::MissingFeature { feature, option, source }
            }
            other => other,
        })?;
        let elements = crate::firewall::network_elements(&crate::BridgeNetwork {
            id: "probe".into(),
            bridge: "probe".into(),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            prefix_len: 24,
            subnet: Ipv4Addr::new(10, 0, 0, 0),
            masquerade: true,
            internal: false,
            ipv6: None,
            ipv6_only: false,
            mtu: None,
            separate: false,
        });
        let adds: Vec<Change> = elements.into_iter().map(|element: Element| Change::Add(element)).collect();
        kernel.change_firewall(&adds)?;
        let (_, netfilter) = kernel.sockets();
        told(conntrack::probe(netfilter), "connection tracking over netlink", "CONFIG_NF_CT_NETLINK")
    })?
}

/// One thing that overlays rest on: its name, the kernel's options for it, and what does not work without it.
struct Need {
    feature: &'static str,
    option: &'static str,
    without: &'static str,
}

const NO_OVERLAYS: &str = "overlay networks and ports published on every node do not work on this node";

impl Need {
    fn met(&self, result: Result<(), KernelError>) -> Option<String> {
        let error = result.err()?;
        let Self { feature, option, without } = self;
        Some(format!("this kernel lacks {feature} ({option}; it says: {error}): {without}"))
    }
}

/// Whether a process in the network namespace of this thread has this UDP port, so that no VXLAN can have it: one is tried.
/// The VXLANs of others are not in its way.
///
/// # Errors
/// `NotPermitted` or `Namespace` without privilege.
pub fn is_data_path_taken(port: u16) -> Result<bool, NetError> {
    let failed = |error| NetError::kernel("try the data path's port", error);
    let mut host = Socket::open(libc::NETLINK_ROUTE).map_err(failed)?;
    netns::in_new(|| {
        let namespace = netns::open(Path::new("/proc/thread-self/ns/net"))?;
        let mut inside = Socket::open(libc::NETLINK_ROUTE).map_err(failed)?;
        let tunnel = route::Tunnel { vni: 0xff_ffff, local: Ipv4Addr::LOCALHOST, port };
        route::create_vxlan(&mut host, "probe", &tunnel, 1450, namespace.as_fd()).map_err(failed)?;
        // The port is bound when the link comes up.
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let result = route::set_link(&mut inside, "probe", &up);
        route::delete_link(&mut inside, "probe").map_err(failed)?;
        Ok(result.is_err_and(|error| error.errno == libc::EADDRINUSE))
    })?
}

/// Tries all that overlays rest on beside what [`probe`] has seen. Returns what is missing, and what will not work for
/// it, in words.
///
/// # Errors
/// `NotPermitted` or `Namespace` without privilege.
pub(crate) fn missing_for_overlays(config: &NetworkConfig) -> Result<Vec<String>, NetError> {
    netns::in_new(|| {
        let mut kernel = Kernel::open(config.clone())?;
        let namespace = netns::open(Path::new("/proc/thread-self/ns/net"))?;
        let (route, netfilter) = kernel.sockets();
        let (here, there) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mac = Mac::from_address(there);
        let mut index = 0;
        let bridge = route::create_bridge(route, "probe", Mac::from_address(here))
            .and_then(|()| route::make_plain(route, "probe"))
            .and_then(|()| index_of(route, "probe"))
            .and_then(|found| {
                index = found;
                forwarding::answer_at_once(route, index)?;
                forwarding::set_neighbour(route, index, there.into(), mac)
            });
        let peer = route::Peer { name: "probe1", mac: None, mtu: None, namespace: namespace.as_fd() };
        let port = route::create_veth(route, "probe0", &peer).and_then(|()| {
            let change = LinkChange { master: Some(index), ..LinkChange::default() };
            route::set_link(route, "probe0", &change)?;
            route::close_port(route, "probe0", true)
        });
        let tunnel = route::Tunnel { vni: 1, local: Ipv4Addr::LOCALHOST, port: 4789 };
        let vxlan = route::create_vxlan(route, "probe2", &tunnel, 1450, namespace.as_fd()).and_then(|()| {
            let forward = Forward { link: index_of(route, "probe2")?, mac, to: Some(here) };
            forwarding::set_forward(route, &forward)
        });
        let rule = MarkRule { ipv6: false, priority: 1000, mark: 1, mask: OWN_MARK, table: 1001 };
        let rule = forwarding::add_rule(route, &rule);
        let mut change = |change: Change| {
            message::apply(netfilter, &config.table, &HELPER, &[change]).map_err(|(what, error)| {
                tracing::warn!(%what, %error, "the kernel refused the probe of the overlays");
                error
            })
        };
        let rules = change(Change::Rules(Shape::default()));
        let backends = Backends::Port(Protocol::Tcp, 80, [there.into()].into());
        let balancer = Balancer { chain: format!("{PUBLISHED}probe"), backends };
        // Without the tables it would only fail for want of them.
        let balancer = if rules.is_ok() { change(Change::Balance(balancer)) } else { Ok(()) };
        let need = |feature, option, without| Need { feature, option, without };
        let missing = [
            need("bridges that answer for their subnet", "CONFIG_BRIDGE", NO_OVERLAYS).met(bridge),
            need("veth devices as isolated ports of a bridge", "CONFIG_VETH and CONFIG_BRIDGE", NO_OVERLAYS)
                .met(port),
            need("VXLAN devices", "CONFIG_VXLAN", NO_OVERLAYS).met(vxlan),
            need(
                "policy routing",
                "CONFIG_IP_MULTIPLE_TABLES",
                "ports published on every node get no answer when another node has the task",
            )
            .met(rule),
            need(
                "what the rules of the overlays need of nftables",
                "CONFIG_NFT_CT, CONFIG_NFT_NAT, CONFIG_NFT_REJECT and others",
                NO_OVERLAYS,
            )
            .met(rules),
            need(
                "drawing by chance in nftables",
                "CONFIG_NFT_NUMGEN",
                "services' addresses and ports published on every node do not work on this node",
            )
            .met(balancer),
        ];
        Ok(missing.into_iter().flatten().collect())
    })?
}

fn told(
    result: Result<(), KernelError>,
    feature: &'static str,
    option: &'static str,
) -> Result<(), NetError> {
    result.map_err(|source| match source.errno {
        libc::EPERM => NetError::NotPermitted { action: format!("try {feature}"), source },
        _ => NetError::MissingFeature { feature, option, source },
    })
}

/// What is missing, by the part of the rule set that was refused.
fn firewall_feature(action: &str) -> (&'static str, &'static str) {
    let has = |word: &str| action.contains(word);
    if has("nft table") {
        (
            "nftables of the families inet and bridge",
            "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and CONFIG_NF_TABLES_BRIDGE",
        )
    } else if has("create nft chain `prerouting`")
        || has("create nft chain `output`")
        || has("create nft chain `postrouting`")
    {
        ("nftables address translation chains", "CONFIG_NFT_NAT and CONFIG_NF_TABLES_BRIDGE")
    } else if has("rule to nft chain `prerouting`") || has("rule to nft chain `output`") {
        ("nftables destination translation by map", "CONFIG_NFT_NAT and CONFIG_NFT_FIB_INET")
    } else if has("rule to nft chain `postrouting`") {
        ("nftables masquerading", "CONFIG_NFT_MASQ and CONFIG_NFT_CT")
    } else {
        ("nftables", "CONFIG_NF_TABLES")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_will_not_work() {
        let need = Need { feature: "VXLAN devices", option: "CONFIG_VXLAN", without: NO_OVERLAYS };
        assert_eq!(need.met(Ok(())), None);
        let told = need.met(Err(KernelError { errno: libc::EOPNOTSUPP, reason: None })).unwrap();
        assert!(told.starts_with("this kernel lacks VXLAN devices (CONFIG_VXLAN; it says: "), "{told}");
        assert!(told.ends_with("do not work on this node"), "{told}");
    }
}
