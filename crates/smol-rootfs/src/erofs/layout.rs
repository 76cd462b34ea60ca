//! Deciding where each inode goes before anything is written: directory entries name inodes by
//! their place.

use anyhow::{Context, Result, ensure};

use super::format::{self, BLOCK, DataLayout, DirectorySize, InodeHead, SLOT};
use super::{Mtimes, Options};
use crate::{Inode, InodeId, Node, Tree};

/// Tails of directories and links up to this many bytes go behind their inode; longer ones get a
/// block of their own. Beyond half a block the gaps in the metadata would cost more than they save.
const MAX_INLINE: u64 = BLOCK / 2;

/// An inode with its place in the image.
pub struct Placed {
    pub id: InodeId,
    /// The directory that `..` leads to (directories only).
    pub parent: InodeId,
    pub nlink: u32,
    /// Length of the data, in bytes.
    pub size: u64,
    pub layout: DataLayout,
    pub extended: bool,
    pub mtime: u64,
    /// Length of the encoded attributes, in bytes.
    pub xattrs: usize,
    /// Offset in the metadata area, in bytes.
    pub offset: u64,
}

impl Placed {
    /// The inode's number in the image.
    pub fn nid(&self) -> u64 {
        self.offset / SLOT
    }

    /// Bytes of data stored behind the inode.
    pub fn tail(&self) -> u64 {
        match self.layout {
            DataLayout::FlatInline => self.size % BLOCK,
            DataLayout::FlatPlain => 0,
        }
    }

    fn room(&self) -> u64 {
        (InodeHead::size(self.extended) + self.xattrs) as u64 + self.tail()
    }
}

/// All inodes of an image, in the order of the walk (root first).
pub struct Layout {
    pub inodes: Vec<Placed>,
    /// Index into `inodes` by [`InodeId::index`].
    slots: Vec<Option<u32>>,
    /// Length of the metadata area in bytes.
    pub meta_len: u64,
    /// Names left out because they are sockets, which mean nothing without their process.
    pub sockets: u64,
}

impl Layout {
    /// Lay out `tree`.
    pub fn new(tree: &Tree, options: &Options) -> Result<Layout> {
        let mut layout = Layout {
            inodes: Vec::new(),
            slots: vec![None; tree.inode_slots()],
            meta_len: 0,
            sockets: 0,
        };
        for (path, id, inode) in tree.walk() {
            match (&inode.node, layout.slots[id.index()]) {
                (Node::Socket, _) => layout.sockets += 1,
                (_, Some(known)) => layout.inodes[known as usize].nlink += 1,
                (_, None) => layout
                    .add(tree, id, inode, options)
                    .with_context(|| format!("/{}", path.escape_ascii()))?,
            }
        }
        layout.set_parents(tree);
        layout.place()?;
        Ok(layout)
    }

    /// The placed form of a tree's inode; sockets have none.
    pub fn get(&self, id: InodeId) -> Option<&Placed> {
        self.slots[id.index()].map(|at| &self.inodes[at as usize])
    }

    fn add(&mut self, tree: &Tree, id: InodeId, inode: &Inode, options: &Options) -> Result<()> {
        let (size, nlink) = match &inode.node {
            Node::Directory(_) => directory_size(tree, inode),
            Node::File(source) => (source.len(), 1),
            Node::Symlink(target) => (target.len() as u64, 1),
            _ => (0, 1),
        };
        let mtime = match options.mtimes {
            Mtimes::Epoch => options.epoch,
            Mtimes::Clamped => inode.meta.mtime.unwrap_or(options.epoch).min(options.epoch),
        };
        let xattrs = format::encode_xattrs(&inode.meta.xattrs).len();
        ensure!(xattrs <= 12 + 4 * 65534, "too many extended attributes");
        self.slots[id.index()] = Some(self.inodes.len() as u32);
        self.inodes.push(Placed {
            id,
            parent: InodeId::ROOT,
            nlink,
            size,
            layout: DataLayout::FlatPlain,
            extended: false,
            mtime,
            xattrs,
            offset: 0,
        });
        let placed = self.inodes.last_mut().context("just added")?;
        // Short inodes take their time from the superblock and have narrow fields. The number of
        // links is not known yet: `place` looks at it again.
        let meta = &inode.meta;
        let narrow =
            size <= u32::MAX.into() && meta.uid <= u16::MAX.into() && meta.gid <= u16::MAX.into();
        placed.extended = !narrow || mtime != options.epoch;
        // File data always has blocks of its own: DAX maps nothing else. Directories and links go
        // through the page cache anyway, and are read sooner from beside their inode.
        let inlined = matches!(inode.node, Node::Directory(_) | Node::Symlink(_));
        if inlined && (1..=MAX_INLINE).contains(&(size % BLOCK)) {
            placed.layout = DataLayout::FlatInline;
        }
        Ok(())
    }

    fn set_parents(&mut self, tree: &Tree) {
        for at in 0..self.inodes.len() {
            let parent = self.inodes[at].id;
            let Node::Directory(children) = &tree.inode(parent).node else {
                continue;
            };
            for child in children.values() {
                if let Some(slot) = self.slots[child.inode.index()] {
                    self.inodes[slot as usize].parent = parent;
                }
            }
        }
    }

    /// Gives each inode its offset. An inode with its attributes and tail stays within one block if
    /// it can: the kernel wants that of tails, and it saves reads of the rest. The gap before a
    /// block that was begun early takes later small inodes.
    fn place(&mut self) -> Result<()> {
        // The first slot stays empty, for an inode number of 0 means "no file" to some readers.
        let mut end = SLOT;
        let mut gap = 0..0;
        for placed in &mut self.inodes {
            placed.extended |= placed.nlink > u16::MAX.into();
            if placed.room() > BLOCK {
                placed.layout = DataLayout::FlatPlain;
            }
            let room = placed.room().next_multiple_of(SLOT);
            if gap.end - gap.start >= room {
                placed.offset = gap.start;
                gap.start += room;
                continue;
            }
            if end % BLOCK + room > BLOCK && !end.is_multiple_of(BLOCK) {
                let next = end.next_multiple_of(BLOCK);
                if next - end > gap.end - gap.start {
                    gap = end..next;
                }
                end = next;
            }
            placed.offset = end;
            end += room;
        }
        // fsck.erofs 1.5 looks for attributes behind every inode, also behind the last one of an
        // image.
        self.meta_len = end + SLOT;
        Ok(())
    }
}

/// Length and link count of a directory: itself, `.`, and the `..` of each directory in it.
fn directory_size(tree: &Tree, inode: &Inode) -> (u64, u32) {
    let mut size = DirectorySize::default();
    let mut nlink = 2;
    for (name, id) in names(tree, inode) {
        size.add(name);
        let is_directory = id.is_some_and(|id| matches!(tree.inode(id).node, Node::Directory(_)));
        nlink += u32::from(is_directory);
    }
    (size.bytes(), nlink)
}

/// What a directory's data lists, sorted: its children but sockets, and `.` and `..` (which have no
/// id here).
pub fn names<'a>(tree: &'a Tree, inode: &'a Inode) -> Vec<(&'a [u8], Option<InodeId>)> {
    let Node::Directory(children) = &inode.node else {
        return Vec::new();
    };
    let stored = children
        .iter()
        .filter(|(_, child)| !matches!(tree.inode(child.inode).node, Node::Socket));
    let mut names: Vec<_> = stored
        .map(|(name, child)| (&**name, Some(child.inode)))
        .collect();
    names.extend([(&b"."[..], None), (b"..", None)]);
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}
