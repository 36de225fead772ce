//! A worker with real containers on the real kernel: images, runtime and network together, each test in a network
//! namespace, directory and cgroup of its own.
//!
//! Brings its own `main`, because the runtime starts this very program as the process beside each container. Words on
//! the command line choose tests by part of their name.

#![allow(clippy::unwrap_used)] // It is a test, which clippy does not see of one with its own `main`.

#[path = "support/manager.rs"]
mod manager;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use manager::{Behaviour, DEADLINE, Heard, Manager, assignments, id, task};
use rswarm_api::v1;
use rswarm_api::v1::manager_message::Message as FromManager;
use rswarm_image::builder::ImageBuilder;
use rswarm_image::{ImageStore, LoadOptions};
use rswarm_net::NetworkConfig;
use rswarm_net::lab::{create_named_netns, delete_named_netns};
use rswarm_runtime::{Containers, ShimCommand, Status};
use rswarm_types::service::{PortConfig, Protocol, PublishMode};
use rswarm_types::task::{ContainerSpec, Limits, Mount, MountKind, TaskAddress, TaskNetwork};
use rswarm_types::{NetworkDriver, NetworkId, NodeDescription, NodeId, Task, TaskSpec, TaskState};
use rswarm_worker::{
    ContainerExecutor, ContainerExecutorConfig, Guarded, LedgerError, Worker, WorkerError, WorkerParts,
};

const BUSYBOX: &str = "/bin/busybox";
const IMAGE: &str = "test/box:1";

type Test = fn(&Lab);

const TESTS: [(&str, Test); 9] = [
    (
        "a_task_gets_what_its_spec_says_and_its_end_is_told",
        a_task_gets_what_its_spec_says_and_its_end_is_told,
    ),
    (
        "stopping_asks_first_and_kills_after_the_grace_period",
        stopping_asks_first_and_kills_after_the_grace_period,
    ),
    ("containers_outlive_the_worker_and_are_adopted", containers_outlive_the_worker_and_are_adopted),
    ("a_shim_that_does_not_answer_costs_no_task", a_shim_that_does_not_answer_costs_no_task),
    ("a_stopped_shim_keeps_no_task_from_ending", a_stopped_shim_keeps_no_task_from_ending),
    ("what_cannot_run_is_refused_with_the_reason", what_cannot_run_is_refused_with_the_reason),
    (
        "ports_lead_to_the_container_and_clashes_name_the_holder",
        ports_lead_to_the_container_and_clashes_name_the_holder,
    ),
    ("memory_above_the_limit_is_told_as_such", memory_above_the_limit_is_told_as_such),
    (
        "three_tasks_start_quickly_and_leaving_leaves_nothing",
        three_tasks_start_quickly_and_leaving_leaves_nothing,
    ),
];

fn main() {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|word| word == "shim") {
        std::process::exit(rswarm_runtime::shim_main(args.skip(1)));
    }
    let words: Vec<String> =
        args.filter_map(|word| word.into_string().ok()).filter(|word| !word.starts_with('-')).collect();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs {BUSYBOX} (Debian package busybox-static)");
        return;
    }
    let mut failed = Vec::new();
    for (number, (name, test)) in TESTS.into_iter().enumerate() {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let begun = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let lab = Lab::new(number);
            rswarm_net::run_in_netns(&lab.netns, || test(&lab)).unwrap();
            lab.end();
        }));
        println!("test {name} ... {} ({:?})", if outcome.is_ok() { "ok" } else { "FAILED" }, begun.elapsed());
        failed.extend(outcome.is_err().then_some(name));
    }
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(1);
    }
}

/// A node for one test. Whatever is left of it goes when it is dropped.
struct Lab {
    directory: tempfile::TempDir,
    netns: PathBuf,
    cgroup: String,
    images: ImageStore,
}

