use oci_spec::runtime::{
    Capability, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator as Operator,
    LinuxSyscallBuilder,
};

use super::bpf::{AND, IF_AT_LEAST, IF_EQUAL, IF_GREATER, JUMP, LOAD, RETURN};
use super::*;
use crate::defaults::DEFAULT_CAPABILITIES;

const EPERM: u32 = RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = RET_ERRNO | libc::ENOSYS as u32;

/// A machine for the instructions we emit: what the kernel would answer, and after how many steps.
pub(super) fn run(program: &Program, architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend([0; 8]);
    for argument in arguments {
        data.extend(argument.to_le_bytes());
    }
    let (mut at, mut accumulator) = (0, 0u32);
    for steps in 1..=program.instructions.len() {
        let Instruction { code, jump_true, jump_false, k } = program.instructions[at];
        let branch = |taken: bool| usize::from(if taken { jump_true } else { jump_false });
        at += 1;
        match code {
            LOAD => {
                assert!(k % 4 == 0, "the kernel refuses loads that are not aligned");
                accumulator = u32::from_le_bytes(data[k as usize..][..4].try_into().unwrap());
            }
            AND => accumulator &= k,
            JUMP => at += k as usize,
            IF_EQUAL => at += branch(accumulator == k),
            IF_GREATER => at += branch(accumulator > k),
            IF_AT_LEAST => at += branch(accumulator >= k),
            RETURN => return (k, steps),
            other => panic!("unknown instruction {other:#x}"),
        }
    }
    panic!("the program does not end");
}

fn number(table: &[(&str, u32)], name: &str) -> u32 {
    table.iter().find(|(entry, _)| *entry == name).unwrap_or_else(|| panic!("no call {name}")).1
}

fn x86_64(program: &Program, name: &str, arguments: [u64; 6]) -> u32 {
    run(program, AUDIT_ARCH_X86_64, number(syscalls::X86_64, name), arguments).0
}

/// A profile that refuses all but these rules: names, action, conditions.
type Condition = (usize, Operator, u64, Option<u64>);
fn profile(
    default: LinuxSeccompAction,
    rules: &[(&str, LinuxSeccompAction, Option<u32>, &[Condition])],
) -> LinuxSeccomp {
    let rules: Vec<LinuxSyscall> = rules
        .iter()
        .map(|(names, action, errno, conditions)| {
            let mut builder = LinuxSyscallBuilder::default()
                .names(names.split(' ').map(str::to_owned).collect::<Vec<_>>())
                .action(*action);
            if let Some(errno) = errno {
                builder = builder.errno_ret(*errno);
            }
            let arguments: Vec<LinuxSeccompArg> = conditions
                .iter()
                .map(|(index, operator, value, second)| {
                    let mut builder =
                        LinuxSeccompArgBuilder::default().index(*index).op(*operator).value(*value);
                    if let Some(second) = second {
                        builder = builder.value_two(*second);
                    }
                    builder.build().unwrap()
                })
                .collect();
            if !arguments.is_empty() {
                builder = builder.args(arguments);
            }
            builder.build().unwrap()
        })
        .collect();
    LinuxSeccompBuilder::default().default_action(default).syscalls(rules).build().unwrap()
}

const ALLOW: LinuxSeccompAction = LinuxSeccompAction::ScmpActAllow;
const ERRNO: LinuxSeccompAction = LinuxSeccompAction::ScmpActErrno;
const NOTIFY: LinuxSeccompAction = LinuxSeccompAction::ScmpActNotify;

#[test]
fn tables_are_sorted_and_agree_with_the_c_library() {
    for table in [syscalls::X86_64, syscalls::X86, syscalls::X32_ONLY, syscalls_aarch64::AARCH64] {
        assert!(table.is_sorted_by(|a, b| a.0 < b.0));
    }
    let known = [
        ("read", libc::SYS_read),
        ("clone3", libc::SYS_clone3),
        ("openat2", libc::SYS_openat2),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("statx", libc::SYS_statx),
        ("mseal", libc::SYS_mseal),
        ("fchmodat2", libc::SYS_fchmodat2),
        ("io_uring_setup", libc::SYS_io_uring_setup),
    ];
    for (name, expected) in known {
        assert_eq!(i64::from(number(syscalls::X86_64, name)), expected, "{name}");
    }
    // i386 by the kernel's table: the numbers differ, and some calls exist only there.
    for (name, expected) in [("read", 3), ("socketcall", 102), ("mmap2", 192), ("clone3", 435)] {
        assert_eq!(number(syscalls::X86, name), expected, "{name}");
    }
    assert_eq!(number(syscalls::X32_ONLY, "execve"), 520);
}

