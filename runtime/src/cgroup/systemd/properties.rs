//! What systemd is told about a container's limits, so that it does not undo them when it writes to files itself. Pure.
//!
//! Properties follow from the values that are written to the cgroup's files, whoever asked for those. What systemd has no
//! property for is in the files alone: it leaves files alone that it knows nothing about.
//!
//! Source: systemd.resource-control(5); org.freedesktop.systemd1(5), "Scope Unit Objects".

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::wire::{Property, Value};
use crate::cgroup::{CgroupError, Write};

/// No limit, or no end.
const INFINITY: u64 = u64::MAX;
/// The kernel's, when nobody names one.
const PERIOD_MICROS: u64 = 100_000;
/// A second's share is kept as whole percents when systemd writes it down.
const PERCENT_MICROS: u64 = 10_000;
/// More than any kernel is built for.
const CPUS_MAX: usize = 8192;

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

/// Properties of a scope or slice that follow from no limit.
pub(super) fn basic(unit: &str, slice: &str, is_slice: bool, is_v2: bool) -> Vec<Property> {
    let mut all = vec![property("Description", Value::Text(format!("rswarm container {unit}")))];
    if is_slice {
        // Its name says what it is in; that much has to be there.
        all.push(property("Wants", Value::Texts(vec![slice.to_owned()])));
    } else {
        all.push(property("Slice", Value::Text(slice.to_owned())));
        all.push(property("Delegate", Value::Bool(true)));
        all.push(property("CollectMode", Value::Text("inactive-or-failed".to_owned())));
    }
    let block_io = if is_v2 { "IOAccounting" } else { "BlockIOAccounting" };
    for name in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", block_io] {
        all.push(property(name, Value::Bool(true)));
    }
    all.push(property("DefaultDependencies", Value::Bool(false)));
    all
}

/// A scope is made around it.
pub(super) fn first_process(pid: i32) -> Property {
    property("PIDs", Value::Numbers(vec![pid.unsigned_abs()]))
}

/// Properties that say the same as `limits`. What `version` does not know is left to the files.
pub(super) fn of_limits(limits: &[Write], version: u32) -> Vec<Property> {
    let mut all = Vec::new();
    let mut cpu = Cpu::default();
    for Write { path, value, .. } in limits {
        let value = value.trim();
        let amount = || match value {
            "max" | "-1" => Some(INFINITY),
            number => number.parse().ok(),
        };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let (name, value) = match &*file {
            "memory.max" => ("MemoryMax", amount().map(Value::U64)),
            "memory.high" => ("MemoryHigh", amount().map(Value::U64)),
            "memory.low" => ("MemoryLow", amount().map(Value::U64)),
            "memory.min" => ("MemoryMin", amount().map(Value::U64)),
            "memory.swap.max" => ("MemorySwapMax", amount().map(Value::U64)),
            "memory.limit_in_bytes" => ("MemoryLimit", amount().map(Value::U64)),
            "pids.max" => ("TasksMax", amount().map(Value::U64)),
            "cpu.weight" => ("CPUWeight", amount().map(Value::U64)),
            "cpu.shares" => ("CPUShares", amount().map(Value::U64)),
            // A weight of 0 stands for it.
            "cpu.idle" if version >= 252 && value == "1" => ("CPUWeight", Some(Value::U64(0))),
            "blkio.bfq.weight" => ("BlockIOWeight", amount().map(Value::U64)),
            "io.bfq.weight" => ("IOWeight", amount().map(|weight| Value::U64(io_weight(weight)))),
            "cpuset.cpus" if version >= 244 => ("AllowedCPUs", mask(value).map(Value::Bytes)),
            "cpuset.mems" if version >= 244 => ("AllowedMemoryNodes", mask(value).map(Value::Bytes)),
            file => {
                cpu.note(file, value);
                continue;
            }
        };
        all.extend(value.map(|value| property(name, value)));
    }
    all.extend(cpu.properties(version));
    all
}

/// A share of the processors, which v1 has in two files.
#[derive(Default)]
struct Cpu {
    quota_micros: Option<u64>,
    period_micros: Option<u64>,
}

