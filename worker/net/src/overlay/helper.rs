//! The hands in the helper namespace: makes it, reads it, changes it.

mod observe;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    Overlay,
    fabric::{Piece, Uplink},
    plan::{Action, Step},
};
use crate::{
    error::{KernelError, NetError},
    firewall::{
        helper::{HELPER, UPLINK},
        message::{self, Change},
        reading::{self, Tables},
    },
    kernel::{configure_inside, configure_inside6, enable_ipv6, has_ipv6, index_of, socket_inside},
    model::{Cidr, Ip, NetworkConfig},
    netlink::{
        Socket,
        conntrack::{self, Flows},
        forwarding::{self, Forward, Route},
        route::{self, LinkChange, Peer},
    },
    netns,
    peers::PeerQuestions,
    wireguard::{
        KEEPALIVE, Peer as TunnelPeer, Setting, WIREGUARD,
        device::{self, Device},
    },
};

/// Settings of the namespace. Some are of modules that may be absent: then there is nothing to set.
const SETTINGS: [(&str, &str); 22] = [
    ("net/ipv4/ip_forward", "1"),
    // What is forwarded is for no socket in here: none is looked for.
    ("net/ipv4/ip_early_demux", "0"),
    // Clients of the mesh come from anywhere.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Everything goes back by the bridge it came from, and shall.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/arp_ignore", "0"),
    ("net/ipv4/conf/all/arp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    // But for bridges of networks that have it, and the link to the host.
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
    // Of a connection that is switched, not routed, only the answers are seen: they are nothing to track.
    ("net/netfilter/nf_conntrack_tcp_loose", "0"),
    // A segment that comes late must not be taken for a stranger's: the translation would be left out.
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("net/netfilter/nf_conntrack_tcp_ignore_invalid_rst", "1"),
    // Of a flow that the bridge has learned, tracking saw no acknowledgement of what it saw last, and the connection may
    // then be silent for hours.
    ("net/netfilter/nf_conntrack_tcp_timeout_unacknowledged", "21600"),
    // What both sides have ended has nothing to come but what was sent twice. For two minutes, as by default, 2,000
    // connections a second would fill the table, and a task that calls one by its own address, from a port by which it has just
    // called it by the service's, would be answered from the service's.
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
    // Likewise after a reset; of one that did not count, tracking hears in the next moment.
    ("net/netfilter/nf_conntrack_tcp_timeout_close", "1"),
];

/// Settings of every bridge.
const BRIDGE_SETTINGS: [(&str, &str); 4] = [
    ("forwarding", "1"),
    ("rp_filter", "0"),
    // The bridge answers for all addresses of its subnet.
    ("proxy_arp_pvlan", "1"),
    // The gateway has one address on all nodes: what another node's says of an error comes from an own address.
    ("accept_local", "1"),
];

/// The sockets in the helper namespace.
pub(crate) struct Helper {
    path: PathBuf,
    namespace: File,
    route: Socket,
    netfilter: Socket,
    indexes: BTreeMap<String, u32>,
    /// The tables as of this generation of the rule set.
    read: Option<(u32, Tables)>,
    tunnel: Device,
}

fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Those of `settings` that are not as they should be, without those of modules that are absent.
fn wrong(settings: impl Iterator<Item = (String, &'static str)>) -> Vec<(PathBuf, &'static str)> {
    let wrong = settings.filter_map(|(name, value)| {
        let path = sysctl(&name);
        let now = fs::read_to_string(&path).ok()?;
        (now.trim() != value).then_some((path, value))
    });
    wrong.collect()
}

fn wrong_settings() -> Vec<(PathBuf, &'static str)> {
    wrong(SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), *value)))
}