impl Lab {
    fn new(number: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("rswarm-worker-test-{}-{number}", std::process::id());
        let netns = PathBuf::from("/run/netns").join(&name);
        create_named_netns(&netns).unwrap();
        rswarm_net::run_in_netns(&netns, || {
            let up = std::process::Command::new(BUSYBOX).args(["ip", "link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
        })
        .unwrap();
        let images = ImageStore::open(&directory.path().join("images")).unwrap();
        let mut builder = ImageBuilder::new()
            .file("/bin/busybox", Path::new(BUSYBOX), 0o755)
            .file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", 0o644)
            .file("/etc/group", b"root:x:0:\nwww:x:34:\nlog:x:4:web\n", 0o644)
            .directory("/srv", 0o755)
            .directory("/tmp", 0o777)
            .env("COLOR", "blue")
            .env("SHAPE", "round")
            .workdir("/srv")
            .cmd(["/bin/sleep", "1000"])
            .reference(IMAGE.parse().unwrap());
        for name in ["sh", "sleep", "cat", "id", "hostname", "ip", "nc", "head", "yes", "touch", "ls"] {
            builder = builder.symlink(&format!("/bin/{name}"), "busybox");
        }
        let mut archive = Vec::new();
        builder.write_oci_archive(&mut archive).unwrap();
        images.load(archive.as_slice(), &LoadOptions::default()).unwrap();
        Self { directory, netns, cgroup: format!("/{name}"), images }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn containers(&self) -> Containers {
        Containers::new(self.path("containers"), ShimCommand::default())
    }

    async fn worker(&self, managers: &[&str]) -> Worker {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let executor = ContainerExecutor::open(
                self.path("tasks"),
                NodeId::from_bytes([8; 16]),
                "node",
                ContainerExecutorConfig {
                    containers: self.path("containers"),
                    shim: ShimCommand::default(),
                    images: self.images.clone(),
                    pull: rswarm_image::PullOptions::default(),
                    cgroup_parent: self.cgroup.clone(),
                    network: NetworkConfig { helper: self.path("overlay"), ..NetworkConfig::default() },
                    key_period: rswarm_worker::KEY_PERIOD,
                    guarded: Guarded::new(),
                    run_root: self.path("run"),
                    bridge_prefix: "rsb".to_owned(),
                },
            );
            let started = Worker::start_with(WorkerParts {
                node_id: NodeId::from_bytes([8; 16]),
                node_description: NodeDescription::default(),
                managers: managers.iter().map(|&addr| addr.to_owned()).collect(),
                ledger: self.path("ledger"),
                connect: Arc::new(|addr| {
                    tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
                }),
                executor: Arc::new(executor.unwrap()),
            });
            match started.await {
                Ok(worker) => return worker,
                // A worker that was dropped closes its ledger a moment later.
                Err(WorkerError::Ledger(LedgerError::Locked { .. })) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What the kernel still has of the node's containers.
    fn cgroups_left(&self) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let points = cgroups.filter_map(|line| line.split(' ').nth(4));
        points
            .map(|point| PathBuf::from(format!("{point}{}", self.cgroup)))
            .filter(|path| path.exists())
            .collect()
    }

    /// After a test that went well nothing but what the test says is left.
    fn end(self) {
        drop(self);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let containers = self.containers();
        for id in containers.list().unwrap_or_default() {
            if let Ok(container) = containers.open(&id) {
                let _ = container.delete();
            }
        }
        let _ = delete_named_netns(&self.netns);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.cgroups_left().is_empty() && Instant::now() < deadline {
            for path in self.cgroups_left() {
                let _ = std::fs::remove_dir(path.join("shims"));
                let _ = std::fs::remove_dir(path);
            }
            std::thread::yield_now();
        }
        if !std::thread::panicking() {
            assert_eq!(self.cgroups_left(), Vec::<PathBuf>::new(), "cgroups were left behind");
        }
    }
}

/// One thread, so that everything it starts is in the namespace of the calling thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

fn with(n: u8, change: impl FnOnce(&mut Task, &mut TaskSpec)) -> Task {
    let mut task = task(n);
    // A shell that is a container's first process hears no signal it has no trap for: do not wait for it for long.
    let stop_grace_period = Some(Duration::from_millis(100));
    let container = ContainerSpec { image: IMAGE.to_owned(), stop_grace_period, ..ContainerSpec::default() };
    let mut spec = TaskSpec { container, ..TaskSpec::default() };
    change(&mut task, &mut spec);
    task.spec = Arc::new(spec);
    task
}

fn script(n: u8, script: &str) -> Task {
    with(n, |_, spec| spec.container.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec())
}

/// Task `n` on the bridge, with the address 10.77.0.n+1.
fn on_bridge(mut task: Task) -> Task {
    let gateway = Ipv4Addr::new(10, 77, 0, 1);
    let address = Ipv4Addr::new(10, 77, 0, u8::try_from(task.slot).unwrap() + 1);
    task.networks = vec![TaskNetwork {
        network: NetworkId::from_bytes([3; 16]),
        name: "bridge".to_owned(),
        driver: NetworkDriver::Bridge,
        address: Some(TaskAddress { address, prefix_len: 24, gateway, ipv6: None }),
        aliases: vec![],
        internal: false,
        mtu: None,
        bridge: rswarm_types::network::BridgeOptions::default(),
        joined: false,
    }];
    task
}

fn stopped(task: &Task) -> Task {
    Task { desired: TaskState::Shutdown, ..task.clone() }
}

fn exit_code(heard: &Heard, n: u8) -> Option<i32> {
    heard.full[&id(n)].container.as_ref()?.exit_code
}

fn is(n: u8, state: TaskState) -> impl Fn(&Heard) -> bool {
    move |heard| heard.last(n) == Some(state)
}

async fn log_of(manager: &Manager, n: u8) -> Vec<String> {
    let name = format!("log-{n}-{}", manager.heard.borrow().logs_ended.len());
    manager.say(FromManager::SubscribeLogs(v1::LogSubscription {
        id: name.clone(),
        task_ids: vec![id(n).to_string()],
        follow: false,
        since_at: 0,
        tail: None,
    }));
    let heard = manager.until("the log", |heard| heard.logs_ended.contains(&name)).await;
    heard.logs[&name].iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn a_task_gets_what_its_spec_says_and_its_end_is_told(lab: &Lab) {
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        let shared = lab.path("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(shared.join("greeting"), "hello").unwrap();
        let first = on_bridge(with(1, |_, spec| {
            let text = "hostname; id; echo $COLOR $SHAPE $NEW; pwd; cat /data/greeting; echo; cat /etc/hosts; \
                        touch /data/x; touch /scratch/y && echo written; ip -o -4 addr show eth0; \
                        ip route show default; echo oops >&2; exit 3";
            let container = &mut spec.container;
            container.args = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
            container.hostname = "inside".to_owned();
            container.user = "web".to_owned();
            container.env = ["SHAPE=square", "NEW=1"].map(str::to_owned).to_vec();
            container.hosts = vec!["192.0.2.7 db".to_owned()];
            container.read_only = true;
            container.mounts = vec![
                Mount {
                    kind: MountKind::Bind,
                    source: shared.to_string_lossy().into_owned(),
                    target: "/data".to_owned(),
                    read_only: true,
                },
                Mount {
                    kind: MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0 },
                    source: String::new(),
                    target: "/scratch".to_owned(),
                    read_only: false,
                },
            ];
        }));
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[first], &[])];
        let worker = lab.worker(&[&addr]).await;
        let heard = manager.until("the end", |heard| heard.last(1).is_some_and(TaskState::is_terminal)).await;
        assert_eq!(heard.errors[&id(1)], "task: non-zero exit (3)");
        assert_eq!(exit_code(&heard, 1), Some(3));
        let log = log_of(&manager, 1).await;
        let text = log.join("\n");
        assert_eq!(log[0], "inside");
        assert_eq!(log[1], "uid=33(web) gid=34(www) groups=4(log)");
        assert_eq!(log[2..5], ["blue square 1", "/srv", "hello"]);
        for line in ["10.77.0.2\tinside", "192.0.2.7\tdb", "written", "oops"] {
            assert!(log.iter().any(|found| found == line), "{line:?} in {text}");
        }
        for part in ["10.77.0.2/24", "default via 10.77.0.1", "Read-only file system"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        manager.say(assignments(2, false, &[], &[1]));
        eventually("the removal", || {
            lab.containers().list().unwrap().is_empty() && !lab.path("tasks").join(id(1).to_string()).exists()
        })
        .await;
        worker.shutdown().await;
    });
}

fn stopping_asks_first_and_kills_after_the_grace_period(lab: &Lab) {
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        let patient = |mut task: Task, grace| {
            let mut spec = TaskSpec::clone(&task.spec);
            spec.container.stop_grace_period = grace;
            task.spec = Arc::new(spec);
            task
        };
        let polite = script(1, "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
        let polite = patient(polite, None);
        let deaf = script(2, "trap '' TERM; echo up; while :; do sleep 0.05; done");
        let deaf = patient(deaf, Some(Duration::from_millis(300)));
        let parked = Task { desired: TaskState::Ready, ..script(3, "true") };
        let tasks = [polite.clone(), deaf.clone(), parked.clone()];
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &tasks, &[])];
        let worker = lab.worker(&[&addr]).await;
        let up = |heard: &Heard| {
            is(1, TaskState::Running)(heard)
                && is(2, TaskState::Running)(heard)
                && is(3, TaskState::Ready)(heard)
        };
        manager.until("the tasks", up).await;
        // The traps are set once they have said so.
        for n in [1, 2] {
            while log_of(&manager, n).await.is_empty() {}
        }
        let begun = Instant::now();
        manager.say(assignments(2, false, &[stopped(&polite), stopped(&deaf), stopped(&parked)], &[]));
        manager.until("the polite one", is(1, TaskState::Shutdown)).await;
        let heard = manager.until("the deaf one", is(2, TaskState::Shutdown)).await;
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        manager.until("the parked one", is(3, TaskState::Shutdown)).await;
        assert_eq!((exit_code(&heard, 1), exit_code(&heard, 2)), (Some(7), Some(137)));
        assert_eq!(log_of(&manager, 1).await, ["up", "bye"], "the log of a stopped container stays");
        worker.shutdown().await;
    });
}

