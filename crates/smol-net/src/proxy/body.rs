//! How far the body of a request goes (RFC 9112, sections 6 and 7): what comes behind it is not passed on,
//! since it could be a second request, for something else.

use super::head::Body;

/// Digits of the length of a chunk.
const MOST_DIGITS: u8 = 15;

/// What of a body has not come yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes, and then all has come.
    Length(u64),
    /// In the length of a chunk: what it is so far, and its digits.
    Size(u64, u8),
    /// In the extension of a chunk's length.
    Extension(u64),
    /// Before the line feed behind the length.
    SizeEnd(u64),
    /// In a chunk of which so many bytes are left.
    Data(u64),
    /// Behind a chunk: before the carriage return, before the line feed.
    DataEnd(bool),
    /// Behind the last chunk: before the carriage return, before the line feed.
    End(bool),
}

/// The chunks are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotChunked;

impl Rest {
    /// All of a body.
    pub fn new(body: Body) -> Self {
        Rest(match body {
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size(0, 0),
        })
    }

    /// Whether all has come.
    pub fn is_none(self) -> bool {
        self.0 == State::Length(0)
    }

    /// Says how many of these bytes belong to the body.
    ///
    /// # Errors
    /// If the chunks are none. Trailers are not known either.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, NotChunked> {
        let mut taken = 0;
        while let Some(byte) = bytes.get(taken).filter(|_| !self.is_none()) {
            if let State::Length(left) | State::Data(left) = self.0 {
                let here = (bytes.len() - taken) as u64;
                let some = here.min(left);
                let left = left - some;
                self.0 = match self.0 {
                    State::Length(_) => State::Length(left),
                    _ if left == 0 => State::DataEnd(false),
                    _ => State::Data(left),
                };
                taken += some as usize;
                continue;
            }
            self.0 = step(self.0, *byte)?;
            taken += 1;
        }
        Ok(taken)
    }
}

fn step(state: State, byte: u8) -> Result<State, NotChunked> {
    let digit = char::from(byte).to_digit(16);
    Ok(match (state, byte) {
        (State::Size(size, digits), _) if digit.is_some() && digits < MOST_DIGITS => {
            let digit = digit.unwrap_or_default();
            State::Size(size << 4 | u64::from(digit), digits + 1)
        }
        (State::Size(size, 1..), b'\r') | (State::Extension(size), b'\r') => State::SizeEnd(size),
        (State::Size(size, 1..), b';' | b' ' | b'\t') => State::Extension(size),
        (State::Extension(size), b' '..=b'~' | b'\t') => State::Extension(size),
        (State::SizeEnd(0), b'\n') => State::End(false),
        (State::SizeEnd(size), b'\n') => State::Data(size),
        (State::DataEnd(false), b'\r') => State::DataEnd(true),
        (State::DataEnd(true), b'\n') => State::Size(0, 0),
        (State::End(false), b'\r') => State::End(true),
        (State::End(true), b'\n') => State::Length(0),
        _ => return Err(NotChunked),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_in_pieces(body: Body, bytes: &[u8], piece: usize) -> Result<usize, NotChunked> {
        let mut rest = Rest::new(body);
        let mut taken = 0;
        for piece in bytes.chunks(piece) {
            let n = rest.take(piece)?;
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        assert!(rest.is_none(), "not all has come");
        Ok(taken)
    }

    #[test]
    fn a_body_ends_where_it_says_and_what_follows_is_not_of_it() {
        let chunked = b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        let with_more = [chunked, &b"GET http://other/ HTTP/1.1\r\n\r\n"[..]].concat();
        for piece in 1..with_more.len() {
            let taken = take_in_pieces(Body::Chunked, &with_more, piece);
            assert_eq!(taken, Ok(chunked.len()), "in pieces of {piece}");
            let taken = take_in_pieces(Body::Length(7), &with_more, piece);
            assert_eq!(taken, Ok(7));
        }
        assert_eq!(take_in_pieces(Body::Length(0), b"x", 1), Ok(0));
    }

    #[test]
    fn chunks_that_others_might_read_otherwise_are_refused() {
        for bad in [
            "\r\n",
            "5\nhello",
            "x\r\n",
            "+5\r\n",
            "5\r\nhello0\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "0\r\nTrailer: x\r\n\r\n",
            "1000000000000000\r\n",
            "5;\n",
        ] {
            let mut rest = Rest::new(Body::Chunked);
            assert_eq!(rest.take(bad.as_bytes()), Err(NotChunked), "{bad:?}");
        }
    }
}
