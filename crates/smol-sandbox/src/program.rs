//! Filters as programs of the kernel's packet filter (BPF): a call is looked up by its number in a
//! sorted table, and only the few whose arguments matter are left to seccompiler.
//!
//! The kernel runs a program for every number when it is installed, and compiles it. A program of
//! seccompiler alone, which has five instructions for each call and passes all of them, takes six times
//! as long for that, which would be a tenth of a warm start.

use std::collections::BTreeSet;

use libc::c_long;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};

use crate::arch;
use crate::calls::Rules;

/// Where `struct seccomp_data` has the number of the call and the processor's interface
/// (include/uapi/linux/seccomp.h).
const NUMBER: u32 = 0;
const INTERFACE: u32 = 4;

// include/uapi/linux/bpf_common.h
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_NOT_BELOW: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// How many numbers are compared one by one; others are passed over.
const GROUP: usize = 12;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Returns a program that does the same as this one, which takes the number of the call from the
/// accumulator. Calls by another interface of the processor, such as that of 32-bit programs, kill the
/// process.
pub(crate) fn of_number(program: BpfProgram) -> BpfProgram {
    let mut whole = vec![
        instruction(LOAD, 0, 0, INTERFACE),
        instruction(JUMP_IF_EQUAL, 1, 0, arch::INTERFACE),
        instruction(RETURN, 0, 0, SeccompAction::KillProcess.into()),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    whole.extend(program);
    whole
}

/// Returns a program that goes on with `listed` for these calls, and with `otherwise` for all others.
///
/// # Panics
/// If there are more calls than a jump can reach: about 200.
pub(crate) fn by_number(
    calls: impl IntoIterator<Item = c_long>,
    listed: BpfProgram,
    otherwise: BpfProgram,
) -> BpfProgram {
    let numbered = |call| u32::try_from(call).expect("calls are numbered from 0");
    let calls: BTreeSet<u32> = calls.into_iter().map(numbered).collect();
    if calls.is_empty() {
        return otherwise;
    }
    let calls: Vec<u32> = calls.into_iter().collect();
    let mut groups = calls.chunks(GROUP).peekable();
    let mut table: BpfProgram = Vec::new();
    while let Some(group) = groups.next() {
        if let Some(next) = groups.peek() {
            // Over the group and the jump behind it.
            let over = group.len() as u8 + 1;
            table.push(instruction(JUMP_IF_NOT_BELOW, over, 0, next[0]));
        }
        table.extend(
            group
                .iter()
                .map(|call| instruction(JUMP_IF_EQUAL, 0, 0, *call)),
        );
        table.push(instruction(JUMP, 0, 0, 0));
    }
    // Where `listed` begins is known now.
    let end = table.len();
    for (at, instruction) in table.iter_mut().enumerate() {
        let left = end - at - 1;
        match instruction.code {
            JUMP_IF_EQUAL => instruction.jt = u8::try_from(left).expect("within reach"),
            JUMP => instruction.k = (left + listed.len()) as u32,
            _ => {}
        }
    }
    table.into_iter().chain(listed).chain(otherwise).collect()
}

/// Returns a program that gives every call the same answer.
pub(crate) fn always(action: SeccompAction) -> BpfProgram {
    vec![instruction(RETURN, 0, 0, action.into())]
}

/// Returns a program that allows the calls whose arguments are as the rules say, and answers all others
/// with `otherwise`. It does not look at the accumulator.
///
/// # Errors
/// Those of seccompiler.
pub(crate) fn by_arguments(
    rules: Rules,
    otherwise: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let target = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, target)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program that looks at nothing but the interface and the number, as the kernel does
    /// (Documentation/networking/filter.rst).
    fn run(program: &BpfProgram, interface: u32, number: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1 + match code {
                LOAD if k == INTERFACE => {
                    accumulator = interface;
                    0
                }
                LOAD => {
                    accumulator = number;
                    0
                }
                JUMP_IF_EQUAL => usize::from(if accumulator == k { jt } else { jf }),
                JUMP_IF_NOT_BELOW => usize::from(if accumulator >= k { jt } else { jf }),
                JUMP => k as usize,
                RETURN => return k,
                other => panic!("{other}"),
            };
        }
    }

    #[test]
    fn each_call_gets_its_answer_and_those_of_other_interfaces_kill() {
        let answer = |number| always(SeccompAction::Errno(number));
        let code = |number| u32::from(SeccompAction::Errno(number));
        for count in [0, 1, GROUP, GROUP + 1, 2 * GROUP, 200] {
            // Every third number.
            let listed: Vec<c_long> = (0..count).map(|n| n as c_long * 3 + 1).collect();
            let inner = by_number([0, 2], answer(2), answer(3));
            let program = of_number(by_number(listed.clone(), answer(1), inner));
            for number in (0..700).chain([u32::MAX, 1 << 30]) {
                let wanted = match number {
                    _ if listed.contains(&number.into()) => 1,
                    0 | 2 => 2,
                    _ => 3,
                };
                assert_eq!(
                    run(&program, arch::INTERFACE, number),
                    code(wanted),
                    "{count} {number}"
                );
                let killed = run(&program, arch::INTERFACE + 1, number);
                assert_eq!(killed, u32::from(SeccompAction::KillProcess));
            }
        }
    }
}
