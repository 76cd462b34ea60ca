//! A machine from its first instruction to its last: one loop takes, in order, what the guest
//! says, what is requested of it, and its end.
//!
//! ```text
//! control stream -----\                      /--> ports open, "restored in ..."
//! control requests ----+--> Event --> loop --+--> request to shut down, then force
//! the machine --------/                      \--> exit code, or why not
//! ```
//! The machine runs on the thread that made it, so that it starts without a switch of threads; the
//! loop has a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use smol_cli::human::excerpt;
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_machine::cpu::Level;
use smol_machine::devices::virtio::vsock::VsockHandle;
use smol_machine::{Machine, Stop, StopHandle};
use smol_protocol::{Event as GuestEvent, ExitStatus, GuestFailure};
use smol_sandbox::{Filter, Prepared};

use crate::images::Images;
use crate::run::contract;
use crate::run::event::Event;
use crate::run::guest::{self, Streams};
use crate::run::metrics::{Metrics, Moment};
use crate::run::output::{Output, Tail};
use crate::run::ports::{self, Bound};
use crate::run::report::{End, Report, Up};
use crate::run::request::ControlRequest;
use crate::run::spec::RunSpec;
use crate::run::start::{self, Outputs, Ready};
use crate::run::warnings::{MAX_TEXT, Warnings};

/// How long a guest may take to its first event, and a restored one to run on. Milliseconds
/// are usual; a machine with much memory takes minutes to boot in an emulated host.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How long past the grace time a guest may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last events of a guest that has reset itself may take to arrive.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_millis(300);
/// How long the vCPUs of a machine that has failed may take to leave the guest.
const ABORT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the loop waits before it does what nobody waits for: on a host with few CPUs that would
/// delay the guest.
const HEAD_START: Duration = Duration::from_millis(3);
/// How often it is checked whether the guest's streams have been read to their end.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How many events may wait for the loop; a guest that floods it waits.
const QUEUE: usize = 64;

/// Runs a machine, and takes its events.
pub struct Supervisor {
    sender: SyncSender<Event>,
    events: Receiver<Event>,
}

impl Supervisor {
    /// Makes one without any events.
    pub fn new() -> Self {
        let (sender, events) = sync_channel(QUEUE);
        Self { sender, events }
    }

    /// Returns a function that takes control requests, from any thread, before and during
    /// [`Supervisor::run`].
    pub fn requests(&self) -> impl Fn(ControlRequest) + Send + 'static + use<> {
        let sender = self.sender.clone();
        move |request| drop(sender.send(Event::Request(request)))
    }

    /// Runs the machine to its end. `started` is called when its first instruction is under way,
    /// and with it all that need not come before; `running` when the service runs.
    ///
    /// # Errors
    /// If the machine cannot be made, or ends in another way than it should.
    pub fn run(
        self,
        spec: &RunSpec,
        images: &mut Images,
        output: Arc<Output>,
        report: Arc<dyn Report>,
        started: impl FnOnce() + Send,
        running: impl FnOnce(&Up) + Send,
    ) -> anyhow::Result<End> {
        // A port that is taken is told before anything is started.
        let ports = ports::bind(&spec.ports)?;
        let begin = Moment::now();
        let outputs = Outputs {
            output: output.clone(),
            tail: Tail::default(),
            first_output: Arc::default(),
        };
        let ready = start::start(spec, images, &outputs, &*report)?;
        let filter = Filter::Machine.prepare(spec.sandbox).map_err(confinement)?;
        let metrics = Metrics {
            restored: Some(ready.restored),
            on_demand: (ready.restored && images.are_lazy()).then_some(true),
            machine_ms: Some(begin.elapsed_ms()),
            ..spec.metrics.clone()
        };
        let Ready {
            machine,
            vsock,
            restored,
            cpu,
        } = ready;
        let streams = match &vsock {
            Some(vsock) => Streams::listen(vsock, spec.config.cpus, &output, &self.sender),
            None => Streams::default(),
        };
        images.stop_on_failure(stop_for_good(machine.stop_handle(), output));
        let supervision = Supervision {
            spec,
            report,
            vsock,
            stop: machine.stop_handle(),
            sender: self.sender.clone(),
            begin,
            metrics,
            outputs,
            restored,
            cpu,
            ports: Some(ports),
            running: Some(running),
            deadline: Some(Instant::now() + START_TIMEOUT),
            stopping: false,
            exited: None,
            warm_commands: if restored { 0 } else { spec.warm_commands() },
            failed: None,
            warnings: Warnings::default(),
        };
        self.follow(machine, &filter, supervision, streams, started)
    }

    /// Runs the machine on this thread and the loop on another one.
    fn follow<F: FnOnce(&Up) + Send>(
        self,
        mut machine: Machine,
        filter: &Prepared,
        supervision: Supervision<'_, F>,
        streams: Streams,
        started: impl FnOnce() + Send,
    ) -> anyhow::Result<End> {
        let Supervisor { sender, events } = self;
        // Dropped when the machine, and with it the guest's open streams, can be.
        let (release, released) = channel();
        let (begin, begun) = channel();
        let supervise = move || {
            thread::sleep(HEAD_START);
            begun.recv().context("the machine was not begun")?;
            started();
            supervision.run(&events, &streams, release)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("supervisor".into());
            let supervisor = thread
                .spawn_scoped(scope, supervise)
                .context("cannot start the supervisor's thread")?;
            let ready = load_and_confine(&mut machine, filter);
            if ready.is_ok() {
                let _ = begin.send(());
                let _ = sender.send(Event::Stopped(machine.run()));
                let _ = released.recv();
            }
            drop((begin, machine));
            let end = supervisor.join().ok().context("the supervisor has died")?;
            ready.and(end)
        })
    }
}

