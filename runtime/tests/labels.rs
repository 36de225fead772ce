//! Labels of security modules and what they do to a container, where the kernel has one of them: AppArmor or SELinux.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::Lab;
use common::cli::{Bundle, Runtime, traces};
use rustix::fs::XattrFlags;
use serde_json::{Value, json};

const REFUSED: &str = "Permission denied";

// ---- AppArmor ----

/// Everything is allowed but for one directory.
const CONFINED: &str = "file, capability, network, signal, ptrace, deny /etc/secret/** rw,";
const OPEN: &str = "file, capability, network, signal, ptrace,";

/// A profile that the kernel knows as long as this lives.
struct Profile {
    name: String,
    program: &'static str,
}

impl Profile {
    /// `None`, with the reason, where there can be none.
    fn load(rules: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        if !Path::new("/sys/kernel/security/apparmor/.replace").exists() {
            eprintln!("skipped: needs a kernel with AppArmor, as in vm_runtime");
            return None;
        }
        let programs = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];
        let Some(program) = programs.into_iter().find(|path| Path::new(path).exists()) else {
            eprintln!("skipped: needs apparmor_parser (Debian package apparmor)");
            return None;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let profile = Self { name: format!("rswarm-test-{}-{number}", std::process::id()), program };
        profile.replace(rules);
        Some(profile)
    }

    fn replace(&self, rules: &str) {
        self.parse("--replace", rules);
    }

    fn remove(&self) {
        self.parse("--remove", "");
    }

    fn parse(&self, action: &str, rules: &str) {
        let mut command = Command::new(self.program);
        command.args([action, "--skip-cache", "--quiet"]).stdin(Stdio::piped());
        let mut parser = command.spawn().unwrap();
        let text = format!("profile {} flags=(attach_disconnected) {{ {rules} }}\n", self.name);
        parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(parser.wait().unwrap().success(), "{action} {text}");
    }

    /// As `/proc/<pid>/attr/current` has it.
    fn enforced(&self) -> String {
        format!("{} (enforce)\n", self.name)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let known = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
        if known.lines().any(|line| line.starts_with(&format!("{} ", self.name))) {
            self.remove();
        }
    }
}

/// A root file system with something that [`CONFINED`] refuses.
fn lab_with_secret() -> Option<Lab> {
    let lab = Lab::new()?;
    let secret = lab.layer().join("etc/secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("file"), "secret\n").unwrap();
    std::fs::write(lab.layer().join("etc/open"), "open\n").unwrap();
    Some(lab)
}

fn label_of(runtime: &Runtime, id: &str) -> String {
    label_of_pid(&runtime.state(id)["pid"])
}

fn label_of_pid(pid: &Value) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap()
}

#[test]
fn apparmor_profile_refuses_what_it_denies_and_nothing_else() {
    let Some(profile) = Profile::load(CONFINED) else { return };
    let Some(lab) = lab_with_secret() else { return };
    let runtime = Runtime::ours(&lab);
    let script = "cat /proc/self/attr/current /etc/open; echo more > /etc/open && cat /etc/secret/file";
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new(&lab, "confined", script);
        bundle.config["process"]["apparmorProfile"] = profile.name.as_str().into();
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        bundle.write();
        std::fs::write(lab.layer().join("etc/open"), "open\n").unwrap();
        let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
        assert_eq!(answer.output, format!("{}open\n", profile.enforced()), "{answer:?}");
        assert!(answer.code == 1 && answer.errors.contains(REFUSED), "{answer:?}");
    }
    let mut bundle = Bundle::new(&lab, "mapped", script);
    bundle.config["process"]["apparmorProfile"] = profile.name.as_str().into();
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.write();
    let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
    assert!(answer.output.starts_with(&profile.enforced()) && answer.errors.contains(REFUSED), "{answer:?}");

    let mut bundle = Bundle::new(&lab, "free", script);
    bundle.config["process"]["apparmorProfile"] = "unconfined".into();
    bundle.write();
    let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
    assert_eq!((answer.code, answer.output.as_str()), (0, "unconfined\nmore\nsecret\n"), "{answer:?}");
}

