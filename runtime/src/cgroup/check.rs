//! What can be said of resources without asking the kernel: ranges, and values that bound each other. Pure.
//!
//! Whatever is refused here the kernel would refuse, or read as something else, once half the cgroup is made.
//!
//! Source: OCI runtime-spec, "Control groups"; Linux `cgroup-v1/devices.rst`, `scheduler/sched-bwc.rst`,
//! `scheduler/sched-rt-group.rst`, `core-api/kernel-api.rst` (`bitmap_parselist`), `cgroup-v2.rst`.

use std::fmt::Display;
use std::ops::RangeInclusive;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory,
    LinuxNetwork, LinuxResources,
};

use super::limits::CgroupError;

/// Microseconds of `cpu.cfs_period_us`, and the least `cpu.cfs_quota_us`.
const PERIODS: RangeInclusive<u64> = 1_000..=1_000_000;
const QUOTA_LEAST: i64 = 1_000;
/// Others are silently made one of these by v1.
const SHARES: RangeInclusive<u64> = 2..=262_144;
const WEIGHTS: RangeInclusive<u16> = 10..=1000;
/// All bits set is the kernel's "any".
const DEVICE_NUMBER_MAX: i64 = u32::MAX as i64 - 1;
/// `IFNAMSIZ` without the zero.
const INTERFACE_MAX: usize = 15;

type Checked = Result<(), CgroupError>;

fn invalid(name: &'static str, value: impl Display, expected: &'static str) -> Checked {
    Err(CgroupError::Invalid { name, value: value.to_string(), expected })
}

/// The first limit that can be meant by nobody.
pub(super) fn check(resources: &LinuxResources) -> Checked {
    if let Some(memory) = resources.memory() {
        check_memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        check_cpu(cpu)?;
    }
    if let Some(block_io) = resources.block_io() {
        check_block_io(block_io)?;
    }
    resources.hugepage_limits().iter().flatten().try_for_each(check_huge_pages)?;
    if let Some(network) = resources.network() {
        check_network(network)?;
    }
    for device in resources.rdma().iter().flatten().map(|(device, _)| device) {
        if device.is_empty() || device.contains(|c: char| c.is_whitespace() || c == '\0') {
            return invalid("rdma", device.escape_debug(), "the name of a device, such as `mlx5_0`");
        }
    }
    resources.devices().iter().flatten().try_for_each(check_device)
}

/// What a container that has no limits yet needs besides.
pub(super) fn check_first(resources: &LinuxResources) -> Checked {
    let Some(memory) = resources.memory() else { return Ok(()) };
    let (limit, total) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if total > 0 && limit <= 0 {
        let expected = "`linux.resources.memory.limit` beside it, for it is memory and swap together";
        return invalid("memory.swap", total, expected);
    }
    Ok(())
}

fn check_memory(memory: &LinuxMemory) -> Checked {
    for (name, value) in [
        ("memory.limit", memory.limit()),
        ("memory.reservation", memory.reservation()),
        ("memory.swap", memory.swap()),
    ] {
        if let Some(value) = value.filter(|value| *value < -1) {
            return invalid(name, value, "a number of bytes, or -1 for no limit");
        }
    }
    if let (Some(limit), Some(total)) = (memory.limit(), memory.swap())
        && limit > 0
        && (1..limit).contains(&total)
    {
        return invalid("memory.swap", total, "memory and swap together, so at least the limit");
    }
    match memory.swappiness() {
        Some(value) if value > 100 => invalid("memory.swappiness", value, "0 to 100"),
        _ => Ok(()),
    }
}

fn check_cpu(cpu: &LinuxCpu) -> Checked {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && !SHARES.contains(shares)) {
        return invalid("cpu.shares", shares, "2 to 262144");
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0 && !PERIODS.contains(period)) {
        return invalid("cpu.period", period, "1000 to 1000000 microseconds");
    }
    let quota = cpu.quota().filter(|quota| *quota > 0);
    if let Some(quota) = quota.filter(|quota| *quota < QUOTA_LEAST) {
        return invalid("cpu.quota", quota, "at least 1000 microseconds, or -1 for no limit");
    }
    if let (Some(burst), Some(quota)) = (cpu.burst(), quota)
        && burst > quota.unsigned_abs()
    {
        return invalid("cpu.burst", burst, "at most the quota");
    }
    if let (Some(runtime), Some(period)) = (cpu.realtime_runtime(), cpu.realtime_period())
        && period > 0
        && runtime > 0
        && runtime.unsigned_abs() > period
    {
        return invalid("cpu.realtimeRuntime", runtime, "at most `linux.resources.cpu.realtimePeriod`");
    }
    if let Some(idle) = cpu.idle().filter(|idle| !matches!(idle, 0 | 1)) {
        return invalid("cpu.idle", idle, "0 or 1");
    }
    for (name, list) in [("cpu.cpus", cpu.cpus()), ("cpu.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty() && !is_number_list(list)) {
            return invalid(name, list.escape_debug(), "numbers and ranges, such as `0-3,7`");
        }
    }
    Ok(())
}

