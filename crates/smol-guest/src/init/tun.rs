//! The network: a TUN interface whose packets go to the host over a stream, and come from it.
//! [`smol_protocol::net`] says how they are carried, and which addresses both sides know.
//!
//! All is done by ioctls: there is no `ip` in a guest.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::zeroed;
use std::net::{Ipv4Addr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};

use super::console::say;
use super::platform::ioctl;
use smol_protocol::net::{
    GUEST_V4, GUEST_V6, MTU, NotAPacket, PREFIX, PREFIX_V4, PREFIX_V6, Packets, prefix,
};

/// The interface's name.
const NAME: &[u8] = b"tun0";
/// Packets that may wait for the host. TUN drops what comes when its queue is full: this many of the
/// largest ones are more than the windows of some hundred connections.
const QUEUE: libc::c_int = 2000;
const STACK: usize = 128 * 1024;
/// How often it is looked whether the address is there, a millisecond or more apart.
const ATTEMPTS: u32 = 10_000;

/// Makes the interface and carries its packets on threads from now on, until the stream ends.
///
/// # Errors
/// If the kernel has no TUN, or does not make or configure the interface.
pub fn start(stream: OwnedFd) -> io::Result<()> {
    // A host that does not take packets for a while holds the guest up, and breaks nothing.
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, None)?;
    let tun = Arc::new(open()?);
    configure()?;
    let stream = Arc::new(stream);
    let spawn = |name: &str, carry: fn(&File, &OwnedFd) -> io::Result<()>| {
        let (tun, stream) = (Arc::clone(&tun), Arc::clone(&stream));
        thread::Builder::new()
            .name(name.into())
            .stack_size(STACK)
            .spawn(move || {
                if let Err(e) = carry(&tun, &stream) {
                    say!("network: {e}");
                }
                // The other thread ends, too, when it next uses the stream.
                let _ = rustix::net::shutdown(&stream, rustix::net::Shutdown::Both);
            })
    };
    spawn("net-out", to_host)?;
    spawn("net-in", from_host)?;
    Ok(())
}

/// Opens a TUN interface that exists as long as the file is open.
fn open() -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let file = file.map_err(|e| io::Error::new(e.kind(), format!("/dev/net/tun: {e}")))?;
    let mut request = named();
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    ioctl(&file, libc::TUNSETIFF, &mut request)?;
    Ok(file)
}

/// A request about our interface.
fn named() -> libc::ifreq {
    // SAFETY: ifreq is plain data, for which all zero is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    request
}

/// Addresses, MTU and default routes; sets the interface up. IPv6 is left out where the kernel has none.
fn configure() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let doing = |what: &str, result: io::Result<()>| {
        result.map_err(|e| io::Error::new(e.kind(), format!("{what}: {e}")))
    };
    let set = |request: libc::c_ulong, value: libc::c_int| {
        let mut argument = named();
        argument.ifr_ifru.ifru_mtu = value;
        ioctl(&socket, request as libc::Ioctl, &mut argument)
    };
    // MTU and queue length are both the first int of the union.
    doing("mtu", set(libc::SIOCSIFMTU, MTU as libc::c_int))?;
    doing("queue", set(libc::SIOCSIFTXQLEN, QUEUE))?;

    let set = |request: libc::c_ulong, address: Ipv4Addr| {
        let mut argument = named();
        argument.ifr_ifru.ifru_addr = socket_address(address);
        ioctl(&socket, request as libc::Ioctl, &mut argument)
    };
    let mask = Ipv4Addr::from_bits(u32::MAX << (32 - PREFIX_V4));
    doing("address", set(libc::SIOCSIFADDR, GUEST_V4))?;
    doing("netmask", set(libc::SIOCSIFNETMASK, mask))?;

    let mut request = named();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let up = ioctl(&socket, libc::SIOCSIFFLAGS as libc::Ioctl, &mut request);
    doing("up", up)?;
    doing("route", route_v4(&socket))?;

    match rustix::net::socket(AddressFamily::INET6, SocketType::DGRAM, None) {
        Ok(socket) => doing("IPv6", configure_v6(&socket)),
        Err(Errno::AFNOSUPPORT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain data, for which all zero is a valid value.
    let mut socket: libc::sockaddr = unsafe { zeroed() };
    socket.sa_family = libc::AF_INET as libc::sa_family_t;
    // As in sockaddr_in: two bytes of port, then the address.
    for (to, from) in socket.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = from as libc::c_char;
    }
    socket
}

