//! seccomp: from an OCI profile to the kernel's filter program, without libseccomp.
//!
//! A filter looks at every system call's architecture and number, and at arguments where a rule asks for it. The
//! compiler lays the numbers out as a binary search tree, so a filter with hundreds of calls decides in about ten
//! steps and compiles in well under a millisecond. [`compile`] is pure; installing is `sys`'s business.
//!
//! Covered: x86_64 with x86 and x32, and aarch64 (its own calls only), whichever the build is for.
//!
//! Source: OCI runtime-spec, "Linux Container Configuration / Seccomp"; `seccomp(2)`; Linux
//! `Documentation/networking/filter.rst` for the instruction set.

mod bpf;
mod profile;
#[cfg(test)]
mod properties;
mod syscalls;
#[cfg(any(test, target_arch = "aarch64"))]
mod syscalls_aarch64;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};

pub use bpf::Instruction;
pub use profile::docker_default;

use bpf::{Segment, Target};

const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
#[cfg(any(test, target_arch = "aarch64"))]
const AUDIT_ARCH_AARCH64: u32 = 0xC000_00B7;
/// Marks a call of the x32 ABI, which shares its architecture with x86_64.
const X32_BIT: u32 = 0x4000_0000;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// The kernel's limit, `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4096;
/// The largest errno the kernel hands to a program, `MAX_ERRNO`.
const ERRNO_MAX: u32 = 4095;
/// The call with which the listener is handed over, after the filter is in place.
const HANDOVER: &str = "sendmsg";

/// A profile that cannot be turned into a filter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    #[error(
        "`linux.seccomp.defaultAction` has the invalid value `SCMP_ACT_NOTIFY`: with it the container could not even start"
    )]
    DefaultNotify,
    #[error(
        "`linux.seccomp.syscalls` has the invalid rule for `{HANDOVER}`: `SCMP_ACT_NOTIFY` is not possible for it, because the notification descriptor itself is handed over by that call"
    )]
    HandoverNotify,
    #[error("`linux.seccomp.listenerPath` is missing: a rule for `{syscall}` asks for `SCMP_ACT_NOTIFY`")]
    NoListener { syscall: String },
    #[error("`linux.seccomp.listenerMetadata` is set without `linux.seccomp.listenerPath`")]
    MetadataWithoutListener,
    #[error("`{field}` has the invalid value `{value}`: expected at most {max}")]
    Errno { field: &'static str, value: u32, max: u32 },
    #[error("`{field}` has the invalid value `{value}`: `{action}` returns no errno")]
    NoErrno { field: &'static str, value: u32, action: LinuxSeccompAction },
    #[error(
        "`linux.seccomp.syscalls.args.index` has the invalid value `{index}` in a rule for `{syscall}`: expected 0 to 5"
    )]
    ArgumentIndex { syscall: String, index: usize },
    #[error(
        "`linux.seccomp` has the invalid action `{action}` for `execve`: without that call no program can be started"
    )]
    NoProgram { action: LinuxSeccompAction },
    #[error("`linux.seccomp` compiles to {found} instructions, expected at most {INSTRUCTIONS_MAX}")]
    TooLong { found: usize },
}

/// A filter ready to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*` bits.
    pub flags: u32,
}

impl Program {
    /// Whether installing it yields a notification descriptor, which goes to the profile's `listenerPath`.
    pub fn notifies(&self) -> bool {
        self.flags & FLAG_NEW_LISTENER != 0
    }
}

/// What happens to one system call: the first rule whose conditions all hold decides, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Handling {
    rules: Vec<(Vec<LinuxSeccompArg>, u32)>,
    otherwise: u32,
}

/// What kind of machine a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    #[cfg(any(test, not(target_arch = "aarch64")))]
    X86_64,
    #[cfg(any(test, target_arch = "aarch64"))]
    Aarch64,
}

#[cfg(target_arch = "aarch64")]
const NATIVE: Machine = Machine::Aarch64;
#[cfg(not(target_arch = "aarch64"))]
const NATIVE: Machine = Machine::X86_64;

