//! Putting a tar archive onto a tree: as a whole file system, as a layer of an OCI image, or as what was
//! written to an overlay.
//!
//! A layer's whiteouts (OCI image specification, layer.md, "Whiteouts") remove what lower layers brought,
//! and nothing of the layer itself, wherever in it they stand. So each name remembers the layer that it
//! is from ([`Name`](crate::Name)), and one pass over the layer does.
//!
//! The upper directory of an overlay says the same in other words (Documentation/filesystems/overlayfs.rst,
//! "whiteouts and opaque directories"): a name that is gone is a character device 0:0, and a directory
//! under which nothing of the lower ones is seen has an attribute.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::inode::{Device, Meta, Name, Node};
use crate::path::{components, show};
use crate::tar::{Archive, Content, Member};
use crate::{InodeId, Tree};

/// A layer's `.wh.NAME` removes NAME of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// `.wh..wh..opq` in a directory removes everything that the layers below have in it.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// So begin the names of what aufs keeps in a layer for itself; nobody else is to see it.
const AUFS: &[u8] = b".wh..wh.";

/// A directory with this attribute, of the value `y`, hides what is below it in lower layers.
const OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// So begin the names of the attributes that overlayfs keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// What a tree knows of layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    /// How many there have been.
    count: u16,
    /// The number of the one that is being put onto the tree; 0 if none is.
    pub current: u16,
    /// Directories in which nothing of lower layers is left, since this layer said so: each is gone
    /// through once.
    emptied: HashSet<InodeId>,
}

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

    /// Like [`Tree::apply_tar`], but the archive is an OCI layer over the layers that are in the tree:
    /// its whiteouts remove what these contain, and what it has below one of their files replaces that.
    pub fn apply_layer(&mut self, path: &Path) -> Result<()> {
        let context = || format!("layer {}", path.display());
        let mut archive = Archive::open(path)?;
        self.begin_layer().with_context(context)?;
        while let Some(member) = archive.next()? {
            self.budget().tick()?;
            self.apply_layer_member(member).with_context(context)?;
        }
        self.layers().current = 0;
        Ok(())
    }

    /// Like [`Tree::apply_tar`], but the archive is the upper directory of an overlay over the tree. What
    /// is in one of the folders `except`, which are names in the root, is left out, and so are the folders
    /// themselves.
    pub fn apply_overlay(&mut self, path: &Path, except: &[&str]) -> Result<()> {
        let context = || format!("layer {}", path.display());
        let mut archive = Archive::open(path)?;
        self.begin_layer().with_context(context)?;
        while let Some(member) = archive.next()? {
            self.budget().tick()?;
            let top = components(&member.path)?.first().copied();
            if top.is_some_and(|top| except.iter().any(|name| name.as_bytes() == top)) {
                continue;
            }
            self.apply_overlay_member(member).with_context(context)?;
        }
        self.layers().current = 0;
        Ok(())
    }

    fn apply_overlay_member(&mut self, mut member: Member) -> Result<()> {
        let Content::Inode(inode) = &mut member.content else {
            return self.apply_member(member);
        };
        let opaque = inode.meta.xattrs.get(OVERLAY_OPAQUE);
        let is_opaque = inode.is_directory() && opaque.is_some_and(|value| value == b"y");
        inode
            .meta
            .xattrs
            .retain(|name, _| !name.starts_with(OVERLAY));
        let names = components(&member.path)?;
        if let Node::CharDevice(Device { major: 0, minor: 0 }) = inode.node {
            let Some((name, parents)) = names.split_last() else {
                bail!("the root of the tree cannot be removed");
            };
            return self.white_out(parents, name);
        }
        // Not through a link: the directory takes its place.
        if is_opaque
            && let Some(lower) = self.lookup(&member.path)?
            && self.inode(lower).is_directory()
        {
            self.empty(lower)?;
        }
        self.apply_member(member)
    }

    fn begin_layer(&mut self) -> Result<()> {
        let layers = self.layers();
        let next = layers.count.checked_add(1).context("too many layers")?;
        *layers = Layers {
            count: next,
            current: next,
            emptied: HashSet::new(),
        };
        Ok(())
    }

    fn apply_layer_member(&mut self, member: Member) -> Result<()> {
        let names = components(&member.path)?;
        let Some((name, parents)) = names.split_last() else {
            return self.apply_member(member);
        };
        let is_opaque = *name == OPAQUE;
        if parents.iter().any(|name| name.starts_with(AUFS)) || name.starts_with(AUFS) && !is_opaque
        {
            return Ok(());
        }
        if let Some(name) = parents.iter().find(|name| name.starts_with(WHITEOUT)) {
            let path = show(&member.path);
            bail!("{path} is in {}, which can only be a whiteout", show(name));
        }
        if is_opaque {
            return match self.find_directory(parents)? {
                Some(directory) => self.empty(directory),
                None => Ok(()),
            };
        }
        match name.strip_prefix(WHITEOUT) {
            Some(name) => self
                .white_out(parents, name)
                .with_context(|| format!("whiteout {}", show(&member.path))),
            None => self.apply_member(member),
        }
    }

    /// Removes what lower layers have of this name in the directory with this path.
    fn white_out(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let is_name = !name.is_empty() && name != b"." && name != b"..";
        ensure!(is_name, "it names nothing");
        let Some(parent) = self.find_directory(parents)? else {
            return Ok(());
        };
        let Node::Directory(children) = &self.inode(parent).node else {
            return Ok(());
        };
        let Some(mut found) = children.get(name).copied() else {
            return Ok(());
        };
        if self.inode(found.inode).is_directory() {
            self.empty(found.inode)?;
        }
        if found.layer == self.layers().current {
            return Ok(());
        }
        let stays = self.mention_made(&mut found);
        if let Some(children) = self.children_mut(parent) {
            match stays {
                true => drop(children.insert(name.into(), found)),
                false => drop(children.remove(name)),
            }
        }
        Ok(())
    }

    /// Removes all that lower layers have below this directory. Directories stay in which the layer has
    /// something.
    fn empty(&mut self, directory: InodeId) -> Result<()> {
        let mut below = vec![directory];
        let mut found = Vec::new();
        while let Some(id) = below.pop() {
            self.budget().tick()?;
            if !self.layers().emptied.insert(id) {
                continue;
            }
            found.push(id);
            if let Node::Directory(children) = &self.inode(id).node {
                let ids = children.values().map(|child| child.inode);
                below.extend(ids.filter(|id| self.inode(*id).is_directory()));
            }
        }
        // Children come after their parents.
        while let Some(id) = found.pop() {
            self.drop_lower(id)?;
        }
        Ok(())
    }

    /// Removes the names of lower layers in a directory whose directories have been emptied.
    fn drop_lower(&mut self, directory: InodeId) -> Result<()> {
        self.budget().tick()?;
        let Some(children) = self.children_mut(directory) else {
            return Ok(());
        };
        let mut children = std::mem::take(children);
        let current = self.layers().current;
        children.retain(|_, child| child.layer == current || self.mention_made(child));
        self.inode_mut(directory).node = Node::Directory(children);
        Ok(())
    }

    /// Makes a lower directory one of the layer, if the layer has something in it but not the directory
    /// itself: then it is one that is made because it is missing. Returns whether it is.
    fn mention_made(&mut self, name: &mut Name) -> bool {
        let inode = self.inode(name.inode);
        let is_made = matches!(&inode.node, Node::Directory(children) if !children.is_empty());
        if is_made {
            self.inode_mut(name.inode).meta = Meta::root(0o755);
            name.layer = self.layers().current;
        }
        is_made
    }

    /// Notes that the layer has this name, which is there.
    pub(crate) fn mention(&mut self, parent: InodeId, name: &[u8]) {
        let current = self.layers().current;
        if let Some(found) = self.children_mut(parent).and_then(|c| c.get_mut(name)) {
            found.layer = current;
        }
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
