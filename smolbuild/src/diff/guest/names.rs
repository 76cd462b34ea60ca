//! Names of things in the kernel's memory: files, slab caches, tasks.

use super::layout::Layout;
use super::ram::Space;

/// Longest name of a file, a cache, a file system.
const MAX_NAME: usize = 256;
/// Deepest path that is shown in full.
const MAX_DEPTH: usize = 64;
/// Longest path that is shown in full, in bytes.
const MAX_PATH: usize = 512;

/// The kernel's memory with its layout.
#[derive(Clone, Copy)]
pub struct KernelView<'r> {
    /// The kernel's address space.
    pub space: Space<'r>,
    /// Where things are.
    pub layout: &'r Layout,
}

impl KernelView<'_> {
    /// The `struct page` of the page at `gpa`.
    pub fn page_at(&self, gpa: u64) -> Option<u64> {
        let number = (gpa / super::ram::PAGE).checked_mul(self.layout.page.size)?;
        self.layout.vmemmap.checked_add(number)
    }

    /// What a pointer at `base` + `offset` points to.
    pub fn follow(&self, base: u64, offset: u64) -> Option<u64> {
        self.space.pointer(base.checked_add(offset)?)
    }

    /// A 32-bit number at `base` + `offset`.
    pub fn u32(&self, base: u64, offset: u64) -> Option<u32> {
        self.space.u32(base.checked_add(offset)?)
    }

    /// A 64-bit number at `base` + `offset`.
    pub fn u64(&self, base: u64, offset: u64) -> Option<u64> {
        self.space.u64(base.checked_add(offset)?)
    }

    /// The path of a dentry in its file system.
    pub fn path(&self, dentry: u64) -> Option<String> {
        let at = &self.layout.dentry;
        let (mut names, mut dentry) = (Vec::new(), dentry);
        for _ in 0..MAX_DEPTH {
            let parent = self.follow(dentry, at.parent)?;
            let name = self.space.text(self.follow(dentry, at.name)?, MAX_NAME)?;
            if parent == dentry {
                // The root is called "/"; what has no place in a tree, by its own name.
                if name != "/" {
                    names.push(name);
                }
                break;
            }
            names.push(name);
            dentry = parent;
        }
        names.reverse();
        let mut path = format!("/{}", names.join("/"));
        if path.len() > MAX_PATH {
            // Names are escaped: ASCII.
            path.truncate(MAX_PATH);
            path += "...";
        }
        Some(path)
    }

    /// The file whose pages belong to an `address_space`, with its file system.
    pub fn file(&self, mapping: u64) -> Option<String> {
        let at = &self.layout.inode;
        let inode = self.follow(mapping, self.layout.mapping.host)?;
        let superblock = self.follow(inode, at.superblock)?;
        let kind = self.follow(superblock, self.layout.superblock.kind)?;
        let kind = self.follow(kind, self.layout.fs_type.name)?;
        let kind = self.space.text(kind, MAX_NAME)?;
        let alias = self.follow(inode, at.aliases);
        let path = alias.and_then(|alias| self.path(alias.checked_sub(self.layout.dentry.alias)?));
        Some(match path {
            Some(path) => format!("{path} ({kind})"),
            None => format!("inode {} ({kind})", self.u64(inode, at.number)?),
        })
    }

    /// Name and object size of a slab cache.
    pub fn cache(&self, cache: u64) -> Option<(String, u32)> {
        let at = &self.layout.cache;
        let name = self.space.text(self.follow(cache, at.name)?, MAX_NAME)?;
        Some((name, self.u32(cache, at.size)?))
    }
}
