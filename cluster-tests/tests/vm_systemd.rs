//! systemd as the manager of containers' cgroups and of the daemon, in a virtual machine whose first process it is, on pure
//! cgroup v2.

use std::time::Duration;

use rswarm_cluster_tests::programs;
use rswarm_cluster_tests::vm::{Size, VmTest, can_run, node_payload};
use rswarm_lab::Machine as _;
use rswarm_lab::vm::{Payload, Vm};
use serde_json::{Value, json};

/// Everything is emulated, on a machine that may have other things to do.
const PATIENCE: Duration = Duration::from_secs(120);
const OURS: &str = "/usr/local/bin/rswarm-runc";
/// Debian's, to compare with.
const PEER: &str = "/usr/sbin/runc";
const PEER_INSIDE: &str = "/bin/runc";

#[test]
fn containers_are_units_of_systemd() {
    let payload = match payload() {
        Ok(payload) => payload,
        Err(reason) => {
            eprintln!("skipped: `containers_are_units_of_systemd` {reason}");
            return;
        }
    };
    let test = VmTest::new("vm-systemd", Size { machines: 1, cpus: 1, memory_mib: 1024 }, payload);
    let host = Host { vm: test.lab.machine(1) };
    assert_eq!(host.ok("cat /proc/1/comm"), "systemd\n");
    let mounts = host.ok("cat /proc/mounts");
    assert!(mounts.contains(" /sys/fs/cgroup cgroup2 ") && !mounts.contains(" cgroup "), "{mounts}");
    host.ok("mkdir -p /b/rootfs/bin && cp /bin/busybox /b/rootfs/bin/ && ln -s busybox /b/rootfs/bin/sh");

    a_container_is_a_scope_for_all_its_life(&host);
    limits_are_those_that_runc_sets(&host);
    what_is_wrong_is_named_and_nothing_is_left(&host);
    a_scope_that_is_stopped_ends_the_container(&host);
    the_bus_will_do_where_systemds_own_socket_does_not_answer(&host);
    a_user_has_scopes_of_the_users_own_manager(&host);
    host.nothing_is_left();
    the_daemon_is_started_by_its_unit(&host);
}

fn payload() -> Result<Payload, String> {
    can_run()?;
    let missing = |error: rswarm_lab::LabError| error.to_string();
    // systemd's root comes first, for others' libraries are added to it.
    let mut payload = Payload::new().systemd().map_err(missing)?;
    // By a name that busybox has no program of its own for.
    payload = node_payload(payload).map_err(|error| format!("{error:#}"))?;
    payload = payload.host_program("/usr/bin/setpriv", "as-user").map_err(missing)?;
    payload = payload.host_program(PEER, "runc").map_err(missing)?;
    let programs = programs("runtime").map_err(|error| format!("{error:#}"))?;
    let ours = programs.into_iter().find(|path| path.ends_with("rswarm-runc"));
    let ours = ours.ok_or("needs `rswarm-runc`: build it first by `cargo build -p rswarm-runtime --bins`")?;
    Ok(payload.program(ours, OURS))
}

/// The machine, and what there is to ask it.
struct Host<'a> {
    vm: &'a Vm,
}

