//! From OCI resources to the values of cgroup files. Pure.
//!
//! A zero that the specification does not give a meaning to is "not set", as in runc: engines send it.
//!
//! Source: OCI runtime-spec, "Control groups"; Linux `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst`.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxNetwork,
    LinuxResources,
};

use super::systemd::UnitPlan;
use super::{Cgroup, Layout, Member, check};

/// The cgroup to make and what to write into it, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct CgroupPlan {
    pub cgroup: Cgroup,
    /// What is there already is used as it is; else only what others have left behind is cleared away.
    pub reuse: bool,
    /// v2 controllers to hand down from the root.
    pub controllers: Vec<&'static str>,
    pub limits: Vec<Write>,
    /// Device rules that files cannot express: on v2 they are a program.
    pub device_program: Option<Vec<LinuxDeviceCgroup>>,
    /// What systemd is to make, where it manages the cgroup.
    pub unit: Option<UnitPlan>,
}

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub path: PathBuf,
    pub value: String,
    /// The resource that asks for it, as `cpu.quota`.
    pub name: Option<&'static str>,
}

/// Resources that cannot be had here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "`linux.cgroupsPath` has the invalid value `{path}`: expected a path of a cgroup without `..`, such as `/rswarm/node/task`"
    )]
    Path { path: String },
    #[error("`linux.cgroupsPath` has the invalid value `{path}`: expected {expected}")]
    UnitPath { path: String, expected: &'static str },
    #[error("the annotation `{key}` has the invalid value `{value}`: expected {expected}")]
    Annotation { key: String, value: String, expected: &'static str },
    #[error("`linux.resources.{name}` is not supported: {reason}")]
    NotSupported { name: &'static str, reason: &'static str },
    #[error(
        "`linux.resources.{name}` needs the cgroup controller `{controller}`, which this host does not have"
    )]
    NoController { name: &'static str, controller: &'static str },
    #[error(
        "invalid configuration: `linux.resources.unified` needs the cgroup controller `{controller}`, which the v2 tree of this host does not have"
    )]
    NotUnified { controller: String },
    #[error("`linux.resources.{name}` has the invalid value `{value}`: expected {expected}")]
    Invalid { name: &'static str, value: String, expected: &'static str },
}

/// Controllers that are switched on for our part of a v2 host's tree, and those that `unified` keys may ask for.
const CONTROLLERS: [&str; 8] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma", "misc"];
/// Of these, as many as every container gets.
const ALWAYS: usize = 5;
/// Files of the tree itself that limit it. All others move processes, end them, stop them or change what the tree is.
const TREE_LIMITS: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// What to make and write for a container with `resources` in the cgroup `path`.
///
/// # Errors
/// A limit that this host cannot keep is an error, never silently absent.
pub fn plan(
    layout: &Layout,
    path: &str,
    resources: Option<&LinuxResources>,
) -> Result<CgroupPlan, CgroupError> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let ordinary = |part: &&str| *part != ".." && !part.contains(['\n', '\0']);
    if !path.starts_with('/') || parts.is_empty() || !parts.iter().all(ordinary) {
        return Err(CgroupError::Path { path: path.to_owned() });
    }
    resources.map_or(Ok(()), check::check_first)?;
    update(layout, Cgroup::at(layout, &format!("/{}", parts.join("/"))), resources)
}

/// What to write for new `resources` of a container that exists.
///
/// # Errors
/// As [`plan`].
pub fn update(
    layout: &Layout,
    cgroup: Cgroup,
    resources: Option<&LinuxResources>,
) -> Result<CgroupPlan, CgroupError> {
    let controllers = if layout.is_v2() { CONTROLLERS[..ALWAYS].to_vec() } else { Vec::new() };
    let mut files = Files { cgroup: &cgroup, layout, controllers, writes: Vec::new() };
    let mut device_program = None;
    if let Some(resources) = resources {
        check::check(resources)?;
        if let Some(memory) = resources.memory() {
            files.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            files.cpu(cpu)?;
        }
        // As with runc, 0 changes nothing.
        if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
            let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
            files.write("pids.limit", "pids", "pids.max", value)?;
        }
        if let Some(block_io) = resources.block_io() {
            files.block_io(block_io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            files.huge_pages(limit)?;
        }
        if let Some(network) = resources.network() {
            files.network(network)?;
        }
        files.rdma(resources)?;
        if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
            if layout.is_v2() {
                device_program = Some(rules.clone());
            } else {
                for rule in rules {
                    let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
                    files.write("devices", "devices", file, device_rule(rule))?;
                }
            }
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort();
        for (key, value) in unified {
            files.unified(key, value)?;
        }
    }
    let Files { writes: limits, controllers, .. } = files;
    Ok(CgroupPlan { cgroup, reuse: false, controllers, limits, device_program, unit: None })
}

/// Collects values for the files of one cgroup.
pub(super) struct Files<'a> {
    cgroup: &'a Cgroup,
    layout: &'a Layout,
    controllers: Vec<&'static str>,
    writes: Vec<Write>,
}

