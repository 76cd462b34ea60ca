//! What connections, exchanges and lookups share: the way to the guest, the gate, timers, descriptors.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

use smol_protocol::net::{DNS_V4, DNS_V6, GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6};

use crate::conn::Clock;
use crate::gate::Gate;
use crate::link::Out;
use crate::packet::Unreachable;
use crate::policy::Policy;
use crate::poller::Poller;

/// What everything in the engine shares.
#[derive(Debug)]
pub struct Core {
    /// Packets for the guest.
    pub out: Out,
    /// What the guest may reach.
    pub gate: Gate,
    /// Who waits for when.
    pub timers: Timers,
    /// Who waits for what.
    pub poller: Poller,
    /// The beginning of time.
    pub clock: Clock,
    numbers: u64,
}

/// Who a number belongs to: what waits for descriptors and for time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The stream to the guest, or the handle that stops all.
    Engine,
    /// A TCP connection.
    Flow,
    /// An exchange of datagrams.
    Exchange,
    /// A query to a DNS server.
    Lookup,
}

impl Core {
    /// A fresh one.
    pub fn new(policy: Policy, now: Instant) -> io::Result<Self> {
        Ok(Core {
            out: Out::default(),
            gate: Gate::new(policy),
            timers: Timers::default(),
            poller: Poller::new()?,
            clock: Clock::new(now),
            numbers: 0,
        })
    }

    /// A number that nobody has had.
    pub fn number(&mut self, owner: Owner) -> u64 {
        self.numbers += 1;
        self.numbers << 2 | owner as u64
    }
}

/// Whose a number is.
pub fn owner(number: u64) -> Owner {
    match number & 3 {
        1 => Owner::Flow,
        2 => Owner::Exchange,
        3 => Owner::Lookup,
        _ => Owner::Engine,
    }
}

/// Who wants to be called when.
#[derive(Debug, Default)]
pub struct Timers {
    order: BTreeSet<(Instant, u64)>,
    by_number: HashMap<u64, Instant>,
}

impl Timers {
    /// Calls this number at that time or before: who is called looks at what it waits for.
    pub fn set(&mut self, number: u64, when: Option<Instant>) {
        let Some(when) = when else { return };
        match self.by_number.get(&number) {
            Some(earlier) if *earlier <= when => return,
            Some(later) => {
                self.order.remove(&(*later, number));
            }
            None => {}
        }
        self.by_number.insert(number, when);
        self.order.insert((when, number));
    }

    /// Does not call this number any more.
    pub fn forget(&mut self, number: u64) {
        if let Some(when) = self.by_number.remove(&number) {
            self.order.remove(&(when, number));
        }
    }

    /// Someone whose time has come.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        let (when, number) = *self.order.first()?;
        if when > now {
            return None;
        }
        self.forget(number);
        Some(number)
    }

    /// When the next one's time comes.
    pub fn next(&self) -> Option<Instant> {
        self.order.first().map(|(when, _)| *when)
    }
}

/// Who an address belongs to, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The gateway, behind which is the host's loopback, for whom a rule allows it.
    Gateway,
    /// The DNS server.
    Dns,
    /// Everything else.
    Outside,
}

/// Where an address is.
pub fn place(address: IpAddr) -> Place {
    match address {
        IpAddr::V4(GATEWAY_V4) | IpAddr::V6(GATEWAY_V6) => Place::Gateway,
        IpAddr::V4(DNS_V4) | IpAddr::V6(DNS_V6) => Place::Dns,
        _ => Place::Outside,
    }
}

/// Whether it is the guest's.
pub fn is_guest(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(GUEST_V4) | IpAddr::V6(GUEST_V6))
}

/// The guest's address, of the same version.
pub fn guest(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => GUEST_V4.into(),
        IpAddr::V6(_) => GUEST_V6.into(),
    }
}

/// Where the host goes to reach what the guest calls this.
pub fn outside(to: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    match place(to.ip()) {
        Place::Gateway => SocketAddr::new(loopback, to.port()),
        Place::Dns | Place::Outside => to,
    }
}

/// A socket that does not block, for this address.
pub fn socket(
    to: IpAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, kind, flags, protocol)
}

/// What an error of the host's kernel means to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens, or the connection was broken off.
    Refused,
    /// It does not arrive.
    Unreachable(Unreachable),
    /// The host lacks something at the moment.
    Busy,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT => {
                Failure::Unreachable(Unreachable::Network)
            }
            Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => {
                Failure::Unreachable(Unreachable::Host)
            }
            Errno::ACCESS | Errno::PERM => Failure::Unreachable(Unreachable::Prohibited),
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL => {
                Failure::Busy
            }
            _ => Failure::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_call_in_order_and_not_too_late() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(1, Some(at(5)));
        timers.set(2, Some(at(3)));
        timers.set(1, Some(at(9)));
        timers.set(2, Some(at(2)));
        timers.set(3, Some(at(1)));
        timers.set(3, None);
        timers.forget(3);
        assert_eq!(timers.next(), Some(at(2)));
        assert_eq!(timers.due(at(1)), None);
        assert_eq!(timers.due(at(9)), Some(2));
        assert_eq!(timers.due(at(9)), Some(1));
        assert_eq!(timers.due(at(9)), None);
        assert!(timers.by_number.is_empty());
    }
}
