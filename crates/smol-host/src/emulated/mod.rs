//! The emulated host: a small Linux in QEMU (TCG), whose CPU has AMD's virtualization and which
//! is therefore a KVM host wherever there is none. [`EmulatedHost`] describes one and starts it,
//! [`RunningHost`] is one that runs, [`init`] is its PID 1.
//!
//! ```text
//! this program ── EmulatedHost::spawn ──> QEMU ──> Linux ──> this program as PID 1 (init)
//!      │ RunningHost                                             │ modules, mounts, clock
//!      └─ one virtio-serial port: frames (wire) ─────────────────┤ stdout, stderr, channel, exit
//!         9p: shared folders   user network: forwarded ports     └─> the job (this program, or another)
//! ```
//!
//! The kernel is Debian's ([`kernel`]); nothing else of a distribution is in it. A job runs as
//! root with /dev/kvm, two CPUs, tmpfs on /tmp, /run and /dev/shm, and the shared folders.
//!
//! Writable shares are mounted with `cache=mmap`, in which each call is a round trip: use large blocks.
//! Read-only ones take `cache=loose`. What that and a start cost is in docs/measurements.md.

use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

mod cpio;
mod fault;
pub mod init;
pub mod kernel;
mod modules;
mod network;
mod process;
mod pulse;
mod qemu;
mod running;
pub mod wire;

pub use fault::FOLDER as FAULTS;
pub use qemu::{EmulatedHost, qemu_access};
pub(crate) use qemu::{QEMU, qemu_missing};
pub use running::{Controller, Event, RunningHost};
pub use wire::JobStatus;

/// Folder in the cache of all that is kept of emulated hosts.
pub const FOLDER: &str = crate::cache::HOST_KERNELS;

/// Path of the running program inside the emulated host: what a job names to run itself there.
pub const SELF: &str = "/smol";

/// The argument by which a program knows that it is to be the emulated host's init.
pub const INIT_ARGUMENT: &str = "emulated-host-init";

/// Set to 1 for everything that runs inside an emulated host.
pub const MARKER_VARIABLE: &str = "SMOL_EMULATED_HOST";

/// Holds the number of the file descriptor of the job's channel; see [`job_channel`].
pub const CHANNEL_VARIABLE: &str = "SMOL_EMULATED_CHANNEL";

/// Returns whether this process runs inside an emulated host.
pub fn is_inside() -> bool {
    std::env::var_os(MARKER_VARIABLE).is_some_and(|value| value == "1")
}

/// Returns the channel to the program that started this emulated host, for the job that runs in it:
/// what it sends arrives there as [`Event::Channel`], and [`Controller::send`] answers.
/// Take it once; a second call gives a second handle to the same stream.
pub fn job_channel() -> Option<std::io::Result<UnixStream>> {
    let fd: RawFd = std::env::var(CHANNEL_VARIABLE).ok()?.parse().ok()?;
    // SAFETY: init opened this descriptor for us before exec and names it in the variable; it is
    // only borrowed for the duplication. A wrong number gives EBADF.
    let channel = unsafe { BorrowedFd::borrow_raw(fd) };
    Some(channel.try_clone_to_owned().map(UnixStream::from))
}
