use std::path::Path;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder,
};

use super::*;

const HYBRID: &str = "\
24 1 0:21 / /proc rw,relatime - proc proc rw
30 25 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
35 30 0:31 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
36 30 0:32 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
37 30 0:28 / /a\\040second/memory rw,relatime - cgroup cgroup rw,memory
";

fn resources() -> LinuxResources {
    let device =
        LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).major(1i64).minor(3i64);
    LinuxResourcesBuilder::default()
        .memory(
            LinuxMemoryBuilder::default().limit(1000i64).swap(3000i64).reservation(500i64).build().unwrap(),
        )
        .cpu(
            LinuxCpuBuilder::default()
                .shares(1024u64)
                .quota(50_000i64)
                .period(100_000u64)
                .cpus("0-1")
                .build()
                .unwrap(),
        )
        .pids(LinuxPidsBuilder::default().limit(7i64).build().unwrap())
        .devices(vec![
            LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().unwrap(),
            device.access("rw").build().unwrap(),
        ])
        .build()
        .unwrap()
}

#[test]
fn the_place_of_a_process_is_found_by_controller() {
    let layout = Layout { unified_controllers: vec!["io".to_owned()], ..Layout::parse(HYBRID) };
    let text = "5:memory:/m\n3:cpu,cpuacct:/c/d\n1:name=systemd:/s\n0::/user\n";
    for (controller, expected) in [
        ("memory", Some("/sys/fs/cgroup/memory/m")),
        ("cpuacct", Some("/sys/fs/cgroup/cpu,cpuacct/c/d")),
        ("io", Some("/sys/fs/cgroup/unified/user")),
        ("freezer", Some("/sys/fs/cgroup/unified/user")),
        // In no line, and on no host.
        ("pids", None),
        ("rdma", None),
    ] {
        assert_eq!(layout.find(text, controller).as_deref(), expected.map(Path::new), "{controller}");
    }
}

fn rendered(plan: &CgroupPlan) -> Vec<String> {
    plan.limits.iter().map(|write| format!("{} = {}", write.path.display(), write.value)).collect()
}

