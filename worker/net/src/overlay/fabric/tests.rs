//! What changes between two overlays is what differs between their pieces, whatever they are.

use proptest::prelude::*;

use super::*;
use crate::overlay::plan::{Action, ObservedOverlay, in_order, plan};
use crate::wireguard::{PeerKeys, TunnelEnd};

fn network(vni: u32, ingress: bool) -> OverlayNetwork {
    let third = (vni - 4096) as u8 * 16;
    OverlayNetwork {
        ipv6_only: vni == 4097,
        id: vni.to_string(),
        twins_from: Ipv4Addr::new(10, 0, third, 0),
        prefix_len: 20,
        gateway: Ipv4Addr::new(10, 0, third, 1),
        ipv6: (vni != 4098)
            .then(|| Cidr { address: Ipv6Addr::new(0xfd00, vni as u16, 0, 0, 0, 0, 0, 1), prefix_len: 64 }),
        mtu: 1450,
        internal: vni == 4098,
        ingress,
        encrypted: vni == 4097,
    }
}

/// Any overlay of up to 3 networks, 3 other nodes and a dozen tasks, some of which name what is not there.
fn any_overlay() -> impl Strategy<Value = Overlay> {
    let networks = prop::collection::btree_set(4096u32..4099, 0..3);
    let peers = prop::collection::btree_map(2u16..6, 1u8..3, 0..4);
    let endpoints = prop::collection::btree_map((4096u32..4099, 2u8..9), 1u16..6, 0..12);
    let services =
        prop::collection::btree_map(4096u32..4099, prop::collection::btree_set(2u8..9, 0..3), 0..3);
    let tunnel = (any::<bool>(), 0u8..2, prop::collection::btree_map(2u16..6, (0u8..2, any::<bool>()), 0..4));
    (networks, peers, endpoints, services, tunnel).prop_map(
        |(networks, peers, endpoints, services, tunnel)| {
            let (has_tunnel, place, keys) = tunnel;
            let end = TunnelEnd { port: 4790, key: PrivateKey([place; 32]), place };
            let keys = keys.into_iter().map(|(node, (place, next))| {
                let key = |of: u8| (of == place || next).then_some(PublicKey([node as u8 + 100 * of; 32]));
                (node, PeerKeys { keys: [key(0), key(1)], place })
            });
            let at = |vni: u32, last: u8| Ipv4Addr::new(10, 0, (vni - 4096) as u8 * 16, last);
            let backends = |vni, some: &BTreeSet<u8>| some.iter().map(|last| at(vni, *last)).collect();
            let published = services.iter().map(|(vni, some)| {
                let to = PublishedPort { target: 80, backends: backends(4096, some), at: BTreeSet::new() };
                ((Protocol::Tcp, (*vni - 4096) as u16 + 8000), to)
            });
            let number = |last: &u8| u32::from(last % 3);
            let callers = endpoints.keys().map(|(vni, last)| ((*vni, at(*vni, *last)), number(last)));
            let restricted =
                services.iter().map(|(vni, some)| ((*vni, at(*vni, 9)), some.iter().map(number).collect()));
            Overlay {
                node: 1,
                source: Some(Ipv4Addr::new(192, 0, 2, 1)),
                data_path_port: 4789,
                peers: peers.iter().map(|(peer, last)| (*peer, Ipv4Addr::new(192, 0, 2, *last))).collect(),
                networks: networks.iter().map(|vni| (*vni, network(*vni, *vni == 4096))).collect(),
                endpoints: endpoints
                    .iter()
                    .map(|((vni, last), node)| ((*vni, at(*vni, *last)), *node))
                    .collect(),
                services: services
                    .iter()
                    .map(|(vni, some)| {
                        let service = VirtualService { id: "web".into(), backends: backends(*vni, some) };
                        ((*vni, at(*vni, 200)), service)
                    })
                    .collect(),
                published: published.collect(),
                callers: callers.collect(),
                restricted: restricted.collect(),
                tunnel: has_tunnel.then_some(end),
                keys: keys.collect(),
                ..Overlay::default()
            }
        },
    )
}

