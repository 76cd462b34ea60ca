//! The pipeline, top to bottom: from a Smolfile and its lock to a bundle.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use smol_bundle::{Bundle, Prepared, PrivateKey, Written};
use smol_cli::{ExitKind, Failure, Session, paths};
use smol_host::cache::DOWNLOADS;
use smol_host::{Accel, Backend, GuestKind, Selected};
use smol_sandbox::Mode;

use crate::assemble::{self, Assembled, BuildDirs};
use crate::boot::{self, BootJob, Frozen, Images, StepMachine};
use crate::bundle_cache::BundleCache;
use crate::cache::hold_for_build;
use crate::context::BuildContext;
use crate::environment::EnvironmentInputs;
use crate::error::ResultExt;
use crate::fetch::Net;
use crate::lock::Lock;
use crate::pack::{self, Built};
use crate::plan::{self, Plan, Sealed};
use crate::prepare::Preparing;
use crate::resolve::{self, Kept, Policy};
use crate::smolfile::{Loaded, Smolfile, Workload};
use crate::steps::{Rerun, StepMachines};
use crate::work::WorkDir;

/// What is to be built, and how.
pub struct BuildRequest<'a> {
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
    /// Which `[[run]]`s run although what they make is there.
    pub rerun: Rerun,
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
    /// Kernels, installed systems, and whole bundles ([`crate::bundle_cache`]).
    All,
    /// Kernels and installed systems: the machine boots.
    Parts,
    /// Nothing, and nothing is left in it.
    Nothing,
}

impl Reuse {
    /// Returns what the options of the command line allow.
    pub fn of(rebuild: bool, no_cache: bool) -> Self {
        match (rebuild, no_cache) {
            (_, true) => Self::Nothing,
            (true, false) => Self::Parts,
            (false, false) => Self::All,
        }
    }
}

/// Builds a machine and writes its bundle, which appears whole or not at all.
///
/// # Errors
/// Whatever keeps a stage from being done.
pub fn build_bundle(request: &BuildRequest, session: &Session) -> Result<Built> {
    let (loaded, cache) = (request.smolfile, paths::cache_dir()?);
    let sandbox = Mode::from_environment()?;
    let _in_use = hold_for_build(&cache)?;
    let context = BuildContext {
        downloads: &cache.join(DOWNLOADS),
        net: Net::allowed(request.offline),
        environment: &request.environment,
        session,
    };
    let resolved = resolve::resolve(loaded, &request.lock, context)?;
    if let Some(warning) = recent_epoch(resolved.lock.builder.epoch.into(), SystemTime::now()) {
        session.note(&warning);
    }
    let plan = Plan::resolve(&loaded.smolfile, &loaded.base_dir, resolved.lock)?;
    note_assumed(&plan, &loaded.smolfile, session);
    let build = Build {
        request,
        cache: &cache,
        sandbox,
        work: WorkDir::create(&cache)?,
        context: BuildContext {
            net: resolved.net,
            ..context
        },
    };
    let bundles = build.bundle_cache()?;
    if let Some(built) = build.cached(bundles.as_ref(), &plan)? {
        return Ok(built);
    }
    let host = build.host()?;
    let made = build.assemble(&plan, &host, resolved.file.as_deref())?;
    let (sealed, images, doubt) = (made.sealed, made.images, made.doubt);
    if let Some(file) = &resolved.file {
        resolve::keep(file, &sealed.plan.lock, &session.progress)?;
    }
    build.require_emulated_kernel(&host)?;
    let cacheable = doubt.is_none() && build.is_current(&sealed.plan.lock)?;
    let frozen_in = build.work.subdir("frozen")?;
    let (frozen, prepared) = build.freeze(&sealed, &images, &host, &frozen_in)?;
    let source = loaded.bundled_source(&sealed.plan.lock);
    let spec = pack::spec(&sealed.plan, &images, &frozen, &frozen_in, &source)?;
    session.check()?;
    let unsigned = build.unsigned();
    let written = pack::write(&spec, &prepared, &unsigned, build.context)?;
    let built = Built {
        sealed,
        frozen,
        written,
    };
    if cacheable && let Some(bundles) = &bundles {
        build.keep(bundles, &unsigned, &built);
    }
    if let Some(key) = request.key {
        pack::sign(&unsigned, key, request.out, build.context)?;
    }
    Ok(built)
}

