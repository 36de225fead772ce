//! Containers of an ordinary user: everything happens in a user namespace of its own.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{Lab, chain};
use rswarm_runtime::{Containers, CreateRequest, Rootfs, ShimCommand};
use serde_json::{Value, json};

const USER: u32 = 12_345;
/// Where the test finds its things when it runs again as an ordinary user.
const PLACE: &str = "RSWARM_TEST_ROOTLESS";

/// What an ordinary user writes: own ids mapped to root, no resources, the host's sysfs.
fn configuration(script: &str) -> Value {
    let mut config = serde_json::to_value(rswarm_runtime::default_spec()).unwrap();
    config["process"]["args"] = json!(["/bin/sh", "-c", script]);
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    for mount in config["mounts"].as_array_mut().unwrap() {
        // Group 5 is not mapped.
        let options = mount["options"].as_array_mut().unwrap();
        options.retain(|option| option != "gid=5");
    }
    config
}

fn request(id: &str, rootfs: Rootfs, config: Value) -> CreateRequest {
    CreateRequest {
        id: id.to_owned(),
        spec: serde_json::from_value(config).unwrap(),
        rootfs,
        stdin: false,
        log: Default::default(),
        cgroup: format!("/rswarm-test-rootless/{id}"),
    }
}

/// The part that runs as the ordinary user.
fn as_user(place: &Path) {
    let shim = ShimCommand { executable: place.join("shim"), args: Vec::new() };
    let containers = Containers::new(place.join("containers"), shim);
    let run = |request: &CreateRequest| {
        let container = containers.create(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
        container.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
        let code = container.wait().unwrap().shell_code();
        let text = common::output(&container);
        container.delete().unwrap();
        (code, text)
    };
    let directory = || Rootfs::Directory(place.join("layer"));
    let overlay = |id: &str| {
        let own = place.join(id);
        for name in ["upper", "work"] {
            std::fs::create_dir_all(own.join(name)).unwrap();
        }
        Rootfs::Overlay { lower: vec![place.join("layer")], upper: own.join("upper"), work: own.join("work") }
    };
    let script = "id -u; cat /proc/self/uid_map; hostname inside && hostname; echo x > /dev/null && echo device; \
                  ls /proc | grep -c '^[0-9]'; touch /made && echo made; cat /proc/self/status; exit 3";
    for (id, rootfs) in [("directory", directory()), ("overlay", overlay("overlay"))] {
        let (code, text) = run(&request(id, rootfs, configuration(script)));
        assert_eq!(code, 3, "{text}");
        assert!(text.starts_with(&format!("0\n         0      {USER}          1\n")), "{text}");
        for expected in ["device\n", "made\n", "Seccomp:\t2"] {
            assert!(text.contains(expected), "expected {expected} in {text}");
        }
    }
    assert!(place.join("overlay/upper/made").exists() && place.join("layer/made").exists());

    // What takes privileges is refused by name, and before anything is made.
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut config = configuration("true");
        change(&mut config);
        let error = containers.create(&request("refused", directory(), config)).unwrap_err();
        assert!(containers.list().unwrap().is_empty());
        chain(&error)
    };
    let error = refused(&|config| {
        let linux = config["linux"].as_object_mut().unwrap();
        linux["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "user");
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    });
    assert!(error.ends_with("without privileges on the host a container needs a user namespace"), "{error}");
    let error = refused(&|config| config["process"]["user"]["additionalGids"] = json!([0]));
    assert!(error.ends_with("with one group mapped, groups cannot be set"), "{error}");
    let error = refused(&|config| config["linux"]["resources"]["pids"] = json!({ "limit": 5 }));
    assert!(error.contains("needs the cgroup controller `pids`"), "{error}");
    let error = refused(&|config| {
        let map = json!([{ "containerID": 0, "hostID": 0, "size": 2 }]);
        config["linux"]["uidMappings"] = map;
    });
    // The program that may do more is asked: here one that only says what it was asked for.
    assert!(error.contains("map ids with `newuidmap`") && error.ends_with("asked for 0 0 2"), "{error}");
    println!("as an ordinary user: done");
}

#[test]
fn ordinary_user_runs_containers_in_a_user_namespace_of_its_own() {
    if let Some(place) = std::env::var_os(PLACE) {
        as_user(Path::new(&place));
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let place = lab.directory.path();
    std::fs::set_permissions(place, PermissionsExt::from_mode(0o755)).unwrap();
    // The test binary and the shim may be in a directory that is closed to others.
    let test = place.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_rswarm-runtime-shim"), place.join("shim")).unwrap();
    let mut all = vec![place.to_owned()];
    while let Some(path) = all.pop() {
        std::os::unix::fs::lchown(&path, Some(USER), Some(USER)).unwrap();
        if path.is_dir() && !path.is_symlink() {
            all.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let helper = place.join("newuidmap");
    std::fs::write(&helper, "#!/bin/sh\nshift; echo asked for $* >&2; exit 1\n").unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new(&test)
        .args(["--exact", "ordinary_user_runs_containers_in_a_user_namespace_of_its_own", "--nocapture"])
        .env(PLACE, place)
        .env("PATH", format!("{}:/usr/bin:/bin", place.display()))
        .current_dir("/")
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("make a process with new namespaces") && said.contains("not permitted") {
        eprintln!("skipped: needs user namespaces for ordinary users");
        return;
    }
    assert!(output.status.success() && said.contains("as an ordinary user: done"), "{said}");
}
