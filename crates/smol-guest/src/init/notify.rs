//! The socket behind `$NOTIFY_SOCKET` (sd_notify(3)): newline-separated assignments in datagrams.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Where the service finds it.
pub(super) const NOTIFY_PATH: &str = "/run/smol/notify";

/// Hears what the service says of itself.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    ready: bool,
    status: Option<String>,
}

impl NotifySocket {
    /// Makes the socket, for every user to write to.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Ok(NotifySocket {
            socket,
            ready: false,
            status: None,
        })
    }

    /// Reads what has arrived.
    pub(super) fn receive(&mut self) {
        let mut datagram = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut datagram) {
            for line in String::from_utf8_lossy(&datagram[..n]).lines() {
                self.ready |= line == "READY=1";
                if let Some(status) = line.strip_prefix("STATUS=") {
                    self.status = Some(status.to_owned());
                }
            }
        }
    }

    /// Whether the service said that it is ready.
    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// What it said instead.
    pub(super) fn saw(&self) -> String {
        self.status.as_ref().map_or_else(
            || "no READY=1".to_owned(),
            |status| format!("no READY=1; status: {status}"),
        )
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