#[test]
fn hybrid_host_is_recognised() {
    let layout = Layout::parse(HYBRID);
    let names: Vec<String> = layout.v1.iter().map(|hierarchy| hierarchy.controllers.join("+")).collect();
    assert_eq!(names, ["cpu+cpuacct", "memory", "pids", "devices", "name=systemd"]);
    assert_eq!(layout.v1[1].mount, Path::new("/sys/fs/cgroup/memory"));
    assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    let v2 = Layout::parse("29 22 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
    assert!(v2.v1.is_empty() && v2.unified.is_some());
}

#[test]
fn limits_on_v1() {
    let mut resources = resources();
    resources.cpu_mut().as_mut().unwrap().set_cpus(None);
    let plan = plan(&Layout::parse(HYBRID), "/rswarm/n/t", Some(&resources)).unwrap();
    let expected = [
        "/sys/fs/cgroup/memory/rswarm/n/t/memory.limit_in_bytes = 1000",
        "/sys/fs/cgroup/memory/rswarm/n/t/memory.memsw.limit_in_bytes = 3000",
        "/sys/fs/cgroup/memory/rswarm/n/t/memory.soft_limit_in_bytes = 500",
        "/sys/fs/cgroup/cpu,cpuacct/rswarm/n/t/cpu.shares = 1024",
        "/sys/fs/cgroup/cpu,cpuacct/rswarm/n/t/cpu.cfs_period_us = 100000",
        "/sys/fs/cgroup/cpu,cpuacct/rswarm/n/t/cpu.cfs_quota_us = 50000",
        "/sys/fs/cgroup/pids/rswarm/n/t/pids.max = 7",
        "/sys/fs/cgroup/devices/rswarm/n/t/devices.deny = a *:* rwm",
        "/sys/fs/cgroup/devices/rswarm/n/t/devices.allow = c 1:3 rw",
    ];
    assert_eq!(rendered(&plan), expected);
    assert_eq!(plan.device_program, None);
    assert_eq!(plan.cgroup.members.len(), 6);
}

#[test]
fn limits_on_v2() {
    let layout = Layout { unified: Some("/c".into()), ..Default::default() };
    let plan = plan(&layout, "/rswarm/n/t", Some(&resources())).unwrap();
    let expected = [
        "/c/rswarm/n/t/memory.max = 1000",
        "/c/rswarm/n/t/memory.swap.max = 2000",
        "/c/rswarm/n/t/memory.low = 500",
        "/c/rswarm/n/t/cpu.weight = 39",
        "/c/rswarm/n/t/cpu.max = 50000 100000",
        "/c/rswarm/n/t/cpuset.cpus = 0-1",
        "/c/rswarm/n/t/pids.max = 7",
    ];
    assert_eq!(rendered(&plan), expected);
    assert_eq!(plan.device_program.map(|rules| rules.len()), Some(2));
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    let layout = Layout::parse(HYBRID);
    let refusal = |path: &str, resources: &LinuxResources| {
        plan(&layout, path, Some(resources)).unwrap_err().to_string()
    };
    let missing = refusal("/t", &resources());
    assert_eq!(
        missing,
        "`linux.resources.cpu.cpus` needs the cgroup controller `cpuset`, which this host does not have"
    );
    let empty = LinuxResources::default();
    for path in ["", "/", "/.", "rswarm/t", "/a/../b"] {
        let expected =
            format!("`linux.cgroupsPath` has the invalid value `{path}`: expected a path of a cgroup");
        assert!(refusal(path, &empty).starts_with(&expected), "{path}");
    }
    let plain = plan(&layout, "/a/b", None).unwrap();
    for path in ["/a/b/", "//a//b", "/a/./b"] {
        assert_eq!(plan(&layout, path, None).unwrap(), plain, "{path}");
    }
}

/// A directory tree that looks like a v2 host. Unlike the kernel's, its files must be made by hand.
fn fake_v2(root: &Path) -> Layout {
    fs::write(root.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n").unwrap();
    fs::write(root.join("cgroup.subtree_control"), "").unwrap();
    Layout { unified: Some(root.to_owned()), ..Default::default() }
}

#[test]
fn v2_controllers_are_handed_down_to_the_parent_only() {
    let root = tempfile::tempdir().unwrap();
    let layout = fake_v2(root.path());
    plan(&layout, "/rswarm/n/t", None).unwrap().perform(None).unwrap();
    let enabled = |path: &str| fs::read_to_string(root.path().join(path).join("cgroup.subtree_control")).ok();
    let expected = Some("+cpu +cpuset +io +memory +pids".to_owned());
    assert_eq!(enabled(""), expected);
    assert_eq!(enabled("rswarm"), expected);
    assert_eq!(enabled("rswarm/n"), expected);
    assert_eq!(enabled("rswarm/n/t"), None);
}

#[test]
fn limit_without_its_file_is_an_error_that_names_both() {
    let root = tempfile::tempdir().unwrap();
    let layout = fake_v2(root.path());
    let mut resources = LinuxResources::default();
    resources.set_pids(Some(LinuxPidsBuilder::default().limit(7i64).build().unwrap()));
    let plan = plan(&layout, "/t", Some(&resources)).unwrap();
    let failure = plan.perform(None).unwrap_err().to_string();
    let file = root.path().join("t/pids.max");
    assert_eq!(
        failure,
        format!(
            "write `7` to `{}` for `linux.resources.pids.limit`: no such file or directory",
            file.display()
        )
    );
    fs::write(&file, "").unwrap();
    // A directory with files in it cannot be removed here, so creating it again fails no earlier than the kernel's.
    plan.limits.iter().try_for_each(Write::perform).unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), "7");
}

