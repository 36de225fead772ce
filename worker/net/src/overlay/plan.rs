//! What to do to the helper namespace so that it is as desired. Pure.
//!
//! The order is fixed: links come, then what leads to them, then the firewall changes in one transaction, only then do
//! the tasks' links open; what is no longer needed goes after that, and tracked connections last. So nothing is sent
//! to where it is not taken, and no task speaks before it is watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use super::{
    fabric::{Local, Piece, Uplink, local_pieces},
    model::{bridge_name, node_mac},
};
use crate::{
    firewall::{helper::HELPER, message::Shape},
    model::{Cidr, Endpoint, NetworkConfig},
    plan::{Inside, Inside6},
};

/// One change for the overlays. `Display` says it in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step(pub(crate) Action);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Makes the namespace, its settings and the link to the host, or mends them.
    Connect(Uplink),
    /// Removes namespace and link.
    Disconnect,
    RemovePort {
        link: String,
    },
    CreatePort {
        link: String,
        endpoint: Endpoint,
        mtu: u32,
    },
    /// Joins a task's link to its bridge, closed to all but the bridge itself.
    PlugPort {
        link: String,
        bridge: String,
    },
    ConfigureInside {
        endpoint: Endpoint,
        address: Option<Cidr>,
        gateway: Option<Ipv4Addr>,
    },
    /// Gives a task's end its IPv6 address, and what it takes to reach others by it.
    ConfigureInside6 {
        endpoint: Endpoint,
        inside: Inside6,
    },
    Add(Piece),
    Remove(Piece),
    Rules(Shape),
    /// Marks a task's link as ours, brings it up, and waits until packets pass.
    OpenPort {
        link: String,
        alias: String,
        endpoint: Endpoint,
    },
    Forget {
        address: IpAddr,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Action::Connect(_) => f.write_str("make the namespace of the overlays and its link to the host"),
            Action::Disconnect => f.write_str("remove the namespace of the overlays"),
            Action::RemovePort { link } => write!(f, "remove link `{link}`"),
            Action::CreatePort { link, endpoint, .. } => {
                write!(
                    f,
                    "create veth `{link}` to `{}` of endpoint `{}`",
                    endpoint.interface_name, endpoint.id
                )
            }
            Action::PlugPort { link, bridge } => write!(f, "join `{link}` to bridge `{bridge}`"),
            Action::ConfigureInside { endpoint, .. } => {
                write!(f, "configure `{}` of endpoint `{}`", endpoint.interface_name, endpoint.id)
            }
            Action::ConfigureInside6 { endpoint, .. } => {
                write!(f, "configure IPv6 of `{}` of endpoint `{}`", endpoint.interface_name, endpoint.id)
            }
            Action::Add(piece) => write!(f, "add {piece}"),
            Action::Remove(piece) => write!(f, "remove {piece}"),
            Action::Rules(_) => f.write_str("build the nft tables of the overlays"),
            Action::OpenPort { link, .. } => write!(f, "bring up veth `{link}`"),
            Action::Forget { address } => write!(f, "forget connections of `{address}` in the overlays"),
        }
    }
}

impl Action {
    /// Its place in the order of things; those of one rank that change the firewall are one transaction.
    fn rank(&self) -> u8 {
        match self {
            Self::Connect(_) => 0,
            Self::RemovePort { .. } => 1,
            Self::Add(Piece::Bridge { .. } | Piece::Tunnel { .. }) => 2,
            Self::Add(Piece::Vxlan { .. } | Piece::Address { .. }) => 3,
            Self::CreatePort { .. } => 4,
            Self::PlugPort { .. } => 5,
            Self::ConfigureInside { .. } | Self::ConfigureInside6 { .. } => 6,
            Self::Add(
                Piece::Neighbour { .. }
                | Piece::Forward { .. }
                | Piece::Route { .. }
                | Piece::Rule(_)
                | Piece::Stranger(_)
                | Piece::TunnelKey(_)
                | Piece::TunnelPeer { .. },
            ) => 7,
            Self::Rules(_) => 8,
            Self::Remove(Piece::Element(_)) => 9,
            Self::Add(Piece::Balancer(_)) => 10,
            Self::Add(Piece::Element(_)) => 11,
            Self::Remove(Piece::Balancer(_)) => 12,
            Self::OpenPort { .. } => 13,
            Self::Remove(
                Piece::Neighbour { .. }
                | Piece::Forward { .. }
                | Piece::Route { .. }
                | Piece::Rule(_)
                | Piece::Stranger(_)
                | Piece::TunnelKey(_)
                | Piece::TunnelPeer { .. },
            ) => 14,
            Self::Remove(Piece::Vxlan { .. } | Piece::Address { .. }) => 15,
            Self::Remove(Piece::Bridge { .. } | Piece::Tunnel { .. }) => 16,
            Self::Forget { .. } => 17,
            Self::Disconnect => 18,
        }
    }