impl Host<'_> {
    fn sh(&self, script: &str) -> (i32, String, String) {
        let output = self.vm.run("/bin/sh", &["-c", script], PATIENCE);
        let output = output.unwrap_or_else(|error| panic!("`{script}`: {error}"));
        (output.code.unwrap_or(-1), output.stdout, output.stderr)
    }

    fn ok(&self, script: &str) -> String {
        let (code, output, errors) = self.sh(script);
        assert_eq!(code, 0, "`{script}`: {output}{errors}{}", self.vm.console_tail(20));
        output
    }

    /// What a command that has to fail says.
    fn refusal(&self, script: &str) -> String {
        let (code, output, errors) = self.sh(script);
        assert_ne!(code, 0, "`{script}` succeeded: {output}{errors}");
        errors
    }

    /// A configuration of a container that sleeps until it is killed.
    fn configure(&self, cgroup: &str, change: impl FnOnce(&mut Value)) {
        self.ok(&format!("cd /b && rm -f config.json && {OURS} spec"));
        self.change(|config| {
            config["process"]["terminal"] = false.into();
            config["process"]["args"] = json!(["busybox", "sleep", "100000"]);
            config["linux"]["cgroupsPath"] = cgroup.into();
            change(config);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut config = serde_json::from_str(&self.ok("cat /b/config.json")).expect("a configuration");
        change(&mut config);
        self.write("/b/config.json", &config.to_string());
    }

    fn write(&self, path: &str, text: &str) {
        let words = ["/init", "write", path];
        let written = self.vm.run_with_input(&words, &mut text.as_bytes(), PATIENCE);
        assert_eq!(written.expect("the machine answers").code, Some(0));
    }

    fn ours(&self, words: &str) -> String {
        self.ok(&format!("{OURS} {words}"))
    }

    /// A container that runs. Its output goes nowhere, for it would hold the command's open.
    fn run(&self, program: &str, id: &str) {
        self.ok(&format!("{program} --systemd-cgroup run -d -b /b {id} </dev/null >/tmp/said 2>&1 || {{ cat /tmp/said >&2; exit 1; }}"));
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.ok(&format!("systemctl show {unit} -p {name} --value")).trim().to_owned()
    }

    fn file(&self, path: &str) -> String {
        self.ok(&format!("cat /sys/fs/cgroup/{path}")).trim().to_owned()
    }

    /// Until something is so that nobody announces.
    fn until(&self, condition: &str) {
        self.ok(&format!(
            "n=0; until {condition}; do n=$((n+1)); test $n -lt 600 || exit 1; sleep 0.1; done"
        ));
    }

    fn nothing_is_left(&self) {
        self.until("! systemctl list-units --all --no-legend --plain | grep -E 'rswarm-|other-'");
        assert_eq!(self.ok("find /sys/fs/cgroup -name 'rswarm-*' -o -name 'other-*'"), "");
        assert_eq!(self.ok(&format!("{OURS} list -q; ls /run/systemd/transient 2>/dev/null || true")), "");
    }
}

fn limits(config: &mut Value) {
    config["linux"]["resources"] = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20 },
        "cpu": { "quota": 25_000, "period": 50_000, "shares": 512, "cpus": "0", "mems": "0" },
        "pids": { "limit": 50 },
        "unified": { "memory.high": "60000000" },
    });
}

fn a_container_is_a_scope_for_all_its_life(host: &Host<'_>) {
    const UNIT: &str = "rswarm-web.scope";
    const GROUP: &str = "system.slice/rswarm-web.scope";
    host.configure("system.slice:rswarm:web", |config| {
        limits(config);
        config["annotations"] = json!({ "org.systemd.property.TimeoutStopUSec": "uint64 7000000" });
    });
    host.ok(&format!("{OURS} --systemd-cgroup create -b /b web </dev/null >/dev/null 2>/tmp/said || {{ cat /tmp/said >&2; exit 1; }}"));
    for (name, expected) in [
        ("ActiveState", "active"),
        ("Slice", "system.slice"),
        ("ControlGroup", "/system.slice/rswarm-web.scope"),
        ("Delegate", "yes"),
        ("TimeoutStopUSec", "7s"),
    ] {
        assert_eq!(host.property(UNIT, name), expected, "{name}");
    }
    let state: Value = serde_json::from_str(&host.ours("state web")).expect("a state");
    assert_eq!(host.file(&format!("{GROUP}/cgroup.procs")), state["pid"].to_string());

    // From here on nobody says that systemd is there.
    host.ours("start web");
    host.ok(&format!("{OURS} exec web busybox sleep 1000 </dev/null >/dev/null 2>&1 &"));
    host.until(&format!("test $(wc -l < /sys/fs/cgroup/{GROUP}/cgroup.procs) = 2"));
    assert_eq!(
        host.ours("exec web busybox sh -c 'echo x > /dev/null && busybox cat /proc/self/cgroup'"),
        "0::/\n"
    );

    host.ours(
        "update --memory 128m --memory-swap 128m --cpu-quota 12345 --cpu-share 1024 --pids-limit 60 web",
    );
    for (name, property, file, value) in [
        ("MemoryMax", "134217728", "memory.max", "134217728"),
        ("MemorySwapMax", "0", "memory.swap.max", "0"),
        ("TasksMax", "60", "pids.max", "60"),
        ("CPUWeight", "39", "cpu.weight", "39"),
        // What systemd keeps is whole percents, and what the kernel has is exact.
        ("CPUQuotaPerSecUSec", "250ms", "cpu.max", "12345 50000"),
    ] {
        assert_eq!(host.property(UNIT, name), property, "{name}");
        assert_eq!(host.file(&format!("{GROUP}/{file}")), value, "{file}");
    }
    // systemd writes to the files again as it sees fit, and sees what was asked for.
    host.ok("systemctl daemon-reload && systemctl set-property --runtime rswarm-web.scope MemoryLow=1M");
    assert_eq!(host.file(&format!("{GROUP}/memory.max")), "134217728");
    assert_eq!(host.file(&format!("{GROUP}/pids.max")), "60");
    host.ours("exec web busybox sh -c 'echo x > /dev/null'");

    host.ours("pause web");
    assert!(host.ours("state web").contains("paused"));
    assert_eq!(host.file(&format!("{GROUP}/cgroup.freeze")), "1");
    host.ours("resume web");
    assert!(host.ours("ps web").contains("sleep"));
    assert!(host.ours("events --stats web").contains("134217728"));

    host.ours("kill web KILL");
    host.until(&format!("{OURS} state web | grep -q stopped"));
    host.ours("delete web");
    assert_eq!(host.property(UNIT, "LoadState"), "not-found");
    host.nothing_is_left();
}

