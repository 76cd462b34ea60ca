//! TCP connections of the guest. One to somewhere else is accepted when the host has connected to there:
//! so a guest that tries several addresses learns which of them answer.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use smol_protocol::net::PROXY_PORT;

use crate::conn::Conn;
use crate::core::{Core, Failure, Owner, Place, outside, place};
use crate::dns::lookup::{Answered, Lookups};
use crate::dns::stream::Stream;
use crate::packet::{Packet, Segment, Unreachable, push_reset, push_unreachable};
use crate::poller::Event;
use crate::proxy::Session;
use crate::relay::{self, Remote};
use crate::upstream::Upstream;

/// Connections at a time. The guest repeats what it begins beyond these, until there is space.
pub const MOST: usize = 1024;
/// How long the host may take to connect.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest first segment: a header with all options. One that has data is dropped; the guest repeats it
/// without them.
const MOST_SYN: usize = 160;

/// Between which ends: the guest's port, and where to.
type Key = (u16, SocketAddr);

#[derive(Debug)]
struct Flow {
    key: Key,
    role: Role,
}

/// What a connection is for.
#[expect(clippy::large_enum_variant, reason = "flows are in boxes as a whole")]
#[derive(Debug)]
enum Role {
    /// It is accepted once the host is connected.
    Connecting {
        syn: Vec<u8>,
        remote: OwnedFd,
        deadline: Instant,
    },
    /// To somewhere else.
    Direct { conn: Conn, remote: Remote },
    /// To the DNS server.
    Dns(Stream),
    /// To the proxy.
    Proxy(Session),
}

/// All connections.
#[derive(Debug)]
pub struct Flows {
    by_key: HashMap<Key, u64>,
    all: HashMap<u64, Box<Flow>>,
    /// Those that had to stop because too much waits for the guest.
    starved: BTreeSet<u64>,
    upstream: Upstream,
}

/// What connections work with.
pub struct With<'a> {
    /// Names.
    pub lookups: &'a mut Lookups,
    /// Everything else.
    pub core: &'a mut Core,
    /// The time.
    pub now: Instant,
}

impl Flows {
    /// None yet; those to the proxy go on through this.
    pub fn new(upstream: Upstream) -> Self {
        Flows {
            by_key: HashMap::new(),
            all: HashMap::new(),
            starved: BTreeSet::new(),
            upstream,
        }
    }

    /// Takes a segment of the guest.
    pub fn segment(&mut self, packet: &Packet, segment: &Segment, with: &mut With) {
        let key = (segment.from, SocketAddr::new(packet.to, segment.to));
        let Some(number) = self.by_key.get(&key).copied() else {
            if segment.syn {
                self.open(key, packet, segment, with);
            } else if !segment.rst {
                push_reset(&mut with.core.out, packet, segment);
            }
            return;
        };
        let Some(flow) = self.all.get_mut(&number) else {
            return;
        };
        let (now, out) = (with.now, &mut with.core.out);
        match &mut flow.role {
            // It may repeat itself, or has given up.
            Role::Connecting { .. } if !segment.rst => return,
            Role::Connecting { .. } => return self.close(number, with),
            Role::Direct { conn, .. } => conn.take(packet.bytes, now, out),
            Role::Dns(stream) => stream.conn().take(packet.bytes, now, out),
            Role::Proxy(session) => session.conn().take(packet.bytes, now, out),
        }
        self.advance(number, with);
    }

    fn open(&mut self, key: Key, packet: &Packet, segment: &Segment, with: &mut With) {
        if self.all.len() >= MOST || packet.bytes.len() > MOST_SYN {
            with.core.gate.ledger.report.over_limit += 1;
            return;
        }
        let number = with.core.number(Owner::Flow);
        let (_, to) = key;
        let ours = match (place(to.ip()), to.port()) {
            (Place::Dns, 53) => Some(Ours::Dns),
            (Place::Gateway, PROXY_PORT) if self.upstream.has_proxy() => Some(Ours::Proxy),
            (Place::Dns, _) => return push_reset(&mut with.core.out, packet, segment),
            _ => None,
        };
        let role = match ours {
            None => match self.begin(number, to, packet, segment, with) {
                Some(role) => role,
                None => return,
            },
            Some(ours) => {
                let Some(conn) = self.accept(packet.bytes, to, with) else {
                    return;
                };
                match ours {
                    Ours::Dns => Role::Dns(Stream::new(conn, number)),
                    Ours::Proxy => Role::Proxy(Session::new(conn, number)),
                }
            }
        };
        self.by_key.insert(key, number);
        self.all.insert(number, Box::new(Flow { key, role }));
        self.advance(number, with);
    }

    /// Begins a connection to somewhere else; the guest is told why, if there will be none.
    fn begin(
        &self,
        number: u64,
        to: SocketAddr,
        packet: &Packet,
        segment: &Segment,
        with: &mut With,
    ) -> Option<Role> {
        let core = &mut *with.core;
        let there = outside(to);
        if core.gate.reaches(there, with.now).is_err() {
            push_unreachable(&mut core.out, packet.bytes, Unreachable::Prohibited);
            return None;
        }
        let begun = relay::connect(there).and_then(|remote| {
            core.poller.add(&remote, number)?;
            Ok(remote)
        });
        match begun {
            Ok(remote) => {
                let deadline = with.now + PATIENCE;
                core.timers.set(number, Some(deadline));
                Some(Role::Connecting {
                    syn: packet.bytes.to_vec(),
                    remote,
                    deadline,
                })
            }
            Err(e) => {
                tell(e.into(), packet, segment, core);
                None
            }
        }
    }

