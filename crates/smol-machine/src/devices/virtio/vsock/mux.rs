//! The table of connections: packets of the guest in, packets for the guest out.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::time::Duration;

use super::super::Waker;
use super::connection::{Connection, Key};
use super::host::{Host, Token, Watch};
use super::packet::{HOST_CID, Header, MAX_DATA, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};
use super::stream::{Ready, Rest};

/// Most connections at a time, those included whose last bytes the host has yet to take.
pub const MAX_CONNECTIONS: usize = 1024;

/// Replies that wait for receive buffers before the device stops reading what the guest sends.
const MAX_REPLIES: usize = 256;

/// First host port for connections that the host asks for; the guest's own count upwards from
/// 1024 or so.
const FIRST_PORT: u32 = 1 << 30;

/// All connections of a device.
pub struct Mux {
    guest_cid: u64,
    host: Box<dyn Host>,
    /// Ordered, so that nothing depends on a hash seed.
    connections: BTreeMap<Key, Connection>,
    /// Connections that are over for the guest, with bytes that the host has yet to take.
    remainders: BTreeMap<u64, Connection>,
    next_remainder: u64,
    next_port: u32,
    /// Packets without data that wait for receive buffers.
    replies: VecDeque<Header>,
    /// Connections that may have data for the guest.
    queue: VecDeque<Key>,
    /// The list of watched streams is out of date.
    stale: bool,
}

impl Mux {
    pub fn new(guest_cid: u64, host: Box<dyn Host>) -> Self {
        Self {
            guest_cid,
            host,
            connections: BTreeMap::new(),
            remainders: BTreeMap::new(),
            next_remainder: 0,
            next_port: FIRST_PORT,
            replies: VecDeque::new(),
            queue: VecDeque::new(),
            stale: false,
        }
    }

    pub fn attach(&mut self, waker: Waker) {
        self.host.attach(waker);
    }

    /// Drops all connections and all that waits for the guest, without telling it. What it has sent still
    /// goes to the host: at its end Linux resets its devices, when a slow reader has yet to take the last
    /// bytes (`virtio_dev_shutdown`).
    pub fn clear(&mut self) {
        self.leave();
        self.replies.clear();
        self.queue.clear();
        self.watch(None);
    }

    /// Ends all connections, and leaves what streams have yet to take to the host's side.
    fn leave(&mut self) {
        let connections = std::mem::take(&mut self.connections).into_values();
        let remainders = std::mem::take(&mut self.remainders).into_values();
        let all = connections.chain(remainders);
        let rests: Vec<Rest> = all.filter_map(Connection::into_rest).collect();
        if !rests.is_empty() {
            self.host.leave(rests);
        }
    }

    /// Whether the guest must take replies before it is listened to again.
    pub fn congested(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether there may be a packet for the guest.
    pub fn pending(&self) -> bool {
        !self.replies.is_empty() || !self.queue.is_empty()
    }

    /// Handles a packet of the guest, with its data.
    pub fn receive(&mut self, header: &Header, data: &[u8]) {
        if header.src_cid != self.guest_cid {
            return; // section 5.10.6.2: a forged source
        }
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            self.refuse(header);
        } else if header.op == op::REQUEST {
            self.open(key, header);
        } else if !self.connections.contains_key(&key) {
            self.refuse(header);
        } else if self.handle(key, header, data).is_err() {
            self.abort(key);
        } else {
            self.settle(key);
        }
    }

