//! An initramfs back to a [`Tree`]: one uncompressed archive as [`super::write`] makes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::{Device, FileData, HostFile, Inode, Meta, Node, Tree, Xattrs};

const HEADER: usize = 110;

/// Reads the archive in `bytes`; contents in the tree are ranges of the file `path` that holds it, in
/// which no part is a symbolic link.
/// The root's own member, if any, gives the root's metadata.
///
/// # Errors
/// What is not in this format (compressed archives, for one), and damaged archives.
pub fn read(bytes: &[u8], path: &Path) -> Result<Tree> {
    read_into(Tree::new(), bytes, path)
}

/// Like [`read`], into an empty tree, whose watch is asked whether to go on.
///
/// # Errors
/// Like [`read`], and that of the watch.
pub fn read_into(mut tree: Tree, bytes: &[u8], path: &Path) -> Result<Tree> {
    let path: Arc<Path> = path.into();
    // Names of files with several, by inode number; the last carries the content.
    let mut linked: BTreeMap<u32, (Vec<Vec<u8>>, Inode)> = BTreeMap::new();
    let mut at = 0;
    loop {
        let member = Member::parse(bytes, at).with_context(|| format!("member at byte {at}"))?;
        if member.name == super::TRAILER {
            break;
        }
        at = member.end;
        tree.budget().tick()?;
        let shown = || format!("/{}", member.name.escape_ascii());
        let inode = member.inode(bytes, &path).with_context(shown)?;
        if matches!(inode.node, Node::File(_)) && member.nlink > 1 {
            let name = member.name.to_vec();
            // Here and in the tree.
            tree.budget_mut().inode(&inode)?;
            tree.budget_mut().name(&name)?;
            let (names, kept) = linked
                .entry(member.serial)
                .or_insert_with(|| (Vec::new(), inode.clone()));
            names.push(name);
            *kept = inode;
        } else {
            tree.insert(member.name, inode).with_context(shown)?;
        }
    }
    for (names, inode) in linked.into_values() {
        let (first, others) = names.split_first().context("a file without a name")?;
        tree.insert(first, inode)?;
        for name in others {
            tree.hard_link(name, first)?;
        }
    }
    Ok(tree)
}

/// One member: header, name, content.
struct Member<'a> {
    serial: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    mtime: u32,
    device: Device,
    name: &'a [u8],
    content: std::ops::Range<usize>,
    /// Where the next one begins.
    end: usize,
}

impl<'a> Member<'a> {
    fn parse(bytes: &'a [u8], at: usize) -> Result<Self> {
        let header = bytes
            .get(at..)
            .and_then(|b| b.get(..HEADER))
            .context("the archive is cut off")?;
        ensure!(
            header.starts_with(b"070701"),
            "not an uncompressed cpio archive in the format newc"
        );
        let field = |n: usize| {
            let digits = &header[6 + 8 * n..][..8];
            let text = std::str::from_utf8(digits).ok();
            text.and_then(|text| u32::from_str_radix(text, 16).ok())
                .context("a number in the header is damaged")
        };
        let cut = "a member is cut off";
        let name_len = field(11)? as usize;
        let name_at = at + HEADER;
        let name = bytes
            .get(name_at..name_at + name_len)
            .and_then(|name| name.strip_suffix(b"\0"))
            .context(cut)?;
        let begin = (name_at + name_len).next_multiple_of(4);
        let content = begin..begin + field(6)? as usize;
        ensure!(content.end <= bytes.len(), cut);
        Ok(Member {
            serial: field(0)?,
            mode: field(1)?,
            uid: field(2)?,
            gid: field(3)?,
            nlink: field(4)?,
            mtime: field(5)?,
            device: Device {
                major: field(9)?,
                minor: field(10)?,
            },
            name,
            end: content.end.next_multiple_of(4),
            content,
        })
    }

    fn inode(&self, bytes: &[u8], path: &Arc<Path>) -> Result<Inode> {
        let content = &bytes[self.content.clone()];
        let node = match self.mode & 0o170000 {
            0o040000 => Node::directory(),
            0o100000 if content.is_empty() => Node::File(FileData::Bytes(Arc::new([]))),
            0o100000 => Node::File(FileData::Range {
                file: HostFile::Named(path.clone()),
                offset: self.content.start as u64,
                len: content.len() as u64,
            }),
            0o120000 => Node::Symlink(content.to_vec()),
            0o020000 => Node::CharDevice(self.device),
            0o060000 => Node::BlockDevice(self.device),
            0o010000 => Node::Fifo,
            0o140000 => Node::Socket,
            other => bail!("the unknown type {other:o}"),
        };
        let meta = Meta {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: Some(self.mtime.into()),
            xattrs: Xattrs::new(),
        };
        Ok(Inode { meta, node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> (Tree, Vec<u8>) {
        let mut tree = Tree::new();
        tree.file("init", 0o755, b"#!/bin/true".to_vec()).unwrap();
        tree.file("smol/config.json", 0o600, Vec::new()).unwrap();
        tree.symlink("bin", "usr/bin").unwrap();
        tree.hard_link("smol/init", "init").unwrap();
        let node = Node::CharDevice(Device { major: 5, minor: 1 });
        let meta = Meta::root(0o600);
        tree.insert("dev/console", Inode { meta, node }).unwrap();
        let mut bytes = Vec::new();
        super::super::write(&tree, &mut bytes).unwrap();
        (tree, bytes)
    }

    fn listing(tree: &Tree, bytes: &[u8]) -> Vec<String> {
        let line = |(path, id, inode): (Vec<u8>, _, &Inode)| {
            let content = match &inode.node {
                Node::File(FileData::Bytes(content)) => content.to_vec(),
                Node::File(FileData::Range { offset, len, .. }) => {
                    bytes[*offset as usize..][..*len as usize].to_vec()
                }
                Node::Directory(_) => Vec::new(),
                other => format!("{other:?}").into_bytes(),
            };
            let mode = inode.node.type_bits() | inode.meta.mode;
            let name = path.escape_ascii();
            let first = tree.walk().find(|(_, other, _)| *other == id).unwrap().0;
            format!(
                "{name} {mode:o} {} = {}",
                content.escape_ascii(),
                first.escape_ascii()
            )
        };
        tree.walk().map(line).collect()
    }

    #[test]
    fn an_archive_reads_back_as_the_tree_it_was_made_of() {
        let (tree, bytes) = archive();
        let found = read(&bytes, Path::new("initramfs")).unwrap();
        assert_eq!(listing(&found, &bytes), listing(&tree, &[]));
        assert_eq!(found.walk().count(), 8);
    }

    #[test]
    fn a_cut_or_compressed_archive_is_refused() {
        let (_, bytes) = archive();
        for len in 0..bytes.len() - 4 {
            assert!(read(&bytes[..len], Path::new("x")).is_err(), "{len}");
        }
        let error = read(&[0x1f; 200], Path::new("x")).unwrap_err();
        assert!(format!("{error:#}").contains("uncompressed"), "{error:#}");
    }
}
