//! Layers in the cache: plain tar archives, by the digest of what they hold.
//!
//! A layer is in the cache once, whichever images have it and however it was compressed. The tree of a
//! root file system refers to ranges of these files. None is believed: each is digested before it is
//! used.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};
use smol_bundle::Digest;
use smol_cli::{ErrorExt, ExitKind, Interrupt, paths};
use smol_host::cache::{LAYERS, record_use};
use smol_image::Layer;
use smol_sandbox::Access;

use crate::hash;
use crate::input::{confined, watch};

/// Layers in the cache.
pub struct LayerCache(PathBuf);

impl LayerCache {
    /// Opens the one in the folder `cache`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(cache: &Path) -> Result<Self> {
        let folder = cache.join(LAYERS);
        let made = paths::create_in_cache(&folder);
        made.with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// The one in the folder `cache`, to look into: it need not exist, and is not made.
    pub fn in_place(cache: &Path) -> Self {
        Self(cache.join(LAYERS))
    }

    /// Whether there is a file for this layer. It is not digested: for looking, not for use.
    pub fn is_there(&self, diff_id: &Digest) -> bool {
        self.path(diff_id).is_file()
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Where a layer is, or goes.
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.0.join(format!("{}.tar", diff_id.hex()))
    }

    /// Digests the layers, and returns those that are not there. A damaged one is removed.
    ///
    /// # Errors
    /// One cannot be read or removed; the interrupt.
    pub fn missing(&self, diff_ids: &[Digest], interrupt: &Interrupt) -> Result<BTreeSet<Digest>> {
        let wanted: BTreeSet<Digest> = diff_ids.iter().copied().collect();
        let missing = Mutex::new(BTreeSet::new());
        in_parallel(wanted, |diff_id| {
            interrupt.check()?;
            if !self.has(&diff_id)? {
                lock(&missing).insert(diff_id);
            }
            Ok(())
        })?;
        Ok(missing
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn has(&self, diff_id: &Digest) -> Result<bool> {
        let path = self.path(diff_id);
        if !path.exists() {
            return Ok(false);
        }
        if hash::sha256(&path)? != diff_id.hex() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            return Ok(false);
        }
        record_use(&path);
        Ok(true)
    }

    /// Unpacks layers, several at a time, on confined threads that have this access to them. `scratch`
    /// is a folder for temporary files on the cache's file system.
    ///
    /// # Errors
    /// Those of [`smol_image::unpack`], of kind Verification; a full disk; the interrupt.
    pub fn unpack(
        &self,
        mut layers: Vec<Layer>,
        access: Access,
        scratch: &Path,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let watch = watch(interrupt);
        // The largest first: then no processor is left without work while it goes on.
        layers.sort_by_key(|layer| Reverse(layer.blob.len()));
        let place = |layer: &Layer| scratch.join(format!("{}.layer", layer.diff_id.hex()));
        let unpacked: Vec<(PathBuf, Digest)> = layers
            .iter()
            .map(|layer| (place(layer), layer.diff_id))
            .collect();
        confined(&access.write(scratch), || {
            in_parallel(layers, |layer| {
                let path = place(&layer);
                let cannot = || format!("cannot write {}", path.display());
                // What is being written is read meanwhile, to count it.
                let mut options = File::options();
                options.read(true).write(true).create(true).truncate(true);
                let mut file = options.open(&path).with_context(cannot)?;
                let unpacked = smol_image::unpack(&layer, &mut file, &watch);
                interrupt.check()?;
                unpacked.kind(ExitKind::Verification)
            })
        })?;
        for (path, diff_id) in unpacked {
            let place = self.path(&diff_id);
            fs::rename(&path, &place)
                .with_context(|| format!("cannot write {}", place.display()))?;
        }
        Ok(())
    }
}

/// Does `work` with all of these on as many threads as there are processors; after a failure, which is
/// returned, none is begun.
fn in_parallel<T: Send>(
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let (items, failure) = (Mutex::new(items.into_iter()), Mutex::new(None));
    let run = || {
        while lock(&failure).is_none()
            && let Some(item) = lock(&items).next()
        {
            if let Err(error) = work(item) {
                lock(&failure).get_or_insert(error);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        // This thread works, too: it does all if there can be no other.
        for _ in 1..threads {
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
    let failure = failure
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    failure.map_or(Ok(()), Err)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use smol_rootfs::FileData;

    use super::*;

    fn layer(content: &str, diff_id: &str) -> Layer {
        Layer {
            diff_id: Digest::of(diff_id.as_bytes()),
            digest: None,
            blob: FileData::from(content.as_bytes().to_vec()),
        }
    }

    fn unpack(cache: &LayerCache, layers: Vec<Layer>, interrupt: &Interrupt) -> Result<()> {
        let scratch = tempfile::tempdir_in(cache.folder())?;
        cache.unpack(layers, Access::none(), scratch.path(), interrupt)
    }

    #[test]
    fn layers_are_there_once_they_are_unpacked_and_are_digested_before_each_use() {
        let folder = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(folder.path()).unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let ids = ["a", "b", "a"].map(|text| Digest::of(text.as_bytes()));
        assert_eq!(cache.missing(&ids, &interrupt).unwrap().len(), 2);
        unpack(&cache, vec![layer("a", "a"), layer("b", "b")], &interrupt).unwrap();
        assert!(cache.missing(&ids, &interrupt).unwrap().is_empty());
        fs::write(cache.path(&ids[1]), "B").unwrap();
        assert_eq!(
            cache.missing(&ids, &interrupt).unwrap(),
            BTreeSet::from([ids[1]])
        );
        assert!(!cache.path(&ids[1]).exists());
    }

    #[test]
    fn of_layers_that_are_not_what_they_should_be_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(folder.path()).unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let error = unpack(&cache, vec![layer("a", "a"), layer("x", "b")], &interrupt).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        assert_eq!(fs::read_dir(cache.folder()).unwrap().count(), 0);
        interrupt.trigger();
        let error = unpack(&cache, vec![layer("a", "a")], &interrupt).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);
    }
}
