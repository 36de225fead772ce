//! The runtime specification, field by field, on the real kernel: namespaces, mounts, attributes of the process, and
//! the attacks that other runtimes have suffered. Needs root and a static busybox.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Lab, chain};
use rswarm_runtime::oci::Spec;
use rswarm_runtime::{Container, CreateRequest, Rootfs};
use serde_json::{Value, json};

/// Changes the configuration as JSON: the way users write it.
fn edit(request: &mut CreateRequest, change: impl FnOnce(&mut Value)) {
    let mut config = serde_json::to_value(&request.spec).unwrap();
    change(&mut config);
    request.spec = serde_json::from_value::<Spec>(config).unwrap();
}

fn push(list: &mut Value, value: Value) {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().unwrap().push(value);
}

/// A namespace of this type, beside or in place of what is there.
fn namespace(config: &mut Value, value: Value) {
    let list = config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|one| one["type"] != value["type"]);
    list.push(value);
}

/// A user namespace of 65536 ids from 100000 on.
fn user_namespace(config: &mut Value) {
    namespace(config, json!({ "type": "user" }));
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    config["linux"]["uidMappings"] = maps.clone();
    config["linux"]["gidMappings"] = maps;
}

fn without_seccomp(config: &mut Value) {
    config["linux"].as_object_mut().unwrap().remove("seccomp");
}

fn own(path: &Path, id: u32) {
    std::os::unix::fs::chown(path, Some(id), Some(id)).unwrap();
}

fn created(lab: &Lab, request: &CreateRequest) -> Container {
    lab.containers.create(request).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn refused(lab: &Lab, request: &CreateRequest) -> String {
    chain(&lab.containers.create(request).unwrap_err())
}

/// The kernel's link for a namespace of a process.
fn link(pid: i32, kind: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// Gives the overlay's own layer to root of the user namespace, as an image store would.
fn own_layer(request: &CreateRequest, id: u32) {
    let Rootfs::Overlay { upper, .. } = &request.rootfs else { panic!() };
    own(upper, id);
}

#[test]
fn user_namespace_maps_ids_and_owns_the_other_namespaces() {
    let Some(lab) = Lab::new() else { return };
    let script = "cat /proc/self/uid_map; id -u; hostname changed && hostname; mount -t tmpfs x /tmp && echo mounted; \
                  ip link set lo down && echo down; echo x > /dev/null && echo device; echo y > /dev/stdout; \
                  test -O /dev/mqueue && echo queues; \
                  cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_default_ttl; \
                  touch /made && ls -ln /made; ulimit -Hn; cat /proc/self/oom_score_adj; grep -c . /proc/mounts";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        user_namespace(config);
        without_seccomp(config);
        config["hostname"] = "inside".into();
        config["process"]["oomScoreAdj"] = 300.into();
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
        for set in ["bounding", "effective", "permitted"] {
            for name in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"] {
                push(&mut config["process"]["capabilities"][set], name.into());
            }
        }
        config["linux"]["sysctl"] = json!({
            "net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "4096", "net/ipv4/ip_default_ttl": "77",
        });
    });
    own_layer(&request, 100_000);
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    for expected in
        ["100000      65536\n0\nchanged\nmounted\ndown\ndevice\ny\nqueues\n4096\n77\n", "\n200\n300\n"]
    {
        assert!(text.contains(expected), "expected {expected} in {text}");
    }
    // On the host the file belongs to the mapped id.
    let Rootfs::Overlay { upper, .. } = &request.rootfs else { panic!() };
    assert_eq!(std::fs::metadata(upper.join("made")).unwrap().uid(), 100_000);
}

#[test]
fn user_namespace_reaches_neither_devices_nor_host_settings() {
    let Some(lab) = Lab::new() else { return };
    let script = "mknod /tmp/disk b 254 0; echo 1 > /proc/sys/kernel/panic; id; cat /proc/self/status";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        user_namespace(config);
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [20] });
        config["linux"]["readonlyPaths"] = json!([]);
    });
    own_layer(&request, 100_000);
    let (_, text) = lab.run(&request);
    assert!(text.contains("uid=1000 gid=1000 groups=20"), "{text}");
    assert_eq!(text.matches("ermission denied").count() + text.matches("not permitted").count(), 2, "{text}");
    let mut request = lab.script("two", "true");
    edit(&mut request, |config| {
        user_namespace(config);
        config["process"]["user"]["uid"] = 70_000.into();
    });
    let error = refused(&lab, &request);
    assert!(error.contains("`process.user.uid` has the invalid value `70000`"), "{error}");
}

