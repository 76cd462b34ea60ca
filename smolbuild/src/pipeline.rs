//! The pipeline, top to bottom: from a Smolfile and its lock to a bundle.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use smol_bundle::{Bundle, Prepared, PrivateKey, Written};
use smol_cli::progress::Stage;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, human, paths};
use smol_host::{Accel, Selected};
use smol_protocol::Event;

use crate::assemble::{self, BuildDirs, Images};
use crate::boot::{self, Failed, Frozen, Job, Message};
use crate::built::Shelf;
use crate::context::Context;
use crate::error::{LibraryError, ResultExt};
use crate::fetch::Net;
use crate::pack;
use crate::plan::{Plan, Sealed};
use crate::prepare::Preparing;
use crate::resolve::{self, EnvironmentInputs, Kept, Policy};
use crate::smolfile::Loaded;
use crate::work::WorkDir;

/// Wall-clock limit of a boot, seconds. Waiting costs no time on virtual time, so only a guest
/// that works all the while comes near it.
const BOOT_LIMIT: u64 = 20 * 60;

/// What is to be built, and how.
pub struct Request<'a> {
    /// The Smolfile, and the folder with the files that it names.
    pub smolfile: &'a Loaded,
    /// Where its lock comes from.
    pub lock: Policy,
    /// Whether nothing may be downloaded.
    pub offline: bool,
    /// What the environment adds.
    pub environment: EnvironmentInputs,
    /// What may be taken from the cache.
    pub reuse: Reuse,
    /// Where the machine boots.
    pub accel: Accel,
    /// Seconds after which the watchdog gives a guest that never pauses a tick.
    pub watchdog: u64,
    /// Whether console and service are shown.
    pub verbose: bool,
    /// The bundle to write.
    pub out: &'a Path,
    /// Signs it.
    pub key: Option<&'a PrivateKey>,
}

/// What a build may take from the cache. Downloads it takes in any case: they are pinned by digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Kernels, installed systems, and whole bundles ([`crate::built`]).
    All,
    /// Kernels and installed systems: the machine boots.
    Parts,
    /// Nothing, and nothing is left in it.
    Nothing,
}

impl Reuse {
    /// As the command line has it.
    pub fn of(rebuild: bool, no_cache: bool) -> Self {
        match (rebuild, no_cache) {
            (_, true) => Self::Nothing,
            (true, false) => Self::Parts,
            (false, false) => Self::All,
        }
    }
}

/// A bundle that was written.
pub struct Built {
    /// What it was built from, and the digests of its images.
    pub sealed: Sealed,
    /// The machine as it was frozen.
    pub frozen: Frozen,
    /// The file.
    pub written: Written,
}