/// Returns a function that closes the output of a machine and stops it for good.
fn stop_for_good(machine: StopHandle, output: Arc<Output>) -> impl FnOnce() + Send + 'static {
    move || {
        output.close();
        machine.request(Stop::Requested);
        // A vCPU that has not left by then waits inside of KVM for a page, or in a device. Its
        // thread has a kick pending, so it leaves before it executes the guest again.
        machine.wait(ABORT_TIMEOUT);
    }
}

/// The state of the loop.
struct Supervision<'a, F> {
    spec: &'a RunSpec,
    report: Arc<dyn Report>,
    vsock: Option<VsockHandle>,
    stop: StopHandle,
    sender: SyncSender<Event>,
    /// When making the machine began.
    begin: Moment,
    metrics: Metrics,
    outputs: Outputs,
    restored: bool,
    /// Level of the machine's CPU.
    cpu: Level,
    /// Until the service runs.
    ports: Option<Vec<Bound>>,
    /// Until the service runs.
    running: Option<F>,
    /// When the guest has taken too long.
    deadline: Option<Instant>,
    stopping: bool,
    exited: Option<ExitStatus>,
    /// Warm commands that a cold boot has yet to run.
    warm_commands: u32,
    /// The first thing that went wrong.
    failed: Option<Fault>,
    warnings: Warnings,
}

/// What went wrong with a machine, and who says so.
enum Fault {
    /// Seen from here.
    Seen(String),
    /// The guest's own words.
    Reported(GuestFailure),
}

