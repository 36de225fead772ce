//! Finding out what the kernel can do, by doing it once in a network namespace made for that and thrown away.

use std::{net::Ipv4Addr, os::fd::AsFd, path::Path};

use crate::{
    error::{KernelError, NetError},
    firewall::{
        Element,
        message::{Change, Shape},
    },
    kernel::Kernel,
    model::{Mac, NetworkConfig},
    netlink::{conntrack, route},
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
        });
        let adds: Vec<Change> = elements.into_iter().map(|element: Element| Change::Add(element)).collect();
        kernel.change_firewall(&adds)?;
        let (_, netfilter) = kernel.sockets();
        told(conntrack::probe(netfilter), "connection tracking over netlink", "CONFIG_NF_CT_NETLINK")
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