/// Refuses a profile under which no program can be started: whoever tries to is not even allowed to say so.
///
/// # Errors
/// Names the action.
pub fn check_program(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    let default = default_word(profile)?;
    let mut about = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        if rule.names().iter().any(|name| name == "execve") && rule_word(rule)? != default {
            about.push(rule);
        }
    }
    let (always, sometimes): (Vec<_>, Vec<_>) =
        about.into_iter().partition(|rule| rule.args().as_ref().is_none_or(Vec::is_empty));
    let (otherwise, sometimes) = match always.first() {
        Some(rule) => (rule.action(), Vec::new()),
        None => (profile.default_action(), sometimes),
    };
    let refuses = |action| {
        use LinuxSeccompAction as Action;
        matches!(
            action,
            Action::ScmpActErrno
                | Action::ScmpActTrap
                | Action::ScmpActKill
                | Action::ScmpActKillThread
                | Action::ScmpActKillProcess
        )
    };
    if refuses(otherwise) && sometimes.iter().all(|rule| refuses(rule.action())) {
        return Err(SeccompError::NoProgram { action: otherwise });
    }
    Ok(())
}

/// Compiles `profile` for this machine: its own architecture, which is always covered, and on x86_64 also x86 and x32
/// where the profile lists them.
///
/// - A call from an architecture that is not listed kills the process.
/// - A name this kernel generation does not have is skipped, as runc does.
/// - A rule with the default action is none. Of several others for one call the first unconditional one decides; if there
///   is none, those with conditions are asked in order, and then the default action holds. So it is with libseccomp, and
///   with what runc makes of it.
/// - Several conditions on one argument of a rule mean "either", as with runc; all others mean "and".
/// - Calls newer than any the profile names answer `ENOSYS` where the default would refuse them, so that C libraries
///   fall back instead of failing (runc does the same).
///
/// # Errors
/// What cannot be expressed is refused by name.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    compile_for(NATIVE, profile)
}

fn compile_for(machine: Machine, profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    let flags = flags(profile)?;
    let default = default_word(profile)?;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let architectures = match machine {
        #[cfg(any(test, not(target_arch = "aarch64")))]
        Machine::X86_64 => x86_64(profile, rules, default)?,
        #[cfg(any(test, target_arch = "aarch64"))]
        Machine::Aarch64 => {
            let calls = handlings(rules, default, |name| number(syscalls_aarch64::AARCH64, name))?;
            vec![(AUDIT_ARCH_AARCH64, segments(calls, default, 0))]
        }
    };
    let instructions = bpf::assemble(&architectures, RET_KILL_PROCESS);
    if instructions.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong { found: instructions.len() });
    }
    Ok(Program { instructions, flags })
}

#[cfg(any(test, not(target_arch = "aarch64")))]
fn x86_64(
    profile: &LinuxSeccomp,
    rules: &[LinuxSyscall],
    default: u32,
) -> Result<Vec<(u32, Vec<Segment>)>, SeccompError> {
    let listed = |arch| profile.architectures().as_ref().is_some_and(|list| list.contains(&arch));
    let calls = handlings(rules, default, |name| number(syscalls::X86_64, name))?;
    let mut x86_64 = segments(calls, default, 0);
    if listed(Arch::ScmpArchX32) {
        let x32_number = |name: &str| {
            if syscalls::NOT_ON_X32.contains(&name) {
                return None;
            }
            number(syscalls::X32_ONLY, name).or_else(|| number(syscalls::X86_64, name))
        };
        x86_64.extend(segments(handlings(rules, default, x32_number)?, default, X32_BIT));
    } else {
        x86_64.push(Segment { first: X32_BIT, target: Target::Return(RET_KILL_PROCESS) });
    }
    let mut architectures = vec![(AUDIT_ARCH_X86_64, x86_64)];
    if listed(Arch::ScmpArchX86) {
        let calls = handlings(rules, default, |name| number(syscalls::X86, name))?;
        architectures.push((AUDIT_ARCH_I386, segments(calls, default, 0)));
    }
    Ok(architectures)
}

fn number(table: &[(&str, u32)], name: &str) -> Option<u32> {
    table.binary_search_by(|(entry, _)| (*entry).cmp(name)).ok().map(|index| table[index].1)
}

