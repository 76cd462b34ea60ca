//! An image back to a [`Tree`], whose file contents are ranges of the image file.
//!
//! It reads what [`super::write`] writes, and says what it meets that it does not know. Images may
//! be hostile: every offset is checked against the image, a directory has one name and its names
//! differ, and the tree's limits ([`crate::limits`]) hold for all that is kept.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::format::{BLOCK, DIRENT, DataLayout, InodeHead, SLOT, SuperBlock};
use super::format::{decode_device, xattr_name};
use crate::limits::{MAX_NAME, MAX_PATH, MAX_TREE_BYTES, MAX_XATTRS};
use crate::{FileData, HostFile, Inode, InodeId, Meta, Node, Tree, Xattrs};

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// Bytes beyond the end, and what the operating system says.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let found = from.and_then(|from| self.get(from..)?.get(..bytes.len()));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(bytes, offset)
    }
}

/// Reads the image at `path`. The tree refers to it: it must stay as long as contents are wanted.
///
/// # Errors
/// A file that cannot be read, and an image that is damaged or has features that
/// [`super::write`] does not use (compression, tails inlined behind large files, shared attributes).
pub fn read(path: &Path) -> Result<Tree> {
    read_into(Tree::new(), path)
}

/// Like [`read`], into an empty tree, whose watch is asked whether to go on.
///
/// # Errors
/// Like [`read`], and that of the watch.
pub fn read_into(tree: Tree, path: &Path) -> Result<Tree> {
    let image = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = image.metadata().map(|m| m.len());
    let size = size.with_context(|| format!("cannot look at {}", path.display()))?;
    let image = Arc::new(image);
    let file = HostFile::Open(image.clone(), path.into());
    tree_of(tree, &*image, size, file)
}

/// Reads an image of `size` bytes; the tree's contents refer to the file `path`, in which no part is a
/// symbolic link.
///
/// # Errors
/// Like [`read`].
pub fn read_from(image: &dyn ReadAt, size: u64, path: &Path) -> Result<Tree> {
    tree_of(Tree::new(), image, size, HostFile::Named(path.into()))
}

fn tree_of(tree: Tree, image: &dyn ReadAt, size: u64, file: HostFile) -> Result<Tree> {
    Reader::new(image, size, file)
        .and_then(|reader| reader.tree(tree))
        .context("the EROFS image cannot be read")
}

struct Reader<'a> {
    image: &'a dyn ReadAt,
    size: u64,
    file: HostFile,
    superblock: SuperBlock,
}

/// The contents of files seen so far. An image has no room for more than its own size of them,
/// unless they overlap: then a small image could be the beginning of a huge one.
#[derive(Default)]
struct Contents {
    known: HashSet<(u64, u64)>,
    bytes: u64,
}

impl Contents {
    fn add(&mut self, inode: &Inode, limit: u64) -> Result<()> {
        if let Node::File(FileData::Range { offset, len, .. }) = inode.node
            && self.known.insert((offset, len))
        {
            self.bytes += len;
            ensure!(
                self.bytes <= limit,
                "its data is a part of other files', which smolbuild does not write"
            );
        }
        Ok(())
    }
}

/// An inode's head, and where what follows it begins.
struct Found {
    head: InodeHead,
    /// Offset of the attributes in the image, bytes.
    behind: u64,
}

/// A directory whose children are to be read.
struct Directory {
    id: InodeId,
    found: Found,
    path: Box<[u8]>,
}

/// How far the tree has come.
struct Walk {
    tree: Tree,
    /// Inodes in the tree by their number in the image.
    known: HashMap<u64, InodeId>,
    contents: Contents,
    /// Length of all attributes in the image that were read.
    xattr_bytes: u64,
    todo: Vec<Directory>,
}

impl<'a> Reader<'a> {
    fn new(image: &'a dyn ReadAt, size: u64, file: HostFile) -> Result<Self> {
        let mut block = [0; BLOCK as usize];
        image
            .read_exact_at(&mut block, 0)
            .context("it has no superblock")?;
        let superblock = SuperBlock::decode(&block)?;
        Ok(Reader {
            image,
            size,
            file,
            superblock,
        })
    }

