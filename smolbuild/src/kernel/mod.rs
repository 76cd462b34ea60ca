//! The kernel: built from a recipe, or taken from the release or the cache.
//!
//! | module | purpose |
//! |---|---|
//! | `recipe` | `kernels/<name>/`: source, configuration, patches |
//! | `source` | the source tarball: of the recipe, of a lock, of the user |
//! | `inputs` | everything that determines the bytes, and its digest |
//! | `ready` | which compiler's kernel a build takes, and whether it must be compiled |
//! | `prebuilt` | the kernel that a release carries |
//! | `build` | from the release or the source to an entry of the cache |
//! | `make` | unpack, patch, configure, make, strip |
//! | `cache` | kernels that were built before, and the lock of the one build at a time |

mod build;
mod cache;
mod inputs;
mod make;
mod prebuilt;
mod ready;
mod recipe;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use smol_cli::{ExitKind, Failure, Session, human};

use self::build::{KernelBuild, Origin};
use self::cache::KernelCache;
use self::inputs::Toolchain;
pub use self::ready::{ReadyKernels, Way};
use self::recipe::Recipe;
pub use self::source::SourceTarball;
use crate::fetch::Net;
use crate::lock;

/// Names a source tarball to build kernels from, where there is no apt to fetch the Debian package.
pub const SOURCE_VARIABLE: &str = "SMOL_KERNEL_SOURCE";

/// A kernel to build or to take from the cache.
#[derive(Clone, Copy, Debug)]
pub struct KernelRequest<'a> {
    /// Name of a recipe.
    pub recipe: &'a str,
    /// A source tarball instead of the Debian package.
    pub source: Option<&'a Path>,
    /// The source that a lock pins; without, that of the recipe.
    pub pinned: Option<&'a lock::Kernel>,
    /// Folder of downloads.
    pub downloads: &'a Path,
    /// What may be downloaded.
    pub net: Net,
    /// Folder of a release's kernels; without, the kernel is one that was compiled here.
    pub release: Option<&'a Path>,
    /// Build even if the cache has it.
    pub rebuild: bool,
}

/// The source tarball that [`SOURCE_VARIABLE`] names.
pub fn source_variable() -> Option<PathBuf> {
    std::env::var_os(SOURCE_VARIABLE)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// What determines the kernel of the recipe `name`, for a lock: with the source tarball `tarball`;
/// without, with the one of `kept`, if that is a lock of the same recipe. Its compiler is kept, too, if
/// `ready` has the kernel or this host has the compiler.
///
/// # Errors
/// An unknown recipe or no such tarball (exit kind Usage), missing tools (Host), a damaged kernel of
/// the release (Verification).
pub fn pins(
    name: &str,
    tarball: Option<&Path>,
    kept: Option<&lock::Kernel>,
    ready: &ReadyKernels,
) -> Result<lock::Kernel> {
    let recipe = recipe::find(name)?;
    let recipe_sha256 = inputs::recipe_sha256(&recipe);
    let kept = kept.filter(|kept| kept.recipe == name && kept.recipe_sha256 == recipe_sha256);
    let source = match (tarball, kept) {
        (Some(tarball), _) => SourceTarball::own(tarball, &recipe)?,
        (None, Some(kept)) => SourceTarball::of_lock(kept),
        (None, None) => SourceTarball::pinned(&recipe),
    };
    let kept = kept.map(Toolchain::of_lock);
    let Toolchain { gcc, ld } = ready.toolchain(&recipe, &source, kept)?;
    let mut pins = lock::Kernel {
        recipe: name.to_owned(),
        recipe_sha256,
        source: String::new(),
        source_sha256: String::new(),
        package_sha256: None,
        gcc,
        ld,
    };
    source.enter(&mut pins);
    Ok(pins)
}

/// A kernel, in the cache.
#[derive(Debug)]
pub struct Obtained {
    /// Its file.
    pub vmlinux: PathBuf,
    /// What it was built from, which is another source than the pinned one if that is not to be had
    /// any more.
    pub source: SourceTarball,
}

/// Returns the kernel that was asked for, in the cache `cache`, made if it is not there yet.
///
/// # Errors
/// An unknown recipe (exit kind Usage); tools, apt or the right processor missing (Host); a source
/// or a kernel of the release that is not what it should be (Verification); one that is not to be
/// had (LockStale, if it must be that); a step of the build that fails; no disk space.
pub fn obtain(request: &KernelRequest, cache: &Path, session: &Session) -> Result<Obtained> {
    let recipe = recipe::find(request.recipe)?;
    require_arch(&recipe)?;
    let stage = session.stage("kernel", &format!("kernel {}", request.recipe));
    let source = match (request.pinned, request.source) {
        (Some(lock), _) => SourceTarball::of_lock(lock),
        (None, Some(tarball)) => SourceTarball::own(tarball, &recipe)?,
        (None, None) => SourceTarball::pinned(&recipe),
    };
    let mut build = KernelBuild {
        toolchain: match request.pinned {
            Some(lock) => Toolchain::of_lock(lock),
            None => request.ready(cache).toolchain(&recipe, &source, None)?,
        },
        source,
        cache: KernelCache::new(cache),
        recipe,
        stage: &stage,
        interrupt: &session.interrupt,
    };
    let cached = (!request.rebuild).then(|| build.cached(request)).flatten();
    let (vmlinux, origin) = match cached {
        Some(vmlinux) => (vmlinux, Origin::Cache),
        None => {
            let result = build.build(request);
            session.check()?; // an interrupted build is reported as that, and not as a failed step
            result?
        }
    };
    let obtained = Obtained {
        source: build.source,
        vmlinux,
    };
    match origin {
        Origin::New => stage.finish(&human::bytes(obtained.size())),
        Origin::Cache => stage.cached(""),
    }
    Ok(obtained)
}

impl KernelRequest<'_> {
    fn ready(&self, cache: &Path) -> ReadyKernels {
        ReadyKernels {
            cache: (!self.rebuild).then(|| cache.to_owned()),
            release: self.release.map(Path::to_owned),
        }
    }
}