#[test]
fn exec_has_the_apparmor_profile_of_the_container_or_the_one_it_is_given() {
    let (Some(own), Some(other)) = (Profile::load(CONFINED), Profile::load(OPEN)) else { return };
    let Some(lab) = lab_with_secret() else { return };
    let runtime = Runtime::ours(&lab);
    let mut bundle = Bundle::new(&lab, "long", "sleep 1000");
    bundle.config["process"]["apparmorProfile"] = own.name.as_str().into();
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    runtime.done(&["start", "x"]);
    assert_eq!(label_of(&runtime, "x"), own.enforced());
    let exec = |more: &[&str]| {
        let command = ["x", "cat", "/proc/self/attr/current", "/etc/secret/file"];
        runtime.call(&[&["exec"], more, &command].concat())
    };
    let answer = exec(&[]);
    assert!(answer.output == own.enforced() && answer.errors.contains(REFUSED), "{answer:?}");
    assert_eq!(exec(&["--no-new-privs"]).output, own.enforced());
    assert_eq!(exec(&["--apparmor", &other.name]).output, format!("{}secret\n", other.enforced()));
    assert_eq!(exec(&["--apparmor", "unconfined"]).output, "unconfined\nsecret\n");
    let answer = exec(&["--apparmor", "not-loaded"]);
    let expected = "apply the AppArmor profile `not-loaded`: the kernel has no profile of this name";
    assert!(answer.code == 255 && answer.errors.contains(expected), "{answer:?}");

    // A new version counts for whatever runs, and for who comes later.
    own.replace(OPEN);
    assert_eq!(exec(&[]).output, format!("{}secret\n", own.enforced()));
    own.remove();
    let answer = exec(&[]);
    assert!(answer.code == 255 && answer.errors.contains(&own.name), "{answer:?}");
    assert_eq!(runtime.status("x"), "running");
}

#[test]
fn containers_with_a_shim_and_their_sessions_have_the_apparmor_profile() {
    let Some(profile) = Profile::load(CONFINED) else { return };
    let Some(lab) = lab_with_secret() else { return };
    let mut request = lab.script("one", "cat /proc/self/attr/current; cat /etc/secret/file; sleep 1000");
    let process = request.spec.process_mut().as_mut().unwrap();
    process.set_apparmor_profile(Some(profile.name.clone()));
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    common::eventually("both lines are written", || common::output(&container).lines().count() == 2);
    let said = common::output(&container);
    assert!(said.starts_with(&profile.enforced()) && said.contains(REFUSED), "{said}");
    let command = ["cat", "/proc/self/attr/current"].map(str::to_owned).to_vec();
    let session = container
        .exec(&rswarm_runtime::ExecRequest { args: command, ..Default::default() })
        .unwrap_or_else(|error| panic!("{}", common::chain(&error)));
    let rswarm_runtime::Streams::Pipes { stdout, .. } = session.streams else { panic!("it has a terminal") };
    assert_eq!(format!("{}\n", common::first_line(&stdout)), profile.enforced());
}

