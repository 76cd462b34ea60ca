//! Requests from the host: small, answered at once, on connections of its choosing. Only a
//! restored or cold-booted guest listens.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::net::SocketFlags;

use super::platform::HostListener;
use smol_protocol::{LineBuffer, Reply, Request, decode_line, encode_line};

/// Connections at a time; the oldest makes room for a new one.
const MOST_CONNECTIONS: usize = 16;

/// The listening socket and its open connections.
pub(super) struct Requests {
    listener: HostListener,
    connections: Vec<Connection>,
}

struct Connection {
    socket: OwnedFd,
    lines: LineBuffer,
}

impl Requests {
    /// Serves this port from now on.
    pub(super) fn of(listener: HostListener) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(Requests {
            listener,
            connections: Vec::new(),
        })
    }

    /// What to poll for.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let sockets = self.connections.iter().map(|connection| &connection.socket);
        std::iter::once(self.listener.as_fd())
            .chain(sockets.map(OwnedFd::as_fd))
            .map(|fd| (fd, PollFlags::IN))
    }

    /// Answers whatever has arrived; the grace time if a stop was asked for.
    pub(super) fn handle(&mut self) -> Option<Duration> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = self.listener.accept(flags) {
            let Some(socket) = socket else { continue };
            if self.connections.len() == MOST_CONNECTIONS {
                self.connections.remove(0);
            }
            self.connections.push(Connection {
                socket,
                lines: LineBuffer::default(),
            });
        }
        let mut stop = None;
        self.connections
            .retain_mut(|connection| connection.serve(&mut stop).is_some());
        stop
    }
}

impl Connection {
    /// Answers what has arrived; `None` when the connection is over.
    fn serve(&mut self, stop: &mut Option<Duration>) -> Option<()> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.socket, &mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.lines.push(&buffer[..n]),
                Err(rustix::io::Errno::AGAIN) => return Some(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return None,
            }
            loop {
                let request = match self.lines.next_line() {
                    Ok(Some(line)) => decode_line::<Request>(&line),
                    Ok(None) => break,
                    Err(e) => Err(e),
                };
                let reply = match &request {
                    Ok(Request::Ping) => Reply::Pong,
                    Ok(Request::Shutdown { grace_ms }) => {
                        *stop = Some(Duration::from_millis(*grace_ms));
                        Reply::Ok
                    }
                    Err(e) => Reply::Error {
                        reason: e.to_string(),
                    },
                };
                let line = encode_line(&reply).ok()?;
                // A host that does not read its replies is not waited for.
                let sent = rustix::io::write(&self.socket, &line).ok()?;
                if request.is_err() || sent < line.len() {
                    return None;
                }
            }
        }
    }
}
