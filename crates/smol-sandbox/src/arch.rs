//! What depends on the processor.

use libc::c_long;

/// The interface of the processor that our calls are made by (include/uapi/linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub(crate) const INTERFACE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
pub(crate) const INTERFACE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// Older calls that the C library still makes on x86-64; later processors lack them.
#[cfg(target_arch = "x86_64")]
pub(crate) const OLD_CALLS: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_time,
];

/// Those of them that wait for descriptors.
#[cfg(target_arch = "x86_64")]
pub(crate) const OLD_WAITS: &[c_long] = &[libc::SYS_poll, libc::SYS_epoll_wait];

#[cfg(not(target_arch = "x86_64"))]
pub(crate) const OLD_WAITS: &[c_long] = &[];

#[cfg(not(target_arch = "x86_64"))]
pub(crate) const OLD_CALLS: &[c_long] = &[];
