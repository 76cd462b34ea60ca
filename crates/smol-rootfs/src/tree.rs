//! The file tree: what every input (tar, directory, copy step) is put into, and what both image
//! writers start from.
//!
//! The tree holds metadata only. File contents stay where they are and are referred to by
//! [`FileData`], so that a root file system of several gigabytes costs some hundred bytes a file.
//! Names are kept in byte order, so no image depends on the order of its input. Paths from archives
//! are hostile: symbolic links are followed inside the [`Tree`], and nothing
//! is ever looked up on the host.

use std::collections::{BTreeMap, btree_map};

use anyhow::{Context, Result, bail, ensure};

use crate::budget::Budget;
use crate::inode::{FileData, Inode, Meta, Name, Node};
use crate::layer::Layers;
use crate::limits::Watch;
use crate::path::{Route, Step, components, show};

/// Index of an inode in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The root directory, present in every tree.
    pub const ROOT: InodeId = InodeId(0);

    /// The id as an index into a table with [`Tree::inode_slots`] entries.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file system tree. See the [module](self).
#[derive(Clone, Debug)]
pub struct Tree {
    /// Inodes by id. Those without a name any more stay as unreachable slots.
    inodes: Vec<Inode>,
    /// What of the limits was used by all that was ever inserted.
    budget: Budget,
    /// What there is of layers.
    layers: Layers,
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// A root directory (0755, root) and nothing else.
    pub fn new() -> Tree {
        Tree {
            inodes: vec![Inode {
                meta: Meta::root(0o755),
                node: Node::directory(),
            }],
            budget: Budget::default(),
            layers: Layers::default(),
        }
    }

    /// Like [`Tree::new`]; whatever reads into the tree, or writes it, asks `watch` whether to go on.
    pub fn watched(watch: Watch) -> Tree {
        Tree {
            budget: Budget::watched(watch),
            ..Tree::new()
        }
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) fn budget_mut(&mut self) -> &mut Budget {
        &mut self.budget
    }

    /// Size of a table that is indexed by [`InodeId::index`].
    pub fn inode_slots(&self) -> usize {
        self.inodes.len()
    }

    /// The inode with this id.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// The inode with this id, to change its metadata.
    pub fn meta_mut(&mut self, id: InodeId) -> &mut Meta {
        &mut self.inodes[id.index()].meta
    }

