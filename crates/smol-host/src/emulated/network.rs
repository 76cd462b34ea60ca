//! Sets up `lo` and `eth0` of the emulated host with the addresses of QEMU's user network.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use super::qemu::{GATEWAY, GUEST_ADDRESS};

const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Sets up the loopback: a job may be its own client.
pub(super) fn bring_up_loopback() -> io::Result<()> {
    set_flags_up(socket()?.as_raw_fd(), b"lo")
}

/// Sets up eth0 with its static address and a default route.
pub(super) fn bring_up_eth0() -> io::Result<()> {
    let socket = socket()?;
    let fd = socket.as_raw_fd();
    set_address(fd, b"eth0", libc::SIOCSIFADDR, GUEST_ADDRESS)?;
    set_address(fd, b"eth0", libc::SIOCSIFNETMASK, NETMASK)?;
    set_flags_up(fd, b"eth0")?;
    add_default_route(fd)
}

/// Opens a socket: any IPv4 one serves for these ioctls (netdevice(7)).
fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn request(name: &[u8]) -> libc::ifreq {
    // SAFETY: ifreq is plain C data (integers, arrays, a union of such): all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, &from) in request.ifr_name.iter_mut().zip(name) {
        *to = from as libc::c_char;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain C data: all zeros is a value of it.
    let mut result: libc::sockaddr = unsafe { std::mem::zeroed() };
    result.sa_family = libc::AF_INET as libc::sa_family_t;
    // sockaddr_in: two bytes of port, then the address in network order.
    for (to, from) in result.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    result
}

fn set_flags_up(fd: RawFd, name: &[u8]) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is and outlives the call.
    check(unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &request) })
}

fn set_address(fd: RawFd, name: &[u8], which: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: SIOCSIFADDR and SIOCSIFNETMASK read an ifreq, which `request` is and outlives the call.
    check(unsafe { libc::ioctl(fd, which, &request) })
}

fn add_default_route(fd: RawFd) -> io::Result<()> {
    // SAFETY: rtentry is plain C data and its pointers may be null: all zeros is a value of it.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(GATEWAY);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads an rtentry, which `route` is and outlives the call.
    check(unsafe { libc::ioctl(fd, libc::SIOCADDRT, &route) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
