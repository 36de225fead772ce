//! What other runtimes got wrong from 2019 to 2025, tried against this one; and that a failure leaves nothing behind.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::cli::{Bundle, Runtime};
use common::{Lab, chain};
use rswarm_runtime::{CreateRequest, Rootfs};
use serde_json::{Value, json};

/// Ends the attacker, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn edit(request: &mut CreateRequest, change: impl FnOnce(&mut Value)) {
    let mut config = serde_json::to_value(&request.spec).unwrap();
    change(&mut config);
    request.spec = serde_json::from_value(config).unwrap();
}

fn push(list: &mut Value, value: Value) {
    list.as_array_mut().unwrap().push(value);
}

/// CVE-2024-21626: a working directory through a descriptor that the runtime left open led to the host.
#[test]
fn working_directory_through_a_descriptor_is_refused() {
    let Some(lab) = Lab::new() else { return };
    for number in 0..20 {
        for cwd in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../../../../../..")]
        {
            let mut request = lab.script("one", "pwd; ls -a");
            edit(&mut request, |config| config["process"]["cwd"] = cwd.clone().into());
            match lab.containers.create(&request) {
                Err(error) => {
                    let error = chain(&error);
                    assert!(error.contains("the working directory"), "{error}");
                }
                // If there is such a directory, it is one of the container.
                Ok(container) => {
                    container.start().unwrap();
                    container.wait().unwrap();
                    let text = common::output(&container);
                    assert!(
                        text.starts_with('/') && !text.contains("rswarm") && !text.contains("boot"),
                        "{cwd}: {text}"
                    );
                    container.delete().unwrap();
                }
            }
        }
    }
    // By way of a link of the image.
    symlink("/proc/self/fd/3", lab.layer().join("work")).unwrap();
    let mut request = lab.script("two", "pwd");
    edit(&mut request, |config| config["process"]["cwd"] = "/work".into());
    assert!(lab.containers.create(&request).is_err());
}

/// The same leak from the other side: what the program inherits.
#[test]
fn no_descriptor_of_the_host_is_left_in_the_program() {
    let Some(lab) = Lab::new() else { return };
    for user in [false, true] {
        let script = "for fd in /proc/$$/fd/*; do readlink $fd; done";
        let mut request = lab.script(&format!("user-{user}"), script);
        edit(&mut request, |config| {
            config["linux"].as_object_mut().unwrap().remove("seccomp");
            if user {
                push(&mut config["linux"]["namespaces"], json!({ "type": "user" }));
                let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
                config["linux"]["uidMappings"] = maps.clone();
                config["linux"]["gidMappings"] = maps;
            }
        });
        let text = lab.run(&request).1;
        let lines: Vec<&str> = text.lines().collect();
        // The directory that the shell has listed is closed by then.
        assert!(lines.len() == 3 && lines[0] == "/dev/null", "{text}");
        assert!(lines[1..].iter().all(|line| line.starts_with("pipe:")), "{text}");
    }
}

/// Whoever has the host's `/dev/null` open may close it to everybody there: `fchmod(2)` asks for no path.
#[test]
fn the_hosts_null_device_is_not_what_a_program_is_given() {
    let Some(lab) = Lab::new() else { return };
    let same = "test $(stat -L -c %d:%i /proc/self/fd/0) = $(stat -c %d:%i /dev/null) && echo same";
    assert_eq!(lab.run(&lab.script("task", same)), (0, "same\n".to_owned()));

    // A device of this test's in the place of the host's.
    let null = lab.directory.path().join("null");
    let made = Command::new("mknod").args(["-m", "666"]).arg(&null).args(["c", "1", "3"]).status().unwrap();
    assert!(made.success());
    let mode = || std::fs::metadata(&null).unwrap().permissions().mode() & 0o777;
    let runtime = Runtime::ours(&lab);
    let bundle = Bundle::new(&lab, "null", "chmod 640 /proc/self/fd/0; sleep 1000");
    let call = |args: &[&str]| {
        let mut command = runtime.command(args);
        command.stdin(std::fs::File::options().read(true).write(true).open(&null).unwrap());
        let answer = runtime.answer(command);
        assert_eq!(answer.code, 0, "{}", answer.errors);
    };
    call(&["create", "--bundle", bundle.path(), "null"]);
    call(&["start", "null"]);
    let own = || runtime.call(&["exec", "null", "/bin/sh", "-c", "stat -c %a /dev/null"]).output;
    common::eventually("the container has changed its own", || own() == "640\n");
    call(&["exec", "null", "/bin/sh", "-c", "chmod 600 /proc/self/fd/0"]);
    assert_eq!((own().as_str(), mode()), ("600\n", 0o666));

    // Nor is it where the container has removed its own.
    call(&["exec", "null", "/bin/sh", "-c", "rm /dev/null"]);
    let script = "test $(stat -L -c %t:%T /proc/self/fd/0) = 1:3 && cat && chmod 600 /proc/self/fd/0";
    call(&["exec", "null", "/bin/sh", "-c", script]);
    assert_eq!(mode(), 0o666);
}

