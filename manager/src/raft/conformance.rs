//! The library's own conformance suite against our log and state machine.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::key::DataKey;
use super::log::LogStore;
use super::snapshot::SnapshotDir;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use crate::store::Store;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let sealer = DataKey::create(dir.path()).unwrap().sealer();
        let log = LogStore::open_with(&dir.path().join("log"), sealer.clone(), 16 << 10).unwrap();
        let snapshots = SnapshotDir::open(&dir.path().join("snapshots"), sealer).unwrap();
        let machine = StateMachine::open(snapshots, Store::new()).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn log_and_state_machine_pass_the_conformance_suite() {
    Suite::<TypeConfig, LogStore, StateMachine, Builder, tempfile::TempDir>::test_all(Builder).await.unwrap();
}