#[test]
fn containers_of_users_without_privileges_have_the_apparmor_profile() {
    const USER: u32 = 1000;
    let Some(profile) = Profile::load(CONFINED) else { return };
    let Some(lab) = lab_with_secret() else { return };
    if !Path::new("/usr/bin/setpriv").exists() {
        eprintln!("skipped: needs setpriv (Debian package util-linux)");
        return;
    }
    let bundle = Bundle::new(&lab, "users", "cat /proc/self/attr/current /etc/secret/file");
    let program = bundle.path.join("runtime");
    common::copy_program(env!("CARGO_BIN_EXE_rswarm-runc"), &program);
    for path in [lab.directory.path(), &lab.directory.path().join("bundles"), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::chown(&bundle.path, Some(USER), Some(USER)).unwrap();
    let call = |args: &[&str]| {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).arg(&program).args(args);
        command.env("XDG_RUNTIME_DIR", &bundle.path).current_dir(&bundle.path).stdin(Stdio::null());
        Runtime::ours(&lab).answer(command)
    };
    std::fs::remove_file(bundle.path.join("config.json")).unwrap();
    assert_eq!(call(&["spec", "--rootless"]).code, 0);
    let text = std::fs::read(bundle.path.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["root"] = bundle.config["root"].clone();
    config["process"]["args"] = bundle.config["process"]["args"].clone();
    config["process"]["terminal"] = false.into();
    config["process"]["apparmorProfile"] = profile.name.as_str().into();
    std::fs::write(bundle.path.join("config.json"), config.to_string()).unwrap();
    let answer = call(&["run", "x"]);
    if answer.errors.contains("new namespaces") {
        eprintln!("skipped: needs user namespaces for users other than root: {}", answer.errors);
        return;
    }
    assert!(answer.output == profile.enforced() && answer.errors.contains(REFUSED), "{answer:?}");
}

#[test]
fn an_unknown_apparmor_profile_is_named_and_nothing_is_left() {
    let Some(_present) = Profile::load(OPEN) else { return };
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    std::fs::create_dir(&runtime.root).unwrap();
    let mut bundle = Bundle::new(&lab, "lost", "true");
    bundle.config["process"]["apparmorProfile"] = "not-loaded".into();
    bundle.write();
    let before = traces(&lab);
    let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
    let expected = "apply the AppArmor profile `not-loaded`: the kernel has no profile of this name";
    assert!(answer.code == 1 && answer.errors.contains(expected), "{answer:?}");
    common::eventually("nothing is left", || traces(&lab) == before);
}

/// `createContainer` hooks are programs of the host. Those of `startContainer` come with the program's rights.
#[test]
fn hooks_before_the_change_of_root_are_not_confined() {
    let Some(profile) = Profile::load(OPEN) else { return };
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let mut bundle = Bundle::new(&lab, "hooked", "cat /proc/self/attr/current");
    bundle.config["process"]["apparmorProfile"] = profile.name.as_str().into();
    let outside = lab.directory.path().join("outside");
    let hook = |to: &Path| {
        let script = format!("cat /proc/self/attr/current > {}", to.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    bundle.config["hooks"] =
        json!({ "createContainer": hook(&outside), "startContainer": hook(Path::new("/inside")) });
    bundle.write();
    assert_eq!(runtime.done(&["run", "--bundle", bundle.path(), "x"]), profile.enforced());
    let own = std::fs::read_to_string("/proc/self/attr/current").unwrap();
    assert_eq!(std::fs::read_to_string(outside).unwrap(), own);
    assert_eq!(std::fs::read_to_string(lab.layer().join("inside")).unwrap(), profile.enforced());
}

/// A container that joins the mount namespace of another one finds that one's files, and the other may have made some
/// below `/proc` that take a label and do nothing.
#[test]
fn labels_are_not_written_to_what_a_joined_mount_namespace_has_for_proc() {
    let Some(profile) = Profile::load(OPEN) else { return };
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let mut bundle = Bundle::new(&lab, "first", "sleep 1000");
    for directory in ["self/attr/apparmor", "thread-self/attr/apparmor"] {
        let directory = lab.layer().join("proc").join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("exec"), "").unwrap();
    }
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc");
    for name in ["maskedPaths", "readonlyPaths"] {
        bundle.config["linux"].as_object_mut().unwrap().remove(name);
    }
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "first"]);
    runtime.done(&["start", "first"]);
    let mut bundle = Bundle::new(&lab, "second", "sleep 1000");
    bundle.config["process"]["apparmorProfile"] = profile.name.as_str().into();
    bundle.config.as_object_mut().unwrap().remove("mounts");
    for name in ["maskedPaths", "readonlyPaths", "devices"] {
        bundle.config["linux"].as_object_mut().unwrap().remove(name);
    }
    let joined = format!("/proc/{}/ns/mnt", runtime.state("first")["pid"]);
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "mount" {
            namespace["path"] = joined.as_str().into();
        }
    }
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "second"]);
    runtime.done(&["start", "second"]);
    assert_eq!(label_of(&runtime, "second"), profile.enforced());
}

// ---- SELinux, with the policy in selinux.conf ----

