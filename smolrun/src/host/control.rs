//! Control requests to a running machine: through its control socket, from signals, and through
//! the channel into the emulated host.
//!
//! ```text
//! client                                                           the machine's process
//! {"version":1,"request":{"stop":{"grace_ms":10000}}}  ---->
//!                                                      <----  {"version":1,"reply":"ok"}
//!                                                      or     {"version":1,"reply":{"error":"..."}}
//! from here on the connection is the request's
//! ```
//! Requests and replies are JSON, one a line; the client sends nothing more before the reply. After
//! it, the connection means what the request says: that of a stop is kept open until the process
//! ends, by which the client sees that.
//!
//! Every line carries a version. A process refuses requests of another version, and requests that
//! it does not know, and says so; its reply tells the client which version it speaks. Into the
//! emulated host requests go alone: there the processes are of one version, and what is refused is
//! reported as any other note.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use smol_cli::Interrupt;

use crate::run::request::{ControlRequest, GRACE};

/// Version of requests and replies: grows with each change that another version would not
/// understand.
pub const VERSION: u32 = 1;

/// Longest line, bytes.
const MAX_LINE: usize = 4096;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait before the next connection is taken, when one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A line with a request.
#[derive(Serialize, Deserialize)]
struct RequestLine<T> {
    version: u32,
    request: T,
}

/// A line with a reply.
#[derive(Serialize, Deserialize)]
struct ReplyLine<T> {
    version: u32,
    reply: T,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// The request is being carried out.
    Ok,
    /// It is not, and why.
    Error(String),
}

/// What a machine's process says to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is being carried out, and the connection is its own.
    Accepted,
    /// The request is not carried out, and why.
    Refused(String),
    /// The process speaks another version; `None` if it is one without versions.
    OtherVersion(Option<u32>),
}

/// Returns the line of a request.
pub fn encode(request: ControlRequest) -> String {
    let version = VERSION;
    to_line(&RequestLine { version, request })
}

fn to_line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("it has string keys only") + "\n"
}

/// Returns the request of a line.
///
/// # Errors
/// If there is none of our version, in words.
pub fn decode(line: &str) -> Result<ControlRequest, String> {
    let versions: RequestLine<IgnoredAny> = parse(line)?;
    if versions.version != VERSION {
        return Err(format!(
            "this machine's smolrun takes control requests of version {VERSION}, not {}",
            versions.version
        ));
    }
    parse::<RequestLine<ControlRequest>>(line).map(|line| line.request)
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|e| format!("not a control request: {e}"))
}

/// Sends a request to the process at the other end of `stream`, and waits for its answer.
///
/// # Errors
/// If it does not answer.
pub fn send(mut stream: &UnixStream, request: ControlRequest) -> io::Result<Answer> {
    stream.write_all(encode(request).as_bytes())?;
    let line = read_line(stream)?;
    let version = serde_json::from_str::<ReplyLine<IgnoredAny>>(&line).ok();
    let version = version.map(|line| line.version);
    if version != Some(VERSION) {
        return Ok(Answer::OtherVersion(version));
    }
    let line: ReplyLine<Reply> = serde_json::from_str(&line)?;
    Ok(match line.reply {
        Reply::Ok => Answer::Accepted,
        Reply::Error(why) => Answer::Refused(why),
    })
}