fn wrong_settings_of(bridge: &str) -> Vec<(PathBuf, &'static str)> {
    let of = |(name, value): &(&str, &'static str)| (format!("net/ipv4/conf/{bridge}/{name}"), *value);
    wrong(BRIDGE_SETTINGS.iter().map(of))
}

fn write_settings(settings: Vec<(PathBuf, &'static str)>) -> Result<(), NetError> {
    settings.into_iter().try_for_each(|(path, value)| write_setting(&path, value))
}

fn write_setting(path: &Path, value: &'static str) -> Result<(), NetError> {
    fs::write(path, value).map_err(|source| NetError::Sysctl { path: path.to_owned(), value, source })
}

impl Helper {
    /// Opens the namespace pinned where `config` says; `None` when there is none.
    pub fn open(config: &NetworkConfig) -> Result<Option<Self>, NetError> {
        let path = config.helper.as_path();
        if !netns::is_pinned(path) {
            return Ok(None);
        }
        let namespace = netns::open(path)?;
        let sockets = netns::within(namespace.as_fd(), path, || {
            let generic = Socket::open(libc::NETLINK_GENERIC)?;
            let (route, netfilter) =
                (Socket::open(libc::NETLINK_ROUTE)?, Socket::open(libc::NETLINK_NETFILTER)?);
            Ok::<_, KernelError>((route, netfilter, generic))
        })?;
        let (route, netfilter, generic) =
            sockets.map_err(|error| NetError::kernel("open sockets in the helper namespace", error))?;
        let path = path.to_owned();
        let tunnel = Device::new(generic, config);
        Ok(Some(Self { path, namespace, route, netfilter, indexes: BTreeMap::new(), read: None, tunnel }))
    }

    /// Makes the namespace, its settings, and the link to the host, where they are not as they should be.
    pub fn connect(
        held: &mut Option<Self>,
        config: &NetworkConfig,
        host: &mut Socket,
        uplink: Uplink,
    ) -> Result<(), NetError> {
        if held.is_none() {
            netns::remove_pinned(&config.helper)?;
            netns::create_pinned(&config.helper)?;
            *held = Self::open(config)?;
        }
        let Some(helper) = held else {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(NetError::Namespace { path: config.helper.clone(), source });
        };
        helper.within(|| write_settings(wrong_settings()))??;
        let failed =
            |error| NetError::kernel(format!("make link `{}` to the overlays", config.uplink), error);
        helper.join(config, host, uplink).map_err(failed)?;
        helper.join6(config, host)?;
        // The host sends what is for its own loopback to the overlays, and takes the answers.
        write_setting(&sysctl(&format!("net/ipv4/conf/{}/route_localnet", config.uplink)), "1")
    }

    fn join(&mut self, config: &NetworkConfig, host: &mut Socket, uplink: Uplink) -> Result<(), KernelError> {
        let name = config.uplink.as_str();
        let inner = route::link_by_name(&mut self.route, UPLINK)?;
        let outer = route::link_by_name(host, name)?;
        let pair = inner.as_ref().zip(outer.as_ref()).is_some_and(|(inner, outer)| {
            outer.kind == "veth" && outer.peer == Some(inner.index) && inner.peer == Some(outer.index)
        });
        if !pair {
            let ours = outer.as_ref().is_some_and(|link| link.alias == Some(config.uplink_alias()));
            if ours {
                route::delete_link(host, name)?;
            }
            if inner.is_some() {
                route::delete_link(&mut self.route, UPLINK)?;
            }
            self.indexes.clear();
            let namespace = self.namespace.as_fd();
            route::create_veth(host, name, &Peer { name: UPLINK, mac: None, mtu: None, namespace })?;
        }
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let alias = config.uplink_alias();
        route::set_link(&mut self.route, "lo", &up)?;
        // A link that is given a MAC forgets its neighbours, even if it has it already.
        let changed =
            |link: Option<route::Link>, mac| Some(mac).filter(|_| link.and_then(|l| l.mac) != Some(mac));
        let outer = changed(outer.filter(|_| pair), Uplink::HOST_MAC);
        let inner = changed(inner.filter(|_| pair), Uplink::HELPER_MAC);
        for (socket, link, address, change) in [
            (&mut *host, name, uplink.host, LinkChange { alias: Some(&alias), mac: outer, ..up }),
            (&mut self.route, UPLINK, uplink.helper, LinkChange { mac: inner, ..up }),
        ] {
            let wanted = Cidr { address, prefix_len: Uplink::PREFIX_LEN };
            let index = index_of(socket, link)?;
            for (_, surplus) in
                route::addresses(socket)?.into_iter().filter(|(of, cidr)| *of == index && *cidr != wanted)
            {
                route::delete_address(socket, index, surplus)?;
            }
            route::add_address(socket, index, wanted)?;
            route::set_link(socket, link, &change)?;
        }
        Ok(())
    }

    /// Gives the link to the host its IPv6 addresses, on a kernel that has IPv6.
    fn join6(&mut self, config: &NetworkConfig, host: &mut Socket) -> Result<(), NetError> {
        if !has_ipv6() {
            return Ok(());
        }
        enable_ipv6(&config.uplink)?;
        self.within(|| enable_ipv6(UPLINK))??;
        for (socket, link, address) in
            [(&mut *host, config.uplink.as_str(), Uplink::HOST6), (&mut self.route, UPLINK, Uplink::HELPER6)]
        {
            let added = index_of(socket, link).and_then(|index| route::add_address6(socket, index, address));
            added.map_err(|error| NetError::kernel(format!("give `{link}` its IPv6 address"), error))?;
        }
        // The other way round is a piece of the helper namespace.
        let to = Uplink::HELPER6.address.into();
        index_of(host, &config.uplink)
            .and_then(|index| forwarding::set_neighbour(host, index, to, Uplink::HELPER_MAC))
            .map_err(|error| NetError::kernel(format!("tell `{}` its neighbour", config.uplink), error))
    }

    /// Whether `path` still leads to the namespace that the sockets are in.
    pub fn is_current(&self) -> bool {
        netns::same(&self.namespace, &self.path)
    }

    /// Removes the namespace, with all that is in it, and the link to it.
    pub fn disconnect(
        held: &mut Option<Self>,
        config: &NetworkConfig,
        host: &mut Socket,
    ) -> Result<(), NetError> {
        let failed = |error| NetError::kernel(format!("remove link `{}`", config.uplink), error);
        let link = route::link_by_name(host, &config.uplink).map_err(failed)?;
        if link.is_some_and(|link| link.alias == Some(config.uplink_alias())) {
            route::delete_link(host, &config.uplink).map_err(failed)?;
        }
        if let Some(helper) = held.take() {
            helper.end()?;
        }
        netns::remove_pinned(&config.helper)
    }

    /// Empties the namespace. The kernel takes it down some time after its last user is gone; links that others could
    /// meet, such as a VXLAN by its number and port, are free when this returns.
    pub fn end(mut self) -> Result<(), NetError> {
        let failed = |error| NetError::kernel("empty the helper namespace", error);
        for link in route::links(&mut self.route).map_err(failed)? {
            if ["vxlan", "veth", "bridge", "wireguard", "tun"].contains(&link.kind.as_str()) {
                route::delete_link(&mut self.route, &link.name).map_err(failed)?;
            }
        }
        self.tunnel.forget();
        Ok(())
    }

    /// Asks other nodes, see [`PeerQuestions`].
    pub fn ask(&self, overlay: &Overlay, former: Option<u16>) -> Result<PeerQuestions, NetError> {
        self.within(|| PeerQuestions::ask(overlay, former))?
    }

    fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        netns::within(self.namespace.as_fd(), &self.path, f)
    }

    fn index(&mut self, name: &str) -> Result<u32, KernelError> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(*index);
        }
        let index = index_of(&mut self.route, name)?;
        self.indexes.insert(name.to_owned(), index);
        Ok(index)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        reading::generation(&mut self.netfilter)
    }

    /// Our tables; read anew only if someone else changed anything.
    fn tables(&mut self, config: &NetworkConfig) -> Result<Tables, NetError> {
        let failed = |error| NetError::kernel("read the nft tables of the overlays", error);
        let generation = self.generation().map_err(failed)?;
        if let Some((at, tables)) = &self.read
            && *at == generation
        {
            return Ok(tables.clone());
        }
        let tables = reading::observe(&mut self.netfilter, &config.table, &HELPER).map_err(failed)?;
        self.read = Some((generation, tables.clone()));
        Ok(tables)
    }

    /// Performs neighbouring changes of the firewall as one transaction.
    pub fn change_firewall(&mut self, config: &NetworkConfig, steps: &[&Step]) -> Result<(), NetError> {
        self.change(config, &steps.iter().filter_map(|step| change(&step.0)).collect::<Vec<_>>())
    }

    fn change(&mut self, config: &NetworkConfig, changes: &[Change]) -> Result<(), NetError> {
        let before = self.generation().ok();
        message::apply(&mut self.netfilter, &config.table, &HELPER, changes)
            .map_err(|(what, error)| NetError::kernel(what, error))?;
        // If only we made the change, what we know stays true, and need not be read back.
        let after = self.generation().ok();
        let known = self.read.take().filter(|(at, _)| {
            Some(*at) == before && after == before.map(|generation| generation.wrapping_add(1))
        });
        if let Some(((_, mut tables), after)) = known.zip(after)
            && changes.iter().all(|change| tables.take_in(change))
        {
            self.read = Some((after, tables));
        }
        Ok(())
    }

    /// Deletes the tracked connections of gone tasks, in one pass over all there are.
    pub fn forget(&mut self, config: &NetworkConfig, steps: &[&Step]) -> Result<(), NetError> {
        let of = |step: &&Step| match step.0 {
            Action::Forget { address } => Some(Flows::Of(address)),
            _ => None,
        };
        let which: Vec<Flows> = steps.iter().filter_map(of).collect();
        let forgotten = conntrack::forget(&mut self.netfilter, &which)
            .map_err(|error| NetError::kernel("delete tracked connections of the overlays", error))?;
        tracing::debug!(forgotten, ?which, "forgot tracked connections of the overlays");
        // And what the bridge has learned of them, now that it cannot learn it again.
        let learned = HELPER.specs().filter(|spec| spec.learned);
        let changes: Vec<Change> = learned.map(|spec| Change::Forget(spec.set)).collect();
        if which.is_empty() { Ok(()) } else { self.change(config, &changes) }
    }

    /// Performs one step that is no change of the firewall.
    pub fn perform(&mut self, host: &mut Socket, step: &Step) -> Result<(), NetError> {
        if let Action::ConfigureInside { endpoint, address, gateway } = &step.0 {
            let mut socket = socket_inside(endpoint)?;
            return configure_inside(&mut socket, &endpoint.interface_name, None, *address, *gateway)
                .map_err(|error| NetError::kernel(step.to_string(), error));
        }
        if let Action::ConfigureInside6 { endpoint, inside } = &step.0 {
            return configure_inside6(endpoint, inside);
        }
        if let Action::Add(Piece::Address { link, .. }) = &step.0 {
            self.within(|| enable_ipv6(link))??;
        }
        if let Action::CreatePort { link, endpoint, mtu } = &step.0 {
            let namespace = netns::open(&netns::of_process(endpoint.netns_pid))?;
            let peer = Peer {
                name: &endpoint.interface_name,
                mac: Some(endpoint.mac()),
                mtu: Some(*mtu),
                namespace: namespace.as_fd(),
            };
            self.indexes.remove(link);
            return route::create_veth(&mut self.route, link, &peer)
                .map_err(|error| NetError::kernel(step.to_string(), error));
        }
        if let Action::OpenPort { link, alias, endpoint } = &step.0 {
            let change = LinkChange { up: Some(true), alias: Some(alias), ..LinkChange::default() };
            let opened = route::set_link(&mut self.route, link, &change);
            let opened = opened.and_then(|()| wait_until_ready(&mut self.route, link));
            opened.map_err(|error| NetError::kernel(step.to_string(), error))?;
            return wait_until_ready(&mut socket_inside(endpoint)?, &endpoint.interface_name)
                .map_err(|error| NetError::kernel(step.to_string(), error));
        }
        self.act(host, &step.0).map_err(|error| NetError::kernel(step.to_string(), error))?;
        match &step.0 {
            Action::Add(Piece::Bridge { name, .. }) => {
                self.within(|| write_settings(wrong_settings_of(name)))?
            }
            _ => Ok(()),
        }
    }

    fn act(&mut self, host: &mut Socket, action: &Action) -> Result<(), KernelError> {
        match action {
            Action::RemovePort { link } => self.remove_link(link),
            Action::PlugPort { link, bridge } => {
                let master = Some(self.index(bridge)?);
                route::set_link(&mut self.route, link, &LinkChange { master, ..LinkChange::default() })?;
                route::close_port(&mut self.route, link, true)
            }
            Action::Add(piece) => self.add(host, piece),
            Action::Remove(piece) => self.remove(piece),
            // The first two are done by whoever holds us, the next four were done before, the others come in groups.
            Action::Connect(_)
            | Action::Disconnect
            | Action::CreatePort { .. }
            | Action::OpenPort { .. }
            | Action::ConfigureInside { .. }
            | Action::ConfigureInside6 { .. }
            | Action::Forget { .. }
            | Action::Rules(_) => Ok(()),
        }
    }

    fn remove_link(&mut self, name: &str) -> Result<(), KernelError> {
        self.indexes.remove(name);
        route::delete_link(&mut self.route, name).map(drop)
    }

    fn add(&mut self, host: &mut Socket, piece: &Piece) -> Result<(), KernelError> {
        match piece {
            Piece::Bridge { name, mac, addresses, mtu, .. } => {
                let found = route::link_by_name(&mut self.route, name)?;
                if found.as_ref().is_some_and(|link| link.kind != "bridge") {
                    self.remove_link(name)?;
                }
                if found.as_ref().is_none_or(|link| link.kind != "bridge") {
                    self.indexes.remove(name);
                    route::create_bridge(&mut self.route, name, *mac)?;
                }
                route::make_plain(&mut self.route, name)?;
                let index = self.index(name)?;
                forwarding::answer_at_once(&mut self.route, index)?;
                route::set_addresses(&mut self.route, index, addresses)?;
                // A bridge forgets its neighbours when it is given an address, even if it has it already.
                let mac = found.as_ref().is_some_and(|link| link.mac != Some(*mac)).then_some(*mac);
                let change = LinkChange { up: Some(true), mac, mtu: Some(*mtu), ..LinkChange::default() };
                route::set_link(&mut self.route, name, &change)
            }
            Piece::Tunnel { node, mtu, port, .. } => {
                self.indexes.remove(WIREGUARD);
                let namespace = (self.path.as_path(), self.namespace.as_fd());
                let shape = device::Shape { node: *node, mtu: *mtu, port: *port };
                self.tunnel.make(host, &mut self.route, namespace, shape)
            }
            Piece::TunnelKey(key) => self.tunnel.set(&mut self.route, &Setting::Key(*key)),
            Piece::TunnelPeer { key, address, endpoint } => {
                let (endpoint, keepalive) = (Some(*endpoint), KEEPALIVE);
                let peer = TunnelPeer { key: *key, endpoint, address: *address, keepalive };
                self.tunnel.set(&mut self.route, &Setting::Peer(peer))
            }
            Piece::Vxlan { name, tunnel, mtu, .. } => {
                let inside = device::carries(tunnel.local);
                if inside
                    && let Some(found) = route::link_by_name(&mut self.route, name)?.filter(|found| {
                        let same = |found: &route::Tunnel| {
                            route::Tunnel { local: tunnel.local, ..*found } == *tunnel
                                && device::carries(found.local)
                        };
                        found.up
                            && found.closed
                            && found.mtu == *mtu
                            && found.tunnel.as_ref().is_some_and(same)
                    })
                {
                    // The node has gone over to its other key, and with it to its other address.
                    return route::set_vxlan_source(&mut self.route, &found.name, tunnel.local);
                }
                self.remove_link(name)?;
                let namespace = self.namespace.as_fd();
                // What is encrypted leaves from in here, all else from the host.
                let home = if inside { &mut self.route } else { host };
                route::create_vxlan(home, name, tunnel, *mtu, namespace)?;
                let master = Some(self.index(&super::model::bridge_name(tunnel.vni))?);
                route::set_link(&mut self.route, name, &LinkChange { master, ..LinkChange::default() })?;
                route::close_port(&mut self.route, name, false)?;
                let up = LinkChange { up: Some(true), ..LinkChange::default() };
                route::set_link(&mut self.route, name, &up)
            }
            Piece::Address { link, address } => {
                let index = self.index(link)?;
                route::add_address6(&mut self.route, index, *address)
            }
            Piece::Neighbour { link, address, mac, .. } => {
                let link = self.index(link)?;
                forwarding::set_neighbour(&mut self.route, link, *address, *mac)
            }
            Piece::Forward { link, mac, to, .. } => {
                let forward = Forward { link: self.index(link)?, mac: *mac, to: *to };
                forwarding::set_forward(&mut self.route, &forward)
            }
            Piece::Route { table, via, link } => {
                let link = self.index(link)?;
                match via {
                    IpAddr::V4(via) => forwarding::set_route(&mut self.route, &default(*table, *via, link)),
                    IpAddr::V6(via) => forwarding::set_route(&mut self.route, &default(*table, *via, link)),
                }
            }
            Piece::Rule(rule) => forwarding::add_rule(&mut self.route, rule),
            Piece::Element(_) | Piece::Balancer(_) | Piece::Stranger(_) => Ok(()),
        }
    }

    fn remove(&mut self, piece: &Piece) -> Result<(), KernelError> {
        match piece {
            Piece::Bridge { name, .. } | Piece::Vxlan { name, .. } => self.remove_link(name),
            Piece::Address { link, address } => {
                let index = self.index(link)?;
                route::delete_address(&mut self.route, index, *address)
            }
            Piece::Tunnel { .. } => {
                self.remove_link(WIREGUARD)?;
                self.tunnel.forget();
                Ok(())
            }
            // It goes with its link, or makes room for its successor.
            Piece::TunnelKey(_) => Ok(()),
            Piece::TunnelPeer { key, .. } => self.tunnel.set(&mut self.route, &Setting::Remove(*key)),
            Piece::Neighbour { link, address, .. } => {
                let link = self.index(link)?;
                forwarding::delete_neighbour(&mut self.route, link, *address)
            }
            Piece::Forward { link, mac, to, .. } => {
                let forward = Forward { link: self.index(link)?, mac: *mac, to: *to };
                forwarding::delete_forward(&mut self.route, &forward)
            }
            Piece::Route { table, via, link } => {
                let link = self.index(link)?;
                match via {
                    IpAddr::V4(via) => {
                        forwarding::delete_route(&mut self.route, &default(*table, *via, link))
                    }
                    IpAddr::V6(via) => {
                        forwarding::delete_route(&mut self.route, &default(*table, *via, link))
                    }
                }
            }
            Piece::Rule(rule) => forwarding::delete_rule(&mut self.route, rule),
            Piece::Stranger(stranger) => forwarding::delete_stranger(&mut self.route, stranger),
            Piece::Element(_) | Piece::Balancer(_) => Ok(()),
        }
    }
}

