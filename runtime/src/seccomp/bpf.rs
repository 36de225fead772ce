//! The assembler: segments of system call numbers in, classic BPF out.
//!
//! Jumps in this instruction set go forward only and conditional ones reach 255 instructions, so everything is built
//! from blocks whose inner distances are relative, which can be put one after another.

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

/// One instruction, in the layout of the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

impl Instruction {
    /// Has a branch leave out `distance` instructions when it holds, or when it does not.
    fn lead(&mut self, when: bool, distance: u8) {
        *if when { &mut self.jump_true } else { &mut self.jump_false } = distance;
    }

    /// As in memory.
    pub fn to_bytes(&self) -> [u8; 8] {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [code[0], code[1], self.jump_true, self.jump_false, k[0], k[1], k[2], k[3]]
    }

    /// From what [`Self::to_bytes`] gave on this machine.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [c0, c1, jump_true, jump_false, k @ ..] = bytes;
        Self { code: u16::from_ne_bytes([c0, c1]), jump_true, jump_false, k: u32::from_ne_bytes(k) }
    }
}

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// How many instructions a branch can leave out.
const REACH: usize = u8::MAX as usize;
/// Instructions that a condition takes.
const CONDITION_MAX: usize = 6;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// All calls from `first` up to the next segment are treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub first: u32,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Return(u32),
    /// The first rule whose conditions all hold decides, else `otherwise`.
    Check {
        rules: Vec<(Vec<LinuxSeccompArg>, u32)>,
        otherwise: u32,
    },
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