/// Tells when the machine will be ready, if nobody has said so.
fn note_assumed(plan: &Plan, smolfile: &Smolfile, session: &Session) {
    let image = plan.lock.image.as_ref();
    if let Some(port) = image.and_then(|image| plan::assumed_port(smolfile, &image.config)) {
        session.note(&format!(
            "ready when port {port} of the image accepts; [ready] says otherwise"
        ));
    }
}

/// A build under way.
struct Build<'a> {
    request: &'a BuildRequest<'a>,
    /// The cache that all builds share.
    cache: &'a Path,
    /// Whether the machine's process is confined.
    sandbox: Mode,
    work: WorkDir,
    context: BuildContext<'a>,
}

impl Build<'_> {
    /// The bundles of earlier builds, unless nothing of them is to be used or left.
    fn bundle_cache(&self) -> Result<Option<BundleCache>> {
        match self.request.reuse {
            Reuse::All | Reuse::Parts => BundleCache::open(self.cache).map(Some),
            Reuse::Nothing => Ok(None),
        }
    }

    /// The bundle of an earlier build of the same, signed as is asked for now.
    fn cached(&self, bundles: Option<&BundleCache>, plan: &Plan) -> Result<Option<Built>> {
        let progress = &self.context.session.progress;
        let is_asked_for = self.request.reuse == Reuse::All && self.request.rerun == Rerun::None;
        let Some(bundles) = bundles.filter(|_| is_asked_for) else {
            return Ok(None);
        };
        let source = self.request.smolfile.bundled_source(&plan.lock);
        let key = bundles.key(plan, &source);
        let (unsigned, facts) = match bundles.lookup(&key, self.work.path()) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => {
                progress.note(&format!(
                    "the cached bundle is damaged, building it again: {error:#}"
                ));
                return Ok(None);
            }
        };
        let stage = progress.stage("build", "unchanged: using the cached bundle");
        let bundle = Bundle::open(&unsigned).classify()?;
        if self.request.key.is_none() {
            smol_bundle::copy(&unsigned, self.request.out).classify()?;
        }
        stage.cached("");
        if let Some(key) = self.request.key {
            pack::sign(&unsigned, key, self.request.out, self.context)?;
        }
        Ok(Some(Built {
            sealed: Sealed::new(plan, plan.lock.clone(), facts.inputs),
            frozen: facts.frozen,
            written: Written {
                digest: bundle.digest(),
                file_size: bundle.file_size(),
                stats: bundle.stats(),
            },
        }))
    }

    /// Decides where the machine boots.
    fn host(&self) -> Result<Selected> {
        let guest = match self.request.smolfile.smolfile.workload {
            Workload::Kernel => GuestKind::Bare,
            Workload::Service { .. } => GuestKind::Linux,
        };
        let selected = smol_host::select(self.request.accel, guest).classify()?;
        if let Some(why) = &selected.why {
            let note = format!("{why}. Details: smolbuild doctor");
            self.context.session.note(&note);
        }
        if let Some(warning) = smol_sandbox::warning(self.sandbox) {
            self.context.session.note(&format!("warning: {warning}"));
        }
        Ok(selected)
    }

    fn assemble(
        &self,
        plan: &Plan,
        host: &Selected,
        lock_file: Option<&Path>,
    ) -> Result<Assembled> {
        let cache = match self.request.reuse {
            Reuse::Nothing => self.work.subdir("cache")?,
            Reuse::All | Reuse::Parts => self.cache.to_owned(),
        };
        let dirs = BuildDirs {
            cache: &cache,
            work: self.work.path(),
        };
        let machines = StepMachines {
            smolfile: self.request.smolfile,
            lock_file,
            rerun: self.request.rerun,
            machine: self.step_machine(host),
        };
        assemble::assemble(plan, dirs, &machines, self.context)
    }

    /// Where the machines of build steps run.
    fn step_machine(&self, host: &Selected) -> StepMachine<'_> {
        StepMachine {
            backend: host.accel,
            host_cache: self.cache,
            watchdog: self.request.watchdog,
            sandbox: self.sandbox,
            verbose: self.request.verbose,
        }
    }

    /// Offline, an emulated host must have its kernel.
    fn require_emulated_kernel(&self, host: &Selected) -> Result<()> {
        use smol_host::emulated::kernel::{HostKernel, KERNEL_ROOT_VARIABLE};
        let needed = self.context.net == Net::Offline
            && matches!(host.accel, Backend::Emulated)
            && std::env::var_os(KERNEL_ROOT_VARIABLE).is_none();
        if !needed || HostKernel::cached(self.cache).is_some() {
            return Ok(());
        }
        let what = "offline, and the kernel of the emulated host is not in the cache";
        Err(Failure::new(ExitKind::Failed, what)
            .hint("build once without --offline")
            .into())
    }

    /// Whether the inputs are what `lock` says. A file that was changed after its digest was taken
    /// is in the images, but not in the key of the bundle cache.
    fn is_current(&self, lock: &Lock) -> Result<bool> {
        let (loaded, context) = (self.request.smolfile, self.context);
        let kept = Kept::all(Some(lock));
        let (mut current, _) = resolve::current(
            loaded,
            kept,
            context.environment,
            &context.session.interrupt,
        )?;
        resolve::keep_runs(loaded, &mut current, Some(lock))?;
        Ok(current == *lock)
    }

    /// Boots the machine and freezes it into the folder `out`, while its images are compressed.
    fn freeze(
        &self,
        sealed: &Sealed,
        images: &Images,
        host: &Selected,
        out: &Path,
    ) -> Result<(Frozen, Prepared)> {
        let (request, context) = (self.request, self.context);
        let job = BootJob::new(sealed, images, request.watchdog, self.sandbox, out);
        let preparing = Preparing::begin(images, &context.session.interrupt);
        let frozen = boot::freeze(&job, host.accel, self.cache, request.verbose, context)?;
        Ok((frozen, preparing.end()))
    }

    /// Where the unsigned bundle goes.
    fn unsigned(&self) -> PathBuf {
        match self.request.key {
            Some(_) => self.work.path().join("unsigned"),
            None => self.request.out.to_owned(),
        }
    }

    /// Keeps the bundle for later builds of the same, if another boot would give the same bytes.
    fn keep(&self, bundles: &BundleCache, unsigned: &Path, built: &Built) {
        if built.frozen.unreproducible().is_some() {
            return;
        }
        let plan = &built.sealed.plan;
        let key = bundles.key(plan, &self.request.smolfile.bundled_source(&plan.lock));
        if let Err(error) = bundles.store(&key, unsigned, built, self.work.path()) {
            let note = format!("the bundle is not kept in the cache: {error:#}");
            self.context.session.note(&note);
        }
    }
}

/// Programs that draw from a generator of their own reseed it by the clock (OpenSSL's does so after an
/// hour at the latest). A machine whose clock hardly jumps at its restore goes on with the seed that
/// all machines of the bundle have.
fn recent_epoch(epoch: u64, now: SystemTime) -> Option<String> {
    const OLD_ENOUGH: Duration = Duration::from_secs(3600);
    let old_enough = UNIX_EPOCH + Duration::from_secs(epoch) + OLD_ENOUGH <= now;
    (!old_enough).then(|| {
        "warning: SOURCE_DATE_EPOCH is less than an hour ago: machines that are restored soon may \
         share random values, because TLS libraries in them see no reason to reseed"
            .to_owned()
    })
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
