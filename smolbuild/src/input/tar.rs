//! `[rootfs] tar`: a plain tar archive.

use anyhow::Result;
use serde::Serialize;
use smol_cli::Interrupt;
use smol_rootfs::Tree;
use smol_rootfs::erofs::Mtimes;
use smol_sandbox::Access;
use toml::Spanned;

use super::{HostPath, Input, InputDirs, LoadedTree, Pins, confined, watch};
use crate::lock::{InputFile, Lock, Role};
use crate::source_dir::SourceDir;

/// A tar archive, by path relative to the Smolfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TarInput(pub Spanned<String>);

impl Input for TarInput {
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
            role: Role::RootfsTar,
            path: path.clone(),
            sha256: base_dir.sha256(path)?,
        });
        Ok(Pins::Complete)
    }

    fn load(
        &self,
        _lock: &Lock,
        dirs: &InputDirs,
        _say: &mut dyn FnMut(&str),
        interrupt: &Interrupt,
    ) -> Result<LoadedTree> {
        let (archive, path) = dirs.base_dir.require_file(self.0.get_ref())?;
        let mut tree = Tree::watched(watch(interrupt));
        let tree = confined(&Access::none().read(&path), || {
            tree.apply_tar_file(archive, &path)?;
            Ok(tree)
        })?;
        Ok(LoadedTree::new(tree))
    }

    /// Times in an archive are part of the input, and some programs compare them (Python, with its
    /// compiled modules).
    fn mtimes(&self) -> Mtimes {
        Mtimes::Clamped
    }
}