const BOX: &str = "system_u:system_r:box_t:s0:c1,c2";
const OTHER_BOX: &str = "system_u:system_r:box_t:s0:c3";
/// Its categories are separated by what also separates the options of a mount.
const BOX_FILE: &str = "system_u:object_r:box_file_t:s0:c1,c2";
const HOST_FILE: &str = "system_u:object_r:host_file_t:s0";

/// A place for containers whose image they may use; `None`, with the reason, where the policy is another one.
fn labelled_lab() -> Option<Lab> {
    let lab = Lab::new()?;
    let Ok(mut known) = std::fs::OpenOptions::new().write(true).open("/sys/fs/selinux/context") else {
        eprintln!("skipped: needs a kernel with SELinux, as in vm_runtime");
        return None;
    };
    if known.write_all(BOX.as_bytes()).is_err() {
        eprintln!("skipped: needs the SELinux policy `runtime/tests/selinux.conf`, as in vm_runtime");
        return None;
    }
    relabel(lab.directory.path(), "system_u:object_r:box_file_t:s0");
    Some(lab)
}

fn relabel(path: &Path, label: &str) {
    let value = format!("{label}\0");
    rustix::fs::lsetxattr(path, "security.selinux", value.as_bytes(), XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            relabel(&entry.unwrap().path(), label);
        }
    }
}

fn file_label(path: &Path) -> String {
    let mut value = [0u8; 256];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value[..])
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned()
}

fn labelled(lab: &Lab, name: &str, script: &str) -> Bundle {
    let mut bundle = Bundle::new(lab, name, script);
    bundle.config["process"]["selinuxLabel"] = BOX.into();
    bundle.config["linux"]["mountLabel"] = BOX_FILE.into();
    bundle.write();
    bundle
}

#[test]
fn selinux_label_refuses_what_the_policy_denies_and_nothing_else() {
    let Some(lab) = labelled_lab() else { return };
    let runtime = Runtime::ours(&lab);
    for (name, label) in [
        ("open", "system_u:object_r:box_file_t:s0:c2"),
        ("host", HOST_FILE),
        ("other", "system_u:object_r:box_file_t:s0:c3"),
    ] {
        let path = lab.layer().join("etc").join(name);
        std::fs::write(&path, format!("{name}\n")).unwrap();
        relabel(&path, label);
    }
    let script =
        "tr '\\0' '\\n' < /proc/self/attr/current; cat /etc/open /etc/host /etc/other; echo x > /etc/new";
    std::os::unix::fs::symlink("busybox", lab.layer().join("bin/tr")).unwrap();
    for no_new_privileges in [true, false] {
        let mut bundle = labelled(&lab, "confined", script);
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        bundle.write();
        let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
        assert_eq!((answer.code, answer.output), (0, format!("{BOX}\nopen\n")), "{}", answer.errors);
        for name in ["host", "other"] {
            let expected = format!("can't open '/etc/{name}': {REFUSED}");
            assert!(answer.errors.contains(&expected), "{}", answer.errors);
        }
    }
    let bundle = Bundle::new(&lab, "free", "cat /etc/open /etc/host /etc/other");
    assert_eq!(runtime.done(&["run", "--bundle", bundle.path(), "x"]), "open\nhost\nother\n");
}

#[test]
fn files_of_the_containers_own_file_systems_have_the_mount_label() {
    let Some(lab) = labelled_lab() else { return };
    let runtime = Runtime::ours(&lab);
    let script = "echo x > /dev/shm/made; sleep 1000";
    let mut bundle = labelled(&lab, "long", script);
    let masked = lab.layer().join("etc/masked");
    std::fs::create_dir(&masked).unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/masked"]);
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    runtime.done(&["start", "x"]);
    let root = format!("/proc/{}/root", runtime.state("x")["pid"]);
    let root = Path::new(&root);
    common::eventually("the file is made", || root.join("dev/shm/made").exists());
    for path in
        ["dev", "dev/null", "dev/pts", "dev/pts/ptmx", "dev/shm", "dev/shm/made", "dev/mqueue", "etc/masked"]
    {
        assert_eq!(file_label(&root.join(path)), BOX_FILE, "{path}");
    }
    // Those of the image are the caller's to label.
    assert_eq!(file_label(&root.join("etc")), "system_u:object_r:box_file_t:s0");

    // Message queues of others, which have their label already.
    let mut bundle = labelled(&lab, "joined", "true");
    let ipc = format!("/proc/{}/ns/ipc", runtime.state("x")["pid"]);
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "ipc" {
            namespace["path"] = ipc.as_str().into();
        }
    }
    bundle.write();
    runtime.done(&["run", "--bundle", bundle.path(), "y"]);
}

