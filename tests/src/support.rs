//! Starting programs, and waiting, without ever waiting for ever.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use smol_host::emulated;
pub use smol_testing::LIMIT;

/// How often [`eventually`] tries.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns a time that is longer than any program takes: outside, a kernel is built in it.
fn program_timeout() -> Duration {
    match emulated::is_inside() {
        true => LIMIT,
        false => 6 * LIMIT,
    }
}

/// Waits until `ready` returns something; panics with `what` when it takes longer than `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(
            Instant::now() < until,
            "{what}: not within {} s",
            limit.as_secs()
        );
        thread::sleep(POLL_INTERVAL);
    }
}

// ---- Programs ----------------------------------------------------------------------------------

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Outcome {
    /// Returns its stdout; panics unless it succeeded.
    #[track_caller]
    pub fn succeed(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// Returns its stderr; panics unless it ended with this code, printed nothing and did not panic.
    #[track_caller]
    pub fn fail(self, code: i32) -> String {
        assert_eq!(
            self.code,
            Some(code),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        assert_eq!(
            self.stdout, "",
            "a failure has no result to print; stderr: {}",
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    Running::start(command).finish(program_timeout())
}

/// A program that runs; killed on drop.
pub struct Running {
    child: Child,
    stdout: CapturedStream,
    stderr: CapturedStream,
}

struct CapturedStream {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl CapturedStream {
    fn new(from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let to = text.clone();
        let reader = thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while let Ok(1..) = from.read_until(b'\n', &mut line) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Returns whether the stream has ended.
    fn is_finished(&self) -> bool {
        self.reader.is_finished()
    }

    /// Waits for its end, but not without limit: a descendant may hold the pipe. Returns all of it.
    fn end(&self) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.is_finished() && Instant::now() < until {
            thread::sleep(POLL_INTERVAL);
        }
        self.text()
    }
}

impl Running {
    /// Starts it, its output kept.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let stdout = CapturedStream::new(child.stdout.take().expect("piped"));
        let stderr = CapturedStream::new(child.stderr.take().expect("piped"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its stderr contains this text; returns all of it so far.
    #[track_caller]
    pub fn await_stderr(&self, wanted: &str) -> String {
        let what = format!("{wanted:?} on stderr");
        let found = eventually(&what, LIMIT, || {
            // In this order: what it said last is there once its end is.
            let (ended, text) = (self.stderr.is_finished(), self.stderr.text());
            match text.contains(wanted) {
                true => Some(Ok(text)),
                false => ended.then_some(Err(text)),
            }
        });
        found.unwrap_or_else(|text| panic!("it ended without {wanted:?} on stderr: {text}"))
    }

    /// Waits until it has written so many lines to stderr, or has ended.
    pub fn await_lines(&self, count: usize) {
        eventually("lines on stderr", LIMIT, || {
            let ended = self.stderr.is_finished();
            (ended || self.stderr.text().lines().count() >= count).then_some(())
        });
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process id");
        kill_process(pid, signal).expect("it is our own child and not reaped yet");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Outcome {
        let status: ExitStatus = {
            let until = Instant::now() + limit;
            loop {
                if let Some(status) = self.child.try_wait().expect("our own child") {
                    break status;
                }
                if Instant::now() > until {
                    let (out, err) = (self.stdout.text(), self.stderr.text());
                    panic!(
                        "it does not end within {} s\nstdout: {out}\nstderr: {err}",
                        limit.as_secs()
                    );
                }
                thread::sleep(Duration::from_millis(5));
            }
        };
        Outcome {
            code: status.code(),
            stdout: self.stdout.end(),
            stderr: self.stderr.end(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            let (out, err) = (self.stdout.text(), self.stderr.text());
            eprintln!("a program that ran meanwhile\nstdout: {out}\nstderr: {err}");
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

// ---- Processes ---------------------------------------------------------------------------------

/// A process. Its start time distinguishes it from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    started: String,
    /// Its name (comm).
    pub name: String,
}

impl Process {
    fn read(pid: u32) -> Option<(Self, u32)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (begin, end) = (stat.find('(')?, stat.rfind(')')?);
        let fields: Vec<&str> = stat[end + 1..].split_whitespace().collect();
        // proc_pid_stat(5), counted from field 3, the state: a zombie is no process any more.
        if matches!(fields.first(), Some(&"Z") | Some(&"X")) {
            return None;
        }
        let process = Self {
            pid,
            started: fields.get(19)?.to_string(),
            name: stat[begin + 1..end].to_owned(),
        };
        Some((process, fields.get(1)?.parse().ok()?))
    }

    /// Returns its command line, each argument with a NUL behind it; empty when it has ended.
    pub fn arguments(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default()
    }

    /// Returns whether it still runs.
    pub fn lives(&self) -> bool {
        Self::read(self.pid).is_some_and(|(process, _)| process.started == self.started)
    }
}

/// Returns every process, with the number of its parent.
pub fn processes() -> Vec<(Process, u32)> {
    let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

/// Returns the descendants of `root`.
pub fn descendants(root: u32) -> Vec<Process> {
    let all = processes();
    let mut parents = vec![root];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for (process, _) in all.iter().filter(|(_, of)| *of == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// Waits until none of these runs.
#[track_caller]
pub fn await_gone(these: &[Process], limit: Duration) {
    eventually(&format!("the end of {these:?}"), limit, || {
        these.iter().all(|process| !process.lives()).then_some(())
    });
}

// ---- Network -----------------------------------------------------------------------------------

/// Returns a TCP port that is not in use.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port can be had");
    listener.local_addr().expect("it is bound").port()
}

/// Sends `request` to a port of this host and reads the answer to its end.
pub fn try_exchange(port: u16, request: &[u8]) -> std::io::Result<Vec<u8>> {
    exchange_within(port, request, LIMIT)
}

/// As [`try_exchange`], but no byte may take longer than this.
pub fn exchange_within(port: u16, request: &[u8], limit: Duration) -> std::io::Result<Vec<u8>> {
    let limit = Some(limit);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// As [`try_exchange`], but panics on an error.
#[track_caller]
pub fn exchange(port: u16, request: &[u8]) -> Vec<u8> {
    let answer = try_exchange(port, request);
    answer.unwrap_or_else(|e| panic!("port {port}, {:?}: {e}", String::from_utf8_lossy(request)))
}

/// Makes a GET request; returns status and body.
#[track_caller]
pub fn http_get(port: u16, path: &str) -> (u16, String) {
    let answer = exchange(
        port,
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes(),
    );
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer of HTTP: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    (
        status.unwrap_or_else(|| panic!("no status: {head:?}")),
        body.to_owned(),
    )
}

/// Returns the body of a page, whose status must be 200.
#[track_caller]
pub fn page(port: u16, path: &str) -> String {
    let (status, body) = http_get(port, path);
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// Sends one command to redis; returns its answer in the encoding of the protocol (RESP).
#[track_caller]
pub fn redis(port: u16, command: &str) -> String {
    let answer = exchange(port, format!("{command}\r\nQUIT\r\n").as_bytes());
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer
        .strip_suffix("+OK\r\n")
        .unwrap_or_else(|| panic!("{command}: {answer:?}"))
        .to_owned()
}

/// Sends one statement to PostgreSQL; returns the values of its rows, as text.
#[track_caller]
pub fn postgres(port: u16, statement: &str) -> Vec<String> {
    let framed = |text: &[u8]| [&(text.len() as u32 + 4).to_be_bytes(), text].concat();
    // "Message Formats" in PostgreSQL's manual: version 3.0, a simple query, and good-bye.
    let start = framed(b"\0\x03\0\0user\0postgres\0database\0postgres\0\0");
    let query = framed(&[statement.as_bytes(), b"\0"].concat());
    let end = framed(b"");
    let answer = exchange(port, &[&start, &b"Q"[..], &query, b"X", &end].concat());
    let mut rest = answer.as_slice();
    let mut values = Vec::new();
    while let [kind, a, b, c, d, after @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4;
        let (message, next) = after.split_at(length);
        match kind {
            b'D' => values.extend(row(message)),
            b'E' => panic!("{statement}: {}", String::from_utf8_lossy(message)),
            _ => {}
        }
        rest = next;
    }
    values
}

/// Returns the values in a DataRow, none of which is null.
fn row(message: &[u8]) -> Vec<String> {
    let mut rest = &message[2..];
    let mut values = Vec::new();
    while let [a, b, c, d, after @ ..] = rest {
        let (value, next) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        values.push(String::from_utf8_lossy(value).into_owned());
        rest = next;
    }
    values
}

/// Begins a TLS 1.2 session; returns the server's random, 32 bytes, and the session's id.
#[track_caller]
pub fn tls_session(port: u16) -> (Vec<u8>, Vec<u8>) {
    let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let extension = |kind: u16, list: &[u8]| {
        let list = with_length(list);
        [&kind.to_be_bytes()[..], &with_length(&list)].concat()
    };
    // RFC 5246, 7.4.1.2: TLS 1.2, our random, no session, ECDHE-ECDSA-AES128-GCM-SHA256, no
    // compression; then P-256 (RFC 8422) and its signatures.
    let mut hello = [&[3, 3][..], &[7; 32], &[0]].concat();
    hello.extend(with_length(&[0xc0, 0x2b]));
    hello.extend([1, 0]);
    let extensions = [extension(10, &[0, 23]), extension(13, &[4, 3])].concat();
    hello.extend(with_length(&extensions));
    let handshake = [&[1, 0][..], &with_length(&hello)].concat();
    let record = [&[22, 3, 1][..], &with_length(&handshake)].concat();

    let limit = Some(LIMIT);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port is open");
    stream.set_read_timeout(limit).expect("it is not zero");
    stream.write_all(&record).expect("it takes it");
    // Headers of record and handshake, version, random, length of the session's id.
    let mut answer = [0; 5 + 4 + 2 + 32 + 1];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(
        (answer[0], answer[5], &answer[9..11]),
        (22, 2, &[3, 3][..]),
        "no ServerHello of TLS 1.2: {answer:?}"
    );
    let mut id = vec![0; answer[43].into()];
    stream.read_exact(&mut id).expect("it goes on");
    (answer[11..43].to_vec(), id)
}

/// Sends one line to our own test service; returns its answer.
#[track_caller]
pub fn ask(port: u16, line: &str) -> String {
    let answer = exchange(port, format!("{line}\n").as_bytes());
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        !answer.starts_with("error") && !answer.is_empty(),
        "{line}: {answer:?}"
    );
    answer.trim_end().to_owned()
}

// ---- Small things ------------------------------------------------------------------------------

/// Returns the seconds since the Unix epoch.
pub fn unix_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

/// Returns the value behind `key` in lines of "key value".
#[track_caller]
pub fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(k, _)| *k == key)
        .unwrap_or_else(|| panic!("no {key} in {text:?}"))
        .1
        .trim()
}

/// Returns the names in a folder; none if it does not exist.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Copies a folder to a place where nothing is.
///
/// # Panics
/// If it cannot.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
