//! A machine in the emulated host: this program outside, and the same program inside of it, which
//! runs the machine as it would on this host's KVM.
//!
//! ```text
//! smolrun --- JSON spec ---> smolrun internal-inner (supervisor)
//!         --- requests ----> job channel
//!         <-- messages ----- job channel
//!         <-- output ------- stdout, stderr
//! client --> QEMU's forward --> a port inside --> vsock --> the service
//! ```
//! The bundle's images are shared with it read-only, and mapped from there.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use smol_cli::{ExitKind, Failure, paths};
use smol_host::emulated::{self, Controller, EmulatedHost, Event, JobStatus, RunningHost, SELF};
use smol_protocol::LineBuffer;
use smol_protocol::log::Stream;

use crate::host::messages::{Message, MessageLines, failure};
use crate::host::{confine, control};
use crate::images::Images;
use crate::images::cache::CachedImages;
use crate::run::metrics::{Metrics, Moment};
use crate::run::output::Output;
use crate::run::ports;
use crate::run::publish::Publish;
use crate::run::report::{End, Report, Up};
use crate::run::request::ControlRequest;
use crate::run::spec::RunSpec;
use crate::run::supervisor::Supervisor;

/// What failed when a message from inside could not be read.
const INSIDE: &str = "the emulated host's smolrun";
/// Where the images are inside.
const IMAGES: &str = "/bundle";
/// First port inside; each forward has one.
const FIRST_PORT: u16 = 20000;
/// Memory inside beside the guest's own: this program and the hypervisor's tables, MiB.
const OVERHEAD_MIB: u64 = 128;
/// How long past the grace time the emulated host may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// An emulated host that runs a machine, seen from outside.
pub struct Outer {
    running: RunningHost,
    /// The forwarded ports of this host.
    ports: Vec<Publish>,
    shared: Arc<Shared>,
    spawned: Moment,
}

/// What control requests work on.
struct Shared {
    control: Controller,
    up: AtomicBool,
    forced: AtomicBool,
}

impl Outer {
    /// Starts the emulated host.
    ///
    /// # Errors
    /// If a port is taken, or the emulated host cannot be started.
    pub fn spawn(spec: &RunSpec, images: &Path) -> anyhow::Result<Self> {
        let ports = available(&spec.ports)?;
        let guest = spec.config.memory.div_ceil(1 << 20);
        let memory =
            u32::try_from(guest + OVERHEAD_MIB).context("the machine has too much memory")?;
        let inner = serde_json::to_string(&inner_spec(spec, &ports))?;
        let mut host = EmulatedHost::new(paths::cache_dir()?)
            .share(images, IMAGES, true)
            .memory(memory)
            .job([SELF, "internal-inner", &inner]);
        host = host.sandbox(spec.sandbox);
        for (port, inside) in ports.iter().zip(FIRST_PORT..) {
            let IpAddr::V4(address) = port.host.ip() else {
                let message = "the emulated host forwards ports of IPv4 addresses only";
                return Err(Failure::new(ExitKind::Host, message).into());
            };
            host = host.forward(address, port.host.port(), inside);
        }
        confine::before_emulated_host(spec, &host)?;
        let spawned = Moment::now();
        let running = host.spawn().map_err(Failure::from)?;
        let shared = Shared {
            control: running.controller(),
            up: AtomicBool::new(false),
            forced: AtomicBool::new(false),
        };
        Ok(Self {
            running,
            ports,
            shared: Arc::new(shared),
            spawned,
        })
    }

    /// Returns a function that takes control requests, from any thread.
    pub fn requests(&self) -> impl Fn(ControlRequest) + Send + 'static + use<> {
        let shared = self.shared.clone();
        move |request| shared.carry_out(request)
    }

    /// Passes on what comes from inside, to the machine's end.
    ///
    /// # Errors
    /// The machine's, or the emulated host's own.
    pub fn run(
        self,
        spec: &RunSpec,
        output: &Output,
        report: &dyn Report,
        running: impl FnOnce(&Up),
    ) -> anyhow::Result<End> {
        let Self {
            running: mut host,
            ports,
            shared,
            spawned,
        } = self;
        let mut relay = Relay {
            spec,
            report,
            is_up: &shared.up,
            ports,
            metrics: spec.metrics.clone(),
            running: Some(running),
            end: None,
        };
        let mut lines = LineBuffer::default();
        let status = loop {
            match host.next_event() {
                Ok(Event::Started) => {
                    relay.metrics.emulated_host_ms = Some(spawned.elapsed_ms());
                }
                Ok(Event::Stdout(bytes)) => output.write(Stream::Stdout, &bytes),
                Ok(Event::Stderr(bytes)) => output.write(Stream::Stderr, &bytes),
                Ok(Event::Channel(bytes)) => {
                    lines.push(&bytes);
                    while let Some(line) = lines.next_line().context(INSIDE)? {
                        relay.take(serde_json::from_slice(&line).context(INSIDE)?)?;
                    }
                }
                Ok(Event::Exited(status)) => break status,
                Err(_) if shared.forced.load(Ordering::SeqCst) => return Ok(End::Killed),
                Err(error) => return Err(Failure::from(error).into()),
            }
        };
        relay.end.unwrap_or_else(|| Err(died(status)))
    }
}

