//! The folder in which one build keeps its images until they are packed.
//!
//! It goes when the build ends, in whatever way: a build that was killed leaves a folder that
//! nobody holds the lock of, and the next build removes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

const LOCK: &str = "lock";

/// A private folder under the cache, removed on drop.
pub struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Makes a fresh folder under `cache`, and removes those of builds that died.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn create(cache: &Path) -> Result<Self> {
        let parent = cache.join("work");
        fs::create_dir_all(&parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        sweep(&parent);
        let path = tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot create a folder in {}", parent.display()))?
            .keep();
        let lock = File::create(path.join(LOCK))
            .with_context(|| format!("cannot write {}", path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .context("cannot lock the build's folder")?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new empty folder in it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes folders whose builds no longer run. A folder without a lock file is one that is being
/// made at this moment, or was left in that moment: it is empty and harmless.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_dead_build_goes_and_that_of_a_living_one_stays() {
        let cache = tempfile::tempdir().unwrap();
        let living = WorkDir::create(cache.path()).unwrap();
        let dead = cache.path().join("work/build-dead");
        fs::create_dir(&dead).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        let other = WorkDir::create(cache.path()).unwrap();
        assert!(living.path().exists() && other.path().exists());
        assert!(!dead.exists());
        let gone = other.path().to_owned();
        drop(other);
        assert!(!gone.exists());
    }
}