#[test]
fn counters_are_read_on_both_versions() {
    let root = tempfile::tempdir().unwrap();
    let layout = fake_v2(root.path());
    let v2 = Cgroup::at(&layout, "/t");
    let directory = root.path().join("t");
    fs::create_dir(&directory).unwrap();
    assert_eq!(v2.oom_kills(), 0);
    for (file, text) in [
        ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("memory.current", "4096\n"),
        ("memory.max", "max\n"),
        ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
        ("pids.current", "3\n"),
    ] {
        fs::write(directory.join(file), text).unwrap();
    }
    assert_eq!(v2.oom_kills(), 2);
    let expected = Stats {
        memory_bytes: Some(4096),
        memory_limit_bytes: None,
        cpu_nanos: Some(1_500_000),
        pids: Some(3),
    };
    assert_eq!(v2.stats(), expected);

    let hierarchy = Hierarchy { controllers: vec!["memory".to_owned()], mount: root.path().to_owned() };
    let v1 = Cgroup::at(&Layout { v1: vec![hierarchy], ..Default::default() }, "/t");
    fs::write(directory.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
    fs::write(directory.join("memory.usage_in_bytes"), "10\n").unwrap();
    fs::write(directory.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
    assert_eq!(v1.oom_kills(), 1);
    assert_eq!(v1.stats(), Stats { memory_bytes: Some(10), ..Default::default() });
}

#[test]
fn device_program_is_taken_by_the_kernel_and_decides() {
    let host = Layout::detect().unwrap();
    let (true, Some(unified)) = (rustix::process::geteuid().is_root(), host.unified) else {
        eprintln!("skipped: needs root and a mounted v2 cgroup tree");
        return;
    };
    struct Remove(PathBuf);
    impl Drop for Remove {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }
    let directory = Remove(unified.join(format!("rswarm-devices-{}", std::process::id())));
    fs::create_dir(&directory.0).unwrap();
    let rule = |allow: bool, typ, major: i64, minor: i64, access: &str| {
        let builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        builder.major(major).minor(minor).build().unwrap()
    };
    let rules = [
        LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().unwrap(),
        rule(true, LinuxDeviceType::C, 1, 3, "r"),
        rule(true, LinuxDeviceType::C, 1, 3, "w"), // together with the rule before: reading and writing
        rule(true, LinuxDeviceType::C, 1, 5, "r"),
        rule(true, LinuxDeviceType::B, 1, 9, "rwm"), // a block device with the numbers of urandom
        rule(true, LinuxDeviceType::C, 1, -1, "m"),
        rule(false, LinuxDeviceType::C, 1, 7, "m"),
    ];
    let opened = fs::File::open(&directory.0).unwrap();
    if let Err(error) = sys::attach_device_program(opened.as_fd(), &devices::compile(&rules)) {
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "the kernel refuses the program: {error}");
        eprintln!("skipped: needs a kernel with CONFIG_CGROUP_BPF ({error})");
        return;
    }
    let node = directory.0.file_name().unwrap().to_str().unwrap();
    let script = format!(
        "echo $$ > {}/cgroup.procs; t() {{ \"$@\" 2>/dev/null && echo -n y || echo -n n; }}
        t sh -c ': < /dev/null'; t sh -c ': > /dev/null'; t sh -c ': <> /dev/null'
        t sh -c ': < /dev/zero'; t sh -c ': <> /dev/zero'; t sh -c ': < /dev/urandom'; t sh -c ': < /dev/full'
        for n in 3 7; do t mknod /tmp/{node} c 1 $n; rm -f /tmp/{node}; done",
        directory.0.display()
    );
    let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    // The helper `t` itself writes to /dev/null, which is allowed.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "yyyynnnyn");
}

#[test]
fn a_cpuset_whose_parent_another_container_has_just_made_is_filled_from_above() {
    let root = tempfile::tempdir().unwrap();
    let (parent, child) = (root.path().join("parent"), root.path().join("parent/child"));
    fs::create_dir_all(&child).unwrap();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fs::write(root.path().join(file), "0-1\n").unwrap();
        fs::write(parent.join(file), "\n").unwrap();
        fs::write(child.join(file), "\n").unwrap();
    }
    inherit_cpuset(&child).unwrap();
    for directory in [&parent, &child] {
        assert_eq!(fs::read_to_string(directory.join("cpuset.cpus")).unwrap().trim(), "0-1");
        assert_eq!(fs::read_to_string(directory.join("cpuset.mems")).unwrap().trim(), "0-1");
    }
}

