//! One normalised file system tree: where every input (tar, directory, copy step) ends up and what both image writers
//! start from.
//!
//! The tree holds metadata only. File contents stay where they are and are referred to by [`Source`], so that a root file
//! system of several gigabytes costs some hundred bytes a file. Names are kept in byte order, so no image depends on the
//! order of its input. Paths from archives are hostile: [`Tree`] is a world of its own, symbolic links are followed inside
//! it and nothing is ever looked up on the host.

use std::collections::{BTreeMap, btree_map};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

/// Longest file name in bytes (`NAME_MAX` of Linux, and of EROFS).
pub const MAX_NAME: usize = 255;
/// Longest path and longest symbolic link target in bytes (`PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;
/// Largest extended attribute value in bytes (the size field of EROFS has 16 bits).
pub const MAX_XATTR_VALUE: usize = 65535;
/// Most bytes of extended attributes, names and values, of one inode.
pub const MAX_XATTRS: usize = 128 << 10;
/// Most insertions into one tree: bounds what a hostile archive can make us allocate.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// Deepest nesting of directories: no longer path can be named by a system call.
const MAX_DEPTH: usize = MAX_PATH / 2;
/// Symbolic links followed in one path before it counts as a loop, as in Linux.
const MAX_LINKS: usize = 40;

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

/// Extended attributes: full name (`security.capability`) to value.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What every inode has besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission, set-id and sticky bits: at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970, if the input's is worth keeping; otherwise the epoch of the image.
    pub mtime: Option<u64>,
    /// Extended attributes by full name.
    pub xattrs: Xattrs,
}

impl Meta {
    /// Owned by root, no attributes, dated with the epoch of the image.
    pub fn root(mode: u32) -> Meta {
        Meta {
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            mtime: None,
            xattrs: Xattrs::new(),
        }
    }
}

/// The content of an inode, which is also its type.
#[derive(Clone, Debug)]
pub enum Node {
    /// A directory: names in byte order, without `.` and `..`.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// A regular file.
    File(Source),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket's name.
    Socket,
}

impl Node {
    /// An empty directory.
    pub fn directory() -> Node {
        Node::Directory(BTreeMap::new())
    }

    /// The file type bits of `st_mode` (inode(7)).
    pub fn type_bits(&self) -> u32 {
        match self {
            Node::Fifo => 0o010000,
            Node::CharDevice(_) => 0o020000,
            Node::Directory(_) => 0o040000,
            Node::BlockDevice(_) => 0o060000,
            Node::File(_) => 0o100000,
            Node::Symlink(_) => 0o120000,
            Node::Socket => 0o140000,
        }
    }
}

/// A device number. Linux has 12 bits of major and 20 of minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The driver's device.
    pub minor: u32,
}

/// An inode: several names may share it (hard links).
#[derive(Clone, Debug)]
pub struct Inode {
    /// Mode, owner, time, attributes.
    pub meta: Meta,
    /// Type and content.
    pub node: Node,
}

/// Where the bytes of a file are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In memory: small generated files.
    Bytes(Arc<[u8]>),
    /// A range of a host file: all of it, or a member of a tar archive.
    Range {
        /// The host file.
        path: Arc<Path>,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Source {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Range { len, .. } => *len,
        }
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Open for reading from the first byte. The reader ends early if the host file has shrunk.
    pub fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        match self {
            Source::Bytes(bytes) => Ok(Box::new(&bytes[..])),
            Source::Range { path, offset, len } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok(Box::new(file.take(*len)))
            }
        }
    }

    /// Copy everything to `out`; a host file that became shorter is an error.
    pub fn copy_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let copied = io::copy(&mut self.open()?, out)?;
        if copied != self.len() {
            return Err(self.shrunk(copied));
        }
        Ok(())
    }

    /// The error for a source that gave only `read` bytes.
    pub fn shrunk(&self, read: u64) -> io::Error {
        let name = match self {
            Source::Bytes(_) => "memory".into(),
            Source::Range { path, .. } => path.display().to_string(),
        };
        let text = format!(
            "{name} changed while it was read: {read} of {} bytes are left",
            self.len()
        );
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Source {
        Source::Bytes(bytes.into())
    }
}

