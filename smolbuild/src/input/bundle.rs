//! `[base] bundle`: the root file system of another bundle, to build on.
//!
//! That bundle is as hostile as any other: opening it checks its structure, what is unpacked is
//! verified frame by frame, and [`erofs::read`] believes no offset. Who signed it is not asked: the
//! lock names it by its digest, which stands for every byte that is used here.

use anyhow::{Context, Result};
use serde::Serialize;
use smol_bundle::{Bundle, Digest, ImageKind};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};
use smol_rootfs::Tree;
use smol_rootfs::erofs::{self, Mtimes};
use smol_sandbox::Access;
use tempfile::{NamedTempFile, TempPath};
use toml::Spanned;

use super::{HostPath, Input, InputDirs, LoadedTree, Pins, confined, watch};
use crate::error::ResultExt;
use crate::lock::{InputFile, Lock, Role};
use crate::source_dir::SourceDir;

/// Threads that unpack the image.
const THREADS: usize = 2;

/// A bundle to build on, by path relative to the Smolfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BundleInput(pub Spanned<String>);

impl Input for BundleInput {
    fn host_path(&self) -> Option<HostPath<'_>> {
        Some(HostPath {
            path: &self.0,
            is_folder: false,
        })
    }

    fn pin(
        &self,
        base_dir: &SourceDir,
        _kept: Option<&Lock>,
        lock: &mut Lock,
        _interrupt: &Interrupt,
    ) -> Result<Pins> {
        let path = self.0.get_ref();
        lock.files.push(InputFile {
            role: Role::Base,
            path: path.clone(),
            sha256: open(base_dir, path)?.digest().hex(),
        });
        Ok(Pins::Complete)
    }

    fn load(
        &self,
        lock: &Lock,
        dirs: &InputDirs,
        say: &mut dyn FnMut(&str),
        interrupt: &Interrupt,
    ) -> Result<LoadedTree> {
        say("unpacking the root file system of the base");
        let locked = lock.base().context("the lock has no base");
        let locked = locked.kind(ExitKind::Internal)?;
        let path = self.0.get_ref();
        let access = Access::of_monitor()
            .read(dirs.base_dir.join(path))
            .write(dirs.scratch);
        let (tree, image) = confined(&access, || tree(dirs, path, locked, interrupt))?;
        Ok(LoadedTree::kept_by(tree, image))
    }

    /// Those of the base, whose image they come from.
    fn mtimes(&self) -> Mtimes {
        Mtimes::Clamped
    }

    fn title(&self) -> String {
        format!("base {}", self.0.get_ref())
    }
}

/// Opens a bundle to build on.
///
/// # Errors
/// No bundle, a damaged one, or one whose machine is just a kernel.
fn open(base_dir: &SourceDir, path: &str) -> Result<Bundle> {
    let (file, place) = base_dir.require_file(path)?;
    let cannot = || format!("cannot build on {}", base_dir.join(path).display());
    let bundle = Bundle::from_source(file, place).classify();
    let bundle = bundle.with_context(cannot)?;
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
/// is made in the folder for temporary files.
///
/// # Errors
/// As [`open`]; another bundle than was locked; frames that do not verify; an image that was not
/// written by smolbuild; a full disk.
fn tree(
    dirs: &InputDirs,
    path: &str,
    locked: Digest,
    interrupt: &Interrupt,
) -> Result<(Tree, TempPath)> {
    let bundle = open(dirs.base_dir, path)?;
    let (path, folder) = (dirs.base_dir.join(path), dirs.scratch);
    let found = bundle.digest();
    if found != locked {
        let what = format!(
            "{} is not the bundle of the lock any more: it is {found}, not {locked}",
            path.display()
        );
        return Err(Failure::new(ExitKind::Failed, what)
            .hint("it was replaced while this was built: build again")
            .into());
    }
    let cannot = || format!("cannot build on {}", path.display());
    let image = NamedTempFile::with_prefix_in(".base-", folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    let extracted =
        bundle.extract_while(ImageKind::Rootfs, image.as_file(), THREADS, &mut |_, _| {
            interrupt.go_on()
        });
    interrupt.check()?;
    extracted.classify().with_context(cannot)?;
    let tree =
        erofs::read_into(Tree::watched(watch(interrupt)), image.path()).with_context(cannot)?;
    Ok((tree, image.into_temp_path()))
}
