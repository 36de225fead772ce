//! Tasks as containers: images from the store, an overlay on top, our own runtime, the node's network.
//!
//! Below the tasks directory each task has one of its own, `<task id>/`, with the writable layer (`upper`, `work`), the
//! files given to it (`hosts`, `hostname`, `resolv.conf`) and [`Record`] in `task.json`. The container, named by the
//! task's id, and its log are the runtime's. All of it stays until [`Executor::remove`].

mod create;
mod end;
mod files;
mod keys;
mod links;
mod logs;
mod network;
mod overlay;
mod ports;
mod record;
mod recover;
mod resolver;
mod rootfs;
mod spec;
mod strays;
mod users;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rswarm_api::v1;
use rswarm_image::{Digest, ImageError, ImageStore, PullOptions};
use rswarm_net::{NetError, NetworkConfig};
use rswarm_runtime::{Container, Containers, RuntimeError, ShimCommand, State, Status};
use rswarm_types::netmap::NetworkMap;
use rswarm_types::node::{NodeNetworkFacts, TunnelKeys};
use rswarm_types::{NodeId, Task, TaskId, Version};
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc};

use super::{Executor, Failure, FailureKind, LogLine, LogQuery, Progress, Recovery};
use crate::task::Done;
pub use keys::KEY_PERIOD;
pub use network::take_up;
use network::{Encryption, TaskNetworks};
pub use overlay::Guarded;
use record::Record;
pub use record::tasks_on_disk;
use resolver::Resolver;
pub use spec::SpecError;
pub use users::{FILE_BYTES_MAX as USERS_BYTES_MAX, UserError, resolve as resolve_user};

/// Containers made at the same time; more would only wait for the same locks of the kernel.
const CREATING_MAX: usize = 8;

/// What the adapter needs of its node.
#[derive(Debug, Clone)]
pub struct ContainerExecutorConfig {
    /// Where the runtime keeps its containers and their logs; durable.
    pub containers: PathBuf,
    /// How the process beside each container is started.
    pub shim: ShimCommand,
    pub images: ImageStore,
    /// How registries are reached.
    pub pull: PullOptions,
    /// Parent of the containers' cgroups, such as `/rswarm/<short node id>`; this daemon's alone.
    pub cgroup_parent: String,
    /// Names of the nft table and of the links. Everything happens in the network namespace of the thread that calls
    /// [`ContainerExecutor::open`].
    pub network: NetworkConfig,
    /// Ports of this node that tasks must not reach.
    pub guarded: Guarded,
    /// Directory for what need not outlive the machine: the map of the network is in it.
    pub run_root: PathBuf,
    /// First letters of the names of bridges, at most 5 bytes, this daemon's alone in its network namespace.
    pub bridge_prefix: String,
    /// After how long the node takes another key for encrypted networks: [`KEY_PERIOD`], but for tests.
    pub key_period: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ContainerExecutorError {
    #[error("failed to make directory `{path}`")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the node's network cannot be used")]
    Network(#[source] NetError),
    #[error("failed to keep the keys for encrypted networks in `{path}`")]
    Keys {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Why an operation on a task's container failed. `Display` is only the outermost link; the user reads the chain.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Which image the task's own line says; here a long name would push the reason out of sight.
    #[error("image cannot be pulled")]
    Pull(#[source] Box<ImageError>),
    #[error(
        "image cannot be pulled without a credential (log in to its registry, then \
         `service update --with-registry-auth`)"
    )]
    PullDenied(#[source] Box<ImageError>),
    /// Of a daemon that was started anew: a manager sends it with the assignments.
    #[error("waiting for the credential for registry `{registry}` from a manager")]
    CredentialAwaited { registry: String },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("failed to {action} `{path}`")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Of a transparent error only the causes would be looked at.
        match &error {
            Error::Runtime(inner) => Self::unless_passing(FailureKind::Final, inner),
            Error::CredentialAwaited { .. } => Self::new(FailureKind::Temporary, &error),
            Error::Image(_)
            | Error::Pull(_)
            | Error::PullDenied(_)
            | Error::Spec(_)
            | Error::User(_)
            | Error::File { .. } => Self::unless_passing(FailureKind::Final, &error),
        }
    }
}

/// Names a file operation that failed.
fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// Runs tasks as containers of this node.
pub struct ContainerExecutor {
    node: Arc<Node>,
    networks: Arc<TaskNetworks>,
    creating: Arc<Semaphore>,
    locks: Mutex<HashMap<TaskId, Arc<tokio::sync::Mutex<()>>>>,
}

/// What blocking work needs.
struct Node {
    tasks: PathBuf,
    containers: Containers,
    config: ContainerExecutorConfig,
    /// Of the kernel.
    hostname: String,
    /// In the cluster.
    node_hostname: String,
    limits_swap: bool,
    /// The image each task uses and the task's name.
    images_in_use: Arc<Mutex<BTreeMap<TaskId, (Digest, String)>>>,
}

impl ContainerExecutor {
    /// Looks at the node and prepares nothing yet but the directory `tasks`. `node_hostname` is the node's name in the
    /// cluster.
    ///
    /// # Errors
    /// As in [`ContainerExecutorError`].
    pub fn open(
        tasks: PathBuf,
        node_id: NodeId,
        node_hostname: &str,
        config: ContainerExecutorConfig,
    ) -> Result<Self, ContainerExecutorError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&tasks)
            .map_err(|source| ContainerExecutorError::Directory { path: tasks.clone(), source })?;
        let keys = Encryption::open(tasks.with_file_name("tunnel-keys"), &config)?;
        let networks = TaskNetworks::open(
            &config,
            node_id,
            Resolver::new(
                config.shim.executable.clone(),
                config.run_root.clone(),
                config.network.helper.clone(),
            ),
            keys,
        );
        let networks = networks.map_err(ContainerExecutorError::Network)?;
        let images_in_use: Arc<Mutex<BTreeMap<TaskId, (Digest, String)>>> = Arc::default();
        config.images.set_in_use({
            let in_use = images_in_use.clone();
            move |image| {
                let in_use = in_use.lock().unwrap_or_else(PoisonError::into_inner);
                in_use.values().find(|(used, _)| used == image).map(|(_, name)| format!("task `{name}`"))
            }
        });
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let node = Node {
            containers: Containers::new(&config.containers, config.shim.clone()),
            tasks,
            hostname: hostname.trim().to_owned(),
            node_hostname: node_hostname.to_owned(),
            limits_swap: limits_swap(),
            images_in_use,
            config,
        };
        Ok(Self {
            node: Arc::new(node),
            networks: Arc::new(networks),
            creating: Arc::new(Semaphore::new(CREATING_MAX)),
            locks: Mutex::default(),
        })
    }

