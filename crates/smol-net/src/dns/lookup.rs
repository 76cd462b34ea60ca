//! Queries that wait for a server of the host's. Each has a socket, so a port, and a number of its own:
//! who wants to forge an answer has to guess both.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, sockopt};

use super::message::{self, Answer, Code, MOST, Query};
use crate::core::{Core, Owner, socket};
use crate::packet::push_datagram;

/// Queries at a time.
const MOST_LOOKUPS: usize = 256;
/// How long a server may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often servers are asked, all together.
const MOST_ATTEMPTS: usize = 4;

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The guest, by a datagram: from whom the answer comes, and where to.
    Datagram((IpAddr, u16), (IpAddr, u16)),
    /// The guest, over the TCP connection of this number.
    Stream(u64),
    /// The proxy, for the connection of this number.
    Proxy(u64),
    /// The proxy as well, for the address of the host's: which it is, is not up to the guest.
    Host(u64),
}

/// An answer for a connection.
#[derive(Debug)]
pub struct Answered {
    /// The connection.
    pub flow: u64,
    /// The message, for those that asked with one.
    pub message: Vec<u8>,
    /// The addresses that may be reached; an error if there are some, and they may not, or if nobody
    /// has answered.
    pub addresses: Result<Vec<IpAddr>, NoAnswer>,
}

/// Why there are no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// They may not be reached.
    Denied,
    /// No server answers.
    Silence,
}

#[derive(Debug)]
struct Lookup {
    asker: Asker,
    query: Query,
    /// The number that the server sees.
    id: u16,
    /// Which attempt it is.
    attempt: usize,
    over_tcp: bool,
    socket: OwnedFd,
    deadline: Instant,
    /// Over TCP: what is to be sent, and what has come.
    sending: Vec<u8>,
    received: Vec<u8>,
}

/// All queries that wait, and answers that have not been fetched.
#[derive(Debug)]
pub struct Lookups {
    servers: Vec<SocketAddr>,
    waiting: HashMap<u64, Lookup>,
    /// What connections have to be told.
    pub answered: Vec<Answered>,
    buffer: Vec<u8>,
}

impl Lookups {
    /// Asks these servers.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Lookups {
            servers,
            waiting: HashMap::new(),
            answered: Vec::new(),
            buffer: vec![0; MOST],
        }
    }

    /// Answers a message of the guest, now or later.
    pub fn ask(&mut self, bytes: &[u8], asker: Asker, now: Instant, core: &mut Core) {
        if bytes.len() > message::MOST_QUERY {
            return;
        }
        let query = match message::query(bytes) {
            Ok(query) => query,
            Err((Some(id), code)) => return self.deliver(asker, message::failure(id, code), core),
            Err((None, _)) => return,
        };
        if !core.gate.resolves(&query.name) {
            let none = query.answer(Code::NoName);
            return self.deliver(asker, none, core);
        }
        self.begin(query, asker, now, core);
    }

    /// Looks a name up for the proxy: two answers come, one for each version of IP.
    pub fn find(&mut self, host: &str, asker: Asker, now: Instant, core: &mut Core) {
        for kind in [message::A, message::AAAA] {
            match Query::new(host, kind) {
                Ok(query) => self.begin(query, asker, now, core),
                Err(message::Malformed) => self.found(asker, Ok(Vec::new())),
            }
        }
    }

    fn found(&mut self, asker: Asker, addresses: Result<Vec<IpAddr>, NoAnswer>) {
        if let Asker::Proxy(flow) | Asker::Host(flow) = asker {
            self.answered.push(Answered {
                flow,
                message: Vec::new(),
                addresses,
            });
        }
    }

    fn begin(&mut self, query: Query, asker: Asker, now: Instant, core: &mut Core) {
        if self.waiting.len() >= MOST_LOOKUPS {
            core.gate.ledger.report.over_limit += 1;
            return self.fail(&query, asker, core);
        }
        core.gate.ledger.report.lookups += 1;
        let over_tcp = matches!(asker, Asker::Stream(_));
        self.attempt(query, asker, 0, over_tcp, now, core);
    }

    /// Asks a server; the next one, if that cannot be done.
    fn attempt(
        &mut self,
        query: Query,
        asker: Asker,
        first: usize,
        over_tcp: bool,
        now: Instant,
        core: &mut Core,
    ) {
        for attempt in first..MOST_ATTEMPTS {
            if self.servers.is_empty() {
                break;
            }
            let server = self.servers[attempt % self.servers.len()];
            if let Ok((id, socket, sending)) = send(&query, server, over_tcp) {
                let number = core.number(Owner::Lookup);
                let deadline = now + PATIENCE;
                if core.poller.add(&socket, number).is_err() {
                    break;
                }
                core.timers.set(number, Some(deadline));
                self.waiting.insert(
                    number,
                    Lookup {
                        asker,
                        query,
                        id,
                        attempt,
                        over_tcp,
                        socket,
                        deadline,
                        sending,
                        received: Vec::new(),
                    },
                );
                return;
            }
        }
        self.fail(&query, asker, core);
    }

    fn fail(&mut self, query: &Query, asker: Asker, core: &mut Core) {
        match asker {
            Asker::Proxy(_) | Asker::Host(_) => self.found(asker, Err(NoAnswer::Silence)),
            _ => self.deliver(asker, query.answer(Code::Server), core),
        }
    }

    /// Delivers an answer to the guest.
    fn deliver(&mut self, asker: Asker, message: Vec<u8>, core: &mut Core) {
        match asker {
            Asker::Datagram(from, to) => push_datagram(&mut core.out, from, to, &message),
            Asker::Stream(flow) | Asker::Proxy(flow) | Asker::Host(flow) => {
                self.answered.push(Answered {
                    flow,
                    message,
                    addresses: Ok(Vec::new()),
                })
            }
        }
    }

    /// A server has answered, perhaps, or can be written to.
    pub fn ready(&mut self, number: u64, now: Instant, core: &mut Core) {
        let Some(mut lookup) = self.waiting.remove(&number) else {
            return;
        };
        let came = if lookup.over_tcp {
            lookup.over_stream(&mut self.buffer)
        } else {
            lookup.by_datagram(&mut self.buffer)
        };
        match came {
            Ok(None) => {
                self.waiting.insert(number, lookup);
            }
            Ok(Some((message, answer))) => {
                core.timers.forget(number);
                self.came(lookup, message, answer, now, core);
            }
            Err(_) => {
                core.timers.forget(number);
                self.again(lookup, now, core);
            }
        }
    }

    /// A server was silent for long.
    pub fn timer(&mut self, number: u64, now: Instant, core: &mut Core) {
        match self.waiting.remove(&number) {
            Some(lookup) if lookup.deadline <= now => self.again(lookup, now, core),
            Some(lookup) => {
                core.timers.set(number, Some(lookup.deadline));
                self.waiting.insert(number, lookup);
            }
            None => {}
        }
    }

    fn again(&mut self, lookup: Lookup, now: Instant, core: &mut Core) {
        let next = lookup.attempt + 1;
        self.attempt(lookup.query, lookup.asker, next, lookup.over_tcp, now, core);
    }

    fn came(
        &mut self,
        lookup: Lookup,
        mut message: Vec<u8>,
        answer: Answer,
        now: Instant,
        core: &mut Core,
    ) {
        let Lookup { query, asker, .. } = lookup;
        let failed = !matches!(answer.code, 0 | 3);
        if failed && lookup.attempt + 1 < self.servers.len() {
            let next = lookup.attempt + 1;
            return self.attempt(query, asker, next, lookup.over_tcp, now, core);
        }
        let own = matches!(asker, Asker::Proxy(_) | Asker::Host(_));
        if answer.truncated && own && !lookup.over_tcp {
            return self.attempt(query, asker, lookup.attempt, true, now, core);
        }
        let bound = match asker {
            Asker::Host(_) => Ok(true),
            _ => core.gate.bind(&query.name, &answer.addresses, now),
        };
        let mut addresses: Vec<IpAddr> = answer.addresses.iter().map(|(ip, _)| *ip).collect();
        // What leads nowhere is not told: a guest would try it first, and wait.
        if bound == Ok(false) {
            addresses.clear();
        }
        if own {
            return self.found(
                asker,
                bound.map(|_| addresses).map_err(|_| NoAnswer::Denied),
            );
        }
        if bound.is_err() || addresses.is_empty() && !answer.addresses.is_empty() {
            message = query.answer(Code::NoError);
        } else {
            message[..2].copy_from_slice(&query.id.to_be_bytes());
        }
        self.deliver(asker, message, core);
    }
}

