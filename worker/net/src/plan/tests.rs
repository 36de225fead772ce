//! Tables of small differences, and the property that a performed plan leaves nothing to plan.

use proptest::prelude::*;

use super::*;
use crate::testing::{endpoint, network};

fn desired() -> NodeNetwork {
    NodeNetwork {
        networks: vec![network("n0", 0)],
        endpoints: vec![endpoint("a", "n0", "10.90.0.2", &[(8080, 80)])],
        overlay: None,
    }
}

/// What each operation does to the kernel, in small.
fn perform(config: &NetworkConfig, observed: &mut Observed, operation: &Operation) {
    let inside_of = |link: &str, desired: &BTreeMap<String, Inside>| {
        desired.keys().find(|id| config.link_name(id) == link).cloned()
    };
    match operation {
        Operation::EnableForwarding => observed.forwarding = true,
        Operation::EnableForwarding6 => observed.forwarding6 = true,
        Operation::RemoveLink { link } => {
            assert!(observed.links.remove(link).is_some(), "removed a link that is not there: {link}");
            if let Some(id) = inside_of(link, &observed.inside) {
                observed.inside.remove(&id);
            }
        }
        Operation::CreateBridge { bridge, mac } => {
            let link = ObservedLink { kind: "bridge".into(), mac: Some(*mac), ..ObservedLink::default() };
            assert!(observed.links.insert(bridge.clone(), link).is_none(), "created {bridge} twice");
        }
        Operation::SetBridge { bridge, mac, alias, mtu } => {
            let link = observed.links.get_mut(bridge).unwrap();
            (link.up, link.mac, link.alias) = (true, Some(*mac), Some(alias.clone()));
            link.mtu = mtu.unwrap_or(link.mtu);
            observed.neighbours.retain(|(of, ..)| of != bridge);
        }
        Operation::AddAddress { link, address } => {
            assert!(observed.links.get_mut(link).unwrap().addresses.insert(*address));
        }
        Operation::RemoveAddress { link, address } => {
            assert!(observed.links.get_mut(link).unwrap().addresses.remove(address));
        }
        Operation::SettleBridge { bridge, ipv6, answers } => {
            let link = observed.links.get_mut(bridge).unwrap();
            (link.route_localnet, link.ipv6, link.answers) = (true, ipv6.then_some(true), *answers);
            link.addresses6.clear();
            observed.neighbours.retain(|(of, ..)| of != bridge);
        }
        Operation::AddAddress6 { link, address } => {
            let link = observed.links.get_mut(link).unwrap();
            assert!(link.ipv6 == Some(true) && link.addresses6.insert(*address));
        }
        Operation::RemoveAddress6 { link, address } => {
            assert!(observed.links.get_mut(link).unwrap().addresses6.remove(address));
        }
        Operation::AddNeighbour { link, address, mac } => {
            assert_eq!(observed.links[link].ipv6, Some(true));
            observed.neighbours.retain(|(of, at, _)| (of, at) != (link, address));
            observed.neighbours.insert((link.clone(), *address, *mac));
        }
        Operation::RemoveNeighbour { link, address } => {
            observed.neighbours.retain(|(of, at, _)| (of, at) != (link, address));
        }
        Operation::ConfigureInside6 { endpoint, inside } => {
            observed.inside.get_mut(&endpoint.id).unwrap().ipv6 = inside.clone();
        }
        Operation::CreateVeth { link, endpoint, mtu } => {
            let (index, mtu) = (observed.links.len() as u32 + 10, mtu.unwrap_or(1500));
            let near =
                ObservedLink { kind: "veth".into(), peer: Some(index), mtu, ..ObservedLink::default() };
            assert!(observed.links.insert(link.clone(), near).is_none(), "created {link} twice");
            let far = Inside { index, mtu, mac: Some(endpoint.mac()), ..Inside::default() };
            observed.inside.insert(endpoint.id.clone(), far);
        }
        Operation::ConfigureInside { endpoint, address, gateway, mtu } => {
            let inside = observed.inside.get_mut(&endpoint.id).unwrap();
            inside.mtu = mtu.unwrap_or(inside.mtu);
            inside.up = true;
            inside.loopback_up = true;
            inside.addresses = address.iter().copied().collect();
            inside.gateway = *gateway;
        }
        Operation::BuildRules(shape) => {
            observed.elements.retain(|element| shape.keeps(element));
            observed.shape = Shape::wanted(&firewall::host::HOST);
        }
        Operation::RemoveElement(element) => {
            assert!(observed.elements.remove(element), "{element} is not there");
        }
        Operation::AddElement(element) => {
            assert!(!observed.elements.iter().any(|other| other.same_key(element)), "no room for {element}");
            observed.elements.insert(element.clone());
        }
        Operation::SetVeth { link, bridge, alias, mtu, isolated } => {
            assert!(observed.links.contains_key(bridge));
            let link = observed.links.get_mut(link).unwrap();
            (link.mtu, link.isolated) = (mtu.unwrap_or(link.mtu), *isolated);
            (link.up, link.master, link.alias) = (true, Some(bridge.clone()), Some(alias.clone()));
            link.hairpin = true;
        }
        Operation::ForgetAddress { .. } | Operation::ForgetPort { .. } | Operation::Overlay(_) => {}
    }
}