/// Masks, and devices in a user namespace, are the host's own files: a program may read and write such a device, but
/// mode, owner, times and attributes are everybody's on the host. What is tried here does no harm where it is allowed.
#[test]
fn the_hosts_device_nodes_cannot_be_changed_through_masks() {
    let Some(lab) = Lab::new() else { return };
    let host = || {
        use std::os::unix::fs::MetadataExt;
        let stat = std::fs::metadata("/dev/null").unwrap();
        (
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec(),
        )
    };
    let before = host();
    for user in [false, true] {
        let mut request = lab.script(&format!("user-{user}"), "sleep 1000");
        let config = serde_json::to_value(&request.spec).unwrap();
        let text = |path: &Value| path.as_str().unwrap().to_owned();
        let masked = config["linux"]["maskedPaths"].as_array().unwrap().iter().map(text);
        let mut files: Vec<String> = masked.filter(|path| Path::new(path).is_file()).collect();
        assert!(!files.is_empty(), "this kernel has none of the files that are masked");
        if user {
            edit(&mut request, |config| {
                push(&mut config["linux"]["namespaces"], json!({ "type": "user" }));
                let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
                config["linux"]["uidMappings"] = maps.clone();
                config["linux"]["gidMappings"] = maps;
            });
        }
        let devices = ["null", "zero", "full", "random", "urandom"].map(|name| format!("/dev/{name}"));
        // Elsewhere they are the container's own.
        let bound = if user { &devices[..] } else { &[] };
        let attempts = "for file in $FILES; do
            test -s $file && echo $file is not empty
            cat $file && echo ignored > $file || echo $file cannot be used
            for file in $file $BOUND; do
                chmod 666 $file && echo $file changed its mode
                chown 0:0 $file && echo $file changed its owner
                touch -c $file && echo $file changed its times
            done
        done 2>/dev/null; echo done; sleep 1000";
        let script = attempts.replace("$FILES", &files.join(" ")).replace("$BOUND", &bound.join(" "));
        edit(&mut request, |config| config["process"]["args"][2] = script.into());
        let container = lab.containers.create(&request).unwrap();
        container.start().unwrap();
        common::eventually("everything was tried", || common::output(&container).contains("done"));
        let pid = container.init_pid().unwrap().unwrap();
        files.extend(bound.iter().cloned());
        for file in &files {
            // As root of the host, whom nothing but the mount stops.
            let path = format!("/proc/{pid}/root{file}");
            let none = rustix::fs::XattrFlags::empty();
            let set = rustix::fs::setxattr(&path, "trusted.rswarm-test", b"", none);
            let _ = rustix::fs::removexattr(&path, "trusted.rswarm-test");
            assert_eq!(set, Err(rustix::io::Errno::ROFS), "{file}");
        }
        assert_eq!(common::output(&container), "done\n");
        container.delete().unwrap();
    }
    assert_eq!(host(), before);
}

/// CVE-2019-16884 and CVE-2023-27561: `/proc` as a link makes the runtime mount procfs elsewhere, and mask nothing.
#[test]
fn kernel_file_systems_are_not_mounted_through_links() {
    for name in ["proc", "sys"] {
        let Some(lab) = Lab::new() else { return };
        std::fs::remove_dir(lab.layer().join(name)).unwrap();
        std::fs::create_dir(lab.layer().join("elsewhere")).unwrap();
        symlink("elsewhere", lab.layer().join(name)).unwrap();
        let error = chain(&lab.containers.create(&lab.script("one", "true")).unwrap_err());
        assert!(error.ends_with("expected a directory and no symbolic link there"), "{error}");
    }
}

