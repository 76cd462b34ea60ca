//! A machine as an instance of this process.

use std::sync::Arc;

use anyhow::Context as _;
use smol_cli::Interrupt;

use crate::host::instance::{self, Instance, Record};
use crate::host::{control, emulated};
use crate::images::Images;
use crate::run::output::Output;
use crate::run::report::{End, Report, Up};
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

/// Runs the machine as an instance of this process, to its end.
///
/// # Errors
/// If it cannot be run, or ends in another way than it should.
pub fn run(
    spec: &RunSpec,
    mut images: Images,
    standard: Standard,
    report: Arc<dyn Report>,
    interrupt: &Interrupt,
) -> anyhow::Result<End> {
    let root = instance::root()?;
    let instance = Instance::claim(&root, record_of(spec))?;
    let log = instance.create_log()?;
    if standard == Standard::Log {
        rustix::stdio::dup2_stderr(log.file()).context("cannot write to the log")?;
    }
    let output = Arc::new(Output::new(standard == Standard::Output, Some(log)));
    let running = |up: &Up| instance.set_running(&up.ports);
    if spec.emulated {
        let host = emulated::Outer::spawn(spec, images.unpacked()?.folder())?;
        instance.control()?.serve(host.requests());
        control::from_signals(interrupt, host.requests());
        return host.run(spec, &output, &*report, running);
    }
    let supervisor = Supervisor::new();
    let control = instance.control()?;
    let (by_socket, by_signal) = (supervisor.requests(), supervisor.requests());
    let started = || {
        control.serve(by_socket);
        control::from_signals(interrupt, by_signal);
        instance::sweep(&root);
    };
    let outcome = supervisor.run(spec, &mut images, output, report.clone(), started, running);
    images.finish(|text| report.note(text))?;
    outcome
}

fn record_of(spec: &RunSpec) -> Record {
    Record::new(
        &spec.name,
        &spec.config.name,
        &spec.bundle,
        &spec.digest,
        spec.accel(),
    )
}
