//! The leader unit: all that runs on the leader alone, started together once the leader has committed in its own term,
//! and stopped together when it no longer leads or any part of it ends. In the latter case this manager steps down:
//! a leader that does half its work is worse than none.

mod planner;
mod roles;

use std::sync::Arc;
use std::time::Duration;

use rswarm_types::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::{Context, WriteError};
use crate::dispatcher::reports::{self, Reports};
use crate::dispatcher::{self, Hub};
use crate::logs::Broker;
use crate::raft::Leadership;
use rswarm_types::error::chain;

/// Before a manager that failed to lead and found nobody else to do it tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The leader's parts that services talk to.
pub(crate) struct Lead {
    pub hub: Arc<Hub>,
    pub reports: Reports,
    pub logs: Broker,
    /// Cancelled when this manager no longer leads.
    pub ended: CancellationToken,
}

/// Why the unit ended.
enum Exit {
    /// Another manager leads, or this one stops.
    Deposed,
    /// A part of it ended by itself.
    Failed(&'static str, Option<WriteError>),
}

/// Leads whenever this manager is elected, until it stops.
pub(crate) async fn run(context: Arc<Context>, lead: watch::Sender<Option<Arc<Lead>>>) {
    let mut leadership = context.raft.leadership();
    loop {
        // From here on the state is what all acknowledged writes made it: the log says so of a leader.
        let term = match leadership.wait_for(|l| matches!(l, Leadership::Leader { .. })).await {
            Ok(leader) => leader.clone(),
            Err(_) => return,
        };
        let exit = tokio::select! {
            exit = unit(&context, &lead) => exit,
            _ = leadership.wait_for(|now| *now != term) => Exit::Deposed,
        };
        if let Some(ended) = lead.send_replace(None) {
            ended.ended.cancel();
        }
        match exit {
            Exit::Deposed => info!("no longer the leader"),
            Exit::Failed(part, error) => {
                let error = error.map(|error| chain(&error)).unwrap_or_default();
                warn!(part, error, "a part of the leader ended: stepping down");
                if let Err(error) = context.raft.transfer_leadership().await {
                    warn!(error = chain(&error), "found no other manager to lead: starting over");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

/// Runs all parts until one of them ends. Dropping it stops the others.
async fn unit(context: &Arc<Context>, lead: &watch::Sender<Option<Arc<Lead>>>) -> Exit {
    let hub = Arc::new(Hub::new(&context.store.snapshot(), Timestamp::now()));
    let (reports, queue) = reports::channel();
    let ended = CancellationToken::new();
    let mut parts = JoinSet::new();
    {
        let context = context.clone();
        parts.spawn(async move { ("planner", planner::run(&context).await.err()) });
    }
    {
        let context = context.clone();
        parts.spawn(async move { ("report writer", reports::run(&context, queue).await.err()) });
    }
    {
        let (context, hub) = (context.clone(), hub.clone());
        parts.spawn(async move {
            dispatcher::wake_sessions(&context, &hub).await;
            ("dispatcher", None)
        });
    }
    {
        let (context, hub) = (context.clone(), hub.clone());
        parts.spawn(async move { ("leases", dispatcher::expire_sessions(&context, &hub).await.err()) });
    }
    {
        let context = context.clone();
        parts.spawn(async move { ("role manager", roles::run(&context).await.err()) });
    }
    info!("leading the cluster");
    lead.send_replace(Some(Arc::new(Lead { hub, reports, logs: Broker::default(), ended })));
    match parts.join_next().await {
        Some(Ok((part, error))) => Exit::Failed(part, error),
        Some(Err(error)) => {
            warn!(%error, "a part of the leader panicked");
            Exit::Failed("panicked", None)
        }
        None => Exit::Failed("nothing", None),
    }
}