impl Cpu {
    fn note(&mut self, file: &str, value: &str) {
        let mut words = value.split_ascii_whitespace();
        let quota =
            |word: &str| if matches!(word, "max" | "-1") { Some(INFINITY) } else { word.parse().ok() };
        match file {
            "cpu.max" => {
                self.quota_micros = words.next().and_then(quota).or(self.quota_micros);
                self.period_micros = words.next().and_then(|word| word.parse().ok()).or(self.period_micros);
            }
            "cpu.cfs_quota_us" => self.quota_micros = quota(value).or(self.quota_micros),
            "cpu.cfs_period_us" => self.period_micros = value.parse().ok().or(self.period_micros),
            _ => {}
        }
    }

    fn properties(&self, version: u32) -> Vec<Property> {
        let mut all = Vec::new();
        let period = self.period_micros.filter(|period| *period > 0);
        if let Some(period) = period.filter(|_| version >= 242) {
            all.push(property("CPUQuotaPeriodUSec", Value::U64(period)));
        }
        if let Some(quota) = self.quota_micros {
            let per_second = if quota == INFINITY {
                INFINITY
            } else {
                let exact = u128::from(quota) * 1_000_000 / u128::from(period.unwrap_or(PERIOD_MICROS));
                u64::try_from(exact).unwrap_or(INFINITY - PERCENT_MICROS).next_multiple_of(PERCENT_MICROS)
            };
            all.push(property("CPUQuotaPerSecUSec", Value::U64(per_second)));
        }
        all
    }
}

/// The weight (1 to 10,000) of which systemd makes this one of the BFQ scheduler's (1 to 1,000): up to 100 they are the
/// same.
fn io_weight(bfq: u64) -> u64 {
    if bfq <= 100 { bfq } else { 100 + (bfq.min(1000) - 100) * 11 }
}

/// A list such as `0-2,5` as bits, the lowest first.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        for number in first..=last {
            if bytes.len() <= number / 8 {
                bytes.resize(number / 8 + 1, 0);
            }
            bytes[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bytes)
}

/// Properties that allow at least what `rules` do: a list is all that systemd has, and on v1 it writes it over whatever
/// else is in the files. What the rules take out of it is taken out by the program, or the files, of the cgroup.
///
/// # Errors
/// A rule about one minor number of all major ones, which there is no word for.
pub(super) fn of_devices(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Property>, CgroupError> {
    let mut everything = true;
    let mut list: BTreeMap<String, String> = BTreeMap::new();
    for rule in rules {
        let access = rule.access().as_deref().unwrap_or_default();
        let number = |number: Option<i64>| number.filter(|number| *number >= 0);
        let what = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            // All kinds, hence all numbers and all access.
            LinuxDeviceType::A | LinuxDeviceType::P => {
                everything = rule.allow();
                list.clear();
                continue;
            }
            LinuxDeviceType::B => device("block", number(rule.major()), number(rule.minor()))?,
            LinuxDeviceType::C | LinuxDeviceType::U => {
                device("char", number(rule.major()), number(rule.minor()))?
            }
        };
        if rule.allow() && !everything {
            let known = list.entry(what).or_default();
            known.extend(access.chars().filter(|letter| !known.contains(*letter)).collect::<Vec<_>>());
        }
    }
    let policy = if everything { "auto" } else { "strict" };
    Ok(vec![
        property("DevicePolicy", Value::Text(policy.to_owned())),
        property("DeviceAllow", Value::Pairs(list.into_iter().collect())),
    ])
}