#[test]
fn root_directory_and_binds_of_a_closed_directory_reach_a_user_namespace() {
    let Some(lab) = Lab::new() else { return };
    // Nobody but the host's root comes through here.
    std::fs::set_permissions(lab.directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let volume = lab.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "shown").unwrap();
    let mut request = lab.script("one", "cat /data/file /one-file; touch /data/x; ls /data");
    request.rootfs = Rootfs::Directory(lab.layer());
    edit(&mut request, |config| {
        user_namespace(config);
        let file = volume.join("file");
        push(
            &mut config["mounts"],
            json!({ "destination": "/data", "source": volume, "options": ["rbind", "ro"] }),
        );
        push(
            &mut config["mounts"],
            json!({ "destination": "/one-file", "source": file, "options": ["bind"] }),
        );
        push(
            &mut config["mounts"],
            json!({ "destination": "/dev/null", "source": "/dev/null", "options": ["bind"] }),
        );
    });
    for name in ["", "proc", "sys", "dev", "etc", "tmp"] {
        own(&lab.layer().join(name), 100_000);
    }
    let (_, text) = lab.run(&request);
    assert!(text.contains("shownshown") && text.contains("Read-only file system"), "{text}");
    // The mount point was made, by root of the container.
    assert_eq!(std::fs::metadata(lab.layer().join("one-file")).unwrap().uid(), 100_000);
}

#[test]
fn mapped_mount_shows_other_owners() {
    let Some(lab) = Lab::new() else { return };
    let volume = lab.directory.path().join("volume");
    std::fs::create_dir_all(volume.join("below")).unwrap();
    std::fs::write(volume.join("file"), "x").unwrap();
    own(&volume.join("file"), 1000);
    own(&volume, 1000);
    let script = "ls -ln /data/file; touch /data/made";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        let maps = json!([{ "containerID": 1000, "hostID": 0, "size": 1 }]);
        push(
            &mut config["mounts"],
            json!({ "destination": "/data", "source": volume, "options": ["bind", "idmap"],
                    "uidMappings": maps, "gidMappings": maps }),
        );
    });
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(" 0        0 "), "{text}");
    // What root of the container makes is 1000's on the disk.
    assert_eq!(std::fs::metadata(volume.join("made")).unwrap().uid(), 1000);
    // With a user namespace and no maps of its own, a mount has the container's.
    let mut request = lab.script("two", "ls -ln /data/file");
    edit(&mut request, |config| {
        user_namespace(config);
        push(
            &mut config["mounts"],
            json!({ "destination": "/data", "source": volume, "options": ["rbind", "ridmap"] }),
        );
    });
    own_layer(&request, 100_000);
    let (_, text) = lab.run(&request);
    assert!(text.contains(" 1000     1000 "), "{text}");
}

#[test]
fn time_namespace_has_its_offsets() {
    let Some(lab) = Lab::new() else { return };
    let mut request =
        lab.script("one", "cat /proc/self/timens_offsets /proc/uptime; readlink /proc/self/ns/time");
    edit(&mut request, |config| {
        namespace(config, json!({ "type": "time" }));
        config["linux"]["timeOffsets"] =
            json!({ "monotonic": { "secs": 1000, "nanosecs": 5 }, "boottime": { "secs": 5_000_000 } });
    });
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(&words[..6], ["monotonic", "1000", "5", "boottime", "5000000", "0"], "{text}");
    assert!(words[6].parse::<f64>().unwrap() > 5_000_000.0, "{text}");
    assert_ne!(words[8], link(std::process::id() as i32, "time"));
    // The shim makes the next container in the time everybody has.
    let (_, text) = lab.run(&lab.script("two", "readlink /proc/self/ns/time"));
    assert_eq!(text.trim(), link(std::process::id() as i32, "time"));
}

