//! Writing a [`Tree`] as an EROFS image: read-only, uncompressed, reproducible, without root and
//! without a mount.
//!
//! The image is mounted in the guest from a virtio-pmem device with DAX, so file data is in whole,
//! aligned blocks that are mapped into processes straight from the bundle. The layout:
//!
//! ```text
//! block 0     superblock (at byte 1024)
//! block 1...  contents of files, in the order of the tree; equal contents are stored once
//!             directories and links that are too large for the metadata
//! meta block  inodes, each followed by its extended attributes and, for directories and links, the
//! rest of its data
//! ```
//!
//! `format` has the structures, `layout` decides where inodes go, [`read()`] is the
//! reverse.

mod format;
mod layout;
mod read;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use self::format::{BLOCK, DataLayout, Dirent, InodeHead, SuperBlock};
use self::layout::{Layout, Placed};
pub use self::read::{ReadAt, read, read_from, read_into};
use crate::{FileData, HostFile, InodeId, Node, Tree};

/// File contents are read and written in pieces of this many bytes: a multiple of the block size, and few
/// enough to be in the processor's cache between the two.
const PIECE: usize = 256 << 10;
/// Contents of at most so many bytes are read rather than remembered by their place.
const SMALL: u64 = 64 << 10;

/// Which times the files of an image have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtimes {
    /// The epoch, all of them: independent of when inputs were made, and the smallest metadata.
    Epoch,
    /// Those of the tree, but none after the epoch. For archives, whose times are part of the input
    /// and may matter (Python compares the time of a source file with the one in its compiled
    /// form).
    Clamped,
}

/// How to write an image.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The image's time, in seconds since 1970.
    pub epoch: u64,
    /// What times files have.
    pub mtimes: Mtimes,
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// The image file is padded with zeros to a multiple of this many bytes: a power of two, at
    /// least one block (4096).
    pub align_image: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            epoch: 0,
            mtimes: Mtimes::Epoch,
            uuid: [0; 16],
            align_image: BLOCK,
        }
    }
}

/// What went into an image. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Inodes of any type.
    pub inodes: u64,
    /// Regular files, hard links counted once.
    pub files: u64,
    /// Sum of the lengths of regular files.
    pub file_bytes: u64,
    /// Files whose content was there already.
    pub shared_files: u64,
    /// Length of the data that was not stored a second time.
    pub shared_bytes: u64,
    /// Sockets, which were left out.
    pub sockets: u64,
    /// Length of the metadata area.
    pub meta_bytes: u64,
    /// Length of the image file, padding included.
    pub image_bytes: u64,
}

/// Writes `tree` as an EROFS image into `out`, which is truncated first. The same tree, contents and
/// options give the same bytes.
///
/// # Errors
/// A source that cannot be read or that changed, an image of more than 16 TiB, and errors of `out`.
/// Then `out` holds no valid image.
pub fn write(tree: &Tree, out: &mut File, options: &Options) -> Result<Stats> {
    ensure!(
        options.align_image.is_power_of_two() && options.align_image >= BLOCK,
        "bad image alignment"
    );
    let layout = Layout::new(tree, options)?;
    out.set_len(0).context("cannot truncate the image")?;
    let mut image = Image {
        out,
        next: BLOCK,
        repeated: repeated_lengths(tree, &layout),
        known: HashMap::new(),
        ranges: HashMap::new(),
        stats: Stats::default(),
    };
    let mut starts = Vec::with_capacity(layout.inodes.len());
    for placed in &layout.inodes {
        tree.budget().tick()?;
        let start = image.data(tree, &layout, placed);
        starts.push(start.with_context(|| format!("cannot store /{}", path_of(tree, placed.id)))?);
    }
    image.finish(tree, &layout, &starts, options)
}

/// Lengths that several files have. No other file can be equal to another one.
fn repeated_lengths(tree: &Tree, layout: &Layout) -> HashSet<u64> {
    let (mut seen, mut repeated) = (HashSet::new(), HashSet::new());
    for placed in &layout.inodes {
        if let Node::File(source) = &tree.inode(placed.id).node
            && !seen.insert(source.len())
        {
            repeated.insert(source.len());
        }
    }
    repeated
}

