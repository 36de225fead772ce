//! What is claimed of clusters whatever their hosts are: the same steps on namespaces and on virtual machines, typed on
//! the hosts as somebody would.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use rswarm_lab::Machine;
use rswarm_net::lab::Witness;

use crate::vm::HELLO;

const POLL: Duration = Duration::from_millis(100);
const LOG_LINES: usize = 25;
/// Where hosts of either kind have it.
const BUSYBOX: &str = "/bin/busybox";

/// Hosts on one wire.
pub struct Scenario<'a> {
    pub machines: Vec<&'a mut dyn Machine>,
    /// A network namespace from which all of them can be reached.
    pub wire: &'a Path,
    /// How long anything may take: real hosts are fast, emulated ones are not.
    pub patience: Duration,
    /// How often nodes say that they live; one that is silent five times as long is down.
    pub heartbeat: &'static str,
}

/// A line of `rswarm task ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLine {
    /// `web.1`
    pub name: String,
    pub node: String,
    pub desired: String,
    /// `Running 3 seconds ago`
    pub current: String,
    /// The port on the node, if one is published.
    pub port: Option<u16>,
    pub error: String,
}

impl TaskLine {
    const FORMAT: &'static str =
        "{{.Name}}|{{.Node}}|{{.DesiredState}}|{{.CurrentState}}|{{.Ports}}|{{.Error}}";

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, '|');
        let mut next = || fields.next().map(str::to_owned);
        let (name, node, desired, current, ports, error) =
            (next()?, next()?, next()?, next()?, next()?, next()?);
        let port = ports.strip_prefix("*:").and_then(|rest| rest.split_once("->")?.0.parse().ok());
        Some(Self { name: name.trim_start_matches(" \\_ ").to_owned(), node, desired, current, port, error })
    }

    fn runs(&self) -> bool {
        self.desired == "Running" && self.current.starts_with("Running ")
    }
}