fn containers_outlive_the_worker_and_are_adopted(lab: &Lab) {
    let gate = lab.path("gate");
    std::fs::create_dir(&gate).unwrap();
    let waiting = |n: u8| {
        let text = format!("echo up; while [ ! -e /gate/{n} ]; do sleep 0.02; done; echo down; exit {n}");
        with(n, |_, spec| {
            spec.container.args = vec!["/bin/sh".to_owned(), "-c".to_owned(), text];
            spec.container.mounts = vec![Mount {
                kind: MountKind::Bind,
                source: gate.to_string_lossy().into_owned(),
                target: "/gate".to_owned(),
                read_only: true,
            }];
        })
    };
    let tasks = [on_bridge(waiting(1)), on_bridge(waiting(2)), on_bridge(waiting(3))];
    let pids = block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        *manager.greeting.lock().unwrap() = vec![assignments(5, true, &tasks, &[])];
        let worker = lab.worker(&[&addr]).await;
        let all = |heard: &Heard| (1..4).all(|n| is(n, TaskState::Running)(heard));
        let heard = manager.until("three tasks", all).await;
        let pid = |n| heard.full[&id(n)].container.as_ref().unwrap().pid.unwrap();
        // As a kill would: nothing is tidied up.
        drop(worker);
        [pid(1), pid(2), pid(3)]
    });
    std::fs::write(gate.join("2"), "").unwrap();
    // Its process is gone a moment before its shim has noted when.
    let noted = || {
        let second = lab.containers().open(&id(2).to_string()).unwrap();
        matches!(second.state().unwrap().status, Status::Exited(_))
    };
    block_on(eventually("the end of the second", noted));
    let ended_before = rswarm_types::Timestamp::now();
    std::fs::remove_file(gate.join("2")).unwrap();
    block_on(async {
        // While it was away the third task was taken from this node.
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        *manager.greeting.lock().unwrap() = vec![assignments(6, true, &tasks[..2], &[])];
        let worker = lab.worker(&[&addr]).await;
        let heard = manager.until("the exit", is(2, TaskState::Failed)).await;
        assert_eq!(exit_code(&heard, 2), Some(2));
        assert!(heard.full[&id(2)].at < ended_before, "the end is told with its own time");
        let heard = manager.until("the running one", is(1, TaskState::Running)).await;
        assert_eq!(heard.full[&id(1)].container.as_ref().unwrap().pid, Some(pids[0]));
        assert_eq!(log_of(&manager, 2).await, ["up", "down"]);
        eventually("the end of the third", || lab.containers().list().unwrap().len() == 2).await;
        let links = || {
            let listed = std::process::Command::new(BUSYBOX).args(["ip", "-o", "link"]).output().unwrap();
            String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.contains("rsv")).count()
        };
        eventually("the links of the ended", || links() == 1).await;
        std::fs::write(gate.join("1"), "").unwrap();
        let heard = manager.until("the end of the first", is(1, TaskState::Failed)).await;
        assert_eq!(exit_code(&heard, 1), Some(1));
        worker.shutdown().await;
    });
}

