//! Making a kernel into the cache: out of a release, or by its source and a build; and what is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};

use super::cache::{BuildLock, Info, KernelCache};
use super::inputs::{self, Toolchain};
use super::make::{self, BuildDir};
use super::prebuilt::Prebuilt;
use super::ready::released;
use super::recipe::Recipe;
use super::source::SourceTarball;
use super::{KernelRequest, SOURCE_VARIABLE};
use crate::fetch::{self, Net, Pin};
use crate::hash;

/// How a kernel came to be in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Cache,
    /// It was made just now.
    New,
}

/// A kernel that is being made into the cache.
pub struct KernelBuild<'a> {
    pub recipe: Recipe,
    pub toolchain: Toolchain,
    pub source: SourceTarball,
    pub cache: KernelCache,
    pub stage: &'a Stage,
    pub interrupt: &'a Interrupt,
}

impl KernelBuild<'_> {
    fn digest(&self) -> String {
        inputs::digest(&self.recipe, &self.source.sha256, &self.toolchain)
            .to_hex()
            .to_string()
    }

    /// The kernel, if it was made before.
    pub fn cached(&self, request: &KernelRequest) -> Option<PathBuf> {
        let prebuilt = request.release.is_some();
        self.cache.find(&self.digest(), prebuilt, self.stage)
    }

    /// Returns the kernel, and whether it was made just now: another process may have done that while
    /// this one waited for the lock.
    pub fn build(&mut self, request: &KernelRequest) -> Result<(PathBuf, Origin)> {
        let prebuilt = self.prebuilt(request)?;
        if prebuilt.is_none() {
            self.require_toolchain()?;
        }
        let lock = self.cache.lock(self.stage, self.interrupt)?;
        if !request.rebuild
            && let Some(cached) = self.cached(request)
        {
            return Ok((cached, Origin::Cache));
        }
        match prebuilt {
            Some(prebuilt) => Ok((self.unpack(&prebuilt, &lock)?, Origin::New)),
            None => self.compile(request, &lock),
        }
    }

    /// The kernel of the release, if it is the one that is wanted. If it is not, a note says so.
    fn prebuilt(&self, request: &KernelRequest) -> Result<Option<Prebuilt>> {
        let Some(kernels) = request.release else {
            return Ok(None);
        };
        if let Some(prebuilt) = released(Some(kernels), &self.recipe, &self.source)? {
            if prebuilt.description.toolchain == self.toolchain {
                return Ok(Some(prebuilt));
            }
            self.stage.note(
                "the kernel of the release is not used: the lock pins that of another compiler",
            );
        } else if Prebuilt::open(kernels, &self.recipe.metadata.name)?.is_some() {
            self.stage.note(&format!(
                "the kernel of the release in {} is not used: it is of another recipe or source",
                kernels.display()
            ));
        }
        Ok(None)
    }

    /// Puts a release's kernel into the cache, whole and verified.
    fn unpack(&self, prebuilt: &Prebuilt, lock: &BuildLock) -> Result<PathBuf> {
        self.stage.note("using the kernel of the release");
        let scratch = lock.scratch()?;
        let vmlinux = scratch.path().join("vmlinux");
        let mut file = File::create(&vmlinux)
            .with_context(|| format!("cannot create {}", vmlinux.display()))?;
        prebuilt.unpack(&mut file)?;
        file.sync_all()
            .with_context(|| format!("cannot store {}", vmlinux.display()))?;
        let info = self.info(prebuilt.description.sha256.clone(), true);
        self.cache.put(&self.digest(), &vmlinux, &info, self.stage)
    }

    /// Checks that what compiles here is what was chosen: a lock may pin what is not here.
    fn require_toolchain(&self) -> Result<()> {
        inputs::require_tools()?;
        let host = Toolchain::of_host()?;
        if host == self.toolchain {
            return Ok(());
        }
        let Toolchain { gcc, ld } = &self.toolchain;
        let what =
            format!("the lock pins a kernel by {gcc} and {ld}, and it is not available here");
        Err(Failure::new(ExitKind::LockStale, what)
            .hint(format!("this host has {} and {}", host.gcc, host.ld))
            .hint("`smolbuild lock` pins what is here")
            .into())
    }

    fn info(&self, sha256: String, prebuilt: bool) -> Info {
        Info {
            recipe: self.recipe.metadata.name.clone(),
            source: self.source.name.clone(),
            source_sha256: self.source.sha256.clone(),
            toolchain: self.toolchain.clone(),
            sha256,
            prebuilt,
        }
    }

    fn compile(&mut self, request: &KernelRequest, lock: &BuildLock) -> Result<(PathBuf, Origin)> {
        let scratch = lock.scratch()?;
        let before = self.source.sha256.clone();
        let tarball = match request.source {
            Some(tarball) if hash::sha256(tarball)? == before => self.own_source(tarball)?,
            _ => self.debian_source(request, scratch.path())?,
        };
        // The archive offers another version than the pinned one: that may have been built before.
        if self.source.sha256 != before
            && !request.rebuild
            && let Some(cached) = self.cached(request)
        {
            return Ok((cached, Origin::Cache));
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
        let info = self.info(hash::sha256(&vmlinux)?, false);
        let digest = self.digest();
        let kept = self.cache.put(&digest, &vmlinux, &info, self.stage)?;
        Ok((kept, Origin::New))
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
        let sha256 = hash::sha256(&tarball)?;
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
            "the lock pins the kernel source {}, and it is not available here",
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
            Some(kept) => error.hint(format!("the whole output is in {}", kept.display())),
            None => error,
        }
    }
}
