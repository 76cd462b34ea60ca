//! The guest's end of one TCP connection: smoltcp, as the host that the guest speaks to.
//!
//! Each connection has an interface of its own with the address that the guest connects to. So a segment
//! costs the same however many connections there are, and no connection sees another's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use smol_protocol::net::MTU;

use crate::link::Out;

/// Bytes each way of a connection while there are few, and while there are many.
const LARGE: usize = 512 * 1024;
const SMALL: usize = 64 * 1024;
/// How long the guest is answered after both sides have sent everything. Nothing is lost on the way to
/// it, so this is only for packets that were on their way; less than smoltcp's TIME-WAIT.
const PARTING: Duration = Duration::from_secs(5);
/// Connections that get large buffers.
const FEW: usize = 64;

/// Time, as smoltcp counts it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begin: Instant,
}

impl Clock {
    /// One that begins now.
    pub fn new(begin: Instant) -> Self {
        Clock { begin }
    }

    fn to_smoltcp(self, now: Instant) -> smoltcp::time::Instant {
        let since = now.saturating_duration_since(self.begin);
        // From one on: zero means "at once" to smoltcp.
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX - 1);
        smoltcp::time::Instant::from_micros(micros.saturating_add(1))
    }

    fn to_std(self, then: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(then.total_micros()).unwrap_or_default();
        self.begin + Duration::from_micros(micros)
    }
}

/// The guest's end of one TCP connection.
pub struct Conn {
    clock: Clock,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Whether we have said that we have sent everything.
    finished: bool,
    /// Whether the guest has.
    ended: bool,
    /// Since when both have.
    parted: Option<Instant>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({})", self.state())
    }
}

