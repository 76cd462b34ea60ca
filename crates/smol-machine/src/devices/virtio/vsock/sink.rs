//! The host's side while building: streams from the guest end in a callback, and only what that
//! returns goes back. All of it happens on the vCPU thread, so what the guest sees depends only on
//! what it did.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::host::Host;
use super::stream::Stream;

/// Takes the streams that the guest opens while building. Called on the vCPU thread with the
/// device's lock held: keep it short, and do not call into the machine.
pub trait StreamSink: Send {
    /// The guest connects to `port`; false refuses. `stream` numbers the streams from 0.
    fn open(&mut self, port: u32, stream: u64) -> bool;
    /// Bytes on an open stream, in order; what is returned goes back to the guest. While a machine
    /// is built, that must depend on nothing but what it said.
    fn data(&mut self, port: u32, stream: u64, bytes: &[u8]) -> Vec<u8>;
    /// The guest sends no more on a stream that was opened; called once.
    fn close(&mut self, port: u32, stream: u64);
}

/// Refuses every stream.
pub(super) struct Refuse;

impl StreamSink for Refuse {
    fn open(&mut self, _port: u32, _stream: u64) -> bool {
        false
    }

    fn data(&mut self, _port: u32, _stream: u64, _bytes: &[u8]) -> Vec<u8> {
        Vec::new()
    }

    fn close(&mut self, _port: u32, _stream: u64) {}
}

type Shared = Arc<Mutex<Box<dyn StreamSink>>>;

fn lock(sink: &Shared) -> MutexGuard<'_, Box<dyn StreamSink>> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A [`StreamSink`] as the host's side of the device.
pub struct SinkHost {
    sink: Shared,
    streams: u64,
}

impl SinkHost {
    /// Hands all streams to `sink`.
    pub fn new(sink: Box<dyn StreamSink>) -> Self {
        Self {
            sink: Arc::new(Mutex::new(sink)),
            streams: 0,
        }
    }
}

impl Host for SinkHost {
    fn open(&mut self, port: u32) -> Option<Box<dyn Stream>> {
        let id = self.streams;
        if !lock(&self.sink).open(port, id) {
            return None;
        }
        self.streams += 1;
        Some(Box::new(SinkStream {
            sink: self.sink.clone(),
            port,
            id,
            answer: VecDeque::new(),
            closed: false,
        }))
    }
}

struct SinkStream {
    sink: Shared,
    port: u32,
    id: u64,
    /// For the guest.
    answer: VecDeque<u8>,
    closed: bool,
}

impl SinkStream {
    fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            lock(&self.sink).close(self.port, self.id);
        }
    }
}

impl Stream for SinkStream {
    fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        let answer = lock(&self.sink).data(self.port, self.id, data);
        self.answer.extend(answer);
        Ok(data.len())
    }

    /// Returns the sink's answers; when the guest has finished, the end, so that its socket is done
    /// too.
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.answer.is_empty() {
            self.answer.read(buf)
        } else if self.closed {
            Ok(0)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    fn shutdown(&mut self, how: Shutdown) {
        if how != Shutdown::Read {
            self.close();
        }
    }
}

impl Drop for SinkStream {
    fn drop(&mut self) {
        self.close();
    }
}
