//! The bundle cache: bundles that were built before, which a build of the same inputs takes.
//!
//! A folder of the cache, `built`, has one entry for each: a folder named after the key, in it the
//! unsigned bundle and what its build found out. Only bundles that claim to be reproducible are kept,
//! for of these it is known that another boot would give the same bytes, whatever host, accelerator
//! or watchdog it is done with.
//!
//! The key is known before an image is made. The digests of the images follow from the Plan and
//! from this program:
//!
//! | what | by |
//! |---|---|
//! | kernel, packages, files | the lock's digests, compared with what is on this host at each build |
//! | command lines, memory, CPUs, copies, the guest's orders | the Plan |
//! | the Smolfile's text, which a bundle carries | itself |
//! | monitor, writers, smol-guest, recipes, libraries, compiler | the digest of the running program |
//!
//! So two programs never share an entry, not even two of one version. Entries appear and go by one
//! rename, from and to the folder of a build: an entry is complete or does not exist.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use smol_bundle::Bundle;
use smol_cli::paths;
use smol_host::cache::{BUILT, InUse};

use crate::boot::Frozen;
use crate::cache::REMOVING;
use crate::hash;
use crate::pack::Built;
use crate::plan::Plan;

/// Entries that are kept; of more, those that were used longest ago go.
const MOST: usize = 16;

const BUNDLE: &str = "bundle";
const FACTS: &str = "facts.json";

/// The bundles that were built before.
pub struct BundleCache {
    folder: PathBuf,
    /// BLAKE3 of the running program.
    program: blake3::Hash,
}

/// What is kept with a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Digest of the bundle.
    pub digest: String,
    /// Digests of the images, by name.
    pub inputs: BTreeMap<String, String>,
    /// The machine as it was frozen.
    pub frozen: Frozen,
    /// BLAKE3 of the bundle's file.
    file: String,
}

impl BundleCache {
    /// Opens the one in the folder `cache`.
    ///
    /// # Errors
    /// If this program cannot read itself.
    pub fn open(cache: &Path) -> Result<Self> {
        // By this name also when the file was replaced since this process began.
        let program = hash::blake3(Path::new("/proc/self/exe"))?;
        let folder = cache.join(BUILT);
        Ok(Self { folder, program })
    }

    /// The key of a machine: of the Plan, and the text of its Smolfile.
    pub fn key(&self, plan: &Plan, smolfile: &str) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("smol 2026-12-01 built bundle v1");
        for part in [
            self.program.as_bytes(),
            plan.to_json().as_bytes(),
            smolfile.as_bytes(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns the bundle of `key`, if there is one: a link to it in the build's folder `work`, which
    /// stays when the entry goes, and what its build found out. Every byte is checked.
    ///
    /// # Errors
    /// The entry is damaged; it is gone then.
    pub fn lookup(&self, key: &str, work: &Path) -> Result<Option<(PathBuf, Facts)>> {
        let entry = self.folder.join(key);
        let bundle = work.join("built");
        let Ok(Some(_in_use)) = InUse::of(&entry) else {
            return Ok(None);
        };
        if fs::hard_link(entry.join(BUNDLE), &bundle).is_err() {
            return Ok(None);
        }
        match facts(&entry, &bundle) {
            Ok(facts) => {
                // So that those that are used stay. It does not matter if it fails.
                let _ = File::open(&entry).and_then(|f| f.set_modified(SystemTime::now()));
                Ok(Some((bundle, facts)))
            }
            Err(error) => {
                let _ = fs::rename(&entry, work.join("damaged"));
                fs::remove_file(&bundle)?;
                Err(error)
            }
        }
    }

    /// What is known of the bundle of `key`, if there is one. Its bytes are not checked: for looking, not
    /// for use.
    pub fn look(&self, key: &str) -> Option<Facts> {
        let entry = self.folder.join(key);
        if !entry.join(BUNDLE).is_file() {
            return None;
        }
        serde_json::from_slice(&fs::read(entry.join(FACTS)).ok()?).ok()
    }

    /// Stores a copy of the unsigned bundle that was built, in place of an earlier one.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn store(&self, key: &str, bundle: &Path, built: &Built, work: &Path) -> Result<()> {
        let (entry, new) = (self.folder.join(key), work.join("keep"));
        // Closed to others whatever the umask.
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(&self.folder)?;
        private.recursive(false).create(&new)?;
        fs::copy(bundle, new.join(BUNDLE))?;
        fs::set_permissions(new.join(BUNDLE), Permissions::from_mode(0o644))?;
        let facts = Facts {
            digest: built.written.digest.to_string(),
            inputs: built.sealed.digests.clone(),
            frozen: built.frozen.clone(),
            file: hash::blake3(&new.join(BUNDLE))?.to_hex().to_string(),
        };
        fs::write(new.join(FACTS), serde_json::to_vec(&facts)?)?;
        fs::set_permissions(new.join(FACTS), Permissions::from_mode(0o644))?;
        let _ = fs::rename(&entry, work.join("before"));
        // Not synced: what a crash leaves of it is found out by its digest. If an entry is there now,
        // another build of the same was faster.
        if let Err(error) = fs::rename(&new, &entry)
            && !entry.exists()
        {
            return Err(error.into());
        }
        self.prune(work)
    }

    fn prune(&self, work: &Path) -> Result<()> {
        let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.folder)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let going = entry.file_name().to_string_lossy().starts_with(REMOVING);
                (!going).then_some(())?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        entries.sort();
        let excess = entries.len().saturating_sub(MOST);
        for (number, (_, entry)) in entries.into_iter().take(excess).enumerate() {
            // Another build may have been faster.
            let _ = fs::rename(entry, work.join(format!("old-{number}")));
        }
        Ok(())
    }
}

/// What is kept in `entry` of `bundle`, if it is what was kept.
fn facts(entry: &Path, bundle: &Path) -> Result<Facts> {
    // Such a bundle is signed as if it had been built now.
    for path in [entry, bundle, &entry.join(FACTS)] {
        paths::require_ours(path, "the cached bundle")?;
    }
    let text = fs::read(entry.join(FACTS))?;
    let facts: Facts = serde_json::from_slice(&text).context("what is known of it")?;
    anyhow::ensure!(
        hash::blake3(bundle)?.to_hex().as_str() == facts.file
            && Bundle::open(bundle)?.digest().to_string() == facts.digest,
        "its bytes are not those that were kept"
    );
    Ok(facts)
}

#[cfg(test)]
mod tests;