/// Asks a server. Returns the number that it sees, the socket, and what is still to be sent.
fn send(
    query: &Query,
    server: SocketAddr,
    over_tcp: bool,
) -> rustix::io::Result<(u16, OwnedFd, Vec<u8>)> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|_| Errno::AGAIN)?;
    let id = u16::from_ne_bytes(id);
    let message = query.to_server(id);
    if over_tcp {
        let socket = socket(server.ip(), SocketType::STREAM, None)?;
        match rustix::net::connect(&socket, &server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let length = u16::try_from(message.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut sending = length.to_be_bytes().to_vec();
        sending.extend(message);
        return Ok((id, socket, sending));
    }
    let socket = socket(server.ip(), SocketType::DGRAM, None)?;
    rustix::net::connect(&socket, &server)?;
    rustix::net::send(&socket, &message, SendFlags::NOSIGNAL)?;
    Ok((id, socket, Vec::new()))
}

/// An answer, or none yet; an error if there will be none.
type Came = rustix::io::Result<Option<(Vec<u8>, Answer)>>;

impl Lookup {
    fn by_datagram(&mut self, buffer: &mut [u8]) -> Came {
        loop {
            match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((_, n)) => {
                    let message = &buffer[..n.min(buffer.len())];
                    // What answers something else is not for us.
                    if let Ok(answer) = message::answer(message, &self.query, self.id) {
                        return Ok(Some((message.to_vec(), answer)));
                    }
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn over_stream(&mut self, buffer: &mut [u8]) -> Came {
        sockopt::socket_error(&self.socket)??;
        while !self.sending.is_empty() {
            match rustix::net::send(&self.socket, &self.sending, SendFlags::NOSIGNAL) {
                Ok(n) => drop(self.sending.drain(..n)),
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        loop {
            match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((n, _)) => self.received.extend(&buffer[..n]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e),
            }
            let Some((length, rest)) = self.received.split_first_chunk() else {
                continue;
            };
            let length = usize::from(u16::from_be_bytes(*length));
            if let Some(message) = rest.get(..length) {
                let answer = message::answer(message, &self.query, self.id);
                let answer = answer.map_err(|message::Malformed| Errno::PROTO)?;
                return Ok(Some((message.to_vec(), answer)));
            }
        }
    }
}
