//! The root file system: from an input and what is done to it to one reproducible EROFS image.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind};
use smol_rootfs::Tree;
use smol_rootfs::erofs::{self, Mtimes, Options, Stats};
use tempfile::NamedTempFile;

use crate::folder;

/// virtio-pmem regions are mapped in units of this many bytes.
const ALIGN: u64 = 2 << 20;

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

/// Makes folders of the root file system unless they are there.
///
/// # Errors
/// There is something else.
pub fn make_folders(tree: &mut Tree, folders: &[&str]) -> Result<()> {
    for folder in folders {
        let made = tree.mkdir(folder, 0o755);
        made.with_context(|| format!("cannot make the folder {folder} of the image"))
            .kind(ExitKind::Usage)?;
    }
    Ok(())
}

/// Writes the root file system image `out`, which is replaced when the new one is complete. No
/// file is younger than `epoch`, seconds since 1970.
///
/// The image depends on the tree alone: the same input gives the same bytes.
///
/// # Errors
/// A full disk. Then `out` is as it was, and no temporary file is left.
pub fn write(tree: &mut Tree, epoch: u64, mtimes: Mtimes, out: &Path) -> Result<RootfsImage> {
    add_runtime_files(tree)?;
    write_image(tree, out, &options(epoch, mtimes))
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Writes the image that a build step finds: as [`write`] does, with the files that its machine puts files
/// of its own over. The tree stays as it is.
///
/// # Errors
/// As for [`write`].
pub fn write_step_image(
    tree: &Tree,
    epoch: u64,
    mtimes: Mtimes,
    out: &Path,
) -> Result<RootfsImage> {
    let mut tree = tree.clone();
    add_runtime_files(&mut tree)?;
    for path in ["etc/hostname", "etc/resolv.conf"] {
        if tree.lookup(path)?.is_none() {
            tree.file(path, 0o644, Vec::new())?;
        }
    }
    write_image(&tree, out, &options(epoch, mtimes))
        .with_context(|| format!("cannot write {}", out.display()))
}

fn options(epoch: u64, mtimes: Mtimes) -> Options {
    Options {
        epoch,
        mtimes,
        align_image: ALIGN,
        ..Options::default()
    }
}

/// Adds mount points, and the one file without which `localhost` has no address. The image is mounted
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

/// Writes the image in the folder of `out` and renames it.
fn write_image(tree: &Tree, out: &Path, options: &Options) -> Result<RootfsImage> {
    let mut temporary = NamedTempFile::with_prefix_in(".rootfs-", folder::of(out))?;
    let file: &mut File = temporary.as_file_mut();
    let stats = erofs::write(tree, file, options)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.sync_all()?;
    temporary.persist(out)?;
    Ok(RootfsImage {
        path: out.to_owned(),
        size: stats.image_bytes,
        stats,
    })
}
