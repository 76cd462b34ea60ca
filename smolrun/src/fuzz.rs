//! What the fuzz targets call; no interface. Each function takes what another process sends.

use std::io::Read;
use std::os::unix::net::UnixStream;

use crate::host::control;
use crate::host::instance::Record;
use crate::host::messages::Message;
use crate::run::request::ControlRequest;

/// Reads and decodes the line of a control request. Returns the line, and what it asks for.
///
/// # Errors
/// Why it is none, in words.
pub fn control_request(stream: impl Read) -> Result<(String, ControlRequest), String> {
    let line = control::read_line(stream).map_err(|e| e.to_string())?;
    let request = control::decode(&line)?;
    Ok((line, request))
}

/// Returns the line of a control request.
pub fn control_line(request: ControlRequest) -> String {
    control::encode(request)
}

/// Sends a request to what answers at the other end of `stream`.
pub fn control_answer(stream: &UnixStream, request: ControlRequest) -> Option<String> {
    let answer = control::send(stream, request).ok()?;
    Some(format!("{answer:?}"))
}

/// Reads the record of a machine and writes it again.
pub fn record(json: &[u8]) -> Option<Vec<u8>> {
    let record: Record = serde_json::from_slice(json).ok()?;
    serde_json::to_vec(&record).ok()
}

/// Reads a message of the program in the emulated host and writes it again.
pub fn message(line: &[u8]) -> Option<Vec<u8>> {
    let message: Message = serde_json::from_slice(line).ok()?;
    serde_json::to_vec(&message).ok()
}