impl Files<'_> {
    pub(super) fn write(
        &mut self,
        name: &'static str,
        controller: &'static str,
        file: &str,
        value: String,
    ) -> Result<(), CgroupError> {
        let path = self.member(name, controller)?.directory.join(file);
        self.use_unified(controller);
        self.writes.push(Write { path, value, name: Some(name) });
        Ok(())
    }

    /// Whether this controller is on v2.
    pub(super) fn is_v2(&self, name: &'static str, controller: &'static str) -> Result<bool, CgroupError> {
        self.member(name, controller).map(Member::is_unified)
    }

    fn member(&self, name: &'static str, controller: &'static str) -> Result<&Member, CgroupError> {
        let v2_name = if controller == "blkio" { "io" } else { controller };
        let v1 = self.cgroup.members.iter().find(|member| member.has(controller));
        let unified = || {
            let there =
                self.layout.is_v2() || self.layout.unified_controllers.iter().any(|found| found == v2_name);
            self.cgroup.members.iter().find(|member| there && member.is_unified())
        };
        v1.or_else(unified).ok_or(CgroupError::NoController { name, controller: v2_name })
    }

    /// Makes sure that the files of a controller appear where the v2 tree has it.
    fn use_unified(&mut self, controller: &str) {
        let name = if controller == "blkio" { "io" } else { controller };
        let v1 = self.cgroup.members.iter().any(|member| member.has(controller));
        let known = CONTROLLERS.iter().find(|known| **known == name);
        if let Some(known) = known.filter(|known| !v1 && !self.controllers.contains(known)) {
            self.controllers.push(known);
        }
    }

    /// A raw v2 file, as `memory.high`: one of a controller. `cgroup.procs` and its like would reach processes that are
    /// not the container's.
    fn unified(&mut self, key: &str, value: &str) -> Result<(), CgroupError> {
        const NAME: &str = "unified";
        let invalid = |value: &str, expected| {
            let value = value.escape_debug().to_string();
            Err(CgroupError::Invalid { name: NAME, value, expected })
        };
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let controller = match key.split_once('.') {
            Some((controller, file))
                if !controller.is_empty() && !file.is_empty() && key.bytes().all(ordinary) =>
            {
                controller
            }
            _ => return invalid(key, "the name of a controller's v2 file, such as `memory.high`"),
        };
        if controller == "cgroup" && !(self.layout.is_v2() && TREE_LIMITS.contains(&key)) {
            return invalid(key, "a controller's file, such as `memory.high`, and none of the tree itself");
        }
        if value.contains('\0') {
            return invalid(value, "a value without a zero byte for each file");
        }
        let there = controller == "cgroup"
            || self.layout.is_v2() && CONTROLLERS.contains(&controller)
            || self.layout.unified_controllers.iter().any(|found| found == controller);
        let member = self.cgroup.members.iter().find(|member| there && member.is_unified());
        let Some(member) = member else {
            return Err(CgroupError::NotUnified { controller: controller.to_owned() });
        };
        let path = member.directory.join(key);
        self.use_unified(controller);
        self.writes.push(Write { path, value: value.to_owned(), name: Some(NAME) });
        Ok(())
    }

    fn huge_pages(&mut self, limit: &LinuxHugepageLimit) -> Result<(), CgroupError> {
        let size = limit.page_size();
        let v2 = self.is_v2("hugepageLimits", "hugetlb")?;
        let file = if v2 { format!("hugetlb.{size}.max") } else { format!("hugetlb.{size}.limit_in_bytes") };
        self.write("hugepageLimits", "hugetlb", &file, limit.limit().to_string())
    }

    fn network(&mut self, network: &LinuxNetwork) -> Result<(), CgroupError> {
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            self.write("network.classID", "net_cls", "net_cls.classid", class.to_string())?;
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            self.write("network.priorities", "net_prio", "net_prio.ifpriomap", value)?;
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
        devices.sort_by_key(|(device, _)| device.as_str());
        for (device, limits) in devices {
            // The library keeps these two to itself, but not from its own serializer.
            let limits = serde_json::to_value(limits).unwrap_or_default();
            let part = |key: &str, name: &str| limits.get(key).map(|number| format!(" {name}={number}"));
            let parts = [part("hcaHandles", "hca_handle"), part("hcaObjects", "hca_object")];
            let value = parts.into_iter().flatten().fold(device.clone(), |text, part| text + &part);
            self.write("rdma", "rdma", "rdma.max", value)?;
        }
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        let bytes = |value: i64, none: &str| if value < 0 { none.to_owned() } else { value.to_string() };
        let set = |value: Option<i64>| value.filter(|value| *value != 0);
        let kernel = [("memory.kernel", memory.kernel()), ("memory.kernelTCP", memory.kernel_tcp())];
        for (name, value) in kernel {
            if set(value).is_some_and(|value| value > 0) {
                return Err(CgroupError::NotSupported { name, reason: "kernels have given up this limit" });
            }
        }
        let (limit, total, reservation) =
            (set(memory.limit()), set(memory.swap()), set(memory.reservation()));
        let swappiness = memory.swappiness();
        let nothing = limit.or(total).or(reservation).is_none()
            && swappiness.is_none()
            && memory.disable_oom_killer() != Some(true);
        if nothing {
            return Ok(());
        }
        if self.is_v2("memory", "memory")? {
            if let Some(limit) = limit {
                self.write("memory.limit", "memory", "memory.max", bytes(limit, "max"))?;
            }
            if let Some(total) = total {
                // OCI and v1 count memory and swap together, v2 swap alone.
                let swap = match (total, limit) {
                    (total, _) if total < 0 => -1,
                    (total, Some(limit)) if limit >= 0 && total >= limit => total - limit,
                    _ => {
                        let (value, expected) =
                            (total.to_string(), "memory and swap together, so at least the limit");
                        return Err(CgroupError::Invalid { name: "memory.swap", value, expected });
                    }
                };
                self.write("memory.swap", "memory", "memory.swap.max", bytes(swap, "max"))?;
            }
            if let Some(reservation) = reservation {
                self.write("memory.reservation", "memory", "memory.low", bytes(reservation, "max"))?;
            }
            let refused = [
                ("memory.swappiness", swappiness.is_some()),
                ("memory.disableOOMKiller", memory.disable_oom_killer() == Some(true)),
            ];
            if let Some((name, _)) = refused.iter().find(|(_, set)| *set) {
                return Err(CgroupError::NotSupported { name, reason: "cgroup v2 has no such setting" });
            }
            return Ok(());
        }
        if let Some(limit) = limit {
            self.write("memory.limit", "memory", "memory.limit_in_bytes", bytes(limit, "-1"))?;
        }
        if let Some(total) = total {
            // After the limit: the kernel refuses a total below it.
            self.write("memory.swap", "memory", "memory.memsw.limit_in_bytes", bytes(total, "-1"))?;
        }
        if let Some(reservation) = reservation {
            self.write(
                "memory.reservation",
                "memory",
                "memory.soft_limit_in_bytes",
                bytes(reservation, "-1"),
            )?;
        }
        if let Some(swappiness) = swappiness {
            self.write("memory.swappiness", "memory", "memory.swappiness", swappiness.to_string())?;
        }
        if memory.disable_oom_killer() == Some(true) {
            self.write("memory.disableOOMKiller", "memory", "memory.oom_control", "1".to_owned())?;
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        let period = cpu.period().filter(|period| *period > 0);
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let burst = cpu.burst();
        let realtime_period = cpu.realtime_period().filter(|value| *value > 0);
        let realtime_runtime = cpu.realtime_runtime().filter(|value| *value != 0);
        let shares = cpu.shares().filter(|shares| *shares > 0);
        let any = shares.is_some() || period.is_some() || quota.is_some() || burst.is_some();
        let any = any || realtime_period.is_some() || realtime_runtime.is_some();
        if any && self.is_v2("cpu", "cpu")? {
            if realtime_period.is_some() || realtime_runtime.is_some() {
                let reason = "cgroup v2 has no such setting";
                return Err(CgroupError::NotSupported { name: "cpu.realtimeRuntime", reason });
            }
            if let Some(shares) = shares {
                self.write("cpu.shares", "cpu", "cpu.weight", weight(shares).to_string())?;
            }
            if quota.is_some() || period.is_some() {
                let quota = quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |q| q.to_string());
                // Without a period the present one stays.
                let period = period.map_or(String::new(), |period| format!(" {period}"));
                self.write("cpu.quota", "cpu", "cpu.max", format!("{quota}{period}"))?;
            }
            if let Some(burst) = burst {
                self.write("cpu.burst", "cpu", "cpu.max.burst", burst.to_string())?;
            }
        } else if any {
            if let Some(period) = realtime_period {
                self.write("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", period.to_string())?;
            }
            if let Some(runtime) = realtime_runtime {
                self.write("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", runtime.to_string())?;
            }
            if let Some(shares) = shares {
                self.write("cpu.shares", "cpu", "cpu.shares", shares.to_string())?;
            }
            if let Some(period) = period {
                self.write("cpu.period", "cpu", "cpu.cfs_period_us", period.to_string())?;
            }
            if let Some(quota) = quota {
                self.write("cpu.quota", "cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
            if let Some(burst) = burst {
                self.write("cpu.burst", "cpu", "cpu.cfs_burst_us", burst.to_string())?;
            }
        }
        if let Some(idle) = cpu.idle() {
            self.write("cpu.idle", "cpu", "cpu.idle", idle.to_string())?;
        }
        for (name, file, value) in
            [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
        {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                self.write(name, "cpuset", file, value.clone())?;
            }
        }
        Ok(())
    }
}

/// v1 shares (2 to 262,144) on v2's scale (1 to 10,000), by the formula of the OCI and systemd.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

/// As the files take it. Rules have been checked.
fn device_rule(rule: &LinuxDeviceCgroup) -> String {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A | LinuxDeviceType::P => "a",
        LinuxDeviceType::B => "b",
        LinuxDeviceType::C | LinuxDeviceType::U => "c",
    };
    let number = |number: Option<i64>| match number {
        Some(number) if number >= 0 => number.to_string(),
        _ => "*".to_owned(),
    };
    let access = rule.access().as_deref().unwrap_or_default();
    format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()))
}
