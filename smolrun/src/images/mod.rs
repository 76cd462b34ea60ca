//! The images of a machine: kernel, initramfs, root file system, memory and state.
//!
//! - [`bundle`]: the file that they come from.
//! - [`cache`]: as files, unpacked once and used by every later start.
//! - [`lazy`]: at the first start, out of the bundle while the machine runs.

pub mod bundle;
pub mod cache;
pub mod lazy;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use smol_bundle::Bundle;
use smol_cli::{ExitKind, Failure, Session};
use smol_host::cache::InUse;
use smol_machine::machine::Hooks;
use smol_machine::{Machine, MachineState};

use self::bundle::{Has, absolute};
use self::cache::CachedImages;
use self::lazy::LazyImages;

/// The images of a machine that is to run in this process.
pub enum Images {
    /// Files in the cache.
    Cached(CachedImages),
    /// Pages that are loaded when they are touched.
    Lazy(LazyImages),
}

/// Where another process finds the images of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Unpacked, in this folder.
    Cached(PathBuf),
    /// In the bundle alone; they are to be unpacked into this cache.
    Bundle {
        /// The cache.
        cache: PathBuf,
    },
}

impl Source {
    /// Prepares the images for another process: unpacks them, unless they are in the cache or the
    /// other process can load them lazily. A process can make such memory for itself only, so
    /// here it is just found out whether there can be any. What is returned with them keeps them
    /// there until the other process has taken them into use.
    ///
    /// # Errors
    /// As [`cache::unpack`].
    pub fn prepare(
        bundle: &Bundle,
        cache: &Path,
        lazily: bool,
        session: &Session,
    ) -> anyhow::Result<(Self, Option<InUse>)> {
        let (folder, in_use) = cache::lookup(bundle, cache)?;
        if in_use.is_some() {
            return Ok((Source::Cached(absolute(&folder)?), in_use));
        }
        if lazily && lazy::memory_for(bundle).is_some() {
            let cache = absolute(cache)?;
            return Ok((Source::Bundle { cache }, None));
        }
        let (folder, in_use) = cache::unpack(bundle, cache, session)?;
        Ok((Source::Cached(absolute(&folder)?), Some(in_use)))
    }
}

impl Images {
    /// Makes the images of a bundle available: from the cache, else `lazily` where that is wanted
    /// and possible, else unpacked now.
    ///
    /// # Errors
    /// As [`cache::unpack`].
    pub fn load(
        bundle: Bundle,
        cache: &Path,
        lazily: bool,
        session: &Session,
    ) -> anyhow::Result<Self> {
        let has = Has::of(&bundle);
        let cached = |folder: &Path, in_use| {
            let images = CachedImages::new(absolute(folder)?, has, Some(in_use));
            Ok(Images::Cached(images))
        };
        if let (folder, Some(in_use)) = cache::lookup(&bundle, cache)? {
            return cached(&folder, in_use);
        }
        if lazily && let Some(memory) = lazy::memory_for(&bundle) {
            let images = LazyImages::new(bundle, memory, cache, session);
            return Ok(Images::Lazy(images));
        }
        let (folder, in_use) = cache::unpack(&bundle, cache, session)?;
        cached(&folder, in_use)
    }

    /// Opens what another process has prepared, of the bundle with this digest, which that process
    /// has verified.
    ///
    /// # Errors
    /// If the bundle is not that one any more, or cannot be unpacked.
    pub fn open(
        source: &Source,
        bundle: &Path,
        digest: &str,
        has: Has,
        session: &Session,
    ) -> anyhow::Result<Self> {
        let cache = match source {
            Source::Cached(folder) => {
                let cannot = || format!("cannot use {}", folder.display());
                let in_use = InUse::of(folder).with_context(cannot)?;
                let in_use = Some(in_use.with_context(cannot)?);
                return Ok(Images::Cached(CachedImages::new(
                    folder.clone(),
                    has,
                    in_use,
                )));
            }
            Source::Bundle { cache } => cache,
        };
        let opened = bundle::open(bundle)?;
        if opened.digest().to_string() != digest {
            let message = format!(
                "{} was replaced by another bundle while it was being started",
                bundle.display()
            );
            return Err(Failure::new(ExitKind::Verification, message).into());
        }
        Self::load(opened, cache, true, session)
    }

    /// Returns the files and folders that are read while a machine uses the images.
    pub fn read(&self) -> Vec<&Path> {
        match self {
            Images::Cached(images) => vec![images.folder()],
            Images::Lazy(images) => vec![images.bundle()],
        }
    }

