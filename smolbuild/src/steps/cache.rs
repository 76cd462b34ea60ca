//! The layers of build steps that ran before.
//!
//! A folder of the cache, `steps`, has a small file for each, named after its key: it names the layer by
//! digest. The layer itself is among those of images, and is digested before it is used. Entries appear
//! by one rename: one is complete or does not exist.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use smol_bundle::Digest;
use smol_cli::{Interrupt, paths};
use smol_host::cache::{STEPS, record_use};
use tempfile::NamedTempFile;

use crate::hash;
use crate::input::layers::LayerCache;

/// The layers of build steps that ran before.
pub struct StepCache {
    folder: PathBuf,
    layers: LayerCache,
    /// BLAKE3 of the running program: the monitor in it decides what a machine does, too.
    program: blake3::Hash,
}

/// What is kept of a step.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Digest of its layer.
    layer: Digest,
}

impl StepCache {
    /// Opens the one in the folder `cache`.
    ///
    /// # Errors
    /// It cannot be made, or this program cannot read itself.
    pub fn open(cache: &Path) -> Result<Self> {
        let folder = cache.join(STEPS);
        let made = paths::create_in_cache(&folder);
        made.with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            folder,
            layers: LayerCache::open(cache)?,
            // By this name also when the file was replaced since this process began.
            program: hash::blake3(Path::new("/proc/self/exe"))?,
        })
    }

    /// The one in the folder `cache`, to look into: it need not exist, and is not made.
    ///
    /// # Errors
    /// This program cannot read itself.
    pub fn in_place(cache: &Path) -> Result<Self> {
        Ok(Self {
            folder: cache.join(STEPS),
            layers: LayerCache::in_place(cache),
            program: hash::blake3(Path::new("/proc/self/exe"))?,
        })
    }

    /// Where the layers are.
    pub fn layers(&self) -> &LayerCache {
        &self.layers
    }

    fn entry(&self, key: &blake3::Hash) -> PathBuf {
        let mut hasher = blake3::Hasher::new_derive_key("smol 2026-12-01 cached build step v1");
        hasher.update(self.program.as_bytes());
        hasher.update(key.as_bytes());
        self.folder.join(hasher.finalize().to_hex().as_str())
    }

    /// The layer of the step with this key, if it is there as it was made.
    ///
    /// # Errors
    /// The entry is not this user's; a damaged layer cannot be removed; the interrupt.
    pub fn lookup(&self, key: &blake3::Hash, interrupt: &Interrupt) -> Result<Option<Digest>> {
        let Some(layer) = self.named(key)? else {
            return Ok(None);
        };
        let missing = self.layers.missing(&[layer], interrupt)?;
        if !missing.is_empty() {
            return Ok(None);
        }
        record_use(&self.entry(key));
        Ok(Some(layer))
    }

    /// The layer that [`StepCache::lookup`] would return if it is not damaged: for looking, not for use.
    ///
    /// # Errors
    /// The entry is not this user's.
    pub fn look(&self, key: &blake3::Hash) -> Result<Option<Digest>> {
        let layer = self.named(key)?;
        Ok(layer.filter(|layer| self.layers.is_there(layer)))
    }

    /// The layer that the entry of this key names, if there is one.
    fn named(&self, key: &blake3::Hash) -> Result<Option<Digest>> {
        let path = self.entry(key);
        let Ok(text) = fs::read(&path) else {
            return Ok(None);
        };
        // What it names becomes part of bundles that are signed.
        paths::require_ours(&path, "the cached build step")?;
        let entry = serde_json::from_slice::<Entry>(&text);
        Ok(entry.ok().map(|entry| entry.layer))
    }

    /// Moves the layer in the file `layer` into the cache, and returns its digest. The file is on the
    /// cache's file system.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn add_layer(&self, layer: &Path) -> Result<Digest> {
        let digest = format!("sha256:{}", hash::sha256(layer)?);
        let digest: Digest = digest.parse().map_err(anyhow::Error::msg)?;
        let place = self.layers.path(&digest);
        fs::rename(layer, &place).with_context(|| format!("cannot write {}", place.display()))?;
        Ok(digest)
    }

    /// Keeps `layer` as what the step with this key makes.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn store(&self, key: &blake3::Hash, layer: Digest) -> Result<()> {
        let path = self.entry(key);
        let cannot = || format!("cannot write {}", path.display());
        let mut file = NamedTempFile::new_in(&self.folder).with_context(cannot)?;
        serde_json::to_writer(&mut file, &Entry { layer })?;
        file.flush().with_context(cannot)?;
        file.persist(&path).with_context(cannot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_found_by_the_key_of_its_step_as_long_as_it_is_whole() {
        let cache = tempfile::tempdir().unwrap();
        let steps = StepCache::open(cache.path()).unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let (key, other) = (blake3::hash(b"key"), blake3::hash(b"other"));
        let find = |key| steps.lookup(key, &interrupt).unwrap();
        let add = || {
            let file = cache.path().join("layer");
            fs::write(&file, "layer").unwrap();
            steps.add_layer(&file).unwrap()
        };
        let layer = add();
        assert_eq!(find(&key), None);
        steps.store(&key, layer).unwrap();
        assert_eq!((find(&key), find(&other)), (Some(layer), None));
        fs::write(steps.layers().path(&layer), "Layer").unwrap();
        assert_eq!(find(&key), None, "the layer is damaged");
        add();
        assert_eq!(find(&key), Some(layer));
        fs::write(steps.entry(&key), "{\"layer\":").unwrap();
        assert_eq!(find(&key), None, "the entry is damaged");
    }
}