/// A stopped process. It goes on when this is dropped.
struct Stopped(rustix::process::Pid);

impl Stopped {
    /// Stops the parent of `pid`: a container's shim.
    fn parent_of(pid: i32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let parent = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
        let parent = rustix::process::Pid::from_raw(parent).unwrap();
        rustix::process::kill_process(parent, rustix::process::Signal::STOP).unwrap();
        Self(parent)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

fn a_shim_that_does_not_answer_costs_no_task(lab: &Lab) {
    let proc = |pid: i32| PathBuf::from(format!("/proc/{pid}"));
    let tasks = [1, 2, 3].map(|n| on_bridge(script(n, "sleep 1000")));
    let pids = block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        *manager.greeting.lock().unwrap() = vec![assignments(5, true, &tasks, &[])];
        let worker = lab.worker(&[&addr]).await;
        let all = |heard: &Heard| (1..4).all(|n| is(n, TaskState::Running)(heard));
        let heard = manager.until("three tasks", all).await;
        drop(worker);
        [1, 2, 3].map(|n| heard.full[&id(n)].container.as_ref().unwrap().pid.unwrap())
    });
    let mut stopped: Vec<_> = pids.map(Stopped::parent_of).into_iter().collect();
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        *manager.greeting.lock().unwrap() = vec![assignments(6, true, &tasks, &[])];
        let begun = Instant::now();
        let worker = lab.worker(&[&addr]).await;
        // Each is waited for for 1 s, all at once.
        assert!(begun.elapsed() < Duration::from_millis(2900), "started after {:?}", begun.elapsed());
        let all = |heard: &Heard| (1..4).all(|n| is(n, TaskState::Running)(heard));
        let heard = manager.until("three tasks", all).await;
        for (n, pid) in (1..).zip(pids) {
            assert_eq!(heard.full[&id(n)].container.as_ref().unwrap().pid, Some(pid));
            assert!(proc(pid).exists());
        }
        let listed = std::process::Command::new(BUSYBOX).args(["ip", "-o", "link"]).output().unwrap();
        let links =
            String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.contains("rsv")).count();
        assert_eq!(links, 3, "the network of each is as it was");
        // One answers again, one is killed for good: only now the end of a task is known.
        let (killed, answering) = (stopped.pop().unwrap(), stopped.pop().unwrap());
        drop(answering);
        manager.say(assignments(7, false, &[self::stopped(&tasks[1])], &[]));
        manager.until("the stop of the second", is(2, TaskState::Shutdown)).await;
        rustix::process::kill_process(killed.0, rustix::process::Signal::KILL).unwrap();
        let heard = manager.until("the loss of the third", is(3, TaskState::Failed)).await;
        assert!(heard.errors[&id(3)].contains("shim"), "{:?}", heard.errors);
        // Whoever is its parent now may take its time to wait for it.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pids[2]));
        assert!(stat.map_or(true, |stat| stat.contains(") Z ")), "it still runs");
        assert_eq!(heard.last(1), Some(TaskState::Running));
        worker.shutdown().await;
    });
}

