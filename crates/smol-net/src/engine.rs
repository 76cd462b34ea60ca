//! One loop that does everything: packets of the guest, sockets of the host, time.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::core::{Core, Owner, Place, is_guest, owner, place};
use crate::dns::lookup::{Asker, Lookups};
use crate::exchange::Exchanges;
use crate::flow::{Flows, With, is_for_many};
use crate::link::{Ended, Link};
use crate::packet::{self, Packet, Payload, Unreachable, push_echo, push_unreachable};
use crate::policy::Policy;
use crate::report::Report;
use crate::upstream::Upstream;
use crate::{Error, Stop};

/// Numbers of the engine's own descriptors.
const LINK: u64 = 0;
const STOP: u64 = 4;

/// All that a guest does with its network.
#[derive(Debug)]
pub struct Engine {
    core: Core,
    flows: Flows,
    exchanges: Exchanges,
    lookups: Lookups,
}

impl Engine {
    /// One that has done nothing yet.
    pub fn new(policy: Policy, upstream: Upstream, now: Instant) -> std::io::Result<Self> {
        Ok(Engine {
            core: Core::new(policy, now)?,
            lookups: Lookups::new(upstream.servers.clone()),
            flows: Flows::new(upstream),
            exchanges: Exchanges::default(),
        })
    }

    /// Takes a packet of the guest.
    pub fn packet(&mut self, bytes: &[u8], now: Instant) {
        self.core.gate.ledger.report.bytes_out += bytes.len() as u64;
        let Some(packet) = packet::read(bytes) else {
            return;
        };
        if !is_guest(packet.from) || is_guest(packet.to) || is_for_many(packet.to) {
            return;
        }
        match packet.payload {
            Payload::Tcp(segment) => {
                let (flows, mut with) = self.flows_with(now);
                flows.segment(&packet, &segment, &mut with);
            }
            Payload::Udp { from, to, data } if place(packet.to) == Place::Dns => {
                self.ask_dns(&packet, from, to, data, now);
            }
            Payload::Echo {
                ident,
                number,
                data,
            } if place(packet.to) != Place::Outside => {
                let (from, to) = (packet.to, packet.from);
                push_echo(&mut self.core.out, from, to, ident, number, data);
            }
            Payload::Udp { .. } | Payload::Echo { .. } => {
                self.exchanges.send(&packet, now, &mut self.core);
            }
        }
        self.deliver_answers(now);
    }

    fn ask_dns(&mut self, packet: &Packet, from: u16, to: u16, data: &[u8], now: Instant) {
        if to != 53 {
            return push_unreachable(&mut self.core.out, packet.bytes, Unreachable::Port);
        }
        let asker = Asker::Datagram((packet.to, to), (packet.from, from));
        self.lookups.ask(data, asker, now, &mut self.core);
    }

    fn flows_with(&mut self, now: Instant) -> (&mut Flows, With<'_>) {
        let with = With {
            lookups: &mut self.lookups,
            core: &mut self.core,
            now,
        };
        (&mut self.flows, with)
    }

    /// Answers of DNS to the connections that wait for them, which may ask further questions.
    fn deliver_answers(&mut self, now: Instant) {
        while let Some(answered) = self.lookups.answered.pop() {
            let (flows, mut with) = self.flows_with(now);
            flows.answered(answered, &mut with);
        }
    }

    /// Does what is to be done by now.
    pub fn timers(&mut self, now: Instant) {
        while let Some(number) = self.core.timers.due(now) {
            match owner(number) {
                Owner::Flow => {
                    let (flows, mut with) = self.flows_with(now);
                    flows.timer(number, &mut with);
                }
                Owner::Exchange => self.exchanges.timer(number, now, &mut self.core),
                Owner::Lookup => self.lookups.timer(number, now, &mut self.core),
                Owner::Engine => {}
            }
            self.deliver_answers(now);
        }
    }

    /// Takes out what waits for the guest.
    pub fn take_output(&mut self) -> Vec<u8> {
        let out = &mut self.core.out;
        let bytes = out.bytes().to_vec();
        out.gone(bytes.len());
        bytes
    }

    /// Runs until the guest closes the stream, or `stop` says so.
    pub fn run(&mut self, stream: OwnedFd, stop: &Stop) -> Result<(), Error> {
        let mut link = Link::new(stream);
        let kind = sockopt::socket_type(link.fd()).map_err(std::io::Error::from);
        if kind.map_err(Error::Stream)? != rustix::net::SocketType::STREAM {
            return Err(Error::Stream(std::io::ErrorKind::InvalidInput.into()));
        }
        let add = |core: &Core, fd, id| core.poller.add(fd, id).map_err(std::io::Error::from);
        add(&self.core, link.fd(), LINK).map_err(Error::Stream)?;
        add(&self.core, stop.0.as_fd(), STOP).map_err(Error::Stream)?;
        let mut packet = Vec::new();
        loop {
            match self.step(&mut link, &mut packet) {
                Ok(true) => {}
                Ok(false) | Err(Ended::Closed) => return Ok(()),
                Err(Ended::Broken(why)) => return Err(Error::Guest(why)),
                Err(Ended::Failed(why)) => return Err(Error::Stream(why)),
            }
        }
    }

    /// One round; returns whether there will be another.
    fn step(&mut self, link: &mut Link, packet: &mut Vec<u8>) -> Result<bool, Ended> {
        let now = Instant::now();
        if link.readable && !self.core.out.is_full() {
            link.read()?;
            // What was read is at most two of the largest packets, or many small ones.
            while link.next_packet(packet)? {
                self.packet(packet, now);
            }
        }
        self.timers(now);
        link.write(&mut self.core.out)?;
        let mut busy = false;
        if self.core.out.is_low() {
            let (flows, mut with) = self.flows_with(now);
            busy = flows.go_on(&mut with);
            link.write(&mut self.core.out)?;
        }
        busy |= link.readable && !self.core.out.is_full();
        let wait = match (busy, self.core.timers.next()) {
            (true, _) => Some(Duration::ZERO),
            (false, Some(next)) => Some(next.saturating_duration_since(now)),
            (false, None) => None,
        };
        for event in self.core.poller.wait(wait).map_err(Ended::Failed)? {
            let now = Instant::now();
            match (event.id, owner(event.id)) {
                (LINK, _) => link.seen(event.readable, event.writable),
                (STOP, _) if event.readable => return Ok(false),
                (_, Owner::Flow) => {
                    let (flows, mut with) = self.flows_with(now);
                    flows.ready(event, &mut with);
                }
                (id, Owner::Exchange) => self.exchanges.readable(id, now, &mut self.core),
                (id, Owner::Lookup) => self.lookups.ready(id, now, &mut self.core),
                (_, Owner::Engine) => {}
            }
            self.deliver_answers(now);
        }
        Ok(true)
    }

    /// What the guest has done.
    pub fn into_report(self) -> Report {
        let mut report = self.core.gate.ledger.report;
        report.bytes_in = self.core.out.total;
        report
    }
}
