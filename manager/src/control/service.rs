//! Services: written by users, checked here, carried out by the control loops.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::state::{ObjectRef, Rejected, ServiceChange, Write};
use rswarm_core::validate;
use rswarm_types::task::RegistryAuth;
use rswarm_types::{
    NetworkDriver, NodeState, Service, ServiceId, ServiceMode, ServiceSpec, Task, TaskState, Version,
};
use tonic::{Code, Status};

use super::filter::Filters;
use super::{ControlService, lookup, name};
use crate::error::rejected;
use crate::image::{RESOLVE_TIMEOUT, ResolveError};
use crate::random;
use rswarm_types::error::chain;

/// Names tried for a service that was given none, before numbers are appended.
const PLAIN_NAMES: u32 = 8;

impl ControlService {
    pub(super) async fn create_service(
        &self,
        request: v1::CreateServiceRequest,
    ) -> Result<v1::CreateServiceResponse, Status> {
        let state = self.context.read().await?;
        let mut wire = request.spec.ok_or_else(|| Status::invalid_argument("expected a spec, found none"))?;
        if wire.name.is_empty() {
            wire.name = free_name(&state);
        }
        let mut spec = Self::spec_of(&state, wire)?;
        spec.task.container.registry_auth = request.registry_auth.map(credential).transpose()?.flatten();
        validate::service_spec(&spec).map_err(|error| Status::invalid_argument(chain(&error)))?;
        if let Some(held) = state.service_by_name(&spec.name) {
            return Err(Status::already_exists(format!(
                "name `{}` is in use by service `{}`",
                spec.name, held.id
            )));
        }
        let mut warnings = Vec::new();
        if !request.no_resolve_image {
            warnings.extend(self.pin_image(&mut spec).await?);
        }
        let id = ServiceId::from_bytes(random::bytes());
        let callers = spec.endpoint.allow_from.clone();
        let state = self.context.write(vec![Write::CreateService { id, spec: Box::new(spec) }]).await?;
        warnings.extend(callers_to_come(&state, &callers));
        Ok(v1::CreateServiceResponse { service: Some(shown_by_id(&state, id)?), warnings })
    }

    pub(super) async fn update_service(
        &self,
        request: v1::UpdateServiceRequest,
    ) -> Result<v1::UpdateServiceResponse, Status> {
        let state = self.context.read().await?;
        let held = lookup::service(&state, &request.id)?;
        let id = held.id;
        let (expected, found) = (Version(request.version), held.meta.version);
        if expected != found {
            // `apply` has the last word; this spares a stale request the way to the registry.
            return Err(rejected(&Rejected::Stale { object: ObjectRef::Service(id), expected, found }));
        }
        let mut warnings = Vec::new();
        let (spec, change) = if request.rollback {
            let previous = held.previous_spec.as_deref().cloned().ok_or_else(|| {
                Status::failed_precondition(format!(
                    "service `{}` has no previous spec to go back to",
                    held.spec.name
                ))
            })?;
            (previous, ServiceChange::Rollback)
        } else {
            let wire = request.spec.ok_or_else(|| Status::invalid_argument("expected a spec, found none"))?;
            let mut spec = Self::spec_of(&state, wire)?;
            spec.task.container.registry_auth = match request.registry_auth {
                Some(auth) => credential(auth)?,
                None => held.spec.task.container.registry_auth.clone(),
            };
            validate::service_update(held, &spec).map_err(|error| Status::invalid_argument(chain(&error)))?;
            if request.resolve_image {
                warnings.extend(self.pin_image(&mut spec).await?);
            } else if spec.task.container.image != held.spec.task.container.image {
                // Platforms are those of an image: of this one they are not known.
                spec.task.placement.platforms.clear();
            }
            (spec, ServiceChange::Update)
        };
        let callers = spec.endpoint.allow_from.clone();
        let write = Write::UpdateService { id, spec: Box::new(spec), expected, change };
        let state = self.context.write(vec![write]).await?;
        warnings.extend(callers_to_come(&state, &callers));
        Ok(v1::UpdateServiceResponse { service: Some(shown_by_id(&state, id)?), warnings })
    }

    pub(super) async fn remove_service(
        &self,
        request: &v1::RemoveServiceRequest,
    ) -> Result<v1::RemoveServiceResponse, Status> {
        let state = self.context.read().await?;
        let id = lookup::service(&state, &request.service)?.id;
        self.context.write(vec![Write::RemoveService { id, expected: None }]).await?;
        Ok(v1::RemoveServiceResponse {})
    }

    pub(super) async fn services(
        &self,
        request: &v1::ListServicesRequest,
    ) -> Result<v1::ListServicesResponse, Status> {
        let filters = Filters::new(&request.filters, &["id", "name", "label", "mode", "runtime"])?;
        if let Some(odd) =
            filters.values("runtime").find(|runtime| !["container", "plugin"].contains(runtime))
        {
            return Err(Status::invalid_argument(format!(
                "invalid filter `runtime`: expected `container` or `plugin`, found `{odd}`"
            )));
        }
        if let Some(mode) = filters.values("mode").find(|mode| !["replicated", "global"].contains(mode)) {
            return Err(Status::invalid_argument(format!(
                "invalid filter `mode`: expected `replicated` or `global`, found `{mode}`"
            )));
        }
        let state = self.context.read().await?;
        let services = state
            .services()
            .filter(|service| {
                let mode = match service.spec.mode {
                    ServiceMode::Replicated { .. } => "replicated",
                    ServiceMode::Global => "global",
                };
                filters.prefix("id", &service.id.to_string())
                    && filters.prefix("name", &service.spec.name)
                    && filters.label("label", &service.spec.labels)
                    && filters.any("mode", |wanted| wanted == mode)
                    // Services of plugins are Docker's; here all are of containers.
                    && filters.any("runtime", |wanted| wanted == "container")
            })
            .map(|service| shown(&state, service))
            .collect();
        Ok(v1::ListServicesResponse { services })
    }