    /// Puts `inode` at `path`, replacing what is there; missing parents are made (0755, root). A
    /// directory over a directory keeps the children and takes the new metadata. Symbolic links in
    /// the parents are followed inside the tree.
    pub fn insert(&mut self, path: impl AsRef<[u8]>, inode: Inode) -> Result<InodeId> {
        inode.check()?;
        let components = components(path.as_ref())?;
        let Some((name, parents)) = components.split_last() else {
            ensure!(
                matches!(inode.node, Node::Directory(_)),
                "the root of the tree must be a directory"
            );
            self.budget.inode(&inode)?;
            self.inodes[0].meta = inode.meta;
            return Ok(InodeId::ROOT);
        };
        let parent = self.make_parents(parents, name)?;
        if let (Node::Directory(_), Some(old)) = (&inode.node, self.child(parent, name))
            && matches!(self.inode(old).node, Node::Directory(_))
        {
            self.budget.inode(&inode)?;
            self.inodes[old.index()].meta = inode.meta;
            self.mention(parent, name);
            return Ok(old);
        }
        let id = self.push(inode)?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// A regular file owned by root.
    pub fn file(
        &mut self,
        path: impl AsRef<[u8]>,
        mode: u32,
        source: impl Into<FileData>,
    ) -> Result<InodeId> {
        self.insert(
            path,
            Inode {
                meta: Meta::root(mode),
                node: Node::File(source.into()),
            },
        )
    }

    /// A symbolic link owned by root.
    pub fn symlink(
        &mut self,
        path: impl AsRef<[u8]>,
        target: impl Into<Vec<u8>>,
    ) -> Result<InodeId> {
        self.insert(
            path,
            Inode {
                meta: Meta::root(0o777),
                node: Node::Symlink(target.into()),
            },
        )
    }

    /// Makes sure that `path` is a directory, as `mkdir -p`: one that is there (also behind a
    /// symbolic link) stays as it is.
    pub fn mkdir(&mut self, path: impl AsRef<[u8]>, mode: u32) -> Result<InodeId> {
        let components = components(path.as_ref())?;
        if let Some(id) = self.find_directory(&components)? {
            return Ok(id);
        }
        let id = self.make_parents(&components, b"")?;
        self.inodes[id.index()].meta.mode = mode & 0o7777;
        Ok(id)
    }

    /// Gives the inode at `target` the further name `path`. Links in the parents are followed,
    /// `target` itself is not.
    pub fn hard_link(
        &mut self,
        path: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
    ) -> Result<InodeId> {
        let shown = show(target.as_ref());
        let Some(id) = self.lookup(target)? else {
            bail!("hard link to {shown}, which is not there")
        };
        ensure!(
            !matches!(self.inode(id).node, Node::Directory(_)),
            "hard link to {shown}, which is a directory"
        );
        let components = components(path.as_ref())?;
        let Some((name, parents)) = components.split_last() else {
            bail!("the root of the tree cannot be a link")
        };
        let parent = self.make_parents(parents, name)?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Removes `path` and all below it; `false` if it is not there. The root cannot be removed, only
    /// emptied.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) -> Result<bool> {
        let components = components(path.as_ref())?;
        let Some((name, parents)) = components.split_last() else {
            self.clear(InodeId::ROOT);
            return Ok(true);
        };
        let Some(parent) = self.find_directory(parents)? else {
            return Ok(false);
        };
        Ok(self
            .children_mut(parent)
            .is_some_and(|children| children.remove(*name).is_some()))
    }

    /// Removes everything inside the directory at `path`; nothing happens if there is none.
    pub fn remove_children(&mut self, path: impl AsRef<[u8]>) -> Result<()> {
        if let Some(id) = self.find_directory(&components(path.as_ref())?)? {
            self.clear(id);
        }
        Ok(())
    }

    /// The inode at `path`, which may be a symbolic link; links in its parents are followed.
    pub fn lookup(&self, path: impl AsRef<[u8]>) -> Result<Option<InodeId>> {
        let components = components(path.as_ref())?;
        let Some((name, parents)) = components.split_last() else {
            return Ok(Some(InodeId::ROOT));
        };
        Ok(self
            .find_directory(parents)?
            .and_then(|parent| self.child(parent, name)))
    }

    /// Where the content of the regular file at `path` is, following links; `None` if there is no such
    /// file.
    pub fn content(&self, path: impl AsRef<[u8]>) -> Result<Option<&FileData>> {
        let mut route = Route::new(&components(path.as_ref())?);
        loop {
            let (parent, name) = match route.next(self)? {
                Some(Step::Entered) => continue,
                Some(Step::File { parent, name }) if route.is_at_end() => (parent, name),
                Some(Step::Missing { .. } | Step::File { .. }) | None => return Ok(None),
            };
            let found = self.child(parent, &name).map(|id| &self.inode(id).node);
            return Ok(match found {
                Some(Node::File(data)) => Some(data),
                _ => None,
            });
        }
    }

    /// The content of the regular file at `path`, which must not be larger than `limit` bytes;
    /// `None` if there is no such file.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(id) = self.lookup(path)? else {
            return Ok(None);
        };
        let Node::File(source) = &self.inode(id).node else {
            return Ok(None);
        };
        let len = source.len();
        ensure!(len <= limit, "/{path} has {len} bytes (at most {limit})");
        let mut bytes = Vec::new();
        let read = source.copy_to(&mut bytes);
        read.with_context(|| format!("cannot read /{path} of the image"))?;
        Ok(Some(bytes))
    }

    /// Every name in the tree, the root first (its path is empty), parents before children,
    /// siblings in byte order.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            tree: self,
            path: Vec::new(),
            stack: Vec::new(),
            started: false,
        }
    }

    /// Whether `path` is a directory, following links.
    pub fn is_directory(&self, path: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.find_directory(&components(path.as_ref())?)?.is_some())
    }

    pub(crate) fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(parent).node {
            Node::Directory(children) => children.get(name).map(|name| name.inode),
            _ => None,
        }
    }

    /// The inode with this id, to change it.
    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    pub(crate) fn layers(&mut self) -> &mut Layers {
        &mut self.layers
    }

    pub(crate) fn children_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, Name>> {
        match &mut self.inodes[id.index()].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn clear(&mut self, id: InodeId) {
        if let Some(children) = self.children_mut(id) {
            children.clear();
        }
    }

    pub(crate) fn push(&mut self, inode: Inode) -> Result<InodeId> {
        self.budget.inode(&inode)?;
        self.inodes.push(inode);
        Ok(InodeId(self.inodes.len() as u32 - 1))
    }

    pub(crate) fn link(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<()> {
        self.budget.name(name)?;
        let layer = self.layers.current;
        self.children_mut(parent)
            .context("parent is not a directory")?
            .insert(name.into(), Name { inode: id, layer });
        Ok(())
    }

    /// The directory these components lead to, made where missing, in which there is to be `name`. A
    /// layer may have a directory where a lower one has a file.
    fn make_parents(&mut self, path: &[&[u8]], name: &[u8]) -> Result<InodeId> {
        let mut route = Route::new(path);
        while let Some(step) = route.next(self)? {
            if let Step::File { name, .. } = &step
                && self.layers.current == 0
            {
                bail!("{} is not a directory", show(name));
            }
            if let Step::Missing { parent, name } | Step::File { parent, name } = step {
                let id = self.push(Inode {
                    meta: Meta::root(0o755),
                    node: Node::directory(),
                })?;
                self.link(parent, &name, id)?;
                route.enter(id, &name)?;
            }
        }
        route.path_len(name)?;
        Ok(route.directory())
    }

    /// The directory these components lead to, or `None` if a part of the path is missing or not a
    /// directory.
    pub(crate) fn find_directory(&self, path: &[&[u8]]) -> Result<Option<InodeId>> {
        let mut route = Route::new(path);
        loop {
            match route.next(self)? {
                None => return Ok(Some(route.directory())),
                Some(Step::Entered) => {}
                Some(Step::Missing { .. } | Step::File { .. }) => return Ok(None),
            }
        }
    }
}

/// Iterator of [`Tree::walk`]: path without leading slash, id, inode.
pub struct Walk<'a> {
    tree: &'a Tree,
    /// Path of the directory whose children are next, with a slash at its end unless it is the
    /// root.
    path: Vec<u8>,
    /// For each directory we are in: length of its path, and the children to come.
    stack: Vec<(usize, Children<'a>)>,
    started: bool,
}

type Children<'a> = btree_map::Iter<'a, Box<[u8]>, Name>;

impl<'a> Walk<'a> {
    fn enter(&mut self, inode: &'a Inode) {
        if let Node::Directory(children) = &inode.node {
            self.stack.push((self.path.len(), children.iter()));
        }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Vec<u8>, InodeId, &'a Inode);

    fn next(&mut self) -> Option<Self::Item> {
        if !self.started {
            self.started = true;
            let root = self.tree.inode(InodeId::ROOT);
            self.enter(root);
            return Some((Vec::new(), InodeId::ROOT, root));
        }
        loop {
            let (length, children) = self.stack.last_mut()?;
            self.path.truncate(*length);
            let Some((name, child)) = children.next() else {
                self.stack.pop();
                continue;
            };
            self.path.extend_from_slice(name);
            let path = self.path.clone();
            self.path.push(b'/');
            let inode = self.tree.inode(child.inode);
            self.enter(inode);
            return Some((path, child.inode, inode));
        }
    }
}