/// The first name of an inode, for messages.
fn path_of(tree: &Tree, id: InodeId) -> String {
    let found = tree.walk().find(|(_, at, _)| *at == id);
    found
        .map(|(path, ..)| path.escape_ascii().to_string())
        .unwrap_or_default()
}

/// An image being written.
struct Image<'a> {
    out: &'a mut File,
    /// Where the next data goes: a multiple of the block size.
    next: u64,
    /// Lengths of which there may be equal contents: the others are not digested.
    repeated: HashSet<u64>,
    /// Start of each content stored so far, by length and digest.
    known: HashMap<(u64, blake3::Hash), u64>,
    /// Likewise of ranges of archives, by file, offset and length. Any number of files of an image may
    /// be one range of it, which is read once.
    ranges: HashMap<(*const File, u64, u64), u64>,
    stats: Stats,
}

impl Image<'_> {
    /// Stores the whole blocks of an inode's data; returns the offset of the first.
    fn data(&mut self, tree: &Tree, layout: &Layout, placed: &Placed) -> Result<u64> {
        match &tree.inode(placed.id).node {
            Node::File(source) => {
                self.stats.files += 1;
                self.stats.file_bytes += source.len();
                self.file(tree, source)
            }
            Node::Directory(_) | Node::Symlink(_) if placed.size != placed.tail() => {
                let mut bytes = metadata_content(tree, layout, placed)?;
                bytes.truncate((placed.size - placed.tail()) as usize);
                let start = self.next;
                self.put(&mut bytes)?;
                Ok(start)
            }
            _ => Ok(0),
        }
    }

    /// Stores a file unless the same content is there.
    fn file(&mut self, tree: &Tree, source: &FileData) -> Result<u64> {
        let (start, len) = (self.next, source.len());
        if len == 0 {
            return Ok(0);
        }
        let range = match source {
            FileData::Range {
                file: HostFile::Open(file, _),
                offset,
                len,
            } => Some((std::sync::Arc::as_ptr(file), *offset, *len)),
            _ => None,
        };
        let may_repeat = self.repeated.contains(&len);
        let range = range.filter(|_| len > SMALL && may_repeat);
        if let Some(&stored) = range.and_then(|range| self.ranges.get(&range)) {
            self.stats.shared_files += 1;
            self.stats.shared_bytes += len;
            return Ok(stored);
        }
        let mut reader = source.open().context("cannot open its content")?;
        let mut digest = blake3::Hasher::new();
        let mut left = len;
        let mut piece = Vec::new();
        loop {
            let want = left.min(PIECE as u64);
            piece.clear();
            (&mut reader).take(want).read_to_end(&mut piece)?;
            if (piece.len() as u64) < want {
                return Err(source.shrunk(len - left + piece.len() as u64).into());
            }
            tree.budget().check()?;
            if may_repeat {
                digest.update(&piece);
            }
            left -= want;
            if left == 0 {
                break;
            }
            self.put(&mut piece)?;
        }
        if !may_repeat {
            self.put(&mut piece)?;
            return Ok(start);
        }
        // The last piece is written only if the content is new; what a large one wrote already is
        // overwritten by the next.
        let key = (len, digest.finalize());
        if let Some(&stored) = self.known.get(&key) {
            self.ranges.extend(range.map(|range| (range, stored)));
            self.next = start;
            self.stats.shared_files += 1;
            self.stats.shared_bytes += len;
            return Ok(stored);
        }
        self.put(&mut piece)?;
        self.known.insert(key, start);
        self.ranges.extend(range.map(|range| (range, start)));
        Ok(start)
    }

    /// Writes `bytes` at the next block, padded to whole blocks.
    fn put(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        self.out
            .write_all_at(bytes, self.next)
            .context("cannot write the image")?;
        self.next += bytes.len() as u64;
        Ok(())
    }

    /// Writes the metadata area and the superblock, and sets the final length of the file.
    fn finish(
        self,
        tree: &Tree,
        layout: &Layout,
        starts: &[u64],
        options: &Options,
    ) -> Result<Stats> {
        let meta_start = self.next;
        let end = meta_start + layout.meta_len.next_multiple_of(BLOCK);
        // What a large duplicate file may have left behind goes; what is not written below is zero.
        let cut = self.out.set_len(meta_start);
        cut.context("cannot size the image")?;
        for (serial, (placed, &start)) in layout.inodes.iter().zip(starts).enumerate() {
            tree.budget().tick()?;
            let inode = encode_inode(tree, layout, placed, start, serial as u32 + 1)?;
            let written = self.out.write_all_at(&inode, meta_start + placed.offset);
            written.context("cannot write the image")?;
        }
        let root = layout.get(InodeId::ROOT).context("the tree has no root")?;
        let superblock = SuperBlock {
            root_nid: root
                .nid()
                .try_into()
                .context("the root directory is not at the start of the metadata")?,
            inodes: layout.inodes.len() as u64,
            epoch: options.epoch,
            blocks: block_number(end)?,
            meta_block: block_number(meta_start)?,
            uuid: options.uuid,
        };
        self.out
            .write_all_at(&superblock.encode(), 0)
            .context("cannot write the image")?;
        let image_bytes = end.next_multiple_of(options.align_image);
        let padded = self.out.set_len(image_bytes);
        padded.context("cannot size the image")?;
        Ok(Stats {
            inodes: layout.inodes.len() as u64,
            sockets: layout.sockets,
            meta_bytes: end - meta_start,
            image_bytes,
            ..self.stats
        })
    }
}

