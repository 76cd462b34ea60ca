//! The root file system of another bundle, to build on.
//!
//! That bundle is as hostile as any other: opening it checks its structure, what is unpacked is
//! verified frame by frame, and [`erofs::read`] believes no offset. Who signed it is not asked: the
//! lock names it by its digest, which stands for every byte that is used here.

use std::path::{Path, PathBuf};

use crate::error::ResultExt;
use anyhow::{Context, Result};
use smol_bundle::{Bundle, Digest, ImageKind};
use smol_cli::{ExitKind, Failure};
use smol_rootfs::{Tree, erofs};
use tempfile::{NamedTempFile, TempPath};

/// Threads that unpack the image.
const THREADS: usize = 2;

/// A bundle to build on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseSpec {
    /// The file.
    pub path: PathBuf,
    /// Its digest, as it was locked.
    pub digest: Digest,
}

/// Opens a bundle to build on.
///
/// # Errors
/// No bundle, a damaged one, or one whose machine is just a kernel.
pub fn open(path: &Path) -> Result<Bundle> {
    let cannot = || format!("cannot build on {}", path.display());
    let bundle = Bundle::open(path).classify().with_context(cannot)?;
    if bundle.image_size(ImageKind::Rootfs).is_none() {
        let what = format!(
            "{}: {} has no root file system, it is just a kernel",
            cannot(),
            bundle.config().name
        );
        return Err(Failure::new(ExitKind::Usage, what)
            .hint("name in [base] a bundle that was built with a [rootfs]")
            .into());
    }
    Ok(bundle)
}

/// The tree of a bundle's root file system. Its contents are in the file that comes with it, which
/// is made in `folder`.
///
/// # Errors
/// As [`open`]; another bundle than was locked; frames that do not verify; an image that was not
/// written by smolbuild; a full disk.
pub(super) fn tree(spec: &BaseSpec, folder: &Path) -> Result<(Tree, TempPath)> {
    let bundle = open(&spec.path)?;
    let (found, locked) = (bundle.digest(), spec.digest);
    if found != locked {
        let what = format!(
            "{} is not the bundle of the lock any more: it is {found}, not {locked}",
            spec.path.display()
        );
        return Err(Failure::new(ExitKind::Failed, what)
            .hint("it was replaced while this was built: build again")
            .into());
    }
    let cannot = || format!("cannot build on {}", spec.path.display());
    let image = NamedTempFile::with_prefix_in(".base-", folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    bundle
        .extract(ImageKind::Rootfs, image.as_file(), THREADS, &mut |_, _| {})
        .classify()
        .with_context(cannot)?;
    let tree = erofs::read(image.path()).with_context(cannot)?;
    Ok((tree, image.into_temp_path()))
}