#[test]
fn every_namespace_can_be_joined() {
    let Some(lab) = Lab::new() else { return };
    let mut first = lab.script("first", "sleep 1000");
    edit(&mut first, |config| {
        user_namespace(config);
        namespace(config, json!({ "type": "time" }));
    });
    own_layer(&first, 100_000);
    let target = created(&lab, &first);
    target.start().unwrap();
    let pid = target.pid().unwrap();
    let all = [
        ("user", "user"),
        ("pid", "pid"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("cgroup", "cgroup"),
        ("time", "time"),
    ];
    let show = "for n in user pid net ipc uts cgroup time mnt; do readlink /proc/self/ns/$n; done; id -u; ls -d /proc/1";
    let links = |text: &str| text.lines().take(8).map(str::to_owned).collect::<Vec<_>>();
    // One by one, with the rest its own, where the kernel allows that: what belongs to a user namespace of others can
    // only be entered from there or from above, which root is.
    for (at, (kind, file)) in all.iter().enumerate() {
        let mut request = lab.script(&format!("join-{kind}"), show);
        edit(&mut request, |config| {
            namespace(config, json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
            without_seccomp(config);
            if *kind == "network" {
                // sysfs shows the network namespace of whoever mounts it, and is that one's owner's to mount.
                config["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
            }
        });
        own_layer(&request, if *kind == "user" { 100_000 } else { 0 });
        let (code, text) = lab.run(&request);
        assert_eq!(code, 0, "{kind}: {text}");
        assert_eq!(links(&text)[at], link(pid, file), "{kind}: {text}");
    }
    // All at once.
    let mut request = lab.script("join-all", show);
    edit(&mut request, |config| {
        for (kind, file) in all {
            namespace(config, json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
        }
        without_seccomp(config);
    });
    own_layer(&request, 100_000);
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    for (at, (kind, file)) in all.iter().enumerate() {
        assert_eq!(links(&text)[at], link(pid, file), "{kind}: {text}");
    }
    assert_ne!(links(&text)[7], link(pid, "mnt"));
    // And the mount namespace, whose root is then the container's.
    let mut request =
        lab.script("join-mount", "readlink /proc/self/ns/mnt; cat /marked; readlink /proc/self/ns/user");
    std::fs::write(lab.directory.path().join("layers/first/upper/marked"), "by the first\n").unwrap();
    edit(&mut request, |config| {
        for (kind, file) in [("user", "user"), ("mount", "mnt"), ("pid", "pid")] {
            namespace(config, json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
        }
        without_seccomp(config);
        config.as_object_mut().unwrap().remove("mounts");
        for name in ["maskedPaths", "readonlyPaths", "devices"] {
            config["linux"].as_object_mut().unwrap().remove(name);
        }
    });
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text, format!("{}\nby the first\n{}\n", link(pid, "mnt"), link(pid, "user")));
    target.kill(libc::SIGKILL, true).unwrap();
}

#[test]
fn namespace_that_cannot_be_joined_is_named() {
    let Some(lab) = Lab::new() else { return };
    for (kind, path, expected) in [
        ("pid", "/proc/self/ns/net", "join the pid namespace `/proc/self/ns/net`: invalid argument"),
        ("pid", "/no/such", "open the namespace `/no/such`: no such file or directory"),
        ("network", "/dev/null", "join the namespace `/dev/null`: invalid argument"),
    ] {
        let mut request = lab.script("one", "true");
        edit(&mut request, |config| namespace(config, json!({ "type": kind, "path": path })));
        let error = refused(&lab, &request);
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn mount_options_have_their_effect_also_on_what_is_below() {
    let Some(lab) = Lab::new() else { return };
    let volume = lab.directory.path().join("volume");
    std::fs::create_dir_all(volume.join("inner")).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("link")).unwrap();
    let inner = volume.join("inner");
    let _mounted = HostMount::tmpfs(&inner);
    let script = "touch /rro/x; touch /rro/inner/x; touch /ro/x; touch /ro/inner/x && echo inner writable; \
                  ls /nosym/link/ ; ls /nosym/link; cat /proc/self/mountinfo";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        for (destination, options) in [
            ("/rro", json!(["rbind", "rro", "rnosuid", "rnoexec", "rnoatime"])),
            ("/ro", json!(["rbind", "ro", "nodev", "sync"])),
            ("/nosym", json!(["bind", "nosymfollow"])),
            // Relative, as in old configurations.
            ("relative", json!(["bind", "rshared"])),
        ] {
            push(
                &mut config["mounts"],
                json!({ "destination": destination, "source": volume, "options": options }),
            );
        }
        push(
            &mut config["mounts"],
            json!({ "destination": "/un", "type": "tmpfs", "source": "tmpfs", "options": ["unbindable"] }),
        );
    });
    let (_, text) = lab.run(&request);
    for refused in ["/rro/x: Read-only", "/rro/inner/x: Read-only", "/ro/x: Read-only", "Too many"] {
        assert!(text.contains(refused), "expected {refused} in {text}");
    }
    assert!(text.contains("inner writable"), "{text}");
    let options = |place: &str| {
        let found = text.lines().find(|line| line.split(' ').nth(4) == Some(place));
        found.unwrap_or_else(|| panic!("no {place} in {text}")).to_owned()
    };
    assert!(options("/rro/inner").contains(" ro,nosuid,noexec,noatime "), "{text}");
    assert!(options("/ro").contains(" ro,nodev,") && !options("/ro/inner").contains(" ro,"), "{text}");
    assert!(options("/relative").contains(" shared:"), "{text}");
    assert!(options("/un").contains(" unbindable "), "{text}");
}

/// A mount on the host that goes away with the test.
struct HostMount(std::path::PathBuf);

impl HostMount {
    fn tmpfs(at: &Path) -> Self {
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", at, "tmpfs", none, None).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn propagation_of_the_root_is_as_asked() {
    let Some(lab) = Lab::new() else { return };
    for (wanted, expected) in
        [("private", " - "), ("rslave", " - "), ("shared", " shared:"), ("unbindable", " unbindable ")]
    {
        let mut request = lab.script(wanted, "cat /proc/self/mountinfo");
        edit(&mut request, |config| config["linux"]["rootfsPropagation"] = wanted.into());
        let (_, text) = lab.run(&request);
        let root = text.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert!(root.contains(expected), "{wanted}: {root}");
    }
    // Mounts made under a shared volume reach the host, and nothing else does.
    let volume = lab.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let _mounted = HostMount::tmpfs(&volume);
    let flags = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_change(&volume, flags).unwrap();
    std::fs::create_dir(volume.join("sub")).unwrap();
    let mut request =
        lab.script("spread", "mount -t tmpfs spread /data/sub && mount -t tmpfs kept /tmp && sleep 1000");
    edit(&mut request, |config| {
        without_seccomp(config);
        config["linux"]["rootfsPropagation"] = "rshared".into();
        for set in ["bounding", "effective", "permitted"] {
            push(&mut config["process"]["capabilities"][set], "CAP_SYS_ADMIN".into());
        }
        push(
            &mut config["mounts"],
            json!({ "destination": "/data", "source": volume, "options": ["rbind", "rshared"] }),
        );
    });
    let container = created(&lab, &request);
    container.start().unwrap();
    let host = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    common::eventually("the container's mount is on the host", || host().contains(" spread "));
    let mine = host();
    let mine: Vec<&str> =
        mine.lines().filter(|line| line.contains(lab.directory.path().to_str().unwrap())).collect();
    assert_eq!(mine.len(), 2, "{mine:#?}");
    container.delete().unwrap();
    rustix::mount::unmount(volume.join("sub"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn tmpfs_starts_with_what_the_image_has() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.layer().join("var/lib");
    std::fs::create_dir_all(image.join("deep/er")).unwrap();
    std::fs::write(image.join("deep/er/file"), "copied").unwrap();
    std::fs::set_permissions(image.join("deep/er/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    own(&image.join("deep"), 33);
    std::os::unix::fs::symlink("../../../../etc/passwd", image.join("link")).unwrap();
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o750)).unwrap();
    let script = "cat /var/lib/deep/er/file; ls -ln /var/lib/deep/er/file /var/lib/link; ls -lnd /var/lib/deep /var/lib; \
                  echo more > /var/lib/deep/new && echo ok";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        push(
            &mut config["mounts"],
            json!({ "destination": "/var/lib", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }),
        );
    });
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    for expected in
        ["copied", "-rwsr-x--x", "-> ../../../../etc/passwd", " 33       33 ", "drwxr-x---", "ok\n"]
    {
        assert!(text.contains(expected), "expected {expected} in {text}");
    }
    assert!(!image.join("deep/new").exists());
}

/// Of links in the image that lead to what is not there yet, the target is made, inside the root.
#[test]
fn mounts_and_devices_go_where_dangling_links_lead() {
    let Some(lab) = Lab::new() else { return };
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, lab.layer().join(name)).unwrap();
    link("../run/systemd/stub.conf", "etc/resolv.conf");
    link("/run/lock", "lock");
    link("../../../../outside", "above");
    link("gone/", "etc/relative");
    link("/etc/round", "etc/round");
    let source = lab.directory.path().join("given");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "given\n").unwrap();
    let bind = |source: &Path, destination: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind"] });
    let script = "cat /run/systemd/stub.conf /run/lock/sub/file /outside/file /etc/gone/deep/file; \
                  test -c /run/lock/device && echo device";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        push(&mut config["mounts"], json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs" }));
        push(&mut config["mounts"], bind(&source.join("file"), "/etc/resolv.conf"));
        push(&mut config["mounts"], bind(&source, "/lock/sub"));
        push(&mut config["mounts"], bind(&source, "/above"));
        push(&mut config["mounts"], bind(&source, "/etc/relative/deep"));
        push(
            &mut config["linux"]["devices"],
            json!({ "path": "/lock/device", "type": "c", "major": 1, "minor": 3 }),
        );
    });
    assert_eq!(lab.run(&request), (0, "given\ngiven\ngiven\ngiven\ndevice\n".to_owned()));
    assert!(!lab.directory.path().join("outside").exists(), "nothing was made above the root");
    let mut round = lab.script("two", "true");
    edit(&mut round, |config| push(&mut config["mounts"], bind(&source, "/etc/round/sub")));
    let error = refused(&lab, &round);
    assert!(
        error.contains("make the mount point `/etc/round/sub`: too many levels of symbolic links"),
        "{error}"
    );
}

#[test]
fn a_device_takes_the_place_of_a_default_one_and_a_link_to_it_is_as_good() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.directory.path().join("dv");
    std::fs::create_dir(&host).unwrap();
    std::os::unix::fs::symlink("/dev/zero", host.join("link")).unwrap();
    let script = "stat -c '%n %t:%T %a %u:%g' /dev/random /dev/tty; head -c 2 /dv/link | wc -c; ls -l /dev/stdin | cut -c1";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        config["linux"]["devices"] = json!([
            { "path": "/dev/random", "type": "c", "major": 1, "minor": 9 },
            { "path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 0o640, "uid": 7, "gid": 8 },
            { "path": "/dev/stdin", "type": "c", "major": 1, "minor": 3 },
            { "path": "/dv/link", "type": "c", "major": 1, "minor": 5 },
        ]);
        push(
            &mut config["mounts"],
            json!({ "destination": "/dv", "type": "bind", "source": host, "options": ["bind"] }),
        );
    });
    assert_eq!(lab.run(&request), (0, "/dev/random 1:9 666 0:0\n/dev/tty 5:0 640 7:8\n2\nc\n".to_owned()));
    let mut other = lab.script("two", "true");
    other.spec = request.spec;
    edit(&mut other, |config| config["linux"]["devices"][3]["minor"] = 7.into());
    let error = refused(&lab, &other);
    assert!(error.contains("make the device `/dv/link`: something else is there"), "{error}");
}