/// One ends by itself, one is stopped, one is taken away; at first the daemon is the one that started them.
fn a_stopped_shim_keeps_no_task_from_ending(lab: &Lab) {
    let shared = lab.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let polite = |n: u8| {
        let mut task = on_bridge(script(n, ""));
        let mut spec = TaskSpec::clone(&task.spec);
        let text = format!(
            "trap 'touch /shared/bye-{n}; exit 0' TERM; touch /shared/up-{n}; while :; do sleep 0.05; done"
        );
        spec.container.args[2] = text;
        // An end that is asked for is not waited for as long as that.
        spec.container.stop_grace_period = Some(Duration::from_secs(60));
        spec.container.mounts = vec![Mount {
            kind: MountKind::Bind,
            source: shared.to_string_lossy().into_owned(),
            target: "/shared".to_owned(),
            read_only: false,
        }];
        task.spec = Arc::new(spec);
        task
    };
    let tasks = [1, 2, 3].map(polite);
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &tasks, &[])];
        let worker = lab.worker(&[&addr]).await;
        let all = |heard: &Heard| (1..4).all(|n| is(n, TaskState::Running)(heard));
        let heard = manager.until("three tasks", all).await;
        eventually("the traps", || (1..4).all(|n| shared.join(format!("up-{n}")).exists())).await;
        let pids = [1, 2, 3].map(|n| heard.full[&id(n)].container.as_ref().unwrap().pid.unwrap());
        let stopped_shims = pids.map(Stopped::parent_of);
        let first = rustix::process::Pid::from_raw(pids[0]).unwrap();
        rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap();
        manager.say(assignments(2, false, &[stopped(&tasks[1])], &[3]));
        let heard = manager.until("the end of the first", is(1, TaskState::Failed)).await;
        assert!(heard.errors[&id(1)].contains("its shim") && heard.errors[&id(1)].contains("did not answer"));
        let heard = manager.until("the stop of the second", is(2, TaskState::Shutdown)).await;
        assert!(heard.errors[&id(2)].contains("did not answer"), "{:?}", heard.errors);
        assert!(shared.join("bye-2").exists(), "it was asked all the same");
        // Taken away means ended and deleted.
        eventually("the removal of the third", || {
            lab.containers().list().unwrap() == [id(1), id(2)].map(|id| id.to_string())
        })
        .await;
        assert!(shared.join("bye-3").exists());
        manager.say(assignments(3, false, &[], &[1, 2]));
        eventually("the removal of the rest", || lab.containers().list().unwrap().is_empty()).await;
        for shim in &stopped_shims {
            assert!(!Path::new(&format!("/proc/{}/exe", shim.0.as_raw_nonzero())).exists(), "a shim is left");
        }
        worker.shutdown().await;
    });
}

