//! Whether the tasks of this node are answered by name, and what is done if not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rswarm_net::Endpoint;
use rswarm_resolver::{Asker, Health};
use rswarm_types::netmap::NetworkMap;
use rswarm_types::task::TaskNetwork;
use rswarm_types::{NetworkDriver, Task};

use super::{State, TaskNetworks, blocking};
use crate::executor::Failure;

impl TaskNetworks {
    /// What keeps the tasks here from being answered by name.
    pub(super) async fn resolver_fault(&self) -> Result<Option<String>, Failure> {
        let askers = self.state.lock().await.askers();
        let resolver = self.resolver.clone();
        blocking(move || resolver.fault(&askers)).await
    }

    pub(super) async fn mend_resolver(&self) -> Result<(), Failure> {
        let Some(fault) = self.resolver_fault().await? else { return Ok(()) };
        let state = self.state.lock().await;
        if state.askers().is_empty() {
            // The node has left meanwhile, or its last task is gone.
            return Ok(());
        }
        let resolver = self.resolver.clone();
        blocking(move || resolver.replace()).await??;
        self.mended.fetch_add(1, Ordering::Relaxed);
        tracing::info!(fault, "the node's resolver was replaced");
        Ok(())
    }

    /// The name server of a connected container that is on bridges alone: the gateway of the first that has names, if the
    /// resolver answers there. What a node's own firewall drops, or somebody else serves, must not leave it without
    /// any: it then has the node's name servers, as on the default bridge.
    pub async fn name_server(&self, task: &Task) -> Option<IpAddr> {
        // The kernel may take 1 s to let the first packet of a new link pass.
        const PATIENCE: Duration = Duration::from_secs(2);
        if task.networks.iter().any(|network| network.driver == NetworkDriver::Overlay) {
            return None;
        }
        let (asker, name) = {
            let mut state = self.state.lock().await;
            if let Err(failure) = self.catch_up(&mut state).await {
                tracing::warn!(task = %task.id, error = %failure.text, "a task is without names");
                return None;
            }
            // Without overlays no resolver runs.
            let known = |network: &&TaskNetwork| state.map.bridges.contains_key(&network.network);
            let bridge = task.networks.iter().find(known).filter(|_| !state.map.networks.is_empty())?;
            let id = bridge.network.to_string();
            let endpoint = state.attached.get(&task.id)?.endpoints.iter().find(|one| one.network == id)?;
            (asker(&state.map, endpoint), bridge.name.clone())
        };
        let server = asker.server;
        let health = blocking(move || rswarm_resolver::health(&[asker], PATIENCE)).await.ok()?;
        if health != Some(Health::Answered) {
            tracing::warn!(task = %task.id, network = name, %server, ?health,
                "a task has the node's name servers: the resolver is not to be reached from its bridge");
            return None;
        }
        let mut state = self.state.lock().await;
        state.attached.get_mut(&task.id)?.name_server = Some(server);
        Some(server)
    }
}

impl State {
    /// A task here on each network with names, but no more than a few: to hear whether tasks are answered.
    fn askers(&self) -> Vec<Asker> {
        const MAX: usize = 4;
        let mut askers = BTreeMap::new();
        let all = self.attached.values().flat_map(|one| one.endpoints.iter().map(move |end| (one, end)));
        for (attached, endpoint) in all {
            let known = endpoint.network.parse().is_ok_and(|id| self.map.networks.contains_key(&id));
            let asker = asker(&self.map, endpoint);
            let asks = known || attached.name_server == Some(asker.server);
            if asks && askers.len() < MAX {
                askers.entry(&endpoint.network).or_insert(asker);
            }
        }
        askers.into_values().collect()
    }
}

/// Who asks from the namespace of a container, and at which address: as the container would, by the network of `endpoint`.
fn asker(map: &NetworkMap, endpoint: &Endpoint) -> Asker {
    let id = endpoint.network.parse().ok();
    let overlay = || Some(map.networks.get(&id?)?.ipv6);
    let bridge = || Some(map.bridges.get(&id?)?.ipv6);
    let alone = overlay().or_else(bridge).flatten().filter(|ipv6| ipv6.alone);
    let (address, server) = match endpoint.ipv6.zip(alone) {
        Some((address, ipv6)) => (address.into(), ipv6.gateway.into()),
        None => (endpoint.address.into(), endpoint.gateway.into()),
    };
    Asker { netns: format!("/proc/{}/ns/net", endpoint.netns_pid).into(), address, server }
}
