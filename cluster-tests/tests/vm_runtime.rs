//! The runtime's own tests in a virtual machine, where cgroup v2 holds all controllers and nothing is on v1.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_cluster_tests::vm::{Size, VmTest, can_run};
use rswarm_cluster_tests::{TestProgram, programs, test_programs};
use rswarm_lab::Machine as _;
use rswarm_lab::vm::Payload;

/// For all tests of one executable.
const PATIENCE: Duration = Duration::from_secs(300);
/// Tests that say something on v2 alone: here they must not be skipped.
const REQUIRED: [&str; 4] = [
    "cgroup::tests::device_program_is_taken_by_the_kernel_and_decides",
    "devices_and_mounts_are_there",
    "limits_are_set_and_statistics_come_from_the_same_place",
    "running_out_of_memory_is_told_from_other_kills",
];

/// Tests that an emulated machine cannot be asked for, and why.
const NOT_HERE: [(&str, &str); 2] = [
    (
        "exchanged_mount_target_never_leads_to_the_host",
        "needs a processor of its own beside the attacker's, who else always wins the race",
    ),
    (
        "mapped_mount_shows_other_owners",
        "needs a file system that takes mapped mounts: tmpfs does from Linux 6.3 on",
    ),
];

#[test]
fn runtime_keeps_its_promises_on_cgroup_v2() {
    if let Err(reason) = can_run() {
        eprintln!("skipped: `runtime_keeps_its_promises_on_cgroup_v2` {reason}");
        return;
    }
    let tests = test_programs("runtime", "rswarm_runtime").unwrap_or_else(|error| panic!("{error:#}"));
    let mut payload = Payload::new().busybox().expect("it was looked for");
    // Where tests rely on more than busybox has.
    for (path, name) in
        [("/bin/dash", "sh"), ("/bin/ps", "ps"), ("/usr/bin/setpriv", "setpriv"), ("/usr/bin/env", "env")]
    {
        payload = payload.host_program(path, name).unwrap_or_else(|error| panic!("{error}"));
    }
    for program in programs("runtime").unwrap_or_else(|error| panic!("{error:#}")) {
        // The tests know them by the paths they were built at.
        payload = payload.program(program.clone(), program);
    }
    for test in &tests {
        payload = payload.program(test.path.clone(), inside(test));
    }
    let size = Size { machines: 1, cpus: 2, memory_mib: 2048 };
    let test = VmTest::new("vm-runtime", size, payload);
    let machine = test.lab.machine(1);
    let mounts = machine.run("/bin/cat", &["/proc/mounts"], PATIENCE).expect("the machine answers").stdout;
    assert!(mounts.contains(" /sys/fs/cgroup cgroup2 ") && !mounts.contains(" cgroup "), "{mounts}");

    let mut results = BTreeMap::new();
    let mut failures = Vec::new();
    let mut args = vec!["--test-threads=2", "--show-output", "--exact"];
    for (name, reason) in NOT_HERE {
        eprintln!("in the virtual machine, skipped: `{name}` {reason}");
        args.extend(["--skip", name]);
    }
    for test in &tests {
        let output = match machine.run(&inside(test), &args, PATIENCE) {
            Ok(output) => output,
            Err(error) => {
                eprintln!("{}: {error}", test.name);
                failures.push(&test.name);
                continue;
            }
        };
        let found = parse(&output.stdout);
        let passed = found.values().filter(|result| **result == TestResult::Passed).count();
        eprintln!("in the virtual machine, {}: {passed} of {} passed", test.name, found.len());
        for (name, result) in &found {
            if let TestResult::Skipped(reason) = result {
                eprintln!("in the virtual machine, skipped: `{name}` {reason}");
            }
        }
        if output.code != Some(0) || found.is_empty() {
            eprintln!("{} ended with {:?}:\n{}{}", test.name, output.code, output.stdout, output.stderr);
            failures.push(&test.name);
        }
        results.extend(found);
    }
    assert!(failures.is_empty(), "{failures:?} failed, see above; the console: {}", machine.console_tail(30));
    for name in REQUIRED {
        assert_eq!(results.get(name), Some(&TestResult::Passed), "`{name}` did not run: {results:#?}");
    }
    let left =
        machine.run("/bin/find", &["/sys/fs/cgroup", "-name", "rswarm*"], PATIENCE).expect("find runs");
    assert_eq!(left.stdout, "", "cgroups were left behind");
}

/// Where the machine has a test executable.
fn inside(test: &TestProgram) -> String {
    format!("/tests/{}", test.name)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TestResult {
    Passed,
    Failed,
    /// With what it needs.
    Skipped(String),
}

/// Results by test, from what the test harness prints with `--show-output`.
fn parse(text: &str) -> BTreeMap<String, TestResult> {
    let mut results = BTreeMap::new();
    let mut shown = "";
    for line in text.lines() {
        if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let result = match result {
                "ok" => TestResult::Passed,
                "FAILED" => TestResult::Failed,
                other => TestResult::Skipped(other.to_owned()),
            };
            results.insert(name.to_owned(), result);
        } else if let Some(rest) = line.strip_prefix("---- ") {
            shown = rest.split(' ').next().unwrap_or_default();
        } else if let Some(reason) = line.strip_prefix("skipped: ")
            && results.get(shown) == Some(&TestResult::Passed)
        {
            results.insert(shown.to_owned(), TestResult::Skipped(reason.to_owned()));
        }
    }
    results
}

#[test]
fn results_are_read_from_what_the_harness_prints() {
    let text = "running 4 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ignored\ntest e ... ok\n\nsuccesses:\n\n\
                ---- e stdout ----\nsome text\nskipped: needs X\n\n\nsuccesses:\n    e\n\ntest result: FAILED. 2 passed";
    let expected = [
        ("a::b", TestResult::Passed),
        ("c", TestResult::Failed),
        ("d", TestResult::Skipped("ignored".to_owned())),
        ("e", TestResult::Skipped("needs X".to_owned())),
    ];
    assert_eq!(parse(text), expected.map(|(name, result)| (name.to_owned(), result)).into());
}
