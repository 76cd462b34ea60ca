//! One GET over HTTP/1.1, its answer judged by status and body. Hostile answers cost no more
//! than their limits.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use regex_lite::Regex;
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::super::supervisor::{Interrupt, Supervisor};
use super::Attempt;

const MOST_BYTES: usize = 128 * 1024;
const MOST_BODY: usize = 64 * 1024;
const MOST_HEADERS: usize = 64;
/// How much of an unexpected body is shown.
const SHOWN_BODY: usize = 200;

/// What the answer should be.
pub(super) struct Expect<'a> {
    /// Accepted status codes.
    pub(super) status: &'a [u16],
    /// Regular expression for the body.
    pub(super) body: Option<&'a str>,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Asks once.
pub(super) fn get(
    port: u16,
    path: &str,
    expect: &Expect<'_>,
    sup: &mut Supervisor,
    deadline: Instant,
) -> Attempt {
    let socket = match super::tcp::connect(port, sup, deadline)? {
        Ok(socket) => socket,
        Err(saw) => return Ok(Err(saw)),
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: smol-guest\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    // A few hundred bytes always fit into the buffer of a fresh socket.
    if rustix::io::write(&socket, request.as_bytes()) != Ok(request.len()) {
        return Ok(Err("the connection does not take a request".to_owned()));
    }
    Ok(read_answer(&socket, sup, deadline)?.and_then(|answer| judge(&answer, expect)))
}

fn judge(answer: &Answer, expect: &Expect<'_>) -> Result<(), String> {
    let status = answer.status;
    let body = String::from_utf8_lossy(&answer.body);
    let shown: String = body.chars().take(SHOWN_BODY).collect();
    let shown = shown.trim();
    if !expect.status.contains(&status) {
        return Err(if shown.is_empty() {
            format!("HTTP {status}")
        } else {
            format!("HTTP {status}: {shown}")
        });
    }
    let Some(pattern) = expect.body else {
        return Ok(());
    };
    let pattern = Regex::new(pattern).map_err(|e| format!("probe.http.body: {e}"))?;
    if pattern.is_match(&body) {
        return Ok(());
    }
    Err(format!(
        "HTTP {status}, but the body does not match: {shown}"
    ))
}

/// Reads until the answer is whole, or as much of it as is ever looked at.
fn read_answer(
    socket: &OwnedFd,
    sup: &mut Supervisor,
    deadline: Instant,
) -> Result<Result<Answer, String>, Interrupt> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8 * 1024];
    loop {
        if !sup.wait(socket.as_fd(), PollFlags::IN, deadline)? {
            return Ok(Err("no whole answer in time".to_owned()));
        }
        let at_end = match rustix::io::read(socket, &mut buffer) {
            Ok(0) => true,
            Ok(n) => {
                bytes.extend_from_slice(&buffer[..n]);
                bytes.len() >= MOST_BYTES
            }
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(e) => {
                return Ok(Err(format!(
                    "the connection broke: {}",
                    std::io::Error::from(e)
                )));
            }
        };
        match parse(&bytes, at_end) {
            Ok(Some(answer)) => return Ok(Ok(answer)),
            Ok(None) if at_end => {
                return Ok(Err("the connection was closed before an answer".to_owned()));
            }
            Ok(None) => {}
            Err(saw) => return Ok(Err(saw)),
        }
    }
}

/// Status and body of an answer, if it is whole.
pub(in super::super) fn answer(
    bytes: &[u8],
    at_end: bool,
) -> Result<Option<(u16, Vec<u8>)>, String> {
    Ok(parse(bytes, at_end)?.map(|answer| (answer.status, answer.body)))
}

/// The answer, if it is whole; at the end of the stream a body without a length is.
fn parse(bytes: &[u8], at_end: bool) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let start = match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => {
            let shown: String = String::from_utf8_lossy(bytes)
                .chars()
                .take(SHOWN_BODY)
                .collect();
            return Err(format!("not HTTP ({e}): {}", shown.trim()));
        }
    };
    let status = head.code.ok_or("not HTTP: no status")?;
    let header = |name: &str| {
        let found = head
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let raw = &bytes[start..];
    let no_body = status < 200 || status == 204 || status == 304;
    let body = if no_body {
        Some(Vec::new())
    } else if header("transfer-encoding")
        .is_some_and(|v| v.to_ascii_lowercase().contains("chunked"))
    {
        unchunk(raw, at_end)?
    } else {
        let length = header("content-length").and_then(|v| v.trim().parse::<usize>().ok());
        let enough = raw.len() >= length.unwrap_or(usize::MAX).min(MOST_BODY);
        let end = raw.len().min(length.unwrap_or(usize::MAX)).min(MOST_BODY);
        (enough || at_end).then(|| raw[..end].to_vec())
    };
    Ok(body.map(|body| Answer { status, body }))
}

/// Joins chunks; `None` until the last one, or enough of them, are there.
fn unchunk(mut raw: &[u8], at_end: bool) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    while body.len() < MOST_BODY {
        let (start, size) = match httparse::parse_chunk_size(raw) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(at_end.then_some(body)),
            Err(_) => return Err("not HTTP: a broken chunk".to_owned()),
        };
        if size == 0 {
            return Ok(Some(body));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let chunk = raw.get(start..).unwrap_or_default();
        body.extend_from_slice(&chunk[..chunk.len().min(size).min(MOST_BODY)]);
        // A chunk ends with CR LF.
        match size.checked_add(2).and_then(|end| chunk.get(end..)) {
            Some(rest) => raw = rest,
            None => return Ok(at_end.then_some(body)),
        }
    }
    body.truncate(MOST_BODY);
    Ok(Some(body))
}