fn what_cannot_run_is_refused_with_the_reason(lab: &Lab) {
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        let program = with(1, |_, spec| spec.container.command = vec!["/bin/nope".to_owned()]);
        let source = with(2, |_, spec| {
            let (source, target) = ("/does/not/exist".to_owned(), "/x".to_owned());
            spec.container.mounts = vec![Mount { kind: MountKind::Bind, source, target, read_only: false }];
        });
        let user = with(3, |_, spec| spec.container.user = "ghost".to_owned());
        let image = with(4, |_, spec| spec.container.image = "127.0.0.1:1/none:1".to_owned());
        let init = with(5, |_, spec| spec.container.init = true);
        let tasks = [program, source, user, image, init];
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &tasks, &[])];
        let worker = lab.worker(&[&addr]).await;
        for (n, part) in [
            (1, "/bin/nope`: no such file or directory"),
            (2, "`/does/not/exist` of the mount at `/x`: it does not exist on this node"),
            (3, "unable to find user `ghost`"),
            (4, "127.0.0.1:1"),
            (5, "option `--init` is not supported"),
        ] {
            let heard =
                manager.until("the refusal", |heard| heard.last(n).is_some_and(TaskState::is_terminal)).await;
            assert_eq!(heard.last(n), Some(TaskState::Rejected), "{n}: {}", heard.errors[&id(n)]);
            assert!(heard.errors[&id(n)].contains(part), "{n}: {}", heard.errors[&id(n)]);
        }
        worker.shutdown().await;
    });
}

