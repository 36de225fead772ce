use super::*;
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};
use rswarm_types::task::{ContainerSpec, Limits, TaskNetwork};
use rswarm_types::{NetworkId, TaskSpec};
use std::sync::Arc;

fn image(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> ImageConfiguration {
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(Vec::<String>::new()).build().unwrap();
    ImageConfigurationBuilder::default()
        .architecture("amd64")
        .os("linux")
        .rootfs(rootfs)
        .history(vec![])
        .config(change(ConfigBuilder::default()).build().unwrap())
        .build()
        .unwrap()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn nginx() -> ImageConfiguration {
    image(|config| {
        config
            .entrypoint(words("/entry"))
            .cmd(words("serve fast"))
            .env(words("PATH=/bin LANG=C"))
            .working_dir("/srv")
            .user("web")
            .stop_signal("SIGQUIT")
    })
}

fn with(change: impl FnOnce(&mut ContainerSpec)) -> Task {
    let mut container = ContainerSpec { image: "web:1".to_owned(), ..ContainerSpec::default() };
    change(&mut container);
    Task { spec: Arc::new(TaskSpec { container, ..TaskSpec::default() }), ..crate::testing::task(1) }
}

fn user() -> User {
    User { uid: 33, gid: 34, additional_gids: vec![4] }
}

fn built(task: &Task, image: &ImageConfiguration) -> Result<Spec, SpecError> {
    let files = [("/node/hosts".to_owned(), "/etc/hosts")];
    let inputs = Inputs {
        task,
        image,
        user: &user(),
        hostname: "box",
        files: &files,
        limits_swap: true,
        node_hostname: "host-1",
    };
    build(&inputs)
}

fn refused(change: impl FnOnce(&mut ContainerSpec), expected: &str) {
    let error = built(&with(change), &nginx()).unwrap_err().to_string();
    assert!(error.contains(expected), "expected {expected:?} in {error:?}");
}

#[test]
fn entrypoint_and_command_follow_docker() {
    let check = |command: &str, args: &str, image: &ImageConfiguration, expected: Result<&str, ()>| {
        let task = with(|c| (c.command, c.args) = (words(command), words(args)));
        let found = arguments(&task, image).map_err(|error| assert!(error.to_string().contains("`web:1`")));
        assert_eq!(found, expected.map(words), "{command:?} {args:?}");
    };
    let bare = image(|config| config);
    check("", "", &nginx(), Ok("/entry serve fast"));
    check("", "other", &nginx(), Ok("/entry other"));
    check("/bin/sh", "", &nginx(), Ok("/bin/sh"));
    check("/bin/sh", "-c true", &nginx(), Ok("/bin/sh -c true"));
    check("", "ls -l", &bare, Ok("ls -l"));
    check("", "", &bare, Err(()));
    check("", "", &image(|config| config.cmd(words("sh"))), Ok("sh"));
}

#[test]
fn a_task_is_told_its_place_unless_it_is_told_otherwise() {
    let task = with(|container| container.env = vec!["RSWARM_TASK_SLOT=own".to_owned()]);
    let mut variables = task.spec.container.env.clone();
    add_place(&mut variables, &task, "host-1");
    assert_eq!(variables[0], "RSWARM_TASK_SLOT=own");
    assert!(variables.contains(&format!("RSWARM_TASK_NAME={}", task.name())), "{variables:?}");
    assert!(variables.contains(&"RSWARM_NODE_HOSTNAME=host-1".to_owned()), "{variables:?}");
    assert_eq!(variables.len(), 6);
}

#[test]
fn environment_is_the_images_then_the_tasks() {
    let task = with(|c| c.env = words("LANG=de NEW=1 HOME=/x EMPTY="));
    let found = environment(&task, &nginx(), "box");
    assert_eq!(found, words("PATH=/bin HOSTNAME=box LANG=de NEW=1 HOME=/x EMPTY="));
    let task = with(|c| c.env = words("LANG PATH"));
    assert_eq!(environment(&task, &nginx(), "box"), words("HOSTNAME=box"));
    let found = environment(&with(|_| {}), &image(|config| config), "box");
    assert_eq!(found[0], DEFAULT_PATH);
    let found = environment(&with(|c| c.tty = true), &nginx(), "box");
    assert!(found.contains(&"TERM=xterm".to_owned()), "{found:?}");
}

#[test]
fn user_directory_and_hostname_have_their_defaults() {
    assert_eq!(user_words(&with(|_| {}), &nginx()), "web");
    assert_eq!(user_words(&with(|c| c.user = "7:8".to_owned()), &nginx()), "7:8");
    assert_eq!(working_directory(&with(|_| {}), &nginx()).unwrap(), "/srv");
    assert_eq!(working_directory(&with(|_| {}), &image(|config| config)).unwrap(), "/");
    assert_eq!(working_directory(&with(|c| c.dir = "/d".to_owned()), &nginx()).unwrap(), "/d");
    refused(|c| c.dir = "d".to_owned(), "absolute working directory, found `d`");
    let task = with(|_| {});
    assert_eq!(hostname(&task, NetworkMode::Own, "node"), task.id.short());
    assert_eq!(hostname(&task, NetworkMode::Host, "node"), "node");
    assert_eq!(hostname(&with(|c| c.hostname = "h".to_owned()), NetworkMode::Host, "node"), "h");
}

#[test]
fn the_service_s_stop_signal_comes_before_the_image_s() {
    assert_eq!(stop_signal(&with(|_| {}), Some(&nginx())), Ok(3));
    assert_eq!(stop_signal(&with(|_| {}), None), Ok(15));
    assert_eq!(stop_signal(&with(|c| c.stop_signal = "INT".to_owned()), Some(&nginx())), Ok(2));
    assert!(stop_signal(&with(|c| c.stop_signal = "NOPE".to_owned()), None).is_err());
}

#[test]
fn capabilities_are_added_to_and_taken_from_the_default() {
    let check = |add: &str, drop: &str| -> Vec<String> {
        let set = capabilities(&words(add), &words(drop)).unwrap();
        set.iter().map(ToString::to_string).collect()
    };
    assert_eq!(check("", "").len(), DEFAULT_CAPABILITIES.len());
    assert_eq!(check("cap_net_admin CHOWN", "").len(), DEFAULT_CAPABILITIES.len() + 1);
    assert!(!check("", "NET_RAW").contains(&"NET_RAW".to_owned()));
    assert_eq!(check("NET_ADMIN", "ALL"), ["NET_ADMIN"]);
    assert_eq!(check("", "all"), Vec::<String>::new());
    assert_eq!(check("ALL", "SYS_ADMIN").len(), ALL_CAPABILITIES.len() - 1);
    refused(|c| c.cap_add = words("CAP_FLY"), "unknown capability `CAP_FLY`");
}

#[test]
fn limits_reach_process_and_cgroup() {
    let mut task = with(|c| {
        let ulimit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
        c.ulimits = vec![ulimit("nofile", 1024, 2048), ulimit("core", 0, -1)];
        c.oom_score_adj = 100;
        c.read_only = true;
        c.tty = true;
    });
    let limits = Limits { nano_cpus: 500_000_000, memory_bytes: 64 << 20, pids: 10 };
    task.spec = Arc::new(TaskSpec { limits, ..TaskSpec::clone(&task.spec) });
    let spec = built(&task, &nginx()).unwrap();
    let process = spec.process().as_ref().unwrap();
    let rlimits: Vec<_> = process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| (limit.typ().to_string(), limit.soft(), limit.hard()))
        .collect();
    let expected = [("RLIMIT_NOFILE".to_owned(), 1024, 2048), ("RLIMIT_CORE".to_owned(), 0, u64::MAX)];
    assert_eq!(rlimits, expected);
    assert_eq!(process.oom_score_adj(), Some(100));
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(process.terminal(), Some(true));
    let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    let memory = resources.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(128 << 20)));
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.quota(), cpu.period()), (Some(50_000), Some(100_000)));
    assert_eq!(serde_json::to_value(resources.pids().unwrap()).unwrap()["limit"], 10);
    assert!(resources.devices().is_some(), "the default device rules stay");
    let ulimit = |name: &str, soft, hard| vec![Ulimit { name: name.to_owned(), soft, hard }];
    refused(|c| c.ulimits = ulimit("wings", 1, 1), "unknown ulimit `wings`");
    refused(|c| c.ulimits = ulimit("nofile", -1, 5), "soft limit to be at most the hard one");
}

