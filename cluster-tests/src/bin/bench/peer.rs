//! The same figures of Docker Swarm: `containerd` and `dockerd` of the distribution, one of each on every host of a lab
//! of the same kind, asked by their API.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rswarm_cluster_tests::workload;
use rswarm_lab::{Lab, LabConfig};
use serde_json::{Value, json};

use crate::Plan;

const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(5);
/// Of all containers; removed at the end.
const CGROUP: &str = "rswarm-bench-peer";
/// Source: docker-engine-api.yaml; what the distribution's version speaks.
const API: &str = "/v1.41";

pub fn measure(plan: &Plan) -> anyhow::Result<()> {
    for program in ["dockerd", "containerd"] {
        ensure!(find(program).is_some(), "`{program}` is not installed: the peer cannot be measured");
    }
    let names = [
        "Docker Swarm, one node: create until 3 run",
        "Docker Swarm, five hosts: create until 3 run",
        "Docker Swarm, five hosts: create until 50 run",
        "Docker Swarm, five hosts: host dead until its replicas run elsewhere",
        "Docker Swarm, three managers of five hosts: leader dead until a write is accepted",
    ];
    if plan.wants(names[0]) {
        let mut swarm = Swarm::form("peer-1", 1, 1)?;
        plan.figure(names[0], "ms", None, |run| swarm.create(&format!("a{run}"), 3))?;
        swarm.end()?;
    }
    if names[1..].iter().any(|name| plan.wants(name)) {
        let mut swarm = Swarm::form("peer-5", 3, 5)?;
        plan.figure(names[1], "ms", None, |run| swarm.create(&format!("a{run}"), 3))?;
        plan.figure(names[2], "ms", None, |run| swarm.create(&format!("b{run}"), 50))?;
        plan.figure(names[3], "ms", None, |run| swarm.fail_over(run))?;
        plan.figure(names[4], "ms", None, |run| swarm.lose_leader(run))?;
        swarm.end()?;
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let directories =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    directories.map(|directory| directory.join(program)).find(|candidate| candidate.exists())
}

/// Two hosts with a task each on an overlay of the peer's.
pub struct Overlay(Swarm);

impl Overlay {
    pub fn form() -> anyhow::Result<Self> {
        let swarm = Swarm::form("peer-2", 1, 2)?;
        swarm.call(1, "POST", "/networks/create", Some(json!({"Name": "front", "Driver": "overlay"})))?;
        let spec = json!({
            "Name": "ends",
            "Mode": {"Global": {}},
            // Its virtual addresses need IPVS.
            "EndpointSpec": {"Mode": "dnsrr"},
            "TaskTemplate": {"ContainerSpec": {"Image": swarm.image}, "Networks": [{"Target": "front"}]},
        });
        swarm.call(1, "POST", "/services/create", Some(spec))?;
        wait("2 tasks run", || Ok(swarm.running(1, "ends")?.len() == 2))?;
        Ok(Self(swarm))
    }

    /// The process of each host's task.
    pub fn tasks(&self) -> [Option<i32>; 2] {
        [1, 2].map(|number| {
            let processes = self.0.lab().host(number).processes();
            let task = |process: &rswarm_lab::Process| {
                process.words.first().is_some_and(|word| word == workload::PROGRAM)
            };
            processes.into_iter().find(task).map(|process| process.pid)
        })
    }

    pub fn end(self) -> anyhow::Result<()> {
        self.0.end()
    }
}

/// A swarm on a lab. Dropping it leaves nothing.
struct Swarm {
    lab: Option<Lab>,
    /// The root file system of the workload, as a tar.
    rootfs: PathBuf,
    /// Id of the image. By name, every task would first wait for a registry that is not there.
    image: String,
}

impl Swarm {
    fn form(name: &str, managers: usize, hosts: usize) -> anyhow::Result<Self> {
        let config = LabConfig {
            name: name.to_owned(),
            hosts,
            subnet: [10, 80, 0, 0].into(),
            executable: PathBuf::from("dockerd"),
            data_dir: Path::new("/var/lib/rswarm-bench").join(name),
            run_dir: Path::new("/run/rswarm-bench").join(name),
        };
        config.destroy()?;
        let lab = Lab::create(config)?;
        let rootfs = lab.config().data_dir.join("rootfs.tar");
        let mut swarm = Self { lab: Some(lab), rootfs, image: String::new() };
        swarm.write_rootfs()?;
        for number in 1..=hosts {
            swarm.start(number)?;
        }
        for number in 1..=hosts {
            swarm.until_answering(number)?;
        }
        swarm.spread_image(hosts)?;
        let address = swarm.address(1);
        swarm.call(
            1,
            "POST",
            "/swarm/init",
            Some(json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": address})),
        )?;
        let tokens = swarm.call(1, "GET", "/swarm", None)?;
        for number in 2..=hosts {
            let role = if number <= managers { "Manager" } else { "Worker" };
            let token = tokens.pointer(&format!("/JoinTokens/{role}")).cloned().unwrap_or_default();
            let join = json!({
                "ListenAddr": "0.0.0.0:2377",
                "AdvertiseAddr": swarm.address(number),
                "RemoteAddrs": [format!("{address}:2377")],
                "JoinToken": token,
            });
            swarm.call(number, "POST", "/swarm/join", Some(join))?;
        }
        swarm.until_ready(hosts)?;
        Ok(swarm)
    }

    fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("it is there until the end")
    }

    fn address(&self, number: usize) -> String {
        self.lab().host(number).address.to_string()
    }

    fn socket(&self, number: usize) -> PathBuf {
        self.lab().host(number).run_root.join("docker.sock")
    }

    fn write_rootfs(&self) -> anyhow::Result<()> {
        let own = std::env::current_exe()?;
        let directory = own.parent().context("this executable has no directory")?;
        let status = Command::new("tar")
            .arg("-cf")
            .arg(&self.rootfs)
            .arg("-C")
            .arg(directory)
            .arg("workload")
            .status()?;
        ensure!(status.success(), "the workload could not be packed: {status}");
        Ok(())
    }

    fn start(&self, number: usize) -> anyhow::Result<()> {
        let host = self.lab().host(number);
        let (data, run) = (&host.data_root, &host.run_root);
        let log = File::options().append(true).create(true).open(host.log_path())?;
        let containerd = run.join("containerd.sock");
        // Left by a daemon that was killed.
        for name in ["docker.pid", "docker.sock", "containerd.sock"] {
            let _ = fs::remove_file(run.join(name));
        }
        let quiet = |mut command: Command| -> anyhow::Result<()> {
            let (out, err) = (log.try_clone()?, log.try_clone()?);
            command
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err)
                .spawn()
                .context("cannot start a daemon of the peer")?;
            Ok(())
        };
        let mut command = host.command(find("containerd").context("no containerd")?)?;
        command.arg("--address").arg(&containerd).arg("--root").arg(data.join("containerd"));
        command.arg("--state").arg(run.join("containerd"));
        quiet(command)?;
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(&containerd).is_err() {
            ensure!(
                Instant::now() < deadline,
                "containerd does not answer: see `{}`",
                host.log_path().display()
            );
            std::thread::sleep(POLL);
        }
        let mut command = host.command(find("dockerd").context("no dockerd")?)?;
        command.arg("--containerd").arg(&containerd);
        command.arg("--data-root").arg(data.join("docker")).arg("--exec-root").arg(run.join("docker"));
        command.arg("--pidfile").arg(run.join("docker.pid"));
        command.arg("--host").arg(format!("unix://{}", self.socket(number).display()));
        command.args([
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--cgroup-parent",
            &format!("/{CGROUP}"),
        ]);
        quiet(command)
    }

    fn until_answering(&self, number: usize) -> anyhow::Result<()> {
        let log = self.lab().host(number).log_path();
        wait(&format!("dockerd answers (its log is `{}`)", log.display()), || {
            Ok(self.call(number, "GET", "/_ping", None).is_ok())
        })
    }

    /// Makes the image on the first host and gives it, with the same id, to the others.
    fn spread_image(&mut self, hosts: usize) -> anyhow::Result<()> {
        let tar = fs::read(&self.rootfs)?;
        let (repository, tag) = workload::IMAGE.split_once(':').context("image name")?;
        // CMD ["/workload","wait"], percent-encoded.
        let command = "CMD%20%5B%22%2Fworkload%22%2C%22wait%22%5D";
        let path = format!("/images/create?fromSrc=-&repo={repository}&tag={tag}&changes={command}");
        self.send(1, "POST", &path, "application/x-tar", &tar)?;
        let made = self.call(1, "GET", &format!("/images/{}/json", workload::IMAGE), None)?;
        made["Id"].as_str().context("the image has no id")?.clone_into(&mut self.image);
        let archive = self.send(1, "GET", &format!("/images/{}/get", workload::IMAGE), "text/plain", b"")?;
        for number in 2..=hosts {
            self.send(number, "POST", "/images/load", "application/x-tar", &archive)?;
        }
        Ok(())
    }

    fn call(&self, number: usize, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let answer = self.send(number, method, path, "application/json", body.as_bytes())?;
        Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    /// One request; HTTP/1.0, so that the answer comes in one piece and ends with the connection.
    fn send(
        &self,
        number: usize,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket(number))?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "{method} {API}{path} HTTP/1.0\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no answer")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap_or_default();
        let body = answer.split_off(end + 4);
        if !status.starts_with('2') {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    }

    fn until_ready(&self, hosts: usize) -> anyhow::Result<()> {
        wait(&format!("{hosts} nodes are ready"), || {
            // A manager that just came back may not know its leader yet.
            let Ok(nodes) = self.call(1, "GET", "/nodes", None) else { return Ok(false) };
            let nodes = nodes.as_array().cloned().unwrap_or_default();
            Ok(nodes.iter().filter(|node| node["Status"]["State"] == "ready").count() == hosts)
        })
    }

    fn create_service(&self, number: usize, name: &str, replicas: usize) -> anyhow::Result<()> {
        let spec = json!({
            "Name": name,
            "Mode": {"Replicated": {"Replicas": replicas}},
            "TaskTemplate": {"ContainerSpec": {"Image": self.image}},
        });
        self.call(number, "POST", "/services/create", Some(spec)).map(drop)
    }

    /// Nodes of the tasks that make up a service now.
    fn running(&self, asked: usize, service: &str) -> anyhow::Result<Vec<String>> {
        // {"service":["x"],"desired-state":["running"]}, percent-encoded.
        let filters = format!(
            "%7B%22service%22%3A%5B%22{service}%22%5D%2C%22desired-state%22%3A%5B%22running%22%5D%7D"
        );
        let tasks = self.call(asked, "GET", &format!("/tasks?filters={filters}"), None)?;
        let tasks = tasks.as_array().cloned().unwrap_or_default();
        let running = tasks.iter().filter(|task| task["Status"]["State"] == "running");
        Ok(running.filter_map(|task| Some(task["NodeID"].as_str()?.to_owned())).collect())
    }

    fn processes(&self) -> usize {
        let hosts = self.lab().hosts().iter();
        let words = hosts.flat_map(rswarm_lab::Host::processes).map(|process| process.words);
        words.filter(|words| words.first().is_some_and(|word| word == workload::PROGRAM)).count()
    }

    fn create(&mut self, name: &str, replicas: usize) -> anyhow::Result<f64> {
        let started_at = Instant::now();
        self.create_service(1, name, replicas)?;
        wait(&format!("{replicas} tasks run"), || Ok(self.running(1, name)?.len() >= replicas))?;
        let took = started_at.elapsed();
        self.call(1, "DELETE", &format!("/services/{name}"), None)?;
        wait("no process is left", || Ok(self.processes() == 0))?;
        Ok(took.as_secs_f64() * 1000.0)
    }

    fn fail_over(&mut self, run: usize) -> anyhow::Result<f64> {
        let hosts = self.lab().hosts().len();
        if run == 0 {
            self.create_service(1, "web", 10)?;
        }
        wait("10 tasks run", || Ok(self.running(1, "web")?.len() == 10))?;
        let victim = hosts - run % 2;
        let info = self.call(victim, "GET", "/info", None)?;
        let dead = info["Swarm"]["NodeID"].as_str().unwrap_or_default().to_owned();
        self.lab.as_mut().context("no lab")?.host_mut(victim).power_off()?;
        let died_at = Instant::now();
        wait("10 tasks run elsewhere", || {
            Ok(self.running(1, "web")?.iter().filter(|node| **node != dead).count() == 10)
        })?;
        let took = died_at.elapsed();
        self.power_on(victim)?;
        Ok(took.as_secs_f64() * 1000.0)
    }

    fn lose_leader(&mut self, run: usize) -> anyhow::Result<f64> {
        let nodes = self.call(1, "GET", "/nodes", None)?;
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        let leader = nodes
            .iter()
            .find(|node| node["ManagerStatus"]["Leader"] == true)
            .context("there is no leader")?;
        let address = leader["ManagerStatus"]["Addr"].as_str().unwrap_or_default().to_owned();
        let hosts = self.lab().hosts();
        let leader = hosts.iter().find(|host| address.starts_with(&format!("{}:", host.address)));
        let leader = leader.context("the leader is on no host")?.number;
        let other = leader % 3 + 1;
        self.lab.as_mut().context("no lab")?.host_mut(leader).power_off()?;
        let died_at = Instant::now();
        wait("a write is accepted", || match self.create_service(other, &format!("w{run}"), 0) {
            Ok(()) => Ok(true),
            Err(error) => Ok(error.to_string().contains("already exists")),
        })?;
        let took = died_at.elapsed();
        self.power_on(leader)?;
        Ok(took.as_secs_f64() * 1000.0)
    }

    fn power_on(&self, number: usize) -> anyhow::Result<()> {
        self.lab().host(number).heal()?;
        self.start(number)?;
        self.until_answering(number)?;
        self.until_ready(self.lab().hosts().len())
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.destroy()
    }

    fn destroy(&mut self) -> anyhow::Result<()> {
        if let Some(lab) = self.lab.take() {
            lab.destroy()?;
            remove_cgroups();
        }
        Ok(())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            eprintln!("{error:#}");
        }
    }
}

fn wait(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !condition()? {
        ensure!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// The peer's own are removed by it only when it ends its containers in order.
fn remove_cgroups() {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let parent = hierarchy.path().join(CGROUP);
        for container in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(container.path());
        }
        let _ = fs::remove_dir(parent);
    }
}
