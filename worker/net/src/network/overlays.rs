//! What the network thread does for overlays: the same requests, performed in the helper namespace.

use std::{collections::BTreeSet, sync::Arc};

use super::{Node, forget_early_datagrams, refuse_ports_in_use};
use crate::{
    error::NetError,
    model::{Endpoint, NodeNetwork, Protocol},
    overlay::{
        Overlay, PublishedPort, fabric,
        plan::{Action, in_order, plan_attach, plan_detach},
    },
    plan::{self, Mesh, Operation},
};

/// Whether a port did not answer before where it is to.
fn is_new(old: &Overlay, key: &(Protocol, u16), to: &PublishedPort) -> bool {
    old.published.get(key).is_none_or(|before| before.at != to.at)
}

impl Node {
    pub(super) fn apply(&mut self, overlay: Overlay) -> Result<BTreeSet<(Protocol, u16)>, NetError> {
        let next = NodeNetwork { overlay: Some(Arc::new(overlay)), ..self.current.clone() };
        next.validate()?;
        let by_change = match (&self.current.overlay, &next.overlay, &self.mesh) {
            (Some(old), Some(new), Some(mesh)) if !fabric::is_deep(old, new) => {
                let mesh = self.mesh_after(mesh, old, new);
                let operations = self.overlay_changes(old, new, &next, &mesh);
                let mut performed = Ok(());
                self.kernel.perform(&operations, |_, result| {
                    performed = result;
                    performed.is_ok()
                });
                performed.map(|()| mesh).map_err(Some)
            }
            _ => Err(None),
        };
        match by_change {
            Ok(mesh) => {
                self.mesh = Some(mesh);
                self.current = next;
            }
            Err(error) => {
                if let Some(error) = error {
                    tracing::info!(%error, "the overlays are not as they were left: comparing them with the kernel");
                }
                if let Some((_, error)) = self.reconcile(next)?.failed.into_iter().next() {
                    return Err(error);
                }
            }
        }
        Ok(self.in_use())
    }

    /// Ports that are new are looked at: another process may listen on them.
    fn mesh_after(&self, mesh: &Mesh, old: &Overlay, new: &Overlay) -> Mesh {
        let asked = new.published.iter().filter(|(key, to)| is_new(old, key, to) || mesh.busy.contains(key));
        let busy = asked.filter(|(key, to)| to.is_taken(**key)).map(|(key, _)| *key);
        Mesh { uplink: mesh.uplink, busy: busy.collect() }
    }

    fn overlay_changes(
        &self,
        old: &Overlay,
        new: &Overlay,
        next: &NodeNetwork,
        mesh: &Mesh,
    ) -> Vec<Operation> {
        let (gone, come) = fabric::changes(old, new);
        let left = fabric::left(old, new).into_iter().map(|address| Action::Forget { address });
        let steps = in_order(left.collect(), gone, come);
        let mut operations: Vec<_> = steps.into_iter().map(Operation::Overlay).collect();
        let same = old.published == new.published
            && old.guarded == new.guarded
            && old.peer_addresses == new.peer_addresses
            && old.tunnel().is_some() == new.tunnel().is_some();
        if same && self.mesh.as_ref() == Some(mesh) {
            return operations;
        }
        let before = plan::elements(&self.kernel.config, &self.current, self.mesh.as_ref());
        let after = plan::elements(&self.kernel.config, next, Some(mesh));
        operations.extend(before.difference(&after).cloned().map(Operation::RemoveElement));
        operations.extend(after.difference(&before).cloned().map(Operation::AddElement));
        // Datagrams that came before have left untranslated connections behind.
        let udp = new.published.iter().filter(|((protocol, _), _)| *protocol == Protocol::Udp);
        let fresh = udp.filter(|(key, to)| is_new(old, key, to));
        operations.extend(
            fresh.map(|((protocol, port), _)| Operation::ForgetPort { protocol: *protocol, port: *port }),
        );
        operations
    }

    pub(super) fn attach_to_overlay(
        &mut self,
        next: NodeNetwork,
        endpoint: &Endpoint,
    ) -> Result<(), NetError> {
        let config = self.kernel.config.clone();
        let missing =
            || NetError::UnknownNetwork { endpoint: endpoint.id.clone(), network: endpoint.network.clone() };
        let local = next.local(endpoint).ok_or_else(missing)?;
        let before = self.current.endpoint(&endpoint.id).cloned();
        let old = before.as_ref().and_then(|before| self.current.local(before));
        let link = config.link_name(&endpoint.id);
        let port = self.kernel.helper()?.ok_or_else(missing)?.port(&link)?;
        let inside = if port.is_some() { self.kernel.inside(endpoint)? } else { None };
        let steps = plan_attach(&config, old.as_ref(), &local, port.as_ref(), inside.as_ref());
        refuse_ports_in_use(before.as_ref(), endpoint)?;
        let mut operations: Vec<_> = steps.into_iter().map(Operation::Overlay).collect();
        operations.extend(self.element_changes(before.as_ref(), endpoint, &next));
        operations.extend(forget_early_datagrams(before.as_ref(), endpoint));
        if let Err(error) = self.perform(&next, &operations) {
            let added = before.is_none();
            if added {
                self.undo_attach_to_overlay(&next, endpoint);
            }
            return Err(error);
        }
        self.current = next;
        Ok(())
    }

    /// As [`Self::undo_attach`]; what is not there to be removed is left to the next reconciliation.
    fn undo_attach_to_overlay(&mut self, next: &NodeNetwork, endpoint: &Endpoint) {
        let wanted = std::mem::replace(&mut self.current, next.clone());
        let result = self.detach(&endpoint.id);
        if let Err(error) = result {
            tracing::info!(%error, "undoing an attach by comparing with the kernel");
            let restored = self.reconcile(wanted.clone());
            if let Err(error) = restored {
                tracing::warn!(%error, "failed to undo an attach");
            }
        }
        self.current = wanted;
    }

    /// Detaches an endpoint of an overlay; `None` when it is not known to be on one.
    pub(super) fn detach_from_overlay(&mut self, id: &str) -> Result<Option<bool>, NetError> {
        let config = self.kernel.config.clone();
        let link = config.link_name(id);
        let Some(helper) = self.kernel.helper()? else { return Ok(None) };
        let port = helper.port(&link)?;
        let Some(endpoint) = self.current.endpoint(id).cloned() else {
            if port.is_none() {
                return Ok(None);
            }
            // An earlier daemon's. Its link is enough to know: all else is what nothing asks for.
            let alias = port.and_then(|port| port.alias);
            let address =
                alias.as_deref().and_then(|alias| config.endpoint_of_alias(alias)).map(|(_, at)| at);
            let pieces = self.kernel.overlay_pieces_of(&link, address)?;
            let mut actions = vec![Action::RemovePort { link }];
            actions.extend(address.map(|address| Action::Forget { address: address.into() }));
            let steps = in_order(actions, pieces, Vec::new());
            let next = self.current.clone();
            self.perform(&next, &steps.into_iter().map(Operation::Overlay).collect::<Vec<_>>())?;
            return Ok(Some(true));
        };
        let mut next = self.current.clone();
        next.endpoints.retain(|other| other.id != id);
        let Some(local) = self.current.local(&endpoint) else { return Ok(None) };
        let steps = plan_detach(&config, &local, port.is_some());
        let mut operations: Vec<_> = steps.into_iter().map(Operation::Overlay).collect();
        operations
            .extend(self.elements_of(&self.current, &endpoint).into_iter().map(Operation::RemoveElement));
        self.perform(&next, &operations)?;
        self.current = next;
        Ok(Some(true))
    }
}
