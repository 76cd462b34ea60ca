//! `smolrun BUNDLE`, from the command line to the exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, paths};
use smol_host::Backend;

use crate::cli::RunArgs;
use crate::host::instance;
use crate::host::process::{self, Standard};
use crate::host::terminal::Terminal;
use crate::host::{background, emulated};
use crate::images::lazy::FirstStart;
use crate::images::{self, cache};
use crate::run::metrics::{Metrics, Moment};
use crate::run::report::End;
use crate::run::spec::{Has, RunSpec};
use crate::trust::Keyring;

/// Runs the bundle, here or in the background.
///
/// # Errors
/// Whatever keeps it from running to the end of its service.
pub fn run(args: &RunArgs, start: Moment) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let progress = Progress::new(args.progress);
    let (spec, first) = prepare(args, start, &progress, &interrupt)?;
    let terminal = Terminal {
        machine: spec.config.name.clone(),
        progress,
        metrics_file: spec.metrics_file.clone(),
    };
    if args.detach {
        return background::start(&spec, &terminal, &interrupt);
    }
    let end = process::run(
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
    let bundle = images::open_bundle(path)?;
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
    let selected = smol_host::select(args.accel).map_err(emulated::host_failure)?;
    metrics.accel_ms = Some(moment.elapsed_ms());
    if let Some(why) = &selected.why {
        note(why);
    }
    let moment = Moment::now();
    let cache_dir = paths::cache_dir()?;
    let (folder, complete) = cache::look(&bundle, &cache_dir)?;
    let may_run_meanwhile = has.snapshot && !args.cold && selected.accel == Backend::Kvm;
    let (digest, config) = (bundle.digest().to_string(), config.clone());
    // The child's memory must be the child's: only whether there can be any is found out here.
    let later =
        args.detach && !complete && may_run_meanwhile && FirstStart::room(&bundle).is_some();
    let first = if complete || later {
        None
    } else if may_run_meanwhile && !args.detach {
        FirstStart::begin(bundle, &cache_dir, progress, interrupt)?
    } else {
        cache::images(&bundle, &cache_dir, progress, interrupt)?;
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
        images: absolute(&folder)?,
        unpack_into: later.then(|| absolute(&cache_dir)).transpose()?,
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
