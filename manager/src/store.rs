//! The cluster state as readers see it: the newest snapshot, and a wake-up when there is a newer one.
//!
//! Only `raft/` publishes. A reader compares two snapshots, so nothing overflows and nothing is missed.

use std::sync::Arc;

use rswarm_core::State;
use tokio::sync::watch;

/// Handle on the newest state this manager has applied; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    current: Arc<watch::Sender<Arc<State>>>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { current: Arc::new(watch::Sender::new(Arc::new(State::default()))) }
    }

    /// The newest state; later writes do not change it. Costs one reference count.
    pub fn snapshot(&self) -> Arc<State> {
        self.current.borrow().clone()
    }

    /// Wakes whenever a newer state was published; several writes may come as one. Clone the state out of `borrow()`
    /// at once: a borrow held across an await blocks the writer.
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.current.subscribe()
    }

    pub(crate) fn publish(&self, next: Arc<State>) {
        self.current.send_replace(next);
    }
}
