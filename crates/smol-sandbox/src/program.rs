//! Filters as programs of the kernel's packet filter (BPF): a call is looked up by its number in a
//! binary search, and only the few whose arguments matter are left to seccompiler.
//!
//! ```text
//! load the number -> search: one comparison for each border between ranges of numbers
//!                 -> allow | forbid | ... | by arguments
//! ```
//! The kernel runs a program for every number when it is installed, and compiles it. A program of
//! seccompiler alone has five instructions for each call and passes all of them, which would take
//! several times as long: a noticeable part of a warm start.

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
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// What a call gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    /// This return value of the filter.
    Fixed(u32),
    /// What the rules say of its arguments.
    ByArguments,
}

/// The answers to calls, by their numbers.
pub(crate) struct Table {
    /// In any order; of several for one call, the last one counts.
    answers: Vec<(u32, Answer)>,
    others: Answer,
}

impl Table {
    /// Returns a table that has one answer to every call.
    pub(crate) fn new(others: SeccompAction) -> Self {
        Self {
            answers: Vec::new(),
            others: Answer::Fixed(others.into()),
        }
    }

    /// Has these calls answered like this.
    pub(crate) fn answer(
        mut self,
        calls: impl IntoIterator<Item = c_long>,
        action: SeccompAction,
    ) -> Self {
        let answer = Answer::Fixed(action.into());
        let calls = calls.into_iter().map(|call| (number(call), answer));
        self.answers.extend(calls);
        self
    }

    /// Returns the program of this table. Calls by another interface of the processor, such as that of
    /// 32-bit programs, kill the process.
    ///
    /// # Panics
    /// If there are more ranges of numbers than a jump can pass: about 250.
    pub(crate) fn program(&self) -> BpfProgram {
        let mut program = vec![
            instruction(LOAD, 0, 0, INTERFACE),
            instruction(JUMP_IF_EQUAL, 1, 0, arch::INTERFACE),
            instruction(RETURN, 0, 0, SeccompAction::KillProcess.into()),
            instruction(LOAD, 0, 0, NUMBER),
        ];
        let ranges = self.ranges();
        // Where nothing is to be searched, the first one is the only one. What looks at arguments comes
        // last, behind the program.
        let mut ends: Vec<Answer> = ranges.iter().map(|(_, answer)| *answer).collect();
        ends.sort_unstable();
        ends.dedup();
        let first_end = program.len() + ranges.len() - 1;
        let place = |answer| first_end + ends.partition_point(|end| *end < answer);
        search(&ranges, &place, &mut program);
        program.extend(ends.iter().filter_map(|end| match end {
            Answer::Fixed(value) => Some(instruction(RETURN, 0, 0, *value)),
            Answer::ByArguments => None,
        }));
        program
    }

    /// As [`Table::program`]; calls that these rules name are allowed if their arguments are as the rules
    /// say, and get the other answer if not.
    ///
    /// # Errors
    /// Those of seccompiler.
    pub(crate) fn with_rules(
        mut self,
        rules: Rules,
        other: SeccompAction,
    ) -> Result<BpfProgram, seccompiler::BackendError> {
        let ruled = rules
            .keys()
            .map(|call| (number(*call), Answer::ByArguments));
        self.answers.extend(ruled);
        let target = TargetArch::try_from(std::env::consts::ARCH)?;
        let filter = SeccompFilter::new(rules, other, SeccompAction::Allow, target)?;
        let by_arguments: BpfProgram = filter.try_into()?;
        Ok(self.program().into_iter().chain(by_arguments).collect())
    }

    /// Returns from which number on which answer is given, in ascending order and from 0 on.
    fn ranges(&self) -> Vec<(u32, Answer)> {
        let mut answers = self.answers.clone();
        answers.sort_by_key(|(number, _)| *number);
        answers.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                *kept = *later;
            }
            same
        });
        let mut ranges = vec![(0, self.others)];
        for (number, answer) in answers {
            // Such as what is behind the call before.
            ranges.pop_if(|(first, _)| *first == number);
            ranges.extend([(number, answer), (number + 1, self.others)]);
        }
        ranges.dedup_by_key(|(_, answer)| *answer);
        ranges
    }
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("calls are numbered from 0")
}

/// Appends a binary search for the range that the accumulator is in, one instruction for each border
/// between two, which ends at the place of the range's answer.
fn search(ranges: &[(u32, Answer)], place: &impl Fn(Answer) -> usize, program: &mut BpfProgram) {
    if ranges.len() < 2 {
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    // Behind this instruction is the search of the lower half, then that of the upper one.
    let next = program.len() + 1;
    let jump = |half: &[(u32, Answer)], begin: usize| {
        let to = match half {
            [(_, answer)] => place(*answer),
            _ => begin,
        };
        u8::try_from(to - next).expect("within reach")
    };
    let (jt, jf) = (jump(high, next + low.len() - 1), jump(low, next));
    program.push(instruction(JUMP_IF_NOT_BELOW, jt, jf, high[0].0));
    search(low, place, program);
    search(high, place, program);
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;

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
                JUMP => k as usize, // of seccompiler
                RETURN => return k,
                other => panic!("{other}"),
            };
        }
    }

    #[test]
    fn each_call_gets_its_answer_and_those_of_other_interfaces_kill() {
        let code = |number| u32::from(SeccompAction::Errno(number));
        // The last one has about as many ranges as a jump can pass.
        for count in [0, 1, 2, 3, 12, 13, 100] {
            // Single numbers, and pairs of neighbours.
            let one: Vec<c_long> = (0..count).map(|n| n * 5 + 1).collect();
            let other: Vec<c_long> = (0..count / 4).map(|n| n * 20).collect();
            let program = Table::new(SeccompAction::Errno(3))
                // Of two answers, the last one counts.
                .answer(one.iter().take(5).copied(), SeccompAction::Errno(4))
                .answer(one.clone(), SeccompAction::Errno(1))
                .answer(other.clone(), SeccompAction::Errno(2))
                .program();
            for number in (0..700).chain([u32::MAX, 1 << 30]) {
                let wanted = match c_long::from(number) {
                    n if one.contains(&n) => 1,
                    n if other.contains(&n) => 2,
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

    #[test]
    fn a_call_with_rules_is_left_to_them() {
        // Rules without conditions, which always hold.
        let rules = [(5, vec![]), (9, vec![])];
        let allowed = Table::new(SeccompAction::KillThread).answer([4, 6], SeccompAction::Allow);
        let program = allowed.with_rules(rules.into(), SeccompAction::KillThread);
        let program = program.unwrap();
        for number in 0..20 {
            let wanted = match number {
                4..=6 | 9 => SeccompAction::Allow,
                _ => SeccompAction::KillThread,
            };
            let answer = run(&program, arch::INTERFACE, number);
            assert_eq!(answer, u32::from(wanted), "{number}");
        }
    }
}
