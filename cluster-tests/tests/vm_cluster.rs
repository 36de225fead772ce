//! The same claims on virtual machines, with pure cgroup v2 and Debian's kernel, and on namespaces.

use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Emulated machines take all processors, for longer than a cluster of namespaces has patience: one after the other.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays scenarios on a cluster of three virtual machines; says why, if there can be none.
fn on_virtual_machines(test: &str, lab: &str, play: impl FnOnce(&mut Scenario<'_>)) {
    if let Err(reason) = vm::can_run() {
        eprintln!("skipped: `{test}` {reason}");
        return;
    }
    let _turn = turn();
    let archive = vm::hello_archive().unwrap_or_else(|error| panic!("{error:#}"));
    let payload = vm::node_payload(Payload::new()).unwrap_or_else(|error| panic!("{error:#}"));
    let payload = payload.file(&archive, "/root/rswarm-hello.tar", 0o644);
    let mut test = VmTest::new(lab, Size { machines: 3, cpus: 1, memory_mib: 1024 }, payload);
    let wire = test.lab.wire_netns();
    let machines = test.lab.machines_mut().iter_mut().map(|machine| machine as &mut dyn Machine).collect();
    let mut scenario = Scenario { machines, wire: &wire, patience: PATIENCE_VM, heartbeat: "3s" };
    scenario.form();
    scenario.load(&archive);
    play(&mut scenario);
}

/// Plays scenarios on a cluster of three namespaces.
fn on_namespaces(lab: &str, play: impl FnOnce(&mut Scenario<'_>)) {
    let _turn = turn();
    let Some(mut lab) = ClusterLab::new(lab, 3) else { return };
    let archive = vm::hello_archive().unwrap_or_else(|error| panic!("{error:#}"));
    let wire = lab.config().wire_netns();
    let machines = lab.hosts_mut().iter_mut().map(|host| host as &mut dyn Machine).collect();
    let mut scenario = Scenario { machines, wire: &wire, patience: PATIENCE, heartbeat: "1s" };
    scenario.form();
    scenario.load(&archive);
    play(&mut scenario);
}

#[test]
fn clusters_keep_their_promises_on_virtual_machines() {
    on_virtual_machines("clusters_keep_their_promises_on_virtual_machines", "vm-cluster", |scenario| {
        let by_process = scenario::an_encrypted_network_is_not_to_be_read_on_the_wire(scenario);
        assert!(!by_process, "this kernel has WireGuard");
        scenario::a_service_is_reached_through_every_host_and_by_its_name(scenario);
        let version = scenario.ok(1, &["info", "--format", "{{.CgroupVersion}}"]);
        assert_eq!(version.trim(), "v2", "that is what these machines are for");
        scenario::replicas_of_a_worker_without_power_run_elsewhere(scenario);
    });
}

#[test]
fn clusters_keep_their_promises_on_namespaces() {
    on_namespaces("promises", |scenario| {
        scenario::an_encrypted_network_is_not_to_be_read_on_the_wire(scenario);
        scenario::a_service_is_reached_through_every_host_and_by_its_name(scenario);
        scenario::replicas_of_a_worker_without_power_run_elsewhere(scenario);
    });
}