#[test]
fn only_sysctls_of_the_container_are_taken() {
    refused(|c| drop(c.sysctls.insert("vm.swappiness".to_owned(), "1".to_owned())), "`vm.swappiness`");
}

fn bind(source: &str, target: &str, read_only: bool) -> rswarm_types::task::Mount {
    rswarm_types::task::Mount {
        kind: MountKind::Bind,
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
    }
}

fn tmpfs(target: &str, size_bytes: u64, mode: u32) -> rswarm_types::task::Mount {
    rswarm_types::task::Mount {
        kind: MountKind::Tmpfs { size_bytes, mode },
        source: String::new(),
        target: target.to_owned(),
        read_only: false,
    }
}

#[test]
fn mounts_come_in_order_and_replace_defaults() {
    let task = with(|c| {
        c.mounts = vec![
            bind("/a", "/data/deep/er/", true),
            bind("/b", "//data/./", false),
            tmpfs("/dev/shm", 1024, 0o700),
            tmpfs("/cache", 0, 0),
            bind("/c", "/etc/hosts", false),
        ];
    });
    let spec = built(&task, &nginx()).unwrap();
    let shown: Vec<String> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| {
            let source = mount.source().clone().unwrap_or_default();
            let options = mount.options().clone().unwrap_or_default().join(",");
            format!("{} {} {options}", mount.destination().display(), source.display())
        })
        .collect();
    let own: Vec<_> = shown.iter().rev().take(5).rev().map(String::as_str).collect();
    assert_eq!(
        own,
        [
            "/cache tmpfs nosuid,nodev,noexec,rw,mode=1777",
            "/data /b rbind,rprivate,rw",
            "/dev/shm tmpfs nosuid,nodev,noexec,rw,mode=700,size=1024",
            "/etc/hosts /c rbind,rprivate,rw",
            "/data/deep/er /a rbind,rprivate,ro",
        ]
    );
    for once in ["/dev/shm ", "/etc/hosts ", "/proc "] {
        assert_eq!(shown.iter().filter(|line| line.starts_with(once)).count(), 1, "{once}");
    }
}