    /// Answers with RST, except to a RST.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.replies.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    fn full(&self) -> bool {
        self.connections.len() + self.remainders.len() >= MAX_CONNECTIONS
    }

    /// Handles a request of the guest for a connection.
    fn open(&mut self, key: Key, header: &Header) {
        if self.connections.contains_key(&key) {
            return self.abort(key);
        }
        let stream = if self.full() {
            None
        } else {
            self.host.open(key.host)
        };
        let Some(stream) = stream else {
            return self.refuse(header);
        };
        let mut connection = Connection::new(stream, false);
        connection.update_credit(header);
        self.replies
            .push_back(connection.packet(key, self.guest_cid, op::RESPONSE));
        self.connections.insert(key, connection);
        self.settle(key);
    }

    /// Handles a packet on a connection that exists. An error aborts the connection.
    fn handle(&mut self, key: Key, header: &Header, data: &[u8]) -> io::Result<()> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let connection = self.connections.get_mut(&key).ok_or_else(broken)?;
        connection.update_credit(header);
        match (header.op, connection.requested) {
            (op::RST, _) => self.close(key),
            (op::RESPONSE, true) => {
                connection.stream.accepted(key.host)?;
                connection.requested = false;
                self.enqueue(key);
            }
            (op::RW, false) if !connection.guest_done => {
                connection.send(data)?;
                if connection.stream.socket().is_none() {
                    self.enqueue(key); // nobody will say that it has an answer
                }
            }
            (op::CREDIT_UPDATE, false) => {}
            (op::CREDIT_REQUEST, false) => {
                let update = connection.packet(key, self.guest_cid, op::CREDIT_UPDATE);
                self.replies.push_back(update);
            }
            (op::SHUTDOWN, false) => self.shut_down(key, header)?,
            _ => return Err(broken()),
        }
        Ok(())
    }

    fn shut_down(&mut self, key: Key, header: &Header) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        if header.flags & SHUTDOWN_RECEIVE != 0 && !connection.guest_deaf {
            connection.guest_deaf = true;
            connection.stream.shutdown(Shutdown::Read);
        }
        if header.flags & SHUTDOWN_SEND != 0 {
            connection.guest_done = true;
            connection.flush()?;
            if connection.stream.socket().is_none() {
                self.enqueue(key); // nobody will say that it has come to its end
            }
        }
        let Some(connection) = self.connections.get(&key) else {
            return Ok(());
        };
        if connection.guest_deaf && connection.guest_done {
            // Closed by the guest: section 5.10.6.5 wants a RST as the last word.
            self.refuse(header);
            self.close(key);
        }
        Ok(())
    }

    /// Forgets a connection; what the guest sent before its end still goes to the host.
    fn close(&mut self, key: Key) {
        self.stale = true;
        if let Some(mut connection) = self.connections.remove(&key)
            && connection.guest_done
            && let Ok(false) = connection.flush()
        {
            connection.watched = Ready::default();
            self.remainders.insert(self.next_remainder, connection);
            self.next_remainder += 1;
        }
    }

    /// Ends a connection that cannot go on.
    fn abort(&mut self, key: Key) {
        self.stale = true;
        if let Some(mut connection) = self.connections.remove(&key) {
            self.replies
                .push_back(connection.packet(key, self.guest_cid, op::RST));
        }
    }

    /// Lets a connection be asked for data, if it may have some.
    fn enqueue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.queued
            && connection.sending()
        {
            connection.queued = true;
            self.queue.push_back(key);
        }
    }

    /// After a change to a connection: gives the guest credit, notes what else to watch for.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if connection.owes_credit() && !connection.guest_done {
            let update = connection.packet(key, self.guest_cid, op::CREDIT_UPDATE);
            self.replies.push_back(update);
        }
        let (wants, watched) = (connection.wants(), connection.watched);
        let more = wants.read && !watched.read || wants.write && !watched.write;
        self.stale |= more && connection.stream.socket().is_some();
    }

    /// Returns the next packet for the guest with up to `room` data bytes, which it puts into
    /// `data`.
    pub fn next(&mut self, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        data.clear();
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(key) = self.queue.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            if !connection.sending() {
                continue;
            }
            let packet = self.next_of(key, room, data);
            self.settle(key);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// Returns the next packet of one connection that is sending.
    fn next_of(&mut self, key: Key, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        let connection = self.connections.get_mut(&key)?;
        if connection.credit() == 0 {
            let ask = !std::mem::replace(&mut connection.credit_asked, true);
            return ask.then(|| connection.packet(key, self.guest_cid, op::CREDIT_REQUEST));
        }
        let room = room.min(MAX_DATA);
        data.resize(room, 0);
        let received = connection.receive(data);
        data.truncate(*received.as_ref().unwrap_or(&0));
        match received {
            Ok(0) => {
                connection.host_done = true;
                let mut end = connection.packet(key, self.guest_cid, op::SHUTDOWN);
                end.flags = SHUTDOWN_SEND;
                if connection.stream.hung_up() {
                    end.flags |= SHUTDOWN_RECEIVE;
                }
                Some(end)
            }
            Ok(n) => {
                let mut packet = connection.packet(key, self.guest_cid, op::RW);
                packet.len = n as u32; // at most MAX_DATA
                // A short read has emptied the socket: whoever watches it tells of more.
                if n == room || connection.credit() == 0 {
                    self.enqueue(key);
                }
                Some(packet)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                self.enqueue(key);
                None
            }
            Err(_) => {
                self.abort(key);
                self.replies.pop_back()
            }
        }
    }

    /// Handles what happened on the host: streams that became ready and, unless they are to
    /// be held back, streams that want a connection.
    pub fn service(&mut self, hold_requests: bool) {
        for (token, ready) in self.host.events() {
            match token {
                Token::Connection(key) => self.ready(key, ready),
                Token::Remainder(id) => {
                    if let Some(connection) = self.remainders.get_mut(&id)
                        && !matches!(connection.flush(), Ok(false))
                    {
                        self.remainders.remove(&id);
                    }
                }
            }
        }
        if !hold_requests {
            self.connect();
        }
    }

    fn ready(&mut self, key: Key, ready: Ready) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if ready.write && connection.flush().is_err() {
            return self.abort(key);
        }
        if ready.read {
            self.enqueue(key);
        }
        self.settle(key);
    }

    /// Asks the guest for the connections that the host wants.
    fn connect(&mut self) {
        let free = MAX_CONNECTIONS.saturating_sub(self.connections.len() + self.remainders.len());
        for request in self.host.requests(free) {
            let guest = request.port;
            let key = loop {
                let host = self.next_port;
                self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
                if !self.connections.contains_key(&Key { host, guest }) {
                    break Key { host, guest };
                }
            };
            let mut connection = Connection::new(request.stream, true);
            let packet = connection.packet(key, self.guest_cid, op::REQUEST);
            self.connections.insert(key, connection);
            self.replies.push_back(packet);
        }
    }

    /// Has the host watch exactly what there is to wait for, and the device be served at the
    /// latest after `timeout`.
    pub fn watch(&mut self, timeout: Option<Duration>) {
        let connections = self.connections.iter_mut();
        let connections = connections.map(|(&key, c)| (Token::Connection(key), c));
        let remainders = self.remainders.iter_mut();
        let remainders = remainders.map(|(&id, c)| (Token::Remainder(id), c));
        let mut list = Vec::new();
        for (token, connection) in connections.chain(remainders) {
            connection.watched = connection.wants();
            if let Token::Remainder(_) = token {
                connection.watched.read = false;
            }
            let want = connection.watched;
            if (want.read || want.write)
                && let Some(socket) = connection.stream.socket()
            {
                list.push(Watch {
                    token,
                    socket: socket.clone(),
                    want,
                });
            }
        }
        self.stale = false;
        self.host.watch(list, timeout);
    }

    /// Gets the device served soon, by the thread of the host's side.
    pub fn poke(&mut self) {
        self.host.poke();
    }

    /// Gets the list of watched streams renewed, if it is out of date.
    pub fn poke_if_stale(&mut self) {
        if self.stale {
            self.stale = false;
            self.host.poke();
        }
    }
}

impl Drop for Mux {
    /// A guest that is gone has sent its last bytes before a slow reader has them.
    fn drop(&mut self) {
        self.leave();
    }
}
