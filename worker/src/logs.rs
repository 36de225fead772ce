//! Answers log subscriptions: reads the logs of this node's tasks and streams them to the leader.
//!
//! Each subscription is one task of the async runtime with one call to the leader; ending the task ends the readers
//! and the call. Queues are short: a leader that reads slowly slows the reading down and nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;
use rswarm_api::v1;
use rswarm_api::v1::dispatcher_client::DispatcherClient;
use rswarm_api::v1::log_record::Stream;
use rswarm_types::{NodeId, Task, Timestamp};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::executor::{Executor, LogLine, LogQuery};

/// Lines read ahead of each task.
const LINES_AHEAD: usize = 256;
/// Messages on their way to the leader.
const MESSAGES_AHEAD: usize = 4;
/// A message is sent once its lines have this many bytes; with one more line it stays below tonic's 4 MiB.
const MESSAGE_BYTES: usize = 512 << 10;

/// The subscriptions under way.
#[derive(Default)]
pub(crate) struct Subscriptions(HashMap<String, AbortHandle>);

impl Subscriptions {
    /// Starts to send the logs of `tasks`, which are those of the subscription that this node has.
    pub fn begin(
        &mut self,
        subscription: v1::LogSubscription,
        tasks: Vec<Arc<Task>>,
        node_id: NodeId,
        executor: Arc<dyn Executor>,
        channel: Channel,
    ) {
        self.0.retain(|_, handle| !handle.is_finished());
        let id = subscription.id.clone();
        let handle = tokio::spawn(publish(subscription, tasks, node_id, executor, channel)).abort_handle();
        if let Some(superseded) = self.0.insert(id, handle) {
            superseded.abort();
        }
    }

    pub fn end(&mut self, id: &str) {
        if let Some(handle) = self.0.remove(id) {
            handle.abort();
        }
    }

    pub fn end_all(&mut self) {
        for (_, handle) in self.0.drain() {
            handle.abort();
        }
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.end_all();
    }
}

async fn publish(
    subscription: v1::LogSubscription,
    tasks: Vec<Arc<Task>>,
    node_id: NodeId,
    executor: Arc<dyn Executor>,
    channel: Channel,
) {
    let query = LogQuery {
        since: Timestamp(subscription.since_at),
        tail: subscription.tail,
        follow: subscription.follow,
    };
    let (records, collected) = mpsc::channel(LINES_AHEAD);
    let readers = join_all(tasks.iter().map(|task| read(task, query, node_id, &*executor, records.clone())));
    // The readers hold the only senders: when they are done, so is the stream.
    drop(records);
    let (messages, outgoing) = mpsc::channel(MESSAGES_AHEAD);
    let mut client = DispatcherClient::new(channel);
    let call = client.publish_logs(ReceiverStream::new(outgoing));
    let (_, (), result) = tokio::join!(readers, collect(&subscription.id, collected, messages), call);
    if let Err(status) = result {
        tracing::debug!(subscription = %subscription.id, error = %status, "the leader takes no more log lines");
    }
}

/// Reads one task's log.
async fn read(
    task: &Task,
    query: LogQuery,
    node_id: NodeId,
    executor: &dyn Executor,
    records: mpsc::Sender<v1::LogRecord>,
) {
    let (lines, mut read) = mpsc::channel::<LogLine>(LINES_AHEAD);
    let forward = async {
        while let Some(line) = read.recv().await {
            let stream = if line.stderr { Stream::Stderr } else { Stream::Stdout };
            let record = v1::LogRecord {
                task_id: task.id.to_string(),
                service_name: task.service_name.clone(),
                slot: task.slot,
                node_id: node_id.to_string(),
                at: line.at.0,
                stream: stream.into(),
                line: line.line,
            };
            if records.send(record).await.is_err() {
                break;
            }
        }
        // The reader ends when nobody receives.
        drop(read);
    };
    let (result, ()) = tokio::join!(executor.logs(task.id, query, lines), forward);
    if let Err(failure) = result {
        tracing::warn!(task = %task.id, error = %failure.text, "log cannot be read");
    }
}

/// Packs records into messages: as many as are there, waiting for none.
async fn collect(
    id: &str,
    mut records: mpsc::Receiver<v1::LogRecord>,
    messages: mpsc::Sender<v1::PublishLogsRequest>,
) {
    // The first message may be empty: it tells the leader whose logs these are.
    let mut batch = Vec::new();
    loop {
        let message = v1::PublishLogsRequest { subscription_id: id.to_owned(), records: batch };
        if messages.send(message).await.is_err() {
            return;
        }
        let Some(first) = records.recv().await else { return };
        let mut bytes = first.line.len();
        batch = vec![first];
        while bytes < MESSAGE_BYTES
            && let Ok(record) = records.try_recv()
        {
            bytes += record.line.len();
            batch.push(record);
        }
    }
}
