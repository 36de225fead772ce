//! The same claim on virtual machines, with pure cgroup v2, and on namespaces.

use std::time::Duration;

use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::scenario::{self, Scenario};
use rswarm_cluster_tests::vm::{self, Size, VmTest};
use rswarm_lab::Machine;
use rswarm_lab::vm::Payload;

/// Everything is emulated, on a machine that may have other things to do: hence also the slower heartbeat, lest a node
/// that only waits for its processor is taken for dead.
const PATIENCE_VM: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn replicas_of_a_worker_without_power_run_elsewhere_on_virtual_machines() {
    if let Err(reason) = vm::can_run() {
        eprintln!("skipped: `replicas_of_a_worker_without_power_run_elsewhere_on_virtual_machines` {reason}");
        return;
    }
    let archive = vm::hello_archive().unwrap_or_else(|error| panic!("{error:#}"));
    let payload = vm::node_payload(Payload::new()).unwrap_or_else(|error| panic!("{error:#}"));
    let payload = payload.file(&archive, "/root/rswarm-hello.tar", 0o644);
    let mut test = VmTest::new("vm-cluster", Size { machines: 3, cpus: 1, memory_mib: 1024 }, payload);
    let wire = test.lab.wire_netns();
    let machines = test.lab.machines_mut().iter_mut().map(|machine| machine as &mut dyn Machine).collect();
    let mut scenario = Scenario { machines, wire: &wire, patience: PATIENCE_VM, heartbeat: "3s" };
    scenario::replicas_of_a_worker_without_power_run_elsewhere(&mut scenario, &archive);
    let version = scenario.ok(1, &["info", "--format", "{{.CgroupVersion}}"]);
    assert_eq!(version.trim(), "v2", "that is what these machines are for");
}

#[test]
fn replicas_of_a_worker_without_power_run_elsewhere_on_namespaces() {
    let Some(mut lab) = ClusterLab::new("power", 3) else { return };
    let archive = vm::hello_archive().unwrap_or_else(|error| panic!("{error:#}"));
    let wire = lab.config().wire_netns();
    let machines = lab.hosts_mut().iter_mut().map(|host| host as &mut dyn Machine).collect();
    let mut scenario = Scenario { machines, wire: &wire, patience: PATIENCE, heartbeat: "1s" };
    scenario::replicas_of_a_worker_without_power_run_elsewhere(&mut scenario, &archive);
}