    /// Waits for blocking work that an operation given up before has left behind.
    async fn lock(&self, task: TaskId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those nobody holds or waits for any more are of no use.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(task).or_default().clone()
        };
        lock.lock_owned().await
    }

    async fn prepare(&self, task: Arc<Task>, progress: Progress) -> Result<Done, Failure> {
        let guard = self.lock(task.id).await;
        let (image, hold) = self.image(&task, &progress).await?;
        let permit = self.creating.clone().acquire_owned().await;
        let node = self.node.clone();
        blocking(move || {
            let _held = (guard, permit, hold);
            node.create(&task, &image)
        })
        .await??;
        Ok(Done::Prepared)
    }

    async fn start(&self, task: Arc<Task>) -> Result<Done, Failure> {
        let guard = self.lock(task.id).await;
        let node = self.node.clone();
        let id = task.id;
        let (container, state, mut record) = blocking(move || node.inspect(id)).await??;
        let pid = match state {
            State { status: Status::Created, pid: Some(pid), .. } => pid,
            State { pid, .. } => return Ok(Done::Started { pid, ports: record.ports }),
        };
        self.networks.attach(&task, pid, &mut record).await?;
        record.name_server = self.networks.name_server(&task).await;
        let node = self.node.clone();
        let (guard, result) = blocking(move || {
            let files = || record.name_server.map_or(Ok(()), |_| node.rewrite_files(&task, &record));
            let result = node.write_record(id, &record).and_then(|()| files());
            let result = result.and_then(|()| Ok(container.start()?));
            (guard, result.map(|()| Done::Started { pid: Some(pid), ports: record.ports }))
        })
        .await?;
        if result.is_err() {
            self.networks.release(id).await;
        }
        drop(guard);
        Ok(result?)
    }

    async fn connect(&self, task: Arc<Task>) -> Result<Done, Failure> {
        let guard = self.lock(task.id).await;
        let (node, id) = (self.node.clone(), task.id);
        let record = blocking(move || node.read_record(id)).await??;
        let Some(mut record) = record.filter(|record| !links::has_its_links(&task, record)) else {
            return Ok(Done::Connected);
        };
        let node = self.node.clone();
        let state = blocking(move || node.inspect(id).map(|(_, state, _)| state)).await??;
        let State { status: Status::Running, pid: Some(pid), .. } = state else {
            return Ok(Done::Connected);
        };
        self.networks.connect(&task, pid, &mut record).await?;
        record.name_server = self.networks.name_server(&task).await;
        let node = self.node.clone();
        blocking(move || {
            let _held = guard;
            node.write_record(id, &record)?;
            node.rewrite_files(&task, &record)
        })
        .await??;
        Ok(Done::Connected)
    }

    async fn remove(&self, task: TaskId) -> Result<Done, Failure> {
        let guard = self.lock(task).await;
        let node = self.node.clone();
        blocking(move || {
            let _held = guard;
            node.remove(task)
        })
        .await??;
        self.networks.release(task).await;
        Ok(Done::Removed)
    }
}

