//! `smolbuild [SMOLFILE|DIR]`: the pipeline, top to bottom.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use serde_json::json;
use smol_bundle::Written;
use smol_cli::progress::{Stage, render_waterfall};
use smol_cli::{ExitKind, Failure, Interrupt, Progress, human, paths};
use smol_guest::protocol::Event;
use smol_host::Selected;

use super::{bundle_error, host_error, keys};
use crate::assemble::{self, Images};
use crate::boot::{self, Failed, Frozen, Job, Message};
use crate::cli::Build;
use crate::pack;
use crate::plan::{self, Flags, Plan};
use crate::smolfile;
use crate::work::WorkDir;

/// Wall-clock limit of a boot, seconds. Waiting costs no time on virtual time, so only a guest
/// that works all the while comes near it.
const BOOT_LIMIT: u64 = 20 * 60;

/// Builds the machine and writes its bundle.
pub fn run(args: &Build, interrupt: &Interrupt) -> Result<()> {
    let progress = Progress::new(args.progress);
    let loaded = smolfile::load(&args.path)?;
    let key = args.sign.as_deref().map(keys::load_private).transpose()?;
    let epoch = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .map(|t| plan::parse_epoch(&t))
        .transpose()?;
    let mut plan = Plan::resolve(&loaded.smolfile, &loaded.base_dir, &Flags { epoch })?;
    let out = args
        .output
        .clone()
        .unwrap_or_else(|| format!("{}.smolmachine", plan.name).into());
    for file in [Some(&out), args.metadata_file.as_ref()]
        .into_iter()
        .flatten()
    {
        check_writable(file)?;
    }
    let selected = smol_host::select(args.accel).map_err(host_error)?;
    if let Some(why) = &selected.why {
        progress.note(why);
    }
    let shared_cache = paths::cache_dir()?;
    let work = WorkDir::create(&shared_cache)?;
    let cache = if args.no_cache {
        work.subdir("cache")?
    } else {
        shared_cache.clone()
    };

    let images = assemble::assemble(&mut plan, &cache, work.path(), &progress, interrupt)?;
    let frozen_in = work.subdir("frozen")?;
    let job = job(&plan, &images, &frozen_in);
    let frozen = boot(
        &job,
        &selected,
        &shared_cache,
        &progress,
        args.verbose,
        interrupt,
    )?;
    let spec = pack::spec(
        &plan,
        &images,
        &frozen,
        &frozen_in,
        loaded.source.into_bytes(),
    )?;
    interrupt.check()?;
    let written = pack(&spec, &out, &work, key.as_ref(), &progress, interrupt)?;
    report(
        &plan,
        &out,
        &written,
        &frozen,
        key.is_some(),
        args,
        &progress,
    )
}

/// Finds out before the work, not after it, whether there is a place for its result.
fn check_writable(file: &Path) -> Result<()> {
    let what = || format!("cannot write {}", file.display());
    if file.is_dir() {
        return Err(
            Failure::new(ExitKind::Usage, format!("{}: it is a folder", what()))
                .hint("name the file to write")
                .into(),
        );
    }
    tempfile::tempfile_in(folder_of(file))
        .with_context(what)
        .map(drop)
}