/// On a node with few containers the last one often goes while the next one comes.
#[test]
fn parents_that_are_pruned_meanwhile_are_made_again() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    const ROUNDS: usize = 400;
    let layout = Layout::detect().unwrap();
    let parent = format!("rswarm-test-prune-{}", std::process::id());
    let come_and_go = |name: &str| -> Vec<String> {
        let cgroup = Cgroup::at(&layout, &format!("/{parent}/node/{name}"));
        let come = |_| {
            let made = cgroup.create(&[], &[]);
            cgroup.remove().unwrap();
            cgroup.prune_parents();
            made.err().map(|failure| failure.to_string())
        };
        (0..ROUNDS).filter_map(come).collect()
    };
    let failures = std::thread::scope(|scope| {
        let other = scope.spawn(|| come_and_go("a"));
        [come_and_go("b"), other.join().unwrap()].concat()
    });
    assert!(failures.is_empty(), "{} of {}: {}", failures.len(), 2 * ROUNDS, failures[0]);
    let left = Cgroup::at(&layout, &format!("/{parent}")).members;
    assert!(left.iter().all(|member| !member.directory.exists()), "{left:?}");
}

#[test]
fn the_shims_cgroup_that_is_pruned_meanwhile_is_made_again() {
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
    const ROUNDS: usize = 5000;
    let layout = Layout::detect().unwrap();
    let is_pids = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == "pids");
    let (true, Some(pids)) = (rustix::process::geteuid().is_root(), layout.v1.iter().find(is_pids)) else {
        // On v2 a thread cannot move without its whole process.
        eprintln!("skipped: needs root and the pids controller on cgroup v1");
        return;
    };
    let own = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.split_once(":pids:/")).unwrap().1;
    let home = pids.mount.join(own).join("tasks");
    let parent = pids.mount.join(format!("rswarm-test-shims-{}", std::process::id()));
    let shims = Member {
        controllers: pids.controllers.clone(),
        mount: pids.mount.clone(),
        directory: parent.join(SHIMS),
    };
    let done = AtomicBool::new(false);
    // Each time that is lost takes a removal, and no more are withstood than this many.
    let allowed = AtomicI64::new(0);
    let failures = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for directory in [&shims.directory, &parent] {
                    if allowed.load(Ordering::Relaxed) > 0 && fs::remove_dir(directory).is_ok() {
                        allowed.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let join = |_| {
            allowed.store(i64::from(PRUNED_MAX) / 2, Ordering::Relaxed);
            let joined = shims.make_and_join();
            fs::write(&home, "0").unwrap();
            joined.err().map(|failure| failure.to_string())
        };
        let failures: Vec<String> = (0..ROUNDS).filter_map(join).collect();
        done.store(true, Ordering::Relaxed);
        failures
    });
    let _ = fs::remove_dir(&shims.directory);
    let _ = fs::remove_dir(&parent);
    assert!(failures.is_empty(), "{} of {ROUNDS}: {}", failures.len(), failures[0]);
}

