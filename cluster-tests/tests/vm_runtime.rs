//! The runtime's own tests in virtual machines: where cgroup v2 holds all controllers and nothing is on v1, and AppArmor is
//! the kernel's security module; and those of labels where that is SELinux.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rswarm_cluster_tests::vm::{Size, VmTest, can_run};
use rswarm_cluster_tests::{TestProgram, programs, test_programs};
use rswarm_lab::Machine as _;
use rswarm_lab::vm::{Payload, Vm};

/// For all tests of one executable.
const PATIENCE: Duration = Duration::from_secs(300);
/// Tests that say something on v2 alone: here they must not be skipped.
const REQUIRED: [&str; 4] = [
    "cgroup::tests::device_program_is_taken_by_the_kernel_and_decides",
    "devices_and_mounts_are_there",
    "limits_are_set_and_statistics_come_from_the_same_place",
    "running_out_of_memory_is_told_from_other_kills",
];
/// The program that loads AppArmor's profiles, and the tests that must not be skipped where there is one.
const APPARMOR_PARSER: &str = "/sbin/apparmor_parser";
const REQUIRED_WITH_APPARMOR: [&str; 7] = [
    "an_unknown_apparmor_profile_is_named_and_nothing_is_left",
    "apparmor_profile_refuses_what_it_denies_and_nothing_else",
    "containers_with_a_shim_and_their_sessions_have_the_apparmor_profile",
    "exec_has_the_apparmor_profile_of_the_container_or_the_one_it_is_given",
    "hooks_before_the_change_of_root_are_not_confined",
    "containers_of_users_without_privileges_have_the_apparmor_profile",
    "labels_are_not_written_to_what_a_joined_mount_namespace_has_for_proc",
];
/// Those that must not be skipped with SELinux.
const REQUIRED_WITH_SELINUX: [&str; 6] = [
    "a_labelled_container_may_have_a_user_namespace",
    "an_unknown_selinux_label_is_named_and_nothing_is_left",
    "exec_has_the_selinux_label_of_the_container_or_the_one_it_is_given",
    "files_of_the_containers_own_file_systems_have_the_mount_label",
    "keyrings_have_the_selinux_label",
    "selinux_label_refuses_what_the_policy_denies_and_nothing_else",
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
    for (path, name) in [
        ("/bin/dash", "sh"),
        ("/bin/ps", "ps"),
        ("/usr/bin/setpriv", "setpriv"),
        ("/usr/bin/env", "env"),
        (APPARMOR_PARSER, "apparmor_parser"),
    ] {
        payload = payload.host_program(path, name).unwrap_or_else(|error| panic!("{error}"));
    }
    // apparmor_parser complains where it has no configuration.
    payload = with_tests(payload, &tests).text("/etc/apparmor/parser.conf", "");
    let size = Size { machines: 1, cpus: 2, memory_mib: 2048 };
    let test = VmTest::new("vm-runtime", size, payload);
    let machine = test.lab.machine(1);
    let mounts = machine.run("/bin/cat", &["/proc/mounts"], PATIENCE).expect("the machine answers").stdout;
    assert!(mounts.contains(" /sys/fs/cgroup cgroup2 ") && !mounts.contains(" cgroup "), "{mounts}");

    for (name, reason) in NOT_HERE {
        eprintln!("in the virtual machine, skipped: `{name}` {reason}");
    }
    let results = run(machine, &tests, &NOT_HERE.map(|(name, _)| ["--skip", name]).concat());
    require(&results, &REQUIRED);
    if Path::new(APPARMOR_PARSER).exists() {
        require(&results, &REQUIRED_WITH_APPARMOR);
    }
    let left =
        machine.run("/bin/find", &["/sys/fs/cgroup", "-name", "rswarm*"], PATIENCE).expect("find runs");
    assert_eq!(left.stdout, "", "cgroups were left behind");
}

#[test]
fn labels_of_selinux_take_effect() {
    const NAME: &str = "labels_of_selinux_take_effect";
    if let Err(reason) = can_run() {
        eprintln!("skipped: `{NAME}` {reason}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let policy = directory.path().join("policy");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/selinux.conf");
    let mut compiler = Command::new("checkpolicy");
    compiler.args(["-M", "-U", "allow", "-c", "33", "-o"]).arg(&policy).arg(source);
    match compiler.output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("skipped: `{NAME}` needs checkpolicy (Debian package checkpolicy): {error}");
            return;
        }
    }
    let mut tests = test_programs("runtime", "rswarm_runtime").unwrap_or_else(|error| panic!("{error:#}"));
    tests.retain(|test| test.name == "labels");
    let payload =
        Payload::new().busybox().expect("it was looked for").kernel_words("security=selinux enforcing=1");
    let payload = with_tests(payload, &tests).file(&policy, "/policy", 0o600);
    let size = Size { machines: 1, cpus: 2, memory_mib: 1024 };
    let test = VmTest::new("vm-selinux", size, payload);
    let machine = test.lab.machine(1);
    // The kernel takes it by one call, or not at all.
    let load = ["if=/policy", "of=/sys/fs/selinux/load", "bs=1M", "conv=notrunc"];
    let loaded = machine.run("/bin/dd", &load, PATIENCE).expect("the machine answers");
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
    require(&run(machine, &tests, &[]), &REQUIRED_WITH_SELINUX);
}

/// Adds tests and the programs that they run.
fn with_tests(mut payload: Payload, tests: &[TestProgram]) -> Payload {
    for program in programs("runtime").unwrap_or_else(|error| panic!("{error:#}")) {
        // The tests know them by the paths they were built at.
        payload = payload.program(program.clone(), program);
    }
    tests.iter().fold(payload, |payload, test| payload.program(test.path.clone(), inside(test)))
}

/// Runs tests in the machine, but for what `more` leaves out. None may fail.
fn run(machine: &Vm, tests: &[TestProgram], more: &[&str]) -> BTreeMap<String, TestResult> {
    let mut results = BTreeMap::new();
    let mut failures = Vec::new();
    let args = [&["--test-threads=2", "--show-output", "--exact"], more].concat();
    for test in tests {
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
    results
}

fn require(results: &BTreeMap<String, TestResult>, names: &[&str]) {
    for name in names {
        assert_eq!(results.get(*name), Some(&TestResult::Passed), "`{name}` did not run: {results:#?}");
    }
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
