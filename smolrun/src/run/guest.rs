//! The streams between this process and smol-guest: events and logs from the guest, its identity and
//! requests to it.
//!
//! Any process in the guest may open vsock connections to the host. Those of smol-guest are told from
//! them by their order: it opens both streams before anything else runs in the guest, at a cold boot
//! before the service is started, in a restored machine before it is thawed. So the first connection to
//! each port is smol-guest's, and every later one is refused. This holds against whatever cannot take
//! control of smol-guest itself; root in the guest can.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use smol_machine::devices::virtio::vsock::VsockHandle;
use smol_protocol::log::Decoder;
use smol_protocol::{
    self, CONTROL_PORT, Event as GuestEvent, LOG_PORT, LineBuffer, REQUEST_PORT, Reply, Request,
    RestoreParams,
};

use crate::run::event::Event;
use crate::run::identity;
use crate::run::output::Output;

/// How long the guest may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The threads that serve the guest's streams.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl Streams {
    /// Listens for the guest's control stream and log stream, one of each.
    pub fn listen(
        vsock: &VsockHandle,
        cpus: u32,
        output: &Arc<Output>,
        sender: &SyncSender<Event>,
    ) -> Self {
        let streams = Self::default();
        let (threads, sender) = (streams.clone(), sender.clone());
        vsock.listen(CONTROL_PORT, move |stream| {
            threads.serve("control", move || follow_control(stream, cpus, &sender));
        });
        let (threads, output) = (streams.clone(), output.clone());
        vsock.listen(LOG_PORT, move |stream| {
            threads.serve("log", move || follow_log(stream, &output));
        });
        streams
    }

    /// Serves a stream on a thread of its own.
    fn serve(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work);
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.extend(thread.ok());
    }

    /// Whether all of them have come to their end, which they do when the machine is gone and
    /// everything it said was taken.
    pub fn are_done(&self) -> bool {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().all(JoinHandle::is_finished)
    }
}

/// Reads events to the end of the stream. A restored guest is sent its identity by this thread: the
/// service waits for that.
fn follow_control(mut stream: UnixStream, cpus: u32, sender: &SyncSender<Event>) {
    let mut lines = LineBuffer::default();
    let mut restored = false;
    let mut buffer = [0; 4096];
    let outcome: Result<(), String> = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => lines.push(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // The machine has ended.
            Err(_) => break Ok(()),
        }
        let answer = || match std::mem::replace(&mut restored, true) {
            false => identity::params(cpus).map_err(|e| format!("{e:#}")),
            true => Err("the guest said twice that it was restored".to_owned()),
        };
        if let Err(why) = take_events(&mut lines, &mut stream, answer, sender) {
            break Err(why);
        }
    };
    if let Err(why) = outcome {
        let _ = sender.send(Event::Broken(why));
    }
}

