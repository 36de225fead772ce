//! What the commands answer: exit codes, words and shapes.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::Lab;
use crate::common::cli::{Answer, Bundle, Runtime};
use crate::{SLEEP, bring, runtimes};

#[test]
fn every_command_in_every_state_answers_as_runc_does() {
    let Some(lab) = Lab::new() else { return };
    let commands: &[&[&str]] = &[
        &["state", "x"],
        &["start", "x"],
        &["kill", "x", "0"],
        &["kill", "--all", "x", "0"],
        &["kill", "x", "NOSUCH"],
        &["delete", "x"],
        &["delete", "--force", "x"],
        &["exec", "x", "/bin/true"],
        &["exec", "x", "/bin/sh", "-c", "exit 3"],
        &["exec", "x", "/bin/nope"],
        &["ps", "--format", "json", "x"],
        &["pause", "x"],
        &["resume", "x"],
        &["update", "--pids-limit", "20", "x"],
        &["events", "--stats", "x"],
        &["create", "--bundle", "BUNDLE", "x"],
    ];
    let runtimes = runtimes(&lab);
    for state in ["unknown", "half-created", "created", "running", "paused", "stopped"] {
        for command in commands {
            let answers: Vec<Answer> = runtimes
                .iter()
                .map(|runtime| {
                    bring(runtime, &lab, state);
                    let bundle = Bundle::new(&lab, &format!("{}-other", runtime.name), SLEEP);
                    let args: Vec<&str> = command
                        .iter()
                        .map(|word| if *word == "BUNDLE" { bundle.path() } else { *word })
                        .collect();
                    let answer = runtime.call(&args);
                    runtime.call(&["resume", "x"]);
                    runtime.done(&["delete", "--force", "x"]);
                    answer
                })
                .collect();
            let ours = &answers[0];
            // An error says so, with the word that callers look for.
            assert_eq!(
                ours.code != 0 && ours.code != 3,
                ours.errors.contains("level=error"),
                "{state}: {command:?}: {ours:?}"
            );
            if let [ours, theirs] = &answers[..] {
                assert_eq!(ours.code, theirs.code, "{state}: {command:?}\n{ours:?}\n{theirs:?}");
            }
        }
    }
}

#[test]
fn errors_have_the_words_that_callers_look_for() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let said = |args: &[&str]| runtime.call(args).errors;
    assert!(said(&["kill", "x", "9"]).contains("does not exist"));
    assert!(said(&["kill", "../x", "9"]).contains("invalid container ID format"));
    bring(&runtime, &lab, "stopped");
    assert!(said(&["kill", "x", "9"]).contains("container not running"));
    assert!(said(&["exec", "x", "/bin/true"]).contains("cannot exec in a stopped container"));
    assert!(said(&["start", "x"]).contains("cannot start a container that has stopped"));

    let log = lab.directory.path().join("log.json");
    let answer = runtime.call(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "y"]);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["msg"].as_str()),
        (Some("error"), Some("container `y` does not exist"))
    );
    assert_eq!((answer.code, answer.errors.as_str()), (1, "container `y` does not exist\n"));
}

#[test]
fn exit_codes_of_run_and_exec_are_those_of_the_program() {
    let Some(lab) = Lab::new() else { return };
    for runtime in runtimes(&lab) {
        for (script, expected) in [("true", 0), ("exit 7", 7), ("kill -TERM $$; exit 4", 4)] {
            let bundle = Bundle::new(&lab, &format!("{}-codes", runtime.name), script);
            let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
            assert_eq!(answer.code, expected, "{} {script}: {answer:?}", runtime.name);
            assert_eq!(runtime.call(&["state", "x"]).code, 1, "{} is gone", runtime.name);
        }
        bring(&runtime, &lab, "running");
        for (script, expected) in [("true", 0), ("exit 7", 7), ("kill -9 $$; sleep 5", 137)] {
            let answer = runtime.call(&["exec", "x", "sh", "-c", script]);
            assert_eq!(answer.code, expected, "{} {script}: {answer:?}", runtime.name);
        }
        assert_eq!(runtime.call(&["exec", "x", "nope"]).code, 255, "{}", runtime.name);
    }
}

/// What the kernel cannot run has run as far as its caller is concerned, and ended.
#[test]
fn a_program_the_kernel_cannot_run_fails_by_itself() {
    use std::os::unix::fs::PermissionsExt;
    let Some(lab) = Lab::new() else { return };
    for (name, text) in [("other", "echo x\n"), ("broken", "#!/no/such/interpreter\n")] {
        let path = lab.layer().join("bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for runtime in runtimes(&lab) {
        for (program, said) in [
            ("/bin/other", "exec /bin/other: exec format error\n"),
            ("/bin/broken", "exec /bin/broken: no such file or directory\n"),
        ] {
            let mut bundle = Bundle::new(&lab, &format!("{}-kernel", runtime.name), "");
            bundle.config["process"]["args"] = json!([program]);
            bundle.write();
            let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
            assert_eq!((answer.code, answer.errors.as_str()), (1, said), "{}", runtime.name);
            assert_eq!(runtime.call(&["state", "x"]).code, 1, "{} is gone", runtime.name);
            runtime.done(&["create", "--bundle", bundle.path(), "x"]);
            runtime.done(&["start", "x"]);
            runtime.await_status("x", "stopped");
            runtime.done(&["delete", "x"]);
        }
        bring(&runtime, &lab, "running");
        let answer = runtime.call(&["exec", "x", "/bin/other"]);
        assert_eq!((answer.code, answer.errors.as_str()), (1, "exec /bin/other: exec format error\n"));
        runtime.done(&["delete", "--force", "x"]);
    }
}

#[test]
fn empty_values_are_none() {
    let Some(lab) = Lab::new() else { return };
    for runtime in runtimes(&lab) {
        let mut bundle = Bundle::new(&lab, &format!("{}-empty", runtime.name), "exec sleep 1000");
        bundle.config["hostname"] = "".into();
        for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
            namespace["path"] = "".into();
        }
        bundle.write();
        runtime.done(&["run", "--detach", "--pid-file", "", "--bundle", bundle.path(), "x"]);
        assert_eq!(
            runtime.done(&["exec", "--user", "", "--cwd", "", "x", "id", "-u"]),
            "0\n",
            "{}",
            runtime.name
        );
        runtime.done(&["update", "--memory", "", "x"]);
        runtime.done(&["kill", "x", ""]);
        runtime.done(&["delete", "--force", "x"]);
    }
}