/// As the kernel reads it: `0-3,7`, also with blanks, and with strides such as `0-31:1/2`.
fn is_number_list(text: &str) -> bool {
    let number = |text: &str| {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    let is_part = |part: &str| {
        let (range, stride) =
            part.split_once(':').map_or((part, None), |(range, stride)| (range, Some(stride)));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let ordered = matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last);
        let strides = stride.is_none_or(|stride| {
            let (used, of) = stride.split_once('/').unwrap_or((stride, ""));
            matches!((number(used), number(of)), (Some(used), Some(of)) if used <= of && of > 0)
        });
        ordered && strides
    };
    // A line's end would be the end for the kernel.
    let mut parts = text.trim().split([',', ' ']).filter(|part| !part.is_empty()).peekable();
    parts.peek().is_some() && parts.all(is_part)
}

fn check_block_io(block_io: &LinuxBlockIo) -> Checked {
    let bad = |weight: Option<u16>| weight.filter(|weight| *weight != 0 && !WEIGHTS.contains(weight));
    if let Some(weight) = bad(block_io.weight()) {
        return invalid("blockIO.weight", weight, "10 to 1000");
    }
    let number = |name, major: i64, minor: i64| {
        if [major, minor].iter().all(|number| (0..=DEVICE_NUMBER_MAX).contains(number)) {
            return Ok(());
        }
        invalid(name, format!("{major}:{minor}"), "the major and minor number of a block device")
    };
    for device in block_io.weight_device().iter().flatten() {
        if let Some(weight) = bad(device.weight()) {
            return invalid("blockIO.weightDevice.weight", weight, "10 to 1000");
        }
        number("blockIO.weightDevice", device.major(), device.minor())?;
    }
    for (name, list) in [
        ("blockIO.throttleReadBpsDevice", block_io.throttle_read_bps_device()),
        ("blockIO.throttleWriteBpsDevice", block_io.throttle_write_bps_device()),
        ("blockIO.throttleReadIOPSDevice", block_io.throttle_read_iops_device()),
        ("blockIO.throttleWriteIOPSDevice", block_io.throttle_write_iops_device()),
    ] {
        list.iter().flatten().try_for_each(|device| number(name, device.major(), device.minor()))?;
    }
    Ok(())
}

/// Which of these sizes there are only the kernel knows.
fn check_huge_pages(limit: &LinuxHugepageLimit) -> Checked {
    let size = limit.page_size();
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    let number = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    if !number.and_then(|digits| digits.parse::<u64>().ok()).is_some_and(u64::is_power_of_two) {
        let expected = "a page size such as `64KB`, `2MB` or `1GB`";
        return invalid("hugepageLimits.pageSize", size.escape_debug(), expected);
    }
    if limit.limit() < 0 {
        return invalid("hugepageLimits.limit", limit.limit(), "a number of bytes");
    }
    Ok(())
}

fn check_network(network: &LinuxNetwork) -> Checked {
    for priority in network.priorities().iter().flatten() {
        let name = priority.name();
        let ordinary = |c: char| !c.is_whitespace() && !matches!(c, '\0' | '/');
        if !(1..=INTERFACE_MAX).contains(&name.len()) || !name.chars().all(ordinary) {
            return invalid("network.priorities.name", name.escape_debug(), "the name of an interface");
        }
    }
    Ok(())
}

