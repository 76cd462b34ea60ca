//! The host's end of one stream, as a connection sees it.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The host's end of one stream. No method blocks.
pub trait Stream: Send {
    /// Takes bytes from the guest: some, all, or `WouldBlock`.
    ///
    /// # Errors
    /// Any other error ends the connection.
    fn send(&mut self, data: &[u8]) -> io::Result<usize>;

    /// Gives bytes for the guest; 0 when there will be no more.
    ///
    /// # Errors
    /// `WouldBlock` if there are none now; any other error ends the connection.
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// The guest sends no more (`Write`) or reads no more (`Read`).
    fn shutdown(&mut self, how: Shutdown);

    /// The guest has accepted the connection that this stream asked for.
    ///
    /// # Errors
    /// If nobody waits for it any more.
    fn accepted(&mut self, host_port: u32) -> io::Result<()> {
        let _ = host_port;
        Ok(())
    }

    /// Whether the far end is closed for good, both ways.
    fn hung_up(&self) -> bool {
        false
    }

    /// Returns the socket to watch for readiness; `None` for a stream that is always ready.
    fn socket(&self) -> Option<&Arc<UnixStream>> {
        None
    }
}

/// Directions in which a stream is to be, or is, ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There are bytes (or the end) to receive.
    pub read: bool,
    /// There is room to send.
    pub write: bool,
}

/// What a stream has yet to take of the bytes of a guest that is gone.
pub struct Rest {
    /// The socket.
    pub socket: Arc<UnixStream>,
    /// The bytes.
    pub bytes: Vec<u8>,
}