/// A file system tree. See the [module](self).
#[derive(Clone, Debug)]
pub struct Tree {
    /// Inodes by id. Those without a name any more stay as unreachable slots.
    inodes: Vec<Inode>,
    /// Names ever inserted, for [`MAX_ENTRIES`].
    entries: u64,
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
            entries: 0,
        }
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

    /// Put `inode` at `path`, replacing what is there; missing parents are made (0755, root). A directory over a directory
    /// keeps the children and takes the new metadata. Symbolic links in the parents are followed inside the tree.
    pub fn insert(&mut self, path: impl AsRef<[u8]>, inode: Inode) -> Result<InodeId> {
        check_inode(&inode)?;
        let components = components(path.as_ref())?;
        let Some((name, parents)) = components.split_last() else {
            ensure!(
                matches!(inode.node, Node::Directory(_)),
                "the root of the tree must be a directory"
            );
            self.inodes[0].meta = inode.meta;
            return Ok(InodeId::ROOT);
        };
        let parent = self.make_parents(parents)?;
        if let (Node::Directory(_), Some(old)) = (&inode.node, self.child(parent, name))
            && matches!(self.inode(old).node, Node::Directory(_))
        {
            self.inodes[old.index()].meta = inode.meta;
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
        source: impl Into<Source>,
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

    /// Make sure that `path` is a directory, as `mkdir -p`: one that is there (also behind a symbolic link) stays as it is.
    pub fn mkdir(&mut self, path: impl AsRef<[u8]>, mode: u32) -> Result<InodeId> {
        let components = components(path.as_ref())?;
        if let Some(id) = self.find_directory(&components)? {
            return Ok(id);
        }
        let id = self.make_parents(&components)?;
        self.inodes[id.index()].meta.mode = mode & 0o7777;
        Ok(id)
    }

    /// Give the inode at `target` the further name `path`. Links in the parents are followed, `target` itself is not.
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
        let parent = self.make_parents(parents)?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Put all of `other` below the directory `at`, over what is there. Hard links stay links.
    pub fn overlay(&mut self, other: &Tree, at: impl AsRef<[u8]>) -> Result<()> {
        let mut known: BTreeMap<InodeId, Vec<u8>> = BTreeMap::new();
        for (path, id, inode) in other.walk().skip(1) {
            let target = [at.as_ref(), b"/", &path].concat();
            if let Some(first) = known.get(&id) {
                self.hard_link(&target, first)?;
            } else if let Node::Directory(_) = inode.node {
                self.insert(
                    &target,
                    Inode {
                        meta: inode.meta.clone(),
                        node: Node::directory(),
                    },
                )?;
            } else {
                self.insert(&target, inode.clone())?;
                known.insert(id, target);
            }
        }
        Ok(())
    }

    /// Remove `path` and all below it; `false` if it is not there. The root cannot be removed, only emptied.
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

    /// Remove everything inside the directory at `path`; nothing happens if there is none.
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

    /// Every name in the tree, the root first (its path is empty), parents before children, siblings in byte order.
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

    fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(parent).node {
            Node::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, InodeId>> {
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

    fn push(&mut self, inode: Inode) -> Result<InodeId> {
        ensure!(
            (self.inodes.len() as u64) < MAX_ENTRIES,
            "more than {MAX_ENTRIES} files"
        );
        self.inodes.push(inode);
        Ok(InodeId(self.inodes.len() as u32 - 1))
    }

    fn link(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<()> {
        self.entries += 1;
        ensure!(self.entries <= MAX_ENTRIES, "more than {MAX_ENTRIES} names");
        self.children_mut(parent)
            .context("parent is not a directory")?
            .insert(name.into(), id);
        Ok(())
    }

    /// The directory these components lead to, made where missing.
    fn make_parents(&mut self, path: &[&[u8]]) -> Result<InodeId> {
        let mut route = Route::new(path);
        while let Some(step) = route.next(self)? {
            if let Step::Missing { parent, name } = step {
                let id = self.push(Inode {
                    meta: Meta::root(0o755),
                    node: Node::directory(),
                })?;
                self.link(parent, &name, id)?;
                route.enter(id)?;
            }
        }
        Ok(route.directory())
    }

    /// The directory these components lead to, or `None` if a part of the path is missing or not a directory.
    fn find_directory(&self, path: &[&[u8]]) -> Result<Option<InodeId>> {
        let mut route = Route::new(path);
        loop {
            match route.next(self) {
                Ok(None) => return Ok(Some(route.directory())),
                Ok(Some(Step::Entered)) => {}
                Ok(Some(Step::Missing { .. })) => return Ok(None),
                Err(error) if error.is::<NotADirectory>() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// One step of a [`Route`].
enum Step {
    Entered,
    Missing { parent: InodeId, name: Box<[u8]> },
}

/// A file is where a path needs a directory.
#[derive(Debug)]
struct NotADirectory(String);

impl std::fmt::Display for NotADirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not a directory", self.0)
    }
}

impl std::error::Error for NotADirectory {}

/// Path resolution inside the tree, as in a chroot, except that `..` above the root is refused and not ignored: an archive
/// that tries it is broken or hostile.
struct Route {
    /// Components still to go, the next one last.
    todo: Vec<Box<[u8]>>,
    /// Directories from the root to where we are.
    trail: Vec<InodeId>,
    links: usize,
}

impl Route {
    fn new(path: &[&[u8]]) -> Route {
        let todo = path.iter().rev().map(|&name| name.into()).collect();
        Route {
            todo,
            trail: vec![InodeId::ROOT],
            links: 0,
        }
    }

    fn directory(&self) -> InodeId {
        self.trail[self.trail.len() - 1]
    }

    fn enter(&mut self, id: InodeId) -> Result<()> {
        ensure!(
            self.trail.len() < MAX_DEPTH,
            "directories are nested more than {MAX_DEPTH} deep"
        );
        self.trail.push(id);
        Ok(())
    }

    fn next(&mut self, tree: &Tree) -> Result<Option<Step>> {
        let Some(name) = self.todo.pop() else {
            return Ok(None);
        };
        if &*name == b".." {
            ensure!(
                self.trail.len() > 1,
                "a symbolic link in the path leads out of the tree"
            );
            self.trail.pop();
            return Ok(Some(Step::Entered));
        }
        let parent = self.directory();
        let Some(id) = tree.child(parent, &name) else {
            return Ok(Some(Step::Missing { parent, name }));
        };
        match &tree.inode(id).node {
            Node::Directory(_) => self.enter(id)?,
            Node::Symlink(target) => self.follow(target)?,
            _ => bail!(NotADirectory(show(&name))),
        }
        Ok(Some(Step::Entered))
    }

    fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.links += 1;
        ensure!(
            self.links <= MAX_LINKS,
            "more than {MAX_LINKS} symbolic links in one path: a loop?"
        );
        if target.starts_with(b"/") {
            self.trail.truncate(1);
        }
        let names = target
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".");
        let at = self.todo.len();
        self.todo.extend(names.map(Box::from));
        self.todo[at..].reverse();
        Ok(())
    }
}

/// Iterator of [`Tree::walk`]: path without leading slash, id, inode.
pub struct Walk<'a> {
    tree: &'a Tree,
    /// Path of the directory whose children are next, with a slash at its end unless it is the root.
    path: Vec<u8>,
    /// For each directory we are in: length of its path, and the children to come.
    stack: Vec<(usize, Children<'a>)>,
    started: bool,
}

type Children<'a> = btree_map::Iter<'a, Box<[u8]>, InodeId>;

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
            let Some((name, &id)) = children.next() else {
                self.stack.pop();
                continue;
            };
            self.path.extend_from_slice(name);
            let path = self.path.clone();
            self.path.push(b'/');
            let inode = self.tree.inode(id);
            self.enter(inode);
            return Some((path, id, inode));
        }
    }
}

/// Split a path into its names: leading slashes, empty names and `.` vanish, `..` is refused.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    ensure!(
        path.len() <= MAX_PATH,
        "a path of {} bytes (at most {MAX_PATH})",
        path.len()
    );
    ensure!(
        !path.contains(&0),
        "{} has a NUL byte in its name",
        show(path)
    );
    let names: Vec<_> = path
        .split(|&byte| byte == b'/')
        .filter(|n| !n.is_empty() && *n != b".")
        .collect();
    for name in &names {
        ensure!(*name != b"..", "{} has a '..' in its path", show(path));
        ensure!(
            name.len() <= MAX_NAME,
            "a file name of {} bytes (at most {MAX_NAME}): {}",
            name.len(),
            show(name)
        );
    }
    Ok(names)
}