impl Conn {
    /// Accepts the connection that this segment begins, which went to `to`; `others` are open already.
    /// `None` if smoltcp takes it for no beginning.
    pub fn accept(
        syn: &[u8],
        to: SocketAddr,
        others: usize,
        clock: Clock,
        now: Instant,
        out: &mut Out,
    ) -> Option<Self> {
        let size = if others < FEW { LARGE } else { SMALL };
        let buffer = || SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(), buffer());
        // The guest's programs and the host's kernel have waited for small pieces already.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let endpoint = IpListenEndpoint {
            addr: Some(to.ip().into()),
            port: to.port(),
        };
        socket.listen(endpoint).ok()?;

        let mut config = Config::new(HardwareAddress::Ip);
        // Initial sequence numbers: only the guest sees them.
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).ok()?;
        config.random_seed = u64::from_ne_bytes(seed);
        let now_there = clock.to_smoltcp(now);
        let mut interface = Interface::new(config, &mut Tube { packet: None, out }, now_there);
        interface.update_ip_addrs(|addresses| {
            let bits = if to.is_ipv4() { 32 } else { 128 };
            // The first of a list that has space for more.
            let _ = addresses.push(IpCidr::new(to.ip().into(), bits));
        });
        // The way back: there is one link, so which gateway does not matter.
        match to.ip() {
            std::net::IpAddr::V4(own) => interface.routes_mut().add_default_ipv4_route(own).ok()?,
            std::net::IpAddr::V6(own) => interface.routes_mut().add_default_ipv6_route(own).ok()?,
        };
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let mut conn = Conn {
            clock,
            interface,
            sockets,
            handle,
            finished: false,
            ended: false,
            parted: None,
        };
        conn.take(syn, now, out);
        (conn.state() == State::SynReceived).then_some(conn)
    }

    /// Takes a segment from the guest.
    pub fn take(&mut self, packet: &[u8], now: Instant, out: &mut Out) {
        let then = self.clock.to_smoltcp(now);
        let mut tube = Tube {
            packet: Some(packet),
            out,
        };
        self.interface
            .poll_ingress_single(then, &mut tube, &mut self.sockets);
        let state = self.state();
        self.ended |= matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if state == State::TimeWait {
            self.parted.get_or_insert(now);
        }
    }

    /// Sends what there is to send, as far as there is space for it.
    pub fn send_on(&mut self, now: Instant, out: &mut Out) {
        // At the end of TIME-WAIT smoltcp forgets also what was not received yet.
        if self.parted.is_some_and(|then| now > then + PARTING) {
            return;
        }
        let now = self.clock.to_smoltcp(now);
        let mut tube = Tube { packet: None, out };
        self.interface.poll(now, &mut tube, &mut self.sockets);
    }

    /// When [`send_on`](Self::send_on) should be called next; that time may have come already.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.parted.is_some() {
            return None;
        }
        let now = self.clock.to_smoltcp(now);
        let then = self.interface.poll_at(now, &self.sockets)?;
        Some(self.clock.to_std(then))
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Its state, as of RFC 793.
    pub fn state(&self) -> State {
        self.sockets.get::<Socket>(self.handle).state()
    }

    /// Whether it is over: nothing more is sent or received.
    pub fn is_over(&self) -> bool {
        let taken = self.sockets.get::<Socket>(self.handle).recv_queue() == 0;
        match self.state() {
            State::Closed => taken || !(self.finished && self.ended),
            State::TimeWait => taken,
            _ => false,
        }
    }

    /// Whether it was ended by both sides, and not broken off.
    pub fn is_whole(&self) -> bool {
        self.finished && self.ended
    }

    /// Whether the guest has sent everything, and it was all taken with [`receive`](Self::receive).
    pub fn is_at_end(&self) -> bool {
        self.ended && self.sockets.get::<Socket>(self.handle).recv_queue() == 0
    }

    /// Gives bytes of the guest to `take`, which says how many it has taken, as long as there are some
    /// and it takes all. Returns what it returned last.
    pub fn receive<E>(&mut self, mut take: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        let socket = self.socket();
        while socket.can_recv() {
            let mut failed = None;
            let mut all = false;
            let got = socket.recv(|bytes| match take(bytes) {
                Ok(n) => {
                    all = n == bytes.len();
                    (n.min(bytes.len()), ())
                }
                Err(e) => {
                    failed = Some(e);
                    (0, ())
                }
            });
            if let Some(e) = failed {
                return Err(e);
            }
            if got.is_err() || !all {
                break;
            }
        }
        Ok(())
    }

    /// Bytes that can be [`give`](Self::give)n to the guest now.
    pub fn space(&mut self) -> usize {
        let socket = self.socket();
        if !socket.may_send() {
            return 0;
        }
        socket.send_capacity() - socket.send_queue()
    }

    /// Lets `fill` write bytes for the guest; it returns how many.
    pub fn give<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Option<usize>, E> {
        let mut result = Ok(None);
        // It is the state that forbids it, which `space` has said.
        let _ = self.socket().send(|space| match fill(space) {
            Ok(n) => {
                result = Ok(Some(n));
                (n.min(space.len()), ())
            }
            Err(e) => {
                result = Err(e);
                (0, ())
            }
        });
        result
    }

    /// Gives as much of these bytes as there is space for, and takes that much out of them.
    pub fn give_some_of(&mut self, bytes: &mut Vec<u8>) {
        while !bytes.is_empty() && self.space() > 0 {
            let given = self.give(|space| -> Result<usize, ()> {
                let n = space.len().min(bytes.len());
                space[..n].copy_from_slice(&bytes[..n]);
                Ok(n)
            });
            match given {
                Ok(Some(n)) if n > 0 => drop(bytes.drain(..n)),
                _ => return,
            }
        }
    }

    /// Moves what the guest has sent behind these bytes, of which there shall be no more than so many.
    pub fn take_into(&mut self, bytes: &mut Vec<u8>, most: usize) {
        let taken: Result<(), ()> = self.receive(|came| {
            let n = came.len().min(most.saturating_sub(bytes.len()));
            bytes.extend(&came[..n]);
            Ok(n)
        });
        debug_assert!(taken.is_ok());
    }

    /// Says that no more will be given.
    pub fn finish(&mut self) {
        self.finished = true;
        self.socket().close();
    }

    /// Ends it both ways at once.
    pub fn reset(&mut self) {
        self.socket().abort();
    }
}

/// What smoltcp takes for a network device: a packet that came, and where packets go.
struct Tube<'a> {
    packet: Option<&'a [u8]>,
    out: &'a mut Out,
}

impl Device for Tube<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sending(self.out)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        (!self.out.is_full()).then_some(Sending(self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // The stream keeps what it carries.
        let mut checksums = ChecksumCapabilities::ignored();
        checksums.ipv4 = Checksum::Tx;
        checksums.tcp = Checksum::Tx;
        capabilities.checksum = checksums;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

struct Sending<'a>(&'a mut Out);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        self.0.push(length, fill)
    }
}