/// Passes messages from inside on to whoever started the machine.
struct Relay<'a, F> {
    spec: &'a RunSpec,
    report: &'a dyn Report,
    is_up: &'a AtomicBool,
    ports: Vec<Publish>,
    metrics: Metrics,
    /// Until the service runs.
    running: Option<F>,
    /// How the machine ended, once it has.
    end: Option<anyhow::Result<End>>,
}

impl<F: FnOnce(&Up)> Relay<'_, F> {
    fn take(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Note(text) => self.report.note(&text),
            Message::Metrics(inner) => self.merge(inner),
            Message::Up(inner) => self.up(inner)?,
            Message::Ended(Some(code)) => self.end = Some(Ok(End::Exited(code))),
            Message::Ended(None) => self.end = Some(Ok(End::Killed)),
            Message::Failed(code, report) => self.end = Some(Err(failure(code, report))),
        }
        Ok(())
    }

    fn merge(&mut self, inner: Metrics) {
        // Inside it is not known when this process was started.
        let total_ms = inner.total_ms.map(|_| {
            let known = self.metrics.total_ms;
            known.unwrap_or_else(|| self.spec.start.elapsed_ms())
        });
        self.metrics.merge(&Metrics { total_ms, ..inner });
        self.report.metrics(&self.metrics);
    }

    fn up(&mut self, inner: Up) -> anyhow::Result<()> {
        self.is_up.store(true, Ordering::SeqCst);
        let up = Up {
            ports: self.ports.clone(),
            metrics: self.metrics.clone(),
            ..inner
        };
        if let Some(running) = self.running.take() {
            running(&up);
        }
        let told = self.report.up(&up);
        told.context("the smolrun that started this machine has exited")
    }
}

impl Shared {
    fn carry_out(self: &Arc<Self>, request: ControlRequest) {
        let ControlRequest::Stop { grace_ms } = request;
        if !self.up.load(Ordering::SeqCst)
            || self
                .control
                .send(control::encode(request).as_bytes())
                .is_err()
        {
            return self.force();
        }
        let shared = self.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(grace_ms).saturating_add(STOP_TIMEOUT));
            shared.force();
        });
    }

    fn force(&self) {
        self.forced.store(true, Ordering::SeqCst);
        self.control.kill();
    }
}

fn died(status: JobStatus) -> anyhow::Error {
    let how = match (status.code, status.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (_, signal) => format!("signal {}", signal.unwrap_or(0)),
    };
    Failure::new(
        ExitKind::Failed,
        format!("the smolrun in the emulated host died ({how})"),
    )
    .into()
}

/// Returns the ports with their numbers, after a check that they are free: QEMU binds them itself, but
/// its message for a port that is taken does not help the user.
///
/// # Errors
/// As for [`ports::bind`].
pub fn available(wanted: &[Publish]) -> anyhow::Result<Vec<Publish>> {
    let bound = ports::bind(wanted)?;
    Ok(bound.iter().map(|bound| bound.publish).collect())
}

fn inner_spec(spec: &RunSpec, ports: &[Publish]) -> RunSpec {
    let inside = |(port, number): (&Publish, u16)| Publish {
        host: SocketAddr::from((Ipv4Addr::UNSPECIFIED, number)),
        guest: port.guest,
    };
    RunSpec {
        ports: ports.iter().zip(FIRST_PORT..).map(inside).collect(),
        emulated: false,
        metrics_file: None,
        metrics: Metrics::default(),
        ..spec.clone()
    }
}