impl Scenario<'_> {
    /// The host with this number, from 1.
    pub fn machine(&self, number: usize) -> &dyn Machine {
        &*self.machines[number - 1]
    }

    /// Runs `rswarm …` on a host, which must succeed; returns what it printed.
    pub fn ok(&self, number: usize, args: &[&str]) -> String {
        self.try_rswarm(number, args).unwrap_or_else(|reason| panic!("{reason}\n{}", self.logs()))
    }

    fn try_rswarm(&self, number: usize, args: &[&str]) -> Result<String, String> {
        let machine = self.machine(number);
        let command = format!("`rswarm {}` on {}", args.join(" "), machine.name());
        let output = machine.rswarm(args, self.patience).map_err(|error| format!("{command}: {error}"))?;
        if output.code == Some(0) {
            Ok(output.stdout)
        } else {
            Err(format!("{command} failed with {:?}: {}{}", output.code, output.stdout, output.stderr))
        }
    }

    /// Waits until a condition holds; returns what it gave. Fails with what it last complained about.
    pub fn wait<T>(&self, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
        let deadline = Instant::now() + self.patience;
        loop {
            match condition() {
                Ok(value) => return value,
                Err(reason) if Instant::now() > deadline => {
                    panic!("not within {:?}: {what}; {reason}\n{}", self.patience, self.logs());
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// Starts all daemons and makes a cluster of them: the first host manages, the others work.
    pub fn form(&mut self) {
        for machine in &mut self.machines {
            machine.start_daemon().expect("the daemon can be started");
        }
        for number in 1..=self.machines.len() {
            self.wait("the daemon answers", || self.try_rswarm(number, &["ping"]));
        }
        let address = self.machine(1).address().to_string();
        self.ok(1, &["init", "--advertise-addr", &address, "--dispatcher-heartbeat", self.heartbeat]);
        let token = self.ok(1, &["join-token", "--quiet", "worker"]);
        for number in 2..=self.machines.len() {
            self.ok(number, &["join", "--token", token.trim(), &format!("{address}:2377")]);
        }
        let all = self.machines.len();
        self.wait("all nodes are ready", || {
            let states = self.try_rswarm(1, &["node", "ls", "--format", "{{.Status}}"])?;
            if states.lines().filter(|state| *state == "Ready").count() == all { Ok(()) } else { Err(states) }
        });
    }

    /// Loads an image on every host.
    pub fn load(&self, archive: &Path) {
        for (at, machine) in self.machines.iter().enumerate() {
            let path = machine.give(archive).expect("the archive can be given");
            self.ok(at + 1, &["image", "load", "--input", &path.to_string_lossy()]);
        }
    }

    /// The tasks of a service, its history included.
    pub fn tasks(&self, service: &str) -> Result<Vec<TaskLine>, String> {
        let filter = format!("service={service}");
        let text = self.try_rswarm(
            1,
            &["task", "ls", "--no-trunc", "--filter", &filter, "--format", TaskLine::FORMAT],
        )?;
        text.lines()
            .map(|line| TaskLine::parse(line).ok_or_else(|| format!("unexpected line: {line}")))
            .collect()
    }

    /// Waits until a service runs exactly so many tasks, none of them on the hosts named; returns them.
    pub fn until_running(&self, service: &str, replicas: usize, not_on: &[&str]) -> Vec<TaskLine> {
        self.wait(&format!("`{service}` runs {replicas} tasks, none on {not_on:?}"), || {
            let tasks = self.tasks(service)?;
            let running: Vec<TaskLine> = tasks.iter().filter(|task| task.runs()).cloned().collect();
            let there = running.iter().any(|task| not_on.contains(&task.node.as_str()));
            if running.len() == replicas && !there { Ok(running) } else { Err(format!("{tasks:#?}")) }
        })
    }

    /// Removes a service, and waits until its tasks are gone.
    pub fn remove(&self, service: &str) {
        self.ok(1, &["service", "rm", service]);
        self.wait("the tasks are gone", || match self.tasks(service) {
            Ok(tasks) if !tasks.is_empty() => Err(format!("{tasks:#?}")),
            _ => Ok(()),
        });
    }

    /// Fetches the page of each task from the wire; each must come from the task that is said to be there.
    pub fn fetch_pages(&self, tasks: &[TaskLine]) {
        for task in tasks {
            let machine = self.machines.iter().find(|machine| machine.name() == task.node);
            let machine = machine.unwrap_or_else(|| panic!("a task is on an unknown host: {task:?}"));
            let port = task.port.unwrap_or_else(|| panic!("a task has no port: {task:?}"));
            let page = self.wait("the replica answers", || {
                rswarm_lab::page(self.wire, machine.address(), port).map_err(|error| error.to_string())
            });
            for expected in [format!("task:     {}\n", task.name), format!("node:     {}\n", task.node)] {
                assert!(page.contains(&expected), "expected `{}` in:\n{page}", expected.trim());
            }
        }
    }

    /// Has the first of these tasks find the service `web` by its name on a network, and fetch pages from its address until
    /// all of them have answered.
    fn ask_for_all(&self, tasks: &[TaskLine], network: &str) {
        let asker = self.machines.iter().find(|machine| machine.name() == tasks[0].node);
        let asker = asker.expect("tasks run on known hosts");
        let on_it = format!("node={}", asker.name());
        let filter = ["--filter", &on_it, "--filter", "desired-state=running"];
        let id = self.ok(1, &[&["task", "ls", "--no-trunc", "--quiet"], &filter[..]].concat());
        let pid = self.ok(1, &["task", "inspect", "--format", "{{.Status.ContainerStatus.PID}}", id.trim()]);
        let inside = |program: &[&str]| {
            let enter = ["nsenter", "-t", pid.trim(), "-n", BUSYBOX];
            let output = asker.run(BUSYBOX, &[&enter[..], program].concat(), self.patience);
            let output = output.map_err(|error| error.to_string())?;
            if output.code == Some(0) { Ok(output.stdout) } else { Err(format!("{program:?}: {output:?}")) }
        };
        let gateway =
            self.ok(1, &["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network]);
        // The host hears of the tasks a moment after the manager; the name has no address until then.
        let address = self.wait("the service has an address", || {
            let answer = inside(&["nslookup", "web", gateway.trim()])?;
            // Above this line is the name server's own.
            let found = answer.split_once("Name:").and_then(|(_, found)| {
                found.lines().find_map(|line| Some(line.strip_prefix("Address:")?.trim().to_owned()))
            });
            found.ok_or_else(|| format!("none in:\n{answer}"))
        });
        let all: BTreeSet<String> = tasks.iter().map(|task| task.name.clone()).collect();
        let mut seen = BTreeSet::new();
        self.wait("all tasks answer by the service's address", || {
            let page = inside(&["wget", "-q", "-O", "-", &format!("http://{address}/")])?;
            seen.extend(named(&page));
            if seen == all { Ok(()) } else { Err(format!("only {seen:?} so far at {address}")) }
        });
    }

    fn logs(&self) -> String {
        let tails = self
            .machines
            .iter()
            .map(|machine| format!("--- {} ---\n{}\n", machine.name(), machine.log_tail(LOG_LINES)));
        tails.collect()
    }
}

/// Two workers run three replicas of a page; one of them loses its power, and its replicas run on the other.
///
/// On a starved machine a node may be taken for dead before that, so nothing is said of which worker runs what.
///
/// # Panics
/// When something is not as it should be.
pub fn replicas_of_a_worker_without_power_run_elsewhere(scenario: &mut Scenario<'_>) {
    assert_eq!(scenario.machines.len(), 3, "one manager, two workers");
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "3"];
    let place = ["--constraint", "node.role==worker", "--publish", "mode=host,target=80"];
    scenario.ok(1, &[&create[..], &place[..], &[HELLO]].concat());
    let manager = scenario.machine(1).name().to_owned();
    let before = scenario.until_running("web", 3, &[&manager]);
    scenario.fetch_pages(&before);

    let lost = before[0].node.clone();
    let machine = scenario.machines.iter_mut().find(|machine| machine.name() == lost);
    machine.expect("tasks run on known hosts").power_off().expect("the host can be powered off");
    let died_at = Instant::now();
    let after = scenario.until_running("web", 3, &[&manager, &lost]);
    eprintln!(
        "figure: host powered off until its replicas run elsewhere: {} ms",
        died_at.elapsed().as_millis()
    );
    scenario.fetch_pages(&after);
    let names: BTreeSet<&str> = after.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["web.1", "web.2", "web.3"]), "every slot is filled once");
    // What ran on the lost host is shown as what is no longer wanted.
    let tasks = scenario.tasks("web").unwrap_or_else(|reason| panic!("{reason}"));
    let old: Vec<&TaskLine> = tasks.iter().filter(|task| task.node == lost).collect();
    assert!(!old.is_empty() && old.iter().all(|task| task.desired == "Shutdown"), "{tasks:#?}");
    for task in
        tasks.iter().filter(|task| task.node != lost && !after.contains(task) && !task.error.is_empty())
    {
        eprintln!("on the way: {} on {}: {} {}", task.name, task.node, task.current, task.error);
    }
    let states = scenario.ok(1, &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]);
    assert!(states.lines().any(|line| line == format!("{lost} Down")), "{states}");
    let replicas = scenario.ok(1, &["service", "ls", "--format", "{{.Replicas}}"]);
    assert_eq!(replicas.trim(), "3/3");
}

/// The last byte of the wire's own address.
const WIRE: u8 = 254;
/// The port on every host that leads to the pages.
const MESH_PORT: u16 = 8080;

/// One manager and two workers with a page each: every host answers with both, which see the client; one page's host finds
/// the other by the service's name and virtual address; and every kernel is as it should be.
///
/// # Panics
/// When something is not as it should be.
pub fn a_service_is_reached_through_every_host_and_by_its_name(scenario: &Scenario<'_>) {
    scenario.ok(1, &["network", "create", "mesh"]);
    let publish = format!("{MESH_PORT}:80");
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "2", "--network", "mesh"];
    let place = ["--constraint", "node.role==worker", "--publish", &publish];
    scenario.ok(1, &[&create[..], &place[..], &[HELLO]].concat());
    let manager = scenario.machine(1).name().to_owned();
    let tasks = scenario.until_running("web", 2, &[&manager]);
    let all: BTreeSet<String> = tasks.iter().map(|task| task.name.clone()).collect();

    let [a, b, c, _] = scenario.machine(1).address().octets();
    let client = Ipv4Addr::new(a, b, c, WIRE);
    for machine in &scenario.machines {
        let mut seen = BTreeSet::new();
        scenario.wait(&format!("both tasks answer through {}", machine.name()), || {
            let page = rswarm_lab::page(scenario.wire, machine.address(), MESH_PORT);
            let page = page.map_err(|error| error.to_string())?;
            assert!(page.contains(&format!("peer:     {client}:")), "not who asked:\n{page}");
            seen.extend(named(&page));
            if seen == all { Ok(()) } else { Err(format!("only {seen:?} so far")) }
        });
    }

    scenario.ask_for_all(&tasks, "mesh");
    scenario.ok(1, &["network", "verify"]);
    scenario.remove("web");
}

