//! A registry, or another server, whose answers a test makes: it can be wrong, slow, cut off, endless. HTTP/1.1 over
//! loopback, a thread a connection; the standard library only.
//!
//! [`Contents`] answers as a registry should; a test changes what it answers. [`Registry::requests`]
//! has what was asked for, in its order.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Header lines; names in lower case.
    pub headers: Vec<(String, String)>,
    /// What was sent.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns the value of a header, whose name is in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(have, _)| have == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the target without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns the first byte that a `Range` asks for.
    #[must_use]
    pub fn range(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// How the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its last byte.
    Whole,
    /// The connection is cut after so many bytes.
    Cut(usize),
    /// Nothing comes after so many bytes, and the connection stays.
    Stall(usize),
    /// Never: it begins again and again.
    Never,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200, ...
    pub status: u16,
    /// Header lines, without `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What `Content-Length` says, if it is to be there.
    pub len: Option<u64>,
    /// How the body ends.
    pub end: End,
}

impl Answer {
    /// Returns one with a status and a body.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Answer {
            status,
            headers: Vec::new(),
            len: Some(body.len() as u64),
            body,
            end: End::Whole,
        }
    }

    /// Returns one with these bytes, or the part of them that the request wants.
    #[must_use]
    pub fn of(bytes: &[u8], request: &Request) -> Self {
        match request.range() {
            None => Answer::new(200, bytes),
            Some(first) if first < bytes.len() => {
                let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
                Answer::new(206, &bytes[first..]).header("Content-Range", range)
            }
            Some(_) => {
                let range = format!("bytes */{}", bytes.len());
                Answer::new(416, "").header("Content-Range", range)
            }
        }
    }

    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Says how the body ends.
    #[must_use]
    pub fn end(mut self, end: End) -> Self {
        if end == End::Never {
            self.len = None;
        }
        self.end = end;
        self
    }

    /// Says what `Content-Length` says.
    #[must_use]
    pub fn len(mut self, len: Option<u64>) -> Self {
        self.len = len;
        self
    }

    /// Returns a redirect.
    #[must_use]
    pub fn redirect(to: impl Into<String>) -> Self {
        Answer::new(307, "").header("Location", to)
    }

    /// Returns a 401 that wants a token of this server.
    #[must_use]
    pub fn wants_token(realm: &str) -> Self {
        let value = format!(r#"Bearer realm="{realm}",service="test",scope="repository:x:pull""#);
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Answer::new(401, body).header("WWW-Authenticate", value)
    }
}

/// What a registry has.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Manifests: media type and bytes, by the end of their path: `a/b/manifests/1.0`.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// Blobs by their digest, for every repository.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// Answers as a registry should.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Answer {
        let path = request.path().trim_start_matches("/v2/");
        if let Some((media_type, bytes)) = self.manifests.get(path) {
            return Answer::new(200, bytes.clone()).header("Content-Type", media_type.as_str());
        }
        let digest = path.split("/blobs/").nth(1).unwrap_or_default();
        let Some(blob) = self.blobs.get(digest) else {
            let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"unknown"}]}"#;
            return Answer::new(404, body).header("Content-Type", "application/json");
        };
        Answer::of(blob, request)
    }
}

type Behaviour = dyn Fn(&Request, usize) -> Answer + Send + Sync;

/// A registry that answers until this is dropped.
pub struct Registry {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
}

impl Registry {
    /// Starts one that answers as `behaviour` says, which is given each request and the number of those
    /// before it.
    ///
    /// # Panics
    /// If this host has no port to give.
    #[must_use]
    pub fn start(behaviour: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let (log, is_over) = (requests.clone(), over.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (log, behaviour) = (log.clone(), behaviour.clone());
                thread::spawn(move || serve(stream, &log, &*behaviour));
            }
        });
        Self {
            address,
            requests,
            over,
        }
    }

    /// Returns `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns the requests that came, in their order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

/// Serves one connection, until one of the two has enough.
fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, behaviour: &Behaviour) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        // The first byte of a TLS handshake: answered as Go's server does.
        if reader.fill_buf().ok()?.first()? == &0x16 {
            let _ = writer.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nno TLS here\n");
            return None;
        }
        let request = read(&mut reader)?;
        let number = {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push(request.clone());
            log.len() - 1
        };
        let answer = behaviour(&request, number);
        write(&mut writer, &answer)?;
        match answer.end {
            End::Whole if answer.len == Some(answer.body.len() as u64) => {}
            End::Stall(_) => {
                // Until the client closes it.
                let _ = reader.read(&mut [0]);
                return None;
            }
            _ => return None,
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = || {
        let mut line = String::new();
        let read = reader.by_ref().take(64 << 10).read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut request = Request {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    let len = request
        .header("content-length")
        .unwrap_or("0")
        .parse()
        .ok()?;
    reader.take(len).read_to_end(&mut request.body).ok()?;
    Some(request)
}

fn write(writer: &mut impl Write, answer: &Answer) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Answer\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(len) = answer.len {
        head += &format!("Content-Length: {len}\r\n");
    }
    head += "\r\n";
    writer.write_all(head.as_bytes()).ok()?;
    let part = match answer.end {
        End::Cut(len) | End::Stall(len) => &answer.body[..len.min(answer.body.len())],
        End::Whole | End::Never => &answer.body,
    };
    writer.write_all(part).ok()?;
    while answer.end == End::Never && !part.is_empty() {
        writer.write_all(part).ok()?;
    }
    writer.flush().ok()
}