/// CVE-2021-30465: the target of a mount is exchanged for a link between the check and the mount. An attacker swaps
/// directory and link all the time; whatever comes of it, nothing is mounted on or made in the host.
#[test]
fn exchanged_mount_target_never_leads_to_the_host() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.directory.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let shared = lab.directory.path().join("shared");
    std::fs::create_dir_all(shared.join("dir")).unwrap();
    let away = format!("{}{}", "../".repeat(30), host.display());
    symlink(&away, shared.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = std::fs::File::open(&shared).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(&directory, "dir", &directory, "link", flags);
            }
        });
        let _stop = Stop(&stop);
        for round in 0..15 {
            let mut request = lab.request(&format!("c{round}"), &["/bin/true"]);
            edit(&mut request, |config| {
                push(
                    &mut config["mounts"],
                    json!({ "destination": "/vol", "source": shared, "options": ["rbind", "rw"] }),
                );
                push(
                    &mut config["mounts"],
                    json!({ "destination": "/vol/dir/inner", "type": "tmpfs", "source": "tmpfs" }),
                );
            });
            if let Ok(container) = lab.containers.create(&request) {
                container.delete().unwrap();
            }
        }
    });
    assert_eq!(std::fs::read_dir(&host).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(host.to_str().unwrap()), "{mounts}");
}

/// Masked paths, CVE-2025-31133: the image's `/dev/null` is a link, so that what should hide `/proc/kcore` shows it.
#[test]
fn masks_do_not_come_from_the_image() {
    let Some(lab) = Lab::new() else { return };
    std::fs::write(lab.layer().join("etc/secret"), "seen").unwrap();
    std::fs::create_dir_all(lab.layer().join("dev")).unwrap();
    symlink("/etc/secret", lab.layer().join("dev/null")).unwrap();
    let mut request = lab.script("one", "cat /proc/timer_list /masked /masked-link; ls /masked-directory");
    std::fs::write(lab.layer().join("masked"), "hide me").unwrap();
    std::fs::create_dir(lab.layer().join("masked-directory")).unwrap();
    std::fs::write(lab.layer().join("masked-directory/file"), "hide me").unwrap();
    symlink("../../../etc/secret", lab.layer().join("masked-link")).unwrap();
    edit(&mut request, |config| {
        // The image's /dev is what the container has.
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        for path in ["/masked", "/masked-directory", "/masked-link"] {
            push(&mut config["linux"]["maskedPaths"], path.into());
        }
    });
    // The link where a device should be is refused, or followed inside; what is masked stays empty either way.
    match lab.containers.create(&request) {
        Ok(container) => {
            container.start().unwrap();
            container.wait().unwrap();
            assert_eq!(common::output(&container), "");
        }
        Err(error) => assert!(chain(&error).ends_with("something else is there"), "{}", chain(&error)),
    }
    std::fs::remove_file(lab.layer().join("dev/null")).unwrap();
    let (code, text) = lab.run(&CreateRequest { id: "two".to_owned(), ..again(&lab, request) });
    assert_eq!((code, text.as_str()), (0, ""));
}

/// Masked-path races (CVE-2023-28642 and its like): somebody who shares the root directory exchanges `/proc` for another
/// directory while it is mounted and masked. Wherever procfs ends up, what must be hidden in it is.
#[test]
fn masks_follow_the_mount_they_are_for() {
    let Some(lab) = Lab::new() else { return };
    for name in ["timer_list", "keys", "sys"] {
        std::fs::create_dir_all(lab.layer().join("fake").join(name)).unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut mounted = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = std::fs::File::open(lab.layer()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(&directory, "proc", &directory, "fake", flags);
            }
        });
        let _stop = Stop(&stop);
        for round in 0..20 {
            let mut request = lab.request(&format!("c{round}"), &["/bin/true"]);
            request.rootfs = Rootfs::Directory(lab.layer());
            let Ok(container) = lab.containers.create(&request) else { continue };
            let pid = container.pid().unwrap();
            let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            container.delete().unwrap();
            // By mount and not by path: the name of the place changes all the time.
            let fields: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
            let proc = fields.iter().find(|line| line[3] == "/" && line.contains(&"proc"));
            let proc = proc.unwrap_or_else(|| panic!("{mounts}"))[0];
            for hidden in ["timer_list", "keys", "sys", "sysrq-trigger"] {
                let covers = |line: &&Vec<&str>| line[1] == proc && line[4].ends_with(&format!("/{hidden}"));
                let exists = Path::new("/proc").join(hidden).exists();
                assert!(!exists || fields.iter().any(|line| covers(&line)), "{hidden} is open: {mounts}");
            }
            mounted += 1;
        }
    });
    assert!(mounted > 0, "no container could be made at all");
}

