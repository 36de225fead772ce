//! Hooks: where and when they run, and what comes of it when they fail.

use serde_json::{Value, json};

use crate::SLEEP;
use crate::common::Lab;
use crate::common::cli::{Bundle, Runtime};

#[test]
fn hooks_run_in_their_place_with_the_state_on_their_input() {
    let Some(lab) = Lab::new() else { return };
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    // runc 1.1 runs poststart hooks before the start, and those in the container before it has its name.
    for runtime in [Runtime::ours(&lab)] {
        let notes = lab.directory.path().join(format!("notes-{}", runtime.name));
        std::fs::create_dir(&notes).unwrap();
        let mut bundle = Bundle::new(&lab, &format!("{}-hooks", runtime.name), "sleep 1000");
        let order = notes.join("order");
        for kind in kinds {
            // The one inside writes where the other side can see it.
            let place = if kind == "startContainer" { "/notes".into() } else { notes.clone() };
            let place = place.display();
            let script = format!(
                "cat > {place}/{kind}; echo {kind} $(hostname) $A >> {place}/order; readlink /proc/self/ns/mnt >> {place}/{kind}.ns"
            );
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20,
                "env": ["A=b", "PATH=/bin:/usr/bin"] });
            bundle.config["hooks"][kind] = json!([hook]);
        }
        bundle.config["hostname"] = "inside".into();
        bundle.config["annotations"] = json!({ "c": "d" });
        bundle.config["mounts"].as_array_mut().unwrap().push(
            json!({ "destination": "/notes", "type": "bind", "source": notes, "options": ["rbind", "rw"] }),
        );
        bundle.write();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim();
        runtime.done(&["create", "--bundle", bundle.path(), "x"]);
        let pid = runtime.state("x")["pid"].clone();
        let lines = |count: usize| -> Vec<String> {
            std::fs::read_to_string(&order).unwrap().lines().take(count).map(str::to_owned).collect()
        };
        let mut expected = vec![
            format!("prestart {host} b"),
            format!("createRuntime {host} b"),
            "createContainer inside b".into(),
        ];
        assert_eq!(lines(9), expected, "{}", runtime.name);
        runtime.done(&["start", "x"]);
        expected.extend(["startContainer inside b".into(), format!("poststart {host} b")]);
        assert_eq!(lines(9), expected, "{}", runtime.name);
        runtime.done(&["delete", "--force", "x"]);
        expected.push(format!("poststop {host} b"));
        assert_eq!(lines(9), expected, "{}", runtime.name);
        for (kind, status, outside) in [
            ("prestart", "creating", true),
            ("createRuntime", "creating", true),
            ("createContainer", "creating", false),
            ("startContainer", "created", false),
            ("poststart", "running", true),
            ("poststop", "stopped", true),
        ] {
            let state: Value =
                serde_json::from_str(&std::fs::read_to_string(notes.join(kind)).unwrap()).unwrap();
            let found = (state["id"].as_str(), state["status"].as_str(), state["bundle"].as_str());
            assert_eq!(found, (Some("x"), Some(status), Some(bundle.path())), "{} {kind}", runtime.name);
            assert_eq!(state["annotations"], json!({ "c": "d" }), "{} {kind}", runtime.name);
            let own = if outside { pid.clone() } else { json!(1) };
            if kind != "poststop" {
                assert_eq!(state["pid"], own, "{} {kind}", runtime.name);
            }
            let namespace = std::fs::read_to_string(notes.join(format!("{kind}.ns"))).unwrap();
            let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
            assert_eq!(namespace.trim() == ours.to_str().unwrap(), outside, "{} {kind}", runtime.name);
        }
    }
}

#[test]
fn a_failing_hook_of_the_start_stops_the_container_and_one_of_the_end_only_warns() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 1"] }]);
    let mut bundle = Bundle::new(&lab, "hooks", SLEEP);
    bundle.config["hooks"] = json!({ "startContainer": failing });
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    let answer = runtime.call(&["start", "x"]);
    assert_eq!(answer.code, 1);
    assert!(
        answer.errors.contains("run the startContainer hook `/bin/sh`: exit status: 1, it said: no"),
        "{answer:?}"
    );
    runtime.await_status("x", "stopped");
    runtime.done(&["delete", "x"]);

    // Source: OCI runtime-spec, "Lifecycle" 9 and 13: after the start an error, and the container is deleted.
    let trace = lab.directory.path().join("poststop");
    let noted = json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("touch {}", trace.display())] });
    bundle.config["hooks"] = json!({ "poststart": failing, "poststop": [failing[0], noted] });
    bundle.write();
    for detached in [false, true] {
        let answer = if detached {
            runtime.call(&["run", "--detach", "--bundle", bundle.path(), "x"])
        } else {
            runtime.done(&["create", "--bundle", bundle.path(), "x"]);
            runtime.call(&["start", "x"])
        };
        assert_eq!(answer.code, 1, "{answer:?}");
        let expected =
            "the container was stopped: run the poststart hook `/bin/sh`: exit status: 1, it said: no";
        assert!(answer.errors.contains(expected), "{answer:?}");
        assert!(answer.errors.contains("level=warning msg=\"run the poststop hook"), "{answer:?}");
        assert_eq!(runtime.call(&["state", "x"]).code, 1);
        std::fs::remove_file(&trace).unwrap();
    }

    bundle.config["hooks"] = json!({ "poststop": failing });
    bundle.write();
    runtime.done(&["run", "--detach", "--bundle", bundle.path(), "x"]);
    let answer = runtime.call(&["delete", "--force", "x"]);
    assert!(answer.code == 0 && answer.errors.contains("level=warning"), "{answer:?}");
    assert_eq!(runtime.call(&["state", "x"]).code, 1);
}