impl Obtained {
    fn size(&self) -> u64 {
        let metadata = fs::metadata(&self.vmlinux);
        metadata.map(|metadata| metadata.len()).unwrap_or_default()
    }
}

/// Writes a kernel into the folder of a release's kernels: the file `vmlinux`, made of what `pins` says.
///
/// # Errors
/// An unknown recipe; the folder cannot be written.
pub fn release(pins: &lock::Kernel, vmlinux: &Path, kernels: &Path) -> Result<()> {
    let recipe = recipe::find(&pins.recipe)?;
    let description = prebuilt::Description {
        key: inputs::recipe_key(&recipe, &pins.source_sha256)
            .to_hex()
            .to_string(),
        source: pins.source.clone(),
        toolchain: Toolchain::of_lock(pins),
        size: 0,
        sha256: String::new(),
    };
    prebuilt::write(kernels, &pins.recipe, vmlinux, description)
}

fn require_arch(recipe: &Recipe) -> Result<(), Failure> {
    let (wanted, here) = (&recipe.metadata.arch, std::env::consts::ARCH);
    if wanted == here {
        return Ok(());
    }
    let what = format!(
        "the kernel recipe {} is for {wanted}, and this host is {here}",
        recipe.metadata.name
    );
    Err(Failure::new(ExitKind::Host, what))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn request(recipe: &str) -> KernelRequest<'_> {
        KernelRequest {
            recipe,
            source: None,
            pinned: None,
            downloads: Path::new("/nonexistent"),
            net: Net::Offline,
            release: None,
            rebuild: false,
        }
    }

    fn locked(source: &str, package_sha256: Option<&str>) -> lock::Kernel {
        lock::Kernel {
            source: source.into(),
            source_sha256: "bb".repeat(32),
            package_sha256: package_sha256.map(str::to_owned),
            ..pins("smol-6.1", None, None, &ReadyKernels::default()).unwrap()
        }
    }

    #[test]
    fn a_lock_of_the_same_recipe_keeps_its_source_and_one_of_another_recipe_does_not() {
        let kept = locked("linux-source-6.1 6.1.9-1", Some("aa"));
        let ready = ReadyKernels::default();
        let pinned = pins("smol-6.1", None, Some(&kept), &ready).unwrap();
        assert_eq!(pinned, kept);
        let other = lock::Kernel {
            recipe_sha256: "cc".repeat(32),
            ..kept
        };
        let pinned = pins("smol-6.1", None, Some(&other), &ready).unwrap();
        assert_eq!(pinned, pins("smol-6.1", None, None, &ready).unwrap());
    }

    #[test]
    fn a_source_that_is_neither_here_nor_in_reach_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let ask = |lock: &lock::Kernel, net| {
            let request = KernelRequest {
                pinned: Some(lock),
                downloads: &cache.path().join("downloads"),
                net,
                ..request("smol-6.1")
            };
            obtain(&request, cache.path(), &Session::detached().unwrap()).unwrap_err()
        };
        let package = locked("linux-source-6.1 6.1.9-1", Some("aa"));
        let error = ask(&package, Net::Offline);
        assert!(
            format!("{error:#}").contains("linux-source-6.1 6.1.9-1"),
            "{error:#}"
        );
        for name in ["linux.tar.xz", "--option 1"] {
            let error = ask(&locked(name, None), Net::Pinned);
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::LockStale);
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }

    fn refused(request: &KernelRequest) -> anyhow::Error {
        let cache = tempfile::tempdir().unwrap();
        let error = obtain(request, cache.path(), &Session::detached().unwrap()).unwrap_err();
        assert_eq!(
            fs::read_dir(cache.path()).unwrap().count(),
            0,
            "nothing is left in the cache"
        );
        error
    }

    #[test]
    fn a_source_tarball_that_does_not_exist_is_an_error_of_usage() {
        let source = Some(Path::new("/nonexistent/linux.tar.xz"));
        let error = refused(&KernelRequest {
            source,
            ..request("smol-6.1")
        });
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        assert!(
            format!("{error:#}").contains("/nonexistent/linux.tar.xz"),
            "{error:#}"
        );
    }

    #[test]
    fn an_unknown_recipe_is_an_error_of_usage() {
        let error = refused(&request("../smol-6.1"));
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
    }
}
