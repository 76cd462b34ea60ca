//! The HTTP proxy at the gateway: what a guest asks it for is checked by name, and goes on through the
//! host's proxy, or directly where the host has none for it. The host's credentials are added here, so
//! that they never are in the guest.
//!
//! Everything of a request but its body is made anew ([`head`]); behind it nothing more of the guest is
//! passed on ([`body`]), as a second request would not be checked.

pub mod body;
pub mod head;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use self::body::Rest;
use self::head::{Bad, Request, answer};
use crate::conn::Conn;
use crate::core::Core;
use crate::dns::lookup::{Asker, Lookups, NoAnswer};
use crate::relay::{self, Remote};
use crate::upstream::{Proxy, Upstream};

/// How long the host may take to connect to one address.
const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses that are tried.
const MOST_CANDIDATES: usize = 8;
/// Bytes of a body that wait for a server.
const MOST_WAITING: usize = 64 << 10;
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A connection of the guest to the proxy.
#[derive(Debug)]
pub struct Session {
    conn: Conn,
    number: u64,
    state: State,
    /// What waits for the guest.
    to_guest: Vec<u8>,
}

/// What is asked for, and what came behind it already.
#[derive(Debug)]
struct Asked {
    request: Request,
    early: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// The head of a request is coming.
    Head(Vec<u8>),
    /// Addresses are looked up: of whom is asked for, or of the host's proxy.
    Finding {
        asked: Asked,
        via: Option<Proxy>,
        /// Answers that are to come.
        left: u8,
        found: Vec<IpAddr>,
        denied: bool,
    },
    /// The host connects.
    Connecting {
        asked: Asked,
        via: Option<Proxy>,
        candidates: VecDeque<SocketAddr>,
        socket: OwnedFd,
        /// Whether the socket has become writable.
        ready: bool,
        deadline: Instant,
    },
    /// The host's proxy is asked for a connection.
    Opening {
        remote: Remote,
        to_remote: Vec<u8>,
        came: Vec<u8>,
        early: Vec<u8>,
    },
    /// Bytes go both ways.
    Tunnel { remote: Remote, to_remote: Vec<u8> },
    /// A request is answered.
    Asking {
        remote: Remote,
        to_remote: Vec<u8>,
        early: Vec<u8>,
        rest: Rest,
        /// The head of the answer, until it is whole.
        came: Option<Vec<u8>>,
    },
    /// All has been said.
    Done,
}

/// Why a session ends before its time.
enum Ends {
    /// With an answer that says so.
    With(Bad),
    /// It is broken off.
    Broken,
}

impl From<Bad> for Ends {
    fn from(bad: Bad) -> Self {
        Ends::With(bad)
    }
}

impl From<rustix::io::Errno> for Ends {
    fn from(_: rustix::io::Errno) -> Self {
        Ends::Broken
    }
}

/// What sessions work with.
struct With<'a> {
    upstream: &'a Upstream,
    lookups: &'a mut Lookups,
    now: Instant,
    core: &'a mut Core,
}

impl Session {
    /// Serves this connection, which has this number.
    pub fn new(conn: Conn, number: u64) -> Self {
        Session {
            conn,
            number,
            state: State::Head(Vec::new()),
            to_guest: Vec::new(),
        }
    }