fn folder_of(file: &Path) -> &Path {
    file.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn job(plan: &Plan, images: &Images, out: &Path) -> Job {
    let ready_line = plan.console_ready.as_ref().map(|r| match &r.probe {
        smol_guest::protocol::Probe::Log { pattern } => pattern.clone(),
        other => unreachable!(
            "the parser gives a machine without a service nothing but a log probe, not {other}"
        ),
    });
    Job {
        kernel: images.kernel.clone(),
        initramfs: images.initramfs.clone(),
        rootfs: images.rootfs.clone(),
        cmdline: plan.kernel.build_cmdline.clone(),
        memory: plan.memory,
        vcpus: u8::try_from(plan.cpus).expect("the parser allows few"),
        epoch: plan.epoch,
        seed: blake3::Hash::from_bytes(plan.seed()).to_hex().to_string(),
        limit: plan
            .console_ready
            .as_ref()
            .map_or(BOOT_LIMIT, |r| r.timeout_ms.div_ceil(1000)),
        ready_line,
        out: out.to_owned(),
    }
}

/// Boots the machine until it is frozen, wherever it can run.
fn boot(
    job: &Job,
    selected: &Selected,
    cache: &Path,
    progress: &Progress,
    verbose: bool,
    interrupt: &Interrupt,
) -> Result<Frozen> {
    let stages = Arc::new(Mutex::new(BootStages::new(progress, verbose)));
    let report = {
        let stages = stages.clone();
        move |message| stages.lock().expect("no stage panics").message(message)
    };
    match selected.accel {
        smol_host::Backend::Kvm => boot::local::run(job, interrupt, report)?,
        smol_host::Backend::Emulated => boot::emulated::run(job, cache, interrupt, report)?,
    }
    let outcome = stages.lock().expect("no stage panics").outcome.take();
    match outcome {
        Some(Ok(frozen)) => Ok(frozen),
        Some(Err(failed)) => Err(boot_error(&failed, interrupt)),
        None => Err(Failure::new(ExitKind::Failed, "the machine ended without a word").into()),
    }
}

/// Turns the machine's messages into progress: boot, service, warm, snapshot.
struct BootStages {
    progress: Progress,
    current: Option<Stage>,
    outcome: Option<Result<Frozen, Failed>>,
    verbose: bool,
}

impl BootStages {
    fn new(progress: &Progress, verbose: bool) -> Self {
        let current = Some(progress.stage("boot", "booting the machine"));
        Self {
            progress: progress.clone(),
            current,
            outcome: None,
            verbose,
        }
    }

    fn start(&mut self, name: &str, message: &str) {
        self.current = Some(self.progress.stage(name, message));
    }

    fn finish(&mut self, result: &str) {
        if let Some(stage) = self.current.take() {
            stage.finish(result);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Guest(event) => self.event(&event),
            Message::Log(line) if self.verbose => self.progress.note(&format!("service | {line}")),
            Message::Console(line) if self.verbose => {
                self.progress.note(&format!("console | {line}"))
            }
            Message::Log(_) | Message::Console(_) => {}
            Message::Captured { nonzero_pages } => {
                self.finish(&format!(
                    "{} of memory in use",
                    human::bytes(nonzero_pages * 4096)
                ));
                self.start("rehearsal", "looking what a restored machine touches first");
            }
            Message::Frozen(frozen) => {
                match (&frozen.working_set, &frozen.no_working_set) {
                    (Some(set), _) => self.finish(&format!(
                        "{} of memory, {} of the root file system",
                        human::bytes(set.memory_pages * 4096),
                        human::bytes(set.rootfs_pages * 4096)
                    )),
                    (None, why) => {
                        self.finish("not found out");
                        let why = why.as_deref().unwrap_or_default();
                        self.progress.note(&format!(
                            "warning: {why}: the bundle will start more slowly, and differ from one \
                             that is built where this works"
                        ));
                    }
                }
                self.outcome = Some(Ok(frozen));
            }
            Message::Failed(failed) => self.outcome = Some(Err(failed)),
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Booted => {
                self.finish("up");
                self.start("service", "starting the service");
            }
            Event::Ready { attempts } => self.finish(&format!("ready at attempt {attempts}")),
            Event::WarmStarted { index } => {
                self.start("warm", &format!("running warm command {}", index + 1))
            }
            Event::WarmFinished { status, .. } => self.finish(&status.to_string()),
            Event::Quiesced => self.start("snapshot", "capturing the machine"),
            Event::Warning { reason, .. } => self.progress.note(&format!("warning: {reason}")),
            _ => {}
        }
    }
}

fn boot_error(failed: &Failed, interrupt: &Interrupt) -> anyhow::Error {
    if failed.interrupted
        && let Err(stopped) = interrupt.check()
    {
        return stopped.into();
    }
    let explanation = failed.explanation();
    let error = anyhow::Error::from(Failure::new(ExitKind::Failed, failed.reason.clone()));
    if explanation.is_empty() {
        error
    } else {
        anyhow::Error::msg(explanation).context(error)
    }
}

/// Writes the bundle beside its destination's name, signed or not; it appears whole or not at all.
fn pack(
    spec: &smol_bundle::BundleSpec,
    out: &Path,
    work: &WorkDir,
    key: Option<&smol_bundle::PrivateKey>,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Written> {
    let stage = progress.stage("pack", "dropping equal pages, compressing");
    let unsigned: PathBuf = if key.is_some() {
        work.path().join("unsigned")
    } else {
        out.to_owned()
    };
    let mut advance = |done, total| stage.set(done, total);
    let written = pack::write(spec, &unsigned, &mut advance, interrupt).map_err(|error| {
        let stopped = interrupt.check().err().map(anyhow::Error::from);
        stopped.unwrap_or_else(|| bundle_error(error))
    })?;
    stage.finish(&human::bytes(written.file_size));
    if let Some(key) = key {
        interrupt.check()?;
        let stage = progress.stage("sign", "signing");
        smol_bundle::sign(&unsigned, key, out).map_err(bundle_error)?;
        stage.finish(&format!("by {}", key.public().id()));
    }
    Ok(written)
}

/// Waterfall, metadata and the one line that says what there is now.
fn report(
    plan: &Plan,
    out: &Path,
    written: &Written,
    frozen: &Frozen,
    signed: bool,
    args: &Build,
    progress: &Progress,
) -> Result<()> {
    const WIDTH: usize = 40;
    let laps = progress.waterfall();
    if args.progress != smol_cli::progress::Mode::Json {
        eprint!("{}", render_waterfall(&laps, WIDTH));
    }
    if let Some(path) = &args.metadata_file {
        let facts = json!({
            "name": plan.name, "digest": written.digest.to_string(), "fileSize": written.file_size,
            "signed": signed, "plan": blake3::Hash::from_bytes(plan.digest()).to_hex().to_string(),
            "frozen": frozen, "stages": laps,
        });
        let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
        file.write_all(&serde_json::to_vec_pretty(&facts)?)?;
        file.persist(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let ports: String = plan
        .ports()
        .iter()
        .map(|p| format!(" -p {}:{p}", if *p < 10000 { 10000 + *p } else { *p }))
        .collect();
    let trust = if signed {
        " --key PUBLIC.pub"
    } else {
        " --insecure-unsigned"
    };
    println!(
        "{}  {}  {}  {}",
        plan.name,
        human::bytes(written.file_size),
        written.digest,
        out.display()
    );
    println!("run it:  smolrun {}{ports}{trust}", out.display());
    Ok(())
}
