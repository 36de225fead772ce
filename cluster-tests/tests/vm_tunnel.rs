//! The tests of encrypted networks in a virtual machine, whose kernel has WireGuard.

use std::path::Path;
use std::time::Duration;

use rswarm_cluster_tests::test_programs;
use rswarm_cluster_tests::vm::{Size, VmTest, can_run};
use rswarm_lab::Machine as _;
use rswarm_lab::vm::Payload;

/// For all tests of one executable, emulated.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the tests look at the kernel with.
const WITNESSES: [(&str, &str); 6] = [
    ("/usr/sbin/ip", "ip"),
    ("/usr/sbin/bridge", "bridge"),
    ("/usr/sbin/nft", "nft"),
    ("/bin/ps", "ps"),
    ("/bin/sleep", "sleep"),
    ("/bin/kill", "kill"),
];

#[test]
fn encrypted_networks_keep_their_promises_by_the_kernels_wireguard() {
    let test = "encrypted_networks_keep_their_promises_by_the_kernels_wireguard";
    if let Err(reason) = can_run() {
        eprintln!("skipped: `{test}` {reason}");
        return;
    }
    let mut payload = Payload::new().busybox().expect("it was looked for");
    for (path, name) in WITNESSES {
        if !Path::new(path).exists() {
            eprintln!("skipped: `{test}` needs `{path}`");
            return;
        }
        payload = payload.host_program(path, name).unwrap_or_else(|error| panic!("{error}"));
    }
    let tests = test_programs("worker/tunnel", "rswarm_tunnel").unwrap_or_else(|error| panic!("{error:#}"));
    let host = tests.iter().find(|test| test.name == "host").expect("there is such a test");
    // Without the program that stands in for the kernel's: nothing else can encrypt here.
    payload = payload.program(host.path.clone(), "/tests/host");
    let size = Size { machines: 1, cpus: 2, memory_mib: 1024 };
    let test = VmTest::new("vm-tunnel", size, payload);
    let machine = test.lab.machine(1);
    let args = ["--test-threads=1", "--show-output"];
    let output = machine.run("/tests/host", &args, PATIENCE).expect("the machine answers");
    eprintln!("in the virtual machine:\n{}", output.stdout);
    assert_eq!(output.code, Some(0), "{}\n{}", output.stderr, machine.console_tail(30));
    assert!(!output.stdout.contains("skipped:"), "they say something here");
    let passed = output.stdout.lines().filter(|line| line.ends_with(" ... ok")).count();
    assert!(passed >= 7, "{passed}");
}