    /// The connection.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// When it wants to be advanced next.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let own = match &self.state {
            State::Connecting { deadline, .. } => Some(*deadline),
            _ => None,
        };
        own.into_iter().chain(self.conn.deadline(now)).min()
    }

    /// Takes what is told of its socket.
    pub fn seen(&mut self, readable: bool, writable: bool) {
        match &mut self.state {
            State::Connecting { ready, .. } => *ready |= writable,
            State::Opening { remote, .. }
            | State::Tunnel { remote, .. }
            | State::Asking { remote, .. } => remote.seen(readable, writable),
            _ => {}
        }
    }

    /// Takes addresses that were looked up.
    pub fn answered(&mut self, addresses: Result<Vec<IpAddr>, NoAnswer>) {
        if let State::Finding {
            left,
            found,
            denied,
            ..
        } = &mut self.state
        {
            *left = left.saturating_sub(1);
            match addresses {
                Ok(addresses) => found.extend(addresses),
                Err(NoAnswer::Denied) => *denied = true,
                Err(NoAnswer::Silence) => {}
            }
        }
    }

    /// Does what can be done; returns whether the connection goes on.
    pub fn advance(
        &mut self,
        upstream: &Upstream,
        lookups: &mut Lookups,
        now: Instant,
        core: &mut Core,
    ) -> bool {
        let mut with = With {
            upstream,
            lookups,
            now,
            core,
        };
        loop {
            let before = std::mem::discriminant(&self.state);
            let state = std::mem::replace(&mut self.state, State::Done);
            match self.step(state, &mut with) {
                Ok(next) => self.state = next,
                Err(Ends::With(Bad(status, why))) => self.to_guest = answer(status, why),
                Err(Ends::Broken) => self.conn.reset(),
            }
            // Each state leads to later ones.
            if std::mem::discriminant(&self.state) == before {
                break;
            }
        }
        self.conn.give_some_of(&mut self.to_guest);
        if matches!(self.state, State::Done) && self.to_guest.is_empty() {
            self.conn.finish();
        }
        self.conn.send_on(now, &mut core.out);
        let over = self.conn.is_over();
        if let State::Tunnel { remote, .. } = &self.state
            && over
            && !self.conn.is_whole()
        {
            remote.break_off();
        }
        !over
    }

    fn step(&mut self, state: State, with: &mut With) -> Result<State, Ends> {
        match state {
            State::Head(bytes) => self.head(bytes, with),
            State::Finding { left: 1.., .. } => Ok(state),
            State::Finding {
                asked,
                via: None,
                found,
                denied,
                ..
            } => {
                if denied {
                    return Err(Bad(403, "the addresses of this name may not be reached").into());
                }
                self.go_out(asked, found, with)
            }
            State::Finding {
                asked, via, found, ..
            } => {
                let port = via.as_ref().map_or(0, |proxy| proxy.port);
                self.connect(asked, via, with_port(found, port), with)
            }
            State::Connecting { .. } => self.connecting(state, with),
            State::Opening {
                remote,
                to_remote,
                came,
                early,
            } => self.opening(remote, to_remote, came, early),
            State::Tunnel { remote, to_remote } => self.tunnel(remote, to_remote),
            State::Asking { .. } => self.asking(state),
            State::Done => Ok(State::Done),
        }
    }

    fn head(&mut self, mut bytes: Vec<u8>, with: &mut With) -> Result<State, Ends> {
        self.conn.take_into(&mut bytes, head::MOST);
        let Some((request, length)) = head::request(&bytes)? else {
            return match self.conn.is_at_end() {
                true => Ok(State::Done),
                false => Ok(State::Head(bytes)),
            };
        };
        let early = bytes.split_off(length);
        let asked = Asked { request, early };
        let request = &asked.request;
        let (gate, port) = (&mut with.core.gate, request.port);
        if let Some(address) = request.address() {
            let allowed = gate.reaches(SocketAddr::new(address, port), with.now);
            allowed.map_err(|_| Bad(403, "this address is not among those that may be reached"))?;
            return self.go_out(asked, vec![address], with);
        }
        if !gate.reaches_name(&request.host, port) {
            return Err(Bad(
                403,
                "this name and port are not among those that may be reached",
            )
            .into());
        }
        // Also where the host's proxy will look it up itself: a name that leads into the host's networks
        // is found out here.
        let asker = Asker::Proxy(self.number);
        let host = request.host.clone();
        with.lookups.find(&host, asker, with.now, with.core);
        Ok(finding(asked, None))
    }

    /// Chooses the way out, once it is known what is asked for.
    fn go_out(&self, asked: Asked, found: Vec<IpAddr>, with: &mut With) -> Result<State, Ends> {
        let request = &asked.request;
        let proxies = &with.upstream.proxies;
        let via = match request.plain {
            Some(_) => &proxies.http,
            None => &proxies.https,
        };
        let except = proxies.except.contain(&request.host, request.port);
        match via.clone().filter(|_| !except) {
            Some(proxy) if proxy.addresses.is_empty() => {
                let asker = Asker::Host(self.number);
                with.lookups.find(&proxy.host, asker, with.now, with.core);
                Ok(finding(asked, Some(proxy)))
            }
            Some(proxy) => {
                let candidates = with_port(proxy.addresses.clone(), proxy.port);
                self.connect(asked, Some(proxy), candidates, with)
            }
            None => {
                let mut candidates = with_port(found, request.port);
                candidates.retain(|to| with.core.gate.reaches(*to, with.now).is_ok());
                self.connect(asked, None, candidates, with)
            }
        }
    }

    /// Begins to connect to the next address.
    fn connect(
        &self,
        asked: Asked,
        via: Option<Proxy>,
        mut candidates: VecDeque<SocketAddr>,
        with: &mut With,
    ) -> Result<State, Ends> {
        while let Some(to) = candidates.pop_front() {
            let begun = relay::connect(to).and_then(|socket| {
                with.core.poller.add(&socket, self.number)?;
                Ok(socket)
            });
            if let Ok(socket) = begun {
                return Ok(State::Connecting {
                    asked,
                    via,
                    candidates,
                    socket,
                    ready: false,
                    deadline: with.now + PATIENCE,
                });
            }
        }
        Err(Bad(
            502,
            match via {
                Some(_) => "the host's proxy cannot be reached",
                None => "no address of this name can be reached",
            },
        )
        .into())
    }

    fn connecting(&mut self, state: State, with: &mut With) -> Result<State, Ends> {
        let State::Connecting {
            asked,
            via,
            candidates,
            socket,
            ready,
            deadline,
        } = state
        else {
            return Ok(state);
        };
        if !ready && with.now < deadline {
            return Ok(State::Connecting {
                asked,
                via,
                candidates,
                socket,
                ready,
                deadline,
            });
        }
        if !ready || relay::connected(&socket).is_err() {
            drop(socket);
            return self.connect(asked, via, candidates, with);
        }
        let remote = Remote::new(socket);
        let Asked { request, early } = asked;
        let to_remote = request.to_server(via.as_ref());
        Ok(match (request.plain, via) {
            (Some(plain), _) => State::Asking {
                remote,
                to_remote,
                early,
                rest: Rest::new(plain.body),
                came: Some(Vec::new()),
            },
            (None, Some(_)) => State::Opening {
                remote,
                to_remote,
                came: Vec::new(),
                early,
            },
            (None, None) => {
                self.to_guest.extend(ESTABLISHED);
                State::Tunnel {
                    remote,
                    to_remote: early,
                }
            }
        })
    }

    fn opening(
        &mut self,
        mut remote: Remote,
        mut to_remote: Vec<u8>,
        mut came: Vec<u8>,
        early: Vec<u8>,
    ) -> Result<State, Ends> {
        send_some_of(&mut remote, &mut to_remote)?;
        receive_into(&mut remote, &mut came, head::MOST)?;
        let Some((response, length)) = head::response(&came)? else {
            if remote.has_ended() {
                return Err(Bad(502, "the host's proxy has closed the connection").into());
            }
            return Ok(State::Opening {
                remote,
                to_remote,
                came,
                early,
            });
        };
        match response.status {
            200..=299 => {}
            407 => return Err(UNAUTHORISED.into()),
            _ => return Err(Bad(502, "the host's proxy refuses to connect").into()),
        }
        self.to_guest.extend(ESTABLISHED);
        self.to_guest.extend(&came[length..]);
        to_remote.extend(early);
        Ok(State::Tunnel { remote, to_remote })
    }

    fn tunnel(&mut self, mut remote: Remote, mut to_remote: Vec<u8>) -> Result<State, Ends> {
        send_some_of(&mut remote, &mut to_remote)?;
        if to_remote.is_empty() {
            relay::to_remote(&mut self.conn, &mut remote)?;
        }
        self.conn.give_some_of(&mut self.to_guest);
        if self.to_guest.is_empty() {
            relay::to_guest(&mut self.conn, &mut remote)?;
        }
        Ok(State::Tunnel { remote, to_remote })
    }

    fn asking(&mut self, state: State) -> Result<State, Ends> {
        let State::Asking {
            mut remote,
            mut to_remote,
            mut early,
            mut rest,
            mut came,
        } = state
        else {
            return Ok(state);
        };
        self.body(&mut remote, &mut to_remote, &mut early, &mut rest)?;
        if let Some(head) = &mut came {
            receive_into(&mut remote, head, head::MOST)?;
            while let Some((response, length)) = head::response(head)? {
                if response.status == 407 {
                    return Err(UNAUTHORISED.into());
                }
                self.to_guest.extend(&response.head);
                head.drain(..length);
                if response.status >= 200 {
                    self.to_guest.append(head);
                    came = None;
                    break;
                }
            }
        }
        if came.is_some() && remote.has_ended() {
            return Err(Bad(
                502,
                "the server has closed the connection without an answer",
            )
            .into());
        }
        self.conn.give_some_of(&mut self.to_guest);
        if came.is_none() && self.to_guest.is_empty() {
            relay::to_guest(&mut self.conn, &mut remote)?;
        }
        Ok(State::Asking {
            remote,
            to_remote,
            early,
            rest,
            came,
        })
    }

    /// Passes the body of a request on, as far as it goes.
    fn body(
        &mut self,
        remote: &mut Remote,
        to_remote: &mut Vec<u8>,
        early: &mut Vec<u8>,
        rest: &mut Rest,
    ) -> Result<(), Ends> {
        loop {
            send_some_of(remote, to_remote)?;
            if !to_remote.is_empty() || rest.is_none() {
                return Ok(());
            }
            if early.is_empty() {
                self.conn.take_into(early, MOST_WAITING);
            }
            if early.is_empty() {
                return Ok(());
            }
            let own = rest.take(early);
            let own =
                own.map_err(|body::NotChunked| Bad(400, "the chunks of the body are none"))?;
            to_remote.extend(&early[..own]);
            early.clear();
        }
    }
}

const UNAUTHORISED: Bad = Bad(
    502,
    "the host's proxy refuses the credentials that the host's environment has for it",
);

fn finding(asked: Asked, via: Option<Proxy>) -> State {
    State::Finding {
        asked,
        via,
        left: 2,
        found: Vec::new(),
        denied: false,
    }
}

fn with_port(addresses: Vec<IpAddr>, port: u16) -> VecDeque<SocketAddr> {
    let addresses = addresses.into_iter().take(MOST_CANDIDATES);
    addresses.map(|ip| SocketAddr::new(ip, port)).collect()
}

fn send_some_of(remote: &mut Remote, bytes: &mut Vec<u8>) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match remote.send(bytes)? {
            0 => break,
            n => drop(bytes.drain(..n)),
        }
    }
    Ok(())
}

/// Receives into these bytes, of which there shall be no more than so many.
fn receive_into(remote: &mut Remote, bytes: &mut Vec<u8>, most: usize) -> rustix::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let space = buffer.len().min(most.saturating_sub(bytes.len()));
        match remote.receive(&mut buffer[..space])? {
            0 => return Ok(()),
            n => bytes.extend(&buffer[..n]),
        }
    }
}