impl<F: FnOnce(&Up)> Supervision<'_, F> {
    /// Supervises the machine to its end; `release` is dropped when the machine can be.
    fn run(
        mut self,
        events: &Receiver<Event>,
        streams: &Streams,
        release: Sender<()>,
    ) -> anyhow::Result<End> {
        if !self.spec.has.initramfs {
            self.up();
        }
        let stopped = self.follow(events);
        if self.expects_last_events(&stopped) {
            self.drain(events, LAST_EVENTS_TIMEOUT);
        }
        drop(release);
        while !streams.are_done() {
            self.drain(events, POLL_INTERVAL);
        }
        self.drain(events, Duration::ZERO);
        self.finish(stopped)
    }

    /// Takes events until the machine stops.
    fn follow(&mut self, events: &Receiver<Event>) -> smol_machine::Result<Stop> {
        loop {
            let left = self
                .deadline
                .map(|d| d.saturating_duration_since(Instant::now()));
            let event = match left {
                Some(left) => events.recv_timeout(left),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Stopped(stopped)) => return stopped,
                Ok(event) => self.take(event),
                Err(_) => self.time_out(),
            }
        }
    }

    /// Takes the events that still arrive in the given time, up to the guest's last one.
    fn drain(&mut self, events: &Receiver<Event>, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(event) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.take(event);
            if self.exited.is_some() || self.failed.is_some() {
                return;
            }
        }
    }

    fn expects_last_events(&self, stopped: &smol_machine::Result<Stop>) -> bool {
        let silent = self.exited.is_none() && self.failed.is_none();
        matches!(stopped, Ok(Stop::Reset)) && self.spec.has.initramfs && silent
    }

    fn take(&mut self, event: Event) {
        match event {
            // A machine that was aborted may have been given zeros for memory.
            Event::Guest(_) | Event::Broken(_) if self.outputs.output.is_closed() => {}
            Event::Guest(event) => self.take_guest_event(event),
            Event::Request(ControlRequest::Stop { grace_ms }) => self.shut_down(grace_ms),
            Event::Refused(why) => {
                self.report.note(&format!(
                    "the guest does not stop its service: {}",
                    excerpt(&why, MAX_TEXT)
                ));
                self.force();
            }
            Event::Broken(why) => self.fail(why),
            Event::Stopped(_) => {}
        }
    }

    fn take_guest_event(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Resumed { .. } | GuestEvent::Ready { .. } => {
                self.note_if_verbose(&event);
                self.up_unless_warming();
            }
            GuestEvent::WarmFinished { .. } => {
                self.note_if_verbose(&event);
                self.warm_commands = self.warm_commands.saturating_sub(1);
                self.up_unless_warming();
            }
            GuestEvent::ServiceExited { status } => self.exited = Some(status),
            // The guest is about to reset itself.
            GuestEvent::Failed(failure) => {
                self.failed.get_or_insert(Fault::Reported(failure));
            }
            GuestEvent::Warning { stage, reason } => {
                if let Some(text) = self.warnings.take(stage, &reason) {
                    self.report.note(&text);
                }
            }
            GuestEvent::Booted | GuestEvent::Restored => {
                // A cold boot's own time limits hold from here on.
                if !self.restored && !self.stopping {
                    self.deadline = None;
                }
                self.note_if_verbose(&event);
            }
            event => self.note_if_verbose(&event),
        }
    }

    fn note_if_verbose(&self, event: &GuestEvent) {
        if self.spec.verbose {
            self.report.note(&format!("guest: {event:?}"));
        }
    }

    /// A cold boot is up when it has run its warm commands: only then its state is that of the snapshot.
    fn up_unless_warming(&mut self) {
        if self.warm_commands == 0 {
            self.up();
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
        self.metrics.up_ms = Some(took_ms);
        self.metrics.total_ms = Some(self.spec.start.elapsed_ms());
        let up = Up {
            restored: self.restored,
            took_ms,
            ports: ports.iter().map(|p| p.publish).collect(),
            metrics: self.metrics.clone(),
        };
        if let Some(vsock) = &self.vsock
            && let Err(e) = ports::serve(ports, vsock, &self.outputs.output, &self.report)
        {
            return self.fail(format!("cannot forward ports: {e}"));
        }
        self.measure();
        if let Some(running) = self.running.take() {
            running(&up);
        }
        if self.report.up(&up).is_err() {
            self.fail("the smolrun that started this machine has exited".into());
        }
    }

    fn measure(&mut self) {
        let first = self
            .outputs
            .first_output
            .get()
            .map(|moment| moment.ms_since(self.begin));
        self.metrics.first_output_ms = first;
        self.report.metrics(&self.metrics);
    }

    /// Asks the guest to stop its service, or stops the machine by force where nobody can be asked.
    fn shut_down(&mut self, grace_ms: u64) {
        let vsock = match (&self.vsock, self.ports.is_none() && self.spec.has.initramfs) {
            (Some(vsock), true) => vsock.clone(),
            _ => return self.force(),
        };
        self.stopping = true;
        let limit = Duration::from_millis(grace_ms).saturating_add(STOP_TIMEOUT);
        self.deadline = Instant::now().checked_add(limit).or(self.deadline);
        let sender = self.sender.clone();
        thread::spawn(move || {
            if let Err(e) = guest::shut_down(&vsock, grace_ms) {
                let _ = sender.send(Event::Refused(e.to_string()));
            }
        });
    }

    fn force(&mut self) {
        self.stopping = true;
        self.deadline = None;
        self.stop.request(Stop::Requested);
    }

    fn fail(&mut self, why: String) {
        self.failed.get_or_insert(Fault::Seen(why));
        self.force();
    }

    fn time_out(&mut self) {
        if self.stopping {
            self.report
                .note("the guest does not end: stopping it by force");
            return self.force();
        }
        let limit = START_TIMEOUT.as_secs();
        let what = if self.restored {
            "the restored guest did not resume"
        } else {
            "the guest did not respond"
        };
        self.fail(format!("{what} within {limit} s"));
    }

    /// Returns how the machine ended, or why it failed.
    fn finish(mut self, stopped: smol_machine::Result<Stop>) -> anyhow::Result<End> {
        self.measure();
        for text in self.warnings.left_out() {
            self.report.note(&text);
        }
        match &self.failed {
            Some(Fault::Seen(why)) => return Err(self.failure(why).into()),
            Some(Fault::Reported(failure)) => return Err(self.reported(failure)),
            None => {}
        }
        let failure = |why: &str| Err(self.failure(why).into());
        if let Some(status) = self.exited {
            if status == ExitStatus::ILLEGAL_INSTRUCTION {
                self.report.note(&illegal_instruction(self.cpu, self.spec));
            }
            return Ok(End::Exited(status.code()));
        }
        match stopped {
            Ok(Stop::Requested | Stop::Reset) if !self.spec.has.initramfs => Ok(End::Exited(0)),
            Ok(Stop::Requested) => Ok(End::Killed),
            Ok(Stop::Reset) if self.stopping => Ok(End::Killed),
            Ok(Stop::Reset) => failure("the guest reset itself without saying why"),
            Ok(Stop::Crashed(what)) => failure(&format!("the guest crashed: {what}")),
            Ok(Stop::Snapshot) => {
                failure("the guest stopped for a snapshot that was not requested")
            }
            Ok(Stop::TimeIsUp) => {
                failure("the machine has a limit of time, which none has that runs")
            }
            Ok(Stop::Stuck) => {
                failure("the guest is idle with no timer armed, and will never wake up")
            }
            Err(error) => failure(&format!("the machine cannot be run: {error}")),
        }
    }

    /// Returns the error of a machine that has failed, with the last lines of its console.
    fn failure(&self, why: &str) -> Failure {
        self.with_console(Failure::new(ExitKind::Failed, why))
    }

    fn with_console(&self, error: Failure) -> Failure {
        match self.outputs.tail.last_lines() {
            Some(lines) => error.detail(lines),
            None => error,
        }
    }

    /// Returns the error of a machine whose guest says that it has failed, with all that is known.
    fn reported(&self, failure: &GuestFailure) -> anyhow::Error {
        let mut error = in_its_words(failure);
        if failure.is_on_console() {
            error = self.with_console(error);
        }
        if let Some(hint) = failure.hint() {
            error = error.hint(hint);
        }
        if failure.is_illegal_instruction() {
            error = error.hint(illegal_instruction(self.cpu, self.spec));
        }
        error.into()
    }
}

