//! Networks: made and removed by users; `bridge`, `host` and `none` are there from `init` on and stay.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::state::Write;
use rswarm_core::validate;
use rswarm_types::error::chain;
use rswarm_types::{Meta, Network, NetworkDriver, NetworkId, NetworkSpec, Timestamp, Version};
use tonic::Status;

use super::filter::Filters;
use super::{ControlService, lookup, service};
use crate::random;

/// Networks of every cluster.
const BUILT_IN: [&str; 3] = ["bridge", "host", "none"];

impl ControlService {
    pub(super) async fn create_network(
        &self,
        request: v1::CreateNetworkRequest,
    ) -> Result<v1::CreateNetworkResponse, Status> {
        let wire = request.spec.ok_or_else(|| Status::invalid_argument("expected a spec, found none"))?;
        let mut spec = NetworkSpec::try_from(wire)?;
        validate::network_spec(&mut spec).map_err(|error| Status::invalid_argument(chain(&error)))?;
        let id = NetworkId::from_bytes(random::bytes());
        let network = Network { id, meta: Meta::default(), spec, ipam: None, vni: None };
        let state = self.context.write(vec![Write::CreateNetwork(Box::new(network))]).await?;
        let made = state.network(id).ok_or_else(|| {
            Status::aborted(format!("network `{id}` was removed by someone else in the meantime"))
        })?;
        Ok(v1::CreateNetworkResponse { network: Some((&**made).into()) })
    }

    pub(super) async fn networks(
        &self,
        request: &v1::ListNetworksRequest,
    ) -> Result<v1::ListNetworksResponse, Status> {
        const KEYS: [&str; 7] = ["id", "name", "label", "driver", "scope", "type", "dangling"];
        let filters = Filters::new(&request.filters, &KEYS)?;
        let drivers: Vec<NetworkDriver> = filters.parsed("driver")?;
        let dangling: Vec<bool> = filters.parsed("dangling")?;
        one_of(&filters, "scope", &["swarm", "local"])?;
        one_of(&filters, "type", &["custom", "builtin"])?;
        let state = self.context.read().await?;
        let networks = state
            .networks()
            .filter(|network| {
                let kind = if is_built_in(network) { "builtin" } else { "custom" };
                filters.part("id", &network.id.to_string())
                    && filters.part("name", &network.spec.name)
                    && filters.label("label", &network.spec.labels)
                    && (drivers.is_empty() || drivers.contains(&network.spec.driver))
                    && filters.any("scope", |wanted| wanted == scope(network))
                    && filters.any("type", |wanted| wanted == kind)
                    && (dangling.is_empty()
                        || dangling.contains(&(!is_built_in(network) && user(&state, network).is_none())))
            })
            .map(|network| (&**network).into())
            .collect();
        Ok(v1::ListNetworksResponse { networks })
    }

    pub(super) async fn network(
        &self,
        request: &v1::GetNetworkRequest,
    ) -> Result<v1::GetNetworkResponse, Status> {
        let state = self.context.read().await?;
        let network = lookup::network(&state, &request.network)?;
        let mut response =
            v1::GetNetworkResponse { network: Some((&**network).into()), ..Default::default() };
        if request.verbose {
            let services = state.services_on(network.id).filter_map(|id| state.service(id));
            response.services = services.map(|held| service::shown(&state, held)).collect();
            let attached = state.tasks().filter(|task| {
                let on_it = task.networks.iter().any(|one| one.network == network.id);
                on_it && task.node_id.is_some() && !task.status.state.is_terminal()
            });
            response.tasks = attached.map(|task| (&**task).into()).collect();
        }
        Ok(response)
    }

    pub(super) async fn update_network(
        &self,
        request: v1::UpdateNetworkRequest,
    ) -> Result<v1::UpdateNetworkResponse, Status> {
        let wire = request.spec.ok_or_else(|| Status::invalid_argument("expected a spec, found none"))?;
        let mut spec = NetworkSpec::try_from(wire)?;
        let state = self.context.read().await?;
        let network = lookup::network(&state, &request.id)?;
        refuse_built_in(network, "changed")?;
        validate::network_spec(&mut spec).map_err(|error| Status::invalid_argument(chain(&error)))?;
        let (id, expected) = (network.id, Version(request.version));
        let write = Write::UpdateNetwork { id, spec: Box::new(spec), expected };
        let state = self.context.write(vec![write]).await?;
        let network = lookup::network(&state, &id.to_string())?;
        Ok(v1::UpdateNetworkResponse { network: Some((&**network).into()) })
    }

    pub(super) async fn remove_network(
        &self,
        request: &v1::RemoveNetworkRequest,
    ) -> Result<v1::RemoveNetworkResponse, Status> {
        let state = self.context.read().await?;
        let network = lookup::network(&state, &request.network)?;
        refuse_built_in(network, "removed")?;
        if let Some(user) = user(&state, network) {
            return Err(Status::failed_precondition(format!(
                "network `{}` is in use by {user}; remove that first",
                network.spec.name
            )));
        }
        self.context.write(vec![Write::RemoveNetwork { id: network.id }]).await?;
        Ok(v1::RemoveNetworkResponse {})
    }

