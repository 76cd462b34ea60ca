//! Filters as programs of the kernel's packet filter (BPF): calls are looked up by their number first,
//! one instruction each, and only the few whose arguments matter are left to seccompiler.
//!
//! The kernel runs a program for every number when it is installed, and compiles it; a program of
//! seccompiler alone, with five instructions for a call, would take four times as long for that, which
//! is a tenth of a warm start.

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
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Returns a program that answers these calls with `action`, and all others as `otherwise` does. Calls
/// by another interface of the processor, such as that of 32-bit programs, kill the process.
///
/// # Panics
/// If there are more calls than a jump can reach: 254.
pub(crate) fn by_number(
    calls: &[c_long],
    action: SeccompAction,
    otherwise: BpfProgram,
) -> BpfProgram {
    assert!(calls.len() < 255, "a jump reaches over 255 instructions");
    let mut program = vec![
        instruction(LOAD, 0, 0, INTERFACE),
        instruction(JUMP_IF_EQUAL, 1, 0, arch::INTERFACE),
        instruction(RETURN, 0, 0, SeccompAction::KillProcess.into()),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    for (at, call) in calls.iter().enumerate() {
        let number = u32::try_from(*call).expect("calls are numbered from 0");
        // Over the calls that follow and the jump behind them.
        let to_action = (calls.len() - at) as u8;
        program.push(instruction(JUMP_IF_EQUAL, to_action, 0, number));
    }
    program.push(instruction(JUMP, 0, 0, 1));
    program.push(instruction(RETURN, 0, 0, action.into()));
    program.extend(otherwise);
    program
}

/// Returns a program that gives every call the same answer.
pub(crate) fn always(action: SeccompAction) -> BpfProgram {
    vec![instruction(RETURN, 0, 0, action.into())]
}

/// Returns a program that allows the calls whose arguments are as the rules say, and answers all others
/// with `otherwise`.
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