impl Executor for ContainerExecutor {
    fn prepare(&self, task: Arc<Task>, progress: Progress) -> BoxFuture<'_, Result<Done, Failure>> {
        self.prepare(task, progress).boxed()
    }

    fn start(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        self.start(task).boxed()
    }

    fn connect(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        async move {
            let (id, result) = (task.id, self.connect(task).await);
            result.inspect_err(|failure| {
                tracing::warn!(task = %id, error = %failure.text, "a task is not connected as it should be");
            })
        }
        .boxed()
    }

    fn wait(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        self.wait(task.id).boxed()
    }

    fn shutdown(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        self.shutdown(task).boxed()
    }

    fn remove(&self, task: TaskId) -> BoxFuture<'_, Result<Done, Failure>> {
        self.remove(task).boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Result<Recovery, Failure>> {
        self.recover().boxed()
    }

    fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
        lines: mpsc::Sender<LogLine>,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        self.logs(task, query, lines).boxed()
    }

    fn network(&self, map: Arc<NetworkMap>) -> BoxFuture<'static, Result<(), Failure>> {
        self.networks.announce(map);
        let networks = self.networks.clone();
        async move { networks.follow().await }.boxed()
    }

    fn repair(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.networks.repair().boxed()
    }

    fn check_network(&self) -> BoxFuture<'_, v1::NetworkCheck> {
        self.networks.check().boxed()
    }

    fn update_facts(&self, facts: &mut NodeNetworkFacts) {
        self.networks.update_facts(facts);
    }

    fn tunnel_keys(&self) -> Option<TunnelKeys> {
        self.networks.tunnel_keys()
    }

    fn awaits_settled(&self) -> Option<Version> {
        self.networks.awaits_settled()
    }

    fn settled(&self, index: Version) -> BoxFuture<'static, Result<bool, Failure>> {
        let networks = self.networks.clone();
        async move { networks.settled(index).await }.boxed()
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            self.networks.remove_all().await?;
            for path in [&self.node.tasks, &self.node.config.containers] {
                remove_directory(path)?;
            }
            Ok(())
        }
        .boxed()
    }
}

impl Node {
    fn directory(&self, task: TaskId) -> PathBuf {
        self.tasks.join(task.to_string())
    }

    fn write_record(&self, task: TaskId, record: &Record) -> Result<(), Error> {
        let directory = self.directory(task);
        record.write(&directory).map_err(file_error("write the record in", &directory))
    }

    fn read_record(&self, task: TaskId) -> Result<Option<Record>, Error> {
        let directory = self.directory(task);
        Record::read(&directory).map_err(file_error("read the record in", &directory))
    }

    /// The task's container, if there is one. Its shim is not asked.
    fn find(&self, task: TaskId) -> Result<Option<Container>, Error> {
        match self.containers.find(&task.to_string()) {
            Ok(container) => Ok(Some(container)),
            Err(RuntimeError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn inspect(&self, task: TaskId) -> Result<(Container, State, Record), Error> {
        let container = self.containers.find(&task.to_string())?;
        let state = container.state()?;
        Ok((container, state, self.read_record(task)?.unwrap_or_default()))
    }

    fn remove(&self, task: TaskId) -> Result<(), Error> {
        if let Some(container) = self.find(task)? {
            container.delete()?;
        }
        remove_directory(&self.directory(task))?;
        self.images_in_use.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
        Ok(())
    }
}

/// Runs blocking work off the event loop. It goes on when the future is dropped.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure {
        text: format!("the worker failed at this task: {error}; see its log"),
        kind: FailureKind::Final,
    })
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether a container's use of swap can be limited: cgroup v1 says so by a file, v2 always can.
fn limits_swap() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"));
    v1 || v2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists and progress lines show the first 75 characters or so.
    #[test]
    fn why_an_image_cannot_be_pulled_comes_before_its_name() {
        let reference =
            format!("registry.example.com:5000/team/{}@sha256:{}", "x".repeat(60), "0".repeat(64));
        let text = |error: Error| rswarm_types::error::chain(&error);
        assert_eq!(
            text(Error::Pull(Box::new(ImageError::NotInRegistry { reference: reference.clone() }))),
            format!("image cannot be pulled: no such image in its registry: `{reference}`")
        );
        let (registry, source) = ("registry.example.com:5000".to_owned(), None);
        assert_eq!(
            text(Error::Pull(Box::new(ImageError::Unreachable { registry, source }))),
            "image cannot be pulled: registry `registry.example.com:5000` is unreachable"
        );
    }
}
