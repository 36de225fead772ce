//! Leaving a cluster where no daemon runs: for a host whose daemon cannot start, as over a damaged log.

use anyhow::Context as _;
use rswarm_identity::IdentityDir;
use rswarm_image::{ImageStore, PullOptions};
use rswarm_types::{Labels, NodeId, Timestamp};

use super::node::{LEAVE_PATIENCE, NodeConfig};
use super::{facts, journal, lock, require_root};
use crate::paths::Paths;

/// Whether a data root holds anything of a cluster.
pub fn is_member(paths: &Paths) -> bool {
    paths.settings().exists() || paths.manager().exists() || paths.change().exists()
}

/// Ends all containers of the data root and forgets the cluster, as [`super::node::Node::leave`] does with force.
pub async fn leave(mut paths: Paths) -> anyhow::Result<()> {
    require_root()?;
    let _lock = lock(&mut paths)?;
    // A certificate that cannot be read is as good as none: the name is for cgroups of new containers only.
    let known = IdentityDir::new(paths.identity()).load().ok().flatten();
    let id = known.map_or(NodeId::from_bytes([0; 16]), |credentials| credentials.identity().node);
    let config = NodeConfig {
        images: ImageStore::open(&paths.images())?,
        pull: PullOptions::default(),
        description: facts::describe(None, &Labels::new()),
        executable: std::env::current_exe().context("cannot find the rswarm executable")?,
        started_at: Timestamp::now(),
        key_period: rswarm_worker::KEY_PERIOD,
        paths,
    };
    let data_root = &config.paths.data_root;
    let removed = rswarm_worker::remove_everything(data_root, config.executor(id, 0), LEAVE_PATIENCE).await;
    journal::forget(&config.paths)?;
    removed.context("the node has left, but not all of its tasks could be removed")
}
