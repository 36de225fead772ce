//! The figures of this project.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rswarm_api::v1;
use rswarm_cluster_tests::{ClusterLab, describe, is_running, workload};

use crate::{Plan, resources};

pub const LIMIT: Duration = Duration::from_secs(60);
/// Over which the daemon's idle time is watched.
const IDLE: Duration = Duration::from_secs(10);
pub const NO_LAB: &str = "the benchmark needs root";

pub fn measure(plan: &Plan) -> anyhow::Result<()> {
    one_node(plan)?;
    three_hosts(plan)?;
    five_hosts(plan)
}

/// A service of the workload.
fn spec(name: &str, replicas: usize) -> v1::ServiceSpec {
    use v1::service_mode::{Mode, Replicated};
    let replicas = replicas as u64;
    v1::ServiceSpec {
        name: name.to_owned(),
        mode: Some(v1::ServiceMode { mode: Some(Mode::Replicated(Replicated { replicas })) }),
        task: Some(v1::TaskSpec {
            container: Some(v1::ContainerSpec {
                image: workload::IMAGE.to_owned(),
                ..v1::ContainerSpec::default()
            }),
            ..v1::TaskSpec::default()
        }),
        ..v1::ServiceSpec::default()
    }
}

fn until_processes(lab: &ClusterLab, count: usize) {
    let hosts = lab.hosts().len();
    lab.wait(&format!("{count} processes"), LIMIT, || {
        let found: usize = (1..=hosts).map(|number| lab.workload_pids(number).len()).sum();
        if found == count { Ok(()) } else { Err(format!("{found} are there")) }
    });
}

/// Milliseconds from the call to so many running tasks, seen in the stream of changes. A task whose first attempt failed
/// is in that time with its restart delay, so that it is named.
fn create(lab: &ClusterLab, name: &str, replicas: usize) -> anyhow::Result<f64> {
    let api = lab.api(1);
    let took = api.time_to_running(spec(name, replicas), replicas).context("create a service")?;
    for task in api.tasks(Some(name))?.iter().filter(|task| !is_running(task)) {
        eprintln!("{name}: an attempt failed: {}", describe(task));
    }
    api.remove(name)?;
    until_processes(lab, 0);
    Ok(took.as_secs_f64() * 1000.0)
}

fn one_node(plan: &Plan) -> anyhow::Result<()> {
    let names = [
        "one node: create until 3 run",
        "one node: idle daemon, memory",
        "one node: idle daemon, CPU",
        "one node: shim of a container, proportional",
        "one node: shim of a container, private",
        "one node: create until 200 run",
    ];
    if !names.iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let mut lab = ClusterLab::form("bench-1", 1, 0).context(NO_LAB)?;
    let pid = lab.host_mut(1).daemon_pid().context("the daemon has ended")? as i32;
    // Before anything was done, and after: the first is what an idle node costs.
    plan.figure(names[1], "MB", Some(30.0), |_| resources::rss_mb(pid).context("memory"))?;
    if plan.wants(names[2]) {
        let once = Plan { runs: 1, ..plan.clone() };
        once.figure(names[2], "%", Some(0.5), |_| {
            let before = resources::cpu_nanos(pid).context("processor time")?;
            std::thread::sleep(IDLE);
            let after = resources::cpu_nanos(pid).context("processor time")?;
            Ok((after - before) as f64 / IDLE.as_nanos() as f64 * 100.0)
        })?;
    }
    plan.figure(names[0], "ms", Some(100.0), |run| create(&lab, &format!("a{run}"), 3))?;
    plan.figure(names[5], "ms", Some(4000.0), |run| create(&lab, &format!("b{run}"), 200))?;
    if plan.wants(names[3]) || plan.wants(names[4]) {
        lab.create(1, "shims", plan.runs, &[], &[]);
        lab.until_running(1, "shims", plan.runs, LIMIT);
        let shims: Vec<i32> = lab
            .host(1)
            .processes()
            .iter()
            .filter(|process| process.is_shim())
            .map(|process| process.pid)
            .collect();
        let shim = |run: usize| shims.get(run).copied().context("a container has no shim");
        plan.figure(names[3], "MB", Some(1.5), |run| resources::pss_mb(shim(run)?).context("memory"))?;
        plan.figure(names[4], "MB", None, |run| resources::private_mb(shim(run)?).context("memory"))?;
    }
    Ok(())
}

fn three_hosts(plan: &Plan) -> anyhow::Result<()> {
    let create_name = "three hosts: create until 3 run";
    let leader_name = "three managers: leader dead until a write is accepted";
    if !plan.wants(create_name) && !plan.wants(leader_name) {
        return Ok(());
    }
    let mut lab = ClusterLab::form("bench-3", 3, 0).context(NO_LAB)?;
    plan.figure(create_name, "ms", Some(150.0), |run| create(&lab, &format!("a{run}"), 3))?;
    plan.figure(leader_name, "ms", Some(2000.0), |run| {
        let leader = lab.leader(1).context("there is no leader")?;
        let other = leader % 3 + 1;
        let api = lab.api(other);
        // The connection is there already: it is not what is measured.
        api.services()?;
        lab.power_off(leader);
        let died_at = Instant::now();
        lab.wait("a write is accepted", LIMIT, || match api.create(spec(&format!("b{run}"), 0)) {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            Err(status) => Err(status.to_string()),
        });
        let took = died_at.elapsed();
        lab.power_on(leader);
        lab.until_ready(3);
        Ok(took.as_secs_f64() * 1000.0)
    })
}

fn five_hosts(plan: &Plan) -> anyhow::Result<()> {
    let create_name = "five hosts: create until 50 run";
    let failover_name = "five hosts: host dead until its replicas run elsewhere";
    if !plan.wants(create_name) && !plan.wants(failover_name) {
        return Ok(());
    }
    let mut lab = ClusterLab::form("bench-5", 3, 2).context(NO_LAB)?;
    plan.figure(create_name, "ms", Some(1000.0), |run| create(&lab, &format!("a{run}"), 50))?;
    if !plan.wants(failover_name) {
        return Ok(());
    }
    plan.figure(failover_name, "ms", Some(7000.0), |run| {
        // A service of its own each time, so that the host that dies has its share of it.
        let name = format!("web{run}");
        lab.create(1, &name, 10, &[], &[]);
        lab.until_running(1, &name, 10, LIMIT);
        let victim = 4 + run % 2;
        let dead = lab.node_id(victim);
        let api = lab.api(1);
        lab.power_off(victim);
        let died_at = Instant::now();
        lab.wait("all replicas run elsewhere", LIMIT, || {
            let running = api.running(&name).map_err(|status| status.to_string())?;
            let elsewhere = running.iter().filter(|task| task.node_id != dead).count();
            if elsewhere == 10 { Ok(()) } else { Err(format!("{elsewhere} of 10 do")) }
        });
        let took = died_at.elapsed();
        lab.power_on(victim);
        lab.until_ready(5);
        lab.ok(1, &["service", "rm", &name]);
        Ok(took.as_secs_f64() * 1000.0)
    })
}
