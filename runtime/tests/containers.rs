//! Real containers on the real kernel: what is inside, and what the limits do. Needs root and a static busybox.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use common::{Lab, chain};
use rswarm_runtime::oci::{
    Capability, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxSeccompAction, MountBuilder,
    PosixRlimitBuilder, PosixRlimitType, Process, Spec, UserBuilder,
};
use rswarm_runtime::{Containers, Rootfs, ShimCommand, set_capabilities};

fn process(spec: &mut Spec) -> &mut Process {
    spec.process_mut().as_mut().unwrap()
}

#[test]
fn exit_code_and_output_come_back() {
    let Some(lab) = Lab::new() else { return };
    let (code, text) = lab.run(&lab.script("one", "echo hello; echo oops >&2; exit 7"));
    assert_eq!(code, 7);
    assert!(text.contains("hello\n") && text.contains("oops\n"), "{text}");
}

#[test]
fn program_that_cannot_run_is_an_error_of_create_that_says_why() {
    let Some(lab) = Lab::new() else { return };
    std::fs::write(lab.layer().join("etc/plain"), "x").unwrap();
    let cases = [
        ("/bin/nope", "exec `/bin/nope`: no such file or directory"),
        (
            "nope",
            "exec `nope` (searched in `/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`): no such file or directory",
        ),
        ("/etc/plain", "exec `/etc/plain`: permission denied"),
        ("/etc", "exec `/etc`: permission denied"),
    ];
    for (program, expected) in cases {
        let error = lab.containers.create(&lab.request("one", &[program])).unwrap_err();
        assert_eq!(chain(&error), format!("failed to create container `one`: {expected}"));
        assert!(lab.containers.list().unwrap().is_empty());
    }
}

#[test]
fn exec_that_fails_is_an_error_of_start() {
    use std::os::unix::fs::PermissionsExt;
    let Some(lab) = Lab::new() else { return };
    let script = lab.layer().join("bin/broken");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let container = lab.containers.create(&lab.request("one", &["/bin/broken"])).unwrap();
    let error = container.start().unwrap_err();
    assert_eq!(
        chain(&error),
        "failed to start container `one`: exec `/bin/broken`: no such file or directory"
    );
    assert_eq!(container.wait().unwrap().code, Some(127));
}

#[test]
fn unusable_parts_of_the_configuration_are_refused_by_name() {
    let Some(lab) = Lab::new() else { return };
    let mut hooks = lab.request("one", &["true"]);
    let hook = serde_json::from_value(serde_json::json!({ "poststop": [{ "path": "/bin/true" }] }));
    hooks.spec.set_hooks(hook.unwrap());
    let mut layer = lab.request("one", &["true"]);
    layer.rootfs = Rootfs::Directory("/no/such/root".into());
    let mut volume = lab.request("one", &["true"]);
    let bind = MountBuilder::default().destination("/data").source("/no/such/volume").typ("bind");
    volume.spec.mounts_mut().as_mut().unwrap().push(bind.build().unwrap());
    let cases = [
        (hooks, "`hooks` is not supported yet"),
        (layer, "use `/no/such/root` as root file system: no such file or directory"),
        (volume, "bind mount `/no/such/volume` on `/data`: no such file or directory"),
    ];
    for (request, expected) in cases {
        let error = chain(&lab.containers.create(&request).unwrap_err());
        assert!(error.ends_with(expected), "{error}");
        assert!(lab.containers.list().unwrap().is_empty());
    }
}

#[test]
fn container_is_alone_in_its_namespaces() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script(
        "one",
        "echo pid $$; hostname; for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done; \
         ls /proc | grep -c '^[0-9]'; ip link | grep -c ^[0-9]; ip link show lo; grep -c . /proc/mounts; \
         cat /proc/self/cgroup; ls -a /proc/self/fd | wc -l",
    );
    request.spec.set_hostname(Some("inside".to_owned()));
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("pid 1\ninside\n"), "{text}");
    for kind in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(!text.contains(ours.to_str().unwrap()), "shares the {kind} namespace: {text}");
    }
    assert!(text.contains("<LOOPBACK,UP"), "{text}");
    assert!(!text.contains("rswarm-test"), "sees the host's cgroup path: {text}");
    // `.`, `..`, 0, 1, 2 and the directory itself: no descriptor of the shim.
    assert!(text.ends_with("\n6\n"), "{text}");
}