#[test]
fn every_call_of_every_architecture_is_decided_as_the_profile_says() {
    let profile = docker_default(&DEFAULT_CAPABILITIES);
    let program = compile(&profile).unwrap();
    assert!(program.instructions.len() < INSTRUCTIONS_MAX);
    let rules = profile.syscalls().as_ref().unwrap();
    let x32: Vec<(&str, u32)> = syscalls::X86_64
        .iter()
        .filter(|(name, _)| !syscalls::NOT_ON_X32.contains(name))
        .map(|(name, number)| {
            let own = syscalls::X32_ONLY.iter().find(|(only, _)| only == name);
            (*name, own.map_or(*number, |(_, number)| *number) | X32_BIT)
        })
        .collect();
    let tables = [
        (AUDIT_ARCH_X86_64, syscalls::X86_64),
        (AUDIT_ARCH_I386, syscalls::X86),
        (AUDIT_ARCH_X86_64, &x32[..]),
    ];
    for (architecture, table) in tables {
        let named = |name: &str| rules.iter().any(|rule| rule.names().iter().any(|entry| entry == name));
        let newest = table.iter().filter(|(name, _)| named(name)).map(|(_, number)| *number).max().unwrap();
        for (name, number) in table {
            let unconditional = rules
                .iter()
                .find(|rule| rule.args().is_none() && rule.names().iter().any(|entry| entry == name));
            let conditional =
                rules.iter().any(|rule| rule.args().is_some() && rule.names().iter().any(|n| n == name));
            if conditional {
                continue;
            }
            let expected = match unconditional {
                Some(rule) => action("", rule.action(), rule.errno_ret()).unwrap(),
                None if *number > newest => ENOSYS,
                None => EPERM,
            };
            let (found, steps) = run(&program, architecture, *number, [0; 6]);
            assert_eq!(found, expected, "{name} ({number}) of {architecture:#x}");
            assert!(steps < 24, "{name} takes {steps} steps");
        }
        assert_eq!(run(&program, architecture, newest + 1, [0; 6]).0, ENOSYS);
        assert_eq!(run(&program, architecture, newest + 1000, [0; 6]).0, ENOSYS);
    }
    assert_eq!(run(&program, AUDIT_ARCH_AARCH64, 0, [0; 6]).0, RET_KILL_PROCESS);
}

#[test]
fn docker_default_decides_on_arguments() {
    let program = compile(&docker_default(&DEFAULT_CAPABILITIES)).unwrap();
    let first = |argument: u64| [argument, 0, 0, 0, 0, 0];
    let table = [
        ("read", first(0), RET_ALLOW),
        ("chroot", first(0), RET_ALLOW), // CAP_SYS_CHROOT is among the default ones
        ("mount", first(0), EPERM),
        ("unshare", first(0), EPERM),
        ("setns", first(0), EPERM),
        ("io_uring_setup", first(0), EPERM),
        ("keyctl", first(0), EPERM),
        ("bpf", first(0), EPERM),
        ("clone3", first(0), ENOSYS),
        ("clone", first(libc::SIGCHLD as u64), RET_ALLOW),
        ("clone", first(libc::CLONE_NEWUSER as u64), EPERM),
        ("clone", first((libc::CLONE_NEWNS | libc::CLONE_VM) as u64), EPERM),
        ("clone", first(libc::CLONE_THREAD as u64), RET_ALLOW),
        ("socket", first(libc::AF_INET as u64), RET_ALLOW),
        ("socket", first(libc::AF_VSOCK as u64), EPERM),
        ("personality", first(0), RET_ALLOW),
        ("personality", first(0xffff_ffff), RET_ALLOW),
        ("personality", first(0x0040_0000), EPERM), // ADDR_NO_RANDOMIZE
        ("personality", first(1 << 32), EPERM),     // zero only in its low word
    ];
    for (name, arguments, expected) in table {
        assert_eq!(x86_64(&program, name, arguments), expected, "{name} {arguments:?}");
    }
    let privileged = compile(&docker_default(&[Capability::SysAdmin])).unwrap();
    for name in ["mount", "unshare", "clone3", "setns"] {
        assert_eq!(x86_64(&privileged, name, first(0)), RET_ALLOW, "{name}");
    }
    assert_eq!(x86_64(&privileged, "clone", first(libc::CLONE_NEWUSER as u64)), RET_ALLOW);
    assert_eq!(x86_64(&privileged, "chroot", first(0)), EPERM);
}

