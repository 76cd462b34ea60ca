//! `[rootfs] tar`: a tar archive, which may be compressed.

use anyhow::{Context, Result};
use serde::Serialize;
use smol_cli::Interrupt;
use smol_rootfs::compression::Compression;
use smol_rootfs::erofs::Mtimes;
use smol_rootfs::limits::MAX_UNPACKED;
use smol_rootfs::{Tree, unpack};
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
        let cannot = || format!("cannot read {}", path.display());
        let compression = Compression::of_file(&archive).with_context(cannot)?;
        let unpacked = compression.map(|_| tempfile::tempfile_in(dirs.scratch));
        let unpacked = unpacked.transpose().context("cannot unpack anything")?;
        let watch = watch(interrupt);
        let mut tree = Tree::watched(watch.clone());
        let tree = confined(&Access::none().read(&path), || {
            let archive = match (compression, unpacked) {
                (Some(_), Some(mut plain)) => {
                    let see = &mut |_: &[u8]| {};
                    unpack(compression, archive, &mut plain, MAX_UNPACKED, see, &watch)
                        .with_context(|| format!("archive {}", path.display()))?;
                    plain
                }
                _ => archive,
            };
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

    fn title(&self) -> String {
        format!("tar {}", self.0.get_ref())
    }
}
