//! The compiled program against a reading of the profile that knows nothing of BPF.

use oci_spec::runtime::{
    LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator as Operator, LinuxSyscallBuilder,
};
use proptest::prelude::*;
use proptest::sample::select;

use super::tests::run;
use super::*;

type Table = &'static [(&'static str, u32)];

/// Few names, so that rules meet: neighbours, far ends, calls that x32 numbers differently or lacks, and one that no
/// kernel has.
const NAMES: [&str; 12] = [
    "read",
    "write",
    "open",
    "mmap",
    "ioctl",
    "execve",
    "clone",
    "personality",
    "clone3",
    "openat2",
    "get_thread_area",
    "no_such_call",
];
const VALUES: [u64; 9] =
    [0, 1, 5, 0xffff_ffff, 1 << 32, (1 << 32) + 5, 0xff00_0000_0000_00ff, u64::MAX - 1, u64::MAX];

fn actions() -> impl Strategy<Value = (LinuxSeccompAction, Option<u32>)> {
    use LinuxSeccompAction::*;
    prop_oneof![
        select(vec![ScmpActAllow, ScmpActLog, ScmpActTrap, ScmpActKill, ScmpActKillThread])
            .prop_map(|action| (action, None)),
        Just((ScmpActKillProcess, None)),
        (select(vec![ScmpActErrno, ScmpActTrace]), proptest::option::of(0u32..4096)),
    ]
}

fn argument() -> impl Strategy<Value = LinuxSeccompArg> {
    let operators = vec![
        Operator::ScmpCmpNe,
        Operator::ScmpCmpLt,
        Operator::ScmpCmpLe,
        Operator::ScmpCmpEq,
        Operator::ScmpCmpGe,
        Operator::ScmpCmpGt,
        Operator::ScmpCmpMaskedEq,
    ];
    let value = || prop_oneof![4 => select(VALUES.to_vec()), 1 => any::<u64>()];
    (0usize..6, select(operators), value(), proptest::option::of(value())).prop_map(
        |(index, op, value, two)| {
            let mut builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
            if let Some(two) = two {
                builder = builder.value_two(two);
            }
            builder.build().unwrap()
        },
    )
}

prop_compose! {
    fn rule()(
        names in proptest::collection::vec(select(NAMES.to_vec()), 1..4),
        (action, errno) in prop_oneof![
            6 => actions(),
            1 => Just((LinuxSeccompAction::ScmpActNotify, None)),
        ],
        args in proptest::collection::vec(argument(), 0..5),
    ) -> LinuxSyscall {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
        if let Some(errno) = errno {
            builder = builder.errno_ret(errno);
        }
        if !args.is_empty() {
            builder = builder.args(args);
        }
        builder.build().unwrap()
    }
}

prop_compose! {
    fn profile()(
        (default, errno) in actions(),
        rules in proptest::collection::vec(rule(), 0..10),
        architectures in proptest::collection::vec(
            select(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]), 0..4),
    ) -> LinuxSeccomp {
        let mut builder = LinuxSeccompBuilder::default()
            .default_action(default)
            .architectures(architectures)
            .listener_path("/agent")
            .syscalls(rules);
        if let Some(errno) = errno {
            builder = builder.default_errno_ret(errno);
        }
        builder.build().unwrap()
    }
}

fn word(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    action.as_u32(errno)
}

fn holds(condition: &LinuxSeccompArg, arguments: &[u64; 6]) -> bool {
    let (found, value) = (arguments[condition.index()], condition.value());
    match condition.op() {
        Operator::ScmpCmpNe => found != value,
        Operator::ScmpCmpLt => found < value,
        Operator::ScmpCmpLe => found <= value,
        Operator::ScmpCmpEq => found == value,
        Operator::ScmpCmpGe => found >= value,
        Operator::ScmpCmpGt => found > value,
        Operator::ScmpCmpMaskedEq => found & value == condition.value_two().unwrap_or(0) & value,
    }
}