/// Branches reach 255 instructions: rules of one call may take more, and so may calls that each have a few.
#[test]
fn more_than_a_branch_reaches_is_decided_as_well() {
    let equal = |value| (0, Operator::ScmpCmpEq, value, None);
    let wanted: Vec<[Condition; 1]> = (0..100).map(|value| [equal(value)]).collect();
    let names = ["read", "close", "mmap", "ioctl", "openat"];
    for per_call in [1, 9, 30, 100] {
        let calls =
            wanted.iter().enumerate().map(|(at, conditions)| (names[(at / per_call) % 5], conditions));
        let rules: Vec<_> = calls
            .enumerate()
            .map(|(at, (name, conditions))| (name, ERRNO, Some(at as u32 + 1), &conditions[..]))
            .collect();
        let program = compile(&profile(ALLOW, &rules)).unwrap();
        for (name, _, errno, conditions) in &rules {
            let found = x86_64(&program, name, [conditions[0].2, 0, 0, 0, 0, 0]);
            assert_eq!(found, RET_ERRNO | errno.unwrap(), "{name} {conditions:?}");
            assert_eq!(x86_64(&program, name, [1000, 0, 0, 0, 0, 0]), RET_ALLOW, "{name}");
        }
        assert_eq!(x86_64(&program, "write", [0; 6]), RET_ALLOW);
    }
}

#[test]
fn operators_compare_all_64_bits() {
    let big = 0x1_0000_0005u64;
    let values =
        [0, 4, 5, 6, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0004, big, 0x1_0000_0006, 0x2_0000_0000, u64::MAX];
    type Compare = fn(u64, u64) -> bool;
    let operators: [(Operator, Compare); 6] = [
        (Operator::ScmpCmpEq, |a, b| a == b),
        (Operator::ScmpCmpNe, |a, b| a != b),
        (Operator::ScmpCmpLt, |a, b| a < b),
        (Operator::ScmpCmpLe, |a, b| a <= b),
        (Operator::ScmpCmpGt, |a, b| a > b),
        (Operator::ScmpCmpGe, |a, b| a >= b),
    ];
    for (operator, compare) in operators {
        for wanted in [5, big, u64::MAX, 0] {
            let rules = profile(ERRNO, &[("read", ALLOW, None, &[(2, operator, wanted, None)])]);
            let program = compile(&rules).unwrap();
            for value in values {
                let expected = if compare(value, wanted) { RET_ALLOW } else { EPERM };
                assert_eq!(
                    x86_64(&program, "read", [9, 9, value, 9, 9, 9]),
                    expected,
                    "{value:#x} {operator:?} {wanted:#x}"
                );
            }
        }
    }
    let mask = 0xff00_0000_0000_00ff;
    let rules = profile(
        ERRNO,
        &[("read", ALLOW, None, &[(5, Operator::ScmpCmpMaskedEq, mask, Some(0x1200_0000_0000_0034))])],
    );
    let program = compile(&rules).unwrap();
    for (value, expected) in
        [(0x12ff_ffff_ffff_ff34, RET_ALLOW), (0x1200_0000_0000_0035, EPERM), (0x34, EPERM)]
    {
        assert_eq!(x86_64(&program, "read", [0, 0, 0, 0, 0, value]), expected, "{value:#x}");
    }
}

#[test]
fn conditions_of_a_rule_must_all_hold_and_rules_are_alternatives() {
    let equal = |index, value| (index, Operator::ScmpCmpEq, value, None);
    let rules = profile(
        ALLOW,
        &[
            ("read", ERRNO, Some(11), &[equal(0, 1), equal(1, 2)]),
            ("read", ERRNO, Some(12), &[equal(0, 3)]),
            ("read", ERRNO, Some(13), &[equal(2, 7), equal(2, 8)]), // twice the same index: either
            ("write", ERRNO, Some(14), &[equal(0, 1)]),
        ],
    );
    let program = compile(&rules).unwrap();
    let cases = [
        ("read", [1, 2, 0], RET_ERRNO | 11),
        ("read", [1, 3, 0], RET_ALLOW),
        ("read", [3, 0, 0], RET_ERRNO | 12),
        ("read", [0, 0, 7], RET_ERRNO | 13),
        ("read", [0, 0, 8], RET_ERRNO | 13),
        ("write", [1, 0, 0], RET_ERRNO | 14),
        ("write", [2, 0, 0], RET_ALLOW),
        ("close", [0, 0, 0], RET_ALLOW),
    ];
    for (name, [a, b, c], expected) in cases {
        assert_eq!(x86_64(&program, name, [a, b, c, 0, 0, 0]), expected, "{name} {a} {b} {c}");
    }
    // Where everything is allowed, so are calls nobody has heard of.
    assert_eq!(run(&program, AUDIT_ARCH_X86_64, 5000, [0; 6]).0, RET_ALLOW);
    // Neither x86 nor x32 was listed.
    assert_eq!(run(&program, AUDIT_ARCH_I386, 3, [0; 6]).0, RET_KILL_PROCESS);
    assert_eq!(run(&program, AUDIT_ARCH_X86_64, X32_BIT, [0; 6]).0, RET_KILL_PROCESS);
}