#[test]
fn without_a_network_namespace_the_host_network_is_used() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script("one", "readlink /proc/self/ns/net");
    let linux = request.spec.linux_mut().as_mut().unwrap();
    let mut namespaces = linux.namespaces().clone().unwrap();
    namespaces.retain(|namespace| namespace.typ() != rswarm_runtime::oci::LinuxNamespaceType::Network);
    linux.set_namespaces(Some(namespaces));
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(lab.run(&request).1.trim(), ours.to_str().unwrap());
}

#[test]
fn network_namespace_can_be_entered_between_create_and_start() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.containers.create(&lab.script("one", "readlink /proc/self/ns/net")).unwrap();
    let pid = container.pid().unwrap();
    let seen = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    container.start().unwrap();
    container.wait().unwrap();
    assert_eq!(common::output(&container).trim(), seen.to_str().unwrap());
}

#[test]
fn capabilities_are_dockers_and_seccomp_is_on() {
    let Some(lab) = Lab::new() else { return };
    let (_, text) = lab.run(&lab.script("one", "cat /proc/self/status"));
    // CHOWN..AUDIT_WRITE as `docker run alpine grep Cap /proc/self/status` shows them.
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
    ] {
        assert!(text.contains(line), "expected {line} in {text}");
    }
    let mut request = lab.script("two", "cat /proc/self/status");
    set_capabilities(&mut request.spec, &[Capability::NetBindService]);
    process(&mut request.spec).set_no_new_privileges(Some(true));
    let (_, text) = lab.run(&request);
    assert!(text.contains("CapEff:\t0000000000000400") && text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(text.contains("Seccomp:\t2"), "{text}");
}

#[test]
fn seccomp_refuses_what_docker_refuses() {
    let Some(lab) = Lab::new() else { return };
    let script = "unshare -U true; echo $?; mount -t tmpfs x /tmp; echo $?; echo alive";
    let (_, text) = lab.run(&lab.script("one", script));
    assert!(text.matches("Operation not permitted").count() >= 1, "{text}");
    assert_eq!(text.lines().filter(|line| matches!(*line, "1" | "alive")).count(), 3, "{text}");
    // The profile, and not a lack of capabilities, is what refuses a user namespace: without it, it works.
    let mut request = lab.script("two", "unshare -U true && echo made");
    request.spec.linux_mut().as_mut().unwrap().set_seccomp(None);
    assert_eq!(lab.run(&request).1, "made\n");
    // A profile that kills.
    let mut request = lab.script("three", "mkdir /tmp/x 2>/dev/null; busybox mkdir /tmp/x; exit 3");
    let mut profile = rswarm_runtime::seccomp::docker_default(&[]);
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow).set_default_errno_ret(None);
    let kill = rswarm_runtime::oci::LinuxSyscallBuilder::default()
        .names(vec!["mkdir".to_owned(), "mkdirat".to_owned()])
        .action(LinuxSeccompAction::ScmpActKillProcess)
        .build()
        .unwrap();
    profile.set_syscalls(Some(vec![kill]));
    request.spec.linux_mut().as_mut().unwrap().set_seccomp(Some(profile));
    common::edit_args(&mut request.spec, &["/bin/busybox", "mkdir", "/tmp/x"]);
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    assert_eq!(container.wait().unwrap().signal, Some(libc::SIGSYS));
}

#[test]
fn kernel_interfaces_are_masked_or_read_only() {
    let Some(lab) = Lab::new() else { return };
    let script = "wc -c < /proc/timer_list; ls /proc/acpi | wc -l; ls /sys/firmware | wc -l; wc -c < /proc/keys; \
                  echo 1 > /proc/sys/kernel/panic; touch /sys/x; \
                  touch /sys/fs/cgroup/x; mknod /tmp/disk b 254 0 && dd if=/tmp/disk bs=1 count=1";
    let (code, text) = lab.run(&lab.script("one", script));
    assert_ne!(code, 0);
    // A path that this kernel does not have is as good as an empty one.
    let hidden = text.lines().filter(|line| *line == "0").count() + text.matches("No such file").count();
    assert!(
        hidden >= 4 && !text.lines().any(|line| line.trim().parse::<u32>().is_ok_and(|n| n > 0)),
        "{text}"
    );
    for refused in [
        "/proc/sys/kernel/panic: Read-only",
        "/sys/x: Read-only",
        "/sys/fs/cgroup/x: Read-only",
        "'/tmp/disk': Operation not permitted",
    ] {
        assert!(text.contains(refused), "expected {refused} in {text}");
    }
}

