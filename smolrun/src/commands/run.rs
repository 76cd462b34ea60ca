//! `smolrun BUNDLE`, from the command line to the exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use smol_bundle::Bundle;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, Session, paths};
use smol_host::Backend;

use crate::cli::RunArgs;
use crate::host::process::{self, Standard};
use crate::host::terminal::Terminal;
use crate::host::{background, emulated, instance};
use crate::images::bundle::{self, Has, absolute};
use crate::images::{Images, Source};
use crate::run::metrics::{Metrics, Moment};
use crate::run::report::End;
use crate::run::spec::RunSpec;
use smol_trust::{Keyring, Purpose};

/// Runs the bundle, here or in the background.
///
/// # Errors
/// If it cannot be run, or ends in another way than it should.
pub fn run(args: &RunArgs, start: Moment) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let session = Session::new(args.shown.progress, interrupt);
    let path = args.bundle.as_deref().context("no bundle was named")?;
    let bundle = open_trusted(path, args, &session.progress)?;
    let mut spec = spec_of(&bundle, path, args, start, &session.progress)?;

    let moment = Moment::now();
    let cache = paths::cache_dir()?;
    let lazily = spec.has.snapshot && !spec.cold && !spec.emulated;
    if args.detach {
        let images = Source::prepare(&bundle, &cache, lazily, &session)?;
        spec.metrics.images_ms = Some(moment.elapsed_ms());
        session.check()?;
        let terminal = terminal(&spec, session.progress);
        return background::start(&spec, &images, &terminal, &session.interrupt);
    }
    let images = Images::load(bundle, &cache, lazily, &session)?;
    spec.metrics.images_ms = Some(moment.elapsed_ms());
    session.check()?;
    let report = Arc::new(terminal(&spec, session.progress));
    let end = process::run(&spec, images, Standard::Output, report, &session.interrupt)?;
    if end == End::Killed {
        // If it was by a signal to this process, the exit code tells which.
        session.interrupt.check()?;
    }
    Ok(end.exit_code())
}

fn terminal(spec: &RunSpec, progress: Progress) -> Terminal {
    Terminal {
        machine: spec.config.name.clone(),
        progress,
        metrics_file: spec.metrics_file.clone(),
    }
}

/// Prints a line about the run.
fn note(progress: &Progress, text: &str) {
    progress.note(&format!("smolrun: {text}"));
}

const RUN: Purpose = Purpose {
    refused: "is refused",
    unsigned: "--insecure-unsigned runs it all the same: for bundles that you have built yourself",
    unknown: None,
};

/// Opens the bundle and checks its signature.
fn open_trusted(path: &Path, args: &RunArgs, progress: &Progress) -> anyhow::Result<Bundle> {
    let bundle = bundle::open(path)?;
    let keyring = Keyring::of_user(&args.key, |text| note(progress, text))?;
    let signer = keyring.check(&bundle, args.insecure_unsigned, RUN)?;
    if signer.is_none() {
        let path = path.display();
        let text = format!("warning: {path} is not signed by a trusted key (--insecure-unsigned)");
        note(progress, &text);
    }
    Ok(bundle)
}

/// Makes the spec of the run, and decides where it runs.
fn spec_of(
    bundle: &Bundle,
    path: &Path,
    args: &RunArgs,
    start: Moment,
    progress: &Progress,
) -> anyhow::Result<RunSpec> {
    let (config, has) = (bundle.config(), Has::of(bundle));
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
    let open_ms = Some(start.elapsed_ms());
    let moment = Moment::now();
    let selected = smol_host::select(args.host.accel).map_err(emulated::host_failure)?;
    let metrics = Metrics {
        open_ms,
        accel_ms: Some(moment.elapsed_ms()),
        ..Metrics::default()
    };
    if let Some(why) = &selected.why {
        note(progress, why);
    }
    Ok(RunSpec {
        name,
        bundle: absolute(path)?,
        digest: bundle.digest().to_string(),
        config: config.clone(),
        has,
        ports: args.publish.clone(),
        cold: args.cold,
        verbose: args.verbose,
        emulated: selected.accel == Backend::Emulated,
        metrics_file: args.metrics_file.as_deref().map(absolute).transpose()?,
        metrics,
        start,
    })
}
