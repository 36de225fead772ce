use oci_spec::runtime::{Hook, HookBuilder, Hooks, LinuxIdMappingBuilder, LinuxNamespaceType, MountBuilder};

use super::*;
use crate::defaults::default_spec;
use crate::sys::MountAttributes;

/// As for a container with a shim.
fn plan(spec: &Spec) -> Result<Plan, PlanError> {
    refuse_hooks(spec)?;
    create(spec, &Rootfs::Directory("/image".into()), "/state/rootfs".into(), "/rswarm/t", &host())
}

fn host() -> HostFacts {
    let hierarchy = |name: &str| cgroup::Hierarchy {
        controllers: vec![name.to_owned()],
        mount: PathBuf::from(format!("/sys/fs/cgroup/{name}")),
    };
    let cgroups = Layout { v1: vec![hierarchy("devices"), hierarchy("memory")], ..Default::default() };
    HostFacts { cgroups, ..HostFacts::default() }
}

fn position(plan: &Plan, what: &str, wanted: impl Fn(&Inside) -> bool) -> usize {
    plan.inside.iter().position(wanted).unwrap_or_else(|| panic!("no step {what}"))
}

#[test]
fn outside_steps_are_undone_by_what_made_them() {
    let plan = plan(&default_spec()).unwrap();
    let undo: Vec<Undo> = plan.outside.iter().map(Outside::undo).collect();
    assert_eq!(undo, [Undo::RemoveCgroup, Undo::KillInit, Undo::Nothing]);
    let Outside::SpawnInit { namespaces, birth: None } = plan.outside[1] else {
        panic!("{:?}", plan.outside)
    };
    let expected =
        libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    assert_eq!(namespaces, expected as u64);
}

#[test]
fn order_of_what_takes_and_what_drops_privileges() {
    let mut spec = default_spec();
    spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
    let mut order = |no_new_privileges: bool| -> Vec<&'static str> {
        spec.process_mut().as_mut().unwrap().set_no_new_privileges(Some(no_new_privileges));
        let plan = plan(&spec).unwrap();
        let mut steps = vec![
            ("root", position(&plan, "root", |step| matches!(step, Inside::MountRoot { .. }))),
            ("cgroup", position(&plan, "cgroup", |step| matches!(step, Inside::JoinCgroup(_)))),
            ("cgroup namespace", position(&plan, "unshare", |step| matches!(step, Inside::UnshareCgroup))),
            ("mount", position(&plan, "mount", |step| matches!(step, Inside::Mount(_)))),
            ("read-only", position(&plan, "read-only", |step| matches!(step, Inside::ReadonlyPath(_)))),
            ("mask", position(&plan, "mask", |step| matches!(step, Inside::MaskPath { .. }))),
            ("pivot", position(&plan, "pivot", |step| matches!(step, Inside::PivotRoot))),
            ("read-only root", position(&plan, "ro root", |step| matches!(step, Inside::ReadonlyRoot))),
            ("seccomp", position(&plan, "seccomp", |step| matches!(step, Inside::Seccomp(_)))),
            ("bounding", position(&plan, "bounding", |step| matches!(step, Inside::BoundingSet(_)))),
            ("user", position(&plan, "user", |step| matches!(step, Inside::User { .. }))),
            ("capabilities", position(&plan, "caps", |step| matches!(step, Inside::Capabilities { .. }))),
            ("start", position(&plan, "start", |step| matches!(step, Inside::AwaitStart))),
            ("exec", position(&plan, "exec", |step| matches!(step, Inside::Exec { .. }))),
        ];
        steps.sort_by_key(|(_, at)| *at);
        steps.into_iter().map(|(name, _)| name).collect()
    };
    let until =
        ["root", "mount", "cgroup", "cgroup namespace", "read-only", "mask", "pivot", "read-only root"];
    let end = |rest: [&'static str; 6]| until.iter().copied().chain(rest).collect::<Vec<_>>();
    let expected = end(["bounding", "user", "capabilities", "start", "seccomp", "exec"]);
    assert_eq!((order(false), order(true)), (expected.clone(), expected));
}