/// Whatever is asked for, `systemctl show` says the same of our scope as of runc's.
fn limits_are_those_that_runc_sets(host: &Host<'_>) {
    if host.sh(&format!("test -x {PEER_INSIDE}")).0 != 0 {
        eprintln!("skipped: needs runc (Debian package runc) to compare with");
        return;
    }
    const NAMES: &str = "Slice Delegate DelegateControllers CPUAccounting CPUWeight CPUQuotaPerSecUSec CPUQuotaPeriodUSec \
                         AllowedCPUs AllowedMemoryNodes IOAccounting IOWeight MemoryAccounting MemoryLow MemoryHigh MemoryMax \
                         MemorySwapMax TasksAccounting TasksMax DevicePolicy TimeoutStopUSec DefaultDependencies Wants Requires";
    const FILES: &str =
        "memory.max memory.low memory.high memory.swap.max cpu.max cpu.weight pids.max cpuset.cpus";
    let show = |unit: &str, group: &str| {
        let names = NAMES.split_whitespace().map(|name| format!(" -p {name}")).collect::<String>();
        host.ok(&format!("systemctl show {unit}{names} && cd /sys/fs/cgroup/{group} && grep '' {FILES}"))
    };
    for change in [
        limits as fn(&mut Value),
        |_| (),
        |config| {
            config["linux"]["resources"] = json!({
                "memory": { "limit": -1 }, "pids": { "limit": -1 }, "cpu": { "quota": -1 },
            });
        },
    ] {
        host.configure("a-b.slice:rswarm:one", change);
        host.run(OURS, "one");
        let ours = show("rswarm-one.scope", "a.slice/a-b.slice/rswarm-one.scope");
        host.ours("delete -f one");
        host.configure("a-b.slice:other:one", change);
        host.run(PEER_INSIDE, "one");
        let theirs = show("other-one.scope", "a.slice/a-b.slice/other-one.scope");
        host.ok(&format!("{PEER_INSIDE} --systemd-cgroup delete -f one"));
        assert_eq!(ours, theirs);
    }
    host.nothing_is_left();
}

fn what_is_wrong_is_named_and_nothing_is_left(host: &Host<'_>) {
    let create = format!("{OURS} --systemd-cgroup create -b /b bad </dev/null");
    for (path, rule) in [
        ("/system.slice/web", "expected `slice:prefix:name`"),
        ("system:rswarm:web", "the name of a slice"),
        ("system.slice:rswarm:a/b", "prefix and name"),
    ] {
        host.configure(path, |_| ());
        let said = host.refusal(&create);
        let named = format!("`linux.cgroupsPath` has the invalid value `{path}`");
        assert!(said.contains(&named) && said.contains(rule), "{said}");
    }
    // Property and program are found to be wrong when the process, and then the unit, exist already.
    host.configure("system.slice:rswarm:bad", |config| {
        config["annotations"] = json!({ "org.systemd.property.NoSuchThing": "true" });
    });
    let said = host.refusal(&create);
    assert!(said.contains("start the unit `rswarm-bad.scope`") && said.contains("NoSuchThing"), "{said}");
    host.configure("system.slice:rswarm:bad", |config| config["process"]["args"] = json!(["/nope"]));
    assert!(host.refusal(&create).contains("/nope"));
    host.nothing_is_left();

    // Of two containers with one unit the first keeps it.
    host.configure("system.slice:rswarm:same", |_| ());
    host.run(OURS, "first");
    let said = host.refusal(&create);
    assert!(said.contains("rswarm-same.scope"), "{said}");
    assert!(host.ours("state first").contains("running"));
    host.ours("delete -f first");
    host.nothing_is_left();
}

fn a_scope_that_is_stopped_ends_the_container(host: &Host<'_>) {
    // Without a path, and with an id that no unit can have as its name.
    host.configure("", |config| {
        config["process"]["args"] =
            json!(["busybox", "sh", "-c", "trap 'exit 3' TERM; busybox sleep 100000 & wait"]);
    });
    host.run(OURS, "a+b");
    let group = host.ok("ls -d /sys/fs/cgroup/system.slice/rswarm-a*b.scope");
    assert!(group.contains("rswarm-a\\x2bb.scope"), "{group}");
    host.ok("systemctl stop 'rswarm-a\\x2bb.scope'");
    assert!(host.ours("state a+b").contains("stopped"));
    host.ours("delete a+b");
    host.nothing_is_left();
}

