//! Putting a tar archive onto a tree: as a whole file system, or as an OCI layer with whiteouts.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::Tree;
use crate::path::show;
use crate::tar::{Archive, Content, Member};

/// A layer's `.wh.NAME` removes NAME of the layers below (OCI image specification, layer.md,
/// "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// `.wh..wh..opq` in a directory removes everything the layers below have in it.
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Tree {
    /// Puts all members of the plain tar archive at `path` into the tree, later ones over earlier
    /// ones. Contents stay in the archive: it must not change until the tree is written.
    ///
    /// Owners, modes, times, devices and extended attributes are kept. Absolute names lose their
    /// slash, names with `..` and names through symbolic links that leave the tree are errors.
    pub fn apply_tar(&mut self, path: &Path) -> Result<()> {
        self.apply_archive(Archive::open(path)?, path)
    }

    /// Like [`Tree::apply_tar`], with an archive that is open; messages call it by its path.
    pub fn apply_tar_file(&mut self, archive: File, path: &Path) -> Result<()> {
        self.apply_archive(Archive::of(archive, path)?, path)
    }

    fn apply_archive(&mut self, mut archive: Archive, path: &Path) -> Result<()> {
        while let Some(member) = archive.next()? {
            self.budget().tick()?;
            self.apply_member(member)
                .with_context(|| format!("archive {}", path.display()))?;
        }
        Ok(())
    }

    /// Like [`Tree::apply_tar`], but the archive is an OCI layer: its whiteouts remove what lower
    /// layers contain, wherever in the archive they stand.
    pub fn apply_layer(&mut self, path: &Path) -> Result<()> {
        let context = || format!("layer {}", path.display());
        let mut archive = Archive::open(path)?;
        while let Some(member) = archive.next()? {
            self.budget().tick()?;
            self.apply_whiteout(&member.path).with_context(context)?;
        }
        archive.rewind();
        while let Some(member) = archive.next()? {
            self.budget().tick()?;
            if !split(&member.path).1.starts_with(WHITEOUT) {
                self.apply_member(member).with_context(context)?;
            }
        }
        Ok(())
    }

    /// Removes what the member at `path` says, if it is a whiteout.
    fn apply_whiteout(&mut self, path: &[u8]) -> Result<()> {
        let (directory, name) = split(path);
        if name == OPAQUE {
            return self.remove_children(directory);
        }
        let Some(name) = name.strip_prefix(WHITEOUT) else {
            return Ok(());
        };
        let something = !name.is_empty() && name != b".";
        ensure!(something, "{} whites out nothing", show(path));
        self.remove([directory, b"/", name].concat()).map(drop)
    }

    fn apply_member(&mut self, member: Member) -> Result<()> {
        let put = match member.content {
            Content::Inode(inode) => self.insert(&member.path, inode),
            Content::HardLink(target) => self.hard_link(&member.path, target),
        };
        put.with_context(|| format!("member {}", show(&member.path)))?;
        Ok(())
    }
}

/// Directory and name of a path; the directory is empty for a name alone.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