/// A path for a message: printable, and not longer than a line or two.
pub(super) fn show(path: &[u8]) -> String {
    const SHOWN: usize = 200;
    let dots = if path.len() > SHOWN { "..." } else { "" };
    format!("'{}{dots}'", path[..path.len().min(SHOWN)].escape_ascii())
}

fn check_inode(inode: &Inode) -> Result<()> {
    if let Node::Symlink(target) = &inode.node {
        ensure!(!target.is_empty(), "a symbolic link without a target");
        ensure!(
            target.len() <= MAX_PATH,
            "a symbolic link target of {} bytes (at most {MAX_PATH})",
            target.len()
        );
        ensure!(
            !target.contains(&0),
            "a symbolic link target with a NUL byte"
        );
    }
    if let Node::CharDevice(device) | Node::BlockDevice(device) = &inode.node {
        let (major, minor) = (device.major, device.minor);
        ensure!(
            major < 1 << 12 && minor < 1 << 20,
            "device number {major}:{minor} is out of range"
        );
    }
    let mut total = 0;
    for (name, value) in &inode.meta.xattrs {
        ensure!(
            name.len() <= MAX_NAME && !name.contains(&0),
            "extended attribute with a bad name {}",
            show(name)
        );
        let len = value.len();
        ensure!(
            len <= MAX_XATTR_VALUE,
            "extended attribute {} of {len} bytes (at most {MAX_XATTR_VALUE})",
            show(name)
        );
        total += name.len() + len;
    }
    ensure!(
        total <= MAX_XATTRS,
        "{total} bytes of extended attributes (at most {MAX_XATTRS})"
    );
    Ok(())
}

/// Whether this extended attribute means something to Linux; others (of other systems) are left out of images.
pub(super) fn is_linux_xattr(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}