#[test]
fn mount_options_become_attributes() {
    let mount = |kind: &str, options: &str| {
        let mount = MountBuilder::default()
            .destination("/x")
            .typ(kind)
            .source("/s")
            .options(options.split(',').map(str::to_owned).collect::<Vec<_>>())
            .build()
            .unwrap();
        MountPlan::of(0, &mount, &cgroup::Cgroup::nowhere(), &Namespaces::default())
    };
    let tmpfs = mount("tmpfs", "nosuid,ro,rw,strictatime,mode=755,noswap").unwrap();
    let strict = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME;
    assert_eq!(tmpfs.attributes.set, strict);
    let options = vec![("mode".to_owned(), Some("755".to_owned())), ("noswap".to_owned(), None)];
    let source = Some("/s".to_owned());
    assert_eq!(
        tmpfs.kind,
        MountKind::FileSystem { name: "tmpfs".to_owned(), source, options, copy_up: false }
    );

    let bind = mount("none", "rbind,rro,rslave,nodev").unwrap();
    assert_eq!(bind.kind, MountKind::Bind { source: "/s".into(), recursive: true, ids: None, given: None });
    assert_eq!(bind.attributes.set, libc::MOUNT_ATTR_NODEV);
    let recursive = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: libc::MS_SLAVE };
    assert_eq!(bind.recursive, recursive);

    for (kind, options, expected) in [
        (
            "bind",
            "noexecc",
            "`mounts[0].options` has the invalid value `noexecc`: the option has no meaning for a bind mount",
        ),
        ("bind", "idmap", "`idmap`: to map ids the mount needs mappings, or the container a user namespace"),
        ("bind", "copy-symlink", "`copy-symlink`: the option is not supported"),
        (
            "bind",
            "tmpcopyup",
            "`mounts[0].options` has the invalid value `tmpcopyup`: the option is for a tmpfs",
        ),
        (
            "proc",
            "tmpcopyup",
            "`mounts[0].options` has the invalid value `tmpcopyup`: the option is for a tmpfs",
        ),
        ("tmpfs", "=x", "`=x`: the option has no name"),
        ("", "ro", "`mounts[0].type` has the invalid value ``: a mount that is no bind mount needs one"),
    ] {
        let error = mount(kind, options).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn configuration_that_cannot_be_carried_out_is_refused_by_name() {
    type Edit = fn(&mut Spec);
    let table: [(Edit, &str); 11] = [
        (|spec| _ = spec.set_process(None), "`process` is missing"),
        (|spec| _ = spec.set_linux(None), "`linux` is missing"),
        (
            |spec| {
                let hook: Hook = HookBuilder::default().path("/hook").build().unwrap();
                let mut hooks = Hooks::default();
                hooks.set_poststop(Some(vec![hook]));
                spec.set_hooks(Some(hooks));
            },
            "`hooks` is not supported yet",
        ),
        (|spec| _ = spec.process_mut().as_mut().unwrap().set_args(None), "`process.args` is missing"),
        (
            |spec| _ = spec.process_mut().as_mut().unwrap().set_args(Some(Vec::new())),
            "`process.args` has the invalid value `[]`: expected a program and what it is given",
        ),
        (
            |spec| _ = spec.process_mut().as_mut().unwrap().set_args(Some(vec!["a\0b".to_owned()])),
            "`process.args[0]` has the invalid value `a\\0b`: it contains a zero byte",
        ),
        (
            |spec| _ = spec.process_mut().as_mut().unwrap().set_cwd("tmp".into()),
            "`process.cwd` has the invalid value `tmp`: expected an absolute path without a zero byte",
        ),
        (
            |spec| _ = spec.process_mut().as_mut().unwrap().set_apparmor_profile(Some("x".to_owned())),
            "`process.apparmorProfile` has the invalid value `x`: this kernel has AppArmor neither built in nor switched on",
        ),
        (
            |spec| {
                let mapping = LinuxIdMappingBuilder::default()
                    .host_id(1u32)
                    .container_id(0u32)
                    .size(1u32)
                    .build()
                    .unwrap();
                spec.linux_mut().as_mut().unwrap().set_uid_mappings(Some(vec![mapping]));
            },
            "`linux.uidMappings` has the invalid value `1 ranges`: the container has no user namespace",
        ),
        (
            |spec| _ = spec.linux_mut().as_mut().unwrap().set_namespaces(None),
            "`linux.namespaces: mount` is missing",
        ),
        (
            |spec| {
                let namespaces = spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
                namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Uts);
                spec.set_hostname(Some("host".to_owned()));
            },
            "`hostname` has the invalid value `host`: the container shares this namespace with the host",
        ),
    ];
    for (edit, expected) in table {
        let mut spec = default_spec();
        edit(&mut spec);
        assert_eq!(plan(&spec).unwrap_err().to_string(), expected);
    }
}

#[test]
fn default_spec_is_dockers() {
    let spec = default_spec();
    let capabilities = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
    // CapEff of `docker run alpine`.
    assert_eq!(program::bits(capabilities.effective().as_ref()), 0xa804_25fb);
    // It survives the way to the shim.
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}