    pub(crate) fn is_forget(&self) -> bool {
        matches!(self, Self::Forget { .. })
    }

    pub(crate) fn is_firewall(&self) -> bool {
        (8..=12).contains(&self.rank())
    }
}

/// What was found in the helper namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedOverlay {
    /// Whether namespace, settings and link to the host are as they should be.
    pub(crate) connected: bool,
    /// Whether there is anything at all.
    pub(crate) exists: bool,
    pub(crate) uplink: Option<Uplink>,
    pub(crate) pieces: BTreeSet<Piece>,
    pub(crate) ports: BTreeMap<String, Port>,
    /// By endpoint.
    pub(crate) inside: BTreeMap<String, Inside>,
    pub(crate) shape: Shape,
}

/// The node's end of a task's link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Port {
    pub up: bool,
    pub closed: bool,
    pub bridge: Option<String>,
    pub mtu: u32,
    pub alias: Option<String>,
    pub peer: Option<u32>,
}

/// The steps from `observed` to `wanted` pieces and the links of `locals`, in order.
pub(crate) fn plan(
    config: &NetworkConfig,
    wanted: &BTreeSet<Piece>,
    locals: &[Local<'_>],
    observed: &ObservedOverlay,
) -> Vec<Step> {
    let mut actions = Vec::new();
    let mut lost = BTreeSet::new();
    let links: BTreeSet<String> = locals.iter().map(|local| config.link_name(&local.endpoint.id)).collect();
    for link in observed.ports.keys().filter(|link| !links.contains(*link)) {
        actions.push(Action::RemovePort { link: link.clone() });
        lost.insert(link.clone());
    }
    for local in locals {
        let link = config.link_name(&local.endpoint.id);
        let steps =
            plan_port(config, local, observed.ports.get(&link), observed.inside.get(&local.endpoint.id));
        let plugged = steps.iter().all(|action| !matches!(action, Action::PlugPort { .. }));
        if !plugged {
            lost.insert(link);
        }
        actions.extend(steps);
    }
    // A VXLAN is made anew when it differs, and loses its entries; a bridge may lose its neighbours.
    lost.extend(wanted.difference(&observed.pieces).filter_map(Piece::is_link).map(str::to_owned));
    if !observed.shape.intact(&HELPER) {
        actions.push(Action::Rules(observed.shape.clone()));
    }
    let found = observed.pieces.iter().map(|piece| as_wanted(wanted, piece));
    let present = found.filter(|piece| match piece {
        Piece::Element(element) => observed.shape.keeps(element),
        piece => piece.link().is_none_or(|link| !lost.contains(link)),
    });
    let present: BTreeSet<&Piece> = present.collect();
    let gone: Vec<Piece> =
        present.iter().filter(|piece| !wanted.contains(**piece)).map(|piece| (*piece).clone()).collect();
    let come = wanted.iter().filter(|piece| !present.contains(piece)).cloned();
    // Whoever is not where he was: his connections end.
    actions.extend(gone.iter().filter_map(|piece| match piece {
        Piece::Neighbour { address, .. } => Some(Action::Forget { address: *address }),
        _ => None,
    }));
    in_order(actions, gone, come.collect())
}

/// A peer counts as the wanted one wherever it is: it is where it was heard from last, and need not be there where it
/// was looked for first.
fn as_wanted<'a>(wanted: &'a BTreeSet<Piece>, found: &'a Piece) -> &'a Piece {
    let Piece::TunnelPeer { key, address, .. } = found else { return found };
    let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let first = Piece::TunnelPeer { key: *key, address: *address, endpoint: nowhere };
    match wanted.range(first..).next() {
        Some(next @ Piece::TunnelPeer { key: of, address: at, .. }) if of == key && at == address => next,
        _ => found,
    }
}

/// Puts the steps of a change in order: what makes room for its successor is not removed on its own.
pub(crate) fn in_order(mut actions: Vec<Action>, gone: Vec<Piece>, come: Vec<Piece>) -> Vec<Step> {
    let places: BTreeSet<_> = come.iter().filter_map(Piece::place).collect();
    let leaving: BTreeSet<String> = gone.iter().filter_map(Piece::is_link).map(str::to_owned).collect();
    let needed = |piece: &Piece| {
        piece.place().is_none_or(|place| !places.contains(&place))
            && piece.link().is_none_or(|link| !leaving.contains(link))
    };
    actions.extend(gone.into_iter().filter(needed).map(Action::Remove));
    actions.extend(come.into_iter().map(Action::Add));
    actions.sort_by_key(Action::rank);
    actions.into_iter().map(Step).collect()
}

fn plan_port(
    config: &NetworkConfig,
    local: &Local<'_>,
    port: Option<&Port>,
    inside: Option<&Inside>,
) -> Vec<Action> {
    let (endpoint, mtu) = (local.endpoint, local.network.mtu);
    let mut actions = Vec::new();
    let link = config.link_name(&endpoint.id);
    let bridge = bridge_name(local.vni);
    let alias = config.endpoint_alias(endpoint);
    let out = endpoint.default_route && !local.network.internal;
    let address = Some(local.cidr()).filter(|_| !local.network.ipv6_only);
    let gateway = address.and(out.then_some(endpoint.gateway));
    let pair = port.zip(inside).filter(|(port, inside)| {
        port.peer == Some(inside.index)
            && inside.mac == Some(endpoint.mac())
            && port.mtu == mtu
            && inside.mtu == mtu
    });
    if pair.is_none() {
        if port.is_some() {
            actions.push(Action::RemovePort { link: link.clone() });
        }
        actions.push(Action::CreatePort { link: link.clone(), endpoint: endpoint.clone(), mtu });
    }
    if pair.is_none_or(|(port, _)| !port.closed || port.bridge.as_ref() != Some(&bridge)) {
        actions.push(Action::PlugPort { link: link.clone(), bridge });
    }
    if pair.is_none_or(|(_, inside)| !inside.is_configured(address, gateway)) {
        actions.push(Action::ConfigureInside { endpoint: endpoint.clone(), address, gateway });
    }
    if let Some(wanted) = inside_of(local)
        && pair.is_none_or(|(_, inside)| !wanted.is_in(&inside.ipv6))
    {
        actions.push(Action::ConfigureInside6 { endpoint: endpoint.clone(), inside: wanted });
    }
    if pair.is_none_or(|(port, _)| !port.up || port.alias.as_ref() != Some(&alias)) {
        actions.push(Action::OpenPort { link, alias, endpoint: endpoint.clone() });
    }
    actions
}

/// The steps that connect a task, given what was found of it.
pub(crate) fn plan_attach(
    config: &NetworkConfig,
    before: Option<&Local<'_>>,
    local: &Local<'_>,
    port: Option<&Port>,
    inside: Option<&Inside>,
) -> Vec<Step> {
    let actions = plan_port(config, local, port, inside);
    let wanted = local_pieces(config, local);
    let present = before.map(|local| local_pieces(config, local)).unwrap_or_default();
    // Joining a bridge loses what was known to be behind the link.
    let plugs = actions.iter().any(|action| matches!(action, Action::PlugPort { .. }));
    let stays = |piece: &&Piece| !(plugs && matches!(piece, Piece::Forward { .. }));
    let present: BTreeSet<Piece> = present.iter().filter(stays).cloned().collect();
    in_order(
        actions,
        present.difference(&wanted).cloned().collect(),
        wanted.difference(&present).cloned().collect(),
    )
}

/// The steps that disconnect a task: nothing leads to it any more, its link goes, its connections are forgotten.
pub(crate) fn plan_detach(config: &NetworkConfig, local: &Local<'_>, attached: bool) -> Vec<Step> {
    let link = config.link_name(&local.endpoint.id);
    let stays = |piece: &Piece| piece.link() != Some(link.as_str());
    let gone = local_pieces(config, local).into_iter().filter(stays).collect();
    let mut steps = in_order(Vec::new(), gone, Vec::new());
    if attached {
        steps.push(Step(Action::RemovePort { link }));
    }
    let both = local.network.both(local.endpoint.address);
    steps.extend(both.map(|address| Step(Action::Forget { address })));
    steps
}

/// What a task's end has on a network with IPv6.
fn inside_of(local: &Local<'_>) -> Option<Inside6> {
    let (gateway, own) = local.network.ipv6.zip(local.network.twin(local.endpoint.address))?;
    let out = local.endpoint.default_route && !local.network.internal;
    Some(Inside6::new(own, gateway, node_mac(local.node), out))
}
