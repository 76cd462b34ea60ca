//! The kernel: built from a recipe, or taken from the cache.
//!
//! | part | purpose |
//! |---|---|
//! | `recipe` | kernels/<name>/: source, configuration, patches |
//! | `inputs` | all that determines the bytes, and its digest |
//! | `make` | unpack, patch, configure, make, strip |
//! | `shelf` | kernels in the cache, and whose turn it is to build |

mod inputs;
mod make;
mod recipe;
mod shelf;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Progress, human};

use self::inputs::Toolchain;
use self::make::Site;
use self::recipe::Recipe;
use self::shelf::{Info, Shelf};
use crate::fetch;

/// Names a source tarball to build kernels from, where there is no apt to fetch the Debian package.
pub const SOURCE_VARIABLE: &str = "SMOL_KERNEL_SOURCE";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of a recipe.
    pub recipe: &'a str,
    /// A source tarball instead of the Debian package.
    pub source: Option<&'a Path>,
    /// Build even if the cache has it.
    pub rebuild: bool,
}

/// The vmlinux of the recipe `name`, in the cache, built if it is not there yet.
///
/// # Errors
/// As for [`obtain`].
pub fn stage(
    name: &str,
    cache: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let source = std::env::var_os(SOURCE_VARIABLE).filter(|path| !path.is_empty());
    let request = Request {
        recipe: name,
        source: source.as_deref().map(Path::new),
        rebuild: false,
    };
    obtain(&request, cache, progress, interrupt)
}

/// The vmlinux that was asked for, in the cache `cache`.
///
/// # Errors
/// An unknown recipe (exit kind Usage); tools, apt or the right processor missing (Host); a source
/// that is not what the recipe pins (Verification); a step of the build that fails; no disk space.
pub fn obtain(
    request: &Request,
    cache: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let recipe = recipe::find(request.recipe)?;
    require_arch(&recipe)?;
    let stage = progress.stage("kernel", &format!("kernel {}", request.recipe));
    let mut job = Job {
        toolchain: Toolchain::of_host()?,
        source: match request.source {
            Some(tarball) => Source::own(tarball)?,
            None => Source::pinned(&recipe),
        },
        shelf: Shelf::new(cache),
        recipe,
        stage: &stage,
        interrupt,
    };
    if !request.rebuild
        && let Some(vmlinux) = job.cached()
    {
        stage.finish("cached");
        return Ok(vmlinux);
    }
    let result = job.build(request, &cache.join("downloads"));
    interrupt.check()?; // the user knows why it ended, and not where we were
    let (vmlinux, built) = result?;
    let size = fs::metadata(&vmlinux)
        .map(|meta| meta.len())
        .unwrap_or_default();
    stage.finish(&if built {
        human::bytes(size)
    } else {
        "cached".to_owned()
    });
    Ok(vmlinux)
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
#[derive(Clone, Debug)]
struct Source {
    /// For people.
    name: String,
    sha256: String,
}

impl Source {
    fn own(tarball: &Path) -> Result<Source> {
        let name = tarball
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Source {
            name,
            sha256: fetch::sha256(tarball).kind(ExitKind::Usage)?,
        })
    }

    fn pinned(recipe: &Recipe) -> Source {
        let debian = &recipe.metadata.source.debian;
        Source {
            name: format!("{} {}", debian.package, debian.version),
            sha256: debian.tarball_sha256.clone(),
        }
    }
}

/// A kernel on its way into the cache.
struct Job<'a> {
    recipe: Recipe,
    toolchain: Toolchain,
    source: Source,
    shelf: Shelf,
    stage: &'a Stage,
    interrupt: &'a Interrupt,
}

impl Job<'_> {
    fn digest(&self) -> String {
        inputs::digest(&self.recipe, &self.source.sha256, &self.toolchain)
            .to_hex()
            .to_string()
    }

    fn cached(&self) -> Option<PathBuf> {
        self.shelf.find(&self.digest(), self.stage)
    }

    /// Gives the kernel, and whether it was built just now: another process may have done so while
    /// we waited for our turn.
    fn build(&mut self, request: &Request, downloads: &Path) -> Result<(PathBuf, bool)> {
        inputs::require_tools()?;
        let turn = self.shelf.turn(self.stage, self.interrupt)?;
        if !request.rebuild
            && let Some(cached) = self.cached()
        {
            return Ok((cached, false));
        }
        let scratch = turn.scratch()?;
        let before = self.source.sha256.clone();
        let tarball = match request.source {
            Some(tarball) => self.own_source(tarball)?,
            None => self.debian_source(downloads, scratch.path())?,
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
        let site = Site {
            folder: &folder,
            log: &log,
            stage: self.stage,
            interrupt: self.interrupt,
        };
        let built = make::build(&self.recipe, &tarball, site);
        let vmlinux = built.map_err(|error| self.keep_log(&log, error))?;
        let info = Info {
            recipe: self.recipe.metadata.name.clone(),
            source: self.source.name.clone(),
            source_sha256: self.source.sha256.clone(),
            toolchain: self.toolchain.clone(),
            sha256: fetch::sha256(&vmlinux)?,
        };
        Ok((
            self.shelf
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
    fn debian_source(&mut self, downloads: &Path, folder: &Path) -> Result<PathBuf> {
        let debian = &self.recipe.metadata.source.debian;
        let upstream = &self.recipe.metadata.source.upstream.tarball;
        let (deb, got) = fetch::package(&debian.pin(), downloads, &mut |what| self.stage.note(what), self.interrupt)
            .hint(format!(
                "or give a source tarball: smolbuild kernel {} --source {upstream}; for all builds: {SOURCE_VARIABLE}={upstream}",
                self.recipe.metadata.name
            ))?;
        let pinned = got.version == debian.version;
        if !pinned {
            self.stage.note(&format!(
                "warning: the recipe {} pins {} {}, the archive offers {}: the kernel will differ from others'",
                self.recipe.metadata.name, got.package, debian.version, got.version
            ));
        }
        let unpacked = folder.join("package");
        fetch::unpack(&deb, &unpacked, self.interrupt)?;
        let tarball = unpacked.join(debian.tarball());
        let name = format!("{} {}", got.package, got.version);
        let sha256 = fetch::sha256(&tarball)?;
        if pinned && sha256 != debian.tarball_sha256 {
            let what = format!(
                "the tarball in {name} has the SHA-256 {sha256} instead of {}",
                debian.tarball_sha256
            );
            return Err(Failure::new(ExitKind::Verification, what).into());
        }
        self.source = Source { name, sha256 };
        Ok(tarball)
    }

    /// Keeps the log of a build that failed, and says where.
    fn keep_log(&self, log: &Path, error: anyhow::Error) -> anyhow::Error {
        if self.interrupt.is_set() {
            return error;
        }
        match self.shelf.keep_log(&self.digest(), log) {
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

    fn refused(request: &Request) -> anyhow::Error {
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
        let error = refused(&Request {
            recipe: "smol-6.1",
            source,
            rebuild: false,
        });
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        assert!(
            format!("{error:#}").contains("/nonexistent/linux.tar.xz"),
            "{error:#}"
        );
    }

    #[test]
    fn an_unknown_recipe_is_an_error_of_usage() {
        let error = refused(&Request {
            recipe: "../smol-6.1",
            source: None,
            rebuild: false,
        });
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
    }
}