    pub(super) async fn connect_task(
        &self,
        request: v1::ConnectTaskRequest,
    ) -> Result<v1::ConnectTaskResponse, Status> {
        let invalid = |error: &dyn std::error::Error| Status::invalid_argument(chain(error));
        validate::aliases(&request.aliases).map_err(|error| invalid(&error))?;
        let address = match request.address.as_str() {
            "" => None,
            text => Some(
                text.parse::<IpAddr>()
                    .map_err(|_| Status::invalid_argument(format!("expected an address, found `{text}`")))?,
            ),
        };
        let state = self.context.read().await?;
        let network = lookup::network(&state, &request.network)?;
        let address = address.map(|address| number(network, address)).transpose()?;
        let network = network.id;
        let id = lookup::task(&state, &request.task)?.id;
        let write = Write::ConnectTask { id, network, aliases: request.aliases, address };
        let state = self.context.write(vec![write]).await?;
        Ok(v1::ConnectTaskResponse { task: state.task(id).map(|task| (&**task).into()) })
    }

    pub(super) async fn disconnect_task(
        &self,
        request: &v1::DisconnectTaskRequest,
    ) -> Result<v1::DisconnectTaskResponse, Status> {
        let state = self.context.read().await?;
        let network = lookup::network(&state, &request.network)?.id;
        let id = lookup::task(&state, &request.task)?.id;
        let state = self.context.write(vec![Write::DisconnectTask { id, network }]).await?;
        Ok(v1::DisconnectTaskResponse { task: state.task(id).map(|task| (&**task).into()) })
    }

    pub(super) async fn prune_networks(
        &self,
        request: &v1::PruneNetworksRequest,
    ) -> Result<v1::PruneNetworksResponse, Status> {
        let filters = Filters::new(&request.filters, &["label", "label!", "until"])?;
        let until: Option<u64> = filters.parsed("until")?.into_iter().min();
        let state = self.context.read().await?;
        let old = |network: &Network| until.is_none_or(|until| network.meta.created_at < Timestamp(until));
        let unwanted = |network: &&Arc<Network>| {
            !is_built_in(network)
                && !network.spec.ingress
                && user(&state, network).is_none()
                && old(network)
                && filters.label("label", &network.spec.labels)
                && (filters.values("label!").next().is_none()
                    || !filters.label("label!", &network.spec.labels))
        };
        let mut removed = Vec::new();
        for network in state.networks().filter(unwanted) {
            // One that came into use meanwhile stays.
            if self.context.write(vec![Write::RemoveNetwork { id: network.id }]).await.is_ok() {
                removed.push(network.spec.name.clone());
            }
        }
        Ok(v1::PruneNetworksResponse { removed })
    }
}

fn one_of(filters: &Filters<'_>, key: &str, known: &[&str]) -> Result<(), Status> {
    match filters.values(key).find(|value| !known.contains(value)) {
        Some(odd) => Err(Status::invalid_argument(format!(
            "invalid filter `{key}`: expected `{}`, found `{odd}`",
            known.join("` or `")
        ))),
        None => Ok(()),
    }
}

/// Who keeps a network from being removed, by name. Its removal is refused all the same should there be one by then.
fn user(state: &State, network: &Network) -> Option<String> {
    let service = state.services_on(network.id).find_map(|id| state.service(id));
    let live = state.tasks().filter(|task| !task.status.state.is_terminal());
    let mut on_it = live
        .filter_map(|task| Some((task, task.networks.iter().find(|one| one.network == network.id)?.joined)));
    match service {
        Some(service) => Some(format!("service `{}`", service.spec.name)),
        None => on_it.next().map(|(task, joined)| {
            let why = if joined { "connected to it" } else { "about to stop" };
            format!("task `{}`, which is {why}", task.name())
        }),
    }
}

/// The address of a network by which it keeps account of this one.
fn number(network: &Network, address: IpAddr) -> Result<Ipv4Addr, Status> {
    let of_network = match (address, network.ipam) {
        (IpAddr::V4(_), Some(ipam)) if ipam.is_ipv6_alone() => None,
        (IpAddr::V4(address), _) => Some(address),
        (IpAddr::V6(twin), ipam) => ipam.and_then(|ipam| ipam.ipv6?.of_twin(ipam.subnet, twin)),
    };
    of_network.ok_or_else(|| {
        let subnets = network.ipam.map(|ipam| {
            let ipv4 = (!ipam.is_ipv6_alone()).then(|| format!("`{}`", ipam.subnet));
            let twins = |subnet| format!("the first {} of `{subnet}`", ipam.subnet.size());
            let ipv6 = ipam.ipv6.map(|ipv6| twins(ipv6.subnet));
            ipv4.into_iter().chain(ipv6).collect::<Vec<_>>().join(" or ")
        });
        Status::invalid_argument(format!(
            "network `{}` has no address `{address}`: expected one of {}",
            network.spec.name,
            subnets.unwrap_or_else(|| "a network that gives addresses".to_owned())
        ))
    })
}

fn refuse_built_in(network: &Network, what: &str) -> Result<(), Status> {
    let name = &network.spec.name;
    let text = || format!("network `{name}` is one that every cluster has, and cannot be {what}");
    if is_built_in(network) { Err(Status::failed_precondition(text())) } else { Ok(()) }
}

fn is_built_in(network: &Network) -> bool {
    BUILT_IN.contains(&network.spec.name.as_str())
}

fn scope(network: &Network) -> &'static str {
    if network.spec.driver == NetworkDriver::Overlay { "swarm" } else { "local" }
}
