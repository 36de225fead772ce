//! The assembler: segments of system call numbers in, classic BPF out.
//!
//! Jumps in this instruction set go forward only and conditional ones reach 255 instructions, so everything is built
//! from blocks whose inner distances are relative, which can be put one after another.

use std::collections::BTreeSet;

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
        body.extend(search(segments).closed());
        // Not this architecture: jump over its body, which is too long for a conditional jump.
        program.push(branch(IF_EQUAL, *architecture, 1, 0));
        program.push(op(JUMP, body.len() as u32));
        program.extend(body);
    }
    program.push(op(RETURN, foreign));
    program
}

/// What decides about some calls, with the call's number in the accumulator.
enum Piece {
    Verdict(u32),
    /// Instructions, the first of them to be executed first, and verdicts that they have yet to be given.
    Code(Vec<Instruction>, Vec<Open>),
}

/// A way out of a branch that leads to a verdict. All those within reach of one `RETURN` share it, which halves a filter
/// of many calls.
struct Open {
    /// Place of the branch.
    at: usize,
    when: bool,
    verdict: u32,
}

impl Piece {
    /// How many instructions it comes to with its verdicts.
    fn len(&self) -> usize {
        match self {
            Self::Verdict(_) => 1,
            Self::Code(code, open) => code.len() + verdicts(open).len(),
        }
    }

    /// With its verdicts behind it.
    fn closed(self) -> Vec<Instruction> {
        let (mut code, open) = match self {
            Self::Verdict(verdict) => return vec![op(RETURN, verdict)],
            Self::Code(code, open) => (code, open),
        };
        for verdict in verdicts(&open) {
            for way in open.iter().filter(|way| way.verdict == verdict) {
                let distance = (code.len() - way.at - 1) as u8;
                code[way.at].lead(way.when, distance);
            }
            code.push(op(RETURN, verdict));
        }
        code
    }
}

fn verdicts(open: &[Open]) -> BTreeSet<u32> {
    open.iter().map(|way| way.verdict).collect()
}

/// A binary search over `segments`.
fn search(segments: &[Segment]) -> Piece {
    if let [one] = segments {
        return match &one.target {
            Target::Return(verdict) => Piece::Verdict(*verdict),
            Target::Check { rules, otherwise } => {
                let mut code = Vec::new();
                for (conditions, verdict) in rules {
                    rule(conditions, *verdict, &mut code);
                }
                code.push(op(RETURN, *otherwise));
                Piece::Code(code, Vec::new())
            }
        };
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let boundary = high[0].first;
    let mut halves = [search(low), search(high)];
    let within_reach = halves.iter().map(Piece::len).sum::<usize>() <= REACH;
    if !within_reach {
        halves = halves.map(|half| Piece::Code(half.closed(), Vec::new()));
    }
    let (mut code, mut open) = (vec![op(IF_AT_LEAST, boundary)], Vec::new());
    for (half, when) in halves.into_iter().zip([false, true]) {
        match half {
            Piece::Verdict(verdict) => open.push(Open { at: 0, when, verdict }),
            Piece::Code(more, ways) => {
                match u8::try_from(code.len() - 1) {
                    Ok(near) => code[0].lead(when, near),
                    // The upper half, with nothing open: a jump of its own leads there.
                    Err(_) => {
                        let jump = op(JUMP, code.len() as u32 - 1);
                        code[0].lead(!when, 1);
                        code.insert(1, jump);
                    }
                }
                open.extend(ways.into_iter().map(|way| Open { at: code.len() + way.at, ..way }));
                code.extend(more);
            }
        }
    }
    Piece::Code(code, open)
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
