//! What workers report, written down in batches: one proposal is in flight, and all that arrives meanwhile rides on
//! the next. So a quiet cluster pays no delay, and a busy one pays one log entry for many reports.
//!
//! Only writes that are never refused go through here, else one worker's report could spoil another's.

use rswarm_core::state::{Command, Write};
use rswarm_types::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::batch;
use crate::context::{Context, WriteError};

/// Reports that wait. When it is full, sessions stop reading: the pressure reaches the workers.
const QUEUE: usize = 1024;

/// The way into the writer; cloned freely.
#[derive(Clone)]
pub(crate) struct Reports {
    queue: mpsc::Sender<Report>,
}

struct Report {
    writes: Vec<Write>,
    done: oneshot::Sender<()>,
}

/// The queue's other end.
pub(crate) struct Queue(mpsc::Receiver<Report>);

/// An empty queue.
pub(crate) fn channel() -> (Reports, Queue) {
    let (queue, receiver) = mpsc::channel(QUEUE);
    (Reports { queue }, Queue(receiver))
}

impl Reports {
    /// Hands `writes` over. The receiver resolves once they are committed, and fails if the leader's time is up.
    pub(crate) async fn write(&self, writes: Vec<Write>) -> oneshot::Receiver<()> {
        let (done, committed) = oneshot::channel();
        if writes.is_empty() {
            let _ = done.send(());
        } else {
            // When the writer has gone, so has the report, and with it `done`: the receiver tells.
            let _ = self.queue.send(Report { writes, done }).await;
        }
        committed
    }
}

/// Writes down what arrives until a proposal fails.
pub(crate) async fn run(context: &Context, mut queue: Queue) -> Result<(), WriteError> {
    while let Some(first) = queue.0.recv().await {
        let mut reports = vec![first];
        let mut weight = batch::weight(&reports[0].writes);
        while weight < batch::WEIGHT_MAX
            && let Ok(report) = queue.0.try_recv()
        {
            weight += batch::weight(&report.writes);
            reports.push(report);
        }
        let mut writes = Vec::new();
        let mut waiting = Vec::with_capacity(reports.len());
        for report in reports {
            writes.extend(report.writes);
            waiting.push(report.done);
        }
        for writes in batch::split(writes) {
            context.propose(Command { at: Timestamp::now(), writes }).await?;
        }
        for done in waiting {
            // A session that ended in the meantime does not want to know.
            let _ = done.send(());
        }
    }
    Ok(())
}
