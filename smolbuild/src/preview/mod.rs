//! What a build would do: everything is looked up, and nothing is made, downloaded or written.
//!
//! | file | what it holds |
//! |---|---|
//! | `steps.rs` | what is done to the root file system |
//! | `text.rs` | the preview as a table, for people |
//!
//! It follows [`pipeline`](crate::pipeline), whose lookups it uses. Of what is in the cache it looks at
//! names alone: a build digests it, and makes again what is damaged.

mod steps;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use smol_cli::{ErrorExt, ExitKind};
use smol_host::emulated::kernel::{HostKernel, KERNEL_ROOT_VARIABLE};
use smol_host::{Accel, Backend, GuestKind};

pub use self::steps::StepPreview;
use crate::bundle_cache::{BundleCache, Facts};
use crate::context::BuildContext;
use crate::fetch::Net;
use crate::input::{Found, Origin, Pins, Rootfs};
use crate::kernel::Way;
use crate::lock::{Lock, Role};
use crate::plan::{Plan, Sealed};
use crate::resolve::{self, Outlook};
use crate::smolfile::{KernelSource, Loaded, Workload};

/// What a build does for a part of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It takes what was made or downloaded before.
    Cached,
    /// It reads what the Smolfile names, where it is.
    Read,
    /// It chooses what the lock does not pin, and downloads that.
    Choose,
    /// It downloads what is missing.
    Download,
    /// It installs packages, all of which are there.
    Install,
    /// It unpacks layers out of the file that the Smolfile names.
    Unpack,
    /// It takes the kernel of the release.
    Release,
    /// It compiles the kernel.
    Compile,
    /// It runs the command.
    Run,
    /// It boots the machine, and freezes it.
    Boot,
    /// That depends on something that is not known before a build.
    Depends,
    /// It fails.
    Fail,
}

/// What a build does, and why if that needs a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What it does.
    pub action: Action,
    /// What it depends on, or why it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Outcome {
    fn because(action: Action, why: impl Into<String>) -> Self {
        Self {
            action,
            why: Some(why.into()),
        }
    }

    /// A download, if one is possible.
    fn download(action: Action, net: Net) -> Self {
        match net {
            Net::Offline => Self::because(Action::Fail, "offline, and not in the cache"),
            Net::Pinned | Net::Open => action.into(),
        }
    }
}

impl From<Action> for Outcome {
    fn from(action: Action) -> Self {
        Self { action, why: None }
    }
}

/// The lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LockPreview {
    /// Its path.
    pub file: String,
    /// Whether it is there.
    pub exists: bool,
    /// Whether it has all that a build needs, as it is now.
    pub fits: bool,
    /// What a build would tell that it changes.
    pub changes: Vec<String>,
}

/// The kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelPreview {
    /// Name of its recipe.
    pub recipe: Option<String>,
    /// The file that the Smolfile names instead.
    pub path: Option<String>,
    /// SHA-256 of its source, or of the file.
    pub sha256: Option<String>,
    /// Whether its source is downloaded before it is compiled.
    pub source_download: bool,
    /// What a build does.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The root file system before the steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootfsPreview {
    /// What the Smolfile names, in a line.
    pub input: String,
    /// SHA-256 of the archive, of the folder's content, of the image's configuration, or the digest of the
    /// base; packages have one each.
    pub digest: Option<String>,
    /// What it consists of: `packages` or `layers`.
    pub parts: Option<&'static str>,
    /// How many of them.
    pub total: Option<usize>,
    /// SHA-256 of those that are needed and not in the cache.
    pub missing: Vec<String>,
    /// What a build does.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BundlePreview {
    /// Its key in the cache of bundles.
    pub key: Option<String>,
    /// Its digest, if it is there.
    pub digest: Option<String>,
    /// What a build does. If it is cached, nothing else is done.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Where machines boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootPreview {
    /// `kvm` or `emulated`; nothing if neither is possible.
    pub accel: Option<&'static str>,
    /// Why it is not what one would expect.
    pub note: Option<String>,
    /// Whether the kernel of the emulated host must be downloaded.
    pub host_kernel_download: bool,
    /// Whether they can boot: an action that is Boot or Fail.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What a build would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// Name of the machine.
    pub name: String,
    /// The lock file.
    pub lock: LockPreview,
    /// The kernel.
    pub kernel: KernelPreview,
    /// The root file system; none for a machine that is just a kernel.
    pub rootfs: Option<RootfsPreview>,
    /// What is done to it, in order.
    pub steps: Vec<StepPreview>,
    /// The bundle.
    pub bundle: BundlePreview,
    /// Where machines boot.
    pub boot: BootPreview,
    /// BLAKE3 of the Plan with the digests of its images, in hexadecimal. Known if the bundle is cached.
    pub plan: Option<String>,
    /// The seed of all randomness in the guest, in hexadecimal. Known with the Plan.
    pub seed: Option<String>,
}

