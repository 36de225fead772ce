//! Throughput between tasks on two hosts, by iperf3 in their network namespaces; the peer's in turns with ours, so that
//! a busy machine is as busy for both.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use rswarm_cluster_tests::{ClusterLab, Figure};
use serde_json::Value;

use crate::{Plan, peer};

const NAME: &str = "two hosts: iperf3 between tasks of an overlay";
const SECONDS: &str = "2";

pub fn measure(plan: &Plan, with_peer: bool) -> anyhow::Result<()> {
    if !plan.wants(NAME) {
        return Ok(());
    }
    if Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("left out: {NAME}: needs iperf3");
        return Ok(());
    }
    let lab = ClusterLab::form("bench-overlay", 1, 1).context("the benchmark needs root")?;
    lab.ok(1, &["network", "create", "front"]);
    let create = ["service", "create", "--quiet", "--name", "ends", "--mode", "global", "--network", "front"];
    lab.ok(1, &[&create[..], &[rswarm_cluster_tests::workload::IMAGE]].concat());
    let ours = [1, 2].map(|number| lab.workload_pids(number).into_iter().next());
    let ours = Ends::new(ours)?;
    let swarm = if with_peer { Some(peer::Overlay::form()?) } else { None };
    let theirs = swarm.as_ref().map(|swarm| Ends::new(swarm.tasks())).transpose()?;
    let mut figure = Figure::new(NAME, "Gbit/s", None);
    let mut peers = Figure::new(&format!("Docker Swarm, {NAME}"), "Gbit/s", None);
    for _ in 0..plan.runs {
        figure.add(ours.gigabits()?);
        if let Some(theirs) = &theirs {
            peers.add(theirs.gigabits()?);
        }
    }
    println!("{figure}");
    if theirs.is_some() {
        println!("{peers}");
    }
    drop((ours, theirs));
    swarm.map_or(Ok(()), peer::Overlay::end)
}

/// Two tasks; in the second's namespace a server listens.
struct Ends {
    from: i32,
    to: String,
    server: Child,
}

impl Ends {
    fn new(pids: [Option<i32>; 2]) -> anyhow::Result<Self> {
        let [from, to] = pids.map(|pid| pid.context("a host has no task"));
        let (from, to) = (from?, to?);
        let output = inside(to, "ip").args(["-j", "-4", "address", "show", "dev", "eth0"]).output()?;
        let links: Value = serde_json::from_slice(&output.stdout)?;
        let address = links.pointer("/0/addr_info/0/local").and_then(Value::as_str);
        let address = address.context("a task has no address on eth0")?.to_owned();
        let server = inside(to, "iperf3").arg("-s").stdout(Stdio::null()).spawn()?;
        Ok(Self { from, to: address, server })
    }

    fn gigabits(&self) -> anyhow::Result<f64> {
        let output = inside(self.from, "iperf3").args(["-c", &self.to, "-t", SECONDS, "-J"]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.success(), "iperf3: {}", report["error"]);
        let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        Ok(bits.context("iperf3 told no figure")? / 1e9)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A program of this machine in the network namespace of a process.
fn inside(pid: i32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--net", "--target", &pid.to_string(), program]).stdin(Stdio::null());
    command
}