fn perform_all(config: &NetworkConfig, observed: &mut Observed, operations: &[Operation]) {
    for operation in operations {
        perform(config, observed, operation);
    }
}

/// A kernel that is as `node` wants it.
fn settled(config: &NetworkConfig, node: &NodeNetwork) -> Observed {
    let mut observed = Observed::default();
    let operations = plan(config, node, &observed);
    perform_all(config, &mut observed, &operations);
    observed
}

#[test]
fn from_nothing_in_this_order() {
    let config = NetworkConfig::default();
    let link = config.link_name("a");
    let told: Vec<_> =
        plan(&config, &desired(), &Observed::default()).iter().map(ToString::to_string).collect();
    let expected = [
        "enable IPv4 forwarding".to_owned(),
        "create bridge `rsw-br0`".into(),
        "enable route_localnet and disable IPv6 on `rsw-br0`".into(),
        "bring up bridge `rsw-br0`".into(),
        "add address `10.90.0.1/24` to `rsw-br0`".into(),
        format!("create veth `{link}` to `eth0` of endpoint `a`"),
        "configure `eth0` of endpoint `a`".into(),
        "build the nft tables".into(),
        "add nft element: bridges rsw-br0".into(),
        "add nft element: masqueraded rsw-br0".into(),
        "add nft element: within rsw-br0".into(),
        "add nft element: member 10.90.0.2 of rsw-br0".into(),
        "add nft element: published tcp/8080 to 10.90.0.2:80".into(),
        format!("add nft element: ports {link}"),
        format!("add nft element: mac 02:42:0a:5a:00:02 behind {link}"),
        format!("add nft element: source 10.90.0.2 behind {link}"),
        format!("bring up veth `{link}` on bridge `rsw-br0`"),
    ];
    assert_eq!(told, expected);
}

/// Plans for a settled node after `spoil`.
fn check(spoil: impl FnOnce(&mut NodeNetwork, &mut Observed), expected: &[&str]) {
    let config = NetworkConfig::default();
    let mut node = desired();
    let mut observed = settled(&config, &node);
    spoil(&mut node, &mut observed);
    let link = config.link_name("a");
    let operations = plan(&config, &node, &observed);
    let told: Vec<_> =
        operations.iter().map(|operation| operation.to_string().replace(&link, "LINK")).collect();
    assert_eq!(told, expected);
    perform_all(&config, &mut observed, &operations);
    assert_eq!(plan(&config, &node, &observed), [], "a performed plan leaves nothing to plan");
}