    fn accept(&self, syn: &[u8], to: SocketAddr, with: &mut With) -> Option<Conn> {
        let core = &mut *with.core;
        let (clock, out) = (core.clock, &mut core.out);
        let conn = Conn::accept(syn, to, self.all.len(), clock, with.now, out)?;
        core.gate.ledger.report.connections += 1;
        Some(conn)
    }

    /// Takes what is told of a socket.
    pub fn ready(&mut self, event: Event, with: &mut With) {
        let Some(flow) = self.all.get_mut(&event.id) else {
            return;
        };
        match &mut flow.role {
            Role::Connecting { .. } => {
                if event.writable {
                    return self.connected(event.id, with);
                }
                return;
            }
            Role::Direct { remote, .. } => remote.seen(event.readable, event.writable),
            Role::Proxy(session) => session.seen(event.readable, event.writable),
            Role::Dns(_) => {}
        }
        self.advance(event.id, with);
    }

    /// The host has connected, or has failed to.
    fn connected(&mut self, number: u64, with: &mut With) {
        let Some(mut flow) = self.all.remove(&number) else {
            return;
        };
        let (_, to) = flow.key;
        let Role::Connecting { syn, remote, .. } = flow.role else {
            return;
        };
        let result = relay::connected(&remote);
        let conn = match result {
            Ok(()) => self.accept(&syn, to, with),
            Err(e) => {
                refuse(e.into(), &syn, with.core);
                None
            }
        };
        let Some(conn) = conn else {
            self.by_key.remove(&flow.key);
            with.core.timers.forget(number);
            return;
        };
        let remote = Remote::new(remote);
        flow.role = Role::Direct { conn, remote };
        self.all.insert(number, flow);
        self.advance(number, with);
    }

    /// Takes an answer of DNS.
    pub fn answered(&mut self, answered: Answered, with: &mut With) {
        let Some(flow) = self.all.get_mut(&answered.flow) else {
            return;
        };
        match &mut flow.role {
            Role::Dns(stream) => stream.answered(&answered.message),
            Role::Proxy(session) => session.answered(answered.addresses),
            Role::Connecting { .. } | Role::Direct { .. } => return,
        }
        self.advance(answered.flow, with);
    }

    /// Does what is to be done by now.
    pub fn timer(&mut self, number: u64, with: &mut With) {
        let Some(flow) = self.all.get(&number) else {
            return;
        };
        if let Role::Connecting { syn, deadline, .. } = &flow.role {
            if with.now < *deadline {
                with.core.timers.set(number, Some(*deadline));
                return;
            }
            let why = Failure::Unreachable(Unreachable::Host);
            refuse(why, syn, with.core);
            return self.close(number, with);
        }
        self.advance(number, with);
    }

    /// Goes on with those that had to stop; returns whether there were any.
    pub fn go_on(&mut self, with: &mut With) -> bool {
        let mut any = false;
        while !with.core.out.is_full() {
            let Some(number) = self.starved.pop_first() else {
                break;
            };
            any = true;
            self.advance(number, with);
        }
        any
    }

    /// Does what can be done for a connection.
    fn advance(&mut self, number: u64, with: &mut With) {
        let Some(flow) = self.all.get_mut(&number) else {
            return;
        };
        let (now, core) = (with.now, &mut *with.core);
        let (goes_on, deadline) = match &mut flow.role {
            Role::Connecting { .. } => return,
            Role::Direct { conn, remote } => {
                let goes_on = relay::both(conn, remote, now, &mut core.out);
                (goes_on, conn.deadline(now))
            }
            Role::Dns(stream) => {
                let goes_on = stream.advance(with.lookups, now, core);
                (goes_on, stream.conn().deadline(now))
            }
            Role::Proxy(session) => {
                let goes_on = session.advance(&self.upstream, with.lookups, now, core);
                (goes_on, session.deadline(now))
            }
        };
        if !goes_on {
            return self.close(number, with);
        }
        if with.core.out.is_full() {
            self.starved.insert(number);
        } else {
            with.core.timers.set(number, deadline);
        }
    }

    fn close(&mut self, number: u64, with: &mut With) {
        with.core.timers.forget(number);
        self.starved.remove(&number);
        if let Some(flow) = self.all.remove(&number) {
            self.by_key.remove(&flow.key);
        }
    }
}

/// What is at an address of ours.
enum Ours {
    Dns,
    Proxy,
}

/// Tells the guest why a connection is not made.
fn tell(why: Failure, packet: &Packet, segment: &Segment, core: &mut Core) {
    match why {
        Failure::Refused => push_reset(&mut core.out, packet, segment),
        Failure::Unreachable(why) => push_unreachable(&mut core.out, packet.bytes, why),
        // The guest will ask again.
        Failure::Busy => core.gate.ledger.report.over_limit += 1,
    }
}

/// The same, by the first segment of a connection that was begun.
fn refuse(why: Failure, syn: &[u8], core: &mut Core) {
    if let Some(packet) = crate::packet::read(syn)
        && let crate::packet::Payload::Tcp(segment) = packet.payload
    {
        tell(why, &packet, &segment, core);
    }
}

/// Whether an address is one of those that no single host has.
pub fn is_for_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unspecified(),
    }
}
