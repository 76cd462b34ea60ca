//! The cache as a whole: what is in it, and how it goes.
//!
//! | folder | entries | verified when taken | not removed while this is locked |
//! |---|---|---|---|
//! | `downloads` | files by their SHA-256 | SHA-256 | the folder: a build holds it |
//! | `kernels` | kernels by the digest of their inputs | SHA-256 | the folder: a build holds it |
//! | `debian` | installed systems by the digest of their packages | BLAKE3 | the folder: a build holds it |
//! | `layers` | layers of container images and build steps by what they hold | SHA-256 | the folder: a build holds it |
//! | `steps` | digests of the layers of build steps, by the digest of all inputs | owner | the folder: a build holds it |
//! | `built` | bundles by the digest of all inputs | BLAKE3, and the bundle's own digest | the entry |
//! | `bundles` | unpacked images by the bundle's digest | when they are unpacked; then sizes and owner | the entry: a machine holds it |
//! | `emulated-host` | kernels of the emulated host | when they are downloaded | the entry: an emulated host holds it |
//! | `emulated-host-faults`, `kernels/failed-*.log` | reports for people | | |
//! | `work`, `*/fetching-*`, `*/build-*`, `*/new-*`, `*.tmp`, `*.work` | what is being made | | the folder; `lock` in `kernels` |
//! | `*/removing-*` | what is being removed | | the folder |
//!
//! All locks are those of flock(2), which end with their process. The names of the folders are in
//! [`smol_host::cache`]. An entry is removed by a rename into a folder `removing-*`, while its lock is held,
//! so that whoever is killed at that leaves a cache that works; the next one removes the rest.

mod remove;
mod survey;

use std::path::Path;

use anyhow::{Context, Result};
use smol_host::cache::{self, InUse};

pub use self::remove::{InUseBy, Removal, remove};
pub use self::survey::{Entry, Kind, Survey};

/// Beginning of the names of folders of what is being removed.
pub const REMOVING: &str = "removing-";

/// Takes what builds share into use: downloads, kernels, installed systems, layers and build steps, until the result
/// is dropped.
///
/// # Errors
/// If the cache cannot be written.
pub fn hold_for_build(cache: &Path) -> Result<[InUse; 5]> {
    let hold = |name: &str| {
        let folder = cache.join(name);
        InUse::of_folder(&folder).with_context(|| format!("cannot use {}", folder.display()))
    };
    Ok([
        hold(cache::DOWNLOADS)?,
        hold(cache::KERNELS)?,
        hold(cache::SYSTEMS)?,
        hold(cache::LAYERS)?,
        hold(cache::STEPS)?,
    ])
}

#[cfg(test)]
mod tests;
