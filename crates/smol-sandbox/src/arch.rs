//! System calls that depend on the processor.

use libc::c_long;

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

#[cfg(not(target_arch = "x86_64"))]
pub(crate) const OLD_CALLS: &[c_long] = &[];