#[test]
fn each_difference_has_its_repair() {
    const NEW_VETH: [&str; 4] = [
        "remove link `LINK`",
        "create veth `LINK` to `eth0` of endpoint `a`",
        "configure `eth0` of endpoint `a`",
        "bring up veth `LINK` on bridge `rsw-br0`",
    ];
    let veth = NetworkConfig::default().link_name("a");
    check(|_, _| {}, &[]);
    check(|_, o| o.forwarding = false, &["enable IPv4 forwarding"]);
    check(|_, o| o.links.get_mut("rsw-br0").unwrap().up = false, &["bring up bridge `rsw-br0`"]);
    check(|_, o| o.links.get_mut("rsw-br0").unwrap().alias = None, &["bring up bridge `rsw-br0`"]);
    check(|_, o| o.links.get_mut(&veth).unwrap().master = None, &[NEW_VETH[3]]);
    check(|_, o| o.links.get_mut(&veth).unwrap().up = false, &[NEW_VETH[3]]);
    check(|_, o| o.links.get_mut(&veth).unwrap().hairpin = false, &[NEW_VETH[3]]);
    check(|_, o| o.links.get_mut(&veth).unwrap().peer = Some(99), &NEW_VETH);
    check(|_, o| o.inside.get_mut("a").unwrap().mac = None, &NEW_VETH);
    check(|_, o| o.inside.get_mut("a").unwrap().gateway = None, &[NEW_VETH[2]]);
    check(|_, o| o.inside.get_mut("a").unwrap().loopback_up = false, &[NEW_VETH[2]]);
    check(|_, o| drop(o.inside.remove("a")), &NEW_VETH);
    check(
        |n, _| n.networks[0].mtu = Some(1400),
        &["bring up bridge `rsw-br0`", "configure `eth0` of endpoint `a`", NEW_VETH[3]],
    );
    check(
        |n, _| n.networks[0].separate = true,
        &[
            "enable route_localnet, proxy_arp_pvlan and disable IPv6 on `rsw-br0`",
            "remove nft element: within rsw-br0",
            NEW_VETH[3],
        ],
    );
    check(
        |n, _| n.endpoints[0].ports[0].target = 81,
        &[
            "remove nft element: published tcp/8080 to 10.90.0.2:80",
            "add nft element: published tcp/8080 to 10.90.0.2:81",
        ],
    );
    check(
        |n, _| n.endpoints.clear(),
        &[
            "remove link `LINK`",
            "remove nft element: member 10.90.0.2 of rsw-br0",
            "remove nft element: published tcp/8080 to 10.90.0.2:80",
            "remove nft element: ports LINK",
            "remove nft element: mac 02:42:0a:5a:00:02 behind LINK",
            "remove nft element: source 10.90.0.2 behind LINK",
            "forget connections of `10.90.0.2`",
        ],
    );
    check(
        |_, o| {
            let foreign = ObservedLink { kind: "veth".into(), up: true, ..ObservedLink::default() };
            o.links.insert("rsvdocker".into(), foreign.clone());
            o.links.insert("docker0".into(), ObservedLink { kind: "bridge".into(), ..foreign });
        },
        &[],
    );
}

/// The sample with IPv6.
fn dual() -> NodeNetwork {
    let mut node = desired();
    node.networks[0].ipv6 = Some(gateway6(0));
    node.endpoints[0].ipv6 = Some(address6(0, 2));
    node
}

fn gateway6(network: u16) -> Cidr6 {
    Cidr { address: address6(network, 1), prefix_len: 64 }
}

fn address6(network: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, last)
}

