//! The source that a kernel is built from.

use std::path::Path;

use anyhow::Result;
use smol_cli::{ErrorExt, ExitKind};

use super::recipe::Recipe;
use crate::fetch::Pin;
use crate::hash;
use crate::lock;

/// A source tarball.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTarball {
    /// `PACKAGE VERSION` of a Debian package, or the name of a tarball.
    pub(super) name: String,
    pub(super) sha256: String,
    /// Of the Debian package.
    pub(super) package_sha256: Option<String>,
}

impl SourceTarball {
    /// The user's own tarball.
    pub(super) fn own(tarball: &Path, recipe: &Recipe) -> Result<SourceTarball> {
        let sha256 = hash::sha256(tarball).kind(ExitKind::Usage)?;
        // The same bytes are the same source, by whichever way they came.
        let pinned = SourceTarball::pinned(recipe);
        if sha256 == pinned.sha256 {
            return Ok(pinned);
        }
        let name = tarball.file_name().unwrap_or_default();
        let name = name.to_string_lossy().replace(char::is_control, "?");
        Ok(SourceTarball {
            name,
            sha256,
            package_sha256: None,
        })
    }

    /// The one that a recipe pins.
    pub(super) fn pinned(recipe: &Recipe) -> SourceTarball {
        let debian = &recipe.metadata.source.debian;
        SourceTarball {
            name: format!("{} {}", debian.package, debian.version),
            sha256: debian.tarball_sha256.clone(),
            package_sha256: Some(debian.sha256.clone()),
        }
    }

    /// The one that a lock pins.
    pub(super) fn of_lock(lock: &lock::Kernel) -> SourceTarball {
        SourceTarball {
            name: lock.source.clone(),
            sha256: lock.source_sha256.clone(),
            package_sha256: lock.package_sha256.clone(),
        }
    }

    /// Writes it into a lock.
    pub fn enter(&self, lock: &mut lock::Kernel) {
        lock.source = self.name.clone();
        lock.source_sha256 = self.sha256.clone();
        lock.package_sha256 = self.package_sha256.clone();
    }

    /// The package that it is in, if it is known.
    pub(super) fn package(&self) -> Option<Pin> {
        let (package, version) = self.name.split_once(' ')?;
        // These become arguments of apt, and the lock may come from anybody.
        let plain = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_alphanumeric())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte))
        };
        let known = plain(package) && plain(version);
        known.then_some(Pin {
            package: package.to_owned(),
            version: version.to_owned(),
            sha256: self.package_sha256.clone()?,
        })
    }
}
