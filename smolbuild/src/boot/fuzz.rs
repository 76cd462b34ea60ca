//! What the fuzz targets call; no interface.

use std::io::Write;
use std::sync::mpsc::channel;

use regex::bytes::Regex;
use smol_machine::devices::virtio::vsock::StreamSink;

use super::process::Messages;
use super::streams::{Console, GuestStreams, Observer};
use super::{Failed, Message};

/// Takes what a guest says while it is built, on its streams by port and on its console. Returns the
/// messages that come of it, and the failure.
pub fn observe(streams: &[(u32, &[u8])], console: &[u8]) -> (Vec<Message>, Failed) {
    let (sender, messages) = channel();
    let ready = Regex::new("^ready$").ok();
    let report = move |message| sender.send(message).unwrap_or_default();
    let observer = Observer::new(Box::new(report), ready);
    let mut guest = GuestStreams::new(&observer, None);
    for (number, (port, bytes)) in (0..).zip(streams) {
        if guest.open(*port, number) {
            for piece in bytes.chunks(4096) {
                guest.data(*port, number, piece);
            }
            guest.close(*port, number);
        }
    }
    // It takes all of it, always.
    let _ = Console::new(&observer).write_all(console);
    let failure = observer.failure("none");
    drop((guest, observer));
    (messages.try_iter().collect(), failure)
}

/// Takes what the process of a machine says, in pieces of `step` bytes. Returns its messages, written
/// again; `None` for what is none.
pub fn messages(stream: &[u8], step: usize) -> Vec<Option<Vec<u8>>> {
    let mut messages = Messages::default();
    let pieces = stream.chunks(step.max(1));
    let all = pieces.flat_map(|piece| messages.push(piece));
    all.map(|message| serde_json::to_vec(&message.ok()?).ok())
        .collect()
}
