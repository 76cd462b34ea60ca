//! `smolrun BUNDLE`, from the command line to the exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use smol_bundle::Bundle;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, Session, paths};
use smol_host::{Accel, Backend, GuestKind, Selected};
use smol_sandbox::Mode;

use crate::cli::RunArgs;
use crate::habits;
use crate::host::fetcher::Fetcher;
use crate::host::process::{self, Standard};
use crate::host::terminal::Terminal;
use crate::host::{background, confine, emulated, instance};
use crate::images::bundle::{self, Has, absolute};
use crate::images::{Images, Source};
use crate::run::metrics::{Metrics, Moment};
use crate::run::publish::Publish;
use crate::run::report::{End, Report as _};
use crate::run::spec::{ColdBoot, RunSpec};
use crate::run::{ports, publish};
use smol_trust::{Keyring, Purpose};

/// Runs the bundle, here or in the background.
///
/// # Errors
/// If it cannot be run, or ends in another way than it should.
pub fn run(args: &RunArgs, start: Moment) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let session = Session::new(args.shown.progress, interrupt);
    let path = args.bundle.as_deref().context("no bundle was named")?;
    let early = Early::decide(args)?;
    let emulated = early.may_be_emulated();
    let fetcher = emulated.then(Fetcher::if_needed).transpose()?.flatten();
    let cache = paths::cache_dir()?;
    confine(args, path, &cache, &early, &session.progress)?;
    let bundle = open_trusted(path, args, &session.progress)?;
    if args.verify {
        bundle::verify(&bundle, &session)?;
    }
    let mut spec = spec_of(&bundle, path, args, start, early, &session.progress)?;
    let fetch_kernel = || fetcher.map_or(Ok(()), Fetcher::fetch);

    let moment = Moment::now();
    let lazily = spec.has.snapshot && spec.cold != ColdBoot::Always && !spec.emulated;
    if args.detach {
        // In use until the other process has them in use, too.
        let (images, _in_use) = Source::prepare(&bundle, &cache, lazily, &session)?;
        spec.metrics.images_ms = Some(moment.elapsed_ms());
        session.check()?;
        fetch_kernel()?;
        let terminal = terminal(&spec, session.progress);
        return background::start(&spec, &images, &terminal, &session.interrupt);
    }
    let images = Images::load(bundle, &cache, lazily, &session)?;
    spec.metrics.images_ms = Some(moment.elapsed_ms());
    session.check()?;
    fetch_kernel()?;
    let report = Arc::new(terminal(&spec, session.progress));
    let end = process::run(
        &spec,
        images,
        Standard::Output,
        report.clone(),
        &session.interrupt,
    )?;
    match session.interrupt.check() {
        // A signal to this process has stopped it: the exit code tells which, as in a shell.
        Err(signal) if end == End::Killed => Err(signal.into()),
        Err(signal) => Ok(smol_cli::exit_kind(&signal.into()).into()),
        Ok(()) => Ok(end.exit_code(|text| report.note(text)).into()),
    }
}

/// What is decided before the bundle is opened.
struct Early {
    sandbox: Mode,
    /// Where to run, where that does not depend on the bundle: only who may have to start QEMU keeps the
    /// right to. Without any way to run a machine, the bundle's own errors are told first.
    selected: Option<Selected>,
    select_ms: f64,
    /// The ports of `-p`; where QEMU is to listen on them, with their numbers.
    ports: Vec<Publish>,
}

impl Early {
    fn decide(args: &RunArgs) -> anyhow::Result<Self> {
        let sandbox = Mode::from_environment()?;
        let moment = Moment::now();
        let select = || smol_host::select(args.host.accel, GuestKind::Linux).ok();
        let mut early = Self {
            sandbox,
            selected: (args.host.accel != Accel::Kvm).then(select).flatten(),
            select_ms: moment.elapsed_ms(),
            ports: args.publish.clone(),
        };
        // One that is taken is told when it is known that the bundle is good.
        if early.may_be_emulated()
            && let Ok(ports) = emulated::available(&args.publish)
        {
            early.ports = ports;
        }
        Ok(early)
    }

    fn may_be_emulated(&self) -> bool {
        let selected = self.selected.as_ref();
        selected.is_some_and(|selected| selected.accel == Backend::Emulated)
    }
}

/// Decides where to run, unless that is decided, and says so if it is not what one would expect.
fn select(
    args: &RunArgs,
    has: Has,
    early: Option<Selected>,
    progress: &Progress,
) -> anyhow::Result<Selected> {
    let guest = match has.initramfs {
        true => GuestKind::Linux,
        false => GuestKind::Bare,
    };
    let selected = match early {
        Some(selected) => selected,
        None => smol_host::select(args.host.accel, guest).map_err(Failure::from)?,
    };
    if let Some(why) = &selected.why {
        note(progress, &format!("{why}. Details: smolrun doctor"));
    }
    Ok(selected)
}

/// Restricts this process to what it takes to start the bundle, and says if it cannot be.
fn confine(
    args: &RunArgs,
    bundle: &Path,
    cache: &Path,
    early: &Early,
    progress: &Progress,
) -> anyhow::Result<()> {
    if let Some(why) = smol_sandbox::warning(early.sandbox) {
        note(progress, &format!("warning: {why}"));
    }
    let start = confine::Start {
        bundle,
        cache,
        keys: &args.key,
        ports: &early.ports,
        metrics_file: args.metrics_file.as_deref(),
        emulated: early.may_be_emulated(),
    };
    confine::before_bundle(&start, early.sandbox)
}

fn terminal(spec: &RunSpec, progress: Progress) -> Terminal {
    Terminal {
        machine: spec.config.name.clone(),
        hint: publish::how_to_reach(&spec.config.name, &spec.config.ports, &spec.ports)
            .filter(|_| spec.has.initramfs),
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
    let bundle = match bundle::open(path) {
        Err(error) => return Err(habits::about_bundle(path).map_or(error, Into::into)),
        Ok(bundle) => bundle,
    };
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
    early: Early,
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
    if let Some(warning) = publish::undeclared(&config.name, &config.ports, &args.publish) {
        note(progress, &warning);
    }
    let root = instance::root()?;
    let name = match &args.name {
        Some(name) => instance::check_free(&root, name).map(|()| name.clone())?,
        None => instance::invent_name(&root, &config.name)?,
    };
    // The machine binds them again. This tells of one that is taken before anything is unpacked.
    drop(ports::bind(&early.ports)?);
    let mut metrics = Metrics {
        open_ms: Some(start.elapsed_ms() - early.select_ms),
        ..Metrics::default()
    };
    let moment = Moment::now();
    let selected = select(args, has, early.selected, progress)?;
    metrics.accel_ms = Some(moment.elapsed_ms() + early.select_ms);
    Ok(RunSpec {
        name,
        bundle: absolute(path)?,
        digest: bundle.digest().to_string(),
        config: config.clone(),
        has,
        ports: early.ports,
        cold: args.cold_boot(),
        auto_remove: args.rm,
        verbose: args.verbose,
        emulated: selected.accel == Backend::Emulated,
        sandbox: early.sandbox,
        metrics_file: args.metrics_file.as_deref().map(absolute).transpose()?,
        metrics,
        start,
    })
}
