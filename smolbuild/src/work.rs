//! The folder in which one build keeps its images until they are packed.
//!
//! It goes when the build ends, in whatever way: a build that was killed leaves a folder that
//! nobody holds the lock of, and the next build removes it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::paths;
use smol_host::lock_dir::ScratchDir;

/// A private folder under the cache, removed on drop.
pub struct WorkDir(ScratchDir);

impl WorkDir {
    /// Makes a fresh folder under `cache`, and removes those of builds that died.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn create(cache: &Path) -> Result<Self> {
        let parent = Self::parent(cache)?;
        let folder = ScratchDir::create(&parent, "building-")
            .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
        Ok(Self(folder))
    }

    /// Returns the folder under `cache` that such folders are made in, and makes it.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn parent(cache: &Path) -> Result<PathBuf> {
        let parent = cache.join(smol_host::cache::WORK);
        let made = paths::create_in_cache(&parent);
        made.with_context(|| format!("cannot create {}", parent.display()))?;
        Ok(parent)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A new empty folder in it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_dead_build_goes_and_that_of_a_living_one_stays() {
        let cache = tempfile::tempdir().unwrap();
        let living = WorkDir::create(cache.path()).unwrap();
        let dead = cache.path().join("work/building-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("vmlinux"), "").unwrap();
        let other = WorkDir::create(cache.path()).unwrap();
        assert!(living.path().exists() && other.path().exists());
        assert!(!dead.exists());
        let gone = other.path().to_owned();
        drop(other);
        assert!(!gone.exists());
    }
}