/// `struct rtentry` of linux/route.h, which the libc crate lacks for glibc.
#[repr(C)]
struct Route {
    pad1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: *mut libc::c_void,
    metric: libc::c_short,
    device: *mut libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    irtt: libc::c_ushort,
}

/// Everything goes to the interface.
fn route_v4(socket: &OwnedFd) -> io::Result<()> {
    // IFNAMSIZ bytes, of which the last stay zero.
    let mut device = named().ifr_name;
    let any = socket_address(Ipv4Addr::UNSPECIFIED);
    let mut route = Route {
        pad1: 0,
        destination: any,
        gateway: any,
        mask: any,
        flags: libc::RTF_UP,
        pad2: 0,
        pad3: 0,
        pad4: std::ptr::null_mut(),
        metric: 0,
        device: device.as_mut_ptr(),
        mtu: 0,
        window: 0,
        irtt: 0,
    };
    ioctl(socket, libc::SIOCADDRT as libc::Ioctl, &mut route)
}

/// `struct in6_rtmsg` of linux/ipv6_route.h, whose fields the libc crate keeps private.
#[repr(C)]
struct RouteV6 {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_bits: u16,
    source_bits: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    index: libc::c_int,
}

/// Address and default route. A TUN interface has no neighbours, so the kernel does not wait for
/// another owner of the address to speak up; but it finds that out on a thread of its own, and until then
/// connections would have the loopback's address, from which no answer comes back.
fn configure_v6(socket: &OwnedFd) -> io::Result<()> {
    let mut request = named();
    ioctl(socket, libc::SIOCGIFINDEX as libc::Ioctl, &mut request)?;
    // SAFETY: SIOCGIFINDEX has just filled in this member of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    let mut address = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr {
            s6_addr: GUEST_V6.octets(),
        },
        ifr6_prefixlen: u32::from(PREFIX_V6),
        ifr6_ifindex: index,
    };
    ioctl(socket, libc::SIOCSIFADDR as libc::Ioctl, &mut address)?;
    // All zero is a route to everywhere.
    let mut route = RouteV6 {
        destination: [0; 16],
        source: [0; 16],
        gateway: [0; 16],
        kind: 0,
        destination_bits: 0,
        source_bits: 0,
        metric: 1,
        info: 0,
        flags: u32::from(libc::RTF_UP),
        index,
    };
    ioctl(socket, libc::SIOCADDRT as libc::Ioctl, &mut route)?;
    let own = SocketAddrV6::new(GUEST_V6, 0, 0, 0);
    for _ in 0..ATTEMPTS {
        // It can be bound to once it is the interface's.
        match rustix::net::bind(socket, &own) {
            Err(Errno::ADDRNOTAVAIL) => thread::sleep(Duration::from_millis(1)),
            done => return Ok(done?),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "the address is not assigned",
    ))
}

/// Carries what the guest sends, until the stream ends.
fn to_host(tun: &File, stream: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; PREFIX + MTU];
    loop {
        let (before, packet) = buffer.split_at_mut(PREFIX);
        let length = match rustix::io::read(tun, &mut *packet) {
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let Some(prefix) = prefix(length) else {
            continue;
        };
        before.copy_from_slice(&prefix);
        match send_all(stream, &buffer[..PREFIX + length]) {
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Ok(()),
            sent => sent?,
        }
    }
}

fn send_all(stream: impl AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(&stream, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Carries what the host sends, until the stream ends.
fn from_host(mut tun: &File, stream: &OwnedFd) -> io::Result<()> {
    let mut packets = Packets::default();
    loop {
        match rustix::io::read(stream, packets.space()) {
            Ok(0) | Err(Errno::CONNRESET | Errno::NOTCONN) => return Ok(()),
            Ok(n) => packets.filled(n),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        while let Some(packet) = packets.next_packet().map_err(broken)? {
            // What the kernel does not take is lost, as on any network.
            let _ = tun.write(packet);
        }
    }
}

fn broken(why: NotAPacket) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
