//! A machine from its first instruction to its last: one loop takes, in order, what the guest
//! says, what it is told to do, and its end.
//!
//! ```text
//! control stream --\                        /--> ports open, "restored in ..."
//! orders ----------+--> Event --> loop --+--> request to shut down, then force
//! the machine -----/                        \--> exit code, or why not
//! ```
//! The machine runs on the thread that made it, so that nothing has to be waited for between the
//! two; the loop gets a thread of its own.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use smol_cli::{ExitKind, Failure};
use smol_machine::devices::virtio::vsock::VsockHandle;
use smol_machine::{Stop, StopHandle};
use smol_protocol::{Event as GuestEvent, ExitStatus};

use crate::images::lazy::FirstStart;
use crate::run::event::Event;
use crate::run::guest::{self, Streams};
use crate::run::metrics::{Metrics, Moment};
use crate::run::output::{Output, Tail};
use crate::run::ports::{self, Bound};
use crate::run::report::{End, Report, Up};
use crate::run::request::ControlRequest;
use crate::run::spec::RunSpec;
use crate::run::start::{self, Ready, Wires};

/// How long a guest may take to its first sign of life, and a restored one to run on. Milliseconds
/// are usual; a machine with much memory takes minutes to boot in an emulated host.
const SIGN_OF_LIFE: Duration = Duration::from_secs(300);
/// How long past the grace time a guest may take to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last words of a guest that has reset itself may be under way.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// The guest goes first: where processors are few, what nobody waits for would take its time.
const HEAD_START: Duration = Duration::from_millis(3);
/// What may wait for the loop; a guest that floods it with events waits.
const QUEUE: usize = 64;

/// Where what happens is sent to.
pub struct Supervisor {
    events: SyncSender<Event>,
    happened: Receiver<Event>,
}

impl Supervisor {
    /// One that nothing has happened to.
    pub fn new() -> Self {
        let (events, happened) = sync_channel(QUEUE);
        Self { events, happened }
    }

    /// Takes orders, from any thread, before and during [`Supervisor::run`].
    pub fn orders(&self) -> impl Fn(ControlRequest) + Send + 'static + use<> {
        let events = self.events.clone();
        move |order| drop(events.send(Event::Request(order)))
    }

    /// Runs the machine to its end. `started` is called when its first instruction is under way,
    /// and with it all that need not come before; `running` when the service runs.
    ///
    /// # Errors
    /// If the machine cannot be made, or ends in another way than it should.
    pub fn run(
        self,
        spec: &RunSpec,
        first: Option<&FirstStart>,
        output: Arc<Output>,
        report: Arc<dyn Report>,
        started: impl FnOnce() + Send,
        running: impl FnOnce(&Up) + Send,
    ) -> anyhow::Result<End> {
        // A port that is taken is told before anything is started.
        let ports = ports::bind(&spec.ports)?;
        let begin = Moment::now();
        let wires = Wires {
            output: output.clone(),
            tail: Tail::default(),
            first_output: Arc::default(),
        };
        let Ready {
            mut machine,
            vsock,
            restored,
        } = start::start(spec, first, &wires, &*report)?;
        let metrics = Metrics {
            restored: Some(restored),
            on_demand: (restored && first.is_some()).then_some(true),
            machine_ms: Some(begin.elapsed_ms()),
            ..spec.metrics.clone()
        };
        let streams = match &vsock {
            Some(vsock) => Streams::listen(vsock, spec.config.cpus, &output, &self.events),
            None => Streams::default(),
        };
        let mut watch = Watch {
            spec,
            report,
            vsock,
            stop: machine.stop_handle(),
            events: self.events.clone(),
            begin,
            metrics,
            first_output: wires.first_output,
            tail: wires.tail,
            restored,
            ports: Some(ports),
            running: Some(running),
            deadline: Some(Instant::now() + SIGN_OF_LIFE),
            stopping: false,
            exited: None,
            failed: None,
        };
        if let Some(first) = first {
            first.attach(machine.stop_handle());
        }
        let Supervisor { events, happened } = self;
        // Dropped when the machine, and with it the guest's open streams, need be kept no longer.
        let (release, released) = channel::<()>();
        let follow = move || {
            thread::sleep(HEAD_START);
            started();
            if !spec.has.initramfs {
                watch.up();
            }
            let stopped = watch.follow(&happened);
            if watch.wants_last_words(&stopped) {
                watch.listen(&happened, LAST_WORDS);
            }
            drop(release);
            while !streams.are_done() {
                watch.listen(&happened, Duration::from_millis(5));
            }
            watch.listen(&happened, Duration::ZERO);
            watch.finish(stopped)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("supervisor".into());
            let follower = thread
                .spawn_scoped(scope, follow)
                .context("cannot start the supervisor's thread")?;
            let _ = events.send(Event::Stopped(machine.run()));
            let _ = released.recv();
            drop(machine);
            follower.join().ok().context("the supervisor has died")?
        })
    }
}