    pub(super) async fn service(
        &self,
        request: &v1::GetServiceRequest,
    ) -> Result<v1::GetServiceResponse, Status> {
        let state = self.context.read().await?;
        let service = lookup::service(&state, &request.service)?;
        Ok(v1::GetServiceResponse { service: Some(shown(&state, service)) })
    }

    /// A spec from the wire, with names of networks resolved.
    fn spec_of(state: &State, mut wire: v1::ServiceSpec) -> Result<ServiceSpec, Status> {
        for attachment in wire.task.iter_mut().flat_map(|task| &mut task.networks) {
            let network = lookup::network(state, &attachment.network)?;
            let own = matches!(network.spec.driver, NetworkDriver::Bridge | NetworkDriver::Overlay);
            if !own && !attachment.aliases.is_empty() {
                return Err(Status::invalid_argument(format!(
                    "network `{}` takes no aliases: it gives tasks no addresses of their own",
                    network.spec.name
                )));
            }
            attachment.network = network.id.to_string();
        }
        let spec = ServiceSpec::try_from(wire)?;
        validate::service_networks(state, &spec).map_err(|error| Status::invalid_argument(chain(&error)))?;
        Ok(spec)
    }

    /// Pins the image to its digest and notes its platforms. What cannot be looked up stays as written, with a
    /// warning; what certainly is no image is an error.
    async fn pin_image(&self, spec: &mut ServiceSpec) -> Result<Option<String>, Status> {
        let image = spec.task.container.image.clone();
        let auth = spec.task.container.registry_auth.clone();
        let lookup = self.context.images.resolve(&image, auth.as_ref());
        match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
            Ok(Ok(resolved)) => {
                spec.task.container.image = resolved.pinned;
                spec.task.placement.platforms = resolved.platforms;
                Ok(None)
            }
            Ok(Err(error)) => match error {
                ResolveError::Invalid { .. } => Err(Status::invalid_argument(chain(&error))),
                ResolveError::NotFound { .. } => Err(Status::not_found(chain(&error))),
                ResolveError::Denied { .. } | ResolveError::Unavailable { .. } => {
                    Ok(Some(unpinned(&chain(&error))))
                }
            },
            Err(_) => Ok(Some(unpinned(&format!(
                "image `{image}` could not be looked up within {}",
                seconds(RESOLVE_TIMEOUT)
            )))),
        }
    }
}

/// What to say of services that may connect to one and do not exist: one may come before those that call it.
fn callers_to_come(state: &State, callers: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let unknown = callers.iter().filter(|name| state.service_by_name(name).is_none());
    unknown.map(|name| {
        format!("there is no service `{name}` to let in yet: it will be let in once it is created")
    })
}

/// A credential from the wire; `None` for one that holds nothing.
fn credential(wire: v1::RegistryAuth) -> Result<Option<RegistryAuth>, Status> {
    if wire == v1::RegistryAuth::default() {
        return Ok(None);
    }
    RegistryAuth::try_from(wire)
        .map(Some)
        .map_err(|error| Status::invalid_argument(format!("credential for a registry: {error}")))
}

fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs())
}

fn unpinned(why: &str) -> String {
    format!("{why}; the image is not pinned to a digest, so nodes may come to run different versions of it")
}

/// A name no service has.
fn free_name(state: &State) -> String {
    let taken = |name: &String| state.service_by_name(name).is_some();
    (0..PLAIN_NAMES).map(|_| name::from_random(random::number())).find(|name| !taken(name)).unwrap_or_else(
        || {
            let plain = name::from_random(random::number());
            let numbered = (1..).map(|number| name::with_number(&plain, number)).find(|name| !taken(name));
            numbered.unwrap_or(plain)
        },
    )
}

fn shown_by_id(state: &State, id: ServiceId) -> Result<v1::Service, Status> {
    let service = state.service(id).ok_or_else(|| {
        Status::new(Code::Aborted, format!("service `{id}` was removed by someone else in the meantime"))
    })?;
    Ok(shown(state, service))
}

/// A service on the wire, its tasks counted.
pub(super) fn shown(state: &State, service: &Service) -> v1::Service {
    v1::Service { counts: Some(counts(state, service)), ..service.into() }
}

/// How many tasks run, and how many should. Source: swarm-parity 1.4: of a global service, the tasks not told to stop.
fn counts(state: &State, service: &Service) -> v1::ServiceCounts {
    let runs = |task: &&Arc<Task>| {
        task.status.state == TaskState::Running
            && task.node_id.and_then(|id| state.node(id)).is_some_and(|n| n.status.state != NodeState::Down)
    };
    let running = state.tasks_of(service.id).filter(runs).count() as u64;
    let desired = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => {
            state.tasks_of(service.id).filter(|task| task.desired <= TaskState::Running).count() as u64
        }
    };
    v1::ServiceCounts { running, desired }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_name_is_valid() {
        let name = free_name(&State::default());
        assert_eq!(validate::name(&name), Ok(()));
    }
}