/// What the profile says about a call.
fn expected(profile: &LinuxSeccomp, architecture: u32, number: u32, arguments: &[u64; 6]) -> u32 {
    let listed = |arch| profile.architectures().as_ref().unwrap().contains(&arch);
    let x32 = architecture == AUDIT_ARCH_X86_64 && number >= X32_BIT;
    let lookup = |table: Table, name: &str| table.iter().find(|entry| entry.0 == name).map(|entry| entry.1);
    let number_of = |name: &str| match architecture {
        AUDIT_ARCH_X86_64 if x32 && syscalls::NOT_ON_X32.contains(&name) => None,
        AUDIT_ARCH_X86_64 if x32 => lookup(syscalls::X32_ONLY, name)
            .or_else(|| lookup(syscalls::X86_64, name))
            .map(|number| number | X32_BIT),
        AUDIT_ARCH_X86_64 => lookup(syscalls::X86_64, name),
        _ => lookup(syscalls::X86, name),
    };
    if x32 && !listed(Arch::ScmpArchX32) || architecture == AUDIT_ARCH_I386 && !listed(Arch::ScmpArchX86) {
        return RET_KILL_PROCESS;
    }
    let rules = profile.syscalls().as_ref().unwrap();
    let about = |rule: &&LinuxSyscall| rule.names().iter().any(|name| number_of(name) == Some(number));
    let default = word(profile.default_action(), profile.default_errno_ret());
    let verdict = |rule: &LinuxSyscall| word(rule.action(), rule.errno_ret());
    let says_something = |rule: &&LinuxSyscall| verdict(rule) != default;
    let about_it = || rules.iter().filter(about).filter(says_something);
    if let Some(rule) = about_it().find(|rule| rule.args().is_none()) {
        return verdict(rule);
    }
    for rule in about_it() {
        let Some(conditions) = rule.args() else { continue };
        let mut indexes: Vec<usize> = conditions.iter().map(LinuxSeccompArg::index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        let matches = if indexes.len() < conditions.len() {
            conditions.iter().any(|condition| holds(condition, arguments))
        } else {
            conditions.iter().all(|condition| holds(condition, arguments))
        };
        if matches {
            return verdict(rule);
        }
    }
    let newest = rules.iter().flat_map(LinuxSyscall::names).filter_map(|name| number_of(name)).max();
    let newer = newest.is_some_and(|newest| number > newest);
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActTrace};
    if newer && !matches!(profile.default_action(), ScmpActAllow | ScmpActLog | ScmpActTrace) {
        return RET_ERRNO | libc::ENOSYS as u32;
    }
    default
}

fn numbers() -> impl Strategy<Value = u32> {
    let pool = |table: Table| -> Vec<u32> {
        let named = table.iter().filter(|(name, _)| NAMES.contains(name));
        named.flat_map(|(_, number)| [number.saturating_sub(1), *number, number + 1]).collect()
    };
    let mut all: Vec<u32> = [syscalls::X86_64, syscalls::X86, syscalls::X32_ONLY].map(pool).concat();
    all.extend([0, 300, 500, 4000, X32_BIT - 1]);
    (select(all), any::<bool>()).prop_map(|(number, x32)| if x32 { number | X32_BIT } else { number })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn program_decides_as_the_profile_reads(
        profile in profile(),
        calls in proptest::collection::vec(
            (
                select(vec![AUDIT_ARCH_X86_64, AUDIT_ARCH_I386, AUDIT_ARCH_AARCH64]),
                numbers(),
                proptest::array::uniform6(select(VALUES.to_vec())),
            ),
            60,
        ),
    ) {
        let program = compile_for(Machine::X86_64, &profile).unwrap();
        for (architecture, number, arguments) in calls {
            // A 32-bit process has no x32 numbers, and nobody has calls of another machine.
            if architecture == AUDIT_ARCH_I386 && number >= X32_BIT - 1 {
                continue;
            }
            let wanted = if architecture == AUDIT_ARCH_AARCH64 {
                RET_KILL_PROCESS
            } else {
                expected(&profile, architecture, number, &arguments)
            };
            let (found, _) = run(&program, architecture, number, arguments);
            prop_assert_eq!(found, wanted, "{:#x} {} {:x?}", architecture, number, arguments);
        }
    }
}
