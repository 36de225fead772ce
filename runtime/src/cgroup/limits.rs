//! From OCI resources to the values of cgroup files. Pure.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources};

use super::{Cgroup, Layout};

/// The cgroup to make and what to write into it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlan {
    pub cgroup: Cgroup,
    pub limits: Vec<Write>,
    /// Device rules that files cannot express: on v2 they are a program.
    pub device_program: Option<Vec<LinuxDeviceCgroup>>,
}

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub path: PathBuf,
    pub value: String,
}

/// Resources that cannot be had here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "invalid cgroup path `{path}`: expected an absolute path without `..`, such as `/rswarm/node/task`"
    )]
    Path { path: String },
    #[error("resource `{name}` is not supported yet")]
    NotSupported { name: &'static str },
    #[error("resource `{name}` needs the cgroup controller `{controller}`, which this host does not have")]
    NoController { name: &'static str, controller: &'static str },
    #[error("resource `{name}` has the invalid value `{value}`")]
    Invalid { name: &'static str, value: String },
}

/// What to make and write for a container with `resources` in the cgroup `path`.
///
/// # Errors
/// A limit that this host cannot keep is an error, never silently absent.
pub fn plan(
    layout: &Layout,
    path: &str,
    resources: Option<&LinuxResources>,
) -> Result<CgroupPlan, CgroupError> {
    let ordinary = path.starts_with('/')
        && path.len() > 1
        && path[1..].split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\n', '\0']));
    if !ordinary {
        return Err(CgroupError::Path { path: path.to_owned() });
    }
    let cgroup = Cgroup::at(layout, path);
    let mut files = Files { cgroup: &cgroup, v2: layout.v1.is_empty(), writes: Vec::new() };
    let mut device_program = None;
    if let Some(resources) = resources {
        refuse_unsupported(resources, files.v2)?;
        if let Some(memory) = resources.memory() {
            files.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            files.cpu(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            let limit = pids.limit();
            let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
            files.write("pids.limit", "pids", "pids.max", value)?;
        }
        if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
            if files.v2 {
                device_program = Some(rules.clone());
            } else {
                for rule in rules {
                    let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
                    files.write("devices", "devices", file, device_rule(rule)?)?;
                }
            }
        }
        for (name, value) in resources.unified().iter().flatten() {
            if name.contains('/') || !name.contains('.') {
                return Err(CgroupError::Invalid { name: "unified", value: name.clone() });
            }
            files.write("unified", "unified", name, value.clone())?;
        }
    }
    let limits = files.writes;
    Ok(CgroupPlan { cgroup, limits, device_program })
}

fn refuse_unsupported(resources: &LinuxResources, v2: bool) -> Result<(), CgroupError> {
    let refused = [
        ("blockIO", resources.block_io().is_some()),
        ("hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty())),
        ("network", resources.network().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|map| !map.is_empty())),
        ("memory.kernelTCP", resources.memory().as_ref().is_some_and(|memory| memory.kernel_tcp().is_some())),
        ("unified", !v2 && resources.unified().as_ref().is_some_and(|map| !map.is_empty())),
    ];
    refused.iter().find(|(_, set)| *set).map_or(Ok(()), |(name, _)| Err(CgroupError::NotSupported { name }))
}

/// Collects values for the files of one cgroup.
struct Files<'a> {
    cgroup: &'a Cgroup,
    v2: bool,
    writes: Vec<Write>,
}