fn the_bus_will_do_where_systemds_own_socket_does_not_answer(host: &Host<'_>) {
    host.configure("system.slice:rswarm:bus", |_| ());
    host.ok("mv /run/systemd/private /run/systemd/elsewhere");
    host.run(OURS, "bus");
    host.ours("update --pids-limit 33 bus");
    assert_eq!(host.file("system.slice/rswarm-bus.scope/pids.max"), "33");
    host.ours("delete -f bus");
    host.ok("mv /run/dbus/system_bus_socket /run/dbus/elsewhere");
    let said = host.refusal(&format!("{OURS} --systemd-cgroup create -b /b bus </dev/null"));
    host.ok(
        "mv /run/dbus/elsewhere /run/dbus/system_bus_socket; mv /run/systemd/elsewhere /run/systemd/private",
    );
    assert!(said.contains("connect to systemd"), "{said}");
    host.nothing_is_left();
}

fn a_user_has_scopes_of_the_users_own_manager(host: &Host<'_>) {
    const MANAGER: &str = "[Service]\nUser=1000\nDelegate=yes\nType=notify\nSlice=user-1000.slice\n\
                           Environment=XDG_RUNTIME_DIR=/run/user/1000\nExecStart=/lib/systemd/systemd --user\n";
    host.ok(&format!("printf '{}' > /run/systemd/system/lab-user.service", MANAGER.replace('\n', "\\n")));
    host.ok("mkdir -p /run/user/1000 && chown 1000:1000 /run/user/1000 && systemctl daemon-reload && systemctl start lab-user");
    let user =
        "as-user --reuid 1000 --regid 1000 --clear-groups env XDG_RUNTIME_DIR=/run/user/1000 HOME=/tmp";
    host.ok(&format!("cd /b && rm config.json && chown 1000 /b /b/rootfs && {user} {OURS} spec --rootless"));
    host.change(|config| {
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["busybox", "sleep", "100000"]);
        config["linux"]["cgroupsPath"] = "a.slice:rswarm:mine".into();
        config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    });
    host.ok(&format!("cd /b && {user} {OURS} --systemd-cgroup run -d mine </dev/null >/tmp/mine 2>&1 || {{ cat /tmp/mine >&2; exit 1; }}"));
    let group = "user.slice/user-1000.slice/lab-user.service/a.slice/rswarm-mine.scope";
    assert_eq!(host.file(&format!("{group}/pids.max")), "50");
    assert_eq!(host.file(&format!("{group}/memory.max")), (64 << 20).to_string());
    let shown = host.ok(&format!("{user} systemctl --user show rswarm-mine.scope -p MemoryMax --value"));
    assert_eq!(shown.trim(), (64 << 20).to_string());
    host.ok(&format!("{user} {OURS} update --pids-limit 40 mine"));
    assert_eq!(host.file(&format!("{group}/pids.max")), "40");
    // From the user's own part of the tree, as podman calls it: nobody moves a process into it from elsewhere.
    let within = format!("{user} systemd-run --user --scope -q");
    host.ok(&format!("{within} {OURS} exec mine busybox true && {user} {OURS} delete -f mine"));
    assert_eq!(host.ok(&format!("{user} systemctl --user list-units --all --no-legend 'rswarm-*'")), "");
    host.ok("systemctl stop lab-user");
}

fn the_daemon_is_started_by_its_unit(host: &Host<'_>) {
    host.write("/etc/systemd/system/rswarm.service", include_str!("../../docs/rswarm.service"));
    host.ok("systemctl daemon-reload");
    let said = host.ok("rswarm init --advertise-addr 127.0.0.1 2>&1");
    assert!(said.contains("through its systemd unit (rswarm.service)"), "{said}");
    assert_eq!(host.property("rswarm.service", "ActiveState"), "active");
    host.ok("kill -9 $(systemctl show rswarm.service -p MainPID --value)");
    host.until("rswarm node ls | grep -q Leader");
    host.ok("rswarm leave --force && systemctl stop rswarm.service");
    // Another node of this host is not the unit's.
    let said = host.ok("rswarm --data-root /srv/a --run-root /srv/b init --advertise-addr 127.0.0.1 2>&1");
    assert!(said.contains("Started the rswarm daemon (process"), "{said}");
    assert_eq!(host.property("rswarm.service", "ActiveState"), "inactive");
}
