//! The system calls of each filter, with what is asked of their arguments.
//!
//! Those of memory, threads and time are what the standard library and the C library make use of;
//! which of them, depends on the version and on the host, so the list has the whole family where
//! all of it is harmless.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::arch;

/// What is asked of the arguments of a call: one of the rules must hold. None: nothing is asked.
pub(crate) type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Linux's ioctl numbers have the driver's letter in their second byte
/// (Documentation/userspace-api/ioctl/ioctl-number.rst).
const DRIVER: u64 = 0xff00;
const KVM: u64 = 0xae00;
const USERFAULTFD: u64 = 0xaa00;

// include/uapi/linux/kvm.h
const KVM_RUN: u64 = 0xae80;
const KVM_IRQ_LINE: u64 = 0x4008_ae61;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_TRANSLATE: u64 = 0xc018_ae85;

/// Files, which Landlock decides about, and descriptors.
const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_fgetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    libc::SYS_ppoll,
];
/// Memory, but for making it executable.
const MEMORY: &[c_long] = &[
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_membarrier,
];
/// Threads of this process.
const THREADS: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_setpriority,
    libc::SYS_getpriority,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Signals to this process.
const SIGNALS: &[c_long] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
];
/// Time, where the vDSO does not know it, random numbers, and who this is.
const FACTS: &[c_long] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
];

/// Returns the rule that an argument, of which the lower 32 bits count, is like this.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(index, Dword, operator, value);
    let condition = condition.expect("a call has six arguments");
    SeccompRule::new(vec![condition]).expect("it has a condition")
}

/// Returns the rules that an argument is one of these.
fn one_of(index: u8, values: &[u64]) -> Vec<SeccompRule> {
    values
        .iter()
        .map(|value| argument(index, Eq, *value))
        .collect()
}

/// Calls of a filter: those that are allowed whatever their arguments, and rules for the others.
pub(crate) struct Calls {
    pub any: Vec<c_long>,
    pub rules: Rules,
}

/// Returns the calls of a program that reads and writes files, on several threads.
pub(crate) fn files() -> Calls {
    let families = [FILES, MEMORY, THREADS, SIGNALS, FACTS, arch::OLD_CALLS];
    let not_executable = || vec![argument(2, MaskedEq(libc::PROT_EXEC as u64), 0)];
    let thread = libc::CLONE_THREAD as u64;
    let us = std::process::id().into();
    // Names of threads and of memory: the C library's, for /proc.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let rules = [
        (libc::SYS_mmap, not_executable()),
        (libc::SYS_mprotect, not_executable()),
        (libc::SYS_clone, vec![argument(0, MaskedEq(thread), thread)]),
        (libc::SYS_tgkill, vec![argument(0, Eq, us)]),
        (libc::SYS_prlimit64, one_of(0, &[0, us])),
        (libc::SYS_prctl, one_of(0, &names.map(unsigned))),
        (libc::SYS_fcntl, one_of(1, &FCNTL.map(unsigned))),
        (libc::SYS_ioctl, one_of(1, &TERMINAL)),
    ];
    Calls {
        any: families.concat(),
        rules: rules.into(),
    }
}

/// Flags and locks; not F_SETOWN, which sends signals to others.
const FCNTL: [libc::c_int; 9] = [
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GET_SEALS,
];

/// What is asked of a terminal: whether it is one, and its size; and FIONBIO.
const TERMINAL: [u64; 3] = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO];

fn unsigned(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

/// Returns the calls of a machine that runs.
pub(crate) fn machine() -> Calls {
    let mut calls = with_streams(files());
    let mut ioctls = vec![KVM_RUN, KVM_IRQ_LINE, KVM_GET_REGS, KVM_TRANSLATE];
    ioctls.extend(TERMINAL);
    let mut ioctls = one_of(1, &ioctls);
    ioctls.push(argument(1, MaskedEq(DRIVER), USERFAULTFD));
    calls.rules.insert(libc::SYS_ioctl, ioctls);
    calls
}

/// Returns the calls of a machine that is built.
pub(crate) fn build() -> Calls {
    let mut calls = with_streams(files());
    calls
        .any
        .extend([libc::SYS_userfaultfd, libc::SYS_eventfd2]);
    let mut ioctls = one_of(1, &TERMINAL);
    ioctls.extend([KVM, USERFAULTFD].map(|driver| argument(1, MaskedEq(DRIVER), driver)));
    calls.rules.insert(libc::SYS_ioctl, ioctls);
    calls
}

/// Adds what connections need that others have opened: no socket can be made but a pair.
fn with_streams(mut calls: Calls) -> Calls {
    calls.any.extend(STREAMS);
    let unix = vec![argument(0, Eq, unsigned(libc::AF_UNIX))];
    calls.rules.insert(libc::SYS_socketpair, unix);
    calls
}

/// Connections.
const STREAMS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

/// Returns the calls of a thread that carries packets of a guest between sockets: it makes connections
/// and asks, but accepts none. It opens files to read them, which are random numbers, and Landlock
/// decides which.
pub(crate) fn network() -> Calls {
    let families = [
        DESCRIPTORS,
        MEMORY,
        SIGNALS,
        FACTS,
        CONNECTIONS,
        arch::OLD_WAITS,
    ];
    let not_executable = || vec![argument(2, MaskedEq(libc::PROT_EXEC as u64), 0)];
    let changes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let read_only = argument(2, MaskedEq(unsigned(changes)), unsigned(libc::O_RDONLY));
    let us = std::process::id().into();
    let rules = [
        (libc::SYS_mmap, not_executable()),
        (libc::SYS_mprotect, not_executable()),
        (libc::SYS_openat, vec![read_only]),
        (libc::SYS_socket, internet_sockets()),
        (libc::SYS_tgkill, vec![argument(0, Eq, us)]),
        (
            libc::SYS_prctl,
            one_of(0, &[libc::PR_SET_VMA].map(unsigned)),
        ),
        (libc::SYS_fcntl, one_of(1, &FCNTL.map(unsigned))),
        (libc::SYS_ioctl, one_of(1, &[libc::FIONBIO])),
    ];
    Calls {
        any: families.concat(),
        rules: rules.into(),
    }
}

/// TCP, UDP and echoes over IP: not what reaches another program of this host by a path or a name, nor
/// packets as they are on the wire.
fn internet_sockets() -> Vec<SeccompRule> {
    /// Below it are flags (include/linux/net.h, `SOCK_TYPE_MASK`).
    const TYPE: u64 = 0xf;
    let condition = |index, operator, value: libc::c_int| {
        let condition = SeccompCondition::new(index, Dword, operator, unsigned(value));
        condition.expect("a call has six arguments")
    };
    let families = [libc::AF_INET, libc::AF_INET6];
    let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM];
    let pairs = families
        .into_iter()
        .flat_map(|family| kinds.map(|kind| (family, kind)));
    pairs
        .map(|(family, kind)| {
            let conditions = vec![condition(0, Eq, family), condition(1, MaskedEq(TYPE), kind)];
            SeccompRule::new(conditions).expect("it has conditions")
        })
        .collect()
}

/// What is open already, waiting for it, and this thread.
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Connections to others.
const CONNECTIONS: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

/// Calls that reach beyond the program's own files and children.
pub(crate) const REMOTE: &[c_long] = &[
    // Others: to connect to, to trace.
    libc::SYS_connect,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // The host.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
];