/// Builds a machine and writes its bundle, which appears whole or not at all.
///
/// # Errors
/// Whatever keeps a stage from being done.
pub fn build_bundle(
    request: &Request,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Built> {
    let loaded = request.smolfile;
    let shared_cache = paths::cache_dir()?;
    let downloads = shared_cache.join("downloads");
    let context = Context {
        downloads: &downloads,
        net: Net::allowed(request.offline),
        environment: &request.environment,
        progress,
        interrupt,
    };
    let resolved = resolve::resolve(loaded, &request.lock, context)?;
    let context = Context {
        net: resolved.net,
        ..context
    };
    if let Some(warning) = recent_epoch(resolved.lock.builder.epoch.into(), SystemTime::now()) {
        progress.note(&warning);
    }
    let plan = Plan::resolve(&loaded.smolfile, &loaded.base_dir, resolved.lock)?;
    let work = WorkDir::create(&shared_cache)?;
    let shelf = match request.reuse {
        Reuse::All | Reuse::Parts => Some(Shelf::open(&shared_cache)?),
        Reuse::Nothing => None,
    };
    if let Some(shelf) = &shelf
        && request.reuse == Reuse::All
        && let Some(built) = take(shelf, &plan, request, &work, progress, interrupt)?
    {
        return Ok(built);
    }
    let selected = smol_host::select(request.accel).classify()?;
    if let Some(why) = &selected.why {
        progress.note(why);
    }
    let dirs = BuildDirs {
        cache: &match request.reuse {
            Reuse::Nothing => work.subdir("cache")?,
            Reuse::All | Reuse::Parts => shared_cache.clone(),
        },
        work: work.path(),
    };
    let (sealed, images) = assemble::assemble(&plan, dirs, context)?;
    if let Some(file) = &resolved.file {
        resolve::keep(file, &sealed.plan.lock, progress)?;
    }
    if context.net == Net::Offline {
        require_emulated_kernel(&selected, &shared_cache)?;
    }
    // A file that was changed after its digest was taken is in the images, but not in the key.
    let unchanged = {
        let lock = &sealed.plan.lock;
        let kept = Kept::all(Some(lock));
        resolve::current(loaded, kept, &request.environment, interrupt)?.0 == *lock
    };
    let frozen_in = work.subdir("frozen")?;
    let job = job(&sealed, &images, request.watchdog, &frozen_in);
    let preparing = Preparing::begin(&images, interrupt);
    let frozen = boot(
        &job,
        &selected,
        &shared_cache,
        progress,
        request.verbose,
        interrupt,
    )?;
    let prepared = preparing.end();
    let spec = pack::spec(&sealed.plan, &images, &frozen, &frozen_in, &loaded.source)?;
    interrupt.check()?;
    let unsigned = match request.key {
        Some(_) => work.path().join("unsigned"),
        None => request.out.to_owned(),
    };
    let written = pack(&spec, &prepared, &unsigned, progress, interrupt)?;
    if let Some(shelf) = shelf
        && unchanged
        && pack::unreproducible(&frozen).is_none()
    {
        let key = shelf.key(&sealed.plan, &loaded.source);
        let kept = shelf.keep(
            &key,
            &unsigned,
            &written.digest,
            &sealed.digests,
            &frozen,
            work.path(),
        );
        if let Err(error) = kept {
            progress.note(&format!("the bundle is not kept in the cache: {error:#}"));
        }
    }
    if let Some(key) = request.key {
        sign(&unsigned, key, request.out, progress, interrupt)?;
    }
    Ok(Built {
        sealed,
        frozen,
        written,
    })
}

/// The bundle of an earlier build of the same, signed as is asked for now.
fn take(
    shelf: &Shelf,
    plan: &Plan,
    request: &Request,
    work: &WorkDir,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Option<Built>> {
    let key = shelf.key(plan, &request.smolfile.source);
    let (unsigned, facts) = match shelf.take(&key, work.path()) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(error) => {
            progress.note(&format!(
                "building anew, for the cache is damaged: {error:#}"
            ));
            return Ok(None);
        }
    };
    let stage = progress.stage("build", "there is a bundle of the same in the cache");
    let bundle = Bundle::open(&unsigned).classify()?;
    if request.key.is_none() {
        smol_bundle::copy(&unsigned, request.out).classify()?;
    }
    stage.finish("cached");
    if let Some(key) = request.key {
        sign(&unsigned, key, request.out, progress, interrupt)?;
    }
    Ok(Some(Built {
        sealed: Sealed {
            plan: plan.clone(),
            digests: facts.inputs,
        },
        frozen: facts.frozen,
        written: Written {
            digest: bundle.digest(),
            file_size: bundle.file_size(),
            stats: bundle.stats(),
        },
    }))
}

/// Programs that draw from a generator of their own reseed it by the clock (OpenSSL's does so after an
/// hour at the latest). A machine whose clock hardly jumps at its restore goes on with the seed that
/// all machines of the bundle have.
fn recent_epoch(epoch: u64, now: SystemTime) -> Option<String> {
    const OLD_ENOUGH: Duration = Duration::from_secs(3600);
    let old_enough = UNIX_EPOCH + Duration::from_secs(epoch) + OLD_ENOUGH <= now;
    (!old_enough).then(|| {
        "warning: SOURCE_DATE_EPOCH is less than an hour ago: TLS libraries in machines that are \
         restored soon may draw alike, for their clocks tell them no reason to reseed"
            .to_owned()
    })
}

/// Offline, an emulated host must have its kernel.
fn require_emulated_kernel(selected: &Selected, cache: &Path) -> Result<()> {
    use smol_host::emulated::kernel::{KERNEL_ROOT_VARIABLE, Kernel};
    let needed = matches!(selected.accel, smol_host::Backend::Emulated)
        && std::env::var_os(KERNEL_ROOT_VARIABLE).is_none();
    if !needed || Kernel::cached(cache).is_some() {
        return Ok(());
    }
    let what = "offline, and the kernel of the emulated host is not in the cache";
    Err(Failure::new(ExitKind::Failed, what)
        .hint("build once without --offline")
        .into())
}

fn job(sealed: &Sealed, images: &Images, watchdog: u64, out: &Path) -> Job {
    let plan = &sealed.plan;
    let ready_line = plan.console_ready.as_ref().map(|r| match &r.probe {
        smol_protocol::Probe::Log { pattern } => pattern.clone(),
        other => unreachable!(
            "the parser gives a machine without a service nothing but a log probe, not {other}"
        ),
    });
    let hex = |seed| blake3::Hash::from_bytes(seed).to_hex().to_string();
    Job {
        kernel: images.kernel.clone(),
        initramfs: images.initramfs.clone(),
        rootfs: images.rootfs.clone(),
        cmdline: plan.kernel.build_cmdline.clone(),
        memory: plan.memory,
        vcpus: u8::try_from(plan.cpus).expect("the parser allows few"),
        epoch: plan.epoch(),
        seed: hex(sealed.seed()),
        kernel_seed: hex(sealed.kernel_seed()),
        requests: plan
            .guest
            .as_ref()
            .is_some_and(|guest| !guest.warm_restore.is_empty()),
        watchdog,
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
                self.finish(&match &frozen.working_set {
                    Some(set) => format!(
                        "{} of memory, {} of the root file system",
                        human::bytes(set.memory_pages * 4096),
                        human::bytes(set.rootfs_pages * 4096)
                    ),
                    None => "not found out".to_owned(),
                });
                if let Some(why) = pack::unreproducible(&frozen) {
                    self.progress
                        .note(&format!("warning: not reproducible: {why}"));
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

/// Writes the unsigned bundle, which appears whole or not at all.
fn pack(
    spec: &smol_bundle::BundleSpec,
    prepared: &Prepared,
    out: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Written> {
    let stage = progress.stage("pack", "dropping equal pages, compressing");
    let mut advance = |done, total| stage.set(done, total);
    let written = pack::write(spec, prepared, out, &mut advance, interrupt).map_err(|error| {
        let stopped = interrupt.check().err().map(anyhow::Error::from);
        stopped.unwrap_or_else(|| error.classified())
    })?;
    stage.finish(&human::bytes(written.file_size));
    Ok(written)
}

/// Writes a signed copy, likewise.
fn sign(
    unsigned: &Path,
    key: &PrivateKey,
    out: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    interrupt.check()?;
    let stage = progress.stage("sign", "signing");
    smol_bundle::sign(unsigned, key, out).classify()?;
    stage.finish(&format!("by {}", key.public().id()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_hardly_jumps_at_the_restore_is_warned_of() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(recent_epoch(crate::plan::DEFAULT_EPOCH.into(), now), None);
        assert_eq!(recent_epoch(1_799_996_400, now), None);
        for recent in [1_799_996_401, 1_800_000_000, 1_900_000_000] {
            assert!(recent_epoch(recent, now).is_some(), "{recent}");
        }
    }
}
