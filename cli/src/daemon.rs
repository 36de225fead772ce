//! `rswarm daemon`: one process with the worker, and on managers the manager, of this node.
//!
//! Besides the binary's entry this is the only place that knows manager and worker crates. Containers are children of
//! their own shims, so ending this process, however roughly, ends none of them.

pub mod address;
mod enrol;
mod facts;
mod images;
mod journal;
mod local;
mod node;
pub mod offline;
pub mod registries;
mod resolve;
mod settings;
mod socket;
pub mod start;

pub use facts::platform;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use rswarm_image::{ImageStore, PullOptions};
use rswarm_types::{Labels, Timestamp};
use tokio::signal::unix::{SignalKind, signal};

use crate::paths::Paths;
use local::LocalService;
use node::{Node, NodeConfig};
use socket::ControlSwitch;

#[derive(Debug, Clone, Args)]
pub struct DaemonArgs {
    /// Name of this node in the cluster (default: the host's)
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Label of this node's engine, for constraints on `engine.labels.KEY`
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Registry that may be used over http or with an unknown certificate: HOST, HOST:PORT or CIDR
    #[arg(long = "insecure-registry", value_name = "REGISTRY", value_parser = registries::parse)]
    insecure_registries: Vec<String>,
    /// Server to ask before a registry, for reading only: [HOST=]URL; without HOST it stands for docker.io
    #[arg(long = "registry-mirror", value_name = "[HOST=]URL")]
    registry_mirrors: Vec<rswarm_image::Mirror>,
    /// Seconds after which this node takes another key for encrypted networks (default: 12 hours); for tests
    #[arg(long = "key-period", value_name = "SECONDS", hide = true)]
    key_period_seconds: Option<u64>,
}

/// Threads that drive connections; work that blocks has threads of its own.
const ASYNC_THREADS: usize = 2;
/// Where certificates of private authorities are looked for: Docker's place too, so that what is there goes on counting.
const CERTIFICATE_DIRECTORIES: [&str; 2] = ["/etc/rswarm/certs.d", "/etc/docker/certs.d"];
/// How long the lock of a daemon that is gone may still be held.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(paths: Paths, args: DaemonArgs) -> anyhow::Result<()> {
    require_root()?;
    crate::log_to_stderr();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider was installed first"))?;
    keep_heap_small();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(ASYNC_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve(paths, args))
}

async fn serve(mut paths: Paths, args: DaemonArgs) -> anyhow::Result<()> {
    let _lock = lock(&mut paths)?;
    check_kernel()?;
    let mut labels = Labels::new();
    for label in &args.labels {
        let (key, value) = label
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .with_context(|| format!("invalid label `{label}`: expected key=value"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let images = ImageStore::open(&paths.images())?;
    let mut insecure_registries = registries::load(&paths.registries())?;
    insecure_registries.extend(args.insecure_registries);
    let pull = PullOptions {
        insecure_registries,
        mirrors: args.registry_mirrors,
        certificate_directories: CERTIFICATE_DIRECTORIES.map(PathBuf::from).to_vec(),
        ..PullOptions::default()
    };
    let control = ControlSwitch::default();
    raise_open_files();
    let node = Node::new(
        NodeConfig {
            paths: paths.clone(),
            images: images.clone(),
            pull: pull.clone(),
            description: facts::describe(args.hostname.as_deref(), &labels),
            executable: std::env::current_exe().context("cannot find the rswarm executable")?,
            started_at: Timestamp::now(),
            key_period: args.key_period_seconds.map_or(rswarm_worker::KEY_PERIOD, Duration::from_secs),
        },
        control.clone(),
    );
    journal::settle(&paths)?;
    if rswarm_identity::IdentityDir::new(paths.identity()).load()?.is_some() {
        control.starting();
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = socket::bind(&paths.socket())?;
    // Who asks meanwhile is told that a change of membership is under way.
    let resume = async {
        node.resume().await?;
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(socket = %paths.socket().display(), data_root = %paths.data_root.display(), "ready");
        std::future::pending::<anyhow::Result<()>>().await
    };
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; containers go on");
    };
    let local = LocalService { node: node.clone(), images, pull };
    let served = tokio::select! {
        served = socket::serve(listener, local, control, std::future::pending()) => served,
        failed = resume => failed,
        () = end => Ok(()),
    };
    node.shutdown().await;
    let _ = std::fs::remove_file(paths.socket());
    served
}

/// Fails with what the kernel lacks and every container needs; warns of what only some tasks would ask for.
fn check_kernel() -> anyhow::Result<()> {
    let features =
        rswarm_runtime::KernelFeatures::of_this_host().context("cannot find out what the kernel offers")?;
    let (required, others): (Vec<_>, Vec<_>) = features.missing().into_iter().partition(|one| one.required);
    for missing in others {
        tracing::warn!("{missing}");
    }
    let required: Vec<String> = required.iter().map(ToString::to_string).collect();
    anyhow::ensure!(required.is_empty(), "{}", required.join("; "));
    Ok(())
}

/// Has the allocator share two arenas among all threads and give back what is freed: the daemon idles most of its life,
/// and by default each thread keeps what its busiest moment took.
fn keep_heap_small() {
    const ARENAS: libc::c_int = 2;
    const TRIM_THRESHOLD_BYTES: libc::c_int = 128 << 10;
    // SAFETY: mallopt only sets parameters of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES);
    }
}

/// Lets this process open as many files as it may: each container takes a few, each connection one.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Fails with what to do unless the process has root's rights.
pub fn require_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "rswarm needs root to make namespaces, mounts and networks: run it as root or by `sudo`"
    );
    Ok(())
}

/// Makes the roots, resolves them to absolute paths, and makes sure that no other daemon works on either.
fn lock(paths: &mut Paths) -> anyhow::Result<[Flock<File>; 2]> {
    for root in [&mut paths.data_root, &mut paths.run_root] {
        *root = crate::paths::make_private(root)?;
    }
    Ok([lock_root(&paths.data_root, "--data-root")?, lock_root(&paths.run_root, "--run-root")?])
}

/// The lock of a daemon that is gone may be held for a moment by a child that it had just forked, until that runs its
/// own program: it is waited for.
fn lock_root(root: &Path, flag: &str) -> anyhow::Result<Flock<File>> {
    let path = root.join("lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.with_context(|| format!("root directory `{}` is not writable", root.display()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut lock = loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((file, _)) => file,
        };
        let mut pid = String::new();
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
        // One that has ended runs no program any more, even if nobody has waited for it.
        let gone =
            pid.parse::<u32>().is_ok_and(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_err());
        if !gone || Instant::now() > deadline {
            let pid = if pid.is_empty() { String::new() } else { format!(" (process {pid})") };
            let root = root.display();
            anyhow::bail!("another daemon{pid} runs on `{root}`: stop it, or use another `{flag}`")
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id()).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_daemon_that_is_gone_is_waited_for_and_that_of_another_is_not() {
        let root = tempfile::tempdir().unwrap();
        let held = lock_root(root.path(), "--data-root").unwrap();
        let error = lock_root(root.path(), "--data-root").unwrap_err().to_string();
        let own = std::process::id();
        assert!(error.contains(&format!("another daemon (process {own}) runs on")), "{error}");
        // No process has a number above 2^22. Source: proc(5), `pid_max`.
        std::fs::write(root.path().join("lock"), "99999999").unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
        });
        lock_root(root.path(), "--data-root").unwrap();
        child.join().unwrap();
    }
}
