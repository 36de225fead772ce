//! Samples and an executor without containers, for the tests of this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use rswarm_api::v1;
use rswarm_types::netmap::NetworkMap;
use rswarm_types::node::{NodeNetworkFacts, TunnelKeys};
use rswarm_types::service::Protocol;
use rswarm_types::{Task, TaskId, Timestamp, Version};
use tokio::sync::{mpsc, watch};

use crate::executor::{
    Executor, Exit, Failure, FailureKind, Found, FoundState, LogLine, LogQuery, Progress, Recovery,
};
use crate::task::Done;

#[path = "../tests/support/manager.rs"]
pub mod manager;
pub use manager::{id, task};

/// What a fake container is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Fake {
    Created,
    Running,
    Ended(Exit),
}

/// Containers that exist in name only. It outlives workers, as containers do.
#[derive(Clone)]
pub struct FakeExecutor {
    pub containers: watch::Sender<BTreeMap<TaskId, Fake>>,
    /// Tasks whose preparation fails so.
    pub unfit: Arc<Mutex<BTreeMap<TaskId, Failure>>>,
    /// Tasks that ignore their stop signal.
    pub stubborn: Arc<Mutex<BTreeSet<TaskId>>>,
    pub ports_in_use: Arc<Mutex<BTreeSet<(Protocol, u16)>>>,
    /// The next key waits for the nodes to arrive at [`NEXT_KEY_AT`].
    pub tunnel: Arc<Mutex<Option<TunnelKeys>>>,
}

/// Where every node knows the next key.
pub const NEXT_KEY_AT: Version = Version(5);

impl Default for FakeExecutor {
    fn default() -> Self {
        Self {
            containers: watch::channel(BTreeMap::new()).0,
            unfit: Arc::default(),
            stubborn: Arc::default(),
            ports_in_use: Arc::default(),
            tunnel: Arc::default(),
        }
    }
}

impl FakeExecutor {
    pub fn end(&self, task: TaskId, code: i32) {
        let exit = Exit { code, oom_killed: false, at: Timestamp::now() };
        self.containers.send_modify(|containers| {
            containers.insert(task, Fake::Ended(exit));
        });
    }

    pub fn of(&self, task: TaskId) -> Option<Fake> {
        self.containers.borrow().get(&task).cloned()
    }

    async fn ended(&self, task: TaskId) -> Result<Done, Failure> {
        let mut containers = self.containers.subscribe();
        let over = |containers: &BTreeMap<TaskId, Fake>| {
            !matches!(containers.get(&task), Some(Fake::Created | Fake::Running))
        };
        let containers = containers.wait_for(over).await.expect("the sender is ours");
        Ok(match containers.get(&task) {
            Some(Fake::Ended(exit)) => Done::Ended(Some(exit.clone())),
            _ => Done::Ended(None),
        })
    }
}

impl Executor for FakeExecutor {
    fn prepare(&self, task: Arc<Task>, progress: Progress) -> BoxFuture<'_, Result<Done, Failure>> {
        async move {
            progress.tell("preparing: pulling".to_owned());
            if let Some(failure) = self.unfit.lock().unwrap().get(&task.id) {
                return Err(failure.clone());
            }
            self.containers.send_modify(|containers| {
                containers.entry(task.id).or_insert(Fake::Created);
            });
            Ok(Done::Prepared)
        }
        .boxed()
    }

    fn start(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        async move {
            self.containers.send_modify(|containers| {
                containers.insert(task.id, Fake::Running);
            });
            Ok(Done::Started { pid: Some(1), ports: vec![] })
        }
        .boxed()
    }

    fn connect(&self, _task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        async { Ok(Done::Connected) }.boxed()
    }

    fn wait(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        async move { self.ended(task.id).await }.boxed()
    }

    fn shutdown(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        async move {
            let stubborn = self.stubborn.lock().unwrap().contains(&task.id);
            if self.of(task.id) == Some(Fake::Running) && !stubborn {
                self.end(task.id, 143);
            }
            if self.of(task.id) == Some(Fake::Created) {
                return Ok(Done::Ended(None));
            }
            self.ended(task.id).await
        }
        .boxed()
    }

    fn remove(&self, task: TaskId) -> BoxFuture<'_, Result<Done, Failure>> {
        async move {
            self.containers.send_modify(|containers| {
                containers.remove(&task);
            });
            Ok(Done::Removed)
        }
        .boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Result<Recovery, Failure>> {
        async move {
            let found = |(task, fake): (&TaskId, &Fake)| {
                let state = match fake {
                    Fake::Created => FoundState::Created,
                    Fake::Running => FoundState::Running { pid: 1 },
                    Fake::Ended(_) => FoundState::Ended,
                };
                Found { task: *task, state, ports: vec![] }
            };
            let found = self.containers.borrow().iter().map(found).collect();
            Ok(Recovery { found, network: NetworkMap::default() })
        }
        .boxed()
    }

    /// Five lines; with `follow` a sixth once the container has ended.
    fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
        lines: mpsc::Sender<LogLine>,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let line = |n: u64| LogLine {
                at: Timestamp(n),
                stderr: n.is_multiple_of(2),
                line: format!("line {n}").into(),
            };
            let first = 6 - query.tail.unwrap_or(5).min(5);
            for n in first..6 {
                if lines.send(line(n)).await.is_err() {
                    return Ok(());
                }
            }
            if query.follow {
                tokio::select! {
                    result = self.ended(task) => drop(result?),
                    () = lines.closed() => return Ok(()),
                }
                let _ = lines.send(line(6)).await;
            }
            Ok(())
        }
        .boxed()
    }

    fn network(&self, _map: Arc<NetworkMap>) -> BoxFuture<'static, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn repair(&self) -> BoxFuture<'_, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn check_network(&self) -> BoxFuture<'_, v1::NetworkCheck> {
        async { v1::NetworkCheck { mended: 7, ..v1::NetworkCheck::default() } }.boxed()
    }

    fn update_facts(&self, facts: &mut NodeNetworkFacts) {
        facts.ports_in_use = self.ports_in_use.lock().unwrap().clone();
    }

    fn tunnel_keys(&self) -> Option<TunnelKeys> {
        *self.tunnel.lock().unwrap()
    }

    fn awaits_settled(&self) -> Option<Version> {
        self.tunnel_keys()?.next.map(|_| NEXT_KEY_AT)
    }

    fn settled(&self, index: Version) -> BoxFuture<'static, Result<bool, Failure>> {
        let mut tunnel = self.tunnel.lock().unwrap();
        let changed = match &mut *tunnel {
            Some(TunnelKeys { place, current, next }) if index >= NEXT_KEY_AT => {
                next.take().map(|next| (*place, *current) = (1 - *place, next))
            }
            _ => None,
        };
        Box::pin(std::future::ready(Ok(changed.is_some())))
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), Failure>> {
        async {
            if self.containers.borrow().is_empty() {
                return Ok(());
            }
            Err(Failure { text: "containers are left".to_owned(), kind: FailureKind::Final })
        }
        .boxed()
    }
}