/// The request with layers and cgroup of its own.
fn again(lab: &Lab, request: CreateRequest) -> CreateRequest {
    CreateRequest { spec: request.spec, ..lab.request("two", &["true"]) }
}

/// CVE-2025-52881: what the runtime writes to procfs goes to a file that the container has put in its place. What is mounted
/// on the container's `/proc` is not where sysctls are written.
#[test]
fn settings_are_written_to_the_kernel_and_not_to_what_covers_it() {
    let Some(lab) = Lab::new() else { return };
    std::fs::create_dir_all(lab.layer().join("fake/net/ipv4")).unwrap();
    std::fs::write(lab.layer().join("fake/net/ipv4/ip_default_ttl"), "untouched\n").unwrap();
    let script = "cat /proc/sys/net/ipv4/ip_default_ttl /other/sys/net/ipv4/ip_default_ttl";
    let mut request = lab.script("one", script);
    edit(&mut request, |config| {
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
        let fake = lab.layer().join("fake");
        push(
            &mut config["mounts"],
            json!({ "destination": "/proc/sys", "type": "bind", "source": fake, "options": ["bind"] }),
        );
        push(&mut config["mounts"], json!({ "destination": "/other", "type": "proc", "source": "proc" }));
    });
    assert_eq!(lab.run(&request), (0, "untouched\n77\n".to_owned()));
}

/// CVE-2025-52565: the terminal is shown as `/dev/console` by paths that the image has prepared, so that a file of the
/// kernel is mounted there, or the terminal over one, before those are protected.
#[test]
fn the_console_is_the_terminal_whatever_the_image_has_there() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    let hidden =
        ["/proc/keys", "/proc/timer_list", "/proc/kcore"].into_iter().find(|path| Path::new(path).exists());
    let Some(hidden) = hidden else {
        eprintln!("skipped: needs a kernel with a file in /proc that is masked");
        return;
    };
    let script = format!("echo through > /dev/console; grep ' {hidden} ' /proc/mounts; echo end");
    let script = script.as_str();
    let mut bundle = Bundle::new(&lab, "console", script);
    bundle.config["process"]["terminal"] = true.into();
    // The image's /dev is what the container has, but for the terminals.
    let ours =
        |mount: &Value| !matches!(mount["destination"].as_str(), Some("/dev" | "/dev/shm" | "/dev/mqueue"));
    bundle.config["mounts"].as_array_mut().unwrap().retain(ours);
    bundle.write();
    for target in [hidden, "pts/0", "pts/ptmx", "/proc/self/fd/0", "/proc/1/root/etc/made"] {
        let console = lab.layer().join("dev/console");
        let _ = std::fs::remove_file(&console);
        symlink(target, &console).unwrap();
        let answer = runtime.call(&["run", "--bundle", bundle.path(), "x"]);
        let Some(said) = answer.output.strip_prefix("through\n") else {
            // A link that leads nowhere is refused before anything runs.
            assert!(answer.code == 1 && answer.errors.contains("mount the terminal"), "{target}: {answer:?}");
            continue;
        };
        // The terminal, or the host's /dev/null.
        let top = said.lines().rfind(|line| line.contains(hidden));
        let covered = top.is_some_and(|top| {
            top.starts_with("devpts ") || top.starts_with("devtmpfs ") || top.starts_with("tmpfs ")
        });
        assert!(covered && said.ends_with("end\n"), "{target}: {answer:?}");
    }
    assert!(!lab.layer().join("etc/made").exists());
}

/// Targets of file binds, devices and links, all of which the image has prepared as links out of its root.
#[test]
fn prepared_links_lead_nowhere_outside() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.directory.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let outside = host.join("made");
    let up = format!("{}{}", "../".repeat(30), outside.display());
    symlink(&up, lab.layer().join("etc/relative")).unwrap();
    symlink(&outside, lab.layer().join("etc/absolute")).unwrap();
    symlink(host.join("dev"), lab.layer().join("device-directory")).unwrap();
    let mut request = lab.script("one", "true");
    edit(&mut request, |config| {
        for target in ["/etc/relative", "/etc/absolute", "/etc/absolute/below"] {
            push(
                &mut config["mounts"],
                json!({ "destination": target, "source": "/etc/hostname", "options": ["bind"] }),
            );
        }
        config["linux"]["devices"] =
            json!([{ "path": "/device-directory/zero", "type": "c", "major": 1, "minor": 5 }]);
    });
    if let Ok(container) = lab.containers.create(&request) {
        container.delete().unwrap();
    }
    assert_eq!(std::fs::read_dir(&host).unwrap().count(), 0);
}

