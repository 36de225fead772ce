//! Attributes of the container's process that are neither its identity nor its program. Pure.
//!
//! Source: OCI runtime-spec, "Process" ("Linux Process"), "Memory policy" and "Personality"; `sched_setattr(2)`,
//! `ioprio_set(2)`, `set_mempolicy(2)`, `personality(2)`.

use std::fmt::Display;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use super::{HostFacts, Inside, Label, PlanError};
use crate::sys::{MemoryPolicy, Scheduling};

/// Beyond this no Linux numbers its CPUs or NUMA nodes.
const NUMBERS_MAX: usize = 8192;
/// `MPOL_F_RELATIVE_NODES` and `MPOL_F_STATIC_NODES`.
const NODE_FLAGS: u32 = 3 << 14;
/// Source: Linux `kernel/sched/deadline.c`, `DL_SCALE`.
const RUNTIME_NANOS_LEAST: u64 = 1 << 10;

fn invalid(field: &'static str, value: impl Display, reason: impl Into<String>) -> PlanError {
    PlanError::Invalid { field: field.into(), value: value.to_string(), reason: reason.into() }
}

/// How the process is scheduled: to be settled in its cgroup, whose cpuset bounds it.
pub(super) fn scheduling(process: &Process) -> Result<Vec<Inside>, PlanError> {
    let mut steps = Vec::new();
    if let Some(scheduler) = process.scheduler() {
        steps.push(Inside::Scheduling(scheduler_arguments(scheduler)?));
    }
    if let Some(priority) = process.io_priority() {
        let level = u32::try_from(priority.priority())
            .ok()
            .filter(|level| *level < 8)
            .ok_or_else(|| invalid("process.ioPriority.priority", priority.priority(), "expected 0 to 7"))?;
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        steps.push(Inside::IoPriority(class << 13 | level));
    }
    Ok(steps)
}

fn scheduler_arguments(scheduler: &Scheduler) -> Result<Scheduling, PlanError> {
    use LinuxSchedulerPolicy as Policy;
    let policy = match scheduler.policy() {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
        Policy::SchedIso => {
            return Err(invalid("process.scheduler.policy", "SCHED_ISO", "Linux has never implemented it"));
        }
    };
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid("process.scheduler.nice", nice, "expected -20 to 19"));
    }
    let real_time = matches!(scheduler.policy(), Policy::SchedFifo | Policy::SchedRr);
    let priority = scheduler.priority().unwrap_or(0);
    let bounds = if real_time { 1..=99 } else { 0..=0 };
    if !bounds.contains(&priority) {
        let reason = if real_time {
            "expected 1 to 99 for a real-time policy"
        } else {
            "only SCHED_FIFO and SCHED_RR have a priority"
        };
        return Err(invalid("process.scheduler.priority", priority, reason));
    }
    let deadline = *scheduler.policy() == Policy::SchedDeadline;
    let times = [
        ("process.scheduler.runtime", scheduler.runtime().unwrap_or(0)),
        ("process.scheduler.deadline", scheduler.deadline().unwrap_or(0)),
        ("process.scheduler.period", scheduler.period().unwrap_or(0)),
    ];
    if let Some((field, value)) = times.iter().find(|(_, value)| *value != 0 && !deadline) {
        return Err(invalid(field, value, "only SCHED_DEADLINE has it"));
    }
    let [(_, runtime), (_, limit), (_, period)] = times;
    if deadline {
        // How long a period may be is a setting of the host.
        let settled = if period == 0 { limit } else { period };
        for (field, value, least, of) in [
            ("process.scheduler.runtime", runtime, RUNTIME_NANOS_LEAST, "what can be measured"),
            ("process.scheduler.deadline", limit, runtime, "the runtime"),
            ("process.scheduler.period", settled, limit, "the deadline"),
        ] {
            if value < least {
                return Err(invalid(field, value, format!("expected at least {of}, {least} ns")));
            }
        }
    }
    let mut flags = 0;
    for flag in scheduler.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                let reason = "the specification has no field for the clamp's value";
                return Err(invalid("process.scheduler.flags", flag, reason));
            }
        };
    }
    Ok(Scheduling {
        policy: policy as u32,
        flags,
        nice,
        priority: priority as u32,
        runtime,
        deadline: limit,
        period,
    })
}