#[test]
fn devices_and_mounts_are_there() {
    let Some(lab) = Lab::new() else { return };
    let script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
                  for l in fd stdout ptmx; do readlink /dev/$l; done; \
                  ls -d /dev/full /dev/random /dev/tty /dev/pts/ptmx /dev/shm /dev/mqueue /sys/fs/cgroup/*; \
                  touch /dev/shm/x && cat /proc/mounts";
    let (code, text) = lab.run(&lab.script("one", script));
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("3\n3\n/proc/self/fd\n/proc/self/fd/1\npts/ptmx\n"), "{text}");
    for mount in [
        "proc /proc proc rw,nosuid,nodev,noexec",
        "sysfs /sys sysfs ro,nosuid,nodev,noexec",
        "devpts /dev/pts devpts rw,nosuid,noexec",
        "/dev/mqueue mqueue rw",
        "overlay / overlay rw",
        "size=65536k",
    ] {
        assert!(text.contains(mount), "expected {mount} in {text}");
    }
    // Nothing of the host shows through, and nothing of the container shows on the host.
    assert!(!text.contains(lab.directory.path().to_str().unwrap()), "{text}");
    let host = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!host.contains(lab.directory.path().to_str().unwrap()), "{host}");
}

#[test]
fn user_groups_directory_umask_and_limits_are_as_asked() {
    let Some(lab) = Lab::new() else { return };
    let script =
        "id; pwd; umask; ulimit -n; ulimit -Hn; echo to stdout > /dev/stdout; cat /proc/self/status; echo $X";
    let mut request = lab.script("one", script);
    let user =
        UserBuilder::default().uid(1000u32).gid(1001u32).additional_gids(vec![20u32, 30]).umask(0o077u32);
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(100u64).hard(200u64);
    let process = process(&mut request.spec);
    process
        .set_user(user.build().unwrap())
        .set_cwd("/made/for/me".into())
        .set_env(Some(vec!["PATH=/bin".to_owned(), "X=a b".to_owned()]))
        .set_rlimits(Some(vec![limit.build().unwrap()]))
        .set_oom_score_adj(Some(500));
    let (code, text) = lab.run(&request);
    assert_eq!(code, 0, "{text}");
    let expected = "uid=1000 gid=1001 groups=20,30\n/made/for/me\n0077\n100\n200\nto stdout\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000") && text.ends_with("a b\n"), "{text}");
}

#[test]
fn missing_privilege_of_the_host_is_named() {
    let Some(lab) = Lab::new() else { return };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(line, 16).unwrap() & 1 << 24 != 0 {
        eprintln!("skipped: needs a root without CAP_SYS_RESOURCE");
        return;
    }
    let mut request = lab.request("one", &["true"]);
    process(&mut request.spec).set_oom_score_adj(Some(-500));
    let error = chain(&lab.containers.create(&request).unwrap_err());
    assert!(error.contains("set oom_score_adj to -500") && error.contains("CAP_SYS_RESOURCE"), "{error}");
}

#[test]
fn read_only_root_refuses_writes_and_volumes_take_them() {
    let Some(lab) = Lab::new() else { return };
    let volume = lab.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("given"), "from the host").unwrap();
    let script =
        "cat /data/given; touch /data/made; touch /x; touch /frozen/x; touch /scratch/x && echo scratched";
    let mut request = lab.script("one", script);
    request.spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
    let mount = |destination: &str, kind: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(volume.clone())
            .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
            .build()
            .unwrap()
    };
    let mounts = request.spec.mounts_mut().as_mut().unwrap();
    mounts.push(mount("/data", "bind", &["rbind", "rprivate"]));
    mounts.push(mount("/frozen", "bind", &["bind", "ro"]));
    mounts.push(mount("/scratch", "tmpfs", &["size=1m", "mode=1777"]));
    let (_, text) = lab.run(&request);
    assert!(text.contains("from the host"), "{text}");
    assert!(text.contains("/x: Read-only") && text.contains("/frozen/x: Read-only"), "{text}");
    assert!(text.contains("scratched\n"), "{text}");
    assert!(volume.join("made").exists());
}

#[test]
fn links_of_an_image_cannot_redirect_mounts_to_the_host() {
    let Some(lab) = Lab::new() else { return };
    let target = lab.directory.path().join("host");
    std::fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, lab.layer().join("data")).unwrap();
    std::fs::remove_dir(lab.layer().join("dev")).unwrap();
    std::os::unix::fs::symlink("../../../../../../..", lab.layer().join("dev")).unwrap();
    let mut request = lab.request("one", &["/bin/true"]);
    let mount =
        MountBuilder::default().destination("/data/inner").typ("tmpfs").source("tmpfs").build().unwrap();
    request.spec.mounts_mut().as_mut().unwrap().push(mount);
    // It may fail or not, but it must not touch the host.
    if let Ok(container) = lab.containers.create(&request) {
        container.delete().unwrap();
    }
    assert!(std::fs::read_dir(&target).unwrap().next().is_none());
}

#[test]
fn overlay_of_many_layers_is_one_tree_and_leaves_them_alone() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script("one", "cat /etc/layer; ls /etc | wc -l; echo changed > /etc/layer");
    let mut layers = Vec::new();
    for number in 0..200 {
        // Names this long would need five pages of mount options.
        let layer = lab.directory.path().join(format!("layer-{number:0100}"));
        std::fs::create_dir_all(layer.join("etc")).unwrap();
        std::fs::write(layer.join("etc/layer"), format!("{number}\n")).unwrap();
        std::fs::write(layer.join(format!("etc/{number}")), "").unwrap();
        layers.push(layer);
    }
    let top = layers[0].join("etc/layer");
    layers.push(lab.layer());
    let Rootfs::Overlay { lower, upper, .. } = &mut request.rootfs else { unreachable!() };
    *lower = layers;
    let upper = upper.clone();
    assert_eq!(lab.run(&request).1, "0\n201\n");
    assert_eq!(std::fs::read_to_string(top).unwrap(), "0\n");
    assert_eq!(std::fs::read_to_string(upper.join("etc/layer")).unwrap(), "changed\n");
}

#[test]
fn limits_are_set_and_statistics_come_from_the_same_place() {
    let Some(lab) = Lab::new() else { return };
    let mut request =
        lab.script("one", "(sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 &); exec sleep 1000");
    let resources = request.spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap();
    resources.set_memory(Some(LinuxMemoryBuilder::default().limit(32i64 << 20).build().unwrap()));
    resources.set_pids(Some(LinuxPidsBuilder::default().limit(4i64).build().unwrap()));
    let cpu = LinuxCpuBuilder::default().shares(512u64).quota(50_000i64).period(100_000u64).build().unwrap();
    resources.set_cpu(Some(cpu));
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    // The shell and three of its children; the fourth is refused.
    common::eventually("the fork is refused", || common::output(&container).contains("can't fork"));
    let stats = container.stats().unwrap();
    assert_eq!(stats.memory_limit_bytes, Some(32 << 20));
    assert!(stats.memory_bytes.unwrap() > 0 && stats.cpu_nanos.unwrap() > 0);
    assert!(stats.pids.unwrap() <= 4);
    let layout = rswarm_runtime::cgroup::Layout::detect().unwrap();
    let cgroup = rswarm_runtime::cgroup::Cgroup::at(&layout, &request.cgroup);
    let read = |controller: &str, file: &str| {
        let member =
            cgroup.members.iter().find(|member| member.controllers.iter().any(|name| name == controller));
        member.map(|member| std::fs::read_to_string(member.directory.join(file)).unwrap().trim().to_owned())
    };
    if !layout.v1.is_empty() {
        assert_eq!(read("cpu", "cpu.shares").as_deref(), Some("512"));
        assert_eq!(read("cpu", "cpu.cfs_quota_us").as_deref(), Some("50000"));
        assert_eq!(read("pids", "pids.max").as_deref(), Some("4"));
    }
    container.delete().unwrap();
    assert!(cgroup.members.iter().all(|member| !member.directory.exists()));
}

#[test]
fn running_out_of_memory_is_told_from_other_kills() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.request("one", &["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    let resources = request.spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap();
    resources.set_memory(Some(
        LinuxMemoryBuilder::default().limit(16i64 << 20).swap(16i64 << 20).build().unwrap(),
    ));
    let container = lab.containers.create(&request).unwrap();
    container.start().unwrap();
    let status = container.wait().unwrap();
    assert!(status.oom_killed, "{status:?}");
    assert_eq!(status.signal, Some(libc::SIGKILL));
}

#[test]
fn sysctls_of_namespaces_are_set_and_others_refused() {
    let Some(lab) = Lab::new() else { return };
    let sysctl = |request: &mut rswarm_runtime::CreateRequest, name: &str, value: &str| {
        let map = [(name.to_owned(), value.to_owned())].into_iter().collect();
        request.spec.linux_mut().as_mut().unwrap().set_sysctl(Some(map));
    };
    let mut request = lab.script("one", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    sysctl(&mut request, "net.ipv4.ip_unprivileged_port_start", "0");
    assert_eq!(lab.run(&request).1, "0\n");
    let mut request = lab.request("two", &["true"]);
    sysctl(&mut request, "kernel.panic", "7");
    let error = chain(&lab.containers.create(&request).unwrap_err());
    assert!(error.contains("`linux.sysctl` has the invalid value `kernel.panic`"), "{error}");
}

#[test]
fn the_hosts_executable_cannot_be_written_from_inside() {
    use std::os::fd::AsRawFd;
    let Some(lab) = Lab::new() else { return };
    // An executable of its own, so that only this test's processes keep it busy.
    let executable = lab.directory.path().join("shim");
    common::copy_program(env!("CARGO_BIN_EXE_rswarm-runtime-shim"), &executable);
    let shim = ShimCommand { executable: executable.clone(), args: Vec::new() };
    let containers = Containers::new(lab.directory.path().join("sealed"), shim);
    let container = containers.create(&lab.request("one", &["true"])).unwrap();
    let pid = container.pid().unwrap();
    // The attack (CVE-2019-5736): keep a handle of the program that is about to become ours, write when it is idle.
    let handle = rustix::fs::open(
        format!("/proc/{pid}/exe"),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    container.delete().unwrap();
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mut refused = None;
    common::eventually("the executable is idle", || {
        let result = std::fs::OpenOptions::new().write(true).open(&path);
        refused = result.err().and_then(|error| error.raw_os_error());
        refused != Some(libc::ETXTBSY)
    });
    assert_eq!(refused, Some(libc::EROFS));
    // The file itself is writable: it is the way through the process that is closed.
    std::fs::OpenOptions::new().write(true).open(&executable).unwrap();
}

#[test]
fn root_file_system_may_be_a_plain_directory_and_the_state_directory_deep() {
    let Some(lab) = Lab::new() else { return };
    let deep = lab.directory.path().join("a-long-name-of-a-directory/".repeat(8));
    let shim = ShimCommand { executable: env!("CARGO_BIN_EXE_rswarm-runtime-shim").into(), args: Vec::new() };
    let containers = Containers::new(&deep, shim);
    let mut request = lab.script("one", "echo kept > /etc/new");
    request.rootfs = Rootfs::Directory(lab.layer());
    let container = containers.create(&request).unwrap();
    container.start().unwrap();
    assert_eq!(container.wait().unwrap().code, Some(0));
    assert_eq!(containers.open("one").unwrap().wait().unwrap().code, Some(0));
    container.delete().unwrap();
    assert_eq!(std::fs::read_to_string(lab.layer().join("etc/new")).unwrap(), "kept\n");
}

#[test]
fn without_a_pid_namespace_nothing_outlives_the_first_process() {
    let Some(lab) = Lab::new() else { return };
    let mut request = lab.script("one", "(trap '' HUP TERM; exec sleep 1000) & echo $!; exit 3");
    let linux = request.spec.linux_mut().as_mut().unwrap();
    let mut namespaces = linux.namespaces().clone().unwrap();
    namespaces.retain(|namespace| namespace.typ() != rswarm_runtime::oci::LinuxNamespaceType::Pid);
    linux.set_namespaces(Some(namespaces));
    let (code, text) = lab.run(&request);
    assert_eq!(code, 3);
    let orphan: u32 = text.trim().parse().unwrap();
    common::eventually("the orphan is gone", || !std::path::Path::new(&format!("/proc/{orphan}")).exists());
}