fn all(overlay: &Overlay) -> BTreeSet<Piece> {
    let uplink = Uplink::candidates().next().expect("there are some");
    pieces(&NetworkConfig::default(), overlay, &[], uplink)
}

proptest! {
    #[test]
    fn a_change_is_the_difference(old in any_overlay(), new in any_overlay()) {
        // A tunnel of its own is a deep step, as another address of the node is.
        let new = Overlay { tunnel: old.tunnel, ..new };
        old.validate().unwrap();
        new.validate().unwrap();
        // Else the way between host and helper changes too, and everything is compared with the kernel.
        prop_assume!(old.has_ipv6() == new.has_ipv6());
        let (gone, come) = changes(&old, &new);
        let (before, after) = (all(&old), all(&new));
        let gone: BTreeSet<_> = gone.into_iter().collect();
        let come: BTreeSet<_> = come.into_iter().collect();
        prop_assert_eq!(&gone, &before.difference(&after).cloned().collect());
        prop_assert_eq!(&come, &after.difference(&before).cloned().collect());
    }

    #[test]
    fn a_node_is_sent_to_in_the_clear_or_by_its_key_and_never_in_the_clear_instead(overlay in any_overlay()) {
        let clear: BTreeSet<Ipv4Addr> = overlay.peers.values().copied().collect();
        let pieces = all(&overlay);
        for piece in &pieces {
            let Piece::Forward { link, to: Some(to), .. } = piece else { continue };
            let encrypted = link == "rsx4097";
            prop_assert_eq!(encrypted, !clear.contains(to), "{}", piece);
            let peer = |piece: &Piece| matches!(piece, Piece::TunnelPeer { address, .. } if address == to);
            prop_assert_eq!(encrypted, pieces.iter().any(peer), "{}", piece);
        }
        let vxlan = pieces.iter().find(|piece| matches!(piece, Piece::Vxlan { name, .. } if name == "rsx4097"));
        prop_assert_eq!(vxlan.is_some(), overlay.tunnel().is_some());
    }

    #[test]
    fn a_peer_may_be_anywhere(overlay in any_overlay(), port in 1u16..) {
        let roamed = |piece| match piece {
            Piece::TunnelPeer { key, address, .. } => {
                let endpoint = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), port);
                Piece::TunnelPeer { key, address, endpoint }
            }
            piece => piece,
        };
        let observed = ObservedOverlay {
            pieces: all(&overlay).into_iter().map(roamed).collect(),
            shape: crate::firewall::message::Shape::wanted(&crate::firewall::helper::HELPER),
            ..ObservedOverlay::default()
        };
        prop_assert_eq!(plan(&NetworkConfig::default(), &all(&overlay), &[], &observed), []);
    }

    #[test]
    fn a_settled_kernel_needs_nothing_but_its_firewall(overlay in any_overlay()) {
        let observed = ObservedOverlay {
            pieces: all(&overlay),
            shape: crate::firewall::message::Shape::wanted(&crate::firewall::helper::HELPER),
            ..ObservedOverlay::default()
        };
        prop_assert_eq!(plan(&NetworkConfig::default(), &all(&overlay), &[], &observed), []);
    }

    #[test]
    fn nothing_is_removed_that_was_just_put_in_its_place(old in any_overlay(), new in any_overlay()) {
        let (gone, come) = changes(&old, &new);
        let places: BTreeSet<_> = come.iter().filter_map(Piece::place).collect();
        for step in in_order(Vec::new(), gone, come) {
            if let Action::Remove(piece) = &step.0 {
                prop_assert!(piece.place().is_none_or(|place| !places.contains(&place)), "{step}");
            }
        }
    }
}
