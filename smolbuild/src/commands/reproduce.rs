//! `smolbuild reproduce`: builds a bundle once more from the Smolfile and the lock in it, and
//! compares.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use smol_bundle::{Bundle, ImageKind};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Session, human, paths};
use smol_host::cache::DOWNLOADS;
use smol_rootfs::{Tree, erofs};

use super::open_bundle;
use crate::cli::Reproduce;
use crate::context::BuildContext;
use crate::diff;
use crate::environment::EnvironmentInputs;
use crate::error::ResultExt;
use crate::extract;
use crate::fetch::Net;
use crate::hash;
use crate::input::{self, Pins, Rootfs};
use crate::kernel::ReadyKernels;
use crate::lock::{self, Lock, Role};
use crate::pipeline::{self, BuildRequest, Reuse};
use crate::resolve::{self, Kept, Policy};
use crate::smolfile::{self, KernelSource, Loaded, Smolfile};
use crate::steps::Rerun;
use crate::work::WorkDir;

/// So many differences of each kind are shown; `smolbuild diff --all` shows the others.
const SHOWN: usize = 20;
/// Threads that unpack the root file system.
const THREADS: usize = 2;

/// Builds the bundle again. It is the same, or the error says that it is not.
///
/// # Errors
/// The bundle makes no claim, or has no lock; what is built is not the same (all of kind Failed, with
/// what differs on stdout); this smolbuild or its host have other inputs than the lock (LockStale);
/// files that are neither in the bundle nor in the folder that was given (Usage).
pub fn run(args: &Reproduce, interrupt: &Interrupt) -> Result<()> {
    let bundle = open_bundle(&args.bundle)?;
    require_claim(&bundle)?;
    let (source, lock) = inputs(&bundle)?;
    let reproduction = Reproduction {
        args,
        bundle,
        folder: WorkDir::create(&paths::cache_dir()?)?,
        session: Session::titled(
            args.conditions.shown.progress,
            "Reproducing",
            interrupt.clone(),
        ),
    };
    let loaded = reproduction.load(source, &lock)?;
    let no_prebuilt = args.conditions.kernel.no_prebuilt;
    let kernels = ReadyKernels::of_process(args.no_cache, no_prebuilt)?;
    let environment = EnvironmentInputs {
        // The lock's.
        epoch: None,
        insecure_registries: args.conditions.downloads.insecure_registry.clone(),
        ..EnvironmentInputs::of_process(kernels)?
    };
    let lock = reproduction.require_inputs(&loaded, lock, &environment)?;
    let out = match &args.output {
        Some(file) => file.clone(),
        None => reproduction.folder.path().join("again.smolmachine"),
    };
    let request = BuildRequest {
        smolfile: &loaded,
        lock: Policy::Given(Box::new(lock)),
        offline: args.conditions.downloads.offline,
        environment,
        // A bundle out of the cache would be compared with itself.
        reuse: Reuse::of(true, args.no_cache),
        rerun: Rerun::Offline,
        accel: args.conditions.host.accel,
        watchdog: args.conditions.watchdog,
        verbose: args.conditions.verbose,
        out: &out,
        key: None,
    };
    pipeline::build_bundle(&request, &reproduction.session)?;
    reproduction.compare(&out)
}

/// A bundle that is being built again.
struct Reproduction<'a> {
    args: &'a Reproduce,
    bundle: Bundle,
    /// A temporary folder.
    folder: WorkDir,
    session: Session,
}