#[test]
fn what_cannot_be_expressed_is_refused_by_name() {
    let notify = profile(ALLOW, &[("read", NOTIFY, None, &[])]);
    assert_eq!(compile(&notify), Err(SeccompError::NoListener { syscall: "read".to_owned() }));
    assert_eq!(compile(&profile(NOTIFY, &[])), Err(SeccompError::DefaultNotify));
    let mut handover = profile(ALLOW, &[("sendmsg", NOTIFY, None, &[])]);
    handover.set_listener_path(Some("/agent".into()));
    assert_eq!(compile(&handover), Err(SeccompError::HandoverNotify));
    let mut metadata = profile(ALLOW, &[]);
    metadata.set_listener_metadata(Some("x".to_owned()));
    assert_eq!(compile(&metadata), Err(SeccompError::MetadataWithoutListener));
    let errno = profile(ERRNO, &[("read", ALLOW, Some(1), &[])]);
    assert_eq!(
        compile(&errno).unwrap_err().to_string(),
        "`linux.seccomp.syscalls.errnoRet` has the invalid value `1`: `SCMP_ACT_ALLOW` returns no errno"
    );
    let errno = profile(ERRNO, &[("read", ERRNO, Some(4096), &[])]);
    assert_eq!(
        compile(&errno).unwrap_err().to_string(),
        "`linux.seccomp.syscalls.errnoRet` has the invalid value `4096`: expected at most 4095"
    );
    let far = profile(ALLOW, &[("read", ERRNO, None, &[(6, Operator::ScmpCmpEq, 0, None)])]);
    assert_eq!(compile(&far), Err(SeccompError::ArgumentIndex { syscall: "read".to_owned(), index: 6 }));
    // A name of another architecture or time is none of our business.
    let foreign = profile(ERRNO, &[("read arm_fadvise64_64", ALLOW, None, &[])]);
    assert_eq!(x86_64(&compile(&foreign).unwrap(), "read", [0; 6]), RET_ALLOW);
}

#[test]
fn a_program_can_be_started_or_the_profile_is_refused() {
    let some = &[(0, Operator::ScmpCmpEq, 0, None)][..];
    for (default, rules, refused) in [
        (ERRNO, &[][..], Some(ERRNO)),
        (ALLOW, &[], None),
        (ALLOW, &[("execve", ERRNO, None, &[][..])], Some(ERRNO)),
        (
            ALLOW,
            &[("read execve", LinuxSeccompAction::ScmpActKillProcess, None, &[])],
            Some(LinuxSeccompAction::ScmpActKillProcess),
        ),
        (ERRNO, &[("execve", ALLOW, None, &[])], None),
        (ERRNO, &[("execve", NOTIFY, None, &[])], None),
        (ERRNO, &[("execve", LinuxSeccompAction::ScmpActLog, None, &[])], None),
        // Whether the arguments are such is seen when it is called.
        (ERRNO, &[("execve", ALLOW, None, some)], None),
        (ALLOW, &[("execve", ERRNO, None, some)], None),
        (ERRNO, &[("execve", ERRNO, None, some)], Some(ERRNO)),
        // Of two the first counts, and one with the default action does not.
        (ALLOW, &[("execve", ERRNO, None, &[]), ("execve", NOTIFY, None, &[])], Some(ERRNO)),
        (ERRNO, &[("execve", ERRNO, None, &[]), ("execve", ALLOW, None, &[])], None),
        (ERRNO, &[("execve", ERRNO, Some(1), &[]), ("execve", ALLOW, None, &[])], None),
        (ALLOW, &[("execve", NOTIFY, None, some), ("execve", ERRNO, None, &[])], Some(ERRNO)),
    ] {
        let expected = refused.map_or(Ok(()), |action| Err(SeccompError::NoProgram { action }));
        assert_eq!(check_program(&profile(default, rules)), expected, "{default} {rules:?}");
    }
}