/// The default route of a table. One that was found without a gateway is told by the gateway `0.0.0.0` or `::`.
fn default<A: Ip>(table: u32, via: A, link: u32) -> Route<A> {
    let to = Cidr { address: A::UNSPECIFIED, prefix_len: 0 };
    Route { table, to, via: (via != A::UNSPECIFIED).then_some(via), link }
}

/// Waits until packets pass by a link: the kernel gets round to that some time after both ends are up, and drops what
/// is sent before. To ask for the link makes newer kernels do it at once.
fn wait_until_ready(socket: &mut Socket, name: &str) -> Result<(), KernelError> {
    const PATIENCE: Duration = Duration::from_millis(200);
    let end = Instant::now() + PATIENCE;
    loop {
        let missing = KernelError { errno: libc::ENODEV, reason: None };
        let ready = route::link_by_name(socket, name)?.ok_or(missing)?.ready;
        // A task may have taken its end down; that is its own affair.
        if ready || Instant::now() > end {
            return Ok(());
        }
        thread::sleep(Duration::from_micros(500));
    }
}

fn change(action: &Action) -> Option<Change> {
    Some(match action {
        Action::Rules(shape) => Change::Rules(shape.clone()),
        Action::Add(Piece::Element(element)) => Change::Add(element.clone()),
        Action::Remove(Piece::Element(element)) => Change::Remove(element.clone()),
        Action::Add(Piece::Balancer(balancer)) => Change::Balance(balancer.clone()),
        Action::Remove(Piece::Balancer(balancer)) => Change::Unbalance(balancer.chain.clone()),
        _ => return None,
    })
}

/// The first /30 for the link to the host that none of its addresses lies in, or the one the link has already.
pub(crate) fn choose_uplink(addresses: &[(u32, Cidr)], own: Option<u32>) -> Option<Uplink> {
    let held = addresses.iter().find(|(link, _)| Some(*link) == own).map(|(_, cidr)| cidr.address);
    let taken: BTreeSet<Ipv4Addr> = addresses
        .iter()
        .filter(|(link, _)| Some(*link) != own)
        .flat_map(|(_, cidr)| {
            let whole = Cidr { address: cidr.subnet(), prefix_len: cidr.prefix_len };
            Uplink::candidates().map(|uplink| uplink.host).filter(move |host| whole.contains(*host))
        })
        .collect();
    Uplink::candidates()
        .find(|uplink| Some(uplink.host) == held)
        .or_else(|| Uplink::candidates().find(|uplink| !taken.contains(&uplink.host)))
}
