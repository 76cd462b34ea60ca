//! Kernels that need not be compiled, and which compiler's kernel a build takes.
//!
//! | the lock pins | the kernel is |
//! |---|---|
//! | a compiler whose kernel can be had here: the release's, this host's, or one in the cache | that one |
//! | another one, or there is no lock | the release's; without one, this host's compiler makes it; without that, one in the cache |

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::paths;
use smol_host::doctor::{self, Check};

use super::cache::KernelCache;
use super::inputs::{self, Toolchain};
use super::prebuilt::Prebuilt;
use super::recipe::{self, Recipe};
use super::source::SourceTarball;
use crate::{fetch, lock};

/// Where a release has its kernels, beside the folder of its programs: in the archive as it is
/// unpacked, and below /usr.
const RELEASE: &str = "share/smol/kernels";

/// Where kernels are that need not be compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadyKernels {
    /// The cache, unless everything is to be made afresh.
    pub cache: Option<PathBuf>,
    /// The folder of the release's kernels, which need not exist; nothing, if kernels are to be
    /// compiled here.
    pub release: Option<PathBuf>,
}

/// How a build comes to its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It was made before.
    Cached,
    /// The release has it.
    Release,
    /// It is compiled.
    Compile {
        /// Whether its source must be downloaded before.
        download: bool,
    },
}

impl ReadyKernels {
    /// How a build comes to the kernel that a lock pins, as [`obtain`](super::obtain) does; a source
    /// package is looked for in the folder `downloads`, and is not needed if there is `own_source`.
    ///
    /// # Errors
    /// An unknown recipe; the release's kernel is damaged.
    pub fn way(&self, pins: &lock::Kernel, own_source: bool, downloads: &Path) -> Result<Way> {
        let recipe = recipe::find(&pins.recipe)?;
        let (source, toolchain) = (SourceTarball::of_lock(pins), Toolchain::of_lock(pins));
        if self.is_cached(&recipe, &source, &toolchain) {
            return Ok(Way::Cached);
        }
        let release = released(self.release.as_deref(), &recipe, &source)?;
        if release.is_some_and(|prebuilt| prebuilt.description.toolchain == toolchain) {
            return Ok(Way::Release);
        }
        let package = source.package();
        let is_there = package.is_some_and(|pin| fetch::place(downloads, &pin.sha256).is_file());
        Ok(Way::Compile {
            download: !own_source && !is_there,
        })
    }

    /// Those of this process: all but what `--no-cache` and `--no-prebuilt` rule out.
    ///
    /// # Errors
    /// There is no cache folder, or this program does not know where it lies.
    pub fn of_process(no_cache: bool, no_prebuilt: bool) -> Result<ReadyKernels> {
        let release = || -> Result<PathBuf> {
            let program = std::env::current_exe().context("cannot tell where this program is")?;
            let prefix = program.parent().and_then(Path::parent);
            Ok(prefix.unwrap_or(Path::new("/")).join(RELEASE))
        };
        Ok(ReadyKernels {
            cache: (!no_cache).then(paths::cache_dir).transpose()?,
            release: (!no_prebuilt).then(release).transpose()?,
        })
    }

    /// The compiler whose kernel a build takes, if a lock pins `kept`: see the table above.
    pub(super) fn toolchain(
        &self,
        recipe: &Recipe,
        source: &SourceTarball,
        kept: Option<Toolchain>,
    ) -> Result<Toolchain> {
        let release = released(self.release.as_deref(), recipe, source)?;
        let release = release.map(|prebuilt| prebuilt.description.toolchain);
        if let Some(release) = &release
            && kept.as_ref().is_none_or(|kept| kept == release)
        {
            return Ok(release.clone());
        }
        let host = Toolchain::of_host();
        if let Some(kept) = kept
            && (host.as_ref().is_ok_and(|host| *host == kept)
                || self.is_cached(recipe, source, &kept))
        {
            return Ok(kept);
        }
        match (release, host) {
            (Some(release), _) => Ok(release),
            (None, Ok(host)) => Ok(host),
            (None, Err(error)) => self.any_cached(recipe, source).ok_or(error),
        }
    }

    fn is_cached(&self, recipe: &Recipe, source: &SourceTarball, toolchain: &Toolchain) -> bool {
        let digest = inputs::digest(recipe, &source.sha256, toolchain).to_hex();
        let cache = self.cache.as_deref().map(KernelCache::new);
        cache.is_some_and(|cache| cache.has(&digest, self.release.is_some()))
    }