impl Reproduction<'_> {
    /// The Smolfile with the files that it names: those of the folder that was given, or else what can
    /// be taken out of the bundle.
    fn load(&self, source: String, lock: &Lock) -> Result<Loaded> {
        let source = match &self.args.image {
            Some(image) => with_image(source, image)?,
            None => source,
        };
        let base = match &self.args.context {
            Some(context) => context.clone(),
            None => {
                let parsed = parse(&source)?;
                let base = self.folder.path().join("context");
                fs::create_dir(&base)
                    .with_context(|| format!("cannot create {}", base.display()))?;
                let missing = self.extract_sources(&parsed, lock, &base)?;
                if !missing.is_empty() {
                    return Err(not_in_bundle(&missing).into());
                }
                base
            }
        };
        smolfile::check_text(source, &base.join("Smolfile"), base, None)
    }

    /// Puts the files that the Smolfile names into `base`, and returns the names of those that the bundle
    /// does not have in their first shape.
    fn extract_sources(
        &self,
        smolfile: &Smolfile,
        lock: &Lock,
        base: &Path,
    ) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        if let KernelSource::Path(path) = &smolfile.kernel.source {
            let place = extract::inside(base, path.get_ref())?;
            self.extract_image(ImageKind::Kernel, &place)?;
            // A smol kernel is in the bundle as it was moved to its place, not as it was named.
            let sha256 = hash::sha256(&place)?;
            let locked = lock.files.iter().find(|file| file.role == Role::Kernel);
            if locked.is_none_or(|file| file.sha256 != sha256) {
                missing.push(path.get_ref().clone());
            }
        }
        let Some(rootfs) = smolfile.rootfs() else {
            return Ok(missing);
        };
        let named = rootfs.input().host_path();
        missing.extend(named.map(|host| host.path.get_ref().clone()));
        if smolfile.copies().next().is_some() {
            let stage = self
                .session
                .stage("sources", "taking the copied files out of the bundle");
            let image = self.folder.path().join("rootfs");
            self.extract_image(ImageKind::Rootfs, &image)?;
            let tree = Tree::watched(input::watch(&self.session.interrupt));
            let tree = erofs::read_into(tree, &image)?;
            missing.extend(extract::restore(
                &smolfile::copies_of_lock(smolfile.copies(), &lock.copies),
                &lock.copies,
                &tree,
                base,
                &self.session.interrupt,
            )?);
            stage.finish("");
        }
        Ok(missing)
    }

    fn extract_image(&self, kind: ImageKind, place: &Path) -> Result<()> {
        let file = File::create_new(place)
            .with_context(|| format!("cannot create {}", place.display()))?;
        let interrupt = &self.session.interrupt;
        let go_on = &mut |_, _| interrupt.go_on();
        let extracted = self.bundle.extract_while(kind, &file, THREADS, go_on);
        interrupt.check()?;
        extracted.classify()
    }

    /// Refuses to build from other inputs than those of the lock: the result would tell nothing. Returns
    /// the lock with the place of its image, if it is in a registry.
    fn require_inputs(
        &self,
        loaded: &Loaded,
        lock: Lock,
        environment: &EnvironmentInputs,
    ) -> Result<Lock> {
        let (mut here, pins) = resolve::current(
            loaded,
            Kept::all(Some(&lock)),
            environment,
            &self.session.interrupt,
        )?;
        // No registry is asked because a bundle says so.
        if self.args.image.is_some()
            && let (Pins::ToChoose, Some(rootfs)) = (pins, loaded.smolfile.rootfs())
        {
            let context = BuildContext {
                downloads: &paths::cache_dir()?.join(DOWNLOADS),
                net: Net::allowed(self.args.conditions.downloads.offline),
                environment,
                session: &self.session,
            };
            rootfs.input().choose(&mut here, context)?;
        }
        let differences = lock::differences(&lock, &here);
        if differences.is_empty() {
            return Ok(Lock {
                image: here.image,
                ..lock
            });
        }
        let what = format!(
            "this is not what the bundle was built from (the bundle's -> here): {}",
            human::printable(&resolve::abridged(&differences, SHOWN).join("; "))
        );
        Err(Failure::new(ExitKind::LockStale, what)
            .hint(
                "use the smolbuild, the files and the compiler, or release, that it was built with",
            )
            .into())
    }

    /// Compares the bundle with what was built; prints the verdict, and what differs.
    fn compare(&self, out: &Path) -> Result<()> {
        let (bundle, args) = (&self.bundle, self.args);
        let again = open_bundle(out)?;
        let name = &bundle.config().name;
        if again.digest() == bundle.digest() {
            smol_cli::print(&format!("{name}  reproduced  {}\n", bundle.digest()))?;
            return Ok(());
        }
        let stage = self.session.progress.stage("diff", "comparing");
        let report = diff::compare(bundle, &again, &self.folder, &self.session.interrupt)?;
        stage.finish("different");
        smol_cli::print(&report.text(Some(SHOWN)))?;
        let failure = Failure::new(
            ExitKind::Failed,
            format!(
                "{name} is not reproduced: what was built here (B) differs from the bundle (A)"
            ),
        );
        Err(match &args.output {
            Some(file) => failure.hint(format!(
                "all differences: smolbuild diff --all {} {}",
                args.bundle.display(),
                file.display()
            )),
            None => failure.hint("-o FILE keeps what is built, for `smolbuild diff --all`"),
        }
        .into())
    }
}

