//! The stream to the guest, as packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use smol_protocol::net::{NotAPacket, Packets, prefix};

/// Bytes that may wait for the guest. Beyond, connections are not read, and neither is the guest.
const FULL: usize = 1 << 20;

/// Packets that wait for the guest.
#[derive(Debug, Default)]
pub struct Out {
    bytes: Vec<u8>,
    /// How many of them were sent.
    sent: usize,
    /// All that were ever put in, without prefixes.
    pub total: u64,
}

impl Out {
    /// Whether no more should be put in, but for what answers a packet of the guest.
    pub fn is_full(&self) -> bool {
        self.waiting() >= FULL
    }

    /// Whether there is much space again.
    pub fn is_low(&self) -> bool {
        self.waiting() < FULL / 2
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Appends a packet of this length, which `fill` writes. One that is too long is lost.
    pub fn push<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let Some(prefix) = prefix(length) else {
            return fill(&mut vec![0; length]);
        };
        if self.sent > FULL {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend(prefix);
        let begin = self.bytes.len();
        self.bytes.resize(begin + length, 0);
        self.total += length as u64;
        fill(&mut self.bytes[begin..])
    }

    /// What waits.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Says that so many of [`bytes`](Self::bytes) have gone.
    pub fn gone(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
    }
}

/// The stream.
#[derive(Debug)]
pub struct Link {
    stream: OwnedFd,
    packets: Packets,
    /// Whether there may be something to read: until a read says that there is nothing.
    pub readable: bool,
    writable: bool,
}

/// What became of reading or writing.
#[derive(Debug)]
pub enum Ended {
    /// The guest has closed the stream, or is gone.
    Closed,
    /// It does not speak the protocol.
    Broken(NotAPacket),
    /// The stream failed.
    Failed(io::Error),
}

impl From<Errno> for Ended {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Ended::Closed,
            errno => Ended::Failed(errno.into()),
        }
    }
}

impl Link {
    /// Of a stream socket.
    pub fn new(stream: OwnedFd) -> Self {
        Link {
            stream,
            packets: Packets::default(),
            readable: true,
            writable: true,
        }
    }

    /// The stream's descriptor, to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Says what was seen of the stream.
    pub fn seen(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Reads once, if there may be something.
    pub fn read(&mut self) -> Result<(), Ended> {
        match rustix::net::recv(&self.stream, self.packets.space(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(Ended::Closed),
            Ok((n, _)) => {
                self.packets.filled(n);
                Ok(())
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Moves the next packet that was read into `packet`; returns whether there was one.
    pub fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<bool, Ended> {
        match self.packets.next_packet().map_err(Ended::Broken)? {
            None => Ok(false),
            Some(next) => {
                packet.clear();
                packet.extend_from_slice(next);
                Ok(true)
            }
        }
    }

    /// Writes as much as the stream takes.
    pub fn write(&mut self, out: &mut Out) -> Result<(), Ended> {
        while self.writable && out.waiting() > 0 {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.stream, out.bytes(), flags) {
                Ok(n) => out.gone(n),
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// The most that can wait in [`Out`]: what fits below its limit, and a packet.
#[cfg(test)]
const MOST: usize = FULL + smol_protocol::net::PREFIX + smol_protocol::net::MTU;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_keeps_its_order_and_takes_bounded_memory() {
        let mut out = Out::default();
        let (mut next, mut sent, mut expected) = (0_u8, Vec::<u8>::new(), Vec::new());
        for round in 0..200 {
            while !out.is_full() {
                next = next.wrapping_add(1);
                let length = 1 + usize::from(next) * 200;
                out.push(length, |bytes| bytes.fill(next));
                expected.extend(prefix(length).unwrap());
                expected.resize(expected.len() + length, next);
            }
            assert!(out.waiting() <= MOST);
            assert!(out.bytes.capacity() <= 6 * FULL, "{}", out.bytes.capacity());
            let n = (round * 7919) % out.waiting();
            sent.extend(&out.bytes()[..n]);
            out.gone(n);
        }
        sent.extend(out.bytes());
        assert!(sent == expected);
    }

    #[test]
    fn a_packet_that_is_too_long_is_lost() {
        let mut out = Out::default();
        let length = smol_protocol::net::MTU + 1;
        out.push(length, |bytes| assert_eq!(bytes.len(), length));
        assert_eq!(out.waiting(), 0);
    }
}