    /// Walks all directories. Names lead to inodes, and an inode with several names is one file.
    fn tree(&self, mut tree: Tree) -> Result<Tree> {
        let nid = u64::from(self.superblock.root_nid);
        let found = self.inode(nid).context("/")?;
        ensure!(found.head.is_directory(), "its root is not a directory");
        let root = self.content(&found, nid).context("/")?;
        tree.insert("", root).context("/")?;
        let mut walk = Walk {
            tree,
            known: HashMap::from([(nid, InodeId::ROOT)]),
            contents: Contents::default(),
            xattr_bytes: 0,
            todo: vec![Directory {
                id: InodeId::ROOT,
                found,
                path: Vec::new().into(),
            }],
        };
        while let Some(directory) = walk.todo.pop() {
            self.children(&directory, &mut walk)?;
        }
        Ok(walk.tree)
    }

    /// Puts the children of a directory into the tree, and those that are directories on the list.
    fn children(&self, directory: &Directory, walk: &mut Walk) -> Result<()> {
        let at = || format!("/{}", directory.path.escape_ascii());
        let size = directory.found.head.size;
        let is_large = size > self.size;
        ensure!(
            !is_large,
            "{}: the directory is larger than the image",
            at()
        );
        let mut block = [0; BLOCK as usize];
        let mut own = HashSet::new();
        for from in (0..size).step_by(BLOCK as usize) {
            walk.tree.budget().tick()?;
            let block = &mut block[..BLOCK.min(size - from) as usize];
            self.data(&directory.found, from, block).with_context(at)?;
            for (name, nid) in entries(block).with_context(at)? {
                if name == b"." || name == b".." {
                    ensure!(own.insert(name.len()), "{}: a name is there twice", at());
                    continue;
                }
                let child = crate::path::below(&directory.path, name);
                self.child(directory, name, nid, &child, walk)
                    .with_context(|| format!("/{}", child.escape_ascii()))?;
            }
        }
        Ok(())
    }

