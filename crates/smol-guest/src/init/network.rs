//! The loopback interface: the only one a smol machine needs, forwards arrive over vsock. And who may
//! listen on it.

use std::fs;
use std::io;

use rustix::net::{AddressFamily, SocketType};

use super::platform::ioctl;

/// Sets `lo` up. The kernel then gives it 127.0.0.1/8 and ::1 by itself.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data, for which all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    ioctl(&socket, libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
}

/// The first port that one may listen on without a privilege (ip-sysctl.rst of the kernel).
const FIRST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Lets every user listen on every port. There is one service, and its port is its own: ports below
/// 1024 protect the users of a machine from each other. Services that run as a user count on being
/// given the privilege by systemd, or on this, as in containers.
pub(super) fn free_ports() -> io::Result<()> {
    match fs::write(FIRST_FREE_PORT, "0") {
        // A kernel of one's own may have none of it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
