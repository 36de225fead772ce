//! Where networks have their addresses: subnets that overlap nothing, asked for or chosen.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::network::{Ipam, Ipam6, IpamSpec6, NUMBERS, NUMBERS_PREFIX_LEN};
use rswarm_types::node::NodeNetworkFacts;
use rswarm_types::subnet::Address;
use rswarm_types::{Cluster, ClusterId, ClusterSpec, NetworkId, Node};

use crate::state::State;
use crate::state::apply::Writer;
use crate::state::command::Rejected;

/// How often the subnet of a network that was given none can be doubled, as long as there is room for that.
const GROWTH_BITS: u8 = 4;

impl State {
    /// What a node routes itself although networks of the cluster have those addresses, in words. Networks that are made
    /// later stay clear of it; these were there before.
    pub fn route_conflicts(&self, node: &Node) -> Vec<String> {
        let Some(description) = &node.description else { return Vec::new() };
        let mut conflicts = Vec::new();
        for network in self.networks() {
            let Some(ipam) = network.ipam else { continue };
            let both = overlapping::<Ipv4Addr>(ipam, &description.network)
                .chain(overlapping::<Ipv6Addr>(ipam, &description.network));
            conflicts.extend(both.map(|(subnet, route)| {
                format!(
                    "network `{}` has the addresses `{subnet}`, and node `{}` has a route of its own to `{route}`: \
                     what is there cannot be reached from the network, or the other way round",
                    network.spec.name,
                    node.display_name()
                )
            }));
        }
        conflicts
    }

    /// What a subnet overlaps: a network's other than `own`, or what a node routes itself.
    pub(super) fn overlap<A: Routed>(
        &self,
        subnet: Subnet<A>,
        own: Option<NetworkId>,
    ) -> Option<(Subnet<A>, String)> {
        let others = self.networks().filter(|network| Some(network.id) != own);
        let mut others = others.filter_map(|network| Some((network, A::subnet_of(network.ipam?)?)));
        if let Some((network, other)) = others.find(|(_, other)| other.overlaps(subnet)) {
            return Some((other, format!("network `{}`", network.spec.name)));
        }
        self.nodes().find_map(|node| {
            let routes = A::routes_of(&node.description.as_ref()?.network);
            let route = routes.iter().find(|route| route.overlaps(subnet))?;
            Some((*route, format!("a route of node `{}`", node.display_name())))
        })
    }
}

impl Writer {
    pub(super) fn not_taken<A: Routed>(&self, subnet: Subnet<A>) -> Result<Subnet<A>, Rejected> {
        match self.state.overlap(subnet, None) {
            Some((other, by)) => Err(taken(subnet, other, by)),
            None => Ok(subnet),
        }
    }

    /// What is asked for of IPv6, the rest chosen: the first /64 of the cluster's pool that overlaps nothing.
    pub(super) fn ipv6_side(&self, ipam: Ipam, asked: IpamSpec6) -> Result<Ipam6, Rejected> {
        let subnet = match asked.subnet {
            Some(subnet) => self.not_taken(subnet)?,
            None => {
                const PREFIX_LEN: u8 = 64;
                let id = self.state.cluster().map_or(ClusterId::from_bytes([0; 16]), |cluster| cluster.id);
                let pool = Cluster::ipv6_pool(id);
                let nth = |n: u16| Subnet6 {
                    address: (u128::from(pool.address) | u128::from(n) << (128 - PREFIX_LEN)).into(),
                    prefix_len: PREFIX_LEN,
                };
                let mut all = (1..=u16::MAX).map(nth);
                let free = all.find(|subnet| self.state.overlap(*subnet, None).is_none());
                free.ok_or_else(|| Rejected::NoSubnet {
                    prefix_len: PREFIX_LEN,
                    pools: format!("`{pool}`"),
                    example: format!("`{}` is in use", nth(1)),
                })?
            }
        };
        let ipv6 = Ipam6 { subnet, gateway: subnet.address, counted_from: None, alone: asked.alone };
        let gateway = asked.gateway.unwrap_or(ipv6.twin(ipam.subnet, ipam.gateway));
        Ok(Ipam6 { gateway, ..ipv6 })
    }

