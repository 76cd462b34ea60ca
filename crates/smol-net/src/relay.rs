//! Bytes between the guest's end of a connection and a socket of the host.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, sockopt};

use crate::conn::Conn;
use crate::core::socket;
use crate::link::Out;

/// A socket that is connected, or that is being connected.
#[derive(Debug)]
pub struct Remote {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// Whether the other side has been told that no more comes.
    shut: bool,
    /// Whether it has said so.
    ended: bool,
}

/// Begins a connection.
pub fn connect(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket(to.ip(), SocketType::STREAM, None)?;
    // The guest's kernel has waited for small pieces to become larger already.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// What became of a connection that was begun, once it can be written to.
pub fn connected(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::socket_error(socket)?
}

impl Remote {
    /// Of a socket that has been connected.
    pub fn new(socket: OwnedFd) -> Self {
        Remote {
            socket,
            readable: true,
            writable: true,
            shut: false,
            ended: false,
        }
    }

    /// Says what was seen of the socket.
    pub fn seen(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Whether the other side has sent everything.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Sends some of the bytes; returns how many, none if the socket takes none now.
    pub fn send(&mut self, bytes: &[u8]) -> rustix::io::Result<usize> {
        while self.writable {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                sent => return sent,
            }
        }
        Ok(0)
    }

    /// Receives some bytes; returns how many, none if there are none now, or none any more.
    pub fn receive(&mut self, space: &mut [u8]) -> rustix::io::Result<usize> {
        while self.readable && !self.ended && !space.is_empty() {
            match rustix::net::recv(&self.socket, &mut *space, RecvFlags::empty()) {
                Ok((0, _)) => self.ended = true,
                Ok((n, _)) => return Ok(n),
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(0)
    }

    /// Says that no more will be sent.
    pub fn shut(&mut self) {
        if !self.shut {
            self.shut = true;
            // A side that has gone already cannot be told.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        }
    }

    /// Breaks the connection off instead of ending it, when it is dropped.
    pub fn break_off(&self) {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}

/// Carries what the guest has sent, and its end.
pub fn to_remote(conn: &mut Conn, remote: &mut Remote) -> rustix::io::Result<()> {
    conn.receive(|bytes| remote.send(bytes))?;
    if conn.is_at_end() {
        remote.shut();
    }
    Ok(())
}

/// Carries what the other side has sent, and its end.
pub fn to_guest(conn: &mut Conn, remote: &mut Remote) -> rustix::io::Result<()> {
    while conn.space() > 0 && !remote.ended {
        match conn.give(|space| remote.receive(space))? {
            None | Some(0) => break,
            Some(_) => {}
        }
    }
    if remote.ended {
        conn.finish();
    }
    Ok(())
}

/// Carries both ways, and ends what has to be ended. Returns whether the connection goes on.
pub fn both(conn: &mut Conn, remote: &mut Remote, now: Instant, out: &mut Out) -> bool {
    let carried = to_remote(conn, remote).and_then(|()| to_guest(conn, remote));
    if carried.is_err() {
        conn.reset();
    }
    conn.send_on(now, out);
    if !conn.is_over() {
        return true;
    }
    if !conn.is_whole() {
        remote.break_off();
    }
    false
}