/// systemd's word for devices of one kind.
fn device(kind: &str, major: Option<i64>, minor: Option<i64>) -> Result<String, CgroupError> {
    match (major, minor) {
        (Some(major), Some(minor)) => Ok(format!("/dev/{kind}/{major}:{minor}")),
        (Some(major), None) => Ok(format!("{kind}-{major}")),
        (None, None) => Ok(format!("{kind}-*")),
        (None, Some(_)) => {
            let reason = "systemd has no word for one minor number of all major numbers";
            Err(CgroupError::NotSupported { name: "devices", reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn limits(list: &[(&str, &str)]) -> Vec<Write> {
        list.iter()
            .map(|(file, value)| Write {
                path: format!("/c/{file}").into(),
                value: (*value).to_owned(),
                name: None,
            })
            .collect()
    }

    fn check(version: u32, list: &[(&str, &str)], expected: &[(&str, Value)]) {
        let expected: Vec<Property> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        assert_eq!(of_limits(&limits(list), version), expected, "{list:?}");
    }

    #[test]
    fn limits_have_properties() {
        check(
            252,
            &[
                ("memory.max", "1000"),
                ("memory.swap.max", "max"),
                ("memory.low", "500"),
                ("cpu.weight", "39"),
                ("pids.max", "7"),
                ("cpuset.cpus", "0-1,9"),
                ("cpuset.mems", "0"),
                ("hugetlb.2MB.max", "0"),
                ("cpu.max", "50000 100000"),
            ],
            &[
                ("MemoryMax", Value::U64(1000)),
                ("MemorySwapMax", Value::U64(u64::MAX)),
                ("MemoryLow", Value::U64(500)),
                ("CPUWeight", Value::U64(39)),
                ("TasksMax", Value::U64(7)),
                ("AllowedCPUs", Value::Bytes(vec![3, 2])),
                ("AllowedMemoryNodes", Value::Bytes(vec![1])),
                ("CPUQuotaPeriodUSec", Value::U64(100_000)),
                ("CPUQuotaPerSecUSec", Value::U64(500_000)),
            ],
        );
        check(
            252,
            &[
                ("memory.limit_in_bytes", "-1"),
                ("cpu.shares", "1024"),
                ("cpu.cfs_period_us", "50000"),
                ("cpu.cfs_quota_us", "12345"),
                ("blkio.bfq.weight", "500"),
            ],
            &[
                ("MemoryLimit", Value::U64(u64::MAX)),
                ("CPUShares", Value::U64(1024)),
                ("BlockIOWeight", Value::U64(500)),
                ("CPUQuotaPeriodUSec", Value::U64(50_000)),
                // 24.69 % are at least 25.
                ("CPUQuotaPerSecUSec", Value::U64(250_000)),
            ],
        );
    }

    #[test]
    fn what_systemd_does_not_know_is_left_to_the_files() {
        check(
            241,
            &[("cpuset.cpus", "0"), ("cpu.max", "max 1000"), ("cpu.idle", "1")],
            &[("CPUQuotaPerSecUSec", Value::U64(u64::MAX))],
        );
        check(
            252,
            &[("cpu.idle", "1"), ("io.bfq.weight", "1000")],
            &[("CPUWeight", Value::U64(0)), ("IOWeight", Value::U64(10_000))],
        );
        // The file is what says that these are wrong.
        check(
            252,
            &[("memory.max", "50%"), ("cpuset.cpus", "x"), ("cpuset.cpus", "0-99999"), ("cpu.max", "")],
            &[],
        );
        check(
            252,
            &[("cpu.max", "18446744073709551614 1")],
            &[
                ("CPUQuotaPeriodUSec", Value::U64(1)),
                ("CPUQuotaPerSecUSec", Value::U64(18_446_744_073_709_550_000)),
            ],
        );
    }

    fn rule(allow: bool, kind: LinuxDeviceType, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        let builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        builder.major(major).minor(minor).build().unwrap()
    }

    #[test]
    fn devices_are_a_list_that_allows_no_less() {
        use LinuxDeviceType::{A, B, C};
        let check = |rules: &[LinuxDeviceCgroup], policy: &str, expected: &[(&str, &str)]| {
            let pairs = expected.iter().map(|(what, how)| ((*what).to_owned(), (*how).to_owned())).collect();
            let expected = [
                property("DevicePolicy", Value::Text(policy.to_owned())),
                property("DeviceAllow", Value::Pairs(pairs)),
            ];
            assert_eq!(of_devices(rules).unwrap(), expected);
        };
        let nothing = || rule(false, A, -1, -1, "rwm");
        check(&[], "auto", &[]);
        check(&[nothing()], "strict", &[]);
        check(
            &[
                nothing(),
                rule(true, C, -1, -1, "m"),
                rule(true, C, 1, 3, "r"),
                rule(true, C, 1, 3, "mw"),
                rule(false, C, 1, 3, "w"),
                rule(true, C, 136, -1, "rwm"),
                rule(true, B, 8, 0, "rwm"),
            ],
            "strict",
            &[("/dev/block/8:0", "rwm"), ("/dev/char/1:3", "rmw"), ("char-*", "m"), ("char-136", "rwm")],
        );
        check(&[nothing(), rule(true, A, -1, -1, "rwm"), rule(true, C, 1, 3, "r")], "auto", &[]);
        check(&[rule(true, C, 1, 3, "r"), nothing()], "strict", &[]);
        let refused = of_devices(&[nothing(), rule(true, C, -1, 3, "r")]).unwrap_err().to_string();
        assert!(
            refused.contains("`linux.resources.devices`") && refused.contains("one minor number"),
            "{refused}"
        );
    }
}
