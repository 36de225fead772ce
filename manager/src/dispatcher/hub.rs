//! The sessions open on the leader: who is connected, whom to wake, and how to reach a node.
//!
//! Leases are [`rswarm_core::dispatch::Sessions`]'s; this adds the live ends of the streams. Lives and dies with the
//! leader unit.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rswarm_api::v1;
use rswarm_core::State;
use rswarm_core::dispatch::{self, Expiry, SessionError, SessionId};
use rswarm_core::state::Write;
use rswarm_types::{NodeId, Timestamp, Version};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Log subscriptions on their way to one node. They are answered at once; more than these means a stuck worker.
const PUSHES: usize = 64;
/// Leases are looked at no more often than this, however many end one after the other.
pub(super) const EXPIRY_PERIOD_MIN: Duration = Duration::from_millis(50);

/// All sessions of this leader.
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Wakes the task that looks at leases: there is a new one.
    pub(crate) lease_added: Notify,
    /// The index up to which the network of every node that is not down is as the state says.
    pub(super) settled: watch::Sender<Version>,
}

struct Inner {
    leases: dispatch::Sessions,
    open: BTreeMap<NodeId, Open>,
    next: u64,
}

struct Open {
    id: SessionId,
    wake: Arc<Notify>,
    push: mpsc::Sender<v1::manager_message::Message>,
    /// Of its network.
    settled: Version,
    superseded: CancellationToken,
    /// Who waits for what the node finds of its networks, in the order of asking.
    checks: VecDeque<oneshot::Sender<v1::NetworkCheck>>,
}

/// The session's own end; dropping it closes the session.
pub(super) struct Session {
    pub id: SessionId,
    pub node: NodeId,
    /// Something that concerns the node may have changed.
    pub wake: Arc<Notify>,
    /// Messages for the worker that others send.
    pub pushed: mpsc::Receiver<v1::manager_message::Message>,
    /// The node has opened another session.
    pub superseded: CancellationToken,
    hub: Arc<Hub>,
}

impl Hub {
    /// For a new leader, which has heard from nobody yet.
    pub(crate) fn new(state: &State, now: Timestamp) -> Self {
        let leases = dispatch::Sessions::new(state, now);
        let inner = Inner { leases, open: BTreeMap::new(), next: 1 };
        let settled = watch::Sender::new(Version(0));
        Self { inner: Mutex::new(inner), lease_added: Notify::new(), settled }
    }

    /// Opens a session, ending the one the node had. Also returns what to propose.
    pub(super) fn open(
        self: &Arc<Self>,
        state: &State,
        node: NodeId,
        addr: IpAddr,
        now: Timestamp,
    ) -> (Session, Vec<Write>) {
        let (push, pushed) = mpsc::channel(PUSHES);
        let (wake, superseded) = (Arc::new(Notify::new()), CancellationToken::new());
        let mut inner = self.lock();
        let id = SessionId(inner.next);
        inner.next += 1;
        let writes = inner.leases.register(state, node, id, Some(addr), now);
        let open = Open {
            id,
            wake: wake.clone(),
            push,
            settled: Version(0),
            superseded: superseded.clone(),
            checks: VecDeque::new(),
        };
        if let Some(former) = inner.open.insert(node, open) {
            former.superseded.cancel();
        }
        drop(inner);
        self.lease_added.notify_one();
        (Session { id, node, wake, pushed, superseded, hub: self.clone() }, writes)
    }

    /// Compares leases with the state.
    pub(crate) fn expire(&self, state: &State, now: Timestamp) -> Expiry {
        let mut inner = self.lock();
        let expiry = inner.leases.expire(state, now);
        // Nobody waits any more for the network of a node that is down.
        self.tell_settled(&inner, now);
        expiry
    }

    /// Wakes the sessions of these nodes.
    pub(crate) fn wake(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let inner = self.lock();
        for open in nodes.into_iter().filter_map(|node| inner.open.get(&node)) {
            open.wake.notify_one();
        }
    }

    /// Wakes every session.
    pub(crate) fn wake_all(&self) {
        for open in self.lock().open.values() {
            open.wake.notify_one();
        }
    }

    /// Sends a message to a node; `false` if it has no session, or takes no more.
    pub(crate) fn push(&self, node: NodeId, message: v1::manager_message::Message) -> bool {
        self.lock().open.get(&node).is_some_and(|open| open.push.try_send(message).is_ok())
    }

    /// Has a node look at its networks; `None` as above. The receiver fails when the session ends before the answer.
    pub(crate) fn check_network(&self, node: NodeId) -> Option<oneshot::Receiver<v1::NetworkCheck>> {
        let mut inner = self.lock();
        let open = inner.open.get_mut(&node)?;
        let (answer, answered) = oneshot::channel();
        let question = v1::manager_message::Message::CheckNetwork(v1::manager_message::CheckNetwork {});
        open.push.try_send(question).ok()?;
        open.checks.push_back(answer);
        Some(answered)
    }

    /// The least of what all nodes with a session have settled, unless one is away for a moment: its kernel goes on as
    /// it was told last.
    fn tell_settled(&self, inner: &Inner, now: Timestamp) {
        if !inner.leases.awaits_any(now)
            && let Some(least) = inner.open.values().map(|open| open.settled).min()
        {
            self.settled.send_if_modified(|settled| std::mem::replace(settled, least) != least);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The worker was heard from.
    pub(super) fn heard(&self, now: Timestamp) -> Result<(), SessionError> {
        self.hub.lock().leases.heartbeat(self.node, self.id, now)
    }

    /// The node's network is as the state of this index says.
    pub(super) fn settle(&self, index: Version) {
        let mut inner = self.hub.lock();
        if let Some(open) = inner.open.get_mut(&self.node).filter(|open| open.id == self.id) {
            open.settled = index;
        }
        self.hub.tell_settled(&inner, Timestamp::now());
    }

    /// What the node found of its networks.
    pub(super) fn network_checked(&self, check: v1::NetworkCheck) {
        let mut inner = self.hub.lock();
        let open = inner.open.get_mut(&self.node).filter(|open| open.id == self.id);
        if let Some(asked) = open.and_then(|open| open.checks.pop_front()) {
            // Whoever asked may have lost patience.
            let _ = asked.send(check);
        }
    }

    /// Told when all nodes have settled more.
    pub(super) fn settled(&self) -> watch::Receiver<Version> {
        self.hub.settled.subscribe()
    }

    /// Has every session look at the present state, so that those it does not concern say so.
    pub(super) fn wake_all(&self) {
        self.hub.wake_all();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.leases.close(self.node, self.id);
        if inner.open.get(&self.node).is_some_and(|open| open.id == self.id) {
            inner.open.remove(&self.node);
        }
    }
}