#[test]
fn a_terminal_is_made_while_the_containers_devpts_can_be_reached_safely() {
    let mut spec = default_spec();
    let mut without = plan(&spec).unwrap();
    assert_eq!(add_terminal(&mut without, &spec), Ok(false));
    spec.process_mut().as_mut().unwrap().set_terminal(Some(true));
    let mut with = plan(&spec).unwrap();
    assert_eq!(with, without);
    assert_eq!(add_terminal(&mut with, &spec), Ok(true));
    let made = position(&with, "terminal", |step| matches!(step, Inside::Terminal { .. }));
    assert_eq!(with.inside[made + 1], Inside::PivotRoot);
}

#[test]
fn labels_come_after_the_hooks_of_the_host_and_before_what_others_have_for_proc() {
    let facts = HostFacts { apparmor: true, selinux: true, ..host() };
    let mut spec = default_spec();
    let process = spec.process_mut().as_mut().unwrap();
    process.set_apparmor_profile(Some("a".to_owned())).set_selinux_label(Some("s".to_owned()));
    let keys = Label::Keys("s".to_owned());
    let program = [Label::AppArmor("a".to_owned()), Label::Selinux("s".to_owned())];
    let completed = |spec: &Spec| {
        let rootfs = Rootfs::Directory("/image".into());
        let mut plan = create(spec, &rootfs, "/state/rootfs".into(), "/rswarm/t", &facts).unwrap();
        let callers =
            Callers { id: "x".to_owned(), bundle: "/b".into(), no_pivot: false, keep_keyring: false };
        complete(&mut plan, spec, &callers).unwrap();
        plan
    };
    let hook: Hook = HookBuilder::default().path("/hook").build().unwrap();
    let mut hooks = Hooks::default();
    hooks.set_create_container(Some(vec![hook]));
    spec.set_hooks(Some(hooks));
    let plan = completed(&spec);
    let at = |wanted: &Label| {
        position(&plan, "label", |step| matches!(step, Inside::Label(label) if label == wanted))
    };
    let keyring = position(&plan, "keyring", |step| matches!(step, Inside::SessionKeyring(_)));
    let hooks = position(&plan, "hooks", |step| matches!(step, Inside::RunHooks(_)));
    let pivot = position(&plan, "pivot", |step| matches!(step, Inside::PivotRoot));
    let order = [at(&keys), keyring, hooks, at(&program[0]), at(&program[1]), pivot];
    assert!(order.is_sorted(), "{order:?}");

    // In a mount namespace of others, the process has its labels when it is born.
    spec.set_hooks(None).set_mounts(None);
    let linux = spec.linux_mut().as_mut().unwrap();
    linux.set_masked_paths(None).set_readonly_paths(None).set_devices(None);
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if namespace.typ() == LinuxNamespaceType::Mount {
            namespace.set_path(Some("/proc/7/ns/mnt".into()));
        }
    }
    let plan = completed(&spec);
    assert!(!plan.inside.iter().any(|step| matches!(step, Inside::Label(_))), "{:?}", plan.inside);
    let born = plan.outside.iter().find_map(|step| match step {
        Outside::SpawnInit { birth, .. } => birth.as_ref(),
        _ => None,
    });
    assert_eq!(born.unwrap().labels, [&[keys], &program[..]].concat());
}

#[test]
fn the_mount_label_is_for_files_that_are_the_containers_alone() {
    let mut spec = default_spec();
    let facts = HostFacts { selinux: true, ..host() };
    let bind = MountBuilder::default().destination("/x").typ("bind").source("/s").build().unwrap();
    spec.mounts_mut().as_mut().unwrap().push(bind);
    spec.linux_mut().as_mut().unwrap().set_mount_label(Some("m".to_owned()));
    let make = |spec: &Spec| {
        create(spec, &Rootfs::Directory("/image".into()), "/state/rootfs".into(), "/rswarm/t", &facts)
    };
    let plan = make(&spec).unwrap();
    let targets = |labelled: bool| -> Vec<&str> {
        let mounts = plan.inside.iter().filter_map(|step| match step {
            Inside::Mount(mount) => Some(mount),
            _ => None,
        });
        let found = mounts.filter(|mount| mount.label.is_some() == labelled);
        found.map(|mount| mount.target.to_str().unwrap()).collect()
    };
    assert_eq!(targets(false), ["/proc", "/sys", "/x"]);
    assert_eq!(targets(true), ["/dev", "/dev/pts", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm"]);
    spec.linux_mut().as_mut().unwrap().set_mount_label(Some("m\0".to_owned()));
    let expected = "`linux.mountLabel` has the invalid value `m\\0`: it contains a zero byte";
    assert_eq!(make(&spec).unwrap_err().to_string(), expected);
}
