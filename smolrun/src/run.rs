//! `smolrun BUNDLE`, from the command line to the exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use smol_bundle::Bundle;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Progress, paths};
use smol_host::Backend;

use crate::cli::RunArgs;
use crate::first::FirstStart;
use crate::instance::{self, Instance, Record};
use crate::metrics::{Metrics, Moment};
use crate::output::Output;
use crate::report::{End, Report, Terminal, Up};
use crate::spec::{Has, RunSpec};
use crate::supervise::Supervisor;
use crate::trust::Keyring;
use crate::{detached, emulated, materialise, orders};

/// Runs the bundle, here or in the background.
///
/// # Errors
/// Whatever keeps it from running to the end of its service.
pub fn run(args: &RunArgs, start: Moment) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let progress = Progress::new(args.shown.progress);
    let (spec, first) = prepare(args, start, &progress, &interrupt)?;
    let terminal = Terminal {
        machine: spec.config.name.clone(),
        progress,
        metrics_file: spec.metrics_file.clone(),
    };
    if args.detach {
        return detached::start(&spec, &terminal, &interrupt);
    }
    let end = host(
        &spec,
        first,
        Standard::Output,
        Arc::new(terminal),
        &interrupt,
    )?;
    if end == End::Killed {
        // By a signal of ours, before the service could end: the exit code tells which.
        interrupt.check()?;
    }
    Ok(end.exit_code())
}

/// Opens and verifies the bundle, decides where it runs, and unpacks it, unless it can run meanwhile.
fn prepare(
    args: &RunArgs,
    start: Moment,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<(RunSpec, Option<FirstStart>)> {
    let note = |text: &str| progress.note(&format!("smolrun: {text}"));
    let path = args.bundle.as_deref().context("no bundle was named")?;
    let bundle = open(path)?;
    let config = bundle.config();
    let keyring = match args.key.is_empty() {
        false => Keyring::named(&args.key)?,
        true => Keyring::of_folder(&paths::config_dir()?.join("trust"), note)?,
    };
    if keyring.judge(&bundle, args.insecure_unsigned)?.is_none() {
        note(&format!(
            "warning: nobody trusted vouches for {} (--insecure-unsigned)",
            path.display()
        ));
    }
    let has = Has::of(&bundle);
    if !args.publish.is_empty() && !has.initramfs {
        let message = format!(
            "{} is just a kernel: it has no ports to forward",
            config.name
        );
        return Err(Failure::new(ExitKind::Usage, message)
            .hint("run it without -p")
            .into());
    }
    let root = instance::root()?;
    let name = match &args.name {
        Some(name) => instance::check_free(&root, name).map(|()| name.clone())?,
        None => instance::invent_name(&root, &config.name)?,
    };
    let mut metrics = Metrics {
        open_ms: Some(start.elapsed_ms()),
        ..Metrics::default()
    };

    let moment = Moment::now();
    let selected = smol_host::select(args.host.accel).map_err(emulated::host_failure)?;
    metrics.accel_ms = Some(moment.elapsed_ms());
    if let Some(why) = &selected.why {
        note(why);
    }
    let moment = Moment::now();
    let cache = paths::cache_dir()?;
    let (images, complete) = materialise::look(&bundle, &cache)?;
    let may_run_meanwhile = has.snapshot && !args.cold && selected.accel == Backend::Kvm;
    let (digest, config) = (bundle.digest().to_string(), config.clone());
    // The child's memory must be the child's: only whether there can be any is found out here.
    let later =
        args.detach && !complete && may_run_meanwhile && FirstStart::room(&bundle).is_some();
    let first = if complete || later {
        None
    } else if may_run_meanwhile && !args.detach {
        FirstStart::begin(bundle, &cache, progress, interrupt)?
    } else {
        materialise::images(&bundle, &cache, progress, interrupt)?;
        None
    };
    metrics.materialise_ms = Some(moment.elapsed_ms());
    interrupt.check()?;
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .with_context(|| format!("cannot make {} absolute", path.display()))
    };
    let spec = RunSpec {
        name,
        bundle: absolute(path)?,
        digest,
        config,
        images: absolute(&images)?,
        unpack_into: later.then(|| absolute(&cache)).transpose()?,
        has,
        ports: args.publish.clone(),
        cold: args.cold,
        verbose: args.verbose,
        emulated: selected.accel == Backend::Emulated,
        metrics_file: args.metrics_file.as_deref().map(absolute).transpose()?,
        metrics,
        start,
    };
    Ok((spec, first))
}

/// The first start of a bundle that another process has verified and not unpacked.
///
/// # Errors
/// If the bundle is not that one any more, or cannot be unpacked.
pub fn first_start(spec: &RunSpec, interrupt: &Interrupt) -> anyhow::Result<Option<FirstStart>> {
    let Some(cache) = &spec.unpack_into else {
        return Ok(None);
    };
    let bundle = open(&spec.bundle)?;
    if bundle.digest().to_string() != spec.digest {
        let message = format!(
            "{} was exchanged for another bundle while it was being started",
            spec.bundle.display()
        );
        return Err(Failure::new(ExitKind::Verification, message).into());
    }
    if materialise::look(&bundle, cache)?.1 {
        return Ok(None);
    }
    FirstStart::begin(bundle, cache, &Progress::silent(), interrupt)
}

fn open(path: &Path) -> anyhow::Result<Bundle> {
    let error = match Bundle::open(path) {
        Ok(bundle) => return Ok(bundle),
        Err(error) => error,
    };
    let verification = error.is_verification_failure();
    let absent = matches!(&error, smol_bundle::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    let error = anyhow::Error::from(error);
    let hint = "name a .smolmachine file; bundles in a registry cannot be run by reference yet";
    Err(match (verification, absent) {
        (true, _) => error.kind(ExitKind::Verification),
        (_, true) => error.kind(ExitKind::Usage).hint(hint),
        _ => error,
    })
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
pub fn host(
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
        orders::from_signals(interrupt, host.orders());
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
        orders::from_signals(interrupt, by_signal);
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
    use crate::spec;
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
        let there = || materialise::look(&bundle, cache.path()).unwrap().1;
        assert_ne!(first.is_some(), there());
        if let Some(first) = first {
            first.unpack().unwrap();
        }
        assert!(there());
        assert!(first_start(&spec(verified), &interrupt).unwrap().is_none());
        assert!(first_start(&spec::sample(), &interrupt).unwrap().is_none());
    }
}