fn take_events(
    lines: &mut LineBuffer,
    stream: &mut UnixStream,
    mut answer: impl FnMut() -> Result<RestoreParams, String>,
    sender: &SyncSender<Event>,
) -> Result<(), String> {
    let garbled = |e| format!("the guest sent an invalid event: {e}");
    while let Some(line) = lines.next_line().map_err(garbled)? {
        let event: GuestEvent = smol_protocol::decode_line(&line).map_err(garbled)?;
        if event == GuestEvent::Restored {
            let line = smol_protocol::encode_line(&answer()?).map_err(garbled)?;
            let sent = stream.write_all(&line);
            sent.map_err(|e| format!("cannot give the guest its identity: {e}"))?;
        }
        if sender.send(Event::Guest(event)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn follow_log(mut stream: UnixStream, output: &Output) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => decoder.push(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        // What is no frame closes the log stream; the machine runs on without it.
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => output.write(frame.stream, &frame.bytes),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Asks the guest to stop its service, whose end is then reported on the control stream.
///
/// # Errors
/// If the guest cannot be reached or does not do it.
pub fn shut_down(vsock: &VsockHandle, grace_ms: u64) -> io::Result<()> {
    let invalid = |e| io::Error::new(ErrorKind::InvalidData, e);
    let mut stream = vsock.connect_timeout(REQUEST_PORT, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(
        &smol_protocol::encode_line(&Request::Shutdown { grace_ms }).map_err(invalid)?,
    )?;
    let mut lines = LineBuffer::default();
    let mut buffer = [0; 512];
    loop {
        if let Some(line) = lines.next_line().map_err(invalid)? {
            return match smol_protocol::decode_line(&line).map_err(invalid)? {
                Reply::Ok => Ok(()),
                reply => Err(io::Error::other(format!("{reply:?}"))),
            };
        }
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => lines.push(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_protocol::Stage;
    use smol_protocol::log::{Stream, encode};
    use std::sync::mpsc::sync_channel;
    use std::thread;

    fn control() -> (UnixStream, std::sync::mpsc::Receiver<Event>) {
        let (guest, ours) = UnixStream::pair().unwrap();
        let (sender, received) = sync_channel(16);
        thread::spawn(move || follow_control(ours, 3, &sender));
        (guest, received)
    }

    fn send(guest: &mut UnixStream, event: &GuestEvent) {
        guest
            .write_all(&smol_protocol::encode_line(event).unwrap())
            .unwrap();
    }

    #[test]
    fn a_restored_guest_is_told_who_it_is() {
        let (mut guest, received) = control();
        send(&mut guest, &GuestEvent::Restored);
        let mut lines = LineBuffer::default();
        let line = loop {
            let mut buffer = [0; 4096];
            let n = guest.read(&mut buffer).unwrap();
            lines.push(&buffer[..n]);
            if let Some(line) = lines.next_line().unwrap() {
                break line;
            }
        };
        let params: RestoreParams = smol_protocol::decode_line(&line).unwrap();
        assert_eq!(params.online_cpus, 3);
        let sample = "5a".repeat(16);
        send(&mut guest, &GuestEvent::Resumed { sample });
        drop(guest);
        let events: Vec<_> = received.iter().collect();
        assert!(matches!(
            events[..],
            [
                Event::Guest(GuestEvent::Restored),
                Event::Guest(GuestEvent::Resumed { .. })
            ]
        ));
    }

    #[test]
    fn a_guest_gets_one_identity() {
        let (mut guest, received) = control();
        send(&mut guest, &GuestEvent::Restored);
        send(&mut guest, &GuestEvent::Restored);
        drop(received.recv().unwrap());
        let event = received.recv().unwrap();
        assert!(matches!(&event, Event::Broken(why) if why.contains("twice")));
        assert!(received.recv().is_err());
    }

    #[test]
    fn a_garbled_control_stream_is_told_and_closed() {
        for garbage in [
            &b"{\"nonsense\":1}\n"[..],
            b"\xff\n",
            &[b'x'; smol_protocol::MAX_LINE + 1],
        ] {
            let (mut guest, received) = control();
            // It may be closed before everything is written.
            let _ = guest.write_all(garbage);
            let event = received.recv().unwrap();
            assert!(matches!(&event, Event::Broken(why) if why.contains("an invalid event")));
            assert!(received.recv().is_err());
        }
    }

    #[test]
    fn a_warning_reaches_the_supervisor() {
        let (mut guest, received) = control();
        let warning = GuestEvent::Warning {
            stage: Stage::Serve,
            reason: "hm".into(),
        };
        send(&mut guest, &warning);
        assert!(matches!(received.recv().unwrap(), Event::Guest(event) if event == warning));
    }

    #[test]
    fn the_services_output_is_unframed_into_the_log_up_to_the_first_garbage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let output = Output::new(false, Some(crate::run::output::Log::create(&path).unwrap()));
        let mut wire = Vec::new();
        encode(Stream::Stdout, b"out\n", &mut wire);
        encode(Stream::Stderr, b"err\n", &mut wire);
        wire.extend([9; 20]);
        let (mut guest, ours) = UnixStream::pair().unwrap();
        guest.write_all(&wire).unwrap();
        drop(guest);
        follow_log(ours, &output);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "out\nerr\n");
    }
}
