//! Two file system trees compared: of root file systems and initramfs archives.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result};
use serde::Serialize;

use smol_rootfs::{Device, FileData, Inode, InodeId, Node, Tree};

/// A file that is not the same in both trees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Absolute path.
    pub path: String,
    /// What happened to it.
    pub kind: Kind,
    /// What differs, a line each; empty for files that only one tree has.
    pub details: Vec<String>,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// Both have it, not the same.
    Changed,
}

/// Everything in which the trees differ, by path.
///
/// # Errors
/// Contents that cannot be read.
pub fn compare(a: &Tree, b: &Tree) -> Result<Vec<FileChange>> {
    let (a, b) = (Names::new(a), Names::new(b));
    let mut changes = Vec::new();
    let paths = a
        .paths
        .keys()
        .chain(b.paths.keys().filter(|p| !a.paths.contains_key(*p)));
    for path in paths {
        let shown = format!("/{}", path.escape_ascii());
        let (kind, details) = match (a.paths.get(path), b.paths.get(path)) {
            (Some(x), Some(y)) => {
                let details = a.details(*x, &b, *y);
                (Kind::Changed, details.with_context(|| shown.clone())?)
            }
            (None, _) => (Kind::Added, Vec::new()),
            (_, None) => (Kind::Removed, Vec::new()),
        };
        if kind != Kind::Changed || !details.is_empty() {
            changes.push(FileChange {
                path: shown,
                kind,
                details,
            });
        }
    }
    changes.sort_by(|x, y| x.path.cmp(&y.path));
    Ok(changes)
}

/// A tree by its names.
struct Names<'t> {
    tree: &'t Tree,
    paths: BTreeMap<Vec<u8>, InodeId>,
    /// The first name of each inode, by which hard links are recognised.
    first: BTreeMap<InodeId, Vec<u8>>,
}

impl<'t> Names<'t> {
    fn new(tree: &'t Tree) -> Self {
        let mut names = Names {
            tree,
            paths: BTreeMap::new(),
            first: BTreeMap::new(),
        };
        for (path, id, _) in tree.walk() {
            names.first.entry(id).or_insert_with(|| path.clone());
            names.paths.insert(path, id);
        }
        names
    }

    fn details(&self, id: InodeId, other: &Self, other_id: InodeId) -> Result<Vec<String>> {
        let (a, b) = (self.tree.inode(id), other.tree.inode(other_id));
        let mut out = nodes(&a.node, &b.node)?;
        out.extend(metadata(a, b));
        let (x, y) = (&self.first[&id], &other.first[&other_id]);
        if x != y {
            let show = |name: &[u8]| format!("/{}", name.escape_ascii());
            out.push(format!("the file of {} -> {}", show(x), show(y)));
        }
        Ok(out)
    }
}

fn metadata(a: &Inode, b: &Inode) -> Vec<String> {
    let (x, y) = (&a.meta, &b.meta);
    let mut out = Vec::new();
    if x.mode != y.mode {
        out.push(format!("mode {:o} -> {:o}", x.mode, y.mode));
    }
    if (x.uid, x.gid) != (y.uid, y.gid) {
        out.push(format!("owner {}:{} -> {}:{}", x.uid, x.gid, y.uid, y.gid));
    }
    if x.mtime != y.mtime {
        let show = |time: Option<u64>| time.map_or("none".into(), |time| time.to_string());
        out.push(format!("time {} -> {}", show(x.mtime), show(y.mtime)));
    }
    let names = x
        .xattrs
        .keys()
        .chain(y.xattrs.keys().filter(|n| !x.xattrs.contains_key(*n)));
    for name in names.filter(|name| x.xattrs.get(*name) != y.xattrs.get(*name)) {
        out.push(format!("attribute {}", name.escape_ascii()));
    }
    out
}

fn nodes(a: &Node, b: &Node) -> Result<Vec<String>> {
    let device = |d: &Device| format!("{}:{}", d.major, d.minor);
    let change = match (a, b) {
        (Node::Directory(_), Node::Directory(_))
        | (Node::Fifo, Node::Fifo)
        | (Node::Socket, Node::Socket) => None,
        (Node::File(x), Node::File(y)) => contents(x, y)?,
        (Node::Symlink(x), Node::Symlink(y)) => {
            (x != y).then(|| format!("target {} -> {}", x.escape_ascii(), y.escape_ascii()))
        }
        (Node::CharDevice(x), Node::CharDevice(y))
        | (Node::BlockDevice(x), Node::BlockDevice(y)) => {
            (x != y).then(|| format!("device {} -> {}", device(x), device(y)))
        }
        _ => Some(format!("{} -> {}", type_name(a), type_name(b))),
    };
    Ok(change.into_iter().collect())
}

