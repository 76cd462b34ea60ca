//! The network of a guest: a stream that carries IP packets both ways.
//!
//! smol-guest connects to [`NET_PORT`] of the host, and gives what comes and goes to a TUN interface.
//! Each packet is preceded by its length, a big-endian `u16`; it is a whole IPv4 or IPv6 packet of at
//! most [`MTU`] bytes, without a link header. A length of zero or above the MTU is an error, which ends
//! the stream: the two sides no longer agree on where a packet begins.
//!
//! There is no ARP, DHCP or router discovery: both sides know the addresses below. They are the same in
//! every machine, and mean nothing outside of it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Host port that receives the packets of a guest.
pub const NET_PORT: u32 = 1029;

/// Largest IP packet, in bytes.
pub const MTU: usize = 65520;
/// Bytes before each packet: its length.
pub const PREFIX: usize = 2;

/// The guest's IPv4 address. 192.0.0.0/29 is for the two ends of a link within one host or between a
/// host and its provider (RFC 7335), so it is nobody's address elsewhere.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// The host's end. It answers ICMP echo, and an HTTP proxy may be on its port [`PROXY_PORT`].
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// The DNS server, on UDP and TCP port 53.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 3);
/// Bits of the guest's IPv4 network.
pub const PREFIX_V4: u8 = 29;

/// The guest's IPv6 address, a unique local one (RFC 4193).
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6d6f, 0x6c00, 0, 0, 0, 0, 2);
/// The host's end, as [`GATEWAY_V4`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6d6f, 0x6c00, 0, 0, 0, 0, 1);
/// The DNS server, as [`DNS_V4`].
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6d6f, 0x6c00, 0, 0, 0, 0, 3);
/// Bits of the guest's IPv6 network.
pub const PREFIX_V6: u8 = 64;

/// TCP port of the HTTP proxy, at the gateway's addresses.
pub const PROXY_PORT: u16 = 3128;

/// What `/etc/resolv.conf` of a guest with this network says.
pub const RESOLV_CONF: &str = "nameserver 192.0.0.3\nnameserver fd53:6d6f:6c00::3\n";

/// What precedes a packet of this length; `None` if no packet has it.
pub fn prefix(length: usize) -> Option<[u8; PREFIX]> {
    if length == 0 || length > MTU {
        return None;
    }
    u16::try_from(length).ok().map(u16::to_be_bytes)
}

/// Takes packets out of a stream. It holds at most two of the largest ones, whatever the stream says.
#[derive(Debug)]
pub struct Packets {
    buffer: Box<[u8]>,
    /// What has been read, and not been taken, is in `begin..end` of the buffer.
    begin: usize,
    end: usize,
}

impl Default for Packets {
    fn default() -> Self {
        Packets {
            buffer: vec![0; 2 * (PREFIX + MTU)].into_boxed_slice(),
            begin: 0,
            end: 0,
        }
    }
}

impl Packets {
    /// Where the next bytes of the stream go. Never empty once [`next_packet`](Self::next_packet) has
    /// returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        // The rest of a packet moves to the front only when it may not fit behind.
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.buffer.len() - self.begin < PREFIX + MTU {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that so many bytes were put into [`space`](Self::space).
    ///
    /// # Panics
    /// If it does not have so many.
    pub fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.end, "more than there is");
        self.end += bytes;
    }

    /// The next packet; `None` if more of the stream must be read first.
    ///
    /// # Errors
    /// If what comes next is no packet. Nothing more can be taken then.
    pub fn next_packet(&mut self) -> Result<Option<&[u8]>, NotAPacket> {
        let rest = &self.buffer[self.begin..self.end];
        let Some((prefix_bytes, rest)) = rest.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*prefix_bytes));
        if prefix(length).is_none() {
            return Err(NotAPacket(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let begin = self.begin + PREFIX;
        self.begin = begin + length;
        Ok(Some(&self.buffer[begin..begin + length]))
    }
}

/// The stream announces a packet of a length that none has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAPacket(usize);

impl fmt::Display for NotAPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a packet of {} bytes: 1 to {MTU} are possible", self.0)
    }
}

impl std::error::Error for NotAPacket {}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(packets: &mut Packets, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let space = packets.space();
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            packets.filled(n);
            bytes = &bytes[n..];
            while let Some(packet) = packets.next_packet().unwrap() {
                found.push(packet.to_vec());
            }
        }
        found
    }

    #[test]
    fn packets_come_out_as_they_went_in_however_the_stream_is_cut() {
        let lengths = [1, MTU, 40, MTU, MTU, 2, 1500];
        let (mut stream, mut sent) = (Vec::new(), Vec::new());
        for (length, fill) in lengths.into_iter().zip(1..) {
            let packet = vec![fill; length];
            stream.extend(prefix(length).unwrap());
            stream.extend(&packet);
            sent.push(packet);
        }
        for piece in [1, 7, 65519, 65521, 70_000, stream.len()] {
            let mut packets = Packets::default();
            let pieces = stream.chunks(piece);
            let found: Vec<_> = pieces.flat_map(|piece| push(&mut packets, piece)).collect();
            assert_eq!(found, sent, "in pieces of {piece}");
        }
    }

    #[test]
    fn lengths_that_no_packet_has_are_errors() {
        assert_eq!(prefix(0), None);
        assert_eq!(prefix(MTU + 1), None);
        for bad in [[0, 0], [0xff, 0xff], [0xff, 0xf1]] {
            let mut packets = Packets::default();
            packets.space()[..2].copy_from_slice(&bad);
            packets.filled(2);
            assert!(packets.next_packet().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn resolv_conf_names_the_addresses() {
        let expected = format!("nameserver {DNS_V4}\nnameserver {DNS_V6}\n");
        assert_eq!(RESOLV_CONF, expected);
    }
}