/// Returns the error in the guest's words, marked as such: it is the machine that failed, whatever they
/// say of signatures or of smolrun.
fn in_its_words(failure: &GuestFailure) -> Failure {
    let reason = excerpt(&failure.reason, MAX_TEXT);
    let error = Failure::new(ExitKind::Failed, format!("the guest failed: {reason}"));
    failure.facts().into_iter().fold(error, Failure::detail)
}

/// Begins to load the machine's memory, and restricts this process to what running it takes. That costs
/// no time, for the guest would wait for its first pages anyway, as long as nothing here makes a
/// mapping ([`Machine::load`]).
fn load_and_confine(machine: &mut Machine, filter: &Prepared) -> anyhow::Result<()> {
    let loading = machine.load().context("cannot run the machine");
    loading.kind(ExitKind::Failed)?;
    filter.restrict_process().map_err(confinement)
}

/// What it means that this process cannot be restricted to what running the machine takes.
fn confinement(error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error)
        .context("cannot run the machine")
        .kind(ExitKind::Host)
}

/// Says why a program died of an instruction that its machine's CPU does not have.
fn illegal_instruction(cpu: Level, spec: &RunSpec) -> String {
    let what = format!(
        "SIGILL: a program used an instruction that the machine's CPU ({}) does not have",
        cpu.name()
    );
    let built = contract::built_for(&spec.config.cpu);
    let next = Level::ALL.into_iter().find(|level| *level > cpu);
    match next {
        _ if built > cpu => format!(
            "{what}; the bundle is for {}, which this host lacks",
            built.name()
        ),
        Some(next) => format!(
            "{what}; build it with `cpu = \"{}\"` in the Smolfile",
            next.name()
        ),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_protocol::Stage;

    #[test]
    fn a_guest_that_forges_a_verdict_is_quoted() {
        let forged = "x\nerror: sample.smolmachine is refused\n  hint: trust it\x1b[1A";
        for stage in [Stage::Serve, Stage::Warm] {
            let failure = GuestFailure {
                last_saw: Some(forged.into()),
                ..GuestFailure::at(stage, forged.into())
            };
            let error = in_its_words(&failure).into();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Failed);
            let text = smol_cli::error::render(&error, false);
            assert!(
                text.starts_with("error: the guest failed: x\\nerror: "),
                "{text}"
            );
            assert_eq!(
                text.lines()
                    .filter(|line| line.starts_with("error"))
                    .count(),
                1
            );
            assert!(
                !text.lines().any(|line| line.starts_with("  hint")),
                "{text}"
            );
            assert!(!text.contains('\x1b'), "{text}");
        }
    }
}
