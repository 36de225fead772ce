//! Device rules as a program: v2 has no files for them.
//!
//! The kernel runs the program of a cgroup each time one of its processes makes or opens a device node. As on v1 the
//! last rule about a device wins, so the rules are compiled in reverse, each taking its share of the access that was
//! asked for: refused if a `deny` rule names any of it, allowed once `allow` rules have named all of it.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v2.rst`, "Device controller"; `bpf/standardization/instruction-set`.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Registers: the context, what is still asked for, kind, major, minor, and a scratch one.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const LOAD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const COPY: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const SET: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const IF_EQUAL: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const UNLESS_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const EXIT: u8 = 0x95;

/// A `struct bpf_insn`: code, registers, distance, immediate value, from the low end.
fn op(code: u8, to: u8, from: u8, distance: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(from << 4 | to) << 8
        | u64::from(distance as u16) << 16
        | u64::from(value as u32) << 32
}

/// The program for `rules`, which have been checked. Without a matching rule a device is allowed.
pub(super) fn compile(rules: &[LinuxDeviceCgroup]) -> Vec<u64> {
    // The context's first word holds the access (1 make, 2 read, 4 write) above the kind (1 block, 2 character).
    let mut program = vec![
        op(LOAD, ACCESS, CONTEXT, 0, 0),
        op(COPY, KIND, ACCESS, 0, 0),
        op(AND, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD, MAJOR, CONTEXT, 4, 0),
        op(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let access = access(rule);
        let verdict = if rule.allow() {
            vec![
                op(AND, ACCESS, 0, 0, !access),
                op(UNLESS_EQUAL, ACCESS, 0, 2, 0),
                op(SET, RESULT, 0, 0, 1),
                op(EXIT, 0, 0, 0, 0),
            ]
        } else {
            vec![
                op(COPY, SCRATCH, ACCESS, 0, 0),
                op(AND, SCRATCH, 0, 0, access),
                op(IF_EQUAL, SCRATCH, 0, 2, 0),
                op(SET, RESULT, 0, 0, 0),
                op(EXIT, 0, 0, 0, 0),
            ]
        };
        let conditions = conditions(rule);
        for (at, (register, value)) in conditions.iter().enumerate() {
            let behind = conditions.len() - at - 1 + verdict.len();
            program.push(op(UNLESS_EQUAL, *register, 0, behind as i16, *value));
        }
        program.extend(verdict);
    }
    program.extend([op(SET, RESULT, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    program
}

fn conditions(rule: &LinuxDeviceCgroup) -> Vec<(u8, i32)> {
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        // A rule for all kinds is one for all numbers.
        LinuxDeviceType::A | LinuxDeviceType::P => return Vec::new(),
        LinuxDeviceType::B => 1,
        LinuxDeviceType::C | LinuxDeviceType::U => 2,
    };
    let number = |register, number: Option<i64>| {
        number.and_then(|number| u32::try_from(number).ok()).map(|number| (register, number as i32))
    };
    [Some((KIND, kind)), number(MAJOR, rule.major()), number(MINOR, rule.minor())]
        .into_iter()
        .flatten()
        .collect()
}

fn access(rule: &LinuxDeviceCgroup) -> i32 {
    let letters = rule.access().as_deref().unwrap_or_default();
    [('m', 1), ('r', 2), ('w', 4)]
        .iter()
        .filter(|(letter, _)| letters.contains(*letter))
        .map(|(_, bit)| bit)
        .sum()
}
