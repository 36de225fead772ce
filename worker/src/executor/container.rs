//! Tasks as containers: images from the store, an overlay on top, our own runtime, the node's network.
//!
//! Below the tasks directory each task has one of its own, `<task id>/`, with the writable layer (`upper`, `work`), the
//! files given to it (`hosts`, `hostname`, `resolv.conf`) and [`Record`] in `task.json`. The container, named by the
//! task's id, and its log are the runtime's. All of it stays until [`Executor::remove`].

mod files;
mod network;
mod ports;
mod record;
mod recover;
mod rootfs;
mod spec;
mod users;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rswarm_image::{Digest, Image, ImageError, ImageStore, PullOptions};
use rswarm_net::{NetError, NetworkConfig};
use rswarm_runtime::{
    Container, Containers, CreateRequest, ExitStatus, LogOptions, Rootfs, RuntimeError, ShimCommand, State,
    Status, log,
};
use rswarm_types::{Task, TaskId, Timestamp};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc};

use super::{Executor, Exit, Failure, FailureKind, Found, FoundState, LogLine, LogQuery, Progress};
use crate::task::Done;
use network::TaskNetworks;
use record::Record;
use recover::Recovered;
pub use spec::SpecError;
pub use users::UserError;

/// Without a grace period of its own. Source: swarm-parity 1.3.
const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// Containers made at the same time; more would only wait for the same locks of the kernel.
const CREATING_MAX: usize = 8;
/// Between two looks for a log that does not exist yet.
const LOG_LOOK_PERIOD: Duration = Duration::from_millis(200);
/// Records read from a log in one go.
const RECORDS_AT_ONCE: usize = 256;
/// A longer line of output is shown as several.
const LINE_BYTES_MAX: usize = 256 << 10;

/// What the adapter needs of its node.
#[derive(Debug, Clone)]
pub struct ContainerExecutorConfig {
    /// Where the runtime keeps its containers and their logs; durable.
    pub containers: PathBuf,
    /// How the process beside each container is started.
    pub shim: ShimCommand,
    pub images: ImageStore,
    /// See [`PullOptions::insecure_registries`].
    pub insecure_registries: Vec<String>,
    /// Parent of the containers' cgroups, such as `/rswarm/<short node id>`; this daemon's alone.
    pub cgroup_parent: String,
    /// Names of the nft table and of the links. Everything happens in the network namespace of the thread that calls
    /// [`ContainerExecutor::open`].
    pub network: NetworkConfig,
    /// First letters of the names of bridges, at most 5 bytes, this daemon's alone in its network namespace.
    pub bridge_prefix: String,
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
}