/// What decides what a build would do, besides the Smolfile.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Whether the lock file must fit.
    pub locked: bool,
    /// Where machines are to boot.
    pub accel: Accel,
    /// The cache.
    pub cache: &'a Path,
}

/// Finds out what a build of `loaded` would do.
///
/// # Errors
/// What a build would end with before it makes anything: mistakes (of kind Usage), files that cannot be
/// read, a lock that does not fit and must (LockStale).
pub fn look(loaded: &Loaded, request: Request, context: BuildContext) -> Result<Preview> {
    let outlook = resolve::look(loaded, request.locked, context)?;
    let (smolfile, lock) = (&loaded.smolfile, &outlook.lock);
    let plan = match outlook.pins {
        Pins::Complete => Some(Plan::resolve(smolfile, &loaded.base_dir, lock.clone())?),
        // The Smolfile may leave out what an image says that is not known yet.
        Pins::ToChoose => None,
    };
    let kernel = kernel(loaded, &outlook, context)?;
    let rootfs = smolfile.rootfs();
    let rootfs = rootfs.map(|rootfs| of_rootfs(rootfs, &outlook, request.cache, context));
    let (bundle, facts) = bundle(loaded, plan.as_ref(), request.cache)?;
    let sealed = plan.as_ref().zip(facts);
    let sealed = sealed.map(|(plan, facts)| Sealed::new(plan, plan.lock.clone(), facts.inputs));
    Ok(Preview {
        name: smolfile.name.clone(),
        lock: lock_file(loaded, &outlook),
        kernel,
        rootfs: rootfs.transpose()?,
        steps: steps::look(loaded, plan.as_ref(), &outlook, request.cache, context)?,
        bundle,
        boot: boot(loaded, request, outlook.net),
        plan: sealed.as_ref().map(|sealed| hex::encode(sealed.digest())),
        seed: sealed.as_ref().map(|sealed| hex::encode(sealed.seed())),
    })
}

fn lock_file(loaded: &Loaded, outlook: &Outlook) -> LockPreview {
    let changes = outlook.changes.clone();
    LockPreview {
        file: loaded.lock_path().display().to_string(),
        exists: changes.is_some(),
        fits: outlook.pins == Pins::Complete && changes.as_ref().is_some_and(Vec::is_empty),
        changes: changes.unwrap_or_default(),
    }
}

fn kernel(loaded: &Loaded, outlook: &Outlook, context: BuildContext) -> Result<KernelPreview> {
    let name = match &loaded.smolfile.kernel.source {
        KernelSource::Path(path) => {
            return Ok(KernelPreview {
                recipe: None,
                path: Some(path.get_ref().clone()),
                sha256: file_digest(&outlook.lock, |role| role == Role::Kernel),
                source_download: false,
                outcome: Action::Read.into(),
            });
        }
        KernelSource::Recipe(name) => name,
    };
    let pins = outlook
        .lock
        .kernel
        .as_ref()
        .context("the lock has no kernel");
    let pins = pins.kind(ExitKind::Internal)?;
    let environment = context.environment;
    let own_source = environment.kernel_source.is_some();
    let way = environment
        .kernels
        .way(pins, own_source, context.downloads)?;
    let source_download = way == Way::Compile { download: true };
    Ok(KernelPreview {
        recipe: Some(name.clone()),
        path: None,
        sha256: Some(pins.source_sha256.clone()),
        source_download,
        outcome: match way {
            Way::Cached => Action::Cached.into(),
            Way::Release => Action::Release.into(),
            Way::Compile { download: true } => Outcome::download(Action::Compile, outlook.net),
            Way::Compile { download: false } => Action::Compile.into(),
        },
    })
}