/// The bytes of an inode: head, attributes, tail of the data.
fn encode_inode(
    tree: &Tree,
    layout: &Layout,
    placed: &Placed,
    start: u64,
    serial: u32,
) -> Result<Vec<u8>> {
    let inode = tree.inode(placed.id);
    let union = match &inode.node {
        Node::CharDevice(device) | Node::BlockDevice(device) => format::encode_device(*device),
        _ => block_number(start)?,
    };
    let head = InodeHead {
        extended: placed.extended,
        layout: placed.layout,
        xattr_size: placed.xattrs,
        mode: inode.node.type_bits() | inode.meta.mode,
        nlink: placed.nlink,
        size: placed.size,
        union,
        serial,
        uid: inode.meta.uid,
        gid: inode.meta.gid,
        mtime: placed.mtime,
    };
    let mut bytes = Vec::new();
    head.encode(&mut bytes);
    bytes.extend(format::encode_xattrs(&inode.meta.xattrs));
    if placed.layout == DataLayout::FlatInline {
        let content = metadata_content(tree, layout, placed)?;
        bytes.extend(&content[(placed.size - placed.tail()) as usize..]);
    }
    Ok(bytes)
}

/// The data of a directory or a link.
fn metadata_content(tree: &Tree, layout: &Layout, placed: &Placed) -> Result<Vec<u8>> {
    let inode = tree.inode(placed.id);
    if let Node::Symlink(target) = &inode.node {
        return Ok(target.clone());
    }
    let entry = |(name, id): (_, Option<InodeId>)| {
        let id = id.unwrap_or(if name == b".".as_slice() {
            placed.id
        } else {
            placed.parent
        });
        let nid = layout.get(id)?.nid();
        Some(Dirent {
            nid,
            file_type: format::file_type(&tree.inode(id).node),
            name,
        })
    };
    let entries: Option<Vec<_>> = layout::names(tree, inode).into_iter().map(entry).collect();
    Ok(format::encode_directory(
        &entries.context("a directory entry without an inode")?,
    ))
}

fn block_number(offset: u64) -> Result<u32> {
    u32::try_from(offset / BLOCK).context("the image is larger than 16 TiB")
}