fn ports_lead_to_the_container_and_clashes_name_the_holder(lab: &Lab) {
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        let serving = |n, published| {
            let mut task = on_bridge(script(n, "while :; do echo served | nc -l -p 80; done"));
            let mode = PublishMode::Host;
            task.ports = vec![PortConfig {
                protocol: Protocol::Tcp,
                target: 80,
                published,
                mode,
                host_ip: None,
                interface: None,
            }];
            task
        };
        let tasks = [serving(1, Some(8080)), serving(2, None)];
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &tasks, &[])];
        let worker = lab.worker(&[&addr]).await;
        let both = |heard: &Heard| is(1, TaskState::Running)(heard) && is(2, TaskState::Running)(heard);
        let heard = manager.until("two servers", both).await;
        let port = |n| heard.full[&id(n)].ports[0].published;
        assert_eq!(port(1), 8080);
        assert!((32_768..61_000).contains(&port(2)), "{}", port(2));
        for port in [port(1), port(2)] {
            eventually("an answer", || {
                let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok_and(|mut stream| {
                    let mut text = String::new();
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                    let _ = std::io::Read::read_to_string(&mut stream, &mut text);
                    text == "served\n"
                })
            })
            .await;
        }
        let taken = std::net::TcpListener::bind("0.0.0.0:8081").unwrap();
        manager.say(assignments(2, false, &[serving(3, Some(8080)), serving(4, Some(8081))], &[]));
        for (n, part) in
            [(3, "tcp port 8080 is published by task `web.1`"), (4, "tcp port 8081 is in use by")]
        {
            let heard =
                manager.until("the clash", |heard| heard.last(n).is_some_and(TaskState::is_terminal)).await;
            assert_eq!(heard.last(n), Some(TaskState::Rejected));
            assert!(heard.errors[&id(n)].contains(part), "{}", heard.errors[&id(n)]);
        }
        drop(taken);
        // A port is free again as soon as its holder is told to be stopped.
        manager.say(assignments(3, false, &[stopped(&tasks[0])], &[]));
        manager.until("the stop", is(1, TaskState::Shutdown)).await;
        manager.say(assignments(4, false, &[serving(5, Some(8080))], &[]));
        manager.until("the successor", is(5, TaskState::Running)).await;
        worker.shutdown().await;
    });
}

fn memory_above_the_limit_is_told_as_such(lab: &Lab) {
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        let mut hungry = script(1, "x=$(yes | head -c 100000000); echo never");
        let limits = Limits { memory_bytes: 8 << 20, ..Limits::default() };
        hungry.spec = Arc::new(TaskSpec { limits, ..TaskSpec::clone(&hungry.spec) });
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[hungry], &[])];
        let worker = lab.worker(&[&addr]).await;
        let heard = manager.until("the end", |heard| heard.last(1).is_some_and(TaskState::is_terminal)).await;
        assert_eq!(heard.errors[&id(1)], "task: non-zero exit (137): out of memory");
        assert!(heard.full[&id(1)].container.as_ref().unwrap().oom_killed);
        worker.shutdown().await;
    });
}

fn three_tasks_start_quickly_and_leaving_leaves_nothing(lab: &Lab) {
    block_on(async {
        let (manager, addr, _serving) = Manager::start(Behaviour::Lead).await;
        *manager.greeting.lock().unwrap() = vec![assignments(1, true, &[], &[])];
        let worker = lab.worker(&[&addr]).await;
        manager.until("the session", |heard| heard.sessions == 1).await;
        let mut took = BTreeMap::new();
        for round in 0..5u8 {
            let tasks: Vec<Task> = (1..4).map(|n| on_bridge(with(round * 3 + n, |_, _| ()))).collect();
            let begun = Instant::now();
            manager.say(assignments(u64::from(round) + 2, false, &tasks, &[]));
            let all =
                |heard: &Heard| tasks.iter().all(|task| is(task.id.to_bytes()[0], TaskState::Running)(heard));
            manager.until("three running tasks", all).await;
            took.insert(begun.elapsed(), round);
        }
        println!("assigned to running, three tasks, sorted: {:?}", took.keys().collect::<Vec<_>>());
        assert_eq!(lab.containers().list().unwrap().len(), 15);
        worker.remove_everything(Duration::from_millis(500)).await.unwrap();
        assert!(
            !lab.path("containers").exists() && !lab.path("tasks").exists() && !lab.path("ledger").exists()
        );
        let links = std::process::Command::new(BUSYBOX).args(["ip", "-o", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert!(!links.contains("rsv") && !links.contains("rsb"), "{links}");
        eventually("the cgroups' end", || lab.cgroups_left().is_empty()).await;
    });
}

async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
