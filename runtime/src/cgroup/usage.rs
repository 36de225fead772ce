//! Everything a cgroup tells about its use, in the shape of runc's `events`, which others read.
//!
//! Source: runc `types/events.go` for the names; Linux `cgroup-v1`, `cgroup-v2.rst` for the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::{Cgroup, keyed, read_number};

/// Use of all resources at one moment. Absent parts have no controller on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub cpu: Cpu,
    pub cpuset: CpuSet,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: BlockIo,
    /// By page size.
    pub hugetlb: BTreeMap<String, Counted>,
    /// Always empty: caches and bandwidth are not divided.
    pub intel_rdt: BTreeMap<String, String>,
    /// Always absent, as runc has it.
    pub network_interfaces: Option<()>,
}

/// Times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    pub usage: CpuUsage,
    pub throttling: Throttling,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u32>,
    #[serde(flatten)]
    pub flags: BTreeMap<&'static str, i64>,
}

/// In bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    pub usage: Counted,
    pub swap: Counted,
    pub kernel: Counted,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Counted,
    pub raw: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// 0 without a limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockEntry {
    pub major: u64,
    pub minor: u64,
    pub op: String,
    pub value: u64,
}

/// Kernel ticks, of which a process can only be told 100 in a second.
const TICK_NANOS: u64 = 10_000_000;

#[allow(clippy::trivially_copy_pass_by_ref)] // The shape serde asks for.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Cgroup {
    /// Current use of everything there is a counter for.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for member in &self.members {
            let directory = &member.directory;
            if member.is_unified() {
                usage.add_v2(directory);
            } else {
                for controller in &member.controllers {
                    usage.add_v1(controller, directory);
                }
            }
        }
        usage
    }
}

impl Usage {
    fn add_v1(&mut self, controller: &str, directory: &Path) {
        match controller {
            "cpu" => self.cpu.throttling = throttling(directory, "throttled_time", 1),
            "cpuacct" => self.cpu.usage = cpu_v1(directory),
            "cpuset" => self.cpuset = cpu_set(directory),
            "memory" => self.memory = memory_v1(directory),
            "pids" => self.pids = pids(directory),
            "blkio" => {
                self.blkio.io_service_bytes_recursive =
                    block_v1(&directory.join("blkio.throttle.io_service_bytes_recursive"));
                self.blkio.io_serviced_recursive =
                    block_v1(&directory.join("blkio.throttle.io_serviced_recursive"));
            }
            "hugetlb" => self.hugetlb = huge_pages(directory, ".usage_in_bytes"),
            _ => {}
        }
    }

    /// What no v1 hierarchy has told.
    fn add_v2(&mut self, directory: &Path) {
        if self.cpu.usage.total == 0 {
            let micros = |key| keyed(&directory.join("cpu.stat"), key).unwrap_or(0) * 1000;
            let (total, kernel, user) = (micros("usage_usec"), micros("system_usec"), micros("user_usec"));
            self.cpu.usage = CpuUsage { total, kernel, user, ..Default::default() };
        }
        if directory.join("cpu.max").exists() {
            self.cpu.throttling = throttling(directory, "throttled_usec", 1000);
        }
        if directory.join("memory.current").exists() {
            self.memory = memory_v2(directory);
        }
        if directory.join("pids.current").exists() {
            self.pids = pids(directory);
        }
        if directory.join("io.stat").exists() {
            self.blkio = block_v2(&directory.join("io.stat"));
        }
        if self.hugetlb.is_empty() {
            self.hugetlb = huge_pages(directory, ".current");
        }
    }
}

fn throttling(directory: &Path, time: &str, nanos: u64) -> Throttling {
    let number = |key| keyed(&directory.join("cpu.stat"), key).unwrap_or(0);
    Throttling {
        periods: number("nr_periods"),
        throttled_periods: number("nr_throttled"),
        throttled_time: number(time) * nanos,
    }
}

fn cpu_v1(directory: &Path) -> CpuUsage {
    // A heading, then a line for each CPU with its number, user and system time.
    let all = fs::read_to_string(directory.join("cpuacct.usage_all")).unwrap_or_default();
    let column = |at: usize| -> Vec<u64> {
        all.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(at)?.parse().ok()).collect()
    };
    let each = fs::read_to_string(directory.join("cpuacct.usage_percpu")).unwrap_or_default();
    let ticks = |key| keyed(&directory.join("cpuacct.stat"), key).unwrap_or(0) * TICK_NANOS;
    CpuUsage {
        total: read_number(&directory.join("cpuacct.usage")).unwrap_or(0),
        percpu: each.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect(),
        percpu_kernel: column(2),
        percpu_user: column(1),
        kernel: ticks("system"),
        user: ticks("user"),
    }
}

fn cpu_set(directory: &Path) -> CpuSet {
    const FLAGS: [&str; 8] = [
        "cpu_exclusive",
        "mem_hardwall",
        "mem_exclusive",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "memory_pressure",
        "sched_load_balance",
    ];
    let read = |name: &str| fs::read_to_string(directory.join(format!("cpuset.{name}"))).unwrap_or_default();
    let flags = FLAGS.iter().chain(&["sched_relax_domain_level"]);
    CpuSet {
        cpus: numbers(read("cpus").trim()),
        mems: numbers(read("mems").trim()),
        flags: flags.filter_map(|name| Some((*name, read(name).trim().parse().ok()?))).collect(),
    }
}