/// Everything that a failed create could leave.
#[derive(Debug, PartialEq)]
struct World {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    namespaces: BTreeSet<PathBuf>,
    processes: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl World {
    fn seen(lab: &Lab) -> Self {
        let mut files = BTreeSet::new();
        walk(lab.directory.path(), &mut files);
        let mut cgroups = BTreeSet::new();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            walk(&hierarchy.path().join(lab.cgroup.trim_start_matches('/')), &mut cgroups);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let directory = lab.directory.path().to_str().unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(directory)).map(str::to_owned).collect();
        // Processes of ours: with the test's directory in their command line.
        let mut processes = BTreeSet::new();
        let mut namespaces = BTreeSet::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(directory) {
                processes.insert(command);
                for kind in ["mnt", "pid", "user", "net"] {
                    namespaces.extend(std::fs::read_link(entry.path().join("ns").join(kind)));
                }
            }
        }
        Self { mounts, cgroups, namespaces, processes, files }
    }
}

fn walk(path: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        into.insert(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), into);
        }
    }
}

#[test]
fn failed_create_leaves_nothing_behind() {
    let Some(lab) = Lab::new() else { return };
    type Break = fn(&mut Value);
    let user = |config: &mut Value| {
        push(&mut config["linux"]["namespaces"], json!({ "type": "user" }));
        let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        config["linux"]["uidMappings"] = maps.clone();
        config["linux"]["gidMappings"] = maps;
    };
    let broken: [(&str, Break); 9] = [
        ("field", |config| config["ociVersion"] = "2.0.0".into()),
        ("program", |config| config["process"]["args"] = json!(["/no/such"])),
        ("source", |config| {
            push(
                &mut config["mounts"],
                json!({ "destination": "/x", "source": "/no/such", "options": ["bind"] }),
            );
        }),
        ("file system", |config| {
            push(&mut config["mounts"], json!({ "destination": "/x", "type": "nosuchfs", "source": "x" }));
        }),
        ("option", |config| {
            push(
                &mut config["mounts"],
                json!({ "destination": "/x", "type": "tmpfs", "options": ["size=lots"] }),
            );
        }),
        ("namespace", |config| {
            push(&mut config["linux"]["namespaces"], json!({ "type": "time", "path": "/no/such" }));
        }),
        ("working directory", |config| config["process"]["cwd"] = "/bin/busybox".into()),
        ("limit", |config| {
            config["linux"]["resources"]["cpu"] = json!({ "cpus": "4000" });
        }),
        ("listener", |config| {
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/no/such",
                "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] });
        }),
    ];
    for (what, change) in broken {
        for with_user in [false, true] {
            let mut request = lab.script("one", "true");
            edit(&mut request, |config| {
                change(config);
                if with_user {
                    user(config);
                }
            });
            if let Rootfs::Overlay { upper, .. } = &request.rootfs {
                std::os::unix::fs::chown(upper, Some(100_000), Some(100_000)).unwrap();
            }
            // What the kernel puts into an overlay's work directory and we into the root directory stays in any case.
            let overlay = |world: &mut World| {
                let layers = lab.directory.path().join("layers");
                world.files.retain(|path| !path.starts_with(&layers));
                world.files.remove(&lab.directory.path().join("containers"));
            };
            let mut before = World::seen(&lab);
            overlay(&mut before);
            let error = lab.containers.create(&request);
            assert!(error.is_err(), "{what}");
            let mut after = World::seen(&lab);
            // The last shim may be on its way out.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while {
                overlay(&mut after);
                after != before
            } && std::time::Instant::now() < deadline
            {
                std::thread::sleep(std::time::Duration::from_millis(5));
                after = World::seen(&lab);
            }
            let shims = |world: &World| {
                world.cgroups.iter().filter(|path| !path.ends_with("shims") && path.is_dir()).count()
            };
            assert_eq!(shims(&after), shims(&before), "{what}: {after:#?}");
            assert_eq!(
                (&after.mounts, &after.processes, &after.namespaces),
                (&before.mounts, &before.processes, &before.namespaces),
                "{what}"
            );
            assert_eq!(after.files, before.files, "{what}");
        }
    }
}