#[test]
fn attributes_of_the_process_are_as_asked() {
    let Some(lab) = Lab::new() else { return };
    let script = "cat /proc/self/sched; busybox ionice -p $$; uname -m; cat /proc/sys/kernel/domainname; \
                  cat /proc/self/status /proc/keys";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7 });
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        config["linux"]["personality"] = json!({ "domain": "LINUX32" });
        config["domainname"] = "example.org".into();
    });
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("best-effort: prio 6"), "{text}");
    assert!(text.contains("i686\nexample.org\n"), "{text}");
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    if text.contains("policy ") {
        assert!(line("policy").trim().ends_with('3'), "{text}");
    }
    for (field, value, expected) in [
        (
            "scheduler",
            json!({ "policy": "SCHED_FIFO" }),
            "`process.scheduler.priority` has the invalid value `0`",
        ),
        ("scheduler", json!({ "policy": "SCHED_OTHER", "runtime": 5 }), "`process.scheduler.runtime`"),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_RT", "priority": 9 }), "`process.ioPriority.priority`"),
        (
            "selinuxLabel",
            json!("a_t"),
            "`process.selinuxLabel` has the invalid value `a_t`: this kernel has SELinux",
        ),
    ] {
        let mut request = lab.script("two", "true");
        edit(&mut request, |config| config["process"][field] = value);
        if field == "selinuxLabel" && Path::new("/sys/fs/selinux/enforce").exists() {
            continue;
        }
        let error = refused(&lab, &request);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn keyring_is_the_containers_own_and_memory_comes_from_where_it_should() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script("one", "cat /proc/keys; echo; cat /proc/self/numa_maps");
    edit(&mut request, |config| {
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    });
    let numa = Path::new("/proc/self/numa_maps").exists();
    if !numa {
        eprintln!("skipped in part: needs a kernel with NUMA");
        edit(&mut request, |config| drop(config["linux"].as_object_mut().unwrap().remove("memoryPolicy")));
    }
    let (_, text) = lab.run(&request);
    assert!(!numa || text.contains(" bind:0 "), "{text}");
    if Path::new("/proc/keys").exists() {
        assert!(text.contains("_ses.one"), "{text}");
    } else {
        eprintln!("skipped in part: needs a kernel with keyrings");
    }
}

