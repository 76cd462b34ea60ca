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
//! # How big files get in and out
//!
//! By 9p, both ways: nothing that we tried is faster, and all else is more to set up. Measured with
//! 64 MiB of random bytes, in MiB/s, on a 2-core machine under a load of 8 (trust the ratios).
//!
//! From and to a tmpfs inside, all in one run:
//!
//! | | read | write, then fsync |
//! |---|---|---|
//! | 9p, `msize=512000,cache=mmap` | 70-84 | 54-69 |
//! | virtio-blk, raw file | 50-69 | 41-52 |
//! | virtio-pmem, shared memory file | 29-42 | 31-35 |
//! | (copy inside the tmpfs) | 61-70 | |
//!
//! An emulated CPU copies slowly, so a path is as fast as it makes few copies: 9p moves data
//! between QEMU and the job's buffer, the two others also through the page cache.
//!
//! Mount options of 9p, blocks of 64 KiB and 1 MiB, no tmpfs, two runs:
//!
//! | | read | write |
//! |---|---|---|
//! | `msize=131072,cache=mmap` | 160-370 | 40-120 |
//! | `msize=512000,cache=mmap` | 50-340 | 65-140 |
//! | `msize=1048576,cache=mmap` | 100-790 | 60-190 |
//! | `msize=512000,cache=none` | 30-530 | 45-120 |
//! | `msize=512000,cache=loose` | 50-125 | 4-12 |
//!
//! So writable shares take `mmap`: ten times `loose` in writing, and files can be mapped. Each call
//! is a round trip there, about 13 MiB/s at 4 KiB: use large blocks. Read-only shares take `loose`,
//! whose page cache and read-ahead make the block size indifferent. A hole that is never written
//! stays a hole in the file; SEEK_HOLE finds none.
//!
//! # What it costs
//!
//! From [`EmulatedHost::spawn`] to the job's start: 4.3-5.2 s on two cores under a load of 4,
//! 6-8 s under a load of 8. Booting the uncompressed kernel saves 4 s of it; unsigned modules save
//! half of the time that loading them takes. The job's output goes at 20-35 MiB/s.

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
pub use qemu::EmulatedHost;
pub(crate) use qemu::{QEMU, qemu_missing};
pub use running::{Controller, Event, RunningHost};
pub use wire::JobStatus;

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