/// A rule says no more than it seems to: what is left out or cannot be is never "all".
fn check_device(rule: &LinuxDeviceCgroup) -> Checked {
    let access = rule.access().as_deref().unwrap_or_default();
    if access.is_empty() || !access.chars().all(|letter| "rwm".contains(letter)) {
        return invalid("devices.access", access.escape_debug(), "one or more of `r`, `w` and `m`");
    }
    for (name, number) in [("devices.major", rule.major()), ("devices.minor", rule.minor())] {
        if let Some(number) = number.filter(|number| !(-1..=DEVICE_NUMBER_MAX).contains(number)) {
            return invalid(name, number, "0 to 4294967294, or -1 for all");
        }
    }
    match rule.typ().unwrap_or_default() {
        LinuxDeviceType::P => invalid("devices.type", "p", "`a`, `b` or `c`: pipes are no devices"),
        // The kernel of v1 looks no further than at the letter.
        LinuxDeviceType::A => {
            let numbers = [rule.major(), rule.minor()];
            if numbers.iter().flatten().any(|number| *number >= 0) {
                let expected = "`b` or `c`, for `a` stands for all devices whatever the numbers";
                return invalid("devices.type", "a", expected);
            }
            if !"rwm".chars().all(|letter| access.contains(letter)) {
                return invalid("devices.access", access, "`rwm`, for the type `a` stands for all access");
            }
            Ok(())
        }
        LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cgroup, Hierarchy, Layout, plan, update};
    use super::*;

    /// A hybrid host, whose v2 tree has the controller for huge pages.
    fn hybrid() -> Layout {
        let names = ["memory", "cpu", "cpuset", "pids", "devices", "blkio"];
        let hierarchy =
            |name: &str| Hierarchy { controllers: vec![name.to_owned()], mount: format!("/c/{name}").into() };
        Layout {
            v1: names.map(hierarchy).to_vec(),
            unified: Some("/c/unified".into()),
            unified_controllers: vec!["hugetlb".to_owned()],
        }
    }

    fn v2() -> Layout {
        Layout { unified: Some("/c".into()), ..Default::default() }
    }

    fn planned(layout: &Layout, json: &str) -> Result<Vec<String>, String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let plan = plan(layout, "/t", Some(&resources)).map_err(|error| error.to_string())?;
        Ok(plan.limits.iter().map(|write| format!("{} = {}", write.path.display(), write.value)).collect())
    }

    #[test]
    fn what_no_kernel_takes_is_refused_with_field_value_and_rule() {
        // Without its first part, `linux.resources.`.
        let table = [
            (r#"{ "memory": { "limit": -5 } }"#, "memory.limit", "-5", "or -1 for no limit"),
            (r#"{ "memory": { "reservation": -7 } }"#, "memory.reservation", "-7", "or -1 for no limit"),
            (r#"{ "memory": { "limit": 9, "swap": -2 } }"#, "memory.swap", "-2", "or -1 for no limit"),
            (r#"{ "memory": { "limit": 10, "swap": 5 } }"#, "memory.swap", "5", "at least the limit"),
            (
                r#"{ "memory": { "swap": 5 } }"#,
                "memory.swap",
                "5",
                "`linux.resources.memory.limit` beside it",
            ),
            (r#"{ "memory": { "limit": -1, "swap": 5 } }"#, "memory.swap", "5", "memory.limit` beside it"),
            (r#"{ "memory": { "swappiness": 101 } }"#, "memory.swappiness", "101", "0 to 100"),
            (r#"{ "cpu": { "shares": 1 } }"#, "cpu.shares", "1", "2 to 262144"),
            (r#"{ "cpu": { "shares": 999999999 } }"#, "cpu.shares", "999999999", "2 to 262144"),
            (r#"{ "cpu": { "quota": 1 } }"#, "cpu.quota", "1", "at least 1000 microseconds"),
            (r#"{ "cpu": { "period": 1 } }"#, "cpu.period", "1", "1000 to 1000000 microseconds"),
            (r#"{ "cpu": { "period": 10000000 } }"#, "cpu.period", "10000000", "1000 to 1000000"),
            (r#"{ "cpu": { "quota": 2000, "burst": 2001 } }"#, "cpu.burst", "2001", "at most the quota"),
            (
                r#"{ "cpu": { "realtimeRuntime": 6, "realtimePeriod": 5 } }"#,
                "cpu.realtimeRuntime",
                "6",
                "at most `linux.resources.cpu.realtimePeriod`",
            ),
            (r#"{ "cpu": { "idle": 2 } }"#, "cpu.idle", "2", "0 or 1"),
            (r#"{ "cpu": { "cpus": "x" } }"#, "cpu.cpus", "x", "numbers and ranges"),
            (r#"{ "cpu": { "mems": "1-0" } }"#, "cpu.mems", "1-0", "numbers and ranges"),
            (r#"{ "blockIO": { "weight": 5 } }"#, "blockIO.weight", "5", "10 to 1000"),
            (
                r#"{ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0, "weight": 5 }] } }"#,
                "blockIO.weightDevice.weight",
                "5",
                "10 to 1000",
            ),
            (
                r#"{ "blockIO": { "weightDevice": [{ "major": -8, "minor": 0, "weight": 50 }] } }"#,
                "blockIO.weightDevice",
                "-8:0",
                "major and minor number",
            ),
            (
                r#"{ "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minor": -1, "rate": 50 }] } }"#,
                "blockIO.throttleReadBpsDevice",
                "8:-1",
                "major and minor number",
            ),
            (
                r#"{ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] }"#,
                "hugepageLimits.pageSize",
                "3MB",
                "2MB",
            ),
            (
                r#"{ "hugepageLimits": [{ "pageSize": "../x", "limit": 1 }] }"#,
                "hugepageLimits.pageSize",
                "../x",
                "2MB",
            ),
            (
                r#"{ "hugepageLimits": [{ "pageSize": "2MB", "limit": -1 }] }"#,
                "hugepageLimits.limit",
                "-1",
                "bytes",
            ),
            (
                r#"{ "network": { "priorities": [{ "name": "a b", "priority": 1 }] } }"#,
                "network.priorities.name",
                "a b",
                "the name of an interface",
            ),
            (r#"{ "rdma": { "a b": {} } }"#, "rdma", "a b", "the name of a device"),
            (
                r#"{ "devices": [{ "allow": true, "major": -5, "access": "rwm" }] }"#,
                "devices.major",
                "-5",
                "-1 for all",
            ),
            (
                r#"{ "devices": [{ "allow": true, "type": "c", "major": 5000, "minor": -7, "access": "r" }] }"#,
                "devices.minor",
                "-7",
                "-1 for all",
            ),
            (
                r#"{ "devices": [{ "allow": true, "type": "c", "major": 4294967295, "access": "r" }] }"#,
                "devices.major",
                "4294967295",
                "-1 for all",
            ),
            (r#"{ "devices": [{ "allow": true, "type": "c" }] }"#, "devices.access", "", "one or more of"),
            (r#"{ "devices": [{ "allow": false, "access": "" }] }"#, "devices.access", "", "one or more of"),
            (
                r#"{ "devices": [{ "allow": true, "type": "c", "access": "rx" }] }"#,
                "devices.access",
                "rx",
                "one or more of",
            ),
            (
                r#"{ "devices": [{ "allow": true, "type": "p", "access": "r" }] }"#,
                "devices.type",
                "p",
                "`a`, `b` or `c`",
            ),
            (
                r#"{ "devices": [{ "allow": true, "major": 1, "minor": 3, "access": "rwm" }] }"#,
                "devices.type",
                "a",
                "stands for all devices",
            ),
            (
                r#"{ "devices": [{ "allow": true, "access": "r" }] }"#,
                "devices.access",
                "r",
                "stands for all access",
            ),
            (r#"{ "unified": { "a/b.c": "1" } }"#, "unified", "a/b.c", "the name of a controller's v2 file"),
            (
                r#"{ "unified": { "memory": "1" } }"#,
                "unified",
                "memory",
                "the name of a controller's v2 file",
            ),
            (
                r#"{ "unified": { "hugetlb.../x": "1" } }"#,
                "unified",
                "hugetlb.../x",
                "the name of a controller's",
            ),
            (
                r#"{ "unified": { "cgroup.procs": "1" } }"#,
                "unified",
                "cgroup.procs",
                "none of the tree itself",
            ),
            (
                r#"{ "unified": { "cgroup.threads": "1" } }"#,
                "unified",
                "cgroup.threads",
                "none of the tree itself",
            ),
            (r#"{ "unified": { "cgroup.kill": "1" } }"#, "unified", "cgroup.kill", "none of the tree itself"),
            (
                r#"{ "unified": { "cgroup.freeze": "1" } }"#,
                "unified",
                "cgroup.freeze",
                "none of the tree itself",
            ),
            (
                r#"{ "unified": { "cgroup.type": "threaded" } }"#,
                "unified",
                "cgroup.type",
                "none of the tree itself",
            ),
            (
                r#"{ "unified": { "cgroup.subtree_control": "+pids" } }"#,
                "unified",
                "cgroup.subtree_control",
                "none of the tree itself",
            ),
        ];
        for (json, field, value, rule) in table {
            for layout in [hybrid(), v2()] {
                let error = planned(&layout, json).unwrap_err();
                let expected =
                    format!("`linux.resources.{field}` has the invalid value `{value}`: expected ");
                assert!(error.starts_with(&expected) && error.contains(rule), "{json}\n{error}");
            }
        }
    }

    #[test]
    fn what_this_host_has_not_is_refused_by_name() {
        let (v1, v2) = (hybrid(), v2());
        for (layout, json, expected) in [
            (
                &v2,
                r#"{ "memory": { "swappiness": 10 } }"#,
                "`linux.resources.memory.swappiness` is not supported",
            ),
            (&v1, r#"{ "memory": { "kernel": 1 } }"#, "`linux.resources.memory.kernel` is not supported"),
            (
                &v2,
                r#"{ "cpu": { "realtimeRuntime": 5 } }"#,
                "`linux.resources.cpu.realtimeRuntime` is not supported",
            ),
            (
                &v1,
                r#"{ "network": { "classID": 1 } }"#,
                "`linux.resources.network.classID` needs the cgroup controller `net_cls`",
            ),
            (
                &v1,
                r#"{ "unified": { "memory.max": "1" } }"#,
                "invalid configuration: `linux.resources.unified` needs the cgroup controller `memory`",
            ),
            (
                &v1,
                r#"{ "unified": { "moon.max": "1" } }"#,
                "`linux.resources.unified` needs the cgroup controller `moon`",
            ),
            (
                &v2,
                r#"{ "unified": { "moon.max": "1" } }"#,
                "`linux.resources.unified` needs the cgroup controller `moon`",
            ),
            (&v1, r#"{ "unified": { "cgroup.max.depth": "1" } }"#, "none of the tree itself"),
        ] {
            let error = planned(layout, json).unwrap_err();
            assert!(error.contains(expected), "{json}\n{error}");
        }
    }

    #[test]
    fn what_engines_send_is_taken() {
        for (layout, json, expected) in [
            (hybrid(), r#"{ "pids": { "limit": 0 } }"#, &[][..]),
            (hybrid(), r#"{ "memory": { "swap": -1 } }"#, &["/c/memory/t/memory.memsw.limit_in_bytes = -1"]),
            (hybrid(), r#"{ "cpu": { "quota": -1 } }"#, &["/c/cpu/t/cpu.cfs_quota_us = -1"]),
            (
                hybrid(),
                r#"{ "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "access": "mr" }] }"#,
                &["/c/devices/t/devices.deny = a *:* rwm", "/c/devices/t/devices.allow = c 1:* mr"],
            ),
            (hybrid(), r#"{ "unified": { "hugetlb.2MB.max": "0" } }"#, &["/c/unified/t/hugetlb.2MB.max = 0"]),
            (v2(), r#"{ "unified": { "memory.high": "9" } }"#, &["/c/t/memory.high = 9"]),
            (v2(), r#"{ "unified": { "cgroup.max.depth": "1" } }"#, &["/c/t/cgroup.max.depth = 1"]),
        ] {
            assert_eq!(planned(&layout, json).unwrap(), expected, "{json}");
        }
        // A limit may be there already.
        let swap: LinuxResources = serde_json::from_str(r#"{ "memory": { "swap": 5 } }"#).unwrap();
        let layout = hybrid();
        update(&layout, Cgroup::at(&layout, "/t"), Some(&swap)).unwrap();
    }

    #[test]
    fn lists_of_numbers_are_told_from_others() {
        for good in ["0", "0-3,7", "0,1,", "0-31:1/2", " 0-1\n", "0 2", "99"] {
            assert!(is_number_list(good), "{good:?}");
        }
        for bad in [
            "x",
            ",",
            " ",
            "3-1",
            "-1",
            "1-",
            "1--2",
            "0-3:2",
            "0\n1",
            "0-3:3/2",
            "0:0/0",
            "+1",
            "4294967296",
        ] {
            assert!(!is_number_list(bad), "{bad:?}");
        }
    }
}