/// The Smolfile that a bundle carries.
fn parse(source: &str) -> Result<Smolfile> {
    smolfile::parse(source)
        .map_err(|_| anyhow::anyhow!("the Smolfile in the bundle is not valid"))
        .kind(ExitKind::Verification)
}

/// The Smolfile of a bundle with another name for its image.
fn with_image(mut source: String, image: &str) -> Result<String> {
    let parsed = parse(&source)?;
    let Some(Rootfs::Image(input)) = parsed.rootfs() else {
        let what = "--image is for a bundle whose root file system is a container image";
        return Err(Failure::new(ExitKind::Usage, what)
            .hint("leave it out")
            .into());
    };
    let span = input.reference().span();
    source.replace_range(span, &toml::Value::from(image).to_string());
    Ok(source)
}

/// Refuses a bundle that does not say of itself that it can be built again: its reason tells more
/// than a comparison.
fn require_claim(bundle: &Bundle) -> Result<()> {
    let claim = bundle.config().reproducible.as_ref();
    let why = match claim {
        Some(claim) if claim.claimed => return Ok(()),
        Some(claim) => claim.reason.as_deref().unwrap_or("it gives no reason"),
        None => "it says nothing about it",
    };
    let what = format!(
        "{} does not claim to be reproducible: {}",
        bundle.config().name,
        human::printable(why)
    );
    Err(Failure::new(ExitKind::Failed, what).into())
}

/// The Smolfile's text and the lock, which the bundle carries.
fn inputs(bundle: &Bundle) -> Result<(String, Lock)> {
    let absent = |what: &str| {
        let message = format!("the bundle holds no {what}: it cannot be built again from itself");
        Failure::new(ExitKind::Failed, message)
    };
    let smolfile = bundle.smolfile().classify()?;
    let lock = bundle.lock().classify()?;
    let smolfile = smolfile.ok_or_else(|| absent("Smolfile"))?;
    let lock = lock.ok_or_else(|| absent("lock"))?;
    let smolfile = String::from_utf8(smolfile)
        .context("the Smolfile in the bundle is not UTF-8 text")
        .kind(ExitKind::Verification)?;
    let lock = Lock::parse(&lock, "the lock in the bundle").kind(ExitKind::Verification)?;
    // Where its image was taken from is not for a bundle to say: nobody is asked because of it.
    Ok((smolfile, lock.without_places()))
}

fn not_in_bundle(missing: &[String]) -> Failure {
    let mut shown: Vec<String> = missing.iter().take(SHOWN).cloned().collect();
    if missing.len() > SHOWN {
        shown.push(format!("and {} more", missing.len() - SHOWN));
    }
    let what = format!(
        "the bundle does not hold what it was built from as it was: {}",
        human::printable(&shown.join(", "))
    );
    Failure::new(ExitKind::Usage, what)
        .hint("give the folder of its Smolfile, with the files as they were: --context DIR")
}
