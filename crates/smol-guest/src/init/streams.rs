//! The two streams to the host: events, and the service's output.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::console::{self, say};
use super::platform::HostLink;
use smol_protocol::log::{self, Stream};
use smol_protocol::{CONTROL_PORT, Event, LOG_PORT, encode_line};

/// How long the host may take to accept a stream.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Output that may wait for the host; beyond it the service's pipes are not read.
const MOST_PENDING: usize = 256 * 1024;

/// The control stream. Events that cannot be sent are shown on the console instead.
#[derive(Debug)]
pub(super) struct Control {
    link: HostLink,
    stream: Option<File>,
}

impl Control {
    /// A stream yet to be connected.
    pub(super) fn new(link: HostLink) -> Self {
        Control { link, stream: None }
    }

    /// Connects, trying again until the host listens.
    pub(super) fn connect(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            match self.link.connect(CONTROL_PORT) {
                Ok(stream) => {
                    self.stream = Some(File::from(stream));
                    return Ok(());
                }
                Err(e) if is_final(&e) || Instant::now() >= deadline => return Err(e),
                Err(_) => sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Whether there is a host at the other end.
    pub(super) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Sends an event.
    pub(super) fn send(&mut self, event: &Event) {
        let Some(stream) = &mut self.stream else {
            say!("{event:?}");
            return;
        };
        let sent = encode_line(event)
            .map_err(io::Error::other)
            .and_then(|line| stream.write_all(&line));
        if let Err(e) = sent {
            say!("{event:?} (the control stream broke: {e})");
            self.stream = None;
        }
    }

    /// The stream, to read the host's answer from.
    pub(super) fn stream(&self) -> Option<&File> {
        self.stream.as_ref()
    }

    /// Closes the stream; returns when the host has seen everything (see [`HostLink::connect`]).
    pub(super) fn close(&mut self) {
        self.stream = None;
    }
}

/// There is no vsock at all: trying again is of no use.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::ENODEV | libc::EACCES)
    )
}

/// The log stream. It never blocks: what the host does not take at once waits here.
#[derive(Debug)]
pub(super) struct LogStream {
    link: HostLink,
    stream: Option<OwnedFd>,
    pending: Vec<u8>,
}

impl LogStream {
    /// A stream yet to be opened.
    pub(super) fn new(link: HostLink) -> Self {
        LogStream {
            link,
            stream: None,
            pending: Vec::new(),
        }
    }

    /// Opens it. Where the host takes no logs, output goes to the console.
    pub(super) fn open(&mut self) -> io::Result<()> {
        let stream = self.link.connect(LOG_PORT)?;
        rustix::io::ioctl_fionbio(&stream, true)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Takes output of the service, and sends what the host takes at once.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        if self.stream.is_none() {
            console::show(bytes);
            return;
        }
        log::encode(stream, bytes, &mut self.pending);
        self.send_some();
    }

    /// Whether the service should wait for the host.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= MOST_PENDING
    }

    /// The stream, if there is something to write to it.
    pub(super) fn writer(&self) -> Option<BorrowedFd<'_>> {
        self.stream
            .as_ref()
            .filter(|_| !self.pending.is_empty())
            .map(OwnedFd::as_fd)
    }

    /// Sends as much as the host takes.
    pub(super) fn send_some(&mut self) {
        let Some(stream) = &self.stream else { return };
        let mut sent = 0;
        let broken = loop {
            match self.pending.get(sent..) {
                None | Some([]) => break None,
                Some(rest) => match rustix::io::write(stream, rest) {
                    Ok(n) => sent += n,
                    Err(rustix::io::Errno::AGAIN) => break None,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => break Some(e),
                },
            }
        };
        self.pending.drain(..sent);
        if let Some(e) = broken {
            say!("the log stream broke: {e}; output goes to the console");
            self.stream = None;
            self.pending = Vec::new();
        }
    }

    /// Closes the stream; returns when the host has seen everything that was sent.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.pending = Vec::new();
    }
}