/// Runs the machine of the spec inside of the emulated host, and sends messages to the outside.
///
/// # Errors
/// If this is not an emulated host.
pub fn inner(spec: &str) -> anyhow::Result<ExitCode> {
    let outside = || {
        Failure::new(
            ExitKind::Usage,
            "this command is smolrun's own, for the emulated host",
        )
    };
    let mut spec: RunSpec = serde_json::from_str(spec).map_err(|_| outside())?;
    // The clock inside is another one.
    spec.start = Moment::now();
    let channel = emulated::job_channel()
        .ok_or_else(outside)?
        .context("cannot open the job's channel")?;
    let requests = channel
        .try_clone()
        .context("cannot duplicate the job's channel")?;
    let lines = Arc::new(MessageLines::new(channel));
    let supervisor = Supervisor::new();
    let take = supervisor.requests();
    let outside = lines.clone();
    thread::spawn(move || {
        for line in BufReader::new(requests).lines().map_while(Result::ok) {
            match control::decode(&line) {
                Ok(request) => take(request),
                Err(why) => outside.note(&why),
            }
        }
    });
    let output = Arc::new(Output::new(true, None));
    let mut images = Images::Cached(CachedImages::new(IMAGES.into(), spec.has, None));
    confine::inside(&spec, Path::new(IMAGES))?;
    let outcome = supervisor.run(&spec, &mut images, output, lines.clone(), || {}, |_| {});
    let message = match outcome {
        Ok(end) => Message::ended(end),
        Err(error) => Message::failed(&error),
    };
    lines
        .send(&message)
        .context("cannot tell the outside how the machine ended")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_cli::error::ErrorReport;
    use std::io;
    use std::sync::Mutex;

    /// Keeps what is reported.
    #[derive(Default)]
    struct Reported(Mutex<Vec<String>>);

    impl Report for Reported {
        fn note(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
        fn up(&self, up: &Up) -> io::Result<()> {
            self.note(&up.line("m"));
            Ok(())
        }
        fn metrics(&self, metrics: &Metrics) {
            assert_eq!(metrics.open_ms, Some(1.0));
            assert!(metrics.total_ms != Some(2.0));
        }
    }

    #[test]
    fn messages_from_inside_are_reported_as_seen_from_outside() {
        let (reported, is_up) = (Reported::default(), AtomicBool::new(false));
        let spec = crate::run::spec::sample();
        let mut told = None;
        let mut relay = Relay {
            spec: &spec,
            report: &reported,
            is_up: &is_up,
            ports: vec!["16379:80".parse().unwrap()],
            metrics: Metrics {
                open_ms: Some(1.0),
                emulated_host_ms: Some(3000.0),
                // It was known before the machine was up inside.
                total_ms: Some(4500.0),
                ..Metrics::default()
            },
            running: Some(|up: &Up| told = Some(up.clone())),
            end: None,
        };
        let up = Up {
            restored: true,
            took_ms: 1500.0,
            ports: vec!["0.0.0.0:20000:80".parse().unwrap()],
            metrics: Metrics::default(),
        };
        let metrics = Metrics {
            total_ms: Some(2.0),
            ..Metrics::default()
        };
        for message in [
            Message::Note("note".into()),
            Message::Metrics(metrics),
            Message::Up(up),
            Message::Failed(4, ErrorReport::default()),
        ] {
            relay.take(message).unwrap();
        }
        let error = relay.end.unwrap().unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        let lines = reported.0.into_inner().unwrap();
        assert_eq!(
            lines,
            [
                "note",
                "m: restored in 1.50 s (4.50 s with the start of the emulated host), 127.0.0.1:16379 -> 80"
            ]
        );
        assert!(is_up.into_inner() && told.unwrap().ports[0].guest == 80);
    }

    #[test]
    fn the_inside_gets_ports_of_its_own_and_nothing_of_this_host() {
        let spec = RunSpec {
            ports: vec!["0:80".parse().unwrap(), "0:81".parse().unwrap()],
            emulated: true,
            metrics_file: Some("/m".into()),
            ..crate::run::spec::sample()
        };
        let ports = available(&spec.ports).unwrap();
        assert!(ports.iter().all(|port| port.host.port() != 0));
        let inner = inner_spec(&spec, &ports);
        let shown: Vec<_> = inner.ports.iter().map(Publish::to_string).collect();
        assert_eq!(shown, ["0.0.0.0:20000 -> 80", "0.0.0.0:20001 -> 81"]);
        assert!(!inner.emulated && inner.metrics_file.is_none());
    }
}
