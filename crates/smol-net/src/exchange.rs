//! Datagrams that go out and come back: UDP, and ICMP echo through the kernel's ping sockets.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, ipproto};

use crate::core::{Core, Failure, Owner, guest, outside, socket};
use crate::packet::{Packet, Payload, Unreachable, push_datagram, push_echo, push_unreachable};

/// Exchanges at a time; the one that was silent longest makes way.
const MOST: usize = 512;
/// How long an exchange may be silent.
const IDLE: Duration = Duration::from_secs(60);
/// What of a packet the message about its fate quotes: the longest header, and ports.
const QUOTED: usize = 68;
/// Answers of one exchange that are taken at a time.
const AT_ONCE: usize = 64;

/// Between which ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The guest's port; of an echo whose it is.
    from: u16,
    /// Where to, as the guest says; port 0 is ICMP echo.
    to: SocketAddr,
}

#[derive(Debug)]
struct Exchange {
    key: Key,
    socket: OwnedFd,
    last: Instant,
    /// The beginning of the first packet.
    quoted: Vec<u8>,
}

/// All exchanges.
#[derive(Debug)]
pub struct Exchanges {
    by_key: HashMap<Key, u64>,
    all: HashMap<u64, Exchange>,
    buffer: Vec<u8>,
}

impl Default for Exchanges {
    fn default() -> Self {
        Exchanges {
            by_key: HashMap::new(),
            all: HashMap::new(),
            buffer: vec![0; 1 << 16],
        }
    }
}

impl Exchanges {
    /// Sends what is in a packet of the guest.
    pub fn send(&mut self, packet: &Packet, now: Instant, core: &mut Core) {
        let (key, message) = match packet.payload {
            Payload::Udp { from, to, data } => {
                let to = SocketAddr::new(packet.to, to);
                (Key { from, to }, data.to_vec())
            }
            Payload::Echo {
                ident,
                number,
                data,
            } => {
                let to = SocketAddr::new(packet.to, 0);
                (
                    Key { from: ident, to },
                    echo_request(packet.to, number, data),
                )
            }
            Payload::Tcp(_) => return,
        };
        let number = match self.by_key.get(&key) {
            Some(number) => *number,
            None => match self.open(key, packet, now, core) {
                Some(number) => number,
                None => return,
            },
        };
        let Some(exchange) = self.all.get_mut(&number) else {
            return;
        };
        exchange.last = now;
        // An error of an earlier datagram is reported by the next call, which does nothing else.
        for _ in 0..2 {
            match rustix::net::send(&exchange.socket, &message, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN | Errno::INTR | Errno::MSGSIZE) | Ok(_) => return,
                Err(e) => tell(e, &exchange.quoted, core),
            }
        }
    }

    /// Begins an exchange; the guest is told why, if there will be none.
    fn open(&mut self, key: Key, packet: &Packet, now: Instant, core: &mut Core) -> Option<u64> {
        let quoted = &packet.bytes[..packet.bytes.len().min(QUOTED)];
        let to = outside(key.to);
        if core.gate.reaches(to, now).is_err() {
            push_unreachable(&mut core.out, quoted, Unreachable::Prohibited);
            return None;
        }
        if self.all.len() >= MOST {
            core.gate.ledger.report.over_limit += 1;
            let oldest = self.all.iter().min_by_key(|(_, exchange)| exchange.last);
            if let Some(number) = oldest.map(|(number, _)| *number) {
                self.close(number, core);
            }
        }
        let socket = match connected(to) {
            Ok(socket) => socket,
            Err(e) => {
                tell(e, quoted, core);
                return None;
            }
        };
        let number = core.number(Owner::Exchange);
        core.poller.add(&socket, number).ok()?;
        core.timers.set(number, Some(now + IDLE));
        core.gate.ledger.report.exchanges += 1;
        self.by_key.insert(key, number);
        self.all.insert(
            number,
            Exchange {
                key,
                socket,
                last: now,
                quoted: quoted.to_vec(),
            },
        );
        Some(number)
    }

    /// Takes what has come.
    pub fn readable(&mut self, number: u64, now: Instant, core: &mut Core) {
        let Some(exchange) = self.all.get_mut(&number) else {
            return;
        };
        for _ in 0..AT_ONCE {
            let got = rustix::net::recv(&exchange.socket, &mut self.buffer[..], RecvFlags::empty());
            let data = match got {
                Ok((_, n)) => &self.buffer[..n.min(self.buffer.len())],
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(e) => {
                    tell(e, &exchange.quoted, core);
                    continue;
                }
            };
            exchange.last = now;
            let (from, to) = (exchange.key.to, guest(exchange.key.to.ip()));
            if from.port() != 0 {
                let from = (from.ip(), from.port());
                push_datagram(&mut core.out, from, (to, exchange.key.from), data);
            } else if let Some((number, data)) = echo_reply(data) {
                push_echo(
                    &mut core.out,
                    from.ip(),
                    to,
                    exchange.key.from,
                    number,
                    data,
                );
            }
        }
        // There may be more, of which nothing is told again; and others want to be heard, too.
        core.timers.set(number, Some(now + Duration::from_nanos(1)));
    }

    /// Ends an exchange that was silent for long.
    pub fn timer(&mut self, number: u64, now: Instant, core: &mut Core) {
        let Some(exchange) = self.all.get(&number) else {
            return;
        };
        if now >= exchange.last + IDLE {
            self.close(number, core);
            return;
        }
        let end = exchange.last + IDLE;
        core.timers.set(number, Some(end));
        self.readable(number, now, core);
    }

    fn close(&mut self, number: u64, core: &mut Core) {
        core.timers.forget(number);
        if let Some(exchange) = self.all.remove(&number) {
            self.by_key.remove(&exchange.key);
        }
    }
}

/// Tells the guest what became of its datagram.
fn tell(errno: Errno, quoted: &[u8], core: &mut Core) {
    match Failure::from(errno) {
        Failure::Refused => push_unreachable(&mut core.out, quoted, Unreachable::Port),
        Failure::Unreachable(why) => push_unreachable(&mut core.out, quoted, why),
        Failure::Busy => core.gate.ledger.report.over_limit += 1,
    }
}

fn connected(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let protocol = match (to.port(), to.ip()) {
        (0, IpAddr::V4(_)) => Some(ipproto::ICMP),
        (0, IpAddr::V6(_)) => Some(ipproto::ICMPV6),
        _ => None,
    };
    let socket = socket(to.ip(), SocketType::DGRAM, protocol)?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket)
}

/// Type and code of echo messages: of IPv4 (RFC 792), of IPv6 (RFC 4443).
const REQUEST: [u8; 2] = [8, 128];
const REPLIES: [u8; 2] = [0, 129];

/// The message for a ping socket, in which the kernel fills in identifier and checksum.
fn echo_request(to: IpAddr, number: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![REQUEST[usize::from(to.is_ipv6())], 0, 0, 0, 0, 0];
    message.extend(number.to_be_bytes());
    message.extend(data);
    message
}

/// Number and data of what a ping socket gives.
fn echo_reply(message: &[u8]) -> Option<(u16, &[u8])> {
    let (header, data) = message.split_first_chunk::<8>()?;
    REPLIES
        .contains(&header[0])
        .then(|| (u16::from_be_bytes([header[6], header[7]]), data))
}
