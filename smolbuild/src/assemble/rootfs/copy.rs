//! `[[copy]]` steps.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::dir::{DirOptions, Modes, Owner};
use super::tree::Tree;

/// A `[[copy]]` step: a file or the content of a directory from the build host into the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySpec {
    /// Host path. A symbolic link here is followed, further ones are copied as links.
    pub src: PathBuf,
    /// Path in the tree. A file goes to this name, or into it if it is a directory or ends in a slash; of a directory the
    /// content goes into it.
    pub dest: String,
    /// Permissions, at most 0o7777; without, 0755 for directories and executable files and 0644 for the rest.
    pub mode: Option<u32>,
    /// User and group; without, root's.
    pub owner: Option<(u32, u32)>,
}

impl Tree {
    /// Carry out a copy step. Times become the epoch of the image, extended attributes are left behind.
    pub fn copy(&mut self, spec: &CopySpec) -> Result<()> {
        self.copy_spec(spec).with_context(|| {
            format!(
                "cannot copy {} to {} in the image",
                spec.src.display(),
                spec.dest
            )
        })
    }

    fn copy_spec(&mut self, spec: &CopySpec) -> Result<()> {
        ensure!(
            spec.mode.is_none_or(|mode| mode <= 0o7777),
            "the mode is more than 7777 (octal)"
        );
        let (uid, gid) = spec.owner.unwrap_or((0, 0));
        let modes = spec.mode.map_or(Modes::Normal, Modes::Fixed);
        let options = DirOptions {
            owner: Owner::Fixed(uid, gid),
            modes,
        };
        let src = fs::canonicalize(&spec.src)?;
        let mut dest = spec.dest.as_bytes().to_vec();
        if fs::metadata(&src)?.is_dir() {
            if !self.is_directory(&dest)? {
                let id = self.mkdir(
                    &dest,
                    spec.mode.map_or(0o755, |mode| mode | (mode & 0o444) >> 2),
                )?;
                let meta = self.meta_mut(id);
                (meta.uid, meta.gid) = (uid, gid);
            }
            self.apply_children(&src, &dest, &options)?;
            return Ok(());
        }
        if dest.ends_with(b"/") || self.is_directory(&dest)? {
            // The name as the Smolfile has it, not that of the file behind a link.
            let name = spec
                .src
                .file_name()
                .or(src.file_name())
                .map(OsStr::as_bytes);
            dest.push(b'/');
            dest.extend(name.context("the source has no file name")?);
        }
        self.put_file(&src, &dest, &options)
    }
}