/// Why an operation on a task's container failed. `Display` is only the outermost link; the user reads the chain.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Image(#[from] ImageError),
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
            Error::Image(_) | Error::Spec(_) | Error::User(_) | Error::File { .. } => {
                Self::unless_passing(FailureKind::Final, &error)
            }
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
    networks: TaskNetworks,
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
        node_hostname: &str,
        config: ContainerExecutorConfig,
    ) -> Result<Self, ContainerExecutorError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&tasks)
            .map_err(|source| ContainerExecutorError::Directory { path: tasks.clone(), source })?;
        let networks = TaskNetworks::open(config.network.clone(), config.bridge_prefix.clone())
            .map_err(ContainerExecutorError::Network)?;
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
            networks,
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

    async fn image(&self, reference: &str, progress: &Progress) -> Result<Image, Error> {
        if let Some(image) = self.node.config.images.get(reference) {
            return Ok(image);
        }
        progress.tell(format!("preparing: pulling image `{reference}`"));
        let options = PullOptions {
            insecure_registries: self.node.config.insecure_registries.clone(),
            progress: Some(pull_progress(reference, progress.clone())),
            ..PullOptions::default()
        };
        let image = self.node.config.images.pull(reference, &options).await?;
        progress.tell("preparing".to_owned());
        Ok(image)
    }

    async fn prepare(&self, task: Arc<Task>, progress: Progress) -> Result<Done, Failure> {
        let guard = self.lock(task.id).await;
        let image = self.image(&task.spec.container.image, &progress).await?;
        let permit = self.creating.clone().acquire_owned().await;
        let node = self.node.clone();
        blocking(move || {
            let _held = (guard, permit);
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
        let node = self.node.clone();
        let (guard, result) = blocking(move || {
            let result = node.write_record(id, &record).and_then(|()| Ok(container.start()?));
            (guard, result.map(|()| Done::Started { pid: Some(pid), ports: record.ports }))
        })
        .await?;
        if result.is_err() {
            self.networks.release(id).await;
        }
        drop(guard);
        Ok(result?)
    }

    async fn wait(&self, task: TaskId) -> Result<Done, Failure> {
        let node = self.node.clone();
        let Some((container, ended)) = blocking(move || node.find_and_watch(task)).await?? else {
            return Ok(Done::Ended(None));
        };
        until_readable(ended).await?;
        let exit = blocking(move || exit_of(&container)).await??;
        self.networks.release(task).await;
        Ok(Done::Ended(exit))
    }

    async fn shutdown(&self, task: Arc<Task>) -> Result<Done, Failure> {
        let guard = self.lock(task.id).await;
        let (node, id) = (self.node.clone(), task.id);
        let Some((container, ended)) = blocking(move || node.find_and_watch(id)).await?? else {
            self.networks.release(id).await;
            return Ok(Done::Ended(None));
        };
        let grace = task.spec.container.stop_grace_period.unwrap_or(STOP_GRACE_PERIOD);
        let (node, container) = (self.node.clone(), Arc::new(container));
        let asked = {
            let container = container.clone();
            blocking(move || node.ask_to_stop(id, &container, grace)).await??
        };
        if let Stop::Asked = asked {
            let ended = watch(ended)?;
            if tokio::time::timeout(grace, ended.readable()).await.is_err() {
                let container = container.clone();
                blocking(move || kill(&container)).await??;
                // Until it is really gone: a process that hangs in the kernel keeps its task alive.
                ended.readable().await.map_err(|error| watch_failure(&error))?;
            }
        }
        let exit = match asked {
            Stop::NeverStarted => None,
            Stop::Asked | Stop::Ended => blocking(move || exit_of(&container)).await??,
        };
        self.networks.release(id).await;
        drop(guard);
        Ok(Done::Ended(exit))
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

    async fn recover(&self) -> Result<Vec<Found>, Failure> {
        let node = self.node.clone();
        let recovered = blocking(move || node.recover()).await??;
        let mut found = Vec::new();
        for Recovered { task, state, record } in recovered {
            let ports = record.as_ref().map(|record| record.ports.clone()).unwrap_or_default();
            let pid = match state {
                FoundState::Running { pid } => Some(pid),
                FoundState::Unknown { pid } => pid,
                _ => None,
            };
            if let (Some(pid), Some(record)) = (pid, record) {
                self.networks.adopt(task, pid, &record).await;
            }
            found.push(Found { task, state, ports });
        }
        // What cannot be mended now is tried again by every repair; the containers go on meanwhile.
        if let Err(failure) = self.networks.repair().await {
            tracing::error!(error = %failure.text, "the network of adopted containers could not be checked");
        }
        Ok(found)
    }

    async fn logs(&self, task: TaskId, query: LogQuery, lines: mpsc::Sender<LogLine>) -> Result<(), Failure> {
        let directory = self.node.containers.directory(&task.to_string()).map_err(Error::from)?;
        while !directory.is_dir() {
            if !query.follow {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOG_LOOK_PERIOD) => {}
                () = lines.closed() => return Ok(()),
            }
        }
        let options = log::ReadOptions {
            since_unix_nanos: Some(i64::try_from(query.since.0).unwrap_or(i64::MAX)),
            tail: query.tail,
        };
        let read_error = |source| Error::File { action: "read the log in", path: directory.clone(), source };
        let path = directory.clone();
        let mut reader = blocking(move || log::Reader::open(&path, options)).await?.map_err(read_error)?;
        let node = self.node.clone();
        let ended = match query.follow {
            true => blocking(move || node.find(task)).await??.and_then(|container| container.watch().ok()),
            false => None,
        };
        let ended = ended.map(watch).transpose()?;
        let mut assembler = Assembler::default();
        let mut last_round = ended.is_none();
        loop {
            // Made before reading, so that nothing written from here on goes unnoticed.
            let changes = if last_round { None } else { reader.changes().ok() };
            loop {
                let (next, records) = blocking(move || read_records(reader)).await?;
                reader = next;
                let records = records.map_err(read_error)?;
                if records.is_empty() {
                    break;
                }
                for line in records.iter().filter_map(|record| assembler.add(record)) {
                    if lines.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            let (Some(ended), Some(changes)) = (&ended, changes) else { return Ok(()) };
            tokio::select! {
                changed = until_readable(changes) => changed?,
                _ = ended.readable() => last_round = true,
                () = lines.closed() => return Ok(()),
            }
        }
    }
}

impl Executor for ContainerExecutor {
    fn prepare(&self, task: Arc<Task>, progress: Progress) -> BoxFuture<'_, Result<Done, Failure>> {
        self.prepare(task, progress).boxed()
    }

    fn start(&self, task: Arc<Task>) -> BoxFuture<'_, Result<Done, Failure>> {
        self.start(task).boxed()
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

    fn recover(&self) -> BoxFuture<'_, Result<Vec<Found>, Failure>> {
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

    fn repair(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.networks.repair().boxed()
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

/// How far a stop got without waiting.
#[derive(Clone, Copy)]
enum Stop {
    NeverStarted,
    Asked,
    Ended,
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

    /// The same, and what becomes readable when it has ended.
    fn find_and_watch(&self, task: TaskId) -> Result<Option<(Container, OwnedFd)>, Error> {
        let Some(container) = self.find(task)? else { return Ok(None) };
        let ended = container.watch()?;
        Ok(Some((container, ended)))
    }

    fn inspect(&self, task: TaskId) -> Result<(Container, State, Record), Error> {
        let container = self.containers.find(&task.to_string())?;
        let state = container.state()?;
        Ok((container, state, self.read_record(task)?.unwrap_or_default()))
    }

    /// Makes the container of `task`, unless it is there.
    fn create(&self, task: &Task, image: &Image) -> Result<(), Error> {
        let id = task.id.to_string();
        if let Some(container) = self.find(task.id)? {
            match container.state()?.status {
                Status::Created | Status::Running | Status::Exited(_) => return Ok(()),
                Status::Lost => container.delete()?,
            }
        }
        let directory = self.directory(task.id);
        // Of an attempt that was cut short.
        remove_directory(&directory)?;
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        for path in [&upper, &work] {
            std::fs::create_dir_all(path).map_err(file_error("make directory", path))?;
        }
        self.images_in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(task.id, (image.id, task.name()));
        let lower = self.config.images.rootfs(image)?;
        let user = resolve_user(task, image, &lower)?;
        check_mount_sources(task)?;
        let mode = spec::network_mode(task)?;
        let hostname = spec::hostname(task, mode, &self.hostname);
        let files = write_files(&directory, task, mode, &hostname)?;
        let spec = spec::build(&spec::Inputs {
            task,
            image: &image.config,
            user: &user,
            hostname: &hostname,
            files: &files,
            limits_swap: self.limits_swap,
            node_hostname: &self.node_hostname,
        })?;
        let record = Record {
            name: task.name(),
            image: Some(image.id),
            stop_signal: spec::stop_signal(task, Some(&image.config))?,
            ..Record::default()
        };
        self.write_record(task.id, &record)?;
        let request = CreateRequest {
            cgroup: format!("{}/{id}", self.config.cgroup_parent),
            id,
            spec,
            rootfs: Rootfs::Overlay { lower, upper, work },
            log: LogOptions {
                max_size_bytes: task.spec.log.max_size_bytes,
                max_files: task.spec.log.max_files.max(1),
            },
        };
        self.containers.create(&request)?;
        Ok(())
    }

    /// Sends the stop signal; without a grace period the last one at once.
    fn ask_to_stop(&self, task: TaskId, container: &Container, grace: Duration) -> Result<Stop, Error> {
        match container.state()?.status {
            Status::Exited(_) | Status::Lost => return Ok(Stop::Ended),
            Status::Created => {
                container.delete()?;
                return Ok(Stop::NeverStarted);
            }
            Status::Running => {}
        }
        if grace.is_zero() {
            kill(container)?;
        } else {
            let signal = self.read_record(task)?.unwrap_or_default().stop_signal;
            match container.kill(signal, false) {
                Ok(()) => {}
                Err(RuntimeError::WrongState { .. }) => return Ok(Stop::Ended),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Stop::Asked)
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

async fn until_readable(fd: OwnedFd) -> Result<(), Failure> {
    watch(fd)?.readable().await.map_err(|error| watch_failure(&error))
}

/// Readiness of any descriptor. Nothing is read through it, so that it is called a pipe does not matter; the type made
/// for this asks its users for `unsafe`.
fn watch(fd: OwnedFd) -> Result<pipe::Receiver, Failure> {
    pipe::Receiver::from_owned_fd_unchecked(fd).map_err(|error| watch_failure(&error))
}

fn watch_failure(error: &std::io::Error) -> Failure {
    Failure { text: format!("failed to watch the container: {error}"), kind: FailureKind::Temporary }
}

/// How an ended container ended; `None` if nobody knows.
fn exit_of(container: &Container) -> Result<Option<Exit>, Error> {
    match container.wait() {
        Ok(status) => Ok(Some(read_exit(&status))),
        Err(RuntimeError::WrongState { .. } | RuntimeError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_exit(status: &ExitStatus) -> Exit {
    Exit {
        code: status.shell_code(),
        oom_killed: status.oom_killed,
        at: Timestamp(u64::try_from(status.finished_at_unix_nanos).unwrap_or_default()),
    }
}

/// SIGKILL to every process of the container.
fn kill(container: &Container) -> Result<(), Error> {
    match container.kill(9, true) {
        Ok(()) | Err(RuntimeError::WrongState { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn resolve_user(task: &Task, image: &Image, layers: &[PathBuf]) -> Result<users::User, Error> {
    let read = |path: &'static str| -> Result<String, Error> {
        let content = rootfs::read_file(layers, path, users::FILE_BYTES_MAX)
            .map_err(file_error("read the image's", Path::new(path)))?;
        Ok(String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
    };
    let words = spec::user_words(task, &image.config);
    Ok(users::resolve(words, &task.spec.container.groups, &read("/etc/passwd")?, &read("/etc/group")?)?)
}

/// A bind mount makes no directories on the node. Source: swarm-parity 4.3.
fn check_mount_sources(task: &Task) -> Result<(), SpecError> {
    let binds =
        task.spec.container.mounts.iter().filter(|mount| mount.kind == rswarm_types::task::MountKind::Bind);
    for mount in binds {
        if let Err(error) = std::fs::metadata(&mount.source) {
            let reason = match error.kind() {
                std::io::ErrorKind::NotFound => "it does not exist on this node".to_owned(),
                _ => error.to_string(),
            };
            return Err(SpecError::MountSource {
                source_path: mount.source.clone(),
                target: mount.target.clone(),
                reason,
            });
        }
    }
    Ok(())
}

/// Writes the files the node gives to the container; returns where each is and where it belongs.
fn write_files(
    directory: &Path,
    task: &Task,
    mode: spec::NetworkMode,
    hostname: &str,
) -> Result<Vec<(String, &'static str)>, Error> {
    // A node may lack either file; the container then gets what can be said without it.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let of_node = mode == spec::NetworkMode::Host;
    let container = &task.spec.container;
    let hosts = match of_node {
        true => files::hosts_of_node(&read("/etc/hosts"), &container.hosts),
        false => files::hosts(hostname, &task.networks, &container.hosts),
    };
    let mut resolv_conf = read("/etc/resolv.conf");
    if !of_node && files::has_only_loopback_servers(&resolv_conf) {
        // Where systemd-resolved keeps the servers behind its stub.
        if let Ok(real) = std::fs::read_to_string("/run/systemd/resolve/resolv.conf") {
            resolv_conf = real;
        }
    }
    let mut written = Vec::new();
    for (name, target, content) in [
        ("hosts", "/etc/hosts", hosts),
        ("hostname", "/etc/hostname", format!("{hostname}\n")),
        ("resolv.conf", "/etc/resolv.conf", files::resolv_conf(&resolv_conf, &container.dns, of_node)),
    ] {
        let path = directory.join(name);
        std::fs::write(&path, content).map_err(file_error("write", &path))?;
        written.push((path.to_string_lossy().into_owned(), target));
    }
    Ok(written)
}

/// Whether a container's use of swap can be limited: cgroup v1 says so by a file, v2 always can.
fn limits_swap() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"));
    v1 || v2
}

/// Says how far a pull is, as a task's message. Layers report on their own; what is shown is their sum.
fn pull_progress(reference: &str, progress: Progress) -> rswarm_image::ProgressSink {
    struct Pull {
        total: u64,
        done: HashMap<Digest, u64>,
        shown: u64,
    }
    let pull = Mutex::new(Pull { total: 0, done: HashMap::new(), shown: 0 });
    let reference = reference.to_owned();
    Arc::new(move |event| {
        let mut pull = pull.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            rswarm_image::Progress::Manifest { bytes, .. } => pull.total = bytes,
            rswarm_image::Progress::Downloading { layer, done, .. } => drop(pull.done.insert(layer, done)),
            _ => return,
        }
        let done: u64 = pull.done.values().sum();
        let percent = (done.saturating_mul(100)).checked_div(pull.total).unwrap_or_default().min(100);
        // Ten steps: each one is a write on every manager.
        if percent >= pull.shown + 10 {
            pull.shown = percent - percent % 10;
            progress.tell(format!("preparing: pulling image `{reference}`: {} %", pull.shown));
        }
    })
}

fn read_records(mut reader: log::Reader) -> (log::Reader, std::io::Result<Vec<log::Record>>) {
    let mut records = Vec::new();
    while records.len() < RECORDS_AT_ONCE {
        match reader.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => break,
            Err(error) => return (reader, Err(error)),
        }
    }
    (reader, Ok(records))
}

/// Puts pieces of long lines together, each stream's by itself.
#[derive(Default)]
struct Assembler {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Assembler {
    fn add(&mut self, record: &log::Record) -> Option<LogLine> {
        let stderr = record.stream == log::Stream::Stderr;
        let pieces = if stderr { &mut self.stderr } else { &mut self.stdout };
        pieces.extend_from_slice(&record.line);
        if record.partial && pieces.len() < LINE_BYTES_MAX {
            return None;
        }
        let at = Timestamp(u64::try_from(record.at_unix_nanos).unwrap_or_default());
        Some(LogLine { at, stderr, line: std::mem::take(pieces) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_line_are_put_together() {
        let record = |stream, line: &[u8], partial| log::Record {
            at_unix_nanos: 1,
            stream,
            line: line.to_vec(),
            partial,
        };
        let mut assembler = Assembler::default();
        let (out, err) = (log::Stream::Stdout, log::Stream::Stderr);
        assert_eq!(assembler.add(&record(out, b"one ", true)), None);
        let line = |stderr, line: &[u8]| Some(LogLine { at: Timestamp(1), stderr, line: line.to_vec() });
        assert_eq!(assembler.add(&record(err, b"warning", false)), line(true, b"warning"));
        assert_eq!(assembler.add(&record(out, b"line", false)), line(false, b"one line"));
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(assembler.add(&record(out, &long, true)), line(false, &long), "a line has a bound");
    }
}