impl Files<'_> {
    fn write(
        &mut self,
        name: &'static str,
        controller: &'static str,
        file: &str,
        value: String,
    ) -> Result<(), CgroupError> {
        let member = self
            .cgroup
            .members
            .iter()
            .find(|member| if self.v2 { member.is_unified() } else { member.has(controller) });
        let Some(member) = member else { return Err(CgroupError::NoController { name, controller }) };
        self.writes.push(Write { path: member.directory.join(file), value });
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        let bytes = |value: i64, none: &str| if value < 0 { none.to_owned() } else { value.to_string() };
        if self.v2 {
            if let Some(limit) = memory.limit() {
                self.write("memory.limit", "memory", "memory.max", bytes(limit, "max"))?;
            }
            if let Some(total) = memory.swap() {
                // OCI and v1 count memory and swap together, v2 swap alone.
                let swap = match (total, memory.limit()) {
                    (total, _) if total < 0 => -1,
                    (total, Some(limit)) if limit >= 0 && total >= limit => total - limit,
                    _ => return Err(CgroupError::Invalid { name: "memory.swap", value: total.to_string() }),
                };
                self.write("memory.swap", "memory", "memory.swap.max", bytes(swap, "max"))?;
            }
            if let Some(reservation) = memory.reservation() {
                self.write("memory.reservation", "memory", "memory.low", bytes(reservation, "max"))?;
            }
            if memory.swappiness().is_some() {
                return Err(CgroupError::NotSupported { name: "memory.swappiness" });
            }
            if memory.disable_oom_killer() == Some(true) {
                return Err(CgroupError::NotSupported { name: "memory.disableOOMKiller" });
            }
            return Ok(());
        }
        if let Some(limit) = memory.limit() {
            self.write("memory.limit", "memory", "memory.limit_in_bytes", bytes(limit, "-1"))?;
        }
        if let Some(total) = memory.swap() {
            // After the limit: the kernel refuses a total below it.
            self.write("memory.swap", "memory", "memory.memsw.limit_in_bytes", bytes(total, "-1"))?;
        }
        if let Some(reservation) = memory.reservation() {
            self.write(
                "memory.reservation",
                "memory",
                "memory.soft_limit_in_bytes",
                bytes(reservation, "-1"),
            )?;
        }
        if let Some(swappiness) = memory.swappiness() {
            self.write("memory.swappiness", "memory", "memory.swappiness", swappiness.to_string())?;
        }
        if memory.disable_oom_killer() == Some(true) {
            self.write("memory.disableOOMKiller", "memory", "memory.oom_control", "1".to_owned())?;
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        let realtime = cpu.realtime_period().is_some_and(|value| value > 0)
            || cpu.realtime_runtime().is_some_and(|value| value != 0);
        if realtime {
            return Err(CgroupError::NotSupported { name: "cpu.realtimeRuntime" });
        }
        let period = cpu.period().filter(|period| *period > 0);
        if self.v2 {
            if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
                self.write("cpu.shares", "cpu", "cpu.weight", weight(shares).to_string())?;
            }
            if cpu.quota().is_some() || period.is_some() {
                let quota =
                    cpu.quota().filter(|quota| *quota > 0).map_or("max".to_owned(), |q| q.to_string());
                let value = format!("{quota} {}", period.unwrap_or(100_000));
                self.write("cpu.quota", "cpu", "cpu.max", value)?;
            }
            if let Some(burst) = cpu.burst() {
                self.write("cpu.burst", "cpu", "cpu.max.burst", burst.to_string())?;
            }
        } else {
            if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
                self.write("cpu.shares", "cpu", "cpu.shares", shares.to_string())?;
            }
            if let Some(period) = period {
                self.write("cpu.period", "cpu", "cpu.cfs_period_us", period.to_string())?;
            }
            if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
                self.write("cpu.quota", "cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
            if let Some(burst) = cpu.burst() {
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

fn device_rule(rule: &LinuxDeviceCgroup) -> Result<String, CgroupError> {
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => "a",
        LinuxDeviceType::B => "b",
        LinuxDeviceType::C | LinuxDeviceType::U => "c",
        LinuxDeviceType::P => return Err(CgroupError::Invalid { name: "devices", value: "p".to_owned() }),
    };
    let number = |number: Option<i64>| match number {
        Some(number) if number >= 0 => number.to_string(),
        _ => "*".to_owned(),
    };
    let access = rule.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    if !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(CgroupError::Invalid { name: "devices", value: access.to_owned() });
    }
    Ok(format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor())))
}
