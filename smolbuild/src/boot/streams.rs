//! What comes out of a machine while it is built: console bytes, guest events, service logs.
//! All of it is taken on the vCPU thread, and nothing ever flows back.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use regex::bytes::Regex;
use smol_machine::devices::virtio::vsock::StreamSink;
use smol_machine::{Stop, StopHandle};
use smol_protocol::log::Decoder;
use smol_protocol::step::LAYER_PORT;
use smol_protocol::{Event, GuestFailure, LineBuffer, Stage};
use smol_rootfs::limits::MAX_UNPACKED;

use super::{Failed, Message, push_tail};

/// Longest console or log line that is kept, bytes.
const MAX_LINE: usize = 4096;

/// Receives messages as they happen.
pub(super) type Report = Box<dyn FnMut(Message) + Send>;

/// What the streams have told so far; shared by all of them.
#[derive(Clone)]
pub(super) struct Observer(Arc<Mutex<Seen>>);

struct Seen {
    report: Report,
    ready_line: Option<Regex>,
    handle: Option<StopHandle>,
    failure: Option<Failed>,
    /// What is done when the guest has booted.
    booted: Option<Box<dyn FnOnce() + Send>>,
    /// How long the layer of the build step is, as the guest says after it has sent it.
    layer_bytes: Option<u64>,
    console: Vec<String>,
    log: Vec<String>,
}

impl Observer {
    pub(super) fn new(report: Report, ready_line: Option<Regex>) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            report,
            ready_line,
            handle: None,
            failure: None,
            booted: None,
            layer_bytes: None,
            console: Vec::new(),
            log: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the streams can stop the machine.
    pub(super) fn attach(&self, handle: StopHandle) {
        self.lock().handle = Some(handle);
    }

    /// Has this done when the guest has booted, on the thread that takes its events.
    pub(super) fn on_booted(&self, act: impl FnOnce() + Send + 'static) {
        self.lock().booted = Some(Box::new(act));
    }

    /// Stops the machine.
    pub(super) fn stop(&self) {
        self.lock().stop(Stop::Requested);
    }

    /// The failure that the guest reported, or one with `reason`; with the last lines either way.
    pub(super) fn failure(&self, reason: &str) -> Failed {
        let mut seen = self.lock();
        let failure = seen.failure.take().unwrap_or_else(|| Failed::new(reason));
        Failed {
            console: std::mem::take(&mut seen.console),
            log: std::mem::take(&mut seen.log),
            ..failure
        }
    }

    /// Whether the guest has reported that it cannot go on.
    pub(super) fn guest_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// How long the layer is that the guest has sent, if its build step has ended well.
    pub(super) fn layer_bytes(&self) -> Option<u64> {
        let seen = self.lock();
        seen.layer_bytes.filter(|_| seen.failure.is_none())
    }

    /// Whether the guest has reported so in this stage.
    pub(super) fn failed_at(&self, stage: Stage) -> bool {
        let seen = self.lock();
        let guest = seen.failure.as_ref().and_then(|f| f.guest.as_ref());
        guest.is_some_and(|guest| guest.stage == stage)
    }

    pub(super) fn report(&self, message: Message) {
        (self.lock().report)(message);
    }
}

impl Seen {
    fn stop(&mut self, why: Stop) {
        if let Some(handle) = &self.handle {
            handle.request(why);
        }
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::Snapshot => self.stop(Stop::Snapshot),
            Event::Booted => {
                if let Some(act) = self.booted.take() {
                    act();
                }
            }
            Event::ServiceExited { status } => {
                let reason =
                    format!("the service ended before the machine was frozen, with {status}");
                let failure = GuestFailure {
                    status: Some(*status),
                    ..GuestFailure::at(Stage::Serve, reason)
                };
                self.failure.get_or_insert(Failed::of_guest(failure));
            }
            Event::StepFinished { layer_bytes } => self.layer_bytes = Some(*layer_bytes),
            Event::Failed(failure) => self.failure = Some(Failed::of_guest(failure.clone())),
            _ => {}
        }
        (self.report)(Message::Guest(event));
    }

    fn log_line(&mut self, line: String) {
        push_tail(&mut self.log, line.clone());
        (self.report)(Message::Log(line));
    }

    fn console_line(&mut self, line: &[u8]) {
        if self.ready_line.as_ref().is_some_and(|r| r.is_match(line)) {
            self.ready_line = None;
            self.stop(Stop::Snapshot);
        }
        let text = smol_cli::human::printable(String::from_utf8_lossy(line).trim_end());
        push_tail(&mut self.console, text.clone());
        #[cfg(feature = "backdoor")]
        let outcome = smol_sandbox::backdoor::obey(&text);
        (self.report)(Message::Console(text));
        #[cfg(feature = "backdoor")]
        (outcome.into_iter()).for_each(|outcome| (self.report)(Message::Console(outcome)));
    }

    fn protocol_error(&mut self, what: &str, error: impl std::fmt::Display) {
        self.fail(format!("the guest's {what} stream is unreadable: {error}"));
    }

    fn fail(&mut self, reason: String) {
        self.failure.get_or_insert(Failed::new(reason));
        self.stop(Stop::Requested);
    }
}