/// A list such as `0-2,5`.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn memory_v1(directory: &Path) -> Memory {
    let counted = |kind: &str| {
        let number = |file: &str| read_number(&directory.join(format!("memory{kind}.{file}"))).unwrap_or(0);
        Counted {
            limit: number("limit_in_bytes"),
            usage: number("usage_in_bytes"),
            max: number("max_usage_in_bytes"),
            failcnt: number("failcnt"),
        }
    };
    let raw = keys(&directory.join("memory.stat"));
    Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: counted(""),
        swap: counted(".memsw"),
        kernel: counted(".kmem"),
        kernel_tcp: counted(".kmem.tcp"),
        raw,
    }
}

fn memory_v2(directory: &Path) -> Memory {
    let number = |file: &str| read_number(&directory.join(file));
    // "max" is no number; runc shows the largest one then.
    let limit = |file: &str| number(file).unwrap_or(u64::MAX);
    let event = |key| keyed(&directory.join("memory.events"), key).unwrap_or(0);
    let raw = keys(&directory.join("memory.stat"));
    let (usage, swap) = (number("memory.current").unwrap_or(0), number("memory.swap.current").unwrap_or(0));
    let (memory_limit, swap_limit) = (limit("memory.max"), limit("memory.swap.max"));
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage: Counted {
            limit: memory_limit,
            usage,
            max: number("memory.peak").unwrap_or(0),
            failcnt: event("max"),
        },
        // As on v1: both together.
        swap: Counted {
            limit: memory_limit.saturating_add(swap_limit),
            usage: usage + swap,
            max: 0,
            failcnt: 0,
        },
        raw,
        ..Default::default()
    }
}

fn pids(directory: &Path) -> Pids {
    let number = |file: &str| read_number(&directory.join(file)).unwrap_or(0);
    Pids { current: number("pids.current"), limit: number("pids.max") }
}

/// All `key number` lines.
fn keys(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// Lines such as `8:0 Read 4096`.
fn block_v1(path: &Path) -> Vec<BlockEntry> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let (op, value) = (fields.next()?.to_owned(), fields.next()?.parse().ok()?);
        Some(BlockEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op, value })
    };
    text.lines().filter_map(entry).collect()
}

/// Lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0`.
fn block_v2(path: &Path) -> BlockIo {
    let mut all = BlockIo::default();
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some((major, minor)) = fields.next().and_then(|number| number.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for field in fields {
            let Some((key, Ok(value))) = field.split_once('=').map(|(key, value)| (key, value.parse()))
            else {
                continue;
            };
            let (list, op) = match key {
                "rbytes" => (&mut all.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut all.io_service_bytes_recursive, "Write"),
                "rios" => (&mut all.io_serviced_recursive, "Read"),
                "wios" => (&mut all.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlockEntry { major, minor, op: op.to_owned(), value });
        }
    }
    all
}

/// By page size, which is part of the files' names: `hugetlb.2MB.current`.
fn huge_pages(directory: &Path, usage: &str) -> BTreeMap<String, Counted> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
        (!size.contains('.')).then(|| size.to_owned())
    });
    let counted = |size: &str| {
        let number = |file: &str| read_number(&directory.join(format!("hugetlb.{size}.{file}")));
        let failures = keyed(&directory.join(format!("hugetlb.{size}.events")), "max");
        Counted {
            limit: 0,
            usage: number("usage_in_bytes").or(number("current")).unwrap_or(0),
            max: number("max_usage_in_bytes").unwrap_or(0),
            failcnt: number("failcnt").or(failures).unwrap_or(0),
        }
    };
    sizes.map(|size| (size.clone(), counted(&size))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_counters_have_the_shape_of_runcs_events() {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("cpu.max", "max 100000\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "file 40\nanon 60\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "9\n"),
            ("memory.events", "max 3\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n"),
            ("hugetlb.2MB.current", "6\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let mut usage = Usage::default();
        usage.add_v2(directory.path());
        let json = serde_json::to_string(&usage).unwrap();
        let expected = "{\"cpu\":{\"usage\":{\"total\":30000,\"kernel\":10000,\"user\":20000},\
            \"throttling\":{\"periods\":4,\"throttledPeriods\":2,\"throttledTime\":7000}},\"cpuset\":{},\
            \"memory\":{\"cache\":40,\"usage\":{\"limit\":18446744073709551615,\"usage\":100,\"failcnt\":3},\
            \"swap\":{\"limit\":18446744073709551615,\"usage\":105,\"failcnt\":0},\"kernel\":{\"failcnt\":0},\
            \"kernelTCP\":{\"failcnt\":0},\"raw\":{\"anon\":60,\"file\":40}},\"pids\":{\"current\":2},\
            \"blkio\":{\"ioServiceBytesRecursive\":[{\"major\":8,\"minor\":0,\"op\":\"Read\",\"value\":1},\
            {\"major\":8,\"minor\":0,\"op\":\"Write\",\"value\":2}],\"ioServicedRecursive\":[{\"major\":8,\"minor\":0,\
            \"op\":\"Read\",\"value\":3},{\"major\":8,\"minor\":0,\"op\":\"Write\",\"value\":4}]},\
            \"hugetlb\":{\"2MB\":{\"usage\":6,\"failcnt\":0}},\"intel_rdt\":{},\"network_interfaces\":null}";
        assert_eq!(json, expected);
    }

    #[test]
    fn lists_of_numbers_are_spelled_out() {
        assert_eq!(numbers("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(numbers(""), Vec::<u32>::new());
    }
}