#[test]
fn real_time_and_deadline_scheduling_reach_the_kernel() {
    let Some(lab) = Lab::new() else { return };
    for (wanted, policy) in [
        (json!({ "policy": "SCHED_RR", "priority": 5, "flags": ["SCHED_RESET_ON_FORK"] }), 2),
        (json!({ "policy": "SCHED_IDLE" }), 5),
    ] {
        let mut request = lab.script("one", "sleep 1000");
        edit(&mut request, |config| config["process"]["scheduler"] = wanted);
        // Real-time needs a share of the cgroup's real-time budget, where the kernel has such.
        let container = match lab.containers.create(&request) {
            Ok(container) => container,
            Err(error) if chain(&error).contains("operation not permitted") => {
                eprintln!("skipped: needs real-time scheduling in cgroups ({})", chain(&error));
                continue;
            }
            Err(error) => panic!("{}", chain(&error)),
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid().unwrap())).unwrap();
        let found = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(38).unwrap();
        assert_eq!(found, policy.to_string());
        container.delete().unwrap();
    }
}

#[test]
fn five_capability_sets_are_set_and_what_cannot_be_granted_is_left_out() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script("one", "cat /proc/self/status");
    edit(&mut request, |config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = json!({
            "bounding": ["CAP_NET_RAW", "CAP_CHOWN", "CAP_KILL"],
            "permitted": ["CAP_NET_RAW", "CAP_CHOWN"],
            "effective": ["CAP_NET_RAW", "CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_NET_RAW"],
            // Only what is permitted and inheritable can be ambient.
            "ambient": ["CAP_NET_RAW", "CAP_CHOWN"],
        });
    });
    let (_, text) = lab.run(&request);
    for line in [
        "CapInh:\t0000000000002000",
        "CapPrm:\t0000000000002000",
        "CapEff:\t0000000000002000",
        "CapBnd:\t0000000000002021",
        "CapAmb:\t0000000000002000",
    ] {
        assert!(text.contains(line), "expected {line} in {text}");
    }
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    let ours = ours.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
    let ours = u64::from_str_radix(ours, 16).unwrap();
    // Everything, as `--privileged` asks for.
    let all: Vec<Value> = rswarm_runtime::features()["linux"]["capabilities"].as_array().unwrap().clone();
    let mut request = lab.script("two", "cat /proc/self/status");
    edit(&mut request, |config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = all.clone().into();
        }
    });
    let (_, text) = lab.run(&request);
    assert!(text.contains(&format!("CapPrm:\t{ours:016x}")), "{text}");
}
