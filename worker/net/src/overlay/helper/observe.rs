//! What is in the helper namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use super::{Helper, wrong_settings, wrong_settings_of};
use crate::{
    error::{KernelError, NetError},
    firewall::{Balancer, helper::UPLINK},
    kernel::has_ipv6,
    model::{Cidr, Mac, NetworkConfig},
    netlink::{
        forwarding::{self, Forward, Neighbour, Origin, Route},
        route,
    },
    overlay::{
        bridge_name,
        fabric::{Piece, Uplink},
        plan::{ObservedOverlay, Port},
        vxlan_name,
    },
    wireguard::{WIREGUARD, device::Device},
};

impl Helper {
    /// Reads links, entries, routes, rules and tables. Of the link to the host only this end.
    pub fn observe(&mut self, config: &NetworkConfig) -> Result<ObservedOverlay, NetError> {
        let settings = self.within(|| wrong_settings().is_empty())?;
        let tables = self.tables(config)?;
        let read = self.read_links(config);
        let mut observed = read.map_err(|error| NetError::kernel("read the helper namespace", error))?;
        self.look_at_bridges(&mut observed)?;
        observed.exists = true;
        observed.connected &= settings && self.is_current();
        observed.shape = tables.shape;
        observed.pieces.extend(tables.elements.into_iter().map(Piece::Element));
        let balancers = tables.balancers.into_iter();
        let balancers = balancers.map(|(chain, backends)| Balancer { chain, backends });
        observed.pieces.extend(balancers.map(Piece::Balancer));
        Ok(observed)
    }

    /// Finds fault with the bridges whose settings are not as they should be.
    fn look_at_bridges(&self, observed: &mut ObservedOverlay) -> Result<(), NetError> {
        let names: Vec<&str> = observed.pieces.iter().filter_map(Piece::bridge).collect();
        let odd: BTreeSet<String> = self.within(|| {
            let odd = names.iter().filter(|name| !wrong_settings_of(name).is_empty());
            odd.map(|name| (*name).to_owned()).collect()
        })?;
        if odd.is_empty() {
            return Ok(());
        }
        let pieces = std::mem::take(&mut observed.pieces).into_iter().map(|piece| match piece {
            Piece::Bridge { name, mac, addresses, mtu, .. } if odd.contains(&name) => {
                Piece::Bridge { name, mac, addresses, mtu, sound: false }
            }
            other => other,
        });
        observed.pieces = pieces.collect();
        Ok(())
    }

