//! Where the guest's output goes: the service's to our own stdout and stderr and to the
//! instance's log, the consoles' last lines into memory, for error messages.

#![expect(clippy::disallowed_methods, reason = "the service's output, as it is")]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use smol_protocol::log::Stream;

use crate::run::metrics::Moment;

/// How many bytes a long log keeps at least; it takes up to twice as much.
const LOG_KEEP: u64 = 16 << 20;
/// Holes are made of whole pages.
const PAGE: u64 = 4096;
/// Console lines that are kept, and how much of each.
const TAIL_LINES: usize = 30;
const TAIL_LINE: usize = 200;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The service's output.
pub struct Output {
    log: Option<Mutex<Log>>,
    standard: bool,
    closed: AtomicBool,
}

impl Output {
    /// Makes an output to this process's stdout and stderr if `standard`, and to the log if there is one.
    pub fn new(standard: bool, log: Option<Log>) -> Self {
        Self {
            log: log.map(Mutex::new),
            standard,
            closed: AtomicBool::new(false),
        }
    }

    /// Drops all output from here on, of a machine that has failed.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether output is dropped.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Writes a line of smolrun's own into the log.
    pub fn note(&self, text: &str) {
        if let Some(log) = &self.log {
            lock(log).append(format!("{text}\n").as_bytes());
        }
    }

    /// Writes output. A slow reader slows the service down; one that has closed does not end it.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        if self.is_closed() {
            return;
        }
        // First to the user, who waits for it.
        if self.standard {
            let _ = match stream {
                Stream::Stdout => to(io::stdout().lock(), bytes),
                Stream::Stderr => to(io::stderr().lock(), bytes),
            };
        }
        if let Some(log) = &self.log {
            lock(log).append(bytes);
        }
    }
}

fn to(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// An instance's log. It lies in memory (the runtime folder is a tmpfs), so it is bounded, whoever
/// writes to it: the oldest part becomes a hole, which readers skip.
pub struct Log {
    file: File,
    hole: u64,
    keep: u64,
}

impl Log {
    /// A new log.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            file,
            hole: 0,
            keep: LOG_KEEP,
        })
    }

    /// Returns the file, for output that is not written by this: it counts, too.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn append(&mut self, bytes: &[u8]) {
        // A full disk costs log lines, not the service.
        let _ = self.file.write_all(bytes);
        let len = self.file.metadata().map_or(0, |meta| meta.len());
        if len.saturating_sub(self.hole) > 2 * self.keep {
            let end = (len - self.keep) / PAGE * PAGE;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.hole = match fallocate(&self.file, how, 0, end) {
                Ok(()) => end,
                // The file system makes no holes: the log begins anew.
                Err(_) => self.file.set_len(0).map_or(end, |()| 0),
            };
        }
    }
}

/// The last lines that the guest printed on its consoles.
#[derive(Clone, Default)]
pub struct Tail(Arc<Mutex<TailLines>>);

#[derive(Default)]
struct TailLines {
    whole: VecDeque<String>,
    last: Vec<u8>,
}

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut lines = lock(&self.0);
        for &byte in bytes {
            match byte {
                b'\n' => lines.end_line(),
                b'\r' => {}
                _ if lines.last.len() < TAIL_LINE => lines.last.push(byte),
                _ => {}
            }
        }
    }

    /// Returns the last lines below a heading, if there are any.
    pub fn last_lines(&self) -> Option<String> {
        let mut lines = lock(&self.0);
        lines.end_line();
        if lines.whole.is_empty() {
            return None;
        }
        let mut text = "last lines of the console:".to_owned();
        for line in &lines.whole {
            text += "\n  ";
            text += line;
        }
        Some(text)
    }
}

impl TailLines {
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.last);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if self.whole.len() == TAIL_LINES {
            self.whole.pop_front();
        }
        self.whole
            .push_back(String::from_utf8_lossy(&line).into_owned());
    }
}

/// What a console of the guest is connected to.
pub struct Console {
    /// Keeps its last lines.
    pub tail: Tail,
    /// Where all of it is shown, too.
    pub echo: Option<(Arc<Output>, Stream)>,
    /// Set at the first byte.
    pub first: Arc<OnceLock<Moment>>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some((output, stream)) = &self.echo {
            output.write(*stream, bytes);
        }
        self.first.get_or_init(Moment::now);
        self.tail.push(bytes);
        #[cfg(feature = "backdoor")]
        super::backdoor::obey(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_long_log_keeps_its_end_and_its_offsets_and_gives_its_beginning_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::create(&path).unwrap();
        log.keep = 64 << 10;
        for n in 0..4000 {
            log.append(format!("line {n:<95}\n").as_bytes());
        }
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 4000 * 101);
        assert!(
            meta.blocks() * 512 <= 3 * log.keep,
            "{} blocks",
            meta.blocks()
        );
        let text = std::fs::read(&path).unwrap();
        assert!(text.ends_with(format!("line {:<95}\n", 3999).as_bytes()));
        assert_eq!(text[0], 0);
    }

    #[test]
    fn a_log_is_bounded_whatever_writes_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::create(&path).unwrap();
        log.keep = 64 << 10;
        // Notes, the service's output, and what comes by a descriptor of its own, as stderr does.
        let mut stderr = log.file().try_clone().unwrap();
        let output = Output::new(false, Some(log));
        for n in 0..2000 {
            output.note(&format!("smolrun: warning {n:<80}"));
            output.write(Stream::Stdout, &[b'x'; 100]);
            stderr.write_all(&[b'y'; 100]).unwrap();
            let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
            assert!(taken <= 3 * (64 << 10), "{taken}");
        }
    }

    #[test]
    fn a_full_disk_costs_lines_of_the_log_and_nothing_else() {
        let full = || File::options().append(true).open("/dev/full").unwrap();
        assert!(full().write_all(b"x").is_err());
        let log = Log {
            file: full(),
            hole: 0,
            keep: 1,
        };
        let output = Output::new(false, Some(log));
        output.note("smolrun: a note");
        output.write(Stream::Stderr, b"the service");
    }

    #[test]
    fn the_tail_holds_the_last_lines_of_a_console() {
        let tail = Tail::default();
        assert_eq!(tail.last_lines(), None);
        for n in 0..100 {
            tail.push(format!("\r\nline {n}").as_bytes());
        }
        tail.push(&[b'x'; 1000]);
        let text = tail.last_lines().unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "last lines of the console:");
        assert_eq!(lines.len(), 1 + TAIL_LINES);
        assert!(lines[30].starts_with("  line 99xxx"));
        assert_eq!(lines[30].len(), 2 + TAIL_LINE);
    }
    #[test]
    fn a_closed_output_drops_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let output = Output::new(false, Some(Log::create(&path).unwrap()));
        output.write(Stream::Stdout, b"before");
        output.close();
        output.write(Stream::Stdout, b"after");
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
    }
}