    /// What compiled a kernel of this recipe and source that is in the cache.
    fn any_cached(&self, recipe: &Recipe, source: &SourceTarball) -> Option<Toolchain> {
        let infos = KernelCache::new(self.cache.as_deref()?).infos();
        let mut fitting = infos.into_iter().filter_map(|(digest, info)| {
            let own = inputs::digest(recipe, &source.sha256, &info.toolchain).to_hex();
            (own.as_str() == digest).then_some(info.toolchain)
        });
        fitting.find(|toolchain| self.is_cached(recipe, source, toolchain))
    }

    /// Looks whether the kernel of the recipe `name` is ready: then nothing that compiles one is
    /// needed. Nothing, if it is to be compiled.
    ///
    /// # Errors
    /// An unknown recipe; the release's kernel is damaged.
    pub fn check(&self, name: &str) -> Result<Option<Check>> {
        let recipe = recipe::find(name)?;
        let source = SourceTarball::pinned(&recipe);
        let ok = |what: &str| Ok(Some(doctor::kernel_ready(format!("not needed: {what}"))));
        if let Some(prebuilt) = released(self.release.as_deref(), &recipe, &source)? {
            prebuilt.unpack(&mut std::io::sink())?;
            return ok(&format!("the kernel {name} comes with this release"));
        }
        match self.toolchain(&recipe, &source, None) {
            Ok(toolchain) if self.is_cached(&recipe, &source, &toolchain) => {
                ok(&format!("the kernel {name} is in the cache"))
            }
            _ => Ok(None),
        }
    }
}

