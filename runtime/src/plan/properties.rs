//! Whatever stands in a `config.json`, reading and planning end with a plan or with a reason.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::defaults::default_spec;

/// A configuration that uses nearly every field.
fn rich() -> Value {
    let mut config = serde_json::to_value(default_spec()).unwrap();
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    config["hostname"] = "inside".into();
    config["annotations"] = json!({ "org.example": "x" });
    config["hooks"] = json!({ "poststop": [{ "path": "/x", "args": ["x"], "env": ["A=b"], "timeout": 1 }] });
    let process = &mut config["process"];
    process["user"] = json!({ "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4] });
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 2 }]);
    process["oomScoreAdj"] = 100.into();
    process["consoleSize"] = json!({ "height": 24, "width": 80 });
    process["scheduler"] = json!({
        "policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2000, "period": 3000, "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"],
    });
    process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 4 });
    process["execCPUAffinity"] = json!({ "initial": "0-1", "final": "1" });
    let linux = &mut config["linux"];
    for kind in ["user", "time"] {
        linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind }));
    }
    linux["uidMappings"] = maps.clone();
    linux["gidMappings"] = maps.clone();
    linux["timeOffsets"] = json!({ "monotonic": { "secs": 1, "nanosecs": 2 } });
    linux["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    linux["rootfsPropagation"] = "rslave".into();
    linux["personality"] = json!({ "domain": "LINUX32" });
    linux["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [] });
    linux["devices"] =
        json!([{ "path": "/dev/x", "type": "c", "major": 1, "minor": 2, "fileMode": 438, "uid": 0 }]);
    linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    linux["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "architectures": ["SCMP_ARCH_X86_64"], "listenerPath": "/agent", "listenerMetadata": "x",
        "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_NOTIFY" },
            { "names": ["write"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["execve"], "action": "SCMP_ACT_ALLOW" },
        ],
    });
    config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/data", "source": "/x", "type": "bind", "options": ["rbind", "rro", "idmap"],
        "uidMappings": maps, "gidMappings": maps,
    }));
    config
}

fn plan_of(bytes: &[u8]) -> Result<Plan, String> {
    let (spec, _) = parse(bytes).map_err(|error| error.to_string())?;
    let hierarchy =
        cgroup::Hierarchy { controllers: vec!["devices".to_owned()], mount: "/sys/fs/cgroup/devices".into() };
    let host =
        HostFacts { cgroups: Layout { v1: vec![hierarchy], ..Default::default() }, ..HostFacts::default() };
    let host = HostFacts { uptime: Duration::from_secs(60), ..host };
    let rootfs = Rootfs::Directory("/image".into());
    let plan = create(&spec, &rootfs, "/state/rootfs".into(), "/a/b", &host);
    let mut plan = plan.map_err(|error| error.to_string())?;
    let callers = Callers { id: "x".to_owned(), bundle: "/b".into(), no_pivot: false, keep_keyring: false };
    complete(&mut plan, &spec, &callers).map(|()| plan).map_err(|error| error.to_string())
}

