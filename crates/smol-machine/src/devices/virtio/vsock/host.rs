//! The interface of the host's side of the device; [`super::sink`] and [`super::unix`] implement
//! it.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::super::Waker;
use super::connection::Key;

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

/// A stream that the host wants to connect to a guest port.
pub struct ConnectRequest {
    /// Port in the guest.
    pub port: u32,
    /// The host's end.
    pub stream: Box<dyn Stream>,
}

/// Identifies a watched stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A connection.
    Connection(Key),
    /// The last bytes of a connection that the guest has closed.
    Remainder(u64),
}

/// Directions in which a stream is to be, or is, ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There are bytes (or the end) to receive.
    pub read: bool,
    /// There is room to send.
    pub write: bool,
}

/// A stream to watch.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whose it is.
    pub token: Token,
    /// The socket, kept open while it is watched.
    pub socket: Arc<UnixStream>,
    /// What to watch for: at least one direction.
    pub want: Ready,
}

/// The host's side of the device. Only `open` matters to one that does all its work at once.
pub trait Host: Send {
    /// The guest connects to `port` of the host; `None` refuses.
    fn open(&mut self, port: u32) -> Option<Box<dyn Stream>>;

    /// Takes the means to have the device served when something has become ready.
    fn attach(&mut self, waker: Waker) {
        let _ = waker;
    }

    /// Returns streams that are to be connected to the guest, at most `limit` of them.
    fn requests(&mut self, limit: usize) -> Vec<ConnectRequest> {
        let _ = limit;
        Vec::new()
    }

    /// Returns the watched streams that have become ready since the last call.
    fn events(&mut self) -> Vec<(Token, Ready)> {
        Vec::new()
    }

    /// Replaces the list of watched streams, and drops those that are no longer in it. After
    /// `timeout` the device is to be served even if none is ready.
    fn watch(&mut self, list: Vec<Watch>, timeout: Option<Duration>) {
        let _ = (list, timeout);
    }

    /// The list of watched streams is out of date: serve the device soon.
    fn poke(&mut self) {}
}
