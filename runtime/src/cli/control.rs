//! `pause`, `resume` and `update`.

use std::io::Read;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPidsBuilder, LinuxResources};

use super::Context;
use super::container::{Container, Phase, Record};
use super::create::NO_KERNEL_MEMORY;
use super::error::{CommandError, During, OnFile};
use super::options::{Parsed, UsageError};
use crate::cgroup::{self, CgroupError, Layout};
use crate::plan;

/// `pause`.
pub(super) fn pause(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    match container.phase() {
        Phase::Running | Phase::Created => {
            let layout = Layout::detect().on("read", "/proc/self/mountinfo")?;
            if !container.record.cgroup.has_freezer()
                && let Some(error) = not_delegated(&container, &layout, "freezer")
            {
                return Err(error);
            }
            Ok(container.record.cgroup.freeze()?)
        }
        phase => Err(CommandError::NotRunning { id: container.record.id, found: phase.name() }),
    }
}

/// `resume`.
pub(super) fn resume(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    match container.phase() {
        Phase::Paused => Ok(container.record.cgroup.thaw()?),
        phase => Err(CommandError::NotPaused { id: container.record.id, found: phase.name() }),
    }
}

/// `update`.
pub(super) fn update(context: &Context, parsed: &Parsed) -> Result<(), CommandError> {
    let container = context.load(parsed)?;
    if container.phase() == Phase::Stopped {
        let found = Phase::Stopped.name();
        return Err(CommandError::NotRunning { id: container.record.id, found });
    }
    let mut resources = resources(parsed)?;
    if let Some(memory) = resources.memory_mut() {
        if memory.kernel().or(memory.kernel_tcp()).is_some() {
            context.log.warn(NO_KERNEL_MEMORY);
            memory.set_kernel(None).set_kernel_tcp(None);
        }
        if memory.limit() == Some(-1) && memory.swap().is_none() && container.record.cgroup.limits_swap() {
            // As with runc, no limit of memory means none of memory and swap together either, which cannot be lower.
            memory.set_swap(Some(-1));
        }
    }
    keep_share(&container, &mut resources);
    let layout = Layout::detect().on("read", "/proc/self/mountinfo")?;
    let plan = cgroup::update(&layout, container.record.cgroup.clone(), Some(&resources));
    let plan = plan.map_err(|error| match &error {
        CgroupError::NoController { controller, .. } => {
            not_delegated(&container, &layout, controller).unwrap_or(error.into())
        }
        _ => error.into(),
    });
    Ok(plan?.change()?)
}

/// What the container has no cgroup for, although the host could have it.
fn not_delegated(container: &Container, layout: &Layout, controller: &str) -> Option<CommandError> {
    let Record { id, init_process_pid, .. } = &container.record;
    let path = layout.place_of(*init_process_pid, controller)?;
    Some(CommandError::NotDelegated { id: id.clone(), controller: controller.to_owned(), path })
}

/// Quota and period belong together: where only one is given the other stays. v2 has both in one file, and systemd
/// takes their ratio.
fn keep_share(container: &Container, resources: &mut LinuxResources) {
    let Some(cpu) = resources.cpu_mut() else { return };
    let period = cpu.period().filter(|period| *period > 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    if period.is_some() == quota.is_some() {
        return;
    }
    let (present_quota, present_period) = container.record.cgroup.cpu_share();
    if quota.is_none() && present_quota.is_some() {
        cpu.set_quota(present_quota);
    }
    if period.is_none() && present_period.is_some() {
        cpu.set_period(present_period);
    }
}

fn resources(parsed: &Parsed) -> Result<LinuxResources, CommandError> {
    if let Some(path) = parsed.value("resources") {
        let path = PathBuf::from(path);
        let mut bytes = Vec::new();
        if path.as_os_str() == "-" {
            std::io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .during("read the resources from standard input")?;
        } else {
            bytes = std::fs::read(&path).on("read", &path)?;
        }
        return plan::parse_resources(&bytes).map_err(|source| CommandError::Spec { path, source });
    }
    for flag in ["l3-cache-schema", "mem-bw-schema"] {
        if let Some(value) = parsed.value(flag) {
            let expected = "nothing: caches and bandwidth are not divided";
            return Err(UsageError::InvalidValue { flag, value: value.to_owned(), expected }.into());
        }
    }
    let mut all = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(parsed.number("cpu-share")?);
    cpu.set_period(parsed.number("cpu-period")?);
    cpu.set_quota(parsed.number("cpu-quota")?);
    cpu.set_burst(parsed.number("cpu-burst")?);
    cpu.set_realtime_period(parsed.number("cpu-rt-period")?);
    cpu.set_realtime_runtime(parsed.number("cpu-rt-runtime")?);
    cpu.set_idle(parsed.number("cpu-idle")?);
    cpu.set_cpus(parsed.value("cpuset-cpus").map(str::to_owned));
    cpu.set_mems(parsed.value("cpuset-mems").map(str::to_owned));
    all.set_cpu(Some(cpu));
    let mut memory = LinuxMemory::default();
    memory.set_limit(bytes(parsed, "memory")?);
    memory.set_reservation(bytes(parsed, "memory-reservation")?);
    memory.set_swap(bytes(parsed, "memory-swap")?);
    memory.set_kernel(bytes(parsed, "kernel-memory")?);
    memory.set_kernel_tcp(bytes(parsed, "kernel-memory-tcp")?);
    all.set_memory(Some(memory));
    if let Some(limit) = parsed.number::<i64>("pids-limit")? {
        all.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build().expect("all fields are set")));
    }
    if let Some(weight) = parsed.number("blkio-weight")? {
        let mut block_io = LinuxBlockIo::default();
        block_io.set_weight(Some(weight));
        all.set_block_io(Some(block_io));
    }
    Ok(all)
}

/// A size such as `67108864`, `64m` or `1.5GiB`; -1 stands for no limit.
fn bytes(parsed: &Parsed, flag: &'static str) -> Result<Option<i64>, UsageError> {
    let Some(text) = parsed.value(flag) else { return Ok(None) };
    let expected = "a size such as 512m, or -1";
    parse_bytes(text).map(Some).ok_or_else(|| UsageError::InvalidValue {
        flag,
        value: text.to_owned(),
        expected,
    })
}

fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim().trim_end_matches('b').trim_end_matches('i');
    let shift = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)? * 10;
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * (1u64 << shift) as f64;
    (bytes.is_finite() && bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_writes_them() {
        for (text, expected) in [
            ("67108864", Some(64 << 20)),
            ("64m", Some(64 << 20)),
            ("64MB", Some(64 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("-2", None),
            ("x", None),
            ("9999999999999g", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
    }
}
