//! The kernel: built from a recipe, or taken from the cache.
//!
//! | module | purpose |
//! |---|---|
//! | `recipe` | kernels/<name>/: source, configuration, patches |
//! | `inputs` | everything that determines the bytes, and its digest |
//! | `make` | unpack, patch, configure, make, strip |
//! | `cache` | kernels that were built before, and the lock of the one build at a time |

mod cache;
mod inputs;
mod make;
mod recipe;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Progress, human};

use self::cache::{Info, KernelCache};
use self::inputs::Toolchain;
use self::make::BuildDir;
use self::recipe::Recipe;
use crate::fetch::{self, Net, Pin};
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
/// without, with the one of `kept`, if that is a lock of the same recipe.
///
/// # Errors
/// An unknown recipe or no such tarball (exit kind Usage), missing tools (Host).
pub fn pins(
    name: &str,
    tarball: Option<&Path>,
    kept: Option<&lock::Kernel>,
) -> Result<lock::Kernel> {
    let recipe = recipe::find(name)?;
    let recipe_sha256 = inputs::recipe_sha256(&recipe);
    let kept = kept.filter(|kept| kept.recipe == name && kept.recipe_sha256 == recipe_sha256);
    let source = match (tarball, kept) {
        (Some(tarball), _) => SourceTarball::own(tarball, &recipe)?,
        (None, Some(kept)) => SourceTarball::of_lock(kept),
        (None, None) => SourceTarball::pinned(&recipe),
    };
    let Toolchain { gcc, ld } = Toolchain::of_host()?;
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

/// The vmlinux that was asked for, in the cache `cache`, built if it is not there yet; and the source
/// that it was built from, which is another than the pinned one if that is not to be had any more.
///
/// # Errors
/// An unknown recipe (exit kind Usage); tools, apt or the right processor missing (Host); a source
/// that is not what it is pinned as (Verification), or not to be had (LockStale, if it must be
/// that); a step of the build that fails; no disk space.
pub fn obtain(
    request: &KernelRequest,
    cache: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<(PathBuf, SourceTarball)> {
    let recipe = recipe::find(request.recipe)?;
    require_arch(&recipe)?;
    let stage = progress.stage("kernel", &format!("kernel {}", request.recipe));
    let mut job = KernelBuild {
        toolchain: Toolchain::of_host()?,
        source: match (request.pinned, request.source) {
            (Some(lock), _) => SourceTarball::of_lock(lock),
            (None, Some(tarball)) => SourceTarball::own(tarball, &recipe)?,
            (None, None) => SourceTarball::pinned(&recipe),
        },
        cache: KernelCache::new(cache),
        recipe,
        stage: &stage,
        interrupt,
    };
    if !request.rebuild
        && let Some(vmlinux) = job.cached()
    {
        let source = job.source;
        stage.finish("cached");
        return Ok((vmlinux, source));
    }
    let result = job.build(request);
    interrupt.check()?; // an interrupted build is reported as that, and not as a failed step
    let (vmlinux, built) = result?;
    let source = job.source;
    let size = fs::metadata(&vmlinux)
        .map(|meta| meta.len())
        .unwrap_or_default();
    stage.finish(&if built {
        human::bytes(size)
    } else {
        "cached".to_owned()
    });
    Ok((vmlinux, source))
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

/// A source tarball.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTarball {
    /// `PACKAGE VERSION` of a Debian package, or the name of a tarball.
    name: String,
    sha256: String,
    /// Of the Debian package.
    package_sha256: Option<String>,
}

impl SourceTarball {
    fn own(tarball: &Path, recipe: &Recipe) -> Result<SourceTarball> {
        let sha256 = fetch::sha256(tarball).kind(ExitKind::Usage)?;
        // The same bytes are the same source, by whichever way they came.
        let pinned = SourceTarball::pinned(recipe);
        if sha256 == pinned.sha256 {
            return Ok(pinned);
        }
        let name = tarball.file_name().unwrap_or_default();
        let name = name.to_string_lossy().replace(char::is_control, "?");
        Ok(SourceTarball {
            name,
            sha256,
            package_sha256: None,
        })
    }

    fn pinned(recipe: &Recipe) -> SourceTarball {
        let debian = &recipe.metadata.source.debian;
        SourceTarball {
            name: format!("{} {}", debian.package, debian.version),
            sha256: debian.tarball_sha256.clone(),
            package_sha256: Some(debian.sha256.clone()),
        }
    }

    fn of_lock(lock: &lock::Kernel) -> SourceTarball {
        SourceTarball {
            name: lock.source.clone(),
            sha256: lock.source_sha256.clone(),
            package_sha256: lock.package_sha256.clone(),
        }
    }

    /// Writes it into a lock.
    pub fn enter(&self, lock: &mut lock::Kernel) {
        lock.source = self.name.clone();
        lock.source_sha256 = self.sha256.clone();
        lock.package_sha256 = self.package_sha256.clone();
    }

    /// The package that it is in, if it is known.
    fn package(&self) -> Option<Pin> {
        let (package, version) = self.name.split_once(' ')?;
        // These become arguments of apt, and the lock may come from anybody.
        let plain = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_alphanumeric())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte))
        };
        let known = plain(package) && plain(version);
        known.then_some(Pin {
            package: package.to_owned(),
            version: version.to_owned(),
            sha256: self.package_sha256.clone()?,
        })
    }
}

