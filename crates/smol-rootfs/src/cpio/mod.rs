//! Writing a [`Tree`] as an initramfs: a cpio archive in the "newc" format (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Uncompressed, because it is loaded into the guest's memory as it is, and without anything that
//! depends on the host: sorted by name, inodes numbered from 1, all times 0. [`read()`] is the
//! reverse.

mod read;

use std::collections::HashMap;
use std::io::Write;

use anyhow::{Context, Result, ensure};

pub use self::read::{read, read_into};
use crate::{Inode, InodeId, Node, Tree};

/// The name of the last member.
const TRAILER: &[u8] = b"TRAILER!!!";

/// Writes `tree` as a newc archive and returns its length in bytes, a multiple of 4.
///
/// # Errors
/// A file of 4 GiB or more, more than 2^32 inodes, a source that cannot be read, errors of `out`.
pub fn write(tree: &Tree, out: &mut dyn Write) -> Result<u64> {
    let mut names_left = HashMap::new();
    for (_, id, _) in tree.walk() {
        *names_left.entry(id).or_insert(0u32) += 1;
    }
    let mut archive = Archive {
        out,
        written: 0,
        serials: HashMap::new(),
        links: names_left.clone(),
    };
    for (path, id, inode) in tree.walk() {
        let left = names_left.entry(id).or_default();
        *left -= 1;
        let last = *left == 0;
        archive
            .member(&path, id, inode, last)
            .with_context(|| format!("initramfs: /{}", path.escape_ascii()))?;
    }
    archive.header(
        TRAILER,
        &Header {
            nlink: 1,
            ..Header::default()
        },
    )?;
    Ok(archive.written)
}

/// The numbers of a member's header.
#[derive(Default)]
struct Header {
    serial: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    size: u32,
    rdev: (u32, u32),
}

struct Archive<'a> {
    out: &'a mut dyn Write,
    written: u64,
    /// Inode numbers by tree inode.
    serials: HashMap<InodeId, u32>,
    /// Names by inode.
    links: HashMap<InodeId, u32>,
}

impl Archive<'_> {
    /// Of several names of a file only the last carries the content, as GNU cpio writes and the
    /// kernel reads it.
    fn member(&mut self, path: &[u8], id: InodeId, inode: &Inode, last: bool) -> Result<()> {
        let serials = self.serials.len() as u32 + 1;
        let serial = *self.serials.entry(id).or_insert(serials);
        let content = match &inode.node {
            Node::File(source) if last => source.len(),
            Node::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let size =
            u32::try_from(content).context("the file is too large for an initramfs (4 GiB)")?;
        let rdev = match inode.node {
            Node::CharDevice(device) | Node::BlockDevice(device) => (device.major, device.minor),
            _ => (0, 0),
        };
        let header = Header {
            serial,
            mode: inode.node.type_bits() | inode.meta.mode,
            uid: inode.meta.uid,
            gid: inode.meta.gid,
            nlink: self.links.get(&id).copied().unwrap_or(1),
            size,
            rdev,
        };
        self.header(if path.is_empty() { b"." } else { path }, &header)?;
        match &inode.node {
            Node::File(source) if last => source.copy_to(self.out)?,
            Node::Symlink(target) => self.out.write_all(target)?,
            _ => {}
        }
        self.written += content;
        self.pad()
    }

    fn header(&mut self, name: &[u8], header: &Header) -> Result<()> {
        ensure!(name.len() < 4096, "the name is too long for an initramfs");
        let fields = [
            header.serial,
            header.mode,
            header.uid,
            header.gid,
            header.nlink,
            0, // mtime
            header.size,
            0, // device of the file system: major,
            0, // minor
            header.rdev.0,
            header.rdev.1,
            name.len() as u32 + 1,
            0, // checksum: none in this format
        ];
        let mut bytes = b"070701".to_vec();
        fields
            .iter()
            .for_each(|field| bytes.extend(format!("{field:08x}").bytes()));
        bytes.extend(name);
        bytes.push(0);
        self.out.write_all(&bytes)?;
        self.written += bytes.len() as u64;
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.out.write_all(&[0; 3][..padding as usize])?;
        self.written += padding;
        Ok(())
    }
}