/// Reads a line and not a byte more: what follows is the request's.
pub(crate) fn read_line(mut stream: impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_LINE && line.last() != Some(&b'\n') {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => line.extend(byte),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    String::from_utf8(line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The control socket of a machine.
pub struct ControlSocket(UnixListener);

impl ControlSocket {
    /// Takes a socket that is bound already. Connections wait until they are served.
    pub fn new(listener: UnixListener) -> Self {
        Self(listener)
    }

    /// Takes requests and passes them to `take`, on a thread of its own, until the process ends.
    pub fn serve(self, take: impl Fn(ControlRequest) + Send + 'static) {
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in self.0.incoming() {
                match stream {
                    Ok(stream) => open.extend(answer(stream, &take)),
                    Err(_) => thread::sleep(ACCEPT_PAUSE),
                }
            }
        });
    }
}

/// Serves a connection up to the reply. Returns it if it is to stay open.
fn answer(mut stream: UnixStream, take: impl Fn(ControlRequest)) -> Option<UnixStream> {
    let _ = stream.set_read_timeout(Some(REQUEST_TIMEOUT));
    let line = read_line(&stream).map_err(|e| format!("not a control request: {e}"));
    let request = line.and_then(|line| decode(&line));
    let reply = match &request {
        Ok(_) => Reply::Ok,
        Err(why) => Reply::Error(why.clone()),
    };
    let version = VERSION;
    // A client that is gone has made its request all the same.
    let _ = stream.write_all(to_line(&ReplyLine { version, reply }).as_bytes());
    match request.ok()? {
        request @ ControlRequest::Stop { .. } => {
            take(request);
            Some(stream)
        }
    }
}

/// On a thread of its own: the first SIGINT or SIGTERM becomes a request to stop. (A second SIGINT
/// ends the process, and with it the machine.)
pub fn from_signals(interrupt: &Interrupt, take: impl Fn(ControlRequest) + Send + 'static) {
    let interrupt = interrupt.clone();
    thread::spawn(move || {
        while let Ok(false) = interrupt.wait(None) {}
        take(ControlRequest::stop(GRACE));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const STOP: ControlRequest = ControlRequest::Stop { grace_ms: 2500 };

    #[test]
    fn a_request_survives_its_line() {
        let line = "{\"version\":1,\"request\":{\"stop\":{\"grace_ms\":2500}}}\n";
        assert_eq!(encode(STOP), line);
        assert_eq!(decode(line), Ok(STOP));
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (line, wanted) in [
            ("", "EOF"),
            ("stop", "expected value"),
            ("{}", "missing field `version`"),
            ("{\"stop\":{\"grace_ms\":1}}", "missing field `version`"),
            ("{\"version\":1}", "missing field `request`"),
            ("{\"version\":-1,\"request\":0}", "invalid value"),
            (
                "{\"version\":1,\"request\":{\"go\":1}}",
                "unknown variant `go`, expected `stop`",
            ),
            (
                "{\"version\":1,\"request\":{\"stop\":{}}}",
                "missing field `grace_ms`",
            ),
            (
                "{\"version\":1,\"request\":{\"stop\":{\"grace_ms\":-1}}}",
                "invalid value",
            ),
            (
                "{\"version\":2,\"request\":{\"go\":1}}",
                "this machine's smolrun takes control requests of version 1, not 2",
            ),
        ] {
            let why = decode(line).unwrap_err();
            assert!(why.contains(wanted), "{line}: {why}");
        }
    }

    /// The answer of a process that replies with this line, and the line that it got.
    fn answer_of(reply: &str) -> (io::Result<Answer>, String) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(reply.as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        (send(&ours, STOP), read_line(theirs).unwrap())
    }

    #[test]
    fn a_reply_takes_nothing_of_what_follows_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = b"{\"version\":1,\"reply\":\"ok\"}\nstream";
        theirs.write_all(sent).unwrap();
        assert_eq!(send(&ours, STOP).unwrap(), Answer::Accepted);
        let mut rest = [0; 6];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"stream");
    }

    #[test]
    fn a_process_of_another_version_is_known_by_its_reply() {
        for (reply, wanted) in [
            ("{\"version\":1,\"reply\":\"ok\"}\n", Answer::Accepted),
            (
                "{\"version\":1,\"reply\":{\"error\":\"no\"}}\n",
                Answer::Refused("no".into()),
            ),
            (
                "{\"version\":2,\"reply\":{\"later\":[]}}\n",
                Answer::OtherVersion(Some(2)),
            ),
            ("no order: expected value\n", Answer::OtherVersion(None)),
        ] {
            let (answer, sent) = answer_of(reply);
            assert_eq!(answer.unwrap(), wanted, "{reply}");
            assert_eq!(sent, encode(STOP));
        }
        for reply in ["", "{\"version\":1,\"reply\":\"what\"}\n"] {
            assert!(answer_of(reply).0.is_err(), "{reply}");
        }
    }

    #[test]
    fn a_request_is_accepted_and_its_connection_stays_open() {
        let (client, server) = UnixStream::pair().unwrap();
        let (give, given) = channel();
        let server =
            thread::spawn(move || answer(server, move |request| give.send(request).unwrap()));
        assert_eq!(send(&client, STOP).unwrap(), Answer::Accepted);
        let mut kept = server.join().unwrap().unwrap();
        assert_eq!(given.recv(), Ok(STOP));
        client.set_nonblocking(true).unwrap();
        let open = (&client).read(&mut [0]).unwrap_err();
        assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
        kept.write_all(b"more").unwrap();
        drop(kept);
        client.set_nonblocking(false).unwrap();
        let mut rest = String::new();
        (&client).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "more");
    }

    #[test]
    fn a_line_without_an_end_is_refused_and_closed() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[b' '; MAX_LINE]).unwrap();
        assert!(answer(server, |_| panic!("no request")).is_none());
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        assert!(
            reply.starts_with("{\"version\":1,\"reply\":{\"error\":\"not a control request"),
            "{reply}"
        );
    }
}
