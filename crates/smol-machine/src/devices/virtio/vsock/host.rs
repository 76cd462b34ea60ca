//! The interface of the host's side of the device; [`super::sink`] and [`super::unix`] implement
//! it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::super::Waker;
use super::connection::Key;
use super::stream::{Ready, Rest, Stream};

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

    /// The guest is gone: gives each stream the rest of its bytes, however late it takes them.
    fn leave(&mut self, rests: Vec<Rest>) {
        let _ = rests;
    }
}