fn branch(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

/// A program that picks the architecture's segments, then the call's; other architectures return `foreign`.
/// Segments are sorted by `first`, and the first one starts at 0.
pub(super) fn assemble(architectures: &[(u32, Vec<Segment>)], foreign: u32) -> Vec<Instruction> {
    let mut program = vec![op(LOAD, ARCHITECTURE)];
    for (architecture, segments) in architectures {
        let mut body = vec![op(LOAD, NUMBER)];
        search(segments, &mut body);
        // Not this architecture: jump over its body, which is too long for a conditional jump.
        program.push(branch(IF_EQUAL, *architecture, 1, 0));
        program.push(op(JUMP, body.len() as u32));
        program.append(&mut body);
    }
    program.push(op(RETURN, foreign));
    program
}

/// A binary search over `segments`, with the call's number in the accumulator. Those that are near enough to each other
/// share their verdicts, which all come last: that nearly halves a filter of many calls.
fn search(segments: &[Segment], out: &mut Vec<Instruction>) {
    if segments.len() == 1 || len_at_most(segments) <= REACH {
        let mut open = Vec::new();
        if let Some(verdict) = tree(segments, out, &mut open) {
            out.push(op(RETURN, verdict));
        }
        return close(&mut open, out);
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let node = out.len();
    out.push(op(IF_AT_LEAST, high[0].first));
    search(low, out);
    let distance = out.len() - node - 1;
    if let Ok(near) = u8::try_from(distance) {
        out[node].lead(true, near);
    } else {
        out[node].lead(false, 1);
        out.insert(node + 1, op(JUMP, distance as u32));
    }
    search(high, out);
}

/// How many instructions come of `segments`, with a branch and a verdict for each.
fn len_at_most(segments: &[Segment]) -> usize {
    let checks = segments.iter().map(|segment| match &segment.target {
        Target::Return(_) => 0,
        Target::Check { rules, .. } => {
            rules.iter().map(|(conditions, _)| CONDITION_MAX * conditions.len() + 1).sum()
        }
    });
    2 * segments.len() + checks.sum::<usize>()
}

/// A way out of a branch that leads to a verdict which is not written yet.
struct Open {
    at: usize,
    when: bool,
    verdict: u32,
}

/// The search without its verdicts. Where it is nothing but a verdict, that.
fn tree(segments: &[Segment], out: &mut Vec<Instruction>, open: &mut Vec<Open>) -> Option<u32> {
    if let [one] = segments {
        match &one.target {
            Target::Return(verdict) => return Some(*verdict),
            Target::Check { rules, otherwise } => {
                for (conditions, verdict) in rules {
                    rule(conditions, *verdict, out);
                }
                out.push(op(RETURN, *otherwise));
            }
        }
        return None;
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let at = out.len();
    out.push(op(IF_AT_LEAST, high[0].first));
    for (half, when) in [(low, false), (high, true)] {
        let distance = out.len() - at - 1;
        match tree(half, out, open) {
            Some(verdict) => open.push(Open { at, when, verdict }),
            None => out[at].lead(when, distance as u8),
        }
    }
    None
}

/// Writes the verdicts, each once.
fn close(open: &mut [Open], out: &mut Vec<Instruction>) {
    open.sort_by_key(|way| way.verdict);
    for alike in open.chunk_by(|one, two| one.verdict == two.verdict) {
        let place = out.len();
        for way in alike {
            out[way.at].lead(way.when, (place - way.at - 1) as u8);
        }
        out.push(op(RETURN, alike[0].verdict));
    }
}

/// Returns `verdict` if all conditions hold, else continues behind the block.
fn rule(conditions: &[LinuxSeccompArg], verdict: u32, out: &mut Vec<Instruction>) {
    // A jump distance of FAIL stands for "behind this block" until the block's length is known. At most six
    // conditions of six instructions each, so real distances stay far below.
    const FAIL: u8 = u8::MAX;
    let start = out.len();
    for condition in conditions {
        // Arguments are 64 bits wide and the machine compares 32: high word first. All machines covered are
        // little endian.
        let low_at = ARGUMENTS + 8 * condition.index() as u32;
        let high_at = low_at + 4;
        let (high, low) = ((condition.value() >> 32) as u32, condition.value() as u32);
        match condition.op() {
            LinuxSeccompOperator::ScmpCmpEq => out.extend([
                op(LOAD, high_at),
                branch(IF_EQUAL, high, 0, FAIL),
                op(LOAD, low_at),
                branch(IF_EQUAL, low, 0, FAIL),
            ]),
            LinuxSeccompOperator::ScmpCmpNe => out.extend([
                op(LOAD, high_at),
                branch(IF_EQUAL, high, 0, 2),
                op(LOAD, low_at),
                branch(IF_EQUAL, low, FAIL, 0),
            ]),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                // Bits outside of the mask are none of the condition's business, as with libseccomp.
                let wanted = condition.value_two().unwrap_or(0) & condition.value();
                out.extend([
                    op(LOAD, high_at),
                    op(AND, high),
                    branch(IF_EQUAL, (wanted >> 32) as u32, 0, FAIL),
                    op(LOAD, low_at),
                    op(AND, low),
                    branch(IF_EQUAL, wanted as u32, 0, FAIL),
                ]);
            }
            operator @ (LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpGe) => {
                let compare_low =
                    if operator == LinuxSeccompOperator::ScmpCmpGt { IF_GREATER } else { IF_AT_LEAST };
                out.extend([
                    op(LOAD, high_at),
                    branch(IF_GREATER, high, 3, 0),
                    branch(IF_EQUAL, high, 0, FAIL),
                    op(LOAD, low_at),
                    branch(compare_low, low, 0, FAIL),
                ]);
            }
            operator @ (LinuxSeccompOperator::ScmpCmpLt | LinuxSeccompOperator::ScmpCmpLe) => {
                let compare_low =
                    if operator == LinuxSeccompOperator::ScmpCmpLt { IF_AT_LEAST } else { IF_GREATER };
                out.extend([
                    op(LOAD, high_at),
                    branch(IF_GREATER, high, FAIL, 0),
                    branch(IF_EQUAL, high, 0, 2),
                    op(LOAD, low_at),
                    branch(compare_low, low, FAIL, 0),
                ]);
            }
        }
    }
    out.push(op(RETURN, verdict));
    let end = out.len();
    for (at, instruction) in out.iter_mut().enumerate().skip(start) {
        let distance = (end - at - 1) as u8;
        if instruction.jump_true == FAIL {
            instruction.jump_true = distance;
        }
        if instruction.jump_false == FAIL {
            instruction.jump_false = distance;
        }
    }
}
