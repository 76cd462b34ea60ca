//! `[rootfs] debian`: Debian systems. A system is a list of packages, each by version and digest: those of a lock.
//!
//! | file | what it does |
//! |---|---|
//! | `archive.rs` | asks Debian's archive: which packages, and the packages themselves |
//! | `bootstrap.rs` | installs exactly those into a tar archive that is kept in the cache |
//! | `mmdebstrap.rs` | runs the program that does both |
//! | `packages.rs` | reads what apt and dpkg say of packages |
//! | `clean.rs` | which files no image has |
//! | `runtime.rs` | makes the directories in /run that services find |
//! | `needed.rs` | which packages a service needs |
//! | `slim.rs` | takes the others out of the image, if that is asked for |

mod archive;
mod bootstrap;
mod clean;
mod mmdebstrap;
mod needed;
mod packages;
mod runtime;
mod slim;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};
use smol_rootfs::erofs::Mtimes;
use smol_rootfs::{FileData, Inode, Meta, Node, Tree};

pub use self::archive::{Chosen, fetch, resolve};
use self::bootstrap::is_installed;
pub use self::slim::Slim;
use super::{Found, HostPath, Input, InputDirs, LoadedTree, Origin, Pins, watch};
use crate::context::BuildContext;
use crate::fetch::Net;
use crate::lock::{self, Lock, PackagePin};
use crate::source_dir::SourceDir;

/// Installed systems, in the folder of the cache.
const CACHE_FOLDER: &str = smol_host::cache::SYSTEMS;
/// Largest status file of dpkg read (all of Debian has some 100 MB).
const MAX_STATUS: u64 = 128 << 20;

/// What a Smolfile asks of Debian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebianInput {
    /// Release, such as `bookworm`.
    pub suite: String,
    /// Packages, sorted, without duplicates.
    pub packages: Vec<String>,
    /// `[rootfs] slim`: leave out what these do not need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slim: Option<Slim>,
}

impl DebianInput {
    /// Packages of the release `suite`; the order in which they are named changes nothing.
    pub fn new(suite: String, mut packages: Vec<String>) -> DebianInput {
        packages.sort();
        packages.dedup();
        DebianInput {
            suite,
            packages,
            slim: None,
        }
    }

    /// The same without what its packages do not need, and without these packages.
    pub fn slim(self, mut without: Vec<String>) -> DebianInput {
        without.sort();
        DebianInput {
            slim: Some(Slim { without }),
            ..self
        }
    }

    /// Whether `debian` was locked for this.
    fn fits(&self, debian: &lock::Debian) -> bool {
        debian.suite == self.suite && debian.requested == self.packages
    }
}

impl Input for DebianInput {
    fn host_path(&self) -> Option<HostPath<'_>> {
        None
    }

    fn pin(
        &self,
        _base_dir: &SourceDir,
        kept: Option<&Lock>,
        lock: &mut Lock,
        _interrupt: &Interrupt,
    ) -> Result<Pins> {
        let kept = kept.and_then(|lock| lock.debian.as_ref());
        lock.debian = Some(lock::Debian {
            suite: self.suite.clone(),
            requested: self.packages.clone(),
            // Of a lock that does not fit they stand in for those that will be chosen.
            packages: kept.map(|kept| kept.packages.clone()).unwrap_or_default(),
            install_only: kept.and_then(|kept| kept.install_only.clone()),
        });
        Ok(match kept.is_some_and(|kept| self.fits(kept)) {
            true => Pins::Complete,
            false => Pins::ToChoose,
        })
    }

    fn choose(&self, lock: &mut Lock, context: BuildContext) -> Result<()> {
        choose(locked(lock)?, context)
    }

    fn fetch(&self, lock: &mut Lock, cache: &Path, context: BuildContext) -> Result<()> {
        have_packages(locked(lock)?, &cache.join(CACHE_FOLDER), context)
    }

    fn load(
        &self,
        lock: &Lock,
        dirs: &InputDirs,
        say: &mut dyn FnMut(&str),
        interrupt: &Interrupt,
    ) -> Result<LoadedTree> {
        let debian = lock.debian.as_ref().context(NO_PACKAGES);
        let spec = DebianSpec {
            debian: debian.kind(ExitKind::Internal)?.clone(),
            slim: self.slim.clone(),
            downloads: dirs.downloads.to_owned(),
        };
        system(&spec, &dirs.cache.join(CACHE_FOLDER), say, interrupt)
    }

    fn mtimes(&self) -> Mtimes {
        Mtimes::Epoch
    }

    fn title(&self) -> String {
        format!("debian {}: {}", self.suite, self.packages.join(", "))
    }

    fn found(&self, lock: &Lock, cache: &Path, downloads: &Path) -> Result<Option<Found>> {
        let debian = lock.debian.as_ref().context(NO_PACKAGES);
        let debian = debian.kind(ExitKind::Internal)?;
        let ready = is_installed(debian, &cache.join(CACHE_FOLDER));
        let wanted = debian.to_install();
        let is_missing = |pin: &&&PackagePin| {
            let place = crate::fetch::place(downloads, &pin.sha256);
            !ready && !place.is_file()
        };
        let missing = wanted.iter().filter(is_missing);
        Ok(Some(Found {
            parts: "packages",
            total: wanted.len(),
            missing: missing.map(|pin| pin.sha256.clone()).collect(),
            ready,
            from: Origin::Network,
        }))
    }
}

