//! A lab with a cluster on it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_api::v1;
use rswarm_lab::{Host, Lab, LabConfig, Output};
use tokio::runtime::Runtime;

use crate::alone::Alone;
use crate::api::Api;
use crate::{rswarm_executable, workload};

/// Below it each lab has directories of its own.
const DATA_DIR: &str = "/var/lib/rswarm-tests";
const RUN_DIR: &str = "/run/rswarm-tests";
/// Where logs of failed tests are kept.
const LOGS_DIR: &str = "/tmp/rswarm-tests-logs";
const LOG_LINES: usize = 25;
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
const COMMAND_DEADLINE: Duration = Duration::from_secs(180);
const READY_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// How long a process on a busy machine may take from its start to its first look at the clock.
const STARTING: Duration = Duration::from_secs(1);

/// Hosts with daemons. Dropping it leaves nothing but, after a panic, the logs.
pub struct ClusterLab {
    lab: Option<Lab>,
    runtime: Arc<Runtime>,
    /// Paths of archives, written when first needed.
    archives: Vec<(String, PathBuf)>,
    /// Arguments for each daemon that is started from now on.
    pub daemon_args: Vec<String>,
    _alone: Alone,
}

impl ClusterLab {
    /// Hosts on which nothing runs yet; `None`, reported by name, where a lab cannot be made.
    ///
    /// # Panics
    /// When the executable under test is missing or old, or the lab cannot be made in spite of the privilege.
    pub fn new(name: &str, hosts: usize) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: `{name}` needs root");
            return None;
        }
        let made = Self::make(name, hosts);
        Some(made.unwrap_or_else(|error| panic!("cannot make lab `{name}`: {error:#}")))
    }

    /// A cluster of so many managers, the first hosts, and workers, all ready and with the workload's image.
    ///
    /// # Panics
    /// When it does not come about.
    pub fn form(name: &str, managers: usize, workers: usize) -> Option<Self> {
        let mut lab = Self::new(name, managers + workers)?;
        for number in 1..=managers + workers {
            lab.spawn(number);
        }
        for number in 1..=managers + workers {
            lab.until_answering(number);
        }
        lab.init(1);
        for number in 2..=managers + workers {
            lab.join(number, if number <= managers { "manager" } else { "worker" }, 1);
        }
        lab.load_image(workload::IMAGE);
        lab.until_ready(managers + workers);
        Some(lab)
    }

    fn make(name: &str, hosts: usize) -> anyhow::Result<Self> {
        let alone = Alone::wait()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = LabConfig {
            name: name.to_owned(),
            hosts,
            subnet: [10, 79, 0, 0].into(),
            executable: rswarm_executable()?,
            data_dir: Path::new(DATA_DIR).join(name),
            run_dir: Path::new(RUN_DIR).join(name),
        };
        // Under the lock it can only be what a killed run has left.
        config.destroy()?;
        Ok(Self {
            lab: Some(Lab::create(config)?),
            runtime: Arc::new(runtime),
            archives: Vec::new(),
            daemon_args: Vec::new(),
            _alone: alone,
        })
    }

    fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("it is there until it is dropped")
    }

    fn lab_mut(&mut self) -> &mut Lab {
        self.lab.as_mut().expect("it is there until it is dropped")
    }

    pub fn hosts(&self) -> &[Host] {
        self.lab().hosts()
    }

    /// All hosts, to be changed.
    pub fn hosts_mut(&mut self) -> &mut [Host] {
        self.lab_mut().hosts_mut()
    }

    /// The host with this number, from 1.
    pub fn host(&self, number: usize) -> &Host {
        self.lab().host(number)
    }

    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        self.lab_mut().host_mut(number)
    }

    pub fn config(&self) -> &LabConfig {
        self.lab().config()
    }

    /// The daemon of a host, asked directly.
    pub fn api(&self, number: usize) -> Api {
        Api::new(self.runtime.clone(), &self.host(number).socket())
    }

    // ---- daemons and hosts ----

    fn spawn(&mut self, number: usize) {
        let args = self.daemon_args.clone();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host_mut(number).start_daemon(&args).expect("the daemon can be started");
    }

    fn until_answering(&mut self, number: usize) {
        let deadline = Instant::now() + DAEMON_DEADLINE;
        while !self.host(number).answers() {
            assert!(
                self.host_mut(number).daemon_pid().is_some(),
                "the daemon of host {number} ended\n{}",
                self.host(number).log_tail(LOG_LINES)
            );
            assert!(
                Instant::now() < deadline,
                "the daemon of host {number} does not answer after {DAEMON_DEADLINE:?}\n{}",
                self.host(number).log_tail(LOG_LINES)
            );
            thread::sleep(POLL);
        }
    }

    /// Starts the daemon of a host and waits until it answers.
    pub fn start(&mut self, number: usize) {
        self.spawn(number);
        self.until_answering(number);
    }

    /// Kills the daemon of a host, and nothing else there.
    pub fn crash(&mut self, number: usize) {
        self.host_mut(number).crash();
    }

    /// Ends the daemon of a host in order and starts it again.
    pub fn restart(&mut self, number: usize) {
        self.host_mut(number).stop();
        self.start(number);
    }

    pub fn cut(&self, number: usize) {
        self.host(number).cut().expect("the cable can be pulled");
    }

    pub fn heal(&self, number: usize) {
        self.host(number).heal().expect("the cable can be put back");
    }

    /// Cuts a host off and kills everything there.
    pub fn power_off(&mut self, number: usize) {
        self.host_mut(number).power_off().expect("the host can be powered off");
    }

    /// Connects a host again and starts its daemon.
    pub fn power_on(&mut self, number: usize) {
        self.heal(number);
        self.start(number);
    }

    // ---- commands ----

    /// Runs `rswarm …` on a host. It is killed if it does not end, such as a daemon that should have refused to start.
    pub fn rswarm(&self, number: usize, args: &[&str]) -> Output {
        let mut command = self.host(number).rswarm(args).expect("the host is there");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("rswarm can be run");
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ended, watched) = mpsc::channel::<()>();
        let watch = thread::spawn(move || {
            if watched.recv_timeout(COMMAND_DEADLINE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output().expect("its output can be read");
        drop(ended);
        watch.join().expect("it only waits");
        Output::new(output.status.code(), &output.stdout, &output.stderr)
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, number: usize, args: &[&str]) -> String {
        let output = self.rswarm(number, args);
        assert!(
            output.code == Some(0),
            "on host {number}, `rswarm {}` failed with {:?}: {}{}\n{}",
            args.join(" "),
            output.code,
            output.stdout,
            output.stderr,
            self.logs()
        );
        output.stdout
    }

    /// Runs a command that must fail with a message that contains all of `words` (in any case); returns the message.
    pub fn refused(&self, number: usize, args: &[&str], words: &[&str]) -> String {
        let output = self.rswarm(number, args);
        let message = output.stderr.to_lowercase();
        let command = args.join(" ");
        assert!(output.code != Some(0), "`rswarm {command}` should have failed, but said: {}", output.stdout);
        assert!(output.code.is_some(), "`rswarm {command}` was killed: {message}");
        for word in words {
            assert!(
                message.contains(&word.to_lowercase()),
                "expected `{word}` in what `rswarm {command}` says, found: {message}"
            );
        }
        assert!(!message.contains("panicked"), "{message}");
        message
    }

    pub fn init(&self, number: usize) {
        let address = self.host(number).address.to_string();
        self.ok(number, &["init", "--advertise-addr", &address]);
    }

    /// Lets a host enter the cluster of the manager `through`.
    pub fn join(&self, number: usize, role: &str, through: usize) {
        let token = self.token(through, role);
        let manager = format!("{}:2377", self.host(through).address);
        self.ok(number, &["join", "--token", &token, &manager]);
    }

    pub fn token(&self, manager: usize, role: &str) -> String {
        self.ok(manager, &["join-token", "-q", role]).trim().to_owned()
    }

    /// Creates a service of the workload without waiting for it; `args` stand before the image, `words` after it.
    pub fn create(&self, number: usize, name: &str, replicas: usize, args: &[&str], words: &[&str]) {
        let replicas = replicas.to_string();
        let mut all = vec!["service", "create", "--detach", "--name", name, "--replicas", &replicas];
        all.extend(args);
        all.push(workload::IMAGE);
        all.extend(words);
        self.ok(number, &all);
    }

    /// Loads an image of the workload on every host whose daemon answers.
    pub fn load_image(&mut self, image: &str) {
        let archive = self.archive(image);
        let path = archive.to_string_lossy().into_owned();
        let answering = self.hosts().iter().filter(|host| host.answers());
        let loads: Vec<_> = answering
            .map(|host| {
                let mut command =
                    host.rswarm(["image", "load", "--input", &path]).expect("the host is there");
                let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
                child.expect("rswarm can be run")
            })
            .collect();
        for load in loads {
            let output = load.wait_with_output().expect("rswarm can be waited for");
            assert!(output.status.success(), "image load: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn archive(&mut self, image: &str) -> PathBuf {
        if let Some((_, path)) = self.archives.iter().find(|(known, _)| known == image) {
            return path.clone();
        }
        let data_dir = self.config().data_dir.clone();
        let path = workload::write_archive(image, &data_dir).expect("the image can be built");
        self.archives.push((image.to_owned(), path.clone()));
        path
    }

    // ---- what is true ----

    /// Number of the host that leads, as `asked` sees it.
    pub fn leader(&self, asked: usize) -> Option<usize> {
        let nodes = self.api(asked).nodes().ok()?;
        let leader = nodes.iter().find(|node| node.manager.as_ref().is_some_and(|manager| manager.leader))?;
        self.number_of(leader)
    }

    /// Waits until `asked` knows who leads, which it does not during an election, nor before a new manager is listed as one.
    pub fn until_leader(&self, asked: usize) -> usize {
        self.wait(&format!("host {asked} knows a leader"), READY_DEADLINE, || {
            self.leader(asked).ok_or_else(|| "it knows none".to_owned())
        })
    }

    /// Number of the host that a node runs on.
    pub fn number_of(&self, node: &v1::Node) -> Option<usize> {
        let hostname = &node.description.as_ref()?.hostname;
        self.hosts().iter().find(|host| host.name == *hostname).map(|host| host.number)
    }

    /// Id of the node on a host.
    pub fn node_id(&self, number: usize) -> String {
        self.api(number).info().expect("the daemon answers").node_id
    }

    /// Waits until so many nodes are ready, as the first host sees it.
    pub fn until_ready(&self, nodes: usize) {
        let ready = |node: &&v1::Node| {
            node.status.as_ref().is_some_and(|status| status.state() == v1::NodeState::Ready)
        };
        let api = self.api(1);
        self.wait(&format!("{nodes} nodes are ready"), READY_DEADLINE, || {
            let found = api.nodes().map_err(|status| status.to_string())?;
            let count = found.iter().filter(ready).count();
            if count == nodes { Ok(()) } else { Err(format!("{count} are")) }
        });
    }

    /// Waits until a service has exactly so many running tasks; returns them.
    pub fn until_running(
        &self,
        asked: usize,
        service: &str,
        replicas: usize,
        within: Duration,
    ) -> Vec<v1::Task> {
        let api = self.api(asked);
        self.wait(&format!("service `{service}` runs {replicas} tasks"), within, || {
            let tasks = api.tasks(Some(service)).map_err(|status| status.to_string())?;
            let (running, rest): (Vec<_>, Vec<_>) = tasks.into_iter().partition(crate::is_running);
            if running.len() == replicas {
                return Ok(running);
            }
            let rest: Vec<_> = rest.iter().map(describe).collect();
            Err(format!("{} run; others: {}", running.len(), rest.join(", ")))
        })
    }

    /// Waits until a condition holds; returns what it gave. Fails with what it last complained about, and with the
    /// daemons' logs.
    ///
    /// # Panics
    /// When it does not hold within the deadline.
    pub fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut() -> Result<T, String>,
    ) -> T {
        let deadline = Instant::now() + within;
        loop {
            match condition() {
                Ok(value) => return value,
                Err(reason) if Instant::now() > deadline => {
                    panic!("not within {within:?}: {what}; {reason}\n{}", self.logs());
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// When a task of a service ran and did not listen yet, for each whose logs there are. Without a health check a task
    /// is called from when it runs, so whoever called one of these then may have been refused.
    pub fn silent_starts(&self, asked: usize, service: &str) -> Vec<RangeInclusive<SystemTime>> {
        let logs = self.wait("logs from all nodes", READY_DEADLINE, || {
            let output = self.rswarm(asked, &["service", "logs", "--raw", service]);
            if output.code == Some(0) { Ok(output.stdout) } else { Err(output.stderr) }
        });
        logs.lines().filter_map(silent_start).collect()
    }

    /// Pids of the workload's processes on a host: what really runs there, whatever anyone says.
    pub fn workload_pids(&self, number: usize) -> BTreeSet<i32> {
        let processes = self.host(number).processes();
        let workload =
            processes.iter().filter(|process| process.words.first().is_some_and(|w| w == workload::PROGRAM));
        workload.map(|process| process.pid).collect()
    }

    /// The last lines of every daemon's log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for host in self.hosts() {
            let _ = write!(text, "--- {} ---\n{}\n", host.name, host.log_tail(LOG_LINES));
        }
        text
    }

    fn keep_logs(&self) {
        let directory = Path::new(LOGS_DIR).join(&self.config().name);
        let kept = fs::create_dir_all(&directory).and_then(|()| {
            self.hosts().iter().filter(|host| host.log_path().exists()).try_for_each(|host| {
                fs::copy(host.log_path(), directory.join(format!("{}.log", host.name))).map(drop)
            })
        });
        match kept {
            Ok(()) => eprintln!("the daemons' logs are kept in `{}`", directory.display()),
            Err(error) => eprintln!("the daemons' logs could not be kept: {error}"),
        }
    }

    /// Ends everything; what is left is an error.
    pub fn destroy(mut self) -> anyhow::Result<()> {
        match self.lab.take() {
            Some(lab) => Ok(lab.destroy()?),
            None => Ok(()),
        }
    }
}

impl Drop for ClusterLab {
    fn drop(&mut self) {
        if self.lab.is_none() {
            return;
        }
        if thread::panicking() {
            self.keep_logs();
        }
        if let Some(lab) = self.lab.take()
            && let Err(error) = lab.destroy()
        {
            eprintln!("{error}");
        }
    }
}

/// `web.1 failed (desired running): error`
pub fn describe(task: &v1::Task) -> String {
    let status = task.status.clone().unwrap_or_default();
    let state = status.state().as_str_name().trim_start_matches("TASK_STATE_").to_lowercase();
    let desired = task.desired().as_str_name().trim_start_matches("TASK_STATE_").to_lowercase();
    let reason = if status.error.is_empty() { &status.message } else { &status.error };
    format!("{}.{} {state} (desired {desired}): {reason}", task.service_name, task.slot)
}

/// What a line of the workload `serve` says of its start; none of other lines.
fn silent_start(line: &str) -> Option<RangeInclusive<SystemTime>> {
    let (ran, listens) = line.strip_prefix("ran at ")?.strip_suffix(" ms")?.split_once(" ms, listens at ")?;
    let time = |text: &str| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(text.parse().ok()?));
    // The process was there some time before it looked at the clock. Both are whole milliseconds, what is left of the
    // last one cut off: it was silent until some time in it.
    Some(time(ran)? - STARTING..=time(listens)? + Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_silent_until_some_time_in_the_millisecond_that_was_told() {
        let start = silent_start("ran at 1795950521227 ms, listens at 1795950521227 ms").expect("a start");
        let at = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        assert!(start.contains(&at(1_795_950_521_227_655)));
        assert!(start.contains(&at(1_795_950_520_227_000)));
        assert!(!start.contains(&at(1_795_950_520_226_999)) && !start.contains(&at(1_795_950_521_228_001)));
        assert_eq!(silent_start("waiting"), None);
    }
}