    /// Returns the folder that is written to while a machine uses the images, if there is one.
    pub fn written(&self) -> Option<PathBuf> {
        match self {
            Images::Cached(_) => None,
            Images::Lazy(images) => Some(images.cache()),
        }
    }

    /// Whether pages are loaded when they are touched.
    pub fn are_lazy(&self) -> bool {
        matches!(self, Images::Lazy(_))
    }

    /// Reads the machine state.
    ///
    /// # Errors
    /// If it is not what the manifest says, or cannot be read.
    pub fn state(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Images::Cached(images) => images.state(),
            Images::Lazy(images) => images.state(),
        }
    }

    /// Restores the machine in this state. The inner error is the hypervisor's.
    ///
    /// # Errors
    /// If pages cannot be had.
    pub fn restore(
        &self,
        state: &MachineState,
        hooks: Hooks,
    ) -> anyhow::Result<smol_machine::Result<Machine>> {
        match self {
            Images::Cached(images) => Ok(images.restore(state, hooks)),
            Images::Lazy(images) => images.restore(state, hooks),
        }
    }

    /// Returns the images as files, for a machine that is not restored; they are unpacked now if
    /// they are not yet.
    ///
    /// # Errors
    /// As [`cache::unpack`].
    pub fn unpacked(&mut self) -> anyhow::Result<&CachedImages> {
        if let Images::Lazy(images) = self {
            *self = Images::Cached(images.unpack()?);
        }
        match self {
            Images::Cached(images) => Ok(images),
            Images::Lazy(_) => unreachable!("they have just been unpacked"),
        }
    }

    /// Has `stop` called if pages cannot be had: see [`LazyImages::stop_on_failure`].
    pub fn stop_on_failure(&self, stop: impl FnOnce() + Send + 'static) {
        if let Images::Lazy(images) = self {
            images.stop_on_failure(stop);
        }
    }

    /// Ends the use of the images by a machine that has stopped. At a first start, waits until the
    /// bundle is unpacked, unless a signal wants an end; that it cannot be is told to `note`.
    ///
    /// # Errors
    /// The one that stopped the machine, if a page could not be had.
    pub fn finish(self, note: impl Fn(&str)) -> anyhow::Result<()> {
        match self {
            Images::Cached(_) => Ok(()),
            Images::Lazy(images) => images.finish(note),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sample;

    #[test]
    fn a_bundle_that_is_not_the_one_that_was_verified_is_not_started() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let session = Session::detached().unwrap();
        let has = Has::of(&sample.open());
        let source = Source::Bundle {
            cache: cache.path().to_owned(),
        };
        let open = |source: &Source, digest: &str| {
            Images::open(source, &sample.bundle, digest, has, &session)
        };
        let verified = sample.open().digest().to_string();
        let other = format!("sha256:{}", "0".repeat(64));
        let error = open(&source, &other).err().unwrap();
        assert!(error.to_string().contains("was replaced"), "{error:#}");
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        assert!(std::fs::read_dir(cache.path()).unwrap().next().is_none());

        // If it cannot be loaded lazily, it is unpacked; and what is unpacked is not loaded lazily.
        let mut images = open(&source, &verified).unwrap();
        let bundle = sample.open();
        let complete = || cache::lookup(&bundle, cache.path()).unwrap().1.is_some();
        assert_ne!(images.are_lazy(), complete());
        let folder = images.unpacked().unwrap().folder().to_owned();
        assert!(complete() && !images.are_lazy());
        assert!(!open(&source, &verified).unwrap().are_lazy());
        // The folder alone is enough.
        let images = open(&Source::Cached(folder), &other).unwrap();
        assert_eq!(images.state().unwrap(), b"{}");
    }

    #[test]
    fn images_for_another_process_are_unpacked_unless_it_can_load_them_lazily() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let session = Session::detached().unwrap();
        let bundle = sample.open();
        let prepare = |lazily| {
            let prepared = Source::prepare(&bundle, cache.path(), lazily, &session);
            prepared.unwrap().0
        };
        let complete = || cache::lookup(&bundle, cache.path()).unwrap().1.is_some();
        match prepare(true) {
            Source::Bundle { cache: path } => assert!(path == cache.path() && !complete()),
            Source::Cached(_) => assert!(complete()),
        }
        assert!(matches!(prepare(false), Source::Cached(_)) && complete());
        assert!(matches!(prepare(true), Source::Cached(_)));
    }
}