#[test]
fn every_kind_of_resource_has_its_files_on_both_versions() {
    let resources: LinuxResources = serde_json::from_str(
        r#"{
            "memory": { "limit": 0, "swap": 0 },
            "cpu": { "realtimePeriod": 0, "burst": 3000, "idle": 1, "shares": 0 },
            "blockIO": {
                "weight": 300,
                "weightDevice": [{ "major": 8, "minor": 0, "weight": 400 }],
                "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1000 }],
                "throttleWriteIOPSDevice": [{ "major": 8, "minor": 16, "rate": 0 }]
            },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4096 }],
            "rdma": { "mlx5": { "hcaHandles": 3 } },
            "pids": { "limit": -1 }
        }"#,
    )
    .unwrap();
    let hierarchy =
        |name: &str| Hierarchy { controllers: vec![name.to_owned()], mount: format!("/c/{name}").into() };
    let v1 = ["memory", "cpu", "blkio", "pids"].map(hierarchy).to_vec();
    // What no v1 hierarchy has may be found on the v2 side of a hybrid host.
    let unified_controllers = vec!["hugetlb".to_owned(), "rdma".to_owned()];
    let hybrid = Layout { v1, unified: Some("/c/unified".into()), unified_controllers };
    let found = plan(&hybrid, "/t", Some(&resources)).unwrap();
    let expected = [
        "/c/cpu/t/cpu.cfs_burst_us = 3000",
        "/c/cpu/t/cpu.idle = 1",
        "/c/pids/t/pids.max = max",
        "/c/blkio/t/blkio.bfq.weight = 300",
        "/c/blkio/t/blkio.bfq.weight_device = 8:0 400",
        "/c/blkio/t/blkio.throttle.read_bps_device = 8:0 1000",
        "/c/blkio/t/blkio.throttle.write_iops_device = 8:16 0",
        "/c/unified/t/hugetlb.2MB.max = 4096",
        "/c/unified/t/rdma.max = mlx5 hca_handle=3",
    ];
    assert_eq!(rendered(&found), expected);
    assert_eq!(found.controllers, ["hugetlb", "rdma"]);

    let v2 = Layout { unified: Some("/c".into()), ..Default::default() };
    let found = plan(&v2, "/t", Some(&resources)).unwrap();
    let expected = [
        "/c/t/cpu.max.burst = 3000",
        "/c/t/cpu.idle = 1",
        "/c/t/pids.max = max",
        "/c/t/io.bfq.weight = 300",
        "/c/t/io.bfq.weight = 8:0 400",
        "/c/t/io.max = 8:0 rbps=1000",
        "/c/t/io.max = 8:16 wiops=max",
        "/c/t/hugetlb.2MB.max = 4096",
        "/c/t/rdma.max = mlx5 hca_handle=3",
    ];
    assert_eq!(rendered(&found), expected);
    assert_eq!(found.controllers, ["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma"]);
}

#[test]
fn values_that_bound_each_other_are_written_in_the_order_that_works() {
    let host = Layout::detect().unwrap();
    let memory = host.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == "memory"));
    let (true, Some(memory)) = (rustix::process::geteuid().is_root(), memory) else {
        eprintln!("skipped: needs root and a v1 memory controller");
        return;
    };
    struct Remove(PathBuf);
    impl Drop for Remove {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }
    let name = format!("rswarm-rewrite-{}", std::process::id());
    let layout = Layout { v1: vec![memory.clone()], ..Default::default() };
    let directory = Remove(memory.mount.join(&name));
    fs::create_dir(&directory.0).unwrap();
    for (limit, total) in [(64, 64), (128, 256), (16, 32)] {
        let mut resources = LinuxResources::default();
        let memory = LinuxMemoryBuilder::default().limit(limit << 20).swap(total << 20);
        resources.set_memory(Some(memory.build().unwrap()));
        let plan = update(&layout, Cgroup::at(&layout, &format!("/{name}")), Some(&resources)).unwrap();
        plan.change().unwrap();
        let read = |file: &str| read_number(&directory.0.join(file)).unwrap() as i64 >> 20;
        assert_eq!((read("memory.limit_in_bytes"), read("memory.memsw.limit_in_bytes")), (limit, total));
    }
}
