//! What the host's own network is like.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Kernel, LOOPBACK};
use crate::{
    error::NetError,
    model::Cidr,
    netlink::{
        forwarding,
        route::{self, Link},
    },
    network::Facts,
};

impl Kernel {
    /// Networks the host routes, ours left out, and the size of the link that has `source`.
    pub fn facts(&mut self, source: Ipv4Addr) -> Result<Facts, NetError> {
        let failed = |error| NetError::kernel("read links and addresses", error);
        let links = route::links(&mut self.route).map_err(failed)?;
        let addresses = route::addresses(&mut self.route).map_err(failed)?;
        self.facts_of(&links, &addresses, source)
    }

    pub(super) fn facts_of(
        &mut self,
        links: &[Link],
        addresses: &[(u32, Cidr)],
        source: Ipv4Addr,
    ) -> Result<Facts, NetError> {
        let ours = |link: &&Link| {
            let alias = link.alias.as_deref().unwrap_or_default();
            self.config.is_ours(alias) || alias == self.config.uplink_alias()
        };
        let ours: BTreeSet<u32> = links.iter().filter(ours).map(|link| link.index).collect();
        let failed = |error| NetError::kernel("read routes", error);
        let routes = forwarding::routes::<Ipv4Addr>(&mut self.route).map_err(failed)?;
        let wanted = routes.iter().filter(|route| route.to.prefix_len > 0 && !ours.contains(&route.link));
        let routes6 = forwarding::routes::<Ipv6Addr>(&mut self.route).map_err(failed)?;
        // Each link has a route to its own link-local addresses.
        let wanted6 = routes6.iter().filter(|route| {
            route.to.prefix_len > 0
                && !route.to.address.is_unicast_link_local()
                && !ours.contains(&route.link)
                && route.link != LOOPBACK
        });
        let addresses6 = route::addresses6(&mut self.route).map_err(failed)?;
        let all = addresses.iter().map(|(index, cidr)| (*index, IpAddr::from(cidr.address)));
        let all = all.chain(addresses6.iter().map(|(index, cidr)| (*index, cidr.address.into())));
        let known = all.filter(|(index, address)| {
            let of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            !ours.contains(index) && !address.is_loopback() && !of_link
        });
        let holder = addresses.iter().find(|(_, cidr)| cidr.address == source).map(|(index, _)| *index);
        let carrier = links.iter().find(|link| Some(link.index) == holder);
        Ok(Facts {
            routes: wanted.map(|route| route.to).collect(),
            routes6: wanted6.map(|route| route.to).collect(),
            addresses: known.map(|(_, address)| address).collect(),
            mtu: carrier.map(|link| link.mtu),
        })
    }
}
