//! What a manager's membership of the group is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use rswarm_types::{ClusterId, NodeId};

use super::network::Connector;
use super::service::RaftSlot;

/// How soon silence is noticed. The same on all managers of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Between two signs of life of the leader.
    pub heartbeat: Duration,
    /// A follower that hears nothing for something between these two asks to be elected. The maximum is also how long
    /// a leader may count on being the only one, so a lost leader costs one maximum and one election.
    pub election_min: Duration,
    pub election_max: Duration,
}

/// For a LAN: a lost leader is replaced in about a second.
impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(60),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
        }
    }
}

/// What a member needs to know. Cloning shares connector and slot.
#[derive(Clone)]
pub struct RaftConfig {
    /// For this alone; created if needed.
    pub dir: PathBuf,
    pub cluster_id: ClusterId,
    /// This node.
    pub node_id: NodeId,
    /// `IP:PORT` under which the other managers reach this one.
    pub addr: String,
    pub timings: Timings,
    /// Applied entries between two snapshots, as long as the state holds no cluster whose spec says it.
    pub snapshot_interval: u64,
    pub connector: Arc<dyn Connector>,
    /// Filled when the member runs, emptied when it is shut down.
    pub slot: RaftSlot,
}

impl RaftConfig {
    /// The library's configuration.
    pub(super) fn library(&self) -> Result<Arc<openraft::Config>, openraft::ConfigError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: self.cluster_id.to_string(),
            heartbeat_interval: millis(self.timings.heartbeat),
            election_timeout_min: millis(self.timings.election_min),
            election_timeout_max: millis(self.timings.election_max),
            enable_pre_vote: Some(true),
            // Messages are bounded by bytes when entries are read.
            max_payload_entries: 1024,
            // Both are seen to by `compaction`, which follows the cluster's spec.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // How far behind a new member may be and yet be admitted as a voter.
            replication_lag_threshold: self.snapshot_interval.saturating_mul(2),
            // A follower whose disk lost the end of the log gets it again. Else the leader, which still counts these
            // entries as replicated, would panic or never send them.
            allow_log_reversion: Some(true),
            // A member that comes back is soon heard of.
            backoff: "20ms 50ms 100ms ..500ms".to_owned(),
            ..openraft::Config::default()
        };
        config.validate().map(Arc::new)
    }
}
