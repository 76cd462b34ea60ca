//! The log stream: the service's output, framed, on vsock port [`LOG_PORT`](crate::LOG_PORT).
//!
//! ```text
//! | 1 byte: 1 stdout, 2 stderr | u32, little endian: length | that many bytes |
//! ```
//!
//! A frame is a piece of a stream of bytes, not a line: lines are cut where the pipe was read.

use std::fmt;

/// Most bytes in one frame.
pub const MAX_FRAME: usize = 64 * 1024;
const HEADER: usize = 5;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where it came from.
    pub stream: Stream,
    /// 1 to [`MAX_FRAME`] bytes.
    pub bytes: Vec<u8>,
}

/// Appends output to a buffer as frames, as many as it takes.
pub fn encode(stream: Stream, bytes: &[u8], to: &mut Vec<u8>) {
    for piece in bytes.chunks(MAX_FRAME) {
        to.push(match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        // A chunk is at most MAX_FRAME long: the cast is exact.
        to.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        to.extend_from_slice(piece);
    }
}

/// What is wrong with a log stream; it is then of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Neither 1 nor 2.
    Stream(u8),
    /// 0, or more than [`MAX_FRAME`].
    Length(u32),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Stream(id) => {
                write!(f, "log frame of unknown stream {id} (1 or 2 expected)")
            }
            FrameError::Length(len) => {
                write!(f, "log frame of {len} bytes (1 to {MAX_FRAME} expected)")
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// Puts frames together again from whatever pieces the stream arrives in.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Adds what was read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole frame; `None` until there is one. The header is judged as soon
    /// as it is there, so that a hostile length is never waited for.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let stream = match header[0] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            other => return Err(FrameError::Stream(other)),
        };
        let len = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        if size == 0 || size > MAX_FRAME {
            return Err(FrameError::Length(len));
        }
        let Some(bytes) = rest.get(..size).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.bytes.drain(..HEADER + size);
        Ok(Some(Frame { stream, bytes }))
    }

    /// Whether the stream may end here, between two frames.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_whatever_pieces_the_stream_comes_in() {
        let mut wire = Vec::new();
        encode(Stream::Stdout, b"hello\n", &mut wire);
        encode(Stream::Stderr, b"oh\n", &mut wire);
        assert_eq!(&wire[..5], &[1, 6, 0, 0, 0]);
        for step in 1..=wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert!(decoder.is_empty());
            assert_eq!(
                seen,
                [
                    Frame {
                        stream: Stream::Stdout,
                        bytes: b"hello\n".to_vec()
                    },
                    Frame {
                        stream: Stream::Stderr,
                        bytes: b"oh\n".to_vec()
                    },
                ]
            );
        }
    }

    #[test]
    fn long_output_becomes_several_frames_and_no_output_none() {
        let mut wire = Vec::new();
        encode(Stream::Stdout, &[], &mut wire);
        assert!(wire.is_empty());
        let long = vec![b'x'; MAX_FRAME + 1];
        encode(Stream::Stdout, &long, &mut wire);
        let mut decoder = Decoder::default();
        decoder.push(&wire);
        assert_eq!(
            decoder.next_frame().unwrap().unwrap().bytes.len(),
            MAX_FRAME
        );
        assert_eq!(decoder.next_frame().unwrap().unwrap().bytes, b"x");
        assert_eq!(decoder.next_frame().unwrap(), None);
    }

    #[test]
    fn a_hostile_length_is_refused_before_its_bytes_are_there() {
        for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::default();
            decoder.push(&[1]);
            decoder.push(&length.to_le_bytes());
            assert_eq!(decoder.next_frame(), Err(FrameError::Length(length)));
        }
    }

    #[test]
    fn an_unknown_stream_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[3, 1, 0, 0, 0, b'x']);
        assert_eq!(decoder.next_frame(), Err(FrameError::Stream(3)));
    }

    #[test]
    fn a_truncated_stream_is_not_at_its_end() {
        let mut decoder = Decoder::default();
        decoder.push(&[1, 2, 0, 0, 0, b'x']);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(!decoder.is_empty());
    }
}