#[test]
fn each_difference_in_ipv6_has_its_repair() {
    const SETTLE: [&str; 3] = [
        "enable route_localnet and enable IPv6 on `rsw-br0`",
        "add address `fd00::1/64` to `rsw-br0`",
        "add neighbour `fd00::2` at 02:42:0a:5a:00:02 on `rsw-br0`",
    ];
    const INSIDE: &str = "configure IPv6 of `eth0` of endpoint `a`";
    let check = |spoil: &dyn Fn(&mut NodeNetwork, &mut Observed), expected: &[&str]| {
        let (config, mut node) = (NetworkConfig::default(), dual());
        let mut observed = settled(&config, &node);
        spoil(&mut node, &mut observed);
        let operations = plan(&config, &node, &observed);
        let told: Vec<_> = operations.iter().map(ToString::to_string).collect();
        assert_eq!(told, expected);
        perform_all(&config, &mut observed, &operations);
        assert_eq!(plan(&config, &node, &observed), [], "a performed plan leaves nothing to plan");
    };
    fn bridge(observed: &mut Observed) -> &mut ObservedLink {
        observed.links.get_mut("rsw-br0").unwrap()
    }
    check(&|_, _| {}, &[]);
    check(&|_, o| o.forwarding6 = false, &["enable IPv6 forwarding"]);
    check(&|_, o| bridge(o).ipv6 = None, &SETTLE);
    check(&|_, o| bridge(o).ipv6 = Some(false), &SETTLE);
    check(&|_, o| bridge(o).alias = None, &["bring up bridge `rsw-br0`", SETTLE[2]]);
    check(&|_, o| bridge(o).addresses6.clear(), &[SETTLE[1]]);
    check(
        &|_, o| bridge(o).addresses6.extend([gateway6(7)]),
        &["remove address `fd00:7::1/64` from `rsw-br0`"],
    );
    check(&|_, o| o.neighbours.clear(), &[SETTLE[2]]);
    check(
        &|_, o| {
            let mac = Mac([2; 6]);
            o.neighbours = BTreeSet::from([2, 9].map(|last| ("rsw-br0".into(), address6(0, last), mac)));
        },
        &["remove neighbour `fd00::9` from `rsw-br0`", SETTLE[2], "forget connections of `fd00::9`"],
    );
    check(&|_, o| o.inside.get_mut("a").unwrap().ipv6.routes.clear(), &[INSIDE]);
    check(
        &|_, o| {
            let stranger = Cidr { address: address6(0, 9), prefix_len: 128 };
            o.inside.get_mut("a").unwrap().ipv6.addresses.insert(stranger);
        },
        &[INSIDE],
    );
    check(
        &|n, _| n.networks[0].ipv6_only = true,
        &[
            "remove address `10.90.0.1/24` from `rsw-br0`",
            "configure `eth0` of endpoint `a`",
            "remove nft element: member 10.90.0.2 of rsw-br0",
            "remove nft element: published tcp/8080 to 10.90.0.2:80",
            &format!(
                "remove nft element: source 10.90.0.2 behind {}",
                NetworkConfig::default().link_name("a")
            ),
        ],
    );
    check(
        &|n, _| {
            n.networks[0].ipv6 = None;
            n.endpoints[0].ports.clear();
        },
        &[
            "enable route_localnet and disable IPv6 on `rsw-br0`",
            "remove nft element: member fd00::2 of rsw-br0",
            "remove nft element: published tcp/8080 to 10.90.0.2:80",
            "remove nft element: published tcp/8080 to [fd00::2]:80",
            &format!("remove nft element: source fd00::2 behind {}", NetworkConfig::default().link_name("a")),
        ],
    );
}

/// Any node of up to 3 networks and 12 endpoints.
fn any_node() -> impl Strategy<Value = NodeNetwork> {
    let options = (any::<bool>(), prop::option::of(1280u32..1300));
    let networks = prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), options), 1..4);
    let endpoints = prop::collection::btree_map(2u8..14, (0usize..3, any::<bool>(), 1u16..4), 0..12);
    (networks, endpoints).prop_map(|(networks, endpoints)| {
        let networks: Vec<_> = (0u8..)
            .zip(networks)
            .map(|(number, (masquerade, internal, ipv6, (separate, mtu)))| BridgeNetwork {
                masquerade,
                internal,
                separate,
                mtu,
                // The two flags that have nothing to do with each other make a third.
                ipv6_only: ipv6 && masquerade != internal,
                ipv6: ipv6.then(|| gateway6(number.into())),
                ..network(&format!("n{number}"), number)
            })
            .collect();
        let endpoints = endpoints
            .into_iter()
            .map(|(number, (net, published, target))| {
                let net = net % networks.len();
                let ports = [(8000 + u16::from(number), target)];
                let ports = if published { &ports[..] } else { &[] };
                let ipv6 = Some(address6(net as u16, number.into()));
                let address = format!("10.90.{net}.{number}");
                Endpoint { ipv6, ..endpoint(&format!("e{number}"), &format!("n{net}"), &address, ports) }
            })
            .collect();
        NodeNetwork { networks, endpoints, overlay: None }
    })
}

proptest! {
    #[test]
    fn any_change_settles_in_one_pass(before in any_node(), after in any_node()) {
        let config = NetworkConfig::default();
        before.validate().unwrap();
        after.validate().unwrap();
        let mut observed = settled(&config, &before);
        prop_assert_eq!(plan(&config, &before, &observed), []);
        let operations = plan(&config, &after, &observed);
        perform_all(&config, &mut observed, &operations);
        prop_assert_eq!(plan(&config, &after, &observed), []);
        let nothing = plan(&config, &NodeNetwork::default(), &observed);
        perform_all(&config, &mut observed, &nothing);
        prop_assert!(observed.links.is_empty() && observed.elements.is_empty());
    }
}