    /// Puts the inode `nid` into the tree as `name` of a directory; its path is `path`.
    fn child(
        &self,
        directory: &Directory,
        name: &[u8],
        nid: u64,
        path: &[u8],
        walk: &mut Walk,
    ) -> Result<()> {
        let plain = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&b'/');
        ensure!(plain, "a bad name");
        ensure!(path.len() < MAX_PATH, "a path of {} bytes", path.len());
        let tree = &mut walk.tree;
        let taken = tree.child(directory.id, name).is_some();
        ensure!(!taken, "the name is there twice");
        if let Some(&id) = walk.known.get(&nid) {
            let is_directory = matches!(tree.inode(id).node, Node::Directory(_));
            ensure!(!is_directory, "it is a loop, or a directory with two names");
            return tree.link(directory.id, name, id);
        }
        let found = self.inode(nid)?;
        // What is read may hold one attribute many times, and lie behind many inodes; what the tree
        // keeps takes more than it takes here.
        walk.xattr_bytes += found.head.xattr_size as u64;
        ensure!(
            walk.xattr_bytes <= MAX_TREE_BYTES,
            "too many extended attributes"
        );
        let inode = self.content(&found, nid)?;
        inode.check()?;
        walk.contents.add(&inode, self.size)?;
        let id = tree.push(inode)?;
        tree.link(directory.id, name, id)?;
        walk.known.insert(nid, id);
        if found.head.is_directory() {
            let path = path.into();
            walk.todo.push(Directory { id, found, path });
        }
        Ok(())
    }

    fn inode(&self, nid: u64) -> Result<Found> {
        let at = nid
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(self.superblock.meta_offset()))
            .context("an inode number out of range")?;
        let mut bytes = [0; 64];
        let short = InodeHead::size(false);
        self.read(&mut bytes[..short], at)?;
        if bytes[0] & 1 == 1 {
            self.read(&mut bytes, at)?;
        }
        let head = InodeHead::decode(&bytes, self.superblock.epoch)?;
        let behind = at + InodeHead::size(head.extended) as u64;
        Ok(Found { head, behind })
    }

    /// Metadata and content of an inode; a directory's children are left out.
    fn content(&self, found: &Found, nid: u64) -> Result<Inode> {
        let head = &found.head;
        let node = match head.mode & 0o170000 {
            0o040000 => Node::directory(),
            0o100000 => Node::File(self.source(found)?),
            0o120000 => {
                ensure!(
                    head.size <= MAX_PATH as u64,
                    "a symbolic link that is too long"
                );
                let mut target = vec![0; head.size as usize];
                self.data(found, 0, &mut target)?;
                Node::Symlink(target)
            }
            0o020000 => Node::CharDevice(decode_device(head.union)),
            0o060000 => Node::BlockDevice(decode_device(head.union)),
            0o010000 => Node::Fifo,
            other => bail!("inode {nid} has the unknown type {other:o}"),
        };
        let meta = Meta {
            mode: head.mode & 0o7777,
            uid: head.uid,
            gid: head.gid,
            mtime: Some(head.mtime),
            xattrs: self.xattrs(found)?,
        };
        Ok(Inode { meta, node })
    }

    /// A file's content as a range of the image.
    fn source(&self, found: &Found) -> Result<FileData> {
        let len = found.head.size;
        let offset = self.run(found, 0, len)?;
        if len == 0 {
            return Ok(FileData::Bytes(Arc::new([])));
        }
        let file = self.file.clone();
        Ok(FileData::Range { file, offset, len })
    }

    /// Where `len` bytes of data from `from` on lie side by side in the image.
    fn run(&self, found: &Found, from: u64, len: u64) -> Result<u64> {
        let head = &found.head;
        let end = from.checked_add(len).filter(|end| *end <= head.size);
        let end = end.context("data beyond the end of the file")?;
        let blocks = match head.layout {
            DataLayout::FlatPlain => head.size,
            DataLayout::FlatInline => head.size - head.size % BLOCK,
        };
        let begin = if end <= blocks {
            (u64::from(head.union) * BLOCK).checked_add(from)
        } else if from >= blocks {
            let tail = found.behind + head.xattr_size as u64;
            tail.checked_add(from - blocks)
        } else {
            bail!(
                "the end of the file is apart from its beginning, which smolbuild does not write"
            );
        };
        let inside = |begin: &u64| begin.checked_add(len).is_some_and(|end| end <= self.size);
        begin
            .filter(inside)
            .context("its data lies beyond the end of the image")
    }

    /// Reads data of an inode, block by block.
    fn data(&self, found: &Found, mut from: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let len = (BLOCK - from % BLOCK).min(out.len() as u64);
            let (piece, rest) = out.split_at_mut(len as usize);
            self.read(piece, self.run(found, from, len)?)?;
            (from, out) = (from + len, rest);
        }
        Ok(())
    }

    fn xattrs(&self, found: &Found) -> Result<Xattrs> {
        let mut xattrs = Xattrs::new();
        let size = found.head.xattr_size;
        if size == 0 {
            return Ok(xattrs);
        }
        ensure!(size <= 2 * MAX_XATTRS, "too many extended attributes");
        let mut bytes = vec![0; size];
        self.read(&mut bytes, found.behind)?;
        ensure!(
            bytes[4] == 0,
            "shared attributes, which smolbuild does not write"
        );
        let mut rest = &bytes[12..];
        while let [name_len, index, low, high, tail @ ..] = rest {
            let (name_len, value_len) = (
                usize::from(*name_len),
                usize::from(u16::from_le_bytes([*low, *high])),
            );
            if (name_len, *index) == (0, 0) {
                break;
            }
            let cut = "an extended attribute is cut off";
            let suffix = tail.get(..name_len).context(cut)?;
            let value = tail.get(name_len..name_len + value_len).context(cut)?;
            xattrs.insert(xattr_name(*index, suffix)?, value.to_vec());
            let used = (4 + name_len + value_len).next_multiple_of(4);
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(xattrs)
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.image
            .read_exact_at(bytes, offset)
            .with_context(|| format!("cannot read {} bytes at {offset}", bytes.len()))
    }
}

/// Names and inode numbers of a block of a directory.
fn entries(block: &[u8]) -> Result<Vec<(&[u8], u64)>> {
    let bad = "a directory block is damaged";
    let field = |entry: usize| {
        let bytes = block.get(entry * DIRENT..(entry + 1) * DIRENT)?;
        let nid = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        Some((nid, usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))))
    };
    let (_, names) = field(0).context(bad)?;
    let count = names / DIRENT;
    ensure!(
        count > 0 && names % DIRENT == 0 && names <= block.len(),
        bad
    );
    let mut out = Vec::with_capacity(count);
    for entry in 0..count {
        let (nid, begin) = field(entry).context(bad)?;
        let end = match entry + 1 < count {
            true => field(entry + 1).context(bad)?.1,
            false => block.len(),
        };
        let name = block.get(begin..end).context(bad)?;
        let len = name.iter().position(|byte| *byte == 0);
        out.push((&name[..len.unwrap_or(name.len())], nid));
    }
    Ok(out)
}