    fn read_links(&mut self, config: &NetworkConfig) -> Result<ObservedOverlay, KernelError> {
        let mut observed = ObservedOverlay::default();
        let links = route::links(&mut self.route)?;
        let addresses = route::addresses(&mut self.route)?;
        let addresses6 = route::addresses6(&mut self.route)?;
        let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        self.indexes = links.iter().map(|link| (link.name.clone(), link.index)).collect();
        for link in &links {
            let own: Vec<Cidr> =
                addresses.iter().filter(|(of, _)| *of == link.index).map(|(_, cidr)| *cidr).collect();
            let bridge = link.master.and_then(|master| names.get(&master).cloned());
            let (name, mtu) = (link.name.clone(), link.mtu);
            match (link.kind.as_str(), link.mac) {
                ("bridge", Some(mac)) => {
                    let (sound, addresses) = (link.up && link.plain, own.into_iter().collect());
                    observed.pieces.insert(Piece::Bridge { name, mac, addresses, mtu, sound });
                }
                ("vxlan", _) => {
                    let none = route::Tunnel { vni: 0, local: Ipv4Addr::UNSPECIFIED, port: 0 };
                    let tunnel = link.tunnel.unwrap_or(none);
                    let on_its_bridge = bridge == Some(bridge_name(tunnel.vni));
                    let open = link.closed && !link.isolated;
                    let sound = link.up && open && on_its_bridge && name == vxlan_name(tunnel.vni);
                    observed.pieces.insert(Piece::Vxlan { name, tunnel, mtu, sound });
                }
                ("wireguard" | "tun", _) if name == WIREGUARD => {
                    let routes = forwarding::routes(&mut self.route)?;
                    let node = Device::node_of(&own);
                    let sound = Device::is_sound(link, &own, &routes, node);
                    // One that does not answer has no settings.
                    let state = self.tunnel.get(link);
                    let sound = sound && state.is_ok();
                    let state = state.unwrap_or_default();
                    observed.pieces.insert(Piece::Tunnel { node, mtu, port: state.port, sound });
                    observed.pieces.extend(state.key.map(Piece::TunnelKey));
                    observed.pieces.extend(state.peers.into_iter().map(|(key, peer)| {
                        let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
                        Piece::TunnelPeer {
                            key,
                            address: peer.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
                            endpoint: peer.endpoint.unwrap_or(nowhere),
                        }
                    }));
                }
                ("veth", _) if name == UPLINK => {
                    let helper = own.first().map(|cidr| cidr.address);
                    observed.uplink = Uplink::candidates().find(|uplink| Some(uplink.helper) == helper);
                    let ipv6 = addresses6.contains(&(link.index, Uplink::HELPER6)) || !has_ipv6();
                    let mac = link.mac == Some(Uplink::HELPER_MAC);
                    observed.connected = link.up && own.len() == 1 && ipv6 && mac;
                }
                ("veth", _) if name.starts_with(&config.link_prefix) => {
                    let (alias, peer) = (link.alias.clone(), link.peer);
                    let closed = link.closed && link.isolated;
                    let port = Port { up: link.up, closed, bridge, mtu, alias, peer };
                    observed.ports.insert(name, port);
                }
                _ => {}
            }
        }
        let name = |index: u32| names.get(&index).cloned().unwrap_or_default();
        for (link, address) in addresses6 {
            if links.iter().any(|known| known.index == link && known.kind == "bridge") {
                observed.pieces.insert(Piece::Address { link: name(link), address });
            }
        }
        for Neighbour { link, address, mac, lasting } in forwarding::neighbours(&mut self.route)? {
            // The kernel itself finds out who is at the other end of the link to the host, and notes that nobody is on the
            // loopback.
            let known = names.get(&link).map(String::as_str);
            if known != Some("lo") && (lasting || known.is_some_and(|name| name != UPLINK)) {
                let (link, sound) = (name(link), lasting);
                observed.pieces.insert(Piece::Neighbour { link, address, mac, sound });
            }
        }
        let macs: BTreeMap<u32, Option<Mac>> = links.iter().map(|link| (link.index, link.mac)).collect();
        for (Forward { link, mac, to }, origin) in forwarding::forwards(&mut self.route)? {
            let of_its_own = origin == Origin::Local && macs.get(&link) == Some(&Some(mac));
            if !of_its_own {
                let (link, sound) = (name(link), origin == Origin::Set);
                observed.pieces.insert(Piece::Forward { link, mac, to, sound });
            }
        }
        for Route { table, to, via, link } in forwarding::routes::<Ipv4Addr>(&mut self.route)? {
            if to.prefix_len == 0 {
                let via = via.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
                observed.pieces.insert(Piece::Route { table, via, link: name(link) });
            }
        }
        for Route { table, to, via, link } in forwarding::routes::<Ipv6Addr>(&mut self.route)? {
            if to.prefix_len == 0 {
                let via = via.unwrap_or(Ipv6Addr::UNSPECIFIED).into();
                observed.pieces.insert(Piece::Route { table, via, link: name(link) });
            }
        }
        observed.pieces.extend(forwarding::rules(&mut self.route)?.into_iter().map(Piece::Rule));
        observed.pieces.extend(forwarding::strangers(&mut self.route)?.into_iter().map(Piece::Stranger));
        Ok(observed)
    }

    /// One task's link, as [`Helper::observe`] shows it.
    pub fn port(&mut self, name: &str) -> Result<Option<Port>, NetError> {
        let failed = |error| NetError::kernel(format!("read link `{name}`"), error);
        let Some(link) = route::link_by_name(&mut self.route, name).map_err(failed)? else { return Ok(None) };
        let bridge = match link.master {
            Some(master) => {
                route::link_by_index(&mut self.route, master).map_err(failed)?.map(|link| link.name)
            }
            None => None,
        };
        let (up, closed, mtu) = (link.up, link.closed && link.isolated, link.mtu);
        Ok(Some(Port { up, closed, bridge, mtu, alias: link.alias, peer: link.peer }))
    }
}