fn type_name(node: &Node) -> &'static str {
    match node {
        Node::Directory(_) => "directory",
        Node::File(_) => "file",
        Node::Symlink(_) => "symbolic link",
        Node::CharDevice(_) => "character device",
        Node::BlockDevice(_) => "block device",
        Node::Fifo => "fifo",
        Node::Socket => "socket",
    }
}

/// Says where two contents begin to differ, and their sizes if these do.
fn contents(a: &FileData, b: &FileData) -> Result<Option<String>> {
    let first = first_difference(a, b)?;
    let (x, y) = (a.len(), b.len());
    Ok(match first {
        None => None,
        Some(at) if x == y => Some(format!("content, from byte {at} of {x} on")),
        Some(at) => Some(format!("content, {x} -> {y} bytes, from byte {at} on")),
    })
}

fn first_difference(a: &FileData, b: &FileData) -> Result<Option<u64>> {
    const PIECE: u64 = 1 << 16;
    let (mut x, mut y) = (a.open()?, b.open()?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        for (input, piece) in [(&mut x, &mut left), (&mut y, &mut right)] {
            piece.clear();
            input.take(PIECE).read_to_end(piece)?;
        }
        if left != right {
            let same = left.iter().zip(&right).take_while(|(l, r)| l == r).count();
            return Ok(Some(at + same as u64));
        }
        if left.is_empty() {
            return Ok(None);
        }
        at += left.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(a: &Tree, b: &Tree) -> Vec<String> {
        let line = |c: FileChange| format!("{:?} {} {}", c.kind, c.path, c.details.join("; "));
        compare(a, b).unwrap().into_iter().map(line).collect()
    }

    #[test]
    fn every_kind_of_difference_between_files_is_told() {
        let mut a = Tree::new();
        a.file("etc/motd", 0o644, b"hello".to_vec()).unwrap();
        a.file("etc/gone", 0o644, Vec::new()).unwrap();
        a.file("etc/mode", 0o644, Vec::new()).unwrap();
        a.file("etc/one", 0o644, Vec::new()).unwrap();
        a.symlink("bin", "usr/bin").unwrap();
        let mut b = a.clone();
        assert_eq!(told(&a, &b), Vec::<String>::new());

        b.file("etc/motd", 0o644, b"help!".to_vec()).unwrap();
        b.remove("etc/gone").unwrap();
        b.file("new", 0o644, Vec::new()).unwrap();
        let id = b.lookup("etc/mode").unwrap().unwrap();
        let meta = b.meta_mut(id);
        (meta.mode, meta.gid, meta.mtime) = (0o4755, 7, Some(3));
        meta.xattrs.insert(b"user.x".to_vec(), Vec::new());
        b.remove("etc/one").unwrap();
        b.hard_link("etc/one", "etc/mode").unwrap();
        b.symlink("bin", "usr/sbin").unwrap();
        assert_eq!(
            told(&a, &b),
            [
                "Changed /bin target usr/bin -> usr/sbin",
                "Removed /etc/gone ",
                "Changed /etc/mode mode 644 -> 4755; owner 0:0 -> 0:7; time none -> 3; attribute user.x",
                "Changed /etc/motd content, from byte 3 of 5 on",
                "Changed /etc/one mode 644 -> 4755; owner 0:0 -> 0:7; time none -> 3; attribute user.x; \
                 the file of /etc/one -> /etc/mode",
                "Added /new ",
            ]
        );
    }

    #[test]
    fn contents_of_different_length_and_type_differ() {
        let mut a = Tree::new();
        a.file("x", 0o644, vec![1; 100_000]).unwrap();
        a.file("y", 0o644, Vec::new()).unwrap();
        let mut b = Tree::new();
        b.file("x", 0o644, vec![1; 70_000]).unwrap();
        b.mkdir("y", 0o644).unwrap();
        assert_eq!(
            told(&a, &b),
            [
                "Changed /x content, 100000 -> 70000 bytes, from byte 70000 on",
                "Changed /y file -> directory",
            ]
        );
    }
}
