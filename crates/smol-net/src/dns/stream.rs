//! DNS over TCP (RFC 7766): messages behind their lengths, one after the other.

use std::time::Instant;

use super::lookup::{Asker, Lookups};
use super::message::MOST_QUERY;
use crate::conn::Conn;
use crate::core::Core;

/// A connection of the guest to the DNS server.
#[derive(Debug)]
pub struct Stream {
    conn: Conn,
    number: u64,
    /// What has come of a message.
    asked: Vec<u8>,
    /// Whether an answer is awaited.
    waiting: bool,
    /// What is left of an answer.
    answer: Vec<u8>,
}

impl Stream {
    /// Serves this connection, which has this number.
    pub fn new(conn: Conn, number: u64) -> Self {
        Stream {
            conn,
            number,
            asked: Vec::new(),
            waiting: false,
            answer: Vec::new(),
        }
    }

    /// The connection.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// Takes an answer.
    pub fn answered(&mut self, message: &[u8]) {
        if let (true, Ok(length)) = (self.waiting, u16::try_from(message.len())) {
            self.waiting = false;
            self.answer.extend(length.to_be_bytes());
            self.answer.extend(message);
        }
    }

    /// Does what can be done; returns whether the connection goes on.
    pub fn advance(&mut self, lookups: &mut Lookups, now: Instant, core: &mut Core) -> bool {
        self.conn.give_some_of(&mut self.answer);
        if !self.waiting && self.answer.is_empty() {
            match self.next_message() {
                Ok(Some(message)) => {
                    self.waiting = true;
                    let asker = Asker::Stream(self.number);
                    lookups.ask(&message, asker, now, core);
                }
                Ok(None) => {}
                Err(NoMessage) => self.conn.reset(),
            }
        }
        if self.conn.is_at_end() && !self.waiting && self.answer.is_empty() {
            self.conn.finish();
        }
        self.conn.send_on(now, &mut core.out);
        !self.conn.is_over()
    }

    /// The next message, once all of it has come.
    fn next_message(&mut self) -> Result<Option<Vec<u8>>, NoMessage> {
        loop {
            let want = match self.asked.first_chunk::<2>() {
                None => 2,
                Some(length) => match usize::from(u16::from_be_bytes(*length)) {
                    length @ 1..=MOST_QUERY => 2 + length,
                    _ => return Err(NoMessage),
                },
            };
            if want > 2 && self.asked.len() == want {
                return Ok(Some(self.asked.split_off(2))).inspect(|_| self.asked.clear());
            }
            let before = self.asked.len();
            self.conn.take_into(&mut self.asked, want);
            if self.asked.len() == before {
                return Ok(None);
            }
        }
    }
}

/// What comes is too long for a query, or is none.
struct NoMessage;
