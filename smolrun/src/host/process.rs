//! A machine as an instance of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use smol_cli::Interrupt;

use crate::host::instance::{self, EndRecord, Instance, Record};
use crate::host::{confine, control, emulated};
use crate::images::Images;
use crate::run::output::Output;
use crate::run::report::{End, Report, Up};
use crate::run::request::ControlRequest;
use crate::run::spec::RunSpec;
use crate::run::supervisor::Supervisor;

/// What this process's stdout and stderr are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// The service's output.
    Output,
    /// Nothing, as in the background; stderr becomes the log.
    Log,
}

/// Runs the machine as an instance of this process, to its end. An error of a machine whose stderr
/// is its log is in the log.
///
/// # Errors
/// If it cannot be run, or ends in another way than it should.
pub fn run(
    spec: &RunSpec,
    images: Images,
    standard: Standard,
    report: Arc<dyn Report>,
    interrupt: &Interrupt,
) -> anyhow::Result<End> {
    let root = instance::root()?;
    let instance = Instance::claim(&root, record_of(spec, standard))?;
    let log = instance.create_log()?;
    if standard == Standard::Log {
        rustix::stdio::dup2_stderr(log.file()).context("cannot write to the log")?;
    }
    let output = Arc::new(Output::new(standard == Standard::Output, Some(log)));
    report.attach(&output);
    let stopped = Arc::new(AtomicBool::new(false));
    let logged = output.clone();
    let outcome = run_instance(spec, images, &instance, output, report, interrupt, &stopped);
    if standard == Standard::Log
        && let Err(error) = &outcome
    {
        // The log ends with what the terminal would have shown.
        logged.note(smol_cli::error::render(error, false).trim_end());
    }
    instance.end(EndRecord::new(&outcome, stopped.load(Ordering::SeqCst)));
    outcome
}

/// Runs the machine; `stopped` is set when somebody wants it to stop.
fn run_instance(
    spec: &RunSpec,
    mut images: Images,
    instance: &Instance,
    output: Arc<Output>,
    report: Arc<dyn Report>,
    interrupt: &Interrupt,
    stopped: &Arc<AtomicBool>,
) -> anyhow::Result<End> {
    let running = |up: &Up| instance.set_running(&up.ports);
    let sweep = || instance::sweep(instance.root());
    if spec.emulated {
        let host = emulated::Outer::spawn(spec, images.unpacked()?.folder())?;
        let requests = || noting(stopped, host.requests());
        instance.control()?.serve(requests());
        control::from_signals(interrupt, requests());
        sweep();
        return host.run(spec, &output, &*report, running);
    }
    confine::before_machine(spec, &images, instance.root())?;
    let supervisor = Supervisor::new();
    let control = instance.control()?;
    let requests = || noting(stopped, supervisor.requests());
    let (by_socket, by_signal) = (requests(), requests());
    let started = || {
        control.serve(by_socket);
        control::from_signals(interrupt, by_signal);
        sweep();
    };
    let outcome = supervisor.run(spec, &mut images, output, report.clone(), started, running);
    images.finish(|text| report.note(text))?;
    outcome
}

/// Returns what takes requests and sets the flag.
fn noting(
    flag: &Arc<AtomicBool>,
    take: impl Fn(ControlRequest) + Send + 'static,
) -> impl Fn(ControlRequest) + Send + 'static {
    let flag = flag.clone();
    move |request @ ControlRequest::Stop { .. }| {
        flag.store(true, Ordering::SeqCst);
        take(request);
    }
}

fn record_of(spec: &RunSpec, standard: Standard) -> Record {
    let (name, machine) = (&spec.name, &spec.config.name);
    Record {
        auto_remove: spec.auto_remove || standard == Standard::Output,
        ..Record::new(name, machine, &spec.bundle, &spec.digest, spec.accel())
    }
}