/// SHA-256 of the file with such a role.
fn file_digest(lock: &Lock, role: impl Fn(Role) -> bool) -> Option<String> {
    let file = lock.files.iter().find(|file| role(file.role))?;
    Some(file.sha256.clone())
}

fn of_rootfs(
    rootfs: &Rootfs,
    outlook: &Outlook,
    cache: &Path,
    context: BuildContext,
) -> Result<RootfsPreview> {
    let (input, lock) = (rootfs.input(), &outlook.lock);
    let found = match outlook.pins {
        Pins::Complete => input.found(lock, cache, context.downloads)?,
        Pins::ToChoose => None,
    };
    let image = lock.image.as_ref().map(|image| image.id.hex());
    let outcome = match (outlook.pins, &found, outlook.net) {
        (Pins::ToChoose, _, Net::Offline) => {
            Outcome::because(Action::Fail, "offline, and the lock does not have it")
        }
        (Pins::ToChoose, ..) => Action::Choose.into(),
        (Pins::Complete, None, _) => Action::Read.into(),
        (Pins::Complete, Some(found), net) => of_found(found, net),
    };
    let known = found.as_ref();
    Ok(RootfsPreview {
        input: input.title(),
        digest: image.or_else(|| file_digest(lock, |role| role != Role::Kernel)),
        parts: known.map(|found| found.parts),
        total: known.map(|found| found.total),
        missing: known.map(|found| found.missing.clone()).unwrap_or_default(),
        outcome,
    })
}

fn of_found(found: &Found, net: Net) -> Outcome {
    match found.from {
        _ if found.ready => Action::Cached.into(),
        _ if found.missing.is_empty() => Action::Install.into(),
        Origin::Host => Action::Unpack.into(),
        Origin::Network => Outcome::download(Action::Download, net),
        Origin::Nowhere => Outcome::because(Action::Fail, "nothing says where it is"),
    }
}

/// The bundle, and what its cache knows of it.
fn bundle(
    loaded: &Loaded,
    plan: Option<&Plan>,
    cache: &Path,
) -> Result<(BundlePreview, Option<Facts>)> {
    let Some(plan) = plan else {
        let outcome = Outcome::because(Action::Depends, steps::ON_CHOICE);
        let bundle = BundlePreview {
            key: None,
            digest: None,
            outcome,
        };
        return Ok((bundle, None));
    };
    let bundles = BundleCache::open(cache)?;
    let key = bundles.key(plan, &loaded.bundled_source(&plan.lock));
    let facts = bundles.look(&key);
    let outcome = match facts {
        Some(_) => Action::Cached,
        None => Action::Boot,
    };
    let bundle = BundlePreview {
        key: Some(key),
        digest: facts.as_ref().map(|facts| facts.digest.clone()),
        outcome: outcome.into(),
    };
    Ok((bundle, facts))
}

fn boot(loaded: &Loaded, request: Request, net: Net) -> BootPreview {
    let guest = match loaded.smolfile.workload {
        Workload::Kernel => GuestKind::Bare,
        Workload::Service { .. } => GuestKind::Linux,
    };
    let selected = match smol_host::select(request.accel, guest) {
        Ok(selected) => selected,
        Err(error) => {
            return BootPreview {
                accel: None,
                note: None,
                host_kernel_download: false,
                outcome: Outcome::because(Action::Fail, error.to_string()),
            };
        }
    };
    let accel = selected.accel;
    let is_emulated = matches!(accel, Backend::Emulated);
    let is_there = || {
        std::env::var_os(KERNEL_ROOT_VARIABLE).is_some()
            || HostKernel::cached(request.cache).is_some()
    };
    let host_kernel_download = is_emulated && !is_there();
    BootPreview {
        accel: Some(match accel {
            Backend::Kvm => "kvm",
            Backend::Emulated => "emulated",
        }),
        note: selected.why,
        host_kernel_download,
        outcome: match host_kernel_download {
            true => Outcome::download(Action::Boot, net),
            false => Action::Boot.into(),
        },
    }
}
