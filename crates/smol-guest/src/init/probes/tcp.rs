//! Is there someone who accepts a connection?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::super::supervisor::{Interrupt, Supervisor};

/// Connects to a port of the loopback, over IPv4 or else over IPv6. The socket does not block.
pub(super) fn connect(
    port: u16,
    sup: &mut Supervisor,
    deadline: Instant,
) -> Result<Result<OwnedFd, String>, Interrupt> {
    let four = connect_to(IpAddr::V4(Ipv4Addr::LOCALHOST), port, sup, deadline)?;
    let Err(saw) = four else { return Ok(four) };
    // A service that listens on IPv6 alone is rare: what IPv4 saw is what is told.
    Ok(connect_to(IpAddr::V6(Ipv6Addr::LOCALHOST), port, sup, deadline)?.map_err(|_| saw))
}

fn connect_to(
    to: IpAddr,
    port: u16,
    sup: &mut Supervisor,
    deadline: Instant,
) -> Result<Result<OwnedFd, String>, Interrupt> {
    let socket = match begin(SocketAddr::new(to, port)) {
        Ok(socket) => socket,
        Err(e) => return Ok(Err(describe(e))),
    };
    if !sup.wait(socket.as_fd(), PollFlags::OUT, deadline)? {
        return Ok(Err("no answer to the connection in time".to_owned()));
    }
    Ok(match rustix::net::sockopt::socket_error(&socket) {
        Ok(Ok(())) => Ok(socket),
        Ok(Err(e)) | Err(e) => Err(describe(e)),
    })
}

fn begin(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

fn describe(error: Errno) -> String {
    match error {
        Errno::CONNREFUSED => "connection refused".to_owned(),
        other => io::Error::from(other).to_string(),
    }
}
