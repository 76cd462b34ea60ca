//! The streams of a guest with a network: they are read on threads, since its packets come and go at any
//! time.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use smol_machine::devices::virtio::vsock::{StreamSink, Vsock};
use smol_protocol::net::NET_PORT;
use smol_protocol::step::LAYER_PORT;
use smol_protocol::{CONTROL_PORT, LOG_PORT};

use super::streams::GuestStreams;
use super::uplink;

/// Read at a time, bytes.
const PIECE: usize = 64 << 10;

/// The streams of a guest with a network.
pub(super) struct LiveStreams {
    /// Closed when the last thread has read its stream to the end.
    read: Receiver<()>,
}

impl LiveStreams {
    /// The device whose streams go to `streams`, and whose packets go to the socket `uplink`. As
    /// [`GuestStreams`] does, it takes the first connection to each port and no other.
    ///
    /// # Errors
    /// Those of [`Vsock::live`].
    pub(super) fn new(
        streams: Box<GuestStreams>,
        uplink: UnixStream,
    ) -> io::Result<(Vsock, LiveStreams)> {
        let (vsock, handle) = Vsock::live(smol_protocol::GUEST_CID.into(), None)?;
        let (reading, read) = channel();
        let streams = Arc::new(Mutex::new(streams));
        for port in [CONTROL_PORT, LOG_PORT, LAYER_PORT] {
            let (streams, reading) = (streams.clone(), reading.clone());
            handle.listen(port, move |socket| {
                // Without a thread the stream is closed, which the guest reports.
                let _ = thread::Builder::new()
                    .name("stream".into())
                    .spawn(move || follow(&socket, port, &streams, reading));
            });
        }
        handle.listen(NET_PORT, move |socket| {
            let _ = uplink::join(socket, uplink);
        });
        Ok((vsock, LiveStreams { read }))
    }

    /// Waits until all that the guest has sent was read. Its machine must be gone.
    pub(super) fn end(self) {
        // Nothing is ever sent: it ends when every thread has dropped its end.
        let _ = self.read.recv();
    }
}

fn follow(
    mut socket: &UnixStream,
    port: u32,
    streams: &Mutex<Box<GuestStreams>>,
    _reading: Sender<()>,
) {
    let lock = || streams.lock().unwrap_or_else(PoisonError::into_inner);
    if !lock().open(port, 0) {
        return;
    }
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = socket.read(&mut piece) {
        lock().data(port, 0, &piece[..count]);
    }
    lock().close(port, 0);
}
