//! Applies committed entries with the pure `apply` of the core, publishes what comes out, and makes and installs
//! snapshots of it.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, Snapshot};
use rswarm_core::State;
use rswarm_types::Version;
use tokio::sync::watch;

use super::codec;
use super::snapshot::{SnapshotDir, SnapshotError, SnapshotFile};
use super::types::{LogId, Membership, Reply, SnapshotMeta, TypeConfig};
use crate::store::Store;

/// Entries applied before their state is published and their writers are answered.
const PUBLISH_EVERY: usize = 256;

type SnapshotOf = Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
    u64,
    super::types::Peer,
    SnapshotFile,
>;

/// The state and how far the log has been applied to it.
pub struct StateMachine {
    state: Arc<State>,
    applied: Option<LogId>,
    membership: Membership,
    store: Store,
    /// Tells how far `store` has come; behind it never, ahead of it never.
    progress: watch::Sender<Option<LogId>>,
    dir: SnapshotDir,
    current: Option<SnapshotFile>,
}

impl StateMachine {
    /// Begins with the newest snapshot that is whole, or with nothing. The library then installs the snapshot and
    /// applies the log behind it; if the log does not reach back that far it refuses to start.
    pub fn open(dir: SnapshotDir, store: Store) -> Result<Self, SnapshotError> {
        let mut current = None;
        let mut failed = None;
        for path in dir.list()? {
            match dir.load(&path) {
                Ok(snapshot) => {
                    current = Some(snapshot);
                    break;
                }
                Err(error) => {
                    tracing::error!("{error}; trying the one before");
                    failed.get_or_insert(error);
                }
            }
        }
        // None is whole: whether that matters is for the user to decide, not for us to pass over.
        if let (None, Some(error)) = (&current, failed) {
            return Err(error);
        }
        Ok(Self {
            state: Arc::default(),
            applied: None,
            membership: Membership::default(),
            store,
            progress: watch::Sender::new(None),
            dir,
            current,
        })
    }

    /// The last log entry that readers of the store can see the effect of.
    pub fn progress(&self) -> watch::Receiver<Option<LogId>> {
        self.progress.subscribe()
    }

    fn publish(&self) {
        self.store.publish(self.state.clone());
        self.progress.send_replace(self.applied);
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        // Writers are answered after the state is published, so that they find their own write in it.
        let mut answers: Vec<(ApplyResponder<TypeConfig>, Reply)> = Vec::new();
        let mut unpublished = 0;
        let mut result = Ok(());
        while let Some(item) = entries.next().await {
            let (entry, responder) = match item {
                Ok(item) => item,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let reply = match entry.payload {
                EntryPayload::Blank => Reply::Nothing,
                EntryPayload::Normal(command) => {
                    let (next, outcome) =
                        rswarm_core::apply(&self.state, Version(entry.log_id.index), &command);
                    self.state = Arc::new(next);
                    match outcome {
                        Ok(applied) => Reply::Applied(applied),
                        Err(rejected) => Reply::Rejected(rejected),
                    }
                }
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(entry.log_id), membership);
                    Reply::Nothing
                }
            };
            self.applied = Some(entry.log_id);
            answers.extend(responder.map(|responder| (responder, reply)));
            unpublished += 1;
            if unpublished == PUBLISH_EVERY {
                unpublished = 0;
                self.publish();
                answers.drain(..).for_each(|(responder, reply)| responder.send(reply));
            }
        }
        if unpublished > 0 {
            self.publish();
        }
        answers.drain(..).for_each(|(responder, reply)| responder.send(reply));
        result
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() },
            state: self.state.clone(),
            dir: self.dir.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let dir = self.dir.clone();
        let (state, snapshot) = off_thread(move || {
            let state = codec::decode_from::<State, _>("a state", snapshot.chunks()?)
                .map_err(|source| SnapshotError::Contents { path: snapshot.path().to_owned(), source })?;
            Ok((state, dir.adopt(snapshot)?))
        })
        .await?;
        self.state = Arc::new(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.current = Some(snapshot);
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        // One made by the builder is newer than what was installed here.
        let newest = match self.dir.list()?.into_iter().next() {
            Some(path) if self.current.as_ref().is_none_or(|current| current.path() < &*path) => {
                let dir = self.dir.clone();
                match off_thread(move || dir.load(&path)).await {
                    Ok(snapshot) => Some(snapshot),
                    Err(error) => {
                        tracing::error!("{error}; using the one before");
                        None
                    }
                }
            }
            _ => None,
        };
        if newest.is_some() {
            self.current = newest;
        }
        Ok(self.current.clone().map(|snapshot| Snapshot { meta: snapshot.meta.clone(), snapshot }))
    }
}

/// Writes a snapshot of the state as it was when this was made; the state may go on meanwhile.
pub struct SnapshotBuilder {
    meta: SnapshotMeta,
    state: Arc<State>,
    dir: SnapshotDir,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let (meta, state, dir) = (self.meta.clone(), self.state.clone(), self.dir.clone());
        let snapshot = off_thread(move || {
            let mut writer = dir.begin(&meta)?;
            codec::encode_into("a state", &*state, &mut writer)
                .map_err(|source| SnapshotError::Contents { path: writer.path().to_owned(), source })?;
            dir.adopt(writer.finish()?)
        })
        .await?;
        tracing::info!("wrote the snapshot `{}`", snapshot.path().display());
        Ok(Snapshot { meta: snapshot.meta.clone(), snapshot })
    }
}

/// Runs what reads or writes a lot of disk off the runtime's threads.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is going down: nobody is left to tell.
        Err(Err(_)) => std::future::pending().await,
    }
}
