//! One stream between a guest port and a host port, with its credit (section 5.10.6.3).

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::num::Wrapping;

use super::packet::{HOST_CID, Header, STREAM};
use super::stream::{Ready, Rest, Stream};

/// Bytes that the device buffers for one connection towards the host.
pub const BUFFER: u32 = 256 << 10;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Port on the host.
    pub host: u32,
    /// Port in the guest.
    pub guest: u32,
}

/// A connection, or the attempt at one.
pub struct Connection {
    pub stream: Box<dyn Stream>,
    /// The guest has yet to accept it.
    pub requested: bool,

    /// Bytes from the guest that the stream has not taken yet: at most [`BUFFER`].
    buffer: VecDeque<u8>,
    /// Bytes that the stream has taken: our `fwd_cnt`.
    forwarded: Wrapping<u32>,
    /// The `fwd_cnt` that the guest was told last.
    told: Wrapping<u32>,
    /// The guest sends no more.
    pub guest_done: bool,

    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    peer_buffer: u32,
    peer_forwarded: Wrapping<u32>,
    /// The guest was asked for credit and has not given any since.
    pub credit_asked: bool,
    /// The guest receives no more.
    pub guest_deaf: bool,
    /// The host sends no more, and the guest was told.
    pub host_done: bool,
    /// The stream is in the queue of those that may have bytes for the guest.
    pub queued: bool,
    /// What the stream is being watched for.
    pub watched: Ready,
}

impl Connection {
    pub fn new(stream: Box<dyn Stream>, requested: bool) -> Self {
        Self {
            stream,
            requested,
            buffer: VecDeque::new(),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            guest_done: false,
            sent: Wrapping(0),
            peer_buffer: 0,
            peer_forwarded: Wrapping(0),
            credit_asked: false,
            guest_deaf: false,
            host_done: false,
            queued: false,
            watched: Ready::default(),
        }
    }

    /// Bytes that the guest can take now. A guest that claims to have received more than it was
    /// sent gets nothing more.
    pub fn credit(&self) -> u32 {
        let in_flight = (self.sent - self.peer_forwarded).0;
        self.peer_buffer.saturating_sub(in_flight)
    }

    /// Takes over the guest's side of the credit, which every packet carries.
    pub fn update_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Whether bytes of the host may go to the guest, credit aside.
    pub fn sending(&self) -> bool {
        !(self.requested || self.host_done || self.guest_deaf)
    }

    /// Returns what the stream should be watched for.
    pub fn wants(&self) -> Ready {
        Ready {
            read: self.sending() && !self.queued && self.credit() > 0,
            write: !self.buffer.is_empty(),
        }
    }

    /// Reads bytes for the guest, as many as its credit allows.
    pub fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(self.credit() as usize);
        let n = self.stream.receive(&mut buf[..most])?;
        self.sent += n as u32; // at most the credit, a u32
        Ok(n)
    }

    /// Takes bytes of the guest: into the stream as far as that goes, into the buffer beyond.
    ///
    /// # Errors
    /// If the guest sends more than it has credit for, or the stream fails.
    pub fn send(&mut self, data: &[u8]) -> io::Result<()> {
        if data.len() + self.buffer.len() > BUFFER as usize {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut rest = data;
        while self.buffer.is_empty() && !rest.is_empty() {
            match self.stream.send(rest) {
                Ok(n) => {
                    self.forwarded += n as u32; // at most BUFFER
                    rest = &rest[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.buffer.extend(rest);
        Ok(())
    }

    /// Moves what is buffered into the stream; true when nothing is left.
    ///
    /// # Errors
    /// If the stream fails.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.buffer.is_empty() {
            match self.stream.send(self.buffer.as_slices().0) {
                Ok(n) => {
                    self.forwarded += n as u32; // at most BUFFER
                    self.buffer.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.guest_done {
            self.stream.shutdown(Shutdown::Write);
        }
        Ok(true)
    }

    /// Returns what the stream has yet to take, if there is any.
    pub fn into_rest(self) -> Option<Rest> {
        let socket = self.stream.socket()?.clone();
        let bytes = Vec::from(self.buffer);
        (!bytes.is_empty()).then_some(Rest { socket, bytes })
    }

    /// Whether the guest must be given credit that it does not know of, lest it wait for ever.
    /// Half the buffer at a time: often enough to keep a stream flowing.
    pub fn owes_credit(&self) -> bool {
        (self.forwarded - self.told).0 >= BUFFER / 2
    }

    /// Returns a packet of this connection to the guest; it carries our credit.
    pub fn packet(&mut self, key: Key, guest_cid: u64, op: u16) -> Header {
        self.told = self.forwarded;
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: STREAM,
            op,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded.0,
            ..Header::default()
        }
    }
}