/// Where the memory of the container's processes comes from: to be settled in its cgroup, too.
pub(super) fn memory_policy(linux: &Linux) -> Result<Option<MemoryPolicy>, PlanError> {
    let Some(policy) = linux.memory_policy() else { return Ok(None) };
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let nodes = policy.nodes().as_deref().unwrap_or_default();
    let nodes = if nodes.is_empty() { Vec::new() } else { number_set("linux.memoryPolicy.nodes", nodes)? };
    let without =
        matches!(policy.mode(), MemoryPolicyModeType::MpolDefault | MemoryPolicyModeType::MpolLocal);
    let needs = !without && policy.mode() != MemoryPolicyModeType::MpolPreferred;
    if without && !nodes.is_empty() || needs && nodes.is_empty() {
        let reason = if without { "this mode takes no nodes" } else { "this mode needs nodes" };
        return Err(invalid("linux.memoryPolicy.mode", policy.mode(), reason));
    }
    let mut flags = 0;
    for flag in policy.flags().iter().flatten() {
        let bind =
            matches!(policy.mode(), MemoryPolicyModeType::MpolBind | MemoryPolicyModeType::MpolPreferredMany);
        let (bit, rule) = match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing if !bind => {
                (0, "expected the mode MPOL_BIND or MPOL_PREFERRED_MANY for it")
            }
            MemoryPolicyFlagType::MpolFNumaBalancing => (1 << 13, ""),
            _ if nodes.is_empty() => (0, "expected nodes, which it is about"),
            MemoryPolicyFlagType::MpolFRelativeNodes => (1 << 14, ""),
            MemoryPolicyFlagType::MpolFStaticNodes => (1 << 15, ""),
        };
        flags |= bit;
        if !rule.is_empty() {
            return Err(invalid("linux.memoryPolicy.flags", flag, rule));
        }
        if flags & NODE_FLAGS == NODE_FLAGS {
            let rule = "expected one of MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES at most";
            return Err(invalid("linux.memoryPolicy.flags", flag, rule));
        }
    }
    Ok(Some(MemoryPolicy { mode: mode | flags, nodes }))
}

/// The execution domain.
pub(super) fn personality(linux: &Linux) -> Result<Option<Inside>, PlanError> {
    let Some(personality) = linux.personality() else { return Ok(None) };
    if let Some(flag) = personality.flags().iter().flatten().next() {
        return Err(invalid("linux.personality.flags", flag, "the specification defines no flags yet"));
    }
    Ok(Some(Inside::Personality(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })))
}

/// Labels of security modules: for keys that are made on the way, and for the program that will be run.
pub(super) fn labels(process: &Process, host: &HostFacts) -> Result<(Option<Label>, Vec<Label>), PlanError> {
    let mut program = Vec::new();
    let profile = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty());
    if let Some(profile) = profile.filter(|profile| *profile != "unconfined" || host.apparmor) {
        check_label("process.apparmorProfile", profile, host.apparmor, "AppArmor")?;
        program.push(Label::AppArmor(profile.clone()));
    }
    let label = selinux_label("process.selinuxLabel", process.selinux_label(), host)?;
    program.extend(label.cloned().map(Label::Selinux));
    Ok((label.cloned().map(Label::Keys), program))
}

/// A label of SELinux, if there is one.
pub(super) fn selinux_label<'a>(
    field: &'static str,
    label: &'a Option<String>,
    host: &HostFacts,
) -> Result<Option<&'a String>, PlanError> {
    let label = label.as_ref().filter(|label| !label.is_empty());
    label.map_or(Ok(()), |label| check_label(field, label, host.selinux, "SELinux")).map(|()| label)
}

fn check_label(field: &'static str, label: &str, enabled: bool, module: &str) -> Result<(), PlanError> {
    let reason = match label.contains('\0') {
        _ if !enabled => format!("this kernel has {module} neither built in nor switched on"),
        true => "it contains a zero byte".to_owned(),
        false => return Ok(()),
    };
    Err(invalid(field, label.replace('\0', "\\0"), reason))
}

/// CPUs of `process.execCPUAffinity`, for a process that joins a container: before it is in the cgroup, and after.
///
/// # Errors
/// A list that is none.
pub(super) fn exec_affinity(process: &Process) -> Result<[Option<Inside>; 2], PlanError> {
    let Some(affinity) = process.exec_cpu_affinity() else { return Ok([None, None]) };
    let step = |field, text: &Option<String>| {
        let text = text.as_deref().filter(|text| !text.is_empty());
        text.map(|text| number_set(field, text).map(Inside::CpuAffinity)).transpose()
    };
    Ok([
        step("process.execCPUAffinity.initial", affinity.initial())?,
        step("process.execCPUAffinity.final", affinity.cpu_affinity_final())?,
    ])
}

/// A list such as `0-3,7` as a bit mask.
fn number_set(field: &'static str, text: &str) -> Result<Vec<u64>, PlanError> {
    let mut mask = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < NUMBERS_MAX);
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(invalid(field, text, "expected numbers and ranges, such as 0-3,7"));
        };
        if first > last {
            return Err(invalid(field, text, "a range ends before it begins"));
        }
        for number in first..=last {
            if mask.len() <= number / 64 {
                mask.resize(number / 64 + 1, 0u64);
            }
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_become_masks() {
        let check =
            |text: &str, expected: &[u64]| assert_eq!(number_set("x", text).unwrap(), expected, "{text}");
        check("0", &[1]);
        check("0-3,7", &[0x8f]);
        check("63,64", &[1 << 63, 1]);
        check("65-66", &[0, 6]);
        for bad in ["", "a", "3-1", "1-", "-1", "0,,1", "9000", "18446744073709551616"] {
            assert!(number_set("x", bad).is_err(), "{bad}");
        }
    }
}