#[test]
fn output_of_looking_has_runcs_shape() {
    let Some(lab) = Lab::new() else { return };
    let views: Vec<[Value; 3]> = runtimes(&lab)
        .iter()
        .map(|runtime| {
            assert_eq!(runtime.done(&["list", "--format", "json"]).trim(), "null", "{}", runtime.name);
            let mut bundle = Bundle::new(&lab, &format!("{}-shape", runtime.name), SLEEP);
            bundle.config["annotations"] = json!({ "a": "b" });
            bundle.write();
            runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
            let pid = runtime.state("x")["pid"].as_i64().unwrap();
            assert!(Path::new(&format!("/proc/{pid}")).exists());
            let pids: Vec<i64> = serde_json::from_str(&runtime.done(&["ps", "-f", "json", "x"])).unwrap();
            assert!(pids.contains(&pid), "{}: {pids:?}", runtime.name);
            let table = runtime.done(&["ps", "x"]);
            assert!(
                table.starts_with("UID") && table.contains(&format!(" {pid} ")),
                "{}: {table}",
                runtime.name
            );
            assert_eq!(runtime.done(&["list", "-q"]), "x\n");
            assert!(
                runtime.done(&["list"]).starts_with("ID          PID         STATUS"),
                "{}",
                runtime.name
            );
            let list: Value = serde_json::from_str(&runtime.done(&["list", "--format=json"])).unwrap();
            let events: Value = serde_json::from_str(&runtime.done(&["events", "--stats", "x"])).unwrap();
            runtime.done(&["kill", "x", "KILL"]);
            runtime.await_status("x", "stopped");
            assert_eq!(runtime.state("x")["pid"], 0);
            let mut views = [runtime.state("x"), list[0].clone(), events];
            for view in &mut views[..2] {
                for (key, expected) in [
                    ("bundle", Some(bundle.path().to_owned())),
                    ("ociVersion", None),
                    ("created", None),
                    ("pid", None),
                ] {
                    let found = std::mem::take(&mut view[key]);
                    assert!(
                        expected.is_none_or(|expected| found == expected),
                        "{}: {key} {found}",
                        runtime.name
                    );
                    assert!(!found.is_null());
                }
            }
            views
        })
        .collect();
    let [ours, theirs] = &views[..] else { return };
    assert_eq!(ours[0], theirs[0]);
    assert_eq!(ours[1], theirs[1]);
    assert_eq!(paths(&ours[2], ""), paths(&theirs[2], ""));
}

/// All places of a value where something is, but for lists' items and for counters that may be absent at zero.
fn paths(value: &Value, at: &str) -> BTreeSet<String> {
    const OPTIONAL: [&str; 6] =
        ["/cache", "/usage", "/max", "/limit", "/ioServiceBytesRecursive", "/ioServicedRecursive"];
    let Value::Object(map) = value else {
        let leaf = OPTIONAL.iter().all(|end| !at.ends_with(end));
        return leaf.then(|| at.to_owned()).into_iter().collect();
    };
    map.iter().flat_map(|(key, value)| paths(value, &format!("{at}/{key}"))).collect()
}

#[test]
fn the_binary_answers_what_engines_ask_it_first() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let version = runtime.done(&["--version"]);
    let lines: Vec<&str> = version.lines().collect();
    assert!(lines[0].starts_with("rswarm-runc version ") && lines[1].starts_with("commit: "), "{version}");
    assert!(lines[2].starts_with("spec: 1."), "{version}");
    let features: Value = serde_json::from_str(&runtime.done(&["features"])).unwrap();
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&"pid".into()));
    let directory = lab.directory.path().join("spec");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.to_str().unwrap();
    runtime.done(&["spec", "--bundle", path]);
    let answer = runtime.call(&["spec", "--bundle", path]);
    assert!(answer.code == 1 && answer.errors.contains("exists, remove it first"), "{answer:?}");
}

/// What it writes for a start runs, with nothing but another program and no terminal.
#[test]
fn its_own_spec_runs() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let directory = lab.directory.path().join("spec");
    std::fs::create_dir(&directory).unwrap();
    runtime.done(&["spec", "--bundle", directory.to_str().unwrap()]);
    let config = directory.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    spec["root"]["path"] = lab.layer().to_str().into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] =
        json!(["sh", "-c", "hostname; touch /x 2>/dev/null || echo read-only; : > /dev/null && echo null"]);
    spec["linux"]["cgroupsPath"] = format!("{}/spec", lab.cgroup).into();
    std::fs::write(&config, spec.to_string()).unwrap();
    assert_eq!(
        runtime.done(&["run", "--bundle", directory.to_str().unwrap(), "x"]),
        "rswarm-runc\nread-only\nnull\n"
    );
}
