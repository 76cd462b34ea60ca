//! The few things an init does that would hurt a machine that is not a guest. Tests run the
//! very same init in a PID namespace with a platform of their own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::time::{ClockId, Timespec};

use smol_protocol::{FORWARD_PORT, HOST_CID, REQUEST_PORT};

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
    fn listen(&self, port: u32) -> io::Result<HostListener> {
        let socket = self.socket(SocketFlags::CLOEXEC)?;
        match self {
            HostLink::Vsock => rustix::net::bind(&socket, &Vsock::new(libc::VMADDR_CID_ANY, port))?,
            HostLink::Local(prefix) => rustix::net::bind(&socket, &local(prefix, port)?)?,
        }
        rustix::net::listen(&socket, 128)?;
        let peer = matches!(self, HostLink::Vsock).then_some(HOST_CID);
        Ok(HostListener { socket, peer })
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

/// The ports that the host connects to.
pub(super) struct HostPorts {
    /// [`REQUEST_PORT`].
    pub(super) requests: HostListener,
    /// [`FORWARD_PORT`].
    pub(super) forward: HostListener,
}

impl HostPorts {
    /// Takes the ports, before anything runs in the guest that could take them first. They stay taken
    /// in a snapshot.
    pub(super) fn take(link: &HostLink) -> io::Result<Self> {
        Ok(Self {
            requests: link.listen(REQUEST_PORT)?,
            forward: link.listen(FORWARD_PORT)?,
        })
    }
}

/// A listening socket that serves the host alone: where the kernel has vsock within the guest, too,
/// any process could connect.
pub(super) struct HostListener {
    socket: OwnedFd,
    /// Context id of those who are served; `None` serves everybody.
    peer: Option<u32>,
}

impl HostListener {
    /// Takes the next connection; `None` if it was somebody else's, which is closed.
    pub(super) fn accept(&self, flags: SocketFlags) -> rustix::io::Result<Option<OwnedFd>> {
        let (socket, address) = rustix::net::acceptfrom_with(&self.socket, flags)?;
        let is_host = match self.peer {
            Some(peer) => address.as_ref().and_then(context_id) == Some(peer),
            None => true,
        };
        Ok(is_host.then_some(socket))
    }
}

impl AsFd for HostListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns the context id of an AF_VSOCK address.
fn context_id(address: &SocketAddrAny) -> Option<u32> {
    let whole = address.addr_len() as usize >= size_of::<libc::sockaddr_vm>();
    if address.address_family() != AddressFamily::VSOCK || !whole {
        return None;
    }
    // SAFETY: the address has that many initialized bytes, and any bytes are a sockaddr_vm.
    let address = unsafe {
        address
            .as_ptr()
            .cast::<libc::sockaddr_vm>()
            .read_unaligned()
    };
    Some(address.svm_cid)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_the_hosts_by_its_context_id_alone() {
        // SAFETY: the pointer is to a whole address of that length.
        let any = |address: &dyn Fn() -> Vsock| unsafe {
            address().with_sockaddr(|address, len| SocketAddrAny::read(address.cast(), len))
        };
        let host = any(&|| Vsock::new(HOST_CID, 1 << 30));
        assert_eq!(context_id(&host), Some(HOST_CID));
        for inside in [libc::VMADDR_CID_LOCAL, smol_protocol::GUEST_CID] {
            let address = any(&|| Vsock::new(inside, 1 << 30));
            assert_ne!(context_id(&address), Some(HOST_CID));
        }
        assert_eq!(context_id(&local("x", 1).unwrap().as_any()), None);
    }

    #[test]
    fn somebody_elses_connection_is_closed() {
        let link = HostLink::Local(format!("smol-test-{}", std::process::id()));
        let mut listener = link.listen(1).unwrap();
        let connection = link.connect(1).unwrap();
        listener.peer = Some(HOST_CID);
        let accepted = listener.accept(SocketFlags::CLOEXEC).unwrap();
        assert!(accepted.is_none());
        assert_eq!(rustix::io::read(&connection, &mut [0]), Ok(0));
        listener.peer = None;
        let _connection = link.connect(1).unwrap();
        assert!(listener.accept(SocketFlags::CLOEXEC).unwrap().is_some());
    }
}
