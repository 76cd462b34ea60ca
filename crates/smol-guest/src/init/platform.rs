//! The few things an init does that would hurt a machine that is not a guest. Tests run the
//! very same init in a PID namespace with a platform of their own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::time::{ClockId, Timespec};

use smol_protocol::HOST_CID;

/// What the init stands on.
#[derive(Debug, Clone)]
pub struct Platform {
    /// The way to the host.
    pub host: HostLink,
    /// Device that shows the init's own messages.
    pub console: PathBuf,
    /// Device whose write asks our kernel for the snapshot.
    pub snapshot_device: PathBuf,
    /// Sets the wall clock, given the time since the Unix epoch.
    pub set_clock: fn(Duration) -> io::Result<()>,
}

impl Platform {
    /// A real guest.
    pub fn guest() -> Self {
        Platform {
            host: HostLink::Vsock,
            console: "/dev/console".into(),
            snapshot_device: "/dev/smol".into(),
            set_clock,
        }
    }

    /// Opens the snapshot device; `None` where the kernel has none.
    pub(super) fn open_snapshot_device(&self) -> io::Result<Option<File>> {
        match OpenOptions::new().write(true).open(&self.snapshot_device) {
            Ok(device) => Ok(Some(device)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn set_clock(since_epoch: Duration) -> io::Result<()> {
    let time = Timespec::try_from(since_epoch).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

/// How streams to and from the host are made.
#[derive(Debug, Clone)]
pub enum HostLink {
    /// AF_VSOCK, with the host at its well-known context id.
    Vsock,
    /// Abstract Unix sockets named `<prefix>-<port>`: tests.
    Local(String),
}

impl HostLink {
    /// Connects to a port of the host. The stream lingers at its close: close(2) returns when
    /// the host has seen everything, or after some seconds, so that no half-closed connection
    /// is left in a snapshot.
    pub fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = self.socket(SocketFlags::CLOEXEC)?;
        sockopt::set_socket_linger(&socket, Some(Duration::from_secs(5)))?;
        sockopt::set_socket_timeout(
            &socket,
            sockopt::Timeout::Send,
            Some(Duration::from_secs(10)),
        )?;
        match self {
            HostLink::Vsock => rustix::net::connect(&socket, &Vsock::new(HOST_CID, port))?,
            HostLink::Local(prefix) => rustix::net::connect(&socket, &local(prefix, port)?)?,
        }
        Ok(socket)
    }

    /// Listens on a port of the guest.
    pub fn listen(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = self.socket(SocketFlags::CLOEXEC)?;
        match self {
            HostLink::Vsock => rustix::net::bind(&socket, &Vsock::new(libc::VMADDR_CID_ANY, port))?,
            HostLink::Local(prefix) => rustix::net::bind(&socket, &local(prefix, port)?)?,
        }
        rustix::net::listen(&socket, 128)?;
        Ok(socket)
    }

    fn socket(&self, flags: SocketFlags) -> io::Result<OwnedFd> {
        let family = match self {
            HostLink::Vsock => AddressFamily::VSOCK,
            HostLink::Local(_) => AddressFamily::UNIX,
        };
        Ok(rustix::net::socket_with(
            family,
            SocketType::STREAM,
            flags,
            None,
        )?)
    }
}

fn local(prefix: &str, port: u32) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(
        format!("{prefix}-{port}").as_bytes(),
    )?)
}

/// An AF_VSOCK address; rustix knows the family but not its addresses.
struct Vsock(libc::sockaddr_vm);

impl Vsock {
    fn new(cid: u32, port: u32) -> Self {
        Vsock(libc::sockaddr_vm {
            // AF_VSOCK is 40: the cast is exact.
            svm_family: libc::AF_VSOCK as libc::sa_family_t,
            svm_reserved1: 0,
            svm_port: port,
            svm_cid: cid,
            svm_zero: [0; 4],
        })
    }
}

// SAFETY: the closure gets a pointer to a whole sockaddr_vm that outlives the call, and its size.
unsafe impl SocketAddrArg for Vsock {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        // sockaddr_vm is 16 bytes: the cast is exact.
        f(
            (&raw const self.0).cast(),
            size_of::<libc::sockaddr_vm>() as SocketAddrLen,
        )
    }
}

/// An ioctl whose argument is a plain structure or nothing.
pub(super) fn ioctl<T>(fd: impl AsFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller pairs a request with the structure the kernel documents for it, and
    // the reference stays valid during the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut *argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
