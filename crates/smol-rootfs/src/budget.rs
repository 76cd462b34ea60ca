//! What a tree has used of the limits.

use std::cell::Cell;

use anyhow::{Result, ensure};

use crate::inode::{Inode, Node};
use crate::limits::{MAX_ENTRIES, MAX_LINK_NAMES, MAX_TREE_BYTES, Watch};

/// What an inode takes without its text, bytes.
const INODE: u64 = 128;
/// What a name takes besides its bytes: its place in the directory, the allocation.
const NAME: u64 = 64;
/// What a directory takes that has a name in it.
const DIRECTORY: u64 = 256;
/// What an attribute takes besides its bytes.
const XATTR: u64 = 128;
/// Ticks between two looks at the watch.
const TICKS: u64 = 256;

/// What has been used of the limits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    watch: Watch,
    ticks: Cell<u64>,
    entries: u64,
    bytes: u64,
    link_names: Cell<u64>,
}

impl Budget {
    pub(crate) fn watched(watch: Watch) -> Budget {
        Budget {
            watch,
            ..Budget::default()
        }
    }

    /// A small piece of work was done.
    pub(crate) fn tick(&self) -> Result<()> {
        self.ticks.set(self.ticks.get() + 1);
        match self.ticks.get().is_multiple_of(TICKS) {
            true => self.watch.check(),
            false => Ok(()),
        }
    }

    /// A large piece of work was done.
    pub(crate) fn check(&self) -> Result<()> {
        self.watch.check()
    }

    pub(crate) fn bytes(&mut self, bytes: u64) -> Result<()> {
        self.bytes += bytes;
        ensure!(
            self.bytes <= MAX_TREE_BYTES,
            "names, link targets and attributes take more than {} MiB of memory",
            MAX_TREE_BYTES >> 20
        );
        Ok(())
    }

    pub(crate) fn inode(&mut self, inode: &Inode) -> Result<()> {
        let node = match &inode.node {
            Node::Directory(_) => DIRECTORY,
            Node::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let xattrs = inode.meta.xattrs.iter();
        let xattrs = xattrs.map(|(name, value)| XATTR + (name.len() + value.len()) as u64);
        self.bytes(INODE + node + xattrs.sum::<u64>())
    }

    pub(crate) fn name(&mut self, name: &[u8]) -> Result<()> {
        self.tick()?;
        self.entries += 1;
        ensure!(self.entries <= MAX_ENTRIES, "more than {MAX_ENTRIES} names");
        self.bytes(NAME + name.len() as u64)
    }

    /// Names that a symbolic link puts into a path.
    pub(crate) fn link_names(&self, names: usize) -> Result<()> {
        self.tick()?;
        self.link_names.set(self.link_names.get() + names as u64);
        ensure!(
            self.link_names.get() <= MAX_LINK_NAMES,
            "paths lead through symbolic links with more than {MAX_LINK_NAMES} names"
        );
        Ok(())
    }
}