#[test]
fn flags_follow_from_the_profile() {
    let with = |flags: &[LinuxSeccompFilterFlag], rules: &[(&str, LinuxSeccompAction)]| {
        let rules: Vec<_> = rules.iter().map(|(name, action)| (*name, *action, None, &[][..])).collect();
        let mut profile = profile(ALLOW, &rules);
        profile.set_flags(Some(flags.to_vec()));
        profile.set_listener_path(Some("/agent".into()));
        compile(&profile).unwrap()
    };
    use LinuxSeccompFilterFlag::*;
    let all = [
        SeccompFilterFlagLog,
        SeccompFilterFlagSpecAllow,
        SeccompFilterFlagTsync,
        SeccompFilterFlagWaitKillableRecv,
    ];
    let plain = with(&all, &[("read", ERRNO)]);
    // Without a rule that notifies, the listener's path means nothing.
    assert_eq!((plain.flags, plain.notifies()), (FLAG_LOG | FLAG_SPEC_ALLOW, false));
    let notified = with(&all, &[("mkdir", NOTIFY)]);
    let listener = FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV;
    assert_eq!((notified.flags, notified.notifies()), (FLAG_LOG | FLAG_SPEC_ALLOW | listener, true));
    assert_eq!(x86_64(&notified, "mkdir", [0; 6]), RET_NOTIFY);
}

#[test]
fn aarch64_has_its_own_numbers_and_no_others() {
    let program = compile_for(Machine::Aarch64, &docker_default(&DEFAULT_CAPABILITIES)).unwrap();
    let call =
        |name: &str| run(&program, AUDIT_ARCH_AARCH64, number(syscalls_aarch64::AARCH64, name), [0; 6]).0;
    assert_eq!([call("openat"), call("clone"), call("futex")], [RET_ALLOW; 3]);
    assert_eq!([call("mount"), call("bpf")], [EPERM; 2]);
    assert_eq!(call("clone3"), ENOSYS);
    assert_eq!(run(&program, AUDIT_ARCH_X86_64, 0, [0; 6]).0, RET_KILL_PROCESS);
    assert_eq!(run(&program, AUDIT_ARCH_AARCH64, 5000, [0; 6]).0, ENOSYS);
}

/// As libseccomp 2.5.4 decides, seen by runc 1.1.5.
#[test]
fn of_several_rules_for_a_call_the_one_that_libseccomp_takes_decides() {
    let (error, killed) = (RET_ERRNO | 13, RET_KILL_THREAD);
    let conditional = [(1, Operator::ScmpCmpEq, 0o777, None)];
    let kill = LinuxSeccompAction::ScmpActKill;
    let log = LinuxSeccompAction::ScmpActLog;
    let (always, sometimes): (&[Condition], &[Condition]) = (&[], &conditional);
    // The default action, rules for `mkdir`, and what becomes of it.
    let table: [(_, &[_], _); 9] = [
        (ALLOW, &[(ERRNO, Some(13), always), (ALLOW, None, always)], error),
        (ALLOW, &[(ERRNO, Some(13), always), (ALLOW, None, sometimes)], error),
        (ALLOW, &[(ALLOW, None, sometimes), (ERRNO, Some(13), always)], error),
        (ALLOW, &[(kill, None, always), (ERRNO, Some(13), always)], killed),
        (ALLOW, &[(ERRNO, Some(13), always), (kill, None, always)], error),
        (log, &[(ALLOW, None, always), (ERRNO, Some(13), always)], RET_ALLOW),
        (log, &[(ALLOW, None, always), (ERRNO, Some(13), sometimes)], RET_ALLOW),
        (log, &[(ERRNO, Some(13), sometimes), (ALLOW, None, always)], RET_ALLOW),
        // The same action with another number is no default.
        (ERRNO, &[(ERRNO, Some(13), always)], error),
    ];
    for (default, rules, expected) in table {
        let rules: Vec<_> = rules
            .iter()
            .map(|(action, errno, conditions)| ("mkdir", *action, *errno, *conditions))
            .chain([("execve", ALLOW, None, always)])
            .collect();
        let program = compile(&profile(default, &rules)).unwrap();
        assert_eq!(x86_64(&program, "mkdir", [0, 0o777, 0, 0, 0, 0]), expected, "{default} {rules:?}");
    }
}