#[test]
fn bad_mounts_are_refused_by_name() {
    for target in ["/", "", "data", "/a/../etc"] {
        refused(|c| c.mounts = vec![bind("/a", target, false)], &format!("invalid mount target `{target}`"));
    }
    refused(
        |c| c.mounts = vec![bind("/a", "/x", false), bind("/b", "/x/", false)],
        "two mounts have the target `/x`",
    );
    refused(|c| c.mounts = vec![bind("a", "/x", false)], "expected an absolute path");
    let mut sourced = tmpfs("/x", 0, 0);
    sourced.source = "/y".to_owned();
    refused(|c| c.mounts = vec![sourced], "a tmpfs has none");
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    refused(|c| c.init = true, "option `--init` is not supported");
}

#[test]
fn the_hosts_network_is_shared_and_not_mixed() {
    let network = |driver| TaskNetwork {
        network: NetworkId::from_bytes([1; 16]),
        name: "n".to_owned(),
        driver,
        address: None,
        aliases: vec![],
        internal: false,
        mtu: None,
        bridge: rswarm_types::network::BridgeOptions::default(),
        joined: false,
    };
    let has_own = |task: &Task| {
        let spec = built(task, &nginx()).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network)
    };
    let joined = |drivers: &[NetworkDriver]| Task {
        networks: drivers.iter().map(|&driver| network(driver)).collect(),
        ..with(|_| {})
    };
    assert!(!has_own(&joined(&[NetworkDriver::Host])));
    for drivers in [&[][..], &[NetworkDriver::None], &[NetworkDriver::Bridge]] {
        assert!(has_own(&joined(drivers)), "{drivers:?}");
    }
    let mixed = joined(&[NetworkDriver::Host, NetworkDriver::Bridge]);
    assert_eq!(built(&mixed, &nginx()).unwrap_err(), SpecError::HostAndOthers);
}
