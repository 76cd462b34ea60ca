//! userfaultfd(2): mappings whose pages are absent until this process loads them.
//!
//! Numbers and structures: include/uapi/linux/userfaultfd.h of the Linux kernel.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::memory::PAGE;

const API: u64 = 0xaa;
const IOC_NEW: libc::c_ulong = 0xaa00;
const IOC_API: libc::c_ulong = 0xc018_aa3f;
const IOC_REGISTER: libc::c_ulong = 0xc020_aa00;
const IOC_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const IOC_COPY: libc::c_ulong = 0xc028_aa03;
const IOC_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const IOC_MOVE: libc::c_ulong = 0xc028_aa05;
const FEATURE_MOVE: u64 = 1 << 16;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE: usize = 32;
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;
const USER_MODE_ONLY: libc::c_int = 1;

/// A descriptor that reports page faults of this process.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    moves: bool,
}

impl Uffd {
    /// Opens one that also handles faults of the kernel on our behalf, such as KVM's.
    ///
    /// # Errors
    /// Where that is not permitted: without CAP_SYS_PTRACE, access to /dev/userfaultfd, or the
    /// sysctl `vm.unprivileged_userfaultfd`.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the system call takes flags and gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        let fd = match RawFd::try_from(fd) {
            Ok(fd) if fd >= 0 => fd,
            _ => {
                let device = File::open("/dev/userfaultfd")?;
                // SAFETY: takes flags and gives a new descriptor or an error.
                check(unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, FLAGS) })?
            }
        };
        Self::handshake(fd)
    }

    /// Opens one that needs no privileges, since Linux 5.11: only accesses from user space wait.
    /// Those of the kernel fail with "bad address" (EFAULT), KVM's on behalf of a vCPU as well.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn in_user_mode() -> io::Result<Self> {
        // SAFETY: the system call takes flags and gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS | USER_MODE_ONLY) };
        match RawFd::try_from(fd) {
            Ok(fd) if fd >= 0 => Self::handshake(fd),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the new descriptor, and tells the kernel the version of the interface.
    fn handshake(fd: RawFd) -> io::Result<Self> {
        // SAFETY: it is new and nobody else's.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = [API, 0, 0]; // struct uffdio_api: api, features, ioctls
        // SAFETY: the kernel reads and writes the three words.
        check(unsafe { libc::ioctl(fd, IOC_API, api.as_mut_ptr()) })?;
        Ok(Self {
            fd: owned,
            moves: api[1] & FEATURE_MOVE != 0,
        })
    }

    /// Whether [`Uffd::take`] works: since Linux 6.8.
    pub(crate) fn moves(&self) -> bool {
        self.moves
    }

    /// Has accesses to absent pages of the mapping wait until they are loaded.
    ///
    /// # Safety
    /// `start..start + len` must be a private anonymous mapping of this process. An access
    /// waits for [`Uffd::copy`] or [`Uffd::zero`], so some thread must call them.
    pub(crate) unsafe fn register(&self, start: *mut u8, len: usize) -> io::Result<()> {
        let mut register = [start as u64, len as u64, MODE_MISSING, 0];
        // SAFETY: the kernel reads and writes the four words of struct uffdio_register.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_REGISTER, register.as_mut_ptr()) })
            .map(drop)
    }

    /// Makes absent pages pages of zeros, as of any mapping.
    ///
    /// # Safety
    /// `start..start + len` must lie in one registered mapping, and zeros must be what belongs
    /// there.
    pub(crate) unsafe fn release(&self, start: *mut u8, len: usize) -> io::Result<()> {
        let mut range = [start as u64, len as u64]; // struct uffdio_range
        // SAFETY: the kernel reads the two words.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_UNREGISTER, range.as_mut_ptr()) })
            .map(drop)
    }

    /// Returns the address of the next fault; `None` if there is none now.
    pub(crate) fn next(&self) -> io::Result<Option<usize>> {
        let mut message = [0u8; MESSAGE];
        match rustix::io::read(&self.fd, &mut message) {
            Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {
                // struct uffd_msg: event and padding, 8 bytes; flags, address.
                let address = message[16..24].try_into().expect("8 bytes");
                Ok(Some(u64::from_ne_bytes(address) as usize))
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Loads absent pages, and wakes the threads that wait for them. Pages that are present already
    /// stay as they are.
    ///
    /// # Safety
    /// `start` and the whole of `bytes` after it must lie in one registered mapping.
    pub(crate) unsafe fn copy(&self, start: *mut u8, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes.len(), |at, len| {
            // struct uffdio_copy: dst, src, len, mode, copy.
            let src = bytes[at..].as_ptr() as u64;
            let mut copy = [start as u64 + at as u64, src, len as u64, 0, 0];
            // SAFETY: the kernel reads `len` bytes of the slice and writes to pages of the
            // registered mapping that nothing can refer to yet, for they are absent.
            let done =
                check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_COPY, copy.as_mut_ptr()) });
            (done, copy[4].cast_signed())
        })
    }

    /// Loads absent pages by moving them out of another mapping, huge ones as a whole, and wakes
    /// the threads that wait for them.
    ///
    /// # Safety
    /// `to..to + len` must lie in one registered mapping, `from..from + len` in a private
    /// anonymous one whose contents nobody refers to.
    pub(crate) unsafe fn take(&self, to: *mut u8, from: *mut u8, len: usize) -> io::Result<()> {
        self.put(len, |at, len| {
            // struct uffdio_move: dst, src, len, mode, move.
            let (to, from) = (to as u64 + at as u64, from as u64 + at as u64);
            let mut request = [to, from, len as u64, 0, 0];
            // SAFETY: the caller says that both ranges are mapped and that nobody reads the second.
            let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_MOVE, request.as_mut_ptr()) };
            (check(done), request[4].cast_signed())
        })
    }

    /// As [`Uffd::copy`], with pages of zeros.
    ///
    /// # Safety
    /// `start..start + len` must lie in one registered mapping.
    pub(crate) unsafe fn zero(&self, start: *mut u8, len: usize) -> io::Result<()> {
        self.put(len, |at, len| {
            // struct uffdio_zeropage: start, len, mode, zeropage.
            let mut zero = [start as u64 + at as u64, len as u64, 0, 0];
            // SAFETY: as for `copy`.
            let done =
                check(unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_ZEROPAGE, zero.as_mut_ptr()) });
            (done, zero[3].cast_signed())
        })
    }

    /// Calls `part` with offset and length of what is left, until nothing is. It returns the
    /// call's result and how many bytes it has done.
    fn put(
        &self,
        len: usize,
        mut part: impl FnMut(usize, usize) -> (io::Result<i32>, i64),
    ) -> io::Result<()> {
        debug_assert!(len.is_multiple_of(PAGE));
        let mut at = 0;
        while at < len {
            let (outcome, done) = part(at, len - at);
            at += usize::try_from(done).unwrap_or(0);
            match outcome {
                Ok(_) => {}
                // The next page is present already.
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => at += PAGE,
                // The address space is being changed.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<i32> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}