/// The handling of every call the profile names, by number. `otherwise` of each is already the default action.
fn handlings(
    rules: &[LinuxSyscall],
    default: u32,
    number: impl Fn(&str) -> Option<u32>,
) -> Result<BTreeMap<u32, Handling>, SeccompError> {
    let mut table: BTreeMap<u32, Handling> = BTreeMap::new();
    for rule in rules {
        let verdict = rule_word(rule)?;
        let conditions = rule.args().as_deref().unwrap_or_default();
        for name in rule.names() {
            if let Some(condition) = conditions.iter().find(|condition| condition.index() > 5) {
                return Err(SeccompError::ArgumentIndex { syscall: name.clone(), index: condition.index() });
            }
            let Some(number) = number(name) else { continue };
            let handling =
                table.entry(number).or_insert_with(|| Handling { rules: Vec::new(), otherwise: default });
            let decided = handling.otherwise != default;
            if verdict == default || decided {
                continue;
            }
            if conditions.is_empty() {
                *handling = Handling { rules: Vec::new(), otherwise: verdict };
            } else if has_repeated_index(conditions) {
                // Two conditions on one argument mean "either" to runc, and profiles count on it.
                handling.rules.extend(conditions.iter().map(|condition| (vec![*condition], verdict)));
            } else {
                handling.rules.push((conditions.to_vec(), verdict));
            }
        }
    }
    Ok(table)
}

fn has_repeated_index(conditions: &[LinuxSeccompArg]) -> bool {
    conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions[..at].iter().any(|two| two.index() == one.index()))
}

/// Lays calls out as consecutive segments from `base` on; neighbours that are treated alike become one.
fn segments(table: BTreeMap<u32, Handling>, default: u32, base: u32) -> Vec<Segment> {
    let mut list: Vec<Segment> = Vec::new();
    let mut push = |first: u32, target: Target| {
        if list.last().is_none_or(|last| last.target != target) {
            list.push(Segment { first, target });
        }
    };
    let mut next = 0;
    for (number, handling) in table {
        if number > next {
            // A gap of calls that no rule names.
            push(base + next, Target::Return(default));
        }
        let target = if handling.rules.is_empty() {
            Target::Return(handling.otherwise)
        } else {
            Target::Check { rules: handling.rules, otherwise: handling.otherwise }
        };
        push(base + number, target);
        next = number + 1;
    }
    let refuses = !matches!(default & 0xffff_0000, RET_ALLOW | RET_LOG | RET_TRACE);
    // A profile that names nothing says nothing about how old it is.
    let newer = if refuses && next > 0 { RET_ERRNO | libc::ENOSYS as u32 } else { default };
    push(base + next, Target::Return(newer));
    list
}

fn default_word(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    action("linux.seccomp.defaultErrnoRet", profile.default_action(), profile.default_errno_ret())
}

fn rule_word(rule: &LinuxSyscall) -> Result<u32, SeccompError> {
    action("linux.seccomp.syscalls.errnoRet", rule.action(), rule.errno_ret())
}

/// The kernel's word for an action, with its 16 bits of data.
fn action(field: &'static str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    // EPERM is what runc and crun assume.
    let data = errno.unwrap_or(libc::EPERM as u32);
    let max = match action {
        LinuxSeccompAction::ScmpActErrno => ERRNO_MAX,
        LinuxSeccompAction::ScmpActTrace => 0xffff,
        _ => match errno {
            Some(value) => return Err(SeccompError::NoErrno { field, value, action }),
            None => data,
        },
    };
    if data > max {
        return Err(SeccompError::Errno { field, value: data, max });
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO | data,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActTrace => RET_TRACE | data,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActNotify => RET_NOTIFY,
    })
}

/// How the filter is to be installed; whether anything asks for notification follows from its rules.
fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::DefaultNotify);
    }
    if profile.listener_metadata().is_some() && profile.listener_path().is_none() {
        return Err(SeccompError::MetadataWithoutListener);
    }
    let mut bits = 0;
    let notified = profile.syscalls().iter().flatten();
    let notified = notified.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    for name in notified.flat_map(LinuxSyscall::names) {
        if name == HANDOVER {
            return Err(SeccompError::HandoverNotify);
        }
        if profile.listener_path().is_none() {
            return Err(SeccompError::NoListener { syscall: name.clone() });
        }
        bits |= FLAG_NEW_LISTENER;
    }
    for flag in profile.flags().as_deref().unwrap_or_default() {
        bits |= match flag {
            // One thread makes the call, so there is nothing to synchronise.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // Says how to wait for an answer; the kernel refuses it where nobody ever asks.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if bits & FLAG_NEW_LISTENER == 0 => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
        };
    }
    Ok(bits)
}