    /// Numbers for a network with IPv6 alone. Those with the broadcast address are left out.
    pub(super) fn free_numbers(&self) -> Result<Subnet, Rejected> {
        let ipams = self.state.networks().filter_map(|network| network.ipam);
        let taken: BTreeSet<Ipv4Addr> =
            ipams.filter(|ipam| ipam.is_ipv6_alone()).map(|ipam| ipam.subnet.address).collect();
        let size = 1 << (32 - NUMBERS_PREFIX_LEN);
        let most = (NUMBERS.size() / size - 1) as u32;
        let mut all =
            (0..most).filter_map(|n| Subnet::new(NUMBERS.nth(n * size as u32)?, NUMBERS_PREFIX_LEN));
        all.find(|subnet| !taken.contains(&subnet.address)).ok_or(Rejected::TooManyIpv6Alone { most })
    }

    /// The first subnet of the pools that overlaps nothing, and has room to grow where there is any: up to 2^[`GROWTH_BITS`]
    /// times its size are free around it, in the first pool that has one. Source: the idea is that of RFC 3531.
    pub(super) fn free_subnet(&self) -> Result<Subnet, Rejected> {
        let default;
        let spec = match self.state.cluster() {
            Some(cluster) => &cluster.spec,
            None => {
                default = ClusterSpec::default();
                &default
            }
        };
        let mut example = None;
        for pool in &spec.overlay_pools {
            let prefix_len = spec.overlay_prefix_len.max(pool.prefix_len);
            let widest = prefix_len.saturating_sub(GROWTH_BITS).max(pool.prefix_len);
            for room in widest..=prefix_len {
                match self.free_block(*pool, room) {
                    Ok(block) => return Ok(Subnet { prefix_len, ..block }),
                    Err(taken) => {
                        example = taken.map(|(other, by)| format!("`{other}` is {by}'s")).or(example);
                    }
                }
            }
        }
        let pools = spec.overlay_pools.iter().map(|pool| format!("`{pool}`")).collect::<Vec<_>>().join(", ");
        let example = example.unwrap_or_else(|| "there is no pool".to_owned());
        Err(Rejected::NoSubnet { prefix_len: spec.overlay_prefix_len, pools, example })
    }

    /// The first block of a pool that overlaps nothing, else the last thing that is in the way.
    fn free_block(&self, pool: Subnet, prefix_len: u8) -> Result<Subnet, Option<(Subnet, String)>> {
        let end = u64::from(u32::from(pool.address)) + pool.size();
        let mut next = u64::from(u32::from(pool.address));
        let mut in_the_way = None;
        while let Some(block) = u32::try_from(next)
            .ok()
            .filter(|_| next < end)
            .and_then(|first| Subnet::new(first.into(), prefix_len))
        {
            let Some((other, by)) = self.state.overlap(block, None) else { return Ok(block) };
            // On behind whichever of the two ends later; both are aligned to their size.
            let of = |subnet: Subnet| u64::from(u32::from(subnet.address)) + subnet.size();
            next = of(block).max(of(other));
            in_the_way = Some((other, by));
        }
        Err(in_the_way)
    }
}

pub(super) fn taken<A: Routed>(subnet: Subnet<A>, other: Subnet<A>, by: String) -> Rejected {
    Rejected::SubnetTaken { subnet: subnet.to_string(), other: other.to_string(), by }
}

/// The subnet of a network with each route of a node that overlaps it.
fn overlapping<A: Routed>(ipam: Ipam, facts: &NodeNetworkFacts) -> impl Iterator<Item = (String, String)> {
    let subnet = A::subnet_of(ipam);
    let routes = A::routes_of(facts).iter().filter_map(move |route| Some((subnet?, *route)));
    let routes = routes.filter(|(subnet, route)| route.overlaps(*subnet));
    routes.map(|(subnet, route)| (subnet.to_string(), route.to_string()))
}

/// Where subnets of a family are found that another one may overlap.
pub(crate) trait Routed: Address {
    fn subnet_of(ipam: Ipam) -> Option<Subnet<Self>>;
    fn routes_of(facts: &NodeNetworkFacts) -> &[Subnet<Self>];
}

impl Routed for Ipv4Addr {
    fn subnet_of(ipam: Ipam) -> Option<Subnet> {
        Some(ipam.subnet).filter(|_| !ipam.is_ipv6_alone())
    }

    fn routes_of(facts: &NodeNetworkFacts) -> &[Subnet] {
        &facts.routes
    }
}

impl Routed for Ipv6Addr {
    fn subnet_of(ipam: Ipam) -> Option<Subnet6> {
        ipam.ipv6.map(|ipv6| ipv6.subnet)
    }

    fn routes_of(facts: &NodeNetworkFacts) -> &[Subnet6] {
        &facts.routes6
    }
}