/// The state of the loop.
struct Watch<'a, F> {
    spec: &'a RunSpec,
    report: Arc<dyn Report>,
    vsock: Option<VsockHandle>,
    stop: StopHandle,
    events: SyncSender<Event>,
    /// When the machine was begun to be made.
    begin: Moment,
    metrics: Metrics,
    first_output: Arc<OnceLock<Moment>>,
    tail: Tail,
    restored: bool,
    /// Until the service runs.
    ports: Option<Vec<Bound>>,
    /// Until the service runs.
    running: Option<F>,
    /// When patience ends.
    deadline: Option<Instant>,
    stopping: bool,
    exited: Option<ExitStatus>,
    /// The first thing that went wrong.
    failed: Option<String>,
}

impl<F: FnOnce(&Up)> Watch<'_, F> {
    /// Takes what happens until the machine stops.
    fn follow(&mut self, happened: &Receiver<Event>) -> smol_machine::Result<Stop> {
        loop {
            let left = self
                .deadline
                .map(|d| d.saturating_duration_since(Instant::now()));
            let event = match left {
                Some(left) => happened.recv_timeout(left),
                None => happened.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Stopped(stopped)) => return stopped,
                Ok(event) => self.take(event),
                Err(_) => self.lose_patience(),
            }
        }
    }

    /// Takes what still comes in the given time, up to the guest's last word.
    fn listen(&mut self, happened: &Receiver<Event>, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(event) = happened.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            self.take(event);
            if self.exited.is_some() || self.failed.is_some() {
                return;
            }
        }
    }

    fn wants_last_words(&self, stopped: &smol_machine::Result<Stop>) -> bool {
        let silent = self.exited.is_none() && self.failed.is_none();
        matches!(stopped, Ok(Stop::Reset)) && self.spec.has.initramfs && silent
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Guest(event) => self.take_event(event),
            Event::Request(ControlRequest::Stop { grace_ms }) => self.shut_down(grace_ms),
            Event::Refused(why) => {
                self.report
                    .note(&format!("the guest does not stop its service: {why}"));
                self.force();
            }
            Event::Broken(why) => self.fail(why),
            Event::Stopped(_) => {}
        }
    }

    fn take_event(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Resumed { .. } | GuestEvent::Ready { .. } => {
                self.tell_verbose(&event);
                self.up();
            }
            GuestEvent::ServiceExited { status } => self.exited = Some(status),
            GuestEvent::Failed {
                stage,
                reason,
                probe,
                last_saw,
                service_status,
            } => {
                let mut text = format!("the guest failed at stage {stage}: {reason}");
                for (what, value) in [
                    ("probe", probe.map(|probe| probe.to_string())),
                    ("last saw", last_saw),
                    ("service", service_status.map(|status| status.to_string())),
                ] {
                    text += &value
                        .map(|value| format!("\n{what}: {value}"))
                        .unwrap_or_default();
                }
                // The guest is about to reset itself.
                self.failed.get_or_insert(text);
            }
            GuestEvent::Warning { stage, reason } => {
                self.report
                    .note(&format!("the guest warns ({stage}): {reason}"));
            }
            GuestEvent::Booted | GuestEvent::Restored => {
                // A cold boot's own time limits hold from here on.
                if !self.restored && !self.stopping {
                    self.deadline = None;
                }
                self.tell_verbose(&event);
            }
            event => self.tell_verbose(&event),
        }
    }

    fn tell_verbose(&self, event: &GuestEvent) {
        if self.spec.verbose {
            self.report.note(&format!("guest: {event:?}"));
        }
    }

    /// The service runs: opens its ports and says so.
    fn up(&mut self) {
        let Some(ports) = self.ports.take() else {
            return;
        };
        if !self.stopping {
            self.deadline = None;
        }
        let took_ms = self.begin.elapsed_ms();
        let up = Up {
            restored: self.restored,
            took_ms,
            ports: ports.iter().map(|p| p.publish).collect(),
        };
        if let Some(vsock) = &self.vsock
            && let Err(e) = ports::serve(ports, vsock, &self.report)
        {
            return self.fail(format!("cannot forward ports: {e}"));
        }
        self.metrics.up_ms = Some(took_ms);
        self.metrics.total_ms = Some(self.spec.start.elapsed_ms());
        self.measure();
        if let Some(running) = self.running.take() {
            running(&up);
        }
        if self.report.up(&up).is_err() {
            self.fail("the smolrun that started this machine is gone".into());
        }
    }

    fn measure(&mut self) {
        let first = self
            .first_output
            .get()
            .map(|moment| moment.ms_since(self.begin));
        self.metrics.first_output_ms = first;
        self.report.metrics(&self.metrics);
    }

    /// Gently where there is somebody to be asked.
    fn shut_down(&mut self, grace_ms: u64) {
        let vsock = match (&self.vsock, self.ports.is_none() && self.spec.has.initramfs) {
            (Some(vsock), true) => vsock.clone(),
            _ => return self.force(),
        };
        self.stopping = true;
        let limit = Duration::from_millis(grace_ms).saturating_add(PATIENCE);
        self.deadline = Instant::now().checked_add(limit).or(self.deadline);
        let events = self.events.clone();
        thread::spawn(move || {
            if let Err(e) = guest::shut_down(&vsock, grace_ms) {
                let _ = events.send(Event::Refused(e.to_string()));
            }
        });
    }

    fn force(&mut self) {
        self.stopping = true;
        self.deadline = None;
        self.stop.request(Stop::Requested);
    }

    fn fail(&mut self, why: String) {
        self.failed.get_or_insert(why);
        self.force();
    }

    fn lose_patience(&mut self) {
        if self.stopping {
            self.report
                .note("the guest does not end: stopping it by force");
            return self.force();
        }
        let limit = SIGN_OF_LIFE.as_secs();
        let what = if self.restored {
            "the restored guest did not run on"
        } else {
            "the guest gave no sign of life"
        };
        self.fail(format!("{what} within {limit} s"));
    }

    /// What all that comes to.
    fn finish(mut self, stopped: smol_machine::Result<Stop>) -> anyhow::Result<End> {
        self.measure();
        let failure =
            |text: String| Err(Failure::new(ExitKind::Failed, self.tail.explain(text)).into());
        if let Some(text) = &self.failed {
            return failure(text.clone());
        }
        if let Some(status) = self.exited {
            return Ok(End::Exited(status.code()));
        }
        match stopped {
            Ok(Stop::Requested | Stop::Reset) if !self.spec.has.initramfs => Ok(End::Exited(0)),
            Ok(Stop::Requested) => Ok(End::Killed),
            Ok(Stop::Reset) if self.stopping => Ok(End::Killed),
            Ok(Stop::Reset) => failure("the guest reset itself without saying why".into()),
            Ok(Stop::Crashed(what)) => failure(format!("the guest crashed: {what}")),
            Ok(Stop::Snapshot) => {
                failure("the guest stopped for a snapshot, which nobody asked for".into())
            }
            Ok(Stop::Stuck) => {
                failure("the guest stopped for ever: it has nothing to wait for".into())
            }
            Err(error) => failure(format!("the machine cannot be run: {error}")),
        }
    }
}