/// Cuts bytes into lines of bounded length.
#[derive(Default)]
struct LineSplitter(Vec<u8>);

impl LineSplitter {
    fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for byte in bytes {
            if *byte != b'\n' {
                self.0.push(*byte);
            }
            if *byte == b'\n' || self.0.len() == MAX_LINE {
                line(&self.0);
                self.0.clear();
            }
        }
    }
}

/// A console of the machine as something to write to.
pub(super) struct Console {
    observer: Observer,
    lines: LineSplitter,
}

impl Console {
    pub(super) fn new(observer: &Observer) -> Box<Self> {
        Box::new(Self {
            observer: observer.clone(),
            lines: LineSplitter::default(),
        })
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut seen = self.observer.lock();
        self.lines.push(bytes, |line| seen.console_line(line));
        // A bare guest may say that it is ready without ending the line.
        let unfinished = &self.lines.0;
        if seen
            .ready_line
            .as_ref()
            .is_some_and(|r| !unfinished.is_empty() && r.is_match(unfinished))
        {
            let line = std::mem::take(&mut self.lines.0);
            seen.console_line(&line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The guest's vsock streams: one of each port. smol-guest opens them before it starts anything, so
/// whoever comes later is somebody else. One exception: to a snapshot that cannot be taken smol-guest
/// comes back; then the service is frozen.
pub(super) struct GuestStreams {
    observer: Observer,
    control: Opened,
    log: Opened,
    layer: Opened,
    /// Where the layer of a build step goes; no other machine has one.
    layer_file: Option<LayerFile>,
    /// The guest has said that the service is frozen.
    quiesced: bool,
    events: LineBuffer,
    frames: Decoder,
    log_lines: LineSplitter,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    NotYet,
    Open,
    Closed,
}

impl GuestStreams {
    pub(super) fn new(observer: &Observer, layer_file: Option<LayerFile>) -> Box<Self> {
        Box::new(Self {
            observer: observer.clone(),
            control: Opened::NotYet,
            log: Opened::NotYet,
            layer: Opened::NotYet,
            layer_file,
            quiesced: false,
            events: LineBuffer::default(),
            frames: Decoder::default(),
            log_lines: LineSplitter::default(),
        })
    }

    fn control(&mut self, bytes: &[u8]) {
        self.events.push(bytes);
        let mut seen = self.observer.lock();
        loop {
            match self.events.next_line() {
                Ok(None) => return,
                Ok(Some(line)) => match smol_protocol::decode_line::<Event>(&line) {
                    Ok(event) => {
                        self.quiesced |= event == Event::Quiesced;
                        seen.event(event);
                    }
                    Err(e) => return seen.protocol_error("control", e),
                },
                Err(e) => return seen.protocol_error("control", e),
            }
        }
    }

    fn log(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
        let mut seen = self.observer.lock();
        loop {
            match self.frames.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => self.log_lines.push(&frame.bytes, |line| {
                    seen.log_line(smol_cli::human::printable(&String::from_utf8_lossy(line)));
                }),
                Err(e) => return seen.protocol_error("log", e),
            }
        }
    }
}

/// The layer that comes from a guest.
pub(super) struct LayerFile {
    file: File,
    bytes: u64,
    most: u64,
}

impl LayerFile {
    /// Of a guest with this much memory, bytes, in which its files were. An archive of small files is
    /// longer than they are, but not twice as long: each takes a page there.
    pub(super) fn new(file: File, memory: u64) -> Self {
        Self {
            file,
            bytes: 0,
            most: memory.saturating_mul(2).min(MAX_UNPACKED),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.most {
            return Err(format!(
                "the changed files are more than {}",
                smol_cli::human::bytes(self.most)
            ));
        }
        let written = self.file.write_all(bytes);
        written.map_err(|error| format!("the changed files cannot be written: {error}"))
    }
}

impl StreamSink for GuestStreams {
    fn open(&mut self, port: u32, _stream: u64) -> bool {
        let (stream, again) = match port {
            smol_protocol::CONTROL_PORT => (&mut self.control, self.quiesced),
            smol_protocol::LOG_PORT => (&mut self.log, false),
            LAYER_PORT if self.layer_file.is_some() => (&mut self.layer, false),
            _ => return false,
        };
        let is_guests = match *stream {
            Opened::NotYet => true,
            Opened::Open => false,
            Opened::Closed => again,
        };
        if is_guests {
            *stream = Opened::Open;
        }
        is_guests
    }

    /// Nothing ever flows back.
    fn data(&mut self, port: u32, _stream: u64, bytes: &[u8]) -> Vec<u8> {
        match port {
            smol_protocol::CONTROL_PORT => self.control(bytes),
            LAYER_PORT => {
                let written = self.layer_file.as_mut().map(|file| file.write(bytes));
                if let Some(Err(reason)) = written {
                    self.observer.lock().fail(reason);
                }
            }
            _ => self.log(bytes),
        }
        Vec::new()
    }

    fn close(&mut self, port: u32, _stream: u64) {
        match port {
            smol_protocol::CONTROL_PORT => {
                self.control = Opened::Closed;
                self.events = LineBuffer::default();
            }
            LAYER_PORT => self.layer = Opened::Closed,
            _ => self.log = Opened::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn observer(ready: Option<&str>) -> (Observer, mpsc::Receiver<Message>) {
        let (tx, rx) = mpsc::channel();
        let ready = ready.map(|r| Regex::new(r).unwrap());
        (
            Observer::new(Box::new(move |m| tx.send(m).unwrap()), ready),
            rx,
        )
    }

    #[test]
    fn a_ready_line_is_seen_even_without_its_newline() {
        let (observer, _rx) = observer(Some("^ready$"));
        let mut console = Console::new(&observer);
        console.write_all(b"starting\nrea").unwrap();
        assert!(observer.lock().ready_line.is_some(), "still waited for");
        console.write_all(b"dy").unwrap();
        assert!(observer.lock().ready_line.is_none(), "found");
    }

    #[test]
    fn a_failed_probe_is_explained() {
        let (observer, _rx) = observer(None);
        let mut streams = GuestStreams::new(&observer, None);
        let event = Event::Failed(GuestFailure {
            probe: Some(smol_protocol::Probe::Tcp { port: 80 }),
            last_saw: Some("connection refused".into()),
            ..GuestFailure::at(Stage::Ready, "not ready within 2 s".into())
        });
        Console::new(&observer)
            .write_all(b"a line of the kernel\n")
            .unwrap();
        streams.data(
            smol_protocol::CONTROL_PORT,
            0,
            &smol_protocol::encode_line(&event).unwrap(),
        );
        let failed = observer.failure("unused");
        assert_eq!(failed.reason, "not ready within 2 s");
        assert_eq!(
            failed.details(),
            [
                "stage: ready",
                "probe: tcp 80",
                "it last saw: connection refused"
            ],
            "nothing of the console: the service says what is wrong with it"
        );
    }

    #[test]
    fn one_control_and_one_log_stream_are_taken_and_no_others() {
        use smol_protocol::{CONTROL_PORT, LOG_PORT};
        let (observer, _rx) = observer(None);
        let mut streams = GuestStreams::new(&observer, None);
        assert!(streams.open(CONTROL_PORT, 0) && streams.open(LOG_PORT, 1));
        assert!(!streams.open(CONTROL_PORT, 2) && !streams.open(LOG_PORT, 2));
        streams.close(LOG_PORT, 1);
        assert!(!streams.open(LOG_PORT, 2) && !streams.open(1, 2));
        streams.close(CONTROL_PORT, 0);
        assert!(!streams.open(CONTROL_PORT, 2), "the service may be running");

        let mut streams = GuestStreams::new(&observer, None);
        assert!(streams.open(CONTROL_PORT, 0));
        let quiesced = smol_protocol::encode_line(&Event::Quiesced).unwrap();
        streams.data(CONTROL_PORT, 0, &quiesced);
        assert!(!streams.open(CONTROL_PORT, 1), "it is still open");
        streams.close(CONTROL_PORT, 0);
        assert!(streams.open(CONTROL_PORT, 1), "the snapshot has failed");
    }

    #[test]
    fn a_layer_is_taken_of_a_build_step_alone_and_once() {
        let (observer, _rx) = observer(None);
        assert!(!GuestStreams::new(&observer, None).open(LAYER_PORT, 0));
        let mut file = tempfile::tempfile().unwrap();
        let mut streams = GuestStreams::new(
            &observer,
            Some(LayerFile::new(file.try_clone().unwrap(), 4)),
        );
        assert!(streams.open(LAYER_PORT, 0) && !streams.open(LAYER_PORT, 1));
        streams.data(LAYER_PORT, 0, b"lay");
        streams.data(LAYER_PORT, 0, b"er");
        streams.close(LAYER_PORT, 0);
        assert!(!streams.open(LAYER_PORT, 2));
        let mut written = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut written).unwrap();
        assert_eq!(written, "layer");
        assert_eq!(observer.layer_bytes(), None, "the command may have failed");
        let finished = Event::StepFinished { layer_bytes: 5 };
        let finished = smol_protocol::encode_line(&finished).unwrap();
        streams.data(smol_protocol::CONTROL_PORT, 0, &finished);
        assert_eq!(observer.layer_bytes(), Some(5));
        streams.data(LAYER_PORT, 0, b"more");
        let failed = observer.failure("unused");
        assert_eq!(failed.reason, "the changed files are more than 8 B");
    }

    #[test]
    fn rubbish_on_the_control_stream_fails_the_build() {
        let (observer, _rx) = observer(None);
        GuestStreams::new(&observer, None).data(smol_protocol::CONTROL_PORT, 0, b"{}\n");
        assert!(observer.guest_failed());
    }
}
