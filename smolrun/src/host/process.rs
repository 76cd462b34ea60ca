//! A machine as an instance of this process.

use std::sync::Arc;

use anyhow::Context as _;
use smol_cli::{ExitKind, Failure, Interrupt, Progress};

use crate::host::instance::{self, Instance, Record};
use crate::host::{control, emulated};
use crate::images::lazy::FirstStart;
use crate::images::{self, cache};
use crate::run::output::Output;
use crate::run::report::{End, Report, Up};
use crate::run::spec::RunSpec;
use crate::run::supervisor::Supervisor;

/// The first start of a bundle that another process has verified and not unpacked.
///
/// # Errors
/// If the bundle is not that one any more, or cannot be unpacked.
pub fn first_start(spec: &RunSpec, interrupt: &Interrupt) -> anyhow::Result<Option<FirstStart>> {
    let Some(cache) = &spec.unpack_into else {
        return Ok(None);
    };
    let bundle = images::open_bundle(&spec.bundle)?;
    if bundle.digest().to_string() != spec.digest {
        let message = format!(
            "{} was exchanged for another bundle while it was being started",
            spec.bundle.display()
        );
        return Err(Failure::new(ExitKind::Verification, message).into());
    }
    if cache::look(&bundle, cache)?.1 {
        return Ok(None);
    }
    FirstStart::begin(bundle, cache, &Progress::silent(), interrupt)
}

/// Whether our stdout and stderr are the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// They are.
    Output,
    /// There is nobody to see them: stderr becomes the log.
    Log,
}

/// Runs the machine as an instance of this process, to its end; at a first start while its bundle
/// is being unpacked.
///
/// # Errors
/// If it cannot be run, or ends in another way than it should.
pub fn run(
    spec: &RunSpec,
    first: Option<FirstStart>,
    standard: Standard,
    report: Arc<dyn Report>,
    interrupt: &Interrupt,
) -> anyhow::Result<End> {
    let record = Record::new(
        &spec.name,
        &spec.config.name,
        &spec.bundle,
        &spec.digest,
        spec.accel(),
    );
    let root = instance::root()?;
    let instance = Instance::claim(&root, record)?;
    let log = instance.create_log()?;
    if standard == Standard::Log {
        rustix::stdio::dup2_stderr(log.file()).context("cannot write to the log")?;
    }
    let output = Arc::new(Output::new(standard == Standard::Output, Some(log)));
    let running = |up: &Up| instance.set_running(&up.ports);
    if spec.emulated {
        let host = emulated::Outer::spawn(spec)?;
        instance.control()?.serve(host.orders());
        control::from_signals(interrupt, host.orders());
        return host.run(spec, &output, &*report, running);
    }
    if let Some(first) = &first {
        first.belongs_to(instance.folder(), report.clone());
    }
    let supervisor = Supervisor::new();
    let control = instance.control()?;
    let (by_socket, by_signal) = (supervisor.orders(), supervisor.orders());
    let started = || {
        control.serve(by_socket);
        control::from_signals(interrupt, by_signal);
        instance::sweep(&root);
    };
    let outcome = supervisor.run(
        spec,
        first.as_ref(),
        output,
        report.clone(),
        started,
        running,
    );
    if let Some(first) = first {
        first.finish(|text| report.note(text))?;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::spec;
    use crate::testing::Sample;

    #[test]
    fn a_bundle_that_is_not_the_one_that_was_verified_is_not_started() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let interrupt = Interrupt::detached().unwrap();
        let spec = |digest: String| RunSpec {
            bundle: sample.bundle.clone(),
            unpack_into: Some(cache.path().to_owned()),
            digest,
            ..spec::sample()
        };
        let verified = sample.open().digest().to_string();
        let other = format!("sha256:{}", "0".repeat(64));
        let error = first_start(&spec(other), &interrupt).err().unwrap();
        assert!(error.to_string().contains("was exchanged"), "{error:#}");
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        assert!(std::fs::read_dir(cache.path()).unwrap().next().is_none());

        // If not on demand, it is unpacked; and what is unpacked needs no first start.
        let first = first_start(&spec(verified.clone()), &interrupt).unwrap();
        let bundle = sample.open();
        let there = || cache::look(&bundle, cache.path()).unwrap().1;
        assert_ne!(first.is_some(), there());
        if let Some(first) = first {
            first.unpack().unwrap();
        }
        assert!(there());
        assert!(first_start(&spec(verified), &interrupt).unwrap().is_none());
        assert!(first_start(&spec::sample(), &interrupt).unwrap().is_none());
    }
}