/// Two workers with a page each on an encrypted network: the one finds the other, and whoever taps the wire reads nothing
/// of it; on a network in the clear he does. Returns whether a process of our own encrypts, rather than the kernel.
///
/// # Panics
/// When something is not as it should be.
pub fn an_encrypted_network_is_not_to_be_read_on_the_wire(scenario: &Scenario<'_>) -> bool {
    let mut by_process = false;
    let witness = Witness::new(scenario.wire).expect("the wire can be tapped");
    let manager = scenario.machine(1).name().to_owned();
    for (network, options) in [("front", &[][..]), ("secret", &["--opt", "encrypted"])] {
        scenario.ok(1, &[&["network", "create"], options, &[network]].concat());
        let create = ["service", "create", "--detach", "--name", "web", "--replicas", "2"];
        let place = ["--network", network, "--constraint", "node.role==worker", HELLO];
        scenario.ok(1, &[&create[..], &place[..]].concat());
        let tasks = scenario.until_running("web", 2, &[&manager]);
        witness.frames();
        scenario.ask_for_all(&tasks, network);
        // A line of the page.
        let read = Witness::reads(&witness.frames(), "task:     web.");
        assert_eq!(read, network == "front", "on `{network}`");
        scenario.ok(1, &["network", "verify"]);
        let processes = scenario.machine(2).run(BUSYBOX, &["ps"], scenario.patience);
        let processes = processes.expect("the machine answers").stdout;
        assert!(processes.contains("rswarm"), "{processes}");
        by_process |= processes.contains("rswarm tunnel");
        scenario.remove("web");
    }
    by_process
}

/// The task that a page says it is from.
fn named(page: &str) -> Option<String> {
    page.lines().find_map(|line| Some(line.strip_prefix("task:")?.trim().to_owned()))
}