#[test]
fn a_labelled_container_may_have_a_user_namespace() {
    let Some(lab) = labelled_lab() else { return };
    let runtime = Runtime::ours(&lab);
    let mut bundle = labelled(&lab, "mapped", "sleep 1000");
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.write();
    for path in [lab.directory.path(), &lab.layer()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    runtime.done(&["start", "x"]);
    let root = format!("/proc/{}/root", runtime.state("x")["pid"]);
    for path in ["dev", "dev/pts", "dev/mqueue"] {
        assert_eq!(file_label(&Path::new(&root).join(path)), BOX_FILE, "{path}");
    }
    assert_eq!(label_of(&runtime, "x").trim_end_matches('\0'), BOX);
}

#[test]
fn exec_has_the_selinux_label_of_the_container_or_the_one_it_is_given() {
    let Some(lab) = labelled_lab() else { return };
    let runtime = Runtime::ours(&lab);
    let bundle = labelled(&lab, "long", "sleep 1000");
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    runtime.done(&["start", "x"]);
    let exec = |more: &[&str]| {
        let command = ["x", "cat", "/proc/self/attr/current"];
        runtime.call(&[&["exec"], more, &command].concat())
    };
    assert_eq!(exec(&[]).output.trim_end_matches('\0'), BOX);
    assert_eq!(exec(&["--process-label", OTHER_BOX]).output.trim_end_matches('\0'), OTHER_BOX);
    let answer = exec(&["--process-label", "system_u:system_r:nobody_t:s0"]);
    let expected =
        "the SELinux label `system_u:system_r:nobody_t:s0`: the kernel's policy knows no such label";
    assert!(answer.code == 255 && answer.errors.contains(expected), "{answer:?}");
    // One that the policy knows, and by which it allows no program to be run.
    let answer = exec(&["--process-label", BOX_FILE]);
    assert_ne!(answer.code, 0, "{answer:?}");
}

#[test]
fn an_unknown_selinux_label_is_named_and_nothing_is_left() {
    let Some(lab) = labelled_lab() else { return };
    let runtime = Runtime::ours(&lab);
    std::fs::create_dir(&runtime.root).unwrap();
    let unknown = "system_u:object_r:nobody_t:s0";
    for (part, field) in [("process", "selinuxLabel"), ("linux", "mountLabel")] {
        let mut bundle = labelled(&lab, "lost", "true");
        bundle.config[part][field] = unknown.into();
        bundle.write();
        let before = traces(&lab);
        let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
        assert!(answer.code == 1 && answer.errors.contains(unknown), "{field}: {answer:?}");
        common::eventually("nothing is left", || traces(&lab) == before);
    }
}

/// The policy shows a container the keys that have its label, and no others.
#[test]
fn keyrings_have_the_selinux_label() {
    let Some(lab) = labelled_lab() else { return };
    let runtime = Runtime::ours(&lab);
    let mut bundle = labelled(&lab, "long", "cat /proc/keys > /etc/keys; sleep 1000");
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.write();
    runtime.done(&["create", "--bundle", bundle.path(), "keyed"]);
    runtime.done(&["start", "keyed"]);
    let keys = lab.layer().join("etc/keys");
    common::eventually("the keys are shown", || {
        std::fs::read_to_string(&keys).is_ok_and(|text| text.contains("_ses.keyed"))
    });
    // Of the keys of root, a user sees those alone that the own process has.
    let found = runtime.done(&["exec", "--user", "1000", "keyed", "cat", "/proc/keys"]);
    assert!(found.contains("_ses.keyed"), "{found}");
}
