//! From a description to an image file.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::Interrupt;
use smol_rootfs::erofs::{self, Mtimes, Options, Stats};
use smol_rootfs::{CopySpec, DirOptions, Modes, Owner, Tree};
use tempfile::{NamedTempFile, TempPath};

use super::base::{self, BaseSpec};
use super::debian::{self, CacheLock, DebianSpec};

/// virtio-pmem regions are mapped in units of this many bytes.
const ALIGN: u64 = 2 << 20;

/// Where the files of a root file system come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootfsSource {
    /// Debian packages.
    Debian(DebianSpec),
    /// A plain tar archive.
    Tar(PathBuf),
    /// A host directory. Owners are kept if we are root, otherwise all files become root's; times
    /// become the epoch.
    Dir(PathBuf),
    /// Another bundle, whose image is unpacked beside the new one meanwhile.
    Bundle(BaseSpec),
    /// Nothing but the copies.
    None,
}

/// A root file system to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsSpec {
    /// What it starts from.
    pub source: RootfsSource,
    /// What is copied into it, in this order.
    pub copies: Vec<CopySpec>,
    /// Time of the image in seconds since 1970: no file is younger.
    pub epoch: u64,
}

/// A built image.
#[derive(Clone, Debug)]
pub struct RootfsImage {
    /// The image file.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 2 MiB.
    pub size: u64,
    /// What went into it.
    pub stats: Stats,
}

/// As [`build_interruptible`], for those whom nothing interrupts.
pub fn build(
    spec: &RootfsSpec,
    cache: &Path,
    out: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<RootfsImage> {
    build_interruptible(spec, cache, out, progress, &Interrupt::detached()?)
}

/// Build the root file system image `out`, which is replaced when the new one is complete. `cache`
/// is a directory for installed packages; `progress` is told what happens, a line at a time.
///
/// The image depends on the spec and the contents it names alone: the same input gives the same
/// bytes.
///
/// # Errors
/// Unreadable or hostile input, packages that cannot be installed, a full disk, the interrupt. Then
/// `out` is as it was, and no process or temporary file is left.
pub fn build_interruptible(
    spec: &RootfsSpec,
    cache: &Path,
    out: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<RootfsImage> {
    let mut start = start(spec, cache, folder_of(out), progress, interrupt)?;
    let tree = &mut start.tree;
    for copy in &spec.copies {
        tree.copy(copy)?;
    }
    add_runtime_files(tree)?;
    interrupt.check()?;
    progress("writing the root file system image");
    // Times in archives and bundles are part of the input, and some programs compare them (Python,
    // with its compiled modules).
    let mtimes = match spec.source {
        RootfsSource::Tar(_) | RootfsSource::Bundle(_) => Mtimes::Clamped,
        _ => Mtimes::Epoch,
    };
    let options = Options {
        epoch: spec.epoch,
        mtimes,
        align_image: ALIGN,
        ..Options::default()
    };
    let stats = write_image(tree, out, &options)
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(RootfsImage {
        path: out.to_owned(),
        size: stats.image_bytes,
        stats,
    })
}

/// What an image starts from, with what has the contents of its files for as long as it is wanted.
#[derive(Default)]
struct Start {
    tree: Tree,
    _system: Option<CacheLock>,
    _base: Option<TempPath>,
}

fn start(
    spec: &RootfsSpec,
    cache: &Path,
    folder: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<Start> {
    let mut start = Start::default();
    let tree = &mut start.tree;
    match &spec.source {
        RootfsSource::Debian(debian) => {
            let system = debian::system(debian, cache, progress, interrupt)?;
            (start.tree, start._system) = (system.tree, Some(system.lock));
        }
        RootfsSource::Bundle(base) => {
            progress("unpacking the root file system of the base");
            let (tree, image) = base::tree(base, folder)?;
            (start.tree, start._base) = (tree, Some(image));
        }
        RootfsSource::Tar(path) => tree.apply_tar(path)?,
        RootfsSource::Dir(path) => {
            let options = DirOptions {
                owner: Owner::of_root_filesystem(),
                modes: Modes::Keep,
            };
            tree.apply_dir(path, "", &options)?;
        }
        RootfsSource::None => {}
    }
    Ok(start)
}

/// Mount points, and the one file without which `localhost` has no address. The image is mounted
/// read-only, so nobody can make them later. What is there stays as it is.
fn add_runtime_files(tree: &mut Tree) -> Result<()> {
    for (path, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("etc", 0o755),
    ] {
        tree.mkdir(path, mode)
            .with_context(|| format!("/{path} must be a directory in a root file system"))?;
    }
    if tree.lookup("etc/hosts")?.is_none() {
        let hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        tree.file("etc/hosts", 0o644, hosts.as_bytes().to_vec())?;
    }
    Ok(())
}

fn folder_of(file: &Path) -> &Path {
    file.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Write the image beside `out` and rename it.
fn write_image(tree: &Tree, out: &Path, options: &Options) -> Result<Stats> {
    let mut temporary = NamedTempFile::with_prefix_in(".rootfs-", folder_of(out))?;
    let file: &mut File = temporary.as_file_mut();
    let stats = erofs::write(tree, file, options)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.sync_all()?;
    temporary.persist(out)?;
    Ok(stats)
}