/// A kernel that is being built into the cache.
struct KernelBuild<'a> {
    recipe: Recipe,
    toolchain: Toolchain,
    source: SourceTarball,
    cache: KernelCache,
    stage: &'a Stage,
    interrupt: &'a Interrupt,
}

impl KernelBuild<'_> {
    fn digest(&self) -> String {
        inputs::digest(&self.recipe, &self.source.sha256, &self.toolchain)
            .to_hex()
            .to_string()
    }

    fn cached(&self) -> Option<PathBuf> {
        self.cache.find(&self.digest(), self.stage)
    }

    /// Returns the kernel, and whether it was built just now: another process may have built it while
    /// this one waited for the lock.
    fn build(&mut self, request: &KernelRequest) -> Result<(PathBuf, bool)> {
        inputs::require_tools()?;
        let lock = self.cache.lock(self.stage, self.interrupt)?;
        if !request.rebuild
            && let Some(cached) = self.cached()
        {
            return Ok((cached, false));
        }
        let scratch = lock.scratch()?;
        let before = self.source.sha256.clone();
        let tarball = match request.source {
            Some(tarball) if fetch::sha256(tarball)? == before => self.own_source(tarball)?,
            _ => self.debian_source(request, scratch.path())?,
        };
        // The archive offers another version than the pinned one: that may have been built before.
        if self.source.sha256 != before
            && !request.rebuild
            && let Some(cached) = self.cached()
        {
            return Ok((cached, false));
        }
        let folder = scratch.path().join("work");
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let log = scratch.path().join("log");
        let dir = BuildDir {
            folder: &folder,
            log: &log,
            stage: self.stage,
            interrupt: self.interrupt,
        };
        let built = make::build(&self.recipe, &tarball, dir);
        let vmlinux = built.map_err(|error| self.keep_log(&log, error))?;
        let info = Info {
            recipe: self.recipe.metadata.name.clone(),
            source: self.source.name.clone(),
            source_sha256: self.source.sha256.clone(),
            toolchain: self.toolchain.clone(),
            sha256: fetch::sha256(&vmlinux)?,
        };
        Ok((
            self.cache
                .put(&self.digest(), &vmlinux, &info, self.stage)?,
            true,
        ))
    }

    /// A tarball of the user's.
    fn own_source(&self, tarball: &Path) -> Result<PathBuf> {
        let pins = &self.recipe.metadata.source;
        let pinned = [
            Some(&pins.debian.tarball_sha256),
            pins.upstream.sha256.as_ref(),
        ];
        if !pinned.contains(&Some(&self.source.sha256)) {
            self.stage.note(&format!(
                "{} is not a source that the recipe {} pins: the kernel may differ from others'",
                tarball.display(),
                self.recipe.metadata.name
            ));
        }
        // tar works elsewhere.
        tarball
            .canonicalize()
            .with_context(|| format!("cannot find {}", tarball.display()))
    }

    /// The tarball out of the Debian package, unpacked in `folder`.
    fn debian_source(&mut self, request: &KernelRequest, folder: &Path) -> Result<PathBuf> {
        let recipe = &self.recipe.metadata;
        let (pin, upstream) = (self.pin(request.net)?, &recipe.source.upstream.tarball);
        let (deb, got) = fetch::package(
            &pin,
            request.downloads,
            request.net,
            &mut |what| self.stage.note(what),
            self.interrupt,
        )
        .hint(format!(
            "or give a source tarball: smolbuild kernel {} --source {upstream}; for all builds: {SOURCE_VARIABLE}={upstream}",
            recipe.name
        ))?;
        let unpacked = folder.join("package");
        fetch::unpack(&deb, &unpacked, self.interrupt)?;
        let tarball = unpacked.join(recipe.source.debian.tarball());
        let name = format!("{} {}", got.package, got.version);
        let sha256 = fetch::sha256(&tarball)?;
        if got != pin {
            self.stage.note(&format!(
                "warning: {} {} is pinned, the archive offers {}: the kernel will differ from others'",
                pin.package, pin.version, got.version
            ));
        } else if self.source.name == name && sha256 != self.source.sha256 {
            let what = format!(
                "the tarball in {name} has the SHA-256 {sha256} instead of {}",
                self.source.sha256
            );
            return Err(Failure::new(ExitKind::Verification, what).into());
        }
        self.source = SourceTarball {
            name,
            sha256,
            package_sha256: Some(got.sha256),
        };
        Ok(tarball)
    }

    /// The package to take the source from. A lock may pin a tarball that is in none; then the
    /// recipe's, if that will do.
    fn pin(&self, net: Net) -> Result<Pin> {
        if let Some(pin) = self.source.package() {
            return Ok(pin);
        }
        let what = format!(
            "the lock pins the kernel source {}, and it is not here",
            self.source.name
        );
        if net == Net::Open {
            self.stage.note(&format!(
                "warning: {what}: taking the one that the recipe {} pins",
                self.recipe.metadata.name
            ));
            return Ok(self.recipe.metadata.source.debian.pin());
        }
        Err(Failure::new(ExitKind::LockStale, what)
            .hint(format!("name it: {SOURCE_VARIABLE}={}", self.source.name))
            .hint("or `smolbuild lock` takes the one that the recipe pins")
            .into())
    }

    /// Keeps the log of a build that failed, and says where.
    fn keep_log(&self, log: &Path, error: anyhow::Error) -> anyhow::Error {
        if self.interrupt.is_set() {
            return error;
        }
        match self.cache.keep_log(&self.digest(), log) {
            Some(kept) => {
                let told =
                    Err::<(), _>(error).hint(format!("the whole output is in {}", kept.display()));
                told.expect_err("made from an error")
            }
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use smol_cli::Mode;

    use super::*;

    fn request(recipe: &str) -> KernelRequest<'_> {
        KernelRequest {
            recipe,
            source: None,
            pinned: None,
            downloads: Path::new("/nonexistent"),
            net: Net::Offline,
            rebuild: false,
        }
    }

    fn locked(source: &str, package_sha256: Option<&str>) -> lock::Kernel {
        lock::Kernel {
            source: source.into(),
            source_sha256: "bb".repeat(32),
            package_sha256: package_sha256.map(str::to_owned),
            ..pins("smol-6.1", None, None).unwrap()
        }
    }

    #[test]
    fn a_lock_of_the_same_recipe_keeps_its_source_and_one_of_another_recipe_does_not() {
        let kept = locked("linux-source-6.1 6.1.9-1", Some("aa"));
        let pinned = pins("smol-6.1", None, Some(&kept)).unwrap();
        assert_eq!(pinned, kept);
        let other = lock::Kernel {
            recipe_sha256: "cc".repeat(32),
            ..kept
        };
        let pinned = pins("smol-6.1", None, Some(&other)).unwrap();
        assert_eq!(pinned, pins("smol-6.1", None, None).unwrap());
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
            let progress = Progress::new(Mode::Plain);
            obtain(
                &request,
                cache.path(),
                &progress,
                &Interrupt::detached().unwrap(),
            )
            .unwrap_err()
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
        let error = obtain(
            request,
            cache.path(),
            &Progress::new(Mode::Plain),
            &Interrupt::detached().unwrap(),
        )
        .unwrap_err();
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
