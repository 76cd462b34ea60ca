//! Debian systems. A system is a list of packages, each by version and digest: those of a lock.
//!
//! | file | what it does |
//! |---|---|
//! | `archive.rs` | asks Debian's archive: which packages, and the packages themselves |
//! | `bootstrap.rs` | installs exactly those into a tar archive that is kept in the cache |
//! | `mmdebstrap.rs` | runs the program that does both |
//! | `packages.rs` | reads what apt and dpkg say of packages |
//! | `slim.rs` | which files an image does without |

mod archive;
mod bootstrap;
mod mmdebstrap;
mod packages;
mod slim;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use smol_cli::Interrupt;
use smol_rootfs::{FileData, Inode, Meta, Node, Tree};

pub use self::archive::{fetch, gone, resolve};
pub use self::bootstrap::is_installed;
pub use self::packages::PackagePin;

/// Largest status file of dpkg read (all of Debian has some 100 MB).
const MAX_STATUS: u64 = 128 << 20;

/// A Debian system to install.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebianSpec {
    /// All its packages, sorted: it depends on nothing else.
    pub packages: Vec<PackagePin>,
    /// The folder that [`fetch`] has put them into.
    pub downloads: PathBuf,
}

/// The tree of a Debian system. While it is used, [`Debian::lock`] keeps the cached archive in
/// place.
pub struct Debian {
    /// The files.
    pub tree: Tree,
    /// Keeps others from replacing the archive the tree's contents are in.
    pub lock: CacheLock,
}

/// A shared lock on a cache entry, released when dropped.
pub struct CacheLock(#[expect(dead_code, reason = "held for its lock")] std::fs::File);

/// Install `spec`, or take it from `cache`, a directory for this purpose alone (made if missing).
/// Nothing is downloaded.
/// `progress` is told what happens, a line at a time.
///
/// # Errors
/// A package is not in the downloads, or damaged; mmdebstrap is missing or fails (its last lines are
/// in the error); the cache cannot be written; a broken archive.
pub fn system(
    spec: &DebianSpec,
    cache: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<Debian> {
    let entry = bootstrap::installed(spec, cache, progress, interrupt)?;
    let mut tree = Tree::new();
    tree.apply_tar(&entry.archive)?;
    let status = tree.read("var/lib/dpkg/status", MAX_STATUS)?;
    let status = String::from_utf8_lossy(&status.unwrap_or_default()).into_owned();
    let wanted = spec.packages.iter();
    let wanted = wanted.map(|pin| (pin.name.clone(), pin.version.clone(), pin.arch.clone()));
    ensure!(
        packages::installed(&status) == wanted.collect::<Vec<_>>(),
        "mmdebstrap installed other packages than those of the lock"
    );
    slim::slim(&mut tree)?;
    if let Some(id) = tree.lookup("etc/machine-id")? {
        // Empty means "not set yet" to systemd and dbus, and can be mounted over.
        let meta = tree.inode(id).meta.clone();
        let node = Node::File(FileData::from(Vec::new()));
        tree.insert(
            "etc/machine-id",
            Inode {
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
        lock: CacheLock(entry.lock),
    })
}