/// Every value of a document by its JSON pointer.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                pointers(inner, &format!("{at}/{}", escape(key)), all);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate() {
                pointers(inner, &format!("{at}/{index}"), all);
            }
        }
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3i64..5000).prop_map(Value::from),
        any::<f64>().prop_map(|number| serde_json::Number::from_f64(number).map_or(Value::Null, Value::from)),
        ".{0,12}".prop_map(Value::from),
        "[a-z0-9/.,=\\-]{0,12}".prop_map(Value::from),
        Just(Value::from("a\0b")),
        Just(Value::from("x".repeat(5000))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(("[a-zA-Z]{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

#[test]
fn the_configuration_that_is_mutated_is_a_good_one() {
    plan_of(rich().to_string().as_bytes()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_or_two_wrong_values_give_a_plan_or_a_reason(
        places in proptest::collection::vec((any::<proptest::sample::Index>(), anything(), any::<bool>()), 1..3),
    ) {
        let mut config = rich();
        for (place, value, append) in places {
            let mut all = Vec::new();
            pointers(&config, "", &mut all);
            let pointer: &String = place.get(&all);
            let target = config.pointer_mut(pointer).unwrap();
            match target {
                Value::Array(list) if append => list.push(value),
                target => *target = value,
            }
        }
        let text = config.to_string();
        if let Err(reason) = plan_of(text.as_bytes()) {
            // A field, a value or rule: never an empty word.
            prop_assert!(reason.contains('`') && reason.len() > 10, "{}", reason);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = plan_of(&bytes);
    }

    #[test]
    fn configuration_that_is_cut_off_is_refused(end in any::<proptest::sample::Index>()) {
        let text = rich().to_string();
        let error = plan_of(&text.as_bytes()[..end.index(text.len())]).unwrap_err();
        prop_assert!(error.starts_with("the configuration is not JSON"), "{}", error);
    }
}

#[test]
fn each_wrong_field_is_named_with_its_value_and_the_rule() {
    let table = [
        (
            "/ociVersion",
            json!("2.0.0"),
            "`ociVersion` has the invalid value `2.0.0`: expected 1.0.0 to 1.3.x",
        ),
        ("/ociVersion", json!("1.2"), "`ociVersion` has the invalid value `1.2`: expected 1.0.0 to 1.3.x"),
        (
            "/ociVersion",
            json!(1),
            "`ociVersion` has the invalid value `1`: invalid type: integer `1`, expected a string",
        ),
        ("/hostname", json!("h".repeat(65)), "expected at most 64 bytes without a zero byte"),
        (
            "/process/user/uid",
            json!("root"),
            "`process.user.uid` has the invalid value `\"root\"`: invalid type: string \"root\", expected u32",
        ),
        (
            "/process/user/uid",
            json!(-1),
            "`process.user.uid` has the invalid value `-1`: invalid value: integer `-1`, expected u32",
        ),
        (
            "/process/user/uid",
            json!(70_000),
            "`process.user.uid` has the invalid value `70000`: the mappings of the user namespace do not contain it",
        ),
        (
            "/process/user/umask",
            json!(512),
            "`process.user.umask` has the invalid value `512`: expected at most 0o777, which is 511",
        ),
        (
            "/process/args",
            json!("sh"),
            "`process.args` has the invalid value `\"sh\"`: invalid type: string \"sh\", expected a sequence",
        ),
        ("/process/args", json!([]), "`process.args` has the invalid value `[]`: expected a program"),
        (
            "/process/cwd",
            json!("tmp"),
            "`process.cwd` has the invalid value `tmp`: expected an absolute path",
        ),
        (
            "/process/env/0",
            json!("a\0b"),
            "`process.env[0]` has the invalid value `a\\0b`: expected `NAME=value` without a zero byte",
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "`process.oomScoreAdj` has the invalid value `1001`: expected -1000 to 1000",
        ),
        (
            "/process/consoleSize/width",
            json!(70_000),
            "`process.consoleSize.width` has the invalid value `70000`: expected at most 65535",
        ),
        (
            "/process/rlimits/0/type",
            json!("RLIMIT_X"),
            "`process.rlimits[0].type` has the invalid value `\"RLIMIT_X\"`: unknown variant `RLIMIT_X`",
        ),
        (
            "/process/rlimits/0/soft",
            json!(3),
            "`process.rlimits[0].soft` has the invalid value `3`: RLIMIT_NOFILE is above its hard limit 2",
        ),
        (
            "/process/scheduler/runtime",
            json!(9),
            "`process.scheduler.runtime` has the invalid value `9`: expected at least what can be measured, 1024 ns",
        ),
        (
            "/process/scheduler/nice",
            json!(20),
            "`process.scheduler.nice` has the invalid value `20`: expected -20 to 19",
        ),
        (
            "/process/scheduler/policy",
            json!("SCHED_ISO"),
            "`process.scheduler.policy` has the invalid value `SCHED_ISO`",
        ),
        (
            "/process/ioPriority/priority",
            json!(8),
            "`process.ioPriority.priority` has the invalid value `8`: expected 0 to 7",
        ),
        (
            "/process/execCPUAffinity/initial",
            json!("a"),
            "`process.execCPUAffinity.initial` has the invalid value `\"a\"`",
        ),
        (
            "/linux/namespaces/0/type",
            json!("moon"),
            "`linux.namespaces[0].type` has the invalid value `\"moon\"`: unknown variant `moon`",
        ),
        (
            "/linux/namespaces/0/path",
            json!("x"),
            "`linux.namespaces[0].path` has the invalid value `x`: expected an absolute path",
        ),
        (
            "/linux/namespaces/1/type",
            json!("mount"),
            "`linux.namespaces[1].type` has the invalid value `mount`: a container has one namespace of each kind",
        ),
        ("/linux/uidMappings", json!([]), "`linux.uidMappings` is missing"),
        (
            "/linux/uidMappings/0/size",
            json!(0),
            "`linux.uidMappings[0]` has the invalid value `0 100000 0`: expected a size of 1 or more",
        ),
        ("/linux/uidMappings/0/size", json!(u32::MAX), "the range ends above the largest id"),
        (
            "/linux/gidMappings/0/containerID",
            json!(5),
            "`linux.gidMappings` has the invalid value `1 ranges`: id 0 of the container is not among them",
        ),
        (
            "/linux/timeOffsets/realtime",
            json!({}),
            "`linux.timeOffsets` has the invalid value `realtime`: expected monotonic or boottime",
        ),
        (
            "/linux/timeOffsets/monotonic/nanosecs",
            json!(1_000_000_000),
            "`linux.timeOffsets.monotonic.nanosecs` has the invalid value `1000000000`: expected less than 1000000000 nanoseconds",
        ),
        (
            "/linux/sysctl/kernel.panic",
            json!("1"),
            "`linux.sysctl` has the invalid value `kernel.panic`: it is not a setting of a namespace",
        ),
        (
            "/linux/rootfsPropagation",
            json!("open"),
            "`linux.rootfsPropagation` has the invalid value `open`: expected private, slave, shared or unbindable",
        ),
        ("/linux/personality/flags", json!(["X"]), "`linux.personality.flags` has the invalid value `X`"),
        (
            "/linux/memoryPolicy/nodes",
            json!("1-0"),
            "`linux.memoryPolicy.nodes` has the invalid value `1-0`: a range ends before it begins",
        ),
        (
            "/linux/devices/0/major",
            json!(-1),
            "`linux.devices[0].major` has the invalid value `-1`: expected 0 to 4095 for `/dev/x`",
        ),
        (
            "/linux/devices/0/path",
            json!("dev/x"),
            "`linux.devices[0].path` has the invalid value `dev/x`: expected an absolute path of a file",
        ),
        (
            "/linux/maskedPaths/0",
            json!("proc"),
            "`linux.maskedPaths[0]` has the invalid value `proc`: expected an absolute path",
        ),
        (
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_SING"),
            "`linux.seccomp.defaultAction` has the invalid value `\"SCMP_ACT_SING\"`: unknown variant",
        ),
        (
            "/linux/seccomp/syscalls/1/args/0/index",
            json!(6),
            "`linux.seccomp.syscalls.args.index` has the invalid value `6` in a rule for `write`: expected 0 to 5",
        ),
        ("/linux/intelRdt", json!({}), "`linux.intelRdt` is not supported yet"),
        (
            "/mounts/0/destination",
            json!(""),
            "`mounts[0].destination` has the invalid value ``: expected a path",
        ),
        (
            "/mounts/7/source",
            json!("x"),
            "`mounts[7].source` has the invalid value `x`: expected an absolute path",
        ),
        (
            "/mounts/7/uidMappings",
            json!([]),
            "`mounts[7].uidMappings` has the invalid value `[]`: expected some, as in `gidMappings`",
        ),
        (
            "/mounts/7/options",
            json!(["idmap", "rbind", "noexecc"]),
            "`mounts[7].options` has the invalid value `noexecc`: the option has no meaning for a bind mount",
        ),
        (
            "/process/user/uid",
            json!(u32::MAX),
            "`process.user.uid` has the invalid value `4294967295`: expected 0 to 4294967294",
        ),
        (
            "/process/user/gid",
            json!(u32::MAX),
            "`process.user.gid` has the invalid value `4294967295`: expected 0 to 4294967294",
        ),
        (
            "/process/user/additionalGids/1",
            json!(u32::MAX),
            "`process.user.additionalGids[1]` has the invalid value `4294967295`: expected 0 to 4294967294",
        ),
        (
            "/process/user/additionalGids",
            json!(vec![3; 65_537]),
            "`process.user.additionalGids` has the invalid value `65537 groups`: expected at most 65536",
        ),
        (
            "/linux/devices/0/uid",
            json!(u32::MAX),
            "`linux.devices[0].uid` has the invalid value `4294967295`: expected 0 to 4294967294",
        ),
        (
            "/linux/devices/0/gid",
            json!(u32::MAX),
            "`linux.devices[0].gid` has the invalid value `4294967295`: expected 0 to 4294967294",
        ),
        (
            "/linux/devices/0/fileMode",
            json!(0o200_000),
            "`linux.devices[0].fileMode` has the invalid value `65536`: expected at most 0o7777",
        ),
        (
            "/linux/devices/0/type",
            json!("a"),
            "`linux.devices[0].type` has the invalid value `a`: expected `c`, `u`, `b` or `p`",
        ),
        ("/linux/uidMappings/0/hostID", json!(u32::MAX), "the range ends above the largest id"),
        (
            "/mounts/7/gidMappings/0/hostID",
            json!(u32::MAX),
            "`mounts[7].gidMappings[0]` has the invalid value",
        ),
        (
            "/process/env/0",
            json!("FOO"),
            "`process.env[0]` has the invalid value `FOO`: expected `NAME=value`",
        ),
        ("/process/env/0", json!("=x"), "`process.env[0]` has the invalid value `=x`: expected `NAME=value`"),
        ("/process/env/0", json!(""), "`process.env[0]` has the invalid value ``: expected `NAME=value`"),
        (
            "/process/execCPUAffinity/final",
            json!("3-1"),
            "`process.execCPUAffinity.final` has the invalid value `3-1`: a range ends before it begins",
        ),
        (
            "/process/scheduler/deadline",
            json!(1023),
            "`process.scheduler.deadline` has the invalid value `1023`: expected at least the runtime, 1024 ns",
        ),
        (
            "/process/scheduler/period",
            json!(1999),
            "`process.scheduler.period` has the invalid value `1999`: expected at least the deadline, 2000 ns",
        ),
        (
            "/linux/memoryPolicy/flags",
            json!(["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]),
            "`linux.memoryPolicy.flags` has the invalid value `MPOL_F_RELATIVE_NODES`: expected one of",
        ),
        (
            "/linux/timeOffsets/monotonic/secs",
            json!(-61),
            "`linux.timeOffsets.monotonic.secs` has the invalid value `-61`: expected -60 to 4611685958",
        ),
        (
            "/linux/timeOffsets/monotonic/secs",
            json!(i64::MAX),
            "`linux.timeOffsets.monotonic.secs` has the invalid value `9223372036854775807`: expected -60 to",
        ),
        (
            "/linux/sysctl/net.ipv4.ip_forward",
            json!("yes"),
            "`linux.sysctl` has the invalid value `yes`: expected a number from 0 to 2147483647 for net.ipv4.ip_forward",
        ),
        (
            "/linux/seccomp/syscalls/2/action",
            json!("SCMP_ACT_ERRNO"),
            "`linux.seccomp` has the invalid action `SCMP_ACT_ERRNO` for `execve`: without that call no program",
        ),
        (
            "/hooks/poststop/0/env/0",
            json!("x"),
            "`hooks.poststop[0].env` has the invalid value `x`: expected `NAME=value`",
        ),
        (
            "/hooks/poststop/0/path",
            json!("x"),
            "`hooks.poststop[0].path` has the invalid value `x`: expected an absolute path",
        ),
        (
            "/hooks/poststop/0/timeout",
            json!(0),
            "`hooks.poststop[0].timeout` has the invalid value `0`: expected more",
        ),
    ];
    for (pointer, value, expected) in table {
        let mut config = rich();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match config.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
            parent => parent[name] = value,
        }
        let error = plan_of(config.to_string().as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{pointer}:\n{error}\nexpected\n{expected}");
    }
}

/// A JSON pointer as errors name fields.
fn field(pointer: &str) -> String {
    pointer[1..].split('/').fold(String::new(), |path, part| match part.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => part.to_owned(),
        Err(_) => format!("{path}.{part}"),
    })
}

#[test]
fn a_list_is_no_object_and_an_object_no_word() {
    let mut config = rich();
    config["linux"]["resources"] = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "memory": { "limit": 1, "swap": 2 }, "cpu": { "shares": 2, "cpus": "0" }, "pids": { "limit": 3 },
        "blockIO": { "weight": 10, "weightDevice": [{ "major": 8, "minor": 0, "weight": 10 }] },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }], "unified": { "memory.high": "1" },
        "network": { "classID": 1, "priorities": [{ "name": "lo", "priority": 1 }] }, "rdma": { "a": { "hcaHandles": 1 } },
    });
    parse(config.to_string().as_bytes()).unwrap();
    let mut all = Vec::new();
    pointers(&config, "", &mut all);
    let (mut objects, mut words) = (0, 0);
    for pointer in &all {
        let wrong = match config.pointer(pointer).unwrap() {
            Value::Object(map) => {
                objects += 1;
                vec![json!([]), map.values().cloned().collect()]
            }
            Value::String(word) => {
                words += 1;
                vec![json!({ word: null })]
            }
            _ => continue,
        };
        for wrong in wrong {
            let mut config = config.clone();
            *config.pointer_mut(pointer).unwrap() = wrong;
            let error = parse(config.to_string().as_bytes()).unwrap_err().to_string();
            let name = if pointer.is_empty() { "document".to_owned() } else { field(pointer) };
            let expected = format!("`{name}` has the invalid value `");
            assert!(error.starts_with(&expected) && error.contains("expected"), "{pointer}: {error}");
        }
    }
    assert!(objects > 30 && words > 50, "{objects} {words}");
    let reason = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert_eq!(
        reason(b"[]"),
        "`document` has the invalid value `[]`: invalid type: sequence, expected an object"
    );
    let error = parse_process(br#"{ "cwd": "/", "user": [5, 6] }"#).unwrap_err().to_string();
    assert_eq!(error, "`user` has the invalid value `[5,6]`: invalid type: sequence, expected an object");
    let error = parse_resources(br#"{ "memory": [5] }"#).unwrap_err().to_string();
    assert_eq!(error, "`memory` has the invalid value `[5]`: invalid type: sequence, expected an object");
}

#[test]
fn capabilities_are_granted_only_by_their_whole_names() {
    for name in ["chown", "CHOWN", "Cap_Chown", "cap_chown", "CAP_CAP_CHOWN", "CAP_chown", ""] {
        let mut config = rich();
        config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", name]);
        let (spec, unknown) = parse(config.to_string().as_bytes()).unwrap();
        assert_eq!(unknown, [name]);
        let sets = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
        assert_eq!(program::bits(sets.bounding().as_ref()), 1 << 5, "{name}");
    }
}

#[test]
fn versions_from_1_0_to_1_3_are_accepted() {
    for version in ["1.0.0", "1.0.2-dev", "1.1.0+dev", "1.2.0-rc.1", "1.2.1", "1.3.0", "1.3.7"] {
        let mut config = rich();
        config["ociVersion"] = version.into();
        assert!(plan_of(config.to_string().as_bytes()).is_ok(), "{version}");
    }
    for version in ["", "1", "0.9.0", "1.4.0", "1.x.0", "1.2.0.1", "v1.2.0"] {
        let mut config = rich();
        config["ociVersion"] = version.into();
        assert!(plan_of(config.to_string().as_bytes()).is_err(), "{version}");
    }
}

#[test]
fn unknown_capabilities_are_left_out_and_named() {
    let mut config = rich();
    config["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_FLY"]);
    config["process"]["capabilities"]["permitted"] = json!(["CAP_FLY", "CAP_SWIM"]);
    let (spec, unknown) = parse(config.to_string().as_bytes()).unwrap();
    assert_eq!(unknown, ["CAP_FLY", "CAP_SWIM"]);
    let sets = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
    assert_eq!(program::bits(sets.bounding().as_ref()), 1);
    assert_eq!(program::bits(sets.permitted().as_ref()), 0);
}
