//! What a comparison with the kernel found, told to those who look at a node from outside: what is missing and what is
//! there although it should not be, not what would be done about it.

use std::{collections::BTreeSet, fmt};

use crate::{
    model::{NetworkConfig, NodeNetwork, Protocol},
    overlay::{
        bridge_name,
        fabric::Piece,
        plan::{Action, Step},
        vxlan_name,
    },
    plan::Operation,
};

/// The parts that a network on a node is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Links, their addresses and settings.
    Link,
    Forwarding,
    Neighbour,
    Route,
    /// Routing rules, and the rules of nft.
    Rule,
    /// Elements of nft's sets and maps, and the chains that those lead to.
    Map,
}

/// One thing that is missing, or one too many. `Display` names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub part: Part,
    /// Else it is stale.
    pub missing: bool,
    pub what: String,
    /// The network it belongs to, unless it serves several.
    pub network: Option<String>,
}

/// The whole of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    pub findings: BTreeSet<Finding>,
    /// Published ports on which other processes of the node listen; they are left to them.
    pub in_use: BTreeSet<(Protocol, u16)>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.missing { "missing" } else { "stale" }, self.what)
    }
}

impl Finding {
    /// What `operation` would mend; `None` of those that only follow from others.
    pub(crate) fn of(config: &NetworkConfig, node: &NodeNetwork, operation: &Operation) -> Option<Self> {
        let link = |missing, name: &str| Some((Part::Link, missing, format!("link `{name}`"), named(name)));
        let inside = |endpoint: &crate::Endpoint| {
            let what = format!("`{}` of endpoint `{}`", endpoint.interface_name, endpoint.id);
            Some((Part::Link, true, what, named(&config.link_name(&endpoint.id))))
        };
        let (part, missing, what, of) = match operation {
            Operation::EnableForwarding6 => (Part::Link, true, "IPv6 forwarding".to_owned(), None),
            Operation::EnableForwarding => (Part::Link, true, "IPv4 forwarding".to_owned(), None),
            Operation::RemoveLink { link: name } => link(false, name)?,
            Operation::CreateBridge { bridge: name, .. }
            | Operation::SetBridge { bridge: name, .. }
            | Operation::SettleBridge { bridge: name, .. }
            | Operation::CreateVeth { link: name, .. }
            | Operation::SetVeth { link: name, .. } => link(true, name)?,
            Operation::AddAddress { link, address } => {
                (Part::Link, true, format!("address {address} of `{link}`"), named(link))
            }
            Operation::RemoveAddress { link, address } => {
                (Part::Link, false, format!("address {address} of `{link}`"), named(link))
            }
            Operation::AddAddress6 { link, address } => {
                (Part::Link, true, format!("address {address} of `{link}`"), named(link))
            }
            Operation::RemoveAddress6 { link, address } => {
                (Part::Link, false, format!("address {address} of `{link}`"), named(link))
            }
            Operation::AddNeighbour { link, address, mac } => {
                (Part::Neighbour, true, format!("neighbour {address} at {mac} on `{link}`"), named(link))
            }
            Operation::RemoveNeighbour { link, address } => {
                (Part::Neighbour, false, format!("neighbour {address} on `{link}`"), named(link))
            }
            Operation::ConfigureInside { endpoint, .. } | Operation::ConfigureInside6 { endpoint, .. } => {
                inside(endpoint)?
            }
            Operation::BuildRules(_) => (Part::Rule, true, "nft tables".to_owned(), None),
            Operation::AddElement(element) => (Part::Map, true, element.to_string(), element.of_link()),
            Operation::RemoveElement(element) => (Part::Map, false, element.to_string(), element.of_link()),
            Operation::ForgetAddress { .. } | Operation::ForgetPort { .. } => return None,
            Operation::Overlay(Step(action)) => match action {
                Action::Connect(_) => (Part::Link, true, "namespace of the overlays".to_owned(), None),
                Action::Disconnect => (Part::Link, false, "namespace of the overlays".to_owned(), None),
                Action::RemovePort { link: name } => link(false, name)?,
                Action::CreatePort { link: name, .. }
                | Action::PlugPort { link: name, .. }
                | Action::OpenPort { link: name, .. } => link(true, name)?,
                Action::ConfigureInside { endpoint, .. } | Action::ConfigureInside6 { endpoint, .. } => {
                    inside(endpoint)?
                }
                Action::Add(piece) => of_piece(true, piece),
                Action::Remove(piece) => of_piece(false, piece),
                Action::Rules(_) => (Part::Rule, true, "nft table of the overlays".to_owned(), None),
                Action::Forget { .. } => return None,
            },
        };
        let network = of.and_then(|link| node.network_of_link(config, &link).map(str::to_owned));
        Some(Self { part, missing, what, network })
    }
}

fn named(link: &str) -> Option<String> {
    Some(link.to_owned())
}

fn of_piece(missing: bool, piece: &Piece) -> (Part, bool, String, Option<String>) {
    let (part, link) = match piece {
        Piece::Bridge { name, .. } | Piece::Vxlan { name, .. } => (Part::Link, named(name)),
        Piece::Address { link, .. } => (Part::Link, named(link)),
        // It serves all networks that are encrypted.
        Piece::Tunnel { .. } | Piece::TunnelKey(_) => (Part::Link, None),
        Piece::TunnelPeer { .. } => (Part::Forwarding, None),
        Piece::Neighbour { link, .. } => (Part::Neighbour, named(link)),
        Piece::Forward { link, .. } => (Part::Forwarding, named(link)),
        // The ways back of published ports, and the way out of all.
        Piece::Route { .. } => (Part::Route, None),
        Piece::Rule(_) => (Part::Rule, None),
        Piece::Stranger(stranger) => (if stranger.is_rule { Part::Rule } else { Part::Route }, None),
        Piece::Element(element) => (Part::Map, element.of_link()),
        Piece::Balancer(_) => (Part::Map, None),
    };
    (part, missing, piece.to_string(), link)
}

impl NodeNetwork {
    /// The id of the network that has a link: as its bridge, its tunnel, or the node's end of an endpoint.
    fn network_of_link(&self, config: &NetworkConfig, link: &str) -> Option<&str> {
        let bridge = self.networks.iter().find(|network| network.bridge == link).map(|network| &network.id);
        let overlay = || {
            let mut networks = self.overlay.iter().flat_map(|overlay| &overlay.networks);
            let its = |vni| bridge_name(vni) == link || vxlan_name(vni) == link;
            networks.find(|(vni, _)| its(**vni)).map(|(_, network)| &network.id)
        };
        let endpoint = || {
            let its = |endpoint: &&crate::Endpoint| config.link_name(&endpoint.id) == link;
            self.endpoints.iter().find(its).map(|endpoint| &endpoint.network)
        };
        bridge.or_else(overlay).or_else(endpoint).map(String::as_str)
    }
}
