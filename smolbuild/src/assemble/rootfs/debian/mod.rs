//! Debian systems: packages, installed by mmdebstrap into a tar archive that is kept in the cache,
//! made small and free of traces of the host when it is read back.
//!
//! `bootstrap` runs mmdebstrap and owns the cache, `slim` says which files an image does without,
//! `packages` tells which packages are in it.

mod bootstrap;
mod packages;
mod slim;

use std::path::{Path, PathBuf};

use anyhow::Result;
use smol_cli::Interrupt;

pub use self::packages::PackagePin;
use super::tree::{Meta, Node, Source, Tree};

/// A Debian system to install.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebianSpec {
    /// Release: `bookworm`.
    pub suite: String,
    /// Packages besides the essential ones, as apt takes them: `redis-server`, or
    /// `redis-server=5:7.0.15-1` for one version. Recommended packages are not installed.
    pub packages: Vec<String>,
    /// An apt sources file (one-line or deb822) to use; without, mmdebstrap's default for the
    /// suite.
    pub sources: Option<PathBuf>,
    /// State of the package archive that is wanted: an opaque text that is part of the cache key,
    /// such as the digest of a lock file. Another text means another installation.
    pub snapshot: String,
    /// Install anew even if the cache has it, and put the result there.
    pub refresh: bool,
}

/// The tree of a Debian system. While it is used, [`Debian::lock`] keeps the cached archive in
/// place.
pub struct Debian {
    /// The files.
    pub tree: Tree,
    /// What is installed, by name and architecture.
    pub packages: Vec<PackagePin>,
    /// Keeps others from replacing the archive the tree's contents are in.
    pub lock: CacheLock,
}

/// A shared lock on a cache entry, released when dropped.
pub struct CacheLock(#[expect(dead_code, reason = "held for its lock")] std::fs::File);

/// Install `spec`, or take it from `cache`, a directory for this purpose alone (made if missing).
/// `progress` is told what happens, a line at a time.
///
/// # Errors
/// mmdebstrap is missing or fails (its last lines are in the error), the cache cannot be written, a
/// broken archive.
pub fn system(
    spec: &DebianSpec,
    cache: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<Debian> {
    let entry = bootstrap::installed(spec, cache, progress, interrupt)?;
    let mut tree = Tree::new();
    tree.apply_tar(&entry.archive)?;
    let packages = packages::installed(&tree)?;
    slim::slim(&mut tree)?;
    if let Some(id) = tree.lookup("etc/machine-id")? {
        // Empty means "not set yet" to systemd and dbus, and can be mounted over.
        let meta = tree.inode(id).meta.clone();
        let node = Node::File(Source::from(Vec::new()));
        tree.insert(
            "etc/machine-id",
            super::tree::Inode {
                meta: Meta {
                    mtime: None,
                    ..meta
                },
                node,
            },
        )?;
    }
    Ok(Debian {
        tree,
        packages,
        lock: CacheLock(entry.lock),
    })
}