/// The release's kernel of this recipe and source. One of another recipe or source is none.
///
/// # Errors
/// As for [`Prebuilt::open`].
pub(super) fn released(
    kernels: Option<&Path>,
    recipe: &Recipe,
    source: &SourceTarball,
) -> Result<Option<Prebuilt>> {
    let Some(kernels) = kernels else {
        return Ok(None);
    };
    let key = inputs::recipe_key(recipe, &source.sha256).to_hex();
    let prebuilt = Prebuilt::open(kernels, &recipe.metadata.name)?;
    Ok(prebuilt.filter(|prebuilt| prebuilt.description.key == key.as_str()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::cache::Info;
    use super::super::prebuilt::tests::release;
    use super::super::recipe::tests::{KERNEL_TOML, recipe};
    use super::*;

    fn test_recipe() -> Recipe {
        recipe(KERNEL_TOML, &["0001-a.patch", "0002-b.patch"]).unwrap()
    }

    fn by(gcc: &str) -> Toolchain {
        Toolchain {
            gcc: gcc.into(),
            ld: "ld 2".into(),
        }
    }

    struct Host {
        folder: tempfile::TempDir,
        ready: ReadyKernels,
    }

    impl Host {
        fn new() -> Host {
            let folder = tempfile::tempdir().unwrap();
            let ready = ReadyKernels {
                cache: Some(folder.path().join("cache")),
                release: Some(folder.path().join("release")),
            };
            Host { folder, ready }
        }

        fn release(&self, gcc: &str) {
            let key = inputs::recipe_key(&test_recipe(), "bb").to_hex();
            let kernels = self.folder.path().join("release");
            release(&kernels, &key, &by(gcc), b"ELF");
        }

        fn cache(&self, gcc: &str, prebuilt: bool) {
            let digest = inputs::digest(&test_recipe(), "bb", &by(gcc)).to_hex();
            self.put(&digest, gcc, prebuilt);
        }

        fn put(&self, digest: &str, gcc: &str, prebuilt: bool) {
            let entry = self.folder.path().join("cache/kernels").join(digest);
            fs::create_dir_all(&entry).unwrap();
            fs::write(entry.join("vmlinux"), "ELF").unwrap();
            let info = Info {
                recipe: "test".into(),
                source: "linux-source-6.1 6.1.2-1".into(),
                source_sha256: "bb".into(),
                toolchain: by(gcc),
                sha256: crate::hash::sha256(&entry.join("vmlinux")).unwrap(),
                prebuilt,
            };
            fs::write(
                entry.join("kernel.json"),
                serde_json::to_vec(&info).unwrap(),
            )
            .unwrap();
        }

        fn toolchain(&self, kept: Option<&str>) -> String {
            let (recipe, kept) = (test_recipe(), kept.map(by));
            let source = SourceTarball::pinned(&recipe);
            self.ready.toolchain(&recipe, &source, kept).unwrap().gcc
        }
    }

    #[test]
    fn without_a_lock_the_kernel_is_the_releases_else_that_of_this_hosts_compiler() {
        let host = Host::new();
        let own = Toolchain::of_host().unwrap().gcc;
        host.cache("cached", false);
        assert_eq!(host.toolchain(None), own);
        host.release("released");
        assert_eq!(host.toolchain(None), "released");
        let compiling = ReadyKernels {
            release: None,
            ..host.ready.clone()
        };
        let host = Host {
            ready: compiling,
            ..host
        };
        assert_eq!(host.toolchain(None), own);
    }

    #[test]
    fn the_compiler_of_a_lock_stays_while_its_kernel_can_be_had() {
        let host = Host::new();
        let own = Toolchain::of_host().unwrap();
        host.release("released");
        host.cache("cached", false);
        for kept in ["released", "cached"] {
            assert_eq!(host.toolchain(Some(kept)), kept);
        }
        let source = SourceTarball::pinned(&test_recipe());
        let kept = host
            .ready
            .toolchain(&test_recipe(), &source, Some(own.clone()));
        assert_eq!(kept.unwrap(), own);
        assert_eq!(host.toolchain(Some("elsewhere")), "released");
    }

    #[test]
    fn a_release_of_another_recipe_or_source_is_not_taken() {
        let host = Host::new();
        host.release("released");
        let own = Toolchain::of_host().unwrap();
        let toml = KERNEL_TOML.replace("2026", "2027");
        let changed = recipe(&toml, &["0001-a.patch", "0002-b.patch"]).unwrap();
        let source = SourceTarball::pinned(&changed);
        let chosen = host.ready.toolchain(&changed, &source, None);
        assert_eq!(chosen.unwrap(), own);
        let source = SourceTarball {
            sha256: "cc".into(),
            ..SourceTarball::pinned(&test_recipe())
        };
        let chosen = host.ready.toolchain(&test_recipe(), &source, None);
        assert_eq!(chosen.unwrap(), own);
    }

    #[test]
    fn a_kernel_of_a_release_in_the_cache_does_not_count_if_it_is_to_be_compiled() {
        let mut host = Host::new();
        host.cache("released", true);
        assert_eq!(host.toolchain(Some("released")), "released");
        host.ready.release = None;
        let own = Toolchain::of_host().unwrap().gcc;
        assert_eq!(host.toolchain(Some("released")), own);
        host.ready.cache = None;
        assert_eq!(host.toolchain(Some("released")), own);
    }

    #[test]
    fn a_damaged_release_is_told_and_not_passed_over() {
        let host = Host::new();
        host.release("released");
        let file = host.folder.path().join("release/test/kernel.json");
        fs::write(file, "{").unwrap();
        let recipe = test_recipe();
        let source = SourceTarball::pinned(&recipe);
        assert!(host.ready.toolchain(&recipe, &source, None).is_err());
    }

    #[test]
    fn the_way_to_a_kernel_is_the_cache_then_the_release_then_the_compiler() {
        let host = Host::new();
        let recipe = recipe::find("smol-6.1").unwrap();
        let source = SourceTarball::pinned(&recipe);
        let mut pins = lock::Kernel {
            recipe: "smol-6.1".into(),
            recipe_sha256: inputs::recipe_sha256(&recipe),
            source: String::new(),
            source_sha256: String::new(),
            package_sha256: None,
            gcc: by("gcc 1").gcc,
            ld: by("gcc 1").ld,
        };
        source.enter(&mut pins);
        let downloads = host.folder.path();
        let way = |own_source| host.ready.way(&pins, own_source, downloads).unwrap();
        assert_eq!(way(false), Way::Compile { download: true });
        assert_eq!(way(true), Way::Compile { download: false });
        let package = source.package().unwrap();
        fs::write(fetch::place(downloads, &package.sha256), "").unwrap();
        assert_eq!(way(false), Way::Compile { download: false });
        let vmlinux = downloads.join("vmlinux");
        fs::write(&vmlinux, "ELF").unwrap();
        crate::kernel::release(&pins, &vmlinux, &downloads.join("release")).unwrap();
        assert_eq!(way(false), Way::Release);
        let digest = inputs::digest(&recipe, &source.sha256, &by("gcc 1")).to_hex();
        host.put(&digest, "gcc 1", true);
        assert_eq!(way(false), Way::Cached);
    }
}