const NO_PACKAGES: &str = "the lock has no packages";

fn locked(lock: &mut Lock) -> Result<&mut lock::Debian> {
    let debian = lock.debian.as_mut().context(NO_PACKAGES);
    debian.kind(ExitKind::Internal)
}

/// Chooses the packages of a system anew.
fn choose(debian: &mut lock::Debian, context: BuildContext) -> Result<()> {
    if context.net == Net::Offline {
        let what = format!(
            "offline, and the lock has no packages for debian = {{ suite = {:?}, packages = {:?} }}",
            debian.suite, debian.requested
        );
        return Err(Failure::new(ExitKind::Failed, what)
            .hint("run `smolbuild lock` with a network first")
            .into());
    }
    let stage = context.session.stage("lock", "choosing packages");
    let chosen = resolve(
        &debian.suite,
        &debian.requested,
        context.downloads,
        &context.session.interrupt,
    )?;
    debian.packages = chosen.packages;
    debian.install_only = Some(chosen.install_only);
    stage.finish(&format!("{} packages", debian.packages.len()));
    Ok(())
}

/// Has the packages of a system in the downloads, unless the system is installed in `cache`. Those
/// that are gone from the archive are replaced by what it offers now, if that is allowed.
fn have_packages(debian: &mut lock::Debian, cache: &Path, context: BuildContext) -> Result<()> {
    let gone = download(debian, cache, context)?;
    if gone.is_empty() {
        return Ok(());
    }
    let failure = archive::gone(&gone, &debian.suite);
    if context.net != Net::Open {
        return Err(failure.into());
    }
    context
        .session
        .note(&format!("{failure}: choosing packages again"));
    choose(debian, context)?;
    match download(debian, cache, context)? {
        gone if gone.is_empty() => Ok(()),
        gone => Err(archive::gone(&gone, &debian.suite)).kind(ExitKind::Failed),
    }
}

/// Downloads the packages of a system, unless it is installed in `cache`; returns those that are
/// gone from the archive.
fn download(debian: &lock::Debian, cache: &Path, context: BuildContext) -> Result<Vec<PackagePin>> {
    if is_installed(debian, cache) {
        return Ok(Vec::new());
    }
    archive::fetch(
        &debian.suite,
        &debian.to_install(),
        context.downloads,
        context.net,
        context.session,
    )
}

/// A Debian system to install.
struct DebianSpec {
    /// Its packages: it depends on nothing else.
    debian: lock::Debian,
    /// What its image does without.
    slim: Option<Slim>,
    /// The folder that [`fetch`] has put them into.
    downloads: PathBuf,
}

/// Installs `spec`, or takes it from `cache`, a folder for this purpose alone (made if missing).
/// Nothing is downloaded. `say` is told what happens, a line at a time.
///
/// # Errors
/// A package is not in the downloads, or damaged; mmdebstrap is missing or fails (its last lines are
/// in the error); the cache cannot be written; a broken archive; a package to leave out that is not
/// there.
fn system(
    spec: &DebianSpec,
    cache: &Path,
    say: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<LoadedTree> {
    let entry = bootstrap::installed(spec, cache, say, interrupt)?;
    let mut tree = Tree::watched(watch(interrupt));
    tree.apply_tar(&entry.archive)?;
    let status = tree.read("var/lib/dpkg/status", MAX_STATUS)?;
    let status = String::from_utf8_lossy(&status.unwrap_or_default()).into_owned();
    let installed = packages::installed(&status);
    let found = installed.iter().map(|p| (&p.name, &p.version, &p.arch));
    let wanted = spec.debian.packages.iter();
    let wanted = wanted.map(|pin| (&pin.name, &pin.version, &pin.arch));
    ensure!(
        found.eq(wanted),
        "mmdebstrap installed other packages than those of the lock"
    );
    clean::clean(&mut tree)?;
    if let Some(slim) = &spec.slim {
        slim::slim(&mut tree, &installed, &spec.debian.requested, slim)?;
    }
    runtime::make_directories(&mut tree)?;
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
    // The lock keeps other processes from replacing the archive that the contents are in.
    Ok(LoadedTree::kept_by(tree, entry.lock))
}
