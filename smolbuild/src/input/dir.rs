//! `[rootfs] dir`: a folder of the host.

use anyhow::Result;
use serde::Serialize;
use smol_cli::Interrupt;
use smol_rootfs::erofs::Mtimes;
use smol_rootfs::{DirOptions, Modes, Owner, Tree};
use toml::Spanned;

use super::{HostPath, Input, InputDirs, LoadedTree, Pins, files, watch};
use crate::lock::{InputFile, Lock, Role};
use crate::source_dir::SourceDir;

/// A folder, by path relative to the Smolfile. Owners are kept if we are root, otherwise all files
/// become root's; times become the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirInput(pub Spanned<String>);

impl DirInput {
    /// The tree of the folder, which is in the folder of the Smolfile.
    fn tree(&self, base_dir: &SourceDir, interrupt: &Interrupt) -> Result<Tree> {
        let path = self.0.get_ref();
        let options = DirOptions {
            owner: Owner::of_root_filesystem(),
            modes: Modes::Keep,
            ignore: base_dir.ignore(path, &[])?,
        };
        let mut tree = Tree::watched(watch(interrupt));
        tree.apply_dir(&base_dir.require(path)?, "", &options)?;
        Ok(tree)
    }
}

impl Input for DirInput {
    fn host_path(&self) -> Option<HostPath<'_>> {
        Some(HostPath {
            path: &self.0,
            is_folder: true,
        })
    }

    fn pin(
        &self,
        base_dir: &SourceDir,
        _kept: Option<&Lock>,
        lock: &mut Lock,
        interrupt: &Interrupt,
    ) -> Result<Pins> {
        let path = self.0.get_ref();
        let tree = self.tree(base_dir, interrupt)?;
        lock.files.push(InputFile {
            role: Role::RootfsDir,
            path: path.clone(),
            sha256: files::tree_sha256(&tree, interrupt)?,
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
        self.tree(dirs.base_dir, interrupt).map(LoadedTree::new)
    }

    fn mtimes(&self) -> Mtimes {
        Mtimes::Epoch
    }

    fn title(&self) -> String {
        format!("dir {}", self.0.get_ref())
    }
}
