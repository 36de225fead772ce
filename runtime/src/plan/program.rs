//! From the root file system to the program: who it runs as, what it may do, and in which order that is settled. Pure.
//!
//! Source: OCI runtime-spec, "Process" ("POSIX process", "Linux Process") and "Seccomp"; `capabilities(7)`.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, PosixRlimitType, Process};

use super::{Inside, PlanError, Rlimit};
use crate::defaults::capability_number;
use crate::seccomp::Program;
use crate::sys::CapabilityBits;

/// From being in the new root to running the program. The order matters: what needs privileges comes before they
/// go, and the filter comes last of what may be privileged.
pub(super) fn steps(
    process: &Process,
    filter: Option<Program>,
    inside: &mut Vec<Inside>,
) -> Result<(), PlanError> {
    let args = process.args().clone().ok_or(PlanError::Missing { field: "process.args" })?;
    let name = args.first().filter(|name| !name.is_empty()).ok_or_else(|| PlanError::Invalid {
        field: "process.args".into(),
        value: format!("{args:?}"),
        reason: "expected a program and what it is given".to_owned(),
    })?;
    let mut env = distinct(process.env().clone().unwrap_or_default());
    for (at, limit) in process.rlimits().iter().flatten().enumerate() {
        let (name, resource) = rlimit(limit.typ());
        if limit.soft() > limit.hard() {
            let value = limit.soft().to_string();
            let reason = format!("{name} is above its hard limit {}", limit.hard());
            return Err(PlanError::Invalid {
                field: format!("process.rlimits[{at}].soft").into(),
                value,
                reason,
            });
        }
        inside.push(Inside::Rlimit(Rlimit { name, resource, soft: limit.soft(), hard: limit.hard() }));
    }
    inside.push(Inside::WorkingDirectory(process.cwd().clone()));
    inside.push(Inside::OwnNull);
    let user = process.user();
    if user.uid() != 0 {
        inside.push(Inside::StdioOwner { uid: user.uid() });
    }
    // An empty one is none, as with runc.
    env.retain(|entry| entry != "HOME=");
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        inside.push(Inside::FindHome { uid: user.uid() });
    }
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let capabilities = process.capabilities().as_ref();
    // A filter need not allow what we do, so it comes last but for the program itself. Without no-new-privileges that takes
    // `CAP_SYS_ADMIN`, which is kept as long.
    let filter = filter.map(Inside::Seccomp);
    let privileged = filter.is_some() && !no_new_privileges;
    // Who is given no sets is given none of them, as with runc, and not the caller's.
    inside.push(Inside::BoundingSet(bits(capabilities.and_then(|sets| sets.bounding().as_ref()))));
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    groups.sort_unstable();
    groups.dedup();
    inside.push(Inside::User {
        uid: user.uid(),
        gid: user.gid(),
        groups,
        umask: user.umask().unwrap_or(0o022),
    });
    let final_sets = capability_step(capabilities);
    let kept = if privileged { 1 << capability_number(Capability::SysAdmin) } else { 0 };
    inside.push(with_capabilities(final_sets.clone(), kept));
    if no_new_privileges {
        inside.push(Inside::NoNewPrivileges);
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).map(str::to_owned);
    inside.push(Inside::ResolveExecutable { name: name.clone(), path });
    inside.push(Inside::AwaitStart);
    inside.push(Inside::PrepareExec);
    inside.extend(filter);
    inside.extend(privileged.then_some(final_sets));
    inside.push(Inside::Exec { args, env });
    Ok(())
}

fn capability_step(sets: Option<&LinuxCapabilities>) -> Inside {
    let bits =
        |set: fn(&LinuxCapabilities) -> &Option<Capabilities>| bits(sets.and_then(|sets| set(sets).as_ref()));
    let permitted = bits(LinuxCapabilities::permitted);
    let inheritable = bits(LinuxCapabilities::inheritable);
    Inside::Capabilities {
        sets: CapabilityBits {
            effective: bits(LinuxCapabilities::effective) & permitted,
            permitted,
            inheritable,
        },
        // The kernel only takes what is both permitted and inheritable.
        ambient: bits(LinuxCapabilities::ambient) & permitted & inheritable,
    }
}

/// Each variable once: of several values the last, as with runc, or `exec --env` could change nothing.
fn distinct(env: Vec<String>) -> Vec<String> {
    fn name(entry: &str) -> &str {
        entry.split_once('=').map_or(entry, |(name, _)| name)
    }
    let mut all: Vec<String> = Vec::with_capacity(env.len());
    for entry in env {
        match all.iter_mut().find(|earlier| name(earlier) == name(&entry)) {
            Some(earlier) => *earlier = entry,
            None => all.push(entry),
        }
    }
    all
}

/// The same with more of what takes effect at once.
fn with_capabilities(step: Inside, more: u64) -> Inside {
    match step {
        Inside::Capabilities { mut sets, ambient } => {
            sets.effective |= more;
            sets.permitted |= more;
            Inside::Capabilities { sets, ambient }
        }
        other => other,
    }
}

/// Capability numbers as a bit mask. Source: linux/capability.h.
pub(super) fn bits(set: Option<&Capabilities>) -> u64 {
    set.into_iter().flatten().fold(0, |bits, capability| bits | 1 << capability_number(*capability))
}

fn rlimit(kind: PosixRlimitType) -> (String, u32) {
    let number = match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    (kind.to_string(), number)
}
