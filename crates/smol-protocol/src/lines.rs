//! Messages as lines, and lines out of a stream.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_LINE;

/// What is wrong with a line or a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolError {
    /// Longer than its limit; the limit, in bytes.
    TooLong(usize),
    /// Not the JSON that is expected here.
    Json(String),
    /// A value that cannot be meant: where, and why.
    Value(&'static str, String),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::TooLong(limit) => write!(f, "longer than {limit} bytes"),
            ProtocolError::Json(why) => f.write_str(why),
            ProtocolError::Value(key, why) => write!(f, "{key}: {why}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// One message as a line, its newline included.
///
/// Errors: [`ProtocolError::TooLong`] over [`MAX_LINE`].
pub fn encode_line<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut line = serde_json::to_vec(message).map_err(|e| ProtocolError::Json(e.to_string()))?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(ProtocolError::TooLong(MAX_LINE));
    }
    Ok(line)
}

/// The message of one line, with or without its newline.
pub fn decode_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, ProtocolError> {
    if line.len() > MAX_LINE {
        return Err(ProtocolError::TooLong(MAX_LINE));
    }
    serde_json::from_slice(line).map_err(|e| ProtocolError::Json(e.to_string()))
}

/// Cuts a stream of bytes into lines, holding at most [`MAX_LINE`] bytes of an unfinished one.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
}

impl LineBuffer {
    /// Adds what was read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole line, without its newline; `None` until there is one.
    ///
    /// Errors: [`ProtocolError::TooLong`]; the stream is then of no more use.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        match self.bytes.iter().position(|&b| b == b'\n') {
            Some(end) if end < MAX_LINE => {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.bytes.len() < MAX_LINE => Ok(None),
            _ => Err(ProtocolError::TooLong(MAX_LINE)),
        }
    }

    /// What was read beyond the lines taken so far.
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }
}
